//! The borders of the design hold, and the checker sees it when one is crossed.

use std::path::Path;
use std::process::Command;

use e2e::borders::{RULES, Rule, crossings, too_long};

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
    let found =
        too_long(&root, &["mesh-api/src", "mesh-control/src", "mesh-proxy/src", "mesh-cli/src", "e2e/src"]).unwrap();
    assert!(found.is_empty(), "split these:\n{}", found.join("\n"));
}

#[test]
fn the_checker_finds_what_is_forbidden() {
    const RULES: &[Rule] =
        &[Rule { why: "no tokio in plain data", scope: &["plain"], except: &["/allowed/"], forbidden: r"\btokio::" }];
    let fixture = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/borders"));
    let found = crossings(fixture, RULES).unwrap();
    assert_eq!(found, ["plain/crossed.rs:4: no tokio in plain data: use tokio::net::TcpStream;"]);
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
    let names = text.lines().filter_map(|l| l.split(' ').next());
    let wrong: Vec<_> =
        names.filter(|n| *n == "schemars" || *n == "kube" || n.starts_with("kube-") || *n == "k8s-openapi").collect();
    assert!(wrong.is_empty(), "mesh-proxy must not depend on {wrong:?}");
}
