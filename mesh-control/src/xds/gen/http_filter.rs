//! HTTP filters and their overrides by route.

use mesh_api::model::{
    CorsPolicy, DiscoveredFilter, FaultAbort, FaultFilter, FilterOverride, HeaderMutation, HttpFilter, HttpFilterKind,
    IstioStats, LocalRateLimit, MetricChange, Name, PeerMetadata, RbacFilter, SessionCookie, SessionState,
    StatefulSession,
};

use super::cluster::dns_cache;
use super::ext_authz::{http_ext_authz, settings};
use super::jwt;
use super::rate_limit;
use super::rbac::rbac;
use super::values::{ads, header_matcher, header_value, mutations, string_matcher};
use super::wire::Message;

/// `HttpFilter`.
pub fn http_filter(filter: &HttpFilter) -> Message {
    let out = match &filter.kind {
        HttpFilterKind::Discovered(declared) => Message::new().str(1, &filter.name).msg(5, discovery(declared)),
        kind => Message::new().str(1, &filter.name).maybe(4, typed_config(kind)),
    };
    out.bool(7, filter.disabled)
}

/// `ExtensionConfigSource`.
fn discovery(declared: &DiscoveredFilter) -> Message {
    Message::new()
        .msg(1, ads(Some(declared.fetch_timeout)))
        .maybe(2, declared.default.as_ref().and_then(typed_config))
        .bool(3, declared.at_once)
        .strs(4, declared.types.iter().map(|name| format!("type.googleapis.com/{name}")))
}

/// `Any`; `None`: what comes by discovery has none here.
fn typed_config(kind: &HttpFilterKind) -> Option<Message> {
    let (url, config) = match kind {
        HttpFilterKind::Discovered(_) => return None,
        HttpFilterKind::Router(router) => {
            ("envoy.extensions.filters.http.router.v3.Router", Message::new().bool(4, router.suppress_envoy_headers))
        }
        HttpFilterKind::Rbac(filter) => ("envoy.extensions.filters.http.rbac.v3.RBAC", http_rbac(filter)),
        HttpFilterKind::ExtAuthz(filter) => {
            ("envoy.extensions.filters.http.ext_authz.v3.ExtAuthz", http_ext_authz(filter))
        }
        HttpFilterKind::Fault(filter) => ("envoy.extensions.filters.http.fault.v3.HTTPFault", fault(filter)),
        HttpFilterKind::Cors => ("envoy.extensions.filters.http.cors.v3.Cors", Message::new()),
        HttpFilterKind::GrpcStats { emit_filter_state } => {
            // stats_for_all_methods: false, as Istio.
            let config = Message::new().bool(1, *emit_filter_state).wrapped_bool(3, false);
            ("envoy.extensions.filters.http.grpc_stats.v3.FilterConfig", config)
        }
        HttpFilterKind::GrpcWeb => ("envoy.extensions.filters.http.grpc_web.v3.GrpcWeb", Message::new()),
        HttpFilterKind::LocalRateLimit(limit) => {
            ("envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit", local_rate_limit(limit))
        }
        HttpFilterKind::GlobalRateLimit(limit) => {
            ("envoy.extensions.filters.http.ratelimit.v3.RateLimit", rate_limit::global(limit))
        }
        HttpFilterKind::HeaderMutation { request, response } => {
            ("envoy.extensions.filters.http.header_mutation.v3.HeaderMutation", header_mutation(request, response))
        }
        HttpFilterKind::HealthCheck(check) => {
            let config = Message::new().wrapped_bool(1, check.pass_through).duration_maybe(3, check.cache_time);
            let clusters = check.min_healthy.iter();
            let config =
                clusters.fold(config, |out, (name, share)| out.entry(4, name, Message::new().double(1, *share)));
            let config = config.msgs(5, check.headers.iter().map(header_matcher));
            ("envoy.extensions.filters.http.health_check.v3.HealthCheck", config)
        }
        HttpFilterKind::StatefulSession(source) => {
            let config = source.as_ref().map(stateful_session).unwrap_or_default();
            ("envoy.extensions.filters.http.stateful_session.v3.StatefulSession", config)
        }
        HttpFilterKind::IstioAlpn => ("istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig", Message::new()),
        HttpFilterKind::IstioStats(stats) => istio_stats(stats),
        HttpFilterKind::PeerMetadata(config) => ("io.istio.http.peer_metadata.Config", peer_metadata(config)),
        HttpFilterKind::JwtAuthn(config) => {
            ("envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication", jwt::jwt_authn(config))
        }
        HttpFilterKind::DynamicForwardProxy(cache) => (
            "envoy.extensions.filters.http.dynamic_forward_proxy.v3.FilterConfig",
            Message::new().msg(1, dns_cache(cache)),
        ),
    };
    Some(Message::any(url, config))
}

