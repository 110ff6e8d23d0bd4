//! A computed status beside what the object has: times of transition stay, other controllers' entries stay. Pure.

use serde_json::{Map, Value};

/// Field of a computed status, not written: the generation of the object it was computed of.
pub(super) const GENERATION: &str = "#generation";

/// What is to be written.
pub(super) fn merged(computed: &Value, current: &Value, generation: i64, now: &str) -> Value {
    let mut out = Map::new();
    let about = computed.get(GENERATION).and_then(Value::as_i64).filter(|g| *g > 0).unwrap_or(generation);
    let context = Context { about, now };
    for (field, value) in computed.as_object().into_iter().flatten().filter(|(f, _)| *f != GENERATION) {
        let had = current.get(field);
        let value = match field.as_str() {
            "conditions" => context.conditions(value, had, true),
            "listeners" => context.entries(value, had, &["name"], false),
            "parents" => context.entries(value, had, &["parentRef", "controllerName"], true),
            "ancestors" => context.entries(value, had, &["ancestorRef", "controllerName"], true),
            _ => value.clone(),
        };
        out.insert(field.clone(), value);
    }
    Value::Object(out)
}

/// Whether writing would change nothing.
pub(super) fn same(merged: &Value, current: &Value) -> bool {
    merged.as_object().into_iter().flatten().all(|(field, value)| match current.get(field) {
        Some(had) => had == value,
        None => value.as_array().is_some_and(Vec::is_empty),
    })
}

struct Context<'a> {
    about: i64,
    now: &'a str,
}

impl Context<'_> {
    /// Conditions, with the time since when they are as they are. `others`: those of other types stay.
    fn conditions(&self, computed: &Value, had: Option<&Value>, others: bool) -> Value {
        let list = |value: Option<&Value>| value.and_then(Value::as_array).cloned().unwrap_or_default();
        let (computed, had) = (list(Some(computed)), list(had));
        let find = |all: &[Value], kind: Option<&Value>| all.iter().find(|c| c.get("type") == kind).cloned();
        let mut out: Vec<Value> = Vec::new();
        for mut condition in computed.clone() {
            let before = find(&had, condition.get("type"));
            let since = before
                .filter(|b| b.get("status") == condition.get("status"))
                .and_then(|b| b.get("lastTransitionTime").cloned())
                .unwrap_or_else(|| self.now.into());
            if let Some(map) = condition.as_object_mut() {
                map.insert("lastTransitionTime".to_owned(), since);
                map.insert("observedGeneration".to_owned(), self.about.into());
                map.entry("message").or_insert_with(|| "".into());
            }
            out.push(condition);
        }
        if others {
            out.extend(had.into_iter().filter(|c| find(&computed, c.get("type")).is_none()));
        }
        out.into()
    }

    /// Entries that have conditions of their own, known by some fields. `shared`: those of other controllers stay.
    fn entries(&self, computed: &Value, had: Option<&Value>, known_by: &[&str], shared: bool) -> Value {
        let empty = Vec::new();
        let computed = computed.as_array().unwrap_or(&empty);
        let had = had.and_then(Value::as_array).unwrap_or(&empty);
        let same = |a: &Value, b: &Value| known_by.iter().all(|field| covers(a.get(field), b.get(field)));
        let mut out: Vec<Value> = Vec::new();
        for entry in computed {
            let before = had.iter().find(|b| same(entry, b));
            let mut entry = entry.clone();
            if let Some(conditions) = entry.get("conditions").cloned() {
                entry["conditions"] = self.conditions(&conditions, before.and_then(|b| b.get("conditions")), false);
            }
            if let (Some(map), Some(before)) = (entry.as_object_mut(), before.and_then(Value::as_object)) {
                // References as the API server has completed them.
                for field in known_by {
                    if let Some(value) = before.get(*field) {
                        map.insert((*field).to_owned(), value.clone());
                    }
                }
            }
            out.push(entry);
        }
        if shared {
            let ours: Vec<&Value> = computed.iter().filter_map(|e| e.get("controllerName")).collect();
            let is_ours = |entry: &Value| {
                let name = entry.get("controllerName");
                name.is_some_and(|n| ours.contains(&n))
                    || name.and_then(Value::as_str).is_some_and(crate::translate::status::is_ours)
            };
            out.extend(had.iter().filter(|entry| !is_ours(entry)).cloned());
        }
        out.into()
    }
}

/// Whether one value says all that the other does: references are completed by the API server.
fn covers(a: Option<&Value>, b: Option<&Value>) -> bool {
    match (a, b) {
        (Some(Value::Object(a)), Some(Value::Object(b))) => a.iter().all(|(k, v)| b.get(k) == Some(v)),
        (a, b) => a == b,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const OURS: &str = crate::translate::status::GATEWAY_CONTROLLER;

    fn route(status: &str, generation: i64) -> Value {
        json!({GENERATION: generation, "parents": [{"parentRef": {"name": "gw"}, "controllerName": OURS,
               "conditions": [{"type": "Accepted", "status": status, "reason": "R", "message": "m"}]}]})
    }

    #[test]
    fn transitions_keep_their_time_and_others_their_entries() {
        let other = json!({"parentRef": {"name": "x"}, "controllerName": "example.com/other", "conditions": []});
        let first = merged(&route("True", 3), &json!({"parents": [other]}), 9, "t1");
        let own = &first["parents"][0];
        assert_eq!(own["conditions"][0]["lastTransitionTime"], "t1");
        assert_eq!(own["conditions"][0]["observedGeneration"], 3, "what was looked at, not what is there by now");
        assert_eq!(first["parents"][1], other);
        assert!(same(&merged(&route("True", 3), &first, 9, "t2"), &first), "nothing to write");
        let second = merged(&route("True", 4), &first, 9, "t2");
        assert!(!same(&second, &first), "a new generation is told");
        assert_eq!(second["parents"][0]["conditions"][0]["lastTransitionTime"], "t1");
        let third = merged(&route("False", 4), &second, 9, "t3");
        assert_eq!(third["parents"][0]["conditions"][0]["lastTransitionTime"], "t3");
        let none = merged(&json!({"parents": []}), &third, 9, "t4");
        assert_eq!(none["parents"].as_array().unwrap().len(), 1, "ours go, the other stays");
        assert!(first.get(GENERATION).is_none());
    }

    #[test]
    fn completed_references_are_the_same() {
        let current = json!({"parents": [{"parentRef": {"group": "g", "kind": "Gateway", "name": "gw"}, "controllerName": OURS,
            "conditions": [{"type": "Accepted", "status": "True", "reason": "R", "message": "m",
                            "lastTransitionTime": "t0", "observedGeneration": 3}]}]});
        assert!(same(&merged(&route("True", 3), &current, 3, "t1"), &current));
    }

    #[test]
    fn conditions_of_gateways_keep_those_of_others() {
        let computed = json!({"conditions": [{"type": "Accepted", "status": "True", "reason": "R"}], "listeners": []});
        let current = json!({"conditions": [{"type": "Extra", "status": "True"}], "addresses": [{"value": "1.2.3.4"}]});
        let out = merged(&computed, &current, 2, "t");
        assert_eq!(out["conditions"].as_array().unwrap().len(), 2);
        assert!(out.get("addresses").is_none(), "what is not ours is not touched");
    }
}
