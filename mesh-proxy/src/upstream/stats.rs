//! Counters and gauges of clusters and endpoints: plain relaxed atomics, written by workers, read by admin and metrics.
//! Knows no metric names but Envoy's field names.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use mesh_api::model::Name;
use parking_lot::Mutex;

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// One more.
    pub fn inc(&self) {
        self.0.fetch_add(1, Relaxed);
    }
    /// `n` more.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }
    /// Value.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A number of things alive. Never below zero: every `inc` has one `dec`.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// One more.
    pub fn inc(&self) {
        self.0.fetch_add(1, Relaxed);
    }
    /// One less.
    pub fn dec(&self) {
        self.0.fetch_sub(1, Relaxed);
    }
    /// Becomes `n`.
    pub fn set(&self, n: u64) {
        self.0.store(n, Relaxed);
    }
    /// Value.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
    /// One more unless that would exceed `limit`.
    pub fn try_inc(&self, limit: u64) -> bool {
        if limit >= u64::from(u32::MAX) {
            self.inc();
            return true;
        }
        self.0.fetch_update(Relaxed, Relaxed, |n| (n < limit).then_some(n + 1)).is_ok()
    }
}

/// Answers by status. The table is made for the first answer: most clusters of a mesh never get a request.
#[derive(Debug, Default)]
pub struct Codes(OnceLock<Box<[AtomicU64; 500]>>);

impl Codes {
    /// One more answer.
    pub fn count(&self, status: u16) {
        let table = self.0.get_or_init(|| Box::new([const { AtomicU64::new(0) }; 500]));
        if let Some(count) = status.checked_sub(100).and_then(|at| table.get(usize::from(at))) {
            count.fetch_add(1, Relaxed);
        }
    }
    /// Statuses that were seen.
    pub fn seen(&self) -> impl Iterator<Item = (u16, u64)> + '_ {
        let all = self.0.get().into_iter().flat_map(|table| (100..).zip(table.iter()));
        all.map(|(status, count)| (status, count.load(Relaxed))).filter(|(_, n)| *n > 0)
    }
}

