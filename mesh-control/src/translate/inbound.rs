//! Listeners towards the application: `virtualInbound`, and those that a Sidecar's ingress binds.
//!
//! Owns which connections a port takes (mutual TLS, cleartext, HTTP or not) by PeerAuthentication, and ports nobody
//! declared. Must not know clusters.

use std::{collections::BTreeMap, net::IpAddr};

use mesh_api::{
    crd::networking::{CaptureMode, ServerTls},
    model::{
        Action, Address, CertificateSource, CommonTls, DownstreamTls, FilterChain, FilterChainMatch, Forward,
        HeaderOps, Listener, ListenerFilter, Metadata, Name, Origin, PortRanges, Route, RouteConfig, RouteMatch,
        RouteSource, SanKind, SanMatcher, StringMatcher, TcpProxy, TlsVersion, TrafficDirection, Validation,
        ValidationContext, VirtualHost,
    },
    names::{BLACK_HOLE_CLUSTER, ClusterName, INBOUND_PASSTHROUGH_V4, VIRTUAL_INBOUND},
};

use super::{
    filter_chain::{ChainEnv, HttpSpec, PLAINTEXT_HTTP_ALPN, chain},
    outbound::{bare, detection_timeout, listener_name, wildcard},
    rule_parts, server_tls,
    tls::{MESH_ROOTS, WORKLOAD_CERTIFICATE, local_secret},
    translator::Request,
};
use crate::{
    index::{Index, Mtls, PeerAuthn, Protocol},
    view::Interception,
};

/// Port to which inbound connections are redirected.
const INBOUND_PORT: u16 = 15006;
/// Every ALPN by which meshed clients are known.
const MESH_ALPN: [&str; 5] = ["istio-peer-exchange", "istio", "istio-http/1.0", "istio-http/1.1", "istio-h2"];
/// Those that promise HTTP.
const MESH_HTTP_ALPN: [&str; 3] = ["istio-http/1.0", "istio-http/1.1", "istio-h2"];
/// What they say when they do not know what is spoken.
const MESH_TCP_ALPN: [&str; 2] = ["istio-peer-exchange", "istio"];

/// A port of the workload.
struct Inbound<'a> {
    /// Port of the workload, in names of clusters.
    number: u16,
    /// Port of the service, for span names.
    service_port: u16,
    /// Host of the service, for span names.
    host: Name,
    protocol: Protocol,
    /// Cluster behind it.
    cluster: Name,
    /// TLS of its own, where mutual TLS is off.
    tls: Option<&'a ServerTls>,
}

/// All inbound listeners of a sidecar.
pub fn listeners(request: Request<'_>, env: &ChainEnv<'_>, authn: &PeerAuthn) -> Vec<Listener> {
    let view = request.view;
    let builder = Builder { request, env, authn };
    let mut bound = Vec::new();
    let mut captured: BTreeMap<u16, Inbound<'_>> = BTreeMap::new();
    let ingress = request.scope.ingress();
    for listener in ingress {
        let number = listener.port.number;
        let target = view.targets.iter().find(|t| t.target_port == number);
        let port = Inbound {
            number,
            service_port: target.map_or(number, |t| t.port.port),
            host: target.map_or_else(|| "inbound".into(), |t| t.service.key.host.clone()),
            protocol: Protocol::parse(&listener.port.protocol),
            cluster: ClusterName::inbound(number).to_string().into(),
            tls: listener.tls.as_ref(),
        };
        let binds = match listener.capture_mode {
            CaptureMode::None => true,
            CaptureMode::Iptables => false,
            CaptureMode::Default => view.interception == Interception::None,
        };
        if binds {
            let bind = listener.bind.parse().ok().or_else(|| view.ips.first().copied());
            bound.push(builder.bound(&port, bind.unwrap_or_else(|| wildcard(view))));
        } else {
            captured.entry(number).or_insert(port);
        }
    }
    // Without interception listeners would take the application's own ports.
    if view.interception == Interception::None {
        return bound;
    }
    if ingress.is_empty() {
        for target in view.targets.iter().filter(|t| t.port.protocol != Protocol::Udp) {
            captured.entry(target.target_port).or_insert_with(|| Inbound {
                number: target.target_port,
                service_port: target.port.port,
                host: target.service.key.host.clone(),
                protocol: target.port.protocol,
                cluster: ClusterName::inbound(target.target_port).to_string().into(),
                tls: None,
            });
        }
    }
    let mut out = vec![builder.virtual_inbound(&captured)];
    out.extend(bound);
    out
}

