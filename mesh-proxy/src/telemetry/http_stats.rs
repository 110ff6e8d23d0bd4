//! Counters of HTTP managers, by their `stat_prefix`: what Envoy publishes as `http.PREFIX.downstream_*`. A shard a worker,
//! summed when somebody asks.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use mesh_api::model::Name;

use crate::http::{local_reply::Reason, stats::ExchangeStats};
use crate::upstream::stats::Living;

/// Counters of all managers of one prefix.
#[derive(Debug)]
pub struct HttpStats(Box<[Shard]>);

/// A cache line of its own: workers count without getting in each other's way.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Shard {
    connections: AtomicU64,
    active: AtomicU64,
    requests: AtomicU64,
    /// 1xx to 5xx.
    classes: [AtomicU64; 5],
    /// As [`DECISIONS`].
    decisions: [AtomicU64; DECISIONS.len()],
}

/// What policies decided. Those of a dry run say what they would have.
const DECISIONS: [&str; 7] = [
    "ext_authz.denied",
    "ext_authz.error",
    "rbac.denied",
    "rbac.istio_dry_run_allow_shadow_allowed",
    "rbac.istio_dry_run_allow_shadow_denied",
    "rbac.istio_dry_run_deny_shadow_allowed",
    "rbac.istio_dry_run_deny_shadow_denied",
];

impl HttpStats {
    fn new(workers: usize) -> Self {
        Self((0..workers.max(1)).map(|_| Shard::default()).collect())
    }

    fn with(&self, worker: usize, what: impl FnOnce(&Shard)) {
        if let Some(shard) = self.0.get(worker % self.0.len()) {
            what(shard);
        }
    }

    /// A connection began.
    pub fn connected(&self, worker: usize) {
        self.with(worker, |shard| {
            shard.connections.fetch_add(1, Relaxed);
            shard.active.fetch_add(1, Relaxed);
        });
    }

    /// It ended, on the same worker.
    pub fn disconnected(&self, worker: usize) {
        self.with(worker, |shard| {
            shard.active.fetch_sub(1, Relaxed);
        });
    }

    /// A request ended with this status; 0: without one.
    pub fn request(&self, worker: usize, status: u16) {
        self.with(worker, |shard| {
            shard.requests.fetch_add(1, Relaxed);
            if let Some(class) = (status / 100).checked_sub(1).and_then(|at| shard.classes.get(usize::from(at))) {
                class.fetch_add(1, Relaxed);
            }
        });
    }

    /// What policies decided about a request.
    pub fn decided(&self, worker: usize, stats: &ExchangeStats) {
        let refused = match &stats.reason {
            Reason::ExtAuthzDenied { .. } => Some(0),
            Reason::ExtAuthzError { .. } => Some(1),
            Reason::RbacDenied(_) => Some(2),
            _ => None,
        };
        let tried = stats.shadow.iter().filter_map(|shadow| {
            let first = match &*shadow.prefix {
                "istio_dry_run_allow_" => 3,
                "istio_dry_run_deny_" => 5,
                _ => return None,
            };
            Some(first + usize::from(!shadow.allowed))
        });
        for at in refused.into_iter().chain(tried) {
            self.with(worker, |shard| {
                if let Some(n) = shard.decisions.get(at) {
                    n.fetch_add(1, Relaxed);
                }
            });
        }
    }

    fn sum(&self, pick: impl Fn(&Shard) -> &AtomicU64) -> u64 {
        self.0.iter().map(|shard| pick(shard).load(Relaxed)).fold(0, u64::wrapping_add)
    }

    /// Envoy's name without the prefix, value, and whether it only grows.
    pub fn all(&self) -> Vec<(&'static str, u64, bool)> {
        let mut all = vec![
            ("downstream_cx_total", self.sum(|s| &s.connections), true),
            ("downstream_cx_active", self.sum(|s| &s.active), false),
            ("downstream_rq_total", self.sum(|s| &s.requests), true),
        ];
        all.extend(self.classes().map(|(name, n)| (name, n, true)));
        all.extend(DECISIONS.iter().enumerate().map(|(at, name)| {
            let counts = self.0.iter().filter_map(|s| s.decisions.get(at));
            (*name, counts.map(|n| n.load(Relaxed)).fold(0, u64::wrapping_add), true)
        }));
        all
    }

    fn classes(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let names =
            ["downstream_rq_1xx", "downstream_rq_2xx", "downstream_rq_3xx", "downstream_rq_4xx", "downstream_rq_5xx"];
        let sums = (0..5).map(|at| {
            self.0.iter().filter_map(|s| s.classes.get(at)).map(|n| n.load(Relaxed)).fold(0, u64::wrapping_add)
        });
        names.into_iter().zip(sums)
    }
}

/// The counters of all prefixes that a manager has.
#[derive(Debug)]
pub struct HttpRegistry {
    by_prefix: Living<Name, HttpStats>,
    workers: usize,
}

impl HttpRegistry {
    /// Nobody is counted yet.
    pub fn new(workers: usize) -> Self {
        Self { by_prefix: Living::default(), workers }
    }

    /// The counters of a prefix; kept as long as a manager holds them, so they survive updates.
    pub fn of(&self, prefix: &Name) -> Arc<HttpStats> {
        self.by_prefix.of(prefix, || HttpStats::new(self.workers))
    }

    /// All that are in use, by prefix.
    pub fn list(&self) -> Vec<(Name, Arc<HttpStats>)> {
        self.by_prefix.list()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn managers_of_one_prefix_count_together_as_long_as_one_lives() {
        let registry = HttpRegistry::new(2);
        let first = registry.of(&"p".into());
        first.connected(0);
        first.connected(1);
        first.disconnected(1);
        let second = registry.of(&"p".into());
        drop(first);
        for (worker, status) in [(0, 200), (1, 204), (1, 503), (0, 0), (0, 999)] {
            second.request(worker, status);
        }
        let all: BTreeMap<_, _> = second.all().into_iter().map(|(name, n, _)| (name, n)).collect();
        let of = |name: &str| all.get(name).copied();
        assert_eq!((of("downstream_cx_total"), of("downstream_cx_active")), (Some(2), Some(1)));
        assert_eq!((of("downstream_rq_total"), of("downstream_rq_2xx")), (Some(5), Some(2)));
        assert_eq!((of("downstream_rq_5xx"), of("downstream_rq_4xx")), (Some(1), Some(0)));
        drop(second);
        assert!(registry.list().is_empty());
    }

    #[tokio::test]
    async fn what_policies_would_have_decided_is_counted_beside_what_they_did() {
        use crate::http::{stats::ShadowResult, testing};
        let stats = HttpStats::new(1);
        let mut exchange = ExchangeStats::new(std::rc::Rc::new(testing::conn()), &testing::get("a.test", "/"));
        for (prefix, allowed) in [("istio_dry_run_deny_", false), ("istio_dry_run_allow_", true), ("other_", true)] {
            exchange.shadow.push(ShadowResult { prefix: prefix.into(), allowed, policy: None });
        }
        stats.decided(0, &exchange);
        exchange.shadow.clear();
        exchange.end_with(Reason::ExtAuthzDenied { status: 403 });
        stats.decided(0, &exchange);
        let counted: Vec<_> = stats.all().into_iter().filter(|(_, n, _)| *n > 0).map(|(name, ..)| name).collect();
        let expected =
            ["ext_authz.denied", "rbac.istio_dry_run_allow_shadow_allowed", "rbac.istio_dry_run_deny_shadow_denied"];
        assert_eq!(counted, expected);
    }
}
