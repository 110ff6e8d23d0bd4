//! TCP and TLS rules of VirtualServices: which connections go where.
//!
//! Owns conditions on server names, subnets and ports, and weights. Must not know listeners; it yields what a filter
//! chain matches and the proxy at its end.

use std::sync::Arc;

use mesh_api::{
    crd::networking::{L4Match, RouteDestination, TlsMatch, Tunnel},
    model::{CidrRange, FilterChainMatch, HashSource, Name, TcpProxy, TcpTunnel},
    names::{ClusterName, complete_host},
};

use super::{
    lookups::Lookups,
    match_conditions::Place,
    virtual_service::{Destinations, UNKNOWN_SERVICE, cluster_of},
};
use crate::index::{Service, VirtualServiceEntry};

/// What connections of a rule are told by, and where they go.
#[derive(Debug, Clone, PartialEq)]
pub struct TcpRule {
    /// Server names; empty: any.
    pub server_names: Vec<Name>,
    /// Destination addresses; empty: any.
    pub subnets: Vec<CidrRange>,
    /// Source addresses; empty: any.
    pub sources: Vec<CidrRange>,
    /// Where to.
    pub proxy: TcpProxy,
    /// The server name is looked up, at this port.
    pub name_port: Option<u16>,
    /// Path of the object; empty: a service without rules.
    pub config: Name,
}

impl TcpRule {
    /// As a filter chain's match.
    pub fn matches(&self) -> FilterChainMatch {
        FilterChainMatch {
            server_names: self.server_names.clone(),
            prefix_ranges: self.subnets.clone(),
            source_prefix_ranges: self.sources.clone(),
            ..FilterChainMatch::default()
        }
    }
}

/// An address or a block of addresses.
pub fn block(text: &str) -> Option<CidrRange> {
    if let Ok(address) = text.parse::<std::net::IpAddr>() {
        return Some(CidrRange { address, prefix_len: if address.is_ipv4() { 32 } else { 128 } });
    }
    let net: ipnet::IpNet = text.parse().ok()?;
    Some(CidrRange { address: net.network(), prefix_len: net.prefix_len() })
}

/// The proxy to a service without rules.
pub fn to_service(service: &Service, port: u16, lookups: &Lookups<'_>) -> TcpProxy {
    let name: Name = ClusterName::outbound(lookups.concrete_of(service), port, "").to_string().into();
    let mut proxy = TcpProxy::to(name.clone(), name);
    settings(&mut proxy, &service.key.host, port, "", lookups);
    proxy
}

/// The proxy of a rule's destinations.
pub fn to_destinations(
    route: &[RouteDestination],
    vs: &VirtualServiceEntry,
    port: u16,
    lookups: &Lookups<'_>,
) -> TcpProxy {
    let (index, namespace) = (lookups.0.index, vs.namespace());
    let cluster = |d: &RouteDestination| cluster_of(&d.destination, namespace, index.domain(), port, lookups);
    let mut proxy = match route {
        [only] => {
            let name = cluster(only);
            TcpProxy::to(name.clone(), name)
        }
        several => {
            let weighted = several.iter().filter_map(|d| {
                let weight = u32::try_from(d.weight.unwrap_or(0)).ok().filter(|w| *w > 0)?;
                Some((cluster(d), weight))
            });
            let stat_prefix = format!("{}.{namespace}", vs.object.key.name);
            let mut proxy = TcpProxy::to(stat_prefix, UNKNOWN_SERVICE);
            let clusters: Vec<(Name, u32)> = weighted.collect();
            if !clusters.is_empty() {
                proxy.clusters = clusters;
            }
            proxy
        }
    };
    if let Some(first) = route.first() {
        let host = complete_host(&first.destination.host, namespace, index.domain()).to_ascii_lowercase();
        let number = first.destination.port.as_ref().map_or_else(|| lookups.port_of(&host, port), |p| p.number);
        // What stands on a connection cannot differ by the cluster that is drawn for it.
        let subset = if route.len() == 1 { first.destination.subset.as_str() } else { "" };
        settings(&mut proxy, &host, number, subset, lookups);
    }
    proxy
}

/// What the destination's rule says of connections.
pub fn settings(proxy: &mut TcpProxy, host: &str, port: u16, subset: &str, lookups: &Lookups<'_>) {
    let Some(scoped) = lookups.0.scope.service(host) else { return };
    let policy = lookups.policy(scoped.service.arc(), port, subset);
    if let Some(tcp) = policy.pool.and_then(|p| p.tcp.as_ref())
        && let Some(idle) = tcp.idle_timeout
    {
        proxy.idle_timeout = idle.0;
    }
    if policy.consistent_hash().is_some_and(|h| h.use_source_ip == Some(true)) {
        proxy.hash = vec![HashSource::SourceIp];
    }
    proxy.tunnel = policy.tunnel.map(tunnel);
}

