//! Puts the control plane together: folder or API server -> index -> streams, the certificate authority, the pages of the admin
//! server; and ends it in order.
//!
//! The only module that knows all others.

use std::{collections::BTreeSet, ffi::OsString, fmt, net::SocketAddr, process::ExitCode, sync::Arc, time::Duration};

use anyhow::Context;
use arc_swap::{ArcSwap, ArcSwapOption};
use clap::Parser;
use mesh_api::identity::TrustDomain;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
    task::JoinSet,
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

mod kubernetes;
mod sources;

use crate::{
    admin::{self, Admin},
    ca::{self, Authority},
    index::{self, ChangeSet, Index, IndexWriter},
    jwks,
    metrics::Metrics,
    settings::{Cli, Command, Listen, LogFormat, Serve},
    source::{
        kubernetes::Named,
        object::{Kind, ObjectChange},
        status::SharedStatus,
    },
    translate::{Translator, status},
    xds::{caller::Authenticate, hub::Hub, server, service::Ads},
};

/// Runs the command line to its end.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    // Of huge pages whatever is touched counts whole: a quarter of the memory, for nothing that the clock shows. Where
    // the kernel does not know the call, they stay.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 64 } else { 0 });
        }
    };
    let result = match (cli.command, cli.serve) {
        (Some(Command::Token(token)), _) => print_token(&token),
        (None, Some(serve)) => run_until_signal(&serve),
        (None, None) => Err(anyhow::anyhow!("--config-dir (or --kubernetes) and --state-dir are needed")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mesh-control: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run_until_signal(settings: &Serve) -> anyhow::Result<()> {
    log_to_stderr(settings)?;
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(cores.max(2)).enable_all().build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut running = tokio::select! {
            running = start(settings) => running?,
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
        };
        // Not by way of the log, whose level may be anything: who started us reads the ports here.
        eprintln!("mesh-control listening {}", running.addresses);
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            error = running.failed() => return Err(error),
        }
        tracing::info!("shutting down");
        running.stop(settings.shutdown_duration).await;
        Ok(())
    })
}

fn log_to_stderr(settings: &Serve) -> anyhow::Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_new(&settings.log_level)
        .with_context(|| format!("log level {:?}", settings.log_level))?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let result = match settings.log_format {
        LogFormat::Text => log.with_ansi(false).try_init(),
        LogFormat::Json => log.json().try_init(),
    };
    result.map_err(|e| anyhow::anyhow!("the log cannot be set up: {e}"))
}

/// Where the control plane listens, port 0 resolved. `xds=IP:PORT plaintext-xds=off http=IP:PORT`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    /// TLS: xDS and certificates.
    pub xds: Listen,
    /// Plaintext xDS.
    pub plaintext_xds: Listen,
    /// Admin pages.
    pub http: Listen,
    /// Webhooks of the API server.
    pub webhooks: Listen,
}

impl fmt::Display for Addresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "xds={} plaintext-xds={} http={}", self.xds, self.plaintext_xds, self.http)?;
        match self.webhooks {
            Listen(None) => Ok(()),
            webhooks => write!(f, " webhooks={webhooks}"),
        }
    }
}

/// A control plane at work.
#[derive(Debug)]
pub struct Running {
    /// Where it listens.
    pub addresses: Addresses,
    /// Streams and state.
    pub hub: Arc<Hub<Translator>>,
    /// They end by themselves when told to, after finishing what they are at.
    servers: JoinSet<anyhow::Result<()>>,
    /// They have nothing to finish.
    workers: JoinSet<anyhow::Result<()>>,
    stop: CancellationToken,
}

impl Running {
    /// Waits until a part fails; parts never end by themselves.
    pub async fn failed(&mut self) -> anyhow::Error {
        let ended = tokio::select! {
            Some(ended) = self.servers.join_next() => Some(ended),
            Some(ended) = self.workers.join_next() => Some(ended),
            else => None,
        };
        match ended {
            Some(Ok(Err(error))) => error,
            Some(Err(error)) => error.into(),
            Some(Ok(Ok(()))) | None => anyhow::anyhow!("a part of the control plane ended"),
        }
    }

