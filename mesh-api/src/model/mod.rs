//! The plain model of what a proxy does: listeners, routes, clusters, endpoints, policies, secrets.
//!
//! Owns the vocabulary that both planes share. In the control plane it is the intermediate representation that
//! translation produces and `xds/gen` encodes; in the proxy it is what `xds/convert` decodes and `config/compile`
//! turns into tables. Nothing here knows protobuf, Kubernetes, sockets or time: only data that can be compared,
//! printed and stored. Names and semantics are Envoy's v3 API; a field left out here is a field neither plane has.

use std::sync::Arc;

pub mod cluster;
pub mod connection_limit;
pub mod dns_cache;
pub mod endpoint;
pub mod ext_authz;
pub mod extension;
pub mod filter;
pub mod jwt;
pub mod listener;
pub mod matcher;
pub mod name_table;
pub mod policy;
pub mod rate_limit;
pub mod route;
pub mod secret;
pub mod telemetry;
pub mod tls;

pub use cluster::*;
pub use connection_limit::*;
pub use dns_cache::*;
pub use endpoint::*;
pub use ext_authz::*;
pub use extension::*;
pub use filter::*;
pub use jwt::*;
pub use listener::*;
pub use matcher::*;
pub use name_table::*;
pub use policy::*;
pub use rate_limit::*;
pub use route::*;
pub use secret::*;
pub use telemetry::*;
pub use tls::*;

/// A shared immutable name. Cloning it costs a reference count.
pub type Name = Arc<str>;

/// Where a piece of configuration comes from: the operator's object, in Istio's
/// `filter_metadata.istio.config` form (`/apis/networking.istio.io/v1/namespaces/NS/virtual-service/NAME`).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, serde::Serialize)]
pub struct Origin {
    /// Path of the object; empty when the mesh made the node by itself.
    pub config: Name,
}

/// Untyped metadata in Envoy's `filter_metadata` shape: filter name to a JSON object.
pub type Metadata = std::collections::BTreeMap<String, serde_json::Value>;

/// Key under which Istio puts its facts in [`Metadata`].
pub const ISTIO_METADATA: &str = "istio";
