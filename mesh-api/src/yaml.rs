//! YAML as Kubernetes reads it: `true` and `false` are booleans, `y`, `no` and `on` are text. A host, a label value or
//! a namespace may well be called `n`. Numbers that begin with 0 are octal (`defaultMode: 0644`).

use serde::de::DeserializeOwned;
pub use serde_saphyr::Error;

/// Reads one document.
///
/// # Errors
/// Wrong syntax, or a value of another kind than the type wants.
pub fn from_str<T: DeserializeOwned>(text: &str) -> Result<T, Error> {
    serde_saphyr::from_str_with_options(
        text,
        serde_saphyr::options! { strict_booleans: true, legacy_octal_numbers: true },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_stay_words() {
        let value: serde_json::Value = from_str("{a: y, b: no, c: on, d: true, e: n}").unwrap();
        assert_eq!(value, serde_json::json!({"a": "y", "b": "no", "c": "on", "d": true, "e": "n"}));
    }

    #[test]
    fn modes_of_files_are_octal() {
        let value: serde_json::Value = from_str("{a: 0644, b: '0644', c: 0, d: 0.5, e: 10, f: 0o600}").unwrap();
        assert_eq!(value, serde_json::json!({"a": 420, "b": "0644", "c": 0, "d": 0.5, "e": 10, "f": 384}));
    }
}
