//! What a proxy sees: the services, and which of its egress listeners shows them.
//!
//! Owns the meaning of `Sidecar.egress`: imports, ports, and the destinations that imported VirtualServices bring
//! along. Depends on the proxy's namespace and Sidecar only, so that proxies share scopes. Must not know clusters,
//! listeners or routes.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use mesh_api::{
    crd::networking::{self, EgressListener, IngressListener, OutboundMode, VirtualService},
    meshconfig::OutboundPolicyMode,
    model::Name,
    names::complete_host,
};
use parking_lot::RwLock;
use smallvec::SmallVec;

use crate::{
    hash::NameMap,
    index::{
        Index, Protocol, Service, ServiceKey, ServicePort, Stamp, Stamped, VirtualServiceEntry, host,
        virtual_services::MESH_GATEWAY,
    },
    source::object::{Kind, Object, ObjectKey, Spec},
    view::ProxyView,
};

/// A service as a proxy sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct Scoped {
    /// The service.
    pub service: Stamped<Service>,
    /// Only these of its ports; `None`: all.
    pub only: Option<SmallVec<[u16; 2]>>,
}

impl Scoped {
    /// Its visible ports, in declared order.
    pub fn ports(&self) -> impl Iterator<Item = &ServicePort> {
        self.service.arc().ports.iter().filter(|p| self.shows(p.port))
    }

    /// A visible port.
    pub fn port(&self, number: u16) -> Option<&ServicePort> {
        if self.shows(number) { self.service.port(number) } else { None }
    }

    fn shows(&self, port: u16) -> bool {
        self.only.as_ref().is_none_or(|only| only.contains(&port))
    }

    /// Shows also what the other does.
    fn widen(&mut self, other: &Self) {
        match (&mut self.only, &other.only) {
            (None, _) => {}
            (only, None) => *only = None,
            (Some(own), Some(more)) => {
                own.extend(more.iter().filter(|p| !own.contains(p)).copied().collect::<Vec<_>>())
            }
        }
    }
}

/// An egress listener: one of the Sidecar's, or the only one when there is none.
#[derive(Debug, Clone)]
pub struct Egress {
    /// As declared; `None`: everything the namespace may see, on any port.
    pub listener: Option<EgressListener>,
    /// Services, those that count before others first, one a host.
    pub services: Arc<[Scoped]>,
    /// VirtualServices for sidecars, oldest first, delegates not resolved.
    pub virtual_services: Vec<Arc<VirtualServiceEntry>>,
}

impl Egress {
    /// Port and protocol of a listener of its own; `None`: catches all ports that no other listener has.
    pub fn port(&self) -> Option<(u16, Protocol)> {
        let port = self.listener.as_ref()?.port.as_ref().filter(|p| p.number != 0)?;
        Some((port.number, Protocol::parse(&port.protocol)))
    }
}

/// What proxies of a namespace and Sidecar see.
#[derive(Debug)]
pub struct Scope {
    stamp: Stamp,
    services_stamp: Stamp,
    routes_stamp: Stamp,
    namespace: Name,
    sidecar: Option<Arc<Object>>,
    egress: Vec<Egress>,
    services: Arc<[Scoped]>,
    by_host: Arc<NameMap<Name, usize>>,
    headless: Arc<[ServiceKey]>,
}

impl Scope {
    /// Changes whenever the scope is worked out anew.
    pub fn stamp(&self) -> Stamp {
        self.stamp
    }

    /// Changes only when the services do.
    pub fn services_stamp(&self) -> Stamp {
        self.services_stamp
    }

    /// Changes only when the VirtualServices do. Delegates are not looked at.
    pub fn routes_stamp(&self) -> Stamp {
        self.routes_stamp
    }

    /// Namespace of the proxies.
    pub fn namespace(&self) -> &Name {
        &self.namespace
    }

    /// The Sidecar.
    pub fn sidecar(&self) -> Option<&networking::Sidecar> {
        match &self.sidecar.as_ref()?.spec {
            Spec::Sidecar(s) => Some(s),
            _ => None,
        }
    }

    /// Key of the Sidecar.
    pub fn sidecar_key(&self) -> Option<&ObjectKey> {
        self.sidecar.as_ref().map(|o| &o.key)
    }

    /// Ingress listeners of the Sidecar; empty: what the workload's services declare.
    pub fn ingress(&self) -> &[IngressListener] {
        self.sidecar().map_or(&[], |s| &s.ingress)
    }

    /// Egress listeners, at least one.
    pub fn egress(&self) -> &[Egress] {
        &self.egress
    }

