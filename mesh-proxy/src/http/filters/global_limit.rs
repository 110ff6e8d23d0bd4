//! Global rate limit: which descriptors a service is asked about, and what its answer changes.
//!
//! Owns the question as plain facts and the meaning of answers. Knows neither the messages of gRPC (see [`Codec`]) nor
//! connections: who asks stands in `http/authorizer.rs`.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, header};
use mesh_api::model::{self, AppendAction, HostRules, Name, RequestType};
use serde_json::Value;

use super::descriptors::{Descriptor, Facts, Quota, Rules, limit_headers};
use super::ext_authz::{RawHeader, ResponseChanges, checked, framing, grpc_head};
use crate::{
    config::ConfigError,
    http::{
        header_ops::HeaderOps,
        local_reply::{LocalReply, Reason},
        message::RequestHead,
    },
};

/// Method of `envoy.service.ratelimit.v3.RateLimitService`.
const SHOULD_RATE_LIMIT: &str = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit";
/// Under this name the service's metadata is kept, where nothing else is said.
const METADATA: &str = "envoy.filters.http.ratelimit";
const LIMITED: HeaderName = HeaderName::from_static("x-envoy-ratelimited");
const RESOURCE_EXHAUSTED: u32 = 8;

/// A compiled filter.
#[derive(Debug)]
pub struct GlobalLimit {
    /// As it was declared.
    pub config: model::GlobalRateLimit,
    rules: Rules,
    /// Operations on refusals.
    pub headers: Arc<HeaderOps>,
    /// The call, but for its message.
    call: RequestHead,
}

/// Configuration of a route.
#[derive(Debug)]
pub struct Settings {
    host_rules: HostRules,
    rules: Rules,
    domain: Option<Name>,
}

/// Rules of where a request goes.
#[derive(Debug, Clone, Copy)]
pub struct RouteRules<'a> {
    /// Of the route.
    pub route: &'a Rules,
    /// Of its host.
    pub host: &'a Rules,
    /// The route wants those of the host too.
    pub include_host: bool,
}

/// Messages of `envoy.service.ratelimit.v3`.
pub trait Codec: std::fmt::Debug + Send + Sync {
    /// A `RateLimitRequest`.
    fn question(&self, domain: &str, descriptors: &[Descriptor<'_>]) -> Vec<u8>;
    /// Of a `RateLimitResponse`.
    ///
    /// # Errors
    /// When it is none.
    fn answer(&self, message: &[u8]) -> Result<Answer, String>;
}

/// What a service said.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// Some limit is reached.
    pub over: bool,
    /// Of descriptors that have a limit.
    pub quotas: Vec<Quota>,
    /// Headers for the request that passes.
    pub request: Vec<RawHeader>,
    /// Headers for the client.
    pub response: Vec<RawHeader>,
    /// Body of a refusal.
    pub body: Bytes,
    /// For logs and filters that follow.
    pub metadata: Option<Value>,
}

impl Settings {
    /// Compiles the configuration of a route.
    ///
    /// # Errors
    /// A pattern that is not valid.
    pub fn compile(s: &model::RateLimitSettings) -> Result<Self, ConfigError> {
        let domain = (!s.domain.is_empty()).then(|| s.domain.clone());
        Ok(Self { host_rules: s.host_rules, rules: Rules::compile(&s.rules)?, domain })
    }
}

impl GlobalLimit {
    /// Compiles a filter.
    ///
    /// # Errors
    /// A pattern or header that is not valid.
    pub fn compile(config: &model::GlobalRateLimit) -> Result<Self, ConfigError> {
        Ok(Self {
            rules: Rules::compile(&config.rules)?,
            headers: Arc::new(HeaderOps::compile(&config.response_headers)?),
            call: grpc_head(&config.service, SHOULD_RATE_LIMIT).map_err(ConfigError::new)?,
            config: config.clone(),
        })
    }

    /// The call to make, but for its message.
    pub fn call(&self) -> RequestHead {
        self.call.clone()
    }

    /// Whether it asks at all. Every client counts as one from outside.
    pub fn applies(&self, random: impl FnOnce() -> u64) -> bool {
        self.config.requests != RequestType::Internal && self.config.enabled.takes(random)
    }

