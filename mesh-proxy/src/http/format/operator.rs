//! The operators themselves: names, arguments, and where each finds its value.

use std::{net::SocketAddr, time::UNIX_EPOCH};

use http::{HeaderName, Version};
use mesh_api::model::Name;
use tokio::time::Instant;

use super::{TimeFormat, Value, View};
use crate::{
    config::ConfigError,
    http::{matchers::query_value, message::UpstreamConnection, stats::Needs},
    tls::{CertificateFacts, PeerInfo},
};

/// A header that an operator reads.
#[derive(Debug, Clone)]
pub enum HeaderRef {
    /// `:method`.
    Method,
    /// `:path`.
    Path,
    /// `:authority`.
    Authority,
    /// `:scheme`.
    Scheme,
    /// `:status` (answers).
    Status,
    /// Any other.
    Named(HeaderName),
}

/// A header with its alternative and greatest length.
#[derive(Debug, Clone)]
pub struct Lookup {
    main: HeaderRef,
    other: Option<HeaderRef>,
    max: Option<usize>,
}

/// Part of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// `IP:PORT`.
    Whole,
    /// IP.
    Ip,
    /// Port.
    Port,
}

/// Which address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Client, after `x-forwarded-for`.
    Client,
    /// Peer of the socket.
    DirectClient,
    /// Where the client wanted to go.
    Local,
    /// Local address of the socket.
    DirectLocal,
    /// Endpoint.
    Upstream,
    /// Our end of the connection to it.
    UpstreamLocal,
}

/// Moments between which time is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Span {
    /// First byte of the request to the last of the answer.
    Whole,
    /// To the last byte of the request.
    Request,
    /// To the first byte of the answer from upstream.
    Response,
    /// From there to the end.
    ResponseTx,
    /// From sending upstream to the first byte of its answer.
    Upstream,
}

/// A fact of a certificate or of a TLS session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsFact {
    PeerUriSan,
    PeerDnsSan,
    PeerIpSan,
    PeerEmailSan,
    PeerSubject,
    PeerIssuer,
    PeerSerial,
    PeerFingerprint,
    PeerStart,
    PeerEnd,
    LocalUriSan,
    LocalDnsSan,
    LocalSubject,
    Version,
    Cipher,
    SessionId,
}

/// One operator.
#[derive(Debug, Clone)]
pub enum Operator {
    /// Known when it was parsed (`%HOSTNAME%`, `%ENVIRONMENT(X)%`).
    Constant(Box<str>),
    Request(Lookup),
    /// As [`Operator::Request`], up to the first question mark.
    RequestWithoutQuery(Lookup),
    Response(Lookup),
    Trailer(Lookup),
    StartTime(TimeFormat),
    StartTimeLocal(TimeFormat),
    Protocol,
    UpstreamProtocol,
    ResponseCode,
    ResponseCodeDetails,
    TerminationDetails,
    ResponseFlags,
    ResponseFlagsLong,
    TransportFailure,
    DownstreamTransportFailure,
    BytesReceived,
    BytesSent,
    RequestHeaderBytes,
    ResponseHeaderBytes,
    ResponseTrailerBytes,
    Duration(Span),
    Attempts,
    Address(Place, Part),
    UpstreamHostName,
    UpstreamCluster,
    UpstreamClusterRaw,
    ConnectionId,
    UpstreamConnectionId,
    StreamId,
    ServerName,
    RouteName,
    VirtualHostName,
    FilterChain,
    DownstreamTls(TlsFact),
    UpstreamTls(TlsFact),
    GrpcStatus,
    GrpcStatusNumber,
    QueryParam(Box<str>, Option<usize>),
    Path {
        query: bool,
        original: Option<bool>,
        max: Option<usize>,
    },
    ClusterMetadata(Box<str>, Vec<Box<str>>),
    UpstreamMetadata(Box<str>, Vec<Box<str>>),
    /// What filters tell of a request or connection: of tokens, of authorizers, of dry runs.
    DynamicMetadata(Box<str>, Vec<Box<str>>, Option<usize>),
    AccessLogType,
    TraceId,
    SpanId,
    /// Accepted, always without a value: filter state, and metadata that nothing here has.
    Absent,
}