/// Istio's `stats.PluginConfig`.
pub fn istio_stats(stats: &IstioStats) -> (&'static str, Message) {
    let metric = |change: &MetricChange| {
        let label = |(name, value): &(Name, Name)| Message::new().str(1, name).str(2, value);
        Message::new()
            .msgs(1, change.labels.iter().map(label))
            .str(2, &change.name)
            .strs(3, &change.removed)
            .bool(5, change.dropped)
    };
    let config = Message::new()
        .bool(6, stats.disable_host_header_fallback)
        .duration_maybe(7, stats.tcp_reporting)
        .msgs(8, stats.metrics.iter().map(metric));
    ("stats.PluginConfig", config)
}

/// Istio's peer metadata filter: discovery and propagation by headers, each a `oneof` in a list.
fn peer_metadata(config: &PeerMetadata) -> Message {
    let headers = || Message::new().bool(1, config.skip_external);
    let discovery = |on: bool| on.then(|| Message::new().msg(3, Message::new()));
    let propagation = |on: bool| on.then(|| Message::new().msg(1, headers()));
    Message::new()
        .maybe(1, discovery(config.downstream_discovery))
        .maybe(2, discovery(config.upstream_discovery))
        .maybe(3, propagation(config.downstream_propagation))
        .maybe(4, propagation(config.upstream_propagation))
}

fn http_rbac(filter: &RbacFilter) -> Message {
    Message::new()
        .maybe(1, filter.rules.as_ref().map(rbac))
        .maybe(2, filter.shadow_rules.as_ref().map(rbac))
        .str(3, &filter.shadow_prefix)
        .str(6, &filter.stat_prefix)
}

fn fault(filter: &FaultFilter) -> Message {
    let delay = filter.delay.map(|(share, length)| Message::new().duration(3, length).fraction(4, share));
    let abort = filter.abort.map(|(share, abort)| match abort {
        FaultAbort::Http(status) => Message::new().uint_always(2, status.into()).fraction(3, share),
        FaultAbort::Grpc(status) => Message::new().fraction(3, share).uint_always(5, status.into()),
    });
    Message::new()
        .maybe(1, delay)
        .maybe(2, abort)
        .msgs(4, filter.headers.iter().map(header_matcher))
        .wrapped_maybe(6, filter.max_active)
}

fn cors(policy: &CorsPolicy) -> Message {
    let flag = |message: Message, field, value: Option<bool>| match value {
        Some(value) => message.wrapped_bool(field, value),
        None => message,
    };
    let message = Message::new()
        .msgs(1, policy.allow_origins.iter().map(string_matcher))
        .str(2, &policy.allow_methods)
        .str(3, &policy.allow_headers)
        .str(4, &policy.expose_headers)
        .str(5, &policy.max_age);
    let message = flag(message, 6, policy.allow_credentials);
    let message = match policy.enabled {
        Some(share) => message.runtime_fraction(7, share),
        None => message,
    };
    flag(message, 10, policy.forward_not_matching_preflights)
}