    /// Whose limits.
    pub fn domain<'a>(&'a self, settings: Option<&'a Settings>) -> &'a str {
        settings.and_then(|s| s.domain.as_deref()).unwrap_or(&self.config.domain)
    }

    /// What the service is asked about; nothing: it is not asked.
    pub fn describe<'a>(
        &'a self,
        settings: Option<&'a Settings>,
        of: RouteRules<'a>,
        facts: &Facts<'a>,
    ) -> Vec<Descriptor<'a>> {
        let mut out = Vec::new();
        let stage = self.config.stage;
        if let Some(own) = settings.map(|s| &s.rules).filter(|r| !r.is_empty()) {
            own.describe(stage, facts, &mut out);
            return out;
        }
        if !self.rules.is_empty() {
            self.rules.describe(stage, facts, &mut out);
            return out;
        }
        of.route.describe(stage, facts, &mut out);
        let host_rules =
            if of.include_host { HostRules::Include } else { settings.map(|s| s.host_rules).unwrap_or_default() };
        let host = match host_rules {
            HostRules::Include => true,
            HostRules::Ignore => false,
            HostRules::Override => of.route.is_empty(),
        };
        if host {
            of.host.describe(stage, facts, &mut out);
        }
        out
    }

    /// Under which name the service's metadata is kept.
    pub fn namespace(&self) -> &str {
        if self.config.metadata_namespace.is_empty() { METADATA } else { &self.config.metadata_namespace }
    }

    /// What a client gets whose request could not be asked about; `None`: it passes.
    pub fn failed(&self) -> Option<LocalReply> {
        let status = self.config.status_on_error;
        self.config.failure_mode_deny.then(|| Reason::RateLimitError { status }.into())
    }

    /// The headers that an answer has for the client.
    ///
    /// # Errors
    /// One that cannot be sent.
    pub fn told(&self, answer: &Answer) -> Result<ResponseChanges, String> {
        let mut out = ResponseChanges::new();
        for raw in answer.response.iter().filter(|(name, _)| sendable(name)) {
            let (name, value) = checked(raw)?;
            // What a service says of its own text counts more than what is assumed of it.
            let action = if name == header::CONTENT_TYPE {
                AppendAction::OverwriteIfExistsOrAdd
            } else {
                AppendAction::AppendIfExistsOrAdd
            };
            out.push((name, value, action));
        }
        if self.config.limit_headers {
            for (name, value) in &limit_headers(&answer.quotas) {
                out.push((name.clone(), value.clone(), AppendAction::OverwriteIfExistsOrAdd));
            }
        }
        Ok(out)
    }

    /// The refusal, where the limit is reached and that counts.
    pub fn refusal(&self, answer: &Answer, random: impl FnOnce() -> u64) -> Option<LocalReply> {
        if !answer.over || !self.config.enforced.takes(random) {
            return None;
        }
        let mut reply = LocalReply::from(Reason::RateLimited { status: self.config.status });
        reply.body = answer.body.clone();
        reply.grpc_status = self.config.resource_exhausted.then_some(RESOURCE_EXHAUSTED);
        if self.config.no_envoy_header {
            return Some(reply);
        }
        Some(reply.with_header(LIMITED, HeaderValue::from_static("true")))
    }
}

impl Answer {
    /// Adds what it has for a request that passes.
    ///
    /// # Errors
    /// A header that cannot be sent; nothing has been changed then.
    pub fn mark(&self, head: &mut RequestHead) -> Result<(), String> {
        let headers = self.request.iter().filter(|(name, _)| sendable(name));
        let headers: Vec<_> = headers.map(checked).collect::<Result<_, _>>()?;
        for (name, value) in headers {
            head.headers.append(name, value);
        }
        Ok(())
    }
}

fn sendable(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    !lower.starts_with(':') && lower != "host" && !framing(&lower)
}

#[cfg(test)]
mod tests {
    use mesh_api::model::{AuthzGrpc, Metadata, RateLimitAction, RateLimitRule, RateLimitSettings};

    use super::*;
    use crate::http::testing;

