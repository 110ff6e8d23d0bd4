//! One endpoint: what the configuration says of it, and the state that outlives configuration changes as long as the
//! address stays (health, load, outlier records, counters). Knows no sockets.

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{
            AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize,
            Ordering::{Relaxed, SeqCst},
        },
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use mesh_api::model::{self, Address, HealthStatus, Locality, SlowStart};
use smallvec::SmallVec;
use tokio::{sync::Notify, time::Instant};

use super::{outlier::Record, stats::EndpointStats};
use crate::tls::ClientTls;

/// An endpoint as the balancer sees it.
#[derive(Debug)]
pub struct Endpoint {
    /// What the control plane says.
    pub config: model::Endpoint,
    /// Where it is.
    pub locality: Arc<Locality>,
    /// 0 is preferred.
    pub priority: u32,
    /// How TLS is spoken to it; `None`: cleartext.
    pub tls: Option<Arc<ClientTls>>,
    /// What outlives changes of the configuration.
    pub state: Arc<EndpointState>,
}

/// Where connections go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// TCP, in order of preference (more than one: happy eyeballs).
    Tcp(SmallVec<[SocketAddr; 1]>),
    /// Unix socket.
    Pipe(PathBuf),
    /// Nothing can be dialled (the name has not been resolved, or the kind of address is not supported).
    None,
}

/// How an endpoint is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// Takes requests.
    Healthy,
    /// Takes requests when too few are healthy.
    Degraded,
    /// Takes none.
    Unhealthy,
}

impl Endpoint {
    /// An endpoint of a cluster. As long as one with this state lives, the state counts as in use.
    pub fn new(
        config: model::Endpoint,
        locality: Arc<Locality>,
        priority: u32,
        tls: Option<Arc<ClientTls>>,
        state: Arc<EndpointState>,
    ) -> Arc<Self> {
        state.users.fetch_add(1, Relaxed);
        Arc::new(Self { config, locality, priority, tls, state })
    }
    /// The address for logs; `None` for Unix sockets and unresolved names.
    pub fn socket_addr(&self) -> Option<SocketAddr> {
        match &self.config.address {
            Address::Socket(a) => Some(*a),
            Address::Host(..) => self.state.resolved.load().first().copied(),
            Address::Pipe(_) | Address::Internal(_) => None,
        }
    }
    /// Where to dial now.
    pub fn target(&self) -> Target {
        match &self.config.address {
            Address::Socket(a) => Target::Tcp(SmallVec::from_buf([*a])),
            Address::Pipe(p) => Target::Pipe(p.clone()),
            Address::Host(..) => {
                let known = self.state.resolved.load();
                if known.is_empty() { Target::None } else { Target::Tcp(known.iter().copied().collect()) }
            }
            Address::Internal(_) => Target::None,
        }
    }
    /// All sources of health taken together.
    pub fn health(&self) -> Health {
        if self.state.has(Flag::FailedActive) || self.state.has(Flag::FailedOutlier) {
            return Health::Unhealthy;
        }
        match self.config.health {
            HealthStatus::Unhealthy | HealthStatus::Draining | HealthStatus::Timeout => Health::Unhealthy,
            HealthStatus::Degraded => Health::Degraded,
            HealthStatus::Healthy if self.state.has(Flag::DegradedActive) => Health::Degraded,
            HealthStatus::Healthy => Health::Healthy,
        }
    }
    /// Envoy's `health_flags::` in `/clusters`.
    pub fn health_flags(&self) -> String {
        let mut flags = String::new();
        for (flag, text) in [
            (Flag::FailedActive, "/failed_active_hc"),
            (Flag::FailedOutlier, "/failed_outlier_check"),
            (Flag::DegradedActive, "/degraded_active_hc"),
            (Flag::PendingActive, "/pending_active_hc"),
        ] {
            if self.state.has(flag) {
                flags.push_str(text);
            }
        }
        flags.push_str(match self.config.health {
            HealthStatus::Unhealthy | HealthStatus::Timeout => "/failed_eds_health",
            HealthStatus::Degraded => "/degraded_eds_health",
            HealthStatus::Draining => "/eds_status_draining",
            HealthStatus::Healthy => "",
        });
        if flags.is_empty() { "healthy".to_owned() } else { flags }
    }
    /// Requests in flight over all workers.
    pub fn active_requests(&self) -> u64 {
        self.state.stats.rq_active.get()
    }
    /// Weight, at least 1 (absent and 0 count as 1).
    pub fn weight(&self) -> u32 {
        self.config.weight.max(1)
    }
    /// When its warm-up of this length ends.
    pub(super) fn warm_at(&self, window: Duration) -> Instant {
        self.state.healthy_since() + window
    }
    /// Share of its final weight that an endpoint has while it warms up; 1.0 afterwards.
    pub(super) fn slow_start_factor(&self, cfg: &SlowStart, now: Instant) -> f64 {
        let age = now.saturating_duration_since(self.state.healthy_since());
        if cfg.window.is_zero() || age >= cfg.window {
            return 1.0;
        }
        let time = age.as_secs_f64().max(0.001) / cfg.window.as_secs_f64();
        let aggression = if cfg.aggression > 0.0 { cfg.aggression } else { 1.0 };
        time.powf(1.0 / aggression).max(cfg.min_weight_percent / 100.0).min(1.0)
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.state.users.fetch_sub(1, Relaxed);
    }
}

