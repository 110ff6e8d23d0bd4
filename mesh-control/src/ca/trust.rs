//! Which roots workloads are told to trust: since when, and until when something that lives hangs on them. Kept in the
//! state folder, so that a restart neither drops a root that is needed nor forgets that another one is still unknown.

use std::{
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use rustls_pki_types::{CertificateDer, pem::PemObject};
use serde::{Deserialize, Serialize};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{authority::pem, issuer::unix, state};

/// File in the state folder.
pub(super) const FILE: &str = "trusted-roots.json";
/// The end of the longest certificate is written ahead by a quarter of its life, within these limits: not every
/// certificate is worth a write.
const AHEAD: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(3600));

/// The roots.
#[derive(Debug)]
pub(super) struct Trust {
    file: PathBuf,
    known: Vec<Known>,
}

/// A root that was made known. Times are seconds since the epoch.
#[derive(Debug, Clone, PartialEq)]
struct Known {
    root: CertificateDer<'static>,
    /// When it was made known.
    since: u64,
    /// End of the longest workload certificate that hangs on it; 0: there was none.
    until: u64,
    /// `until` as it is written.
    written: u64,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    certificate: String,
    since: u64,
    until: u64,
}

fn seconds(time: SystemTime) -> u64 {
    unix(time).as_secs()
}

impl Trust {
    /// Reads what was known before.
    ///
    /// # Errors
    /// When the file is damaged: to forget roots would cut off whoever hangs on them.
    pub(super) fn open(state_dir: &Path) -> anyhow::Result<Self> {
        let file = state_dir.join(FILE);
        let damaged = |why: String| {
            anyhow::anyhow!(
                "{} is damaged ({why}): restore it, or remove it when no workload has a certificate of an earlier CA",
                file.display()
            )
        };
        let text = state::read(&file)?;
        let entries: Vec<Entry> =
            text.map_or_else(|| Ok(vec![]), |t| serde_json::from_str(&t)).map_err(|e| damaged(e.to_string()))?;
        let mut known = Vec::new();
        for Entry { certificate, since, until } in entries {
            let root = CertificateDer::from_pem_slice(certificate.as_bytes()).map_err(|e| damaged(e.to_string()))?;
            known.push(Known { root, since, until, written: until });
        }
        Ok(Self { file, known })
    }

