//! The control plane's own metrics, under the names that Istio's dashboards read.
//!
//! Owns counters, gauges, histograms and their text form. Written by hand because Istio's counters do not end in
//! `_total`, which the usual client libraries insist on. Must not know who counts.

use std::{
    collections::BTreeMap,
    fmt::Write,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use mesh_api::xds::TypeUrl;
use parking_lot::Mutex;

/// Only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds one.
    pub fn inc(&self) {
        self.add(1);
    }
    /// Adds some.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }
    /// Present value.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Goes up and down.
#[derive(Debug, Default)]
pub struct Gauge(AtomicI64);

impl Gauge {
    /// Sets it.
    pub fn set(&self, n: usize) {
        self.0.store(i64::try_from(n).unwrap_or(i64::MAX), Relaxed);
    }
    /// Present value.
    pub fn get(&self) -> i64 {
        self.0.load(Relaxed)
    }
}

/// Seconds, as Istio's histograms of durations have them.
const SECONDS: &[f64] = &[0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 3.0, 5.0, 10.0, 20.0, 30.0];
/// Bytes of a response.
const BYTES: &[f64] = &[1.0, 1e4, 1e6, 4e6, 1e7, 4e7];

/// Distribution over fixed buckets.
#[derive(Debug)]
pub struct Histogram {
    bounds: &'static [f64],
    /// One more than bounds: the last is for what exceeds them all.
    counts: Box<[AtomicU64]>,
    /// In millionths.
    sum: AtomicU64,
}

impl Histogram {
    fn new(bounds: &'static [f64]) -> Self {
        Self { bounds, counts: (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect(), sum: AtomicU64::new(0) }
    }
    fn seconds() -> Self {
        Self::new(SECONDS)
    }
    fn bytes() -> Self {
        Self::new(BYTES)
    }
    /// Takes a duration in.
    pub fn observe(&self, d: Duration) {
        self.value(d.as_secs_f64());
    }
    /// Takes a number in.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    pub fn value(&self, v: f64) {
        let bucket = self.bounds.partition_point(|b| *b < v);
        if let Some(count) = self.counts.get(bucket) {
            count.fetch_add(1, Relaxed);
        }
        self.sum.fetch_add((v * 1e6).max(0.0) as u64, Relaxed);
    }
    /// How many were taken in.
    pub fn count(&self) -> u64 {
        self.counts.iter().map(|c| c.load(Relaxed)).sum()
    }
}

/// One metric per resource type, label `type`.
#[derive(Debug)]
pub struct PerType<M>([M; TypeUrl::ALL.len()]);

impl<M> PerType<M> {
    fn new(make: impl Fn() -> M) -> Self {
        Self(std::array::from_fn(|_| make()))
    }
    /// That of one type.
    pub fn of(&self, ty: TypeUrl) -> &M {
        let [a, b, c, d, e, f, g] = &self.0;
        match ty {
            TypeUrl::Cluster => a,
            TypeUrl::Endpoints => b,
            TypeUrl::Secret => c,
            TypeUrl::Listener => d,
            TypeUrl::Route => e,
            TypeUrl::Extension => f,
            TypeUrl::NameTable => g,
        }
    }
}

/// Counters by label values. Values come from us, never from clients, so they are few.
#[derive(Debug)]
pub struct Family<const N: usize> {
    labels: [&'static str; N],
    series: Mutex<BTreeMap<[String; N], Arc<Counter>>>,
}

impl<const N: usize> Family<N> {
    fn new(labels: [&'static str; N]) -> Self {
        Self { labels, series: Mutex::default() }
    }
    /// That of these values.
    pub fn of(&self, values: [&str; N]) -> Arc<Counter> {
        self.series.lock().entry(values.map(str::to_owned)).or_default().clone()
    }
}

/// All of them.
#[derive(Debug)]
pub struct Metrics {
    /// Responses sent.
    pub pushes: PerType<Counter>,
    /// Rejections received.
    pub rejects: PerType<Counter>,
    /// Requests that answer an old response.
    pub expired_nonces: PerType<Counter>,
    /// Bytes of a response.
    pub config_size: PerType<Histogram>,
    /// Time to make a response.
    pub push_time: PerType<Histogram>,
    /// From a response being ready until the connection took the last of it.
    pub send_time: Histogram,
    /// From a change until a client has accepted all that follows from it.
    pub convergence_time: Histogram,
    /// From a push being due until a client's turn.
    pub queue_time: Histogram,
    /// From the first change until the push.
    pub debounce_time: Histogram,
    /// Changes by what they concern: `config`, `eds`.
    pub inbound_updates: Family<1>,
    /// Pushes by their cause.
    pub push_triggers: Family<1>,
    /// Changed objects of Istio's and the Gateway API's kinds.
    pub cfg_events: Family<2>,
    /// Changed objects of Kubernetes' own kinds.
    pub reg_events: Family<2>,
    /// Streams that we ended because of a fault of ours.
    pub internal_errors: Counter,
    /// Streams refused: nobody we know, or not who it claims to be.
    pub unauthenticated: Counter,
    /// Objects by validation's verdict.
    pub refused_objects: Gauge,
    /// Services.
    pub services: Gauge,
    /// VirtualServices.
    pub virtual_services: Gauge,
    /// Requests for certificates.
    pub csr: Counter,
    /// Certificates issued.
    pub issued: Counter,
    /// Requests for certificates from who could not be authenticated.
    pub csr_unauthenticated: Counter,
    /// Requests for certificates that could not be read.
    pub csr_unreadable: Counter,
    /// Certificates that could not be signed.
    pub csr_unsigned: Counter,
    /// Key sets of issuers that were fetched.
    pub jwks_fetched: Counter,
    /// Fetches of key sets that failed.
    pub jwks_failed: Counter,
    /// URLs and issuers that key sets are fetched from.
    pub jwks_sources: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            pushes: PerType::new(Counter::default),
            rejects: PerType::new(Counter::default),
            expired_nonces: PerType::new(Counter::default),
            config_size: PerType::new(Histogram::bytes),
            push_time: PerType::new(Histogram::seconds),
            send_time: Histogram::seconds(),
            convergence_time: Histogram::seconds(),
            queue_time: Histogram::seconds(),
            debounce_time: Histogram::seconds(),
            inbound_updates: Family::new(["type"]),
            push_triggers: Family::new(["type"]),
            cfg_events: Family::new(["type", "event"]),
            reg_events: Family::new(["type", "event"]),
            internal_errors: Counter::default(),
            unauthenticated: Counter::default(),
            refused_objects: Gauge::default(),
            services: Gauge::default(),
            virtual_services: Gauge::default(),
            csr: Counter::default(),
            issued: Counter::default(),
            csr_unauthenticated: Counter::default(),
            csr_unreadable: Counter::default(),
            csr_unsigned: Counter::default(),
            jwks_fetched: Counter::default(),
            jwks_failed: Counter::default(),
            jwks_sources: Gauge::default(),
        }
    }
}

impl Metrics {
    /// Writes all of them.
    pub fn render(&self, page: &mut Page) {
        page.per_type("pilot_xds_pushes", "Responses sent", &self.pushes, TypeUrl::short);
        page.per_type("pilot_total_xds_rejects", "Responses rejected by proxies", &self.rejects, TypeUrl::as_str);
        page.per_type("pilot_xds_expired_nonce", "Requests with an old nonce", &self.expired_nonces, TypeUrl::as_str);
        page.head("pilot_xds_config_size_bytes", "Bytes of a response", "histogram");
        for ty in TypeUrl::ALL {
            page.histogram(
                "pilot_xds_config_size_bytes",
                &format!("type=\"{}\"", ty.as_str()),
                self.config_size.of(ty),
            );
        }
        page.head("pilot_xds_push_time", "Seconds to make a response", "histogram");
        for ty in TypeUrl::ALL {
            let label = format!("type=\"{}\"", ty.short().to_ascii_lowercase());
            page.histogram("pilot_xds_push_time", &label, self.push_time.of(ty));
        }
        for (name, help, histogram) in [
            ("pilot_xds_send_time", "Seconds until a response was taken by the connection", &self.send_time),
            ("pilot_proxy_convergence_time", "Seconds from a change until a proxy accepted it", &self.convergence_time),
            ("pilot_proxy_queue_time", "Seconds that a proxy waited for its turn", &self.queue_time),
            ("pilot_debounce_time", "Seconds from the first change until the push", &self.debounce_time),
        ] {
            page.head(name, help, "histogram");
            page.histogram(name, "", histogram);
        }
        page.family("pilot_inbound_updates", "Changes received", &self.inbound_updates);
        page.family("pilot_push_triggers", "Pushes by cause", &self.push_triggers);
        page.family("pilot_k8s_cfg_events", "Changed objects of the mesh's kinds", &self.cfg_events);
        page.family("pilot_k8s_reg_events", "Changed objects of Kubernetes' kinds", &self.reg_events);
        page.counter("pilot_total_xds_internal_errors", "Streams ended by a fault of ours", &self.internal_errors);
        page.counter("pilot_xds_unauthenticated", "Streams refused", &self.unauthenticated);
        page.gauge("galley_validation_failed", "Objects with errors", self.refused_objects.get());
        page.gauge("pilot_services", "Services known", self.services.get());
        page.gauge("pilot_virt_services", "VirtualServices known", self.virtual_services.get());
        page.counter("citadel_server_csr_count", "Requests for certificates", &self.csr);
        page.counter("citadel_server_success_cert_issuance_count", "Certificates issued", &self.issued);
        page.counter("citadel_server_authentication_failure_count", "Unknown callers", &self.csr_unauthenticated);
        page.counter("citadel_server_csr_parsing_err_count", "Unreadable requests", &self.csr_unreadable);
        page.counter("citadel_server_csr_sign_err_count", "Failures to sign", &self.csr_unsigned);
        let fetched = "pilot_jwks_resolver_network_fetch_success_total";
        page.counter(fetched, "Key sets of issuers fetched", &self.jwks_fetched);
        page.counter("pilot_jwks_resolver_network_fetch_fail_total", "Failures to fetch them", &self.jwks_failed);
        page.gauge("mesh_jwks_sources", "Where key sets are fetched from", self.jwks_sources.get());
    }
}

/// A page of metrics in Prometheus' text form.
#[derive(Debug, Default)]
pub struct Page(String);

impl Page {
    /// The text.
    pub fn into_text(self) -> String {
        self.0
    }

    /// `# HELP` and `# TYPE`.
    pub fn head(&mut self, name: &str, help: &str, kind: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}.\n# TYPE {name} {kind}");
    }

    /// One line; `labels` without braces.
    pub fn line(&mut self, name: &str, labels: &str, value: impl std::fmt::Display) {
        let _ = if labels.is_empty() {
            writeln!(self.0, "{name} {value}")
        } else {
            writeln!(self.0, "{name}{{{labels}}} {value}")
        };
    }

    /// A gauge without labels.
    pub fn gauge(&mut self, name: &str, help: &str, value: impl std::fmt::Display) {
        self.head(name, help, "gauge");
        self.line(name, "", value);
    }

    fn counter(&mut self, name: &str, help: &str, counter: &Counter) {
        self.head(name, help, "counter");
        self.line(name, "", counter.get());
    }

    fn per_type(&mut self, name: &str, help: &str, m: &PerType<Counter>, label: fn(TypeUrl) -> &'static str) {
        self.head(name, help, "counter");
        for ty in TypeUrl::ALL {
            let label = label(ty);
            let label = if label.contains('.') { label.to_owned() } else { label.to_ascii_lowercase() };
            self.line(name, &format!("type=\"{label}\""), m.of(ty).get());
        }
    }

    fn family<const N: usize>(&mut self, name: &str, help: &str, family: &Family<N>) {
        self.head(name, help, "counter");
        for (values, counter) in &*family.series.lock() {
            let labels: Vec<String> =
                family.labels.iter().zip(values).map(|(l, v)| format!("{l}=\"{}\"", escape(v))).collect();
            self.line(name, &labels.join(","), counter.get());
        }
    }

    fn histogram(&mut self, name: &str, labels: &str, h: &Histogram) {
        let comma = if labels.is_empty() { "" } else { "," };
        let mut sum = 0;
        for (bound, count) in h.bounds.iter().zip(&h.counts) {
            sum += count.load(Relaxed);
            self.line(&format!("{name}_bucket"), &format!("{labels}{comma}le=\"{bound}\""), sum);
        }
        sum = h.count();
        self.line(&format!("{name}_bucket"), &format!("{labels}{comma}le=\"+Inf\""), sum);
        #[allow(clippy::cast_precision_loss)]
        self.line(&format!("{name}_sum"), labels, h.sum.load(Relaxed) as f64 / 1e6);
        self.line(&format!("{name}_count"), labels, sum);
    }
}

