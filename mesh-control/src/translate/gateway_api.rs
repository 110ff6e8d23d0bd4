//! Which routes of Gateway API attach where, and which references they may hold.
//!
//! Owns parents, listeners of Gateways and their ListenerSets, which of them admit a route, hostnames in common,
//! ReferenceGrants. Must not know what a rule does.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use mesh_api::{
    crd::gateway_api::{
        BackendRef, FromNamespaces, GROUP, Gateway, GrpcRoute, HttpRoute, L4RouteRule, Listener, ListenerSet,
        ParentRef, RouteNamespaces, TcpRoute, TlsMode, TlsRoute,
    },
    labels::Labels,
    model::Name,
};

use super::gateway_infrastructure::{is_generated, label_value, services};
use crate::{
    index::{Index, host, visibility::label_selector_fits},
    source::object::{Kind, Object, Spec},
    view::ProxyView,
};

/// Label of a gateway's workloads that names their Gateway.
pub const GATEWAY_NAME: &str = mesh_api::labels::GATEWAY_NAME;
/// The same label's older name.
const GATEWAY_NAME_OLD: &str = "istio.io/gateway-name";
/// Class of gateways that are this mesh's without a GatewayClass.
pub const OWN_CLASS: &str = "istio";
/// Controllers whose classes are this mesh's.
const CONTROLLER: &str = "istio.io/gateway-controller";

/// A Gateway with its object.
#[derive(Debug, Clone)]
pub struct GatewayEntry {
    /// The object.
    pub object: Arc<Object>,
    /// Its content.
    pub spec: Arc<Gateway>,
}

/// A listener: of a Gateway itself, or of a ListenerSet that the Gateway admits.
#[derive(Debug, Clone)]
pub struct ListenerEntry {
    /// The Gateway that serves it.
    pub gateway: GatewayEntry,
    /// The object that it stands in.
    pub owner: Arc<Object>,
    /// Its content.
    pub listener: Listener,
}

impl ListenerEntry {
    /// `Gateway` or `ListenerSet`.
    pub fn owner_kind(&self) -> &'static str {
        self.owner.key.kind.name()
    }

    /// Hostname; `*`: any.
    pub fn hostname(&self) -> &str {
        self.listener.hostname.as_deref().filter(|h| !h.is_empty()).unwrap_or("*")
    }

    /// Whether a route means this listener by one of its parents.
    fn is_meant(&self, parent: &ParentRef, namespace: &str) -> bool {
        let key = &self.owner.key;
        parent.group.as_deref().unwrap_or(GROUP) == GROUP
            && parent.kind.as_deref().unwrap_or("Gateway") == self.owner_kind()
            && parent.name == *key.name
            && parent.namespace.as_deref().unwrap_or(namespace) == &*key.namespace
            && parent.section_name.as_ref().is_none_or(|s| *s == self.listener.name)
            && parent.port.is_none_or(|p| p == self.listener.port)
    }
}

/// What a listener says to a route that names it as parent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attachment {
    /// It serves the route under these hosts.
    Hosts(Vec<Name>),
    /// It is not meant.
    NotMeant,
    /// It takes no such kind, or none from that namespace.
    NotAllowed,
    /// It serves none of the route's hostnames.
    NoHostname,
}

/// A route of some kind.
#[derive(Debug, Clone)]
pub enum RouteSpec {
    /// HTTPRoute.
    Http(Arc<HttpRoute>),
    /// GRPCRoute.
    Grpc(Arc<GrpcRoute>),
    /// TLSRoute.
    Tls(Arc<TlsRoute>),
    /// TCPRoute.
    Tcp(Arc<TcpRoute>),
}

/// A route with its object.
#[derive(Debug, Clone)]
pub struct RouteEntry {
    /// The object.
    pub object: Arc<Object>,
    /// Its content.
    pub spec: RouteSpec,
}

