//! Route configurations (`envoy.config.route.v3`).

use std::{sync::Arc, time::Duration};

use serde::Serialize;

use super::{
    FilterOverride, Fraction, HeaderMatcher, Metadata, MetadataMatch, Name, Origin, QueryMatcher, RateLimitRule,
    StringMatcher,
};

/// A named table of virtual hosts.
#[derive(Debug, Clone, PartialEq, Serialize, Default)]
pub struct RouteConfig {
    /// Name that listeners refer to.
    pub name: Name,
    /// Hosts; a domain stands in one of them only.
    pub virtual_hosts: Vec<VirtualHost>,
    /// Header operations on every answer and request.
    pub headers: HeaderOps,
    /// Headers taken away from requests that come from outside (`internal_only_headers`).
    pub internal_only_headers: Vec<Name>,
    /// `max_direct_response_body_size_bytes`; `None`: 4096.
    pub max_direct_response_body: Option<u32>,
    /// Ports are ignored when a host is looked up (`ignore_port_in_host_matching`).
    pub ignore_port_in_host: bool,
    /// A cluster that does not exist makes the resource invalid (static configuration's default).
    pub validate_clusters: bool,
    /// Everything in `metadata.filter_metadata`.
    pub metadata: Metadata,
}

/// Routes for a set of domains.
#[derive(Debug, Clone, PartialEq, Serialize, Default)]
pub struct VirtualHost {
    /// Unique in its table.
    pub name: Name,
    /// Exact, `*.suffix`, `prefix.*` or `*`; port included unless `ignore_port_in_host`.
    pub domains: Vec<Name>,
    /// In order; the first that matches wins.
    pub routes: Vec<Route>,
    /// Redirect cleartext requests to https.
    pub require_tls: RequireTls,
    /// Header operations, after the route's, before the table's.
    pub headers: HeaderOps,
    /// Filter configuration for this host.
    pub filter_overrides: Vec<(Name, FilterOverride)>,
    /// What rate limit services are told of requests to this host.
    pub rate_limits: Vec<RateLimitRule>,
    /// Retry policy of the routes that have none.
    pub retry: Option<RetryPolicy>,
    /// Tell the upstream which attempt this is (`x-envoy-attempt-count`).
    pub include_request_attempt_count: bool,
    /// Tell the client how many attempts there were.
    pub include_attempt_count_in_response: bool,
    /// Everything in `metadata.filter_metadata`.
    pub metadata: Metadata,
    /// Cause.
    pub origin: Origin,
}

/// `VirtualHost.TlsRequirementType`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Default)]
pub enum RequireTls {
    /// Cleartext is fine.
    #[default]
    None,
    /// External cleartext requests are redirected.
    ExternalOnly,
    /// Every cleartext request is redirected.
    All,
}

/// A match and what to do.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Route {
    /// For `%ROUTE_NAME%`; may be empty.
    pub name: Name,
    /// When it applies.
    pub matches: RouteMatch,
    /// What happens.
    pub action: Action,
    /// Header operations, before those of host and table.
    pub headers: HeaderOps,
    /// Filter configuration for this route.
    pub filter_overrides: Vec<(Name, FilterOverride)>,
    /// Span name (`decorator.operation`); empty: the default.
    pub operation: Name,
    /// Statistics prefix; empty: none.
    pub stat_prefix: Name,
    /// Cause.
    pub origin: Origin,
    /// Everything else in `metadata.filter_metadata`.
    pub metadata: Metadata,
}

