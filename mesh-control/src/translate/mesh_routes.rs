//! Routes that are attached to Services: routing for sidecars.
//!
//! Owns producer and consumer routes, and which kind counts where several are attached. Must not know virtual hosts nor
//! listeners.

use std::collections::HashMap;

use mesh_api::{
    crd::gateway_api::ParentRef,
    model::{CidrRange, Name, Route},
};

use super::{
    gateway_api::{RouteEntry, RouteSpec, all_routes, l4_routes},
    http_route::{self, RouteEnv},
    l4_route,
    lookups::Lookups,
    tcp_routes::TcpRule,
    translator::Request,
};
use crate::index::{Index, Resolution, Service};

/// Routes by the service (namespace and name) that they are attached to.
#[derive(Debug, Default)]
pub struct Attached {
    by_service: HashMap<(Name, Name), Vec<RouteEntry>>,
}

impl Attached {
    /// HTTPRoutes and GRPCRoutes of the mesh.
    pub fn new(index: &Index) -> Self {
        Self::of(all_routes(index))
    }

    /// Routes of every kind.
    pub fn every(index: &Index) -> Self {
        let mut routes = all_routes(index);
        routes.extend(l4_routes(index));
        Self::of(routes)
    }

    fn of(routes: Vec<RouteEntry>) -> Self {
        let mut out = Self::default();
        for route in routes {
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

    /// Routes of a service's port that a client of a namespace is under: what that namespace says replaces what the
    /// service's own says.
    pub fn at(&self, service: &Service, port: u16, client: &str) -> Vec<&RouteEntry> {
        // Clients of a headless service choose its endpoints themselves; one that is another name for a host has none, and
        // no address that would keep its routes from others' traffic.
        if !service.kubernetes || service.headless || service.resolution == Resolution::Alias {
            return vec![];
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
        let attached = self.by_service.get(&slot);
        let mut attached: Vec<&RouteEntry> = attached.into_iter().flatten().filter(here).collect();
        let consumer = |r: &&RouteEntry| **r.namespace() == *client && *client != *service.key.namespace;
        if attached.iter().any(consumer) {
            attached.retain(consumer);
        } else {
            attached.retain(|r| *r.namespace() == service.key.namespace);
        }
        // Where several kinds are attached the foremost counts.
        if let Some(best) = attached.iter().map(|r| standing(r)).min() {
            attached.retain(|r| standing(r) == best);
        }
        attached
    }

    /// HTTP routes of a service's port for a client; `None`: none is attached there.
    pub fn routes(&self, request: Request<'_>, service: &Service, port: u16) -> Option<Vec<Route>> {
        let attached = self.at(service, port, &request.view.namespace);
        if attached.is_empty() {
            return None;
        }
        let lookups = Lookups(request);
        let env = RouteEnv { index: request.index, destinations: &lookups, port, tls: false, mesh: true };
        Some(http_route::in_order(attached.iter().flat_map(|r| http_route::rules(r, &env)).collect()))
    }

    /// Rules for connections to a service's port; `None`: no TLSRoute or TCPRoute counts there.
    pub fn connections(
        &self,
        lookups: &Lookups<'_>,
        service: &Service,
        port: u16,
        subnets: &[CidrRange],
        own_name: bool,
    ) -> Option<Vec<TcpRule>> {
        let mut attached = self.at(service, port, &lookups.0.view.namespace);
        attached.retain(|r| matches!(r.spec, RouteSpec::Tls(_) | RouteSpec::Tcp(_)));
        if attached.is_empty() {
            return None;
        }
        let own = own_name.then_some(&service.key.host);
        Some(l4_route::at_service(&attached, subnets, own, port, lookups))
    }
}

/// Which kind of route counts before others on one port.
pub fn standing(route: &RouteEntry) -> u8 {
    match route.spec {
        RouteSpec::Grpc(_) => 0,
        RouteSpec::Http(_) => 1,
        RouteSpec::Tls(_) => 2,
        RouteSpec::Tcp(_) => 3,
    }
}

/// Whether a parent is a Service.
pub fn is_service(p: &ParentRef) -> bool {
    p.group.as_deref() == Some("") && p.kind.as_deref() == Some("Service")
}
