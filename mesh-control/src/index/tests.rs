//! How objects show in the index, and that small steps lead where one big step does.

use std::{collections::BTreeSet, sync::Arc};

use proptest::prelude::*;

use super::{testing::*, *};
use crate::source::object::ObjectChange;

const SHOP: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  clusterIP: 10.96.0.1
  selector: {app: web}
  ports:
  - {name: http, port: 80, targetPort: 8080}
  - {name: grpc-api, port: 81, targetPort: api}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080}, {name: grpc-api, port: 9090}]
endpoints:
- {addresses: [10.0.0.1], conditions: {ready: true}, zone: eu-a}
- {addresses: [10.0.0.2], conditions: {ready: false}}
---
apiVersion: v1
kind: Pod
metadata:
  name: web-7d4b9c-x2x9z
  namespace: shop
  labels: {app: web, version: v1, pod-template-hash: 7d4b9c, security.istio.io/tlsMode: istio}
spec: {serviceAccountName: web, nodeName: n1, containers: [{name: app, ports: [{name: api, containerPort: 9090}]}]}
status: {phase: Running, podIP: 10.0.0.1, conditions: [{type: Ready, status: "True"}]}
"#;

fn web() -> ServiceKey {
    ServiceKey::new("web.shop.svc.cluster.local", "shop")
}

#[test]
fn slices_and_pods_become_endpoints() {
    let writer = writer(SHOP);
    let index = writer.index();
    let entry = index.service_entry(&web()).unwrap();
    let all: Vec<_> = entry.endpoints.iter().map(|(_, e)| e).collect();
    assert_eq!(all.len(), 2);
    assert_eq!((all[0].port(80), all[0].port(81), all[0].health), (Some(8080), Some(9090), Health::Healthy));
    assert_eq!((&*all[0].locality.zone, all[1].health), ("eu-a", Health::Unhealthy));
    assert_eq!(all[0].workload.telemetry("c"), "web;shop;web;v1;c".into());
    assert_eq!(entry.facts.accounts.iter().cloned().collect::<Vec<_>>(), [("shop".into(), "web".into())]);
    let view = sidecar(index, "shop", "10.0.0.1");
    assert_eq!(view.labels.get("version").map(String::as_str), Some("v1"));
    assert_eq!(view.targets.iter().map(|t| t.target_port).collect::<Vec<_>>(), [8080, 9090]);
    assert!(sidecar(index, "other", "10.0.0.1").targets.is_empty(), "services of another namespace are not its own");
}

#[test]
fn without_slices_the_selector_finds_pods() {
    let yaml: String = SHOP.split("---").filter(|d| !d.contains("EndpointSlice")).collect::<Vec<_>>().join("---");
    let writer = writer(&yaml);
    let found: Vec<_> = writer.index().endpoints(&web(), 81, &Labels::new()).map(|(_, port)| port).collect();
    assert_eq!(found, [9090], "a named port is the pod's");
}

#[test]
fn changes_are_exact() {
    let mut writer = writer(SHOP);
    assert!(apply(&mut writer, SHOP).is_empty(), "written anew");
    assert!(
        apply(&mut writer, &SHOP.replace("namespace: shop}\nspec", "namespace: shop, annotations: {a: b}}\nspec"))
            .is_empty()
    );
    let ready = apply(&mut writer, &SHOP.replace("ready: false", "ready: true"));
    assert!(ready.only_endpoints() && ready.addresses.is_empty(), "{ready:?}");
    assert_eq!(ready.endpoints, [web()].into());
    let moved = apply(&mut writer, &SHOP.replace("10.0.0.2", "10.0.0.3"));
    assert!(moved.only_endpoints());
    assert_eq!(moved.addresses.len(), 2);
    let ports = apply(&mut writer, &SHOP.replace("port: 80,", "port: 88,"));
    assert_eq!(ports.services, [web()].into());
    assert_eq!(ports.ports.get(&web()), Some(&[80, 81, 88].into()));
    let account = apply(&mut writer, &SHOP.replace("serviceAccountName: web", "serviceAccountName: shop"));
    assert_eq!(account.facts, [web()].into());
}

#[test]
fn service_entries_join_in_a_namespace_and_select_workloads() {
    let mut writer = writer(
        r#"
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: a, namespace: shop}
spec:
  hosts: [db.example.com]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8080}]
  workloadSelector: {labels: {app: db}}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: b, namespace: shop}
spec:
  hosts: [DB.example.com]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{number: 81, name: tcp, protocol: TCP}]
  endpoints: [{address: 10.1.0.9, weight: 3, locality: eu/a/1}]
