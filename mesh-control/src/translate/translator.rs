//! The generator of all resources: finds the maker of a resource by type and name.
//!
//! Owns the caches and what a change may alter for whom. Must not know what resources look like.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use mesh_api::{
    names::{ClusterName, Direction},
    xds::TypeUrl,
};
use parking_lot::RwLock;

use super::{
    clusters, endpoints,
    listeners::Listeners,
    name_table::{self, NameTables},
    patches::Patches,
    routes::Routes,
    scope::{Scope, Scopes},
    secrets::Secrets,
};
use crate::{
    index::{ChangeSet, Index, Resolution, ServiceKey, Stamp, Stamped, host},
    source::object::{Kind, Object, ObjectKey},
    validate::Finding,
    view::{Flavour, ProxyKind, ProxyView},
    xds::{
        encoded::{Encoded, Name},
        generator::{Affected, Generator, Reach},
        node::Client,
    },
};

/// What makers of resources are asked with.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The state of the mesh.
    pub index: &'a Index,
    /// Who asks.
    pub view: &'a ProxyView,
    /// What it sees.
    pub scope: &'a Arc<Scope>,
}

/// Makes every resource; one for the process.
#[derive(Debug, Default)]
pub struct Translator {
    scopes: Scopes,
    clusters: clusters::Outbound,
    endpoints: endpoints::Assignments,
    listeners: Listeners,
    routes: Routes,
    secrets: Secrets,
    name_tables: NameTables,
    names: NameLists,
    patches: Patches,
}

impl Translator {
    /// With empty caches.
    pub fn new() -> Self {
        Self::default()
    }

    /// What a proxy sees.
    pub fn scope(&self, index: &Index, view: &ProxyView) -> Arc<Scope> {
        self.scopes.get(index, view)
    }
}

impl Generator for Translator {
    type Index = Index;
    type Change = ChangeSet;
    type View = ProxyView;

    fn view(&self, index: &Index, client: &Client) -> Result<ProxyView, String> {
        Ok(index.view(ProxyView::of_client(client)))
    }

    fn names(&self, index: &Index, view: &ProxyView, ty: TypeUrl) -> Arc<[Name]> {
        let scope = self.scope(index, view);
        let request = Request { index, view, scope: &scope };
        let generated = match ty {
            TypeUrl::Cluster => self.names.clusters(request),
            TypeUrl::Listener => self.listeners.names(request),
            TypeUrl::NameTable if view.flavour != Flavour::Grpc => Arc::new([name_table::NAME.into()]),
            TypeUrl::Endpoints | TypeUrl::Route | TypeUrl::Secret | TypeUrl::Extension | TypeUrl::NameTable => {
                Arc::default()
            }
        };
        self.patches.names(view, ty, generated)
    }

    fn generate(&self, index: &Index, view: &ProxyView, ty: TypeUrl, name: &str) -> Option<Arc<Encoded>> {
        let scope = self.scope(index, view);
        let request = Request { index, view, scope: &scope };
        let generated = match ty {
            TypeUrl::Cluster => clusters::generate(&self.clusters, request, name),
            TypeUrl::Endpoints => endpoints::generate(&self.endpoints, request, name),
            TypeUrl::Listener => self.listeners.generate(request, name),
            TypeUrl::Route => self.routes.generate(request, name),
            TypeUrl::Secret => self.secrets.generate(request, name),
            TypeUrl::NameTable => name_table::generate(&self.name_tables, request, name),
            TypeUrl::Extension => None,
        };
        self.patches.apply(view, ty, name, generated)
    }

    fn findings(&self, index: &Index) -> Vec<Finding> {
        self.patches.findings(index)
    }

    fn patched_by(&self, view: &ProxyView, ty: TypeUrl) -> Vec<Arc<Object>> {
        self.patches.concerning(view, ty)
    }

    fn reach(&self, index: &Index, change: &ChangeSet) -> Reach {
        let addresses = change.addresses.iter().copied().collect();
        let plain =
            |key: &ServiceKey| index.service_entry(key).is_none_or(|e| e.service.resolution == Resolution::Endpoints);
        if !change.only_endpoints() || !change.endpoints.iter().all(plain) {
            return Reach { all: true, names: vec![], addresses };
        }
        let names = change.endpoints.iter().flat_map(|key| cluster_names(index, change, &key.host));
        Reach { all: false, names: names.map(|n| (TypeUrl::Endpoints, n)).collect(), addresses }
    }

