//! What one client wants of one resource type, what it holds, and what it has still to be told. Sans-io.
//!
//! Owns the table of names, the list of changes to look at and the response in flight. Must not know the two protocols'
//! messages (`delta`, `sotw` read and write those) nor the order among types (`push`).

use std::{
    borrow::Borrow,
    cell::Cell,
    collections::HashSet,
    hash::{Hash, Hasher},
    mem,
    sync::Arc,
};

use mesh_api::xds::TypeUrl;

use super::{
    encoded::{Encoded, Name},
    generator::Names,
};
use crate::hash::ByName;

/// Explicit wildcard name.
pub const WILDCARD: &str = "*";
/// Most names a client may subscribe to in one type.
pub const MAX_NAMES: usize = 200_000;
/// Longest name.
pub const MAX_NAME_BYTES: usize = 4096;

/// The resources of one client at one state of the mesh.
pub trait Resources {
    /// Content of a wildcard subscription.
    fn names(&self, ty: TypeUrl) -> Arc<[Name]>;
    /// One resource.
    fn get(&self, ty: TypeUrl, name: &str) -> Option<Arc<Encoded>>;
}

/// What the client is known to have under a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Has {
    /// Nothing.
    Nothing,
    /// Something of another version, presented on reconnect: one we do not make (any more), or one that was not
    /// compared yet.
    Other,
    /// Exactly the resource in the slot. "Sent" counts as had: a rejected version must not be sent twice.
    This,
}

/// One name. Small, because there are as many as clients times resources.
struct Slot {
    /// The resource, or a bare name when `has` is not `This`.
    enc: Arc<Encoded>,
    has: Has,
    asked: bool,
    stamp: Cell<u32>,
}

impl Borrow<str> for Slot {
    fn borrow(&self) -> &str {
        self.enc.name()
    }
}
impl PartialEq for Slot {
    fn eq(&self, other: &Self) -> bool {
        self.enc.name() == other.enc.name()
    }
}
impl Eq for Slot {}
impl Hash for Slot {
    fn hash<H: Hasher>(&self, state: &mut H) {
        str::hash(self.enc.name(), state);
    }
}

/// Names that may have changed since they were last looked at.
#[derive(Debug, Default)]
enum Dirty {
    #[default]
    Clean,
    Names(HashSet<Name>),
    All,
}

/// A response that the client has not answered yet.
#[derive(Debug)]
pub struct InFlight {
    /// Its nonce.
    pub nonce: String,
    /// Names in it (or declared absent by it) that somebody waits for.
    pub awaited: Vec<Name>,
}

/// How much of what is due may go out now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Everything.
    Full,
    /// Only answers to what the client has just asked for.
    Answers,
}

/// What [`Subscription::collect`] found.
#[derive(Debug, Default)]
pub struct Batch {
    /// New or changed or asked for again, in order.
    pub resources: Vec<Arc<Encoded>>,
    /// Those of `resources` that the client did not have before.
    pub new: Vec<Arc<Encoded>>,
    /// Those of `resources` that replace an older version.
    pub replaced: Vec<Arc<Encoded>>,
    /// Asked for, but they do not exist.
    pub absent: Vec<Name>,
    /// The client has them, but they exist no more.
    pub vanished: Vec<Name>,
    /// A response is due even if the lists are empty.
    pub due: bool,
}

/// State of one type on one stream.
pub struct Subscription {
    ty: TypeUrl,
    slots: HashSet<Slot, ByName>,
    stamp: u32,
    /// A request of this type has arrived.
    pub opened: bool,
    /// Everything is wanted.
    pub wildcard: bool,
    /// Wildcard by an empty first list; an explicit list ends it.
    pub legacy: bool,
    /// The first answer is still due and nothing is known of the client: it breaks nothing and need not wait.
    pub fresh: bool,
    /// A response is due even if nothing is in it.
    pub respond: bool,
    /// State of the world: version of the whole that the client presented on its first request.
    pub presented: Option<String>,
    /// The last response was rejected.
    pub nacked: bool,
    /// The response that is not answered yet.
    pub in_flight: Option<InFlight>,
    /// Nonce of the last response.
    pub last_nonce: String,
    dirty: Dirty,
    answers: Vec<Name>,
    /// Exist no more, but the client is told only when nothing refers to them.
    held_back: HashSet<Name>,
}

