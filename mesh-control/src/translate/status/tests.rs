//! Conditions of objects, following the conformance tests of Gateway API.

use super::{super::testing::World, *};
use crate::source::object::{Kind, ObjectKey};

const BASE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec: {clusterIP: 10.1.0.1, ports: [{name: http, port: 80}, {name: tcp, port: 5000}]}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: headless, namespace: shop}\nspec: {clusterIP: None, ports: [{name: http, port: 80}]}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: api, namespace: bank}\nspec: {clusterIP: 10.1.0.2, ports: [{name: http, port: 80}]}\n";

fn gw(kind: &str, namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"
    )
}

fn gateway(spec: &str) -> String {
    gw("Gateway", "infra", "edge", &format!("{{gatewayClassName: istio, {spec}}}"))
}

fn route(kind: &str, spec: &str) -> String {
    gw(kind, "shop", "r", spec)
}

fn status(yaml: &str, kind: Kind, namespace: &str, name: &str) -> Option<serde_json::Value> {
    let world = World::new(&format!("{BASE}{yaml}"));
    let object = world.index().object(&ObjectKey::new(kind, namespace, name)).unwrap().clone();
    of(world.index(), &object).map(|s| serde_json::to_value(s).unwrap())
}

/// Conditions as `Type=Status/Reason`.
fn words(conditions: &serde_json::Value) -> Vec<String> {
    let text = |c: &serde_json::Value, key: &str| c[key].as_str().unwrap().to_owned();
    let all = conditions.as_array().unwrap().iter();
    all.map(|c| format!("{}={}/{}", text(c, "type"), text(c, "status"), text(c, "reason"))).collect()
}

fn of_edge(spec: &str, more: &str) -> serde_json::Value {
    status(&format!("{}{more}", gateway(spec)), Kind::Gateway, "infra", "edge").unwrap()
}

/// Conditions of the listeners of `edge`.
fn listeners(spec: &str, more: &str) -> Vec<Vec<String>> {
    let status = of_edge(spec, more);
    status["listeners"].as_array().unwrap().iter().map(|l| words(&l["conditions"])).collect()
}

/// Conditions for the first parent of a route.
fn parent(kind: Kind, spec: &str, more: &str) -> Vec<String> {
    let yaml = format!("{}{more}", route(kind.name(), spec));
    words(&status(&yaml, kind, "shop", "r").unwrap()["parents"][0]["conditions"])
}

const OPEN: &str = "allowedRoutes: {namespaces: {from: All}}";

fn http(hostname: &str) -> String {
    gateway(&format!("listeners: [{{name: a, port: 80, protocol: HTTP, hostname: '{hostname}', {OPEN}}}]"))
}

const TO_EDGE: &str = "parentRefs: [{name: edge, namespace: infra}]";
const TO_WEB: &str = "rules: [{backendRefs: [{name: web, port: 80}]}]";

#[test]
fn a_good_gateway() {
    let status = of_edge(&format!("listeners: [{{name: a, port: 80, protocol: HTTP, {OPEN}}}]"), "");
    assert_eq!(
        words(&status["conditions"]),
        ["Accepted=True/Accepted", "Programmed=True/Programmed", "ResolvedRefs=True/ResolvedRefs"]
    );
    let listener = &status["listeners"][0];
    assert_eq!((listener["name"].as_str(), listener["attachedRoutes"].as_u64()), (Some("a"), Some(0)));
    assert_eq!(listener["supportedKinds"][0]["kind"], "HTTPRoute");
    assert_eq!(
        words(&listener["conditions"]),
        [
            "Accepted=True/Accepted",
            "Conflicted=False/NoConflicts",
            "ResolvedRefs=True/ResolvedRefs",
            "Programmed=True/Programmed"
        ]
    );
}

