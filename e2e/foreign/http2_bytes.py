"""HTTP/2 written frame by frame: floods end their own connection and nobody else's, heads that lie are refused.

ALIVE, below, is: during an attack another client gets nothing but good answers, and soon; afterwards it is the same process,
and its memory is what it was, but for what the allocator keeps.
"""

import socket
import struct
import time

import harness
import h2.config
import h2.connection
import h2.events
import hpack
import hyperframe.frame as frames
from harness import Failed, check, equal, get, scenario, until
from http_parts import Site, deny, path_is

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
END_STREAM, END_HEADERS = 1, 4
DATA, HEADERS, PRIORITY, RST, SETTINGS, PUSH, PING, GOAWAY, WINDOW, CONTINUATION = range(10)


def frame(kind, flags, stream, payload=b"", length=None):
    """A frame, however wrong."""
    return struct.pack(">I", len(payload) if length is None else length)[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def head(path="/good", method="GET", authority="x", extra=(), scheme="http"):
    pseudo = [(":method", method), (":scheme", scheme), (":authority", authority), (":path", path)]
    return encode([(k, v) for k, v in pseudo if v is not None] + list(extra))


def encode(pairs):
    """Without a table and Huffman's code, so that bytes stay as they are."""
    out = b""
    for name, value in pairs:
        name, value = (x if isinstance(x, bytes) else x.encode("latin-1") for x in (name, value))
        out += b"\x00" + number(len(name), 7) + name + number(len(value), 7) + value
    return out


def number(value, bits):
    most = (1 << bits) - 1
    if value < most:
        return bytes([value])
    out, value = [most], value - most
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


class Raw:
    """A connection on which anything can be said."""

    def __init__(self, world, port, settings=b"", read=True):
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=5)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        world.keep(self.sock)
        self.decoder = hpack.Decoder()
        self.buffer, self.closed = b"", False
        self.goaway, self.resets, self.statuses, self.bodies, self.ended = None, {}, {}, {}, set()
        self.send(PREFACE + frame(SETTINGS, 0, 0, settings))

    def send(self, data):
        """Whether it could be sent."""
        try:
            self.sock.sendall(data)
            return True
        except OSError:
            return False

    def read(self, until_=lambda self: False, patience=3.0):
        """Reads frames until this is true, the connection ends, or time is up; whether it is true."""
        end = time.monotonic() + patience
        while not until_(self):
            if self.closed or time.monotonic() > end:
                return until_(self)
            self.sock.settimeout(max(0.01, end - time.monotonic()))
            try:
                data = self.sock.recv(1 << 16)
            except TimeoutError:
                return until_(self)
            except OSError:
                data = b""
            if not data:
                self.closed = True
            self.buffer += data
            while len(self.buffer) >= 9:
                length = int.from_bytes(self.buffer[:3], "big")
                if len(self.buffer) < 9 + length:
                    break
                self._frame(self.buffer[3], self.buffer[4], int.from_bytes(self.buffer[5:9], "big") & 0x7FFFFFFF, self.buffer[9:9 + length])
                self.buffer = self.buffer[9 + length:]
        return True

    def _frame(self, kind, flags, stream, payload):
        if kind == GOAWAY:
            self.goaway = int.from_bytes(payload[4:8], "big")
        elif kind == RST:
            self.resets[stream] = int.from_bytes(payload, "big")
            self.ended.add(stream)
        elif kind == HEADERS:
            for name, value in self.decoder.decode(payload):
                if name == ":status" and not value.startswith("1"):
                    self.statuses[stream] = int(value)
        elif kind == DATA:
            self.bodies[stream] = self.bodies.get(stream, b"") + payload
        elif kind == SETTINGS and not flags & 1:
            self.send(frame(SETTINGS, 1, 0))
        elif kind == PING and not flags & 1:
            self.send(frame(PING, 1, 0, payload))
        if kind in (HEADERS, DATA) and flags & END_STREAM:
            self.ended.add(stream)

    def over(self, patience=5.0):
        """Whether the other side ends it."""
        return self.read(lambda c: c.closed or c.goaway not in (None, 0), patience)

    def outcome(self, stream, patience=3.0):
        """Status, reset code, GOAWAY or close: what became of a stream."""
        self.read(lambda c: stream in c.ended or stream in c.statuses or c.goaway or c.closed, patience)
        if stream in self.statuses:
            return self.statuses[stream]
        if stream in self.resets:
            return f"reset {self.resets[stream]}"
        if self.goaway:
            return f"goaway {self.goaway}"
        return "closed" if self.closed else "silence"


