//! Outlier detection: what is remembered of each endpoint, when that makes it an outlier, for how long it is ejected and
//! how many may be. Consecutive errors are seen where they happen, rates and returns by a sweep on the control thread.
//! Knows nothing of requests but their [`Outcome`].

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use mesh_api::model::{FailurePercentage, Judged, OutlierDetection, SuccessRate};

use super::{
    Endpoint,
    balance::Random,
    endpoint::Flag,
    stats::{ClusterStats, Counter},
};

/// How an attempt went, as passive health checks see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The upstream answered with this HTTP status (gRPC statuses mapped).
    Status(u16),
    /// A connection could be made (TCP proxy).
    ConnectSuccess,
    /// Connect refused, failed or TLS broken.
    ConnectFailure,
    /// Connect or response took too long.
    Timeout,
    /// Reset before the answer was complete.
    Reset,
}

/// What is remembered of one endpoint.
#[derive(Debug, Default)]
pub struct Record {
    consecutive_5xx: AtomicU32,
    consecutive_gateway: AtomicU32,
    consecutive_local: AtomicU32,
    /// Ejections in a row, the multiplier of their length.
    ejections: AtomicU32,
    /// On the endpoint's own clock.
    eject_until_ms: AtomicU64,
    external: Rate,
    local: Rate,
}

/// Successes and totals of the current interval, and the rate of the last one.
#[derive(Debug, Default)]
struct Rate {
    success: AtomicU32,
    total: AtomicU32,
    /// Per mille + 1 of the last interval; 0: too few requests.
    last: AtomicU32,
}

impl Rate {
    fn put(&self, ok: bool) {
        self.total.fetch_add(1, Relaxed);
        if ok {
            self.success.fetch_add(1, Relaxed);
        }
    }
    /// Ends the interval: percent of successes and number of requests. The rate is shown when `volume` was reached.
    fn take(&self, volume: u32) -> (f64, u32) {
        let total = self.total.swap(0, Relaxed);
        let success = self.success.swap(0, Relaxed).min(total);
        let rate = f64::from(success) * 100.0 / f64::from(total.max(1));
        self.last.store(if total > 0 && total >= volume { (rate * 10.0) as u32 + 1 } else { 0 }, Relaxed);
        (rate, total)
    }
}

impl Record {
    /// Success rate of the last interval in percent, for `/clusters`; `None`: too few requests.
    pub fn success_rate(&self) -> Option<f64> {
        self.external.last.load(Relaxed).checked_sub(1).map(|r| f64::from(r) / 10.0)
    }
    /// Times ejected in a row.
    pub fn ejections(&self) -> u32 {
        self.ejections.load(Relaxed)
    }
}

/// What made an endpoint an outlier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    Consecutive5xx,
    ConsecutiveGateway,
    ConsecutiveLocal,
    SuccessRate(Origin),
    FailurePercentage(Origin),
}

/// What is counted together: answers of the upstream (with local failures, unless they are split off), or local failures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    External,
    Local,
}

impl Origin {
    const ALL: [Self; 2] = [Self::External, Self::Local];

    fn enforcing(self, judged: Option<&Judged>) -> u32 {
        let [external, local] = judged.map_or([0; 2], |j| j.enforcing);
        if self == Self::External { external } else { local }
    }
}

