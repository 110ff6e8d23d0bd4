//! Patches of route configurations, virtual hosts and routes.

use std::sync::Arc;

use mesh_api::crd::networking::envoy_filter::{ApplyTo, Operation};
use prost_reflect::{DynamicMessage, Value};

use super::{Patch, dynamic, matching, merge::merge, set::Run};

/// Whether any patch of the context may be for routes.
pub(super) fn wanted(run: &Run<'_>) -> bool {
    [ApplyTo::RouteConfiguration, ApplyTo::VirtualHost, ApplyTo::HttpRoute].into_iter().any(|part| run.has(part))
}

/// Changes a route configuration, what is in it after the whole.
pub(super) fn apply(run: &mut Run<'_>, routes: &mut DynamicMessage) {
    let name = dynamic::text(routes, "name").to_owned();
    let (at, facts) = (run.at, run.facts);
    let is_for = |patch: &&Arc<Patch>| matching::routes(patch, &name, at, facts);
    for patch in run.patches(ApplyTo::RouteConfiguration).filter(is_for) {
        if let Some(lists) = patch.merges() {
            merge(routes, &patch.value, lists);
            run.changed = true;
        }
    }
    let of_hosts: Vec<&Arc<Patch>> = run.patches(ApplyTo::VirtualHost).filter(is_for).collect();
    let of_routes: Vec<&Arc<Patch>> = run.patches(ApplyTo::HttpRoute).filter(is_for).collect();
    if of_hosts.is_empty() && of_routes.is_empty() {
        return;
    }
    let Some(hosts) = dynamic::list_mut(routes, "virtual_hosts") else { return };
    hosts.retain_mut(|host| {
        let Some(host) = host.as_message_mut() else { return true };
        virtual_host(run, host, &of_hosts, &of_routes)
    });
    for patch in of_hosts.iter().filter(|p| p.operation == Operation::Add) {
        hosts.push(Value::Message(patch.value.clone()));
        run.changed = true;
    }
}

/// Changes a virtual host, then its routes; false: it is removed.
fn virtual_host(
    run: &mut Run<'_>,
    host: &mut DynamicMessage,
    of_hosts: &[&Arc<Patch>],
    of_routes: &[&Arc<Patch>],
) -> bool {
    for patch in of_hosts {
        if !matching::virtual_host(patch, host) {
            continue;
        }
        match patch.operation {
            Operation::Remove => {
                run.changed = true;
                return false;
            }
            Operation::Replace => *host = patch.value.clone(),
            _ => match patch.merges() {
                Some(lists) => merge(host, &patch.value, lists),
                None => continue,
            },
        }
        run.changed = true;
    }
    let here: Vec<&Arc<Patch>> = of_routes.iter().copied().filter(|p| matching::virtual_host(p, host)).collect();
    if !here.is_empty()
        && let Some(routes) = dynamic::list_mut(host, "routes")
    {
        http_routes(run, routes, &here);
    }
    true
}

/// Changes the routes of a virtual host: first those that are there, then where others come.
fn http_routes(run: &mut Run<'_>, routes: &mut Vec<Value>, patches: &[&Arc<Patch>]) {
    routes.retain_mut(|route| {
        let Some(route) = route.as_message_mut() else { return true };
        for patch in patches {
            if !matching::route(patch, route) {
                continue;
            }
            if patch.operation == Operation::Remove {
                run.changed = true;
                return false;
            }
            if let Some(lists) = patch.merges() {
                merge(route, &patch.value, lists);
                run.changed = true;
            }
        }
        true
    });
    for patch in patches {
        let fits = |v: &Value| v.as_message().is_some_and(|route| matching::route(patch, route));
        let asks = matching::asks_for_route(patch);
        let at = match patch.operation {
            Operation::Add => Some(routes.len()),
            Operation::InsertAfter if !asks => Some(routes.len()),
            Operation::InsertBefore | Operation::InsertFirst if !asks => Some(0),
            Operation::InsertAfter => routes.iter().position(fits).map(|i| i + 1),
            Operation::InsertBefore => routes.iter().position(fits),
            Operation::InsertFirst => routes.iter().any(fits).then_some(0),
            _ => None,
        };
        if let Some(at) = at {
            routes.insert(at, Value::Message(patch.value.clone()));
            run.changed = true;
        }
    }
}
