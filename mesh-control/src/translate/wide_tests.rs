//! A configuration that uses everything: what comes out is read by our own proxy, and comes out again only where
//! something changed.

use mesh_api::{
    model::{Action, Listener, NetworkFilter, RouteSource},
    xds::TypeUrl,
};
use mesh_proxy::{
    http::attributes::Place,
    http::{filters, router::RouteTable, stats::Needs},
    telemetry::access_log::{AccessLogs, LogSinks},
    xds::{convert, services::als::Collectors},
};

use super::testing::World;
use crate::{
    chance_tests::mirror::Mirror,
    source::object::{Kind, ObjectChange, ObjectKey},
    view::ProxyView,
    xds::generator::Generator,
};

const WIDE: &str = include_str!("../../testdata/wide/in.yaml");

fn views(world: &World) -> Vec<ProxyView> {
    let gateway = [("istio", "ingress"), (super::gateway_api::GATEWAY_NAME, "kgw")];
    vec![
        world.sidecar("10.0.0.1", "shop", &[("app", "web")]),
        world.explicit("10.0.0.1", "shop", &[("app", "web")]),
        world.sidecar("10.0.0.7", "bank", &[]),
        world.gateway("10.0.0.9", "infra", &gateway),
    ]
}

/// What is sent beside, some of it to stock Envoy only.
const ENVOY_ONLY: &str = r#"---
apiVersion: v1
kind: Service
metadata: {name: grpcweb, namespace: shop}
spec: {clusterIP: 10.1.0.8, selector: {app: web}, ports: [{name: grpc-web, port: 81, targetPort: 18083}]}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data:
  mesh: |
    accessLogFile: /dev/stdout
    accessLogEncoding: JSON
    proxyHttpPort: 15002
    enableTracing: true
    extensionProviders:
    - name: als
      envoyHttpAls: {service: web.shop.svc.cluster.local, port: 80}
    - name: tcp
      envoyTcpAls: {service: web.shop.svc.cluster.local, port: 80}
    - name: otel
      envoyOtelAls: {service: web.shop.svc.cluster.local, port: 80}
    - name: ext
      envoyExtAuthzHttp: {service: web.shop.svc.cluster.local, port: 80}
---
apiVersion: telemetry.istio.io/v1
kind: Telemetry
metadata: {name: logs, namespace: istio-system}
spec: {accessLogging: [{providers: [{name: als}, {name: tcp}, {name: otel}, {name: envoy}], filter: {expression: response.code >= 400}}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: ask, namespace: shop}
spec: {action: CUSTOM, provider: {name: ext}, rules: [{to: [{operation: {paths: [/ask, "/a/{*}/b"]}}], when: [{key: "request.auth.claims[a]", values: [b]}]}]}
---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: jwt, namespace: shop}
spec: {jwtRules: [{issuer: i, jwks: "{}"}]}
"#;

/// Compiles what the proxy's conversion let pass.
fn compile(listener: &Listener) {
    let sinks = LogSinks::start(1, std::sync::Arc::new(Collectors));
    let managers = listener.filter_chains.iter().chain(&listener.default_filter_chain).flat_map(|c| &c.filters);
    for filter in managers {
        let log = match filter {
            NetworkFilter::Http(manager) => {
                for filter in &manager.filters {
                    let compiled = filters::Filter::compile(filter, &mut Needs::default());
                    compiled.unwrap_or_else(|e| panic!("{}: {e:?}", listener.name));
                }
                if let RouteSource::Inline(routes) = &manager.routes {
                    RouteTable::compile(routes, &Default::default())
                        .unwrap_or_else(|e| panic!("{}: {e:?}", listener.name));
                }
                &manager.access_log
            }
            NetworkFilter::TcpProxy(proxy) => &proxy.access_log,
            _ => continue,
        };
        AccessLogs::compile(log, &sinks, &Place::default()).unwrap_or_else(|e| panic!("{}: {e:?}", listener.name));
    }
    AccessLogs::compile(&listener.access_log, &sinks, &Place::default())
        .unwrap_or_else(|e| panic!("{}: {e:?}", listener.name));
}

#[test]
fn our_proxy_reads_everything() {
    let world = World::new(&format!("{WIDE}{ENVOY_ONLY}"));
    let translator = &world.translator;
    let mut seen = 0;
    for view in views(&world) {
        for name in translator.names(world.index(), &view, TypeUrl::Listener).iter() {
            let listener = translator.generate(world.index(), &view, TypeUrl::Listener, name).unwrap();
            compile(&convert::listener(name, &listener.message()).unwrap_or_else(|e| panic!("{name}: {e:?}")));
            seen += 1;
            for need in listener.needs().iter().filter(|n| n.ty == TypeUrl::Route) {
                let routes = translator
                    .generate(world.index(), &view, TypeUrl::Route, &need.name)
                    .unwrap_or_else(|| panic!("{name} needs {}", need.name));
                let routes = convert::route(&need.name, &routes.message());
                let routes = routes.unwrap_or_else(|e| panic!("{}: {e:?}", need.name));
                RouteTable::compile(&routes, &Default::default()).unwrap_or_else(|e| panic!("{}: {e:?}", need.name));
                seen += 1;
            }
        }
    }
    assert!(seen > 30, "{seen}");
}