impl Cause {
    fn counters(self, s: &ClusterStats) -> (&Counter, &Counter) {
        match self {
            Self::Consecutive5xx => {
                (&s.outlier_ejections_detected_consecutive_5xx, &s.outlier_ejections_enforced_consecutive_5xx)
            }
            Self::ConsecutiveGateway => (
                &s.outlier_ejections_detected_consecutive_gateway_failure,
                &s.outlier_ejections_enforced_consecutive_gateway_failure,
            ),
            Self::ConsecutiveLocal => (
                &s.outlier_ejections_detected_consecutive_local_origin_failure,
                &s.outlier_ejections_enforced_consecutive_local_origin_failure,
            ),
            Self::SuccessRate(Origin::External) => {
                (&s.outlier_ejections_detected_success_rate, &s.outlier_ejections_enforced_success_rate)
            }
            Self::SuccessRate(Origin::Local) => (
                &s.outlier_ejections_detected_local_origin_success_rate,
                &s.outlier_ejections_enforced_local_origin_success_rate,
            ),
            Self::FailurePercentage(Origin::External) => {
                (&s.outlier_ejections_detected_failure_percentage, &s.outlier_ejections_enforced_failure_percentage)
            }
            Self::FailurePercentage(Origin::Local) => (
                &s.outlier_ejections_detected_local_origin_failure_percentage,
                &s.outlier_ejections_enforced_local_origin_failure_percentage,
            ),
        }
    }
    fn enforcing(self, cfg: &OutlierDetection) -> u32 {
        let [five_xx, gateway, local] = cfg.enforcing;
        match self {
            Self::Consecutive5xx => five_xx,
            Self::ConsecutiveGateway => gateway,
            Self::ConsecutiveLocal => local,
            Self::SuccessRate(origin) => origin.enforcing(cfg.success_rate.as_ref().map(|s| &s.judged)),
            Self::FailurePercentage(origin) => origin.enforcing(cfg.failure_percentage.as_ref().map(|f| &f.judged)),
        }
    }
}

/// Notes an outcome; the cause when it makes the endpoint an outlier.
pub(super) fn note(cfg: &OutlierDetection, e: &Endpoint, outcome: Outcome) -> Option<Cause> {
    let r = &e.state.outlier;
    match outcome {
        Outcome::Status(status) => {
            if cfg.split_local_origin {
                local(cfg, r, true); // an answer is a success of the local kind
            }
            external(cfg, r, status)
        }
        Outcome::ConnectSuccess if cfg.split_local_origin => local(cfg, r, true),
        Outcome::ConnectSuccess => external(cfg, r, 200),
        _ if cfg.split_local_origin => local(cfg, r, false),
        Outcome::Timeout => external(cfg, r, 504),
        Outcome::ConnectFailure | Outcome::Reset => external(cfg, r, 503),
    }
}

fn reached(counter: &AtomicU32, threshold: u32) -> bool {
    // Only the one that reaches it reports it; the sweep of an unenforced detection begins anew as well.
    if threshold == 0 || counter.fetch_add(1, Relaxed) + 1 != threshold {
        return false;
    }
    counter.store(0, Relaxed);
    true
}

fn clear(counter: &AtomicU32) {
    // A load first: on healthy endpoints the cache line stays shared between workers.
    if counter.load(Relaxed) != 0 {
        counter.store(0, Relaxed);
    }
}

fn external(cfg: &OutlierDetection, r: &Record, status: u16) -> Option<Cause> {
    let error = if cfg.http_errors.is_empty() { status >= 500 } else { cfg.http_errors.contains(&status) };
    if cfg.success_rate.is_some() || cfg.failure_percentage.is_some() {
        r.external.put(!error);
    }
    if !error {
        clear(&r.consecutive_5xx);
        clear(&r.consecutive_gateway);
        return None;
    }
    let mut cause = None;
    if (502..=504).contains(&status) {
        if reached(&r.consecutive_gateway, cfg.consecutive_gateway) {
            cause = Some(Cause::ConsecutiveGateway);
        }
    } else {
        clear(&r.consecutive_gateway);
    }
    if reached(&r.consecutive_5xx, cfg.consecutive_5xx) {
        // Of two detections at once the enforced one counts.
        if cause.is_none_or(|c| c.enforcing(cfg) == 0) {
            cause = Some(Cause::Consecutive5xx);
        }
    }
    cause
}

fn local(cfg: &OutlierDetection, r: &Record, ok: bool) -> Option<Cause> {
    if cfg.success_rate.is_some() || cfg.failure_percentage.is_some() {
        r.local.put(ok);
    }
    if ok {
        clear(&r.consecutive_local);
        return None;
    }
    reached(&r.consecutive_local, cfg.consecutive_local_origin).then_some(Cause::ConsecutiveLocal)
}

