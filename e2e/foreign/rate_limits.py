"""Rate limits that a foreign service decides, of our proxy and of stock Envoy with the same bootstrap."""

import threading
import time
from concurrent import futures

import grpc
from envoy.service.ratelimit.v3 import rls_pb2, rls_pb2_grpc
from google.protobuf import struct_pb2

import harness
import resources as r
from harness import check, equal, get, scenario, until
from http_parts import HTTP2, Site, deny, header_filter, program

NAME = "envoy.filters.http.ratelimit"
OVER = rls_pb2.RateLimitResponse.OVER_LIMIT
OK = rls_pb2.RateLimitResponse.OK
SECOND, MINUTE = 1, 2
LOG = "%RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS%\n"


class Service(rls_pb2_grpc.RateLimitServiceServicer):
    """Answers what it is told to, and keeps what it was asked."""

    def __init__(self):
        self.port = harness.free_port()
        self.asked, self.answer, self.pause, self.fails = [], rls_pb2.RateLimitResponse(overall_code=OK), 0.0, False
        self._lock = threading.Lock()
        self._server = grpc.server(futures.ThreadPoolExecutor(4))
        rls_pb2_grpc.add_RateLimitServiceServicer_to_server(self, self._server)
        self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        self._server.start()

    def ShouldRateLimit(self, request, context):
        with self._lock:
            self.asked.append(request)
        time.sleep(self.pause)
        if self.fails:
            context.abort(grpc.StatusCode.INTERNAL, "no")
        return self.answer

    def last(self):
        """Domain and descriptors of the last question."""
        request = self.asked[-1]
        return request.domain, [[(e.key, e.value) for e in d.entries] for d in request.descriptors]

    def close(self):
        self._server.stop(0)


def site(world, routes, hosts=None, after=(), **config):
    """A proxy that asks a service of its own."""
    service = world.keep(Service())
    filter_ = {"domain": "shop", "timeout": "2s", "rate_limit_service": {
        "grpc_service": {"envoy_grpc": {"cluster_name": "rls"}}, "transport_api_version": "V3"}, **config}
    load = {"cluster_name": "rls", "endpoints": [{"lb_endpoints": [{"endpoint": {"address": r.address(service.port)}}]}]}
    rls = {"name": "rls", "type": "STATIC", "connect_timeout": "1s", "load_assignment": load, "typed_extension_protocol_options": HTTP2}
    table = {"name": "t", "virtual_hosts": [{"name": "v", "domains": ["*"], "routes": routes, **(hosts or {})}]}
    log = world.folder / f"access-{service.port}.log"
    logs = [{"name": "envoy.access_loggers.file", "typed_config": {
        "@type": r.TYPES + "access_loggers.file.v3.FileAccessLog", "path": str(log),
        "log_format": {"text_format_source": {"inline_string": LOG}}}}]
    made = Site(world, [header_filter(NAME, "filters.http.ratelimit.v3.RateLimit", **filter_), *after], routes=table, clusters=[rls],
                program=program(world), concurrency=1, access_log=logs, bootstrap={"node": {"id": "n", "cluster": "me"}})
    made.service, made.log_path = service, log
    return made


def logged(made, count):
    until(lambda: made.log_path.exists() and len(made.log_path.read_text().splitlines()) >= count, "the access log", 12)
    return made.log_path.read_text().splitlines()[-1]


def route(prefix, actions=None, cluster="up", settings=None, **more):
    limits = {"rate_limits": [{"actions": a} for a in actions]} if actions else {}
    own = {"typed_per_filter_config": {NAME: {"@type": r.TYPES + "filters.http.ratelimit.v3.RateLimitPerRoute", **settings}}} if settings else {}
    return {"match": {"prefix": prefix}, "route": {"cluster": cluster, **limits}, **own, **more}


def generic(value, key=None):
    return {"generic_key": {"descriptor_value": value, **({"descriptor_key": key} if key else {})}}


