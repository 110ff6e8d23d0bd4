//! Upstream connections of one worker: which one a request gets, when a new one is made, who waits. Knows no protocol
//! (see `h1`, `h2`) and shares nothing with other workers but the books of cluster and endpoint.

mod body;
mod conn;
mod h1;
mod h2;

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, VecDeque},
    error::Error,
    net::SocketAddr,
    rc::{Rc, Weak},
    sync::Arc,
    time::Duration,
};

use http::{HeaderMap, HeaderName, Version, header};
use mesh_api::model::{HttpUpstream, HttpVersionChoice, Name};
use smallvec::SmallVec;
use tokio::{
    sync::{Notify, oneshot},
    time::Instant,
};

use self::{
    body::{End, track},
    conn::{Conn, Life, RequestGuard},
    h1::{H1Lease, Idle},
    h2::{H2, H2Lease},
};
use super::{
    Cluster, Endpoint, ErrorKind, Outcome, Priority, UpstreamError,
    balance::ThreadRandom,
    connect::{ConnPermit, ConnectOptions, dial},
};
use crate::{
    http::{
        headers::{GRPC_STATUS, has_hop_by_hop},
        message::{Body, BodyError, RequestHead, ResponseHead},
    },
    tls::ClientTls,
};

/// How often what has changed around connections (removed endpoints, rotated certificates) is looked at.
const INSPECT_EVERY: Duration = Duration::from_secs(1);
/// Streams that a new HTTP/2 connection is expected to carry before its peer has said so.
const EXPECTED_STREAMS: usize = 100;
/// Times a request is handed to another connection because the first had closed before a byte was written.
const MAX_HANDOVERS: u32 = 4;
/// Times a request that waits follows to the pool that replaces its own.
const MAX_REPLACED: u32 = 8;

/// What sending may depend on beside the request itself.
#[derive(Debug, Clone, Copy, Default)]
pub struct SendOptions<'a> {
    /// Whose limits apply.
    pub priority: Priority,
    /// ALPN instead of the TLS context's (Istio's ALPN filter).
    pub alpn: Option<&'a [Name]>,
    /// Host that SNI and name checks follow when the TLS context says so; `None`: the request's authority.
    pub server_name: Option<&'a str>,
    /// Source and destination for a PROXY protocol header, when the cluster sends one.
    pub proxied: Option<(SocketAddr, SocketAddr)>,
    /// Told when the request has a connection.
    pub leased: Option<&'a Leased>,
}

/// The moment at which a request got a connection.
#[derive(Debug, Default)]
pub struct Leased {
    at: Cell<Option<Instant>>,
    told: Notify,
}

impl Leased {
    fn tell(&self) {
        self.at.set(Some(Instant::now()));
        self.told.notify_waiters();
    }
    /// Whether it got one.
    pub fn is_told(&self) -> bool {
        self.at.get().is_some()
    }
    /// Waits for it.
    pub async fn at(&self) -> Instant {
        loop {
            if let Some(at) = self.at.get() {
                return at;
            }
            self.told.notified().await;
        }
    }
}

/// Pools by endpoint.
#[derive(Debug, Default)]
pub struct Pools {
    inner: Rc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// By id of the endpoint's state; several where TLS, protocol or priority differ.
    pools: RefCell<HashMap<u64, SmallVec<[Rc<Pool>; 1]>>>,
    /// Every connection, also those of pools that are gone.
    conns: RefCell<Vec<Weak<Conn>>>,
    inspecting: Cell<bool>,
}

