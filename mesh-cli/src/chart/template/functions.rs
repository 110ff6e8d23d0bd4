//! Functions of templates: Go's own, and those of Helm that our charts use. They mean what they mean there; where Helm
//! makes of a value what nobody wants (a large number, values of different types), they refuse it.

use serde_json::{Map, Value};

use super::eval::{text, truth};

/// All of them, with those that `eval` calls itself.
pub(super) const KNOWN: &[&str] = &[
    "and",
    "contains",
    "default",
    "dict",
    "eq",
    "fail",
    "gt",
    "has",
    "include",
    "int",
    "kindIs",
    "list",
    "merge",
    "ne",
    "nindent",
    "not",
    "omit",
    "or",
    "pick",
    "printf",
    "quote",
    "replace",
    "toJson",
    "toPrettyJson",
    "toYaml",
    "trimPrefix",
    "trimSuffix",
];

/// Calls one.
pub(super) fn call(name: &str, arguments: &[Value]) -> Result<Value, String> {
    match (name, arguments) {
        ("not", [v]) => Ok(Value::Bool(!truth(v))),
        ("eq", [a, others @ ..]) if !others.is_empty() => {
            for other in others {
                if same(a, other)? {
                    return Ok(Value::Bool(true));
                }
            }
            Ok(Value::Bool(false))
        }
        ("ne", [a, b]) => Ok(Value::Bool(!same(a, b)?)),
        ("gt", [Value::Number(a), Value::Number(b)]) => Ok(Value::Bool(a.as_f64() > b.as_f64())),
        ("default", [otherwise, v]) => Ok(if truth(v) { v.clone() } else { otherwise.clone() }),
        ("fail", [Value::String(why)]) => Err(why.clone()),
        ("kindIs", [Value::String(kind), v]) => Ok(Value::Bool(kind_of(v) == kind)),
        ("list", items) => Ok(Value::Array(items.to_vec())),
        ("dict", pairs) if pairs.len() % 2 == 0 => {
            let pair = |pair: &[Value]| match pair {
                [key, value] => Ok((text(key)?, value.clone())),
                _ => Err("dict takes pairs".to_owned()),
            };
            pairs.chunks(2).map(pair).collect::<Result<Map<_, _>, _>>().map(Value::Object)
        }
        ("has", [v, Value::Array(items)]) => Ok(Value::Bool(items.contains(v))),
        ("pick", [Value::Object(map), keys @ ..]) => Ok(chosen(map, keys, true)),
        ("omit", [Value::Object(map), keys @ ..]) => Ok(chosen(map, keys, false)),
        ("merge", maps) if maps.iter().all(Value::is_object) => {
            let mut all = Value::Object(Map::new());
            maps.iter().for_each(|map| fill(&mut all, map));
            Ok(all)
        }
        ("toYaml", [v]) => to_yaml(v).map(Value::String),
        ("toJson", [v]) => Ok(Value::String(v.to_string())),
        ("toPrettyJson", [v]) => serde_json::to_string_pretty(v).map(Value::String).map_err(|e| e.to_string()),
        ("printf", [Value::String(format), arguments @ ..]) => print(format, arguments).map(Value::String),
        ("quote", [Value::Null]) => Ok(Value::String(String::new())),
        ("quote", [v]) => Ok(Value::String(Value::String(text(v)?).to_string())),
        ("int", [v]) => {
            let number = v.as_f64().or_else(|| v.as_str().and_then(|s| s.parse().ok())).unwrap_or_default();
            serde_json::from_str(&format!("{:.0}", number.trunc())).map_err(|e| e.to_string())
        }
        ("trimSuffix", [Value::String(end), Value::String(all)]) => Ok(all.strip_suffix(&**end).unwrap_or(all).into()),
        ("trimPrefix", [Value::String(start), Value::String(all)]) => {
            Ok(all.strip_prefix(&**start).unwrap_or(all).into())
        }
        ("replace", [Value::String(old), Value::String(new), Value::String(all)]) => {
            Ok(all.replace(&**old, new).into())
        }
        ("contains", [Value::String(part), Value::String(all)]) => Ok(Value::Bool(all.contains(&**part))),
        ("nindent", [Value::Number(n), Value::String(all)]) => Ok(format!("\n{}", indent(n, all)?).into()),
        _ => {
            let kinds: Vec<&str> = arguments.iter().map(kind_of).collect();
            Err(format!("{name} does not take ({})", kinds.join(", ")))
        }
    }
}

