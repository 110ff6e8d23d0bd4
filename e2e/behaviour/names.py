"""A name server: `NAME.dynamic.test` is the address of a backend, everything else does not exist. And a client of such.

Knows neither proxies nor cases.
"""

import os
import socket
import struct
import threading

SUFFIX = ".dynamic.test"
TTL = 5
_A, _IN = 1, 1
_NO_SUCH_NAME = 3


class Names:
    """Answers over UDP at an address of a namespace; `known`: addresses by the first label."""

    def __init__(self, namespace, ip, known):
        self._known = known
        with namespace.entered():
            self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((ip, 53))
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            try:
                question, peer = self._socket.recvfrom(4096)
            except OSError:
                return  # closed
            answer = _answer(question, self._known)
            if answer:
                self._socket.sendto(answer, peer)

    def close(self):
        self._socket.close()


class NoSuchName(Exception):
    """A name has no address."""


def look_up(namespace, server, name, patience=6.0):
    """The address that a server tells a client of a namespace. Aliases in the answer are followed by whoever made it."""
    number = struct.unpack("!H", os.urandom(2))[0]
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.rstrip(".").split("."))
    question = struct.pack("!HHHHHH", number, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!HH", _A, _IN)
    with namespace.socket(socket.SOCK_DGRAM) as client:
        client.settimeout(patience)
        client.connect((server, 53))
        client.send(question)
        try:
            answer = client.recv(65535)
        except (TimeoutError, ConnectionError) as error:
            raise NoSuchName(f"{name}: {error!r}") from error
    told, flags, _, count = struct.unpack("!HHHH", answer[:8])
    if told != number or not flags & 0x8000 or answer[12:len(question)] != question[12:]:
        raise ValueError(f"not the answer to {name}: {answer!r}")
    at = len(question)
    for _ in range(count):
        while answer[at] and answer[at] < 0xc0:
            at += 1 + answer[at]
        at += 2 if answer[at] else 1
        kind, _, _, size = struct.unpack("!HHIH", answer[at:at + 10])
        if kind == _A:
            return socket.inet_ntoa(answer[at + 10:at + 14])
        at += 10 + size
    raise NoSuchName(f"{name}: code {flags & 15}")


def _answer(question, known):
    """The answer's bytes; `None` where the question is none."""
    try:
        number, flags, count = struct.unpack("!HHH", question[:6])
        labels, at = [], 12
        while question[at]:
            labels.append(question[at + 1:at + 1 + question[at]].decode().lower())
            at += 1 + question[at]
        kind, family = struct.unpack("!HH", question[at + 1:at + 5])
    except (struct.error, IndexError, UnicodeDecodeError):
        return None
    if flags & 0x8000 or count != 1:
        return None
    asked, name = question[12:at + 5], ".".join(labels)
    address = known.get(name.removesuffix(SUFFIX)) if name.endswith(SUFFIX) else None
    # Of other kinds (AAAA) there is nothing to say, but that the name exists.
    record = b""
    if address and (kind, family) == (_A, _IN):
        record = b"\xc0\x0c" + struct.pack("!HHIH", _A, _IN, TTL, 4) + socket.inet_aton(address)
    told = 0x8480 | (flags & 0x0100) | (0 if address else _NO_SUCH_NAME)
    return struct.pack("!HHHHHH", number, told, 1, 1 if record else 0, 0, 0) + asked + record