class Attack:
    """Watches over ALIVE."""

    def __init__(self, world, most_mib=32, **manager):
        self.site = Site(world, **manager)
        self.world, self.port, self.most = world, self.site.port, most_mib << 20
        for _ in range(20):
            self.site.good()
        self.before = self.site.process.memory()
        self.load = world.load(self.port, "/good", threads=1, pause=0.02)
        self.load.more(5)

    def connection(self, **more):
        return Raw(self.world, self.port, **more)

    def survived(self):
        self.load.more(10)
        self.load.end()
        check(self.load.slowest < 1.5, f"the slowest request of another client took {self.load.slowest:.2f} s")
        check(self.site.process.alive(), "the proxy ended")
        until(lambda: self.site.process.memory() - self.before < self.most,
              lambda: f"memory to come back; it grew by {(self.site.process.memory() - self.before) >> 10} KiB", 8)


def calls(site, path):
    return len(site.upstream.of(path))


@scenario()
def an_honest_client(world):
    """The `h2` package's client: streams beside each other, bodies both ways, trailers; what all else is measured by."""
    site = Site(world)
    connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
    sock = world.keep(socket.create_connection(("127.0.0.1", site.port), timeout=5))
    connection.initiate_connection()
    for number in range(10):
        stream = connection.get_next_available_stream_id()
        headers = [(":method", "POST"), (":scheme", "http"), (":authority", "x"), (":path", f"/h2-{number}")]
        connection.send_headers(stream, headers)
        connection.send_data(stream, b"x" * 1000 * number, end_stream=True)
    sock.sendall(connection.data_to_send())
    statuses, ended, bodies = {}, set(), {}
    while len(ended) < 10:
        data = sock.recv(65536)
        check(data, f"closed after {len(ended)} answers")
        for event in connection.receive_data(data):
            if isinstance(event, h2.events.ResponseReceived):
                statuses[event.stream_id] = dict(event.headers)[":status"]
            elif isinstance(event, h2.events.DataReceived):
                bodies[event.stream_id] = bodies.get(event.stream_id, b"") + event.data
                connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, h2.events.StreamEnded):
                ended.add(event.stream_id)
        sock.sendall(connection.data_to_send())
    equal(set(statuses.values()), {"200"}, "statuses")
    equal(bodies[3], b"upstream /h2-1", "a body")
    for number in range(10):
        equal(len(site.upstream.of(f"/h2-{number}")[0][1]), 1000 * number, "bytes at the upstream")


@scenario(weight=2)
def rapid_reset(world):
    """10,000 streams opened and reset at once: the connection ends, the upstream is spared (T22)."""
    attack = Attack(world)
    connection = attack.connection()
    block = head("/rapid")
    for start in range(0, 10_000, 100):
        data = b"".join(frame(HEADERS, END_STREAM | END_HEADERS, 2 * i + 1, block) + frame(RST, 0, 2 * i + 1, b"\0\0\0\x08") for i in range(start, start + 100))
        if not connection.send(data):
            break
    check(connection.over(), "the connection is still open")
    check(connection.goaway in (11, None), f"GOAWAY {connection.goaway}, not ENHANCE_YOUR_CALM")
    check(calls(attack.site, "/rapid") <= 1100, f"{calls(attack.site, '/rapid')} calls of the upstream")
    attack.survived()


@scenario(weight=2)
def provoked_resets(world):
    """Streams that the proxy must reset itself, again and again: MadeYouReset (T23)."""
    for what, provoke in {
        "WINDOW_UPDATE 0": lambda s: frame(WINDOW, 0, s, b"\0\0\0\0"),
        "window overflow": lambda s: frame(WINDOW, 0, s, b"\x7f\xff\xff\xff") * 2,
        "DATA after the end": lambda s: frame(DATA, 0, s, b"x"),
        "a second head": lambda s: frame(HEADERS, END_HEADERS, s, head()),
        "PRIORITY on itself": lambda s: frame(PRIORITY, 0, s, struct.pack(">IB", s, 0)),
        "PRIORITY too short": lambda s: frame(PRIORITY, 0, s, b"\0"),
    }.items():
        attack = Attack(world)
        connection = attack.connection()
        block = head("/made")
        for start in range(0, 5000, 50):
            if not connection.send(b"".join(frame(HEADERS, END_STREAM | END_HEADERS, 2 * i + 1, block) + provoke(2 * i + 1) for i in range(start, start + 50))):
                break
        check(connection.over(), f"{what}: the connection is still open")
        check(calls(attack.site, "/made") <= 2200, f"{what}: {calls(attack.site, '/made')} calls of the upstream")
        attack.survived()
        attack.site.process.close()
        attack.site.process.may_end = True


