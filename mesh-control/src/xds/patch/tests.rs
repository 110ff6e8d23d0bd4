//! Patches against resources as they are generated, in their wire form.

use mesh_api::{
    crd::networking::EnvoyFilter,
    xds::{TypeUrl, json},
};
use prost_reflect::SerializeOptions;
use serde_json::{Value, json};

use super::{Facts, PatchSet, Patched, Served, compile, dynamic};
use crate::source::object::{Kind, ObjectKey};

const LISTENER: &str = "envoy.config.listener.v3.Listener";
const ROUTES: &str = "envoy.config.route.v3.RouteConfiguration";
const CLUSTER: &str = "envoy.config.cluster.v3.Cluster";
const HCM: &str =
    "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
const TCP: &str = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";
const ROUTER: &str = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router";
const CORS: &str = "type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors";

fn set_of(gateway: bool, facts: Facts, patches: &str) -> PatchSet {
    let filter: EnvoyFilter = mesh_api::yaml::from_str(&format!("configPatches: {patches}")).unwrap();
    let compiled = compile(&ObjectKey::new(Kind::EnvoyFilter, "shop", "f"), &filter);
    assert!(compiled.problems.is_empty(), "{:?}", compiled.problems);
    PatchSet::new(gateway, facts, compiled.patches)
}

fn sidecar(patches: &str) -> PatchSet {
    set_of(false, Facts::default(), patches)
}

fn wire(kind: &str, value: &Value) -> Vec<u8> {
    dynamic::encode(&json::read(value, dynamic::descriptor(kind).unwrap()).unwrap())
}

fn text(kind: &str, bytes: &[u8]) -> Value {
    let message = dynamic::decode(kind, bytes).unwrap();
    let options = SerializeOptions::new().use_proto_field_name(true);
    message.serialize_with_options(serde_json::value::Serializer, &options).unwrap()
}

/// What becomes of a resource, as JSON; the same when nothing does. There is no trouble.
fn patched(set: &PatchSet, ty: TypeUrl, value: &Value) -> Option<Value> {
    let kind = match ty {
        TypeUrl::Cluster => CLUSTER,
        TypeUrl::Listener => LISTENER,
        _ => ROUTES,
    };
    let bytes = wire(kind, value);
    let (out, troubles) = set.apply(ty, value["name"].as_str().unwrap(), Some(&bytes));
    assert!(troubles.is_empty(), "{troubles:?}");
    match out {
        Patched::Same => Some(text(kind, &bytes)),
        Patched::Removed => None,
        Patched::Changed(changed, _) => Some(text(kind, &changed)),
    }
}

fn chain(name: &str, port: Option<u16>, filters: Value) -> Value {
    match port {
        Some(port) => {
            json!({"name": name, "filter_chain_match": {"destination_port": port, "transport_protocol": "tls"}, "filters": filters})
        }
        None => json!({"name": name, "filters": filters}),
    }
}

fn http(filters: &[&str]) -> Value {
    let filters: Vec<Value> = filters
        .iter()
        .map(|name| {
            let url = if *name == "envoy.filters.http.router" { ROUTER } else { CORS };
            json!({"name": name, "typed_config": {"@type": url}})
        })
        .collect();
    json!([{"name": "envoy.filters.network.http_connection_manager", "typed_config": {
        "@type": HCM, "stat_prefix": "s", "http_filters": filters,
        "route_config": {"name": "inbound|8080||", "virtual_hosts": [{"name": "inbound|http|8080", "domains": ["*"],
            "routes": [{"name": "default", "match": {"prefix": "/"}, "route": {"cluster": "inbound|8080||"}}]}]}}}])
}

fn listener(name: &str, direction: &str, port: u16, chains: Value) -> Value {
    json!({"name": name, "traffic_direction": direction, "filter_chains": chains,
        "address": {"socket_address": {"address": "0.0.0.0", "port_value": port}},
        "listener_filters": [{"name": "envoy.filters.listener.tls_inspector"}]})
}