impl Pools {
    /// Empty.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sends a request to an endpoint and waits for the head of its answer. Circuit breakers, connecting, the choice of
    /// HTTP version, passive health checks and counters are taken care of; retries and timeouts are the caller's: to give
    /// up, drop the future (before the head) or the body (after it).
    ///
    /// A request that finds its connection closed before any byte of it was written goes to another connection by
    /// itself. When bytes were written, the error says so (`request_started`), and whether the connection had served
    /// earlier requests (`reused`).
    ///
    /// # Errors
    /// When no head arrived.
    pub async fn send(
        &self,
        cluster: &Arc<Cluster>,
        endpoint: &Arc<Endpoint>,
        head: RequestHead,
        body: Body,
        options: &SendOptions<'_>,
    ) -> Result<(ResponseHead, Body), UpstreamError> {
        let grpc = head.is_grpc();
        let (mut head, mut body, mut handovers, mut replaced) = (head, body, 0, 0);
        loop {
            let lease = {
                let host = options.server_name.unwrap_or_else(|| head.authority.host());
                let wanted = Wanted::new(cluster, endpoint, host, head.version, options);
                let pool = self.inner.pool(cluster, endpoint, &wanted);
                match pool.try_lease() {
                    Some(lease) => lease,
                    None => match pool.wait(cluster, endpoint, &wanted).await? {
                        Some(lease) => lease,
                        // The pool was replaced meanwhile.
                        None if replaced < MAX_REPLACED => {
                            replaced += 1;
                            continue;
                        }
                        None => {
                            let e = UpstreamError::new(ErrorKind::ConnectFailure, "pool closed");
                            return Err(e.at(endpoint.socket_addr()));
                        }
                    },
                }
            };
            let Some(guard) = RequestGuard::begin(cluster, endpoint, options.priority) else {
                return Err(UpstreamError::new(ErrorKind::Overflow, "").at(endpoint.socket_addr()));
            };
            if let Some(leased) = options.leased {
                leased.tell();
            }
            let sent = match lease {
                Lease::H1(lease) => lease.send(head, body).await,
                Lease::H2(lease) => lease.send(head, body).await,
            };
            match sent {
                Sent::Answered(answer, incoming, lease) => {
                    let end = End { lease, guard, cluster: cluster.clone(), endpoint: endpoint.clone(), grpc };
                    return Ok(answered(*answer, incoming, end));
                }
                Sent::Unsent(h, b) if handovers < MAX_HANDOVERS => {
                    (head, body) = (h, b);
                    handovers += 1;
                }
                Sent::Unsent(..) => {
                    let e = UpstreamError::new(ErrorKind::ConnectionTermination, "").at(endpoint.socket_addr());
                    cluster.report(endpoint, Outcome::Reset, &ThreadRandom);
                    return Err(e);
                }
                Sent::Failed(e) => {
                    if e.is_reset() {
                        endpoint.state.stats.rq_error.inc();
                        cluster.stats.upstream_rq_rx_reset.inc();
                        cluster.report(endpoint, Outcome::Reset, &ThreadRandom);
                        if e.kind == ErrorKind::Protocol {
                            cluster.stats.upstream_cx_protocol_error.inc();
                        }
                    }
                    return Err(e);
                }
            }
        }
    }

    /// Connections of this worker.
    pub fn connections(&self) -> usize {
        self.inner.conns.borrow().iter().filter(|c| c.strong_count() > 0).count()
    }
}

/// Books an answer and puts the end of the request behind its body.
fn answered(mut head: ResponseHead, body: Body, mut end: End) -> (ResponseHead, Body) {
    let status = head.status.as_u16();
    let counters = &end.endpoint.state.stats;
    if status < 500 {
        counters.rq_success.inc()
    } else {
        counters.rq_error.inc()
    }
    let in_head = !end.grpc || head.headers.contains_key(&GRPC_STATUS);
    if in_head || status != 200 {
        end.cluster.stats.codes.count(status);
        let outcome = if end.grpc { grpc_outcome(&head.headers, status) } else { Outcome::Status(status) };
        end.grpc = false;
        end.cluster.report(&end.endpoint, outcome, &ThreadRandom);
    }
    if let Some(tunnel) = head.tunnel.take() {
        head.tunnel = Some(tunnel.guarded(end));
        return (head, Body::Empty);
    }
    (head, track(body, end))
}

/// What a gRPC status means to passive health checks.
fn grpc_outcome(headers: &HeaderMap, status: u16) -> Outcome {
    let code = headers.get(&GRPC_STATUS).and_then(|v| v.to_str().ok()).and_then(|v| v.parse::<u32>().ok());
    Outcome::Status(match code {
        None => status,
        Some(0) => 200,
        Some(1) => 499,
        Some(3 | 9 | 11) => 400,
        Some(4) => 504,
        Some(5) => 404,
        Some(6 | 10) => 409,
        Some(7) => 403,
        Some(8) => 429,
        Some(12) => 501,
        Some(14) => 503,
        Some(16) => 401,
        Some(_) => 500,
    })
}

/// The right to send one request over some connection.
#[derive(Debug)]
enum Lease {
    H1(H1Lease),
    H2(H2Lease),
}

