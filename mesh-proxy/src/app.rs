//! The process: reads settings, starts threads, wires configuration to data path, ends in order. Alone sees everything.

mod capture;
mod dial;
mod file;
mod wait;
mod workload;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use clap::Parser as _;
use mesh_api::model::TrafficDirection;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::prelude::*;
use tracing_subscriber::reload;

use crate::admin::{self, Application, Drain, Handles, Logging, Pages};
use crate::config::apply::{Configurator, Event};
use crate::config::snapshot::Node;
use crate::config::{Services, SharedConfig};
use crate::dns::Names;
use crate::identity;
use crate::memory;
use crate::net::Listener;
use crate::readiness::Readiness;
use crate::settings::{LogLevel, Mode, Process, Settings};
use crate::telemetry::ProxyTelemetry;
use crate::tls::{self, SecretStore};
use crate::workers::{Sockets, Workers};
use crate::xds::ads::{self, AdsStatus, Client};
use crate::xds::services::als::Collectors;
use crate::xds::services::ext_authz::AuthV3;
use crate::xds::services::rate_limit::RateLimitV3;
use crate::xds::store::SharedStore;

/// Exit code for a wrong command line.
const USAGE: u8 = 64;
/// Exit code for input that cannot be read.
const UNPARSABLE: u8 = 65;

/// Least time between the end of accepting and the end of the process.
const QUIET: Duration = Duration::from_millis(50);

/// Sets log levels of the running process.
type SetLevel = Arc<Logging>;

/// Runs the program. The first argument is its name.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let settings = match Settings::try_parse_from(args) {
        Ok(settings) => settings,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
        }
    };
    tls::install_default_provider();
    let level = match &settings.mode {
        None => settings.process.log_level,
        Some(Mode::Sidecar(w) | Mode::Gateway(w)) => w.process.log_level,
        Some(Mode::Agent(a)) => a.log_level,
        Some(Mode::Capture(_) | Mode::Wait(_)) => LogLevel::Info,
    };
    let set_level = start_logging(level);
    let result = match &settings.mode {
        None => file::run(&settings, set_level),
        Some(Mode::Sidecar(w)) => workload::run(w, false, set_level),
        Some(Mode::Gateway(w)) => workload::run(w, true, set_level),
        Some(Mode::Agent(a)) => workload::agent(a),
        Some(Mode::Wait(w)) => wait::run(w),
        Some(Mode::Capture(c)) => match capture::run(c) {
            Ok(true) => Ok(()),
            Ok(false) => return ExitCode::FAILURE,
            Err(error) => Err(error),
        },
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            let unreadable = error.downcast_ref::<crate::bootstrap::BootstrapError>().is_some();
            ExitCode::from(if unreadable { UNPARSABLE } else { 1 })
        }
    }
}

/// Own messages go to standard error; standard output belongs to access logs.
fn start_logging(level: LogLevel) -> SetLevel {
    let (layer, handle) = reload::Layer::new(EnvFilter::default());
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false);
    // Another subscriber is there already when this runs inside of a test.
    let _ = tracing_subscriber::registry().with(layer).with(lines).try_init();
    Arc::new(Logging::new(level, move |directives| drop(handle.reload(EnvFilter::new(directives)))))
}

/// How long the end of the process waits for collectors of access logs.
const LAST_RECORDS: Duration = Duration::from_secs(1);

/// What every mode starts with.
struct Parts {
    workers: Workers,
    shared: Arc<SharedConfig>,
    telemetry: Arc<ProxyTelemetry>,
    store: SharedStore,
    configurator: Configurator,
    events: mpsc::UnboundedReceiver<Event>,
    runtime: tokio::runtime::Runtime,
    concurrency: usize,
}

