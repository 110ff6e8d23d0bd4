//! From manifests to clusters and endpoints, as proxies get them; and that changes are announced exactly.

use std::{collections::BTreeMap, sync::Arc};

use mesh_api::{
    model::{
        Cluster, Discovery, HttpVersionChoice, LbPolicy, Name, SanKind, SdsSource, StringPattern, TlsVersion,
        UpstreamTls,
    },
    node::NodeMetadata,
    xds::TypeUrl,
};
use proptest::prelude::*;

use super::{clusters, *};
use crate::{
    index::{Index, IndexWriter, Options, testing::*, tests::pool},
    source::object::ObjectChange,
    view::ProxyView,
    xds::generator::{Generator, Names},
};

const MESH: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  clusterIP: 10.96.0.1
  ports: [{name: http, port: 80, targetPort: 8080}, {name: grpc, port: 81}, {name: x, port: 82}, {name: d, port: 53, protocol: UDP}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080}, {name: grpc, port: 81}, {name: x, port: 82}]
endpoints: [{addresses: [10.0.0.1]}, {addresses: [10.0.0.2]}, {addresses: [10.0.0.3], conditions: {ready: false}}]
---
apiVersion: v1
kind: Pod
metadata: {name: web-a, namespace: shop, labels: {app: web, version: v1, security.istio.io/tlsMode: istio, istio-locality: eu.a.1}}
spec: {serviceAccountName: web}
status: {phase: Running, podIP: 10.0.0.1}
---
apiVersion: v1
kind: Pod
metadata: {name: web-b, namespace: shop, labels: {app: web, version: v2, istio-locality: us.b.1}}
spec: {serviceAccountName: web2}
status: {phase: Running, podIP: 10.0.0.2}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: web, namespace: shop}
spec:
  host: web
  subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]
"#;

const HOST: &str = "web.shop.svc.cluster.local";

/// A cluster as the model, by way of the same maker.
fn cluster(index: &Index, view: &ProxyView, name: &str) -> Option<Cluster> {
    let translator = Translator::new();
    let scope = translator.scope(index, view);
    clusters::model(Request { index, view, scope: &scope }, name)
}

/// Addresses of an assignment by locality and priority, with weights.
fn assignment(index: &Index, view: &ProxyView, name: &str) -> Vec<(String, u32, u32, Vec<String>)> {
    let translator = Translator::new();
    let scope = translator.scope(index, view);
    let request = Request { index, view, scope: &scope };
    let set = endpoints::model(request, name).unwrap();
    set.localities
        .iter()
        .map(|l| {
            let addresses = l.endpoints.iter().map(|e| e.address.to_string()).collect();
            (l.locality.to_string(), l.priority, l.weight.unwrap(), addresses)
        })
        .collect()
}

fn at(index: &Index, locality: &str) -> ProxyView {
    proxy(index, "sidecar~10.7.7.7~c.client~client.svc.cluster.local", NodeMetadata::default(), locality)
}

fn mesh_tls(c: &Cluster) -> &UpstreamTls {
    let [istio, plain] = c.tls_matches.as_slice() else { panic!("{:?}", c.tls_matches) };
    assert_eq!((&*istio.name, istio.labels["tlsMode"].as_str()), ("tlsMode-istio", "istio"));
    assert_eq!((&*plain.name, &plain.tls, plain.labels.len()), ("tlsMode-disabled", &None, 0));
    istio.tls.as_ref().unwrap()
}

#[test]
fn names_of_a_sidecar_and_a_gateway() {
    let writer = writer(MESH);
    let index = writer.index();
    let translator = Translator::new();
    let names = |view: &ProxyView| translator.names(index, view, TypeUrl::Cluster);
    let text = |list: &Arc<[Name]>| list.iter().map(|n| n.to_string()).collect::<Vec<_>>().join(" ");
    let outbound = "outbound|80||H outbound|80|v1|H outbound|80|v2|H outbound|81||H outbound|81|v1|H outbound|81|v2|H \
                    outbound|82||H outbound|82|v1|H outbound|82|v2|H"
        .replace('H', HOST);
    let web = sidecar(index, "shop", "10.0.0.1");
    assert_eq!(
        text(&names(&web)),
        format!(
            "{outbound} BlackHoleCluster PassthroughCluster inbound|81|| inbound|82|| inbound|8080|| InboundPassthroughCluster"
        )
    );
    assert_eq!(text(&names(&gateway(index, "x"))), format!("{outbound} BlackHoleCluster"));
    assert!(Arc::ptr_eq(&names(&sidecar(index, "c", "10.7.7.7")), &names(&sidecar(index, "c", "10.7.7.8"))));
    for name in names(&web).iter() {
        assert!(translator.generate(index, &web, TypeUrl::Cluster, name).is_some(), "{name}");
    }
    for absent in ["outbound|83||", "outbound|80|v3|", "outbound|53||", "inbound|1||"].map(|n| format!("{n}{HOST}")) {
        assert!(translator.generate(index, &web, TypeUrl::Cluster, &absent).is_none(), "{absent}");
        assert!(translator.generate(index, &web, TypeUrl::Endpoints, &absent).is_none(), "{absent}");
    }
}