/// What Envoy has and nothing here knows: without a value, rather than a reason to refuse a listener.
const UNKNOWN_HERE: [&str; 27] = [
    "BYTES_RETRANSMITTED",
    "COMMON_DURATION",
    "CUSTOM_FLAGS",
    "DOWNSTREAM_DETECTED_CLOSE_TYPE",
    "DOWNSTREAM_HANDSHAKE_DURATION",
    "DOWNSTREAM_HEADER_BYTES_RECEIVED",
    "DOWNSTREAM_HEADER_BYTES_SENT",
    "DOWNSTREAM_LOCAL_CLOSE_REASON",
    "DOWNSTREAM_PEER_CERT",
    "DOWNSTREAM_PEER_FINGERPRINT_1",
    "DOWNSTREAM_WIRE_BYTES_RECEIVED",
    "DOWNSTREAM_WIRE_BYTES_SENT",
    "PACKETS_RETRANSMITTED",
    "TLS_JA3_FINGERPRINT",
    "TLS_JA4_FINGERPRINT",
    "UPSTREAM_CONNECTION_POOL_READY_DURATION",
    "UPSTREAM_DETECTED_CLOSE_TYPE",
    "UPSTREAM_HEADER_BYTES_RECEIVED",
    "UPSTREAM_HEADER_BYTES_SENT",
    "UPSTREAM_HOSTS_ATTEMPTED",
    "UPSTREAM_HOSTS_ATTEMPTED_WITHOUT_PORT",
    "UPSTREAM_HOST_NAMES_ATTEMPTED",
    "UPSTREAM_LOCAL_CLOSE_REASON",
    "UPSTREAM_PEER_CERT",
    "UPSTREAM_WIRE_BYTES_RECEIVED",
    "UPSTREAM_WIRE_BYTES_SENT",
    "VIRTUAL_CLUSTER_NAME",
];

