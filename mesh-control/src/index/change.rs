//! What a batch of object changes altered, precisely.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::IpAddr,
};

use mesh_api::model::Name;

use super::{service::ServiceKey, stamp::Stamp};
use crate::source::object::{Kind, ObjectKey};

/// The difference between two states of the index. Changes without effect (status, foreign annotations, a file
/// written anew with the same content) are not in it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ChangeSet {
    /// Services that appeared, vanished or were declared differently.
    pub services: HashSet<ServiceKey>,
    /// Ports of those services, before and after.
    pub ports: BTreeMap<ServiceKey, BTreeSet<u16>>,
    /// Hosts that got, lost or may have changed another name (`ExternalName` services that point at them). Clients that do
    /// not import the alias know the host by it all the same.
    pub aliased: BTreeSet<Name>,
    /// Hosts (or patterns) whose DestinationRules changed, with the names of their subsets before and after.
    pub rules: BTreeMap<Name, BTreeSet<Name>>,
    /// Services whose clusters show something else of their endpoints: the set of service accounts.
    pub facts: HashSet<ServiceKey>,
    /// Services whose endpoints changed.
    pub endpoints: HashSet<ServiceKey>,
    /// Objects that translation reads directly and that changed. Services, slices, pods and entries are not listed:
    /// what they alter stands in the other fields.
    pub objects: BTreeSet<ObjectKey>,
    /// Addresses where a workload, or what it serves, changed: proxies there derive their view anew.
    pub addresses: HashSet<IpAddr>,
    /// MeshConfig changed.
    pub mesh: bool,
    /// What the index had been before: stamps newer than these came with this change (or later).
    pub since: Since,
}

/// A state of the index that a change set begins at. Takes no part in equality.
#[derive(Debug, Clone, Copy, Default)]
pub struct Since(pub Option<Stamp>);

impl PartialEq for Since {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Since {}

impl Since {
    /// Whether something with this stamp is part of the change, as far as is known.
    pub fn covers(self, stamp: Stamp) -> bool {
        self.0.is_none_or(|before| stamp > before)
    }
}

impl ChangeSet {
    /// Nothing changed.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Nothing but endpoints (and the addresses they are at).
    pub fn only_endpoints(&self) -> bool {
        self.services.is_empty() && self.facts.is_empty() && self.objects.is_empty() && !self.mesh
    }

    /// Adds a later change.
    pub fn merge(&mut self, later: Self) {
        self.services.extend(later.services);
        for (key, ports) in later.ports {
            self.ports.entry(key).or_default().extend(ports);
        }
        self.aliased.extend(later.aliased);
        for (host, subsets) in later.rules {
            self.rules.entry(host).or_default().extend(subsets);
        }
        self.facts.extend(later.facts);
        self.endpoints.extend(later.endpoints);
        self.objects.extend(later.objects);
        self.addresses.extend(later.addresses);
        self.mesh |= later.mesh;
        self.since.0 = match (self.since.0, later.since.0) {
            (Some(a), Some(b)) => Some(a.min(b)),
            _ => None,
        };
    }

    /// Whether an object of this kind changed.
    pub fn has(&self, kind: Kind) -> bool {
        self.objects_of(kind).next().is_some()
    }

    /// Changed objects of a kind.
    pub fn objects_of(&self, kind: Kind) -> impl Iterator<Item = &ObjectKey> {
        self.objects.iter().filter(move |k| k.kind == kind)
    }
}