/// Mutual TLS as the mesh speaks it: any workload of the mesh's trust domains.
pub fn mesh_tls(index: &Index, protocol: Protocol) -> DownstreamTls {
    let domains = std::iter::once(index.trust_domain())
        .chain(index.mesh().trust_domain_aliases.iter().map(String::as_str))
        .map(|d| SanMatcher { kind: SanKind::Uri, matcher: StringMatcher::prefix(format!("spiffe://{d}/")) });
    let alpn: &[&str] =
        if protocol.is_http() { &["h2", "http/1.1"] } else { &["istio-peer-exchange", "h2", "http/1.1"] };
    DownstreamTls {
        common: CommonTls {
            certificates: vec![CertificateSource::Sds(local_secret(WORKLOAD_CERTIFICATE))],
            validation: Some(Validation {
                inline: Some(ValidationContext { san_matchers: domains.collect(), ..ValidationContext::default() }),
                sds: Some(local_secret(MESH_ROOTS)),
            }),
            alpn: alpn.iter().map(|a| (*a).into()).collect(),
            min_version: Some(TlsVersion::V1_3),
            max_version: Some(TlsVersion::V1_3),
            ..CommonTls::default()
        },
        require_client_certificate: true,
    }
}

/// One way of connecting to a port.
struct Way {
    /// Ending of the chain's name.
    name: &'static str,
    /// `tls` or `raw_buffer`; empty: any.
    transport: &'static str,
    alpn: &'static [&'static str],
    /// The proxy terminates mutual TLS.
    mtls: bool,
    http: bool,
}

/// The ways that a mode leaves open. What fits none is closed.
///
/// The chains of sidecars are the same in STRICT and PERMISSIVE, so that a proxy keeps their connections when a mesh is
/// switched; STRICT takes other clients that present a certificate (scrapers, say) by chains of their own.
fn ways(mode: Mtls, protocol: Protocol) -> Vec<Way> {
    let way = |name, transport, alpn, mtls, http| Way { name, transport, alpn, mtls, http };
    let (http, auto) = (protocol.is_http(), protocol.is_auto());
    match mode {
        Mtls::Strict if auto => vec![
            way("-mtls", "tls", &MESH_HTTP_ALPN, true, true),
            way("-mtls-tcp", "tls", &MESH_TCP_ALPN, true, false),
            way("-mtls-any", "tls", &[], true, false),
        ],
        Mtls::Strict => vec![way("-mtls", "tls", &MESH_ALPN, true, http), way("-mtls-any", "tls", &[], true, http)],
        Mtls::Permissive if auto => vec![
            way("-mtls", "tls", &MESH_HTTP_ALPN, true, true),
            way("", "raw_buffer", &PLAINTEXT_HTTP_ALPN, false, true),
            way("-mtls-tcp", "tls", &MESH_TCP_ALPN, true, false),
            way("-tcp", "raw_buffer", &[], false, false),
            way("-tls", "tls", &[], false, false),
        ],
        Mtls::Permissive if http => {
            vec![way("-mtls", "tls", &MESH_ALPN, true, true), way("", "raw_buffer", &[], false, true)]
        }
        Mtls::Permissive => vec![
            way("-mtls", "tls", &MESH_ALPN, true, false),
            way("-tls", "tls", &[], false, false),
            way("", "raw_buffer", &[], false, false),
        ],
        Mtls::Disable if auto => {
            vec![way("", "raw_buffer", &PLAINTEXT_HTTP_ALPN, false, true), way("-tcp", "", &[], false, false)]
        }
        Mtls::Disable => vec![way("", "", &[], false, http)],
    }
}

struct Builder<'a, 'e> {
    request: Request<'a>,
    env: &'e ChainEnv<'e>,
    authn: &'e PeerAuthn,
}

