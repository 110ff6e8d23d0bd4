"""An ADS server made of gRPC's Python server and its published xDS messages, in both forms of the protocol.

By itself it is an honest server: it answers what is subscribed to out of `state`. A scenario makes it misbehave: it pushes
raw messages, keeps types back, cuts streams. Everything that came is remembered, and `audit` looks at what any client
must keep to on any stream.
"""

import concurrent.futures
import hashlib
import queue
import threading
import time

import grpc
from envoy.service.discovery.v3 import discovery_pb2 as discovery

import harness
from harness import Failed, check, until

CDS = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
EDS = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
LDS = "type.googleapis.com/envoy.config.listener.v3.Listener"
RDS = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
SDS = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
ECDS = "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig"
WHOLE = (CDS, LDS)  # of these, a state-of-the-world answer is everything there is
SERVICE = "envoy.service.discovery.v3.AggregatedDiscoveryService"
MAX_MESSAGE = 256 << 20


def short(type_url):
    return {CDS: "CDS", EDS: "EDS", LDS: "LDS", RDS: "RDS", SDS: "SDS", ECDS: "ECDS"}.get(type_url, type_url)


def version_of(resource):
    return hashlib.sha256(resource.value).hexdigest()[:12]


class Stream:
    """One stream of one client."""

    def __init__(self, control, number, peer, metadata):
        self.control, self.number, self.peer, self.metadata = control, number, peer, metadata
        self.opened = time.monotonic()
        self.requests = []  # (seconds since the start, request)
        self.sent = {}  # nonce -> type
        self.order = []  # (type, nonce) as sent
        self.closed = threading.Event()
        self.names = {}  # type -> names subscribed to
        self.wildcard = set()  # types subscribed to as a whole
        self.has = {}  # type -> {name: version}
        self._out = queue.Queue()
        self._counter = 0
        self._lock = threading.RLock()
        self._stalled = threading.Event()

    # What came.

    def of(self, type_url):
        return [r for _, r in list(self.requests) if r.type_url == type_url]

    def first(self, type_url):
        """The first request of a type."""
        return until(lambda: next(iter(self.of(type_url)), None), lambda: f"a request for {short(type_url)}; came {self.summary()}")

    def asked(self, type_url, names):
        """Waits until exactly these names are subscribed to."""
        wanted = set(names)
        until(lambda: self.names.get(type_url, set()) == wanted,
              lambda: f"{short(type_url)} of {sorted(wanted)}; subscribed to {sorted(self.names.get(type_url, set()))}")

    def answer(self, nonce, patience=harness.PATIENCE):
        """What the client says to a response."""
        return until(lambda: next((r for _, r in list(self.requests) if r.response_nonce == nonce), None),
                     lambda: f"an answer to nonce {nonce[:40]!r}; came {self.summary()}", patience)

    def ack(self, nonce):
        answer = self.answer(nonce)
        check(not answer.HasField("error_detail"), lambda: f"refused: {answer.error_detail.message}")
        return answer

    def nack(self, nonce, *words):
        """The client refuses, and says these words."""
        answer = self.answer(nonce)
        check(answer.HasField("error_detail"), lambda: f"nonce {nonce[:40]!r} was accepted")
        text = answer.error_detail.message
        check(answer.error_detail.code == grpc.StatusCode.INVALID_ARGUMENT.value[0], lambda: f"code {answer.error_detail.code}")
        for word in words:
            check(word in text, lambda: f"the NACK does not say {word!r}: {text}")
        return answer

    def summary(self):
        def one(request):
            names = request.resource_names if hasattr(request, "resource_names") else request.resource_names_subscribe
            what = "NACK" if request.HasField("error_detail") else "ACK" if request.response_nonce else "ask"
            return f"{what} {short(request.type_url)} {list(names)[:4]}"

        return [one(r) for _, r in list(self.requests)[-12:]]

    # What goes.

    def nonce(self):
        self._counter += 1
        return f"n{self.number}.{self._counter}"

    def send(self, message, type_url="", nonce=None):
        """A message, or bytes that are none."""
        if nonce:
            self.sent[nonce] = type_url
        self.order.append((type_url, nonce))
        self._out.put(message)

    def push(self, type_url, resources=(), removed=(), nonce=None, version=None, raw=None):
        """A response out of pairs of name and resource; returns its nonce."""
        with self._lock:
            nonce = self.nonce() if nonce is None else nonce
            resources = list(resources)
            if self.control.delta:
                response = discovery.DeltaDiscoveryResponse(type_url=type_url, nonce=nonce, system_version_info=version or "s")
                for name, resource in resources:
                    response.resources.add(name=name, version=version or version_of(resource), resource=resource)
                response.removed_resources.extend(removed)
                has = self.has.setdefault(type_url, {})
                has.update((name, version or version_of(resource)) for name, resource in resources)
                for name in removed:
                    has.pop(name, None)
            else:
                response = discovery.DiscoveryResponse(type_url=type_url, nonce=nonce, version_info=version or self.control.version())
                response.resources.extend(resource for _, resource in resources)
            self.send(raw(response) if raw else response, type_url, nonce)
            return nonce

    def sync(self, type_url):
        """Sends what this stream should have of a type and does not; returns the nonce, or None."""
        with self._lock:
            state = self.control.state.get(type_url, {})
            names = set(state) if type_url in self.wildcard else set()
            names |= self.names.get(type_url, set())
            if not self.control.delta:
                return self.push(type_url, [(n, state[n]) for n in sorted(names) if n in state])
            has = self.has.setdefault(type_url, {})
            news = [(n, state[n]) for n in sorted(names) if n in state and has.get(n) != version_of(state[n])]
            gone = [n for n in has if n not in state]
            return self.push(type_url, news, gone) if news or gone else None

    def cut(self, code=None, text="cut"):
        """Ends the stream, with a status or as if all were said."""
        self._out.put((code, text))
        self.closed.wait(5)

    # Between.

    def _received(self, request):
        with self._lock:
            self.requests.append((time.monotonic() - self.opened, request))
            auto = self.control.automatic
            if callable(auto):
                auto = auto(self, request)
            if self.control.delta:
                self._received_delta(request, auto)
            else:
                self._received_sotw(request, auto)

    def _received_delta(self, request, auto):
        ty = request.type_url
        first = len(self.of(ty)) == 1
        names, has = self.names.setdefault(ty, set()), self.has.setdefault(ty, {})
        if first:
            has.update(request.initial_resource_versions)
            if ty in WHOLE and not request.resource_names_subscribe:
                self.wildcard.add(ty)
        asked = set(request.resource_names_subscribe)
        if "*" in asked:
            self.wildcard.add(ty)
        asked.discard("*")
        gone = set(request.resource_names_unsubscribe)
        if "*" in gone:
            self.wildcard.discard(ty)
        names |= asked
        names -= gone
        for name in gone:
            has.pop(name, None)
        if not auto or (ty not in self.control.answered) or not (first or asked or gone):
            return
        state = self.control.state.get(ty, {})
        known = request.initial_resource_versions if first else {}
        wanted = set(state) if ty in self.wildcard and first else asked
        # Who subscribes is answered, also when what he gets is what he had; unless he just said that he has it.
        news = [(n, state[n]) for n in sorted(wanted) if n in state and known.get(n) != version_of(state[n])]
        missing = sorted({n for n in asked if n not in state} | {n for n in known if n not in state})
        # The first answer to a wildcard is sent even when there is nothing.
        if news or missing or (first and ty in self.wildcard and not known):
            self.push(ty, news, missing)

    def _received_sotw(self, request, auto):
        ty = request.type_url
        before = self.names.get(ty)
        names = set(request.resource_names) - {"*"}
        if ty in WHOLE and not names:
            self.wildcard.add(ty)
        newest = next((n for t, n in reversed(self.order) if t == ty), None)
        if request.response_nonce and request.response_nonce != newest:
            return  # about a response that is not the newest one
        self.names[ty] = names
        if auto and ty in self.control.answered and (before is None or names - before):
            self.sync(ty)

    def _serve(self, requests, context):
        def read():
            try:
                for request in requests:
                    while self._stalled.is_set():
                        time.sleep(0.01)
                    self._received(request)
            except Exception:  # the client is gone
                pass
            self._out.put((None, ""))

        threading.Thread(target=read, daemon=True).start()
        context.add_callback(lambda: self._out.put((None, "")))
        try:
            while True:
                message = self._out.get()
                if isinstance(message, tuple):
                    code, text = message
                    if code is not None:
                        context.abort(code, text)
                    return
                yield message
        finally:
            self.closed.set()

    def stall(self):
        """Reads no more requests."""
        self._stalled.set()

    def go_on(self):
        self._stalled.clear()


