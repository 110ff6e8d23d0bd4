//! Why an exchange ended as it did: ONE table of response flags, details texts, statuses and bodies, Envoy's to the
//! letter, each with a hint of ours. Feeds local replies, access logs, metrics and explanations. Knows no codec and no
//! configuration.

use std::{borrow::Cow, fmt};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode, header};
use mesh_api::model::Name;
use smallvec::SmallVec;

use super::message::{Body, ResponseHead};

/// A set of response flags; prints as Envoy's short codes, comma-separated, `-` for none.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct ResponseFlags(u32);

macro_rules! flags {
    ($($(#[$doc:meta])* $name:ident = $bit:literal, $short:literal, $long:literal;)*) => {
        impl ResponseFlags {
            $($(#[$doc])* pub const $name: ResponseFlags = ResponseFlags(1 << $bit);)*
            /// Every flag with its short and long name, in Envoy's order.
            pub const TABLE: &'static [(ResponseFlags, &'static str, &'static str)] =
                &[$((ResponseFlags::$name, $short, $long)),*];
        }
    };
}

flags! {
    /// Failed local health check.
    LH = 0, "LH", "FailedLocalHealthCheck";
    /// No healthy upstream.
    UH = 1, "UH", "NoHealthyUpstream";
    /// Upstream request timeout.
    UT = 2, "UT", "UpstreamRequestTimeout";
    /// Local reset.
    LR = 3, "LR", "LocalReset";
    /// Upstream reset the stream.
    UR = 4, "UR", "UpstreamRemoteReset";
    /// Upstream connection failure.
    UF = 5, "UF", "UpstreamConnectionFailure";
    /// Upstream connection termination.
    UC = 6, "UC", "UpstreamConnectionTermination";
    /// Upstream overflow (circuit breaker).
    UO = 7, "UO", "UpstreamOverflow";
    /// No route.
    NR = 8, "NR", "NoRouteFound";
    /// Delayed by fault injection.
    DI = 9, "DI", "DelayInjected";
    /// Aborted by fault injection.
    FI = 10, "FI", "FaultInjected";
    /// Rate limited.
    RL = 11, "RL", "RateLimited";
    /// Refused by external authorization.
    UAEX = 12, "UAEX", "UnauthorizedExternalService";
    /// Rate limit service error.
    RLSE = 13, "RLSE", "RateLimitServiceError";
    /// Downstream connection termination.
    DC = 14, "DC", "DownstreamConnectionTermination";
    /// Retry limit exceeded.
    URX = 15, "URX", "UpstreamRetryLimitExceeded";
    /// Stream idle timeout.
    SI = 16, "SI", "StreamIdleTimeout";
    /// Invalid Envoy request headers.
    IH = 17, "IH", "InvalidEnvoyRequestHeaders";
    /// Downstream protocol error.
    DPE = 18, "DPE", "DownstreamProtocolError";
    /// Upstream max stream duration reached.
    UMSDR = 19, "UMSDR", "UpstreamMaxStreamDurationReached";
    /// Answered from a cache.
    RFCF = 20, "RFCF", "ResponseFromCacheFilter";
    /// No filter configuration found.
    NFCF = 21, "NFCF", "NoFilterConfigFound";
    /// Duration timeout.
    DT = 22, "DT", "DurationTimeout";
    /// Upstream protocol error.
    UPE = 23, "UPE", "UpstreamProtocolError";
    /// No cluster.
    NC = 24, "NC", "NoClusterFound";
    /// Overload manager.
    OM = 25, "OM", "OverloadManagerTerminated";
    /// DNS failure.
    DF = 26, "DF", "DnsResolutionFailed";
    /// Load dropped on purpose.
    DO = 27, "DO", "DropOverload";
    /// Downstream reset.
    DR = 28, "DR", "DownstreamRemoteReset";
    /// Dropped for unconditional overload.
    UDO = 29, "UDO", "UnconditionalDropOverload";
}

impl ResponseFlags {
    /// No flag.
    pub const NONE: ResponseFlags = ResponseFlags(0);
    /// Adds flags.
    pub fn insert(&mut self, other: ResponseFlags) {
        self.0 |= other.0;
    }
    /// Whether all of `other` are set.
    pub fn contains(self, other: ResponseFlags) -> bool {
        self.0 & other.0 == other.0
    }
    /// No flag is set.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
    /// The bits, for small tables keyed by flags.
    pub fn bits(self) -> u32 {
        self.0
    }
    /// The flag of a short name.
    pub fn parse(short: &str) -> Option<Self> {
        Self::TABLE.iter().find(|(_, s, _)| *s == short).map(|(f, _, _)| *f)
    }
    /// Short names, comma-separated; `-` for none. A single flag costs no allocation.
    pub fn text(self) -> Cow<'static, str> {
        self.names(|(_, short, _)| short)
    }
    /// Long names, comma-separated; `-` for none.
    pub fn long_text(self) -> Cow<'static, str> {
        self.names(|(_, _, long)| long)
    }
    fn names(self, pick: fn(&(ResponseFlags, &'static str, &'static str)) -> &'static str) -> Cow<'static, str> {
        let mut set = Self::TABLE.iter().filter(|(f, _, _)| self.contains(*f)).map(pick);
        let Some(first) = set.next() else { return Cow::Borrowed("-") };
        match set.next() {
            None => Cow::Borrowed(first),
            Some(second) => {
                let mut all = format!("{first},{second}");
                for name in set {
                    all.push(',');
                    all.push_str(name);
                }
                Cow::Owned(all)
            }
        }
    }
}

impl std::ops::BitOr for ResponseFlags {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl fmt::Display for ResponseFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text())
    }
}

impl fmt::Debug for ResponseFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text())
    }
}

