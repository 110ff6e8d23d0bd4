//! Worker threads and the sockets they accept on.

use std::collections::HashMap;
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
}

#[derive(Debug)]
struct Bound {
    active: Arc<ActiveListener>,
    addresses: Vec<Address>,
    _pipes: Vec<PipeFile>,
}

impl Sockets {
    /// Nothing is bound yet.
    pub fn new(siblings: Arc<Siblings>) -> Self {
        Self { siblings, bound: HashMap::new() }
    }

    fn bind(&self, listener: &Arc<Listener>) -> Result<Bound, ConfigError> {
        let mut all: Vec<BoundSockets> = Vec::new();
        let workers = self.siblings.workers.len();
        if listener.config.bind_to_port && !listener.config.api_listener {
            for address in listener.addresses() {
                let bound = socket::bind(address, workers, listener.config.transparent, true)
                    .map_err(|e| ConfigError::new(format!("cannot bind {address}: {e}")))?;
                bound.listen().map_err(|e| ConfigError::new(format!("cannot listen at {address}: {e}")))?;
                all.push(bound);
            }
        }
        let active = ActiveListener::new(listener.clone());
        let mut pipes = Vec::new();
        for BoundSockets { address, sockets, pipe } in all {
            tracing::info!(target: "listener", "{} listens at {address}", listener.config.name);
            for (worker, socket) in self.siblings.workers.iter().zip(sockets) {
                let command = Command::Listen { socket, address: address.clone(), active: active.clone() };
                let _ = worker.commands.send(command);
            }
            pipes.extend(pipe);
        }
        let addresses = listener::addresses(&listener.config).cloned().collect();
        Ok(Bound { active, addresses, _pipes: pipes })
    }
}

impl Bind for Sockets {
    fn put(&mut self, listener: Arc<Listener>) -> Result<(), ConfigError> {
        let name = listener.config.name.clone();
        let addresses: Vec<Address> = listener::addresses(&listener.config).cloned().collect();
        if let Some(bound) = self.bound.get(&name)
            && bound.addresses == addresses
        {
            bound.active.current.store(listener);
            return Ok(());
        }
        // Another place: the old one is given up first, since the two may overlap.
        self.remove(&name);
        let bound = self.bind(&listener)?;
        self.bound.insert(name, bound);
        Ok(())
    }

    fn remove(&mut self, name: &str) {
        if let Some(bound) = self.bound.remove(name) {
            bound.active.stop.close();
        }
    }
}
