"""The mesh that every case stands in: services, their pods, gateways, settings. Plain data."""

import json

import yaml

import forward_proxy

SYSTEM, SHOP, OTHER = "istio-system", "shop", "other"
CONTROL_IP = "10.77.0.1"
APP_PORT = 8080
ADMIN_PORT = 8090  # the second port of every HTTP backend, which answers as `NAME-admin`
COLLECTOR_PORT = 4317
UNKNOWN_VIP = "10.96.255.1"
LOG_FORMAT = "case=%REQ(X-CASE)% flags=%RESPONSE_FLAGS% details=%RESPONSE_CODE_DETAILS% code=%RESPONSE_CODE%\n"

# Name, namespace, app, version, address; those without a sidecar live in the root namespace.
BACKENDS = [
    ("reviews-v1", SHOP, "reviews", "v1", "10.77.2.1"),
    ("reviews-v2", SHOP, "reviews", "v2", "10.77.2.2"),
    ("reviews-v3", SHOP, "reviews", "v3", "10.77.2.3"),
    ("ratings-v1", SHOP, "ratings", "v1", "10.77.2.4"),
    ("tls", SHOP, "tls", "v1", "10.77.2.5"),
    ("grpc", SHOP, "grpc", "v1", "10.77.2.6"),
    ("tcp-v1", SHOP, "tcp", "v1", "10.77.2.7"),
    ("tcp-v2", SHOP, "tcp", "v2", "10.77.2.8"),
    ("headless-1", SHOP, "headless", "v1", "10.77.2.12"),
    ("headless-2", SHOP, "headless", "v1", "10.77.2.13"),
    ("details", OTHER, "details", "v1", "10.77.2.9"),
    ("reviews-other", OTHER, "reviews", "v1", "10.77.2.10"),
    ("authz", SHOP, "authz", "v1", "10.77.2.40"),
    ("authz-grpc", SHOP, "authz-grpc", "v1", "10.77.2.41"),
    ("collector", SHOP, "collector", "v1", "10.77.2.43"),
    # Tokens of the cases name this address: it is signed.
    ("keys", SHOP, "keys", "v1", "10.77.2.42"),
    ("tunnel", SHOP, "tunnel", "v1", "10.77.2.44"),
    ("tunnel-h2", SHOP, "tunnel-h2", "v1", "10.77.2.45"),
]
EXTERNAL = ("ext", "10.77.2.11")
HEADLESS = "headless"
# Where pods run, those of who asks included, but for a few.
NODE, FAR_NODE, FAR = "node-a", "node-b", ("reviews-v2", "reviews-v3")
TLS_IP = "10.77.2.5"
LOCALITY = {"istio-locality": "eu.a.1"}  # of whoever asks
# Address, namespace and labels of workloads with a proxy.
PROXIES = {
    "gateway": ("10.77.1.1", SYSTEM, "istio-ingressgateway", {"istio": "ingressgateway", "app": "istio-ingressgateway", **LOCALITY}),
    "gateway-api": ("10.77.1.2", SHOP, "gw-api-istio", {"gateway.networking.k8s.io/gateway-name": "gw-api"}),
    "explicit": ("10.77.1.3", SHOP, "client", {"app": "client", "version": "v1", **LOCALITY}),
    "captured": ("10.77.1.4", SHOP, "client", {"app": "client", "version": "v1", **LOCALITY}),
    "stranger": ("10.77.1.5", OTHER, "stranger", {"app": "stranger", "version": "v1"}),
    "guarded": ("10.77.1.6", SHOP, "guarded", {"app": "guarded", "version": "v1"}),
    "resolved": ("10.77.1.7", SHOP, "client", {"app": "client", "version": "v1", **LOCALITY}),
}
# Their application's DNS is answered by our proxy, which a stock Envoy has Istio's agent for.
OURS_ONLY = {"resolved"}
GATEWAY_API_PORTS = (8443, 8444, 9000, 8080)  # of the Service of `gw-api`, for listeners of other Gateways
# Name, namespace, port, its name, port of the pods.
SERVICES = [
    ("reviews", SHOP, 80, "http", APP_PORT),
    ("ratings", SHOP, 80, "http", APP_PORT),
    ("guarded", SHOP, 80, "http", APP_PORT),
    ("empty", SHOP, 80, "http", APP_PORT),
    ("tls", SHOP, 443, "https", 8443),
    ("grpc", SHOP, 7070, "grpc", 7070),
    ("tcp", SHOP, 9000, "tcp", 9000),
    # Without a cluster address, as the ports say.
    ("headless", SHOP, APP_PORT, "http", APP_PORT),
    ("details", OTHER, 80, "http", APP_PORT),
    ("reviews", OTHER, 80, "http", APP_PORT),
    ("authz", SHOP, 8000, "http", 8000),
    ("authz-grpc", SHOP, 9000, "grpc", 9000),
    ("collector", SHOP, COLLECTOR_PORT, "grpc", COLLECTOR_PORT),
    ("gw-api-istio", SHOP, 80, "http", 80),
    ("keys", SHOP, APP_PORT, "http", APP_PORT),
    ("tunnel", SHOP, forward_proxy.PORT, "tcp", forward_proxy.PORT),
    ("tunnel-h2", SHOP, forward_proxy.PORT, "http2", forward_proxy.PORT),
]


