"""mesh-control asked frame by frame, by both protocols: what it must answer, and what it must never send."""

import base64
import socket
import time

import certificates
import grpc
import h2.connection
from envoy.service.discovery.v3 import discovery_pb2 as discovery
from ads_server import CDS, EDS, LDS, RDS, SDS
from control import PREFIX, Client, Mesh, gone, istio, members, names, node, outbound, service, slice_of, versions
from harness import check, equal, get, scenario, until


def shop(world):
    """A control plane with two services."""
    mesh = Mesh(world)
    mesh.put("a", service("a"), *slice_of("a", [8001]))
    mesh.put("b", service("b"), *slice_of("b", [8002]))
    return mesh.start()


def client(world, mesh, who=None, token=None, variant=None):
    return world.keep(Client(mesh, variant or world.variant, who, token))


A, B = outbound("a"), outbound("b")


@scenario("delta", "sotw")
def first_contact(world):
    """Four questions at once, in an unusual order: each is answered once, with its own nonce; an ACK with silence."""
    mesh = shop(world)
    c = client(world, mesh)
    wanted = {RDS: ["80"], LDS: [], CDS: [], EDS: [A, B]}
    for type_url, asked in wanted.items():
        c.ask(type_url, *asked)
    answers = {}
    for _ in wanted:
        response = c.next()
        check(response.type_url not in answers, f"a second answer of {response.type_url}")
        answers[response.type_url] = response
    for type_url, response in answers.items():
        c.answer(response, names=wanted[type_url])
    check({A, B} <= set(names(answers[CDS])), lambda: f"clusters {names(answers[CDS])}")
    equal((sorted(names(answers[EDS])), members(answers[EDS], A)), (sorted([A, B]), [8001]), "endpoints")
    check("virtualOutbound" in names(answers[LDS]), lambda: f"listeners {names(answers[LDS])}")
    equal(names(answers[RDS]), ["80"], "routes")
    c.silent("after everything was acknowledged")
    nonces = [r.nonce for r in answers.values()]
    check(len(set(nonces)) == 4 and all(nonces), f"nonces {nonces}")
    until(lambda: all(mesh.status("web-1.shop")["types"][t]["state"] == "SYNCED" for t in ("CDS", "EDS", "LDS", "RDS")), "SYNCED")
    equal(mesh.status("web-1.shop")["protocol"], world.variant, "protocol")


@scenario("delta", "sotw")
def stale_nonces(world):
    """Answers to yesterday's responses are not taken for answers to today's."""
    mesh = shop(world)
    c = client(world, mesh)
    c.get(CDS)
    first = c.get(EDS, A)
    mesh.put("a", service("a"), *slice_of("a", [8001, 8003]))
    second = c.next(EDS)
    equal(members(second, A), [8001, 8003], "endpoints")
    c.answer(first, names=[A])
    c.answer(first, names=[A], error="stale complaint")
    c.send(EDS, response_nonce="made up", **({} if c.delta else {"resource_names": [A], "version_info": "x"}))
    c.silent("after stale nonces")
    status = mesh.status("web-1.shop")["types"]["EDS"]
    check(status["nacks"] == 0 and status["state"] != "NACKED", f"a stale NACK does not count: {status}")
    # The next change waits for the answer to the second response, and then comes.
    mesh.put("a", service("a"), *slice_of("a", [8004]))
    c.silent("while a response is not answered")
    c.answer(second, names=[A])
    third = c.next(EDS)
    equal(members(third, A), [8004], "endpoints")


