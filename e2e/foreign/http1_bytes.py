"""HTTP/1.1 written byte by byte: what two parsers may read in two ways is refused, or leaves the proxy in one form."""

import concurrent.futures
import socket
import threading
import time

import harness
from harness import Failed, check, equal, get, scenario, until
from http_parts import Site, allow, deny, path_is, raw, statuses
import resources as r

REFUSALS = {400, 405, 413, 414, 417, 426, 431, 501, 505}


def each(cases, judge):
    """Judges every case; all that fail are told."""
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        def one(numbered):
            number, case = numbered
            try:
                judge(number, *case)
            except Exception as error:
                return f"{case[0]}: {error}"
        wrong = [w for w in pool.map(one, enumerate(cases)) if w]
    check(not wrong, lambda: f"{len(wrong)} of {len(cases)}: " + " | ".join(wrong[:8]))


SECOND = b"GET /second-%d HTTP/1.1\r\nHost: x\r\n\r\n"


def refuse_all(site, cases, framed=()):
    """Each case, `(what, bytes)`, is refused; nothing of it reaches the upstream, and it is the last on its connection.

    Only those named in `framed`, of which it is certain where they end, may be followed by another request.
    """

    def judge(number, what, data):
        answer = site.raw(data.replace(b"/case", b"/case-%d-" % number) + SECOND % number)
        check(answer is not None, "left hanging")
        found = statuses(answer)
        check(not found or found[0] in REFUSALS, f"answered {found}")
        check(len(found) <= 1 or what in framed, f"more than one answer: {found}")
        for path in (f"/case-{number}-", f"/second-{number}"):
            check(path.startswith("/second") and what in framed or not site.upstream.of(path), f"{path} reached the upstream: {site.upstream.of(path)[:1]}")

    each(cases, judge)
    site.good()


def post(headers, body=b"", version=b"HTTP/1.1"):
    return b"POST /case " + version + b"\r\nHost: x\r\n" + headers + b"\r\n" + body


CHUNKED = b"5\r\nhello\r\n0\r\n\r\n"


@scenario()
def two_lengths(world):
    """Content-Length and Transfer-Encoding together, in any order: refused, or chunked alone and then the end (T01)."""
    site = Site(world)
    orders = [
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        b"Content-Length: 30\r\nTransfer-Encoding: chunked\r\n",
        b"Content-length: 0\r\nTransfer-encoding: CHUNKED\r\n",
        b"Transfer-Encoding: chunked\r\nX: y\r\nContent-Length: 4\r\n",
    ]

    def judge(number, headers):
        data = post(headers, CHUNKED).replace(b"/case", b"/case-%d-" % number)
        answer = site.raw(data + SECOND % number)
        check(answer is not None, "left hanging")
        found = statuses(answer)
        check(len(found) <= 1, f"the second request was answered: {found}")
        check(not site.upstream.of(f"/second-{number}"), "the second request reached the upstream")
        for head, body in site.upstream.of(f"/case-{number}-"):
            lower = head.lower()
            check((b"content-length" in lower) != (b"transfer-encoding" in lower), f"one framing: {head}")
            equal(body, b"hello", "body")

    each([(o,) for o in orders], judge)
    site.good()


@scenario()
def lengths(world):
    """Lengths that are none, or two (T02, T03)."""
    site = Site(world)
    values = [b"+5", b"-0", b"-5", b"0x10", b"1_0", b"", b"5 6", b"5, 6", b"5;6", b"99999999999999999999", b"18446744073709551616",
              b"5\x0b", b"\x0c5", b"5\x00", b"five", b"5.0", b"1e1"]
    cases = [(v, post(b"Content-Length: " + v + b"\r\n", b"hello")) for v in values]
    cases += [(a + b" and " + b, post(b"Content-Length: " + a + b"\r\nContent-Length: " + b + b"\r\n", b"hello!"))
              for a, b in ((b"5", b"6"), (b"6", b"5"), (b"0", b"5"))]
    refuse_all(site, cases)
    # The same twice may be one.
    answer = site.raw(post(b"Content-Length: 5\r\nContent-Length: 5\r\n", b"hello").replace(b"/case", b"/twice"))
    check(statuses(answer) in ([200], [400]), f"answered {statuses(answer)}")
    for head, body in site.upstream.of("/twice"):
        equal((head.lower().count(b"content-length"), body), (1, b"hello"), "one length")


