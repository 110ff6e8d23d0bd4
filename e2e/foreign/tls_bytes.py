"""TLS and what comes before it, byte by byte: handshakes in pieces, silence, certificates that must not pass, PROXY protocol."""

import socket
import ssl
import struct
import time

import certificates
import harness
import resources as r
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID
from harness import Failed, check, equal, scenario
from http_parts import Site, raw, statuses

WEB = "spiffe://cluster.local/ns/shop/sa/web"


def server_tls(authority, host, clients=None, uri=None):
    """A chain's TLS: a certificate of this host; with `clients` a certificate of theirs is demanded, with `uri` this one."""
    chain, key = authority.issue(host)
    common = {"tls_certificates": [{"certificate_chain": {"inline_string": chain}, "private_key": {"inline_string": key}}],
              "alpn_protocols": ["h2", "http/1.1"]}
    config = {"@type": r.TYPES + "transport_sockets.tls.v3.DownstreamTlsContext", "common_tls_context": common}
    if clients:
        context = {"trusted_ca": {"inline_string": clients.root_pem}}
        if uri:
            context["match_typed_subject_alt_names"] = [{"san_type": "URI", "matcher": {"exact": uri}}]
        common["validation_context"] = context
        config["require_client_certificate"] = True
    return {"name": "tls", "typed_config": config}


def inspector():
    return {"listener_filters": [{"name": "tls", "typed_config": {"@type": r.TYPES + "filters.listener.tls_inspector.v3.TlsInspector"}}]}


def client_context(world, authority, pair=None):
    context = authority.context()
    context.set_alpn_protocols(["http/1.1"])
    if pair:
        name = f"client-{harness.free_port()}.pem"
        context.load_cert_chain(world.write(name, pair[0] + pair[1]))
    return context


def ask(port, context, host, head="GET /tls HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"):
    """An answer over TLS; `OSError` when the handshake or the connection fails."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as sock, context.wrap_socket(sock, server_hostname=host) as tls:
        tls.sendall(head.encode("latin-1"))
        received = b""
        while data := tls.recv(65536):
            received += data
        if not received:
            raise OSError("closed without an answer")
        return received


def fails(action, what):
    try:
        found = action()
    except OSError:
        return
    raise Failed(f"{what}: answered {found[:80]!r}")


def hello(host, context=None):
    """The bytes of a ClientHello."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = (context or ssl.create_default_context()).wrap_bio(incoming, outgoing, server_hostname=host)
    try:
        tls.do_handshake()
    except ssl.SSLWantReadError:
        pass
    return outgoing.read(), tls, incoming, outgoing


def pump(port, split, host, authority, pause=0.0):
    """A handshake whose ClientHello is sent as `split` cuts it; the serial number that the server showed."""
    data, tls, incoming, outgoing = hello(host, authority.context())
    with socket.create_connection(("127.0.0.1", port), timeout=5) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in split(data):
            sock.sendall(piece)
            time.sleep(pause)
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                sock.sendall(outgoing.read())
                received = sock.recv(65536)
                if not received:
                    raise OSError("closed") from None
                incoming.write(received)
        return x509.load_der_x509_certificate(tls.getpeercert(True)).subject.rfc4514_string()


def in_bytes(data):
    return [data[i:i + 1] for i in range(len(data))]


def in_records(size):
    """The hello in many small TLS records."""
    def split(data):
        body = data[5:]
        return [b"".join(b"\x16" + data[1:3] + struct.pack(">H", len(body[i:i + size])) + body[i:i + size] for i in range(0, len(body), size))]
    return split


