//! Membership of a cluster: makes endpoints of what the configuration lists, keeping their state by address, and the
//! balancer's table of both. Knows no sources of endpoints.

use std::{collections::HashMap, sync::Arc};

use mesh_api::model::{self, Address, EndpointSet, Locality};

use super::{
    Endpoint,
    balance::{ThreadRandom, table::Table},
    endpoint::{EndpointState, Flag},
};
use crate::tls::ClusterTls;

/// The endpoints in force.
#[derive(Debug, Default)]
pub(super) struct Members {
    set: Option<Arc<EndpointSet>>,
    /// One list a locality of the set.
    groups: Vec<Vec<Arc<Endpoint>>>,
    states: HashMap<Address, Arc<EndpointState>>,
}

/// What a new set changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Change {
    /// Endpoints came or went.
    pub(super) membership: bool,
    /// Endpoints went.
    pub(super) removed: bool,
}

impl Members {
    /// For the next version of the cluster: no endpoints yet, but the state of those that may come back. What nobody
    /// watches over any more is no reason to avoid an endpoint: ejections go with outlier detection, failed checks with
    /// the checks.
    pub(super) fn successor(&self, next: &model::Cluster) -> Self {
        for state in self.states.values() {
            if next.outlier.is_none() {
                state.put(Flag::FailedOutlier, false);
            }
            if next.health_checks.is_empty() {
                state.put(Flag::FailedActive, false);
                state.put(Flag::PendingActive, false);
            }
        }
        Self { set: None, groups: vec![], states: self.states.clone() }
    }

    /// The set in force.
    pub(super) fn set(&self) -> Option<Arc<EndpointSet>> {
        self.set.clone()
    }

    /// Puts a new set in force; `None`: it is the same. `checked`: new endpoints wait for their first health check.
    pub(super) fn replace(&mut self, set: Arc<EndpointSet>, tls: &ClusterTls, checked: bool) -> Option<Change> {
        if self.set.as_ref().is_some_and(|old| Arc::ptr_eq(old, &set) || **old == *set) {
            return None;
        }
        let mut old: HashMap<Address, Arc<Endpoint>> =
            self.groups.drain(..).flatten().map(|e| (e.config.address.clone(), e)).collect();
        let mut states = HashMap::with_capacity(old.len());
        let mut added = false;
        for group in &set.localities {
            let locality = Arc::new(group.locality.clone());
            let mut list = Vec::with_capacity(group.endpoints.len());
            for config in &group.endpoints {
                // An address listed twice counts once, where it stands first.
                if states.contains_key(&config.address) {
                    continue;
                }
                let endpoint = match old.remove(&config.address) {
                    Some(e) if e.config == *config && e.priority == group.priority && *e.locality == *locality => e,
                    before => {
                        let known = before.map(|e| e.state.clone()).or_else(|| self.states.remove(&config.address));
                        let state = known.unwrap_or_else(|| {
                            added = true;
                            let state = EndpointState::new();
                            if checked {
                                state.put(Flag::FailedActive, true);
                                state.put(Flag::PendingActive, true);
                            }
                            state
                        });
                        let tls = tls.select(&config.tls_labels).cloned();
                        Endpoint::new(config.clone(), locality.clone(), group.priority, tls, state)
                    }
                };
                endpoint.state.set_removed(false);
                states.insert(config.address.clone(), endpoint.state.clone());
                list.push(endpoint);
            }
            self.groups.push(list);
        }
        let removed = !old.is_empty();
        for endpoint in old.values() {
            endpoint.state.set_removed(true);
        }
        self.set = Some(set);
        self.states = states;
        Some(Change { membership: added || removed, removed })
    }

    /// The balancer's table of the moment.
    pub(super) fn table(&self, cluster: &model::Cluster, zone: Option<&Locality>) -> Table {
        static NONE: std::sync::LazyLock<EndpointSet> = std::sync::LazyLock::new(EndpointSet::default);
        Table::build(cluster, self.set.as_deref().unwrap_or(&NONE), &self.groups, zone, &ThreadRandom)
    }
}

#[cfg(test)]
mod tests {
    use mesh_api::model::{HealthStatus, LocalityEndpoints};

    use super::*;

    fn set(ports: &[u16]) -> Arc<EndpointSet> {
        let endpoints =
            ports.iter().map(|p| model::Endpoint::at(Address::Socket(([127, 0, 0, 1], *p).into()))).collect();
        Arc::new(EndpointSet {
            localities: vec![LocalityEndpoints { endpoints, ..LocalityEndpoints::default() }],
            ..EndpointSet::default()
        })
    }

    #[test]
    fn state_stays_by_address_and_doubles_count_once() {
        let mut m = Members::default();
        let none = ClusterTls::none();
        assert_eq!(m.replace(set(&[1, 2, 2]), &none, false), Some(Change { membership: true, removed: false }));
        assert_eq!(m.groups[0].len(), 2);
        let first = m.groups[0].clone();
        assert_eq!(m.replace(set(&[1, 2, 2]), &none, false), None);

        let mut changed = EndpointSet::clone(&set(&[2, 3]));
        changed.localities[0].endpoints[0].health = HealthStatus::Draining;
        assert_eq!(m.replace(Arc::new(changed), &none, true), Some(Change { membership: true, removed: true }));
        assert_eq!(m.groups[0][0].state.id, first[1].state.id);
        assert_eq!(m.groups[0][0].config.health, HealthStatus::Draining);
        assert!(first[0].state.is_removed() && !first[1].state.is_removed());
        assert!(m.groups[0][1].state.has(Flag::PendingActive) && !m.groups[0][0].state.has(Flag::PendingActive));

        m.groups[0][1].state.put(Flag::FailedOutlier, true);
        let mut watched = model::Cluster::new("c", model::Discovery::Eds { service: "".into() });
        watched.outlier = Some(model::OutlierDetection::default());
        let mut next = m.successor(&watched);
        next.replace(set(&[3]), &none, false);
        assert_eq!(next.groups[0][0].state.id, m.groups[0][1].state.id);
        assert!(next.groups[0][0].state.has(Flag::FailedOutlier));
        watched.outlier = None;
        let _ = next.successor(&watched);
        assert!(!next.groups[0][0].state.has(Flag::FailedOutlier) && !next.groups[0][0].state.has(Flag::PendingActive));
    }
}
