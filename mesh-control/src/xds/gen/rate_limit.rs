//! Rate limits that a service decides, and what it is told.

use mesh_api::model::{
    Fraction, GlobalRateLimit, HostRules, RateLimitAction, RateLimitRule, RateLimitSettings, RequestType,
};

use super::ext_authz::grpc;
use super::route::query_matcher;
use super::values::{header_matcher, header_value};
use super::wire::Message;

/// `transport_api_version`.
const V3: u64 = 2;

/// `envoy.extensions.filters.http.ratelimit.v3.RateLimit`.
pub fn global(limit: &GlobalRateLimit) -> Message {
    let requests = match limit.requests {
        RequestType::Both => "both",
        RequestType::Internal => "internal",
        RequestType::External => "external",
    };
    let message = Message::new()
        .str(1, &limit.domain)
        .uint(2, limit.stage.into())
        .str(3, requests)
        .duration(4, limit.service.timeout)
        .bool(5, limit.failure_mode_deny)
        .bool(6, limit.resource_exhausted)
        .msg(7, Message::new().msg(2, grpc(&limit.service)).uint(4, V3))
        .uint(8, limit.limit_headers.into())
        .bool(9, limit.no_envoy_header)
        .msg(10, Message::new().uint(1, limit.status.into()))
        .msgs(11, limit.response_headers.add.iter().map(header_value))
        .msg(12, Message::new().uint(1, limit.status_on_error.into()))
        .str(13, &limit.stat_prefix);
    let share = |message: Message, field, share: Fraction| {
        if share == Fraction::ALWAYS { message } else { message.runtime_fraction(field, share) }
    };
    let message = share(share(message, 14, limit.enabled), 15, limit.enforced);
    message.msgs(17, limit.rules.iter().map(rule)).str(18, &limit.metadata_namespace)
}

/// `RateLimitPerRoute`.
pub fn per_route(settings: &RateLimitSettings) -> Message {
    let host_rules = match settings.host_rules {
        HostRules::Override => 0,
        HostRules::Include => 1,
        HostRules::Ignore => 2,
    };
    Message::new().uint(1, host_rules).msgs(3, settings.rules.iter().map(rule)).str(4, &settings.domain)
}

/// `envoy.config.route.v3.RateLimit`.
pub fn rule(rule: &RateLimitRule) -> Message {
    let hits = rule.hits.map(|hits| Message::new().wrapped(1, hits));
    Message::new().wrapped(1, rule.stage).msgs(3, rule.actions.iter().map(action)).maybe(5, hits)
}

fn action(action: &RateLimitAction) -> Message {
    use RateLimitAction as A;
    match action {
        A::SourceCluster => Message::new().msg(1, Message::new()),
        A::DestinationCluster => Message::new().msg(2, Message::new()),
        A::Header { name, key, skip_if_absent } => {
            Message::new().msg(3, Message::new().str(1, name).str(2, key).bool(3, *skip_if_absent))
        }
        A::RemoteAddress => Message::new().msg(4, Message::new()),
        A::Generic { key, value } => Message::new().msg(5, Message::new().str(1, value).str(2, key)),
        A::HeaderMatch { key, value, expect, headers } => {
            let headers = headers.iter().map(header_matcher);
            Message::new().msg(6, Message::new().str(1, value).wrapped_bool(2, *expect).msgs(3, headers).str(4, key))
        }
        A::Metadata { key, of_route, filter, path, default, skip_if_absent } => {
            let path = path.iter().map(|key| Message::new().str(1, key));
            let metadata = Message::new()
                .str(1, key)
                .msg(2, Message::new().str(1, filter).msgs(2, path))
                .str(3, default)
                .uint(4, (*of_route).into())
                .bool(5, *skip_if_absent);
            Message::new().msg(8, metadata)
        }
        A::MaskedRemoteAddress { v4, v6 } => Message::new().msg(10, Message::new().wrapped(1, *v4).wrapped(2, *v6)),
        A::QueryMatch { key, value, expect, query } => {
            let query = query.iter().map(query_matcher);
            Message::new().msg(11, Message::new().str(1, value).wrapped_bool(2, *expect).msgs(3, query).str(4, key))
        }
        A::Query { name, key, skip_if_absent } => {
            Message::new().msg(12, Message::new().str(1, name).str(2, key).bool(3, *skip_if_absent))
        }
    }
}
