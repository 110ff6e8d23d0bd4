//! What claims look like as text and in metadata.

use std::borrow::Cow;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use mesh_api::model::Name;
use serde_json::Value;

/// A claim for a header: texts, numbers and booleans as they are, lists and objects as Base64 of their JSON.
pub fn text<'p>(payload: &'p Value, claim: &str) -> Option<Cow<'p, str>> {
    Some(match find(payload, claim)? {
        Value::String(text) if text.is_empty() => return None,
        Value::String(text) => Cow::Borrowed(text.as_str()),
        Value::Bool(b) => Cow::Borrowed(if *b { "true" } else { "false" }),
        Value::Number(n) if n.is_f64() => Cow::Owned(number(n.as_f64()?)),
        Value::Number(n) => Cow::Owned(n.to_string()),
        Value::Null => return None,
        other => Cow::Owned(BASE64_STANDARD.encode(other.to_string())),
    })
}

/// Whole numbers without a fraction, others with six digits of it, as Envoy writes them.
fn number(n: f64) -> String {
    if n >= 0.0 && n.fract() == 0.0 && n < 1.8e19 { format!("{n:.0}") } else { format!("{n:.6}") }
}

/// A claim by its name, or, with dots, by its way down.
fn find<'p>(payload: &'p Value, claim: &str) -> Option<&'p Value> {
    payload.get(claim).or_else(|| claim.split('.').try_fold(payload, |value, key| value.get(key)))
}

/// Texts of these claims become lists.
pub fn split(payload: &mut Value, lists: &[Name]) {
    for name in lists {
        if let Some(claim) = payload.get_mut(&**name)
            && let Value::String(text) = claim
        {
            let words = text.split(' ').filter(|w| !w.is_empty()).map(Value::from);
            *claim = Value::Array(words.collect());
        }
    }
}