    /// Ends it: streams are told to go elsewhere, answers in flight are finished, at most for `limit`.
    pub async fn stop(mut self, limit: Duration) {
        self.hub.stopping.cancel();
        self.stop.cancel();
        let ended = tokio::time::timeout(limit, async { while self.servers.join_next().await.is_some() {} }).await;
        if ended.is_err() {
            tracing::warn!("not everything ended in time");
        }
        self.workers.shutdown().await;
    }
}

async fn bind(listen: Listen) -> anyhow::Result<(Listen, Option<TcpListener>)> {
    let Some(address) = listen.0 else { return Ok((listen, None)) };
    let listener = server::bind(address).await?;
    let actual: SocketAddr = listener.local_addr()?;
    Ok((Listen(Some(actual)), Some(listener)))
}

/// Starts everything. When this returns, the folder has been read and is in force.
///
/// # Errors
/// When an address cannot be listened on, the folder cannot be read, or the state folder is of no use.
pub async fn start(settings: &Serve) -> anyhow::Result<Running> {
    let (xds, xds_listener) = bind(settings.xds_addr).await?;
    let (plaintext_xds, plaintext_listener) = bind(settings.plaintext_xds_addr).await?;
    let (http, http_listener) = bind(settings.http_addr).await?;
    let in_kubernetes = settings.config_dir.is_none();
    let webhooks = if in_kubernetes { settings.webhook_addr } else { Listen(None) };
    let (webhooks, webhook_listener) = bind(webhooks).await?;
    let addresses = Addresses { xds, plaintext_xds, http, webhooks };
    let metrics = Arc::new(Metrics::default());
    let hub = Hub::new(Translator::new(), metrics.clone());
    let stop = CancellationToken::new();
    let (mut servers, mut workers) = (JoinSet::new(), JoinSet::new());
    let admin = Arc::new(Admin {
        hub: hub.clone(),
        metrics: metrics.clone(),
        source: ArcSwapOption::empty(),
        index: Arc::default(),
        waiting: ArcSwap::default(),
        root_namespace: ArcSwap::default(),
        authenticate: ArcSwapOption::empty(),
        keys: ArcSwapOption::empty(),
        cluster_id: settings.cluster_id.clone(),
        started: Instant::now(),
    });
    if let Some(listener) = http_listener {
        servers.spawn(admin::serve(listener, admin.clone(), stop.clone()));
    }

    let options = index::Options {
        cluster: settings.cluster_id.as_str().into(),
        network: settings.network.as_str().into(),
        trust_domain: settings.trust_domain.as_deref().map(Into::into),
        domain: settings.domain.as_str().into(),
        root_namespace: settings.namespace.as_str().into(),
        cross_namespace_routes: settings.cross_namespace_routes,
        in_cluster: in_kubernetes,
    };
    let mut writer = IndexWriter::new(options);
    let sources::Opened { status, named, run, api_server } = sources::open(settings, &mut writer, &admin).await?;
    let errors = status.read().errors();
    count_state(&metrics, writer.index(), errors);
    tracing::info!(objects = writer.index().all_objects().count(), errors, "configuration read");

    let (changes_tx, mut changes_rx) = mpsc::channel(64);
    let (index_tx, index_rx) = mpsc::channel(64);
    workers.spawn(run(changes_tx));
    sources::until_settings_count(&mut writer, &mut changes_rx, &admin, &status).await?;
    admin.root_namespace.store(Arc::new(writer.index().mesh().root_namespace().to_owned()));

    let keys = fetch_keys(settings, &mut writer, &admin, &mut workers).await;

    let open = || authority(settings, writer.index());
    let authority = match &api_server {
        Some((client, _)) => {
            Some(kubernetes::root(client, settings, open, plugged_in(writer.index()).is_some()).await?)
        }
        None => xds_listener.is_some().then(open).transpose()?,
    };
    admin.index.store(Some(Arc::new(writer.index().clone())));
    hub.open(writer.index().clone());
    let (changed_tx, changed) = watch::channel(0);
    let told = Told { states: index_tx, changed: changed_tx, named };
    workers.spawn(write_index(writer, (changes_rx, keys), told, admin.clone(), status.clone(), authority.clone()));
    let follow = hub.clone().follow(index_rx);
    workers.spawn(async move {
        follow.await;
        Ok(())
    });

    if let Some(listener) = plaintext_listener {
        tracing::warn!("{plaintext_xds} serves xDS in plaintext: whoever reaches it is believed");
        let routes = Routes::new(Ads::new(hub.clone(), None, settings.xds_max_request));
        servers.spawn(server::serve(listener, None, routes, stop.clone()));
    }
    if let (Some((client, served)), Some(authority)) = (api_server.clone(), authority.clone()) {
        let parts = kubernetes::Parts { client, served, index: admin.index.clone(), found: status, changed };
        kubernetes::start(parts, settings, authority, webhook_listener, (&mut servers, &mut workers), &stop).await?;
    }
    if let (Some(listener), Some(authority)) = (xds_listener, authority) {
        let authenticate: Arc<dyn Authenticate> = Arc::new(match &api_server {
            Some((client, _)) => {
                ca::Authenticator::with_tokens(&authority, Arc::new(ca::TokenReviews::new(client.clone())))
            }
            None => ca::Authenticator::new(&authority),
        });
        admin.authenticate.store(Some(Arc::new(authenticate.clone())));
        let mut further = settings.server_name.clone();
        if in_kubernetes {
            further.extend(kubernetes::service_names(settings));
        }
        let names = ca::ServerNames::new(xds.0.map(|a| a.ip()), &further)?;
        let tls = ca::server_tls(&authority, names)?;
        let certificates = ca::grpc_service(authority, authenticate.clone(), metrics);
        let routes =
            Routes::new(certificates).add_service(Ads::new(hub.clone(), Some(authenticate), settings.xds_max_request));
        servers.spawn(server::serve(listener, Some(tls), routes, stop.clone()));
    }
    Ok(Running { addresses, hub, servers, workers, stop })
}

