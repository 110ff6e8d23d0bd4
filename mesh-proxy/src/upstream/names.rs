//! A cache of names that are looked up when somebody asks for them: one look-up for all who wait, refreshed as long as
//! the name is used, bounded in names and in requests that wait. Shared by the versions of a cluster. Knows no endpoints.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    net::IpAddr,
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use futures_util::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use mesh_api::model::{DnsCache, Name};
use parking_lot::{Mutex, RwLock};
use tokio::{
    runtime::Handle,
    sync::{mpsc, watch},
    task::AbortHandle,
    time::Instant,
};

use super::{dns, stats::Gauge};

/// Why a name has no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unresolved {
    /// Nobody said which name.
    #[error("no host")]
    NoHost,
    /// It was looked up in vain; the cause in one word.
    #[error("DNS resolution failure: {0}")]
    Failed(Name),
    /// The cache holds as many names as it may.
    #[error("DNS cache overflow")]
    CacheOverflow,
    /// Too many wait for an answer.
    #[error("too many requests wait for DNS")]
    PendingOverflow,
}

/// What is asked for a name: its addresses, and for how long they hold if that was said.
pub(super) type Lookup =
    Arc<dyn Fn(Name) -> BoxFuture<'static, Result<(Vec<IpAddr>, Option<Duration>), Name>> + Send + Sync>;

/// The cache.
pub(super) struct Names {
    config: DnsCache,
    lookup: Lookup,
    known: RwLock<HashMap<Name, Arc<Entry>>>,
    /// Requests that wait.
    pending: Gauge,
    ask: mpsc::UnboundedSender<Arc<Entry>>,
    /// Until the task that looks up takes it.
    asked: Mutex<Option<mpsc::UnboundedReceiver<Arc<Entry>>>>,
    task: OnceLock<AbortHandle>,
    born: Instant,
}

impl std::fmt::Debug for Names {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Names").field("config", &self.config).finish_non_exhaustive()
    }
}

/// A name.
#[derive(Debug)]
pub(super) struct Entry {
    name: Name,
    /// Addresses of the last answer that had some. Another `Arc` means other addresses.
    addresses: ArcSwap<Vec<IpAddr>>,
    state: watch::Sender<State>,
    /// When it was asked for last, in milliseconds of the cache's life.
    used: AtomicU64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    /// The first answer is not there yet.
    Pending,
    Known,
    Failed(Name),
}

impl Entry {
    /// Its addresses; never empty for a name that was found.
    pub(super) fn addresses(&self) -> Arc<Vec<IpAddr>> {
        self.addresses.load_full()
    }

    /// Takes an answer in; a failure does not take away what was known.
    fn learn(&self, addresses: Result<Vec<IpAddr>, Name>) {
        let state = match addresses {
            Ok(found) if !found.is_empty() => {
                if **self.addresses.load() != found {
                    self.addresses.store(Arc::new(found));
                }
                State::Known
            }
            Ok(_) => State::Failed("no_records".into()),
            Err(why) => State::Failed(why),
        };
        self.state.send_if_modified(|now| {
            let keep = *now == State::Known && matches!(state, State::Failed(_));
            if keep || *now == state {
                return false;
            }
            *now = state;
            true
        });
    }
}

/// A place among those who wait.
struct Waiting<'a>(&'a Gauge);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Names {
    /// A cache that asks who its configuration names.
    pub(super) fn new(config: DnsCache) -> Arc<Self> {
        let lookup = dns::lookup_of(&config);
        Self::with_lookup(config, lookup)
    }

    /// A cache that asks `lookup`.
    pub(super) fn with_lookup(config: DnsCache, lookup: Lookup) -> Arc<Self> {
        let (ask, asked) = mpsc::unbounded_channel();
        Arc::new(Self {
            config,
            lookup,
            known: RwLock::default(),
            pending: Gauge::default(),
            ask,
            asked: Mutex::new(Some(asked)),
            task: OnceLock::new(),
            born: Instant::now(),
        })
    }

    /// What it was made from.
    pub(super) fn config(&self) -> &DnsCache {
        &self.config
    }

    /// Looks names up on this runtime from now on, until the cache is dropped. Only the first call counts.
    pub(super) fn start(self: &Arc<Self>, control: &Handle) {
        if let Some(asked) = self.asked.lock().take() {
            let task = control.spawn(run(Arc::downgrade(self), self.config.clone(), self.lookup.clone(), asked));
            let _ = self.task.set(task.abort_handle());
        }
    }

    /// Whether the name is still kept.
    pub(super) fn holds(&self, name: &str) -> bool {
        self.known.read().contains_key(name)
    }