/// How an upstream stream broke, in Envoy's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reset {
    /// We could not connect (no address, no source port, bad configuration).
    LocalConnectionFailure,
    /// The endpoint refused the connection or its TLS handshake failed.
    RemoteConnectionFailure,
    /// Connecting took too long.
    ConnectionTimeout,
    /// The connection ended in the middle.
    ConnectionTermination,
    /// We reset the stream.
    LocalReset,
    /// The peer reset the stream.
    RemoteReset,
    /// The peer refused the stream (never looked at it).
    RemoteRefused,
    /// A circuit breaker is open.
    Overflow,
    /// The peer broke the protocol.
    ProtocolError,
}

impl Reset {
    /// Envoy's text in bodies and (with underscores) in details.
    pub fn text(self) -> &'static str {
        match self {
            Reset::LocalConnectionFailure => "local connection failure",
            Reset::RemoteConnectionFailure => "remote connection failure",
            Reset::ConnectionTimeout => "connection timeout",
            Reset::ConnectionTermination => "connection termination",
            Reset::LocalReset => "local reset",
            Reset::RemoteReset => "remote reset",
            Reset::RemoteRefused => "remote refused stream reset",
            Reset::Overflow => "overflow",
            Reset::ProtocolError => "protocol error",
        }
    }
    /// Its flag.
    pub fn flag(self) -> ResponseFlags {
        match self {
            Reset::LocalConnectionFailure | Reset::RemoteConnectionFailure | Reset::ConnectionTimeout => {
                ResponseFlags::UF
            }
            Reset::ConnectionTermination => ResponseFlags::UC,
            Reset::LocalReset => ResponseFlags::LR,
            Reset::RemoteReset | Reset::RemoteRefused => ResponseFlags::UR,
            Reset::Overflow => ResponseFlags::UO,
            Reset::ProtocolError => ResponseFlags::UPE,
        }
    }
}