    fn affected(&self, index: &Index, change: &ChangeSet, view: &ProxyView) -> Affected {
        if change.mesh || sidecar_changed(index, change, view) {
            return Affected::all();
        }
        let mut out = Affected::none();
        out.view = view.ips.iter().any(|ip| change.addresses.contains(ip));
        let scope = self.scope(index, view);
        let request = Request { index, view, scope: &scope };
        out = of_services(request, change, out);
        out = of_rules(request, change, out);
        out = of_peer_authentication(request, change, out);
        of_objects(request, change, out)
    }

    fn merge(&self, change: &mut ChangeSet, later: ChangeSet) {
        change.merge(later);
    }
}

/// Beyond so many hosts it costs less to look at everything than to list names.
const MANY_HOSTS: usize = 64;

/// Names of all clusters that a host has or had for any client. One host may be several services: what becomes of
/// one decides which of them clients see.
fn cluster_names(index: &Index, change: &ChangeSet, host: &str) -> Vec<Name> {
    let mut ports: BTreeSet<u16> = change
        .ports
        .iter()
        .filter(|(key, _)| *key.host == *host)
        .flat_map(|(_, ports)| ports.iter().copied())
        .collect();
    ports.extend(index.services_of_host(host).flat_map(|e| e.service.arc().ports.iter().map(|p| p.port)));
    let mut subsets = index.subset_names(host);
    let changed = change.rules.iter().filter(|(pattern, _)| host::within(pattern, host));
    subsets.extend(changed.flat_map(|(_, names)| names.iter().cloned()));
    subsets.insert("".into());
    let name = |port: u16, subset: &Name| ClusterName::outbound(host, port, subset).to_string().into();
    let mut out: Vec<Name> =
        ports.iter().flat_map(|port| subsets.iter().map(move |subset| name(*port, subset))).collect();
    if index.stamp(Kind::IstioGateway) != Stamp::NONE {
        // Gateways may have them once more under their server names.
        let sni: Vec<Name> = out.iter().filter_map(|n| ClusterName::parse(n)).map(|c| c.sni().into()).collect();
        out.extend(sni);
    }
    out
}

/// Adds the clusters (or assignments) of hosts.
fn with_hosts(
    out: Affected,
    request: Request<'_>,
    change: &ChangeSet,
    ty: TypeUrl,
    hosts: &BTreeSet<&Name>,
) -> Affected {
    if hosts.len() > MANY_HOSTS {
        return out.with_all(ty);
    }
    out.with(ty, hosts.iter().flat_map(|host| cluster_names(request.index, change, host)))
}

fn sidecar_changed(index: &Index, change: &ChangeSet, view: &ProxyView) -> bool {
    let root = index.mesh().root_namespace();
    view.is_sidecar()
        && change.objects_of(Kind::Sidecar).any(|k| k.namespace == view.namespace || *k.namespace == *root)
}

/// Services that were declared differently, show other identities, or are served elsewhere.
fn of_services(request: Request<'_>, change: &ChangeSet, mut out: Affected) -> Affected {
    let index = request.index;
    let mut clusters: BTreeSet<&Name> = change.services.union(&change.facts).map(|k| &k.host).collect();
    let mut assignments: BTreeSet<&Name> = BTreeSet::new();
    let mut follows_client = false;
    for key in change.services.union(&change.endpoints) {
        assignments.insert(&key.host);
        match index.service_entry(key).map(|e| e.service.resolution) {
            Some(Resolution::Dns | Resolution::DnsRoundRobin) => {
                clusters.insert(&key.host);
            }
            Some(Resolution::Passthrough) => follows_client = true,
            _ => {}
        }
    }
    out = with_hosts(out, request, change, TypeUrl::Cluster, &clusters);
    out = with_hosts(out, request, change, TypeUrl::Endpoints, &assignments);
    if !change.services.is_empty() && request.view.is_gateway() {
        // With a service the rules for it come into use, and the credentials that they name.
        out = out.with_all(TypeUrl::Secret);
    }
    // Gateways look beyond their scope (backends that exist or not).
    let seen = !request.view.is_sidecar()
        || change.since.covers(request.scope.services_stamp())
        || change.aliased.iter().any(|host| request.scope.service(host).is_some());
    if !change.services.is_empty() && seen || follows_client {
        out = out.with_all(TypeUrl::NameTable);
    }
    if !change.services.is_empty() && seen {
        out = out.with_all(TypeUrl::Listener).with_all(TypeUrl::Route);
    } else if follows_client {
        // Listeners and hosts of headless services stand for each of their endpoints.
        out = out.with_all(TypeUrl::Listener).with_all(TypeUrl::Route);
    }
    out
}

