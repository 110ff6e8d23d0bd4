//! Compares two JSON schemas, a published one and that of our type, and says every difference.
//!
//! Knows schemas only: neither kinds nor where schemas come from. Descriptions, patterns, ranges and rules in CEL are
//! not compared: those are the business of validation.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde_json::Value;

/// One way in which our type and the published schema differ.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Published, and not a field of ours.
    Missing,
    /// A field of ours that is not published.
    Extra,
    /// Another type.
    Type {
        /// As published.
        published: &'static str,
        /// As here.
        here: &'static str,
    },
    /// A published word (value of an enum) that ours does not know.
    MissingWord(String),
    /// A word of ours that is not published.
    ExtraWord(String),
    /// The published words are known; ours takes every value.
    AnyWord,
    /// Published as required; its absence goes unnoticed here.
    Optional,
    /// A kind or version that is published and not served here.
    NotServed,
    /// A kind or version that is served here and not published.
    NotPublished,
}

impl Kind {
    /// Ours takes something that is not published: true of one channel, it may be untrue of the other.
    pub fn surplus(&self) -> bool {
        matches!(self, Kind::Extra | Kind::ExtraWord(_) | Kind::NotPublished)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Kind::Missing => f.write_str("missing here"),
            Kind::Extra => f.write_str("only here"),
            Kind::Type { published, here } => write!(f, "{published} as published, {here} here"),
            Kind::MissingWord(word) => write!(f, "value {word} missing here"),
            Kind::ExtraWord(word) => write!(f, "value {word} only here"),
            Kind::AnyWord => f.write_str("any value here"),
            Kind::Optional => f.write_str("required as published, may be absent here"),
            Kind::NotServed => f.write_str("not served here"),
            Kind::NotPublished => f.write_str("served here only"),
        }
    }
}

/// What a schema describes, as far as it is compared.
#[derive(Debug)]
enum Shape<'a> {
    Object(BTreeMap<&'a str, &'a Value>),
    Map(&'a Value),
    Array(&'a Value),
    /// Certain values only, of the type that is named.
    Words(&'static str, BTreeSet<Cow<'a, str>>),
    Text,
    Integer,
    Number,
    Boolean,
    /// Anything goes.
    Free,
}

impl Shape<'_> {
    fn name(&self) -> &'static str {
        match self {
            Shape::Object(_) => "object",
            Shape::Map(_) => "map",
            Shape::Array(_) => "array",
            Shape::Words(of, _) => of,
            Shape::Text => "string",
            Shape::Integer => "integer",
            Shape::Number => "number",
            Shape::Boolean => "boolean",
            Shape::Free => "anything",
        }
    }
}

/// Every difference below a place, with the path from there (`a.b[].c`, `a{}` the values of a map).
pub fn differences(published: &Value, ours: &Value) -> BTreeSet<(String, Kind)> {
    let mut found = BTreeSet::new();
    Comparison { root: ours, found: &mut found }.compare(published, ours, String::new());
    found
}

struct Comparison<'a> {
    /// Of our schema, where its `$ref`s lead.
    root: &'a Value,
    found: &'a mut BTreeSet<(String, Kind)>,
}

impl Comparison<'_> {
    fn compare(&mut self, published: &Value, ours: &Value, path: String) {
        match (shape(published, published), shape(ours, self.root)) {
            (Shape::Object(published), Shape::Object(ours)) => self.fields(&published, &ours, &path),
            (Shape::Map(published), Shape::Map(ours)) => self.compare(published, ours, path + "{}"),
            (Shape::Array(published), Shape::Array(ours)) => self.compare(published, ours, path + "[]"),
            (Shape::Words(of, published), Shape::Words(here, ours)) if of == here => {
                for word in published.difference(&ours) {
                    self.found.insert((path.clone(), Kind::MissingWord(word.to_string())));
                }
                for word in ours.difference(&published) {
                    self.found.insert((path.clone(), Kind::ExtraWord(word.to_string())));
                }
            }
            (Shape::Words(of, _), ours) if of == ours.name() => {
                self.found.insert((path, Kind::AnyWord));
            }
            (published, Shape::Words(here, ours)) if here == published.name() => {
                let only = ours.iter().map(|w| w.as_ref()).collect::<Vec<_>>().join(", ");
                self.found.insert((path, Kind::MissingWord(format!("other than {only}"))));
            }
            (Shape::Text, Shape::Text)
            | (Shape::Integer, Shape::Integer)
            | (Shape::Number, Shape::Number)
            | (Shape::Boolean, Shape::Boolean)
            | (Shape::Free, Shape::Free) => {}
            (published, ours) => {
                self.found.insert((path, Kind::Type { published: published.name(), here: ours.name() }));
            }
        }
    }

    fn fields(&mut self, published: &BTreeMap<&str, &Value>, ours: &BTreeMap<&str, &Value>, path: &str) {
        for (name, schema) in published {
            match ours.get(name) {
                Some(ours) => self.compare(schema, ours, below(path, name)),
                None => {
                    self.found.insert((below(path, name), Kind::Missing));
                }
            }
        }
        for name in ours.keys().filter(|name| !published.contains_key(*name)) {
            self.found.insert((below(path, name), Kind::Extra));
        }
    }
}