#[test]
fn outbound_cluster_with_automatic_mtls() {
    let writer = writer(MESH);
    let index = writer.index();
    let view = at(index, "");
    let c = cluster(index, &view, &format!("outbound|80|v1|{HOST}")).unwrap();
    assert_eq!(c.discovery, Discovery::Eds { service: c.name.clone() });
    assert_eq!(
        (c.lb.clone(), c.http.version),
        (LbPolicy::LeastRequest { choices: 2, active_request_bias: 1.0, slow_start: None }, HttpVersionChoice::Http1)
    );
    assert_eq!((c.connect_timeout.as_secs(), c.circuit_breakers[0].max_retries), (10, u32::MAX));
    assert_eq!(&*c.origin.config, "/apis/networking.istio.io/v1/namespaces/shop/destination-rule/web");
    assert_eq!(
        c.metadata["istio"],
        serde_json::json!({"default_original_port": 80, "services": [{"host": HOST, "name": "web", "namespace": "shop"}], "subset": "v1"})
    );
    let tls = mesh_tls(&c);
    assert_eq!(*tls.sni, *format!("outbound_.80_.v1_.{HOST}"));
    assert_eq!((tls.common.min_version, tls.common.max_version), (Some(TlsVersion::V1_3), Some(TlsVersion::V1_3)));
    assert_eq!(tls.common.alpn.iter().map(|a| &**a).collect::<Vec<_>>(), ["istio-peer-exchange", "istio"]);
    let validation = tls.common.validation.clone().unwrap();
    assert_eq!(validation.sds.clone().unwrap().source, SdsSource::Cluster("sds-grpc".into()));
    let sans = validation.inline.unwrap().san_matchers;
    let names: Vec<_> = sans.iter().map(|s| (s.kind, s.matcher.pattern.clone())).collect();
    let uri = |sa: &str| (SanKind::Uri, StringPattern::Exact(format!("spiffe://cluster.local/ns/shop/sa/{sa}").into()));
    assert_eq!(names, [uri("web"), uri("web2")]);
    let grpc = cluster(index, &view, &format!("outbound|81||{HOST}")).unwrap();
    assert_eq!(grpc.http.version, HttpVersionChoice::Http2);
    assert_eq!(mesh_tls(&grpc).common.alpn.len(), 3);
    let unnamed = format!("outbound|82||{HOST}");
    assert_eq!(cluster(index, &view, &unnamed).unwrap().http.version, HttpVersionChoice::Downstream);
    assert_eq!(cluster(index, &gateway(index, "x"), &unnamed).unwrap().http.version, HttpVersionChoice::Http1);
}

