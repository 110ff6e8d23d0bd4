//! When a try is worth another one, and when that begins. Envoy's conditions; knows no connection.

use std::time::Duration;

use http::HeaderMap;
use mesh_api::model::{self, RetryOn};

use super::matchers::HeaderMatch;
use super::message::RequestHead;
use crate::config::ConfigError;
use crate::upstream::{ErrorKind, UpstreamError};

/// A compiled retry policy.
#[derive(Debug, Clone)]
pub struct RetryPolicy {
    on: RetryOn,
    /// Retries after the first try.
    pub retries: u32,
    /// Limit of one try.
    pub per_try_timeout: Option<Duration>,
    /// Idle limit of one try.
    pub per_try_idle_timeout: Option<Duration>,
    statuses: Box<[u16]>,
    headers: Box<[HeaderMatch]>,
    base: Duration,
    max: Duration,
    /// Avoid endpoints tried before.
    pub previous_hosts: bool,
    /// Draws of another endpoint.
    pub selection_attempts: u32,
    /// Avoid priorities tried before.
    pub previous_priorities: Option<u32>,
}

/// How a try ended without an answer that can be passed on.
#[derive(Debug, Clone, Copy)]
pub enum Failed<'a> {
    /// The stream broke.
    Upstream(&'a UpstreamError),
    /// The try took too long.
    PerTryTimeout,
}

impl RetryPolicy {
    /// Compiles a policy.
    ///
    /// # Errors
    /// A header matcher that is not valid.
    pub fn compile(p: &model::RetryPolicy) -> Result<Self, ConfigError> {
        let (base, max) = p.backoff.unwrap_or((Duration::from_millis(25), Duration::from_millis(250)));
        Ok(Self {
            on: p.on,
            retries: p.num_retries,
            per_try_timeout: p.per_try_timeout.filter(|t| !t.is_zero()),
            per_try_idle_timeout: p.per_try_idle_timeout.filter(|t| !t.is_zero()),
            statuses: p.retriable_statuses.clone().into(),
            headers: HeaderMatch::compile_all(&p.retriable_headers)?,
            base,
            max: max.max(base),
            previous_hosts: p.previous_hosts,
            selection_attempts: p.host_selection_attempts,
            previous_priorities: p.previous_priorities,
        })
    }

    /// The policy after the request's own `x-envoy-retry-on`, `x-envoy-max-retries` and
    /// `x-envoy-upstream-rq-per-try-timeout-ms` (only of peers that are trusted).
    pub fn adjusted(policy: Option<&Self>, head: &RequestHead) -> Option<Self> {
        let text = |name: &str| head.headers.get(name).and_then(|v| v.to_str().ok());
        let (on, statuses) = text("x-envoy-retry-on").and_then(|t| RetryOn::parse(t).ok()).unwrap_or_default();
        let (grpc, _) = text("x-envoy-retry-grpc-on").and_then(|t| RetryOn::parse(t).ok()).unwrap_or_default();
        let asked = on != RetryOn::default() || grpc != RetryOn::default();
        let mut out = match policy {
            Some(policy) => policy.clone(),
            None if asked => Self::compile(&model::RetryPolicy { num_retries: 1, ..Default::default() }).ok()?,
            None => return None,
        };
        if on != RetryOn::default() {
            out.on = on;
            out.statuses = statuses.into();
        }
        if grpc != RetryOn::default() {
            out.on.grpc_cancelled |= grpc.grpc_cancelled;
            out.on.grpc_deadline_exceeded |= grpc.grpc_deadline_exceeded;
            out.on.grpc_internal |= grpc.grpc_internal;
            out.on.grpc_resource_exhausted |= grpc.grpc_resource_exhausted;
            out.on.grpc_unavailable |= grpc.grpc_unavailable;
        }
        if let Some(n) = text("x-envoy-max-retries").and_then(|t| t.parse().ok()) {
            out.retries = n;
        }
        Some(out)
    }