/// Why an exchange ended as it did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Reason {
    /// Not ended yet.
    #[default]
    Pending,
    /// The upstream answered.
    ViaUpstream,
    /// A route's redirect or direct response.
    DirectResponse,
    /// No virtual host or route matches.
    RouteNotFound,
    /// No filter chain of the listener matches the connection.
    FilterChainNotFound,
    /// The route's cluster does not exist.
    ClusterNotFound {
        /// Status configured for it.
        status: u16,
    },
    /// No endpoint can take the request.
    NoHealthyUpstream,
    /// The host's name could not be looked up; why, in one word.
    DnsFailed(Name),
    /// Too many names are known already.
    DnsCacheOverflow,
    /// Too many requests wait for names.
    DnsPendingOverflow,
    /// EDS says to drop this share.
    DropOverload,
    /// The upstream stream broke before the answer began.
    UpstreamReset {
        /// How.
        reset: Reset,
        /// What the transport (TCP, TLS) says.
        transport: Option<Name>,
        /// It was not the first try.
        retried: bool,
    },
    /// The upstream stream broke while the answer was on its way.
    UpstreamResetLate {
        /// How.
        reset: Reset,
    },
    /// The route's timeout.
    ResponseTimeout,
    /// The timeout of the last try.
    PerTryTimeout,
    /// The idle timeout of the last try.
    PerTryIdleTimeout,
    /// The upstream stream lived too long.
    UpstreamMaxStreamDuration,
    /// The stream lived too long.
    MaxDuration,
    /// Nothing moved for too long.
    StreamIdle {
        /// The request had arrived completely.
        request_complete: bool,
    },
    /// The request took too long to arrive.
    RequestTimeout {
        /// The request had arrived completely.
        request_complete: bool,
    },
    /// The head of the request took too long to arrive.
    RequestHeaderTimeout,
    /// The client closed its connection.
    DownstreamDisconnect,
    /// The client reset its stream.
    DownstreamReset,
    /// We closed the client's connection (drain deadline).
    LocalDisconnect,
    /// RBAC; the policy that matched, `none` when no ALLOW policy did.
    RbacDenied(Name),
    /// A token is missing or not good.
    TokenRefused {
        /// HTTP status.
        code: u16,
        /// Envoy's words.
        text: &'static str,
    },
    /// An external authorizer refuses.
    ExtAuthzDenied {
        /// Status to answer with.
        status: u16,
    },
    /// An external authorizer could not be asked, or could not decide.
    ExtAuthzError {
        /// Status to answer with.
        status: u16,
    },
    /// Fault injection.
    FaultAbort {
        /// Status to answer with.
        status: u16,
    },
    /// Local rate limit.
    LocalRateLimited {
        /// Status to answer with.
        status: u16,
    },
    /// A connection came too early.
    ConnectionRateLimited,
    /// A rate limit service says that it is too much.
    RateLimited {
        /// Status to answer with.
        status: u16,
    },
    /// A rate limit service could not be asked.
    RateLimitError {
        /// Status to answer with.
        status: u16,
    },
    /// A health check was answered here.
    HealthCheck {
        /// Status to answer with.
        status: u16,
        /// What it came from.
        details: &'static str,
    },
    /// Answered preflight.
    CorsPreflight,
    /// No `host`.
    MissingHost,
    /// `host` has no valid form.
    InvalidHost,
    /// The path is not one (`*`, no slash, relative).
    PathInvalid,
    /// The path could not be normalised.
    PathNormalizationFailed,
    /// Escaped slashes are redirected.
    PathNormalizedRedirect,
    /// The request line has a scheme we do not serve.
    InvalidScheme,
    /// HTTP/1.0 and it is not accepted.
    LowVersion,
    /// The upgrade is not allowed here.
    UpgradeFailed,
    /// `x-envoy-...` header with a bad value.
    InvalidEnvoyHeaders,
    /// Head too large or too many headers.
    HeadersTooLarge,
    /// A header name with an underscore.
    UnderscoreInHeader,
    /// Content-Length and Transfer-Encoding, or several lengths.
    AmbiguousFraming,
    /// The request could not be parsed.
    MalformedRequest,
    /// `expect` that is not `100-continue`.
    ExpectationFailed,
    /// `non_forwarding_action`.
    NonForwarding,
    /// Only plain text where the route demands TLS.
    RequireTls,
    /// The request body is larger than what had to be kept.
    RequestTooLarge,
    /// The configuration of this listener's routes has not arrived.
    RouteConfigMissing,
    /// The configuration of a filter never came.
    FilterConfigMissing,
    /// Ours is wrong.
    Internal,
}

