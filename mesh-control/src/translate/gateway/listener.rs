//! Listeners of a gateway's servers.
//!
//! Owns chains by SNI, TLS contexts, TCP and TLS routes of VirtualServices and of Gateway API on gateways. Must not know
//! HTTP routes.

use std::sync::Arc;

use mesh_api::{
    model::{
        Address, DownstreamTls, FilterChain, FilterChainMatch, Listener, ListenerFilter, Name, NetworkFilter, Origin,
        RouteSource, TcpProxy, TrafficDirection,
    },
    names::BLACK_HOLE_CLUSTER,
};

use super::{
    super::{
        filter_chain::{ChainEnv, HttpSpec, chain},
        inbound, l4_route,
        lookups::Lookups,
        outbound::{bare, detection_timeout, listener_name},
        server_tls,
        tcp_routes::{self, Placed, TcpRule},
        translator::Request,
    },
    server::{Group, Server, groups},
};
use crate::index::{Protocol, VirtualServiceEntry, host};

/// All listeners of a gateway.
pub fn listeners(request: Request<'_>, env: &ChainEnv<'_>) -> Vec<Listener> {
    groups(request).iter().filter_map(|g| listener(request, env, g)).collect()
}

/// The listener of a port; `None`: nothing could be served there.
fn listener(request: Request<'_>, env: &ChainEnv<'_>, group: &Group) -> Option<Listener> {
    let name = listener_name(group.bind, group.listens);
    let first = group.servers.first()?;
    let address = Address::Socket((group.bind, group.listens).into());
    let mut out = bare(&name, address, TrafficDirection::Outbound, detection_timeout(request));
    out.continue_on_listener_filters_timeout = false;
    out.filter_chains = if first.protocol.is_http() {
        vec![chain(name.clone(), FilterChainMatch::default(), vec![http(env, first, group.listens, &name)])]
    } else {
        group.servers.iter().flat_map(|s| server_chains(request, env, s, group.listens, &name)).collect()
    };
    if out.filter_chains.is_empty() {
        return None;
    }
    let topology = env.settings.gateway_topology.as_ref().or(env.mesh.default_config.gateway_topology.as_ref());
    if topology.is_some_and(|t| t.proxy_protocol.is_some()) {
        out.listener_filters.push(ListenerFilter::ProxyProtocol { allow_requests_without: false });
    }
    if first.is_tls() {
        out.listener_filters.push(ListenerFilter::TlsInspector { disabled_ports: vec![] });
    }
    let dual = request.view.families().v4 && request.view.families().v6 && group.bind.is_unspecified();
    if dual {
        let any = std::net::Ipv6Addr::UNSPECIFIED;
        out.additional_addresses.push(Address::Socket((any, group.listens).into()));
    }
    out.origin = Origin { config: first.config.clone() };
    out.access_log = env.listener_log();
    Some(out)
}

fn http(env: &ChainEnv<'_>, server: &Server, listens: u16, name: &str) -> NetworkFilter {
    env.http(HttpSpec {
        stat_prefix: format!("outbound_{name}").into(),
        routes: RouteSource::Rds(server.route_name(listens)),
        grpc_web: server.protocol == Protocol::GrpcWeb,
        tls: server.terminates(),
    })
}

