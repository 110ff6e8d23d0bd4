//! What every pooled connection is and how it ends: idle, too old, told to. One timer and one task a connection. Knows
//! no protocol.

use std::{
    cell::{Cell, RefCell},
    future::Future,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use tokio::time::{Instant, Sleep, sleep_until};

use crate::{
    http::message::UpstreamConnection,
    tls::ClientTls,
    upstream::{Cluster, Endpoint, circuit::Circuit, circuit::Priority, endpoint::EndpointState, stats::ClusterStats},
};

/// After a renewal of our certificate connections are replaced one by one within this time: all at once would be a storm
/// of handshakes just when requests need them.
const RENEW_WITHIN: Duration = Duration::from_secs(30);

/// What a connection may still do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Life {
    /// Takes requests.
    Open,
    /// Ends as soon as nothing is in flight.
    Retiring,
    /// Ends now.
    Killed,
}

/// Common to connections of all protocols.
#[derive(Debug)]
pub(super) struct Conn {
    pub(super) info: Rc<UpstreamConnection>,
    pub(super) endpoint: Arc<EndpointState>,
    pub(super) stats: Arc<ClusterStats>,
    close_count: u64,
    tls: Option<Arc<ClientTls>>,
    /// The last generation of its TLS context that was seen and under which the peer is (still) trusted.
    trusted: Cell<u64>,
    life: Cell<Life>,
    waker: RefCell<Option<Waker>>,
    idle_since: Cell<Instant>,
    /// Requests in flight.
    active: Cell<u32>,
    requests: Cell<u64>,
    max_requests: u64,
    idle_timeout: Duration,
    retire_at: Option<Instant>,
    /// Our certificate is another one now: a connection with the new one follows.
    renew_at: Cell<Option<Instant>>,
}

impl Conn {
    pub(super) fn new(cluster: &Cluster, endpoint: &Endpoint, info: UpstreamConnection) -> Rc<Self> {
        let http = &cluster.config.http;
        let now = Instant::now();
        Rc::new(Self {
            endpoint: endpoint.state.clone(),
            stats: cluster.stats.clone(),
            close_count: endpoint.state.close_count(),
            tls: endpoint.tls.clone(),
            trusted: Cell::new(info.tls.as_ref().map_or(0, |t| t.generation)),
            info: Rc::new(info),
            life: Cell::new(Life::Open),
            waker: RefCell::new(None),
            idle_since: Cell::new(now),
            active: Cell::new(0),
            requests: Cell::new(0),
            max_requests: http.max_requests_per_connection.filter(|n| *n > 0).map_or(u64::MAX, u64::from),
            idle_timeout: http.idle_timeout,
            renew_at: Cell::new(None),
            retire_at: http.max_connection_duration.filter(|d| !d.is_zero()).map(|d| now + d),
        })
    }

    pub(super) fn life(&self) -> Life {
        self.life.get()
    }
    /// Moves on, never back, and lets the connection's task see it.
    pub(super) fn end(&self, life: Life) {
        if self.life.get() < life {
            self.life.set(life);
            self.wake();
        }
    }
    /// Polls the connection's task soon.
    pub(super) fn wake(&self) {
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }
    pub(super) fn active(&self) -> u32 {
        self.active.get()
    }
    /// Requests that were begun.
    pub(super) fn requests(&self) -> u64 {
        self.requests.get()
    }
    /// A lease was given.
    pub(super) fn begin(&self) {
        self.active.set(self.active.get() + 1);
    }
    /// A lease came back.
    pub(super) fn finish(&self) {
        self.active.set(self.active.get().saturating_sub(1));
        if self.active.get() == 0 {
            self.idle_since.set(Instant::now());
            if self.life.get() != Life::Open {
                self.wake();
            }
        }
    }
    /// A request is sent. The last one that the connection may carry retires it.
    pub(super) fn count_request(&self) {
        self.requests.set(self.requests.get() + 1);
        if self.requests.get() >= self.max_requests {
            self.stats.upstream_cx_max_requests.inc();
            self.end(Life::Retiring);
        }
    }
    /// Looks at what may have changed around the connection since it was made.
    pub(super) fn inspect(&self) {
        if self.endpoint.close_count() != self.close_count {
            return self.end(Life::Killed);
        }
        if self.endpoint.is_removed() {
            self.end(Life::Retiring);
        }
        let (Some(tls), Some(peer)) = (&self.tls, &self.info.tls) else { return };
        let now = tls.generation();
        if now != 0 && now != self.trusted.get() {
            self.trusted.set(now);
            if tls.still_trusted(peer).is_err() {
                return self.end(Life::Killed);
            }
            if self.renew_at.get().is_none() {
                self.renew_at.set(Some(Instant::now() + RENEW_WITHIN.mul_f64(rand::random())));
            }
        }
        if self.renew_at.get().is_some_and(|at| at <= Instant::now()) {
            self.end(Life::Retiring);
        }
    }

