//! Access logs and tracing.

use std::time::Duration;

use mesh_api::model::{
    AccessLog, Comparison, CustomTag, LogFilter, LogFormat, LogSink, Name, RequestIdTracing, TagValue, TraceProvider,
    Tracing, Zipkin,
};
use serde_json::Value;

use super::values::header_matcher;
use super::wire::{Message, structure};

/// `envoy.config.accesslog.v3.AccessLog`.
pub fn access_log(log: &AccessLog) -> Message {
    let (name, url, config) = match &log.sink {
        LogSink::File { path, format } => {
            let config = Message::new().str(1, &path.to_string_lossy()).msg(5, log_format(format));
            ("envoy.access_loggers.file", "envoy.extensions.access_loggers.file.v3.FileAccessLog", config)
        }
        LogSink::Grpc { cluster, log_name, tcp, headers, filter_state } => {
            let config = Message::new().msg(1, common_grpc(log_name, cluster, filter_state));
            if *tcp {
                let url = "envoy.extensions.access_loggers.grpc.v3.TcpGrpcAccessLogConfig";
                ("envoy.access_loggers.tcp_grpc", url, config)
            } else {
                let url = "envoy.extensions.access_loggers.grpc.v3.HttpGrpcAccessLogConfig";
                let config = config.strs(2, &headers.request).strs(3, &headers.response).strs(4, &headers.trailers);
                ("envoy.access_loggers.http_grpc", url, config)
            }
        }
        LogSink::Otlp { cluster, log_name, body, attributes, filter_state } => {
            let mut config = Message::new().msg(1, common_grpc(log_name, cluster, filter_state));
            if !body.is_empty() {
                config = config.msg(2, Message::new().str_always(1, body));
            }
            let config = config.msg(3, key_values(attributes));
            let url = "envoy.extensions.access_loggers.open_telemetry.v3.OpenTelemetryAccessLogConfig";
            ("envoy.access_loggers.open_telemetry", url, config)
        }
    };
    Message::new().str(1, name).maybe(2, log.filter.as_ref().map(log_filter)).msg(4, Message::any(url, config))
}

/// `CommonGrpcAccessLogConfig`.
fn common_grpc(log_name: &str, cluster: &str, filter_state: &[Name]) -> Message {
    Message::new().str(1, log_name).msg(2, grpc_service(cluster, "")).strs(5, filter_state).uint(6, 2)
}

/// `opentelemetry.proto.common.v1.KeyValueList`.
fn key_values(map: &serde_json::Map<String, Value>) -> Message {
    let pair = |(key, value): (&String, &Value)| Message::new().str(1, key).msg(2, any_value(value));
    Message::new().msgs(1, map.iter().map(pair))
}

/// `AnyValue`. Envoy makes values of texts and of structures of them; other constants go as texts.
fn any_value(value: &Value) -> Message {
    match value {
        Value::Object(map) => Message::new().msg(6, key_values(map)),
        Value::Array(items) => Message::new().msg(5, Message::new().msgs(1, items.iter().map(any_value))),
        Value::String(text) => Message::new().str_always(1, text),
        other => Message::new().str_always(1, &other.to_string()),
    }
}

/// `GrpcService` of a cluster.
fn grpc_service(cluster: &str, authority: &str) -> Message {
    Message::new().msg(1, Message::new().str(1, cluster).str(2, authority))
}

/// `SubstitutionFormatString`.
fn log_format(format: &LogFormat) -> Message {
    match format {
        // text_format_source.inline_string
        LogFormat::Text(text) => Message::new().msg(5, Message::new().str_always(3, text)),
        LogFormat::Json { fields, omit_empty } => Message::new().msg(2, structure(fields)).bool(3, *omit_empty),
    }
}

fn log_filter(filter: &LogFilter) -> Message {
    let all = |field, filters: &[LogFilter]| Message::new().msgs(field, filters.iter().map(log_filter));
    let comparison = |op: &Comparison, value: u32| {
        let op = match op {
            Comparison::Eq => 0,
            Comparison::Ge => 1,
            Comparison::Le => 2,
        };
        // A RuntimeUInt32 must have a key.
        let value = Message::new().uint(2, value.into()).str(3, "mesh.access_log.threshold");
        Message::new().msg(1, Message::new().uint(1, op).msg(2, value))
    };
    let message = Message::new();
    match filter {
        LogFilter::Status(op, value) => message.msg(1, comparison(op, *value)),
        LogFilter::Duration(op, value) => message.msg(2, comparison(op, *value)),
        LogFilter::NotHealthCheck => message.msg(3, Message::new()),
        LogFilter::Fraction(share) => {
            message.msg(5, Message::new().str(1, "mesh.access_log.share").fraction(2, *share).bool(3, true))
        }
        LogFilter::And(filters) => message.msg(6, all(1, filters)),
        LogFilter::Or(filters) => message.msg(7, all(2, filters)),
        LogFilter::Header(matcher) => message.msg(8, Message::new().msg(1, header_matcher(matcher))),
        LogFilter::ResponseFlag(flags) => message.msg(9, Message::new().strs(1, flags)),
        LogFilter::GrpcStatus { statuses, exclude } => {
            let statuses = statuses.iter().map(|s| u64::from(*s));
            message.msg(10, Message::new().uints(1, statuses).bool(2, *exclude))
        }
        LogFilter::Cel(expression) => {
            let url = "envoy.extensions.access_loggers.filters.cel.v3.ExpressionFilter";
            let config = Message::any(url, Message::new().str(1, expression));
            let extension = Message::new().str(1, "envoy.access_loggers.extension_filters.cel").msg(3, config);
            message.msg(11, extension)
        }
    }
}

