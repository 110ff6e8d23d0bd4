"""Collectors of access logs, both on one port: Envoy's access log service over gRPC and OpenTelemetry's log service."""

import concurrent.futures
import threading

import grpc
from envoy.service.accesslog.v3 import als_pb2
from google.protobuf import json_format
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2

ALS = "envoy.service.accesslog.v3.AccessLogService"
OTLP = "opentelemetry.proto.collector.logs.v1.LogsService"


class Collector:
    """Keeps entries by the name of their log, as dictionaries with the names of the protocols."""

    def __init__(self):
        self._lock, self._entries = threading.Lock(), {}

    def serve(self, namespace, ip, port):
        """Serves there; what it returns is to be stopped."""
        server = grpc.server(concurrent.futures.ThreadPoolExecutor(32))
        stream = grpc.stream_unary_rpc_method_handler(
            self._stream, als_pb2.StreamAccessLogsMessage.FromString, als_pb2.StreamAccessLogsResponse.SerializeToString)
        export = grpc.unary_unary_rpc_method_handler(
            self._export, logs_service_pb2.ExportLogsServiceRequest.FromString, logs_service_pb2.ExportLogsServiceResponse.SerializeToString)
        server.add_generic_rpc_handlers((
            grpc.method_handlers_generic_handler(ALS, {"StreamAccessLogs": stream}),
            grpc.method_handlers_generic_handler(OTLP, {"Export": export}),
        ))
        with namespace.entered():
            if not server.add_insecure_port(f"{ip}:{port}"):
                raise OSError(f"{ip}:{port} cannot be bound")
        server.start()
        return server

    def _keep(self, log, entries):
        with self._lock:
            self._entries.setdefault(log, []).extend(entries)

    def _stream(self, messages, context):
        log = None
        for message in messages:
            if message.HasField("identifier"):
                log = message.identifier.log_name if message.identifier.node.id else "no node"
            entries = [*message.http_logs.log_entry, *message.tcp_logs.log_entry]
            self._keep(log, [json_format.MessageToDict(e, preserving_proto_field_name=True) for e in entries])
        return als_pb2.StreamAccessLogsResponse()

    def _export(self, request, context):
        for of_resource in request.resource_logs:
            resource = _pairs(of_resource.resource.attributes)
            # As `xds-protos` still calls `scope_logs` and `log_records`; the numbers are the same.
            for scope in of_resource.instrumentation_library_logs:
                records = [{"body": _value(r.body), "attributes": _pairs(r.attributes), "resource": resource} for r in scope.logs]
                self._keep(resource.get("log_name"), records)
        return logs_service_pb2.ExportLogsServiceResponse()

    def like(self, log, fields):
        """Entries of a log whose fields (`a.b.c`) have these values; `None`: absent."""
        with self._lock:
            entries = list(self._entries.get(log, []))
        return [e for e in entries if all(_same(_field(e, path), wanted) for path, wanted in fields.items())]

    def last(self, log):
        """The newest entry."""
        with self._lock:
            return (self._entries.get(log) or [None])[-1]


def _same(found, wanted):
    return found is None if wanted is None else found is not None and str(found) == str(wanted)


def _field(entry, path):
    for key in path.split("."):
        entry = entry.get(key) if isinstance(entry, dict) else None
    return entry


def _pairs(attributes):
    return {a.key: _value(a.value) for a in attributes}


def _value(value):
    kind = value.WhichOneof("value")
    if kind == "kvlist_value":
        return _pairs(value.kvlist_value.values)
    return getattr(value, kind) if kind else None
