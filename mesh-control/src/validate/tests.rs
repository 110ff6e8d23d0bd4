//! What is refused, and where the finding points: one line of YAML a case.

use std::path::Path;

use crate::source::manifest;
use crate::validate::Level;

/// `LEVEL FIELD` of all errors and warnings of an object with this spec.
fn findings(api: &str, kind: &str, spec: &str) -> Vec<String> {
    let text = format!("apiVersion: {api}\nkind: {kind}\nmetadata: {{name: a, namespace: b}}\nspec: {spec}\n");
    let readings = manifest::read(Path::new("a.yaml"), &text);
    let all = readings.iter().flat_map(|r| &r.findings).filter(|f| f.level != Level::Info);
    all.map(|f| format!("{} {}", if f.level == Level::Error { "E" } else { "W" }, f.field)).collect()
}

#[track_caller]
fn refused(api: &str, kind: &str, cases: &[(&str, &str)]) {
    for (spec, field) in cases {
        let found = findings(api, kind, spec);
        assert!(found.contains(&format!("E {field}")), "{kind} {spec}\nexpected {field}, found {found:?}");
    }
}

#[track_caller]
fn good(api: &str, kind: &str, specs: &[&str]) {
    for spec in specs {
        assert_eq!(findings(api, kind, spec), Vec::<String>::new(), "{kind} {spec}");
    }
}

const NET: &str = "networking.istio.io/v1";
const SEC: &str = "security.istio.io/v1";
const GW: &str = "gateway.networking.k8s.io/v1";

#[test]
fn names_that_are_looked_up_are_said_by_clients() {
    let port = "resolution: DYNAMIC_DNS, ports: [{number: 80, name: http, protocol: HTTP}, {number: 443, name: tls, protocol: TLS}]";
    let both = [
        format!("{{hosts: ['*.a.test'], location: MESH_EXTERNAL, {port}}}"),
        format!("{{hosts: ['*.a.test'], location: MESH_INTERNAL, {port}}}"),
    ];
    good(NET, "ServiceEntry", &both.each_ref().map(String::as_str));
    let bad = "{resolution: DYNAMIC_DNS, hosts: ['*.a.test', b.test], addresses: [10.0.0.1], endpoints: [{address: 10.0.0.2}], ports: [{number: 1, name: redis, protocol: REDIS}]}";
    let fields = ["spec.hosts[1]", "spec.addresses", "spec.endpoints", "spec.ports[0].protocol"];
    refused(NET, "ServiceEntry", &fields.map(|field| (bad, field)));
}

#[test]
fn virtual_services() {
    let http = |rule: &str| format!("{{hosts: [a], http: [{rule}]}}");
    let cases = [
        ("{}", "spec.http[0]"),
        ("{route: [{destination: {host: ''}}]}", "spec.http[0].route[0].destination.host"),
        ("{route: [{destination: {host: x}, weight: -1}]}", "spec.http[0].route[0].weight"),
        ("{route: [{destination: {host: x}}], redirect: {uri: /a}}", "spec.http[0]"),
        ("{match: [{uri: {exact: a, prefix: b}}], route: [{destination: {host: x}}]}", "spec.http[0].match[0].uri"),
        ("{match: [{uri: {regex: '('}}], route: [{destination: {host: x}}]}", "spec.http[0].match[0].uri.regex"),
        ("{route: [{destination: {host: x}}], timeout: 1x}", "spec.http[0].timeout"),
        ("{route: [{destination: {host: x}}], retries: {attempts: -1}}", "spec.http[0].retries.attempts"),
        ("{route: [{destination: {host: x}}], tiemout: 1s}", "spec.http[0].tiemout"),
        (
            "{route: [{destination: {host: x}}], fault: {abort: {httpStatus: 42}}}",
            "spec.http[0].fault.abort.httpStatus",
        ),
        ("{directResponse: {status: 42}}", "spec.http[0].directResponse.status"),
    ];
    for (rule, field) in cases {
        refused(NET, "VirtualService", &[(&http(rule), field)]);
    }
    refused(NET, "VirtualService", &[("{hosts: ['a b']}", "spec.hosts[0]")]);
    good(
        NET,
        "VirtualService",
        &[
            "{hosts: [a, '*.b.c'], http: [{match: [{uri: {prefix: /}}], route: [{destination: {host: x}}]}]}",
            "{hosts: [a], tcp: [{route: [{destination: {host: x}}]}]}",
            "{hosts: [a], http: [{match: [{port: 80}], redirect: {authority: b}}, {directResponse: {status: 503}}]}",
        ],
    );
}

