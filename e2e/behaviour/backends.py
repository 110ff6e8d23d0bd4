"""Applications: an HTTP echo that obeys request headers, a TCP echo, a gRPC service. They remember which request came how often.

`x-case` names the request. HTTP: `x-echo-status: N` answers N; `x-echo-status-first: N` answers 503 the first N times;
`x-echo-reset` breaks the connection; `x-echo-delay: 3s` waits; `x-echo-header: NAME=VALUE` answers that header. gRPC: `x-echo-delay`.
An answer says the how many-th it is on its connection.
"""

import asyncio
import collections
import concurrent.futures
import json
import socket
import ssl
import struct
import threading
import time

import grpc

import forward_proxy

TLS_HANDSHAKE = b"\x16"  # the first byte of a ClientHello


def seconds(text):
    """`3s`, `0.5s` or `500ms`."""
    return float(text[:-2]) / 1000 if text.endswith("ms") else float(text.removesuffix("s"))


class Calls:
    """Which backend was called how often by which request."""

    def __init__(self):
        self._lock, self._seen = threading.Lock(), collections.Counter()

    def add(self, backend, request):
        """Counts one; how many there are now."""
        with self._lock:
            self._seen[backend, request] += 1
            return self._seen[backend, request]

    def of(self, request):
        with self._lock:
            return {backend: n for (backend, r), n in self._seen.items() if r == request}


class Backends:
    """All applications of a world, on one event loop."""

    def __init__(self, calls):
        self.calls, self.loop, self._grpc = calls, asyncio.new_event_loop(), []
        threading.Thread(target=self.loop.run_forever, daemon=True).start()

    def http(self, namespace, name, ip, port, tls=None, clients=None):
        """Serves HTTP/1.1 there; `tls`: certificate and key file; `clients`: file of who issues certificates to them."""
        context = None
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*tls)
        if clients:
            context.load_verify_locations(clients)
            context.verify_mode = ssl.CERT_REQUIRED
        self._serve(namespace, ip, port, lambda r, w: self._http(name, bool(tls), r, w), context)

    def tcp(self, namespace, name, ip, port):
        """Answers each line with its own name before it."""
        self._serve(namespace, ip, port, lambda r, w: self._tcp(name, r, w), None)

    def forward_proxy(self, namespace, ip, port):
        """Opens tunnels."""
        self._serve(namespace, ip, port, lambda r, w: forward_proxy.serve(namespace, r, w), None)

    def grpc(self, namespace, name, ip, port):
        """Answers every unary call with its request."""
        calls = self.calls

        class Any(grpc.GenericRpcHandler):
            def service(self, details):
                def echo(request, context):
                    headers = dict(context.invocation_metadata())
                    calls.add(name, headers.get("x-case", ""))
                    time.sleep(seconds(headers.get("x-echo-delay", "0s")))
                    return request

                return grpc.unary_unary_rpc_method_handler(echo)

        server = grpc.server(concurrent.futures.ThreadPoolExecutor(8), handlers=[Any()])
        with namespace.entered():
            if not server.add_insecure_port(f"{ip}:{port}"):
                raise OSError(f"{ip}:{port} cannot be bound")
        server.start()
        self._grpc.append(server)

    def also(self, server):
        """Another gRPC server, which ends with the others."""
        self._grpc.append(server)

    def close(self):
        for server in self._grpc:
            server.stop(0)
        self.loop.call_soon_threadsafe(self.loop.stop)

    def unix(self, name, path):
        """Serves HTTP/1.1 at a Unix socket that everybody may use."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(path))
        path.chmod(0o777)
        listener.listen(64)
        self._accept(listener, lambda r, w: self._http(name, False, r, w), None)

    def _serve(self, namespace, ip, port, handle, context):
        listener = namespace.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((ip, port))
        listener.listen(512)
        self._accept(listener, handle, context)

    def _accept(self, listener, handle, context):

        async def guarded(reader, writer):
            try:
                await handle(reader, writer)
            except (OSError, asyncio.IncompleteReadError, ValueError):
                pass  # a client that goes away
            finally:
                writer.close()

        server = asyncio.start_server(guarded, sock=listener, ssl=context)
        asyncio.run_coroutine_threadsafe(server, self.loop).result(10)

    async def _tcp(self, name, reader, writer):
        while line := await reader.readline():
            writer.write(f"{name} ".encode() + line)
            await writer.drain()

    async def _http(self, name, tls, reader, writer):
        nth = 0
        while (start := await reader.read(1)) and start != TLS_HANDSHAKE:
            nth += 1
            first = start + await reader.readline()
            method, path, _ = first.decode("latin-1").split(" ", 2)
            headers = await _headers(reader)
            await _body(reader, headers)
            one = {n: v[0] for n, v in headers.items()}
            count = self.calls.add(name, one.get("x-case", ""))
            await asyncio.sleep(seconds(one.get("x-echo-delay", "0s")))
            if "x-echo-reset" in one:
                reset(writer.get_extra_info("socket"))
                writer.transport.abort()
                return
            status = int(one.get("x-echo-status", 200))
            if count <= int(one.get("x-echo-status-first", 0)):
                status = 503
            answer = {"backend": name, "method": method, "path": path, "host": one.get("host"), "tls": tls, "nth": nth, "headers": headers}
            body = b"" if method == "HEAD" else json.dumps(answer).encode()
            more = one["x-echo-header"].replace("=", ": ", 1) + "\r\n" if "x-echo-header" in one else ""
            head = f"HTTP/1.1 {status} Said\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n{more}\r\n"
            writer.write(head.encode() + body)
            await writer.drain()


def reset(connection):
    """The next close sends RST."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


async def _headers(reader):
    headers = {}
    while (line := await reader.readline()) not in (b"\r\n", b""):
        name, _, value = line.decode("latin-1").partition(":")
        headers.setdefault(name.lower(), []).append(value.strip())
    return headers


async def _body(reader, headers):
    if "chunked" in headers.get("transfer-encoding", [""])[0]:
        while size := int((await reader.readline()).split(b";")[0], 16):
            await reader.readexactly(size + 2)
        await reader.readline()
    else:
        await reader.readexactly(int(headers.get("content-length", ["0"])[0]))