#[test]
fn rules_and_policies_decide_tls() {
    let mut writer = writer(MESH);
    let name = format!("outbound|80||{HOST}");
    let get = |writer: &IndexWriter| cluster(writer.index(), &at(writer.index(), ""), &name).unwrap();
    let rule = |tls: &str| MESH.replace("host: web\n", &format!("host: web\n  trafficPolicy: {{tls: {tls}}}\n"));
    apply(&mut writer, &rule("{mode: DISABLE}"));
    assert!(get(&writer).tls.is_none() && get(&writer).tls_matches.is_empty());
    apply(&mut writer, &rule("{mode: ISTIO_MUTUAL, subjectAltNames: [spiffe://x/ns/a/sa/b]}"));
    let own = get(&writer).tls.unwrap();
    assert_eq!((own.common.validation.unwrap().inline.unwrap().san_matchers.len(), own.sni.is_empty()), (1, false));
    apply(&mut writer, &rule("{mode: SIMPLE}"));
    let c = get(&writer);
    assert!(c.http.auto_sni && c.http.auto_san_validation);
    let tls = c.tls.unwrap();
    assert_eq!((tls.common.certificates.len(), &*tls.sni), (0, ""));
    assert_eq!(&*tls.common.validation.unwrap().sds.unwrap().name, "file-root:system");
    assert_eq!(c.metadata["istio"]["alpn_override"], "false");
    apply(
        &mut writer,
        &rule(
            "{mode: MUTUAL, sni: a.test, clientCertificate: /c, privateKey: /k, caCertificates: /r, subjectAltNames: [b.test]}",
        ),
    );
    let c = get(&writer);
    assert!(!c.http.auto_sni && !c.http.auto_san_validation);
    let common = c.tls.unwrap().common;
    let text = format!("{:?} {:?}", common.certificates, common.validation);
    assert!(["file-cert:/c~/k", "file-root:/r", "b.test"].iter().all(|t| text.contains(t)), "{text}");
    apply(&mut writer, MESH);
    apply(
        &mut writer,
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: d, namespace: shop}\nspec: {mtls: {mode: DISABLE}}",
    );
    assert!(get(&writer).tls_matches.is_empty());
}

#[test]
fn endpoints_by_subset_policy_and_locality() {
    let mut writer = writer(MESH);
    let get = |writer: &IndexWriter, subset: &str, locality: &str| {
        assignment(writer.index(), &at(writer.index(), locality), &format!("outbound|80|{subset}|{HOST}"))
    };
    let row = |locality: &str, priority: u32, weight: u32, address: &str| {
        (locality.to_owned(), priority, weight, vec![address.to_owned()])
    };
    let (eu, us) = (row("eu/a/1", 0, 1, "10.0.0.1:8080"), row("us/b/1", 0, 1, "10.0.0.2:8080"));
    assert_eq!(get(&writer, "", "eu/a/1"), [eu.clone(), us.clone()], "no order without outlier detection");
    assert_eq!(get(&writer, "v2", "eu/a/1"), std::slice::from_ref(&us));
    let with = |policy: &str| MESH.replace("host: web\n", &format!("host: web\n  trafficPolicy: {policy}\n"));
    apply(&mut writer, &with("{outlierDetection: {consecutive5xxErrors: 3}}"));
    assert_eq!(
        get(&writer, "", "us/b/2"),
        [row("us/b/1", 0, 1, "10.0.0.2:8080"), row("eu/a/1", 1, 1, "10.0.0.1:8080")]
    );
    apply(
        &mut writer,
        &with("{loadBalancer: {localityLbSetting: {distribute: [{from: eu/*, to: {'eu/a/*': 80, 'us/*': 20}}]}}}"),
    );
    assert_eq!(
        get(&writer, "", "eu/a/1"),
        [row("eu/a/1", 0, 80, "10.0.0.1:8080"), row("us/b/1", 0, 20, "10.0.0.2:8080")]
    );
    assert_eq!(get(&writer, "", "us/b/1"), [eu, us], "not from there");
    let labels = "{outlierDetection: {}, loadBalancer: {localityLbSetting: {failoverPriority: ['version=v2', topology.kubernetes.io/region]}}}";
    apply(&mut writer, &with(labels));
    assert_eq!(
        get(&writer, "", "eu/a/1"),
        [row("us/b/1", 0, 1, "10.0.0.2:8080"), row("eu/a/1", 1, 1, "10.0.0.1:8080")]
    );
    apply(&mut writer, &with("{loadBalancer: {zoneAwareLbSetting: {}}}"));
    assert_eq!(
        get(&writer, "", "us/c/1"),
        [row("us/b/1", 0, 1, "10.0.0.2:8080"), row("eu/a/1", 1, 1, "10.0.0.1:8080")],
        "the region comes first, without outlier detection too"
    );
}

#[test]
fn endpoints_tell_who_they_are() {
    let mut writer = writer(MESH);
    let endpoints = |writer: &IndexWriter| {
        let index = writer.index();
        let view = at(index, "");
        let name = format!("outbound|80||{HOST}");
        let scope = Translator::new().scope(index, &view);
        let set = endpoints::model(Request { index, view: &view, scope: &scope }, &name).unwrap();
        set.localities.into_iter().flat_map(|l| l.endpoints).collect::<Vec<_>>()
    };
    let found = endpoints(&writer);
    assert_eq!(&*found[0].workload, "web-a;shop;web;v1;Kubernetes");
    assert_eq!((found[0].tls_labels.len(), found[1].tls_labels.len()), (1, 0));
    apply(
        &mut writer,
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: d, namespace: shop}\nspec: {selector: {matchLabels: {version: v1}}, portLevelMtls: {8080: {mode: DISABLE}}}",
    );
    assert!(endpoints(&writer)[0].tls_labels.is_empty(), "its own policy wants cleartext");
}

