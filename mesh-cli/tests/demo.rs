//! A demo that runs: what is shown of it, and how it ends.

#![allow(clippy::unwrap_used)] // a test that meets what it does not expect ends

mod support;

use rustix::process::Signal;
use serde_json::Value;

use support::{Demo, Ended, eventually, names_in, runs};

/// The row of a table that begins with a word.
fn row<'t>(table: &'t str, word: &str) -> &'t str {
    table.lines().find(|l| l.starts_with(word)).unwrap_or_else(|| panic!("no line {word}: {table}"))
}

fn shown(demo: &Demo, words: &str) -> String {
    let Ended { code, out, err } = demo.run(words);
    assert_eq!((code, err.as_str()), (0, ""), "{words}: {out}");
    out
}

fn json(demo: &Demo, words: &str) -> Value {
    serde_json::from_str(&shown(demo, &format!("{words} -o json"))).unwrap()
}

#[test]
fn a_live_mesh_is_shown_in_all_parts_and_forms() {
    let demo = Demo::start();
    proxy_status(&demo);
    let parts = [
        ("cluster", "SERVICE FQDN"),
        ("listener", "ADDRESSES"),
        ("route", "NAME"),
        ("endpoint", "ENDPOINT"),
        ("secret", "RESOURCE NAME"),
        ("bootstrap", "{"),
        ("all", "SERVICE FQDN"),
    ];
    for (part, start) in parts {
        let words = format!("pc {part} webapp.shop");
        assert!(shown(&demo, &words).starts_with(start), "{words}");
        let json = json(&demo, &words);
        let empty = json.as_array().is_some_and(Vec::is_empty) || json.is_null();
        assert!(!empty, "{words} -o json is empty");
        let yaml: Value = serde_saphyr::from_str(&shown(&demo, &format!("{words} -o yaml"))).unwrap();
        assert_eq!(yaml.is_array(), json.is_array(), "{words} -o yaml");
    }
    proxy_config(&demo);
    let missing = demo.run("pc cluster nobody.shop");
    assert!(missing.code == 1 && missing.err.contains("nobody.shop"), "{missing:?}");
    let missing = demo.run("ps nobody");
    assert!(missing.code == 1 && missing.err.contains("nobody"), "{missing:?}");
    let version = shown(&demo, "version");
    let own = env!("CARGO_PKG_VERSION");
    assert!(version.contains(&format!("control plane version: {own}\n")), "{version}");
    assert!(version.contains(&format!("data plane version: {own} (5 proxies)")), "{version}");
}

fn proxy_status(demo: &Demo) {
    eventually("all to be in sync", || {
        let rows = json(demo, "ps");
        let all = rows.as_array().unwrap();
        all.len() == 5
            && all.iter().all(|r| ["CDS", "LDS", "EDS", "RDS"].iter().all(|t| r["types"][t]["state"] == "SYNCED"))
    });
    let table = shown(demo, "ps");
    assert_eq!(
        row(&table, "NAME").split_whitespace().collect::<Vec<_>>(),
        ["NAME", "CLUSTER", "TYPE", "CDS", "LDS", "EDS", "RDS", "SDS", "ECDS", "ISTIOD", "VERSION"]
    );
    assert!(row(&table, "webapp.shop").contains(demo.control()), "{table}");
    assert_eq!(shown(demo, "ps webapp").lines().count(), 2);
    assert!(shown(demo, "ps -o yaml").contains("proxy: webapp.shop"));
}