impl Builder<'_, '_> {
    /// Receives what redirection captured.
    fn virtual_inbound(&self, ports: &BTreeMap<u16, Inbound<'_>>) -> Listener {
        let Request { index, view, .. } = self.request;
        let own = index.mesh().proxy_inbound_listen_port.unwrap_or(INBOUND_PORT);
        let address = |ip: IpAddr| Address::Socket((ip, own).into());
        let detection = detection_timeout(self.request);
        let mut out = bare(VIRTUAL_INBOUND, address(wildcard(view)), TrafficDirection::Inbound, detection);
        if view.families().v4 && view.families().v6 {
            out.additional_addresses.push(address(std::net::Ipv6Addr::UNSPECIFIED.into()));
        }
        out.transparent = view.interception == Interception::Tproxy;
        let dead_end = FilterChainMatch { destination_port: Some(own), ..FilterChainMatch::default() };
        let refuse = self.env.tcp(TcpProxy::to(BLACK_HOLE_CLUSTER, BLACK_HOLE_CLUSTER));
        out.filter_chains = vec![chain("virtualInbound-blackhole", dead_end, refuse)];
        for port in ports.values() {
            out.filter_chains.extend(self.chains(port, Some(port.number), self.authn.port(port.number)));
        }
        // Ports nobody declared, those with a mode of their own first.
        let special = self.authn.ports.iter().filter(|(p, _)| !ports.contains_key(p));
        for (number, mode) in special {
            out.filter_chains.extend(self.chains(&undeclared(*number), Some(*number), *mode));
        }
        out.filter_chains.extend(self.chains(&undeclared(0), None, self.authn.mode));
        let inspected: BTreeMap<u16, (bool, bool)> = ports
            .values()
            .map(|p| {
                (p.number, (self.authn.port(p.number) != Mtls::Disable || p.protocol.is_auto(), p.protocol.is_auto()))
            })
            .collect();
        out.listener_filters = vec![
            ListenerFilter::OriginalDst,
            ListenerFilter::TlsInspector { disabled_ports: without(&inspected, |i| i.0) },
            ListenerFilter::HttpInspector { disabled_ports: without(&inspected, |i| i.1) },
        ];
        out.access_log = self.env.listener_log();
        out
    }

    /// A listener of its own.
    fn bound(&self, port: &Inbound<'_>, bind: IpAddr) -> Listener {
        let name = listener_name(bind, port.number);
        let address = Address::Socket((bind, port.number).into());
        let mut out = bare(&name, address, TrafficDirection::Inbound, detection_timeout(self.request));
        out.filter_chains = self.chains(port, None, self.authn.port(port.number));
        let uses = |f: fn(&FilterChainMatch) -> bool| out.filter_chains.iter().any(|c| f(&c.matches));
        let (tls, http) = (
            uses(|m| m.transport_protocol.as_ref() != ""),
            uses(|m| m.transport_protocol.as_ref() == "raw_buffer" && !m.application_protocols.is_empty()),
        );
        if tls {
            out.listener_filters.push(ListenerFilter::TlsInspector { disabled_ports: vec![] });
        }
        if http {
            out.listener_filters.push(ListenerFilter::HttpInspector { disabled_ports: vec![] });
        }
        if let Some(key) = self.request.scope.sidecar_key() {
            out.origin = Origin { config: key.config_path().into() };
        }
        out.access_log = self.env.listener_log();
        out
    }

