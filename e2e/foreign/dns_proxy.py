"""The application's DNS, answered by our sidecar under our control plane: bytes of clients, well-meaning and hostile."""

import os
import random
import socket
import struct
import threading

import harness
from control import Mesh, host, istio, service
from harness import check, equal, get, holds, scenario, until

A, TXT, AAAA, ANY, OPT, AXFR = 1, 16, 28, 255, 41, 252
NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP = 0, 1, 2, 3, 4
MANY = 120


def packed(name):
    return b"".join(bytes([len(label)]) + label.encode() for label in name.rstrip(".").split(".")) + b"\0"


def question(name, kind=A, number=None, flags=0x0100, edns=None, count=1, family=1):
    number = random.randrange(1 << 16) if number is None else number
    more = b"" if edns is None else b"\0" + struct.pack("!HHIH", OPT, edns, 0, 0)
    return struct.pack("!HHHHHH", number, flags, count, 0, 0, 1 if more else 0) + packed(name) + struct.pack("!HH", kind, family) + more


class Message:
    """A message, taken apart without trust."""

    def __init__(self, data):
        self.data, self.length = data, len(data)
        self.number, self.flags, questions, answers, authorities, more = struct.unpack("!HHHHHH", data[:12])
        self.code, self.cut, self.authoritative = self.flags & 15, bool(self.flags & 0x0200), bool(self.flags & 0x0400)
        at, self.questions, self.records = 12, [], []
        for _ in range(questions):
            name, at = self._name(at)
            self.questions.append((name, *struct.unpack("!HH", data[at:at + 4])))
            at += 4
        for _ in range(answers + authorities + more):
            name, at = self._name(at)
            kind, family, ttl, size = struct.unpack("!HHIH", data[at:at + 10])
            self.records.append((name, kind, family, ttl, self._value(kind, at + 10, size)))
            at += 10 + size
        equal(at, len(data), "the end of the message")

    def _name(self, at):
        labels, end = [], None
        while self.data[at]:
            if self.data[at] >= 0xc0:
                end = end or at + 2
                at = struct.unpack("!H", self.data[at:at + 2])[0] & 0x3fff
                continue
            labels.append(self.data[at + 1:at + 1 + self.data[at]].decode("latin-1"))
            at += 1 + self.data[at]
        return ".".join(labels), end or at + 1

    def _value(self, kind, at, size):
        if kind in (A, AAAA):
            return socket.inet_ntop(socket.AF_INET if kind == A else socket.AF_INET6, self.data[at:at + size])
        return self._name(at)[0] if kind == 5 else self.data[at:at + size]

    def addresses(self):
        return [value for _, kind, _, _, value in self.records if kind in (A, AAAA)]


class Resolver:
    """A name server of the system, at an address of its own: `answers` makes messages of a question."""

    def __init__(self):
        self.ip = "127." + ".".join(str(random.randrange(1, 255)) for _ in range(3))
        self.answers, self.seen = (lambda asked: [asked[:2] + b"\x81\x83" + asked[4:]]), []
        self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._udp.bind((self.ip, 53))
        self._tcp = socket.create_server((self.ip, 53))
        for serve in (self._datagrams, self._connections):
            threading.Thread(target=serve, daemon=True).start()

    def _datagrams(self):
        while True:
            try:
                asked, peer = self._udp.recvfrom(65535)
            except OSError:
                return
            self.seen.append((asked, peer[1], "udp"))
            for answer in self.answers(asked):
                self._udp.sendto(answer, peer)

    def _connections(self):
        while True:
            try:
                stream, peer = self._tcp.accept()
            except OSError:
                return
            with stream:
                asked = exactly(stream, struct.unpack("!H", exactly(stream, 2))[0])
                self.seen.append((asked, peer[1], "tcp"))
                for answer in self.answers(asked):
                    stream.sendall(struct.pack("!H", len(answer)) + answer)

    def close(self):
        self._udp.close()
        self._tcp.close()


