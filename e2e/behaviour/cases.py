"""The form of a case (`e2e/cases/AREA/NAME.yaml`; described in `e2e/cases/README.md`) and what is expected of an outcome.

Knows neither processes nor namespaces.
"""

import dataclasses
import pathlib
import re

import yaml

from backends import seconds

POSITIONS = ("gateway", "explicit", "captured", "inbound", "resolved")
_METHODS = ("get", "head", "post", "put", "delete", "patch", "options")
_CASE_KEYS = {"about", "positions", "mesh", "objects", "requests", "steps", "objects_invalid", "finding", "differs_from_istio", "patience",
              "under_load", "envoy_only"}
_REQUEST_KEYS = {*_METHODS, "tcp", "grpc", "send", "headers", "body", "times", "timeout", "after", "at", "at_once", "from", "via", "sni", "certificate", "tls_version",
                 "alpn", "curve", "remember", "expect"}
# Of several requests that are judged together, which the load is not.
_NOT_UNDER_LOAD = {"times", "after", "at_once", "remember"}
_EXPECT_KEYS = {
    "status", "body", "body_contains", "backend", "backends", "within", "headers", "echo", "flags", "details", "calls",
    "mirrored", "took", "grpc_status", "reply_contains", "error",
    "one_backend", "of", "certificate", "alpn", "logged", "metrics", "counted", "collected",
}
_ECHO_KEYS = {"path", "host", "method", "tls", "nth", "headers", "absent", "like"}
_TOOK_KEYS = {"at_least", "at_most"}
_COLLECTED_KEYS = {"log", "entry", "none"}
_METRIC_KEYS = {"name", "labels", "value", "none"}
# What is looked at beside an error, and beside several answers that are judged together.
_BESIDE_ERROR = {"error", "flags", "details", "logged", "metrics", "counted", "collected", "calls", "mirrored"}
_BESIDE_OF = {"of", "flags", "details", "logged", "metrics", "counted", "collected", "calls", "mirrored", "backends", "within", "one_backend"}


@dataclasses.dataclass
class Step:
    objects: str
    requests: list


@dataclasses.dataclass
class Case:
    name: str
    about: str
    positions: list
    steps: list
    invalid: bool
    finding: str | None
    differs: dict  # position: why Istio shows something else there
    patience: float | None  # seconds, if more than usual
    load: list  # requests that go on while the steps are gone through again
    rounds: int  # how often they are
    mesh: dict  # settings of the mesh that differ from the usual
    envoy_only: str | None  # why it is not for our own proxy

    def gateway_api(self):
        """Whether the Gateway of Gateway API stands at the edge, instead of the one of Istio."""
        return any("gw-api" in step.objects for step in self.steps)


class Bad(Exception):
    """A case that is not written as it must be."""


def load(folder):
    """All cases, by name."""
    cases = []
    for path in sorted(pathlib.Path(folder).glob("*/*.yaml")):
        name = f"{path.parent.name}/{path.stem}"
        cases.append(parse(name, yaml.safe_load(path.read_text())))
    if not cases:
        raise Bad(f"{folder} holds no cases")
    return cases


def parse(name, raw):
    unknown = set(raw) - _CASE_KEYS
    positions = raw.get("positions") or []
    if unknown or not positions or set(positions) - set(POSITIONS):
        raise Bad(f"{name}: unknown keys {sorted(unknown)}, or positions {positions} that are not of {POSITIONS}")
    written = raw.get("steps") or [{"objects": raw.get("objects", ""), "requests": raw.get("requests")}]
    steps = [Step(step["objects"], step["requests"]) for step in written]
    differs = raw.get("differs_from_istio", {})
    if bool(raw.get("finding")) != bool(raw.get("objects_invalid")) or set(differs) - set(positions):
        raise Bad(f"{name}: a finding belongs to invalid objects, a difference to a position of the case")
    for step in steps:
        list(yaml.safe_load_all(step.objects))
        if not step.requests:
            raise Bad(f"{name}: a step without requests shows nothing")
        _judged(name, step.requests, _REQUEST_KEYS)
    load = raw.get("under_load", {})
    if load and (set(load) != {"rounds", "requests"} or len(steps) < 2):
        raise Bad(f"{name}: load has rounds and requests, and goes on over several steps")
    _judged(name, load.get("requests", []), _REQUEST_KEYS - _NOT_UNDER_LOAD)
    return Case(name, raw["about"], positions, steps, raw.get("objects_invalid", False), raw.get("finding"), differs,
                seconds(raw["patience"]) if "patience" in raw else None, load.get("requests", []), load.get("rounds", 0),
                raw.get("mesh", {}), raw.get("envoy_only"))


def _judged(name, requests, keys):
    """Refuses requests of which something would not be looked at."""
    for request in requests:
        expect = request.get("expect") or {}
        bad = (set(request) - keys) | _unlooked(expect)
        if bad or not expect:
            raise Bad(f"{name}: {sorted(bad)} would not be looked at, or nothing is expected in {request}")


def _unlooked(expect):
    """Keys of an expectation that nothing would look at: misspelt, or beside one that leaves no room for them."""
    bad = set(expect) - _EXPECT_KEYS
    bad |= set(expect.get("echo", {})) - _ECHO_KEYS
    bad |= set(expect.get("took", {})) - _TOOK_KEYS
    for entry in expect.get("collected", []):
        bad |= set(entry) - _COLLECTED_KEYS
    for metric in expect.get("metrics", []):
        bad |= set(metric) - _METRIC_KEYS
    for kind in expect.get("of", []):
        bad |= _unlooked({k: v for k, v in kind.items() if k != "at_least"})
    if "error" in expect:
        bad |= set(expect) - _BESIDE_ERROR
    if "of" in expect:
        bad |= set(expect) - _BESIDE_OF
    if "within" in expect and "backends" not in expect:
        bad.add("within")
    return bad


