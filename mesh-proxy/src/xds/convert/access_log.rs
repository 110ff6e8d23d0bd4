//! Access logs and tracing.

use std::{path::PathBuf, time::Duration};

use mesh_api::model::{
    AccessLog, Comparison, CustomTag, Fraction, LogFilter, LogFormat, LogSink, LoggedHeaders, Name, RequestIdTracing,
    TagValue, TraceProvider, Tracing, Zipkin,
};
use mesh_api::xds::envoy::config::accesslog::v3 as proto;
use mesh_api::xds::envoy::config::core::v3 as core;
use mesh_api::xds::envoy::config::trace::v3 as trace;
use mesh_api::xds::envoy::extensions::access_loggers as loggers;
use mesh_api::xds::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use mesh_api::xds::envoy::extensions::request_id::uuid::v3 as uuid;
use mesh_api::xds::envoy::r#type::tracing::v3 as tags;
use mesh_api::xds::opentelemetry::proto::common::v1 as otlp;
use serde_json::Value;

use super::Result;
use super::at::At;
use super::values::{
    bool_or, duration_or, fraction, header_matcher, names, percent, sent_headers, structure, type_name, u32_or, unpack,
};

/// Envoy's default line.
const DEFAULT_FORMAT: &str = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" \
    %RESPONSE_CODE% %RESPONSE_FLAGS% %BYTES_RECEIVED% %BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \
    \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \
    \"%UPSTREAM_HOST%\"\n";

pub fn access_logs(at: &At<'_>, all: &[proto::AccessLog]) -> Result<Vec<AccessLog>> {
    all.iter().enumerate().map(|(i, log)| access_log(&at.item("access_log", i), log)).collect()
}

fn access_log(at: &At<'_>, log: &proto::AccessLog) -> Result<AccessLog> {
    use proto::access_log::ConfigType::TypedConfig;
    let filter = log.filter.as_ref().map(|f| log_filter(&at.field("filter"), f)).transpose()?;
    let Some(TypedConfig(any)) = &log.config_type else { return at.refuse("has no typed_config") };
    let at = at.field("typed_config");
    let format = |f: LogFormat, path: &str| LogSink::File { path: PathBuf::from(path), format: f };
    let sink = match type_name(any) {
        "envoy.extensions.access_loggers.file.v3.FileAccessLog" => {
            let config: loggers::file::v3::FileAccessLog = unpack(&at, any)?;
            format(file_format(&at, &config)?, &config.path)
        }
        "envoy.extensions.access_loggers.stream.v3.StdoutAccessLog" => {
            use loggers::stream::v3::stdout_access_log::AccessLogFormat::LogFormat as F;
            let config: loggers::stream::v3::StdoutAccessLog = unpack(&at, any)?;
            let F(f) = match &config.access_log_format {
                Some(f) => f,
                None => {
                    return Ok(AccessLog {
                        sink: format(LogFormat::Text(DEFAULT_FORMAT.into()), "/dev/stdout"),
                        filter,
                    });
                }
            };
            format(substitution(&at, f)?, "/dev/stdout")
        }
        "envoy.extensions.access_loggers.stream.v3.StderrAccessLog" => {
            use loggers::stream::v3::stderr_access_log::AccessLogFormat::LogFormat as F;
            let config: loggers::stream::v3::StderrAccessLog = unpack(&at, any)?;
            let F(f) = match &config.access_log_format {
                Some(f) => f,
                None => {
                    return Ok(AccessLog {
                        sink: format(LogFormat::Text(DEFAULT_FORMAT.into()), "/dev/stderr"),
                        filter,
                    });
                }
            };
            format(substitution(&at, f)?, "/dev/stderr")
        }
        "envoy.extensions.access_loggers.grpc.v3.HttpGrpcAccessLogConfig" => {
            let config: loggers::grpc::v3::HttpGrpcAccessLogConfig = unpack(&at, any)?;
            let headers = LoggedHeaders {
                request: names(&config.additional_request_headers_to_log),
                response: names(&config.additional_response_headers_to_log),
                trailers: names(&config.additional_response_trailers_to_log),
            };
            grpc_sink(&at, config.common_config.as_ref(), false, headers)?
        }
        "envoy.extensions.access_loggers.grpc.v3.TcpGrpcAccessLogConfig" => {
            let config: loggers::grpc::v3::TcpGrpcAccessLogConfig = unpack(&at, any)?;
            grpc_sink(&at, config.common_config.as_ref(), true, LoggedHeaders::default())?
        }
        "envoy.extensions.access_loggers.open_telemetry.v3.OpenTelemetryAccessLogConfig" => {
            otlp_sink(&at, &unpack(&at, any)?)?
        }
        other => return at.refuse(format!("access log {other} is not supported")),
    };
    Ok(AccessLog { sink, filter })
}

