"""HTTP filters that change or steer requests, of our proxy and of stock Envoy with the same bootstrap."""

import base64
import http.client
import struct
from concurrent import futures

import grpc

import harness
import resources as r
from harness import check, equal, get, scenario
from http_parts import HTTP2, Site, Upstream, header_filter, program

SESSION = "envoy.filters.http.stateful_session"


def state(kind, message, **config):
    return {"session_state": {"name": f"envoy.http.stateful_session.{kind}", "typed_config": {
        "@type": f"type.googleapis.com/envoy.extensions.http.stateful_session.{kind}.v3.{message}", **config}}}


def in_header(**more):
    return {**state("header", "HeaderBasedSessionState", name="x-session"), **more}


def in_cookie():
    return state("cookie", "CookieBasedSessionState", cookie={"name": "sticky", "path": "/sticky", "ttl": "60s"})


def sessions(world, config, routes=None):
    """Two endpoints in turn, and how many requests each had."""
    more = [world.keep(Upstream()) for _ in range(2)]
    members = [{"endpoint": {"address": r.address(u.port)}} for u in more]
    cluster = {"load_assignment": {"cluster_name": "up", "endpoints": [{"lb_endpoints": members}]}}
    made = Site(world, [header_filter(SESSION, "filters.http.stateful_session.v3.StatefulSession", **config)], routes=routes,
                cluster=cluster, concurrency=1, program=program(world))
    made.counts = lambda path: sorted(len(u.of(path)) for u in more)
    return made


@scenario("ours", "envoy")
def sessions_in_a_header(world):
    """Who sends back what it was told comes to the same endpoint; one that is gone is left, unless the session is strict."""
    made = sessions(world, in_header())
    told = get(made.port, "/first").headers.get("x-session")
    check(told, "the first answer names no session")
    for _ in range(6):
        again = get(made.port, "/kept", headers={"x-session": told})
        equal((again.status, again.headers.get("x-session")), (200, None), "an answer of the session")
    equal(made.counts("/kept"), [0, 6], "requests of one session")
    for _ in range(6):
        get(made.port, "/free")
    equal(made.counts("/free"), [3, 3], "requests without one")
    nobody = base64.b64encode(f"127.0.0.1:{harness.free_port()}".encode()).decode()
    for value in (nobody, "nonsense", base64.b64encode(b"nonsense").decode()):
        answer = get(made.port, "/gone", headers={"x-session": value})
        check(answer.status == 200 and answer.headers.get("x-session"), f"{value}: {answer}")
    strict = sessions(world, in_header(strict=True))
    equal(get(strict.port, "/gone", headers={"x-session": nobody}).status, 503, "an endpoint that is gone, strictly")
    equal(get(strict.port, "/first").status, 200, "no session yet")


@scenario("ours", "envoy")
def sessions_in_a_cookie(world):
    """The cookie says how long and where it holds; elsewhere there is no session; routes have their own or none."""
    own = {"typed_per_filter_config": {SESSION: {"@type": r.TYPES + "filters.http.stateful_session.v3.StatefulSessionPerRoute", "stateful_session": in_header()}}}
    none = {"typed_per_filter_config": {SESSION: {"@type": r.TYPES + "filters.http.stateful_session.v3.StatefulSessionPerRoute", "disabled": True}}}
    routes = r.table("t", {**r.to("/own", "up"), **own}, {**r.to("/sticky/none", "up"), **none}, "up")
    made = sessions(world, in_cookie(), routes)
    cookie = get(made.port, "/sticky").headers.get("set-cookie")
    check(cookie and cookie.startswith("sticky="), f"no cookie: {cookie}")
    parts = {p.strip().lower() for p in cookie.split(";")[1:]}
    equal(parts, {"max-age=60", "path=/sticky", "httponly"}, "attributes")
    pair = cookie.split(";")[0]
    for _ in range(6):
        again = get(made.port, "/sticky/kept", headers={"cookie": f"a=b; {pair}"})
        equal((again.status, again.headers.get("set-cookie")), (200, None), "an answer of the session")
    equal(made.counts("/sticky/kept"), [0, 6], "requests of one session")
    for path in ("/elsewhere", "/stickyness", "/sticky/none"):
        equal(get(made.port, path).headers.get("set-cookie"), None, path)
    answer = get(made.port, "/own")
    check(answer.headers.get("x-session") and not answer.headers.get("set-cookie"), f"a route's own: {answer.headers}")


