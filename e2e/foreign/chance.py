"""What nobody thought of: random changes that must converge to what was sent last, and bytes that are broken at random.

Every scenario prints nothing but its seed when it fails; the seed is the same in every run unless CHANCE_SEED says otherwise.
"""

import os
import random
import socket
import time

import harness
import http2_bytes as h2b
import resources as r
from ads_server import CDS, EDS, LDS, RDS, Control
from control import Client, names, node
from control_frames import A, shop
from google.protobuf import any_pb2
from harness import Failed, check, get, refused, scenario, until
from http_parts import Site, deny, path_is
from proxy import Proxy, serving


def dice(name):
    return random.Random(f"{os.environ.get('CHANCE_SEED', '1')}/{name}")


@scenario("delta", "sotw", weight=8)
def changes_converge(world):
    """Clusters, endpoints, tables and listeners come, change and go, streams are cut: in the end all is as it was sent last."""
    chance = dice("converge")
    control = world.keep(Control(world.variant))
    world.audits.append(control.audit)
    backends = [world.backend(f"b{i}") for i in range(3)]
    ports = [harness.free_port() for _ in range(3)]
    clusters, tables = [f"c{i}" for i in range(4)], ["t0", "t1"]
    members, routes, bound = {}, {}, {}

    def put_cluster(name):
        if name not in members:
            members[name] = []
        control.put(CDS, **{name: r.cluster(name, f"{chance.randint(1, 9)}s")})
        put_endpoints(name)

    def put_endpoints(name):
        members[name] = chance.sample(range(3), chance.choice([0, 1, 1, 1]))
        control.put(EDS, **{name: r.endpoints(name, *[backends[m].port for m in members[name]])})

    def drop_cluster(name):
        members.pop(name, None)
        control.drop(CDS, name)
        control.drop(EDS, name)

    def put_table(name):
        routes[name] = [chance.choice(clusters) for _ in range(3)]
        control.put(RDS, **{name: r.route(name, *[r.to(f"/{i}", c) for i, c in enumerate(routes[name])])})

    def put_listener(number):
        bound[number] = chance.choice(tables)
        control.put(LDS, **{f"l{number}": r.listener(f"l{number}", ports[number], bound[number])})

    def drop_listener(number):
        bound.pop(number, None)
        control.drop(LDS, f"l{number}")

    for name in clusters[:2]:
        put_cluster(name)
    for name in tables:
        put_table(name)
    put_listener(0)
    proxy = Proxy(world, control.port, control.variant)
    proxy.until_ready()
    actions = [lambda: put_cluster(chance.choice(clusters)), lambda: put_endpoints(chance.choice(list(members) or ["c0"])) if members else None,
               lambda: drop_cluster(chance.choice(clusters)), lambda: put_table(chance.choice(tables)),
               lambda: put_listener(chance.randrange(3)), lambda: drop_listener(chance.randrange(3))]

    def wrong():
        """The first difference between what is served and what was sent."""
        for number, port in enumerate(ports):
            if number not in bound:
                if not refused(port):
                    return f"l{number} is gone and its port is open"
                continue
            for prefix, cluster in enumerate(routes[bound[number]]):
                try:
                    answer = get(port, f"/{prefix}")
                except OSError as error:
                    return f"l{number}: {error!r}"
                wanted = {f"b{m} GET /{prefix}" for m in members.get(cluster, [])}
                if (answer.body not in wanted) if wanted else answer.status != 503:
                    return f"l{number}/{prefix} -> {cluster}: {answer}, wanted {wanted or 503}"
            if get(port, "/9").status != 404:
                return f"l{number}/9 is found"
        return None

    for step in range(40):
        if chance.random() < 0.25:
            control.streams[-1]._out.put((None, ""))  # cut, and nobody waits for it
        for _ in range(chance.randint(1, 4)):
            chance.choice(actions)()
            if chance.random() < 0.3:
                time.sleep(chance.random() * 0.05)
        order = [CDS, EDS, LDS, RDS]
        if chance.random() < 0.3:
            chance.shuffle(order)  # a server that does not know of make before break
        stream = control.stream()
        for type_url in order:
            if stream.of(type_url):
                stream.sync(type_url)
        until(lambda: wrong() is None, lambda: f"step {step}: {wrong()}", 8, 0.05)
    check(proxy.ready()[0] == 200, lambda: f"ready: {proxy.ready()}")


