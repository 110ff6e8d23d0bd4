#!/usr/bin/env python3
"""Makes descriptors.bin: descriptors of the Envoy messages that appear in bootstrap files and in config dumps; and
extensions.bin: those of every message of Envoy's that configuration may hold, which patches of users are read by.

    python3 -m venv .venv && .venv/bin/pip install protobuf
    .venv/bin/python mesh-api/proto/make-descriptors.py

Takes the descriptor set inside the envoy-types crate that Cargo.lock names, keeps the files that the roots below need,
drops comments, and adds the few messages of Istio's own Envoy build that our control plane sends. In extensions.bin
rules of validation are left out too: they are most of its size, and proxies check them.
"""

import json
import pathlib
import subprocess

from google.protobuf import descriptor_pb2 as pb

HERE = pathlib.Path(__file__).parent
ROOTS = """
envoy/admin/v3/config_dump.proto
envoy/admin/v3/config_dump_shared.proto
envoy/config/bootstrap/v3/bootstrap.proto
envoy/config/cluster/v3/cluster.proto
envoy/config/endpoint/v3/endpoint.proto
envoy/config/listener/v3/listener.proto
envoy/config/rbac/v3/rbac.proto
envoy/config/route/v3/route.proto
envoy/config/trace/v3/opentelemetry.proto
envoy/config/trace/v3/zipkin.proto
envoy/extensions/access_loggers/file/v3/file.proto
envoy/extensions/access_loggers/filters/cel/v3/cel.proto
envoy/extensions/access_loggers/grpc/v3/als.proto
envoy/extensions/access_loggers/open_telemetry/v3/logs_service.proto
envoy/extensions/access_loggers/stream/v3/stream.proto
envoy/extensions/clusters/dynamic_forward_proxy/v3/cluster.proto
envoy/extensions/clusters/original_dst/v3/original_dst.proto
envoy/extensions/filters/http/cors/v3/cors.proto
envoy/extensions/filters/http/dynamic_forward_proxy/v3/dynamic_forward_proxy.proto
envoy/extensions/filters/http/ext_authz/v3/ext_authz.proto
envoy/extensions/filters/http/fault/v3/fault.proto
envoy/extensions/filters/http/grpc_stats/v3/config.proto
envoy/extensions/filters/http/grpc_web/v3/grpc_web.proto
envoy/extensions/filters/http/header_mutation/v3/header_mutation.proto
envoy/extensions/filters/http/health_check/v3/health_check.proto
envoy/extensions/filters/http/jwt_authn/v3/config.proto
envoy/extensions/filters/http/local_ratelimit/v3/local_rate_limit.proto
envoy/extensions/filters/http/ratelimit/v3/rate_limit.proto
envoy/extensions/filters/http/rbac/v3/rbac.proto
envoy/extensions/filters/http/router/v3/router.proto
envoy/extensions/filters/http/stateful_session/v3/stateful_session.proto
envoy/extensions/filters/http/upstream_codec/v3/upstream_codec.proto
envoy/extensions/filters/listener/http_inspector/v3/http_inspector.proto
envoy/extensions/filters/listener/original_dst/v3/original_dst.proto
envoy/extensions/filters/listener/proxy_protocol/v3/proxy_protocol.proto
envoy/extensions/filters/listener/tls_inspector/v3/tls_inspector.proto
envoy/extensions/filters/network/connection_limit/v3/connection_limit.proto
envoy/extensions/filters/network/ext_authz/v3/ext_authz.proto
envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.proto
envoy/extensions/filters/network/local_ratelimit/v3/local_rate_limit.proto
envoy/extensions/filters/network/rbac/v3/rbac.proto
envoy/extensions/filters/network/set_filter_state/v3/set_filter_state.proto
envoy/extensions/filters/network/sni_cluster/v3/sni_cluster.proto
envoy/extensions/filters/network/sni_dynamic_forward_proxy/v3/sni_dynamic_forward_proxy.proto
envoy/extensions/filters/network/tcp_proxy/v3/tcp_proxy.proto
envoy/extensions/http/stateful_session/cookie/v3/cookie.proto
envoy/extensions/http/stateful_session/header/v3/header.proto
envoy/extensions/network/dns_resolver/cares/v3/cares_dns_resolver.proto
envoy/extensions/network/dns_resolver/getaddrinfo/v3/getaddrinfo_dns_resolver.proto
envoy/extensions/path/match/uri_template/v3/uri_template_match.proto
envoy/extensions/path/rewrite/uri_template/v3/uri_template_rewrite.proto
envoy/extensions/resource_monitors/downstream_connections/v3/downstream_connections.proto
envoy/extensions/resource_monitors/fixed_heap/v3/fixed_heap.proto
envoy/extensions/retry/host/previous_hosts/v3/previous_hosts.proto
envoy/extensions/retry/priority/previous_priorities/v3/previous_priorities_config.proto
envoy/extensions/transport_sockets/proxy_protocol/v3/upstream_proxy_protocol.proto
envoy/extensions/transport_sockets/raw_buffer/v3/raw_buffer.proto
envoy/extensions/transport_sockets/tls/v3/secret.proto
envoy/extensions/transport_sockets/tls/v3/tls.proto
envoy/extensions/transport_sockets/tls/v3/tls_spiffe_validator_config.proto
envoy/extensions/upstreams/http/v3/http_protocol_options.proto
google/protobuf/empty.proto
""".split()