class Control:
    """The server."""

    def __init__(self, variant, port=None, start=True):
        self.delta = variant == "delta"
        self.variant = variant
        self.port = port or harness.free_port()
        self.state = {}  # type -> {name: Any}
        self.automatic = True
        self.answered = {CDS, EDS, LDS, RDS, SDS, ECDS}
        self.streams = []
        self.attempts = []  # when streams were opened
        self.on_open = None  # may cut a stream at once
        self._version = 0
        self._server = None
        if start:
            self.start()

    def start(self):
        pool = concurrent.futures.ThreadPoolExecutor(8)
        options = [("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", MAX_MESSAGE),
                   ("grpc.max_send_message_length", MAX_MESSAGE), ("grpc.http2.min_ping_interval_without_data_ms", 100)]
        self._server = grpc.server(pool, options=options)

        def handler(request):
            return grpc.stream_stream_rpc_method_handler(
                self._stream, request_deserializer=request.FromString,
                response_serializer=lambda m: m if isinstance(m, bytes) else m.SerializeToString())

        methods = {"StreamAggregatedResources": handler(discovery.DiscoveryRequest),
                   "DeltaAggregatedResources": handler(discovery.DeltaDiscoveryRequest)}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))

        def bind():
            try:
                return self._server.add_insecure_port(f"127.0.0.1:{self.port}")
            except RuntimeError as error:
                raise Failed(str(error)) from error

        until(bind, "the ADS port")
        self._server.start()

    def stop(self):
        if self._server:
            for stream in self.streams:
                stream._out.put((None, ""))
            self._server.stop(0).wait(5)
            self._server = None

    close = stop

    def _stream(self, requests, context):
        stream = Stream(self, len(self.streams), context.peer(), dict(context.invocation_metadata()))
        self.attempts.append(time.monotonic())
        self.streams.append(stream)
        if self.on_open:
            self.on_open(stream)
        yield from stream._serve(requests, context)

    def version(self):
        self._version += 1
        return str(self._version)

    # The state.

    def put(self, type_url, **resources):
        self.state.setdefault(type_url, {}).update(resources)

    def drop(self, type_url, *names):
        for name in names:
            self.state.get(type_url, {}).pop(name, None)

    def publish(self, *types):
        """Sends changes on the newest stream, in this order, and waits until each is accepted."""
        stream = self.stream()
        for type_url in types:
            nonce = stream.sync(type_url)
            if nonce:
                stream.ack(nonce)

    def stream(self, number=None):
        """The newest stream, or the one of a number, once it is open."""
        if number is None:
            return until(lambda: next((s for s in reversed(self.streams) if not s.closed.is_set()), None), "a stream")
        return until(lambda: self.streams[number] if len(self.streams) > number else None, f"stream {number}")

    def next_stream(self, patience=harness.PATIENCE):
        """A stream that is opened after this."""
        count = len(self.streams)
        return until(lambda: self.streams[count] if len(self.streams) > count else None, "the client to come back", patience)

    # What every client must keep to.

    def audit(self):
        for stream in list(self.streams):
            _audit(stream, self.delta)


def _audit(stream, delta):
    seen_types, answered = set(), {}
    requests = [r for _, r in list(stream.requests)]
    for index, request in enumerate(requests):
        where = f"stream {stream.number} request {index} ({short(request.type_url)})"
        check(request.HasField("node") == (index == 0), f"{where}: node in request, which belongs into the first one only")
        if index == 0:
            check(request.node.id != "", f"{where}: node without id")
        nonce = request.response_nonce
        first = request.type_url not in seen_types
        seen_types.add(request.type_url)
        if nonce:
            check(nonce in stream.sent, f"{where}: nonce {nonce[:40]!r} is not of this stream")
            check(stream.sent[nonce] == request.type_url, f"{where}: nonce of another type")
        if delta:
            if nonce:
                answered[nonce] = answered.get(nonce, 0) + 1
            if not first:
                check(not request.initial_resource_versions, f"{where}: initial_resource_versions, not in the first request")
        if request.HasField("error_detail"):
            check(nonce, f"{where}: an error without a nonce")
            check(request.error_detail.message, f"{where}: an error without a reason")
    for nonce, count in answered.items():
        times = sum(1 for _, n in stream.order if n == nonce)
        check(count <= times, f"stream {stream.number}: nonce {nonce[:40]!r} answered {count} times")
