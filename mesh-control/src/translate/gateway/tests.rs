//! Gateways from manifests to listeners and routes.

use mesh_api::model::{
    Action, FilterChain, Forward, Listener, NetworkFilter, PathMatch, RequireTls, Route, RouteConfig, RouteSource,
    Target, VirtualHost,
};

use super::super::{
    filter_chain::{ChainEnv, Class},
    telemetry::{TelemetryPlan, objects},
    testing::{World, texts},
};

const SERVICES: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec: {clusterIP: 10.1.0.1, ports: [{name: http, port: 80}, {name: tcp, port: 5000}]}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: api, namespace: bank}\nspec: {clusterIP: 10.1.0.2, ports: [{name: http, port: 80}]}\n";

fn gateway(name: &str, servers: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {{name: {name}, namespace: infra}}\nspec: {{selector: {{istio: ingress}}, servers: {servers}}}\n"
    )
}

fn virtual_service(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {name}, namespace: shop}}\nspec: {spec}\n"
    )
}

fn listeners(yaml: &str) -> Vec<Listener> {
    let world = World::new(&format!("{SERVICES}{yaml}"));
    let view =
        world.gateway("10.0.0.9", "infra", &[("istio", "ingress"), (super::super::gateway_api::GATEWAY_NAME, "gw")]);
    let plan = TelemetryPlan::of(world.index(), &view, &objects(world.index(), &view));
    world.ask(&view, |r| {
        let env = ChainEnv {
            class: Class::Gateway,
            native: true,
            telemetry: &plan.client,
            mesh: r.index.mesh(),
            settings: &r.view.proxy_config,
            authentication: None,
            authorization: None,
            names: &[],
        };
        super::listeners(*r, &env)
    })
}

fn routes(yaml: &str, name: &str) -> Option<RouteConfig> {
    let world = World::new(&format!("{SERVICES}{yaml}"));
    let view =
        world.gateway("10.0.0.9", "infra", &[("istio", "ingress"), (super::super::gateway_api::GATEWAY_NAME, "gw")]);
    world.ask(&view, |r| super::routes(*r, name))
}

fn host<'a>(c: &'a RouteConfig, name: &str) -> &'a VirtualHost {
    let names: Vec<_> = c.virtual_hosts.iter().map(|v| &v.name).collect();
    c.virtual_hosts.iter().find(|v| *v.name == *name).unwrap_or_else(|| panic!("{name} is not in {names:?}"))
}

fn forward(r: &Route) -> &Forward {
    match &r.action {
        Action::Forward(f) => f,
        other => panic!("{other:?}"),
    }
}

fn target(r: &Route) -> String {
    match &forward(r).target {
        Target::Cluster(c) => c.to_string(),
        Target::Weighted(w) => w.iter().map(|c| format!("{}={}", c.name, c.weight)).collect::<Vec<_>>().join(" "),
        Target::ClusterHeader(h) => h.to_string(),
    }
}

fn ends(chain: &FilterChain) -> String {
    match chain.filters.last().unwrap() {
        NetworkFilter::Http(m) => match &m.routes {
            RouteSource::Rds(name) => name.to_string(),
            RouteSource::Inline(_) => "inline".to_owned(),
        },
        NetworkFilter::TcpProxy(p) => format!("{:?}", p.clusters),
        other => format!("{other:?}"),
    }
}

#[test]
fn servers_are_merged_by_port() {
    let yaml = gateway(
        "a",
        "[{port: {number: 80, name: http, protocol: HTTP}, hosts: [a.test]}, {port: {number: 443, name: https, protocol: HTTPS}, hosts: [a.test], tls: {mode: SIMPLE, credentialName: a}}]",
    ) + &gateway(
        "b",
        "[{port: {number: 80, name: http, protocol: HTTP}, hosts: ['*']}, {port: {number: 443, name: https, protocol: HTTPS}, hosts: [b.test, a.test], tls: {mode: SIMPLE, credentialName: b}}, {port: {number: 443, name: h2, protocol: HTTPS}, hosts: [c.test], tls: {mode: MUTUAL, credentialName: c}}]",
    );
    let all = listeners(&yaml);
    let names: Vec<&str> = all.iter().map(|l| &*l.name).collect();
    assert_eq!(names, ["0.0.0.0_80", "0.0.0.0_443"]);
    assert_eq!(all[0].filter_chains.len(), 1);
    assert_eq!(ends(&all[0].filter_chains[0]), "http.80");
    let tls: Vec<(String, String)> =
        all[1].filter_chains.iter().map(|c| (c.matches.server_names.join(","), ends(c))).collect();
    // The server with a host that another has is dropped as a whole.
    assert_eq!(
        tls,
        [
            ("a.test".to_owned(), "https.443.https.a.infra".to_owned()),
            ("c.test".to_owned(), "https.443.h2.b.infra".to_owned())
        ]
    );
    assert!(all[1].filter_chains[1].tls.as_ref().unwrap().require_client_certificate);
    let NetworkFilter::Http(m) = &all[0].filter_chains[0].filters[0] else { panic!() };
    assert!(m.use_remote_address && m.normalize_path);
}

