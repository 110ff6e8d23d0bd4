"""Load on a mesh while its configuration changes: every answer must be as it is without a change."""

import threading

import cases

WORKERS = 2  # a position and request
TOLD = 3  # failures that are told in words


class Load:
    """Sends requests over and over until it is ended. `send(request, position)` gives an outcome."""

    def __init__(self, send, requests, positions):
        self._send, self._ended, self._lock = send, threading.Event(), threading.Lock()
        self.sent, self.failures = 0, []
        self._threads = [
            threading.Thread(target=self._go_on, args=(request, position))
            for request in requests for position in positions for _ in range(WORKERS)
        ]
        for thread in self._threads:
            thread.start()

    def _go_on(self, request, position):
        while not self._ended.is_set():
            try:
                why = cases.wrong(request["expect"], self._send(request, position))
            except OSError as error:
                why = repr(error)
            with self._lock:
                self.sent += 1
                if why:
                    self.failures.append(f"{position} {cases.method_and_url(request)}: {why}")

    def end(self):
        """What went wrong, in words; `None`: nothing did."""
        self._ended.set()
        for thread in self._threads:
            thread.join()
        if not self.sent:
            return "no request was sent"
        if not self.failures:
            return None
        return f"{len(self.failures)} of {self.sent} requests failed: {'; '.join(self.failures[:TOLD])}"


def change_under_load(world, case, send):
    """Goes through the steps of a case again and again while its load goes on. What went wrong, in words, or `None`."""
    load = Load(send, case.load, case.positions)
    try:
        for round in range(case.rounds):
            for number, step in enumerate(case.steps):
                world.apply(step.objects, case.mesh)
                if load.failures:
                    return f"in round {round + 1}, at step {number + 1}: {load.end()}"
    finally:
        failure = load.end()
    return failure
