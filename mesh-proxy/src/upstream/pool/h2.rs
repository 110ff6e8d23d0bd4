//! HTTP/2 towards upstreams: many requests at a time, up to what we and the peer allow; more connections beyond that.
//! One of the few files that may name hyper and h2.

use std::{
    cell::{Cell, RefCell},
    fmt,
    rc::{Rc, Weak},
    task::Poll,
};

use http::{HeaderValue, Method, Request, StatusCode, Uri, Version, header};
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::task::AbortHandle;

use super::{
    Lease, Pool, Sent,
    conn::{Conn, Life, drive},
    hop_by_hop,
};
use crate::{
    http::{
        message::{Body, RequestHead, ResponseHead, Scheme},
        server::h1::{Incoming, PendingTunnel},
    },
    upstream::{ErrorKind, UpstreamError, connect::UpstreamIo},
};

/// Window of a connection unless configured: several streams at full speed.
const CONNECTION_WINDOW: u32 = 16 << 20;
/// Largest window that HTTP/2 knows.
const MAX_WINDOW: u32 = (1 << 31) - 1;
/// Largest frame that we take; larger ones cost fewer wake-ups.
const FRAME: u32 = 64 << 10;
/// Bytes of header fields in an answer's head.
const MAX_HEAD: u32 = 64 << 10;
/// What is read ahead for a slow reader, and sent ahead for a slow peer.
const SEND_BUFFER: usize = 256 << 10;

/// A connection.
pub(super) struct H2 {
    pub(super) conn: Rc<Conn>,
    pool: Weak<Pool>,
    sender: RefCell<Option<SendRequest<Body>>>,
    /// What we allow.
    limit: u32,
    /// What the peer allows.
    peer_limit: Cell<u32>,
    /// It allows none. One request waits for it to allow one all the same.
    shut: Cell<bool>,
    extended_connect: Cell<bool>,
}

impl fmt::Debug for H2 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("H2")
            .field("id", &self.conn.info.id)
            .field("active", &self.conn.active())
            .finish_non_exhaustive()
    }
}

/// The right to open one stream.
#[derive(Debug)]
pub(super) struct H2Lease {
    h2: Rc<H2>,
}

impl Drop for H2Lease {
    fn drop(&mut self) {
        // Who lets no stream in is not asked again: the next request may find somebody else behind the address.
        if self.h2.shut.get() {
            self.h2.conn.end(Life::Retiring);
        }
        self.h2.conn.finish();
        if let Some(pool) = self.h2.pool.upgrade() {
            pool.serve();
        }
    }
}

/// Runs what the codec spawns on this thread; remembers the first, which is the connection itself.
#[derive(Clone, Default)]
struct Local {
    first: Rc<RefCell<Option<AbortHandle>>>,
}

impl<F: Future + 'static> hyper::rt::Executor<F> for Local {
    fn execute(&self, future: F) {
        let handle = tokio::task::spawn_local(future);
        self.first.borrow_mut().get_or_insert_with(|| handle.abort_handle());
    }
}

