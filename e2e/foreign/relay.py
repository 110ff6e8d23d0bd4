"""A TCP relay between two parties that are not asked: it delays, holds back, throttles and cuts."""

import socket
import threading
import time

import harness


class Relay:
    def __init__(self, target, port=None):
        self.target, self.port = target, port or harness.free_port()
        self.bytes_per_second = None  # of what flows to the client
        self.accepted = 0
        self._flow = threading.Event()
        self._flow.set()
        self._pairs = []
        self._server = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            self.accepted += 1
            threading.Thread(target=self._carry, args=(client,), daemon=True).start()

    def _carry(self, client):
        self._flow.wait()
        try:
            server = socket.create_connection(("127.0.0.1", self.target), timeout=5)
        except OSError:
            client.close()
            return
        server.settimeout(None)
        self._pairs.append((client, server))
        threading.Thread(target=self._pump, args=(client, server, False), daemon=True).start()
        self._pump(server, client, True)

    def _pump(self, source, sink, to_client):
        try:
            while True:
                rate = self.bytes_per_second if to_client else None
                data = source.recv(65536 if rate is None else max(1, rate // 20))
                if not data:
                    break
                if rate:
                    time.sleep(len(data) / rate)
                self._flow.wait()
                sink.sendall(data)
        except OSError:
            pass
        for end in (source, sink):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def hang(self):
        """Connections stay open, also new ones, and nothing flows."""
        self._flow.clear()

    def flow(self):
        self._flow.set()

    def cut(self):
        """Every connection ends."""
        pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for end in pair:
                try:
                    end.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass
                end.close()

    def close(self):
        self._server.close()
        self._flow.set()
        self.cut()
