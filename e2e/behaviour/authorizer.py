"""External authorizers, over HTTP and gRPC. Both let pass what says `x-ext-authz: allow`, and connections of everybody who proves who it is.

A request may ask for more: `x-authz-delay: 1s` waits, `x-authz-status: N` answers N (over HTTP), `x-ext-authz: body` lets pass
when the body that was shown is `allow`. Both count calls by `x-case`, where that is told.
"""

import asyncio
import concurrent.futures
import time

import grpc
from envoy.config.core.v3 import base_pb2
from envoy.service.auth.v3 import external_auth_pb2, external_auth_pb2_grpc
from envoy.type.v3 import http_status_pb2
from google.rpc import status_pb2

from backends import _headers, seconds

RESULT = "x-ext-authz-check-result"


def _allowed(headers, body):
    wish = headers.get("x-ext-authz")
    return wish == "allow" or (wish == "body" and body == b"allow")


def http(backends, namespace, name, ip, port):
    """Serves HTTP there."""

    async def serve(reader, writer):
        while first := await reader.readline():
            method, path, _ = first.decode("latin-1").split(" ", 2)
            headers = {n: ", ".join(v) for n, v in (await _headers(reader)).items()}
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            backends.calls.add(name, headers.get("x-case", ""))
            await asyncio.sleep(seconds(headers.get("x-authz-delay", "0s")))
            allowed = _allowed(headers, body)
            status = int(headers.get("x-authz-status", 200 if allowed else 403))
            told = [(RESULT, "allowed" if allowed else "denied"), ("x-ext-authz-path", path), ("x-ext-authz-headers", "+".join(sorted(headers))),
                    ("x-ext-authz-from", headers.get("x-from", "nobody")), ("x-ext-authz-body", body.decode("latin-1") or "none")]
            text = "" if status == 200 else f"denied by {name}"
            head = "".join(f"{n}: {v}\r\n" for n, v in [*told, ("content-length", len(text))])
            writer.write(f"HTTP/1.1 {status} Said\r\n{head}\r\n{text}".encode())
            await writer.drain()

    backends._serve(namespace, ip, port, serve, None)


class _Service(external_auth_pb2_grpc.AuthorizationServicer):
    def __init__(self, name, calls):
        self._name, self._calls = name, calls

    def Check(self, question, context):
        attributes = question.attributes
        principal = attributes.source.principal
        request = attributes.request.http
        if not request.method:
            return self._answer(bool(principal), [])
        self._calls.add(self._name, request.headers.get("x-case", ""))
        time.sleep(seconds(request.headers.get("x-authz-delay", "0s")))
        body = request.raw_body or request.body.encode()
        told = [("x-ext-authz-path", request.path), ("x-ext-authz-principal", principal or "none"), ("x-ext-authz-host", request.host),
                ("x-ext-authz-body", body.decode() or "none"), ("x-ext-authz-destination", attributes.destination.principal or "none"),
                ("x-ext-authz-port", str(attributes.destination.address.socket_address.port_value))]
        return self._answer(_allowed(request.headers, body), told)

    def _answer(self, allowed, told):
        told = [(RESULT, "allowed" if allowed else "denied"), *told]
        headers = [base_pb2.HeaderValueOption(header=base_pb2.HeaderValue(key=k, value=v)) for k, v in told]
        if allowed:
            ok = external_auth_pb2.OkHttpResponse(headers=headers, headers_to_remove=["x-secret"], response_headers_to_add=headers[:1])
            return external_auth_pb2.CheckResponse(status=status_pb2.Status(code=0), ok_response=ok)
        denied = external_auth_pb2.DeniedHttpResponse(status=http_status_pb2.HttpStatus(code=401), headers=headers, body=f"denied by {self._name}")
        return external_auth_pb2.CheckResponse(status=status_pb2.Status(code=7), denied_response=denied)


def grpc_service(namespace, name, ip, port, calls):
    """Serves gRPC there; what it returns is to be stopped."""
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(8))
    external_auth_pb2_grpc.add_AuthorizationServicer_to_server(_Service(name, calls), server)
    with namespace.entered():
        if not server.add_insecure_port(f"{ip}:{port}"):
            raise OSError(f"{ip}:{port} cannot be bound")
    server.start()
    return server
