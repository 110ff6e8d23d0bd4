//! HTTP filters, compiled: what is done to a request before it is forwarded, and to its answer. Knows no codec, no
//! upstream connection.

pub mod cors;
pub mod descriptors;
pub mod ext_authz;
pub mod fault;
pub mod global_limit;
pub mod health_check;
pub mod jwt;
pub mod rate_limit;
pub mod rbac;
pub mod session;

use std::sync::Arc;

use mesh_api::model::{self, FilterOverride, HttpFilterKind, Name, PeerMetadata};

use self::{
    cors::Cors,
    ext_authz::ExtAuthz,
    fault::Fault,
    global_limit::{GlobalLimit, Settings},
    health_check::HealthCheck,
    rate_limit::RateLimit,
    session::Session,
};
use super::{header_ops::HeaderOps, stats::Needs};
use crate::config::ConfigError;

/// A compiled filter.
#[derive(Debug)]
pub struct Filter {
    /// Instance name, key of overrides.
    pub name: Name,
    /// Off unless a route turns it on.
    pub disabled: bool,
    /// What it does.
    pub kind: Kind,
}

/// What a filter does.
#[derive(Debug)]
pub enum Kind {
    /// The router: the end of the chain.
    Router {
        /// Adds no `x-envoy-*` headers.
        suppress_envoy_headers: bool,
    },
    /// Allows or denies.
    Rbac(Arc<rbac::Filter>),
    /// Asks an external authorizer.
    ExtAuthz(Arc<ExtAuthz>),
    /// Delays and aborts.
    Fault(Arc<Fault>),
    /// Cross-origin rules of the route.
    Cors,
    /// Translates gRPC-Web.
    GrpcWeb,
    /// Limits the rate.
    RateLimit(Arc<RateLimit>),
    /// Asks a service that limits the rate.
    GlobalLimit(Arc<GlobalLimit>),
    /// Changes heads.
    HeaderMutation(HeaderOps, HeaderOps),
    /// Answers health checks.
    HealthCheck(Arc<HealthCheck>),
    /// Keeps a session at its endpoint; `None`: only where a route says how.
    Session(Option<Arc<Session>>),
    /// Exchanges peer metadata.
    PeerMetadata(PeerMetadata),
    /// Offers Istio's ALPN names upstream.
    IstioAlpn,
    /// Checks tokens.
    Jwt(Arc<jwt::Filter>),
    /// Its configuration never came.
    Unconfigured,
    /// What it means is done by telemetry, or by the cluster.
    Nothing,
}

impl Filter {
    /// Compiles a filter.
    ///
    /// # Errors
    /// A pattern, header name or operator that is not valid; a filter that does not exist here.
    pub fn compile(filter: &model::HttpFilter, needs: &mut Needs) -> Result<Self, ConfigError> {
        let kind = match &filter.kind {
            HttpFilterKind::Router(router) => Kind::Router { suppress_envoy_headers: router.suppress_envoy_headers },
            HttpFilterKind::Rbac(f) => Kind::Rbac(Arc::new(rbac::Filter::compile(f)?)),
            HttpFilterKind::ExtAuthz(f) => Kind::ExtAuthz(Arc::new(ExtAuthz::compile(f)?)),
            HttpFilterKind::Fault(f) => Kind::Fault(Fault::compile(f)?),
            HttpFilterKind::Cors => Kind::Cors,
            HttpFilterKind::GrpcStats { .. }
            | HttpFilterKind::IstioStats(_)
            | HttpFilterKind::DynamicForwardProxy(_) => Kind::Nothing,
            HttpFilterKind::Discovered(_) => Kind::Unconfigured,
            HttpFilterKind::GrpcWeb => Kind::GrpcWeb,
            HttpFilterKind::LocalRateLimit(limit) => Kind::RateLimit(RateLimit::compile(limit)?),
            HttpFilterKind::GlobalRateLimit(limit) => Kind::GlobalLimit(Arc::new(GlobalLimit::compile(limit)?)),
            HttpFilterKind::HeaderMutation { request, response } => {
                let response = HeaderOps::compile(response)?;
                response.needs(needs);
                Kind::HeaderMutation(HeaderOps::compile(request)?, response)
            }
            HttpFilterKind::HealthCheck(check) => Kind::HealthCheck(Arc::new(HealthCheck::compile(check)?)),
            HttpFilterKind::StatefulSession(s) => {
                Kind::Session(s.as_ref().map(|s| Session::compile(s).map(Arc::new)).transpose()?)
            }
            HttpFilterKind::IstioAlpn => Kind::IstioAlpn,
            HttpFilterKind::PeerMetadata(config) => Kind::PeerMetadata(*config),
            HttpFilterKind::JwtAuthn(config) => Kind::Jwt(Arc::new(jwt::Filter::compile(config)?)),
        };
        Ok(Self { name: filter.name.clone(), disabled: filter.disabled, kind })
    }
}

/// Filter configuration of a route, host or weighted cluster.
#[derive(Debug, Default)]
pub struct Overrides(Box<[(Name, Override)]>);

/// Configuration of one filter.
#[derive(Debug, Clone)]
pub enum Override {
    /// Off.
    Disabled,
    /// On, as it is configured.
    Enabled,
    /// Rules.
    Cors(Arc<Cors>),
    /// Faults.
    Fault(Arc<Fault>),
    /// Rules.
    Rbac(Arc<rbac::Filter>),
    /// Settings of the question.
    ExtAuthz(Arc<model::AuthzSettings>),
    /// Limit.
    RateLimit(Arc<RateLimit>),
    /// What a service that limits is told.
    GlobalLimit(Arc<Settings>),
    /// Changes.
    HeaderMutation(Arc<(HeaderOps, HeaderOps)>),
    /// Session.
    Session(Arc<Session>),
    /// Another requirement, by name.
    JwtRequirement(Name),
}

impl Overrides {
    /// Compiles configurations.
    ///
    /// # Errors
    /// As [`Filter::compile`].
    pub fn compile(all: &[(Name, FilterOverride)]) -> Result<Self, ConfigError> {
        let one = |(name, o): &(Name, FilterOverride)| {
            let compiled = match o {
                FilterOverride::Disabled => Override::Disabled,
                FilterOverride::Enabled => Override::Enabled,
                FilterOverride::Cors(policy) => Override::Cors(Arc::new(Cors::compile(policy)?)),
                FilterOverride::Fault(f) => Override::Fault(Fault::compile(f)?),
                FilterOverride::Rbac(f) => Override::Rbac(Arc::new(rbac::Filter::compile(f)?)),
                FilterOverride::ExtAuthz(settings) => Override::ExtAuthz(Arc::new(settings.clone())),
                FilterOverride::LocalRateLimit(l) => Override::RateLimit(RateLimit::compile(l)?),
                FilterOverride::GlobalRateLimit(s) => Override::GlobalLimit(Arc::new(Settings::compile(s)?)),
                FilterOverride::HeaderMutation { request, response } => {
                    Override::HeaderMutation(Arc::new((HeaderOps::compile(request)?, HeaderOps::compile(response)?)))
                }
                FilterOverride::JwtRequirement(name) => Override::JwtRequirement(name.clone()),
                FilterOverride::StatefulSession(s) => Override::Session(Arc::new(Session::compile(s)?)),
            };
            Ok((name.clone(), compiled))
        };
        all.iter().map(one).collect::<Result<_, _>>().map(Self)
    }

    /// The configuration of a filter.
    pub fn get(&self, name: &str) -> Option<&Override> {
        self.0.iter().find(|(n, _)| **n == *name).map(|(_, o)| o)
    }
}
