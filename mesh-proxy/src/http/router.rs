//! Compiled route tables: virtual hosts by hash map, routes in order, everything a request needs already parsed.
//! Knows no IO and no clusters: what is found names them.

mod action;
mod hosts;
mod matching;

use std::sync::Arc;

use mesh_api::model::{self, FilterOverride, Name, RequireTls};

pub use action::{Action, Forward, HostRewrite, Mirror, Redirect, Target, Weighted};

pub(crate) use self::matching::Matcher;

use self::hosts::Hosts;
use super::{
    filters::{Overrides, descriptors::Rules},
    header_ops::HeaderOps,
    message::RequestHead,
    retry::RetryPolicy,
    stats::Needs,
};
use crate::{
    config::ConfigError,
    net::ConnInfo,
    upstream::stats::{RouteRegistry, RouteStats},
};

/// A compiled route configuration.
#[derive(Debug)]
pub struct RouteTable {
    /// Name that listeners refer to.
    pub name: Name,
    hosts: Hosts,
    virtual_hosts: Box<[VirtualHost]>,
    /// Operations on every request and answer.
    pub headers: Ops,
    clusters: Vec<Name>,
    /// Headers that operations and hashes show of finished exchanges.
    pub needs: Needs,
}

/// Operations on both heads.
#[derive(Debug, Default)]
pub struct Ops {
    /// On the way up.
    pub request: HeaderOps,
    /// On the way down.
    pub response: HeaderOps,
}

impl Ops {
    fn compile(ops: &model::HeaderOps, needs: &mut Needs) -> Result<Self, ConfigError> {
        let ops = Self { request: HeaderOps::compile(&ops.request)?, response: HeaderOps::compile(&ops.response)? };
        // Operations on answers may show headers of the request, which is gone by then.
        ops.response.needs(needs);
        Ok(ops)
    }
}

/// A compiled virtual host.
#[derive(Debug)]
pub struct VirtualHost {
    /// Name.
    pub name: Name,
    routes: Box<[Route]>,
    /// Cleartext requests are redirected.
    pub require_tls: RequireTls,
    /// Operations.
    pub headers: Ops,
    /// Filter configuration.
    pub overrides: Overrides,
    /// What rate limit services are told.
    pub limits: Rules,
    /// Retries of routes that have none.
    pub retry: Option<RetryPolicy>,
    /// `x-envoy-attempt-count` upstream.
    pub attempt_count_in_request: bool,
    /// `x-envoy-attempt-count` downstream.
    pub attempt_count_in_response: bool,
}

/// A compiled route.
#[derive(Debug)]
pub struct Route {
    /// Name; may be empty.
    pub name: Name,
    matcher: Matcher,
    /// What happens.
    pub action: Action,
    /// Operations.
    pub headers: Ops,
    /// Filter configuration.
    pub overrides: Overrides,
    /// Span name.
    pub operation: Option<Name>,
    /// The prefix or path that matched, for prefix rewrites.
    pub path: model::PathMatch,
    /// What was said of it.
    pub metadata: model::Metadata,
    /// Where its requests count; `None`: it has no statistics of its own.
    pub counters: Option<Arc<RouteStats>>,
}

/// What was found.
#[derive(Debug, Clone)]
pub struct RouteMatch {
    table: Arc<RouteTable>,
    host: usize,
    route: usize,
}

impl RouteMatch {
    /// The table.
    pub fn table(&self) -> &RouteTable {
        &self.table
    }
    /// The virtual host.
    pub fn host(&self) -> Option<&VirtualHost> {
        self.table.virtual_hosts.get(self.host)
    }
    /// The route.
    pub fn route(&self) -> Option<&Route> {
        self.host()?.routes.get(self.route)
    }
}

/// What looking for a route yields.
#[derive(Debug)]
pub enum Found {
    /// A route.
    Route(RouteMatch),
    /// The host demands TLS.
    RequireTls,
    /// Nothing; the host's name, when there is one.
    Nothing(Option<Name>),
}

