//! Sidecar and ProxyConfig: what a proxy serves, sees and is.
use super::{ConnectionPool, Destination, ServerTls};
use crate::crd::{PolicySelector, WorkloadSelector};
use crate::labels::Labels;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What a sidecar serves and sees.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Sidecar {
    /// `workloadSelector`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workload_selector: Option<WorkloadSelector>,
    /// `ingress`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ingress: Vec<IngressListener>,
    /// `egress`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub egress: Vec<EgressListener>,
    /// `inboundConnectionPool`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inbound_connection_pool: Option<ConnectionPool>,
    /// `outboundTrafficPolicy`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outbound_traffic_policy: Option<OutboundTrafficPolicy>,
}

/// An inbound port.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct IngressListener {
    /// `port`.
    pub port: SidecarPort,
    /// `bind`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub bind: String,
    /// `captureMode`.
    #[serde(default)]
    pub capture_mode: CaptureMode,
    /// `127.0.0.1:P`, `0.0.0.0:P`, `[::1]:P`, `unix://PATH`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub default_endpoint: String,
    /// `tls`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<ServerTls>,
    /// `connectionPool`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connection_pool: Option<ConnectionPool>,
}

/// An outbound port, or all.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct EgressListener {
    /// `port`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<SidecarPort>,
    /// `bind`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub bind: String,
    /// `captureMode`.
    pub capture_mode: CaptureMode,
    /// `NS/DNS`; NS may be `.`, `*`, `~`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
}

/// A port of a Sidecar listener.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct SidecarPort {
    /// `number`.
    pub number: u16,
    /// `protocol`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub protocol: String,
    /// `name`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// `targetPort`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_port: Option<u16>,
}

/// Whether traffic is redirected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum CaptureMode {
    #[default]
    /// `DEFAULT`.
    Default,
    /// `IPTABLES`.
    Iptables,
    /// `NONE`.
    None,
}

/// What happens to unknown destinations.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct OutboundTrafficPolicy {
    /// `mode`.
    pub mode: OutboundMode,
    /// `egressProxy`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub egress_proxy: Option<Destination>,
}

/// Unknown destinations are refused or passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum OutboundMode {
    #[default]
    /// `REGISTRY_ONLY`.
    RegistryOnly,
    /// `ALLOW_ANY`.
    AllowAny,
}

/// Settings of proxies, v1beta1.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ProxyConfig {
    /// `selector`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<PolicySelector>,
    /// `concurrency`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<i32>,
    /// `environmentVariables`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub environment_variables: Labels,
    /// `image`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<ProxyImage>,
}

/// Image of a proxy.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ProxyImage {
    /// `imageType`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub image_type: String,
}
