//! EnvoyFilter, by Istio's rules: which match goes with which part of the configuration, and that values are what Envoy
//! has there.

use mesh_api::crd::networking::envoy_filter::{
    ApplyTo, ConfigPatch, EnvoyFilter, FilterMatch, ObjectMatch, Operation, PatchContext,
};

use super::checks::Report;
use crate::xds::patch;

/// Network filter that speaks HTTP, and what it was called before version 3 of Envoy's API.
const HTTP_MANAGERS: [&str; 2] = ["envoy.filters.network.http_connection_manager", "envoy.http_connection_manager"];

/// Names that filters had before version 3 of Envoy's API; nothing is called so any more.
const OLD_NAMES: &[(&str, &str)] = &[
    ("envoy.buffer", "envoy.filters.http.buffer"),
    ("envoy.cors", "envoy.filters.http.cors"),
    ("envoy.csrf", "envoy.filters.http.csrf"),
    ("envoy.ext_authz", "envoy.filters.http.ext_authz"),
    ("envoy.fault", "envoy.filters.http.fault"),
    ("envoy.grpc_http1_bridge", "envoy.filters.http.grpc_http1_bridge"),
    ("envoy.grpc_json_transcoder", "envoy.filters.http.grpc_json_transcoder"),
    ("envoy.grpc_web", "envoy.filters.http.grpc_web"),
    ("envoy.gzip", "envoy.filters.http.compressor"),
    ("envoy.health_check", "envoy.filters.http.health_check"),
    ("envoy.ip_tagging", "envoy.filters.http.ip_tagging"),
    ("envoy.lua", "envoy.filters.http.lua"),
    ("envoy.rate_limit", "envoy.filters.http.ratelimit"),
    ("envoy.router", "envoy.filters.http.router"),
    ("envoy.listener.http_inspector", "envoy.filters.listener.http_inspector"),
    ("envoy.listener.original_dst", "envoy.filters.listener.original_dst"),
    ("envoy.listener.original_src", "envoy.filters.listener.original_src"),
    ("envoy.listener.proxy_protocol", "envoy.filters.listener.proxy_protocol"),
    ("envoy.listener.tls_inspector", "envoy.filters.listener.tls_inspector"),
    ("envoy.http_connection_manager", "envoy.filters.network.http_connection_manager"),
    ("envoy.mongo_proxy", "envoy.filters.network.mongo_proxy"),
    ("envoy.ratelimit", "envoy.filters.network.ratelimit"),
    ("envoy.redis_proxy", "envoy.filters.network.redis_proxy"),
    ("envoy.tcp_proxy", "envoy.filters.network.tcp_proxy"),
];

pub(super) fn envoy_filter(filter: &EnvoyFilter, out: &mut Report) {
    if let Some(selector) = &filter.workload_selector {
        let field = "spec.workloadSelector.labels";
        if selector.labels.is_empty() {
            out.warning("spec.workloadSelector", "has no labels: all workloads of the namespace are patched");
        }
        for (key, value) in &selector.labels {
            if key.contains('*') || value.contains('*') {
                out.error(field, "takes no wildcards");
            }
        }
        out.labels(field, &selector.labels);
        if !filter.target_refs.is_empty() {
            out.error("spec.targetRefs", "only one of workloadSelector and targetRefs is allowed");
        }
    }
    for (i, target) in filter.target_refs.iter().enumerate() {
        super::security::target_ref(&format!("spec.targetRefs[{i}]"), target, out);
    }
    for (i, config) in filter.config_patches.iter().enumerate() {
        config_patch(i, config, out);
    }
}

pub(super) fn config_patch(index: usize, config: &ConfigPatch, out: &mut Report) {
    let field = format!("spec.configPatches[{index}]");
    let matches = config.matches.as_ref();
    if let Some(m) = matches {
        object_types(m, &field, out);
        if m.context == PatchContext::Waypoint {
            return;
        }
    }
    if config.apply_to == ApplyTo::Invalid {
        return out.error(format!("{field}.applyTo"), "is required");
    }
    let Some(patch) = &config.patch else { return out.error(format!("{field}.patch"), "is required") };
    if patch.operation == Operation::Invalid {
        return out.error(format!("{field}.patch.operation"), "is required");
    }
    let Some(value) = &patch.value else {
        if patch.operation != Operation::Remove {
            out.error(format!("{field}.patch.value"), "is required, except to REMOVE");
        }
        return matches.map_or((), |m| object_match(config.apply_to, m, &field, out));
    };
    if let Some(m) = matches {
        object_match(config.apply_to, m, &field, out);
    }
    match patch::read_value(config.apply_to, index, value) {
        Err(problem) => out.error(problem.field, problem.message),
        Ok(message) if patch.operation != Operation::Remove => {
            // What is merged may leave the configuration as it is.
            let merges = matches!(patch.operation, Operation::Merge | Operation::MergeAndReplaceList);
            for name in patch::unconfigured(&message).into_iter().filter(|_| !merges) {
                let message = format!("{name:?} has no typed_config: Envoy finds no extension by its name alone");
                out.warning(format!("{field}.patch.value"), message);
            }
            let whole = matches!(
                (config.apply_to, patch.operation),
                (ApplyTo::Cluster | ApplyTo::Listener | ApplyTo::ExtensionConfig, Operation::Add)
            );
            if whole && value.get("name").and_then(serde_json::Value::as_str).is_none_or(str::is_empty) {
                out.error(format!("{field}.patch.value.name"), "is required of what is added");
            }
        }
        Ok(_) => {}
    }
}

