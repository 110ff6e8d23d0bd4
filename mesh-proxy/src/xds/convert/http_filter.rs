//! HTTP filters and their overrides by route.

use std::time::Duration;

use mesh_api::model::{
    CorsPolicy, DiscoveredFilter, ExtensionConfig, FaultAbort, FaultFilter, FilterOverride, Fraction, HeaderMutation,
    HealthCheckFilter, HttpFilter, HttpFilterKind, IstioStats, LocalRateLimit, Name, PeerMetadata, RbacFilter,
    RouterFilter, SessionCookie, SessionState, StatefulSession,
};
use mesh_api::xds::envoy::config::common::mutation_rules::v3 as mutation_rules;
use mesh_api::xds::envoy::config::core::v3 as core;
use mesh_api::xds::envoy::config::route::v3::FilterConfig;
use mesh_api::xds::envoy::extensions::filters::http as filters;
use mesh_api::xds::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use mesh_api::xds::envoy::extensions::http::stateful_session as sessions;
use mesh_api::xds::google::protobuf::{Any, BoolValue};

use super::Result;
use super::at::At;
use super::dns_cache::dns_cache;
use super::ext_authz;
use super::istio_stats;
use super::jwt::jwt_authn;
use super::rate_limit;
use super::rbac::rbac;
use super::values::{
    duration, duration_opt, duration_or, fraction, header_matchers, header_value, lower, runtime_fraction,
    string_matchers, token_bucket, type_name, typed_struct, unpack,
};

/// Filters of Istio's Envoy build and others that change nothing here: known, and left out.
const WITHOUT_EFFECT: [&str; 4] = [
    "istio.metadata_exchange",
    "envoy.filters.http.set_filter_state",
    "envoy.filters.http.wasm.stats",
    "envoy.filters.http.upstream_codec",
];

/// `None`: an optional filter that is not known.
pub fn http_filter(at: &At<'_>, f: &hcm::HttpFilter) -> Result<Option<HttpFilter>> {
    use hcm::http_filter::ConfigType as C;
    let kind = match &f.config_type {
        Some(C::TypedConfig(any)) => kind(&at.field("typed_config"), &f.name, any)?,
        Some(C::ConfigDiscovery(source)) => {
            let at = at.field("config_discovery");
            match unknown(&source.type_urls) {
                // What guards requests must not be left out.
                Some(_) if f.is_optional && !guards(&f.name) => None,
                Some(url) => {
                    return at.field("type_urls").refuse(format!("filter {:?} ({url}) is not supported", f.name));
                }
                None => Some(HttpFilterKind::Discovered(Box::new(discovered(&at, &f.name, source)?))),
            }
        }
        // Static files may name a filter and leave the configuration out.
        None => kind_by_name(&f.name),
    };
    match kind {
        Some(kind) => Ok(Some(HttpFilter { name: f.name.as_str().into(), kind, disabled: f.disabled })),
        None if WITHOUT_EFFECT.contains(&f.name.as_str()) => Ok(None),
        // What guards requests must not be left out.
        None if f.is_optional && !guards(&f.name) => Ok(None),
        None => {
            let any = match &f.config_type {
                Some(C::TypedConfig(any)) => type_name(any),
                _ => "",
            };
            at.refuse(format!("filter {:?} ({any}) is not supported", f.name))
        }
    }
}

/// A type that there is no filter for.
fn unknown(type_urls: &[String]) -> Option<&str> {
    let exists = |url: &str| {
        let empty = Any { type_url: url.to_owned(), value: vec![] };
        // That its configuration lacks something shows that there is one.
        !matches!(kind(&At::resource(""), "", &empty), Ok(None))
    };
    type_urls.iter().map(String::as_str).find(|url| !exists(url))
}

