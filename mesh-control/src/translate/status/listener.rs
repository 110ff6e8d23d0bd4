//! Gateways, ListenerSets and their listeners.
//!
//! Owns what makes a listener accepted, resolved and programmed. Must not know routes beyond counting them.

use std::sync::Arc;

use mesh_api::crd::gateway_api::{FrontendValidation, FrontendValidationMode, GROUP, Listener, ListenerSet, ObjectRef};
use serde::Serialize;

use super::{
    super::{
        backend_tls::{is_certificates, referenced},
        gateway::listener_tls,
        gateway_api::{
            Conflict, GatewayEntry, ListenerEntry, Reference, RouteEntry, admits_set, all_routes, attached_hosts,
            conflicts, gateway_entry, is_granted, is_set_of, l4_routes, listeners_of, servable_kinds,
        },
        gateway_infrastructure::parameters,
        secrets::{has_anchors, has_certificate},
    },
    Condition, Problem,
    address::{self, Address, Reach},
};
use crate::{
    index::Index,
    source::object::{Kind, Object, ObjectKey, Spec},
};

/// Of a Gateway.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GatewayStatus {
    /// `addresses`; `None`: none are told here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub addresses: Option<Vec<Address>>,
    /// `conditions`.
    pub conditions: Vec<Condition>,
    /// `listeners`.
    pub listeners: Vec<ListenerStatus>,
    /// ListenerSets that it takes listeners from.
    pub attached_listener_sets: usize,
}

impl GatewayStatus {
    pub(super) fn not_programmed(&mut self, why: &str) {
        if let Some(condition) = self.conditions.iter_mut().find(|c| c.kind == "Programmed") {
            *condition = Condition::bad("Programmed", "Invalid", why);
        }
    }
}

/// Of a ListenerSet.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ListenerSetStatus {
    /// `conditions`.
    pub conditions: Vec<Condition>,
    /// `listeners`.
    pub listeners: Vec<ListenerStatus>,
}

/// Of a listener.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ListenerStatus {
    /// `name`.
    pub name: String,
    /// `supportedKinds`.
    pub supported_kinds: Vec<SupportedKind>,
    /// `attachedRoutes`.
    pub attached_routes: usize,
    /// `conditions`.
    pub conditions: Vec<Condition>,
}

impl ListenerStatus {
    fn holds(&self, kind: &str) -> bool {
        self.conditions.iter().any(|c| c.kind == kind && c.status)
    }
}

/// A kind of route.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SupportedKind {
    /// `group`.
    pub group: &'static str,
    /// `kind`.
    pub kind: &'static str,
}

/// Of a Gateway; `None`: it is not this mesh's.
pub fn of_gateway(index: &Index, object: &Arc<Object>) -> Option<GatewayStatus> {
    let gateway = gateway_entry(index, object)?;
    let listeners = statuses(index, &gateway, &object.key);
    let reach = address::of(index, &gateway, &listeners_of(index, &gateway));
    let sets = index.objects(Kind::ListenerSet).filter(|o| match &o.spec {
        Spec::ListenerSet(set) => admits_set(index, &gateway, o, set),
        _ => false,
    });
    let attached_listener_sets = sets.count();
    let mut conditions = vec![
        accepted(index, &gateway, &listeners),
        programmed(index, &gateway, &listeners, reach.as_ref()),
        resolved(index, &gateway, &listeners),
    ];
    if falls_back(&gateway) {
        conditions.push(Condition {
            kind: "InsecureFrontendValidationMode",
            status: true,
            reason: "ConfigurationChanged",
            message: "clients without a valid certificate are let in".to_owned(),
        });
    }
    let addresses = reach.map(|r| r.addresses);
    Some(GatewayStatus { addresses, conditions, listeners, attached_listener_sets })
}

fn falls_back(gateway: &GatewayEntry) -> bool {
    let frontend = gateway.spec.tls.as_ref().and_then(|t| t.frontend.as_ref());
    let all = frontend.into_iter().flat_map(|f| f.per_port.iter().map(|p| &p.tls).chain([&f.default]));
    all.filter_map(|t| t.validation.as_ref()).any(|v| v.mode == Some(FrontendValidationMode::AllowInsecureFallback))
}

