//! Listeners towards other services: `virtualOutbound`, one a port or address, those that bind, the explicit proxy.
//!
//! Owns which listener serves which service and what happens when two want the same address. Must not know routes.

use std::{net::IpAddr, sync::Arc, time::Duration};

use indexmap::IndexMap;
use mesh_api::{
    crd::networking::CaptureMode,
    model::{
        Address, CidrRange, FilterChain, FilterChainMatch, Listener, ListenerFilter, Metadata, Name, NetworkFilter,
        Origin, RouteSource, TrafficDirection,
    },
    names::VIRTUAL_OUTBOUND,
};

use super::{
    dynamic_dns,
    filter_chain::{ChainEnv, HttpSpec, PLAINTEXT_HTTP_ALPN, chain},
    lookups::Lookups,
    mesh_routes::Attached,
    scope::{Egress, Scoped},
    sidecar_routes::{self, HTTP_PROXY},
    tcp_routes::{self, Placed, TcpRule, block},
    translator::Request,
};
use crate::{
    index::{Protocol, Resolution, Service, ServicePort, VirtualServiceEntry, host, virtual_services::MESH_GATEWAY},
    view::{Interception, ProxyView},
};

/// Port to which outbound connections are redirected.
const OUTBOUND_PORT: u16 = 15001;
/// How long bytes of a connection to an unknown port are waited for, before it counts as not HTTP.
const SERVER_SPEAKS_FIRST: Duration = Duration::from_secs(5);
/// Most endpoints of a headless service that get listeners of their own.
const MAX_INSTANCES: usize = 512;

/// A listener on `address` without chains.
pub fn bare(name: &str, address: Address, direction: TrafficDirection, detection: Duration) -> Listener {
    Listener {
        name: name.into(),
        address,
        additional_addresses: vec![],
        bind_to_port: true,
        use_original_dst: false,
        transparent: false,
        listener_filters: vec![],
        listener_filters_timeout: detection,
        continue_on_listener_filters_timeout: true,
        filter_chains: vec![],
        default_filter_chain: None,
        per_connection_buffer_limit: 1 << 20,
        access_log: vec![],
        traffic_direction: direction,
        api_listener: false,
        origin: Origin::default(),
        metadata: Metadata::new(),
    }
}

/// The address that means all of a proxy's.
pub fn wildcard(view: &ProxyView) -> IpAddr {
    if view.families().v4 { std::net::Ipv4Addr::UNSPECIFIED.into() } else { std::net::Ipv6Addr::UNSPECIFIED.into() }
}

/// The address at which only the application beside the proxy reaches it. A proxy that lives at a loopback address
/// (many on one machine) has its own.
pub fn local(view: &ProxyView) -> IpAddr {
    match view.ips.first() {
        Some(ip) if ip.is_loopback() => *ip,
        _ if view.families().v4 => std::net::Ipv4Addr::LOCALHOST.into(),
        _ => std::net::Ipv6Addr::LOCALHOST.into(),
    }
}

/// How long the first bytes of a connection are waited for.
pub fn detection_timeout(request: Request<'_>) -> Duration {
    request.index.mesh().protocol_detection_timeout.map_or(Duration::ZERO, |d| d.0)
}

/// Name of a listener by its address.
pub fn listener_name(bind: IpAddr, port: u16) -> String {
    format!("{bind}_{port}")
}

/// All outbound listeners of a sidecar.
pub fn listeners(request: Request<'_>, env: &ChainEnv<'_>) -> Vec<Listener> {
    let mut out = Vec::new();
    if request.view.interception != Interception::None {
        out.push(virtual_outbound(request, env));
    }
    let mut builder = Builder {
        request,
        env,
        lookups: Lookups(request),
        attached: Attached::every(request.index),
        slots: IndexMap::new(),
        unknown: sidecar_routes::elsewhere(request, 0),
        any: wildcard(request.view),
    };
    for egress in request.scope.egress() {
        builder.egress(egress);
    }
    out.extend(builder.finish());
    out.extend(http_proxy(request, env));
    out
}