/// Ejects an endpoint, unless it is ejected, too many are, or dice and `enforcing` say no. Whether it did.
pub(super) fn eject(
    cfg: &OutlierDetection,
    stats: &ClusterStats,
    all: &[Arc<Endpoint>],
    e: &Endpoint,
    cause: Cause,
    random: &impl Random,
) -> bool {
    if e.state.has(Flag::FailedOutlier) {
        return false;
    }
    let (detected, enforced) = cause.counters(stats);
    detected.inc();
    // The share counts this one too: 10 % of nine is none, unless one may always go.
    let ejected = all.iter().filter(|e| e.state.has(Flag::FailedOutlier)).count();
    let percent = (ejected as f64 + 1.0) * 100.0 / all.len().max(1) as f64;
    let first = cfg.always_eject_one && ejected == 0;
    if !first && percent > f64::from(cfg.max_ejection_percent.min(100)) {
        stats.outlier_ejections_overflow.inc();
        return false;
    }
    if random.below(100) >= u64::from(cause.enforcing(cfg)) {
        return false;
    }
    if !e.state.put(Flag::FailedOutlier, true) {
        return false;
    }
    let r = &e.state.outlier;
    let times = r.ejections.fetch_add(1, Relaxed) + 1;
    let length = cfg.base_ejection.saturating_mul(times).min(cfg.max_ejection.max(cfg.base_ejection));
    let jitter = Duration::from_millis(random.below(u64::try_from(cfg.max_jitter.as_millis()).unwrap_or(0) + 1));
    let length = u64::try_from((length + jitter).as_millis()).unwrap_or(u64::MAX);
    r.eject_until_ms.store(e.state.now_ms().saturating_add(length), Relaxed);
    enforced.inc();
    stats.outlier_ejections_enforced_total.inc();
    stats.outlier_ejections_active.set(ejected as u64 + 1);
    true
}

/// Lets an endpoint back in. Whether it was out.
pub(super) fn uneject(stats: &ClusterStats, all: &[Arc<Endpoint>], e: &Endpoint) -> bool {
    let was = e.state.put(Flag::FailedOutlier, false);
    if was {
        let r = &e.state.outlier;
        for counter in [&r.consecutive_5xx, &r.consecutive_gateway, &r.consecutive_local] {
            counter.store(0, Relaxed);
        }
        let left = all.iter().filter(|e| e.state.has(Flag::FailedOutlier)).count();
        stats.outlier_ejections_active.set(left as u64);
    }
    was
}

/// The periodic part: returns those whose time is over, then judges rates. Whether anyone's health changed.
pub(super) fn sweep(cfg: &OutlierDetection, stats: &ClusterStats, all: &[Arc<Endpoint>], random: &impl Random) -> bool {
    let mut changed = false;
    for e in all {
        let r = &e.state.outlier;
        if e.state.has(Flag::FailedOutlier) {
            if e.state.now_ms() >= r.eject_until_ms.load(Relaxed) {
                changed |= uneject(stats, all, e);
            }
        } else if r.ejections.load(Relaxed) > 0 {
            // A quiet interval takes one step off the next ejection's length.
            r.ejections.fetch_sub(1, Relaxed);
        }
    }
    if cfg.success_rate.is_none() && cfg.failure_percentage.is_none() {
        return changed;
    }
    let volumes = [cfg.success_rate.map(|s| s.judged), cfg.failure_percentage.map(|f| f.judged)];
    let shown = volumes.iter().flatten().map(|j| j.request_volume).min().unwrap_or(0);
    for origin in Origin::ALL {
        let rates: Vec<(&Arc<Endpoint>, f64, u32)> = all
            .iter()
            .map(|e| {
                let r = &e.state.outlier;
                let counted = if origin == Origin::Local { &r.local } else { &r.external };
                let (rate, total) = counted.take(shown);
                (e, rate, total)
            })
            .filter(|(e, _, total)| *total > 0 && !e.state.has(Flag::FailedOutlier))
            .collect();
        // Those with enough requests, if they are enough.
        let of_volume = |judged: Judged| -> Vec<(&Arc<Endpoint>, f64)> {
            let who: Vec<_> = rates.iter().filter(|r| r.2 >= judged.request_volume).map(|r| (r.0, r.1)).collect();
            if who.len() >= judged.minimum_hosts as usize { who } else { vec![] }
        };
        if let Some(SuccessRate { stdev_factor, judged }) = cfg.success_rate {
            let judged = of_volume(judged);
            let threshold = success_threshold(&judged, f64::from(stdev_factor) / 1000.0);
            for (e, _) in judged.iter().filter(|(_, rate)| *rate < threshold) {
                changed |= eject(cfg, stats, all, e, Cause::SuccessRate(origin), random);
            }
        }
        if let Some(FailurePercentage { threshold, judged }) = cfg.failure_percentage {
            for (e, _) in of_volume(judged).iter().filter(|(_, rate)| 100.0 - rate >= f64::from(threshold)) {
                changed |= eject(cfg, stats, all, e, Cause::FailurePercentage(origin), random);
            }
        }
    }
    changed
}

