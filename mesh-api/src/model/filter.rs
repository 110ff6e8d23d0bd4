//! Network and HTTP filters with their configuration.

use std::time::Duration;

use serde::Serialize;

use super::{
    AccessLog, ConnectionLimit, ConnectionRate, CorsPolicy, DiscoveredFilter, DnsCache, Fraction, GlobalRateLimit,
    HashSource, HeaderMatcher, HeaderMutation, JwtAuthn, Metadata, Name, RateLimitSettings, Rbac, RouteConfig, Tracing,
    Upgrade,
};
use super::{AuthzSettings, ExtAuthz};

/// A filter on a connection's bytes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub enum NetworkFilter {
    /// Terminal: speaks HTTP.
    Http(Box<HttpManager>),
    /// Terminal: forwards bytes.
    TcpProxy(Box<TcpProxy>),
    /// Allows or denies connections.
    Rbac(RbacFilter),
    /// Asks an external authorizer.
    ExtAuthz(Box<ExtAuthz>),
    /// Sets the cluster of a following TCP proxy to the SNI of the connection (`sni_cluster`).
    SniCluster,
    /// The server name of the connection, at this port, is what a following TCP proxy to a cluster that is found by name
    /// goes to (`sni_dynamic_forward_proxy`).
    SniDynamicForwardProxy { cache: DnsCache, port: u16 },
    /// `envoy.filters.network.connection_limit`.
    ConnectionLimit(ConnectionLimit),
    /// `envoy.filters.network.local_ratelimit`.
    LocalRateLimit(ConnectionRate),
    /// Istio's peer metadata exchange; does natively what it means.
    MetadataExchange,
    /// Istio's TCP statistics.
    IstioStats(IstioStats),
    /// Sets filter state from values known on the connection; known by name, kept as data.
    SetFilterState,
}

/// Istio's statistics filter (`istio.stats`), HTTP and TCP.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Default)]
pub struct IstioStats {
    /// The host header never stands for a service that is not known.
    pub disable_host_header_fallback: bool,
    /// How often connections that stay open are reported; `None`: as the proxy likes.
    pub tcp_reporting: Option<Duration>,
    /// Changes of metrics; later ones win.
    pub metrics: Vec<MetricChange>,
}

/// Change of one of Istio's metrics (`stats.MetricConfig`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Default)]
pub struct MetricChange {
    /// `requests_total` and so on; empty: every metric.
    pub name: Name,
    /// Not recorded.
    pub dropped: bool,
    /// Labels with their values, CEL expressions.
    pub labels: Vec<(Name, Name)>,
    /// Labels that go away.
    pub removed: Vec<Name>,
}

