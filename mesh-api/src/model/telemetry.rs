//! Access logs and tracing as they are configured.

use std::{path::PathBuf, time::Duration};

use serde::Serialize;

use super::{Fraction, HeaderMatcher, Name};

/// One log sink with its filter.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AccessLog {
    /// Where and how.
    pub sink: LogSink,
    /// Which requests; `None`: all.
    pub filter: Option<LogFilter>,
}

/// Where a log goes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub enum LogSink {
    /// A file (`/dev/stdout` and `/dev/stderr` mean the descriptors).
    File {
        /// Path.
        path: PathBuf,
        /// Line format.
        format: LogFormat,
    },
    /// gRPC access log service.
    Grpc {
        /// Its cluster.
        cluster: Name,
        /// Name of the log.
        log_name: Name,
        /// Entries tell of connections instead of requests.
        tcp: bool,
        /// Further headers that entries hold.
        headers: LoggedHeaders,
        /// Filter state that entries hold.
        filter_state: Vec<Name>,
    },
    /// OpenTelemetry logs.
    Otlp {
        /// The collector's cluster.
        cluster: Name,
        /// Name of the log.
        log_name: Name,
        /// With command operators; empty: none.
        body: Name,
        /// Texts with command operators, and structures of them.
        attributes: serde_json::Map<String, serde_json::Value>,
        /// Filter state that records hold.
        filter_state: Vec<Name>,
    },
}

/// Headers of an exchange, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct LoggedHeaders {
    /// Of the request.
    pub request: Vec<Name>,
    /// Of the answer.
    pub response: Vec<Name>,
    /// Of its trailers.
    pub trailers: Vec<Name>,
}

/// Format of a log line, with command operators.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub enum LogFormat {
    /// A text (a newline is part of it).
    Text(Name),
    /// A JSON object; nested objects and literals allowed.
    Json {
        /// Its members; strings hold command operators.
        fields: serde_json::Value,
        /// Members without a value are left out.
        omit_empty: bool,
    },
}

/// Which requests are logged.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub enum LogFilter {
    /// All of them.
    And(Vec<LogFilter>),
    /// One of them.
    Or(Vec<LogFilter>),
    /// Status compared.
    Status(Comparison, u32),
    /// Duration in milliseconds compared.
    Duration(Comparison, u32),
    /// With one of these flags; empty: with any.
    ResponseFlag(Vec<Name>),
    /// No matching route.
    NotHealthCheck,
    /// A share.
    Fraction(Fraction),
    /// A header.
    Header(HeaderMatcher),
    /// A gRPC status in (or, excluded, not in) these.
    GrpcStatus { statuses: Vec<u32>, exclude: bool },
    /// A CEL expression.
    Cel(Name),
}

/// Comparison of a [`LogFilter`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub enum Comparison {
    /// Equal.
    Eq,
    /// Greater or equal.
    Ge,
    /// Less or equal.
    Le,
}

/// `HttpConnectionManager.Tracing`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Tracing {
    /// Exporter; `None`: context is propagated, nothing is sent.
    pub provider: Option<TraceProvider>,
    /// Sampling of requests that carry no decision.
    pub random_sampling: Fraction,
    /// Sampling of requests that ask for it (`x-client-trace-id`).
    pub client_sampling: Fraction,
    /// Upper limit of all.
    pub overall_sampling: Fraction,
    /// Tags.
    pub tags: Vec<CustomTag>,
    /// Longest path in tags, bytes.
    pub max_path_tag: u32,
    /// Upstreams are not told of our span (`no_context_propagation`).
    pub no_context_propagation: bool,
    /// What the request id has to do with it.
    pub request_id: RequestIdTracing,
}

/// `envoy.extensions.request_id.uuid.v3.UuidRequestIdConfig`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct RequestIdTracing {
    /// Requests without trace context are sampled by their `x-request-id`: as it says, else by its number. Otherwise all
    /// are.
    pub decides: bool,
    /// The decision is written into the id (its 13th digit), for those who come after.
    pub marks: bool,
}

impl Default for RequestIdTracing {
    fn default() -> Self {
        Self { decides: true, marks: true }
    }
}

/// Where spans go.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub enum TraceProvider {
    /// OTLP over gRPC to this cluster; `headers` are sent with each batch.
    OtlpGrpc { cluster: Name, authority: Name, service_name: Name, timeout: Duration, headers: Vec<(Name, Name)> },
    /// OTLP over HTTP.
    OtlpHttp { cluster: Name, uri: Name, service_name: Name, timeout: Duration, headers: Vec<(Name, Name)> },
    /// Zipkin JSON v2.
    Zipkin(Zipkin),
}

/// A collector that takes Zipkin's JSON, version 2.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Zipkin {
    /// Cluster of the collector.
    pub cluster: Name,
    /// Path of its requests.
    pub path: Name,
    /// Their host.
    pub hostname: Name,
    /// Trace ids have 128 bits.
    pub trace_id_128: bool,
    /// Client and server share a span.
    pub shared_span: bool,
    /// How long a request may take; zero: as the proxy likes.
    pub timeout: Duration,
    /// Sent with each request.
    pub headers: Vec<(Name, Name)>,
    /// Context is told in W3C's headers, too, and taken from them where B3's are missing.
    pub w3c: bool,
}

/// A span tag.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CustomTag {
    /// Tag name.
    pub tag: Name,
    /// Value.
    pub value: TagValue,
}

/// Value of a [`CustomTag`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum TagValue {
    /// This text.
    Literal(Name),
    /// A request header, else the default (empty: no tag).
    Header(Name, Name),
    /// An environment variable, else the default.
    Environment(Name, Name),
    /// Command operators.
    Format(Name),
}
