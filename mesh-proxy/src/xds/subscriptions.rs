//! What is asked for of one resource type, and what has to be said so that the server knows.
//!
//! Owns the difference between what we want and what the server was told on this stream. Knows neither messages nor
//! where the wishes come from.

use std::collections::{BTreeSet, HashMap};

use mesh_api::model::Name;

/// What is wanted of one type.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Interest {
    /// Everything that the server thinks we should have.
    pub wildcard: bool,
    /// These by name.
    pub names: BTreeSet<Name>,
}

impl Interest {
    /// Everything.
    pub fn all() -> Self {
        Self { wildcard: true, names: BTreeSet::new() }
    }
    /// Some names.
    pub fn names(names: impl IntoIterator<Item = Name>) -> Self {
        Self { wildcard: false, names: names.into_iter().collect() }
    }
    /// Nothing at all.
    pub fn is_none(&self) -> bool {
        !self.wildcard && self.names.is_empty()
    }
    /// Whether a resource of this name is wanted.
    pub fn wants(&self, name: &str) -> bool {
        self.wildcard || self.names.contains(name)
    }
}

/// Names to tell the server.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Difference {
    /// Newly wanted.
    pub subscribe: Vec<Name>,
    /// No longer wanted.
    pub unsubscribe: Vec<Name>,
}

/// One type on one client.
#[derive(Debug, Default)]
pub struct Subscription {
    /// What we want.
    pub interest: Interest,
    /// Names that the server was told on this stream.
    told: BTreeSet<Name>,
    /// A request of this type went out on this stream.
    pub asked: bool,
    /// Accepted resources with their versions. What was refused is not in here (its last good version may be), so
    /// that nobody thinks that we have it.
    pub held: HashMap<Name, String>,
    /// Last version accepted as a whole (state of the world).
    pub accepted: String,
    /// Of the newest response on this stream.
    pub nonce: String,
}

impl Subscription {
    /// A new stream: the server knows nothing of us.
    pub fn reset(&mut self) {
        self.told.clear();
        self.asked = false;
        self.nonce.clear();
    }

    /// What is to be said now; afterwards it counts as said.
    pub fn catch_up(&mut self) -> Difference {
        let subscribe: Vec<Name> = self.interest.names.difference(&self.told).cloned().collect();
        let unsubscribe: Vec<Name> = self.told.difference(&self.interest.names).cloned().collect();
        self.told = self.interest.names.clone();
        Difference { subscribe, unsubscribe }
    }

    /// Changes what is wanted. What is not wanted any more is forgotten.
    pub fn want(&mut self, interest: Interest) {
        self.held.retain(|name, _| interest.wants(name));
        self.interest = interest;
    }
}
