//! From model values to what is in force: compiles, waits until things are warm, publishes snapshots.
//!
//! One task of the control thread owns it. The rules: a route table or listener comes into force only when the clusters
//! that are new to it are warm; a listener also needs its secrets and its route table, or its patience to end. A changed
//! cluster replaces the old one when it is warm itself. Endpoints touch their cluster only. Knows no sockets and no
//! streams: listeners are handed to a [`Bind`].

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use mesh_api::model::{self, Discovery, Name};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::extensions::Extensions;
use super::{CompileCtx, ConfigError, SharedConfig, Snapshot};
use crate::http::router::RouteTable;
use crate::net::Listener;
use crate::net::listener::Terminal;
use crate::tls::ClusterTls;
use crate::upstream::Cluster;

/// Puts listeners in front of the world.
pub trait Bind: Send + Sync {
    /// A new listener, or a new version of one that is in force.
    ///
    /// # Errors
    /// When an address cannot be bound; the listener is not in force then.
    fn put(&mut self, listener: Arc<Listener>) -> Result<(), ConfigError>;
    /// A listener goes away.
    fn remove(&mut self, name: &str);
}

/// A cluster is looked after in steps of this length while it warms.
const NAP: Duration = Duration::from_secs(1);
/// How long connections of a filter chain that is gone may finish.
pub const CHAIN_DRAIN: Duration = Duration::from_secs(45);

/// What happens outside and matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A cluster of this name became warm, or ran out of patience.
    Warm(Name),
    /// Secrets changed.
    Secrets,
    /// Somebody's patience may have ended.
    Tick,
}

/// A listener that waits.
struct Waiting {
    listener: Arc<Listener>,
    /// Serves what it can after this; `None`: waits for ever.
    until: Option<Instant>,
    /// Since when it waits for its filters, each of which has its own patience; `None`: it does not.
    since: Option<Instant>,
}

/// Everything that was accepted, and what of it is in force.
pub struct Configurator {
    shared: Arc<SharedConfig>,
    control: Handle,
    events: mpsc::UnboundedSender<Event>,
    bind: Box<dyn Bind>,
    clusters: BTreeMap<Name, Arc<Cluster>>,
    /// New versions that are not warm yet.
    warming: BTreeMap<Name, Arc<Cluster>>,
    endpoints: HashMap<Name, Arc<model::EndpointSet>>,
    routes: BTreeMap<Name, Arc<RouteTable>>,
    waiting_routes: BTreeMap<Name, Arc<RouteTable>>,
    listeners: BTreeMap<Name, Arc<Listener>>,
    waiting_listeners: BTreeMap<Name, Waiting>,
    /// Configurations of filters, by discovery.
    extensions: Extensions,
    /// Names that were asked for and do not exist.
    missing_routes: HashSet<Name>,
    /// Secrets likewise: nobody waits for them.
    missing_secrets: HashSet<Name>,
    /// Tables that nothing refers to any more but connections that drain, and since when.
    retired: Vec<(Name, Instant)>,
    version: u64,
    dirty: bool,
    /// Counts changes of what is referred to by name.
    references: u64,
    /// Why not everything is in force, for readiness.
    still: Arc<ArcSwap<Vec<String>>>,
}

impl Configurator {
    /// Nothing is in force yet.
    pub fn new(
        shared: Arc<SharedConfig>,
        control: Handle,
        events: mpsc::UnboundedSender<Event>,
        bind: Box<dyn Bind>,
    ) -> Self {
        Self {
            shared,
            control,
            events,
            bind,
            clusters: BTreeMap::new(),
            warming: BTreeMap::new(),
            endpoints: HashMap::new(),
            routes: BTreeMap::new(),
            waiting_routes: BTreeMap::new(),
            listeners: BTreeMap::new(),
            waiting_listeners: BTreeMap::new(),
            extensions: Extensions::default(),
            missing_routes: HashSet::new(),
            missing_secrets: HashSet::new(),
            retired: vec![],
            version: 0,
            dirty: false,
            references: 0,
            still: Arc::default(),
        }
    }

    /// Why not everything is in force, kept up to date.
    pub fn still_waiting(&self) -> Arc<ArcSwap<Vec<String>>> {
        self.still.clone()
    }

