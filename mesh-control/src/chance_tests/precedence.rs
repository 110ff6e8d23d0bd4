//! Random HTTPRoutes of Gateway API: the route that our proxy takes is the one that a reference model of the
//! specification's precedence names.
//!
//! The model is written from the specification (`HTTPRouteRule`), not from the code: it looks at every rule of every
//! route and compares. Host names come first, then exact paths, longer prefixes, methods, the number of headers and of
//! query parameters, the age of the route, its name, the order of its rules.

use std::{cmp::Reverse, fmt::Write as _, net::SocketAddr, sync::Arc};

use http::{HeaderName, HeaderValue, Method, uri::PathAndQuery};
use mesh_api::{
    model::{Metadata, Name, TrafficDirection},
    names::ClusterName,
    xds::TypeUrl,
};
use mesh_proxy::{
    http::{
        message::{Authority, RequestHead},
        router::{Action, Found, RouteTable, Target},
    },
    net::ConnInfo,
    xds::convert,
};
use rand::{RngExt as _, rngs::StdRng};

use super::Chance;
use crate::{translate::testing::World, xds::generator::Generator as _};

/// Sets of routes by default.
const SETS: usize = 60;
/// Requests for each.
const REQUESTS: usize = 150;
const PATHS: &[&str] = &["/", "/a", "/a/", "/a/b", "/ab", "/a/b/c", "/A"];
const HOSTS: &[&str] = &["a.test", "b.test", "*.test", "*.b.test", "c.b.test"];
const METHODS: &[&str] = &["GET", "POST", "PUT"];
const NAMES: &[&str] = &["x", "y", "z"];
const VALUES: &[&str] = &["1", "2"];

#[derive(Debug, Clone)]
struct Match {
    /// Exact, and the path; `None`: the prefix `/`.
    path: Option<(bool, &'static str)>,
    method: Option<&'static str>,
    headers: Vec<(&'static str, &'static str)>,
    query: Vec<(&'static str, &'static str)>,
}

#[derive(Debug, Clone)]
struct Rule {
    matches: Vec<Match>,
    backend: usize,
}

#[derive(Debug, Clone)]
struct HttpRoute {
    name: String,
    /// Day of creation.
    day: u8,
    hosts: Vec<&'static str>,
    rules: Vec<Rule>,
}

#[derive(Debug)]
struct Request {
    host: &'static str,
    path: String,
    query: Vec<(&'static str, &'static str)>,
    method: &'static str,
    headers: Vec<(&'static str, &'static str)>,
}

fn any<'a>(rng: &mut StdRng, list: &[&'a str]) -> &'a str {
    list[rng.random_range(0..list.len())]
}

/// Some of the names, each once, with a value.
fn some(rng: &mut StdRng, odds: f64) -> Vec<(&'static str, &'static str)> {
    NAMES
        .iter()
        .filter(|_| rng.random_bool(odds))
        .collect::<Vec<_>>()
        .into_iter()
        .map(|n| (*n, any(rng, VALUES)))
        .collect()
}

fn routes(rng: &mut StdRng) -> Vec<HttpRoute> {
    let mut backend = 0;
    let mut out = Vec::new();
    for i in 0..rng.random_range(1..6) {
        let mut rules = Vec::new();
        for _ in 0..rng.random_range(1..4) {
            let matches = (0..rng.random_range(0..4)).map(|_| Match {
                path: rng.random_bool(0.8).then(|| (rng.random_bool(0.4), any(rng, PATHS))),
                method: rng.random_bool(0.3).then(|| any(rng, METHODS)),
                headers: some(rng, 0.25),
                query: some(rng, 0.25),
            });
            rules.push(Rule { matches: matches.collect(), backend });
            backend += 1;
        }
        let mut hosts: Vec<&str> = HOSTS.iter().copied().filter(|_| rng.random_bool(0.4)).collect();
        hosts.truncate(3);
        let letter = char::from(b'a' + rng.random_range(0..26));
        out.push(HttpRoute { name: format!("{letter}{i}"), day: rng.random_range(1..4), hosts, rules });
    }
    out
}