fn inbound() -> Value {
    let tcp = json!([{"name": "envoy.filters.network.tcp_proxy", "typed_config": {"@type": TCP, "stat_prefix": "t", "cluster": "inbound|9000||"}}]);
    let filters = || http(&["envoy.filters.http.cors", "envoy.filters.http.router"]);
    let chains = json!([
        chain("0.0.0.0_8080-mtls", Some(8080), filters()),
        chain("0.0.0.0_8080", Some(8080), filters()),
        chain("0.0.0.0_9000", Some(9000), tcp)
    ]);
    listener("virtualInbound", "INBOUND", 15006, chains)
}

/// Names of the HTTP filters of each chain that has some.
fn http_filters(listener: &Value) -> Vec<Vec<String>> {
    let chains = listener["filter_chains"].as_array().unwrap();
    let filters = chains.iter().filter_map(|c| c["filters"][0]["typed_config"]["http_filters"].as_array());
    filters.map(|f| f.iter().map(|f| f["name"].as_str().unwrap().to_owned()).collect()).collect()
}

fn filter_patch(operation: &str, sub: &str, name: &str) -> String {
    format!(
        "{{applyTo: HTTP_FILTER, match: {{context: SIDECAR_INBOUND, listener: {{portNumber: 8080, filterChain: {{name: 0.0.0.0_8080, filter: \
         {{name: envoy.filters.network.http_connection_manager, subFilter: {{name: envoy.filters.http.{sub}}}}}}}}}}}, \
         patch: {{operation: {operation}, value: {{name: {name}, typed_config: {{'@type': {CORS}}}}}}}}}"
    )
}

#[test]
fn http_filters_come_where_the_operation_says() {
    let names = |patches: &str| http_filters(&patched(&sidecar(patches), TypeUrl::Listener, &inbound()).unwrap());
    let (cors, router) = ("envoy.filters.http.cors", "envoy.filters.http.router");
    for (operation, sub, want) in [
        ("INSERT_BEFORE", "router", vec![cors, "new", router]),
        ("INSERT_AFTER", "cors", vec![cors, "new", router]),
        ("INSERT_FIRST", "router", vec!["new", cors, router]),
        ("ADD", "router", vec![cors, router, "new"]),
        ("REPLACE", "cors", vec!["new", router]),
        ("REMOVE", "cors", vec![router]),
        ("MERGE", "cors", vec!["new", router]),
        ("INSERT_BEFORE", "nobody", vec![cors, router]),
    ] {
        let both = names(&format!("[{}]", filter_patch(operation, sub, "new")));
        // Istio's name of the chain is that of both.
        assert_eq!(both, vec![want.clone(), want], "{operation} {sub}");
    }
    let several =
        format!("[{}, {}]", filter_patch("INSERT_BEFORE", "router", "a"), filter_patch("INSERT_BEFORE", "router", "b"));
    assert_eq!(names(&several)[0], [cors, "a", "b", router]);
}

#[test]
fn a_patch_for_elsewhere_does_nothing() {
    let base = inbound();
    let bytes = wire(LISTENER, &base);
    for (was, is) in [
        ("8080, filter", "8081, filter"),
        ("SIDECAR_INBOUND", "SIDECAR_OUTBOUND"),
        ("SIDECAR_INBOUND", "GATEWAY"),
        ("0.0.0.0_8080", "0.0.0.0_80"),
    ] {
        let patch = filter_patch("ADD", "router", "new");
        assert!(patch.contains(was));
        let set = sidecar(&format!("[{}]", patch.replace(was, is)));
        assert_eq!(set.apply(TypeUrl::Listener, "virtualInbound", Some(&bytes)).0, Patched::Same, "{is}");
    }
}