fn discovered(at: &At<'_>, name: &str, source: &core::ExtensionConfigSource) -> Result<DiscoveredFilter> {
    use core::config_source::ConfigSourceSpecifier as S;
    let place = at.field("config_source");
    let config = place.required(source.config_source.as_ref())?;
    if !matches!(config.config_source_specifier, Some(S::Ads(_) | S::Self_(_))) {
        return place.refuse("only ads is supported");
    }
    let types: Vec<_> = source.type_urls.iter().map(|url| url.rsplit('/').next().unwrap_or_default().into()).collect();
    if types.is_empty() {
        return at.field("type_urls").refuse("is required");
    }
    let default = match &source.default_config {
        None => None,
        Some(any) => {
            let at = at.field("default_config");
            let config = configured(&at, name, any)?;
            if !types.contains(&config.type_name) {
                return at.refuse(format!("is a {}, which type_urls does not list", config.type_name));
            }
            Some(config.kind)
        }
    };
    if source.apply_default_config_without_warming && default.is_none() {
        return at.field("apply_default_config_without_warming").refuse("needs a default_config");
    }
    let wait = config.initial_fetch_timeout.as_ref();
    Ok(DiscoveredFilter {
        types,
        default,
        at_once: source.apply_default_config_without_warming,
        fetch_timeout: duration_or(&place.field("initial_fetch_timeout"), wait, Duration::from_secs(15))?,
    })
}

/// A `TypedExtensionConfig`.
pub fn extension(at: &At<'_>, name: &str, message: &core::TypedExtensionConfig) -> Result<ExtensionConfig> {
    if message.name != name {
        return at.field("name").refuse(format!("is {:?}", message.name));
    }
    let at = at.field("typed_config");
    configured(&at, name, at.required(message.typed_config.as_ref())?)
}

fn configured(at: &At<'_>, name: &str, any: &Any) -> Result<ExtensionConfig> {
    let inner = typed_struct(at, any)?.map(|(inner, _)| inner);
    let type_name = inner.as_deref().unwrap_or_else(|| type_name(any));
    match kind(at, name, any)? {
        Some(HttpFilterKind::Router(_)) => at.refuse("the router cannot come by discovery"),
        Some(kind) => Ok(ExtensionConfig { name: name.into(), type_name: type_name.into(), kind }),
        None => at.refuse(format!("filter {name:?} ({type_name}) is not supported")),
    }
}

fn guards(name: &str) -> bool {
    ["authz", "authn", "jwt", "rbac", "oauth", "basic_auth", "api_key", "csrf"].iter().any(|word| name.contains(word))
}

fn kind_by_name(name: &str) -> Option<HttpFilterKind> {
    Some(match name {
        "envoy.filters.http.router" => HttpFilterKind::Router(RouterFilter::default()),
        "envoy.filters.http.cors" => HttpFilterKind::Cors,
        "envoy.filters.http.grpc_web" => HttpFilterKind::GrpcWeb,
        "istio.alpn" => HttpFilterKind::IstioAlpn,
        "istio.stats" => HttpFilterKind::IstioStats(IstioStats::default()),
        _ => return None,
    })
}