@scenario("ours", "envoy")
def what_the_service_is_told(world):
    """Each action makes its entry, one that cannot leaves its descriptor out; routes, hosts and their settings choose the rules."""
    every = [
        {"source_cluster": {}}, {"destination_cluster": {}}, {"remote_address": {}},
        {"request_headers": {"header_name": "x-user", "descriptor_key": "user"}},
        {"request_headers": {"header_name": ":path", "descriptor_key": "path"}},
        {"request_headers": {"header_name": "x-none", "descriptor_key": "none", "skip_if_absent": True}},
        {"query_parameters": {"query_parameter_name": "q", "descriptor_key": "q"}},
        {"masked_remote_address": {"v4_prefix_mask_len": 8}}, generic("v"), generic("w", "k"),
        {"header_value_match": {"descriptor_value": "m", "headers": [{"name": "x-user", "string_match": {"exact": "ann"}}]}},
        {"header_value_match": {"descriptor_value": "n", "expect_match": False, "headers": [{"name": "x-none", "present_match": True}]}},
        {"query_parameter_value_match": {"descriptor_value": "z", "query_parameters": [{"name": "q", "present_match": True}]}},
        {"metadata": {"descriptor_key": "plan", "source": "ROUTE_ENTRY", "metadata_key": {"key": "shop", "path": [{"key": "plan"}]}}},
        {"metadata": {"descriptor_key": "d", "default_value": "other", "metadata_key": {"key": "none", "path": [{"key": "a"}]}}},
    ]
    missing = [generic("v"), {"request_headers": {"header_name": "x-none", "descriptor_key": "none"}}]
    staged = {"match": {"prefix": "/staged"}, "route": {"cluster": "up", "rate_limits": [{"stage": 1, "actions": [generic("later")]}]}}
    made = site(world, [
        route("/every", [every, missing], metadata={"filter_metadata": {"shop": {"plan": "gold"}}}),
        staged,
        route("/own", [[generic("route")]]),
        route("/both", [[generic("route")]], settings={"vh_rate_limits": "INCLUDE"}),
        route("/none", settings={"vh_rate_limits": "IGNORE"}),
        route("/domain", settings={"domain": "other"}),
        {"match": {"prefix": "/direct"}, "direct_response": {"status": 204}},
        route("/"),
    ], hosts={"rate_limits": [{"actions": [generic("host")]}]})
    service = made.service

    def asked(path, **headers):
        before = len(service.asked)
        status = get(made.port, path, headers=headers).status
        check(status in (200, 204), f"{path}: {status}")
        return service.last() if len(service.asked) > before else None

    wanted = [("source_cluster", "me"), ("destination_cluster", "up"), ("remote_address", "127.0.0.1"), ("user", "ann"),
              ("path", "/every?q=1"), ("q", "1"), ("masked_remote_address", "127.0.0.0/8"), ("generic_key", "v"), ("k", "w"),
              ("header_match", "m"), ("header_match", "n"), ("query_match", "z"), ("plan", "gold"), ("d", "other")]
    equal(asked("/every?q=1", **{"x-user": "ann"}), ("shop", [wanted]), "every action")
    equal(asked("/every"), None, "no descriptor is left")
    equal(asked("/staged"), None, "rules of another stage")
    equal(asked("/own"), ("shop", [[("generic_key", "route")]]), "rules of a route")
    equal(asked("/both"), ("shop", [[("generic_key", "route")], [("generic_key", "host")]]), "rules of both")
    equal(asked("/none"), None, "without those of the host")
    equal(asked("/domain"), ("other", [[("generic_key", "host")]]), "another domain")
    equal(asked("/direct"), None, "what is not forwarded")
    equal(asked("/"), ("shop", [[("generic_key", "host")]]), "rules of the host")