/// Receives what redirection captured and hands it to the listener of its destination.
fn virtual_outbound(request: Request<'_>, env: &ChainEnv<'_>) -> Listener {
    let view = request.view;
    let port = request.index.mesh().proxy_listen_port.unwrap_or(OUTBOUND_PORT);
    let address = |ip: IpAddr| Address::Socket((ip, port).into());
    let mut out =
        bare(VIRTUAL_OUTBOUND, address(wildcard(view)), TrafficDirection::Outbound, detection_timeout(request));
    if view.families().v4 && view.families().v6 {
        out.additional_addresses.push(address(std::net::Ipv6Addr::UNSPECIFIED.into()));
    }
    out.use_original_dst = true;
    out.transparent = view.interception == Interception::Tproxy;
    out.continue_on_listener_filters_timeout = false;
    // Whoever dials the port itself would be sent round in circles.
    let own = FilterChainMatch { destination_port: Some(port), ..FilterChainMatch::default() };
    out.filter_chains = vec![
        chain("virtualOutbound-blackhole", own, env.unknown_destination(None)),
        chain(
            "virtualOutbound-catchall-tcp",
            FilterChainMatch::default(),
            env.unknown_destination(sidecar_routes::elsewhere(request, 0).as_ref()),
        ),
    ];
    if dynamic_dns::for_unknown(request) {
        looks_up_requests(&mut out, env);
    }
    out.access_log = env.listener_log();
    out
}

/// Hosts of cleartext HTTP are looked up; all else goes where the client dialled, as without.
fn looks_up_requests(listener: &mut Listener, env: &ChainEnv<'_>) {
    let spec = HttpSpec {
        stat_prefix: "outbound_virtualOutbound_allow_any_dynamic_dns".into(),
        routes: RouteSource::Inline(Box::new(sidecar_routes::unknown_ports())),
        grpc_web: false,
        tls: false,
    };
    let matches = FilterChainMatch {
        transport_protocol: "raw_buffer".into(),
        application_protocols: PLAINTEXT_HTTP_ALPN.map(Name::from).into(),
        ..FilterChainMatch::default()
    };
    listener.filter_chains.insert(1, chain("allow_any_dynamic_dns", matches, vec![env.http(spec)]));
    // A proxy that has found chains for cleartext looks at no others: what takes everything else is the last resort.
    listener.default_filter_chain = listener.filter_chains.pop();
    listener.listener_filters = vec![
        ListenerFilter::TlsInspector { disabled_ports: vec![] },
        ListenerFilter::HttpInspector { disabled_ports: vec![] },
    ];
    // Where the server speaks first nothing comes to be inspected.
    listener.continue_on_listener_filters_timeout = true;
    if listener.listener_filters_timeout.is_zero() {
        listener.listener_filters_timeout = SERVER_SPEAKS_FIRST;
    }
}

/// A listener for clients that are told to use an HTTP proxy.
fn http_proxy(request: Request<'_>, env: &ChainEnv<'_>) -> Option<Listener> {
    let Request { index, view, .. } = request;
    let port = view.http_proxy_port.or(index.mesh().proxy_http_port).filter(|p| *p != 0)?;
    let bind = local(view);
    let name = listener_name(bind, port);
    let address = Address::Socket((bind, port).into());
    let mut out = bare(&name, address, TrafficDirection::Outbound, detection_timeout(request));
    let spec = HttpSpec {
        stat_prefix: format!("outbound_{name}").into(),
        routes: RouteSource::Rds(HTTP_PROXY.into()),
        grpc_web: false,
        tls: false,
    };
    out.filter_chains = vec![chain("", FilterChainMatch::default(), vec![env.http(spec)])];
    Some(out)
}

/// Where a listener is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Bind {
    Ip(IpAddr, u16),
    Unix(Name),
}

/// A listener in the making.
struct Slot {
    protocol: Protocol,
    binds: bool,
    http: Option<FilterChain>,
    tcp: Vec<FilterChain>,
    origin: Name,
    /// No later service may add to it.
    locked: bool,
}

struct Builder<'a, 'e> {
    request: Request<'a>,
    env: &'e ChainEnv<'e>,
    lookups: Lookups<'a>,
    attached: Attached,
    slots: IndexMap<Bind, Slot>,
    unknown: Option<Name>,
    any: IpAddr,
}

/// One service's port on one listener.
struct Wanted<'a> {
    service: &'a Service,
    /// Its port.
    port: &'a ServicePort,
    /// What the listener is declared as; the service's protocol without a declaration.
    protocol: Protocol,
    bind: Bind,
    /// Port of the listener.
    listen: u16,
    binds: bool,
    /// Destination addresses, where the listener's own does not say it.
    subnets: Vec<CidrRange>,
    /// Server names tell services apart, because the address does not.
    by_name: bool,
}