    /// Every service that has clusters, one a host: those of all listeners and the destinations of their
    /// VirtualServices.
    pub fn services(&self) -> &[Scoped] {
        &self.services
    }

    /// Headless services whose endpoints have listeners of their own.
    pub fn headless(&self) -> impl Iterator<Item = &ServiceKey> {
        self.headless.iter()
    }

    /// The service that a host means.
    pub fn service(&self, host: &str) -> Option<&Scoped> {
        let found = self.by_host.get(host).copied();
        let found = found.or_else(|| {
            host.bytes()
                .any(|b| b.is_ascii_uppercase())
                .then(|| self.by_host.get(&*host.to_ascii_lowercase()).copied())?
        });
        self.services.get(found?)
    }

    /// What happens to unknown destinations: the Sidecar's word, else the mesh's.
    pub fn outbound_mode(&self, index: &Index) -> OutboundPolicyMode {
        match self.sidecar().and_then(|s| s.outbound_traffic_policy.as_ref()) {
            Some(policy) => match policy.mode {
                OutboundMode::RegistryOnly => OutboundPolicyMode::RegistryOnly,
                OutboundMode::AllowAny => OutboundPolicyMode::AllowAny,
            },
            None => index.mesh().outbound_mode(),
        }
    }

    /// With the same services as `old`, but the VirtualServices of today. Only without a Sidecar, where they do not
    /// bring services along.
    fn with_virtual_services(old: &Self, index: &Index) -> Self {
        let virtual_services: Vec<_> = index.mesh_virtual_services(&old.namespace).cloned().collect();
        let egress = vec![Egress { listener: None, services: old.services.clone(), virtual_services }];
        Self {
            stamp: Stamp::next(),
            services_stamp: old.services_stamp,
            routes_stamp: routes_stamp(&egress, Some(old)),
            namespace: old.namespace.clone(),
            sidecar: None,
            egress,
            services: old.services.clone(),
            by_host: old.by_host.clone(),
            headless: old.headless.clone(),
        }
    }

    fn new(index: &Index, namespace: &Name, sidecar: Option<Arc<Object>>, old: Option<&Self>) -> Self {
        let egress: Vec<Egress> = match sidecar.as_ref().map(|o| &o.spec) {
            Some(Spec::Sidecar(s)) if !s.egress.is_empty() => {
                let all = Everything::of(index, namespace);
                s.egress.iter().map(|l| all.import(l, namespace)).collect()
            }
            _ => vec![Egress {
                listener: None,
                services: one_a_host(index.visible_services(namespace).into_iter().map(|e| whole(&e.service)), None),
                virtual_services: index.mesh_virtual_services(namespace).cloned().collect(),
            }],
        };
        let mut union = Union::default();
        for service in egress.iter().flat_map(|e| e.services.iter()) {
            union.add(service.clone(), true);
        }
        if egress.iter().any(|e| e.listener.is_some()) {
            let mut destinations = BTreeMap::new();
            for vs in egress.iter().flat_map(|e| &e.virtual_services) {
                collect_destinations(index, vs, &mut destinations);
            }
            for (host, ports) in destinations {
                if let Some(service) = destination(index, namespace, &host, &ports) {
                    union.add(service, false);
                }
            }
        }
        let same = old.filter(|old| *old.services == *union.services);
        let headless = union.services.iter().filter(|s| super::listeners::is_headless(&s.service));
        let headless = headless.map(|s| s.service.key.clone()).collect();
        Self {
            stamp: Stamp::next(),
            services_stamp: same.map_or_else(Stamp::next, |old| old.services_stamp),
            routes_stamp: routes_stamp(&egress, old),
            namespace: namespace.clone(),
            sidecar,
            egress,
            services: union.services.into(),
            by_host: Arc::new(union.by_host),
            headless,
        }
    }
}

/// The stamp of before when every listener has the same VirtualServices.
fn routes_stamp(egress: &[Egress], old: Option<&Scope>) -> Stamp {
    let equal = |a: &Egress, b: &Egress| {
        a.virtual_services.len() == b.virtual_services.len()
            && a.virtual_services.iter().zip(&b.virtual_services).all(|(a, b)| Arc::ptr_eq(a, b))
    };
    match old {
        Some(old) if old.egress.len() == egress.len() && old.egress.iter().zip(egress).all(|(a, b)| equal(a, b)) => {
            old.routes_stamp
        }
        _ => Stamp::next(),
    }
}

/// Services of several listeners, one a host.
#[derive(Default)]
struct Union {
    services: Vec<Scoped>,
    by_host: NameMap<Name, usize>,
}