def exactly(stream, size):
    data = b""
    while len(data) < size:
        piece = stream.recv(size - len(data))
        if not piece:
            raise EOFError(f"{len(data)} of {size} bytes")
        data += piece
    return data


class Site:
    """A control plane, a resolver of the system, and a sidecar that answers DNS."""

    def __init__(self, world, *objects, resolver=True):
        self.world, self.mesh = world, Mesh(world)
        self.mesh.put("shop", *objects)
        self.mesh.start()
        self.resolver = world.keep(Resolver()) if resolver else None
        self.port, self.admin = harness.free_port(), harness.free_port()
        servers = f"nameserver {self.resolver.ip}\n" if resolver else ""
        conf = world.write("resolv.conf", f"search shop.svc.cluster.local svc.cluster.local\n{servers}options ndots:5\n")
        token = world.write("token", self.mesh.token("shop", "web"))
        self.process = world.process(
            "mesh-proxy", "sidecar", "--control", f"127.0.0.1:{self.mesh.tls}", "--root-cert", self.mesh.state / "root-cert.pem",
            "--token", token, "--id", "web-1.shop", "--ip", "10.9.0.1", "--service-account", "web", "--concurrency", 1,
            "--interception-mode", "NONE", "--admin", f"127.0.0.1:{self.admin}", "--status-port", 0, "--merged-metrics-port", 0,
            "--metrics-port", 0, "--resolv-conf", conf, "--dns-proxy-addr", f"127.0.0.1:{self.port}",
            environment={"ISTIO_META_DNS_CAPTURE": "true"})

    def ready(self):
        until(lambda: get(self.admin, "/ready").status == 200, lambda: f"ready: {self.process.log()[-800:]}")
        return self

    def ask(self, name, kind=A, tcp=False, **more):
        return (self.tcp if tcp else self.udp)(question(name, kind, **more))

    def udp(self, data, patience=8.0):
        """The answer to these bytes; `None`: there is none."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(patience)
            client.connect(("127.0.0.1", self.port))
            client.send(data)
            try:
                answer = Message(client.recv(65535))
            except TimeoutError:
                return None
        equal(answer.number, struct.unpack("!H", data[:2])[0], "number")
        return answer

    def tcp(self, *questions):
        """The answer to the last of these, which are sent on one connection."""
        with socket.create_connection(("127.0.0.1", self.port), 8.0) as stream:
            for data in questions:
                stream.sendall(struct.pack("!H", len(data)) + data)
            answers = [Message(exactly(stream, struct.unpack("!H", exactly(stream, 2))[0])) for _ in questions]
        equal([a.number for a in answers], [struct.unpack("!H", q[:2])[0] for q in questions], "numbers")
        return answers[-1]

    def metric(self, name):
        page = get(self.admin, "/stats/prometheus").body
        return next((float(line.split()[-1]) for line in page.splitlines() if line.startswith(name)), None)


def entry(name, hosts, **spec):
    return istio("ServiceEntry", name, {"hosts": hosts, "resolution": "STATIC", "ports": [{"number": 9000, "name": "tls", "protocol": "TLS"}],
                                        "endpoints": [{"address": "10.9.9.9"}], **spec})


def many():
    """A service without an address, with many pods."""
    pods = [{"addresses": [f"10.8.{i // 250}.{i % 250 + 1}"], "conditions": {"ready": True}} for i in range(MANY)]
    headless = service("many")
    headless["spec"]["clusterIP"] = "None"
    return [headless, {
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4", "endpoints": pods, "ports": [{"name": "http", "port": 80}],
        "metadata": {"name": "many-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "many"}}}]


@scenario()
def names_of_the_mesh(world):
    """Hosts, short names, addresses of their own, families, aliases of search domains, cut answers, both transports."""
    site = Site(world, service("a"), service("b", "bank"), *many(), entry("ext", ["ext.test"], addresses=["10.3.0.1"]),
                entry("bare", ["bare.test"])).ready()
    address = service("a")["spec"]["clusterIP"]
    for name in ("a", "a.shop", "a.shop.svc", host("a"), "A.Shop.SVC.cluster.LOCAL"):
        answer = site.ask(name)
        equal((answer.code, answer.authoritative, answer.addresses()), (NOERROR, True, [address]), name)
        equal(answer.questions, [(name, A, 1)], "the question, as it was written")
        equal(answer.records[0][:4], (name, A, 1, 30), "record")
    equal(site.ask("b").code, NXDOMAIN, "the resolver's answer for a name of another namespace")
    equal(len(site.ask("b.bank").addresses()), 1, "with its namespace it is known")
    empty = site.ask("a", AAAA)
    equal((empty.code, empty.records), (NOERROR, []), "a family that it lacks")
    check(site.ask("bare.test").addresses()[0].startswith("240.240."), "an address of its own")
    alias = site.ask("ext.test.shop.svc.cluster.local")
    equal([(r[0], r[1], r[4]) for r in alias.records],
          [("ext.test.shop.svc.cluster.local", 5, "ext.test"), ("ext.test", A, "10.3.0.1")], "what a search domain made of a name")
    short = site.ask("many")
    check(short.cut and short.length <= 512 and len(short.addresses()) > 20, f"over UDP: {short.length} bytes, cut {short.cut}")
    longer = site.ask("many", edns=1232)
    check(longer.cut and 512 < longer.length <= 1232 and longer.records[-1][1] == OPT, f"with EDNS: {longer.length} bytes")
    for whole in (site.ask("many", edns=4096), site.ask("many", tcp=True)):
        equal((whole.cut, len(set(whole.addresses()))), (False, MANY), "the whole answer")
    check(len({site.ask("many", edns=4096).addresses()[0] for _ in range(10)}) > 5, "addresses take turns")
    equal(site.tcp(question("ext.test"), question("x.test"), question("a")).addresses(), [address], "the third on a connection")


@scenario()
def names_of_others(world):
    """What the mesh does not know is asked of the system's resolver, under numbers and ports that cannot be foreseen."""
    site = Site(world, service("a")).ready()
    resolver = site.resolver

    def with_address(asked, ip="192.0.2.1", count=1):
        record = b"\xc0\x0c" + struct.pack("!HHIH", A, 1, 60, 4) + socket.inet_aton(ip)
        end = 12 + len(packed("other.test")) + 4
        return asked[:2] + b"\x81\x80" + asked[4:6] + struct.pack("!HHH", count, 0, 0) + asked[12:end] + record * count

    resolver.answers = lambda asked: [with_address(asked)]
    for tcp in (False, True):
        answer = site.ask("Other.test", tcp=tcp, number=77)
        equal((answer.code, answer.authoritative, answer.addresses(), answer.questions[0][0]),
              (NOERROR, False, ["192.0.2.1"], "Other.test"), f"its answer, over TCP: {tcp}")
    equal([how for *_, how in resolver.seen], ["udp", "tcp"], "how it was asked")
    # Whoever does not see the question cannot answer it.
    forged = [lambda a: struct.pack("!H", struct.unpack("!H", a[:2])[0] ^ 1) + a[2:], lambda a: a.replace(b"ther", b"thre"), lambda a: a[:9]]
    resolver.answers = lambda asked: [bend(with_address(asked, "192.0.2.66")) for bend in forged] + [with_address(asked)]
    equal(site.ask("other.test").addresses(), ["192.0.2.1"], "the answer to the question")
    resolver.seen.clear()
    for _ in range(40):
        site.ask("other.test", number=5)
    check(len({asked[:2] for asked, *_ in resolver.seen}) > 35, "numbers are drawn")
    check(len({port for _, port, _ in resolver.seen}) > 30, "ports are drawn")
    resolver.answers = lambda asked: [with_address(asked, count=100)]
    cut = site.ask("other.test")
    check(cut.cut and cut.length <= 512, f"too long for the client: {cut.length} bytes")
    equal(len(site.ask("other.test", tcp=True).addresses()), 100, "over TCP it is whole")
    equal(site.ask("a", TXT).code, NOERROR, "what the table does not hold of a host of the mesh is asked as well")
    resolver.answers = lambda asked: []
    failures = site.metric("istio_agent_dns_upstream_failures_total")
    equal(site.ask("silent.test").code, SERVFAIL, "nobody answers")
    equal(site.metric("istio_agent_dns_upstream_failures_total"), failures + 1, "failures")
    equal(len(site.ask("a").addresses()), 1, "the mesh's own names need nobody")
    check(site.metric("istio_agent_dns_requests_total") > 45, "requests are counted")
    check(site.metric("istio_agent_dns_upstream_request_duration_seconds_count") > 45, "durations are counted")


