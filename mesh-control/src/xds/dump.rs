//! `/debug/config_dump`: what a client holds, in Envoy's shape.
//!
//! Owns the way from shared bytes to [`ConfigDump`]; the JSON itself is made by what the planes share.

use axum::{
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use mesh_api::xds::{
    TypeUrl,
    dump::{ConfigDump, DumpEntry},
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

/// The page: names and versions of what a client holds. `types` limits it, like `cds,rds`.
pub fn respond(held: &[Held], types: &str) -> Response {
    let wanted = |ty: TypeUrl| types.is_empty() || types.split(',').any(|t| t.eq_ignore_ascii_case(ty.short()));
    let held: Vec<Held> = held.iter().filter(|h| wanted(h.ty)).cloned().collect();
    let list: serde_json::Map<String, serde_json::Value> = held
        .iter()
        .map(|h| {
            let resources: Vec<_> = h
                .resources
                .iter()
                .map(|e| serde_json::json!({"name": &**e.name(), "version": e.version(), "bytes": e.message().len()}))
                .collect();
            (h.ty.as_str().to_owned(), resources.into())
        })
        .collect();
    let text = serde_json::Value::Object(list).to_string();
    (StatusCode::OK, [(header::CONTENT_TYPE, "application/json")], text).into_response()
}