#[test]
fn virtual_services_of_one_host_are_merged_and_the_match_all_sinks() {
    let yaml = gateway(
        "gw1",
        "[{port: {number: 80, name: http, protocol: HTTP}, hosts: ['shop/*.test', 'bank/only.bank']}]",
    ) + &virtual_service(
        "a",
        "{hosts: [x.test], gateways: [infra/gw1], http: [{route: [{destination: {host: web}}]}]}",
    ) + &virtual_service(
        "b",
        "{hosts: [x.test, only.bank], gateways: [infra/gw1], http: [{match: [{uri: {prefix: /b}}], route: [{destination: {host: api.bank.svc.cluster.local, port: {number: 80}}}]}]}",
    ) + &virtual_service(
        "c",
        "{hosts: ['*'], gateways: [infra/gw1], http: [{match: [{gateways: [mesh]}], route: [{destination: {host: web}}]}, {directResponse: {status: 404}}]}",
    ) + &virtual_service(
        "d",
        "{hosts: [y.test], gateways: [other], http: [{route: [{destination: {host: web}}]}]}",
    );
    let c = routes(&yaml, "http.80").unwrap();
    let names: Vec<&str> = c.virtual_hosts.iter().map(|v| &*v.name).collect();
    assert_eq!(names, ["*.test:80", "x.test:80"]);
    let x = host(&c, "x.test:80");
    assert_eq!(texts(&x.domains), ["x.test"]);
    assert_eq!(
        x.routes.iter().map(target).collect::<Vec<_>>(),
        ["outbound|80||api.bank.svc.cluster.local", "outbound|80||web.shop.svc.cluster.local"]
    );
    assert_eq!(host(&c, "*.test:80").routes.len(), 1);
    assert!(routes(&yaml, "http.81").is_none());
}

#[test]
fn https_redirect_and_nothing_routed() {
    let yaml = gateway(
        "gw1",
        "[{port: {number: 80, name: http, protocol: HTTP}, hosts: [a.test], tls: {httpsRedirect: true}}]",
    );
    let c = routes(&yaml, "http.80").unwrap();
    assert_eq!(host(&c, "a.test:80").require_tls, RequireTls::All);
    let all =
        gateway("gw1", "[{port: {number: 80, name: http, protocol: HTTP}, hosts: ['*'], tls: {httpsRedirect: true}}]")
            + &virtual_service(
                "a",
                "{hosts: [a.test], gateways: [infra/gw1], http: [{route: [{destination: {host: web}}]}]}",
            );
    let c = routes(&all, "http.80").unwrap();
    assert_eq!(host(&c, "a.test:80").require_tls, RequireTls::All, "a host below that of the server");
    let yaml = gateway("gw1", "[{port: {number: 80, name: http, protocol: HTTP}, hosts: [a.test]}]");
    let c = routes(&yaml, "http.80").unwrap();
    assert!(host(&c, "blackhole:80").routes.is_empty());
}

#[test]
fn listens_on_the_target_port_of_its_service() {
    let yaml = "---\napiVersion: v1\nkind: Service\nmetadata: {name: ingress, namespace: infra}\nspec: {clusterIP: 10.1.0.9, selector: {istio: ingress}, ports: [{name: http, port: 80, targetPort: 8080}]}\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: ingress-1, namespace: infra, labels: {istio: ingress}}\nspec: {}\nstatus: {podIP: 10.0.0.9, phase: Running, conditions: [{type: Ready, status: 'True'}]}\n".to_owned()
        + &gateway("gw1", "[{port: {number: 80, name: http, protocol: HTTP}, hosts: ['*']}]");
    let all = listeners(&yaml);
    assert_eq!(&*all[0].name, "0.0.0.0_8080");
    assert_eq!(ends(&all[0].filter_chains[0]), "http.8080");
    assert!(routes(&yaml, "http.8080").is_some());
}

