//! Messages as everything between the codecs sees them: heads whose routing facts stand apart from the header map,
//! and one body type. Knows no codec: what comes from or goes to a wire is wrapped by `server`.

use std::{
    fmt,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Version, uri::PathAndQuery};
use http_body::{Frame, SizeHint};

use super::server::h1::{Incoming, PendingTunnel};

/// `http` or `https`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Scheme {
    /// Cleartext.
    #[default]
    Http,
    /// TLS.
    Https,
}

impl Scheme {
    /// As in URLs.
    pub fn as_str(self) -> &'static str {
        match self {
            Scheme::Http => "http",
            Scheme::Https => "https",
        }
    }
    /// Port when none is given.
    pub fn default_port(self) -> u16 {
        match self {
            Scheme::Http => 80,
            Scheme::Https => 443,
        }
    }
}

/// Host and optional port as the client wrote them: printable ASCII without spaces, possibly empty.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Authority(HeaderValue);

impl Authority {
    /// No host.
    pub fn empty() -> Self {
        Self(HeaderValue::from_static(""))
    }
    /// Checks the form: `host`, `host:port`, `[ipv6]`, `[ipv6]:port`; no user, no path. `None` when it is another.
    pub fn new(value: HeaderValue) -> Option<Self> {
        let bytes = value.as_bytes();
        let (mut in_brackets, mut colons) = (false, 0u32);
        for &b in bytes {
            match b {
                b'[' if !in_brackets => in_brackets = true,
                b']' if in_brackets => in_brackets = false,
                b':' if !in_brackets => colons += 1,
                b':' => {}
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'%' => {}
                b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'=' => {}
                _ => return None,
            }
        }
        (!in_brackets && colons <= 1).then_some(Self(value))
    }
    /// From text; `None` when it has not the form of an authority.
    pub fn parse(text: &str) -> Option<Self> {
        Self::new(HeaderValue::from_str(text).ok()?)
    }
    /// Host and port.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(self.0.as_bytes()).unwrap_or_default()
    }
    /// Ready to be sent as `host`.
    pub fn as_value(&self) -> &HeaderValue {
        &self.0
    }
    /// Ready to be sent as `host`.
    pub fn into_value(self) -> HeaderValue {
        self.0
    }
    /// Without the port; IPv6 addresses keep their brackets.
    pub fn host(&self) -> &str {
        split_port(self.as_str()).0
    }
    /// The port, when one is given and a number.
    pub fn port(&self) -> Option<u16> {
        split_port(self.as_str()).1.and_then(|p| p.parse().ok())
    }
    /// Nothing was given.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Takes `host[:port]` apart at the last colon outside of brackets.
pub fn split_port(authority: &str) -> (&str, Option<&str>) {
    match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') && (!host.contains(':') || host.ends_with(']')) => (host, Some(port)),
        _ => (authority, None),
    }
}

/// Head of a request.
///
/// `headers` holds no `host`: [`RequestHead::authority`] is the only place of it, and whoever writes HTTP/1 adds it.
/// Hop-by-hop headers are gone too; an upgrade (HTTP/1.1 `upgrade`, HTTP/2 extended CONNECT) is told by `upgrade`.
#[derive(Debug, Clone)]
pub struct RequestHead {
    /// Method, case-sensitive.
    pub method: Method,
    /// What the client means; on the way up, what `:scheme` says.
    pub scheme: Scheme,
    /// Host and port.
    pub authority: Authority,
    /// Path and query, normalised once by the exchange. Empty path for plain CONNECT.
    pub target: PathAndQuery,
    /// Everything else.
    pub headers: HeaderMap,
    /// Version the client speaks.
    pub version: Version,
    /// Protocol that the client wants to upgrade to, e.g. `websocket`.
    pub upgrade: Option<HeaderValue>,
}

impl RequestHead {
    /// A request for tests and for requests that the proxy makes by itself.
    pub fn new(method: Method, authority: Authority, target: PathAndQuery) -> Self {
        Self {
            method,
            scheme: Scheme::Http,
            authority,
            target,
            headers: HeaderMap::new(),
            version: Version::HTTP_11,
            upgrade: None,
        }
    }
    /// Path without query.
    pub fn path(&self) -> &str {
        self.target.path()
    }
    /// Query without `?`.
    pub fn query(&self) -> Option<&str> {
        self.target.query()
    }
    /// `content-type: application/grpc` or one of its forms (gRPC-Web does not count).
    pub fn is_grpc(&self) -> bool {
        is_grpc_content_type(self.headers.get(http::header::CONTENT_TYPE))
    }
    /// A tunnel is asked for, by CONNECT or by an upgrade.
    pub fn wants_tunnel(&self) -> bool {
        self.upgrade.is_some() || self.method == Method::CONNECT
    }
}

