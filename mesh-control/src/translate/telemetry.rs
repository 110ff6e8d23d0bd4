//! What a proxy records: access logs, traces, metrics, from MeshConfig and Telemetry objects.
//!
//! Owns the levels (mesh, namespace, workload) and the meaning of providers. Must not know listeners nor filters; it
//! says what is recorded on the client's and on the server's side of a workload.

use std::{path::PathBuf, sync::Arc, time::Duration};

use mesh_api::{
    crd::telemetry as crd,
    labels,
    meshconfig::{AccessLogEncoding, AlsProvider, ExtensionProvider, MeshConfig},
    model::{
        AccessLog, CustomTag, Fraction, IstioStats, LogFilter, LogFormat, LogSink, LoggedHeaders, Name,
        RequestIdTracing, TagValue, TraceProvider, Tracing, Zipkin,
    },
    names::{ClusterName, complete_host},
};
use serde_json::{Map, Value};

use crate::{
    index::{Index, policies},
    source::object::{Kind, Object, Spec},
    view::ProxyView,
};

use super::{gateway_api::gateway_name, policy::is_gateway};

mod metrics;

/// Istio's default line.
pub const DEFAULT_TEXT: &str = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% \"%UPSTREAM_TRANSPORT_FAILURE_REASON%\" %BYTES_RECEIVED% %BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\" %UPSTREAM_CLUSTER% %UPSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% %REQUESTED_SERVER_NAME% %ROUTE_NAME%\n";

/// Members of Istio's default JSON line.
const DEFAULT_JSON: &[(&str, &str)] = &[
    ("start_time", "%START_TIME%"),
    ("route_name", "%ROUTE_NAME%"),
    ("method", "%REQ(:METHOD)%"),
    ("path", "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%"),
    ("protocol", "%PROTOCOL%"),
    ("response_code", "%RESPONSE_CODE%"),
    ("response_flags", "%RESPONSE_FLAGS%"),
    ("response_code_details", "%RESPONSE_CODE_DETAILS%"),
    ("connection_termination_details", "%CONNECTION_TERMINATION_DETAILS%"),
    ("bytes_received", "%BYTES_RECEIVED%"),
    ("bytes_sent", "%BYTES_SENT%"),
    ("duration", "%DURATION%"),
    ("upstream_service_time", "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%"),
    ("x_forwarded_for", "%REQ(X-FORWARDED-FOR)%"),
    ("user_agent", "%REQ(USER-AGENT)%"),
    ("request_id", "%REQ(X-REQUEST-ID)%"),
    ("authority", "%REQ(:AUTHORITY)%"),
    ("upstream_host", "%UPSTREAM_HOST%"),
    ("upstream_cluster", "%UPSTREAM_CLUSTER%"),
    ("upstream_local_address", "%UPSTREAM_LOCAL_ADDRESS%"),
    ("downstream_local_address", "%DOWNSTREAM_LOCAL_ADDRESS%"),
    ("downstream_remote_address", "%DOWNSTREAM_REMOTE_ADDRESS%"),
    ("requested_server_name", "%REQUESTED_SERVER_NAME%"),
    ("upstream_transport_failure_reason", "%UPSTREAM_TRANSPORT_FAILURE_REASON%"),
];

/// Name of the provider that exists without being declared: lines on the standard output.
const BUILT_IN_LOG: &str = "envoy";
/// Percentage of requests that are traced without a word.
const DEFAULT_SAMPLING: f64 = 1.0;
/// Longest path in a tag without a word.
const DEFAULT_PATH_TAG: u32 = 256;

/// What one side of a workload records.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SideTelemetry {
    /// Logs.
    pub access_log: Vec<AccessLog>,
    /// Spans.
    pub tracing: Option<Tracing>,
    /// Metrics.
    pub stats: IstioStats,
}

/// What a workload records.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TelemetryPlan {
    /// As a client, and as a gateway.
    pub client: SideTelemetry,
    /// As a server.
    pub server: SideTelemetry,
}

impl TelemetryPlan {
    /// Of a proxy.
    pub fn of(index: &Index, view: &ProxyView, objects: &[Arc<Object>]) -> Self {
        let specs: Vec<&crd::Telemetry> = objects.iter().filter_map(|o| spec(o)).collect();
        let side = |mode| SideTelemetry {
            access_log: access_logs(index, &specs, mode),
            tracing: tracing(index, view, &specs, mode),
            stats: metrics::stats(index.mesh(), &specs, mode),
        };
        Self { client: side(crd::WorkloadMode::Client), server: side(crd::WorkloadMode::Server) }
    }
}