/// Begins to fetch the keys of tokens' issuers. Those of a former process count at once; where there are none, proxies
/// that come back would lose the ones they have, so the first fetches are waited for a moment.
async fn fetch_keys(
    settings: &Serve,
    writer: &mut IndexWriter,
    admin: &Admin<Translator>,
    workers: &mut JoinSet<anyhow::Result<()>>,
) -> jwks::Keys {
    const PATIENCE: Duration = Duration::from_secs(5);
    let options = jwks::Options {
        state_dir: settings.state_dir.clone(),
        addresses: jwks::AddressPolicy {
            blocked: settings.jwks_blocked_cidrs.clone(),
            allowed: settings.jwks_allowed_cidrs.clone(),
        },
        extra_ca: settings.jwks_ca.clone(),
    };
    let wanted = writer.index().wanted_keys();
    let mut missing: BTreeSet<jwks::KeySource> = wanted.keys().cloned().collect();
    let (mut keys, known, fetcher) = jwks::open(options, wanted, admin.metrics.clone());
    admin.keys.store(Some(Arc::new(keys.standings.clone())));
    missing.retain(|source| !known.iter().any(|(s, _)| s == source));
    writer.apply_keys(known);
    workers.spawn(async move {
        fetcher.run().await;
        Ok(())
    });
    let first = async {
        while !missing.is_empty()
            && let Some((source, fetched)) = keys.updates.recv().await
        {
            missing.remove(&source);
            writer.apply_keys(vec![(source, fetched)]);
        }
    };
    if tokio::time::timeout(PATIENCE, first).await.is_err() {
        tracing::warn!("some keys of tokens' issuers are not there yet: their tokens are refused until they are");
    }
    keys
}

/// Opens the certificate authority, with what the configuration says about it.
fn authority(settings: &Serve, index: &Index) -> anyhow::Result<Arc<Authority>> {
    let mut options = ca::Options::new(&settings.state_dir, index.trust_domain().parse()?);
    options.default_ttl = settings.workload_cert_ttl;
    options.max_ttl = settings.max_workload_cert_ttl;
    options.root_grace = settings.root_grace;
    let authority = Authority::open(options, plugged_in(index)).context("certificate authority")?;
    follow_configuration(&authority, index).context("certificate authority")?;
    Ok(authority)
}