/// `envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct HttpManager {
    /// Statistics prefix.
    pub stat_prefix: Name,
    /// Which HTTP is accepted.
    pub codec: Codec,
    /// Where routes come from.
    pub routes: RouteSource,
    /// How long RDS may take before the listener serves without routes (`initial_fetch_timeout`);
    /// 15 s by default, zero: for ever.
    pub rds_fetch_timeout: Duration,
    /// Filters in request order, the last one the router.
    pub filters: Vec<HttpFilter>,
    /// Upgrades allowed.
    pub upgrades: Vec<Upgrade>,
    /// Logs, one entry a request.
    pub access_log: Vec<AccessLog>,
    /// Spans; `None`: off.
    pub tracing: Option<Tracing>,
    /// `server` header value; `None`: `envoy`.
    pub server_name: Option<Name>,
    /// What happens to the upstream's `server` header.
    pub server_header: ServerHeader,
    /// Trust the socket's peer address as the client's and fill `x-forwarded-for`.
    pub use_remote_address: bool,
    /// Trusted proxies in front.
    pub xff_num_trusted_hops: u32,
    /// Do not add the peer to `x-forwarded-for`.
    pub skip_xff_append: bool,
    /// At the edge: tell the port that clients reached in `x-forwarded-port` (`append_x_forwarded_port`).
    pub append_x_forwarded_port: bool,
    /// `x-forwarded-client-cert` handling.
    pub forward_client_cert: ForwardClientCert,
    /// What is written into `x-forwarded-client-cert`.
    pub client_cert_details: ClientCertDetails,
    /// Make `x-request-id` when absent.
    pub generate_request_id: bool,
    /// Keep an `x-request-id` that comes from outside (edge requests).
    pub preserve_external_request_id: bool,
    /// Send `x-request-id` back.
    pub always_set_request_id_in_response: bool,
    /// Resolve dot segments and decode unreserved characters (RFC 3986) before anything looks at the path.
    pub normalize_path: bool,
    /// Collapse `//`.
    pub merge_slashes: bool,
    /// `%2F` and `%5C` in paths.
    pub escaped_slashes: EscapedSlashes,
    /// Take the port off the host for matching (`strip_any_host_port` or matching).
    pub strip_port: StripPort,
    /// Take a final dot off the host.
    pub strip_trailing_host_dot: bool,
    /// Limits of one request or connection; zero: none.
    pub timeouts: HttpTimeouts,
    /// Largest request head in bytes; 60 KiB by default.
    pub max_request_headers_bytes: u32,
    /// Most request headers; 100 by default.
    pub max_headers: u32,
    /// Requests a connection; `None`: no limit.
    pub max_requests_per_connection: Option<u32>,
    /// Headers with underscores.
    pub underscores: Underscores,
    /// HTTP/2 streams at once; `None`: Envoy's 2^29 is cut down to 1024.
    pub max_concurrent_streams: Option<u32>,
    /// HTTP/2 window of a stream.
    pub initial_stream_window: Option<u32>,
    /// HTTP/2 window of a connection.
    pub initial_connection_window: Option<u32>,
    /// HTTP/2 PING: interval, timeout.
    pub keepalive: Option<(Duration, Duration)>,
    /// Accept HTTP/1.0.
    pub accept_http_10: bool,
    /// Default host for HTTP/1.0 requests without one.
    pub default_host_http_10: Name,
    /// Answer malformed requests with an error instead of closing (`stream_error_on_invalid_http_message`).
    pub stream_error_on_invalid: bool,
    /// `Via` value; empty: none.
    pub via: Name,
    /// `x-forwarded-proto` is written by the filter chain's TLS (Istio's gateways may override).
    pub scheme_override: Option<Name>,
}

impl HttpManager {
    /// Envoy's defaults with these routes and filters.
    pub fn new(stat_prefix: impl Into<Name>, routes: RouteSource, filters: Vec<HttpFilter>) -> Self {
        Self {
            stat_prefix: stat_prefix.into(),
            codec: Codec::Auto,
            routes,
            rds_fetch_timeout: Duration::from_secs(15),
            filters,
            upgrades: vec![],
            access_log: vec![],
            tracing: None,
            server_name: None,
            server_header: ServerHeader::Overwrite,
            use_remote_address: false,
            xff_num_trusted_hops: 0,
            skip_xff_append: false,
            append_x_forwarded_port: false,
            forward_client_cert: ForwardClientCert::Sanitize,
            client_cert_details: ClientCertDetails::default(),
            generate_request_id: true,
            preserve_external_request_id: false,
            always_set_request_id_in_response: false,
            normalize_path: false,
            merge_slashes: false,
            escaped_slashes: EscapedSlashes::Keep,
            strip_port: StripPort::No,
            strip_trailing_host_dot: false,
            timeouts: HttpTimeouts::default(),
            max_request_headers_bytes: 60 * 1024,
            max_headers: 100,
            max_requests_per_connection: None,
            underscores: Underscores::Allow,
            max_concurrent_streams: None,
            initial_stream_window: None,
            initial_connection_window: None,
            keepalive: None,
            accept_http_10: false,
            default_host_http_10: "".into(),
            stream_error_on_invalid: false,
            via: "".into(),
            scheme_override: None,
        }
    }
}