@scenario()
def continuations_without_end(world):
    """A head that never ends, in tiny, empty and full frames (T24)."""
    attack = Attack(world)
    for what, payload in {"tiny": b"\0\x01a\x01b", "empty": b"", "full": encode([("a", "x" * 4000)]) * 4}.items():
        connection = attack.connection()
        connection.send(frame(HEADERS, 0, 1, head("/continued")))
        for _ in range(200):
            if not connection.send(frame(CONTINUATION, 0, 1, payload) * 50):
                break
        check(connection.over(4), f"{what}: the connection is still open")
    equal(calls(attack.site, "/continued"), 0, "calls of the upstream")
    attack.survived()


@scenario()
def header_bombs(world):
    """Few bytes that unpack into many headers: counted as they are when unpacked (T25)."""
    attack = Attack(world)
    encoder_block = b"\x40" + number(6, 7) + b"cookie" + number(4000, 7) + b"a" * 4000
    for what, block in {
        "an indexed cookie 16,000 times": head("/bomb") + encoder_block + b"\xbe" * 15_000,
        "10,000 cookies": head("/bomb", extra=[("cookie", "a=b")] * 1600),
        "10,000 headers": head("/bomb", extra=[("a", "")] * 3000),
        "one of 200 KB": head("/bomb", extra=[("a", "x" * 200_000)]),
        "a table of 4 GiB": b"\x3f\xff\xff\xff\xff\x0f" + head("/bomb"),
        "an index that is none": head("/bomb") + b"\xff\xff\xff\x7f",
        "an endless number": head("/bomb") + b"\xff" * 40,
        "Huffman's code broken": head("/bomb") + b"\x00\x81\xff\x81\xff",
    }.items():
        connection = attack.connection()
        pieces = [block[i:i + 16000] for i in range(0, len(block), 16000)]
        connection.send(frame(HEADERS, END_STREAM | (END_HEADERS if len(pieces) == 1 else 0), 1, pieces[0]))
        for i, piece in enumerate(pieces[1:], 2):
            connection.send(frame(CONTINUATION, END_HEADERS if i == len(pieces) else 0, 1, piece))
        found = connection.outcome(1)
        check(found in (431, 400, "closed") or str(found).startswith(("reset", "goaway")), f"{what}: {found}")
        equal(calls(attack.site, "/bomb"), 0, f"{what}: calls of the upstream")
    attack.survived()


@scenario(weight=2)
def control_floods(world):
    """100,000 SETTINGS, PINGs and others from a client that never reads (T26, T28)."""
    kinds = {
        "SETTINGS": frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 65535)),
        "empty SETTINGS": frame(SETTINGS, 0, 0),
        "PING": frame(PING, 0, 0, b"12345678"),
        "PRIORITY": frame(PRIORITY, 0, 1, b"\0\0\0\0\x10"),
        "WINDOW_UPDATE": frame(WINDOW, 0, 0, b"\0\0\0\x01"),
        "unknown frames": frame(0xBE, 0xFF, 0, b"xxxx"),
        "GOAWAY": frame(GOAWAY, 0, 0, b"\0" * 8),
    }
    for what, data in kinds.items():
        attack = Attack(world)
        connection = attack.connection()
        connection.sock.settimeout(1)
        for _ in range(200):
            if not connection.send(data * 500):
                break
        attack.survived()
        attack.site.process.close()
        attack.site.process.may_end = True


@scenario(weight=2)
def empty_frames(world):
    """Empty DATA, one-byte DATA, empty heads, to an upstream that takes its time (T27)."""
    for what, data in {
        "empty DATA": frame(DATA, 0, 1),
        "padded empty DATA": frame(DATA, 8, 1, b"\x00"),
        "padding alone": frame(DATA, 8, 1, b"\xff" + b"\0" * 255),
        "one byte": frame(DATA, 0, 1, b"x"),
    }.items():
        attack = Attack(world)
        connection = attack.connection()
        connection.sock.settimeout(1)
        connection.send(frame(HEADERS, END_HEADERS, 1, head("/empty", "POST")))
        for _ in range(400):
            if not connection.send(data * 250):
                break
        attack.survived()
        attack.site.process.close()
        attack.site.process.may_end = True


