"""Upstreams that speak HTTP/2 badly: their clients get 502, 503, 504 or a visibly broken answer, and nobody else notices."""

import socket
import struct
import threading
import time

import harness
import hpack
import resources as r
from harness import check, equal, get, scenario, until
from http2_bytes import (CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, PREFACE, PUSH, RST, SETTINGS, WINDOW, encode, frame)
from http_parts import Site, raw, statuses

OK = encode([(":status", "200"), ("content-type", "text/plain")])


class Upstream:
    """Says what the script of a path says; by itself it answers `h2 PATH`."""

    def __init__(self):
        self.port = harness.free_port()
        self.scripts, self.greeting = {}, frame(SETTINGS, 0, 0)
        self.paths, self.connections = [], 0
        self._server = socket.create_server(("127.0.0.1", self.port), backlog=256)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                sock, _ = self._server.accept()
            except OSError:
                return
            self.connections += 1
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock):
        decoder, stream = hpack.Decoder(), sock.makefile("rb")
        try:
            if stream.read(len(PREFACE)) != PREFACE:
                return
            sock.sendall(self.greeting)
            while True:
                header = stream.read(9)
                if len(header) < 9:
                    return
                payload = stream.read(int.from_bytes(header[:3], "big"))
                kind, flags, number = header[3], header[4], int.from_bytes(header[5:9], "big")
                if kind == SETTINGS and not flags & 1:
                    sock.sendall(frame(SETTINGS, 1, 0))
                elif kind == PING and not flags & 1:
                    sock.sendall(frame(PING, 1, 0, payload))
                elif kind == HEADERS:
                    if flags & 0x20:
                        payload = payload[5:]
                    path = dict(decoder.decode(payload))[":path"]
                    self.paths.append(path)
                    script = self.scripts.get(path)
                    if script is None:
                        sock.sendall(frame(HEADERS, END_HEADERS, number, OK) + frame(DATA, END_STREAM, number, f"h2 {path}".encode()))
                    elif script(sock, number) == "close":
                        return
        except OSError:
            pass
        finally:
            sock.close()

    def close(self):
        self._server.close()


