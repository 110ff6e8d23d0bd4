//! `meshctl analyze` from outside: formats against golden files, thresholds, suppression, exit codes.
//!
//! `BLESS=1` writes the golden files anew.

#![allow(clippy::unwrap_used)] // a test that meets what it does not expect ends

mod support;

use std::io::Write as _;
use std::path::Path;
use std::process::Stdio;

use support::{Ended, ended, meshctl};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/testdata/analyze");

fn analyze(args: &[&str]) -> Ended {
    ended(meshctl().arg("analyze").args(args).current_dir(FOLDER))
}

#[test]
fn formats_are_as_in_the_golden_files() {
    for format in ["log", "json", "yaml", "sarif", "junit"] {
        let found = analyze(&["-f", "in.yaml", "-o", format, "--output-threshold", "Info"]);
        assert_eq!(found.code, 79, "{format}: {found:?}");
        let out =
            found.out.replace(&format!("\"version\": \"{}\"", env!("CARGO_PKG_VERSION")), "\"version\": \"VERSION\"");
        let golden = Path::new(FOLDER).join(format!("out.{format}"));
        if std::env::var_os("BLESS").is_some() {
            std::fs::write(&golden, &out).unwrap();
        }
        let expected = std::fs::read_to_string(&golden).unwrap();
        assert_eq!(out, expected, "{format}");
    }
}

#[test]
fn thresholds_decide_what_is_shown_and_what_fails() {
    let lines = |found: &Ended| found.out.lines().filter(|l| l.contains(" [IST")).count();
    let all = analyze(&["in.yaml", "--output-threshold", "info"]);
    let some = analyze(&["in.yaml"]);
    let worst = analyze(&["in.yaml", "--output-threshold", "error"]);
    assert_eq!([&all, &some, &worst].map(lines), [4, 3, 1], "{all:?}");
    // What fails is shown.
    let strict = analyze(&["in.yaml", "--output-threshold", "error", "--failure-threshold", "warning"]);
    assert_eq!((strict.code, lines(&strict)), (79, 3), "{strict:?}");
    let bank = ["in.yaml", "-n", "bank"];
    assert_eq!(analyze(&bank).code, 0, "a warning only");
    assert_eq!(analyze(&[&bank[..], &["--failure-threshold", "warning"]].concat()).code, 79);
    assert_eq!(lines(&analyze(&["in.yaml", "-A"])), 3);
    assert_eq!(lines(&analyze(&["in.yaml", "-n", "nowhere"])), 0);
}

#[test]
fn findings_are_suppressed_by_code_and_object() {
    let error = analyze(&["in.yaml", "-S", "IST0101=VirtualService *.shop", "-o", "json"]);
    assert_eq!((error.code, error.out.contains("IST0101")), (0, false), "{error:?}");
    assert!(error.out.contains("IST0130"), "{error:?}");
    assert_eq!(analyze(&["in.yaml", "-S", "IST0101=VirtualService *.bank"]).code, 79);
    for wrong in ["IST0101", "=x", "IST9999=*"] {
        let found = analyze(&["in.yaml", "-S", wrong]);
        assert_eq!((found.code, found.out.as_str()), (64, ""), "{found:?}");
        assert!(found.err.contains("--suppress"), "{found:?}");
    }
}

#[test]
fn exit_codes() {
    for args in [
        &["--use-kube=false"][..],
        &["in.yaml", "-A", "-n", "a"],
        &["in.yaml", "-o", "xml"],
        &["in.yaml", "--failure-threshold", "b"],
    ] {
        assert_eq!(analyze(args).code, 64, "{args:?}");
    }
    assert_eq!(analyze(&["gone.yaml"]).code, 65);
    let nothing = analyze(&[]);
    assert_eq!((nothing.code, nothing.out.as_str()), (69, ""), "without files a cluster is asked: {nothing:?}");
    let read = |text: &str, format: &str| {
        let mut child = meshctl()
            .args(["analyze", "-f", "-", "-o", format])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        child.wait().unwrap().code().unwrap()
    };
    let text = std::fs::read_to_string(Path::new(FOLDER).join("in.yaml")).unwrap();
    for format in ["log", "json", "yaml", "sarif", "junit"] {
        assert_eq!(read(&text, format), 79, "{format}");
        assert_eq!(read("kind: [", format), 65, "{format}");
        assert_eq!(read("apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n", format), 0, "{format}");
    }
}

#[test]
fn what_is_looked_for_is_listed() {
    let found = analyze(&["-L"]);
    assert_eq!(found.code, 0, "{found:?}");
    let first = |line: &str| line.split_whitespace().take(3).collect::<Vec<_>>().join(" ");
    assert!(found.out.lines().any(|l| first(l) == "IST0101 Error ReferencedResourceNotFound"), "{found:?}");
}

#[test]
fn colours_are_chosen() {
    let shown = |color: &str| analyze(&["in.yaml", "--color", color]).out.contains('\u{1b}');
    assert_eq!(["auto", "always", "never"].map(shown), [false, true, false]);
}