    fn filter() -> model::GlobalRateLimit {
        let service = AuthzGrpc {
            cluster: "rls".into(),
            authority: "".into(),
            timeout: std::time::Duration::from_millis(20),
            initial_metadata: vec![],
        };
        model::GlobalRateLimit::new("d", service)
    }

    fn generic(value: &str) -> Vec<RateLimitRule> {
        let actions = vec![RateLimitAction::Generic { key: "g".into(), value: value.into() }];
        vec![RateLimitRule { stage: 0, actions, hits: None }]
    }

    /// Values of the descriptors.
    fn asked(
        filter: &model::GlobalRateLimit,
        settings: Option<RateLimitSettings>,
        route: &[RateLimitRule],
        include_host: bool,
    ) -> Vec<String> {
        let filter = GlobalLimit::compile(filter).unwrap();
        let settings = settings.map(|s| Settings::compile(&s).unwrap());
        let (route, host) = (Rules::compile(route).unwrap(), Rules::compile(&generic("host")).unwrap());
        let (head, none) = (testing::get("a.test", "/"), Metadata::new());
        let client = "10.1.2.3".parse().unwrap();
        let facts = Facts { head: &head, client, source: "", destination: "", metadata: &none, route: &none };
        let rules = RouteRules { route: &route, host: &host, include_host };
        let out = filter.describe(settings.as_ref(), rules, &facts);
        out.iter().flat_map(|d| d.entries.iter().map(|(_, v)| v.to_string())).collect()
    }

    #[test]
    fn rules_of_the_host_count_where_the_route_has_none_unless_said_otherwise() {
        let settings = |host_rules| Some(RateLimitSettings { host_rules, ..Default::default() });
        let route = generic("route");
        assert_eq!(asked(&filter(), None, &[], false), ["host"]);
        assert_eq!(asked(&filter(), None, &route, false), ["route"]);
        assert_eq!(asked(&filter(), None, &route, true), ["route", "host"]);
        assert_eq!(asked(&filter(), settings(HostRules::Include), &route, false), ["route", "host"]);
        assert!(asked(&filter(), settings(HostRules::Ignore), &[], false).is_empty());
        let own = Some(RateLimitSettings { rules: generic("own"), ..Default::default() });
        let with_rules = model::GlobalRateLimit { rules: generic("filter"), ..filter() };
        assert_eq!(asked(&with_rules, None, &route, true), ["filter"]);
        assert_eq!(asked(&with_rules, own, &route, true), ["own"]);
    }

    #[test]
    fn an_answer_refuses_marks_and_tells() {
        let raw = |name: &str| (name.to_owned(), b"v".to_vec());
        let mut answer = Answer { over: true, body: "slow down".into(), ..Answer::default() };
        answer.response = vec![raw("x-told"), raw("content-length"), raw(":status")];
        answer.request = vec![raw("x-plan"), raw("host"), raw("transfer-encoding")];
        let f = GlobalLimit::compile(&model::GlobalRateLimit { resource_exhausted: true, ..filter() }).unwrap();
        let reply = f.refusal(&answer, || 0).unwrap();
        assert_eq!((reply.status, &reply.body[..], reply.grpc_status), (429, &b"slow down"[..], Some(8)));
        assert_eq!(reply.headers.first().map(|(n, _)| n.as_str()), Some("x-envoy-ratelimited"));
        let told: Vec<_> = f.told(&answer).unwrap().into_iter().map(|(n, ..)| n.to_string()).collect();
        assert_eq!(told, ["x-told"]);
        let mut head = testing::get("a.test", "/");
        answer.mark(&mut head).unwrap();
        assert_eq!(head.headers.len(), 1);
        answer.request.push(raw("not a name"));
        assert!(answer.mark(&mut head).is_err());
        let shadow = model::GlobalRateLimit { enforced: model::Fraction(0), ..filter() };
        assert!(GlobalLimit::compile(&shadow).unwrap().refusal(&answer, || 0).is_none());
        assert!(f.failed().is_none());
        let strict = model::GlobalRateLimit { failure_mode_deny: true, ..filter() };
        assert_eq!(GlobalLimit::compile(&strict).unwrap().failed().map(|r| r.status), Some(500));
    }
}
