//! The current secrets by name, with their last error, swapped in place.
//!
//! Whoever fetches secrets (SDS, the identity task, files) puts them here; contexts hold a [`Slot`] and notice a new
//! generation at their next handshake. A secret that does not pass its checks is refused and the last good one stays.

use std::{
    collections::HashMap,
    fmt,
    path::PathBuf,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

use arc_swap::ArcSwap;
use mesh_api::model::{
    DataSource, DownstreamTls, Name, PrivateData, SdsRef, SdsSource, SecretKind, TlsCertificate, UpstreamTls,
    ValidationContext,
};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::{ClientTls, Material, ServerTls, TlsError, files::Fingerprint, material};

/// Name under which Istio's proxies know the cluster that serves workload certificates.
pub const LOCAL_SDS_CLUSTER: &str = "sds-grpc";

/// What a [`Slot`] holds now.
#[derive(Debug, Clone, Default)]
pub struct SecretState {
    /// The secret; `None`: never arrived, or taken away.
    pub material: Option<Material>,
    /// Grows with every change of `material`; 0: none yet.
    pub generation: u64,
    /// Why the newest attempt was refused; `None`: the newest is in force.
    pub error: Option<String>,
    /// Seconds since the epoch of the last change.
    pub updated: u64,
}

/// The place of one secret.
pub struct Slot {
    name: Name,
    state: ArcSwap<SecretState>,
    generation: AtomicU64,
    /// What `state` was made from, to read it again when files change; with the files as they were then.
    origin: Mutex<Option<(SecretKind, Vec<Fingerprint>)>>,
}

impl Slot {
    fn new(name: Name) -> Arc<Self> {
        Arc::new(Self { name, state: ArcSwap::default(), generation: AtomicU64::new(0), origin: Mutex::new(None) })
    }

    /// Name of the secret.
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// Current content.
    pub fn state(&self) -> Arc<SecretState> {
        self.state.load_full()
    }

    /// Changes when the content does.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Whether there is a secret.
    pub fn ready(&self) -> bool {
        self.state.load().material.is_some()
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slot").field("name", &self.name).field("generation", &self.generation()).finish_non_exhaustive()
    }
}

/// A secret as `/certs` shows it.
#[derive(Debug)]
pub struct Listed {
    /// `None`: it stands in the configuration itself.
    pub name: Option<Name>,
    /// Where its certificates are read from; `None`: they came as they are.
    pub file: Option<PathBuf>,
    /// Content.
    pub state: Arc<SecretState>,
}

/// All secrets of this process.
pub struct SecretStore {
    named: Mutex<HashMap<SdsRef, Arc<Slot>>>,
    /// Secrets written into the configuration, as long as a context uses them.
    inline: Mutex<HashMap<SecretKind, Weak<Slot>>>,
    servers: Mutex<HashMap<DownstreamTls, Weak<ServerTls>>>,
    clients: Mutex<HashMap<UpstreamTls, Weak<ClientTls>>>,
    counter: AtomicU64,
    changed: watch::Sender<u64>,
    /// The cluster whose secrets this process makes itself.
    local: Option<Name>,
}

impl fmt::Debug for SecretStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SecretStore").field("named", &self.named.lock().len()).finish_non_exhaustive()
    }
}

impl SecretStore {
    /// A store into which others put everything.
    pub fn new() -> Arc<Self> {
        Self::build(None)
    }

    /// A store for a proxy that has its own identity: secrets of the cluster `sds-grpc` are made in this process
    /// (`default`, `ROOTCA` by the identity task, `file-cert:` and `file-root:` names by reading files).
    pub fn with_local_identity() -> Arc<Self> {
        Self::build(Some(LOCAL_SDS_CLUSTER.into()))
    }

    fn build(local: Option<Name>) -> Arc<Self> {
        Arc::new(Self {
            named: Mutex::default(),
            inline: Mutex::default(),
            servers: Mutex::default(),
            clients: Mutex::default(),
            counter: AtomicU64::new(0),
            changed: watch::Sender::new(0),
            local,
        })
    }

