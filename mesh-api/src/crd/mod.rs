//! The operator's objects: Istio's and Gateway API's kinds as plain serde types.
//!
//! Owns the field names and shapes, not their meaning: what is allowed is `mesh-control/validate`'s business, what
//! it does is translation's. An absent field is its type's default; unknown fields are reported by the reader.

use std::time::Duration as StdDuration;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::labels::Labels;

pub mod extensions;
pub mod gateway_api;
pub mod networking;
pub mod security;
pub mod telemetry;

pub(crate) fn is_false(b: &bool) -> bool {
    !*b
}

/// `matchLabels` of a policy; empty: all workloads of the namespace.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PolicySelector {
    /// All of these.
    pub match_labels: Labels,
}

/// `labels` of a workload selector.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct WorkloadSelector {
    /// All of these.
    pub labels: Labels,
}

/// The object a policy is attached to.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct TargetRef {
    /// API group; empty: core.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub group: String,
    /// Kind.
    pub kind: String,
    /// Name.
    pub name: String,
    /// Namespace; empty: the policy's.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
}

/// A duration in Go's notation (`1h30m`, `1.5s`, `100ms`), as Istio reads it; never negative.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Duration(pub StdDuration);

impl Duration {
    /// Parses Go's notation.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is not a duration such as 1.5s, 100ms or 1h30m");
        if text == "0" {
            return Ok(Self(StdDuration::ZERO));
        }
        let mut rest = text.strip_prefix('+').unwrap_or(text);
        if rest.is_empty() {
            return Err(bad());
        }
        let mut nanos = 0f64;
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(bad)?;
            let (number, tail) = rest.split_at(digits);
            let number: f64 = number.parse().map_err(|_| bad())?;
            let unit = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
            let (unit, tail) = tail.split_at(unit);
            let scale = match unit {
                "ns" => 1.0,
                "us" | "µs" | "μs" => 1e3,
                "ms" => 1e6,
                "s" => 1e9,
                "m" => 60e9,
                "h" => 3600e9,
                _ => return Err(bad()),
            };
            nanos += number * scale;
            rest = tail;
        }
        // Go's time.Duration holds 290 years; what is longer is a mistake.
        if nanos < 9.2e18 { Ok(Self(StdDuration::from_nanos(nanos.round() as u64))) } else { Err(bad()) }
    }
}

impl From<Duration> for StdDuration {
    fn from(d: Duration) -> Self {
        d.0
    }
}

impl<'de> Deserialize<'de> for Duration {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        Self::parse(&text).map_err(de::Error::custom)
    }
}

impl Serialize for Duration {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(&format_args!("{}s", self.0.as_secs_f64()))
    }
}

impl JsonSchema for Duration {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Duration".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_as_go_writes_them() {
        let ms = |t| Duration::parse(t).map(|d| d.0.as_millis());
        assert_eq!(ms("1.5s"), Ok(1500));
        assert_eq!(ms("1h30m"), Ok(5_400_000));
        assert_eq!(ms("100ms"), Ok(100));
        assert_eq!(ms("0"), Ok(0));
        assert_eq!(ms("24h"), Ok(86_400_000));
        for bad in ["", "5", "-1s", "s", "1x", "1s2", "9999999h", "."] {
            assert!(ms(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_virtual_service_reads_as_written() {
        let yaml = "hosts: [reviews]\nhttp:\n- match: [{uri: {prefix: /a}, ignoreUriCase: true}]\n  route:\n  - destination: {host: reviews, subset: v1, port: {number: 80}}\n    weight: 90\n  mirror_percent: 5\n";
        let vs: networking::VirtualService = serde_saphyr::from_str(yaml).unwrap();
        let rule = &vs.http[0];
        assert!(rule.matches[0].ignore_uri_case);
        assert_eq!(rule.route[0].destination.port.as_ref().unwrap().number, 80);
        assert_eq!(rule.mirror_percent, Some(5));
    }
}