    /// A new or changed cluster.
    ///
    /// # Errors
    /// When its TLS cannot be set up; the old version stays.
    pub fn put_cluster(&mut self, config: model::Cluster) -> Result<(), ConfigError> {
        let name = config.name.clone();
        let newest = self.warming.get(&name).or_else(|| self.clusters.get(&name));
        if newest.is_some_and(|c| *c.config == config) {
            return Ok(());
        }
        let tls = ClusterTls::new(&config, &self.shared.secrets)
            .map_err(|e| ConfigError::new(e).within(format_args!("cluster {name:?}")))?;
        let config = Arc::new(config);
        let cluster = match newest {
            Some(old) => Cluster::successor(config.clone(), tls, old),
            None => Cluster::new(config.clone(), tls),
        };
        cluster.set_zone(&self.shared.node.locality);
        cluster.start(&self.control);
        self.references += 1;
        if let Discovery::Eds { service } = &config.discovery
            && let Some(set) = self.endpoints.get(service)
        {
            cluster.set_endpoints(set.clone());
        }
        if cluster.is_warm() {
            self.warming.remove(&name);
            self.clusters.insert(name, cluster);
            self.dirty = true;
        } else {
            self.wait_for(&name, &cluster);
            self.warming.insert(name, cluster);
        }
        Ok(())
    }

    fn wait_for(&self, name: &Name, cluster: &Arc<Cluster>) {
        let patience = match &cluster.config.discovery {
            Discovery::Eds { .. } if cluster.config.eds_fetch_timeout.is_zero() => None,
            Discovery::Eds { .. } => Some(cluster.config.eds_fetch_timeout),
            _ => Some(Duration::from_secs(15)),
        };
        let (name, cluster, events) = (name.clone(), Arc::downgrade(cluster), self.events.clone());
        self.control.spawn(async move {
            let until = patience.map(|p| Instant::now() + p);
            loop {
                // Held for a moment at a time: a version that is replaced meanwhile is not kept.
                let Some(waiting) = cluster.upgrade() else { return };
                let nap = until.map_or(NAP, |u| u.saturating_duration_since(Instant::now()).min(NAP));
                let warm = tokio::time::timeout(nap, waiting.warmed()).await.is_ok();
                if !warm && until.is_some_and(|u| u <= Instant::now()) {
                    tracing::warn!(target: "cluster", "{name}: endpoints did not arrive in time, going on without");
                    waiting.give_up_warming();
                } else if !warm {
                    continue;
                }
                let _ = events.send(Event::Warm(name));
                return;
            }
        });
    }

    /// A cluster goes away.
    pub fn remove_cluster(&mut self, name: &str) {
        self.references += 1;
        self.dirty |= self.clusters.remove(name).is_some();
        self.warming.remove(name);
    }

    /// Endpoints of all clusters that get them under this name.
    pub fn put_endpoints(&mut self, name: &Name, set: model::EndpointSet) {
        let set = Arc::new(set);
        for cluster in self.clusters.values().chain(self.warming.values()) {
            if matches!(&cluster.config.discovery, Discovery::Eds { service } if service == name) {
                cluster.set_endpoints(set.clone());
            }
        }
        self.endpoints.insert(name.clone(), set);
        self.settle_warm();
    }

    /// Endpoints that the control plane does not have: none, which is an answer.
    pub fn remove_endpoints(&mut self, name: &Name) {
        self.put_endpoints(name, model::EndpointSet { cluster: name.clone(), ..Default::default() });
        self.endpoints.remove(name);
    }

    /// A new or changed route table.
    ///
    /// # Errors
    /// When it cannot be compiled; the old one stays.
    pub fn put_routes(&mut self, config: &model::RouteConfig) -> Result<(), ConfigError> {
        let table = RouteTable::compile(config, &self.shared.route_stats)?;
        self.missing_routes.remove(&config.name);
        self.waiting_routes.insert(config.name.clone(), table);
        Ok(())
    }

    /// A route table goes away, or does not exist.
    pub fn remove_routes(&mut self, name: &Name) {
        self.dirty |= self.routes.remove(name).is_some();
        self.waiting_routes.remove(name);
        self.missing_routes.insert(name.clone());
    }

    /// A route table that nothing refers to any more. Connections that drain go on using it for a while.
    pub fn forget_routes(&mut self, name: &Name) {
        self.waiting_routes.remove(name);
        self.missing_routes.remove(name);
        self.retired.push((name.clone(), Instant::now()));
    }

