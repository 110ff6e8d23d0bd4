//! Makes the next state of the index from changed objects.
//!
//! Owns what follows from what: which services, endpoints, rules an object touches. The work is in proportion to what
//! changed, and what comes out the same as before counts as unchanged. Must not know sources nor proxies.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use mesh_api::{labels::Labels, meshconfig::MeshConfig, model::Name};

use super::{
    ChangeSet, EndpointFacts, Index, Options, Service, ServiceEndpoints, ServiceEntry, ServiceKey, Stamp, Stamped,
    VirtualServiceEntry, Workload, allocation,
    change::Since,
    endpoint::{self, Shard, ShardKey},
    ingress::{self, Translated},
    rules::{self, NamespaceRules},
    service::{TRAFFIC_DISTRIBUTION, declared_keys},
    workload,
};
use crate::{
    source::object::{Kind, Object, ObjectChange, ObjectKey, Spec},
    validate::{MESH_CONFIG, decode_mesh_config, is_mesh_config},
};

/// The only one who changes an [`Index`].
#[derive(Debug, Clone)]
pub struct IndexWriter {
    pub(super) index: Index,
}

/// What has to be worked out anew.
#[derive(Default)]
struct Dirty {
    /// Declarations (and endpoints) of these.
    services: BTreeSet<ServiceKey>,
    /// Endpoints of these.
    endpoints: BTreeSet<ServiceKey>,
    /// Addresses whose workloads changed, with what was there before.
    addresses: BTreeMap<IpAddr, Option<Arc<Vec<Arc<Workload>>>>>,
    /// Namespaces whose DestinationRules changed.
    rules: BTreeSet<Name>,
    virtual_services: bool,
    mesh: bool,
    /// Who has which address of those that the mesh makes up.
    allocation: bool,
    kinds: BTreeSet<Kind>,
}

impl IndexWriter {
    /// Begins with nothing.
    pub fn new(options: Options) -> Self {
        Self { index: Index::empty(options) }
    }

    /// Goes on from a state; the original is not touched.
    pub fn from_index(index: Index) -> Self {
        Self { index }
    }

    /// The present state.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// Takes changes over and says what they altered.
    pub fn apply(&mut self, changes: Vec<ObjectChange>) -> ChangeSet {
        let mut out = ChangeSet { since: Since(Some(Stamp::next())), ..ChangeSet::default() };
        let mut dirty = Dirty::default();
        for change in changes {
            self.take(change, &mut dirty, &mut out);
        }
        if dirty.mesh {
            self.read_mesh(&mut dirty, &mut out);
        }
        self.settle_addresses(&mut dirty, &mut out);
        if dirty.allocation {
            self.allocate(&mut dirty);
        }
        let declared = std::mem::take(&mut dirty.services);
        for key in declared.iter().chain(dirty.endpoints.difference(&declared)) {
            self.rebuild_service(key, &mut out);
        }
        for namespace in &dirty.rules {
            self.rebuild_rules(namespace);
        }
        if dirty.virtual_services {
            self.rebuild_virtual_services(&mut out);
        }
        if !out.services.is_empty() {
            self.index.services_stamp = Stamp::next();
        }
        if !dirty.rules.is_empty() {
            self.index.rules_stamp = Stamp::next();
        }
        if !dirty.kinds.is_empty() {
            let stamps = Arc::make_mut(&mut self.index.stamps);
            stamps.extend(dirty.kinds.into_iter().map(|k| (k, Stamp::next())));
        }
        out
    }