impl Reason {
    /// The flag it sets.
    pub fn flag(&self) -> ResponseFlags {
        use ResponseFlags as F;
        match self {
            Reason::RouteNotFound
            | Reason::FilterChainNotFound
            | Reason::RouteConfigMissing
            | Reason::NonForwarding => F::NR,
            Reason::ClusterNotFound { .. } => F::NC,
            Reason::NoHealthyUpstream => F::UH,
            Reason::DnsFailed(_) => F::DF,
            Reason::DropOverload => F::DO,
            Reason::UpstreamReset { reset, .. } | Reason::UpstreamResetLate { reset } => reset.flag(),
            Reason::ResponseTimeout | Reason::PerTryTimeout | Reason::PerTryIdleTimeout => F::UT,
            Reason::UpstreamMaxStreamDuration => F::UMSDR,
            Reason::MaxDuration => F::DT,
            Reason::StreamIdle { .. } => F::SI,
            Reason::DownstreamDisconnect => F::DC,
            Reason::DownstreamReset => F::DR,
            Reason::LocalDisconnect => F::DC,
            Reason::FilterConfigMissing => F::NFCF,
            Reason::HealthCheck { status: 300.., .. } => F::LH,
            Reason::FaultAbort { .. } => F::FI,
            Reason::LocalRateLimited { .. } | Reason::RateLimited { .. } => F::RL,
            Reason::ConnectionRateLimited => F::URX,
            Reason::RateLimitError { .. } => F::RLSE,
            Reason::ExtAuthzDenied { .. } | Reason::ExtAuthzError { .. } => F::UAEX,
            Reason::InvalidEnvoyHeaders => F::IH,
            Reason::MalformedRequest
            | Reason::AmbiguousFraming
            | Reason::InvalidHost
            | Reason::HeadersTooLarge
            | Reason::UnderscoreInHeader
            | Reason::RequestHeaderTimeout => F::DPE,
            _ => F::NONE,
        }
    }

    /// Whether it stands for an answer that the upstream did not give.
    pub fn is_upstreams_failure(&self) -> bool {
        matches!(
            self,
            Reason::NoHealthyUpstream
                | Reason::DnsFailed(_)
                | Reason::DnsCacheOverflow
                | Reason::DnsPendingOverflow
                | Reason::DropOverload
                | Reason::UpstreamReset { .. }
                | Reason::ResponseTimeout
                | Reason::PerTryTimeout
                | Reason::PerTryIdleTimeout
        )
    }

