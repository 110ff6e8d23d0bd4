//! What objects must be told of themselves: those of Gateway API conditions, listeners and attached routes, ServiceEntries
//! the addresses that their hosts were given.
//!
//! Computed from the index by the same functions that translate, as plain data: shown at `/debug/configz`. Owns conditions and their reasons. Must not know who writes them, nor generations and times.

mod address;
mod listener;
mod policy;
mod route;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use mesh_api::{
    crd::{gateway_api::ParentRef, networking},
    model::Name,
};
use serde::{Serialize, Serializer};

pub use self::address::read_endpoints;
use self::listener::{GatewayStatus, ListenerSetStatus};
use super::gateway_api::{RouteEntry, is_own_controller};
use crate::{
    index::{Index, ServiceKey, allocation},
    source::object::{Object, Spec},
};

/// Controller of Gateways, as GatewayClasses name it.
pub const GATEWAY_CONTROLLER: &str = "istio.io/gateway-controller";
/// Controller of what is attached to Services.
pub const MESH_CONTROLLER: &str = "istio.io/mesh-controller";

/// Whether a status under this controller's name is the mesh's.
pub fn is_ours(controller: &str) -> bool {
    controller == MESH_CONTROLLER || is_own_controller(controller)
}

/// One condition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Condition {
    /// `type`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// `True` or `False`.
    #[serde(serialize_with = "word")]
    pub status: bool,
    /// One word.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

fn word<S: Serializer>(status: &bool, out: S) -> Result<S::Ok, S::Error> {
    out.serialize_str(if *status { "True" } else { "False" })
}

impl Condition {
    /// A condition that holds, with its own name as reason.
    fn good(kind: &'static str) -> Self {
        Self { kind, status: true, reason: kind, message: String::new() }
    }

    fn bad(kind: &'static str, reason: &'static str, message: impl Into<String>) -> Self {
        Self { kind, status: false, reason, message: message.into() }
    }

    /// From what stands in the way, if anything.
    fn of(kind: &'static str, problem: Option<Problem>) -> Self {
        match problem {
            None => Self::good(kind),
            Some(p) => Self::bad(kind, p.reason, p.message),
        }
    }
}

/// What stands in the way of a condition.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Problem {
    reason: &'static str,
    message: String,
}

impl Problem {
    fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

/// Status of an object.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Status {
    /// GatewayClass.
    Class(ClassStatus),
    /// Gateway.
    Gateway(GatewayStatus),
    /// ListenerSet.
    ListenerSet(ListenerSetStatus),
    /// Any kind of route.
    Route(RouteStatus),
    /// BackendTLSPolicy.
    Policy(PolicyStatus),
    /// ServiceEntry.
    Entry(EntryStatus),
}

impl Status {
    /// A Gateway whose Deployment or Service cannot be made is not programmed.
    pub fn not_programmed(&mut self, why: &str) {
        if let Self::Gateway(gateway) = self {
            gateway.not_programmed(why);
        }
    }
}

/// Of a ServiceEntry.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EntryStatus {
    /// `addresses`: those that the mesh made up.
    pub addresses: Vec<EntryAddress>,
}

/// An address of a host.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EntryAddress {
    /// `host`.
    pub host: Name,
    /// `value`.
    pub value: std::net::IpAddr,
}

/// Of a GatewayClass.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ClassStatus {
    /// `conditions`.
    pub conditions: Vec<Condition>,
}

/// Of a route.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RouteStatus {
    /// One for each parent that is this mesh's.
    pub parents: Vec<ParentStatus>,
}

/// Of a route for one parent.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ParentStatus {
    /// `parentRef`.
    pub parent_ref: ParentRef,
    /// `controllerName`.
    pub controller_name: &'static str,
    /// `conditions`.
    pub conditions: Vec<Condition>,
}

/// Of a policy.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PolicyStatus {
    /// One for each Gateway that it concerns, and for each Service that it is attached to.
    pub ancestors: Vec<AncestorStatus>,
}

/// Of a policy for one ancestor.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AncestorStatus {
    /// `ancestorRef`.
    pub ancestor_ref: ParentRef,
    /// `controllerName`.
    pub controller_name: &'static str,
    /// `conditions`.
    pub conditions: Vec<Condition>,
}

/// What an object must be told; `None`: nothing, it has no status or is not this mesh's.
pub fn of(index: &Index, object: &Arc<Object>) -> Option<Status> {
    match &object.spec {
        Spec::GatewayClass(class) => is_own_controller(&class.controller_name)
            .then(|| Status::Class(ClassStatus { conditions: vec![Condition::good("Accepted")] })),
        Spec::Gateway(_) => listener::of_gateway(index, object).map(Status::Gateway),
        Spec::ListenerSet(set) => listener::of_set(index, object, set).map(Status::ListenerSet),
        Spec::BackendTlsPolicy(policy) => Some(Status::Policy(policy::of(index, object, policy))),
        Spec::ServiceEntry(entry) => of_entry(index, object, entry),
        _ => RouteEntry::of(object).map(|route| Status::Route(route::of(index, &route))),
    }
}

/// The addresses of its hosts that it declares none for; `None`: it has its own, or wants none.
fn of_entry(index: &Index, object: &Object, entry: &networking::ServiceEntry) -> Option<Status> {
    if !allocation::applies(entry, &object.meta.labels) {
        return None;
    }
    let keys = entry.hosts.iter().map(|h| ServiceKey::new(h, &object.key.namespace));
    let given = keys.filter_map(|k| Some((index.allocated(&k)?, k)));
    let addresses: Vec<EntryAddress> =
        given.flat_map(|(a, k)| a.ips().map(|value| EntryAddress { host: k.host.clone(), value })).collect();
    (!addresses.is_empty()).then_some(Status::Entry(EntryStatus { addresses }))
}