/// `RouteMatch`: all given conditions hold.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RouteMatch {
    /// The path (without query).
    pub path: PathMatch,
    /// Exact, prefix and template comparison respect case.
    pub case_sensitive: bool,
    /// Conditions on headers and pseudo-headers.
    pub headers: Vec<HeaderMatcher>,
    /// Conditions on query parameters.
    pub query: Vec<QueryMatcher>,
    /// Only gRPC requests.
    pub grpc: bool,
    /// Only this share of requests (`runtime_fraction`).
    pub fraction: Option<Fraction>,
    /// TLS: `Some(true)` only with a client certificate presented.
    pub tls_presented: Option<bool>,
    /// TLS: `Some(true)` only with a client certificate validated.
    pub tls_validated: Option<bool>,
    /// Conditions on what filters said of the request (claims of its token).
    pub dynamic_metadata: Vec<MetadataMatch>,
}

impl RouteMatch {
    /// Matches every request.
    pub fn any() -> Self {
        Self::path(PathMatch::Prefix("/".into()))
    }
    /// Matches on the path alone.
    pub fn path(path: PathMatch) -> Self {
        Self {
            path,
            case_sensitive: true,
            headers: vec![],
            query: vec![],
            grpc: false,
            fraction: None,
            tls_presented: None,
            tls_validated: None,
            dynamic_metadata: vec![],
        }
    }
}

/// The path condition.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub enum PathMatch {
    /// Starts with.
    Prefix(Name),
    /// Equal.
    Exact(Name),
    /// Equal, or the prefix followed by `/` (`path_separated_prefix`; has no final slash).
    PathSeparatedPrefix(Name),
    /// The whole path matches.
    Regex(Name),
    /// URI template: `{*}`, `{**}`, `{name=*}`.
    Template(Name),
    /// CONNECT requests.
    Connect,
}

/// What a route does.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub enum Action {
    /// Forward to a cluster.
    Forward(Box<Forward>),
    /// Answer with a redirect.
    Redirect(Box<Redirect>),
    /// Answer by itself.
    DirectResponse {
        /// HTTP status, 200..=599.
        status: u16,
        /// Body, possibly empty.
        body: Body,
    },
    /// `non_forwarding_action`: for inbound gRPC routes.
    NonForwarding,
}

/// Bytes of an answer; need not be text.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Body(Arc<[u8]>);

impl std::ops::Deref for Body {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl From<&str> for Body {
    fn from(text: &str) -> Self {
        Self(text.as_bytes().into())
    }
}

impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes.into())
    }
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Debug::fmt(&String::from_utf8_lossy(self), f)
    }
}

impl Serialize for Body {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        String::from_utf8_lossy(self).serialize(s)
    }
}

/// `RouteAction`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Forward {
    /// Where to.
    pub target: Target,
    /// Status for a cluster that does not exist: 503 (default) or 404, 500.
    pub cluster_not_found_status: u16,
    /// Path rewrite.
    pub rewrite: Option<PathRewrite>,
    /// Host rewrite.
    pub host_rewrite: Option<HostRewrite>,
    /// `x-forwarded-host` carries the old host.
    pub append_x_forwarded_host: bool,
    /// Whole answer, retries included; `None`: 15 s; zero: no limit.
    pub timeout: Option<Duration>,
    /// Stream idle timeout of this route; `None`: the manager's.
    pub idle_timeout: Option<Duration>,
    /// `grpc-timeout` is honoured up to this (`max_grpc_timeout`); zero: any.
    pub grpc_timeout_max: Option<Duration>,
    /// `max_stream_duration`; with it, [`timeout`](Self::timeout) has no effect in Envoy.
    pub max_stream_duration: Option<Duration>,
    /// Retries; `None`: those of the virtual host.
    pub retry: Option<RetryPolicy>,
    /// Copies of requests.
    pub mirrors: Vec<Mirror>,
    /// Hash of the request for consistent balancers, in order.
    pub hash: Vec<HashPolicy>,
    /// Upgrades allowed here (`websocket`, `CONNECT`), overriding the manager's.
    pub upgrades: Vec<Upgrade>,
    /// Circuit breaker priority.
    pub high_priority: bool,
    /// What rate limit services are told of these requests.
    pub rate_limits: Vec<RateLimitRule>,
    /// The host's rules count too (`include_vh_rate_limits`).
    pub include_host_rate_limits: bool,
    /// CORS of this route as old `RouteAction.cors` (typed overrides come through filters).
    pub metadata_match: Metadata,
}

