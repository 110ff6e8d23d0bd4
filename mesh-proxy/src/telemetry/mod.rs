//! What the proxy tells of its traffic: Istio's standard metrics, access logs, spans. Knows finished exchanges and
//! connections; knows no codec and no xDS stream.
//!
//! Everything that can be decided when configuration is compiled is decided then: [`HttpSink`] holds parsed formats,
//! our own labels, writers. Recording takes one lookup in a map of the worker's own shard.

pub mod access_log;
pub mod histogram;
pub mod http_stats;
pub mod log_export;
mod log_filter;
pub mod metrics;
mod overrides;
pub mod peer;
mod series;
pub mod span;
pub mod span_export;
mod tcp;
mod trace_context;

use std::sync::Arc;

use mesh_api::model;

use crate::config::{CompileCtx, ConfigError};
use crate::http::attributes::Place;
use crate::http::message::RequestHead;
use crate::http::stats::{ConnectionSink, ExchangeSink, ExchangeStats, Needs, Telemetry};
use access_log::{AccessLogs, LogSinks};
use http_stats::{HttpRegistry, HttpStats};
use log_export::Codec;
use metrics::Metrics;
use series::Reporter;
use span::Tracer;
use span_export::SpanQueue;

/// What all sinks of the process share.
#[derive(Debug)]
pub struct ProxyTelemetry {
    /// Istio's metrics.
    pub metrics: Arc<Metrics>,
    /// Counters of HTTP managers.
    pub http: HttpRegistry,
    /// Open log files, and logs on their way to collectors.
    pub logs: LogSinks,
    /// Spans on their way out.
    pub spans: Arc<SpanQueue>,
}

impl ProxyTelemetry {
    /// Nothing recorded yet; log files are flushed by a thread of their own.
    pub fn new(workers: usize, codec: Arc<dyn Codec>) -> Arc<Self> {
        Arc::new(Self {
            metrics: Metrics::new(workers),
            http: HttpRegistry::new(workers),
            logs: LogSinks::start(workers, codec),
            spans: SpanQueue::new(),
        })
    }
}

/// Where the finished exchanges of one HTTP manager go.
#[derive(Debug)]
pub struct HttpSink {
    metrics: Arc<Metrics>,
    stats: Arc<HttpStats>,
    reporter: Arc<Reporter>,
    logs: AccessLogs,
    tracer: Option<Tracer>,
    needs: Needs,
}

impl Telemetry for ProxyTelemetry {
    fn http_sink(&self, manager: &model::HttpManager, ctx: &CompileCtx) -> Result<Arc<dyn ExchangeSink>, ConfigError> {
        let logs = AccessLogs::compile(&manager.access_log, &self.logs, &Place::of(ctx))?;
        let node = &ctx.shared.node;
        let tracer = match &manager.tracing {
            Some(tracing) => Some(Tracer::compile(tracing, node, ctx.direction, &self.spans)?),
            None => None,
        };
        let mut needs = Needs::default();
        logs.needs(&mut needs);
        if let Some(tracer) = &tracer {
            tracer.needs(&mut needs);
        }
        let changes = manager.filters.iter().find_map(|f| match &f.kind {
            model::HttpFilterKind::IstioStats(stats) => Some(stats),
            _ => None,
        });
        let reporter = Reporter::new(&Place::of(ctx), changes);
        if let Some(overrides) = &reporter.overrides {
            overrides.needs(&mut needs);
        }
        let stats = self.http.of(&manager.stat_prefix);
        Ok(Arc::new(HttpSink { metrics: self.metrics.clone(), stats, reporter, logs, tracer, needs }))
    }

    fn listener_sink(
        &self,
        logs: &[model::AccessLog],
        ctx: &CompileCtx,
    ) -> Result<Option<Arc<dyn ExchangeSink>>, ConfigError> {
        let logs = AccessLogs::compile(logs, &self.logs, &Place::of(ctx))?;
        Ok(if logs.is_empty() { None } else { Some(Arc::new(ListenerSink(logs))) })
    }

    fn tcp_sink(
        &self,
        proxy: &model::TcpProxy,
        stats: Option<&model::IstioStats>,
        ctx: &CompileCtx,
    ) -> Result<Arc<dyn ConnectionSink>, ConfigError> {
        let logs = AccessLogs::compile(&proxy.access_log, &self.logs, &Place::of(ctx))?;
        let reporter = Reporter::new(&Place::of(ctx), stats);
        let asked = stats.and_then(|s| s.tcp_reporting);
        // More often than each second would cost more than it tells.
        let interval = asked.map_or(tcp::INTERVAL, |i| i.max(std::time::Duration::from_secs(1)));
        Ok(Arc::new(tcp::TcpSink { metrics: self.metrics.clone(), reporter, logs, interval }))
    }
}

/// Where the connections of one listener go.
#[derive(Debug)]
struct ListenerSink(AccessLogs);

impl ExchangeSink for ListenerSink {
    fn record(&self, stats: &ExchangeStats, worker: usize) {
        self.0.write_http(stats, worker);
    }
}

impl ExchangeSink for HttpSink {
    fn needs(&self) -> Needs {
        self.needs.clone()
    }

    fn begin(&self, stats: &mut ExchangeStats, head: &mut RequestHead, random: &dyn Fn() -> u64) {
        if let Some(tracer) = &self.tracer {
            tracer.begin(stats, head, random);
        }
    }

    fn connected(&self, worker: usize) {
        self.stats.connected(worker);
    }

    fn disconnected(&self, worker: usize) {
        self.stats.disconnected(worker);
    }

    fn record(&self, stats: &ExchangeStats, worker: usize) {
        self.stats.request(worker, stats.status);
        self.stats.decided(worker, stats);
        // Answers are counted where they arrive; to Envoy what stands for one is one too.
        if let Some(cluster) = stats.cluster.as_ref().filter(|_| stats.reason.is_upstreams_failure()) {
            cluster.stats.codes.count(stats.reason.status());
        }
        self.metrics.record_http(&self.reporter, stats, worker);
        self.logs.write_http(stats, worker);
        if let Some(tracer) = &self.tracer {
            tracer.record(stats);
        }
    }
}
