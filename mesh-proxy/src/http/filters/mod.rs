//! HTTP filters, compiled: what is done to a request before it is forwarded, and to its answer. Knows no codec, no
//! upstream connection.

pub mod cors;
pub mod fault;
pub mod rate_limit;
pub mod rbac;

use std::sync::Arc;

use mesh_api::model::{self, FilterOverride, HttpFilterKind, Name, PeerMetadata};

use self::{cors::Cors, fault::Fault, rate_limit::RateLimit};
use super::{header_ops::HeaderOps, matchers::HeaderMatch, stats::Needs};
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
    /// Delays and aborts.
    Fault(Arc<Fault>),
    /// Cross-origin rules of the route.
    Cors,
    /// Limits the rate.
    RateLimit(Arc<RateLimit>),
    /// Changes heads.
    HeaderMutation(HeaderOps, HeaderOps),
    /// Answers health checks.
    HealthCheck {
        /// They go on to the application.
        pass_through: bool,
        /// What makes a request one.
        headers: Box<[HeaderMatch]>,
    },
    /// Exchanges peer metadata.
    PeerMetadata(PeerMetadata),
    /// Offers Istio's ALPN names upstream.
    IstioAlpn,
    /// What it means is done by telemetry.
    Telemetry,
}

impl Filter {
    /// Compiles a filter.
    ///
    /// # Errors
    /// A pattern, header name or operator that is not valid; a filter that does not exist here.
    pub fn compile(filter: &model::HttpFilter, needs: &mut Needs) -> Result<Self, ConfigError> {
        let unsupported =
            |what: &str| Err(ConfigError::new(format!("filter {:?}: {what} is not supported yet", filter.name)));
        let kind = match &filter.kind {
            HttpFilterKind::Router(router) => Kind::Router { suppress_envoy_headers: router.suppress_envoy_headers },
            HttpFilterKind::Rbac(f) => Kind::Rbac(Arc::new(rbac::Filter::compile(f)?)),
            HttpFilterKind::Fault(f) => Kind::Fault(Fault::compile(f)?),
            HttpFilterKind::Cors => Kind::Cors,
            HttpFilterKind::GrpcStats { .. } | HttpFilterKind::IstioStats(_) => Kind::Telemetry,
            HttpFilterKind::GrpcWeb => return unsupported("gRPC-Web"),
            HttpFilterKind::LocalRateLimit(limit) => Kind::RateLimit(RateLimit::compile(limit)?),
            HttpFilterKind::HeaderMutation { request, response } => {
                let response = HeaderOps::compile(response)?;
                response.needs(needs);
                Kind::HeaderMutation(HeaderOps::compile(request)?, response)
            }
            HttpFilterKind::HealthCheck { pass_through, headers } => {
                Kind::HealthCheck { pass_through: *pass_through, headers: HeaderMatch::compile_all(headers)? }
            }
            // Without a configuration it does something only where a route has one, and those are refused.
            HttpFilterKind::StatefulSession(None) => Kind::Telemetry,
            HttpFilterKind::StatefulSession(Some(_)) => return unsupported("session affinity"),
            HttpFilterKind::IstioAlpn => Kind::IstioAlpn,
            HttpFilterKind::PeerMetadata(config) => Kind::PeerMetadata(*config),
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
    /// Limit.
    RateLimit(Arc<RateLimit>),
    /// Changes.
    HeaderMutation(Arc<(HeaderOps, HeaderOps)>),
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
                FilterOverride::LocalRateLimit(l) => Override::RateLimit(RateLimit::compile(l)?),
                FilterOverride::HeaderMutation { request, response } => {
                    Override::HeaderMutation(Arc::new((HeaderOps::compile(request)?, HeaderOps::compile(response)?)))
                }
                FilterOverride::StatefulSession(_) => {
                    return Err(ConfigError::new(format!("filter {name:?}: session affinity is not supported yet")));
                }
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
