"""The ports of mesh-control met with silence, half sentences and floods: who speaks properly does not notice."""

import socket
import time

import http2_bytes as h2b
from ads_server import CDS, EDS
from control import Client, members, node, service, slice_of
from control_frames import A, shop
from harness import check, equal, get, scenario, until
from tls_bytes import hello


class Witness:
    """A proxy that follows endpoints all along."""

    def __init__(self, world, mesh):
        self.mesh, self.client, self.port = mesh, world.keep(Client(mesh, "delta", node("witness"))), 8100
        self.client.get(CDS)
        self.client.get(EDS, A)

    def hears(self, what):
        """A change arrives, and soon."""
        self.port += 1
        begun = time.monotonic()
        self.mesh.put("a", service("a"), *slice_of("a", [self.port]))
        news = self.client.next(EDS)
        equal(members(news, A), [self.port], f"what the witness is told during {what}")
        self.client.answer(news)
        took = time.monotonic() - begun
        check(took < 2, f"{what}: a change took {took:.1f} s")


@scenario(weight=9)
def silence(world):
    """Connections that never say enough are closed in time, on every port; others are served meanwhile (T69)."""
    mesh = shop(world)
    witness = Witness(world, mesh)
    first, *_ = hello("istiod.istio-system.svc")
    settings = h2b.PREFACE + h2b.frame(h2b.SETTINGS, 0, 0)
    held = {}
    # More of these than may shake hands at once.
    crowd = [world.keep(socket.create_connection(("127.0.0.1", mesh.tls), timeout=5)) for _ in range(400)]
    begun = time.monotonic()
    newcomer = world.keep(Client(mesh, "delta", node("newcomer"), mesh.token("shop", "default")))
    newcomer.get(CDS)
    check(time.monotonic() - begun < 3, f"a newcomer beside a silent crowd waited for {time.monotonic() - begun:.1f} s")
    for sock in crowd:
        sock.close()
    for port, starts in {
        mesh.tls: {"nothing": b"", "a byte": first[:1], "half a hello": first[:50], "a hello": first},
        mesh.plain: {"nothing": b"", "half a preface": h2b.PREFACE[:9], "a preface": h2b.PREFACE, "settings": settings, "half a frame": settings + b"\0\0\xff\1"},
        mesh.http: {"nothing": b"", "half a head": b"GET /ready HT", "a line": b"GET /ready HTTP/1.1\r\n"},
    }.items():
        name = {mesh.tls: "xds", mesh.plain: "plaintext xds", mesh.http: "http"}[port]
        for what, start in starts.items():
            for _ in range(20):
                sock = world.keep(socket.create_connection(("127.0.0.1", port), timeout=5))
                sock.sendall(start)
                held.setdefault(f"{name}: {what}", []).append(sock)
    witness.hears("silence")
    end, left = time.monotonic() + 35, {}
    for what, socks in held.items():
        for sock in socks:
            sock.settimeout(max(0.01, end - time.monotonic()))
            try:
                while sock.recv(65536):
                    pass
            except TimeoutError:
                left[what] = left.get(what, 0) + 1
            except OSError:
                pass
    check(not left, f"still open: {left}")
    witness.hears("the end of silence")


@scenario(weight=3)
def floods(world):
    """Rapid resets, heads without an end, control frames, odd requests: the flood's connection ends or is ignored (T22 - T28)."""
    mesh = shop(world)
    witness = Witness(world, mesh)
    before = mesh.process.memory()
    method = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
    grpc = [("content-type", "application/grpc"), ("te", "trailers")]
    block = h2b.head(method, "POST", extra=grpc)
    stream = lambda i, *frames: b"".join((h2b.frame(h2b.HEADERS, 4, 2 * i + 1, block), *frames))
    reset = lambda i: h2b.frame(h2b.RST, 0, 2 * i + 1, b"\0\0\0\x08")
    floods_ = {
        "rapid resets": [stream(i, reset(i)) for i in range(10_000)],
        "resets that are provoked": [stream(i, h2b.frame(h2b.WINDOW, 0, 2 * i + 1, b"\0\0\0\0")) for i in range(3_000)],
        "streams that say nothing": [stream(i) for i in range(3_000)],
        "a head without an end": [h2b.frame(h2b.HEADERS, 0, 1, block)] + [h2b.frame(h2b.CONTINUATION, 0, 1, h2b.encode([("a", "x" * 4000)]))] * 3_000,
        "PING": [h2b.frame(h2b.PING, 0, 0, b"12345678")] * 50_000,
        "SETTINGS": [h2b.frame(h2b.SETTINGS, 0, 0)] * 50_000,
        "empty DATA": [h2b.frame(h2b.HEADERS, 4, 1, block)] + [h2b.frame(h2b.DATA, 0, 1)] * 50_000,
        "empty messages": [h2b.frame(h2b.HEADERS, 4, 1, block)] + [h2b.frame(h2b.DATA, 0, 1, b"\0\0\0\0\0" * 100)] * 2_000,
        "a message of 4 GiB": [h2b.frame(h2b.HEADERS, 4, 1, block), h2b.frame(h2b.DATA, 0, 1, b"\0\xff\xff\xff\xff" + b"x" * 16_000)] + [h2b.frame(h2b.DATA, 0, 1, b"x" * 16_000)] * 3,
        "a compressed message": [h2b.frame(h2b.HEADERS, 4, 1, block), h2b.frame(h2b.DATA, 1, 1, b"\1\0\0\0\5hello")],
        "another method": [h2b.frame(h2b.HEADERS, 5, 1, h2b.head("/no.such/Method", "POST", extra=grpc))],
        "GET": [h2b.frame(h2b.HEADERS, 5, 1, h2b.head(method))],
        "HTTP/1.1": [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"],
    }
    for what, pieces in floods_.items():
        connection = h2b.Raw(world, mesh.plain)
        connection.sock.settimeout(1)
        for start in range(0, len(pieces), 100):
            if not connection.send(b"".join(pieces[start:start + 100])):
                break
        witness.hears(what)
        connection.sock.close()
    check(mesh.process.alive(), "mesh-control ended")
    until(lambda: mesh.process.memory() - before < 64 << 20, lambda: f"memory grew by {(mesh.process.memory() - before) >> 20} MiB", 8)
    until(lambda: [p["proxy"] for p in mesh.page("/debug/syncz")] == ["witness.shop"], "streams of floods to be forgotten", 8)
    equal(get(mesh.http, "/ready", host="localhost").status, 200, "ready")