#[test]
fn classes_and_gateways_of_others_are_left_alone() {
    let class = |controller: &str| {
        let yaml = format!(
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\nmetadata: {{name: c}}\nspec: {{controllerName: {controller}}}\n"
        );
        status(&yaml, Kind::GatewayClass, "", "c").map(|s| words(&s["conditions"]))
    };
    assert_eq!(class("istio.io/gateway-controller").unwrap(), ["Accepted=True/Accepted"]);
    assert_eq!(class("other.test/c"), None);
    let other =
        gw("Gateway", "infra", "edge", "{gatewayClassName: other, listeners: [{name: a, port: 80, protocol: HTTP}]}");
    assert_eq!(status(&other, Kind::Gateway, "infra", "edge"), None);
    let yaml = format!("{other}{}", route("HTTPRoute", &format!("{{{TO_EDGE}, {TO_WEB}}}")));
    assert_eq!(status(&yaml, Kind::HttpRoute, "shop", "r").unwrap()["parents"], serde_json::json!([]));
}

#[test]
fn unsupported_protocols() {
    let one = "listeners: [{name: a, port: 80, protocol: HTTP}, {name: b, port: 81, protocol: UDP}]";
    let status = of_edge(one, "");
    assert_eq!(words(&status["conditions"])[0], "Accepted=True/ListenersNotValid");
    let bad = words(&status["listeners"][1]["conditions"]);
    assert_eq!((bad[0].as_str(), bad[3].as_str()), ("Accepted=False/UnsupportedProtocol", "Programmed=False/Invalid"));
    let all = of_edge("listeners: [{name: b, port: 81, protocol: UDP}]", "");
    assert_eq!(words(&all["conditions"])[..2], ["Accepted=False/ListenersNotValid", "Programmed=False/Invalid"]);
}

#[test]
fn kinds_of_routes() {
    let kinds = |listener: &str| {
        let status = of_edge(&format!("listeners: [{listener}]"), "");
        let listed: Vec<String> = status["listeners"][0]["supportedKinds"]
            .as_array()
            .unwrap()
            .iter()
            .map(|k| k["kind"].as_str().unwrap().to_owned())
            .collect();
        (listed.join(","), words(&status["listeners"][0]["conditions"])[2].clone())
    };
    let invalid = "ResolvedRefs=False/InvalidRouteKinds".to_owned();
    let good = "ResolvedRefs=True/ResolvedRefs".to_owned();
    let http = "name: a, port: 80, protocol: HTTP, allowedRoutes";
    assert_eq!(kinds(&format!("{{{http}: {{kinds: [{{kind: Odd}}]}}}}")), (String::new(), invalid.clone()));
    assert_eq!(
        kinds(&format!("{{{http}: {{kinds: [{{kind: Odd}}, {{kind: HTTPRoute}}]}}}}")),
        ("HTTPRoute".into(), invalid)
    );
    assert_eq!(
        kinds("{name: a, port: 443, protocol: TLS, tls: {mode: Passthrough}}"),
        ("TLSRoute".into(), good.clone())
    );
    assert_eq!(kinds("{name: a, port: 1, protocol: TCP}"), ("TCPRoute".into(), good));
}

