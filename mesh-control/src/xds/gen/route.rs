//! Route configurations.

use std::collections::BTreeMap;

use mesh_api::model::{
    Action, FilterOverride, Forward, HashPolicy, HashSource, HeaderOps, HostRewrite, Mirror, Name, PathMatch,
    PathRewrite, QueryMatcher, Redirect, RedirectPath, RequireTls, RetryPolicy, Route, RouteConfig, RouteMatch, Target,
    Upgrade, VirtualHost, WeightedCluster,
};

use super::http_filter::filter_override;
use super::rate_limit;
use super::values::{header_matcher, header_value, metadata, regex, string_matcher, substitution};
use super::wire::Message;

/// `RouteConfiguration`.
pub fn route_config(config: &RouteConfig) -> Message {
    Message::new()
        .str(1, &config.name)
        .msgs(2, config.virtual_hosts.iter().map(virtual_host))
        .strs(3, &config.internal_only_headers)
        .msgs(4, config.headers.response.add.iter().map(header_value))
        .strs(5, &config.headers.response.remove)
        .msgs(6, config.headers.request.add.iter().map(header_value))
        .wrapped_bool(7, config.validate_clusters)
        .strs(8, &config.headers.request.remove)
        .wrapped_maybe(11, config.max_direct_response_body)
        .bool(14, config.ignore_port_in_host)
        .metadata(17, metadata(&config.metadata, &mesh_api::model::Origin::default()))
}

fn virtual_host(host: &VirtualHost) -> Message {
    let require_tls = match host.require_tls {
        RequireTls::None => 0,
        RequireTls::ExternalOnly => 1,
        RequireTls::All => 2,
    };
    let message = Message::new()
        .str(1, &host.name)
        .strs(2, &host.domains)
        .msgs(3, host.routes.iter().map(route))
        .uint(4, require_tls)
        .msgs(6, host.rate_limits.iter().map(rate_limit::rule))
        .msgs(7, host.headers.request.add.iter().map(header_value))
        .msgs(10, host.headers.response.add.iter().map(header_value))
        .strs(11, &host.headers.response.remove)
        .strs(13, &host.headers.request.remove)
        .bool(14, host.include_request_attempt_count);
    overrides(15, &host.filter_overrides, message)
        .maybe(16, host.retry.as_ref().map(retry_policy))
        .bool(19, host.include_attempt_count_in_response)
        .metadata(24, metadata(&host.metadata, &host.origin))
}

/// `typed_per_filter_config`, keys in order.
fn overrides(field: u32, overrides: &[(Name, FilterOverride)], mut message: Message) -> Message {
    let sorted: BTreeMap<&str, &FilterOverride> = overrides.iter().map(|(name, o)| (&**name, o)).collect();
    for (name, value) in sorted {
        message = message.entry(field, name, filter_override(value));
    }
    message
}

fn route(route: &Route) -> Message {
    let HeaderOps { request, response } = &route.headers;
    let message = Message::new().msg(1, route_match(&route.matches));
    let message = match &route.action {
        Action::Forward(forward) => message.msg(2, forward_action(forward)),
        Action::Redirect(redirect) => message.msg(3, redirect_action(redirect)),
        Action::DirectResponse { status, body } => {
            let source = || match std::str::from_utf8(body) {
                Ok(text) => Message::new().str(3, text),
                Err(_) => Message::new().bytes_field(2, body),
            };
            let body = (!body.is_empty()).then(source);
            message.msg(7, Message::new().uint(1, u64::from(*status)).maybe(2, body))
        }
        Action::NonForwarding => message.msg(18, Message::new()),
    };
    let decorator = (!route.operation.is_empty()).then(|| Message::new().str(1, &route.operation));
    let message = message
        .metadata(4, metadata(&route.metadata, &route.origin))
        .maybe(5, decorator)
        .msgs(9, request.add.iter().map(header_value))
        .msgs(10, response.add.iter().map(header_value))
        .strs(11, &response.remove)
        .strs(12, &request.remove);
    overrides(13, &route.filter_overrides, message).str(14, &route.name).str(19, &route.stat_prefix)
}