#[test]
fn destination_rules() {
    refused(
        NET,
        "DestinationRule",
        &[
            ("{}", "spec.host"),
            ("{host: a, subsets: [{name: '', labels: {v: '1'}}]}", "spec.subsets[0].name"),
            (
                "{host: a, trafficPolicy: {loadBalancer: {consistentHash: {}}}}",
                "spec.trafficPolicy.loadBalancer.consistentHash",
            ),
            ("{host: a, trafficPolicy: {tls: {mode: MUTUAL}}}", "spec.trafficPolicy.tls.clientCertificate"),
        ],
    );
    good(
        NET,
        "DestinationRule",
        &[
            "{host: a, subsets: [{name: v1, labels: {version: v1}}], trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}}",
            "{host: a, trafficPolicy: {loadBalancer: {simple: LEAST_REQUEST}, outlierDetection: {consecutive5xxErrors: 3}}}",
        ],
    );
}

#[test]
fn gateways_entries_and_sidecars() {
    refused(
        NET,
        "Gateway",
        &[
            ("{selector: {a: b}}", "spec.servers"),
            (
                "{selector: {a: b}, servers: [{port: {number: 443, name: s, protocol: HTTPS}, hosts: ['*']}]}",
                "spec.servers[0].tls",
            ),
            (
                "{selector: {a: b}, servers: [{port: {number: 80, name: s, protocol: HTP}, hosts: ['*']}]}",
                "spec.servers[0].port.protocol",
            ),
            ("{selector: {a: b}, servers: [{port: {number: 80, name: s, protocol: HTTP}}]}", "spec.servers[0].hosts"),
        ],
    );
    refused(
        NET,
        "ServiceEntry",
        &[
            ("{ports: [{number: 80, name: a, protocol: HTTP}]}", "spec.hosts"),
            ("{hosts: ['*'], ports: [{number: 80, name: a, protocol: HTTP}]}", "spec.hosts[0]"),
        ],
    );
    good(NET, "ServiceEntry", &["{hosts: [a.com], ports: [{number: 80, name: a, protocol: HTTP}], resolution: DNS}"]);
    refused(NET, "WorkloadEntry", &[("{}", "spec.address")]);
    refused(NET, "Sidecar", &[("{egress: [{hosts: []}]}", "spec.egress[0].hosts")]);
    good(NET, "Sidecar", &["{egress: [{hosts: ['./*', 'istio-system/*']}]}"]);
}

#[test]
fn security() {
    refused(
        SEC,
        "AuthorizationPolicy",
        &[
            ("{action: ALOW}", "spec.action"),
            ("{rules: [{to: [{}]}]}", "spec.rules[0].to[0].operation"),
            ("{rules: [{when: [{key: nonsense, values: [a]}]}]}", "spec.rules[0].when[0].key"),
            ("{rules: [{from: [{source: {ipBlocks: [a]}}]}]}", "spec.rules[0].from[0].source.ipBlocks[0]"),
        ],
    );
    good(
        SEC,
        "AuthorizationPolicy",
        &[
            "{}",
            "{action: DENY, rules: [{from: [{source: {principals: ['*/sa/x']}}], to: [{operation: {methods: [GET], paths: ['/a*']}}]}]}",
        ],
    );
    refused(
        SEC,
        "PeerAuthentication",
        &[("{portMtls: {}}", "spec.portMtls"), ("{mtls: {mode: ON}}", "spec.mtls.mode")],
    );
    good(SEC, "PeerAuthentication", &["{mtls: {mode: STRICT}}"]);
}

#[test]
fn gateway_api() {
    refused(
        GW,
        "HTTPRoute",
        &[
            ("{rules: [{matches: [{path: {type: Exact, value: a}}]}]}", "spec.rules[0].matches[0].path.value"),
            ("{rules: [{filters: [{type: RequestRedirect}]}]}", "spec.rules[0].filters[0].requestRedirect"),
        ],
    );
    good(GW, "HTTPRoute", &["{parentRefs: [{name: g}], rules: [{backendRefs: [{name: a, port: 80}]}]}"]);
}

