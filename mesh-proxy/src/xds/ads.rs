//! Follows the control plane over ADS: applies what comes, answers, and asks for what configuration refers to. While there
//! is no stream everything that was accepted stays in force, and what was on its way into force goes on.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use mesh_api::model::Name;
use mesh_api::xds::TypeUrl;
use mesh_api::xds::envoy::config::core::v3::Node;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, MissedTickBehavior, interval},
};

use super::apply;
use super::protocol::{Protocol, Request, Resource, Response, Update, Variant};
use super::store::SharedStore;
pub use super::stream::Connect;
use super::stream::{self, Heard, Service};
use super::subscriptions::Interest;
use crate::config::SharedConfig;
use crate::config::apply::{Configurator, Event};
use crate::dns::Names;

/// Resources that are applied before others get the thread.
const BATCH: usize = 64;

/// How it stands with the control plane.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AdsStatus {
    /// A stream is open and something was heard on it.
    pub connected: bool,
    /// The first clusters and listeners have arrived (or are not waited for any more).
    pub initial: bool,
    /// Why the last stream ended.
    pub error: Option<String>,
}

/// What the client needs.
pub struct Client {
    /// Where to.
    pub connect: Box<dyn Connect>,
    /// Delta or state of the world.
    pub delta: bool,
    /// Who we are.
    pub node: Node,
    /// The node is sent with every request, not with the first of a stream only.
    pub repeat_node: bool,
    /// Clusters are asked for, with how long the first ones are waited for at the start (zero: for ever).
    pub clusters: Option<Duration>,
    /// Listeners likewise.
    pub listeners: Option<Duration>,
    /// Where the names of the mesh go, when the application's DNS is answered.
    pub names: Option<Arc<Names>>,
    /// Process-wide state.
    pub shared: Arc<SharedConfig>,
    /// What was accepted.
    pub store: SharedStore,
    /// Told of changes.
    pub status: Arc<watch::Sender<AdsStatus>>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("node", &self.node.id).field("delta", &self.delta).finish_non_exhaustive()
    }
}

impl Client {
    /// Runs for ever.
    pub async fn run(self, config: Configurator, mut events: mpsc::UnboundedReceiver<Event>) {
        let variant = if self.delta { Variant::Delta } else { Variant::Sotw };
        let mut driver = Driver {
            place: self.connect.place(),
            protocol: Protocol::new(variant, self.node, self.repeat_node),
            config,
            names: self.names,
            shared: self.shared,
            store: self.store,
            status: self.status,
            first: First::new(self.clusters, self.listeners),
            wanted: HashMap::new(),
            looked: None,
            out: None,
        };
        let mut heard = stream::keep_open(self.connect, Service::Ads(variant));
        let mut tick = interval(Duration::from_secs(1));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        driver.settle();
        loop {
            tokio::select! {
                what = heard.recv() => match what {
                    Some(Heard::Opening(out)) => driver.opening(out),
                    Some(Heard::Response(response)) => driver.response(response).await,
                    Some(Heard::Lost(why)) => driver.lost(why),
                    None => return,
                },
                event = events.recv() => {
                    let Some(event) = event else { return };
                    driver.config.note(&event);
                    // They come in heaps.
                    while let Ok(event) = events.try_recv() {
                        driver.config.note(&event);
                    }
                }
                // Secrets are let go of when the last connection with an old context ends, which tells nobody.
                _ = tick.tick() => driver.looked = None,
            }
            driver.settle();
        }
    }
}

/// The first answers of the control plane, which the start waits for.
struct First {
    since: Instant,
    asked: (bool, bool),
    clusters: Wait,
    listeners: Wait,
}

#[derive(Clone, Copy, PartialEq)]
enum Wait {
    /// Not asked for, answered, or not waited for any more.
    Over,
    /// Until then; `None`: for ever.
    For(Option<Duration>),
}

impl First {
    fn new(clusters: Option<Duration>, listeners: Option<Duration>) -> Self {
        let wait = |asked: Option<Duration>| match asked {
            None => Wait::Over,
            Some(limit) => Wait::For((!limit.is_zero()).then_some(limit)),
        };
        let asked = (clusters.is_some(), listeners.is_some());
        Self { since: Instant::now(), asked, clusters: wait(clusters), listeners: wait(listeners) }
    }
    /// Whether a type is asked for as a whole.
    fn asks(&self, ty: TypeUrl) -> bool {
        match ty {
            TypeUrl::Cluster => self.asked.0,
            TypeUrl::Listener => self.asked.1,
            _ => false,
        }
    }
    fn expire(&mut self) {
        let waited = self.since.elapsed();
        for wait in [&mut self.clusters, &mut self.listeners] {
            if matches!(wait, Wait::For(Some(limit)) if *limit <= waited) {
                *wait = Wait::Over;
            }
        }
    }
    fn heard(&mut self, ty: TypeUrl) {
        match ty {
            TypeUrl::Cluster => self.clusters = Wait::Over,
            TypeUrl::Listener => self.listeners = Wait::Over,
            _ => {}
        }
    }
}