/// What keeps a Gateway as a whole from being accepted.
fn refusal(index: &Index, gateway: &GatewayEntry) -> Option<Problem> {
    if let Err(why) = parameters(index, gateway) {
        return Some(Problem::new("InvalidParameters", why));
    }
    let mut kinds = gateway.spec.addresses.iter().filter_map(|a| a.kind.as_deref());
    let other = kinds.find(|k| !matches!(*k, "IPAddress" | "Hostname"));
    other.map(|kind| Problem::new("UnsupportedAddress", format!("addresses of type {kind} are not supported")))
}

fn accepted(index: &Index, gateway: &GatewayEntry, listeners: &[ListenerStatus]) -> Condition {
    if let Some(problem) = refusal(index, gateway) {
        return Condition::of("Accepted", Some(problem));
    }
    let good = listeners.iter().filter(|l| l.holds("Accepted")).count();
    let mut out = Condition::good("Accepted");
    if good < listeners.len() {
        out.reason = "ListenersNotValid";
        out.message = format!("{} of {} listeners are not accepted", listeners.len() - good, listeners.len());
        out.status = good > 0;
    }
    out
}

fn programmed(index: &Index, gateway: &GatewayEntry, listeners: &[ListenerStatus], reach: Option<&Reach>) -> Condition {
    if refusal(index, gateway).is_some() || !listeners.iter().any(|l| l.holds("Programmed")) {
        return Condition::bad("Programmed", "Invalid", "none of its listeners is served");
    }
    let mut out = Condition::of("Programmed", reach.and_then(|r| r.problem.clone()));
    if let Some(reach) = reach.filter(|_| out.status) {
        out.message = format!("reached by Service {}", reach.through.join(", "));
    }
    out
}

fn resolved(index: &Index, gateway: &GatewayEntry, listeners: &[ListenerStatus]) -> Condition {
    let backend = gateway.spec.tls.as_ref().and_then(|t| t.backend.as_ref());
    let client = backend.and_then(|b| b.client_certificate_ref.as_ref());
    let own = client.and_then(|r| certificate(index, &gateway.object.key, r, "InvalidClientCertificateRef"));
    let all = || listeners.iter().all(|l| l.holds("ResolvedRefs"));
    let problem = own.or_else(|| {
        (!all()).then(|| Problem::new("ListenersNotResolved", "references of some listeners are not resolved"))
    });
    Condition::of("ResolvedRefs", problem)
}

/// Of a ListenerSet; `None`: its Gateway is not this mesh's.
pub fn of_set(index: &Index, object: &Arc<Object>, set: &ListenerSet) -> Option<ListenerSetStatus> {
    let gateways = index.objects(Kind::Gateway).filter(|g| is_set_of(g, object, set));
    let gateway = gateways.filter_map(|g| gateway_entry(index, g)).next()?;
    let refused = |reason: &'static str, message: &str| {
        let conditions =
            vec![Condition::bad("Accepted", reason, message), Condition::bad("Programmed", reason, message)];
        Some(ListenerSetStatus { conditions, listeners: vec![] })
    };
    if !admits_set(index, &gateway, object, set) {
        return refused("NotAllowed", "the Gateway takes no listeners from this namespace");
    }
    if refusal(index, &gateway).is_some() {
        return refused("ParentNotAccepted", "the Gateway is not accepted");
    }
    let listeners = statuses(index, &gateway, &object.key);
    let count = |kind: &str| listeners.iter().filter(|l| l.holds(kind)).count();
    let mut accepted = Condition::good("Accepted");
    if count("Accepted") < listeners.len() {
        accepted.reason = "ListenersNotValid";
        accepted.message = "some listeners are not accepted".to_owned();
        accepted.status = count("Accepted") > 0;
    }
    let programmed = if count("Programmed") > 0 {
        Condition::good("Programmed")
    } else {
        Condition::bad("Programmed", "ListenersNotValid", "none of its listeners is served")
    };
    Some(ListenerSetStatus { conditions: vec![accepted, programmed], listeners })
}

