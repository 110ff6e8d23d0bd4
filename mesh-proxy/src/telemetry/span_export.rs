//! Spans on their way out: a bounded queue that workers put into and a task of the control thread that sends batches:
//! OTLP over gRPC, OTLP over HTTP and Zipkin as JSON. Connections are made by a [`Dial`] that is handed in: it uses the
//! same clusters that carry traffic, so TLS and balancing are configured as for any other upstream.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, UNIX_EPOCH};

use anyhow::Context as _;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use mesh_api::model::{Name, TraceProvider, Zipkin};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, trace_service_client::TraceServiceClient,
};
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span as OtlpSpan, Status, span::SpanKind};
use parking_lot::Mutex;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;

use super::span::Span;
use crate::http::stats::hex;

/// Most spans that wait; older ones give way.
const MAX_WAITING: usize = 16_384;
/// Most bytes that wait; older spans give way.
const MAX_WAITING_BYTES: usize = 16 << 20;
/// Most spans a batch.
const BATCH: usize = 512;
/// A span waits this long at most before it is sent.
const INTERVAL: Duration = Duration::from_secs(1);

/// A byte stream.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Makes connections to clusters.
pub trait Dial: Send + Sync {
    /// A connection to an endpoint of the cluster; `h2`: HTTP/2 will be spoken.
    fn dial(&self, cluster: Name, h2: bool) -> Pin<Box<dyn Future<Output = io::Result<Box<dyn Stream>>> + Send>>;
}

/// Spans that wait.
#[derive(Debug, Default)]
pub struct SpanQueue {
    waiting: Mutex<Waiting>,
    full: Notify,
    /// Spans that gave way or could not be sent.
    pub dropped: AtomicU64,
    /// Spans sent.
    pub sent: AtomicU64,
}

#[derive(Debug, Default)]
struct Waiting {
    spans: VecDeque<Span>,
    bytes: usize,
}

impl Waiting {
    fn pop(&mut self) -> Option<Span> {
        let span = self.spans.pop_front()?;
        self.bytes = self.bytes.saturating_sub(span.bytes());
        Some(span)
    }
}

impl SpanQueue {
    /// Empty.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Adds one.
    pub fn push(&self, span: Span) {
        let bytes = span.bytes();
        let mut waiting = self.waiting.lock();
        waiting.bytes += bytes;
        waiting.spans.push_back(span);
        while waiting.spans.len() > MAX_WAITING || waiting.bytes > MAX_WAITING_BYTES {
            if waiting.pop().is_none() {
                break;
            }
            self.dropped.fetch_add(1, Relaxed);
        }
        if waiting.spans.len() == BATCH {
            self.full.notify_one();
        }
    }

    /// Takes the oldest ones.
    pub fn take(&self, n: usize) -> Vec<Span> {
        let mut waiting = self.waiting.lock();
        (0..n).map_while(|_| waiting.pop()).collect()
    }

    /// Sends what comes, until dropped.
    pub async fn run(self: Arc<Self>, dial: Arc<dyn Dial>) {
        let mut exporter = Exporter { dial, channels: HashMap::new() };
        loop {
            let _ = tokio::time::timeout(INTERVAL, self.full.notified()).await;
            loop {
                let batch = self.take(BATCH);
                if batch.is_empty() {
                    break;
                }
                for (provider, spans) in by_provider(batch) {
                    let n = u64::try_from(spans.len()).unwrap_or_default();
                    match exporter.send(&provider, &spans).await {
                        Ok(()) => self.sent.fetch_add(n, Relaxed),
                        Err(error) => {
                            tracing::debug!(target: "tracing", "{n} spans are lost: {error:#}");
                            self.dropped.fetch_add(n, Relaxed)
                        }
                    };
                }
            }
        }
    }
}

fn by_provider(batch: Vec<Span>) -> Vec<(Arc<TraceProvider>, Vec<Span>)> {
    let mut groups: Vec<(Arc<TraceProvider>, Vec<Span>)> = Vec::new();
    for span in batch {
        match groups.iter_mut().find(|(p, _)| **p == *span.provider) {
            Some((_, spans)) => spans.push(span),
            None => groups.push((span.provider.clone(), vec![span])),
        }
    }
    groups
}

struct Exporter {
    dial: Arc<dyn Dial>,
    channels: HashMap<Name, tonic::transport::Channel>,
}