impl<'a> Builder<'a, '_> {
    fn egress(&mut self, egress: &'a Egress) {
        let declared = egress.listener.as_ref();
        let capture = declared.map_or(CaptureMode::Default, |l| l.capture_mode);
        let binds = match capture {
            CaptureMode::None => true,
            CaptureMode::Iptables => false,
            CaptureMode::Default => self.request.view.interception == Interception::None,
        };
        let bind = declared.map_or("", |l| l.bind.as_str());
        match egress.port() {
            Some((port, protocol)) => self.declared(egress, port, protocol, bind, binds),
            None if bind.starts_with("unix://") => self.unix(egress, bind),
            None => {
                let fixed = bind.parse().ok().or_else(|| binds.then(|| local(self.request.view)));
                self.catch_all(egress, fixed, binds);
            }
        }
    }

    /// A listener with a port of its own: services that have the port, whatever they say of its protocol.
    fn declared(&mut self, egress: &'a Egress, listen: u16, protocol: Protocol, bind: &str, binds: bool) {
        let ip = bind.parse().ok().or_else(|| binds.then(|| local(self.request.view))).unwrap_or(self.any);
        let bind = Bind::Ip(ip, listen);
        if protocol.is_http() {
            self.http_slot(bind.clone(), protocol, listen.to_string().into(), binds);
            self.lock(&bind);
            return;
        }
        for scoped in egress.services.iter() {
            let Some(port) = scoped.port(listen) else { continue };
            self.add(
                egress,
                Wanted {
                    service: scoped.service.arc(),
                    port,
                    protocol,
                    bind: bind.clone(),
                    listen,
                    binds,
                    subnets: if ip == self.any { self.subnets(scoped.service.arc()) } else { vec![] },
                    by_name: true,
                },
            );
        }
        self.lock(&bind);
    }

    fn unix(&mut self, egress: &'a Egress, path: &str) {
        let protocol = egress.listener.as_ref().and_then(|l| l.port.as_ref()).map(|p| Protocol::parse(&p.protocol));
        if protocol.is_none_or(Protocol::is_http) {
            let socket = path.trim_start_matches("unix://");
            self.http_slot(Bind::Unix(socket.into()), Protocol::Http, path.into(), true);
        }
    }

    /// Every port of every service, save those that a listener before has.
    fn catch_all(&mut self, egress: &'a Egress, fixed: Option<IpAddr>, binds: bool) {
        for slot in self.slots.values_mut() {
            slot.locked = true;
        }
        for scoped in egress.services.iter() {
            let service = scoped.service.arc();
            if service.resolution == Resolution::Alias && self.request.index.alias_target(service).is_none() {
                continue;
            }
            let served = |p: &&ServicePort| p.protocol != Protocol::Udp && dynamic_dns::serves(service, p.protocol);
            for port in scoped.ports().filter(served) {
                self.service_port(egress, scoped, port, fixed, binds);
            }
        }
    }

    fn service_port(
        &mut self,
        egress: &'a Egress,
        scoped: &'a Scoped,
        port: &'a ServicePort,
        fixed: Option<IpAddr>,
        binds: bool,
    ) {
        let service = scoped.service.arc();
        let wanted = |ip: IpAddr, subnets: Vec<CidrRange>, by_name: bool| Wanted {
            service,
            port,
            protocol: port.protocol,
            bind: Bind::Ip(ip, port.port),
            listen: port.port,
            binds,
            subnets,
            by_name,
        };
        if let Some(ip) = fixed {
            return self.add(egress, wanted(ip, vec![], true));
        }
        if port.protocol.is_http() {
            return self.add(egress, wanted(self.any, vec![], false));
        }
        let families = self.request.view.families();
        let mut ips: Vec<IpAddr> = service
            .ips_for(self.request.view)
            .filter(|ip| if ip.is_ipv4() { families.v4 } else { families.v6 })
            .collect();
        let headless = ips.is_empty() && service.kubernetes && service.resolution == Resolution::Passthrough;
        if headless {
            ips = self.instances(service, port.port);
        }
        for ip in &ips {
            self.add(egress, wanted(*ip, vec![], false));
        }
        if ips.is_empty() && !headless {
            self.add(egress, wanted(self.any, self.subnets(service), true));
        }
    }

    /// Addresses of a headless service's endpoints, the proxy's own aside.
    fn instances(&self, service: &Service, port: u16) -> Vec<IpAddr> {
        let Some(entry) = self.request.index.service_entry(&service.key) else { return vec![] };
        let here = entry.endpoints.arc();
        let mut out: Vec<IpAddr> = here
            .iter()
            .filter(|(_, e)| e.port(port).is_some())
            .filter_map(|(_, e)| e.ip())
            .filter(|ip| !self.request.view.ips.contains(ip))
            .collect();
        out.sort_unstable();
        out.dedup();
        out.truncate(MAX_INSTANCES);
        out
    }

    fn lock(&mut self, bind: &Bind) {
        if let Some(slot) = self.slots.get_mut(bind) {
            slot.locked = true;
        }
    }

    fn http_slot(&mut self, bind: Bind, protocol: Protocol, routes: Name, binds: bool) {
        let prefix = match &bind {
            Bind::Ip(ip, port) => format!("outbound_{}", listener_name(*ip, *port)),
            Bind::Unix(path) => format!("outbound_{path}"),
        };
        let spec = HttpSpec {
            stat_prefix: prefix.into(),
            routes: RouteSource::Rds(routes),
            grpc_web: protocol == Protocol::GrpcWeb,
            tls: false,
        };
        let http = chain("", FilterChainMatch::default(), vec![self.env.http(spec)]);
        let new = Slot { protocol, binds, http: Some(http), tcp: vec![], origin: "".into(), locked: false };
        self.slots.entry(bind).or_insert(new);
    }

    fn add(&mut self, egress: &'a Egress, wanted: Wanted<'a>) {
        let protocol = wanted.protocol;
        let known = self.slots.get(&wanted.bind).map(|s| (s.protocol, s.locked));
        match known {
            Some((_, true)) => return,
            // The same routes serve all HTTP services of a port.
            Some((old, _)) if protocol.is_http() && (old.is_http() || old.is_auto()) => return,
            // Who comes first has the address.
            Some((old, _)) if old.is_http() && !protocol.is_auto() || protocol.is_http() && !old.is_http() => return,
            _ => {}
        }
        if protocol.is_http() {
            return self.http_slot(wanted.bind, protocol, wanted.listen.to_string().into(), wanted.binds);
        }
        let tcp = self.tcp_chains(egress, &wanted);
        let origin = tcp.iter().find(|r| !r.config.is_empty()).map(|r| r.config.clone()).unwrap_or_default();
        let chains: Vec<FilterChain> = tcp.into_iter().map(|r| self.tcp_chain(r)).collect();
        if protocol.is_auto() && known.is_none_or(|(old, _)| !old.is_http()) {
            // A service at an address of its own has routes of its own.
            let shared = matches!(&wanted.bind, Bind::Ip(ip, _) if *ip == self.any) || wanted.binds;
            let routes: Name = if shared {
                wanted.listen.to_string().into()
            } else {
                format!("{}:{}", wanted.service.key.host, wanted.port.port).into()
            };
            self.http_slot(wanted.bind.clone(), protocol, routes, wanted.binds);
        }
        let slot = self.slots.entry(wanted.bind).or_insert_with(|| Slot {
            protocol,
            binds: wanted.binds,
            http: None,
            tcp: vec![],
            origin: "".into(),
            locked: false,
        });
        if slot.protocol.is_http() || protocol.is_auto() {
            slot.protocol = Protocol::Auto;
        }
        if slot.origin.is_empty() {
            slot.origin = origin;
        }
        for new in chains {
            if !slot.tcp.iter().any(|c| c.matches == new.matches) {
                slot.tcp.push(new);
            }
        }
    }

    fn tcp_chain(&self, rule: TcpRule) -> FilterChain {
        let matches = rule.matches();
        let mut filters = self.env.tcp(rule.proxy);
        if let Some(port) = rule.name_port {
            let cache = dynamic_dns::declared_cache(self.request.view.families());
            let last = filters.len().saturating_sub(1);
            filters.insert(last, NetworkFilter::SniDynamicForwardProxy { cache, port });
        }
        chain("", matches, filters)
    }

    /// Chains of a service that is not HTTP: its VirtualServices' rules, then those of its routes of Gateway API, without
    /// any the service itself.
    fn tcp_chains(&self, egress: &'a Egress, wanted: &Wanted<'_>) -> Vec<TcpRule> {
        let name = &*wanted.service.key.host;
        let (owner, client) = (&wanted.service.key.namespace, &self.request.view.namespace);
        let mine: Vec<&Arc<VirtualServiceEntry>> = egress
            .virtual_services
            .iter()
            .filter(|v| v.hosts.iter().any(|h| host::within(h, name)))
            .filter(|v| self.request.index.routes_for(v.namespace(), owner, client))
            .collect();
        let at = |_: &VirtualServiceEntry| Some(Placed { port: wanted.listen, gateway: MESH_GATEWAY.into() });
        let mut out = Vec::new();
        if wanted.protocol.is_tls() || wanted.protocol.is_auto() {
            out = tcp_routes::tls_rules(&mine, at, &wanted.subnets, &self.lookups);
            if wanted.protocol.is_tls() && !out.is_empty() {
                return out;
            }
        }
        let mut covered = false;
        if !wanted.protocol.is_tls() {
            let (tcp, all) = tcp_routes::tcp_rules(&mine, at, &wanted.subnets, &self.lookups);
            covered = all;
            out.extend(tcp);
        }
        // Of a pattern the name says which host is meant, at whatever address.
        let by_name =
            wanted.protocol.is_tls() && (wanted.by_name || wanted.service.resolution == Resolution::DynamicDns);
        if !covered
            && let Some(rules) =
                self.attached.connections(&self.lookups, wanted.service, wanted.port.port, &wanted.subnets, by_name)
        {
            out.extend(rules);
            covered = true;
        }
        if !covered {
            out.push(TcpRule {
                server_names: if by_name { vec![wanted.service.key.host.clone()] } else { vec![] },
                subnets: wanted.subnets.clone(),
                sources: vec![],
                proxy: tcp_routes::to_service(wanted.service, wanted.port.port, &self.lookups),
                name_port: (wanted.service.resolution == Resolution::DynamicDns).then_some(wanted.port.port),
                config: "".into(),
            });
        }
        out
    }

    /// Where clients find a service.
    fn subnets(&self, service: &Service) -> Vec<CidrRange> {
        let made_up = service.addresses.is_empty().then(|| service.ips_for(self.request.view));
        let made_up = made_up.into_iter().flatten().map(|ip| ip.to_string());
        service.addresses.iter().map(ToString::to_string).chain(made_up).filter_map(|n| block(&n)).collect()
    }

    fn finish(self) -> Vec<Listener> {
        let Self { request, env, slots, unknown, any, .. } = self;
        slots.into_iter().map(|(bind, slot)| finish(request, env, bind, slot, unknown.as_ref(), any)).collect()
    }
}

