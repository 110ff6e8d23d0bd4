//! What a CA signs with: key, certificate, the chain up to its root and the roots, checked as a whole before use.

use std::{
    collections::BTreeMap,
    path::Path,
    time::{Duration, SystemTime},
};

use mesh_api::identity::TrustDomain;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem::PemObject};
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{
    CaError,
    issuer::{self, Subject, offset, random_serial, unix},
    state,
};

/// File of the self-signed root in the state folder: its key and its certificate.
pub(crate) const ROOT_FILE: &str = "root-ca.pem";
/// Life of a self-signed root.
const ROOT_LIFE: Duration = Duration::from_secs(10 * 365 * 86400);
/// A self-signed root with less life than this is renewed, with the same key, so that nobody has to trust anew.
const ROOT_RENEW: Duration = Duration::from_secs(365 * 86400);
/// Certificates in one bundle.
const MAX_CERTIFICATES: usize = 100;

/// Keys and certificates of a CA.
pub(crate) struct Material {
    pub(crate) issuer: Issuer<'static, KeyPair>,
    /// What follows the leaf: the signing certificate and those above it, without roots.
    pub(crate) chain: Vec<CertificateDer<'static>>,
    /// Trust anchors; the one that this CA hangs on among them.
    pub(crate) roots: Vec<CertificateDer<'static>>,
    /// Those of them that it hangs on: one, or more with a root that was renewed or is cross-signed.
    pub(crate) anchors: Vec<CertificateDer<'static>>,
    /// End of the signing certificate.
    pub(crate) not_after: SystemTime,
}

impl std::fmt::Debug for Material {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Material").field("roots", &self.roots.len()).field("not_after", &self.not_after).finish()
    }
}

fn bad(text: impl Into<String>) -> CaError {
    CaError::Material(text.into())
}

impl Material {
    /// The self-signed root of the state folder, made when there is none.
    ///
    /// # Errors
    /// When the file is damaged: a new root would cut off every workload, so that is left to the operator.
    pub(crate) fn self_signed(state_dir: &Path, trust_domain: &TrustDomain, now: SystemTime) -> anyhow::Result<Self> {
        let path = state_dir.join(ROOT_FILE);
        if state::read_private(&path)?.is_none() {
            let key = KeyPair::generate()?;
            let pem = root_pem(&key, trust_domain, now)?;
            if state::create(&path, &pem, state::PRIVATE)? {
                tracing::info!(file = %path.display(), "made a new self-signed root certificate");
            }
        }
        let damaged = |error: CaError| {
            anyhow::anyhow!(
                "{} is damaged ({error}): restore it, or remove it to start with a new root, which no workload \
                 trusts before it has a new certificate",
                path.display()
            )
        };
        let text = state::read_private(&path)?.unwrap_or_default();
        let (key, certificate) = parse_root(&text).map_err(damaged)?;
        let facts = Facts::of(&certificate).map_err(damaged)?;
        if facts.not_after > now + ROOT_RENEW {
            return Self::root_of(key, certificate, now).map_err(damaged);
        }
        let pem = root_pem(&key, trust_domain, now)?;
        state::replace(&path, &pem, state::PRIVATE)?;
        tracing::info!(file = %path.display(), "renewed the self-signed root certificate");
        let (key, certificate) = parse_root(&pem).map_err(damaged)?;
        Self::root_of(key, certificate, now).map_err(damaged)
    }

    fn root_of(key: KeyPair, certificate: CertificateDer<'static>, now: SystemTime) -> Result<Self, CaError> {
        Self::checked(key, certificate.clone(), vec![], vec![certificate], now)
    }

