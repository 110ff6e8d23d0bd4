//! Local rate limit: one token bucket for all workers.

use std::sync::Arc;

use mesh_api::model;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::config::ConfigError;
use crate::http::header_ops::HeaderOps;
use crate::http::local_reply::{LocalReply, Reason};

/// A compiled limit.
#[derive(Debug)]
pub struct RateLimit {
    enabled: model::Fraction,
    enforced: model::Fraction,
    status: u16,
    /// Operations on refusals.
    pub headers: Arc<HeaderOps>,
    bucket: TokenBucket,
}

/// Tokens that come back with time.
#[derive(Debug)]
pub struct TokenBucket {
    config: model::TokenBucket,
    state: Mutex<Tokens>,
}

#[derive(Debug)]
struct Tokens {
    left: u32,
    filled: Option<Instant>,
}

impl TokenBucket {
    /// A full one.
    pub fn new(config: model::TokenBucket) -> Self {
        Self { config, state: Mutex::new(Tokens { left: config.max_tokens, filled: None }) }
    }

    /// Takes a token, if there is one.
    pub fn take(&self, now: Instant) -> bool {
        let model::TokenBucket { max_tokens, tokens_per_fill, fill_interval } = self.config;
        let mut tokens = self.state.lock();
        let filled = *tokens.filled.get_or_insert(now);
        let times = now.saturating_duration_since(filled).as_nanos() / fill_interval.as_nanos().max(1);
        if let Ok(times @ 1..) = u32::try_from(times) {
            tokens.left = tokens.left.saturating_add(tokens_per_fill.saturating_mul(times)).min(max_tokens);
            tokens.filled = Some(filled + fill_interval * times);
        }
        let ok = tokens.left > 0;
        tokens.left = tokens.left.saturating_sub(1);
        ok
    }
}

impl RateLimit {
    /// Compiles a limit; its bucket is full.
    ///
    /// # Errors
    /// A header operation that is not valid.
    pub fn compile(l: &model::LocalRateLimit) -> Result<Arc<Self>, ConfigError> {
        Ok(Arc::new(Self {
            enabled: l.enabled,
            enforced: l.enforced,
            status: l.status,
            headers: Arc::new(HeaderOps::compile(&l.response_headers)?),
            bucket: TokenBucket::new(model::TokenBucket {
                max_tokens: l.max_tokens,
                tokens_per_fill: l.tokens_per_fill,
                fill_interval: l.fill_interval,
            }),
        }))
    }

    /// The refusal of a request that comes too early.
    pub fn check(&self, mut random: impl FnMut() -> u64) -> Option<LocalReply> {
        if !self.enabled.takes(&mut random) || self.bucket.take(Instant::now()) || !self.enforced.takes(&mut random) {
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
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

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