impl Union {
    fn add(&mut self, service: Scoped, widen: bool) {
        match self.by_host.get(&service.service.key.host).and_then(|i| self.services.get_mut(*i)) {
            Some(known) if widen && known.service.key == service.service.key => known.widen(&service),
            Some(_) => {}
            None => {
                self.by_host.insert(service.service.key.host.clone(), self.services.len());
                self.services.push(service);
            }
        }
    }
}

fn whole(service: &Stamped<Service>) -> Scoped {
    Scoped { service: service.clone(), only: None }
}

/// Of services of one host those of `preferred` count, else the first.
fn one_a_host(services: impl Iterator<Item = Scoped>, preferred: Option<&str>) -> Arc<[Scoped]> {
    let mut out: Vec<Scoped> = Vec::new();
    let mut at: HashMap<Name, usize> = HashMap::new();
    for service in services {
        match at.get(&service.service.key.host).and_then(|i| out.get_mut(*i)) {
            Some(other) if preferred.is_some_and(|p| *service.service.key.namespace == *p) => *other = service,
            Some(_) => {}
            None => {
                at.insert(service.service.key.host.clone(), out.len());
                out.push(service);
            }
        }
    }
    out.into()
}

/// Everything a namespace may see, to import from.
struct Everything {
    services: Vec<Stamped<Service>>,
    virtual_services: Vec<Arc<VirtualServiceEntry>>,
}

/// Imported host patterns by namespace (`*`: any).
#[derive(Default)]
struct Imports<'a> {
    by_namespace: HashMap<&'a str, Vec<&'a str>>,
    /// `~ns/*`: not from there.
    without: BTreeSet<&'a str>,
}

impl<'a> Imports<'a> {
    fn read(hosts: &'a [String], own: &'a str) -> Self {
        let mut out = Self::default();
        for text in hosts {
            // A host without a namespace means any.
            let (namespace, pattern) = text.split_once('/').unwrap_or(("*", text));
            match namespace {
                "~" => {}
                "." => out.by_namespace.entry(own).or_default().push(pattern),
                other => match other.strip_prefix('~') {
                    Some(excluded) => {
                        out.without.insert(excluded);
                    }
                    None => out.by_namespace.entry(other).or_default().push(pattern),
                },
            }
        }
        out
    }

    /// Whether something of `namespace` is imported by one of the patterns that `fits`.
    fn takes(&self, namespace: &str, fits: impl Fn(&str) -> bool) -> bool {
        !self.without.contains(namespace)
            && [namespace, "*"].iter().filter_map(|n| self.by_namespace.get(n)).flatten().any(|pattern| fits(pattern))
    }
}

impl Everything {
    fn of(index: &Index, namespace: &str) -> Self {
        Self {
            services: index.visible_services(namespace).into_iter().map(|e| e.service.clone()).collect(),
            virtual_services: index.mesh_virtual_services(namespace).cloned().collect(),
        }
    }

    fn import(&self, listener: &EgressListener, namespace: &str) -> Egress {
        let imports = Imports::read(&listener.hosts, namespace);
        // A listener for a port shows only that port, save when it is a proxy for any.
        let port = listener
            .port
            .as_ref()
            .filter(|p| p.number != 0 && Protocol::parse(&p.protocol) != Protocol::HttpProxy)
            .map(|p| p.number);
        let services = self.services.iter().filter_map(|s| {
            if port.is_some_and(|p| s.port(p).is_none()) {
                return None;
            }
            imports
                .takes(&s.key.namespace, |pattern| host::within(pattern, &s.key.host))
                .then(|| Scoped { service: s.clone(), only: port.map(|p| SmallVec::from_slice(&[p])) })
        });
        let virtual_services = self
            .virtual_services
            .iter()
            .filter(|vs| imports.takes(vs.namespace(), |pattern| vs.hosts.iter().any(|h| host::overlap(pattern, h))));
        Egress {
            listener: Some(listener.clone()),
            services: one_a_host(services, Some(namespace)),
            virtual_services: virtual_services.cloned().collect(),
        }
    }
}

/// Ports of a host that VirtualServices send to; `None`: any.
type Ports = Option<BTreeSet<u16>>;

fn collect_destinations(index: &Index, vs: &VirtualServiceEntry, out: &mut BTreeMap<String, Ports>) {
    collect(index, &vs.spec, vs.namespace(), out);
    for delegate in vs.spec.http.iter().filter_map(|r| r.delegate.as_ref()) {
        let from = if delegate.namespace.is_empty() { vs.namespace() } else { delegate.namespace.as_str() };
        let key = ObjectKey::new(Kind::VirtualService, from, &delegate.name);
        if let Some(Spec::VirtualService(spec)) = index.object(&key).map(|o| &o.spec) {
            collect(index, spec, from, out);
        }
    }
}

