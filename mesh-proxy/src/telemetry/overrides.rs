//! What configuration changes about Istio's metrics: which are recorded, which labels they have, compiled from the
//! statistics filter. Knows labels by name and nothing of how they are found or counted.

use mesh_api::cel::{Dialect, Expression};
use mesh_api::model::{IstioStats, Name};
use xxhash_rust::xxh3::xxh3_128_with_seed;

use super::metrics::{METRICS, MetricSet};
use crate::http::attributes::{self, Exchange, Place};
use crate::http::stats::{ExchangeStats, Needs};

/// Labels that all of Istio's metrics have.
const STANDARD: [&str; 25] = [
    "reporter",
    "source_workload",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_canonical_service",
    "source_canonical_revision",
    "source_cluster",
    "destination_workload",
    "destination_workload_namespace",
    "destination_principal",
    "destination_app",
    "destination_version",
    "destination_canonical_service",
    "destination_canonical_revision",
    "destination_cluster",
    "destination_service",
    "destination_service_name",
    "destination_service_namespace",
    "request_protocol",
    "response_code",
    "grpc_response_status",
    "response_flags",
    "connection_security_policy",
];

/// What stands for a label whose expression has no value.
const UNKNOWN: &str = "unknown";

/// Changes of the metrics of one listener.
#[derive(Debug)]
pub struct Overrides {
    place: Place,
    expressions: Vec<Option<Expression>>,
    /// Metrics with the same labels together; those that are dropped are in none.
    groups: Vec<(MetricSet, LabelChange)>,
    /// Tells these changes from others.
    id: u64,
}

/// Changes of the labels of some metrics; values by their number among the expressions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LabelChange {
    /// Of Istio's labels; `None`: it goes away.
    replaced: Vec<(Name, Option<usize>)>,
    added: Vec<(String, usize)>,
}

impl LabelChange {
    /// What becomes of one of Istio's labels; outer `None`: nothing.
    pub fn of(&self, label: &str) -> Option<Option<usize>> {
        self.replaced.iter().find(|(name, _)| **name == *label).map(|(_, value)| *value)
    }

    /// Further labels.
    pub fn added(&self) -> impl Iterator<Item = (&str, usize)> {
        self.added.iter().map(|(name, value)| (name.as_str(), *value))
    }

    fn set(&mut self, label: &Name, value: usize) {
        if STANDARD.contains(&&**label) {
            self.replace(label, Some(value));
            return;
        }
        let name = sanitized(label);
        self.added.retain(|(known, _)| *known != name);
        self.added.push((name, value));
    }

    fn replace(&mut self, label: &Name, value: Option<usize>) {
        self.replaced.retain(|(known, _)| known != label);
        self.replaced.push((label.clone(), value));
    }
}

/// A name that Prometheus reads.
fn sanitized(label: &str) -> String {
    let fits = |c: char| if c.is_ascii_alphanumeric() || c == '_' { c } else { '_' };
    let name: String = label.chars().map(fits).collect();
    if name.starts_with(|c: char| c.is_ascii_digit()) { format!("_{name}") } else { name }
}

impl Overrides {
    /// `None`: nothing is changed. An expression that cannot be used is as if it had no value, with a warning, as in
    /// Istio's proxy: it must not take a listener away.
    pub fn compile(stats: &IstioStats, place: Place) -> Option<Self> {
        if stats.metrics.is_empty() {
            return None;
        }
        let mut texts: Vec<&Name> = Vec::new();
        let mut groups: Vec<(MetricSet, LabelChange)> = Vec::new();
        for (number, metric) in METRICS.iter().enumerate() {
            let mine = || stats.metrics.iter().filter(|c| c.name.is_empty() || *c.name == **metric);
            if mine().any(|c| c.dropped) {
                continue;
            }
            let mut change = LabelChange::default();
            for asked in mine() {
                for label in asked.removed.iter().filter(|l| STANDARD.contains(&&***l)) {
                    change.replace(label, None);
                }
                for (label, text) in &asked.labels {
                    let known = texts.iter().position(|t| *t == text);
                    let value = known.unwrap_or_else(|| {
                        texts.push(text);
                        texts.len() - 1
                    });
                    change.set(label, value);
                }
            }
            match groups.iter_mut().find(|(_, c)| *c == change) {
                Some((set, _)) => set.insert(number),
                None => groups.push((MetricSet::one(number), change)),
            }
        }
        let expression = |text: &&Name| match Expression::parse(text, Dialect::Label) {
            Ok(expression) => Some(expression),
            Err(error) => {
                tracing::warn!(target: "metrics", "a label is {UNKNOWN:?}: {text:?} {error}");
                None
            }
        };
        let expressions = texts.iter().map(expression).collect();
        let id = xxhash_rust::xxh3::xxh3_64(format!("{:?}", stats.metrics).as_bytes());
        Some(Self { place, expressions, groups, id })
    }

    /// Headers that labels show.
    pub fn needs(&self, needs: &mut Needs) {
        self.expressions.iter().flatten().for_each(|e| attributes::needs(e, needs));
    }

    /// The values of all expressions for an exchange.
    pub fn values(&self, stats: &ExchangeStats) -> Values {
        let exchange = Exchange { stats, place: &self.place };
        let value = |expression: &Option<Expression>| {
            let mut text = String::new();
            match expression.as_ref().and_then(|e| e.evaluate(&exchange)) {
                Some(value) => value.write(&mut text),
                None => text.push_str(UNKNOWN),
            }
            text.truncate(text.floor_char_boundary(MAX_VALUE));
            text
        };
        let texts: Vec<String> = self.expressions.iter().map(value).collect();
        let hash = texts.iter().fold(u128::from(self.id), |hash, text| {
            let (low, high) = (hash & u128::from(u64::MAX), hash >> 64);
            let seed = u64::try_from(low ^ high).unwrap_or_default();
            xxh3_128_with_seed(text.as_bytes(), seed)
        });
        Values { texts, hash }
    }

    /// Metrics that have labels in common, and what is changed about those.
    pub fn groups(&self) -> &[(MetricSet, LabelChange)] {
        &self.groups
    }
}

/// Longest value of a label, bytes: clients choose some of them.
const MAX_VALUE: usize = 256;

/// Values of expressions for one exchange.
#[derive(Debug, Default)]
pub struct Values {
    texts: Vec<String>,
    /// Tells values of one set of changes from others of it and from those of others; 0: nothing is changed.
    pub hash: u128,
}

impl Values {
    /// By the number of the expression.
    pub fn get(&self, number: usize) -> &str {
        self.texts.get(number).map_or(UNKNOWN, String::as_str)
    }
}
