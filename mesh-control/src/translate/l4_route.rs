//! TLSRoutes and TCPRoutes as rules of filter chains: at listeners of Gateways, and at Services for sidecars.
//!
//! Owns server names, who wins where several routes want the same connections, and backends with weights. Must not know
//! listeners nor how routes attach.

use mesh_api::{
    crd::gateway_api::BackendRef,
    model::{CidrRange, Name, TcpProxy},
    names::ClusterName,
};

use super::{
    gateway_api::{ListenerEntry, RouteEntry, attached_hosts, l4_routes},
    http_route::{self, RouteEnv},
    lookups::Lookups,
    tcp_routes::{self, TcpRule},
    translator::Request,
    virtual_service::{Destinations, UNKNOWN_SERVICE},
};

/// Rules of a listener of a Gateway, each server name once: that of the oldest route.
pub fn at_listener(request: Request<'_>, listener: &ListenerEntry) -> Vec<TcpRule> {
    let lookups = Lookups(request);
    let env = RouteEnv {
        index: request.index,
        destinations: &lookups,
        port: listener.listener.port,
        tls: false,
        mesh: false,
    };
    let mut out = Rules::default();
    for route in l4_routes(request.index) {
        let hosts = attached_hosts(request.index, listener, &route);
        if !hosts.is_empty() {
            out.add(&route, hosts, &[], &env, &lookups);
        }
    }
    out.rules
}

/// Rules of a Service's port for clients in the mesh. `own`: the server name of the service, where names tell services
/// apart.
pub fn at_service(
    routes: &[&RouteEntry],
    subnets: &[CidrRange],
    own: Option<&Name>,
    port: u16,
    lookups: &Lookups<'_>,
) -> Vec<TcpRule> {
    let env = RouteEnv { index: lookups.0.index, destinations: lookups, port, tls: false, mesh: true };
    let mut out = Rules::default();
    for route in routes {
        let names = match (route.hostnames(), own) {
            ([], None) => vec!["*".into()],
            ([], Some(own)) => vec![own.clone()],
            (names, _) => names.iter().map(|h| Name::from(h.to_ascii_lowercase())).collect(),
        };
        out.add(route, names, subnets, &env, lookups);
    }
    out.rules
}

#[derive(Default)]
struct Rules {
    rules: Vec<TcpRule>,
    taken: Vec<Name>,
}

impl Rules {
    /// Adds a route under the names that no older one has; `*`: any.
    fn add(
        &mut self,
        route: &RouteEntry,
        mut names: Vec<Name>,
        subnets: &[CidrRange],
        env: &RouteEnv<'_>,
        lookups: &Lookups<'_>,
    ) {
        names.retain(|n| !self.taken.contains(n));
        if names.is_empty() {
            return;
        }
        self.taken.extend(names.iter().cloned());
        // `*` stands for any name, which a match says by naming none; one that names some as well would be narrower.
        let (any, named): (Vec<Name>, Vec<Name>) = names.into_iter().partition(|n| &**n == "*");
        let rule = |server_names: Vec<Name>| TcpRule {
            server_names,
            subnets: subnets.to_vec(),
            sources: vec![],
            proxy: proxy(route, env, lookups),
            name_port: None,
            config: route.object.key.config_path().into(),
        };
        self.rules.extend((!named.is_empty()).then(|| rule(named)));
        self.rules.extend((!any.is_empty()).then(|| rule(vec![])));
    }
}

