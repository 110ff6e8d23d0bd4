//! The certificate authority: who may have which identity, and the certificates that prove it.
//!
//! Owns the signing keys, the issuer of workload certificates, the tokens of workloads without Kubernetes, the
//! authentication of callers and the certificate of the xDS server. Must not know what streams carry or what the mesh
//! is configured to do: the trust domain and a plugged-in CA are handed in.
//!
//! An identity in a certificate always comes from the authenticated caller; of a certificate request only the public
//! key is used.

mod authenticate;
mod authority;
mod issuer;
mod material;
mod request;
mod root_config_maps;
mod root_secret;
mod server;
mod service;
pub(crate) mod state;
mod token;
mod token_review;
mod trust;

pub use authenticate::{Authenticator, LocalTokens, ServiceAccount, VerifyToken};
pub use authority::{Authority, Options, PluggedIn, ROOT_GRACE};
pub use issuer::Issued;
pub use root_config_maps::{ROOT_CONFIG_MAP, run as keep_root_config_maps};
pub use root_secret::RootSecret;
pub use server::{ServerNames, server_tls, webhook_tls};
pub use service::{CertificateService, grpc_service};
pub use token::{TOKEN_AUDIENCE, TokenKey, workload_token};
pub use token_review::TokenReviews;

/// Namespace and name of the Secret with a plugged-in CA.
pub const PLUGGED_IN_SECRET: (&str, &str) = ("istio-system", "cacerts");

/// Files of the state folder that all replicas of a control plane share: the self-signed root, and what is trusted.
pub const ROOT_FILES: [&str; 2] = [material::ROOT_FILE, trust::FILE];

/// Life of a workload certificate when the caller asks for none.
pub const DEFAULT_TTL: std::time::Duration = std::time::Duration::from_secs(24 * 3600);

/// Why a certificate is not issued or a CA cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// The certificate request is of no use.
    #[error("certificate request: {0}")]
    Request(String),
    /// Signing failed.
    #[error("signing failed: {0}")]
    Signing(String),
    /// The CA that is to sign is not known to all workloads.
    #[error("nobody signs before workloads know the roots of the new CA: in {0} s")]
    NotYet(u64),
    /// Keys and certificates of the CA do not work.
    #[error("{0}")]
    Material(String),
}