fn kind(at: &At<'_>, name: &str, any: &Any) -> Result<Option<HttpFilterKind>> {
    if let Some((inner, value)) = typed_struct(at, any)? {
        return Ok(match inner.as_str() {
            "stats.PluginConfig" => Some(HttpFilterKind::IstioStats(istio_stats::of_struct(at, &value)?)),
            _ if name == "istio.stats" => Some(HttpFilterKind::IstioStats(istio_stats::of_struct(at, &value)?)),
            _ => None,
        });
    }
    Ok(Some(match type_name(any) {
        "envoy.extensions.filters.http.router.v3.Router" => {
            let config: filters::router::v3::Router = unpack(at, any)?;
            HttpFilterKind::Router(RouterFilter { suppress_envoy_headers: config.suppress_envoy_headers })
        }
        "envoy.extensions.filters.http.rbac.v3.RBAC" => HttpFilterKind::Rbac(http_rbac(at, &unpack(at, any)?)?),
        "envoy.extensions.filters.http.ext_authz.v3.ExtAuthz" => {
            HttpFilterKind::ExtAuthz(Box::new(ext_authz::http(at, &unpack(at, any)?)?))
        }
        "envoy.extensions.filters.http.fault.v3.HTTPFault" => HttpFilterKind::Fault(fault(at, &unpack(at, any)?)?),
        "envoy.extensions.filters.http.cors.v3.Cors" => HttpFilterKind::Cors,
        "envoy.extensions.filters.http.grpc_stats.v3.FilterConfig" => {
            let config: filters::grpc_stats::v3::FilterConfig = unpack(at, any)?;
            HttpFilterKind::GrpcStats { emit_filter_state: config.emit_filter_state }
        }
        "envoy.extensions.filters.http.grpc_web.v3.GrpcWeb" => HttpFilterKind::GrpcWeb,
        "envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit" => {
            HttpFilterKind::LocalRateLimit(local_rate_limit(at, &unpack(at, any)?, Scope::Chain)?)
        }
        "envoy.extensions.filters.http.ratelimit.v3.RateLimit" => {
            HttpFilterKind::GlobalRateLimit(Box::new(rate_limit::global(at, &unpack(at, any)?)?))
        }
        "envoy.extensions.filters.http.header_mutation.v3.HeaderMutation" => {
            let config: filters::header_mutation::v3::HeaderMutation = unpack(at, any)?;
            let (request, response) = mutations(at, config.mutations.as_ref())?;
            HttpFilterKind::HeaderMutation { request, response }
        }
        "envoy.extensions.filters.http.health_check.v3.HealthCheck" => {
            let config: filters::health_check::v3::HealthCheck = unpack(at, any)?;
            HttpFilterKind::HealthCheck(health_check(at, &config)?)
        }
        "envoy.extensions.filters.http.stateful_session.v3.StatefulSession" => {
            HttpFilterKind::StatefulSession(session(at, &unpack(at, any)?)?)
        }
        "istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig" => HttpFilterKind::IstioAlpn,
        "stats.PluginConfig" => HttpFilterKind::IstioStats(istio_stats::of_any(at, any)?),
        "io.istio.http.peer_metadata.Config" => HttpFilterKind::PeerMetadata(peer_metadata(at, any)?),
        "envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication" => {
            HttpFilterKind::JwtAuthn(Box::new(jwt_authn(at, &unpack(at, any)?)?))
        }
        "envoy.extensions.filters.http.dynamic_forward_proxy.v3.FilterConfig" => {
            use filters::dynamic_forward_proxy::v3::filter_config::ImplementationSpecifier as S;
            let config: filters::dynamic_forward_proxy::v3::FilterConfig = unpack(at, any)?;
            match &config.implementation_specifier {
                Some(S::DnsCacheConfig(cache)) => {
                    HttpFilterKind::DynamicForwardProxy(Box::new(dns_cache(&at.field("dns_cache_config"), cache)?))
                }
                Some(S::SubClusterConfig(_)) => return at.field("sub_cluster_config").refuse("is not supported"),
                None => return at.field("dns_cache_config").refuse("is required"),
            }
        }
        _ => return Ok(None),
    }))
}

fn health_check(at: &At<'_>, f: &filters::health_check::v3::HealthCheck) -> Result<HealthCheckFilter> {
    let pass_through = at.field("pass_through_mode").required(f.pass_through_mode)?.value;
    let cache_time = duration_opt(&at.field("cache_time"), f.cache_time.as_ref())?.filter(|t| !t.is_zero());
    if cache_time.is_some() && !pass_through {
        return at.field("cache_time").refuse("needs pass_through_mode");
    }
    let mut min_healthy: Vec<(Name, f64)> = Vec::new();
    for (cluster, share) in &f.cluster_min_healthy_percentages {
        if !(0.0..=100.0).contains(&share.value) {
            return at.field("cluster_min_healthy_percentages").refuse(format!("{cluster}: must be 0 to 100"));
        }
        // As in Envoy: what goes on to the application is decided there.
        if !pass_through {
            min_healthy.push((cluster.as_str().into(), share.value));
        }
    }
    min_healthy.sort_by(|(a, _), (b, _)| a.cmp(b));
    let headers = header_matchers(at, "headers", &f.headers)?;
    Ok(HealthCheckFilter { pass_through, headers, cache_time, min_healthy })
}

