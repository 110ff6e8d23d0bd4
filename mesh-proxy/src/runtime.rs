//! Worker threads: each a current-thread tokio runtime with its own listeners, upstream pools and random numbers.

use std::{cell::RefCell, io, rc::Rc, sync::Arc};

use mesh_api::model::Address;
use rand::{RngExt, SeedableRng, rngs::SmallRng};
use tokio::{
    net::TcpStream,
    runtime::{Builder, LocalOptions},
    sync::mpsc,
};

use crate::{
    config::SharedConfig,
    drain,
    net::{
        accept::{self, ActiveListener, Command, Siblings},
        connection::Socket,
    },
    upstream::pool::Pools,
};

/// What everything on the data path of one worker thread shares; handed around as `Rc<Worker>`, never across threads.
#[derive(Debug)]
pub struct Worker {
    /// 0 to N-1.
    pub id: usize,
    /// Process-wide state.
    pub shared: Arc<SharedConfig>,
    /// Upstream connections of this worker.
    pub pools: Pools,
    /// Random numbers of this worker.
    pub rng: Rng,
    /// Drain of the whole process; a connection watches its filter chain's instead, which follows this one.
    pub drain: drain::Watch,
}

impl Worker {
    /// A context for this thread.
    pub fn new(id: usize, shared: Arc<SharedConfig>, seed: u64, drain: drain::Watch) -> Rc<Self> {
        Rc::new(Self { id, pools: Pools::new(), rng: Rng::seeded(seed), drain, shared })
    }
}

/// A small random generator behind a cell; seeded, so that tests repeat.
#[derive(Debug)]
pub struct Rng(RefCell<SmallRng>);

impl Rng {
    /// From a seed.
    pub fn seeded(seed: u64) -> Self {
        Self(RefCell::new(SmallRng::seed_from_u64(seed)))
    }
    /// 64 random bits.
    pub fn next_u64(&self) -> u64 {
        self.0.borrow_mut().random()
    }
    /// Uniform in `0..n`; 0 when `n` is 0.
    pub fn below(&self, n: u64) -> u64 {
        if n == 0 { 0 } else { self.0.borrow_mut().random_range(0..n) }
    }
    /// Uniform in `0.0..1.0`.
    pub fn unit(&self) -> f64 {
        self.0.borrow_mut().random()
    }
}

/// The worker threads of a process.
#[derive(Debug)]
pub struct Workers {
    siblings: Arc<Siblings>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Workers {
    /// Starts `count` threads. They serve what they are told to by [`Workers::listen`].
    ///
    /// # Errors
    /// When a thread or its event loop cannot be made.
    pub fn start(
        count: usize,
        max_connections: usize,
        shared: &Arc<SharedConfig>,
        drain: &drain::Trigger,
    ) -> io::Result<Self> {
        let (commands, receivers): (Vec<_>, Vec<_>) = (0..count.max(1)).map(|_| mpsc::unbounded_channel()).unzip();
        let siblings = Siblings::new(commands, max_connections);
        let mut threads = vec![];
        for (id, commands) in receivers.into_iter().enumerate() {
            let (shared, drain, siblings) = (shared.clone(), drain.watch(), siblings.clone());
            let runtime = move || Builder::new_current_thread().enable_all().build_local(LocalOptions::default());
            let body = move || match runtime() {
                Ok(runtime) => {
                    let worker = Worker::new(id, shared, rand::random(), drain);
                    runtime.block_on(work(worker, siblings, commands));
                }
                Err(e) => tracing::error!(worker = id, error = %e, "event loop cannot be made"),
            };
            threads.push(std::thread::Builder::new().name(format!("worker-{id}")).spawn(body)?);
        }
        Ok(Self { siblings, threads })
    }

    /// How many.
    pub fn count(&self) -> usize {
        self.threads.len()
    }

    /// Connections now.
    pub fn connections(&self) -> usize {
        self.siblings.connections()
    }

    /// Begins to accept at bound sockets, one a worker.
    pub fn listen(&self, address: &Address, sockets: Vec<socket2::Socket>, active: &Arc<ActiveListener>) {
        for (worker, socket) in self.siblings.workers.iter().zip(sockets) {
            let command = Command::Listen { socket, address: address.clone(), active: active.clone() };
            if worker.commands.send(command).is_err() {
                tracing::error!(%address, "worker thread is gone");
            }
        }
    }

    /// Ends all threads, and with them every connection.
    pub fn stop(self) {
        for worker in &self.siblings.workers {
            let _ = worker.commands.send(Command::Stop);
        }
        for thread in self.threads {
            let _ = thread.join();
        }
    }
}

async fn work(worker: Rc<Worker>, siblings: Arc<Siblings>, mut commands: mpsc::UnboundedReceiver<Command>) {
    while let Some(command) = commands.recv().await {
        match command {
            Command::Listen { socket, address, active } => {
                tokio::task::spawn_local(accept::run(worker.clone(), siblings.clone(), socket, address, active));
            }
            Command::Serve { listener, stream, local, peer } => match TcpStream::from_std(stream) {
                Ok(stream) => accept::spawn(&worker, &siblings, listener, Socket::Tcp(stream, local, peer)),
                Err(e) => tracing::debug!(error = %e, "connection from another worker lost"),
            },
            Command::Stop => break,
        }
    }
}