fn grpc_sink(
    at: &At<'_>,
    common: Option<&loggers::grpc::v3::CommonGrpcAccessLogConfig>,
    tcp: bool,
    headers: LoggedHeaders,
) -> Result<LogSink> {
    let at = at.field("common_config");
    let common = at.required(common)?;
    if !common.custom_tags.is_empty() {
        return at.field("custom_tags").refuse("is not supported");
    }
    Ok(LogSink::Grpc {
        cluster: cluster_of(&at.field("grpc_service"), common.grpc_service.as_ref())?,
        log_name: common.log_name.as_str().into(),
        tcp,
        headers,
        filter_state: names(&common.filter_state_objects_to_log),
    })
}

#[allow(deprecated)] // `common_config` is what Istio sends
fn otlp_sink(at: &At<'_>, config: &loggers::open_telemetry::v3::OpenTelemetryAccessLogConfig) -> Result<LogSink> {
    if config.http_service.is_some() {
        return at.field("http_service").refuse("is not supported, use grpc_service");
    }
    if config.resource_attributes.as_ref().is_some_and(|r| !r.values.is_empty()) {
        return at.field("resource_attributes").refuse("is not supported");
    }
    let common = config.common_config.as_ref();
    let service = config.grpc_service.as_ref().or_else(|| common?.grpc_service.as_ref());
    let log_name = if config.log_name.is_empty() { common.map_or("", |c| &c.log_name) } else { &config.log_name };
    let body = match config.body.as_ref().map(any_value).transpose() {
        Ok(None | Some(Value::Null)) => Name::default(),
        Ok(Some(Value::String(text))) => text.into(),
        _ => return at.field("body").refuse("is not a text"),
    };
    let attributes = config.attributes.as_ref().map(key_values).transpose();
    let Ok(attributes) = attributes else { return at.field("attributes").refuse("holds bytes or nests too deep") };
    let states = common.map_or(&[][..], |c| &c.filter_state_objects_to_log);
    Ok(LogSink::Otlp {
        cluster: cluster_of(&at.field("grpc_service"), service)?,
        log_name: log_name.into(),
        body,
        attributes: attributes.unwrap_or_default(),
        filter_state: names(if states.is_empty() { &config.filter_state_objects_to_log } else { states }),
    })
}

fn key_values(list: &otlp::KeyValueList) -> std::result::Result<serde_json::Map<String, Value>, ()> {
    let pair = |kv: &otlp::KeyValue| Ok((kv.key.clone(), kv.value.as_ref().map_or(Ok(Value::Null), any_value)?));
    list.values.iter().map(pair).collect()
}

/// As JSON; protobuf bounds the depth when it decodes.
fn any_value(value: &otlp::AnyValue) -> std::result::Result<Value, ()> {
    use otlp::any_value::Value as V;
    Ok(match &value.value {
        None => Value::Null,
        Some(V::StringValue(text)) => Value::String(text.clone()),
        Some(V::BoolValue(b)) => Value::Bool(*b),
        Some(V::IntValue(n)) => (*n).into(),
        Some(V::DoubleValue(n)) => (*n).into(),
        Some(V::ArrayValue(list)) => {
            Value::Array(list.values.iter().map(any_value).collect::<std::result::Result<_, _>>()?)
        }
        Some(V::KvlistValue(list)) => Value::Object(key_values(list)?),
        Some(_) => return Err(()),
    })
}

/// The cluster of a gRPC service.
fn cluster_of(at: &At<'_>, service: Option<&core::GrpcService>) -> Result<Name> {
    match at.required(service)?.target_specifier.as_ref() {
        Some(core::grpc_service::TargetSpecifier::EnvoyGrpc(grpc)) => Ok(grpc.cluster_name.as_str().into()),
        _ => at.refuse("only envoy_grpc is supported"),
    }
}

