//! Extension providers: where logs, traces and authorization questions go.
use std::collections::BTreeMap;

use crate::crd::{Duration, is_false};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A named provider; one of the kinds.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ExtensionProvider {
    /// `name`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// `envoyExtAuthzHttp`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub envoy_ext_authz_http: Option<ExtAuthzHttpProvider>,
    /// `envoyExtAuthzGrpc`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub envoy_ext_authz_grpc: Option<ExtAuthzGrpcProvider>,
    /// `zipkin`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zipkin: Option<ZipkinProvider>,
    /// `lightstep`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lightstep: Option<serde_json::Value>,
    /// `datadog`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub datadog: Option<serde_json::Value>,
    /// `stackdriver`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stackdriver: Option<serde_json::Value>,
    /// `opencensus`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub opencensus: Option<serde_json::Value>,
    /// `skywalking`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skywalking: Option<serde_json::Value>,
    /// `opentelemetry`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub opentelemetry: Option<OtelProvider>,
    /// `prometheus`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prometheus: Option<serde_json::Value>,
    /// `envoyFileAccessLog`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub envoy_file_access_log: Option<FileAccessLogProvider>,
    /// `envoyHttpAls`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub envoy_http_als: Option<AlsProvider>,
    /// `envoyTcpAls`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub envoy_tcp_als: Option<AlsProvider>,
    /// `envoyOtelAls`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub envoy_otel_als: Option<OtelAlsProvider>,
    /// `sds`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sds: Option<serde_json::Value>,
}

/// External authorizer over HTTP.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ExtAuthzHttpProvider {
    /// `[NS/]HOST`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub service: String,
    /// `port`.
    pub port: u16,
    /// 600 s by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Duration>,
    /// In front of the request's path.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub path_prefix: String,
    /// No answer lets pass.
    #[serde(skip_serializing_if = "is_false")]
    pub fail_open: bool,
    /// `clearRouteCache`.
    #[serde(skip_serializing_if = "is_false")]
    pub clear_route_cache: bool,
    /// Without an answer; 403 by default.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub status_on_error: String,
    /// The older name of `includeRequestHeadersInCheck`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub include_headers_in_check: Vec<String>,
    /// Names, `prefix*` or `*suffix`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub include_request_headers_in_check: Vec<String>,
    /// Set on what is asked.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub include_additional_headers_in_check: BTreeMap<String, String>,
    /// `includeRequestBodyInCheck`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub include_request_body_in_check: Option<ExtAuthzRequestBody>,
    /// `headersToUpstreamOnAllow`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub headers_to_upstream_on_allow: Vec<String>,
    /// `headersToDownstreamOnDeny`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub headers_to_downstream_on_deny: Vec<String>,
    /// `headersToDownstreamOnAllow`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub headers_to_downstream_on_allow: Vec<String>,
}

/// External authorizer over gRPC.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ExtAuthzGrpcProvider {
    /// `[NS/]HOST`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub service: String,
    /// `port`.
    pub port: u16,
    /// 600 s by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Duration>,
    /// No answer lets pass.
    #[serde(skip_serializing_if = "is_false")]
    pub fail_open: bool,
    /// `clearRouteCache`.
    #[serde(skip_serializing_if = "is_false")]
    pub clear_route_cache: bool,
    /// Without an answer; 403 by default.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub status_on_error: String,
    /// `includeRequestBodyInCheck`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub include_request_body_in_check: Option<ExtAuthzRequestBody>,
}

/// How much of a body an authorizer is shown.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ExtAuthzRequestBody {
    /// `maxRequestBytes`.
    pub max_request_bytes: u32,
    /// Longer ones are cut instead of refused.
    #[serde(skip_serializing_if = "is_false")]
    pub allow_partial_message: bool,
    /// `packAsBytes`.
    #[serde(skip_serializing_if = "is_false")]
    pub pack_as_bytes: bool,
}

/// Zipkin.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ZipkinProvider {
    /// `[NS/]HOST`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub service: String,
    /// `port`.
    pub port: u16,
    /// `maxTagLength`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_tag_length: Option<u32>,
    /// `enable64bitTraceId`.
    #[serde(skip_serializing_if = "is_false")]
    pub enable64bit_trace_id: bool,
    /// `path`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub path: String,
    /// `traceContextOption`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub trace_context_option: String,
    /// `timeout`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Duration>,
    /// `headers`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<serde_json::Value>,
}

/// OTLP traces.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct OtelProvider {
    /// `[NS/]HOST`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub service: String,
    /// `port`.
    pub port: u16,
    /// `maxTagLength`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_tag_length: Option<u32>,
    /// `http`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<OtelHttp>,
    /// `grpc`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grpc: Option<OtelGrpc>,
    /// `resourceDetectors`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource_detectors: Option<serde_json::Value>,
    /// `dynatraceSampler`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dynatrace_sampler: Option<serde_json::Value>,
    /// `serviceAttributeEnrichment`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub service_attribute_enrichment: String,
}

/// OTLP over HTTP.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct OtelHttp {
    /// `path`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub path: String,
    /// `timeout`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Duration>,
    /// `headers`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<serde_json::Value>,
}

/// OTLP over gRPC.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct OtelGrpc {
    /// `timeout`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Duration>,
    /// `initialMetadata`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub initial_metadata: Vec<serde_json::Value>,
}

/// Access log to a file.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct FileAccessLogProvider {
    /// `/dev/stdout` by default.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub path: String,
    /// `logFormat`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_format: Option<LogFormat>,
    /// `omitEmptyValues`.
    #[serde(skip_serializing_if = "is_false")]
    pub omit_empty_values: bool,
}

/// Text or labels (JSON).
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct LogFormat {
    /// `text`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// `labels`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<serde_json::Map<String, serde_json::Value>>,
}

/// gRPC access log service.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct AlsProvider {
    /// `service`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub service: String,
    /// `port`.
    pub port: u16,
    /// `logName`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub log_name: String,
    /// `filterStateObjectsToLog`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub filter_state_objects_to_log: Vec<String>,
    /// `additionalRequestHeadersToLog`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub additional_request_headers_to_log: Vec<String>,
    /// `additionalResponseHeadersToLog`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub additional_response_headers_to_log: Vec<String>,
    /// `additionalResponseTrailersToLog`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub additional_response_trailers_to_log: Vec<String>,
}

/// OTLP logs.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct OtelAlsProvider {
    /// `service`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub service: String,
    /// `port`.
    pub port: u16,
    /// `logName`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub log_name: String,
    /// `logFormat`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_format: Option<LogFormat>,
    /// `filterStateObjectsToLog`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub filter_state_objects_to_log: Vec<String>,
}