@scenario("delta")
def wildcard_and_names(world):
    """Names beside the wildcard; leaving one and the other."""
    mesh = shop(world)
    c = client(world, mesh)
    c.ask(CDS, "*", A)
    both = c.next(CDS)
    check(A in names(both) and B in names(both), lambda: f"clusters {names(both)}")
    equal(len(names(both)), len(set(names(both))), "each once")
    c.answer(both)
    # Asking again for what is had is answered again.
    c.ask(CDS, A)
    again = c.next(CDS)
    equal(names(again), [A], "asked again")
    c.answer(again)
    # Under the wildcard leaving a name changes nothing of what one has, but the server must say so.
    c.send(CDS, resource_names_unsubscribe=[A])
    said = c.next(CDS)
    equal((names(said), gone(said)), ([A], []), "leaving a name under the wildcard")
    c.answer(said)
    # Without the wildcard the name stays.
    c.ask(CDS, A)
    c.answer(c.next(CDS))
    c.send(CDS, resource_names_unsubscribe=["*"])
    c.silent("after leaving the wildcard")
    mesh.put("b", service("b", port=81), *slice_of("b", [8002]))
    c.silent("a change of what is not subscribed to")
    mesh.put("rule", istio("DestinationRule", "a", {"host": "a", "trafficPolicy": {"connectionPool": {"tcp": {"maxConnections": 7}}}}))
    changed = c.next(CDS)
    equal((names(changed), gone(changed)), ([A], []), "a change of what is")
    c.answer(changed)
    c.send(CDS, resource_names_unsubscribe=[A])
    mesh.drop("rule")
    c.silent("after leaving everything")
    # And back to everything.
    c.ask(CDS, "*")
    whole = c.next(CDS)
    check({A, outbound("b", 81)} <= set(names(whole)), lambda: f"clusters {names(whole)}")


@scenario("delta", "sotw")
def leaving_endpoints(world):
    """Endpoints that are not subscribed to any more are not sent any more."""
    mesh = shop(world)
    c = client(world, mesh)
    c.get(CDS)
    both = c.get(EDS, A, B)
    if c.delta:
        c.send(EDS, resource_names_unsubscribe=[A])
    else:
        c.answer(both, names=[B])
    c.silent("after leaving")
    mesh.put("a", service("a"), *slice_of("a", [8009]))
    c.silent("a change of what was left")
    mesh.put("b", service("b"), *slice_of("b", [8010]))
    news = c.next(EDS)
    equal((names(news), members(news, B)), ([B], [8010]), "endpoints")
    c.answer(news, names=[B])
    # Coming back is answered with what is in force now.
    if c.delta:
        c.ask(EDS, A)
    else:
        c.answer(news, names=[A, B])
    back = c.next(EDS)
    equal(members(back, A), [8009], "endpoints")


@scenario("delta")
def versions_of_a_returning_client(world):
    """What a client says it has is not sent again; what changed is, and what is gone is named."""
    mesh = shop(world)
    c = client(world, mesh)
    had = {t: versions(c.get(t, *n)) for t, n in ((CDS, []), (EDS, [A, B]), (LDS, []), (RDS, ["80"]))}
    c.close()
    c = client(world, mesh)
    for type_url, wanted in ((CDS, ["*"]), (EDS, [A, B]), (LDS, []), (RDS, ["80"])):
        c.ask(type_url, *wanted, versions=had[type_url])
    c.silent("a client that has everything")
    c.close()
    mesh.put("a", service("a"), *slice_of("a", [8011]))
    mesh.put("c", service("c"), *slice_of("c", [8012]))
    mesh.drop("b")
    until(lambda: mesh.process.alive() and "pilot_services 2" in get(mesh.http, "/metrics", host="localhost").body, "two services")
    time.sleep(0.5)
    c = client(world, mesh)
    c.ask(CDS, "*", versions={**had[CDS], "outbound|1||gone.shop.svc.cluster.local": "1"})
    clusters = c.next(CDS)
    equal(names(clusters), [outbound("c")], "clusters that are new")
    c.answer(clusters)
    c.ask(EDS, A, B, outbound("c"), versions=had[EDS])
    endpoints = c.next(EDS)
    equal(sorted(names(endpoints)), sorted([A, outbound("c")]), "endpoints that changed")
    c.answer(endpoints)
    seen = list(gone(clusters)) + list(gone(endpoints))
    c.ask(LDS, versions=had[LDS])
    c.ask(RDS, "80", versions=had[RDS])

    def all_gone():
        try:
            response = c.next(patience=2)
        except Exception:
            return {B, "outbound|1||gone.shop.svc.cluster.local"} <= set(seen)
        seen.extend(gone(response))
        c.answer(response)
        return False

    until(all_gone, lambda: f"what is gone to be named: {seen}")


