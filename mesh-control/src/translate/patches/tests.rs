use std::sync::Arc;

use mesh_api::xds::TypeUrl;

use super::super::testing::World;
use crate::{
    view::ProxyView,
    xds::{
        encoded::Encoded,
        generator::{Affected, Generator as _},
    },
};

const MESH: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.0.0.1, ports: [{name: http, port: 80}]}
";
const WEB: &str = "outbound|80||web.shop.svc.cluster.local";

fn filter(namespace: &str, name: &str, rest: &str, patches: &str) -> String {
    format!(
        "\n---\napiVersion: networking.istio.io/v1alpha3\nkind: EnvoyFilter\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
         spec: {{{rest}configPatches: [{patches}]}}\n"
    )
}

/// A patch that leaves its mark on every cluster.
fn mark(mark: &str) -> String {
    format!("{{applyTo: CLUSTER, patch: {{operation: MERGE, value: {{alt_stat_name: {mark}}}}}}}")
}

fn get(world: &World, view: &ProxyView, ty: TypeUrl, name: &str) -> Option<Arc<Encoded>> {
    world.translator.generate(world.index(), view, ty, name)
}

/// The mark on the service's cluster.
fn marked(world: &World, view: &ProxyView) -> String {
    let bytes = get(world, view, TypeUrl::Cluster, WEB).unwrap().message();
    let text = String::from_utf8_lossy(&bytes).into_owned();
    ["early", "root", "own", "late", "one", "two"].into_iter().filter(|m| text.contains(&format!("mark-{m}"))).collect()
}

#[test]
fn attached_by_namespace_and_selector_and_applied_in_order() {
    let mut world = World::new(MESH);
    world.apply(
        &[
            filter("istio-system", "z", "", &mark("mark-root")),
            filter("shop", "a", "workloadSelector: {labels: {app: web}}, ", &mark("mark-own")),
            filter("other", "late", "priority: 5, ", &mark("mark-late")),
        ]
        .concat(),
    );
    let web = world.sidecar("10.1.0.1", "shop", &[("app", "web")]);
    let api = world.sidecar("10.1.0.2", "shop", &[("app", "api")]);
    let gateway = world.gateway("10.1.0.3", "istio-system", &[("istio", "ingressgateway")]);
    assert_eq!([&web, &api, &gateway].map(|v| marked(&world, v)), ["own", "root", "root"]);
    world.apply(&filter("istio-system", "late", "priority: 1, ", &mark("mark-late")));
    world.apply(&filter("shop", "early", "priority: -1, ", &mark("mark-early")));
    let again = world.index().view(web);
    assert_eq!(marked(&world, &again), "late");
    let names: Vec<_> = again.envoy_filters.iter().map(|o| o.key.name.to_string()).collect();
    assert_eq!(names, ["early", "z", "a", "late"]);
}

#[test]
fn attached_by_reference_to_gateways_of_their_namespace() {
    let mut world = World::new(MESH);
    let target = "targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: gw}], ";
    world.apply(&filter("shop", "a", target, &mark("mark-own")));
    let label = "gateway.networking.k8s.io/gateway-name";
    let attached = |ns: &str, labels: &[(&str, &str)]| world.gateway("10.1.0.3", ns, labels).envoy_filters.len();
    assert_eq!(attached("shop", &[(label, "gw")]), 1);
    assert_eq!(attached("shop", &[(label, "other")]), 0);
    assert_eq!(attached("other", &[(label, "gw")]), 0);
    assert_eq!(attached("shop", &[("app", "gw")]), 0);
}