#[test]
fn certificates() {
    let resolved = |refs: &str, more: &str| {
        let spec = format!("listeners: [{{name: a, port: 443, protocol: HTTPS, tls: {{certificateRefs: [{refs}]}}}}]");
        let all = listeners(&spec, more).remove(0);
        (all[2].clone(), all[3].clone())
    };
    let bad = |reason: &str| (format!("ResolvedRefs=False/{reason}"), "Programmed=False/Invalid".to_owned());
    let key = rcgen::generate_simple_self_signed(vec!["a.test".to_owned()]).unwrap();
    let secret = |namespace: &str, chain: &str| {
        format!(
            "---\napiVersion: v1\nkind: Secret\nmetadata: {{name: cert, namespace: {namespace}}}\nstringData: {}\n",
            serde_json::json!({"tls.crt": chain, "tls.key": key.signing_key.serialize_pem()})
        )
    };
    let pem = key.cert.pem();
    assert_eq!(resolved("{name: cert}", ""), bad("InvalidCertificateRef"));
    assert_eq!(resolved("{name: cert, kind: Odd}", ""), bad("InvalidCertificateRef"));
    assert_eq!(resolved("{name: cert}", &secret("infra", "odd")), bad("InvalidCertificateRef"));
    let good = ("ResolvedRefs=True/ResolvedRefs".to_owned(), "Programmed=True/Programmed".to_owned());
    assert_eq!(resolved("{name: cert}", &secret("infra", &pem)), good);
    let foreign = "{name: cert, namespace: shop}";
    assert_eq!(resolved(foreign, &secret("shop", &pem)), bad("RefNotPermitted"));
    let grant = |name: &str| {
        gw(
            "ReferenceGrant",
            "shop",
            "g",
            &format!(
                "{{from: [{{group: gateway.networking.k8s.io, kind: Gateway, namespace: infra}}], to: [{{group: '', kind: Secret{name}}}]}}"
            ),
        )
    };
    assert_eq!(resolved(foreign, &(secret("shop", &pem) + &grant(", name: other"))), bad("RefNotPermitted"));
    assert_eq!(resolved(foreign, &(secret("shop", &pem) + &grant(", name: cert"))), good);
    assert_eq!(resolved(foreign, &(secret("shop", &pem) + &grant(""))), good);
}

#[test]
fn validation_of_clients() {
    let pem = rcgen::generate_simple_self_signed(vec!["ca".to_owned()]).unwrap();
    let objects = format!(
        "---\napiVersion: v1\nkind: Secret\nmetadata: {{name: cert, namespace: infra}}\nstringData: {}\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: roots, namespace: infra}}\ndata: {}\n",
        serde_json::json!({"tls.crt": pem.cert.pem(), "tls.key": pem.signing_key.serialize_pem()}),
        serde_json::json!({"ca.crt": pem.cert.pem()}),
    );
    let of = |r: &str, mode: &str| {
        of_edge(
            &format!(
                "tls: {{frontend: {{default: {{validation: {{caCertificateRefs: [{r}]{mode}}}}}}}}}, listeners: [{{name: a, port: 443, protocol: HTTPS, tls: {{certificateRefs: [{{name: cert}}]}}}}, {{name: b, port: 80, protocol: HTTP}}]"
            ),
            &objects,
        )
    };
    let conditions = |r: &str| {
        let all = words(&of(r, "")["listeners"][0]["conditions"]);
        (all[0].clone(), all[2].clone())
    };
    let bad = |reason: &str| ("Accepted=False/NoValidCACertificate".to_owned(), format!("ResolvedRefs=False/{reason}"));
    let good = ("Accepted=True/Accepted".to_owned(), "ResolvedRefs=True/ResolvedRefs".to_owned());
    assert_eq!(conditions("{group: '', kind: ConfigMap, name: roots}"), good);
    assert_eq!(conditions("{group: '', kind: ConfigMap, name: nowhere}"), bad("InvalidCACertificateRef"));
    assert_eq!(conditions("{group: '', kind: Odd, name: roots}"), bad("InvalidCACertificateKind"));
    assert_eq!(conditions("{group: '', kind: ConfigMap, name: roots, namespace: shop}"), bad("RefNotPermitted"));
    let cleartext = &of("{group: '', kind: Odd, name: roots}", "")["listeners"][1]["conditions"];
    assert_eq!(words(cleartext)[3], "Programmed=True/Programmed", "only HTTPS listeners are concerned");
    let fallback = of("{group: '', kind: ConfigMap, name: roots}", ", mode: AllowInsecureFallback");
    assert_eq!(words(&fallback["conditions"])[3], "InsecureFrontendValidationMode=True/ConfigurationChanged");
}

