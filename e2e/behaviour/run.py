"""Runs the behaviour cases: `run.py BIN_DIR [--only WORD]... [--flavour ours|envoy|envoy-sotw]...`.

One process a flavour; in each, one mesh stands and case after case is written into it.
"""

import argparse
import concurrent.futures
import multiprocessing
import pathlib
import sys
import time
import traceback
import uuid

sys.path.append(str(pathlib.Path(__file__).parent.parent / "foreign"))  # certificates

import cases
import client
import envoy_binary
import load
import names
import net
from backends import seconds
from istiod import WITHOUT_SECRETS, Istiod
from manifests import OURS_ONLY
from world import World

FLAVOURS = ("ours", "envoy", "envoy-sotw")
BY_HAND = ("istiod-envoy", "istiod-ours")
SETTLE = 4.0  # a step is tried again for this long before it counts as failed
COPIES = 2.0  # copies of a request may come this late
SECOND_CHANCES = 5  # so many cases that failed are tried again at the end; more are no accident


class Failed(Exception):
    """A case did not see what it must."""


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("bin_dir", type=pathlib.Path)
    parser.add_argument("--only", action="append", default=[], help="cases whose name contains this word")
    parser.add_argument("--flavour", action="append", choices=FLAVOURS + BY_HAND, help="proxies to judge")
    parser.add_argument("--istiod", type=pathlib.Path, help="pilot-discovery, for the flavours under it")
    parser.add_argument("--keep", action="store_true", help="keep folders with logs")
    arguments = parser.parse_args()
    folder = pathlib.Path(__file__).parent.parent / "cases"
    chosen = [c for c in cases.load(folder) if not arguments.only or any(w in c.name for w in arguments.only)]
    net.sweep()
    begun = time.monotonic()
    results = multiprocessing.Queue()
    workers = [
        multiprocessing.Process(target=run_flavour, args=(flavour, arguments, chosen, results))
        for flavour in arguments.flavour or FLAVOURS
    ]
    for worker in workers:
        worker.start()
    good = bad = 0
    for worker in workers:
        # What it says is one small tuple, so it does not wait for a reader; one that failed may have said nothing.
        worker.join()
        ok, failed = results.get() if worker.exitcode == 0 else (0, 1)
        good, bad = good + ok, bad + failed
    print(f"{good} passed, {bad} failed", flush=True)
    print(f"in {time.monotonic() - begun:.0f} s", flush=True)
    sys.exit(1 if bad or not good else 0)


def run_flavour(flavour, arguments, chosen, results):
    good = bad = 0
    failed = []
    binaries, envoy = arguments.bin_dir.resolve(), envoy_binary.path()
    world = Istiod(flavour, binaries, envoy, arguments.istiod.resolve()) if flavour in BY_HAND else World(flavour, binaries, envoy)
    if "ours" in flavour:
        chosen = [case for case in chosen if not case.envoy_only]
    if flavour != "ours":
        for case in chosen:
            case.positions = [p for p in case.positions if p not in OURS_ONLY]
        chosen = [case for case in chosen if case.positions]
    if flavour in BY_HAND:
        # Its webhook stops bad objects, which has no place here.
        chosen = [case for case in chosen if not case.invalid and case.name not in WITHOUT_SECRETS]
        for case in chosen:
            case.positions = [p for p in case.positions if p not in case.differs]
        chosen = [case for case in chosen if case.positions]
    try:
        world.start()
        failed = [case for case in chosen if not run_case(world, case)]
        good, bad = len(chosen) - len(failed), len(failed)
        for case in failed if bad <= SECOND_CHANCES and not world.crashed() else []:
            # What fails once and not again is said, and is no reason to keep a change out.
            if run_case(world, case):
                print(f"FLAKY {flavour} {case.name}: passed when tried again", flush=True)
                good, bad = good + 1, bad - 1
    except Exception:
        traceback.print_exc()
        bad += 1
    finally:
        world.close(keep_folder=bool(failed) or bool(bad) or arguments.keep)
        if failed or bad:
            print(f"     {flavour}: logs are in {world.folder}", flush=True)
    results.put((good, bad))


