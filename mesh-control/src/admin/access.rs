//! Who may see the debug pages: this host, and workloads of the root namespace with a token.

use std::{net::IpAddr, sync::Arc};

use axum::{
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};

use super::{Admin, peer};
use crate::xds::{caller::Peer, generator::Generator};

/// Namespace whose workloads may look at everything.
const ROOT_NAMESPACE: &str = "istio-system";

/// Lets a request through or refuses it.
pub(super) async fn guard<G: Generator>(State(admin): State<Arc<Admin<G>>>, request: Request, next: Next) -> Response {
    let refuse = |why: &str| (StatusCode::FORBIDDEN, format!("{why}\n")).into_response();
    // A page in a browser must not read this by way of the user's own machine.
    if request.headers().contains_key(header::ORIGIN) {
        return refuse("not for browsers");
    }
    if !host_permitted(request.headers()) {
        return refuse("unknown host name");
    }
    let local = peer(&request).is_some_and(|from| from.0.ip().to_canonical().is_loopback());
    if local {
        return next.run(request).await;
    }
    let Some(authenticate) = admin.authenticate.load_full() else {
        return refuse("debug pages are for this host only");
    };
    let token = request.headers().get(header::AUTHORIZATION).and_then(|v| v.to_str().ok());
    let token = token.and_then(|v| v.strip_prefix("Bearer ")).map(str::to_owned);
    match authenticate.authenticate(&Peer::default(), token.as_deref()).await {
        Ok(id) if id.namespace == ROOT_NAMESPACE => next.run(request).await,
        Ok(id) => refuse(&format!("{id} may not see debug pages")),
        Err(why) => refuse(&why),
    }
}

/// An address, or a name that this server is known by; any other name points here by an attacker's DNS.
fn host_permitted(headers: &HeaderMap) -> bool {
    let Some(host) = headers.get(header::HOST) else { return true };
    let Ok(host) = host.to_str() else { return false };
    let name = match host.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name.parse::<IpAddr>().is_ok()
        || name == "localhost"
        || name == "istiod"
        || name.ends_with(".svc")
        || name.contains(".svc.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_names_are_refused() {
        let permitted = |host: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, host.parse().unwrap());
            host_permitted(&headers)
        };
        for host in ["localhost:15014", "127.0.0.1", "[::1]:80", "istiod.istio-system.svc:15014"] {
            assert!(permitted(host), "{host}");
        }
        for host in ["x", "evil.example:15014", "[x]"] {
            assert!(!permitted(host), "{host}");
        }
    }
}