struct Driver {
    place: String,
    protocol: Protocol,
    config: Configurator,
    names: Option<Arc<Names>>,
    shared: Arc<SharedConfig>,
    store: SharedStore,
    status: Arc<watch::Sender<AdsStatus>>,
    first: First,
    /// Names asked for, of the types that are asked for by name.
    wanted: HashMap<TypeUrl, BTreeSet<Name>>,
    /// State of references and secrets when names were looked for.
    looked: Option<(u64, u64)>,
    out: Option<mpsc::UnboundedSender<Request>>,
}

impl Driver {
    fn opening(&mut self, out: mpsc::UnboundedSender<Request>) {
        self.out = Some(out);
        self.protocol.connected();
        self.flush();
    }

    fn lost(&mut self, why: String) {
        self.out = None;
        self.protocol.disconnected();
        tracing::warn!(target: "xds", "control plane {}: {why}", self.place);
        self.status.send_modify(|s| {
            s.connected = false;
            s.error = Some(why);
        });
    }

    async fn response(&mut self, response: Response) {
        if let Some(update) = self.protocol.received(response) {
            let refused = self.apply(&update).await;
            self.first.heard(update.ty);
            tracing::debug!(target: "xds", ty = update.ty.short(), version = update.version,
                resources = update.resources.len(), removed = update.removed.len(), refused = refused.len(), "push");
            self.protocol.judged(update, refused);
        }
        self.flush();
        self.status.send_if_modified(|s| {
            let news = !s.connected || s.error.is_some();
            s.connected = true;
            s.error = None;
            news
        });
    }

    /// Puts an update in force as far as it can be used; what cannot is told by name.
    async fn apply(&mut self, update: &Update) -> Vec<(Name, String)> {
        // What goes makes room for what comes: a listener may take the address of one that is gone.
        let names = self.names.as_deref();
        apply::remove(&mut self.config, &self.shared, names, &self.store, update.ty, &update.removed);
        let mut refused = vec![];
        for batch in update.resources.chunks(BATCH) {
            let names = self.names.as_deref();
            refused.extend(apply::update(&mut self.config, &self.shared, names, &self.store, update.ty, batch));
            tokio::task::yield_now().await;
        }
        for (name, reason) in self.bind_failures(&update.resources) {
            if update.ty == TypeUrl::Listener && update.resources.iter().any(|r| r.name == name) {
                refused.push((name, reason));
            }
        }
        refused
    }

    /// Listeners that could not be bound. What we have of them is not what the control plane sent.
    fn bind_failures(&mut self, resources: &[Resource]) -> Vec<(Name, String)> {
        let failed = self.config.settle();
        log_failures(&failed);
        for (name, error) in &failed {
            let sent = resources.iter().find(|r| r.name == *name);
            let (version, wire) = sent.map(|r| (r.version.as_str(), r.wire.clone())).unwrap_or_default();
            self.store.lock().unbound(name, version, wire, &error.0);
            self.protocol.lacks(TypeUrl::Listener, name);
        }
        failed.into_iter().map(|(name, error)| (name, error.0)).collect()
    }

    /// Brings into force what has become ready, and asks for what is newly referred to.
    fn settle(&mut self) {
        self.bind_failures(&[]);
        self.first.expire();
        if self.first.clusters == Wait::Over && self.first.listeners == Wait::Over {
            self.status.send_if_modified(|s| !std::mem::replace(&mut s.initial, true));
        }
        self.subscribe();
        self.flush();
    }

    fn subscribe(&mut self) {
        if self.names.is_some() {
            self.protocol.subscribe(TypeUrl::NameTable, Interest::all());
        }
        if self.first.asks(TypeUrl::Cluster) {
            self.protocol.subscribe(TypeUrl::Cluster, Interest::all());
        }
        let now = Some((self.config.references(), self.shared.secrets.version()));
        let changed = std::mem::replace(&mut self.looked, now) != now;
        let by_name = [TypeUrl::Endpoints, TypeUrl::Secret, TypeUrl::Route, TypeUrl::Extension];
        for ty in by_name.into_iter().filter(|_| changed) {
            let names = apply::wanted(&self.config, &self.shared, ty);
            let before = self.wanted.entry(ty).or_default();
            if *before == names {
                continue;
            }
            let gone: Vec<Name> = before.difference(&names).cloned().collect();
            before.clone_from(&names);
            self.protocol.subscribe(ty, Interest { wildcard: false, names });
            apply::forget(&mut self.config, &self.shared, &self.store, ty, &gone);
        }
        // Listeners refer to clusters, which must be known before: otherwise they would be answered with "no such
        // cluster" until then.
        if self.first.asks(TypeUrl::Listener) && self.first.clusters == Wait::Over {
            self.protocol.subscribe(TypeUrl::Listener, Interest::all());
        }
    }

    fn flush(&mut self) {
        while let Some(request) = self.protocol.next_request() {
            // Without a stream the outbox is empty; one that has just been lost says so soon.
            if let Some(out) = &self.out {
                let _ = out.send(request);
            }
        }
    }
}

/// Listeners that could not be bound are said out loud.
pub fn log_failures(failed: &[(Name, crate::config::ConfigError)]) {
    for (name, error) in failed {
        tracing::error!(target: "listener", "{name}: {error}");
    }
}