/// The Telemetry objects that hold for a proxy, the widest first: one of the mesh, the namespace and the workload each,
/// where a Gateway that the proxy implements counts as a selector does.
pub fn objects(index: &Index, view: &ProxyView) -> Vec<Arc<Object>> {
    let mut out: Vec<Arc<Object>> = index.telemetry(&view.namespace, &view.labels).into_iter().cloned().collect();
    let Some(gateway) = gateway_name(view) else { return out };
    let attached = index.objects_in(Kind::Telemetry, &view.namespace).filter(|o| {
        spec(o).is_some_and(|t| t.target_ref.iter().chain(&t.target_refs).any(|target| is_gateway(target, gateway)))
    });
    let Some(oldest) = attached.min_by(|a, b| a.age_order().cmp(&b.age_order())) else { return out };
    if let Some(selected) = out.pop_if(|o| policies::selector(o).is_some()) {
        out.push(if selected.age_order() < oldest.age_order() { selected } else { oldest.clone() });
    } else {
        out.push(oldest.clone());
    }
    out
}

fn spec(object: &Object) -> Option<&crd::Telemetry> {
    match &object.spec {
        Spec::Telemetry(t) => Some(t),
        _ => None,
    }
}

fn applies(selector: Option<&crd::ModeSelector>, mode: crd::WorkloadMode) -> bool {
    selector.is_none_or(|s| s.mode == crd::WorkloadMode::ClientAndServer || s.mode == mode)
}

fn provider<'a>(mesh: &'a MeshConfig, name: &str) -> Option<&'a ExtensionProvider> {
    mesh.extension_providers.iter().find(|p| p.name == name)
}

// ---- access logs ----

/// A provider that is in force, with its filter.
struct Active {
    name: String,
    filter: Option<Name>,
}

fn access_logs(index: &Index, specs: &[&crd::Telemetry], mode: crd::WorkloadMode) -> Vec<AccessLog> {
    let mesh = index.mesh();
    let defaults = mesh.default_providers.as_ref().map_or(&[][..], |d| d.access_logging.as_slice());
    if defaults.is_empty() && specs.iter().all(|s| s.access_logging.is_empty()) {
        return mesh_log(mesh).into_iter().collect();
    }
    let mut inherited: Vec<String> = defaults.to_vec();
    let mut active: Vec<Active> = inherited.iter().map(|n| Active { name: n.clone(), filter: None }).collect();
    for level in specs.iter().filter(|s| !s.access_logging.is_empty()) {
        let named: Vec<String> =
            level.access_logging.iter().flat_map(|l| l.providers.iter().map(|p| p.name.clone())).collect();
        if !named.is_empty() {
            // Providers of a nearer level replace those of the wider one.
            active.retain(|a| named.contains(&a.name));
            inherited = named;
        }
        for entry in level.access_logging.iter().filter(|l| applies(l.matches.as_ref(), mode)) {
            let own: Vec<String> = entry.providers.iter().map(|p| p.name.clone()).collect();
            for name in if own.is_empty() { &inherited } else { &own } {
                active.retain(|a| a.name != *name);
                if !entry.disabled.unwrap_or(false) {
                    let filter = entry.filter.as_ref().map(|f| f.expression.as_str().into());
                    active.push(Active { name: name.clone(), filter });
                }
            }
        }
    }
    active.iter().filter_map(|a| provider_log(index, a)).collect()
}

/// The log that MeshConfig asks for by itself.
fn mesh_log(mesh: &MeshConfig) -> Option<AccessLog> {
    if mesh.access_log_file.is_empty() {
        return None;
    }
    let format = match mesh.access_log_encoding {
        AccessLogEncoding::Text => text_format(Some(&mesh.access_log_format)),
        AccessLogEncoding::Json => {
            // A format that is no JSON object is Istio's default.
            let own = serde_json::from_str::<Map<String, Value>>(&mesh.access_log_format).ok();
            LogFormat::Json { fields: own.map_or_else(default_json, Value::Object), omit_empty: false }
        }
    };
    Some(AccessLog { sink: LogSink::File { path: PathBuf::from(&mesh.access_log_file), format }, filter: None })
}

