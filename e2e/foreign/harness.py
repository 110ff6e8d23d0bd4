"""What all scenarios share: registration, processes, ports, a backend, a small HTTP client, load.

Knows nothing of xDS. A scenario is a function of one argument, its `World`, which ends everything that it started.
"""

import concurrent.futures
import errno
import http.client
import http.server
import json
import os
import pathlib
import random
import resource
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import traceback

PATIENCE = 15.0  # nothing that is waited for may take longer
SECOND_CHANCES = 3  # so many scenarios that failed are tried again alone; more are no accident
SCENARIOS = []
BIN = None  # folder of the binaries, set by run.py


class Failed(Exception):
    """A scenario did not see what it must."""


def scenario(*variants, weight=1):
    """Registers a scenario, once for each variant (`delta`, `sotw`), or once without."""

    def register(function):
        area = function.__module__
        for variant in variants or (None,):
            name = f"{area}/{function.__name__}" + (f"[{variant}]" if variant else "")
            SCENARIOS.append((name, weight, function, variant))
        return function

    return register


def check(condition, why):
    if not condition:
        raise Failed(why() if callable(why) else why)


def equal(found, wanted, what="value"):
    if found != wanted:
        raise Failed(f"{what}: found {clip(found)}, wanted {clip(wanted)}")


def clip(value, most=600):
    text = repr(value)
    return text if len(text) <= most else text[:most] + "..."


def until(condition, what, patience=PATIENCE, pause=0.02):
    """Waits until `condition()` is true and returns it; what is thrown meanwhile is told when time is up."""
    end = time.monotonic() + patience
    last = None
    while True:
        try:
            found = condition()
            if found:
                return found
        except (OSError, http.client.HTTPException, Failed) as error:
            last = error
        if time.monotonic() > end:
            text = what() if callable(what) else what
            raise Failed(f"not within {patience:g} s: {text}" + (f" ({last!r})" if last else ""))
        time.sleep(pause)


def holds(condition, what, duration):
    """Looks for a while whether `condition()` stays true."""
    end = time.monotonic() + duration
    while time.monotonic() < end:
        check(condition(), what)
        time.sleep(0.02)


_ports = set()
_ports_lock = threading.Lock()


def free_port():
    """A port below those that the system gives to outgoing connections, so that nobody takes it meanwhile."""
    with _ports_lock:
        while True:
            port = random.randrange(10240, 32000)
            if port in _ports:
                continue
            with socket.socket() as probe:
                try:
                    probe.bind(("127.0.0.1", port))
                except OSError:
                    continue
            _ports.add(port)
            return port


class Answer:
    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body

    def __repr__(self):
        return f"{self.status} {clip(self.body, 200)}"


