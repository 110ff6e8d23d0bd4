//! Who opened a stream, and whether what its node claims fits.
//!
//! Owns the decision per stream. Must not know how a certificate or token is verified: `ca` does that, behind
//! [`Authenticate`].

use std::{fmt, net::SocketAddr, sync::Arc};

use futures_util::future::BoxFuture;
use http::{HeaderMap, header};
use mesh_api::identity::SpiffeId;
use rustls_pki_types::CertificateDer;

use super::node::Client;

/// What a connection tells before anything is asked on it.
#[derive(Debug, Clone, Default)]
pub struct Peer {
    /// The other end.
    pub address: Option<SocketAddr>,
    /// Its certificates, leaf first, verified by the TLS handshake already; `None`: it showed none.
    pub certificates: Option<Arc<[CertificateDer<'static>]>>,
}

/// Finds out who calls.
pub trait Authenticate: fmt::Debug + Send + Sync + 'static {
    /// The workload behind a certificate or a bearer token; the error is for the client's eyes.
    fn authenticate<'a>(&'a self, peer: &'a Peer, bearer: Option<&'a str>) -> BoxFuture<'a, Result<SpiffeId, String>>;
}

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
    ///
    /// # Errors
    /// When it does not fit.
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

/// The token of `authorization: Bearer`; `None`: there is none.
///
/// # Errors
/// When there are several headers: then it is open which of them counts.
pub fn bearer(headers: &HeaderMap) -> Result<Option<&str>, &'static str> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err("several authorization headers");
    }
    let token = value.to_str().ok().and_then(|v| v.split_once(' '));
    Ok(token.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")).map(|(_, token)| token.trim()))
}