#[test]
fn resolutions() {
    let entry = |name: &str, rest: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: {name}, namespace: shop}}\n\
             spec: {{hosts: [{name}.test], ports: [{{number: 80, name: http, protocol: HTTP, targetPort: 8080}}], {rest}}}\n---\n"
        )
    };
    let yaml = entry("dns", "resolution: DNS")
        + &entry("one", "resolution: DNS_ROUND_ROBIN, endpoints: [{address: a.test}]")
        + &entry("none", "resolution: NONE")
        + &entry("static", "resolution: STATIC, endpoints: [{address: 10.1.1.1, weight: 0}]")
        + "apiVersion: v1\nkind: Service\nmetadata: {name: headless, namespace: shop}\nspec: {clusterIP: None, ports: [{name: tcp, port: 80}]}\n---\n\
           apiVersion: v1\nkind: Service\nmetadata: {name: alias, namespace: shop}\nspec: {type: ExternalName, externalName: dns.test, ports: [{port: 80}]}\n";
    let writer = writer(&yaml);
    let index = writer.index();
    let view = at(index, "");
    let get = |host: &str| cluster(index, &view, &format!("outbound|80||{host}"));
    let dns = get("dns.test").unwrap();
    let Discovery::StrictDns(set) = &dns.discovery else { panic!("{dns:?}") };
    assert_eq!(set.localities[0].endpoints[0].address.to_string(), "dns.test:8080");
    assert!(dns.respect_dns_ttl && dns.tls_matches.is_empty() && dns.metadata["istio"]["external"] == true);
    assert!(matches!(get("one.test").unwrap().discovery, Discovery::LogicalDns(_)));
    let none = get("none.test").unwrap();
    assert!(matches!(none.discovery, Discovery::OriginalDst { port_override: Some(8080), .. }));
    assert_eq!(none.lb, LbPolicy::ClusterProvided);
    assert!(matches!(get("static.test").unwrap().discovery, Discovery::Eds { .. }));
    assert_eq!(assignment(index, &view, "outbound|80||static.test")[0].2, 1, "weight 0 counts as 1");
    let headless = "outbound|80||headless.shop.svc.cluster.local";
    let c = cluster(index, &view, headless).unwrap();
    assert!(matches!(c.discovery, Discovery::OriginalDst { .. }) && c.tls.is_none(), "nobody there speaks mesh TLS");
    assert!(matches!(cluster(index, &gateway(index, "x"), headless).unwrap().discovery, Discovery::Eds { .. }));
    assert!(get("alias.shop.svc.cluster.local").is_none());
}

#[test]
fn inbound_clusters() {
    let mut writer = writer(MESH);
    let get = |writer: &IndexWriter, meta: NodeMetadata| {
        let index = writer.index();
        let view = proxy(index, "sidecar~10.0.0.1~web-a.shop~shop.svc.cluster.local", meta, "");
        let scope = Translator::new().scope(index, &view);
        clusters::inbound(Request { index, view: &view, scope: &scope })
    };
    let found = get(&writer, NodeMetadata::default());
    assert_eq!(found.iter().map(|c| &*c.name).collect::<Vec<_>>(), ["inbound|81||", "inbound|82||", "inbound|8080||"]);
    assert!(matches!(found[0].discovery, Discovery::OriginalDst { .. }));
    assert_eq!(
        (found[0].bind_source.unwrap().to_string().as_str(), found[0].http.version),
        ("127.0.0.6:0", HttpVersionChoice::Http2)
    );
    let none = NodeMetadata { interception_mode: "NONE".into(), ..NodeMetadata::default() };
    assert!(get(&writer, none.clone()).is_empty());
    apply(
        &mut writer,
        "apiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {name: s, namespace: shop}\nspec:\n  ingress:\n  - {port: {number: 9000, protocol: HTTP, name: http}, captureMode: NONE, defaultEndpoint: '127.0.0.1:8080', connectionPool: {tcp: {maxConnections: 3}}}\n  - {port: {number: 9001, protocol: TCP, name: tcp}, defaultEndpoint: 'unix:///x'}\n",
    );
    let found = get(&writer, none);
    assert_eq!(found.iter().map(|c| &*c.name).collect::<Vec<_>>(), ["inbound|9000||", "inbound|9001||"]);
    let Discovery::Static(set) = &found[0].discovery else { panic!("{:?}", found[0]) };
    assert_eq!(set.localities[0].endpoints[0].address.to_string(), "127.0.0.1:8080");
    assert_eq!((found[0].circuit_breakers[0].max_connections, found[0].bind_source), (3, None));
}