@scenario()
def hellos_in_pieces(world):
    """A ClientHello byte by byte and in many records finds the chain of its name, never the one that asks for less (T68)."""
    authority = certificates.Authority()
    chains = [
        {"filter_chain_match": {"server_names": ["strict.example"]}, "transport_socket": server_tls(authority, "strict.example", clients=authority)},
        {"filter_chain_match": {"server_names": ["open.example"]}, "transport_socket": server_tls(authority, "open.example")},
    ]
    site = Site(world, chains=chains, listener={**inspector(), "listener_filters_timeout": "3s"})
    ways = {"whole": lambda d: [d], "byte by byte": in_bytes, "in records of 1": in_records(1), "in records of 7": in_records(7), "in two": lambda d: [d[:100], d[100:]],
            "inside the record's head": lambda d: [d[:3], d[3:]]}
    for what, split in ways.items():
        equal(pump(site.port, split, "open.example", authority, pause=0.0005), "CN=open.example", what)
        equal(pump(site.port, split, "OPEN.example", authority, pause=0.0005), "CN=open.example", f"{what}, upper case")
        fails(lambda: ask(site.port, client_context(world, authority), "strict.example"), f"strict without a certificate, {what}")
        equal(pump(site.port, split, "strict.example", authority, pause=0.0005), "CN=strict.example", f"{what}, strict")
    for other in ("other.example", "example", "x.open.example", "127.0.0.1"):
        fails(lambda: pump(site.port, lambda d: [d], other, authority), f"a chain for {other}")
    for what, data in {"nothing but a record's head": b"\x16\x03\x01\xff\xff", "SSLv2": b"\x80\x2e\x01\x00\x02", "rubbish": b"\x16\x03\x01\x00\x05hello", "alerts": b"\x15\x03\x01\x00\x02\x02\x28" * 50,
                       "empty records": b"\x16\x03\x01\x00\x00" * 3000, "a hello of 16 MB": b"\x16\x03\x01\x40\x00\x01\xff\xff\xff" + b"\0" * 16380,
                       "cleartext": b"GET / HTTP/1.1\r\nHost: open.example\r\n\r\n"}.items():
        answer = raw(site.port, data, patience=5)
        check(answer is not None and b"HTTP/1.1 2" not in answer, f"{what}: {answer}")
    equal(statuses(ask(site.port, client_context(world, authority), "open.example")), [200], "afterwards")


@scenario()
def silence_before_and_in_the_handshake(world):
    """Who says nothing, or half a hello, is let go in time; others are served meanwhile (T69, T70)."""
    authority = certificates.Authority()
    chain = {"filter_chain_match": {"server_names": ["a.example"]}, "transport_socket": server_tls(authority, "a.example"), "transport_socket_connect_timeout": "1s"}
    site = Site(world, chains=[chain], listener={**inspector(), "listener_filters_timeout": "1s"})
    load = world.load(site.port, "/good", pause=0.02, connect=lambda: certificates.Connection(site.port, authority, "a.example"))
    data, *_ = hello("a.example")
    held = []
    for start in (b"", data[:1], data[:60], data, data + b"\x14\x03\x03\x00\x01\x01"):
        for _ in range(40):
            sock = socket.create_connection(("127.0.0.1", site.port), timeout=5)
            sock.sendall(start)
            held.append((len(start), world.keep(sock)))
    end = time.monotonic() + 5
    for size, sock in held:
        sock.settimeout(max(0.01, end - time.monotonic()))
        try:
            while sock.recv(65536):
                pass
        except TimeoutError as error:
            raise Failed(f"after {size} bytes: still open") from error
        except OSError:
            pass
    load.end()


@scenario()
def certificates_of_clients(world):
    """Only a certificate of the trusted authority, in force, with the one right identity, passes (T62)."""
    authority, foreign = certificates.Authority(), certificates.Authority("another root")
    twin = certificates.Authority()  # the same name, another key
    site = Site(world, chains=[{"transport_socket": server_tls(authority, "a.example", clients=authority, uri=WEB)}])
    good = authority.issue("", uris=[WEB])
    equal(statuses(ask(site.port, client_context(world, authority, good), "a.example")), [200], "the right one")
    wrong = {
        "none": None,
        "of another authority": foreign.issue("", uris=[WEB]),
        "of an authority of the same name": twin.issue("", uris=[WEB]),
        "expired": authority.issue("", uris=[WEB], hours=(-3, -2)),
        "not yet in force": authority.issue("", uris=[WEB], hours=(2, 3)),
        "of another account": authority.issue("", uris=[WEB.replace("web", "bank")]),
        "of another trust domain": authority.issue("", uris=[WEB.replace("cluster.local", "evil.local")]),
        "with more behind it": authority.issue("", uris=[WEB + "/x"]),
        "in upper case": authority.issue("", uris=[WEB.upper()]),
        "without a name": authority.issue(""),
        "with a DNS name that looks like it": authority.issue("web.shop"),
        "for servers only": authority.issue("", uris=[WEB], usage=ExtendedKeyUsageOID.SERVER_AUTH),
        "of an authority itself": authority.issue("", uris=[WEB], authority=True),
    }
    for what, pair in wrong.items():
        context = client_context(world, authority, pair)
        fails(lambda: ask(site.port, context, "a.example"), f"a certificate {what}")
    equal(len(site.upstream.requests), 1, "requests at the upstream")
    # Old versions and renegotiation are no way around.
    old = client_context(world, authority, good)
    old.minimum_version = ssl.TLSVersion.TLSv1
    old.maximum_version = ssl.TLSVersion.TLSv1_1
    fails(lambda: ask(site.port, old, "a.example"), "TLS 1.1")


