//! HTTP/1 on hyper: the wire side of messages. One of the few files that may name hyper.

use std::{
    convert::Infallible,
    fmt, io,
    pin::{Pin, pin},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, Response, header};
use http_body::{Frame, SizeHint};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{Client, service};
use crate::{
    drain,
    http::message::{Body, BodyError},
    net,
};

/// Serves HTTP/1 on a connection. Draining: the answer in flight carries `connection: close`, an idle connection is
/// closed at once.
pub(super) async fn serve(client: Client, io: net::Io, drain: drain::Watch) {
    let manager = client.live.load_full();
    let config = &manager.config;
    let times = &config.timeouts;
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .keep_alive(true)
        .half_close(true)
        .max_headers(usize::try_from(config.max_headers).unwrap_or(100).max(1))
        .max_buf_size(usize::try_from(config.max_request_headers_bytes).unwrap_or(64 << 10).max(8192))
        .auto_date_header(false);
    // Also how long a connection may idle between requests.
    let head = if times.request_headers.is_zero() { times.idle } else { times.request_headers };
    if !head.is_zero() {
        builder.header_read_timeout(head);
    }
    let draining = drain.clone();
    let service = hyper::service::service_fn(move |mut request: Request<hyper::body::Incoming>| {
        let session = client.session();
        let draining = draining.clone();
        async move {
            let upgrade = request.headers().contains_key(header::UPGRADE) || request.method() == Method::CONNECT;
            let tunnel = upgrade.then(|| PendingTunnel::new(hyper::upgrade::on(&mut request)));
            let request = request.map(Body::from);
            let mut response = service::serve(session, request, tunnel, false).await;
            if draining.is_draining() && response.status() != http::StatusCode::SWITCHING_PROTOCOLS {
                response.headers_mut().insert(header::CONNECTION, http::HeaderValue::from_static("close"));
            }
            Ok::<Response<Body>, Infallible>(response)
        }
    });
    let mut connection = pin!(builder.serve_connection(TokioIo::new(io), service).with_upgrades());
    let life = times_max(&drain, times.max_connection);
    tokio::select! {
        result = connection.as_mut() => note(result),
        () = life => {
            connection.as_mut().graceful_shutdown();
            note(connection.await);
        }
    }
}

/// Resolves when the connection is to take no more requests.
async fn times_max(drain: &drain::Watch, most: Duration) {
    if most.is_zero() {
        drain.draining().await;
    } else {
        tokio::select! {
            () = drain.draining() => {}
            () = tokio::time::sleep(most) => {}
        }
    }
}

fn note(result: Result<(), hyper::Error>) {
    if let Err(error) = result {
        tracing::debug!(target: "http1", "connection ended: {error}");
    }
}

/// A body that is read from a connection, of a client or of an upstream.
pub struct Incoming(hyper::body::Incoming);

impl From<hyper::body::Incoming> for Body {
    fn from(body: hyper::body::Incoming) -> Self {
        if http_body::Body::is_end_stream(&body) { Body::Empty } else { Body::Incoming(Incoming(body)) }
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
        Pin::new(&mut self.get_mut().0).poll_frame(cx).map_err(|e| body_error(&e))
    }
    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }
    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}

/// One end of a tunnel that begins as soon as the head of the answer is written (downstream) or was read (upstream).
pub struct PendingTunnel {
    on: hyper::upgrade::OnUpgrade,
    guard: Guard,
}

/// Something that lives exactly as long as a tunnel.
type Guard = Option<Box<dyn std::any::Any>>;

impl PendingTunnel {
    /// From the codec's handle.
    pub fn new(on: hyper::upgrade::OnUpgrade) -> Self {
        Self { on, guard: None }
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
        Ok(Tunnel { io: TokioIo::new(io), _guard: self.guard })
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
    _guard: Guard,
}

impl fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tunnel")
    }
}

impl AsyncRead for Tunnel {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, buf)
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}
