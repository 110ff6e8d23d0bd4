//! HTTP/1 on hyper: the wire side of messages. One of the few files that may name hyper.

use std::{
    cell::{Cell, RefCell},
    convert::Infallible,
    fmt, io,
    pin::{Pin, pin},
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, Response, header};
use http_body::{Body as _, Frame, SizeHint};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    Client,
    framing::{Framed, Framing},
    patience::Patient,
    service::{self, Call},
};
use crate::{
    drain,
    http::{
        exchange,
        local_reply::Reason,
        message::{Body, BodyError},
    },
    net,
};

/// Serves HTTP/1 on a connection. Draining: the next answer carries `connection: close`; a connection that idles for
/// [`LAST_REQUEST`] is closed, for until then a request may be on its way that its client would see fail. A tunnel is part of the connection: it ends with it, and it is served to its end.
pub(super) async fn serve(client: Client, io: net::Io, drain: drain::Watch) {
    let manager = client.live.load_full();
    let config = &manager.config;
    let times = &config.timeouts;
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .keep_alive(true)
        // Who ends its side is gone: nothing is done for it any more.
        .half_close(false)
        .max_headers(usize::try_from(config.max_headers).unwrap_or(100).max(1))
        .max_buf_size(usize::try_from(config.max_request_headers_bytes).unwrap_or(64 << 10).max(8192))
        .auto_date_header(false);
    // Also how long a connection may idle between requests.
    let head = times.head();
    if !head.is_zero() {
        builder.header_read_timeout(head);
    }
    let draining = drain.clone();
    let left = Cell::new(config.max_requests_per_connection);
    let (home, framing) = (Home::default(), Arc::new(Mutex::new(Framing::default())));
    let client = Rc::new(client);
    let service = {
        let (client, home, framing, number) = (client.clone(), home.clone(), framing.clone(), Cell::new(0));
        hyper::service::service_fn(move |mut request: Request<hyper::body::Incoming>| {
            let (session, draining, framing) = (client.session(), draining.clone(), framing.clone());
            left.set(left.get().map(|n| n.saturating_sub(1)));
            let ambiguous = framing.lock().is_ambiguous(number.replace(number.get() + 1));
            let upgrade = request.headers().contains_key(header::UPGRADE) || request.method() == Method::CONNECT;
            let tunnel = upgrade.then(|| PendingTunnel::new(hyper::upgrade::on(&mut request)).at(home.clone()));
            let call = Call {
                session,
                tunnel,
                protocol: None,
                last: left.get() == Some(0),
                refused: ambiguous.then_some(Reason::AmbiguousFraming),
            };
            async move {
                let connect = request.method() == Method::CONNECT;
                // What the codec moves around, and keeps while the connection idles, is small then.
                let mut response = Box::pin(service::serve(call, request.map(Incoming::http1))).await;
                let switching = response.status() == http::StatusCode::SWITCHING_PROTOCOLS;
                if switching || connect && response.status().is_success() {
                    framing.lock().stop();
                }
                if draining.is_draining() && !switching {
                    response.headers_mut().insert(header::CONNECTION, http::HeaderValue::from_static("close"));
                }
                Ok::<Response<Body>, Infallible>(response)
            }
        })
    };
    let io = Framed::new(Patient::new(io, times.stream_idle), framing);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(io), service).with_upgrades());
    let life = async {
        times_max(&drain, times.max_connection).await;
        if drain.is_draining() {
            tokio::time::sleep(LAST_REQUEST).await;
        }
    };
    let life = pin!(life);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = life => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(target: "http1", "connection ended: {error}");
        // The codec answers by itself what it cannot read.
        if error.is_parse_too_large() {
            exchange::refused(client.session(), Reason::HeadersTooLarge);
        } else if error.is_parse() {
            exchange::refused(client.session(), Reason::MalformedRequest);
        }
    }
    if let Some(tunnel) = home.take() {
        tunnel.await;
    }
}

/// How long a connection that drains waits for one more request. Clients with a pool and something to do send one sooner.
const LAST_REQUEST: Duration = Duration::from_secs(1);

/// Resolves when the connection is to take no more requests.
pub(super) async fn times_max(drain: &drain::Watch, most: Duration) {
    if most.is_zero() {
        drain.draining().await;
    } else {
        tokio::select! {
            () = drain.draining() => {}
            () = tokio::time::sleep(most) => {}
        }
    }
}

/// A body that is read from a connection, of a client or of an upstream.
pub struct Incoming {
    body: hyper::body::Incoming,
    end: End,
}

/// What the end of a body looks like. In HTTP/2 the codec takes a reset without an error for one: rightly, when an answer
/// was complete before its request was (RFC 9113, 8.1), and else not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// As the codec says.
    Framed,
    /// Or cut off, if a length was told and is not reached.
    MaybeReset,
    /// It is told by its frame, or it is cut off.
    Told,
}

