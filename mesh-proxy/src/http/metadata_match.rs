//! Conditions on what filters said of a request. Knows no filter.

use std::fmt;

use mesh_api::model::{self, Metadata, MetadataValue, Name};
use serde_json::Value;

use super::matchers::StringMatch;
use crate::config::ConfigError;

/// A compiled [`model::MetadataMatch`].
#[derive(Debug)]
pub struct MetadataMatch {
    filter: Name,
    path: Vec<Name>,
    value: ValueMatch,
    invert: bool,
}

#[derive(Debug)]
enum ValueMatch {
    String(StringMatch),
    Bool(bool),
    Present(bool),
    ListOneOf(Box<ValueMatch>),
    OneOf(Box<[ValueMatch]>),
}

impl MetadataMatch {
    /// Compiles patterns.
    ///
    /// # Errors
    /// A pattern that is not valid.
    pub fn compile(m: &model::MetadataMatch) -> Result<Self, ConfigError> {
        let value = ValueMatch::compile(&m.value)?;
        Ok(Self { filter: m.filter.clone(), path: m.path.clone(), value, invert: m.invert })
    }

    /// Whether it holds.
    pub fn matches(&self, metadata: &Metadata) -> bool {
        let mut value = metadata.get(&*self.filter);
        for key in &self.path {
            value = value.and_then(|v| v.get(&**key));
        }
        self.value.matches(value) != self.invert
    }

    /// Whether it holds where no filter said anything.
    pub fn matches_none(&self) -> bool {
        self.value.matches(None) != self.invert
    }
}

/// Filter and path, for explanations.
impl fmt::Display for MetadataMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.filter, self.path.join("/"))
    }
}

impl ValueMatch {
    fn compile(value: &MetadataValue) -> Result<Self, ConfigError> {
        Ok(match value {
            MetadataValue::String(s) => Self::String(StringMatch::compile(s)?),
            MetadataValue::Bool(b) => Self::Bool(*b),
            MetadataValue::Present(p) => Self::Present(*p),
            MetadataValue::ListOneOf(inner) => Self::ListOneOf(Box::new(Self::compile(inner)?)),
            MetadataValue::OneOf(list) => Self::OneOf(list.iter().map(Self::compile).collect::<Result<_, _>>()?),
        })
    }

    fn matches(&self, value: Option<&Value>) -> bool {
        match (self, value) {
            (Self::Present(p), v) => v.is_some() == *p,
            (Self::OneOf(list), v) => list.iter().any(|m| m.matches(v)),
            (Self::String(m), Some(Value::String(s))) => m.matches(s.as_bytes()),
            (Self::Bool(b), Some(Value::Bool(v))) => b == v,
            (Self::ListOneOf(m), Some(Value::Array(list))) => list.iter().any(|v| m.matches(Some(v))),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use mesh_api::model::StringMatcher;
    use serde_json::json;

    use super::*;

    #[test]
    fn walks_down_and_inverts() {
        let text = |s: &str| MetadataValue::String(StringMatcher::exact(s));
        let found = |value: MetadataValue, invert: bool, facts: Value| {
            let path = vec!["payload".into(), "a".into()];
            let m = MetadataMatch::compile(&model::MetadataMatch { filter: "f".into(), path, value, invert }).unwrap();
            m.matches(&Metadata::from([("f".to_owned(), facts)]))
        };
        assert!(found(text("x"), false, json!({"payload": {"a": "x"}})));
        assert!(!found(text("x"), false, json!({"payload": {"a": ["x"]}})));
        assert!(found(MetadataValue::ListOneOf(Box::new(text("x"))), false, json!({"payload": {"a": ["y", "x"]}})));
        assert!(!found(text("x"), false, json!({"payload": "a"})));
        assert!(found(text("x"), true, json!({})));
        assert!(found(MetadataValue::Present(false), false, json!({"payload": {}})));
        assert!(found(MetadataValue::Bool(true), false, json!({"payload": {"a": true}})));
    }
}