impl RouteEntry {
    /// The route that an object is.
    pub fn of(object: &Arc<Object>) -> Option<Self> {
        let spec = match &object.spec {
            Spec::HttpRoute(r) => RouteSpec::Http(r.clone()),
            Spec::GrpcRoute(r) => RouteSpec::Grpc(r.clone()),
            Spec::TlsRoute(r) => RouteSpec::Tls(r.clone()),
            Spec::TcpRoute(r) => RouteSpec::Tcp(r.clone()),
            _ => return None,
        };
        Some(Self { object: object.clone(), spec })
    }

    /// What it attaches to.
    pub fn parents(&self) -> &[ParentRef] {
        match &self.spec {
            RouteSpec::Http(r) => &r.parent_refs,
            RouteSpec::Grpc(r) => &r.parent_refs,
            RouteSpec::Tls(r) => &r.parent_refs,
            RouteSpec::Tcp(r) => &r.parent_refs,
        }
    }

    /// Hosts or server names; empty: any.
    pub fn hostnames(&self) -> &[String] {
        match &self.spec {
            RouteSpec::Http(r) => &r.hostnames,
            RouteSpec::Grpc(r) => &r.hostnames,
            RouteSpec::Tls(r) => &r.hostnames,
            RouteSpec::Tcp(_) => &[],
        }
    }

    /// Rules of TLSRoutes and TCPRoutes.
    pub fn l4_rules(&self) -> &[L4RouteRule] {
        match &self.spec {
            RouteSpec::Http(_) | RouteSpec::Grpc(_) => &[],
            RouteSpec::Tls(r) => &r.rules,
            RouteSpec::Tcp(r) => &r.rules,
        }
    }

    /// Backends of each rule, those of mirrors included.
    pub fn backends(&self) -> Vec<Vec<BackendRef>> {
        let mirrors = |filters: &[mesh_api::crd::gateway_api::RouteFilter]| {
            let of = filters.iter().filter_map(|f| f.request_mirror.as_ref());
            of.map(|m| BackendRef::from(m.backend_ref.clone())).collect::<Vec<_>>()
        };
        let with_mirrors = |own: &[BackendRef], filters: &[mesh_api::crd::gateway_api::RouteFilter]| {
            let mut out = own.to_vec();
            out.extend(mirrors(filters));
            out.extend(own.iter().flat_map(|b| mirrors(&b.filters)));
            out
        };
        match &self.spec {
            RouteSpec::Http(r) => r.rules.iter().map(|r| with_mirrors(&r.backend_refs, &r.filters)).collect(),
            RouteSpec::Grpc(r) => r.rules.iter().map(|r| with_mirrors(&r.backend_refs, &r.filters)).collect(),
            RouteSpec::Tls(_) | RouteSpec::Tcp(_) => {
                let of = |r: &L4RouteRule| r.backend_refs.iter().cloned().map(BackendRef::from).collect();
                self.l4_rules().iter().map(of).collect()
            }
        }
    }

    /// Kind of the object.
    pub fn kind(&self) -> &'static str {
        match &self.spec {
            RouteSpec::Http(_) => "HTTPRoute",
            RouteSpec::Grpc(_) => "GRPCRoute",
            RouteSpec::Tls(_) => "TLSRoute",
            RouteSpec::Tcp(_) => "TCPRoute",
        }
    }

    /// Namespace.
    pub fn namespace(&self) -> &Name {
        &self.object.key.namespace
    }
}

/// All HTTPRoutes and GRPCRoutes, oldest first.
pub fn all_routes(index: &Index) -> Vec<RouteEntry> {
    routes_of(index, [Kind::HttpRoute, Kind::GrpcRoute])
}

/// All TLSRoutes and TCPRoutes, oldest first.
pub fn l4_routes(index: &Index) -> Vec<RouteEntry> {
    routes_of(index, [Kind::TlsRoute, Kind::TcpRoute])
}

fn routes_of(index: &Index, kinds: [Kind; 2]) -> Vec<RouteEntry> {
    let mut out: Vec<RouteEntry> =
        kinds.into_iter().flat_map(|k| index.objects(k)).filter_map(RouteEntry::of).collect();
    out.sort_by(|a, b| a.object.age_order().cmp(&b.object.age_order()));
    out
}