fn request(rng: &mut StdRng) -> Request {
    let mut path = any(rng, PATHS).to_owned();
    if rng.random_bool(0.3) {
        path.push_str(any(rng, &["/", "x", "/x", "b"]));
    }
    let host = any(rng, &["a.test", "b.test", "c.b.test", "d.b.test", "other.test", "none.example"]);
    Request { host, path, query: some(rng, 0.4), method: any(rng, METHODS), headers: some(rng, 0.4) }
}

// ---- the reference model ----

/// Letters of the host name that matches; exact ones count more than any wildcard. No host names: any host.
fn host_rank(route: &HttpRoute, host: &str) -> Option<(bool, usize)> {
    let fits = |pattern: &str| match pattern.strip_prefix('*') {
        Some(rest) => host.len() > rest.len() && host.ends_with(rest),
        None => pattern == host,
    };
    if route.hosts.is_empty() {
        return Some((false, 0));
    }
    route.hosts.iter().filter(|p| fits(p)).map(|p| (!p.starts_with('*'), p.len())).max()
}

/// A prefix matches whole segments; a final slash of it means nothing.
fn path_fits(exact: bool, wanted: &str, path: &str) -> bool {
    if exact {
        return wanted == path;
    }
    let wanted = wanted.trim_end_matches('/');
    path.strip_prefix(wanted).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn fits(m: &Match, request: &Request) -> bool {
    m.path.is_none_or(|(exact, path)| path_fits(exact, path, &request.path))
        && m.method.is_none_or(|method| method == request.method)
        && m.headers.iter().all(|h| request.headers.contains(h))
        && m.query.iter().all(|q| request.query.contains(q))
}

/// Where the request goes.
fn expected(routes: &[HttpRoute], request: &Request) -> Option<usize> {
    let hosts = routes.iter().filter_map(|r| Some((host_rank(r, request.host)?, r)));
    let all: Vec<_> = hosts.collect();
    let best = all.iter().map(|(rank, _)| *rank).max()?;
    let nothing = Match { path: None, method: None, headers: vec![], query: vec![] };
    let mut candidates = Vec::new();
    for (_, route) in all.into_iter().filter(|(rank, _)| *rank == best) {
        for (i, rule) in route.rules.iter().enumerate() {
            let matches = if rule.matches.is_empty() { vec![nothing.clone()] } else { rule.matches.clone() };
            for m in matches.iter().filter(|m| fits(m, request)) {
                let (exact, path) = m.path.unwrap_or((false, "/"));
                let letters = if exact { path.len() } else { path.trim_end_matches('/').len() };
                let rank = (exact, letters, m.method.is_some(), m.headers.len(), m.query.len());
                candidates.push(((Reverse(rank), route.day, route.name.as_str(), i), rule.backend));
            }
        }
    }
    candidates.into_iter().min().map(|(_, backend)| backend)
}

// ---- what is served ----

fn manifests(routes: &[HttpRoute]) -> String {
    let mut out = String::from(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: gw, namespace: shop}\nspec: {gatewayClassName: istio, listeners: [{name: http, port: 80, protocol: HTTP}]}\n",
    );
    for route in routes {
        let rules: Vec<String> = route.rules.iter().map(rule).collect();
        let _ = write!(
            out,
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: {}, namespace: shop, creationTimestamp: \"2026-01-0{}T00:00:00Z\"}}\nspec: {{parentRefs: [{{name: gw}}], hostnames: {:?}, rules: [{}]}}\n",
            route.name,
            route.day,
            route.hosts,
            rules.join(", ")
        );
    }
    let backends = routes.iter().flat_map(|r| &r.rules).map(|r| r.backend);
    for backend in backends {
        let _ = write!(
            out,
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: s{backend}, namespace: shop}}\nspec: {{clusterIP: 10.1.0.{}, ports: [{{name: http, port: 80}}]}}\n",
            backend + 1
        );
    }
    out
}

