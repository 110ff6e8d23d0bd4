//! Which time series an exchange belongs to: a small key that is cheap to make, and the 25 labels it stands for, which
//! are written out once a series.

use std::fmt::Write as _;
use std::sync::Arc;

use mesh_api::model::{Name, TrafficDirection};
use mesh_api::names::ClusterName;
use xxhash_rust::xxh3::xxh3_128;

use super::peer::{SharedWorkload, Workload};
use crate::config::snapshot::Node;
use crate::http::local_reply::ResponseFlags;
use crate::http::stats::ExchangeStats;
use crate::net::ConnInfo;
use crate::tls::PeerInfo;
use crate::upstream::{Cluster, Endpoint};

/// Our end of the requests of one listener direction.
#[derive(Debug)]
pub struct Reporter {
    /// We are the destination.
    pub destination: bool,
    /// Who we are.
    pub own: SharedWorkload,
}

impl Reporter {
    /// For the listeners of one direction; a gateway's listeners (no direction, or outbound) report as source.
    pub fn new(node: &Node, direction: TrafficDirection) -> Arc<Self> {
        let destination = direction == TrafficDirection::Inbound;
        Arc::new(Self { destination, own: Arc::new(Workload::of_node(node)) })
    }
}

/// What tells series apart. Names are shared, headers are hashed: making one allocates nothing.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    destination: bool,
    /// Hash of what is known of the other end's workload; 0: nothing.
    peer: u128,
    cluster: Option<Name>,
    own_principal: Option<Name>,
    peer_principal: Option<Name>,
    protocol: Protocol,
    mtls: bool,
    code: u16,
    flags: u32,
    grpc_status: Option<u32>,
}

/// `request_protocol`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// HTTP.
    Http,
    /// gRPC.
    Grpc,
    /// Anything else.
    Tcp,
}

/// What a series is made of.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// Our end.
    pub reporter: &'a Reporter,
    /// Value of `x-envoy-peer-metadata` of the other end.
    pub peer_header: Option<&'a [u8]>,
    /// Chosen endpoint.
    pub endpoint: Option<&'a Endpoint>,
    /// Chosen cluster's name.
    pub cluster_name: Option<&'a Name>,
    /// Chosen cluster.
    pub cluster: Option<&'a Cluster>,
    /// TLS towards the other end.
    pub tls: Option<&'a PeerInfo>,
    /// Protocol.
    pub protocol: Protocol,
    /// Status; 0 for TCP.
    pub code: u16,
    /// Flags.
    pub flags: ResponseFlags,
    /// gRPC status.
    pub grpc_status: Option<u32>,
}

impl<'a> Facts<'a> {
    /// Of a finished exchange.
    pub fn of_http(reporter: &'a Reporter, stats: &'a ExchangeStats) -> Self {
        let peer = if reporter.destination { &stats.downstream_peer } else { &stats.upstream_peer };
        let upstream_tls = stats.upstream.as_deref().and_then(|u| u.tls.as_ref());
        Self {
            reporter,
            peer_header: peer.metadata.as_ref().map(http::HeaderValue::as_bytes),
            endpoint: stats.endpoint.as_deref(),
            cluster_name: stats.cluster_name.as_ref(),
            cluster: stats.cluster.as_deref(),
            tls: if reporter.destination { stats.conn.tls.as_ref() } else { upstream_tls },
            protocol: if stats.grpc { Protocol::Grpc } else { Protocol::Http },
            code: stats.status,
            flags: stats.flags,
            grpc_status: if stats.grpc { stats.grpc_status } else { None },
        }
    }

    /// Of a forwarded connection.
    pub fn of_tcp(
        reporter: &'a Reporter,
        conn: &'a ConnInfo,
        upstream_tls: Option<&'a PeerInfo>,
        cluster: (Option<&'a Name>, Option<&'a Cluster>),
        endpoint: Option<&'a Endpoint>,
        flags: ResponseFlags,
    ) -> Self {
        Self {
            reporter,
            peer_header: None,
            endpoint,
            cluster_name: cluster.0,
            cluster: cluster.1,
            tls: if reporter.destination { conn.tls.as_ref() } else { upstream_tls },
            protocol: Protocol::Tcp,
            code: 0,
            flags,
            grpc_status: None,
        }
    }

    /// The key.
    pub fn key(&self) -> Key {
        let peer = match (self.peer_header, self.endpoint) {
            (Some(header), _) => xxh3_128(header),
            (None, Some(endpoint)) if !self.reporter.destination => xxh3_128(endpoint.config.workload.as_bytes()),
            _ => 0,
        };
        Key {
            destination: self.reporter.destination,
            peer,
            cluster: self.cluster_name.cloned(),
            own_principal: self.own_principal().cloned(),
            peer_principal: self.tls.and_then(PeerInfo::spiffe).cloned(),
            protocol: self.protocol,
            mtls: self.mtls(),
            code: self.code,
            flags: self.flags.bits(),
            grpc_status: self.grpc_status,
        }
    }

