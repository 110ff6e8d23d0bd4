//! What a finished handshake says about both ends: names, certificates, protocol facts.

use std::sync::{Arc, OnceLock};

use mesh_api::model::Name;
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{provider, san};

/// Names and facts of one certificate.
#[derive(Debug, Clone)]
pub struct CertificateFacts {
    /// The SPIFFE id, when the certificate has exactly one URI name and that is a well-formed SPIFFE id.
    pub spiffe: Option<Name>,
    /// URI subject alternative names.
    pub uri_sans: Vec<Name>,
    /// DNS subject alternative names.
    pub dns_sans: Vec<Name>,
    /// IP subject alternative names, as text.
    pub ip_sans: Vec<Name>,
    /// E-mail subject alternative names.
    pub email_sans: Vec<Name>,
    /// Subject in RFC 2253 form.
    pub subject: Name,
    /// Issuer in RFC 2253 form.
    pub issuer: Name,
    /// Serial number, hex, lower case.
    pub serial: Name,
    /// Seconds since the epoch.
    pub not_before: i64,
    /// Seconds since the epoch.
    pub not_after: i64,
    der: CertificateDer<'static>,
    sha256: OnceLock<Name>,
}

impl CertificateFacts {
    /// Reads a certificate.
    ///
    /// # Errors
    /// When the bytes are not an X.509 certificate or hold names that cannot be read.
    pub fn parse(der: &CertificateDer<'_>) -> Result<Self, String> {
        let (rest, cert) = X509Certificate::from_der(der).map_err(|e| format!("not an X.509 certificate: {e}"))?;
        if !rest.is_empty() {
            return Err("trailing bytes after the certificate".to_owned());
        }
        let names = san::Names::of(&cert)?;
        let spiffe = names.spiffe_id();
        Ok(Self {
            spiffe,
            uri_sans: names.uri,
            dns_sans: names.dns,
            ip_sans: names.ip.iter().map(|ip| Name::from(ip.to_string())).collect(),
            email_sans: names.email,
            subject: san::rfc2253(cert.subject()).into(),
            issuer: san::rfc2253(cert.issuer()).into(),
            serial: provider::hex(cert.raw_serial().strip_prefix(&[0]).unwrap_or(cert.raw_serial())).into(),
            not_before: cert.validity().not_before.timestamp(),
            not_after: cert.validity().not_after.timestamp(),
            der: der.clone().into_owned(),
            sha256: OnceLock::new(),
        })
    }

    /// SHA-256 of the certificate, hex, lower case.
    pub fn sha256(&self) -> &Name {
        self.sha256.get_or_init(|| provider::hex(&provider::sha256(&self.der)).into())
    }

    /// The certificate.
    pub fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }
}

/// What is known about a TLS connection after its handshake.
#[derive(Debug, Clone, Default)]
pub struct PeerInfo {
    /// The peer's leaf; `None`: it presented none.
    pub certificate: Option<Arc<CertificateFacts>>,
    /// The peer's chain as presented, leaf first.
    pub chain: Arc<[CertificateDer<'static>]>,
    /// The peer's certificate was verified against trust anchors (and all conditions held).
    pub validated: bool,
    /// The certificate that we presented.
    pub local: Option<Arc<CertificateFacts>>,
    /// `TLSv1.3`.
    pub version: &'static str,
    /// OpenSSL name: `TLS_AES_128_GCM_SHA256`, `ECDHE-RSA-AES128-GCM-SHA256`.
    pub cipher: &'static str,
    /// Key exchange group.
    pub group: &'static str,
    /// Negotiated protocol.
    pub alpn: Option<Name>,
    /// Server name the client sent, lower case.
    pub sni: Option<Name>,
    /// Generation of the context that this handshake used.
    pub generation: u64,
}

impl PeerInfo {
    /// The peer's SPIFFE id; only of a certificate that was validated.
    pub fn spiffe(&self) -> Option<&Name> {
        if self.validated { self.certificate.as_ref()?.spiffe.as_ref() } else { None }
    }

    /// The peer's URI names (also of a certificate that was not validated).
    pub fn uri_sans(&self) -> &[Name] {
        self.certificate.as_ref().map_or(&[], |c| &c.uri_sans)
    }

    /// The peer's DNS names (also of a certificate that was not validated).
    pub fn dns_sans(&self) -> &[Name] {
        self.certificate.as_ref().map_or(&[], |c| &c.dns_sans)
    }

    /// Whether the peer presented a certificate.
    pub fn peer_presented(&self) -> bool {
        self.certificate.is_some()
    }
}
