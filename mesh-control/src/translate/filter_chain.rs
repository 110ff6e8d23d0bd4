//! Chains of filters: what stands on an HTTP or TCP connection, in which order.
//!
//! Owns the HTTP manager's settings and the order of filters of each class of listener. Must not know which listener a
//! chain is for, nor where its routes lead.

use std::time::Duration;

use mesh_api::{
    meshconfig::{MeshConfig, PathNormalizationType, ProxySettings},
    model::{
        AccessLog, ClientCertDetails, DnsCache, EscapedSlashes, FilterChain, FilterChainMatch, ForwardClientCert,
        HttpFilter, HttpFilterKind, HttpManager, JwtAuthn, LogFilter, Metadata, Name, NetworkFilter, PeerMetadata,
        RouteSource, RouterFilter, ServerHeader, TcpProxy, Upgrade,
    },
    names::BLACK_HOLE_CLUSTER,
};

use super::{
    filter_names as names,
    policy::{Authorization, Guard},
    proxy_headers,
    telemetry::SideTelemetry,
};

/// What Istio's proxies call themselves to clients.
const SERVER_NAME: &str = "istio-envoy";
/// ALPN that the HTTP inspector reports of cleartext HTTP (HTTP/1.0 is not accepted).
pub const PLAINTEXT_HTTP_ALPN: [&str; 2] = ["http/1.1", "h2c"];

/// Which way a listener's traffic goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// To the application beside the proxy.
    Inbound,
    /// From it.
    Outbound,
    /// Through a gateway.
    Gateway,
}

/// What every chain of a proxy is built with.
#[derive(Debug, Clone, Copy)]
pub struct ChainEnv<'a> {
    /// Which way.
    pub class: Class,
    /// The proxy knows Istio's own filters.
    pub native: bool,
    /// What is recorded.
    pub telemetry: &'a SideTelemetry,
    /// Mesh-wide settings.
    pub mesh: &'a MeshConfig,
    /// Settings of the proxy.
    pub settings: &'a ProxySettings,
    /// Which tokens are accepted; `None`: nobody looks.
    pub authentication: Option<&'a JwtAuthn>,
    /// Who may do what; `None`: nothing is asked.
    pub authorization: Option<&'a Authorization>,
    /// Where hosts of requests are looked up whose cluster is found by name.
    pub names: &'a [DnsCache],
}

/// What differs between HTTP managers of a proxy.
#[derive(Debug)]
pub struct HttpSpec {
    /// Statistics prefix.
    pub stat_prefix: Name,
    /// Where routes come from.
    pub routes: RouteSource,
    /// gRPC-Web is translated.
    pub grpc_web: bool,
    /// The chain terminates TLS.
    pub tls: bool,
}