fn local_rate_limit(limit: &LocalRateLimit) -> Message {
    let bucket = Message::new()
        .uint(1, limit.max_tokens.into())
        .wrapped(2, limit.tokens_per_fill)
        .duration(3, limit.fill_interval);
    Message::new()
        .str(1, &limit.stat_prefix)
        .msg(2, Message::new().uint(1, limit.status.into()))
        .msg(3, bucket)
        .runtime_fraction(4, limit.enabled)
        .runtime_fraction(5, limit.enforced)
        .msgs(6, limit.response_headers.add.iter().map(header_value))
}

fn header_mutation(request: &HeaderMutation, response: &HeaderMutation) -> Message {
    Message::new().msg(1, Message::new().msgs(1, mutations(request)).msgs(2, mutations(response)))
}

fn stateful_session(session: &StatefulSession) -> Message {
    Message::new().msg(1, session_state(&session.state)).bool(2, session.strict)
}

/// The session state extension of a stateful session.
fn session_state(state: &SessionState) -> Message {
    match state {
        SessionState::Cookie(SessionCookie { name, ttl, path, attributes }) => {
            let attributes = attributes.iter().map(|(name, value)| Message::new().str(1, name).str(2, value));
            let cookie = Message::new().str(1, name).duration(2, *ttl).str(3, path).msgs(4, attributes);
            let url = "envoy.extensions.http.stateful_session.cookie.v3.CookieBasedSessionState";
            let config = Message::any(url, Message::new().msg(1, cookie));
            Message::new().str(1, "envoy.http.stateful_session.cookie").msg(2, config)
        }
        SessionState::Header(name) => {
            let url = "envoy.extensions.http.stateful_session.header.v3.HeaderBasedSessionState";
            let config = Message::any(url, Message::new().str(1, name));
            Message::new().str(1, "envoy.http.stateful_session.header").msg(2, config)
        }
    }
}

/// A value of `typed_per_filter_config`.
pub fn filter_override(value: &FilterOverride) -> Message {
    match value {
        FilterOverride::Disabled => {
            // FilterConfig.disabled
            Message::any("envoy.config.route.v3.FilterConfig", Message::new().bool(3, true))
        }
        FilterOverride::Enabled => {
            // FilterConfig with an empty configuration: on, as the filter is configured.
            let empty = Message::any("google.protobuf.Empty", Message::new());
            Message::any("envoy.config.route.v3.FilterConfig", Message::new().msg(1, empty))
        }
        FilterOverride::Cors(policy) => Message::any("envoy.extensions.filters.http.cors.v3.CorsPolicy", cors(policy)),
        FilterOverride::Fault(filter) => {
            Message::any("envoy.extensions.filters.http.fault.v3.HTTPFault", fault(filter))
        }
        FilterOverride::Rbac(filter) => {
            let config = Message::new().msg(2, http_rbac(filter));
            Message::any("envoy.extensions.filters.http.rbac.v3.RBACPerRoute", config)
        }
        FilterOverride::ExtAuthz(own) => {
            Message::any("envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute", settings(own))
        }
        FilterOverride::LocalRateLimit(limit) => {
            Message::any("envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit", local_rate_limit(limit))
        }
        FilterOverride::GlobalRateLimit(settings) => Message::any(
            "envoy.extensions.filters.http.ratelimit.v3.RateLimitPerRoute",
            rate_limit::per_route(settings),
        ),
        FilterOverride::HeaderMutation { request, response } => Message::any(
            "envoy.extensions.filters.http.header_mutation.v3.HeaderMutationPerRoute",
            header_mutation(request, response),
        ),
        FilterOverride::JwtRequirement(name) => {
            Message::any("envoy.extensions.filters.http.jwt_authn.v3.PerRouteConfig", jwt::per_route(name))
        }
        FilterOverride::StatefulSession(source) => {
            // stateful_session = 2 of a oneof, a StatefulSession.
            let session = stateful_session(source);
            let url = "envoy.extensions.filters.http.stateful_session.v3.StatefulSessionPerRoute";
            Message::any(url, Message::new().msg(2, session))
        }
    }
}
