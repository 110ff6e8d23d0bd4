//! `/stats` in Envoy's forms, and everything for Prometheus.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use serde_json::{Value, json};

use super::Handles;
use crate::net::limits::Limits;
use crate::upstream::Cluster;
use crate::upstream::stats::{Codes, RouteStats};

/// Counters and gauges that are not Istio's: name in Envoy's dotted form, Prometheus name and labels, value.
struct Stat {
    dotted: String,
    name: String,
    labels: Vec<(&'static str, String)>,
    value: u64,
    counter: bool,
}

/// Before the names of what Istio's agent counts.
const AGENT: &str = "istio_agent_";

fn collect(handles: &Handles) -> Vec<Stat> {
    let snapshot = handles.shared.load();
    let mut out = Vec::new();
    let uptime = handles.started.elapsed().unwrap_or_default().as_secs();
    let server = [
        ("uptime", uptime),
        ("live", u64::from(handles.readiness.check().is_ok())),
        ("concurrency", handles.concurrency as u64),
        ("memory_allocated", resident()),
        ("memory_heap_size", resident()),
    ];
    for (name, value) in server {
        out.push(Stat {
            dotted: format!("server.{name}"),
            name: format!("envoy_server_{name}"),
            labels: vec![],
            value,
            counter: false,
        });
    }
    for listener in snapshot.listeners.values() {
        let stats = &listener.stats;
        let name = listener.config.name.to_string();
        let all = [
            ("downstream_cx_total", &stats.connections, true),
            ("downstream_cx_active", &stats.active, false),
            ("no_filter_chain_match", &stats.no_filter_chain_match, true),
            ("downstream_listener_filter_error", &stats.refused, true),
            ("downstream_pre_cx_timeout", &stats.inspection_timeout, true),
            ("ssl.connection_error", &stats.tls_errors, true),
            ("downstream_cx_overflow", &stats.overflow, true),
        ];
        for (key, value, counter) in all {
            out.push(Stat {
                dotted: format!("listener.{name}.{key}"),
                name: format!("envoy_listener_{}", key.replace('.', "_")),
                labels: vec![("listener_address", name.clone())],
                value: value.load(Relaxed),
                counter,
            });
        }
    }
    snapshot.clusters.values().for_each(|cluster| of_cluster(cluster, &mut out));
    for ((host, prefix), stats) in handles.shared.route_stats.list() {
        of_route(&host, &prefix, &stats, &mut out);
    }
    of_limits(&handles.shared.limits, &mut out);
    for (prefix, stats) in handles.telemetry.http.list() {
        for (key, value, counter) in stats.all() {
            let mut labels = vec![("http_conn_manager_prefix", prefix.to_string())];
            let class = key.strip_prefix("downstream_rq_").filter(|rest| rest.ends_with("xx"));
            let plain = if class.is_some() { "downstream_rq" } else { key };
            labels.extend(class.map(|class| ("response_code_class", class.to_owned())));
            let dotted = format!("http.{prefix}.{key}");
            out.push(Stat { dotted, name: format!("envoy_http_{}", plain.replace('.', "_")), labels, value, counter });
        }
    }
    out.push(Stat {
        dotted: "access_log.lines_dropped".to_owned(),
        name: "mesh_proxy_access_log_lines_dropped".to_owned(),
        labels: vec![],
        value: handles.telemetry.logs.files.dropped(),
        counter: true,
    });
    for (key, value) in handles.names.iter().flat_map(|n| n.stats.counters()) {
        let name = format!("{AGENT}{key}");
        out.push(Stat { dotted: key.replacen('_', ".", 1), name, labels: vec![], value, counter: true });
    }
    let counters = handles.telemetry.logs.exports.counters();
    for (key, value) in [("sent", &counters.sent), ("dropped", &counters.dropped)] {
        out.push(Stat {
            dotted: format!("access_log.records_{key}"),
            name: format!("mesh_proxy_access_log_records_{key}"),
            labels: vec![],
            value: value.load(Relaxed),
            counter: true,
        });
    }
    out.push(Stat {
        dotted: "tracing.spans_dropped".to_owned(),
        name: "mesh_proxy_spans_dropped".to_owned(),
        labels: vec![],
        value: handles.telemetry.spans.dropped.load(Relaxed),
        counter: true,
    });
    out.sort_by(|a, b| (&a.name, &a.labels).cmp(&(&b.name, &b.labels)));
    out
}

fn of_cluster(cluster: &Cluster, out: &mut Vec<Stat>) {
    let name =
        if cluster.config.alt_stat_name.is_empty() { &cluster.config.name } else { &cluster.config.alt_stat_name };
    let one = |(key, value): (&str, u64), counter| {
        let key = family(key);
        Stat {
            dotted: format!("cluster.{name}.{key}"),
            name: format!("envoy_cluster_{}", key.replace('.', "_")),
            labels: vec![("cluster_name", name.to_string())],
            value,
            counter,
        }
    };
    out.extend(cluster.stats.counters().map(|c| one(c, true)));
    out.extend(cluster.stats.gauges().map(|g| one(g, false)));
    let answered = |kind: &'static str, code: String, value| Stat {
        dotted: format!("cluster.{name}.upstream_rq_{code}"),
        name: "envoy_cluster_upstream_rq".to_owned(),
        labels: vec![(kind, code), ("cluster_name", name.to_string())],
        value,
        counter: true,
    };
    out.extend(answers(&cluster.stats.codes).map(|(kind, code, n)| answered(kind, code, n)));
}

