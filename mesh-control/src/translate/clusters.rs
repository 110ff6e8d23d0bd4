//! Clusters: outbound ones of services and subsets, inbound ones of the workload, and those for everything else.
//!
//! Owns how a service, its rule and the mesh's settings show in a cluster. Outbound clusters depend on few facts of a
//! proxy ([`OutboundKey`]) and are shared by all that have them in common. Must not know listeners or routes.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use mesh_api::{
    crd::{
        gateway_api::BackendTlsPolicy,
        networking::{ConnectionPool, IngressListener, ServerTlsMode},
    },
    meshconfig::InboundPolicyMode,
    model::{
        self, Address, Cluster, Discovery, EndpointSet, Fraction, HttpVersionChoice, ISTIO_METADATA, LbPolicy,
        LocalityEndpoints, Name, Origin, UpstreamTls, ZoneAware,
    },
    names::{self, ClusterName, Direction},
};
use serde_json::{Value, json};

use super::{
    backend_tls,
    cache::Cache,
    destination_rule::{Policy, original_dst},
    dynamic_dns,
    endpoints::Target,
    locality::{self, Place},
    tls::{self, Origination},
    translator::Request,
};
use crate::{
    index::{Index, Mtls, Protocol, Resolution, Rule, Service, ServicePort, Stamp, Stamped, TargetPort},
    source::object::{Kind, Object},
    view::{Families, Flavour, Interception, ProxyKind, ProxyView, ServiceTarget},
    xds::encoded::Encoded,
};

/// Connections of the proxy to its own application come from here, so that redirection lets them pass.
const INBOUND_SOURCE_V4: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 6)), 0);
const INBOUND_SOURCE_V6: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V6(std::net::Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6)), 0);
/// The longest duration that xDS carries: never.
const NEVER: Duration = Duration::from_secs(9_223_372_035);
/// Idle time of connections to destinations nobody declared.
const PASSTHROUGH_IDLE: Duration = Duration::from_secs(300);
/// Refresh of DNS answers without a time to live.
const DNS_REFRESH: Duration = Duration::from_secs(60);

/// What outbound clusters depend on beyond their name: the declared subset of the view.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutboundKey {
    namespace: Name,
    rule: Option<Name>,
    kind: ProxyKind,
    grpc: bool,
    /// Only where endpoints stand in the cluster itself.
    place: Option<(Place, Families)>,
    /// Only where a BackendTLSPolicy holds: what the gateway presents.
    presents: Option<Name>,
}

/// What outbound clusters are made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutboundBasis {
    service: Stamp,
    facts: Stamp,
    endpoints: Stamp,
    rule: Stamp,
    mesh: Stamp,
    authn: Stamp,
    /// BackendTLSPolicies; of their ConfigMaps where the service has one.
    backend_tls: [Stamp; 2],
}

/// Encoded outbound clusters.
pub type Outbound = Cache<OutboundKey, OutboundBasis>;

/// A cluster by name, encoded.
pub fn generate(cache: &Outbound, request: Request<'_>, name: &str) -> Option<Arc<Encoded>> {
    match outbound(name) {
        Some((parsed, by_sni)) => {
            let builder = Builder::new(request, &parsed, by_sni)?;
            let (key, basis) = (builder.key.clone(), builder.basis());
            cache.get(name, key, basis, || builder.build(name, &parsed).map(|c| Encoded::cluster(&c)))
        }
        None => model(request, name).map(|c| Encoded::cluster(&c)),
    }
}

/// A cluster by name, as the plain model.
pub fn model(request: Request<'_>, name: &str) -> Option<Cluster> {
    match outbound(name) {
        Some((parsed, by_sni)) => Builder::new(request, &parsed, by_sni)?.build(name, &parsed),
        None if ClusterName::parse(name).is_some() => inbound(request).into_iter().find(|c| *c.name == *name),
        None => fixed(request, name),
    }
}

/// An outbound cluster name taken apart, and whether it has the form of a server name: such clusters forward what
/// clients encrypted for the service, as it is.
pub fn outbound(name: &str) -> Option<(ClusterName<'_>, bool)> {
    let plain = ClusterName::parse(name).map(|c| (c, false));
    let found = plain.or_else(|| ClusterName::parse_sni(name).map(|c| (c, true)));
    found.filter(|(c, _)| c.direction == Direction::Outbound)
}

