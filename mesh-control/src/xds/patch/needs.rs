//! What a client asks for because of a resource, told from the resource itself: what was generated says so on its own,
//! what users wrote does not.

use mesh_api::xds::TypeUrl;
use prost_reflect::{DynamicMessage, ReflectMessage as _, Value};

use super::dynamic::{self, is_any, message, text};
use crate::xds::encoded::Need;

/// How deep it is looked.
const MAX_DEPTH: usize = 64;

/// Resources that this one refers to and that come over the same stream.
pub(super) fn of(resource: &DynamicMessage) -> Vec<Need> {
    let mut out = Vec::new();
    below(resource, 0, &mut out);
    out
}

fn below(holder: &DynamicMessage, depth: usize, out: &mut Vec<Need>) {
    if depth > MAX_DEPTH {
        return;
    }
    if is_any(holder) {
        if let Some(inner) = dynamic::unpack(holder) {
            below(&inner, depth + 1, out);
        }
        return;
    }
    let over_ads = |field: &str| message(holder, field).is_some_and(|source| message(source, "ads").is_some());
    match holder.descriptor().full_name() {
        "envoy.config.cluster.v3.Cluster" => endpoints(holder, out),
        "envoy.extensions.filters.network.http_connection_manager.v3.Rds" if over_ads("config_source") => {
            add(TypeUrl::Route, text(holder, "route_config_name"), out);
        }
        "envoy.extensions.transport_sockets.tls.v3.SdsSecretConfig" if over_ads("sds_config") => {
            add(TypeUrl::Secret, text(holder, "name"), out);
        }
        _ => {
            let discovery = message(holder, "config_discovery").and_then(|d| message(d, "config_source"));
            if discovery.is_some_and(|source| message(source, "ads").is_some()) {
                add(TypeUrl::Extension, text(holder, "name"), out);
            }
        }
    }
    for (_, value) in holder.fields() {
        match value {
            Value::Message(inner) => below(inner, depth + 1, out),
            Value::List(list) => list.iter().filter_map(Value::as_message).for_each(|m| below(m, depth + 1, out)),
            Value::Map(map) => {
                // In the order of the keys, so that equal resources have equal needs.
                let mut entries: Vec<_> = map.iter().filter_map(|(k, v)| Some((k, v.as_message()?))).collect();
                entries.sort_by(|a, b| a.0.cmp(b.0));
                entries.into_iter().for_each(|(_, inner)| below(inner, depth + 1, out));
            }
            _ => {}
        }
    }
}

fn endpoints(cluster: &DynamicMessage, out: &mut Vec<Need>) {
    const EDS: u32 = 3;
    if dynamic::number(cluster, "type") != Some(EDS) {
        return;
    }
    let config = message(cluster, "eds_cluster_config");
    let source = config.and_then(|c| message(c, "eds_config"));
    if source.is_some_and(|source| message(source, "ads").is_some()) {
        let service = config.map(|c| text(c, "service_name")).unwrap_or_default();
        let name = if service.is_empty() { text(cluster, "name") } else { service };
        add(TypeUrl::Endpoints, name, out);
    }
}

fn add(ty: TypeUrl, name: &str, out: &mut Vec<Need>) {
    if !name.is_empty() && !out.iter().any(|n| n.ty == ty && *n.name == *name) {
        out.push(Need { ty, name: name.into() });
    }
}