impl Subscription {
    /// Of a stream just opened.
    pub fn new(ty: TypeUrl) -> Self {
        Self {
            ty,
            slots: HashSet::default(),
            stamp: 0,
            opened: false,
            wildcard: false,
            legacy: false,
            fresh: false,
            respond: false,
            presented: None,
            nacked: false,
            in_flight: None,
            last_nonce: String::new(),
            dirty: Dirty::Clean,
            answers: Vec::new(),
            held_back: HashSet::new(),
        }
    }

    /// The type.
    pub fn ty(&self) -> TypeUrl {
        self.ty
    }

    /// Whether an empty first list means everything: Envoy's rule for listeners and clusters, and the agents' for names.
    pub fn has_legacy_wildcard(&self) -> bool {
        matches!(self.ty, TypeUrl::Cluster | TypeUrl::Listener | TypeUrl::NameTable)
    }

    /// Whether the client wants this name.
    pub fn wants(&self, name: &str) -> bool {
        self.wildcard || self.slots.get(name).is_some_and(|s| s.asked)
    }

    /// Whether the client asked for this very name.
    pub fn asked(&self, name: &str) -> bool {
        self.slots.get(name).is_some_and(|s| s.asked)
    }

    /// What the client has under this name.
    pub fn has(&self, name: &str) -> Has {
        self.slots.get(name).map_or(Has::Nothing, |s| s.has)
    }

    /// Names asked for.
    pub fn asked_names(&self) -> impl Iterator<Item = &Name> {
        self.slots.iter().filter(|s| s.asked).map(|s| s.enc.name())
    }

    /// Resources that the client has.
    pub fn held(&self) -> impl Iterator<Item = &Arc<Encoded>> {
        self.slots.iter().filter(|s| s.has == Has::This).map(|s| &s.enc)
    }

    /// How many names are in the table.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether the table is empty.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Nothing is to be looked at or answered.
    pub fn clean(&self) -> bool {
        matches!(self.dirty, Dirty::Clean) && self.answers.is_empty() && !self.respond
    }

    /// Nothing is due and nothing unanswered.
    pub fn idle(&self) -> bool {
        self.clean() && self.in_flight.is_none()
    }

    /// Changes (not answers) wait.
    pub fn waits(&self) -> bool {
        self.respond || !matches!(self.dirty, Dirty::Clean)
    }

    /// Names that exist no more but stay with the client for now.
    pub fn held_back(&self) -> &HashSet<Name> {
        &self.held_back
    }

    /// Roughly how many resources the next [`Self::collect`] looks at.
    pub fn work(&self) -> usize {
        let dirty = match &self.dirty {
            Dirty::Clean => 0,
            Dirty::Names(n) => n.len(),
            Dirty::All if self.wildcard => usize::MAX / 16,
            Dirty::All => self.slots.len(),
        };
        self.answers.len() + dirty
    }

    /// These may have changed.
    pub fn mark(&mut self, names: Names) {
        if !self.opened {
            return;
        }
        match names {
            Names::None => {}
            Names::All => self.dirty = Dirty::All,
            Names::Some(names) => {
                let mut names: Vec<Name> = names.into_iter().filter(|n| self.wants(n)).collect();
                match &mut self.dirty {
                    Dirty::All => {}
                    Dirty::Names(old) => old.extend(names.drain(..)),
                    Dirty::Clean if names.is_empty() => {}
                    Dirty::Clean => self.dirty = Dirty::Names(names.into_iter().collect()),
                }
            }
        }
    }

    /// Answer this name even if nothing changed.
    pub fn answer(&mut self, name: Name) {
        self.answers.push(name);
    }

    /// Everything the client has is to be sent again.
    pub fn answer_all(&mut self) {
        self.answers = self.slots.iter().filter(|s| s.asked || self.wildcard).map(|s| s.enc.name().clone()).collect();
        self.mark(Names::All);
    }