impl Exporter {
    async fn send(&mut self, provider: &TraceProvider, spans: &[Span]) -> anyhow::Result<()> {
        match provider {
            TraceProvider::OtlpGrpc { cluster, authority, service_name, timeout, headers } => {
                let mut request = tonic::Request::new(otlp_request(service_name, spans));
                for (name, value) in headers {
                    let name = tonic::metadata::AsciiMetadataKey::from_bytes(name.as_bytes())?;
                    request.metadata_mut().append(name, value.parse()?);
                }
                let channel = self.channel(cluster, authority).await?;
                let mut client = TraceServiceClient::new(channel);
                let sent = tokio::time::timeout(patience(*timeout), client.export(request)).await;
                let result = sent.context("no answer").and_then(|r| r.map_err(anyhow::Error::from));
                if result.is_err() {
                    self.channels.remove(cluster);
                }
                result.map(drop)
            }
            TraceProvider::OtlpHttp { cluster, uri, service_name, timeout, headers } => {
                let body = otlp_json(service_name, spans).to_string();
                let (host, path) = host_and_path(uri);
                let post = Post { cluster, host, path, headers, body };
                self.post(post, patience(*timeout)).await
            }
            TraceProvider::Zipkin(Zipkin { cluster, path, hostname, timeout, headers, .. }) => {
                let body = zipkin_json(spans).to_string();
                let post = Post { cluster, host: hostname, path, headers, body };
                self.post(post, patience(*timeout)).await
            }
        }
    }

    async fn channel(&mut self, cluster: &Name, authority: &Name) -> anyhow::Result<tonic::transport::Channel> {
        if let Some(channel) = self.channels.get(cluster) {
            return Ok(channel.clone());
        }
        let authority = if authority.is_empty() { cluster } else { authority };
        let channel = connect(self.dial.clone(), cluster.clone(), authority).await?;
        self.channels.insert(cluster.clone(), channel.clone());
        Ok(channel)
    }

    /// One connection a batch: a batch a second at most needs no pool.
    async fn post(&self, post: Post<'_>, patience: Duration) -> anyhow::Result<()> {
        let Post { cluster, host, path, headers, body } = post;
        let exchange = async {
            let io = self.dial.dial(cluster.clone(), false).await?;
            let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(io)).await?;
            let driver = tokio::spawn(connection);
            let path = if path.is_empty() { "/" } else { path };
            let mut request = http::Request::post(path)
                .header("host", if host.is_empty() { cluster.as_ref() } else { host })
                .header("content-type", "application/json");
            for (name, value) in headers {
                request = request.header(&**name, &**value);
            }
            let request = request.body(Full::new(Bytes::from(body)))?;
            let response = sender.send_request(request).await?;
            let status = response.status();
            let _ = response.into_body().collect().await;
            driver.abort();
            anyhow::ensure!(status.is_success(), "the collector answers {status}");
            Ok(())
        };
        tokio::time::timeout(patience, exchange).await.context("no answer")?
    }
}

/// One batch on its way to a collector.
struct Post<'a> {
    cluster: &'a Name,
    /// Empty: the cluster's name.
    host: &'a str,
    path: &'a str,
    headers: &'a [(Name, Name)],
    body: String,
}

/// Host and path of an `HttpUri`, with or without its scheme.
fn host_and_path(uri: &str) -> (&str, &str) {
    let rest = uri.split_once("://").map_or(uri, |(_, rest)| rest);
    rest.find('/').map_or((rest, "/"), |at| rest.split_at(at))
}

fn patience(configured: Duration) -> Duration {
    if configured.is_zero() { Duration::from_secs(5) } else { configured }
}

fn nanos(span: &Span) -> (u64, u64) {
    let start = span.start.duration_since(UNIX_EPOCH).unwrap_or_default();
    let of = |d: Duration| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX);
    (of(start), of(start + span.took))
}

fn text(key: &str, value: &str) -> KeyValue {
    let value = AnyValue { value: Some(any_value::Value::StringValue(value.to_owned())) };
    KeyValue { key: key.to_owned(), value: Some(value), ..KeyValue::default() }
}