    fn drop_retired(&mut self, now: Instant) {
        if self.retired.iter().all(|(_, since)| now.duration_since(*since) < CHAIN_DRAIN) {
            return;
        }
        let wanted: HashSet<Name> = self.wanted_routes().into_iter().collect();
        let (over, rest) = std::mem::take(&mut self.retired)
            .into_iter()
            .partition(|(_, since)| now.duration_since(*since) >= CHAIN_DRAIN);
        self.retired = rest;
        let over: Vec<(Name, Instant)> = over;
        for (name, _) in over {
            if !wanted.contains(&name) {
                self.dirty |= self.routes.remove(&name).is_some();
            }
        }
    }

    /// Whether the control plane has a secret of this name: what it does not have is not waited for.
    pub fn secret_exists(&mut self, name: &Name, exists: bool) {
        if exists {
            self.missing_secrets.remove(name);
        } else {
            self.missing_secrets.insert(name.clone());
        }
    }

    /// A new or changed listener.
    ///
    /// # Errors
    /// When it cannot be compiled; the old version stays.
    pub fn put_listener(&mut self, config: model::Listener) -> Result<(), ConfigError> {
        // Who waits for what is looked up by what was declared.
        let before = self.extensions.declare(&config);
        let name = config.name.clone();
        match self.prepare(config) {
            Ok(waiting) => self.waiting_listeners.extend(waiting.map(|w| (name, w))),
            Err(error) => {
                match &before {
                    Some(listener) => drop(self.extensions.declare(listener)),
                    None => self.extensions.undeclare(&name),
                }
                return Err(error);
            }
        }
        self.references += 1;
        Ok(())
    }

    /// Compiles a listener with the filters of the moment; `None`: the newest version is like that.
    fn prepare(&self, mut config: model::Listener) -> Result<Option<Waiting>, ConfigError> {
        self.extensions.resolve(&mut config);
        let name = config.name.clone();
        let previous = self.listeners.get(&name);
        let newest = self.waiting_listeners.get(&name).map(|w| &w.listener).or(previous);
        if newest.is_some_and(|l| *l.config == config) {
            return Ok(None);
        }
        let ctx = CompileCtx {
            shared: self.shared.clone(),
            listener: name.clone(),
            chain: "".into(),
            direction: config.traffic_direction,
        };
        let listener = Listener::compile(Arc::new(config), previous.map(|p| &**p), &ctx)?;
        let listener = Arc::new(listener);
        let patience = rds(&listener).map(|(_, patience)| patience).max();
        let now = Instant::now();
        let until = match patience {
            Some(Duration::ZERO) => None,
            patience => Some(now + patience.unwrap_or(Duration::from_secs(15))),
        };
        Ok(Some(Waiting { listener, until, since: Some(now) }))
    }

    /// A new or changed configuration of filters.
    ///
    /// # Errors
    /// When a listener that uses it does not take it; the old one stays.
    pub fn put_extension(&mut self, config: model::ExtensionConfig) -> Result<(), ConfigError> {
        self.extensions.check(&config)?;
        let name = config.name.clone();
        self.change_extension(&name, Some(config))
    }

    /// There is no configuration of this name: defaults serve, and nobody waits any more.
    pub fn remove_extension(&mut self, name: &Name) {
        if let Err(error) = self.change_extension(name, None) {
            tracing::warn!(target: "listener", "filters {name}: {error}");
        }
    }

    /// The first configuration of this name is of no use: as if there were none. A good one that was there stays.
    pub fn extension_refused(&mut self, name: &Name) {
        if !self.extensions.is_known(name) {
            self.remove_extension(name);
        }
    }

    /// A configuration that no listener refers to any more.
    pub fn forget_extension(&mut self, name: &Name) {
        self.extensions.restore(name, None);
    }

    fn change_extension(&mut self, name: &Name, config: Option<model::ExtensionConfig>) -> Result<(), ConfigError> {
        let before = self.extensions.set(name, config);
        let mut prepared = Vec::new();
        for listener in self.extensions.users(name) {
            let user = listener.name.clone();
            match self.prepare(listener) {
                Ok(waiting) => prepared.extend(waiting.map(|w| (user, w))),
                Err(error) => {
                    self.extensions.restore(name, before);
                    return Err(error.within(format_args!("listener {user}")));
                }
            }
        }
        for (user, mut waiting) in prepared {
            // What it waits for beside this did not begin anew.
            match self.waiting_listeners.get(&user) {
                Some(old) => (waiting.until, waiting.since) = (old.until, old.since),
                None => waiting.since = None,
            }
            self.waiting_listeners.insert(user, waiting);
        }
        self.references += 1;
        Ok(())
    }