def site(world):
    """A proxy in front of such an upstream, one HTTP/2 connection a worker; its other parts are those of `Site`."""
    upstream = world.keep(Upstream())
    options = {"@type": r.TYPES + "upstreams.http.v3.HttpProtocolOptions", "explicit_http_config": {"http2_protocol_options": {}}}
    load = {"cluster_name": "up", "endpoints": [{"lb_endpoints": [{"endpoint": {"address": r.address(upstream.port)}}]}]}
    cluster = {"load_assignment": load, "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options}}
    routes = r.table("i", r.says("/direct", "direct"), {"match": {"prefix": "/"}, "route": {"cluster": "up", "timeout": "1.5s"}})
    return Site(world, cluster=cluster, routes=routes, concurrency=1), upstream


def clean(answer):
    """Whether these bytes are one whole HTTP/1.1 answer."""
    head, _, body = answer.partition(b"\r\n\r\n")
    lower = head.lower()
    if b"transfer-encoding: chunked" in lower:
        return body.endswith(b"0\r\n\r\n")
    if b"content-length: " in lower:
        return len(body) == int(lower.split(b"content-length: ")[1].split(b"\r\n")[0])
    return False


def ask(port, path):
    answer = raw(port, f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode(), finish=False, patience=5)
    check(answer is not None, f"{path}: left hanging")
    return answer


def after(site_, upstream, what):
    """A good request right after, and another."""
    for _ in range(2):
        answer = get(site_.port, "/after")
        equal((answer.status, answer.body), (200, "h2 /after"), f"the next request after {what}")


@scenario()
def heads_that_are_none(world):
    """Answers whose heads nobody may pass on: a gateway error instead, and no byte of them."""
    front, upstream = site(world)
    after(front, upstream, "nothing")
    block = lambda *pairs: encode(list(pairs))
    heads = {
        "no status": block(("a", "b")), "status 99": block((":status", "99")), "status 1000": block((":status", "1000")), "status of letters": block((":status", "2oo")),
        "two statuses": block((":status", "200"), (":status", "500")), "a status late": block(("a", "b"), (":status", "200")), "a request's head": block((":method", "GET"), (":path", "/evil")),
        "LF in a value": block((":status", "200"), ("a", "b\r\nx-evil: 1")), "NUL in a value": block((":status", "200"), ("a", "evil\0")), "upper case": block((":status", "200"), ("X-Evil", "1")),
        "a space in a name": block((":status", "200"), ("x evil", "1")), "transfer-encoding": block((":status", "200"), ("transfer-encoding", "chunked")), "connection": block((":status", "200"), ("connection", "evil")),
        "two lengths": block((":status", "200"), ("content-length", "4"), ("content-length", "9")), "no length": block((":status", "200"), ("content-length", "-1")),
        "broken compression": b"\xff\xff\xff\xff\xff\xff\xff\xff", "an index of nothing": b"\xfe",
        "3,000 headers": block((":status", "200"), *[("a", "evil")] * 3000), "one of 200 KB": block((":status", "200"), ("a", "evil" * 50_000)),
    }
    for number, (what, head) in enumerate(heads.items()):
        def script(sock, stream, head=head):
            pieces = [head[i:i + 16000] for i in range(0, len(head), 16000)]
            data = frame(HEADERS, END_HEADERS if len(pieces) == 1 else 0, stream, pieces[0])
            for i, piece in enumerate(pieces[1:], 2):
                data += frame(CONTINUATION, END_HEADERS if i == len(pieces) else 0, stream, piece)
            sock.sendall(data + frame(DATA, END_STREAM, stream, b"evil"))

        upstream.scripts[f"/head{number}"] = script
        answer = ask(front.port, f"/head{number}")
        status = statuses(answer)[0] if answer else None
        check(status in (502, 503) and b"evil" not in answer.lower(), f"{what}: {answer[:200]}")
        after(front, upstream, what)


@scenario()
def bodies_that_break(world):
    """Bodies that end early, late or never: the client sees that something is missing, never a whole answer."""
    front, upstream = site(world)
    length = lambda n: encode([(":status", "200"), ("content-length", str(n))])
    scripts = {
        "reset in the middle": lambda s, n: s.sendall(frame(HEADERS, END_HEADERS, n, OK) + frame(DATA, 0, n, b"half") + frame(RST, 0, n, b"\0\0\0\2")),
        "reset without an error": lambda s, n: s.sendall(frame(HEADERS, END_HEADERS, n, OK) + frame(DATA, 0, n, b"half") + frame(RST, 0, n, b"\0\0\0\0")),
        "the same before its length": lambda s, n: s.sendall(frame(HEADERS, END_HEADERS, n, length(9)) + frame(DATA, 0, n, b"half") + frame(RST, 0, n, b"\0\0\0\0")),
        "closed in the middle": lambda s, n: (s.sendall(frame(HEADERS, END_HEADERS, n, OK) + frame(DATA, 0, n, b"half")), "close")[1],
        "less than its length": lambda s, n: s.sendall(frame(HEADERS, END_HEADERS, n, length(9)) + frame(DATA, END_STREAM, n, b"half")),
        "more than its length": lambda s, n: s.sendall(frame(HEADERS, END_HEADERS, n, length(4)) + frame(DATA, END_STREAM, n, b"more than four")),
        "silence in the middle": lambda s, n: s.sendall(frame(HEADERS, END_HEADERS, n, OK) + frame(DATA, 0, n, b"half")),
        "a frame cut": lambda s, n: (s.sendall(frame(HEADERS, END_HEADERS, n, OK) + frame(DATA, END_STREAM, n, b"half", length=100)), "close")[1],
        "beyond the window": lambda s, n: s.sendall(frame(HEADERS, END_HEADERS, n, OK) + b"".join(frame(DATA, 0, n, b"x" * 16384) for _ in range(2000))),
    }
    for number, (what, script) in enumerate(scripts.items()):
        upstream.scripts[f"/body{number}"] = script
        answer = ask(front.port, f"/body{number}")
        good = statuses(answer)[:1] == [200] if answer else False
        check(not (good and clean(answer)), f"{what}: a whole answer: {answer[:200]}")
        after(front, upstream, what)
    # A whole answer before the whole request, and a reset without an error: that is an end.
    upstream.scripts["/early"] = lambda s, n: s.sendall(frame(HEADERS, END_HEADERS, n, OK) + frame(DATA, END_STREAM, n, b"early") + frame(RST, 0, n, b"\0\0\0\0"))
    with socket.create_connection(("127.0.0.1", front.port), timeout=5) as sock:
        sock.sendall(b"POST /early HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf of it")
        answer = b""
        while not answer.endswith(b"0\r\n\r\n"):
            data = sock.recv(1000)
            check(data, f"an early answer: {answer}")
            answer += data
        check(b" 200 " in answer and b"early" in answer, f"an early answer: {answer}")


@scenario()
def connections_that_break(world):
    """GOAWAY, refusals, no settings, no streams allowed, other protocols: errors in time, and the next connection works."""
    front, upstream = site(world)
    goaway = lambda last, code: frame(GOAWAY, 0, 0, struct.pack(">II", last, code))
    fails = {
        "GOAWAY with an error": lambda s, n: s.sendall(goaway(0, 2)),
        "GOAWAY and closed": lambda s, n: (s.sendall(goaway(0, 0)), "close")[1],
        "refused": lambda s, n: s.sendall(frame(RST, 0, n, b"\0\0\0\7")),
        "closed": lambda s, n: "close",
        "DATA first": lambda s, n: s.sendall(frame(DATA, END_STREAM, n, b"evil")),
        "a push": lambda s, n: s.sendall(frame(PUSH, END_HEADERS, n, b"\0\0\0\2" + encode([(":method", "GET"), (":path", "/evil"), (":scheme", "http"), (":authority", "x")]))),
        "a head on another stream": lambda s, n: s.sendall(frame(HEADERS, END_HEADERS | END_STREAM, n + 100, OK)),
        "a frame of 16 MiB": lambda s, n: s.sendall(frame(DATA, 0, n, b"", length=(1 << 24) - 1)),
        "a PING of 7": lambda s, n: s.sendall(frame(PING, 0, 0, b"1234567")),
        "a window beyond 2^31": lambda s, n: s.sendall(frame(WINDOW, 0, 0, b"\x7f\xff\xff\xff") * 2),
        "HTTP/1.1": lambda s, n: s.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil"),
        "a head that never ends": lambda s, n: [s.sendall(frame(HEADERS, 0, n, OK))] + [s.sendall(frame(CONTINUATION, 0, n, encode([("a", "evil" * 900)])) * 20) for _ in range(100)],
        "2,000 times 103": lambda s, n: s.sendall(frame(HEADERS, END_HEADERS, n, encode([(":status", "103"), ("link", "evil")])) * 2000),
        "silence": lambda s, n: None,
    }
    for number, (what, script) in enumerate(fails.items()):
        upstream.scripts[f"/fail{number}"] = script
        begun = time.monotonic()
        answer = ask(front.port, f"/fail{number}")
        found = statuses(answer)
        check(found and found[-1] in (502, 503, 504) and b"evil" not in answer, f"{what}: {answer[:200]}")
        check(time.monotonic() - begun < 3.5, f"{what}: {time.monotonic() - begun:.1f} s")
        if what == "silence":
            upstream.scripts.pop(f"/fail{number}")
        after(front, upstream, what)
    # A GOAWAY that lets what has begun end.
    def polite(sock, stream):
        sock.sendall(goaway(stream, 0))
        time.sleep(0.2)
        sock.sendall(frame(HEADERS, END_HEADERS, stream, OK) + frame(DATA, END_STREAM, stream, b"polite"))

    upstream.scripts["/polite"] = polite
    check(ask(front.port, "/polite").endswith(b"polite") or b"polite" in ask(front.port, "/polite"), "what had begun was answered")
    after(front, upstream, "a polite GOAWAY")


@scenario()
def upstreams_that_let_nobody_in(world):
    """No streams allowed, no settings at all, a window of nothing: 503 or 504 in time, and good again when they are."""
    front, upstream = site(world)
    greetings = {"no streams": frame(SETTINGS, 0, 0, struct.pack(">HI", 3, 0)), "no settings": b"", "not HTTP/2": b"SSH-2.0-OpenSSH_9\r\n",
                 "a frame size of 1": frame(SETTINGS, 0, 0, struct.pack(">HI", 5, 1)), "settings on a stream": frame(SETTINGS, 0, 1)}
    for what, greeting in greetings.items():
        upstream.greeting = greeting
        upstream.scripts["/quiet"] = lambda s, n: None
        begun = time.monotonic()
        found = statuses(ask(front.port, "/quiet"))
        check(found and found[0] in (502, 503, 504), f"{what}: {found}")
        check(time.monotonic() - begun < 4, f"{what}: {time.monotonic() - begun:.1f} s")
        upstream.greeting = frame(SETTINGS, 0, 0)
        # The bad connection may be kept for a moment.
        until(lambda: get(front.port, "/after").status == 200, f"good answers after {what}", 8)


@scenario()
def floods_of_upstreams(world):
    """An upstream that floods with PINGs, SETTINGS and empty frames does not slow the proxy down for others."""
    front, upstream = site(world)
    floods = {"PING": frame(PING, 0, 0, b"12345678"), "SETTINGS": frame(SETTINGS, 0, 0), "unknown": frame(0xEE, 0, 0, b"x"), "WINDOW_UPDATE": frame(WINDOW, 0, 0, b"\0\0\0\1")}
    before = front.process.memory()
    load = world.load(front.port, "/direct", threads=1, pause=0.01)
    for number, (what, data) in enumerate(floods.items()):
        def script(sock, stream, data=data):
            for _ in range(100):
                sock.sendall(data * 500)
            return "close"

        upstream.scripts[f"/flood{number}"] = script
        found = statuses(ask(front.port, f"/flood{number}"))
        check(found and found[0] in (502, 503, 504), f"{what}: {found}")
    # What shares the connection with a flood may be lost with it; what does not, must not be.
    load.end()
    check(load.slowest < 1.5, f"the slowest answer beside floods took {load.slowest:.1f} s")
    after(front, upstream, "floods")
    until(lambda: front.process.memory() - before < 32 << 20, lambda: f"memory grew by {(front.process.memory() - before) >> 20} MiB", 8)
