"""A pod as `meshctl inject` writes it, run without Kubernetes: its init container, its sidecar with the environment and the
volumes that the pod says, and the application's probes as the kubelet asks them."""

import http.client
import json
import os
import pathlib
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import harness
from harness import check, equal, scenario, until

sys.path.append(str(pathlib.Path(__file__).parent.parent / "behaviour"))  # net
import net  # noqa: E402

POD_IP, CONTROL_IP = "10.79.0.2", "10.79.0.1"
POD = {
    "apiVersion": "v1", "kind": "Pod",
    "metadata": {"name": "web-1", "namespace": "shop", "labels": {"app": "web", "version": "v3"}},
    "spec": {"serviceAccountName": "web", "containers": [{
        "name": "web", "image": "web:1", "ports": [{"name": "http", "containerPort": 8080}],
        "readinessProbe": {"httpGet": {"path": "/ready", "port": "http", "httpHeaders": [{"name": "X-Own", "value": "yes"}]}},
        "livenessProbe": {"tcpSocket": {"port": 8080}},
        "startupProbe": {"tcpSocket": {"port": 9999}},
    }]},
}
# Fields of a pod that variables may stand for.
FIELDS = {"metadata.name": "web-1", "metadata.namespace": "shop", "status.podIP": POD_IP, "spec.serviceAccountName": "web",
          "status.hostIP": CONTROL_IP}


