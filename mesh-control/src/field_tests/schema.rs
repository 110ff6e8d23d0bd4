//! The fields that a schema has, and those that a value fills.
//!
//! A type that stands at several places of a kind is described once, at the place that is nearest to the top; the other
//! places only name it. So fields and what fills them meet at one path.

use std::collections::{BTreeMap, HashMap, VecDeque};

use serde_json::Value;

/// What may stand at a field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Leaf {
    /// One of these.
    Words(Vec<String>),
    /// Anything of its type.
    Any,
}

/// All fields of a schema.
#[derive(Debug, Default)]
pub(super) struct Fields {
    /// By path: `a[].b{}` is every value of the map `b` of every item of `a`.
    pub(super) leaves: BTreeMap<String, Leaf>,
    /// Places of types that are described elsewhere, and where.
    pub(super) same_as: BTreeMap<String, String>,
    /// Where types are described, by their `$ref`.
    described: HashMap<String, String>,
}

/// A field that a value fills.
#[derive(Debug, Clone)]
pub(super) struct Filled {
    /// Where it stands in the value, a pointer of RFC 6901.
    pub(super) pointer: String,
    /// The field, as in [`Fields::leaves`].
    pub(super) field: String,
    /// The places of types that are described elsewhere, on the way.
    pub(super) through: Vec<String>,
}

impl Fields {
    /// Of a schema, which is its own root.
    pub(super) fn of(root: &Value) -> Self {
        let mut out = Self::default();
        let mut rest = VecDeque::from([(String::new(), root)]);
        while let Some((path, schema)) = rest.pop_front() {
            let schema = present(schema);
            let target = schema.get("$ref").and_then(Value::as_str);
            let resolved = target.and_then(|r| root.pointer(r.strip_prefix('#')?)).unwrap_or(schema);
            if let (Some(target), Shape::Object(_)) = (target, shape(present(resolved))) {
                if let Some(first) = out.described.get(target) {
                    out.same_as.insert(path, first.clone());
                    continue;
                }
                out.described.insert(target.to_owned(), path.clone());
            }
            match shape(present(resolved)) {
                Shape::Object(fields) => rest.extend(fields.into_iter().map(|(name, s)| (below(&path, name), s))),
                Shape::Map(inner) => rest.push_back((path + "{}", inner)),
                Shape::Array(inner) => rest.push_back((path + "[]", inner)),
                Shape::Leaf(leaf) => drop(out.leaves.insert(path, leaf)),
            }
        }
        out
    }

    /// The fields that `value` fills.
    pub(super) fn filled(&self, root: &Value, value: &Value) -> Vec<Filled> {
        let mut out = Vec::new();
        let start = Filled { pointer: String::new(), field: String::new(), through: vec![] };
        self.fill(root, root, value, start, &mut out);
        out
    }

    fn fill(&self, root: &Value, schema: &Value, value: &Value, mut at: Filled, out: &mut Vec<Filled>) {
        let schema = present(schema);
        let target = schema.get("$ref").and_then(Value::as_str);
        let resolved = target.and_then(|r| root.pointer(r.strip_prefix('#')?)).unwrap_or(schema);
        if let Some(first) = target.and_then(|t| self.described.get(t))
            && *first != at.field
        {
            at.through.push(std::mem::replace(&mut at.field, first.clone()));
        }
        let deeper = |key: &str, field: String| Filled {
            pointer: format!("{}/{}", at.pointer, key.replace('~', "~0").replace('/', "~1")),
            field,
            through: at.through.clone(),
        };
        match (shape(present(resolved)), value) {
            (Shape::Object(fields), Value::Object(map)) => {
                for (name, inner) in fields {
                    if let Some(value) = map.get(name) {
                        self.fill(root, inner, value, deeper(name, below(&at.field, name)), out);
                    }
                }
            }
            (Shape::Map(inner), Value::Object(map)) => {
                for (key, value) in map {
                    self.fill(root, inner, value, deeper(key, format!("{}{{}}", at.field)), out);
                }
            }
            (Shape::Array(inner), Value::Array(items)) => {
                for (i, value) in items.iter().enumerate() {
                    self.fill(root, inner, value, deeper(&i.to_string(), format!("{}[]", at.field)), out);
                }
            }
            (Shape::Leaf(_), _) => out.push(at),
            _ => {}
        }
    }
}

enum Shape<'a> {
    Object(Vec<(&'a str, &'a Value)>),
    Map(&'a Value),
    Array(&'a Value),
    Leaf(Leaf),
}

/// The alternative that is not null.
fn present(schema: &Value) -> &Value {
    let is_null = |a: &&Value| a.get("type").and_then(Value::as_str) == Some("null");
    match schema.get("anyOf").and_then(Value::as_array) {
        Some(several) if several.iter().any(|a| is_null(&a)) => several.iter().find(|a| !is_null(a)).unwrap_or(schema),
        _ => schema,
    }
}

fn shape(schema: &Value) -> Shape<'_> {
    let words = |values: &[Value]| values.iter().filter_map(Value::as_str).map(str::to_owned).collect::<Vec<_>>();
    if let Some(list) = schema.get("enum").and_then(Value::as_array) {
        return Shape::Leaf(Leaf::Words(words(list)));
    }
    if let Some(several) = schema.get("oneOf").and_then(Value::as_array) {
        let consts: Vec<Value> = several
            .iter()
            .flat_map(|a| {
                a.get("const")
                    .cloned()
                    .into_iter()
                    .chain(a.get("enum").and_then(Value::as_array).cloned().unwrap_or_default())
            })
            .collect();
        return Shape::Leaf(Leaf::Words(words(&consts)));
    }
    let children = |key: &str| schema.get(key).and_then(Value::as_object).filter(|m| !m.is_empty());
    if let Some(fields) = children("properties") {
        return Shape::Object(fields.iter().map(|(k, v)| (k.as_str(), v)).collect());
    }
    let values = schema.get("additionalProperties").filter(|v| v.is_object());
    if let Some(values) = values.or_else(|| children("patternProperties").and_then(|m| m.values().next())) {
        return Shape::Map(values);
    }
    match schema.get("items") {
        Some(items) => Shape::Array(items),
        None => Shape::Leaf(Leaf::Any),
    }
}

fn below(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}
