//! One forwarded connection, from choosing its cluster to the record of what happened.

use std::{cell::OnceCell, future::poll_fn, io, pin::Pin, rc::Rc, sync::Arc, task::Poll, time::Duration};

use mesh_api::model::Name;
use tokio::time::{Instant, Sleep, sleep_until};

use super::{
    TcpProxy,
    copy::Direction,
    tunnel::{NoTunnel, Request, Upstream},
};
use crate::{
    drain,
    http::{
        local_reply::{Reason, ResponseFlags},
        stats::{ExchangeSink, ExchangeStats},
    },
    net::{ConnInfo, Io},
    runtime::Worker,
    upstream::{
        Cluster, Endpoint, ErrorKind, LbContext, Outcome, PickError,
        connect::{ConnectOptions, connect},
        pool::SendOptions,
    },
};

/// What the listener of a connection does at its end.
#[derive(Debug, Default)]
pub struct Ending {
    /// The listener's own log.
    pub log: Option<Arc<dyn ExchangeSink>>,
    /// Why we end it (`%CONNECTION_TERMINATION_DETAILS%`), when we do.
    pub details: OnceCell<Name>,
}

/// Counts a connection to its end, however that comes.
struct Record {
    ending: Rc<Ending>,
    stats: ExchangeStats,
    proxy: Arc<TcpProxy>,
    worker: usize,
    opened: bool,
    reported: (u64, u64),
}

/// Records a connection that filters before this one refused: its cluster would have been chosen by then.
pub fn refused(
    worker: &Worker,
    info: &Rc<ConnInfo>,
    proxy: &Arc<TcpProxy>,
    ending: Rc<Ending>,
    reason: Option<Reason>,
) {
    let mut record = Record::new(worker, info, proxy, ending);
    if let Some(reason) = reason {
        record.stats.end_with(reason);
    }
    let name = proxy.cluster(info, |n| worker.rng.below(n)).cloned();
    record.stats.cluster = name.as_ref().and_then(|n| worker.shared.snapshot.load().cluster(n).cloned());
    record.stats.cluster_name = name;
}

impl Record {
    fn new(worker: &Worker, info: &Rc<ConnInfo>, proxy: &Arc<TcpProxy>, ending: Rc<Ending>) -> Self {
        let stats = ExchangeStats::of_connection(info.clone());
        Self { ending, stats, proxy: proxy.clone(), worker: worker.id, opened: false, reported: (0, 0) }
    }
    fn open(&mut self) {
        if !std::mem::replace(&mut self.opened, true) {
            self.proxy.sink.opened(&self.stats, self.worker);
        }
    }
    fn report(&mut self) {
        let now = (self.stats.bytes_received, self.stats.bytes_sent);
        let (received, sent) = (now.0 - self.reported.0, now.1 - self.reported.1);
        if received + sent > 0 {
            self.proxy.sink.moved(&self.stats, received, sent, self.worker);
            self.reported = now;
        }
    }
    /// A later try that succeeds is a success.
    fn succeed(&mut self) {
        self.stats.flags = ResponseFlags::NONE;
        self.stats.transport_failure = None;
    }
    fn fail(&mut self, flags: ResponseFlags, why: impl std::fmt::Display) {
        self.stats.flags.insert(flags);
        let (id, listener) = (self.stats.conn.id, &self.stats.conn.listener);
        let cluster = self.stats.cluster_name.as_deref();
        tracing::debug!(connection = id, %listener, cluster, response_flags = %flags.text(), "closed: {why}");
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        self.stats.times.end = Some(Instant::now());
        self.stats.termination = self.ending.details.get().cloned();
        self.open();
        self.report();
        self.proxy.sink.closed(&self.stats, self.worker);
        if let Some(log) = &self.ending.log {
            log.record(&self.stats, self.worker);
        }
    }
}

