"""A gRPC client whose target is `xds:///...`, driven by lines: `NUMBER [KEY=VALUE]...` makes that many calls.

A program of its own, because the library reads GRPC_XDS_BOOTSTRAP once. Answers each line with JSON: how many calls
each server answered, and the statuses of those that failed.
"""

import collections
import json
import sys

import grpc


def main():
    channel = grpc.insecure_channel(sys.argv[1])
    hello = channel.unary_unary("/greeter.Greeter/Hello")
    for line in sys.stdin:
        count, *headers = line.split()
        metadata = [tuple(h.split("=", 1)) for h in headers]
        seen, failed = collections.Counter(), collections.Counter()
        for _ in range(int(count)):
            try:
                seen[hello(b"", metadata=metadata, timeout=5).decode()] += 1
            except grpc.RpcError as error:
                failed[f"{error.code().name}: {error.details()}"] += 1
        print(json.dumps({"seen": seen, "failed": failed}), flush=True)


if __name__ == "__main__":
    main()
