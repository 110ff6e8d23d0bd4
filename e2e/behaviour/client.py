"""What asks: HTTP/1.1, gRPC and TCP over a socket of a given namespace. Sends paths as they are written.

A request ends in an `Outcome`, whether there was an answer or an error: `refused`, `reset` (no answer came), `tls`
(the handshake failed), `timeout`.
"""

import dataclasses
import http.client
import json
import ssl
import time

from cryptography import x509
import h2.config
import h2.connection
import h2.events


@dataclasses.dataclass
class Outcome:
    status: int | None = None
    headers: list = dataclasses.field(default_factory=list)
    body: str = ""
    error: str | None = None
    grpc_status: int | None = None
    took: float = 0.0
    certificate: str | None = None  # the name that the server proved
    alpn: str | None = None  # the protocol that it chose

    def header(self, name):
        """Its value, several joined as one list; `None`: not there."""
        found = [v for n, v in self.headers if n.lower() == name.lower()]
        return ", ".join(found) if found else None

    def echo(self):
        """What the backend says that it received."""
        try:
            answer = json.loads(self.body)
            return answer if isinstance(answer, dict) and "backend" in answer else {}
        except ValueError:
            return {}


@dataclasses.dataclass
class Tls:
    """What a client says of itself."""

    name: str
    files: list | None = None  # of its certificate and key
    version: str | None = None  # the only one that it speaks
    protocols: list | None = None  # that it offers
    curve: str | None = None  # the only one for the key exchange

    def wrap(self, raw):
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        if self.files:
            context.load_cert_chain(*self.files)
        if self.version:
            context.minimum_version = context.maximum_version = ssl.TLSVersion[f"TLSv{self.version.replace('.', '_')}"]
        if self.protocols:
            context.set_alpn_protocols(self.protocols)
        if self.curve:
            context.set_ecdh_curve(self.curve)
        return context.wrap_socket(raw, server_hostname=self.name)


def _proven(connection):
    """The first name of the server's certificate."""
    names = x509.load_der_x509_certificate(connection.getpeercert(True)).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return next(iter(names.value.get_values_for_type(x509.DNSName)), None)


def _connect(namespace, address, timeout):
    connection = namespace.socket()
    connection.settimeout(timeout)
    connection.connect(address)
    return connection


def _timed(act):
    """Runs it; its errors are outcomes."""
    begun = time.monotonic()
    try:
        outcome = act()
    except ConnectionRefusedError:
        outcome = Outcome(error="refused")
    except TimeoutError:
        outcome = Outcome(error="timeout")
    except ssl.SSLError as error:
        # A connection that was broken off during the handshake is a reset as well.
        outcome = Outcome(error="tls", body=str(error))
    except (ConnectionError, http.client.HTTPException, EOFError) as error:
        outcome = Outcome(error="reset", body=repr(error))
    outcome.took = time.monotonic() - begun
    return outcome


def http_request(namespace, address, method, target, host, headers, body=None, tls=None, timeout=10.0):
    """One request on a connection of its own, in clear text or TLS."""

    def act():
        raw, proven, chosen = _connect(namespace, address, timeout), None, None
        try:
            if tls is not None:
                try:
                    raw = tls.wrap(raw)
                    proven, chosen = _proven(raw), raw.selected_alpn_protocol()
                except (ConnectionError, EOFError) as error:
                    return Outcome(error="tls", body=repr(error))
            connection = http.client.HTTPConnection(*address)
            connection.sock = raw
            connection.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
            for name, value in [("host", host), ("connection", "close"), *headers]:
                connection.putheader(name, value)
            if body is not None:
                connection.putheader("content-length", str(len(body)))
            connection.endheaders(body.encode() if body is not None else None)
            response = connection.getresponse()
            text = response.read().decode("utf-8", "replace")
            return Outcome(response.status, response.getheaders(), text, certificate=proven, alpn=chosen)
        finally:
            raw.close()

    return _timed(act)


def tcp_exchange(namespace, address, send, timeout=10.0, tls=None):
    """Sends a line and takes the line that comes back."""

    def act():
        raw = _connect(namespace, address, timeout)
        with tls.wrap(raw) if tls else raw as connection:
            connection.sendall(send.encode())
            reply = b""
            while not reply.endswith(b"\n"):
                piece = connection.recv(4096)
                if not piece:
                    break
                reply += piece
            return Outcome(body=reply.decode()) if reply else Outcome(error="reset", body="closed")

    return _timed(act)


def grpc_call(namespace, address, path, authority, headers, timeout=10.0):
    """A unary call with an empty message; a status in the headers counts as one in the trailers."""

    def act():
        with _connect(namespace, address, timeout) as connection:
            session = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
            session.initiate_connection()
            fields = [(":method", "POST"), (":scheme", "http"), (":authority", authority), (":path", path),
                      ("content-type", "application/grpc"), ("te", "trailers"), *headers]
            session.send_headers(1, fields)
            session.send_data(1, bytes(5), end_stream=True)
            connection.sendall(session.data_to_send())
            outcome = Outcome()
            while True:
                piece = connection.recv(65536)
                if not piece:
                    raise EOFError("connection ended")
                for event in session.receive_data(piece):
                    if isinstance(event, (h2.events.ResponseReceived, h2.events.TrailersReceived)):
                        outcome.headers += event.headers
                    elif isinstance(event, h2.events.DataReceived):
                        session.acknowledge_received_data(event.flow_controlled_length, 1)
                    elif isinstance(event, h2.events.StreamReset):
                        return Outcome(error="reset", body=f"RST_STREAM {event.error_code}")
                    elif isinstance(event, h2.events.StreamEnded):
                        outcome.status = int(outcome.header(":status"))
                        code = outcome.header("grpc-status")
                        outcome.grpc_status = int(code) if code is not None else None
                        return outcome
                connection.sendall(session.data_to_send())

    return _timed(act)
