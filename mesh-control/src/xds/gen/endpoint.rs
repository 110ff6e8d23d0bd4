//! Load assignments.

use mesh_api::model::{Endpoint, EndpointSet, HealthStatus, LocalityEndpoints};
use serde_json::{Map, Value};

use super::wire::{Message, address, structure};

/// `ClusterLoadAssignment`.
pub fn endpoints(set: &EndpointSet) -> Message {
    let message = Message::new().str(1, &set.cluster).msgs(2, set.localities.iter().map(locality));
    if set.overprovisioning.is_none() && set.drops.is_empty() {
        return message;
    }
    let drops = set.drops.iter().map(|(category, share)| Message::new().str(1, category).fraction(2, *share));
    message.msg(4, Message::new().msgs(2, drops).wrapped_maybe(3, set.overprovisioning))
}

fn locality(group: &LocalityEndpoints) -> Message {
    let place = &group.locality;
    let locality = Message::new().str(1, &place.region).str(2, &place.zone).str(3, &place.sub_zone);
    Message::new()
        .msg(1, locality)
        .msgs(2, group.endpoints.iter().map(endpoint))
        .wrapped_maybe(3, group.weight)
        .uint(5, group.priority.into())
}

fn endpoint(endpoint: &Endpoint) -> Message {
    let health = match endpoint.health {
        // UNKNOWN, which counts as healthy, costs nothing.
        HealthStatus::Healthy => 0,
        HealthStatus::Unhealthy => 2,
        HealthStatus::Draining => 3,
        HealthStatus::Timeout => 4,
        HealthStatus::Degraded => 5,
    };
    let host = Message::new().msg(1, address(&endpoint.address)).str(3, &endpoint.hostname);
    Message::new().msg(1, host).uint(2, health).metadata(3, metadata(endpoint)).wrapped(4, endpoint.weight)
}

/// Metadata that load balancing and telemetry look at.
fn metadata(endpoint: &Endpoint) -> Message {
    let mut all = endpoint.metadata.clone();
    if !endpoint.tls_labels.is_empty() {
        let labels: Map<String, Value> =
            endpoint.tls_labels.iter().map(|(k, v)| (k.clone(), Value::String(v.clone()))).collect();
        all.insert("envoy.transport_socket_match".to_owned(), Value::Object(labels));
    }
    if !endpoint.workload.is_empty() {
        let istio = all.entry("istio".to_owned()).or_insert_with(|| Value::Object(Map::new()));
        if let Some(object) = istio.as_object_mut() {
            object.insert("workload".to_owned(), Value::String(endpoint.workload.to_string()));
        }
    }
    let mut message = Message::new();
    for (name, value) in &all {
        message = message.entry(1, name, structure(value));
    }
    message
}
