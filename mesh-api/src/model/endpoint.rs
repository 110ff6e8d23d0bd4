//! Endpoints of a cluster (`envoy.config.endpoint.v3.ClusterLoadAssignment`).

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Address, Metadata, Name};

/// All endpoints of a cluster, by locality.
#[derive(Debug, Clone, PartialEq, Serialize, Default)]
pub struct EndpointSet {
    /// Cluster (or EDS service) name.
    pub cluster: Name,
    /// Groups; priorities start at 0 and have no gap.
    pub localities: Vec<LocalityEndpoints>,
    /// `overprovisioning_factor`, percent; 140 by default.
    pub overprovisioning: Option<u32>,
    /// Shares of requests dropped on purpose, by category.
    pub drops: Vec<(Name, super::Fraction)>,
}

/// Endpoints of one locality and priority.
#[derive(Debug, Clone, PartialEq, Serialize, Default)]
pub struct LocalityEndpoints {
    /// Where.
    pub locality: Locality,
    /// 0 is preferred.
    pub priority: u32,
    /// Weight among the localities of this priority; `None`: not weighted.
    pub weight: Option<u32>,
    /// Members.
    pub endpoints: Vec<Endpoint>,
}

/// Region, zone, sub-zone; each may be empty.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Default)]
pub struct Locality {
    /// Region.
    pub region: Name,
    /// Zone.
    pub zone: Name,
    /// Sub-zone.
    pub sub_zone: Name,
}

impl Locality {
    /// Parses Istio's `region/zone/subzone`, later parts optional.
    pub fn parse(s: &str) -> Self {
        let mut parts = s.splitn(3, '/');
        let mut next = || Name::from(parts.next().unwrap_or(""));
        Self { region: next(), zone: next(), sub_zone: next() }
    }
}

impl std::fmt::Display for Locality {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&*self.region, &*self.zone, &*self.sub_zone) {
            (r, "", _) => f.write_str(r),
            (r, z, "") => write!(f, "{r}/{z}"),
            (r, z, s) => write!(f, "{r}/{z}/{s}"),
        }
    }
}

/// One place to send requests to.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Endpoint {
    /// Address.
    pub address: Address,
    /// Name for `auto_host_rewrite` and health checks; empty: none.
    pub hostname: Name,
    /// Relative weight, 1 or more.
    pub weight: u32,
    /// As the control plane sees it.
    pub health: HealthStatus,
    /// `envoy.transport_socket_match`: chooses the TLS context.
    pub tls_labels: BTreeMap<String, String>,
    /// Istio's `istio.workload`: `name;namespace;canonical-name;canonical-revision;cluster`, empty: unknown.
    pub workload: Name,
    /// Everything else in `metadata.filter_metadata`.
    pub metadata: Metadata,
}

impl Endpoint {
    /// A healthy endpoint of weight 1.
    pub fn at(address: Address) -> Self {
        Self {
            address,
            hostname: "".into(),
            weight: 1,
            health: HealthStatus::Healthy,
            tls_labels: BTreeMap::new(),
            workload: "".into(),
            metadata: Metadata::new(),
        }
    }
}

/// `HealthStatus` (`UNKNOWN` counts as healthy).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Default)]
pub enum HealthStatus {
    /// Takes requests.
    #[default]
    Healthy,
    /// Takes none.
    Unhealthy,
    /// Takes no new ones, sessions go on.
    Draining,
    /// Takes them when too few are healthy.
    Degraded,
    /// As unhealthy.
    Timeout,
}
