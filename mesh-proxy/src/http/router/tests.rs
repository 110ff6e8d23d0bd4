//! Route tables against what Envoy does.

use mesh_api::model::{
    Action as A, Forward as F, PathMatch, Route as R, RouteConfig, RouteMatch as M, VirtualHost as V,
};

use super::*;
use crate::http::testing;

fn route(name: &str, path: PathMatch) -> R {
    R {
        name: name.into(),
        matches: M::path(path),
        action: A::Forward(Box::new(F::to(name))),
        headers: Default::default(),
        filter_overrides: vec![],
        operation: "".into(),
        stat_prefix: "".into(),
        origin: Default::default(),
        metadata: Default::default(),
    }
}

fn table(hosts: &[(&[&str], &[(&str, PathMatch)])]) -> Arc<RouteTable> {
    let hosts = hosts.iter().enumerate().map(|(i, (domains, routes))| V {
        name: format!("v{i}").into(),
        domains: domains.iter().map(|d| (*d).into()).collect(),
        routes: routes.iter().map(|(n, p)| route(n, p.clone())).collect(),
        ..V::default()
    });
    RouteTable::compile(&RouteConfig { virtual_hosts: hosts.collect(), ..RouteConfig::default() }, &Default::default())
        .unwrap()
}

fn found(table: &Arc<RouteTable>, host: &str, path: &str) -> String {
    match table.find(&testing::get(host, path), &testing::conn(), 0, &model::Metadata::new()) {
        Found::Route(m) => m.route().unwrap().name.to_string(),
        Found::RequireTls => "tls".to_owned(),
        Found::Nothing(host) => format!("nothing {}", host.unwrap_or_default()),
    }
}

fn any() -> PathMatch {
    PathMatch::Prefix("/".into())
}

#[test]
fn the_most_specific_host_wins() {
    let one = |name: &'static str| [(name, any())];
    let (exact, suffix, longer, prefix, all) = (one("exact"), one("suffix"), one("longer"), one("prefix"), one("all"));
    let t = table(&[
        (&["*"], &all),
        (&["*.a.test"], &suffix),
        (&["x.*"], &prefix),
        (&["*.b.a.test"], &longer),
        (&["www.a.test", "www.a.test:80"], &exact),
    ]);
    let host = |h: &str| found(&t, h, "/");
    assert_eq!(host("www.A.test"), "exact");
    assert_eq!(host("www.a.test:80"), "exact");
    assert_eq!(host("z.a.test"), "suffix");
    assert_eq!(host("z.b.a.test"), "longer");
    assert_eq!(host("x.y"), "prefix");
    assert_eq!(host("other"), "all");
    assert_eq!(host(".a.test"), "all");
}

#[test]
fn the_first_matching_path_wins() {
    let routes = [
        ("exact", PathMatch::Exact("/a".into())),
        ("separated", PathMatch::PathSeparatedPrefix("/api".into())),
        ("regex", PathMatch::Regex("/r/[0-9]+".into())),
        ("prefix", PathMatch::Prefix("/p".into())),
    ];
    let t = table(&[(&["*"], &routes)]);
    let path = |p: &str| found(&t, "h", p);
    assert_eq!(path("/a?x=1"), "exact");
    assert_eq!(path("/a/"), "nothing v0");
    assert_eq!(
        (path("/api"), path("/api/x"), path("/apix")),
        ("separated".into(), "separated".into(), "nothing v0".into())
    );
    assert_eq!((path("/r/12"), path("/r/12x")), ("regex".into(), "nothing v0".into()));
    assert_eq!(path("/pq"), "prefix");
}

#[test]
fn clusters_are_named_and_weights_are_exact() {
    let weighted = |name: &str, weight| model::WeightedCluster {
        name: name.into(),
        weight,
        headers: Default::default(),
        host_rewrite: None,
        filter_overrides: vec![],
    };
    let mut forward = F::to("");
    forward.target = model::Target::Weighted(vec![weighted("a", 90), weighted("b", 10), weighted("c", 0)]);
    let mut needs = Needs::default();
    let mut clusters = vec![];
    let action = Action::compile(&A::Forward(Box::new(forward)), &any(), &mut clusters, &mut needs).unwrap();
    assert_eq!(clusters.len(), 3);
    let Action::Forward(forward) = action else { panic!() };
    let head = testing::get("h", "/");
    let count = |name: &str| (0..1000).filter(|r| &*forward.choose(&head, *r).unwrap().0 == name).count();
    assert_eq!((count("a"), count("b"), count("c")), (900, 100, 0));
}

#[test]
fn rewrites_and_redirects() {
    let rewritten = |rewrite, matched: &PathMatch, path: &str| {
        let mut forward = F::to("c");
        forward.rewrite = Some(rewrite);
        let action = A::Forward(Box::new(forward));
        let Action::Forward(f) = Action::compile(&action, matched, &mut vec![], &mut Needs::default()).unwrap() else {
            panic!()
        };
        f.rewritten(&testing::get("h", path), matched).unwrap().to_string()
    };
    let prefix = PathMatch::Prefix("/a/".into());
    assert_eq!(rewritten(model::PathRewrite::Prefix("/".into()), &prefix, "/a/b?q"), "/b?q");
    assert_eq!(rewritten(model::PathRewrite::Full("/x".into()), &prefix, "/a/b?q"), "/x?q");
    let regex = model::PathRewrite::Regex { pattern: "^/a/(.*)$".into(), substitution: "/z/\\1".into() };
    assert_eq!(rewritten(regex, &prefix, "/a/b"), "/z/b");
    let location = |redirect: model::Redirect, host: &str| {
        let action = A::Redirect(Box::new(redirect));
        let Action::Redirect(r) = Action::compile(&action, &prefix, &mut vec![], &mut Needs::default()).unwrap() else {
            panic!()
        };
        r.location(&testing::get(host, "/a/b?q"), &prefix)
    };
    let base = model::Redirect { code: 301, ..Default::default() };
    assert_eq!(location(model::Redirect { https: true, ..base.clone() }, "h:80"), "https://h/a/b?q");
    assert_eq!(
        location(model::Redirect { port: Some(8443), https: true, ..base.clone() }, "h"),
        "https://h:8443/a/b?q"
    );
    let full = Some(model::RedirectPath::Full("/n".into()));
    assert_eq!(
        location(model::Redirect { path: full, strip_query: true, host: "o".into(), ..base }, "h:81"),
        "http://o/n"
    );
}