#[test]
fn tcp_and_tls_servers() {
    let yaml = gateway(
        "gw1",
        "[{port: {number: 5000, name: tcp, protocol: TCP}, hosts: ['*']}, {port: {number: 5001, name: tcp2, protocol: TCP}, hosts: ['*']}, {port: {number: 443, name: tls, protocol: TLS}, hosts: ['*.test'], tls: {mode: PASSTHROUGH}}, {port: {number: 444, name: tls-term, protocol: TLS}, hosts: [db.test], tls: {mode: SIMPLE, credentialName: db}}]",
    ) + &virtual_service(
        "t",
        "{hosts: ['*'], gateways: [infra/gw1], tcp: [{match: [{port: 5000}, {port: 444}], route: [{destination: {host: web, port: {number: 5000}}}]}], tls: [{match: [{port: 443, sniHosts: [a.test, b.other]}], route: [{destination: {host: web, port: {number: 80}}, weight: 1}, {destination: {host: api.bank.svc.cluster.local}, weight: 3}]}]}",
    );
    let all = listeners(&yaml);
    let names: Vec<&str> = all.iter().map(|l| &*l.name).collect();
    assert_eq!(names, ["0.0.0.0_443", "0.0.0.0_444", "0.0.0.0_5000"], "a server without a route has no listener");
    let chain = &all[0].filter_chains[0];
    assert_eq!((texts(&chain.matches.server_names), chain.tls.is_none()), (vec!["a.test"], true));
    assert_eq!(
        ends(chain),
        "[(\"outbound|80||web.shop.svc.cluster.local\", 1), (\"outbound|80||api.bank.svc.cluster.local\", 3)]"
    );
    assert!(all[1].filter_chains[0].tls.is_some());
    assert_eq!(ends(&all[2].filter_chains[0]), "[(\"outbound|5000||web.shop.svc.cluster.local\", 1)]");
}

const API: &str = "---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: gw, namespace: infra}\nspec: {gatewayClassName: istio, listeners: [{name: http, port: 80, protocol: HTTP, hostname: '*.a.test', allowedRoutes: {namespaces: {from: All}}}, {name: own, port: 80, protocol: HTTP, hostname: own.test}, {name: https, port: 443, protocol: HTTPS, allowedRoutes: {namespaces: {from: All}}, tls: {certificateRefs: [{name: cert}]}}]}\n";

fn http_route(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{parentRefs: [{{name: gw, namespace: infra}}], {spec}}}\n"
    )
}

#[test]
fn http_routes_attach_to_listeners_that_admit_them() {
    let yaml = API.to_owned()
        + &http_route(
            "r",
            "hostnames: [x.a.test, own.test, other.test], rules: [{backendRefs: [{name: web, port: 80, weight: 9}, {name: web, port: 5000, weight: 1}]}]",
        );
    let all = listeners(&yaml);
    assert_eq!(ends(&all[0].filter_chains[0]), "http.80");
    assert_eq!(ends(&all[1].filter_chains[0]), "https.443.default.gw-istio-autogenerated-k8s-gateway-https.infra");
    let c = routes(&yaml, "http.80").unwrap();
    let names: Vec<&str> = c.virtual_hosts.iter().map(|v| &*v.name).collect();
    assert_eq!(names, ["x.a.test:80"], "own.test admits only its own namespace");
    assert_eq!(
        target(&c.virtual_hosts[0].routes[0]),
        "outbound|80||web.shop.svc.cluster.local=9 outbound|5000||web.shop.svc.cluster.local=1"
    );
    let c = routes(&yaml, "https.443.default.gw-istio-autogenerated-k8s-gateway-https.infra").unwrap();
    assert_eq!(c.virtual_hosts.len(), 3);
}