/// Go's word for what a value is.
fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "invalid",
        Value::Bool(_) => "bool",
        // Those of values; those that templates write themselves are integers to Go, and equal to none of these.
        Value::Number(_) => "float64",
        Value::String(_) => "string",
        Value::Array(_) => "slice",
        Value::Object(_) => "map",
    }
}

/// Whether values are equal, of those that Go compares. To Go a number of the values is none of a template.
fn same(a: &Value, b: &Value) -> Result<bool, String> {
    match (a, b) {
        (Value::String(_), Value::String(_)) | (Value::Bool(_), Value::Bool(_)) => Ok(a == b),
        (Value::Null, _) | (_, Value::Null) => Ok(a == b),
        _ => Err(format!("{} and {} are not compared", kind_of(a), kind_of(b))),
    }
}

fn chosen(map: &Map<String, Value>, keys: &[Value], wanted: bool) -> Value {
    let named = |key: &String| keys.iter().any(|k| k.as_str() == Some(key)) == wanted;
    Value::Object(map.iter().filter(|(key, _)| named(key)).map(|(k, v)| (k.clone(), v.clone())).collect())
}

/// Puts under a map what it lacks, map by map. What is empty lacks.
fn fill(value: &mut Value, under: &Value) {
    match (value, under) {
        (Value::Object(map), Value::Object(under)) => {
            for (key, v) in under {
                match map.get_mut(key) {
                    Some(there) => fill(there, v),
                    None => _ = map.insert(key.clone(), v.clone()),
                }
            }
        }
        (value, under) if !truth(value) => *value = under.clone(),
        _ => {}
    }
}

/// Block style, without a final line break.
fn to_yaml(value: &Value) -> Result<String, String> {
    let text = serde_saphyr::to_string(value).map_err(|e| e.to_string())?;
    Ok(text.trim_end_matches('\n').to_owned())
}

/// Every line that much further to the right.
fn indent(by: &serde_json::Number, text: &str) -> Result<String, String> {
    let by = by.as_u64().and_then(|n| usize::try_from(n).ok()).ok_or("nindent takes a number of columns")?;
    let pad = " ".repeat(by);
    Ok(text.split('\n').map(|line| format!("{pad}{line}")).collect::<Vec<_>>().join("\n"))
}

/// `%s` of text, `%d` of a whole number, `%v` of either, and `%%`.
fn print(format: &str, arguments: &[Value]) -> Result<String, String> {
    let mut arguments = arguments.iter();
    let mut out = String::new();
    let mut letters = format.chars();
    while let Some(c) = letters.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let verb = letters.next();
        if verb == Some('%') {
            out.push('%');
            continue;
        }
        let argument = arguments.next().ok_or_else(|| format!("printf {format:?} lacks an argument"))?;
        match (verb, argument) {
            (Some('s'), Value::String(_)) | (Some('v'), Value::String(_) | Value::Bool(_) | Value::Number(_)) => {
                out.push_str(&text(argument)?);
            }
            (Some('d'), Value::Number(n)) if n.is_i64() => out.push_str(&text(argument)?),
            _ => return Err(format!("printf {format:?} does not take {}", kind_of(argument))),
        }
    }
    match arguments.next() {
        Some(_) => Err(format!("printf {format:?} has too many arguments")),
        None => Ok(out),
    }
}