@scenario("delta", "sotw")
def refusals_are_told(world):
    """A NACK is kept with its reason, shown by syncz and meshctl, and the refused version is not sent again."""
    mesh = shop(world)
    c = client(world, mesh)
    c.ask(CDS)
    clusters = c.next(CDS)
    reason = f"Error adding/updating cluster(s) {A}: the moon is in the wrong phase"
    c.answer(clusters, error=reason, version="")
    c.silent("after a NACK")
    status = until(lambda: (lambda s: s["types"]["CDS"]["error"] and s)(mesh.status("web-1.shop")), "the NACK in syncz")
    equal(status["types"]["CDS"]["error"], reason, "reason")
    code, text = mesh.meshctl("ps")
    check(code != 0 and reason in text and "web-1.shop" in text, f"meshctl ps says {code}: {text}")
    metrics = get(mesh.http, "/metrics", host="localhost").body
    check('pilot_xds_cds_reject{node="web-1.shop"} 1' in metrics, "pilot_xds_cds_reject")
    # What changes afterwards is sent, and an ACK mends the state.
    mesh.put("rule", istio("DestinationRule", "a", {"host": "a", "trafficPolicy": {"connectionPool": {"tcp": {"maxConnections": 7}}}}))
    news = c.next(CDS)
    check(A in names(news), lambda: f"clusters {names(news)}")
    if c.delta:
        equal(names(news), [A], "only what changed")
    c.answer(news)
    until(lambda: mesh.status("web-1.shop")["types"]["CDS"]["state"] == "SYNCED", "SYNCED again")
    equal(mesh.meshctl("ps")[0], 0, "exit code of meshctl ps")


@scenario("delta", "sotw")
def what_does_not_exist(world):
    """Names that do not exist are answered at once, not left to time out; and sent when they come to be."""
    mesh = shop(world)
    c = client(world, mesh)
    c.get(CDS)
    missing = [outbound("nobody"), "rubbish|x", "outbound|80|v9|a.shop.svc.cluster.local", "x" * 4000]
    begun = time.monotonic()
    c.ask(EDS, *missing)
    response = c.next(EDS, patience=3)
    check(time.monotonic() - begun < 2.5, "at once")
    if c.delta:
        equal(sorted(gone(response)), sorted(missing), "absent names")
    else:
        check(all(not members(response, n) for n in names(response)), lambda: f"nothing but empty ones: {names(response)}")
    c.answer(response, names=missing)
    c.ask(RDS, "no-such-table")
    routes = c.next(RDS, patience=3)
    check(not names(routes) and (not c.delta or gone(routes) == ["no-such-table"]), lambda: f"routes {names(routes)} {gone(routes)}")
    c.answer(routes, names=["no-such-table"])
    mesh.put("nobody", service("nobody"), *slice_of("nobody", [8020]))
    news = c.next()
    while news.type_url != EDS:
        c.answer(news, names=["no-such-table"] if news.type_url == RDS else [])
        news = c.next()
    equal(members(news, outbound("nobody")), [8020], "endpoints")


@scenario("delta", "sotw")
def make_before_break(world):
    """What is new comes from clusters up to routes, what is gone from routes down to clusters."""
    mesh = shop(world)
    c = client(world, mesh)
    wanted = {CDS: [], EDS: [A, B], LDS: [], RDS: ["80", "90"]}
    newest = {type_url: c.get(type_url, *asked) for type_url, asked in wanted.items()}
    new = outbound("n", 90)
    order, contents = [], []

    def take(types):
        """Acknowledges what comes until all of these types have come and no more does; asks for new clusters' endpoints."""
        del order[:], contents[:]
        while not types <= set(order) or c.received:
            response = c.next()
            newest[response.type_url] = response
            order.append(response.type_url)
            contents.append((response.type_url, names(response), gone(response)))
            c.answer(response, names=wanted[response.type_url])
            if response.type_url == CDS and new in names(response) and new not in wanted[EDS]:
                wanted[EDS].append(new)
                if c.delta:
                    c.ask(EDS, new)
                else:
                    c.answer(newest[EDS], names=wanted[EDS])
            if types <= set(order):
                time.sleep(0.3)

    mesh.put("n", service("n", port=90), *slice_of("n", [8030]))
    take({CDS, EDS, LDS, RDS} if c.delta else {CDS, EDS, LDS, RDS})
    check(order.index(CDS) < order.index(EDS) < min(order.index(LDS), order.index(RDS)), f"order of additions {contents}")
    # A route moves from one service to another that is new, and the old one goes, all in one change.
    mesh.drop("n")
    take({CDS, LDS})
    last = len(order) - 1 - order[::-1].index(CDS)
    check(order.index(LDS) < last, f"order of removals {order}")
    kind, present, removed = contents[last]
    check(new in removed if c.delta else new not in present, f"the cluster goes last: {contents[last]}")


