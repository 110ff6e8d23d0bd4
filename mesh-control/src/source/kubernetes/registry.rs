//! What is in force of what an API server has. Pure: events in, changes out.
//!
//! The last good version of every object stays until a better one or its deletion; a security object that was never
//! good is enforced in its strictest form (`fail_safe`). Objects whose kind is listed anew and that are not in the list
//! are gone. Of Secrets and ConfigMaps only those count that others name.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use serde_json::Value;

use super::{named::Named, settings::Settings, watch::Seen};
use crate::{
    source::{
        fail_safe,
        manifest::{self, Reading},
        object::{Kind, Object, ObjectChange, ObjectKey},
        status::SharedStatus,
    },
    validate::{Finding, Level, MESH_CONFIG, references::References},
};

/// How far the listing of a kind is.
#[derive(Debug, Default)]
enum Listing {
    /// Nothing was listed yet.
    #[default]
    Never,
    /// These were listed so far.
    Under(HashSet<ObjectKey>),
    Complete,
}

/// What is in force.
#[derive(Debug)]
pub(super) struct Registry {
    /// Kinds that are watched; `None`: the server was not asked yet.
    kinds: Option<BTreeSet<Kind>>,
    listings: BTreeMap<Kind, Listing>,
    failing: BTreeMap<Kind, String>,
    served: HashMap<ObjectKey, Arc<Object>>,
    /// Of these only the strictest form is in force: they were never good.
    strictest: HashSet<ObjectKey>,
    findings: BTreeMap<ObjectKey, Vec<Finding>>,
    references: References,
    named: Named,
    /// Names that are of use, and whose objects were not read yet.
    unread: BTreeSet<(Kind, Arc<str>)>,
    /// Objects of these that changed meanwhile: what is read later is older.
    newer: HashSet<ObjectKey>,
    settings: Settings,
    status: SharedStatus,
    /// Something is to be published.
    changed: bool,
}

impl Registry {
    /// `namespace` and `revision` are this control plane's.
    pub(super) fn new(domain: &str, namespace: &str, revision: &str) -> Self {
        Self {
            kinds: None,
            listings: BTreeMap::new(),
            failing: BTreeMap::new(),
            served: HashMap::new(),
            strictest: HashSet::new(),
            findings: BTreeMap::new(),
            references: References::new(domain, namespace),
            named: Named::default(),
            unread: BTreeSet::new(),
            newer: HashSet::new(),
            settings: Settings::of(namespace, revision),
            status: SharedStatus::default(),
            changed: true,
        }
    }

    pub(super) fn status(&self) -> SharedStatus {
        self.status.clone()
    }

    /// Whether all kinds that there are were read once.
    pub(super) fn synced(&self) -> bool {
        let complete = |kind: &Kind| matches!(self.listings.get(kind), Some(Listing::Complete));
        self.kinds.as_ref().is_some_and(|kinds| kinds.iter().all(complete))
    }

    /// What is missing for that, in words.
    pub(super) fn missing(&self) -> String {
        let Some(kinds) = &self.kinds else { return "the API server does not answer".to_owned() };
        let open = kinds.iter().filter(|kind| !matches!(self.listings.get(kind), Some(Listing::Complete)));
        let words = open.map(|kind| match self.failing.get(kind) {
            Some(why) => format!("{kind} ({why})"),
            None => kind.to_string(),
        });
        format!("not read yet: {}", words.collect::<Vec<_>>().join(", "))
    }

    /// Takes an event over.
    pub(super) fn take(&mut self, seen: Seen) -> Vec<ObjectChange> {
        match seen {
            Seen::Kinds(kinds) => self.kinds_are(kinds.into_iter().collect()),
            Seen::Begin(kind) => {
                self.failing.remove(&kind);
                self.listings.insert(kind, Listing::Under(HashSet::new()));
                vec![]
            }
            Seen::Done(kind) => match self.listings.insert(kind, Listing::Complete) {
                Some(Listing::Under(listed)) => self.remove_others(kind, |key| listed.contains(key)),
                _ => vec![],
            },
            Seen::Failing(kind, why) => {
                self.failing.insert(kind, why);
                vec![]
            }
            Seen::Apply(value) => self.apply(value, true),
            Seen::Delete(value) => {
                let reading = self.settings.usual(value).map(manifest::read_object);
                let Some(key) = reading.and_then(|r| r.key) else { return vec![] };
                self.note_newer(&key);
                self.remove(&key).into_iter().collect()
            }
            Seen::Fetched(kind, name, values) => {
                if !self.unread.remove(&(kind, name.clone())) {
                    return vec![];
                }
                let changes = values.into_iter().flat_map(|value| self.apply(value, false)).collect();
                self.newer.retain(|key| key.kind != kind || key.name != name);
                changes
            }
        }
    }

