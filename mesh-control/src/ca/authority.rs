//! The certificate authority of a mesh: which CA signs now, which roots are trusted now.
//!
//! A CA from the Secret `cacerts` replaces the self-signed one as long as it is there. When the signing CA changes, the
//! roots before it stay trusted until everything that they vouch for has ended.

use std::{
    collections::BTreeMap,
    fmt::Write,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use base64::Engine as _;
use mesh_api::identity::{SpiffeId, TrustDomain};
use parking_lot::RwLock;
use rustls_pki_types::CertificateDer;

use super::{
    CaError, DEFAULT_TTL, Issued, TokenKey,
    issuer::{self, Subject, unix},
    material::Material,
    request, state,
};

/// The trust anchors, for sidecars to be started with.
const ROOT_CERT_FILE: &str = "root-cert.pem";

/// How to run an authority.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where keys and the self-signed root live.
    pub state_dir: PathBuf,
    /// Trust domain of the identities it vouches for.
    pub trust_domain: TrustDomain,
    /// Life of a certificate when nobody asks for one.
    pub default_ttl: Duration,
    /// Longest life.
    pub max_ttl: Duration,
}

impl Options {
    /// The usual lives.
    pub fn new(state_dir: impl Into<PathBuf>, trust_domain: TrustDomain) -> Self {
        let max_ttl = Duration::from_secs(90 * 86400);
        Self { state_dir: state_dir.into(), trust_domain, default_ttl: DEFAULT_TTL, max_ttl }
    }
}