#[test]
fn addresses_and_parameters() {
    let accepted = |spec: &str| {
        words(&of_edge(&format!("{spec}, listeners: [{{name: a, port: 80, protocol: HTTP}}]"), "")["conditions"])[0]
            .clone()
    };
    assert_eq!(accepted("addresses: [{type: odd.test/a, value: x}]"), "Accepted=False/UnsupportedAddress");
    let parameters = "infrastructure: {parametersRef: {group: '', kind: ConfigMap, name: nowhere}}";
    assert_eq!(accepted(parameters), "Accepted=False/InvalidParameters");
}

#[test]
fn earlier_listeners_of_a_port_win() {
    let all = listeners(
        "listeners: [{name: a, port: 80, protocol: HTTP}, {name: b, port: 80, protocol: TCP}, {name: c, port: 80, protocol: HTTP}, {name: d, port: 80, protocol: HTTP, hostname: a.test}]",
        "",
    );
    let conflicted: Vec<&str> = all.iter().map(|l| l[1].as_str()).collect();
    assert_eq!(
        conflicted,
        [
            "Conflicted=False/NoConflicts",
            "Conflicted=True/ProtocolConflict",
            "Conflicted=True/HostnameConflict",
            "Conflicted=False/NoConflicts"
        ]
    );
    assert_eq!(
        (all[1][0].as_str(), all[1][3].as_str()),
        ("Accepted=False/ProtocolConflict", "Programmed=False/Invalid")
    );
}

#[test]
fn parents_of_routes() {
    let accepted = |spec: &str, more: &str| parent(Kind::HttpRoute, spec, more)[0].clone();
    let a = http("*.a.test");
    let named = |parent: &str| format!("{{parentRefs: [{{name: edge, namespace: infra{parent}}}], {TO_WEB}}}");
    assert_eq!(accepted(&named(""), &a), "Accepted=True/Accepted");
    assert_eq!(accepted(&named(", sectionName: a, port: 80"), &a), "Accepted=True/Accepted");
    assert_eq!(accepted(&named(", sectionName: b"), &a), "Accepted=False/NoMatchingParent");
    assert_eq!(accepted(&named(", sectionName: a, port: 81"), &a), "Accepted=False/NoMatchingParent");
    let hosts = format!("{{{TO_EDGE}, hostnames: [b.test], {TO_WEB}}}");
    assert_eq!(accepted(&hosts, &a), "Accepted=False/NoMatchingListenerHostname");
    let same = gateway("listeners: [{name: a, port: 80, protocol: HTTP}]");
    assert_eq!(accepted(&named(""), &same), "Accepted=False/NotAllowedByListeners");
    let tls =
        gateway(&format!("listeners: [{{name: a, port: 443, protocol: TLS, tls: {{mode: Passthrough}}, {OPEN}}}]"));
    assert_eq!(accepted(&named(""), &tls), "Accepted=False/NotAllowedByListeners");
    let tcp = gateway(&format!("listeners: [{{name: a, port: 9, protocol: TCP, {OPEN}}}]"));
    assert_eq!(parent(Kind::TcpRoute, &named(""), &tcp)[0], "Accepted=True/Accepted");
    assert_eq!(parent(Kind::TcpRoute, &named(""), &a)[0], "Accepted=False/NotAllowedByListeners");
    let names = format!("{{{TO_EDGE}, hostnames: [x.test], {TO_WEB}}}");
    assert_eq!(parent(Kind::TlsRoute, &names, &tls)[0], "Accepted=True/Accepted");
}

