//! What is remembered of one exchange: everything that access logs, metrics and spans may ask for, filled along the
//! way by the exchange and handed to an [`ExchangeSink`] exactly once, also when the client goes away. Knows no format
//! and no metric.

use std::{
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, SystemTime},
};

use http::{HeaderMap, HeaderName, HeaderValue, Method, Version, uri::PathAndQuery};
use mesh_api::model::{self, Name};
use smallvec::SmallVec;
use tokio::time::Instant;

use super::{
    local_reply::{Reason, ResponseFlags},
    message::{Authority, RequestHead, Scheme, UpstreamConnection},
};
use crate::{net::ConnInfo, upstream};

/// One exchange. Plain data; whoever fills a field owns its meaning.
#[derive(Debug)]
pub struct ExchangeStats {
    /// The client's connection.
    pub conn: Rc<ConnInfo>,
    /// When the head had arrived.
    pub start: Instant,
    /// The same moment on the wall clock.
    pub start_time: SystemTime,
    /// Method.
    pub method: Method,
    /// Scheme.
    pub scheme: Scheme,
    /// Path and query as the client sent them, normalised, before any rewrite.
    pub target: PathAndQuery,
    /// Host and port as the client sent them.
    pub authority: Authority,
    /// Path and query, host and port as they went upstream, when they differ from what the client sent.
    pub sent: Option<Box<(PathAndQuery, Authority)>>,
    /// Version that the client speaks.
    pub version: Version,
    /// A gRPC request.
    pub grpc: bool,
    /// It asks whether this proxy is healthy.
    pub health_check: bool,
    /// Not an exchange but a connection whose bytes are forwarded: what belongs to HTTP means nothing.
    pub tcp: bool,
    /// Client address after `x-forwarded-for`.
    pub client: SocketAddr,
    /// `x-request-id`.
    pub request_id: Option<HeaderValue>,

    /// Status sent to the client; 0 while (or when) there is none.
    pub status: u16,
    /// Response flags.
    pub flags: ResponseFlags,
    /// Why it ended so.
    pub reason: Reason,
    /// Text of the transport's failure (`%UPSTREAM_TRANSPORT_FAILURE_REASON%`).
    pub transport_failure: Option<Name>,
    /// Why the client's connection never carried data (`%DOWNSTREAM_TRANSPORT_FAILURE_REASON%`).
    pub downstream_failure: Option<Name>,
    /// Why we ended the client's connection (`%CONNECTION_TERMINATION_DETAILS%`).
    pub termination: Option<Name>,
    /// Why access was refused, for explanations: policy or first failed condition, as text.
    pub denial: Option<Box<str>>,
    /// Results of shadow (dry-run) rules: whether they would let it pass, and the policy.
    pub shadow: SmallVec<[ShadowResult; 1]>,
    /// Dynamic metadata: what filters tell those after them, by the filter's name.
    pub metadata: model::Metadata,

    /// Bytes of heads.
    pub request_header_bytes: u64,
    /// Bytes of heads.
    pub response_header_bytes: u64,
    /// Bytes of trailers.
    pub response_trailer_bytes: u64,
    /// Body bytes from the client.
    pub bytes_received: u64,
    /// Body bytes to the client.
    pub bytes_sent: u64,
    /// gRPC messages from the client.
    pub request_messages: u64,
    /// gRPC messages to the client.
    pub response_messages: u64,
    /// gRPC status of the answer (or the one its HTTP status means).
    pub grpc_status: Option<u32>,

    /// Route.
    pub route_name: Option<Name>,
    /// Virtual host.
    pub virtual_host: Option<Name>,
    /// Span name of the route.
    pub operation: Option<Name>,
    /// Cluster chosen by the route, also when it does not exist.
    pub cluster_name: Option<Name>,
    /// Cluster.
    pub cluster: Option<Arc<upstream::Cluster>>,
    /// Last endpoint chosen.
    pub endpoint: Option<Arc<upstream::Endpoint>>,
    /// Connection to it.
    pub upstream: Option<Rc<UpstreamConnection>>,
    /// Tries made.
    pub attempts: u32,

    /// When things happened.
    pub times: Times,
    /// Istio's metadata of the client.
    pub downstream_peer: PeerHeaders,
    /// Istio's metadata of the upstream.
    pub upstream_peer: PeerHeaders,
    /// Trace context, when tracing is on.
    pub trace: Option<Box<TraceContext>>,
    /// Headers that the sink asked for.
    pub captured: Captured,
}

/// Outcome of shadow rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShadowResult {
    /// Prefix of statistics (`istio_dry_run_allow_`).
    pub prefix: Name,
    /// Would pass.
    pub allowed: bool,
    /// The policy that matched.
    pub policy: Option<Name>,
}

