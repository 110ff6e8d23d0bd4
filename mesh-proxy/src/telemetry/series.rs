//! Which time series an exchange belongs to: a small key that is cheap to make, and the 25 labels it stands for, which
//! are written out once a series.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Arc;

use mesh_api::model::{IstioStats, Name, TrafficDirection};
use mesh_api::names::ClusterName;
use xxhash_rust::xxh3::{xxh3_64, xxh3_128, xxh3_128_with_seed};

use super::metrics::MetricSet;
use super::overrides::{LabelChange, Overrides, Values};
use super::peer::{SharedWorkload, Workload};
use crate::http::attributes::Place;
use crate::http::local_reply::ResponseFlags;
use crate::http::stats::ExchangeStats;
use crate::tls::PeerInfo;
use crate::upstream::{Cluster, Endpoint};

/// Our end of the requests of one listener direction.
#[derive(Debug)]
pub struct Reporter {
    /// We are the destination.
    pub destination: bool,
    /// Who we are.
    pub own: SharedWorkload,
    /// What is changed about metrics.
    pub overrides: Option<Arc<Overrides>>,
}

impl Reporter {
    /// For the listeners of one direction; a gateway's listeners (no direction, or outbound) report as source.
    pub fn new(place: &Place, stats: Option<&IstioStats>) -> Arc<Self> {
        let destination = place.direction == TrafficDirection::Inbound;
        let own = Arc::new(Workload::of_node(&place.node));
        Arc::new(Self {
            destination,
            own,
            overrides: stats.and_then(|s| Overrides::compile(s, place.clone())).map(Arc::new),
        })
    }

    /// Values of labels that are not Istio's own.
    pub fn values(&self, stats: &ExchangeStats) -> Values {
        self.overrides.as_ref().map(|o| o.values(stats)).unwrap_or_default()
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
    /// Hash of what expressions say; 0: there are none.
    custom: u128,
}

impl Key {
    /// The identity that the other end proved.
    pub fn peer_principal(&self) -> Option<&Name> {
        self.peer_principal.as_ref()
    }
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
    /// What expressions say.
    pub values: &'a Values,
}

impl<'a> Facts<'a> {
    /// Of a finished exchange.
    pub fn of_http(reporter: &'a Reporter, stats: &'a ExchangeStats, values: &'a Values) -> Self {
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
            values,
        }
    }

    /// Of a forwarded connection.
    pub fn of_tcp(reporter: &'a Reporter, stats: &'a ExchangeStats, values: &'a Values) -> Self {
        let upstream_tls = stats.upstream.as_deref().and_then(|u| u.tls.as_ref());
        Self {
            reporter,
            peer_header: None,
            endpoint: stats.endpoint.as_deref(),
            cluster_name: stats.cluster_name.as_ref(),
            cluster: stats.cluster.as_deref(),
            tls: if reporter.destination { stats.conn.tls.as_ref() } else { upstream_tls },
            protocol: Protocol::Tcp,
            code: 0,
            flags: stats.flags,
            grpc_status: None,
            values,
        }
    }

    /// The metrics that it is counted in.
    pub fn metrics(&self) -> MetricSet {
        match self.protocol {
            Protocol::Http => MetricSet::HTTP,
            Protocol::Grpc => MetricSet::GRPC,
            Protocol::Tcp => MetricSet::TCP,
        }
    }

