"""mesh-control as a process on a folder, and a client that speaks ADS to it frame by frame, with nobody in between."""

import json
import os
import queue
import subprocess
import threading
import time

import grpc
from envoy.config.core.v3 import base_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.service.discovery.v3 import discovery_pb2 as discovery
from google.protobuf import struct_pb2

import ads_server as ads
import harness
from harness import Failed, check, get, until

PREFIX = f"/{ads.SERVICE}/"
QUIET = 0.35  # nothing is expected to come for this long


class Mesh:
    """The control plane and its folder."""

    def __init__(self, world, *arguments):
        self.world = world
        self.config, self.state = world.folder / "config", world.folder / "state"
        self.config.mkdir()
        self.tls, self.plain, self.http = harness.free_port(), harness.free_port(), harness.free_port()
        self.arguments = ["--config-dir", self.config, "--state-dir", self.state, "--xds-addr", f"127.0.0.1:{self.tls}",
                          "--plaintext-xds-addr", f"127.0.0.1:{self.plain}", "--http-addr", f"127.0.0.1:{self.http}", *arguments]

    def start(self):
        self.process = self.world.process("mesh-control", *self.arguments)
        until(lambda: get(self.http, "/ready", host="localhost").status == 200, "mesh-control to be ready")
        return self

    def put(self, file, *objects):
        """Writes objects, JSON in YAML's clothes, so that the watcher sees a whole file only."""
        path = self.config / f"{file}.yaml"
        whole = self.world.folder / f"{file}.part"
        whole.write_text("\n---\n".join(json.dumps(o) for o in objects))
        os.replace(whole, path)

    def drop(self, file):
        (self.config / f"{file}.yaml").unlink()

    def page(self, path):
        answer = get(self.http, path, host="localhost")
        check(answer.status == 200, f"{path}: {answer}")
        return json.loads(answer.body)

    def status(self, proxy):
        return next((p for p in self.page("/debug/syncz") if p["proxy"] == proxy), None)

    def token(self, namespace, account):
        command = [harness.BIN / "mesh-control", "token", "--state-dir", self.state, "-n", namespace, "--service-account", account]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=20).stdout.strip()

    def meshctl(self, *arguments):
        """Exit code and output."""
        environment = {**os.environ, "MESHCTL_CONTROL": f"127.0.0.1:{self.http}"}
        done = subprocess.run([harness.BIN / "meshctl", *arguments], capture_output=True, text=True, timeout=20, env=environment)
        return done.returncode, done.stdout + done.stderr

    def root(self):
        return (self.state / "root-cert.pem").read_bytes()

    def channel(self, token=None):
        """To the plaintext address; with a token (or the empty one) to the one with TLS."""
        options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
        if token is None:
            return grpc.insecure_channel(f"127.0.0.1:{self.plain}", options)
        options.append(("grpc.ssl_target_name_override", "istiod.istio-system.svc"))
        return grpc.secure_channel(f"127.0.0.1:{self.tls}", grpc.ssl_channel_credentials(self.root()), options)


def node(name, namespace="shop", kind="sidecar", ip="10.9.0.1", **metadata):
    fields = struct_pb2.Struct()
    fields.update({"NAMESPACE": namespace, **metadata})
    return base_pb2.Node(id=f"{kind}~{ip}~{name}.{namespace}~{namespace}.svc.cluster.local", cluster="c", metadata=fields)


