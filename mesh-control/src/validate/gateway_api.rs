//! Gateway API: what an API server's schema would refuse.

use mesh_api::crd::gateway_api::{
    BackendRef, BackendTlsPolicy, CookieLifetime, FilterType, Gateway, GrpcRoute, HeaderModifier, HttpRoute,
    HttpRouteMatch, L4RouteRule, Listener, ListenerSet, PathMatchType, ReferenceGrant, RouteFilter, SessionPersistence,
    SessionType, SubjectAltNameType, TcpRoute, TlsMode, TlsRoute, ValueMatch, ValueMatchType,
};

use super::checks::Report;

/// Methods that a route may name.
const METHODS: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];

pub(super) fn gateway(gateway: &Gateway, out: &mut Report) {
    if gateway.gateway_class_name.is_empty() {
        out.error("spec.gatewayClassName", "is required");
    }
    listeners(&gateway.listeners, out);
}

pub(super) fn listener_set(set: &ListenerSet, out: &mut Report) {
    if set.parent_ref.name.is_empty() {
        out.error("spec.parentRef.name", "is required");
    }
    listeners(&set.listeners, out);
}

fn listeners(list: &[Listener], out: &mut Report) {
    if list.is_empty() {
        out.error("spec.listeners", "is required");
    }
    for (i, listener) in list.iter().enumerate() {
        let field = format!("spec.listeners[{i}]");
        if listener.name.is_empty() {
            out.error(format!("{field}.name"), "is required");
        }
        if list.iter().take(i).any(|l| l.name == listener.name) {
            out.error(format!("{field}.name"), format!("{} is used twice", listener.name));
        }
        out.port(&format!("{field}.port"), listener.port);
        if !matches!(listener.protocol.as_str(), "HTTP" | "HTTPS" | "TLS" | "TCP" | "UDP") {
            out.error(format!("{field}.protocol"), format!("{:?} is not supported", listener.protocol));
        }
        if let Some(host) = &listener.hostname {
            out.host(&format!("{field}.hostname"), host);
        }
        if listener.filters.as_ref().is_some_and(|f| !f.requests.is_empty()) {
            // Requests would pass that somebody was to be asked about.
            out.error(format!("{field}.filters"), "filters of listeners are not supported yet");
        }
        let passes = listener.tls.as_ref().is_some_and(|t| t.mode == Some(TlsMode::Passthrough));
        if listener.protocol == "HTTPS" && passes {
            out.error(format!("{field}.tls.mode"), "must be Terminate for protocol HTTPS");
        }
        if listener.tls.is_some() && matches!(listener.protocol.as_str(), "HTTP" | "TCP" | "UDP") {
            out.error(format!("{field}.tls"), format!("makes no sense with protocol {}", listener.protocol));
        }
    }
}

pub(super) fn http_route(route: &HttpRoute, out: &mut Report) {
    for (i, host) in route.hostnames.iter().enumerate() {
        out.host(&format!("spec.hostnames[{i}]"), host);
    }
    for (i, rule) in route.rules.iter().enumerate() {
        let field = format!("spec.rules[{i}]");
        for (j, m) in rule.matches.iter().enumerate() {
            http_match(m, &format!("{field}.matches[{j}]"), out);
        }
        filters(&rule.filters, &format!("{field}.filters"), out);
        backends(&rule.backend_refs, &format!("{field}.backendRefs"), out);
        sessions(rule.session_persistence.as_ref(), &format!("{field}.sessionPersistence"), out);
        let redirects = rule.filters.iter().any(|f| f.kind == FilterType::RequestRedirect);
        if redirects && !rule.backend_refs.is_empty() {
            out.error(format!("{field}.backendRefs"), "a rule that redirects has no backends");
        }
        let rewrites = rule.filters.iter().any(|f| f.kind == FilterType::UrlRewrite);
        if redirects && rewrites {
            out.error(format!("{field}.filters"), "RequestRedirect and URLRewrite exclude each other");
        }
        if let Some(timeouts) = &rule.timeouts
            && let (Some(request), Some(backend)) = (timeouts.request, timeouts.backend_request)
            && !request.0.is_zero()
            && backend > request
        {
            out.error(format!("{field}.timeouts.backendRequest"), "must not be longer than request");
        }
    }
}

