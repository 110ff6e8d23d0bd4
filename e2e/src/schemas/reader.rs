//! What our reader says of manifests, where schemas cannot tell: which absent fields it refuses, and which fields it
//! knows by a second name.

use std::{collections::BTreeSet, path::Path};

use mesh_control::source::{manifest, object::Kind};
use mesh_control::validate::Level;
use serde_json::{Value, json};

use super::compare::below;

/// Key of maps in samples: a number serves where keys are ports, too.
const KEY: &str = "80";

/// Every field that a published schema requires, by its path.
pub fn required(schema: &Value) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    collect(schema, "", &mut found);
    found
}

fn collect(schema: &Value, path: &str, found: &mut BTreeSet<String>) {
    for name in schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str) {
        found.insert(below(path, name));
    }
    for (name, schema) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
        collect(schema, &below(path, name), found);
    }
    if let Some(items) = schema.get("items") {
        collect(items, &format!("{path}[]"), found);
    }
    if let Some(values) = schema.get("additionalProperties").filter(|v| v.is_object()) {
        collect(values, &format!("{path}{{}}"), found);
    }
}

/// Whether the reader takes the field at `path` of a kind as one that it knows.
pub fn knows(kind: Kind, version: &str, schema: &Value, path: &str) -> bool {
    let errors = errors(kind, version, &sample(schema, path));
    !errors.iter().any(|e| e.ends_with(&format!("is not a field of {kind}")))
}

/// Whether the reader finds fault with a manifest for the absence of the field at `path` alone.
pub fn misses(kind: Kind, version: &str, schema: &Value, path: &str) -> bool {
    let whole = sample(schema, path);
    let mut without = whole.clone();
    remove(&mut without, path);
    let before = errors(kind, version, &whole);
    errors(kind, version, &without).iter().any(|e| !before.contains(e))
}

/// Whether the reader refuses a word at `path` that is none of the published ones.
pub fn refuses_other_words(kind: Kind, version: &str, schema: &Value, path: &str) -> bool {
    let whole = sample(schema, path);
    let mut other = whole.clone();
    let Some(place) = place(&mut other, path) else { return false };
    *place = if place.is_string() { json!("Otherwise") } else { json!(999) };
    let before = errors(kind, version, &whole);
    errors(kind, version, &other).iter().any(|e| !before.contains(e))
}

fn errors(kind: Kind, version: &str, spec: &Value) -> BTreeSet<String> {
    let manifest = json!({
        "apiVersion": format!("{}/{version}", kind.group()),
        "kind": kind.name(),
        "metadata": {"name": "sample", "namespace": "default"},
        "spec": spec,
    });
    let readings = manifest::read(Path::new("sample.json"), &manifest.to_string());
    let findings = readings.into_iter().flat_map(|r| r.findings).filter(|f| f.level == Level::Error);
    findings.map(|f| format!("{}: {}", f.field, f.message)).collect()
}

/// A manifest with what the schema requires and with the field at `path`.
fn sample(schema: &Value, path: &str) -> Value {
    let (step, rest) = next(path);
    if let Some(word) = schema.pointer("/enum/0") {
        return word.clone();
    }
    match schema.get("type").and_then(Value::as_str) {
        Some("object") => {
            let mut object = serde_json::Map::new();
            let fields = schema.get("properties").and_then(Value::as_object);
            let required = schema.get("required").and_then(Value::as_array).into_iter().flatten();
            for name in required.filter_map(Value::as_str).chain((!step.is_empty() && step != "{}").then_some(step)) {
                if let Some(field) = fields.and_then(|f| f.get(name)) {
                    object.insert(name.to_owned(), sample(field, if name == step { rest } else { "" }));
                }
            }
            if let Some(values) = schema.get("additionalProperties").filter(|v| v.is_object()) {
                object.insert(KEY.to_owned(), sample(values, rest));
            }
            Value::Object(object)
        }
        Some("array") => json!([schema.get("items").map(|items| sample(items, rest))]),
        Some("integer") => json!(schema.get("minimum").and_then(Value::as_i64).unwrap_or(1).max(1)),
        Some("number") => json!(1.5),
        Some("boolean") => json!(true),
        _ => {
            let constraints = format!("{:?}{:?}", schema.get("pattern"), schema.get("x-kubernetes-validations"));
            json!(if constraints.contains("duration") || constraints.contains("|ms") { "5s" } else { "a" })
        }
    }
}

