//! Whom this workload trusts: the roots that the CA handed out, and those that were added since to the file of roots.
//!
//! The mesh makes a new root known in that file before anybody has a certificate that hangs on it, so a workload must
//! not wait for its next renewal. The file speaks for the mesh only when it has a root in common with what the CA handed
//! out; else it is about the control plane's own certificate and nothing else.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use mesh_api::model::{DataSource, Name, SecretKind, ValidationContext};
use parking_lot::Mutex;
use rustls_pki_types::{CertificateDer, pem::PemObject};

use super::ROOTS;
use crate::tls::{CertificateFacts, Material, SecretStore, TlsError};

/// How often the file is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// Largest file that is read.
const MAX: u64 = 1 << 20;
const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const END: &str = "-----END CERTIFICATE-----";

/// Keeps the trust anchors in the store.
#[derive(Debug)]
pub(super) struct Trust {
    file: PathBuf,
    store: Arc<SecretStore>,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// What the CA handed out, PEM; empty: nothing yet.
    answered: Name,
    /// Time of change and size of the file when it was read.
    stamp: Option<(SystemTime, u64)>,
    /// Its content.
    text: String,
}

impl Trust {
    pub(super) fn new(file: PathBuf, store: Arc<SecretStore>) -> Self {
        Self { file, store, known: Mutex::default() }
    }

    /// Takes over what the CA handed out.
    ///
    /// # Errors
    /// When it is of no use.
    pub(super) fn answered(&self, roots: &Name) -> Result<(), TlsError> {
        let mut known = self.known.lock();
        self.read(&mut known);
        let before = std::mem::replace(&mut known.answered, roots.clone());
        self.put(&known).inspect_err(|_| known.answered = before)
    }

    /// Follows the file, for ever.
    pub(super) async fn follow(&self) {
        loop {
            tokio::time::sleep(LOOK).await;
            let mut known = self.known.lock();
            if self.read(&mut known)
                && !known.answered.is_empty()
                && let Err(error) = self.put(&known)
            {
                tracing::warn!(target: "identity", "{}: {error}", self.file.display());
            }
        }
    }

    /// Reads the file when it changed. It is small and local, and a file that cannot be read changes nothing.
    fn read(&self, known: &mut Known) -> bool {
        let Ok(meta) = std::fs::metadata(&self.file) else { return false };
        let stamp = meta.modified().ok().map(|at| (at, meta.len()));
        if stamp == known.stamp || meta.len() > MAX {
            return false;
        }
        let Ok(text) = std::fs::read_to_string(&self.file) else { return false };
        known.stamp = stamp;
        let changed = known.text != text;
        known.text = text;
        changed
    }

    /// Puts the roots into force. Equal ones leave their generation alone.
    fn put(&self, known: &Known) -> Result<(), TlsError> {
        let all = merged(&known.answered, &known.text);
        let roots = SecretStore::local_reference(ROOTS);
        let same = |m: &Material| matches!(m, Material::Trust(t) if t.ca_pem == all);
        if self.store.slot(&roots).state().material.as_ref().is_some_and(same) {
            return Ok(());
        }
        let context = ValidationContext { trusted_ca: Some(DataSource::Inline(all)), ..Default::default() };
        self.store.put(&roots, SecretKind::Validation(context))
    }
}

/// What the CA handed out, with the certificates of the file that are not in it.
fn merged(answered: &Name, file: &str) -> Name {
    let own: Vec<CertificateDer<'_>> =
        CertificateDer::pem_slice_iter(answered.as_bytes()).filter_map(Result::ok).collect();
    let (known, new): (Vec<_>, Vec<_>) = blocks(file).partition(|(_, der)| own.contains(der));
    if known.is_empty() || new.is_empty() {
        return answered.clone();
    }
    let mut all = format!("{}\n", answered.trim_end());
    for (block, _) in new {
        all.push_str(block);
        all.push('\n');
    }
    all.into()
}

/// The certificates of a PEM text, as text and decoded.
fn blocks(text: &str) -> impl Iterator<Item = (&str, CertificateDer<'static>)> {
    text.split_inclusive(END).filter_map(|part| {
        let block = part.get(part.find(BEGIN)?..)?;
        let der = CertificateDer::from_pem_slice(block.as_bytes()).ok()?;
        // One that is none would spoil all the others.
        CertificateFacts::parse(&der).ok()?;
        Some((block, der))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(name: &str) -> String {
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().pem().replace("\r\n", "\n")
    }

    fn count(store: &SecretStore) -> usize {
        match &store.slot(&SecretStore::local_reference(ROOTS)).state().material {
            Some(Material::Trust(trust)) => trust.roots().count(),
            _ => 0,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_root_that_joins_the_file_is_trusted_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("root-cert.pem");
        let (one, two, other) = (root("one"), root("two"), root("other"));
        std::fs::write(&file, &one).unwrap();
        let store = SecretStore::with_local_identity();
        let trust = Trust::new(file.clone(), store.clone());
        let look = async || {
            tokio::select! {
                () = trust.follow() => {}
                () = tokio::time::sleep(LOOK * 2) => {}
            }
            count(&store)
        };
        std::fs::write(&file, format!("{two}{one}")).unwrap();
        assert_eq!(look().await, 0, "nothing before the CA has answered");
        trust.answered(&one.as_str().into()).unwrap();
        assert_eq!(count(&store), 2);
        std::fs::write(&file, format!("{one}text between\n{two}{}", root("three"))).unwrap();
        assert_eq!(look().await, 3);
        std::fs::write(&file, format!("{one}-----BEGIN CERTIFICATE-----\n!")).unwrap();
        assert_eq!(look().await, 1);
        std::fs::write(&file, format!("{one}{two}-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"))
            .unwrap();
        assert_eq!(look().await, 2);
        trust.answered(&one.as_str().into()).unwrap();
        assert_eq!(count(&store), 2);
        std::fs::write(&file, &one).unwrap();
        assert_eq!(look().await, 1);
        // About something else.
        std::fs::write(&file, &other).unwrap();
        assert_eq!(look().await, 1);
        std::fs::remove_file(&file).unwrap();
        assert_eq!(look().await, 1);
        assert!(trust.answered(&"nothing".into()).is_err());
        assert_eq!(count(&store), 1);
    }
}
