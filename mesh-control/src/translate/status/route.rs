//! Routes: what each of their parents says, and whether their backends are there.

use mesh_api::{
    crd::gateway_api::{FilterType, GROUP, ParentRef, RouteFilter},
    names::service_host,
};

use super::{
    super::{
        gateway_api::{
            Attachment, ListenerEntry, RouteEntry, RouteSpec, admits_set, attachment, gateway_entry, is_set_of,
            listeners_of,
        },
        http_route::{Unusable, resolve},
        mesh_routes::{Attached, is_service, standing},
    },
    Condition, GATEWAY_CONTROLLER, MESH_CONTROLLER, ParentStatus, Problem, RouteStatus,
};
use crate::{
    index::{Index, Resolution, ServiceKey},
    source::object::{Kind, ObjectKey, Spec},
};

/// Of a route.
pub fn of(index: &Index, route: &RouteEntry) -> RouteStatus {
    RouteStatus { parents: route.parents().iter().filter_map(|p| parent(index, route, p)).collect() }
}

/// Of one parent; `None`: it is not this mesh's.
fn parent(index: &Index, route: &RouteEntry, parent: &ParentRef) -> Option<ParentStatus> {
    let mesh = is_service(parent);
    let problem = if mesh { at_service(index, route, parent) } else { at_listeners(index, route, parent)? };
    let (unsupported, rules) = unsupported(route);
    let mut conditions = Vec::new();
    let accepted = problem.or_else(|| {
        let all = !unsupported.is_empty() && unsupported.len() == rules;
        all.then(|| Problem::new("UnsupportedValue", "its filters are not supported: requests get 500"))
    });
    if accepted.is_none() && !unsupported.is_empty() {
        let numbers: Vec<String> = unsupported.iter().map(usize::to_string).collect();
        let message = format!("Dropped Rule {}: its filters are not supported, requests get 500", numbers.join(", "));
        conditions.push(Condition { kind: "PartiallyInvalid", status: true, reason: "UnsupportedValue", message });
    }
    conditions.insert(0, Condition::of("Accepted", accepted));
    conditions.insert(1, Condition::of("ResolvedRefs", backends(index, route, mesh)));
    let controller_name = if mesh { MESH_CONTROLLER } else { GATEWAY_CONTROLLER };
    Some(ParentStatus { parent_ref: parent.clone(), controller_name, conditions })
}

/// What a Gateway's listeners say; the outer `None`: it is not this mesh's.
#[allow(clippy::option_option)] // whose it is, and then whether something is wrong
fn at_listeners(index: &Index, route: &RouteEntry, parent: &ParentRef) -> Option<Option<Problem>> {
    if parent.group.as_deref().unwrap_or(GROUP) != GROUP {
        return None;
    }
    let namespace = parent.namespace.as_deref().unwrap_or(route.namespace());
    let listeners = match parent.kind.as_deref().unwrap_or("Gateway") {
        "Gateway" => {
            let object = index.object(&ObjectKey::new(Kind::Gateway, namespace, &parent.name))?;
            listeners_of(index, &gateway_entry(index, object)?)
        }
        "ListenerSet" => of_set(index, namespace, &parent.name)?,
        _ => return None,
    };
    let said: Vec<Attachment> = listeners.iter().map(|l| attachment(index, l, route, parent)).collect();
    let problem = if said.iter().any(|a| matches!(a, Attachment::Hosts(_))) {
        None
    } else if said.contains(&Attachment::NoHostname) {
        Some(Problem::new("NoMatchingListenerHostname", "no listener serves any of its hostnames"))
    } else if said.contains(&Attachment::NotAllowed) {
        Some(Problem::new("NotAllowedByListeners", "no listener takes this kind of route from this namespace"))
    } else {
        Some(Problem::new("NoMatchingParent", "the parent has no such listener"))
    };
    Some(problem)
}

/// Listeners of a ListenerSet's Gateway; none when that does not take them.
fn of_set(index: &Index, namespace: &str, name: &str) -> Option<Vec<ListenerEntry>> {
    let object = index.object(&ObjectKey::new(Kind::ListenerSet, namespace, name))?;
    let Spec::ListenerSet(set) = &object.spec else { return None };
    let mut gateways = index.objects(Kind::Gateway).filter(|g| is_set_of(g, object, set));
    let gateway = gateways.find_map(|g| gateway_entry(index, g))?;
    Some(if admits_set(index, &gateway, object, set) { listeners_of(index, &gateway) } else { vec![] })
}

fn at_service(index: &Index, route: &RouteEntry, parent: &ParentRef) -> Option<Problem> {
    let namespace = parent.namespace.as_deref().unwrap_or(route.namespace());
    let host = service_host(&parent.name, namespace, index.domain());
    let Some(entry) = index.service_entry(&ServiceKey::new(&host, namespace)) else {
        return Some(Problem::new("NoMatchingParent", format!("there is no Service {namespace}/{}", parent.name)));
    };
    let service = entry.service.arc();
    if service.headless || service.resolution == Resolution::Alias {
        let message = "requests to headless and ExternalName Services are not routed";
        return Some(Problem::new("NoMatchingParent", message));
    }
    let ports: Vec<u16> =
        service.ports.iter().map(|p| p.port).filter(|p| parent.port.is_none_or(|o| o == *p)).collect();
    if ports.is_empty() {
        return Some(Problem::new("NoMatchingParent", "the Service has no such port"));
    }
    let attached = Attached::every(index);
    let counts = |port: u16| {
        let here = attached.at(service, port, route.namespace());
        here.iter().all(|r| standing(r) >= standing(route))
    };
    let outdone = !ports.iter().any(|p| counts(*p));
    outdone.then(|| Problem::new("Conflicted", "a route of a kind that counts before this one is attached there"))
}

/// Rules with filters that cannot be carried out, and how many rules there are.
fn unsupported(route: &RouteEntry) -> (Vec<usize>, usize) {
    let bad = |filters: &[RouteFilter]| {
        filters.iter().any(|f| matches!(f.kind, FilterType::ExternalAuth | FilterType::ExtensionRef))
    };
    let found: Vec<bool> = match &route.spec {
        RouteSpec::Http(r) => r.rules.iter().map(|r| bad(&r.filters)).collect(),
        RouteSpec::Grpc(r) => r.rules.iter().map(|r| bad(&r.filters)).collect(),
        RouteSpec::Tls(_) | RouteSpec::Tcp(_) => vec![],
    };
    let numbers = found.iter().enumerate().filter(|(_, bad)| **bad).map(|(i, _)| i);
    (numbers.collect(), found.len())
}

/// What is wrong with the backends.
fn backends(index: &Index, route: &RouteEntry, mesh: bool) -> Option<Problem> {
    let all = route.backends();
    all.iter().flatten().find_map(|b| {
        let namespace = b.namespace.as_deref().unwrap_or(route.namespace());
        let problem = match resolve(b, route, index, mesh).err()? {
            Unusable::Kind => {
                let kind = b.kind.as_deref().unwrap_or("Service");
                Problem::new("InvalidKind", format!("{kind} {} is no kind of backend", b.name))
            }
            Unusable::NotPermitted => {
                let message = format!("no ReferenceGrant of namespace {namespace} permits backend {}", b.name);
                Problem::new("RefNotPermitted", message)
            }
            Unusable::NotFound => {
                Problem::new("BackendNotFound", format!("there is no Service {namespace}/{} with that port", b.name))
            }
        };
        Some(problem)
    })
}