    /// A number never given before.
    pub(crate) fn next_generation(&self) -> u64 {
        self.counter.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Changes whenever a secret does, or its last error, or the set of secrets asked for.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Reference to a secret of this process's own identity.
    pub fn local_reference(name: &str) -> SdsRef {
        SdsRef { name: name.into(), source: SdsSource::Cluster(LOCAL_SDS_CLUSTER.into()) }
    }

    /// Whether secrets of this reference are made in this process, so nobody has to be asked for them.
    pub fn is_local(&self, reference: &SdsRef) -> bool {
        matches!((&reference.source, &self.local), (SdsSource::Cluster(c), Some(local)) if c == local)
    }

    /// Changes when [`Self::changes`] tells of something.
    pub fn version(&self) -> u64 {
        *self.changed.borrow()
    }

    /// The slot of a secret, made when there is none. A `file-cert:`/`file-root:` secret of the own identity is read.
    pub fn slot(&self, reference: &SdsRef) -> Arc<Slot> {
        let (slot, fresh) = {
            let mut named = self.named.lock();
            match named.get(reference) {
                Some(slot) => (slot.clone(), false),
                None => {
                    let slot = Slot::new(reference.name.clone());
                    named.insert(reference.clone(), slot.clone());
                    (slot, true)
                }
            }
        };
        if fresh {
            if self.is_local(reference)
                && let Some(kind) = file_secret(&reference.name)
                && let Err(e) = self.fill(&slot, kind)
            {
                tracing::warn!(secret = %reference.name, error = %e, "secret cannot be read yet");
            }
            self.touch();
        }
        slot
    }

    /// The slot of a secret that stands in the configuration itself.
    ///
    /// # Errors
    /// When it cannot be used: such configuration is refused as a whole.
    pub fn inline_slot(&self, kind: &SecretKind) -> Result<Arc<Slot>, TlsError> {
        if let Some(slot) = self.inline.lock().get(kind).and_then(Weak::upgrade) {
            return Ok(slot);
        }
        let slot = Slot::new("inline".into());
        self.fill(&slot, kind.clone())?;
        let mut inline = self.inline.lock();
        inline.retain(|_, weak| weak.strong_count() > 0);
        inline.insert(kind.clone(), Arc::downgrade(&slot));
        Ok(slot)
    }

    /// Puts a secret in force.
    ///
    /// # Errors
    /// When it does not pass its checks; the last good one stays and the reason is kept with it.
    pub fn put(&self, reference: &SdsRef, kind: SecretKind) -> Result<(), TlsError> {
        let slot = self.slot(reference);
        self.fill(&slot, kind)
    }

    /// Takes a secret away: handshakes that need it are broken off from now on.
    pub fn remove(&self, reference: &SdsRef) {
        let slot = self.named.lock().get(reference).cloned();
        if let Some(slot) = slot {
            *slot.origin.lock() = None;
            self.swap(&slot, None, None);
        }
    }

    /// Notes why a secret is not renewed; what is in force stays.
    pub fn note_error(&self, reference: &SdsRef, error: &str) {
        let slot = self.slot(reference);
        self.refuse(&slot, error);
    }

    /// Forgets secrets that no context uses any more. Those of the own identity stay.
    pub fn collect(&self) {
        self.named.lock().retain(|reference, slot| self.is_local(reference) || Arc::strong_count(slot) > 1);
        self.servers.lock().retain(|_, weak| weak.strong_count() > 0);
        self.clients.lock().retain(|_, weak| weak.strong_count() > 0);
    }

    /// Secrets that contexts use and that somebody else must deliver, by source. Sorted.
    pub fn wanted(&self) -> Vec<SdsRef> {
        let named = self.named.lock();
        let mut out: Vec<SdsRef> = named
            .iter()
            .filter(|(reference, slot)| !self.is_local(reference) && Arc::strong_count(slot) > 1)
            .map(|(reference, _)| reference.clone())
            .collect();
        drop(named);
        out.sort_by(|a, b| (&a.name, format!("{:?}", a.source)).cmp(&(&b.name, format!("{:?}", b.source))));
        out
    }

    /// All named secrets with their state, sorted by name (admin, SDS server).
    pub fn list(&self) -> Vec<(SdsRef, Arc<SecretState>)> {
        let mut out: Vec<_> = self.named.lock().iter().map(|(r, slot)| (r.clone(), slot.state())).collect();
        out.sort_by(|a, b| a.0.name.cmp(&b.0.name));
        out
    }

    /// All secrets with the files that they are read from: the named ones by name, then those that stand in the
    /// configuration itself.
    pub fn certificates(&self) -> Vec<Listed> {
        let mut named: Vec<_> =
            self.named.lock().values().map(|slot| (Some(slot.name.clone()), slot.clone())).collect();
        named.sort_by(|a, b| a.0.cmp(&b.0));
        let inline: Vec<_> = self.inline.lock().values().filter_map(Weak::upgrade).map(|slot| (None, slot)).collect();
        let listed = |(name, slot): (Option<Name>, Arc<Slot>)| {
            let kind = slot.origin.lock().as_ref().map(|(kind, _)| kind.clone());
            let file = kind.as_ref().and_then(material::certificate_file);
            Listed { name, file, state: slot.state() }
        };
        let (mut all, mut inline): (Vec<Listed>, Vec<Listed>) =
            (named.into_iter().map(listed).collect(), inline.into_iter().map(listed).collect());
        inline.sort_by(|a, b| a.file.cmp(&b.file));
        all.append(&mut inline);
        all
    }

    /// Reads again what changed on disk. Returns how many secrets changed.
    pub fn poll_files(&self) -> usize {
        let mut slots: Vec<Arc<Slot>> = self.named.lock().values().cloned().collect();
        slots.extend(self.inline.lock().values().filter_map(Weak::upgrade));
        slots.into_iter().filter(|slot| self.refresh(slot)).count()
    }

    fn refresh(&self, slot: &Slot) -> bool {
        let Some((kind, seen)) = slot.origin.lock().clone() else { return false };
        if seen.is_empty() || seen.iter().all(Fingerprint::still_true) {
            return false;
        }
        let before = slot.generation();
        if let Err(e) = self.fill(slot, kind) {
            tracing::debug!(error = %e, "secret in files changed but cannot be used");
        }
        slot.generation() != before
    }

    fn fill(&self, slot: &Slot, kind: SecretKind) -> Result<(), TlsError> {
        // Fingerprints first: what changes while it is read is read again at the next poll.
        let seen: Vec<Fingerprint> = material::files_of(&kind).into_iter().map(Fingerprint::of).collect();
        let from_files = !seen.is_empty();
        let loaded = material::load(&kind);
        // A refused secret is not tried again unless files may change it.
        if loaded.is_ok() || from_files {
            *slot.origin.lock() = Some((kind, if loaded.is_ok() { seen } else { never(seen) }));
        }
        match loaded {
            Ok(material) => {
                self.swap(slot, Some(material), None);
                Ok(())
            }
            Err(e) => {
                self.refuse(slot, &e.to_string());
                Err(e)
            }
        }
    }

    fn refuse(&self, slot: &Slot, error: &str) {
        let old = slot.state.load_full();
        if old.error.as_deref() != Some(error) {
            tracing::warn!(secret = %slot.name, kept = old.material.is_some(), error, "secret refused");
            slot.state.store(Arc::new(SecretState { error: Some(error.to_owned()), ..(*old).clone() }));
            self.touch();
        }
    }

    fn swap(&self, slot: &Slot, material: Option<Material>, error: Option<String>) {
        let generation = self.next_generation();
        let updated =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        slot.state.store(Arc::new(SecretState { material, generation, error, updated }));
        slot.generation.store(generation, Ordering::Release);
        self.touch();
    }

    fn touch(&self) {
        self.changed.send_modify(|n| *n += 1);
    }

    /// The context of an equal declaration, when one is alive: so that unchanged contexts keep their generation.
    pub(crate) fn shared_server(
        &self,
        cfg: &DownstreamTls,
        make: impl FnOnce() -> Result<Arc<ServerTls>, TlsError>,
    ) -> Result<Arc<ServerTls>, TlsError> {
        if let Some(found) = self.servers.lock().get(cfg).and_then(Weak::upgrade) {
            return Ok(found);
        }
        let made = make()?;
        let mut servers = self.servers.lock();
        servers.retain(|_, weak| weak.strong_count() > 0);
        servers.insert(cfg.clone(), Arc::downgrade(&made));
        Ok(made)
    }

    /// As [`Self::shared_server`].
    pub(crate) fn shared_client(
        &self,
        cfg: &UpstreamTls,
        make: impl FnOnce() -> Result<Arc<ClientTls>, TlsError>,
    ) -> Result<Arc<ClientTls>, TlsError> {
        if let Some(found) = self.clients.lock().get(cfg).and_then(Weak::upgrade) {
            return Ok(found);
        }
        let made = make()?;
        self.clients.lock().insert(cfg.clone(), Arc::downgrade(&made));
        Ok(made)
    }
}

/// Fingerprints that are never true, so that a refused reading is tried again at every poll.
fn never(seen: Vec<Fingerprint>) -> Vec<Fingerprint> {
    seen.into_iter().map(Fingerprint::outdated).collect()
}

/// Istio's names for secrets in files.
pub(crate) fn file_secret(name: &str) -> Option<SecretKind> {
    if let Some(rest) = name.strip_prefix("file-cert:") {
        let (cert, key) = rest.split_once('~')?;
        return Some(SecretKind::Certificate(TlsCertificate {
            chain: DataSource::File(cert.into()),
            key: PrivateData(DataSource::File(key.into())),
        }));
    }
    match name.strip_prefix("file-root:")? {
        "system" => Some(SecretKind::Validation(ValidationContext { system_roots: true, ..Default::default() })),
        path => Some(SecretKind::Validation(ValidationContext {
            trusted_ca: Some(DataSource::File(path.into())),
            ..Default::default()
        })),
    }
}