class Application:
    """Answers with the path and the header of the probe; 503 where it is told to."""

    def __init__(self, namespace):
        self.status, application = 200, self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                body = f"{self.path} {self.headers.get('x-own')}".encode()
                self.send_response(application.status)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        with namespace.entered():
            self._server = ThreadingHTTPServer(("0.0.0.0", 8080), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()


def get(namespace, port, path):
    """Status and body, asked from a namespace."""
    connection = http.client.HTTPConnection(POD_IP, port, timeout=10)
    with namespace.entered():
        connection.connect()
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def injected(world, *flags):
    """The pod with its sidecar."""
    path = world.write("pod.json", POD)
    command = [harness.BIN / "meshctl", "inject", "-f", path, "--set", f"global.caAddress={CONTROL_IP}:15012", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    equal(done.returncode, 0, done.stderr)
    return json.loads(done.stdout)


def environment(container):
    """As the kubelet sets it."""
    given = {}
    for variable in container["env"]:
        given[variable["name"]] = variable["value"] if "value" in variable else FIELDS[variable["valueFrom"]["fieldRef"]["fieldPath"]]
    return given


def named(containers, name):
    return next(c for c in containers if c["name"] == name)


class Pod:
    """The pod's network, and a folder for each of its volumes."""

    def __init__(self, world, pod):
        self.world, self.spec = world, pod["spec"]
        world.folder.chmod(0o755)
        network = world.keep(net.Network(world.folder.name.removeprefix("foreign-"), CONTROL_IP))
        self.outside, self.inside = network.root, network.pod("pod", POD_IP)
        self.program = world.folder / "mesh-proxy"
        self.program.write_bytes((harness.BIN / "mesh-proxy").read_bytes())
        self.program.chmod(0o755)
        self.volumes = {v["name"]: world.folder / "volumes" / v["name"] for v in self.spec["volumes"]}
        for volume, folder in self.volumes.items():
            folder.mkdir(parents=True)
            folder.chmod(0o777)
        labels = POD["metadata"]["labels"]
        (self.volumes["istio-podinfo"] / "labels").write_text("".join(f"{k}={json.dumps(v)}\n" for k, v in labels.items()))

    def control(self):
        """A control plane outside, and what Kubernetes would mount of it."""
        config, state = self.world.folder / "config", self.world.folder / "state"
        config.mkdir()
        program = harness.BIN / "mesh-control"
        self.world.process("/usr/bin/nsenter", f"--net=/run/netns/{self.outside.name}", program, "--config-dir", config, "--state-dir", state,
                           "--xds-addr", f"{CONTROL_IP}:15012", "--http-addr", "127.0.0.1:15014")
        until((state / "root-cert.pem").exists, "the root certificate")
        (self.volumes["istiod-ca-cert"] / "root-cert.pem").write_text((state / "root-cert.pem").read_text())
        token = subprocess.run([program, "token", "--state-dir", state, "--namespace", "shop", "--service-account", "web"],
                               check=True, capture_output=True, text=True, timeout=20).stdout
        (self.volumes["istio-token"] / "istio-token").write_text(token)

    def command(self, container):
        """What a container runs, its volumes mounted, as the user that it says."""
        # Below what is mounted, nothing of this machine is to be seen or left.
        mounts = ["mount -t tmpfs none /etc", "mount -t tmpfs none /run"]
        for mount in container.get("volumeMounts", []):
            mounts.append(f"mkdir -p {mount['mountPath']} && mount --bind {self.volumes[mount['name']]} {mount['mountPath']}")
        user = str(container["securityContext"]["runAsUser"])
        identity = ["setpriv", "--pdeathsig", "KILL", "--reuid", user, "--regid", user, "--clear-groups", "--"]
        shell = " && ".join(mounts) + ' && exec "$@"'
        return ["/usr/bin/nsenter", f"--net=/run/netns/{self.inside.name}", "unshare", "--mount", "sh", "-c", shell, "sh", *identity,
                str(self.program), *container["args"]]

    def init(self):
        container = named(self.spec["initContainers"], "istio-init")
        done = subprocess.run(self.command(container), capture_output=True, text=True, timeout=60)
        equal(done.returncode, 0, done.stderr)

    def sidecar(self, container):
        name, *arguments = self.command(container)
        return self.world.process(name, *arguments, environment=environment(container))

    def proxy(self, *words):
        command = ["nsenter", f"--net=/run/netns/{self.inside.name}", str(self.program), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        return done.returncode, done.stderr


def run(world, flags, sidecar_in):
    document = injected(world, *flags)
    application = document["spec"]["containers"]
    pod = Pod(world, document)
    app = world.keep(Application(pod.inside))
    code, log = pod.proxy("wait", "--timeout", "600ms")
    check(code == 1 and "not ready" in log, f"before the proxy is there: {code} {log}")
    pod.init()
    pod.control()
    process = pod.sidecar(named(document["spec"][sidecar_in], "istio-proxy"))
    code, log = pod.proxy("wait")
    equal(code, 0, lambda: f"{log} {process.log()[-2000:]}")
    return pod, app, named(application, "web"), process


@scenario("initContainers", "containers")
def a_pod_that_was_injected_runs(world):
    """It becomes ready, its traffic goes through the sidecar, and its probes tell how the application is."""
    flags = () if world.variant == "initContainers" else ("--set", "pilot.env.ENABLE_NATIVE_SIDECARS=false")
    pod, app, web, process = run(world, flags, world.variant)
    equal(get(pod.outside, 15021, "/healthz/ready")[0], 200, "readiness from outside")

    def probe(kind):
        action = web[kind]["httpGet"]
        return get(pod.outside, action["port"], action["path"])[0]

    equal([probe(k) for k in ("readinessProbe", "livenessProbe", "startupProbe")], [200, 200, 500], "probes")
    app.status = 503
    equal((probe("readinessProbe"), probe("livenessProbe")), (503, 200), "probes of an application that is not ready")
    app.status = 200
    equal(get(pod.outside, 8080, "/called"), (200, "/called None"), "a call")
    metrics = get(pod.outside, 15020, "/stats/prometheus")[1]
    served = [line for line in metrics.splitlines() if line.startswith("istio_requests_total") and 'reporter="destination"' in line]
    check(len(served) == 1 and 'destination_canonical_service="web"' in served[0] and 'destination_workload="web-1"' in served[0],
          lambda: f"metrics of the call: {served}")
    equal(get(pod.outside, 15020, "/app-health/web/nothing")[0], 404, "a probe that is not there")
    code, log = pod.proxy("capture", "verify")
    check(code == 0, lambda: f"verified beside the proxy: {log}")
    kept = sorted(os.listdir(pod.volumes["istio-envoy"]))
    check(kept, "key and certificate are kept in the volume")
    check(process.alive(), "the proxy runs")