def run_case(world, case):
    begun = time.monotonic()
    runner = Runner(world, case)
    failure = None
    for number, step in enumerate(case.steps):
        world.apply(step.objects, case.mesh, case.patience)
        with concurrent.futures.ThreadPoolExecutor(len(case.positions)) as pool:
            failures = list(pool.map(lambda position: runner.settled(step, position), case.positions))
        failure = "; ".join(f"{p}: {f}" for p, f in zip(case.positions, failures) if f)
        if failure:
            failure = f"step {number + 1}: {failure}" if len(case.steps) > 1 else failure
            break
    if not failure and case.load:
        failure = load.change_under_load(world, case, lambda request, position: runner.send(request, position, case.name))
    if not failure and case.invalid and case.finding not in world.findings():
        failure = f"no finding names {case.finding!r}: {world.findings()[-800:]}"
    rejected = world.new_rejections()
    if not failure and rejected:
        failure = f"refused: {rejected}"
    failure = world.crashed() or failure
    word = "FAIL" if failure else "ok  "
    again = f", {runner.again} tried again" if runner.again else ""
    print(f"{word} {world.flavour} {case.name} ({time.monotonic() - begun:.1f} s{again}){': ' + failure if failure else ''}", flush=True)
    return not failure


class Runner:
    """Sends the requests of one case."""

    def __init__(self, world, case):
        self.world, self.case, self.again = world, case, 0

    def settled(self, step, position):
        """What is wrong with a step at a position, `None` when nothing is. The whole step is tried again for a while: a
        proxy acknowledges configuration before it is in force on every worker and connection."""
        end = time.monotonic() + (SETTLE if self.case.patience is None else self.case.patience)
        while True:
            try:
                for request in step.requests:
                    self.check(request, position)
                return None
            except Failed as failure:
                if time.monotonic() > end:
                    return str(failure)
                self.again += 1
                time.sleep(0.2)

    def check(self, request, position):
        expect, case = request["expect"], f"{self.case.name}/{uuid.uuid4()}"
        outcomes = []
        time.sleep(seconds(request.get("after", "0s")))
        before = self.world.counters(self.seen_by(position)) if "counted" in expect else {}
        for outcome in self.answers(request, position, case):
            why = cases.wrong(expect, outcome)
            if why:
                raise Failed(f"{cases.method_and_url(request)}: {why}")
            outcomes.append(outcome)
        why = cases.wrong_shares(expect, outcomes) or self.wrong_calls(expect, case) or self.wrong_log(expect, position, case) or self.wrong_metrics(expect, position, case) or self.wrong_counters(expect, position, before) or self.wrong_entries(expect, case)
        if why:
            raise Failed(f"{cases.method_and_url(request)}: {why}")

    def answers(self, request, position, case):
        """One after the other, or all `at_once`."""
        if "at_once" in request:
            with concurrent.futures.ThreadPoolExecutor(request["at_once"]) as pool:
                return list(pool.map(lambda _: self.send(request, position, case), range(request["at_once"])))
        return self.one_by_one(request, position, case)

    def one_by_one(self, request, position, case):
        """What the first answer says in the header that is to be remembered is said again in those that follow."""
        kept, name = {}, request.get("remember")
        for _ in range(request.get("times", 1)):
            outcome = self.send({**request, "headers": {**request.get("headers", {}), **kept}}, position, case)
            if name and not kept and (value := outcome.header(name)):
                kept = {"cookie": value.split(";")[0]} if name == "set-cookie" else {name: value}
            yield outcome
        if name and not kept:
            raise Failed(f"no answer holds {name}")

    def seen_by(self, position):
        """The proxy in question."""
        return "guarded" if position == "inbound" else self.proxy(position, {})

    def send(self, request, position, case):
        try:
            return self.send_to(request, position, case)
        except names.NoSuchName as error:
            return client.Outcome(error="name", body=str(error))

    def send_to(self, request, position, case):
        method, url = cases.method_and_url(request)
        proxy = self.proxy(position, request)
        timeout = seconds(request.get("timeout", "10s"))
        headers = [("x-case", case), *request.get("headers", {}).items()]
        if method == "tcp":
            host, port = url.split(":")
            namespace, address = self.world.place(proxy, host, int(port))
            return client.tcp_exchange(namespace, address, request["send"], timeout, self.world.tls("tcp", host, request))
        scheme, host, port, path = cases.split_url(url)
        if "at" in request:
            address = ("127.0.0.1", request["at"])
            return client.http_request(self.world.pods[proxy], address, method.upper(), path, host, headers, request.get("body"), timeout=timeout)
        if method == "grpc":
            namespace, address = self.world.place(proxy, host, 80 if proxy.startswith("gateway") else port)
            return client.grpc_call(namespace, address, path, host, headers, timeout)
        return self.world.send(proxy, method.upper(), scheme, host, port, path, headers, request.get("body"), timeout, self.world.tls(scheme, host, request))

    def proxy(self, position, request):
        """Whose proxy a request goes through first."""
        if "via" in request:
            return request["via"]
        if "from" in request:
            return request["from"]
        if position == "gateway" and self.case.gateway_api():
            return "gateway-api"
        return "explicit" if position == "inbound" else position

    def wrong_calls(self, expect, case):
        """How often backends were called, copies included: those may come late, and one too many would come by then."""
        wanted = {**expect.get("calls", {}), **expect.get("mirrored", {})}
        end = time.monotonic() + COPIES
        while True:
            found = self.world.calls.of(case)
            wrong = {b: (n, found.get(b, 0)) for b, n in wanted.items() if found.get(b, 0) != n}
            if not wrong:
                break
            if time.monotonic() > end:
                return f"calls (expected, found): {wrong}"
            time.sleep(0.02)
        if expect.get("mirrored"):
            time.sleep(0.2)
            found = self.world.calls.of(case)
            wrong = {b: (n, found.get(b, 0)) for b, n in wanted.items() if found.get(b, 0) != n}
            return f"copies (expected, found): {wrong}" if wrong else None
        return None

    def wrong_log(self, expect, position, case):
        """Flags and details in the access log of the proxy in question, and how many lines there are."""
        if "logged" in expect:
            return self.wrong_lines(expect["logged"], position, case)
        wanted = {k: expect[k] for k in ("flags", "details") if k in expect}
        if not wanted:
            return None
        name = self.seen_by(position)
        end, lines = time.monotonic() + 3.0, []
        while time.monotonic() < end:
            lines = self.world.proxies[name].lines(case)
            if any(all(line.get(k) == v for k, v in wanted.items()) for line in lines):
                return None
            time.sleep(0.05)
        return f"access log: expected {wanted}, found {lines}"

    def wrong_entries(self, expect, case):
        """What collectors of access logs got. Batches come each second."""
        end = time.monotonic() + 4.0
        for wanted in expect.get("collected", []):
            fields = {path: case if value == "$CASE" else value for path, value in wanted["entry"].items()}
            if wanted.get("none"):
                time.sleep(2.0)
            while not wanted.get("none") and not self.world.collector.like(wanted["log"], fields) and time.monotonic() < end:
                time.sleep(0.1)
            found = len(self.world.collector.like(wanted["log"], fields))
            if bool(found) == wanted.get("none", False):
                return f"collector {wanted['log']}: expected {'none' if wanted.get('none') else 'some'} like {fields}, found {found}; the last is {self.world.collector.last(wanted['log'])}"
        return None

    def wrong_counters(self, expect, position, before):
        """By how much counters of the proxy in question grew."""
        end = time.monotonic() + 2.0
        while True:
            now = self.world.counters(self.seen_by(position)) if "counted" in expect else {}
            found = {name: now.get(name, 0) - before.get(name, 0) for name in expect.get("counted", {})}
            if found == expect.get("counted", {}):
                return None
            if time.monotonic() > end:
                return f"counters: expected {expect['counted']}, found {found}"
            time.sleep(0.1)

    def wrong_metrics(self, expect, position, case):
        """Istio's metrics of the proxy in question: only our own has them, the filter that makes them is not in a stock Envoy."""
        if "metrics" not in expect or "ours" not in self.world.flavour:
            return None
        name, end = self.seen_by(position), time.monotonic() + 2.0
        while True:
            page = self.world.metrics(name)
            why = [w for w in (cases.wrong_metric(m, case, page) for m in expect["metrics"]) if w]
            if not why or time.monotonic() > end:
                return "; ".join(why) or None
            time.sleep(0.1)

    def wrong_lines(self, wanted, position, case):
        """How many lines the access log has of a request; one too many would come by then."""
        name = self.seen_by(position)
        end = time.monotonic() + 3.0
        while len(self.world.proxies[name].lines(case)) < max(wanted, 1) and time.monotonic() < end:
            if not wanted and end - time.monotonic() < 2.3:
                break
            time.sleep(0.05)
        found = len(self.world.proxies[name].lines(case))
        return None if found == wanted else f"access log: expected {wanted} lines, found {found}"


if __name__ == "__main__":
    main()