impl Lease {
    fn complete(self) {
        match self {
            Lease::H1(lease) => lease.complete(),
            Lease::H2(lease) => drop(lease),
        }
    }
}

/// How sending went.
enum Sent {
    Answered(Box<ResponseHead>, Body, Lease),
    /// Not a byte was written; here it is again.
    Unsent(RequestHead, Body),
    Failed(UpstreamError),
}

/// Which HTTP a pool speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wire {
    H1,
    H2,
    Alpn,
}

/// TLS handshakes at once a pool. They cost processor time on both sides: without a limit a burst of requests on a busy
/// machine makes so many that none ends in time, while the first few connections could have served them all.
const HANDSHAKES: usize = 16;

/// What connections of a pool have in common, as a request asks for it.
#[derive(Debug, Clone, Copy)]
struct Wanted<'a> {
    /// Connection settings of the cluster.
    settings: u64,
    /// TLS configuration.
    tls: Option<&'a Arc<ClientTls>>,
    /// Whom it trusts.
    generation: u64,
    wire: Wire,
    priority: Priority,
    alpn: Option<&'a [Name]>,
    server_name: Option<&'a str>,
    proxied: Option<(SocketAddr, SocketAddr)>,
}

/// The same, kept.
#[derive(Debug)]
struct Key {
    settings: u64,
    tls: Option<Arc<ClientTls>>,
    generation: u64,
    wire: Wire,
    priority: Priority,
    alpn: Option<Box<[Name]>>,
    server_name: Option<Box<str>>,
    proxied: Option<(SocketAddr, SocketAddr)>,
}

impl<'a> Wanted<'a> {
    fn new(
        cluster: &Cluster,
        endpoint: &'a Endpoint,
        host: &'a str,
        version: Version,
        options: &SendOptions<'a>,
    ) -> Wanted<'a> {
        let http = &cluster.config.http;
        let wire = match http.version {
            HttpVersionChoice::Http1 => Wire::H1,
            HttpVersionChoice::Http2 => Wire::H2,
            HttpVersionChoice::Downstream if version == Version::HTTP_2 => Wire::H2,
            HttpVersionChoice::Downstream => Wire::H1,
            HttpVersionChoice::Alpn if endpoint.tls.is_some() => Wire::Alpn,
            HttpVersionChoice::Alpn => Wire::H1,
        };
        let by_name = |tls: &crate::tls::ClientTls| http.auto_sni || http.auto_san_validation || tls.needs_host();
        Wanted {
            settings: cluster.settings,
            tls: endpoint.tls.as_ref(),
            generation: endpoint.tls.as_ref().map_or(0, |t| t.trust_generation()),
            wire,
            priority: options.priority,
            alpn: options.alpn.filter(|_| endpoint.tls.is_some()),
            server_name: endpoint.tls.as_ref().filter(|t| by_name(t)).map(|_| host),
            proxied: options.proxied.filter(|_| cluster.config.proxy_protocol.is_some()),
        }
    }
    fn key(&self) -> Key {
        Key {
            settings: self.settings,
            tls: self.tls.cloned(),
            generation: self.generation,
            wire: self.wire,
            priority: self.priority,
            alpn: self.alpn.map(Box::from),
            server_name: self.server_name.map(Box::from),
            proxied: self.proxied,
        }
    }
}

impl Key {
    /// The same but for what may have been renewed.
    fn is_like(&self, w: &Wanted<'_>) -> bool {
        self.wire == w.wire
            && self.priority == w.priority
            && self.alpn.as_deref() == w.alpn
            && self.server_name.as_deref() == w.server_name
            && self.proxied == w.proxied
    }
    /// Good for such a request: the same, or the same renewed (a request may hold on to an older version of its cluster,
    /// and must not push aside what newer ones use).
    fn serves(&self, w: &Wanted<'_>) -> bool {
        let same_tls = match (&self.tls, w.tls) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (None, None) => true,
            _ => false,
        };
        same_tls && self.settings >= w.settings && self.generation >= w.generation && self.is_like(w)
    }
}

