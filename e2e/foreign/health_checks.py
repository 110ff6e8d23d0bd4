"""Health checks that a proxy answers, by itself, by its clusters or by the application, of ours and of stock Envoy."""

import time

import harness
import resources as r
from harness import check, equal, get, scenario, until
from http_parts import Site, header_filter, program

CHECKED = "x-envoy-upstream-healthchecked-cluster"
LOG = "%REQ(:PATH)% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS%\n"


def health(path="/health", **config):
    match = {"name": ":path", "string_match": {"exact": path}}
    return header_filter("health", "filters.http.health_check.v3.HealthCheck", headers=[match], **config)


def site(world, *filters, clusters=()):
    log = world.folder / "access.log"
    logs = [{"name": "envoy.access_loggers.file", "typed_config": {
        "@type": r.TYPES + "access_loggers.file.v3.FileAccessLog", "path": str(log), "log_format": {"text_format_source": {"inline_string": LOG}}}}]
    made = Site(world, filters, clusters=clusters, program=program(world), access_log=logs, bootstrap={"node": {"id": "n", "cluster": "me"}})
    made.log_path = log
    return made


def asked(made, path="/health"):
    answer = get(made.port, path)
    return answer.status, answer.headers.get(CHECKED)


def logged(made, line):
    until(lambda: line in made.log_path.read_text().splitlines(), lambda: f"{line}: {made.log_path.read_text()}", 12)


@scenario("ours", "envoy")
def answered_here(world):
    """A check is answered without the application; everything else, and a check that lacks a header, goes on."""
    made = site(world, health(pass_through_mode=False))
    equal(asked(made), (200, "me"), "a check")
    equal(made.upstream.of("/health"), [], "requests of the application")
    equal(asked(made, "/healthy"), (200, None), "another request")
    logged(made, "/health - health_check_ok")


@scenario("ours", "envoy")
def answered_by_clusters(world):
    """So many endpoints must be healthy: those of a cluster with none, or of none at all, are not."""
    empty = {"name": "empty", "type": "STATIC", "connect_timeout": "1s", "load_assignment": {"cluster_name": "empty"}}

    def of(**shares):
        return {"pass_through_mode": False, "cluster_min_healthy_percentages": {n: {"value": v} for n, v in shares.items()}}

    made = site(world, health("/good", **of(up=100)), health("/empty", **of(up=50, empty=1)), health("/nothing", **of(empty=0)),
                health("/unknown", **of(nobody=1)), clusters=[empty])
    equal(asked(made, "/good"), (200, "me"), "all are healthy")
    equal(asked(made, "/empty"), (503, "me"), "a cluster without endpoints")
    equal(asked(made, "/nothing"), (200, "me"), "nothing is asked of it")
    equal(asked(made, "/unknown"), (503, "me"), "a cluster that does not exist")
    for line in ("/good - health_check_ok_cluster_healthy", "/empty LH health_check_failed_cluster_empty",
                 "/unknown LH health_check_failed_no_cluster_found"):
        logged(made, line)


@scenario("ours", "envoy")
def answered_by_the_application(world):
    """Checks go on; with a cache the application's word, good or bad, is repeated for a while, and then asked for again."""
    made = site(world, health(pass_through_mode=True), health("/cached", pass_through_mode=True, cache_time="2s"))
    for _ in range(3):
        equal(asked(made), (200, "me"), "a check")
    equal(len(made.upstream.of("/health")), 3, "requests of the application")
    made.upstream.scripts["/cached"] = (b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n", False, False)
    # Envoy's word is forgotten at fixed times: a word may be short-lived.
    begun = time.monotonic()
    answers = []
    while time.monotonic() - begun < 1.5:
        answers.append(asked(made, "/cached"))
        time.sleep(0.02)
    equal(set(answers), {(503, "me")}, "what was said")
    calls = len(made.upstream.of("/cached"))
    check(1 <= calls <= 2 and len(answers) > 20, f"{calls} calls for {len(answers)} checks")
    logged(made, "/cached LH health_check_cached")
    del made.upstream.scripts["/cached"]
    until(lambda: asked(made, "/cached") == (200, "me"), "the new word", 5)
    check(len(made.upstream.of("/cached")) <= calls + 3, "the new word is kept")


@scenario("ours")
def refused_forms(world):
    """A cache without an application to ask is refused, as Envoy does."""
    whole = {"admin": {"address": r.address(harness.free_port())}, "static_resources": {"listeners": [{
        "name": "l", "address": r.address(harness.free_port()),
        "filter_chains": [{"filters": [r.http_manager({"route_config": r.table("i")}, [health(pass_through_mode=False, cache_time="1s")])]}]}]}}
    process = world.process("mesh-proxy", "-c", world.write("bad.json", whole))
    process.may_end = True
    until(lambda: not process.alive(), "its end")
    check("cache_time" in process.log(), process.log())