    /// Status of the local reply; 0 where there is none.
    pub fn status(&self) -> u16 {
        match self {
            Reason::Pending
            | Reason::FilterChainNotFound
            | Reason::ConnectionRateLimited
            | Reason::DownstreamDisconnect
            | Reason::DownstreamReset
            | Reason::LocalDisconnect => 0,
            Reason::ViaUpstream | Reason::DirectResponse | Reason::CorsPreflight => 200,
            Reason::RouteNotFound | Reason::RouteConfigMissing | Reason::PathInvalid | Reason::NonForwarding => 404,
            Reason::ClusterNotFound { status }
            | Reason::ExtAuthzDenied { status }
            | Reason::ExtAuthzError { status }
            | Reason::FaultAbort { status }
            | Reason::HealthCheck { status, .. }
            | Reason::RateLimited { status }
            | Reason::RateLimitError { status }
            | Reason::LocalRateLimited { status } => *status,
            Reason::UpstreamReset { reset: Reset::ProtocolError, .. } => 502,
            Reason::NoHealthyUpstream
            | Reason::DnsFailed(_)
            | Reason::DnsCacheOverflow
            | Reason::DnsPendingOverflow
            | Reason::DropOverload
            | Reason::UpstreamReset { .. }
            | Reason::UpstreamResetLate { .. } => 503,
            Reason::ResponseTimeout | Reason::PerTryTimeout | Reason::PerTryIdleTimeout => 504,
            Reason::StreamIdle { request_complete: true } | Reason::RequestTimeout { request_complete: true } => 504,
            Reason::StreamIdle { .. }
            | Reason::RequestTimeout { .. }
            | Reason::RequestHeaderTimeout
            | Reason::UpstreamMaxStreamDuration
            | Reason::MaxDuration => 408,
            Reason::RbacDenied(_) | Reason::UpgradeFailed => 403,
            Reason::MissingHost
            | Reason::InvalidHost
            | Reason::PathNormalizationFailed
            | Reason::InvalidScheme
            | Reason::InvalidEnvoyHeaders
            | Reason::UnderscoreInHeader
            | Reason::AmbiguousFraming
            | Reason::MalformedRequest => 400,
            Reason::TokenRefused { code, .. } => *code,
            Reason::PathNormalizedRedirect => 307,
            Reason::LowVersion => 426,
            Reason::HeadersTooLarge => 431,
            Reason::ExpectationFailed => 417,
            Reason::RequireTls => 301,
            Reason::RequestTooLarge => 413,
            Reason::FilterConfigMissing | Reason::Internal => 500,
        }
    }

