//! Istio's standard metrics: counted in a shard a worker, summed when somebody asks. The number of series is capped,
//! series nobody adds to go away.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::histogram::Histogram;
use super::series::{Facts, Key, Protocol, Reporter};
use crate::http::stats::ExchangeStats;

/// Most series a shard; further ones are counted in `mesh_proxy_dropped_series_total`.
pub const MAX_SERIES: usize = 10_000;
/// A series that nothing was added to for so long is forgotten.
pub const IDLE: Duration = Duration::from_secs(3600);

/// All series.
#[derive(Debug)]
pub struct Metrics {
    shards: Box<[Mutex<Shard>]>,
    dropped: AtomicU64,
}

#[derive(Debug, Default)]
struct Shard {
    series: HashMap<Key, Series>,
}

#[derive(Debug)]
struct Series {
    labels: Arc<str>,
    last: Instant,
    counts: Counts,
}

/// What is counted.
#[derive(Debug, Clone, Default)]
struct Counts {
    requests: u64,
    duration: Histogram,
    request_bytes: Histogram,
    response_bytes: Histogram,
    request_messages: u64,
    response_messages: u64,
    tcp: Option<TcpCounts>,
}

/// What is counted of connections.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct TcpCounts {
    /// Towards the client.
    pub sent: u64,
    /// From the client.
    pub received: u64,
    /// Connections opened.
    pub opened: u64,
    /// Connections closed.
    pub closed: u64,
}

impl Counts {
    fn merge(&mut self, other: &Counts) {
        self.requests += other.requests;
        self.duration.merge(&other.duration);
        self.request_bytes.merge(&other.request_bytes);
        self.response_bytes.merge(&other.response_bytes);
        self.request_messages += other.request_messages;
        self.response_messages += other.response_messages;
        if let Some(theirs) = other.tcp {
            let mine = self.tcp.get_or_insert_default();
            mine.sent += theirs.sent;
            mine.received += theirs.received;
            mine.opened += theirs.opened;
            mine.closed += theirs.closed;
        }
    }
}

impl Metrics {
    /// With a shard a worker.
    pub fn new(workers: usize) -> Arc<Self> {
        let shards = (0..workers.max(1)).map(|_| Mutex::default()).collect();
        Arc::new(Self { shards, dropped: AtomicU64::new(0) })
    }

    /// Counts a finished exchange.
    pub fn record_http(&self, reporter: &Reporter, stats: &ExchangeStats, worker: usize) {
        let facts = Facts::of_http(reporter, stats);
        let end = stats.times.end.unwrap_or_else(Instant::now);
        let millis = end.saturating_duration_since(stats.start).as_secs_f64() * 1e3;
        self.count(&facts, worker, end, |counts| {
            counts.requests += 1;
            // Whole milliseconds, as Istio.
            counts.duration.observe(millis.floor());
            counts.request_bytes.observe(precise(stats.bytes_received + stats.request_header_bytes));
            counts.response_bytes.observe(precise(stats.bytes_sent + stats.response_header_bytes));
            if facts.protocol == Protocol::Grpc {
                counts.request_messages += stats.request_messages;
                counts.response_messages += stats.response_messages;
            }
        });
    }

    /// Counts something of a forwarded connection.
    pub fn record_tcp(&self, facts: &Facts<'_>, worker: usize, delta: TcpCounts) {
        let delta = Counts { tcp: Some(delta), ..Counts::default() };
        self.count(facts, worker, Instant::now(), |counts| counts.merge(&delta));
    }

    fn count(&self, facts: &Facts<'_>, worker: usize, now: Instant, add: impl FnOnce(&mut Counts)) {
        let Some(shard) = self.shards.get(worker % self.shards.len()) else { return };
        let key = facts.key();
        let mut shard = shard.lock();
        if let Some(series) = shard.series.get_mut(&key) {
            series.last = now;
            add(&mut series.counts);
            return;
        }
        if shard.series.len() >= MAX_SERIES {
            self.dropped.fetch_add(1, Relaxed);
            return;
        }
        let mut series = Series { labels: facts.labels(), last: now, counts: Counts::default() };
        add(&mut series.counts);
        shard.series.insert(key, series);
    }