#[test]
fn sidecars_see_what_they_import() {
    let mut yaml = MESH.to_owned();
    for (name, ns) in [("a", "one"), ("b", "one"), ("a", "two"), ("c", "two")] {
        yaml += &format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {ns}}}\nspec: {{clusterIP: 10.96.1.1, ports: [{{name: http, port: 80}}, {{name: tcp, port: 90}}]}}\n"
        );
    }
    yaml += "---\napiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {name: s, namespace: one}\nspec:\n  egress:\n  - {port: {number: 80, protocol: HTTP, name: http}, hosts: ['two/*']}\n  - {hosts: ['./a.one.svc.cluster.local', '~/*']}\n";
    yaml += "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: v, namespace: one}\nspec: {hosts: [a], http: [{route: [{destination: {host: web.shop.svc.cluster.local, port: {number: 81}}}]}]}\n";
    let writer = writer(&yaml);
    let index = writer.index();
    let view = sidecar(index, "one", "10.7.7.7");
    let scope = Translator::new().scope(index, &view);
    let shown: BTreeMap<String, Vec<u16>> = scope
        .services()
        .iter()
        .map(|s| (s.service.key.host.to_string(), s.ports().map(|p| p.port).collect()))
        .collect();
    let expected = [
        ("a.two.svc.cluster.local", vec![80]),
        ("c.two.svc.cluster.local", vec![80]),
        ("a.one.svc.cluster.local", vec![80, 90]),
        (HOST, vec![81]),
    ];
    assert_eq!(shown, expected.map(|(h, p)| (h.to_owned(), p)).into());
    assert_eq!(scope.egress()[0].port().map(|p| p.0), Some(80));
    assert_eq!((scope.egress()[1].services.len(), scope.egress()[1].virtual_services.len()), (1, 1));
    assert_eq!(scope.outbound_mode(index), mesh_api::meshconfig::OutboundPolicyMode::AllowAny);
}

#[test]
fn gateways_forward_by_server_name() {
    let gateway_object = "---\napiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: ew, namespace: shop}\nspec: {servers: [{port: {number: 15443, name: tls, protocol: TLS}, tls: {mode: AUTO_PASSTHROUGH}, hosts: ['*.local']}]}\n";
    let writer = writer(&(MESH.to_owned() + gateway_object));
    let index = writer.index();
    let name = format!("outbound_.80_.v1_.{HOST}");
    let translator = Translator::new();
    let view = gateway(index, "shop");
    assert!(translator.names(index, &view, TypeUrl::Cluster).iter().any(|n| **n == *name));
    let c = cluster(index, &view, &name).unwrap();
    assert!(c.tls.is_none() && c.tls_matches.is_empty(), "clients encrypted already");
    assert_eq!(assignment(index, &view, &name).len(), 1);
}

#[test]
fn namespaces_that_are_not_discovered_do_not_count() {
    let mut writer = writer(MESH);
    let mesh = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata:\n  mesh: |\n    discoverySelectors: [{matchExpressions: [{key: mesh, operator: In, values: ['yes']}]}]\n";
    let change = apply(&mut writer, mesh);
    assert!(change.services.len() == 1 && writer.index().services().count() == 0);
    apply(&mut writer, "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {mesh: 'yes'}}\n");
    let index = writer.index();
    assert!(cluster(index, &at(index, ""), &format!("outbound|80|v1|{HOST}")).is_some(), "service and rule are back");
}

#[test]
fn grpc_clients_get_what_they_understand() {
    let writer = writer(MESH);
    let index = writer.index();
    let meta = NodeMetadata { generator: "grpc".into(), ..NodeMetadata::default() };
    let view = proxy(index, "sidecar~10.7.7.7~c.client~client.svc.cluster.local", meta, "");
    let c = cluster(index, &view, &format!("outbound|81||{HOST}")).unwrap();
    assert_eq!(c.lb, LbPolicy::RoundRobin { slow_start: None });
    assert!(c.tls.is_none() && c.tls_matches.is_empty());
    assert!(cluster(index, &view, "BlackHoleCluster").is_none());
}

