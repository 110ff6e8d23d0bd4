//! Objects that are in each other's way: each is told of the others.

use std::collections::{BTreeMap, HashSet};

use mesh_api::labels::selects;

use super::checker::Checker;
use super::known::{Detail, Group, Topic, label, memberships, selector, words};
use crate::source::object::{Kind, Object, ObjectKey};
use crate::validate::Finding;

/// Most objects that one message names.
const NAMED: usize = 3;

impl Checker<'_> {
    /// Conflicts of an object with others of its kind.
    pub(super) fn conflicts(&mut self, object: &Object) {
        let mut told = HashSet::new();
        for (group, detail, field) in memberships(object, &self.known.domain) {
            if let Group::Selecting(kind, ..) = &group {
                if *kind != Kind::Service {
                    self.selected_twice(object, &field);
                }
                continue;
            }
            if matches!(group, Group::Tokens(_) | Group::Secret(_)) || !told.insert((group.clone(), field.clone())) {
                continue;
            }
            let members = self.known.group(&group).into_iter().flatten().filter(|(key, _)| *key != self.key);
            let others: Vec<&ObjectKey> = match &group {
                Group::EntryPort { .. } => members.filter(|(_, d)| **d != detail).map(|(key, _)| key).collect(),
                _ => members.map(|(key, _)| key).collect(),
            };
            if let Some(finding) = conflict(&group, &field, &others) {
                self.found.push(finding);
            }
            self.uses.push(Topic::Group(group));
        }
    }

    /// Others of the kind that select a workload that this selects too, or just the same.
    fn selected_twice(&mut self, object: &Object, field: &str) {
        let Some(labels) = selector(object) else { return };
        let Some(first) = labels.iter().next().map(label) else { return };
        let (kind, namespace) = (object.key.kind, object.key.namespace.to_string());
        let place = self.known.scope(&object.key);
        let mut others: BTreeMap<&ObjectKey, String> = BTreeMap::new();
        let known = self.known;
        let same = Group::Selecting(kind, namespace.clone(), first.clone());
        for (key, detail) in known.group(&same).into_iter().flatten() {
            if key != self.key && *detail == Detail::Selector(labels.clone()) {
                others.insert(key, words(&labels));
            }
        }
        let mut groups = HashSet::from([same]);
        let mut seen = HashSet::new();
        for (workload, carried) in known.selected(place, &labels) {
            // Workloads of one deployment differ in nothing that matters here.
            if !seen.insert(carried) {
                continue;
            }
            for one in carried.iter().map(label) {
                let group = Group::Selecting(kind, namespace.clone(), one);
                for (key, detail) in known.group(&group).into_iter().flatten() {
                    let Detail::Selector(theirs) = detail else { continue };
                    if key != self.key && selects(theirs, carried) {
                        others.entry(key).or_insert_with(|| workload.name.to_string());
                    }
                }
                groups.insert(group);
            }
        }
        self.uses.extend(groups.into_iter().map(Topic::Group));
        self.uses.push(Topic::Label(place.to_owned(), first));
        if let Some(what) = others.values().next() {
            let code = if kind == Kind::Sidecar { "IST0110" } else { "IST0159" };
            let message = format!("{what} is also selected by {}", names(&others.keys().copied().collect::<Vec<_>>()));
            self.found.push(Finding::error(field, message).code(code));
        }
    }
}

/// `a/b, a/c and 3 more`.
fn names(keys: &[&ObjectKey]) -> String {
    let named: Vec<String> = keys.iter().take(NAMED).map(|k| format!("{}/{}", k.namespace, k.name)).collect();
    match keys.len().saturating_sub(NAMED) {
        0 => named.join(", "),
        more => format!("{} and {more} more", named.join(", ")),
    }
}

fn conflict(group: &Group, field: &str, others: &[&ObjectKey]) -> Option<Finding> {
    if others.is_empty() {
        return None;
    }
    let others = names(others);
    Some(match group {
        Group::MeshHost { host, .. } => {
            Finding::error(field, format!("{host} is routed for sidecars by {others} too")).code("IST0109")
        }
        Group::Unselective(kind, namespace) => {
            let code = if *kind == Kind::Sidecar { "IST0111" } else { "IST0160" };
            Finding::error(field, format!("{others} stands for all of namespace {namespace} too")).code(code)
        }
        Group::Listener { port, host, .. } => {
            Finding::error(field, format!("{others} has {host} on port {port} of the same workload")).code("IST0145")
        }
        Group::Certificate { name, .. } => {
            Finding::warning(field, format!("{others} uses the certificate {name} at the same workload"))
                .code("IST0138")
        }
        Group::EntryPort { host, port, .. } => {
            Finding::warning(field, format!("{others} gives port {port} of {host} another protocol")).code("IST0177")
        }
        Group::Selecting(..) | Group::Tokens(_) | Group::Secret(_) => return None,
    })
}