/// Names of the clusters that a proxy has beside its outbound ones, in order.
pub fn other_names(request: Request<'_>) -> Vec<Name> {
    if request.view.flavour == Flavour::Grpc {
        return vec![];
    }
    let mut out: Vec<Name> = vec![names::BLACK_HOLE_CLUSTER.into()];
    if request.view.is_sidecar() {
        out.push(names::PASSTHROUGH_CLUSTER.into());
        if dynamic_dns::for_unknown(request) {
            out.push(names::ALLOW_ANY_DYNAMIC_DNS_CLUSTER.into());
        }
        out.extend(inbound(request).into_iter().map(|c| c.name));
        out.push(names::INBOUND_PASSTHROUGH_V4.into());
    } else if passes_through(request) {
        let inside = request.scope.services().iter().filter(|s| has_clusters(&s.service) && !s.service.external);
        for scoped in inside {
            let rule = request.index.destination_rule(&scoped.service, request.view);
            let visible = service_names(&scoped.service, rule);
            let parsed = visible.iter().filter_map(|n| ClusterName::parse(n));
            out.extend(parsed.filter(|c| scoped.port(c.port).is_some()).map(|c| c.sni().into()));
        }
    }
    out
}

/// Whether a gateway forwards by the mesh's server names.
fn passes_through(request: Request<'_>) -> bool {
    if !request.view.is_gateway() {
        return false;
    }
    let servers = request.index.gateways_for(&request.view.labels).into_iter().flat_map(|g| &g.spec.servers);
    let mut modes = servers.filter_map(|s| s.tls.as_ref()).map(|t| t.mode);
    modes.any(|mode| mode == ServerTlsMode::AutoPassthrough)
}

/// Whether a service has clusters at all.
pub fn has_clusters(service: &Service) -> bool {
    service.resolution != Resolution::Alias
}

/// Whether a service has endpoints that could be told apart.
fn has_subsets(service: &Service) -> bool {
    service.resolution != Resolution::DynamicDns
}

/// Names of a service's clusters: each port, then each subset of it.
pub fn service_names(service: &Service, rule: Option<&Stamped<Rule>>) -> Arc<[Name]> {
    let host = &service.key.host;
    let mut out: Vec<Name> = Vec::new();
    let rule = rule.filter(|_| has_subsets(service));
    let served = |p: &&ServicePort| p.protocol != Protocol::Udp && dynamic_dns::serves(service, p.protocol);
    for port in service.ports.iter().filter(served) {
        out.push(ClusterName::outbound(host, port.port, "").to_string().into());
        for subset in rule.into_iter().flat_map(|r| &r.arc().spec.subsets) {
            out.push(ClusterName::outbound(host, port.port, &subset.name).to_string().into());
        }
    }
    out.into()
}

/// Makes one outbound cluster.
struct Builder<'a> {
    index: &'a Index,
    target: Target<'a>,
    subset: &'a str,
    key: OutboundKey,
    backend_tls: Option<(Arc<Object>, Arc<BackendTlsPolicy>)>,
}

impl<'a> Builder<'a> {
    /// `None`: the proxy sees no such service, port or subset, or does not forward to it by its server name.
    fn new(request: Request<'a>, parsed: &ClusterName<'a>, by_sni: bool) -> Option<Self> {
        let Request { index, view, .. } = request;
        let target = Target::find(request, parsed)?;
        let service = target.entry.service.arc();
        if by_sni && (service.external || !passes_through(request)) {
            return None;
        }
        let subset = parsed.subset.is_empty() || has_subsets(service);
        if !subset || !dynamic_dns::serves(service, target.port.protocol) {
            return None;
        }
        let grpc = view.flavour == Flavour::Grpc;
        let dns = !grpc && matches!(service.resolution, Resolution::Dns | Resolution::DnsRoundRobin);
        let place = if dns {
            Some((target.place(&target.preference(index), view), view.families()))
        } else {
            let dynamic = !grpc && service.resolution == Resolution::DynamicDns;
            dynamic.then(|| (Place::default(), view.families()))
        };
        // What a DestinationRule says of TLS was said by somebody who knew this mesh.
        let policy = target.policy.tls.is_none().then(|| backend_tls::find(index, service, target.port)).flatten();
        let backend_tls = policy.filter(|_| !grpc);
        let key = OutboundKey {
            namespace: service.key.namespace.clone(),
            rule: target.rule.map(|r| r.id.clone()),
            kind: view.kind,
            grpc,
            place,
            presents: backend_tls.as_ref().and_then(|_| backend_tls::presented(index, view)),
        };
        Some(Self { index, target, subset: parsed.subset, key, backend_tls })
    }