#[test]
fn the_http_manager_and_its_routes_are_reached() {
    let merge = format!(
        "[{{applyTo: NETWORK_FILTER, match: {{listener: {{filterChain: {{filter: {{name: envoy.filters.network.http_connection_manager}}}}}}}}, \
           patch: {{operation: MERGE, value: {{name: envoy.filters.network.http_connection_manager, typed_config: {{'@type': {HCM}, via: x}}}}}}}}, \
          {{applyTo: HTTP_ROUTE, match: {{context: SIDECAR_INBOUND, routeConfiguration: {{portNumber: 8080, vhost: {{route: {{name: default}}}}}}}}, \
           patch: {{operation: MERGE, value: {{route: {{timeout: 3s}}}}}}}}]"
    );
    let out = patched(&sidecar(&merge), TypeUrl::Listener, &inbound()).unwrap();
    let manager = &out["filter_chains"][0]["filters"][0]["typed_config"];
    assert_eq!(manager["via"], "x");
    let route = &manager["route_config"]["virtual_hosts"][0]["routes"][0]["route"];
    assert_eq!(*route, json!({"cluster": "inbound|8080||", "timeout": "3s"}));
    assert_eq!(out["filter_chains"][2]["filters"][0]["typed_config"]["stat_prefix"], "t");
}