class Client:
    """One stream to the control plane."""

    def __init__(self, mesh, variant, who=None, token=None):
        self.delta = variant == "delta"
        self.node = who or node("web-1")
        self.received = []  # responses, as they came
        self.ended = None  # the status of the stream
        self._out, self._seen = queue.Queue(), threading.Condition()
        self._channel = mesh.channel(token)
        method = PREFIX + ("DeltaAggregatedResources" if self.delta else "StreamAggregatedResources")
        answer = discovery.DeltaDiscoveryResponse if self.delta else discovery.DiscoveryResponse
        call = self._channel.stream_stream(
            method, request_serializer=lambda m: m if isinstance(m, bytes) else m.SerializeToString(), response_deserializer=answer.FromString)
        metadata = [("authorization", f"Bearer {token}")] if token else []
        self._call = call(iter(self._out.get, None), metadata=metadata)
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        try:
            for response in self._call:
                with self._seen:
                    self.received.append(response)
                    self._seen.notify_all()
            status = (grpc.StatusCode.OK, "")
        except grpc.RpcError as error:
            status = (error.code(), error.details() or "")
        with self._seen:
            self.ended = status
            self._seen.notify_all()

    # Requests.

    def send(self, type_url, **fields):
        """A raw request; the first one carries the node."""
        request = (discovery.DeltaDiscoveryRequest if self.delta else discovery.DiscoveryRequest)(type_url=type_url)
        if self.node is not None:
            request.node.CopyFrom(self.node)
            self.node = None
        error = fields.pop("error", None)
        for name, value in fields.items():
            if isinstance(value, (list, set, tuple)):
                getattr(request, name).extend(sorted(value))
            elif isinstance(value, dict):
                getattr(request, name).update(value)
            else:
                setattr(request, name, value)
        if error is not None:
            request.error_detail.code, request.error_detail.message = 3, error
        self._out.put(request)

    def send_raw(self, data):
        self._out.put(data)

    def ask(self, type_url, *names, versions=None):
        """Subscribes: to names, or as a whole."""
        if self.delta:
            self.send(type_url, resource_names_subscribe=names, initial_resource_versions=versions or {})
        else:
            self.send(type_url, resource_names=names)

    def answer(self, response, error=None, names=(), version=None):
        """Acknowledges a response, or refuses it."""
        if self.delta:
            self.send(response.type_url, response_nonce=response.nonce, error=error)
        else:
            self.send(response.type_url, response_nonce=response.nonce, error=error, resource_names=names,
                      version_info=response.version_info if version is None else version)

    # Responses.

    def next(self, type_url=None, patience=harness.PATIENCE):
        """Takes the next response, which must be of this type."""
        with self._seen:
            if not self._seen.wait_for(lambda: self.received or self.ended, patience) or not self.received:
                raise Failed(f"no response ({ads.short(type_url or '')}); stream: {self.ended}")
            response = self.received.pop(0)
        if type_url is not None and response.type_url != type_url:
            raise Failed(f"a response of {ads.short(response.type_url)} came, wanted {ads.short(type_url)}")
        return response

    def get(self, type_url, *names):
        """Subscribes, takes the answer and acknowledges it; the response."""
        self.ask(type_url, *names)
        response = self.next(type_url)
        self.answer(response, names=names)
        return response

    def silent(self, what, duration=QUIET):
        time.sleep(duration)
        with self._seen:
            if self.received:
                response = self.received[0]
                raise Failed(f"{what}: a response of {ads.short(response.type_url)} came with {names(response)[:5]}, removed {gone(response)[:5]}")
            check(not self.ended, f"{what}: the stream ended: {self.ended}")

    def status(self, patience=harness.PATIENCE):
        """How the stream ended."""
        with self._seen:
            check(self._seen.wait_for(lambda: self.ended, patience), "the stream does not end")
            return self.ended

    def close(self):
        self._out.put(None)
        self._call.cancel()
        self._channel.close()


def name_of(resource):
    """The name of a resource: field 1 of every type, and written first."""
    size, shift, at = 0, 0, 1
    while True:
        size |= (resource.value[at] & 127) << shift
        shift, at = shift + 7, at + 1
        if resource.value[at - 1] < 128:
            return resource.value[at:at + size].decode()


def names(response):
    if isinstance(response, discovery.DeltaDiscoveryResponse):
        return [r.name for r in response.resources]
    return [name_of(r) for r in response.resources]


def gone(response):
    return list(getattr(response, "removed_resources", []))


def versions(response):
    return {r.name: r.version for r in response.resources}


def members(response, name):
    """Ports of an assignment in a response."""
    for resource in response.resources:
        body = resource.resource if isinstance(response, discovery.DeltaDiscoveryResponse) else resource
        message = endpoint_pb2.ClusterLoadAssignment()
        message.ParseFromString(body.value)
        if message.cluster_name == name:
            return sorted(e.endpoint.address.socket_address.port_value for g in message.endpoints for e in g.lb_endpoints)
    return None


# Manifests.


def service(name, namespace="shop", port=80, protocol="http", target=None):
    ports = [{"name": protocol, "port": port, "targetPort": target or port}]
    last = sum(name.encode()) % 250
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": namespace},
            "spec": {"clusterIP": f"10.96.{len(name)}.{last}", "ports": ports}}


def slice_of(service_name, ports, namespace="shop", protocol="http", name=None, address="127.0.0.1"):
    """Endpoints of a service, all at one address: one slice a port."""
    return [{
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": f"{name or service_name}-{port}", "namespace": namespace, "labels": {"kubernetes.io/service-name": service_name}},
        "ports": [{"name": protocol, "port": port}],
        "endpoints": [{"addresses": [address], "conditions": {"ready": True}}],
    } for port in ports]


def host(name, namespace="shop"):
    return f"{name}.{namespace}.svc.cluster.local"


def outbound(name, port=80, subset="", namespace="shop"):
    return f"outbound|{port}|{subset}|{host(name, namespace)}"


def istio(kind, name, spec, namespace="shop", group="networking"):
    return {"apiVersion": f"{group}.istio.io/v1", "kind": kind, "metadata": {"name": name, "namespace": namespace}, "spec": spec}