impl Inner {
    fn pool(self: &Rc<Self>, cluster: &Arc<Cluster>, endpoint: &Arc<Endpoint>, wanted: &Wanted<'_>) -> Rc<Pool> {
        let mut pools = self.pools.borrow_mut();
        let list = pools.entry(endpoint.state.id).or_default();
        if let Some(pool) = list.iter().find(|p| p.key.serves(wanted)) {
            return pool.clone();
        }
        // What this one replaces takes no new requests; those in flight go on.
        list.retain(|p| {
            let replaced = p.key.is_like(wanted) && p.key.settings <= wanted.settings;
            if replaced {
                p.retire();
            }
            !replaced
        });
        let pool = Rc::new(Pool {
            key: wanted.key(),
            http: cluster.config.http.clone(),
            buffer_limit: cluster.config.per_connection_buffer_limit,
            idle: RefCell::default(),
            streams: RefCell::default(),
            conns: RefCell::default(),
            connecting: Cell::new(0),
            expected: Cell::new(1),
            waiting: RefCell::default(),
            retired: Cell::new(false),
            owner: Rc::downgrade(self),
        });
        if matches!(wanted.wire, Wire::H2) || endpoint.state.negotiated() == 2 && wanted.wire == Wire::Alpn {
            pool.expected.set(pool.streams_expected());
        }
        list.push(pool.clone());
        drop(pools);
        self.begin_inspecting();
        pool
    }

    fn begin_inspecting(self: &Rc<Self>) {
        if self.inspecting.replace(true) {
            return;
        }
        let inner = Rc::downgrade(self);
        tokio::task::spawn_local(async move {
            loop {
                tokio::time::sleep(INSPECT_EVERY).await;
                let Some(inner) = inner.upgrade() else { return };
                inner.inspect();
            }
        });
    }

    fn inspect(&self) {
        let conns: Vec<Rc<Conn>> = {
            let mut conns = self.conns.borrow_mut();
            conns.retain(|c| c.strong_count() > 0);
            conns.iter().filter_map(Weak::upgrade).collect()
        };
        for conn in conns {
            conn.inspect();
        }
        self.pools.borrow_mut().retain(|_, list| {
            list.retain(|p| !p.is_unused() || Rc::strong_count(p) > 1);
            !list.is_empty()
        });
    }
}

/// Connections of one kind to one endpoint.
#[derive(Debug)]
struct Pool {
    key: Key,
    http: HttpUpstream,
    buffer_limit: u32,
    /// HTTP/1.1 connections without a request, the last used one last.
    idle: RefCell<Vec<Idle>>,
    /// HTTP/2 connections.
    streams: RefCell<Vec<Rc<H2>>>,
    /// All connections.
    conns: RefCell<Vec<Rc<Conn>>>,
    /// Connections being made.
    connecting: Cell<usize>,
    /// Requests that each of these is expected to take.
    expected: Cell<usize>,
    waiting: RefCell<VecDeque<Waiter>>,
    retired: Cell<bool>,
    owner: Weak<Inner>,
}

#[derive(Debug)]
struct Waiter {
    tx: oneshot::Sender<Result<Lease, UpstreamError>>,
    dial: Rc<Dial>,
}

/// What a new connection is made with.
#[derive(Debug)]
struct Dial {
    cluster: Arc<Cluster>,
    endpoint: Arc<Endpoint>,
    priority: Priority,
    alpn: Option<Box<[Name]>>,
    server_name: Option<Box<str>>,
    proxied: Option<(SocketAddr, SocketAddr)>,
}

/// One request that waits.
struct Pending<'a>(&'a Cluster, Priority);

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        self.0.circuit.end_pending(self.1);
        self.0.stats.upstream_rq_pending_active.dec();
    }
}

impl Pool {
    fn try_lease(&self) -> Option<Lease> {
        if let Some(lease) = self.streams.borrow().iter().find_map(H2::lease) {
            return Some(Lease::H2(lease));
        }
        loop {
            let idle = self.idle.borrow_mut().pop()?;
            if let Some(lease) = idle.into_lease() {
                return Some(Lease::H1(lease));
            }
        }
    }