    fn take(&mut self, change: ObjectChange, dirty: &mut Dirty, out: &mut ChangeSet) {
        let (key, new) = match change {
            ObjectChange::Upsert(o) => (o.key.clone(), Some(o)),
            ObjectChange::Remove(k) => (k, None),
        };
        let old = self.index.objects.get(&key).cloned();
        match (&old, &new) {
            (None, None) => return,
            // The same at another place of a file.
            (Some(o), Some(n)) if o.meta == n.meta && o.spec == n.spec => {
                if o.position != n.position {
                    self.index.objects.insert(key, n.clone());
                }
                return;
            }
            _ => {}
        }
        if let Some(old) = &old {
            self.link(old, false, dirty);
        }
        match &new {
            Some(new) => {
                self.index.objects.insert(key.clone(), new.clone());
                self.link(new, true, dirty);
            }
            None => {
                self.index.objects.remove(&key);
            }
        }
        match key.kind {
            Kind::Pod | Kind::EndpointSlice | Kind::WorkloadEntry => {}
            Kind::Node => self.mark_node(&key.name, dirty),
            Kind::Service => {
                dirty.kinds.insert(key.kind);
            }
            Kind::ServiceEntry => {
                dirty.kinds.insert(key.kind);
                // Endpoints come and go often, and with that nobody's address does.
                dirty.allocation |= !allocation::claims_alike(old.as_deref(), new.as_deref());
            }
            Kind::ConfigMap if is_mesh_config(&key) => {
                dirty.kinds.insert(key.kind);
            }
            _ => {
                let rules = [&old, &new].into_iter().flatten().filter_map(|o| match &o.spec {
                    Spec::DestinationRule(rule) => Some(rule),
                    _ => None,
                });
                for rule in rules {
                    let host = rules::host_of(rule, &key.namespace, &self.index.options.domain);
                    let subsets = rule.subsets.iter().map(|s| Name::from(s.name.as_str()));
                    out.rules.entry(host).or_default().extend(subsets);
                }
                dirty.kinds.insert(key.kind);
                out.objects.insert(key);
            }
        }
    }

    /// Enters an object into the lookup tables (or takes it out) and marks what depends on it.
    fn link(&mut self, object: &Arc<Object>, add: bool, dirty: &mut Dirty) {
        let index = &mut self.index;
        let key = &object.key;
        for service in declared_keys(object, &index.options.domain) {
            set_member(&mut index.declared, service.clone(), key, add);
            dirty.services.insert(service);
        }
        match &object.spec {
            Spec::EndpointSlice(_) => {
                let Some(service) = object.meta.labels.get(mesh_api::labels::SERVICE_NAME) else { return };
                let slot = (key.namespace.clone(), Name::from(service.as_str()));
                set_member(&mut index.slices, slot, key, add);
                let host = mesh_api::names::service_host(service, &key.namespace, &index.options.domain);
                dirty.endpoints.insert(ServiceKey::new(&host, &key.namespace));
            }
            Spec::Pod(_) => self.mark_selecting(&key.namespace, &object.meta.labels, dirty),
            Spec::WorkloadEntry(_) => {
                let labels = workload::labels_of(object);
                self.mark_selecting(&key.namespace, &labels, dirty);
            }
            Spec::DestinationRule(_) => {
                dirty.rules.insert(key.namespace.clone());
            }
            Spec::VirtualService(_) | Spec::Ingress(_) | Spec::IngressClass(_) => dirty.virtual_services = true,
            // Ingresses name ports.
            Spec::Service(_) if self.index.objects_in(Kind::Ingress, &key.namespace).next().is_some() => {
                dirty.virtual_services = true;
            }
            Spec::Namespace if object.meta.annotations.contains_key(TRAFFIC_DISTRIBUTION) => {
                self.mark_namespace(&key.name, dirty);
            }
            Spec::Namespace if !self.index.mesh.discovery_selectors.is_empty() => {
                self.mark_namespace(&key.name, dirty);
            }
            Spec::ConfigMap(_) if is_mesh_config(key) => dirty.mesh = true,
            _ => {}
        }
        self.place(object, add, dirty);
    }