fn text_format(own: Option<&String>) -> LogFormat {
    match own.filter(|f| !f.is_empty()) {
        Some(text) if text.ends_with('\n') => LogFormat::Text(text.as_str().into()),
        Some(text) => LogFormat::Text(format!("{text}\n").into()),
        None => LogFormat::Text(DEFAULT_TEXT.into()),
    }
}

fn default_json() -> Value {
    Value::Object(DEFAULT_JSON.iter().map(|(k, v)| ((*k).to_owned(), Value::from(*v))).collect())
}

fn provider_log(index: &Index, active: &Active) -> Option<AccessLog> {
    let mesh = index.mesh();
    let sink = match provider(mesh, &active.name) {
        None if active.name == BUILT_IN_LOG => match mesh_log(mesh) {
            Some(log) => log.sink,
            None => LogSink::File { path: "/dev/stdout".into(), format: text_format(Some(&mesh.access_log_format)) },
        },
        None => return None,
        Some(p) => {
            if let Some(file) = &p.envoy_file_access_log {
                let format = match &file.log_format {
                    Some(f) if f.labels.is_some() => LogFormat::Json {
                        fields: f.labels.clone().map(Value::Object).unwrap_or_default(),
                        omit_empty: file.omit_empty_values,
                    },
                    Some(f) => text_format(f.text.as_ref()),
                    None => LogFormat::Text(DEFAULT_TEXT.into()),
                };
                let path = if file.path.is_empty() { "/dev/stdout" } else { file.path.as_str() };
                LogSink::File { path: path.into(), format }
            } else if let Some(als) = &p.envoy_http_als {
                grpc_sink(index, als, "http_envoy_accesslog", false)
            } else if let Some(als) = &p.envoy_tcp_als {
                grpc_sink(index, als, "tcp_envoy_accesslog", true)
            } else {
                let otel = p.envoy_otel_als.as_ref()?;
                let format = otel.log_format.as_ref();
                let body = format.and_then(|f| f.text.clone()).unwrap_or_else(|| DEFAULT_TEXT.to_owned());
                let attributes = format.and_then(|f| f.labels.as_ref()).into_iter().flatten();
                LogSink::Otlp {
                    cluster: provider_cluster(index, &otel.service, otel.port),
                    log_name: log_name(&otel.log_name, "otel_envoy_accesslog"),
                    body: body.into(),
                    attributes: attributes.map(|(k, v)| (k.clone(), v.clone())).collect(),
                    filter_state: names(&otel.filter_state_objects_to_log),
                }
            }
        }
    };
    Some(AccessLog { sink, filter: active.filter.clone().map(LogFilter::Cel) })
}

fn grpc_sink(index: &Index, als: &AlsProvider, name: &str, tcp: bool) -> LogSink {
    LogSink::Grpc {
        cluster: provider_cluster(index, &als.service, als.port),
        log_name: log_name(&als.log_name, name),
        tcp,
        headers: LoggedHeaders {
            request: names(&als.additional_request_headers_to_log),
            response: names(&als.additional_response_headers_to_log),
            trailers: names(&als.additional_response_trailers_to_log),
        },
        filter_state: names(&als.filter_state_objects_to_log),
    }
}

fn names(texts: &[String]) -> Vec<Name> {
    texts.iter().map(|t| t.as_str().into()).collect()
}

fn log_name(own: &str, default: &str) -> Name {
    if own.is_empty() { default.into() } else { own.into() }
}

/// Cluster of `[NS/]HOST`.
fn provider_cluster(index: &Index, service: &str, port: u16) -> Name {
    let (namespace, host) = service.split_once('/').unwrap_or(("", service));
    let host = if namespace.is_empty() || host.contains('.') {
        host.to_owned()
    } else {
        complete_host(host, namespace, index.domain())
    };
    ClusterName::outbound(&host.to_ascii_lowercase(), port, "").to_string().into()
}

// ---- traces ----

