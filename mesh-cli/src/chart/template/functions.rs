//! Functions of templates: Go's own, and those of Helm that our charts use. They mean what they mean there.

use serde_json::{Map, Value};

use super::eval::{text, truth};

/// Calls one.
pub(super) fn call(name: &str, arguments: &[Value]) -> Result<Value, String> {
    let wrong = || format!("{name} does not take these {} arguments", arguments.len());
    match (name, arguments) {
        ("not", [v]) => Ok(Value::Bool(!truth(v))),
        ("eq", [a, others @ ..]) if !others.is_empty() => Ok(Value::Bool(others.iter().any(|b| same(a, b)))),
        ("ne", [a, b]) => Ok(Value::Bool(!same(a, b))),
        ("gt", [Value::Number(a), Value::Number(b)]) => Ok(Value::Bool(a.as_f64() > b.as_f64())),
        ("default", [otherwise]) => Ok(otherwise.clone()),
        ("default", [otherwise, v]) => Ok(if truth(v) { v.clone() } else { otherwise.clone() }),
        ("ternary", [yes, no, test]) => Ok(if truth(test) { yes.clone() } else { no.clone() }),
        ("required", [Value::String(why), v]) => match v {
            Value::Null => Err(why.clone()),
            Value::String(s) if s.is_empty() => Err(why.clone()),
            v => Ok(v.clone()),
        },
        ("fail", [Value::String(why)]) => Err(why.clone()),
        ("list", items) => Ok(Value::Array(items.to_vec())),
        ("dict", pairs) if pairs.len() % 2 == 0 => pairs
            .chunks(2)
            .map(|pair| Ok((text(&pair[0])?, pair[1].clone())))
            .collect::<Result<Map<_, _>, _>>()
            .map(Value::Object),
        ("append", [Value::Array(items), v]) => Ok(items.iter().chain([v]).cloned().collect()),
        ("concat", lists) => {
            let items = |list: &Value| list.as_array().cloned().ok_or_else(wrong);
            Ok(Value::Array(lists.iter().map(items).collect::<Result<Vec<_>, _>>()?.concat()))
        }
        ("hasKey", [Value::Object(map), Value::String(key)]) => Ok(Value::Bool(map.contains_key(key))),
        ("has", [v, Value::Array(items)]) => Ok(Value::Bool(items.contains(v))),
        ("pick", [Value::Object(map), keys @ ..]) => Ok(chosen(map, keys, true)),
        ("omit", [Value::Object(map), keys @ ..]) => Ok(chosen(map, keys, false)),
        ("deepCopy", [v]) => Ok(v.clone()),
        ("merge", maps) => {
            let mut all = Value::Object(Map::new());
            maps.iter().for_each(|map| merge(&mut all, map));
            Ok(all)
        }
        ("toYaml", [v]) => to_yaml(v).map(Value::String),
        ("toJson", [v]) => Ok(Value::String(v.to_string())),
        ("toPrettyJson", [v]) => serde_json::to_string_pretty(v).map(Value::String).map_err(|e| e.to_string()),
        ("printf", [Value::String(format), arguments @ ..]) => print(format, arguments).map(Value::String),
        ("quote", [Value::Null]) => Ok(Value::String(String::new())),
        ("quote", [v]) => Ok(Value::String(Value::String(text(v)?).to_string())),
        ("toString", [v]) => text(v).map(Value::String),
        ("int", [v]) => {
            let number = v.as_f64().or_else(|| v.as_str().and_then(|s| s.parse().ok())).unwrap_or_default();
            serde_json::from_str(&format!("{number:.0}")).map_err(|e| e.to_string())
        }
        ("trim", [v]) => Ok(Value::String(text(v)?.trim().to_owned())),
        ("trimSuffix", [Value::String(end), v]) => {
            let all = text(v)?;
            Ok(Value::String(all.strip_suffix(end.as_str()).unwrap_or(&all).to_owned()))
        }
        ("trimPrefix", [Value::String(start), v]) => {
            let all = text(v)?;
            Ok(Value::String(all.strip_prefix(start.as_str()).unwrap_or(&all).to_owned()))
        }
        ("replace", [Value::String(old), Value::String(new), v]) => Ok(Value::String(text(v)?.replace(old, new))),
        ("contains", [Value::String(part), Value::String(all)]) => Ok(Value::Bool(all.contains(part.as_str()))),
        ("indent", [Value::Number(n), v]) => indent(n, &text(v)?).map(Value::String),
        ("nindent", [Value::Number(n), v]) => Ok(Value::String(format!("\n{}", indent(n, &text(v)?)?))),
        _ if KNOWN.contains(&name) => Err(wrong()),
        _ => Err(format!("no function {name}")),
    }
}

const KNOWN: &[&str] = &[
    "not",
    "eq",
    "ne",
    "gt",
    "default",
    "ternary",
    "required",
    "fail",
    "dict",
    "append",
    "concat",
    "hasKey",
    "has",
    "pick",
    "omit",
    "deepCopy",
    "toYaml",
    "toJson",
    "toPrettyJson",
    "printf",
    "quote",
    "toString",
    "int",
    "trim",
    "trimSuffix",
    "trimPrefix",
    "replace",
    "contains",
    "indent",
    "nindent",
    "include",
];

fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a.as_f64() == b.as_f64(),
        (a, b) => a == b,
    }
}

fn chosen(map: &Map<String, Value>, keys: &[Value], wanted: bool) -> Value {
    let named = |key: &String| keys.iter().any(|k| k.as_str() == Some(key)) == wanted;
    Value::Object(map.iter().filter(|(key, _)| named(key)).map(|(k, v)| (k.clone(), v.clone())).collect())
}

/// Puts under a value what it lacks; what it has stays, map by map.
pub fn merge(value: &mut Value, under: &Value) {
    match (value, under) {
        (Value::Object(map), Value::Object(under)) => {
            for (key, v) in under {
                merge(map.entry(key).or_insert(Value::Null), v);
            }
        }
        (value @ Value::Null, under) => *value = under.clone(),
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
    let by = by.as_u64().and_then(|n| usize::try_from(n).ok()).ok_or("indent takes a number of columns")?;
    let pad = " ".repeat(by);
    Ok(text.split('\n').map(|line| format!("{pad}{line}")).collect::<Vec<_>>().join("\n"))
}

/// `%s`, `%d`, `%v`, `%q` and `%%`.
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
        let argument = text(arguments.next().ok_or_else(|| format!("printf {format:?} lacks an argument"))?)?;
        match verb {
            Some('s' | 'd' | 'v') => out.push_str(&argument),
            Some('q') => out.push_str(&Value::String(argument).to_string()),
            _ => return Err(format!("printf {format:?} is not understood")),
        }
    }
    Ok(out)
}
