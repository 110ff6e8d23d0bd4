"""Configuration that changes under load, and configuration that is large: nobody who is served may notice."""

import http.client
import time

import certificates
import harness
import resources as r
from ads_server import CDS, EDS, LDS, RDS, SDS
from harness import check, equal, get, holds, refused, scenario, until
from proxy import serving, start


def body(port, path="/"):
    return get(port, path).body


@scenario("delta", "sotw")
def clusters_change_under_load(world):
    """Clusters, endpoints and tables are replaced again and again."""
    control, _, port = serving(world)
    backends = [world.backend(f"b{i}") for i in range(3)]
    control.put(EDS, b=r.endpoints("b", *[b.port for b in backends]))
    control.publish(EDS)
    until(lambda: body(port).startswith("b"), "the backends under load")
    load = world.load(port, threads=4)
    for i in range(25):
        control.put(CDS, b=r.cluster("b", f"{1 + i % 3}s", lb_policy=["ROUND_ROBIN", "LEAST_REQUEST", "RANDOM"][i % 3]))
        control.put(EDS, b=r.endpoints("b", *[b.port for b in backends[i % 2:]], factor=100 + i))
        control.put(RDS, r=r.route("r", r.to(f"/v{i}", "b"), "b"))
        control.publish(CDS, EDS, RDS)
        load.more(4)
    load.end()
    equal(set(load.answers), {"b0", "b1", "b2"}, "backends that answered")


@scenario("delta", "sotw")
def clusters_are_exchanged_under_load(world):
    """Make before break: a new cluster, the table moves, the old cluster goes; round after round."""
    control, _, port = serving(world)
    backends = [world.backend(f"b{i}") for i in range(2)]
    load = world.load(port, threads=3)
    old = "b"
    for i in range(15):
        new = f"c{i}"
        control.put(CDS, **{new: r.cluster(new)})
        control.put(EDS, **{new: r.endpoints(new, backends[i % 2].port)})
        control.put(RDS, r=r.route("r", new))
        control.publish(CDS)
        control.publish(RDS)
        control.drop(CDS, old)
        control.drop(EDS, old)
        control.publish(CDS)
        load.more(4)
        old = new
    load.end()
    control.stream().asked(EDS, [old])


@scenario("delta", "sotw")
def listeners_change_under_load(world):
    """A listener is replaced, with other filters and tables, others come and go: connections that are kept do not notice."""
    control, _, port = serving(world)
    load = world.load(port, threads=4)
    fresh = world.load(port, threads=2, connect=lambda: OneShot(port))
    others = [harness.free_port() for _ in range(3)]
    for i in range(20):
        table = r.table("i", r.says("/x", "x"), "b") if i % 2 else "r"
        control.put(LDS, l=r.listener("l", port, table, manager={"server_name": f"s{i}"}))
        name = f"m{i % 3}"
        if name in control.state[LDS]:
            control.drop(LDS, name)
        else:
            control.put(LDS, **{name: r.listener(name, others[i % 3], r.table("i", r.says("/", name)))})
        control.publish(LDS)
        load.more(6)
        fresh.more(3)
    fresh.end()
    load.end()
    for i, other in enumerate(others):
        there = f"m{i}" in control.state[LDS]
        until(lambda: refused(other) != there, f"port of m{i}")


class OneShot(http.client.HTTPConnection):
    """A connection for one request."""

    def __init__(self, port):
        super().__init__("127.0.0.1", port, timeout=10)

    def request(self, method, url, **more):
        self.close()
        super().request(method, url, **more)


@scenario("delta", "sotw")
def listener_removed_while_a_request_is_on_its_way(world):
    """The port closes at once; who is being served is served to the end."""
    control, _, port = serving(world)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/slow", headers={"host": "x", "x-wait-ms": "1500"})
    time.sleep(0.3)
    control.drop(LDS, "l")
    control.publish(LDS)
    until(lambda: refused(port), "the port to be closed")
    response = connection.getresponse()
    equal((response.status, response.read().decode()), (200, "one GET /slow"), "answer")


@scenario("delta", "sotw")
def cluster_removed_while_a_request_is_on_its_way(world):
    """A removed cluster's request in flight ends well; the next has none."""
    control, _, port = serving(world)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/slow", headers={"host": "x", "x-wait-ms": "1000"})
    time.sleep(0.3)
    control.drop(CDS, "b")
    control.drop(EDS, "b")
    control.publish(CDS)
    until(lambda: get(port).status == 503, "503 without the cluster")
    response = connection.getresponse()
    equal((response.status, response.read().decode()), (200, "one GET /slow"), "answer")