fn tracing(index: &Index, view: &ProxyView, specs: &[&crd::Telemetry], mode: crd::WorkloadMode) -> Option<Tracing> {
    let mesh = index.mesh();
    let mut names: Vec<String> = mesh.default_providers.as_ref().map(|d| d.tracing.clone()).unwrap_or_default();
    let settings = view.proxy_config.tracing.as_ref().or(mesh.default_config.tracing.as_ref());
    let mut sampling = settings.and_then(|t| t.sampling);
    let mut tags = settings.map(|t| t.custom_tags.clone()).unwrap_or_default();
    let mut reported = true;
    let mut istio_tags = settings.and_then(|t| t.enable_istio_tags).unwrap_or(true);
    let mut no_context_propagation = false;
    let mut request_id = RequestIdTracing::default();
    let mut asked = false;
    for entry in specs.iter().flat_map(|s| &s.tracing).filter(|t| applies(t.matches.as_ref(), mode)) {
        asked = true;
        if !entry.providers.is_empty() {
            names = entry.providers.iter().map(|p| p.name.clone()).collect();
        }
        sampling = entry.random_sampling_percentage.or(sampling);
        reported = entry.disable_span_reporting.map_or(reported, |off| !off);
        istio_tags = entry.enable_istio_tags.unwrap_or(istio_tags);
        no_context_propagation = entry.disable_context_propagation.unwrap_or(no_context_propagation);
        request_id.decides = entry.use_request_id_for_trace_sampling.unwrap_or(request_id.decides);
        if !entry.custom_tags.is_empty() {
            tags.clone_from(&entry.custom_tags);
        }
    }
    // Without a word from anybody requests are not traced, and context passes as any header does.
    if names.is_empty() && !asked && !mesh.enable_tracing {
        return None;
    }
    let declared = names.first().and_then(|n| provider(mesh, n));
    let exporter = if reported { declared.and_then(|p| exporter(index, view, p)) } else { None };
    let sampling = if reported { sampling.unwrap_or(DEFAULT_SAMPLING) } else { 0.0 };
    let mut out: Vec<CustomTag> = if istio_tags { workload_tags(view) } else { vec![] };
    out.extend(tags.iter().filter_map(|(name, tag)| custom_tag(name, tag)));
    let tag_length = declared.and_then(|p| {
        p.zipkin.as_ref().and_then(|z| z.max_tag_length).or(p.opentelemetry.as_ref().and_then(|o| o.max_tag_length))
    });
    Some(Tracing {
        provider: exporter,
        random_sampling: Fraction::from_percent(sampling),
        client_sampling: Fraction::ALWAYS,
        overall_sampling: Fraction::ALWAYS,
        tags: out,
        max_path_tag: tag_length.or_else(|| settings.and_then(|t| t.max_path_tag_length)).unwrap_or(DEFAULT_PATH_TAG),
        no_context_propagation,
        request_id,
    })
}

/// `{name, value}`; values from the environment are not known here.
fn sent_headers(headers: &[serde_json::Value]) -> Vec<(Name, Name)> {
    let text = |header: &serde_json::Value, key: &str| header.get(key)?.as_str().map(Name::from);
    headers.iter().filter_map(|h| Some((text(h, "name")?, text(h, "value")?))).collect()
}

fn exporter(index: &Index, view: &ProxyView, p: &ExtensionProvider) -> Option<TraceProvider> {
    let canonical = labels::canonical_name(&view.labels, workload_name(view));
    let service_name: Name = format!("{canonical}.{}", view.namespace).into();
    if let Some(o) = &p.opentelemetry {
        let cluster = provider_cluster(index, &o.service, o.port);
        let host = o.service.rsplit('/').next().unwrap_or_default();
        return Some(match &o.http {
            Some(http) => TraceProvider::OtlpHttp {
                cluster,
                uri: format!(
                    "http://{host}:{}{}",
                    o.port,
                    if http.path.is_empty() { "/v1/traces" } else { &http.path }
                )
                .into(),
                service_name,
                timeout: http.timeout.map_or(Duration::from_secs(10), |d| d.0),
                headers: sent_headers(&http.headers),
            },
            None => TraceProvider::OtlpGrpc {
                cluster,
                authority: host.into(),
                service_name,
                timeout: o.grpc.as_ref().and_then(|g| g.timeout).map_or(Duration::from_secs(10), |d| d.0),
                headers: sent_headers(o.grpc.as_ref().map_or(&[], |g| &g.initial_metadata)),
            },
        });
    }
    let z = p.zipkin.as_ref()?;
    Some(TraceProvider::Zipkin(Zipkin {
        cluster: provider_cluster(index, &z.service, z.port),
        path: if z.path.is_empty() { "/api/v2/spans".into() } else { z.path.as_str().into() },
        hostname: z.service.rsplit('/').next().unwrap_or_default().into(),
        trace_id_128: !z.enable64bit_trace_id,
        shared_span: false,
        timeout: z.timeout.map_or(Duration::ZERO, |d| d.0),
        headers: sent_headers(&z.headers),
        w3c: z.trace_context_option == "USE_B3_WITH_W3C_PROPAGATION",
    }))
}

