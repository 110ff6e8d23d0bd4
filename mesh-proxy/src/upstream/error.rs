//! Why a request could not be handed to an endpoint, or was lost on the way. Knows no HTTP statuses and no response
//! flags: `http` and `tcp` translate.

use std::{borrow::Cow, fmt, net::SocketAddr};

/// Kinds of failure between choosing an endpoint and its response head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// A circuit breaker is open (UO, `x-envoy-overloaded`).
    Overflow,
    /// TCP connect was refused or failed (UF).
    ConnectFailure,
    /// TCP connect or TLS handshake took too long (UF).
    ConnectTimeout,
    /// The TLS handshake failed (UF, transport failure reason).
    Tls,
    /// The connection broke after the request was (partly) sent and before a response head (UC).
    ConnectionTermination,
    /// The upstream reset the HTTP/2 stream before a response head (UR).
    RemoteReset,
    /// The upstream refused the stream (`REFUSED_STREAM`, or GOAWAY before our stream): safe to send again.
    RefusedStream,
    /// The upstream sent something that is not HTTP (UPE).
    Protocol,
    /// We gave the stream up: the request's body failed (the client went away) while it was being sent.
    RequestBody,
    /// The request cannot be expressed in the upstream's protocol.
    InvalidRequest,
}

/// A failed attempt.
#[derive(Debug, Clone)]
pub struct UpstreamError {
    /// What kind.
    pub kind: ErrorKind,
    /// The address dialled or connected to.
    pub upstream: Option<SocketAddr>,
    /// Bytes of the request may have reached the upstream.
    pub request_started: bool,
    /// The connection had served an earlier request and died before a response byte: the upstream may simply have
    /// closed an idle connection.
    pub reused: bool,
    /// The cause in words (`%UPSTREAM_TRANSPORT_FAILURE_REASON%` for connect and TLS failures).
    pub reason: Cow<'static, str>,
}

impl UpstreamError {
    /// Of this kind, before anything was sent.
    pub fn new(kind: ErrorKind, reason: impl Into<Cow<'static, str>>) -> Self {
        Self { kind, upstream: None, request_started: false, reused: false, reason: reason.into() }
    }
    /// With the address.
    #[must_use]
    pub fn at(mut self, upstream: Option<SocketAddr>) -> Self {
        self.upstream = upstream.or(self.upstream);
        self
    }
    /// After bytes of the request were sent, on a connection that was `reused` or fresh.
    #[must_use]
    pub fn started(mut self, reused: bool) -> Self {
        self.request_started = true;
        self.reused = reused;
        self
    }
    /// Failed before there was a connection (`connect-failure`).
    pub fn is_connect(&self) -> bool {
        matches!(self.kind, ErrorKind::ConnectFailure | ErrorKind::ConnectTimeout | ErrorKind::Tls)
    }
    /// The stream was lost after it had begun (`reset`).
    pub fn is_reset(&self) -> bool {
        matches!(
            self.kind,
            ErrorKind::ConnectionTermination | ErrorKind::RemoteReset | ErrorKind::RefusedStream | ErrorKind::Protocol
        )
    }
}

impl fmt::Display for UpstreamError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.kind {
            ErrorKind::Overflow => "overflow",
            ErrorKind::ConnectFailure => "connection failure",
            ErrorKind::ConnectTimeout => "connection timeout",
            ErrorKind::Tls => "TLS failure",
            ErrorKind::ConnectionTermination => "connection termination",
            ErrorKind::RemoteReset => "remote reset",
            ErrorKind::RefusedStream => "remote refused stream",
            ErrorKind::Protocol => "protocol error",
            ErrorKind::RequestBody => "local reset",
            ErrorKind::InvalidRequest => "invalid request",
        };
        match (self.reason.is_empty(), self.upstream) {
            (true, None) => f.write_str(what),
            (true, Some(a)) => write!(f, "{what} ({a})"),
            (false, None) => write!(f, "{what}: {}", self.reason),
            (false, Some(a)) => write!(f, "{what} ({a}): {}", self.reason),
        }
    }
}

impl std::error::Error for UpstreamError {}

/// Why no endpoint was chosen.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PickError {
    /// The cluster has no endpoint that may take requests (UH).
    #[error("no healthy upstream")]
    NoHealthy,
    /// Too few endpoints are healthy and the cluster says to fail then (`fail_traffic_on_panic`) (UH).
    #[error("no healthy upstream (panic)")]
    Panic,
    /// Dropped on purpose (`drop_overloads` of EDS), by this category (DO).
    #[error("dropped by load assignment: {0}")]
    Dropped(mesh_api::model::Name),
    /// An original-destination cluster without an original destination (UH).
    #[error("no original destination")]
    NoOriginalDestination,
}