    /// The key; `told` is what [`Peers::told`] says.
    pub fn key(&self, told: Option<&Told>) -> Key {
        let peer = match (told, self.endpoint) {
            (Some(told), _) => told.id,
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
            custom: self.values.hash,
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

    /// The namespace that the other end's certificate proves; empty: none.
    fn proven_namespace(&self) -> &'a str {
        let path = self.tls.and_then(PeerInfo::spiffe).and_then(|s| s.strip_prefix("spiffe://")?.split_once('/'));
        let namespace = path.and_then(|(_domain, path)| path.strip_prefix("ns/")?.split('/').next());
        namespace.unwrap_or_default()
    }

    /// Who is at the other end when it did not tell, or what it told is not believed.
    fn peer(&self) -> Workload {
        if self.reporter.destination {
            // The certificate proves a namespace, if nothing more.
            return Workload { namespace: self.proven_namespace().to_owned(), ..Workload::default() };
        }
        self.endpoint.and_then(|e| Workload::of_endpoint(&e.config.workload)).unwrap_or_default()
    }

    /// All labels in Prometheus's text form, without braces.
    pub fn labels(&self, told: Option<&Told>, change: Option<&LabelChange>) -> Arc<str> {
        let peer = told.map_or_else(|| self.peer(), |told| told.workload.clone());
        let own = &self.reporter.own;
        let (source, destination) = if self.reporter.destination { (&peer, &**own) } else { (&**own, &peer) };
        let (own_principal, peer_principal) = (self.own_principal(), self.tls.and_then(PeerInfo::spiffe));
        let (source_principal, destination_principal) =
            if self.reporter.destination { (peer_principal, own_principal) } else { (own_principal, peer_principal) };
        let mut out = Labels { text: String::new(), change: change.map(|c| (c, self.values)) };
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
        if let Some(change) = change {
            change.added().for_each(|(name, value)| out.write(name, self.values.get(value)));
        }
        out.text.into()
    }
}

/// What a peer told of itself.
#[derive(Debug)]
pub struct Told {
    /// Tells workloads apart; the many processes of one workload are the same.
    id: u128,
    workload: Workload,
}

/// Most different values of `x-envoy-peer-metadata` that are remembered, a shard.
const MAX_PEERS: usize = 4096;

/// What peers told of themselves, read once a value. Nobody but the peer vouches for it, so it counts only if it is of
/// the namespace that the peer's certificate proves.
#[derive(Debug, Default)]
pub struct Peers(HashMap<u128, Option<Arc<Told>>>);

impl Peers {
    /// What is believed; `None`: nothing was told, or it is not believed.
    pub fn told(&mut self, facts: &Facts<'_>) -> Option<Arc<Told>> {
        let header = facts.peer_header?;
        let namespace = facts.proven_namespace();
        let value = xxh3_128_with_seed(header, xxh3_64(namespace.as_bytes()));
        if let Some(known) = self.0.get(&value) {
            return known.clone();
        }
        if self.0.len() >= MAX_PEERS {
            self.0.clear();
        }
        let workload = Workload::of_header(header).filter(|w| !namespace.is_empty() && w.namespace == namespace);
        let told = workload.map(|workload| Arc::new(Told { id: workload.id(), workload }));
        self.0.insert(value, told.clone());
        told
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
struct Labels<'a> {
    text: String,
    change: Option<(&'a LabelChange, &'a Values)>,
}

impl Labels<'_> {
    /// One of Istio's labels, as far as it is not changed.
    fn put(&mut self, key: &str, value: &str) {
        match self.change.and_then(|(change, values)| Some((change.of(key)?, values))) {
            Some((None, _)) => {}
            Some((Some(number), values)) => self.write(key, values.get(number)),
            None => self.write(key, if value.is_empty() && key != "grpc_response_status" { "unknown" } else { value }),
        }
    }

    fn write(&mut self, key: &str, value: &str) {
        let out = &mut self.text;
        if !out.is_empty() {
            out.push(',');
        }
        // Writing into a String cannot fail.
        let _ = write!(out, "{key}=\"");
        for c in value.chars() {
            match c {
                '\\' => out.push_str("\\\\"),
                '"' => out.push_str("\\\""),
                '\n' => out.push_str("\\n"),
                c => out.push(c),
            }
        }
        out.push('"');
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
pub(super) mod tests {
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

    pub(in super::super) fn spiffe(id: &str) -> PeerInfo {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.subject_alt_names = vec![rcgen::SanType::URI(id.try_into().unwrap())];
        let certificate = crate::tls::CertificateFacts::parse(params.self_signed(&key).unwrap().der()).unwrap();
        PeerInfo { certificate: Some(Arc::new(certificate)), validated: true, ..PeerInfo::default() }
    }

    #[test]
    fn peers_are_believed_within_their_namespace_and_at_sensible_length() {
        let meta = |name: &str, namespace: &str| {
            let meta = mesh_api::node::NodeMetadata {
                name: format!("{name}-1"),
                workload_name: name.to_owned(),
                namespace: namespace.to_owned(),
                ..Default::default()
            };
            super::super::peer::header_value(&meta)
        };
        let reporter = Reporter::new(&Place { direction: TrafficDirection::Inbound, ..Place::default() }, None);
        let tls = spiffe("spiffe://cluster.local/ns/shop/sa/web");
        let mut peers = Peers::default();
        let mut labels = |header: &str| {
            let facts = Facts {
                reporter: &reporter,
                peer_header: Some(header.as_bytes()),
                endpoint: None,
                cluster_name: None,
                cluster: None,
                tls: Some(&tls),
                protocol: Protocol::Http,
                code: 200,
                flags: ResponseFlags::NONE,
                grpc_status: None,
                values: &Values::default(),
            };
            let told = peers.told(&facts);
            (facts.key(told.as_deref()), facts.labels(told.as_deref(), None))
        };
        assert!(labels(&meta("web", "shop")).1.contains("source_workload=\"web\""));
        let (key, forged) = labels(&meta("admin", "bank"));
        assert!(!forged.contains("admin") && forged.contains("source_workload_namespace=\"shop\""), "{forged}");
        assert!(key == labels(&meta("other", "bank")).0, "what is not believed makes no series");
        let long = labels(&meta(&"ä".repeat(20_000), "shop")).1;
        assert!(long.len() < 4096 && long.contains("ää"), "{}", long.len());
    }

    #[test]
    fn label_values_are_escaped_and_never_empty() {
        let mut labels = Labels::default();
        labels.put("a", "x\"\\\n");
        labels.put("b", "");
        labels.put("grpc_response_status", "");
        assert_eq!(labels.text, "a=\"x\\\"\\\\\\n\",b=\"unknown\",grpc_response_status=\"\"");
    }
}