/// `HttpConnectionManager.Tracing`.
pub fn tracing(tracing: &Tracing) -> Message {
    let percent = |f: mesh_api::model::Fraction| Message::new().double(1, f64::from(f.0) / 10_000.0);
    Message::new()
        .msg(3, percent(tracing.client_sampling))
        .msg(4, percent(tracing.random_sampling))
        .msg(5, percent(tracing.overall_sampling))
        .wrapped(7, tracing.max_path_tag)
        .msgs(8, tracing.tags.iter().map(custom_tag))
        .maybe(9, tracing.provider.as_ref().map(provider))
        .bool(13, tracing.no_context_propagation)
}

/// `RequestIDExtension`; `None`: as Envoy does by itself.
pub fn request_id(tracing: &Tracing) -> Option<Message> {
    const CONFIG: &str = "envoy.extensions.request_id.uuid.v3.UuidRequestIdConfig";
    let RequestIdTracing { decides, marks } = tracing.request_id;
    (tracing.request_id != RequestIdTracing::default()).then(|| {
        let config = Message::new().wrapped_bool(1, marks).wrapped_bool(2, decides);
        Message::new().msg(1, Message::any(CONFIG, config))
    })
}

fn custom_tag(tag: &CustomTag) -> Message {
    let named = |name: &Name, default: &Name| Message::new().str(1, name).str(2, default);
    let message = Message::new().str(1, &tag.tag);
    match &tag.value {
        TagValue::Literal(text) => message.msg(2, Message::new().str(1, text)),
        TagValue::Environment(name, default) => message.msg(3, named(name, default)),
        TagValue::Header(name, default) => message.msg(4, named(name, default)),
        TagValue::Format(text) => message.str_always(6, text),
    }
}

fn sent_header((name, value): &(Name, Name)) -> Message {
    Message::new().str(1, name).str(2, value)
}

fn http_service(cluster: &str, uri: &str, timeout: Duration, headers: &[(Name, Name)]) -> Message {
    let http_uri = Message::new().str(1, uri).str_always(2, cluster).duration(3, timeout);
    // OVERWRITE_IF_EXISTS_OR_ADD
    let option = |header| Message::new().msg(1, sent_header(header)).uint(3, 2);
    Message::new().msg(1, http_uri).msgs(2, headers.iter().map(option))
}

/// Timeouts and headers have their place in a form that older Envoys do not read: it is sent where they are asked for.
fn zipkin(to: &Zipkin) -> Message {
    const TIMEOUT: Duration = Duration::from_secs(5);
    let plain = to.timeout.is_zero() && to.headers.is_empty();
    let message = if plain { Message::new().str(1, &to.cluster).str(2, &to.path) } else { Message::new() };
    let message = message.bool(3, to.trace_id_128).wrapped_bool(4, to.shared_span).uint(5, 1);
    let message = if plain { message.str(6, &to.hostname) } else { message };
    let message = message.uint(8, u64::from(to.w3c));
    if plain {
        return message;
    }
    let uri = format!("http://{}{}", to.hostname, to.path);
    let timeout = if to.timeout.is_zero() { TIMEOUT } else { to.timeout };
    message.msg(9, http_service(&to.cluster, &uri, timeout, &to.headers))
}

fn provider(provider: &TraceProvider) -> Message {
    let otel = "envoy.config.trace.v3.OpenTelemetryConfig";
    let (name, url, config) = match provider {
        TraceProvider::OtlpGrpc { cluster, authority, service_name, timeout, headers } => {
            let service = grpc_service(cluster, authority);
            let service = if timeout.is_zero() { service } else { service.duration(3, *timeout) };
            let service = service.msgs(5, headers.iter().map(sent_header));
            ("envoy.tracers.opentelemetry", otel, Message::new().msg(1, service).str(2, service_name))
        }
        TraceProvider::OtlpHttp { cluster, uri, service_name, timeout, headers } => {
            let service = http_service(cluster, uri, *timeout, headers);
            ("envoy.tracers.opentelemetry", otel, Message::new().str(2, service_name).msg(3, service))
        }
        TraceProvider::Zipkin(to) => ("envoy.tracers.zipkin", "envoy.config.trace.v3.ZipkinConfig", zipkin(to)),
    };
    Message::new().str(1, name).msg(3, Message::any(url, config))
}
