//! Rate limits: of a service, and what it is told. What would limit others than meant is refused.

use std::time::Duration;

use mesh_api::model::{
    Fraction, GlobalRateLimit, HeaderMutation, HostRules, Name, RateLimitAction, RateLimitRule, RateLimitSettings,
    RequestType,
};
use mesh_api::xds::envoy::config::core::v3 as core;
use mesh_api::xds::envoy::config::ratelimit::v3::RateLimitServiceConfig;
use mesh_api::xds::envoy::config::route::v3 as route;
use mesh_api::xds::envoy::config::route::v3::rate_limit::action as actions;
use mesh_api::xds::envoy::extensions::filters::http::ratelimit::v3 as proto;
use mesh_api::xds::envoy::r#type::metadata::v3::MetadataKey;
use mesh_api::xds::envoy::r#type::v3::HttpStatus;

use super::Result;
use super::at::At;
use super::ext_authz;
use super::route::query_matcher;
use super::values::{bool_or, duration_or, header_matchers, header_value, runtime_fraction};

/// As Envoy, for a filter that says nothing.
const TIMEOUT: Duration = Duration::from_millis(20);
/// Stages are numbered up to this.
const MAX_STAGE: u32 = 10;

/// `envoy.filters.http.ratelimit`.
pub fn global(at: &At<'_>, f: &proto::RateLimit) -> Result<GlobalRateLimit> {
    if f.domain.is_empty() {
        return at.field("domain").refuse("is required");
    }
    if f.failure_mode_deny_percent.is_some() {
        return at.field("failure_mode_deny_percent").refuse("is not supported, use failure_mode_deny");
    }
    if f.enable_retry_after_header {
        return at.field("enable_retry_after_header").refuse("is not supported");
    }
    let requests = match f.request_type.as_str() {
        "" | "both" => RequestType::Both,
        "internal" => RequestType::Internal,
        "external" => RequestType::External,
        other => return at.field("request_type").refuse(format!("{other:?} is not internal, external or both")),
    };
    let limit_headers = match proto::rate_limit::XRateLimitHeadersRfcVersion::try_from(f.enable_x_ratelimit_headers) {
        Ok(proto::rate_limit::XRateLimitHeadersRfcVersion::Off) => false,
        Ok(proto::rate_limit::XRateLimitHeadersRfcVersion::DraftVersion03) => true,
        Err(_) => return at.field("enable_x_ratelimit_headers").refuse("does not exist"),
    };
    let service = service(at, f.rate_limit_service.as_ref(), f.timeout.as_ref())?;
    let share = |field: &str, f: Option<&core::RuntimeFractionalPercent>| {
        f.map_or(Ok(Fraction::ALWAYS), |f| runtime_fraction(&at.field(field), f))
    };
    Ok(GlobalRateLimit {
        stat_prefix: f.stat_prefix.as_str().into(),
        stage: stage(at, f.stage)?,
        requests,
        failure_mode_deny: f.failure_mode_deny,
        resource_exhausted: f.rate_limited_as_resource_exhausted,
        limit_headers,
        no_envoy_header: f.disable_x_envoy_ratelimited_header,
        status: refusal_status(f.rate_limited_status.as_ref()),
        status_on_error: error_status(f.status_on_error.as_ref()).unwrap_or(500),
        response_headers: added(at, &f.response_headers_to_add)?,
        enabled: share("filter_enabled", f.filter_enabled.as_ref())?,
        enforced: share("filter_enforced", f.filter_enforced.as_ref())?,
        rules: rules(at, &f.rate_limits)?,
        metadata_namespace: f.metadata_namespace.as_str().into(),
        ..GlobalRateLimit::new(f.domain.as_str(), service)
    })
}

