//! What server and client contexts have in common: where their secrets come from and when they must be built anew.

use std::sync::Arc;

use mesh_api::model::{CertificateSource, CommonTls, Name, SecretKind};
use parking_lot::Mutex;
use rustls_pki_types::{CertificateDer, UnixTime};
use smallvec::SmallVec;

use super::{
    CertificateFacts, CertificateMaterial, Material, PeerInfo, SecretStore, Slot, TlsError,
    verify::{Peer, Trust, describe},
};

/// Generations of the slots that something was built from.
pub(crate) type Seen = SmallVec<[u64; 4]>;

/// The slots that a context depends on.
#[derive(Debug)]
pub(crate) struct Sources {
    certificates: Vec<Arc<Slot>>,
    trust: Vec<Arc<Slot>>,
    validates: bool,
}

/// The secrets of a context at one moment.
#[derive(Debug, Clone)]
pub(crate) struct Secrets {
    pub(crate) certificates: Vec<Arc<CertificateMaterial>>,
    pub(crate) trust: Option<Arc<Trust>>,
    pub(crate) seen: Seen,
}

impl Sources {
    pub(crate) fn resolve(common: &CommonTls, store: &SecretStore) -> Result<Self, TlsError> {
        let certificates = common
            .certificates
            .iter()
            .map(|source| match source {
                CertificateSource::Inline(cert) => store.inline_slot(&SecretKind::Certificate(cert.clone())),
                CertificateSource::Sds(reference) => Ok(store.slot(reference)),
            })
            .collect::<Result<Vec<_>, _>>()?;
        let mut trust = vec![];
        if let Some(validation) = &common.validation {
            if let Some(inline) = &validation.inline {
                trust.push(store.inline_slot(&SecretKind::Validation(inline.clone()))?);
            }
            if let Some(reference) = &validation.sds {
                trust.push(store.slot(reference));
            }
        }
        let sources = Self { certificates, trust, validates: common.validation.is_some() };
        // Whatever stands in the configuration itself must be usable now.
        if sources.missing().is_empty() {
            sources.load()?;
        }
        Ok(sources)
    }

    fn slots(&self) -> impl Iterator<Item = &Arc<Slot>> {
        self.certificates.iter().chain(&self.trust)
    }

    pub(crate) fn missing(&self) -> Vec<Name> {
        self.slots().filter(|s| !s.ready()).map(|s| s.name().clone()).collect()
    }

    pub(crate) fn unchanged_since(&self, seen: &Seen) -> bool {
        self.slots().map(|s| s.generation()).eq(seen.iter().copied())
    }

    pub(crate) fn load(&self) -> Result<Secrets, TlsError> {
        let mut seen = Seen::new();
        let mut certificates = vec![];
        let mut parts = vec![];
        let wrong = |slot: &Slot, what: &str| TlsError::Config(format!("secret {} is not a {what}", slot.name()));
        for slot in &self.certificates {
            let state = slot.state();
            seen.push(state.generation);
            match &state.material {
                Some(Material::Certificate(cert)) => certificates.push(cert.clone()),
                Some(Material::Trust(_)) => return Err(wrong(slot, "certificate")),
                None => return Err(TlsError::NotReady(slot.name().clone())),
            }
        }
        for slot in &self.trust {
            let state = slot.state();
            seen.push(state.generation);
            match &state.material {
                Some(Material::Trust(trust)) => parts.push(trust.clone()),
                Some(Material::Certificate(_)) => return Err(wrong(slot, "validation context")),
                None => return Err(TlsError::NotReady(slot.name().clone())),
            }
        }
        let trust = if self.validates { Some(Arc::new(Trust::build(parts)?)) } else { None };
        Ok(Secrets { certificates, trust, seen })
    }
}

/// A configuration with the secrets it was made from; built when a handshake finds it outdated.
#[derive(Debug)]
pub(crate) struct Built<C> {
    pub(crate) config: C,
    pub(crate) secrets: Secrets,
    /// Unique among all contexts and builds.
    pub(crate) generation: u64,
    /// That of the first build with the same trust: a renewed certificate of our own leaves it alone.
    pub(crate) trust_generation: u64,
}

