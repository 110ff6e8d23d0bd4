"""Filters that get their configuration by discovery (ECDS), of our proxy in both forms of the protocol, and of stock Envoy."""

import http.client

import harness
import resources as r
from ads_server import CDS, ECDS, EDS, LDS, RDS, Control
from harness import check, equal, get, holds, refused, scenario, until
from http_parts import program
from proxy import Proxy

MUTATION = r.TYPES + "filters.http.header_mutation.v3.HeaderMutation"
RBAC = r.TYPES + "filters.http.rbac.v3.RBAC"
LUA = r.TYPES + "filters.http.lua.v3.Lua"


def mutation(value):
    header = {"header": {"key": "x-mark", "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
    return {"@type": MUTATION, "mutations": {"response_mutations": [{"append": header}]}}


def marks(value, name="x"):
    """A configuration that marks answers."""
    return r.pack(ECDS, {"name": name, "typed_config": mutation(value)})


def by_discovery(name="x", wait=None, types=(MUTATION,), **more):
    source = {"ads": {}, "resource_api_version": "V3", **({"initial_fetch_timeout": wait} if wait else {})}
    return {"name": name, "config_discovery": {"config_source": source, "type_urls": list(types), **more}}


class Site:
    """A server that keeps configurations of filters back until it is told otherwise, and a proxy under it."""

    def __init__(self, world, *filters):
        variant = "sotw" if world.variant == "sotw" else "delta"
        self.control, self.port = world.keep(Control(variant)), harness.free_port()
        self.control.answered.discard(ECDS)
        if world.variant != "envoy":
            world.audits.append(self.control.audit)
        self.control.put(CDS, b=r.cluster("b"))
        self.control.put(EDS, b=r.endpoints("b", world.backend("one").port))
        self.control.put(LDS, l=r.listener("l", self.port, "r", filters))
        self.control.put(RDS, r=r.route("r", "b"))
        self.proxy = Proxy(world, self.control.port, variant, "mesh-proxy" if world.variant != "envoy" else program(world))
        self.stream = self.control.stream()

    def mark(self):
        answer = get(self.port)
        return answer.status, answer.headers.get("x-mark")

    def until_mark(self, *wanted):
        until(lambda: self.mark() == wanted, lambda: f"{wanted}, now {self.mark()}")

    def push(self, **configs):
        """The nonce under which they went."""
        self.control.put(ECDS, **configs)
        return self.stream.push(ECDS, sorted(configs.items()))


    def refused(self, word, **configs):
        """They are refused, and this is said. (Envoy calls it an error of its own.)"""
        answer = self.stream.answer(self.push(**configs))
        check(word in answer.error_detail.message, lambda: f"{word!r} is not said: {answer.error_detail}")


@scenario("delta", "sotw", "envoy")
def filters_are_waited_for(world):
    """A listener begins with its filters; they change under live connections; what is wrong is refused by name."""
    site = Site(world, by_discovery("x"), by_discovery("y"))
    site.stream.asked(ECDS, ["x", "y"])
    holds(lambda: refused(site.port), "nobody listens without the filters", 0.4)
    site.stream.ack(site.push(x=marks("one"), y=r.pack(ECDS, {"name": "y", "typed_config": {"@type": MUTATION}})))
    until(lambda: not refused(site.port), "the listener")
    site.until_mark(200, "one")
    kept = http.client.HTTPConnection("127.0.0.1", site.port, timeout=10)

    def on_kept():
        kept.request("GET", "/", headers={"host": "x"})
        answer = kept.getresponse()
        answer.read()
        return answer.headers.get("x-mark")

    equal(on_kept(), "one", "on a connection that is kept")
    peer = kept.sock.getsockname()
    site.stream.ack(site.push(x=marks("two"), y=r.pack(ECDS, {"name": "y", "typed_config": {"@type": MUTATION}})))
    site.until_mark(200, "two")
    equal((on_kept(), kept.sock.getsockname()), ("two", peer), "on the same connection")
    rules = {"@type": RBAC, "rules": {"action": "ALLOW", "policies": {}}}
    site.refused("rbac.v3.RBAC", x=r.pack(ECDS, {"name": "x", "typed_config": rules}), y=marks("y", "y"))
    script = {"@type": LUA, "default_source_code": {"inline_string": "function envoy_on_request(h) end"}}
    site.refused("lua.v3.Lua", x=r.pack(ECDS, {"name": "x", "typed_config": script}), y=marks("y", "y"))
    check(site.mark()[1] in ("two", "y"), f"what was good stays: {site.mark()}")
    site.stream.ack(site.push(x=marks("three"), y=r.pack(ECDS, {"name": "y", "typed_config": {"@type": MUTATION}})))
    site.until_mark(200, "three")
    check("three" in site.proxy.dump(), "config_dump shows the filters")
    if site.control.delta:
        # Without a configuration nothing passes.
        site.control.drop(ECDS, "x")
        site.stream.ack(site.stream.push(ECDS, removed=["x"]))
        site.until_mark(500, None)
        site.stream.ack(site.push(x=marks("four")))
        site.until_mark(200, "four")


@scenario("delta", "sotw", "envoy")
def defaults_of_filters(world):
    """A default serves at once, or when the time for waiting is over; without one requests are refused until there is a configuration."""
    default = mutation("default")
    at_once = Site(world, by_discovery(default_config=default, apply_default_config_without_warming=True))
    at_once.proxy.until_ready()
    at_once.until_mark(200, "default")
    at_once.stream.ack(at_once.push(x=marks("own")))
    at_once.until_mark(200, "own")
    later = Site(world, by_discovery(wait="1s", default_config=default))
    later.stream.asked(ECDS, ["x"])
    check(refused(later.port), "nobody listens yet")
    until(lambda: not refused(later.port), "the listener")
    later.until_mark(200, "default")
    never = Site(world, by_discovery(wait="0.5s"))
    until(lambda: not refused(never.port), "the listener")
    never.until_mark(500, None)
    never.stream.ack(never.push(x=marks("late")))
    never.until_mark(200, "late")


@scenario("delta", "sotw", "envoy")
def filters_of_no_use(world):
    """The first configuration is refused: the listener begins without it, and lets nothing pass; the mended one is taken."""
    site = Site(world, by_discovery(wait="0s"))
    site.stream.asked(ECDS, ["x"])
    site.refused("rbac.v3.RBAC", x=r.pack(ECDS, {"name": "x", "typed_config": {"@type": RBAC}}))
    until(lambda: not refused(site.port), "the listener")
    site.until_mark(500, None)
    site.stream.ack(site.push(x=marks("mended")))
    site.until_mark(200, "mended")
