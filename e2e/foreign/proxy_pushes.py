"""What an ADS server may send: good, odd and broken pushes, removals, and in which order things come into force."""

import harness
import resources as r
from ads_server import CDS, EDS, LDS, RDS
from google.protobuf import any_pb2
from harness import check, equal, get, holds, refused, scenario, until
from proxy import Proxy, serving, simple, start


def body(port, path="/"):
    return get(port, path).body


def status(port, path="/"):
    return get(port, path).status


@scenario("delta", "sotw")
def load_and_serve(world):
    """Everything arrives in order, is acknowledged, and serves."""
    control, proxy, port = serving(world)
    stream = control.stream()
    equal(len(control.streams), 1, "streams")
    order = list(dict.fromkeys(q.type_url for _, q in stream.requests))
    check(order.index(CDS) < order.index(EDS) and order.index(LDS) < order.index(RDS), f"order {order}")
    equal(stream.metadata.get("x-who"), "me", "initial metadata")
    equal(stream.requests[0][1].node.id, "foreign-node", "node")
    equal(stream.names[EDS], {"b"}, "EDS names")
    equal(stream.names[RDS], {"r"}, "RDS names")
    for _, nonce in stream.order:
        stream.ack(nonce)
    check(all(name in proxy.dump() for name in ('"b"', '"r"', '"l"')), "config_dump shows what was sent")


@scenario("delta", "sotw")
def odd_nonces(world):
    """Empty, repeated, very long nonces and those of yesterday: what comes is applied, and answered with that nonce."""
    control, _, port = serving(world)
    stream, two, three = control.stream(), world.backend("two"), world.backend("three")
    first = next(n for t, n in stream.order if t == EDS)
    for nonce, backend in [("same", two), ("same", three), ("x" * 100_000, two), (first, three), ("näh ☃", two)]:
        before = sum(q.response_nonce == nonce for q in stream.of(EDS))
        stream.push(EDS, [("b", r.endpoints("b", backend.port))], nonce=nonce)
        until(lambda: body(port) == f"{backend.name} GET /", f"{backend.name} after nonce {nonce[:10]!r}")
        until(lambda: sum(q.response_nonce == nonce for q in stream.of(EDS)) == before + 1, f"an answer to {nonce[:10]!r}")
    # Without a nonce there is nothing to acknowledge by; what came counts all the same, and nobody talks in circles.
    count = len(stream.requests)
    stream.push(EDS, [("b", r.endpoints("b", three.port))], nonce="")
    until(lambda: body(port) == "three GET /", "three after an empty nonce")
    holds(lambda: len(stream.requests) <= count + 1, "one answer at most to an empty nonce", 0.5)
    equal(len(control.streams), 1, "streams")


@scenario("delta", "sotw")
def partial_nack_clusters(world):
    """One bad cluster beside good ones: those apply, it is named, its last good version serves."""
    control, proxy, port = serving(world)
    stream, two = control.stream(), world.backend("two")
    control.put(RDS, r=r.route("r", r.to("/new", "new"), "b"))
    control.put(EDS, new=r.endpoints("new", two.port))
    good = control.state[CDS]["b"]
    control.put(CDS, b=r.bad_cluster("b"), new=r.cluster("new"), worse=r.bad_cluster("worse"))
    nonce = stream.sync(CDS)
    answer = stream.nack(nonce, "b: ", "worse: ", "maglev_lb_config.table_size")
    check("new" not in answer.error_detail.message, f"names a good one: {answer.error_detail.message}")
    stream.asked(EDS, ["b", "new"])
    control.publish(RDS)
    until(lambda: body(port, "/new") == "two GET /new", "the good cluster of a push with bad ones")
    equal(body(port), "one GET /", "body by the last good version")
    dump = proxy.dump()
    check("table_size" in dump and "error_state" in dump, "config_dump tells of the refusal")
    if not control.delta:
        equal(answer.version_info, next(q.version_info for q in stream.of(CDS) if q.version_info), "version of the last good push")
    # Mended: accepted.
    control.put(CDS, b=good, worse=r.cluster("worse"))
    control.put(EDS, worse=r.endpoints("worse"))
    control.publish(CDS)
    stream.asked(EDS, ["b", "new", "worse"])