impl Operator {
    /// Parses what stands between the percent signs.
    pub(super) fn parse(text: &str) -> Result<Self, ConfigError> {
        use Operator as O;
        let bad = |what: &str| ConfigError::new(format!("format operator %{text}%: {what}"));
        let (name, argument, max) = split(text).ok_or_else(|| bad("malformed"))?;
        let needed = || argument.ok_or_else(|| bad("needs an argument"));
        if let Some(operator) = address(name).or_else(|| tls(name)) {
            return Ok(operator);
        }
        Ok(match name {
            "REQ" | "REQUEST_HEADER" => O::Request(lookup(needed()?, max).ok_or_else(|| bad("bad header name"))?),
            "REQ_WITHOUT_QUERY" => {
                O::RequestWithoutQuery(lookup(needed()?, max).ok_or_else(|| bad("bad header name"))?)
            }
            "RESP" | "RESPONSE_HEADER" => O::Response(lookup(needed()?, max).ok_or_else(|| bad("bad header name"))?),
            "TRAILER" | "RESPONSE_TRAILER" => O::Trailer(lookup(needed()?, max).ok_or_else(|| bad("bad header name"))?),
            "START_TIME" | "EMIT_TIME" => O::StartTime(TimeFormat::parse(argument.unwrap_or(""))?),
            "START_TIME_LOCAL" | "EMIT_TIME_LOCAL" => O::StartTimeLocal(TimeFormat::parse(argument.unwrap_or(""))?),
            "PROTOCOL" => O::Protocol,
            "UPSTREAM_PROTOCOL" => O::UpstreamProtocol,
            "RESPONSE_CODE" => O::ResponseCode,
            "RESPONSE_CODE_DETAILS" => O::ResponseCodeDetails,
            "CONNECTION_TERMINATION_DETAILS" => O::TerminationDetails,
            "RESPONSE_FLAGS" => O::ResponseFlags,
            "RESPONSE_FLAGS_LONG" => O::ResponseFlagsLong,
            "UPSTREAM_TRANSPORT_FAILURE_REASON" => O::TransportFailure,
            "DOWNSTREAM_TRANSPORT_FAILURE_REASON" => O::DownstreamTransportFailure,
            "BYTES_RECEIVED" => O::BytesReceived,
            "BYTES_SENT" => O::BytesSent,
            "REQUEST_HEADERS_BYTES" => O::RequestHeaderBytes,
            "RESPONSE_HEADERS_BYTES" => O::ResponseHeaderBytes,
            "RESPONSE_TRAILERS_BYTES" => O::ResponseTrailerBytes,
            "DURATION" => O::Duration(Span::Whole),
            "REQUEST_DURATION" | "REQUEST_TX_DURATION" => O::Duration(Span::Request),
            "RESPONSE_DURATION" => O::Duration(Span::Response),
            "RESPONSE_TX_DURATION" => O::Duration(Span::ResponseTx),
            "ROUNDTRIP_DURATION" | "UPSTREAM_RESPONSE_DURATION" => O::Duration(Span::Upstream),
            "UPSTREAM_REQUEST_ATTEMPT_COUNT" => O::Attempts,
            "UPSTREAM_HOST_NAME" => O::UpstreamHostName,
            "UPSTREAM_CLUSTER" => O::UpstreamCluster,
            "UPSTREAM_CLUSTER_RAW" => O::UpstreamClusterRaw,
            "CONNECTION_ID" => O::ConnectionId,
            "UPSTREAM_CONNECTION_ID" => O::UpstreamConnectionId,
            "STREAM_ID" | "UNIQUE_ID" => O::StreamId,
            "REQUESTED_SERVER_NAME" => O::ServerName,
            "ROUTE_NAME" => O::RouteName,
            "VIRTUAL_HOST_NAME" => O::VirtualHostName,
            "FILTER_CHAIN_NAME" => O::FilterChain,
            "GRPC_STATUS" => O::GrpcStatus,
            "GRPC_STATUS_NUMBER" => O::GrpcStatusNumber,
            "QUERY_PARAM" => O::QueryParam(needed()?.into(), max),
            "PATH" => path(argument.unwrap_or(""), max).ok_or_else(|| bad("unknown path option"))?,
            "CLUSTER_METADATA" => {
                let (space, keys) = metadata(needed()?);
                O::ClusterMetadata(space, keys)
            }
            "UPSTREAM_METADATA" => {
                let (space, keys) = metadata(needed()?);
                O::UpstreamMetadata(space, keys)
            }
            "METADATA" => {
                let (kind, rest) = needed()?.split_once(':').ok_or_else(|| bad("needs a kind and a namespace"))?;
                let (space, keys) = metadata(rest);
                match kind {
                    "CLUSTER" => O::ClusterMetadata(space, keys),
                    "UPSTREAM_HOST" => O::UpstreamMetadata(space, keys),
                    "DYNAMIC" => O::DynamicMetadata(space, keys, max),
                    "ROUTE" | "LISTENER" | "VIRTUAL_HOST" => O::Absent,
                    _ => return Err(bad("unknown kind of metadata")),
                }
            }
            "DYNAMIC_METADATA" => {
                let (space, keys) = metadata(needed()?);
                O::DynamicMetadata(space, keys, max)
            }
            "FILTER_STATE" | "UPSTREAM_FILTER_STATE" => {
                needed()?;
                O::Absent
            }
            "HOSTNAME" => O::Constant(hostname().into()),
            "ENVIRONMENT" => O::Constant(std::env::var(needed()?).unwrap_or_else(|_| "-".to_owned()).into()),
            "ACCESS_LOG_TYPE" => O::AccessLogType,
            "TRACE_ID" => O::TraceId,
            "SPAN_ID" => O::SpanId,
            name if UNKNOWN_HERE.contains(&name) => O::Absent,
            _ => return Err(bad("not known")),
        })
    }

    /// Whether it means nothing for a connection whose bytes are forwarded.
    fn is_of_http(&self) -> bool {
        use Operator as O;
        matches!(
            self,
            O::Request(_)
                | O::RequestWithoutQuery(_)
                | O::Response(_)
                | O::Trailer(_)
                | O::Protocol
                | O::UpstreamProtocol
                | O::QueryParam(..)
                | O::Path { .. }
        )
    }

