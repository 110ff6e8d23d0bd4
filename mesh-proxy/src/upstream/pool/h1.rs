//! HTTP/1.1 towards upstreams: one request at a time. A connection is used again when the request was complete before
//! its answer was.
//! One of the few files that may name hyper.

use std::{
    cell::{Cell, RefCell},
    fmt,
    rc::{Rc, Weak},
    task::Poll,
};

use http::{HeaderValue, Method, Request, StatusCode, Uri, header};
use hyper::client::conn::http1::{Builder, SendRequest};
use hyper_util::rt::TokioIo;

use super::{
    Lease, Pool, Sent,
    conn::{Conn, Life, drive},
    hop_by_hop,
};
use crate::{
    http::{
        message::{Authority, Body, RequestHead, ResponseHead},
        server::h1::{Incoming, PendingTunnel},
    },
    upstream::{ErrorKind, UpstreamError, connect::UpstreamIo},
};

/// Largest head of an answer, and with it the read buffer.
const MAX_HEAD: usize = 64 << 10;
/// Header fields in an answer's head.
const MAX_HEADERS: usize = 200;

/// A connection.
pub(super) struct H1 {
    pub(super) conn: Rc<Conn>,
    pool: Weak<Pool>,
    /// Comes back here when the answer is complete but the codec is not yet ready for the next request.
    returning: RefCell<Option<SendRequest<Body>>>,
    dead: Cell<bool>,
}

impl fmt::Debug for H1 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("H1").field("id", &self.conn.info.id).finish_non_exhaustive()
    }
}

/// The right to send one request over a connection that nobody else uses.
pub(super) struct H1Lease {
    h1: Rc<H1>,
    sender: Option<SendRequest<Body>>,
    stage: Stage,
}

/// How far a lease was used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Unused,
    /// The request is (partly) sent, the answer not complete.
    Busy,
    Returned,
}

impl fmt::Debug for H1Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("H1Lease").field("id", &self.h1.conn.info.id).field("stage", &self.stage).finish()
    }
}

impl Drop for H1Lease {
    fn drop(&mut self) {
        match (self.stage, self.sender.take()) {
            (Stage::Returned, _) => {}
            (Stage::Unused, Some(sender)) => self.h1.give_back(sender),
            (_, sender) => {
                // Given up in the middle: nobody can use this connection again.
                drop(sender);
                self.h1.conn.end(Life::Killed);
                self.h1.conn.finish();
            }
        }
    }
}

/// A connection waiting for its next request.
#[derive(Debug)]
pub(super) struct Idle {
    h1: Rc<H1>,
    sender: SendRequest<Body>,
}

impl Idle {
    pub(super) fn into_lease(self) -> Option<H1Lease> {
        let usable = self.h1.conn.life() == Life::Open && !self.h1.dead.get() && self.sender.is_ready();
        usable.then(|| {
            self.h1.conn.begin();
            H1Lease { h1: self.h1, sender: Some(self.sender), stage: Stage::Unused }
        })
    }
    pub(super) fn conn(&self) -> &Rc<Conn> {
        &self.h1.conn
    }
    fn is(&self, h1: &Rc<H1>) -> bool {
        Rc::ptr_eq(&self.h1, h1)
    }
}

/// Begins to speak HTTP/1.1.
pub(super) async fn open(io: UpstreamIo, conn: Rc<Conn>, pool: &Rc<Pool>) -> Result<H1Lease, UpstreamError> {
    let (sender, connection) = Builder::new()
        .max_buf_size(MAX_HEAD.max(8192))
        .max_headers(MAX_HEADERS)
        .handshake::<_, Body>(TokioIo::new(io))
        .await
        .map_err(|e| UpstreamError::new(ErrorKind::ConnectFailure, e.to_string()).at(conn.info.remote))?;
    conn.stats.upstream_cx_http1_total.inc();
    let h1 = Rc::new(H1 {
        conn: conn.clone(),
        pool: Rc::downgrade(pool),
        returning: RefCell::new(None),
        dead: Cell::new(false),
    });
    conn.begin();
    let driven = h1.clone();
    pool.add(&conn);
    tokio::task::spawn_local(async move {
        {
            let mut connection = std::pin::pin!(connection.with_upgrades());
            drive(&driven.conn, |cx| {
                let ended = connection.as_mut().poll(cx).is_ready();
                let back = driven.returning.borrow_mut().take();
                if let Some(mut sender) = back {
                    match sender.poll_ready(cx) {
                        Poll::Ready(Ok(())) => driven.checkin(sender),
                        Poll::Ready(Err(_)) => driven.conn.finish(),
                        // The answer is complete, the request is not: what is left of it goes out, then the
                        // connection ends. A peer that answers so early as a rule closes soon.
                        Poll::Pending => {
                            driven.conn.end(Life::Retiring);
                            *driven.returning.borrow_mut() = Some(sender);
                        }
                    }
                }
                if ended { Poll::Ready(()) } else { Poll::Pending }
            })
            .await;
            driven.dead.set(true);
        }
        if driven.returning.borrow_mut().take().is_some() {
            driven.conn.finish();
        }
        if let Some(pool) = driven.pool.upgrade() {
            pool.forget_idle(|idle| idle.is(&driven));
            pool.remove(&driven.conn);
        }
    });
    Ok(H1Lease { h1, sender: Some(sender), stage: Stage::Unused })
}

