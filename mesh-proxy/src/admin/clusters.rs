//! `/clusters`: endpoints of every cluster with their counters, in Envoy's text and JSON forms.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::Handles;
use crate::upstream::{Cluster, Endpoint};

fn sorted(handles: &Handles) -> Vec<std::sync::Arc<Cluster>> {
    let snapshot = handles.shared.load();
    let mut all: Vec<_> = snapshot.clusters.values().cloned().collect();
    all.sort_by(|a, b| a.config.name.cmp(&b.config.name));
    all
}

/// Lines of `cluster::address::key::value`.
pub fn text(handles: &Handles) -> String {
    let mut out = String::new();
    for cluster in sorted(handles) {
        let name = &cluster.config.name;
        // Writing into a String cannot fail.
        let _ = writeln!(out, "{name}::observability_name::{name}");
        for (priority, limits) in ["default_priority", "high_priority"].iter().zip(&cluster.config.circuit_breakers) {
            let _ = writeln!(out, "{name}::{priority}::max_connections::{}", limits.max_connections);
            let _ = writeln!(out, "{name}::{priority}::max_pending_requests::{}", limits.max_pending);
            let _ = writeln!(out, "{name}::{priority}::max_requests::{}", limits.max_requests);
            let _ = writeln!(out, "{name}::{priority}::max_retries::{}", limits.max_retries);
        }
        for endpoint in cluster.endpoints() {
            let place = place(&endpoint);
            let stats = &endpoint.state.stats;
            for (key, value) in stats.gauges().chain(stats.counters()) {
                let _ = writeln!(out, "{name}::{place}::{key}::{value}");
            }
            let locality = &endpoint.locality;
            let facts = [
                ("hostname", endpoint.config.hostname.to_string()),
                ("health_flags", endpoint.health_flags()),
                ("weight", endpoint.config.weight.to_string()),
                ("region", locality.region.to_string()),
                ("zone", locality.zone.to_string()),
                ("sub_zone", locality.sub_zone.to_string()),
                ("canary", "false".to_owned()),
                ("priority", endpoint.priority.to_string()),
            ];
            for (key, value) in facts {
                let _ = writeln!(out, "{name}::{place}::{key}::{value}");
            }
        }
    }
    out
}

fn place(endpoint: &Endpoint) -> String {
    endpoint.socket_addr().map_or_else(|| endpoint.config.address.to_string(), |a| a.to_string())
}

/// `envoy.admin.v3.Clusters`.
pub fn json(handles: &Handles) -> Value {
    let hosts = |cluster: &Cluster| -> Vec<Value> {
        cluster
            .endpoints()
            .iter()
            .map(|e| {
                let address = match e.socket_addr() {
                    Some(a) => json!({"socket_address": {"address": a.ip().to_string(), "port_value": a.port()}}),
                    None => json!({"pipe": {"path": e.config.address.to_string()}}),
                };
                let flags = e.health_flags();
                let stats = &e.state.stats;
                let stat = |(name, value): (&str, u64), kind: &str| json!({"name": name, "value": value.to_string(), "type": kind});
                let counters = stats.counters().map(|c| stat(c, "COUNTER"));
                let all: Vec<Value> = counters.chain(stats.gauges().map(|g| stat(g, "GAUGE"))).collect();
                json!({
                    "address": address,
                    "stats": all,
                    "health_status": {
                        "eds_health_status": if flags.contains("eds") { "UNHEALTHY" } else { "HEALTHY" },
                        "failed_outlier_check": flags.contains("failed_outlier_check"),
                        "failed_active_health_check": flags.contains("failed_active_hc"),
                    },
                    "weight": e.config.weight,
                    "priority": e.priority,
                    "locality": {"region": *e.locality.region, "zone": *e.locality.zone, "sub_zone": *e.locality.sub_zone},
                })
            })
            .collect()
    };
    let statuses: Vec<Value> = sorted(handles)
        .iter()
        .map(|c| json!({"name": *c.config.name, "observability_name": *c.config.name, "host_statuses": hosts(c)}))
        .collect();
    json!({"cluster_statuses": statuses})
}