#[test]
fn a_change_reaches_those_it_is_for() {
    let mut world = World::new(MESH);
    let web = world.sidecar("10.1.0.1", "shop", &[("app", "web")]);
    let other = world.sidecar("10.1.0.2", "other", &[("app", "web")]);
    let before = get(&world, &web, TypeUrl::Cluster, WEB).unwrap();
    let yaml = filter("shop", "a", "", &mark("mark-one"));
    let mut apply = |yaml: &str| {
        let objects = crate::source::manifest::read("test.yaml".as_ref(), yaml);
        let objects = objects
            .into_iter()
            .filter_map(|r| r.object)
            .map(|o| crate::source::object::ObjectChange::Upsert(Arc::new(o)));
        world.change(objects.collect())
    };
    let change = apply(&yaml);
    assert!(world.translator.affected(world.index(), &change, &web).view);
    assert_eq!(world.translator.affected(world.index(), &change, &other), Affected::none());
    let now = world.index().view(web.clone());
    assert!(now != web && world.index().view(other.clone()) == other);
    assert_eq!(marked(&world, &now), "one");
    // What others have is what it was, byte for byte and the very same bytes.
    assert!(Arc::ptr_eq(&before, &get(&world, &other, TypeUrl::Cluster, WEB).unwrap()));
}

#[test]
fn proxies_of_one_set_share_what_is_patched() {
    let mut world = World::new(MESH);
    world.apply(&filter("shop", "a", "", &mark("mark-one")));
    let (a, b) =
        (world.sidecar("10.1.0.1", "shop", &[("app", "a")]), world.sidecar("10.1.0.2", "shop", &[("app", "b")]));
    let of = |world: &World, view: &ProxyView| get(world, view, TypeUrl::Cluster, WEB).unwrap();
    let first = of(&world, &a);
    assert!(Arc::ptr_eq(&first, &of(&world, &b)));
    world.apply(&filter("shop", "a", "", &mark("mark-two")));
    let (a, b) = (world.index().view(a), world.index().view(b));
    assert_eq!(marked(&world, &a), "two");
    assert!(Arc::ptr_eq(&of(&world, &a), &of(&world, &b)));
    // Written anew with the same content.
    world.apply(&filter("shop", "a", "", &mark("mark-one")));
    assert_eq!(of(&world, &world.index().view(a)).hash(), first.hash());
}

#[test]
fn added_resources_are_in_the_wildcard_and_removed_ones_are_not_there() {
    let mut world = World::new(MESH);
    let before = world.sidecar("10.1.0.1", "shop", &[]);
    let plain = world.translator.names(world.index(), &before, TypeUrl::Cluster).len();
    let patches = format!(
        "{{applyTo: CLUSTER, patch: {{operation: ADD, value: {{name: new, type: STATIC}}}}}}, \
         {{applyTo: CLUSTER, match: {{cluster: {{name: '{WEB}'}}}}, patch: {{operation: REMOVE}}}}"
    );
    world.apply(&filter("shop", "a", "", &patches));
    let view = world.index().view(before);
    let names = world.translator.names(world.index(), &view, TypeUrl::Cluster);
    assert_eq!(names.len(), plain + 1);
    assert!(names.iter().any(|n| **n == *"new"));
    assert!(get(&world, &view, TypeUrl::Cluster, "new").is_some());
    assert!(get(&world, &view, TypeUrl::Cluster, WEB).is_none());
}

#[test]
fn what_cannot_be_applied_is_found_until_it_can() {
    let mut world = World::new(MESH);
    let bad =
        "{applyTo: CLUSTER, match: {cluster: {portNumber: 80}}, patch: {operation: MERGE, value: {name: renamed}}}";
    world.apply(&filter("shop", "a", "", bad));
    let view = world.sidecar("10.1.0.1", "shop", &[]);
    assert!(world.translator.findings(world.index()).is_empty());
    assert!(get(&world, &view, TypeUrl::Cluster, WEB).is_some());
    let found = world.translator.findings(world.index());
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].field, "spec.configPatches[0].patch.value");
    assert!(found[0].message.contains(WEB), "{found:?}");
    world.apply(&filter("shop", "a", "", &mark("mark-one")));
    assert!(world.translator.findings(world.index()).is_empty());
}