    /// A CA from the content of Istio's Secret `cacerts`.
    ///
    /// # Errors
    /// When a part is missing, does not fit the others, or what it would sign does not verify.
    pub(crate) fn plugged_in(data: &BTreeMap<String, Vec<u8>>, now: SystemTime) -> Result<Self, CaError> {
        let field = |name: &str| data.get(name).filter(|d| !d.is_empty()).map(Vec::as_slice);
        let need = |name: &str| field(name).ok_or_else(|| bad(format!("{name} is missing")));
        let certificate = bundle(need("ca-cert.pem")?, "ca-cert.pem")?.swap_remove(0);
        let key = private_key(need("ca-key.pem")?).map_err(|e| bad(format!("ca-key.pem: {e}")))?;
        let roots = bundle(need("root-cert.pem")?, "root-cert.pem")?;
        let mut chain = match field("cert-chain.pem") {
            Some(pem) => bundle(pem, "cert-chain.pem")?,
            None => vec![],
        };
        // Istio wants the signing certificate at the head of the chain; people forget it.
        if !chain.contains(&certificate) {
            chain.insert(0, certificate.clone());
        }
        chain.retain(|c| !roots.contains(c));
        Self::checked(key, certificate, chain, roots, now)
    }

    fn checked(
        key: KeyPair,
        certificate: CertificateDer<'static>,
        chain: Vec<CertificateDer<'static>>,
        roots: Vec<CertificateDer<'static>>,
        now: SystemTime,
    ) -> Result<Self, CaError> {
        let facts = Facts::of(&certificate)?;
        if facts.public_key != rcgen::PublicKeyData::subject_public_key_info(&key) {
            return Err(bad("the key does not belong to the certificate"));
        }
        if !facts.is_ca {
            return Err(bad("the certificate is not one of a CA"));
        }
        if facts.not_after <= now {
            return Err(bad("the certificate has expired"));
        }
        let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(|e| bad(e.to_string()))?;
        let mut material = Self { issuer, chain, roots, anchors: vec![], not_after: facts.not_after };
        material.anchors = material.try_out(now)?;
        Ok(material)
    }

    /// Signs a certificate for nobody and verifies it as peers would. The roots that each of them alone would do.
    fn try_out(&self, now: SystemTime) -> Result<Vec<CertificateDer<'static>>, CaError> {
        let wrong = |e: String| bad(format!("what it signs does not verify against its roots: {e}"));
        let key = KeyPair::generate().map_err(|e| wrong(e.to_string()))?;
        let subject = Subject::Workload("spiffe://mesh/ns/none/sa/none".to_owned());
        let leaf = issuer::sign(self, &subject, &key, Duration::from_secs(60), now)?;
        let leaf = EndEntityCert::try_from(&leaf.leaf).map_err(|e| wrong(e.to_string()))?;
        let time = UnixTime::since_unix_epoch(unix(now));
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let algorithms = provider.signature_verification_algorithms.all;
        let mut reason = "no root can be read".to_owned();
        let mut anchors = Vec::new();
        for root in &self.roots {
            let Ok(anchor) = webpki::anchor_from_trusted_cert(root) else { continue };
            let usage = KeyUsage::client_auth();
            match leaf.verify_for_usage(algorithms, &[anchor], &self.chain, time, usage, None, None) {
                Ok(_) => anchors.push(root.clone()),
                Err(error) => reason = error.to_string(),
            }
        }
        if anchors.is_empty() { Err(wrong(reason)) } else { Ok(anchors) }
    }
}

/// What is read of a CA's certificate.
struct Facts {
    public_key: Vec<u8>,
    is_ca: bool,
    not_after: SystemTime,
}

impl Facts {
    fn of(der: &CertificateDer<'_>) -> Result<Self, CaError> {
        let (_, x509) = X509Certificate::from_der(der).map_err(|e| bad(format!("not an X.509 certificate: {e}")))?;
        let seconds = u64::try_from(x509.validity().not_after.timestamp()).unwrap_or(0);
        Ok(Self {
            public_key: x509.public_key().raw.to_vec(),
            is_ca: x509.is_ca(),
            not_after: SystemTime::UNIX_EPOCH + Duration::from_secs(seconds),
        })
    }
}

fn root_pem(key: &KeyPair, trust_domain: &TrustDomain, now: SystemTime) -> Result<String, CaError> {
    let fail = |e: rcgen::Error| CaError::Signing(e.to_string());
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, trust_domain.as_str());
    params.distinguished_name.push(DnType::CommonName, "Root CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = offset(now - Duration::from_secs(60))?;
    params.not_after = offset(now + ROOT_LIFE)?;
    params.serial_number = Some(random_serial());
    let certificate = params.self_signed(key).map_err(fail)?;
    Ok(format!("{}{}", key.serialize_pem(), certificate.pem()))
}

