//! Istio's standard metrics: counted in a shard a worker, summed when somebody asks. The number of series is capped,
//! series nobody adds to go away.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use mesh_api::model::Name;
use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::time::Instant;

use super::histogram::Histogram;
use super::series::{Facts, Key, Peers, Reporter, Told};
use crate::http::stats::ExchangeStats;

/// Most series a shard; further ones are counted in `mesh_proxy_dropped_series_total`.
pub const MAX_SERIES: usize = 10_000;
/// Most series a shard that have the same proven identity at the other end: no peer uses up what all share.
pub const MAX_SERIES_PER_PEER: usize = MAX_SERIES / 4;
/// A series that nothing was added to for so long is forgotten.
pub const IDLE: Duration = Duration::from_secs(3600);

/// All series.
#[derive(Debug)]
pub struct Metrics {
    shards: Box<[Mutex<Shard>]>,
    dropped: AtomicU64,
}

/// The metrics, in the order of their numbers in a [`MetricSet`], without `istio_`.
pub const METRICS: [&str; 10] = [
    "requests_total",
    "request_duration_milliseconds",
    "request_bytes",
    "response_bytes",
    "request_messages_total",
    "response_messages_total",
    "tcp_sent_bytes_total",
    "tcp_received_bytes_total",
    "tcp_connections_opened_total",
    "tcp_connections_closed_total",
];

/// Some of the [`METRICS`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MetricSet(u16);

impl MetricSet {
    /// Of requests that are not gRPC.
    pub const HTTP: Self = Self(0b00_0000_1111);
    /// Of gRPC.
    pub const GRPC: Self = Self(0b00_0011_1111);
    /// Of connections.
    pub const TCP: Self = Self(0b11_1100_0000);

    /// The one of this number.
    pub fn one(number: usize) -> Self {
        let mut set = Self::default();
        set.insert(number);
        set
    }

    /// Adds the one of this number.
    pub fn insert(&mut self, number: usize) {
        self.0 |= u32::try_from(number).ok().and_then(|n| 1u16.checked_shl(n)).unwrap_or_default();
    }

    fn has(self, number: usize) -> bool {
        self.0 & Self::one(number).0 != 0
    }

    fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

#[derive(Debug, Default)]
struct Shard {
    /// Where what has this key is counted.
    targets: HashMap<Key, Targets>,
    series: Vec<Option<Series>>,
    /// Places of `series` that are empty.
    free: Vec<usize>,
    by_labels: HashMap<Arc<str>, usize>,
    /// Series a proven identity of the other end.
    by_principal: HashMap<Name, usize>,
    peers: Peers,
}

/// Series by their place, and which of their metrics are meant: nearly always one with all of them.
type Targets = SmallVec<[(usize, MetricSet); 1]>;

impl Shard {
    /// Whether there is room for one more series.
    fn has_room(&self, principal: Option<&Name>) -> bool {
        let of_peer = principal.and_then(|p| self.by_principal.get(p)).copied().unwrap_or(0);
        self.by_labels.len() < MAX_SERIES && of_peer < MAX_SERIES_PER_PEER
    }

    /// Finds or makes the series of a key that is new; `None`: there is no room for one of them.
    fn resolve(&mut self, facts: &Facts<'_>, told: Option<&Told>, key: Key, now: Instant) -> Option<Targets> {
        let plain = [(facts.metrics(), None)];
        let changed: SmallVec<[_; 4]>;
        let groups = match &facts.reporter.overrides {
            // Without changes other labels are another key: nothing has to be written out to know that there is no room.
            None if !self.has_room(key.peer_principal()) => return None,
            None => &plain[..],
            Some(overrides) => {
                let groups = overrides.groups().iter();
                changed = groups.map(|(set, change)| (set.and(facts.metrics()), Some(change))).collect();
                &changed[..]
            }
        };
        let mut targets = Targets::new();
        for (metrics, change) in groups.iter().filter(|(metrics, _)| *metrics != MetricSet::default()) {
            let labels = facts.labels(told, *change);
            let place = match self.by_labels.get(&labels) {
                Some(place) => *place,
                None if self.has_room(key.peer_principal()) => self.insert(labels, key.peer_principal(), now),
                None => return None,
            };
            targets.push((place, *metrics));
        }
        if self.targets.len() >= 2 * MAX_SERIES {
            self.targets.clear();
        }
        self.targets.insert(key, targets.clone());
        Some(targets)
    }

