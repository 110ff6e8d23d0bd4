//! Compiled route tables: virtual hosts by hash map, routes in order, everything a request needs already parsed.
//! Knows no IO and no clusters: what is found names them.

use std::sync::Arc;

use mesh_api::model::{self, Name};

use super::message::RequestHead;
use crate::{config::ConfigError, net::ConnInfo};

/// A compiled route configuration.
#[derive(Debug)]
pub struct RouteTable {
    /// Name that listeners refer to.
    pub name: Name,
}

impl RouteTable {
    /// Compiles patterns and builds the host map.
    ///
    /// # Errors
    /// A domain that stands twice, a pattern, format or header name that is not valid.
    pub fn compile(config: &model::RouteConfig) -> Result<Arc<Self>, ConfigError> {
        Ok(Arc::new(Self { name: config.name.clone() }))
    }
    /// Names of the clusters that its routes refer to (mirrors included), for warming.
    pub fn clusters(&self) -> impl Iterator<Item = &Name> {
        std::iter::empty()
    }
    /// The first route that matches. `random` decides fractions and weights.
    pub fn find(&self, _head: &RequestHead, _conn: &ConnInfo, _random: u64) -> Option<RouteMatch> {
        None
    }
}

/// What was found.
#[derive(Debug, Clone)]
pub struct RouteMatch {}
