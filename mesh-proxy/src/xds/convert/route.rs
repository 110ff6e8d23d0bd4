//! Route configurations.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use mesh_api::model::{
    Action, FilterOverride, Forward, Fraction, HashPolicy, HashSource, HostRewrite, Mirror, Name, PathMatch,
    PathRewrite, QueryMatcher, Redirect, RedirectPath, RequireTls, RetryOn, RetryPolicy, Route, RouteConfig,
    RouteMatch, Target, Upgrade, VirtualHost, WeightedCluster,
};
use mesh_api::xds::envoy::config::core::v3 as core;
use mesh_api::xds::envoy::config::route::v3 as proto;
use mesh_api::xds::envoy::extensions::path::r#match::uri_template::v3::UriTemplateMatchConfig;
use mesh_api::xds::envoy::extensions::path::rewrite::uri_template::v3::UriTemplateRewriteConfig;
use mesh_api::xds::envoy::extensions::retry::priority::previous_priorities::v3::PreviousPrioritiesConfig;
use mesh_api::xds::google::protobuf::Any;

use super::Result;
use super::at::At;
use super::http_filter::filter_override;
use super::rate_limit;
use super::values::{
    bool_or, duration_opt, header_matchers, header_ops, metadata, plain_metadata, port, regex, runtime_fraction,
    string_matcher, type_name, u32_or, unpack,
};

pub fn route_config(at: &At<'_>, c: &proto::RouteConfiguration, static_default: bool) -> Result<RouteConfig> {
    if c.vhds.is_some() || !c.cluster_specifier_plugins.is_empty() {
        return at.refuse("vhds and cluster_specifier_plugins are not supported");
    }
    let hosts = c.virtual_hosts.iter().enumerate();
    let virtual_hosts: Vec<VirtualHost> =
        hosts.map(|(i, h)| virtual_host(&at.item("virtual_hosts", i), h)).collect::<Result<_>>()?;
    let mut seen = HashSet::new();
    for (i, host) in virtual_hosts.iter().enumerate() {
        for domain in &host.domains {
            if !seen.insert(domain) {
                let at = at.item("virtual_hosts", i);
                return at.field("domains").refuse(format!("{domain:?} stands in two virtual hosts"));
            }
        }
    }
    Ok(RouteConfig {
        name: c.name.as_str().into(),
        virtual_hosts,
        headers: header_ops(
            at,
            (&c.request_headers_to_add, &c.request_headers_to_remove),
            (&c.response_headers_to_add, &c.response_headers_to_remove),
        )?,
        internal_only_headers: super::values::lower(&c.internal_only_headers),
        max_direct_response_body: c.max_direct_response_body_size_bytes.map(|v| v.value),
        ignore_port_in_host: c.ignore_port_in_host_matching,
        validate_clusters: bool_or(c.validate_clusters, static_default),
        metadata: plain_metadata(c.metadata.as_ref()),
    })
}

fn virtual_host(at: &At<'_>, h: &proto::VirtualHost) -> Result<VirtualHost> {
    if h.matcher.is_some() {
        return at.field("matcher").refuse("is not supported");
    }
    if h.domains.is_empty() {
        return at.field("domains").refuse("is required");
    }
    let require_tls = match proto::virtual_host::TlsRequirementType::try_from(h.require_tls) {
        Ok(proto::virtual_host::TlsRequirementType::None) => RequireTls::None,
        Ok(proto::virtual_host::TlsRequirementType::ExternalOnly) => RequireTls::ExternalOnly,
        Ok(proto::virtual_host::TlsRequirementType::All) => RequireTls::All,
        Err(_) => return at.field("require_tls").refuse("does not exist"),
    };
    let routes = h.routes.iter().enumerate();
    let (metadata, origin) = metadata(h.metadata.as_ref());
    Ok(VirtualHost {
        name: h.name.as_str().into(),
        domains: h.domains.iter().map(|d| d.to_ascii_lowercase().into()).collect(),
        routes: routes.map(|(i, r)| route(&at.item("routes", i), r)).collect::<Result<_>>()?,
        require_tls,
        headers: header_ops(
            at,
            (&h.request_headers_to_add, &h.request_headers_to_remove),
            (&h.response_headers_to_add, &h.response_headers_to_remove),
        )?,
        filter_overrides: overrides(at, &h.typed_per_filter_config)?,
        rate_limits: rate_limit::rules(at, &h.rate_limits)?,
        retry: h.retry_policy.as_ref().map(|r| retry_policy(&at.field("retry_policy"), r)).transpose()?,
        include_request_attempt_count: h.include_request_attempt_count,
        include_attempt_count_in_response: h.include_attempt_count_in_response,
        metadata,
        origin,
    })
}