#[test]
fn backends_of_routes() {
    let resolved = |backend: &str, more: &str| {
        let spec =
            format!("{{{TO_EDGE}, rules: [{{backendRefs: [{{name: web, port: 80}}]}}, {{backendRefs: [{backend}]}}]}}");
        parent(Kind::HttpRoute, &spec, &(http("*.a.test") + more))[1].clone()
    };
    assert_eq!(resolved("{name: web, port: 5000}", ""), "ResolvedRefs=True/ResolvedRefs");
    assert_eq!(resolved("{name: nowhere, port: 80}", ""), "ResolvedRefs=False/BackendNotFound");
    assert_eq!(resolved("{name: web, port: 81}", ""), "ResolvedRefs=False/BackendNotFound");
    assert_eq!(resolved("{name: web, kind: Odd, group: odd.test}", ""), "ResolvedRefs=False/InvalidKind");
    let foreign = "{name: api, namespace: bank, port: 80}";
    assert_eq!(resolved(foreign, ""), "ResolvedRefs=False/RefNotPermitted");
    let grant = "{from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: shop}], to: [{group: '', kind: Service}]}";
    assert_eq!(resolved(foreign, &gw("ReferenceGrant", "bank", "g", grant)), "ResolvedRefs=True/ResolvedRefs");
    let tcp = gateway(&format!("listeners: [{{name: a, port: 9, protocol: TCP, {OPEN}}}]"));
    let l4 = |backend: &str| {
        parent(Kind::TcpRoute, &format!("{{{TO_EDGE}, rules: [{{backendRefs: [{backend}]}}]}}"), &tcp)[1].clone()
    };
    assert_eq!(l4("{name: nowhere, port: 1}"), "ResolvedRefs=False/BackendNotFound");
    assert_eq!(l4(foreign), "ResolvedRefs=False/RefNotPermitted");
}

#[test]
fn rules_with_filters_that_cannot_be_carried_out() {
    let filter = "filters: [{type: ExtensionRef, extensionRef: {group: odd.test, kind: Odd, name: x}}]";
    let of = |rules: &str| parent(Kind::HttpRoute, &format!("{{{TO_EDGE}, rules: [{rules}]}}"), &http("*.a.test"));
    assert_eq!(of(&format!("{{{filter}}}"))[0], "Accepted=False/UnsupportedValue");
    let some = of(&format!("{{{filter}}}, {{backendRefs: [{{name: web, port: 80}}]}}"));
    assert_eq!(
        (some[0].as_str(), some[2].as_str()),
        ("Accepted=True/Accepted", "PartiallyInvalid=True/UnsupportedValue")
    );
}

#[test]
fn attached_routes_are_counted_also_where_the_listener_is_bad() {
    let gateway = gateway(&format!(
        "listeners: [{{name: a, port: 80, protocol: HTTP, hostname: '*.a.test', {OPEN}}}, {{name: b, port: 443, protocol: HTTPS, tls: {{certificateRefs: [{{name: nowhere}}]}}, {OPEN}}}]"
    ));
    let more = gw("HTTPRoute", "shop", "one", &format!("{{{TO_EDGE}, hostnames: [b.test], {TO_WEB}}}"))
        + &gw("HTTPRoute", "shop", "two", &format!("{{{TO_EDGE}, hostnames: [x.a.test], {TO_WEB}}}"));
    let status = status(&(gateway + &more), Kind::Gateway, "infra", "edge").unwrap();
    let counts: Vec<_> = status["listeners"].as_array().unwrap().iter().map(|l| l["attachedRoutes"].as_u64()).collect();
    assert_eq!(counts, [Some(1), Some(2)]);
}