fn parse_root(pem: &str) -> Result<(KeyPair, CertificateDer<'static>), CaError> {
    let key = private_key(pem.as_bytes())?;
    let certificate = bundle(pem.as_bytes(), "certificate")?.swap_remove(0);
    Ok((key, certificate))
}

fn private_key(pem: &[u8]) -> Result<KeyPair, CaError> {
    let der = PrivateKeyDer::from_pem_slice(pem).map_err(|_| bad("no private key in it"))?;
    KeyPair::try_from(&der).map_err(|_| bad("kind of private key not supported"))
}

/// The certificates of a PEM text, at least one.
fn bundle(pem: &[u8], what: &str) -> Result<Vec<CertificateDer<'static>>, CaError> {
    let ders = CertificateDer::pem_slice_iter(pem)
        .take(MAX_CERTIFICATES)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| bad(format!("{what}: {e}")))?;
    if ders.is_empty() { Err(bad(format!("{what}: no certificate in it"))) } else { Ok(ders) }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    fn ca(name: &str, key: &KeyPair, by: Option<&Issuer<'_, KeyPair>>) -> (String, CertificateParams) {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let certificate = match by {
            Some(issuer) => params.signed_by(key, issuer).unwrap(),
            None => params.self_signed(key).unwrap(),
        };
        (certificate.pem(), params)
    }

    /// The content of a Secret `cacerts` with an intermediate below a root of this name.
    pub(crate) fn cacerts(name: &str) -> BTreeMap<String, Vec<u8>> {
        let (root_key, key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let (root, params) = ca(name, &root_key, None);
        let issuer = Issuer::new(params, root_key);
        let (intermediate, _) = ca(&format!("{name} intermediate"), &key, Some(&issuer));
        let chain = format!("{intermediate}{root}");
        [
            ("ca-cert.pem", intermediate),
            ("ca-key.pem", key.serialize_pem()),
            ("cert-chain.pem", chain),
            ("root-cert.pem", root),
        ]
        .into_iter()
        .map(|(k, v)| (k.to_owned(), v.into_bytes()))
        .collect()
    }

    #[test]
    fn a_root_stays_and_a_damaged_one_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let now = SystemTime::now();
        let open = |now| Material::self_signed(dir.path(), &TrustDomain::default(), now);
        let first = open(now).unwrap().roots;
        assert_eq!(open(now).unwrap().roots, first);
        // Close to its end it is renewed with its key; what trusts either verifies what the other signed.
        let renewed = open(now + Duration::from_secs(9 * 365 * 86400 + 86400)).unwrap();
        assert_ne!(renewed.roots, first);
        assert_eq!(
            Facts::of(&renewed.roots[0]).unwrap().public_key,
            Facts::of(&first[0]).unwrap().public_key,
            "same key"
        );
        let path = dir.path().join(ROOT_FILE);
        let whole = std::fs::read_to_string(&path).unwrap();
        for damaged in ["", "garbage", &whole[..whole.len() / 2], &whole.replace("BEGIN PRIVATE", "BEGIN WHAT")] {
            std::fs::write(&path, damaged).unwrap();
            let error = open(now).unwrap_err().to_string();
            assert!(error.contains("damaged"), "{error}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), damaged, "untouched");
        }
    }

    #[test]
    fn plugged_in_parts_must_fit() {
        let now = SystemTime::now();
        let good = cacerts("one");
        let material = Material::plugged_in(&good, now).unwrap();
        assert_eq!((material.chain.len(), material.roots.len()), (1, 1), "the root is not sent");
        let mut without_chain = good.clone();
        without_chain.remove("cert-chain.pem");
        assert_eq!(Material::plugged_in(&without_chain, now).unwrap().chain.len(), 1);
        let other = cacerts("two");
        for field in ["ca-key.pem", "ca-cert.pem", "root-cert.pem"] {
            let mut data = good.clone();
            data.remove(field);
            let error = Material::plugged_in(&data, now).unwrap_err().to_string();
            assert!(error.contains(field), "{error}");
            data.insert(field.to_owned(), other[field].clone());
            assert!(Material::plugged_in(&data, now).is_err(), "{field} of another CA");
        }
    }
}