@scenario()
def hostile_bytes(world):
    """No bytes end it or make it talk to itself; whoever holds connections open keeps nobody else from an answer."""
    site = Site(world, service("a")).ready()
    good = question("a")
    equal(site.udp(question("a", count=2)).code, FORMERR, "two questions of which one is there")
    equal(site.udp(struct.pack("!HHHHHH", 9, 0x0100, 0, 0, 0, 0)).code, FORMERR, "no question")
    equal(site.udp(good[:-1]).code, FORMERR, "a question that is cut")
    equal(site.udp(good[:12] + b"\xc0\x0c\0\1\0\1").code, FORMERR, "a name that points to itself")
    equal(site.udp(good[:12] + b"\x7f" + good[13:]).code, FORMERR, "a label that is longer than the message")
    equal(site.udp(question("a", flags=0x2800)).code, NOTIMP, "an update")
    equal(site.udp(question("a", AXFR)).code, NOTIMP, "a transfer")
    for ignored in (question("a", flags=0x8180), good[:11], b"", os.urandom(5000)):
        equal(site.udp(ignored, 0.3), None, "the answer to what is no question")
    chance = random.Random(int.from_bytes(os.urandom(4)))
    before = site.process.memory()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.connect(("127.0.0.1", site.port))
        for number in range(6000):
            data = bytearray(question(chance.choice(["a", "a.shop", host("a"), "x.y.z"]), chance.randrange(300), edns=chance.choice([None, 0, 512, 65535])))
            for _ in range(chance.randrange(6)):
                data[chance.randrange(len(data))] = chance.randrange(256)
            client.send(bytes(data) if number % 3 else chance.randbytes(chance.randrange(1, 600)))
            if number % 100 == 0:
                equal(len(site.ask("a").addresses()), 1, f"after {number} messages")
    for length, data in ((0, b""), (5, b"hello"), (65535, b"x" * 65535), (40, good[:10])):
        with socket.create_connection(("127.0.0.1", site.port), 8.0) as stream:
            stream.sendall(struct.pack("!H", length) + data)
    idle = [socket.create_connection(("127.0.0.1", site.port), 8.0) for _ in range(300)]
    holds(lambda: len(site.ask("a").addresses()) == 1, "answers while connections are held", 0.5)
    for stream in idle:
        stream.close()
    equal(len(site.ask("a", tcp=True).addresses()), 1, "over TCP afterwards")
    grown = site.process.memory() - before
    check(grown < 64 << 20, f"memory grew by {grown} bytes")


@scenario()
def without_the_control_plane(world):
    """The last table goes on; until the first one nothing is told, least of all that a name does not exist."""
    site = Site(world, service("a"), resolver=False)
    site.mesh.process.stop()
    if not_ready(site):
        equal(site.ask("a").code, SERVFAIL, "before the table")
    site.mesh.process.resume()
    site.ready()
    equal(len(site.ask("a").addresses()), 1, "the table")
    site.mesh.process.may_end = True
    site.mesh.process.close()
    holds(lambda: len(site.ask("a").addresses()) == 1, "the last table", 0.5)
    equal(site.ask("unknown.test").code, SERVFAIL, "there is no resolver")
    site.mesh.put("new", service("new-one"))
    site.mesh.start()
    until(lambda: site.ask("new-one").addresses(), "the new table")


def not_ready(site):
    """Whether the proxy waits for the control plane, after it took its address."""
    until(lambda: "answering at" in site.process.log(), "DNS to be answered")
    return get(site.admin, "/ready").status != 200