/// Mean minus a multiple of the standard deviation.
fn success_threshold(judged: &[(&Arc<Endpoint>, f64)], factor: f64) -> f64 {
    let n = judged.len().max(1) as f64;
    let mean = judged.iter().map(|(_, r)| r).sum::<f64>() / n;
    let variance = judged.iter().map(|(_, r)| (r - mean).powi(2)).sum::<f64>() / n;
    mean - factor * variance.sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::{balance::tests::Seeded, endpoint::tests::endpoint};

    /// Anybody may be ejected.
    fn loose() -> OutlierDetection {
        OutlierDetection { max_ejection_percent: 100, ..OutlierDetection::default() }
    }

    fn endpoints(n: u16) -> Vec<Arc<Endpoint>> {
        (1..=n).map(|p| endpoint(p, 1)).collect()
    }

    fn out(all: &[Arc<Endpoint>]) -> usize {
        all.iter().filter(|e| e.state.has(Flag::FailedOutlier)).count()
    }

    fn fail(cfg: &OutlierDetection, stats: &ClusterStats, all: &[Arc<Endpoint>], i: usize, outcome: Outcome, n: u32) {
        for _ in 0..n {
            if let Some(cause) = note(cfg, &all[i], outcome) {
                eject(cfg, stats, all, &all[i], cause, &Seeded::new(1));
            }
        }
    }

    #[test]
    fn a_success_between_failures_starts_over() {
        let cfg = OutlierDetection { consecutive_5xx: 3, ..loose() };
        let (stats, all) = (ClusterStats::default(), endpoints(2));
        fail(&cfg, &stats, &all, 0, Outcome::Status(500), 2);
        fail(&cfg, &stats, &all, 0, Outcome::Status(404), 1);
        fail(&cfg, &stats, &all, 0, Outcome::Status(500), 2);
        assert_eq!(out(&all), 0);
        fail(&cfg, &stats, &all, 0, Outcome::ConnectFailure, 1);
        assert_eq!(out(&all), 1);
        assert_eq!(stats.outlier_ejections_enforced_consecutive_5xx.get(), 1);
    }

    #[test]
    fn gateway_errors_and_own_error_ranges() {
        let cfg = OutlierDetection { consecutive_5xx: 0, consecutive_gateway: 2, enforcing: [0, 100, 0], ..loose() };
        let (stats, all) = (ClusterStats::default(), endpoints(2));
        fail(&cfg, &stats, &all, 0, Outcome::Status(503), 1);
        fail(&cfg, &stats, &all, 0, Outcome::Status(500), 1); // not a gateway error
        fail(&cfg, &stats, &all, 0, Outcome::Timeout, 1);
        assert_eq!(out(&all), 0);
        fail(&cfg, &stats, &all, 0, Outcome::Status(502), 1);
        assert_eq!(out(&all), 1);

        let cfg = OutlierDetection { consecutive_5xx: 1, http_errors: vec![429], ..loose() };
        let all = endpoints(2);
        fail(&cfg, &stats, &all, 0, Outcome::Status(500), 9);
        assert_eq!(out(&all), 0);
        fail(&cfg, &stats, &all, 0, Outcome::Status(429), 1);
        assert_eq!(out(&all), 1);
    }

    #[test]
    fn split_keeps_local_failures_apart() {
        let cfg =
            OutlierDetection { consecutive_5xx: 2, consecutive_local_origin: 3, split_local_origin: true, ..loose() };
        let (stats, all) = (ClusterStats::default(), endpoints(2));
        fail(&cfg, &stats, &all, 0, Outcome::ConnectFailure, 2);
        fail(&cfg, &stats, &all, 0, Outcome::Status(500), 1); // an answer: local failures start over
        fail(&cfg, &stats, &all, 0, Outcome::Reset, 2);
        assert_eq!(out(&all), 0);
        fail(&cfg, &stats, &all, 0, Outcome::Timeout, 1);
        assert_eq!(out(&all), 1);
        assert_eq!(stats.outlier_ejections_enforced_consecutive_local_origin_failure.get(), 1);
    }

    #[test]
    fn the_percentage_counts_unless_one_may_always_go() {
        let ejected = |n: u16, max_ejection_percent, always_eject_one| {
            let cfg = OutlierDetection {
                consecutive_5xx: 1,
                max_ejection_percent,
                always_eject_one,
                ..OutlierDetection::default()
            };
            let (stats, all) = (ClusterStats::default(), endpoints(n));
            for i in 0..all.len() {
                fail(&cfg, &stats, &all, i, Outcome::Status(503), 1);
            }
            assert_eq!(stats.outlier_ejections_overflow.get() as usize, all.len() - out(&all));
            out(&all)
        };
        // As Envoy 1.40 does.
        assert_eq!((ejected(4, 25, false), ejected(2, 25, false), ejected(9, 10, false)), (1, 0, 0));
        assert_eq!((ejected(10, 10, false), ejected(4, 50, false), ejected(2, 100, false)), (1, 2, 2));
        assert_eq!((ejected(2, 10, true), ejected(4, 50, true), ejected(2, 0, true)), (1, 2, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn ejections_grow_up_to_a_maximum_and_shrink_in_quiet_times() {
        let second = Duration::from_secs(1);
        let cfg =
            OutlierDetection { consecutive_5xx: 1, base_ejection: second * 10, max_ejection: second * 15, ..loose() };
        let (stats, all) = (ClusterStats::default(), endpoints(2));
        let random = Seeded::new(1);
        let out_for = async || {
            fail(&cfg, &stats, &all, 0, Outcome::Status(500), 1);
            let mut seconds = 0;
            while out(&all) > 0 {
                tokio::time::advance(second).await;
                seconds += 1;
                sweep(&cfg, &stats, &all, &random);
            }
            seconds
        };
        assert_eq!(out_for().await, 10);
        assert_eq!(out_for().await, 15, "20 s, cut at the maximum");
        assert_eq!(stats.outlier_ejections_active.get(), 0);
        for _ in 0..2 {
            sweep(&cfg, &stats, &all, &random);
        }
        assert_eq!(out_for().await, 10);
    }

    #[test]
    fn rates_single_out_the_bad_one() {
        let cfg = OutlierDetection {
            consecutive_5xx: 0,
            success_rate: Some(SuccessRate::enforced([100, 0])),
            max_ejection_percent: 50,
            ..loose()
        };
        let (stats, all) = (ClusterStats::default(), endpoints(5));
        for (i, bad) in [(0, 1), (1, 2), (2, 0), (3, 1), (4, 60)] {
            for k in 0..100 {
                note(&cfg, &all[i], Outcome::Status(if k < bad { 500 } else { 200 }));
            }
        }
        // With five hosts the worst deviation is 2.0 standard deviations: 1.9 finds it.
        assert!(sweep(&cfg, &stats, &all, &Seeded::new(1)));
        assert!(all[4].state.has(Flag::FailedOutlier));
        assert_eq!(out(&all), 1);
        assert_eq!(all[4].state.outlier.success_rate(), Some(40.0));
        assert!(!sweep(&cfg, &stats, &all, &Seeded::new(1)), "the next interval begins empty");

        let cfg = OutlierDetection { success_rate: None, failure_percentage: Some(failing(50, [100, 0])), ..cfg };
        let all = endpoints(3);
        for (i, bad) in [(0, 0), (1, 5), (2, 4)] {
            for k in 0..10 {
                note(&cfg, &all[i], Outcome::Status(if k < bad { 500 } else { 200 }));
            }
        }
        sweep(&cfg, &stats, &all, &Seeded::new(1));
        assert!(all[1].state.has(Flag::FailedOutlier) && out(&all) == 1);
        assert_eq!(all[1].state.outlier.success_rate(), Some(50.0));
    }

    /// Two endpoints with ten requests each are judged.
    fn failing(threshold: u32, enforcing: [u32; 2]) -> FailurePercentage {
        FailurePercentage { threshold, judged: Judged { minimum_hosts: 2, request_volume: 10, enforcing } }
    }

    #[test]
    fn failures_are_judged_with_enough_hosts_and_requests_only() {
        let cfg = OutlierDetection { consecutive_5xx: 0, failure_percentage: Some(failing(50, [100, 100])), ..loose() };
        let swept = |requests: &[(u32, u32)]| {
            let (stats, all) = (ClusterStats::default(), endpoints(requests.len() as u16));
            for (e, (bad, good)) in all.iter().zip(requests) {
                for k in 0..bad + good {
                    note(&cfg, e, Outcome::Status(if k < *bad { 503 } else { 200 }));
                }
            }
            sweep(&cfg, &stats, &all, &Seeded::new(1));
            assert_eq!(stats.outlier_ejections_enforced_failure_percentage.get() as usize, out(&all));
            out(&all)
        };
        assert_eq!(swept(&[(5, 5), (0, 10)]), 1);
        assert_eq!(swept(&[(4, 6), (0, 10)]), 0, "below the threshold");
        assert_eq!(swept(&[(9, 0), (0, 10)]), 0, "one had too few requests");
        assert_eq!(swept(&[(9, 0), (0, 10), (5, 5)]), 1, "of two that are judged, one fails");
        assert_eq!(swept(&[(10, 0)]), 0, "there is nobody else");
    }

    #[test]
    fn failures_of_either_origin_are_enforced_apart() {
        let swept = |enforcing, split_local_origin| {
            let failure_percentage = Some(failing(50, enforcing));
            let cfg = OutlierDetection {
                consecutive_5xx: 0,
                consecutive_local_origin: 0,
                split_local_origin,
                failure_percentage,
                ..loose()
            };
            let (stats, all) = (ClusterStats::default(), endpoints(3));
            for _ in 0..10 {
                note(&cfg, &all[0], Outcome::Status(500));
                note(&cfg, &all[1], Outcome::ConnectFailure);
                note(&cfg, &all[2], Outcome::Status(200));
            }
            sweep(&cfg, &stats, &all, &Seeded::new(1));
            let local = stats.outlier_ejections_enforced_local_origin_failure_percentage.get();
            (all.iter().map(|e| e.state.has(Flag::FailedOutlier)).collect::<Vec<_>>(), local)
        };
        assert_eq!(swept([100, 0], false), (vec![true, true, false], 0));
        assert_eq!(swept([0, 100], false), (vec![false, false, false], 0), "nothing is of local origin");
        assert_eq!(swept([100, 0], true), (vec![true, false, false], 0));
        assert_eq!(swept([0, 100], true), (vec![false, true, false], 1));
    }
}
