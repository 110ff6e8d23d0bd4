//! The borders of the design hold, and the checker sees it when one is crossed.

#![allow(clippy::unwrap_used)] // a test that meets what it does not expect ends

use std::fs;
use std::path::Path;
use std::process::Command;

use e2e::borders::{MAX_LINES, RULES, Rule, crossings, kubernetes_in, too_long};

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

#[test]
fn no_border_is_crossed() {
    let root = root().canonicalize().unwrap();
    let found = crossings(&root, RULES).unwrap();
    assert!(found.is_empty(), "borders crossed:\n{}", found.join("\n"));
}

#[test]
fn every_rule_guards_something() {
    for rule in RULES {
        for scope in rule.scope {
            assert!(root().join(scope).exists(), "{scope} of the rule {:?} does not exist", rule.why);
        }
    }
}

#[test]
fn no_file_is_too_long() {
    let root = root().canonicalize().unwrap();
    let found = too_long(&root, &["mesh-api", "mesh-control", "mesh-proxy", "mesh-cli", "e2e"]).unwrap();
    assert!(found.is_empty(), "split these:\n{}", found.join("\n"));
}

/// A file of this content at `path`, and what a rule finds.
fn found_in(rule: &Rule, path: &str, text: &str) -> Vec<String> {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join(path);
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(file, text).unwrap();
    crossings(root.path(), std::slice::from_ref(rule)).unwrap()
}

/// A file in a folder, or the file itself.
fn file_in(place: &str) -> String {
    match place {
        place if place.ends_with(".rs") => place.to_owned(),
        place => format!("{}/some.rs", place.trim_end_matches('/')),
    }
}

#[test]
fn every_rule_sees_what_crosses_it() {
    for rule in RULES {
        assert!(!rule.crossed_by.is_empty(), "nothing shows that {:?} can be crossed", rule.why);
        for (scope, code) in rule.scope.iter().flat_map(|s| rule.crossed_by.iter().map(move |c| (s, c))) {
            let found = found_in(rule, &file_in(scope), &format!("//! {code}\n\nfn fine() {{}}\n{code}\n"));
            let in_code = found.iter().all(|f| !f.contains(":1: "));
            assert!(!found.is_empty() && in_code, "{:?} in {scope}, {code:?}: {found:?}", rule.why);
        }
    }
}

#[test]
fn what_a_rule_excepts_is_free_and_comments_and_unit_tests_are() {
    for rule in RULES {
        let code = rule.crossed_by[0];
        for except in rule.except {
            // From the root of the repository, or part of a path below each scope.
            let place =
                if except.starts_with('/') { format!("{}{except}", rule.scope[0]) } else { (*except).to_owned() };
            assert_eq!(found_in(rule, &file_in(&place), code), [""; 0], "{:?} in {place}", rule.why);
        }
        let text = format!("// {}\n#[cfg(test)]\nmod tests {{\n{code}\n}}\n", code.replace('\n', " "));
        assert_eq!(found_in(rule, &file_in(rule.scope[0]), &text), [""; 0], "{:?}", rule.why);
    }
}

#[test]
fn imports_are_seen_however_they_are_grouped() {
    let rule = Rule { why: "no b", scope: &["src"], except: &["/allowed/"], forbidden: r"\ba::b\b", crossed_by: &[] };
    let fixture = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/borders"));
    let found = crossings(fixture, &[rule]).unwrap();
    assert_eq!(
        found,
        [
            "src/crossed.rs:4: no b: use a::b",
            "src/crossed.rs:5: no b: pub(crate) use a::b::c",
            "src/crossed.rs:9: no b: use a::b::d as e",
            "src/crossed.rs:10: no b: use a::b::*",
            "src/crossed.rs:16: no b: let x = a::b::new();",
        ]
    );
}

#[test]
fn a_file_that_is_too_long_is_named() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir(root.path().join("src")).unwrap();
    fs::write(root.path().join("src/most.rs"), "\n".repeat(MAX_LINES)).unwrap();
    fs::write(root.path().join("src/more.rs"), "\n".repeat(MAX_LINES + 1)).unwrap();
    assert_eq!(too_long(root.path(), &["src"]).unwrap(), ["src/more.rs: 801 lines"]);
}

#[test]
fn the_proxy_links_nothing_of_kubernetes() {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let mut tree = Command::new(cargo);
    tree.args(["tree", "--offline", "--locked", "-p", "mesh-proxy", "-e", "normal", "--prefix", "none"]);
    let out = tree.current_dir(root()).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(text.starts_with("mesh-proxy "), "unexpected output: {text}");
    let wrong = kubernetes_in(&text);
    assert!(wrong.is_empty(), "mesh-proxy must not depend on {wrong:?}");
}

#[test]
fn kubernetes_in_a_tree_of_packages_is_seen() {
    let tree = "mesh-proxy v0.1.0 (/x)\ntokio v1.0.0\nkube-core v1.0.0\nk8s-openapi v0.1.0 (*)\nkubernetes-free v1.0.0\n\
                schemars v1.0.0\nkube v1.0.0\n";
    assert_eq!(kubernetes_in(tree), ["kube-core", "k8s-openapi", "schemars", "kube"]);
}