def method_and_url(request):
    for method in (*_METHODS, "grpc", "tcp"):
        if method in request:
            return method, request[method]
    raise Bad(f"neither a method nor tcp nor grpc in {request}")


def split_url(url):
    """Scheme, host, port, and path with query, exactly as written."""
    found = re.fullmatch(r"(https?)://([^/:]+)(?::(\d+))?(/.*)?", url)
    if not found:
        raise Bad(f"{url!r} is not http(s)://HOST[:PORT]/PATH")
    scheme, host, port, path = found.groups()
    return scheme, host, int(port) if port else {"http": 80, "https": 443}[scheme], path or "/"


def wrong(expect, outcome):
    """What of one outcome is not as expected; `None`: nothing."""
    if "of" in expect:
        return None  # judged together
    if "error" in expect:
        # A handshake that is broken off, and a connection that is.
        same = outcome.error == expect["error"] or {outcome.error, expect["error"]} == {"reset", "tls"}
        return None if same else f"expected the error {expect['error']}, got {describe(outcome)}"
    if outcome.error:
        return f"got {describe(outcome)}"
    echo = outcome.echo()
    checks = [
        ("status", outcome.status),
        ("body", outcome.body),
        ("backend", echo.get("backend")),
        ("grpc_status", outcome.grpc_status),
        ("certificate", outcome.certificate),
        ("alpn", outcome.alpn),
    ]
    for key, found in checks:
        if key in expect and expect[key] != found:
            return f"{key}: expected {expect[key]!r}, got {found!r} in {describe(outcome)}"
    for key in ("body_contains", "reply_contains"):
        if key in expect and expect[key] not in outcome.body:
            return f"{key}: expected {expect[key]!r} in {describe(outcome)}"
    for name, value in expect.get("headers", {}).items():
        if outcome.header(name) != value:
            return f"header {name}: expected {value!r}, got {outcome.header(name)!r}"
    return _wrong_echo(expect.get("echo", {}), echo) or _wrong_time(expect.get("took", {}), outcome.took)


def _wrong_echo(expect, echo):
    if expect and not echo:
        return "no backend answered"
    for key in ("path", "host", "method", "tls", "nth"):
        if key in expect and expect[key] != echo.get(key):
            return f"the backend saw {key} {echo.get(key)!r}, expected {expect[key]!r}"
    headers = echo.get("headers", {})
    for name, values in expect.get("headers", {}).items():
        found = [piece.strip() for value in headers.get(name, []) for piece in value.split(",")]
        if found != values:
            return f"the backend saw {name}: {found}, expected {values}"
    for name, pattern in expect.get("like", {}).items():
        found = ", ".join(headers.get(name, []))
        if not re.fullmatch(pattern, found):
            return f"the backend saw {name}: {found!r}, expected {pattern}"
    for name in expect.get("absent", []):
        if name in headers:
            return f"the backend saw {name}: {headers[name]}, expected none"
    return None


def _wrong_time(expect, took):
    if "at_least" in expect and took < seconds(expect["at_least"]):
        return f"answered after {took:.2f} s, expected at least {expect['at_least']}"
    if "at_most" in expect and took > seconds(expect["at_most"]):
        return f"answered after {took:.2f} s, expected at most {expect['at_most']}"
    return None


def wrong_shares(expect, outcomes):
    """What of several outcomes together is not as expected: who answered how often."""
    names = [o.echo().get("backend") for o in outcomes]
    if expect.get("one_backend") and (len(set(names)) != 1 or None in names):
        return f"one backend was expected, answered: {names}"
    for kind in expect.get("of", []):
        found = sum(wrong({k: v for k, v in kind.items() if k != "at_least"}, o) is None for o in outcomes)
        if found < kind["at_least"]:
            return f"{found} answers are like {kind}: {[describe(o) for o in outcomes]}"
    if "backends" not in expect:
        return None
    for name, share in expect["backends"].items():
        wanted, found = float(share.rstrip("%")), 100 * names.count(name) / len(names)
        if abs(wanted - found) > expect.get("within", 0):
            return f"{name} got {found:.1f} % of {len(names)}, expected {share} within {expect.get('within', 0)}"
    strangers = set(names) - set(expect["backends"])
    return f"{strangers} answered as well" if strangers else None


def wrong_metric(expect, case, page):
    """What of a page of metrics is not as expected; `None`: nothing. `$CASE` is the id of the request."""
    labels = {name: value if value is None else value.replace("$CASE", case) for name, value in expect.get("labels", {}).items()}
    found = []
    for name, text, value in re.findall(r"^(\w+)\{(.*)\} ([0-9.e+]+)$", page, re.MULTILINE):
        given = dict(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', text))
        if name == expect["name"] and all(given.get(k) == v for k, v in labels.items()):
            found.append(float(value))
    wanted = [] if expect.get("none") else [float(expect["value"])]
    return None if found == wanted else f"{expect['name']} {labels}: expected {wanted}, found {found}"


def describe(outcome):
    if outcome.error:
        return f"error {outcome.error} {outcome.body}"
    return f"{outcome.status} {outcome.body[:300]!r}"