/// Of the listeners of a Gateway that stand in one object.
fn statuses(index: &Index, gateway: &GatewayEntry, owner: &ObjectKey) -> Vec<ListenerStatus> {
    let all = listeners_of(index, gateway);
    let conflicts = conflicts(&all);
    let mut routes = all_routes(index);
    routes.extend(l4_routes(index));
    let own = all.iter().zip(conflicts).filter(|(entry, _)| entry.owner.key == *owner);
    own.map(|(entry, conflict)| status(index, entry, conflict, &routes)).collect()
}

fn status(index: &Index, entry: &ListenerEntry, conflict: Option<Conflict>, routes: &[RouteEntry]) -> ListenerStatus {
    let (kinds, bad_kinds) = kinds(&entry.listener);
    let conflicted = conflict.map(|c| match c {
        Conflict::Protocol => Problem::new("ProtocolConflict", "an earlier listener of this port has another protocol"),
        Conflict::Hostname => Problem::new("HostnameConflict", "an earlier listener of this port has this hostname"),
    });
    let served = servable_kinds(&entry.listener);
    let unsupported = served
        .is_empty()
        .then(|| Problem::new("UnsupportedProtocol", format!("{} is not supported", entry.listener.protocol)));
    let (clients, no_anchors) = clients(index, entry);
    let certificates = certificates(index, entry);
    let accepted = conflicted.clone().or(unsupported).or(no_anchors);
    let programmed = if accepted.is_some() || certificates.is_some() || clients.is_some() {
        Condition::bad("Programmed", "Invalid", "nothing listens there")
    } else {
        Condition::good("Programmed")
    };
    let conflicts = match &conflicted {
        Some(p) => Condition { kind: "Conflicted", status: true, reason: p.reason, message: p.message.clone() },
        None => Condition::bad("Conflicted", "NoConflicts", ""),
    };
    let conditions = vec![
        Condition::of("Accepted", accepted),
        conflicts,
        Condition::of("ResolvedRefs", certificates.or(clients).or(bad_kinds)),
        programmed,
    ];
    let attached_routes = routes.iter().filter(|r| !attached_hosts(index, entry, r).is_empty()).count();
    ListenerStatus { name: entry.listener.name.clone(), supported_kinds: kinds, attached_routes, conditions }
}

/// Kinds of routes that may attach, and what is wrong with those that the listener lists.
fn kinds(listener: &Listener) -> (Vec<SupportedKind>, Option<Problem>) {
    let served = servable_kinds(listener);
    let wanted = listener.allowed_routes.as_ref().map_or(&[][..], |a| a.kinds.as_slice());
    let all = |kinds: &mut dyn Iterator<Item = &&'static str>| {
        kinds.map(|kind| SupportedKind { group: GROUP, kind }).collect::<Vec<_>>()
    };
    if wanted.is_empty() {
        return (all(&mut served.iter()), None);
    }
    let is_wanted =
        |kind: &&'static str| wanted.iter().any(|w| w.group.as_deref().unwrap_or(GROUP) == GROUP && w.kind == *kind);
    let is_served = |w: &&mesh_api::crd::gateway_api::RouteKind| {
        w.group.as_deref().unwrap_or(GROUP) == GROUP && served.contains(&w.kind.as_str())
    };
    let bad = wanted.iter().find(|w| !is_served(w));
    let problem = bad.map(|w| Problem::new("InvalidRouteKinds", format!("{} cannot be served here", w.kind)));
    (all(&mut served.iter().filter(|k| is_wanted(k))), problem)
}

/// What is wrong with the certificates of a listener.
fn certificates(index: &Index, entry: &ListenerEntry) -> Option<Problem> {
    let tls = entry.listener.tls.as_ref();
    let passes = tls.is_some_and(|t| t.mode == Some(mesh_api::crd::gateway_api::TlsMode::Passthrough));
    if !matches!(entry.listener.protocol.as_str(), "HTTPS" | "TLS") || passes {
        return None;
    }
    let refs = tls.map_or(&[][..], |t| t.certificate_refs.as_slice());
    if refs.is_empty() {
        // With certificates of the mesh it needs none.
        let mesh = listener_tls(index, entry).is_some();
        return (!mesh).then(|| Problem::new("InvalidCertificateRef", "it names no certificate"));
    }
    refs.iter().find_map(|r| certificate(index, &entry.owner.key, r, "InvalidCertificateRef"))
}