fn otlp_request(service: &str, spans: &[Span]) -> ExportTraceServiceRequest {
    let spans = spans.iter().map(|span| {
        let (start, end) = nanos(span);
        let kind = if span.server { SpanKind::Server } else { SpanKind::Client };
        OtlpSpan {
            trace_id: span.context.trace_id.to_vec(),
            span_id: span.context.span_id.to_vec(),
            parent_span_id: span.context.parent_id.map(|p| p.to_vec()).unwrap_or_default(),
            name: span.name.clone(),
            kind: kind.into(),
            start_time_unix_nano: start,
            end_time_unix_nano: end,
            attributes: span.tags.iter().map(|(k, v)| text(k, v)).collect(),
            status: Some(Status { code: if span.error { 2 } else { 0 }, message: String::new() }),
            ..OtlpSpan::default()
        }
    });
    let scope = InstrumentationScope {
        name: "mesh-proxy".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..InstrumentationScope::default()
    };
    ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            resource: Some(Resource { attributes: vec![text("service.name", service)], ..Resource::default() }),
            scope_spans: vec![ScopeSpans { scope: Some(scope), spans: spans.collect(), ..ScopeSpans::default() }],
            ..ResourceSpans::default()
        }],
    }
}

/// OTLP's JSON form: ids in hex, 64-bit numbers as text.
fn otlp_json(service: &str, spans: &[Span]) -> serde_json::Value {
    let attribute = |key: &str, value: &str| json!({"key": key, "value": {"stringValue": value}});
    let span = |span: &Span| {
        let (start, end) = nanos(span);
        json!({
            "traceId": hex(&span.context.trace_id),
            "spanId": hex(&span.context.span_id),
            "parentSpanId": span.context.parent_id.map(|p| hex(&p)).unwrap_or_default(),
            "name": span.name,
            "kind": if span.server { 2 } else { 3 },
            "startTimeUnixNano": start.to_string(),
            "endTimeUnixNano": end.to_string(),
            "attributes": span.tags.iter().map(|(k, v)| attribute(k, v)).collect::<Vec<_>>(),
            "status": {"code": if span.error { 2 } else { 0 }},
        })
    };
    json!({"resourceSpans": [{
        "resource": {"attributes": [attribute("service.name", service)]},
        "scopeSpans": [{"scope": {"name": "mesh-proxy"}, "spans": spans.iter().map(span).collect::<Vec<_>>()}],
    }]})
}

/// Zipkin's v2 JSON.
fn zipkin_json(spans: &[Span]) -> serde_json::Value {
    let span = |span: &Span| {
        let (start, end) = nanos(span);
        let tags: serde_json::Map<_, _> = span.tags.iter().map(|(k, v)| (k.clone(), v.as_str().into())).collect();
        let service = span.tags.iter().find(|(k, _)| k == "istio.canonical_service").map_or("proxy", |(_, v)| v);
        let mut value = json!({
            "traceId": hex(&span.context.trace_id),
            "id": hex(&span.context.span_id),
            "kind": if span.server { "SERVER" } else { "CLIENT" },
            "name": span.name,
            "timestamp": start / 1000,
            "duration": ((end - start) / 1000).max(1),
            "localEndpoint": {"serviceName": service},
            "tags": tags,
        });
        if let Some(parent) = span.context.parent_id {
            value["parentId"] = hex(&parent).into();
        }
        value
    };
    spans.iter().map(span).collect()
}

/// How long a connection to a collector may take, and to show that it lives.
const CONNECT: Duration = Duration::from_secs(5);
/// How often that is asked.
const ALIVE_EVERY: Duration = Duration::from_secs(30);