    /// Puts the workloads of an object at their addresses, or takes them away.
    fn place(&mut self, object: &Object, add: bool, dirty: &mut Dirty) {
        for (ip, workload) in workload::declared(object, Some(&self.index)) {
            let now = self.index.workloads.get(&ip).cloned();
            dirty.addresses.entry(ip).or_insert_with(|| now.clone());
            let mut list = now.map(|l| (*l).clone()).unwrap_or_default();
            list.retain(|w| w.source != workload.source);
            if add {
                list.push(Arc::new(workload));
                list.sort_by(|a, b| a.source.cmp(&b.source));
            }
            if list.is_empty() {
                self.index.workloads.remove(&ip);
            } else {
                self.index.workloads.insert(ip, Arc::new(list));
            }
        }
    }

    /// Pods stand where their node does: they are placed anew when it moves.
    fn mark_node(&mut self, node: &str, dirty: &mut Dirty) {
        let here = |o: &&Arc<Object>| matches!(&o.spec, Spec::Pod(pod) if pod.node == node);
        let pods: Vec<Arc<Object>> = self.index.objects(Kind::Pod).filter(here).cloned().collect();
        for pod in pods {
            self.place(&pod, true, dirty);
            self.mark_selecting(&pod.key.namespace, &pod.meta.labels, dirty);
        }
    }

    /// Marks all that depends on a namespace: whether it counts at all may hang on its labels, and services inherit from it.
    fn mark_namespace(&self, namespace: &Name, dirty: &mut Dirty) {
        let here = |s: &&ServiceKey| s.namespace == *namespace;
        dirty.services.extend(self.index.declared.keys().filter(here).cloned());
        dirty.rules.insert(namespace.clone());
        dirty.virtual_services = true;
    }

    /// Marks the services whose selector picks a workload.
    fn mark_selecting(&self, namespace: &Name, labels: &Labels, dirty: &mut Dirty) {
        for (k, v) in labels {
            let slot = (namespace.clone(), k.as_str().into(), v.as_str().into());
            for service in self.index.selecting.get(&slot).into_iter().flatten() {
                let picked = self.index.services.get(service);
                if picked.is_some_and(|e| e.service.selectors.iter().any(|s| endpoint::picks(s, labels))) {
                    dirty.endpoints.insert(service.clone());
                }
            }
        }
    }

    /// Workloads that really changed: proxies there look again, services there too.
    fn settle_addresses(&self, dirty: &mut Dirty, out: &mut ChangeSet) {
        for (ip, before) in std::mem::take(&mut dirty.addresses) {
            if self.index.workloads.get(&ip) != before.as_ref() {
                out.addresses.insert(ip);
                dirty.endpoints.extend(self.index.served.get(&ip).into_iter().flatten().cloned());
            }
        }
    }

    /// Addresses for hosts without; of others that are theirs now, services are made anew.
    fn allocate(&mut self, dirty: &mut Dirty) {
        let entries = self.index.objects(Kind::ServiceEntry);
        let Some(new) = self.index.allocation.renew(entries) else { return };
        dirty.services.extend(new.changed(&self.index.allocation).cloned());
        self.index.allocation = Arc::new(new);
    }

    fn read_mesh(&mut self, dirty: &mut Dirty, out: &mut ChangeSet) {
        let (namespace, name, entry) = MESH_CONFIG;
        let text = self.index.config_map(namespace, name).and_then(|c| c.data.get(entry));
        let mesh = match text.map(|t| decode_mesh_config(t)) {
            None => MeshConfig::default(),
            Some(Ok(decoded)) => decoded.mesh,
            // Sources hand on only what validation let pass.
            Some(Err((field, error))) => {
                tracing::error!("ConfigMap {namespace}/{name}: {entry}.{field}: {error}; the last good one stays");
                return;
            }
        };
        let mesh = Stamped::keep(Some(&self.index.mesh), self.index.options.complete(mesh));
        if mesh.stamp() == self.index.mesh.stamp() {
            return;
        }
        self.index.mesh = mesh;
        out.mesh = true;
        // Defaults of visibility may have changed for everything.
        dirty.services.extend(self.index.declared.keys().cloned());
        dirty.rules.extend(self.index.objects(Kind::DestinationRule).map(|o| o.key.namespace.clone()));
        dirty.virtual_services = true;
    }