impl Incoming {
    /// Of HTTP/1.
    pub fn http1(body: hyper::body::Incoming) -> Body {
        Self::wrap(body, End::Framed)
    }
    /// Of HTTP/2. `alone`: nothing is sent any more in the other direction, or what is, is worth nothing without it.
    pub fn http2(body: hyper::body::Incoming, alone: bool) -> Body {
        Self::wrap(body, if alone { End::Told } else { End::MaybeReset })
    }
    fn wrap(body: hyper::body::Incoming, end: End) -> Body {
        if body.is_end_stream() { Body::Empty } else { Body::Incoming(Self { body, end }) }
    }
    fn is_cut_off(&self) -> bool {
        match self.end {
            End::Framed => false,
            End::MaybeReset => self.body.size_hint().lower() > 0,
            End::Told => !self.body.is_end_stream(),
        }
    }
}

impl fmt::Debug for Incoming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Incoming")
    }
}

/// What an error of the codec means for the one who reads a body.
pub fn body_error(e: &hyper::Error) -> BodyError {
    if e.is_parse() || e.is_parse_too_large() {
        return BodyError::Protocol;
    }
    let mut source = std::error::Error::source(e);
    while let Some(cause) = source {
        // Chunks that are none.
        if let Some(io) = cause.downcast_ref::<io::Error>()
            && matches!(io.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData)
        {
            return BodyError::Protocol;
        }
        if let Some(h2) = cause.downcast_ref::<h2::Error>() {
            return if h2.is_reset() || h2.is_go_away() {
                match h2.reason() {
                    Some(h2::Reason::PROTOCOL_ERROR | h2::Reason::FRAME_SIZE_ERROR) => BodyError::Protocol,
                    _ => BodyError::Reset,
                }
            } else {
                BodyError::Disconnected
            };
        }
        source = cause.source();
    }
    BodyError::Disconnected
}

impl http_body::Body for Incoming {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        match std::task::ready!(Pin::new(&mut this.body).poll_frame(cx)) {
            None if this.is_cut_off() => Poll::Ready(Some(Err(BodyError::Reset))),
            frame => Poll::Ready(frame.map(|f| f.map_err(|e| body_error(&e)))),
        }
    }
    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Where the tunnel of a connection waits until the connection has become that tunnel.
#[derive(Clone, Default)]
pub struct Home(Rc<RefCell<Option<Pin<Box<dyn Future<Output = ()>>>>>>);

impl Home {
    /// Leaves the tunnel there.
    pub fn put(&self, tunnel: impl Future<Output = ()> + 'static) {
        *self.0.borrow_mut() = Some(Box::pin(tunnel));
    }
    fn take(&self) -> Option<Pin<Box<dyn Future<Output = ()>>>> {
        self.0.borrow_mut().take()
    }
}

impl fmt::Debug for Home {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Home")
    }
}

/// One end of a tunnel that begins as soon as the head of the answer is written (downstream) or was read (upstream).
pub struct PendingTunnel {
    on: hyper::upgrade::OnUpgrade,
    guard: Guard,
    home: Option<Home>,
}

/// Something that lives exactly as long as a tunnel.
type Guard = Option<Box<dyn std::any::Any>>;

impl PendingTunnel {
    /// From the codec's handle.
    pub fn new(on: hyper::upgrade::OnUpgrade) -> Self {
        Self { on, guard: None, home: None }
    }
    /// The same; it becomes all of its connection.
    #[must_use]
    fn at(self, home: Home) -> Self {
        Self { home: Some(home), ..self }
    }
    /// Where it is to be served, when it becomes all of its connection.
    pub fn take_home(&mut self) -> Option<Home> {
        self.home.take()
    }
    /// The same; `guard` is dropped when the tunnel ends.
    #[must_use]
    pub fn guarded(self, guard: impl std::any::Any) -> Self {
        Self { guard: Some(Box::new(guard)), ..self }
    }
    /// Waits for the tunnel to begin.
    ///
    /// # Errors
    /// When the connection ends before.
    pub async fn open(self) -> Result<Tunnel, BodyError> {
        let io = self.on.await.map_err(|e| body_error(&e))?;
        Ok(Tunnel { io: TokioIo::new(io), broken: false, _guard: self.guard })
    }
}

impl fmt::Debug for PendingTunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PendingTunnel")
    }
}

/// Bytes of an upgraded connection or a CONNECT stream.
pub struct Tunnel {
    io: TokioIo<hyper::upgrade::Upgraded>,
    broken: bool,
    _guard: Guard,
}

impl Tunnel {
    /// It has met an error.
    pub fn is_broken(&self) -> bool {
        self.broken
    }
    fn note<T>(&mut self, done: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        self.broken |= matches!(done, Poll::Ready(Err(_)));
        done
    }
}

impl fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tunnel")
    }
}

impl AsyncRead for Tunnel {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let done = Pin::new(&mut self.io).poll_read(cx, buf);
        self.note(done)
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let done = Pin::new(&mut self.io).poll_write(cx, buf);
        self.note(done)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let done = Pin::new(&mut self.io).poll_flush(cx);
        self.note(done)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let done = Pin::new(&mut self.io).poll_shutdown(cx);
        self.note(done)
    }
}
