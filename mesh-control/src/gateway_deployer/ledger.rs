//! What is there of what was made, and what is to be done about it. Pure: events and answers in, steps out.
//!
//! An object is applied when what is wanted of it changed, or when what it has of that is not what the API server had
//! made of it. So edits by hand are brought back, fields that nobody applies are left alone, and nothing is written twice.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::{
    made::{Made, MadeKey, MadeKind},
    render::VERSION,
};
use crate::translate::gateway_infrastructure::CONTROLLER_VERSION;

/// What was applied, and what became of it.
#[derive(Debug)]
struct Applied {
    wanted: Value,
    /// The API server's form of the wanted fields.
    got: Value,
}

/// Objects of ours as the API server has them.
#[derive(Debug, Default)]
pub struct Ledger {
    there: BTreeMap<MadeKey, Value>,
    applied: BTreeMap<MadeKey, Applied>,
    /// Kinds that were listed, and which objects of a list that is under way there were.
    listed: BTreeSet<MadeKind>,
    listing: BTreeMap<MadeKind, BTreeSet<MadeKey>>,
}

/// What is to be done about an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Keep,
    /// To be applied.
    Apply,
    /// Nothing is known of it: to be asked for, and judged again.
    Ask,
    /// It is somebody else's.
    Refuse(String),
}

impl Ledger {
    /// Whether all kinds were listed once.
    pub fn is_complete(&self) -> bool {
        self.listed.len() == MadeKind::ALL.len()
    }

    /// A list of a kind begins.
    pub fn begin(&mut self, kind: MadeKind) {
        self.listing.insert(kind, BTreeSet::new());
    }

    /// The list of a kind is complete: others are gone.
    pub fn end(&mut self, kind: MadeKind) {
        if let Some(there) = self.listing.remove(&kind) {
            self.there.retain(|key, _| key.kind != kind || there.contains(key));
        }
        self.listed.insert(kind);
    }

    /// An object as it is.
    pub fn see(&mut self, key: MadeKey, object: Value) {
        if let Some(listing) = self.listing.get_mut(&key.kind) {
            listing.insert(key.clone());
        }
        self.there.insert(key, object);
    }

    /// An object is gone, or is not known as ours any more.
    pub fn lose(&mut self, key: &MadeKey) {
        self.there.remove(key);
        self.applied.remove(key);
    }

    /// What is to be done about an object of a Gateway. `asked`: what the API server has under its name, if it was asked.
    pub fn judge(&self, key: &MadeKey, made: &Made, gateway_uid: &str, asked: Option<Option<&Value>>) -> Step {
        let there = match (self.there.get(key), asked) {
            (Some(there), _) | (None, Some(Some(there))) => there,
            (None, Some(None)) => return Step::Apply,
            (None, None) => return Step::Ask,
        };
        if !owners(there).any(|owner| owner["uid"] == gateway_uid) {
            if made.may_be_anothers {
                return Step::Keep;
            }
            return Step::Refuse(match owners(there).find(|o| o["kind"] == "Gateway") {
                Some(other) => format!("{key} belongs to Gateway {}", text(other, "name")),
                None => format!(
                    "{key} is there already and was not made for this Gateway: rename one of them, or name the Gateway's own otherwise by annotation gateway.istio.io/name-override"
                ),
            });
        }
        if version(there) > VERSION {
            return Step::Keep;
        }
        match self.applied.get(key) {
            Some(applied) if applied.wanted == made.value && applied.got == part(&made.value, there) => Step::Keep,
            _ => Step::Apply,
        }
    }

    /// It was applied, and is this now.
    pub fn note(&mut self, key: MadeKey, wanted: Value, object: Value) {
        let got = part(&wanted, &object);
        self.applied.insert(key.clone(), Applied { wanted, got });
        self.there.insert(key, object);
    }

