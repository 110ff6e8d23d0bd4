"""The proxies under test, in the pods of a world: ours as sidecar and gateway, and stock Envoy under the same control plane.

Knows nothing of cases.
"""

import json
import os
import subprocess

import manifests
from net import PROXY_ID

# A stock Envoy has no filters of Istio's own build; Istio's control plane is told so by its version and by flags.
ISTIO_VERSION = "1.30.0"


class Process:
    """A program in a namespace, with its log; dies with this one."""

    def __init__(self, folder, namespace, name, command, user=None, environment=None, resolvers=None):
        """`resolvers`: a file that stands for `/etc/resolv.conf`."""
        self.name, self.log_path = name, folder / f"{name}.log"
        self.log_path.touch()
        self.log_path.chmod(0o666)  # /dev/stdout is opened again by path, by whoever the proxy runs as
        identity = ["--reuid", user, "--regid", user, "--clear-groups"] if user else []
        bound = ["unshare", "--mount", "sh", "-c", 'mount --bind "$0" /etc/resolv.conf && exec "$@"', resolvers] if resolvers else []
        wrapped = ["nsenter", f"--net=/run/netns/{namespace.name}", *bound, "setpriv", "--pdeathsig", "KILL", *identity, "--", *command]
        with open(self.log_path, "ab") as log:
            self.child = subprocess.Popen(list(map(str, wrapped)), stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                                          env={**os.environ, **(environment or {})})

    def alive(self):
        return self.child.poll() is None

    def log(self):
        return self.log_path.read_text("utf-8", "replace")

    def lines(self, case):
        """Access log lines of a request, as dictionaries."""
        found = []
        for line in self.log().splitlines():
            if line.startswith(f"case={case} "):
                found.append(dict(piece.partition("=")[::2] for piece in line.split(" ")))
        return found

    def close(self):
        if self.alive():
            self.child.terminate()
            try:
                self.child.wait(3)
            except subprocess.TimeoutExpired:
                self.child.kill()
        self.child.wait()


def ours(world, name, pod, token):
    """Command of our own proxy."""
    ip, namespace, account, labels = manifests.PROXIES[name]
    mode = "gateway" if name.startswith("gateway") else "sidecar"
    command = [world.binary("mesh-proxy"), mode, "--control", f"{manifests.CONTROL_IP}:15012",
               "--root-cert", world.state / "root-cert.pem", "--token", token, "--id", f"{manifests.pod_name(name)}.{namespace}",
               "--ip", ip, "--service-account", account, "--concurrency", "1",
               "--interception-mode", interception(name)]
    if name in manifests.OURS_ONLY:
        command += ["--dns-capture"]
    for key, value in labels.items():
        command += ["--label", f"{key}={value}"]
    return [Process(world.folder, pod, name, command, PROXY_ID, resolvers=world.resolvers)]


def interception(name):
    return "NONE" if name in ("explicit", "stranger") else "REDIRECT"


def envoy(world, name, pod, token):
    """A stock Envoy, with our agent for its certificates beside it."""
    return _by_bootstrap(world, name, pod, token, world.envoy)


def ours_as_envoy(world, name, pod, token):
    """Our own proxy, started as an Envoy is."""
    return _by_bootstrap(world, name, pod, token, world.binary("mesh-proxy"))


def _by_bootstrap(world, name, pod, token, program):
    ip, namespace, account, labels = manifests.PROXIES[name]
    folder = world.folder / name
    folder.mkdir()
    os.chown(folder, PROXY_ID, PROXY_ID)
    socket = folder / "sds.sock"
    agent = [world.binary("mesh-proxy"), "agent", "--control", f"{manifests.CONTROL_IP}:15012",
             "--root-cert", world.state / "root-cert.pem", "--token", token, "--socket", socket]
    kind = "router" if name.startswith("gateway") else "sidecar"
    node = {
        "id": f"{kind}~{ip}~{manifests.pod_name(name)}.{namespace}~{namespace}.svc.cluster.local",
        "cluster": f"{account}.{namespace}",
        "metadata": {
            "NAME": manifests.pod_name(name), "NAMESPACE": namespace, "LABELS": labels, "SERVICE_ACCOUNT": account,
            "CLUSTER_ID": "Kubernetes", "ISTIO_VERSION": ISTIO_VERSION, "INSTANCE_IPS": ip, "INTERCEPTION_MODE": interception(name),
            "WORKLOAD_NAME": account, "PROXY_CONFIG": {}, "HTTP_PROXY_PORT": "15002",
        },
    }
    path = folder / "envoy.json"
    path.write_text(json.dumps(bootstrap(world, node, socket, token.read_text().strip())))
    run = [program, "-c", path, "--concurrency", "1", "-l", "warning", "--disable-hot-restart",
           "--file-flush-interval-msec", "50", "--drain-time-s", "1"]
    return [Process(world.folder, pod, name, run, PROXY_ID, resolvers=world.resolvers), Process(world.folder, pod, f"{name}-agent", agent, PROXY_ID)]


def bootstrap(world, node, socket, token):
    """An Envoy bootstrap file: ADS over TLS with the workload's token, or in plaintext under a foreign control plane."""
    http2 = {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": {}}}}

    def endpoint(address):
        return [{"lb_endpoints": [{"endpoint": {"address": address}}]}]

    def plain(ip, port):
        return {"socket_address": {"address": ip, "port_value": port}}

    ads = {"name": "xds-grpc", "type": "STATIC", "connect_timeout": "1s", "typed_extension_protocol_options": http2}
    if world.foreign_control:
        ads["load_assignment"] = {"cluster_name": "xds-grpc", "endpoints": endpoint(plain(manifests.CONTROL_IP, 15010))}
    else:
        ads["load_assignment"] = {"cluster_name": "xds-grpc", "endpoints": endpoint(plain(manifests.CONTROL_IP, 15012))}
        ads["transport_socket"] = {"name": "tls", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            "sni": "istiod.istio-system.svc",
            "common_tls_context": {
                "tls_params": {"tls_maximum_protocol_version": "TLSv1_3"},
                "validation_context": {
                    "trusted_ca": {"filename": str(world.state / "root-cert.pem")},
                    "match_typed_subject_alt_names": [{"san_type": "DNS", "matcher": {"exact": "istiod.istio-system.svc"}}]}}}}
    sds = {"name": "sds-grpc", "type": "STATIC", "connect_timeout": "1s", "typed_extension_protocol_options": http2,
           "load_assignment": {"cluster_name": "sds-grpc", "endpoints": endpoint({"pipe": {"path": str(socket)}})}}
    service = {"envoy_grpc": {"cluster_name": "xds-grpc"}, "initial_metadata": [{"key": "authorization", "value": f"Bearer {token}"}]}
    source = {"ads": {}, "initial_fetch_timeout": "0s", "resource_api_version": "V3"}
    kind = "DELTA_GRPC" if world.delta else "GRPC"
    return {
        "node": node,
        "admin": {"address": plain("127.0.0.1", 15000)},
        "static_resources": {"clusters": [ads, sds]},
        "dynamic_resources": {
            "ads_config": {"api_type": kind, "transport_api_version": "V3", "set_node_on_first_message_only": True, "grpc_services": [service]},
            "cds_config": source, "lds_config": source},
    }