#[allow(deprecated)] // the older formats are still in static files
fn file_format(at: &At<'_>, config: &loggers::file::v3::FileAccessLog) -> Result<LogFormat> {
    use loggers::file::v3::file_access_log::AccessLogFormat as F;
    Ok(match &config.access_log_format {
        None => LogFormat::Text(DEFAULT_FORMAT.into()),
        Some(F::Format(text)) => LogFormat::Text(text.as_str().into()),
        Some(F::JsonFormat(s) | F::TypedJsonFormat(s)) => LogFormat::Json { fields: structure(s), omit_empty: false },
        Some(F::LogFormat(f)) => substitution(&at.field("log_format"), f)?,
    })
}

#[allow(deprecated)] // `text_format` is what most files say
fn substitution(at: &At<'_>, f: &core::SubstitutionFormatString) -> Result<LogFormat> {
    use core::data_source::Specifier as S;
    use core::substitution_format_string::Format as F;
    // The operators of these are always there.
    let known = ["ReqWithoutQuery", "req_without_query", "Metadata", "metadata"];
    for (i, formatter) in f.formatters.iter().enumerate() {
        let kind = formatter.typed_config.as_ref().map_or(formatter.name.as_str(), type_name);
        if !known.contains(&kind.rsplit('.').next().unwrap_or_default()) {
            return at.item("formatters", i).refuse(format!("{:?} ({kind}) is not supported", formatter.name));
        }
    }
    Ok(match at.required(f.format.as_ref())? {
        F::TextFormat(text) => LogFormat::Text(text.as_str().into()),
        F::JsonFormat(s) => LogFormat::Json { fields: structure(s), omit_empty: f.omit_empty_values },
        F::TextFormatSource(source) => match &source.specifier {
            Some(S::InlineString(text)) => LogFormat::Text(text.as_str().into()),
            Some(S::InlineBytes(bytes)) => LogFormat::Text(String::from_utf8_lossy(bytes).into()),
            Some(S::Filename(path)) => {
                let text = std::fs::read_to_string(path);
                LogFormat::Text(text.map_err(|e| at.error(format!("{path} cannot be read: {e}")))?.into())
            }
            _ => return at.refuse("has no format"),
        },
    })
}

fn log_filter(at: &At<'_>, f: &proto::AccessLogFilter) -> Result<LogFilter> {
    use proto::access_log_filter::FilterSpecifier as F;
    let all = |filters: &[proto::AccessLogFilter]| {
        filters.iter().enumerate().map(|(i, f)| log_filter(&at.item("filters", i), f)).collect::<Result<Vec<_>>>()
    };
    let comparison = |c: Option<&proto::ComparisonFilter>| {
        use proto::comparison_filter::Op;
        let c = at.required(c)?;
        let op = match Op::try_from(c.op) {
            Ok(Op::Eq) => Comparison::Eq,
            Ok(Op::Ge) => Comparison::Ge,
            Ok(Op::Le) => Comparison::Le,
            _ => return at.refuse("has a comparison that is not supported"),
        };
        Ok((op, c.value.as_ref().map_or(0, |v| v.default_value)))
    };
    Ok(match at.required(f.filter_specifier.as_ref())? {
        F::StatusCodeFilter(s) => {
            let (op, value) = comparison(s.comparison.as_ref())?;
            LogFilter::Status(op, value)
        }
        F::DurationFilter(d) => {
            let (op, value) = comparison(d.comparison.as_ref())?;
            LogFilter::Duration(op, value)
        }
        F::NotHealthCheckFilter(_) => LogFilter::NotHealthCheck,
        F::RuntimeFilter(r) => LogFilter::Fraction(match &r.percent_sampled {
            Some(f) => fraction(at, f)?,
            None => Fraction(0),
        }),
        F::AndFilter(f) => LogFilter::And(all(&f.filters)?),
        F::OrFilter(f) => LogFilter::Or(all(&f.filters)?),
        F::HeaderFilter(h) => LogFilter::Header(header_matcher(at, at.required(h.header.as_ref())?)?),
        F::ResponseFlagFilter(r) => LogFilter::ResponseFlag(names(&r.flags)),
        F::GrpcStatusFilter(g) => LogFilter::GrpcStatus {
            statuses: g.statuses.iter().filter_map(|s| u32::try_from(*s).ok()).collect(),
            exclude: g.exclude,
        },
        F::ExtensionFilter(e) => {
            use proto::extension_filter::ConfigType::TypedConfig;
            match &e.config_type {
                Some(TypedConfig(any)) if type_name(any).ends_with("cel.v3.ExpressionFilter") => {
                    let config: loggers::filters::cel::v3::ExpressionFilter = unpack(at, any)?;
                    LogFilter::Cel(config.expression.into())
                }
                _ => return at.refuse(format!("filter {:?} is not supported", e.name)),
            }
        }
        F::TraceableFilter(_) | F::MetadataFilter(_) | F::LogTypeFilter(_) => {
            return at.refuse("traceable, metadata and log type filters are not supported");
        }
    })
}