/// The CA that signs, with everything that is trusted.
#[derive(Debug)]
struct Current {
    material: Arc<Material>,
    /// Roots of earlier CAs and until when they are trusted.
    earlier: Vec<(CertificateDer<'static>, SystemTime)>,
    /// All trusted roots, the signing CA's first.
    roots: Arc<[CertificateDer<'static>]>,
    roots_pem: Arc<str>,
    generation: u64,
}

/// Which trust domain identities are made in, and which others mean the same.
#[derive(Debug, PartialEq)]
struct Domains {
    own: TrustDomain,
    aliases: Vec<TrustDomain>,
}

/// The certificate authority.
#[derive(Debug)]
pub struct Authority {
    options: Options,
    domains: ArcSwap<Domains>,
    current: ArcSwap<Current>,
    /// Changes of `current` one after the other and not while a workload's certificate is signed; the Secret that was
    /// tried last.
    changing: RwLock<Option<BTreeMap<String, Vec<u8>>>>,
    /// End of the longest workload certificate signed by the current CA, seconds since the epoch.
    longest: AtomicU64,
    tokens: Arc<TokenKey>,
}

impl Authority {
    /// Opens the state folder: reads or makes the self-signed root and the key of tokens, writes `root-cert.pem`.
    ///
    /// # Errors
    /// When the folder cannot be used or holds a damaged root.
    pub fn open(options: Options) -> anyhow::Result<Arc<Self>> {
        state::ensure(&options.state_dir)?;
        let material = Material::self_signed(&options.state_dir, &options.trust_domain, SystemTime::now())?;
        let tokens = Arc::new(TokenKey::open(&options.state_dir)?);
        let domains = Domains { own: options.trust_domain.clone(), aliases: vec![] };
        let authority = Arc::new(Self {
            domains: ArcSwap::from_pointee(domains),
            current: ArcSwap::from_pointee(Current::new(Arc::new(material), vec![], 1)),
            changing: RwLock::new(None),
            longest: AtomicU64::new(0),
            tokens,
            options,
        });
        authority.publish()?;
        Ok(authority)
    }

    /// The key of tokens.
    pub fn tokens(&self) -> &Arc<TokenKey> {
        &self.tokens
    }

    /// Changes when the signing CA or the trusted roots do.
    pub fn generation(&self) -> u64 {
        self.current.load().generation
    }

    /// Trusted roots as PEM, those of the signing CA first.
    pub fn roots_pem(&self) -> Arc<str> {
        self.fresh().roots_pem.clone()
    }

    /// Trusted roots, those of the signing CA first.
    pub fn roots(&self) -> Arc<[CertificateDer<'static>]> {
        self.fresh().roots.clone()
    }

    /// The trust domain that identities are made in.
    pub fn trust_domain(&self) -> TrustDomain {
        self.domains.load().own.clone()
    }

    /// Sets the trust domain, and those whose identities are taken as ours.
    pub fn set_trust_domain(&self, own: TrustDomain, aliases: Vec<TrustDomain>) {
        let new = Domains { own, aliases };
        if **self.domains.load() != new {
            tracing::info!(trust_domain = %new.own, "trust domain of identities");
            self.domains.store(Arc::new(new));
        }
    }

    /// The identity that a workload of a namespace and service account has.
    ///
    /// # Errors
    /// When they cannot be part of an identity.
    pub fn identity(&self, namespace: &str, service_account: &str) -> Result<SpiffeId, String> {
        SpiffeId::new(self.trust_domain(), namespace, service_account).map_err(|e| e.to_string())
    }

    /// Whether identities of this trust domain are ours.
    pub fn vouches_for(&self, domain: &TrustDomain) -> bool {
        let domains = self.domains.load();
        domains.own == *domain || domains.aliases.contains(domain)
    }

    /// Signs with the CA of the Secret `cacerts` from now on; `None`: with the self-signed one. Whether that changed
    /// anything.
    ///
    /// # Errors
    /// When the Secret is of no use; the CA before it goes on signing.
    pub fn plug_in(&self, secret: Option<&BTreeMap<String, Vec<u8>>>) -> anyhow::Result<bool> {
        let mut last = self.changing.write();
        if last.as_ref() == secret {
            return Ok(false);
        }
        *last = secret.cloned();
        let now = SystemTime::now();
        let material = match secret {
            Some(data) => Material::plugged_in(data, now)?,
            None => Material::self_signed(&self.options.state_dir, &self.trust_domain(), now)?,
        };
        let old = self.current.load_full();
        // Whatever the old CA signed has ended by then.
        let until = SystemTime::UNIX_EPOCH + Duration::from_secs(self.longest.swap(0, Ordering::AcqRel));
        let mut earlier: Vec<_> = old.material.roots.iter().map(|root| (root.clone(), until)).collect();
        earlier.extend(old.earlier.iter().cloned());
        earlier.retain(|(root, until)| *until > now && !material.roots.contains(root));
        self.current.store(Arc::new(Current::new(Arc::new(material), earlier, old.generation + 1)));
        tracing::info!(plugged_in = secret.is_some(), roots = self.roots().len(), "another CA signs");
        self.publish()?;
        Ok(true)
    }

    /// Signs the key of a certificate request for a workload.
    ///
    /// # Errors
    /// When the request is of no use or signing fails.
    pub fn issue(&self, identity: &SpiffeId, csr: &str, ttl: Option<Duration>) -> Result<Issued, CaError> {
        let key = request::public_key(csr)?;
        let _same_ca = self.changing.read();
        let issued = self.sign(&Subject::Workload(identity.to_string()), &key, ttl)?;
        self.longest.fetch_max(unix(issued.not_after).as_secs(), Ordering::AcqRel);
        Ok(issued)
    }

    /// Signs without counting for how long the roots must be trusted: for what is made anew when the CA changes.
    pub(crate) fn sign(
        &self,
        subject: &Subject,
        key: &impl rcgen::PublicKeyData,
        ttl: Option<Duration>,
    ) -> Result<Issued, CaError> {
        let ttl = ttl.unwrap_or(self.options.default_ttl).min(self.options.max_ttl);
        issuer::sign(&self.current.load().material, subject, key, ttl, SystemTime::now())
    }

    /// The current state without roots whose time has passed.
    fn fresh(&self) -> Arc<Current> {
        let now = SystemTime::now();
        let outdated = |c: &Current| c.earlier.iter().any(|(_, until)| *until <= now);
        if outdated(&self.current.load()) {
            let _one_at_a_time = self.changing.write();
            let old = self.current.load_full();
            if outdated(&old) {
                let earlier = old.earlier.iter().filter(|(_, until)| *until > now).cloned().collect();
                self.current.store(Arc::new(Current::new(old.material.clone(), earlier, old.generation + 1)));
                if let Err(error) = self.publish() {
                    tracing::warn!("{error:#}");
                }
            }
        }
        self.current.load_full()
    }

    fn publish(&self) -> anyhow::Result<()> {
        let path = self.options.state_dir.join(ROOT_CERT_FILE);
        let pem = self.current.load().roots_pem.clone();
        if state::read(&path).ok().flatten().as_deref() == Some(&*pem) {
            return Ok(());
        }
        state::replace(&path, &pem, state::PUBLIC)
    }
}

impl Current {
    fn new(material: Arc<Material>, earlier: Vec<(CertificateDer<'static>, SystemTime)>, generation: u64) -> Self {
        let roots: Vec<_> = material.roots.iter().chain(earlier.iter().map(|(root, _)| root)).cloned().collect();
        let roots_pem = roots.iter().map(|der| pem("CERTIFICATE", der)).collect::<String>().into();
        Self { material, earlier, roots: roots.into(), roots_pem, generation }
    }
}

/// PEM text of DER bytes.
pub(crate) fn pem(label: &str, der: &[u8]) -> String {
    let body = base64::engine::general_purpose::STANDARD.encode(der);
    let mut out = format!("-----BEGIN {label}-----\n");
    for (i, c) in body.chars().enumerate() {
        if i > 0 && i % 64 == 0 {
            out.push('\n');
        }
        out.push(c);
    }
    let _ = write!(out, "\n-----END {label}-----\n");
    out
}

#[cfg(test)]
pub(crate) mod tests {
    use rcgen::{CertificateParams, KeyPair};
    use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

    use super::*;
    use crate::ca::material::tests::cacerts;

    pub(crate) fn authority(dir: &tempfile::TempDir) -> Arc<Authority> {
        Authority::open(Options::new(dir.path(), TrustDomain::default())).unwrap()
    }

    /// A request that asks for much more than its caller may have.
    pub(crate) fn greedy_request() -> String {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["istiod.istio-system.svc".to_owned()]).unwrap();
        let uri = "spiffe://cluster.local/ns/kube-system/sa/admin";
        params.subject_alt_names.push(rcgen::SanType::URI(uri.try_into().unwrap()));
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.serialize_request(&key).unwrap().pem().unwrap()
    }

    #[test]
    fn only_the_key_of_a_request_counts() {
        let dir = tempfile::tempdir().unwrap();
        let authority = authority(&dir);
        let id = authority.identity("shop", "web").unwrap();
        let issued = authority.issue(&id, &greedy_request(), Some(Duration::from_secs(4))).unwrap();
        let (_, x509) = X509Certificate::from_der(&issued.leaf).unwrap();
        let names = &x509.subject_alternative_name().unwrap().unwrap().value.general_names;
        assert!(matches!(names.as_slice(), [GeneralName::URI("spiffe://cluster.local/ns/shop/sa/web")]), "{names:?}");
        assert!(!x509.is_ca());
        let validity = x509.validity();
        let life = validity.not_after.timestamp() - validity.not_before.timestamp();
        assert!((5..=7).contains(&life), "4 s and 2 s backdated: {life}");
        assert!(validity.is_valid());
    }

    #[test]
    fn lives_have_limits() {
        let dir = tempfile::tempdir().unwrap();
        let mut options = Options::new(dir.path(), TrustDomain::default());
        options.max_ttl = Duration::from_secs(3600);
        let authority = Authority::open(options).unwrap();
        let id = authority.identity("shop", "web").unwrap();
        for (asked, most) in [(None, 3600), (Some(7200), 3600), (Some(60), 60), (Some(0), 1)] {
            let issued = authority.issue(&id, &greedy_request(), asked.map(Duration::from_secs)).unwrap();
            let left = issued.not_after.duration_since(SystemTime::now()).unwrap_or_default().as_secs_f64();
            assert!(left <= f64::from(most) + 1.0 && left > f64::from(most) - 5.0, "{asked:?}: {left}");
        }
    }

    #[test]
    fn roots_overlap_while_what_they_signed_lives() {
        let dir = tempfile::tempdir().unwrap();
        let authority = authority(&dir);
        let file = || std::fs::read_to_string(dir.path().join(ROOT_CERT_FILE)).unwrap();
        let own = authority.roots();
        assert_eq!(file(), *authority.roots_pem());
        // Nothing signed yet: no overlap needed.
        let (one, two) = (cacerts("one"), cacerts("two"));
        assert!(authority.plug_in(Some(&one)).unwrap());
        assert!(!authority.plug_in(Some(&one)).unwrap());
        assert_eq!(authority.roots().len(), 1);
        assert_ne!(authority.roots()[0], own[0]);
        let id = authority.identity("shop", "web").unwrap();
        let issued = authority.issue(&id, &greedy_request(), Some(Duration::from_secs(1))).unwrap();
        assert_eq!(issued.chain.len(), 1, "the intermediate");
        assert!(authority.plug_in(Some(&two)).unwrap());
        assert_eq!(authority.roots().len(), 2);
        assert_eq!(file().matches("BEGIN CERTIFICATE").count(), 2);
        let generation = authority.generation();
        std::thread::sleep(Duration::from_millis(2100));
        assert_eq!(authority.roots().len(), 1);
        assert_ne!(authority.generation(), generation);
        assert_eq!(file(), *authority.roots_pem());
        // Of no use: the last one goes on. Taken away: the own root again.
        assert!(authority.plug_in(Some(&BTreeMap::new())).is_err());
        assert_eq!(file(), *authority.roots_pem());
        assert!(authority.plug_in(None).unwrap());
        assert_eq!(authority.roots()[0], own[0]);
    }

    #[test]
    fn pem_text() {
        assert_eq!(pem("X", &[0; 50]).lines().nth(1).unwrap().len(), 64);
        assert_eq!(pem("X", &[0; 48]).lines().count(), 3);
    }
}
