//! The certificate authority of a mesh: which CA signs now, which roots are trusted now.
//!
//! A CA from the Secret `cacerts` replaces the self-signed one as long as it is there. Roots come before what hangs on
//! them: those of a new CA are made known at once, and it signs when workloads have had the time to learn them. The
//! roots before it stay trusted until everything that they vouch for has ended.

use std::{
    collections::BTreeMap,
    fmt::Write,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::Context;
use arc_swap::ArcSwap;
use base64::Engine as _;
use mesh_api::identity::{SpiffeId, TrustDomain};
use parking_lot::{Mutex, RwLock};
use rustls_pki_types::CertificateDer;

use super::{
    CaError, DEFAULT_TTL, Issued, PLUGGED_IN_SECRET, TokenKey,
    issuer::{self, Subject},
    material::{Material, ROOT_FILE},
    request, state,
    trust::Trust,
};

/// The trust anchors, for sidecars to be started with.
const ROOT_CERT_FILE: &str = "root-cert.pem";
/// How long workloads are given to learn a new root.
pub const ROOT_GRACE: Duration = Duration::from_secs(60);

/// Content of the Secret `cacerts`.
pub type PluggedIn = BTreeMap<String, Vec<u8>>;

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
    /// How long a new root is made known before its CA signs.
    pub root_grace: Duration,
}

impl Options {
    /// The usual lives.
    pub fn new(state_dir: impl Into<PathBuf>, trust_domain: TrustDomain) -> Self {
        let max_ttl = Duration::from_secs(90 * 86400);
        Self { state_dir: state_dir.into(), trust_domain, default_ttl: DEFAULT_TTL, max_ttl, root_grace: ROOT_GRACE }
    }
}

