//! TLS contexts of listeners and clusters, and the secrets they are built from.

use std::{collections::BTreeMap, sync::Arc};

/// A terminated TLS connection.
pub type ServerStream<S> = tokio_rustls::server::TlsStream<S>;
/// An originated TLS connection.
pub type ClientStream<S> = tokio_rustls::client::TlsStream<S>;

/// Current secrets by name.
#[derive(Debug, Default)]
pub struct SecretStore {}

/// What a handshake told about the peer.
#[derive(Debug, Clone)]
pub struct PeerInfo {}

/// TLS towards upstreams.
#[derive(Debug)]
pub struct ClientTls {}

/// The TLS contexts of one cluster.
#[derive(Debug, Default)]
pub struct ClusterTls {}

impl ClusterTls {
    /// Cleartext for every endpoint.
    pub fn none() -> Self {
        Self::default()
    }
    /// The context for an endpoint with these `tls_labels`; `None`: cleartext.
    pub fn select(&self, _labels: &BTreeMap<String, String>) -> Option<&Arc<ClientTls>> {
        None
    }
}