    /// Its value, if there is one.
    pub fn value<'a>(&'a self, view: &View<'a>) -> Option<Value<'a>> {
        use Operator as O;
        let stats = view.stats;
        if stats.tcp && self.is_of_http() {
            return None;
        }
        Some(match self {
            O::Constant(text) => Value::text(&**text),
            O::Request(l) => return l.find(|h| view.request_value(h)),
            O::RequestWithoutQuery(l) => {
                return l.find(|h| view.request_value(h).map(|v| v.split(|b| *b == b'?').next().unwrap_or(v)));
            }
            O::Response(l) => return l.find(|h| view.response_value(h)),
            O::Trailer(l) => {
                return l.find(|h| match h {
                    HeaderRef::Named(name) => view.trailers.get(name),
                    _ => None,
                });
            }
            O::StartTime(f) | O::StartTimeLocal(f) => Value::text(f.format(stats.start_time)),
            O::Protocol => Value::text(protocol(stats.version)),
            O::UpstreamProtocol => Value::text(protocol(stats.upstream.as_ref()?.version)),
            O::ResponseCode => Value::Number(stats.status.into()),
            O::ResponseCodeDetails => {
                let details = stats.reason.details();
                if details.is_empty() {
                    return None;
                }
                Value::text(details)
            }
            O::TerminationDetails => Value::text(stats.termination.as_deref()?),
            O::ResponseFlags => Value::text(stats.flags.text()),
            O::ResponseFlagsLong => Value::text(stats.flags.long_text()),
            O::TransportFailure => Value::text(stats.transport_failure.as_deref()?),
            O::DownstreamTransportFailure => Value::text(stats.downstream_failure.as_deref()?),
            O::BytesReceived => Value::Number(stats.bytes_received),
            O::BytesSent => Value::Number(stats.bytes_sent),
            O::RequestHeaderBytes => Value::Number(stats.request_header_bytes),
            O::ResponseHeaderBytes => Value::Number(stats.response_header_bytes),
            O::ResponseTrailerBytes => Value::Number(stats.response_trailer_bytes),
            O::Duration(span) => {
                let t = &stats.times;
                let (from, to): (Instant, Instant) = match span {
                    Span::Whole => (stats.start, t.end.unwrap_or_else(Instant::now)),
                    Span::Request => (stats.start, t.request_end?),
                    Span::Response => (stats.start, t.upstream_head?),
                    Span::ResponseTx => (t.upstream_head?, t.end?),
                    Span::Upstream => (t.upstream_start?, t.upstream_head?),
                };
                Value::Number(u64::try_from(to.saturating_duration_since(from).as_millis()).ok()?)
            }
            O::Attempts => Value::Number(stats.attempts.into()),
            O::Address(place, part) => {
                let address = view.address(*place)?;
                match part {
                    Part::Whole => Value::text(address.to_string()),
                    Part::Ip => Value::text(address.ip().to_string()),
                    Part::Port => Value::Number(address.port().into()),
                }
            }
            O::UpstreamHostName => {
                let endpoint = stats.endpoint.as_ref()?;
                match &*endpoint.config.hostname {
                    "" => Value::text(endpoint.config.address.to_string()),
                    name => Value::text(name),
                }
            }
            O::UpstreamCluster => match &stats.cluster {
                Some(c) if !c.config.alt_stat_name.is_empty() => Value::text(&*c.config.alt_stat_name),
                _ => Value::text(stats.cluster_name.as_deref()?),
            },
            O::UpstreamClusterRaw => Value::text(stats.cluster_name.as_deref()?),
            O::ConnectionId => Value::Number(stats.conn.id),
            O::UpstreamConnectionId => Value::Number(stats.upstream.as_ref()?.id),
            O::StreamId => Value::Text(stats.request_id.as_ref()?.as_bytes().into()),
            O::ServerName => Value::text(stats.conn.sni.as_deref()?),
            O::RouteName => Value::text(stats.route_name.as_deref().filter(|n| !n.is_empty())?),
            O::VirtualHostName => Value::text(stats.virtual_host.as_deref()?),
            O::FilterChain => Value::text(Some(&*stats.conn.chain).filter(|c| !c.is_empty())?),
            O::DownstreamTls(fact) => return tls_value(stats.conn.tls.as_ref()?, *fact),
            O::UpstreamTls(fact) => return tls_value(stats.upstream.as_ref()?.tls.as_ref()?, *fact),
            O::GrpcStatus => Value::text(grpc_name(stats.grpc_status?)),
            O::GrpcStatusNumber => Value::Number(stats.grpc_status?.into()),
            O::QueryParam(name, max) => {
                let value = query_value(stats.target.query()?, name)?;
                Value::text(cut(value, *max))
            }
            O::Path { query, original, max } => {
                let target = match (original, view.head) {
                    (Some(true), _) => &stats.target,
                    (_, Some(head)) => &head.target,
                    (_, None) => stats.sent_target(),
                };
                Value::text(cut(if *query { target.as_str() } else { target.path() }, *max))
            }
            O::ClusterMetadata(space, keys) => {
                Value::Json(dig(stats.cluster.as_ref()?.config.metadata.get(&**space)?, keys)?)
            }
            O::UpstreamMetadata(space, keys) => {
                Value::Json(dig(stats.endpoint.as_ref()?.config.metadata.get(&**space)?, keys)?)
            }
            O::DynamicMetadata(space, keys, max) => {
                let value = Value::Json(dig(stats.metadata.get(&**space)?, keys)?);
                match max {
                    Some(max) => value.cut(*max),
                    None => value,
                }
            }
            O::AccessLogType => Value::text("DownstreamEnd"),
            O::TraceId => Value::text(crate::http::stats::hex(&stats.trace.as_ref()?.trace_id)),
            O::SpanId => Value::text(crate::http::stats::hex(&stats.trace.as_ref()?.span_id)),
            O::Absent => return None,
        })
    }