@scenario("delta", "sotw")
def partial_nack_other_types(world):
    """A bad table, endpoint set or listener: the old one serves on."""
    control, _, port = serving(world)
    stream = control.stream()
    bad_route = r.route("r", {"match": {"safe_regex": {"regex": "("}}, "route": {"cluster": "b"}})
    stream.nack(stream.push(RDS, [("r", bad_route)]), "r: ", "regex")
    bad_port = r.pack(EDS, {"cluster_name": "b", "endpoints": [{"lb_endpoints": [{"endpoint": {"address": {
        "socket_address": {"address": "not an address", "port_value": 1}}}}]}]})
    stream.nack(stream.push(EDS, [("b", bad_port)]), "b: ", "address")
    lua = {"name": "x", "typed_config": {"@type": r.TYPES + "filters.http.lua.v3.Lua"}}
    other = harness.free_port()
    listeners = [("l", r.listener("l", port, "r", [lua])), ("m", r.listener("m", other, r.table("i", r.says("/", "m"))))]
    nonce = stream.push(LDS, listeners)
    stream.nack(nonce, "l: ", "Lua")
    until(lambda: body(other) == "m", "the good listener of a push with a bad one")
    equal(body(port), "one GET /", "body by the old listener")


@scenario("delta", "sotw")
def unknown_filter_may_be_optional(world):
    """A filter that nobody knows is refused, never skipped; unless it is said to be optional."""
    control, _, port = serving(world)
    stream = control.stream()
    made_up = {"@type": "type.googleapis.com/xds.type.v3.TypedStruct", "type_url": "type.googleapis.com/made.up.v9.Filter"}
    refuse = r.listener("l", port, r.table("i", r.says("/", "new")), [{"name": "made.up", "typed_config": made_up}])
    stream.nack(stream.push(LDS, [("l", refuse)]), "l: ", "made.up")
    equal(body(port), "one GET /", "body by the old listener")
    optional = {"name": "made.up", "typed_config": made_up, "is_optional": True}
    stream.ack(stream.push(LDS, [("l", r.listener("l", port, r.table("i", r.says("/", "new")), [optional]))]))
    until(lambda: body(port) == "new", "the listener without the optional filter")


@scenario("delta", "sotw")
def undecodable_resources(world):
    """Bytes that are no message, in one resource; the rest of the push applies."""
    control, _, port = serving(world)
    stream, other = control.stream(), harness.free_port()
    good = r.listener("m", other, r.table("i", r.says("/", "m")))
    # Field 1 says it is longer than the message is; then a good name with rubbish behind it.
    for value in (b"\x0a\xff\xff\xff\xff\x0f", b"\x0a\x03bad\xff\xff", b"\x0a\x03bad\x12\x02\xff\xff"):
        junk = any_pb2.Any(type_url=LDS, value=value)
        whole = [("m", good), ("bad", junk), ("l", control.state[LDS]["l"])]
        answer = stream.nack(stream.push(LDS, whole))
        check(answer.error_detail.message, "a reason")
        until(lambda: body(other) == "m", "the good listener of the push")
        equal(body(port), "one GET /", "body")
        if control.delta:
            check("bad" in answer.error_detail.message, f"the name: {answer.error_detail.message}")
    # A resource in an envelope of another type.
    mixed = any_pb2.Any(type_url=RDS, value=control.state[RDS]["r"].value)
    stream.nack(stream.push(CDS, [("b", control.state[CDS]["b"]), ("r", mixed)]), "RouteConfiguration")
    equal(body(port), "one GET /", "body")


@scenario("delta", "sotw")
def undecodable_response(world):
    """A whole message that is none ends the stream at most; the client comes back and nothing is lost."""
    control, proxy, port = serving(world)
    for junk in (b"\xff\xff\xff\xff", b"\x12\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"):
        stream = control.stream()
        stream.send(junk)
        until(lambda: stream.closed.is_set(), "the stream to end", 5)
        control.next_stream() if control.streams[-1] is stream else None
        until(lambda: control.stream().of(LDS), "listeners to be asked for again")
        equal(body(port), "one GET /", "body")
    equal(proxy.ready()[0], 200, "ready")


