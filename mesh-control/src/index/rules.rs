//! DestinationRules: which of them speaks for a service, seen from a namespace.
//!
//! Owns Istio's merging of rules of one host and its order of lookup (client's namespace, service's namespace, root
//! namespace). Must not know what a rule does.

use std::{collections::HashMap, sync::Arc};

use mesh_api::{
    crd::networking::DestinationRule,
    labels::{Labels, selects},
    meshconfig::MeshConfig,
    model::Name,
    names::complete_host,
};

use super::{host, stamp::Stamped, visibility::ExportTo};
use crate::{
    hash::NameMap,
    source::object::{Object, ObjectKey, Spec},
};

/// The DestinationRules of one host (and workload selector) of a namespace, merged.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    /// `namespace/name` of every source, comma-separated: stands for this merge in cache keys.
    pub id: Name,
    /// Fully qualified host or pattern.
    pub host: Name,
    /// Namespace of the rules.
    pub namespace: Name,
    /// Only for client workloads with these labels, of the same namespace.
    pub selector: Option<Labels>,
    /// Who sees it.
    pub export: ExportTo,
    /// The objects, oldest first.
    pub sources: Vec<ObjectKey>,
    /// Subsets of all of them, traffic policy of the first that has one.
    pub spec: Arc<DestinationRule>,
}

impl Rule {
    /// `istio.config` of the first source.
    pub fn config_path(&self) -> Name {
        self.sources.first().map_or_else(|| "".into(), |k| k.config_path().into())
    }
}

/// Of the rules for a host the one that holds for a client workload: one whose selector fits, else one without.
pub fn select<'a>(rules: &'a [Stamped<Rule>], namespace: &str, labels: &Labels) -> Option<&'a Stamped<Rule>> {
    let fits =
        |r: &&Stamped<Rule>| *r.namespace == *namespace && r.selector.as_ref().is_some_and(|s| selects(s, labels));
    rules.iter().find(fits).or_else(|| rules.iter().find(|r| r.selector.is_none()))
}

/// Rules by host.
#[derive(Debug, Clone, PartialEq, Default)]
struct Table {
    exact: NameMap<Name, Vec<Stamped<Rule>>>,
    /// Most specific first.
    patterns: Vec<(Name, Vec<Stamped<Rule>>)>,
}

impl Table {
    fn find(&self, host: &str) -> &[Stamped<Rule>] {
        if let Some(rules) = self.exact.get(host) {
            return rules;
        }
        self.patterns.iter().find(|(p, _)| host::within(p, host)).map_or(&[], |(_, rules)| rules.as_slice())
    }

    fn all(&self) -> impl Iterator<Item = &Stamped<Rule>> {
        self.exact.values().flatten().chain(self.patterns.iter().flat_map(|(_, rules)| rules))
    }

    /// Adds a rule, younger than all before.
    fn add(&mut self, object: &ObjectKey, spec: &Arc<DestinationRule>, host: &Name, export: &ExportTo) {
        let selector = spec.workload_selector.as_ref().map(|s| s.match_labels.clone());
        let rules = if host::is_wildcard(host) {
            let at = match self.patterns.iter().position(|(h, _)| h == host) {
                Some(at) => at,
                None => {
                    self.patterns.push((host.clone(), vec![]));
                    self.patterns.len() - 1
                }
            };
            match self.patterns.get_mut(at) {
                Some((_, rules)) => rules,
                None => return,
            }
        } else {
            self.exact.entry(host.clone()).or_default()
        };
        let source = format!("{}/{}", object.namespace, object.name);
        if let Some(old) = rules.iter_mut().find(|r| r.selector == selector && r.export == *export) {
            let mut merged: Rule = (**old.arc()).clone();
            merged.id = format!("{},{source}", merged.id).into();
            merged.sources.push(object.clone());
            let mut rule: DestinationRule = (*merged.spec).clone();
            for subset in &spec.subsets {
                if !rule.subsets.iter().any(|s| s.name == subset.name) {
                    rule.subsets.push(subset.clone());
                }
            }
            if rule.traffic_policy.is_none() {
                rule.traffic_policy.clone_from(&spec.traffic_policy);
            }
            merged.spec = Arc::new(rule);
            *old = Stamped::new(merged);
            return;
        }
        rules.push(Stamped::new(Rule {
            id: source.into(),
            host: host.clone(),
            namespace: object.namespace.clone(),
            selector,
            export: export.clone(),
            sources: vec![object.clone()],
            spec: spec.clone(),
        }));
    }

