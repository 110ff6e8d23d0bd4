//! When a try is worth another one, and when that begins. Envoy's conditions; knows no connection.

use std::time::Duration;

use http::{HeaderMap, HeaderName};
use mesh_api::model::{self, RetryOn};

use super::headers::GRPC_STATUS;
use super::matchers::HeaderMatch;
use super::message::RequestHead;
use crate::config::ConfigError;
use crate::upstream::{ErrorKind, UpstreamError};

static OVERLOADED: HeaderName = HeaderName::from_static("x-envoy-overloaded");
static RATE_LIMITED: HeaderName = HeaderName::from_static("x-envoy-ratelimited");

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

    /// The policy with what the request asks for by `x-envoy-retry-on`, `x-envoy-retry-grpc-on`,
    /// `x-envoy-retriable-status-codes` and `x-envoy-max-retries` (which filters may have set, but no client): its
    /// conditions come on top of the policy's.
    pub fn adjusted(policy: Option<&Self>, head: &RequestHead) -> Option<Self> {
        let text = |name: &str| head.headers.get(name).and_then(|v| v.to_str().ok());
        let asked = |name: &str| text(name).and_then(|t| RetryOn::parse(t).ok()).unwrap_or_default();
        let (on, statuses) = asked("x-envoy-retry-on");
        let (grpc, _) = asked("x-envoy-retry-grpc-on");
        let nothing = RetryOn::default();
        let mut out = match policy {
            Some(policy) => policy.clone(),
            None if on == nothing && grpc == nothing => return None,
            None => Self::compile(&model::RetryPolicy { num_retries: 1, ..Default::default() }).ok()?,
        };
        out.on = either(out.on, either(on, grpc));
        let codes = text("x-envoy-retriable-status-codes").unwrap_or_default();
        let more: Vec<u16> = codes.split(',').filter_map(|c| c.trim().parse().ok()).chain(statuses).collect();
        if !more.is_empty() {
            out.statuses = out.statuses.iter().copied().chain(more).collect();
        }
        if let Some(n) = text("x-envoy-max-retries").and_then(|t| t.parse().ok()) {
            out.retries = n;
        }
        Some(out)
    }

    /// Whether an answer is worth another try.
    pub fn wants_answer(&self, status: u16, headers: &HeaderMap) -> bool {
        let on = &self.on;
        let wanted = (on.five_xx && (500..600).contains(&status))
            || (on.gateway_error && matches!(status, 502..=504))
            || (on.retriable_4xx && status == 409)
            || (on.retriable_status_codes && self.statuses.contains(&status))
            || (on.retriable_headers && self.headers.iter().any(|h| h.matches_headers(headers)))
            || (on.envoy_ratelimited && headers.contains_key(&RATE_LIMITED))
            || self.wants_grpc(headers);
        wanted && !headers.contains_key(&OVERLOADED)
    }

    fn wants_grpc(&self, headers: &HeaderMap) -> bool {
        let on = &self.on;
        let status = headers.get(&GRPC_STATUS).and_then(|v| v.to_str().ok()).and_then(|v| v.parse::<u32>().ok());
        match status {
            Some(1) => on.grpc_cancelled,
            Some(4) => on.grpc_deadline_exceeded,
            Some(8) => on.grpc_resource_exhausted,
            Some(13) => on.grpc_internal,
            Some(14) => on.grpc_unavailable,
            _ => false,
        }
    }

    /// Whether a failed try is worth another one.
    pub fn wants_failure(&self, failed: Failed<'_>) -> bool {
        let on = &self.on;
        match failed {
            Failed::PerTryTimeout => on.five_xx || on.gateway_error || on.reset,
            Failed::Upstream(e) => match e.kind {
                ErrorKind::Overflow | ErrorKind::RequestBody | ErrorKind::InvalidRequest => false,
                _ if e.is_connect() => {
                    on.connect_failure || on.five_xx || on.gateway_error || on.reset || on.reset_before_request
                }
                ErrorKind::RefusedStream => on.refused_stream || on.five_xx || on.gateway_error || on.reset,
                // Also on a connection that was used before: whether the upstream began to work on it, nobody knows. What
                // was not sent at all goes to another connection without being a retry.
                _ => on.five_xx || on.gateway_error || on.reset || (on.reset_before_request && !e.request_started),
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

/// All conditions of both.
fn either(a: RetryOn, b: RetryOn) -> RetryOn {
    RetryOn {
        five_xx: a.five_xx || b.five_xx,
        gateway_error: a.gateway_error || b.gateway_error,
        reset: a.reset || b.reset,
        reset_before_request: a.reset_before_request || b.reset_before_request,
        connect_failure: a.connect_failure || b.connect_failure,
        envoy_ratelimited: a.envoy_ratelimited || b.envoy_ratelimited,
        retriable_4xx: a.retriable_4xx || b.retriable_4xx,
        refused_stream: a.refused_stream || b.refused_stream,
        retriable_status_codes: a.retriable_status_codes || b.retriable_status_codes,
        retriable_headers: a.retriable_headers || b.retriable_headers,
        http3_post_connect_failure: a.http3_post_connect_failure || b.http3_post_connect_failure,
        grpc_cancelled: a.grpc_cancelled || b.grpc_cancelled,
        grpc_deadline_exceeded: a.grpc_deadline_exceeded || b.grpc_deadline_exceeded,
        grpc_internal: a.grpc_internal || b.grpc_internal,
        grpc_resource_exhausted: a.grpc_resource_exhausted || b.grpc_resource_exhausted,
        grpc_unavailable: a.grpc_unavailable || b.grpc_unavailable,
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
        let reused = error(ErrorKind::ConnectionTermination).started(true);
        assert!(!p.wants_failure(Failed::Upstream(&reused)), "the upstream may have begun to work on it");
        assert!(!p.wants_failure(Failed::Upstream(&error(ErrorKind::Overflow))));
        assert!(!p.wants_failure(Failed::PerTryTimeout));
        let grpc = [("grpc-status".parse().unwrap(), "14".parse().unwrap())].into_iter().collect();
        assert!(p.wants_answer(200, &grpc));
    }

    #[test]
    fn a_request_adds_its_conditions() {
        let head = |headers: &[(&'static str, &'static str)]| {
            let mut head = crate::http::testing::get("a.test", "/");
            for (name, value) in headers {
                head.headers.insert(*name, value.parse().unwrap());
            }
            head
        };
        let none = HeaderMap::new();
        let codes =
            head(&[("x-envoy-retry-on", "retriable-status-codes"), ("x-envoy-retriable-status-codes", "418, 429")]);
        let p = RetryPolicy::adjusted(Some(&policy("connect-failure,503")), &codes).unwrap();
        assert_eq!([418, 429, 503, 500].map(|status| p.wants_answer(status, &none)), [true, true, true, false]);
        assert!(p.wants_failure(Failed::Upstream(&UpstreamError::new(ErrorKind::ConnectFailure, ""))));
        assert_eq!(p.retries, 2);
        let alone = RetryPolicy::adjusted(None, &head(&[("x-envoy-retry-on", "5xx"), ("x-envoy-max-retries", "4")]));
        assert_eq!(alone.map(|p| (p.retries, p.wants_answer(500, &none))), Some((4, true)));
        assert!(RetryPolicy::adjusted(None, &head(&[("x-envoy-retriable-status-codes", "503")])).is_none());
    }

    #[test]
    fn backoff_grows_to_its_limit() {
        let p = policy("5xx");
        assert!(p.backoff(1, u64::MAX) < Duration::from_millis(25));
        assert!((0..20).all(|n| p.backoff(n, u64::MAX - 1) < Duration::from_millis(250)));
    }
}
