//! External authorization: whom to ask, with what, and what an answer may change.

use std::time::Duration;

use serde::Serialize;

use super::{Fraction, MetadataMatch, Name, StringMatcher};

/// `ext_authz`, of requests; of connections only what has a meaning there.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ExtAuthz {
    /// Statistics prefix.
    pub stat_prefix: Name,
    /// Whom to ask.
    pub service: AuthzService,
    /// No answer lets pass.
    pub failure_mode_allow: bool,
    /// What passes so says so in `x-envoy-auth-failure-mode-allowed`.
    pub failure_mode_allow_header: bool,
    /// What a client gets when there is no answer; 403 by default.
    pub status_on_error: u16,
    /// How much of the body is sent; `None`: nothing.
    pub body: Option<AuthzBody>,
    /// The route is chosen again when the answer changes the request.
    pub clear_route_cache: bool,
    /// Share of requests that are asked for.
    pub enabled: Fraction,
    /// The others are refused.
    pub deny_at_disable: bool,
    /// Asked only where this holds.
    pub enabled_metadata: Option<MetadataMatch>,
    /// Headers of the request that are sent; empty: all over gRPC, the least over HTTP.
    pub allowed_headers: Vec<StringMatcher>,
    /// Those that are not, whatever `allowed_headers` says.
    pub disallowed_headers: Vec<StringMatcher>,
    /// The client's certificate is sent.
    pub include_certificate: bool,
    /// The SNI is sent.
    pub include_tls_session: bool,
    /// Dynamic metadata of these filters is sent.
    pub metadata_namespaces: Vec<Name>,
}

impl ExtAuthz {
    /// Envoy's defaults.
    pub fn new(service: AuthzService) -> Self {
        Self {
            stat_prefix: "".into(),
            service,
            failure_mode_allow: false,
            failure_mode_allow_header: false,
            status_on_error: 403,
            body: None,
            clear_route_cache: false,
            enabled: Fraction::ALWAYS,
            deny_at_disable: false,
            enabled_metadata: None,
            allowed_headers: vec![],
            disallowed_headers: vec![],
            include_certificate: false,
            include_tls_session: false,
            metadata_namespaces: vec![],
        }
    }
}

/// Who decides.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub enum AuthzService {
    /// `envoy.service.auth.v3.Authorization/Check`.
    Grpc(AuthzGrpc),
    /// The request itself without its body; 200 lets it pass.
    Http(Box<AuthzHttp>),
}

/// Over gRPC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AuthzGrpc {
    /// Cluster.
    pub cluster: Name,
    /// `:authority`; empty: the cluster's name.
    pub authority: Name,
    /// For an answer; 200 ms by default.
    pub timeout: Duration,
    /// Sent along.
    pub initial_metadata: Vec<(Name, Name)>,
}

/// Over HTTP.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AuthzHttp {
    /// Cluster.
    pub cluster: Name,
    /// URL of the server; required of Envoy's configuration, and not used.
    pub uri: Name,
    /// For an answer.
    pub timeout: Duration,
    /// In front of the request's path.
    pub path_prefix: Name,
    /// Set on what is asked.
    pub headers_to_add: Vec<(Name, Name)>,
    /// Headers of the answer that replace those of the request.
    pub upstream_headers: Vec<StringMatcher>,
    /// Headers of the answer that are added to those of the request.
    pub upstream_headers_to_append: Vec<StringMatcher>,
    /// Headers of a refusal that the client gets; empty: all.
    pub client_headers: Vec<StringMatcher>,
    /// Headers of a permission that the client gets.
    pub client_headers_on_success: Vec<StringMatcher>,
}

/// `BufferSettings`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct AuthzBody {
    /// Bytes at most, 1 or more.
    pub max_bytes: u32,
    /// A longer body is cut instead of refused.
    pub allow_partial: bool,
    /// As `raw_body`, which may hold any bytes.
    pub as_bytes: bool,
}

/// `CheckSettings` of a route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Default)]
pub struct AuthzSettings {
    /// `context_extensions`, by name.
    pub context: Vec<(Name, Name)>,
    /// No body is sent.
    pub no_body: bool,
    /// Instead of the filter's.
    pub body: Option<AuthzBody>,
}