    /// Takes over the stamps of what stayed the same.
    fn keep(&mut self, old: &Self) {
        let known: HashMap<&str, &Stamped<Rule>> = old.all().map(|r| (&*r.id, r)).collect();
        let lists = self.exact.values_mut().chain(self.patterns.iter_mut().map(|(_, rules)| rules));
        for rule in lists.flatten() {
            if let Some(same) = known.get(&*rule.id).filter(|o| ***o == *rule) {
                *rule = (*same).clone();
            }
        }
        self.patterns.sort_by(|a, b| host::by_specificity(&a.0, &b.0));
    }
}

/// The whole host of a rule, lower case.
pub(super) fn host_of(rule: &DestinationRule, namespace: &str, domain: &str) -> Name {
    complete_host(&rule.host, namespace, domain).to_ascii_lowercase().into()
}

/// The rules of one namespace.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct NamespaceRules {
    /// For clients of this namespace.
    local: Table,
    /// For clients of any namespace.
    exported: Table,
    /// Private to this namespace.
    private: Table,
}

impl NamespaceRules {
    /// From all rules of the namespace, oldest first.
    pub(super) fn build(
        namespace: &str,
        rules: &[Arc<Object>],
        mesh: &MeshConfig,
        domain: &str,
        old: Option<&Self>,
    ) -> Self {
        let mut out = Self::default();
        for object in rules {
            let Spec::DestinationRule(spec) = &object.spec else { continue };
            let host = host_of(spec, namespace, domain);
            let export = if spec.workload_selector.is_some() {
                ExportTo::parse(["."], &[], namespace)
            } else {
                let words = spec.export_to.iter().map(String::as_str);
                ExportTo::parse(words, &mesh.default_destination_rule_export_to, namespace)
            };
            if export.visible(namespace) {
                out.local.add(&object.key, spec, &host, &export);
            }
            if export.private_to(namespace) {
                out.private.add(&object.key, spec, &host, &export);
            } else {
                out.exported.add(&object.key, spec, &host, &export);
            }
        }
        let empty = Self::default();
        let old = old.unwrap_or(&empty);
        out.local.keep(&old.local);
        out.exported.keep(&old.exported);
        out.private.keep(&old.private);
        out
    }

    /// Names of all subsets that any rule gives a host.
    pub(super) fn subsets<'a>(&'a self, host: &'a str) -> impl Iterator<Item = Name> + 'a {
        let exact = [&self.local, &self.exported].into_iter().filter_map(move |t| t.exact.get(host));
        let patterns = [&self.local, &self.exported]
            .into_iter()
            .flat_map(move |t| t.patterns.iter().filter(move |(p, _)| host::within(p, host)).map(|(_, rules)| rules));
        exact.chain(patterns).flatten().flat_map(|r| r.arc().spec.subsets.iter().map(|s| s.name.as_str().into()))
    }

    /// Some rules are only for certain workloads.
    pub(super) fn is_selective(&self) -> bool {
        self.local.all().any(|r| r.selector.is_some())
    }

    /// For clients of this namespace itself.
    pub(super) fn local(&self, host: &str) -> &[Stamped<Rule>] {
        self.local.find(host)
    }

    /// Private ones.
    pub(super) fn private(&self, host: &str) -> &[Stamped<Rule>] {
        self.private.find(host)
    }

    /// What clients of `namespace` see from outside.
    pub(super) fn exported(&self, host: &str, namespace: &str) -> &[Stamped<Rule>] {
        let rules = self.exported.find(host);
        // Rules of one host with different visibility stand apart; the run that is visible counts.
        let from = rules.iter().position(|r| r.export.visible(namespace)).unwrap_or(rules.len());
        let rest = rules.get(from..).unwrap_or_default();
        let len = rest.iter().position(|r| !r.export.visible(namespace)).unwrap_or(rest.len());
        rest.get(..len).unwrap_or_default()
    }
}
