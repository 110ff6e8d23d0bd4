//! References between objects: hosts, subsets, ports, gateways, delegates that are not there; objects that are in each
//! other's way; selectors that select nothing. What is found here is no reason to refuse an object (what is missing may
//! come later); the object applies in its fail-safe form.
//!
//! Owns who refers to what, so that a change is checked together with those who refer to it and nobody else: a mesh of
//! any size costs the same. Runs after a change has settled and never on the way of a push. Must not know files.

mod checker;
mod conflicts;
mod ingress;
mod known;
mod patches;
mod protocols;
mod workloads;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    path::Path,
    sync::Arc,
};

use self::checker::Checker;
use self::known::{Known, Offer, Topic, label};
use super::{Finding, MESH_CONFIG, suppressed};
use crate::source::object::{Kind, Object, ObjectChange, ObjectKey};

/// Everything that refers to something that is not there, ordered by object.
pub fn check(objects: impl IntoIterator<Item = Arc<Object>>, domain: &str) -> Vec<Finding> {
    let mut references = References::new(domain, MESH_CONFIG.0);
    references.apply(objects.into_iter().map(ObjectChange::Upsert));
    references.findings()
}

/// References of all objects, kept up to date change by change.
#[derive(Debug, Default)]
pub struct References {
    known: Known,
    objects: HashMap<ObjectKey, Checked>,
    users: HashMap<Topic, HashSet<ObjectKey>>,
    /// Objects that refer to something missing.
    dangling: BTreeMap<ObjectKey, Vec<Finding>>,
}

/// An object with what it offers and refers to.
#[derive(Debug)]
struct Checked {
    object: Arc<Object>,
    offers: Vec<Offer>,
    uses: Vec<Topic>,
}

impl References {
    /// Of no objects; `domain` completes short names, and objects of namespace `root` are for all.
    pub fn new(domain: &str, root: &str) -> Self {
        Self { known: Known::new(domain, root), ..Self::default() }
    }

    /// Takes changes over. Returns the objects that were looked at again.
    pub fn apply(&mut self, changes: impl IntoIterator<Item = ObjectChange>) -> BTreeSet<ObjectKey> {
        let mut again = BTreeSet::new();
        for change in changes {
            self.enter(change, &mut again);
        }
        for key in &again {
            self.check(key);
        }
        again
    }

    /// Objects of a file that refer to something missing.
    pub fn dangling_in<'a>(&'a self, file: &'a Path) -> impl Iterator<Item = &'a ObjectKey> {
        let here = move |f: &Finding| f.file.as_deref() == Some(file);
        self.dangling.iter().filter(move |(_, found)| found.first().is_some_and(here)).map(|(key, _)| key)
    }

    /// Findings of one object, to be completed with their places.
    pub fn findings_of(&mut self, key: &ObjectKey) -> &mut [Finding] {
        self.dangling.get_mut(key).map_or(&mut [], Vec::as_mut_slice)
    }

    /// The object as it was taken over.
    pub fn object(&self, key: &ObjectKey) -> Option<&Arc<Object>> {
        self.objects.get(key).map(|c| &c.object)
    }

    /// Everything that refers to something that is not there, ordered by object.
    pub fn findings(&self) -> Vec<Finding> {
        let mut findings: Vec<Finding> = self.dangling.values().flatten().cloned().collect();
        findings.sort_by(|a, b| (&a.file, &a.object, &a.field).cmp(&(&b.file, &b.object, &b.field)));
        findings
    }