/// The cluster is a forward proxy, which is asked for a tunnel to the target.
fn tunnel(tunnel: &Tunnel) -> TcpTunnel {
    let (host, port) = (&tunnel.target_host, tunnel.target_port.unwrap_or(0));
    let hostname = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    TcpTunnel { hostname: hostname.into(), post_path: (tunnel.protocol == "POST").then(|| "/".into()) }
}

fn admits(
    place: &Place<'_>,
    gateways: &[String],
    port: Option<u16>,
    labels: &mesh_api::labels::Labels,
    ns: &str,
) -> bool {
    place.is_bound(gateways) && place.is_source(labels, ns) && port.is_none_or(|p| p == 0 || p == place.port)
}

fn admits_tls(place: &Place<'_>, m: &TlsMatch) -> bool {
    admits(place, &m.gateways, m.port, &m.source_labels, &m.source_namespace)
}

fn admits_tcp(place: &Place<'_>, m: &L4Match) -> bool {
    admits(place, &m.gateways, m.port, &m.source_labels, &m.source_namespace)
}

fn blocks(list: &[String]) -> Vec<CidrRange> {
    list.iter().filter_map(|s| block(s)).collect()
}

/// TLS rules that hold at `place`, in order, each set of conditions once.
pub fn tls_rules(
    virtual_services: &[&Arc<VirtualServiceEntry>],
    place: impl Fn(&VirtualServiceEntry) -> Option<Placed>,
    subnets: &[CidrRange],
    lookups: &Lookups<'_>,
) -> Vec<TcpRule> {
    let mut out: Vec<TcpRule> = Vec::new();
    for vs in virtual_services {
        let Some(placed) = place(vs) else { continue };
        let place = placed.place(lookups, vs);
        let config: Name = vs.object.key.config_path().into();
        for rule in &vs.spec.tls {
            for m in rule.matches.iter().filter(|m| admits_tls(&place, m)) {
                let own = blocks(&m.destination_subnets);
                let new = TcpRule {
                    server_names: m.sni_hosts.iter().map(|h| Name::from(h.to_ascii_lowercase())).collect(),
                    subnets: if own.is_empty() { subnets.to_vec() } else { own },
                    sources: vec![],
                    proxy: to_destinations(&rule.route, vs, place.port, lookups),
                    name_port: None,
                    config: config.clone(),
                };
                if !out.iter().any(|r| r.matches() == new.matches()) {
                    out.push(new);
                }
            }
        }
    }
    out
}

/// TCP rules that hold at `place`: those for subnets, then the first that takes all. The second part tells whether
/// one takes all.
pub fn tcp_rules(
    virtual_services: &[&Arc<VirtualServiceEntry>],
    place: impl Fn(&VirtualServiceEntry) -> Option<Placed>,
    subnets: &[CidrRange],
    lookups: &Lookups<'_>,
) -> (Vec<TcpRule>, bool) {
    let mut out: Vec<TcpRule> = Vec::new();
    for vs in virtual_services {
        let Some(placed) = place(vs) else { continue };
        let place = placed.place(lookups, vs);
        let config: Name = vs.object.key.config_path().into();
        for rule in &vs.spec.tcp {
            let any = [L4Match::default()];
            let matches = if rule.matches.is_empty() { &any[..] } else { &rule.matches };
            for m in matches.iter().filter(|m| admits_tcp(&place, m)) {
                let own = blocks(&m.destination_subnets);
                let takes_all = own.is_empty() && m.source_subnet.is_empty();
                let new = TcpRule {
                    server_names: vec![],
                    subnets: if own.is_empty() { subnets.to_vec() } else { own },
                    sources: block(&m.source_subnet).into_iter().collect(),
                    proxy: to_destinations(&rule.route, vs, place.port, lookups),
                    name_port: None,
                    config: config.clone(),
                };
                if !out.iter().any(|r| r.matches() == new.matches()) {
                    out.push(new);
                }
                if takes_all {
                    return (out, true);
                }
            }
        }
    }
    (out, false)
}

/// Where rules of a VirtualService are looked at.
#[derive(Debug, Clone)]
pub struct Placed {
    /// Port that the client asked for.
    pub port: u16,
    /// `mesh` or `ns/name`.
    pub gateway: Name,
}

impl Placed {
    fn place<'a>(&'a self, lookups: &Lookups<'a>, vs: &'a VirtualServiceEntry) -> Place<'a> {
        let view = lookups.0.view;
        Place {
            port: self.port,
            gateway: &self.gateway,
            rule_namespace: vs.namespace(),
            labels: &view.labels,
            namespace: &view.namespace,
        }
    }
}