/// The path of a field of the object at `path`.
pub fn below(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// What a schema says, references followed and the null of an optional value left out.
fn shape<'a>(schema: &'a Value, root: &'a Value) -> Shape<'a> {
    let schema = essence(schema, root);
    if let Some(words) = words(schema) {
        let of = if kind(schema) == Some("integer") { "integer" } else { "string" };
        return Shape::Words(of, words.into_iter().map(word).collect());
    }
    let children = |key: &str| schema.get(key).and_then(Value::as_object).filter(|m| !m.is_empty());
    match kind(schema) {
        Some("object") => {
            let values = schema.get("additionalProperties").filter(|v| v.is_object());
            // Maps with numbers as keys.
            let values = values.or_else(|| children("patternProperties").and_then(|m| m.values().next()));
            match (children("properties"), values) {
                (Some(fields), _) => Shape::Object(fields.iter().map(|(k, v)| (k.as_str(), v)).collect()),
                (None, Some(values)) => Shape::Map(values),
                (None, None) if schema.get("x-kubernetes-preserve-unknown-fields").is_some() => Shape::Free,
                (None, None) => Shape::Object(BTreeMap::new()),
            }
        }
        Some("array") => schema.get("items").map_or(Shape::Free, Shape::Array),
        Some("string") => Shape::Text,
        Some("integer") => Shape::Integer,
        Some("number") => Shape::Number,
        Some("boolean") => Shape::Boolean,
        _ => Shape::Free,
    }
}

/// The type's name; of an optional value, that which is not null.
fn kind(schema: &Value) -> Option<&str> {
    match schema.get("type")? {
        Value::Array(several) => several.iter().filter_map(Value::as_str).find(|t| *t != "null"),
        one => one.as_str(),
    }
}

/// Follows `$ref` and steps into the one alternative that is not null.
fn essence<'a>(mut schema: &'a Value, root: &'a Value) -> &'a Value {
    loop {
        let target = schema.get("$ref").and_then(Value::as_str).and_then(|r| root.pointer(r.strip_prefix('#')?));
        match target.or_else(|| not_null(schema)) {
            Some(next) => schema = next,
            None => return schema,
        }
    }
}

/// The other of two alternatives of which one is null.
fn not_null(schema: &Value) -> Option<&Value> {
    let is_null = |a: &Value| a.get("type").and_then(Value::as_str) == Some("null");
    let alternatives = schema.get("anyOf")?.as_array()?;
    alternatives.iter().any(is_null).then(|| alternatives.iter().find(|a| !is_null(a))).flatten()
}

/// The words of an enum: `enum`, or one alternative with `const` for each word.
fn words(schema: &Value) -> Option<Vec<&Value>> {
    if let Some(words) = schema.get("enum").and_then(Value::as_array) {
        return Some(words.iter().collect());
    }
    let mut words = Vec::new();
    for alternative in schema.get("oneOf")?.as_array()? {
        match (alternative.get("const"), alternative.get("enum").and_then(Value::as_array)) {
            (Some(word), _) => words.push(word),
            (None, Some(several)) => words.extend(several),
            (None, None) => return None,
        }
    }
    Some(words)
}

fn word(value: &Value) -> Cow<'_, str> {
    value.as_str().map_or_else(|| Cow::Owned(value.to_string()), Cow::Borrowed)
}

