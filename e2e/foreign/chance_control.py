"""Random edits of the folder: whoever has followed all of them holds what somebody who comes now is given."""

import threading
import time

import ads_server as ads
from ads_server import CDS, EDS, LDS, RDS
from chance import dice
from control import Client, Mesh, istio, name_of, node, service, slice_of
from harness import check, scenario, until

TABLES = ["80", "90"]


class Follower:
    """A client as a proxy is one: takes everything, asks for the endpoints of all clusters, acknowledges at once."""

    def __init__(self, world, mesh, variant, name):
        self.delta = variant == "delta"
        self.client = world.keep(Client(mesh, variant, node(name)))
        self.state = {t: {} for t in (CDS, EDS, LDS, RDS)}
        self.newest, self.wanted, self.moved = {}, {CDS: [], LDS: [], RDS: TABLES, EDS: []}, time.monotonic()
        self.error = None
        self.client.ask(CDS)
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self):
        try:
            while not self.client.ended:
                if self.client.received:
                    self._take(self.client.next())
                    self.moved = time.monotonic()
                else:
                    time.sleep(0.005)
        except Exception as error:  # told by `settled`
            self.error = error

    def _take(self, response):
        ty, state = response.type_url, self.state[response.type_url]
        first = ty not in self.newest
        self.newest[ty] = response
        if self.delta:
            state.update((r.name, r.resource.value) for r in response.resources)
            for name in response.removed_resources:
                state.pop(name, None)
        else:
            came = {name_of(r): r.value for r in response.resources}
            if ty in ads.WHOLE:
                state.clear()
            state.update(came)
        self.client.answer(response, names=self.wanted[ty])
        if ty == CDS:
            self._ask_for_endpoints()
            if first:
                self.client.ask(LDS)
                self.client.ask(RDS, *TABLES)

    def _ask_for_endpoints(self):
        before, now = set(self.wanted[EDS]), {n for n in self.state[CDS] if n.startswith("outbound|")}
        if before == now:
            return
        self.wanted[EDS] = sorted(now)
        for name in before - now:
            self.state[EDS].pop(name, None)
        if self.delta:
            self.client.send(EDS, resource_names_subscribe=now - before, resource_names_unsubscribe=before - now)
        elif EDS in self.newest:
            self.client.answer(self.newest[EDS], names=now)
        else:
            self.client.ask(EDS, *now)

    def settled(self, quiet=0.35):
        """Waits until nothing comes any more."""
        until(lambda: time.monotonic() - self.moved > quiet or self.error, "quiet", 20)
        check(not self.error, lambda: f"{self.error!r}")
        check(not self.client.ended, lambda: f"the stream ended: {self.client.ended}")
        return {t: {n: v for n, v in s.items() if t != EDS or n in self.wanted[EDS]} for t, s in self.state.items()}


def difference(followed, fresh):
    """In words; `None`: none."""
    for ty in (CDS, EDS, LDS, RDS):
        a, b = followed[ty], fresh[ty]
        if a == b:
            continue
        changed = [n for n in a if n in b and a[n] != b[n]]
        return f"{ads.short(ty)}: too much {sorted(set(a) - set(b))[:4]}, missing {sorted(set(b) - set(a))[:4]}, outdated {changed[:4]}"
    return None


@scenario(weight=9)
def followers_hold_what_newcomers_get(world):
    """Services, endpoints, rules and routes come, change and go; both protocols are followed all along."""
    chance = dice("control")
    mesh = Mesh(world)
    names, there = [f"s{i}" for i in range(6)], set()

    def put_service(name):
        there.add(name)
        port = chance.choice([80, 80, 90])
        mesh.put(name, service(name, port=port, protocol=chance.choice(["http", "http", "grpc", "tcp"])),
                 *slice_of(name, chance.sample(range(7000, 7010), chance.randint(0, 3)), protocol="http"))

    def drop(name):
        if (mesh.config / f"{name}.yaml").exists():
            mesh.drop(name)
            there.discard(name)

    def put_rule(name):
        policy = {"connectionPool": {"tcp": {"maxConnections": chance.randint(1, 99)}}}
        subsets = [{"name": "v1", "labels": {"version": "v1"}}] if chance.random() < 0.5 else []
        mesh.put(f"rule-{name}", istio("DestinationRule", name, {"host": name, "trafficPolicy": policy, "subsets": subsets}))

    def put_route(name):
        other = chance.choice(names)
        mesh.put(f"route-{name}", istio("VirtualService", name, {"hosts": [name], "http": [
            {"match": [{"uri": {"prefix": f"/{chance.randint(0, 9)}"}}], "route": [{"destination": {"host": other}}]}, {"route": [{"destination": {"host": name}}]}]}))

    def put_scope():
        hosts = chance.sample([f"./{n}.shop.svc.cluster.local" for n in names], 4)
        mesh.put("scope", istio("Sidecar", "default", {"egress": [{"hosts": hosts}]}))

    for name in names[:3]:
        put_service(name)
    mesh.start()
    followers = {v: Follower(world, mesh, v, f"follower-{v}") for v in ("delta", "sotw")}
    actions = [lambda: put_service(chance.choice(names)), lambda: put_service(chance.choice(names)), lambda: drop(chance.choice(names)),
               lambda: put_rule(chance.choice(names)), lambda: drop(f"rule-{chance.choice(names)}"), lambda: put_route(chance.choice(names)),
               lambda: drop(f"route-{chance.choice(names)}"), put_scope, lambda: drop("scope")]
    for step in range(15):
        for _ in range(chance.randint(1, 8)):
            chance.choice(actions)()
            if chance.random() < 0.3:
                time.sleep(chance.random() * 0.15)
        time.sleep(0.3)
        followed = {v: f.settled() for v, f in followers.items()}
        newcomer = Follower(world, mesh, chance.choice(["delta", "sotw"]), "newcomer")
        fresh = newcomer.settled()
        newcomer.client.close()
        check(fresh[CDS] and fresh[LDS], f"step {step}: nothing came")
        for variant, state in followed.items():
            wrong = difference(state, fresh)
            check(wrong is None, f"step {step}, {variant}: {wrong}")
    for proxy in mesh.page("/debug/syncz"):
        check(all(t["nacks"] == 0 for t in proxy["types"].values()), f"nacks: {proxy}")
