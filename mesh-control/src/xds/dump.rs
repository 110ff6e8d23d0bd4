//! `/debug/config_dump`: what a client holds, in Envoy's shape.
//!
//! Owns the way from shared bytes to [`ConfigDump`]; the JSON itself is made by what the planes share.

use axum::{
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use mesh_api::xds::{
    TypeUrl,
    dump::{ConfigDump, DumpEntry, DumpQuery},
};

use super::hub::Held;

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
            TypeUrl::Extension => {}
        }
    }
    dump
}

/// The page, in Envoy's shape. `types` limits it, like `cds,rds`. Endpoints are always shown: it is the control plane
/// that is asked, and it knows them.
pub async fn respond(held: &[Held], types: &str) -> Response {
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