/// Whether a `content-type` is gRPC's.
pub fn is_grpc_content_type(value: Option<&HeaderValue>) -> bool {
    let Some(rest) = value.and_then(|v| v.as_bytes().strip_prefix(b"application/grpc")) else { return false };
    matches!(rest.first(), None | Some(b'+' | b';'))
}

/// Head of an answer.
#[derive(Debug)]
pub struct ResponseHead {
    /// Status.
    pub status: StatusCode,
    /// Headers, hop-by-hop ones taken off.
    pub headers: HeaderMap,
    /// Version the upstream speaks.
    pub version: Version,
    /// The upstream agreed to a tunnel (101, or 2xx to CONNECT); this is its end of it.
    pub tunnel: Option<PendingTunnel>,
    /// What is known of the connection the answer came over.
    pub connection: Option<Rc<UpstreamConnection>>,
}

impl ResponseHead {
    /// An answer without headers.
    pub fn new(status: StatusCode) -> Self {
        Self { status, headers: HeaderMap::new(), version: Version::HTTP_11, tunnel: None, connection: None }
    }
}

/// An upstream connection as logs and metrics see it.
#[derive(Debug, Clone)]
pub struct UpstreamConnection {
    /// `%UPSTREAM_CONNECTION_ID%`.
    pub id: u64,
    /// Our address.
    pub local: Option<std::net::SocketAddr>,
    /// Its address.
    pub remote: Option<std::net::SocketAddr>,
    /// The version spoken.
    pub version: Version,
    /// The peer's TLS facts; `None` in cleartext.
    pub tls: Option<crate::tls::PeerInfo>,
}

/// Why a body ended before its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// The peer closed or broke the connection.
    #[error("connection terminated")]
    Disconnected,
    /// The peer reset the stream.
    #[error("stream reset by peer")]
    Reset,
    /// The peer broke the protocol.
    #[error("protocol error")]
    Protocol,
    /// A deadline passed.
    #[error("timeout")]
    Timeout,
    /// Cut on purpose: the other side of the exchange is gone.
    #[error("exchange ended")]
    Aborted,
}

/// A body that the exchange puts around another (accounting, deadlines, replay, translation).
pub type BoxBody = Pin<Box<dyn http_body::Body<Data = Bytes, Error = BodyError>>>;

/// The one body type.
#[derive(Default)]
pub enum Body {
    /// Nothing.
    #[default]
    Empty,
    /// One piece.
    Full(Bytes),
    /// From the wire.
    Incoming(Incoming),
    /// Around another body.
    Wrapped(BoxBody),
}

impl Body {
    /// One piece, possibly empty.
    pub fn full(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        if bytes.is_empty() { Body::Empty } else { Body::Full(bytes) }
    }
    /// Around another body.
    pub fn wrap(body: impl http_body::Body<Data = Bytes, Error = BodyError> + 'static) -> Self {
        Body::Wrapped(Box::pin(body))
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Body::Empty => f.write_str("Empty"),
            Body::Full(b) => write!(f, "Full({} bytes)", b.len()),
            Body::Incoming(_) => f.write_str("Incoming"),
            Body::Wrapped(_) => f.write_str("Wrapped"),
        }
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let this = self.get_mut();
        match this {
            Body::Empty => Poll::Ready(None),
            Body::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                *this = Body::Empty;
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Body::Incoming(body) => Pin::new(body).poll_frame(cx),
            Body::Wrapped(body) => body.as_mut().poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Body::Empty => true,
            Body::Full(_) => false,
            Body::Incoming(body) => body.is_end_stream(),
            Body::Wrapped(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Body::Empty => SizeHint::with_exact(0),
            Body::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Body::Incoming(body) => body.size_hint(),
            Body::Wrapped(body) => body.size_hint(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authorities() {
        for good in ["", "a", "a.b:80", "[::1]", "[::1]:8080", "xn--bcher-kva.example", "10.0.0.1:1"] {
            assert!(Authority::parse(good).is_some(), "{good}");
        }
        for bad in ["u@h", "a:b:c", "a/b", "a b", "[::1", "a]", "a?b", "a\\b", "a#b"] {
            assert!(Authority::parse(bad).is_none(), "{bad}");
        }
        let a = Authority::parse("[::1]:8080").unwrap();
        assert_eq!((a.host(), a.port()), ("[::1]", Some(8080)));
        let a = Authority::parse("shop.test").unwrap();
        assert_eq!((a.host(), a.port()), ("shop.test", None));
        let a = Authority::parse("shop.test:").unwrap();
        assert_eq!((a.host(), a.port()), ("shop.test", None));
    }

    #[test]
    fn grpc_content_types() {
        let is = |v: &'static str| is_grpc_content_type(Some(&HeaderValue::from_static(v)));
        assert!(is("application/grpc") && is("application/grpc+proto") && is("application/grpc;x"));
        assert!(!is("application/grpc-web") && !is("application/json") && !is_grpc_content_type(None));
    }
}
