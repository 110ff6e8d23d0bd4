//! Forwarding of bytes: the TCP proxy filter. Knows no HTTP (but for asking a forward proxy for a tunnel) and no xDS.

pub(crate) mod copy;
pub mod forward;
#[cfg(test)]
mod tests;
mod tunnel;

use std::sync::Arc;

use mesh_api::model::{self, HashSource, Name};
use xxhash_rust::xxh64::xxh64;

use crate::{
    config::{CompileCtx, ConfigError},
    http::stats::ConnectionSink,
    net::ConnInfo,
};

/// A compiled TCP proxy filter.
#[derive(Debug)]
pub struct TcpProxy {
    /// What the control plane says.
    pub config: model::TcpProxy,
    /// Sum of weights.
    total: u64,
    sink: Arc<dyn ConnectionSink>,
    tunnel: Option<tunnel::Request>,
}

impl TcpProxy {
    /// Checks and prepares the configuration.
    ///
    /// # Errors
    /// When it names no cluster, or all weights are zero.
    pub fn compile(
        config: &model::TcpProxy,
        stats: Option<&model::IstioStats>,
        ctx: &CompileCtx,
    ) -> Result<Arc<Self>, ConfigError> {
        let total = config.clusters.iter().map(|(_, weight)| u64::from(*weight)).sum();
        if total == 0 {
            return Err(ConfigError::new("tcp_proxy: no cluster with a weight above 0"));
        }
        let sink = ctx.shared.telemetry.tcp_sink(config, stats, ctx)?;
        let tunnel = config.tunnel.as_ref().map(tunnel::Request::compile).transpose()?;
        Ok(Arc::new(Self { config: config.clone(), total, sink, tunnel }))
    }

    /// The cluster for a connection; `drawn` decides among several.
    fn cluster<'a>(&'a self, info: &'a ConnInfo, drawn: impl FnOnce(u64) -> u64) -> Option<&'a Name> {
        if let Some(cluster) = &info.sni_cluster {
            return Some(cluster);
        }
        if let [(only, _)] = self.config.clusters.as_slice() {
            return Some(only);
        }
        let mut left = drawn(self.total);
        self.config.clusters.iter().find_map(|(name, weight)| {
            let weight = u64::from(*weight);
            if left < weight {
                return Some(name);
            }
            left -= weight;
            None
        })
    }

    /// The hash for consistent balancers.
    fn hash(&self, info: &ConnInfo) -> Option<u64> {
        let by_source = self.config.hash.iter().any(|h| matches!(h, HashSource::SourceIp));
        by_source.then(|| xxh64(info.peer.ip().to_string().as_bytes(), 0))
    }
}