@scenario()
def sessions_do_not_outlive_trust(world):
    """A session that is resumed under the chain of another name does not carry its trust along (T66, T71)."""
    authority = certificates.Authority()
    chains = [
        {"filter_chain_match": {"server_names": ["strict.example"]}, "transport_socket": server_tls(authority, "strict.example", clients=authority)},
        {"filter_chain_match": {"server_names": ["open.example"]}, "transport_socket": server_tls(authority, "open.example")},
    ]
    site = Site(world, chains=chains, listener=inspector())
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        context = client_context(world, authority)
        context.check_hostname = False
        context.minimum_version = context.maximum_version = version
        with socket.create_connection(("127.0.0.1", site.port), timeout=5) as sock, context.wrap_socket(sock, server_hostname="open.example") as tls:
            tls.sendall(b"GET /s HTTP/1.1\r\nHost: x\r\n\r\n")
            check(tls.recv(1000).startswith(b"HTTP/1.1 200"), "an answer")
            session = tls.session
        try:
            with socket.create_connection(("127.0.0.1", site.port), timeout=5) as sock, context.wrap_socket(sock, server_hostname="strict.example", session=session) as tls:
                tls.sendall(b"GET /resumed HTTP/1.1\r\nHost: x\r\n\r\n")
                answer = tls.recv(1000)
                check(not answer.startswith(b"HTTP/1.1 200"), f"{version}: resumed past the client's certificate")
        except OSError:
            pass
    check(not site.upstream.of("/resumed"), "the resumed request reached the upstream")