    fn chains(&self, port: &Inbound<'_>, destination: Option<u16>, mode: Mtls) -> Vec<FilterChain> {
        let base = match (destination, port.number) {
            (_, 0) => "virtualInbound-catchall".to_owned(),
            (_, number) => listener_name(wildcard(self.request.view), number),
        };
        // A Sidecar may terminate TLS by itself where the mesh does not.
        let own = port.tls.filter(|_| mode == Mtls::Disable);
        let own = own.and_then(|tls| server_tls::context(tls, self.request.index.mesh().tls_defaults.as_ref()));
        let ways = match &own {
            Some(_) => {
                vec![Way { name: "-tls", transport: "tls", alpn: &[], mtls: false, http: port.protocol.is_http() }]
            }
            None => ways(mode, port.protocol),
        };
        ways.into_iter()
            .map(|way| {
                let matches = FilterChainMatch {
                    destination_port: destination,
                    transport_protocol: way.transport.into(),
                    application_protocols: way.alpn.iter().map(|a| Name::from(*a)).collect(),
                    ..FilterChainMatch::default()
                };
                let filters = if way.http {
                    vec![self.env.http(HttpSpec {
                        stat_prefix: format!("inbound_{base}").into(),
                        routes: RouteSource::Inline(Box::new(self.routes(port))),
                        grpc_web: port.protocol == Protocol::GrpcWeb,
                        tls: way.mtls || own.is_some(),
                    })]
                } else {
                    self.env.tcp(TcpProxy::to(port.cluster.clone(), port.cluster.clone()))
                };
                let mut out = chain(format!("{base}{}", way.name), matches, filters);
                out.tls = if way.mtls {
                    let protocol = if way.http { Protocol::Http } else { Protocol::Tcp };
                    Some(mesh_tls(self.request.index, protocol))
                } else {
                    own.clone()
                };
                out
            })
            .collect()
    }

    /// Everything goes to the application.
    fn routes(&self, port: &Inbound<'_>) -> RouteConfig {
        let mut forward = Forward::to(port.cluster.clone());
        forward.timeout = Some(rule_parts::timeout(None));
        forward.grpc_timeout_max = forward.timeout;
        let policy = self.request.index.mesh().default_inbound_http_retry_policy.as_ref();
        forward.retry = rule_parts::inbound_retry(policy);
        let route = Route {
            name: "default".into(),
            matches: RouteMatch::any(),
            action: Action::Forward(Box::new(forward)),
            headers: HeaderOps::default(),
            filter_overrides: vec![],
            operation: format!("{}:{}/*", port.host, port.service_port).into(),
            stat_prefix: "".into(),
            origin: Origin::default(),
            metadata: Metadata::new(),
        };
        let host = VirtualHost {
            name: format!("inbound|http|{}", port.service_port).into(),
            domains: vec!["*".into()],
            routes: vec![route],
            ..VirtualHost::default()
        };
        RouteConfig { name: port.cluster.clone(), virtual_hosts: vec![host], ..RouteConfig::default() }
    }
}

/// A port that no service declares; 0: any.
fn undeclared(number: u16) -> Inbound<'static> {
    Inbound {
        number,
        service_port: number,
        host: INBOUND_PASSTHROUGH_V4.into(),
        protocol: Protocol::Auto,
        cluster: INBOUND_PASSTHROUGH_V4.into(),
        tls: None,
    }
}

