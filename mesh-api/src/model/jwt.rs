//! Tokens of requests (`envoy.extensions.filters.http.jwt_authn.v3`).

use std::time::Duration;

use serde::Serialize;

use super::{DataSource, Name, RouteMatch, StringMatcher};

/// Name of the filter, under which its metadata stands.
pub const JWT_FILTER: &str = "envoy.filters.http.jwt_authn";

/// `JwtAuthentication`.
#[derive(Debug, Clone, PartialEq, Serialize, Default)]
pub struct JwtAuthn {
    /// Who issues tokens, by name, in the order of names.
    pub providers: Vec<(Name, JwtProvider)>,
    /// The first that matches a request says what it needs; none: nothing.
    pub rules: Vec<JwtRule>,
    /// Requirements that routes name (`requirement_map`).
    pub requirements: Vec<(Name, JwtRequirement)>,
    /// Preflights of CORS need no token.
    pub bypass_cors_preflight: bool,
    /// Refusals do not say why (`strip_failure_response`).
    pub strip_failure_response: bool,
}

/// What requests need.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct JwtRule {
    /// Which requests.
    pub matches: RouteMatch,
    /// What they need; `None`: nothing.
    pub requires: Option<JwtRequirement>,
}

/// `JwtRequirement`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub enum JwtRequirement {
    /// A good token of this provider.
    Provider(Name),
    /// A good token of this provider for one of these audiences instead of the provider's own.
    ProviderWithAudiences(Name, Vec<Name>),
    /// One of them.
    Any(Vec<JwtRequirement>),
    /// All of them.
    All(Vec<JwtRequirement>),
    /// No token, or good ones.
    AllowMissing,
    /// Whatever comes; good tokens are used.
    AllowMissingOrFailed,
}

/// `JwtProvider`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct JwtProvider {
    /// `iss` that tokens must have; empty: any.
    pub issuer: Name,
    /// One of them must be in `aud`; none: `aud` is not looked at.
    pub audiences: Vec<Name>,
    /// What `sub` must be.
    pub subject: Option<StringMatcher>,
    /// A token must have `exp`.
    pub require_expiration: bool,
    /// `exp` may lie so far from now at most.
    pub max_lifetime: Option<Duration>,
    /// Clocks may differ by so much; 60 s by default.
    pub clock_skew: Duration,
    /// Keys of the issuer.
    pub keys: JwtKeys,
    /// The token goes on to the upstream.
    pub forward: bool,
    /// Headers that hold the token, lower case, with what stands before it there.
    pub from_headers: Vec<(Name, Name)>,
    /// Query parameters that hold it.
    pub from_params: Vec<Name>,
    /// Cookies that hold it. None of the three: `authorization: Bearer`, `access_token`.
    pub from_cookies: Vec<Name>,
    /// Header for the payload as it stands in the token; empty: none.
    pub forward_payload_header: Name,
    /// With `=` at its end, as Base64 has it.
    pub pad_forward_payload_header: bool,
    /// Key of metadata for the payload; empty: none.
    pub payload_in_metadata: Name,
    /// Key of metadata for the token's header; empty: none.
    pub header_in_metadata: Name,
    /// Claims whose text is a list, in metadata, split at spaces.
    pub space_delimited_claims: Vec<Name>,
    /// Header (lower case) and claim (`a.b`: nested).
    pub claim_to_headers: Vec<(Name, Name)>,
    /// The route is looked for again with the claims at hand.
    pub clear_route_cache: bool,
}

impl JwtProvider {
    /// Envoy's defaults.
    pub fn new(issuer: impl Into<Name>, keys: JwtKeys) -> Self {
        Self {
            issuer: issuer.into(),
            audiences: vec![],
            subject: None,
            require_expiration: false,
            max_lifetime: None,
            clock_skew: Duration::from_secs(60),
            keys,
            forward: false,
            from_headers: vec![],
            from_params: vec![],
            from_cookies: vec![],
            forward_payload_header: "".into(),
            pad_forward_payload_header: false,
            payload_in_metadata: "".into(),
            header_in_metadata: "".into(),
            space_delimited_claims: vec![],
            claim_to_headers: vec![],
            clear_route_cache: false,
        }
    }
}

/// Where the keys of an issuer come from.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub enum JwtKeys {
    /// A key set in the configuration or in a file.
    Local(DataSource),
    /// Fetched by the proxy.
    Remote(RemoteKeys),
}

/// `RemoteJwks`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RemoteKeys {
    /// URL.
    pub uri: Name,
    /// Cluster that leads there.
    pub cluster: Name,
    /// A fetch may take so long.
    pub timeout: Duration,
    /// Keys hold so long; 10 min by default.
    pub cache: Duration,
    /// Keys are renewed ahead of need.
    pub ahead: bool,
    /// Pause after a fetch that failed; 1 s by default.
    pub retry_after: Duration,
}
