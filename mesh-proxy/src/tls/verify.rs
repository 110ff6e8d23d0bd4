//! The verifier for both directions: chain, revocation, SPIFFE ids, names and hashes, with Envoy's meaning.
//!
//! webpki builds and checks chains; everything about names is decided here, because web rules (the host must match) are
//! not mesh rules (an identity must match).

use std::{fmt, net::IpAddr, sync::Arc};

use mesh_api::model::Name;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};
use rustls_pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime};
use webpki::{
    EndEntityCert, ExpirationPolicy, KeyUsage, RevocationCheckDepth, RevocationOptionsBuilder, UnknownStatusPolicy,
};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{
    TlsError, TrustMaterial,
    provider::{hex, sha256},
    san::{self, Names, SanCheck},
};

/// More anchors than this are not named in a certificate request.
const MAX_HINTS: usize = 32;

/// Our own reason for refusing a certificate.
#[derive(Debug)]
struct Refusal(String);

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refusal {}

fn refuse(text: impl Into<String>) -> CertificateError {
    CertificateError::Other(OtherError(Arc::new(Refusal(text.into()))))
}

/// A verification failure in words.
pub(crate) fn describe(e: &CertificateError) -> String {
    match e {
        CertificateError::Other(OtherError(inner)) => inner.to_string(),
        CertificateError::UnknownIssuer => "unable to get local issuer certificate".to_owned(),
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => "certificate has expired".to_owned(),
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "certificate is not yet valid".to_owned()
        }
        CertificateError::Revoked => "certificate revoked".to_owned(),
        CertificateError::UnknownRevocationStatus => "unable to get certificate CRL".to_owned(),
        other => other.to_string(),
    }
}

/// Which end the certificate to check belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Peer {
    Client,
    Server,
}

/// A name that the server's certificate must carry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum WantedName {
    Dns(String),
    Ip(IpAddr),
}

impl WantedName {
    pub(crate) fn parse(host: &str) -> Self {
        match host.trim_start_matches('[').trim_end_matches(']').parse() {
            Ok(ip) => Self::Ip(ip),
            Err(_) => Self::Dns(host.to_owned()),
        }
    }

    fn carried_by(&self, names: &Names) -> bool {
        match self {
            Self::Dns(wanted) => names.dns.iter().any(|n| san::dns_name_matches(wanted, n)),
            Self::Ip(wanted) => names.ip.contains(wanted),
        }
    }
}

/// Everything that a peer's certificate must satisfy, compiled.
#[derive(Debug, Default)]
pub(crate) struct Trust {
    parts: Vec<Arc<TrustMaterial>>,
    anchors: Vec<TrustAnchor<'static>>,
    sans: Vec<SanCheck>,
    spki: Vec<Vec<u8>>,
    hashes: Vec<Name>,
    pub(crate) accept_untrusted: bool,
    spiffe: bool,
}

impl Trust {
    /// Joins contexts (one in the configuration, one by secret) as Envoy's combined context does.
    pub(crate) fn build(parts: Vec<Arc<TrustMaterial>>) -> Result<Self, TlsError> {
        let mut trust = Self::default();
        for part in &parts {
            let context = &part.context;
            trust.anchors.extend(part.anchors.anchors.iter().cloned());
            trust.accept_untrusted |= context.accept_untrusted;
            for matcher in &context.san_matchers {
                trust.sans.push(SanCheck::compile(matcher)?);
            }
            for hash in &context.spki_hashes {
                trust.spki.push(decode_spki(hash)?);
            }
            trust
                .hashes
                .extend(context.certificate_hashes.iter().map(|h| h.to_ascii_lowercase().replace(':', "").into()));
        }
        let has_domains = parts.iter().any(|p| !p.domains.is_empty());
        trust.spiffe = has_domains || (!trust.sans.is_empty() && trust.sans.iter().all(SanCheck::is_spiffe));
        if !trust.sans.is_empty() && trust.anchors.is_empty() && !has_domains {
            return Err(TlsError::config(
                "SAN-based verification of peer certificates without trusted CA is insecure and not allowed",
            ));
        }
        trust.parts = parts;
        Ok(trust)
    }

    /// Whether peers are identified by SPIFFE ids: then nothing is resumed and TLS is 1.3 only by default.
    pub(crate) fn is_spiffe(&self) -> bool {
        self.spiffe
    }