    /// The name with its addresses, looked up if need be. `name` is in lower case.
    pub(super) async fn resolve(&self, name: &str) -> Result<Arc<Entry>, Unresolved> {
        if name.is_empty() {
            return Err(Unresolved::NoHost);
        }
        let entry = self.entry(name)?;
        // Mostly there is nothing to wait for.
        let now = entry.state.borrow().clone();
        let state = match now {
            State::Pending => {
                if !self.pending.try_inc(u64::from(self.config.max_pending)) {
                    return Err(Unresolved::PendingOverflow);
                }
                let _waiting = Waiting(&self.pending);
                let mut told = entry.state.subscribe();
                // The sender lives as long as the entry.
                match told.wait_for(|s| *s != State::Pending).await {
                    Ok(state) => state.clone(),
                    Err(_) => State::Failed("stopped".into()),
                }
            }
            state => state,
        };
        match state {
            State::Failed(why) => Err(Unresolved::Failed(why)),
            State::Known | State::Pending => Ok(entry),
        }
    }

    /// The entry of a name, a new one if there is none.
    fn entry(&self, name: &str) -> Result<Arc<Entry>, Unresolved> {
        let now = self.now();
        if let Some(entry) = self.known.read().get(name) {
            entry.used.store(now, Relaxed);
            return Ok(entry.clone());
        }
        let mut known = self.known.write();
        if let Some(entry) = known.get(name) {
            return Ok(entry.clone());
        }
        if known.len() >= usize::try_from(self.config.max_hosts).unwrap_or(usize::MAX) {
            return Err(Unresolved::CacheOverflow);
        }
        let literal = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().ok();
        let entry = Arc::new(Entry {
            name: name.into(),
            addresses: ArcSwap::default(),
            state: watch::Sender::new(State::Pending),
            used: AtomicU64::new(now),
        });
        if let Some(ip) = literal {
            entry.learn(Ok(vec![ip]));
        }
        known.insert(entry.name.clone(), entry.clone());
        drop(known);
        // Without the task there is nobody to answer; whoever waits has limits of its own.
        let _ = self.ask.send(entry.clone());
        Ok(entry)
    }

    fn now(&self) -> u64 {
        u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Forgets the name if nobody asked for it for too long; whether it did.
    fn expire(&self, entry: &Entry) -> bool {
        let limit = u64::try_from(self.config.host_ttl.as_millis()).unwrap_or(u64::MAX);
        let mut known = self.known.write();
        let old = self.now().saturating_sub(entry.used.load(Relaxed)) >= limit;
        if old {
            known.remove(&entry.name);
        }
        old
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        if let Some(task) = self.task.get() {
            task.abort();
        }
    }
}

/// A name that is to be looked at again.
struct Due {
    at: Instant,
    entry: Arc<Entry>,
    /// How often it failed in a row.
    failures: u32,
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.at == other.at
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.at.cmp(&other.at)
    }
}