#[test]
fn routes_on_services() {
    let on = |kind: Kind, parent: &str, more: &str| {
        let spec = format!("{{parentRefs: [{{group: '', kind: Service, {parent}}}], {TO_WEB}}}");
        let yaml = format!("{}{more}", route(kind.name(), &spec));
        let all = status(&yaml, kind, "shop", "r").unwrap();
        assert_eq!(all["parents"][0]["controllerName"], MESH_CONTROLLER);
        words(&all["parents"][0]["conditions"])[0].clone()
    };
    assert_eq!(on(Kind::HttpRoute, "name: web", ""), "Accepted=True/Accepted");
    assert_eq!(on(Kind::HttpRoute, "name: web, port: 81", ""), "Accepted=False/NoMatchingParent");
    assert_eq!(on(Kind::HttpRoute, "name: nowhere", ""), "Accepted=False/NoMatchingParent");
    assert_eq!(on(Kind::HttpRoute, "name: headless", ""), "Accepted=False/NoMatchingParent");
    let grpc = gw(
        "GRPCRoute",
        "shop",
        "g",
        &format!("{{parentRefs: [{{group: '', kind: Service, name: web, port: 80}}], {TO_WEB}}}"),
    );
    assert_eq!(on(Kind::HttpRoute, "name: web, port: 80", &grpc), "Accepted=False/Conflicted");
    assert_eq!(on(Kind::HttpRoute, "name: web", &grpc), "Accepted=True/Accepted", "at its other port");
    assert_eq!(on(Kind::TcpRoute, "name: web, port: 80", &grpc), "Accepted=False/Conflicted");
    let foreign = "{parentRefs: [{group: '', kind: Service, name: web}], rules: [{backendRefs: [{name: api, namespace: bank, port: 80}]}]}";
    assert_eq!(parent(Kind::HttpRoute, foreign, "")[1], "ResolvedRefs=True/ResolvedRefs", "needs no grant in the mesh");
}

#[test]
fn listener_sets() {
    let set = gw(
        "ListenerSet",
        "shop",
        "s",
        "{parentRef: {name: edge, namespace: infra}, listeners: [{name: a, port: 8080, protocol: HTTP}, {name: b, port: 80, protocol: HTTP}]}",
    );
    let of = |allowed: &str| {
        let edge = gateway(&format!("{allowed} listeners: [{{name: a, port: 80, protocol: HTTP}}]"));
        let all = status(&format!("{edge}{set}"), Kind::ListenerSet, "shop", "s").unwrap();
        (words(&all["conditions"]), all["listeners"].as_array().unwrap().len())
    };
    let refused = vec!["Accepted=False/NotAllowed".to_owned(), "Programmed=False/NotAllowed".to_owned()];
    for allowed in [
        "",
        "allowedListeners: {namespaces: {from: None}},",
        "allowedListeners: {namespaces: {from: Same}},",
        "allowedListeners: {},",
    ] {
        assert_eq!(of(allowed), (refused.clone(), 0), "{allowed}");
    }
    let open = "allowedListeners: {namespaces: {from: All}},";
    assert_eq!(
        of(open),
        (vec!["Accepted=True/ListenersNotValid".to_owned(), "Programmed=True/Programmed".to_owned()], 2)
    );
    let edge = gateway(&format!("{open} listeners: [{{name: a, port: 80, protocol: HTTP}}]"));
    let all = status(&format!("{edge}{set}"), Kind::ListenerSet, "shop", "s").unwrap();
    assert_eq!(
        words(&all["listeners"][1]["conditions"])[1],
        "Conflicted=True/HostnameConflict",
        "the Gateway's own wins"
    );
    assert_eq!(status(&format!("{edge}{set}"), Kind::Gateway, "infra", "edge").unwrap()["attachedListenerSets"], 1);
    // A route may be attached to both, and each says its own.
    let both = format!("{{parentRefs: [{{kind: ListenerSet, name: s}}, {{name: edge, namespace: infra}}], {TO_WEB}}}");
    let yaml = format!("{edge}{set}{}", route("HTTPRoute", &both));
    let route = status(&yaml, Kind::HttpRoute, "shop", "r").unwrap();
    let accepted = |i: usize| words(&route["parents"][i]["conditions"])[0].clone();
    assert_eq!(
        (accepted(0).as_str(), accepted(1).as_str()),
        ("Accepted=True/Accepted", "Accepted=False/NotAllowedByListeners")
    );
}