/// Hands trust domain and plugged-in CA to the authority.
fn follow_configuration(authority: &Authority, index: &Index) -> anyhow::Result<()> {
    let own: TrustDomain = index.trust_domain().parse()?;
    let aliases = index.mesh().trust_domain_aliases.iter().filter_map(|alias| alias.parse().ok()).collect();
    authority.set_trust_domain(own, aliases);
    authority.plug_in(plugged_in(index))?;
    Ok(())
}

/// The content of the Secret with a plugged-in CA.
fn plugged_in(index: &Index) -> Option<&ca::PluggedIn> {
    let (namespace, name) = ca::PLUGGED_IN_SECRET;
    index.secret(namespace, name).map(|secret| &secret.data)
}

fn print_token(token: &crate::settings::Token) -> anyhow::Result<()> {
    let token = ca::workload_token(&token.state_dir, &token.namespace, &token.service_account, Some(token.ttl))?;
    println!("{token}");
    Ok(())
}

/// Who hears of states of the index.
struct Told {
    states: mpsc::Sender<(Index, ChangeSet)>,
    changed: watch::Sender<u64>,
    /// The source, of what objects name.
    named: Option<watch::Sender<Named>>,
}

impl Told {
    /// Tells the source what the objects of a state name.
    fn names(&self, index: &Index) {
        if let Some(named) = &self.named {
            let now = Named::of(index);
            named.send_if_modified(|was| (*was != now).then(|| *was = now).is_some());
        }
    }
}

/// Turns changed objects, and keys that were fetched, into states of the index.
async fn write_index(
    mut writer: IndexWriter,
    (mut changes, mut keys): (mpsc::Receiver<Vec<ObjectChange>>, jwks::Keys),
    told: Told,
    admin: Arc<Admin<Translator>>,
    status: SharedStatus,
    authority: Option<Arc<Authority>>,
) -> anyhow::Result<()> {
    // Changes that came while settings and keys were waited for may name more.
    told.names(writer.index());
    loop {
        let change = tokio::select! {
            batch = changes.recv() => {
                let Some(batch) = batch else { break };
                count_events(&admin.metrics, &batch);
                let change = writer.apply(batch);
                if !change.only_endpoints() || change.is_empty() {
                    count_state(&admin.metrics, writer.index(), status.read().errors());
                }
                change
            }
            Some(fetched) = keys.updates.recv() => {
                let mut all = vec![fetched];
                while let Ok(more) = keys.updates.try_recv() {
                    all.push(more);
                }
                writer.apply_keys(all)
            }
        };
        if change.is_empty() {
            continue;
        }
        tracing::debug!(?change, "configuration changed");
        if change.mesh {
            admin.root_namespace.store(Arc::new(writer.index().mesh().root_namespace().to_owned()));
        }
        if change.mesh || !change.services.is_empty() || change.has(Kind::RequestAuthentication) {
            let wanted = writer.index().wanted_keys();
            keys.wanted.send_if_modified(|now| (*now != wanted).then(|| *now = wanted).is_some());
        }
        if !change.only_endpoints()
            && let Some(authority) = &authority
            && let Err(error) = follow_configuration(authority, writer.index())
        {
            tracing::error!("the certificate authority stays as it was: {error:#}");
        }
        if change.objects.iter().any(|key| Index::names_others(key.kind)) {
            told.names(writer.index());
        }
        admin.index.store(Some(Arc::new(writer.index().clone())));
        // Of endpoints statuses say something of Gateways' alone, and others change all the time.
        if !change.only_endpoints() || status::read_endpoints(writer.index(), change.endpoints.iter()) {
            told.changed.send_modify(|state| *state += 1);
        }
        if told.states.send((writer.index().clone(), change)).await.is_err() {
            break;
        }
    }
    Ok(())
}

fn count_events(metrics: &Metrics, changes: &[ObjectChange]) {
    for change in changes {
        let kind = change.key().kind;
        let family = if kind.is_core() { &metrics.reg_events } else { &metrics.cfg_events };
        let event = match change {
            ObjectChange::Upsert(_) => "update",
            ObjectChange::Remove(_) => "delete",
        };
        family.of([kind.name(), event]).inc();
    }
}

fn count_state(metrics: &Metrics, index: &Index, refused: usize) {
    metrics.services.set(index.services().count());
    metrics.virtual_services.set(index.objects(Kind::VirtualService).count());
    metrics.refused_objects.set(refused);
}
