"""Network namespaces: pods with addresses of their own on one bridge, and redirection as the init container sets it.

Needs root, `ip` and `nft`. Knows nothing of proxies or cases.
"""

import contextlib
import ctypes
import os
import pathlib
import re
import socket
import subprocess

PREFIX = "mb"  # names: mbPID-WORLD-POD
PROXY_ID = 1337  # user and group of proxies, as in Istio
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def run(*command):
    """Runs a command that must succeed."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def sweep():
    """Removes what killed runs left behind."""
    for line in run("ip", "netns", "list").splitlines():
        name = line.split(" ")[0]
        owner = re.match(rf"{PREFIX}(\d+)-", name)
        if owner and not pathlib.Path(f"/proc/{owner[1]}").exists():
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


class Namespace:
    """A network namespace with loopback up; ports below 1024 are open to everybody, as in containers."""

    def __init__(self, name):
        self.name = f"{PREFIX}{os.getpid()}-{name}"
        run("ip", "netns", "add", self.name)
        self._fd = os.open(f"/run/netns/{self.name}", os.O_RDONLY | os.O_CLOEXEC)
        self.do("ip", "link", "set", "lo", "up")
        self.do("sysctl", "-qw", "net.ipv4.ip_unprivileged_port_start=0", "net.ipv6.conf.all.disable_ipv6=0")

    def do(self, *command):
        return run("nsenter", f"--net=/run/netns/{self.name}", *command)

    @contextlib.contextmanager
    def entered(self):
        """This thread makes sockets in the namespace meanwhile."""
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _enter(self._fd)
            yield
        finally:
            _enter(home)
            os.close(home)

    def socket(self, kind=socket.SOCK_STREAM):
        """A socket that lives there, of TCP if nothing else is said."""
        with self.entered():
            return socket.socket(socket.AF_INET, kind)

    def close(self):
        os.close(self._fd)
        subprocess.run(["ip", "netns", "del", self.name], capture_output=True)


def _enter(fd):
    if _libc.setns(fd, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


class Network:
    """A namespace with a bridge, which everything without a sidecar lives in, and pods beside it."""

    def __init__(self, name, gateway="10.77.0.1"):
        self.name, self.gateway = name, gateway
        self.root = Namespace(f"{name}-root")
        self._pods = []
        # With an address of its own it does not take that of whichever pod comes last, which those before do not hear of.
        self.root.do("ip", "link", "add", "br0", "address", "02:00:00:00:00:01", "type", "bridge")
        self.root.do("ip", "addr", "add", f"{gateway}/16", "dev", "br0")
        self.root.do("ip", "link", "set", "br0", "up")

    def address(self, ip):
        """One more address of the root namespace."""
        self.root.do("ip", "addr", "add", f"{ip}/16", "dev", "br0")

    def pod(self, name, ip, capturer=None, dns=False):
        """A namespace with one address; everything is redirected to its proxy by the binary `capturer`, if there is one, and with
        `dns` what is asked of resolvers as well."""
        pod = Namespace(f"{self.name}-{name}")
        self._pods.append(pod)
        link = f"v{len(self._pods)}"
        self.root.do("ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", pod.name)
        self.root.do("ip", "link", "set", link, "master", "br0", "up")
        pod.do("ip", "addr", "add", f"{ip}/16", "dev", "eth0")
        pod.do("ip", "link", "set", "eth0", "up")
        pod.do("ip", "route", "add", "default", "via", self.gateway)
        if capturer:
            capture(pod, capturer, dns)
        return pod

    def close(self):
        for pod in self._pods:
            pod.close()
        self.root.close()


def capture(pod, proxy, dns=False):
    """Redirects as the init container does, by the binary `proxy`."""
    more = ("--redirect-dns", "--capture-all-dns") if dns else ()
    pod.do(proxy, "capture", "apply", "--proxy-uid", PROXY_ID, "--run-validation", *more)
