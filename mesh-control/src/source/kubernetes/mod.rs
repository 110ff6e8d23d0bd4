//! Objects of a Kubernetes API server.
//!
//! Owns the connection, which kinds are watched, and the order in which what was seen becomes changes. One task a kind
//! watches (`watch`), one follows which kinds there are (`apis`); what is in force is decided in `registry`, which knows
//! no server. Must not know what objects mean.
//!
//! An API server that is away changes nothing: what was read stays in force, and watches begin again by themselves.

mod apis;
mod named;
mod registry;
mod settings;
mod watch;

use std::{collections::BTreeSet, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context as _;
use kube::{Client, Config, config::KubeConfigOptions};
use tokio::{
    sync::{mpsc, watch as latest},
    task::JoinSet,
    time::Instant,
};

pub use apis::Served;
pub use named::Named;
pub(crate) use watch::resource;

use self::{registry::Registry, watch::Seen};
use super::object::{Kind, ObjectChange};
use super::status::SharedStatus;
use crate::index::Index;

/// Which API server.
#[derive(Debug, Clone, Default)]
pub struct Connection {
    /// Its kubeconfig; `None`: the account of the pod, else the usual file.
    pub kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig, instead of its current one.
    pub context: Option<String>,
}

/// How to read.
#[derive(Debug, Clone)]
pub struct Options {
    /// DNS domain of services, which completes short names.
    pub domain: String,
    /// Namespace of this control plane, where its settings stand.
    pub namespace: String,
    /// Revision of this control plane, whose settings are read; empty or `default`: those without one.
    pub revision: String,
}

/// A client for the API server.
///
/// # Errors
/// When there is no usable kubeconfig, and this is no pod.
pub async fn connect(connection: &Connection) -> anyhow::Result<Client> {
    let options = KubeConfigOptions { context: connection.context.clone(), ..KubeConfigOptions::default() };
    let mut config = match &connection.kubeconfig {
        Some(file) => {
            let read = kube::config::Kubeconfig::read_from(file).with_context(|| file.display().to_string())?;
            Config::from_custom_kubeconfig(read, &options).await.with_context(|| file.display().to_string())?
        }
        None => {
            Config::infer().await.context("neither a service account of a pod nor a kubeconfig leads to Kubernetes")?
        }
    };
    config.connect_timeout = Some(Duration::from_secs(5));
    // Watches are long; each request has its own limit.
    config.read_timeout = None;
    Client::try_from(config).context("Kubernetes client")
}

/// A watched API server.
pub struct KubernetesSource {
    client: Client,
    registry: Registry,
    seen: mpsc::Receiver<Seen>,
    seen_tx: mpsc::Sender<Seen>,
    watchers: JoinSet<()>,
    /// Reads of objects by name, which end.
    fetches: JoinSet<()>,
    served: latest::Receiver<Served>,
}

impl std::fmt::Debug for KubernetesSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KubernetesSource").field("registry", &self.registry).finish_non_exhaustive()
    }
}

/// Most events that become one batch of changes.
const BATCH: usize = 4096;

impl KubernetesSource {
    /// Watches everything, and waits until all of it was read once. `waiting` hears why it takes long.
    ///
    /// # Errors
    /// When watching ends.
    pub async fn open(
        client: Client,
        options: &Options,
        mut waiting: impl FnMut(String),
    ) -> anyhow::Result<(Self, Vec<ObjectChange>)> {
        let (seen_tx, seen) = mpsc::channel(BATCH);
        let mut watchers = JoinSet::new();
        let (served_tx, served) = latest::channel(Served::default());
        watchers.spawn(apis::follow(client.clone(), served_tx));
        watchers.spawn(watch::run(client.clone(), served.clone(), seen_tx.clone()));
        let registry = Registry::new(&options.domain, &options.namespace, &options.revision);
        let mut source = Self { client, registry, seen, seen_tx, watchers, fetches: JoinSet::new(), served };
        let mut first = Vec::new();
        let began = Instant::now();
        let mut told = began;
        while !source.registry.synced() {
            match tokio::time::timeout(Duration::from_millis(500), source.next()).await {
                Ok(changes) => first.extend(changes.context("nothing is watched any more")?),
                Err(_) if told.elapsed() > Duration::from_secs(2) => {
                    told = Instant::now();
                    waiting(source.registry.missing());
                }
                Err(_) => {}
            }
        }
        tracing::info!(target: "kubernetes", seconds = began.elapsed().as_secs_f64(), "everything was read once");
        Ok((source, first))
    }

