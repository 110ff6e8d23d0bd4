//! The state of the mesh: objects, and what follows from them for every proxy alike.
//!
//! Owns services, endpoints, workloads, visibility, rules and policies in a form that answers questions quickly. An
//! [`Index`] is an immutable value, cheap to clone; [`IndexWriter`] makes the next one from changed objects and says
//! precisely what changed. Must not know proxies' configuration, Kubernetes clients or xDS.

pub mod allocation;
pub mod change;
pub mod endpoint;
pub mod extensions;
pub mod host;
pub mod ingress;
pub mod keys;
pub mod named;
pub mod policies;
pub mod protocol;
pub mod rules;
pub mod service;
pub mod stamp;
pub mod virtual_services;
pub mod visibility;
pub mod workload;
mod writer;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
pub(crate) mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use im::{HashMap, OrdMap, OrdSet};
use mesh_api::{
    crd::networking,
    labels::{self, Labels, selects},
    meshconfig::MeshConfig,
    model::Name,
};

use self::rules::NamespaceRules;
pub use self::{
    allocation::{Allocated, Allocation},
    change::ChangeSet,
    endpoint::{Endpoint, EndpointAddress, EndpointFacts, Health, ServiceEndpoints},
    ingress::IngressGateway,
    keys::{KeyOrigin, KeySource},
    policies::{Mtls, PeerAuthn},
    protocol::Protocol,
    rules::Rule,
    service::{Nearness, Resolution, Service, ServiceKey, ServicePort, TargetPort},
    stamp::{Stamp, Stamped},
    virtual_services::VirtualServiceEntry,
    visibility::ExportTo,
    workload::Workload,
    writer::IndexWriter,
};
use crate::{
    source::{
        core,
        object::{Kind, Object, ObjectKey, Spec},
    },
    validate::MESH_CONFIG,
    view::{ProxyView, ServiceTarget},
};

/// What is fixed for the life of the process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Id of this cluster.
    pub cluster: Name,
    /// Network of what names none.
    pub network: Name,
    /// Overrides the trust domain of MeshConfig.
    pub trust_domain: Option<Name>,
    /// DNS domain of services.
    pub domain: Name,
    /// Root namespace where MeshConfig names none: that of the control plane.
    pub root_namespace: Name,
    /// VirtualServices route to other namespaces' services for every client, as under Istio.
    pub cross_namespace_routes: bool,
    /// Gateways are reached by Services of a cluster.
    pub in_cluster: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            cluster: "Kubernetes".into(),
            network: "".into(),
            trust_domain: None,
            domain: "cluster.local".into(),
            root_namespace: MESH_CONFIG.0.into(),
            cross_namespace_routes: false,
            in_cluster: false,
        }
    }
}

impl Options {
    /// Settings of the mesh with what the control plane itself adds to them.
    fn complete(&self, mut mesh: MeshConfig) -> MeshConfig {
        if mesh.root_namespace.is_empty() {
            mesh.root_namespace = self.root_namespace.to_string();
        }
        mesh
    }
}

/// A service with all that is known of it.
#[derive(Debug, Clone, PartialEq)]
pub struct ServiceEntry {
    /// Declaration.
    pub service: Stamped<Service>,
    /// Endpoints.
    pub endpoints: Stamped<ServiceEndpoints>,
    /// What clusters show of the endpoints.
    pub facts: Stamped<EndpointFacts>,
}

/// A Gateway of Istio's, or one that an Ingress stands for.
#[derive(Debug)]
pub struct ServedGateway<'a> {
    /// The object that it comes from.
    pub object: &'a Arc<Object>,
    /// `namespace/name` by which VirtualServices mean it.
    pub name: Name,
    /// Selector and servers.
    pub spec: &'a networking::Gateway,
}

/// The state of the mesh.
#[derive(Debug, Clone)]
pub struct Index {
    options: Arc<Options>,
    objects: OrdMap<ObjectKey, Arc<Object>>,
    mesh: Stamped<MeshConfig>,
    services: OrdMap<ServiceKey, ServiceEntry>,
    /// Workloads by address; several only by mistake or on shared addresses.
    workloads: HashMap<IpAddr, Arc<Vec<Arc<Workload>>>>,
    /// Services that have an endpoint at an address.
    served: HashMap<IpAddr, OrdSet<ServiceKey>>,
    /// Objects that declare a service.
    declared: HashMap<ServiceKey, OrdSet<ObjectKey>>,
    /// EndpointSlices by namespace and Service.
    slices: HashMap<(Name, Name), OrdSet<ObjectKey>>,
    rules: HashMap<Name, Stamped<NamespaceRules>>,
    virtual_services: Stamped<Vec<Arc<VirtualServiceEntry>>>,
    /// Gateways of Ingresses, by name.
    ingress_gateways: Arc<Vec<IngressGateway>>,
    /// Services with a selector, by namespace and one pair of it.
    selecting: HashMap<(Name, Name, Name), OrdSet<ServiceKey>>,
    /// ExternalName services by the host they stand for.
    aliases: HashMap<Name, OrdSet<ServiceKey>>,
    /// Addresses of hosts that have none.
    allocation: Arc<Allocation>,
    /// Keys of issuers that were fetched.
    keys: keys::FetchedKeys,
    stamps: Arc<BTreeMap<Kind, Stamp>>,
    services_stamp: Stamp,
    rules_stamp: Stamp,
}