fn peer_metadata(at: &At<'_>, any: &Any) -> Result<PeerMetadata> {
    #[derive(Clone, Copy, PartialEq, prost::Message)]
    struct Headers {
        #[prost(bool, tag = "1")]
        skip_external_clusters: bool,
    }
    #[derive(Clone, Copy, PartialEq, prost::Message)]
    struct Discovery {
        #[prost(message, optional, tag = "3")]
        headers: Option<Headers>,
    }
    #[derive(Clone, Copy, PartialEq, prost::Message)]
    struct Propagation {
        #[prost(message, optional, tag = "1")]
        headers: Option<Headers>,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    struct Config {
        #[prost(message, repeated, tag = "1")]
        downstream_discovery: Vec<Discovery>,
        #[prost(message, repeated, tag = "2")]
        upstream_discovery: Vec<Discovery>,
        #[prost(message, repeated, tag = "3")]
        downstream_propagation: Vec<Propagation>,
        #[prost(message, repeated, tag = "4")]
        upstream_propagation: Vec<Propagation>,
    }
    let config: Config = at.decode(&any.value)?;
    let propagations = config.downstream_propagation.iter().chain(&config.upstream_propagation);
    Ok(PeerMetadata {
        downstream_discovery: config.downstream_discovery.iter().any(|d| d.headers.is_some()),
        upstream_discovery: config.upstream_discovery.iter().any(|d| d.headers.is_some()),
        downstream_propagation: config.downstream_propagation.iter().any(|p| p.headers.is_some()),
        upstream_propagation: config.upstream_propagation.iter().any(|p| p.headers.is_some()),
        skip_external: propagations.filter_map(|p| p.headers).any(|h| h.skip_external_clusters),
    })
}

fn http_rbac(at: &At<'_>, f: &filters::rbac::v3::Rbac) -> Result<RbacFilter> {
    if f.matcher.is_some() || f.shadow_matcher.is_some() {
        return at.refuse("matchers are not supported, use rules");
    }
    Ok(RbacFilter {
        stat_prefix: f.rules_stat_prefix.as_str().into(),
        rules: f.rules.as_ref().map(|r| rbac(&at.field("rules"), r)).transpose()?,
        shadow_rules: f.shadow_rules.as_ref().map(|r| rbac(&at.field("shadow_rules"), r)).transpose()?,
        shadow_prefix: f.shadow_rules_stat_prefix.as_str().into(),
    })
}

fn fault(at: &At<'_>, f: &filters::fault::v3::HttpFault) -> Result<FaultFilter> {
    use filters::fault::v3::fault_abort::ErrorType;
    use mesh_api::xds::envoy::extensions::filters::common::fault::v3::fault_delay::FaultDelaySecifier;
    if f.response_rate_limit.is_some() || !f.upstream_cluster.is_empty() || !f.downstream_nodes.is_empty() {
        return at.refuse("rate limits, upstream_cluster and downstream_nodes of faults are not supported");
    }
    let share = |at: &At<'_>, p: Option<&mesh_api::xds::envoy::r#type::v3::FractionalPercent>| {
        p.map_or(Ok(Fraction(0)), |p| fraction(at, p))
    };
    let delay = match &f.delay {
        None => None,
        Some(d) => {
            let at = at.field("delay");
            let Some(FaultDelaySecifier::FixedDelay(length)) = &d.fault_delay_secifier else {
                return at.refuse("only fixed delays are supported");
            };
            Some((share(&at, d.percentage.as_ref())?, duration(&at.field("fixed_delay"), length)?))
        }
    };
    let abort = match &f.abort {
        None => None,
        Some(a) => {
            let at = at.field("abort");
            let kind = match a.error_type {
                Some(ErrorType::HttpStatus(status)) => match u16::try_from(status) {
                    Ok(status @ 200..=599) => FaultAbort::Http(status),
                    _ => return at.field("http_status").refuse("must be 200 to 599"),
                },
                Some(ErrorType::GrpcStatus(status)) => FaultAbort::Grpc(status),
                _ => return at.refuse("aborts by header are not supported"),
            };
            Some((share(&at, a.percentage.as_ref())?, kind))
        }
    };
    Ok(FaultFilter {
        delay,
        abort,
        max_active: f.max_active_faults.map(|v| v.value),
        headers: header_matchers(at, "headers", &f.headers)?,
    })
}

