"""The end of a proxy, and the ends of what it has: files, connections, memory for names that clients make up."""

import http.client
import json
import os
import signal
import socket
import threading
import time

import http2_bytes as h2b
import resources as r
from harness import Failed, check, equal, get, refused, scenario, until
from http_parts import Site, raw, statuses, whole
from proxy import serving


@scenario()
def the_end_under_load(world):
    """SIGTERM while requests are on their way, on HTTP/1.1 and HTTP/2: all of them are answered, then it ends (T38, F22)."""
    world.variant = "delta"
    _, proxy, port = serving(world)
    process = proxy.process
    process.may_end = True
    answers = []

    def ask():
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        try:
            connection.request("GET", "/last", headers={"host": "x", "x-wait-ms": "1200"})
            response = connection.getresponse()
            answers.append((response.status, response.getheader("connection"), response.read()))
        except (OSError, http.client.HTTPException) as error:
            answers.append((repr(error), None))

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(10)]
    for thread in threads:
        thread.start()
    streams = h2b.Raw(world, port)
    for i in range(10):
        streams.send(h2b.frame(h2b.HEADERS, 5, 2 * i + 1, h2b.head("/last", extra=[("x-wait-ms", "1200")])))
    idle = h2b.Raw(world, port)
    kept = socket.create_connection(("127.0.0.1", port), timeout=5)
    world.keep(kept)
    kept.sendall(b"GET /kept HTTP/1.1\r\nHost: x\r\n\r\n")
    check(b" 200 " in whole(kept), "a kept connection")
    idle.read(patience=0.3)
    time.sleep(0.3)
    begun = time.monotonic()
    process.child.send_signal(signal.SIGTERM)
    check(idle.read(lambda c: c.goaway == 0, 3), "no GOAWAY on an idle connection")
    equal(kept.recv(1000), b"", "an idle connection is closed")
    check(streams.read(lambda c: len(c.ended) == 10, 5), f"{len(streams.ended)} of 10 streams ended")
    equal((set(streams.statuses.values()), streams.resets, streams.goaway), ({200}, {}, 0), "HTTP/2")
    for thread in threads:
        thread.join(5)
    equal({a[:2] for a in answers}, {(200, "close")}, "HTTP/1.1")
    equal(len(answers), 10, "answers")
    until(lambda: not process.alive(), "the end", 8)
    equal(process.child.returncode, 0, "exit code")
    check(time.monotonic() - begun < 7, f"after {time.monotonic() - begun:.1f} s")
    check(refused(port), "the port is closed")


@scenario()
def no_files_left(world):
    """More connections than the process may have files: those that are served are served, and later all are again (T89)."""
    site = Site(world, files=256)
    kept = socket.create_connection(("127.0.0.1", site.port), timeout=5)
    world.keep(kept)
    kept.sendall(b"GET /kept HTTP/1.1\r\nHost: x\r\n\r\n")
    check(b" 200 " in whole(kept), "before")
    flood = []
    for _ in range(600):
        sock = socket.socket()
        sock.settimeout(5)
        try:
            sock.connect(("127.0.0.1", site.port))
        except OSError:
            pass
        flood.append(sock)
    time.sleep(0.5)
    check(site.process.alive(), "the proxy ended")
    kept.sendall(b"GET /kept HTTP/1.1\r\nHost: x\r\n\r\n")
    check(b" 200 " in whole(kept), "a connection that was there before")
    cpu = processor_time(site.process)
    time.sleep(1.0)
    check(processor_time(site.process) - cpu < 0.6, f"it spins: {processor_time(site.process) - cpu:.2f} s of a second")
    for sock in flood:
        sock.close()
    until(lambda: get(site.port, "/later").status == 200, "good answers afterwards", 3)


