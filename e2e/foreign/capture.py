"""`mesh-proxy capture` in network namespaces, judged by the kernel: who accepts a connection, and where it wanted to go."""

import pathlib
import socket
import struct
import subprocess
import sys
import threading

import harness
from harness import check, equal, scenario, until

sys.path.append(str(pathlib.Path(__file__).parent.parent / "behaviour"))  # net
import net  # noqa: E402

ORIGINAL_DST = 80
OWN, OWN6 = "10.78.0.2", "fd78::2"
OUTSIDE, OUTSIDE6 = "10.78.0.1", "fd78::1"
APPLICATION, PROXY = 1000, net.PROXY_ID
BACKENDS = ("nft", "iptables")

# Run as whoever is asked for: connects, says nothing, prints what it is told.
CLIENT = """
import socket, sys
s = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=2)
sys.stdout.write(s.recv(100).decode())
"""
QUERY = """
import socket, sys
s = socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(2)
s.sendto(b"?", (sys.argv[1], int(sys.argv[2])))
data, who = s.recvfrom(100)
sys.stdout.write(f"{data.decode()} from {who[0]} {who[1]}")
"""
# The proxy's DNS: on loopback, where redirected queries arrive, and as its user, which answers are told apart by.
NAMESERVER = """
import socket
v4, v6 = (socket.socket(f, socket.SOCK_DGRAM) for f in (socket.AF_INET, socket.AF_INET6))
v4.bind(("127.0.0.1", 15053))
v6.bind(("::1", 15053))
import selectors
waits = selectors.DefaultSelector()
for s in (v4, v6):
    waits.register(s, selectors.EVENT_READ)
print("ready", flush=True)
while True:
    for key, _ in waits.select():
        _, peer = key.fileobj.recvfrom(100)
        key.fileobj.sendto(b"15053", peer)
"""


class Server:
    """Speaks first: tells each connection its own port and where the connection wanted to go. Answers datagrams too."""

    def __init__(self, namespace, port, datagrams=False):
        self.port, self._sockets = port, []
        with namespace.entered():
            for family, any_address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
                listener = self._bound(family, socket.SOCK_STREAM, any_address)
                listener.listen()
                threading.Thread(target=self._accept, args=(listener, family), daemon=True).start()
                if datagrams:
                    one = self._bound(family, socket.SOCK_DGRAM, any_address)
                    threading.Thread(target=self._answer, args=(one,), daemon=True).start()

    def _bound(self, family, kind, address):
        one = socket.socket(family, kind)
        self._sockets.append(one)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        one.bind((address, self.port))
        return one

    def _accept(self, listener, family):
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.sendall(f"{self.port} {wanted(connection, family)}".encode())

    def _answer(self, datagrams):
        while True:
            try:
                _, peer = datagrams.recvfrom(100)
                if peer is None:  # shut down
                    return
                datagrams.sendto(str(self.port).encode(), peer)
            except OSError:
                return

    def close(self):
        for one in self._sockets:
            try:
                one.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            one.close()


def wanted(connection, family):
    """Where a connection wanted to go before somebody redirected it."""
    try:
        if family == socket.AF_INET:
            raw = connection.getsockopt(socket.IPPROTO_IP, ORIGINAL_DST, 16)
            return f"{socket.inet_ntoa(raw[4:8])} {struct.unpack('!H', raw[2:4])[0]}"
        raw = connection.getsockopt(socket.IPPROTO_IPV6, ORIGINAL_DST, 28)
        return f"{socket.inet_ntop(socket.AF_INET6, raw[8:24])} {struct.unpack('!H', raw[2:4])[0]}"
    except OSError:
        address = connection.getsockname()
        return f"{address[0]} {address[1]}"