pub fn tracing(at: &At<'_>, t: &hcm::http_connection_manager::Tracing) -> Result<Tracing> {
    let tags = t.custom_tags.iter().enumerate();
    Ok(Tracing {
        provider: t.provider.as_ref().map(|p| provider(&at.field("provider"), p)).transpose()?,
        random_sampling: percent(t.random_sampling.as_ref(), 100.0),
        client_sampling: percent(t.client_sampling.as_ref(), 100.0),
        overall_sampling: percent(t.overall_sampling.as_ref(), 100.0),
        tags: tags.map(|(i, tag)| custom_tag(&at.item("custom_tags", i), tag)).collect::<Result<_>>()?,
        max_path_tag: u32_or(t.max_path_tag_length, 256),
        no_context_propagation: t.no_context_propagation,
        request_id: RequestIdTracing::default(),
    })
}

/// What the manager's extension of request ids says of tracing.
pub fn request_id(at: &At<'_>, extension: &hcm::RequestIdExtension) -> Result<RequestIdTracing> {
    let any = at.required(extension.typed_config.as_ref())?;
    let at = at.field("typed_config");
    match type_name(any) {
        "envoy.extensions.request_id.uuid.v3.UuidRequestIdConfig" => {
            let config: uuid::UuidRequestIdConfig = unpack(&at, any)?;
            Ok(RequestIdTracing {
                decides: bool_or(config.use_request_id_for_trace_sampling, true),
                marks: bool_or(config.pack_trace_reason, true),
            })
        }
        other => at.refuse(format!("{other} is not supported")),
    }
}

fn custom_tag(at: &At<'_>, tag: &tags::CustomTag) -> Result<CustomTag> {
    use tags::custom_tag::Type as T;
    let name = |s: &String| Name::from(s.as_str());
    let value = match at.required(tag.r#type.as_ref())? {
        T::Literal(l) => TagValue::Literal(name(&l.value)),
        T::Environment(e) => TagValue::Environment(name(&e.name), name(&e.default_value)),
        T::RequestHeader(h) => TagValue::Header(h.name.to_ascii_lowercase().into(), name(&h.default_value)),
        T::Value(text) => TagValue::Format(name(text)),
        // Spans do not read dynamic metadata: the tag never has a value.
        T::Metadata(m) => TagValue::Literal(name(&m.default_value)),
    };
    Ok(CustomTag { tag: name(&tag.tag), value })
}

