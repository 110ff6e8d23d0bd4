//! One accepted connection, end to end: listener filters, hand-off by original destination, filter chain, TLS, network
//! filters, and then whoever serves it; and its end when its chain drains or its policy changes.

use std::{
    net::{Ipv4Addr, SocketAddr},
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use mesh_api::model::Name;
use tokio::{
    net::{TcpStream, UnixStream},
    time::{Instant, timeout},
};

use super::{
    ConnInfo, Io, Prefixed, Transport,
    inspect::{Inspection, Refused},
    listener::{Chain, Listener, ListenerStats, NetFilter, Permit, Terminal, asks_original_dst},
    orig_dst,
};
use crate::{
    drain::{Phase, Watch},
    http::{self, filters::rbac},
    runtime::Worker,
    tcp,
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

/// Serves a connection to its end.
pub async fn serve(worker: Rc<Worker>, listener: Arc<Listener>, socket: Socket) {
    // Getting ready takes far more state than idling; its future is not kept.
    let Some((ready, _active)) = Box::pin(prepare(&worker, listener, socket)).await else { return };
    let Ready { io, info, chain, watch, _permits } = ready;
    let guarded = watch.clone();
    match &chain.terminal {
        Some(Terminal::Http { live, .. }) => {
            let serving = http::server::serve(worker, io, info.clone(), live.clone(), watch);
            tokio::select! {
                () = serving => {}
                () = must_end(guarded, &chain, &info) => {}
            }
        }
        Some(Terminal::Tcp(proxy)) => {
            let serving = tcp::forward::run(worker, io, info.clone(), proxy.clone(), watch);
            tokio::select! {
                _stats = serving => {}
                () = must_end(guarded, &chain, &info) => {}
            }
        }
        None => {}
    }
}

/// Resolves when a connection must not go on: its drain is over, a new policy refuses it, or its peer's certificate is
/// not trusted any more.
async fn must_end(mut watch: Watch, chain: &Chain, info: &ConnInfo) {
    loop {
        if watch.changed().await == Phase::Closed {
            return;
        }
        if let Some(denied) = refusal(&chain.policy.load(), info) {
            tracing::debug!(connection = info.id, listener = %info.listener, policy = ?denied, "closed by a new policy");
            return;
        }
        if let (Some(tls), Some(peer)) = (&chain.tls, &info.tls)
            && let Err(e) = tls.still_trusted(peer)
        {
            tracing::debug!(connection = info.id, listener = %info.listener, error = %e, "closed: peer not trusted any more");
            return;
        }
    }
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
        Err(e) => {
            tracing::debug!(connection = id, error = %e, "connection refused by listener filters");
            return None;
        }
    };
    let Some(chain) = listener.find_chain(&seen.match_input()).cloned() else {
        listener.stats.no_filter_chain_match.fetch_add(1, Ordering::Relaxed);
        tracing::debug!(connection = id, listener = %listener.config.name, sni = ?seen.sni, local = ?seen.local,
            response_flags = "NR", "closed: no matching filter chain");
        return None;
    };
    // Registered before anything is decided by the chain's content, so that no change of it goes unnoticed.
    let watch = chain.drain.watch();
    let prefix = seen.take_buffer();
    let (io, tls) = match terminate(&listener, &chain, transport(socket, prefix)).await {
        Ok(done) => done,
        Err(reason) => {
            listener.stats.tls_errors.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(connection = id, listener = %listener.config.name, peer = ?seen.peer, reason, "TLS handshake failed");
            return None;
        }
    };
    let sni_cluster = chain.filters.iter().any(|f| matches!(f, NetFilter::SniCluster));
    let info = Rc::new(ConnInfo {
        id,
        peer: seen.peer.unwrap_or(NOWHERE),
        direct_peer: seen.direct_peer.unwrap_or(NOWHERE),
        local: seen.local.unwrap_or(NOWHERE),
        direct_local: seen.direct_local.unwrap_or(NOWHERE),
        original_dst: seen.original_dst,
        sni_cluster: seen.sni.clone().filter(|_| sni_cluster),
        sni: seen.sni.or_else(|| tls.as_ref().and_then(|t| t.sni.clone())),
        application_protocols: seen.protocols,
        tls,
        listener: listener.config.name.clone(),
        direction: listener.config.traffic_direction,
        chain: chain.config.name.clone(),
        accepted,
    });
    let permits = admit(&chain, &info).await?;
    Some((Ready { io, info, chain, watch, _permits: permits }, active))
}

/// Listener filters of `listener` and, after a hand-off by original destination, of the listener it goes to.
async fn inspect(
    worker: &Worker,
    mut listener: Arc<Listener>,
    mut socket: Socket,
) -> Result<(Arc<Listener>, Socket, Inspection), Refused> {
    let mut seen = match &socket {
        Socket::Tcp(_, local, peer) => Inspection::of(Some(*local), Some(*peer)),
        Socket::Unix(_) => Inspection::of(None, None),
    };
    let mut handed_over = false;
    loop {
        let config = listener.config.clone();
        if !config.listener_filters.is_empty() {
            run_filters(&listener, &mut socket, &mut seen).await?;
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

/// Terminates TLS if the chain does.
async fn terminate(
    listener: &Listener,
    chain: &Chain,
    transport: Transport,
) -> Result<(Io, Option<crate::tls::PeerInfo>), String> {
    let Some(tls) = &chain.tls else { return Ok((transport.into(), None)) };
    let limit = chain.config.transport_socket_connect_timeout;
    let limit = if limit.is_zero() { HANDSHAKE_LIMIT } else { limit };
    let handshake = tls.accept(transport);
    let done = timeout(limit, handshake).await.map_err(|_| format!("no end after {limit:?}"))?;
    let (stream, peer) = done.map_err(|e| e.to_string())?;
    let _ = listener;
    Ok((Io::Tls(Box::new(stream)), Some(peer)))
}

/// Nobody may hold a socket in a handshake for ever, even when the configuration sets no limit.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(60);

/// Network filters in order; `None`: the connection is closed.
async fn admit(chain: &Chain, info: &ConnInfo) -> Option<Vec<Permit>> {
    let mut permits = vec![];
    for filter in chain.filters.iter() {
        match filter {
            NetFilter::Rbac { .. } => {
                if let Some(policy) = refusal(std::slice::from_ref(filter), info) {
                    tracing::debug!(connection = info.id, listener = %info.listener, policy = %policy,
                        "closed: rbac_access_denied_matched_policy");
                    return None;
                }
            }
            NetFilter::ConnectionLimit(limit) => match limit.acquire() {
                Some(permit) => permits.push(permit),
                None => {
                    tokio::time::sleep(limit.delay).await;
                    return None;
                }
            },
            NetFilter::SniCluster => {}
        }
    }
    Some(permits)
}