def field(name, number, kind, label=pb.FieldDescriptorProto.LABEL_OPTIONAL, type_name=None):
    return pb.FieldDescriptorProto(name=name, number=number, type=kind, label=label, type_name=type_name)


def istio_files():
    """Messages of Istio's Envoy build, as far as they are sent."""
    boolean, string, message = (getattr(pb.FieldDescriptorProto, f"TYPE_{t}") for t in ("BOOL", "STRING", "MESSAGE"))
    many = pb.FieldDescriptorProto.LABEL_REPEATED
    stats = pb.FileDescriptorProto(name="istio/stats.proto", package="stats", syntax="proto3")
    stats.dependency.append("google/protobuf/duration.proto")
    metric = stats.message_type.add(name="MetricConfig", field=[
        field("dimensions", 1, message, many, ".stats.MetricConfig.DimensionsEntry"),
        field("name", 2, string),
        field("tags_to_remove", 3, string, many),
        field("drop", 5, boolean),
    ])
    entry = metric.nested_type.add(name="DimensionsEntry", field=[field("key", 1, string), field("value", 2, string)])
    entry.options.map_entry = True
    stats.message_type.add(name="PluginConfig", field=[
        field("disable_host_header_fallback", 6, boolean),
        field("tcp_reporting_duration", 7, message, type_name=".google.protobuf.Duration"),
        field("metrics", 8, message, many, ".stats.MetricConfig"),
    ])
    alpn = pb.FileDescriptorProto(
        name="istio/alpn.proto", package="istio.envoy.config.filter.http.alpn.v2alpha1", syntax="proto3")
    alpn.message_type.add(name="FilterConfig")
    exchange = pb.FileDescriptorProto(
        name="istio/metadata_exchange.proto", package="envoy.tcp.metadataexchange.config", syntax="proto3")
    exchange.message_type.add(name="MetadataExchange", field=[field("protocol", 1, string)])
    peer = pb.FileDescriptorProto(
        name="istio/peer_metadata.proto", package="io.istio.http.peer_metadata", syntax="proto3")
    config = peer.message_type.add(name="Config")
    prefix = ".io.istio.http.peer_metadata.Config."
    config.nested_type.add(name="IstioHeaders", field=[field("skip_external_clusters", 1, boolean)])
    headers = prefix + "IstioHeaders"
    config.nested_type.add(name="DiscoveryMethod", field=[field("istio_headers", 3, message, type_name=headers)])
    config.nested_type.add(name="PropagationMethod", field=[field("istio_headers", 1, message, type_name=headers)])
    config.field.extend([
        field("downstream_discovery", 1, message, many, prefix + "DiscoveryMethod"),
        field("upstream_discovery", 2, message, many, prefix + "DiscoveryMethod"),
        field("downstream_propagation", 3, message, many, prefix + "PropagationMethod"),
        field("upstream_propagation", 4, message, many, prefix + "PropagationMethod"),
    ])
    return [stats, alpn, exchange, peer]


