//! The facts of one proxy that its configuration may depend on.
//!
//! Owns what a proxy is: its kind, where it is, how traffic reaches it, which workload it belongs to. Knows no
//! configuration; what follows from these facts is worked out by `translate`.

use std::{net::IpAddr, sync::Arc};

use mesh_api::{
    labels::Labels,
    meshconfig::ProxySettings,
    model::{Locality, Name},
    node::{NodeId, NodeMetadata, NodeType},
};

use crate::{
    index::{Service, ServicePort, Stamped},
    source::object::{Object, ObjectKey},
    translate::patches,
    xds::node::Client,
};

/// Sidecar or gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ProxyKind {
    /// Beside an application.
    Sidecar,
    /// Gateway.
    Gateway,
}

/// Which program asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Flavour {
    /// Envoy, or whatever says so.
    Envoy,
    /// Our own proxy.
    Mesh,
    /// A gRPC library (`xds:///`).
    Grpc,
}

/// How traffic gets into the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Interception {
    /// Redirected by NAT, the destination restored from the socket.
    Redirect,
    /// Transparent sockets.
    Tproxy,
    /// Not at all: applications talk to the proxy's own addresses.
    None,
}

/// Address families of a proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Families {
    /// Has an IPv4 address (or tells none at all).
    pub v4: bool,
    /// Has an IPv6 address.
    pub v6: bool,
}

/// A proxy, as the control plane sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct ProxyView {
    /// Sidecar or gateway.
    pub kind: ProxyKind,
    /// Which program.
    pub flavour: Flavour,
    /// Its version in the program's own counting, as far as it is told.
    pub version: Name,
    /// Name of the workload instance (pod).
    pub name: Name,
    /// Namespace: its configuration is looked up from here.
    pub namespace: Name,
    /// Addresses, the primary one first.
    pub ips: Arc<[IpAddr]>,
    /// How traffic reaches it.
    pub interception: Interception,
    /// Its network.
    pub network: Name,
    /// Its cluster.
    pub cluster: Name,
    /// Where it is.
    pub locality: Locality,
    /// Node it runs on; empty: not known.
    pub node: Name,
    /// Service account, the authenticated one when the caller was authenticated.
    pub service_account: Name,
    /// The caller proved who it is; only then it may have secrets.
    pub authenticated: bool,
    /// Labels for selectors: those of the workload registered at its address, else those of the node metadata.
    pub labels: Arc<Labels>,
    /// The workload registered at its address, with the service account it names (maybe none): labels and locality are
    /// that one's. Only of gateways; `None`: nothing is registered there.
    pub registered: Option<(ObjectKey, Name)>,
    /// Settings of this proxy (`defaultConfig` merged with annotations), as it told them.
    pub proxy_config: Arc<ProxySettings>,
    /// Port for explicit HTTP proxying that the node asked for.
    pub http_proxy_port: Option<u16>,
    /// Node metadata as told.
    pub metadata: Arc<NodeMetadata>,
    /// What it serves: the services of its namespace that have endpoints at its addresses.
    pub targets: Arc<[ServiceTarget]>,
    /// The Sidecar that holds for it.
    pub sidecar: Option<ObjectKey>,
    /// EnvoyFilters that hold for it, in the order in which they apply.
    pub envoy_filters: Arc<[Arc<Object>]>,
    /// What follows from them.
    pub patches: patches::Memo,
}

/// A port of a service that a workload serves.
#[derive(Debug, Clone, PartialEq)]
pub struct ServiceTarget {
    /// The service.
    pub service: Stamped<Service>,
    /// Its port.
    pub port: ServicePort,
    /// Port of the workload.
    pub target_port: u16,
}