def mutated(chance, data):
    """One to a few changes of bytes: flipped, cut, doubled, replaced by what is read as something large."""
    data = bytearray(data)
    for _ in range(chance.choice([1, 1, 1, 2, 5])):
        if not data:
            break
        at = chance.randrange(len(data))
        what = chance.randrange(6)
        if what == 0:
            data[at] ^= 1 << chance.randrange(8)
        elif what == 1:
            data[at] = chance.choice([0, 1, 127, 128, 255])
        elif what == 2:
            del data[at:at + chance.choice([1, 2, 8])]
        elif what == 3:
            data[at:at] = data[at:at + chance.choice([1, 4, 30])]
        elif what == 4:
            data[at:at] = b"\xff\xff\xff\xff\x0f"
        else:
            del data[at:]
    return bytes(data)


@scenario("delta", "sotw", weight=6)
def mutated_resources(world):
    """Three thousand broken resources: each push is answered, nothing crashes, and what is good serves in the end."""
    chance = dice("resources")
    control, proxy, port = serving(world)
    stream, other = control.stream(), harness.free_port()
    lua = {"name": "x", "typed_config": {"@type": r.TYPES + "filters.http.lua.v3.Lua"}}
    rbac = deny(and_rules={"rules": [path_is("/admin"), {"header": {"name": "a", "string_match": {"safe_regex": {"regex": "a+"}}}}]})
    seeds = {
        CDS: [r.cluster("m", lb_policy="RING_HASH", metadata={"filter_metadata": {"a": {"b": [1, {"c": "d"}]}}}, circuit_breakers={"thresholds": [{"max_requests": 5}]}),
              r.static_cluster("m", port, outlier_detection={"consecutive_5xx": 3}, common_lb_config={"healthy_panic_threshold": {"value": 50}})],
        EDS: [r.endpoints("b", port, other, factor=120)],
        LDS: [r.listener("m", other, r.table("i", {"match": {"safe_regex": {"regex": "/a.*"}}, "redirect": {"path_redirect": "/b"}}, "b"), [rbac]),
              r.listener("m", other, "r", [lua]), r.listener("m", other, r.table("i", "b"), tls=r.sds_tls("no-such"))],
        RDS: [r.route("r", {"match": {"prefix": "/", "headers": [{"name": "a", "present_match": True}], "query_parameters": [{"name": "q", "string_match": {"exact": "v"}}]},
                            "route": {"weighted_clusters": {"clusters": [{"name": "b", "weight": 30}, {"name": "m", "weight": 70}]}, "timeout": "3s",
                                      "retry_policy": {"retry_on": "5xx", "num_retries": 2}, "rate_limits": []}}, "b")],
    }
    nonces = []
    for _ in range(300):
        type_url = chance.choice(list(seeds))
        broken = []
        for i in range(chance.choice([1, 1, 10])):
            value = mutated(chance, chance.choice(seeds[type_url]).value)
            name = chance.choice(["m", "b", "r", f"x{i}"]) if type_url != EDS else "b"
            broken.append((name, any_pb2.Any(type_url=type_url, value=value)))
        nonces.append(stream.push(type_url, broken, ["m"] if control.delta and chance.random() < 0.2 else []))
    refused_ = sum(stream.answer(nonce, 30).HasField("error_detail") for nonce in nonces)
    check(100 < refused_ < 300, f"{refused_} of 300 pushes were refused: nothing was tested")
    check(len(control.streams) == 1, "the stream was given up")
    for type_url in (CDS, EDS, LDS, RDS):
        has = stream.has.get(type_url, {})
        state = control.state[type_url]
        stream.ack(stream.push(type_url, list(state.items()), [n for n in has if n not in state] if control.delta else []))
    until(lambda: get(port).body == "one GET /", "what is good to serve")
    until(lambda: proxy.ready()[0] == 200, lambda: f"ready: {proxy.ready()}", 20)
    grown = proxy.process.memory()
    check(grown < 300 << 20, f"{grown >> 20} MiB")