#[test]
fn policies() {
    let pem = rcgen::generate_simple_self_signed(vec!["ca".to_owned()]).unwrap().cert.pem();
    let base = http("*.a.test")
        + &route("HTTPRoute", &format!("{{{TO_EDGE}, {TO_WEB}}}"))
        + &format!(
            "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: roots, namespace: shop}}\ndata: {}\n",
            serde_json::json!({"ca.crt": pem})
        );
    let policy = |name: &str, target: &str, validation: &str| {
        gw(
            "BackendTLSPolicy",
            "shop",
            name,
            &format!(
                "{{targetRefs: [{{group: '', kind: Service, {target}}}], validation: {{hostname: web.test, {validation}}}}}"
            ),
        )
    };
    let of = |name: &str, yaml: &str| {
        let all = status(&format!("{base}{yaml}"), Kind::BackendTlsPolicy, "shop", name).unwrap();
        let ancestors = all["ancestors"].as_array().unwrap().clone();
        (ancestors.len(), words(&ancestors[0]["conditions"]))
    };
    let good = "caCertificateRefs: [{group: '', kind: ConfigMap, name: roots}]";
    let (count, conditions) = of("p", &policy("p", "name: web", good));
    assert_eq!(
        (count, conditions),
        (2, vec!["Accepted=True/Accepted".to_owned(), "ResolvedRefs=True/ResolvedRefs".to_owned()])
    );
    let bad = |refs: &str| of("p", &policy("p", "name: web", refs)).1.join(" ");
    assert_eq!(
        bad("caCertificateRefs: [{group: '', kind: ConfigMap, name: nowhere}]"),
        "Accepted=False/NoValidCACertificate ResolvedRefs=False/InvalidCACertificateRef"
    );
    assert_eq!(
        bad("caCertificateRefs: [{group: '', kind: Odd, name: roots}]"),
        "Accepted=False/NoValidCACertificate ResolvedRefs=False/InvalidKind"
    );
    assert_eq!(bad("wellKnownCACertificates: Odd"), "Accepted=False/Invalid ResolvedRefs=True/ResolvedRefs");
    let two = policy("b", "name: web", good) + &policy("a", "name: web", good);
    assert_eq!(of("a", &two).1[0], "Accepted=True/Accepted");
    assert_eq!(of("b", &two).1[0], "Accepted=False/Conflicted");
    let port = policy("b", "name: web, sectionName: http", good) + &policy("a", "name: web", good);
    assert_eq!(of("b", &port).1[0], "Accepted=True/Accepted", "another section is another target");
    assert_eq!(of("p", &policy("p", "name: web, sectionName: odd", good)).1[0], "Accepted=False/TargetNotFound");
    assert_eq!(of("p", &policy("p", "name: nowhere", good)).1[0], "Accepted=False/TargetNotFound");
}

#[test]
fn hosts_of_service_entries_are_told_their_addresses() {
    let entry = |more: &str| {
        format!(
            "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: e, namespace: shop}}\nspec: {{hosts: [b.test, '*.c.test', a.test], ports: [{{number: 443, name: tls, protocol: TLS}}], {more}}}\n"
        )
    };
    let told = |more: &str| status(&entry(more), Kind::ServiceEntry, "shop", "e");
    let status = told("resolution: STATIC, endpoints: [{address: 10.0.0.1}]").unwrap();
    let addresses = status["addresses"].as_array().unwrap();
    let hosts: Vec<&str> = addresses.iter().map(|a| a["host"].as_str().unwrap()).collect();
    assert_eq!(hosts, ["b.test", "b.test", "a.test", "a.test"]);
    assert!(addresses[0]["value"].as_str().unwrap().starts_with("240.240."));
    assert!(addresses[1]["value"].as_str().unwrap().starts_with("2001:2:"));
    assert_eq!(told("resolution: NONE"), None);
    assert_eq!(told("resolution: STATIC, addresses: [10.1.1.1], endpoints: [{address: 10.0.0.1}]"), None);
}
