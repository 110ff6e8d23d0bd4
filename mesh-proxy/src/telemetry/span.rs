//! Spans of one HTTP manager: who samples, what is written upstream, what is reported.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::HeaderName;
use mesh_api::model::{self, Fraction, RequestIdTracing, TagValue, TraceProvider, TrafficDirection, Zipkin};

use super::span_export::SpanQueue;
use super::trace_context::{self, Incoming};
use crate::config::ConfigError;
use crate::config::snapshot::Node;
use crate::http::format::{Format, View};
use crate::http::message::RequestHead;
use crate::http::request_id::{self, Reason};
use crate::http::stats::{ExchangeStats, Needs, TraceContext};

/// A finished span on its way to an exporter.
#[derive(Debug, Clone)]
pub struct Span {
    /// Ids.
    pub context: TraceContext,
    /// Name.
    pub name: String,
    /// We were the server.
    pub server: bool,
    /// Begin.
    pub start: SystemTime,
    /// Length.
    pub took: Duration,
    /// Something went wrong.
    pub error: bool,
    /// Tags.
    pub tags: Vec<(String, String)>,
    /// Where it goes.
    pub provider: Arc<TraceProvider>,
}

impl Span {
    /// Roughly what it takes of memory.
    pub fn bytes(&self) -> usize {
        let tag = |(key, value): &(String, String)| key.len() + value.len() + size_of::<(String, String)>();
        size_of::<Self>() + self.name.len() + self.tags.iter().map(tag).sum::<usize>()
    }
}

/// Tracing of one HTTP manager.
#[derive(Debug)]
pub struct Tracer {
    provider: Option<Arc<TraceProvider>>,
    random: Fraction,
    client: Fraction,
    overall: Fraction,
    server: bool,
    b3: bool,
    silent: bool,
    request_id: RequestIdTracing,
    max_path: usize,
    fixed: Vec<(String, String)>,
    custom: Vec<(String, Tag)>,
    queue: Arc<SpanQueue>,
}

#[derive(Debug)]
enum Tag {
    Literal(String),
    /// Header and what stands for it when it is absent.
    Header(HeaderName, String),
    Format(Format),
}

/// Longest value of a tag that clients choose, bytes; paths have a limit of their own.
const MAX_TAG: usize = 256;

/// The beginning of a text, `max` bytes at most.
fn cut(text: &str, max: usize) -> &str {
    text.get(..text.floor_char_boundary(max)).unwrap_or_default()
}

const FORCE: HeaderName = HeaderName::from_static("x-envoy-force-trace");
const CLIENT: HeaderName = HeaderName::from_static("x-client-trace-id");
const USER_AGENT: HeaderName = HeaderName::from_static("user-agent");

impl Tracer {
    /// Prepares tags.
    ///
    /// # Errors
    /// A tag that cannot be used.
    pub fn compile(
        tracing: &model::Tracing,
        node: &Node,
        direction: TrafficDirection,
        queue: &Arc<SpanQueue>,
    ) -> Result<Self, ConfigError> {
        let own = super::peer::Workload::of_node(node);
        let mut fixed = vec![("component".to_owned(), "proxy".to_owned()), ("node_id".to_owned(), node.id.clone())];
        let facts = [
            ("istio.canonical_service", own.canonical_service),
            ("istio.canonical_revision", own.canonical_revision),
            ("istio.namespace", own.namespace),
            ("istio.cluster_id", own.cluster),
            ("istio.mesh_id", node.istio.mesh_id.clone()),
        ];
        fixed.extend(facts.into_iter().filter(|(_, v)| !v.is_empty()).map(|(k, v)| (k.to_owned(), v)));
        let mut custom = Vec::new();
        for tag in &tracing.tags {
            let value = match &tag.value {
                TagValue::Literal(text) => Tag::Literal(text.to_string()),
                TagValue::Header(name, default) => {
                    let name = HeaderName::try_from(&**name);
                    let name = name.map_err(|_| ConfigError::new(format!("tag {:?} names no header", tag.tag)))?;
                    Tag::Header(name, default.to_string())
                }
                TagValue::Environment(name, default) => {
                    Tag::Literal(std::env::var(&**name).unwrap_or_else(|_| default.to_string()))
                }
                TagValue::Format(text) => Tag::Format(Format::parse(text)?),
            };
            custom.push((tag.tag.to_string(), value));
        }
        Ok(Self {
            provider: tracing.provider.clone().map(exporter).transpose()?.map(Arc::new),
            random: tracing.random_sampling,
            client: tracing.client_sampling,
            overall: tracing.overall_sampling,
            server: direction == TrafficDirection::Inbound,
            b3: matches!(tracing.provider, Some(TraceProvider::Zipkin(_))),
            silent: tracing.no_context_propagation,
            request_id: tracing.request_id,
            max_path: usize::try_from(tracing.max_path_tag).unwrap_or(256),
            fixed,
            custom,
            queue: queue.clone(),
        })
    }

