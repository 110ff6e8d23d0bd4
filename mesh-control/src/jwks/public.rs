//! What of a key set goes out: public parts of keys that a proxy can verify with. No key is ever made up.

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use serde_json::{Map, Value};

/// What is public of a key (RFC 7517, 7518, 8037).
const PUBLIC: [&str; 9] = ["kty", "use", "alg", "kid", "n", "e", "crv", "x", "y"];

/// A key set with what is public of its asymmetric keys, as one text whatever the order of them; `None`: there is no
/// usable one.
pub fn public_keys(text: &str) -> Option<String> {
    let set: Value = serde_json::from_str(text).ok()?;
    let keys = set.get("keys")?.as_array()?.iter().filter_map(Value::as_object).filter(|key| is_usable(key));
    let public = keys.map(|key| {
        let parts = PUBLIC.iter().filter_map(|name| Some(((*name).to_owned(), key.get(*name)?.clone())));
        Value::Object(parts.collect()).to_string()
    });
    let mut public: Vec<String> = public.collect();
    // Some issuers answer in another order each time, which is no change.
    public.sort_unstable();
    public.dedup();
    (!public.is_empty()).then(|| format!("{{\"keys\":[{}]}}", public.join(",")))
}

/// Whether a proxy can verify with it, as far as its form tells.
fn is_usable(key: &Map<String, Value>) -> bool {
    let text = |name: &str| key.get(name).and_then(Value::as_str).unwrap_or_default();
    let number = |name: &str| BASE64_URL_SAFE_NO_PAD.decode(text(name)).is_ok_and(|bytes| !bytes.is_empty());
    // What is no text where the form wants one would spoil the whole set for some readers.
    let texts = PUBLIC.iter().all(|name| key.get(*name).is_none_or(Value::is_string));
    texts
        && match text("kty") {
            "RSA" => number("n") && number("e"),
            "EC" => matches!(text("crv"), "P-256" | "P-384" | "P-521") && number("x") && number("y"),
            "OKP" => text("crv") == "Ed25519" && number("x"),
            _ => false,
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// T85.
    #[test]
    fn only_what_is_public_goes_out_and_nothing_is_made_up() {
        let set = r#"{"keys": [{"kty": "RSA", "n": "AQ", "e": "AQAB", "d": "secret", "kid": "1"}, {"kty": "oct", "k": "secret"}, 7, {"kty": "RSA", "n": "AQ", "e": "AQAB", "kid": {"d": "secret"}}]}"#;
        assert_eq!(public_keys(set).as_deref(), Some(r#"{"keys":[{"e":"AQAB","kid":"1","kty":"RSA","n":"AQ"}]}"#));
        for none in ["", "nonsense", "{}", "[]", r#"{"keys": []}"#, r#"{"keys": [{"kty": "EC", "crv": "P-192"}]}"#] {
            assert_eq!(public_keys(none), None);
        }
        let deep = format!(r#"{{"keys": {}1{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(public_keys(&deep), None);
    }

    #[test]
    fn another_order_is_no_change() {
        let (a, b) = (r#"{"kty":"OKP","crv":"Ed25519","x":"AQ"}"#, r#"{"kty":"OKP","crv":"Ed25519","x":"Ag"}"#);
        let set = |list: &[&str]| public_keys(&format!(r#"{{"keys":[{}]}}"#, list.join(","))).unwrap();
        assert_eq!(set(&[a, b]), set(&[b, a, b]));
    }
}
