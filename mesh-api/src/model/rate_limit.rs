//! Rate limits that a service decides: what it is told of a request, and what its answers mean.

use serde::Serialize;

use super::{AuthzGrpc, Fraction, HeaderMatcher, HeaderMutation, Name, QueryMatcher};

/// `envoy.filters.http.ratelimit`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GlobalRateLimit {
    /// Statistics prefix.
    pub stat_prefix: Name,
    /// Whose limits; the service tells them apart by it.
    pub domain: Name,
    /// Only rules of this stage are looked at, 0 to 10.
    pub stage: u32,
    /// Which requests; every client counts as external.
    pub requests: RequestType,
    /// Whom to ask; 20 ms for an answer by default.
    pub service: AuthzGrpc,
    /// No answer refuses.
    pub failure_mode_deny: bool,
    /// Refused gRPC calls end with `RESOURCE_EXHAUSTED` instead of `UNAVAILABLE`.
    pub resource_exhausted: bool,
    /// Answers carry `x-ratelimit-limit`, `-remaining` and `-reset`.
    pub limit_headers: bool,
    /// Refusals do not carry `x-envoy-ratelimited`.
    pub no_envoy_header: bool,
    /// Status of a refusal, 400 or more; 429 by default.
    pub status: u16,
    /// Status where the service could not be asked; 500 by default.
    pub status_on_error: u16,
    /// Headers on refusals.
    pub response_headers: HeaderMutation,
    /// Share of requests it is asked about.
    pub enabled: Fraction,
    /// Share of refused requests that are really refused.
    pub enforced: Fraction,
    /// Rules instead of those of routes; empty: those of routes.
    pub rules: Vec<RateLimitRule>,
    /// Under which name the service's metadata is kept; empty: the filter's type.
    pub metadata_namespace: Name,
}

impl GlobalRateLimit {
    /// Envoy's defaults.
    pub fn new(domain: impl Into<Name>, service: AuthzGrpc) -> Self {
        Self {
            stat_prefix: "".into(),
            domain: domain.into(),
            stage: 0,
            requests: RequestType::Both,
            service,
            failure_mode_deny: false,
            resource_exhausted: false,
            limit_headers: false,
            no_envoy_header: false,
            status: 429,
            status_on_error: 500,
            response_headers: HeaderMutation::default(),
            enabled: Fraction::ALWAYS,
            enforced: Fraction::ALWAYS,
            rules: vec![],
            metadata_namespace: "".into(),
        }
    }
}

/// `request_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Default)]
pub enum RequestType {
    /// All.
    #[default]
    Both,
    /// Those from inside.
    Internal,
    /// Those from outside.
    External,
}

/// `RateLimitPerRoute`.
#[derive(Debug, Clone, PartialEq, Serialize, Default)]
pub struct RateLimitSettings {
    /// What becomes of the host's rules.
    pub host_rules: HostRules,
    /// Rules instead of all others; empty: the others.
    pub rules: Vec<RateLimitRule>,
    /// Instead of the filter's; empty: the filter's.
    pub domain: Name,
}

/// `VhRateLimitsOptions`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Default)]
pub enum HostRules {
    /// They count where the route has none.
    #[default]
    Override,
    /// They count too.
    Include,
    /// They do not count.
    Ignore,
}

/// `envoy.config.route.v3.RateLimit`: what together makes one descriptor.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RateLimitRule {
    /// Of filters of this stage, 0 to 10.
    pub stage: u32,
    /// Entries of the descriptor in order; one that cannot be made leaves the whole descriptor out.
    pub actions: Vec<RateLimitAction>,
    /// How much a request counts; `None`: once.
    pub hits: Option<u64>,
}

/// One entry of a descriptor.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub enum RateLimitAction {
    /// `source_cluster`: this proxy's own cluster.
    SourceCluster,
    /// `destination_cluster`: the cluster that the request goes to.
    DestinationCluster,
    /// A header's value.
    Header { name: Name, key: Name, skip_if_absent: bool },
    /// A query parameter's value.
    Query { name: Name, key: Name, skip_if_absent: bool },
    /// `remote_address`: the client.
    RemoteAddress,
    /// `masked_remote_address`: the client's network, by the bits of IPv4 and IPv6.
    MaskedRemoteAddress { v4: u8, v6: u8 },
    /// Always this.
    Generic { key: Name, value: Name },
    /// This, when the request matches all (or, not `expect`ed, when it does not).
    HeaderMatch { key: Name, value: Name, expect: bool, headers: Vec<HeaderMatcher> },
    /// The same of query parameters.
    QueryMatch { key: Name, value: Name, expect: bool, query: Vec<QueryMatcher> },
    /// A text from metadata.
    Metadata {
        /// Key of the entry.
        key: Name,
        /// Of the route instead of what filters said.
        of_route: bool,
        /// Whose metadata.
        filter: Name,
        /// Where in it.
        path: Vec<Name>,
        /// Where there is none; empty: none.
        default: Name,
        /// Where there is none, the descriptor goes on without this entry.
        skip_if_absent: bool,
    },
}