    /// Headers that tags show.
    pub fn needs(&self, needs: &mut Needs) {
        let headers = self.custom.iter().filter_map(|(_, tag)| match tag {
            Tag::Header(name, _) => Some(name.clone()),
            _ => None,
        });
        for name in headers.chain([USER_AGENT]) {
            if !needs.request.contains(&name) {
                needs.request.push(name);
            }
        }
        for (_, tag) in &self.custom {
            if let Tag::Format(format) = tag {
                format.needs(needs);
            }
        }
    }

    /// Continues the caller's trace or starts one; the request carries our span upstream.
    pub fn begin(&self, stats: &mut ExchangeStats, head: &mut RequestHead, random: &dyn Fn() -> u64) {
        let incoming = trace_context::read(&head.headers);
        let asked = incoming.and_then(|i| i.sampled).or_else(|| trace_context::decision_only(&head.headers));
        let by_id = self.by_request_id(stats, head, random);
        let wanted = asked.unwrap_or(by_id) || head.headers.contains_key(&FORCE);
        let context = TraceContext {
            trace_id: incoming.map_or_else(|| new_trace(random), |i| i.trace_id),
            span_id: random().max(1).to_be_bytes(),
            parent_id: incoming.map(|i| i.span_id),
            sampled: wanted && (self.overall.0 >= 1_000_000 || random() % 1_000_000 < u64::from(self.overall.0)),
        };
        if !self.silent {
            let b3 = self.b3 || incoming.as_ref().is_some_and(|i: &Incoming| i.b3);
            trace_context::write(&context, b3, &mut head.headers);
        }
        stats.trace = Some(Box::new(context));
    }

    /// What the request id says, or is made to say, of sampling.
    fn by_request_id(&self, stats: &mut ExchangeStats, head: &mut RequestHead, random: &dyn Fn() -> u64) -> bool {
        if !self.request_id.decides {
            return true;
        }
        let said = stats.request_id.as_ref().and_then(request_id::reason);
        if said.is_some_and(|r| r != Reason::Undecided) {
            return true;
        }
        // The number in the id, so that every proxy on the way draws the same; without one, any.
        let drawn = stats.request_id.as_ref().and_then(request_id::number).unwrap_or_else(random);
        let share = |f: Fraction| f.0 >= 1_000_000 || drawn % 10_000 * 100 < u64::from(f.0);
        let reason = if head.headers.contains_key(&CLIENT) && share(self.client) {
            Reason::Client
        } else if head.headers.contains_key(&FORCE) {
            Reason::Forced
        } else if share(self.random) {
            Reason::Sampled
        } else {
            return false;
        };
        if self.request_id.marks
            && let Some(id) = stats.request_id.as_ref().and_then(|id| request_id::marked(id, reason))
        {
            head.headers.insert(request_id::HEADER, id.clone());
            stats.request_id = Some(id);
        }
        true
    }