    /// A listener goes away.
    pub fn remove_listener(&mut self, name: &str) {
        self.references += 1;
        self.extensions.undeclare(name);
        self.waiting_listeners.remove(name);
        if let Some(listener) = self.listeners.remove(name) {
            self.bind.remove(name);
            self.drain_chains(&listener, None);
            self.dirty = true;
        }
    }

    /// Connections of chains that are not carried on finish what they do, and are closed when that takes too long.
    fn drain_chains(&self, old: &Listener, new: Option<&Listener>) {
        for chain in old.abandoned(new) {
            chain.drain.drain();
            let trigger = chain.drain.clone();
            self.control.spawn(async move {
                tokio::time::sleep(CHAIN_DRAIN).await;
                trigger.close();
            });
        }
    }

    /// Something happened.
    pub fn note(&mut self, event: &Event) {
        // Which version became warm is seen there: another may be on its way under the same name.
        if let Event::Warm(_) = event {
            self.settle_warm();
        }
    }

    fn settle_warm(&mut self) {
        let warm: Vec<Name> = self.warming.iter().filter(|(_, c)| c.is_warm()).map(|(n, _)| n.clone()).collect();
        for name in warm {
            if let Some(cluster) = self.warming.remove(&name) {
                self.clusters.insert(name, cluster);
                self.references += 1;
                self.dirty = true;
            }
        }
    }

    /// Brings everything into force that is ready. Errors of listeners that could not be bound come back by name.
    pub fn settle(&mut self) -> Vec<(Name, ConfigError)> {
        let new_and_cold = |name: &Name| self.warming.contains_key(name) && !self.clusters.contains_key(name);
        let ready: Vec<Name> = self
            .waiting_routes
            .iter()
            .filter(|(_, table)| !table.clusters().any(new_and_cold))
            .map(|(name, _)| name.clone())
            .collect();
        for name in ready {
            if let Some(table) = self.waiting_routes.remove(&name) {
                self.routes.insert(name, table);
                self.dirty = true;
            }
        }
        let now = Instant::now();
        self.drop_retired(now);
        // Clusters and tables first: a listener that begins to accept finds them.
        self.publish();
        let ready: Vec<Name> =
            self.waiting_listeners.iter().filter(|(_, w)| self.is_ready(w, now)).map(|(n, _)| n.clone()).collect();
        let mut failed = Vec::new();
        for name in ready {
            let Some(Waiting { listener, .. }) = self.waiting_listeners.remove(&name) else { continue };
            self.references += 1;
            if let Err(error) = self.bind.put(listener.clone()) {
                failed.push((name, error));
                continue;
            }
            listener.activate();
            if let Some(old) = self.listeners.insert(name, listener.clone()) {
                self.drain_chains(&old, Some(&listener));
            }
            self.dirty = true;
        }
        self.publish();
        let waiting = self.waiting();
        if **self.still.load() != waiting {
            self.still.store(Arc::new(waiting));
        }
        failed
    }

    fn is_ready(&self, waiting: &Waiting, now: Instant) -> bool {
        let listener = &waiting.listener;
        let in_time = |since: Instant, patience: Duration| patience.is_zero() || now < since + patience;
        let mut pending = self.extensions.pending(&listener.config.name);
        if waiting.since.is_some_and(|since| pending.any(|(_, patience)| in_time(since, patience))) {
            return false;
        }
        if waiting.until.is_some_and(|until| until <= now) {
            return true;
        }
        let routes =
            rds(listener).all(|(name, _)| self.routes.contains_key(name) || self.missing_routes.contains(name));
        let cold = |name: &Name| self.warming.contains_key(name) && !self.clusters.contains_key(name);
        let clusters = !clusters_of(listener).any(|name| cold(&name));
        self.tls_ready(listener) && routes && clusters
    }