impl ProxyView {
    /// From what a node says of itself. Labels are those of the node until [`crate::index::Index::view`] has looked
    /// the workload up.
    pub fn new(id: &NodeId, metadata: NodeMetadata, locality: Locality, user_agent: &str, version: &str) -> Self {
        let kind = match id.kind {
            NodeType::Sidecar => ProxyKind::Sidecar,
            NodeType::Router => ProxyKind::Gateway,
        };
        let flavour = if metadata.generator == "grpc" || user_agent.starts_with("gRPC") {
            Flavour::Grpc
        } else if user_agent == "mesh-proxy" {
            Flavour::Mesh
        } else {
            Flavour::Envoy
        };
        let interception = match metadata.interception_mode.as_str() {
            "NONE" => Interception::None,
            "TPROXY" => Interception::Tproxy,
            _ => Interception::Redirect,
        };
        let mut ips: Vec<IpAddr> = Vec::new();
        for ip in std::iter::once(id.ip.as_str()).chain(metadata.ips()).filter_map(|t| t.parse().ok()) {
            if !ips.contains(&ip) {
                ips.push(ip);
            }
        }
        let namespace = if metadata.namespace.is_empty() { &id.namespace } else { &metadata.namespace };
        // A proxy may tell settings of another version; what cannot be read counts as not told.
        let proxy_config = serde_json::from_value(metadata.proxy_config.clone()).unwrap_or_default();
        Self {
            kind,
            flavour,
            version: version.into(),
            name: id.name.as_str().into(),
            namespace: namespace.as_str().into(),
            ips: ips.into(),
            interception,
            network: metadata.network.as_str().into(),
            cluster: metadata.cluster_id.as_str().into(),
            locality,
            node: "".into(),
            service_account: metadata.service_account.as_str().into(),
            authenticated: false,
            labels: Arc::new(metadata.labels.clone()),
            registered: None,
            proxy_config: Arc::new(proxy_config),
            http_proxy_port: metadata.http_proxy_port.parse().ok().filter(|p| *p != 0),
            metadata: Arc::new(metadata),
            targets: Arc::default(),
            sidecar: None,
            envoy_filters: Arc::default(),
            patches: patches::Memo::default(),
        }
    }

    /// From a stream's client; an authenticated service account counts more than a claimed one.
    pub fn of_client(client: &Client) -> Self {
        let mut view = Self::new(
            &client.id,
            client.metadata.clone(),
            Locality {
                region: client.locality.region.as_str().into(),
                zone: client.locality.zone.as_str().into(),
                sub_zone: client.locality.sub_zone.as_str().into(),
            },
            &client.user_agent,
            &client.user_agent_version,
        );
        view.service_account = client.service_account().into();
        view.authenticated = matches!(client.caller, crate::xds::caller::Caller::Workload(_));
        view
    }

    /// Whether this is a sidecar.
    pub fn is_sidecar(&self) -> bool {
        self.kind == ProxyKind::Sidecar
    }

    /// Whether this is a gateway.
    pub fn is_gateway(&self) -> bool {
        self.kind == ProxyKind::Gateway
    }

    /// Whether its application's DNS is answered beside it: only then clients learn addresses that the mesh made up.
    pub fn captures_dns(&self) -> bool {
        self.metadata.dns_capture
    }

    /// Its address families.
    pub fn families(&self) -> Families {
        let v6 = self.ips.iter().any(IpAddr::is_ipv6);
        Families { v4: self.ips.iter().any(IpAddr::is_ipv4) || !v6, v6 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_node() {
        let id: NodeId = "sidecar~10.0.0.1~web-1.shop~shop.svc.cluster.local".parse().unwrap();
        let meta = NodeMetadata {
            instance_ips: "10.0.0.1,fd00::1".into(),
            interception_mode: "NONE".into(),
            proxy_config: serde_json::json!({"concurrency": 2}),
            ..NodeMetadata::default()
        };
        let view = ProxyView::new(&id, meta, Locality::default(), "mesh-proxy", "0.1.0");
        assert_eq!((view.flavour, view.interception, &*view.namespace), (Flavour::Mesh, Interception::None, "shop"));
        assert_eq!(view.families(), Families { v4: true, v6: true });
        assert_eq!(view.proxy_config.concurrency, Some(2));
        let grpc = NodeMetadata { generator: "grpc".into(), ..NodeMetadata::default() };
        assert_eq!(ProxyView::new(&id, grpc, Locality::default(), "envoy", "").flavour, Flavour::Grpc);
    }
}
