//! Metrics and logs of forwarded connections.

use std::sync::Arc;
use std::time::Duration;

use super::{
    access_log::AccessLogs,
    metrics::{Metrics, TcpCounts},
    series::{Facts, Reporter},
};
use crate::http::stats::{ConnectionSink, ExchangeStats};

/// Where the connections of one TCP proxy go.
#[derive(Debug)]
pub(super) struct TcpSink {
    pub(super) metrics: Arc<Metrics>,
    pub(super) reporter: Arc<Reporter>,
    pub(super) logs: AccessLogs,
    /// How often connections that stay open are counted.
    pub(super) interval: Duration,
}

/// As in Istio.
pub(super) const INTERVAL: Duration = Duration::from_secs(15);

impl TcpSink {
    fn count(&self, stats: &ExchangeStats, worker: usize, delta: TcpCounts) {
        let values = self.reporter.values(stats);
        self.metrics.record_tcp(&Facts::of_tcp(&self.reporter, stats, &values), worker, delta);
    }
}

impl ConnectionSink for TcpSink {
    fn interval(&self) -> Duration {
        self.interval
    }

    fn opened(&self, stats: &ExchangeStats, worker: usize) {
        self.count(stats, worker, TcpCounts { opened: 1, ..TcpCounts::default() });
    }

    fn moved(&self, stats: &ExchangeStats, received: u64, sent: u64, worker: usize) {
        self.count(stats, worker, TcpCounts { received, sent, ..TcpCounts::default() });
    }

    fn closed(&self, stats: &ExchangeStats, worker: usize) {
        self.count(stats, worker, TcpCounts { closed: 1, ..TcpCounts::default() });
        self.logs.write_http(stats, worker);
    }
}