/// Bits of an endpoint's health.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Flag {
    /// Active health checks fail.
    FailedActive = 1,
    /// Ejected as an outlier.
    FailedOutlier = 2,
    /// Active health checks say degraded.
    DegradedActive = 4,
    /// No active health check has answered yet.
    PendingActive = 8,
}

/// What outlives changes of the configuration, by address.
#[derive(Debug)]
pub struct EndpointState {
    /// Unique in the process: the key of pools.
    pub id: u64,
    /// Counters and load.
    pub stats: EndpointStats,
    /// What outlier detection remembers.
    pub outlier: Record,
    /// Addresses of a host name (logical DNS).
    pub(super) resolved: ArcSwap<Vec<SocketAddr>>,
    /// HTTP version that ALPN chose last: 0 unknown, 1, 2.
    negotiated: AtomicU8,
    flags: AtomicU32,
    removed: AtomicBool,
    /// [`Endpoint`] values with this state.
    users: AtomicUsize,
    created: Instant,
    healthy_since_ms: AtomicU64,
    /// Counts up whenever all connections are to be closed.
    closed: AtomicU64,
    /// Told then. (A `watch` would do both, in half a kilobyte an endpoint.)
    close: Notify,
}

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

impl EndpointState {
    /// Fresh and without a stain.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            id: NEXT_ID.fetch_add(1, Relaxed),
            stats: EndpointStats::default(),
            outlier: Record::default(),
            resolved: ArcSwap::default(),
            negotiated: AtomicU8::new(0),
            flags: AtomicU32::new(0),
            removed: AtomicBool::new(false),
            users: AtomicUsize::new(0),
            created: Instant::now(),
            healthy_since_ms: AtomicU64::new(0),
            closed: AtomicU64::new(0),
            close: Notify::new(),
        })
    }
    /// Whether the flag is set.
    pub fn has(&self, flag: Flag) -> bool {
        self.flags.load(Relaxed) & flag as u32 != 0
    }
    /// Sets or clears a flag; whether that was a change.
    pub fn put(&self, flag: Flag, on: bool) -> bool {
        let bit = flag as u32;
        let before = if on { self.flags.fetch_or(bit, Relaxed) } else { self.flags.fetch_and(!bit, Relaxed) };
        let changed = (before & bit != 0) != on;
        if changed && !on && matches!(flag, Flag::FailedActive | Flag::FailedOutlier) {
            // Envoy starts the warm-up anew when an endpoint comes back.
            self.healthy_since_ms.store(ms(self.created.elapsed()), Relaxed);
        }
        changed
    }
    fn healthy_since(&self) -> Instant {
        self.created + Duration::from_millis(self.healthy_since_ms.load(Relaxed))
    }
    /// Since this endpoint is known, in milliseconds: the clock of its atomics.
    pub(super) fn now_ms(&self) -> u64 {
        ms(self.created.elapsed())
    }
    /// The address is in no endpoint set any more: pools let go of its connections once they are idle.
    pub fn is_removed(&self) -> bool {
        self.removed.load(Relaxed) || self.users.load(Relaxed) == 0
    }
    pub(super) fn set_removed(&self, on: bool) {
        self.removed.store(on, Relaxed);
    }
    /// Closes all connections, those in use too.
    pub(super) fn close_connections(&self) {
        self.closed.fetch_add(1, SeqCst);
        self.close.notify_waiters();
    }
    /// Resolves when connections made before now are to be closed.
    pub fn closing(self: &Arc<Self>) -> impl Future<Output = ()> + Send + 'static {
        let (state, before) = (self.clone(), self.close_count());
        async move {
            loop {
                // It is told of what happens from here on, also before it waits.
                let told = state.close.notified();
                if state.close_count() != before {
                    return;
                }
                told.await;
            }
        }
    }
    /// HTTP version that ALPN chose last: 0 unknown, 1, 2.
    pub(super) fn negotiated(&self) -> u8 {
        self.negotiated.load(Relaxed)
    }
    pub(super) fn set_negotiated(&self, version: u8) {
        self.negotiated.store(version, Relaxed);
    }
    /// How often connections were closed: a connection remembers the number at its birth.
    pub(super) fn close_count(&self) -> u64 {
        self.closed.load(SeqCst)
    }
}

