"""Limits of connections, by number and by rate, of our proxy and of stock Envoy with the same bootstrap."""

import contextlib
import socket
import threading
import time

import harness
import resources as r
from harness import check, equal, get, scenario, until
from http_parts import Upstream, program

FILTERS = r.TYPES + "filters.network."


class Echo:
    """Sends back what it gets."""

    def __init__(self):
        self.port = harness.free_port()
        self._server = socket.create_server(("127.0.0.1", self.port), backlog=128)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                peer, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(peer,), daemon=True).start()

    def _serve(self, peer):
        with peer, contextlib.suppress(OSError):
            while data := peer.recv(4096):
                peer.sendall(data)

    def close(self):
        self._server.close()


def limit(most, delay=None, prefix="lim", **more):
    return {"name": "limit", "typed_config": {
        "@type": FILTERS + "connection_limit.v3.ConnectionLimit", "stat_prefix": prefix, "max_connections": most,
        **({"delay": delay} if delay else {}), **more}}


def rate(most, interval="60s", prefix="rate", **more):
    return {"name": "rate", "typed_config": {
        "@type": FILTERS + "local_ratelimit.v3.LocalRateLimit", "stat_prefix": prefix,
        "token_bucket": {"max_tokens": most, "tokens_per_fill": 1, "fill_interval": interval}, **more}}


def off(key):
    return {"runtime_enabled": {"default_value": False, "runtime_key": key}}


class Site:
    """A proxy with a listener of its own for each list of filters, before a TCP proxy or HTTP."""

    def __init__(self, world, *chains, http=False):
        self.world, self.admin, self.log_path = world, harness.free_port(), world.folder / "access.log"
        self.ports = [harness.free_port() for _ in chains]
        upstream = world.keep(Upstream() if http else Echo())
        log = {"name": "envoy.access_loggers.file", "typed_config": {
            "@type": r.TYPES + "access_loggers.file.v3.FileAccessLog", "path": str(self.log_path),
            "log_format": {"text_format_source": {"inline_string": "%RESPONSE_FLAGS%\n"}}}}
        tcp = {"name": "tcp", "typed_config": {"@type": FILTERS + "tcp_proxy.v3.TcpProxy", "stat_prefix": "t", "cluster": "up", "access_log": [log]}}
        last = r.http_manager({"route_config": r.table("i", "up")}) if http else tcp
        load = {"cluster_name": "up", "endpoints": [{"lb_endpoints": [{"endpoint": {"address": r.address(upstream.port)}}]}]}
        path = world.write(f"static-{self.admin}.json", {
            "admin": {"address": r.address(self.admin)},
            "static_resources": {
                "listeners": [{"name": f"l{i}", "address": r.address(port), "filter_chains": [{"filters": [*chain, last]}]}
                              for i, (port, chain) in enumerate(zip(self.ports, chains))],
                "clusters": [{"name": "up", "type": "STATIC", "connect_timeout": "1s", "load_assignment": load}]}})
        self.process = world.process(program(world), "-c", path, "--concurrency", 2, "-l", "info", "--disable-hot-restart")
        until(lambda: get(self.admin, "/ready").status == 200, lambda: f"ready: {self.process.log()[-500:]}")

    def connect(self, listener=0):
        peer = self.world.keep(socket.create_connection(("127.0.0.1", self.ports[listener]), timeout=5))
        peer.settimeout(5)
        return peer

    def served(self, listener=0):
        """A connection that passes, and stays."""
        peer = self.connect(listener)
        peer.sendall(b"hello")
        equal(peer.recv(64), b"hello", "the echo")
        return peer

    def counter(self, name):
        lines = (line.rsplit(": ", 1) for line in get(self.admin, "/stats").body.splitlines() if ": " in line)
        return next((int(value) for key, value in lines if key == name), None)

    def counters(self, **wanted):
        """Counters and gauges come to these values."""
        keys = {key.replace("__", "."): value for key, value in wanted.items()}
        until(lambda: {k: self.counter(k) for k in keys} == keys, lambda: f"{keys}, now { {k: self.counter(k) for k in keys} }")


def closed(peer):
    """How long it takes until nothing more comes on a connection, and nothing did."""
    begun = time.monotonic()
    try:
        equal(peer.recv(64), b"", "what came")
    except ConnectionError:
        pass
    return time.monotonic() - begun


@scenario("ours", "envoy")
def so_many_at_once(world):
    """One too many is closed, after the delay, until then it counts as well; who leaves makes room."""
    site = Site(world, [limit(2, "0.6s")], [limit(1, prefix="now")], [limit(1, prefix="off", **off("a"))])
    first, second = site.served(), site.served()
    third = site.connect()
    third.sendall(b"hello")
    took = closed(third)
    check(0.5 <= took < 2, f"closed after {took:.2f} s")
    third.close()
    site.counters(connection_limit__lim__limited_connections=1, connection_limit__lim__active_connections=2)
    # What is kept to be closed takes a place.
    held = site.connect()
    site.counters(connection_limit__lim__active_connections=3)
    first.close()
    site.counters(connection_limit__lim__active_connections=2)
    check(closed(site.connect()) < 2, "the place of one that is held is not free")
    closed(held)
    site.counters(connection_limit__lim__limited_connections=3, connection_limit__lim__active_connections=1)
    site.served()
    # One that leaves by itself is not waited for.
    gone = site.connect()
    site.counters(connection_limit__lim__active_connections=3)
    gone.close()
    second.close()
    site.counters(connection_limit__lim__active_connections=1)
    site.served()
    site.served(1)
    check(closed(site.connect(1)) < 0.5, "without a delay it is closed at once")
    for _ in range(3):
        site.served(2)
    site.counters(connection_limit__lim__limited_connections=4, connection_limit__now__limited_connections=1)


@scenario("ours", "envoy")
def so_many_in_a_time(world):
    """Who comes without a token is closed at once; tokens come back; filters with one key and bucket share them."""
    site = Site(world, [rate(2, "1s")], [rate(1, prefix="a", share_key="k")], [rate(1, prefix="b", share_key="k")],
                [rate(2, prefix="c", share_key="k")], [rate(1, prefix="d")], [rate(1, prefix="e", **off("b"))])
    site.served()
    site.served()
    check(closed(site.connect()) < 0.5, "the third is closed")
    site.counters(local_rate_limit__rate__rate_limited=1)
    until(lambda: "URX" in site.log_path.read_text(), "the flag in the access log", 12)
    time.sleep(1.1)
    site.served()
    site.served(1)
    check(closed(site.connect(2)) < 0.5, "the bucket is shared")
    site.counters(local_rate_limit__a__rate_limited=0, local_rate_limit__b__rate_limited=1)
    site.served(3)
    site.served(4)
    for _ in range(3):
        site.served(5)


@scenario("ours", "envoy")
def before_http(world):
    """Requests on a connection that is one too many get no answer; one that is kept goes on."""
    site = Site(world, [limit(1)], http=True)
    kept = site.connect()
    request = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
    for _ in range(2):
        kept.sendall(request)
        check(kept.recv(4096).startswith(b"HTTP/1.1 200"), "an answer")
        other = site.connect()
        with contextlib.suppress(ConnectionError):
            other.sendall(request)
        closed(other)
    site.counters(connection_limit__lim__limited_connections=2, connection_limit__lim__active_connections=1)