/// Looks up what is asked for, and again when answers grow old, as long as the cache lives.
async fn run(names: Weak<Names>, config: DnsCache, lookup: Lookup, mut asked: mpsc::UnboundedReceiver<Arc<Entry>>) {
    let mut due: BinaryHeap<Reverse<Due>> = BinaryHeap::new();
    let mut running = FuturesUnordered::new();
    loop {
        let next = due.peek().map(|Reverse(d)| d.at);
        let timer = async {
            match next {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            new = asked.recv() => match new {
                None => return,
                // An address needs no look-up; it is only forgotten some day.
                Some(entry) if *entry.state.borrow() == State::Known => {
                    due.push(Reverse(Due { at: Instant::now() + config.host_ttl, entry, failures: 0 }));
                }
                Some(entry) => running.push(one(&config, &lookup, entry, 0)),
            },
            Some(done) = running.next(), if !running.is_empty() => due.push(Reverse(done)),
            () = timer => {
                let Some(Reverse(Due { entry, failures, .. })) = due.pop() else { continue };
                let Some(names) = names.upgrade() else { return };
                if names.expire(&entry) {
                    continue;
                }
                if entry.name.parse::<IpAddr>().is_ok() || entry.name.starts_with('[') {
                    due.push(Reverse(Due { at: Instant::now() + config.host_ttl, entry, failures: 0 }));
                } else {
                    running.push(one(&config, &lookup, entry, failures));
                }
            }
        }
    }
}

/// One look-up; when the next is due.
async fn one(config: &DnsCache, lookup: &Lookup, entry: Arc<Entry>, failures: u32) -> Due {
    let answer = if config.query_timeout.is_zero() {
        lookup(entry.name.clone()).await
    } else {
        let limited = tokio::time::timeout(config.query_timeout, lookup(entry.name.clone()));
        limited.await.unwrap_or_else(|_| Err("timeout".into()))
    };
    let (wait, failures) = match &answer {
        Ok((found, ttl)) if !found.is_empty() => (ttl.unwrap_or(config.refresh).max(config.min_refresh), 0),
        _ => (failure_wait(config, failures), failures.saturating_add(1)),
    };
    if let Err(why) = &answer {
        tracing::debug!(host = %entry.name, %why, "name cannot be resolved");
    }
    entry.learn(answer.map(|(found, _)| found));
    Due { at: Instant::now() + wait, entry, failures }
}

/// How long a failure is believed.
fn failure_wait(config: &DnsCache, failures: u32) -> Duration {
    match config.failure_refresh {
        None => config.refresh,
        Some((base, most)) => base.saturating_mul(1u32.checked_shl(failures.min(16)).unwrap_or(u32::MAX)).min(most),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    /// A cache whose names have the address 10.0.0.N at the N-th look-up, `nowhere` none; it counts look-ups, which take
    /// a tenth of a second and hold 10 s.
    fn cache(change: impl FnOnce(&mut DnsCache)) -> (Arc<Names>, Arc<AtomicUsize>) {
        let mut config = DnsCache::new("test");
        change(&mut config);
        let count = Arc::new(AtomicUsize::new(0));
        let counted = count.clone();
        let lookup: Lookup = Arc::new(move |name: Name| {
            let n = counted.fetch_add(1, Relaxed) + 1;
            Box::pin(async move {
                tokio::time::sleep(Duration::from_millis(100)).await;
                match &*name {
                    "nowhere" => Err("not_found".into()),
                    "slow" => std::future::pending().await,
                    "once" if n > 1 => Err("not_found".into()),
                    _ => Ok((vec![IpAddr::from([10, 0, 0, u8::try_from(n).unwrap()])], Some(Duration::from_secs(10)))),
                }
            })
        });
        let names = Names::with_lookup(config, lookup);
        names.start(&Handle::current());
        (names, count)
    }

    fn first(entry: &Entry) -> String {
        entry.addresses()[0].to_string()
    }

    async fn pass(seconds: u64) {
        tokio::time::sleep(Duration::from_secs(seconds)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn one_lookup_for_all_who_ask_and_again_when_it_is_old() {
        let (names, count) = cache(|_| {});
        let all = futures_util::future::join_all((0..50).map(|_| names.resolve("a.test"))).await;
        assert!(all.iter().all(|e| first(e.as_ref().unwrap()) == "10.0.0.1"));
        assert_eq!(count.load(Relaxed), 1);
        pass(11).await;
        assert_eq!(first(&names.resolve("a.test").await.unwrap()), "10.0.0.2", "refreshed by its time to live");
    }

    #[tokio::test(start_paused = true)]
    async fn names_that_nobody_uses_are_forgotten() {
        let (names, count) = cache(|c| c.host_ttl = Duration::from_secs(25));
        names.resolve("a.test").await.unwrap();
        names.resolve("10.1.1.1").await.unwrap();
        pass(60).await;
        assert!(!names.holds("a.test") && !names.holds("10.1.1.1"));
        let before = count.load(Relaxed);
        pass(600).await;
        assert_eq!(count.load(Relaxed), before);
        assert_eq!(names.known.read().len(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn failures_are_believed_for_a_while() {
        let (names, count) = cache(|c| c.failure_refresh = Some((Duration::from_secs(2), Duration::from_secs(5))));
        let failed = |e: Result<Arc<Entry>, Unresolved>| e.unwrap_err();
        assert_eq!(failed(names.resolve("nowhere").await), Unresolved::Failed("not_found".into()));
        assert_eq!(failed(names.resolve("nowhere").await), Unresolved::Failed("not_found".into()));
        assert_eq!(count.load(Relaxed), 1);
        pass(3).await;
        assert_eq!(count.load(Relaxed), 2);
        pass(3).await;
        assert_eq!(count.load(Relaxed), 2, "the next wait is twice as long");
        pass(12).await;
        assert_eq!(count.load(Relaxed), 5, "and 5 s at most");
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_takes_no_address_away() {
        let (names, count) = cache(|_| {});
        names.resolve("once").await.unwrap();
        pass(12).await;
        assert!(count.load(Relaxed) >= 2);
        assert_eq!(first(&names.resolve("once").await.unwrap()), "10.0.0.1");
    }

    #[tokio::test(start_paused = true)]
    async fn bounds() {
        let (names, _) = cache(|c| {
            c.max_hosts = 2;
            c.max_pending = 1;
            c.query_timeout = Duration::from_secs(1);
        });
        let waiting = tokio::spawn({
            let names = names.clone();
            async move { names.resolve("slow").await.map(|_| ()) }
        });
        tokio::task::yield_now().await;
        assert_eq!(names.resolve("slow").await.unwrap_err(), Unresolved::PendingOverflow);
        assert_eq!(waiting.await.unwrap().unwrap_err(), Unresolved::Failed("timeout".into()));
        names.resolve("a.test").await.unwrap();
        assert_eq!(names.resolve("b.test").await.unwrap_err(), Unresolved::CacheOverflow);
        assert_eq!(names.resolve("").await.unwrap_err(), Unresolved::NoHost);
        assert_eq!(first(&names.resolve("a.test").await.unwrap()), "10.0.0.2");
    }
}