/// Equal content; stamps aside.
impl PartialEq for Index {
    fn eq(&self, other: &Self) -> bool {
        self.options == other.options
            && self.objects == other.objects
            && self.mesh == other.mesh
            && self.services == other.services
            && self.workloads == other.workloads
            && self.served == other.served
            && self.declared == other.declared
            && self.slices == other.slices
            && self.rules == other.rules
            && self.virtual_services == other.virtual_services
            && self.ingress_gateways == other.ingress_gateways
            && self.selecting == other.selecting
            && self.aliases == other.aliases
            && self.allocation == other.allocation
            && self.keys == other.keys
    }
}

impl Index {
    /// Nothing yet.
    pub fn empty(options: Options) -> Self {
        let mesh = Stamped::keep(None, options.complete(MeshConfig::default()));
        Self {
            options: Arc::new(options),
            objects: OrdMap::new(),
            mesh,
            services: OrdMap::new(),
            workloads: HashMap::new(),
            served: HashMap::new(),
            declared: HashMap::new(),
            slices: HashMap::new(),
            rules: HashMap::new(),
            virtual_services: Stamped::default(),
            ingress_gateways: Arc::default(),
            selecting: HashMap::new(),
            aliases: HashMap::new(),
            allocation: Arc::default(),
            keys: keys::FetchedKeys::new(),
            stamps: Arc::default(),
            services_stamp: Stamp::NONE,
            rules_stamp: Stamp::NONE,
        }
    }

