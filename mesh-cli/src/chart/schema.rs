//! The part of JSON Schema that our values' schemas use: `type`, `enum`, `properties`, `additionalProperties`, `required`,
//! `items`.

use std::fmt;

use serde_json::Value;

/// What a schema does not allow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where, as `pilot.env` or `ports[0].name`.
    pub path: String,
    /// What is wrong there.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() { f.write_str(&self.message) } else { write!(f, "{}: {}", self.path, self.message) }
    }
}

/// Everything in a value that its schema does not allow.
pub fn check(schema: &Value, value: &Value) -> Vec<Problem> {
    let mut found = Vec::new();
    walk(schema, value, "", &mut found);
    found
}

fn walk(schema: &Value, value: &Value, at: &str, found: &mut Vec<Problem>) {
    let mut problem = |path: &str, message: String| found.push(Problem { path: path.to_owned(), message });
    // A field without a value is as good as absent.
    if value.is_null() {
        return;
    }
    if let Some(words) = schema.get("enum").and_then(Value::as_array)
        && !words.contains(value)
    {
        let known: Vec<&str> = words.iter().filter_map(Value::as_str).filter(|w| !w.is_empty()).collect();
        return problem(at, format!("{value} is none of {}", known.join(", ")));
    }
    let types: Vec<&str> = match schema.get("type") {
        Some(Value::String(one)) => vec![one],
        Some(Value::Array(several)) => several.iter().filter_map(Value::as_str).collect(),
        _ => vec![],
    };
    if !types.is_empty() && !types.iter().any(|t| is_of(value, t)) {
        return problem(at, format!("{} is expected, not {value}", types.join(" or ")));
    }
    match value {
        Value::Object(fields) => {
            for name in schema.get("required").and_then(Value::as_array).into_iter().flatten() {
                if let Some(name) = name.as_str().filter(|n| !fields.contains_key(*n)) {
                    problem(at, format!("{name} is missing"));
                }
            }
            for (name, field) in fields {
                let path = if at.is_empty() { name.clone() } else { format!("{at}.{name}") };
                let known = schema.get("properties").and_then(|p| p.get(name));
                match (known, schema.get("additionalProperties")) {
                    (Some(inner), _) | (None, Some(inner @ Value::Object(_))) => walk(inner, field, &path, found),
                    (None, Some(Value::Bool(false))) => {
                        let known = schema.get("properties").and_then(Value::as_object);
                        let known: Vec<&str> = known.into_iter().flatten().map(|(name, _)| name.as_str()).collect();
                        let message = format!("unknown field; known here: {}", known.join(", "));
                        found.push(Problem { path, message });
                    }
                    _ => {}
                }
            }
        }
        Value::Array(items) => {
            if let Some(inner) = schema.get("items") {
                for (i, item) in items.iter().enumerate() {
                    walk(inner, item, &format!("{at}[{i}]"), found);
                }
            }
        }
        _ => {}
    }
}

fn is_of(value: &Value, kind: &str) -> bool {
    match kind {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Of a word that `check` does not look at, Helm would.
    #[test]
    fn schemas_of_charts_use_no_other_words() {
        fn words(schema: &Value, found: &mut std::collections::BTreeSet<String>) {
            for (word, value) in schema.as_object().into_iter().flatten() {
                found.insert(word.clone());
                match (word.as_str(), value) {
                    ("properties", Value::Object(fields)) => fields.values().for_each(|f| words(f, found)),
                    ("additionalProperties" | "items", inner) => words(inner, found),
                    _ => {}
                }
            }
        }
        let mut found = std::collections::BTreeSet::new();
        for chart in [&crate::chart::BASE, &crate::chart::ISTIOD, &crate::chart::GATEWAY] {
            words(&chart.schema().unwrap(), &mut found);
        }
        let known =
            ["$schema", "additionalProperties", "description", "enum", "items", "properties", "required", "type"];
        found.retain(|word| !known.contains(&word.as_str()));
        assert!(found.is_empty(), "{found:?}");
    }

    #[test]
    fn problems_have_places() {
        let schema = json!({"type": "object", "additionalProperties": false, "required": ["a"], "properties": {
            "a": {"type": "string"},
            "b": {"type": "array", "items": {"enum": ["x", "y"]}},
            "c": {"type": "object", "additionalProperties": {"type": ["integer", "string"]}},
        }});
        let found = check(&schema, &json!({"b": ["x", "z"], "c": {"k": 1, "l": true}, "d": 1}));
        let found: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert_eq!(
            found,
            [
                "a is missing",
                "b[1]: \"z\" is none of x, y",
                "c.l: integer or string is expected, not true",
                "d: unknown field; known here: a, b, c",
            ]
        );
        assert!(check(&schema, &json!({"a": "1", "b": null})).is_empty());
    }
}