    fn insert(&mut self, labels: Arc<str>, principal: Option<&Name>, now: Instant) -> usize {
        if let Some(principal) = principal {
            *self.by_principal.entry(principal.clone()).or_insert(0) += 1;
        }
        let place = self.free.pop().unwrap_or_else(|| {
            self.series.push(None);
            self.series.len() - 1
        });
        self.by_labels.insert(labels.clone(), place);
        let new = Series {
            labels,
            principal: principal.cloned(),
            last: now,
            metrics: MetricSet::default(),
            counts: Counts::default(),
        };
        if let Some(slot) = self.series.get_mut(place) {
            *slot = Some(new);
        }
        place
    }

    fn forget(&mut self, mut idle: impl FnMut(&Series) -> bool) {
        for (place, slot) in self.series.iter_mut().enumerate() {
            if let Some(series) = slot.take_if(|s| idle(s)) {
                self.by_labels.remove(&series.labels);
                self.free.push(place);
            }
        }
        let series = &self.series;
        self.targets.retain(|_, all| all.iter().all(|(place, _)| series.get(*place).is_some_and(Option::is_some)));
        self.by_principal.clear();
        for principal in self.series.iter().flatten().filter_map(|s| s.principal.as_ref()) {
            *self.by_principal.entry(principal.clone()).or_insert(0) += 1;
        }
    }
}

#[derive(Debug)]
struct Series {
    labels: Arc<str>,
    /// The identity at the other end when it began.
    principal: Option<Name>,
    last: Instant,
    /// What has been counted.
    metrics: MetricSet,
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
    tcp: TcpCounts,
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
        self.tcp.sent += other.tcp.sent;
        self.tcp.received += other.tcp.received;
        self.tcp.opened += other.tcp.opened;
        self.tcp.closed += other.tcp.closed;
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
        let values = reporter.values(stats);
        let facts = Facts::of_http(reporter, stats, &values);
        let end = stats.times.end.unwrap_or_else(Instant::now);
        let millis = end.saturating_duration_since(stats.start).as_secs_f64() * 1e3;
        self.count(&facts, worker, end, |counts, wanted| {
            counts.requests += u64::from(wanted.has(0));
            if wanted.has(1) {
                // Whole milliseconds, as Istio.
                counts.duration.observe(millis.floor());
            }
            if wanted.has(2) {
                counts.request_bytes.observe(precise(stats.bytes_received + stats.request_header_bytes));
            }
            if wanted.has(3) {
                counts.response_bytes.observe(precise(stats.bytes_sent + stats.response_header_bytes));
            }
            if wanted.has(4) {
                counts.request_messages += stats.request_messages;
            }
            if wanted.has(5) {
                counts.response_messages += stats.response_messages;
            }
        });
    }

    /// Counts something of a forwarded connection.
    pub fn record_tcp(&self, facts: &Facts<'_>, worker: usize, delta: TcpCounts) {
        self.count(facts, worker, Instant::now(), |counts, wanted| {
            let only = |number: usize, n: u64| if wanted.has(number) { n } else { 0 };
            counts.tcp.sent += only(6, delta.sent);
            counts.tcp.received += only(7, delta.received);
            counts.tcp.opened += only(8, delta.opened);
            counts.tcp.closed += only(9, delta.closed);
        });
    }

    fn count(&self, facts: &Facts<'_>, worker: usize, now: Instant, add: impl Fn(&mut Counts, MetricSet)) {
        let Some(shard) = self.shards.get(worker % self.shards.len()) else { return };
        let mut shard = shard.lock();
        let told = shard.peers.told(facts);
        let key = facts.key(told.as_deref());
        let known = shard.targets.get(&key).cloned();
        let Some(targets) = known.or_else(|| shard.resolve(facts, told.as_deref(), key, now)) else {
            self.dropped.fetch_add(1, Relaxed);
            return;
        };
        for (place, metrics) in targets {
            if let Some(Some(series)) = shard.series.get_mut(place) {
                series.last = now;
                series.metrics = series.metrics.or(metrics);
                add(&mut series.counts, metrics);
            }
        }
    }