    fn deadline(&self) -> Option<Instant> {
        let idle = (!self.idle_timeout.is_zero()).then(|| match self.active.get() {
            0 => self.idle_since.get() + self.idle_timeout,
            _ => Instant::now() + self.idle_timeout,
        });
        let age = self.retire_at.filter(|_| self.life.get() == Life::Open);
        match (idle, age) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }
}

/// Drives a connection to its end: `poll` polls it, once for every event, and is ready when it has ended by itself.
/// Whether it was told to end at once.
pub(super) async fn drive(conn: &Conn, mut poll: impl FnMut(&mut Context<'_>) -> Poll<()>) -> bool {
    let mut timer: Option<Pin<Box<Sleep>>> = conn.deadline().map(|at| Box::pin(sleep_until(at)));
    std::future::poll_fn(|cx| {
        {
            let mut waker = conn.waker.borrow_mut();
            if !waker.as_ref().is_some_and(|w| w.will_wake(cx.waker())) {
                *waker = Some(cx.waker().clone());
            }
        }
        if conn.life.get() == Life::Killed {
            return Poll::Ready(());
        }
        if poll(cx).is_ready() {
            return Poll::Ready(());
        }
        while let Some(sleep) = &mut timer {
            if sleep.as_mut().poll(cx).is_pending() {
                break;
            }
            let now = Instant::now();
            if conn.life.get() == Life::Open && conn.retire_at.is_some_and(|at| at <= now) {
                conn.stats.upstream_cx_max_duration_reached.inc();
                conn.life.set(Life::Retiring);
            }
            if conn.active.get() == 0
                && !conn.idle_timeout.is_zero()
                && conn.idle_since.get() + conn.idle_timeout <= now
            {
                conn.stats.upstream_cx_idle_timeout.inc();
                conn.life.set(Life::Retiring);
            }
            if conn.active.get() == 0 && conn.life.get() != Life::Open {
                break;
            }
            match conn.deadline() {
                Some(at) => sleep.as_mut().reset(at),
                None => timer = None,
            }
        }
        if conn.active.get() == 0 && conn.life.get() != Life::Open { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    conn.life.replace(Life::Killed) == Life::Killed
}

/// One request in the books of circuit breaker, cluster and endpoint: from the moment it has a connection until its
/// answer's body has ended or was dropped.
#[derive(Debug)]
pub(super) struct RequestGuard {
    stats: Arc<ClusterStats>,
    circuit: Circuit,
    priority: Priority,
    endpoint: Arc<EndpointState>,
    complete: bool,
}

impl RequestGuard {
    pub(super) fn begin(cluster: &Cluster, endpoint: &Endpoint, priority: Priority) -> Option<Self> {
        if !cluster.circuit.begin_request(priority) {
            cluster.stats.upstream_rq_pending_overflow.inc();
            return None;
        }
        cluster.stats.upstream_rq_total.inc();
        cluster.stats.upstream_rq_active.inc();
        endpoint.state.stats.rq_total.inc();
        endpoint.state.stats.rq_active.inc();
        Some(Self {
            stats: cluster.stats.clone(),
            circuit: cluster.circuit.clone(),
            priority,
            endpoint: endpoint.state.clone(),
            complete: false,
        })
    }
    /// It ended by itself, not by being given up.
    pub(super) fn complete(&mut self) {
        self.complete = true;
    }
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        self.circuit.end_request(self.priority);
        self.stats.upstream_rq_active.dec();
        self.endpoint.stats.rq_active.dec();
        if self.complete {
            self.stats.upstream_rq_completed.inc();
        } else {
            self.stats.upstream_rq_tx_reset.inc();
        }
    }
}