class Echo(grpc.GenericRpcHandler):
    """Answers unary calls with their request; `/pkg.Svc/Fail` fails."""

    def service(self, details):
        def echo(request, context):
            if details.method.endswith("/Fail"):
                context.abort(grpc.StatusCode.NOT_FOUND, "no such thing")
            return request
        return grpc.unary_unary_rpc_method_handler(echo)


def message(data):
    return b"\0" + struct.pack(">I", len(data)) + data


def frames(body):
    """Messages, then what the trailers say."""
    out = []
    while body:
        flag, length = body[0], struct.unpack(">I", body[1:5])[0]
        out.append((flag, body[5:5 + length]))
        body = body[5 + length:]
    return [f for flag, f in out if not flag & 0x80], dict(line.split(b":", 1) for flag, f in out if flag & 0x80 for line in f.split(b"\r\n") if line)


def ask(port, path, body, kind, accept="*/*"):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("POST", path, body=body, headers={"host": "x", "content-type": kind, "accept": accept, "x-grpc-web": "1"})
        response = connection.getresponse()
        return response, response.read()
    finally:
        connection.close()


@scenario("ours", "envoy")
def grpc_web(world):
    """Calls of browsers in both encodings, of any length; failures of calls, of upstreams, of the encoding."""
    server = grpc.server(futures.ThreadPoolExecutor(4), handlers=[Echo()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    load = {"cluster_name": "up", "endpoints": [{"lb_endpoints": [{"endpoint": {"address": r.address(port)}}]}]}
    plain = world.keep(Upstream())
    plain.scripts["/plain/Bad"] = (b"HTTP/1.1 503 No\r\ncontent-type: text/html\r\ncontent-length: 4\r\n\r\nhtml", False, False)
    other = {"name": "plain", "type": "STATIC", "connect_timeout": "1s", "load_assignment": {
        "cluster_name": "plain", "endpoints": [{"lb_endpoints": [{"endpoint": {"address": r.address(plain.port)}}]}]}}
    routes = r.table("t", r.to("/plain", "plain"), r.to("/down", "down"), "up")
    made = Site(world, [header_filter("envoy.filters.http.grpc_web", "filters.http.grpc_web.v3.GrpcWeb")], routes=routes,
                cluster={"load_assignment": load, "typed_extension_protocol_options": HTTP2}, clusters=[other, {"name": "down", "type": "STATIC", "connect_timeout": "1s"}], program=program(world))
    long = bytes(range(256)) * 400
    for data in (b"", b"x", b"hello", long):
        response, body = ask(made.port, "/pkg.Svc/Echo", message(data), "application/grpc-web+proto")
        equal((response.status, response.getheader("content-type")), (200, "application/grpc-web+proto"), "binary")
        messages, trailers = frames(body)
        equal((messages, trailers[b"grpc-status"]), ([data], b"0"), "binary")
        text = base64.b64encode(message(data))
        response, body = ask(made.port, "/pkg.Svc/Echo", text, "application/grpc-web-text", "application/grpc-web-text")
        equal((response.status, response.getheader("content-type")), (200, "application/grpc-web-text+proto"), "text")
        check(body.startswith(text), "each frame is padded by itself")
        messages, trailers = frames(text_of(body))
        equal((messages, trailers[b"grpc-status"]), ([data], b"0"), "text")
    response, body = ask(made.port, "/pkg.Svc/Fail", message(b"x"), "application/grpc-web")
    found = {**{k.lower().encode(): v.encode() for k, v in response.getheaders()}, **frames(body)[1]}
    equal((response.status, found[b"grpc-status"]), (200, b"5"), "a call that fails")
    for path, status, why in (("/down/a", 503, "no healthy upstream"), ("/plain/Bad", 503, "html")):
        response, body = ask(made.port, path, message(b"x"), "application/grpc-web")
        found = (response.status, response.getheader("grpc-status"), response.getheader("grpc-message"), response.getheader("content-type"), body)
        equal(found, (status, "14", why, "application/grpc-web+proto", b""), f"{path}, where nobody speaks gRPC")
    for bad in (b"AAAAA!==", b"AAAAA"):
        response, body = ask(made.port, "/pkg.Svc/Echo", bad, "application/grpc-web-text")
        equal((response.status, response.getheader("grpc-status")), (400, "13"), f"{bad} is not base64")
    equal(get(made.port, "/plain/ok").status, 200, "what is not gRPC-Web")
    server.stop(0)


def text_of(body):
    """Base64 whose pieces are padded one by one."""
    out, at = b"", 0
    while at < len(body):
        end = body.find(b"=", at)
        end = len(body) if end < 0 else end + (2 if body[end + 1:end + 2] == b"=" else 1)
        out += base64.b64decode(body[at:end])
        at = end
    return out
