//! String, header and address matchers as they are declared, not yet compiled.

use serde::Serialize;

use super::Name;

/// `envoy.type.matcher.v3.StringMatcher`. An empty `Prefix`/`Suffix`/`Contains` never occurs (rejected on conversion).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct StringMatcher {
    /// How to compare.
    pub pattern: StringPattern,
    /// ASCII case is ignored (not for `Regex`).
    pub ignore_case: bool,
}

/// The comparison of a [`StringMatcher`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub enum StringPattern {
    /// Equal.
    Exact(Name),
    /// Starts with.
    Prefix(Name),
    /// Ends with.
    Suffix(Name),
    /// Contains.
    Contains(Name),
    /// RE2 syntax, must match the whole value.
    Regex(Name),
}

impl StringMatcher {
    /// Case-sensitive equality.
    pub fn exact(s: impl Into<Name>) -> Self {
        Self { pattern: StringPattern::Exact(s.into()), ignore_case: false }
    }
    /// Case-sensitive prefix.
    pub fn prefix(s: impl Into<Name>) -> Self {
        Self { pattern: StringPattern::Prefix(s.into()), ignore_case: false }
    }
    /// Case-sensitive suffix.
    pub fn suffix(s: impl Into<Name>) -> Self {
        Self { pattern: StringPattern::Suffix(s.into()), ignore_case: false }
    }
    /// Whole-value regular expression.
    pub fn regex(s: impl Into<Name>) -> Self {
        Self { pattern: StringPattern::Regex(s.into()), ignore_case: false }
    }
}

/// `envoy.config.route.v3.HeaderMatcher`. `:authority`, `:method`, `:path`, `:scheme` are allowed names.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct HeaderMatcher {
    /// Lower-case header name.
    pub name: Name,
    /// What its value must be.
    pub value: HeaderValueMatch,
    /// The result is negated.
    pub invert: bool,
    /// A missing header is matched as the empty value. Otherwise a missing header does not match, and with
    /// `invert` it does not match either (Envoy's rule: `HeaderUtility`), `Present` aside.
    pub treat_missing_as_empty: bool,
}

/// The value part of a [`HeaderMatcher`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub enum HeaderValueMatch {
    /// `true`: must be present; `false`: must be absent.
    Present(bool),
    /// The (comma-joined) value matches.
    String(StringMatcher),
    /// A decimal integer in `[start, end)`.
    Range { start: i64, end: i64 },
}

/// `envoy.config.route.v3.QueryParameterMatcher`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct QueryMatcher {
    /// Parameter name.
    pub name: Name,
    /// `None`: presence is enough.
    pub value: Option<StringMatcher>,
}

/// `envoy.type.v3.FractionalPercent` as parts per million, 0..=1_000_000.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Default)]
pub struct Fraction(pub u32);

impl Fraction {
    /// Always.
    pub const ALWAYS: Fraction = Fraction(1_000_000);
    /// From a percentage, 0.0..=100.0; what lies outside is clamped.
    pub fn from_percent(p: f64) -> Self {
        Self((p.clamp(0.0, 100.0) * 10_000.0).round() as u32)
    }
    /// Whether this one is among them; chance is asked only where it decides.
    pub fn takes(self, random: impl FnOnce() -> u64) -> bool {
        self.0 >= Self::ALWAYS.0 || random() % u64::from(Self::ALWAYS.0) < u64::from(self.0)
    }
}

/// A block of IP addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub struct CidrRange {
    /// Any address of the block.
    pub address: std::net::IpAddr,
    /// Prefix length: 0..=32 for IPv4, 0..=128 for IPv6.
    pub prefix_len: u8,
}

impl CidrRange {
    /// Whether `ip` lies in this block. An IPv4-mapped IPv6 address counts as IPv4.
    pub fn contains(&self, ip: std::net::IpAddr) -> bool {
        use std::net::IpAddr::{V4, V6};
        match (self.address, ip.to_canonical()) {
            (V4(net), V4(ip)) => {
                let shift = 32 - u32::from(self.prefix_len.min(32));
                shift == 32 || u32::from(net) >> shift == u32::from(ip) >> shift
            }
            (V6(net), V6(ip)) => {
                let shift = 128 - u32::from(self.prefix_len.min(128));
                shift == 128 || u128::from(net) >> shift == u128::from(ip) >> shift
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cidr_edges() {
        let all = CidrRange { address: [0, 0, 0, 0].into(), prefix_len: 0 };
        assert!(all.contains([255, 1, 2, 3].into()));
        let net = CidrRange { address: [10, 1, 0, 0].into(), prefix_len: 16 };
        assert!(net.contains([10, 1, 255, 255].into()));
        assert!(!net.contains([10, 2, 0, 0].into()));
        assert!(net.contains("::ffff:10.1.2.3".parse().unwrap()));
    }
}
