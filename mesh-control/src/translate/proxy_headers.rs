//! Headers that proxies add, as `proxyHeaders` of a proxy or of the mesh says.
//!
//! Owns which settings count and what they mean for routes and for the HTTP manager. Must not know where routes come from.

use mesh_api::{
    meshconfig::{DisabledFlag, MeshConfig, ProxyHeaders, ProxySettings},
    model::{Action, ClientCertDetails, RouteConfig},
};
use serde_json::Value;

/// The settings that count: those of the proxy, else those of the mesh.
pub fn of<'a>(settings: &'a ProxySettings, mesh: &'a MeshConfig) -> Option<&'a ProxyHeaders> {
    settings.proxy_headers.as_ref().or(mesh.default_config.proxy_headers.as_ref())
}

/// Switched off.
pub fn off(flag: Option<&DisabledFlag>) -> bool {
    flag.is_some_and(|f| f.disabled == Some(true))
}

/// Switched on, of those that are off unless they are.
pub fn on(flag: Option<&DisabledFlag>) -> bool {
    flag.is_some_and(|f| f.enabled == Some(true))
}

/// What of `details` is asked for otherwise.
pub fn client_cert_details(headers: &ProxyHeaders, details: ClientCertDetails) -> ClientCertDetails {
    let Some(asked) = &headers.set_current_client_cert_details else { return details };
    let flag = |name: &str, usual: bool| asked.get(name).and_then(Value::as_bool).unwrap_or(usual);
    ClientCertDetails {
        subject: flag("subject", true),
        cert: flag("cert", false),
        chain: flag("chain", false),
        dns: flag("dns", true),
        uri: flag("uri", true),
    }
}

/// What differs in the routes of a proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RouteHeaders {
    /// Upstreams learn how often a request was tried.
    attempts: bool,
    /// Hosts that routes rewrite are told in `x-forwarded-host`.
    forwarded_host: bool,
}

impl RouteHeaders {
    /// Of a proxy.
    pub fn of(settings: &ProxySettings, mesh: &MeshConfig) -> Self {
        let headers = of(settings, mesh);
        Self {
            attempts: !off(headers.and_then(|h| h.attempt_count.as_ref())),
            forwarded_host: on(headers.and_then(|h| h.x_forwarded_host.as_ref())),
        }
    }

    /// Applies it.
    pub fn apply(self, routes: &mut RouteConfig) {
        for host in &mut routes.virtual_hosts {
            host.include_request_attempt_count &= self.attempts;
            for route in &mut host.routes {
                if let Action::Forward(forward) = &mut route.action {
                    forward.append_x_forwarded_host |= self.forwarded_host;
                }
            }
        }
    }
}