impl Forward {
    /// To one cluster with all defaults.
    pub fn to(cluster: impl Into<Name>) -> Self {
        Self {
            target: Target::Cluster(cluster.into()),
            cluster_not_found_status: 503,
            rewrite: None,
            host_rewrite: None,
            append_x_forwarded_host: false,
            timeout: None,
            idle_timeout: None,
            grpc_timeout_max: None,
            max_stream_duration: None,
            retry: None,
            mirrors: vec![],
            hash: vec![],
            upgrades: vec![],
            high_priority: false,
            rate_limits: vec![],
            include_host_rate_limits: false,
            metadata_match: Metadata::new(),
        }
    }
}

/// Which cluster.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub enum Target {
    /// This one.
    Cluster(Name),
    /// The one a request header names.
    ClusterHeader(Name),
    /// By weight.
    Weighted(Vec<WeightedCluster>),
}

/// One of several clusters.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WeightedCluster {
    /// Cluster name.
    pub name: Name,
    /// Share of the sum of weights; zero: never.
    pub weight: u32,
    /// Header operations, before the route's.
    pub headers: HeaderOps,
    /// Host rewrite of this choice only.
    pub host_rewrite: Option<Name>,
    /// Filter configuration of this choice.
    pub filter_overrides: Vec<(Name, FilterOverride)>,
}

/// How the path changes before it is sent on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum PathRewrite {
    /// The matched prefix (or the whole exact path) is replaced, textually.
    Prefix(Name),
    /// The whole path is replaced (`path_rewrite`-like; query kept).
    Full(Name),
    /// RE2 substitution over the path; `\1` are groups.
    Regex { pattern: Name, substitution: Name },
    /// URI template rewrite.
    Template(Name),
}

/// How the host changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum HostRewrite {
    /// This value.
    Literal(Name),
    /// The DNS name of the endpoint chosen (`auto_host_rewrite`).
    Auto,
    /// The value of this request header.
    Header(Name),
}

/// `RedirectAction`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Default)]
pub struct Redirect {
    /// Only to https.
    pub https: bool,
    /// New scheme; empty: the request's.
    pub scheme: Name,
    /// New host; empty: the request's.
    pub host: Name,
    /// New port; `None`: the request's, dropped when it is the default of the old scheme and the scheme changes.
    pub port: Option<u16>,
    /// New path.
    pub path: Option<RedirectPath>,
    /// 301, 302, 303, 307 or 308.
    pub code: u16,
    /// The query is dropped.
    pub strip_query: bool,
}

/// Path part of a [`Redirect`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum RedirectPath {
    /// Replaces the path; a query in it replaces the request's.
    Full(Name),
    /// Replaces the matched prefix.
    Prefix(Name),
    /// Substitution.
    Regex { pattern: Name, substitution: Name },
}

/// `RetryPolicy`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Default)]
pub struct RetryPolicy {
    /// Conditions.
    pub on: RetryOn,
    /// Retries after the first try.
    pub num_retries: u32,
    /// Limit of one try; `None`: the route's.
    pub per_try_timeout: Option<Duration>,
    /// Idle limit of one try.
    pub per_try_idle_timeout: Option<Duration>,
    /// Statuses for `retriable-status-codes`.
    pub retriable_statuses: Vec<u16>,
    /// Response headers for `retriable-headers`.
    pub retriable_headers: Vec<HeaderMatcher>,
    /// Base and maximum of the jittered exponential back-off; `None`: 25 ms, 250 ms.
    pub backoff: Option<(Duration, Duration)>,
    /// Avoid endpoints already tried (`retry_host_predicate` previous_hosts).
    pub previous_hosts: bool,
    /// How often another endpoint is drawn when the predicate refuses one; zero: once.
    pub host_selection_attempts: u32,
    /// Avoid priorities already tried (`previous_priorities`), recomputed every n tries.
    pub previous_priorities: Option<u32>,
}

