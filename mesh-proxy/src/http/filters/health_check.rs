//! Health checks of this proxy: answered here, by the health of clusters, or by the application, whose word is repeated
//! for a while.

use http::{HeaderName, HeaderValue};
use mesh_api::model::HealthCheckFilter;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::config::ConfigError;
use crate::http::local_reply::{LocalReply, Reason};
use crate::http::matchers::HeaderMatch;
use crate::http::message::{RequestHead, ResponseHead};

/// Names the cluster that answered, for whoever checks.
pub const CHECKED_CLUSTER: HeaderName = HeaderName::from_static("x-envoy-upstream-healthchecked-cluster");
const DEGRADED: HeaderName = HeaderName::from_static("x-envoy-degraded");

/// A compiled filter.
#[derive(Debug)]
pub struct HealthCheck {
    config: HealthCheckFilter,
    headers: Box<[HeaderMatch]>,
    said: Mutex<Option<Said>>,
}

/// What the application said last.
#[derive(Debug, Clone, Copy)]
struct Said {
    status: u16,
    degraded: bool,
    until: Instant,
}

/// Endpoints of a cluster: all, and those that are healthy.
pub type Membership = (u64, u64);

impl HealthCheck {
    /// Compiles a filter.
    ///
    /// # Errors
    /// A pattern or header name that is not valid.
    pub fn compile(config: &HealthCheckFilter) -> Result<Self, ConfigError> {
        let headers = HeaderMatch::compile_all(&config.headers)?;
        Ok(Self { config: config.clone(), headers, said: Mutex::new(None) })
    }

    /// Whether a request is a health check.
    pub fn is_one(&self, head: &RequestHead) -> bool {
        self.headers.iter().all(|h| h.matches(head))
    }

    /// The answer; `None`: the application gives it. `cluster`: members of a cluster, if there is one of this name.
    pub fn answer(&self, now: Instant, cluster: impl Fn(&str) -> Option<Membership>) -> Option<LocalReply> {
        if self.config.pass_through {
            let said = self.said.lock().filter(|said| now < said.until)?;
            let reply = LocalReply::from(Reason::HealthCheck { status: said.status, details: "health_check_cached" });
            return Some(if said.degraded { reply.with_header(DEGRADED, HeaderValue::from_static("")) } else { reply });
        }
        let bad = self.config.min_healthy.iter().find_map(|(name, share)| match cluster(name) {
            None => Some("health_check_failed_no_cluster_found"),
            Some((0, _)) => (*share > 0.0).then_some("health_check_failed_cluster_empty"),
            Some((all, healthy)) => {
                // Numbers of endpoints are far below what a double holds exactly.
                #[allow(clippy::cast_precision_loss)]
                let enough = healthy as f64 >= all as f64 * share / 100.0;
                (!enough).then_some("health_check_failed_cluster_unhealthy")
            }
        });
        let good =
            if self.config.min_healthy.is_empty() { "health_check_ok" } else { "health_check_ok_cluster_healthy" };
        let status = if bad.is_some() { 503 } else { 200 };
        Some(Reason::HealthCheck { status, details: bad.unwrap_or(good) }.into())
    }

    /// Keeps what was answered to a health check that went on.
    pub fn note(&self, head: &ResponseHead, now: Instant) {
        if let Some(time) = self.config.cache_time {
            let degraded = head.headers.contains_key(&DEGRADED);
            *self.said.lock() = Some(Said { status: head.status.as_u16(), degraded, until: now + time });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::StatusCode;

    use super::*;

    fn check(pass_through: bool, cache: u64, min_healthy: &[(&str, f64)]) -> HealthCheck {
        let min_healthy = min_healthy.iter().map(|(name, share)| ((*name).into(), *share)).collect();
        let cache_time = (cache > 0).then(|| Duration::from_secs(cache));
        HealthCheck::compile(&HealthCheckFilter { pass_through, headers: vec![], cache_time, min_healthy }).unwrap()
    }

    fn answer(check: &HealthCheck, cluster: impl Fn(&str) -> Option<Membership>) -> Option<(u16, String)> {
        check.answer(Instant::now(), cluster).map(|reply| (reply.status, reply.reason.details().into_owned()))
    }

    #[test]
    fn clusters_decide() {
        let plain = check(false, 0, &[]);
        assert_eq!(answer(&plain, |_| None), Some((200, "health_check_ok".to_owned())));
        let both = check(false, 0, &[("a", 50.0), ("b", 75.0)]);
        let at = |a: Option<Membership>, b: Membership| {
            answer(&both, move |name| if name == "a" { a } else { Some(b) }).unwrap()
        };
        assert_eq!(at(Some((100, 50)), (1000, 750)), (200, "health_check_ok_cluster_healthy".to_owned()));
        assert_eq!(at(Some((100, 49)), (1000, 750)), (503, "health_check_failed_cluster_unhealthy".to_owned()));
        assert_eq!(at(Some((0, 0)), (1000, 750)), (503, "health_check_failed_cluster_empty".to_owned()));
        assert_eq!(at(None, (1000, 750)), (503, "health_check_failed_no_cluster_found".to_owned()));
        assert_eq!(answer(&check(false, 0, &[("a", 0.0)]), |_| Some((0, 0))).unwrap().0, 200, "nothing is asked of it");
    }

    #[tokio::test(start_paused = true)]
    async fn the_applications_word_is_repeated_for_a_while() {
        let check = check(true, 2, &[]);
        assert_eq!(answer(&check, |_| None), None);
        check.note(&ResponseHead::new(StatusCode::SERVICE_UNAVAILABLE), Instant::now());
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(answer(&check, |_| None), Some((503, "health_check_cached".to_owned())));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(answer(&check, |_| None), None);
    }
}