def get(port, path="/", host="x", headers=None, method="GET", body=None, timeout=10.0):
    """One request on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request(method, path, body=body, headers={"host": host, "connection": "close", **(headers or {})})
        response = connection.getresponse()
        text = response.read().decode("utf-8", "replace")
        return Answer(response.status, response.headers, text)
    finally:
        connection.close()


def refused(port):
    """Whether nobody listens there."""
    with socket.socket() as probe:
        probe.settimeout(2)
        return probe.connect_ex(("127.0.0.1", port)) != 0


class Backend:
    """Answers `NAME METHOD PATH`; waits `x-wait-ms` before. Remembers what came."""

    def __init__(self, name, port=None):
        self.name, self.port, self.seen = name, port or free_port(), []
        backend = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # A late last segment is not what is measured here.
            disable_nagle_algorithm = True

            def answer(self):
                size = int(self.headers.get("content-length") or 0)
                self.rfile.read(size)
                backend.seen.append((self.command, self.path, dict(self.headers)))
                time.sleep(int(self.headers.get("x-wait-ms") or 0) / 1000)
                body = f"{backend.name} {self.command} {self.path}".encode()
                self.send_response(200)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = do_PUT = do_DELETE = answer

            def log_message(self, *_):
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, *_):
                pass  # a client that goes away

        self._server = Server(("127.0.0.1", self.port), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()


class Process:
    """A program of ours with its log; killed at the end of the scenario."""

    def __init__(self, folder, name, arguments, environment=None, files=None):
        self.log_path = pathlib.Path(folder) / f"{pathlib.Path(name).name}-{random.randrange(1 << 32):x}.log"
        self.name = name
        with open(self.log_path, "wb") as log:
            self.child = subprocess.Popen(
                [str(BIN / name), *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
                preexec_fn=files and (lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))),
            )

    def alive(self):
        return self.child.poll() is None

    def log(self):
        return self.log_path.read_text("utf-8", "replace")

    def stop(self):
        """Pauses it (SIGSTOP)."""
        self.child.send_signal(signal.SIGSTOP)

    def resume(self):
        self.child.send_signal(signal.SIGCONT)

    def memory(self):
        """Resident bytes."""
        for line in pathlib.Path(f"/proc/{self.child.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        return 0

    def close(self):
        if self.alive():
            self.child.kill()
        self.child.wait()


class Load:
    """Requests without a pause on a few kept connections; counts what fails. Retries nothing."""

    def __init__(self, port, path="/", threads=2, pause=0.005, headers=None, connect=None):
        self.port, self.path, self.pause, self.headers = port, path, pause, headers or {}
        self.connect = connect or (lambda: http.client.HTTPConnection("127.0.0.1", port, timeout=10))
        self.good, self.bad, self.slowest = 0, [], 0.0
        self.answers = {}
        self._over, self._lock = threading.Event(), threading.Lock()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def _run(self):
        connection = self.connect()
        while not self._over.is_set():
            begun = time.monotonic()
            try:
                connection.request("GET", self.path, headers={"host": "x", **self.headers})
                response = connection.getresponse()
                body = response.read().decode("utf-8", "replace")
                failure = None if response.status == 200 else f"{response.status} {clip(body, 100)}"
                if response.will_close:
                    connection.close()
            except (OSError, http.client.HTTPException) as error:
                failure, body = repr(error), ""
                connection.close()
                connection = self.connect()
            with self._lock:
                self.slowest = max(self.slowest, time.monotonic() - begun)
                if failure:
                    self.bad.append(failure)
                else:
                    self.good += 1
                    who = body.split(" ")[0]
                    self.answers[who] = self.answers.get(who, 0) + 1
            time.sleep(self.pause)
        connection.close()

    def more(self, count=20):
        """Waits for that many more good answers."""
        goal = self.good + count
        until(lambda: self.good >= goal or self.bad, lambda: f"load does not go on: {self.good} good")

    def end(self, most_bad=0):
        self.close()
        check(self.good > 0, "load: no request was answered")
        check(len(self.bad) <= most_bad, lambda: f"load: {len(self.bad)} of {self.good + len(self.bad)} failed: {self.bad[:3]}")
        return self.good

    def close(self):
        self._over.set()
        for thread in self._threads:
            thread.join(12)


class World:
    """Things of one scenario, ended in reverse order."""

    def __init__(self, name, variant):
        self.name, self.variant = name, variant
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="foreign-"))
        self._things = []
        self.audits = []  # called when the scenario itself went well

    def keep(self, thing):
        self._things.append(thing)
        return thing

    def backend(self, name="one", port=None):
        return self.keep(Backend(name, port))

    def process(self, name, *arguments, **more):
        return self.keep(Process(self.folder, name, arguments, **more))

    def load(self, *arguments, **more):
        return self.keep(Load(*arguments, **more))

    def write(self, name, content):
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content, indent=1))
        return path

    def close(self, keep_folder):
        for thing in reversed(self._things):
            try:
                thing.close()
            except Exception:  # the rest must be ended as well
                traceback.print_exc()
        if not keep_folder:
            shutil.rmtree(self.folder, ignore_errors=True)

    def crashed(self):
        """Programs that ended by themselves or say that they panicked."""
        for thing in self._things:
            if isinstance(thing, Process):
                log = thing.log()
                at = log.find("panicked at")
                if at >= 0:
                    return f"{thing.name} panicked: {log[at:at + 300]}"
                if not thing.alive() and not getattr(thing, "may_end", False):
                    return f"{thing.name} ended with {thing.child.returncode}: {log[-500:]}"
        return None


def run_one(name, function, variant, again=True):
    """Whether it passed; `None` when a program crashed, which is never an accident."""
    world = World(name, variant)
    begun = time.monotonic()
    try:
        function(world)
        for audit in world.audits:
            audit()
        failure = world.crashed()
    except Failed as error:
        failure = world.crashed() or str(error)
    except Exception as error:  # a bug of the scenario is a failure as well
        if again and isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            # Somebody took a port between the look at it and its use; that says nothing of the programs.
            world.close(keep_folder=False)
            return run_one(name, function, variant, again=False)
        where = traceback.extract_tb(error.__traceback__)[-1]
        failure = world.crashed() or f"{error!r} at {pathlib.Path(where.filename).name}:{where.lineno}"
    crashed = world.crashed() is not None
    world.close(keep_folder=failure is not None)
    seconds = time.monotonic() - begun
    if failure:
        print(f"FAIL {name} ({seconds:.1f} s): {failure} [{world.folder}]", flush=True)
    else:
        print(f"ok   {name} ({seconds:.1f} s)", flush=True)
    return None if crashed else failure is None


def run_all(chosen, at_once):
    """Runs scenarios beside each other: most of the time they wait."""
    # Long ones first, so that none is left alone at the end.
    chosen = sorted(chosen, key=lambda s: -s[1])
    with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
        results = list(pool.map(lambda s: run_one(s[0], s[2], s[3]), chosen))
    failed = [s for s, good in zip(chosen, results) if not good]
    if 0 < len(failed) <= SECOND_CHANCES and None not in results:
        # What fails beside others and not alone is said, and is no reason to keep a change out.
        mended = [s for s in failed if run_one(s[0], s[2], s[3])]
        for name, *_ in mended:
            print(f"FLAKY {name}: failed beside others, passed alone", flush=True)
        failed = [s for s in failed if s not in mended]
    return len(chosen) - len(failed), len(failed)