@scenario("delta", "sotw")
def endpoints_alone(world):
    """A change of endpoints sends those, of that service, and nothing else; no change sends nothing."""
    mesh = shop(world)
    c = client(world, mesh)
    for type_url, wanted in ((CDS, []), (EDS, [A, B]), (LDS, []), (RDS, ["80"])):
        c.get(type_url, *wanted)
    mesh.put("a", service("a"), *slice_of("a", [8001, 8031]))
    news = c.next(EDS)
    equal(members(news, A), [8001, 8031], "endpoints")
    if c.delta:
        equal(names(news), [A], "names")
    c.answer(news, names=[A, B])
    mesh.put("a", service("a"), *slice_of("a", [8001, 8031]))
    mesh.put("noise", {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "noise", "namespace": "shop"}, "data": {"a": "b"}})
    c.silent("after writing the same again", 0.8)


@scenario("delta", "sotw")
def a_changed_cluster_gets_its_endpoints_again(world):
    """Envoy drops the endpoints of a cluster that it is sent anew: they must follow although they are the same."""
    mesh = shop(world)
    c = client(world, mesh)
    for type_url, wanted in ((CDS, []), (EDS, [A, B])):
        c.get(type_url, *wanted)
    mesh.put("rule", istio("DestinationRule", "a", {"host": "a", "trafficPolicy": {"connectionPool": {"tcp": {"maxConnections": 7}}}}))
    clusters = c.next(CDS)
    c.answer(clusters)
    endpoints = c.next(EDS)
    check(A in names(endpoints), lambda: f"endpoints {names(endpoints)}")
    equal(members(endpoints, A), [8001], "members")


@scenario("delta", "sotw")
def identities(world):
    """Over TLS: no token and a bad one are refused, and nobody speaks for another namespace or account."""
    mesh = shop(world)
    web = mesh.token("shop", "web")
    c = client(world, mesh, node("web-1", SERVICE_ACCOUNT="web"), token=web)
    check(A in names(c.get(CDS)), "an honest proxy is served")
    status = until(lambda: mesh.status("web-1.shop"), "the proxy in syncz")
    check(status["identity"].endswith("/ns/shop/sa/web"), f"identity {status.get('identity')}")

    def refused(code, who, token, *words):
        liar = client(world, mesh, who, token=token)
        liar.ask(CDS)
        found, text = liar.status()
        equal(found, code, f"status of {who.id} ({text})")
        check(not liar.received and all(w in text for w in words), f"text {text!r}, received {len(liar.received)}")

    denied, unknown = grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED
    refused(denied, node("web-1", namespace="bank"), web, "shop", "bank")
    refused(denied, node("web-1", SERVICE_ACCOUNT="admin"), web, "admin")
    refused(denied, node("gateway", namespace="istio-system", kind="router"), web)
    refused(unknown, node("web-1"), "")
    refused(unknown, node("web-1"), "rubbish")
    head, body, signature = web.split(".")
    refused(unknown, node("web-1"), f"{head}.{body}.{signature[:-6]}AAAAAA")
    payload = base64.urlsafe_b64encode(base64.urlsafe_b64decode(body + "==").replace(b"shop", b"bank")).decode().rstrip("=")
    refused(unknown, node("web-1", namespace="bank"), f"{head}.{payload}.{signature}")
    none = base64.urlsafe_b64encode(b'{"alg":"none","typ":"JWT"}').decode().rstrip("=")
    refused(unknown, node("web-1"), f"{none}.{body}.")
    # The id of a node and its metadata must not say two things.
    torn = node("web-1")
    torn.metadata.update({"NAMESPACE": "shop"})
    torn.id = torn.id.replace(".shop~", ".bank~")
    refused(grpc.StatusCode.INVALID_ARGUMENT, torn, web, "contradict")


