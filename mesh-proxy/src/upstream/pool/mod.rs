//! Upstream connections of one worker.

use std::{net::SocketAddr, sync::Arc};

use mesh_api::model::Name;

use super::{Cluster, Endpoint, Priority, UpstreamError};
use crate::http::message::{Body, RequestHead, ResponseHead};

/// What sending may depend on beside the request itself.
#[derive(Debug, Clone, Copy, Default)]
pub struct SendOptions<'a> {
    /// Whose limits apply.
    pub priority: Priority,
    /// ALPN instead of the TLS context's (Istio's ALPN filter).
    pub alpn: Option<&'a [Name]>,
    /// Host that SNI and name checks follow when the TLS context says so; `None`: the request's authority.
    pub server_name: Option<&'a str>,
    /// Source and destination for a PROXY protocol header, when the cluster sends one.
    pub proxied: Option<(SocketAddr, SocketAddr)>,
}

/// Pools by endpoint.
#[derive(Debug, Default)]
pub struct Pools {}

impl Pools {
    /// Empty.
    pub fn new() -> Self {
        Self {}
    }

    /// Sends a request to an endpoint and waits for the head of its answer. Circuit breakers, connecting, the choice of
    /// HTTP version, passive health checks and counters are taken care of; retries and timeouts are the caller's: to give
    /// up, drop the future (before the head) or the body (after it).
    ///
    /// # Errors
    /// When no head arrived.
    pub async fn send(
        &self,
        cluster: &Arc<Cluster>,
        endpoint: &Arc<Endpoint>,
        head: RequestHead,
        body: Body,
        options: &SendOptions<'_>,
    ) -> Result<(ResponseHead, Body), UpstreamError> {
        let _ = (cluster, endpoint, head, body, options);
        Err(UpstreamError::new(super::ErrorKind::Overflow, ""))
    }
}
