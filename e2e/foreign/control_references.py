"""What references between objects are worth: grants that come and go, targets that vanish and come back, and one
resource of many that its client refuses."""

import base64
import json
import time

import certificates
from ads_server import CDS, EDS, LDS, RDS, SDS
from control import Client, Mesh, host, istio, names, node, outbound, service, slice_of
from control_frames import A, client, shop
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2 as hcm
from google.protobuf import any_pb2
from harness import check, equal, get, scenario, until

GATEWAY_API = "gateway.networking.k8s.io"
# Longest time until a grant that is taken away is without effect, seconds.
REVOKED = 1.0


def gateway_api(kind, name, namespace, spec, version="v1"):
    return {"apiVersion": f"{GATEWAY_API}/{version}", "kind": kind, "metadata": {"name": name, "namespace": namespace}, "spec": spec}


def grant(name, namespace, kind, to):
    origin = {"group": GATEWAY_API, "kind": kind, "namespace": "edge"}
    return gateway_api("ReferenceGrant", name, namespace, {"from": [origin], "to": [{"group": "", "kind": to}]}, "v1beta1")


def unpacked(resource, message):
    body = resource.resource if resource.DESCRIPTOR.name == "Resource" else resource
    check(isinstance(body, any_pb2.Any) and body.Unpack(message), f"a {message.DESCRIPTOR.name}")
    return message


class Edge:
    """A gateway's proxy of namespace `edge`, and all that it holds."""

    def __init__(self, world, mesh):
        who = node("gw", namespace="edge", kind="router", LABELS={f"{GATEWAY_API}/gateway-name": "gw"}, SERVICE_ACCOUNT="gw-istio")
        self.client = world.keep(Client(mesh, "delta", who, mesh.token("edge", "gw-istio")))
        self.held = {t: {} for t in (CDS, EDS, LDS, RDS, SDS)}
        self.asked = set()
        for type_url in (CDS, LDS):
            self.client.ask(type_url)

    def follow(self):
        """Takes what has come, and asks for what it names."""
        with self.client._seen:
            waiting, self.client.received = self.client.received, []
        for response in waiting:
            for name in response.removed_resources:
                self.held[response.type_url].pop(name, None)
            self.held[response.type_url].update({r.name: r for r in response.resources})
            self.client.answer(response)
        for type_url, wanted in ((RDS, self._tables()), (SDS, self._secrets())):
            new = {n for n in wanted if (type_url, n) not in self.asked}
            if new:
                self.asked |= {(type_url, n) for n in new}
                self.client.ask(type_url, *new)
        return self

    def _managers(self):
        for resource in self.held[LDS].values():
            for chain in unpacked(resource, listener_pb2.Listener()).filter_chains:
                for one in chain.filters:
                    manager = hcm.HttpConnectionManager()
                    if one.typed_config.Unpack(manager):
                        yield manager

    def _tables(self):
        return {m.rds.route_config_name for m in self._managers() if m.HasField("rds")}

    def _secrets(self):
        return {n for n in ("kubernetes-gateway://vault/cert",) if any(n.encode() in r.resource.value for r in self.held[LDS].values())}

    def backend(self, path):
        """The cluster of the route for a path; `None`: no route, or one that answers 500 for want of a cluster."""
        for resource in self.held[RDS].values():
            for virtual_host in unpacked(resource, route_pb2.RouteConfiguration()).virtual_hosts:
                for route in virtual_host.routes:
                    if path in (route.match.path_separated_prefix, route.match.prefix):
                        refused = route.route.cluster == "UnknownService" and route.route.cluster_not_found_response_code == 2
                        return None if refused else route.route.cluster
        return None

    def key(self):
        """Whether it has the certificate's key."""
        return any(b"PRIVATE KEY" in r.resource.value for r in self.held[SDS].values())

    def rbac(self):
        """For each HTTP manager, whether a policy stands in it."""
        return ["envoy.filters.http.rbac" in [f.name for f in m.http_filters] for m in self._managers()]


def edge_objects():
    chain, key = certificates.Authority().issue("a.example")
    data = {k: base64.b64encode(v.encode()).decode() for k, v in (("tls.crt", chain), ("tls.key", key))}
    secret = {"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls", "metadata": {"name": "cert", "namespace": "vault"}, "data": data}
    certificate = {"group": "", "kind": "Secret", "name": "cert", "namespace": "vault"}
    gateway = gateway_api("Gateway", "gw", "edge", {"gatewayClassName": "istio", "listeners": [
        {"name": "http", "port": 80, "protocol": "HTTP"},
        {"name": "https", "port": 443, "protocol": "HTTPS", "tls": {"mode": "Terminate", "certificateRefs": [certificate]}}]})
    backend = {"name": "a", "namespace": "shop", "port": 80}
    route = gateway_api("HTTPRoute", "r", "edge", {"parentRefs": [{"name": "gw", "sectionName": "http"}], "rules": [
        {"matches": [{"path": {"value": "/a"}}], "backendRefs": [backend]}]})
    return secret, gateway, route


