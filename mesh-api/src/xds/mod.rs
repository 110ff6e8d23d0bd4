//! The only place that re-exports Envoy's protobuf types, and the resource types in make-before-break order.

pub mod dump;
pub mod json;

pub use envoy_types::pb::envoy::service::discovery::v3 as discovery;
pub use envoy_types::pb::{envoy, google, opentelemetry, xds};

/// xDS resource types, in the order in which they are sent (make before break).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TypeUrl {
    /// `envoy.config.cluster.v3.Cluster`
    Cluster,
    /// `envoy.config.endpoint.v3.ClusterLoadAssignment`
    Endpoints,
    /// `envoy.extensions.transport_sockets.tls.v3.Secret`
    Secret,
    /// `envoy.config.listener.v3.Listener`
    Listener,
    /// `envoy.config.route.v3.RouteConfiguration`
    Route,
    /// `envoy.config.core.v3.TypedExtensionConfig`
    Extension,
    /// `istio.networking.nds.v1.NameTable`
    NameTable,
}

impl TypeUrl {
    /// All, in sending order.
    pub const ALL: [TypeUrl; 7] = [
        TypeUrl::Cluster,
        TypeUrl::Endpoints,
        TypeUrl::Secret,
        TypeUrl::Listener,
        TypeUrl::Route,
        TypeUrl::Extension,
        TypeUrl::NameTable,
    ];

    /// The type URL on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            TypeUrl::Cluster => "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            TypeUrl::Endpoints => "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
            TypeUrl::Secret => "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
            TypeUrl::Listener => "type.googleapis.com/envoy.config.listener.v3.Listener",
            TypeUrl::Route => "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
            TypeUrl::Extension => "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig",
            TypeUrl::NameTable => "type.googleapis.com/istio.networking.nds.v1.NameTable",
        }
    }

    /// From the wire.
    pub fn parse(url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|t| t.as_str() == url)
    }

    /// As `proxy-status` and metrics name it.
    pub const fn short(self) -> &'static str {
        match self {
            TypeUrl::Cluster => "CDS",
            TypeUrl::Endpoints => "EDS",
            TypeUrl::Secret => "SDS",
            TypeUrl::Listener => "LDS",
            TypeUrl::Route => "RDS",
            TypeUrl::Extension => "ECDS",
            TypeUrl::NameTable => "NDS",
        }
    }
}
