//! Routes of a gateway's servers: `http.PORT`, and one table a TLS server.
//!
//! Owns virtual hosts of VirtualServices and of Gateway API's routes side by side. Must not know chains.

use std::sync::LazyLock;

use indexmap::IndexMap;
use mesh_api::model::{
    HeaderMutation, HeaderOps, Name, Origin, PathMatch, RequireTls, Route, RouteConfig, VirtualHost,
};

use super::{
    super::{
        gateway_api::{RouteEntry, all_routes, attached_hosts},
        http_route::{self, Ranked, RouteEnv},
        lookups::Lookups,
        match_conditions::{Place, is_catch_all},
        sidecar_routes::{MAX_DIRECT_RESPONSE, domain_name, resolve},
        translator::Request,
        virtual_service::{RuleEnv, RuleOrigin, routes},
    },
    server::{Group, Server, groups},
};
use crate::source::object::Kind;

/// A route configuration by name.
pub fn generate(request: Request<'_>, name: &str) -> Option<RouteConfig> {
    let groups = groups(request);
    let serves = |g: &Group, s: &Server| s.is_http() && *s.route_name(g.listens) == *name;
    let group = groups.iter().find(|g| g.servers.iter().any(|s| serves(g, s)))?;
    let servers: Vec<&Server> = group.servers.iter().filter(|s| serves(group, s)).collect();
    Some(table(request, name, group.listens, &servers))
}

/// A virtual host in the making.
#[derive(Default)]
struct Host {
    routes: Vec<Route>,
    ranked: Vec<Ranked>,
    redirect: bool,
    origin: Origin,
}

fn table(request: Request<'_>, name: &str, listens: u16, servers: &[&Server]) -> RouteConfig {
    let mut hosts: IndexMap<Name, Host> = IndexMap::new();
    let attachable = if servers.iter().any(|s| s.api.is_some()) { all_routes(request.index) } else { vec![] };
    for server in servers {
        match &server.api {
            Some(listener) => {
                let env = RouteEnv {
                    index: request.index,
                    destinations: &Lookups(request),
                    port: server.number,
                    tls: server.terminates(),
                    mesh: false,
                };
                for route in &attachable {
                    let common = attached_hosts(request.index, listener, route);
                    of_route(route, common, &env, &mut hosts);
                }
            }
            None => of_virtual_services(request, server, &mut hosts),
        }
        if server.redirects() {
            // Also hosts that nothing is routed for.
            for (_, host) in &server.hosts {
                hosts.entry(host.clone()).or_default().redirect = true;
            }
        }
    }
    let port = servers.first().map_or(listens, |s| s.number);
    let mut out: Vec<VirtualHost> = hosts.into_iter().map(|(host, h)| finish(&host, port, h)).collect();
    if out.is_empty() {
        // Without routes Envoy answers 404 NR.
        let name = format!("blackhole:{port}").into();
        out.push(VirtualHost { name, domains: vec!["*".into()], ..VirtualHost::default() });
    }
    out.sort_by(|a, b| a.name.cmp(&b.name));
    RouteConfig {
        name: name.into(),
        virtual_hosts: out,
        headers: HeaderOps {
            request: HeaderMutation { remove: DISGUISES.clone(), ..HeaderMutation::default() },
            ..HeaderOps::default()
        },
        ignore_port_in_host: true,
        max_direct_response_body: Some(MAX_DIRECT_RESPONSE),
        ..RouteConfig::default()
    }
}

/// What a gateway itself says of clients; what clients say in these is not believed.
const SAID_BY_GATEWAYS: [&str; 5] =
    ["x-envoy-external-address", "x-forwarded-client-cert", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto"];

/// The same names with underscores in the place of dashes, in all ways: many applications (CGI, WSGI, Rack, PHP) read
/// both as one variable, and would believe the client.
static DISGUISES: LazyLock<Vec<Name>> =
    LazyLock::new(|| SAID_BY_GATEWAYS.into_iter().flat_map(disguises).map(Name::from).collect());

fn disguises(name: &str) -> Vec<String> {
    let mut out = vec![String::new()];
    for (i, part) in name.split('-').enumerate() {
        let longer = |start: String| match i {
            0 => vec![part.to_owned()],
            _ => vec![format!("{start}-{part}"), format!("{start}_{part}")],
        };
        out = out.into_iter().flat_map(longer).collect();
    }
    out.retain(|disguise| disguise != name);
    out
}

fn finish(host: &str, port: u16, h: Host) -> VirtualHost {
    let mut routes = h.routes;
    // Of VirtualServices of one host nobody may hide the others: what takes all goes to the end.
    routes.sort_by_key(|r| is_catch_all(&r.matches));
    routes.extend(http_route::in_order(h.ranked));
    VirtualHost {
        name: domain_name(host, port).into(),
        domains: vec![host.into()],
        routes,
        require_tls: if h.redirect { RequireTls::All } else { RequireTls::None },
        include_request_attempt_count: true,
        origin: h.origin,
        ..VirtualHost::default()
    }
}

fn of_virtual_services(request: Request<'_>, server: &Server, hosts: &mut IndexMap<Name, Host>) {
    let Request { index, view, .. } = request;
    let lookups = Lookups(request);
    for vs in index.gateway_virtual_services(&server.gateway, &view.namespace) {
        let common = server.common_hosts(vs.namespace(), &vs.hosts);
        if common.is_empty() || vs.spec.http.is_empty() {
            continue;
        }
        let config: Name = vs.object.key.config_path().into();
        let env = RuleEnv {
            place: Place {
                port: server.number,
                gateway: &server.gateway,
                rule_namespace: vs.namespace(),
                labels: &view.labels,
                namespace: &view.namespace,
            },
            tls: server.terminates(),
            domain: index.domain(),
            default_retry: index.mesh().default_http_retry_policy.as_ref(),
            forwarded_host: true,
            destinations: &lookups,
        };
        let mut routes = routes(&resolve(index, vs), RuleOrigin { name: &vs.object.key.name, config: &config }, &env);
        if vs.object.key.kind == Kind::Ingress {
            routes.iter_mut().for_each(|r| by_segments(&mut r.matches.path));
        }
        for host in common {
            let slot = hosts.entry(host).or_default();
            if slot.routes.is_empty() {
                slot.origin = Origin { config: config.clone() };
            }
            slot.routes.extend(routes.iter().cloned());
            slot.redirect |= server.redirects();
        }
    }
}

/// Prefixes of Ingresses end where a segment of the path does.
fn by_segments(path: &mut PathMatch) {
    if let PathMatch::Prefix(prefix) = path
        && &**prefix != "/"
    {
        *path = PathMatch::PathSeparatedPrefix(prefix.trim_end_matches('/').into());
    }
}

fn of_route(route: &RouteEntry, common: Vec<Name>, env: &RouteEnv<'_>, hosts: &mut IndexMap<Name, Host>) {
    for host in common {
        let slot = hosts.entry(host).or_default();
        if slot.ranked.is_empty() && slot.routes.is_empty() {
            slot.origin = Origin { config: route.object.key.config_path().into() };
        }
        slot.ranked.extend(http_route::rules(route, env));
    }
}
