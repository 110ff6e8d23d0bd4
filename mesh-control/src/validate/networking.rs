//! VirtualService.

use mesh_api::crd::networking::{
    CLAIMS, CorsPolicy, Destination, FaultInjection, Headers, HttpMatch, HttpRedirect, HttpRetry, HttpRoute, L4Match,
    RouteDestination, TlsMatch, VirtualService,
};
use mesh_api::model::RetryOn;

use super::checks::Report;
use super::reachability;

pub(super) fn virtual_service(vs: &VirtualService, out: &mut Report) {
    // A delegate has no hosts; only rules for HTTP make sense in it.
    let delegate = vs.hosts.is_empty();
    if delegate && (!vs.gateways.is_empty() || !vs.tcp.is_empty() || !vs.tls.is_empty()) {
        out.error("spec.hosts", "is empty: only a delegate of HTTP rules may have no hosts, and it names no gateways");
    }
    let bare = vs.http.is_empty() && vs.tcp.is_empty() && vs.tls.is_empty();
    if bare {
        out.error("spec", "http, tcp or tls is required");
    }
    let mesh = vs.gateways.is_empty() || vs.gateways.iter().any(|g| g == "mesh");
    for (i, host) in vs.hosts.iter().enumerate() {
        let field = format!("spec.hosts[{i}]");
        out.host(&field, host);
        if host == "*" && mesh {
            out.error(field.clone(), "\"*\" is for gateways only, name the hosts that the mesh asks for");
        }
        if vs.hosts.iter().take(i).any(|h| h == host) {
            out.error(field, format!("{host} is listed twice"));
        }
    }
    for (i, gateway) in vs.gateways.iter().enumerate() {
        let parts: Vec<&str> = gateway.split('/').collect();
        if parts.len() > 2 || parts.iter().any(|p| p.is_empty()) {
            out.error(format!("spec.gateways[{i}]"), format!("{gateway:?} is not GATEWAY or NAMESPACE/GATEWAY"));
        }
    }
    out.export_to("spec.exportTo", &vs.export_to);
    reachability::rules(vs, &mut out.findings);
    for (i, rule) in vs.http.iter().enumerate() {
        http_route(rule, delegate, &format!("spec.http[{i}]"), out);
    }
    for (i, rule) in vs.tls.iter().enumerate() {
        let field = format!("spec.tls[{i}]");
        if rule.matches.is_empty() {
            out.error(format!("{field}.match"), "is required: TLS is routed by SNI");
        }
        for (j, m) in rule.matches.iter().enumerate() {
            tls_match(m, &vs.hosts, &format!("{field}.match[{j}]"), out);
        }
        l4_destinations(&rule.route, &field, out);
    }
    for (i, rule) in vs.tcp.iter().enumerate() {
        let field = format!("spec.tcp[{i}]");
        for (j, m) in rule.matches.iter().enumerate() {
            l4_match(m, &format!("{field}.match[{j}]"), out);
        }
        l4_destinations(&rule.route, &field, out);
    }
}