/// Forwards a connection until both ends are done with it, or it lives or idles too long. Whoever drops the future ends
/// it at once; it is recorded then too. `drain` is held, so that others see that it still lives.
pub async fn run(
    worker: Rc<Worker>,
    io: Io,
    info: Rc<ConnInfo>,
    proxy: Arc<TcpProxy>,
    drain: drain::Watch,
    ending: Rc<Ending>,
) {
    let mut record = Record::new(&worker, &info, &proxy, ending);
    // Connecting takes more state than forwarding; its future is not kept.
    let connected = Box::pin(upstream(&worker, &info, &proxy, &mut record)).await;
    let Some((upstream, endpoint)) = connected else { return };
    record.open();
    forward(io, upstream, &endpoint, &proxy, &mut record).await;
    drop(drain);
}

/// A connection to an endpoint, or through it; `None`: there is none, the reason is recorded.
async fn upstream(
    worker: &Worker,
    info: &ConnInfo,
    proxy: &TcpProxy,
    record: &mut Record,
) -> Option<(Upstream, Arc<Endpoint>)> {
    let name = proxy.cluster(info, |n| worker.rng.below(n))?.clone();
    record.stats.cluster_name = Some(name.clone());
    let Some(cluster) = worker.shared.snapshot.load().cluster(&name).cloned() else {
        record.fail(ResponseFlags::NC, "the cluster does not exist");
        return None;
    };
    record.stats.cluster = Some(cluster.clone());
    let mut tried: Vec<Arc<Endpoint>> = vec![];
    for attempt in 0..proxy.config.max_connect_attempts.max(1) {
        record.stats.attempts = attempt + 1;
        let context = LbContext {
            hash: proxy.hash(info),
            tried: &tried,
            attempt,
            original_dst: info.original_dst.or(Some(info.local)),
            ..LbContext::default()
        };
        let found = if cluster.is_dynamic() {
            let host = info.sni.as_deref().unwrap_or_default();
            cluster.resolve(host, info.sni_port).await.map_err(|e| (ResponseFlags::UH, e.to_string()))
        } else {
            cluster.pick(&context, &worker.rng).map_err(|e| {
                let dropped = matches!(e, PickError::Dropped(_));
                (if dropped { ResponseFlags::DO } else { ResponseFlags::UH }, e.to_string())
            })
        };
        let endpoint = match found {
            Ok(endpoint) => endpoint,
            Err((flags, why)) => {
                record.fail(flags, why);
                return None;
            }
        };
        record.stats.endpoint = Some(endpoint.clone());
        let attempt = match &proxy.tunnel {
            None => attempt_one(worker, info, &cluster, &endpoint, record).await,
            Some(request) => tunnel_one(worker, info, request, &cluster, &endpoint, record).await,
        };
        match attempt {
            Ok(upstream) => return Some((upstream, endpoint)),
            Err(true) => tried.push(endpoint),
            Err(false) => return None,
        }
    }
    cluster.stats.upstream_cx_connect_attempts_exceeded.inc();
    record.fail(ResponseFlags::URX, "no endpoint can be connected to");
    None
}

/// One try; the error says whether another one makes sense.
async fn attempt_one(
    worker: &Worker,
    info: &ConnInfo,
    cluster: &Arc<Cluster>,
    endpoint: &Arc<Endpoint>,
    record: &mut Record,
) -> Result<Upstream, bool> {
    let options = ConnectOptions { proxied: Some((info.peer, info.local)), ..ConnectOptions::default() };
    let (io, connection) = match connect(cluster, endpoint, &options).await {
        Ok(done) => done,
        Err(e) if e.kind == ErrorKind::Overflow => {
            record.fail(ResponseFlags::UO, "too many connections");
            return Err(false);
        }
        Err(e) => {
            let timeout = e.kind == ErrorKind::ConnectTimeout;
            cluster.report(endpoint, if timeout { Outcome::Timeout } else { Outcome::ConnectFailure }, &worker.rng);
            if !e.reason.is_empty() {
                record.stats.transport_failure = Some(e.reason.as_ref().into());
            }
            record.fail(ResponseFlags::UF, &e);
            return Err(true);
        }
    };
    record.stats.upstream = Some(connection);
    cluster.report(endpoint, Outcome::ConnectSuccess, &worker.rng);
    record.succeed();
    Ok(Upstream::Direct(io))
}

