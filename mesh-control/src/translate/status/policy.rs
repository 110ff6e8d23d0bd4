//! BackendTLSPolicies: for every Gateway that routes to their Services, and for the Services in the mesh.

use std::{collections::BTreeSet, sync::Arc};

use mesh_api::{
    crd::gateway_api::{BackendTlsPolicy, GROUP, ParentRef, PolicyTargetRef},
    names::service_host,
};

use super::{
    super::{
        backend_tls::{self, BadReference, Invalid},
        gateway_api::{all_routes, attached_hosts, gateway_entry, l4_routes, listeners_of},
        http_route::resolve,
    },
    AncestorStatus, Condition, GATEWAY_CONTROLLER, MESH_CONTROLLER, PolicyStatus, Problem,
};
use crate::{
    index::{Index, ServiceKey},
    source::object::{Kind, Object, ObjectKey},
};

/// Of a policy.
pub fn of(index: &Index, object: &Arc<Object>, policy: &BackendTlsPolicy) -> PolicyStatus {
    let namespace = &object.key.namespace;
    let resolved = Condition::of("ResolvedRefs", references(index, namespace, policy));
    let mut ancestors = Vec::new();
    let mut by_gateway: Vec<(ObjectKey, Option<Problem>)> = Vec::new();
    for target in &policy.target_refs {
        let problem = refusal(index, object, policy, target);
        let host = service_host(&target.name, namespace, index.domain());
        for gateway in gateways(index, &host) {
            match by_gateway.iter_mut().find(|(key, _)| *key == gateway) {
                // One target that is fine does not make up for another.
                Some((_, known)) => *known = known.take().or_else(|| problem.clone()),
                None => by_gateway.push((gateway, problem.clone())),
            }
        }
        ancestors.push(AncestorStatus {
            ancestor_ref: ParentRef {
                group: Some(target.group.clone()),
                kind: Some(target.kind.clone()),
                name: target.name.clone(),
                namespace: None,
                section_name: target.section_name.clone(),
                port: None,
            },
            controller_name: MESH_CONTROLLER,
            conditions: vec![Condition::of("Accepted", problem), resolved.clone()],
        });
    }
    let of_gateways = by_gateway.into_iter().map(|(key, problem)| AncestorStatus {
        ancestor_ref: ParentRef {
            group: Some(GROUP.to_owned()),
            kind: Some("Gateway".to_owned()),
            name: key.name.to_string(),
            namespace: Some(key.namespace.to_string()),
            section_name: None,
            port: None,
        },
        controller_name: GATEWAY_CONTROLLER,
        conditions: vec![Condition::of("Accepted", problem), resolved.clone()],
    });
    PolicyStatus { ancestors: of_gateways.chain(ancestors).collect() }
}

/// Gateways of this mesh with a route to a host.
fn gateways(index: &Index, host: &str) -> BTreeSet<ObjectKey> {
    let mut routes = all_routes(index);
    routes.extend(l4_routes(index));
    routes.retain(|r| {
        r.backends().iter().flatten().any(|b| resolve(b, r, index, false).is_ok_and(|(found, _)| found == host))
    });
    if routes.is_empty() {
        return BTreeSet::new();
    }
    let all = index.objects(Kind::Gateway).filter_map(|o| gateway_entry(index, o));
    let concerned = all.filter(|g| {
        let listeners = listeners_of(index, g);
        listeners.iter().any(|l| routes.iter().any(|r| !attached_hosts(index, l, r).is_empty()))
    });
    concerned.map(|g| g.object.key.clone()).collect()
}

/// What keeps a policy from being in force for a target.
fn refusal(
    index: &Index,
    object: &Arc<Object>,
    policy: &BackendTlsPolicy,
    target: &PolicyTargetRef,
) -> Option<Problem> {
    let namespace = &object.key.namespace;
    let host = service_host(&target.name, namespace, index.domain());
    let service = index.service_entry(&ServiceKey::new(&host, namespace)).map(|e| e.service.arc());
    let known = target.group.is_empty() && target.kind == "Service";
    let Some(service) = service.filter(|s| known && s.kubernetes) else {
        return Some(Problem::new(
            "TargetNotFound",
            format!("there is no {} {namespace}/{}", target.kind, target.name),
        ));
    };
    let section = target.section_name.as_deref().filter(|s| !s.is_empty());
    if section.is_some_and(|s| !service.ports.iter().any(|p| *p.name == *s)) {
        return Some(Problem::new("TargetNotFound", "the Service has no port of that name"));
    }
    match backend_tls::anchors(index, namespace, policy) {
        Ok(_) => {}
        Err(Invalid::NoAnchors) => {
            return Some(Problem::new("NoValidCACertificate", "no reference leads to trust anchors: requests fail"));
        }
        Err(Invalid::UnknownSet) => {
            return Some(Problem::new("Invalid", "wellKnownCACertificates must be System: requests fail"));
        }
    }
    let same = backend_tls::of_service(index, namespace, &target.name);
    let first = same.iter().find(|(.., own)| own.as_deref() == section);
    first
        .filter(|(o, ..)| o.key != object.key)
        .map(|(o, ..)| Problem::new("Conflicted", format!("{} is attached to the same target and older", o.key)))
}

fn references(index: &Index, namespace: &str, policy: &BackendTlsPolicy) -> Option<Problem> {
    policy.validation.ca_certificate_refs.iter().find_map(|r| {
        Some(match backend_tls::referenced(index, namespace, r).err()? {
            BadReference::Kind => Problem::new("InvalidKind", format!("{} {} is not a ConfigMap", r.kind, r.name)),
            BadReference::Content => {
                let message = format!("there are no certificates in ConfigMap {namespace}/{}", r.name);
                Problem::new("InvalidCACertificateRef", message)
            }
        })
    })
}