fn http_route(rule: &HttpRoute, delegate: bool, field: &str, out: &mut Report) {
    let kinds =
        [!rule.route.is_empty(), rule.redirect.is_some(), rule.direct_response.is_some(), rule.delegate.is_some()];
    match kinds.into_iter().filter(|k| *k).count() {
        1 => {}
        0 => out.error(field, "one of route, redirect, directResponse and delegate is required"),
        _ => out.error(field, "only one of route, redirect, directResponse and delegate is allowed"),
    }
    if delegate && rule.delegate.is_some() {
        out.error(format!("{field}.delegate"), "a delegate cannot delegate again");
    }
    if let Some(to) = &rule.delegate
        && to.name.is_empty()
    {
        out.error(format!("{field}.delegate.name"), "is required");
    }
    if (rule.redirect.is_some() || rule.direct_response.is_some()) && (rule.fault.is_some() || rule.rewrite.is_some()) {
        out.error(field, "fault and rewrite need a route: a redirect or direct response is not forwarded");
    }
    for (i, m) in rule.matches.iter().enumerate() {
        http_match(m, &format!("{field}.match[{i}]"), out);
    }
    destinations(rule, field, out);
    if let Some(redirect) = &rule.redirect {
        http_redirect(redirect, &format!("{field}.redirect"), out);
    }
    if let Some(direct) = &rule.direct_response {
        if !(200..=599).contains(&direct.status) {
            out.error(format!("{field}.directResponse.status"), "must be 200 to 599");
        }
        let size = direct
            .body
            .as_ref()
            .map_or(0, |b| b.string.as_ref().map_or(0, String::len).max(b.bytes.as_ref().map_or(0, String::len)));
        if size > 1 << 20 {
            out.error(format!("{field}.directResponse.body"), "is larger than 1 MiB");
        } else if size > 100 << 10 {
            out.warning(
                format!("{field}.directResponse.body"),
                "is larger than 100 KiB and costs memory in every proxy",
            );
        }
    }
    if let Some(rewrite) = &rule.rewrite {
        let field = format!("{field}.rewrite");
        if rewrite.uri.is_empty() && rewrite.authority.is_empty() && rewrite.uri_regex_rewrite.is_none() {
            out.error(field, "uri, authority or uriRegexRewrite is required");
        } else if let Some(regex) = &rewrite.uri_regex_rewrite {
            if !rewrite.uri.is_empty() {
                out.error(field.clone(), "only one of uri and uriRegexRewrite is allowed");
            }
            out.regex(&format!("{field}.uriRegexRewrite.match"), &regex.matches);
            out.substitution(&format!("{field}.uriRegexRewrite.rewrite"), &regex.rewrite, &regex.matches);
        }
    }
    if let Some(retries) = &rule.retries {
        http_retry(retries, &format!("{field}.retries"), out);
    }
    if let Some(fault) = &rule.fault {
        fault_injection(fault, &format!("{field}.fault"), out);
    }
    if let Some(cors) = &rule.cors_policy {
        cors_policy(cors, &format!("{field}.corsPolicy"), out);
    }
    if let Some(headers) = &rule.headers {
        header_operations(headers, &format!("{field}.headers"), out);
    }
    mirrors(rule, field, out);
}

fn mirrors(rule: &HttpRoute, field: &str, out: &mut Report) {
    if let Some(mirror) = &rule.mirror {
        destination(mirror, &format!("{field}.mirror"), out);
        if !rule.mirrors.is_empty() {
            out.error(format!("{field}.mirrors"), "only one of mirror and mirrors is allowed");
        }
    }
    for (i, mirror) in rule.mirrors.iter().enumerate() {
        destination(&mirror.destination, &format!("{field}.mirrors[{i}].destination"), out);
        if let Some(p) = &mirror.percentage {
            out.percent(&format!("{field}.mirrors[{i}].percentage.value"), p.value);
        }
    }
    if let Some(p) = &rule.mirror_percentage {
        out.percent(&format!("{field}.mirrorPercentage.value"), p.value);
    }
    if let Some(p) = rule.mirror_percent {
        out.percent(&format!("{field}.mirrorPercent"), f64::from(p));
    }
}

fn destinations(rule: &HttpRoute, field: &str, out: &mut Report) {
    let mut sum = 0i64;
    for (i, to) in rule.route.iter().enumerate() {
        let field = format!("{field}.route[{i}]");
        destination(&to.destination, &format!("{field}.destination"), out);
        let weight = to.weight.unwrap_or(0);
        if weight < 0 {
            out.error(format!("{field}.weight"), "must not be negative");
        }
        sum += i64::from(weight.max(0));
        if let Some(headers) = &to.headers {
            header_operations(headers, &format!("{field}.headers"), out);
        }
    }
    if rule.route.len() > 1 && sum == 0 {
        out.error(format!("{field}.route"), "the weights add up to 0: give one destination a weight");
    }
}

fn destination(to: &Destination, field: &str, out: &mut Report) {
    out.destination_host(&format!("{field}.host"), &to.host);
    if let Some(port) = &to.port {
        out.port(&format!("{field}.port.number"), port.number);
    }
}

fn l4_destinations(routes: &[RouteDestination], field: &str, out: &mut Report) {
    if routes.is_empty() {
        out.error(format!("{field}.route"), "is required");
    }
    let mut sum = 0i64;
    for (i, to) in routes.iter().enumerate() {
        destination(&to.destination, &format!("{field}.route[{i}].destination"), out);
        if to.weight.is_some_and(|w| w < 0) {
            out.error(format!("{field}.route[{i}].weight"), "must not be negative");
        }
        sum += i64::from(to.weight.unwrap_or(0).max(0));
    }
    if routes.len() > 1 && sum == 0 {
        out.error(format!("{field}.route"), "the weights add up to 0: give one destination a weight");
    }
}

