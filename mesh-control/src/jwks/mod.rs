//! Keys of those who issue tokens, fetched by the control plane so that no proxy needs to.
//!
//! Owns when each source is asked, what was last good, what is wrong, and the file in the state folder that keeps keys
//! over a restart. One task, one fetch a source, a bounded number at once; nobody waits for them. What fails leaves the
//! last good keys in force. It is told sources and tells keys; must not know objects, proxies or xDS.

mod address;
mod fetch;
mod kept;
mod public;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashMap},
    hash::{DefaultHasher, Hash, Hasher},
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use parking_lot::RwLock;
use tokio::{
    sync::{mpsc, watch},
    task::{Id, JoinError, JoinSet},
    time::Instant,
};

pub use self::{address::AddressPolicy, public::public_keys};
use self::{fetch::Network, kept::Kept};
pub use crate::index::KeySource;
use crate::metrics::Metrics;

/// Fetches at once.
const AT_ONCE: usize = 16;
/// Most sources.
const MAX_SOURCES: usize = 1_000;
/// How long keys are not asked for again, as under Istio.
const REFRESH: Duration = Duration::from_secs(20 * 60);
/// Pause after the first failure; twice as long after each further one, up to the longest.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// How long after a change the file is written, so that many changes are one write.
const SAVE_AFTER: Duration = Duration::from_millis(500);

/// Sources, with the time that a fetch of each may take.
pub type Wanted = BTreeMap<KeySource, Duration>;
/// What to take over: the keys of a source; `None`: they are wanted no more.
pub type Update = (KeySource, Option<Arc<str>>);

/// How keys are fetched.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Folder that keeps keys over a restart.
    pub state_dir: PathBuf,
    /// Who may be asked.
    pub addresses: AddressPolicy,
    /// PEM file with roots to trust besides the system's.
    pub extra_ca: Option<PathBuf>,
}

/// How it stands with a source.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Standing {
    /// When its keys that are in force were fetched; `None`: there are none.
    pub good: Option<SystemTime>,
    /// Why the last fetch failed, and when; `None`: it did not.
    pub failed: Option<(SystemTime, String)>,
}

/// Standings of all sources.
pub type Standings = Arc<RwLock<BTreeMap<KeySource, Standing>>>;

/// The end of those who want keys.
#[derive(Debug)]
pub struct Keys {
    /// Says what is wanted now.
    pub wanted: watch::Sender<Wanted>,
    /// Tells what was fetched: after each fetch, also one that brought nothing new.
    pub updates: mpsc::Receiver<Update>,
    /// How it stands.
    pub standings: Standings,
}

/// Begins. The keys of a former process are told at once, as far as they are wanted; the task has to be run.
pub fn open(options: Options, wanted: Wanted, metrics: Arc<Metrics>) -> (Keys, Vec<Update>, Fetcher) {
    let kept = Kept::open(&options.state_dir);
    let (wanted_tx, wanted_rx) = watch::channel(wanted);
    let (updates_tx, updates) = mpsc::channel(64);
    let standings = Standings::default();
    let network = Network { addresses: options.addresses, extra_ca: options.extra_ca };
    let mut fetcher = Fetcher {
        network: Arc::new(network),
        wanted: wanted_rx,
        updates: updates_tx,
        standings: standings.clone(),
        metrics,
        sources: BTreeMap::new(),
        running: JoinSet::new(),
        in_flight: HashMap::new(),
        kept,
        save_at: None,
    };
    let known = fetcher.begin();
    (Keys { wanted: wanted_tx, updates, standings }, known, fetcher)
}

/// One source.
#[derive(Debug)]
struct Source {
    limit: Duration,
    /// The last good ones, and when they were fetched.
    keys: Option<(Arc<str>, SystemTime)>,
    failures: u32,
    next: Instant,
}

/// The task.
#[derive(Debug)]
pub struct Fetcher {
    network: Arc<Network>,
    wanted: watch::Receiver<Wanted>,
    updates: mpsc::Sender<Update>,
    standings: Standings,
    metrics: Arc<Metrics>,
    sources: BTreeMap<KeySource, Source>,
    running: JoinSet<Result<Arc<str>, String>>,
    in_flight: HashMap<Id, KeySource>,
    kept: Kept,
    save_at: Option<Instant>,
}

impl Fetcher {
    /// Runs until nobody wants keys any more.
    pub async fn run(mut self) {
        loop {
            self.start_due();
            let next = self.next_due();
            let save_at = self.save_at;
            tokio::select! {
                changed = self.wanted.changed() => {
                    if changed.is_err() || !self.follow().await {
                        return;
                    }
                }
                Some(done) = self.running.join_next_with_id() => {
                    if !self.settle(done).await {
                        return;
                    }
                }
                () = tokio::time::sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {}
                () = tokio::time::sleep_until(save_at.unwrap_or_else(Instant::now)), if save_at.is_some() => {
                    self.save_at = None;
                    let kept = self.sources.iter().filter_map(|(s, state)| Some((s, state.keys.as_ref()?)));
                    self.kept.save(kept).await;
                }
            }
        }
    }