@scenario()
def windows_that_never_open(world):
    """A hundred streams of large answers of which nothing is taken: a window's worth is kept, no more (T29)."""
    attack = Attack(world, most_mib=40, stream_idle_timeout="2s")
    big = b"x" * (4 << 20)
    attack.site.upstream.scripts["/big"] = (b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(big) + big, False, False)
    connection = attack.connection(settings=struct.pack(">HI", 4, 0))
    for i in range(100):
        connection.send(frame(HEADERS, END_STREAM | END_HEADERS, 2 * i + 1, head("/big")))
    time.sleep(1.0)
    grown = attack.site.process.memory() - attack.before
    check(grown < 150 << 20, f"{grown >> 20} MiB are kept for a client that takes nothing")
    check(connection.read(lambda c: len(c.resets) == 100 or c.closed, 8), f"{len(connection.resets)} of 100 streams were ended by their idle timeout")
    attack.survived()


def tell(site, world, block, data=b"", flags=END_HEADERS | END_STREAM):
    connection = Raw(world, site.port)
    connection.send(frame(HEADERS, flags, 1, block) + data)
    found = connection.outcome(1)
    connection.sock.close()
    return found


def sane(site, world):
    """What is right passes by the same means; otherwise a refusal says nothing."""
    block = head("/sane", "POST", extra=[("content-length", "3"), ("a", "b")])
    equal(tell(site, world, block, frame(DATA, END_STREAM, 1, b"abc"), END_HEADERS), 200, "a good request")
    equal(site.upstream.of("/sane")[0][1], b"abc", "its body")


def is_refusal(found):
    return found in (400, 404, 405, 421, 431, 501, "closed") or str(found).startswith(("reset", "goaway"))


@scenario()
def lengths_that_lie(world):
    """A Content-Length that is not what comes: reset, and the HTTP/1.1 upstream never sees that length (T32)."""
    site = Site(world)
    sane(site, world)
    cases = {
        "a length and no body": (head("/lie0", "POST", extra=[("content-length", "5")]), b"", END_HEADERS | END_STREAM),
        "less than said": (head("/lie1", "POST", extra=[("content-length", "5")]), frame(DATA, END_STREAM, 1, b"abc"), END_HEADERS),
        "more than said": (head("/lie2", "POST", extra=[("content-length", "5")]), frame(DATA, END_STREAM, 1, b"abcdefgh"), END_HEADERS),
        "two lengths": (head("/lie3", "POST", extra=[("content-length", "5"), ("content-length", "3")]), frame(DATA, END_STREAM, 1, b"abc"), END_HEADERS),
        "no number": (head("/lie4", "POST", extra=[("content-length", "+3")]), frame(DATA, END_STREAM, 1, b"abc"), END_HEADERS),
        "a list": (head("/lie5", "POST", extra=[("content-length", "3, 3")]), frame(DATA, END_STREAM, 1, b"abc"), END_HEADERS),
    }
    wrong = []
    for number, (what, (block, data, flags)) in enumerate(cases.items()):
        found = tell(site, world, block, data, flags)
        whole = [body for _, body in site.upstream.of(f"/lie{number}") if body is not None]
        if not is_refusal(found) or whole:
            wrong.append(f"{what}: {found}, at the upstream {whole}")
    check(not wrong, lambda: " | ".join(wrong))
    site.good()


