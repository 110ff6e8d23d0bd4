//! PeerAuthentication, RequestAuthentication, AuthorizationPolicy and Telemetry.

use mesh_api::cel::{Dialect, Expression};
use mesh_api::crd::security::{
    AuthorizationPolicy, Condition, Operation, PeerAuthentication, PolicyAction, RequestAuthentication, Source,
};
use mesh_api::crd::telemetry::{TagOperation, Telemetry};
use mesh_api::crd::{PolicySelector, TargetRef};
use mesh_api::labels::Labels;

use super::Finding;
use super::checks::Report;
use crate::source::object::ObjectKey;

fn selector(selector: Option<&PolicySelector>, out: &mut Report) {
    if let Some(selector) = selector {
        match_labels(&selector.match_labels, out);
    }
}

pub(super) fn match_labels(labels: &Labels, out: &mut Report) {
    let field = "spec.selector.matchLabels";
    for (key, value) in labels {
        if key.contains('*') || value.contains('*') {
            out.error(field, "takes no wildcards");
        }
    }
    out.labels(field, labels);
}

pub(super) fn targets(
    selector: Option<&PolicySelector>,
    one: Option<&TargetRef>,
    many: &[TargetRef],
    out: &mut Report,
) {
    let given = [selector.is_some(), one.is_some(), !many.is_empty()];
    if given.into_iter().filter(|g| *g).count() > 1 {
        out.error("spec.targetRefs", "only one of selector, targetRef and targetRefs is allowed");
    }
    if let Some(target) = one {
        target_ref("spec.targetRef", target, out);
    }
    for (i, target) in many.iter().enumerate() {
        target_ref(&format!("spec.targetRefs[{i}]"), target, out);
    }
}

/// What an object is attached to: something of its own namespace.
pub(super) fn target_ref(field: &str, target: &TargetRef, out: &mut Report) {
    if target.name.is_empty() || target.kind.is_empty() {
        out.error(field, "kind and name are required");
    }
    if !target.namespace.is_empty() {
        out.error(format!("{field}.namespace"), "must not be set: an object is attached in its own namespace only");
    }
}

pub(super) fn peer_authentication(policy: &PeerAuthentication, _key: &ObjectKey, out: &mut Report) {
    selector(policy.selector.as_ref(), out);
    if !policy.port_level_mtls.is_empty() && policy.selector.as_ref().is_none_or(|s| s.match_labels.is_empty()) {
        out.error("spec.portLevelMtls", "needs a selector: ports belong to workloads");
    }
    for port in policy.port_level_mtls.keys() {
        out.port(&format!("spec.portLevelMtls.{port}"), *port);
    }
}

pub(super) fn request_authentication(policy: &RequestAuthentication, out: &mut Report) {
    selector(policy.selector.as_ref(), out);
    targets(policy.selector.as_ref(), policy.target_ref.as_ref(), &policy.target_refs, out);
    for (i, rule) in policy.jwt_rules.iter().enumerate() {
        let field = format!("spec.jwtRules[{i}]");
        if rule.issuer.is_empty() {
            out.error(format!("{field}.issuer"), "is required");
        }
        if !rule.jwks_uri.is_empty() && !rule.jwks.is_empty() {
            out.error(field.clone(), "only one of jwksUri and jwks is allowed");
        }
        if !rule.jwks_uri.is_empty() && !is_url(&rule.jwks_uri) {
            out.error(format!("{field}.jwksUri"), "must be an http or https URL without credentials");
        }
        if rule.jwks_uri.is_empty() && rule.jwks.is_empty() && !rule.issuer.is_empty() && !is_url(&rule.issuer) {
            let message = "has no keys and is no URL that tells them: every token of this issuer is refused; give jwks or jwksUri";
            out.warning(format!("{field}.issuer"), message);
        }
        if !rule.jwks.is_empty() && serde_json::from_str::<serde_json::Value>(&rule.jwks).is_err() {
            out.error(format!("{field}.jwks"), "is not JSON");
        }
        for (j, header) in rule.from_headers.iter().enumerate() {
            out.header_name(&format!("{field}.fromHeaders[{j}].name"), &header.name);
        }
        for (j, output) in rule.output_claim_to_headers.iter().enumerate() {
            out.header_name(&format!("{field}.outputClaimToHeaders[{j}].header"), &output.header);
        }
    }
}

/// An http or https URL that keys may be fetched from.
fn is_url(text: &str) -> bool {
    let scheme = ["http://", "https://"].iter().any(|s| text.starts_with(s));
    let authority = text.parse::<http::Uri>().ok().and_then(|uri| uri.authority().cloned());
    scheme && authority.is_some_and(|a| !a.as_str().contains('@') && !a.host().is_empty())
}