    /// Adds the headers that it reads.
    pub(super) fn needs(&self, needs: &mut Needs) {
        let (lookup, list) = match self {
            Operator::Request(l) | Operator::RequestWithoutQuery(l) => (l, &mut needs.request),
            Operator::Response(l) => (l, &mut needs.response),
            Operator::Trailer(l) => (l, &mut needs.trailers),
            _ => return,
        };
        for header in [Some(&lookup.main), lookup.other.as_ref()].into_iter().flatten() {
            if let HeaderRef::Named(name) = header
                && !list.contains(name)
            {
                list.push(name.clone());
            }
        }
    }
}

impl Lookup {
    fn find<'a>(&'a self, get: impl Fn(&'a HeaderRef) -> Option<&'a [u8]>) -> Option<Value<'a>> {
        let value = get(&self.main).or_else(|| self.other.as_ref().and_then(get))?;
        let value = self.max.and_then(|max| value.get(..max)).unwrap_or(value);
        Some(Value::Text(value.into()))
    }
}

impl<'a> View<'a> {
    fn request_value(&self, header: &HeaderRef) -> Option<&'a [u8]> {
        let stats = self.stats;
        Some(match header {
            HeaderRef::Named(name) => return self.request.get(name),
            HeaderRef::Method => self.head.map_or(&stats.method, |h| &h.method).as_str().as_bytes(),
            HeaderRef::Path => self.head.map_or(stats.sent_target(), |h| &h.target).as_str().as_bytes(),
            HeaderRef::Authority => {
                let authority = self.head.map_or(stats.sent_authority(), |h| &h.authority);
                if authority.is_empty() {
                    return None;
                }
                authority.as_str().as_bytes()
            }
            HeaderRef::Scheme => self.head.map_or(stats.scheme, |h| h.scheme).as_str().as_bytes(),
            HeaderRef::Status => return None,
        })
    }
    fn response_value(&self, header: &HeaderRef) -> Option<&'a [u8]> {
        match header {
            HeaderRef::Named(name) => self.response.get(name),
            _ => None,
        }
    }
    fn address(&self, place: Place) -> Option<SocketAddr> {
        let stats = self.stats;
        match place {
            Place::Client => Some(stats.client),
            Place::DirectClient => Some(stats.conn.direct_peer),
            Place::Local => Some(stats.conn.local),
            Place::DirectLocal => Some(stats.conn.direct_local),
            Place::Upstream => {
                let known: Option<&UpstreamConnection> = stats.upstream.as_deref();
                known.and_then(|u| u.remote).or_else(|| stats.endpoint.as_ref()?.socket_addr())
            }
            Place::UpstreamLocal => stats.upstream.as_ref()?.local,
        }
    }
}

