//! Which local clusters this machine has: names and slots are the machine's, whatever checkout uses them.
//!
//! Claims outlive who made them, so that what a killed run left can be found; whether one is alive is asked of the kernel.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use super::addresses::SLOTS;
use super::processes::Process;

/// Ends with the machine, as processes and links do.
const FOLDER: &str = "/run/mesh-clusters";

/// A name and a slot that are taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// Of the cluster.
    pub name: String,
    /// Which addresses.
    pub slot: u8,
    /// Where its data is.
    pub directory: PathBuf,
    /// Who starts it, and from then on the outermost process of its node.
    pub holder: Process,
    /// First process of its node, once that runs.
    pub first: Option<Process>,
    /// The programs it was started with.
    pub kubectl: PathBuf,
}

/// All claims, for as long as this is held: nobody else changes them meanwhile.
#[derive(Debug)]
pub struct Claims {
    _lock: File,
}

impl Claims {
    /// Waits until nobody else holds them, which is never long.
    ///
    /// # Errors
    /// When the folder cannot be used.
    pub fn lock() -> Result<Self> {
        fs::create_dir_all(FOLDER).with_context(|| format!("cannot make {FOLDER}"))?;
        let file = File::create(Path::new(FOLDER).join("lock")).with_context(|| format!("cannot write in {FOLDER}"))?;
        rustix::fs::flock(&file, FlockOperation::LockExclusive).context("cannot lock the claims of clusters")?;
        Ok(Self { _lock: file })
    }

    /// All of them, by name.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn all(&self) -> Result<Vec<Claim>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(FOLDER).with_context(|| format!("cannot read {FOLDER}"))? {
            let path = entry?.path();
            if path.extension().is_some_and(|e| e == "json") {
                let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
                let claim = serde_json::from_str(&text);
                found.push(claim.with_context(|| format!("{} is not ours: remove it", path.display()))?);
            }
        }
        found.sort_by(|a: &Claim, b| a.name.cmp(&b.name));
        Ok(found)
    }

    /// That of a name.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn of(&self, name: &str) -> Result<Option<Claim>> {
        Ok(self.all()?.into_iter().find(|c| c.name == name))
    }

    /// A slot that nobody claims.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn free_slot(&self) -> Result<Option<u8>> {
        let all = self.all()?;
        Ok((1..=SLOTS).find(|slot| all.iter().all(|c| c.slot != *slot)))
    }

    /// Makes or renews one.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn put(&self, claim: &Claim) -> Result<()> {
        let (path, new) = (path(&claim.name), Path::new(FOLDER).join(format!("{}.new", claim.name)));
        fs::write(&new, serde_json::to_vec_pretty(claim)?)
            .with_context(|| format!("cannot write {}", new.display()))?;
        // Whole or not at all: who is killed here leaves no half claim.
        fs::rename(&new, &path).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Gives one up.
    pub fn remove(&self, name: &str) {
        let _ = fs::remove_file(path(name));
    }
}

fn path(name: &str) -> PathBuf {
    Path::new(FOLDER).join(format!("{name}.json"))
}
