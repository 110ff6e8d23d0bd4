//! Forwarding of bytes: the TCP proxy filter. Knows no HTTP and no xDS.

pub mod forward;

use std::sync::Arc;

use mesh_api::model;

use crate::config::{CompileCtx, ConfigError};

/// A compiled TCP proxy filter.
#[derive(Debug)]
pub struct TcpProxy {
    /// What the control plane says.
    pub config: model::TcpProxy,
}

impl TcpProxy {
    /// Checks and prepares the configuration.
    ///
    /// # Errors
    /// When it names no cluster, or all weights are zero.
    pub fn compile(config: &model::TcpProxy, _ctx: &CompileCtx) -> Result<Arc<Self>, ConfigError> {
        if config.clusters.iter().all(|(_, weight)| *weight == 0) {
            return Err(ConfigError::new("tcp_proxy: no cluster with a weight above 0"));
        }
        Ok(Arc::new(Self { config: config.clone() }))
    }
}
