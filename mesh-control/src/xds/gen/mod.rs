//! The plain model into Envoy's resources: the inverse of mesh-proxy's `xds/convert`.
//!
//! Owns the form in which Envoy 1.40 accepts what the model says: typed configurations, names of filters, well-known
//! metadata. Each function returns the encoded message, ready as the value of a `google.protobuf.Any`. Deterministic:
//! equal values give equal bytes. Knows nothing of streams and subscriptions.

mod access_log;
mod cluster;
mod endpoint;
mod ext_authz;
mod http_filter;
mod jwt;
mod listener;
mod name_table;
mod rate_limit;
mod rbac;
mod route;
mod tls;
mod values;
mod wire;

use bytes::Bytes;
use mesh_api::model;

/// An `envoy.config.listener.v3.Listener`.
pub fn listener(listener: &model::Listener) -> Bytes {
    listener::listener(listener).into_bytes().into()
}

/// An `envoy.config.route.v3.RouteConfiguration`.
pub fn route(routes: &model::RouteConfig) -> Bytes {
    route::route_config(routes).into_bytes().into()
}

/// An `envoy.config.cluster.v3.Cluster`.
pub fn cluster(cluster: &model::Cluster) -> Bytes {
    cluster::cluster(cluster).into_bytes().into()
}

/// An `envoy.config.endpoint.v3.ClusterLoadAssignment`.
pub fn endpoints(endpoints: &model::EndpointSet) -> Bytes {
    endpoint::endpoints(endpoints).into_bytes().into()
}

/// An `istio.networking.nds.v1.NameTable`.
pub fn name_table(table: &model::NameTable) -> Bytes {
    name_table::name_table(table).into_bytes().into()
}

/// An `envoy.extensions.transport_sockets.tls.v3.Secret`, private key included.
pub fn secret(secret: &model::Secret) -> Bytes {
    tls::secret(secret).into_bytes().into()
}