@scenario("delta", "sotw")
def unknown_type(world):
    """Answers of a type that nobody asked for: refused if unknown, without harm."""
    control, _, port = serving(world)
    stream = control.stream()
    stream.nack(stream.push("type.googleapis.com/made.up.v9.Thing", [("t", any_pb2.Any(type_url="x", value=b"y"))]), "made.up.v9.Thing")
    stream.nack(stream.push("", []), "type")
    scoped = "type.googleapis.com/envoy.config.route.v3.ScopedRouteConfiguration"
    stream.nack(stream.push(scoped, []), "ScopedRouteConfiguration")
    control.put(EDS, b=r.endpoints("b", world.backend("two").port))
    control.publish(EDS)
    until(lambda: body(port) == "two GET /", "later pushes to apply")
    equal(len(control.streams), 1, "streams")


@scenario("delta", "sotw")
def duplicate_names(world):
    """One name twice in a push: refused by name, the others apply."""
    control, _, port = serving(world)
    stream, two = control.stream(), world.backend("two")
    control.put(EDS, new=r.endpoints("new", two.port))
    twice = [("b", control.state[CDS]["b"]), ("new", r.cluster("new")), ("b", r.cluster("b", "3s"))]
    stream.nack(stream.push(CDS, twice), "b: ")
    stream.asked(EDS, ["b", "new"])
    control.put(RDS, r=r.route("r", r.to("/new", "new"), "b"))
    control.publish(RDS)
    until(lambda: body(port, "/new") == "two GET /new", "the good cluster")
    equal(body(port), "one GET /", "body")


@scenario("delta", "sotw")
def removal_of_clusters_and_listeners(world):
    """Removed by name (delta) or by absence (state of the world); what nothing refers to is not asked for any more."""
    control, _, port = serving(world)
    stream, other = control.stream(), harness.free_port()
    control.put(CDS, c=r.cluster("c"))
    control.put(EDS, c=r.endpoints("c", world.backend("two").port))
    control.put(LDS, m=r.listener("m", other, "s"))
    control.put(RDS, s=r.route("s", "c"))
    control.publish(CDS, LDS)
    stream.asked(EDS, ["b", "c"])
    stream.asked(RDS, ["r", "s"])
    until(lambda: body(other) == "two GET /", "the second listener")
    control.drop(CDS, "c")
    control.drop(EDS, "c")
    control.publish(CDS)
    until(lambda: status(other) == 503, "503 without the cluster")
    stream.asked(EDS, ["b"])
    control.drop(LDS, "m")
    control.drop(RDS, "s")
    control.publish(LDS)
    until(lambda: refused(other), "the port to be closed")
    stream.asked(RDS, ["r"])
    equal(body(port), "one GET /", "body of what stays")
    # And back.
    control.put(CDS, c=r.cluster("c"))
    control.put(EDS, c=r.endpoints("c", world.backend("three").port))
    control.put(LDS, m=r.listener("m", other, "s"))
    control.put(RDS, s=r.route("s", "c"))
    control.publish(CDS, LDS)
    until(lambda: body(other) == "three GET /", "the second listener again")


@scenario("sotw")
def absence_of_endpoints_and_routes_is_no_removal(world):
    """A state-of-the-world answer of EDS or RDS without a name says nothing of it."""
    control, _, port = serving(world)
    stream, two = control.stream(), world.backend("two")
    control.put(CDS, c=r.cluster("c"))
    control.put(EDS, c=r.endpoints("c", two.port))
    control.publish(CDS)
    stream.asked(EDS, ["b", "c"])
    for type_url in (EDS, RDS):
        stream.ack(stream.push(type_url, []))
    stream.ack(stream.push(EDS, [("c", r.endpoints("c", two.port))]))
    holds(lambda: body(port) == "one GET /", "endpoints and routes stay", 0.7)


@scenario("delta")
def removal_of_endpoints_and_routes(world):
    """Removed by name: no endpoints is 503 with UH, no table is 404; and both come back."""
    control, _, port = serving(world)
    stream = control.stream()
    stream.ack(stream.push(EDS, [], ["b"]))
    until(lambda: status(port) == 503, "503 without endpoints")
    control.publish(EDS)
    until(lambda: body(port) == "one GET /", "endpoints to be back")
    stream.ack(stream.push(RDS, [], ["r", "never-heard-of"]))
    until(lambda: status(port) == 404, "404 without a table")
    control.publish(RDS)
    until(lambda: body(port) == "one GET /", "the table to be back")
    stream.ack(stream.push(CDS, [], ["never-heard-of"]))
    equal(body(port), "one GET /", "body")


