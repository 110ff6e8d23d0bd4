//! Endpoints.

use serde_json::Value;

use super::{Dump, address, list_at, str_at};
use crate::args::PartArgs;
use crate::output::Table;

/// ENDPOINT, STATUS, OUTLIER CHECK, CLUSTER.
pub fn view(dump: &Dump, args: &PartArgs) -> (Table, Vec<Value>) {
    let lists = [("static_endpoint_configs", "/endpoint_config"), ("dynamic_endpoint_configs", "/endpoint_config")];
    let mut all = dump.resources("EndpointsConfigDump", &lists);
    all.sort_by_key(|e| str_at(e, "/cluster_name"));
    all.retain(|e| args.cluster.as_deref().is_none_or(|c| c == str_at(e, "/cluster_name")));
    let mut table = Table::new(&["ENDPOINT", "STATUS", "OUTLIER CHECK", "CLUSTER"]);
    for assignment in &all {
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
            let ejected = endpoint.pointer("/metadata/filter_metadata/mesh/ejected").and_then(Value::as_bool);
            let outlier = if ejected == Some(true) { "FAILED" } else { "OK" };
            table.row([&place, status, outlier, str_at(assignment, "/cluster_name")]);
        }
    }
    (table, all.into_iter().cloned().collect())
}
