//! Watching the files that secrets are read from, by polling: mounted volumes swap whole directories by symlink, which
//! file notification misses.

use std::{
    path::PathBuf,
    sync::Weak,
    time::{Duration, SystemTime},
};

use super::SecretStore;

/// What a file looked like when it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fingerprint {
    path: PathBuf,
    seen: Seen,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Seen {
    /// Must be read again.
    Outdated,
    Missing,
    File {
        modified: Option<SystemTime>,
        changed: (i64, i64),
        len: u64,
        inode: u64,
    },
}

impl Fingerprint {
    pub(crate) fn of(path: PathBuf) -> Self {
        use std::os::unix::fs::MetadataExt;
        let seen = match std::fs::metadata(&path) {
            Ok(m) => Seen::File {
                modified: m.modified().ok(),
                changed: (m.ctime(), m.ctime_nsec()),
                len: m.len(),
                inode: m.ino(),
            },
            Err(_) => Seen::Missing,
        };
        Self { path, seen }
    }

    pub(crate) fn outdated(self) -> Self {
        Self { seen: Seen::Outdated, ..self }
    }

    pub(crate) fn still_true(&self) -> bool {
        self.seen != Seen::Outdated && Self::of(self.path.clone()) == *self
    }
}

/// Polls the files of `store` until the store is gone. Runs beside the configuration, never on a worker.
pub async fn watch_files(store: Weak<SecretStore>, every: Duration) {
    let mut ticks = tokio::time::interval(every.max(Duration::from_millis(10)));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(store) = store.upgrade() else { return };
        let polled = tokio::task::spawn_blocking(move || store.poll_files()).await;
        if let Ok(n @ 1..) = polled {
            tracing::info!(secrets = n, "secrets read again from files");
        }
    }
}