    /// Objects that belong to a Gateway and are not wanted any more.
    pub fn obsolete(&self, gateway_uid: &str, wanted: &BTreeSet<MadeKey>) -> Vec<MadeKey> {
        let own = self.there.iter().filter(|(key, object)| {
            !wanted.contains(key)
                && version(object) <= VERSION
                && object["metadata"]["deletionTimestamp"].is_null()
                && owners(object).any(|owner| owner["uid"] == gateway_uid)
        });
        own.map(|(key, _)| key.clone()).collect()
    }
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

fn owners(object: &Value) -> impl Iterator<Item = &Value> {
    object["metadata"]["ownerReferences"].as_array().into_iter().flatten()
}

/// Which version of the control plane has made it.
fn version(object: &Value) -> u32 {
    text(&object["metadata"]["annotations"], CONTROLLER_VERSION).parse().unwrap_or(0)
}

/// The part of an object that some fields speak of. Items of lists are found by name or port where they have one.
fn part(wanted: &Value, object: &Value) -> Value {
    match (wanted, object) {
        (Value::Object(wanted), Value::Object(object)) => {
            let fields = wanted.iter().map(|(key, w)| (key.clone(), part(w, object.get(key).unwrap_or(&Value::Null))));
            Value::Object(fields.collect::<Map<_, _>>())
        }
        (Value::Array(wanted), Value::Array(object)) => {
            let Some(keys) = wanted.iter().map(identity).collect::<Option<Vec<_>>>() else {
                return Value::Array(object.clone());
            };
            let find = |id: &(&str, &Value)| object.iter().find(|o| o.get(id.0) == Some(id.1)).unwrap_or(&Value::Null);
            wanted.iter().zip(&keys).map(|(w, id)| part(w, find(id))).collect()
        }
        (_, object) => object.clone(),
    }
}

fn identity(item: &Value) -> Option<(&'static str, &Value)> {
    ["name", "containerPort", "port", "mountPath", "uid"].into_iter().find_map(|key| Some((key, item.get(key)?)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn key() -> MadeKey {
        MadeKey { namespace: "infra".to_owned(), kind: MadeKind::Deployment, name: "edge-istio".to_owned() }
    }

    fn made() -> Made {
        let value = json!({
            "metadata": {"labels": {"a": "b"}, "ownerReferences": [{"kind": "Gateway", "name": "edge", "uid": "u1"}]},
            "spec": {"containers": [{"name": "p", "cpu": "1000m"}]},
        });
        Made { kind: MadeKind::Deployment, name: "edge-istio".to_owned(), value, may_be_anothers: false }
    }

    /// As the API server completes it.
    fn completed() -> Value {
        let mut object = made().value;
        object["metadata"]["uid"] = "own".into();
        object["spec"]["replicas"] = 1.into();
        object["spec"]["containers"] = json!([{"name": "sidecar"}, {"name": "p", "cpu": "1", "policy": "default"}]);
        object
    }

    fn applied() -> Ledger {
        let mut ledger = Ledger::default();
        ledger.note(key(), made().value, completed());
        ledger
    }

    #[test]
    fn what_nobody_knows_is_asked_for_first() {
        let ledger = Ledger::default();
        assert_eq!(ledger.judge(&key(), &made(), "u1", None), Step::Ask);
        assert_eq!(ledger.judge(&key(), &made(), "u1", Some(None)), Step::Apply);
        assert_eq!(
            ledger.judge(&key(), &made(), "u1", Some(Some(&completed()))),
            Step::Apply,
            "ours without its label"
        );
    }

    #[test]
    fn edits_are_brought_back_and_the_rest_is_left_alone() {
        let mut ledger = applied();
        assert_eq!(ledger.judge(&key(), &made(), "u1", None), Step::Keep);
        let mut object = completed();
        object["spec"]["replicas"] = 3.into();
        object["status"] = json!({"ready": 1});
        object["metadata"]["labels"]["theirs"] = "x".into();
        ledger.see(key(), object.clone());
        assert_eq!(ledger.judge(&key(), &made(), "u1", None), Step::Keep, "fields of others");
        object["spec"]["containers"][1]["cpu"] = "2".into();
        ledger.see(key(), object);
        assert_eq!(ledger.judge(&key(), &made(), "u1", None), Step::Apply, "a field of ours");
        let mut ledger = applied();
        let mut other = made();
        other.value["spec"]["containers"][0]["cpu"] = "500m".into();
        assert_eq!(ledger.judge(&key(), &other, "u1", None), Step::Apply, "another wish");
        ledger.lose(&key());
        assert_eq!(ledger.judge(&key(), &made(), "u1", None), Step::Ask);
    }

    #[test]
    fn what_is_somebody_elses_is_not_touched() {
        let mut object = completed();
        object["metadata"]["ownerReferences"] = json!([]);
        let judge = |object: &Value, made: &Made| Ledger::default().judge(&key(), made, "u1", Some(Some(object)));
        assert!(matches!(judge(&object, &made()), Step::Refuse(why) if why.contains("was not made for this Gateway")));
        assert_eq!(judge(&object, &Made { may_be_anothers: true, ..made() }), Step::Keep);
        object["metadata"]["ownerReferences"] = json!([{"kind": "Gateway", "name": "other", "uid": "u2"}]);
        assert!(matches!(judge(&object, &made()), Step::Refuse(why) if why.ends_with("belongs to Gateway other")));
    }

    #[test]
    fn newer_versions_are_left_alone() {
        let mut object = completed();
        object["metadata"]["annotations"][CONTROLLER_VERSION] = (VERSION + 1).to_string().into();
        assert_eq!(Ledger::default().judge(&key(), &made(), "u1", Some(Some(&object))), Step::Keep);
        let mut ledger = Ledger::default();
        ledger.see(key(), object);
        assert!(ledger.obsolete("u1", &BTreeSet::new()).is_empty());
    }

    #[test]
    fn what_is_not_wanted_any_more_goes() {
        let ledger = applied();
        assert_eq!(ledger.obsolete("u1", &BTreeSet::new()), [key()]);
        assert!(ledger.obsolete("u1", &BTreeSet::from([key()])).is_empty());
        assert!(ledger.obsolete("u2", &BTreeSet::new()).is_empty(), "another Gateway's");
    }

    #[test]
    fn what_is_not_in_a_list_is_gone() {
        let mut ledger = applied();
        ledger.begin(MadeKind::Service);
        ledger.end(MadeKind::Service);
        assert_eq!(ledger.judge(&key(), &made(), "u1", None), Step::Keep, "a list of another kind");
        ledger.begin(MadeKind::Deployment);
        ledger.end(MadeKind::Deployment);
        assert_eq!(ledger.judge(&key(), &made(), "u1", None), Step::Ask);
        assert!(!ledger.is_complete());
    }
}