fn cors(at: &At<'_>, p: &filters::cors::v3::CorsPolicy) -> Result<CorsPolicy> {
    let flag = |v: Option<BoolValue>| v.map(|v| v.value);
    Ok(CorsPolicy {
        allow_origins: string_matchers(at, "allow_origin_string_match", &p.allow_origin_string_match)?,
        allow_methods: p.allow_methods.as_str().into(),
        allow_headers: p.allow_headers.as_str().into(),
        expose_headers: p.expose_headers.as_str().into(),
        max_age: p.max_age.as_str().into(),
        allow_credentials: flag(p.allow_credentials),
        enabled: p.filter_enabled.as_ref().map(|f| runtime_fraction(&at.field("filter_enabled"), f)).transpose()?,
        forward_not_matching_preflights: flag(p.forward_not_matching_preflights),
    })
}

/// What a configuration of a filter is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scope {
    /// All requests of a chain.
    Chain,
    /// Those of a route.
    Route,
}

fn local_rate_limit(
    at: &At<'_>,
    l: &filters::local_ratelimit::v3::LocalRateLimit,
    scope: Scope,
) -> Result<LocalRateLimit> {
    if !l.descriptors.is_empty() || l.local_rate_limit_per_downstream_connection {
        return at.refuse("descriptors and limits by connection are not supported");
    }
    let bucket = at.field("token_bucket");
    if l.token_bucket.is_none() && scope == Scope::Chain {
        // Nothing is limited but where a route says so.
        return Ok(LocalRateLimit {
            stat_prefix: l.stat_prefix.as_str().into(),
            max_tokens: 1,
            tokens_per_fill: 1,
            fill_interval: Duration::from_secs(1),
            enabled: Fraction(0),
            enforced: Fraction(0),
            status: rate_limit::refusal_status(l.status.as_ref()),
            response_headers: HeaderMutation::default(),
        });
    }
    let b = token_bucket(&bucket, bucket.required(l.token_bucket.as_ref())?)?;
    let share = |field: &str, f: Option<&core::RuntimeFractionalPercent>| {
        f.map_or(Ok(Fraction(0)), |f| runtime_fraction(&at.field(field), f))
    };
    Ok(LocalRateLimit {
        stat_prefix: l.stat_prefix.as_str().into(),
        max_tokens: b.max_tokens,
        tokens_per_fill: b.tokens_per_fill,
        fill_interval: b.fill_interval,
        enabled: share("filter_enabled", l.filter_enabled.as_ref())?,
        enforced: share("filter_enforced", l.filter_enforced.as_ref())?,
        status: rate_limit::refusal_status(l.status.as_ref()),
        response_headers: rate_limit::added(at, &l.response_headers_to_add)?,
    })
}

fn mutations(
    at: &At<'_>,
    m: Option<&filters::header_mutation::v3::Mutations>,
) -> Result<(HeaderMutation, HeaderMutation)> {
    let Some(m) = m else { return Ok(Default::default()) };
    let one = |field: &str, all: &[mutation_rules::HeaderMutation]| {
        use mutation_rules::header_mutation::Action as A;
        let mut out = HeaderMutation::default();
        for (i, mutation) in all.iter().enumerate() {
            let at = at.item(field, i);
            match at.required(mutation.action.as_ref())? {
                A::Remove(name) => out.remove.extend(lower(std::slice::from_ref(name))),
                A::Append(option) => out.add.push(header_value(&at, option)?),
                A::RemoveOnMatch(_) => return at.refuse("remove_on_match is not supported"),
            }
        }
        Ok(out)
    };
    Ok((
        one("mutations.request_mutations", &m.request_mutations)?,
        one("mutations.response_mutations", &m.response_mutations)?,
    ))
}

fn session(at: &At<'_>, s: &filters::stateful_session::v3::StatefulSession) -> Result<Option<StatefulSession>> {
    if !matches!(s.status_on_strict_destination_not_found, 0 | 503) {
        return at.field("status_on_strict_destination_not_found").refuse("must be 503");
    }
    let Some(state) = &s.session_state else { return Ok(None) };
    let session = |state| Ok(Some(StatefulSession { state, strict: s.strict }));
    let at = at.field("session_state");
    let any = at.required(state.typed_config.as_ref())?;
    match type_name(any) {
        "envoy.extensions.http.stateful_session.cookie.v3.CookieBasedSessionState" => {
            let config: sessions::cookie::v3::CookieBasedSessionState = unpack(&at, any)?;
            let cookie = at.required(config.cookie.as_ref())?;
            if cookie.name.is_empty() {
                return at.field("cookie.name").refuse("is required");
            }
            let attributes = cookie.attributes.iter();
            session(SessionState::Cookie(SessionCookie {
                name: cookie.name.as_str().into(),
                ttl: duration_or(&at.field("cookie.ttl"), cookie.ttl.as_ref(), Duration::ZERO)?,
                path: cookie.path.as_str().into(),
                attributes: attributes.map(|a| (a.name.as_str().into(), a.value.as_str().into())).collect(),
            }))
        }
        "envoy.extensions.http.stateful_session.header.v3.HeaderBasedSessionState" => {
            let config: sessions::header::v3::HeaderBasedSessionState = unpack(&at, any)?;
            session(SessionState::Header(config.name.to_ascii_lowercase().into()))
        }
        other => at.refuse(format!("{other} is not supported")),
    }
}