/// `CodecType`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Default)]
pub enum Codec {
    /// ALPN, else the preface decides.
    #[default]
    Auto,
    /// HTTP/1.x only.
    Http1,
    /// HTTP/2 only.
    Http2,
}

/// Where an HTTP manager's routes come from.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub enum RouteSource {
    /// By RDS over ADS under this name.
    Rds(Name),
    /// In the listener.
    Inline(Box<RouteConfig>),
}

/// `ServerHeaderTransformation`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Default)]
pub enum ServerHeader {
    /// Ours always.
    #[default]
    Overwrite,
    /// Ours when absent.
    AppendIfAbsent,
    /// The upstream's, or none.
    PassThrough,
}

/// `ForwardClientCertDetails`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Default)]
pub enum ForwardClientCert {
    /// Taken off.
    #[default]
    Sanitize,
    /// Passed when the client has mTLS.
    ForwardOnly,
    /// Own entry appended when the client has mTLS.
    AppendForward,
    /// Replaced by the own entry when the client has mTLS.
    SanitizeSet,
    /// Passed always.
    AlwaysForwardOnly,
}

/// `SetCurrentClientCertDetails`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Default)]

pub struct ClientCertDetails {
    pub subject: bool,
    pub cert: bool,
    pub chain: bool,
    pub dns: bool,
    pub uri: bool,
}

/// `PathWithEscapedSlashesAction`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Default)]
pub enum EscapedSlashes {
    /// As it is.
    #[default]
    Keep,
    /// 400.
    Reject,
    /// Decode and redirect (307).
    UnescapeAndRedirect,
    /// Decode and go on.
    UnescapeAndForward,
}

/// Taking the port off the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Default)]
pub enum StripPort {
    /// Left alone.
    #[default]
    No,
    /// When it is the listener's.
    Matching,
    /// Any.
    Any,
}

/// `HeadersWithUnderscoresAction`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Default)]
pub enum Underscores {
    /// Fine.
    #[default]
    Allow,
    /// 400 (HTTP/2: reset).
    Reject,
    /// Such headers are dropped.
    Drop,
}

/// Timeouts of an HTTP manager; zero: none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct HttpTimeouts {
    /// A connection without streams; 1 h by default.
    pub idle: Duration,
    /// A stream without bytes in either direction; 5 min by default.
    pub stream_idle: Duration,
    /// From the first byte to the end of the request.
    pub request: Duration,
    /// From the first byte to the end of the head.
    pub request_headers: Duration,
    /// Life of a connection.
    pub max_connection: Duration,
    /// Life of a stream.
    pub max_stream: Duration,
    /// Between the two GOAWAYs; 5 s by default.
    pub drain: Duration,
    /// For the peer to close after the last answer; 1 s by default.
    pub delayed_close: Duration,
}

impl Default for HttpTimeouts {
    fn default() -> Self {
        Self {
            idle: Duration::from_secs(3600),
            stream_idle: Duration::from_secs(300),
            request: Duration::ZERO,
            request_headers: Duration::ZERO,
            max_connection: Duration::ZERO,
            max_stream: Duration::ZERO,
            drain: Duration::from_secs(5),
            delayed_close: Duration::from_secs(1),
        }
    }
}

impl HttpTimeouts {
    /// How long a client may take to say the whole head of a request, or to begin with one.
    pub fn head(&self) -> Duration {
        if self.request_headers.is_zero() { self.idle } else { self.request_headers }
    }
}

/// A named HTTP filter.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct HttpFilter {
    /// Instance name, key of per-route overrides.
    pub name: Name,
    /// Kind and configuration.
    pub kind: HttpFilterKind,
    /// Off unless a route turns it on.
    pub disabled: bool,
}

