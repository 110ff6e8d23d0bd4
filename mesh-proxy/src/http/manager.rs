//! The compiled HTTP connection manager of a filter chain: limits, header rules, filters, and where its routes are.

use std::sync::Arc;

use http::HeaderValue;
use mesh_api::model::{self, Name, PeerMetadata, RouteSource};

use super::{
    filters::{Filter, Kind},
    path,
    router::RouteTable,
    stats::{ExchangeSink, Needs},
};
use crate::{
    config::{CompileCtx, ConfigError, Snapshot},
    telemetry::peer,
};

/// A compiled HTTP connection manager.
#[derive(Debug)]
pub struct HttpManager {
    /// As it was declared, but for the routes, which are compiled.
    pub config: model::HttpManager,
    routes: Routes,
    /// Filters in order, without the router.
    pub filters: Box<[Filter]>,
    /// The router adds no `x-envoy-*` headers.
    pub suppress_envoy_headers: bool,
    /// How paths are normalised.
    pub paths: path::Options,
    /// `server`.
    pub server: HeaderValue,
    /// `via`.
    pub via: Option<HeaderValue>,
    /// Where finished exchanges go.
    pub sink: Arc<dyn ExchangeSink>,
    /// What the sink needs; route tables add theirs.
    pub needs: Needs,
    /// Peer metadata headers, ours.
    pub metadata: Option<OwnMetadata>,
    /// Istio's ALPN names are offered upstream.
    pub istio_alpn: bool,
    /// Upgrades that are allowed, lower case.
    pub upgrades: Box<[(Box<str>, bool)]>,
}

/// What this proxy tells peers of itself.
#[derive(Debug)]
pub struct OwnMetadata {
    /// When.
    pub config: PeerMetadata,
    /// `x-envoy-peer-metadata-id`.
    pub id: HeaderValue,
    /// `x-envoy-peer-metadata`.
    pub value: HeaderValue,
}

#[derive(Debug)]
enum Routes {
    Rds(Name),
    Inline(Arc<RouteTable>),
}

fn value(what: &str, text: &str) -> Result<HeaderValue, ConfigError> {
    HeaderValue::from_str(text).map_err(|_| ConfigError::new(format!("{what}: {text:?} is not a header value")))
}

impl HttpManager {
    /// Compiles filters and inline routes.
    ///
    /// # Errors
    /// A pattern or format that is not valid, a filter chain without a router.
    pub fn compile(config: &model::HttpManager, ctx: &CompileCtx) -> Result<Arc<Self>, ConfigError> {
        let routes = match &config.routes {
            RouteSource::Rds(name) => Routes::Rds(name.clone()),
            RouteSource::Inline(table) => Routes::Inline(RouteTable::compile(table, &ctx.shared.route_stats)?),
        };
        let mut needs = Needs::default();
        let mut filters = Vec::with_capacity(config.filters.len());
        for filter in &config.filters {
            filters.push(Filter::compile(filter, &mut needs)?);
        }
        let Some(Filter { kind: Kind::Router { suppress_envoy_headers }, .. }) = filters.pop() else {
            return Err(ConfigError::new("the last HTTP filter must be the router"));
        };
        if filters.iter().any(|f| matches!(f.kind, Kind::Router { .. })) {
            return Err(ConfigError::new("the router must be the last HTTP filter"));
        }
        let sink = ctx.shared.telemetry.http_sink(config, ctx)?;
        needs.merge(&sink.needs());
        let node = &ctx.shared.node;
        let metadata = filters.iter().find_map(|f| match f.kind {
            Kind::PeerMetadata(config) => Some(config),
            _ => None,
        });
        let metadata = match metadata {
            Some(config) => Some(OwnMetadata {
                config,
                id: value("node id", &node.id)?,
                value: value("node metadata", &peer::header_value(&node.istio))?,
            }),
            None => None,
        };
        Ok(Arc::new(Self {
            routes,
            istio_alpn: filters.iter().any(|f| matches!(f.kind, Kind::IstioAlpn) && !f.disabled),
            filters: filters.into(),
            suppress_envoy_headers,
            paths: path::Options {
                normalize: config.normalize_path,
                merge_slashes: config.merge_slashes,
                escaped_slashes: config.escaped_slashes,
            },
            server: value("server_name", config.server_name.as_deref().unwrap_or("envoy"))?,
            via: if config.via.is_empty() { None } else { Some(value("via", &config.via)?) },
            sink,
            needs,
            metadata,
            upgrades: config.upgrades.iter().map(|u| (u.kind.to_ascii_lowercase().into(), u.enabled)).collect(),
            config: model::HttpManager { routes: RouteSource::Rds("".into()), ..config.clone() },
        }))
    }

    /// The table in force; `None`: it has not arrived.
    pub fn routes(&self, snapshot: &Snapshot) -> Option<Arc<RouteTable>> {
        match &self.routes {
            Routes::Inline(table) => Some(table.clone()),
            Routes::Rds(name) => snapshot.route(name).cloned(),
        }
    }

    /// The RDS name, when routes come over RDS.
    pub fn rds_name(&self) -> Option<&Name> {
        match &self.routes {
            Routes::Rds(name) => Some(name),
            Routes::Inline(_) => None,
        }
    }

    /// The inline table.
    pub fn inline_routes(&self) -> Option<&Arc<RouteTable>> {
        match &self.routes {
            Routes::Inline(table) => Some(table),
            Routes::Rds(_) => None,
        }
    }
}
