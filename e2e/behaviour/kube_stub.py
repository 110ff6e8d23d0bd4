"""As much of a Kubernetes API server as the real istiod needs to read a mesh: LIST and WATCH of objects that are put here.

Writes are accepted and forgotten. What an API server would default is in the manifests.
"""

import http.server
import json
import queue
import threading
import urllib.parse

GATEWAY_API = "gateway.networking.k8s.io"
# Kind: group, plural.
KINDS = {
    "Namespace": ("", "namespaces"), "Service": ("", "services"), "Pod": ("", "pods"), "Secret": ("", "secrets"),
    "ConfigMap": ("", "configmaps"), "EndpointSlice": ("discovery.k8s.io", "endpointslices"),
    "VirtualService": ("networking.istio.io", "virtualservices"), "DestinationRule": ("networking.istio.io", "destinationrules"),
    "Gateway": ("networking.istio.io", "gateways"), "ServiceEntry": ("networking.istio.io", "serviceentries"),
    "WorkloadEntry": ("networking.istio.io", "workloadentries"), "WorkloadGroup": ("networking.istio.io", "workloadgroups"),
    "Sidecar": ("networking.istio.io", "sidecars"), "EnvoyFilter": ("networking.istio.io", "envoyfilters"),
    "ProxyConfig": ("networking.istio.io", "proxyconfigs"), "PeerAuthentication": ("security.istio.io", "peerauthentications"),
    "AuthorizationPolicy": ("security.istio.io", "authorizationpolicies"),
    "RequestAuthentication": ("security.istio.io", "requestauthentications"), "Telemetry": ("telemetry.istio.io", "telemetries"),
    "WasmPlugin": ("extensions.istio.io", "wasmplugins"), "GatewayClass": (GATEWAY_API, "gatewayclasses"),
    "HTTPRoute": (GATEWAY_API, "httproutes"), "GRPCRoute": (GATEWAY_API, "grpcroutes"),
    "ReferenceGrant": (GATEWAY_API, "referencegrants"), "TLSRoute": (GATEWAY_API, "tlsroutes"), "TCPRoute": (GATEWAY_API, "tcproutes"),
    "BackendTLSPolicy": (GATEWAY_API, "backendtlspolicies"), "ListenerSet": (GATEWAY_API, "listenersets"),
}
CRDS = [f"{plural}.{group}" for group, plural in KINDS.values() if group.endswith("istio.io") or group == GATEWAY_API]
CRDS.append(f"gateways.{GATEWAY_API}")


def place(item):
    """Group and plural of an object."""
    group = item["apiVersion"].rpartition("/")[0]
    return group, KINDS[item["kind"]][1]


class Kube:
    """The objects and who watches them."""

    def __init__(self, listener):
        self._lock, self._version = threading.Lock(), 10
        self._objects, self._texts = {}, {}  # (group, plural): {(namespace, name): object}; the same as they were put
        self._watchers = {}
        stub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                stub._get(self)

            def do_POST(self):
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                answer(self, 201, body)

            do_PUT = do_PATCH = do_DELETE = do_POST

            def log_message(self, *_):
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_):
                pass

        self._server = Server(listener.getsockname(), Handler, bind_and_activate=False)
        self._server.socket.close()
        self._server.socket = listener
        threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True).start()

    def replace(self, objects):
        """These are all objects from now on."""
        with self._lock:
            wanted = {(place(o), o["metadata"].get("namespace", ""), o["metadata"]["name"]): o for o in objects}
            for key in set(self._texts) - set(wanted):
                (kind, *name) = key
                gone = self._objects[kind].pop(tuple(name))
                del self._texts[key]
                self._tell(kind, "DELETED", gone)
            for key, item in wanted.items():
                text, (kind, *name) = json.dumps(item, sort_keys=True), key
                if self._texts.get(key) == text:
                    continue
                known = key in self._texts
                self._texts[key] = text
                self._version += 1
                item = json.loads(text)
                item["metadata"].setdefault("creationTimestamp", "2026-01-01T00:00:00Z")
                item["metadata"] |= {"resourceVersion": str(self._version), "uid": "/".join([kind[1], *name]), "generation": self._version}
                self._objects.setdefault(kind, {})[tuple(name)] = item
                self._tell(kind, "MODIFIED" if known else "ADDED", item)

    def close(self):
        self._server.shutdown()
        self._server.server_close()

    def _tell(self, kind, event, item):
        for watcher in self._watchers.get(kind, []):
            watcher.put({"type": event, "object": item})

    def _get(self, request):
        url = urllib.parse.urlsplit(request.path)
        query, parts = dict(urllib.parse.parse_qsl(url.query)), url.path.strip("/").split("/")
        if parts[0] == "version":
            return answer(request, 200, {"major": "1", "minor": "34", "gitVersion": "v1.34.0"})
        if parts == ["api"]:
            return answer(request, 200, {"kind": "APIVersions", "versions": ["v1"]})
        if parts == ["apis"]:
            return answer(request, 200, {"kind": "APIGroupList", "apiVersion": "v1", "groups": []})
        group, rest = ("", parts[2:]) if parts[0] == "api" else (parts[1], parts[3:])
        if not rest:
            return answer(request, 200, {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "v1", "resources": []})
        namespace = ""
        if rest[0] == "namespaces" and len(rest) > 2:
            namespace, rest = rest[1], rest[2:]
        kind = (group, rest[0])
        if len(rest) > 1:
            with self._lock:
                found = self._objects.get(kind, {}).get((namespace, rest[1]))
            return answer(request, 200, found) if found else answer(request, 404, {"kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404})
        if query.get("sendInitialEvents") == "true":
            # Streaming lists are declined: clients fall back to LIST and WATCH.
            return answer(request, 422, {"kind": "Status", "status": "Failure", "reason": "Invalid", "code": 422})
        if query.get("watch") in ("true", "1"):
            return self._watch(request, kind, int(query.get("resourceVersion") or 0))
        with self._lock:
            items, version = list(self._objects.get(kind, {}).values()), str(self._version)
        if rest[0] == "customresourcedefinitions":
            notes = {"gateway.networking.k8s.io/bundle-version": "v1.7.0", "gateway.networking.k8s.io/channel": "experimental"}
            items = [{"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
                      "metadata": {"name": name, "resourceVersion": "1", "annotations": notes if GATEWAY_API in name else {}}} for name in CRDS]
            return answer(request, 200, {"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": {"resourceVersion": version}, "items": items})
        answer(request, 200, {"metadata": {"resourceVersion": version}, "items": items})

    def _watch(self, request, kind, since):
        events = queue.Queue()
        with self._lock:
            # What changed between the client's LIST and now.
            for item in self._objects.get(kind, {}).values():
                if since and int(item["metadata"]["resourceVersion"]) > since:
                    events.put({"type": "MODIFIED", "object": item})
            self._watchers.setdefault(kind, []).append(events)
        request.send_response(200)
        request.send_header("content-type", "application/json")
        request.send_header("transfer-encoding", "chunked")
        request.end_headers()
        try:
            while True:
                line = json.dumps(events.get()).encode() + b"\n"
                request.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
                request.wfile.flush()
        finally:
            with self._lock:
                self._watchers[kind].remove(events)


def answer(request, status, content):
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    request.send_response(status)
    request.send_header("content-type", "application/json")
    request.send_header("content-length", str(len(body)))
    request.end_headers()
    request.wfile.write(body)
