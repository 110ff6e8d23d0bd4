"""What the objects of one namespace may do to others: neither redirect their requests nor cost them anything."""

from ads_server import CDS, EDS, LDS, RDS
from control import Client, host, istio, members, node, outbound, service, slice_of
from control_bytes import Witness
from control_frames import A, B, shop
from envoy.config.route.v3 import route_pb2
from google.protobuf import any_pb2
from harness import check, equal, get, scenario, until

EVIL = outbound("evil", namespace="bank")


def table(response):
    """Domain to cluster, of the first route, in the table `80`."""
    found = {}
    for resource in response.resources:
        body = resource.resource if resource.DESCRIPTOR.name == "Resource" else resource
        routes = route_pb2.RouteConfiguration()
        check(isinstance(body, any_pb2.Any) and body.Unpack(routes), "a route configuration")
        for virtual_host in routes.virtual_hosts:
            for domain in virtual_host.domains:
                found.setdefault(domain, virtual_host.routes[0].route.cluster)
    return found


def clients_of(world, mesh, *namespaces):
    """Proxies of these namespaces, with all of the configuration that routes requests; and their first tables."""
    clients, tables = {}, {}
    for i, namespace in enumerate(namespaces):
        client = world.keep(Client(mesh, world.variant, node("web", namespace, ip=f"10.9.1.{i + 1}")))
        for type_url, names in {CDS: (), EDS: (A, B), LDS: (), RDS: ("80",)}.items():
            response = client.get(type_url, *names)
            if type_url == RDS:
                tables[namespace] = table(response)
        clients[namespace] = client
    return clients, tables


@scenario("delta", "sotw")
def routes_for_others_hosts(world):
    """A route for another namespace's service changes what the own clients get, and nobody else is told anything (T104)."""
    mesh = shop(world)
    mesh.put("evil", service("evil", "bank"), *slice_of("evil", [8666], "bank"))
    until(lambda: "evil" in str(mesh.page("/debug/configz")), "the service to be there")
    clients, before = clients_of(world, mesh, "shop", "third", "bank")
    for namespace, found in before.items():
        equal(found[host("a")], A, f"where {namespace} asks at first")
    address = service("a")["spec"]["clusterIP"]
    hosts = [host("a"), "a.shop", "a.shop.svc", address]
    mesh.put("route", istio("VirtualService", "evil", {"hosts": hosts, "http": [{"route": [{"destination": {"host": host("evil", "bank")}}]}]}, "bank"))
    news = clients["bank"].next(RDS)
    clients["bank"].answer(news, names=["80"])
    equal(table(news)[host("a")], EVIL, "where the own clients ask")
    for namespace in ("shop", "third"):
        clients[namespace].silent(f"{namespace}, after a route of another namespace's")
    code, text = mesh.meshctl("analyze", "-f", mesh.config)
    check("MESH0005" in text and host("a") in text, f"meshctl analyze ({code}): {text}")
    # The owner's and the mesh's own word hold for all.
    mesh.put("route", istio("VirtualService", "own", {"hosts": ["a"], "http": [{"route": [{"destination": {"host": "b"}}]}]}))
    for namespace, client in clients.items():
        equal(table(client.next(RDS))[host("a")], B, f"where {namespace} asks, by the owner's word")


@scenario("delta", "sotw")
def claims_on_others_names_and_addresses(world):
    """A ServiceEntry that claims another namespace's host, its address or the control plane's name takes nothing (T103)."""
    mesh = shop(world)
    clients, before = clients_of(world, mesh, "shop", "third")
    address = service("a")["spec"]["clusterIP"]
    hosts = [host("a"), host("gone"), "istiod.istio-system.svc.cluster.local", "kubernetes.default.svc.cluster.local", "evil.test"]
    mesh.put("claim", istio("ServiceEntry", "claim", {
        "hosts": hosts, "addresses": [address], "location": "MESH_INTERNAL", "resolution": "STATIC",
        "ports": [{"number": 80, "name": "http", "protocol": "HTTP"}], "endpoints": [{"address": "10.66.6.6"}]}, "bank"))
    for namespace, client in clients.items():
        # Nobody owns the last of the hosts, so it may come; not by somebody else's address.
        news = client.next(CDS)
        client.answer(news)
        found, seen = {}, set()
        while RDS not in seen:
            news = client.next()
            seen.add(news.type_url)
            client.answer(news, names={RDS: ["80"], EDS: [A, B]}.get(news.type_url, []))
            if news.type_url == RDS:
                found = table(news)
            if news.type_url == EDS:
                check(members(news, A) in (None, [8001]), f"{namespace}: endpoints of a: {members(news, A)}")
        equal({d: c for d, c in found.items() if d in before[namespace]}, before[namespace], f"{namespace}: names and addresses that were there")
        check("evil.test" in found and not any("gone" in d or "istiod" in d or "kubernetes" in d for d in found), f"{namespace}: {sorted(found)}")


@scenario(weight=2)
def expressions_without_end(world):
    """Regular expressions that are long or become so are refused by object and field; others are served meanwhile (T101)."""
    mesh = shop(world)
    witness = Witness(world, mesh)
    before = mesh.process.memory()
    bombs = {"long": "a" * 100_000, "repeats": "((((a{1000}){1000}){1000}){1000})", "classes": r"(\w{1000}){50}", "nested": "(" * 500 + "a" + ")" * 500}
    to = {"route": [{"destination": {"host": "evil"}}]}

    def virtual_service(**rule):
        return istio("VirtualService", "bomb", {"hosts": ["evil"], "http": [{**to, **rule}]}, "bank")

    def by_field(pattern):
        yield virtual_service(match=[{"uri": {"regex": pattern}}])
        yield virtual_service(match=[{"headers": {"x": {"regex": pattern}}}])
        yield virtual_service(match=[{"queryParams": {"x": {"regex": pattern}}}])
        yield virtual_service(match=[{"authority": {"regex": pattern}}])
        yield virtual_service(corsPolicy={"allowOrigins": [{"regex": pattern}]})
        yield virtual_service(rewrite={"uriRegexRewrite": {"match": pattern, "rewrite": "/"}})
        route = {"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": {"name": "bomb", "namespace": "bank"}}
        path = {"path": {"type": "RegularExpression", "value": pattern}}
        header = {"headers": [{"type": "RegularExpression", "name": "x", "value": pattern}]}
        for matches in (path, header):
            yield {**route, "spec": {"parentRefs": [{"kind": "Service", "group": "", "name": "evil"}], "rules": [{"matches": [matches]}]}}

    def told():
        return [f for f in mesh.page("/debug/configz")["findings"] if f["level"] == "error" and f["object"]["name"] == "bomb"]

    for what, pattern in bombs.items():
        for i, manifest in enumerate(by_field(pattern)):
            mesh.put("bomb", manifest)
            until(told, lambda: f"{what} {i} to be told of: {mesh.page('/debug/configz')['findings']}")
            mesh.drop("bomb")
            until(lambda: not told(), f"{what} {i} to be forgotten")
        witness.hears(what)
    grown = mesh.process.memory() - before
    check(grown < 64 << 20, f"memory grew by {grown >> 20} MiB")
    equal(get(mesh.http, "/ready", host="localhost").status, 200, "ready")