/// `retry_on` conditions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Default)]

pub struct RetryOn {
    pub five_xx: bool,
    pub gateway_error: bool,
    pub reset: bool,
    pub reset_before_request: bool,
    pub connect_failure: bool,
    pub envoy_ratelimited: bool,
    pub retriable_4xx: bool,
    pub refused_stream: bool,
    pub retriable_status_codes: bool,
    pub retriable_headers: bool,
    pub http3_post_connect_failure: bool,
    pub grpc_cancelled: bool,
    pub grpc_deadline_exceeded: bool,
    pub grpc_internal: bool,
    pub grpc_resource_exhausted: bool,
    pub grpc_unavailable: bool,
}

impl RetryOn {
    /// Parses Envoy's comma-separated list. Numbers are statuses (Istio's extension: they mean
    /// `retriable-status-codes` plus that status) and come back in the second part.
    ///
    /// # Errors
    /// The first word that is not known.
    pub fn parse(list: &str) -> Result<(Self, Vec<u16>), String> {
        let mut on = Self::default();
        let mut statuses = Vec::new();
        for word in list.split(',').map(str::trim).filter(|w| !w.is_empty()) {
            let flag = match word {
                "5xx" => &mut on.five_xx,
                "gateway-error" => &mut on.gateway_error,
                "reset" => &mut on.reset,
                "reset-before-request" => &mut on.reset_before_request,
                "connect-failure" => &mut on.connect_failure,
                "envoy-ratelimited" => &mut on.envoy_ratelimited,
                "retriable-4xx" => &mut on.retriable_4xx,
                "refused-stream" => &mut on.refused_stream,
                "retriable-status-codes" => &mut on.retriable_status_codes,
                "retriable-headers" => &mut on.retriable_headers,
                "http3-post-connect-failure" => &mut on.http3_post_connect_failure,
                "cancelled" => &mut on.grpc_cancelled,
                "deadline-exceeded" => &mut on.grpc_deadline_exceeded,
                "internal" => &mut on.grpc_internal,
                "resource-exhausted" => &mut on.grpc_resource_exhausted,
                "unavailable" => &mut on.grpc_unavailable,
                number => match number.parse::<u16>() {
                    Ok(status @ 100..=599) => {
                        statuses.push(status);
                        &mut on.retriable_status_codes
                    }
                    _ => return Err(word.to_owned()),
                },
            };
            *flag = true;
        }
        Ok((on, statuses))
    }

    /// The conditions in Envoy's words, comma-separated, in a fixed order.
    pub fn words(&self) -> String {
        let all = [
            (self.five_xx, "5xx"),
            (self.gateway_error, "gateway-error"),
            (self.reset, "reset"),
            (self.reset_before_request, "reset-before-request"),
            (self.connect_failure, "connect-failure"),
            (self.envoy_ratelimited, "envoy-ratelimited"),
            (self.retriable_4xx, "retriable-4xx"),
            (self.refused_stream, "refused-stream"),
            (self.retriable_status_codes, "retriable-status-codes"),
            (self.retriable_headers, "retriable-headers"),
            (self.http3_post_connect_failure, "http3-post-connect-failure"),
            (self.grpc_cancelled, "cancelled"),
            (self.grpc_deadline_exceeded, "deadline-exceeded"),
            (self.grpc_internal, "internal"),
            (self.grpc_resource_exhausted, "resource-exhausted"),
            (self.grpc_unavailable, "unavailable"),
        ];
        let words: Vec<&str> = all.iter().filter(|(set, _)| *set).map(|(_, word)| *word).collect();
        words.join(",")
    }
}

/// A copy of requests to another cluster, answers thrown away.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Mirror {
    /// Cluster name.
    pub cluster: Name,
    /// Share of requests.
    pub fraction: Fraction,
    /// Do not append `-shadow` to the host.
    pub keep_host: bool,
}

