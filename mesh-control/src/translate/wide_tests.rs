//! A configuration that uses everything: what comes out is read by our own proxy, and comes out again only where
//! something changed.

use mesh_api::xds::TypeUrl;
use mesh_proxy::xds::convert;

use super::testing::World;
use crate::{view::ProxyView, xds::generator::Generator};

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

#[test]
fn our_proxy_reads_everything() {
    let world = World::new(WIDE);
    let translator = &world.translator;
    let mut seen = 0;
    for view in views(&world) {
        for name in translator.names(world.index(), &view, TypeUrl::Listener).iter() {
            let listener = translator.generate(world.index(), &view, TypeUrl::Listener, name).unwrap();
            convert::listener(name, &listener.message()).unwrap_or_else(|e| panic!("{name}: {e:?}"));
            seen += 1;
            for need in listener.needs().iter().filter(|n| n.ty == TypeUrl::Route) {
                let routes = translator
                    .generate(world.index(), &view, TypeUrl::Route, &need.name)
                    .unwrap_or_else(|| panic!("{name} needs {}", need.name));
                convert::route(&need.name, &routes.message()).unwrap_or_else(|e| panic!("{}: {e:?}", need.name));
                seen += 1;
            }
        }
    }
    assert!(seen > 30, "{seen}");
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