/// A value of `typed_per_filter_config`; `None`: for a filter that is not known and may be left out.
pub fn filter_override(at: &At<'_>, any: &Any) -> Result<Option<FilterOverride>> {
    Ok(Some(match type_name(any) {
        "envoy.config.route.v3.FilterConfig" => {
            let config: FilterConfig = unpack(at, any)?;
            if config.disabled {
                return Ok(Some(FilterOverride::Disabled));
            }
            return match &config.config {
                Some(inner) if type_name(inner) != "google.protobuf.Empty" => {
                    let known = filter_override(at, inner);
                    if config.is_optional && known.is_err() { Ok(None) } else { known }
                }
                _ => Ok(Some(FilterOverride::Enabled)),
            };
        }
        "envoy.extensions.filters.http.cors.v3.CorsPolicy" => FilterOverride::Cors(cors(at, &unpack(at, any)?)?),
        "envoy.extensions.filters.http.fault.v3.HTTPFault" => FilterOverride::Fault(fault(at, &unpack(at, any)?)?),
        "envoy.extensions.filters.http.rbac.v3.RBACPerRoute" => {
            let config: filters::rbac::v3::RbacPerRoute = unpack(at, any)?;
            match &config.rbac {
                Some(inner) => FilterOverride::Rbac(http_rbac(&at.field("rbac"), inner)?),
                None => FilterOverride::Disabled,
            }
        }
        "envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute" => ext_authz::per_route(at, &unpack(at, any)?)?,
        "envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit" => {
            FilterOverride::LocalRateLimit(local_rate_limit(at, &unpack(at, any)?, Scope::Route)?)
        }
        "envoy.extensions.filters.http.ratelimit.v3.RateLimitPerRoute" => {
            FilterOverride::GlobalRateLimit(rate_limit::per_route(at, &unpack(at, any)?)?)
        }
        "envoy.extensions.filters.http.header_mutation.v3.HeaderMutationPerRoute" => {
            let config: filters::header_mutation::v3::HeaderMutationPerRoute = unpack(at, any)?;
            let (request, response) = mutations(at, config.mutations.as_ref())?;
            FilterOverride::HeaderMutation { request, response }
        }
        "envoy.extensions.filters.http.stateful_session.v3.StatefulSessionPerRoute" => {
            use filters::stateful_session::v3::stateful_session_per_route::Override as O;
            let config: filters::stateful_session::v3::StatefulSessionPerRoute = unpack(at, any)?;
            match at.required(config.r#override.as_ref())? {
                O::Disabled(_) => FilterOverride::Disabled,
                O::StatefulSession(s) => match session(at, s)? {
                    Some(source) => FilterOverride::StatefulSession(source),
                    None => FilterOverride::Disabled,
                },
            }
        }
        "envoy.extensions.filters.http.jwt_authn.v3.PerRouteConfig" => {
            use filters::jwt_authn::v3::per_route_config::RequirementSpecifier as R;
            let config: filters::jwt_authn::v3::PerRouteConfig = unpack(at, any)?;
            match at.required(config.requirement_specifier.as_ref())? {
                R::Disabled(true) => FilterOverride::Disabled,
                R::Disabled(false) => return at.field("disabled").refuse("must be true"),
                R::RequirementName(name) => FilterOverride::JwtRequirement(name.as_str().into()),
            }
        }
        "istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig" => FilterOverride::Enabled,
        other => return at.refuse(format!("{other} is not supported")),
    }))
}
