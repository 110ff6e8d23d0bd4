//! What the proxy tells of its traffic: Istio's standard metrics, access logs, spans. Knows finished exchanges and
//! connections; knows no codec and no xDS stream.
//!
//! Everything that can be decided when configuration is compiled is decided then: [`HttpSink`] holds parsed formats,
//! our own labels, writers. Recording takes one lookup in a map of the worker's own shard.

pub mod access_log;
pub mod histogram;
pub mod metrics;
pub mod peer;
mod series;
pub mod span;
pub mod span_export;
mod tcp;
mod trace_context;

use std::sync::Arc;

use mesh_api::model;

use crate::config::{CompileCtx, ConfigError};
use crate::http::message::RequestHead;
use crate::http::stats::{ConnectionSink, ExchangeSink, ExchangeStats, Needs, Telemetry};
use access_log::{AccessLogs, LogFiles};
use metrics::Metrics;
use series::Reporter;
use span::Tracer;
use span_export::SpanQueue;

/// What all sinks of the process share.
#[derive(Debug)]
pub struct ProxyTelemetry {
    /// Istio's metrics.
    pub metrics: Arc<Metrics>,
    /// Open log files.
    pub logs: Arc<LogFiles>,
    /// Spans on their way out.
    pub spans: Arc<SpanQueue>,
}

impl ProxyTelemetry {
    /// Nothing recorded yet; log files are flushed by a thread of their own.
    pub fn new(workers: usize) -> Arc<Self> {
        Arc::new(Self { metrics: Metrics::new(workers), logs: LogFiles::start(workers), spans: SpanQueue::new() })
    }
}

/// Where the finished exchanges of one HTTP manager go.
#[derive(Debug)]
pub struct HttpSink {
    metrics: Arc<Metrics>,
    reporter: Arc<Reporter>,
    logs: AccessLogs,
    tracer: Option<Tracer>,
    needs: Needs,
}

impl Telemetry for ProxyTelemetry {
    fn http_sink(&self, manager: &model::HttpManager, ctx: &CompileCtx) -> Result<Arc<dyn ExchangeSink>, ConfigError> {
        let logs = AccessLogs::compile(&manager.access_log, &self.logs)?;
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
        let reporter = Reporter::new(node, ctx.direction);
        Ok(Arc::new(HttpSink { metrics: self.metrics.clone(), reporter, logs, tracer, needs }))
    }

    fn tcp_sink(&self, proxy: &model::TcpProxy, ctx: &CompileCtx) -> Result<Arc<dyn ConnectionSink>, ConfigError> {
        let logs = AccessLogs::compile(&proxy.access_log, &self.logs)?;
        let reporter = Reporter::new(&ctx.shared.node, ctx.direction);
        Ok(Arc::new(tcp::TcpSink { metrics: self.metrics.clone(), reporter, logs }))
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

    fn record(&self, stats: &ExchangeStats, worker: usize) {
        self.metrics.record_http(&self.reporter, stats, worker);
        self.logs.write_http(stats, worker);
        if let Some(tracer) = &self.tracer {
            tracer.record(stats);
        }
    }
}