    /// The declaration of a service and the objects whose endpoints are its own.
    fn declare(&self, key: &ServiceKey) -> Option<(Service, Vec<Arc<Object>>)> {
        let index = &self.index;
        if !index.discovered(&key.namespace) {
            return None;
        }
        let mut objects: Vec<&Arc<Object>> =
            index.declared.get(key)?.iter().filter_map(|k| index.objects.get(k)).collect();
        objects.sort_by_key(|o| (o.key.kind != Kind::Service, o.age_order()));
        let namespace = index.object(&ObjectKey::new(Kind::Namespace, "", &key.namespace));
        let around = (namespace.map(|o| &**o), &*index.mesh);
        let mut out: Option<(Service, Vec<Arc<Object>>)> = None;
        for object in objects {
            let service = match &object.spec {
                Spec::Service(s) => Service::from_kubernetes(object, s, around, &index.options.domain),
                Spec::ServiceEntry(s) => Service::from_entry(object, s, &key.host, around, &index.options.domain),
                _ => continue,
            };
            match &mut out {
                None => out = Some((service, vec![object.clone()])),
                Some((base, sources)) => {
                    if base.join(service) {
                        sources.push(object.clone());
                    }
                }
            }
        }
        if let Some((service, _)) = &mut out
            && !service.kubernetes
            && service.addresses.is_empty()
        {
            service.allocated = index.allocation.get(key);
        }
        out
    }

    fn rebuild_service(&mut self, key: &ServiceKey, out: &mut ChangeSet) {
        let old = self.index.services.get(key).cloned();
        let new = self.declare(key).map(|(service, sources)| {
            let endpoints = self.endpoints(&service, &sources);
            let facts = EndpointFacts::of(&endpoints);
            ServiceEntry {
                service: Stamped::keep(old.as_ref().map(|o| &o.service), service),
                endpoints: Stamped::keep(old.as_ref().map(|o| &o.endpoints), endpoints),
                facts: Stamped::keep(old.as_ref().map(|o| &o.facts), facts),
            }
        });
        if old.is_none() && new.is_none() {
            return;
        }
        let stamps =
            |e: &Option<ServiceEntry>| e.as_ref().map(|e| (e.service.stamp(), e.endpoints.stamp(), e.facts.stamp()));
        let (before, after) = (stamps(&old), stamps(&new));
        if before == after {
            return;
        }
        let redeclared = before.map(|s| s.0) != after.map(|s| s.0);
        if redeclared {
            out.services.insert(key.clone());
            let declarations = old.iter().chain(&new).flat_map(|e| e.service.arc().ports.iter());
            out.ports.entry(key.clone()).or_default().extend(declarations.map(|p| p.port));
            let declared = old.iter().chain(&new).filter_map(|e| e.service.arc().alias_of.clone());
            out.aliased.extend(declared);
            self.enter_declaration(key, old.as_ref().map(|e| &e.service), new.as_ref().map(|e| &e.service));
        }
        if before.map(|s| s.1) != after.map(|s| s.1) {
            out.endpoints.insert(key.clone());
        }
        if before.map(|s| s.2) != after.map(|s| s.2) {
            out.facts.insert(key.clone());
        }
        self.enter_served(key, old.as_ref(), new.as_ref(), redeclared, out);
        match new {
            Some(new) => self.index.services.insert(key.clone(), new),
            None => self.index.services.remove(key),
        };
    }

    /// Keeps the tables by selector and by alias.
    fn enter_declaration(&mut self, key: &ServiceKey, old: Option<&Stamped<Service>>, new: Option<&Stamped<Service>>) {
        for (service, add) in old.map(|s| (s, false)).into_iter().chain(new.map(|s| (s, true))) {
            // One pair of a selector is enough to find it by.
            for (k, v) in service.selectors.iter().filter_map(|s| s.iter().next_back()) {
                let slot = (key.namespace.clone(), k.as_str().into(), v.as_str().into());
                set_member(&mut self.index.selecting, slot, key, add);
            }
            if let Some(target) = &service.alias_of {
                set_member(&mut self.index.aliases, target.clone(), key, add);
            }
        }
    }