    /// Whether an answer is worth another try.
    pub fn wants_answer(&self, status: u16, headers: &HeaderMap) -> bool {
        let on = &self.on;
        if headers.contains_key("x-envoy-overloaded") {
            return false;
        }
        let grpc = headers.get("grpc-status").and_then(|v| v.to_str().ok()).and_then(|v| v.parse::<u32>().ok());
        let grpc = match grpc {
            Some(1) => on.grpc_cancelled,
            Some(4) => on.grpc_deadline_exceeded,
            Some(8) => on.grpc_resource_exhausted,
            Some(13) => on.grpc_internal,
            Some(14) => on.grpc_unavailable,
            _ => false,
        };
        grpc || (on.five_xx && (500..600).contains(&status))
            || (on.gateway_error && matches!(status, 502..=504))
            || (on.retriable_4xx && status == 409)
            || (on.retriable_status_codes && self.statuses.contains(&status))
            || (on.retriable_headers && self.headers.iter().any(|h| h.matches_headers(headers)))
            || (on.envoy_ratelimited && headers.contains_key("x-envoy-ratelimited"))
    }

    /// Whether a failed try is worth another one.
    pub fn wants_failure(&self, failed: Failed<'_>) -> bool {
        let on = &self.on;
        match failed {
            Failed::PerTryTimeout => on.five_xx || on.gateway_error,
            Failed::Upstream(e) => match e.kind {
                ErrorKind::Overflow | ErrorKind::RequestBody | ErrorKind::InvalidRequest => false,
                _ if e.is_connect() => {
                    on.connect_failure || on.five_xx || on.gateway_error || on.reset || on.reset_before_request
                }
                ErrorKind::RefusedStream => on.refused_stream || on.five_xx || on.gateway_error || on.reset,
                _ => {
                    on.five_xx
                        || on.gateway_error
                        || on.reset
                        || (on.reset_before_request && !e.request_started)
                        // An idle connection that died under us: the upstream never looked at the request.
                        || (on.connect_failure && e.reused)
                }
            },
        }
    }

    /// How long to wait before retry number `n` (from 1): jittered exponential back-off. `random` is uniform.
    pub fn backoff(&self, n: u32, random: u64) -> Duration {
        let ceiling = self.base.saturating_mul(2u32.saturating_pow(n).saturating_sub(1).max(1)).min(self.max);
        let nanos = u64::try_from(ceiling.as_nanos()).unwrap_or(u64::MAX).max(1);
        Duration::from_nanos(random % nanos)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(on: &str) -> RetryPolicy {
        let (on, retriable_statuses) = RetryOn::parse(on).unwrap();
        RetryPolicy::compile(&model::RetryPolicy { on, retriable_statuses, num_retries: 2, ..Default::default() })
            .unwrap()
    }

    #[test]
    fn istios_default_conditions() {
        let p = policy("connect-failure,refused-stream,unavailable,cancelled,503");
        let headers = HeaderMap::new();
        assert!(p.wants_answer(503, &headers) && !p.wants_answer(500, &headers));
        let error = |kind| UpstreamError::new(kind, "");
        assert!(p.wants_failure(Failed::Upstream(&error(ErrorKind::ConnectFailure))));
        assert!(p.wants_failure(Failed::Upstream(&error(ErrorKind::RefusedStream))));
        assert!(!p.wants_failure(Failed::Upstream(&error(ErrorKind::RemoteReset).started(false))));
        assert!(p.wants_failure(Failed::Upstream(&error(ErrorKind::ConnectionTermination).started(true))));
        assert!(!p.wants_failure(Failed::Upstream(&error(ErrorKind::Overflow))));
        assert!(!p.wants_failure(Failed::PerTryTimeout));
        let grpc = [("grpc-status".parse().unwrap(), "14".parse().unwrap())].into_iter().collect();
        assert!(p.wants_answer(200, &grpc));
    }

    #[test]
    fn backoff_grows_to_its_limit() {
        let p = policy("5xx");
        assert!(p.backoff(1, u64::MAX) < Duration::from_millis(25));
        assert!((0..20).all(|n| p.backoff(n, u64::MAX - 1) < Duration::from_millis(250)));
    }
}
