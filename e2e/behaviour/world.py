"""A mesh of one flavour of proxies that stands while case after case is written into its folder."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
import threading
import time

import authorizer
import certificates
import client
import collector
import forward_proxy
import issuer
import manifests
import names
import net
import proxies
from backends import Backends, Calls
from manifests import ADMIN_PORT, APP_PORT, CONTROL_IP, EXTERNAL, OURS_ONLY, PROXIES

PATIENCE = 30.0  # for a start
IN_FORCE = 5.0  # for a change


class World:
    """Network, applications, control plane and proxies. `flavour`: `ours`, `envoy` (delta), `envoy-sotw` (`istiod.py`: more)."""

    foreign_control = False

    def __init__(self, flavour, binaries, envoy):
        self.flavour, self.delta, self.envoy = flavour, flavour != "envoy-sotw", envoy
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix=f"behaviour-{flavour}-"))
        self.folder.chmod(0o755)
        self.config, self.state = self.folder / "config", self.folder / "state"
        self.config.mkdir()
        self._binaries, self._things, self._number, self._rejected, self._settings = binaries, [], 0, {}, {}
        self.calls, self.collector = Calls(), collector.Collector()
        self.pods, self.proxies = {}, {}
        self.names = [name for name in PROXIES if flavour == "ours" or name not in OURS_ONLY]  # of its proxies

    def binary(self, name):
        """A program where every user can reach it."""
        place = self.folder / "bin" / name
        if not place.exists():
            place.parent.mkdir(exist_ok=True)
            try:
                os.link(self._binaries / name, place)
            except OSError:
                shutil.copy2(self._binaries / name, place)
        return place

    # Start and end.

    def start(self):
        self.network = net.Network(self.flavour)
        self._things.append(self.network)
        self.namespace = self.network.root
        for _, _, _, _, ip in manifests.BACKENDS:
            self.network.address(ip)
        self.network.address(EXTERNAL[1])
        for name in self.names:
            capturer = self.binary("mesh-proxy") if name in ("captured", "guarded", "resolved") else None
            self.pods[name] = self.network.pod(name, PROXIES[name][0], capturer, name == "resolved")
        self._things.append(names.Names(self.namespace, CONTROL_IP, manifests.looked_up()))
        self.resolvers = self.folder / "resolv.conf"
        self.resolvers.write_text(f"nameserver {CONTROL_IP}\noptions ndots:1 timeout:2 attempts:1\n")
        self._applications()
        self._control()
        for name in self.names:
            _, namespace, account, _ = PROXIES[name]
            token = self.folder / f"{name}.token"
            token.write_text(self._token(namespace, account))
            token.chmod(0o644)
            start = {"ours": proxies.ours, "istiod-ours": proxies.ours_as_envoy}.get(self.flavour, proxies.envoy)
            started = start(self, name, self.pods[name], token)
            self.proxies[name] = started[0]
            self._things.extend(started)
        self.apply([])
        return self

    def _applications(self):
        backends = Backends(self.calls)
        self._things.append(backends)
        certificate = self._certificates()
        for name, _, app, _, ip in manifests.BACKENDS:
            if app == "tls":
                backends.http(self.namespace, name, ip, 8443, certificate)
                backends.http(self.namespace, f"{name}-mutual", ip, 8444, certificate, self.folder / "certs" / "ca.crt")
            elif app == "grpc":
                backends.grpc(self.namespace, name, ip, 7070)
            elif name == "authz":
                authorizer.http(backends, self.namespace, name, ip, 8000)
            elif name == "authz-grpc":
                backends.also(authorizer.grpc_service(self.namespace, name, ip, 9000, self.calls))
            elif name == "collector":
                backends.also(self.collector.serve(self.namespace, ip, manifests.COLLECTOR_PORT))
            elif name == "keys":
                issuer.http(backends, self.namespace, name, ip, APP_PORT)
            elif name in ("tunnel", "tunnel-h2"):
                backends.forward_proxy(self.namespace, ip, forward_proxy.PORT)
            elif app == "tcp":
                backends.tcp(self.namespace, name, ip, 9000)
            else:
                backends.http(self.namespace, name, ip, APP_PORT)
                backends.http(self.namespace, f"{name}-admin", ip, ADMIN_PORT)
        backends.tcp(self.pods["guarded"], "guarded-tcp", PROXIES["guarded"][0], 9000)
        for port in (80, APP_PORT):
            backends.http(self.namespace, EXTERNAL[0], EXTERNAL[1], port)
        backends.unix("guarded-unix", self.folder / "app.sock")
        for name, port in (("guarded", APP_PORT), ("guarded-admin", ADMIN_PORT)):
            backends.http(self.pods["guarded"], name, PROXIES["guarded"][0], port)

    def _certificates(self):
        """Files that objects mean by `$CERTS/NAME`: one authority's, and `stranger`, whom it did not issue. Returns those of
        the application that speaks TLS."""
        folder, authority = self.folder / "certs", certificates.Authority()
        folder.mkdir()
        (folder / "ca.crt").write_text(authority.root_pem)
        issued = {"client": "client.test", "revoked": "client.test", "a": "a.test", "b": "b.test"}
        pairs = {name: authority.issue(host) for name, host in issued.items()}
        pairs["tls"] = authority.issue("tls.shop.svc.cluster.local", also=("tls.dynamic.test",))
        pairs["stranger"] = certificates.Authority("stranger").issue("client.test")
        for name, texts in pairs.items():
            for ending, text in zip(("crt", "key"), texts):
                (folder / f"{name}.{ending}").write_text(text)
        (folder / "ca.crl").write_text(authority.revoke(pairs["revoked"][0]))
        return folder / "tls.crt", folder / "tls.key"

    def _control(self):
        self._write("world", manifests.world())
        command = [self.binary("mesh-control"), "--config-dir", self.config, "--state-dir", self.state, "--xds-addr", f"{CONTROL_IP}:15012",
                   "--http-addr", "127.0.0.1:15014", "--log-level", os.environ.get("MESH_LOG", "info")]
        self.control = proxies.Process(self.folder, self.namespace, "mesh-control", command)
        self._things.append(self.control)
        self._until(lambda: self._page("/ready").status == 200, "the control plane to be ready", PATIENCE)
        self._until((self.state / "root-cert.pem").exists, "the root certificate", PATIENCE)
        self.state.chmod(0o755)

    def _token(self, namespace, account):
        command = [self.binary("mesh-control"), "token", "--state-dir", self.state, "--namespace", namespace, "--service-account", account]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=20).stdout.strip()

    def close(self, keep_folder):
        for thing in reversed(self._things):
            thing.close()
        if not keep_folder:
            shutil.rmtree(self.folder, ignore_errors=True)

    def crashed(self):
        """A program that ended by itself, or panicked."""
        for thing in self._things:
            if isinstance(thing, proxies.Process):
                log = thing.log()
                at = log.find("panicked at")
                if at >= 0:
                    return f"{thing.name} panicked: {log[at:at + 400]}"
                if not thing.alive():
                    return f"{thing.name} ended with {thing.child.returncode}: {log[-600:]}"
        return None

    # Configuration.

    def _write(self, name, objects):
        text = objects if isinstance(objects, str) else manifests.text(objects)
        whole = self.folder / f"{name}.part"
        whole.write_text(text)
        os.replace(whole, self.config / f"{name}.yaml")

    def settle(self, settings):
        """Settings of the mesh, beside the usual ones."""
        self._write("world", manifests.world(settings))

    def apply(self, objects, settings=None, patience=None):
        """Replaces the objects of the case, and settings of the mesh; returns when every proxy has what follows from them.
        `patience` (s) is for cases in which proxies wait for what does not come."""
        self._number += 1
        if (settings or {}) != self._settings:
            self._settings = settings or {}
            self.settle(self._settings)
        text = objects if isinstance(objects, str) else manifests.text(objects)
        text = text.replace("$CERTS", str(self.folder / "certs")).replace("$SOCKET", str(self.folder / "app.sock"))
        # The content, as one string of YAML, and fingerprints of certificates and of their keys.
        pem = lambda name: (self.folder / "certs" / name).read_text()
        text = re.sub(r"\$PEM/([\w.]+)", lambda m: json.dumps(pem(m[1])), text)
        text = re.sub(r"\$HASH/([\w.]+)", lambda m: certificates.fingerprint(pem(m[1])), text)
        text = re.sub(r"\$SPKI/([\w.]+)", lambda m: certificates.key_fingerprint(pem(m[1])), text)
        # One file, so that the marker changes with them.
        self._write("case", f"{text}\n---\n{manifests.text(manifests.marker(self._number))}")
        patience = PATIENCE if self._number == 1 else max(IN_FORCE, patience or 0)
        end = time.monotonic() + patience
        threads = [threading.Thread(target=self._marked, args=(name, end)) for name in self.names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self._until(self._synced, "all proxies to be in sync", patience)
        if self._number == 1:
            missing = [name for name in self.names if not self._marks(name)]
            if missing:
                raise RuntimeError(f"not configured: {missing} [{self.folder}] {self.crashed() or ''}")

    def _marks(self, name):
        try:
            outcome = self.send(name, "GET", "http", "marker.test", 80, "/", [], timeout=2.0)
        except names.NoSuchName:
            return False
        return f"marker-{self._number}" in outcome.body + (outcome.header("location") or "")

    def _marked(self, name, end):
        # A case may deny everything to everybody; then only `_synced` tells.
        while not self._marks(name) and time.monotonic() < end:
            time.sleep(0.03)

    def _synced(self):
        for proxy in self.status():
            for kind, state in proxy["types"].items():
                if state["state"] not in ("SYNCED", "NOT SENT", "ERROR"):
                    return False
        return len(self.status()) == len(self.names)

    def new_rejections(self):
        """What proxies refused since this was asked last, the start of the world included: `PROXY TYPE: reason`."""
        now = {(p["proxy"], kind): (state["nacks"], state["last_error"]) for p in self.status() for kind, state in p["types"].items()}
        before, self._rejected = self._rejected, now
        return [f"{proxy} {kind}: {error}" for (proxy, kind), (n, error) in now.items() if n and (n, error) != before.get((proxy, kind))]

    def status(self):
        return json.loads(self._page("/debug/syncz").body)

    def metrics(self, name):
        """The metrics of a proxy, in Prometheus's text form."""
        return client.http_request(self.pods[name], ("127.0.0.1", 15000), "GET", "/stats/prometheus", "localhost", []).body

    def counters(self, name):
        """The counters and gauges of a proxy, by Envoy's names."""
        text = client.http_request(self.pods[name], ("127.0.0.1", 15000), "GET", "/stats", "localhost", []).body
        pairs = (line.rsplit(": ", 1) for line in text.splitlines() if ": " in line)
        return {name: int(value) for name, value in pairs if value.isdigit()}

    def findings(self):
        return self._page("/debug/configz").body

    def _page(self, path):
        return client.http_request(self.namespace, ("127.0.0.1", 15014), "GET", path, "localhost", [])

    def _until(self, condition, what, patience):
        end = time.monotonic() + patience
        while True:
            try:
                if condition():
                    return
            except (ValueError, KeyError, OSError):
                pass
            if time.monotonic() > end:
                raise RuntimeError(f"not within {patience:g} s: {what} [{self.folder}] {self.crashed() or ''}")
            time.sleep(0.03)

    # Requests.

    def place(self, position, host, port):
        """Where a client of this position connects to, and from where."""
        if position.startswith("gateway"):
            return self.namespace, (PROXIES[position][0], port)
        if position == "plain":
            return self.namespace, (PROXIES["guarded"][0], APP_PORT if port == 80 else port)
        if position == "resolved":
            return self.pods[position], (names.look_up(self.pods[position], CONTROL_IP, host), port)
        if position in ("captured", "guarded"):
            return self.pods[position], (manifests.address_of(host), port)
        return self.pods[position], ("127.0.0.1", 15002)

    def tls(self, scheme, host, request):
        """How a request speaks TLS; `None`: it does not."""
        name = request.get("sni", host if scheme == "https" else None)
        if name is None:
            return None
        pair = request.get("certificate")
        files = pair and [str(self.folder / "certs" / f"{pair}.{ending}") for ending in ("crt", "key")]
        return client.Tls(name, files, request.get("tls_version"), request.get("alpn"), request.get("curve"))

    def send(self, position, method, scheme, host, port, path, headers, body=None, timeout=10.0, tls=None):
        """A request over HTTP/1.1 from this position."""
        namespace, address = self.place(position, host, port)
        authority = host if port in (80, 443) else f"{host}:{port}"
        given = [v for n, v in headers if n.lower() == "host"]
        headers = [(n, v) for n, v in headers if n.lower() != "host"]
        authority = given[0] if given else authority
        target = f"http://{authority}{path}" if position in ("explicit", "stranger") else path
        return client.http_request(namespace, address, method, target, authority, headers, body, tls, timeout)