/// A channel to a collector's cluster; `authority` is told to the collector.
pub(super) async fn connect(
    dial: Arc<dyn Dial>,
    cluster: Name,
    authority: &str,
) -> anyhow::Result<tonic::transport::Channel> {
    let connector = tower::service_fn(move |_: http::Uri| {
        let connecting = dial.dial(cluster.clone(), true);
        async move { connecting.await.map(TokioIo::new) }
    });
    // What stands in names of clusters may not stand in hosts.
    let host: String = authority.chars().map(|c| if c == '|' { '_' } else { c }).collect();
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{host}"))?;
    let endpoint = endpoint.connect_timeout(CONNECT).http2_keep_alive_interval(ALIVE_EVERY).keep_alive_timeout(CONNECT);
    Ok(endpoint.connect_with_connector(connector).await?)
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::http::stats::TraceContext;

    fn span(name: &str) -> Span {
        Span {
            context: TraceContext { trace_id: [1; 16], span_id: [2; 8], parent_id: Some([3; 8]), sampled: true },
            name: name.to_owned(),
            server: true,
            start: SystemTime::UNIX_EPOCH + Duration::from_secs(1),
            took: Duration::from_millis(2),
            error: true,
            tags: vec![("a".to_owned(), "b".to_owned())],
            provider: Arc::new(TraceProvider::OtlpHttp {
                cluster: "c".into(),
                uri: "http://collector.obs:4318/v1/traces".into(),
                service_name: "s".into(),
                timeout: Duration::ZERO,
                headers: vec![("authorization".into(), "Bearer t".into())],
            }),
        }
    }

    #[test]
    fn old_spans_give_way() {
        let queue = SpanQueue::new();
        for i in 0..=MAX_WAITING {
            queue.push(span(&i.to_string()));
        }
        assert_eq!(queue.dropped.load(Relaxed), 1);
        assert_eq!(queue.take(1)[0].name, "1");
    }

    #[test]
    fn large_spans_wait_in_few() {
        let queue = SpanQueue::new();
        let size = 64 << 10;
        for _ in 0..300 {
            queue.push(Span { tags: vec![("a".to_owned(), "x".repeat(size))], ..span("large") });
        }
        let waiting = queue.take(300);
        assert!(waiting.len() * size <= MAX_WAITING_BYTES && waiting.len() > 200, "{}", waiting.len());
        assert_eq!(queue.dropped.load(Relaxed) + waiting.len() as u64, 300);
        assert_eq!(queue.waiting.lock().bytes, 0);
    }

    #[test]
    fn urls_are_taken_apart() {
        assert_eq!(host_and_path("http://a:1/v1/traces"), ("a:1", "/v1/traces"));
        assert_eq!(host_and_path("a"), ("a", "/"));
        assert_eq!(host_and_path("/v1/traces"), ("", "/v1/traces"));
    }

    #[test]
    fn every_form_holds_the_same_span() {
        let spans = [span("x")];
        let grpc = &otlp_request("web", &spans).resource_spans[0].scope_spans[0].spans[0];
        assert_eq!((grpc.start_time_unix_nano, grpc.end_time_unix_nano), (1_000_000_000, 1_002_000_000));
        let http = otlp_json("web", &spans);
        let http = &http["resourceSpans"][0]["scopeSpans"][0]["spans"][0];
        assert_eq!((http["spanId"].as_str(), http["kind"].as_i64()), (Some("0202020202020202"), Some(2)));
        let zipkin = zipkin_json(&spans);
        assert_eq!((zipkin[0]["timestamp"].as_u64(), zipkin[0]["duration"].as_u64()), (Some(1_000_000), Some(2000)));
        assert_eq!(zipkin[0]["parentId"], "0303030303030303");
    }

    /// Connects to one address, whatever the cluster.
    struct Fixed(std::net::SocketAddr);

    impl Dial for Fixed {
        fn dial(&self, _: Name, _: bool) -> Pin<Box<dyn Future<Output = io::Result<Box<dyn Stream>>> + Send>> {
            let address = self.0;
            Box::pin(async move {
                let stream = tokio::net::TcpStream::connect(address).await?;
                Ok(Box::new(stream) as Box<dyn Stream>)
            })
        }
    }

    #[tokio::test]
    async fn a_collector_gets_a_batch_over_http() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let queue = SpanQueue::new();
        queue.push(span("first"));
        queue.push(span("second"));
        let task = tokio::spawn(queue.clone().run(Arc::new(Fixed(listener.local_addr().unwrap()))));
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut text = String::new();
        while !text.contains("second") {
            let mut buf = [0; 4096];
            let n = stream.read(&mut buf).await.unwrap();
            assert_ne!(n, 0, "{text}");
            text.push_str(std::str::from_utf8(&buf[..n]).unwrap());
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        assert!(text.starts_with("POST /v1/traces HTTP/1.1\r\n") && text.contains("\"first\""), "{text}");
        assert!(
            text.contains("host: collector.obs:4318\r\n") && text.contains("authorization: Bearer t\r\n"),
            "{text}"
        );
        for _ in 0..500 {
            if queue.sent.load(Relaxed) == 2 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!((queue.sent.load(Relaxed), queue.dropped.load(Relaxed)), (2, 0));
        task.abort();
    }
}