def typed_structs():
    """Configurations as free JSON, which the crate leaves out: for extensions whose type only the proxy knows."""
    string, message = pb.FieldDescriptorProto.TYPE_STRING, pb.FieldDescriptorProto.TYPE_MESSAGE
    found = []
    for package in ("udpa.type.v1", "xds.type.v3"):
        file = pb.FileDescriptorProto(
            name=package.replace(".", "/") + "/typed_struct.proto", package=package, syntax="proto3")
        file.dependency.append("google/protobuf/struct.proto")
        file.message_type.add(name="TypedStruct", field=[
            field("type_url", 1, string), field("value", 2, message, type_name=".google.protobuf.Struct")])
        found.append(file)
    return found


def plain(message):
    """Takes away the options of a message and of what is in it, save those that say how it is encoded."""
    for name in ("reserved_range", "reserved_name"):
        message.ClearField(name)
    is_map = message.options.map_entry
    message.ClearField("options")
    if is_map:
        message.options.map_entry = True
    for member in message.field:
        packed = member.options.packed if member.options.HasField("packed") else None
        member.ClearField("options")
        if packed is not None:
            member.options.packed = packed
    for oneof in message.oneof_decl:
        oneof.ClearField("options")
    for enum in message.enum_type:
        plain_enum(enum)
    for nested in message.nested_type:
        plain(nested)


def plain_enum(enum):
    allow_alias = enum.options.allow_alias
    enum.ClearField("options")
    if allow_alias:
        enum.options.allow_alias = True
    for value in enum.value:
        value.ClearField("options")


def write(name, files):
    out = pb.FileDescriptorSet(file=files)
    data = out.SerializeToString(deterministic=True)
    (HERE / name).write_bytes(data)
    print(f"{name}: {len(out.file)} files, {len(data)} bytes")


def main():
    metadata = json.loads(subprocess.check_output(["cargo", "metadata", "--format-version", "1"], cwd=HERE))
    crate = next(p for p in metadata["packages"] if p["name"] == "envoy-types")
    source = pathlib.Path(crate["manifest_path"]).parent / "src/generated/types.bin"
    files = {f.name: f for f in pb.FileDescriptorSet.FromString(source.read_bytes()).file}

    def with_dependencies(roots):
        wanted, order = set(), []

        def take(name):
            if name in wanted:
                return
            wanted.add(name)
            for dependency in files[name].dependency:
                take(dependency)
            order.append(name)

        for root in roots:
            if root not in files:
                raise SystemExit(f"{root} is not in the descriptor set of envoy-types")
            take(root)
        return order

    for file in files.values():
        file.ClearField("source_code_info")
    write("descriptors.bin", [files[name] for name in with_dependencies(ROOTS)] + istio_files())

    for file in files.values():
        file.ClearField("options")
        file.ClearField("service")
        file.ClearField("extension")
        for message in file.message_type:
            plain(message)
        for enum in file.enum_type:
            plain_enum(enum)
        # What is named by options alone.
        only_options = ("validate/", "udpa/annotations/", "xds/annotations/", "envoy/annotations/")
        kept = [d for d in file.dependency if not d.startswith(only_options)]
        del file.dependency[:], file.public_dependency[:], file.weak_dependency[:]
        file.dependency.extend(kept)
    configuration = ("envoy/admin/", "envoy/config/", "envoy/data/", "envoy/extensions/", "envoy/type/", "udpa/type/",
                     "xds/type/", "xds/core/", "google/protobuf/")
    roots = sorted(name for name in files if name.startswith(configuration))
    write("extensions.bin", [files[name] for name in with_dependencies(roots)] + istio_files() + typed_structs())


main()