/// Ports that need no inspection, as ranges.
fn without(ports: &BTreeMap<u16, (bool, bool)>, needs: impl Fn(&(bool, bool)) -> bool) -> PortRanges {
    let mut out: PortRanges = Vec::new();
    for (port, _) in ports.iter().filter(|(_, i)| !needs(i)) {
        match out.last_mut() {
            Some((_, end)) if u32::from(*end) + 1 == u32::from(*port) => *end = *port,
            _ => out.push((*port, *port)),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_ports() {
        let ports = [(80, false), (81, false), (83, true), (84, false)];
        let ports = ports.map(|(p, needs)| (p, (needs, needs))).into();
        assert_eq!(without(&ports, |i| i.0), [(80, 81), (84, 84)]);
    }

    #[test]
    fn strict_leaves_no_way_in_cleartext() {
        for protocol in [Protocol::Http, Protocol::Tcp, Protocol::Auto, Protocol::Grpc] {
            assert!(ways(Mtls::Strict, protocol).iter().all(|w| w.mtls && w.transport == "tls"));
            assert!(ways(Mtls::Disable, protocol).iter().all(|w| !w.mtls));
            assert!(ways(Mtls::Permissive, protocol).iter().any(|w| w.mtls));
            // A switch between the two touches no connection of a sidecar.
            let strict = ways(Mtls::Strict, protocol);
            for way in ways(Mtls::Permissive, protocol).iter().filter(|w| w.mtls) {
                let same =
                    |w: &&Way| (w.name, w.transport, w.alpn, w.http) == (way.name, way.transport, way.alpn, way.http);
                assert!(strict.iter().any(|w| same(&w)), "{} of {protocol:?}", way.name);
            }
            assert!(strict.iter().any(|w| w.alpn.is_empty()), "clients with a certificate that are no sidecars");
        }
    }

    use mesh_api::model::{HttpFilterKind, NetworkFilter};

    use super::super::{
        filter_chain::Class,
        policy::{Authorization, Subject},
        telemetry::{TelemetryPlan, objects},
        testing::World,
    };
    use crate::view::ProxyView;

    const WORLD: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec: {clusterIP: 10.1.0.1, selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}, {name: tcp, port: 5000}, {port: 7000}]}\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: web-1, namespace: shop, labels: {app: web}}\nspec: {}\nstatus: {podIP: 10.0.0.1, phase: Running, conditions: [{type: Ready, status: 'True'}]}\n";

    fn all(yaml: &str, view: impl FnOnce(&World) -> ProxyView) -> Vec<Listener> {
        all_for(yaml, view, true)
    }

    fn all_for(yaml: &str, view: impl FnOnce(&World) -> ProxyView, native: bool) -> Vec<Listener> {
        let world = World::new(&format!("{WORLD}{yaml}"));
        let view = view(&world);
        let plan = TelemetryPlan::of(world.index(), &view, &objects(world.index(), &view));
        let subject = Subject {
            namespace: &view.namespace,
            labels: &view.labels,
            gateway: None,
            side: mesh_api::crd::telemetry::WorkloadMode::Server,
        };
        let authorization = Authorization::of(world.index(), subject);
        let authn = world.index().peer_authn(&view.namespace, &view.labels);
        world.ask(&view, |r| {
            let env = ChainEnv {
                class: Class::Inbound,
                native,
                telemetry: &plan.server,
                mesh: r.index.mesh(),
                settings: &r.view.proxy_config,
                authentication: None,
                authorization: Some(&authorization),
                names: &[],
            };
            listeners(*r, &env, &authn)
        })
    }

    /// Port, transport, first ALPN, TLS, HTTP or the cluster.
    fn shape(l: &Listener) -> Vec<String> {
        l.filter_chains
            .iter()
            .map(|c| {
                let m = &c.matches;
                let end = match c.filters.last().unwrap() {
                    NetworkFilter::Http(_) => "http",
                    _ => "tcp",
                };
                let port = m.destination_port.map_or_else(|| "*".to_owned(), |p| p.to_string());
                let alpn = m.application_protocols.first().map_or("-", |a| &**a);
                let tls = if c.tls.is_some() { "mtls" } else { "plain" };
                format!("{port} {} {alpn} {tls} {end}", m.transport_protocol)
            })
            .collect()
    }

    fn captured(w: &World) -> ProxyView {
        w.sidecar("10.0.0.1", "shop", &[])
    }

    #[test]
    fn permissive_takes_both() {
        let all = all("", captured);
        assert_eq!(all.len(), 1);
        assert_eq!(
            shape(&all[0]),
            [
                "15006  - plain tcp",
                "5000 tls istio-peer-exchange mtls tcp",
                "5000 tls - plain tcp",
                "5000 raw_buffer - plain tcp",
                "7000 tls istio-http/1.0 mtls http",
                "7000 raw_buffer http/1.1 plain http",
                "7000 tls istio-peer-exchange mtls tcp",
                "7000 raw_buffer - plain tcp",
                "7000 tls - plain tcp",
                "8080 tls istio-peer-exchange mtls http",
                "8080 raw_buffer - plain http",
                "* tls istio-http/1.0 mtls http",
                "* raw_buffer http/1.1 plain http",
                "* tls istio-peer-exchange mtls tcp",
                "* raw_buffer - plain tcp",
                "* tls - plain tcp",
            ]
        );
        assert_eq!(
            all[0].listener_filters,
            [
                ListenerFilter::OriginalDst,
                ListenerFilter::TlsInspector { disabled_ports: vec![] },
                ListenerFilter::HttpInspector { disabled_ports: vec![(5000, 5000), (8080, 8080)] },
            ]
        );
        let names: std::collections::HashSet<_> = all[0].filter_chains.iter().map(|c| &c.name).collect();
        assert_eq!(names.len(), all[0].filter_chains.len(), "names of chains are unique");
    }

    #[test]
    fn strict_with_an_open_port() {
        let yaml = "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: default, namespace: istio-system}\nspec: {mtls: {mode: STRICT}}\n---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: web, namespace: shop}\nspec: {selector: {matchLabels: {app: web}}, mtls: {mode: STRICT}, portLevelMtls: {5000: {mode: DISABLE}, 9999: {mode: PERMISSIVE}}}\n";
        let all = all(yaml, captured);
        let shape = shape(&all[0]);
        assert!(shape.contains(&"5000  - plain tcp".to_owned()));
        assert!(shape.contains(&"8080 tls - mtls http".to_owned()));
        assert!(shape.iter().any(|s| s.starts_with("9999 raw_buffer")), "a mode for an undeclared port");
        assert!(!shape.iter().any(|s| s.starts_with("* raw_buffer") || s.starts_with("8080 raw_buffer")));
    }

    #[test]
    fn ingress_listeners_bind_where_nothing_is_redirected() {
        let yaml = "---\napiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {name: web, namespace: shop}\nspec: {ingress: [{port: {number: 8080, protocol: HTTP, name: http}, bind: 127.0.0.7, captureMode: NONE, defaultEndpoint: '127.0.0.1:18080'}, {port: {number: 9000, protocol: TCP, name: tcp}, defaultEndpoint: '127.0.0.1:19000'}], egress: [{hosts: ['./*']}]}\n";
        let all = all(yaml, |w| w.explicit("10.0.0.1", "shop", &[]));
        let names: Vec<&str> = all.iter().map(|l| &*l.name).collect();
        assert_eq!(names, ["127.0.0.7_8080", "10.0.0.1_9000"]);
        assert!(all.iter().all(|l| l.bind_to_port));
        assert_eq!(shape(&all[0]), ["* tls istio-peer-exchange mtls http", "* raw_buffer - plain http"]);
        let NetworkFilter::Http(m) = &all[0].filter_chains[0].filters[0] else { panic!() };
        let RouteSource::Inline(routes) = &m.routes else { panic!() };
        assert_eq!(&*routes.name, "inbound|8080||");
        assert_eq!(&*routes.virtual_hosts[0].routes[0].operation, "web.shop.svc.cluster.local:80/*");
        let none = super::tests::all("", |w| w.explicit("10.0.0.1", "shop", &[]));
        assert!(none.is_empty(), "without ingress the application keeps its ports");
    }

    #[test]
    fn grpc_web_is_translated() {
        let yaml = "---\napiVersion: v1\nkind: Service\nmetadata: {name: api, namespace: shop}\nspec: {clusterIP: 10.1.0.2, selector: {app: web}, ports: [{name: grpc-web, port: 81, targetPort: 8081}]}\n";
        for native in [true, false] {
            let all = all_for(yaml, captured, native);
            let chain = all[0].filter_chains.iter().find(|c| &*c.name == "0.0.0.0_8081").unwrap();
            let NetworkFilter::Http(m) = &chain.filters[0] else { panic!() };
            assert!(m.filters.iter().any(|f| f.kind == HttpFilterKind::GrpcWeb), "native: {native}");
        }
    }

    #[test]
    fn policies_stand_on_http_and_tcp() {
        let yaml = "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: shop}\nspec: {action: DENY, rules: [{to: [{operation: {paths: [/admin]}}]}]}\n";
        let all = all(yaml, captured);
        let tcp = all[0].filter_chains.iter().find(|c| &*c.name == "0.0.0.0_5000").unwrap();
        assert!(matches!(tcp.filters[0], NetworkFilter::Rbac(_)));
        let http = all[0].filter_chains.iter().find(|c| &*c.name == "0.0.0.0_8080").unwrap();
        let NetworkFilter::Http(m) = &http.filters[0] else { panic!() };
        let names: Vec<&str> = m.filters.iter().map(|f| &*f.name).take(2).collect();
        assert_eq!(names, ["envoy.filters.http.peer_metadata", "envoy.filters.http.rbac"]);
    }
}