/// The label that tells which Gateway a proxy implements, as [`label_value`] makes it of the name; `None`: it is no gateway of Gateway API.
pub fn gateway_name(view: &ProxyView) -> Option<&str> {
    [GATEWAY_NAME, GATEWAY_NAME_OLD].iter().find_map(|k| view.labels.get(*k)).map(String::as_str)
}

/// Gateways that a gateway proxy implements: by label in its namespace, or by an address that names its service.
pub fn gateways_of(index: &Index, view: &ProxyView) -> Vec<GatewayEntry> {
    let own = gateway_name(view);
    let is_named =
        |o: &Object| o.key.namespace == view.namespace && own.is_some_and(|label| label == label_value(&o.key.name));
    let serves = |entry: &GatewayEntry| {
        !is_generated(&entry.spec)
            && services(index, entry).0.iter().any(|key| view.targets.iter().any(|t| t.service.key == *key))
    };
    let mut out: Vec<GatewayEntry> = index
        .objects(Kind::Gateway)
        .filter_map(|o| gateway_entry(index, o))
        .filter(|entry| is_named(&entry.object) || serves(entry))
        .collect();
    out.sort_by(|a, b| a.object.age_order().cmp(&b.object.age_order()));
    out
}

fn is_own_class(index: &Index, class: &str) -> bool {
    let declared = index.objects(Kind::GatewayClass).find(|o| *o.key.name == *class);
    match declared.map(|o| &o.spec) {
        Some(Spec::GatewayClass(c)) => c.controller_name == CONTROLLER,
        _ => class == OWN_CLASS,
    }
}

/// A Gateway of this mesh.
pub fn gateway_entry(index: &Index, object: &Arc<Object>) -> Option<GatewayEntry> {
    match &object.spec {
        Spec::Gateway(g) if is_own_class(index, &g.gateway_class_name) => {
            Some(GatewayEntry { object: object.clone(), spec: g.clone() })
        }
        _ => None,
    }
}

/// Whether a class is this mesh's by its own word.
pub fn is_own_controller(controller: &str) -> bool {
    controller == CONTROLLER
}

/// Listeners of a Gateway: its own, then those of its ListenerSets, older sets first.
pub fn listeners_of(index: &Index, gateway: &GatewayEntry) -> Vec<ListenerEntry> {
    let of = |owner: &Arc<Object>, listeners: &[Listener]| {
        let entry =
            |l: &Listener| ListenerEntry { gateway: gateway.clone(), owner: owner.clone(), listener: l.clone() };
        listeners.iter().map(entry).collect::<Vec<_>>()
    };
    let mut out = of(&gateway.object, &gateway.spec.listeners);
    if gateway.spec.allowed_listeners.is_none() {
        return out;
    }
    let mut sets: Vec<(&Arc<Object>, &ListenerSet)> = index
        .objects(Kind::ListenerSet)
        .filter_map(|o| match &o.spec {
            Spec::ListenerSet(s) if admits_set(index, gateway, o, s) => Some((o, &**s)),
            _ => None,
        })
        .collect();
    sets.sort_by(|a, b| a.0.age_order().cmp(&b.0.age_order()));
    out.extend(sets.into_iter().flat_map(|(o, s)| of(o, &s.listeners)));
    out
}

/// Whether a ListenerSet is meant for a Gateway.
pub fn is_set_of(gateway: &Object, set: &Object, spec: &ListenerSet) -> bool {
    let parent = &spec.parent_ref;
    parent.group.as_deref().unwrap_or(GROUP) == GROUP
        && parent.kind.as_deref().unwrap_or("Gateway") == "Gateway"
        && parent.name == *gateway.key.name
        && parent.namespace.as_deref().unwrap_or(&set.key.namespace) == &*gateway.key.namespace
}

