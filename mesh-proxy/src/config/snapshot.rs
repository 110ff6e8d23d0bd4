//! The immutable configuration that workers read: one [`Snapshot`] behind an `ArcSwap`, loaded once a request.

use std::{
    collections::HashMap,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use arc_swap::ArcSwap;
use mesh_api::{model::Name, node::NodeMetadata};

use crate::{http::router::RouteTable, net, upstream};

/// Resources by name.
pub type NameMap<V> = HashMap<Name, V>;

/// Everything in force at one moment. Maps are shared between successive snapshots unless their type changed;
/// endpoints are not in here (they live behind [`upstream::Cluster`], so an endpoint change makes no new snapshot).
#[derive(Clone, Default)]
pub struct Snapshot {
    /// Listeners in force, unbound ones included.
    pub listeners: Arc<NameMap<Arc<net::Listener>>>,
    /// The same by address, for connections handed over by original destination.
    pub by_address: Arc<HashMap<SocketAddr, Arc<net::Listener>>>,
    /// Route configurations by RDS name.
    pub routes: Arc<NameMap<Arc<RouteTable>>>,
    /// Warm clusters.
    pub clusters: Arc<NameMap<Arc<upstream::Cluster>>>,
    /// Counts up with each published snapshot.
    pub version: u64,
}

impl Snapshot {
    /// The listener for an original destination: its exact address, else all addresses at its port.
    pub fn listener_at(&self, dst: SocketAddr) -> Option<&Arc<net::Listener>> {
        self.by_address.get(&dst).or_else(|| {
            let any: IpAddr = if dst.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
            self.by_address.get(&SocketAddr::new(any, dst.port()))
        })
    }
    /// A cluster in force.
    pub fn cluster(&self, name: &str) -> Option<&Arc<upstream::Cluster>> {
        self.clusters.get(name)
    }
    /// A route configuration in force.
    pub fn route(&self, name: &str) -> Option<&Arc<RouteTable>> {
        self.routes.get(name)
    }
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot")
            .field("version", &self.version)
            .field("listeners", &self.listeners.len())
            .field("routes", &self.routes.len())
            .field("clusters", &self.clusters.len())
            .finish()
    }
}

/// Who this proxy is: the xDS node, as far as the data path (command operators, metrics, peer metadata) needs it.
#[derive(Debug, Clone, Default)]
pub struct Node {
    /// Node id, `sidecar~IP~NAME.NS~DOMAIN` for Istio.
    pub id: String,
    /// Node cluster (service name).
    pub cluster: String,
    /// Region, zone, sub-zone.
    pub locality: mesh_api::model::Locality,
    /// Node metadata as given, for `%ENVIRONMENT%`-like operators and dumps.
    pub metadata: serde_json::Map<String, serde_json::Value>,
    /// The keys of it that Istio defines.
    pub istio: NodeMetadata,
}

/// State shared by all threads of the process.
#[derive(Debug)]
pub struct SharedConfig {
    /// The newest snapshot.
    pub snapshot: ArcSwap<Snapshot>,
    /// Who we are.
    pub node: Arc<Node>,
    /// Certificates and trust anchors by name.
    pub secrets: Arc<crate::tls::SecretStore>,
    /// Makes the sinks of HTTP managers.
    pub telemetry: Arc<dyn crate::http::stats::Telemetry>,
    /// Speaks to services that decide about requests.
    pub services: Services,
    /// What limits of connections share.
    pub limits: net::limits::Limits,
    /// Counters of routes.
    pub route_stats: upstream::stats::RouteRegistry,
}

/// Languages of the services that filters ask.
#[derive(Debug, Clone)]
pub struct Services {
    /// External authorizers.
    pub authz: Arc<dyn crate::http::filters::ext_authz::Codec>,
    /// Rate limit services.
    pub limits: Arc<dyn crate::http::filters::global_limit::Codec>,
}

impl SharedConfig {
    /// Empty configuration.
    pub fn new(
        node: Node,
        secrets: Arc<crate::tls::SecretStore>,
        telemetry: Arc<dyn crate::http::stats::Telemetry>,
        services: Services,
    ) -> Arc<Self> {
        let snapshot = ArcSwap::from_pointee(Snapshot::default());
        let (limits, route_stats) = Default::default();
        Arc::new(Self { snapshot, node: Arc::new(node), secrets, telemetry, services, limits, route_stats })
    }
    /// The newest snapshot: once per request or connection, then handed down.
    pub fn load(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }
}