fn rule(rule: &Rule) -> String {
    let pairs = |list: &[(&str, &str)]| {
        let all: Vec<String> = list.iter().map(|(n, v)| format!("{{name: {n}, value: \"{v}\"}}")).collect();
        all.join(", ")
    };
    let matches: Vec<String> = rule
        .matches
        .iter()
        .map(|m| {
            let mut parts = Vec::new();
            if let Some((exact, path)) = m.path {
                parts.push(format!("path: {{type: {}, value: {path}}}", if exact { "Exact" } else { "PathPrefix" }));
            }
            parts.extend(m.method.map(|method| format!("method: {method}")));
            parts.push(format!("headers: [{}]", pairs(&m.headers)));
            parts.push(format!("queryParams: [{}]", pairs(&m.query)));
            format!("{{{}}}", parts.join(", "))
        })
        .collect();
    format!("{{matches: [{}], backendRefs: [{{name: s{}, port: 80}}]}}", matches.join(", "), rule.backend)
}

fn table(world: &World) -> Arc<RouteTable> {
    let view = world.gateway("10.0.0.9", "shop", &[("gateway.networking.k8s.io/gateway-name", "gw")]);
    let listeners = world.translator.names(world.index(), &view, TypeUrl::Listener);
    let listeners =
        listeners.iter().filter_map(|n| world.translator.generate(world.index(), &view, TypeUrl::Listener, n));
    let needs: Vec<Name> =
        listeners.flat_map(|l| l.needs().to_vec()).filter(|n| n.ty == TypeUrl::Route).map(|n| n.name).collect();
    let [name] = &needs[..] else { panic!("one table is expected: {needs:?}") };
    let routes = world.translator.generate(world.index(), &view, TypeUrl::Route, name).unwrap();
    RouteTable::compile(&convert::route(name, &routes.message()).unwrap(), &Default::default()).unwrap()
}

fn connection() -> ConnInfo {
    let any: SocketAddr = "10.0.0.1:1".parse().unwrap();
    ConnInfo {
        id: 1,
        peer: any,
        direct_peer: any,
        local: any,
        direct_local: any,
        original_dst: None,
        sni: None,
        application_protocols: vec![],
        tls: None,
        listener: "l".into(),
        direction: TrafficDirection::Outbound,
        chain: "".into(),
        sni_cluster: None,
        sni_port: None,
        accepted: tokio::time::Instant::now(),
    }
}

fn head(request: &Request) -> RequestHead {
    let query: Vec<String> = request.query.iter().map(|(n, v)| format!("{n}={v}")).collect();
    let target = if query.is_empty() { request.path.clone() } else { format!("{}?{}", request.path, query.join("&")) };
    let mut head = RequestHead::new(
        Method::from_bytes(request.method.as_bytes()).unwrap(),
        Authority::parse(request.host).unwrap(),
        PathAndQuery::try_from(target).unwrap(),
    );
    for (name, value) in &request.headers {
        head.headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    head
}

fn found(table: &Arc<RouteTable>, request: &Request) -> Option<usize> {
    let Found::Route(found) = table.find(&head(request), &connection(), 0, &Metadata::new()) else { return None };
    let Action::Forward(forward) = &found.route()?.action else { panic!("{request:?} is not forwarded") };
    let Target::Cluster(cluster) = &forward.target else { panic!("{request:?} has several targets") };
    let host = ClusterName::parse(cluster).unwrap().host;
    host.strip_prefix('s')?.split('.').next()?.parse().ok()
}

#[test]
fn routes_are_taken_as_gateway_api_says() {
    let Chance { mut rng, seed, factor, .. } = Chance::new();
    let (mut routed, mut refused) = (0, 0);
    for set in 0..SETS * factor {
        let routes = routes(&mut rng);
        let world = World::new(&manifests(&routes));
        let table = table(&world);
        for _ in 0..REQUESTS {
            let request = request(&mut rng);
            let (expected, found) = (expected(&routes, &request), found(&table, &request));
            assert_eq!(found, expected, "seed {seed}, set {set}: {request:#?} under {routes:#?}");
            *(if found.is_some() { &mut routed } else { &mut refused }) += 1;
        }
    }
    assert!(routed > REQUESTS && refused > REQUESTS, "{routed} routed and {refused} refused tell nothing");
}