    /// Reports the span of a finished exchange, if it is sampled.
    pub fn record(&self, stats: &ExchangeStats) {
        let (Some(context), Some(provider)) = (&stats.trace, &self.provider) else { return };
        if !context.sampled {
            return;
        }
        let end = stats.times.end.unwrap_or_else(tokio::time::Instant::now);
        let name = stats
            .operation
            .as_ref()
            .map_or_else(|| cut(stats.authority.host(), MAX_TAG).to_owned(), ToString::to_string);
        self.queue.push(Span {
            context: (**context).clone(),
            name,
            server: self.server,
            start: stats.start_time,
            took: end.saturating_duration_since(stats.start),
            error: stats.status >= 500 || stats.status == 0,
            tags: self.tags(stats),
            provider: provider.clone(),
        });
    }

    fn tags(&self, stats: &ExchangeStats) -> Vec<(String, String)> {
        let captured = |name: &HeaderName| {
            let found = stats.captured.request.iter().find(|(n, _)| n == name);
            found.and_then(|(_, v)| v.to_str().ok()).map(|v| cut(v, MAX_TAG).to_owned())
        };
        let path = cut(stats.target.as_str(), self.max_path);
        let authority = cut(stats.authority.as_str(), MAX_TAG);
        let mut tags = self.fixed.clone();
        let mut put = |key: &str, value: String| tags.push((key.to_owned(), value));
        put("http.method", cut(stats.method.as_str(), MAX_TAG).to_owned());
        put("http.url", format!("{}://{authority}{path}", stats.scheme.as_str()));
        put("http.protocol", format!("{:?}", stats.version));
        put("http.status_code", stats.status.to_string());
        put("response_flags", if stats.flags.is_empty() { "-".to_owned() } else { stats.flags.text().into_owned() });
        put("request_size", stats.bytes_received.to_string());
        put("response_size", stats.bytes_sent.to_string());
        put("peer.address", stats.client.ip().to_string());
        put("user_agent", captured(&USER_AGENT).unwrap_or_default());
        if let Some(id) = stats.request_id.as_ref().and_then(|v| v.to_str().ok()) {
            put("guid:x-request-id", cut(id, MAX_TAG).to_owned());
        }
        if let Some(cluster) = &stats.cluster_name {
            put("upstream_cluster", cluster.to_string());
            put("upstream_cluster.name", cluster.to_string());
        }
        if let Some(status) = stats.grpc_status {
            put("grpc.status_code", status.to_string());
        }
        for (key, tag) in &self.custom {
            match tag {
                Tag::Literal(text) => put(key, text.clone()),
                Tag::Header(name, default) => {
                    let value = captured(name).unwrap_or_else(|| default.clone());
                    if !value.is_empty() {
                        put(key, value);
                    }
                }
                Tag::Format(format) => {
                    let mut text = Vec::new();
                    format.write(&View::finished(stats), "-", &mut text);
                    put(key, cut(&String::from_utf8_lossy(&text), MAX_TAG).to_owned());
                }
            }
        }
        tags
    }
}

/// Headers of an exporter are made now: there is no request that operators could look at.
fn exporter(mut provider: TraceProvider) -> Result<TraceProvider, ConfigError> {
    let grpc = matches!(provider, TraceProvider::OtlpGrpc { .. });
    let (TraceProvider::OtlpGrpc { headers, .. }
    | TraceProvider::OtlpHttp { headers, .. }
    | TraceProvider::Zipkin(Zipkin { headers, .. })) = &mut provider;
    for (name, value) in headers {
        let format = Format::parse(value)?;
        let bad = || ConfigError::new(format!("trace exporter: header {name:?} cannot be sent with every batch"));
        let text = format.as_literal().ok_or_else(bad)?;
        HeaderName::try_from(&**name).map_err(|_| bad())?;
        // Names of gRPC that end in `-bin` carry bytes in a form of their own.
        if grpc && name.ends_with("-bin") {
            return Err(bad());
        }
        http::HeaderValue::from_str(text).map_err(|_| bad())?;
        *value = text.into();
    }
    Ok(provider)
}