fn sessions(session: Option<&SessionPersistence>, field: &str, out: &mut Report) {
    let Some(session) = session else { return };
    let by_header = session.kind.unwrap_or_default() == SessionType::Header;
    let cookie = session.cookie.is_some() || session.cookie_config.is_some();
    if by_header && cookie {
        out.error(format!("{field}.cookie"), "is for type Cookie");
    }
    if !by_header && session.header.is_some() {
        out.error(format!("{field}.header"), "is for type Header");
    }
    if by_header && session.header.is_none() && session.session_name.is_empty() {
        out.error(format!("{field}.header"), "is required with type Header");
    }
    let header = session.header.as_ref().map_or(&session.session_name, |h| &h.name);
    if by_header && !header.is_empty() {
        let field = format!("{field}.header.name");
        if header.starts_with(':') {
            out.error(field, format!("{header:?} is not a header name"));
        } else {
            out.header_name(&field, header);
        }
    }
    let name = session.cookie.as_ref().map_or(&session.session_name, |c| &c.name);
    if !by_header && name.bytes().any(|b| !b.is_ascii_graphic() || b"()<>@,;:\\\"/[]?={}".contains(&b)) {
        out.error(format!("{field}.cookie.name"), format!("{name:?} is not the name of a cookie"));
    }
    if let Some(cookie) = &session.cookie
        && !cookie.path.is_empty()
        && (!cookie.path.starts_with('/') || cookie.path.bytes().any(|b| b.is_ascii_control() || b == b';'))
    {
        out.error(format!("{field}.cookie.path"), format!("{:?} is not an absolute path", cookie.path));
    }
    if session.lifetime() == CookieLifetime::Permanent && session.absolute_timeout.is_none_or(|d| d.0.is_zero()) {
        out.error(format!("{field}.absoluteTimeout"), "is required with lifetimeType Permanent");
    }
}

fn http_match(m: &HttpRouteMatch, field: &str, out: &mut Report) {
    if let Some(path) = &m.path {
        let field = format!("{field}.path.value");
        let value = path.value.as_deref().unwrap_or("/");
        match path.kind.unwrap_or_default() {
            PathMatchType::RegularExpression => out.regex(&field, value),
            PathMatchType::Exact | PathMatchType::PathPrefix => {
                let dots = value.split('/').any(|s| s == "." || s == "..");
                if !value.starts_with('/') || value.contains("//") || value.contains('#') || dots {
                    out.error(field, format!("{value:?} is not an absolute, normalised path"));
                }
            }
        }
    }
    if let Some(method) = &m.method
        && !METHODS.contains(&method.as_str())
    {
        out.error(format!("{field}.method"), format!("must be one of {}", METHODS.join(", ")));
    }
    values(&m.headers, &format!("{field}.headers"), out);
    values(&m.query_params, &format!("{field}.queryParams"), out);
}

fn values(list: &[ValueMatch], field: &str, out: &mut Report) {
    for (i, m) in list.iter().enumerate() {
        if m.name.is_empty() {
            out.error(format!("{field}[{i}].name"), "is required");
        }
        if m.kind == Some(ValueMatchType::RegularExpression) {
            out.regex(&format!("{field}[{i}].value"), &m.value);
        }
    }
}

