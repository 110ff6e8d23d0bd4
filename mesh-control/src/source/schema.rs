//! JSON schemas of what manifests are read into: the types tell them themselves.
//!
//! Knows which type the `spec` of a kind has. Must not know what is done with a schema.

use mesh_api::{
    crd::{extensions, gateway_api, networking, security, telemetry},
    meshconfig::MeshConfig,
};
use schemars::schema_for;
use serde_json::Value;

use super::object::Kind;

/// Schema of the type that a kind's `spec` is read into; `None`: a kind of Kubernetes itself.
pub fn of(kind: Kind) -> Option<Value> {
    let schema = match kind {
        Kind::VirtualService => schema_for!(networking::VirtualService),
        Kind::DestinationRule => schema_for!(networking::DestinationRule),
        Kind::IstioGateway => schema_for!(networking::Gateway),
        Kind::ServiceEntry => schema_for!(networking::ServiceEntry),
        Kind::WorkloadEntry => schema_for!(networking::WorkloadEntry),
        Kind::WorkloadGroup => schema_for!(networking::WorkloadGroup),
        Kind::Sidecar => schema_for!(networking::Sidecar),
        Kind::ProxyConfig => schema_for!(networking::ProxyConfig),
        Kind::EnvoyFilter => schema_for!(networking::EnvoyFilter),
        Kind::PeerAuthentication => schema_for!(security::PeerAuthentication),
        Kind::RequestAuthentication => schema_for!(security::RequestAuthentication),
        Kind::AuthorizationPolicy => schema_for!(security::AuthorizationPolicy),
        Kind::Telemetry => schema_for!(telemetry::Telemetry),
        Kind::WasmPlugin => schema_for!(extensions::WasmPlugin),
        Kind::TrafficExtension => schema_for!(extensions::TrafficExtension),
        Kind::GatewayClass => schema_for!(gateway_api::GatewayClass),
        Kind::Gateway => schema_for!(gateway_api::Gateway),
        Kind::HttpRoute => schema_for!(gateway_api::HttpRoute),
        Kind::GrpcRoute => schema_for!(gateway_api::GrpcRoute),
        Kind::ReferenceGrant => schema_for!(gateway_api::ReferenceGrant),
        Kind::TlsRoute => schema_for!(gateway_api::TlsRoute),
        Kind::TcpRoute => schema_for!(gateway_api::TcpRoute),
        Kind::BackendTlsPolicy => schema_for!(gateway_api::BackendTlsPolicy),
        Kind::ListenerSet => schema_for!(gateway_api::ListenerSet),
        Kind::Namespace
        | Kind::Node
        | Kind::Service
        | Kind::EndpointSlice
        | Kind::Pod
        | Kind::Secret
        | Kind::ConfigMap
        | Kind::Ingress
        | Kind::IngressClass => return None,
    };
    Some(schema.to_value())
}

/// Schema of the settings of the mesh.
pub fn mesh_config() -> Value {
    schema_for!(MeshConfig).to_value()
}