class Site:
    """A pod with something in the place of a proxy, and a machine outside of it."""

    def __init__(self, world, served=True):
        self.backend = world.variant
        # Scenarios run side by side.
        network = world.keep(net.Network(world.folder.name.removeprefix("foreign-"), OUTSIDE))
        self.outside, self.pod = network.root, network.pod("pod", OWN)
        if served:
            self.serve(world)

    def serve(self, world):
        """Something on every port that is asked for."""
        self.outside.do("ip", "-6", "addr", "add", f"{OUTSIDE6}/64", "dev", "br0", "nodad")
        self.pod.do("ip", "-6", "addr", "add", f"{OWN6}/64", "dev", "eth0", "nodad")
        self.pod.do("ip", "-6", "route", "add", "default", "via", OUTSIDE6)
        for port in (15001, 15006, 15053, 15020, 15021, 80, 9000):
            world.keep(Server(self.pod, port))
        for port in (53, 80, 9000):
            world.keep(Server(self.outside, port, datagrams=port == 53))
        until(lambda: ask(self.outside, OWN, 80) == f"80 {OWN} 80", "the pod to be reached")

    def nameserver(self, world):
        """The proxy's."""
        command = as_user(self.pod, PROXY) + ["/usr/bin/env", "python3", "-c", NAMESERVER]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        world.keep(Ended(child))
        equal(child.stdout.readline(), "ready\n", "the proxy's nameserver")

    def capture(self, *arguments):
        """Runs a command of ours in the pod: exit code and log."""
        command = ["nsenter", f"--net=/run/netns/{self.pod.name}", str(harness.BIN / "mesh-proxy"), "capture", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        return done.returncode, done.stdout + done.stderr

    def apply(self, *flags):
        code, log = self.capture("apply", "--backend", self.backend, *flags)
        equal(code, 0, f"apply {flags}: {log}")

    def rules(self):
        """Everything that filters in the pod, whoever set it."""
        return self.pod.do("sh", "-c", "nft -s list ruleset 2>/dev/null")

    def out(self, address=OUTSIDE, port=80, user=APPLICATION):
        return ask(self.pod, address, port, user)

    def into(self, address=OWN, port=80):
        return ask(self.outside, address, port)


class Ended:
    """A process that does not outlive its scenario."""

    def __init__(self, child):
        self._child = child

    def close(self):
        self._child.kill()
        self._child.wait()
        self._child.stdout.close()


def as_user(namespace, user):
    """The beginning of a command that runs there."""
    identity = ["--reuid", str(user), "--regid", str(user), "--clear-groups"]
    return ["nsenter", f"--net=/run/netns/{namespace.name}", "setpriv", "--pdeathsig", "KILL", *identity, "--"]


def ask(namespace, address, port, user=APPLICATION, program=CLIENT):
    """What a process of this user is told at this address."""
    command = as_user(namespace, user) + ["/usr/bin/env", "python3", "-c", program, address, str(port)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    return done.stdout if done.returncode == 0 else done.stderr.strip().rsplit("\n", 1)[-1]


@scenario(*BACKENDS)
def everything_goes_through_the_proxy(world):
    """In and out, over IPv4 and IPv6, with the original destination, while neither side has said a word."""
    site = Site(world)
    site.apply("--run-validation")
    for own, outside, loopback in ((OWN, OUTSIDE, "127.0.0.1"), (OWN6, OUTSIDE6, "::1")):
        equal(site.into(own), f"15006 {own} 80", "in")
        equal(site.into(own, 4444), f"15006 {own} 4444", "in, a port where nobody listens")
        equal(site.out(outside), f"15001 {outside} 80", "out")
        equal(site.out(outside, 4444), f"15001 {outside} 4444", "out, a port where nobody listens")
        for port in (15020, 15021):
            equal(site.into(own, port), f"{port} {own} {port}", "the proxy's own ports")
        equal(site.out(outside, 80, PROXY), f"80 {outside} 80", "the proxy's own calls")
        equal(site.out(loopback), f"80 {loopback} 80", "loopback")
        equal(site.out(own), f"80 {own} 80", "an application's call of its own address")
        equal(site.out(own, 80, PROXY), f"15006 {own} 80", "the proxy's call of its own pod")
        equal(site.out(loopback, 80, PROXY), f"80 {loopback} 80", "the proxy's call of its application")


@scenario(*BACKENDS)
def exclusions(world):
    """Ports, destinations, interfaces, users and groups that are not captured."""
    site = Site(world)
    site.apply("-d", "9000", "-o", "9000")
    equal((site.into(port=9000), site.into()), (f"9000 {OWN} 9000", f"15006 {OWN} 80"), "inbound ports")
    equal((site.out(port=9000), site.out()), (f"9000 {OUTSIDE} 9000", f"15001 {OUTSIDE} 80"), "outbound ports")
    site.apply("-b", "9000", "-i", f"{OUTSIDE}/32", "-q", "9000")
    equal((site.into(port=9000), site.into()), (f"15006 {OWN} 9000", f"80 {OWN} 80"), "inbound ports that are listed")
    equal(site.out(), f"15001 {OUTSIDE} 80", "a destination that is listed")
    equal(site.out(OUTSIDE6), f"80 {OUTSIDE6} 80", "a destination that is not")
    equal(site.out(OUTSIDE6, 9000), f"15001 {OUTSIDE6} 9000", "an outbound port that is listed")
    site.apply("-x", f"{OUTSIDE}/32,{OUTSIDE6}/128")
    equal((site.out(), site.out(OUTSIDE6)), (f"80 {OUTSIDE} 80", f"80 {OUTSIDE6} 80"), "destinations that are excluded")
    site.apply("-b", "", "-i", "")
    equal((site.into(), site.out()), (f"80 {OWN} 80", f"80 {OUTSIDE} 80"), "nothing")
    site.apply("-c", "eth0")
    equal((site.into(), site.out()), (f"80 {OWN} 80", f"80 {OUTSIDE} 80"), "an interface")
    site.apply("--exclude-uid", "2000", "--exclude-gid", "3000")
    found = [site.out(user=user).split(" ")[0] for user in (2000, 3000, APPLICATION)]
    equal(found, ["80", "80", "15001"], "users and groups")
    site.apply("-k", "eth0")
    equal(site.into(), f"15001 {OWN} 80", "what comes from a virtual machine")


@scenario(*BACKENDS)
def dns(world):
    """Queries to the nameservers, or all, over UDP and TCP; answers come from where they were asked."""
    site = Site(world)
    site.nameserver(world)
    site.apply()
    equal(ask(site.pod, OUTSIDE, 53, program=QUERY), f"53 from {OUTSIDE} 53", "UDP that is not captured")
    site.apply("--redirect-dns", "--capture-all-dns", "--run-validation")
    for server in (OUTSIDE, OUTSIDE6):
        equal(ask(site.pod, server, 53, program=QUERY), f"15053 from {server} 53", "UDP")
        equal(site.out(server, 53), f"15053 {server} 53", "TCP")
        equal(ask(site.pod, server, 53, PROXY, QUERY), f"53 from {server} 53", "the proxy's own, UDP")
        equal(site.out(server, 53, PROXY), f"53 {server} 53", "the proxy's own, TCP")
    # The machine's own nameserver is no server of this scenario: others are left alone then.
    site.apply("--redirect-dns")
    equal(ask(site.pod, OUTSIDE6, 53, program=QUERY), f"53 from {OUTSIDE6} 53", "a server that resolv.conf does not name")
    first = next(line.split()[1] for line in open("/etc/resolv.conf") if line.startswith("nameserver"))
    equal(ask(site.pod, first, 53, program=QUERY), f"15053 from {first} 53", "a server that resolv.conf names")


@scenario(*BACKENDS)
def once_more_and_away(world):
    """A second time changes nothing, another program replaces, cleaning leaves what others set."""
    site = Site(world)
    for program in ("iptables", "ip6tables"):
        for table, chains in (("nat", ("PREROUTING", "OUTPUT")), ("raw", ("PREROUTING", "OUTPUT")), ("mangle", ("PREROUTING",))):
            for chain in chains:
                site.pod.do(program, "-t", table, "-A", chain, "-p", "tcp", "--dport", "7777", "-j", "ACCEPT")
    before = site.rules()
    site.apply("--redirect-dns", "--capture-all-dns", "--drop-invalid")
    once = site.rules()
    site.apply("--redirect-dns", "--capture-all-dns", "--drop-invalid")
    equal(site.rules(), once, "the second time")
    code, log = site.capture("verify", "--redirect-dns", "--capture-all-dns", "--drop-invalid")
    equal(code, 0, log)
    other = next(b for b in BACKENDS if b != site.backend)
    equal(site.capture("apply", "--backend", other)[0], 0, "the other program")
    equal((site.out(), site.into()), (f"15001 {OUTSIDE} 80", f"15006 {OWN} 80"), "by the other program")
    site.apply()
    equal((site.out(), site.into()), (f"15001 {OUTSIDE} 80", f"15006 {OWN} 80"), "by the first again")
    equal(site.capture("clean")[0], 0, "clean")
    equal(sections(site.rules()), sections(before), "what others set")
    code, log = site.capture("clean")
    check(code == 0 and "no redirection was set" in log, log)


def sections(rules):
    """Tables in any order."""
    return sorted(rules.split("\ntable "))


@scenario(*BACKENDS)
def what_is_wrong_is_told(world):
    """Verification says what does not hold and what to do; without privilege nothing is attempted."""
    site = Site(world)
    code, log = site.capture("verify")
    check(code == 1 and "no redirection is set for V4" in log and "capture apply" in log, f"{code} {log}")
    site.apply()
    for flags, wrong in ((("-d", "9000"), "chain MESH_INBOUND has 2 rules, 3 are expected"), (("--redirect-dns",), "MESH_RAW_OUTPUT has 0")):
        code, log = site.capture("verify", *flags)
        check(code == 1 and wrong in log, f"{flags}: {code} {log}")
    # Somebody takes a piece away.
    if site.backend == "nft":
        site.pod.do("nft", "flush", "chain", "ip", "mesh_capture", "MESH_OUTPUT")
    else:
        site.pod.do("iptables", "-t", "nat", "-D", "OUTPUT", "-j", "MESH_OUTPUT")
    code, log = site.capture("verify")
    check(code == 1 and "MESH_OUTPUT" in log, f"{code} {log}")
    command = ["setpriv", "--reuid", "1000", "--clear-groups", str(harness.BIN / "mesh-proxy"), "capture", "apply"]
    program = world.folder / "mesh-proxy"
    program.write_bytes((harness.BIN / "mesh-proxy").read_bytes())
    program.chmod(0o755)
    world.folder.chmod(0o755)
    command[4] = str(program)
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    check(done.returncode == 1 and "NET_ADMIN" in done.stderr, f"{done.returncode} {done.stderr}")


@scenario(*BACKENDS)
def the_proxy_itself_is_verified(world):
    """Nobody is on the proxy's ports yet: connections of an application, of the proxy to its pod, and to elsewhere."""
    site = Site(world, served=False)
    site.apply("--run-validation")
    # Rules for another user than the proxy's: its calls would come back to it.
    site.apply("--proxy-uid", "4444")
    code, log = site.capture("verify")
    check(code == 1 and "comes back to it" in log and "--proxy-uid" in log, f"{code} {log}")
    site.apply("-i", "10.99.0.0/16")
    code, log = site.capture("verify")
    check(code == 1 and "does not come to port 15001" in log, f"{code} {log}")