"#,
    );
    let key = ServiceKey::new("db.example.com", "shop");
    assert_eq!(writer.index().services().count(), 1);
    let change = apply(
        &mut writer,
        r#"
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: vm, namespace: shop}
spec: {address: 10.1.0.1, labels: {app: db}, serviceAccount: db, ports: {http: 9000}}
"#,
    );
    assert_eq!((change.endpoints.len(), change.facts.len(), change.services.len()), (1, 1, 0));
    let at = |port| {
        let every = Labels::new();
        let all = writer.index().endpoints(&key, port, &every);
        all.map(|(e, p)| (e.ip().unwrap().to_string(), p)).collect::<Vec<_>>()
    };
    assert_eq!(at(80), [("10.1.0.1".to_owned(), 9000), ("10.1.0.9".to_owned(), 8080)]);
    let vm = writer.index().workloads_at("10.1.0.1".parse().unwrap());
    assert!(vm[0].mesh_tls, "a service account makes it a mesh workload");
}

#[test]
fn workloads_at_one_address_are_told_apart() {
    let vm = |name: &str, port: u16| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{name: {name}, namespace: shop}}\n\
             spec: {{address: 127.0.0.1, labels: {{app: {name}}}, ports: {{http: {port}}}}}\n---\n\
             apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\n\
             spec: {{clusterIP: 10.96.0.7, selector: {{app: {name}}}, ports: [{{name: http, port: 80}}]}}\n---\n"
        )
    };
    let writer = writer(&(vm("a", 1001) + &vm("b", 1002)));
    let view = |name: &str| {
        let id = format!("sidecar~127.0.0.1~{name}.shop~shop.svc.cluster.local");
        proxy(writer.index(), &id, mesh_api::node::NodeMetadata::default(), "")
    };
    let targets = |name| view(name).targets.iter().map(|t| t.target_port).collect::<Vec<_>>();
    assert_eq!((targets("a"), targets("b")), (vec![1001], vec![1002]));
    assert_eq!(view("b").labels.get("app").map(String::as_str), Some("b"));
}

#[test]
fn visibility_and_precedence() {
    let entry = |name: &str, ns: &str, export: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: {name}, namespace: {ns}}}\n\
             spec: {{hosts: [x.test], ports: [{{number: 80, name: http, protocol: HTTP}}], resolution: DNS, exportTo: [{export}]}}\n---\n"
        )
    };
    let mut writer = writer(&(entry("a", "b-ns", "\"*\"") + &entry("b", "a-ns", "\".\"")));
    let index = writer.index().clone();
    assert_eq!(&*index.service("x.test", "c").unwrap().service.key.namespace, "b-ns");
    assert_eq!(&*index.service("x.test", "a-ns").unwrap().service.key.namespace, "a-ns");
    let mesh = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata:\n  mesh: |\n    defaultDestinationRuleExportTo: [\".\"]\n    trustDomain: td.test\n";
    let change = apply(&mut writer, mesh);
    assert!(change.mesh && change.services.is_empty());
    assert_eq!((writer.index().trust_domain(), index.trust_domain()), ("td.test", "cluster.local"));
}

const RULES: &str = r#"
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: NAME, namespace: NS}
spec: {host: HOST, subsets: [{name: SUBSET, labels: {a: b}}], exportTo: [EXPORT]}
"#;

fn rule(name: &str, ns: &str, host: &str, subset: &str, export: &str) -> String {
    let texts = [("NAME", name), ("NS", ns), ("HOST", host), ("SUBSET", subset), ("EXPORT", export)];
    texts.iter().fold(RULES.to_owned() + "---\n", |t, (k, v)| t.replace(k, v))
}

#[test]
fn rules_of_client_then_service_then_root() {
    let mut writer = writer(SHOP);
    let names = |writer: &IndexWriter, ns: &str| {
        let index = writer.index();
        let found = index.destination_rules(&index.service_entry(&web()).unwrap().service, ns);
        found.iter().map(|r| r.spec.subsets.iter().map(|s| s.name.clone()).collect::<Vec<_>>()).next()
    };
    let host = "web.shop.svc.cluster.local";
    assert_eq!(names(&writer, "client"), None);
    let change = apply(&mut writer, &rule("r", "istio-system", "'*.cluster.local'", "root", "'*'"));
    assert_eq!(change.rules.keys().map(|h| &**h).collect::<Vec<_>>(), ["*.cluster.local"]);
    assert_eq!(names(&writer, "client"), Some(vec!["root".into()]));
    apply(&mut writer, &rule("s", "shop", "web", "own", "'.'"));
    assert_eq!(names(&writer, "client"), Some(vec!["root".into()]), "private to its namespace");
    assert_eq!(names(&writer, "shop"), Some(vec!["own".into()]));
    apply(&mut writer, &rule("t", "shop", host, "t", "'*'"));
    assert_eq!(names(&writer, "client"), Some(vec!["t".into()]));
    apply(&mut writer, &rule("c", "client", host, "c1", "'.'"));
    apply(&mut writer, &rule("d", "client", host, "c2", "'.'"));
    assert_eq!(names(&writer, "client"), Some(vec!["c1".into(), "c2".into()]), "rules of one host are merged");
    assert_eq!(writer.index().subset_names(host).len(), 5);
}