pub(super) fn authorization_policy(policy: &AuthorizationPolicy, out: &mut Report) {
    selector(policy.selector.as_ref(), out);
    targets(policy.selector.as_ref(), policy.target_ref.as_ref(), &policy.target_refs, out);
    let custom = policy.action == PolicyAction::Custom;
    match &policy.provider {
        None if custom => out.error("spec.provider", "is required with action CUSTOM"),
        Some(_) if !custom => out.error("spec.provider", "is for action CUSTOM only"),
        Some(p) if p.name.is_empty() => out.error("spec.provider.name", "is required"),
        _ => {}
    }
    let rules = policy.rules.as_deref().unwrap_or_default();
    if rules.is_empty() && policy.action == PolicyAction::Deny {
        out.warning("spec.rules", "is empty: a DENY policy without rules denies nothing");
    }
    for (i, rule) in rules.iter().enumerate() {
        let field = format!("spec.rules[{i}]");
        for (j, from) in rule.from.iter().flatten().enumerate() {
            let field = format!("{field}.from[{j}].source");
            match &from.source {
                None => out.error(field, "is required"),
                Some(source) => source_rule(source, &field, out),
            }
        }
        for (j, to) in rule.to.iter().flatten().enumerate() {
            let field = format!("{field}.to[{j}].operation");
            match &to.operation {
                None => out.error(field, "is required"),
                Some(operation) => operation_rule(operation, &field, out),
            }
        }
        for (j, when) in rule.when.iter().enumerate() {
            condition(when, &format!("{field}.when[{j}]"), out);
        }
    }
}

pub(super) fn source_rule(source: &Source, field: &str, out: &mut Report) {
    let lists = [
        ("principals", &source.principals),
        ("notPrincipals", &source.not_principals),
        ("requestPrincipals", &source.request_principals),
        ("notRequestPrincipals", &source.not_request_principals),
        ("namespaces", &source.namespaces),
        ("notNamespaces", &source.not_namespaces),
        ("serviceAccounts", &source.service_accounts),
        ("notServiceAccounts", &source.not_service_accounts),
        ("trustDomains", &source.trust_domains),
        ("notTrustDomains", &source.not_trust_domains),
        ("ipBlocks", &source.ip_blocks),
        ("notIpBlocks", &source.not_ip_blocks),
        ("remoteIpBlocks", &source.remote_ip_blocks),
        ("notRemoteIpBlocks", &source.not_remote_ip_blocks),
    ];
    if lists.iter().all(|(_, l)| l.is_empty()) {
        out.error(field, "one of its lists is required");
    }
    for (name, list) in lists {
        for (i, value) in list.iter().enumerate() {
            let field = format!("{field}.{name}[{i}]");
            if value.is_empty() {
                out.error(field, "is empty");
            } else if name.to_ascii_lowercase().ends_with("ipblocks") {
                out.cidr(&field, value);
            } else {
                pattern(value, &field, out);
            }
        }
    }
    if !source.service_accounts.is_empty() && (!source.principals.is_empty() || !source.namespaces.is_empty()) {
        out.error(format!("{field}.serviceAccounts"), "and principals or namespaces exclude each other");
    }
}

/// Exact, `prefix*`, `*suffix` or `*`.
fn pattern(value: &str, field: &str, out: &mut Report) {
    let inner = value.strip_prefix('*').unwrap_or(value);
    let inner = if value.starts_with('*') { inner } else { inner.strip_suffix('*').unwrap_or(inner) };
    if inner.contains('*') && value != "*" && value != "**" {
        out.warning(field, format!("{value:?}: '*' has a meaning only as the first or the last character"));
    }
}

pub(super) fn operation_rule(operation: &Operation, field: &str, out: &mut Report) {
    let lists = [
        ("hosts", &operation.hosts),
        ("notHosts", &operation.not_hosts),
        ("ports", &operation.ports),
        ("notPorts", &operation.not_ports),
        ("methods", &operation.methods),
        ("notMethods", &operation.not_methods),
        ("paths", &operation.paths),
        ("notPaths", &operation.not_paths),
    ];
    if lists.iter().all(|(_, l)| l.is_empty()) {
        out.error(field, "one of its lists is required");
    }
    for (name, list) in lists {
        for (i, value) in list.iter().enumerate() {
            let field = format!("{field}.{name}[{i}]");
            if value.is_empty() {
                out.error(field, "is empty");
            } else if name.to_ascii_lowercase().ends_with("ports") {
                match value.parse::<u16>() {
                    Ok(port) => out.port(&field, port),
                    Err(_) => out.error(field, format!("{value:?} is not a port")),
                }
            } else if name.to_ascii_lowercase().ends_with("paths") && value.contains('{') {
                path_template(value, &field, out);
            } else {
                pattern(value, &field, out);
            }
        }
    }
}