/// Begins to speak HTTP/2.
pub(super) async fn open(io: UpstreamIo, conn: Rc<Conn>, pool: &Rc<Pool>) -> Result<Rc<H2>, UpstreamError> {
    let http = &pool.http;
    let exec = Local::default();
    let mut builder = Builder::new(exec.clone());
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(http.initial_stream_window.unwrap_or(pool.buffer_limit).clamp(65_535, MAX_WINDOW))
        .initial_connection_window_size(
            http.initial_connection_window.unwrap_or(CONNECTION_WINDOW).clamp(65_535, MAX_WINDOW),
        )
        .max_frame_size(FRAME)
        .max_header_list_size(MAX_HEAD)
        .max_send_buf_size(SEND_BUFFER);
    if let Some((interval, timeout)) = http.keepalive.filter(|(interval, _)| !interval.is_zero()) {
        builder.keep_alive_interval(interval).keep_alive_timeout(timeout).keep_alive_while_idle(true);
    }
    let (sender, connection) = builder
        .handshake::<_, Body>(TokioIo::new(io))
        .await
        .map_err(|e| UpstreamError::new(ErrorKind::ConnectFailure, e.to_string()).at(conn.info.remote))?;
    conn.stats.upstream_cx_http2_total.inc();
    let h2 = Rc::new(H2 {
        conn: conn.clone(),
        pool: Rc::downgrade(pool),
        sender: RefCell::new(Some(sender)),
        limit: http.max_concurrent_streams.unwrap_or(u32::MAX).max(1),
        peer_limit: Cell::new(bounded(connection.current_max_send_streams())),
        shut: Cell::new(connection.current_max_send_streams() == 0),
        extended_connect: Cell::new(connection.is_extended_connect_protocol_enabled()),
    });
    let driven = h2.clone();
    pool.add(&conn);
    tokio::task::spawn_local(async move {
        let killed = {
            let mut connection = std::pin::pin!(connection);
            let mut closing = false;
            drive(&driven.conn, |cx| {
                if closing {
                    return Poll::Pending;
                }
                closing = connection.as_mut().poll(cx).is_ready()
                    || driven.sender.borrow().as_ref().is_some_and(SendRequest::is_closed);
                if closing {
                    // After GOAWAY streams in flight go on in the codec's own task.
                    driven.conn.end(Life::Retiring);
                    return Poll::Pending;
                }
                driven.extended_connect.set(connection.is_extended_connect_protocol_enabled());
                driven.shut.set(connection.current_max_send_streams() == 0);
                let limit = bounded(connection.current_max_send_streams());
                if limit > driven.peer_limit.replace(limit)
                    && let Some(pool) = driven.pool.upgrade()
                {
                    pool.serve();
                }
                Poll::Pending
            })
            .await
        };
        drop(driven.sender.borrow_mut().take());
        if killed && let Some(task) = exec.first.borrow_mut().take() {
            task.abort();
        }
        if let Some(pool) = driven.pool.upgrade() {
            pool.forget_streams(&driven);
            pool.remove(&driven.conn);
        }
    });
    Ok(h2)
}

fn bounded(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX).max(1)
}

impl H2 {
    /// Streams that may be open at once.
    pub(super) fn capacity(&self) -> u32 {
        self.limit.min(self.peer_limit.get())
    }
    /// The right to open a stream, when one more may be.
    pub(super) fn lease(self: &Rc<Self>) -> Option<H2Lease> {
        let open = self.conn.life() == Life::Open
            && self.conn.active() < self.capacity()
            && self.sender.borrow().as_ref().is_some_and(|s| !s.is_closed());
        open.then(|| {
            self.conn.begin();
            H2Lease { h2: self.clone() }
        })
    }
}

impl H2Lease {
    /// Sends the request.
    pub(super) async fn send(self, head: RequestHead, body: Body) -> Sent {
        let conn = self.h2.conn.clone();
        let reused = conn.requests() > 0;
        let failed = |e: UpstreamError| Sent::Failed(e.at(conn.info.remote));
        let sender = self.h2.sender.borrow().clone();
        let Some(mut sender) = sender else { return Sent::Unsent(head, body) };
        let upgrade = head.upgrade.is_some();
        let wants_tunnel = head.wants_tunnel();
        if upgrade && !self.h2.extended_connect.get() && !self.settings(&mut sender).await {
            return failed(UpstreamError::new(ErrorKind::InvalidRequest, "upstream takes no extended CONNECT"));
        }
        let keep = (head.method.clone(), head.scheme, head.authority.clone(), head.target.clone());
        let (version, protocol) = (head.version, head.upgrade.clone());
        let alone = http_body::Body::is_end_stream(&body);
        let request = match request(head, body) {
            Ok(r) => r,
            Err(e) => return failed(e),
        };
        conn.count_request();
        match sender.try_send_request(request).await {
            Ok(mut response) => {
                let tunnel = wants_tunnel && response.status().is_success();
                let tunnel = tunnel.then(|| PendingTunnel::new(hyper::upgrade::on(&mut response)));
                let (parts, incoming) = response.into_parts();
                let mut headers = parts.headers;
                hop_by_hop(&mut headers);
                let head = ResponseHead {
                    // An upgrade is answered alike in all versions.
                    status: if tunnel.is_some() && upgrade { StatusCode::SWITCHING_PROTOCOLS } else { parts.status },
                    headers,
                    version: Version::HTTP_2,
                    tunnel,
                    connection: Some(conn.info.clone()),
                };
                Sent::Answered(Box::new(head), Incoming::http2(incoming, alone), Lease::H2(self))
            }
            Err(mut e) => match e.take_message() {
                Some(request) => {
                    let (parts, body) = request.into_parts();
                    let (method, scheme, authority, target) = keep;
                    let headers = parts.headers;
                    conn.end(Life::Retiring);
                    let head = RequestHead { method, scheme, authority, target, headers, version, upgrade: protocol };
                    Sent::Unsent(head, body)
                }
                None => {
                    let e = failure(e.error()).at(conn.info.remote);
                    Sent::Failed(e.started(reused))
                }
            },
        }
    }

