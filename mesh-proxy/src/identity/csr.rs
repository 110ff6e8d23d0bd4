//! A new key and the request to certify it.

use mesh_api::model::Name;
use rcgen::{CertificateParams, DistinguishedName, KeyPair};

use super::IdentityError;

/// A key (ECDSA P-256) and the request that proves that we have it.
pub(super) struct Request {
    /// PEM.
    pub(super) csr: String,
    /// PEM.
    pub(super) key: Name,
}

impl Request {
    /// The request names nobody: the CA knows who calls.
    pub(super) fn new() -> Result<Self, IdentityError> {
        let make = || -> Result<Self, rcgen::Error> {
            let key = KeyPair::generate()?;
            let mut params = CertificateParams::default();
            params.distinguished_name = DistinguishedName::new();
            let csr = params.serialize_request(&key)?.pem()?;
            Ok(Self { csr, key: key.serialize_pem().into() })
        };
        make().map_err(|e| IdentityError::Settings(format!("a key cannot be made: {e}")))
    }
}