/// The kinds of match exclude each other.
fn object_types(m: &ObjectMatch, field: &str, out: &mut Report) {
    let given = [m.listener.is_some(), m.route_configuration.is_some(), m.cluster.is_some(), m.waypoint.is_some()];
    if given.into_iter().filter(|given| *given).count() > 1 {
        let message = "only one of listener, routeConfiguration, cluster and waypoint is allowed";
        out.error(format!("{field}.match"), message);
    }
}

fn object_match(apply_to: ApplyTo, m: &ObjectMatch, field: &str, out: &mut Report) {
    if let Some(proxy) = m.proxy.as_ref().filter(|p| !p.proxy_version.is_empty()) {
        version(&proxy.proxy_version, &format!("{field}.match.proxy.proxyVersion"), out);
    }
    let any = m.listener.is_some() || m.route_configuration.is_some() || m.cluster.is_some() || m.waypoint.is_some();
    let (fits, wanted) = match apply_to {
        ApplyTo::Listener
        | ApplyTo::ListenerFilter
        | ApplyTo::FilterChain
        | ApplyTo::NetworkFilter
        | ApplyTo::HttpFilter => (m.listener.is_some(), "listener"),
        ApplyTo::RouteConfiguration | ApplyTo::VirtualHost | ApplyTo::HttpRoute => {
            (m.route_configuration.is_some(), "routeConfiguration")
        }
        ApplyTo::Cluster => (m.cluster.is_some(), "cluster"),
        ApplyTo::ExtensionConfig | ApplyTo::Bootstrap | ApplyTo::Invalid => return,
    };
    if any && !fits {
        return out.error(format!("{field}.match"), format!("what is changed is matched by {wanted} only"));
    }
    let Some(chain) = m.listener.as_ref().and_then(|l| l.filter_chain.as_ref()) else { return };
    if let Some(filter) = &chain.filter {
        filter_match(apply_to, filter, &format!("{field}.match.listener.filterChain.filter"), out);
    }
}

fn version(pattern: &str, field: &str, out: &mut Report) {
    const LONGEST: usize = patch::MAX_VERSION_PATTERN;
    if pattern.len() > LONGEST {
        out.warning(field, format!("is longer than {LONGEST} bytes, and holds for no version"));
    } else {
        out.regex(field, pattern);
    }
}

fn filter_match(apply_to: ApplyTo, filter: &FilterMatch, field: &str, out: &mut Report) {
    if matches!(apply_to, ApplyTo::Listener | ApplyTo::FilterChain) {
        out.warning(field, "has no effect here: it chooses among filters");
    }
    if filter.name.is_empty() {
        return out.error(format!("{field}.name"), "is required");
    }
    old_name(&filter.name, &format!("{field}.name"), out);
    let Some(sub) = &filter.sub_filter else { return };
    if apply_to != ApplyTo::HttpFilter {
        out.error(format!("{field}.subFilter"), "is for applyTo HTTP_FILTER only");
    } else if !HTTP_MANAGERS.contains(&filter.name.as_str()) {
        out.error(format!("{field}.name"), format!("must be {} where a subFilter is asked for", HTTP_MANAGERS[0]));
    } else if sub.name.is_empty() {
        out.error(format!("{field}.subFilter.name"), "is required");
    } else {
        old_name(&sub.name, &format!("{field}.subFilter.name"), out);
    }
}