@scenario("delta", "sotw")
def secrets_rotate_under_load(world):
    """A certificate over ADS, replaced every 100 ms: no connection fails, new ones see the new one."""
    control, proxy = start(world)
    port, authority = harness.free_port(), certificates.Authority()
    pairs = [authority.issue("a.example") for _ in range(12)]
    control.put(SDS, cert=r.secret("cert", *pairs[0]))
    control.put(CDS, b=r.cluster("b"))
    control.put(EDS, b=r.endpoints("b", world.backend().port))
    control.put(LDS, l=r.listener("l", port, r.table("i", "b"), tls=r.sds_tls("cert")))
    proxy.until_ready()
    stream = control.stream()
    equal(stream.names[SDS], {"cert"}, "SDS names")

    def kept():
        return certificates.Connection(port, authority, "a.example")

    load = world.load(port, connect=kept, threads=2)
    fresh = world.load(port, connect=lambda: FreshTls(port, authority), threads=1)
    for chain, key in pairs[1:]:
        control.put(SDS, cert=r.secret("cert", chain, key))
        control.publish(SDS)

        def seen():
            connection = kept()
            connection.connect()
            serial = connection.serial()
            connection.close()
            return serial

        until(lambda: seen() == certificates.serial_of(chain), "the new certificate")
        time.sleep(0.1)
    # Broken ones are refused by name, and the last good one serves on.
    good = certificates.serial_of(pairs[-1][0])
    for chain, key in [("rubbish", pairs[0][1]), (pairs[0][0], pairs[1][1])]:
        stream.nack(stream.push(SDS, [("cert", r.secret("cert", chain, key))]), "cert: ")
        equal(seen(), good, "certificate after a bad one")
    fresh.end()
    load.end()


class FreshTls(certificates.Connection):
    """A TLS connection for one request."""

    def __init__(self, port, authority):
        super().__init__(port, authority, "a.example")

    def request(self, method, url, **more):
        self.close()
        super().request(method, url, **more)


@scenario("delta", "sotw", weight=5)
def a_thousand_clusters(world):
    """All of them serve; requests meanwhile are not kept waiting; a change of one is sent and applied alone."""
    control, proxy, port = serving(world)
    stream, backend = control.stream(), world.backend("many")
    load = world.load(port)
    names = [f"outbound|80||svc-{i}.ns.svc.cluster.local" for i in range(1000)]
    control.put(CDS, **{n: r.cluster(n) for n in names})
    control.put(EDS, **{n: r.endpoints(n, backend.port) for n in names})
    control.put(RDS, r=r.route("r", *[r.to(f"/{i}/", n) for i, n in enumerate(names)], "b"))
    begun = time.monotonic()
    control.publish(CDS)
    stream.asked(EDS, ["b", *names])
    control.publish(RDS)
    until(lambda: body(port, "/999/") == "many GET /999/", "the last cluster")
    took = time.monotonic() - begun
    check(took < 10, f"a thousand clusters took {took:.1f} s")
    for i in (0, 1, 500, 998):
        equal(body(port, f"/{i}/"), f"many GET /{i}/", "body")
    two = world.backend("two")
    control.put(EDS, **{names[7]: r.endpoints(names[7], two.port)})
    control.publish(EDS)
    until(lambda: body(port, "/7/") == "two GET /7/", "the one changed cluster")
    equal(body(port, "/8/"), "many GET /8/", "its neighbour")
    load.end()
    check(load.slowest < 1.0, f"the slowest request took {load.slowest:.2f} s")
    # One bad one among a thousand: named, 999 apply.
    changed = {n: r.cluster(n, "2s") for n in names}
    changed[names[500]] = r.bad_cluster(names[500])
    nonce = stream.push(CDS, [("b", control.state[CDS]["b"]), *changed.items()])
    answer = stream.nack(nonce, names[500])
    check(names[501] not in answer.error_detail.message, "names the bad one only")
    equal(body(port, "/500/"), "many GET /500/", "the bad one's last good version")
    equal(body(port, "/501/"), "many GET /501/", "a good one")
    # All gone again.
    control.drop(CDS, *names)
    control.drop(EDS, *names)
    control.put(RDS, r=r.route("r", "b"))
    control.publish(RDS)
    control.publish(CDS)
    stream.asked(EDS, ["b"])
    equal(body(port), "one GET /", "body")
    equal(proxy.ready()[0], 200, "ready")


@scenario("delta", "sotw")
def huge_messages(world):
    """One message of 40 MB, and 20,000 endpoints in one resource, while requests go on."""
    control, _, port = serving(world)
    stream, load = control.stream(), world.load(port)
    fields = {"blob": "x" * 1_000_000}
    blobs = {f"big{i}": r.static_cluster(f"big{i}", 1, metadata={"filter_metadata": {"a": fields}}) for i in range(40)}
    stream.ack(stream.push(CDS, [("b", control.state[CDS]["b"]), *blobs.items()]))
    backend = world.backend("two")
    many = r.endpoints("b", *[backend.port] * 20_000)
    stream.ack(stream.push(EDS, [("b", many)]))
    until(lambda: body(port) == "two GET /", "the endpoints")
    stream.ack(stream.push(EDS, [("b", r.endpoints("b", backend.port))]))
    stream.ack(stream.push(CDS, [("b", control.state[CDS]["b"])], list(blobs) if control.delta else []))
    equal(body(port), "two GET /", "body")
    load.end()
    check(load.slowest < 1.5, f"the slowest request took {load.slowest:.2f} s")


@scenario("delta")
def endpoints_change_fast(world):
    """Two thousand changes of endpoints as fast as they go: the last one is in force, none is lost on the way."""
    control, _, port = serving(world)
    stream = control.stream()
    backends = [world.backend(f"b{i}") for i in range(2)]
    load = world.load(port)
    for i in range(2000):
        nonce = stream.push(EDS, [("b", r.endpoints("b", backends[i % 2].port, factor=100 + i % 50))])
    stream.ack(nonce)
    until(lambda: body(port) == "b1 GET /", "the last change")
    answered = sum(1 for q in stream.of(EDS) if q.response_nonce)
    check(answered >= 2001, f"{answered} answers")
    load.end()
    holds(lambda: body(port) == "b1 GET /", "and it stays", 0.3)
