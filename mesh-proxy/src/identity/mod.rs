//! The identity of this workload: a key that never leaves the process (but for a local Envoy), a certificate for it from
//! the mesh's CA, renewed in time.
//!
//! Owns the request, the client of the CA, the schedule of renewals, the copy in the state folder and the Unix socket
//! on which a local Envoy is served. Puts what it gets into [`SecretStore`](crate::tls::SecretStore) under the names
//! [`CERTIFICATE`] and [`ROOTS`]; must not know who uses it there.

mod ca_client;
mod control_plane;
mod csr;
mod rotate;
mod schedule;
mod sds_server;
mod storage;
mod trust;

use std::{path::PathBuf, time::Duration};

pub use control_plane::{ControlPlane, KEEPALIVE};
pub use rotate::{Status, keep};
pub use sds_server::{agent, serve_secrets};

/// Name of the secret with the workload's certificate.
pub const CERTIFICATE: &str = "default";
/// Name of the secret with the mesh's trust anchors.
pub const ROOTS: &str = "ROOTCA";

/// Where the identity comes from.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `HOST:PORT` of the control plane.
    pub control: String,
    /// Trust anchors of the control plane, PEM. Read again when it changes; what joins the mesh's own roots there is
    /// trusted at once.
    pub root_cert: PathBuf,
    /// The workload's token. Read again at every attempt; `None`: only renewal by certificate works.
    pub token: Option<PathBuf>,
    /// Life to ask for.
    pub ttl: Duration,
    /// Id of the cluster the workload runs in; empty: not told.
    pub cluster_id: String,
    /// Keeps key and certificate over a restart (private files, best in memory); `None`: nothing is written.
    pub state_dir: Option<PathBuf>,
}

/// Why there is no new certificate.
#[derive(Debug, Clone, thiserror::Error)]
pub enum IdentityError {
    /// What this process was given is of no use: no address, no readable root, no token.
    #[error("{0}")]
    Settings(String),
    /// The control plane cannot be reached or spoken to.
    #[error("control plane {address}: {reason}")]
    Connect {
        /// Its address.
        address: String,
        /// What happened.
        reason: String,
    },
    /// The CA refused.
    #[error("the CA refused: {0}")]
    Refused(String),
    /// The CA's answer is of no use.
    #[error("the CA's answer is of no use: {0}")]
    Answer(String),
}
