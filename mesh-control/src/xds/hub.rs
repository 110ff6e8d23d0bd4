//! What all streams share: the present state of the mesh, who is connected, and how a change finds those it concerns.
//!
//! Owns the two lanes: changes of endpoints go at once to whom the reverse index names; everything else is announced to
//! every client, which asks the generator what it means for it. A client keeps no queue of changes, only the number of
//! the state it has seen; so however far behind it is, one merged push is pending. Must not know the protocol.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::SystemTime,
};

use mesh_api::xds::TypeUrl;
use parking_lot::{Mutex, RwLock};
use tokio::{
    sync::{Notify, Semaphore, mpsc, oneshot},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{
    debounce::Debounce,
    encoded::{Encoded, Name},
    generator::{Affected, Generator},
    nack::AckState,
    node::Client,
    push::Protocol,
    subscribers::{Slots, Subscribers},
};
use crate::metrics::Metrics;

/// Changes kept for clients that are behind; who is further behind looks at everything anew.
const LOG: usize = 256;

/// A state of the mesh.
#[derive(Debug)]
pub struct State<I> {
    /// Number of the last announced change.
    pub number: u64,
    /// Counts every new `latest`.
    pub edition: u64,
    /// What has been announced: everything but endpoints is made from this.
    pub published: I,
    /// The newest: endpoints are made from this, because they are not debounced.
    pub latest: I,
}

/// An announced change.
struct Entry<C> {
    number: u64,
    change: C,
    /// When the first of it was seen.
    since: Instant,
    /// When it was announced.
    pushed: Instant,
}

struct Shared<G: Generator> {
    state: Option<Arc<State<G::Index>>>,
    log: VecDeque<Arc<Entry<G::Change>>>,
}

/// What waits for one client.
#[derive(Debug, Default)]
pub struct Mailbox {
    /// Resources it watches that changed outside of announced changes.
    pub touched: HashSet<(TypeUrl, Name)>,
    /// Since when the oldest of them waits.
    pub since: Option<Instant>,
    /// Its view is to be derived anew.
    pub review: bool,
    /// Who wants to see what it holds.
    pub queries: Vec<oneshot::Sender<Vec<Held>>>,
}

/// Resources of one type that a client has.
#[derive(Debug, Clone)]
pub struct Held {
    /// Type.
    pub ty: TypeUrl,
    /// Resources, by name.
    pub resources: Vec<Arc<Encoded>>,
}

/// A connected client, as the rest of the control plane sees it.
#[derive(Debug)]
pub struct Handle {
    /// Its number.
    pub slot: usize,
    /// What it says of itself.
    pub client: Client,
    /// Protocol it speaks.
    pub protocol: Protocol,
    /// When it came.
    pub connected: SystemTime,
    /// Acknowledgements by type, in the order of [`TypeUrl::ALL`].
    pub acks: Mutex<[AckState; TypeUrl::ALL.len()]>,
    mailbox: Mutex<Mailbox>,
    wake: Notify,
}

impl Handle {
    /// Waits until there may be something in the mailbox or a change was announced.
    pub async fn woken(&self) {
        self.wake.notified().await;
    }

    /// Empties the mailbox.
    pub fn take_mail(&self) -> Mailbox {
        std::mem::take(&mut self.mailbox.lock())
    }

    /// What the client holds; `None` when it has just gone.
    pub async fn held(&self) -> Option<Vec<Held>> {
        let (tx, rx) = oneshot::channel();
        self.mailbox.lock().queries.push(tx);
        self.wake.notify_one();
        rx.await.ok()
    }
}

#[derive(Default)]
struct Clients {
    slots: Vec<Option<Arc<Handle>>>,
    free: Vec<usize>,
    addresses: HashMap<IpAddr, Slots>,
}

/// What a client has still to learn of announced changes.
#[derive(Debug)]
pub struct News<I> {
    /// State to go on with.
    pub state: Arc<State<I>>,
    /// What changed on the way to it.
    pub affected: Affected,
    /// When the first of it was seen and when it was announced; `None`: nothing new.
    pub since: Option<(Instant, Instant)>,
}

/// The state shared by all streams.
pub struct Hub<G: Generator> {
    generator: G,
    shared: RwLock<Shared<G>>,
    clients: Mutex<Clients>,
    subscribers: Mutex<Subscribers>,
    connected: AtomicUsize,
    pending: AtomicBool,
    /// As many generations at once as there are cores.
    pub generations: Semaphore,
    /// Ends all streams.
    pub stopping: CancellationToken,
    /// Metrics.
    pub metrics: Arc<Metrics>,
}

impl<G: Generator> std::fmt::Debug for Hub<G> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hub").field("connected", &self.connected).finish_non_exhaustive()
    }
}

