//! Metrics and logs of forwarded connections.

use std::sync::Arc;

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
}

impl TcpSink {
    fn count(&self, stats: &ExchangeStats, worker: usize, delta: TcpCounts) {
        let upstream_tls = stats.upstream.as_deref().and_then(|u| u.tls.as_ref());
        let cluster = (stats.cluster_name.as_ref(), stats.cluster.as_deref());
        let endpoint = stats.endpoint.as_deref();
        let facts = Facts::of_tcp(&self.reporter, &stats.conn, upstream_tls, cluster, endpoint, stats.flags);
        self.metrics.record_tcp(&facts, worker, delta);
    }
}

impl ConnectionSink for TcpSink {
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
