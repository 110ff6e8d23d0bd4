//! TLS in both directions: certificates, trust, handshakes and what is known of a peer afterwards.
//!
//! Owns the crypto provider, the store of current secrets, the verifier (chains, SPIFFE ids, names, hashes, revocation)
//! and the wrapped streams. Configurations are built once per change of a secret, never per connection. Must not know
//! xDS, HTTP or clusters' load balancing: it takes plain model values and byte streams.

mod client;
mod cluster;
mod context;
mod files;
mod material;
mod peer;
mod provider;
mod san;
mod server;
mod store;
mod stream;
#[cfg(test)]
mod tests;
mod verify;

pub use client::{ClientTls, ConnectOptions};
pub use cluster::ClusterTls;
pub use files::watch_files;
pub use material::{CertificateMaterial, Material, TrustMaterial};
pub use peer::{CertificateFacts, PeerInfo};
pub use provider::install_default_provider;
pub use server::ServerTls;
pub use store::{LOCAL_SDS_CLUSTER, SecretState, SecretStore, Slot};
pub use stream::{ClientStream, ServerStream};

use mesh_api::model::Name;

/// Why TLS cannot be set up or a handshake failed. `Display` is what logs and `upstream_transport_failure_reason` say.
#[derive(Debug, Clone, thiserror::Error)]
pub enum TlsError {
    /// A secret that the context needs has not arrived (or was refused): every handshake is broken off.
    #[error("TLS_error: secret {0} is not available")]
    NotReady(Name),
    /// The configuration or a secret cannot be used.
    #[error("{0}")]
    Config(String),
    /// The peer's certificate was refused by us.
    #[error("TLS_error: CERTIFICATE_VERIFY_FAILED: {0}")]
    Verify(String),
    /// The handshake failed otherwise (the peer's alert, no common version, garbage).
    #[error("TLS_error: {0}")]
    Handshake(String),
    /// The connection broke during the handshake.
    #[error("TLS_error: connection lost in handshake: {0}")]
    Io(String),
}

impl TlsError {
    /// Whether the peer's certificate is the cause.
    pub fn is_verify(&self) -> bool {
        matches!(self, Self::Verify(_))
    }

    pub(crate) fn config(text: impl Into<String>) -> Self {
        Self::Config(text.into())
    }

    /// Sorts the error of a handshake as tokio-rustls returns it.
    pub(crate) fn from_handshake(e: &std::io::Error) -> Self {
        match e.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(rustls::Error::InvalidCertificate(reason)) => Self::Verify(verify::describe(reason)),
            Some(rustls::Error::NoCertificatesPresented) => {
                Self::Verify("peer did not return a certificate".to_owned())
            }
            Some(other) => Self::Handshake(other.to_string()),
            None => Self::Io(e.to_string()),
        }
    }
}