impl RouteTable {
    /// Compiles patterns and builds the host map. Routes with a prefix for statistics count in `counters`.
    ///
    /// # Errors
    /// A domain that stands twice, a pattern, format or header name that is not valid.
    pub fn compile(config: &model::RouteConfig, counters: &RouteRegistry) -> Result<Arc<Self>, ConfigError> {
        let mut clusters = Vec::new();
        let mut needs = Needs::default();
        let mut hosts = Vec::with_capacity(config.virtual_hosts.len());
        for host in &config.virtual_hosts {
            let compiled = VirtualHost::compile(host, counters, &mut clusters, &mut needs);
            hosts.push(compiled.map_err(|e| e.within(format_args!("virtual host {:?}", host.name)))?);
        }
        clusters.sort();
        clusters.dedup();
        Ok(Arc::new(Self {
            name: config.name.clone(),
            hosts: Hosts::compile(config)?,
            virtual_hosts: hosts.into(),
            headers: Ops::compile(&config.headers, &mut needs)?,
            clusters,
            needs,
        }))
    }

    /// Names of the clusters that its routes refer to (mirrors included), for warming.
    pub fn clusters(&self) -> impl Iterator<Item = &Name> {
        self.clusters.iter()
    }

    /// The first route that matches. `random` decides fractions; `metadata` is what filters said so far.
    pub fn find(
        self: &Arc<Self>,
        head: &RequestHead,
        conn: &ConnInfo,
        random: u64,
        metadata: &model::Metadata,
    ) -> Found {
        let Some(index) = self.hosts.find(head.authority.as_str()) else { return Found::Nothing(None) };
        let Some(host) = self.virtual_hosts.get(index) else { return Found::Nothing(None) };
        // Without trusted hops every peer that is not local counts as external.
        if host.require_tls != RequireTls::None && head.scheme != super::message::Scheme::Https {
            return Found::RequireTls;
        }
        match host.routes.iter().position(|r| r.matcher.matches(head, conn, random, metadata)) {
            Some(route) => Found::Route(RouteMatch { table: self.clone(), host: index, route }),
            None => Found::Nothing(Some(host.name.clone())),
        }
    }
}

impl VirtualHost {
    fn compile(
        host: &model::VirtualHost,
        counters: &RouteRegistry,
        clusters: &mut Vec<Name>,
        needs: &mut Needs,
    ) -> Result<Self, ConfigError> {
        let mut routes = Vec::with_capacity(host.routes.len());
        for (i, route) in host.routes.iter().enumerate() {
            let compiled = Route::compile(route, clusters, needs);
            let mut compiled = compiled.map_err(|e| e.within(format_args!("route {i} {:?}", route.name)))?;
            if !route.stat_prefix.is_empty() {
                let key = (host.name.clone(), route.stat_prefix.clone());
                compiled.counters = Some(counters.of(&key, RouteStats::default));
            }
            routes.push(compiled);
        }
        Ok(Self {
            name: host.name.clone(),
            routes: routes.into(),
            require_tls: host.require_tls,
            headers: Ops::compile(&host.headers, needs)?,
            overrides: overrides(&host.filter_overrides)?,
            limits: Rules::compile(&host.rate_limits)?,
            retry: host.retry.as_ref().map(RetryPolicy::compile).transpose()?,
            attempt_count_in_request: host.include_request_attempt_count,
            attempt_count_in_response: host.include_attempt_count_in_response,
        })
    }
}

fn overrides(all: &[(Name, FilterOverride)]) -> Result<Overrides, ConfigError> {
    Overrides::compile(all)
}

impl Route {
    /// One of several clusters.
    pub fn weighted(&self, index: usize) -> Option<&Weighted> {
        match &self.action {
            Action::Forward(forward) => match &forward.target {
                Target::Weighted { clusters, .. } => clusters.get(index),
                _ => None,
            },
            _ => None,
        }
    }

    fn compile(route: &model::Route, clusters: &mut Vec<Name>, needs: &mut Needs) -> Result<Self, ConfigError> {
        Ok(Self {
            name: route.name.clone(),
            matcher: Matcher::compile(&route.matches)?,
            action: Action::compile(&route.action, &route.matches.path, clusters, needs)?,
            headers: Ops::compile(&route.headers, needs)?,
            overrides: overrides(&route.filter_overrides)?,
            operation: (!route.operation.is_empty()).then(|| route.operation.clone()),
            path: route.matches.path.clone(),
            metadata: route.metadata.clone(),
            counters: None,
        })
    }
}

#[cfg(test)]
mod tests;