fn workload_name(view: &ProxyView) -> &str {
    if view.metadata.workload_name.is_empty() { &view.name } else { &view.metadata.workload_name }
}

/// Tags that Istio puts on every span.
fn workload_tags(view: &ProxyView) -> Vec<CustomTag> {
    let mesh_id = if view.metadata.mesh_id.is_empty() { "unknown" } else { view.metadata.mesh_id.as_str() };
    let values = [
        ("istio.canonical_revision", labels::canonical_revision(&view.labels)),
        ("istio.canonical_service", labels::canonical_name(&view.labels, workload_name(view))),
        ("istio.cluster_id", &view.cluster),
        ("istio.mesh_id", mesh_id),
        ("istio.namespace", &view.namespace),
    ];
    let tag = |(tag, value): (&str, &str)| CustomTag { tag: tag.into(), value: TagValue::Literal(value.into()) };
    values.into_iter().map(tag).collect()
}

fn custom_tag(name: &str, tag: &crd::CustomTag) -> Option<CustomTag> {
    let value = if let Some(l) = &tag.literal {
        TagValue::Literal(l.value.as_str().into())
    } else if let Some(h) = &tag.header {
        TagValue::Header(h.name.to_ascii_lowercase().into(), h.default_value.as_str().into())
    } else if let Some(e) = &tag.environment {
        TagValue::Environment(e.name.as_str().into(), e.default_value.as_str().into())
    } else {
        TagValue::Format(tag.formatter.as_ref()?.value.as_str().into())
    };
    Some(CustomTag { tag: name.into(), value })
}

#[cfg(test)]
mod tests {
    use super::super::testing::World;
    use super::*;

    fn plan(yaml: &str) -> TelemetryPlan {
        let world = World::new(yaml);
        let view = world.sidecar("10.0.0.1", "shop", &[("app", "web")]);
        TelemetryPlan::of(world.index(), &view, &objects(world.index(), &view))
    }

    const MESH: &str =
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata:\n  mesh: |\n";

    fn mesh(text: &str) -> String {
        let indented: String = text.lines().map(|l| format!("    {l}\n")).collect();
        format!("{MESH}{indented}")
    }

    fn telemetry(name: &str, namespace: &str, spec: &str) -> String {
        format!(
            "---\napiVersion: telemetry.istio.io/v1\nkind: Telemetry\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec:\n{}",
            spec.lines().map(|l| format!("  {l}\n")).collect::<String>()
        )
    }

    #[test]
    fn nothing_but_metrics_without_a_word() {
        let p = plan("");
        assert!(p.client.access_log.is_empty() && p.client.tracing.is_none());
        assert_eq!((p.client.stats, p.server.stats), Default::default());
    }

    #[test]
    fn mesh_config_logs_in_text_and_json() {
        let p = plan(&mesh("accessLogFile: /dev/stdout"));
        let LogSink::File { format: LogFormat::Text(text), .. } = &p.server.access_log[0].sink else { panic!() };
        assert_eq!(&**text, DEFAULT_TEXT);
        let p = plan(&mesh("accessLogFile: /dev/stdout\naccessLogEncoding: JSON"));
        let LogSink::File { format: LogFormat::Json { fields, .. }, .. } = &p.client.access_log[0].sink else {
            panic!()
        };
        assert_eq!(fields["response_code"], "%RESPONSE_CODE%");
    }

    #[test]
    fn telemetry_turns_logs_on_and_off_by_side() {
        let yaml = telemetry("mesh", "istio-system", "accessLogging: [{providers: [{name: envoy}]}]")
            + &telemetry(
                "own",
                "shop",
                "selector: {matchLabels: {app: web}}\naccessLogging: [{match: {mode: SERVER}, disabled: true}, {match: {mode: CLIENT}, filter: {expression: 'response.code >= 400'}}]",
            );
        let p = plan(&yaml);
        assert!(p.server.access_log.is_empty());
        assert_eq!(p.client.access_log.len(), 1);
        assert_eq!(p.client.access_log[0].filter, Some(LogFilter::Cel("response.code >= 400".into())));
    }