/// Where connections of a route go: to the backends of its rule by weight. What does not exist or may not be used closes
/// its share of them.
fn proxy(route: &RouteEntry, env: &RouteEnv<'_>, lookups: &Lookups<'_>) -> TcpProxy {
    let backends = route.l4_rules().first().map_or(&[][..], |r| r.backend_refs.as_slice());
    let mut settled = None;
    let mut clusters: Vec<(Name, u32)> = Vec::new();
    for backend in backends {
        let weight = backend.weight.unwrap_or(1);
        if weight == 0 {
            continue;
        }
        let name = match http_route::cluster(&BackendRef::from(backend.clone()), route, env) {
            Some((host, port)) => {
                let name = ClusterName::outbound(lookups.concrete(&host), port, "").to_string().into();
                settled.get_or_insert((host, port));
                name
            }
            None => UNKNOWN_SERVICE.into(),
        };
        clusters.push((name, weight));
    }
    let mut out = match clusters.as_slice() {
        [] => TcpProxy::to(UNKNOWN_SERVICE, UNKNOWN_SERVICE),
        [(only, _)] => TcpProxy::to(only.clone(), only.clone()),
        _ => {
            let key = &route.object.key;
            let mut out = TcpProxy::to(format!("{}.{}", key.name, key.namespace), UNKNOWN_SERVICE);
            out.clusters = clusters;
            out
        }
    };
    if let Some((host, port)) = settled {
        tcp_routes::settings(&mut out, &host, port, "", lookups);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            gateway_api::{gateway_entry, listeners_of},
            mesh_routes::Attached,
            testing::World,
        },
        *,
    };
    use crate::{
        index::ServiceKey,
        source::object::{Kind, ObjectKey},
    };

    const BASE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: db, namespace: shop}\nspec: {clusterIP: 10.1.0.1, ports: [{name: tcp, port: 5000}]}\n---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: edge, namespace: shop}\nspec: {gatewayClassName: istio, listeners: [{name: tls, port: 443, protocol: TLS, hostname: '*.a.test', tls: {mode: Passthrough}}, {name: tcp, port: 5000, protocol: TCP}]}\n";

    fn route(kind: &str, namespace: &str, name: &str, spec: &str) -> String {
        format!(
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{{spec}}}\n"
        )
    }

    fn text(rules: &[TcpRule]) -> Vec<String> {
        rules.iter().map(|r| format!("{} {:?}", r.server_names.join(","), r.proxy.clusters)).collect()
    }

    fn at(world: &World, listener: usize) -> Vec<String> {
        let view = world.gateway("10.0.0.9", "shop", &[]);
        let object = world.index().object(&ObjectKey::new(Kind::Gateway, "shop", "edge")).unwrap();
        let all = listeners_of(world.index(), &gateway_entry(world.index(), object).unwrap());
        world.ask(&view, |r| text(&at_listener(*r, &all[listener])))
    }

    #[test]
    fn every_name_belongs_to_one_route() {
        let to = "parentRefs: [{name: edge}], rules: [{backendRefs: [{name: db, port: 5000}]}]";
        let nowhere = "parentRefs: [{name: edge}], rules: [{backendRefs: [{name: nowhere, port: 1, weight: 3}, {name: db, port: 5000}]}]";
        let yaml = BASE.to_owned()
            + &route("TLSRoute", "shop", "a", &format!("{to}, hostnames: [x.a.test, y.test]"))
            + &route("TLSRoute", "shop", "b", &format!("{nowhere}, hostnames: [x.a.test, y.a.test]"))
            + &route("TCPRoute", "shop", "c", to)
            + &route("TCPRoute", "shop", "d", nowhere);
        let world = World::new(&yaml);
        let db = "(\"outbound|5000||db.shop.svc.cluster.local\", 1)";
        assert_eq!(at(&world, 0), [format!("x.a.test [{db}]"), format!("y.a.test [(\"UnknownService\", 3), {db}]")]);
        assert_eq!(at(&world, 1), [format!(" [{db}]")]);
    }

    #[test]
    fn routes_on_services_are_for_everybody_or_for_their_own_namespace() {
        let to = |port: u16| {
            format!(
                "parentRefs: [{{group: '', kind: Service, name: db, namespace: shop}}], rules: [{{backendRefs: [{{name: n{port}, port: {port}}}, {{name: db, namespace: shop, port: 5000, weight: {port}}}]}}]"
            )
        };
        let mut world = World::new(BASE);
        let seen = |world: &World, namespace: &str| {
            let view = world.sidecar("10.0.0.8", namespace, &[]);
            let key = ServiceKey::new("db.shop.svc.cluster.local", "shop");
            let service = world.index().service_entry(&key).unwrap().service.arc().clone();
            let attached = Attached::every(world.index());
            world.ask(&view, |r| {
                attached.connections(&Lookups(*r), &service, 5000, &[], false).map(|r| text(&r).join(";"))
            })
        };
        assert_eq!(seen(&world, "shop"), None);
        world.apply(&route("TCPRoute", "shop", "producer", &to(2)));
        world.apply(&route("TCPRoute", "bank", "consumer", &to(3)));
        for (namespace, weight) in [("shop", ", 2)"), ("other", ", 2)"), ("bank", ", 3)")] {
            let found = seen(&world, namespace).unwrap();
            assert!(found.contains(weight), "{namespace}: {found}");
        }
    }
}