/// Services whose DestinationRules changed.
fn of_rules(request: Request<'_>, change: &ChangeSet, mut out: Affected) -> Affected {
    if change.rules.is_empty() {
        return out;
    }
    if request.view.is_gateway() {
        // Rules name credentials.
        out = out.with_all(TypeUrl::Secret);
    }
    let mut hosts: BTreeSet<&Name> = BTreeSet::new();
    for pattern in change.rules.keys() {
        if host::is_wildcard(pattern) {
            let all = request.scope.services().iter().map(|s| &s.service.arc().key.host);
            hosts.extend(all.filter(|h| host::within(pattern, h)));
        } else {
            hosts.extend(request.scope.service(pattern).map(|s| &s.service.arc().key.host));
        }
    }
    if !hosts.is_empty() {
        out = with_hosts(out, request, change, TypeUrl::Cluster, &hosts);
        out = with_hosts(out, request, change, TypeUrl::Endpoints, &hosts);
        // Hash policies and idle times stand in routes and listeners.
        out = out.with_all(TypeUrl::Listener).with_all(TypeUrl::Route);
    }
    // Inbound clusters take their limits from the rule of their service.
    let own = request.view.targets.iter().map(|t| &t.service.arc().key.host);
    if own.into_iter().any(|h| change.rules.keys().any(|pattern| host::within(pattern, h))) {
        out = out.with(TypeUrl::Cluster, clusters::other_names(request));
    }
    out
}

/// Policies of the servers' side: clients speak mesh TLS or not by them.
fn of_peer_authentication(request: Request<'_>, change: &ChangeSet, mut out: Affected) -> Affected {
    let root = request.index.mesh().root_namespace();
    let namespaces: BTreeSet<&Name> = change.objects_of(Kind::PeerAuthentication).map(|k| &k.namespace).collect();
    if namespaces.is_empty() {
        return out;
    }
    if namespaces.iter().any(|n| ***n == *root) {
        return out.with_all(TypeUrl::Cluster).with_all(TypeUrl::Endpoints).with_all(TypeUrl::Listener);
    }
    let services = request.scope.services().iter().map(|s| &s.service.arc().key);
    let hosts: BTreeSet<&Name> = services.filter(|k| namespaces.contains(&k.namespace)).map(|k| &k.host).collect();
    out = with_hosts(out, request, change, TypeUrl::Cluster, &hosts);
    out = with_hosts(out, request, change, TypeUrl::Endpoints, &hosts);
    if namespaces.contains(&request.view.namespace) { out.with_all(TypeUrl::Listener) } else { out }
}

/// Everything else that translation reads, kind by kind.
fn of_objects(request: Request<'_>, change: &ChangeSet, mut out: Affected) -> Affected {
    let Request { index, view, .. } = request;
    let root = index.mesh().root_namespace();
    for key in &change.objects {
        let here = key.namespace == view.namespace || *key.namespace == *root;
        out = match key.kind {
            Kind::VirtualService => {
                // Destinations of imported VirtualServices are in a Sidecar's scope.
                let scoped = |out: Affected| out.with_all(TypeUrl::Cluster).with_all(TypeUrl::NameTable);
                let out = if view.sidecar.is_some() { scoped(out) } else { out };
                if view.is_sidecar()
                    && !is_delegated_to(request, key)
                    && !change.since.covers(request.scope.routes_stamp())
                {
                    out
                } else {
                    out.with_all(TypeUrl::Listener).with_all(TypeUrl::Route)
                }
            }
            Kind::IstioGateway
            | Kind::Gateway
            | Kind::GatewayClass
            | Kind::ListenerSet
            | Kind::Namespace
            | Kind::Ingress
            | Kind::IngressClass => {
                if view.is_gateway() {
                    let out = if key.kind == Kind::IstioGateway { out.with_all(TypeUrl::Cluster) } else { out };
                    out.with_all(TypeUrl::Listener).with_all(TypeUrl::Route).with_all(TypeUrl::Secret)
                } else {
                    out
                }
            }
            Kind::HttpRoute | Kind::GrpcRoute => out.with_all(TypeUrl::Listener).with_all(TypeUrl::Route),
            Kind::TlsRoute | Kind::TcpRoute => out.with_all(TypeUrl::Listener),
            Kind::BackendTlsPolicy => out.with_all(TypeUrl::Cluster),
            // Trust anchors of BackendTLSPolicies, which are of their own namespace, stand in clusters.
            Kind::ConfigMap if index.objects_in(Kind::BackendTlsPolicy, &key.namespace).next().is_some() => {
                out.with_all(TypeUrl::Secret).with_all(TypeUrl::Cluster)
            }
            Kind::ReferenceGrant => out.with_all(TypeUrl::Listener).with_all(TypeUrl::Route).with_all(TypeUrl::Secret),
            Kind::Secret | Kind::ConfigMap => out.with_all(TypeUrl::Secret),
            Kind::AuthorizationPolicy
            | Kind::RequestAuthentication
            | Kind::Telemetry
            | Kind::ProxyConfig
            | Kind::WasmPlugin
            | Kind::TrafficExtension
                if here =>
            {
                out.with_all(TypeUrl::Listener).with_all(TypeUrl::Route)
            }
            Kind::EnvoyFilter if here => Affected { view: true, ..out },
            _ => out,
        };
    }
    out
}