/// Whether a place is that at `outer`, or inside it.
pub fn within(path: &str, outer: &str) -> bool {
    path.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[', '{']))
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemars::{JsonSchema, schema_for};
    use serde_json::json;

    /// Ours, as a user of the types writes it.
    #[derive(JsonSchema)]
    #[serde(rename_all = "camelCase", default)]
    #[derive(Default, serde::Deserialize)]
    #[allow(dead_code)]
    struct Rule {
        host: String,
        mode: Mode,
        port: Option<u16>,
        weights: BTreeMap<u16, Weight>,
        parts: Vec<Option<Weight>>,
        only: Option<Weight>,
    }

    #[derive(Default, JsonSchema, serde::Deserialize)]
    #[allow(dead_code)]
    struct Weight {
        share: f64,
    }

    #[derive(Default, JsonSchema, serde::Deserialize)]
    #[serde(rename_all = "UPPERCASE")]
    #[allow(dead_code)]
    enum Mode {
        #[default]
        /// Documented, which changes the form of the schema.
        On,
        Off,
    }

    fn published() -> Value {
        let weight = json!({"type": "object", "properties": {"share": {"type": "number", "format": "double"}}});
        json!({"type": "object", "description": "A rule.", "properties": {
            "host": {"type": "string", "maxLength": 255},
            "mode": {"type": "string", "enum": ["ON", "OFF"]},
            "port": {"type": "integer", "minimum": 1, "nullable": true},
            "weights": {"type": "object", "additionalProperties": weight},
            "parts": {"type": "array", "items": weight},
            "only": weight,
        }, "oneOf": [{"required": ["port"]}, {"required": ["parts"]}]})
    }

    fn found(change: impl FnOnce(&mut Value)) -> Vec<(String, String)> {
        let mut published = published();
        change(&mut published);
        let found = differences(&published, &schema_for!(Rule).to_value());
        found.into_iter().map(|(path, kind)| (path, kind.to_string())).collect()
    }

    fn one(path: &str, kind: &str) -> Vec<(String, String)> {
        vec![(path.to_owned(), kind.to_owned())]
    }

    #[test]
    fn equal_schemas_do_not_differ() {
        assert_eq!(found(|_| {}), []);
    }

    #[test]
    fn a_missing_and_an_extra_field_are_found() {
        let new = |p: &mut Value| p["properties"]["weights"]["additionalProperties"]["properties"]["cap"] = json!({});
        assert_eq!(found(new), one("weights{}.cap", "missing here"));
        let gone = |p: &mut Value| {
            p["properties"]["parts"]["items"]["properties"] = json!({"other": {}});
        };
        assert_eq!(found(gone), [one("parts[].other", "missing here"), one("parts[].share", "only here")].concat());
    }

    #[test]
    fn a_wrong_type_is_found() {
        let number = |p: &mut Value| p["properties"]["port"] = json!({"type": "number"});
        assert_eq!(found(number), one("port", "number as published, integer here"));
        let map = |p: &mut Value| {
            p["properties"]["only"] = json!({"type": "object", "additionalProperties": {"type": "string"}});
        };
        assert_eq!(found(map), one("only", "map as published, object here"));
        let list = |p: &mut Value| p["properties"]["host"] = json!({"type": "array", "items": {"type": "string"}});
        assert_eq!(found(list), one("host", "array as published, string here"));
    }

    #[test]
    fn missing_and_extra_values_of_an_enum_are_found() {
        let words = |p: &mut Value| p["properties"]["mode"]["enum"] = json!(["ON", "AUTO"]);
        let expected = [one("mode", "value AUTO missing here"), one("mode", "value OFF only here")].concat();
        assert_eq!(found(words), expected);
        let any = |p: &mut Value| p["properties"]["host"]["enum"] = json!(["a"]);
        assert_eq!(found(any), one("host", "any value here"));
        let numbers = |p: &mut Value| p["properties"]["port"]["enum"] = json!([80, 443]);
        assert_eq!(found(numbers), one("port", "any value here"));
        let free = |p: &mut Value| p["properties"]["mode"] = json!({"type": "string"});
        assert_eq!(found(free), one("mode", "value other than OFF, ON missing here"));
    }
}