    /// Which kinds there are, in which versions.
    pub fn served(&self) -> latest::Receiver<Served> {
        self.served.clone()
    }

    /// What is wrong, for pages.
    pub fn status(&self) -> SharedStatus {
        self.registry.status()
    }

    /// The next changes; `None`: nobody watches any more.
    async fn next(&mut self) -> Option<Vec<ObjectChange>> {
        let first = self.seen.recv().await?;
        Some(self.take(first))
    }

    /// What becomes of an event, and of those that wait behind it.
    fn take(&mut self, first: Seen) -> Vec<ObjectChange> {
        let mut changes = self.registry.take(first);
        for _ in 0..BATCH {
            let Ok(more) = self.seen.try_recv() else { break };
            changes.extend(self.registry.take(more));
        }
        self.registry.publish();
        changes
    }

    /// Reads the Secrets and ConfigMaps that the objects name and that were not read yet. Which these are is asked again
    /// of the state that comes of them.
    pub async fn read_named(&mut self, index: &Index) -> Vec<ObjectChange> {
        let mut changes = self.registry.name(Named::of(index));
        let missing = self.registry.unread();
        let asked = missing.len();
        self.fetch(missing);
        let mut left = asked;
        let end = Instant::now() + Duration::from_secs(10);
        while left > 0 {
            match tokio::time::timeout_at(end, self.seen.recv()).await {
                Ok(Some(seen)) => {
                    left -= usize::from(matches!(seen, Seen::Fetched(..)));
                    changes.extend(self.registry.take(seen));
                }
                _ => {
                    tracing::warn!(target: "kubernetes", left, "some Secrets and ConfigMaps are not read yet");
                    break;
                }
            }
        }
        self.registry.publish();
        changes
    }

    /// Reports changes until the receiver is gone. `named` tells which Secrets and ConfigMaps are of use.
    ///
    /// # Errors
    /// When watching ends.
    pub async fn run(
        mut self,
        changes: mpsc::Sender<Vec<ObjectChange>>,
        mut named: latest::Receiver<Named>,
    ) -> anyhow::Result<()> {
        loop {
            let found = tokio::select! {
                seen = self.seen.recv() => self.take(seen.context("nothing is watched any more")?),
                told = named.changed() => {
                    if told.is_err() {
                        return Ok(());
                    }
                    let now = named.borrow_and_update().clone();
                    let gone = self.registry.name(now);
                    let missing = self.registry.unread();
                    self.fetch(missing);
                    gone
                }
                ended = self.watchers.join_next() => {
                    let why = match ended {
                        Some(Err(error)) => error.to_string(),
                        _ => "it ended".to_owned(),
                    };
                    anyhow::bail!("a watch of Kubernetes failed: {why}");
                }
            };
            if !found.is_empty() && changes.send(found).await.is_err() {
                return Ok(());
            }
        }
    }

    /// Asks for objects by name, in all namespaces; answers come as events.
    fn fetch(&mut self, missing: BTreeSet<(Kind, Arc<str>)>) {
        while self.fetches.try_join_next().is_some() {}
        for (kind, name) in missing {
            self.fetches.spawn(named::fetch(self.client.clone(), kind, name, self.seen_tx.clone()));
        }
    }
}