pub fn route_match(matches: &RouteMatch) -> Message {
    let template = |text: &str| {
        let url = "envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig";
        let config = Message::any(url, Message::new().str(1, text));
        Message::new().str(1, "envoy.path.match.uri_template.uri_template_matcher").msg(2, config)
    };
    let message = match &matches.path {
        PathMatch::Prefix(prefix) => Message::new().str_always(1, prefix),
        PathMatch::Exact(path) => Message::new().str_always(2, path),
        PathMatch::Regex(pattern) => Message::new().msg(10, regex(pattern)),
        PathMatch::Connect => Message::new().msg(12, Message::new()),
        PathMatch::PathSeparatedPrefix(prefix) => Message::new().str_always(14, prefix),
        PathMatch::Template(text) => Message::new().msg(15, template(text)),
    };
    let message = if matches.case_sensitive { message } else { message.wrapped_bool(4, false) };
    let message = message
        .msgs(6, matches.headers.iter().map(header_matcher))
        .msgs(7, matches.query.iter().map(query_matcher))
        .maybe(8, matches.grpc.then(Message::new));
    let message = match matches.fraction {
        Some(fraction) => message.runtime_fraction(9, fraction),
        None => message,
    };
    let facts = matches.dynamic_metadata.iter().map(super::rbac::metadata);
    if matches.tls_presented.is_none() && matches.tls_validated.is_none() {
        return message.msgs(13, facts);
    }
    let flag = |m: Message, field, value: Option<bool>| match value {
        Some(value) => m.wrapped_bool(field, value),
        None => m,
    };
    message.msg(11, flag(flag(Message::new(), 1, matches.tls_presented), 2, matches.tls_validated)).msgs(13, facts)
}

pub(super) fn query_matcher(matcher: &QueryMatcher) -> Message {
    let message = Message::new().str(1, &matcher.name);
    match &matcher.value {
        Some(value) => message.msg(5, string_matcher(value)),
        None => message.bool_always(6, true),
    }
}

fn forward_action(forward: &Forward) -> Message {
    let message = match &forward.target {
        Target::Cluster(name) => Message::new().str_always(1, name),
        Target::ClusterHeader(name) => Message::new().str_always(2, name),
        Target::Weighted(clusters) => {
            Message::new().msg(3, Message::new().msgs(1, clusters.iter().map(weighted_cluster)))
        }
    };
    let message = metadata_match(4, &forward.metadata_match, message);
    let message = match &forward.rewrite {
        Some(PathRewrite::Prefix(prefix)) => message.str(5, prefix),
        Some(PathRewrite::Regex { pattern, substitution: to }) => message.msg(32, substitution(pattern, to)),
        Some(PathRewrite::Template(text)) => {
            let url = "envoy.extensions.path.rewrite.uri_template.v3.UriTemplateRewriteConfig";
            let config = Message::any(url, Message::new().str(1, text));
            let name = "envoy.path.rewrite.uri_template.uri_template_rewriter";
            message.msg(41, Message::new().str(1, name).msg(2, config))
        }
        Some(PathRewrite::Full(path)) => message.str(45, path),
        None => message,
    };
    let message = match &forward.host_rewrite {
        Some(HostRewrite::Literal(host)) => message.str_always(6, host),
        Some(HostRewrite::Auto) => message.wrapped_bool(7, true),
        Some(HostRewrite::Header(name)) => message.str_always(29, name),
        None => message,
    };
    let not_found = match forward.cluster_not_found_status {
        404 => 1,
        500 => 2,
        _ => 0,
    };
    let message = message
        .duration_maybe(8, forward.timeout)
        .maybe(9, forward.retry.as_ref().map(retry_policy))
        .uint(11, u64::from(forward.high_priority))
        .msgs(13, forward.rate_limits.iter().map(rate_limit::rule))
        .maybe(14, forward.include_host_rate_limits.then(|| Message::new().bool(1, true)))
        .msgs(15, forward.hash.iter().map(hash_policy))
        .uint(20, not_found)
        // Deprecated, yet what Istio uses too: `max_stream_duration.grpc_timeout_header_max` switches the route's timeout off.
        .duration_maybe(23, forward.grpc_timeout_max)
        .duration_maybe(24, forward.idle_timeout)
        .msgs(25, forward.upgrades.iter().map(upgrade))
        .msgs(30, forward.mirrors.iter().map(mirror));
    let message = match forward.max_stream_duration {
        Some(limit) => message.msg(36, Message::new().duration(1, limit)),
        None => message,
    };
    message.bool(38, forward.append_x_forwarded_host)
}

