//! Secrets as handshakes need them: parsed, checked (a key fits its certificate) and ready to be shared.

use std::{fmt, path::PathBuf, sync::Arc};

use mesh_api::model::{DataSource, Name, SecretKind, TlsCertificate, ValidationContext};
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, TrustAnchor, pem::PemObject};
use webpki::{CertRevocationList, OwnedCertRevocationList};

use super::{CertificateFacts, TlsError, provider};

/// Largest file that is read as a certificate, key, bundle or list.
const FILE_MAX: u64 = 8 << 20;

/// A secret that passed its checks.
#[derive(Debug, Clone)]
pub enum Material {
    /// Certificate and key.
    Certificate(Arc<CertificateMaterial>),
    /// Trust anchors and conditions.
    Trust(Arc<TrustMaterial>),
}

impl Material {
    /// Certificates for people to look at: trust anchors, own chain.
    pub fn facts(&self) -> (Vec<Arc<CertificateFacts>>, Vec<Arc<CertificateFacts>>) {
        match self {
            Material::Certificate(own) => (vec![], own.chain.clone()),
            Material::Trust(trust) => (trust.roots().cloned().collect(), vec![]),
        }
    }
}

/// A certificate chain with the key that fits it.
pub struct CertificateMaterial {
    /// What rustls signs with.
    pub(crate) key: Arc<CertifiedKey>,
    /// The leaf.
    pub facts: Arc<CertificateFacts>,
    /// Every certificate of the chain, leaf first.
    pub chain: Vec<Arc<CertificateFacts>>,
    /// The chain as PEM.
    pub chain_pem: Name,
    key_pem: Name,
}

impl CertificateMaterial {
    /// The private key as PEM. It goes to a local Envoy over a private socket and to the state directory, nowhere else.
    pub fn private_key_pem(&self) -> &str {
        &self.key_pem
    }
}

impl fmt::Debug for CertificateMaterial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CertificateMaterial").field("facts", &self.facts).field("key", &"[redacted]").finish()
    }
}

/// Trust anchors, revocation lists and the conditions that came with them.
#[derive(Debug)]
pub struct TrustMaterial {
    /// The context as declared.
    pub context: ValidationContext,
    /// Anchors that serve every trust domain.
    pub(crate) anchors: Anchors,
    /// Anchors by SPIFFE trust domain.
    pub(crate) domains: Vec<(Name, Anchors)>,
    /// Revocation lists.
    pub(crate) crls: Vec<CertRevocationList<'static>>,
    /// The bundle as PEM; empty without one.
    pub ca_pem: Name,
}

/// A set of trust anchors.
#[derive(Debug, Default)]
pub(crate) struct Anchors {
    pub(crate) anchors: Vec<TrustAnchor<'static>>,
    pub(crate) facts: Vec<Arc<CertificateFacts>>,
}

impl TrustMaterial {
    /// The anchors' certificates, those of SPIFFE trust domains too.
    pub fn roots(&self) -> impl Iterator<Item = &Arc<CertificateFacts>> {
        self.anchors.facts.iter().chain(self.domains.iter().flat_map(|(_, a)| &a.facts))
    }
}

/// The files that a secret is read from.
pub(crate) fn files_of(kind: &SecretKind) -> Vec<PathBuf> {
    let mut out = vec![];
    let mut add = |source: &DataSource| {
        if let DataSource::File(path) = source {
            out.push(path.clone());
        }
    };
    match kind {
        SecretKind::Certificate(cert) => {
            add(&cert.chain);
            add(&cert.key.0);
        }
        SecretKind::Validation(context) => {
            context.trusted_ca.iter().for_each(&mut add);
            context.crl.iter().for_each(&mut add);
            context.spiffe_trust_domains.iter().for_each(|(_, source)| add(source));
        }
    }
    out
}

/// The file that a secret's certificates (its trust anchors) are read from.
pub(crate) fn certificate_file(kind: &SecretKind) -> Option<PathBuf> {
    let source = match kind {
        SecretKind::Certificate(cert) => Some(&cert.chain),
        SecretKind::Validation(context) => context.trusted_ca.as_ref(),
    };
    match source {
        Some(DataSource::File(path)) => Some(path.clone()),
        _ => None,
    }
}

/// Reads and checks a secret. Files are read now (they are small, and this never runs on a worker).
pub(crate) fn load(kind: &SecretKind) -> Result<Material, TlsError> {
    match kind {
        SecretKind::Certificate(cert) => certificate(cert).map(|c| Material::Certificate(Arc::new(c))),
        SecretKind::Validation(context) => validation(context).map(|t| Material::Trust(Arc::new(t))),
    }
}

fn read(source: &DataSource, what: &str) -> Result<Name, TlsError> {
    match source {
        DataSource::Inline(text) => Ok(text.clone()),
        DataSource::File(path) => {
            let fail = |e: String| TlsError::Config(format!("{what}: {}: {e}", path.display()));
            let size = std::fs::metadata(path).map_err(|e| fail(e.to_string()))?.len();
            if size > FILE_MAX {
                return Err(fail(format!("{size} bytes, {FILE_MAX} are allowed")));
            }
            std::fs::read_to_string(path).map(Name::from).map_err(|e| fail(e.to_string()))
        }
    }
}