fn new_trace(random: &dyn Fn() -> u64) -> [u8; 16] {
    (u128::from(random()) << 64 | u128::from(random().max(1))).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use ::http::{Method, uri::PathAndQuery};

    use super::*;
    use crate::http::message::Authority;
    use crate::http::testing;

    fn tracing(random: f64) -> model::Tracing {
        model::Tracing {
            provider: Some(TraceProvider::OtlpGrpc {
                cluster: "otel".into(),
                authority: "otel".into(),
                service_name: "web".into(),
                timeout: Duration::from_secs(1),
                headers: vec![],
            }),
            random_sampling: Fraction::from_percent(random),
            client_sampling: Fraction::ALWAYS,
            overall_sampling: Fraction::ALWAYS,
            tags: vec![model::CustomTag {
                tag: "user".into(),
                value: TagValue::Header("x-user".into(), "none".into()),
            }],
            max_path_tag: 4,
            no_context_propagation: false,
            request_id: RequestIdTracing::default(),
        }
    }

    fn run(random: f64, headers: &[(&'static str, &'static str)]) -> (RequestHead, ExchangeStats, Option<Span>) {
        run_with(&tracing(random), headers)
    }

    fn run_with(
        tracing: &model::Tracing,
        headers: &[(&'static str, &'static str)],
    ) -> (RequestHead, ExchangeStats, Option<Span>) {
        let queue = SpanQueue::new();
        let tracer = Tracer::compile(tracing, &Node::default(), TrafficDirection::Inbound, &queue).unwrap();
        let target = PathAndQuery::from_static("/long/path");
        let mut head = RequestHead::new(Method::GET, Authority::parse("a.test").unwrap(), target);
        for (name, value) in headers {
            head.headers.insert(*name, value.parse().unwrap());
        }
        let mut stats = ExchangeStats::new(Rc::new(testing::conn()), &head);
        stats.request_id = head.headers.get(request_id::HEADER).cloned();
        let n = Cell::new(7u64);
        tracer.begin(&mut stats, &mut head, &|| {
            n.set(n.get() + 1);
            n.get()
        });
        stats.status = 200;
        tracer.record(&stats);
        (head, stats, queue.take(10).pop())
    }

    #[tokio::test]
    async fn a_new_trace_is_sampled_by_chance() {
        let (head, _, span) = run(100.0, &[]);
        let span = span.unwrap();
        assert_eq!((span.name.as_str(), span.server, span.context.parent_id), ("a.test", true, None));
        let parent = head.headers["traceparent"].to_str().unwrap();
        assert!(parent.starts_with("00-") && parent.ends_with("-01"), "{parent}");
        assert!(!head.headers.contains_key("x-b3-traceid"));
        let tag = |key: &str| span.tags.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str());
        assert_eq!((tag("http.url"), tag("user")), (Some("http://a.test/lon"), Some("none")));
        assert!(run(0.0, &[]).2.is_none());
    }

    const ID: &str = "0000000a-0000-4000-8000-000000000000";

    #[tokio::test]
    async fn request_ids_decide_and_are_marked() {
        // The id's number is 10 of 10,000: within 0.2 %, not within 0.1 %.
        let (head, stats, span) = run(0.2, &[("x-request-id", ID)]);
        assert!(span.is_some());
        assert_eq!(head.headers["x-request-id"], "0000000a-0000-9000-8000-000000000000");
        assert_eq!(stats.request_id.as_ref(), head.headers.get("x-request-id"));
        let (head, _, span) = run(0.1, &[("x-request-id", ID)]);
        assert!(span.is_none() && head.headers["x-request-id"] == ID);
        // Others decided before us.
        assert!(run(0.0, &[("x-request-id", "ffffffff-0000-9000-8000-000000000000")]).2.is_some());
        let (head, ..) = run(0.0, &[("x-request-id", ID), ("x-envoy-force-trace", "1")]);
        assert_eq!(head.headers["x-request-id"], "0000000a-0000-a000-8000-000000000000");
        // Trace context counts more.
        let unsampled = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";
        assert!(run(0.2, &[("x-request-id", ID), ("traceparent", unsampled)]).2.is_none());
    }

    #[tokio::test]
    async fn without_request_ids_all_are_sampled_and_none_is_marked() {
        let mut config = tracing(0.0);
        config.request_id.decides = false;
        let (head, _, span) = run_with(&config, &[("x-request-id", ID)]);
        assert!(span.is_some() && head.headers["x-request-id"] == ID);
        config.request_id = RequestIdTracing { decides: true, marks: false };
        config.random_sampling = Fraction::ALWAYS;
        let (head, _, span) = run_with(&config, &[("x-request-id", ID)]);
        assert!(span.is_some() && head.headers["x-request-id"] == ID);
    }

    #[tokio::test]
    async fn spans_are_reported_though_upstreams_are_not_told() {
        let mut config = tracing(100.0);
        config.no_context_propagation = true;
        let (head, _, span) = run_with(&config, &[]);
        assert!(span.is_some() && !head.headers.contains_key("traceparent"));
    }

    #[tokio::test]
    async fn what_clients_choose_has_a_limit() {
        let long: &'static str = Box::leak("x".repeat(20_000).into_boxed_str());
        let head_of = |name: &'static str| RequestHead {
            headers: [(HeaderName::from_static(name), long.parse().unwrap())].into_iter().collect(),
            ..RequestHead::new(Method::GET, Authority::parse("a").unwrap(), PathAndQuery::from_static("/"))
        };
        for (header, tag) in [("user-agent", "user_agent"), ("x-user", "user")] {
            let queue = SpanQueue::new();
            let tracer = Tracer::compile(&tracing(100.0), &Node::default(), TrafficDirection::Inbound, &queue).unwrap();
            let mut head = head_of(header);
            let mut stats = ExchangeStats::new(Rc::new(testing::conn()), &head);
            stats.captured.request = head.headers.iter().map(|(n, v)| (n.clone(), v.clone())).collect();
            tracer.begin(&mut stats, &mut head, &|| 7);
            tracer.record(&stats);
            let span = queue.take(1).pop().unwrap();
            assert_eq!(span.tags.iter().find(|(k, _)| k == tag).unwrap().1.len(), MAX_TAG);
            assert!(span.bytes() < 4096, "{}", span.bytes());
        }
        assert_eq!(cut("aä", 2), "a");
    }

    #[test]
    fn headers_of_exporters_are_made_once() {
        let provider = |value: &str| TraceProvider::OtlpHttp {
            cluster: "c".into(),
            uri: "/".into(),
            service_name: "s".into(),
            timeout: Duration::ZERO,
            headers: vec![("authorization".into(), value.into())],
        };
        let Ok(TraceProvider::OtlpHttp { headers, .. }) = exporter(provider("100%% %ENVIRONMENT(nope)%")) else {
            panic!()
        };
        assert_eq!(headers, [("authorization".into(), "100% -".into())]);
        assert!(exporter(provider("%REQ(x)%")).is_err());
        assert!(exporter(provider("a\nb")).is_err());
    }

    #[tokio::test]
    async fn a_callers_decision_is_respected_and_its_span_is_the_parent() {
        let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let (head, _, span) = run(0.0, &[("traceparent", parent)]);
        let span = span.unwrap();
        assert_eq!(span.context.parent_id, Some([0xb7, 0xad, 0x6b, 0x71, 0x69, 0x20, 0x33, 0x31]));
        assert_ne!(head.headers["traceparent"], parent);
        let unsampled = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";
        assert!(run(100.0, &[("traceparent", unsampled)]).2.is_none());
        let b3 = [("x-b3-traceid", "64fe8b2a57d3eff7"), ("x-b3-spanid", "e457b5a2e4d86bd1"), ("x-b3-sampled", "1")];
        let (head, _, span) = run(0.0, &b3);
        assert!(span.is_some() && head.headers["x-b3-parentspanid"] == "e457b5a2e4d86bd1");
    }
}