/// `NAME(ARGUMENT):LENGTH`.
fn split(text: &str) -> Option<(&str, Option<&str>, Option<usize>)> {
    let (call, max) = match text.rsplit_once(':') {
        Some((call, n)) if !call.contains('(') || call.ends_with(')') => (call, Some(n.parse().ok()?)),
        _ => (text, None),
    };
    match call.split_once('(') {
        None => Some((call, None, max)),
        Some((name, rest)) => Some((name, Some(rest.strip_suffix(')')?), max)),
    }
}

fn lookup(argument: &str, max: Option<usize>) -> Option<Lookup> {
    let (main, other) = match argument.split_once('?') {
        Some((main, other)) => (main, Some(other)),
        None => (argument, None),
    };
    let header = |name: &str| {
        Some(match name.to_ascii_lowercase().as_str() {
            ":method" => HeaderRef::Method,
            ":path" => HeaderRef::Path,
            ":authority" | "host" => HeaderRef::Authority,
            ":scheme" => HeaderRef::Scheme,
            ":status" => HeaderRef::Status,
            lower => HeaderRef::Named(HeaderName::from_bytes(lower.as_bytes()).ok()?),
        })
    };
    let other = match other {
        Some(name) => Some(header(name)?),
        None => None,
    };
    Some(Lookup { main: header(main)?, other, max })
}

fn address(name: &str) -> Option<Operator> {
    let (rest, part) = if let Some(rest) = name.strip_suffix("_ADDRESS_WITHOUT_PORT") {
        (rest, Part::Ip)
    } else if let Some(rest) = name.strip_suffix("_ADDRESS") {
        (rest, Part::Whole)
    } else if let Some(rest) = name.strip_suffix("_PORT") {
        (rest, Part::Port)
    } else if name == "UPSTREAM_HOST" {
        ("UPSTREAM_REMOTE", Part::Whole)
    } else {
        return None;
    };
    let place = match rest {
        "DOWNSTREAM_REMOTE" => Place::Client,
        "DOWNSTREAM_DIRECT_REMOTE" => Place::DirectClient,
        "DOWNSTREAM_LOCAL" => Place::Local,
        "DOWNSTREAM_DIRECT_LOCAL" => Place::DirectLocal,
        "UPSTREAM_REMOTE" => Place::Upstream,
        "UPSTREAM_LOCAL" => Place::UpstreamLocal,
        _ => return None,
    };
    Some(Operator::Address(place, part))
}

fn tls(name: &str) -> Option<Operator> {
    let (rest, make): (&str, fn(TlsFact) -> Operator) = if let Some(rest) = name.strip_prefix("DOWNSTREAM_") {
        (rest, Operator::DownstreamTls)
    } else {
        (name.strip_prefix("UPSTREAM_")?, Operator::UpstreamTls)
    };
    Some(make(match rest {
        "PEER_URI_SAN" => TlsFact::PeerUriSan,
        "PEER_DNS_SAN" => TlsFact::PeerDnsSan,
        "PEER_IP_SAN" => TlsFact::PeerIpSan,
        "PEER_EMAIL_SAN" => TlsFact::PeerEmailSan,
        "PEER_SUBJECT" => TlsFact::PeerSubject,
        "PEER_ISSUER" => TlsFact::PeerIssuer,
        "PEER_SERIAL" => TlsFact::PeerSerial,
        "PEER_FINGERPRINT_256" => TlsFact::PeerFingerprint,
        "PEER_CERT_V_START" => TlsFact::PeerStart,
        "PEER_CERT_V_END" => TlsFact::PeerEnd,
        "LOCAL_URI_SAN" => TlsFact::LocalUriSan,
        "LOCAL_DNS_SAN" => TlsFact::LocalDnsSan,
        "LOCAL_SUBJECT" => TlsFact::LocalSubject,
        "TLS_VERSION" => TlsFact::Version,
        "TLS_CIPHER" => TlsFact::Cipher,
        "TLS_SESSION_ID" => TlsFact::SessionId,
        _ => return None,
    }))
}