fn metadata_match(field: u32, wanted: &mesh_api::model::Metadata, message: Message) -> Message {
    message.metadata(field, metadata(wanted, &mesh_api::model::Origin::default()))
}

fn weighted_cluster(cluster: &WeightedCluster) -> Message {
    let message = Message::new()
        .str(1, &cluster.name)
        .wrapped(2, cluster.weight)
        .msgs(4, cluster.headers.request.add.iter().map(header_value))
        .msgs(5, cluster.headers.response.add.iter().map(header_value))
        .strs(6, &cluster.headers.response.remove)
        .strs(9, &cluster.headers.request.remove);
    let message = overrides(10, &cluster.filter_overrides, message);
    match &cluster.host_rewrite {
        Some(host) => message.str_always(11, host),
        None => message,
    }
}

fn redirect_action(redirect: &Redirect) -> Message {
    let code = match redirect.code {
        302 => 1,
        303 => 2,
        307 => 3,
        308 => 4,
        _ => 0,
    };
    let message = Message::new().str(1, &redirect.host).uint(3, code).bool(6, redirect.strip_query);
    let message = if redirect.https { message.bool_always(4, true) } else { message.str(7, &redirect.scheme) };
    let message = message.uint(8, redirect.port.unwrap_or(0).into());
    match &redirect.path {
        Some(RedirectPath::Full(path)) => message.str_always(2, path),
        Some(RedirectPath::Prefix(prefix)) => message.str_always(5, prefix),
        Some(RedirectPath::Regex { pattern, substitution: to }) => message.msg(9, substitution(pattern, to)),
        None => message,
    }
}

/// `RetryPolicy`.
pub fn retry_policy(policy: &RetryPolicy) -> Message {
    let mut message = Message::new()
        .str(1, &policy.on.words())
        .wrapped(2, policy.num_retries)
        .duration_maybe(3, policy.per_try_timeout);
    if let Some(frequency) = policy.previous_priorities {
        let url = "envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig";
        let config = Message::any(url, Message::new().int(1, frequency.into()));
        message = message.msg(4, Message::new().str(1, "envoy.retry_priorities.previous_priorities").msg(3, config));
    }
    if policy.previous_hosts {
        let url = "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate";
        let config = Message::any(url, Message::new());
        message = message.msg(5, Message::new().str(1, "envoy.retry_host_predicates.previous_hosts").msg(3, config));
    }
    message = message
        .int(6, policy.host_selection_attempts.into())
        .uints(7, policy.retriable_statuses.iter().map(|s| u64::from(*s)));
    if let Some((base, max)) = policy.backoff {
        message = message.msg(8, Message::new().duration(1, base).duration(2, max));
    }
    message.msgs(9, policy.retriable_headers.iter().map(header_matcher)).duration_maybe(13, policy.per_try_idle_timeout)
}

fn mirror(mirror: &Mirror) -> Message {
    Message::new().str(1, &mirror.cluster).runtime_fraction(3, mirror.fraction).bool(6, mirror.keep_host)
}

/// `RouteAction.HashPolicy`.
fn hash_policy(policy: &HashPolicy) -> Message {
    hash_source(&policy.source).bool(4, policy.terminal)
}

fn hash_source(source: &HashSource) -> Message {
    match source {
        HashSource::Header(name) => Message::new().msg(1, Message::new().str(1, name)),
        HashSource::Cookie { name, ttl, path, attributes } => {
            let attribute = |(name, value): &(Name, Name)| Message::new().str(1, name).str(2, value);
            let cookie = Message::new().str(1, name).duration_maybe(2, *ttl).str(3, path);
            Message::new().msg(2, cookie.msgs(4, attributes.iter().map(attribute)))
        }
        HashSource::SourceIp => Message::new().msg(3, Message::new().bool(1, true)),
        HashSource::Query(name) => Message::new().msg(5, Message::new().str(1, name)),
        HashSource::FilterState(key) => Message::new().msg(6, Message::new().str(1, key)),
    }
}

/// `RouteAction.UpgradeConfig`.
fn upgrade(upgrade: &Upgrade) -> Message {
    Message::new()
        .str(1, &upgrade.kind)
        .wrapped_bool(2, upgrade.enabled)
        .maybe(3, upgrade.terminate_connect.then(Message::new))
}