@scenario("delta", "sotw")
def gateway_secrets(world):
    """A certificate goes to authenticated gateways of its namespace, and to nobody else."""
    mesh = shop(world)
    chain, key = certificates.Authority().issue("a.example")
    data = {k: base64.b64encode(v.encode()).decode() for k, v in (("tls.crt", chain), ("tls.key", key))}
    mesh.put("secret", {"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls", "metadata": {"name": "cert", "namespace": "edge"}, "data": data})
    server = {"port": {"number": 443, "name": "https", "protocol": "HTTPS"}, "hosts": ["a.example"], "tls": {"mode": "SIMPLE", "credentialName": "cert"}}
    mesh.put("gateway", istio("Gateway", "g", {"selector": {"app": "gw"}, "servers": [server]}, namespace="edge"))
    name = "kubernetes://cert"

    def seen(who, token):
        c = client(world, mesh, who, token)
        c.ask(CDS)
        c.answer(c.next(CDS))
        c.ask(SDS, name, "kubernetes-gateway://edge/cert")
        response = c.next(SDS)
        body = response.SerializeToString()
        check(key.encode() not in body or names(response), "a key without a name")
        found = key.encode() in body
        c.close()
        return found

    gateway = node("gw", namespace="edge", kind="router", LABELS={"app": "gw"}, SERVICE_ACCOUNT="gw")
    until(lambda: seen(gateway, mesh.token("edge", "gw")), "the gateway to get its certificate", 5)
    strangers = [
        (node("gw", namespace="edge", kind="router", LABELS={"app": "gw"}), None, "over plaintext"),
        (node("gw", namespace="edge", LABELS={"app": "gw"}), mesh.token("edge", "gw"), "as a sidecar"),
        (node("gw", namespace="shop", kind="router", LABELS={"app": "gw"}), mesh.token("shop", "gw"), "of another namespace"),
    ]
    for who, token, what in strangers:
        check(not seen(who, token), f"the key was served {what}")


@scenario("delta", "sotw")
def malformed_requests(world):
    """Requests that no client sends: the stream may end, the control plane lives, others do not notice."""
    mesh = shop(world)
    witness = client(world, mesh, node("witness"))
    witness.get(CDS)
    witness.get(EDS, A)
    deep = {"a": {}}
    inner = deep["a"]
    for _ in range(60):
        inner["a"] = {}
        inner = inner["a"]

    def nameless(c):
        c.node = None
        c.ask(CDS)

    def unknown_first(c):
        c.send("type.googleapis.com/made.up.v9.Thing")

    def empty(c):
        c.node = None
        c.send_raw(b"")

    def with_node(change):
        def act(c):
            change(c.node)
            c.ask(CDS)
        return act

    attacks = {
        "no node": nameless,
        "nothing at all": empty,
        "an unknown type first": unknown_first,
        "no type": lambda c: c.send(""),
        "no message": lambda c: c.send_raw(b"\xff\xff\xff\xff\x0f"),
        "deep recursion": lambda c: c.send_raw(recursion(4000)),
        "an empty node id": with_node(lambda n: setattr(n, "id", "")),
        "a strange node id": with_node(lambda n: setattr(n, "id", "~~~~~~~~")),
        "a node id of 1 MB": with_node(lambda n: setattr(n, "id", "sidecar~1.2.3.4~" + "x" * 1_000_000 + ".shop~x")),
        "deep metadata": with_node(lambda n: n.metadata.update(deep)),
        "metadata of wrong types": with_node(lambda n: n.metadata.update({"LABELS": "x", "ISTIO_VERSION": [1]})),
        "300,000 names": lambda c: c.ask(EDS, *[f"outbound|80||s{i}.shop.svc.cluster.local" for i in range(300_000)]),
        "a name of 1 MB": lambda c: c.ask(EDS, "x" * 1_000_000),
        "20 MB": lambda c: c.send_raw(b"\x0a\x80\x80\x80\x0a" + b"x" * (20 << 20)),
        "a node that changes": lambda c: (c.ask(CDS), setattr(c, "node", node("other", namespace="bank")), c.ask(CDS)),
        "NACKs without a response": lambda c: [c.send(CDS, error="x") for _ in range(50)],
    }
    for what, attack in attacks.items():
        c = client(world, mesh, node("odd"))
        attack(c)
        time.sleep(0.05)
        check(mesh.process.alive(), f"{what}: mesh-control ended")
        later = client(world, mesh, node("later"))
        later.ask(CDS)
        check(A in names(later.next(CDS, patience=5)), f"{what}: the next client is served")
        later.close()
        c.close()
    mesh.put("a", service("a"), *slice_of("a", [8040]))
    equal(members(witness.next(EDS), A), [8040], "what the witness is told")
    until(lambda: [p["proxy"] for p in mesh.page("/debug/syncz")] == ["witness.shop"], lambda: f"closed streams to be forgotten: {mesh.page('/debug/syncz')}", 5)