@scenario(weight=2)
def grants_come_and_go(world):
    """A backend and a certificate of another namespace need a grant; without it again they are gone within a second (T60)."""
    mesh = shop(world)
    secret, gateway, route = edge_objects()
    mesh.put("edge", secret, gateway, route)
    edge = Edge(world, mesh)
    told = lambda: json.dumps(mesh.page("/debug/configz"))
    until(lambda: edge.follow().held[RDS] and edge.backend("/a") is None, lambda: f"the backend to be refused: {edge.backend('/a')}")
    until(lambda: told().count("RefNotPermitted") >= 2, lambda: f"both to be told of: {told()[:2000]}")
    check(not edge.key(), "a key without a grant")
    for round_ in range(3):
        mesh.put("grants", grant("backends", "shop", "HTTPRoute", "Service"), grant("certs", "vault", "Gateway", "Secret"))
        until(lambda: edge.follow().backend("/a") == A, lambda: f"the backend to be granted: {edge.backend('/a')}")
        until(lambda: edge.follow().key(), "the key to be granted")
        until(lambda: "RefNotPermitted" not in told(), "nothing to be refused any more")
        begun = time.monotonic()
        mesh.drop("grants")
        until(lambda: edge.follow().backend("/a") is None and not edge.key(), lambda: f"backend {edge.backend('/a')}, key {edge.key()} after the grants are gone")
        took = time.monotonic() - begun
        check(took <= REVOKED, f"round {round_}: it took {took:.2f} s")
        until(lambda: told().count("RefNotPermitted") >= 2, "both to be told of again")


@scenario(weight=2)
def targets_come_back(world):
    """A policy on a Gateway holds in the first listener that comes when the Gateway does, however often it goes; one on a kind
    that is enforced nowhere is told of (T54)."""
    mesh = shop(world)
    secret, gateway, route = edge_objects()
    policy = istio("AuthorizationPolicy", "deny", {"targetRefs": [{"group": GATEWAY_API, "kind": "Gateway", "name": "gw"}], "action": "DENY",
                                                    "rules": [{"to": [{"operation": {"paths": ["/a"]}}]}]}, "edge", "security")
    odd = istio("AuthorizationPolicy", "odd", {"targetRefs": [{"group": "", "kind": "Service", "name": "a"}], "action": "DENY", "rules": [{}]}, "shop", "security")
    mesh.put("policy", policy, odd, secret)
    edge = Edge(world, mesh)
    bare = []

    def looked(wanted):
        edge.follow()
        found = edge.rbac()
        bare.extend(f for f in found if not f)
        return bool(found) == wanted

    for round_ in range(4):
        mesh.put("edge", gateway, route)
        until(lambda: looked(True), f"round {round_}: listeners to come")
        mesh.drop("edge")
        until(lambda: looked(False), f"round {round_}: listeners to go")
    check(not bare, f"{len(bare)} times a listener came without its policy")
    findings = mesh.page("/debug/configz")["findings"]
    about = [f for f in findings if (f.get("object") or {}).get("name") == "odd"]
    check(any(f["level"] == "warning" and "nothing is allowed or denied" in f["message"] for f in about), f"what is told of the odd target: {about}")


@scenario(weight=3)
def one_bad_of_a_thousand(world):
    """A client refuses one cluster of a thousand, again and again: it is named in its status and counted, all else goes on, and it
    is sent again only when it changes (T105)."""
    mesh = Mesh(world)
    for start in range(0, 1000, 100):
        mesh.put(f"services{start}", *(service(f"s{i}") for i in range(start, start + 100)))
    mesh.put("bad", service("bad"), *slice_of("bad", [8001]))
    mesh.start()
    bad = outbound("bad")
    c = client(world, mesh, variant="delta")
    until(lambda: "bad" in json.dumps(mesh.page("/debug/configz")), "the services to be read")
    c.ask(CDS)
    first = c.next(CDS)
    check(bad in names(first) and len(names(first)) > 1000, f"{len(names(first))} clusters")
    reason = f"{bad}: out of luck"
    c.answer(first, error=reason)
    for i in range(1, 6):
        rule = {"host": host(f"s{i}"), "trafficPolicy": {"connectionPool": {"tcp": {"maxConnections": i}}}}
        mesh.put(f"rule{i}", istio("DestinationRule", f"s{i}", rule))
        news = c.next(CDS)
        equal(names(news), [outbound(f"s{i}")], "what is sent while one is refused")
        c.answer(news)
        c.silent("after it", 0.2)
        mesh.put("badrule", istio("DestinationRule", "bad", {"host": host("bad"), "trafficPolicy": {"connectionPool": {"tcp": {"maxConnections": i}}}}))
        news = c.next(CDS)
        equal(names(news), [bad], "the bad one, changed")
        c.answer(news, error=reason)
        c.silent("after the refusal", 0.2)
        status = until(lambda: (lambda s: s["types"]["CDS"]["error"] and s)(mesh.status("web-1.shop")), "the refusal in syncz")
        equal(status["types"]["CDS"]["error"], reason, "reason")
        metrics = get(mesh.http, "/metrics", host="localhost").body
        counted = [line for line in metrics.splitlines() if line.startswith("pilot_total_xds_rejects") and "Cluster" in line]
        check(any(line.endswith(f" {i + 1}") for line in counted), f"{i + 1} refusals are counted: {counted}")
        check('pilot_xds_cds_reject{node="web-1.shop"} 1' in metrics, "the client is named among those that refuse")