    /// Keeps the table of what is served where, and marks addresses where that changed.
    fn enter_served(
        &mut self,
        key: &ServiceKey,
        old: Option<&ServiceEntry>,
        new: Option<&ServiceEntry>,
        redeclared: bool,
        out: &mut ChangeSet,
    ) {
        let ports = |entry: Option<&ServiceEntry>| {
            let mut map: HashMap<IpAddr, Vec<(u16, u16)>> = HashMap::new();
            for (_, e) in entry.into_iter().flat_map(|e| e.endpoints.arc().iter()) {
                if let Some(ip) = e.ip() {
                    map.entry(ip).or_default().extend(e.ports.iter().copied());
                }
            }
            map
        };
        let (before, after) = (ports(old), ports(new));
        for (ip, served) in &before {
            if !after.contains_key(ip) {
                set_member(&mut self.index.served, *ip, key, false);
            }
            if redeclared || after.get(ip) != Some(served) {
                out.addresses.insert(*ip);
            }
        }
        for ip in after.keys() {
            if !before.contains_key(ip) {
                set_member(&mut self.index.served, *ip, key, true);
                out.addresses.insert(*ip);
            }
        }
    }

    fn endpoints(&self, service: &Service, sources: &[Arc<Object>]) -> ServiceEndpoints {
        let mut shards = Vec::new();
        let mut add = |source: &ObjectKey, endpoints: Vec<endpoint::Endpoint>| {
            if !endpoints.is_empty() {
                let key = ShardKey { cluster: self.index.options.cluster.clone(), source: source.clone() };
                shards.push(Shard { key, endpoints });
            }
        };
        for object in sources {
            match &object.spec {
                Spec::Service(spec) => {
                    let slot = (object.key.namespace.clone(), object.key.name.clone());
                    let slices = self.index.slices.get(&slot);
                    for slice in slices.into_iter().flatten().filter_map(|k| self.index.objects.get(k)) {
                        let Spec::EndpointSlice(spec) = &slice.spec else { continue };
                        add(&slice.key, endpoint::of_slice(service, slice, spec, |ip| self.pod_at(ip, &slice.key)));
                    }
                    // Slices are what Kubernetes made of the selector; without Kubernetes nobody made them.
                    add(&object.key, self.selected(&object.key, service, &spec.selector, slices.is_none()));
                }
                Spec::ServiceEntry(spec) => {
                    let mut found = endpoint::of_service_entry(service, object, spec);
                    if let Some(selector) = &spec.workload_selector {
                        found.extend(self.selected(&object.key, service, &selector.labels, true));
                    }
                    add(&object.key, found);
                }
                _ => {}
            }
        }
        ServiceEndpoints { shards }
    }

    /// The pod at an address of an EndpointSlice.
    fn pod_at(&self, ip: IpAddr, slice: &ObjectKey) -> Option<Arc<Workload>> {
        let pods = self.index.workloads_at(ip).iter().filter(|w| w.source.0.kind == Kind::Pod);
        pods.max_by_key(|w| w.namespace == slice.namespace).cloned()
    }

