//! From the schema of a type to a structural schema, the only form that API servers take in definitions: no references,
//! each node with one type, alternatives folded into one object. Only what validates without refusing what Istio takes
//! is kept: types, words of enums, limits of numbers.

use serde_json::{Map, Value, json};

/// What nothing is known of: kept as it is.
fn anything() -> Value {
    json!({"x-kubernetes-preserve-unknown-fields": true})
}

/// The structural schema of a type's schema, which is its own root.
pub(super) fn of(root: &Value) -> Value {
    let mut schema = node(root, root, &mut vec![]);
    describe(&mut schema, root);
    schema
}

/// Adds a second name of a field at a place such as `http[]`.
pub(super) fn add_alias(schema: &mut Value, place: &str, field: &str, alias: &str) {
    let mut pointer = String::new();
    for step in place.split('.') {
        let name = step.trim_end_matches("[]");
        pointer += &format!("/properties/{name}");
        pointer += &"/items".repeat((step.len() - name.len()) / 2);
    }
    let properties = schema.pointer_mut(&format!("{pointer}/properties")).unwrap();
    properties[alias] = properties[field].clone();
    assert!(!properties[alias].is_null(), "no field {field} at {place}");
}

fn node(schema: &Value, root: &Value, within: &mut Vec<String>) -> Value {
    if let Some(target) = schema.get("$ref").and_then(Value::as_str) {
        // A type within itself has no finite schema.
        if within.iter().any(|w| w == target) {
            return json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
        }
        let resolved = root.pointer(target.trim_start_matches('#')).unwrap();
        within.push(target.to_owned());
        let mut found = node(resolved, root, within);
        within.pop();
        describe(&mut found, schema);
        return found;
    }
    let mut found = match alternatives(schema) {
        Some(several) => one_of(&several, schema, root, within),
        None => plain(schema, root, within),
    };
    describe(&mut found, schema);
    found
}

/// `anyOf`, `oneOf` and `allOf`, without null.
fn alternatives(schema: &Value) -> Option<Vec<Value>> {
    let several = ["anyOf", "oneOf", "allOf"].iter().find_map(|key| schema.get(key)?.as_array())?;
    Some(several.iter().filter(|a| a.get("type").and_then(Value::as_str) != Some("null")).cloned().collect())
}

/// Several alternatives as one schema.
fn one_of(several: &[Value], schema: &Value, root: &Value, within: &mut Vec<String>) -> Value {
    if let [one] = several
        && schema.get("properties").is_none()
    {
        return node(one, root, within);
    }
    let mut nodes: Vec<Value> = several.iter().map(|a| node(a, root, within)).collect();
    if schema.get("properties").is_some() {
        nodes.push(plain(schema, root, within));
    }
    let all_of = |kind: &str| nodes.iter().all(|n| n["type"] == kind);
    if all_of("object") {
        let mut properties = Map::new();
        for node in &nodes {
            properties.extend(node["properties"].as_object().cloned().unwrap_or_default());
        }
        return json!({"type": "object", "properties": properties});
    }
    if all_of("string") {
        let words: Vec<&Value> = nodes.iter().filter_map(|n| n.get("enum")?.as_array()).flatten().collect();
        let closed = nodes.iter().all(|n| n.get("enum").is_some());
        return if closed { json!({"type": "string", "enum": words}) } else { json!({"type": "string"}) };
    }
    let types: Vec<&str> = nodes.iter().filter_map(|n| n["type"].as_str()).collect();
    if types.len() == 2 && types.contains(&"string") && types.contains(&"integer") {
        return int_or_string();
    }
    anything()
}

fn int_or_string() -> Value {
    json!({"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]})
}

fn plain(schema: &Value, root: &Value, within: &mut Vec<String>) -> Value {
    if let Some(word) = schema.get("const") {
        return json!({"type": "string", "enum": [word]});
    }
    let types: Vec<&str> = match schema.get("type") {
        Some(Value::String(one)) => vec![one],
        Some(Value::Array(several)) => several.iter().filter_map(Value::as_str).filter(|t| *t != "null").collect(),
        _ => vec![],
    };
    match types.as_slice() {
        ["object"] => object(schema, root, within),
        ["array"] => match schema.get("items") {
            Some(items) => json!({"type": "array", "items": node(items, root, within)}),
            None => json!({"type": "array", "items": anything()}),
        },
        [kind @ ("string" | "boolean" | "integer" | "number")] => scalar(kind, schema),
        ["integer", "string"] | ["string", "integer"] => int_or_string(),
        _ => anything(),
    }
}

fn object(schema: &Value, root: &Value, within: &mut Vec<String>) -> Value {
    let children = |key: &str| schema.get(key).and_then(Value::as_object).filter(|m| !m.is_empty());
    if let Some(fields) = children("properties") {
        let properties: Map<String, Value> =
            fields.iter().map(|(name, field)| (name.clone(), node(field, root, within))).collect();
        return json!({"type": "object", "properties": properties});
    }
    // Keys that are numbers have a pattern.
    let by_pattern = children("patternProperties").and_then(|m| m.values().next());
    let values = schema.get("additionalProperties").filter(|v| v.is_object()).or(by_pattern);
    match values {
        Some(values) => json!({"type": "object", "additionalProperties": node(values, root, within)}),
        None => json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true}),
    }
}

fn scalar(kind: &str, schema: &Value) -> Value {
    let mut found = json!({"type": kind});
    for key in ["minimum", "maximum"] {
        if let Some(limit) = schema.get(key) {
            found[key] = limit.clone();
        }
    }
    if let Some(format @ ("int32" | "int64" | "float" | "double")) = schema.get("format").and_then(Value::as_str) {
        found["format"] = json!(format);
    }
    if let Some(words) = schema.get("enum").and_then(Value::as_array) {
        found["enum"] = words.iter().filter(|w| !w.is_null()).cloned().collect();
    }
    found
}

/// Takes over a description that says more than the name of the field.
fn describe(schema: &mut Value, from: &Value) {
    let Some(text) = from.get("description").and_then(Value::as_str) else { return };
    let is_name = text.strip_prefix('`').and_then(|t| t.strip_suffix("`.")).is_some_and(|t| !t.contains(' '));
    if !is_name {
        schema["description"] = json!(text.replace('\n', " "));
    }
}

/// What an API server refuses in a schema.
pub(super) fn check(schema: &Value, at: &str) -> Result<(), String> {
    const KNOWN: &[&str] = &[
        "type",
        "properties",
        "additionalProperties",
        "items",
        "enum",
        "minimum",
        "maximum",
        "format",
        "description",
        "required",
        "anyOf",
        "x-kubernetes-preserve-unknown-fields",
        "x-kubernetes-int-or-string",
    ];
    let fields = schema.as_object().ok_or_else(|| format!("{at} is no schema"))?;
    if let Some(key) = fields.keys().find(|k| !KNOWN.contains(&k.as_str())) {
        return Err(format!("{at} has {key}"));
    }
    let open = schema.get("x-kubernetes-preserve-unknown-fields").is_some();
    if schema.get("type").is_none() && !open && schema.get("x-kubernetes-int-or-string").is_none() {
        return Err(format!("{at} has no type"));
    }
    if schema.get("properties").is_some() && schema.get("additionalProperties").is_some() {
        return Err(format!("{at} is an object and a map"));
    }
    for (name, field) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
        check(field, &format!("{at}.{name}"))?;
    }
    for key in ["items", "additionalProperties"] {
        if let Some(inner) = schema.get(key) {
            check(inner, &format!("{at}.{key}"))?;
        }
    }
    Ok(())
}