/// The field of every type of filter, and whether it is there.
fn parts(filter: &RouteFilter) -> [(FilterType, &'static str, bool); 8] {
    [
        (FilterType::RequestHeaderModifier, "requestHeaderModifier", filter.request_header_modifier.is_some()),
        (FilterType::ResponseHeaderModifier, "responseHeaderModifier", filter.response_header_modifier.is_some()),
        (FilterType::RequestMirror, "requestMirror", filter.request_mirror.is_some()),
        (FilterType::RequestRedirect, "requestRedirect", filter.request_redirect.is_some()),
        (FilterType::UrlRewrite, "urlRewrite", filter.url_rewrite.is_some()),
        (FilterType::Cors, "cors", filter.cors.is_some()),
        (FilterType::ExternalAuth, "externalAuth", filter.external_auth.is_some()),
        (FilterType::ExtensionRef, "extensionRef", filter.extension_ref.is_some()),
    ]
}

/// A GRPCRoute has fewer filters than an HTTPRoute.
fn grpc_filters(list: &[RouteFilter], field: &str, out: &mut Report) {
    for (i, filter) in list.iter().enumerate() {
        if !matches!(
            filter.kind,
            FilterType::RequestHeaderModifier
                | FilterType::ResponseHeaderModifier
                | FilterType::RequestMirror
                | FilterType::ExtensionRef
        ) {
            out.error(format!("{field}[{i}].type"), "is not a filter of GRPCRoutes");
        }
    }
}

fn header_modifier(modifier: Option<&HeaderModifier>, field: &str, out: &mut Report) {
    let Some(modifier) = modifier else { return };
    for (table, pairs) in [("set", &modifier.set), ("add", &modifier.add)] {
        for (i, pair) in pairs.iter().enumerate() {
            let field = format!("{field}.{table}[{i}]");
            out.header_name(&format!("{field}.name"), &pair.name);
            out.header_value(&format!("{field}.value"), &pair.value);
        }
    }
    for (i, name) in modifier.remove.iter().enumerate() {
        let field = format!("{field}.remove[{i}]");
        out.header_name(&field, name);
        if name.starts_with(':') || name.eq_ignore_ascii_case("host") {
            out.error(field, format!("{name} cannot be removed"));
        }
    }
}

fn filters(list: &[RouteFilter], field: &str, out: &mut Report) {
    for (i, filter) in list.iter().enumerate() {
        let field = format!("{field}[{i}]");
        for (kind, name, present) in parts(filter) {
            if kind == filter.kind && !present {
                out.error(format!("{field}.{name}"), "is required by the filter's type");
            }
            if kind != filter.kind && present {
                out.error(format!("{field}.{name}"), "is not for a filter of this type");
            }
        }
        for (j, method) in filter.cors.iter().flat_map(|c| &c.allow_methods).enumerate() {
            if method != "*" && !METHODS.contains(&method.as_str()) {
                let message = format!("must be * or one of {}", METHODS.join(", "));
                out.error(format!("{field}.cors.allowMethods[{j}]"), message);
            }
        }
        header_modifier(filter.request_header_modifier.as_ref(), &format!("{field}.requestHeaderModifier"), out);
        header_modifier(filter.response_header_modifier.as_ref(), &format!("{field}.responseHeaderModifier"), out);
        if let Some(redirect) = &filter.request_redirect {
            if let Some(scheme) = &redirect.scheme
                && !matches!(scheme.as_str(), "http" | "https")
            {
                out.error(format!("{field}.requestRedirect.scheme"), "must be http or https");
            }
            if let Some(code) = redirect.status_code
                && !matches!(code, 301 | 302 | 303 | 307 | 308)
            {
                out.error(format!("{field}.requestRedirect.statusCode"), "must be 301, 302, 303, 307 or 308");
            }
        }
        if let Some(mirror) = &filter.request_mirror {
            if mirror.percent.is_some() && mirror.fraction.is_some() {
                out.error(format!("{field}.requestMirror"), "only one of percent and fraction is allowed");
            }
            if let Some(percent) = mirror.percent {
                out.percent(&format!("{field}.requestMirror.percent"), f64::from(percent));
            }
        }
    }
}

fn backends(list: &[BackendRef], field: &str, out: &mut Report) {
    for (i, backend) in list.iter().enumerate() {
        let field = format!("{field}[{i}]");
        if backend.name.is_empty() {
            out.error(format!("{field}.name"), "is required");
        }
        let service = backend.kind.as_deref().is_none_or(|k| k == "Service")
            && backend.group.as_deref().is_none_or(str::is_empty);
        if service && backend.port.is_none() {
            out.error(format!("{field}.port"), "is required for a Service");
        }
        if backend.weight.is_some_and(|w| w > 1_000_000) {
            out.error(format!("{field}.weight"), "must be 0 to 1000000");
        }
        filters(&backend.filters, &format!("{field}.filters"), out);
    }
}

pub(super) fn grpc_route(route: &GrpcRoute, out: &mut Report) {
    for (i, host) in route.hostnames.iter().enumerate() {
        out.host(&format!("spec.hostnames[{i}]"), host);
    }
    for (i, rule) in route.rules.iter().enumerate() {
        let field = format!("spec.rules[{i}]");
        for (j, m) in rule.matches.iter().enumerate() {
            let field = format!("{field}.matches[{j}]");
            values(&m.headers, &format!("{field}.headers"), out);
            if let Some(method) = &m.method {
                if method.service.is_none() && method.method.is_none() {
                    out.error(format!("{field}.method"), "service or method is required");
                }
                if method.kind == Some(ValueMatchType::RegularExpression) {
                    for (name, pattern) in [("service", &method.service), ("method", &method.method)] {
                        if let Some(pattern) = pattern {
                            out.regex(&format!("{field}.method.{name}"), pattern);
                        }
                    }
                }
            }
        }
        filters(&rule.filters, &format!("{field}.filters"), out);
        sessions(rule.session_persistence.as_ref(), &format!("{field}.sessionPersistence"), out);
        grpc_filters(&rule.filters, &format!("{field}.filters"), out);
        backends(&rule.backend_refs, &format!("{field}.backendRefs"), out);
        for (j, backend) in rule.backend_refs.iter().enumerate() {
            grpc_filters(&backend.filters, &format!("{field}.backendRefs[{j}].filters"), out);
        }
    }
}

pub(super) fn tls_route(route: &TlsRoute, out: &mut Report) {
    for (i, host) in route.hostnames.iter().enumerate() {
        out.host(&format!("spec.hostnames[{i}]"), host);
    }
    l4_rules(&route.rules, out);
}

pub(super) fn tcp_route(route: &TcpRoute, out: &mut Report) {
    l4_rules(&route.rules, out);
}

fn l4_rules(rules: &[L4RouteRule], out: &mut Report) {
    if rules.len() != 1 {
        out.error("spec.rules", "must be one rule");
    }
    for (i, rule) in rules.iter().enumerate() {
        let field = format!("spec.rules[{i}].backendRefs");
        if rule.backend_refs.is_empty() {
            out.error(field.as_str(), "is required");
        }
        let all: Vec<BackendRef> = rule.backend_refs.iter().cloned().map(BackendRef::from).collect();
        backends(&all, &field, out);
    }
}

pub(super) fn backend_tls_policy(policy: &BackendTlsPolicy, out: &mut Report) {
    if policy.target_refs.is_empty() {
        out.error("spec.targetRefs", "is required");
    }
    let validation = &policy.validation;
    if validation.hostname.is_empty() || validation.hostname.starts_with('*') {
        out.error("spec.validation.hostname", "is required, without a wildcard");
    } else {
        out.host("spec.validation.hostname", &validation.hostname);
    }
    let refs = !validation.ca_certificate_refs.is_empty();
    let known = validation.well_known_ca_certificates.as_ref().is_some_and(|w| !w.is_empty());
    if refs == known {
        out.error("spec.validation", "one of caCertificateRefs and wellKnownCACertificates is required");
    }
    for (i, name) in validation.subject_alt_names.iter().enumerate() {
        let given = |text: &Option<String>| text.as_ref().is_some_and(|t| !t.is_empty());
        let fits = match name.kind {
            SubjectAltNameType::Hostname => given(&name.hostname) && !given(&name.uri),
            SubjectAltNameType::Uri => given(&name.uri) && !given(&name.hostname),
        };
        if !fits {
            out.error(
                format!("spec.validation.subjectAltNames[{i}]"),
                "must have what its type says, and nothing else",
            );
        }
    }
}

pub(super) fn reference_grant(grant: &ReferenceGrant, out: &mut Report) {
    if grant.from.is_empty() {
        out.error("spec.from", "is required");
    }
    if grant.to.is_empty() {
        out.error("spec.to", "is required");
    }
}