    /// All secrets are there that there will be.
    fn tls_ready(&self, listener: &Listener) -> bool {
        let there = |tls: &crate::tls::ServerTls| tls.missing().iter().all(|name| self.missing_secrets.contains(name));
        listener.chains().all(|chain| chain.tls.as_ref().is_none_or(|tls| there(tls)))
    }

    fn publish(&mut self) {
        if !std::mem::take(&mut self.dirty) {
            return;
        }
        self.version += 1;
        let of = |map: &BTreeMap<Name, Arc<Cluster>>| map.iter().map(|(n, c)| (n.clone(), c.clone())).collect();
        let by_address = self.listeners.values().flat_map(|l| l.socket_addresses().map(|a| (a, l.clone()))).collect();
        self.shared.snapshot.store(Arc::new(Snapshot {
            by_address: Arc::new(by_address),
            listeners: Arc::new(self.listeners.iter().map(|(n, l)| (n.clone(), l.clone())).collect()),
            routes: Arc::new(self.routes.iter().map(|(n, r)| (n.clone(), r.clone())).collect()),
            clusters: Arc::new(of(&self.clusters)),
            version: self.version,
        }));
    }

    /// Changes when names that are wanted may have.
    pub fn references(&self) -> u64 {
        self.references
    }

    /// EDS names that are wanted now.
    pub fn wanted_endpoints(&self) -> Vec<Name> {
        let all = self.clusters.values().chain(self.warming.values());
        let mut names: Vec<Name> = all
            .filter_map(|c| match &c.config.discovery {
                Discovery::Eds { service } => Some(service.clone()),
                _ => None,
            })
            .collect();
        names.sort();
        names.dedup();
        names
    }

    /// RDS names that are wanted now.
    pub fn wanted_routes(&self) -> Vec<Name> {
        let waiting = self.waiting_listeners.values().map(|w| &w.listener);
        let mut names: Vec<Name> =
            self.listeners.values().chain(waiting).flat_map(|l| rds(l).map(|(n, _)| n.clone())).collect();
        names.sort();
        names.dedup();
        names
    }

    /// Names of filter configurations that are wanted now.
    pub fn wanted_extensions(&self) -> BTreeSet<Name> {
        self.extensions.wanted()
    }

    /// Why not everything is in force, in words; empty when it is.
    pub fn waiting(&self) -> Vec<String> {
        let mut out: Vec<String> = Vec::new();
        for (name, waiting) in &self.waiting_listeners {
            let tls = if self.tls_ready(&waiting.listener) { "" } else { " for certificates" };
            let missing: Vec<&str> =
                rds(&waiting.listener).map(|(n, _)| &**n).filter(|n| !self.routes.contains_key(*n)).collect();
            let routes = if missing.is_empty() { String::new() } else { format!(" for routes {}", missing.join(", ")) };
            let pending: Vec<&str> = self.extensions.pending(name).map(|(n, _)| &**n).collect();
            let filters =
                if pending.is_empty() { String::new() } else { format!(" for filters {}", pending.join(", ")) };
            out.push(format!("listener {name} waits{tls}{routes}{filters}"));
        }
        out.extend(
            self.warming
                .keys()
                .filter(|n| !self.clusters.contains_key(*n))
                .map(|n| format!("cluster {n} waits for endpoints")),
        );
        out
    }

    /// Tables that came and wait for clusters.
    pub fn has_waiting_routes(&self) -> bool {
        !self.waiting_routes.is_empty()
    }
}

/// Tables that a listener gets over RDS, and how long it waits for each.
fn rds(listener: &Listener) -> impl Iterator<Item = (&Name, Duration)> {
    listener.chains().filter_map(|chain| match &chain.terminal {
        Some(Terminal::Http { manager, .. }) => Some((manager.rds_name()?, manager.config.rds_fetch_timeout)),
        _ => None,
    })
}

/// Clusters that a listener names itself.
fn clusters_of(listener: &Listener) -> impl Iterator<Item = Name> {
    listener.chains().flat_map(|chain| -> Vec<Name> {
        match &chain.terminal {
            Some(Terminal::Http { manager, .. }) => {
                manager.inline_routes().map(|t| t.clusters().cloned().collect()).unwrap_or_default()
            }
            Some(Terminal::Tcp(proxy)) => proxy.config.clusters.iter().map(|(n, _)| n.clone()).collect(),
            None => vec![],
        }
    })
}

impl std::fmt::Debug for Configurator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Configurator").field("version", &self.version).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