def processor_time(process):
    fields = open(f"/proc/{process.child.pid}/stat").read().rsplit(") ", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@scenario()
def too_many_connections(world):
    """The limit of connections of the whole process: more are refused, and the limit is not used up for ever (T89)."""
    monitor = {"name": "envoy.resource_monitors.global_downstream_max_connections",
               "typed_config": {"@type": r.TYPES + "resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig", "max_active_downstream_connections": "20"}}
    site = Site(world, bootstrap={"overload_manager": {"resource_monitors": [monitor]}})
    served, turned_away = [], 0
    for _ in range(40):
        sock = world.keep(socket.create_connection(("127.0.0.1", site.port), timeout=3))
        try:
            sock.sendall(b"GET /n HTTP/1.1\r\nHost: x\r\n\r\n")
            if b" 200 " in whole(sock):
                served.append(sock)
                continue
        except TimeoutError as error:
            raise Failed("a connection beyond the limit is left hanging") from error
        except OSError:
            pass
        turned_away += 1
    equal((len(served), turned_away), (20, 20), "connections served and turned away")
    for sock in served:
        sock.close()
    until(lambda: get(site.port, "/later").status == 200, "good answers afterwards", 3)


@scenario(weight=4)
def names_that_clients_make_up(world):
    """Thousands of hosts, paths, methods and headers: metrics stay bounded, and memory does (T94)."""
    site = Site(world)
    for _ in range(50):
        site.good()
    before, page = site.process.memory(), len(get(site.admin, "/stats/prometheus").body)
    with socket.create_connection(("127.0.0.1", site.port), timeout=10) as sock:
        for start in range(0, 8_000, 100):
            batch = b"".join(b"%s /p%d?q=%d HTTP/1.1\r\nHost: h%d.example\r\nX-H%d: v\r\nUser-Agent: u%d\r\n\r\n" % (b"M%d" % i if i % 2 else b"GET", i, i, i, i, i)
                             for i in range(start, start + 100))
            sock.sendall(batch)
            received = b""
            while received.count(b"HTTP/1.1 ") < 100:
                data = sock.recv(1 << 16)
                check(data, f"closed after {start} requests")
                received += data
    del site.upstream.requests[:]
    grown = len(get(site.admin, "/stats/prometheus").body) - page
    check(grown < 20_000, f"the page of metrics grew by {grown} bytes")
    until(lambda: site.process.memory() - before < 24 << 20, lambda: f"memory grew by {(site.process.memory() - before) >> 20} MiB", 5)


@scenario()
def lines_in_logs(world):
    """One request is one line, whatever it says; and a JSON line stays JSON (T95)."""
    text, lines = world.folder / "text.log", world.folder / "json.log"
    file_log = r.TYPES + "access_loggers.file.v3.FileAccessLog"
    words = "%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% \"%REQ(USER-AGENT)%\" %RESPONSE_CODE%\n"
    logs = [{"name": "text", "typed_config": {"@type": file_log, "path": str(text), "log_format": {"text_format_source": {"inline_string": words}}}},
            {"name": "json", "typed_config": {"@type": file_log, "path": str(lines), "log_format": {"json_format": {"path": "%REQ(:PATH)%", "agent": "%REQ(USER-AGENT)%", "code": "%RESPONSE_CODE%"}}}}]
    site = Site(world, access_log=logs)
    agents = [b"plain", b'"quoted" \\ back', b"\x1b[31mred", b"tab\there", b"caf\xc3\xa9", b"\xff\xfe", b"{}[],:", b"%REQ(:PATH)%", b"</script>", b"x" * 5000]
    count = 0
    for agent in agents:
        answer = raw(site.port, b"GET /log?a=%22b%0d%0a HTTP/1.1\r\nHost: x\r\nUser-Agent: " + agent + b"\r\nConnection: close\r\n\r\n")
        count += statuses(answer) == [200]
    check(count >= 7, f"{count} requests were served")
    raw(site.port, b"GET /log HTTP/1.1\r\nHost: x\r\nUser-Agent: a\nb\r\nConnection: close\r\n\r\n")
    until(lambda: lines.exists() and len(lines.read_bytes().splitlines()) >= count, "lines in the log")
    time.sleep(0.3)
    for line in lines.read_bytes().split(b"\n"):
        check(not line or json.loads(line)["code"] in (200, "200", 400, "400"), f"a line: {line[:200]}")
    check(all(c not in text.read_bytes() for c in (b"\x1b", b"\r")), "control characters reached the log")
    equal(len([line for line in text.read_bytes().split(b"\n") if b" 200" in line]), count, "lines of served requests")