@scenario()
def identities_in_headers(world):
    """`x-forwarded-client-cert` is what the handshake proved, whatever the client writes (T20, T57)."""
    authority = certificates.Authority()
    pair = authority.issue("", uris=[WEB])
    site = Site(world, chains=[{"transport_socket": server_tls(authority, "a.example", clients=authority)}], use_remote_address=True,
                forward_client_cert_details="SANITIZE_SET", set_current_client_cert_details={"uri": True})
    context = client_context(world, authority, pair)
    digest = x509.load_pem_x509_certificate(pair[0].encode()).fingerprint(hashes.SHA256()).hex()
    attempts = [
        ("close", ""),
        ("close", "x-forwarded-client-cert: URI=evil\r\n"),
        ("close", "X-Forwarded-Client-Cert: URI=evil\r\nx-forwarded-client-cert: URI=evil2\r\n"),
        ("close, x-forwarded-client-cert", "x-forwarded-client-cert: URI=evil\r\n"),
        ("close, X-FORWARDED-FOR, x-request-id", "x-forwarded-for: 9.9.9.9\r\n"),
        ("close", "x-envoy-retry-on: evil\r\nx-envoy-internal: evil\r\nx-envoy-upstream-rq-timeout-ms: 1\r\n"),
        ("close", "x-forwarded-proto: evil\r\nx-request-id: evil\r\n"),
    ]
    for number, (connection, extra) in enumerate(attempts):
        path = f"/xfcc{number}"
        answer = ask(site.port, context, "a.example", f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: {connection}\r\n{extra}\r\n")
        equal(statuses(answer), [200], f"status of {extra!r}")
        head = site.upstream.of(path)[0][0].decode("latin-1").lower()
        check("evil" not in head, f"what the client wrote arrived: {head}")
        line = [l for l in head.split("\r\n") if l.startswith("x-forwarded-client-cert:")]
        equal(len(line), 1, f"x-forwarded-client-cert lines of {extra!r}")
        check(digest in line[0] and WEB in line[0], f"the proven identity: {line}")
        check("x-forwarded-proto: https" in head, f"x-forwarded-proto: {head}")
    plain = Site(world, forward_client_cert_details="SANITIZE_SET")
    answer = plain.raw(b"GET /plain HTTP/1.1\r\nHost: x\r\nx-forwarded-client-cert: URI=evil\r\nConnection: close\r\n\r\n")
    equal(statuses(answer), [200], "in cleartext")
    check(b"client-cert" not in plain.upstream.of("/plain")[0][0].lower(), "an identity without TLS")


def proxy_v2(command=1, family=0x11, payload=None, length=None):
    payload = struct.pack(">4s4sHH", bytes([9, 9, 9, 9]), bytes([127, 0, 0, 1]), 1234, 80) if payload is None else payload
    return b"\r\n\r\n\0\r\nQUIT\n" + bytes([0x20 | command, family]) + struct.pack(">H", len(payload) if length is None else length) + payload


@scenario()
def proxy_protocol(world):
    """PROXY protocol in both versions: right ones count, others end the connection, and none makes an identity (T58)."""
    kind = {"@type": r.TYPES + "filters.listener.proxy_protocol.v3.ProxyProtocol"}
    site = Site(world, listener={"listener_filters": [{"name": "pp", "typed_config": kind}], "listener_filters_timeout": "1s"}, use_remote_address=True)
    request = b"GET /%s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"

    def seen(name):
        found = site.upstream.of("/" + name)
        return [l.split(b": ")[1].decode() for h, _ in found for l in h.lower().split(b"\r\n") if l.startswith(b"x-forwarded-for")]

    good = {"v1": (b"PROXY TCP4 9.9.9.9 127.0.0.1 1234 80\r\n", "9.9.9.9"), "v2": (proxy_v2(), "9.9.9.9"), "v1unknown": (b"PROXY UNKNOWN\r\n", "127.0.0.1"),
            "v1tcp6": (b"PROXY TCP6 2001:db8::9 ::1 1234 80\r\n", "2001:db8::9"), "v2local": (proxy_v2(command=0, family=0, payload=b""), "127.0.0.1"),
            "v2tlv": (proxy_v2(payload=struct.pack(">4s4sHH", bytes([9, 9, 9, 9]), bytes([127, 0, 0, 1]), 1, 2) + b"\xe0\x00\x03abc"), "9.9.9.9")}
    for name, (data, address) in good.items():
        equal(statuses(site.raw(data + request % name.encode())), [200], name)
        equal(seen(name), [address], f"address by {name}")
    equal(statuses(raw(site.port, b"", parts=[*in_bytes(good["v1"][0]), request % b"bytes"], pause=0.002)), [200], "byte by byte")
    bad = {
        "nothing": b"", "a long line": b"PROXY TCP4 " + b"1" * 200 + b"\r\n", "not an address": b"PROXY TCP4 x y 1 2\r\n", "a port too large": b"PROXY TCP4 9.9.9.9 127.0.0.1 99999 80\r\n",
        "the wrong family": b"PROXY TCP4 ::1 ::1 1 2\r\n", "no CR": b"PROXY TCP4 9.9.9.9 127.0.0.1 1 2\n", "two spaces": b"PROXY  TCP4 9.9.9.9 127.0.0.1 1 2\r\n",
        "version 3": proxy_v2().replace(b"\x21\x11", b"\x31\x11"), "an unknown command": proxy_v2(command=7), "too short": proxy_v2(payload=b"\1\2\3"),
        "a signature that is none": b"\r\n\r\n\0\r\nQUIX\n" + proxy_v2()[12:], "NUL": b"PROXY TCP4 9.9.9.9\0 127.0.0.1 1 2\r\n",
    }
    for number, (what, data) in enumerate(bad.items()):
        answer = site.raw(data + request % b"bad%d" % number, patience=4)
        check(answer is not None and not answer.startswith(b"HTTP/1.1 200"), f"{what}: {answer}")
        check(not site.upstream.of(f"/bad{number}"), f"{what}: reached the upstream")
    for what, data in {"cut": proxy_v2()[:20], "65,535 bytes announced": proxy_v2(length=65535), "half a line": b"PROXY TCP4 9.9"}.items():
        answer = raw(site.port, data, finish=False, patience=4)
        check(answer == b"", f"{what}: {answer}")
    huge = proxy_v2(payload=proxy_v2()[16:28] + b"\xe0" + struct.pack(">H", 65000) + b"x" * 65000)
    check(site.raw(huge + request % b"huge") is not None, "65,000 bytes of TLV: left hanging")
    equal(statuses(site.raw(good["v1"][0] + request % b"later")), [200], "afterwards")
