"""The way to the ADS server breaks, hangs or crawls: what was accepted serves on, and nothing is told wrong afterwards."""

import time

import grpc
import harness
import resources as r
from ads_server import CDS, EDS, LDS, RDS, SDS, Control, version_of
from harness import check, equal, get, holds, refused, scenario, until
from proxy import Proxy, serving, simple, start
from relay import Relay


def body(port, path="/"):
    return get(port, path).body


def relayed(world, **more):
    """A proxy that serves `simple`, with a relay on the way to its server."""
    control = world.keep(Control(world.variant))
    world.audits.append(control.audit)
    relay = world.keep(Relay(control.port))
    port = simple(world, control)
    proxy = Proxy(world, relay.port, control.variant, **more)
    proxy.until_ready()
    equal(body(port), "one GET /", "body")
    return control, relay, proxy, port


@scenario("delta", "sotw")
def server_down_at_start(world):
    """Not ready, and says why; serves as soon as the server is there."""
    control = world.keep(Control(world.variant, start=False))
    world.audits.append(control.audit)
    port = simple(world, control)
    proxy = Proxy(world, control.port, control.variant)
    reason = until(lambda: (lambda s: s[1] if s[0] == 503 and "efused" in s[1] else None)(proxy.ready()), lambda: f"a reason: {proxy.ready()}")
    check("xds" in reason or str(control.port) in reason, f"names the server: {reason!r}")
    check(refused(port), "nothing is served yet")
    time.sleep(1.0)
    begun = time.monotonic()
    control.start()
    proxy.until_ready()
    check(time.monotonic() - begun < 5.5, "ready within the longest pause")
    equal(body(port), "one GET /", "body")


@scenario("delta", "sotw")
def stream_cut_in_steady_state(world):
    """With every status a stream can end with: the client comes back, with what it has, and is not sent it again."""
    control, proxy, port = serving(world)
    load = world.load(port)
    versions = {t: {n: version_of(a) for n, a in control.state[t].items()} for t in (CDS, EDS, LDS, RDS)}
    codes = [None, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.INTERNAL]
    for code in codes:
        old = control.stream()
        accepted = {t: old.of(t)[-1].version_info for t in (CDS, LDS, EDS, RDS)} if not control.delta else {}
        old.cut(code)
        stream = control.next_stream(6) if control.streams[-1] is old else control.stream()
        for type_url in (CDS, EDS, LDS, RDS):
            first = stream.first(type_url)
            if control.delta:
                equal(dict(first.initial_resource_versions), versions[type_url], f"versions of {type_url}")
            else:
                equal(first.version_info, accepted[type_url], f"version of {type_url}")
        types = list(dict.fromkeys(q.type_url for _, q in stream.requests))
        check(types.index(CDS) < types.index(EDS) < types.index(LDS) < types.index(RDS), f"order {types}")
        if control.delta:
            holds(lambda: not stream.order, "nothing is sent again", 0.2)
        else:
            until(lambda: len(stream.order) == 4 and all(stream.answer(n) for _, n in stream.order), "answers")
    load.end()
    equal(proxy.ready()[0], 200, "ready")


@scenario("delta", "sotw")
def stream_cut_in_every_phase(world):
    """Cut while the first configuration is on its way: after CDS, EDS, LDS, RDS were asked for, and after each answer."""
    control, proxy = start(world)
    backend, port = world.backend(), harness.free_port()
    control.put(CDS, b=r.cluster("b"))
    control.put(EDS, b=r.endpoints("b", backend.port))
    control.put(LDS, l=r.listener("l", port, "r"))
    control.put(RDS, r=r.route("r", "b"))
    steps = {(t, answered) for t in (CDS, EDS, LDS, RDS) for answered in (False, True)}
    over = set()

    def maybe_cut(stream, request):
        step = (request.type_url, request.response_nonce != "")
        if stream.number not in over and step in steps:
            steps.discard(step)
            over.add(stream.number)
            # The next stream has something new of every type to say.
            control.put(CDS, b=r.cluster("b", f"{len(over)}s"))
            control.put(EDS, b=r.endpoints("b", backend.port, factor=100 + len(over)))
            control.put(RDS, r=r.route("r", r.to(f"/{len(over)}", "b"), "b"))
            control.put(LDS, l=r.listener("l", port, "r", manager={"server_name": f"s{len(over)}"}))
            stream._out.put((grpc.StatusCode.UNAVAILABLE, f"cut at {step}"))
        # What comes behind a cut is not heard any more.
        return stream.number not in over

    control.automatic = maybe_cut
    until(lambda: not steps, lambda: f"steps {steps}", 30)
    proxy.until_ready()
    equal(body(port), "one GET /", "body")