#[test]
fn matches_go_by_precedence_over_all_routes() {
    let yaml = API.to_owned()
        + &http_route(
            "r1",
            "hostnames: [x.a.test], rules: [{matches: [{path: {value: /}}, {path: {value: /a}, method: GET}], backendRefs: [{name: web, port: 80}]}]",
        )
        + &http_route(
            "r2",
            "hostnames: [x.a.test], rules: [{matches: [{path: {value: /a}, headers: [{name: X-V, value: v2}]}, {path: {type: Exact, value: /a}}, {path: {value: /a/b}}], backendRefs: [{name: web, port: 80}]}]",
        );
    let c = routes(&yaml, "http.80").unwrap();
    let order: Vec<String> = c.virtual_hosts[0]
        .routes
        .iter()
        .map(|r| {
            format!("{:?} {}", r.matches.path, r.matches.headers.iter().map(|h| &*h.name).collect::<Vec<_>>().join(","))
        })
        .collect();
    assert_eq!(
        order,
        [
            "Exact(\"/a\") ",
            "PathSeparatedPrefix(\"/a/b\") ",
            "PathSeparatedPrefix(\"/a\") :method",
            "PathSeparatedPrefix(\"/a\") x-v",
            "Prefix(\"/\") "
        ]
    );
}

#[test]
fn backends_of_other_namespaces_need_a_grant_and_else_answer_500() {
    let route = http_route(
        "r",
        "hostnames: [x.a.test], rules: [{matches: [{path: {value: /api}}], backendRefs: [{name: api, namespace: bank, port: 80}]}, {matches: [{path: {value: /none}}], backendRefs: [{name: web, port: 80, weight: 0}]}]",
    );
    let c = routes(&(API.to_owned() + &route), "http.80").unwrap();
    let [none, api] = c.virtual_hosts[0].routes.as_slice() else { panic!() };
    assert_eq!(none.action, Action::DirectResponse { status: 500, body: "".into() });
    assert_eq!((target(api).as_str(), forward(api).cluster_not_found_status), ("UnknownService", 500));
    let grant = "---\napiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\nmetadata: {name: g, namespace: bank}\nspec: {from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: shop}], to: [{group: '', kind: Service}]}\n";
    let c = routes(&(API.to_owned() + &route + grant), "http.80").unwrap();
    assert_eq!(target(&c.virtual_hosts[0].routes[1]), "outbound|80||api.bank.svc.cluster.local");
}

#[test]
fn filters_of_rules() {
    use mesh_api::model::{HostRewrite, PathRewrite, Redirect, RedirectPath};
    let yaml = API.to_owned()
        + &http_route(
            "r",
            "hostnames: [x.a.test], rules: [{matches: [{path: {value: /redirect}}], filters: [{type: RequestRedirect, requestRedirect: {scheme: https, path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}}]}, {matches: [{path: {value: /rewrite}}], timeouts: {request: 2s, backendRequest: 1s}, filters: [{type: URLRewrite, urlRewrite: {hostname: in.test, path: {type: ReplacePrefixMatch, replacePrefixMatch: /new}}}, {type: RequestMirror, requestMirror: {backendRef: {name: web, port: 5000}, percent: 50}}, {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: X-A, value: '1'}], remove: [X-B]}}, {type: CORS, cors: {allowOrigins: ['https://*.a.test']}}], backendRefs: [{name: web, port: 80}]}]",
        );
    let c = routes(&yaml, "http.80").unwrap();
    let [redirect, rewrite] = c.virtual_hosts[0].routes.as_slice() else { panic!() };
    let Action::Redirect(r) = &redirect.action else { panic!() };
    assert_eq!(
        **r,
        Redirect {
            scheme: "https".into(),
            code: 302,
            path: Some(RedirectPath::Regex { pattern: "^/redirect/?(.*)".into(), substitution: "/\\1".into() }),
            host: "".into(),
            ..Redirect::default()
        }
    );
    let f = forward(rewrite);
    assert_eq!(f.host_rewrite, Some(HostRewrite::Literal("in.test".into())));
    assert_eq!(f.rewrite, Some(PathRewrite::Prefix("/new".into())));
    assert_eq!((f.timeout.unwrap().as_secs(), f.retry.as_ref().unwrap().per_try_timeout.unwrap().as_secs()), (2, 1));
    assert_eq!(
        (&*f.mirrors[0].cluster, f.mirrors[0].fraction.0),
        ("outbound|5000||web.shop.svc.cluster.local", 500_000)
    );
    assert_eq!(rewrite.headers.request.remove, ["x-b".into()]);
    assert_eq!(rewrite.filter_overrides.len(), 1);
}