/// A label value as the text form wants it.
pub fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cumulative() {
        let h = Histogram::seconds();
        h.observe(Duration::from_millis(1));
        h.observe(Duration::from_millis(7));
        h.observe(Duration::from_secs(100));
        let mut page = Page::default();
        page.histogram("x", "type=\"cds\"", &h);
        let text = page.into_text();
        assert!(text.contains("x_bucket{type=\"cds\",le=\"0.001\"} 1\n"), "{text}");
        assert!(text.contains("x_bucket{type=\"cds\",le=\"0.01\"} 2\n"), "{text}");
        assert!(text.contains("x_bucket{type=\"cds\",le=\"30\"} 2\n"), "{text}");
        assert!(text.contains("x_bucket{type=\"cds\",le=\"+Inf\"} 3\n"), "{text}");
        assert!(text.contains("x_count{type=\"cds\"} 3\n"), "{text}");
    }

    #[test]
    fn names_are_istios() {
        let metrics = Metrics::default();
        metrics.pushes.of(TypeUrl::Cluster).inc();
        metrics.cfg_events.of(["VirtualService", "add"]).inc();
        let mut page = Page::default();
        metrics.render(&mut page);
        let text = page.into_text();
        assert!(text.contains("pilot_xds_pushes{type=\"cds\"} 1\n"), "{text}");
        assert!(text.contains("pilot_k8s_cfg_events{type=\"VirtualService\",event=\"add\"} 1\n"), "{text}");
        assert!(text.contains("citadel_server_csr_count 0\n"), "{text}");
    }
}
