"""Runs scenarios against the binaries in a folder: `run.py BIN_DIR [--only WORD]... [--jobs N]`."""

import argparse
import os
import pathlib
import sys
import time

# Words of the gRPC library about servers that are meant to vanish.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import harness  # noqa: E402


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("bin_dir", type=pathlib.Path)
    parser.add_argument("--only", action="append", default=[], help="scenarios whose name contains this word")
    parser.add_argument("--jobs", type=int, default=6, help="scenarios at once")
    arguments = parser.parse_args()
    harness.BIN = arguments.bin_dir.resolve()

    import capture  # noqa: F401
    import chance  # noqa: F401
    import chance_control  # noqa: F401
    import connection_limits  # noqa: F401
    import control_bytes  # noqa: F401
    import control_frames  # noqa: F401
    import control_references  # noqa: F401
    import control_tenants  # noqa: F401
    import dns_proxy  # noqa: F401
    import extension_pushes  # noqa: F401
    import grpc_client  # noqa: F401
    import health_checks  # noqa: F401
    import http1_bytes  # noqa: F401
    import http2_bytes  # noqa: F401
    import http2_upstreams  # noqa: F401
    import http_filters  # noqa: F401
    import injected  # noqa: F401
    import limits  # noqa: F401
    import name_tables  # noqa: F401
    import proxy_load  # noqa: F401
    import proxy_pushes  # noqa: F401
    import proxy_streams  # noqa: F401
    import rate_limits  # noqa: F401
    import tls_bytes  # noqa: F401

    begun = time.monotonic()
    chosen = [s for s in harness.SCENARIOS if not arguments.only or any(w in s[0] for w in arguments.only)]
    good, bad = harness.run_all(chosen, arguments.jobs)
    print(f"{good} ok, {bad} failed in {time.monotonic() - begun:.0f} s", flush=True)
    # Threads of gRPC servers may still be there; nothing is left to be said.
    sys.stdout.flush()
    os._exit(1 if bad or not good else 0)


if __name__ == "__main__":
    main()
