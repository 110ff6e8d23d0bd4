//! Limits of the connections of a filter chain.

use std::time::Duration;

use serde::Serialize;

use super::Name;

/// `envoy.filters.network.connection_limit`: so many at once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ConnectionLimit {
    /// Statistics prefix.
    pub stat_prefix: Name,
    /// Connections at most.
    pub max: u64,
    /// How long one too many is kept before it is closed.
    pub delay: Duration,
    /// Off: everything passes.
    pub enabled: bool,
}

/// `envoy.filters.network.local_ratelimit`: so many in a time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ConnectionRate {
    /// Statistics prefix.
    pub stat_prefix: Name,
    /// A connection takes one token.
    pub bucket: TokenBucket,
    /// Filters with the same key and the same bucket share it; empty: with nobody.
    pub share_key: Name,
    /// Off: everything passes.
    pub enabled: bool,
}

/// Tokens that come back with time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct TokenBucket {
    /// Tokens at most, and at the beginning.
    pub max_tokens: u32,
    /// Tokens added each interval.
    pub tokens_per_fill: u32,
    /// Interval; 50 ms at least.
    pub fill_interval: Duration,
}