    /// `%RESPONSE_CODE_DETAILS%`.
    pub fn details(&self) -> Cow<'static, str> {
        Cow::Borrowed(match self {
            Reason::Pending => "",
            Reason::ViaUpstream => "via_upstream",
            Reason::DirectResponse | Reason::NonForwarding => "direct_response",
            Reason::RouteNotFound => "route_not_found",
            Reason::FilterChainNotFound => "filter_chain_not_found",
            Reason::RouteConfigMissing => "route_configuration_not_found",
            Reason::FilterConfigMissing => "filter_config_not_found",
            Reason::ClusterNotFound { .. } => "cluster_not_found",
            Reason::NoHealthyUpstream => "no_healthy_upstream",
            Reason::DnsFailed(why) => return Cow::Owned(format!("dns_resolution_failure{{{why}}}")),
            Reason::DnsCacheOverflow => "dns_cache_overflow",
            Reason::DnsPendingOverflow => "dynamic_forward_proxy_pending_request_overflow",
            Reason::DropOverload => "drop_overload",
            Reason::UpstreamReset { reset, transport, .. } => {
                return Cow::Owned(reset_details(
                    "upstream_reset_before_response_started",
                    *reset,
                    transport.as_deref(),
                ));
            }
            Reason::UpstreamResetLate { reset } => {
                return Cow::Owned(reset_details("upstream_reset_after_response_started", *reset, None));
            }
            Reason::ResponseTimeout => "response_timeout",
            Reason::PerTryTimeout => "upstream_per_try_timeout",
            Reason::PerTryIdleTimeout => "upstream_per_try_idle_timeout",
            Reason::UpstreamMaxStreamDuration => "upstream_max_stream_duration_reached",
            Reason::MaxDuration => "max_duration_timeout",
            Reason::StreamIdle { .. } => "stream_idle_timeout",
            Reason::RequestTimeout { .. } => "request_overall_timeout",
            Reason::RequestHeaderTimeout => "request_header_timeout",
            Reason::DownstreamDisconnect => "downstream_remote_disconnect",
            Reason::DownstreamReset => "downstream_remote_reset",
            Reason::LocalDisconnect => "downstream_local_disconnect",
            Reason::RbacDenied(policy) => return Cow::Owned(format!("rbac_access_denied_matched_policy[{policy}]")),
            Reason::TokenRefused { text, .. } => {
                return Cow::Owned(format!("jwt_authn_access_denied{{{}}}", text.replace(' ', "_")));
            }
            Reason::ExtAuthzDenied { .. } => "ext_authz_denied",
            Reason::ExtAuthzError { .. } => "ext_authz_error",
            Reason::FaultAbort { .. } => "fault_filter_abort",
            Reason::LocalRateLimited { .. } => "local_rate_limited",
            Reason::ConnectionRateLimited => "local_ratelimit_close_over_limit",
            Reason::RateLimited { .. } => "request_rate_limited",
            Reason::RateLimitError { .. } => "rate_limiter_error",
            Reason::HealthCheck { details, .. } => details,
            Reason::CorsPreflight => "cors_response",
            Reason::MissingHost => "missing_host_header",
            Reason::InvalidHost => "http.invalid_authority",
            Reason::PathInvalid => "absolute_path_rejected",
            Reason::PathNormalizationFailed | Reason::PathNormalizedRedirect => "path_normalization_failed",
            Reason::InvalidScheme => "invalid_scheme",
            Reason::LowVersion => "low_version",
            Reason::UpgradeFailed => "upgrade_failed",
            Reason::InvalidEnvoyHeaders => "request_headers_failed_strict_check",
            Reason::HeadersTooLarge => "http1.headers_too_large",
            Reason::UnderscoreInHeader => "http.unexpected_underscore",
            Reason::AmbiguousFraming => "http1.content_length_and_chunked_not_allowed",
            Reason::MalformedRequest => "http1.codec_error",
            Reason::ExpectationFailed => "expectation_failed",
            Reason::RequireTls => "direct_response",
            Reason::RequestTooLarge => "request_payload_too_large",
            Reason::Internal => "internal_error",
        })
    }

    /// Body of the local reply.
    pub fn body(&self) -> Cow<'static, str> {
        Cow::Borrowed(match self {
            Reason::NoHealthyUpstream => "no healthy upstream",
            Reason::DnsFailed(_) => "DNS resolution failure",
            Reason::DnsCacheOverflow => "DNS cache overflow",
            Reason::DnsPendingOverflow => "Dynamic forward proxy pending request overflow",
            Reason::DropOverload => "drop overload",
            Reason::UpstreamReset { reset, transport, retried } => {
                let retried = if *retried { "retried and the latest " } else { "" };
                let mut text = format!(
                    "upstream connect error or disconnect/reset before headers. {retried}reset reason: {}",
                    reset.text()
                );
                if let Some(transport) = transport {
                    text.push_str(", transport failure reason: ");
                    text.push_str(transport);
                }
                return Cow::Owned(text);
            }
            Reason::ResponseTimeout | Reason::PerTryTimeout | Reason::PerTryIdleTimeout => "upstream request timeout",
            Reason::UpstreamMaxStreamDuration => "upstream max stream duration reached",
            Reason::MaxDuration => "downstream duration timeout",
            Reason::StreamIdle { .. } => "stream timeout",
            Reason::RequestTimeout { .. } => "request timeout",
            Reason::RequestHeaderTimeout => "request header timeout",
            Reason::RbacDenied(_) => "RBAC: access denied",
            Reason::TokenRefused { text, .. } => text,
            Reason::FaultAbort { .. } => "fault filter abort",
            Reason::LocalRateLimited { .. } => "local_rate_limited",
            Reason::RequestTooLarge => "Payload Too Large",
            Reason::MalformedRequest | Reason::AmbiguousFraming | Reason::InvalidHost => "Bad Request",
            _ => "",
        })
    }

    /// What an operator should look at; empty when there is nothing to say.
    pub fn hint(&self) -> &'static str {
        match self {
            Reason::RouteNotFound => "no virtual host or route matches this host and path",
            Reason::FilterChainNotFound => {
                "the listener has no filter chain for this port, SNI or protocol; plain text to a port that demands mTLS?"
            }
            Reason::FilterConfigMissing => "the configuration of a filter has not been received, or is of no use",
            Reason::RouteConfigMissing => "the listener's route configuration has not been received",
            Reason::ClusterNotFound { .. } => {
                "the route names a cluster that does not exist: unknown host, port or subset"
            }
            Reason::NoHealthyUpstream => "the cluster has no endpoint that may take requests",
            Reason::DnsFailed(_) => "the host's name has no address: ask the resolver of the proxy for it",
            Reason::DnsCacheOverflow => "as many names are known as the DNS cache of the cluster may hold (max_hosts)",
            Reason::UpstreamReset { reset: Reset::Overflow, .. } => "a circuit breaker of the cluster is open",
            Reason::UpstreamReset { reset: Reset::RemoteConnectionFailure, .. } => {
                "the endpoint refused the connection or its TLS handshake failed; check the port and the mTLS mode"
            }
            Reason::UpstreamReset { reset: Reset::ConnectionTermination, .. } => {
                "the endpoint closed the connection before it answered; check protocol and mTLS mode"
            }
            Reason::RbacDenied(name) if &**name == "none" => "ALLOW policies exist and none of them matches",
            Reason::RbacDenied(_) => "a DENY policy matches",
            Reason::ExtAuthzDenied { .. } => "the external authorizer of a CUSTOM policy refuses it",
            Reason::ExtAuthzError { .. } => {
                "the external authorizer of a CUSTOM policy could not be asked: is it there, and in time?"
            }
            Reason::RateLimitError { .. } => "the rate limit service could not be asked: is it there, and in time?",
            Reason::TokenRefused { .. } => "the token is missing or not good: see issuer, keys, times and audience",
            _ => "",
        }
    }
}