@scenario()
def heads_that_inject(world):
    """CR, LF, NUL, upper case, hop-by-hop headers, pseudo-headers of all kinds: nothing of it is written as HTTP/1.1 (T33, T34)."""
    site = Site(world, [deny(**path_is("/admin"))])
    sane(site, world)
    evil = [(n, v) for n, v in [
        ("a", "b\r\nx-evil: 1"), ("a", "b\nx-evil: 1"), ("a", "b\rc"), ("a", "b\0c"), ("x\r\nx-evil", "1"), ("x\nevil", "1"), ("x evil", "1"), ("x:evil", "1"),
        ("", "x"), ("X-Evil", "1"), ("transfer-encoding", "chunked"), ("connection", "keep-alive"), ("keep-alive", "1"), ("proxy-connection", "x"),
        ("upgrade", "websocket"), ("te", "gzip"), (":evil", "1"), ("x\x00", "1"), ("x\x7f", "1")]]
    wrong = []

    def judge(what, block, path):
        found = tell(site, world, block)
        reached = site.upstream.of(path)
        if not is_refusal(found) or any(b"evil" in h.lower() for h, _ in reached):
            wrong.append(f"{what}: {found}, at the upstream {[h for h, _ in reached][:1]}")

    for number, pair in enumerate(evil):
        judge(repr(pair), head(f"/inject{number}-", extra=[pair]), f"/inject{number}-")
    pseudo = {
        "LF in the path": head("/p0-\r\nx-evil: 1"), "space in the path": head("/p0- HTTP/1.1"), "LF in the method": head("/p0-", "GET\r\nx-evil: 1"),
        "space in the method": head("/p0-", "GET /evil"), "LF in the authority": head("/p0-", authority="x\r\nx-evil: 1"), "user info": head("/p0-", authority="evil@x"),
        "no method": head("/p0-", None), "no path": head(None), "empty path": head(""), "no scheme": head("/p0-", scheme=None), "a path without slash": head("evil"),
        "two paths": encode([(":path", "/p0-")]) + head("/p0-evil"), "two methods": encode([(":method", "GET")]) + head("/p0-"),
        "a pseudo-header late": head("/p0-")[:0] + encode([(":method", "GET"), (":scheme", "http"), (":authority", "x"), ("a", "b"), (":path", "/p0-")]),
        ":protocol unasked": head("/p0-", extra=[(":protocol", "evil")]), ":status": head("/p0-", extra=[(":status", "200")]),
        "*": head("*"), "an absolute path": head("http://evil/p0-"),
        "an empty method": head("/p0-", ""), "an empty authority": head("/p0-", authority=""),
    }
    for what, block in pseudo.items():
        judge(what, block, "/p0-")
    check(not wrong, lambda: f"{len(wrong)}: " + " | ".join(wrong))
    equal(tell(site, world, head("/admin")), 403, "the policy")
    equal(tell(site, world, head("/hosts", extra=[("host", "evil")])), 200, ":authority and another host")
    sent = site.upstream.of("/hosts")[0][0]
    check(b"\r\nhost: x\r\n" in sent and b"evil" not in sent, f"the upstream's head: {sent}")
    site.good()


@scenario()
def frames_that_are_wrong(world):
    """Frames on streams where they do not belong, of wrong sizes, with wrong windows and padding (T31, T35)."""
    site = Site(world)
    block = head("/wrong")
    start = frame(HEADERS, END_HEADERS, 1, head("/wrong", "POST"))
    cases = {
        "DATA on an idle stream": frame(DATA, 0, 5, b"x"), "RST of an idle stream": frame(RST, 0, 5, b"\0\0\0\0"), "WINDOW_UPDATE of an idle stream": frame(WINDOW, 0, 5, b"\0\0\0\1"),
        "an even stream": frame(HEADERS, END_HEADERS | END_STREAM, 2, block), "stream 0": frame(HEADERS, END_HEADERS | END_STREAM, 0, block), "DATA on 0": frame(DATA, 0, 0, b"x"),
        "a lower stream": frame(HEADERS, END_HEADERS | END_STREAM, 9, block) + frame(HEADERS, END_HEADERS | END_STREAM, 7, block),
        "CONTINUATION alone": frame(CONTINUATION, END_HEADERS, 1, block), "something between": frame(HEADERS, 0, 1, block) + frame(PING, 0, 0, b"12345678"),
        "CONTINUATION of another": frame(HEADERS, 0, 1, block) + frame(CONTINUATION, END_HEADERS, 3, b""), "PUSH_PROMISE": frame(PUSH, END_HEADERS, 1, b"\0\0\0\2" + block),
        "PING of 7": frame(PING, 0, 0, b"1234567"), "PING on 1": start + frame(PING, 0, 1, b"12345678"), "SETTINGS of 5": frame(SETTINGS, 0, 0, b"12345"),
        "SETTINGS on 1": frame(SETTINGS, 0, 1), "ACK with content": frame(SETTINGS, 1, 0, b"123456"), "a window of 2^31": frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 1 << 31)),
        "a frame size of 1": frame(SETTINGS, 0, 0, struct.pack(">HI", 5, 1)), "push 2": frame(SETTINGS, 0, 0, struct.pack(">HI", 2, 2)),
        "WINDOW_UPDATE 0": frame(WINDOW, 0, 0, b"\0\0\0\0"), "WINDOW_UPDATE of 3": frame(WINDOW, 0, 0, b"\0\0\1"), "a window beyond 2^31": frame(WINDOW, 0, 0, b"\x7f\xff\xff\xff"),
        "a frame too large": frame(DATA, 0, 1, b"x" * 20_000), "a frame of 16 MiB": frame(DATA, 0, 1, b"", length=(1 << 24) - 1), "RST of 3": start + frame(RST, 0, 1, b"\0\0\0"),
        "padding beyond the end": start + frame(DATA, 8, 1, b"\xffx"), "head padding beyond the end": frame(HEADERS, END_HEADERS | 8, 1, b"\xff" + block), "GOAWAY of 3": frame(GOAWAY, 0, 0, b"123"),
        "HEADERS of nothing": frame(HEADERS, END_HEADERS | END_STREAM, 1), "trailers without an end": start + frame(HEADERS, END_HEADERS, 1, encode([("a", "b")])),
        "HTTP/1.1": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    }
    quiet = []
    for what, data in cases.items():
        connection = Raw(world, site.port)
        connection.send(data)
        if not connection.read(lambda c: c.closed or c.goaway or c.resets or c.statuses.get(1) in (400, 431), 2):
            quiet.append(f"{what} ({connection.statuses})")
        connection.sock.close()
    check(not quiet, lambda: f"taken for good: {quiet}")
    # What is odd but right.
    for what, data in {
        "padding 255": frame(HEADERS, END_HEADERS | END_STREAM | 8, 1, b"\xff" + head("/good") + b"\0" * 255),
        "a priority in the head": frame(HEADERS, END_HEADERS | END_STREAM | 0x20, 1, b"\0\0\0\0\x10" + head("/good")),
        "a negative window": frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 10)) + frame(HEADERS, END_HEADERS | END_STREAM, 1, head("/good")) + frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 0)) + frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 65535)),
        "unknown settings and frames": frame(SETTINGS, 0, 0, struct.pack(">HI", 0xBEEF, 1)) + frame(0xCC, 0, 0, b"x") + frame(HEADERS, END_HEADERS | END_STREAM, 1, head("/good")),
        "a split head": frame(HEADERS, END_STREAM, 1, head("/good")[:9]) + frame(CONTINUATION, END_HEADERS, 1, head("/good")[9:]),
    }.items():
        connection = Raw(world, site.port)
        connection.send(data)
        equal(connection.outcome(1), 200, what)
        check(connection.read(lambda c: c.bodies.get(1) == b"upstream /good", 3), f"{what}: body {connection.bodies}")
        connection.sock.close()
    site.good()