fn finish(
    request: Request<'_>,
    env: &ChainEnv<'_>,
    bind: Bind,
    slot: Slot,
    unknown: Option<&Name>,
    any: IpAddr,
) -> Listener {
    let detection = detection_timeout(request);
    let (name, address, wild) = match &bind {
        Bind::Ip(ip, port) => (listener_name(*ip, *port), Address::Socket((*ip, *port).into()), *ip == any),
        Bind::Unix(path) => (path.to_string(), Address::Pipe((&**path).into()), false),
    };
    let mut out = bare(&name, address, TrafficDirection::Outbound, detection);
    out.bind_to_port = slot.binds;
    out.transparent = slot.binds && request.view.interception == Interception::Tproxy;
    out.origin = Origin { config: slot.origin };
    // Behind a captured wildcard there may be anything: what is not HTTP passes as the policy says.
    let mixed = slot.http.is_some() && (slot.protocol.is_auto() || wild && !slot.binds);
    let mut chains = slot.tcp;
    if let Some(mut http) = slot.http {
        if mixed {
            http.matches.transport_protocol = "raw_buffer".into();
            http.matches.application_protocols = PLAINTEXT_HTTP_ALPN.map(Name::from).into();
        }
        chains.insert(0, http);
    }
    let names = chains.iter().any(|c| !c.matches.server_names.is_empty());
    if mixed || names {
        out.listener_filters.push(ListenerFilter::TlsInspector { disabled_ports: vec![] });
    }
    if mixed {
        out.listener_filters.push(ListenerFilter::HttpInspector { disabled_ports: vec![] });
        // A proxy that has found chains for cleartext looks at no others: what takes everything else is the last resort.
        if let Some(at) = chains.iter().position(|c| c.matches == FilterChainMatch::default()) {
            out.default_filter_chain = Some(chains.remove(at));
        }
    }
    let taken = out.default_filter_chain.is_some() || chains.iter().any(|c| c.matches == FilterChainMatch::default());
    if wild && !slot.binds && !taken {
        let other = env.unknown_destination(unknown);
        out.default_filter_chain = Some(chain("PassthroughFilterChain", FilterChainMatch::default(), other));
    }
    out.filter_chains = chains;
    out.access_log = env.listener_log();
    out
}