fn reset_details(prefix: &str, reset: Reset, transport: Option<&str>) -> String {
    let mut text = format!("{prefix}{{{}", reset.text());
    if let Some(transport) = transport {
        text.push('|');
        text.push_str(transport);
    }
    text.push('}');
    text.replace(char::is_whitespace, "_")
}

/// An answer made here instead of upstream.
#[derive(Debug)]
pub struct LocalReply {
    /// Why.
    pub reason: Reason,
    /// HTTP status (of a non-gRPC answer).
    pub status: u16,
    /// Body; gRPC clients get it as `grpc-message`.
    pub body: Bytes,
    /// gRPC status that replaces the one derived from `status`.
    pub grpc_status: Option<u32>,
    /// More headers.
    pub headers: SmallVec<[(HeaderName, HeaderValue); 2]>,
}

impl From<Reason> for LocalReply {
    fn from(reason: Reason) -> Self {
        let mut headers = SmallVec::new();
        if matches!(reason, Reason::UpstreamReset { reset: Reset::Overflow, .. } | Reason::DropOverload) {
            headers.push((HeaderName::from_static("x-envoy-overloaded"), HeaderValue::from_static("true")));
        }
        let body = match reason.body() {
            Cow::Borrowed(text) => Bytes::from_static(text.as_bytes()),
            Cow::Owned(text) => Bytes::from(text),
        };
        Self { status: reason.status(), body, grpc_status: None, headers, reason }
    }
}