fn http_match(m: &HttpMatch, field: &str, out: &mut Report) {
    let simple = [("uri", &m.uri), ("scheme", &m.scheme), ("method", &m.method), ("authority", &m.authority)];
    for (name, value) in simple {
        if let Some(value) = value {
            out.string_match(&format!("{field}.{name}"), value);
        }
    }
    let tables = [("headers", &m.headers), ("withoutHeaders", &m.without_headers)];
    for (table, values) in tables {
        for (name, value) in values {
            let field = format!("{field}.{table}.{name}");
            if !name.starts_with(CLAIMS) {
                out.header_name(&field, name);
            }
            out.string_match(&field, value);
        }
    }
    for (name, value) in &m.query_params {
        let field = format!("{field}.queryParams.{name}");
        out.string_match(&field, value);
    }
    out.labels(&format!("{field}.sourceLabels"), &m.source_labels);
    if let Some(port) = m.port {
        out.port(&format!("{field}.port"), port);
    }
}

fn tls_match(m: &TlsMatch, hosts: &[String], field: &str, out: &mut Report) {
    if m.sni_hosts.is_empty() {
        out.error(format!("{field}.sniHosts"), "is required");
    }
    for (i, sni) in m.sni_hosts.iter().enumerate() {
        let field = format!("{field}.sniHosts[{i}]");
        out.host(&field, sni);
        let covered = hosts.iter().any(|host| host == "*" || subset_of(sni, host));
        if !covered {
            out.error(field, format!("{sni} is not covered by the hosts of this VirtualService"));
        }
    }
    for (i, block) in m.destination_subnets.iter().enumerate() {
        out.cidr(&format!("{field}.destinationSubnets[{i}]"), block);
    }
    out.labels(&format!("{field}.sourceLabels"), &m.source_labels);
}

/// Whether every name that `inner` stands for is one that `outer` stands for.
fn subset_of(inner: &str, outer: &str) -> bool {
    let (inner, outer) = (inner.to_ascii_lowercase(), outer.to_ascii_lowercase());
    match outer.strip_prefix('*') {
        Some(suffix) => inner.strip_prefix('*').unwrap_or(&inner).ends_with(suffix),
        // A short name is completed later; what it becomes starts with it.
        None => inner == outer || (!outer.contains('.') && inner.starts_with(&format!("{outer}."))),
    }
}

fn l4_match(m: &L4Match, field: &str, out: &mut Report) {
    for (i, block) in m.destination_subnets.iter().enumerate() {
        out.cidr(&format!("{field}.destinationSubnets[{i}]"), block);
    }
    if !m.source_subnet.is_empty() {
        out.cidr(&format!("{field}.sourceSubnet"), &m.source_subnet);
    }
    out.labels(&format!("{field}.sourceLabels"), &m.source_labels);
}

fn http_redirect(redirect: &HttpRedirect, field: &str, out: &mut Report) {
    if redirect.uri.is_empty()
        && redirect.authority.is_empty()
        && redirect.scheme.is_empty()
        && redirect.prefix_rewrite.is_empty()
        && redirect.port.is_none()
        && redirect.derive_port.is_none()
    {
        out.error(field, "uri, authority, scheme, port or prefixRewrite is required");
    }
    if !redirect.uri.is_empty() && !redirect.prefix_rewrite.is_empty() {
        out.error(field, "only one of uri and prefixRewrite is allowed");
    }
    if redirect.port.is_some() && redirect.derive_port.is_some() {
        out.error(field, "only one of port and derivePort is allowed");
    }
    if !matches!(redirect.scheme.as_str(), "" | "http" | "https") {
        out.error(format!("{field}.scheme"), "must be http or https");
    }
    if let Some(code) = redirect.redirect_code
        && !matches!(code, 301 | 302 | 303 | 307 | 308)
    {
        out.error(format!("{field}.redirectCode"), "must be 301, 302, 303, 307 or 308");
    }
}

pub(super) fn http_retry(retries: &HttpRetry, field: &str, out: &mut Report) {
    let attempts = retries.attempts.unwrap_or(0);
    if attempts < 0 {
        out.error(format!("{field}.attempts"), "must not be negative");
    }
    if attempts == 0 && (!retries.retry_on.is_empty() || retries.per_try_timeout.is_some()) {
        out.error(format!("{field}.attempts"), "0 turns retries off: retryOn and perTryTimeout make no sense with it");
    }
    if let Err(word) = RetryOn::parse(&retries.retry_on) {
        out.error(format!("{field}.retryOn"), format!("{word:?} is neither a condition of Envoy nor a status"));
    }
}