fn path(argument: &str, max: Option<usize>) -> Option<Operator> {
    let (query, which) = argument.split_once(':').unwrap_or((argument, ""));
    let query = match query {
        "" | "WQ" => true,
        "NQ" => false,
        _ => return None,
    };
    let original = match which {
        "" => None,
        "ORIG" => Some(true),
        "PATH" => Some(false),
        "ORIG_OR_PATH" => Some(true),
        _ => return None,
    };
    Some(Operator::Path { query, original, max })
}

fn metadata(argument: &str) -> (Box<str>, Vec<Box<str>>) {
    let mut parts = argument.split(':').map(Box::from);
    (parts.next().unwrap_or_default(), parts.collect())
}

fn dig<'a>(mut value: &'a serde_json::Value, keys: &[Box<str>]) -> Option<&'a serde_json::Value> {
    for key in keys {
        value = value.get(&**key)?;
    }
    Some(value)
}

fn tls_value(tls: &PeerInfo, fact: TlsFact) -> Option<Value<'_>> {
    let peer = || tls.certificate.as_deref();
    let names = |names: &[Name]| (!names.is_empty()).then(|| names.join(","));
    let time = |secs: i64| {
        let since = std::time::Duration::from_secs(u64::try_from(secs).unwrap_or(0));
        Value::text(TimeFormat::Iso.format(UNIX_EPOCH + since))
    };
    let list = |facts: Option<&CertificateFacts>, pick: fn(&CertificateFacts) -> &Vec<Name>| {
        Some(Value::text(names(pick(facts?))?))
    };
    let text = |s: &'_ str| -> Option<Value<'static>> { (!s.is_empty()).then(|| Value::text(s.to_owned())) };
    match fact {
        TlsFact::PeerUriSan => list(peer(), |c| &c.uri_sans),
        TlsFact::PeerDnsSan => list(peer(), |c| &c.dns_sans),
        TlsFact::PeerIpSan => list(peer(), |c| &c.ip_sans),
        TlsFact::PeerEmailSan => list(peer(), |c| &c.email_sans),
        TlsFact::LocalUriSan => list(tls.local.as_deref(), |c| &c.uri_sans),
        TlsFact::LocalDnsSan => list(tls.local.as_deref(), |c| &c.dns_sans),
        TlsFact::PeerSubject => text(&peer()?.subject),
        TlsFact::PeerIssuer => text(&peer()?.issuer),
        TlsFact::PeerSerial => text(&peer()?.serial),
        TlsFact::PeerFingerprint => text(peer()?.sha256()),
        TlsFact::PeerStart => Some(time(peer()?.not_before)),
        TlsFact::PeerEnd => Some(time(peer()?.not_after)),
        TlsFact::LocalSubject => text(&tls.local.as_deref()?.subject),
        TlsFact::Version => text(tls.version),
        TlsFact::Cipher => text(tls.cipher),
        // Sessions are never resumed here, so they have no id.
        TlsFact::SessionId => None,
    }
}

/// `HTTP/1.1`, as Envoy prints versions.
pub fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_09 | Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_11 => "HTTP/1.1",
        Version::HTTP_2 => "HTTP/2",
        _ => "HTTP/3",
    }
}

fn grpc_name(status: u32) -> &'static str {
    match status {
        0 => "OK",
        1 => "Canceled",
        2 => "Unknown",
        3 => "InvalidArgument",
        4 => "DeadlineExceeded",
        5 => "NotFound",
        6 => "AlreadyExists",
        7 => "PermissionDenied",
        8 => "ResourceExhausted",
        9 => "FailedPrecondition",
        10 => "Aborted",
        11 => "OutOfRange",
        12 => "Unimplemented",
        13 => "Internal",
        14 => "Unavailable",
        15 => "DataLoss",
        16 => "Unauthenticated",
        _ => "InvalidCode",
    }
}

fn cut(text: &str, max: Option<usize>) -> &str {
    max.and_then(|max| text.get(..max)).unwrap_or(text)
}

fn hostname() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}