#[test]
fn chains_and_listeners() {
    let base = inbound();
    let of = |patches: &str| patched(&sidecar(patches), TypeUrl::Listener, &base);
    let removed =
        of("[{applyTo: FILTER_CHAIN, match: {listener: {portNumber: 9000}}, patch: {operation: REMOVE}}]").unwrap();
    let names = |l: &Value| {
        l["filter_chains"]
            .as_array()
            .unwrap()
            .iter()
            .map(|c| c["name"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(names(&removed), ["0.0.0.0_8080-mtls", "0.0.0.0_8080"]);
    let added =
        of("[{applyTo: FILTER_CHAIN, patch: {operation: ADD, value: {name: more, filters: [{name: x}]}}}]").unwrap();
    assert_eq!(names(&added)[3], "more");
    let inspected = "[{applyTo: LISTENER_FILTER, patch: {operation: INSERT_FIRST, value: {name: first}}}, \
        {applyTo: LISTENER_FILTER, match: {listener: {listenerFilter: envoy.filters.listener.tls_inspector}}, patch: {operation: REMOVE}}]";
    assert_eq!(of(inspected).unwrap()["listener_filters"], json!([{"name": "first"}]));
    let moved = of("[{applyTo: LISTENER, match: {listener: {portNumber: 15006}}, patch: {operation: MERGE, value: {reuse_port: true, bind_to_port: false}}}]").unwrap();
    assert_eq!((&moved["bind_to_port"], &moved["filter_chains"]), (&json!(false), &base["filter_chains"]));
    assert_eq!(
        of("[{applyTo: LISTENER, match: {listener: {name: virtualInbound}}, patch: {operation: REMOVE}}]"),
        None
    );
    assert!(
        of("[{applyTo: LISTENER, match: {listener: {name: virtualOutbound}}, patch: {operation: REMOVE}}]").is_some()
    );
}

#[test]
fn chains_are_told_apart_by_what_they_match_and_are() {
    let mut base = inbound();
    base["filter_chains"][0]["transport_socket"] = json!({"name": "envoy.transport_sockets.tls"});
    base["filter_chains"][1]["filter_chain_match"]["application_protocols"] = json!(["a", "b"]);
    base["filter_chains"][1]["filter_chain_match"]["server_names"] = json!(["x.test"]);
    let left = |matched: &str| {
        let patch = format!(
            "[{{applyTo: FILTER_CHAIN, match: {{listener: {{filterChain: {matched}}}}}, patch: {{operation: REMOVE}}}}]"
        );
        let out = patched(&sidecar(&patch), TypeUrl::Listener, &base).unwrap();
        let chains = out["filter_chains"].as_array().cloned().unwrap_or_default();
        chains.iter().map(|c| c["name"].as_str().unwrap().trim_start_matches("0.0.0.0_").to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(left("{transportSocket: envoy.transport_sockets.tls}"), ["8080", "9000"]);
    assert_eq!(left("{transportSocket: envoy.transport_sockets.raw_buffer}"), ["8080-mtls"]);
    assert_eq!(left("{applicationProtocols: 'a,b'}"), ["8080-mtls", "9000"]);
    assert_eq!(left("{applicationProtocols: 'a,c'}").len(), 3);
    assert_eq!(left("{sni: x.test}"), ["8080-mtls", "9000"]);
    assert_eq!(left("{destinationPort: 9000}"), ["8080-mtls", "8080"]);
    assert_eq!(left("{transportProtocol: raw_buffer}").len(), 3);
    assert!(left("{transportProtocol: tls}").is_empty());
}

#[test]
fn what_cannot_be_merged_is_told_and_left_out() {
    let patches = format!(
        "[{{applyTo: NETWORK_FILTER, match: {{listener: {{portNumber: 8080}}}}, patch: {{operation: MERGE, value: {{typed_config: {{'@type': {TCP}, stat_prefix: x}}}}}}}}, \
          {{applyTo: LISTENER, patch: {{operation: MERGE, value: {{name: other}}}}}}]"
    );
    let set = sidecar(&patches);
    let bytes = wire(LISTENER, &inbound());
    let (out, troubles) = set.apply(TypeUrl::Listener, "virtualInbound", Some(&bytes));
    let Patched::Changed(out, _) = out else { panic!("{out:?}") };
    assert_eq!(text(LISTENER, &out), text(LISTENER, &bytes));
    let told: Vec<(usize, &str)> = troubles.iter().map(|t| (t.patch.index, t.message.as_str())).collect();
    assert_eq!(told.len(), 3, "{told:?}");
    assert!(told[0].0 == 0 && told[0].1.contains("TcpProxy cannot be merged into"), "{told:?}");
    assert!(told[2].0 == 1 && told[2].1.contains("keeps its name"), "{told:?}");
}

fn routes() -> Value {
    let host = |name: &str| {
        json!({"name": format!("{name}:80"), "domains": [name], "routes": [
            {"name": "a", "match": {"path": "/a"}, "redirect": {"host_redirect": "x"}},
            {"name": "b", "match": {"prefix": "/"}, "route": {"cluster": "c"}}]})
    };
    json!({"name": "80", "virtual_hosts": [host("one"), host("two")]})
}

#[test]
fn routes_and_virtual_hosts() {
    let names = |patches: &str| -> Vec<(String, Vec<String>)> {
        let out = patched(&sidecar(patches), TypeUrl::Route, &routes()).unwrap();
        let hosts = out["virtual_hosts"].as_array().cloned().unwrap_or_default();
        let name = |v: &Value| v["name"].as_str().unwrap_or_default().to_owned();
        hosts
            .iter()
            .map(|h| (name(h), h["routes"].as_array().cloned().unwrap_or_default().iter().map(name).collect()))
            .collect()
    };
    let route = |operation: &str, vhost: &str| {
        format!(
            "[{{applyTo: HTTP_ROUTE, match: {{routeConfiguration: {{vhost: {vhost}}}}}, \
               patch: {{operation: {operation}, value: {{name: new, match: {{prefix: /n}}, route: {{cluster: n}}}}}}}}]"
        )
    };
    let one = |operation: &str, vhost: &str| names(&route(operation, vhost)).remove(0).1;
    let before = "{domainName: one, route: {name: b}}";
    assert_eq!(one("INSERT_BEFORE", before), ["a", "new", "b"]);
    assert_eq!(one("INSERT_AFTER", "{domainName: one, route: {action: REDIRECT}}"), ["a", "new", "b"]);
    assert_eq!(one("INSERT_FIRST", before), ["new", "a", "b"]);
    assert_eq!(one("INSERT_FIRST", "{route: {name: nobody}}"), ["a", "b"]);
    assert_eq!(one("INSERT_BEFORE", "{name: 'one:80'}"), ["new", "a", "b"]);
    assert_eq!(one("INSERT_AFTER", "{name: 'one:80'}"), ["a", "b", "new"]);
    assert_eq!(one("ADD", "{}"), ["a", "b", "new"]);
    assert_eq!(one("REMOVE", "{route: {action: REDIRECT}}"), ["b"]);
    assert_eq!(names(&route("ADD", "{name: 'two:80'}"))[0].1, ["a", "b"]);
    let host = |operation: &str, matched: &str, value: &str| {
        names(&format!("[{{applyTo: VIRTUAL_HOST, match: {{routeConfiguration: {matched}}}, patch: {{operation: {operation}, value: {value}}}}}]"))
            .into_iter()
            .map(|(name, _)| name)
            .collect::<Vec<_>>()
    };
    assert_eq!(host("REMOVE", "{vhost: {domainName: one}}", "{}"), ["two:80"]);
    assert_eq!(host("ADD", "{name: '80'}", "{name: new, domains: [n]}"), ["one:80", "two:80", "new"]);
    assert_eq!(host("ADD", "{portNumber: 81}", "{name: new, domains: [n]}"), ["one:80", "two:80"]);
    assert_eq!(host("REPLACE", "{vhost: {name: 'two:80'}}", "{name: new, domains: [n]}"), ["one:80", "new"]);
}

#[test]
fn gateways_tell_routes_by_port_and_gateway() {
    let facts = Facts(vec![Served { target_port: 8080, port: 80, host: "gw".into() }]);
    let changed = |name: &str, matched: &str| {
        let patch = format!(
            "[{{applyTo: ROUTE_CONFIGURATION, match: {{context: GATEWAY, routeConfiguration: {matched}}}, patch: {{operation: MERGE, value: {{max_direct_response_body_size_bytes: 1}}}}}}]"
        );
        let bytes = wire(ROUTES, &json!({"name": name}));
        set_of(true, facts.clone(), &patch).apply(TypeUrl::Route, name, Some(&bytes)).0 != Patched::Same
    };
    assert!(changed("http.8080", "{portNumber: 8080}") && changed("http.8080", "{portNumber: 80}"));
    assert!(!changed("http.8080", "{portNumber: 81}") && !changed("http.8080", "{gateway: shop/gw}"));
    let https = "https.443.web.gw.shop";
    assert!(changed(https, "{gateway: shop/gw, portName: web, portNumber: 443}"));
    assert!(!changed(https, "{gateway: shop/other}") && !changed(https, "{portName: other}"));
}

#[test]
fn clusters_are_found_by_what_their_names_say() {
    let facts = Facts(vec![Served { target_port: 8080, port: 80, host: "web.shop.svc.cluster.local".into() }]);
    let changed = |name: &str, matched: &str| {
        let patch = format!(
            "[{{applyTo: CLUSTER, match: {{cluster: {matched}}}, patch: {{operation: MERGE, value: {{alt_stat_name: x}}}}}}]"
        );
        let bytes = wire(CLUSTER, &json!({"name": name, "type": "STATIC"}));
        set_of(false, facts.clone(), &patch).apply(TypeUrl::Cluster, name, Some(&bytes)).0 != Patched::Same
    };
    let v1 = "outbound|80|v1|reviews.shop.svc.cluster.local";
    assert!(changed(v1, "{}") && changed(v1, "{subset: v1, portNumber: 80, service: reviews.shop.svc.cluster.local}"));
    assert!(!changed(v1, "{subset: v2}") && !changed(v1, "{portNumber: 81}") && !changed(v1, "{service: reviews}"));
    assert!(
        changed("BlackHoleCluster", "{name: BlackHoleCluster}") && !changed("BlackHoleCluster", "{portNumber: 80}")
    );
    assert!(changed("inbound|8080||", "{service: web.shop.svc.cluster.local}"));
    assert!(!changed("inbound|8080||", "{service: other.shop.svc.cluster.local}"));
}

#[test]
fn transport_sockets_of_one_name_are_merged() {
    const TLS: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext";
    let socket = || json!({"name": "envoy.transport_sockets.tls", "typed_config": {"@type": TLS, "sni": "a"}});
    let patch = format!(
        "[{{applyTo: CLUSTER, patch: {{operation: MERGE, value: {{connect_timeout: 2s, transport_socket: \
         {{name: envoy.transport_sockets.tls, typed_config: {{'@type': {TLS}, max_session_keys: 0}}}}}}}}}}]"
    );
    let merged = json!({"name": "envoy.transport_sockets.tls", "typed_config": {"@type": TLS, "sni": "a", "max_session_keys": 0}});
    let out = patched(&sidecar(&patch), TypeUrl::Cluster, &json!({"name": "a", "transport_socket": socket()})).unwrap();
    assert_eq!((&out["transport_socket"], &out["connect_timeout"]), (&merged, &json!("2s")));
    let by_endpoint = json!({"name": "a", "transport_socket_matches": [{"name": "t", "transport_socket": socket()}]});
    let out = patched(&sidecar(&patch), TypeUrl::Cluster, &by_endpoint).unwrap();
    assert_eq!(out["transport_socket_matches"][0]["transport_socket"], merged);
    assert_eq!(out.get("transport_socket"), None);
    let plain = patched(&sidecar(&patch), TypeUrl::Cluster, &json!({"name": "a"})).unwrap();
    assert_eq!(plain["transport_socket"]["typed_config"], json!({"@type": TLS, "max_session_keys": 0}));
}

#[test]
fn what_is_added_has_a_name_of_its_own() {
    let add = |context: &str| {
        format!(
            "[{{applyTo: CLUSTER, match: {{context: {context}}}, patch: {{operation: ADD, value: {{name: new, type: EDS, eds_cluster_config: {{eds_config: {{ads: {{}}}}}}}}}}}}]"
        )
    };
    for (gateway, context, added) in [
        (false, "ANY", true),
        (false, "SIDECAR_INBOUND", true),
        (false, "GATEWAY", false),
        (true, "GATEWAY", true),
        (true, "ANY", true),
        (true, "SIDECAR_OUTBOUND", false),
    ] {
        let set = set_of(gateway, Facts::default(), &add(context));
        assert_eq!(set.names(TypeUrl::Cluster).len(), usize::from(added), "{gateway} {context}");
        let (out, _) = set.apply(TypeUrl::Cluster, "new", None);
        let Patched::Changed(_, needs) = out else {
            assert!(!added, "{gateway} {context}");
            continue;
        };
        assert_eq!((needs.len(), needs[0].ty, &*needs[0].name), (1, TypeUrl::Endpoints, "new"));
    }
    let set = sidecar(&add("ANY"));
    let (out, troubles) = set.apply(TypeUrl::Cluster, "new", Some(&wire(CLUSTER, &json!({"name": "new"}))));
    assert_eq!((out, troubles.len()), (Patched::Same, 1));
    let config = "[{applyTo: EXTENSION_CONFIG, patch: {operation: ADD, value: {name: x, typed_config: {'@type': type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer}}}}]";
    assert!(matches!(sidecar(config).apply(TypeUrl::Extension, "x", None).0, Patched::Changed(..)));
    assert_eq!(sidecar(config).apply(TypeUrl::Extension, "y", None).0, Patched::Same);
}

#[test]
fn clients_ask_for_what_patches_refer_to() {
    let discovered = "[{applyTo: HTTP_FILTER, match: {listener: {portNumber: 8080}}, patch: {operation: INSERT_FIRST, value: \
        {name: ext, config_discovery: {config_source: {ads: {}}, type_urls: [x]}}}}]";
    let (out, _) = sidecar(discovered).apply(TypeUrl::Listener, "virtualInbound", Some(&wire(LISTENER, &inbound())));
    let Patched::Changed(_, needs) = out else { panic!("{out:?}") };
    assert_eq!((needs.len(), needs[0].ty, &*needs[0].name), (1, TypeUrl::Extension, "ext"));
}
