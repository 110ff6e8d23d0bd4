//! Route configurations by name, kept by what they depend on: shared by the sidecars of a namespace and Sidecar, and
//! by the proxies of a gateway.
//!
//! Owns the keys. What stands in a route configuration is made by [`super::sidecar_routes`] and [`super::gateway`].

use std::sync::Arc;

use mesh_api::{labels::Labels, model::Name};

use super::{
    cache::Cache, gateway, lookups::Relevance, proxy_headers::RouteHeaders, sidecar_routes, translator::Request,
};
use crate::{
    index::{ServiceKey, Stamp},
    source::object::{Kind, ObjectKey},
    view::{Flavour, ProxyKind},
    xds::encoded::Encoded,
};

/// What routes depend on beyond their name: the declared subset of the view.
#[derive(Debug, PartialEq, Eq)]
pub struct Key {
    kind: ProxyKind,
    grpc: bool,
    namespace: Name,
    sidecar: Option<ObjectKey>,
    captures_dns: bool,
    headers: RouteHeaders,
    /// Those that rules ask for; of gateways all, they tell the Gateways.
    labels: Labels,
    /// Of gateways only: ports of their services.
    targets: Vec<(ServiceKey, u16, u16)>,
}

/// What routes are made from.
#[derive(Debug, PartialEq, Eq)]
pub struct Basis {
    scope: Stamp,
    mesh: Stamp,
    rules: Stamp,
    kinds: [Stamp; 10],
}

/// Route configurations of all proxies.
#[derive(Debug, Default)]
pub struct Routes {
    cache: Cache<Key, Basis>,
    relevance: Relevance,
}

impl Routes {
    /// A route configuration by name.
    pub fn generate(&self, request: Request<'_>, name: &str) -> Option<Arc<Encoded>> {
        let view = request.view;
        let gateway = view.is_gateway();
        let key = Key {
            kind: view.kind,
            grpc: view.flavour == Flavour::Grpc,
            namespace: view.namespace.clone(),
            sidecar: view.sidecar.clone(),
            captures_dns: !gateway && view.captures_dns(),
            headers: RouteHeaders::of(&view.proxy_config, request.index.mesh()),
            labels: if gateway { (*view.labels).clone() } else { self.relevance.labels(request) },
            targets: if gateway {
                view.targets.iter().map(|t| (t.service.key.clone(), t.port.port, t.target_port)).collect()
            } else {
                vec![]
            },
        };
        let headers = key.headers;
        self.cache.get(name, key, basis(request), || {
            let made = if gateway { gateway::routes(request, name) } else { sidecar_routes::generate(request, name) };
            made.map(|mut routes| {
                headers.apply(&mut routes);
                Encoded::route(&routes)
            })
        })
    }
}

fn basis(request: Request<'_>) -> Basis {
    let index = request.index;
    let of = |kind: Kind| index.stamp(kind);
    let gateway = |kind: Kind| if request.view.is_gateway() { index.stamp(kind) } else { Stamp::NONE };
    Basis {
        scope: request.scope.stamp(),
        mesh: index.mesh_stamped().stamp(),
        rules: index.rules_stamp(),
        kinds: [
            of(Kind::HttpRoute),
            of(Kind::GrpcRoute),
            gateway(Kind::ReferenceGrant),
            gateway(Kind::IstioGateway),
            gateway(Kind::Ingress),
            gateway(Kind::IngressClass),
            gateway(Kind::Gateway),
            gateway(Kind::ListenerSet),
            gateway(Kind::GatewayClass),
            gateway(Kind::Namespace),
        ],
    }
}