impl Parts {
    fn start(process: &Process, node: Node, secrets: Arc<SecretStore>, max_connections: usize) -> anyhow::Result<Self> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let concurrency = process.concurrency.filter(|n| *n > 0).unwrap_or(cores);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("control")
            .enable_all()
            .build()
            .context("cannot start the control thread")?;
        let telemetry = ProxyTelemetry::new(concurrency, Arc::new(Collectors));
        let services = Services { authz: Arc::new(AuthV3), limits: Arc::new(RateLimitV3) };
        let shared = SharedConfig::new(node, secrets, telemetry.clone(), services);
        let workers = Workers::start(concurrency, &shared, max_connections).context("cannot start worker threads")?;
        let (tx, events) = mpsc::unbounded_channel();
        let sockets = Box::new(Sockets::new(workers.siblings.clone()));
        let configurator = Configurator::new(shared.clone(), runtime.handle().clone(), tx.clone(), sockets);
        runtime.spawn(memory::give_back());
        runtime.spawn(watch_secrets(shared.secrets.clone(), tx));
        runtime.spawn(tls::watch_files(Arc::downgrade(&shared.secrets), Duration::from_secs(1)));
        runtime.spawn(telemetry.spans.clone().run(Arc::new(dial::Dialer(shared.clone()))));
        let dialer = Arc::new(dial::Dialer(shared.clone()));
        runtime.spawn(telemetry.logs.exports.clone().run(dialer, shared.node.clone()));
        let (node, dialer) = (crate::xds::node::message(&shared.node), dial::Dialer(shared.clone()));
        runtime.spawn(crate::xds::sds::run(shared.secrets.clone(), node, Arc::new(dialer)));
        let store = SharedStore::default();
        Ok(Self { workers, shared, telemetry, store, configurator, events, runtime, concurrency })
    }

    fn readiness(
        &self,
        identity: Option<watch::Receiver<identity::Status>>,
        ads: Option<(String, watch::Receiver<AdsStatus>)>,
        names: Option<Arc<Names>>,
    ) -> Arc<Readiness> {
        Arc::new(Readiness {
            identity,
            ads,
            names,
            waiting: self.configurator.still_waiting(),
            draining: AtomicBool::new(false),
            reached: AtomicBool::new(false),
        })
    }

    /// Serves until told to end. `client` follows the control plane, when there is one.
    fn run(
        self,
        readiness: Arc<Readiness>,
        places: Vec<(SocketAddr, Pages)>,
        application: Application,
        client: Option<Client>,
        set_level: SetLevel,
        drain_time: Duration,
    ) -> anyhow::Result<()> {
        let Parts { workers, shared, telemetry, store, configurator, events, runtime, concurrency } = self;
        let drain = drain_on_request(&workers, &shared, runtime.handle().clone(), drain_time);
        let handles = Arc::new(Handles {
            shared: shared.clone(),
            store,
            telemetry: telemetry.clone(),
            names: readiness.names.clone(),
            readiness: readiness.clone(),
            log: set_level,
            drain,
            application,
            started: SystemTime::now(),
            concurrency,
        });
        let served = runtime.block_on(async {
            let mut term = signal(SignalKind::terminate())?;
            let mut int = signal(SignalKind::interrupt())?;
            admin::serve(handles, places).await?;
            match client {
                Some(client) => drop(tokio::spawn(client.run(configurator, events))),
                None => drop(tokio::spawn(settle_for_ever(configurator, events))),
            }
            tokio::select! {
                _ = term.recv() => {}
                _ = int.recv() => {}
            }
            tracing::info!("draining: {} connections, {drain_time:?} at most", workers.connections());
            readiness.draining.store(true, Relaxed);
            workers.drain.drain();
            drain_connections(&shared, |_| true);
            // What waits in the kernel to be accepted is served too.
            tokio::time::sleep(QUIET.min(drain_time)).await;
            tokio::select! {
                () = idle(&workers) => {}
                () = tokio::time::sleep(drain_time) => {}
                _ = term.recv() => {}
                _ = int.recv() => {}
            }
            anyhow::Ok(())
        });
        workers.stop();
        telemetry.logs.files.flush_now();
        runtime.block_on(telemetry.logs.exports.flush(LAST_RECORDS));
        runtime.shutdown_timeout(Duration::from_millis(100));
        served
    }
}

/// What `/drain_listeners` does: new connections are refused, existing ones go on. With `graceful` that happens when the
/// time for draining is over, and existing ones finish what is in flight then. (Envoy begins to close some at once and
/// more and more of them; whoever asks for this has turned traffic away already.)
fn drain_on_request(
    workers: &Workers,
    shared: &Arc<SharedConfig>,
    runtime: tokio::runtime::Handle,
    time: Duration,
) -> Arc<dyn Fn(Drain) + Send + Sync> {
    let (all, inbound, shared) = (workers.drain.clone(), workers.siblings.inbound.clone(), shared.clone());
    Arc::new(move |asked| {
        tracing::info!("asked to drain listeners: {asked:?}");
        let stop = if asked.inbound_only { inbound.clone() } else { all.clone() };
        if !asked.graceful {
            stop.drain();
            return;
        }
        let shared = shared.clone();
        runtime.spawn(async move {
            tokio::time::sleep(time).await;
            stop.drain();
            let inbound = |l: &Listener| l.config.traffic_direction == TrafficDirection::Inbound;
            drain_connections(&shared, |l| !asked.inbound_only || inbound(l));
        });
    })
}

/// Tells the connections of listeners to finish.
fn drain_connections(shared: &SharedConfig, which: impl Fn(&Listener) -> bool) {
    let snapshot = shared.load();
    for listener in snapshot.listeners.values().filter(|l| which(l)) {
        for chain in listener.chains() {
            chain.drain.drain();
        }
    }
}

/// Resolves when no connection is left.
async fn idle(workers: &Workers) {
    while workers.connections() > 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn watch_secrets(store: Arc<SecretStore>, events: mpsc::UnboundedSender<Event>) {
    let mut changes = store.changes();
    while changes.changed().await.is_ok() {
        if events.send(Event::Secrets).is_err() {
            return;
        }
    }
}

/// Without a control plane: things become warm, nothing else happens.
async fn settle_for_ever(mut configurator: Configurator, mut events: mpsc::UnboundedReceiver<Event>) {
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    loop {
        tokio::select! {
            event = events.recv() => match event {
                Some(event) => configurator.note(&event),
                None => return,
            },
            _ = tick.tick() => {}
        }
        ads::log_failures(&configurator.settle());
    }
}