#[test]
fn peer_authentication_levels() {
    let policy = |ns: &str, name: &str, rest: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: {name}, namespace: {ns}}}\nspec: {rest}\n---\n"
        )
    };
    let yaml = policy("istio-system", "default", "{mtls: {mode: STRICT}}")
        + &policy("shop", "default", "{mtls: {mode: UNSET}}")
        + &policy("bank", "default", "{mtls: {mode: PERMISSIVE}}")
        + &policy(
            "bank",
            "w",
            "{selector: {matchLabels: {app: w}}, portLevelMtls: {8080: {mode: DISABLE}, 81: {mode: UNSET}}}",
        );
    let writer = writer(&yaml);
    let index = writer.index();
    let labels: Labels = [("app".to_owned(), "w".to_owned())].into();
    assert_eq!(index.peer_authn("x", &labels).port(1), Mtls::Strict);
    assert_eq!(index.peer_authn("shop", &labels).port(1), Mtls::Strict);
    let w = index.peer_authn("bank", &labels);
    assert_eq!((w.port(8080), w.port(81), w.port(1)), (Mtls::Disable, Mtls::Permissive, Mtls::Permissive));
}

/// A pool of objects that touch each other, each in two forms.
pub(crate) fn pool() -> Vec<Arc<crate::source::object::Object>> {
    let mut yaml = SHOP.to_owned();
    yaml += "---\napiVersion: v1\nkind: Pod\nmetadata: {name: b, namespace: shop, labels: {app: db, version: v2}}\nspec: {serviceAccountName: b}\nstatus: {phase: Running, podIP: 10.0.0.2}\n";
    yaml += "---\napiVersion: v1\nkind: Service\nmetadata: {name: db, namespace: shop}\nspec: {clusterIP: None, selector: {app: db}, ports: [{name: tcp, port: 5432}]}\n";
    yaml += "---\napiVersion: v1\nkind: Service\nmetadata: {name: alias, namespace: shop}\nspec: {type: ExternalName, externalName: web.shop.svc.cluster.local, ports: [{port: 80}]}\n";
    yaml += "---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: vm, namespace: shop}\nspec: {address: 10.0.0.5, labels: {app: db}, serviceAccount: vm}\n";
    yaml += "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: e, namespace: shop}\nspec: {hosts: [e.test, web.shop.svc.cluster.local], ports: [{number: 80, name: http, protocol: HTTP}], resolution: STATIC, location: MESH_INTERNAL, workloadSelector: {labels: {app: db}}}\n";
    yaml += "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: f, namespace: bank}\nspec: {hosts: [e.test], ports: [{number: 80, name: http, protocol: HTTP}], resolution: DNS, exportTo: ['*']}\n";
    yaml += "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata: {mesh: 'defaultServiceExportTo: [\".\"]'}\n";
    yaml += "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: v, namespace: shop}\nspec: {hosts: [web], http: [{route: [{destination: {host: web, subset: s}}]}]}\n";
    yaml += "---\napiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {name: default, namespace: shop}\nspec: {egress: [{hosts: ['./*']}]}\n";
    yaml += "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: default, namespace: shop}\nspec: {mtls: {mode: DISABLE}}\n---\n";
    yaml += &rule("r", "istio-system", "'*.cluster.local'", "root", "'*'");
    yaml += &rule("s", "shop", "web", "s", "'.'");
    yaml += &rule("t", "shop", "web.shop.svc.cluster.local", "t", "'*'");
    yaml += &rule("u", "bank", "e.test", "t", "'*'");
    let mut out = objects(&yaml);
    let changes = [
        ("10.0.0.2", "10.0.0.1"),
        ("app: db", "app: web"),
        ("version: v1", "version: v2"),
        ("port: 80", "port: 90"),
        ("number: 80", "number: 90"),
        ("STATIC", "NONE"),
        ("'*'", "'.'"),
        ("a: b", "a: c"),
        ("DISABLE", "STRICT"),
        ("name: s,", "name: s2,"),
        ("mesh: '", "mesh: 'trustDomain: x\n\n  "),
        ("./*", "bank/*"),
        ("serviceAccountName: web", "serviceAccountName: w2"),
    ];
    for (from, to) in changes {
        out.extend(objects(&yaml.replace(from, to)));
    }
    out
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    /// However the objects came and went, the index is that of what there is now.
    #[test]
    fn small_steps_lead_where_one_big_step_does(steps in prop::collection::vec((0usize..1000, any::<bool>(), 1usize..4), 1..40)) {
        let pool = pool();
        let mut stepwise = IndexWriter::new(Options::default());
        let mut batch = Vec::new();
        for (pick, keep, size) in steps {
            let object = &pool[pick % pool.len()];
            batch.push(if keep { ObjectChange::Upsert(object.clone()) } else { ObjectChange::Remove(object.key.clone()) });
            if batch.len() >= size {
                stepwise.apply(std::mem::take(&mut batch));
            }
        }
        stepwise.apply(batch);
        let mut at_once = IndexWriter::new(Options::default());
        at_once.apply(stepwise.index().all_objects().cloned().map(ObjectChange::Upsert).collect());
        prop_assert!(stepwise.index() == at_once.index(), "{}", difference(stepwise.index(), at_once.index()));
        prop_assert!(stepwise.apply(at_once.index().all_objects().cloned().map(ObjectChange::Upsert).collect()).is_empty());
    }
}