/// Whether a Gateway takes listeners from a ListenerSet that is meant for it; without a word about it, it takes none.
pub fn admits_set(index: &Index, gateway: &GatewayEntry, set: &Object, spec: &ListenerSet) -> bool {
    let allowed = gateway.spec.allowed_listeners.as_ref().and_then(|a| a.namespaces.as_ref());
    is_set_of(&gateway.object, set, spec)
        && allowed.is_some_and(|a| a.from.is_some())
        && admits_namespace(index, &gateway.object.key.namespace, allowed, &set.key.namespace)
}

/// Kinds of routes that a listener can serve.
pub fn servable_kinds(listener: &Listener) -> &'static [&'static str] {
    let passes = listener.tls.as_ref().is_some_and(|t| t.mode == Some(TlsMode::Passthrough));
    match listener.protocol.as_str() {
        "HTTP" | "HTTPS" => &["HTTPRoute", "GRPCRoute"],
        "TLS" if passes => &["TLSRoute"],
        "TLS" => &["TLSRoute", "TCPRoute"],
        "TCP" => &["TCPRoute"],
        _ => &[],
    }
}

/// Why a listener gives way to one before it on its port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conflict {
    /// Another protocol is spoken there.
    Protocol,
    /// The same hostname is served there.
    Hostname,
}

/// Which listeners of a Gateway, in their order, give way to earlier ones.
pub fn conflicts(listeners: &[ListenerEntry]) -> Vec<Option<Conflict>> {
    let mut ports: BTreeMap<u16, (u8, Vec<String>)> = BTreeMap::new();
    let found = listeners.iter().map(|entry| {
        let spoken = match entry.listener.protocol.as_str() {
            "HTTP" => 0,
            "HTTPS" | "TLS" => 1,
            "TCP" => 2,
            _ => return None,
        };
        let (first, hosts) = ports.entry(entry.listener.port).or_insert_with(|| (spoken, vec![]));
        if *first != spoken {
            return Some(Conflict::Protocol);
        }
        let host = entry.hostname().to_ascii_lowercase();
        if hosts.contains(&host) {
            return Some(Conflict::Hostname);
        }
        hosts.push(host);
        None
    });
    found.collect()
}

/// The hosts under which a route is served by a listener; empty: it is not attached there.
pub fn attached_hosts(index: &Index, entry: &ListenerEntry, route: &RouteEntry) -> Vec<Name> {
    let mut meant = route.parents().iter().map(|p| attachment(index, entry, route, p));
    let hosts = meant.find_map(|a| match a {
        Attachment::Hosts(hosts) => Some(hosts),
        Attachment::NotMeant | Attachment::NotAllowed | Attachment::NoHostname => None,
    });
    hosts.unwrap_or_default()
}

/// What a listener says to a route for one of its parents.
pub fn attachment(index: &Index, entry: &ListenerEntry, route: &RouteEntry, parent: &ParentRef) -> Attachment {
    if !entry.is_meant(parent, route.namespace()) {
        return Attachment::NotMeant;
    }
    if !admits(index, &entry.owner.key.namespace, &entry.listener, route) {
        return Attachment::NotAllowed;
    }
    let hosts = common_hosts(entry.listener.hostname.as_deref().unwrap_or(""), route.hostnames());
    if hosts.is_empty() { Attachment::NoHostname } else { Attachment::Hosts(hosts) }
}

fn admits(index: &Index, owner_namespace: &str, listener: &Listener, route: &RouteEntry) -> bool {
    let allowed = listener.allowed_routes.as_ref();
    let kinds = allowed.map_or(&[][..], |a| a.kinds.as_slice());
    let kind = kinds.is_empty()
        || kinds.iter().any(|k| k.group.as_deref().unwrap_or(GROUP) == GROUP && k.kind == route.kind());
    kind && servable_kinds(listener).contains(&route.kind())
        && admits_namespace(index, owner_namespace, allowed.and_then(|a| a.namespaces.as_ref()), route.namespace())
}

