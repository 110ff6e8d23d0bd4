//! What was asked, under the names that Istio's agent has for it.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Upper bounds of the buckets of durations, in microseconds: those of Istio's agent.
const BOUNDS: [u64; 6] = [1_000, 5_000, 10_000, 100_000, 1_000_000, 5_000_000];

/// Counters of the process.
#[derive(Debug, Default)]
pub struct DnsStats {
    /// Questions of the application.
    pub requests: AtomicU64,
    /// Of these, asked further.
    pub upstream_requests: AtomicU64,
    /// Of these, without an answer.
    pub upstream_failures: AtomicU64,
    /// Durations below or at each bound, not added up.
    buckets: [AtomicU64; BOUNDS.len()],
    /// All durations, in microseconds.
    micros: AtomicU64,
    count: AtomicU64,
}

impl DnsStats {
    /// A question was asked further; it took so long.
    pub fn asked_further(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let place = BOUNDS.iter().position(|bound| micros <= *bound);
        if let Some(bucket) = place.and_then(|p| self.buckets.get(p)) {
            bucket.fetch_add(1, Relaxed);
        }
        self.micros.fetch_add(micros, Relaxed);
        self.count.fetch_add(1, Relaxed);
    }

    /// Counters by name.
    pub fn counters(&self) -> [(&'static str, u64); 3] {
        [
            ("dns_requests_total", self.requests.load(Relaxed)),
            ("dns_upstream_requests_total", self.upstream_requests.load(Relaxed)),
            ("dns_upstream_failures_total", self.upstream_failures.load(Relaxed)),
        ]
    }

    /// The histogram of durations, for Prometheus. `prefix` stands before the name.
    pub fn write_durations(&self, prefix: &str, out: &mut String) {
        let name = format!("{prefix}dns_upstream_request_duration_seconds");
        let mut sum = 0;
        // Writing into a String cannot fail.
        let _ = writeln!(out, "# TYPE {name} histogram");
        for (bound, bucket) in BOUNDS.iter().zip(&self.buckets) {
            sum += bucket.load(Relaxed);
            let _ = writeln!(out, "{name}_bucket{{le=\"{}\"}} {sum}", seconds(*bound));
        }
        let count = self.count.load(Relaxed);
        let _ = writeln!(out, "{name}_bucket{{le=\"+Inf\"}} {count}");
        let _ = writeln!(out, "{name}_sum{{}} {}", seconds(self.micros.load(Relaxed)));
        let _ = writeln!(out, "{name}_count{{}} {count}");
    }
}

fn seconds(micros: u64) -> f64 {
    Duration::from_micros(micros).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_add_up() {
        let stats = DnsStats::default();
        for millis in [1, 7, 7, 60_000] {
            stats.asked_further(Duration::from_millis(millis));
        }
        let mut out = String::new();
        stats.write_durations("x_", &mut out);
        for line in [
            "le=\"0.001\"} 1",
            "le=\"0.005\"} 1",
            "le=\"0.01\"} 3",
            "le=\"5\"} 3",
            "le=\"+Inf\"} 4",
            "_sum{} 60.015",
            "_count{} 4",
        ] {
            assert!(out.contains(line), "{line} in {out}");
        }
    }
}