/// `RateLimitPerRoute`.
pub fn per_route(at: &At<'_>, o: &proto::RateLimitPerRoute) -> Result<RateLimitSettings> {
    use proto::rate_limit_per_route::{OverrideOptions, VhRateLimitsOptions as V};
    if o.override_option != OverrideOptions::Default as i32 {
        return at.field("override_option").refuse("is not supported");
    }
    let host_rules = match V::try_from(o.vh_rate_limits) {
        Ok(V::Override) => HostRules::Override,
        Ok(V::Include) => HostRules::Include,
        Ok(V::Ignore) => HostRules::Ignore,
        Err(_) => return at.field("vh_rate_limits").refuse("does not exist"),
    };
    Ok(RateLimitSettings { host_rules, rules: rules(at, &o.rate_limits)?, domain: o.domain.as_str().into() })
}

/// Whom to ask; the time for an answer is the filter's.
fn service(
    at: &At<'_>,
    s: Option<&RateLimitServiceConfig>,
    timeout: Option<&mesh_api::xds::google::protobuf::Duration>,
) -> Result<mesh_api::model::AuthzGrpc> {
    let field = at.field("rate_limit_service");
    let config = field.required(s)?;
    if config.transport_api_version != core::ApiVersion::V3 as i32 {
        return field.field("transport_api_version").refuse("must be V3");
    }
    let grpc = field.field("grpc_service");
    let mut service = ext_authz::grpc(&grpc, grpc.required(config.grpc_service.as_ref())?)?;
    service.timeout = duration_or(&at.field("timeout"), timeout, TIMEOUT)?;
    Ok(service)
}

/// As Envoy: what is below 400 would not be a refusal.
pub fn refusal_status(status: Option<&HttpStatus>) -> u16 {
    error_status(status).unwrap_or(429)
}

fn error_status(status: Option<&HttpStatus>) -> Option<u16> {
    u16::try_from(status?.code).ok().filter(|code| (400..=599).contains(code))
}

/// `response_headers_to_add`.
pub fn added(at: &At<'_>, headers: &[core::HeaderValueOption]) -> Result<HeaderMutation> {
    let headers = headers.iter().enumerate();
    let add = headers.map(|(i, h)| header_value(&at.item("response_headers_to_add", i), h)).collect::<Result<_>>()?;
    Ok(HeaderMutation { remove: vec![], add })
}

fn stage(at: &At<'_>, stage: u32) -> Result<u32> {
    if stage > MAX_STAGE { at.field("stage").refuse(format!("must be {MAX_STAGE} at most")) } else { Ok(stage) }
}

/// `rate_limits` of a filter, host or route.
pub fn rules(at: &At<'_>, all: &[route::RateLimit]) -> Result<Vec<RateLimitRule>> {
    all.iter().enumerate().map(|(i, r)| rule(&at.item("rate_limits", i), r)).collect()
}

fn rule(at: &At<'_>, r: &route::RateLimit) -> Result<RateLimitRule> {
    if r.limit.is_some() {
        return at.field("limit").refuse("is not supported");
    }
    if r.apply_on_stream_done {
        return at.field("apply_on_stream_done").refuse("is not supported");
    }
    if r.x_ratelimit_option != 0 {
        return at.field("x_ratelimit_option").refuse("is not supported");
    }
    if r.actions.is_empty() {
        return at.field("actions").refuse("is required");
    }
    let hits = match &r.hits_addend {
        None => None,
        Some(h) if !h.format.is_empty() || h.is_negative_hits => {
            return at.field("hits_addend").refuse("only a number above zero is supported");
        }
        Some(h) => h.number.map(|n| n.value),
    };
    let actions = r.actions.iter().enumerate();
    Ok(RateLimitRule {
        stage: stage(at, r.stage.map_or(0, |s| s.value))?,
        actions: actions.map(|(i, a)| action(&at.item("actions", i), a)).collect::<Result<_>>()?,
        hits,
    })
}

/// Envoy's newest reads values with `%` as formats.
fn fixed(at: &At<'_>, value: &str, default: &str) -> Result<Name> {
    if value.contains('%') || !default.is_empty() {
        return at.field("descriptor_value").refuse("command operators are not supported");
    }
    Ok(value.into())
}

