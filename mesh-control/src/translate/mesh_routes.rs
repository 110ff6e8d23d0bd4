//! HTTPRoutes and GRPCRoutes that are attached to Services: routing for sidecars.
//!
//! Owns producer and consumer routes. Must not know virtual hosts.

use std::collections::HashMap;

use mesh_api::{
    crd::gateway_api::ParentRef,
    model::{Name, Route},
};

use super::{
    gateway_api::{RouteEntry, RouteSpec, all_routes},
    http_route::{self, RouteEnv},
    lookups::Lookups,
    translator::Request,
};
use crate::index::{Index, Service};

/// Routes by the service (namespace and name) that they are attached to.
#[derive(Debug, Default)]
pub struct Attached {
    by_service: HashMap<(Name, Name), Vec<RouteEntry>>,
}

impl Attached {
    /// All of the mesh.
    pub fn new(index: &Index) -> Self {
        let mut out = Self::default();
        for route in all_routes(index) {
            let mut seen: Vec<(Name, Name)> = Vec::new();
            for parent in route.parents().iter().filter(|p| is_service(p)) {
                let namespace = parent.namespace.as_deref().map_or_else(|| route.namespace().clone(), Name::from);
                let slot = (namespace, Name::from(parent.name.as_str()));
                if !seen.contains(&slot) {
                    seen.push(slot);
                }
            }
            for slot in seen {
                out.by_service.entry(slot).or_default().push(route.clone());
            }
        }
        out
    }

    /// Routes of a service's port for a client; `None`: none is attached there. What the client's own namespace says
    /// replaces what the service's namespace says.
    pub fn routes(&self, request: Request<'_>, service: &Service, port: u16) -> Option<Vec<Route>> {
        if !service.kubernetes {
            return None;
        }
        let here = |r: &&RouteEntry| {
            r.parents().iter().any(|p| {
                is_service(p)
                    && p.name == *service.name
                    && p.namespace.as_deref().unwrap_or(r.namespace()) == &*service.key.namespace
                    && p.port.is_none_or(|own| own == port)
            })
        };
        let slot = (service.key.namespace.clone(), service.name.clone());
        let mut attached: Vec<&RouteEntry> = self.by_service.get(&slot)?.iter().filter(here).collect();
        let client = &request.view.namespace;
        let consumer = |r: &&RouteEntry| *r.namespace() == *client && *client != service.key.namespace;
        if attached.iter().any(consumer) {
            attached.retain(consumer);
        } else {
            attached.retain(|r| *r.namespace() == service.key.namespace);
        }
        // Where both kinds are attached, GRPCRoutes count.
        if attached.iter().any(|r| matches!(r.spec, RouteSpec::Grpc(_))) {
            attached.retain(|r| matches!(r.spec, RouteSpec::Grpc(_)));
        }
        if attached.is_empty() {
            return None;
        }
        let lookups = Lookups(request);
        let env = RouteEnv { index: request.index, destinations: &lookups, port, tls: false, mesh: true };
        Some(http_route::in_order(attached.iter().flat_map(|r| http_route::rules(r, &env)).collect()))
    }
}

fn is_service(p: &ParentRef) -> bool {
    p.group.as_deref() == Some("") && p.kind.as_deref() == Some("Service")
}