    /// These kinds are there; of others nothing is any more.
    fn kinds_are(&mut self, kinds: BTreeSet<Kind>) -> Vec<ObjectChange> {
        let gone: Vec<Kind> = self.kinds.iter().flatten().copied().filter(|k| !kinds.contains(k)).collect();
        let mut changes = Vec::new();
        for kind in gone {
            self.listings.remove(&kind);
            self.failing.remove(&kind);
            changes.extend(self.remove_others(kind, |_| false));
        }
        self.kinds = Some(kinds);
        changes
    }

    fn remove_others(&mut self, kind: Kind, keep: impl Fn(&ObjectKey) -> bool) -> Vec<ObjectChange> {
        let known = self.served.keys().chain(self.findings.keys());
        let gone: BTreeSet<ObjectKey> = known.filter(|k| k.kind == kind && !keep(k)).cloned().collect();
        gone.iter().filter_map(|key| self.remove(key)).collect()
    }

    fn remove(&mut self, key: &ObjectKey) -> Option<ObjectChange> {
        self.changed |= self.findings.remove(key).is_some();
        self.strictest.remove(key);
        self.served.remove(key)?;
        let change = ObjectChange::Remove(key.clone());
        self.changed = true;
        self.references.apply([change.clone()]);
        Some(change)
    }

    fn note_newer(&mut self, key: &ObjectKey) {
        if !self.unread.is_empty() && self.unread.contains(&(key.kind, key.name.clone())) {
            self.newer.insert(key.clone());
        }
    }

    /// An object that is there. `told`: a watch says so, so that it is the newest.
    fn apply(&mut self, value: Value, told: bool) -> Vec<ObjectChange> {
        let Some(value) = self.settings.usual(value) else { return vec![] };
        let reading = manifest::read_object(value);
        let Some(key) = reading.key.clone() else { return vec![] };
        if !self.named.has(&key) {
            return vec![];
        }
        if let Some(Listing::Under(listed)) = self.listings.get_mut(&key.kind) {
            listed.insert(key.clone());
        }
        if told {
            self.note_newer(&key);
        } else if self.newer.contains(&key) {
            return vec![];
        }
        let change = self.decide(&key, reading);
        if let Some(change) = &change {
            // Endpoints and pods are what comes most, and refer to nothing.
            self.references.apply([change.clone()]);
            self.changed |= !matches!(key.kind, Kind::Pod | Kind::EndpointSlice);
        }
        change.into_iter().collect()
    }

    /// What is to be in force.
    fn decide(&mut self, key: &ObjectKey, reading: Reading) -> Option<ObjectChange> {
        let Reading { object, mut findings, raw, .. } = reading;
        let good = self.served.contains_key(key) && !self.strictest.contains(key);
        let serve = match object {
            Some(object) => {
                self.strictest.remove(key);
                Some(Arc::new(object))
            }
            None if good => {
                explain(&mut findings, " (the last good version stays in force)");
                None
            }
            None => {
                let strictest = fail_safe::strictest(None, key, &raw);
                explain(
                    &mut findings,
                    match (&strictest, key.kind) {
                        (Some(_), Kind::EnvoyFilter) => " (its other patches are in force)",
                        (Some(_), _) => " (until this is mended it is enforced in its strictest form)",
                        (None, _) => " (the object is not in force)",
                    },
                );
                if strictest.is_some() {
                    self.strictest.insert(key.clone());
                }
                strictest
            }
        };
        self.note(key, findings);
        let serve = serve?;
        let known = self.served.get(key).is_some_and(|old| old.meta == serve.meta && old.spec == serve.spec);
        if known {
            return None;
        }
        self.served.insert(key.clone(), serve.clone());
        Some(ObjectChange::Upsert(serve))
    }

    fn note(&mut self, key: &ObjectKey, findings: Vec<Finding>) {
        if findings.is_empty() {
            self.changed |= self.findings.remove(key).is_some();
        } else if self.findings.get(key) != Some(&findings) {
            self.findings.insert(key.clone(), findings);
            self.changed = true;
        }
    }

