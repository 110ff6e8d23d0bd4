//! The one table of fields that are known, and read, but have no effect yet. A field leaves the table with the change
//! that gives it its effect.

use serde_json::Value;

use super::Finding;
use crate::source::object::Kind;

/// Kind, path of the field (`[]`: every item), and what is to be said.
type Row = (Kind, &'static str, &'static str);

/// Fields without effect.
const TABLE: &[Row] = &[
    (Kind::AuthorizationPolicy, "spec.provider", "external authorizers are not asked yet"),
    (Kind::DestinationRule, "spec.trafficPolicy.tunnel", "tunnels are not opened yet"),
    (Kind::DestinationRule, "spec.trafficPolicy.proxyProtocol", "is not sent to upstreams yet"),
    (Kind::DestinationRule, "spec.trafficPolicy.retryBudget", "retries are not limited by a budget yet"),
    (Kind::DestinationRule, "spec.subsets[].trafficPolicy.tunnel", "tunnels are not opened yet"),
    (Kind::Gateway, "spec.addresses", "addresses are what the gateway's process listens on"),
    (Kind::Gateway, "spec.infrastructure", "gateways are not deployed yet"),
    (Kind::HttpRoute, "spec.rules[].sessionPersistence", "sessions do not stick yet"),
    (Kind::GrpcRoute, "spec.rules[].sessionPersistence", "sessions do not stick yet"),
    (Kind::Ingress, "spec", "Ingress objects are not translated yet"),
    (Kind::ProxyConfig, "spec", "is not merged into proxies' settings yet"),
    (Kind::RequestAuthentication, "spec.jwtRules", "tokens are not checked yet"),
    (Kind::Sidecar, "spec.inboundConnectionPool", "inbound connections are not limited yet"),
    (Kind::Telemetry, "spec.metrics", "metrics are Istio's defaults; overrides are not applied yet"),
    (Kind::VirtualService, "spec.http[].match[].statPrefix", "routes have no statistics of their own yet"),
    (Kind::WorkloadGroup, "spec.probe", "workloads of a group are not probed yet"),
];

/// What of a manifest has no effect.
pub fn without_effect(kind: Kind, manifest: &Value) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (_, path, why) in TABLE.iter().filter(|(k, ..)| *k == kind) {
        find(manifest, path, String::new(), &mut |field| {
            findings.push(Finding::info(field, format!("has no effect: {why}")));
        });
    }
    findings
}

/// Calls back with the concrete path of every place where `path` leads.
fn find(value: &Value, path: &str, so_far: String, found: &mut impl FnMut(String)) {
    let (step, rest) = path.split_once('.').map_or((path, ""), |(s, r)| (s, r));
    let key = step.trim_end_matches("[]");
    let Some(child) = value.get(key) else { return };
    let here = if so_far.is_empty() { key.to_owned() } else { format!("{so_far}.{key}") };
    let mut next = |child: &Value, here: String| {
        if rest.is_empty() {
            found(here);
        } else {
            find(child, rest, here, found);
        }
    };
    if step.ends_with("[]") {
        for (i, item) in child.as_array().into_iter().flatten().enumerate() {
            next(item, format!("{here}[{i}]"));
        }
    } else {
        next(child, here);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_every_place() {
        let manifest = serde_json::json!({"spec": {"http": [{}, {"match": [{"uri": {}}, {"statPrefix": "a"}]}]}});
        let fields: Vec<_> = without_effect(Kind::VirtualService, &manifest).into_iter().map(|f| f.field).collect();
        assert_eq!(fields, ["spec.http[1].match[1].statPrefix"]);
        assert!(without_effect(Kind::VirtualService, &serde_json::json!({"spec": {}})).is_empty());
    }
}
