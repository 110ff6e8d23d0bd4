"""mesh-proxy as a process under `ads_server`, and the smallest configuration with which it serves."""

import harness
import resources as r
from ads_server import CDS, EDS, LDS, RDS, Control
from harness import equal, get, until


class Proxy:
    """mesh-proxy with an Envoy bootstrap file, or another program that takes one."""

    def __init__(self, world, control_port, variant, program="mesh-proxy", **more):
        self.admin = harness.free_port()
        path = world.write(f"bootstrap-{self.admin}.json", r.bootstrap(control_port, self.admin, variant, **more))
        self.process = world.process(program, "-c", path, "--concurrency", 2, "-l", "debug", "--disable-hot-restart")

    def ready(self):
        """Status and text of the readiness page."""
        answer = get(self.admin, "/ready")
        return answer.status, answer.body

    def until_ready(self):
        until(lambda: self.ready()[0] == 200, lambda: f"ready; log: {self.process.log()[-800:]}")

    def dump(self):
        return get(self.admin, "/config_dump").body


def start(world, variant=None, **more):
    """A server and a proxy."""
    control = world.keep(Control(variant or world.variant))
    world.audits.append(control.audit)
    return control, Proxy(world, control.port, control.variant, **more)


def simple(world, control, name="one"):
    """A backend behind cluster `b`, endpoints, route table `r` and listener `l`; the listener's port."""
    backend, port = world.backend(name), harness.free_port()
    control.put(CDS, b=r.cluster("b"))
    control.put(EDS, b=r.endpoints("b", backend.port))
    control.put(LDS, l=r.listener("l", port, "r"))
    control.put(RDS, r=r.route("r", "b"))
    return port


def serving(world, **more):
    """A proxy that serves `simple`."""
    control = world.keep(Control(world.variant))
    world.audits.append(control.audit)
    port = simple(world, control)
    proxy = Proxy(world, control.port, control.variant, **more)
    proxy.until_ready()
    equal(get(port).body, "one GET /", "body")
    return control, proxy, port
