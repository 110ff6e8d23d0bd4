//! Worker threads and the sockets they accept on.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::thread::JoinHandle;

use mesh_api::model::{Address, Name};
use tokio::sync::mpsc;

use crate::config::apply::Bind;
use crate::config::{ConfigError, SharedConfig};
use crate::drain;
use crate::net::accept::{self, ActiveListener, Command, Siblings};
use crate::net::connection::Socket;
use crate::net::socket::{self, BoundSockets, PipeFile};
use crate::net::{Listener, listener};
use crate::runtime::Worker;

/// All worker threads.
#[derive(Debug)]
pub struct Workers {
    /// Their loads and the ways to them.
    pub siblings: Arc<Siblings>,
    /// Fires when the process ends.
    pub drain: drain::Trigger,
    threads: Vec<JoinHandle<()>>,
}

impl Workers {
    /// Starts threads that wait for commands.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn start(n: usize, shared: &Arc<SharedConfig>, max_connections: usize) -> std::io::Result<Self> {
        let (senders, receivers): (Vec<_>, Vec<_>) = (0..n.max(1)).map(|_| mpsc::unbounded_channel()).unzip();
        let siblings = Siblings::new(senders, max_connections);
        let drain = drain::Trigger::new();
        let mut threads = Vec::with_capacity(n);
        for (id, commands) in receivers.into_iter().enumerate() {
            let (shared, siblings, watch) = (shared.clone(), siblings.clone(), drain.watch());
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let thread = std::thread::Builder::new().name(format!("worker-{id}"));
            threads.push(thread.spawn(move || {
                let local = tokio::task::LocalSet::new();
                local.block_on(&runtime, serve(id, shared, siblings, watch, commands));
            })?);
        }
        Ok(Self { siblings, drain, threads })
    }

    /// Connections of all workers.
    pub fn connections(&self) -> usize {
        self.siblings.connections()
    }

    /// Ends all threads.
    pub fn stop(self) {
        for worker in &self.siblings.workers {
            let _ = worker.commands.send(Command::Stop);
        }
        for thread in self.threads {
            let _ = thread.join();
        }
    }
}

async fn serve(
    id: usize,
    shared: Arc<SharedConfig>,
    siblings: Arc<Siblings>,
    drain: drain::Watch,
    mut commands: mpsc::UnboundedReceiver<Command>,
) {
    let worker = Worker::new(id, shared, rand::random(), drain);
    while let Some(command) = commands.recv().await {
        match command {
            Command::Listen { socket, address, active } => {
                let (worker, siblings) = (worker.clone(), siblings.clone());
                tokio::task::spawn_local(accept::run(worker, siblings, socket, address, active));
            }
            Command::Serve { listener, stream, local, peer } => match tokio::net::TcpStream::from_std(stream) {
                Ok(stream) => accept::spawn(&worker, &siblings, listener, Socket::Tcp(stream, local, peer)),
                Err(error) => tracing::debug!("connection lost on its way between workers: {error}"),
            },
            Command::Stop => return,
        }
    }
}

/// Binds listeners on all workers.
#[derive(Debug)]
pub struct Sockets {
    siblings: Arc<Siblings>,
    bound: HashMap<Name, Bound>,
    /// Addresses that were ever ours: they are shared with sockets of our own that close in their own time.
    ours: HashSet<Address>,
}

/// An address as declared, and whether its socket is transparent.
type Place = (Address, bool);

#[derive(Debug, Default)]
struct Bound {
    open: HashMap<Place, Open>,
}

/// An address that is listened at.
#[derive(Debug)]
struct Open {
    active: Arc<ActiveListener>,
    _pipe: Option<PipeFile>,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.active.stop.close();
    }
}

impl Sockets {
    /// Nothing is bound yet.
    pub fn new(siblings: Arc<Siblings>) -> Self {
        Self { siblings, bound: HashMap::new(), ours: HashSet::new() }
    }

    fn bind(&mut self, (address, transparent): &Place) -> Result<BoundSockets, ConfigError> {
        let exclusive = !self.ours.contains(address);
        let bound = socket::bind(address, self.siblings.workers.len(), *transparent, exclusive)
            .map_err(|e| ConfigError::new(format!("cannot bind {address}: {e}")))?;
        bound.listen().map_err(|e| ConfigError::new(format!("cannot listen at {address}: {e}")))?;
        Ok(bound)
    }

    fn accept(&self, bound: BoundSockets, listener: &Arc<Listener>) -> Open {
        let BoundSockets { address, sockets, pipe } = bound;
        let active = ActiveListener::new(listener.clone());
        tracing::info!(target: "listener", "{} listens at {address}", listener.config.name);
        for (worker, socket) in self.siblings.workers.iter().zip(sockets) {
            let command = Command::Listen { socket, address: address.clone(), active: active.clone() };
            if worker.commands.send(command).is_err() {
                tracing::error!(target: "listener", "a worker thread is gone");
            }
        }
        Open { active, _pipe: pipe }
    }

    /// Another listener of ours that is at this address.
    fn holder(&self, place: &Place, not: &Name) -> Option<&Name> {
        self.bound.iter().find(|(name, b)| *name != not && b.open.keys().any(|(a, _)| *a == place.0)).map(|(n, _)| n)
    }
}

impl Bind for Sockets {
    fn put(&mut self, listener: Arc<Listener>) -> Result<(), ConfigError> {
        let config = &listener.config;
        let mut places: Vec<Place> = vec![];
        if config.bind_to_port && !config.api_listener {
            for address in listener::addresses(config) {
                let place = (address.clone(), config.transparent);
                if !places.contains(&place) {
                    places.push(place);
                }
            }
        }
        // New addresses first: when one cannot be had, everything stays as it is.
        let mut fresh = vec![];
        for place in &places {
            if self.bound.get(&config.name).is_some_and(|b| b.open.contains_key(place)) {
                continue;
            }
            let any_port = matches!(place.0, Address::Socket(a) if a.port() == 0);
            if !any_port && let Some(other) = self.holder(place, &config.name) {
                return Err(ConfigError::new(format!("{} is taken by listener {other}", place.0)));
            }
            fresh.push((place.clone(), self.bind(place)?));
        }
        let mut bound = self.bound.remove(&config.name).unwrap_or_default();
        bound.open.retain(|place, _| places.contains(place));
        for open in bound.open.values() {
            open.active.current.store(listener.clone());
        }
        for (place, sockets) in fresh {
            self.ours.insert(sockets.address.clone());
            bound.open.insert(place, self.accept(sockets, &listener));
        }
        self.bound.insert(config.name.clone(), bound);
        Ok(())
    }

    fn remove(&mut self, name: &str) {
        self.bound.remove(name);
    }
}