/// What is wrong with a reference to a certificate and its key.
fn certificate(index: &Index, from: &ObjectKey, r: &ObjectRef, reason: &'static str) -> Option<Problem> {
    let (group, kind) = (r.group.as_deref().unwrap_or(""), r.kind.as_deref().unwrap_or("Secret"));
    let namespace = r.namespace.as_deref().unwrap_or(&from.namespace);
    if !group.is_empty() || kind != "Secret" {
        return Some(Problem::new(reason, format!("{kind} {} is not a Secret", r.name)));
    }
    if !is_permitted(index, from, kind, namespace, &r.name) {
        return Some(not_permitted(kind, namespace, &r.name));
    }
    match index.secret(namespace, &r.name) {
        None => Some(Problem::new(reason, format!("there is no Secret {namespace}/{}", r.name))),
        Some(secret) if !has_certificate(secret) => {
            Some(Problem::new(reason, format!("Secret {namespace}/{} holds no certificate with its key", r.name)))
        }
        Some(_) => None,
    }
}

fn is_permitted(index: &Index, from: &ObjectKey, kind: &str, to_namespace: &str, to_name: &str) -> bool {
    let reference = Reference {
        from_kind: from.kind.name(),
        from_namespace: &from.namespace,
        to_group: "",
        to_kind: kind,
        to_namespace,
        to_name,
    };
    is_granted(index, reference)
}

fn not_permitted(kind: &str, namespace: &str, name: &str) -> Problem {
    let message = format!("no ReferenceGrant of namespace {namespace} permits a reference to {kind} {name}");
    Problem::new("RefNotPermitted", message)
}

/// What is wrong with the trust anchors of clients, and whether none is left.
fn clients(index: &Index, entry: &ListenerEntry) -> (Option<Problem>, Option<Problem>) {
    if !matches!(entry.listener.protocol.as_str(), "HTTPS" | "TLS") {
        return (None, None);
    }
    let frontend = entry.gateway.spec.tls.as_ref().and_then(|t| t.frontend.as_ref());
    let validation = frontend.and_then(|f| {
        let own = f.per_port.iter().find(|p| p.port == entry.listener.port).map(|p| &p.tls);
        own.unwrap_or(&f.default).validation.as_ref()
    });
    let Some(validation) = validation else { return (None, None) };
    let problems: Vec<Option<Problem>> = anchors(index, &entry.gateway.object.key, validation);
    let none = problems.iter().all(Option::is_some);
    let first = problems.into_iter().flatten().next();
    (first, none.then(|| Problem::new("NoValidCACertificate", "clients cannot be validated")))
}

fn anchors(index: &Index, from: &ObjectKey, validation: &FrontendValidation) -> Vec<Option<Problem>> {
    let each = validation.ca_certificate_refs.iter().map(|r| {
        let namespace = r.namespace.as_deref().unwrap_or(&from.namespace);
        if !r.group.is_empty() || !matches!(r.kind.as_str(), "ConfigMap" | "Secret") {
            return Some(Problem::new(
                "InvalidCACertificateKind",
                format!("{} {} holds no trust anchors", r.kind, r.name),
            ));
        }
        if !is_permitted(index, from, &r.kind, namespace, &r.name) {
            return Some(not_permitted(&r.kind, namespace, &r.name));
        }
        let found = if r.kind == "Secret" {
            index.secret(namespace, &r.name).is_some_and(|s| has_anchors(s))
        } else {
            let local = mesh_api::crd::gateway_api::LocalObjectRef {
                group: String::new(),
                kind: r.kind.clone(),
                name: r.name.clone(),
            };
            referenced(index, namespace, &local).is_ok_and(is_certificates)
        };
        let message = || format!("{} {namespace}/{} holds no trust anchors", r.kind, r.name);
        (!found).then(|| Problem::new("InvalidCACertificateRef", message()))
    });
    each.collect()
}