/// The value at a path of a sample.
fn place<'a>(value: &'a mut Value, path: &str) -> Option<&'a mut Value> {
    let (step, rest) = next(path);
    match (step, value) {
        ("", value) => Some(value),
        ("[]", Value::Array(items)) => place(items.first_mut()?, rest),
        ("{}", Value::Object(fields)) => place(fields.get_mut(KEY)?, rest),
        (field, Value::Object(fields)) => place(fields.get_mut(field)?, rest),
        _ => None,
    }
}

/// Takes the field at a path out of a sample.
fn remove(value: &mut Value, path: &str) {
    let (parent, field) = path.rsplit_once('.').unwrap_or(("", path));
    if let Some(Value::Object(fields)) = place(value, parent) {
        fields.remove(field);
    }
}

/// The first step of a path and what follows.
fn next(path: &str) -> (&str, &str) {
    let path = path.strip_prefix('.').unwrap_or(path);
    if let Some(step @ ("[]" | "{}")) = path.get(..2) {
        return (step, path.get(2..).unwrap_or_default());
    }
    path.split_at(path.find(['.', '[', '{']).unwrap_or(path.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schema() -> Value {
        json!({"type": "object", "required": ["host"], "properties": {
            "host": {"type": "string"},
            "ports": {"type": "array", "items": {"type": "object", "required": ["number"], "properties": {
                "number": {"type": "integer", "minimum": 1},
                "wait": {"type": "string", "x-kubernetes-validations": [{"rule": "duration(self) >= duration('1ms')"}]}}}},
            "byPort": {"type": "object", "additionalProperties": {"type": "object", "required": ["mode"], "properties": {
                "mode": {"type": "string", "enum": ["STRICT", "DISABLE"]}}}}}})
    }

    #[test]
    fn every_required_field_is_found() {
        let found: Vec<_> = required(&schema()).into_iter().collect();
        assert_eq!(found, ["byPort{}.mode", "host", "ports[].number"]);
    }

    #[test]
    fn a_sample_holds_what_is_required_and_what_is_asked_for() {
        assert_eq!(sample(&schema(), ""), json!({"host": "a"}));
        assert_eq!(sample(&schema(), "ports[].wait"), json!({"host": "a", "ports": [{"number": 1, "wait": "5s"}]}));
        let mut by_port = sample(&schema(), "byPort{}.mode");
        assert_eq!(by_port, json!({"host": "a", "byPort": {"80": {"mode": "STRICT"}}}));
        remove(&mut by_port, "byPort{}.mode");
        assert_eq!(by_port, json!({"host": "a", "byPort": {"80": {}}}));
    }

    #[test]
    fn the_reader_misses_a_host_and_knows_old_names() {
        let published = json!({"type": "object", "required": ["host"], "properties": {
            "host": {"type": "string"}, "hots": {"type": "string"}, "exportTo": {"type": "array", "items": {"type": "string"}}}});
        assert!(misses(Kind::DestinationRule, "v1", &published, "host"));
        assert!(!misses(Kind::DestinationRule, "v1", &published, "exportTo"));
        assert!(knows(Kind::DestinationRule, "v1", &published, "exportTo"));
        assert!(!knows(Kind::DestinationRule, "v1", &published, "hots"));
    }

    #[test]
    fn the_reader_refuses_other_words() {
        let mode = json!({"type": "string", "enum": ["STRICT"]});
        let published = json!({"type": "object", "properties": {
            "mtls": {"type": "object", "properties": {"mode": mode}},
            "selector": {"type": "object", "properties": {"matchLabels": {"type": "object", "additionalProperties": mode}}}}});
        assert!(refuses_other_words(Kind::PeerAuthentication, "v1", &published, "mtls.mode"));
        assert!(!refuses_other_words(Kind::PeerAuthentication, "v1", &published, "selector.matchLabels{}"));
    }
}