fn key_or(key: &str, default: &str) -> Name {
    if key.is_empty() { default.into() } else { key.into() }
}

fn action(at: &At<'_>, a: &route::rate_limit::Action) -> Result<RateLimitAction> {
    use actions::ActionSpecifier as A;
    let named = |field: &str, text: &str| -> Result<Name> {
        if text.is_empty() { at.field(field).refuse("is required") } else { Ok(text.into()) }
    };
    Ok(match at.required(a.action_specifier.as_ref())? {
        A::SourceCluster(_) => RateLimitAction::SourceCluster,
        A::DestinationCluster(_) => RateLimitAction::DestinationCluster,
        A::RemoteAddress(_) => RateLimitAction::RemoteAddress,
        A::MaskedRemoteAddress(m) => {
            let at = at.field("masked_remote_address");
            let bits = |field: &str, value: Option<u32>, most: u8| match u8::try_from(value.unwrap_or(most.into())) {
                Ok(bits) if bits <= most => Ok(bits),
                _ => at.field(field).refuse(format!("must be {most} at most")),
            };
            RateLimitAction::MaskedRemoteAddress {
                v4: bits("v4_prefix_mask_len", m.v4_prefix_mask_len.map(|v| v.value), 32)?,
                v6: bits("v6_prefix_mask_len", m.v6_prefix_mask_len.map(|v| v.value), 128)?,
            }
        }
        A::RequestHeaders(h) => RateLimitAction::Header {
            name: named("request_headers.header_name", &h.header_name.to_ascii_lowercase())?,
            key: named("request_headers.descriptor_key", &h.descriptor_key)?,
            skip_if_absent: h.skip_if_absent,
        },
        A::QueryParameters(q) => RateLimitAction::Query {
            name: named("query_parameters.query_parameter_name", &q.query_parameter_name)?,
            key: named("query_parameters.descriptor_key", &q.descriptor_key)?,
            skip_if_absent: q.skip_if_absent,
        },
        A::GenericKey(g) => RateLimitAction::Generic {
            key: key_or(&g.descriptor_key, "generic_key"),
            value: fixed(&at.field("generic_key"), &g.descriptor_value, &g.default_value)?,
        },
        A::HeaderValueMatch(m) => {
            let at = at.field("header_value_match");
            RateLimitAction::HeaderMatch {
                key: key_or(&m.descriptor_key, "header_match"),
                value: fixed(&at, &m.descriptor_value, &m.default_value)?,
                expect: bool_or(m.expect_match, true),
                headers: header_matchers(&at, "headers", &m.headers)?,
            }
        }
        A::QueryParameterValueMatch(m) => {
            let at = at.field("query_parameter_value_match");
            let query = m.query_parameters.iter().enumerate();
            RateLimitAction::QueryMatch {
                key: key_or(&m.descriptor_key, "query_match"),
                value: fixed(&at, &m.descriptor_value, &m.default_value)?,
                expect: bool_or(m.expect_match, true),
                query: query.map(|(i, q)| query_matcher(&at.item("query_parameters", i), q)).collect::<Result<_>>()?,
            }
        }
        A::Metadata(m) => metadata(&at.field("metadata"), m)?,
        #[allow(deprecated)] // still sent
        A::DynamicMetadata(m) => {
            let at = at.field("dynamic_metadata");
            let (filter, path) = metadata_key(&at, m.metadata_key.as_ref())?;
            RateLimitAction::Metadata {
                key: m.descriptor_key.as_str().into(),
                of_route: false,
                filter,
                path,
                default: m.default_value.as_str().into(),
                skip_if_absent: false,
            }
        }
        A::RemoteAddressMatch(_) => return at.field("remote_address_match").refuse("is not supported"),
        A::Extension(e) => return at.field("extension").refuse(format!("{:?} is not supported", e.name)),
    })
}