@scenario("delta", "sotw")
def refused_is_not_held(world):
    """A refused resource is not said to be had: the last good version is, or nothing (or it would never be sent again)."""
    control, _, port = serving(world)
    stream = control.stream()
    good = version_of(control.state[CDS]["b"])
    stream.nack(stream.push(CDS, [("b", r.bad_cluster("b")), ("bad", r.bad_cluster("bad"))], version="bad"), "b: ", "bad: ")
    accepted = next(q.version_info for q in stream.of(CDS) if q.response_nonce) if not control.delta else None
    stream.cut()
    again = control.stream(1).first(CDS)
    if control.delta:
        equal(dict(again.initial_resource_versions), {"b": good}, "versions")
    else:
        equal(again.version_info, accepted, "version")
        equal(list(again.resource_names), [], "names")
    equal(body(port), "one GET /", "body")


@scenario("delta", "sotw")
def changes_while_away(world):
    """What changed, came and went while there was no stream is caught up with at once."""
    control, _, port = serving(world)
    two = world.backend("two")
    other, gone = harness.free_port(), harness.free_port()
    control.put(LDS, gone=r.listener("gone", gone, "r"))
    control.publish(LDS)
    until(lambda: body(gone) == "one GET /", "the listener that will go")
    control.stop()
    control.put(EDS, b=r.endpoints("b", two.port))
    control.put(LDS, new=r.listener("new", other, "r"))
    control.drop(LDS, "gone")
    time.sleep(0.5)
    equal(body(port), "one GET /", "body without a server")
    control.start()
    until(lambda: body(port) == "two GET /", "changed endpoints")
    until(lambda: body(other) == "two GET /", "the new listener")
    until(lambda: refused(gone), "the port of the old listener to be closed")


@scenario("delta", "sotw")
def pauses_grow_while_streams_fail(world):
    """Streams that open and end without a message are no success: pauses grow, with jitter, up to a few seconds."""
    control = world.keep(Control(world.variant))
    control.on_open = lambda stream: stream._out.put((grpc.StatusCode.UNAVAILABLE, "not now"))
    port = simple(world, control)
    proxy = Proxy(world, control.port, control.variant)
    until(lambda: len(control.attempts) >= 6, "six attempts", 20)
    pauses = [b - a for a, b in zip(control.attempts, control.attempts[1:])]
    check(pauses[-1] > 2 * pauses[0], f"pauses grow: {pauses}")
    check(max(pauses) < 5, f"and have an end: {pauses}")
    check("not now" in proxy.ready()[1], lambda: f"the reason is told: {proxy.ready()}")
    control.on_open = None
    proxy.until_ready()
    # After a message pauses are short again.
    stream = control.stream()
    begun = time.monotonic()
    stream.cut()
    control.stream(stream.number + 1)
    check(time.monotonic() - begun < 1.0, f"back soon: {time.monotonic() - begun:.1f} s")
    equal(body(port), "one GET /", "body")


@scenario("delta", "sotw")
def server_hangs(world):
    """Open connections over which nothing comes any more: noticed by pings, and left for a new one."""
    control, relay, proxy, port = relayed(world)
    load = world.load(port, pause=0.02)
    count = relay.accepted
    relay.hang()
    until(lambda: relay.accepted > count, "another connection, by the pings that the bootstrap asks for", 6)
    equal(proxy.ready()[0], 200, "ready")
    two = world.backend("two")
    control.put(EDS, b=r.endpoints("b", two.port))
    relay.flow()
    until(lambda: body(port) == "two GET /", "what changed meanwhile", 20)
    load.end()