def recursion(depth):
    """`Node.metadata` in a DiscoveryRequest, a Struct that nests: no library builds this."""
    value = b""
    for _ in range(depth):
        # Value{struct_value(5)}, in fields(1) entry{key(1) "a", value(2)}
        value = field(1, field(1, b"a") + field(2, field(5, value)))
    return field(1, field(3, value))


def field(number, payload):
    length, size = b"", len(payload)
    while True:
        length += bytes([(size & 127) | (128 if size > 127 else 0)])
        size >>= 7
        if not size:
            return bytes([number << 3 | 2]) + length + payload


def deaf_client(mesh, variant):
    """A socket that asked for all clusters and never reads."""
    sock, connection = socket.create_connection(("127.0.0.1", mesh.plain)), h2.connection.H2Connection()
    connection.initiate_connection()
    method = "DeltaAggregatedResources" if variant == "delta" else "StreamAggregatedResources"
    connection.send_headers(1, [(":method", "POST"), (":scheme", "http"), (":authority", "x"), (":path", PREFIX + method),
                                ("content-type", "application/grpc"), ("te", "trailers")])
    message = discovery.DeltaDiscoveryRequest if variant == "delta" else discovery.DiscoveryRequest
    data = message(type_url=CDS, node=node("deaf")).SerializeToString()
    connection.send_data(1, b"\0" + len(data).to_bytes(4, "big") + data)
    sock.sendall(connection.data_to_send())
    return sock


@scenario("delta", "sotw")
def a_client_that_does_not_read(world):
    """Someone who never takes what is sent holds nobody up and costs a bounded amount."""
    mesh = Mesh(world)
    for i in range(300):
        mesh.put(f"s{i}", service(f"s{i}"), *slice_of(f"s{i}", [9000 + i]))
    mesh.start()
    for _ in range(10):
        world.keep(deaf_client(mesh, world.variant))
    c = client(world, mesh)
    c.get(CDS)
    name = outbound("s7")
    c.get(EDS, name)
    before = mesh.process.memory()
    for i in range(30):
        mesh.put("s7", service("s7"), *slice_of("s7", [7000 + i]))
        begun = time.monotonic()
        news = c.next(EDS, patience=5)
        c.answer(news, names=[name])
        check(time.monotonic() - begun < 1.0, f"a change took {time.monotonic() - begun:.1f} s")
    for i in range(10):
        mesh.put("rule", istio("DestinationRule", "all", {"host": "s7", "trafficPolicy": {"connectionPool": {"tcp": {"maxConnections": 7 + i}}}}))
        response = c.next()
        c.answer(response, names=[name] if response.type_url == EDS else [])
    grown = mesh.process.memory() - before
    check(grown < 100 << 20, f"memory grew by {grown >> 20} MB")


@scenario("delta")
def many_streams(world):
    """Two hundred proxies at once: all are answered, all hear of a change, all are forgotten when they go."""
    mesh = shop(world)
    clients = [client(world, mesh, node(f"p{i}", ip=f"10.9.{i // 200}.{i % 200 + 1}")) for i in range(200)]
    for c in clients:
        c.ask(CDS)
        c.ask(EDS, A)
    for c in clients:
        c.answer(c.next(CDS))
        c.answer(c.next(EDS))
    mesh.put("a", service("a"), *slice_of("a", [8050]))
    for c in clients:
        news = c.next(EDS)
        equal(members(news, A), [8050], "endpoints")
        c.answer(news)
    equal(len(mesh.page("/debug/syncz")), 200, "proxies in syncz")
    for c in clients:
        c.close()
    until(lambda: mesh.page("/debug/syncz") == [], "closed streams to be forgotten", 5)