impl<G: Generator> Hub<G> {
    /// Without a state: streams are refused until there is one, so that a reconnecting proxy keeps what it has.
    pub fn new(generator: G, metrics: Arc<Metrics>) -> Arc<Self> {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        Arc::new(Self {
            generator,
            shared: RwLock::new(Shared { state: None, log: VecDeque::new() }),
            clients: Mutex::default(),
            subscribers: Mutex::default(),
            connected: AtomicUsize::new(0),
            pending: AtomicBool::new(false),
            generations: Semaphore::new(cores),
            stopping: CancellationToken::new(),
            metrics,
        })
    }

    /// The generator.
    pub fn generator(&self) -> &G {
        &self.generator
    }

    /// The present state; `None`: not synchronised yet.
    pub fn state(&self) -> Option<Arc<State<G::Index>>> {
        self.shared.read().state.clone()
    }

    /// How many clients there are.
    pub fn connected(&self) -> usize {
        self.connected.load(Relaxed)
    }

    /// No change waits for its push.
    pub fn quiet(&self) -> bool {
        !self.pending.load(Relaxed)
    }

    // ---- clients ----

    /// A client has introduced itself.
    pub fn join(&self, client: Client, protocol: Protocol) -> Arc<Handle> {
        let mut clients = self.clients.lock();
        let slot = clients.free.pop().unwrap_or(clients.slots.len());
        if slot == clients.slots.len() {
            clients.slots.push(None);
        }
        for ip in client.ips() {
            clients.addresses.entry(ip).or_default().insert(slot);
        }
        let handle = Arc::new(Handle {
            slot,
            client,
            protocol,
            connected: SystemTime::now(),
            acks: Mutex::default(),
            mailbox: Mutex::default(),
            wake: Notify::new(),
        });
        if let Some(place) = clients.slots.get_mut(slot) {
            *place = Some(handle.clone());
        }
        self.connected.fetch_add(1, Relaxed);
        handle
    }

