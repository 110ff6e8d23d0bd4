//! `/debug/config_dump`: what a client holds, in Envoy's shape.
//!
//! Owns the way from shared bytes to [`ConfigDump`]; the JSON itself is made by what the planes share.

use std::net::SocketAddr;

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use mesh_api::xds::{
    TypeUrl,
    dump::{ConfigDump, DumpEntry, DumpQuery},
};

use serde_json::Value;

use super::{hub::Held, node::Client};

/// Header that names the admin server of the proxy, where `bootstrap`, certificates and endpoints' states are: a proxy
/// on a loopback address tells it in its node metadata. A stock Envoy tells nothing.
const ADMIN_HEADER: &str = "x-proxy-admin";

/// Puts together what a client holds.
pub fn collect(held: &[Held]) -> ConfigDump {
    let mut dump = ConfigDump::default();
    for Held { ty, resources } in held {
        let entries = resources.iter().map(|e| DumpEntry {
            name: e.name().to_string(),
            version: e.version(),
            wire: Some(e.message()),
            ..DumpEntry::default()
        });
        match ty {
            TypeUrl::Cluster => dump.clusters.extend(entries),
            TypeUrl::Endpoints => dump.endpoints.extend(entries),
            TypeUrl::Secret => dump.secrets.extend(entries),
            TypeUrl::Listener => dump.listeners.extend(entries),
            TypeUrl::Route => dump.routes.extend(entries),
            // Envoy's dump has no place for these.
            TypeUrl::Extension | TypeUrl::NameTable => {}
        }
    }
    dump
}

/// The page, in Envoy's shape. `types` limits it, like `cds,rds`. Endpoints are always shown: it is the control plane
/// that is asked, and it knows them.
pub async fn respond(client: &Client, held: &[Held], types: &str) -> Response {
    let mut page = render(held, types).await;
    if let Some(admin) = admin_address(&client.raw_metadata) {
        page.headers_mut().insert(ADMIN_HEADER, admin);
    }
    page
}

/// What the proxy claims, if it is an address.
fn admin_address(metadata: &Value) -> Option<HeaderValue> {
    let address: SocketAddr = metadata.get("ADMIN_ADDRESS")?.as_str()?.parse().ok()?;
    HeaderValue::from_str(&address.to_string()).ok()
}

async fn render(held: &[Held], types: &str) -> Response {
    let wanted = |ty: TypeUrl| types.is_empty() || types.split(',').any(|t| t.eq_ignore_ascii_case(ty.short()));
    let held: Vec<Held> = held.iter().filter(|h| wanted(h.ty)).cloned().collect();
    // A large dump must not hold up streams.
    let text = tokio::task::spawn_blocking(move || {
        let query = DumpQuery { include_eds: true, ..DumpQuery::default() };
        collect(&held).render(&query).to_string()
    });
    match text.await {
        Ok(text) => (StatusCode::OK, [(header::CONTENT_TYPE, "application/json")], text).into_response(),
        Err(_) => (StatusCode::INTERNAL_SERVER_ERROR, "the dump cannot be made\n").into_response(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_admin_address_is_named_if_it_is_one() {
        let named = |value: &str| admin_address(&json!({"ADMIN_ADDRESS": value}));
        assert_eq!(named("127.0.0.3:15000").unwrap(), "127.0.0.3:15000");
        assert!(named("web:15000").is_none() && named("127.0.0.1:1\r\nx: y").is_none());
        assert!(admin_address(&json!({})).is_none());
    }
}
