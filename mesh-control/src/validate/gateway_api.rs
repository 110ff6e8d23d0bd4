//! Gateway API: what an API server's schema would refuse.

use mesh_api::crd::gateway_api::{
    BackendRef, FilterType, Gateway, GrpcRoute, HttpRoute, HttpRouteMatch, PathMatchType, ReferenceGrant, RouteFilter,
    ValueMatch, ValueMatchType,
};

use super::checks::Report;

pub(super) fn gateway(gateway: &Gateway, out: &mut Report) {
    if gateway.gateway_class_name.is_empty() {
        out.error("spec.gatewayClassName", "is required");
    }
    if gateway.listeners.is_empty() {
        out.error("spec.listeners", "is required");
    }
    for (i, listener) in gateway.listeners.iter().enumerate() {
        let field = format!("spec.listeners[{i}]");
        if listener.name.is_empty() {
            out.error(format!("{field}.name"), "is required");
        }
        if gateway.listeners.iter().take(i).any(|l| l.name == listener.name) {
            out.error(format!("{field}.name"), format!("{} is used twice", listener.name));
        }
        out.port(&format!("{field}.port"), listener.port);
        if !matches!(listener.protocol.as_str(), "HTTP" | "HTTPS" | "TLS" | "TCP" | "UDP") {
            out.error(format!("{field}.protocol"), format!("{:?} is not supported", listener.protocol));
        }
        if let Some(host) = &listener.hostname {
            out.host(&format!("{field}.hostname"), host);
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

fn filters(list: &[RouteFilter], field: &str, out: &mut Report) {
    for (i, filter) in list.iter().enumerate() {
        let field = format!("{field}[{i}]");
        let (name, present) = match filter.kind {
            FilterType::RequestHeaderModifier => ("requestHeaderModifier", filter.request_header_modifier.is_some()),
            FilterType::ResponseHeaderModifier => ("responseHeaderModifier", filter.response_header_modifier.is_some()),
            FilterType::RequestMirror => ("requestMirror", filter.request_mirror.is_some()),
            FilterType::RequestRedirect => ("requestRedirect", filter.request_redirect.is_some()),
            FilterType::UrlRewrite => ("urlRewrite", filter.url_rewrite.is_some()),
            FilterType::Cors => ("cors", filter.cors.is_some()),
            FilterType::ExternalAuth => ("externalAuth", filter.external_auth.is_some()),
            FilterType::ExtensionRef => ("extensionRef", filter.extension_ref.is_some()),
        };
        if !present {
            out.error(format!("{field}.{name}"), "is required by the filter's type");
        }
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
        backends(&rule.backend_refs, &format!("{field}.backendRefs"), out);
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
