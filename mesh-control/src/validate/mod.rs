//! What Istio would refuse, and what it would warn of: one `validate` serves the folder, the webhook and the command
//! line. Looks at one object at a time; what needs others is in `references`.

mod checks;
pub mod codes;
mod conventions;
mod effect;
mod envoy_filter;
mod extensions;
mod finding;
mod gateway_api;
mod ingress;
mod mesh_config;
mod networking;
mod reachability;
pub mod references;
mod security;
mod services;
pub(crate) mod sound;
mod traffic_policy;

pub use conventions::suppressed;
#[cfg(test)]
pub(crate) use effect::why_without;
pub use effect::without_effect;
pub use finding::{Finding, Level};
pub use mesh_config::{INJECTOR, MESH_CONFIG, decode as decode_mesh_config, is_mesh_config, resembles_mesh_config};

use crate::source::object::{Object, Spec};

/// Everything that is wrong with, or worth saying of, one object. An [`Level::Error`] means it is refused.
pub fn validate(object: &Object) -> Vec<Finding> {
    let mut out = checks::Report::default();
    out.name(&object.key);
    conventions::annotations(object.key.kind, &object.meta.annotations, &mut out);
    match &object.spec {
        Spec::VirtualService(s) => networking::virtual_service(s, &mut out),
        Spec::DestinationRule(s) => traffic_policy::destination_rule(s, &mut out),
        Spec::IstioGateway(s) => services::gateway(s, &mut out),
        Spec::ServiceEntry(s) => services::service_entry(s, &mut out),
        Spec::WorkloadEntry(s) => services::workload_entry(s, "spec", &mut out),
        Spec::WorkloadGroup(s) => services::workload_entry(&s.template, "spec.template", &mut out),
        Spec::Sidecar(s) => services::sidecar(s, &mut out),
        Spec::EnvoyFilter(s) => envoy_filter::envoy_filter(s, &mut out),
        Spec::PeerAuthentication(s) => security::peer_authentication(s, &object.key, &mut out),
        Spec::RequestAuthentication(s) => security::request_authentication(s, &mut out),
        Spec::AuthorizationPolicy(s) => security::authorization_policy(s, &mut out),
        Spec::Telemetry(s) => security::telemetry(s, &mut out),
        Spec::WasmPlugin(s) => extensions::wasm_plugin(s, &mut out),
        Spec::TrafficExtension(s) => extensions::traffic_extension(s, &mut out),
        Spec::Gateway(s) => gateway_api::gateway(s, &mut out),
        Spec::HttpRoute(s) => gateway_api::http_route(s, &mut out),
        Spec::GrpcRoute(s) => gateway_api::grpc_route(s, &mut out),
        Spec::ReferenceGrant(s) => gateway_api::reference_grant(s, &mut out),
        Spec::TlsRoute(s) => gateway_api::tls_route(s, &mut out),
        Spec::TcpRoute(s) => gateway_api::tcp_route(s, &mut out),
        Spec::BackendTlsPolicy(s) => gateway_api::backend_tls_policy(s, &mut out),
        Spec::ListenerSet(s) => gateway_api::listener_set(s, &mut out),
        Spec::ConfigMap(map) if is_mesh_config(&object.key) => mesh_config::config_map(map, &mut out),
        Spec::Ingress(s) => ingress::ingress(s, &mut out),
        Spec::Namespace => conventions::namespace(&object.meta.labels, &mut out),
        Spec::Service(s) => conventions::service(&object.key, s, &mut out),
        Spec::Node
        | Spec::EndpointSlice(_)
        | Spec::Pod(_)
        | Spec::Secret(_)
        | Spec::ConfigMap(_)
        | Spec::IngressClass(_)
        | Spec::ProxyConfig(_)
        | Spec::GatewayClass(_) => {}
    }
    for finding in &mut out.findings {
        finding.code_by_level();
    }
    out.findings
}

#[cfg(test)]
mod tests;