    /// Appends everything in Prometheus's text form; forgets what has been idle for [`IDLE`].
    pub fn write(&self, out: &mut String) {
        let series = self.collect(Instant::now());
        type Number = fn(&Counts) -> u64;
        let counters: [(usize, Number); 7] = [
            (0, |c| c.requests),
            (4, |c| c.request_messages),
            (5, |c| c.response_messages),
            (6, |c| c.tcp.sent),
            (7, |c| c.tcp.received),
            (8, |c| c.tcp.opened),
            (9, |c| c.tcp.closed),
        ];
        let with = |number: usize| series.iter().filter(move |s| s.metrics.has(number));
        let begin = |number: usize, kind: &str, out: &mut String| {
            let name = METRICS.get(number).copied().unwrap_or_default();
            if with(number).next().is_some() {
                let _ = writeln!(out, "# TYPE istio_{name} {kind}");
            }
            name
        };
        for (number, value) in counters {
            let name = begin(number, "counter", out);
            for sum in with(number) {
                let _ = writeln!(out, "istio_{name}{{{}}} {}", sum.labels, value(&sum.counts));
            }
        }
        type Pick = fn(&Counts) -> &Histogram;
        let histograms: [(usize, Pick); 3] =
            [(1, |c| &c.duration), (2, |c| &c.request_bytes), (3, |c| &c.response_bytes)];
        for (number, pick) in histograms {
            let name = format!("istio_{}", begin(number, "histogram", out));
            for sum in with(number) {
                pick(&sum.counts).write(&name, &sum.labels, out);
            }
        }
        let dropped = self.dropped.load(Relaxed);
        let _ =
            writeln!(out, "# TYPE mesh_proxy_dropped_series_total counter\nmesh_proxy_dropped_series_total {dropped}");
        let version = env!("CARGO_PKG_VERSION");
        let _ = writeln!(out, "# TYPE istio_build gauge\nistio_build{{component=\"proxy\",tag=\"{version}\"}} 1");
    }

    /// Sums of all shards by labels.
    fn collect(&self, now: Instant) -> Vec<Sum> {
        let mut sums: BTreeMap<Arc<str>, Sum> = BTreeMap::new();
        for shard in &self.shards {
            for series in shard.lock().series.iter().flatten() {
                let sum = sums.entry(series.labels.clone()).or_insert_with(|| Sum {
                    labels: series.labels.clone(),
                    last: series.last,
                    metrics: MetricSet::default(),
                    counts: Counts::default(),
                });
                sum.counts.merge(&series.counts);
                sum.metrics = sum.metrics.or(series.metrics);
                sum.last = series.last.max(sum.last);
            }
        }
        // Idle means idle in every shard: a sum must never shrink.
        let idle = |sum: &Sum| now.saturating_duration_since(sum.last) > IDLE;
        if sums.values().any(idle) {
            for shard in &self.shards {
                shard.lock().forget(|s| sums.get(&s.labels).is_some_and(idle));
            }
        }
        sums.into_values().collect()
    }
}

/// A series of all shards.
#[derive(Debug)]
struct Sum {
    labels: Arc<str>,
    last: Instant,
    metrics: MetricSet,
    counts: Counts,
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
    use mesh_api::model::{IstioStats, MetricChange, TrafficDirection};

    use super::*;
    use crate::http::attributes::Place;
    use crate::http::local_reply::ResponseFlags;
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

    fn outbound(stats: Option<&IstioStats>) -> Arc<Reporter> {
        Reporter::new(&Place { direction: TrafficDirection::Outbound, ..Place::default() }, stats)
    }