#[test]
fn what_the_published_schemas_refuse() {
    refused(
        GW,
        "HTTPRoute",
        &[
            ("{rules: [{matches: [{method: FETCH}]}]}", "spec.rules[0].matches[0].method"),
            ("{rules: [{matches: [{headers: [{name: a}]}]}]}", "spec.rules[0].matches[0].headers[0]"),
            (
                "{rules: [{filters: [{type: CORS, cors: {allowMethods: ['*', GETT]}}]}]}",
                "spec.rules[0].filters[0].cors.allowMethods[1]",
            ),
            ("{rules: [{filters: [{type: URLRewrite, urlRewrite: {}, cors: {}}]}]}", "spec.rules[0].filters[0].cors"),
            (
                "{rules: [{filters: [{type: RequestMirror, requestMirror: {backendRef: {name: a, port: 80, weight: 1}}}]}]}",
                "spec.rules[0].filters[0].requestMirror.backendRef.weight",
            ),
        ],
    );
    let filter = "spec.rules[0].filters[0].type";
    refused(GW, "GRPCRoute", &[("{rules: [{filters: [{type: CORS, cors: {}}]}]}", filter)]);
    let backend = "{rules: [{backendRefs: [{name: a, port: 80, filters: [{type: URLRewrite, urlRewrite: {}}]}]}]}";
    refused(GW, "GRPCRoute", &[(backend, "spec.rules[0].backendRefs[0].filters[0].type")]);
    let external = "{type: ExternalAuth, externalAuth: {protocol: GRPC, backendRef: {name: a, port: 80}}}";
    let gateway = format!(
        "{{gatewayClassName: a, listeners: [{{name: a, port: 80, protocol: HTTP, filters: {{requests: [{external}]}}}}]}}"
    );
    refused(GW, "Gateway", &[(&gateway, "spec.listeners[0].filters")]);
    refused(
        GW,
        "ReferenceGrant",
        &[("{from: [{kind: Gateway, namespace: a}], to: [{group: '', kind: Secret}]}", "spec.from[0]")],
    );
    refused(
        NET,
        "Sidecar",
        &[
            ("{ingress: [{defaultEndpoint: '127.0.0.1:80'}]}", "spec.ingress[0]"),
            (
                "{outboundTrafficPolicy: {egressProxy: {port: {number: 80}}}}",
                "spec.outboundTrafficPolicy.egressProxy.host",
            ),
        ],
    );
    refused(NET, "VirtualService", &[("{hosts: [a], http: [{directResponse: {}}]}", "spec.http[0].directResponse")]);
    good(
        GW,
        "GRPCRoute",
        &["{rules: [{filters: [{type: RequestHeaderModifier, requestHeaderModifier: {remove: [a]}}]}]}"],
    );
}

#[test]
fn an_origin_that_says_nothing_is_refused() {
    let route = |origin: &str| {
        format!(
            "{{hosts: [a], http: [{{corsPolicy: {{allowOrigins: [{origin}]}}, route: [{{destination: {{host: a}}}}]}}]}}"
        )
    };
    refused(NET, "VirtualService", &[(&route("{}"), "spec.http[0].corsPolicy.allowOrigins[0]")]);
    good(NET, "VirtualService", &[&route("{exact: 'https://a.test'}")]);
}

#[test]
fn what_no_proxy_takes_is_refused_before_it_reaches_one() {
    let route = |part: &str| format!("{{hosts: [a], http: [{{{part}, route: [{{destination: {{host: a}}}}]}}]}}");
    let set = |value: &str| route(&format!("headers: {{request: {{set: {{x: \"{value}\"}}}}}}"));
    for bad in ["100%", "%REQ(x)", "%a%", "a\\nb"] {
        refused(NET, "VirtualService", &[(&set(bad), "spec.http[0].headers.request.set.x")]);
    }
    for fine in ["100%%", "a%REQ(:path):10%b", "%PROTOCOL%", "\u{e9}"] {
        good(NET, "VirtualService", &[&set(fine)]);
    }
    let colon = route("headers: {request: {set: {'a:b': c}}}");
    refused(NET, "VirtualService", &[(&colon, "spec.http[0].headers.request.set.a:b")]);
    let rewrite = |to: &str| route(&format!("rewrite: {{uriRegexRewrite: {{match: '/(a)', rewrite: '{to}'}}}}"));
    for bad in ["/\\2", "/\\x", "/\\"] {
        refused(NET, "VirtualService", &[(&rewrite(bad), "spec.http[0].rewrite.uriRegexRewrite.rewrite")]);
    }
    good(NET, "VirtualService", &[&rewrite("/\\1\\\\")]);
    let hash = |key: &str| format!("{{host: a, trafficPolicy: {{loadBalancer: {{consistentHash: {{{key}}}}}}}}}");
    let field = "spec.trafficPolicy.loadBalancer.consistentHash";
    refused(
        NET,
        "DestinationRule",
        &[
            (&hash("httpHeaderName: 'a b'"), &format!("{field}.httpHeaderName")),
            (&hash("useSourceIp: true, minimumRingSize: 9000000"), &format!("{field}.minimumRingSize")),
        ],
    );
    let modifier = |part: &str| {
        format!("{{rules: [{{filters: [{{type: RequestHeaderModifier, requestHeaderModifier: {{{part}}}}}]}}]}}")
    };
    let field = "spec.rules[0].filters[0].requestHeaderModifier";
    refused(
        GW,
        "HTTPRoute",
        &[
            (&modifier("remove: [Host]"), &format!("{field}.remove[0]")),
            (&modifier("set: [{name: 'a b', value: c}]"), &format!("{field}.set[0].name")),
            (&modifier("add: [{name: a, value: '50%'}]"), &format!("{field}.add[0].value")),
        ],
    );
    good(GW, "HTTPRoute", &[&modifier("set: [{name: a, value: '%PROTOCOL%'}], remove: [b]")]);
}

