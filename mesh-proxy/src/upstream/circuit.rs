//! Circuit breakers of a cluster: how many connections, pending requests, requests and retries there are over all
//! workers, and how many there may be. Knows nothing of what is counted.

use std::sync::Arc;

use mesh_api::model::CircuitBreakers;

use super::stats::Gauge;

/// Which of the two sets of limits applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Priority {
    /// `DEFAULT`.
    #[default]
    Default,
    /// `HIGH`.
    High,
}

impl Priority {
    fn index(self) -> usize {
        match self {
            Self::Default => 0,
            Self::High => 1,
        }
    }
}

#[derive(Debug, Default)]
struct Counts {
    connections: Gauge,
    pending: Gauge,
    requests: Gauge,
    retries: Gauge,
}

/// What is in use, and the limits. Successive versions of a cluster share what is in use.
#[derive(Debug, Clone)]
pub struct Circuit {
    limits: [CircuitBreakers; 2],
    counts: Arc<[Counts; 2]>,
}

/// What a limit leaves free, for `circuit_breakers.PRIORITY.remaining_*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Remaining {
    /// Connections.
    pub connections: u64,
    /// Pending requests.
    pub pending: u64,
    /// Requests.
    pub requests: u64,
    /// Retries.
    pub retries: u64,
}

impl Circuit {
    /// Nothing in use.
    pub fn new(limits: [CircuitBreakers; 2]) -> Self {
        Self { limits, counts: Arc::default() }
    }
    /// Other limits on the same use.
    #[must_use]
    pub fn with_limits(&self, limits: [CircuitBreakers; 2]) -> Self {
        Self { limits, counts: self.counts.clone() }
    }
    fn at(&self, p: Priority) -> (&CircuitBreakers, &Counts) {
        (&self.limits[p.index()], &self.counts[p.index()])
    }
    /// The limits.
    pub fn limits(&self, p: Priority) -> &CircuitBreakers {
        self.at(p).0
    }
    /// Takes a connection; `force`: even beyond the limit. Give it back with [`Circuit::end_connection`].
    pub(super) fn begin_connection(&self, p: Priority, force: bool) -> bool {
        let (limits, counts) = self.at(p);
        counts.connections.try_inc(if force { u64::MAX } else { limits.max_connections.into() })
    }
    pub(super) fn end_connection(&self, p: Priority) {
        self.at(p).1.connections.dec();
    }
    /// Whether no more connections are allowed.
    pub fn connections_full(&self, p: Priority) -> bool {
        let (limits, counts) = self.at(p);
        limits.max_connections != u32::MAX && counts.connections.get() >= limits.max_connections.into()
    }
    pub(super) fn begin_pending(&self, p: Priority) -> bool {
        let (limits, counts) = self.at(p);
        counts.pending.try_inc(limits.max_pending.into())
    }
    pub(super) fn end_pending(&self, p: Priority) {
        self.at(p).1.pending.dec();
    }
    pub(super) fn begin_request(&self, p: Priority) -> bool {
        let (limits, counts) = self.at(p);
        counts.requests.try_inc(limits.max_requests.into())
    }
    pub(super) fn end_request(&self, p: Priority) {
        self.at(p).1.requests.dec();
    }
    /// Allows a retry, or not (`upstream_rq_retry_overflow`). With a budget the limit is a share of what is in flight.
    pub fn try_retry(&self, p: Priority) -> Option<RetryPermit> {
        let (limits, counts) = self.at(p);
        let limit = match limits.retry_budget {
            None => u64::from(limits.max_retries),
            Some((percent, at_least)) => {
                let in_flight = counts.requests.get() + counts.pending.get();
                ((in_flight as f64 * percent / 100.0) as u64).max(at_least.into()).min(u64::from(u32::MAX) - 1)
            }
        };
        counts.retries.try_inc(limit).then(|| RetryPermit { counts: self.counts.clone(), priority: p })
    }
    /// What is left.
    pub fn remaining(&self, p: Priority) -> Remaining {
        let (limits, counts) = self.at(p);
        let left = |limit: u32, used: &Gauge| u64::from(limit).saturating_sub(used.get());
        Remaining {
            connections: left(limits.max_connections, &counts.connections),
            pending: left(limits.max_pending, &counts.pending),
            requests: left(limits.max_requests, &counts.requests),
            retries: left(limits.max_retries, &counts.retries),
        }
    }
}

/// One retry in flight.
#[derive(Debug)]
pub struct RetryPermit {
    counts: Arc<[Counts; 2]>,
    priority: Priority,
}

impl Drop for RetryPermit {
    fn drop(&mut self) {
        self.counts[self.priority.index()].retries.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limited() -> CircuitBreakers {
        CircuitBreakers { max_connections: 1, max_retries: 2, ..CircuitBreakers::default() }
    }

    #[test]
    fn priorities_are_apart_and_a_new_version_shares_what_is_in_use() {
        let c = Circuit::new([limited(); 2]);
        assert!(c.begin_connection(Priority::Default, false));
        assert!(!c.begin_connection(Priority::Default, false));
        assert!(c.connections_full(Priority::Default));
        assert!(c.begin_connection(Priority::High, false));
        assert!(c.begin_connection(Priority::Default, true), "forced");
        let wider = c.with_limits([CircuitBreakers { max_connections: 3, ..limited() }; 2]);
        assert!(wider.begin_connection(Priority::Default, false));
        assert!(wider.connections_full(Priority::Default));
        assert_eq!(wider.remaining(Priority::Default).connections, 0);
    }

    #[test]
    fn retries_by_number_and_by_budget() {
        let c = Circuit::new([limited(); 2]);
        let a = c.try_retry(Priority::Default);
        let b = c.try_retry(Priority::Default);
        assert!(a.is_some() && b.is_some() && c.try_retry(Priority::Default).is_none());
        drop(a);
        assert!(c.try_retry(Priority::Default).is_some());

        let budget = CircuitBreakers { retry_budget: Some((20.0, 1)), ..limited() };
        let c = Circuit::new([budget; 2]);
        let one = c.try_retry(Priority::Default);
        assert!(one.is_some() && c.try_retry(Priority::Default).is_none(), "at least one, no more");
        for _ in 0..10 {
            assert!(c.begin_request(Priority::Default));
        }
        assert!(c.try_retry(Priority::Default).is_some(), "20 % of 10");
    }
}