    fn basis(&self) -> OutboundBasis {
        let entry = self.target.entry;
        OutboundBasis {
            service: entry.service.stamp(),
            facts: entry.facts.stamp(),
            endpoints: if self.key.place.is_some() { entry.endpoints.stamp() } else { Stamp::NONE },
            rule: self.target.rule.map_or(Stamp::NONE, Stamped::stamp),
            mesh: self.index.mesh_stamped().stamp(),
            authn: self.index.stamp(Kind::PeerAuthentication),
            backend_tls: [
                self.index.stamp(Kind::BackendTlsPolicy),
                if self.backend_tls.is_some() { self.index.stamp(Kind::ConfigMap) } else { Stamp::NONE },
            ],
        }
    }

    fn build(&self, name: &str, parsed: &ClusterName<'_>) -> Option<Cluster> {
        let mesh = self.index.mesh();
        let service = self.service();
        let policy = &self.target.policy;
        let mut cluster = Cluster::new(name, self.discovery(name)?);
        // Without endpoints the proxy waits for them as long as it takes; routes to the cluster wait with it.
        cluster.eds_fetch_timeout = Duration::ZERO;
        let sidecar = self.key.kind == ProxyKind::Sidecar;
        policy.apply_pool(&mut cluster, mesh, self.target.port.protocol, sidecar, true);
        policy.apply_outlier(&mut cluster);
        policy.apply_lb(&mut cluster);
        let preference = self.target.preference(self.index);
        cluster.lb_common.locality_weighted = preference.weighs_localities();
        self.zone_aware(&mut cluster);
        if self.key.grpc {
            grpc_form(&mut cluster);
        } else {
            if *name != parsed.sni() {
                self.security(&mut cluster, parsed);
                policy.apply_proxy_protocol(&mut cluster);
            }
            self.dns(&mut cluster);
        }
        if !mesh.outbound_cluster_stat_name.is_empty() {
            let stat = stat_name(
                &mesh.outbound_cluster_stat_name,
                service,
                self.subset,
                self.target.port,
                self.target.port.port,
            );
            cluster.alt_stat_name = stat.into();
        }
        if let Some(rule) = self.target.rule {
            cluster.origin = Origin { config: rule.config_path() };
        }
        self.describe(&mut cluster);
        Some(cluster)
    }

    fn service(&self) -> &Service {
        self.target.entry.service.arc()
    }

    /// Where endpoints come from; `None`: a DNS service without names has no cluster.
    fn discovery(&self, name: &str) -> Option<Discovery> {
        let eds = Discovery::Eds { service: name.into() };
        if self.key.grpc {
            return Some(eds);
        }
        let service = self.service();
        Some(match service.resolution {
            Resolution::Endpoints => eds,
            Resolution::Alias => return None,
            Resolution::DynamicDns => {
                let (_, families) = self.key.place.as_ref()?;
                Discovery::Dynamic(dynamic_dns::declared_cache(*families))
            }
            // Gateways have no client's destination to keep.
            Resolution::Passthrough if self.key.kind == ProxyKind::Gateway => eds,
            Resolution::Passthrough => original_dst(match self.target.port.target {
                TargetPort::Number(n) if n != self.target.port.port => Some(n),
                _ => None,
            }),
            Resolution::Dns | Resolution::DnsRoundRobin => {
                let place = self.key.place.as_ref().map(|(p, _)| p.clone()).unwrap_or_default();
                let preference = self.target.preference(self.index);
                let mut set = self.target.assignment(self.index, name, &preference, &place);
                if set.localities.iter().all(|l| l.endpoints.is_empty()) {
                    return None;
                }
                if service.resolution == Resolution::Dns {
                    Discovery::StrictDns(set)
                } else {
                    // One name is all that such a cluster can have.
                    set.localities.truncate(1);
                    set.localities.iter_mut().for_each(|l| l.endpoints.truncate(1));
                    Discovery::LogicalDns(set)
                }
            }
        })
    }