    #[test]
    fn logs_go_to_collectors_with_what_is_asked_for() {
        let yaml = mesh(
            "extensionProviders:\n- name: als\n  envoyHttpAls: {service: als.obs.svc.cluster.local, port: 9000, additionalRequestHeadersToLog: [x-a]}\n- name: otel\n  envoyOtelAls: {service: otel.obs.svc.cluster.local, port: 4317, logFormat: {labels: {code: '%RESPONSE_CODE%', in: {path: '%REQ(:PATH)%'}}}}\n",
        ) + &telemetry(
            "mesh",
            "istio-system",
            "accessLogging: [{providers: [{name: als}, {name: otel}, {name: envoy}]}]",
        );
        let sinks: Vec<LogSink> = plan(&yaml).server.access_log.into_iter().map(|l| l.sink).collect();
        let [LogSink::Grpc { headers, tcp: false, .. }, LogSink::Otlp { attributes, .. }, LogSink::File { .. }] =
            &sinks[..]
        else {
            panic!("{sinks:?}")
        };
        assert_eq!(headers.request, ["x-a".into()]);
        assert_eq!(attributes["in"]["path"], "%REQ(:PATH)%");
    }

    #[test]
    fn a_gateway_has_what_is_attached_to_it() {
        let attached = "targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: gw}]\naccessLogging: [{providers: [{name: envoy}]}]";
        let other = attached.replace("name: gw", "name: other");
        let names = |yaml: &str, gateway: &str| -> Vec<String> {
            let world = World::new(yaml);
            let view = world.gateway("10.0.0.9", "shop", &[(super::super::gateway_api::GATEWAY_NAME, gateway)]);
            objects(world.index(), &view).iter().map(|o| o.key.name.to_string()).collect()
        };
        let yaml = telemetry("wide", "shop", "accessLogging: [{disabled: true}]")
            + &telemetry("b-attached", "shop", attached)
            + &telemetry("a-other", "shop", &other);
        assert_eq!(names(&yaml, "gw"), ["wide", "b-attached"]);
        assert_eq!(names(&yaml, "none"), ["wide"]);
        let selecting = "selector: {matchLabels: {gateway.networking.k8s.io/gateway-name: gw}}\nmetrics: []";
        assert_eq!(names(&(yaml.clone() + &telemetry("a-selects", "shop", selecting)), "gw"), ["wide", "a-selects"]);
        assert_eq!(names(&(yaml + &telemetry("c-selects", "shop", selecting)), "gw"), ["wide", "b-attached"]);
    }

    #[test]
    fn request_ids_and_propagation_are_settings_of_a_side() {
        let yaml = mesh(
            "extensionProviders:\n- name: otel\n  opentelemetry: {service: tempo.obs.svc.cluster.local, port: 4317}\n",
        ) + &telemetry(
            "mesh",
            "istio-system",
            "tracing: [{providers: [{name: otel}]}, {match: {mode: CLIENT}, disableContextPropagation: true, useRequestIdForTraceSampling: false}]",
        );
        let p = plan(&yaml);
        let told = |t: Option<&Tracing>| t.map(|t| (t.no_context_propagation, t.request_id.decides));
        assert_eq!(told(p.client.tracing.as_ref()), Some((true, false)));
        assert_eq!(told(p.server.tracing.as_ref()), Some((false, true)));
    }

    #[test]
    fn traces_go_to_the_provider() {
        let yaml = mesh(
            "extensionProviders:\n- name: otel\n  opentelemetry: {service: tempo.obs.svc.cluster.local, port: 4317}\n",
        ) + &telemetry(
            "mesh",
            "istio-system",
            "tracing: [{providers: [{name: otel}], randomSamplingPercentage: 25, customTags: {env: {literal: {value: test}}}}]",
        );
        let p = plan(&yaml);
        let t = p.client.tracing.as_ref().unwrap();
        assert_eq!(t.random_sampling, Fraction(250_000));
        let Some(TraceProvider::OtlpGrpc { cluster, service_name, .. }) = &t.provider else { panic!() };
        assert_eq!((&**cluster, &**service_name), ("outbound|4317||tempo.obs.svc.cluster.local", "web.shop"));
        assert!(t.tags.iter().any(|t| &*t.tag == "env") && t.tags.iter().any(|t| &*t.tag == "istio.canonical_service"));
    }
}