macro_rules! stats {
    ($(#[$doc:meta])* $name:ident { $(also { $also:ident: $kind:ty })? counters { $($c:ident),* $(,)? } gauges { $($g:ident),* $(,)? } }) => {
        $(#[$doc])*
        #[derive(Debug, Default)]
        pub struct $name {
            $(#[doc = concat!("`", stringify!($c), "`")] pub $c: Counter,)*
            $(#[doc = concat!("`", stringify!($g), "`")] pub $g: Gauge,)*
            $(/// What is neither.
            pub $also: $kind,)?
        }

        impl $name {
            /// Every counter by Envoy's name.
            pub fn counters(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
                [$((stringify!($c), self.$c.get())),*].into_iter()
            }
            /// Every gauge by Envoy's name.
            pub fn gauges(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
                [$((stringify!($g), self.$g.get())),*].into_iter()
            }
        }
    };
}

stats! {
    /// What Envoy publishes as `cluster.NAME.*`.
    ClusterStats {
        also { codes: Codes }
        counters {
            upstream_cx_total, upstream_cx_http1_total, upstream_cx_http2_total, upstream_cx_connect_fail,
            upstream_cx_connect_timeout, upstream_cx_connect_attempts_exceeded, upstream_cx_overflow,
            upstream_cx_destroy, upstream_cx_max_requests,
            upstream_cx_max_duration_reached, upstream_cx_idle_timeout, upstream_cx_none_healthy,
            upstream_cx_protocol_error, upstream_cx_rx_bytes_total, upstream_cx_tx_bytes_total,
            upstream_rq_total, upstream_rq_pending_total, upstream_rq_pending_overflow,
            upstream_rq_pending_failure_eject, upstream_rq_timeout,
            upstream_rq_per_try_timeout, upstream_rq_rx_reset, upstream_rq_tx_reset, upstream_rq_retry,
            upstream_rq_retry_success, upstream_rq_retry_overflow, upstream_rq_retry_limit_exceeded,
            upstream_rq_completed, upstream_rq_dropped,
            ssl_handshake, ssl_connection_error, ssl_fail_verify,
            membership_change, update_attempt, update_success, update_failure, update_empty,
            lb_healthy_panic, lb_zone_routing_sampled, lb_zone_routing_all_directly,
            lb_zone_routing_cross_zone, original_dst_host_invalid,
            outlier_ejections_enforced_total, outlier_ejections_detected_consecutive_5xx,
            outlier_ejections_enforced_consecutive_5xx, outlier_ejections_detected_consecutive_gateway_failure,
            outlier_ejections_enforced_consecutive_gateway_failure,
            outlier_ejections_detected_consecutive_local_origin_failure,
            outlier_ejections_enforced_consecutive_local_origin_failure, outlier_ejections_detected_success_rate,
            outlier_ejections_enforced_success_rate, outlier_ejections_detected_failure_percentage,
            outlier_ejections_enforced_failure_percentage, outlier_ejections_detected_local_origin_success_rate,
            outlier_ejections_enforced_local_origin_success_rate,
            outlier_ejections_detected_local_origin_failure_percentage,
            outlier_ejections_enforced_local_origin_failure_percentage, outlier_ejections_overflow,
            health_check_attempt, health_check_success, health_check_failure, health_check_network_failure,
        }
        gauges {
            upstream_cx_active, upstream_rq_active, upstream_rq_pending_active,
            membership_total, membership_healthy, membership_degraded, max_host_weight, outlier_ejections_active,
        }
    }
}

stats! {
    /// What Envoy publishes as `vhost.NAME.route.PREFIX.*`, of routes that have a `stat_prefix`.
    RouteStats {
        also { codes: Codes }
        counters {
            upstream_rq_total, upstream_rq_completed, upstream_rq_timeout, upstream_rq_retry, upstream_rq_retry_success,
            upstream_rq_retry_overflow, upstream_rq_retry_limit_exceeded,
        }
        gauges {}
    }
}

impl RouteStats {
    /// A request is over with this status, whoever made the answer.
    pub fn ended(&self, status: u16) {
        self.codes.count(status);
        self.upstream_rq_completed.inc();
    }
}

/// Counters by virtual host and prefix.
pub type RouteRegistry = Living<(Name, Name), RouteStats>;

/// What is kept by name as long as somebody holds it, so that it survives updates of configuration.
#[derive(Debug)]
pub struct Living<K, V>(Mutex<BTreeMap<K, Weak<V>>>);

impl<K, V> Default for Living<K, V> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Ord + Clone, V> Living<K, V> {
    /// What is known by this name, else what `make` makes.
    pub fn of(&self, name: &K, make: impl FnOnce() -> V) -> Arc<V> {
        let mut all = self.0.lock();
        if let Some(known) = all.get(name).and_then(Weak::upgrade) {
            return known;
        }
        all.retain(|_, weak| weak.strong_count() > 0);
        let new = Arc::new(make());
        all.insert(name.clone(), Arc::downgrade(&new));
        new
    }

    /// All that are held, by name.
    pub fn list(&self) -> Vec<(K, Arc<V>)> {
        let all = self.0.lock();
        all.iter().filter_map(|(name, weak)| Some((name.clone(), weak.upgrade()?))).collect()
    }
}

stats! {
    /// What Envoy prints for a host in `/clusters`.
    EndpointStats {
        counters { cx_total, cx_connect_fail, rq_total, rq_success, rq_error, rq_timeout }
        gauges { cx_active, rq_active }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_counted_apart() {
        let codes = Codes::default();
        assert_eq!(codes.seen().count(), 0);
        for status in [200, 503, 200, 0, 99, 600, 599] {
            codes.count(status);
        }
        assert_eq!(codes.seen().collect::<Vec<_>>(), [(200, 2), (503, 1), (599, 1)]);
    }

    #[test]
    fn what_is_held_is_known_by_its_name() {
        let all = RouteRegistry::default();
        let name: (Name, Name) = ("host".into(), "prefix".into());
        let first = all.of(&name, RouteStats::default);
        first.ended(200);
        let second = all.of(&name, RouteStats::default);
        drop(first);
        second.ended(503);
        assert_eq!(second.codes.seen().collect::<Vec<_>>(), [(200, 1), (503, 1)]);
        assert_eq!(second.upstream_rq_completed.get(), 2);
        assert_eq!(all.list().len(), 1);
        drop(second);
        assert!(all.list().is_empty());
        assert_eq!(all.of(&name, RouteStats::default).upstream_rq_completed.get(), 0);
    }

    #[test]
    fn limits_hold_and_max_means_none() {
        let g = Gauge::default();
        assert!(g.try_inc(1));
        assert!(!g.try_inc(1));
        assert!(g.try_inc(u64::from(u32::MAX)));
        g.dec();
        assert_eq!(g.get(), 1);
    }
}