fn collect(index: &Index, vs: &VirtualService, namespace: &str, out: &mut BTreeMap<String, Ports>) {
    let to_mesh = |gateways: &[String]| gateways.is_empty() || gateways.iter().any(|g| g == MESH_GATEWAY);
    let http = vs.http.iter().filter(|r| r.matches.is_empty() || r.matches.iter().any(|m| to_mesh(&m.gateways)));
    let http = http.flat_map(|r| {
        let routes = r.route.iter().map(|d| &d.destination);
        routes.chain(&r.mirror).chain(r.mirrors.iter().map(|m| &m.destination))
    });
    let tcp = vs.tcp.iter().flat_map(|r| &r.route).chain(vs.tls.iter().flat_map(|r| &r.route)).map(|d| &d.destination);
    for destination in http.chain(tcp) {
        let host = complete_host(&destination.host, namespace, index.domain()).to_ascii_lowercase();
        let ports = out.entry(host).or_insert_with(|| Some(BTreeSet::new()));
        match (&mut *ports, &destination.port) {
            (Some(set), Some(port)) => {
                set.insert(port.number);
            }
            _ => *ports = None,
        }
    }
}

/// The service a destination means to clients of `namespace`: their own of that host, else the first by namespace.
fn destination(index: &Index, namespace: &str, host: &str, ports: &Ports) -> Option<Scoped> {
    let visible = || index.services_of_host(host).filter(|e| index.visible(&e.service, namespace));
    let entry = visible().find(|e| *e.service.key.namespace == *namespace).or_else(|| visible().next())?;
    let only = match ports {
        // A destination without a port goes to any of them.
        Some(ports) if !ports.is_empty() => Some(ports.iter().copied().collect()),
        _ => None,
    };
    Some(Scoped { service: entry.service.clone(), only })
}

/// Most namespaces whose scopes are kept.
const MAX_NAMESPACES: usize = 4096;

/// Scopes, worked out once and shared by the proxies of a namespace and Sidecar.
#[derive(Debug, Default)]
pub struct Scopes {
    /// By namespace; within one there are few.
    cache: RwLock<HashMap<Name, Vec<Kept>>>,
}

#[derive(Debug, Clone)]
struct Kept {
    sidecar: Option<ObjectKey>,
    basis: Basis,
    scope: Arc<Scope>,
}

/// What a scope was worked out from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Basis {
    services: Stamp,
    virtual_services: Stamp,
    sidecars: Stamp,
    mesh: Stamp,
}

impl Basis {
    /// The same but for VirtualServices.
    fn differs_in_virtual_services(&self, other: &Self) -> bool {
        *self == Self { virtual_services: self.virtual_services, ..*other }
    }
}

impl Scopes {
    /// The scope of a proxy.
    pub fn get(&self, index: &Index, view: &ProxyView) -> Arc<Scope> {
        let basis = Basis {
            services: index.services_stamp(),
            virtual_services: index.virtual_services().stamp(),
            sidecars: if view.sidecar.is_some() { index.stamp(Kind::Sidecar) } else { Stamp::NONE },
            mesh: index.mesh_stamped().stamp(),
        };
        let old = {
            let cache = self.cache.read();
            let kept = cache.get(&view.namespace).and_then(|k| k.iter().find(|k| k.sidecar == view.sidecar));
            match kept {
                Some(kept) if kept.basis == basis => return kept.scope.clone(),
                kept => kept.map(|k| (k.basis, k.scope.clone())),
            }
        };
        let scope = Arc::new(match &old {
            Some((at, old)) if view.sidecar.is_none() && basis.differs_in_virtual_services(at) => {
                Scope::with_virtual_services(old, index)
            }
            old => {
                let sidecar = view.sidecar.as_ref().and_then(|k| index.object(k)).cloned();
                Scope::new(index, &view.namespace, sidecar, old.as_ref().map(|(_, s)| &**s))
            }
        });
        let mut cache = self.cache.write();
        // Namespaces that nobody asks for any more do not pile up.
        if cache.len() > MAX_NAMESPACES {
            cache.clear();
        }
        let kept = cache.entry(view.namespace.clone()).or_default();
        // Sidecars that are gone neither.
        kept.retain(|k| k.sidecar != view.sidecar && k.sidecar.as_ref().is_none_or(|s| index.object(s).is_some()));
        kept.push(Kept { sidecar: view.sidecar.clone(), basis, scope: scope.clone() });
        scope
    }
}