    /// Waits for a connection; `None`: the pool was retired, another one serves now.
    async fn wait(
        self: &Rc<Self>,
        cluster: &Arc<Cluster>,
        endpoint: &Arc<Endpoint>,
        wanted: &Wanted<'_>,
    ) -> Result<Option<Lease>, UpstreamError> {
        if !cluster.circuit.begin_pending(wanted.priority) {
            cluster.stats.upstream_rq_pending_overflow.inc();
            return Err(UpstreamError::new(ErrorKind::Overflow, "").at(endpoint.socket_addr()));
        }
        cluster.stats.upstream_rq_pending_total.inc();
        cluster.stats.upstream_rq_pending_active.inc();
        let pending = Pending(cluster, wanted.priority);
        let (tx, rx) = oneshot::channel();
        let key = &self.key;
        let dial = Rc::new(Dial {
            cluster: cluster.clone(),
            endpoint: endpoint.clone(),
            priority: wanted.priority,
            alpn: key.alpn.clone().or_else(|| fallback_alpn(endpoint, key.wire)),
            server_name: key.server_name.clone(),
            proxied: key.proxied,
        });
        self.waiting.borrow_mut().push_back(Waiter { tx, dial });
        self.grow();
        let result = rx.await;
        drop(pending);
        match result {
            Ok(Ok(lease)) => Ok(Some(lease)),
            Ok(Err(e)) => {
                cluster.stats.upstream_rq_pending_failure_eject.inc();
                Err(e)
            }
            Err(_) => Ok(None),
        }
    }

    /// Makes connections when more requests wait than those being made will take.
    fn grow(self: &Rc<Self>) {
        loop {
            let dial = {
                let mut waiting = self.waiting.borrow_mut();
                waiting.retain(|w| !w.tx.is_closed());
                let connecting = self.connecting.get();
                if waiting.len() <= connecting * self.expected.get() {
                    return;
                }
                if self.key.tls.is_some() && connecting >= HANDSHAKES {
                    return; // the next one begins when one of these ends
                }
                let Some(first) = waiting.front() else { return };
                first.dial.clone()
            };
            // Somebody must serve those who wait here, whatever other endpoints have in use.
            let none = self.connecting.get() == 0 && !self.conns.borrow().iter().any(|c| c.life() == Life::Open);
            let Some(permit) = ConnPermit::take(&dial.cluster, &dial.endpoint, dial.priority, none) else { return };
            self.connecting.set(self.connecting.get() + 1);
            let pool = self.clone();
            tokio::task::spawn_local(async move {
                let result = pool.connect(&dial, permit).await;
                pool.connecting.set(pool.connecting.get() - 1);
                match result {
                    Ok(()) => pool.serve(),
                    Err(e) => {
                        let timeout = e.kind == ErrorKind::ConnectTimeout;
                        let outcome = if timeout { Outcome::Timeout } else { Outcome::ConnectFailure };
                        dial.cluster.report(&dial.endpoint, outcome, &ThreadRandom);
                        pool.fail(&e);
                    }
                }
            });
        }
    }

    /// One new connection, ready for requests.
    async fn connect(self: &Rc<Self>, dial_to: &Dial, permit: ConnPermit) -> Result<(), UpstreamError> {
        let options = ConnectOptions {
            priority: dial_to.priority,
            server_name: dial_to.server_name.as_deref(),
            alpn: dial_to.alpn.as_deref(),
            proxied: dial_to.proxied,
        };
        let (io, mut info) = Box::pin(dial(&dial_to.cluster, &dial_to.endpoint, &options, permit)).await?;
        let h2 = match self.key.wire {
            Wire::H1 => false,
            Wire::H2 => true,
            Wire::Alpn => {
                let alpn = info.tls.as_ref().and_then(|t| t.alpn.as_deref());
                let h2 = matches!(alpn, Some("h2" | "istio-h2"));
                dial_to.endpoint.state.set_negotiated(if h2 { 2 } else { 1 });
                self.expected.set(if h2 { self.streams_expected() } else { 1 });
                h2
            }
        };
        if h2 {
            info.version = Version::HTTP_2;
        }
        let conn = Conn::new(&dial_to.cluster, &dial_to.endpoint, info);
        if h2 {
            let h2 = h2::open(io, conn, self).await?;
            self.streams.borrow_mut().push(h2);
        } else {
            // Dropping the unused lease puts the connection where those who wait find it.
            drop(h1::open(io, conn, self).await?);
        }
        Ok(())
    }

    fn streams_expected(&self) -> usize {
        let ours = self.http.max_concurrent_streams.map_or(usize::MAX, |n| n as usize);
        ours.clamp(1, EXPECTED_STREAMS)
    }

