//! The commands of docs/reference/install.md that ask no cluster, run as they are written.

#![allow(clippy::unwrap_used)] // a test that meets what it does not expect ends

mod support;

use support::{ended, meshctl, run};

const PAGE: &str = include_str!("../../docs/reference/install.md");

#[test]
fn commands_without_a_cluster() {
    let (_, rest) = PAGE.split_once("Without a cluster:\n\n```sh\n").unwrap();
    let lines: Vec<&str> = rest.split("```").next().unwrap().lines().collect();
    assert_eq!(lines.len(), 4);
    for line in lines {
        let words: Vec<&str> = line.split(' ').skip(1).collect();
        let ended = ended(meshctl().args(words));
        assert_eq!(ended.code, 0, "{line}: {}", ended.err);
        assert!(!ended.out.is_empty() && ended.err.is_empty(), "{line}: {}", ended.err);
    }
}

#[test]
fn failures_have_their_codes() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("mesh.yaml");
    std::fs::write(&file, "spec:\n  hubb: x\n").unwrap();
    let ended = run(["manifest", "generate", "-f", file.to_str().unwrap()]);
    assert_eq!(ended.code, 65, "{}", ended.err);
    assert!(ended.err.contains("mesh.yaml:2: spec.hubb: unknown field; known here: "), "{}", ended.err);
    assert_eq!(run(["uninstall"]).code, 64, "a revision, or --purge");
    let ended = run(["install", "-y", "-c", "/nonexistent"]);
    assert_eq!(ended.code, 69, "{}", ended.err);
}