/// Whether a VirtualService that the proxy sees hands rules on to this one, which itself is in nobody's scope.
fn is_delegated_to(request: Request<'_>, key: &ObjectKey) -> bool {
    let mut seen = request.scope.egress().iter().flat_map(|e| &e.virtual_services);
    seen.any(|vs| {
        vs.spec.http.iter().filter_map(|rule| rule.delegate.as_ref()).any(|d| {
            let namespace = if d.namespace.is_empty() { vs.namespace() } else { d.namespace.as_str() };
            d.name == *key.name && *namespace == *key.namespace
        })
    })
}

/// Lists of cluster names, shared by the proxies that have the same.
#[derive(Debug, Default)]
struct NameLists {
    services: RwLock<HashMap<ServiceKey, ServiceNames>>,
    lists: RwLock<HashMap<ListKey, List>>,
}

/// Names of a service's clusters, with the stamps of the service and its rule.
type ServiceNames = (Stamp, Stamp, Arc<[Name]>);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct ListKey {
    namespace: Name,
    sidecar: Option<ObjectKey>,
    kind: ProxyKind,
    grpc: bool,
}

#[derive(Debug, Clone)]
struct List {
    services: Stamp,
    rules: Stamp,
    /// Whole lists by the names that are a proxy's own.
    variants: Vec<(Vec<Name>, Arc<[Name]>)>,
}

/// Most lists of a namespace that differ in inbound ports.
const MAX_VARIANTS: usize = 64;
/// Most namespaces and services that are remembered.
const MAX_LISTS: usize = 4096;
const MAX_SERVICES: usize = 1 << 18;

impl NameLists {
    fn clusters(&self, request: Request<'_>) -> Arc<[Name]> {
        let Request { index, view, scope } = request;
        let own = clusters::other_names(request);
        if index.has_selective_rules(&view.namespace) {
            return self.outbound(request).chain(own).collect();
        }
        let key = ListKey {
            namespace: view.namespace.clone(),
            sidecar: view.sidecar.clone(),
            kind: view.kind,
            grpc: view.flavour == Flavour::Grpc,
        };
        let (services, rules) = (scope.services_stamp(), index.rules_stamp());
        if let Some(list) = self.lists.read().get(&key)
            && (list.services, list.rules) == (services, rules)
            && let Some((_, found)) = list.variants.iter().find(|(names, _)| *names == own)
        {
            return found.clone();
        }
        let made: Arc<[Name]> = self.outbound(request).chain(own.iter().cloned()).collect();
        let mut lists = self.lists.write();
        if lists.len() > MAX_LISTS {
            lists.clear();
        }
        let list = lists.entry(key).or_insert(List { services, rules, variants: vec![] });
        if (list.services, list.rules) != (services, rules) || list.variants.len() >= MAX_VARIANTS {
            *list = List { services, rules, variants: vec![] };
        }
        list.variants.push((own, made.clone()));
        made
    }

    fn outbound<'a>(&'a self, request: Request<'a>) -> impl Iterator<Item = Name> + 'a {
        let Request { index, view, scope } = request;
        scope.services().iter().filter(|s| clusters::has_clusters(&s.service)).flat_map(move |scoped| {
            let rule = index.destination_rule(&scoped.service, view);
            let names = self.of_service(&scoped.service, rule);
            let shown = move |name: &Name| {
                scoped.only.is_none()
                    || ClusterName::parse(name)
                        .is_some_and(|c| c.direction == Direction::Outbound && scoped.port(c.port).is_some())
            };
            (0..names.len()).filter_map(move |i| names.get(i).filter(|n| shown(n)).cloned())
        })
    }

    fn of_service(
        &self,
        service: &Stamped<crate::index::Service>,
        rule: Option<&Stamped<crate::index::Rule>>,
    ) -> Arc<[Name]> {
        let rule_stamp = rule.map_or(Stamp::NONE, Stamped::stamp);
        if let Some((at, with, names)) = self.services.read().get(&service.key)
            && (*at, *with) == (service.stamp(), rule_stamp)
        {
            return names.clone();
        }
        let names = clusters::service_names(service, rule);
        let mut services = self.services.write();
        if services.len() > MAX_SERVICES {
            services.clear();
        }
        services.insert(service.key.clone(), (service.stamp(), rule_stamp, names.clone()));
        names
    }
}