@scenario("delta", "sotw")
def mutated_requests(world):
    """Broken requests to the control plane: streams may end, the process and other streams go on."""
    chance = dice("requests")
    mesh = shop(world)
    witness = world.keep(Client(mesh, world.variant, node("witness")))
    witness.get(CDS)
    seeds = []
    recorder = Client(mesh, world.variant, node("seed", LABELS={"app": "a"}, ISTIO_VERSION="1.30.0"))
    recorder._out.put = seeds.append  # only to see what would be sent
    recorder.ask(CDS)
    recorder.ask(EDS, A, "x", versions={A: "1"} if world.variant == "delta" else None)
    recorder.ask(RDS, "80")
    recorder.send(LDS, response_nonce="n", error="why")
    seeds = [s.SerializeToString() for s in seeds]
    for _ in range(120):
        c = Client(mesh, world.variant)
        c.send_raw(seeds[0] if chance.random() < 0.5 else mutated(chance, seeds[0]))
        for _ in range(8):
            c.send_raw(mutated(chance, chance.choice(seeds)))
        time.sleep(0.01)
        c.close()
    check(mesh.process.alive(), "mesh-control ended")
    later = world.keep(Client(mesh, world.variant, node("later")))
    later.ask(CDS)
    check(A in names(later.next(CDS)), "the next client is served")
    check(not witness.ended and not witness.received, "the witness is left alone")
    until(lambda: len(mesh.page("/debug/syncz")) == 2, "closed streams to be forgotten", 5)


@scenario(weight=4)
def mutated_bytes(world):
    """Broken HTTP/1.1 and HTTP/2: whatever comes, connections end or are answered, and others are served."""
    chance = dice("bytes")
    site = Site(world, [deny(**path_is("/admin"))], request_headers_timeout="1s", stream_idle_timeout="1s",
                http_protocol_options={"accept_http_10": True, "enable_trailers": True}, common_http_protocol_options={"idle_timeout": "1s"})
    load = world.load(site.port, "/good", threads=1, pause=0.02)
    heads = [b"GET /a?b=c HTTP/1.1\r\nHost: x.example:80\r\nAccept: */*\r\nCookie: a=b; c=d\r\n\r\n",
             b"POST /p HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\nhelloGET /2 HTTP/1.1\r\nHost: x\r\n\r\n",
             b"POST /c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTrailer: t\r\n\r\n5;a=b\r\nhello\r\n0\r\nt: u\r\n\r\n",
             b"GET http://user@h:1/x/../y%2f..%5c HTTP/1.1\r\nHost: y\r\nConnection: upgrade, x\r\nUpgrade: websocket\r\n\r\n"]
    encoded = h2b.head("/h2?a=b", "POST", extra=[("cookie", "a=b"), ("x-y", "z"), ("content-length", "5")])
    frames = h2b.PREFACE + h2b.frame(h2b.SETTINGS, 0, 0, b"\0\4\0\1\0\0") + h2b.frame(h2b.HEADERS, 4, 1, encoded) + h2b.frame(h2b.DATA, 1, 1, b"hello") \
        + h2b.frame(h2b.PRIORITY, 0, 3, b"\0\0\0\1\5") + h2b.frame(h2b.WINDOW, 0, 0, b"\0\0\1\0") + h2b.frame(h2b.HEADERS, 1, 3, encoded[:20]) \
        + h2b.frame(h2b.CONTINUATION, 4, 3, encoded[20:]) + h2b.frame(h2b.PING, 0, 0, b"12345678") + h2b.frame(h2b.RST, 0, 1, b"\0\0\0\x08") + h2b.frame(h2b.GOAWAY, 0, 0, b"\0" * 8)
    held = []
    for number in range(1500):
        data = mutated(chance, chance.choice(heads) if number % 2 else frames)
        if number % 2 == 0 and chance.random() < 0.8:
            data = h2b.PREFACE + data[len(h2b.PREFACE):]
        sock = socket.create_connection(("127.0.0.1", site.port), timeout=5)
        held.append(sock)
        try:
            sock.sendall(data)
            if chance.random() < 0.7:
                sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # closed already, which is an answer
        if len(held) > 100:
            held.pop(0).close()
    end = time.monotonic() + 8
    for sock in held:
        sock.settimeout(max(0.01, end - time.monotonic()))
        try:
            while sock.recv(65536):
                pass
        except TimeoutError as error:
            raise Failed("a connection is still open") from error
        except OSError:
            pass
        sock.close()
    load.end()
    check(load.slowest < 1.5, f"the slowest request of another client took {load.slowest:.2f} s")
    check(not any(b" /admin" in head.split(b"\r\n")[0] for head, _ in site.upstream.requests), "past the policy")