    #[tokio::test]
    async fn metrics_and_labels_are_changed() {
        let change = |name: &str, labels: &[(&str, &str)], removed: &[&str]| MetricChange {
            name: name.into(),
            labels: labels.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect(),
            removed: removed.iter().map(|r| (*r).into()).collect(),
            dropped: false,
        };
        let dropped = MetricChange { name: "response_bytes".into(), dropped: true, ..MetricChange::default() };
        let stats = IstioStats {
            metrics: vec![
                change("", &[("method", "request.method"), ("user.name", "request.headers['x-user']")], &[]),
                change(
                    "requests_total",
                    &[("response_code", "string(response.code / 100) + 'xx'")],
                    &["response_flags"],
                ),
                change("request_bytes", &[("broken", "nope(")], &["response_code", "no_label"]),
                dropped,
            ],
            ..IstioStats::default()
        };
        let (metrics, reporter) = (Metrics::new(2), outbound(Some(&stats)));
        let with_flags = |status, flags| ExchangeStats { flags, ..exchange(status) };
        metrics.record_http(&reporter, &with_flags(503, ResponseFlags::UH), 0);
        metrics.record_http(&reporter, &with_flags(504, ResponseFlags::UT), 0);
        metrics.record_http(&reporter, &with_flags(504, ResponseFlags::UT), 1);
        metrics.record_http(&outbound(None), &exchange(503), 0);
        let mut text = String::new();
        metrics.write(&mut text);
        let lines = |name: &str, with: &str| -> Vec<&str> {
            let start = format!("istio_{name}{{");
            text.lines().filter(|l| l.starts_with(&start) && l.contains(with)).collect()
        };
        let counts = lines("requests_total", "method=\"GET\"");
        assert_eq!(counts.len(), 1, "{text}");
        assert!(counts[0].ends_with("} 3") && counts[0].contains("response_code=\"5xx\""), "{text}");
        assert!(counts[0].contains("user_name=\"unknown\"") && !counts[0].contains("response_flags"), "{text}");
        assert_eq!(lines("requests_total", "response_code=\"503\"").len(), 1, "what nobody changed stays\n{text}");
        let sizes = lines("request_bytes_count", "broken=\"unknown\"");
        assert!(sizes.iter().all(|l| !l.contains("response_code=")) && sizes.len() == 2, "{text}");
        assert_eq!(lines("response_bytes_count", "").len(), 1, "dropped but for the other listener\n{text}");
        assert_eq!(lines("request_duration_milliseconds_count", "method=\"GET\"").len(), 2, "{text}");
    }

    #[tokio::test(start_paused = true)]
    async fn shards_are_summed_and_idle_series_forgotten() {
        let metrics = Metrics::new(2);
        let reporter = outbound(None);
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

    #[tokio::test(start_paused = true)]
    async fn no_peer_uses_up_what_all_share() {
        let metrics = Metrics::new(1);
        let reporter = Reporter::new(&Place { direction: TrafficDirection::Inbound, ..Place::default() }, None);
        let from = |peer: &str, status| {
            let mut stats = exchange(status);
            let tls = Some(crate::telemetry::series::tests::spiffe(&format!("spiffe://cluster.local/ns/a/sa/{peer}")));
            stats.conn = Rc::new(crate::net::ConnInfo { tls, ..testing::conn() });
            stats
        };
        let greedy = from("greedy", 0);
        let budget = u32::try_from(MAX_SERIES_PER_PEER).unwrap();
        for n in 0..=budget {
            let stats = ExchangeStats { grpc: true, grpc_status: Some(n), conn: greedy.conn.clone(), ..exchange(200) };
            metrics.record_http(&reporter, &stats, 0);
        }
        metrics.record_http(&reporter, &from("modest", 200), 0);
        assert_eq!(metrics.dropped.load(Relaxed), 1);
        let mut text = String::new();
        metrics.write(&mut text);
        assert!(text.contains("sa/modest"));
        tokio::time::advance(IDLE + Duration::from_secs(1)).await;
        metrics.write(&mut String::new());
        metrics.record_http(&reporter, &greedy, 0);
        assert_eq!(metrics.dropped.load(Relaxed), 1, "what is forgotten leaves room");
    }
}