#[test]
fn grpc_routes_match_methods() {
    let yaml = API.to_owned()
        + "---\napiVersion: gateway.networking.k8s.io/v1\nkind: GRPCRoute\nmetadata: {name: g, namespace: shop}\nspec: {parentRefs: [{name: gw, namespace: infra}], hostnames: [x.a.test], rules: [{matches: [{method: {service: a.B, method: C}}, {method: {service: a.B}}, {method: {method: D}}], backendRefs: [{name: web, port: 80}]}]}\n";
    let c = routes(&yaml, "http.80").unwrap();
    let paths: Vec<String> = c.virtual_hosts[0].routes.iter().map(|r| format!("{:?}", r.matches.path)).collect();
    assert_eq!(paths, ["Exact(\"/a.B/C\")", "Prefix(\"/a.B/\")", "Regex(\"/[^/]+/D\")"]);
}

#[test]
fn ingresses_route_by_segments_and_are_the_cause() {
    let yaml = "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata: {mesh: '{ingressControllerMode: DEFAULT, ingressSelector: ingress}'}\n---\napiVersion: networking.k8s.io/v1\nkind: Ingress\nmetadata: {name: edge, namespace: shop}\nspec: {rules: [{host: a.test, http: {paths: [{path: /a/, pathType: Prefix, backend: {service: {name: web, port: {name: http}}}}, {path: /, pathType: Prefix, backend: {service: {name: web, port: {number: 80}}}}]}}]}\n";
    let config = routes(yaml, "http.80").unwrap();
    let host = host(&config, "a.test:80");
    let paths: Vec<&PathMatch> = host.routes.iter().map(|r| &r.matches.path).collect();
    assert_eq!(paths, [&PathMatch::PathSeparatedPrefix("/a".into()), &PathMatch::Prefix("/".into())]);
    assert_eq!(target(&host.routes[0]), "outbound|80||web.shop.svc.cluster.local");
    assert_eq!(&*host.routes[0].origin.config, "/apis/networking.k8s.io/v1/namespaces/shop/ingress/edge");
    assert_eq!(listeners(yaml)[0].filter_chains.len(), 1);
}

#[test]
fn names_that_applications_take_for_the_gateways_own_are_removed() {
    let yaml = gateway("gw", "[{port: {number: 80, name: http, protocol: HTTP}, hosts: ['*']}]");
    let config = routes(&yaml, "http.80").unwrap();
    let removed: Vec<&str> = config.headers.request.remove.iter().map(|name| &**name).collect();
    for name in ["x_forwarded_for", "x-forwarded_for", "x_forwarded-for", "x_envoy-external_address"] {
        assert!(removed.contains(&name), "{name} is not in {removed:?}");
    }
    assert!(!removed.iter().any(|name| !name.contains('_')), "headers of the gateway's own stay");
}

/// Who serves a Gateway: names of its listeners' servers, for a proxy of namespace `infra` with these labels.
fn serves(yaml: &str, labels: &[(&str, &str)]) -> Vec<String> {
    let world = World::new(yaml);
    let view = world.gateway("10.0.0.9", "infra", labels);
    let all = super::super::gateway_api::gateways_of(world.index(), &view);
    all.iter().map(|g| format!("{}/{}", g.object.key.namespace, g.object.key.name)).collect()
}

#[test]
fn gateways_by_the_name_of_a_service() {
    let of = |namespace: &str, address: &str| {
        format!(
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: gw, namespace: {namespace}}}\nspec: {{gatewayClassName: istio, addresses: [{{type: Hostname, value: {address}}}], listeners: [{{name: http, port: 80, protocol: HTTP}}]}}\n"
        )
    };
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: edge, namespace: infra}\nspec: {clusterIP: 10.1.0.5, ports: [{name: http, port: 80}]}\n---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: edge, namespace: infra, labels: {kubernetes.io/service-name: edge}}\naddressType: IPv4\nports: [{name: http, port: 80}]\nendpoints: [{addresses: [10.0.0.9]}]\n";
    let full = "edge.infra.svc.cluster.local";
    assert_eq!(serves(&format!("{service}{}", of("infra", "edge")), &[]), ["infra/gw"], "a short name");
    assert_eq!(serves(&format!("{service}{}", of("shop", full)), &[]), ["shop/gw"], "of another namespace");
    assert_eq!(serves(&format!("{service}{}", of("shop", "edge")), &[]), [""; 0], "its own namespace's edge");
}

#[test]
fn gateways_with_long_names_are_known_by_what_is_left_of_them() {
    let name = "g".repeat(200);
    let yaml = API.replace("name: gw,", &format!("name: {name},"));
    let label = super::super::gateway_infrastructure::label_value(&name);
    assert_eq!(serves(&yaml, &[(super::super::gateway_api::GATEWAY_NAME, &label)]), [format!("infra/{name}")]);
}