fn admits_namespace(index: &Index, own: &str, allowed: Option<&RouteNamespaces>, namespace: &str) -> bool {
    match allowed.and_then(|a| a.from).unwrap_or(FromNamespaces::Same) {
        FromNamespaces::Same => own == namespace,
        FromNamespaces::All => true,
        FromNamespaces::None => false,
        FromNamespaces::Selector => {
            let none = Labels::new();
            let labels = index.namespace_labels(namespace).unwrap_or(&none);
            allowed.and_then(|a| a.selector.as_ref()).is_some_and(|s| label_selector_fits(s, labels))
        }
    }
}

/// Hosts that listener and route have in common; an empty listener host means any.
fn common_hosts(listener: &str, route: &[String]) -> Vec<Name> {
    let any = listener.is_empty() || listener == "*";
    if route.is_empty() {
        return vec![if any { "*".into() } else { listener.to_ascii_lowercase().into() }];
    }
    let mut out: BTreeSet<Name> = BTreeSet::new();
    for own in route {
        if any || covers(listener, own) {
            out.insert(own.to_ascii_lowercase().into());
        } else if covers(own, listener) {
            out.insert(listener.to_ascii_lowercase().into());
        }
    }
    out.into_iter().collect()
}

/// Whether `pattern` covers `host`; `*.a` stands for one label or more before `.a`.
fn covers(pattern: &str, name: &str) -> bool {
    host::within(pattern, name)
}

/// Who refers to what.
#[derive(Debug, Clone, Copy)]
pub struct Reference<'a> {
    /// Kind of the object that refers, of Gateway API.
    pub from_kind: &'a str,
    /// Its namespace.
    pub from_namespace: &'a str,
    /// Group of the other object; empty: core.
    pub to_group: &'a str,
    /// Its kind.
    pub to_kind: &'a str,
    /// Its namespace.
    pub to_namespace: &'a str,
    /// Its name.
    pub to_name: &'a str,
}

/// Whether a reference is within one namespace, or granted by the other.
pub fn is_granted(index: &Index, r: Reference<'_>) -> bool {
    r.from_namespace == r.to_namespace
        || index.objects_in(Kind::ReferenceGrant, r.to_namespace).any(|o| match &o.spec {
            Spec::ReferenceGrant(g) => {
                g.from.iter().any(|f| f.group == GROUP && f.kind == r.from_kind && f.namespace == r.from_namespace)
                    && g.to.iter().any(|t| {
                        t.group == r.to_group
                            && t.kind == r.to_kind
                            && t.name.as_ref().is_none_or(|n| n.is_empty() || n == r.to_name)
                    })
            }
            _ => false,
        })
}

/// Whether a gateway proxy of a namespace may hold what an object there contains: granted to Gateways of the
/// namespace, or to a ListenerSet that one of them takes listeners from.
pub fn is_granted_to_gateway(index: &Index, r: Reference<'_>) -> bool {
    let by_set = |o: &Arc<Object>| {
        let Spec::ListenerSet(set) = &o.spec else { return false };
        let from = Reference { from_kind: "ListenerSet", from_namespace: &o.key.namespace, ..r };
        let mut gateways = index.objects_in(Kind::Gateway, r.from_namespace).filter_map(|g| gateway_entry(index, g));
        is_granted(index, from) && gateways.any(|g| admits_set(index, &g, o, set))
    };
    is_granted(index, r) || index.objects(Kind::ListenerSet).any(by_set)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_in_common() {
        let common = |listener: &str, route: &[&str]| {
            let route: Vec<String> = route.iter().map(|s| (*s).to_owned()).collect();
            common_hosts(listener, &route).iter().map(|n| n.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(common("", &[]), ["*"]);
        assert_eq!(common("*.a.test", &["b.a.test", "c.test", "a.test"]), ["b.a.test"]);
        assert_eq!(common("b.a.test", &["*.a.test"]), ["b.a.test"]);
        assert!(common("x.test", &["y.test"]).is_empty());
    }
}
