//! `meshctl demo --check`: what the demo promises, driven against a whole mesh. Alone in its file, because it wants the
//! machine for itself.

#![allow(clippy::unwrap_used)] // a test that meets what it does not expect ends

mod support;

use support::{ended, meshctl, names_in};

#[test]
fn the_demo_keeps_its_promises() {
    let temporary = tempfile::tempdir().unwrap();
    let ended = ended(meshctl().args(["demo", "--check"]).env("TMPDIR", temporary.path()));
    assert_eq!(ended.code, 0, "{}\n{}", ended.out, ended.err);
    let lines: Vec<&str> = ended.out.lines().collect();
    assert!(lines.len() >= 13 && lines.iter().all(|l| l.starts_with("ok ")), "{}", ended.out);
    assert!(!ended.out.contains('\u{1b}'), "colours in a pipe: {:?}", ended.out);
    assert_eq!(names_in(temporary.path()), [""; 0], "files are left behind");
}