    fn dns(&self, cluster: &mut Cluster) {
        if let Some((_, families)) = &self.key.place
            && !matches!(cluster.discovery, Discovery::Dynamic(_))
        {
            cluster.dns_family = dynamic_dns::lookup_family(*families);
            cluster.dns_refresh = self.index.mesh().dns_refresh_rate.map_or(DNS_REFRESH, |d| d.0);
            cluster.respect_dns_ttl = true;
        }
    }

    fn zone_aware(&self, cluster: &mut Cluster) {
        if let Some(zone) = locality::zone_aware(self.index.mesh(), self.service(), self.target.policy.lb) {
            let min_cluster_size = u64::from(zone.min_cluster_size.unwrap_or(6));
            // Without a word a proxy that knows its own zone would go by it.
            let enabled = if zone.enabled == Some(false) { Fraction(0) } else { Fraction::ALWAYS };
            cluster.lb_common.zone_aware = Some(ZoneAware { enabled, min_cluster_size });
            cluster.lb_common.locality_weighted = false;
        }
    }

    /// TLS by the rule; without a word there, mesh TLS wherever the other side can.
    fn security(&self, cluster: &mut Cluster, parsed: &ClusterName<'_>) {
        let service = self.service();
        if let Some((object, policy)) = &self.backend_tls {
            cluster.origin = Origin { config: object.key.config_path().into() };
            let presents = self.key.presents.as_deref();
            return backend_tls::originate(cluster, self.index, &service.key.namespace, policy, presents);
        }
        let sni = parsed.sni();
        let server_names = tls::server_names(self.index, service, self.target.entry.facts.arc());
        if let Some(wanted) = self.target.policy.tls {
            let how = Origination {
                sni: &sni,
                server_names: &server_names,
                declared_names: &service.subject_alt_names,
                defaults: self.index.mesh().tls_defaults.as_ref(),
            };
            tls::originate(cluster, wanted, &how);
        } else if self.auto_mtls() {
            let http2 = cluster.http.version == HttpVersionChoice::Http2;
            tls::automatic(cluster, self.mesh_tls(&sni, &server_names, http2));
        }
    }

    fn mesh_tls(&self, sni: &str, server_names: &[Name], http2: bool) -> UpstreamTls {
        let mut out = tls::mesh_tls(sni, server_names, http2);
        if let Some(mesh) = &self.index.mesh().mesh_mtls {
            out.common.ecdh_curves = mesh.ecdh_curves.iter().map(|c| c.as_str().into()).collect();
        }
        out
    }

    fn auto_mtls(&self) -> bool {
        let service = self.service();
        // Nobody vouches for what a name leads to.
        let unknown = service.resolution == Resolution::DynamicDns;
        if service.external || unknown || !self.index.mesh().auto_mtls() {
            return false;
        }
        // Nothing is known of the endpoint that the client will choose, so all of them must be able to.
        let chosen_by_client = service.resolution == Resolution::Passthrough || self.target.policy.is_passthrough();
        if chosen_by_client && !self.target.entry.facts.all_mesh_tls {
            return false;
        }
        self.index.namespace_mtls(&service.key.namespace) != Some(Mtls::Disable)
    }

    fn describe(&self, cluster: &mut Cluster) {
        let service = self.service();
        let mut facts = serde_json::Map::new();
        facts.insert("services".into(), Value::Array(vec![service_facts(service)]));
        facts.insert("default_original_port".into(), json!(self.target.port.port));
        if service.external {
            facts.insert("external".into(), Value::Bool(true));
        }
        if !self.subset.is_empty() {
            facts.insert("subset".into(), json!(self.subset));
        }
        use mesh_api::crd::networking::ClientTlsMode::{Mutual, Simple};
        let originates = self.target.policy.tls.is_some_and(|t| matches!(t.mode, Simple | Mutual));
        if originates || self.backend_tls.is_some() {
            // The server is no mesh workload: it must not see the mesh's protocol names.
            facts.insert("alpn_override".into(), json!("false"));
        }
        cluster.metadata.insert(ISTIO_METADATA.to_owned(), Value::Object(facts));
    }
}

/// What gRPC libraries understand: few balancers, no metadata matching. Their transport security is their own.
fn grpc_form(cluster: &mut Cluster) {
    if !matches!(cluster.lb, LbPolicy::RingHash { .. }) {
        cluster.lb = LbPolicy::RoundRobin { slow_start: None };
    }
    if matches!(cluster.discovery, Discovery::OriginalDst { .. }) {
        cluster.discovery = Discovery::Eds { service: cluster.name.clone() };
    }
    cluster.http.version = HttpVersionChoice::Http2;
}