/// One source of the request hash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HashPolicy {
    /// What is hashed.
    pub source: HashSource,
    /// When this one yields a hash, later ones are not looked at.
    pub terminal: bool,
}

/// What is hashed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum HashSource {
    /// A request header.
    Header(Name),
    /// A cookie; with a TTL it is made when absent (zero: a session cookie).
    Cookie {
        /// Cookie name.
        name: Name,
        /// Life; `None`: never made.
        ttl: Option<Duration>,
        /// Cookie path.
        path: Name,
        /// More attributes, e.g. `SameSite=Strict`.
        attributes: Vec<(Name, Name)>,
    },
    /// The client's address.
    SourceIp,
    /// A query parameter.
    Query(Name),
    /// A key of filter state.
    FilterState(Name),
}

/// `UpgradeConfig`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Upgrade {
    /// `websocket`, `CONNECT` ..., compared without case.
    pub kind: Name,
    /// Allowed.
    pub enabled: bool,
    /// CONNECT is terminated here and the payload sent upstream (`connect_config`).
    pub terminate_connect: bool,
}

/// Operations on request and response headers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Default)]
pub struct HeaderOps {
    /// On the way up.
    pub request: HeaderMutation,
    /// On the way down.
    pub response: HeaderMutation,
}

impl HeaderOps {
    /// Nothing to do.
    pub fn is_empty(&self) -> bool {
        self.request.is_empty() && self.response.is_empty()
    }
}

/// Removals happen first (Envoy's order), then additions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Default)]
pub struct HeaderMutation {
    /// Names to remove.
    pub remove: Vec<Name>,
    /// Values to add or set.
    pub add: Vec<HeaderValueOption>,
}

impl HeaderMutation {
    /// Nothing to do.
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.add.is_empty()
    }
}

/// One header to write. The value may hold command operators (`%REQ(x)%`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HeaderValueOption {
    /// Lower-case name; `:authority` and `host` set the authority.
    pub name: Name,
    /// Value with command operators.
    pub value: Name,
    /// What happens with a header that is there.
    pub append: AppendAction,
    /// Write it also when the value turns out empty.
    pub keep_empty: bool,
}

/// `HeaderAppendAction`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Default)]
pub enum AppendAction {
    /// Add another value.
    #[default]
    AppendIfExistsOrAdd,
    /// Only when absent.
    AddIfAbsent,
    /// Replace what is there, or add.
    OverwriteIfExistsOrAdd,
    /// Replace only.
    OverwriteIfExists,
}

/// `CorsPolicy` (the filter's per-route configuration).
#[derive(Debug, Clone, PartialEq, Serialize, Default)]
pub struct CorsPolicy {
    /// Origins allowed.
    pub allow_origins: Vec<StringMatcher>,
    /// `access-control-allow-methods`.
    pub allow_methods: Name,
    /// `access-control-allow-headers`.
    pub allow_headers: Name,
    /// `access-control-expose-headers`.
    pub expose_headers: Name,
    /// `access-control-max-age`.
    pub max_age: Name,
    /// `access-control-allow-credentials`.
    pub allow_credentials: Option<bool>,
    /// Share of requests it is enforced for.
    pub enabled: Option<Fraction>,
    /// Preflights of origins that do not match go to the backend (default) or are answered here.
    pub forward_not_matching_preflights: Option<bool>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_words_round_trip() {
        let (on, codes) = RetryOn::parse("connect-failure, 503,unavailable,5xx").unwrap();
        assert_eq!(codes, [503]);
        assert_eq!(on.words(), "5xx,connect-failure,retriable-status-codes,unavailable");
        assert_eq!(RetryOn::parse(&on.words()).unwrap().0, on);
        assert_eq!(RetryOn::parse("5xx,sometimes"), Err("sometimes".to_owned()));
    }
}
