//! Listeners: a line for each way a connection can take.

use serde_json::Value;

use super::{Dump, address, cause, list_at, str_at};
use crate::args::PartArgs;
use crate::output::Table;

/// ADDRESSES, PORT, MATCH, DESTINATION and the cause.
pub fn view(dump: &Dump, args: &PartArgs) -> (Table, Vec<Value>) {
    let mut all = dump.listeners();
    all.sort_by_key(|l| address(l.get("address").unwrap_or(&Value::Null)));
    let place = |l: &Value| address(l.get("address").unwrap_or(&Value::Null));
    all.retain(|l| {
        let (ip, port) = place(l);
        args.address.as_deref().is_none_or(|a| a == ip)
            && args.port.is_none_or(|p| port == Some(u64::from(p)))
            && args.name.as_deref().is_none_or(|n| n == str_at(l, "/name"))
    });
    let mut table = Table::new(&["ADDRESSES", "PORT", "MATCH", "DESTINATION", "SOURCE"]);
    for listener in &all {
        let (ip, port) = place(listener);
        let port = port.map_or_else(|| "-".to_owned(), |p| p.to_string());
        let fallback = listener.get("default_filter_chain");
        for chain in list_at(listener, "/filter_chains").chain(fallback) {
            let cause = Some(cause(chain, "")).filter(|c| c != "-").unwrap_or_else(|| cause(listener, ""));
            table.row([ip.clone(), port.clone(), matching(chain), destination(chain), cause]);
        }
    }
    (table, all.into_iter().cloned().collect())
}

/// In istioctl's words: `SNI: a; Trans: tls; App: istio; Addr: 10.0.0.0/8:80`.
fn matching(chain: &Value) -> String {
    let Some(m) = chain.get("filter_chain_match") else { return "ALL".to_owned() };
    let names = |pointer: &str| list_at(m, pointer).filter_map(Value::as_str).collect::<Vec<_>>().join(",");
    let mut parts = Vec::new();
    let sni = names("/server_names");
    if !sni.is_empty() {
        parts.push(format!("SNI: {sni}"));
    }
    let transport = str_at(m, "/transport_protocol");
    if !transport.is_empty() {
        parts.push(format!("Trans: {transport}"));
    }
    let application = names("/application_protocols");
    if !application.is_empty() {
        parts.push(format!("App: {application}"));
    }
    let port = m.get("destination_port").and_then(Value::as_u64);
    let range = |r: &Value| {
        let bits = r.get("prefix_len").and_then(Value::as_u64).map(|n| format!("/{n}")).unwrap_or_default();
        format!("{}{bits}", str_at(r, "/address_prefix"))
    };
    let ranges: Vec<String> = list_at(m, "/prefix_ranges").map(range).collect();
    match (ranges.is_empty(), port) {
        (true, None) => {}
        (true, Some(p)) => parts.push(format!("Addr: *:{p}")),
        (false, None) => parts.push(format!("Addr: {}", ranges.join(","))),
        (false, Some(p)) => parts.push(format!("Addr: {}:{p}", ranges.join(","))),
    }
    if parts.is_empty() { "ALL".to_owned() } else { parts.join("; ") }
}

fn destination(chain: &Value) -> String {
    for filter in list_at(chain, "/filters") {
        let Some(config) = filter.get("typed_config") else { continue };
        let route = str_at(config, "/rds/route_config_name");
        if !route.is_empty() {
            return format!("Route: {route}");
        }
        if let Some(inline) = config.get("route_config") {
            return inline_route(inline);
        }
        let cluster = str_at(config, "/cluster");
        if !cluster.is_empty() {
            return format!("Cluster: {cluster}");
        }
        let weighted: Vec<&str> = list_at(config, "/weighted_clusters/clusters").map(|c| str_at(c, "/name")).collect();
        if !weighted.is_empty() {
            return format!("Cluster: {}", weighted.join(","));
        }
    }
    "Non-HTTP/Non-TCP".to_owned()
}

/// Inline routes to one cluster are named by it.
fn inline_route(config: &Value) -> String {
    let hosts = list_at(config, "/virtual_hosts");
    let mut clusters: Vec<&str> = hosts
        .flat_map(|h| list_at(h, "/routes"))
        .map(|r| str_at(r, "/route/cluster"))
        .filter(|c| !c.is_empty())
        .collect();
    clusters.dedup();
    match clusters.as_slice() {
        [only] => format!("Cluster: {only}"),
        _ => "Inline Route: /*".to_owned(),
    }
}
