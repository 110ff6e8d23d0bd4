//! Certificates of others than the mesh's authority: what an operator brings for gateways, and clients of those.
//!
//! This owns how they are made and which Secrets hold them. Who presents them is the scenarios'.

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
};
use serde_json::{Value, json};

/// An authority of its own.
#[derive(Debug)]
pub(super) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its certificate, PEM.
    pub(super) pem: String,
}

/// A certificate with its key, PEM.
#[derive(Debug)]
pub(super) struct Pair {
    certificate: String,
    key: String,
}

impl Authority {
    pub(super) fn new(name: &str) -> Result<Self> {
        let (key, mut params) = (KeyPair::generate()?, CertificateParams::default());
        params.distinguished_name = named(name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key)?.pem();
        Ok(Self { issuer: Issuer::new(params, key), pem })
    }

    /// A certificate with a name of its own, for a host or for a client.
    pub(super) fn issue(&self, name: &str, host: &str) -> Result<Pair> {
        let (key, mut params) = (KeyPair::generate()?, CertificateParams::new([host.to_owned()])?);
        params.distinguished_name = named(name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        Ok(Pair { certificate: params.signed_by(&key, &self.issuer)?.pem(), key: key.serialize_pem() })
    }

    /// A Secret of certificate and key, as `kubectl create secret tls` makes it; with the authority's own certificate
    /// for mutual TLS.
    pub(super) fn secret(&self, name: &str, pair: &Pair) -> Value {
        json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": { "name": name },
            "type": "kubernetes.io/tls",
            "stringData": { "tls.crt": pair.certificate, "tls.key": pair.key, "ca.crt": self.pem },
        })
    }
}

fn named(name: &str) -> DistinguishedName {
    let mut names = DistinguishedName::new();
    names.push(DnType::CommonName, name);
    names
}