/// `{*}` is one segment, `{**}` any number and last.
fn path_template(value: &str, field: &str, out: &mut Report) {
    let segments: Vec<&str> = value.split('/').collect();
    for segment in &segments {
        let bare = !segment.contains(['{', '}', '*']);
        if !bare && !matches!(*segment, "{*}" | "{**}") {
            out.error(
                field,
                format!("{segment:?}: a template's segment is {{*}}, {{**}} or text without braces and '*'"),
            );
            return;
        }
    }
    let open = segments.iter().position(|s| *s == "{**}");
    if open.is_some_and(|i| segments.iter().skip(i + 1).any(|s| s.starts_with('{'))) {
        out.error(field, "{**} must be the last operator");
    }
}

/// Keys of `when`, those that end in `[` take an argument.
const CONDITION_KEYS: [&str; 16] = [
    "request.headers[",
    "request.auth.claims[",
    "experimental.envoy.filters.",
    "source.ip",
    "remote.ip",
    "source.namespace",
    "source.serviceAccount",
    "source.trustDomain",
    "source.principal",
    "request.auth.principal",
    "request.auth.audiences",
    "request.auth.presenter",
    "destination.ip",
    "destination.port",
    "connection.sni",
    "request.auth.",
];

pub(super) fn condition(when: &Condition, field: &str, out: &mut Report) {
    let known = CONDITION_KEYS.iter().any(|key| match key.strip_suffix('[') {
        Some(_) => when.key.starts_with(key) && when.key.ends_with(']') && when.key.len() > key.len() + 1,
        None if key.ends_with('.') => key.starts_with("experimental") && when.key.starts_with(key),
        None => when.key == *key,
    });
    if !known {
        out.error(format!("{field}.key"), format!("{:?} is not an attribute", when.key));
    }
    if when.values.is_empty() && when.not_values.is_empty() {
        out.error(field, "values or notValues is required");
    }
    let ip = matches!(when.key.as_str(), "source.ip" | "remote.ip" | "destination.ip");
    for (name, list) in [("values", &when.values), ("notValues", &when.not_values)] {
        for (i, value) in list.iter().enumerate() {
            let field = format!("{field}.{name}[{i}]");
            if ip {
                out.cidr(&field, value);
            } else if when.key == "destination.port" && value.parse::<u16>().is_err() {
                out.error(field, format!("{value:?} is not a port"));
            }
        }
    }
}

/// An expression that both kinds of proxies can evaluate.
fn expression(field: &str, text: &str, dialect: Dialect, out: &mut Report) {
    match Expression::parse(text, dialect) {
        Ok(parsed) => parsed.patterns().into_iter().for_each(|pattern| out.regex(field, pattern)),
        Err(error) => out.error(field, error.to_string()),
    }
}

pub(super) fn telemetry(telemetry: &Telemetry, out: &mut Report) {
    selector(telemetry.selector.as_ref(), out);
    targets(telemetry.selector.as_ref(), telemetry.target_ref.as_ref(), &telemetry.target_refs, out);
    for (i, logging) in telemetry.access_logging.iter().enumerate() {
        if logging.providers.is_empty() && logging.disabled != Some(true) {
            let message =
                "names no provider: only where MeshConfig has defaultProviders.accessLogging is anything logged";
            out.push(Finding::warning(format!("spec.accessLogging[{i}].providers"), message).code("IST0157"));
        }
        if let Some(filter) = &logging.filter {
            expression(&format!("spec.accessLogging[{i}].filter.expression"), &filter.expression, Dialect::Filter, out);
        }
    }
    for (i, metrics) in telemetry.metrics.iter().enumerate() {
        for (n, change) in metrics.overrides.iter().enumerate() {
            for (label, tag) in &change.tag_overrides {
                let field = format!("spec.metrics[{i}].overrides[{n}].tagOverrides.{label}");
                match (tag.operation, tag.value.as_str()) {
                    (TagOperation::Upsert, "") => out.error(format!("{field}.value"), "is required"),
                    (TagOperation::Upsert, text) => expression(&format!("{field}.value"), text, Dialect::Label, out),
                    (TagOperation::Remove, "") => {}
                    (TagOperation::Remove, _) => {
                        out.error(format!("{field}.value"), "must not be set to remove a label")
                    }
                }
            }
        }
    }
    for (i, tracing) in telemetry.tracing.iter().enumerate() {
        let field = format!("spec.tracing[{i}]");
        if let Some(percent) = tracing.random_sampling_percentage {
            out.percent(&format!("{field}.randomSamplingPercentage"), percent);
        }
        if tracing.providers.len() > 1 {
            out.error(format!("{field}.providers"), "only one provider is allowed");
        }
        for (name, tag) in &tracing.custom_tags {
            let given =
                [tag.literal.is_some(), tag.environment.is_some(), tag.header.is_some(), tag.formatter.is_some()];
            if given.into_iter().filter(|g| *g).count() != 1 {
                let message = "exactly one of literal, environment, header and formatter is required";
                out.error(format!("{field}.customTags.{name}"), message);
            }
        }
    }
}