fn ms(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// An endpoint at a loopback address.
    pub(in crate::upstream) fn endpoint(port: u16, weight: u32) -> Arc<Endpoint> {
        let mut config = model::Endpoint::at(Address::Socket(([127, 0, 0, 1], port).into()));
        config.weight = weight;
        Endpoint::new(config, Arc::default(), 0, None, EndpointState::new())
    }

    #[tokio::test(start_paused = true)]
    async fn slow_start_rises_and_begins_again_after_ejection() {
        let cfg = SlowStart { window: Duration::from_secs(10), aggression: 1.0, min_weight_percent: 10.0 };
        let e = endpoint(1, 1);
        assert!((e.slow_start_factor(&cfg, Instant::now()) - 0.1).abs() < 1e-6);
        tokio::time::advance(Duration::from_secs(5)).await;
        assert!((e.slow_start_factor(&cfg, Instant::now()) - 0.5).abs() < 1e-2);
        tokio::time::advance(Duration::from_secs(5)).await;
        assert!((e.slow_start_factor(&cfg, Instant::now()) - 1.0).abs() < 1e-6);
        assert!(e.state.put(Flag::FailedOutlier, true));
        assert_eq!(e.health(), Health::Unhealthy);
        assert!(!e.state.put(Flag::FailedOutlier, true));
        tokio::time::advance(Duration::from_secs(60)).await;
        assert!(e.state.put(Flag::FailedOutlier, false));
        assert!(e.slow_start_factor(&cfg, Instant::now()) < 0.2);
    }

    #[tokio::test]
    async fn closing_concerns_connections_made_before() {
        let e = endpoint(1, 1);
        let (early, waiting) = (e.state.closing(), tokio::spawn(e.state.closing()));
        tokio::task::yield_now().await;
        e.state.close_connections();
        early.await;
        waiting.await.unwrap();
        let late = tokio::time::timeout(Duration::from_millis(1), e.state.closing());
        assert!(late.await.is_err());
    }

    #[test]
    fn health_of_all_sources() {
        let e = endpoint(1, 1);
        assert_eq!((e.health(), e.health_flags().as_str()), (Health::Healthy, "healthy"));
        e.state.put(Flag::DegradedActive, true);
        assert_eq!(e.health(), Health::Degraded);
        e.state.put(Flag::FailedActive, true);
        assert_eq!(e.health(), Health::Unhealthy);
        assert_eq!(e.health_flags(), "/failed_active_hc/degraded_active_hc");
    }
}
