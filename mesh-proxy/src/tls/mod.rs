//! TLS contexts of listeners and clusters, and the secrets they are built from.

/// A terminated TLS connection.
pub type ServerStream<S> = tokio_rustls::server::TlsStream<S>;

/// Current secrets by name.
#[derive(Debug, Default)]
pub struct SecretStore {}

/// What a handshake told about the peer.
#[derive(Debug, Clone)]
pub struct PeerInfo {}