@scenario("delta", weight=9)
def server_hangs_without_keepalive_in_the_bootstrap(world):
    """Also without `connection_keepalive` in the bootstrap a dead control plane is noticed within half a minute."""
    control, relay, _, port = relayed(world, keepalive=False)
    count = relay.accepted
    relay.hang()
    until(lambda: relay.accepted > count, "another connection", 31)
    equal(body(port), "one GET /", "body")
    control.put(EDS, b=r.endpoints("b", world.backend("two").port))
    relay.flow()
    until(lambda: body(port) == "two GET /", "what changed meanwhile", 20)


@scenario("delta", "sotw")
def connection_cut(world):
    """The TCP connection ends without a word, again and again."""
    control, relay, _, port = relayed(world)
    load = world.load(port)
    for i in range(4):
        before = len(control.streams)
        relay.cut()
        until(lambda: len(control.streams) > before, "the client to come back")
        backend = world.backend(f"b{i}")
        control.put(EDS, b=r.endpoints("b", backend.port))
        stream = control.streams[-1]
        stream.first(EDS)
        stream.sync(EDS)
        until(lambda: body(port) == f"b{i} GET /", "later pushes")
    load.end()


@scenario("delta", "sotw")
def slow_server(world):
    """Answers that come byte by byte: nothing half is applied, requests flow meanwhile."""
    control, relay, _, port = relayed(world)
    stream, two = control.stream(), world.backend("two")
    load = world.load(port)
    relay.bytes_per_second = 20_000
    names = [f"c{i}" for i in range(300)]
    control.put(CDS, **{n: r.cluster(n) for n in names})
    control.put(EDS, **{n: r.endpoints(n, two.port) for n in names})
    control.put(RDS, r=r.route("r", "c299"))
    stream.ack(stream.sync(CDS))
    stream.asked(EDS, ["b", *names])
    stream.sync(RDS)
    until(lambda: body(port) == "two GET /", "the last cluster")
    relay.bytes_per_second = None
    load.end()


@scenario("delta", "sotw")
def server_that_does_not_read(world):
    """A server that pushes and does not read answers: what it pushes applies all the same."""
    control, _, port = serving(world)
    stream = control.stream()
    stream.stall()
    backends = [world.backend(f"b{i}") for i in range(2)]
    for i in range(3000):
        stream.push(EDS, [("b", r.endpoints("b", backends[i % 2].port))])
    stream.push(EDS, [("b", r.endpoints("b", backends[0].port, 1))], nonce="last")
    last = [("b", r.endpoints("b", world.backend("last").port))]
    stream.push(EDS, last, nonce="very last")
    until(lambda: body(port) == "last GET /", "the last push")
    stream.go_on()
    stream.ack("very last")


@scenario("delta", "sotw")
def going_away_politely(world):
    """A server that says GOAWAY and ends its streams in peace, and another takes over on the same port."""
    control, _, port = serving(world)
    load = world.load(port)
    for _ in range(2):
        control.stop()
        time.sleep(0.2)
        control.start()
        count = len(control.streams)
        until(lambda: len(control.streams) > count - 1 and control.stream().of(LDS), "the client on the new server")
    control.put(EDS, b=r.endpoints("b", world.backend("two").port))
    stream = control.stream()
    stream.first(RDS)
    stream.sync(EDS)
    until(lambda: body(port) == "two GET /", "later pushes")
    load.end()


@scenario("delta")
def secrets_that_come_late(world):
    """A listener waits for its certificate, says so, and opens with it."""
    control, proxy = start(world)
    port = harness.free_port()
    control.answered.discard(SDS)
    control.put(LDS, l=r.listener("l", port, r.table("i", r.says("/", "tls")), tls=r.sds_tls("cert")))
    control.put(CDS, unused=r.static_cluster("unused", 1))
    stream = control.stream()
    stream.asked(SDS, ["cert"])
    until(lambda: "waits for certificates" in proxy.ready()[1], lambda: f"a reason: {proxy.ready()}")
    check(refused(port), "closed meanwhile")
    import certificates
    authority = certificates.Authority()
    control.put(SDS, cert=r.secret("cert", *authority.issue("a.example")))
    stream.ack(stream.sync(SDS))
    proxy.until_ready()
    equal(certificates.get(port, authority, "a.example"), (200, "tls"), "answer over TLS")
