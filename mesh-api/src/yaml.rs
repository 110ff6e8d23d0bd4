//! YAML as Kubernetes reads it: `true` and `false` are booleans, `y`, `no` and `on` are text. A host, a label value or
//! a namespace may well be called `n`.

use serde::de::DeserializeOwned;
pub use serde_saphyr::Error;

/// Reads one document.
///
/// # Errors
/// Wrong syntax, or a value of another kind than the type wants.
pub fn from_str<T: DeserializeOwned>(text: &str) -> Result<T, Error> {
    serde_saphyr::from_str_with_options(text, serde_saphyr::options! { strict_booleans: true })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_stay_words() {
        let value: serde_json::Value = from_str("{a: y, b: no, c: on, d: true, e: n}").unwrap();
        assert_eq!(value, serde_json::json!({"a": "y", "b": "no", "c": "on", "d": true, "e": "n"}));
    }
}
