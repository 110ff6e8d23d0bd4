"""gRPC's own xDS client on mesh-control, with no proxy in between: it resolves, calls, and follows every change."""

import concurrent.futures
import json
import os
import pathlib
import subprocess
import sys
import threading

import grpc
import harness
from control import Mesh, istio
from harness import check, equal, scenario, until

PORT = 7070
HOST = "greeter.shop.svc.cluster.local"


class Greeter:
    """A gRPC server that says its name."""

    def __init__(self, name):
        self.name, self.port, self.calls = name, harness.free_port(), 0
        self._server = grpc.server(concurrent.futures.ThreadPoolExecutor(4))

        def hello(_, context):
            self.calls += 1
            if dict(context.invocation_metadata()).get("fail"):
                context.abort(grpc.StatusCode.UNAVAILABLE, "as asked")
            return self.name.encode()

        method = grpc.unary_unary_rpc_method_handler(hello)
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("greeter.Greeter", {"Hello": method}),))
        self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        self._server.start()

    def close(self):
        self._server.stop(0)


class Client:
    """`xds_greeter.py` as a process."""

    def __init__(self, world, mesh, target=f"{HOST}:{PORT}", namespace="shop"):
        bootstrap = {
            "xds_servers": [{"server_uri": f"127.0.0.1:{mesh.plain}", "channel_creds": [{"type": "insecure"}], "server_features": ["xds_v3"]}],
            "node": {"id": f"sidecar~10.9.0.9~caller.{namespace}~{namespace}.svc.cluster.local", "cluster": "caller",
                     "metadata": {"GENERATOR": "grpc", "NAMESPACE": namespace}},
        }
        path = world.write(f"grpc-{harness.free_port()}.json", bootstrap)
        log = open(world.folder / "grpc-client.log", "ab")
        self._child = subprocess.Popen(
            [sys.executable, "-B", str(pathlib.Path(__file__).with_name("xds_greeter.py")), f"xds:///{target}"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
            env={**os.environ, "GRPC_XDS_BOOTSTRAP": str(path)})
        log.close()
        self._lock = threading.Lock()
        world.keep(self)

    def call(self, count=1, *headers):
        """Calls; how many each server answered, and failures."""
        with self._lock:
            self._child.stdin.write(" ".join([str(count), *headers]) + "\n")
            self._child.stdin.flush()
            line = self._child.stdout.readline()
        check(line, "the gRPC client ended")
        answer = json.loads(line)
        return answer["seen"], answer["failed"]

    def good(self, count=1, *headers):
        seen, failed = self.call(count, *headers)
        check(not failed, f"calls failed: {failed}")
        return seen

    def close(self):
        self._child.kill()
        self._child.wait()


def workload(greeter, version):
    return istio("WorkloadEntry", f"greeter-{greeter.name}", {
        "address": "127.0.0.1", "ports": {"grpc": greeter.port}, "labels": {"app": "greeter", "version": version}})


def greeters(world, count=2):
    """A mesh with a service whose servers are `v1`, `v2`, ..."""
    mesh = Mesh(world)
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "greeter", "namespace": "shop"},
               "spec": {"clusterIP": "10.96.0.70", "selector": {"app": "greeter"}, "ports": [{"name": "grpc", "port": PORT}]}}
    servers = [world.keep(Greeter(f"v{i + 1}")) for i in range(count)]
    mesh.put("service", service)
    mesh.put("workloads", *[workload(s, s.name) for s in servers])
    return mesh.start(), servers


def rule(subsets=("v1", "v2"), **policy):
    spec = {"host": "greeter", "subsets": [{"name": s, "labels": {"version": s}} for s in subsets]}
    if policy:
        spec["trafficPolicy"] = policy
    return istio("DestinationRule", "greeter", spec)


def routes(*http):
    return istio("VirtualService", "greeter", {"hosts": ["greeter"], "http": list(http)})


def to(subset, weight=None):
    target = {"destination": {"host": "greeter", "subset": subset}}
    return {**target, "weight": weight} if weight is not None else target


@scenario()
def resolves_and_calls(world):
    """A name becomes endpoints, calls reach all of them, and everything that was sent is accepted."""
    mesh, _ = greeters(world)
    client = Client(world, mesh)
    seen = client.good(40)
    check(set(seen) == {"v1", "v2"} and min(seen.values()) >= 10, f"spread {seen}")
    status = until(lambda: mesh.status("caller.shop"), "the client in syncz")
    equal(status["protocol"], "sotw", "protocol")
    for name, state in status["types"].items():
        equal((name, state["state"], state["nacks"]), (name, "SYNCED", 0), "state")
    equal(set(status["types"]), {"CDS", "EDS", "LDS", "RDS"}, "types asked for")


