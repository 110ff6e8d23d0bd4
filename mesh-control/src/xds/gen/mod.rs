//! The plain model into Envoy's resources: the inverse of mesh-proxy's `xds/convert`.
//!
//! Owns the form in which Envoy 1.40 accepts what the model says: typed configurations, names of filters, well-known
//! metadata. Each function returns the encoded message, ready as the value of a `google.protobuf.Any`. Deterministic:
//! equal values give equal bytes. Knows nothing of streams and subscriptions.

use bytes::Bytes;
use mesh_api::model;

/// An `envoy.config.listener.v3.Listener`.
pub fn listener(_listener: &model::Listener) -> Bytes {
    Bytes::new()
}

/// An `envoy.config.route.v3.RouteConfiguration`.
pub fn route(_routes: &model::RouteConfig) -> Bytes {
    Bytes::new()
}

/// An `envoy.config.cluster.v3.Cluster`.
pub fn cluster(_cluster: &model::Cluster) -> Bytes {
    Bytes::new()
}

/// An `envoy.config.endpoint.v3.ClusterLoadAssignment`.
pub fn endpoints(_endpoints: &model::EndpointSet) -> Bytes {
    Bytes::new()
}

/// An `envoy.extensions.transport_sockets.tls.v3.Secret`, private key included.
pub fn secret(_secret: &model::Secret) -> Bytes {
    Bytes::new()
}
