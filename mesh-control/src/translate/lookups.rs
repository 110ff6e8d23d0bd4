//! Where destinations of rules lead for one proxy.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use mesh_api::{
    labels::Labels,
    model::{HashPolicy, Name},
};
use parking_lot::RwLock;

use super::{
    destination_rule::Policy, endpoints::find_subset, rule_parts, scope::Scope, translator::Request,
    virtual_service::Destinations,
};
use crate::{
    index::{Index, Service, Stamp},
    source::object::ObjectKey,
    view::ProxyView,
};

/// Lookups of a proxy.
#[derive(Debug, Clone, Copy)]
pub struct Lookups<'a>(pub Request<'a>);

impl<'a> Lookups<'a> {
    /// What a DestinationRule says of a service, port and subset.
    pub fn policy(&self, service: &'a Service, port: u16, subset: &str) -> Policy<'a> {
        let Request { index, view, .. } = self.0;
        let rule = index.destination_rule(service, view);
        let subset = find_subset(rule, subset).flatten();
        Policy::of(index.mesh(), rule.map(|r| &*r.arc().spec), subset, port)
    }

    /// The service that an ExternalName service stands for; others are what they are.
    pub fn concrete_of(&self, service: &'a Service) -> &'a str {
        match self.0.index.alias_target(service) {
            Some(target) => &target.service.arc().key.host,
            None => &service.key.host,
        }
    }
}

impl Destinations for Lookups<'_> {
    fn port_of(&self, host: &str, asked: u16) -> u16 {
        match self.0.scope.service(host).map(|s| s.service.arc().ports.as_slice()) {
            Some([only]) => only.port,
            _ => asked,
        }
    }

    fn hash(&self, host: &str, port: Option<u16>, subset: &str) -> Option<HashPolicy> {
        let service = self.0.scope.service(host)?.service.arc();
        let port = port.or_else(|| service.ports.first().map(|p| p.port)).unwrap_or(0);
        self.policy(service, port, subset).consistent_hash().and_then(rule_parts::hash_policy)
    }

    fn concrete<'h>(&'h self, host: &'h str) -> &'h str {
        self.0.scope.service(host).map_or(host, |s| self.concrete_of(s.service.arc()))
    }
}

/// Which labels of a workload its routes and listeners ask for: the keys of `sourceLabels`, all where DestinationRules
/// select workloads. Worked out once a scope, so that proxies that differ in other labels share.
#[derive(Debug, Default)]
pub struct Relevance {
    cache: RwLock<HashMap<(Name, Option<ObjectKey>), (Stamp, Arc<BTreeSet<String>>)>>,
}

/// Most scopes that are remembered.
const MAX_SCOPES: usize = 4096;

impl Relevance {
    /// The labels of a proxy that matter.
    pub fn labels(&self, request: Request<'_>) -> Labels {
        let Request { index, view, scope } = request;
        if index.has_selective_rules(&view.namespace) {
            return (*view.labels).clone();
        }
        let keys = self.keys(index, view, scope);
        view.labels.iter().filter(|(k, _)| keys.contains(*k)).map(|(k, v)| (k.clone(), v.clone())).collect()
    }

    fn keys(&self, index: &Index, view: &ProxyView, scope: &Scope) -> Arc<BTreeSet<String>> {
        let slot = (view.namespace.clone(), view.sidecar.clone());
        if let Some((at, keys)) = self.cache.read().get(&slot)
            && *at == scope.stamp()
        {
            return keys.clone();
        }
        let mut keys = BTreeSet::new();
        // Delegates are not in scopes, hence all of them.
        for vs in index.virtual_services().iter().map(|v| &v.spec) {
            let http = vs.http.iter().flat_map(|r| &r.matches).map(|m| &m.source_labels);
            let tls = vs.tls.iter().flat_map(|r| &r.matches).map(|m| &m.source_labels);
            let tcp = vs.tcp.iter().flat_map(|r| &r.matches).map(|m| &m.source_labels);
            keys.extend(http.chain(tls).chain(tcp).flat_map(|l| l.keys().cloned()));
        }
        let keys = Arc::new(keys);
        let mut cache = self.cache.write();
        if cache.len() > MAX_SCOPES {
            cache.clear();
        }
        cache.insert(slot, (scope.stamp(), keys.clone()));
        keys
    }
}