impl H1 {
    fn checkin(self: &Rc<Self>, sender: SendRequest<Body>) {
        self.conn.finish();
        if self.conn.life() != Life::Open || self.dead.get() {
            return;
        }
        if let Some(pool) = self.pool.upgrade() {
            pool.put_idle(Idle { h1: self.clone(), sender });
        }
    }
    fn give_back(self: &Rc<Self>, sender: SendRequest<Body>) {
        if self.dead.get() || sender.is_closed() {
            self.conn.finish();
        } else if sender.is_ready() {
            self.checkin(sender);
        } else {
            *self.returning.borrow_mut() = Some(sender);
            self.conn.wake();
        }
    }
}

impl H1Lease {
    /// The answer is complete: the connection may be used again.
    pub(super) fn complete(mut self) {
        if let Some(sender) = self.sender.take() {
            self.stage = Stage::Returned;
            self.h1.give_back(sender);
        }
    }

    /// Sends the request.
    pub(super) async fn send(mut self, head: RequestHead, body: Body) -> Sent {
        let conn = self.h1.conn.clone();
        let reused = conn.requests() > 0;
        let wants_tunnel = head.wants_tunnel();
        let connect = head.method == Method::CONNECT && head.upgrade.is_none();
        // What a request that comes back unsent needs to be whole again.
        let keep = (head.scheme, head.authority.clone(), head.target.clone(), head.version, head.upgrade.clone());
        let request = match request(head, body, connect) {
            Ok(r) => r,
            Err(e) => return Sent::Failed(e.at(conn.info.remote)),
        };
        let Some(mut sender) = self.sender.take() else {
            return Sent::Failed(UpstreamError::new(ErrorKind::ConnectionTermination, "").at(conn.info.remote));
        };
        self.stage = Stage::Busy;
        conn.count_request();
        match sender.try_send_request(request).await {
            Ok(mut response) => {
                let tunnel = match response.status() {
                    StatusCode::SWITCHING_PROTOCOLS => true,
                    s => connect && s.is_success(),
                };
                if tunnel && !wants_tunnel {
                    let e = UpstreamError::new(ErrorKind::Protocol, "upgrade that was not asked for");
                    return Sent::Failed(e.at(conn.info.remote).started(reused));
                }
                let tunnel = tunnel.then(|| PendingTunnel::new(hyper::upgrade::on(&mut response)));
                let (parts, incoming) = response.into_parts();
                let mut headers = parts.headers;
                let upgrade = if tunnel.is_some() { headers.remove(header::UPGRADE) } else { None };
                hop_by_hop(&mut headers);
                if let Some(value) = upgrade {
                    headers.insert(header::UPGRADE, value);
                }
                let head = ResponseHead {
                    status: parts.status,
                    headers,
                    version: parts.version,
                    tunnel,
                    connection: Some(conn.info.clone()),
                };
                self.sender = Some(sender);
                Sent::Answered(Box::new(head), Incoming::http1(incoming), Lease::H1(self))
            }
            Err(mut e) => match e.take_message() {
                Some(request) => {
                    let (mut parts, body) = request.into_parts();
                    for name in [header::HOST, header::CONNECTION, header::UPGRADE] {
                        parts.headers.remove(name);
                    }
                    let (scheme, authority, target, version, upgrade) = keep;
                    let head = RequestHead {
                        method: parts.method,
                        scheme,
                        authority,
                        target,
                        headers: parts.headers,
                        version,
                        upgrade,
                    };
                    Sent::Unsent(head, body)
                }
                None => Sent::Failed(failure(e.error()).at(conn.info.remote).started(reused)),
            },
        }
    }
}

fn request(head: RequestHead, body: Body, connect: bool) -> Result<Request<Body>, UpstreamError> {
    let RequestHead { method, authority, target, mut headers, upgrade, .. } = head;
    let uri = if connect { authority_form(&authority)? } else { Uri::from(target) };
    // What HTTP/2 asks for by extended CONNECT, HTTP/1.1 asks for by GET.
    let method = if upgrade.is_some() && method == Method::CONNECT { Method::GET } else { method };
    headers.insert(header::HOST, authority.into_value());
    if let Some(protocol) = upgrade {
        if protocol.as_bytes().eq_ignore_ascii_case(b"websocket") && !headers.contains_key(header::SEC_WEBSOCKET_KEY) {
            headers.insert(header::SEC_WEBSOCKET_KEY, websocket_key());
        }
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, protocol);
    }
    let mut request = Request::new(body);
    *request.method_mut() = method;
    *request.uri_mut() = uri;
    *request.headers_mut() = headers;
    Ok(request)
}

fn authority_form(authority: &Authority) -> Result<Uri, UpstreamError> {
    let unusable = || UpstreamError::new(ErrorKind::InvalidRequest, "CONNECT without a usable authority");
    let authority = http::uri::Authority::try_from(authority.as_str()).map_err(|_| unusable())?;
    Uri::builder().authority(authority).build().map_err(|_| unusable())
}

fn websocket_key() -> HeaderValue {
    use base64::Engine as _;
    let key = base64::engine::general_purpose::STANDARD.encode(rand::random::<[u8; 16]>());
    HeaderValue::try_from(key).unwrap_or(HeaderValue::from_static("AAAAAAAAAAAAAAAAAAAAAA=="))
}

/// What an error of the codec means.
fn failure(e: &hyper::Error) -> UpstreamError {
    if super::is_request_body(e) {
        return UpstreamError::new(ErrorKind::RequestBody, e.to_string());
    }
    if e.is_parse() || e.is_parse_too_large() {
        return UpstreamError::new(ErrorKind::Protocol, e.to_string());
    }
    UpstreamError::new(ErrorKind::ConnectionTermination, "")
}