    /// A client has gone; `names` by type are what it asked for.
    pub fn leave<'a>(&self, handle: &Handle, names: impl IntoIterator<Item = (TypeUrl, &'a Name)>) {
        {
            let mut subscribers = self.subscribers.lock();
            for (ty, name) in names {
                subscribers.remove(ty, [name], handle.slot);
            }
            TypeUrl::ALL.into_iter().for_each(|ty| subscribers.set_wildcard(ty, false, handle.slot));
        }
        let mut clients = self.clients.lock();
        for ip in handle.client.ips() {
            if let Some(slots) = clients.addresses.get_mut(&ip) {
                slots.remove(handle.slot);
                if slots.is_empty() {
                    clients.addresses.remove(&ip);
                }
            }
        }
        if let Some(place) = clients.slots.get_mut(handle.slot) {
            *place = None;
        }
        clients.free.push(handle.slot);
        self.connected.fetch_sub(1, Relaxed);
    }

    /// A client's subscriptions changed.
    pub fn subscribed(&self, slot: usize, ty: TypeUrl, asked: &[Name], unasked: &[Name], wildcard: Option<bool>) {
        if asked.is_empty() && unasked.is_empty() && wildcard.is_none() {
            return;
        }
        let mut subscribers = self.subscribers.lock();
        subscribers.add(ty, asked, slot);
        subscribers.remove(ty, unasked, slot);
        if let Some(on) = wildcard {
            subscribers.set_wildcard(ty, on, slot);
        }
    }

    /// All clients, in no order.
    pub fn clients(&self) -> Vec<Arc<Handle>> {
        self.clients.lock().slots.iter().flatten().cloned().collect()
    }

    // ---- changes ----

    /// The first state. Streams are accepted from now on.
    pub fn open(&self, index: G::Index) {
        let state = State { number: 1, edition: 1, published: index.clone(), latest: index };
        self.shared.write().state = Some(Arc::new(state));
    }

    /// Takes changes until the sender is gone.
    pub async fn follow(self: Arc<Self>, mut changes: mpsc::Receiver<(G::Index, G::Change)>) {
        let mut debounce = Debounce::default();
        let mut pending: Option<(G::Index, G::Change)> = None;
        loop {
            let due = debounce.due();
            let event = tokio::select! {
                biased;
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => None,
                received = changes.recv() => match received {
                    Some(received) => Some(received),
                    None => break,
                },
            };
            match event {
                Some((index, change)) => {
                    self.take(index, change, &mut pending, &mut debounce);
                    self.pending.store(pending.is_some(), Relaxed);
                }
                None => {
                    let since = debounce.push().unwrap_or_else(Instant::now);
                    if let Some((index, change)) = pending.take() {
                        self.announce(index, change, since);
                    }
                    self.pending.store(false, Relaxed);
                }
            }
        }
    }

    fn take(
        &self,
        index: G::Index,
        change: G::Change,
        pending: &mut Option<(G::Index, G::Change)>,
        debounce: &mut Debounce,
    ) {
        let now = Instant::now();
        let reach = self.generator.reach(&index, &change);
        let hold = reach.all || !reach.addresses.is_empty() && pending.is_some();
        self.metrics.inbound_updates.of([if hold { "config" } else { "eds" }]).inc();
        self.set_latest(&index, pending.is_none() && !hold);
        if hold {
            debounce.event(now);
            *pending = Some(match pending.take() {
                Some((_, mut earlier)) => {
                    self.generator.merge(&mut earlier, change);
                    (index, earlier)
                }
                None => (index, change),
            });
        } else if let Some((newest, _)) = pending {
            *newest = index;
        }
        if !(hold || reach.names.is_empty() && reach.addresses.is_empty()) {
            self.metrics.push_triggers.of(["endpoint"]).inc();
            self.touch(reach.names, reach.addresses, now);
        }
    }

    fn set_latest(&self, index: &G::Index, publish: bool) {
        let mut shared = self.shared.write();
        let Some(old) = &shared.state else { return };
        let published = if publish { index.clone() } else { old.published.clone() };
        let state = State { number: old.number, edition: old.edition + 1, published, latest: index.clone() };
        shared.state = Some(Arc::new(state));
    }

    /// Tells those who watch these resources, and those at these addresses.
    fn touch(&self, names: Vec<(TypeUrl, Name)>, addresses: Vec<IpAddr>, now: Instant) {
        let mut touched: HashMap<usize, Vec<(TypeUrl, Name)>> = HashMap::new();
        {
            let subscribers = self.subscribers.lock();
            for (ty, name) in names {
                for slot in subscribers.of(ty, &name) {
                    touched.entry(slot).or_default().push((ty, name.clone()));
                }
            }
        }
        let clients = self.clients.lock();
        for (slot, names) in touched {
            let Some(handle) = clients.slots.get(slot).and_then(Option::as_ref) else { continue };
            let mut mailbox = handle.mailbox.lock();
            mailbox.since.get_or_insert(now);
            mailbox.touched.extend(names);
            drop(mailbox);
            handle.wake.notify_one();
        }
        for slot in addresses.iter().filter_map(|a| clients.addresses.get(a)).flat_map(Slots::iter) {
            let Some(handle) = clients.slots.get(slot).and_then(Option::as_ref) else { continue };
            handle.mailbox.lock().review = true;
            handle.wake.notify_one();
        }
    }

    /// Announces a change to everyone.
    fn announce(&self, index: G::Index, change: G::Change, since: Instant) {
        let pushed = Instant::now();
        self.metrics.push_triggers.of(["config"]).inc();
        self.metrics.debounce_time.observe(pushed.duration_since(since));
        {
            let mut shared = self.shared.write();
            let Some(old) = &shared.state else { return };
            let number = old.number + 1;
            let state = State { number, edition: old.edition + 1, published: index.clone(), latest: index };
            shared.state = Some(Arc::new(state));
            shared.log.push_back(Arc::new(Entry { number, change, since, pushed }));
            if shared.log.len() > LOG {
                shared.log.pop_front();
            }
        }
        let clients = self.clients.lock();
        clients.slots.iter().flatten().for_each(|handle| handle.wake.notify_one());
    }

    /// What a client that has seen `seen` has still to learn.
    pub fn news(&self, seen: u64, view: &G::View) -> Option<News<G::Index>> {
        let (state, entries) = {
            let shared = self.shared.read();
            let state = shared.state.clone()?;
            let behind = state.number.saturating_sub(seen);
            let known = usize::try_from(behind).ok().filter(|n| *n <= shared.log.len());
            let entries: Option<Vec<_>> =
                known.map(|n| shared.log.iter().skip(shared.log.len() - n).cloned().collect());
            (state, entries)
        };
        let Some(entries) = entries else {
            let now = Instant::now();
            return Some(News { state, affected: Affected::all(), since: Some((now, now)) });
        };
        debug_assert!(entries.iter().all(|e| e.number > seen));
        let mut affected = Affected::none();
        for entry in &entries {
            affected.add(self.generator.affected(&state.published, &entry.change, view));
        }
        let since = entries.first().map(|e| (e.since, e.pushed));
        Some(News { state, affected, since })
    }
}