fn service_facts(service: &Service) -> Value {
    json!({ "host": &*service.key.host, "name": &*service.name, "namespace": &*service.key.namespace })
}

/// Istio's patterns for statistics names.
fn stat_name(pattern: &str, service: &Service, subset: &str, port: &ServicePort, target: u16) -> String {
    let fqdn = &*service.key.host;
    let short = if service.kubernetes { &*service.name } else { fqdn };
    let service_name = if service.kubernetes { format!("{short}.{}", service.key.namespace) } else { fqdn.to_owned() };
    [
        ("%SERVICE_FQDN%", fqdn),
        ("%SERVICE_NAME%", short),
        ("%SERVICE%", &*service_name),
        ("%SUBSET_NAME%", subset),
        ("%SERVICE_PORT_NAME%", &*port.name),
        ("%SERVICE_PORT%", &*port.port.to_string()),
        ("%TARGET_PORT%", &*target.to_string()),
    ]
    .iter()
    .fold(pattern.to_owned(), |text, (word, value)| text.replace(word, value))
}

/// Clusters that every proxy of a kind has.
fn fixed(request: Request<'_>, name: &str) -> Option<Cluster> {
    let Request { index, view, .. } = request;
    if view.flavour == Flavour::Grpc {
        return None;
    }
    match name {
        names::BLACK_HOLE_CLUSTER => Some(black_hole(index)),
        names::PASSTHROUGH_CLUSTER if view.is_sidecar() => Some(passthrough(index, name)),
        names::ALLOW_ANY_DYNAMIC_DNS_CLUSTER if dynamic_dns::for_unknown(request) => {
            Some(dynamic_dns::unknown_cluster(request))
        }
        names::INBOUND_PASSTHROUGH_V4 if view.is_sidecar() => {
            let mut cluster = passthrough(index, name);
            cluster.bind_source = Some(inbound_source(view));
            Some(cluster)
        }
        _ => None,
    }
}

fn black_hole(index: &Index) -> Cluster {
    let name: Name = names::BLACK_HOLE_CLUSTER.into();
    let nothing = EndpointSet { cluster: name.clone(), ..EndpointSet::default() };
    let mut cluster = Cluster::new(name, Discovery::Static(nothing));
    cluster.connect_timeout = index.mesh().connect_timeout();
    cluster
}

fn passthrough(index: &Index, name: &str) -> Cluster {
    let mut cluster = Cluster::new(name, original_dst(None));
    Policy::default().apply_pool(&mut cluster, index.mesh(), Protocol::Auto, true, false);
    cluster.lb = LbPolicy::ClusterProvided;
    cluster.http.idle_timeout = PASSTHROUGH_IDLE;
    cluster
}

fn inbound_source(view: &ProxyView) -> SocketAddr {
    if view.families().v4 { INBOUND_SOURCE_V4 } else { INBOUND_SOURCE_V6 }
}

/// Clusters of the workload's own ports: what the Sidecar's ingress listeners say, else what its services declare.
pub fn inbound(request: Request<'_>) -> Vec<Cluster> {
    let Request { index, view, scope } = request;
    if !view.is_sidecar() || view.flavour == Flavour::Grpc {
        return vec![];
    }
    let ingress = scope.ingress();
    if !ingress.is_empty() {
        return ingress.iter().filter_map(|listener| of_ingress(request, listener)).collect();
    }
    // Without interception listeners would take the application's own ports.
    if view.interception == Interception::None {
        return vec![];
    }
    let mut by_port: BTreeMap<u16, Vec<&ServiceTarget>> = BTreeMap::new();
    for target in view.targets.iter().filter(|t| t.port.protocol != Protocol::Udp) {
        by_port.entry(target.target_port).or_default().push(target);
    }
    let localhost = index.mesh().inbound_traffic_policy.as_ref().map(|p| p.mode) == Some(InboundPolicyMode::Localhost);
    by_port
        .into_iter()
        .filter_map(|(port, targets)| {
            let first = targets.first()?;
            let address = localhost.then(|| Address::Socket(SocketAddr::new(loopback(view), port)));
            let known = targets.iter().map(|t| t.service.arc().as_ref());
            Some(to_application(request, port, &first.port, address, known))
        })
        .collect()
}