    fn own_principal(&self) -> Option<&'a Name> {
        let tls = self.tls?;
        // Without a peer certificate there is no mutual TLS, and Istio names nobody.
        tls.spiffe()?;
        tls.local.as_ref()?.spiffe.as_ref()
    }

    fn mtls(&self) -> bool {
        self.tls.is_some_and(|t| t.spiffe().is_some())
    }

    fn peer(&self) -> Workload {
        if let Some(header) = self.peer_header {
            return Workload::of_header(header).unwrap_or_default();
        }
        if self.reporter.destination {
            // The certificate proves a namespace, if nothing more.
            let spiffe = self.tls.and_then(PeerInfo::spiffe).and_then(|s| s.split("/ns/").nth(1));
            let namespace = spiffe.and_then(|s| s.split('/').next()).unwrap_or_default();
            return Workload { namespace: namespace.to_owned(), ..Workload::default() };
        }
        self.endpoint.and_then(|e| Workload::of_endpoint(&e.config.workload)).unwrap_or_default()
    }

    /// All labels in Prometheus's text form, without braces.
    pub fn labels(&self) -> Arc<str> {
        let peer = self.peer();
        let own = &self.reporter.own;
        let (source, destination) = if self.reporter.destination { (&peer, &**own) } else { (&**own, &peer) };
        let (own_principal, peer_principal) = (self.own_principal(), self.tls.and_then(PeerInfo::spiffe));
        let (source_principal, destination_principal) =
            if self.reporter.destination { (peer_principal, own_principal) } else { (own_principal, peer_principal) };
        let mut out = Labels::default();
        out.put("reporter", if self.reporter.destination { "destination" } else { "source" });
        out.workload("source", source, source_principal);
        out.workload("destination", destination, destination_principal);
        let service = Service::of(self.cluster_name, self.cluster);
        out.put("destination_service", &service.host);
        out.put("destination_service_name", &service.name);
        out.put(
            "destination_service_namespace",
            if service.namespace.is_empty() { &destination.namespace } else { &service.namespace },
        );
        out.put(
            "request_protocol",
            match self.protocol {
                Protocol::Http => "http",
                Protocol::Grpc => "grpc",
                Protocol::Tcp => "tcp",
            },
        );
        if self.protocol != Protocol::Tcp {
            out.put("response_code", &self.code.to_string());
            out.put("grpc_response_status", &self.grpc_status.map(|s| s.to_string()).unwrap_or_default());
        }
        let flags = self.flags.text();
        out.put("response_flags", if flags.is_empty() { "-" } else { &flags });
        out.put(
            "connection_security_policy",
            match (self.reporter.destination, self.mtls()) {
                (false, _) => "unknown",
                (true, true) => "mutual_tls",
                (true, false) => "none",
            },
        );
        out.0.into()
    }
}

/// The service behind a cluster.
#[derive(Debug, Default, PartialEq)]
struct Service {
    host: String,
    name: String,
    namespace: String,
}

impl Service {
    /// From the cluster's metadata (`istio.services`), else from its name.
    fn of(name: Option<&Name>, cluster: Option<&Cluster>) -> Self {
        let listed = cluster.and_then(|c| c.config.metadata.get("istio")?.get("services")?.as_array()?.first());
        if let Some(service) = listed {
            let text = |key: &str| service.get(key).and_then(|v| v.as_str()).unwrap_or_default().to_owned();
            return Self { host: text("host"), name: text("name"), namespace: text("namespace") };
        }
        let Some(name) = name else { return Self::default() };
        match ClusterName::parse(name) {
            Some(parsed) if !parsed.host.is_empty() => {
                let mut parts = parsed.host.split('.');
                let (short, namespace, svc) = (parts.next(), parts.next(), parts.next());
                match (short, namespace, svc) {
                    (Some(short), Some(ns), Some("svc")) => {
                        Self { host: parsed.host.to_owned(), name: short.to_owned(), namespace: ns.to_owned() }
                    }
                    _ => Self { host: parsed.host.to_owned(), name: parsed.host.to_owned(), namespace: String::new() },
                }
            }
            Some(_) => Self::default(),
            // PassthroughCluster, BlackHoleCluster, InboundPassthroughCluster.
            None => Self { host: String::new(), name: name.to_string(), namespace: String::new() },
        }
    }
}

/// Label pairs in text form; what is unknown says so.
#[derive(Default)]
struct Labels(String);

impl Labels {
    fn put(&mut self, key: &str, value: &str) {
        if !self.0.is_empty() {
            self.0.push(',');
        }
        // Writing into a String cannot fail.
        let _ = write!(self.0, "{key}=\"");
        for c in if value.is_empty() && key != "grpc_response_status" { "unknown" } else { value }.chars() {
            match c {
                '\\' => self.0.push_str("\\\\"),
                '"' => self.0.push_str("\\\""),
                '\n' => self.0.push_str("\\n"),
                c => self.0.push(c),
            }
        }
        self.0.push('"');
    }

    fn workload(&mut self, side: &str, w: &Workload, principal: Option<&Name>) {
        let revision = if w.canonical_revision.is_empty() { "latest" } else { &w.canonical_revision };
        let pairs = [
            ("workload", w.name.as_str()),
            ("workload_namespace", &w.namespace),
            ("principal", principal.map_or("", |p| p)),
            ("app", &w.app),
            ("version", &w.version),
            ("canonical_service", &w.canonical_service),
            ("canonical_revision", revision),
            ("cluster", &w.cluster),
        ];
        for (name, value) in pairs {
            self.put(&format!("{side}_{name}"), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_by_cluster_name() {
        let of = |n: &str| Service::of(Some(&n.into()), None);
        let svc = of("outbound|80|v1|catalog.shop.svc.cluster.local");
        assert_eq!((svc.name.as_str(), svc.namespace.as_str()), ("catalog", "shop"));
        assert_eq!(of("outbound|443||api.example.com").name, "api.example.com");
        assert_eq!(of("PassthroughCluster").name, "PassthroughCluster");
        assert_eq!(of("inbound|8080||"), Service::default());
    }

    #[test]
    fn label_values_are_escaped_and_never_empty() {
        let mut labels = Labels::default();
        labels.put("a", "x\"\\\n");
        labels.put("b", "");
        labels.put("grpc_response_status", "");
        assert_eq!(labels.0, "a=\"x\\\"\\\\\\n\",b=\"unknown\",grpc_response_status=\"\"");
    }
}