    /// When somebody's turn comes; `None`: all turns are taken, or there is nobody.
    fn next_due(&self) -> Option<Instant> {
        if self.running.len() >= AT_ONCE {
            return None;
        }
        let waiting = self.sources.iter().filter(|(s, _)| !self.in_flight.values().any(|f| f == *s));
        waiting.map(|(_, state)| state.next).min()
    }

    fn start_due(&mut self) {
        let now = Instant::now();
        while self.running.len() < AT_ONCE {
            let in_flight = &self.in_flight;
            let due =
                self.sources.iter().filter(|(s, state)| state.next <= now && !in_flight.values().any(|f| f == *s));
            // Who failed often waits for the others.
            let Some((source, state)) = due.min_by_key(|(_, state)| (state.failures, state.next)) else { return };
            let (source, limit, network) = (source.clone(), state.limit, self.network.clone());
            let asked = source.clone();
            let handle = self.running.spawn(async move { network.keys(&asked, limit).await });
            self.in_flight.insert(handle.id(), source);
        }
    }

    /// Takes over what is wanted at first, with what was kept.
    fn begin(&mut self) -> Vec<Update> {
        let wanted = self.wanted.borrow_and_update().clone();
        self.add(&wanted);
        let mut kept = self.kept.take();
        let mut known = Vec::new();
        for (source, state) in &mut self.sources {
            if let Some((keys, fetched)) = kept.remove(source) {
                known.push((source.clone(), Some(keys.clone())));
                state.keys = Some((keys, fetched));
                self.standings.write().entry(source.clone()).or_default().good = Some(fetched);
            }
        }
        known
    }

    fn add(&mut self, wanted: &Wanted) {
        for (source, limit) in wanted {
            if let Some(state) = self.sources.get_mut(source) {
                state.limit = *limit;
            } else if self.sources.len() < MAX_SOURCES {
                let state = Source { limit: *limit, keys: None, failures: 0, next: Instant::now() };
                self.sources.insert(source.clone(), state);
                self.standings.write().insert(source.clone(), Standing::default());
            } else {
                let why = format!("it is not asked: there are {MAX_SOURCES} other sources of keys, the most allowed");
                let standing = Standing { good: None, failed: Some((SystemTime::now(), why)) };
                self.standings.write().insert(source.clone(), standing);
            }
        }
    }

    /// Takes over what is wanted now. Whether somebody still listens.
    async fn follow(&mut self) -> bool {
        let wanted = self.wanted.borrow_and_update().clone();
        let gone: Vec<KeySource> = self.sources.keys().filter(|s| !wanted.contains_key(*s)).cloned().collect();
        self.standings.write().retain(|s, _| wanted.contains_key(s));
        for source in gone {
            self.sources.remove(&source);
            self.save_soon();
            if self.updates.send((source, None)).await.is_err() {
                return false;
            }
        }
        self.add(&wanted);
        self.metrics.jwks_sources.set(self.sources.len());
        true
    }

    fn save_soon(&mut self) {
        self.save_at.get_or_insert_with(|| Instant::now() + SAVE_AFTER);
    }

    /// Takes over what a fetch brought. Whether somebody still listens.
    async fn settle(&mut self, done: Result<(Id, Result<Arc<str>, String>), JoinError>) -> bool {
        let (id, result) = match done {
            Ok((id, result)) => (id, result),
            Err(e) => (e.id(), Err("the fetch broke off".to_owned())),
        };
        let Some(source) = self.in_flight.remove(&id) else { return true };
        // Wanted no more.
        let Some(state) = self.sources.get_mut(&source) else { return true };
        let now = SystemTime::now();
        let standing = match result {
            Ok(keys) => {
                self.metrics.jwks_fetched.inc();
                if state.failures > 0 {
                    tracing::info!(target: "jwks", "keys of {source} are there again");
                }
                state.failures = 0;
                state.next = Instant::now() + spread(REFRESH, &source);
                state.keys = Some((keys, now));
                self.save_at.get_or_insert_with(|| Instant::now() + SAVE_AFTER);
                Standing { good: Some(now), failed: None }
            }
            Err(why) => {
                self.metrics.jwks_failed.inc();
                let pause = RETRY.0.saturating_mul(1 << state.failures.min(10)).min(RETRY.1);
                state.failures = state.failures.saturating_add(1);
                state.next = Instant::now() + spread(pause, &source);
                let good = state.keys.as_ref().map(|(_, at)| *at);
                if state.failures == 1 {
                    let kept = if good.is_some() { "the last good ones stay" } else { "its tokens are refused" };
                    tracing::warn!(target: "jwks", "keys of {source}: {why}; {kept}");
                }
                Standing { good, failed: Some((now, why)) }
            }
        };
        let keys = state.keys.as_ref().map(|(keys, _)| keys.clone());
        self.standings.write().insert(source.clone(), standing);
        self.metrics.jwks_sources.set(self.sources.len());
        self.updates.send((source, keys)).await.is_ok()
    }
}

/// Within a tenth of it, by the source, so that not everything is due at once.
fn spread(pause: Duration, source: &KeySource) -> Duration {
    let mut hasher = DefaultHasher::new();
    source.hash(&mut hasher);
    let per_mille = u32::try_from(hasher.finish() % 200).unwrap_or(100);
    pause * (900 + per_mille) / 1000
}