@scenario()
def streams_at_once(world):
    """No more streams than `max_concurrent_streams`: the rest is refused, not queued without end."""
    site = Site(world, http2_protocol_options={"max_concurrent_streams": 10})
    site.upstream.scripts["/hold"] = (b"", False, False)
    connection = Raw(world, site.port)
    for i in range(30):
        connection.send(frame(HEADERS, END_HEADERS | END_STREAM, 2 * i + 1, head("/hold")))
    connection.read(lambda c: len(c.resets) >= 20, 3)
    equal({code for code in connection.resets.values()}, {7}, "REFUSED_STREAM")
    equal(len(connection.resets), 20, "refused streams")
    check(calls(site, "/hold") <= 10, f"{calls(site, '/hold')} calls of the upstream")
    site.good()


@scenario()
def connections_that_idle(world):
    """HTTP/2 connections without streams end after their idle time; with one they do not (T69)."""
    site = Site(world, common_http_protocol_options={"idle_timeout": "1s"}, stream_idle_timeout="0s")
    silent, used = Raw(world, site.port), Raw(world, site.port)
    used.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, head("/good")))
    equal(used.outcome(1), 200, "status")
    site.upstream.scripts["/late"] = (b"", False, False)
    busy = Raw(world, site.port)
    busy.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, head("/late")))
    for what, connection in (("silent", silent), ("used", used)):
        check(connection.read(lambda c: c.closed or c.goaway is not None, 4), f"the {what} connection is still open")
    check(not busy.read(lambda c: c.closed or c.goaway is not None, 0.5), "a connection with a stream was ended")


@scenario()
def connections_that_ask_too_often(world):
    """After `max_requests_per_connection` streams a GOAWAY; those that have begun are answered."""
    site = Site(world, common_http_protocol_options={"max_requests_per_connection": 3})
    connection = Raw(world, site.port)
    for i in range(3):
        connection.send(frame(HEADERS, END_HEADERS | END_STREAM, 2 * i + 1, head("/good")))
    check(connection.read(lambda c: c.closed, 4), "the connection is still open")
    equal((connection.goaway, connection.statuses), (0, {1: 200, 3: 200, 5: 200}), "GOAWAY and answers")
    site.good()