    /// Makes roots known from now on, those that are not yet.
    pub(super) fn announce(&mut self, roots: &[CertificateDer<'static>], now: SystemTime) {
        for root in roots {
            if self.known.iter().any(|k| k.root == *root) {
                continue;
            }
            // A root renewed with its key and name is trusted by whoever trusts the one before.
            let name = name_and_key(root);
            let renewed = self.known.iter().find(|k| name.is_some() && name_and_key(&k.root) == name);
            let since = renewed.map_or(seconds(now), |k| k.since);
            self.known.push(Known { root: root.clone(), since, until: 0, written: 0 });
        }
    }

    /// When a CA that hangs on any of these roots may sign, if everybody has a root `grace` after it was made known. At
    /// once where nobody has a certificate yet, or when it has signed before: one that comes back goes on.
    pub(super) fn ready(&self, anchors: &[CertificateDer<'static>], grace: Duration, now: SystemTime) -> SystemTime {
        let own = self.known.iter().filter(|k| anchors.contains(&k.root));
        if self.last_end() <= now || own.clone().any(|k| k.until > 0) {
            return now;
        }
        let since = own.map(|k| k.since).min();
        since.map_or(now, |since| SystemTime::UNIX_EPOCH + Duration::from_secs(since) + grace)
    }

    /// Notes that a certificate that ends at `end` hangs on these roots. Whether that has to be written.
    pub(super) fn vouch(&mut self, anchors: &[CertificateDer<'static>], end: SystemTime, now: SystemTime) -> bool {
        let end = seconds(end);
        let ahead = Duration::from_secs(end.saturating_sub(seconds(now)) / 4).clamp(AHEAD.0, AHEAD.1);
        let mut write = false;
        for known in self.known.iter_mut().filter(|k| anchors.contains(&k.root)) {
            known.until = known.until.max(end);
            if known.until > known.written {
                known.written = known.until.saturating_add(ahead.as_secs());
                write = true;
            }
        }
        write
    }

    /// Forgets roots that nothing hangs on, but for those of `used`. Whether there were any.
    pub(super) fn prune(&mut self, used: impl Fn(&CertificateDer<'static>) -> bool, now: SystemTime) -> bool {
        let before = self.known.len();
        self.known.retain(|k| k.until > seconds(now) || used(&k.root));
        self.known.len() != before
    }

    /// All roots that are known.
    pub(super) fn roots(&self) -> impl Iterator<Item = &CertificateDer<'static>> {
        self.known.iter().map(|k| &k.root)
    }

    /// When the last certificate ends.
    pub(super) fn last_end(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(self.known.iter().map(|k| k.until).max().unwrap_or(0))
    }

    /// The next moment at which a root is not needed any more, but for those of `used`.
    pub(super) fn next_end(&self, used: impl Fn(&CertificateDer<'static>) -> bool) -> Option<SystemTime> {
        let ends = self.known.iter().filter(|k| !used(&k.root)).map(|k| k.until);
        ends.min().map(|until| SystemTime::UNIX_EPOCH + Duration::from_secs(until))
    }

    /// Writes what is known. What could not be written is written the next time.
    pub(super) fn save(&mut self) -> anyhow::Result<()> {
        let entry = |k: &Known| Entry {
            certificate: pem("CERTIFICATE", &k.root),
            since: k.since,
            until: k.written.max(k.until),
        };
        let entries: Vec<Entry> = self.known.iter().map(entry).collect();
        let saved = state::replace(&self.file, &serde_json::to_string_pretty(&entries)?, state::PUBLIC);
        if saved.is_err() {
            self.known.iter_mut().for_each(|k| k.written = 0);
        }
        saved
    }
}

fn name_and_key(root: &CertificateDer<'_>) -> Option<(Vec<u8>, Vec<u8>)> {
    let (_, x509) = X509Certificate::from_der(root).ok()?;
    Some((x509.subject().as_raw().to_vec(), x509.public_key().raw.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca::material::{Material, tests::cacerts};

    fn root(name: &str) -> Vec<CertificateDer<'static>> {
        Material::plugged_in(&cacerts(name), SystemTime::now()).unwrap().roots
    }

    #[test]
    fn who_signs_when_and_what_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let at = |s: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(1000 + s);
        let grace = Duration::from_secs(60);
        let (one, two) = (root("one"), root("two"));
        let mut trust = Trust::open(dir.path()).unwrap();
        trust.announce(&one, at(0));
        assert_eq!(trust.ready(&one, grace, at(0)), at(0), "nobody is there yet");
        assert!(trust.vouch(&one, at(4000), at(0)));
        assert!(!trust.vouch(&one, at(4500), at(500)), "written ahead");
        assert_eq!(trust.ready(&one, grace, at(10)), at(10), "it comes back and goes on");
        trust.announce(&two, at(500));
        assert_eq!(trust.ready(&two, grace, at(500)), at(560));
        assert!(trust.ready(&one, grace, at(500)) <= at(500), "long known");
        trust.save().unwrap();

        let full = trust.file.clone();
        trust.file = dir.path().join("no/such/folder");
        assert!(trust.vouch(&one, at(9000), at(500)) && trust.save().is_err());
        trust.file = full;
        assert!(trust.vouch(&one, at(4500), at(500)), "it was not written");
        trust.known.iter_mut().for_each(|k| k.until = k.until.min(seconds(at(4500))));

        let mut again = Trust::open(dir.path()).unwrap();
        assert_eq!(again.ready(&two, grace, at(510)), at(560));
        again.announce(&two, at(900));
        assert_eq!(again.ready(&two, grace, at(900)), at(560), "known since then");
        assert!(!again.prune(|r| two.contains(r), at(4400)));
        assert!(again.prune(|r| two.contains(r), at(6000)));
        assert_eq!(again.roots().collect::<Vec<_>>(), two.iter().collect::<Vec<_>>());
        assert_eq!(again.ready(&two, grace, at(6000)), at(6000));
        std::fs::write(dir.path().join(FILE), "[{}]").unwrap();
        assert!(Trust::open(dir.path()).unwrap_err().to_string().contains("damaged"));
    }
}
