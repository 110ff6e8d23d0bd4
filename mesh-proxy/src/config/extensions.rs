//! Filters that get their configuration by discovery: who refers to which, and what stands in their place.
//!
//! A listener is compiled with the configuration of the moment in the place of each such filter; a new configuration
//! makes a new version of the listener, whose connections go on as with any other change of an HTTP manager.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use mesh_api::model::{
    DiscoveredFilter, ExtensionConfig, HttpFilter, HttpFilterKind, HttpManager, Listener, Name, NetworkFilter,
};

use super::ConfigError;

/// Configurations by name, and the listeners that wait for some.
#[derive(Debug, Default)]
pub struct Extensions {
    /// `None`: there is none, as far as the control plane knows.
    known: BTreeMap<Name, Option<ExtensionConfig>>,
    /// Listeners with such filters, as they were declared.
    declared: BTreeMap<Name, Listener>,
}

impl Extensions {
    /// Keeps a listener in mind, if it has such filters. What it was before is given back.
    pub fn declare(&mut self, listener: &Listener) -> Option<Listener> {
        if discovered(listener).next().is_some() {
            self.declared.insert(listener.name.clone(), listener.clone())
        } else {
            self.declared.remove(&listener.name)
        }
    }

    /// Forgets a listener.
    pub fn undeclare(&mut self, listener: &str) {
        self.declared.remove(listener);
    }

    /// Listeners with a filter of this name, as they were declared.
    pub fn users(&self, name: &str) -> Vec<Listener> {
        let uses = |l: &&Listener| discovered(l).any(|(filter, _)| **filter == *name);
        self.declared.values().filter(uses).cloned().collect()
    }

    /// Names that are wanted now.
    pub fn wanted(&self) -> BTreeSet<Name> {
        self.declared.values().flat_map(|l| discovered(l).map(|(name, _)| name.clone())).collect()
    }

    /// Whether every filter of this name takes the configuration.
    ///
    /// # Errors
    /// Names one that does not.
    pub fn check(&self, config: &ExtensionConfig) -> Result<(), ConfigError> {
        for (listener, declared) in &self.declared {
            for (_, filter) in discovered(declared).filter(|(name, _)| **name == config.name) {
                if !filter.types.contains(&config.type_name) {
                    let (wanted, found) = (filter.types.join(", "), &config.type_name);
                    return Err(ConfigError::new(format!(
                        "is a {found}; the filter in listener {listener} takes {wanted}"
                    )));
                }
            }
        }
        Ok(())
    }

    /// What is known of a name changes; what was known before. `None`: there is no configuration.
    pub fn set(&mut self, name: &Name, config: Option<ExtensionConfig>) -> Option<Option<ExtensionConfig>> {
        self.known.insert(name.clone(), config)
    }

    /// Takes a change back.
    pub fn restore(&mut self, name: &Name, before: Option<Option<ExtensionConfig>>) {
        match before {
            Some(config) => drop(self.known.insert(name.clone(), config)),
            None => drop(self.known.remove(name)),
        }
    }

    /// Whether it is known what there is under a name, were it nothing.
    pub fn is_known(&self, name: &str) -> bool {
        self.known.contains_key(name)
    }

    /// Names that a listener waits for, and how long each at most (zero: for ever).
    pub fn pending(&self, listener: &str) -> impl Iterator<Item = (&Name, Duration)> {
        let filters = self.declared.get(listener).into_iter().flat_map(discovered);
        filters.filter(|(name, f)| !f.at_once && !self.is_known(name)).map(|(name, f)| (name, f.fetch_timeout))
    }

    /// Puts configurations into the places of filters. Those for which there is none yet stay as they are.
    pub fn resolve(&self, listener: &mut Listener) {
        for manager in managers_mut(listener) {
            for filter in &mut manager.filters {
                if let HttpFilterKind::Discovered(declared) = &filter.kind
                    && let Some(kind) = self.kind(&filter.name, declared)
                {
                    filter.kind = kind;
                }
            }
        }
    }

    fn kind(&self, name: &str, declared: &DiscoveredFilter) -> Option<HttpFilterKind> {
        let config = self.known.get(name).and_then(Option::as_ref);
        let config = config.filter(|c| declared.types.contains(&c.type_name)).map(|c| &c.kind);
        config.or(declared.default.as_ref()).cloned()
    }
}

/// Filters by discovery, with their names.
fn discovered(listener: &Listener) -> impl Iterator<Item = (&Name, &DiscoveredFilter)> {
    let chains = listener.filter_chains.iter().chain(&listener.default_filter_chain);
    let managers = chains.flat_map(|c| &c.filters).filter_map(|f| match f {
        NetworkFilter::Http(manager) => Some(manager),
        _ => None,
    });
    managers.flat_map(|m| &m.filters).filter_map(|f| match f {
        HttpFilter { name, kind: HttpFilterKind::Discovered(declared), .. } => Some((name, &**declared)),
        _ => None,
    })
}

fn managers_mut(listener: &mut Listener) -> impl Iterator<Item = &mut HttpManager> {
    let chains = listener.filter_chains.iter_mut().chain(&mut listener.default_filter_chain);
    chains.flat_map(|c| &mut c.filters).filter_map(|f| match f {
        NetworkFilter::Http(manager) => Some(&mut **manager),
        _ => None,
    })
}