/// HTTP filters that exist.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub enum HttpFilterKind {
    /// Terminal.
    Router(RouterFilter),
    /// Allows or denies requests.
    Rbac(RbacFilter),
    /// Asks an external authorizer.
    ExtAuthz(Box<ExtAuthz>),
    /// Delays and aborts.
    Fault(FaultFilter),
    /// Cross-origin resource sharing; configured by route.
    Cors,
    /// Counts gRPC messages.
    GrpcStats { emit_filter_state: bool },
    /// Translates gRPC-Web.
    GrpcWeb,
    /// Local rate limit.
    LocalRateLimit(LocalRateLimit),
    /// Limits that a service decides.
    GlobalRateLimit(Box<GlobalRateLimit>),
    /// Changes headers.
    HeaderMutation { request: HeaderMutation, response: HeaderMutation },
    /// Answers health checks.
    HealthCheck(HealthCheckFilter),
    /// Cookie or header pinned sessions; `None`: only routes that configure one have it.
    StatefulSession(Option<StatefulSession>),
    /// Istio's ALPN override towards upstreams (`istio.alpn`); does natively what it means.
    IstioAlpn,
    /// Istio's statistics.
    IstioStats(IstioStats),
    /// Istio's `peer_metadata`: headers exchanged with the peer.
    PeerMetadata(PeerMetadata),
    /// Checks tokens.
    JwtAuthn(Box<JwtAuthn>),
    /// Looks up hosts of requests whose cluster is found by name.
    DynamicForwardProxy(Box<DnsCache>),
    /// One of the others, whose configuration is a resource of its own.
    Discovered(Box<DiscoveredFilter>),
}

/// Health checks that a proxy answers.
#[derive(Debug, Clone, PartialEq, Serialize, Default)]
pub struct HealthCheckFilter {
    /// They go on to the application.
    pub pass_through: bool,
    /// What makes a request one; all of them.
    pub headers: Vec<HeaderMatcher>,
    /// How long what the application said is repeated; `None`: it is always asked. Beside `pass_through` only.
    pub cache_time: Option<Duration>,
    /// Clusters that must be healthy, and of how many percent of their endpoints. Without `pass_through` only.
    pub min_healthy: Vec<(Name, f64)>,
}

/// Router filter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Default)]
pub struct RouterFilter {
    /// No `x-envoy-*` headers are added.
    pub suppress_envoy_headers: bool,
}

/// Istio's peer metadata filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Default)]
pub struct PeerMetadata {
    /// Read and strip `x-envoy-peer-metadata(-id)` of requests.
    pub downstream_discovery: bool,
    /// Write them into answers.
    pub downstream_propagation: bool,
    /// Read and strip them in answers.
    pub upstream_discovery: bool,
    /// Write them into requests.
    pub upstream_propagation: bool,
    /// Not towards clusters outside the mesh (`skip_external_clusters`).
    pub skip_external: bool,
}

/// RBAC, of a connection or of a request.
#[derive(Debug, Clone, PartialEq, Serialize, Default)]
pub struct RbacFilter {
    /// Prefix of statistics and of shadow metadata.
    pub stat_prefix: Name,
    /// What is enforced; `None`: nothing.
    pub rules: Option<Rbac>,
    /// What is only reported.
    pub shadow_rules: Option<Rbac>,
    /// Prefix of the shadow rules' statistics (`istio_dry_run_allow_`).
    pub shadow_prefix: Name,
}

/// Fault injection (per filter and per route).
#[derive(Debug, Clone, PartialEq, Serialize, Default)]
pub struct FaultFilter {
    /// Share and length of delays.
    pub delay: Option<(Fraction, Duration)>,
    /// Share and kind of aborts.
    pub abort: Option<(Fraction, FaultAbort)>,
    /// Faults at once; `None`: no limit.
    pub max_active: Option<u32>,
    /// Only requests with these headers.
    pub headers: Vec<HeaderMatcher>,
}

/// What an aborted request gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum FaultAbort {
    /// This HTTP status.
    Http(u16),
    /// This gRPC status (HTTP 200).
    Grpc(u32),
}

