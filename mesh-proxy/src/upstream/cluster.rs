//! A cluster: its endpoints, how one is chosen, what is counted and limited. Shared by all workers, which read without
//! locks; changes (endpoints, health) come from the control thread and, for ejections, from workers.

use std::sync::{
    Arc, OnceLock, Weak,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use arc_swap::ArcSwap;
use mesh_api::model::{self, Discovery, Locality};
use parking_lot::Mutex;
use tokio::{
    runtime::Handle,
    sync::watch,
    task::{AbortHandle, JoinHandle},
};

use super::{
    Endpoint, LbContext, Outcome, PickError, Priority, Random,
    balance::{ThreadRandom, table::Table},
    circuit::{Circuit, RetryPermit},
    dns,
    dynamic::Dynamic,
    health,
    members::Members,
    names::Unresolved,
    original_dst::OriginalDst,
    outlier,
    stats::ClusterStats,
};
use crate::tls::ClusterTls;

/// A compiled cluster, shared by all workers.
#[derive(Debug)]
pub struct Cluster {
    /// What the control plane says.
    pub config: Arc<model::Cluster>,
    /// Counters.
    pub stats: Arc<ClusterStats>,
    /// Limits.
    pub circuit: Circuit,
    /// Identifies everything that connections depend on: versions of a cluster that agree share their connections.
    pub(super) settings: u64,
    pub(super) tls: ClusterTls,
    table: ArcSwap<Table>,
    members: Mutex<Members>,
    original_dst: Option<OriginalDst>,
    dynamic: Option<Dynamic>,
    /// Where this proxy is.
    zone: OnceLock<Locality>,
    warm: watch::Sender<bool>,
    tasks: Mutex<Vec<AbortHandle>>,
    /// The version before this one, until this one is warm.
    predecessor: Mutex<Weak<Cluster>>,
}

static NEXT_SETTINGS: AtomicU64 = AtomicU64::new(1);

impl Cluster {
    /// A cluster; static endpoints are in force at once, others come by [`Cluster::set_endpoints`] (EDS) or after
    /// [`Cluster::start`] (DNS).
    pub fn new(config: Arc<model::Cluster>, tls: ClusterTls) -> Arc<Self> {
        let circuit = Circuit::new(config.circuit_breakers);
        Self::build(config, tls, None, circuit, Arc::default())
    }

    /// A new version of `old`: shares its counters, what its circuit breakers have in use, and state of endpoints. It has
    /// the same endpoints when both get them in the same way. The old version stops looking after itself (DNS, health
    /// checks) when this one is warm.
    pub fn successor(config: Arc<model::Cluster>, tls: ClusterTls, old: &Arc<Cluster>) -> Arc<Self> {
        let circuit = old.circuit.with_limits(config.circuit_breakers);
        let new = Self::build(config, tls, Some(old), circuit, old.stats.clone());
        *new.predecessor.lock() = Arc::downgrade(old);
        if new.is_warm() {
            new.retire_predecessor();
        }
        new
    }

    fn build(
        config: Arc<model::Cluster>,
        tls: ClusterTls,
        old: Option<&Arc<Cluster>>,
        circuit: Circuit,
        stats: Arc<ClusterStats>,
    ) -> Arc<Self> {
        let settings = match old {
            Some(old) if same_connections(&old.config, &config) => old.settings,
            _ => NEXT_SETTINGS.fetch_add(1, Relaxed),
        };
        let mut members = old.map(|o| o.members.lock().successor(&config)).unwrap_or_default();
        if config.outlier.is_none() {
            stats.outlier_ejections_active.set(0);
        }
        let (mut initial, mut warm) = (None, false);
        match &config.discovery {
            Discovery::Static(set) => initial = Some(Arc::new(set.clone())),
            Discovery::OriginalDst { .. } | Discovery::Dynamic(_) => warm = true,
            Discovery::Eds { .. } | Discovery::StrictDns(_) | Discovery::LogicalDns(_) => {}
        }
        // What DNS or EDS said of the same names before is better than nothing.
        if let Some(old) = old.filter(|old| old.config.discovery == config.discovery)
            && initial.is_none()
        {
            initial = old.members.lock().set();
            warm |= initial.is_some() && old.is_warm() && config.health_checks == old.config.health_checks;
        }
        let cluster = Arc::new(Self {
            original_dst: match &config.discovery {
                Discovery::OriginalDst { port_override, .. } => Some(OriginalDst::new(*port_override)),
                _ => None,
            },
            dynamic: match &config.discovery {
                Discovery::Dynamic(cache) => Some(Dynamic::new(cache, &tls, old.and_then(|o| o.dynamic.as_ref()))),
                _ => None,
            },
            settings,
            tls,
            stats,
            circuit,
            table: ArcSwap::default(),
            members: Mutex::new(std::mem::take(&mut members)),
            zone: OnceLock::new(),
            warm: watch::Sender::new(warm || config.skip_warming),
            tasks: Mutex::default(),
            predecessor: Mutex::default(),
            config,
        });
        if let Some(zone) = old.and_then(|o| o.zone.get()) {
            let _ = cluster.zone.set(zone.clone());
        }
        if let Some(set) = initial {
            cluster.set_endpoints(set);
        }
        cluster
    }

    /// Where this proxy is, for zone-aware balancing. Only the first call counts.
    pub fn set_zone(&self, zone: &Locality) {
        if self.zone.set(zone.clone()).is_ok() && self.config.lb_common.zone_aware.is_some() {
            self.rebuild();
        }
    }

    /// Starts what the cluster does by itself (DNS, health checks, outlier sweeps) on the control thread's runtime. Ends
    /// when the cluster is dropped.
    pub fn start(self: &Arc<Self>, control: &Handle) {
        match &self.config.discovery {
            Discovery::StrictDns(set) | Discovery::LogicalDns(set) => {
                let logical = matches!(self.config.discovery, Discovery::LogicalDns(_));
                self.keep(control.spawn(dns::run(Arc::downgrade(self), Arc::new(set.clone()), logical)));
            }
            Discovery::OriginalDst { cleanup_interval, .. } => {
                let (cluster, every) = (Arc::downgrade(self), *cleanup_interval);
                self.keep(control.spawn(sweep(cluster, every, |c| {
                    if let Some(original) = &c.original_dst {
                        original.sweep();
                    }
                })));
            }
            Discovery::Dynamic(cache) => {
                if let Some(dynamic) = &self.dynamic {
                    dynamic.names.start(control);
                }
                let (cluster, every) = (Arc::downgrade(self), cache.min_refresh);
                self.keep(control.spawn(sweep(cluster, every, |c| {
                    if let Some(dynamic) = &c.dynamic {
                        dynamic.sweep();
                    }
                })));
            }
            Discovery::Static(_) | Discovery::Eds { .. } => {}
        }
        if !self.config.health_checks.is_empty() {
            self.keep(control.spawn(health::run(Arc::downgrade(self))));
        }
        if let Some(outlier) = &self.config.outlier {
            let every = outlier.interval;
            self.keep(control.spawn(sweep(Arc::downgrade(self), every, Cluster::sweep_outliers)));
        }
    }

    fn keep(&self, task: JoinHandle<()>) {
        self.tasks.lock().push(task.abort_handle());
    }

    /// Stops what [`Cluster::start`] started. Requests in flight go on.
    pub fn stop(&self) {
        for task in self.tasks.lock().drain(..) {
            task.abort();
        }
    }

    /// Resolves when the cluster counts as warm: the first endpoints (and first health checks) are there.
    pub async fn warmed(&self) {
        let mut rx = self.warm.subscribe();
        // The sender lives as long as `self`.
        let _ = rx.wait_for(|warm| *warm).await;
    }

    /// Whether the cluster is warm.
    pub fn is_warm(&self) -> bool {
        *self.warm.borrow()
    }

    /// Counts as warm from now on, whatever is missing (its time for EDS is over).
    pub fn give_up_warming(&self) {
        if !self.warm.send_replace(true) {
            self.retire_predecessor();
        }
    }

    fn retire_predecessor(&self) {
        if let Some(old) = std::mem::take(&mut *self.predecessor.lock()).upgrade() {
            old.stop();
        }
    }

    /// New endpoints (EDS). State of those that stay is kept by address.
    pub fn set_endpoints(&self, set: Arc<model::EndpointSet>) {
        let empty = set.localities.iter().all(|l| l.endpoints.is_empty());
        self.stats.update_success.inc();
        if empty {
            self.stats.update_empty.inc();
        }
        let pending = !self.config.health_checks.is_empty();
        let change = {
            let mut members = self.members.lock();
            let change = members.replace(set, &self.tls, pending);
            self.publish(&members);
            change
        };
        if change.is_some_and(|c| c.membership) {
            self.stats.membership_change.inc();
        }
        if change.is_some_and(|c| c.removed) && self.config.lb_common.close_on_host_set_change {
            for endpoint in self.endpoints() {
                endpoint.state.close_connections();
            }
        }
        // With health checks, endpoints count only when the first round is done.
        if !pending || empty {
            self.give_up_warming();
        }
    }

    /// New endpoints of a logical DNS cluster, `addresses` says where each is now.
    pub(super) fn set_resolved(
        &self,
        set: Arc<model::EndpointSet>,
        addresses: impl Fn(&model::Address) -> Option<Vec<std::net::SocketAddr>>,
    ) {
        self.set_endpoints(set);
        for endpoint in self.endpoints() {
            if let Some(addresses) = addresses(&endpoint.config.address) {
                endpoint.state.resolved.store(Arc::new(addresses));
            }
        }
    }

    /// Takes in what has changed in the health of endpoints.
    pub(super) fn rebuild(&self) {
        self.publish(&self.members.lock());
    }

    fn publish(&self, members: &Members) {
        let table = members.table(&self.config, self.zone.get());
        let (healthy, degraded) = table.healthy();
        let total = table.all.len();
        let s = &self.stats;
        s.membership_total.set(total as u64);
        s.membership_healthy.set(healthy.into());
        s.membership_degraded.set(degraded.into());
        s.max_host_weight.set(table.all.iter().map(|e| e.weight()).max().unwrap_or(0).into());
        self.table.store(Arc::new(table));
    }

    /// All endpoints, in order of configuration.
    pub fn endpoints(&self) -> Vec<Arc<Endpoint>> {
        match (&self.original_dst, &self.dynamic) {
            (Some(original), _) => original.all(),
            (None, Some(dynamic)) => dynamic.all(),
            (None, None) => self.table.load().all.clone(),
        }
    }

    /// Whether endpoints are found by name: by [`Cluster::resolve`], not by [`Cluster::pick`].
    pub fn is_dynamic(&self) -> bool {
        self.dynamic.is_some()
    }

    /// The endpoint of a host, at a port or else at the one that TLS or its absence suggests. Waits while the name is
    /// looked up.
    ///
    /// # Errors
    /// When the name has no address, or too many names or requests are being looked up. Clusters that are not
    /// [dynamic](Cluster::is_dynamic) know no names.
    pub async fn resolve(&self, host: &str, port: Option<u16>) -> Result<Arc<Endpoint>, Unresolved> {
        let found = match &self.dynamic {
            Some(dynamic) => dynamic.resolve(host, port, &self.tls).await,
            None => Err(Unresolved::NoHost),
        };
        if found.is_err() {
            self.stats.upstream_cx_none_healthy.inc();
        }
        found
    }

    /// Chooses an endpoint.
    ///
    /// # Errors
    /// When there is none that may take the request.
    pub fn pick(&self, ctx: &LbContext<'_>, random: &impl Random) -> Result<Arc<Endpoint>, PickError> {
        let picked = match &self.original_dst {
            Some(original) => original.pick(ctx.original_dst, &self.tls).ok_or_else(|| {
                self.stats.original_dst_host_invalid.inc();
                PickError::NoOriginalDestination
            }),
            None => self.table.load().pick(ctx, random, &self.stats),
        };
        if matches!(picked, Err(PickError::NoHealthy | PickError::Panic | PickError::NoOriginalDestination)) {
            self.stats.upstream_cx_none_healthy.inc();
        }
        picked
    }

    /// Whether there are endpoints at all that a request could go to.
    pub fn has_healthy(&self) -> bool {
        self.original_dst.is_some() || self.is_dynamic() || {
            let (healthy, degraded) = self.table.load().healthy();
            healthy + degraded > 0
        }
    }

    /// Tells passive health checks what happened. `Pools::send` reports answers, connect failures and resets by itself;
    /// callers report timeouts of theirs.
    pub fn report(&self, endpoint: &Arc<Endpoint>, outcome: Outcome, random: &impl Random) {
        if outcome == Outcome::Timeout {
            endpoint.state.stats.rq_timeout.inc();
        }
        let Some(cfg) = &self.config.outlier else { return };
        let Some(cause) = outlier::note(cfg, endpoint, outcome) else { return };
        let table = self.table.load();
        if outlier::eject(cfg, &self.stats, &table.all, endpoint, cause, random) {
            tracing::debug!(cluster = %self.config.name, address = %endpoint.config.address, ?cause, "endpoint ejected");
            self.rebuild();
        }
    }

    fn sweep_outliers(&self) {
        let Some(cfg) = &self.config.outlier else { return };
        if outlier::sweep(cfg, &self.stats, &self.table.load().all, &ThreadRandom) {
            self.rebuild();
        }
    }

    /// Allows a retry, or not (`upstream_rq_retry_overflow`).
    pub fn try_retry(&self, priority: Priority) -> Option<RetryPermit> {
        self.circuit.try_retry(priority)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Whether connections made for one serve the other.
fn same_connections(a: &model::Cluster, b: &model::Cluster) -> bool {
    a.http == b.http
        && a.proxy_protocol == b.proxy_protocol
        && a.tcp_keepalive == b.tcp_keepalive
        && a.bind_source == b.bind_source
        && a.per_connection_buffer_limit == b.per_connection_buffer_limit
        && a.tls == b.tls
        && a.tls_matches == b.tls_matches
}

/// Does something to the cluster again and again, as long as it lives.
async fn sweep(cluster: Weak<Cluster>, every: std::time::Duration, what: impl Fn(&Cluster)) {
    let every = every.max(std::time::Duration::from_millis(1));
    loop {
        tokio::time::sleep(every).await;
        let Some(cluster) = cluster.upgrade() else { return };
        what(&cluster);
    }
}