fn proxy_config(demo: &Demo) {
    let clusters = shown(demo, "pc cluster webapp.shop");
    assert!(row(&clusters, "catalog.shop.svc").ends_with("catalog.shop"), "{clusters}");
    assert!(row(&clusters, "forum.shop.svc").ends_with("forum.shop (Service)"), "{clusters}");
    let routes = shown(demo, "pc route webapp.shop");
    assert!(routes.lines().any(|l| l.contains("catalog.shop.svc") && l.ends_with("catalog.shop")), "{routes}");
    let listeners = shown(demo, "pc listener gateway.istio-system");
    assert!(listeners.contains("ingress.shop (Gateway)"), "{listeners}");
    // These only the proxy itself knows: the control plane says where its admin server is.
    let endpoints = shown(demo, "pc endpoint webapp.shop");
    assert!(endpoints.lines().skip(1).all(|l| l.contains(" OK ")), "{endpoints}");
    assert!(endpoints.lines().any(|l| l.ends_with("catalog.shop (Service)")), "{endpoints}");
    let secrets = shown(demo, "pc secret webapp.shop");
    for (name, kind) in [("default", "Cert Chain"), ("ROOTCA", "CA")] {
        let cells: Vec<&str> = row(&secrets, name).split("   ").map(str::trim).filter(|c| !c.is_empty()).collect();
        assert_eq!(cells[1..4], [kind, "ACTIVE", "true"], "{secrets}");
        assert!(cells[4].len() >= 8 && cells[5].ends_with('Z') && cells[6].ends_with('Z'), "{secrets}");
    }
    let bootstrap = json(demo, "pc bootstrap webapp.shop");
    let node = bootstrap["bootstrap"]["node"]["id"].as_str().unwrap();
    assert!(node.contains("~webapp.shop~"), "{bootstrap}");
    let admin = &bootstrap["bootstrap"]["admin"]["address"]["socket_address"]["address"];
    let asked = shown(demo, &format!("pc secret --admin {}:15000", admin.as_str().unwrap()));
    assert!(asked.contains("workload identity"), "{asked}");
    let all = json(demo, "pc all webapp.shop");
    for part in ["clusters", "listeners", "routes", "endpoints", "secrets", "bootstrap"] {
        assert!(!all[part].is_null(), "{part}");
    }
    assert!(!all.to_string().contains("PRIVATE KEY"));
}

#[test]
fn ctrl_c_leaves_no_process_and_no_file() {
    let mut demo = Demo::start();
    let children = demo.children();
    assert_eq!(children.len(), 10, "a control plane, four applications, five proxies");
    assert!(!names_in(demo.temporary.path()).is_empty(), "this test looks at the wrong place");
    demo.signal(Signal::INT);
    let status = demo.process.wait().unwrap();
    assert!(status.success(), "{status}");
    let left: Vec<_> = children.into_iter().filter(|pid| runs(*pid)).collect();
    assert!(left.is_empty(), "{left:?} still run");
    assert_eq!(names_in(demo.temporary.path()), [""; 0], "files are left behind");
}

#[test]
fn a_demo_that_is_killed_takes_its_children_along() {
    let mut demo = Demo::start();
    let children = demo.children();
    assert_eq!(children.len(), 10, "a control plane, four applications, five proxies");
    demo.signal(Signal::KILL);
    demo.process.wait().unwrap();
    eventually("the children to end", || !children.iter().any(|pid| runs(*pid)));
}

#[test]
fn a_folder_is_used_again_as_it_was_left() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    let page = |demo: &Demo| demo.told("The mesh is up:").to_owned();
    let mut first = Demo::start_with(&["--dir", path]);
    first.signal(Signal::INT);
    assert!(first.process.wait().unwrap().success());
    // What an operator left there: an edit, a policy that spoils the page, and a token that has ended.
    let config = dir.path().join("config");
    let edited = std::fs::read_to_string(dir.path().join("samples/canary-90-10.yaml")).unwrap();
    std::fs::write(config.join("catalog-route.yaml"), &edited).unwrap();
    std::fs::copy(dir.path().join("samples/deny-catalog.yaml"), config.join("deny-catalog.yaml")).unwrap();
    std::fs::write(dir.path().join("state/token-shop-webapp"), "ended").unwrap();

    let mut second = Demo::start_with(&["--dir", path]);
    assert_eq!((page(&second), second.control()), (page(&first), first.control()));
    assert_eq!(std::fs::read_to_string(config.join("catalog-route.yaml")).unwrap(), edited);
    second.signal(Signal::INT);
    assert!(second.process.wait().unwrap().success());
    let mut said = String::new();
    std::io::Read::read_to_string(second.process.stderr.as_mut().unwrap(), &mut said).unwrap();
    assert!(said.contains("earlier run is in force; with it the page answers 502"), "{said}");

    let checked = support::run(["demo", "--check", "--dir", path]);
    assert_eq!(checked.code, 64, "{checked:?}");
    assert!(checked.err.contains("name an empty folder"), "{checked:?}");
}