/// Token bucket of `envoy.filters.http.local_ratelimit`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LocalRateLimit {
    /// Statistics prefix.
    pub stat_prefix: Name,
    /// Tokens at most.
    pub max_tokens: u32,
    /// Tokens added each interval.
    pub tokens_per_fill: u32,
    /// Interval.
    pub fill_interval: Duration,
    /// Share of requests it is consulted for.
    pub enabled: Fraction,
    /// Share of refused requests that are really refused.
    pub enforced: Fraction,
    /// Status of the refusal; 429 by default.
    pub status: u16,
    /// Headers on the refusal.
    pub response_headers: HeaderMutation,
}

/// `envoy.filters.http.stateful_session`: requests of a session go to one endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StatefulSession {
    /// How the client remembers.
    pub state: SessionState,
    /// When the endpoint is gone, requests fail (503) instead of going elsewhere.
    pub strict: bool,
}

/// How the client remembers its endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum SessionState {
    /// In a cookie.
    Cookie(SessionCookie),
    /// In a header, which it gets with the answer and sends again.
    Header(Name),
}

/// The cookie of a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SessionCookie {
    /// Name, not empty.
    pub name: Name,
    /// How long it lives; zero: until the client ends.
    pub ttl: Duration,
    /// Path; empty: the request's.
    pub path: Name,
    /// Further attributes with their values (empty: none).
    pub attributes: Vec<(Name, Name)>,
}

/// Per-route (host, weighted cluster) configuration of a filter.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub enum FilterOverride {
    /// The filter is off.
    Disabled,
    /// CORS policy.
    Cors(CorsPolicy),
    /// Fault.
    Fault(FaultFilter),
    /// Other RBAC rules.
    Rbac(RbacFilter),
    /// Other settings of the question.
    ExtAuthz(AuthzSettings),
    /// Other rate limit.
    LocalRateLimit(LocalRateLimit),
    /// Other rules for the service that decides.
    GlobalRateLimit(RateLimitSettings),
    /// Other header changes.
    HeaderMutation { request: HeaderMutation, response: HeaderMutation },
    /// Other session.
    StatefulSession(StatefulSession),
    /// The requirement of this name, instead of what the filter's rules say.
    JwtRequirement(Name),
    /// Istio ALPN and others whose presence is enough.
    Enabled,
}

/// `envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TcpProxy {
    /// Statistics prefix.
    pub stat_prefix: Name,
    /// Clusters with weights; one with weight 1 for a plain cluster.
    pub clusters: Vec<(Name, u32)>,
    /// Either direction without bytes; 1 h by default, zero: none.
    pub idle_timeout: Duration,
    /// Life of a connection.
    pub max_connection_duration: Option<Duration>,
    /// Connect attempts, 1 or more.
    pub max_connect_attempts: u32,
    /// Hash for consistent balancers (only `SourceIp` and `FilterState` occur).
    pub hash: Vec<HashSource>,
    /// Through a forward proxy, which the cluster is (`tunneling_config`).
    pub tunnel: Option<TcpTunnel>,
    /// Logs, one entry a connection.
    pub access_log: Vec<AccessLog>,
    /// Metadata of endpoints to prefer (not used by Istio).
    pub metadata_match: Metadata,
}

/// What a forward proxy is asked for (`TunnelingConfig`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TcpTunnel {
    /// Where the tunnel leads, `host:port`.
    pub hostname: Name,
    /// `POST` to this path instead of `CONNECT`.
    pub post_path: Option<Name>,
}

impl TcpProxy {
    /// To one cluster with Envoy's defaults.
    pub fn to(stat_prefix: impl Into<Name>, cluster: impl Into<Name>) -> Self {
        Self {
            stat_prefix: stat_prefix.into(),
            clusters: vec![(cluster.into(), 1)],
            idle_timeout: Duration::from_secs(3600),
            max_connection_duration: None,
            max_connect_attempts: 1,
            hash: vec![],
            tunnel: None,
            access_log: vec![],
            metadata_match: Metadata::new(),
        }
    }
}