    /// Waits a moment for the peer's settings, which say whether it takes extended CONNECT.
    async fn settings(&self, sender: &mut SendRequest<Body>) -> bool {
        if sender.ready().await.is_err() {
            return false;
        }
        // Who has answered something has sent them.
        let looks = if self.h2.conn.requests() > 0 { 2 } else { 20 };
        for _ in 0..looks {
            // They are read by another task than the one that looks at them.
            self.h2.conn.wake();
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            if self.h2.extended_connect.get() {
                return true;
            }
        }
        false
    }
}

fn request(head: RequestHead, body: Body) -> Result<Request<Body>, UpstreamError> {
    let grpc = head.is_grpc();
    let RequestHead { method, scheme, authority, target, mut headers, upgrade, .. } = head;
    let unusable = || UpstreamError::new(ErrorKind::InvalidRequest, "authority cannot be sent over HTTP/2");
    let authority = http::uri::Authority::try_from(authority.as_str()).map_err(|_| unusable())?;
    let mut uri = http::uri::Parts::default();
    uri.authority = Some(authority);
    if method != Method::CONNECT || upgrade.is_some() {
        uri.scheme = Some(match scheme {
            Scheme::Http => http::uri::Scheme::HTTP,
            Scheme::Https => http::uri::Scheme::HTTPS,
        });
        uri.path_and_query = Some(target);
    }
    headers.remove(header::HOST);
    if grpc {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    let mut request = Request::new(body);
    *request.method_mut() = if upgrade.is_some() { Method::CONNECT } else { method };
    *request.uri_mut() = Uri::from_parts(uri).map_err(|_| unusable())?;
    *request.version_mut() = Version::HTTP_2;
    *request.headers_mut() = headers;
    if let Some(protocol) = upgrade {
        let name = protocol.to_str().map_err(|_| unusable())?;
        request.extensions_mut().insert(hyper::ext::Protocol::from(name));
    }
    Ok(request)
}

/// What an error of the codec means.
fn failure(e: &hyper::Error) -> UpstreamError {
    if super::is_request_body(e) {
        return UpstreamError::new(ErrorKind::RequestBody, e.to_string());
    }
    let mut source = std::error::Error::source(e);
    while let Some(cause) = source {
        if let Some(h2) = cause.downcast_ref::<h2::Error>() {
            return of_h2(h2);
        }
        source = cause.source();
    }
    UpstreamError::new(ErrorKind::ConnectionTermination, "")
}

fn of_h2(e: &h2::Error) -> UpstreamError {
    let reason = e.reason();
    let kind = if e.is_io() {
        ErrorKind::ConnectionTermination
    } else if reason == Some(h2::Reason::REFUSED_STREAM)
        || (e.is_go_away() && e.is_remote() && reason == Some(h2::Reason::NO_ERROR))
    {
        // GOAWAY without an error fails only streams that the peer says it has not looked at.
        ErrorKind::RefusedStream
    } else if !e.is_remote() && (e.is_library() || e.is_go_away()) {
        ErrorKind::Protocol
    } else if e.is_go_away() {
        ErrorKind::ConnectionTermination
    } else {
        ErrorKind::RemoteReset
    };
    UpstreamError::new(kind, reason.map_or(String::new(), |r| r.description().to_owned()))
}