fn loopback(view: &ProxyView) -> std::net::IpAddr {
    if view.families().v4 { std::net::Ipv4Addr::LOCALHOST.into() } else { std::net::Ipv6Addr::LOCALHOST.into() }
}

fn of_ingress(request: Request<'_>, listener: &IngressListener) -> Option<Cluster> {
    let view = request.view;
    let address = match listener.default_endpoint.as_str() {
        "" => None,
        text => Some(default_endpoint(text, view)?),
    };
    let port = ServicePort {
        name: listener.port.name.as_str().into(),
        port: listener.port.number,
        protocol: Protocol::parse(&listener.port.protocol),
        target: TargetPort::Number(listener.port.number),
    };
    let target = view.targets.iter().find(|t| t.target_port == listener.port.number);
    let known = target.map(|t| t.service.arc().as_ref());
    Some(to_application(request, listener.port.number, &port, address, known.into_iter()))
}

/// Where a Sidecar's ingress listener sends to: localhost, the instance's own address, or a socket.
fn default_endpoint(text: &str, view: &ProxyView) -> Option<Address> {
    if let Some(path) = text.strip_prefix("unix://") {
        return Some(Address::Pipe(path.into()));
    }
    let told: SocketAddr = text.parse().ok()?;
    let own = |v6: bool| view.ips.iter().copied().find(|ip| ip.is_ipv6() == v6);
    let ip = if told.ip().is_unspecified() {
        own(told.is_ipv6()).unwrap_or_else(|| loopback(view))
    } else if told.ip().is_loopback() && told.is_ipv4() != view.families().v4 && view.ips.len() == 1 {
        loopback(view)
    } else {
        told.ip()
    };
    Some(Address::Socket(SocketAddr::new(ip, told.port())))
}

/// One inbound cluster. Without an address it connects where the client wanted to go.
fn to_application<'a>(
    request: Request<'_>,
    number: u16,
    port: &ServicePort,
    address: Option<Address>,
    services: impl Iterator<Item = &'a Service>,
) -> Cluster {
    let Request { index, view, scope } = request;
    let name: Name = ClusterName::inbound(number).to_string().into();
    let services: Vec<&Service> = services.collect();
    let discovery = match &address {
        Some(address) => Discovery::Static(EndpointSet {
            cluster: name.clone(),
            localities: vec![LocalityEndpoints {
                endpoints: vec![model::Endpoint::at(address.clone())],
                ..LocalityEndpoints::default()
            }],
            ..EndpointSet::default()
        }),
        None => Discovery::OriginalDst { port_override: None, cleanup_interval: NEVER },
    };
    let mut cluster = Cluster::new(name, discovery);
    // Limits that clients keep hold here as well, else the server would be stricter than they are.
    let rule = services.first().and_then(|s| index.destination_rule(s, view));
    let mut policy = Policy { pool: None, ..Policy::default() };
    if let Some(rule) = rule {
        policy = Policy::of(index.mesh(), Some(&rule.arc().spec), None, port.port);
        cluster.origin = Origin { config: rule.config_path() };
    }
    let own = inbound_pool(scope.sidecar(), number);
    let pool = Policy { pool: own.or(policy.pool), ..Policy::default() };
    pool.apply_pool(&mut cluster, index.mesh(), port.protocol, true, false);
    let wildcard_source = match &address {
        None => {
            cluster.lb = LbPolicy::ClusterProvided;
            true
        }
        Some(Address::Socket(a)) => !a.ip().is_loopback(),
        Some(_) => false,
    };
    if wildcard_source && view.interception != Interception::None {
        cluster.bind_source = Some(inbound_source(view));
    }
    if !index.mesh().inbound_cluster_stat_name.is_empty()
        && let Some(service) = services.first()
    {
        let stat = stat_name(&index.mesh().inbound_cluster_stat_name, service, "", port, number);
        cluster.alt_stat_name = stat.into();
    }
    let facts = json!({ "services": services.iter().map(|s| service_facts(s)).collect::<Vec<_>>() });
    cluster.metadata.insert(ISTIO_METADATA.to_owned(), facts);
    cluster
}

fn inbound_pool(sidecar: Option<&mesh_api::crd::networking::Sidecar>, port: u16) -> Option<&ConnectionPool> {
    let sidecar = sidecar?;
    let listener = sidecar.ingress.iter().find(|l| l.port.number == port);
    listener.and_then(|l| l.connection_pool.as_ref()).or(sidecar.inbound_connection_pool.as_ref())
}
