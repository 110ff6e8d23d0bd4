//! The accept loop of one listening socket on one worker.

use std::{
    io,
    net::SocketAddr,
    os::fd::OwnedFd,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use futures_util::FutureExt;
use mesh_api::model::{Address, TrafficDirection};
use tokio::{
    net::{TcpListener, UnixListener},
    sync::mpsc,
    time::{Instant, sleep},
};

use super::{
    Listener,
    connection::{self, Socket},
};
use crate::{drain, runtime::Worker};

/// A bound listener in force: what its accept loops serve, replaced in place by updates.
#[derive(Debug)]
pub struct ActiveListener {
    /// Newest version.
    pub current: ArcSwap<Listener>,
    /// Closed when the listener stops accepting.
    pub stop: drain::Trigger,
}

impl ActiveListener {
    /// In force.
    pub fn new(listener: Arc<Listener>) -> Arc<Self> {
        Arc::new(Self { current: ArcSwap::new(listener), stop: drain::Trigger::new() })
    }
}

/// What a worker is told by the control thread and by other workers.
#[derive(Debug)]
pub enum Command {
    /// Accept connections here.
    Listen {
        /// The listening socket.
        socket: socket2::Socket,
        /// Its address.
        address: Address,
        /// Whom it serves.
        active: Arc<ActiveListener>,
    },
    /// Serve this connection, which another worker accepted but has no room for.
    Serve {
        /// Whom it came to.
        listener: Arc<Listener>,
        /// The connection.
        stream: std::net::TcpStream,
        /// Its local address.
        local: SocketAddr,
        /// Its peer.
        peer: SocketAddr,
    },
    /// End.
    Stop,
}

/// Load of all workers and the way to each.
#[derive(Debug)]
pub struct Siblings {
    /// By worker id.
    pub workers: Vec<Sibling>,
    /// Connections at once in the process; 0: no limit.
    pub max_connections: usize,
    /// Fires when listeners of inbound traffic stop accepting.
    pub inbound: drain::Trigger,
    total: AtomicUsize,
}

/// One worker as others see it.
#[derive(Debug)]
pub struct Sibling {
    connections: AtomicUsize,
    /// To its thread.
    pub commands: mpsc::UnboundedSender<Command>,
}

impl Siblings {
    /// Idle workers.
    pub fn new(commands: Vec<mpsc::UnboundedSender<Command>>, max_connections: usize) -> Arc<Self> {
        let workers = commands.into_iter().map(|commands| Sibling { connections: AtomicUsize::new(0), commands });
        let inbound = drain::Trigger::new();
        Arc::new(Self { workers: workers.collect(), max_connections, inbound, total: AtomicUsize::new(0) })
    }
    /// Connections now.
    pub fn connections(&self) -> usize {
        self.total.load(Ordering::Relaxed)
    }
    /// Another worker that should rather serve the next connection of `own`: one with at least two connections fewer.
    /// SO_REUSEPORT spreads connections by hash, which leaves cores idle when connections are few and long-lived.
    fn less_loaded(&self, own: usize) -> Option<&Sibling> {
        if self.workers.len() < 2 {
            return None;
        }
        let load = |s: &Sibling| s.connections.load(Ordering::Relaxed);
        let mine = self.workers.get(own).map_or(0, load);
        if mine < 2 {
            return None;
        }
        self.workers.iter().min_by_key(|s| load(s)).filter(|s| load(s) + 2 <= mine)
    }
    fn count(self: &Arc<Self>, worker: usize) -> Counted {
        if let Some(s) = self.workers.get(worker) {
            s.connections.fetch_add(1, Ordering::Relaxed);
        }
        self.total.fetch_add(1, Ordering::Relaxed);
        Counted { siblings: self.clone(), worker }
    }
}

/// One connection in the loads.
struct Counted {
    siblings: Arc<Siblings>,
    worker: usize,
}

impl Drop for Counted {
    fn drop(&mut self) {
        if let Some(s) = self.siblings.workers.get(self.worker) {
            s.connections.fetch_sub(1, Ordering::Relaxed);
        }
        self.siblings.total.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Serves a connection on this worker, counted.
pub fn spawn(worker: &Rc<Worker>, siblings: &Arc<Siblings>, listener: Arc<Listener>, socket: Socket) {
    let counted = siblings.count(worker.id);
    let worker = worker.clone();
    tokio::task::spawn_local(async move {
        connection::serve(worker, listener, socket).await;
        drop(counted);
    });
}

enum Accepting {
    Tcp(TcpListener, Option<SocketAddr>),
    Unix(UnixListener),
}

impl Accepting {
    fn new(socket: socket2::Socket, address: &Address) -> io::Result<Self> {
        let fd = OwnedFd::from(socket);
        match address {
            Address::Pipe(_) => Ok(Self::Unix(UnixListener::from_std(fd.into())?)),
            _ => {
                let listener = TcpListener::from_std(fd.into())?;
                // Bound to one address, every connection's local address is known without asking.
                let own = listener.local_addr().ok().filter(|a| !a.ip().is_unspecified());
                Ok(Self::Tcp(listener, own))
            }
        }
    }
    async fn accept(&self) -> io::Result<Socket> {
        match self {
            Self::Tcp(l, own) => {
                let (stream, peer) = l.accept().await?;
                let local = match own {
                    Some(own) => *own,
                    None => stream.local_addr()?,
                };
                Ok(Socket::Tcp(stream, local, peer))
            }
            Self::Unix(l) => l.accept().await.map(|(s, _)| Socket::Unix(s)),
        }
    }
}

/// Accepts until the listener stops; what already waits in the socket's queue then is still served.
pub async fn run(
    worker: Rc<Worker>,
    siblings: Arc<Siblings>,
    socket: socket2::Socket,
    address: Address,
    active: Arc<ActiveListener>,
) {
    let mut stop = active.stop.watch();
    let accepting = match Accepting::new(socket, &address) {
        Ok(a) => a,
        Err(e) => {
            tracing::error!(%address, error = %e, "cannot accept connections");
            return;
        }
    };
    // A transparent socket accepts for other addresses than its own.
    let accepting = match accepting {
        Accepting::Tcp(l, _) if active.current.load().config.transparent => Accepting::Tcp(l, None),
        other => other,
    };
    let mut backoff = Backoff::default();
    let inbound = active.current.load().config.traffic_direction == TrafficDirection::Inbound;
    let inbound = if inbound { siblings.inbound.watch() } else { drain::Watch::never() };
    // The listener goes away, or all inbound ones, or the whole process.
    let ending = async {
        tokio::select! {
            _ = stop.changed() => {}
            () = inbound.draining() => {}
            () = worker.drain.draining() => {}
        }
    };
    tokio::pin!(ending);
    loop {
        let next = tokio::select! {
            biased;
            () = &mut ending => break,
            next = accepting.accept() => next,
        };
        match next {
            Ok(socket) => {
                backoff = Backoff::default();
                place(&worker, &siblings, &active.current.load(), socket);
            }
            Err(e) if is_per_connection(&e) => {}
            Err(e) => backoff.wait(&address, &e).await,
        }
    }
    while let Some(Ok(socket)) = accepting.accept().now_or_never() {
        place(&worker, &siblings, &active.current.load(), socket);
    }
}

/// Here, or on a worker that has less to do.
fn place(worker: &Rc<Worker>, siblings: &Arc<Siblings>, listener: &Arc<Listener>, socket: Socket) {
    if siblings.max_connections > 0 && siblings.connections() >= siblings.max_connections {
        listener.stats.overflow.fetch_add(1, Ordering::Relaxed);
        return;
    }
    match socket {
        Socket::Tcp(stream, local, peer) => match siblings.less_loaded(worker.id) {
            Some(other) => match stream.into_std() {
                Ok(stream) => {
                    let command = Command::Serve { listener: listener.clone(), stream, local, peer };
                    if other.commands.send(command).is_err() {
                        tracing::debug!("worker is gone, its connection too");
                    }
                }
                Err(e) => tracing::debug!(error = %e, "connection lost on its way to another worker"),
            },
            None => spawn(worker, siblings, listener.clone(), Socket::Tcp(stream, local, peer)),
        },
        unix @ Socket::Unix(_) => spawn(worker, siblings, listener.clone(), unix),
    }
}

/// Errors that belong to the connection that was to be accepted (accept(2)), not to the socket.
fn is_per_connection(e: &io::Error) -> bool {
    matches!(
        e.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::NetworkDown
    )
}

/// Waiting while descriptors or memory are short, instead of spinning.
#[derive(Default)]
struct Backoff {
    delay: Duration,
    told: Option<Instant>,
}

impl Backoff {
    async fn wait(&mut self, address: &Address, e: &io::Error) {
        self.delay = (self.delay * 2).clamp(Duration::from_millis(5), Duration::from_secs(1));
        if self.told.is_none_or(|t| t.elapsed() > Duration::from_secs(1)) {
            tracing::warn!(%address, error = %e, "cannot accept connections, trying again");
            self.told = Some(Instant::now());
        }
        sleep(self.delay).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_go_to_the_least_loaded_worker_only_when_it_pays() {
        let (a, _ra) = mpsc::unbounded_channel();
        let (b, _rb) = mpsc::unbounded_channel();
        let siblings = Siblings::new(vec![a, b], 0);
        let first = siblings.count(0);
        assert!(siblings.less_loaded(0).is_none(), "1 against 0");
        let second = siblings.count(0);
        assert!(siblings.less_loaded(0).is_some(), "2 against 0");
        let third = siblings.count(1);
        assert!(siblings.less_loaded(0).is_none(), "2 against 1");
        assert_eq!(siblings.connections(), 3);
        drop((first, second, third));
        assert_eq!(siblings.connections(), 0);
    }
}
