//! Who may see what: `exportTo` of services, VirtualServices and DestinationRules.
//!
//! Owns the one function that decides visibility. Generators ask it and nothing else.

use std::collections::BTreeSet;

use mesh_api::{
    crd::gateway_api::LabelSelector,
    labels::{Labels, selects},
    model::Name,
};

/// To which namespaces something is shown.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub enum ExportTo {
    /// Everybody.
    #[default]
    All,
    /// Nobody.
    Nobody,
    /// These. The own namespace is among them only when it was named (or `.`).
    Namespaces(BTreeSet<Name>),
}

impl ExportTo {
    /// Reads `exportTo` of an object in `namespace`; an empty list means `default`.
    pub fn parse<'a>(list: impl IntoIterator<Item = &'a str>, default: &[String], namespace: &str) -> Self {
        let mut words: Vec<&str> = list.into_iter().map(str::trim).filter(|w| !w.is_empty()).collect();
        if words.is_empty() {
            words = default.iter().map(String::as_str).collect();
        }
        if words.is_empty() || words.contains(&"*") {
            return Self::All;
        }
        if words.contains(&"~") {
            return Self::Nobody;
        }
        Self::Namespaces(words.into_iter().map(|w| if w == "." { namespace } else { w }.into()).collect())
    }

    /// The one rule: whether something with this `exportTo` is visible in `namespace`.
    pub fn visible(&self, namespace: &str) -> bool {
        match self {
            Self::All => true,
            Self::Nobody => false,
            Self::Namespaces(set) => set.contains(namespace),
        }
    }

    /// What is left of it when only `namespace` may see it.
    pub fn within(&self, namespace: &str) -> Self {
        if self.visible(namespace) { Self::Namespaces(BTreeSet::from([namespace.into()])) } else { Self::Nobody }
    }

    /// Shown to `namespace` and nobody else.
    pub fn private_to(&self, namespace: &str) -> bool {
        matches!(self, Self::Namespaces(set) if set.len() == 1 && set.contains(namespace))
    }
}

/// Whether a selector with expressions fits labels; an empty one fits all.
pub fn label_selector_fits(selector: &LabelSelector, labels: &Labels) -> bool {
    selects(&selector.match_labels, labels)
        && selector.match_expressions.iter().all(|e| {
            let value = labels.get(&e.key);
            let listed = value.is_some_and(|v| e.values.contains(v));
            match e.operator.as_str() {
                "In" => listed,
                "NotIn" => !listed,
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                _ => false,
            }
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_export_to() {
        let parse = |words: &[&str]| ExportTo::parse(words.iter().copied(), &[], "shop");
        assert_eq!(parse(&[]), ExportTo::All);
        assert_eq!(parse(&["*", "."]), ExportTo::All);
        assert_eq!(parse(&["~", "."]), ExportTo::Nobody);
        assert!(parse(&["."]).private_to("shop"));
        assert!(parse(&[".", "bank"]).visible("bank"));
        assert!(!parse(&["bank"]).visible("shop"));
        assert!(parse(&[]).within("shop").private_to("shop"));
        assert_eq!(parse(&["bank"]).within("shop"), ExportTo::Nobody);
        assert!(ExportTo::parse([], &[".".to_owned()], "shop").private_to("shop"));
    }
}