fn certificate(cert: &TlsCertificate) -> Result<CertificateMaterial, TlsError> {
    let chain_pem = read(&cert.chain, "certificate_chain")?;
    let key_pem = read(&cert.key.0, "private_key")?;
    let ders = certificates(&chain_pem, "certificate_chain")?;
    let chain = ders
        .iter()
        .map(|der| CertificateFacts::parse(der).map(Arc::new))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| TlsError::Config(format!("certificate_chain: {e}")))?;
    let facts = chain.first().cloned().ok_or_else(|| TlsError::config("certificate_chain: no certificate in it"))?;
    let key =
        PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(|e| TlsError::Config(format!("private_key: {e}")))?;
    let key = provider::default_provider()
        .key_provider
        .load_private_key(key)
        .map_err(|e| TlsError::Config(format!("private_key: {e}")))?;
    let certified = CertifiedKey::new(ders, key);
    certified.keys_match().map_err(|_| TlsError::config("private_key does not belong to the certificate"))?;
    Ok(CertificateMaterial { key: Arc::new(certified), facts, chain, chain_pem, key_pem })
}

fn validation(context: &ValidationContext) -> Result<TrustMaterial, TlsError> {
    let ca_pem = match &context.trusted_ca {
        Some(source) => read(source, "trusted_ca")?,
        None => "".into(),
    };
    let anchors = if context.trusted_ca.is_some() {
        anchors(certificates(&ca_pem, "trusted_ca")?, "trusted_ca")?
    } else if context.system_roots {
        system_roots()?
    } else {
        Anchors::default()
    };
    let mut domains = vec![];
    for (domain, source) in &context.spiffe_trust_domains {
        let what = format!("trust bundle of {domain}");
        domains.push((domain.clone(), self::anchors(certificates(&read(source, &what)?, &what)?, &what)?));
    }
    let crls = match &context.crl {
        Some(source) => revocation_lists(&read(source, "crl")?)?,
        None => vec![],
    };
    let ca_pem = if context.system_roots && context.trusted_ca.is_none() { pem_of(&anchors).into() } else { ca_pem };
    Ok(TrustMaterial { context: context.clone(), anchors, domains, crls, ca_pem })
}

fn certificates(pem: &str, what: &str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let ders = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| TlsError::Config(format!("{what}: {e}")))?;
    if ders.is_empty() {
        return Err(TlsError::Config(format!("{what}: no certificate in it")));
    }
    Ok(ders)
}

fn anchors(ders: Vec<CertificateDer<'static>>, what: &str) -> Result<Anchors, TlsError> {
    let mut out = Anchors::default();
    for der in ders {
        let facts = CertificateFacts::parse(&der).map_err(|e| TlsError::Config(format!("{what}: {e}")))?;
        match webpki::anchor_from_trusted_cert(&der) {
            Ok(anchor) => out.anchors.push(anchor.to_owned()),
            // Less trust is the safe side; a bundle may hold oddities beside what is needed.
            Err(e) => tracing::warn!(subject = %facts.subject, error = %e, "{what}: certificate left out"),
        }
        out.facts.push(Arc::new(facts));
    }
    if out.anchors.is_empty() {
        return Err(TlsError::Config(format!("{what}: no certificate in it can be a trust anchor")));
    }
    Ok(out)
}

fn system_roots() -> Result<Anchors, TlsError> {
    let found = rustls_native_certs::load_native_certs();
    let mut out = Anchors::default();
    for der in found.certs {
        if let (Ok(anchor), Ok(facts)) = (webpki::anchor_from_trusted_cert(&der), CertificateFacts::parse(&der)) {
            out.anchors.push(anchor.to_owned());
            out.facts.push(Arc::new(facts));
        }
    }
    if out.anchors.is_empty() {
        let why = found.errors.first().map_or_else(String::new, |e| format!(": {e}"));
        return Err(TlsError::Config(format!("the system has no trust anchors{why}")));
    }
    Ok(out)
}

fn revocation_lists(pem: &str) -> Result<Vec<CertRevocationList<'static>>, TlsError> {
    let fail = |e: String| TlsError::Config(format!("crl: {e}"));
    let mut out = vec![];
    for der in CertificateRevocationListDer::pem_slice_iter(pem.as_bytes()) {
        let der = der.map_err(|e| fail(e.to_string()))?;
        let list = OwnedCertRevocationList::from_der(&der).map_err(|e| fail(e.to_string()))?;
        out.push(CertRevocationList::from(list));
    }
    if out.is_empty() { Err(fail("no revocation list in it".to_owned())) } else { Ok(out) }
}

fn pem_of(anchors: &Anchors) -> String {
    anchors.facts.iter().map(|f| pem_encode("CERTIFICATE", f.der())).collect()
}

/// PEM text of DER bytes.
pub(crate) fn pem_encode(label: &str, der: &[u8]) -> String {
    use base64::Engine as _;
    let body = base64::engine::general_purpose::STANDARD.encode(der);
    let mut out = format!("-----BEGIN {label}-----\n");
    let mut rest = body.as_str();
    while !rest.is_empty() {
        let (line, tail) = rest.split_at(rest.len().min(64));
        out.push_str(line);
        out.push('\n');
        rest = tail;
    }
    out.push_str(&format!("-----END {label}-----\n"));
    out
}
