//! Instance names of filters, as Istio and Envoy write them: keys of overrides by route, and what tools look for.

/// Looks up hosts of requests.
pub const DYNAMIC_FORWARD_PROXY: &str = "envoy.filters.http.dynamic_forward_proxy";
/// Router.
pub const ROUTER: &str = "envoy.filters.http.router";
/// Fault injection.
pub const FAULT: &str = "envoy.filters.http.fault";
/// Cross-origin resource sharing.
pub const CORS: &str = "envoy.filters.http.cors";
/// Authentication of requests by tokens.
pub const JWT_AUTHN: &str = mesh_api::model::JWT_FILTER;
/// Authorization of requests.
pub const HTTP_RBAC: &str = "envoy.filters.http.rbac";
/// External authorization of requests.
pub const EXT_AUTHZ: &str = "envoy.filters.http.ext_authz";
/// Counts gRPC messages.
pub const GRPC_STATS: &str = "envoy.filters.http.grpc_stats";
/// Translates gRPC-Web.
pub const GRPC_WEB: &str = "envoy.filters.http.grpc_web";
/// Sticky sessions.
pub const SESSION: &str = "envoy.filters.http.stateful_session";
/// Istio's ALPN override.
pub const ALPN: &str = "istio.alpn";
/// Istio's statistics.
pub const STATS: &str = "istio.stats";
/// Istio's peer metadata over HTTP.
pub const PEER_METADATA: &str = "envoy.filters.http.peer_metadata";