/// The place of the newest [`Built`].
#[derive(Debug)]
pub(crate) struct Current<C> {
    sources: Sources,
    built: arc_swap::ArcSwapOption<Built<C>>,
    building: Mutex<()>,
}

impl<C> Current<C> {
    pub(crate) fn new(sources: Sources) -> Self {
        Self { sources, built: arc_swap::ArcSwapOption::empty(), building: Mutex::new(()) }
    }

    pub(crate) fn sources(&self) -> &Sources {
        &self.sources
    }

    /// The configuration of the current secrets, made by `make` when they changed.
    ///
    /// # Errors
    /// When a secret is missing: then nothing older is used either.
    pub(crate) fn get(
        &self,
        store: &SecretStore,
        make: impl FnOnce(&Secrets) -> Result<C, TlsError>,
    ) -> Result<Arc<Built<C>>, TlsError> {
        let fresh = |built: &Arc<Built<C>>| self.sources.unchanged_since(&built.secrets.seen);
        if let Some(built) = self.built.load_full().filter(fresh) {
            return Ok(built);
        }
        let _one_at_a_time = self.building.lock();
        if let Some(built) = self.built.load_full().filter(fresh) {
            return Ok(built);
        }
        let secrets = self.sources.load()?;
        let config = make(&secrets)?;
        let generation = store.next_generation();
        let own = self.sources.certificates.len();
        let same_trust = |old: &Arc<Built<C>>| old.secrets.seen.get(own..) == secrets.seen.get(own..);
        let trust_generation = self.built.load_full().filter(same_trust).map_or(generation, |old| old.trust_generation);
        let built = Arc::new(Built { config, secrets, generation, trust_generation });
        self.built.store(Some(built.clone()));
        Ok(built)
    }
}

/// What a handshake is remembered by, common to both directions.
pub(crate) fn peer_info(
    connection: &rustls::CommonState,
    sni: Option<&str>,
    secrets: &Secrets,
    generation: u64,
    peer: Peer,
    local: Option<Arc<CertificateFacts>>,
) -> PeerInfo {
    use super::provider::{group_name, suite_name, version_name};
    let chain: Arc<[CertificateDer<'static>]> = connection.peer_certificates().unwrap_or_default().into();
    let certificate = chain.first().and_then(|leaf| CertificateFacts::parse(leaf).ok()).map(Arc::new);
    // The handshake stands, so all conditions hold unless the context accepts anything.
    let validated = match &secrets.trust {
        Some(trust) if certificate.is_some() && trust.demands() => {
            !trust.accept_untrusted || recheck(trust, &chain, peer).is_ok()
        }
        _ => false,
    };
    PeerInfo {
        certificate,
        chain,
        validated,
        local,
        version: version_name(connection.protocol_version()),
        cipher: suite_name(connection.negotiated_cipher_suite().map(|s| s.suite())),
        group: group_name(connection.negotiated_key_exchange_group().map(|g| g.name())),
        alpn: connection.alpn_protocol().map(|p| String::from_utf8_lossy(p).into()),
        sni: sni.map(|s| s.to_ascii_lowercase().into()),
        generation,
    }
}

/// Checks a presented chain against trust as it is now. That the peer's certificate has expired since its handshake is
/// no reason: it has long shown a newer one elsewhere, and a request in flight must not suffer from that.
pub(crate) fn recheck(trust: &Trust, chain: &[CertificateDer<'_>], peer: Peer) -> Result<(), TlsError> {
    let Some((leaf, intermediates)) = chain.split_first() else { return Ok(()) };
    let now = UnixTime::now();
    let end = CertificateFacts::parse(leaf).ok().and_then(|facts| u64::try_from(facts.not_after).ok());
    let at = match end {
        Some(end) if end < now.as_secs() => UnixTime::since_unix_epoch(std::time::Duration::from_secs(end)),
        _ => now,
    };
    trust.check(leaf, intermediates, peer, at, None).map_err(|e| TlsError::Verify(describe(&e)))
}