    /// The client asks for a name; its shared form and whether that is news.
    pub fn ask(&mut self, name: &str) -> (Name, bool) {
        match self.slots.take(name) {
            Some(mut slot) => {
                let news = !mem::replace(&mut slot.asked, true);
                slot.stamp.set(self.stamp);
                let name = slot.enc.name().clone();
                self.slots.insert(slot);
                (name, news)
            }
            None => {
                let enc = Encoded::bare(name);
                let name = enc.name().clone();
                let stamp = Cell::new(self.stamp);
                self.slots.insert(Slot { enc, has: Has::Nothing, asked: true, stamp });
                (name, true)
            }
        }
    }

    /// The client presents a version of a name that it kept from an earlier stream.
    pub fn present(&mut self, name: &str, version: &str, current: Option<Arc<Encoded>>) -> Has {
        let asked = self.asked(name);
        let (enc, has) = match current {
            Some(enc) if enc.is_version(version) => (enc, Has::This),
            _ => (Encoded::bare(name), Has::Other),
        };
        self.slots.replace(Slot { enc, has, asked, stamp: Cell::new(0) });
        has
    }

    /// The same, compared when everything is looked at, which a wildcard that has just begun makes due anyway.
    pub fn present_unseen(&mut self, name: &str, version: &str) {
        let asked = self.asked(name);
        let enc = Encoded::presented(name, version);
        self.slots.replace(Slot { enc, has: Has::Other, asked, stamp: Cell::new(0) });
    }

    /// Everything is to be looked at.
    pub fn looks_at_all(&self) -> bool {
        matches!(self.dirty, Dirty::All)
    }

    /// The client does not ask for a name any more; returns whether it did.
    pub fn unask(&mut self, name: &str) -> bool {
        let Some(mut slot) = self.slots.take(name) else { return false };
        let asked = mem::replace(&mut slot.asked, false);
        if self.wildcard {
            if asked {
                // It must be told whether the resource is still there, as if it had changed.
                self.answers.push(slot.enc.name().clone());
            }
            self.slots.insert(slot);
        } else {
            self.held_back.remove(name);
        }
        asked
    }

    /// The list of names is replaced; returns the names that are not asked for any more. Those of the new list have
    /// been [asked](Self::ask) after [`Self::begin_list`].
    pub fn end_list(&mut self) -> Vec<Name> {
        let stamp = self.stamp;
        let gone: Vec<Name> =
            self.slots.iter().filter(|s| s.asked && s.stamp.get() != stamp).map(|s| s.enc.name().clone()).collect();
        for name in &gone {
            if let Some(mut slot) = self.slots.take(&**name) {
                slot.asked = false;
                if self.wildcard {
                    self.slots.insert(slot);
                } else {
                    self.held_back.remove(name);
                }
            }
        }
        gone
    }

    /// See [`Self::end_list`].
    pub fn begin_list(&mut self) {
        self.next_stamp();
    }

    /// The wildcard begins or ends; without it the client forgets what it did not ask for.
    pub fn set_wildcard(&mut self, wildcard: bool) {
        if self.wildcard == wildcard {
            return;
        }
        self.wildcard = wildcard;
        if wildcard {
            self.mark(Names::All);
            self.respond = true;
        } else {
            self.slots.retain(|s| s.asked);
            // Slots are hashed by their names, which do not change.
            #[allow(clippy::mutable_key_type)]
            let slots = &self.slots;
            self.held_back.retain(|n| slots.contains(&**n));
        }
    }

    /// Works off what waits: compares with what exists now and notes the client as having it.
    pub fn collect(&mut self, mode: Mode, res: &dyn Resources) -> Batch {
        let mut batch = Batch::default();
        let stamp = self.next_stamp();
        for name in mem::take(&mut self.answers) {
            if self.wants(&name) && !self.stamped(&name, stamp) {
                match res.get(self.ty, &name) {
                    Some(enc) => self.put(enc, true, stamp, &mut batch),
                    None => {
                        self.clear(&name);
                        batch.absent.push(name);
                    }
                }
            }
        }
        if mode == Mode::Answers {
            return batch;
        }
        batch.due = mem::take(&mut self.respond);
        self.fresh = false;
        match mem::take(&mut self.dirty) {
            Dirty::Clean => {}
            Dirty::Names(names) => {
                for name in names {
                    if self.wants(&name) && !self.stamped(&name, stamp) {
                        match res.get(self.ty, &name) {
                            Some(enc) => self.put(enc, false, stamp, &mut batch),
                            None => self.vanish(name, &mut batch),
                        }
                    }
                }
            }
            Dirty::All => self.collect_all(stamp, res, &mut batch),
        }
        batch
    }