fn difference(a: &Index, b: &Index) -> String {
    let keys: BTreeSet<_> = a.services.keys().chain(b.services.keys()).collect();
    for key in keys {
        if a.services.get(key) != b.services.get(key) {
            return format!("{:#?}\n{:#?}", a.services.get(key), b.services.get(key));
        }
    }
    format!(
        "served {} selecting {} aliases {} rules {} vs {} workloads {} slices {} declared {} mesh {}",
        a.served == b.served,
        a.selecting == b.selecting,
        a.aliases == b.aliases,
        a.rules == b.rules,
        a.virtual_services == b.virtual_services,
        a.workloads == b.workloads,
        a.slices == b.slices,
        a.declared == b.declared,
        a.mesh == b.mesh
    )
}

#[test]
fn services_inherit_traffic_distribution() {
    let mut world = crate::translate::testing::World::new(
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, annotations: {networking.istio.io/traffic-distribution: preferclose}}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: a, namespace: shop}\nspec: {clusterIP: 10.1.0.1, ports: [{port: 80}]}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: b, namespace: shop, annotations: {networking.istio.io/traffic-distribution: Any}}\nspec: {clusterIP: 10.1.0.2, ports: [{port: 80}]}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: c, namespace: shop, annotations: {networking.istio.io/traffic-distribution: PreferClose}}\nspec: {clusterIP: 10.1.0.3, trafficDistribution: PreferSameNode, ports: [{port: 80}]}\n",
    );
    let near = |world: &crate::translate::testing::World, name: &str| {
        let key = ServiceKey::new(&format!("{name}.shop.svc.cluster.local"), "shop");
        world.index().service_entry(&key).unwrap().service.prefer_near
    };
    assert_eq!(near(&world, "a"), Some(Nearness::Zone));
    assert_eq!((near(&world, "b"), near(&world, "c")), (None, Some(Nearness::Node)));
    world.apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n");
    assert_eq!(near(&world, "a"), None);
}

#[test]
fn ports_of_udp_stand_for_none_of_tcp() {
    let world = crate::translate::testing::World::new(
        "apiVersion: v1\nkind: Service\nmetadata: {name: a, namespace: shop}\nspec: {clusterIP: 10.1.0.1, ports: [{name: quic, port: 443, protocol: UDP}, {name: https, port: 443}, {name: dns, port: 53, protocol: UDP}]}\n",
    );
    let key = ServiceKey::new("a.shop.svc.cluster.local", "shop");
    let ports = &world.index().service_entry(&key).unwrap().service.ports;
    assert_eq!(ports.iter().map(|p| &*p.name).collect::<Vec<_>>(), ["https", "dns"]);
}

#[test]
fn pods_stand_where_their_node_does() {
    let node = |zone: &str| {
        format!(
            "apiVersion: v1\nkind: Node\nmetadata: {{name: n1, labels: {{topology.kubernetes.io/region: eu, topology.kubernetes.io/zone: {zone}}}}}\n"
        )
    };
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: shop}\nspec: {nodeName: n1}\nstatus: {podIP: 10.0.0.1}\n";
    let mut writer = writer(pod);
    let at = |writer: &IndexWriter| {
        writer
            .index()
            .workloads_at("10.0.0.1".parse().unwrap())
            .iter()
            .map(|w| w.locality.to_string())
            .collect::<Vec<_>>()
    };
    assert_eq!(at(&writer), [""]);
    let change = apply(&mut writer, &node("a"));
    assert_eq!((at(&writer), change.addresses.len()), (vec!["eu/a".to_owned()], 1));
    apply(&mut writer, &node("b"));
    assert_eq!(at(&writer), ["eu/b"]);
    assert!(apply(&mut writer, &node("b")).is_empty(), "what a node says every few seconds is no change");
    writer.apply(vec![ObjectChange::Remove(ObjectKey::new(Kind::Node, "", "n1"))]);
    assert_eq!(at(&writer), [""]);
}