#[test]
fn bodies_need_not_be_text() {
    let mut world = World::new(WIDE);
    world.apply("apiVersion: v1\nkind: Service\nmetadata: {name: raw, namespace: shop}\nspec: {clusterIP: 10.1.0.9, ports: [{name: http, port: 80}]}\n---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: raw, namespace: shop}\nspec: {hosts: [raw], http: [{directResponse: {status: 200, body: {bytes: /wCA}}}]}\n");
    let view = world.sidecar("10.0.0.1", "shop", &[("app", "web")]);
    let routes = world.translator.generate(world.index(), &view, TypeUrl::Route, "80").unwrap();
    let read = convert::route("80", &routes.message()).unwrap();
    let actions = read.virtual_hosts.iter().flat_map(|h| &h.routes).map(|r| &r.action);
    let bodies = actions.filter_map(|a| match a {
        Action::DirectResponse { body, .. } => Some(body.to_vec()),
        _ => None,
    });
    assert!(bodies.collect::<Vec<_>>().contains(&vec![0xff, 0, 0x80]));
}

#[test]
fn proxies_share_what_is_equal_and_keep_what_did_not_change() {
    let mut world = World::new(WIDE);
    let get = |world: &World, view: &ProxyView, ty, name: &str| {
        world.translator.generate(world.index(), view, ty, name).unwrap()
    };
    let (one, two) = (
        world.sidecar("10.0.0.21", "shop", &[("app", "a"), ("tier", "1")]),
        world.sidecar("10.0.0.22", "shop", &[("app", "a"), ("tier", "2")]),
    );
    for (ty, name) in [(TypeUrl::Listener, "0.0.0.0_80"), (TypeUrl::Route, "80"), (TypeUrl::Listener, "10.1.0.1_5000")]
    {
        let (a, b) = (get(&world, &one, ty, name), get(&world, &two, ty, name));
        assert!(std::sync::Arc::ptr_eq(&a, &b), "{name} is one for both");
    }
    let before = [get(&world, &one, TypeUrl::Listener, "0.0.0.0_80"), get(&world, &one, TypeUrl::Route, "80")];
    world.apply("apiVersion: v1\nkind: Service\nmetadata: {name: more, namespace: shop}\nspec: {clusterIP: 10.1.0.7, ports: [{name: http, port: 80}]}\n");
    let after = [get(&world, &one, TypeUrl::Listener, "0.0.0.0_80"), get(&world, &one, TypeUrl::Route, "80")];
    assert!(std::sync::Arc::ptr_eq(&before[0], &after[0]), "the listener of the port stays");
    assert_ne!(before[1].hash(), after[1].hash(), "its routes do not");
    world.apply("apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: labels, namespace: shop}\nspec: {hosts: [more], http: [{match: [{sourceLabels: {tier: '1'}}], directResponse: {status: 404}}, {route: [{destination: {host: more}}]}]}\n");
    let (a, b) = (get(&world, &one, TypeUrl::Route, "80"), get(&world, &two, TypeUrl::Route, "80"));
    assert_ne!(a.hash(), b.hash(), "labels that rules ask for tell clients apart");
}

#[test]
fn a_policy_reaches_the_listener_of_its_workload() {
    let mut world = World::new(WIDE);
    let view = world.sidecar("10.0.0.1", "shop", &[("app", "web")]);
    let hash = |world: &World| {
        world.translator.generate(world.index(), &view, TypeUrl::Listener, "virtualInbound").unwrap().hash()
    };
    let before = hash(&world);
    world.apply("apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: default, namespace: shop}\nspec: {mtls: {mode: STRICT}}\n");
    let strict = hash(&world);
    assert_ne!(before, strict);
    world.apply("apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: other, namespace: shop}\nspec: {selector: {matchLabels: {app: other}}, action: DENY, rules: [{}]}\n");
    assert_eq!(hash(&world), strict, "a policy for others changes nothing here");
}

#[test]
fn another_name_that_a_client_does_not_import_comes_and_goes() {
    let sidecar = "apiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {name: narrow, namespace: shop}\nspec: {egress: [{hosts: ['./real.shop.svc.cluster.local']}]}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: real, namespace: shop}\nspec: {clusterIP: 10.1.0.9, ports: [{name: http, port: 80}]}\n";
    let alias = "apiVersion: v1\nkind: Service\nmetadata: {name: alias, namespace: shop}\nspec: {type: ExternalName, externalName: real.shop.svc.cluster.local, ports: [{name: http, port: 80}]}\n";
    let mut world = World::new(sidecar);
    let view = world.sidecar("10.0.0.1", "shop", &[]);
    let mut held = Mirror::new(view.clone(), &world.translator, world.index());
    let before = held.fingerprint();
    let change = world.apply(alias);
    held.learn(&world.translator, world.index(), &change);
    let with_alias = held.fingerprint();
    assert_ne!(before, with_alias);
    assert_eq!(with_alias, Mirror::new(view, &world.translator, world.index()).fingerprint());
    let alias = ObjectKey::new(Kind::Service, "shop", "alias");
    let change = world.change(vec![ObjectChange::Remove(alias)]);
    held.learn(&world.translator, world.index(), &change);
    assert_eq!(held.fingerprint(), before);
}