impl LocalReply {
    /// A direct answer of a route.
    pub fn direct(status: u16, body: Bytes) -> Self {
        Self { reason: Reason::DirectResponse, status, body, grpc_status: None, headers: SmallVec::new() }
    }
    /// One more header.
    #[must_use]
    pub fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }
    /// The message. gRPC clients get status 200 and a head that carries `grpc-status`; `head_only` (HEAD) drops the
    /// body but keeps its length.
    pub fn into_message(self, grpc: bool, head_only: bool) -> (ResponseHead, Body) {
        let mut head = ResponseHead::new(StatusCode::OK);
        for (name, value) in self.headers {
            head.headers.append(name, value);
        }
        if grpc {
            head.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            let status = self.grpc_status.unwrap_or_else(|| grpc_status_of(self.status));
            head.headers.insert("grpc-status", HeaderValue::from(status));
            if !self.body.is_empty()
                && let Ok(message) = HeaderValue::from_str(&grpc_message(&self.body))
            {
                head.headers.insert("grpc-message", message);
            }
            return (head, Body::Empty);
        }
        head.status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        if !self.body.is_empty() {
            head.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(self.body.len()));
            if !head.headers.contains_key(header::CONTENT_TYPE) {
                head.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
            }
        }
        let body = if head_only { Body::Empty } else { Body::full(self.body) };
        (head, body)
    }
}

/// gRPC status of an HTTP status (gRPC's `http-grpc-status-mapping`).
pub fn grpc_status_of(http: u16) -> u32 {
    match http {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502 | 503 | 504 => 14,
        _ => 2,
    }
}

/// HTTP status of a gRPC status (Envoy's mapping, for metrics and outlier detection).
pub fn http_status_of(grpc: u32) -> u16 {
    match grpc {
        0 => 200,
        1 => 499,
        2 | 13 | 15 => 500,
        3 | 9 | 11 => 400,
        4 => 504,
        5 => 404,
        6 | 10 => 409,
        7 => 403,
        8 => 429,
        12 => 501,
        14 => 503,
        16 => 401,
        _ => 500,
    }
}

/// Percent-encodes a `grpc-message`.
pub fn grpc_message(body: &[u8]) -> String {
    let mut text = String::with_capacity(body.len());
    for &b in body {
        match b {
            b' '..=b'~' if b != b'%' => text.push(char::from(b)),
            _ => text.push_str(&format!("%{b:02X}")),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_print_in_envoys_order() {
        assert_eq!(ResponseFlags::NONE.text(), "-");
        assert_eq!((ResponseFlags::URX | ResponseFlags::UF).text(), "UF,URX");
        assert_eq!(ResponseFlags::parse("DC"), Some(ResponseFlags::DC));
        assert_eq!(ResponseFlags::parse("XX"), None);
    }

    #[test]
    fn resets_say_what_envoy_says() {
        let reason = Reason::UpstreamReset {
            reset: Reset::RemoteConnectionFailure,
            transport: Some("delayed connect error: Connection refused".into()),
            retried: false,
        };
        assert_eq!(
            reason.body(),
            "upstream connect error or disconnect/reset before headers. reset reason: remote connection failure, \
             transport failure reason: delayed connect error: Connection refused"
        );
        assert_eq!(
            reason.details(),
            "upstream_reset_before_response_started{remote_connection_failure|delayed_connect_error:_Connection_refused}"
        );
        assert_eq!((reason.status(), reason.flag().text()), (503, "UF".into()));
    }

    #[test]
    fn grpc_clients_get_trailers_only_answers() {
        let (head, body) = LocalReply::from(Reason::ResponseTimeout).into_message(true, false);
        assert_eq!(head.status, 200);
        assert_eq!(head.headers["grpc-status"], "14");
        assert_eq!(head.headers["grpc-message"], "upstream request timeout");
        assert!(matches!(body, Body::Empty));
    }

    #[test]
    fn overflow_is_marked() {
        let reason = Reason::UpstreamReset { reset: Reset::Overflow, transport: None, retried: false };
        let (head, body) = LocalReply::from(reason).into_message(false, true);
        assert_eq!(head.status, 503);
        assert_eq!(head.headers["x-envoy-overloaded"], "true");
        assert_eq!(head.headers["content-length"], "81");
        assert!(matches!(body, Body::Empty));
    }
}
