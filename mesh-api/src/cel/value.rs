//! Values, their order and their text.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::fmt::Write as _;

use serde_json::Value as Json;

/// A value. Texts are borrowed from where they lie as far as possible.
#[derive(Debug, Clone)]
pub enum Value<'a> {
    /// `null`.
    Null,
    /// Truth.
    Bool(bool),
    /// Signed number.
    Int(i64),
    /// Unsigned number.
    Uint(u64),
    /// Number with a fraction.
    Double(f64),
    /// Text.
    Text(Cow<'a, str>),
    /// Bytes.
    Bytes(Cow<'a, [u8]>),
    /// Nanoseconds.
    Duration(i128),
    /// Nanoseconds since 1970.
    Timestamp(i128),
    /// A list.
    List(Vec<Value<'a>>),
    /// A map, in the order in which it was written.
    Map(Vec<(Value<'a>, Value<'a>)>),
    /// An object or list of metadata; never a scalar.
    Json(&'a Json),
}

impl<'a> Value<'a> {
    /// A text.
    pub fn text(text: impl Into<Cow<'a, str>>) -> Self {
        Value::Text(text.into())
    }

    /// Of metadata, whose numbers are all doubles, as those of a protobuf Struct.
    pub fn of_json(json: &'a Json) -> Self {
        match json {
            Json::Null => Value::Null,
            Json::Bool(b) => Value::Bool(*b),
            Json::Number(n) => Value::Double(n.as_f64().unwrap_or_default()),
            Json::String(s) => Value::text(s.as_str()),
            Json::Array(_) | Json::Object(_) => Value::Json(json),
        }
    }

    /// What a path of keys leads to.
    pub fn of_json_at(json: &'a Json, path: &[Box<str>]) -> Option<Self> {
        path.iter().try_fold(json, |at, key| at.get(&**key)).map(Value::of_json)
    }

    /// A member by key or number; `None`: there is none.
    pub(super) fn member(&self, key: &Value<'_>) -> Option<Value<'a>> {
        match (self, key) {
            (Value::Map(entries), _) => entries.iter().find(|(k, _)| k == key).map(|(_, v)| v.clone()),
            (Value::Json(json), Value::Text(key)) => json.get(key.as_ref()).map(Value::of_json),
            (Value::List(items), _) => items.get(key.as_index()?).cloned(),
            (Value::Json(json), _) => json.get(key.as_index()?).map(Value::of_json),
            _ => None,
        }
    }

    fn as_index(&self) -> Option<usize> {
        match self {
            Value::Int(n) => usize::try_from(*n).ok(),
            Value::Uint(n) => usize::try_from(*n).ok(),
            _ => None,
        }
    }

    /// Whether a container holds this; `None`: it is no container.
    pub(super) fn holds(&self, wanted: &Value<'_>) -> Option<bool> {
        match self {
            Value::List(items) => Some(items.iter().any(|i| i == wanted)),
            Value::Map(entries) => Some(entries.iter().any(|(k, _)| k == wanted)),
            Value::Json(Json::Array(items)) => Some(items.iter().any(|i| Value::of_json(i) == *wanted)),
            Value::Json(Json::Object(map)) => {
                Some(matches!(wanted, Value::Text(key) if map.contains_key(key.as_ref())))
            }
            _ => None,
        }
    }

    /// Characters, bytes or members.
    pub(super) fn size(&self) -> Option<i64> {
        let n = match self {
            Value::Text(t) => t.chars().count(),
            Value::Bytes(b) => b.len(),
            Value::List(l) => l.len(),
            Value::Map(m) => m.len(),
            Value::Json(Json::Array(l)) => l.len(),
            Value::Json(Json::Object(m)) => m.len(),
            _ => return None,
        };
        i64::try_from(n).ok()
    }

    /// Order of two values of types that have one; numbers compare across their types.
    pub(super) fn order(&self, other: &Value<'_>) -> Option<Ordering> {
        use Value as V;
        match (self, other) {
            (V::Bool(a), V::Bool(b)) => Some(a.cmp(b)),
            (V::Text(a), V::Text(b)) => Some(a.as_ref().cmp(b.as_ref())),
            (V::Bytes(a), V::Bytes(b)) => Some(a.as_ref().cmp(b.as_ref())),
            (V::Duration(a), V::Duration(b)) | (V::Timestamp(a), V::Timestamp(b)) => Some(a.cmp(b)),
            (V::Double(_), _) | (_, V::Double(_)) => self.as_f64()?.partial_cmp(&other.as_f64()?),
            _ => Some(self.as_integer()?.cmp(&other.as_integer()?)),
        }
    }

    fn as_integer(&self) -> Option<i128> {
        match self {
            Value::Int(n) => Some((*n).into()),
            Value::Uint(n) => Some((*n).into()),
            _ => None,
        }
    }

    // Beyond 2^53 neighbours become one: so they do in CEL.
    #[allow(clippy::cast_precision_loss)]
    pub(super) fn as_f64(&self) -> Option<f64> {
        match self {
            Value::Int(n) => Some(*n as f64),
            Value::Uint(n) => Some(*n as f64),
            Value::Double(n) => Some(*n),
            _ => None,
        }
    }

    /// Appends the text that Envoy makes of it.
    pub fn write(&self, out: &mut String) {
        // Writing into a String cannot fail.
        let _ = match self {
            Value::Null => write!(out, "null"),
            Value::Bool(b) => write!(out, "{b}"),
            Value::Int(n) => write!(out, "{n}"),
            Value::Uint(n) => write!(out, "{n}"),
            Value::Double(n) => write!(out, "{n}"),
            Value::Text(t) => write!(out, "{t}"),
            Value::Bytes(b) => write!(out, "{}", String::from_utf8_lossy(b)),
            Value::Duration(n) => {
                write_duration(*n, out);
                Ok(())
            }
            Value::Timestamp(n) => {
                super::functions::write_timestamp(*n, out);
                Ok(())
            }
            Value::List(_) => write!(out, "CelList value"),
            Value::Map(_) => write!(out, "CelMap value"),
            Value::Json(json) => write!(out, "{json}"),
        };
    }
}

/// As Abseil writes durations: `1.5ms`, `2s`, `1m3s`.
fn write_duration(nanos: i128, out: &mut String) {
    let sign = if nanos < 0 { "-" } else { "" };
    let n = nanos.unsigned_abs();
    // Writing into a String cannot fail.
    let mut scaled = |n: u128, unit: u128, name: &str| {
        let (whole, rest) = (n / unit, n % unit);
        let digits = unit.ilog10() as usize;
        let fraction = format!("{rest:0digits$}");
        let fraction = fraction.trim_end_matches('0');
        let dot = if fraction.is_empty() { "" } else { "." };
        let _ = write!(out, "{sign}{whole}{dot}{fraction}{name}");
    };
    match n {
        0 => out.push('0'),
        1..1_000 => scaled(n, 1, "ns"),
        1_000..1_000_000 => scaled(n, 1_000, "us"),
        1_000_000..1_000_000_000 => scaled(n, 1_000_000, "ms"),
        _ => {
            let (hours, minutes, rest) = (n / 3_600_000_000_000, n / 60_000_000_000 % 60, n % 60_000_000_000);
            if n < 60_000_000_000 {
                return scaled(rest, 1_000_000_000, "s");
            }
            out.push_str(sign);
            if hours > 0 {
                let _ = write!(out, "{hours}h");
            }
            if minutes > 0 {
                let _ = write!(out, "{minutes}m");
            }
            if rest > 0 {
                let mut seconds = String::new();
                write_duration(rest.try_into().unwrap_or_default(), &mut seconds);
                // Below a second it says `ms`; with minutes before it, Abseil says `0.5s`.
                if rest < 1_000_000_000 {
                    let fraction = format!("{rest:09}");
                    let _ = write!(out, "0.{}s", fraction.trim_end_matches('0'));
                } else {
                    out.push_str(&seconds);
                }
            }
        }
    }
}

impl PartialEq for Value<'_> {
    fn eq(&self, other: &Self) -> bool {
        use Value as V;
        match (self, other) {
            (V::Null, V::Null) => true,
            (V::List(a), V::List(b)) => a == b,
            (V::Map(a), V::Map(b)) => {
                a.len() == b.len() && a.iter().all(|(k, v)| b.iter().any(|(k2, v2)| k == k2 && v == v2))
            }
            (V::Json(a), V::Json(b)) => a == b,
            (V::List(list), V::Json(Json::Array(json))) | (V::Json(Json::Array(json)), V::List(list)) => {
                list.len() == json.len() && list.iter().zip(json).all(|(a, b)| *a == Value::of_json(b))
            }
            _ => self.order(other) == Some(Ordering::Equal),
        }
    }
}
