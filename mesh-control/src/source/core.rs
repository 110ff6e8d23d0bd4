//! Slim forms of Kubernetes' own kinds: only the fields that the mesh uses, read straight from manifests. That is
//! also the memory trim.

use std::{collections::BTreeMap, fmt, net::IpAddr};

use mesh_api::labels::Labels;
use serde::{Deserialize, Serialize};

/// `Service`: spec and the part of the status that matters.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Service {
    /// `ClusterIP`, `NodePort`, `LoadBalancer`, `ExternalName`; empty: `ClusterIP`.
    #[serde(rename = "type")]
    pub kind: String,
    /// `None` for headless services.
    #[serde(rename = "clusterIP")]
    pub cluster_ip: String,
    /// All cluster addresses.
    #[serde(rename = "clusterIPs")]
    pub cluster_ips: Vec<String>,
    /// DNS name of an ExternalName service.
    pub external_name: String,
    /// Pods behind it.
    pub selector: Labels,
    /// Ports.
    pub ports: Vec<ServicePort>,
    /// Unready endpoints count as ready.
    pub publish_not_ready_addresses: bool,
    /// `Local`: only endpoints of the client's node.
    pub internal_traffic_policy: String,
    /// `PreferClose`, `PreferSameZone`, `PreferSameNode`.
    pub traffic_distribution: String,
    /// Addresses outside the cluster.
    #[serde(rename = "externalIPs")]
    pub external_ips: Vec<String>,
    /// From the status: addresses of the load balancer.
    #[serde(skip_deserializing)]
    pub load_balancer: Vec<String>,
}

impl Service {
    /// Addresses that clients dial, without `None`.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let single = self.cluster_ips.is_empty().then_some(&self.cluster_ip);
        self.cluster_ips.iter().chain(single).filter_map(|ip| ip.parse().ok())
    }
    /// Clients see the endpoints themselves.
    pub fn headless(&self) -> bool {
        self.cluster_ip == "None" || self.cluster_ips.first().is_some_and(|ip| ip == "None")
    }
}

/// A port of a [`Service`].
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServicePort {
    /// Name; may be empty for a single port.
    pub name: String,
    /// Port of the service.
    pub port: u16,
    /// Port of the pods: number, name, or (absent) the same.
    pub target_port: Option<IntOrString>,
    /// `TCP` (default), `UDP`, `SCTP`.
    pub protocol: String,
    /// Application protocol.
    pub app_protocol: String,
    /// Port on every node.
    pub node_port: u16,
}

/// A number or a name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum IntOrString {
    /// Number.
    Int(u16),
    /// Name (or a number as text).
    String(String),
}

/// `EndpointSlice`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointSlice {
    /// `IPv4`, `IPv6`, `FQDN`.
    pub address_type: String,
    /// Members.
    pub endpoints: Vec<SliceEndpoint>,
    /// Their ports.
    pub ports: Vec<SlicePort>,
}

/// A member of an [`EndpointSlice`].
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SliceEndpoint {
    /// Addresses, usually one.
    pub addresses: Vec<String>,
    /// State.
    pub conditions: EndpointConditions,
    /// Host name within the service.
    pub hostname: String,
    /// Node.
    pub node_name: String,
    /// Zone.
    pub zone: String,
    /// The pod.
    pub target_ref: Option<TargetRef>,
}

/// State of an endpoint; absent conditions are as the API defines.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointConditions {
    /// Absent: true.
    pub ready: Option<bool>,
    /// Absent: as `ready`.
    pub serving: Option<bool>,
    /// Absent: false.
    pub terminating: Option<bool>,
}

/// Reference to a pod.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TargetRef {
    /// `Pod`.
    pub kind: String,
    /// Name.
    pub name: String,
    /// Namespace.
    pub namespace: String,
}

/// A port of an [`EndpointSlice`].
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SlicePort {
    /// Name of the service port.
    pub name: String,
    /// Number.
    pub port: Option<u16>,
    /// `TCP`, `UDP`, `SCTP`.
    pub protocol: String,
    /// Application protocol.
    pub app_protocol: String,
}

/// `Pod`.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Pod {
    /// Addresses.
    pub ips: Vec<IpAddr>,
    /// Service account, `default` when not given.
    pub service_account: String,
    /// Node.
    pub node: String,
    /// Shares the node's network: never meshed.
    pub host_network: bool,
    /// Named container ports.
    pub ports: BTreeMap<String, u16>,
    /// Its Ready condition.
    pub ready: bool,
    /// Succeeded or failed: has no address any more.
    pub finished: bool,
}

/// `Secret`. Never shows its content.
#[derive(Clone, PartialEq, Default)]
pub struct Secret {
    /// `kubernetes.io/tls`, `Opaque`, ...
    pub kind: String,
    /// Content.
    pub data: BTreeMap<String, Vec<u8>>,
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secret").field("kind", &self.kind).field("keys", &self.data.keys()).finish()
    }
}

impl Serialize for Secret {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let redacted: BTreeMap<&str, &str> = self.data.keys().map(|k| (k.as_str(), "[redacted]")).collect();
        redacted.serialize(s)
    }
}

/// `ConfigMap`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ConfigMap {
    /// Content.
    pub data: BTreeMap<String, String>,
}