fn overrides(at: &At<'_>, all: &HashMap<String, Any>) -> Result<Vec<(Name, FilterOverride)>> {
    let sorted: BTreeMap<&String, &Any> = all.iter().collect();
    let at = at.field("typed_per_filter_config");
    let mut out = Vec::with_capacity(sorted.len());
    for (name, any) in sorted {
        if let Some(value) = filter_override(&at.field(name), any)? {
            out.push((name.as_str().into(), value));
        }
    }
    Ok(out)
}

fn route(at: &At<'_>, r: &proto::Route) -> Result<Route> {
    use proto::route::Action as A;
    let m = at.field("match");
    let matches = route_match(&m, m.required(r.r#match.as_ref())?)?;
    let action = match at.required(r.action.as_ref())? {
        A::Route(forward) => Action::Forward(Box::new(forward_action(&at.field("route"), forward)?)),
        A::Redirect(redirect) => Action::Redirect(Box::new(redirect_action(&at.field("redirect"), redirect)?)),
        A::DirectResponse(direct) => direct_response(&at.field("direct_response"), direct)?,
        A::NonForwardingAction(_) => Action::NonForwarding,
        A::FilterAction(_) => return at.field("filter_action").refuse("is not supported"),
    };
    let (metadata, origin) = metadata(r.metadata.as_ref());
    Ok(Route {
        name: r.name.as_str().into(),
        matches,
        action,
        headers: header_ops(
            at,
            (&r.request_headers_to_add, &r.request_headers_to_remove),
            (&r.response_headers_to_add, &r.response_headers_to_remove),
        )?,
        filter_overrides: overrides(at, &r.typed_per_filter_config)?,
        operation: r.decorator.as_ref().map_or("", |d| d.operation.as_str()).into(),
        stat_prefix: r.stat_prefix.as_str().into(),
        origin,
        metadata,
    })
}

fn direct_response(at: &At<'_>, d: &proto::DirectResponseAction) -> Result<Action> {
    use core::data_source::Specifier as S;
    let Ok(status @ 200..=599) = u16::try_from(d.status) else {
        return at.field("status").refuse("must be 200 to 599");
    };
    let at = at.field("body");
    let body = match d.body.as_ref().and_then(|b| b.specifier.as_ref()) {
        None => Vec::new(),
        Some(S::InlineString(text)) => text.clone().into_bytes(),
        Some(S::InlineBytes(bytes)) => bytes.clone(),
        Some(S::Filename(path)) => std::fs::read(path).map_err(|e| at.error(format!("{path} cannot be read: {e}")))?,
        Some(S::EnvironmentVariable(_)) => return at.refuse("environment variables are not supported"),
    };
    Ok(Action::DirectResponse { status, body: body.into() })
}

pub(super) fn query_matcher(at: &At<'_>, q: &proto::QueryParameterMatcher) -> Result<QueryMatcher> {
    use proto::query_parameter_matcher::QueryParameterMatchSpecifier as Q;
    let value = match &q.query_parameter_match_specifier {
        Some(Q::StringMatch(m)) => Some(string_matcher(&at.field("string_match"), m)?),
        Some(Q::PresentMatch(false)) => return at.refuse("absence of a parameter cannot be matched"),
        Some(Q::PresentMatch(true)) | None => None,
    };
    Ok(QueryMatcher { name: q.name.as_str().into(), value })
}

pub(super) fn route_match(at: &At<'_>, m: &proto::RouteMatch) -> Result<RouteMatch> {
    use proto::route_match::PathSpecifier as P;
    if !m.filter_state.is_empty() || !m.cookies.is_empty() {
        return at.refuse("matches on filter state and cookies are not supported");
    }
    let path = match at.required(m.path_specifier.as_ref())? {
        P::Prefix(p) => PathMatch::Prefix(p.as_str().into()),
        P::Path(p) => PathMatch::Exact(p.as_str().into()),
        P::SafeRegex(r) => PathMatch::Regex(regex(&at.field("safe_regex"), r)?),
        P::PathSeparatedPrefix(p) if p.ends_with('/') || !p.starts_with('/') => {
            return at.field("path_separated_prefix").refuse("must begin with a slash and not end with one");
        }
        P::PathSeparatedPrefix(p) => PathMatch::PathSeparatedPrefix(p.as_str().into()),
        P::ConnectMatcher(_) => PathMatch::Connect,
        P::PathMatchPolicy(policy) => {
            let at = at.field("path_match_policy");
            let any = at.required(policy.typed_config.as_ref())?;
            if !type_name(any).ends_with("UriTemplateMatchConfig") {
                return at.refuse(format!("{} is not supported", type_name(any)));
            }
            PathMatch::Template(unpack::<UriTemplateMatchConfig>(&at, any)?.path_template.into())
        }
    };
    let query = m.query_parameters.iter().enumerate();
    let fraction = m.runtime_fraction.as_ref();
    let tls = m.tls_context.as_ref();
    let facts = m.dynamic_metadata.iter().enumerate();
    Ok(RouteMatch {
        path,
        case_sensitive: bool_or(m.case_sensitive, true),
        headers: header_matchers(at, "headers", &m.headers)?,
        query: query.map(|(i, q)| query_matcher(&at.item("query_parameters", i), q)).collect::<Result<_>>()?,
        grpc: m.grpc.is_some(),
        fraction: fraction.map(|f| runtime_fraction(&at.field("runtime_fraction"), f)).transpose()?,
        tls_presented: tls.and_then(|t| t.presented).map(|v| v.value),
        tls_validated: tls.and_then(|t| t.validated).map(|v| v.value),
        dynamic_metadata: facts
            .map(|(i, f)| super::rbac::metadata(&at.item("dynamic_metadata", i), f))
            .collect::<Result<_>>()?,
    })
}

fn forward_action(at: &At<'_>, r: &proto::RouteAction) -> Result<Forward> {
    use proto::route_action::{ClusterNotFoundResponseCode as N, ClusterSpecifier as C, HostRewriteSpecifier as H};
    let target = match at.required(r.cluster_specifier.as_ref())? {
        C::Cluster(name) if name.is_empty() => return at.field("cluster").refuse("must not be empty"),
        C::Cluster(name) => Target::Cluster(name.as_str().into()),
        C::ClusterHeader(name) => Target::ClusterHeader(name.to_ascii_lowercase().into()),
        C::WeightedClusters(all) => Target::Weighted(weighted(&at.field("weighted_clusters"), all)?),
        _ => return at.refuse("cluster specifier plugins are not supported"),
    };
    let mut out = Forward::to("");
    out.target = target;
    out.cluster_not_found_status = match N::try_from(r.cluster_not_found_response_code) {
        Ok(N::ServiceUnavailable) => 503,
        Ok(N::NotFound) => 404,
        Ok(N::InternalServerError) => 500,
        Err(_) => return at.field("cluster_not_found_response_code").refuse("does not exist"),
    };
    out.rewrite = rewrite(at, r)?;
    out.host_rewrite = match &r.host_rewrite_specifier {
        None => None,
        Some(H::HostRewriteLiteral(host)) => Some(HostRewrite::Literal(host.as_str().into())),
        Some(H::AutoHostRewrite(on)) => on.value.then_some(HostRewrite::Auto),
        Some(H::HostRewriteHeader(name)) => Some(HostRewrite::Header(name.to_ascii_lowercase().into())),
        Some(_) => return at.refuse("this host rewrite is not supported"),
    };
    out.append_x_forwarded_host = r.append_x_forwarded_host;
    out.timeout = duration_opt(&at.field("timeout"), r.timeout.as_ref())?;
    out.idle_timeout = duration_opt(&at.field("idle_timeout"), r.idle_timeout.as_ref())?;
    #[allow(deprecated)] // what Istio sends
    let grpc_timeout_max = r.max_grpc_timeout.as_ref();
    out.grpc_timeout_max = duration_opt(&at.field("max_grpc_timeout"), grpc_timeout_max)?;
    if let Some(limits) = &r.max_stream_duration {
        let at = at.field("max_stream_duration");
        out.max_stream_duration = duration_opt(&at, limits.max_stream_duration.as_ref())?;
        if let Some(most) = duration_opt(&at, limits.grpc_timeout_header_max.as_ref())? {
            out.grpc_timeout_max = Some(most);
        }
        // As in Envoy: the newer limits replace the timeout.
        out.timeout = Some(Duration::ZERO);
    }
    out.retry = r.retry_policy.as_ref().map(|p| retry_policy(&at.field("retry_policy"), p)).transpose()?;
    let mirrors = r.request_mirror_policies.iter().enumerate();
    out.mirrors = mirrors.map(|(i, m)| mirror(&at.item("request_mirror_policies", i), m)).collect::<Result<_>>()?;
    let hash = r.hash_policy.iter().enumerate();
    out.hash = hash.map(|(i, h)| hash_policy(&at.item("hash_policy", i), h)).collect::<Result<_>>()?;
    out.upgrades = r
        .upgrade_configs
        .iter()
        .map(|u| Upgrade {
            kind: u.upgrade_type.as_str().into(),
            enabled: bool_or(u.enabled, true),
            terminate_connect: u.connect_config.is_some(),
        })
        .collect();
    out.high_priority = r.priority == core::RoutingPriority::High as i32;
    out.rate_limits = rate_limit::rules(at, &r.rate_limits)?;
    #[allow(deprecated)] // the older way to say it
    let include = r.include_vh_rate_limits;
    out.include_host_rate_limits = bool_or(include, false);
    out.metadata_match = plain_metadata(r.metadata_match.as_ref());
    let unsupported = [
        ("internal_redirect_policy", r.internal_redirect_policy.is_some()),
        ("hedge_policy", r.hedge_policy.is_some()),
        ("retry_policy_typed_config", r.retry_policy_typed_config.is_some()),
    ];
    match unsupported.into_iter().find(|(_, set)| *set) {
        Some((field, _)) => at.field(field).refuse("is not supported"),
        None => Ok(out),
    }
}

fn rewrite(at: &At<'_>, r: &proto::RouteAction) -> Result<Option<PathRewrite>> {
    if let Some(policy) = &r.path_rewrite_policy {
        let at = at.field("path_rewrite_policy");
        let any = at.required(policy.typed_config.as_ref())?;
        if !type_name(any).ends_with("UriTemplateRewriteConfig") {
            return at.refuse(format!("{} is not supported", type_name(any)));
        }
        let config: UriTemplateRewriteConfig = unpack(&at, any)?;
        return Ok(Some(PathRewrite::Template(config.path_template_rewrite.into())));
    }
    if let Some(r) = &r.regex_rewrite {
        let at = at.field("regex_rewrite");
        let pattern = regex(&at.field("pattern"), at.required(r.pattern.as_ref())?)?;
        return Ok(Some(PathRewrite::Regex { pattern, substitution: r.substitution.as_str().into() }));
    }
    if !r.path_rewrite.is_empty() {
        return Ok(Some(PathRewrite::Full(r.path_rewrite.as_str().into())));
    }
    Ok((!r.prefix_rewrite.is_empty()).then(|| PathRewrite::Prefix(r.prefix_rewrite.as_str().into())))
}

fn weighted(at: &At<'_>, all: &proto::WeightedCluster) -> Result<Vec<WeightedCluster>> {
    use proto::weighted_cluster::cluster_weight::HostRewriteSpecifier;
    let mut out = Vec::with_capacity(all.clusters.len());
    for (i, c) in all.clusters.iter().enumerate() {
        let at = at.item("clusters", i);
        if c.name.is_empty() {
            return at.field("name").refuse("is required");
        }
        out.push(WeightedCluster {
            name: c.name.as_str().into(),
            weight: u32_or(c.weight, 0),
            headers: header_ops(
                &at,
                (&c.request_headers_to_add, &c.request_headers_to_remove),
                (&c.response_headers_to_add, &c.response_headers_to_remove),
            )?,
            host_rewrite: c.host_rewrite_specifier.as_ref().map(|h| {
                let HostRewriteSpecifier::HostRewriteLiteral(host) = h;
                host.as_str().into()
            }),
            filter_overrides: overrides(&at, &c.typed_per_filter_config)?,
        });
    }
    if out.iter().all(|c| c.weight == 0) {
        return at.refuse("has no weight above zero");
    }
    Ok(out)
}

fn redirect_action(at: &At<'_>, r: &proto::RedirectAction) -> Result<Redirect> {
    use proto::redirect_action::{PathRewriteSpecifier as P, RedirectResponseCode as C, SchemeRewriteSpecifier as S};
    let code = match C::try_from(r.response_code) {
        Ok(C::MovedPermanently) => 301,
        Ok(C::Found) => 302,
        Ok(C::SeeOther) => 303,
        Ok(C::TemporaryRedirect) => 307,
        Ok(C::PermanentRedirect) => 308,
        Err(_) => return at.field("response_code").refuse("does not exist"),
    };
    let (https, scheme) = match &r.scheme_rewrite_specifier {
        None => (false, ""),
        Some(S::HttpsRedirect(on)) => (*on, ""),
        Some(S::SchemeRedirect(scheme)) => (false, scheme.as_str()),
    };
    let path = match &r.path_rewrite_specifier {
        None => None,
        // Set and empty, as istiod writes it, means that there is none.
        Some(P::PathRedirect(text) | P::PrefixRewrite(text)) if text.is_empty() => None,
        Some(P::PathRedirect(path)) => Some(RedirectPath::Full(path.as_str().into())),
        Some(P::PrefixRewrite(prefix)) => Some(RedirectPath::Prefix(prefix.as_str().into())),
        Some(P::RegexRewrite(r)) => {
            let at = at.field("regex_rewrite");
            let pattern = regex(&at.field("pattern"), at.required(r.pattern.as_ref())?)?;
            Some(RedirectPath::Regex { pattern, substitution: r.substitution.as_str().into() })
        }
        Some(P::PathRewrite(_)) => return at.field("path_rewrite").refuse("is not supported in redirects"),
    };
    Ok(Redirect {
        https,
        scheme: scheme.into(),
        host: r.host_redirect.as_str().into(),
        port: if r.port_redirect == 0 { None } else { Some(port(&at.field("port_redirect"), r.port_redirect)?) },
        path,
        code,
        strip_query: r.strip_query,
    })
}

pub fn retry_policy(at: &At<'_>, p: &proto::RetryPolicy) -> Result<RetryPolicy> {
    use proto::retry_policy::retry_priority::ConfigType as PriorityConfig;
    let (on, numbers) = RetryOn::parse(&p.retry_on)
        .map_err(|word| at.field("retry_on").error(format!("{word:?} is not a condition")))?;
    let mut statuses: Vec<u16> = numbers;
    for status in &p.retriable_status_codes {
        let status = u16::try_from(*status);
        statuses.push(status.map_err(|_| at.field("retriable_status_codes").error("is not a status"))?);
    }
    let previous_priorities = match &p.retry_priority {
        None => None,
        Some(priority) => {
            let at = at.field("retry_priority");
            match &priority.config_type {
                Some(PriorityConfig::TypedConfig(any)) if type_name(any).ends_with("PreviousPrioritiesConfig") => {
                    let config: PreviousPrioritiesConfig = unpack(&at, any)?;
                    Some(u32::try_from(config.update_frequency).unwrap_or(1).max(1))
                }
                _ => return at.refuse(format!("{:?} is not supported", priority.name)),
            }
        }
    };
    let mut previous_hosts = false;
    for (i, predicate) in p.retry_host_predicate.iter().enumerate() {
        match predicate.name.as_str() {
            "envoy.retry_host_predicates.previous_hosts" => previous_hosts = true,
            other => return at.item("retry_host_predicate", i).refuse(format!("{other:?} is not supported")),
        }
    }
    let backoff = match &p.retry_back_off {
        None => None,
        Some(b) => {
            let at = at.field("retry_back_off");
            let base = duration_opt(&at.field("base_interval"), b.base_interval.as_ref())?;
            let base = at.field("base_interval").required(base)?;
            let max = duration_opt(&at.field("max_interval"), b.max_interval.as_ref())?;
            Some((base, max.unwrap_or(base * 10)))
        }
    };
    Ok(RetryPolicy {
        on,
        num_retries: u32_or(p.num_retries, 1),
        per_try_timeout: duration_opt(&at.field("per_try_timeout"), p.per_try_timeout.as_ref())?,
        per_try_idle_timeout: duration_opt(&at.field("per_try_idle_timeout"), p.per_try_idle_timeout.as_ref())?,
        retriable_statuses: statuses,
        retriable_headers: header_matchers(at, "retriable_headers", &p.retriable_headers)?,
        backoff,
        previous_hosts,
        host_selection_attempts: u32::try_from(p.host_selection_retry_max_attempts).unwrap_or(0),
        previous_priorities,
    })
}

fn mirror(at: &At<'_>, m: &proto::route_action::RequestMirrorPolicy) -> Result<Mirror> {
    if m.cluster.is_empty() {
        return at.field("cluster").refuse("is required");
    }
    let fraction = match &m.runtime_fraction {
        Some(f) => runtime_fraction(&at.field("runtime_fraction"), f)?,
        None => Fraction::ALWAYS,
    };
    Ok(Mirror { cluster: m.cluster.as_str().into(), fraction, keep_host: m.disable_shadow_host_suffix_append })
}

fn hash_policy(at: &At<'_>, h: &proto::route_action::HashPolicy) -> Result<HashPolicy> {
    use proto::route_action::hash_policy::PolicySpecifier as P;
    let source = match at.required(h.policy_specifier.as_ref())? {
        P::Header(h) if h.regex_rewrite.is_some() => return at.refuse("regex_rewrite of a hash is not supported"),
        P::Header(h) => HashSource::Header(h.header_name.to_ascii_lowercase().into()),
        P::Cookie(c) => HashSource::Cookie {
            name: c.name.as_str().into(),
            ttl: duration_opt(&at.field("cookie.ttl"), c.ttl.as_ref())?,
            path: c.path.as_str().into(),
            attributes: c.attributes.iter().map(|a| (a.name.as_str().into(), a.value.as_str().into())).collect(),
        },
        P::ConnectionProperties(_) => HashSource::SourceIp,
        P::QueryParameter(q) => HashSource::Query(q.name.as_str().into()),
        P::FilterState(f) => HashSource::FilterState(f.key.as_str().into()),
    };
    Ok(HashPolicy { source, terminal: h.terminal })
}