#[test]
fn what_servers_offer_must_be_known() {
    let server = |tls: &str| {
        format!(
            "{{selector: {{a: b}}, servers: [{{port: {{number: 443, name: https, protocol: HTTPS}}, hosts: ['*'], tls: {{mode: SIMPLE, credentialName: a, {tls}}}}}]}}"
        )
    };
    let field = "spec.servers[0].tls";
    refused(
        NET,
        "Gateway",
        &[
            (&server("ecdhCurves: [P-256, secp999]"), &format!("{field}.ecdhCurves[1]")),
            (&server("ecdhCurves: [P-521]"), &format!("{field}.ecdhCurves")),
            (&server("alpnProtocols: ['']"), &format!("{field}.alpnProtocols[0]")),
            (&server("cipherSuites: ['[AES128-SHA|NONE]']"), &format!("{field}.cipherSuites[0]")),
        ],
    );
    let fine = server(
        "ecdhCurves: [X25519MLKEM768, X25519, P-384], alpnProtocols: [h2], cipherSuites: ['[ECDHE-ECDSA-AES128-GCM-SHA256|ECDHE-RSA-AES128-GCM-SHA256]', AES128-SHA]",
    );
    good(NET, "Gateway", &[&fine]);
    assert_eq!(findings(NET, "Gateway", &server("ecdhCurves: [P-256, P-521]")), [format!("W {field}.ecdhCurves[1]")]);
    let ingress = "{ingress: [{port: {number: 1, protocol: HTTPS, name: a}, tls: {mode: SIMPLE, ecdhCurves: [x]}}]}";
    refused(NET, "Sidecar", &[(ingress, "spec.ingress[0].tls.ecdhCurves[0]")]);
}

#[test]
fn sessions_and_outliers() {
    let route = |session: &str| format!("{{rules: [{{sessionPersistence: {session}}}]}}");
    let field = "spec.rules[0].sessionPersistence";
    let bad = [
        ("{cookie: {name: 'a b'}}", "cookie.name"),
        ("{cookie: {path: x}}", "cookie.path"),
        ("{cookie: {lifetimeType: Permanent}}", "absoluteTimeout"),
        ("{type: Header}", "header"),
        ("{type: Header, header: {name: ':path'}}", "header.name"),
        ("{type: Header, header: {name: a}, cookie: {}}", "cookie"),
        ("{header: {name: a}}", "header"),
    ];
    for (session, at) in bad {
        refused(GW, "HTTPRoute", &[(&route(session), &format!("{field}.{at}"))]);
        refused(GW, "GRPCRoute", &[(&route(session), &format!("{field}.{at}"))]);
    }
    for fine in ["{cookie: {}}", "{type: Header, header: {name: x-a}}", "{sessionName: a, type: Cookie}"] {
        good(GW, "HTTPRoute", &[&route(fine)]);
    }
    let rule = |outlier: &str| format!("{{host: a, trafficPolicy: {{outlierDetection: {{{outlier}}}}}}}");
    let field = "spec.trafficPolicy.outlierDetection";
    refused(
        NET,
        "DestinationRule",
        &[
            (&rule("failurePercentageThreshold: 101"), &format!("{field}.failurePercentageThreshold")),
            (&rule("outlierDetectionHttpErrorCodes: [500, 99]"), &format!("{field}.outlierDetectionHttpErrorCodes[1]")),
        ],
    );
}