    /// Whether this is a copy of `other` that nothing was applied to since. Costs next to nothing.
    pub fn is_copy_of(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.stamps, &other.stamps)
            && self.mesh.stamp() == other.mesh.stamp()
            && self.objects.ptr_eq(&other.objects)
            && self.services.ptr_eq(&other.services)
            && self.keys.ptr_eq(&other.keys)
    }

    /// What is fixed.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// DNS domain of services.
    pub fn domain(&self) -> &str {
        &self.options.domain
    }

    /// MeshConfig.
    pub fn mesh(&self) -> &MeshConfig {
        &self.mesh
    }

    /// MeshConfig with its stamp.
    pub fn mesh_stamped(&self) -> &Stamped<MeshConfig> {
        &self.mesh
    }

    /// Trust domain of the mesh.
    pub fn trust_domain(&self) -> &str {
        self.options.trust_domain.as_deref().unwrap_or_else(|| self.mesh.trust_domain())
    }

    // ---- objects ----

    /// An object.
    pub fn object(&self, key: &ObjectKey) -> Option<&Arc<Object>> {
        self.objects.get(key)
    }

    /// All objects.
    pub fn all_objects(&self) -> impl Iterator<Item = &Arc<Object>> {
        self.objects.values()
    }

    /// Objects of a kind, by namespace and name.
    pub fn objects(&self, kind: Kind) -> impl Iterator<Item = &Arc<Object>> {
        self.objects.range(ObjectKey::new(kind, "", "")..).take_while(move |(k, _)| k.kind == kind).map(|(_, o)| o)
    }

    /// Objects of a kind in a namespace, by name.
    pub fn objects_in<'a>(&'a self, kind: Kind, namespace: &str) -> impl Iterator<Item = &'a Arc<Object>> + use<'a> {
        let from = ObjectKey::new(kind, namespace, "");
        let namespace = from.namespace.clone();
        self.objects.range(from..).take_while(move |(k, _)| k.kind == kind && k.namespace == namespace).map(|(_, o)| o)
    }

    /// Changes whenever an object of this kind does. Not kept for Pods, EndpointSlices and WorkloadEntries.
    pub fn stamp(&self, kind: Kind) -> Stamp {
        self.stamps.get(&kind).copied().unwrap_or(Stamp::NONE)
    }

    /// Labels of a namespace; empty when it is not known.
    pub fn namespace_labels(&self, namespace: &str) -> Option<&Labels> {
        self.object(&ObjectKey::new(Kind::Namespace, "", namespace)).map(|o| &o.meta.labels)
    }

    /// Namespaces whose objects count.
    pub fn discovered_namespaces(&self) -> impl Iterator<Item = Name> {
        let names = self.objects(Kind::Namespace).map(|o| o.key.name.clone());
        names.filter(|name| self.discovered(name))
    }

    /// Whether objects of a namespace count: `discoverySelectors` of the mesh.
    pub fn discovered(&self, namespace: &str) -> bool {
        let selectors = &self.mesh.discovery_selectors;
        if selectors.is_empty() || *namespace == *self.mesh.root_namespace() {
            return true;
        }
        // The API server enters this label; in a folder a namespace may not even have an object.
        let mut labels = self.namespace_labels(namespace).cloned().unwrap_or_default();
        labels.entry(labels::NAMESPACE_NAME.to_owned()).or_insert_with(|| namespace.to_owned());
        selectors.iter().any(|s| visibility::label_selector_fits(s, &labels))
    }

    /// A Secret.
    pub fn secret(&self, namespace: &str, name: &str) -> Option<&Arc<core::Secret>> {
        match &self.object(&ObjectKey::new(Kind::Secret, namespace, name))?.spec {
            Spec::Secret(s) => Some(s),
            _ => None,
        }
    }

    /// A ConfigMap.
    pub fn config_map(&self, namespace: &str, name: &str) -> Option<&Arc<core::ConfigMap>> {
        match &self.object(&ObjectKey::new(Kind::ConfigMap, namespace, name))?.spec {
            Spec::ConfigMap(c) => Some(c),
            _ => None,
        }
    }

    // ---- services ----

    /// All services.
    pub fn services(&self) -> impl Iterator<Item = &ServiceEntry> {
        self.services.values()
    }

    /// Changes whenever a service appears, vanishes or is declared differently.
    pub fn services_stamp(&self) -> Stamp {
        self.services_stamp
    }

    /// A service by host and namespace.
    pub fn service_entry(&self, key: &ServiceKey) -> Option<&ServiceEntry> {
        self.services.get(key)
    }

    /// Services of a host, by namespace.
    pub fn services_of_host<'a>(&'a self, host: &str) -> impl Iterator<Item = &'a ServiceEntry> + use<'a> {
        let from = ServiceKey::new(host, "");
        let host = from.host.clone();
        self.services.range(from..).take_while(move |(k, _)| k.host == host).map(|(_, e)| e)
    }

    /// The service that `host` means to clients of `namespace` without a Sidecar: of the visible ones the one from
    /// Kubernetes, else the oldest.
    pub fn service(&self, host: &str, namespace: &str) -> Option<&ServiceEntry> {
        self.services_of_host(host)
            .filter(|e| self.visible(&e.service, namespace))
            .min_by(|a, b| a.service.precedence().cmp(&b.service.precedence()))
    }

    /// Whether clients of `namespace` may see a service. The one place where that is decided.
    pub fn visible(&self, service: &Service, namespace: &str) -> bool {
        service.export.visible(namespace)
    }

    /// Services visible to `namespace`, those that count before others first (Kubernetes, age, namespace, host).
    pub fn visible_services(&self, namespace: &str) -> Vec<&ServiceEntry> {
        let mut out: Vec<_> = self.services.values().filter(|e| self.visible(&e.service, namespace)).collect();
        out.sort_by(|a, b| {
            let (a, b) = (&a.service, &b.service);
            a.precedence().cmp(&b.precedence()).then_with(|| a.key.cmp(&b.key))
        });
        out
    }

    /// The service an ExternalName service stands for, when the mesh knows it.
    pub fn alias_target(&self, service: &Service) -> Option<&ServiceEntry> {
        let target = service.alias_of.as_ref()?;
        self.service(target, &service.key.namespace).filter(|e| e.service.resolution != Resolution::Alias)
    }

    /// The addresses that the mesh made up for a host without any.
    pub fn allocated(&self, key: &ServiceKey) -> Option<Allocated> {
        self.allocation.get(key)
    }

    /// ExternalName services that stand for a host.
    pub fn aliases_of(&self, host: &str) -> impl Iterator<Item = &ServiceEntry> {
        self.aliases.get(host).into_iter().flatten().filter_map(|k| self.services.get(k))
    }

    /// Endpoints of a service, those of one port and set of labels (a subset's; empty: all).
    pub fn endpoints<'a>(
        &'a self,
        key: &ServiceKey,
        port: u16,
        subset: &'a Labels,
    ) -> impl Iterator<Item = (&'a Endpoint, u16)> {
        self.services
            .get(key)
            .into_iter()
            .flat_map(|e| e.endpoints.arc().iter())
            .filter(move |(_, e)| selects(subset, &e.workload.labels))
            .filter_map(move |(_, e)| Some((e, e.port(port)?)))
    }

    // ---- rules, routes, gateways, sidecars ----

    /// DestinationRules that hold for a service, seen from a namespace; [`rules::select`] picks by workload labels.
    pub fn destination_rules(&self, service: &Service, namespace: &str) -> &[Stamped<Rule>] {
        let host = &*service.key.host;
        let root = self.mesh.root_namespace();
        // In the root namespace rules for everybody live beside its own: there only private ones come first.
        let own = self
            .rules
            .get(namespace)
            .map_or(&[][..], |r| if namespace == root { r.private(host) } else { r.local(host) });
        if !own.is_empty() {
            return own;
        }
        for owner in [&*service.key.namespace, root] {
            let found = self.rules.get(owner).map_or(&[][..], |r| r.exported(host, namespace));
            if !found.is_empty() {
                return found;
            }
        }
        &[]
    }

    /// The DestinationRule for a service that holds for a proxy.
    pub fn destination_rule(&self, service: &Service, view: &ProxyView) -> Option<&Stamped<Rule>> {
        rules::select(self.destination_rules(service, &view.namespace), &view.namespace, &view.labels)
    }

    /// Names of the subsets that any client may know a host to have.
    pub fn subset_names(&self, host: &str) -> BTreeSet<Name> {
        self.rules.values().flat_map(|r| r.arc().subsets(host)).collect()
    }

    /// Whether rules hold only for certain workloads of a namespace.
    pub fn has_selective_rules(&self, namespace: &str) -> bool {
        self.rules.get(namespace).is_some_and(|r| r.is_selective())
    }

    /// Changes whenever a DestinationRule does.
    pub fn rules_stamp(&self) -> Stamp {
        self.rules_stamp
    }

    /// All VirtualServices, oldest first.
    pub fn virtual_services(&self) -> &Stamped<Vec<Arc<VirtualServiceEntry>>> {
        &self.virtual_services
    }

    /// VirtualServices for sidecars of a namespace, oldest first.
    pub fn mesh_virtual_services(&self, namespace: &str) -> impl Iterator<Item = &Arc<VirtualServiceEntry>> {
        self.virtual_services.iter().filter(move |v| v.is_mesh() && v.export.visible(namespace))
    }

    /// Whether a route that an object of namespace `author` declares for a service of namespace `owner` holds for
    /// clients of namespace `client`: nobody but its owner and the root namespace decides where other tenants' requests
    /// for a service go.
    pub fn routes_for(&self, author: &str, owner: &str, client: &str) -> bool {
        author == owner
            || author == client
            || author == self.mesh.root_namespace()
            || self.options.cross_namespace_routes
    }

    /// VirtualServices of a gateway (`namespace/name`) whose proxies run in `namespace`, oldest first.
    pub fn gateway_virtual_services(
        &self,
        gateway: &str,
        namespace: &str,
    ) -> impl Iterator<Item = &Arc<VirtualServiceEntry>> {
        self.virtual_services.iter().filter(move |v| v.applies_to(gateway) && v.export.visible(namespace))
    }

    /// Gateways that select a workload: those of Ingresses, whose age Istio does not know, then Istio's, oldest first.
    pub fn gateways_for(&self, labels: &Labels) -> Vec<ServedGateway<'_>> {
        let mut own: Vec<_> = self
            .objects(Kind::IstioGateway)
            .filter(|o| self.discovered(&o.key.namespace))
            .filter_map(|object| match &object.spec {
                Spec::IstioGateway(spec) => {
                    let name = format!("{}/{}", object.key.namespace, object.key.name).into();
                    Some(ServedGateway { object, name, spec })
                }
                _ => None,
            })
            .collect();
        own.sort_by(|a, b| a.object.age_order().cmp(&b.object.age_order()));
        let of_ingresses = self.ingress_gateways.iter();
        let of_ingresses =
            of_ingresses.map(|g| ServedGateway { object: &g.object, name: g.name.clone(), spec: &g.spec });
        of_ingresses.chain(own).filter(|g| selects(&g.spec.selector, labels)).collect()
    }

    /// The Sidecar that holds for a workload: one that selects it, the namespace's default, the root namespace's.
    pub fn sidecar_for(&self, namespace: &str, labels: &Labels) -> Option<&Arc<Object>> {
        let oldest = |ns: &str, with_selector: bool| {
            self.objects_in(Kind::Sidecar, ns)
                .filter(|o| match &o.spec {
                    Spec::Sidecar(s) => match &s.workload_selector {
                        Some(sel) => with_selector && selects(&sel.labels, labels),
                        None => !with_selector,
                    },
                    _ => false,
                })
                .min_by(|a, b| a.age_order().cmp(&b.age_order()))
        };
        oldest(namespace, true)
            .or_else(|| oldest(namespace, false))
            .or_else(|| oldest(self.mesh.root_namespace(), false))
    }

    // ---- workloads ----

    /// Workloads registered at an address.
    pub fn workloads_at(&self, ip: IpAddr) -> &[Arc<Workload>] {
        self.workloads.get(&ip).map_or(&[], |w| w.as_slice())
    }

    /// The workload of a proxy: what is registered in its namespace at one of its addresses. Where several share an
    /// address (loopback), the one of its name counts, else one with its labels, else the first.
    pub fn workload_of(&self, view: &ProxyView) -> Option<&Arc<Workload>> {
        view.ips.iter().map(|ip| self.workloads_at(*ip)).find_map(|all| {
            let here = || all.iter().filter(|w| w.namespace == view.namespace);
            let named = here().find(|w| w.source.0.name == view.name || w.name == view.name);
            let labelled = || here().find(|w| !w.labels.is_empty() && selects(&w.labels, &view.metadata.labels));
            named.or_else(labelled).or_else(|| here().next())
        })
    }

    /// Services of a proxy's namespace that have endpoints at its addresses, with each of their ports.
    fn targets(&self, view: &ProxyView) -> Vec<ServiceTarget> {
        let keys: BTreeSet<&ServiceKey> = view.ips.iter().filter_map(|ip| self.served.get(ip)).flatten().collect();
        let mut entries: Vec<&ServiceEntry> =
            keys.into_iter().filter(|k| k.namespace == view.namespace).filter_map(|k| self.services.get(k)).collect();
        entries.sort_by(|a, b| a.service.precedence().cmp(&b.service.precedence()));
        let mut out: Vec<ServiceTarget> = Vec::new();
        // Other workloads may be registered at the same address; only names tell them from a second registration of
        // the same one.
        let named = |source: &(ObjectKey, usize)| matches!(source.0.kind, Kind::Pod | Kind::WorkloadEntry);
        let own = self.workload_of(view).map(|w| &w.source).filter(|s| named(s) && s.0.name == view.name);
        let foreign = |e: &Endpoint, ip| {
            own.is_some_and(|own| e.workload.source != *own)
                && named(&e.workload.source)
                && self.workloads_at(ip).iter().any(|w| w.source == e.workload.source)
        };
        for entry in entries {
            let here = entry
                .endpoints
                .iter()
                .filter(|(_, e)| e.ip().is_some_and(|ip| view.ips.contains(&ip) && !foreign(e, ip)));
            for (_, endpoint) in here {
                for (port, target) in &endpoint.ports {
                    let Some(port) = entry.service.port(*port) else { continue };
                    let target =
                        ServiceTarget { service: entry.service.clone(), port: port.clone(), target_port: *target };
                    if !out.contains(&target) {
                        out.push(target);
                    }
                }
            }
        }
        out
    }

    /// Labels of a node.
    pub fn node_labels(&self, name: &str) -> Option<&Labels> {
        self.object(&ObjectKey::new(Kind::Node, "", name)).map(|o| &o.meta.labels)
    }

    /// Completes a view with what the index knows of the proxy: labels of the workload registered at its address,
    /// locality, network and cluster where it tells none, the services it serves, its Sidecar.
    #[must_use]
    pub fn view(&self, mut view: ProxyView) -> ProxyView {
        if let Some(workload) = self.workload_of(&view).cloned() {
            view.labels = workload.labels.clone();
            if view.is_gateway() {
                view.registered = Some((workload.source.0.clone(), workload.service_account.clone()));
            }
            view.node = workload.node.clone();
            if view.locality == mesh_api::model::Locality::default() {
                view.locality = workload.locality.clone();
            }
            if view.network.is_empty() {
                view.network = workload.network.clone();
            }
        }
        if view.network.is_empty() {
            view.network = self.options.network.clone();
        }
        if view.cluster.is_empty() {
            view.cluster = self.options.cluster.clone();
        }
        view.targets = self.targets(&view).into();
        view.sidecar = if view.is_sidecar() {
            self.sidecar_for(&view.namespace, &view.labels).map(|o| o.key.clone())
        } else {
            None
        };
        view.envoy_filters = self.envoy_filters(&view);
        view.patches = Default::default();
        view
    }
}