    fn collect_all(&mut self, stamp: u32, res: &dyn Resources, batch: &mut Batch) {
        if self.wildcard {
            let names = res.names(self.ty);
            self.slots.reserve(names.len().saturating_sub(self.slots.len()));
            for name in names.iter() {
                if !self.stamped(name, stamp)
                    && let Some(enc) = res.get(self.ty, name)
                {
                    self.put(enc, false, stamp, batch);
                }
            }
        }
        // What was asked for beyond the wildcard, and what the client has but nobody names any more.
        let rest: Vec<Name> =
            self.slots.iter().filter(|s| s.stamp.get() != stamp).map(|s| s.enc.name().clone()).collect();
        for name in rest {
            let current = if self.asked(&name) { res.get(self.ty, &name) } else { None };
            match current {
                Some(enc) => self.put(enc, false, stamp, batch),
                None => self.vanish(name, batch),
            }
        }
    }

    fn put(&mut self, enc: Arc<Encoded>, force: bool, stamp: u32, batch: &mut Batch) {
        let name: &str = enc.name();
        if !self.held_back.is_empty() {
            self.held_back.remove(name);
        }
        let (has, asked, same) = match self.slots.get(name) {
            Some(slot) => {
                slot.stamp.set(stamp);
                let same = slot.has != Has::Nothing && slot.enc.hash() == enc.hash();
                (slot.has, slot.asked, same)
            }
            None => (Has::Nothing, false, false),
        };
        if same && !force {
            if has == Has::Other {
                self.slots.replace(Slot { enc, has: Has::This, asked, stamp: Cell::new(stamp) });
            }
            return;
        }
        if has == Has::Nothing {
            batch.new.push(enc.clone());
        } else if !same {
            batch.replaced.push(enc.clone());
        }
        batch.resources.push(enc.clone());
        self.slots.replace(Slot { enc, has: Has::This, asked, stamp: Cell::new(stamp) });
    }

    fn vanish(&mut self, name: Name, batch: &mut Batch) {
        if self.has(&name) != Has::Nothing {
            batch.vanished.push(name);
        }
    }

    /// Keeps vanished names with the client until [`Self::release`].
    pub fn hold_back(&mut self, names: Vec<Name>) {
        self.held_back.extend(names);
    }

    /// Names held back that are still gone; the client counts as without them from now on.
    pub fn release(&mut self, res: &dyn Resources) -> Vec<Name> {
        let names = mem::take(&mut self.held_back);
        let gone: Vec<Name> = names.into_iter().filter(|n| res.get(self.ty, n).is_none()).collect();
        gone.iter().for_each(|n| self.clear(n));
        gone
    }

    /// The client counts as without these.
    pub fn clear_all(&mut self, names: &[Name]) {
        names.iter().for_each(|n| self.clear(n));
    }

    fn clear(&mut self, name: &Name) {
        self.held_back.remove(name);
        if let Some(slot) = self.slots.take(&**name)
            && slot.asked
        {
            let enc = Encoded::bare(name.clone());
            self.slots.insert(Slot { enc, has: Has::Nothing, ..slot });
        }
    }

    fn next_stamp(&mut self) -> u32 {
        // 0 is never a current stamp; a wrap after 4 billion rounds could at worst repeat a resource.
        self.stamp = self.stamp.checked_add(1).unwrap_or(1);
        self.stamp
    }

    fn stamped(&self, name: &str, stamp: u32) -> bool {
        self.slots.get(name).is_some_and(|s| s.stamp.get() == stamp)
    }
}

impl std::fmt::Debug for Subscription {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Subscription")
            .field("ty", &self.ty)
            .field("names", &self.slots.len())
            .field("wildcard", &self.wildcard)
            .field("in_flight", &self.in_flight)
            .finish_non_exhaustive()
    }
}
