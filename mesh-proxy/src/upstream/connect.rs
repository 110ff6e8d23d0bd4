//! Making connections.

use std::{net::SocketAddr, rc::Rc, sync::Arc};

use tokio::net::TcpStream;

use super::{Cluster, Endpoint, Priority, UpstreamError};
use crate::http::message::UpstreamConnection;
use mesh_api::model::Name;

/// What a connection may depend on beside cluster and endpoint.
#[derive(Debug, Clone, Copy, Default)]
pub struct ConnectOptions<'a> {
    /// Whose limits it counts against.
    pub priority: Priority,
    /// Host that SNI and name checks follow when the TLS context says so (`auto_sni`).
    pub server_name: Option<&'a str>,
    /// ALPN instead of the TLS context's.
    pub alpn: Option<&'a [Name]>,
    /// Source and destination for a PROXY protocol header, when the cluster sends one.
    pub proxied: Option<(SocketAddr, SocketAddr)>,
}

/// A connection to an endpoint.
#[derive(Debug)]
pub struct UpstreamIo {
    stream: TcpStream,
}

/// Dials an endpoint: TCP or Unix socket, PROXY protocol header, TLS.
///
/// # Errors
/// When it cannot be reached in time, or no more connections are allowed.
pub async fn connect(
    cluster: &Arc<Cluster>,
    endpoint: &Arc<Endpoint>,
    options: &ConnectOptions<'_>,
) -> Result<(UpstreamIo, Rc<UpstreamConnection>), UpstreamError> {
    let _ = (cluster, endpoint, options);
    Err(UpstreamError::new(super::ErrorKind::ConnectFailure, ""))
}