@scenario("delta", "sotw")
def endpoints_before_their_cluster(world):
    """Endpoints that nobody asked for yet do no harm, and are asked for when their cluster comes."""
    control, _, port = serving(world)
    stream, two = control.stream(), world.backend("two")
    early = [("c", r.endpoints("c", two.port))]
    stream.ack(stream.push(EDS, early if control.delta else [("b", control.state[EDS]["b"]), *early]))
    control.put(CDS, c=r.cluster("c"))
    control.put(EDS, c=early[0][1])
    control.put(RDS, r=r.route("r", "c"))
    control.publish(CDS)
    stream.asked(EDS, ["b", "c"])
    control.publish(RDS)
    until(lambda: body(port) == "two GET /", "the cluster whose endpoints came first")


@scenario("delta", "sotw")
def cluster_warms_before_routes_move(world):
    """A route to a cluster without endpoints yet does not come into force: the old one serves, until they come."""
    control, _, port = serving(world)
    stream, two = control.stream(), world.backend("two")
    control.put(CDS, c=r.cluster("c"))
    control.put(RDS, r=r.route("r", "c"))
    control.answered.discard(EDS)
    stream.ack(stream.sync(CDS))
    stream.asked(EDS, ["b", "c"])
    stream.ack(stream.sync(RDS))
    load = world.load(port)
    holds(lambda: body(port) == "one GET /", "the old route while the new cluster is cold", 1.0)
    control.put(EDS, c=r.endpoints("c", two.port))
    stream.ack(stream.sync(EDS))
    until(lambda: body(port) == "two GET /", "the new route when the cluster is warm")
    load.end()
    # A changed cluster likewise: the old version serves until the new one has endpoints, which are the same here.
    control.put(CDS, c=r.cluster("c", "2s"))
    stream.ack(stream.sync(CDS))
    holds(lambda: body(port) == "two GET /", "the changed cluster", 0.3)


@scenario("delta", "sotw")
def patience_with_endpoints_ends(world):
    """`initial_fetch_timeout` of endpoints that never come: the route moves on, to a cluster without any."""
    control, _, port = serving(world)
    stream = control.stream()
    control.put(CDS, c=r.cluster("c", fetch_timeout="1.5s"))
    control.put(RDS, r=r.route("r", "c"))
    control.answered.discard(EDS)
    stream.ack(stream.sync(CDS))
    stream.ack(stream.sync(RDS))
    holds(lambda: body(port) == "one GET /", "the old route while there is patience", 0.8)
    until(lambda: status(port) == 503, "503 when patience ended", 4)


@scenario("delta", "sotw")
def routes_that_come_late(world):
    """A listener waits for its table and says so; it opens when the table comes."""
    control, proxy = start(world)
    port = simple(world, control)
    control.answered.discard(RDS)
    stream = control.stream()
    stream.asked(RDS, ["r"])
    until(lambda: "r" in proxy.ready()[1] and "waits for routes" in proxy.ready()[1], lambda: f"a reason: {proxy.ready()}")
    equal(proxy.ready()[0], 503, "ready")
    holds(lambda: refused(port), "the port is closed meanwhile", 0.5)
    stream.ack(stream.sync(RDS))
    until(lambda: body(port) == "one GET /", "the listener with its table")
    proxy.until_ready()


@scenario("delta", "sotw")
def patience_with_routes_ends(world):
    """`initial_fetch_timeout` of a table that never comes: the listener opens and knows no route."""
    control, proxy = start(world)
    port = simple(world, control)
    control.put(LDS, l=r.listener("l", port, r.rds("r", "1s")))
    control.answered.discard(RDS)
    control.stream().asked(RDS, ["r"])
    until(lambda: not refused(port), "the listener to open", 5)
    equal(status(port), 404, "status without a table")
    proxy.until_ready()


@scenario("delta", "sotw")
def patience_at_the_start_ends(world):
    """`initial_fetch_timeout` of clusters and listeners: with a server that says nothing the proxy is ready all the same."""
    control, proxy = start(world, cds_timeout="1s", lds_timeout="1s")
    control.answered.clear()
    control.stream().first(CDS)
    equal(proxy.ready()[0], 503, "ready at first")
    until(lambda: proxy.ready()[0] == 200, "ready after patience", 6)


