//! One accepted connection, end to end: listener filters, hand-off by original destination, filter chain, TLS, network
//! filters, and then whoever serves it; and its end when its chain drains or its policy changes.

use std::{
    cell::OnceCell,
    net::{Ipv4Addr, SocketAddr},
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use mesh_api::model::{Metadata, Name};
use tokio::{
    io::AsyncReadExt as _,
    net::{TcpStream, UnixStream},
    time::{Instant, timeout},
};

use super::{
    ConnInfo, Io, Prefixed, Transport,
    inspect::{Inspection, Refused},
    limits::Permit,
    listener::{Chain, Listener, ListenerStats, NetFilter, Terminal, asks_original_dst},
    orig_dst,
};
use crate::{
    drain::{Phase, Watch},
    http::{
        self,
        authorizer::Caller,
        filters::{
            ext_authz::{Answer, ExtAuthz, Question},
            rbac,
        },
        local_reply::Reason,
        stats::{ExchangeSink, ExchangeStats},
    },
    runtime::Worker,
    tcp::{self, forward::Ending},
    tls::PeerInfo,
};

/// A socket as it was accepted.
#[derive(Debug)]
pub enum Socket {
    /// TCP with the local address and the peer's.
    Tcp(TcpStream, SocketAddr, SocketAddr),
    /// Unix.
    Unix(UnixStream),
}

/// What Unix peers have for an address.
const NOWHERE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// A connection that is ready to be served.
struct Ready {
    io: Io,
    info: Rc<ConnInfo>,
    chain: Arc<Chain>,
    watch: Watch,
    ending: Rc<Ending>,
    _permits: Vec<Permit>,
}

/// Counts a connection as long as it lives.
struct Active(Arc<ListenerStats>);

impl Active {
    fn count(stats: &Arc<ListenerStats>) -> Self {
        stats.connections.fetch_add(1, Ordering::Relaxed);
        stats.active.fetch_add(1, Ordering::Relaxed);
        Self(stats.clone())
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Counts an HTTP connection as long as it lives.
struct Counted(Arc<dyn ExchangeSink>, usize);

impl Counted {
    fn new(sink: Arc<dyn ExchangeSink>, worker: usize) -> Self {
        sink.connected(worker);
        Self(sink, worker)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.disconnected(self.1);
    }
}

/// Serves a connection to its end.
pub async fn serve(worker: Rc<Worker>, listener: Arc<Listener>, socket: Socket) {
    // Getting ready takes far more state than idling; its future is not kept.
    let Some((ready, _active)) = Box::pin(prepare(&worker, listener, socket)).await else { return };
    let Ready { io, info, chain, watch, ending, _permits } = ready;
    let guarded = watch.clone();
    match &chain.terminal {
        Some(Terminal::Http { live, .. }) => {
            let id = worker.id;
            let _counted = Counted::new(live.load().sink.clone(), id);
            let serving = http::server::serve(worker, io, info.clone(), live.clone(), watch);
            tokio::select! {
                () = serving => {}
                () = must_end(guarded, &chain, &info, &ending) => {}
            }
            note_end(&info, &ending, id);
        }
        Some(Terminal::Tcp(proxy)) => {
            let serving = tcp::forward::run(worker, io, info.clone(), proxy.clone(), watch, ending.clone());
            tokio::select! {
                () = serving => {}
                () = must_end(guarded, &chain, &info, &ending) => {}
            }
        }
        None => note_end(&info, &ending, worker.id),
    }
}

/// Writes a connection into the listener's own log. (Forwarded connections know more of themselves and do it there.)
fn note_end(info: &Rc<ConnInfo>, ending: &Ending, worker: usize) {
    note(info, ending.log.as_ref(), worker, |stats| stats.termination = ending.details.get().cloned());
}

fn note(
    info: &Rc<ConnInfo>,
    log: Option<&Arc<dyn ExchangeSink>>,
    worker: usize,
    fill: impl FnOnce(&mut ExchangeStats),
) {
    let Some(log) = log else { return };
    let mut stats = ExchangeStats::of_connection(info.clone());
    stats.times.end = Some(Instant::now());
    fill(&mut stats);
    log.record(&stats, worker);
}

/// Resolves when a connection must not go on: its drain is over, a new policy refuses it, or its peer's certificate is
/// not trusted any more.
async fn must_end(mut watch: Watch, chain: &Chain, info: &ConnInfo, ending: &Ending) {
    loop {
        if watch.changed().await == Phase::Closed {
            return;
        }
        if let Some(denied) = refusal(&chain.policy.load(), info) {
            tracing::debug!(connection = info.id, listener = %info.listener, policy = ?denied, "closed by a new policy");
            let _ = ending.details.set(denied_by(&denied));
            return;
        }
        if let (Some(tls), Some(peer)) = (&chain.tls, &info.tls)
            && let Err(e) = tls.still_trusted(peer)
        {
            tracing::debug!(connection = info.id, listener = %info.listener, error = %e, "closed: peer not trusted any more");
            let _ = ending.details.set("peer_certificate_not_trusted_any_more".into());
            return;
        }
    }
}

/// Envoy's text for a refused connection.
fn denied_by(policy: &str) -> Name {
    format!("rbac_access_denied_matched_policy[{}]", if policy.is_empty() { "none" } else { policy }).into()
}

/// The policy that refuses a connection (empty: none allows it); `None`: it may go on.
fn refusal(filters: &[NetFilter], info: &ConnInfo) -> Option<Name> {
    let attributes = rbac::Attributes { conn: info, head: None, client: info.peer, metadata: None };
    filters.iter().find_map(|f| match f {
        NetFilter::Rbac { enforced: Some(engine), .. } => {
            let verdict = engine.check(&attributes);
            (!verdict.allowed).then(|| verdict.policy.unwrap_or_else(|| "".into()))
        }
        _ => None,
    })
}

async fn prepare(worker: &Worker, listener: Arc<Listener>, socket: Socket) -> Option<(Ready, Active)> {
    static NEXT_ID: AtomicU64 = AtomicU64::new(1);
    let accepted = Instant::now();
    let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
    let active = Active::count(&listener.stats);
    let (listener, socket, mut seen) = match inspect(worker, listener, socket).await {
        Ok(found) => found,
        Err(lost) => {
            let (listener, seen, e) = *lost;
            tracing::debug!(connection = id, error = %e, "connection refused by listener filters");
            note(&Rc::new(facts(id, accepted, &listener, None, seen, None)), listener.log.as_ref(), worker.id, |_| {});
            return None;
        }
    };
    let Some(chain) = listener.find_chain(&seen.match_input()).cloned() else {
        listener.stats.no_filter_chain_match.fetch_add(1, Ordering::Relaxed);
        tracing::debug!(connection = id, listener = %listener.config.name, sni = ?seen.sni, local = ?seen.local,
            response_flags = "NR", "closed: no matching filter chain");
        let info = Rc::new(facts(id, accepted, &listener, None, seen, None));
        note(&info, listener.log.as_ref(), worker.id, |stats| stats.end_with(Reason::FilterChainNotFound));
        return None;
    };
    // Registered before anything is decided by the chain's content, so that no change of it goes unnoticed.
    let watch = chain.drain.watch();
    let prefix = seen.take_buffer();
    let (mut io, tls) = match terminate(&chain, transport(socket, prefix)).await {
        Ok(done) => done,
        Err((details, reason)) => {
            listener.stats.tls_errors.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(connection = id, listener = %listener.config.name, peer = ?seen.peer, reason, "TLS handshake failed");
            let info = Rc::new(facts(id, accepted, &listener, Some(&chain), seen, None));
            note(&info, listener.log.as_ref(), worker.id, |stats| {
                stats.downstream_failure = Some(reason.into());
                stats.termination = details.map(Name::from);
            });
            return None;
        }
    };
    let info = Rc::new(facts(id, accepted, &listener, Some(&chain), seen, tls));
    let ending = Rc::new(Ending { log: listener.log.clone(), details: OnceCell::new() });
    let permits = admit(worker, &chain, &info, &ending, &mut io).await?;
    Some((Ready { io, info, chain, watch, ending, _permits: permits }, active))
}

/// What is known of a connection when its chain is chosen (or there is none), and its handshake is done (or has failed).
fn facts(
    id: u64,
    accepted: Instant,
    listener: &Listener,
    chain: Option<&Chain>,
    seen: Inspection,
    tls: Option<PeerInfo>,
) -> ConnInfo {
    let filters = || chain.into_iter().flat_map(|c| c.filters.iter());
    let sni_cluster = filters().any(|f| matches!(f, NetFilter::SniCluster));
    let sni_port = filters().find_map(|f| match f {
        NetFilter::SniHost(port) => Some(*port),
        _ => None,
    });
    ConnInfo {
        id,
        peer: seen.peer.unwrap_or(NOWHERE),
        direct_peer: seen.direct_peer.unwrap_or(NOWHERE),
        local: seen.local.unwrap_or(NOWHERE),
        direct_local: seen.direct_local.unwrap_or(NOWHERE),
        original_dst: seen.original_dst,
        sni_cluster: seen.sni.clone().filter(|_| sni_cluster),
        sni_port,
        sni: seen.sni.or_else(|| tls.as_ref().and_then(|t| t.sni.clone())),
        application_protocols: seen.protocols,
        tls,
        listener: listener.config.name.clone(),
        direction: listener.config.traffic_direction,
        chain: chain.map_or_else(|| "".into(), |c| c.config.name.clone()),
        accepted,
    }
}

/// A connection that listener filters refused: whose it is, what was learned of it, why.
type Lost = Box<(Arc<Listener>, Inspection, Refused)>;

/// Listener filters of `listener` and, after a hand-off by original destination, of the listener it goes to.
async fn inspect(
    worker: &Worker,
    mut listener: Arc<Listener>,
    mut socket: Socket,
) -> Result<(Arc<Listener>, Socket, Inspection), Lost> {
    let mut seen = match &socket {
        Socket::Tcp(_, local, peer) => Inspection::of(Some(*local), Some(*peer)),
        Socket::Unix(_) => Inspection::of(None, None),
    };
    let mut handed_over = false;
    loop {
        let config = listener.config.clone();
        if !config.listener_filters.is_empty()
            && let Err(e) = run_filters(&listener, &mut socket, &mut seen).await
        {
            return Err(Box::new((listener, seen, e)));
        }
        if handed_over || !config.use_original_dst || !seen.restored {
            return Ok((listener, socket, seen));
        }
        let Some(dst) = seen.local else { return Ok((listener, socket, seen)) };
        match worker.shared.snapshot.load().listener_at(dst) {
            Some(other) if other.config.name != config.name => listener = other.clone(),
            _ => return Ok((listener, socket, seen)),
        }
        handed_over = true;
    }
}

async fn run_filters(listener: &Listener, socket: &mut Socket, seen: &mut Inspection) -> Result<(), Refused> {
    let config = &listener.config;
    let original = match &*socket {
        // Once restored, the socket has nothing new to say.
        Socket::Tcp(stream, ..) if !seen.restored && asks_original_dst(&config.listener_filters) => {
            orig_dst::original_dst(stream, config.transparent)
        }
        _ => seen.original_dst,
    };
    let run = async {
        match socket {
            Socket::Tcp(s, ..) => seen.run(s, &config.listener_filters, original).await,
            Socket::Unix(s) => seen.run(s, &config.listener_filters, original).await,
        }
    };
    let outcome = if config.listener_filters_timeout.is_zero() {
        Ok(run.await)
    } else {
        timeout(config.listener_filters_timeout, run).await
    };
    match outcome {
        Ok(Ok(())) => Ok(()),
        Ok(Err(e)) => {
            listener.stats.refused.fetch_add(1, Ordering::Relaxed);
            Err(e)
        }
        Err(_elapsed) if config.continue_on_listener_filters_timeout => Ok(()),
        Err(_elapsed) => {
            listener.stats.inspection_timeout.fetch_add(1, Ordering::Relaxed);
            Err(Refused::Closed)
        }
    }
}

fn transport(socket: Socket, prefix: Bytes) -> Transport {
    match socket {
        Socket::Tcp(s, ..) => Transport::Tcp(Prefixed::new(prefix, s)),
        Socket::Unix(s) => Transport::Unix(Prefixed::new(prefix, s)),
    }
}

/// Terminates TLS if the chain does. The error: details of the connection's end, if we ended it, and the reason.
async fn terminate(
    chain: &Chain,
    transport: Transport,
) -> Result<(Io, Option<PeerInfo>), (Option<&'static str>, String)> {
    let Some(tls) = &chain.tls else { return Ok((transport.into(), None)) };
    let limit = chain.config.transport_socket_connect_timeout;
    let limit = if limit.is_zero() { HANDSHAKE_LIMIT } else { limit };
    let handshake = tls.accept(transport);
    let too_long = |_| (Some("transport socket timeout was reached"), format!("no end after {limit:?}"));
    let (stream, peer) = timeout(limit, handshake).await.map_err(too_long)?.map_err(|e| (None, e.to_string()))?;
    Ok((Io::Tls(Box::new(stream)), Some(peer)))
}

/// Nobody may hold a socket in a handshake for ever, even when the configuration sets no limit.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(60);

/// Network filters in order; `None`: the connection is closed, and recorded.
async fn admit(
    worker: &Worker,
    chain: &Chain,
    info: &Rc<ConnInfo>,
    ending: &Rc<Ending>,
    io: &mut Io,
) -> Option<Vec<Permit>> {
    let turn_away = |reason: Option<Reason>| match &chain.terminal {
        Some(Terminal::Tcp(proxy)) => tcp::forward::refused(worker, info, proxy, ending.clone(), reason),
        _ => note(info, ending.log.as_ref(), worker.id, |stats| {
            if let Some(reason) = reason {
                stats.end_with(reason);
            }
            stats.termination = ending.details.get().cloned();
        }),
    };
    let mut permits = vec![];
    let mut metadata = Metadata::new();
    for filter in chain.filters.iter() {
        match filter {
            NetFilter::Rbac { shadow, shadow_prefix, .. } => {
                if let Some(shadow) = shadow {
                    let attributes =
                        rbac::Attributes { conn: info, head: None, client: info.peer, metadata: Some(&metadata) };
                    let verdict = shadow.check(&attributes);
                    rbac::note_shadow(&mut metadata, rbac::NETWORK_METADATA, shadow_prefix, &verdict);
                }
                if let Some(policy) = refusal(std::slice::from_ref(filter), info) {
                    tracing::debug!(connection = info.id, listener = %info.listener, policy = %policy,
                        "closed: rbac_access_denied_matched_policy");
                    let _ = ending.details.set(denied_by(&policy));
                    turn_away(None);
                    return None;
                }
            }
            NetFilter::ConnectionLimit(limit) => {
                let Some((permit, within)) = limit.enter() else { continue };
                permits.push(permit);
                if !within {
                    tracing::debug!(connection = info.id, listener = %info.listener, "closed: over_connection_limit");
                    hold(io, limit.config.delay).await;
                    turn_away(None);
                    return None;
                }
            }
            NetFilter::ConnectionRate(rate) => {
                if !rate.admits(Instant::now()) {
                    tracing::debug!(connection = info.id, listener = %info.listener, "closed: local_ratelimit_close_over_limit");
                    turn_away(Some(Reason::ConnectionRateLimited));
                    return None;
                }
            }
            NetFilter::ExtAuthz(filter) => {
                if let Some(reason) = ask(worker, filter, info, &metadata).await {
                    tracing::debug!(connection = info.id, listener = %info.listener, details = %reason.details(),
                        "closed by an external authorizer");
                    turn_away(Some(reason));
                    return None;
                }
            }
            NetFilter::SniCluster | NetFilter::SniHost(_) => {}
        }
    }
    Some(permits)
}

/// Keeps a connection that is to be closed until its time is over or its peer goes away; nobody reads what it says.
async fn hold(io: &mut Io, delay: Duration) {
    let silence = async {
        let mut scrap = [0; 1024];
        while io.read(&mut scrap).await.is_ok_and(|n| n > 0) {}
    };
    let _ = timeout(delay, silence).await;
}

/// Asks an external authorizer about a connection; the reason of a refusal.
async fn ask(worker: &Worker, filter: &ExtAuthz, info: &ConnInfo, metadata: &Metadata) -> Option<Reason> {
    if !filter.applies(metadata, || worker.rng.next_u64()) {
        return None;
    }
    let snapshot = worker.shared.load();
    let caller = Caller { worker, snapshot: &snapshot, conn: info, alpn: None };
    let question = Question {
        conn: info,
        client: info.peer,
        certificate: filter.config.include_certificate,
        tls_session: filter.config.include_tls_session,
        request: None,
        context: &[],
        metadata: filter.metadata(metadata),
    };
    match caller.ask(filter, &*worker.shared.services.authz, &question).await {
        Ok(Answer::Allowed(_)) => None,
        Ok(Answer::Denied(_)) => Some(Reason::ExtAuthzDenied { status: 403 }),
        Err(why) => {
            tracing::debug!(connection = info.id, listener = %info.listener, error = %why, "no authorization");
            filter.failed(None).map(|reply| reply.reason)
        }
    }
}