def fqdn(name, namespace):
    return f"{name}.{namespace}.svc.cluster.local"


def vips():
    """What a resolver knows: the cluster address of each service, of the headless one a pod's."""
    known = {fqdn(name, namespace): f"10.96.0.{i + 1}" for i, (name, namespace, *_) in enumerate(SERVICES)}
    known[fqdn(HEADLESS, SHOP)] = "10.77.2.13"
    # Whoever chooses a pod by itself.
    known |= {f"{name}.pod.test": ip for name, _, _, _, ip in BACKENDS}
    # Nobody declares `passthrough.test`, yet something answers there.
    return known | {"ext.test": "10.96.1.1", "marker.test": "10.96.1.9", "passthrough.test": EXTERNAL[1]}


def address_of(host):
    """What a resolver of namespace `shop` answers; any name has an address, since a captured client sends it somewhere."""
    known = vips()
    parts = host.split(".")
    full = {1: f"{host}.{SHOP}.svc.cluster.local", 2: f"{host}.svc.cluster.local", 3: f"{host}.cluster.local"}.get(len(parts), host)
    return known.get(host) or known.get(full) or UNKNOWN_VIP


def looked_up():
    """What the name server of the proxies knows below `dynamic.test`: addresses of backends."""
    return {name: ip for name, _, _, _, ip in BACKENDS} | {EXTERNAL[0]: EXTERNAL[1], "other": TLS_IP}


def _pods():
    yield from ((name, ns, ip, {"app": app, "version": version}, "default", False) for name, ns, app, version, ip in BACKENDS)
    for name, (ip, ns, account, labels) in PROXIES.items():
        yield pod_name(name), ns, ip, labels, account, True


def pod_name(proxy):
    """Name of the pod of a proxy."""
    return f"{proxy}-1"


def authorizers():
    """Extension providers that CUSTOM policies may name; nobody answers those at `empty`."""

    def http(service="authz", port=8000, **more):
        told = {"includeRequestHeadersInCheck": ["x-ext-authz", "X-Case", "x-authz-*"], "headersToUpstreamOnAllow": ["x-ext-authz-*"]}
        return {"service": fqdn(service, SHOP), "port": port, **told, **more}

    def grpc(**more):
        return {"service": f"{SHOP}/{fqdn('authz-grpc', SHOP)}", "port": 9000, **more}

    downstream = {"headersToDownstreamOnDeny": ["x-ext-authz-check-result"], "headersToDownstreamOnAllow": ["x-ext-authz-path"]}
    body = {"maxRequestBytes": 8}
    kinds = {
        "authz-http": http(**downstream, includeAdditionalHeadersInCheck={"x-from": "mesh"}),
        "authz-prefix": http(pathPrefix="/check"),
        "authz-slow": http(timeout="0.3s", statusOnError="504"),
        "authz-down": http("empty", 80, statusOnError="503"),
        "authz-open": http("empty", 80, failOpen=True),
        "authz-body": http(includeRequestBodyInCheck=body),
        "authz-part": http(includeRequestBodyInCheck={**body, "allowPartialMessage": True}),
    }
    more = {"authz-grpc": grpc(), "authz-grpc-bytes": grpc(includeRequestBodyInCheck={**body, "packAsBytes": True})}
    return [{"name": n, "envoyExtAuthzHttp": p} for n, p in kinds.items()] + [{"name": n, "envoyExtAuthzGrpc": p} for n, p in more.items()]


def collectors():
    """Extension providers of access logs, over gRPC for requests and for connections, and OpenTelemetry; and of traces."""
    place = {"service": f"{SHOP}/{fqdn('collector', SHOP)}", "port": COLLECTOR_PORT}
    als = {**place, "logName": "als", "additionalRequestHeadersToLog": ["x-case"], "additionalResponseHeadersToLog": ["x-answer"]}
    labels = {"case": "%REQ(X-CASE)%", "code": "%RESPONSE_CODE%", "request": {"path": "%REQ(:PATH)%", "method": "%REQ(:METHOD)%"}}
    otel = {**place, "logName": "otel", "logFormat": {"text": "%REQ(:METHOD)% %RESPONSE_CODE%", "labels": labels}}
    traces = {"name": "traces", "opentelemetry": place}
    return [traces, {"name": "als", "envoyHttpAls": als}, {"name": "tcp-als", "envoyTcpAls": {**place, "logName": "tcp-als"}}, {"name": "otel", "envoyOtelAls": otel}]