    /// Pods and WorkloadEntries that a selector picks.
    fn selected(&self, owner: &ObjectKey, service: &Service, selector: &Labels, pods: bool) -> Vec<endpoint::Endpoint> {
        let mut out = Vec::new();
        if selector.is_empty() {
            return out;
        }
        if pods {
            for object in self.index.objects_in(Kind::Pod, &owner.namespace) {
                let Spec::Pod(pod) = &object.spec else { continue };
                if !pod.finished && endpoint::picks(selector, &object.meta.labels) {
                    out.extend(endpoint::of_pod(
                        service,
                        &Arc::new(Workload::of_pod(object, pod, Some(&self.index))),
                        pod,
                    ));
                }
            }
        }
        for object in self.index.objects_in(Kind::WorkloadEntry, &owner.namespace) {
            let Spec::WorkloadEntry(entry) = &object.spec else { continue };
            // An entry without an address stands for a network behind a gateway.
            if !entry.address.is_empty() && endpoint::picks(selector, &workload::labels_of(object)) {
                let workload = Arc::new(Workload::of_entry(object, 0, entry));
                out.push(endpoint::of_entry(service, &workload, entry));
            }
        }
        out
    }

    fn rebuild_rules(&mut self, namespace: &Name) {
        let index = &mut self.index;
        let mut objects: Vec<Arc<Object>> = index.objects_in(Kind::DestinationRule, namespace).cloned().collect();
        if objects.is_empty() || !index.discovered(namespace) {
            index.rules.remove(namespace);
            return;
        }
        objects.sort_by(|a, b| a.age_order().cmp(&b.age_order()));
        let old = index.rules.get(namespace);
        let new = NamespaceRules::build(namespace, &objects, &index.mesh, &index.options.domain, old.map(|o| &**o));
        let new = Stamped::keep(old, new);
        index.rules.insert(namespace.clone(), new);
    }

    fn rebuild_virtual_services(&mut self, out: &mut ChangeSet) {
        let index = &mut self.index;
        let Translated { gateways, virtual_services: of_ingresses } = ingress::translate(index);
        let name = |v: &VirtualServiceEntry| (v.object.key.clone(), v.hosts.first().cloned());
        let known: HashMap<(ObjectKey, Option<Name>), &Arc<VirtualServiceEntry>> =
            index.virtual_services.iter().map(|v| (name(v), v)).collect();
        let mut own: Vec<VirtualServiceEntry> = index
            .objects(Kind::VirtualService)
            .filter(|o| index.discovered(&o.key.namespace))
            .filter_map(|o| VirtualServiceEntry::new(o, &index.mesh, &index.options.domain))
            .collect();
        own.sort_by(|a, b| a.object.age_order().cmp(&b.object.age_order()));
        // Istio does not know how old Ingresses are: theirs count as the oldest.
        let kept = |new: VirtualServiceEntry| match known.get(&name(&new)) {
            Some(old) if ***old == new => Arc::clone(old),
            _ => Arc::new(new),
        };
        let all: Vec<_> = of_ingresses.into_iter().chain(own).map(kept).collect();
        // A Service can change what an Ingress comes to without being another service of the mesh.
        let of_ingresses = |list: &[Arc<VirtualServiceEntry>]| -> HashMap<_, ObjectKey> {
            let entries = list.iter().filter(|v| v.object.key.kind == Kind::Ingress);
            entries.map(|v| (Arc::as_ptr(v), v.object.key.clone())).collect()
        };
        let (old, new) = (of_ingresses(&index.virtual_services), of_ingresses(&all));
        let gone = old.iter().filter(|(entry, _)| !new.contains_key(*entry));
        let come = new.iter().filter(|(entry, _)| !old.contains_key(*entry));
        out.objects.extend(gone.chain(come).map(|(_, key)| key.clone()));
        index.virtual_services = Stamped::keep(Some(&index.virtual_services), all);
        if *index.ingress_gateways != gateways {
            index.ingress_gateways = Arc::new(gateways);
        }
    }
}

/// Enters `member` into the set at `slot`, or takes it out.
fn set_member<K, V>(map: &mut im::HashMap<K, im::OrdSet<V>>, slot: K, member: &V, add: bool)
where
    K: Clone + Eq + std::hash::Hash,
    V: Clone + Ord,
{
    if add {
        map.entry(slot).or_default().insert(member.clone());
    } else if let Some(set) = map.get_mut(&slot) {
        set.remove(member);
        if set.is_empty() {
            map.remove(&slot);
        }
    }
}