fn metadata(at: &At<'_>, m: &actions::MetaData) -> Result<RateLimitAction> {
    use actions::meta_data::Source;
    let of_route = match Source::try_from(m.source) {
        Ok(Source::Dynamic) => false,
        Ok(Source::RouteEntry) => true,
        _ => return at.field("source").refuse("must be DYNAMIC or ROUTE_ENTRY"),
    };
    let (filter, path) = metadata_key(at, m.metadata_key.as_ref())?;
    Ok(RateLimitAction::Metadata {
        key: m.descriptor_key.as_str().into(),
        of_route,
        filter,
        path,
        default: m.default_value.as_str().into(),
        skip_if_absent: m.skip_if_absent,
    })
}

fn metadata_key(at: &At<'_>, key: Option<&MetadataKey>) -> Result<(Name, Vec<Name>)> {
    use mesh_api::xds::envoy::r#type::metadata::v3::metadata_key::path_segment::Segment;
    let at = at.field("metadata_key");
    let key = at.required(key)?;
    let mut path = Vec::with_capacity(key.path.len());
    for (i, segment) in key.path.iter().enumerate() {
        match &segment.segment {
            Some(Segment::Key(key)) => path.push(key.as_str().into()),
            _ => return at.item("path", i).refuse("must be a key"),
        }
    }
    Ok((key.key.as_str().into(), path))
}

#[cfg(test)]
mod tests {
    use mesh_api::xds::google::protobuf::UInt32Value;

    use super::*;

    fn rule_of(specifier: actions::ActionSpecifier) -> route::RateLimit {
        let action = route::rate_limit::Action { action_specifier: Some(specifier) };
        route::RateLimit { actions: vec![action], ..Default::default() }
    }

    fn refusal(r: route::RateLimit) -> String {
        rules(&At::resource("r"), &[r]).unwrap_err().path
    }

    #[test]
    fn what_is_not_understood_is_refused_by_its_field() {
        use actions::ActionSpecifier as A;
        assert_eq!(refusal(route::RateLimit::default()), "rate_limits[0].actions");
        let generic =
            || rule_of(A::GenericKey(actions::GenericKey { descriptor_value: "v".into(), ..Default::default() }));
        assert!(rules(&At::resource("r"), &[generic()]).is_ok());
        let late = route::RateLimit { stage: Some(UInt32Value { value: 11 }), ..generic() };
        assert_eq!(refusal(late), "rate_limits[0].stage");
        let done = route::RateLimit { apply_on_stream_done: true, ..generic() };
        assert_eq!(refusal(done), "rate_limits[0].apply_on_stream_done");
        let mask =
            actions::MaskedRemoteAddress { v4_prefix_mask_len: Some(UInt32Value { value: 33 }), ..Default::default() };
        let path = "rate_limits[0].actions[0].masked_remote_address.v4_prefix_mask_len";
        assert_eq!(refusal(rule_of(A::MaskedRemoteAddress(mask))), path);
        let format = actions::GenericKey { descriptor_value: "%REQ(a)%".into(), ..Default::default() };
        assert_eq!(refusal(rule_of(A::GenericKey(format))), "rate_limits[0].actions[0].generic_key.descriptor_value");
    }

    #[test]
    fn a_filter_needs_a_domain_and_a_service() {
        let refusal = |f: &proto::RateLimit| global(&At::resource("f"), f).unwrap_err().path;
        let mut f = proto::RateLimit::default();
        assert_eq!(refusal(&f), "domain");
        f.domain = "d".to_owned();
        assert_eq!(refusal(&f), "rate_limit_service");
        f.rate_limit_service = Some(RateLimitServiceConfig::default());
        assert_eq!(refusal(&f), "rate_limit_service.transport_api_version");
        f.request_type = "all".to_owned();
        assert_eq!(refusal(&f), "request_type");
        assert_eq!(refusal_status(Some(&HttpStatus { code: 200 })), 429);
        assert_eq!(refusal_status(Some(&HttpStatus { code: 503 })), 503);
    }
}