#[test]
fn an_endpoint_reaches_its_own_assignments_only() {
    let mut writer = writer(MESH);
    let translator = Translator::new();
    let change = apply(&mut writer, &MESH.replace("ready: false", "ready: true"));
    let reach = translator.reach(writer.index(), &change);
    assert!(!reach.all && reach.addresses.is_empty());
    assert!(reach.names.iter().all(|(ty, n)| *ty == TypeUrl::Endpoints && n.ends_with(HOST)));
    assert_eq!(reach.names.len(), 4 * 3, "ports and subsets");
}

#[test]
fn proxies_share_resources() {
    let writer = writer(MESH);
    let index = writer.index();
    let translator = Translator::new();
    let (a, b) = (at(index, "eu/a/1"), sidecar(index, "other", "10.7.7.9"));
    for (ty, name) in [(TypeUrl::Cluster, "outbound|80||"), (TypeUrl::Endpoints, "outbound|80|v1|")] {
        let name = format!("{name}{HOST}");
        let make = |view| translator.generate(index, view, ty, &name).unwrap();
        assert!(Arc::ptr_eq(&make(&a), &make(&b)));
    }
}

/// Versions of every resource that a proxy may get.
fn everything(t: &Translator, index: &Index, view: &ProxyView) -> BTreeMap<(TypeUrl, Name), u64> {
    let mut out = BTreeMap::new();
    for ty in [TypeUrl::Cluster, TypeUrl::Listener] {
        for name in t.names(index, view, ty).iter() {
            let Some(resource) = t.generate(index, view, ty, name) else { continue };
            for need in resource.needs() {
                if let Some(needed) = t.generate(index, view, need.ty, &need.name) {
                    out.insert((need.ty, need.name.clone()), needed.hash());
                }
            }
            out.insert((ty, name.clone()), resource.hash());
        }
    }
    out
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever differs after a change was announced, and the caches never serve what is out of date.
    #[test]
    fn what_changes_is_announced(steps in prop::collection::vec((0usize..1000, any::<bool>(), 1usize..4), 1..30)) {
        let pool = pool();
        let mut writer = IndexWriter::new(Options::default());
        let translator = Translator::new();
        let views = |index: &Index| vec![
            sidecar(index, "shop", "10.0.0.1"),
            sidecar(index, "bank", "10.0.0.2"),
            gateway(index, "shop"),
            proxy(index, "sidecar~10.7.7.7~c.client~client.svc.cluster.local",
                NodeMetadata { generator: "grpc".into(), ..NodeMetadata::default() }, "eu/a"),
        ];
        let mut held = views(writer.index());
        let mut before: Vec<_> = held.iter().map(|v| everything(&translator, writer.index(), v)).collect();
        let mut batch = Vec::new();
        for (pick, keep, size) in steps {
            let object = &pool[pick % pool.len()];
            batch.push(if keep { ObjectChange::Upsert(object.clone()) } else { ObjectChange::Remove(object.key.clone()) });
            if batch.len() < size {
                continue;
            }
            let change = writer.apply(std::mem::take(&mut batch));
            let index = writer.index();
            let reach = translator.reach(index, &change);
            for (i, fresh) in views(index).into_iter().enumerate() {
                let affected = translator.affected(index, &change, &held[i]);
                let told = |ty: TypeUrl, name: &Name| match &affected.types[ty as usize] {
                    Names::All => true,
                    Names::Some(names) => names.contains(name),
                    Names::None => false,
                };
                let renewed = held[i] != fresh;
                if renewed {
                    prop_assert!(affected.view, "view {i} changed unannounced by {change:?}");
                }
                let after = everything(&translator, index, &fresh);
                prop_assert_eq!(&after, &everything(&Translator::new(), index, &fresh), "stale cache");
                for key in before[i].keys().chain(after.keys()) {
                    if before[i].get(key) != after.get(key) {
                        prop_assert!(renewed || told(key.0, &key.1), "{key:?} of view {i} changed unannounced by {change:?}");
                        prop_assert!(reach.all || renewed || reach.names.contains(key), "{key:?} not reached by {change:?}");
                    }
                }
                before[i] = after;
                held[i] = fresh;
            }
        }
    }
}