    /// Whether there is anything to check.
    pub(crate) fn demands(&self) -> bool {
        !self.anchors.is_empty() || self.by_domain() || !self.spki.is_empty() || !self.hashes.is_empty()
    }

    fn by_domain(&self) -> bool {
        self.parts.iter().any(|p| !p.domains.is_empty())
    }

    fn hints(&self) -> Vec<DistinguishedName> {
        let domains = self.parts.iter().flat_map(|p| &p.domains).flat_map(|(_, a)| &a.anchors);
        let all: Vec<_> = self.anchors.iter().chain(domains).collect();
        if all.len() > MAX_HINTS {
            return vec![];
        }
        all.iter().map(|a| DistinguishedName::in_sequence(a.subject.as_ref())).collect()
    }

    /// Checks a chain. `name` is looked for besides the declared matchers.
    pub(crate) fn check(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        peer: Peer,
        now: UnixTime,
        name: Option<&WantedName>,
    ) -> Result<(), CertificateError> {
        let parsed = match X509Certificate::from_der(leaf) {
            Ok(([], cert)) => cert,
            _ => return Err(CertificateError::BadEncoding),
        };
        let names = Names::of(&parsed).map_err(refuse)?;
        if self.spiffe && names.spiffe_id().is_none() {
            return Err(refuse(format!(
                "not exactly one SPIFFE id in the certificate (URI names: {})",
                names.uri.len()
            )));
        }
        self.check_chain(leaf, intermediates, &parsed, &names, peer, now)?;
        if let Some(wanted) = name
            && !wanted.carried_by(&names)
        {
            return Err(refuse(format!("verify SAN list: certificate is not for {}", display_name(wanted))));
        }
        if !self.sans.is_empty() && !self.sans.iter().any(|s| s.matches(&names)) {
            return Err(refuse(format!("verify SAN list: no name of the certificate matches ({})", display(&names))));
        }
        self.check_hashes(leaf, &parsed)
    }

    fn check_chain(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        parsed: &X509Certificate<'_>,
        names: &Names,
        peer: Peer,
        now: UnixTime,
    ) -> Result<(), CertificateError> {
        let by_domain = self.by_domain();
        let mut domain_anchors = vec![];
        let anchors: &[TrustAnchor<'_>] = if by_domain {
            let id = names.spiffe_id();
            let domain = id.as_deref().and_then(san::spiffe_trust_domain).unwrap_or_default();
            let sets = self.parts.iter().flat_map(|p| &p.domains).filter(|(d, _)| **d == *domain);
            domain_anchors.extend(sets.flat_map(|(_, a)| a.anchors.iter().cloned()));
            if domain_anchors.is_empty() {
                return Err(refuse(format!("no trust bundle for trust domain {domain:?}")));
            }
            &domain_anchors
        } else {
            &self.anchors
        };
        if anchors.is_empty() {
            return Ok(());
        }
        if !self.spiffe && self.is_pinned(leaf, parsed, now) {
            return Ok(());
        }
        let lists: Vec<_> = self.parts.iter().flat_map(|p| &p.crls).collect();
        let revocation = if lists.is_empty() {
            None
        } else {
            let options = RevocationOptionsBuilder::new(&lists).map_err(|_| refuse("no revocation list"))?;
            Some(
                options
                    .with_depth(RevocationCheckDepth::Chain)
                    .with_status_policy(UnknownStatusPolicy::Deny)
                    .with_expiration_policy(ExpirationPolicy::Enforce)
                    .build(),
            )
        };
        let usage = if peer == Peer::Client { KeyUsage::client_auth() } else { KeyUsage::server_auth() };
        let cert = EndEntityCert::try_from(leaf).map_err(|e| from_webpki(&e))?;
        cert.verify_for_usage(algorithms().all, anchors, intermediates, now, usage, revocation, None)
            .map(|_| ())
            .map_err(|e| from_webpki(&e))
    }

    /// A leaf that itself stands among the anchors is trusted, as OpenSSL does (self-signed test certificates): the CA
    /// bit does not matter then. Never for SPIFFE contexts.
    fn is_pinned(&self, leaf: &CertificateDer<'_>, parsed: &X509Certificate<'_>, now: UnixTime) -> bool {
        let listed = || self.parts.iter().flat_map(|p| &p.anchors.facts).any(|f| f.der().as_ref() == leaf.as_ref());
        let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        let validity = parsed.validity();
        listed()
            && (validity.not_before.timestamp()..=validity.not_after.timestamp()).contains(&now)
            && self.parts.iter().all(|p| p.crls.is_empty())
    }