@scenario("ours", "envoy")
def what_its_answers_mean(world):
    """Refusals and permissions: statuses, headers of limits, headers and body of the service, flags, details and metadata."""
    said = deny(metadata={"filter": NAME, "path": [{"key": "why"}], "value": {"string_match": {"exact": "too much"}}})
    made = site(world, [route("/", [[generic("v")]])], after=[said], enable_x_ratelimit_headers="DRAFT_VERSION_03",
                response_headers_to_add=[{"header": {"key": "x-slow", "value": "down"}}])
    metadata = struct_pb2.Struct()
    metadata.update({"why": "too much"})
    limit = rls_pb2.RateLimitResponse.RateLimit
    statuses = [
        rls_pb2.RateLimitResponse.DescriptorStatus(code=OK, current_limit=limit(requests_per_unit=10, unit=MINUTE, name="m"), limit_remaining=7),
        rls_pb2.RateLimitResponse.DescriptorStatus(code=OVER, current_limit=limit(requests_per_unit=2, unit=SECOND), limit_remaining=1),
        rls_pb2.RateLimitResponse.DescriptorStatus(code=OK),
    ]
    statuses[1].duration_until_reset.seconds = 5
    headers = [{"key": "x-told", "value": "a"}]
    made.service.answer = rls_pb2.RateLimitResponse(
        overall_code=OK, statuses=statuses, response_headers_to_add=headers, request_headers_to_add=[{"key": "x-plan", "value": "gold"}])
    answer = get(made.port, "/ok")
    told = {k: answer.headers.get(k) for k in ("x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset", "x-told", "x-slow")}
    limits = {"x-ratelimit-limit": '2, 10;w=60;name="m", 2;w=1', "x-ratelimit-remaining": "1", "x-ratelimit-reset": "5"}
    equal((answer.status, told), (200, {**limits, "x-told": "a", "x-slow": None}), "a permission")
    check(b"x-plan: gold" in made.upstream.of("/ok")[0][0].lower(), "the service's headers go upstream")

    made.service.answer = rls_pb2.RateLimitResponse(overall_code=OK, dynamic_metadata=metadata)
    equal(get(made.port, "/said").status, 403, "what it says counts for filters that follow")

    made.service.answer = rls_pb2.RateLimitResponse(
        overall_code=OVER, statuses=statuses, response_headers_to_add=[*headers, {"key": "content-type", "value": "text/x"}],
        raw_body=b"slow down")
    answer = get(made.port, "/over")
    equal((answer.status, answer.body, answer.headers.get_all("content-type")), (429, "slow down", ["text/x"]), "a refusal")
    found = {k: answer.headers.get(k) for k in (*limits, "x-told", "x-slow", "x-envoy-ratelimited")}
    equal(found, {**limits, "x-told": "a", "x-slow": "down", "x-envoy-ratelimited": "true"}, "its headers")
    equal(len(made.upstream.of("/over")), 0, "requests that went on")
    equal(logged(made, 3), "RL request_rate_limited", "the access log")
    answer = get(made.port, "/grpc", method="POST", headers={"content-type": "application/grpc"})
    equal((answer.status, answer.headers.get("grpc-status")), (200, "14"), "a gRPC call")


@scenario("ours", "envoy")
def settings_of_refusals(world):
    """Another status, no header of Envoy's, RESOURCE_EXHAUSTED."""
    made = site(world, [route("/", [[generic("v")]])], rate_limited_status={"code": "ServiceUnavailable"},
                disable_x_envoy_ratelimited_header=True, rate_limited_as_resource_exhausted=True)
    made.service.answer = rls_pb2.RateLimitResponse(overall_code=OVER)
    answer = get(made.port, "/a")
    equal((answer.status, answer.headers.get("x-envoy-ratelimited")), (503, None), "a refusal")
    answer = get(made.port, "/a", method="POST", headers={"content-type": "application/grpc"})
    equal(answer.headers.get("grpc-status"), "8", "a gRPC call")


@scenario("ours", "envoy")
def a_service_that_does_not_answer(world):
    """Errors, silence and absence let pass unless it is told to refuse; then they say why."""
    made = site(world, [route("/", [[generic("v")]])], timeout="0.2s")
    strict = site(world, [route("/", [[generic("v")]])], timeout="0.2s", failure_mode_deny=True)
    for failing, wanted in ((made, 200), (strict, 500)):
        failing.service.fails = True
        equal(get(failing.port, "/error").status, wanted, "an error of the service")
        failing.service.fails, failing.service.pause = False, 1.0
        begun = time.monotonic()
        equal(get(failing.port, "/slow").status, wanted, "an answer that comes too late")
        check(time.monotonic() - begun < 0.9, "nobody waits longer than the timeout")
        failing.service.pause = 0.0
        failing.service.close()
        equal(get(failing.port, "/gone").status, wanted, "no service")
    equal(logged(strict, 3), "RLSE rate_limiter_error", "the access log")
