//! Endpoints.

use std::collections::HashMap;

use serde_json::Value;

use super::{Dump, address, list_at, str_at};
use crate::args::PartArgs;
use crate::output::Table;

/// ENDPOINT, STATUS, OUTLIER CHECK, CLUSTER and the service that is the cause. Whether an endpoint is ejected only the
/// proxy itself knows.
pub fn view(dump: &Dump, args: &PartArgs) -> (Table, Vec<Value>) {
    let mut all = dump.endpoints();
    all.sort_by_key(|e| str_at(e, "/cluster_name"));
    all.retain(|e| args.cluster.as_deref().is_none_or(|c| c == str_at(e, "/cluster_name")));
    let (services, ejected) = (dump.services(), dump.health.as_ref().map(ejected));
    let mut table = Table::new(&["ENDPOINT", "STATUS", "OUTLIER CHECK", "CLUSTER", "SOURCE"]);
    for assignment in &all {
        let cluster = str_at(assignment, "/cluster_name");
        let source = services.get(cluster).map_or("-", String::as_str);
        for endpoint in list_at(assignment, "/endpoints").flat_map(|l| list_at(l, "/lb_endpoints")) {
            let (ip, port) = address(endpoint.pointer("/endpoint/address").unwrap_or(&Value::Null));
            let status = match str_at(endpoint, "/health_status") {
                "" | "UNKNOWN" => "HEALTHY",
                other => other,
            };
            let wanted = args.address.as_deref().is_none_or(|a| a == ip)
                && args.port.is_none_or(|p| port == Some(u64::from(p)))
                && args.status.as_deref().is_none_or(|s| s.eq_ignore_ascii_case(status));
            if !wanted {
                continue;
            }
            let place = port.map_or_else(|| ip.clone(), |p| format!("{ip}:{p}"));
            let outlier = match ejected.as_ref().map(|e| e.get(&(cluster, ip, port))) {
                Some(Some(true)) => "FAILED",
                Some(Some(false)) => "OK",
                _ => "-",
            };
            table.row([&place, status, outlier, cluster, source]);
        }
    }
    (table, all.into_iter().cloned().collect())
}

/// By cluster and address: the endpoint is out of the pool for its failures.
fn ejected(clusters: &Value) -> HashMap<(&str, String, Option<u64>), bool> {
    let mut found = HashMap::new();
    for cluster in list_at(clusters, "/cluster_statuses") {
        for host in list_at(cluster, "/host_statuses") {
            let (ip, port) = address(host.get("address").unwrap_or(&Value::Null));
            // Envoy leaves out what is false.
            let failed = host.pointer("/health_status/failed_outlier_check").and_then(Value::as_bool).unwrap_or(false);
            found.insert((str_at(cluster, "/name"), ip, port), failed);
        }
    }
    found
}