fn provider(at: &At<'_>, p: &trace::tracing::Http) -> Result<TraceProvider> {
    use core::grpc_service::TargetSpecifier;
    use core::http_uri::HttpUpstreamType;
    use trace::tracing::http::ConfigType::TypedConfig;
    let Some(TypedConfig(any)) = &p.config_type else { return at.refuse("has no typed_config") };
    let at = at.field("typed_config");
    let zero = Duration::ZERO;
    match type_name(any) {
        "envoy.config.trace.v3.OpenTelemetryConfig" => {
            let config: trace::OpenTelemetryConfig = unpack(&at, any)?;
            let service_name: Name = if config.service_name.is_empty() {
                "unknown_service:envoy".into()
            } else {
                config.service_name.as_str().into()
            };
            if let Some(http) = &config.http_service {
                let headers = http.request_headers_to_add.iter().filter_map(|h| h.header.as_ref());
                let at = at.field("http_service.http_uri");
                let uri = at.required(http.http_uri.as_ref())?;
                let HttpUpstreamType::Cluster(cluster) = at.required(uri.http_upstream_type.as_ref())?;
                return Ok(TraceProvider::OtlpHttp {
                    cluster: cluster.as_str().into(),
                    uri: uri.uri.as_str().into(),
                    service_name,
                    timeout: duration_or(&at, uri.timeout.as_ref(), zero)?,
                    headers: sent_headers(headers),
                });
            }
            let at = at.field("grpc_service");
            let service = at.required(config.grpc_service.as_ref())?;
            let Some(TargetSpecifier::EnvoyGrpc(grpc)) = &service.target_specifier else {
                return at.refuse("only envoy_grpc is supported");
            };
            Ok(TraceProvider::OtlpGrpc {
                cluster: grpc.cluster_name.as_str().into(),
                authority: grpc.authority.as_str().into(),
                service_name,
                timeout: duration_or(&at, service.timeout.as_ref(), zero)?,
                headers: sent_headers(&service.initial_metadata),
            })
        }
        "envoy.config.trace.v3.ZipkinConfig" => {
            let config: trace::ZipkinConfig = unpack(&at, any)?;
            zipkin(&at, &config).map(TraceProvider::Zipkin)
        }
        other => at.refuse(format!("tracer {other} is not supported")),
    }
}

fn zipkin(at: &At<'_>, config: &trace::ZipkinConfig) -> Result<Zipkin> {
    let mut out = Zipkin {
        cluster: config.collector_cluster.as_str().into(),
        path: config.collector_endpoint.as_str().into(),
        hostname: config.collector_hostname.as_str().into(),
        trace_id_128: config.trace_id_128bit,
        shared_span: config.shared_span_context.is_none_or(|v| v.value),
        timeout: Duration::ZERO,
        headers: vec![],
        w3c: config.trace_context_option
            == i32::from(trace::zipkin_config::TraceContextOption::UseB3WithW3cPropagation),
    };
    let Some(service) = &config.collector_service else { return Ok(out) };
    // It counts instead of the older fields.
    let at = at.field("collector_service");
    let uri = at.required(service.http_uri.as_ref())?;
    let at = at.field("http_uri");
    let Some(core::http_uri::HttpUpstreamType::Cluster(cluster)) = &uri.http_upstream_type else {
        return at.field("cluster").refuse("is missing");
    };
    let rest = uri.uri.split_once("://").map_or(uri.uri.as_str(), |(_, rest)| rest);
    let (host, path) = rest.find('/').map_or((rest, "/"), |slash| rest.split_at(slash));
    out.cluster = cluster.as_str().into();
    out.path = path.into();
    out.hostname = host.into();
    out.timeout = duration_or(&at, uri.timeout.as_ref(), Duration::ZERO)?;
    out.headers = sent_headers(service.request_headers_to_add.iter().filter_map(|h| h.header.as_ref()));
    Ok(out)
}

#[cfg(test)]
mod tests {
    use mesh_api::xds::google::protobuf::Any;
    use prost::Message as _;

    use super::*;

    #[test]
    fn headers_for_a_collector_are_kept() {
        let header = core::HeaderValue { key: "Authorization".to_owned(), value: "t".to_owned(), ..Default::default() };
        let uri = core::HttpUri {
            uri: "http://otel:4318/v1/traces".to_owned(),
            http_upstream_type: Some(core::http_uri::HttpUpstreamType::Cluster("otel".to_owned())),
            ..Default::default()
        };
        let service = core::HttpService {
            http_uri: Some(uri),
            request_headers_to_add: vec![core::HeaderValueOption { header: Some(header), ..Default::default() }],
            ..Default::default()
        };
        let config = trace::OpenTelemetryConfig { http_service: Some(service), ..Default::default() };
        let any = Any {
            type_url: "type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig".to_owned(),
            value: config.encode_to_vec(),
        };
        let http = trace::tracing::Http {
            name: String::new(),
            config_type: Some(trace::tracing::http::ConfigType::TypedConfig(any)),
        };
        let read = provider(&At::resource("l"), &http).unwrap();
        let TraceProvider::OtlpHttp { headers, .. } = read else { panic!("{read:?}") };
        assert_eq!(headers, [("authorization".into(), "t".into())]);
    }
}