    /// From now on these Secrets and ConfigMaps are of use.
    pub(super) fn name(&mut self, named: Named) -> Vec<ObjectChange> {
        if named == self.named {
            return vec![];
        }
        let old = std::mem::replace(&mut self.named, named);
        let had: BTreeSet<_> = old.all().map(|(kind, name)| (kind, name.clone())).collect();
        let have: BTreeSet<_> = self.named.all().map(|(kind, name)| (kind, name.clone())).collect();
        self.unread.retain(|name| have.contains(name));
        self.unread.extend(have.difference(&had).cloned());
        let mut changes = Vec::new();
        for kind in [Kind::Secret, Kind::ConfigMap] {
            let named = self.named.clone();
            changes.extend(self.remove_others(kind, |key| named.has(key)));
        }
        changes
    }

    /// What is of use and was not read yet.
    pub(super) fn unread(&self) -> BTreeSet<(Kind, Arc<str>)> {
        self.unread.clone()
    }

    /// Shows findings, where there is news.
    pub(super) fn publish(&mut self) {
        if !std::mem::take(&mut self.changed) {
            return;
        }
        let mut findings: Vec<Finding> = self.findings.values().flatten().cloned().collect();
        findings.extend(self.references.findings());
        for object in findings.iter_mut().filter_map(|f| f.object.as_mut()) {
            *object = self.settings.real(object);
        }
        let (namespace, name, _) = MESH_CONFIG;
        let settings = self.served.contains_key(&ObjectKey::new(Kind::ConfigMap, namespace, name));
        let is_refused = |found: &Vec<Finding>| found.iter().any(|f| f.level == Level::Error);
        let refused = self.findings.iter().filter(|(_, found)| is_refused(found));
        let refused = refused.map(|(key, _)| self.settings.real(key)).collect();
        let mut status = self.status.write();
        status.mesh_config = self.settings.mesh_config();
        status.publish(findings, refused, settings);
    }
}

