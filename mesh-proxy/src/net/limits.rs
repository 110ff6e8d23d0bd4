//! Limits of a chain's connections: how many at once, and how many in a time.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use mesh_api::model::{self, Name};
use tokio::time::Instant;

use crate::http::filters::rate_limit::TokenBucket;
use crate::upstream::stats::Living;

/// What limits share in the process: counters by prefix, buckets by key.
#[derive(Debug, Default)]
pub struct Limits {
    /// Counters of limits by number.
    pub connections: Living<Name, LimitStats>,
    /// Counters of limits by rate.
    pub rates: Living<Name, RateStats>,
    buckets: Living<(Name, model::TokenBucket), TokenBucket>,
}

/// Counters of a limit by number.
#[derive(Debug, Default)]
pub struct LimitStats {
    /// Connections that were one too many.
    pub limited_connections: AtomicU64,
    /// Connections now, those that are to be closed included.
    pub active_connections: AtomicU64,
}

/// Counters of a limit by rate.
#[derive(Debug, Default)]
pub struct RateStats {
    /// Connections that came too early.
    pub rate_limited: AtomicU64,
}

/// So many connections at once.
#[derive(Debug)]
pub struct ConnectionLimit {
    /// As it was declared.
    pub config: model::ConnectionLimit,
    active: AtomicU64,
    stats: Arc<LimitStats>,
}

/// One counted connection.
#[derive(Debug)]
pub struct Permit(Arc<ConnectionLimit>);

impl ConnectionLimit {
    /// Nobody is counted yet.
    pub fn new(config: &model::ConnectionLimit, limits: &Limits) -> Arc<Self> {
        let stats = limits.connections.of(&config.stat_prefix, LimitStats::default);
        Arc::new(Self { config: config.clone(), active: AtomicU64::new(0), stats })
    }

    /// Counts a connection as long as the permit lives, and whether it is within the limit: one too many counts too, until
    /// it is closed. `None`: the limit is off.
    pub fn enter(self: &Arc<Self>) -> Option<(Permit, bool)> {
        if !self.config.enabled {
            return None;
        }
        self.stats.active_connections.fetch_add(1, Ordering::Relaxed);
        let within = self.active.fetch_add(1, Ordering::AcqRel) < self.config.max;
        if !within {
            self.stats.limited_connections.fetch_add(1, Ordering::Relaxed);
        }
        Some((Permit(self.clone()), within))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Ordering::AcqRel);
        self.0.stats.active_connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// So many connections in a time.
#[derive(Debug)]
pub struct ConnectionRate {
    /// As it was declared.
    pub config: model::ConnectionRate,
    bucket: Arc<TokenBucket>,
    stats: Arc<RateStats>,
}

impl ConnectionRate {
    /// Its bucket is full, or the one of those that share it.
    pub fn new(config: &model::ConnectionRate, limits: &Limits) -> Arc<Self> {
        let full = || TokenBucket::new(config.bucket);
        let bucket = match &*config.share_key {
            "" => Arc::new(full()),
            _ => limits.buckets.of(&(config.share_key.clone(), config.bucket), full),
        };
        let stats = limits.rates.of(&config.stat_prefix, RateStats::default);
        Arc::new(Self { config: config.clone(), bucket, stats })
    }

    /// Whether a connection may come now.
    pub fn admits(&self, now: Instant) -> bool {
        let admitted = !self.config.enabled || self.bucket.take(now);
        if !admitted {
            self.stats.rate_limited.fetch_add(1, Ordering::Relaxed);
        }
        admitted
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn limit(max: u64, enabled: bool) -> model::ConnectionLimit {
        model::ConnectionLimit { stat_prefix: "p".into(), max, delay: Duration::ZERO, enabled }
    }

    fn rate(key: &str, max_tokens: u32) -> model::ConnectionRate {
        let bucket = model::TokenBucket { max_tokens, tokens_per_fill: 1, fill_interval: Duration::from_secs(1) };
        model::ConnectionRate { stat_prefix: "p".into(), bucket, share_key: key.into(), enabled: true }
    }

    #[test]
    fn one_too_many_counts_until_it_is_closed() {
        let limits = Limits::default();
        let limit = ConnectionLimit::new(&limit(1, true), &limits);
        let stats = limits.connections.of(&"p".into(), LimitStats::default);
        let seen =
            || (stats.limited_connections.load(Ordering::Relaxed), stats.active_connections.load(Ordering::Relaxed));
        let (first, within) = limit.enter().unwrap();
        assert!(within);
        let (second, within) = limit.enter().unwrap();
        assert_eq!((within, seen()), (false, (1, 2)));
        drop(first);
        assert!(!limit.enter().unwrap().1, "the second one is not closed yet");
        drop(second);
        assert!(limit.enter().unwrap().1);
        assert_eq!(seen(), (2, 0));
    }

    #[test]
    fn what_is_off_counts_nobody() {
        let limits = Limits::default();
        assert!(ConnectionLimit::new(&limit(1, false), &limits).enter().is_none());
        let off = ConnectionRate::new(&model::ConnectionRate { enabled: false, ..rate("", 1) }, &limits);
        assert!([0; 5].iter().all(|_| off.admits(Instant::now())));
    }

    #[tokio::test(start_paused = true)]
    async fn buckets_are_shared_by_key_and_size() {
        let limits = Limits::default();
        let made: Vec<_> = [("k", 1), ("k", 1), ("k", 2), ("other", 1), ("", 1), ("", 1)]
            .iter()
            .map(|(key, max)| ConnectionRate::new(&rate(key, *max), &limits))
            .collect();
        let admitted: Vec<bool> = made.iter().map(|r| r.admits(Instant::now())).collect();
        assert_eq!(admitted, [true, false, true, true, true, true]);
        assert_eq!(limits.rates.of(&"p".into(), RateStats::default).rate_limited.load(Ordering::Relaxed), 1);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!((made[1].admits(Instant::now()), made[0].admits(Instant::now())), (true, false));
    }
}
