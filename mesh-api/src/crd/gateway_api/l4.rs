//! TLSRoute and TCPRoute: connections, told by server name or by the listener alone.
use super::{BackendRef, DefaultScope, ParentRef};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// TLS routing by server name.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct TlsRoute {
    /// `parentRefs`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub parent_refs: Vec<ParentRef>,
    /// Server names.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hostnames: Vec<String>,
    /// `rules`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<L4RouteRule>,
    /// `useDefaultGateways`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub use_default_gateways: Option<DefaultScope>,
}

/// TCP routing.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct TcpRoute {
    /// `parentRefs`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub parent_refs: Vec<ParentRef>,
    /// `rules`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<L4RouteRule>,
    /// `useDefaultGateways`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub use_default_gateways: Option<DefaultScope>,
}

/// Where connections go.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct L4RouteRule {
    /// `name`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// `backendRefs`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub backend_refs: Vec<L4BackendRef>,
}

/// A backend with its weight.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct L4BackendRef {
    /// Absent: core.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Absent: `Service`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// `name`.
    pub name: String,
    /// `namespace`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// `port`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Absent: 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
}

impl From<L4BackendRef> for BackendRef {
    fn from(r: L4BackendRef) -> Self {
        let L4BackendRef { group, kind, name, namespace, port, weight } = r;
        Self { group, kind, name, namespace, port, weight, filters: vec![] }
    }
}