/// Chains of one server that shares its port with others.
fn server_chains(
    request: Request<'_>,
    env: &ChainEnv<'_>,
    server: &Server,
    listens: u16,
    name: &str,
) -> Vec<FilterChain> {
    let chain_name = |i: usize| format!("{name}-{}-{i}", server.gateway);
    if server.is_auto_passthrough() {
        let matches = FilterChainMatch { server_names: server.server_names(), ..FilterChainMatch::default() };
        let mut filters = vec![NetworkFilter::SniCluster];
        filters.extend(env.tcp(TcpProxy::to(BLACK_HOLE_CLUSTER, BLACK_HOLE_CLUSTER)));
        return vec![chain(chain_name(0), matches, filters)];
    }
    let tls = if server.terminates() {
        match server.tls.as_ref().and_then(|t| terminate(request, t, server)) {
            Some(tls) => Some(tls),
            // A server that should terminate TLS and cannot must not pass connections on.
            None => return vec![],
        }
    } else {
        None
    };
    if server.is_http() {
        let matches = FilterChainMatch { server_names: server.server_names(), ..FilterChainMatch::default() };
        let mut out = chain(chain_name(0), matches, vec![http(env, server, listens, name)]);
        out.tls = tls;
        return vec![out];
    }
    let rules = rules(request, server, tls.is_some());
    rules
        .into_iter()
        .enumerate()
        .map(|(i, rule)| {
            let mut matches = rule.matches();
            // TLSRoutes say themselves which of the listener's names they are for.
            if tls.is_some() && server.api.is_none() {
                matches.server_names = server.server_names();
            }
            let mut out = chain(chain_name(i), matches, env.tcp(rule.proxy));
            out.tls.clone_from(&tls);
            out
        })
        .collect()
}

fn terminate(
    request: Request<'_>,
    tls: &mesh_api::crd::networking::ServerTls,
    server: &Server,
) -> Option<DownstreamTls> {
    let mut out = server_tls::context(tls, request.index.mesh().tls_defaults.as_ref())?;
    if tls.mode == mesh_api::crd::networking::ServerTlsMode::IstioMutual {
        let mesh = inbound::mesh_tls(request.index, server.protocol);
        if !server.is_http() && tls.alpn_protocols.is_empty() {
            out.common.alpn.clone_from(&mesh.common.alpn);
        }
        out.common.min_version = mesh.common.min_version;
        out.common.max_version = mesh.common.max_version;
        // Names that the server asks for replace "anybody of the mesh".
        let own = out.common.validation.as_ref().and_then(|v| v.inline.as_ref());
        if own.is_none_or(|o| o.san_matchers.is_empty()) {
            out.common.validation = mesh.common.validation;
        }
    }
    Some(out)
}

/// TCP rules behind terminated TLS or on plain TCP, TLS rules where TLS passes through.
fn rules(request: Request<'_>, server: &Server, terminated: bool) -> Vec<TcpRule> {
    let Request { index, view, .. } = request;
    if let Some(listener) = &server.api {
        return l4_route::at_listener(request, listener);
    }
    let virtual_services: Vec<&Arc<VirtualServiceEntry>> = index
        .gateway_virtual_services(&server.gateway, &view.namespace)
        .filter(|vs| !server.common_hosts(vs.namespace(), &vs.hosts).is_empty())
        .collect();
    let at = |_: &VirtualServiceEntry| Some(Placed { port: server.number, gateway: server.gateway.clone() });
    let lookups = Lookups(request);
    if terminated || !server.is_tls() {
        return tcp_routes::tcp_rules(&virtual_services, at, &[], &lookups).0;
    }
    let mut out: Vec<TcpRule> = Vec::new();
    for mut rule in tcp_routes::tls_rules(&virtual_services, at, &[], &lookups) {
        rule.server_names = within_server(server, &rule.server_names);
        if !rule.server_names.is_empty() && !out.iter().any(|o| o.matches() == rule.matches()) {
            // `*` means any name, which a match says by naming none.
            if rule.server_names.iter().any(|n| &**n == "*") {
                rule.server_names.clear();
            }
            out.push(rule);
        }
    }
    out
}

/// The names of a rule that lie within the server's hosts.
fn within_server(server: &Server, names: &[Name]) -> Vec<Name> {
    let mut out: Vec<Name> = Vec::new();
    for name in names {
        for (_, own) in &server.hosts {
            let common = if host::within(own, name) {
                name
            } else if host::within(name, own) {
                own
            } else {
                continue;
            };
            if !out.contains(common) {
                out.push(common.clone());
            }
        }
    }
    out
}
