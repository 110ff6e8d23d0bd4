"""For scenarios on HTTP's bytes: mesh-proxy with a static bootstrap, an upstream that records every byte, raw clients."""

import pathlib
import re
import socket
import sys
import threading
import time

import harness
import resources as r
from harness import Failed, get, until


sys.path.append(str(pathlib.Path(__file__).parent.parent / "behaviour"))
import envoy_binary  # noqa: E402

HTTP2 = {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
    "@type": r.TYPES + "upstreams.http.v3.HttpProtocolOptions", "explicit_http_config": {"http2_protocol_options": {}}}}


def program(world):
    """The proxy of a scenario's variant: `ours`, or a stock Envoy."""
    return "mesh-proxy" if world.variant == "ours" else str(envoy_binary.path())


class Upstream:
    """An HTTP/1.1 server that trusts nobody: keeps connections alive, frames bodies strictly, records what came.

    `scripts` maps a path to the raw bytes of its answer (and whether the connection is closed afterwards).
    """

    def __init__(self):
        self.port = harness.free_port()
        self.requests = []  # (head, body)
        self.scripts = {}
        self.connections = 0
        self.paths = {}  # by number of the connection, in order
        self._server = socket.create_server(("127.0.0.1", self.port), backlog=512)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                sock, _ = self._server.accept()
            except OSError:
                return
            self.connections += 1
            self.paths[self.connections] = paths = []
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._serve, args=(sock, paths), daemon=True).start()

    def _serve(self, sock, paths):
        stream = sock.makefile("rb")
        try:
            while self._exchange(sock, stream, paths):
                pass
        except (OSError, ValueError):
            pass
        sock.close()

    def _exchange(self, sock, stream, paths):
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            line = stream.readline(1 << 20)
            if not line:
                return False
            head += line
        path = head.split(b" ")[1].decode("latin-1")
        paths.append(path)
        script, close, early = self.scripts.get(path, (None, False, False))
        record = [head, None]
        self.requests.append(record)
        if early:
            sock.sendall(script)
        record[1] = self._body(head, stream)
        if script is None:
            body = b"upstream " + path.encode("latin-1")
            script = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
        if not early:
            sock.sendall(script)
        return not close

    def _body(self, head, stream):
        lower = head.lower()
        if b"\r\ntransfer-encoding: chunked" in lower:
            body = b""
            while True:
                size = int(stream.readline(), 16)
                chunk = stream.read(size)
                if size == 0:
                    while stream.readline() not in (b"\r\n", b""):
                        pass
                    return body
                body += chunk
                stream.read(2)
        found = re.search(rb"\r\ncontent-length: *(\d+)", lower)
        return stream.read(int(found[1])) if found else b""

    def of(self, path):
        """Requests for a path (or that contain this in their head)."""
        return [q for q in list(self.requests) if path.encode("latin-1") in q[0].split(b"\r\n", 1)[0]]

    def close(self):
        self._server.close()


def header_filter(name, kind, **config):
    return {"name": name, "typed_config": {"@type": r.TYPES + kind, **config}}


def deny(**permission):
    """RBAC that denies what these permissions say."""
    policy = {"permissions": [permission], "principals": [{"any": True}]}
    return header_filter("rbac", "filters.http.rbac.v3.RBAC", rules={"action": "DENY", "policies": {"p": policy}})


def allow(**permission):
    policy = {"permissions": [permission], "principals": [{"any": True}]}
    return header_filter("rbac", "filters.http.rbac.v3.RBAC", rules={"action": "ALLOW", "policies": {"p": policy}})


def path_is(prefix):
    return {"url_path": {"path": {"prefix": prefix}}}


class Site:
    """A proxy with one upstream; `managers` makes further listeners, each with its own port."""

    def __init__(self, world, filters=(), routes=None, cluster=None, concurrency=2, chains=None, listener=None, files=None, bootstrap=None, clusters=(), program="mesh-proxy", **manager):
        self.world = world
        self.upstream = world.keep(Upstream())
        self.port, self.admin = harness.free_port(), harness.free_port()
        table = routes or r.table("i", "up")
        defaults = {"stream_idle_timeout": "5s", "request_headers_timeout": "2s", "codec_type": "AUTO"}
        http = {"filters": [r.http_manager({"route_config": table}, filters, **{**defaults, **manager})]}
        # Each chain is the same HTTP behind another match and another TLS.
        every = [{**http, **chain} for chain in (chains or [{}])]
        load = {"cluster_name": "up", "endpoints": [{"lb_endpoints": [{"endpoint": {"address": r.address(self.upstream.port)}}]}]}
        whole = {
            "admin": {"address": r.address(self.admin)},
            "static_resources": {
                "listeners": [{"name": "l", "address": r.address(self.port), "filter_chains": every, **(listener or {})}],
                "clusters": [{"name": "up", "type": "STATIC", "connect_timeout": "1s", "load_assignment": load, **(cluster or {})}, *clusters],
            },
            **(bootstrap or {}),
        }
        path = world.write(f"static-{self.port}.json", whole)
        self.process = world.process(program, "-c", path, "--concurrency", concurrency, "-l", "info", "--disable-hot-restart", files=files)
        until(lambda: get(self.admin, "/ready").status == 200, lambda: f"ready: {self.process.log()[-500:]}")

    def good(self):
        """It serves."""
        answer = get(self.port, "/good")
        harness.equal((answer.status, answer.body), (200, "upstream /good"), "a good request")

    def raw(self, data, **more):
        return raw(self.port, data, **more)


def raw(port, data, finish=True, patience=3.0, parts=None, pause=0.0):
    """Sends bytes, reads until the other side ends; what came. `None`: it was left hanging.

    `finish`: ends the sending side once nothing more comes. Not before: who ends it before the answer is gone.
    """
    with socket.create_connection(("127.0.0.1", port), timeout=5) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            for part in parts or [data]:
                sock.sendall(part)
                if pause:
                    time.sleep(pause)
        except OSError:
            pass  # closed early, which is an answer
        received, end = b"", time.monotonic() + patience
        while True:
            left = max(0.01, end - time.monotonic())
            sock.settimeout(min(left, 0.3 if received else patience / 2) if finish else left)
            try:
                data = sock.recv(65536)
            except TimeoutError:
                if not finish:
                    return received or None
                finish = False
                try:
                    sock.shutdown(socket.SHUT_WR)
                except OSError:
                    pass
                continue
            except OSError:
                return received
            if not data:
                return received
            received += data


def whole(sock):
    """One answer with a length, on a connection that stays; what came until there, if it does not."""
    answer = b""
    while True:
        head, end, body = answer.partition(b"\r\n\r\n")
        size = re.search(rb"\r\ncontent-length: *(\d+)", head.lower())
        if end and size and len(body) >= int(size[1]):
            return answer
        data = sock.recv(65536)
        if not data:
            return answer
        answer += data


def statuses(answer):
    """Status codes of the answers in these bytes, in order; bodies are skipped by their length."""
    found = []
    while answer:
        if not answer.startswith(b"HTTP/1."):
            raise Failed(f"not an HTTP answer: {answer[:100]!r}")
        head, _, rest = answer.partition(b"\r\n\r\n")
        status = int(head.split(b" ")[1])
        found.append(status)
        if 100 <= status < 200:
            answer = rest
            continue
        lower = head.lower()
        size = re.search(rb"\r\ncontent-length: *(\d+)", lower)
        if size:
            answer = rest[int(size[1]):]
        elif b"chunked" in lower:
            answer = rest.partition(b"0\r\n\r\n")[2]
        else:
            answer = b""
    return found