impl ChainEnv<'_> {
    /// The HTTP manager of a chain.
    pub fn http(&self, spec: HttpSpec) -> NetworkFilter {
        let mut out = HttpManager::new(spec.stat_prefix, spec.routes, self.http_filters(spec.grpc_web));
        // An answer may take as long as it likes; routes limit it.
        out.timeouts.stream_idle = Duration::ZERO;
        out.rds_fetch_timeout = Duration::ZERO;
        out.upgrades = vec![Upgrade { kind: "websocket".into(), enabled: true, terminate_connect: false }];
        out.access_log.clone_from(&self.telemetry.access_log);
        out.tracing.clone_from(&self.telemetry.tracing);
        self.normalize(&mut out);
        self.identity_headers(&mut out);
        NetworkFilter::Http(Box::new(out))
    }

    fn normalize(&self, out: &mut HttpManager) {
        use PathNormalizationType as P;
        let kind = self.mesh.path_normalization.as_ref().map_or(P::Default, |p| p.normalization);
        out.normalize_path = kind != P::None;
        out.merge_slashes = matches!(kind, P::MergeSlashes | P::DecodeAndMergeSlashes);
        if kind == P::DecodeAndMergeSlashes {
            out.escaped_slashes = EscapedSlashes::UnescapeAndForward;
        }
    }

    fn identity_headers(&self, out: &mut HttpManager) {
        let details = ClientCertDetails { subject: true, dns: true, uri: true, ..ClientCertDetails::default() };
        match self.class {
            Class::Outbound => {}
            Class::Inbound => {
                out.server_name = Some(SERVER_NAME.into());
                out.forward_client_cert = ForwardClientCert::AppendForward;
                out.client_cert_details = details;
            }
            Class::Gateway => {
                let topology =
                    self.settings.gateway_topology.as_ref().or(self.mesh.default_config.gateway_topology.as_ref());
                out.server_name = Some(SERVER_NAME.into());
                out.use_remote_address = true;
                out.xff_num_trusted_hops = topology.and_then(|t| t.num_trusted_proxies).unwrap_or(0);
                out.forward_client_cert = topology
                    .and_then(|t| client_cert_word(&t.forward_client_cert_details))
                    .unwrap_or(ForwardClientCert::SanitizeSet);
                out.client_cert_details = ClientCertDetails { cert: true, ..details };
            }
        }
        let Some(headers) = proxy_headers::of(self.settings, self.mesh) else { return };
        if let Some(server) = &headers.server {
            if server.disabled == Some(true) {
                out.server_header = ServerHeader::PassThrough;
            } else if !server.value.is_empty() {
                out.server_name = Some(server.value.as_str().into());
            }
        }
        let off = proxy_headers::off;
        out.generate_request_id = !off(headers.request_id.as_ref()) && !off(headers.generate_request_id.as_ref());
        out.append_x_forwarded_port = proxy_headers::on(headers.x_forwarded_port.as_ref());
        if self.class == Class::Inbound {
            if let Some(word) = client_cert_word(&headers.forwarded_client_cert) {
                out.forward_client_cert = word;
            }
            out.client_cert_details = proxy_headers::client_cert_details(headers, out.client_cert_details);
        }
    }

    /// Istio's order: who the peer is, whose the token, whether they may, then faults, CORS, statistics, the router.
    fn http_filters(&self, grpc_web: bool) -> Vec<HttpFilter> {
        let named = |name: &str, kind| HttpFilter { name: name.into(), kind, disabled: false };
        let mut out = Vec::new();
        if self.native {
            let inbound = self.class == Class::Inbound;
            let kind = HttpFilterKind::PeerMetadata(PeerMetadata {
                downstream_discovery: inbound,
                downstream_propagation: inbound,
                upstream_discovery: !inbound,
                upstream_propagation: !inbound,
                skip_external: !inbound,
            });
            out.push(named(names::PEER_METADATA, kind));
        }
        let (mut rbacs, mut asks) = (0, 0);
        // The names of filters are keys: only the first may have the usual one.
        let numbered = |name: &str, count: &mut u32| -> Name {
            *count += 1;
            if *count == 1 { name.into() } else { format!("{name}.{count}").into() }
        };
        for guard in self.authorization.map_or(&[][..], |a| a.custom_http.as_slice()) {
            out.push(match guard {
                Guard::Rbac(filter) => HttpFilter {
                    name: numbered(names::HTTP_RBAC, &mut rbacs),
                    kind: HttpFilterKind::Rbac(filter.clone()),
                    disabled: false,
                },
                Guard::Ask(filter) => HttpFilter {
                    name: numbered(names::EXT_AUTHZ, &mut asks),
                    kind: HttpFilterKind::ExtAuthz(filter.clone()),
                    disabled: false,
                },
            });
        }
        if let Some(tokens) = self.authentication {
            out.push(named(names::JWT_AUTHN, HttpFilterKind::JwtAuthn(Box::new(tokens.clone()))));
        }
        for filter in self.authorization.map_or(&[][..], |a| a.http.as_slice()) {
            let name = numbered(names::HTTP_RBAC, &mut rbacs);
            out.push(HttpFilter { name, kind: HttpFilterKind::Rbac(filter.clone()), disabled: false });
        }
        if grpc_web {
            out.push(named(names::GRPC_WEB, HttpFilterKind::GrpcWeb));
        }
        out.push(named(names::GRPC_STATS, HttpFilterKind::GrpcStats { emit_filter_state: true }));
        if self.native && self.class != Class::Inbound {
            out.push(named(names::ALPN, HttpFilterKind::IstioAlpn));
        }
        if self.class != Class::Inbound {
            // Routes say which sessions there are.
            out.push(named(names::SESSION, HttpFilterKind::StatefulSession(None)));
        }
        out.push(named(names::FAULT, HttpFilterKind::Fault(Default::default())));
        out.push(named(names::CORS, HttpFilterKind::Cors));
        if self.native {
            out.push(named(names::STATS, HttpFilterKind::IstioStats(self.telemetry.stats.clone())));
        }
        for (i, cache) in self.names.iter().enumerate() {
            let name = names::DYNAMIC_FORWARD_PROXY;
            let name = if i == 0 { name.to_owned() } else { format!("{name}.{}", i + 1) };
            out.push(named(&name, HttpFilterKind::DynamicForwardProxy(Box::new(cache.clone()))));
        }
        let headers = proxy_headers::of(self.settings, self.mesh);
        let silent = proxy_headers::off(headers.and_then(|h| h.envoy_debug_headers.as_ref()));
        let router = RouterFilter { suppress_envoy_headers: silent };
        out.push(named(names::ROUTER, HttpFilterKind::Router(router)));
        out
    }

    /// Filters of a TCP chain that ends in `proxy`.
    pub fn tcp(&self, mut proxy: TcpProxy) -> Vec<NetworkFilter> {
        proxy.access_log.clone_from(&self.telemetry.access_log);
        let custom = self.authorization.map_or(&[][..], |a| a.custom_tcp.as_slice());
        let mut out: Vec<NetworkFilter> = custom
            .iter()
            .map(|guard| match guard {
                Guard::Rbac(filter) => NetworkFilter::Rbac(filter.clone()),
                Guard::Ask(filter) => NetworkFilter::ExtAuthz(filter.clone()),
            })
            .collect();
        let rbac = self.authorization.map_or(&[][..], |a| a.tcp.as_slice());
        out.extend(rbac.iter().cloned().map(NetworkFilter::Rbac));
        if self.native {
            out.push(NetworkFilter::IstioStats(self.telemetry.stats.clone()));
        }
        out.push(NetworkFilter::TcpProxy(Box::new(proxy)));
        out
    }

    /// Where connections to unknown destinations end; `None`: nowhere.
    pub fn unknown_destination(&self, cluster: Option<&Name>) -> Vec<NetworkFilter> {
        let cluster = cluster.cloned().unwrap_or_else(|| BLACK_HOLE_CLUSTER.into());
        self.tcp(TcpProxy::to(cluster.clone(), cluster))
    }

    /// Logs of the listener itself: connections that no chain fits.
    pub fn listener_log(&self) -> Vec<AccessLog> {
        if self.mesh.disable_envoy_listener_log {
            return vec![];
        }
        let no_route = || LogFilter::ResponseFlag(vec!["NR".into()]);
        let filtered = |log: &AccessLog| AccessLog {
            sink: log.sink.clone(),
            filter: Some(match &log.filter {
                Some(own) => LogFilter::And(vec![no_route(), own.clone()]),
                None => no_route(),
            }),
        };
        self.telemetry.access_log.iter().map(filtered).collect()
    }
}

fn client_cert_word(word: &str) -> Option<ForwardClientCert> {
    match word {
        "SANITIZE" => Some(ForwardClientCert::Sanitize),
        "FORWARD_ONLY" => Some(ForwardClientCert::ForwardOnly),
        "APPEND_FORWARD" => Some(ForwardClientCert::AppendForward),
        "SANITIZE_SET" => Some(ForwardClientCert::SanitizeSet),
        "ALWAYS_FORWARD_ONLY" => Some(ForwardClientCert::AlwaysForwardOnly),
        _ => None,
    }
}

/// A cleartext chain.
pub fn chain(name: impl Into<Name>, matches: FilterChainMatch, filters: Vec<NetworkFilter>) -> FilterChain {
    FilterChain {
        name: name.into(),
        matches,
        tls: None,
        transport_socket_connect_timeout: Duration::ZERO,
        filters,
        metadata: Metadata::new(),
    }
}