    fn check_hashes(&self, leaf: &CertificateDer<'_>, parsed: &X509Certificate<'_>) -> Result<(), CertificateError> {
        if self.spki.is_empty() && self.hashes.is_empty() {
            return Ok(());
        }
        let by_hash = !self.hashes.is_empty() && {
            let got = hex(&sha256(leaf));
            self.hashes.iter().any(|h| **h == *got)
        };
        let by_key = !self.spki.is_empty() && {
            let got = sha256(parsed.public_key().raw);
            self.spki.contains(&got)
        };
        if by_hash || by_key { Ok(()) } else { Err(refuse("certificate hash or public key hash does not match")) }
    }
}

fn decode_spki(hash: &str) -> Result<Vec<u8>, TlsError> {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD
        .decode(hash)
        .ok()
        .filter(|h| h.len() == 32)
        .ok_or_else(|| TlsError::Config(format!("verify_certificate_spki: {hash:?} is not a base64 SHA-256")))
}

fn display_name(name: &WantedName) -> String {
    match name {
        WantedName::Dns(d) => format!("{d:?}"),
        WantedName::Ip(ip) => ip.to_string(),
    }
}

/// The names of a certificate for a message, a few at most.
fn display(names: &Names) -> String {
    let all: Vec<&str> = names.uri.iter().chain(&names.dns).chain(&names.email).map(|n| &**n).take(4).collect();
    if all.is_empty() { "it has none".to_owned() } else { all.join(", ") }
}

fn from_webpki(e: &webpki::Error) -> CertificateError {
    use webpki::Error as W;
    match e {
        W::BadDer | W::BadDerTime | W::TrailingData(_) => CertificateError::BadEncoding,
        W::CertNotValidYet { .. } => CertificateError::NotValidYet,
        W::CertExpired { .. } => CertificateError::Expired,
        W::UnknownIssuer => CertificateError::UnknownIssuer,
        W::CertRevoked => CertificateError::Revoked,
        W::UnknownRevocationStatus => CertificateError::UnknownRevocationStatus,
        W::CrlExpired { .. } => refuse("revocation list has expired"),
        W::CaUsedAsEndEntity => refuse("a CA certificate was presented as a leaf"),
        W::RequiredEkuNotFoundContext(_) => CertificateError::InvalidPurpose,
        W::InvalidSignatureForPublicKey => CertificateError::BadSignature,
        other => refuse(other.to_string()),
    }
}

fn algorithms() -> WebPkiSupportedAlgorithms {
    super::provider::default_provider().signature_verification_algorithms
}

/// rustls's view of a [`Trust`].
#[derive(Debug)]
pub(crate) struct Verifier {
    trust: Option<Arc<Trust>>,
    algorithms: WebPkiSupportedAlgorithms,
    mandatory: bool,
    hints: Vec<DistinguishedName>,
    name: Option<WantedName>,
}

impl Verifier {
    /// For our server side.
    pub(crate) fn of_clients(trust: Option<Arc<Trust>>, mandatory: bool, provider: &CryptoProvider) -> Arc<Self> {
        let hints = trust.as_ref().map(|t| t.hints()).unwrap_or_default();
        let algorithms = provider.signature_verification_algorithms;
        Arc::new(Self { trust, algorithms, mandatory, hints, name: None })
    }

    /// For our client side; `name` is looked for besides what the context demands.
    pub(crate) fn of_servers(
        trust: Option<Arc<Trust>>,
        name: Option<WantedName>,
        provider: &CryptoProvider,
    ) -> Arc<Self> {
        let algorithms = provider.signature_verification_algorithms;
        Arc::new(Self { trust, algorithms, mandatory: true, hints: vec![], name })
    }

    fn check(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        peer: Peer,
        now: UnixTime,
    ) -> Result<(), Error> {
        let Some(trust) = &self.trust else { return Ok(()) };
        match trust.check(leaf, intermediates, peer, now, self.name.as_ref()) {
            Err(_) if trust.accept_untrusted => Ok(()),
            other => other.map_err(Error::InvalidCertificate),
        }
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(end_entity, intermediates, Peer::Server, now).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Verifier {
    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.hints
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(end_entity, intermediates, Peer::Client, now).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
