//! A cluster: what all workers share.

use std::sync::Arc;

use mesh_api::model;

use super::{
    Endpoint, LbContext, Outcome, PickError, Priority, Random,
    circuit::{Circuit, RetryPermit},
    stats::ClusterStats,
};
use crate::tls::ClusterTls;

/// A compiled cluster, shared by all workers.
#[derive(Debug)]
pub struct Cluster {
    /// What the control plane says.
    pub config: Arc<model::Cluster>,
    /// Counters.
    pub stats: Arc<ClusterStats>,
    /// Limits.
    pub circuit: Circuit,
}

impl Cluster {
    /// A cluster; static endpoints are in force at once, others come by [`Cluster::set_endpoints`] (EDS) or after
    /// [`Cluster::start`] (DNS).
    pub fn new(config: Arc<model::Cluster>, tls: ClusterTls) -> Arc<Self> {
        let _ = tls;
        Arc::new(Self { circuit: Circuit::new(config.circuit_breakers), config, stats: Arc::default() })
    }
    /// A new version of `old`: shares its counters, what its circuit breakers have in use, and state of endpoints.
    pub fn successor(config: Arc<model::Cluster>, tls: ClusterTls, old: &Cluster) -> Arc<Self> {
        let _ = old;
        Self::new(config, tls)
    }
    /// Starts what the cluster does by itself (DNS, health checks, outlier sweeps) on the control thread's runtime. Ends
    /// when the cluster is dropped.
    pub fn start(self: &Arc<Self>, control: &tokio::runtime::Handle) {
        let _ = control;
    }
    /// Resolves when the cluster counts as warm: the first endpoints (and first health checks) are there.
    pub async fn warmed(&self) {}
    /// Whether the cluster is warm.
    pub fn is_warm(&self) -> bool {
        true
    }
    /// New endpoints (EDS). State of those that stay is kept by address.
    pub fn set_endpoints(&self, set: Arc<model::EndpointSet>) {
        let _ = set;
    }
    /// All endpoints, in order of configuration.
    pub fn endpoints(&self) -> Vec<Arc<Endpoint>> {
        vec![]
    }
    /// Chooses an endpoint.
    ///
    /// # Errors
    /// When there is none that may take the request.
    pub fn pick(&self, ctx: &LbContext<'_>, random: &impl Random) -> Result<Arc<Endpoint>, PickError> {
        let _ = (ctx, random);
        Err(PickError::NoHealthy)
    }
    /// Whether there are endpoints at all that a request could go to.
    pub fn has_healthy(&self) -> bool {
        false
    }
    /// Tells passive health checks what happened. `Pools::send` reports answers, connect failures and resets by itself;
    /// callers report timeouts of theirs.
    pub fn report(&self, endpoint: &Arc<Endpoint>, outcome: Outcome, random: &impl Random) {
        let _ = (endpoint, outcome, random);
    }
    /// Allows a retry, or not (`upstream_rq_retry_overflow`).
    pub fn try_retry(&self, priority: Priority) -> Option<RetryPermit> {
        self.circuit.try_retry(priority)
    }
}
