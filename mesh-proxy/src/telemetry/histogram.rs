//! Histograms with Envoy's default buckets, which Istio's dashboards expect.

/// Upper bounds, the last bucket (`+Inf`) not among them.
pub const BOUNDS: [f64; 19] = [
    0.5,
    1.0,
    5.0,
    10.0,
    25.0,
    50.0,
    100.0,
    250.0,
    500.0,
    1000.0,
    2500.0,
    5000.0,
    10_000.0,
    30_000.0,
    60_000.0,
    300_000.0,
    600_000.0,
    1_800_000.0,
    3_600_000.0,
];

/// Counts by bucket; not cumulative until written.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Histogram {
    buckets: [u64; BOUNDS.len() + 1],
    sum: f64,
}

impl Histogram {
    /// One observation.
    pub fn observe(&mut self, value: f64) {
        let index = BOUNDS.partition_point(|bound| *bound < value);
        if let Some(bucket) = self.buckets.get_mut(index) {
            *bucket += 1;
        }
        self.sum += value;
    }

    /// Adds what another one counted.
    pub fn merge(&mut self, other: &Histogram) {
        for (mine, theirs) in self.buckets.iter_mut().zip(other.buckets) {
            *mine += theirs;
        }
        self.sum += other.sum;
    }

    /// How many observations.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// Appends the Prometheus text form: `labels` without braces.
    pub fn write(&self, name: &str, labels: &str, out: &mut String) {
        use std::fmt::Write as _;
        let mut cumulative = 0;
        let separator = if labels.is_empty() { "" } else { "," };
        // Writing into a String cannot fail.
        for (i, count) in self.buckets.iter().enumerate() {
            cumulative += count;
            let _ = match BOUNDS.get(i) {
                Some(bound) => writeln!(out, "{name}_bucket{{{labels}{separator}le=\"{bound}\"}} {cumulative}"),
                None => writeln!(out, "{name}_bucket{{{labels}{separator}le=\"+Inf\"}} {cumulative}"),
            };
        }
        let _ = writeln!(out, "{name}_sum{{{labels}}} {}", self.sum);
        let _ = writeln!(out, "{name}_count{{{labels}}} {cumulative}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_belong_to_their_bucket_and_text_is_cumulative() {
        let mut h = Histogram::default();
        for v in [0.5, 0.6, 1.0, 4_000_000.0] {
            h.observe(v);
        }
        let mut twice = h.clone();
        twice.merge(&h);
        assert_eq!(twice.count(), 8);
        let mut text = String::new();
        h.write("x", "a=\"b\"", &mut text);
        assert!(text.starts_with("x_bucket{a=\"b\",le=\"0.5\"} 1\nx_bucket{a=\"b\",le=\"1\"} 3\n"), "{text}");
        assert!(
            text.ends_with("x_bucket{a=\"b\",le=\"+Inf\"} 4\nx_sum{a=\"b\"} 4000002.1\nx_count{a=\"b\"} 4\n"),
            "{text}"
        );
    }
}