    /// Hands what is free to those who wait, first come first served.
    fn serve(self: &Rc<Self>) {
        loop {
            {
                let mut waiting = self.waiting.borrow_mut();
                while waiting.front().is_some_and(|w| w.tx.is_closed()) {
                    waiting.pop_front();
                }
                if waiting.is_empty() {
                    return;
                }
            }
            let Some(lease) = self.try_lease() else { break };
            let next = self.waiting.borrow_mut().pop_front();
            // A lease that nobody takes comes back by being dropped.
            match next {
                Some(waiter) => drop(waiter.tx.send(Ok(lease))),
                None => drop(lease),
            }
        }
        self.grow();
    }

    /// The endpoint cannot be reached: nobody waits on.
    fn fail(&self, e: &UpstreamError) {
        let waiting = std::mem::take(&mut *self.waiting.borrow_mut());
        for waiter in waiting {
            drop(waiter.tx.send(Err(e.clone())));
        }
    }

    fn put_idle(self: &Rc<Self>, idle: Idle) {
        if self.retired.get() {
            return idle.conn().end(Life::Retiring);
        }
        self.idle.borrow_mut().push(idle);
        if !self.waiting.borrow().is_empty() {
            self.serve();
        }
    }
    fn forget_idle(&self, is: impl Fn(&Idle) -> bool) {
        let gone: Option<Idle> = {
            let mut idle = self.idle.borrow_mut();
            idle.iter().position(is).map(|at| idle.remove(at))
        };
        drop(gone);
    }
    fn forget_streams(&self, h2: &Rc<H2>) {
        self.streams.borrow_mut().retain(|other| !Rc::ptr_eq(other, h2));
    }
    fn add(&self, conn: &Rc<Conn>) {
        self.conns.borrow_mut().push(conn.clone());
        if self.retired.get() {
            conn.end(Life::Retiring);
        }
        if let Some(owner) = self.owner.upgrade() {
            owner.conns.borrow_mut().push(Rc::downgrade(conn));
        }
    }
    /// A connection has ended; someone may have waited for it.
    fn remove(self: &Rc<Self>, conn: &Rc<Conn>) {
        self.conns.borrow_mut().retain(|other| !Rc::ptr_eq(other, conn));
        if !self.waiting.borrow().is_empty() {
            self.serve();
        }
    }
    /// Takes no new requests. Those that wait are sent away: no connection made here would ever serve them.
    fn retire(&self) {
        self.retired.set(true);
        let waiting = std::mem::take(&mut *self.waiting.borrow_mut());
        drop(waiting);
        for conn in self.conns.borrow().iter() {
            conn.end(Life::Retiring);
        }
    }
    fn is_unused(&self) -> bool {
        self.conns.borrow().is_empty() && self.connecting.get() == 0 && self.waiting.borrow().is_empty()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.retire();
    }
}

/// Protocols offered when neither the request nor the TLS context says which.
fn fallback_alpn(endpoint: &Endpoint, wire: Wire) -> Option<Box<[Name]>> {
    let tls = endpoint.tls.as_ref()?;
    if !tls.alpn().is_empty() {
        return None;
    }
    let names: &[&str] = match wire {
        Wire::H1 => &["http/1.1"],
        Wire::H2 => &["h2"],
        Wire::Alpn => &["h2", "http/1.1"],
    };
    Some(names.iter().map(|n| Name::from(*n)).collect())
}

/// Takes headers off that concern one connection only, and those that `connection` names.
fn hop_by_hop(headers: &mut HeaderMap) {
    if !has_hop_by_hop(headers) {
        return;
    }
    static KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
    static PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
    if headers.contains_key(header::CONNECTION) {
        let named: SmallVec<[HeaderName; 2]> = headers
            .get_all(header::CONNECTION)
            .iter()
            .filter_map(|v| v.to_str().ok())
            .flat_map(|v| v.split(','))
            .filter_map(|name| HeaderName::try_from(name.trim()).ok())
            .collect();
        for name in named {
            headers.remove(name);
        }
        headers.remove(header::CONNECTION);
    }
    for name in [&header::TRANSFER_ENCODING, &header::UPGRADE, &KEEP_ALIVE, &PROXY_CONNECTION] {
        headers.remove(name);
    }
}

/// Whether the failure comes from the body that was being sent.
fn is_request_body(e: &(dyn Error + 'static)) -> bool {
    let mut source = e.source();
    while let Some(cause) = source {
        if cause.is::<BodyError>() {
            return true;
        }
        source = cause.source();
    }
    false
}

#[cfg(test)]
mod tests;