/// The CA that signs, with everything that is trusted.
#[derive(Debug)]
struct Current {
    /// `None`: nobody yet. The CA before is gone, and the next one is not known to everybody.
    signer: Option<Arc<Material>>,
    /// The CA that signs from then on.
    next: Option<(Arc<Material>, SystemTime)>,
    /// All trusted roots, the signing CA's first.
    roots: Arc<[CertificateDer<'static>]>,
    roots_pem: Arc<str>,
    /// When something of this changes by itself.
    outdated: Option<SystemTime>,
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
    changing: RwLock<Option<PluggedIn>>,
    /// Taken after `changing`.
    trust: Mutex<Trust>,
    tokens: Arc<TokenKey>,
}

impl Authority {
    /// Opens the state folder: reads or makes what signs (the content of the Secret `cacerts`, or a self-signed root)
    /// and the key of tokens, then writes `root-cert.pem`.
    ///
    /// # Errors
    /// When the folder cannot be used or holds something damaged, or the Secret is of no use.
    pub fn open(options: Options, secret: Option<&PluggedIn>) -> anyhow::Result<Arc<Self>> {
        state::ensure(&options.state_dir)?;
        let now = SystemTime::now();
        let mut trust = Trust::open(&options.state_dir)?;
        let material = material(&options, secret, now)?;
        // Only the self-signed root outlives the process: when it signed before, it goes on until the next one may.
        let before = match secret {
            Some(_) if options.state_dir.join(ROOT_FILE).exists() => {
                let own = Material::self_signed(&options.state_dir, &options.trust_domain, now)?;
                let known = own.roots.iter().all(|root| trust.roots().any(|k| k == root));
                known.then(|| Arc::new(own))
            }
            _ => None,
        };
        let current = Current::succeed(before, Arc::new(material), &mut trust, options.root_grace, 1, now);
        trust.save()?;
        let tokens = Arc::new(TokenKey::open(&options.state_dir)?);
        let domains = Domains { own: options.trust_domain.clone(), aliases: vec![] };
        let authority = Arc::new(Self {
            domains: ArcSwap::from_pointee(domains),
            current: ArcSwap::from_pointee(current),
            changing: RwLock::new(secret.cloned()),
            trust: Mutex::new(trust),
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

    /// From now on the CA of the Secret `cacerts` is to sign (`None`: the self-signed one): its roots are trusted at
    /// once, and it signs as soon as workloads know them. Whether that changed anything.
    ///
    /// # Errors
    /// When the Secret is of no use; the CA before it goes on signing.
    pub fn plug_in(&self, secret: Option<&PluggedIn>) -> anyhow::Result<bool> {
        let mut last = self.changing.write();
        if last.as_ref() == secret {
            return Ok(false);
        }
        *last = secret.cloned();
        let now = SystemTime::now();
        let mut options = self.options.clone();
        options.trust_domain = self.trust_domain();
        let material = material(&options, secret, now)?;
        let old = self.current.load_full();
        let mut trust = self.trust.lock();
        let signer = old.signer.clone();
        let new = Current::succeed(signer, Arc::new(material), &mut trust, options.root_grace, old.generation + 1, now);
        trust.save()?;
        drop(trust);
        self.current.store(Arc::new(new));
        self.publish()?;
        Ok(true)
    }

    /// Signs the key of a certificate request for a workload.
    ///
    /// # Errors
    /// When the request is of no use, signing fails, or nobody may sign yet.
    pub fn issue(&self, identity: &SpiffeId, csr: &str, ttl: Option<Duration>) -> Result<Issued, CaError> {
        let key = request::public_key(csr)?;
        self.fresh();
        let _same_ca = self.changing.read();
        let current = self.current.load();
        let Some(signer) = &current.signer else {
            let ready = current.next.as_ref().and_then(|(_, ready)| ready.duration_since(SystemTime::now()).ok());
            return Err(CaError::NotYet(ready.unwrap_or_default().as_secs() + 1));
        };
        let issued = self.sign_with(signer, &Subject::Workload(identity.to_string()), &key, ttl)?;
        let mut trust = self.trust.lock();
        if trust.vouch(&signer.anchors, issued.not_after, SystemTime::now())
            && let Err(error) = trust.save()
        {
            tracing::warn!("after a restart a root may be missed: {error:#}");
        }
        Ok(issued)
    }

    /// Signs without counting for how long the roots must be trusted: for what is made anew when the CA changes.
    pub(crate) fn sign(
        &self,
        subject: &Subject,
        key: &impl rcgen::PublicKeyData,
        ttl: Option<Duration>,
    ) -> Result<Issued, CaError> {
        let current = self.current.load();
        let next = current.next.as_ref().map(|(material, _)| material);
        let signer = current.signer.as_ref().or(next).ok_or(CaError::NotYet(0))?;
        self.sign_with(signer, subject, key, ttl)
    }

    fn sign_with(
        &self,
        signer: &Material,
        subject: &Subject,
        key: &impl rcgen::PublicKeyData,
        ttl: Option<Duration>,
    ) -> Result<Issued, CaError> {
        let ttl = ttl.unwrap_or(self.options.default_ttl).min(self.options.max_ttl);
        issuer::sign(signer, subject, key, ttl, SystemTime::now())
    }

    /// The current state, after what changes with time has changed: the next CA signs, roots have had their time.
    fn fresh(&self) -> Arc<Current> {
        let now = SystemTime::now();
        let outdated = |c: &Current| c.outdated.is_some_and(|at| at <= now);
        if outdated(&self.current.load()) {
            let _one_at_a_time = self.changing.write();
            let old = self.current.load_full();
            if outdated(&old) {
                let mut trust = self.trust.lock();
                let new = Current::at(old.signer.clone(), old.next.clone(), &mut trust, old.generation, now);
                if new.generation != old.generation
                    && let Err(error) = trust.save()
                {
                    tracing::warn!("{error:#}");
                }
                drop(trust);
                self.current.store(Arc::new(new));
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

/// What is to sign.
fn material(options: &Options, secret: Option<&PluggedIn>, now: SystemTime) -> anyhow::Result<Material> {
    match secret {
        Some(data) => {
            let (_, name) = PLUGGED_IN_SECRET;
            Material::plugged_in(data, now).with_context(|| format!("Secret {name} of the control plane's namespace"))
        }
        None => Material::self_signed(&options.state_dir, &options.trust_domain, now),
    }
}

impl Current {
    /// `material` is to sign; until its roots are known everywhere `before` does.
    fn succeed(
        before: Option<Arc<Material>>,
        material: Arc<Material>,
        trust: &mut Trust,
        grace: Duration,
        generation: u64,
        now: SystemTime,
    ) -> Self {
        trust.announce(&material.roots, now);
        let ready = trust.ready(&material.anchors, grace, now);
        if let Ok(wait) = ready.duration_since(now)
            && !wait.is_zero()
        {
            tracing::info!(?wait, signs = before.is_some(), "a new CA is made known; it signs when workloads trust it");
        }
        Self::at(before, Some((material, ready)), trust, generation, now)
    }

    /// What holds at this time.
    fn at(
        mut signer: Option<Arc<Material>>,
        mut next: Option<(Arc<Material>, SystemTime)>,
        trust: &mut Trust,
        mut generation: u64,
        now: SystemTime,
    ) -> Self {
        if let Some((material, _)) = next.take_if(|(_, ready)| *ready <= now || trust.last_end() <= now) {
            tracing::info!("a CA begins to sign");
            signer = Some(material);
            generation += 1;
        }
        let in_use = || signer.iter().chain(next.as_ref().map(|(m, _)| m)).flat_map(|m| &m.roots);
        if trust.prune(|root| in_use().any(|r| r == root), now) {
            generation += 1;
        }
        let mut roots: Vec<CertificateDer<'static>> = Vec::new();
        for root in in_use().chain(trust.roots()) {
            if !roots.contains(root) {
                roots.push(root.clone());
            }
        }
        let roots_pem = roots.iter().map(|der| pem("CERTIFICATE", der)).collect::<String>().into();
        // Nobody is left who would not know the next one, when the last certificate has ended.
        let ready = next.as_ref().map(|(_, ready)| (*ready).min(trust.last_end()));
        let outdated = ready.into_iter().chain(trust.next_end(|root| in_use().any(|r| r == root))).min();
        Self { signer, next, roots: roots.into(), roots_pem, outdated, generation }
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
        Authority::open(Options::new(dir.path(), TrustDomain::default()), None).unwrap()
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
        let authority = Authority::open(options, None).unwrap();
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
        let again = authority.issue(&id, &greedy_request(), Some(Duration::from_secs(1))).unwrap();
        assert_eq!(again.chain, issued.chain, "the new CA does not sign before its root is known");
        let generation = authority.generation();
        // Sooner when nobody is left who hangs on the root before.
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
    fn a_new_ca_signs_when_its_root_is_known_over_restarts() {
        let dir = tempfile::tempdir().unwrap();
        let open = |secret: Option<&PluggedIn>, grace: u64| {
            let mut options = Options::new(dir.path(), TrustDomain::default());
            options.root_grace = Duration::from_secs(grace);
            Authority::open(options, secret).unwrap()
        };
        let sign = |authority: &Authority| {
            let id = authority.identity("shop", "web").unwrap();
            authority.issue(&id, &greedy_request(), Some(Duration::from_secs(3600)))
        };
        let file = || std::fs::read_to_string(dir.path().join(ROOT_CERT_FILE)).unwrap();
        let (one, two) = (cacerts("one"), cacerts("two"));
        let own = open(None, 3600);
        assert!(sign(&own).unwrap().chain.is_empty());
        drop(own);
        // Plugged in while the control plane was down: both roots are told at once, the CA that all trust signs.
        let both = open(Some(&one), 3600);
        assert_eq!((both.roots().len(), file().matches("BEGIN").count()), (2, 2));
        assert!(sign(&both).unwrap().chain.is_empty());
        drop(both);
        let after = open(Some(&one), 0);
        assert_eq!(after.roots().len(), 2, "the old root is needed still");
        assert_eq!(sign(&after).unwrap().chain.len(), 1);
        drop(after);
        std::fs::remove_file(dir.path().join(ROOT_FILE)).unwrap();
        // The CA before is gone with the process.
        let gone = open(Some(&two), 3600);
        assert_eq!(gone.roots().len(), 3);
        assert!(matches!(sign(&gone), Err(CaError::NotYet(3590..=3601))));
    }

    #[test]
    fn a_restart_goes_on_and_a_root_beside_the_old_one_waits_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let open = |secret: Option<&PluggedIn>| {
            Authority::open(Options::new(dir.path(), TrustDomain::default()), secret).unwrap()
        };
        let sign = |authority: &Authority| {
            let id = authority.identity("shop", "web").unwrap();
            authority.issue(&id, &greedy_request(), Some(Duration::from_secs(3600))).unwrap().chain
        };
        let one = cacerts("one");
        let before = sign(&open(Some(&one)));
        let authority = open(Some(&one));
        assert_eq!(sign(&authority), before, "a restart soon after the first start");
        // The new CA comes with both roots: that the old one is among them does not make the new one known.
        let both = |mut secret: PluggedIn, other: &PluggedIn| {
            let more = other["root-cert.pem"].clone();
            secret.get_mut("root-cert.pem").unwrap().extend(more);
            secret
        };
        let two = cacerts("two");
        assert!(authority.plug_in(Some(&both(two.clone(), &one))).unwrap());
        assert_eq!((authority.roots().len(), sign(&authority)), (2, before.clone()));
        // Nor does that the old CA signs with both told.
        assert!(authority.plug_in(Some(&both(one.clone(), &two))).unwrap());
        assert_eq!(sign(&authority), before);
        assert!(authority.plug_in(Some(&both(two, &one))).unwrap());
        assert_eq!(sign(&authority), before);
    }

    #[test]
    fn pem_text() {
        assert_eq!(pem("X", &[0; 50]).lines().nth(1).unwrap().len(), 64);
        assert_eq!(pem("X", &[0; 48]).lines().count(), 3);
    }
}