#[cfg(test)]
mod tests {
    use mesh_api::model::{HttpFilterKind, NetworkFilter};

    use super::{
        super::{
            filter_chain::Class,
            telemetry::{TelemetryPlan, objects},
            testing::World,
        },
        *,
    };

    const SERVICES: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec: {clusterIP: 10.1.0.1, ports: [{name: http, port: 80}, {name: tcp-db, port: 5000}, {name: odd, port: 7000}, {name: https, port: 443}]}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: api, namespace: shop}\nspec: {clusterIP: 10.1.0.2, ports: [{name: http, port: 80}]}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: sts, namespace: shop}\nspec: {clusterIP: None, selector: {app: sts}, ports: [{name: tcp, port: 6000}]}\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: sts-0, namespace: shop, labels: {app: sts}}\nspec: {}\nstatus: {podIP: 10.2.0.1, phase: Running, conditions: [{type: Ready, status: 'True'}]}\n---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: ext, namespace: shop}\nspec: {hosts: [ext.test, other.test], ports: [{number: 8443, name: tls, protocol: TLS}], resolution: DNS, location: MESH_EXTERNAL}\n";

    fn all(yaml: &str, explicit: bool) -> Vec<Listener> {
        let world = World::new(&format!("{SERVICES}{yaml}"));
        let view =
            if explicit { world.explicit("127.0.0.9", "shop", &[]) } else { world.sidecar("10.0.0.1", "shop", &[]) };
        all_of(&world, view)
    }

    fn all_of(world: &World, view: ProxyView) -> Vec<Listener> {
        let plan = TelemetryPlan::of(world.index(), &view, &objects(world.index(), &view));
        world.ask(&view, |r| {
            let env = ChainEnv {
                class: Class::Outbound,
                native: true,
                telemetry: &plan.client,
                mesh: r.index.mesh(),
                settings: &r.view.proxy_config,
                authentication: None,
                authorization: None,
                names: &crate::translate::dynamic_dns::caches(*r),
            };
            listeners(*r, &env)
        })
    }

    fn names(all: &[Listener]) -> Vec<&str> {
        all.iter().map(|l| &*l.name).collect()
    }

    fn get<'a>(all: &'a [Listener], name: &str) -> &'a Listener {
        all.iter().find(|l| *l.name == *name).unwrap_or_else(|| panic!("{name} is not in {:?}", names(all)))
    }

    fn routes(l: &Listener) -> Vec<String> {
        let filters = l.filter_chains.iter().flat_map(|c| &c.filters);
        filters
            .filter_map(|f| match f {
                NetworkFilter::Http(m) => match &m.routes {
                    RouteSource::Rds(name) => Some(name.to_string()),
                    RouteSource::Inline(_) => None,
                },
                NetworkFilter::TcpProxy(p) => Some(format!("{:?}", p.clusters)),
                _ => None,
            })
            .collect()
    }

    #[test]
    fn captured_traffic() {
        let all = all("", false);
        let mut found = names(&all);
        found.sort_unstable();
        assert_eq!(
            found,
            [
                "0.0.0.0_80",
                "0.0.0.0_8443",
                "10.1.0.1_443",
                "10.1.0.1_5000",
                "10.1.0.1_7000",
                "10.2.0.1_6000",
                "virtualOutbound"
            ]
        );
        let outbound = get(&all, "virtualOutbound");
        assert!(outbound.use_original_dst && outbound.bind_to_port);
        assert_eq!(outbound.filter_chains[0].matches.destination_port, Some(15001));
        let web = get(&all, "0.0.0.0_80");
        assert!(!web.bind_to_port);
        assert_eq!(routes(web), ["80"]);
        assert_eq!(&*web.filter_chains[0].matches.transport_protocol, "raw_buffer");
        assert!(web.default_filter_chain.is_some(), "what is not HTTP passes");
        assert_eq!(routes(get(&all, "10.1.0.1_5000")), ["[(\"outbound|5000||web.shop.svc.cluster.local\", 1)]"]);
        let odd = get(&all, "10.1.0.1_7000");
        assert_eq!(routes(odd), ["web.shop.svc.cluster.local:7000"]);
        assert_eq!(odd.listener_filters.len(), 2);
        let rest = odd.default_filter_chain.as_ref().and_then(|c| c.filters.last());
        assert!(matches!(rest, Some(NetworkFilter::TcpProxy(_))), "what is not HTTP goes to the service as well");
        let tls = get(&all, "0.0.0.0_8443");
        let sni: Vec<_> = tls.filter_chains.iter().map(|c| c.matches.server_names.join(",")).collect();
        assert_eq!(sni, ["ext.test", "other.test"]);
        assert!(get(&all, "10.1.0.1_443").filter_chains[0].matches.server_names.is_empty());
    }

    #[test]
    fn filters_in_order() {
        let all = all("", false);
        let NetworkFilter::Http(m) = &get(&all, "0.0.0.0_80").filter_chains[0].filters[0] else { panic!() };
        let kinds: Vec<&str> = m.filters.iter().map(|f| &*f.name).collect();
        assert_eq!(
            kinds,
            [
                "envoy.filters.http.peer_metadata",
                "envoy.filters.http.grpc_stats",
                "istio.alpn",
                "envoy.filters.http.stateful_session",
                "envoy.filters.http.fault",
                "envoy.filters.http.cors",
                "istio.stats",
                "envoy.filters.http.router"
            ]
        );
        assert!(matches!(m.filters.last().unwrap().kind, HttpFilterKind::Router(_)));
        assert_eq!(m.server_name, None);
    }

    #[test]
    fn virtual_services_route_tcp_and_tls() {
        let yaml = "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: db, namespace: shop}\nspec: {hosts: [web], tcp: [{match: [{port: 5000}], route: [{destination: {host: api}, weight: 80}, {destination: {host: web}, weight: 20}]}]}\n---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: tls, namespace: shop}\nspec: {hosts: [ext.test], tls: [{match: [{port: 8443, sniHosts: [ext.test]}], route: [{destination: {host: other.test}}]}]}\n";
        let all = all(yaml, false);
        assert_eq!(
            routes(get(&all, "10.1.0.1_5000")),
            [
                "[(\"outbound|80||api.shop.svc.cluster.local\", 80), (\"outbound|5000||web.shop.svc.cluster.local\", 20)]"
            ]
        );
        let tls = get(&all, "0.0.0.0_8443");
        assert_eq!(routes(tls)[0], "[(\"outbound|8443||other.test\", 1)]");
        assert!(tls.origin.config.ends_with("/virtual-service/tls"));
    }

    fn tunnel(l: &Listener) -> Option<(String, Option<String>)> {
        let filters = l.filter_chains.iter().flat_map(|c| &c.filters);
        filters.into_iter().find_map(|f| match f {
            NetworkFilter::TcpProxy(p) => {
                p.tunnel.as_ref().map(|t| (t.hostname.to_string(), t.post_path.as_deref().map(str::to_owned)))
            }
            _ => None,
        })
    }

    #[test]
    fn tunnels_are_the_rules_or_the_subsets_never_both() {
        let with = |routes: &str| {
            let rule = "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: api, namespace: shop}\nspec: {host: api, trafficPolicy: {tunnel: {targetHost: db.test, targetPort: 5432}}, subsets: [{name: bare, labels: {a: b}}, {name: own, labels: {a: b}, trafficPolicy: {tunnel: {protocol: POST, targetHost: '::1', targetPort: 1}}}]}\n";
            let routed = format!(
                "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: db, namespace: shop}}\nspec: {{hosts: [web], tcp: [{{match: [{{port: 5000}}], route: [{routes}]}}]}}\n"
            );
            tunnel(get(&all(&format!("{rule}{routed}"), false), "10.1.0.1_5000"))
        };
        let of_rule = Some(("db.test:5432".to_owned(), None));
        assert_eq!(with("{destination: {host: api}}"), of_rule);
        assert_eq!(with("{destination: {host: api, subset: bare}}"), None);
        let own = Some(("[::1]:1".to_owned(), Some("/".to_owned())));
        assert_eq!(with("{destination: {host: api, subset: own}}"), own);
        // Several destinations have one connection filter: the rule's.
        let several = "{destination: {host: api, subset: own}, weight: 1}, {destination: {host: web}, weight: 1}";
        assert_eq!(with(several), of_rule);
    }

    #[test]
    fn unknown_destinations_go_where_the_sidecar_says() {
        let with = |policy: &str| {
            let sidecar = format!(
                "---\napiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {{name: default, namespace: shop}}\nspec: {{egress: [{{hosts: ['./*']}}], outboundTrafficPolicy: {policy}}}\n"
            );
            routes(get(&all(&sidecar, false), VIRTUAL_OUTBOUND))
        };
        let ends = |cluster: &str| vec!["[(\"BlackHoleCluster\", 1)]".to_owned(), format!("[(\"{cluster}\", 1)]")];
        assert_eq!(with("{mode: ALLOW_ANY}"), ends("PassthroughCluster"));
        assert_eq!(with("{mode: REGISTRY_ONLY}"), ends("BlackHoleCluster"));
        let proxy = "{mode: ALLOW_ANY, egressProxy: {host: api, port: {number: 80}}}";
        assert_eq!(with(proxy), ends("outbound|80||api.shop.svc.cluster.local"));
    }

    #[test]
    fn hosts_without_an_address_have_one_where_dns_tells_it() {
        let yaml = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: db, namespace: shop}\nspec: {hosts: [one.test, two.test], ports: [{number: 5432, name: tls, protocol: TLS}], resolution: DNS, location: MESH_EXTERNAL}\n---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: tcp, namespace: shop}\nspec: {hosts: [tcp.test], ports: [{number: 5432, name: tcp, protocol: TCP}], resolution: DNS, location: MESH_EXTERNAL}\n---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: wild, namespace: shop}\nspec: {hosts: ['*.wild.test'], ports: [{number: 5432, name: tls, protocol: TLS}], resolution: DYNAMIC_DNS, location: MESH_EXTERNAL}\n";
        let world = World::new(yaml);
        let mut view = world.sidecar("10.0.0.1", "shop", &[]);
        let plain = all_of(&world, view.clone());
        assert_eq!(names(&plain), ["virtualOutbound", "0.0.0.0_5432"], "all at one address");
        let mut metadata = (*view.metadata).clone();
        metadata.dns_capture = true;
        view.metadata = metadata.into();
        let told = all_of(&world, view);
        let mut at: Vec<String> = Vec::new();
        for host in ["one.test", "two.test", "tcp.test", "*.wild.test"] {
            let key = crate::index::ServiceKey::new(host, "shop");
            at.push(listener_name(world.index().allocated(&key).unwrap().v4.into(), 5432));
        }
        let mut found = names(&told);
        found.retain(|n| *n != "virtualOutbound");
        assert_eq!(found.len(), 4, "{found:?}");
        assert!(at.iter().all(|n| found.contains(&n.as_str())), "{at:?} {found:?}");
        assert_eq!(routes(get(&told, &at[2])), ["[(\"outbound|5432||tcp.test\", 1)]"]);
        let server_names = |i: usize| get(&told, &at[i]).filter_chains[0].matches.server_names.len();
        assert_eq!((server_names(0), server_names(3)), (0, 1), "a pattern's hosts share its address");
    }

    #[test]
    fn without_interception_listeners_bind() {
        let yaml = "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata: {mesh: 'proxyHttpPort: 15002'}\n---\napiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {name: default, namespace: shop}\nspec: {egress: [{port: {number: 9080, protocol: HTTP, name: http}, bind: 127.0.0.9, captureMode: NONE, hosts: ['./*']}, {port: {number: 5000, protocol: TCP, name: tcp}, captureMode: NONE, hosts: ['./*']}]}\n";
        let all = all(yaml, true);
        assert_eq!(names(&all), ["127.0.0.9_9080", "127.0.0.9_5000", "127.0.0.9_15002"]);
        assert!(all.iter().all(|l| l.bind_to_port && l.default_filter_chain.is_none()));
        assert_eq!(routes(&all[0]), ["9080"]);
        assert_eq!(routes(&all[2]), ["http_proxy"]);
    }
}