@scenario("delta")
def missing_routes_fail_fast(world):
    """A table that the server says does not exist is not waited for."""
    control, proxy = start(world)
    port = simple(world, control)
    control.drop(RDS, "r")
    until(lambda: not refused(port), "the listener to open", 5)
    equal(status(port), 404, "status")
    proxy.until_ready()
    control.put(RDS, r=r.route("r", "b"))
    stream = control.stream()
    stream.ack(stream.push(RDS, [("r", control.state[RDS]["r"])]))
    until(lambda: body(port) == "one GET /", "the table that came after all")


@scenario("delta", "sotw")
def several_responses_before_one_answer(world):
    """Good, bad and good in one go: each is answered for itself, in order."""
    control, _, port = serving(world)
    stream, two = control.stream(), world.backend("two")
    backends = r.endpoints("b", two.port)
    n1 = stream.push(EDS, [("b", backends)], nonce="m1")
    n2 = stream.push(RDS, [("r", r.route("r", {"match": {"safe_regex": {"regex": "("}}, "route": {"cluster": "b"}}))], nonce="m2")
    n3 = stream.push(RDS, [("r", r.route("r", r.to("/v", "b"), "b"))], nonce="m3")
    n4 = stream.push(CDS, [("b", r.bad_cluster("b"))], nonce="m4")
    n5 = stream.push(CDS, [("b", r.cluster("b", "4s"))], nonce="m5")
    stream.ack(n1)
    stream.nack(n2, "r: ")
    stream.ack(n3)
    stream.nack(n4, "b: ")
    stream.ack(n5)
    answers = [q.response_nonce for _, q in stream.requests if q.response_nonce in (n1, n2, n3, n4, n5)]
    equal(answers, [n1, n2, n3, n4, n5], "order of answers")
    until(lambda: body(port, "/v") == "two GET /v", "what was good")


@scenario("delta", "sotw")
def many_clusters_named_by_one_table(world):
    """A table that names two hundred clusters that come with it."""
    control, proxy = start(world)
    port, backend = simple(world, control), world.backend("many")
    names = [f"c{i}" for i in range(200)]
    control.put(CDS, **{n: r.cluster(n) for n in names})
    control.put(EDS, **{n: r.endpoints(n, backend.port) for n in names})
    control.put(RDS, r=r.route("r", *[r.to(f"/{n}/", n) for n in names], "b"))
    proxy.until_ready()
    control.stream().asked(EDS, [*names, "b"])
    for name in (names[0], names[100], names[199]):
        equal(body(port, f"/{name}/"), f"many GET /{name}/", "body")


@scenario("delta")
def signs_of_life_and_strangers(world):
    """A resource without content (a heartbeat) changes nothing; one that was not asked for is left alone."""
    control, _, port = serving(world)
    stream = control.stream()

    def hollow(response):
        del response.resources[:]
        response.resources.add(name="b", version="9")
        return response

    stream.ack(stream.push(EDS, [], raw=hollow))
    stream.ack(stream.push(RDS, [("stranger", r.route("stranger", "b"))]))
    holds(lambda: body(port) == "one GET /", "nothing changes", 0.4)
    equal(stream.names[RDS], {"r"}, "RDS names")


@scenario("delta", "sotw")
def listener_takes_an_address_over(world):
    """In one push one listener goes and another takes its address; another kept one is not disturbed."""
    control, _, port = serving(world)
    shared = harness.free_port()
    control.put(LDS, m=r.listener("m", shared, r.table("i", r.says("/", "m"))))
    control.publish(LDS)
    until(lambda: body(shared) == "m", "the first")
    load = world.load(port)
    for i in range(6):
        old, new = ("m", "n") if i % 2 == 0 else ("n", "m")
        control.drop(LDS, old)
        control.put(LDS, **{new: r.listener(new, shared, r.table("i", r.says("/", new)))})
        control.publish(LDS)
        until(lambda: body(shared) == new, f"{new} on the same address")
        load.more(5)
    load.end()


@scenario("delta", "sotw")
def address_in_use(world):
    """A listener on an address that somebody else has: refused with the reason; the others apply."""
    control, _, port = serving(world)
    stream, taken, other = control.stream(), world.backend("else"), harness.free_port()
    pushed = [("l", control.state[LDS]["l"]), ("t", r.listener("t", taken.port, "r")), ("m", r.listener("m", other, "r"))]
    stream.nack(stream.push(LDS, pushed), "t: ", "in use")
    until(lambda: body(other) == "one GET /", "the good listener")
    equal(body(taken.port), "else GET /", "body of who was there before")
    equal(body(port), "one GET /", "body")