/// Answers by status and by class: label, its value, number.
fn answers(codes: &Codes) -> impl Iterator<Item = (&'static str, String, u64)> + '_ {
    let mut classes = BTreeMap::new();
    for (status, n) in codes.seen() {
        *classes.entry(status / 100).or_insert(0) += n;
    }
    let classes = classes.into_iter().map(|(class, n)| ("response_code_class", format!("{class}xx"), n));
    codes.seen().map(|(status, n)| ("response_code", status.to_string(), n)).chain(classes)
}

fn of_limits(limits: &Limits, out: &mut Vec<Stat>) {
    let mut one = |kind: &str, label, prefix: &str, key: &str, value: &AtomicU64, counter| {
        let name = format!("envoy_{kind}_{key}");
        let labels = vec![(label, prefix.to_owned())];
        out.push(Stat { dotted: format!("{kind}.{prefix}.{key}"), name, labels, value: value.load(Relaxed), counter });
    };
    for (prefix, stats) in limits.connections.list() {
        let (kind, label) = ("connection_limit", "connection_limit_prefix");
        one(kind, label, &prefix, "limited_connections", &stats.limited_connections, true);
        one(kind, label, &prefix, "active_connections", &stats.active_connections, false);
    }
    for (prefix, stats) in limits.rates.list() {
        let (kind, label) = ("local_rate_limit", "local_network_ratelimit_prefix");
        one(kind, label, &prefix, "rate_limited", &stats.rate_limited, true);
    }
}

/// As Istio's proxies name it: neither host nor prefix is a label.
fn of_route(host: &str, prefix: &str, stats: &RouteStats, out: &mut Vec<Stat>) {
    let scope = format!("vhost.{host}.route.{prefix}");
    let plain: String = scope.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    let one = |dotted: String, key: &str, labels, value| Stat {
        dotted,
        name: format!("envoy_{plain}_{key}"),
        labels,
        value,
        counter: true,
    };
    out.extend(stats.counters().map(|(key, n)| one(format!("{scope}.{key}"), key, vec![], n)));
    let answered = |(kind, code, n): (&'static str, String, u64)| {
        one(format!("{scope}.upstream_rq_{code}"), "upstream_rq", vec![(kind, code)], n)
    };
    out.extend(answers(&stats.codes).map(answered));
}

/// Envoy's name: those of a family have its name and a dot in front.
fn family(key: &str) -> String {
    let families =
        [("outlier_ejections_", "outlier_detection.ejections_"), ("ssl_", "ssl."), ("health_check_", "health_check.")];
    let found = families.iter().find_map(|(from, to)| Some(format!("{to}{}", key.strip_prefix(from)?)));
    found.unwrap_or_else(|| key.to_owned())
}

/// Bytes of memory that are resident.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = statm.split(' ').nth(1).and_then(|p| p.parse().ok()).unwrap_or(0);
    pages * 4096
}

/// Lines of `name: value`; `filter` is a regular expression.
pub fn text(handles: &Handles, filter: Option<&str>) -> String {
    let filter = filter.and_then(|f| regex::Regex::new(f).ok());
    let mut lines: Vec<String> = collect(handles)
        .into_iter()
        .filter(|s| filter.as_ref().is_none_or(|f| f.is_match(&s.dotted)))
        .map(|s| format!("{}: {}\n", s.dotted, s.value))
        .collect();
    lines.sort();
    lines.concat()
}

/// `{"stats": [{"name", "value"}]}`.
pub fn json(handles: &Handles) -> Value {
    let stats: Vec<Value> = collect(handles).into_iter().map(|s| json!({"name": s.dotted, "value": s.value})).collect();
    json!({"stats": stats})
}

/// Istio's metrics, then Envoy's.
pub fn prometheus(handles: &Handles) -> String {
    let mut out = String::new();
    handles.telemetry.metrics.write(&mut out);
    let mut last = String::new();
    for stat in collect(handles) {
        // Writing into a String cannot fail.
        if stat.name != last {
            let _ = writeln!(out, "# TYPE {} {}", stat.name, if stat.counter { "counter" } else { "gauge" });
        }
        let escaped = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let labels: Vec<String> = stat.labels.iter().map(|(k, v)| format!("{k}=\"{}\"", escaped(v))).collect();
        let _ = writeln!(out, "{}{{{}}} {}", stat.name, labels.join(","), stat.value);
        last = stat.name;
    }
    if let Some(names) = &handles.names {
        names.stats.write_durations(AGENT, &mut out);
    }
    out
}
