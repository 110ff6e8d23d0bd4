//! Which exchanges an access log tells of: filters, compiled when configuration is.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use http::{HeaderMap, HeaderName};
use mesh_api::cel::{Dialect, Expression};
use mesh_api::model::{self, Comparison, LogFilter};

use crate::config::ConfigError;
use crate::http::attributes::{self, Exchange};
use crate::http::local_reply::ResponseFlags;
use crate::http::matchers::HeaderMatch;
use crate::http::stats::{Needs, want};

/// Which exchanges are logged.
#[derive(Debug)]
pub(super) enum Filter {
    And(Vec<Filter>),
    Or(Vec<Filter>),
    Status(Comparison, u32),
    Duration(Comparison, u32),
    /// Empty: any flag.
    Flags(Vec<ResponseFlags>),
    NotHealthCheck,
    /// Every so many of a million; counts to spread them evenly.
    Share(u32, AtomicU64),
    Header(HeaderName, HeaderMatch),
    GrpcStatus {
        statuses: Vec<u32>,
        exclude: bool,
    },
    Cel(Expression),
}

impl Filter {
    pub(super) fn compile(filter: &LogFilter) -> Result<Self, ConfigError> {
        let all = |filters: &[LogFilter]| filters.iter().map(Filter::compile).collect::<Result<Vec<_>, _>>();
        Ok(match filter {
            LogFilter::And(filters) => Filter::And(all(filters)?),
            LogFilter::Or(filters) => Filter::Or(all(filters)?),
            LogFilter::Status(comparison, value) => Filter::Status(*comparison, *value),
            LogFilter::Duration(comparison, value) => Filter::Duration(*comparison, *value),
            LogFilter::ResponseFlag(names) => {
                let flag = |name: &model::Name| {
                    ResponseFlags::parse(name).ok_or_else(|| ConfigError::new(format!("no response flag {name:?}")))
                };
                Filter::Flags(names.iter().map(flag).collect::<Result<_, _>>()?)
            }
            LogFilter::NotHealthCheck => Filter::NotHealthCheck,
            LogFilter::Fraction(share) => Filter::Share(share.0, AtomicU64::new(0)),
            LogFilter::Header(matcher) => {
                let name = HeaderName::try_from(&*matcher.name).map_err(|_| {
                    ConfigError::new(format!("an access log filter looks at {:?}, which is no header", matcher.name))
                })?;
                Filter::Header(name, HeaderMatch::compile(matcher)?)
            }
            LogFilter::GrpcStatus { statuses, exclude } => {
                Filter::GrpcStatus { statuses: statuses.clone(), exclude: *exclude }
            }
            LogFilter::Cel(text) => {
                let parsed = Expression::parse(text, Dialect::Filter);
                Filter::Cel(parsed.map_err(|e| ConfigError::new(format!("access log filter {text:?} {e}")))?)
            }
        })
    }

    pub(super) fn needs(&self, needs: &mut Needs) {
        match self {
            Filter::And(filters) | Filter::Or(filters) => filters.iter().for_each(|f| f.needs(needs)),
            Filter::Header(name, _) => want(&mut needs.request, name.as_str()),
            Filter::Cel(expression) => attributes::needs(expression, needs),
            _ => {}
        }
    }

    pub(super) fn passes(&self, exchange: &Exchange<'_>) -> bool {
        let compare = |comparison: Comparison, left: u128, right: u32| match comparison {
            Comparison::Eq => left == u128::from(right),
            Comparison::Ge => left >= u128::from(right),
            Comparison::Le => left <= u128::from(right),
        };
        let stats = exchange.stats;
        match self {
            Filter::And(filters) => filters.iter().all(|f| f.passes(exchange)),
            Filter::Or(filters) => filters.iter().any(|f| f.passes(exchange)),
            Filter::Status(comparison, value) => compare(*comparison, u128::from(stats.status), *value),
            Filter::Duration(comparison, value) => {
                let took = stats.times.end.map(|end| end.saturating_duration_since(stats.start)).unwrap_or_default();
                compare(*comparison, took.as_millis(), *value)
            }
            Filter::Flags(flags) if flags.is_empty() => !stats.flags.is_empty(),
            Filter::Flags(flags) => flags.iter().any(|f| stats.flags.contains(*f)),
            Filter::NotHealthCheck => !stats.health_check,
            Filter::Share(share, seen) => {
                // 1 of a million steps that crosses a whole number: exactly the share, evenly spread.
                let before = seen.fetch_add(1, Relaxed).wrapping_mul(u64::from(*share)) % 1_000_000;
                before + u64::from(*share) >= 1_000_000
            }
            Filter::Header(_, matcher) => {
                let headers: HeaderMap = stats.captured.request.iter().cloned().collect();
                matcher.matches_headers(&headers)
            }
            Filter::GrpcStatus { statuses, exclude } => {
                stats.grpc_status.is_some_and(|s| statuses.contains(&s)) != *exclude
            }
            Filter::Cel(expression) => expression.is_true(exchange),
        }
    }
}
