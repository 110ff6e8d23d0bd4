//! Which routes of Gateway API attach where, and which references they may hold.
//!
//! Owns parents, listeners that admit routes, hostnames in common, ReferenceGrants. Must not know what a rule does.

use std::{collections::BTreeSet, sync::Arc};

use mesh_api::{
    crd::gateway_api::{
        FromNamespaces, Gateway, GrpcRoute, HttpRoute, LabelSelector, Listener, ParentRef, RouteNamespaces,
    },
    labels::Labels,
    model::Name,
};

use crate::{
    index::{Index, host},
    source::object::{Kind, Object, Spec},
    view::ProxyView,
};

/// Group of Gateway API.
pub const GROUP: &str = "gateway.networking.k8s.io";
/// Label of a gateway's workloads that names their Gateway.
pub const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";
/// The same label's older name.
const GATEWAY_NAME_OLD: &str = "istio.io/gateway-name";
/// Class of gateways that are this mesh's without a GatewayClass.
const OWN_CLASS: &str = "istio";
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

/// An HTTPRoute or a GRPCRoute.
#[derive(Debug, Clone)]
pub enum RouteSpec {
    /// HTTPRoute.
    Http(Arc<HttpRoute>),
    /// GRPCRoute.
    Grpc(Arc<GrpcRoute>),
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
    fn of(object: &Arc<Object>) -> Option<Self> {
        let spec = match &object.spec {
            Spec::HttpRoute(r) => RouteSpec::Http(r.clone()),
            Spec::GrpcRoute(r) => RouteSpec::Grpc(r.clone()),
            _ => return None,
        };
        Some(Self { object: object.clone(), spec })
    }

    /// What it attaches to.
    pub fn parents(&self) -> &[ParentRef] {
        match &self.spec {
            RouteSpec::Http(r) => &r.parent_refs,
            RouteSpec::Grpc(r) => &r.parent_refs,
        }
    }

    fn hostnames(&self) -> &[String] {
        match &self.spec {
            RouteSpec::Http(r) => &r.hostnames,
            RouteSpec::Grpc(r) => &r.hostnames,
        }
    }

    /// `HTTPRoute` or `GRPCRoute`.
    pub fn kind(&self) -> &'static str {
        match &self.spec {
            RouteSpec::Http(_) => "HTTPRoute",
            RouteSpec::Grpc(_) => "GRPCRoute",
        }
    }

    /// Namespace.
    pub fn namespace(&self) -> &Name {
        &self.object.key.namespace
    }
}

/// All HTTPRoutes and GRPCRoutes, oldest first.
pub fn all_routes(index: &Index) -> Vec<RouteEntry> {
    let mut out: Vec<RouteEntry> =
        index.objects(Kind::HttpRoute).chain(index.objects(Kind::GrpcRoute)).filter_map(RouteEntry::of).collect();
    out.sort_by(|a, b| a.object.age_order().cmp(&b.object.age_order()));
    out
}

/// The Gateway that a proxy implements by its labels; `None`: it is no gateway of Gateway API.
pub fn gateway_name(view: &ProxyView) -> Option<&str> {
    [GATEWAY_NAME, GATEWAY_NAME_OLD].iter().find_map(|k| view.labels.get(*k)).map(String::as_str)
}

/// Gateways that a gateway proxy implements: by label in its namespace, or by an address that names its service.
pub fn gateways_of(index: &Index, view: &ProxyView) -> Vec<GatewayEntry> {
    let own = gateway_name(view);
    let serves = |g: &Gateway| {
        g.addresses.iter().any(|a| {
            a.kind.as_deref() == Some("Hostname")
                && view.targets.iter().any(|t| t.service.key.host.eq_ignore_ascii_case(&a.value))
        })
    };
    let mut out: Vec<GatewayEntry> = index
        .objects_in(Kind::Gateway, &view.namespace)
        .filter_map(|o| match &o.spec {
            Spec::Gateway(g) if is_own_class(index, &g.gateway_class_name) => {
                let fits = own.is_some_and(|name| name == &*o.key.name) || serves(g);
                fits.then(|| GatewayEntry { object: o.clone(), spec: g.clone() })
            }
            _ => None,
        })
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

/// The hosts under which a route is served by a listener; empty: it is not attached there.
pub fn attached_hosts(index: &Index, gateway: &GatewayEntry, listener: &Listener, route: &RouteEntry) -> Vec<Name> {
    let key = &gateway.object.key;
    let parent = route.parents().iter().any(|p| {
        p.group.as_deref().unwrap_or(GROUP) == GROUP
            && p.kind.as_deref().unwrap_or("Gateway") == "Gateway"
            && p.name == *key.name
            && p.namespace.as_deref().unwrap_or(route.namespace()) == &*key.namespace
            && p.section_name.as_ref().is_none_or(|s| *s == listener.name)
            && p.port.is_none_or(|p| p == listener.port)
    });
    if !parent || !admits(index, &key.namespace, listener, route) {
        return vec![];
    }
    common_hosts(listener.hostname.as_deref().unwrap_or(""), route.hostnames())
}

fn admits(index: &Index, gateway_namespace: &str, listener: &Listener, route: &RouteEntry) -> bool {
    let allowed = listener.allowed_routes.as_ref();
    let kinds = allowed.map_or(&[][..], |a| a.kinds.as_slice());
    let kind = kinds.is_empty()
        || kinds.iter().any(|k| k.group.as_deref().unwrap_or(GROUP) == GROUP && k.kind == route.kind());
    kind && admits_namespace(index, gateway_namespace, allowed.and_then(|a| a.namespaces.as_ref()), route.namespace())
}

fn admits_namespace(index: &Index, own: &str, allowed: Option<&RouteNamespaces>, namespace: &str) -> bool {
    match allowed.and_then(|a| a.from).unwrap_or(FromNamespaces::Same) {
        FromNamespaces::Same => own == namespace,
        FromNamespaces::All => true,
        FromNamespaces::None => false,
        FromNamespaces::Selector => {
            let none = Labels::new();
            let labels = index.namespace_labels(namespace).unwrap_or(&none);
            allowed.and_then(|a| a.selector.as_ref()).is_some_and(|s| label_selector(s, labels))
        }
    }
}

/// Kubernetes' label selector.
pub fn label_selector(selector: &LabelSelector, labels: &Labels) -> bool {
    mesh_api::labels::selects(&selector.match_labels, labels)
        && selector.match_expressions.iter().all(|e| {
            let value = labels.get(&e.key);
            match e.operator.as_str() {
                "In" => value.is_some_and(|v| e.values.contains(v)),
                "NotIn" => value.is_none_or(|v| !e.values.contains(v)),
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                _ => false,
            }
        })
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