fn fault_injection(fault: &FaultInjection, field: &str, out: &mut Report) {
    if fault.delay.is_none() && fault.abort.is_none() {
        out.error(field, "delay or abort is required");
    }
    if let Some(delay) = &fault.delay {
        if delay.fixed_delay.is_none() && delay.exponential_delay.is_none() {
            out.error(format!("{field}.delay.fixedDelay"), "is required");
        }
        if let Some(p) = &delay.percentage {
            out.percent(&format!("{field}.delay.percentage.value"), p.value);
        }
        if let Some(p) = delay.percent {
            out.percent(&format!("{field}.delay.percent"), f64::from(p));
        }
    }
    if let Some(abort) = &fault.abort {
        let field = format!("{field}.abort");
        match (abort.http_status, abort.grpc_status.is_empty(), abort.http2_error.is_empty()) {
            (Some(status), true, true) if !(200..=599).contains(&status) => {
                out.error(format!("{field}.httpStatus"), "must be 200 to 599");
            }
            (Some(_), true, true) | (None, false, true) => {}
            (None, true, false) => {
                out.error(field.clone(), "http2Error is not supported, use httpStatus or grpcStatus")
            }
            (None, true, true) => out.error(field.clone(), "httpStatus or grpcStatus is required"),
            _ => out.error(field.clone(), "only one of httpStatus, grpcStatus and http2Error is allowed"),
        }
        if !abort.grpc_status.is_empty() && grpc_status(&abort.grpc_status).is_none() {
            out.error(format!("{field}.grpcStatus"), format!("{:?} is not a gRPC status", abort.grpc_status));
        }
        if let Some(p) = &abort.percentage {
            out.percent(&format!("{field}.percentage.value"), p.value);
        }
    }
}

/// A gRPC status by number or name.
fn grpc_status(text: &str) -> Option<u32> {
    const NAMES: [&str; 17] = [
        "OK",
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
        "UNAUTHENTICATED",
    ];
    match text.parse() {
        Ok(number) if number < 17 => Some(number),
        Ok(_) => None,
        Err(_) => NAMES.iter().position(|n| *n == text).and_then(|i| u32::try_from(i).ok()),
    }
}

fn cors_policy(cors: &CorsPolicy, field: &str, out: &mut Report) {
    for (i, origin) in cors.allow_origins.iter().enumerate() {
        let field = format!("{field}.allowOrigins[{i}]");
        if origin.exact.is_none() && origin.prefix.is_none() && origin.regex.is_none() {
            out.error(field.clone(), "exact, prefix or regex is required: without one it would be every origin");
        }
        out.string_match(&field, origin);
    }
    for (i, method) in cors.allow_methods.iter().enumerate() {
        let known = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "*"];
        if !known.contains(&method.as_str()) {
            out.error(format!("{field}.allowMethods[{i}]"), format!("{method:?} is not an HTTP method"));
        }
    }
    for (table, names) in [("allowHeaders", &cors.allow_headers), ("exposeHeaders", &cors.expose_headers)] {
        for (i, name) in names.iter().enumerate().filter(|(_, n)| *n != "*") {
            out.header_name(&format!("{field}.{table}[{i}]"), name);
        }
    }
}

fn header_operations(headers: &Headers, field: &str, out: &mut Report) {
    for (side, ops) in [("request", &headers.request), ("response", &headers.response)] {
        let Some(ops) = ops else { continue };
        let values = ops.set.iter().map(|v| ("set", v)).chain(ops.add.iter().map(|v| ("add", v)));
        for (table, (name, value)) in values {
            out.header_value(&format!("{field}.{side}.{table}.{name}"), value);
        }
        let names = ops.set.keys().map(|k| ("set", k)).chain(ops.add.keys().map(|k| ("add", k)));
        for (table, name) in names.chain(ops.remove.iter().map(|k| ("remove", k))) {
            out.header_name(&format!("{field}.{side}.{table}.{name}"), name);
            if table == "remove" && (name.starts_with(':') || name.eq_ignore_ascii_case("host")) {
                out.error(format!("{field}.{side}.{table}"), format!("{name} cannot be removed"));
            }
        }
    }
}