def world(settings=None):
    """All objects, as dictionaries; `settings`: of the mesh, beside the usual ones."""
    mesh = {"accessLogFile": "/dev/stdout", "accessLogFormat": LOG_FORMAT, "proxyHttpPort": 15002, "rootNamespace": SYSTEM,
            "extensionProviders": authorizers() + collectors(), **(settings or {})}
    objects = [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": n}} for n in (SHOP, OTHER, SYSTEM)]
    objects.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "istio", "namespace": SYSTEM},
                    "data": {"mesh": yaml.safe_dump(mesh)}})
    pods = list(_pods())
    for name, ns, ip, labels, account, meshed in pods:
        labels = {**labels, **({"security.istio.io/tlsMode": "istio"} if meshed else {})}
        objects.append({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": ns, "labels": labels},
                        "spec": {"serviceAccountName": account, "nodeName": FAR_NODE if name in FAR else NODE, "containers": [{"name": "app", "image": "app"}]},
                        "status": {"podIP": ip, "podIPs": [{"ip": ip}], "phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}})
    addresses = vips()
    for name, ns, port, port_name, target in SERVICES:
        selector = {"gateway.networking.k8s.io/gateway-name": "gw-api"} if name == "gw-api-istio" else {"app": name}
        ports = [{"name": port_name, "port": port, "targetPort": target, "protocol": "TCP"}]
        if name == "gw-api-istio":
            ports += [{"name": f"p{n}", "port": n, "targetPort": n, "protocol": "TCP"} for n in GATEWAY_API_PORTS]
        address = "None" if name == HEADLESS else addresses[fqdn(name, ns)]
        objects.append({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": ns},
                        "spec": {"clusterIP": address, "selector": selector, "ports": ports}})
        members = [(pod, ip) for pod, pod_ns, ip, labels, *_ in pods
                   if pod_ns == ns and selector.items() <= labels.items()]
        objects.append({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": f"{name}-1", "namespace": ns, "labels": {"kubernetes.io/service-name": name}},
            "ports": [{"name": p["name"], "port": p["targetPort"], "protocol": "TCP"} for p in ports],
            "endpoints": [{"addresses": [ip], "conditions": {"ready": True},
                           "targetRef": {"kind": "Pod", "name": pod, "namespace": ns}} for pod, ip in members],
        })
    return objects + _edges()


def _edges():
    http = {"number": 80, "name": "http", "protocol": "HTTP"}
    return [
        {"apiVersion": "networking.istio.io/v1", "kind": "Gateway", "metadata": {"name": "gw", "namespace": SHOP},
         "spec": {"selector": {"istio": "ingressgateway"}, "servers": [{"port": http, "hosts": ["*"]}]}},
        {"apiVersion": "gateway.networking.k8s.io/v1", "kind": "GatewayClass", "metadata": {"name": "istio"},
         "spec": {"controllerName": "istio.io/gateway-controller"}},
        {"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "metadata": {"name": "gw-api", "namespace": SHOP},
         "spec": {"gatewayClassName": "istio", "listeners": [
             {"name": "http", "port": 80, "protocol": "HTTP", "allowedRoutes": {"namespaces": {"from": "All"}}}]}},
        {"apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry", "metadata": {"name": "ext", "namespace": SHOP},
         "spec": {"hosts": ["ext.test"], "addresses": ["10.96.1.1"], "location": "MESH_EXTERNAL", "resolution": "STATIC",
                  "ports": [{"number": 80, "name": "http", "protocol": "HTTP", "targetPort": APP_PORT}],
                  "endpoints": [{"address": EXTERNAL[1]}]}},
    ]


def marker(number):
    """Objects that show at every proxy that the configuration written with them is in force: see `marked`."""
    host = "marker.test"
    return [
        {"apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": {"name": "marker", "namespace": SYSTEM},
         "spec": {"hosts": [host], "gateways": ["mesh", f"{SHOP}/gw"],
                  "http": [{"directResponse": {"status": 299, "body": {"string": f"marker-{number}"}}}]}},
        {"apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry", "metadata": {"name": "marker", "namespace": SYSTEM},
         "spec": {"hosts": [host], "addresses": ["10.96.1.9"], "location": "MESH_EXTERNAL", "resolution": "STATIC",
                  "ports": [{"number": 80, "name": "http", "protocol": "HTTP"}], "endpoints": [{"address": "127.0.0.1"}]}},
        {"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": {"name": "marker", "namespace": SHOP},
         "spec": {"parentRefs": [{"name": "gw-api"}], "hostnames": [host], "rules": [
             {"matches": [{"path": {"type": "PathPrefix", "value": "/"}}],
              "filters": [{"type": "RequestRedirect", "requestRedirect": {"hostname": f"marker-{number}", "statusCode": 302}}]}]}},
    ]


def text(objects):
    """Several documents; JSON is YAML."""
    return "\n---\n".join(json.dumps(o) for o in objects)