    /// Appends everything in Prometheus's text form; forgets what has been idle for [`IDLE`].
    pub fn write(&self, out: &mut String) {
        let series = self.collect(Instant::now());
        let http: Vec<_> = series.iter().filter(|(_, c)| c.tcp.is_none()).collect();
        type Number = fn(&Counts) -> u64;
        let mut counter = |name: &str, all: &[&(Arc<str>, Counts)], number: Number| {
            if !all.is_empty() {
                let _ = writeln!(out, "# TYPE {name} counter");
            }
            for (labels, counts) in all.iter().map(|s| (&s.0, &s.1)) {
                let _ = writeln!(out, "{name}{{{labels}}} {}", number(counts));
            }
        };
        let grpc: Vec<_> = http.iter().copied().filter(|(l, _)| l.contains("request_protocol=\"grpc\"")).collect();
        let tcp: Vec<_> = series.iter().filter(|(_, c)| c.tcp.is_some()).collect();
        counter("istio_requests_total", &http, |c| c.requests);
        counter("istio_request_messages_total", &grpc, |c| c.request_messages);
        counter("istio_response_messages_total", &grpc, |c| c.response_messages);
        counter("istio_tcp_sent_bytes_total", &tcp, |c| c.tcp.unwrap_or_default().sent);
        counter("istio_tcp_received_bytes_total", &tcp, |c| c.tcp.unwrap_or_default().received);
        counter("istio_tcp_connections_opened_total", &tcp, |c| c.tcp.unwrap_or_default().opened);
        counter("istio_tcp_connections_closed_total", &tcp, |c| c.tcp.unwrap_or_default().closed);
        type Pick = fn(&Counts) -> &Histogram;
        let histograms: [(&str, Pick); 3] = [
            ("istio_request_duration_milliseconds", |c| &c.duration),
            ("istio_request_bytes", |c| &c.request_bytes),
            ("istio_response_bytes", |c| &c.response_bytes),
        ];
        for (name, pick) in histograms {
            if !http.is_empty() {
                let _ = writeln!(out, "# TYPE {name} histogram");
            }
            for (labels, counts) in http.iter().map(|s| (&s.0, &s.1)) {
                pick(counts).write(name, labels, out);
            }
        }
        let dropped = self.dropped.load(Relaxed);
        let _ =
            writeln!(out, "# TYPE mesh_proxy_dropped_series_total counter\nmesh_proxy_dropped_series_total {dropped}");
        let version = env!("CARGO_PKG_VERSION");
        let _ = writeln!(out, "# TYPE istio_build gauge\nistio_build{{component=\"proxy\",tag=\"{version}\"}} 1");
    }

    /// Sums of all shards by labels.
    fn collect(&self, now: Instant) -> Vec<(Arc<str>, Counts)> {
        let mut sums: BTreeMap<Arc<str>, (Counts, Instant)> = BTreeMap::new();
        for shard in &self.shards {
            for series in shard.lock().series.values() {
                let (sum, last) = sums.entry(series.labels.clone()).or_insert_with(|| (Counts::default(), series.last));
                sum.merge(&series.counts);
                *last = series.last.max(*last);
            }
        }
        // Idle means idle in every shard: a sum must never shrink.
        let idle = |last: &Instant| now.saturating_duration_since(*last) > IDLE;
        if sums.values().any(|(_, last)| idle(last)) {
            for shard in &self.shards {
                shard.lock().series.retain(|_, s| sums.get(&s.labels).is_none_or(|(_, last)| !idle(last)));
            }
        }
        sums.into_iter().map(|(labels, (counts, _))| (labels, counts)).collect()
    }
}

/// Byte counts are far below 2^53.
#[allow(clippy::cast_precision_loss)]
fn precise(n: u64) -> f64 {
    n as f64
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use http::{Method, uri::PathAndQuery};
    use mesh_api::model::TrafficDirection;

    use super::*;
    use crate::config::snapshot::Node;
    use crate::http::message::{Authority, RequestHead};
    use crate::http::testing;

    fn exchange(status: u16) -> ExchangeStats {
        let head = RequestHead::new(Method::GET, Authority::parse("a").unwrap(), PathAndQuery::from_static("/"));
        let mut stats = ExchangeStats::new(Rc::new(testing::conn()), &head);
        stats.status = status;
        stats.cluster_name = Some("outbound|80||web.shop.svc.cluster.local".into());
        stats.times.end = Some(stats.start + Duration::from_millis(7));
        stats
    }

    #[tokio::test(start_paused = true)]
    async fn shards_are_summed_and_idle_series_forgotten() {
        let metrics = Metrics::new(2);
        let reporter = Reporter::new(&Node::default(), TrafficDirection::Outbound);
        metrics.record_http(&reporter, &exchange(200), 0);
        metrics.record_http(&reporter, &exchange(200), 1);
        metrics.record_http(&reporter, &exchange(503), 1);
        let mut text = String::new();
        metrics.write(&mut text);
        let line = |code: &str| {
            let wanted = format!("response_code=\"{code}\"");
            text.lines().find(|l| l.starts_with("istio_requests_total") && l.contains(&wanted)).unwrap().to_owned()
        };
        assert!(line("200").ends_with("} 2"), "{text}");
        assert!(line("503").ends_with("} 1"), "{text}");
        assert_eq!(line("200").matches("=\"").count(), 25, "{}", line("200"));
        assert!(line("200").contains("destination_service_name=\"web\""), "{text}");
        assert!(text.contains("istio_request_duration_milliseconds_bucket{reporter=\"source\""), "{text}");
        tokio::time::advance(IDLE + Duration::from_secs(1)).await;
        metrics.record_http(&reporter, &exchange(503), 0);
        let mut text = String::new();
        metrics.write(&mut text);
        // The first look finds them idle and still shows them, the second does not.
        let mut text = String::new();
        metrics.write(&mut text);
        assert!(!text.contains("response_code=\"200\"") && text.contains("response_code=\"503\""), "{text}");
    }
}
