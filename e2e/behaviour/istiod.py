"""A mesh under the real istiod, by hand: what clients and backends see there is what ours must make them see.

`run.py BIN_DIR --istiod PATH/pilot-discovery --flavour istiod-envoy --flavour istiod-ours`. Certificates and tokens still
come from mesh-control; configuration from istiod in plaintext, hence no Secrets.
"""

import json
import os
import time

import yaml

import client
import kube_stub
import manifests
import proxies
import world

# Secrets and trust anchors are not to be had without TLS to istiod.
WITHOUT_SECRETS = ("gateway/tls-simple", "gateway/tls-secret-missing", "gateway_api/tls-terminate", "gateway_api/backend-tls", "gateway_api/backend-tls-names",
                   "gateway_api/backend-tls-oldest", "gateway_api/backend-tls-port")
_ENVIRONMENT = {
    "PILOT_ENABLE_METADATA_EXCHANGE": "false", "PILOT_ENABLE_ALPN_FILTER": "false", "PILOT_DISABLE_MX_ALPN": "true",
    "INJECT_ENABLED": "false", "ENABLE_CA_SERVER": "false", "ENABLE_LEADER_ELECTION": "false", "POD_NAME": "istiod",
    "POD_NAMESPACE": manifests.SYSTEM, "ISTIOD_CUSTOM_HOST": "localhost", "PILOT_CERT_PROVIDER": "none", "VALIDATION_WEBHOOK_CONFIG_NAME": "",
}


class Istiod(world.World):
    """`flavour`: `istiod-envoy` or `istiod-ours`."""

    foreign_control = True

    def __init__(self, flavour, binaries, envoy, istiod):
        super().__init__(flavour, binaries, envoy)
        self._istiod = istiod

    def _control(self):
        super()._control()
        listener = self.namespace.socket()
        listener.bind(("127.0.0.1", 8001))
        listener.listen(128)
        self.kube = kube_stub.Kube(listener)
        self._things.append(self.kube)
        self.kube.replace(manifests.world())
        config = self.folder / "kubeconfig"
        config.write_text(json.dumps({
            "apiVersion": "v1", "kind": "Config", "current-context": "stub", "clusters": [{"name": "stub", "cluster": {"server": "http://127.0.0.1:8001"}}],
            "contexts": [{"name": "stub", "context": {"cluster": "stub", "user": "stub"}}], "users": [{"name": "stub", "user": {}}]}))
        self.settle({})
        mesh = self._mesh()
        command = [self._istiod, "discovery", "--kubeconfig", config, "--meshConfig", mesh, "--grpcAddr", f"{manifests.CONTROL_IP}:15010",
                   "--secureGRPCAddr", "", "--httpsAddr", "", "--httpAddr", "127.0.0.1:8080", "--monitoringAddr", "127.0.0.1:15024", "--ctrlz_port", "0",
                   "--shutdownDuration", "0s", "--clusterID", "Kubernetes"]
        self._things.append(proxies.Process(self.folder, self.namespace, "istiod", command, environment=_ENVIRONMENT))
        self._until(lambda: client.http_request(self.namespace, ("127.0.0.1", 8080), "GET", "/ready", "localhost", []).status == 200,
                    "istiod to be ready", world.PATIENCE)

    def _write(self, name, objects):
        super()._write(name, objects)
        if name == "case":
            case = list(yaml.safe_load_all(objects)) if isinstance(objects, str) else objects
            self.kube.replace(manifests.world() + [as_stored(o) for o in case if o])

    def _mesh(self):
        return self.folder / "mesh.yaml"

    def settle(self, settings):
        super().settle(settings)
        whole = self.folder / "mesh.part"
        whole.write_text(next(o["data"]["mesh"] for o in manifests.world(settings) if o["kind"] == "ConfigMap")
                         + yaml.safe_dump({"defaultProviders": {"metrics": []}, "trustDomain": "cluster.local"}))
        os.replace(whole, self._mesh())

    def _synced(self):
        # Its state is not ours to read; it bundles changes for 100 ms.
        time.sleep(0.3)
        return True

    def new_rejections(self):
        return []


def as_stored(item):
    """As an API server hands it out."""
    if "stringData" in item:
        import base64

        item = {**item, "data": {k: base64.b64encode(v.encode()).decode() for k, v in item.pop("stringData").items()}}
    return item