/// Says at the first error what is in force instead.
fn explain(findings: &mut [Finding], words: &str) {
    if let Some(first) = findings.iter_mut().find(|f| f.level == Level::Error) {
        first.message.push_str(words);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::validate::is_mesh_config;

    fn registry(kinds: &[Kind]) -> Registry {
        let mut registry = Registry::new("cluster.local", "istio-system", "");
        registry.take(Seen::Kinds(kinds.to_vec()));
        registry
    }

    fn object(kind: Kind, name: &str, spec: Value) -> Value {
        let api = match kind.group() {
            "" => "v1".to_owned(),
            group => format!("{group}/v1"),
        };
        json!({"apiVersion": api, "kind": kind.name(), "metadata": {"name": name, "namespace": "shop"}, "spec": spec})
    }

    fn words(changes: &[ObjectChange]) -> Vec<String> {
        let word = |c: &ObjectChange| match c {
            ObjectChange::Upsert(o) => format!("+{}", o.key.name),
            ObjectChange::Remove(k) => format!("-{}", k.name),
        };
        changes.iter().map(word).collect()
    }

    #[test]
    fn a_list_tells_what_is_gone() {
        let kind = Kind::Service;
        let mut r = registry(&[kind]);
        assert!(!r.synced() && r.missing().contains("Service"));
        let service = |name: &str| object(kind, name, json!({"ports": [{"port": 80}]}));
        r.take(Seen::Begin(kind));
        assert_eq!(words(&r.take(Seen::Apply(service("a")))), ["+a"]);
        assert_eq!(words(&r.take(Seen::Apply(service("b")))), ["+b"]);
        assert!(r.take(Seen::Done(kind)).is_empty());
        assert!(r.synced());
        // The history was compacted: all is listed anew, and what has not changed is no change.
        r.take(Seen::Begin(kind));
        assert!(r.take(Seen::Apply(service("b"))).is_empty());
        assert_eq!(words(&r.take(Seen::Done(kind))), ["-a"]);
        assert_eq!(words(&r.take(Seen::Delete(service("b")))), ["-b"]);
        assert!(r.take(Seen::Delete(service("b"))).is_empty());
    }

    #[test]
    fn what_fails_between_lists_loses_nothing() {
        let kind = Kind::Service;
        let mut r = registry(&[kind]);
        let service = object(kind, "a", json!({"ports": [{"port": 80}]}));
        r.take(Seen::Begin(kind));
        r.take(Seen::Apply(service));
        r.take(Seen::Done(kind));
        assert!(r.take(Seen::Begin(kind)).is_empty(), "a list has begun");
        assert!(r.take(Seen::Failing(kind, "gone".to_owned())).is_empty(), "and broke off");
        assert_eq!(r.served.len(), 1);
    }

    #[test]
    fn kinds_come_and_go() {
        let kind = Kind::VirtualService;
        let mut r = registry(&[kind]);
        r.take(Seen::Begin(kind));
        let value = object(kind, "v", json!({"hosts": ["a"], "http": [{"route": [{"destination": {"host": "a"}}]}]}));
        assert_eq!(words(&r.take(Seen::Apply(value))), ["+v"]);
        r.take(Seen::Done(kind));
        assert_eq!(words(&r.take(Seen::Kinds(vec![]))), ["-v"]);
        assert!(r.synced(), "what is not there is read");
    }

    #[test]
    fn the_last_good_version_stays_and_security_never_opens() {
        let mut r = registry(&[]);
        let peer = |spec| object(Kind::PeerAuthentication, "p", spec);
        let bad = r.take(Seen::Apply(peer(json!({"mtls": {"mode": "SOMETIMES"}}))));
        let Some(ObjectChange::Upsert(object)) = bad.first() else { panic!("{bad:?}") };
        assert!(format!("{:?}", object.spec).contains("Strict"), "{:?}", object.spec);
        let good = r.take(Seen::Apply(peer(json!({"mtls": {"mode": "PERMISSIVE"}}))));
        assert_eq!(words(&good), ["+p"]);
        let again = r.take(Seen::Apply(peer(json!({"mtls": {"mode": "NEVER"}}))));
        assert!(again.is_empty(), "{again:?}");
        r.publish();
        let status = r.status();
        let said = status.read().findings.iter().any(|f| f.message.contains("last good version"));
        assert!(said, "{:?}", status.read().findings);
        assert_eq!(status.read().errors(), 1);
    }

    #[test]
    fn only_secrets_that_are_named_count() {
        let mut r = registry(&[Kind::Secret]);
        let secret = |name: &str| json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": "shop"}, "data": {}});
        assert!(r.take(Seen::Apply(secret("web"))).is_empty());
        assert!(r.name(Named::for_tests(&["web", "late"])).is_empty());
        assert_eq!(r.unread().len(), 2);
        assert_eq!(words(&r.take(Seen::Fetched(Kind::Secret, "web".into(), vec![secret("web")]))), ["+web"]);
        // A watch told that it is gone before it was read: what was read is older.
        r.take(Seen::Delete(secret("late")));
        assert!(r.take(Seen::Fetched(Kind::Secret, "late".into(), vec![secret("late")])).is_empty());
        assert!(r.unread().is_empty());
        assert_eq!(words(&r.take(Seen::Apply(secret("late")))), ["+late"]);
        assert_eq!(words(&r.name(Named::for_tests(&["late"]))), ["-web"]);
    }

    #[test]
    fn settings_are_those_of_the_revision() {
        let map = |name: &str, mesh: &str| {
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "istio-system"},
                   "data": {"mesh": mesh}})
        };
        let mut r = Registry::new("cluster.local", "istio-system", "canary");
        assert!(r.take(Seen::Apply(map("istio", "trustDomain: a"))).is_empty());
        let own = r.take(Seen::Apply(map("istio-canary", "trustDomain: b")));
        let Some(ObjectChange::Upsert(object)) = own.first() else { panic!("{own:?}") };
        assert!(is_mesh_config(&object.key));
        let mut r = Registry::new("cluster.local", "istio-system", "default");
        assert_eq!(words(&r.take(Seen::Apply(map("istio", "trustDomain: a")))), ["+istio"]);
        assert!(r.take(Seen::Apply(map("other", ""))).is_empty());
    }

    #[test]
    fn settings_of_any_namespace_and_revision_are_validated_under_their_real_name() {
        let map = |namespace: &str, mesh: &str| {
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "istio-blue", "namespace": namespace},
                   "data": {"mesh": mesh}})
        };
        let mut r = Registry::new("cluster.local", "mesh-system", "blue");
        assert!(r.take(Seen::Apply(map("istio-system", "trustDomain: a"))).is_empty(), "another mesh's");
        assert!(r.take(Seen::Apply(map("mesh-system", "trustDomian: a"))).is_empty(), "not taken");
        r.publish();
        let status = r.status();
        let said = status.read().findings[0].to_string();
        assert!(said.contains("mesh-system/istio-blue") && said.contains("trustDomian"), "{said}");
        assert_eq!(status.read().findings[0].object.as_ref(), Some(&status.read().mesh_config));
        assert!(!status.read().settings);
        let good = r.take(Seen::Apply(map("mesh-system", "trustDomain: a")));
        let Some(ObjectChange::Upsert(object)) = good.first() else { panic!("{good:?}") };
        assert!(is_mesh_config(&object.key));
        r.publish();
        assert!(status.read().settings && status.read().findings.is_empty());
        assert_eq!(words(&r.take(Seen::Delete(map("mesh-system", "")))), ["-istio"]);
    }
}
