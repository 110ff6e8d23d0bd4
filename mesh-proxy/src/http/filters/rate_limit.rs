//! Local rate limit: one token bucket for all workers.

use std::sync::Arc;
use std::time::Duration;

use mesh_api::model;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::config::ConfigError;
use crate::http::header_ops::HeaderOps;
use crate::http::local_reply::{LocalReply, Reason};

/// A compiled limit.
#[derive(Debug)]
pub struct RateLimit {
    max: u32,
    fill: u32,
    interval: Duration,
    enabled: model::Fraction,
    enforced: model::Fraction,
    status: u16,
    /// Operations on refusals.
    pub headers: Arc<HeaderOps>,
    bucket: Mutex<Bucket>,
}

#[derive(Debug)]
struct Bucket {
    tokens: u32,
    filled: Option<Instant>,
}

impl RateLimit {
    /// Compiles a limit; its bucket is full.
    ///
    /// # Errors
    /// A header operation that is not valid.
    pub fn compile(l: &model::LocalRateLimit) -> Result<Arc<Self>, ConfigError> {
        Ok(Arc::new(Self {
            max: l.max_tokens,
            fill: l.tokens_per_fill,
            interval: l.fill_interval,
            enabled: l.enabled,
            enforced: l.enforced,
            status: l.status,
            headers: Arc::new(HeaderOps::compile(&l.response_headers)?),
            bucket: Mutex::new(Bucket { tokens: l.max_tokens, filled: None }),
        }))
    }

    /// The refusal of a request that comes too early.
    pub fn check(&self, mut random: impl FnMut() -> u64) -> Option<LocalReply> {
        if !self.enabled.takes(&mut random) || self.take(Instant::now()) || !self.enforced.takes(&mut random) {
            return None;
        }
        let reply = LocalReply::from(Reason::LocalRateLimited { status: self.status });
        Some(
            reply.with_header(
                http::HeaderName::from_static("x-envoy-ratelimited"),
                http::HeaderValue::from_static("true"),
            ),
        )
    }

    fn take(&self, now: Instant) -> bool {
        let mut bucket = self.bucket.lock();
        let filled = *bucket.filled.get_or_insert(now);
        let times = now.saturating_duration_since(filled).as_nanos() / self.interval.as_nanos().max(1);
        if let Ok(times @ 1..) = u32::try_from(times) {
            bucket.tokens = bucket.tokens.saturating_add(self.fill.saturating_mul(times)).min(self.max);
            bucket.filled = Some(filled + self.interval * times);
        }
        let ok = bucket.tokens > 0;
        bucket.tokens = bucket.tokens.saturating_sub(1);
        ok
    }
}

#[cfg(test)]
mod tests {
    use mesh_api::model::Fraction;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_bucket_fills_by_intervals() {
        let limit = RateLimit::compile(&model::LocalRateLimit {
            stat_prefix: "".into(),
            max_tokens: 2,
            tokens_per_fill: 1,
            fill_interval: Duration::from_secs(1),
            enabled: Fraction::ALWAYS,
            enforced: Fraction::ALWAYS,
            status: 429,
            response_headers: Default::default(),
        })
        .unwrap();
        let refused = || limit.check(|| 0).is_some();
        assert_eq!([refused(), refused(), refused()], [false, false, true]);
        tokio::time::advance(Duration::from_millis(1500)).await;
        assert_eq!([refused(), refused()], [false, true]);
        tokio::time::advance(Duration::from_millis(600)).await;
        assert!(!refused());
    }
}