    fn enter(&mut self, change: ObjectChange, again: &mut BTreeSet<ObjectKey>) {
        let (key, object) = match change {
            ObjectChange::Upsert(object) => (object.key.clone(), Some(object)),
            ObjectChange::Remove(key) => (key, None),
        };
        let old = self.objects.remove(&key);
        old.iter().flat_map(|c| &c.uses).for_each(|topic| forget(&mut self.users, topic, &key));
        let offers = object.as_ref().map(|o| self.known.offers(o)).unwrap_or_default();
        // Of these others look into the content.
        let looked_into = |o: &&Arc<Object>| matches!(o.key.kind, Kind::IstioGateway | Kind::Service);
        let content = |o: Option<&Arc<Object>>| o.filter(looked_into).map(|o| o.spec.clone());
        let known = old.as_ref().map(|c| &c.object);
        if known.is_some() != object.is_some() || content(known) != content(object.as_ref()) {
            again.extend(self.users.get(&Topic::Object(key.clone())).into_iter().flatten().cloned());
        }
        let before = old.map(|c| c.offers).unwrap_or_default();
        if before != offers {
            let scopes = [&*key.namespace, ""];
            let any = |known: &Known| scopes.map(|scope| known.workloads(scope) > 0);
            let were_any = any(&self.known);
            before.iter().for_each(|offer| self.known.withdraw(&key, offer));
            offers.iter().for_each(|offer| self.known.declare(&key, offer));
            for offer in before.iter().chain(&offers) {
                self.users_of(offer, again);
            }
            if were_any != any(&self.known) {
                scopes.into_iter().for_each(|scope| self.users_in(&Topic::Workloads(scope.to_owned()), again));
            }
        }
        again.insert(key.clone());
        match object {
            Some(object) => {
                self.known.objects.insert(key.clone());
                self.objects.insert(key, Checked { object, offers, uses: Vec::new() });
            }
            None => {
                self.known.objects.remove(&key);
            }
        }
    }

    fn users_in(&self, topic: &Topic, out: &mut BTreeSet<ObjectKey>) {
        out.extend(self.users.get(topic).into_iter().flatten().cloned());
    }

    fn users_of(&self, offer: &Offer, out: &mut BTreeSet<ObjectKey>) {
        match offer {
            Offer::Host(host, _) | Offer::Subsets(host, _) | Offer::Selector(host, ..) => {
                self.users_in(&Topic::Host(host.clone()), out);
            }
            Offer::Member(group, _) => self.users_in(&Topic::Group(group.clone()), out),
            Offer::Workload(namespace, labels) => {
                for scope in [namespace.as_str(), ""] {
                    for label in labels.iter().map(label) {
                        self.users_in(&Topic::Label(scope.to_owned(), label), out);
                    }
                }
            }
            Offer::Suffix(suffix) => {
                let covered = |topic: &Topic| matches!(topic, Topic::Host(host) if host.ends_with(suffix.as_str()));
                out.extend(self.users.iter().filter(|(t, _)| covered(t)).flat_map(|(_, users)| users).cloned());
            }
        }
    }

    fn check(&mut self, key: &ObjectKey) {
        self.dangling.remove(key);
        let Some(checked) = self.objects.get(key) else { return };
        let object = checked.object.clone();
        checked.uses.iter().for_each(|topic| forget(&mut self.users, topic, key));
        let mut on = Checker { known: &self.known, objects: &self.objects, key, found: Vec::new(), uses: Vec::new() };
        on.object(&object);
        let Checker { mut found, uses, .. } = on;
        found.retain(|f| !suppressed(&object.meta.annotations, f.code));
        for topic in &uses {
            self.users.entry(topic.clone()).or_default().insert(key.clone());
        }
        if let Some(checked) = self.objects.get_mut(key) {
            checked.uses = uses;
        }
        for finding in &mut found {
            finding.object = Some(key.clone());
            if let Some(position) = &object.position {
                finding.file = Some(position.file.clone());
                finding.line = Some(position.line);
            }
        }
        if !found.is_empty() {
            self.dangling.insert(key.clone(), found);
        }
    }
}

fn forget(users: &mut HashMap<Topic, HashSet<ObjectKey>>, topic: &Topic, key: &ObjectKey) {
    if let Some(of_topic) = users.get_mut(topic) {
        of_topic.remove(key);
        if of_topic.is_empty() {
            users.remove(topic);
        }
    }
}

#[cfg(test)]
mod tests;
