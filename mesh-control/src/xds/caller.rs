//! Who opened a stream, and whether what its node claims fits.
//!
//! Owns the decision per stream. Must not know how a certificate or token is verified: `ca/authenticate.rs` does that.

use mesh_api::identity::SpiffeId;

use super::node::Client;

/// Who opened a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// Plaintext port: nobody is authenticated, claims are believed, secrets are not served.
    Unauthenticated,
    /// A workload of the mesh, by client certificate or token.
    Workload(SpiffeId),
}

impl Caller {
    /// Whether secrets may be served to it at all.
    pub fn may_have_secrets(&self) -> bool {
        matches!(self, Caller::Workload(_))
    }

    /// Whether what the node claims fits who it is; the error is for the client's eyes.
    pub fn permits(&self, client: &Client) -> Result<(), String> {
        let Caller::Workload(id) = self else { return Ok(()) };
        let namespace = client.namespace();
        if namespace != id.namespace {
            return Err(format!("{id} may not speak for a proxy of namespace {namespace:?}"));
        }
        let account = &client.metadata.service_account;
        if !account.is_empty() && *account != id.service_account {
            return Err(format!("{id} may not speak for a proxy of service account {account:?}"));
        }
        Ok(())
    }
}