/// Moments of an exchange, all on one clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct Times {
    /// The request had arrived completely.
    pub request_end: Option<Instant>,
    /// The head was given to an upstream connection (last try).
    pub upstream_start: Option<Instant>,
    /// The head of the answer arrived.
    pub upstream_head: Option<Instant>,
    /// The answer had arrived completely.
    pub upstream_end: Option<Instant>,
    /// The head of the answer was handed to the client's codec.
    pub response_start: Option<Instant>,
    /// The exchange ended.
    pub end: Option<Instant>,
}

/// `x-envoy-peer-metadata-id` and `x-envoy-peer-metadata` as they arrived.
#[derive(Debug, Clone, Default)]
pub struct PeerHeaders {
    /// Node id.
    pub id: Option<HeaderValue>,
    /// Base64 of the metadata.
    pub metadata: Option<HeaderValue>,
}

/// W3C trace context of the span that this proxy reports.
#[derive(Debug, Clone, Default)]
pub struct TraceContext {
    /// 16 bytes.
    pub trace_id: [u8; 16],
    /// 8 bytes.
    pub span_id: [u8; 8],
    /// The caller's span.
    pub parent_id: Option<[u8; 8]>,
    /// Spans are reported.
    pub sampled: bool,
}

/// Which headers an [`ExchangeSink`] needs of heads that it will not see (they have been sent by then).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Needs {
    /// Of the request as it goes upstream.
    pub request: Vec<HeaderName>,
    /// Of the answer as it goes to the client.
    pub response: Vec<HeaderName>,
    /// Of the answer's trailers.
    pub trailers: Vec<HeaderName>,
}

/// Adds a header by name to those that are kept; a text that is none is never there.
pub fn want(list: &mut Vec<HeaderName>, name: &str) {
    if let Ok(name) = HeaderName::from_bytes(name.as_bytes())
        && !list.contains(&name)
    {
        list.push(name);
    }
}

impl Needs {
    /// Adds what `other` needs.
    pub fn merge(&mut self, other: &Needs) {
        for (mine, theirs) in [
            (&mut self.request, &other.request),
            (&mut self.response, &other.response),
            (&mut self.trailers, &other.trailers),
        ] {
            for name in theirs {
                if !mine.contains(name) {
                    mine.push(name.clone());
                }
            }
        }
    }
}

/// Captured headers: shared bytes, no copies.
#[derive(Debug, Default)]
pub struct Captured {
    /// Of the request.
    pub request: SmallVec<[(HeaderName, HeaderValue); 4]>,
    /// Of the answer.
    pub response: SmallVec<[(HeaderName, HeaderValue); 4]>,
    /// Of the trailers.
    pub trailers: SmallVec<[(HeaderName, HeaderValue); 2]>,
}

/// Copies the first value of each wanted header.
pub fn capture<const N: usize>(
    wanted: &[HeaderName],
    from: &HeaderMap,
    into: &mut SmallVec<[(HeaderName, HeaderValue); N]>,
) where
    [(HeaderName, HeaderValue); N]: smallvec::Array<Item = (HeaderName, HeaderValue)>,
{
    into.clear();
    for name in wanted {
        if let Some(value) = from.get(name) {
            into.push((name.clone(), value.clone()));
        }
    }
}

impl ExchangeStats {
    /// Of a request whose head just arrived.
    pub fn new(conn: Rc<ConnInfo>, head: &RequestHead) -> Self {
        Self {
            client: conn.peer,
            conn,
            start: Instant::now(),
            start_time: SystemTime::now(),
            method: head.method.clone(),
            scheme: head.scheme,
            target: head.target.clone(),
            authority: head.authority.clone(),
            sent: None,
            version: head.version,
            grpc: head.is_grpc(),
            health_check: false,
            tcp: false,
            request_id: None,
            status: 0,
            flags: ResponseFlags::NONE,
            reason: Reason::Pending,
            transport_failure: None,
            downstream_failure: None,
            termination: None,
            denial: None,
            shadow: SmallVec::new(),
            metadata: model::Metadata::new(),
            request_header_bytes: 0,
            response_header_bytes: 0,
            response_trailer_bytes: 0,
            bytes_received: 0,
            bytes_sent: 0,
            request_messages: 0,
            response_messages: 0,
            grpc_status: None,
            route_name: None,
            virtual_host: None,
            operation: None,
            cluster_name: None,
            cluster: None,
            endpoint: None,
            upstream: None,
            attempts: 0,
            times: Times::default(),
            downstream_peer: PeerHeaders::default(),
            upstream_peer: PeerHeaders::default(),
            trace: None,
            captured: Captured::default(),
        }
    }
    /// Of a connection whose bytes are forwarded.
    pub fn of_connection(conn: Rc<ConnInfo>) -> Self {
        let nothing = RequestHead::new(Method::CONNECT, Authority::empty(), PathAndQuery::from_static("/"));
        Self { tcp: true, start: conn.accepted, ..Self::new(conn, &nothing) }
    }
    /// Path and query as they went upstream.
    pub fn sent_target(&self) -> &PathAndQuery {
        self.sent.as_ref().map_or(&self.target, |s| &s.0)
    }
    /// Host and port as they went upstream.
    pub fn sent_authority(&self) -> &Authority {
        self.sent.as_ref().map_or(&self.authority, |s| &s.1)
    }
    /// Ends with this reason: its flag is added.
    pub fn end_with(&mut self, reason: Reason) {
        self.flags.insert(reason.flag());
        self.reason = reason;
    }
}

/// Lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |n: u8| char::from(DIGITS.get(usize::from(n)).copied().unwrap_or(b'0'));
    bytes.iter().flat_map(|b| [digit(b >> 4), digit(b & 15)]).collect()
}

/// Where finished exchanges go: one per HTTP manager, its metric handles and log formats resolved when it was compiled.
pub trait ExchangeSink: std::fmt::Debug + Send + Sync {
    /// Headers to keep for [`ExchangeSink::record`].
    fn needs(&self) -> Needs {
        Needs::default()
    }
    /// The head is prepared and nothing is decided yet: read and write trace headers here.
    fn begin(&self, _stats: &mut ExchangeStats, _head: &mut RequestHead, _random: &dyn Fn() -> u64) {}
    /// A connection begins.
    fn connected(&self, _worker: usize) {}
    /// It is over, on the same worker.
    fn disconnected(&self, _worker: usize) {}
    /// The exchange is over. `worker` is the worker's id, for sharded counters.
    fn record(&self, stats: &ExchangeStats, worker: usize);
}

/// Where forwarded connections go: one per TCP proxy.
pub trait ConnectionSink: std::fmt::Debug + Send + Sync {
    /// How often [`ConnectionSink::moved`] is called while bytes move.
    fn interval(&self) -> Duration {
        Duration::from_secs(15)
    }
    /// The connection has an upstream, or never will have one. Called once.
    fn opened(&self, stats: &ExchangeStats, worker: usize);
    /// So many more bytes from the client and to the client since the last call.
    fn moved(&self, stats: &ExchangeStats, received: u64, sent: u64, worker: usize);
    /// It is over. Called once, after [`ConnectionSink::opened`].
    fn closed(&self, stats: &ExchangeStats, worker: usize);
}

/// Makes the sinks of HTTP managers and TCP proxies when those are compiled.
pub trait Telemetry: std::fmt::Debug + Send + Sync {
    /// Resolves what can be resolved now.
    ///
    /// # Errors
    /// A format or filter that cannot be compiled.
    fn tcp_sink(
        &self,
        _proxy: &model::TcpProxy,
        _stats: Option<&model::IstioStats>,
        _ctx: &crate::config::CompileCtx,
    ) -> Result<Arc<dyn ConnectionSink>, crate::config::ConfigError> {
        Ok(Arc::new(NoTelemetry))
    }

    /// Where a listener's own access log goes; `None`: it has none.
    ///
    /// # Errors
    /// A format or filter that cannot be compiled.
    fn listener_sink(
        &self,
        _logs: &[model::AccessLog],
        _ctx: &crate::config::CompileCtx,
    ) -> Result<Option<Arc<dyn ExchangeSink>>, crate::config::ConfigError> {
        Ok(None)
    }

    /// Resolves what can be resolved now.
    ///
    /// # Errors
    /// A format or filter that cannot be compiled.
    fn http_sink(
        &self,
        manager: &model::HttpManager,
        ctx: &crate::config::CompileCtx,
    ) -> Result<Arc<dyn ExchangeSink>, crate::config::ConfigError>;
}

/// Records nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoTelemetry;

impl ExchangeSink for NoTelemetry {
    fn record(&self, _stats: &ExchangeStats, _worker: usize) {}
}

impl ConnectionSink for NoTelemetry {
    fn opened(&self, _: &ExchangeStats, _: usize) {}
    fn moved(&self, _: &ExchangeStats, _: u64, _: u64, _: usize) {}
    fn closed(&self, _: &ExchangeStats, _: usize) {}
}

impl Telemetry for NoTelemetry {
    fn http_sink(
        &self,
        _manager: &model::HttpManager,
        _ctx: &crate::config::CompileCtx,
    ) -> Result<Arc<dyn ExchangeSink>, crate::config::ConfigError> {
        Ok(Arc::new(NoTelemetry))
    }
}