@scenario()
def follows_endpoints(world):
    """Endpoints come and go without a failed call."""
    mesh, servers = greeters(world, 3)
    client = Client(world, mesh)
    equal(set(client.good(30)), {"v1", "v2", "v3"}, "servers")
    for left in (servers[:1], servers[1:], servers[2:], servers):
        mesh.put("workloads", *[workload(s, s.name) for s in left])
        wanted = {s.name for s in left}
        until(lambda: set(client.good(12)) == wanted, f"calls to reach {wanted}")
    # All of them gone: calls fail rather than hang; and they come back.
    mesh.put("workloads", {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "none", "namespace": "shop"}})
    until(lambda: client.call(1)[1], "calls to fail without endpoints", 20)
    mesh.put("workloads", workload(servers[0], "v1"))
    until(lambda: client.call(1)[0] == {"v1": 1}, "calls to succeed again")


@scenario()
def follows_weights_and_headers(world):
    """Weights move from 100/0 by 80/20 to 0/100 without a failed call; headers choose before weights do."""
    mesh, _ = greeters(world)
    mesh.put("rule", rule())
    mesh.put("routes", routes({"route": [to("v1", 100), to("v2", 0)]}))
    client = Client(world, mesh)
    until(lambda: set(client.good(10)) == {"v1"}, "all to v1")
    mesh.put("routes", routes({"route": [to("v1", 80), to("v2", 20)]}))
    until(lambda: "v2" in client.good(10), "some to v2")
    seen = client.good(1000)
    check(140 <= seen.get("v2", 0) <= 260, f"a fifth to v2: {seen}")
    by_header = {"match": [{"headers": {"x-user": {"exact": "jason"}}}], "route": [to("v1")]}
    mesh.put("routes", routes(by_header, {"route": [to("v2")]}))
    until(lambda: set(client.good(10)) == {"v2"}, "all to v2")
    equal(client.good(20, "x-user=jason"), {"v1": 20}, "by header")
    equal(client.good(20, "x-user=somebody"), {"v2": 20}, "by another value")
    path = {"match": [{"uri": {"prefix": "/greeter.Greeter/H"}}], "route": [to("v1")]}
    mesh.put("routes", routes(path, {"route": [to("v2")]}))
    until(lambda: set(client.good(10)) == {"v1"}, "by path")
    mesh.drop("routes")
    until(lambda: set(client.good(20)) == {"v1", "v2"}, "both without a rule")


@scenario()
def outlives_the_control_plane(world):
    """Calls go on while mesh-control is gone, and changes arrive when it is back."""
    mesh, servers = greeters(world)
    client = Client(world, mesh)
    client.good(10)
    mesh.process.may_end = True
    mesh.process.close()
    for _ in range(5):
        client.good(20)
    mesh.put("workloads", workload(servers[1], "v2"))
    mesh.start()
    until(lambda: set(client.good(10)) == {"v2"}, "the change", 25)


@scenario(weight=2)
def an_unknown_name_fails(world):
    """A name that does not exist fails; a call that comes after it has come to be succeeds.

    gRPC itself waits 15 s before it believes that a listener does not exist, whatever the server says.
    """
    mesh, _ = greeters(world)
    client = Client(world, mesh, target="nobody.shop.svc.cluster.local:7070")
    _, failed = client.call(1)
    check(failed, "the call to a name that does not exist succeeded")
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "nobody", "namespace": "shop"},
               "spec": {"clusterIP": "10.96.0.71", "selector": {"app": "greeter"}, "ports": [{"name": "grpc", "port": PORT}]}}
    mesh.put("nobody", service)
    until(lambda: client.call(1)[0], "the name that came to be")


@scenario()
def retries(world):
    """A retry policy of the control plane is the client's: a failing call is tried again."""
    mesh, servers = greeters(world, 1)
    mesh.put("routes", routes({"route": [{"destination": {"host": "greeter"}}], "retries": {"attempts": 3, "retryOn": "unavailable"}}))
    client = Client(world, mesh)
    client.good(1)
    until(lambda: mesh.status("caller.shop")["types"]["RDS"]["state"] == "SYNCED", "routes")
    before = servers[0].calls
    _, failed = client.call(1, "fail=yes")
    check(any("as asked" in text for text in failed), f"failures {failed}")
    equal(servers[0].calls - before, 4, "tries")
