//! Fetched keys in the state folder. Owns that file; what cannot be read of it is reported and lost, which costs a fetch.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

use super::{KeySource, public_keys};
use crate::ca::state;

const FILE: &str = "last-good-jwks";
/// Largest file; what does not fit is not kept.
const MAX: usize = 32 << 20;

#[derive(Serialize, Deserialize)]
struct Entry {
    source: KeySource,
    /// Seconds since 1970.
    fetched: u64,
    keys: Arc<str>,
}

#[derive(Debug)]
pub(super) struct Kept {
    path: PathBuf,
    found: BTreeMap<KeySource, (Arc<str>, SystemTime)>,
}

impl Kept {
    pub(super) fn open(state_dir: &Path) -> Self {
        let path = state_dir.join(FILE);
        let found = read(&path).unwrap_or_else(|why| {
            tracing::error!(target: "jwks", "{}: {why}", path.display());
            BTreeMap::new()
        });
        Self { path, found }
    }

    /// What was kept.
    pub(super) fn take(&mut self) -> BTreeMap<KeySource, (Arc<str>, SystemTime)> {
        std::mem::take(&mut self.found)
    }

    /// Keeps these instead.
    pub(super) async fn save<'a>(&self, keys: impl Iterator<Item = (&'a KeySource, &'a (Arc<str>, SystemTime))>) {
        let mut size = 0;
        let entries = keys.map(|(source, (keys, fetched))| Entry {
            source: source.clone(),
            fetched: fetched.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()),
            keys: keys.clone(),
        });
        let entries: Vec<Entry> = entries
            .take_while(|e| {
                size += 2 * e.keys.len() + 4096;
                size < MAX
            })
            .collect();
        let path = self.path.clone();
        let write =
            move || -> anyhow::Result<()> { state::replace(&path, &serde_json::to_string(&entries)?, state::PRIVATE) };
        let written = tokio::task::spawn_blocking(write).await;
        if let Ok(Err(e)) = written {
            tracing::error!(target: "jwks", "fetched keys are not kept for a restart: {e:#}");
        }
    }
}

fn read(path: &Path) -> Result<BTreeMap<KeySource, (Arc<str>, SystemTime)>, String> {
    let size = match std::fs::metadata(path) {
        Ok(found) => found.len(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(e) => return Err(e.to_string()),
    };
    if size > MAX as u64 {
        return Err(format!("{size} bytes, {MAX} are allowed"));
    }
    let text = std::fs::read_to_string(path).map_err(|e| e.to_string())?;
    let entries: Vec<Entry> = serde_json::from_str(&text).map_err(|e| e.to_string())?;
    let good = |e: Entry| {
        let keys = public_keys(&e.keys)?;
        Some((e.source, (Arc::from(keys), UNIX_EPOCH.checked_add(Duration::from_secs(e.fetched))?)))
    };
    Ok(entries.into_iter().filter_map(good).collect())
}