/// One try through a forward proxy; its pools report what became of it. The error says whether another one makes sense.
async fn tunnel_one(
    worker: &Worker,
    info: &ConnInfo,
    request: &Request,
    cluster: &Arc<Cluster>,
    endpoint: &Arc<Endpoint>,
    record: &mut Record,
) -> Result<Upstream, bool> {
    let options = SendOptions { proxied: Some((info.peer, info.local)), ..SendOptions::default() };
    match request.open(worker, cluster, endpoint, &options).await {
        Ok((upstream, connection)) => {
            record.stats.upstream = connection;
            record.succeed();
            Ok(upstream)
        }
        Err(NoTunnel::Lost(e)) if e.kind == ErrorKind::Overflow => {
            record.fail(ResponseFlags::UO, "too many connections");
            Err(false)
        }
        Err(NoTunnel::Lost(e)) => {
            if !e.reason.is_empty() {
                record.stats.transport_failure = Some(e.reason.as_ref().into());
            }
            record.fail(ResponseFlags::UF, &e);
            Err(true)
        }
        Err(NoTunnel::Refused(why)) => {
            record.fail(ResponseFlags::UF, why);
            Err(true)
        }
        Err(NoTunnel::Slow) => {
            cluster.report(endpoint, Outcome::Timeout, &worker.rng);
            record.fail(ResponseFlags::UF, "the forward proxy does not answer");
            Err(true)
        }
    }
}

/// When a connection is looked at although no byte moves: one reusable timer for the nearest of its deadlines.
struct Deadlines {
    timer: Pin<Box<Sleep>>,
    idle: Duration,
    moved: Instant,
    end: Option<Instant>,
    report: Instant,
}

impl Deadlines {
    fn new(proxy: &TcpProxy, accepted: Instant) -> Self {
        let now = Instant::now();
        let mut new = Self {
            timer: Box::pin(sleep_until(now)),
            idle: proxy.config.idle_timeout,
            moved: now,
            end: proxy.config.max_connection_duration.and_then(|d| accepted.checked_add(d)),
            report: now + proxy.sink.interval(),
        };
        let next = new.next();
        new.timer.as_mut().reset(next);
        new
    }
    fn idle_end(&self) -> Option<Instant> {
        if self.idle.is_zero() { None } else { self.moved.checked_add(self.idle) }
    }
    fn next(&self) -> Instant {
        [self.idle_end(), self.end].into_iter().flatten().fold(self.report, Instant::min)
    }
}

async fn forward(mut down: Io, mut up: Upstream, endpoint: &Endpoint, proxy: &TcpProxy, record: &mut Record) {
    let mut request = Direction::default();
    let mut answer = Direction::default();
    let mut deadlines = Deadlines::new(proxy, record.stats.conn.accepted);
    let closing = endpoint.state.closing();
    tokio::pin!(closing);
    let result: io::Result<()> = poll_fn(|cx| {
        let before = request.moved + answer.moved;
        let up_to_down = answer.poll_move(cx, &mut up, &mut down);
        let down_to_up = request.poll_move(cx, &mut down, &mut up);
        record.stats.bytes_received = request.moved;
        record.stats.bytes_sent = answer.moved;
        if request.moved + answer.moved != before {
            deadlines.moved = Instant::now();
        }
        match (up_to_down, down_to_up) {
            (Poll::Ready(Err(e)), _) | (_, Poll::Ready(Err(e))) => return Poll::Ready(Err(e)),
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => return Poll::Ready(Ok(())),
            _ => {}
        }
        if closing.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::Error::other("the endpoint's connections are closed")));
        }
        while deadlines.timer.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            if deadlines.idle_end().is_some_and(|end| end <= now) {
                record.fail(ResponseFlags::SI, "idle for too long");
                return Poll::Ready(Ok(()));
            }
            if deadlines.end.is_some_and(|end| end <= now) {
                record.fail(ResponseFlags::DT, "open for too long");
                return Poll::Ready(Ok(()));
            }
            if deadlines.report <= now {
                record.report();
                deadlines.report = now + proxy.sink.interval();
            }
            let next = deadlines.next();
            deadlines.timer.as_mut().reset(next);
        }
        Poll::Pending
    })
    .await;
    if let Err(e) = result {
        tracing::debug!(connection = record.stats.conn.id, error = %e, "connection broke");
    }
}