fn old_name(name: &str, field: &str, out: &mut Report) {
    if let Some((_, now)) = OLD_NAMES.iter().find(|(old, _)| *old == name) {
        out.warning(field, format!("matches nothing: {name} is called {now}"));
    }
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    fn found(spec: &str) -> Vec<(Level, String, String)> {
        let filter: EnvoyFilter = mesh_api::yaml::from_str(spec).unwrap();
        let mut out = Report::default();
        envoy_filter(&filter, &mut out);
        out.findings.into_iter().map(|f| (f.level, f.field, f.message)).collect()
    }

    fn one(patch: &str) -> (Level, String, String) {
        let mut all = found(&format!("configPatches: [{patch}]"));
        assert_eq!(all.len(), 1, "{patch}: {all:?}");
        all.remove(0)
    }

    #[test]
    fn what_istio_refuses_is_refused() {
        let merge = "patch: {operation: MERGE, value: {}}";
        for (patch, field) in [
            (format!("{{{merge}}}"), "applyTo"),
            ("{applyTo: LISTENER}".to_owned(), "patch"),
            ("{applyTo: LISTENER, patch: {}}".to_owned(), "patch.operation"),
            ("{applyTo: LISTENER, patch: {operation: ADD}}".to_owned(), "patch.value"),
            (format!("{{applyTo: LISTENER, match: {{cluster: {{}}}}, {merge}}}"), "match"),
            (format!("{{applyTo: LISTENER_FILTER, match: {{cluster: {{}}}}, {merge}}}"), "match"),
            (format!("{{applyTo: CLUSTER, match: {{listener: {{}}}}, {merge}}}"), "match"),
            (format!("{{applyTo: HTTP_ROUTE, match: {{listener: {{}}}}, {merge}}}"), "match"),
            (format!("{{applyTo: CLUSTER, match: {{cluster: {{}}, listener: {{}}}}, {merge}}}"), "match"),
            (
                format!("{{applyTo: CLUSTER, match: {{proxy: {{proxyVersion: '('}}}}, {merge}}}"),
                "match.proxy.proxyVersion",
            ),
            (
                format!("{{applyTo: HTTP_FILTER, match: {{listener: {{filterChain: {{filter: {{}}}}}}}}, {merge}}}"),
                "match.listener.filterChain.filter.name",
            ),
            ("{applyTo: CLUSTER, patch: {operation: ADD, value: {type: STATIC}}}".to_owned(), "patch.value.name"),
        ] {
            let (level, at, message) = one(&patch);
            assert_eq!((level, at.as_str()), (Level::Error, &*format!("spec.configPatches[0].{field}")), "{message}");
        }
        assert!(found("{}").is_empty());
        // What grows when it is compiled is bounded as everywhere else, and not by what the library allows.
        let grows = r"\w{100}";
        assert!(regex::Regex::new(grows).is_ok());
        let (level, at, _) =
            one(&format!("{{applyTo: CLUSTER, match: {{proxy: {{proxyVersion: '{grows}'}}}}, {merge}}}"));
        assert_eq!((level, at.as_str()), (Level::Error, "spec.configPatches[0].match.proxy.proxyVersion"));
    }

    #[test]
    fn values_are_looked_into() {
        let (level, field, message) = one(
            "{applyTo: CLUSTER, patch: {operation: MERGE, value: {circuit_breakers: {thresholds: [{retries: 1}]}}}}",
        );
        assert_eq!(level, Level::Error);
        assert!(field.starts_with("spec.configPatches[0].patch.value.circuit_breakers.thresholds[0]"), "{field}");
        assert!(message.contains("Cluster") && message.contains("retries"), "{message}");
        let typed = |url: &str| {
            one(&format!(
                "{{applyTo: HTTP_FILTER, patch: {{operation: ADD, value: {{name: a, typed_config: {{'@type': '{url}'}}}}}}}}"
            ))
        };
        let (level, field, message) = typed("type.googleapis.com/envoy.config.filter.http.lua.v2.Lua");
        assert_eq!(level, Level::Error);
        assert!(field.starts_with("spec.configPatches[0].patch.value.typed_config"), "{field}");
        assert!(message.contains("version 3"), "{message}");
        let (level, _, message) = one("{applyTo: HTTP_FILTER, patch: {operation: ADD, value: {name: envoy.lua}}}");
        assert_eq!(level, Level::Warning);
        assert!(message.contains("typed_config"), "{message}");
    }

    #[test]
    fn what_istio_warns_of_is_a_warning() {
        let all = found("workloadSelector: {}");
        assert_eq!((all.len(), all[0].0), (1, Level::Warning));
        let long = "x".repeat(2000);
        let merge = "patch: {operation: MERGE, value: {}}";
        let patch = format!("{{applyTo: CLUSTER, match: {{proxy: {{proxyVersion: {long}}}}}, {merge}}}");
        assert_eq!(one(&patch).0, Level::Warning);
        let old = "{listener: {filterChain: {filter: {name: envoy.http_connection_manager, subFilter: {name: a}}}}}";
        let patch = format!("{{applyTo: HTTP_FILTER, match: {old}, patch: {{operation: REMOVE}}}}");
        assert_eq!(one(&patch).0, Level::Warning);
    }
}