@scenario()
def transfer_encodings(world):
    """Transfer codings other than exactly `chunked`, last (T04, T05)."""
    site = Site(world)
    values = [b"chunked, identity", b"xchunked", b"chunked x", b"identity", b"gzip", b"chunked, gzip", b"\x0bchunked", b"chunked\x0b", b"chu nked", b"chunked;q=1", b"\"chunked\"", b"chunked\x00"]
    cases = [(v, post(b"Transfer-Encoding: " + v + b"\r\n", CHUNKED)) for v in values]
    cases += [("two lines", post(b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", CHUNKED)),
              ("a space before the colon", post(b"Transfer-Encoding : chunked\r\n", CHUNKED)),
              ("a folded line", post(b"Transfer-Encoding:\r\n chunked\r\n", CHUNKED)),
              ("HTTP/1.0", post(b"Transfer-Encoding: chunked\r\n", CHUNKED, b"HTTP/1.0")),
              ("HTTP/1.0 with a length", post(b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", CHUNKED, b"HTTP/1.0"))]
    refuse_all(site, cases)


@scenario()
def chunks(world):
    """Chunks with broken sizes, ends and extensions: no byte behind the fault is forwarded (T06, T07)."""
    site = Site(world)
    bodies = [b"0x5\r\nhello\r\n0\r\n\r\n", b"+5\r\nhello\r\n0\r\n\r\n", b"-5\r\nhello\r\n0\r\n\r\n", b"\r\nhello\r\n0\r\n\r\n",
              b"1" + b"0" * 17 + b"\r\nhello\r\n0\r\n\r\n", b"5_\r\nhello\r\n0\r\n\r\n", b"5\rhello\r\n0\r\n\r\n",
              b"5\r\nhelloX\r\n0\r\n\r\n", b"5\r\nhello0\r\n\r\n", b"5;a\rb\r\nhello\r\n0\r\n\r\n", b"g\r\nhello\r\n0\r\n\r\n",
              b"5\nhello\r\n0\r\n\r\n", b"5\r\nhello\n0\r\n\r\n", b"5;a\nb\r\nhello\r\n0\r\n\r\n", b"5;" + b"a" * 70_000 + b"\r\nhello\r\n0\r\n\r\n"]

    def judge(number, body):
        data = post(b"Transfer-Encoding: chunked\r\n", body).replace(b"/case", b"/case-%d-" % number)
        answer = site.raw(data + SECOND % number)
        check(answer is not None, "left hanging")
        found = statuses(answer)
        check(not found or found[0] in REFUSALS | {502}, f"answered {found}")
        check(len(found) <= 1 and not site.upstream.of(f"/second-{number}"), f"the second request was read: {found}")
        for head, whole in site.upstream.of(f"/case-{number}-"):
            check(whole is None or not whole, f"the upstream got a whole body: {whole}")

    each([(b,) for b in bodies], judge)
    site.good()


@scenario()
def heads(world):
    """Heads that parsers disagree about: folds, spaces, bare line ends, NUL, odd names and versions (T09 - T12)."""
    site = Site(world)
    get_ = lambda headers, line=b"GET /case HTTP/1.1": line + b"\r\nHost: x\r\n" + headers + b"\r\n"
    cases = [
        ("obs-fold", get_(b"A: b\r\n c\r\n")), ("obs-fold by tab", get_(b"A: b\r\n\tc\r\n")),
        ("space before the colon", get_(b"A : b\r\n")), ("tab before the colon", get_(b"A\t: b\r\n")),
        ("space first", b"GET /case HTTP/1.1\r\n Host: x\r\n\r\n"), ("no name", get_(b": b\r\n")), ("no colon", get_(b"Ab\r\n")),
        ("byte 85 in a name", get_(b"A\x85: b\r\n")), ("bracket in a name", get_(b"A(b: c\r\n")), ("NUL in a name", get_(b"A\x00: b\r\n")),
        ("NUL in a value", get_(b"A: b\x00c\r\n")), ("bare CR in a value", get_(b"A: b\rc: d\r\n")), ("bare CR as line end", b"GET /case HTTP/1.1\rHost: x\r\r"),
        ("DEL in a value", get_(b"A: b\x7fc\r\n")), ("control byte in a value", get_(b"A: \x01\r\n")),
        ("no Host", b"GET /case HTTP/1.1\r\n\r\n"), ("empty Host", b"GET /case HTTP/1.1\r\nHost:\r\n\r\n"),
        ("two Hosts", b"GET /case HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n"), ("the same Host twice", b"GET /case HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n"),
        ("user info in Host", b"GET /case HTTP/1.1\r\nHost: a@x\r\n\r\n"), ("a:b:c as Host", b"GET /case HTTP/1.1\r\nHost: a:b:c\r\n\r\n"),
        ("space in Host", b"GET /case HTTP/1.1\r\nHost: x y\r\n\r\n"), ("slash in Host", b"GET /case HTTP/1.1\r\nHost: x/y\r\n\r\n"),
        ("HTTP/1.32", get_(b"", b"GET /case HTTP/1.32")), ("HTTP/0.9", b"GET /case\r\n\r\n"), ("HTTP/2.0", get_(b"", b"GET /case HTTP/2.0")),
        ("HTTP/3.0", get_(b"", b"GET /case HTTP/3.0")), ("http/1.1", get_(b"", b"GET /case http/1.1")), ("two spaces", get_(b"", b"GET  /case HTTP/1.1")),
        ("tab", get_(b"", b"GET\t/case HTTP/1.1")), ("space in the path", get_(b"", b"GET /case a HTTP/1.1")), ("no method", get_(b"", b" /case HTTP/1.1")),
        ("a path without a slash", get_(b"", b"GET case HTTP/1.1").replace(b" case", b" x/case")), ("bracket in the method", get_(b"", b"GE(T /case HTTP/1.1")),
        ("NUL in the path", get_(b"", b"GET /case\x00 HTTP/1.1")), ("CR in the path", get_(b"", b"GET /case\r HTTP/1.1")),
        ("a fragment and a second version", get_(b"", b"GET /case HTTP/1.1 HTTP/1.1")),
    ]
    refuse_all(site, cases, framed={what for what, _ in cases if "Host" in what})


@scenario()
def bare_line_feeds(world):
    """Lines that end in LF alone: refused, or read as lines and written to the upstream with CRLF (T10)."""
    site = Site(world)
    for number, data in enumerate([b"GET /lf%d HTTP/1.1\nHost: x\n\n", b"GET /lf%d HTTP/1.1\r\nHost: x\nA: b\r\n\r\n",
                                   b"GET /lf%d HTTP/1.1\r\nHost: x\r\nA: b\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"]):
        answer = site.raw(data % number)
        check(answer is not None, "left hanging")
        found = statuses(answer)
        check(found in ([400], [], [200]), f"answered {found}")
        for head, _ in site.upstream.of(f"/lf{number}"):
            check(b"\n" not in head.replace(b"\r\n", b""), f"a bare LF was forwarded: {head}")
    site.good()


@scenario()
def targets_in_absolute_form(world):
    """Policy, route and upstream see one authority: that of the target, not that of Host (T11)."""
    inside = {"name": "inside", "domains": ["inside"], "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "up"}}]}
    outside = {"name": "rest", "domains": ["*"], "routes": [r.says("/", "outside")]}
    rule = deny(and_rules={"rules": [{"header": {"name": ":authority", "string_match": {"exact": "inside"}}}, path_is("/admin")]})
    site = Site(world, [rule], routes={"name": "i", "virtual_hosts": [inside, outside]})

    def ask(line, host):
        return site.raw(b"GET " + line + b" HTTP/1.1\r\nHost: " + host + b"\r\nConnection: close\r\n\r\n")

    def outcome(line, host):
        return statuses(ask(line, host))[0]

    check(b"outside" in ask(b"http://outside/abs1", b"inside"), "the target's authority chooses the route")
    equal(outcome(b"http://inside/admin", b"outside"), 403, "the policy sees the target's authority")
    equal(outcome(b"/admin", b"inside"), 403, "origin form")
    equal(outcome(b"http://inside/abs2", b"outside"), 200, "status")
    for head, _ in site.upstream.of("abs2"):
        check(b"\r\nhost: inside\r\n" in head.lower() and b"outside" not in head and head.startswith(b"GET /abs2 "), f"the upstream's head: {head}")
    for line in (b"http://a@inside/x", b"http:///x", b"http://in side/x", b"ftp://inside/x", b"http:/inside/x"):
        found = statuses(ask(line, b"inside"))
        check(found in ([], [400], [404]) or (line.startswith(b"ftp") and found in ([200], [501])), f"{line}: {found}")


@scenario()
def hop_by_hop(world):
    """Headers that the client names in Connection do not take away what the proxy itself says (T20), nor pass on."""
    site = Site(world, use_remote_address=True)
    for number, names in enumerate([b"close, x-forwarded-for, x-request-id", b"X-Forwarded-For", b"host, X-REQUEST-ID", b"x-forwarded-proto,content-length", b"x-custom"]):
        path = b"/hop%d" % number
        answer = site.raw(b"GET " + path + b" HTTP/1.1\r\nHost: x\r\nConnection: " + names + b"\r\nx-custom: secret\r\nx-forwarded-for: 9.9.9.9\r\nKeep-Alive: timeout=5\r\nTE: gzip\r\nProxy-Connection: keep-alive\r\n\r\n")
        found = statuses(answer)
        check(found in ([200], [400]), f"{names}: {found}")
        for head, _ in site.upstream.of(path.decode()):
            lower = head.lower()
            for once in (b"\r\nhost: x\r\n", b"\r\nx-request-id: ", b"\r\nx-forwarded-for: "):
                equal(lower.count(once), 1, f"{once} with Connection: {names}")
            check(b"127.0.0.1" in lower.split(b"\r\nx-forwarded-for: ")[1].split(b"\r\n")[0], f"the client's address: {lower}")
            check(b"proxy-connection" not in lower and b"te: gzip" not in lower and b"keep-alive: timeout" not in lower, f"hop by hop: {lower}")
            if b"x-custom" in names:
                check(b"secret" not in lower, "a header named in Connection was passed on")
    site.good()


@scenario()
def limits_of_heads(world):
    """Heads at the limit pass, beyond it are 431; a head byte by byte is closed in time (T18)."""
    site = Site(world, max_request_headers_kb=16, common_http_protocol_options={"max_headers_count": 20})
    head = lambda extra: b"GET /limit HTTP/1.1\r\nHost: x\r\n" + extra + b"Connection: close\r\n\r\n"
    equal(statuses(site.raw(head(b"A: " + b"x" * 8000 + b"\r\n"))), [200], "8 KB")
    equal(statuses(site.raw(head(b"A: " + b"x" * 17000 + b"\r\n"))), [431], "17 KB")
    equal(statuses(site.raw(head(b"A: " + b"x" * 1_000_000 + b"\r\n"))), [431], "1 MB")
    equal(statuses(site.raw(head(b"".join(b"A%d: b\r\n" % i for i in range(17))))), [200], "19 headers")
    equal(statuses(site.raw(head(b"".join(b"A%d: b\r\n" % i for i in range(25))))), [431], "27 headers")
    equal(statuses(site.raw(b"GET /" + b"a" * 20000 + b" HTTP/1.1\r\nHost: x\r\n\r\n"))[0] in (414, 431), True, "a long path")
    begun = time.monotonic()
    slow = [b"GET /slow HTTP/1.1\r\n"] + [b"A"] * 60
    answer = raw(site.port, b"", parts=slow, pause=0.1, finish=False, patience=6)
    took = time.monotonic() - begun
    check(answer is not None and took < 8, f"a head byte by byte: {answer} after {took:.1f} s")
    check(statuses(answer) in ([], [408]), f"answered {statuses(answer)}")
    check(not site.upstream.of("/slow"), "reached the upstream")
    site.good()


@scenario()
def slow_and_silent_clients(world):
    """Clients that say nothing, half a head, half a body, or never read: closed in time, and others are served (T69, T90)."""
    site = Site(world, stream_idle_timeout="1.5s", request_headers_timeout="1s", common_http_protocol_options={"idle_timeout": "1.5s"})
    load = world.load(site.port, "/good", pause=0.02)
    starts = {"nothing": b"", "one byte": b"G", "half a head": b"GET /half HTTP/1.1\r\nHo", "half a preface": b"PRI * HT",
              "half a body": b"POST /half HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc",
              "half a chunk": b"POST /half HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab"}
    held = []
    for what, data in starts.items():
        for _ in range(60):
            sock = socket.create_connection(("127.0.0.1", site.port), timeout=5)
            sock.sendall(data)
            held.append((what, sock))
    end = time.monotonic() + 8
    left = {}
    for what, sock in held:
        sock.settimeout(max(0.01, end - time.monotonic()))
        try:
            while sock.recv(4096):
                pass
        except TimeoutError:
            left[what] = left.get(what, 0) + 1
        except OSError:
            pass
        sock.close()
    check(not left, f"still open after 8 s: {left}")
    load.end()


@scenario()
def clients_that_never_read(world):
    """Large answers that nobody takes: little of them is kept, and their connections end by the stream's idle time (T90)."""
    site = Site(world, stream_idle_timeout="1.5s")
    size = 32 << 20
    site.upstream.scripts["/big"] = (b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size + b"x" * size, False, False)
    before = site.process.memory()
    held = []
    for _ in range(20):
        sock = socket.create_connection(("127.0.0.1", site.port), timeout=5)
        sock.sendall(b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n")
        held.append(world.keep(sock))
    load = world.load(site.port, "/good", pause=0.02)
    time.sleep(3.5)
    grown = site.process.memory() - before
    check(grown < 100 << 20, f"{grown >> 20} MiB are kept for clients that take nothing")
    for sock in held:
        received = 0
        try:
            while data := sock.recv(1 << 20):
                received += len(data)
        except TimeoutError as error:
            raise Failed("a connection is still open") from error
        except OSError:
            pass
        check(received < size, "a whole answer came: the connection was not ended")
    load.end()
    # Who reads slowly, but reads, gets everything.
    with socket.create_connection(("127.0.0.1", site.port), timeout=5) as sock:
        sock.sendall(b"GET /big HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        received = 0
        while data := sock.recv(1 << 20):
            received += len(data)
            time.sleep(0.02)
        check(received > size, f"{received} bytes came")


@scenario()
def times_and_counts(world):
    """A request that takes too long to arrive, a stream that lives too long, a connection that asks too often."""
    site = Site(world, request_timeout="1s")
    slow = [b"POST /drip HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n"] + [b"x"] * 40
    begun = time.monotonic()
    answer = raw(site.port, b"", parts=slow, pause=0.1, finish=False, patience=4)
    check(answer is not None and statuses(answer) == [408], f"a body byte by byte: {answer}")
    check(time.monotonic() - begun < 6, "in time")
    site.good()
    site = Site(world, common_http_protocol_options={"max_stream_duration": "1s", "max_requests_per_connection": 3},
                routes=r.table("i", {"match": {"prefix": "/"}, "route": {"cluster": "up", "timeout": "0s"}}))
    site.upstream.scripts["/never"] = (b"", False, False)
    begun = time.monotonic()
    answer = site.raw(b"GET /never HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", finish=False, patience=4)
    check(answer is not None and statuses(answer) == [408], f"a stream that lives too long: {answer}")
    check(0.9 < time.monotonic() - begun < 3, f"after {time.monotonic() - begun:.1f} s")
    answer = site.raw(b"GET /count HTTP/1.1\r\nHost: x\r\n\r\n" * 5)
    equal((statuses(answer), len(site.upstream.of("/count"))), ([200] * 3, 3), "requests on one connection")
    equal(answer.lower().count(b"connection: close"), 1, "the last one says so")
    site.good()


@scenario()
def expectations(world):
    """`Expect: 100-continue` with and without a body: one answer, no deadlock (T19)."""
    site = Site(world)
    answer = site.raw(b"POST /expect HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
    equal([s for s in statuses(answer) if s >= 200], [200], "without a body")
    answer = site.raw(b"GET /expect HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n")
    equal([s for s in statuses(answer) if s >= 200], [200], "GET")
    with socket.create_connection(("127.0.0.1", site.port), timeout=5) as sock:
        sock.sendall(b"POST /expect2 HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5\r\nConnection: close\r\n\r\n")
        check(sock.recv(1000).startswith(b"HTTP/1.1 100"), "100 before the body")
        sock.sendall(b"hello")
        check(b" 200 " in sock.recv(1000), "200 after the body")
    equal(site.upstream.of("/expect2")[0][1], b"hello", "body")


@scenario()
def upgrades(world):
    """Upgrades that were not asked for by the configuration are none; bytes behind one are not a request (T13 - T15)."""
    site = Site(world, [deny(**path_is("/admin"))])
    behind = b"GET /admin/%d HTTP/1.1\r\nHost: x\r\n\r\n"
    for number, kind in enumerate([b"websocket", b"foo", b"h2c"]):
        head = b"GET /up%d HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: " % number + kind + b"\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\nSec-WebSocket-Key: x3JJHMbDL1EzLkh9GBhXDw==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        answer = site.raw(head + behind % number)
        check(answer is not None, "left hanging")
        check(101 not in statuses(answer), f"{kind} was switched to")
        check(not site.upstream.of(f"/admin/{number}"), "the request behind it went past the policy")
        for upstream_head, _ in site.upstream.of(f"/up{number}"):
            check(b"upgrade:" not in upstream_head.lower(), f"the upgrade was forwarded: {upstream_head}")
    # Where websockets are allowed, and the upstream does not switch: the second request meets the policy.
    site = Site(world, [deny(**path_is("/admin"))], upgrade_configs=[{"upgrade_type": "websocket"}])
    for number, answer in enumerate([b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nno", b"HTTP/1.1 426 Upgrade Required\r\ncontent-length: 0\r\n\r\n"]):
        site.upstream.scripts[f"/ws{number}"] = (answer, False, False)
        head = b"GET /ws%d HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x3JJHMbDL1EzLkh9GBhXDw==\r\nSec-WebSocket-Version: 13\r\n\r\n" % number
        found = statuses(site.raw(head + behind % number))
        check(found[0] in (200, 426) and found[1:] in ([], [403]), f"answered {found}")
        check(not site.upstream.of(f"/admin/{number}"), "the request behind it went past the policy")
    for line in (b"CONNECT x:80 HTTP/1.1", b"CONNECT /admin HTTP/1.1", b"CONNECT  HTTP/1.1"):
        answer = site.raw(line + b"\r\nHost: x:80\r\n\r\n" + behind % 9)
        check(answer is not None and 200 not in statuses(answer), f"{line}: {answer}")
        check(not site.upstream.of("/admin/9"), "behind CONNECT")
    site.good()


@scenario()
def bad_upstreams(world):
    """Upstreams whose answers can be read in two ways: 502 or one clean answer, and their connection is not used again (T16)."""
    site = Site(world)
    ok = b"HTTP/1.1 200 OK\r\n"
    evil = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nEVIL"
    scripts = {
        "cl-te": ok + b"content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n" + evil,
        "two-cl": ok + b"content-length: 2\r\ncontent-length: 5\r\n\r\nhello" + evil,
        "too-much": ok + b"content-length: 2\r\n\r\nhello" + evil,
        "204-body": b"HTTP/1.1 204 No Content\r\ncontent-length: 4\r\n\r\nEVIL" + evil,
        "304-body": b"HTTP/1.1 304 Not Modified\r\ncontent-length: 4\r\n\r\nEVIL" + evil,
        "fold": ok + b"a: b\r\n c\r\ncontent-length: 0\r\n\r\n" + evil,
        "nul": ok + b"a: b\x00\r\ncontent-length: 0\r\n\r\n",
        "bad-te": ok + b"transfer-encoding: xchunked\r\n\r\nhello",
        "rubbish": b"\x00\x01\x02 rubbish\r\n\r\n",
        "no-status": b"HTTP/1.1\r\n\r\n",
        "status-1000": b"HTTP/1.1 1000 Odd\r\ncontent-length: 0\r\n\r\n",
        "bad-chunk": ok + b"transfer-encoding: chunked\r\n\r\nzz\r\nhello\r\n0\r\n\r\n",
        "big-head": ok + b"a: " + b"x" * 2_000_000 + b"\r\n\r\n",
        "many-1xx": b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" * 2000 + ok + b"content-length: 2\r\n\r\nok",
        "101": b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n" + evil,
        "unasked": ok + b"content-length: 0\r\n\r\n" + evil * 3,
        "huge-length": ok + b"content-length: 99999999999999999999\r\n\r\nhello",
    }
    for name, script in scripts.items():
        site.upstream.scripts[f"/{name}"] = (script, name in ("rubbish", "bad-te", "no-status"), False)
    for name in scripts:
        for method in (b"GET", b"HEAD"):
            answer = site.raw(method + b" /" + name.encode() + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", patience=6)
            check(answer is not None, f"{name}: left hanging")
            check(answer.count(b"EVIL") == 0 or name == "101", f"{method} {name}: {answer[:200]}")
            for _ in range(3):
                later = get(site.port, "/after")
                equal((later.status, later.body), (200, "upstream /after"), f"the next request after {method.decode()} {name}")


@scenario()
def early_answers(world):
    """An upstream that answers before the body was sent: the rest of the body is never taken for a request (T17)."""
    site = Site(world, [deny(**path_is("/admin"))])
    site.upstream.scripts["/early"] = (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nearly", True, True)
    inner = b"GET /admin/inner HTTP/1.1\r\nHost: x\r\n\r\n"
    with socket.create_connection(("127.0.0.1", site.port), timeout=5) as sock:
        sock.sendall(b"POST /early HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(inner * 50))
        check(b" 200 " in sock.recv(1000), "the early answer")
        try:
            for _ in range(50):
                sock.sendall(inner)
                time.sleep(0.002)
            sock.shutdown(socket.SHUT_WR)
            rest = sock.recv(10000)
        except OSError:
            rest = b""
    check(b"HTTP/1.1" not in rest, f"another answer: {rest[:100]}")
    check(not site.upstream.of("/admin/inner"), "the body was read as a request")
    site.good()

    # Who answers so early as a rule closes soon: whatever the upstream does, the next request does not go there.
    site.upstream.scripts["/hasty"] = (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhasty", False, True)
    with socket.create_connection(("127.0.0.1", site.port), timeout=5) as sock:
        sock.sendall(b"POST /hasty HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhello")
        check(b" 200 " in sock.recv(1000), "the hasty answer")
        sock.sendall(b"world")
        until(lambda: site.upstream.of("/hasty")[0][1] == b"helloworld", "the whole body reaches the upstream")
        for _ in range(8):
            site.good()
        hasty = next(paths for paths in site.upstream.paths.values() if "/hasty" in paths)
        equal(hasty[-1], "/hasty", f"the last request of that connection ({hasty})")


@scenario()
def paths_and_policies(world):
    """One normal form for policy, route and upstream; the three ways to take `%2F` (T39, T41 - T43)."""
    routes = r.table("i", "up")
    options = {"normalize_path": True, "merge_slashes": True}
    into_admin = [b"/admin", b"/admin/x", b"/admin?x", b"/admin/", b"/public/../admin", b"/public/./../admin", b"/%61dmin", b"/%61%64min/x",
                  b"/public/%2e%2e/admin", b"/public/%2E./admin", b"/./admin", b"//admin", b"///admin", b"/public\\..\\admin",
                  b"/../../admin", b"/x/../%61dmin"]
    with_slashes = [b"/public%2f..%2fadmin", b"/public/..%2fadmin", b"/public/..%5cadmin", b"/%2fadmin", b"/public%2F%2e%2e%2Fadmin", b"/.%2fadmin"]
    modes = {"UNESCAPE_AND_FORWARD": {403}, "REJECT_REQUEST": {400}, "UNESCAPE_AND_REDIRECT": {307}, "KEEP_UNCHANGED": {200}}
    line = b"GET %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    for mode, wanted in modes.items():
        site = Site(world, [deny(**path_is("/admin"))], routes=routes, path_with_escaped_slashes_action=mode, **options)
        for path in into_admin:
            equal(statuses(site.raw(line % path)), [403], f"{mode} {path}")
        for path in with_slashes:
            found = statuses(site.raw(line % path))
            check(found and found[0] in wanted, f"{mode} {path}: {found}")
        for path in (b"/public%00/admin", b"/%00"):
            equal(statuses(site.raw(line % path)), [400], f"{mode} {path}")
        for path, forwarded in [(b"/a/../b?q=/../c", b"/b?q=/../c"), (b"/a//b", b"/a/b"), (b"/%7euser", b"/~user")]:
            equal(statuses(site.raw(line % path)), [200], f"{path}")
            check(site.upstream.requests[-1][0].startswith(b"GET " + forwarded + b" "), f"forwarded: {site.upstream.requests[-1][0]}")
        for head, _ in site.upstream.requests:
            target = head.split(b" ")[1]
            check(not target.startswith(b"/admin") and b"/../" not in target.split(b"?")[0], f"reached the upstream: {target}")
    # ALLOW: whatever does not begin with /public stays out.
    site = Site(world, [allow(**path_is("/public"))], routes=routes, path_with_escaped_slashes_action="UNESCAPE_AND_FORWARD", **options)
    for path in into_admin + with_slashes + [b"/public/..;/admin/../..", b"/PUBLIC/x", b"/%2e/x"]:
        found = statuses(site.raw(line % path))
        check(found == [403] or path.startswith(b"/public/..;"), f"ALLOW {path}: {found}")
    equal(statuses(site.raw(line % b"/public/x")), [200], "what is allowed")


@scenario()
def methods_and_headers_in_policies(world):
    """Methods are compared exactly, headers by all their values (T45, T46, T47)."""
    method = lambda name: {"header": {"name": ":method", "string_match": {"exact": name}}}
    site = Site(world, [deny(or_rules={"rules": [method("DELETE"), {"header": {"name": "x-role", "string_match": {"exact": "admin"}}}]})])
    line = b"%s /m HTTP/1.1\r\nHost: x\r\n%sConnection: close\r\n\r\n"
    equal(statuses(site.raw(line % (b"DELETE", b""))), [403], "DELETE")
    for headers in (b"X-Role: admin\r\n", b"X-ROLE:admin\r\n", b"x-role:   admin  \r\n"):
        equal(statuses(site.raw(line % (b"GET", headers))), [403], f"{headers}")
    # Envoy matches values of one name joined by a comma; none of these may be forwarded as plain admin.
    equal(statuses(site.raw(line % (b"GET", b""))), [200], "without a role")
    only = Site(world, [allow(and_rules={"rules": [method("GET"), {"header": {"name": "x-role", "string_match": {"exact": "user"}}}]})])
    equal(statuses(only.raw(line % (b"GET", b"x-role: user\r\n"))), [200], "allowed")
    for verb, headers in [(b"get", b"x-role: user\r\n"), (b"GeT", b"x-role: user\r\n"), (b"POST", b"x-role: user\r\n"), (b"GET", b"x-role: user\r\nx-role: admin\r\n"),
                          (b"GET", b"x-role: user,admin\r\n"), (b"GET", b"x-role: \r\nx-role: user\r\n"), (b"GET", b"x-role: user\x85\r\n"), (b"GET", b"")]:
        found = statuses(only.raw(line % (verb, headers)))
        check(found in ([403], [400], []), f"{verb} {headers}: {found}")
    check(all(head.startswith(b"GET /m") for head, _ in only.upstream.requests), "only GET reached the upstream")
    refusing = Site(world, [deny(not_rule={"header": {"name": "x-role", "string_match": {"safe_regex": {"regex": "[a-z]+"}}}})])
    equal(statuses(refusing.raw(line % (b"GET", b"x-role: user\r\n"))), [200], "a value that matches")
    for headers in (b"x-role: us\x85er\r\n", b"x-role: user1\r\n", b""):
        found = statuses(refusing.raw(line % (b"GET", headers)))
        check(found in ([403], [400]), f"negative match {headers}: {found}")


@scenario()
def trailers(world):
    """Trailers are dropped or passed as trailers, never merged into the head (T08)."""
    site = Site(world, http_protocol_options={"enable_trailers": True})
    body = b"5\r\nhello\r\n0\r\nContent-Length: 3\r\nHost: evil\r\nAuthorization: evil\r\nX-Forwarded-Client-Cert: evil\r\nTransfer-Encoding: identity\r\n\r\n"
    found = statuses(site.raw(post(b"Transfer-Encoding: chunked\r\nConnection: close\r\n", body)))
    check(found in ([200], [400], []), f"answered {found}")
    for head, whole in site.upstream.of("/case"):
        check(b"evil" not in head and whole in (b"hello", None, b""), f"the upstream's head: {head}, body {whole}")
    many = b"5\r\nhello\r\n0\r\n" + b"".join(b"T%d: x\r\n" % i for i in range(5000)) + b"\r\n"
    answer = site.raw(post(b"Transfer-Encoding: chunked\r\nConnection: close\r\n", many))
    check(answer is not None, "5000 trailers: left hanging")
    site.good()
