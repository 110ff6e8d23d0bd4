//! MeshConfig: the key `mesh` of the ConfigMap `istio`, YAML within YAML.
//!
//! Owns its decoding, for the index too, and what of it is refused. A field that is not known is refused like one of an
//! Istio kind: left out silently, a slip of the pen would open what was to be closed.

use std::collections::BTreeSet;

use mesh_api::{
    identity::TrustDomain,
    meshconfig::{ExtAuthzRequestBody, ExtensionProvider, MeshConfig, MeshTls, ProxySettings},
};
use serde::Deserialize;
use serde_json::Value;

use super::{
    checks::{Report, dns_label},
    effect, networking, traffic_policy,
};
use crate::source::{
    core::ConfigMap,
    manifest::{ignored_path, strip_nulls},
    object::{Kind, ObjectKey},
};

/// Namespace and name of the ConfigMap that holds MeshConfig, and its key.
pub const MESH_CONFIG: (&str, &str, &str) = ("istio-system", "istio", "mesh");
/// Namespace and name of the ConfigMap with the values of injection, and its key.
pub const INJECTOR: (&str, &str, &str) = ("istio-system", "istio-sidecar-injector", "values");
/// Path of MeshConfig in the manifest.
const FIELD: &str = "data.mesh";

/// Whether an object is the ConfigMap with MeshConfig.
pub fn is_mesh_config(key: &ObjectKey) -> bool {
    key.kind == Kind::ConfigMap && *key.namespace == *MESH_CONFIG.0 && *key.name == *MESH_CONFIG.1
}

/// Whether text that does not parse was to be the ConfigMap with MeshConfig.
pub fn resembles_mesh_config(text: &str) -> bool {
    let words = || text.split(|c: char| c.is_whitespace() || "{},:'\"".contains(c)).filter(|w| !w.is_empty());
    let pair = |key: &str, value: &str| words().zip(words().skip(1)).any(|(a, b)| a == key && b == value);
    let (namespace, name, _) = MESH_CONFIG;
    pair("kind", "ConfigMap") && pair("name", name) && pair("namespace", namespace)
}

/// What MeshConfig text says.
#[derive(Debug)]
pub struct Decoded {
    /// The settings.
    pub mesh: MeshConfig,
    /// Paths of fields that are not known.
    unknown: Vec<String>,
    raw: Value,
}

impl Decoded {
    /// The first field that is not known.
    pub fn unknown(&self) -> Option<&str> {
        self.unknown.first().map(String::as_str)
    }
}

/// Decodes MeshConfig.
///
/// # Errors
/// Path of the field (empty: the text as a whole) and what is wrong with it.
pub fn decode(text: &str) -> Result<Decoded, (String, String)> {
    let mut raw: Value = mesh_api::yaml::from_str(text).map_err(|error| {
        let reason = error.to_string();
        (String::new(), format!("does not parse: {}", reason.lines().next().unwrap_or_default()))
    })?;
    strip_nulls(&mut raw);
    if raw.is_null() {
        raw = Value::Object(serde_json::Map::new());
    }
    let mut unknown = Vec::new();
    let mut track = serde_path_to_error::Track::new();
    let mut note = |path: serde_ignored::Path<'_>| unknown.push(ignored_path(&path));
    let ignoring = serde_ignored::Deserializer::new(&raw, &mut note);
    let result = MeshConfig::deserialize(serde_path_to_error::Deserializer::new(ignoring, &mut track));
    match result {
        Ok(mesh) => Ok(Decoded { mesh, unknown, raw }),
        Err(error) => Err((track.path().to_string().trim_matches('.').to_owned(), error.to_string())),
    }
}

fn at(path: &str) -> String {
    if path.is_empty() { FIELD.to_owned() } else { format!("{FIELD}.{path}") }
}

pub(super) fn config_map(map: &ConfigMap, out: &mut Report) {
    let Some(text) = map.data.get(MESH_CONFIG.2) else { return };
    let Decoded { mesh, unknown, raw } = match decode(text) {
        Ok(decoded) => decoded,
        Err((path, message)) => return out.error(at(&path), message),
    };
    for path in unknown {
        out.error(at(&path), "is not a field of MeshConfig");
    }
    identity(&mesh, out);
    visibility(&mesh, out);
    ports_and_times(&mesh, out);
    traffic(&mesh, out);
    for (name, tls) in [("meshMTLS", &mesh.mesh_mtls), ("tlsDefaults", &mesh.tls_defaults)] {
        if let Some(tls) = tls {
            protocol_version(tls, &at(name), out);
            super::services::curves(&tls.ecdh_curves, &at(&format!("{name}.ecdhCurves")), out);
            if name == "tlsDefaults" {
                super::services::suites(&tls.cipher_suites, &at("tlsDefaults.cipherSuites"), out);
            }
        }
    }
    providers(&mesh, out);
    proxy_settings(&mesh.default_config, &at("defaultConfig"), out);
    let manifest = serde_json::json!({"data": {"mesh": raw}});
    out.findings.extend(effect::without_effect(Kind::ConfigMap, &manifest));
}

fn identity(mesh: &MeshConfig, out: &mut Report) {
    let own = (!mesh.trust_domain.is_empty()).then(|| (at("trustDomain"), &mesh.trust_domain));
    let aliases = mesh.trust_domain_aliases.iter().enumerate();
    let aliases = aliases.map(|(i, alias)| (at(&format!("trustDomainAliases[{i}]")), alias));
    for (field, domain) in own.into_iter().chain(aliases) {
        if let Err(error) = domain.parse::<TrustDomain>() {
            out.error(field, error.to_string());
        }
    }
    if !mesh.root_namespace.is_empty() && !dns_label(&mesh.root_namespace) {
        out.error(at("rootNamespace"), format!("{:?} is not a namespace", mesh.root_namespace));
    }
}

fn visibility(mesh: &MeshConfig, out: &mut Report) {
    let lists = [
        ("defaultServiceExportTo", &mesh.default_service_export_to),
        ("defaultVirtualServiceExportTo", &mesh.default_virtual_service_export_to),
        ("defaultDestinationRuleExportTo", &mesh.default_destination_rule_export_to),
    ];
    for (name, list) in lists {
        out.export_to(&at(name), list);
    }
    for (i, selector) in mesh.discovery_selectors.iter().enumerate() {
        let field = at(&format!("discoverySelectors[{i}]"));
        out.labels(&format!("{field}.matchLabels"), &selector.match_labels);
        for (k, expression) in selector.match_expressions.iter().enumerate() {
            if !matches!(expression.operator.as_str(), "In" | "NotIn" | "Exists" | "DoesNotExist") {
                let message = format!("{:?} is not In, NotIn, Exists or DoesNotExist", expression.operator);
                out.error(format!("{field}.matchExpressions[{k}].operator"), message);
            }
        }
    }
}

fn ports_and_times(mesh: &MeshConfig, out: &mut Report) {
    let ports =
        [("proxyListenPort", mesh.proxy_listen_port), ("proxyInboundListenPort", mesh.proxy_inbound_listen_port)];
    for (name, port) in ports {
        if let Some(port) = port {
            out.port(&at(name), port);
        }
    }
    if mesh.connect_timeout.is_some_and(|d| d.0.as_millis() < 1 || d.0.as_secs() > 3600) {
        out.error(at("connectTimeout"), "must be 1 ms to 1 h");
    }
    if mesh.dns_refresh_rate.is_some_and(|d| d.0.as_millis() < 1) {
        out.error(at("dnsRefreshRate"), "must be 1 ms or more");
    }
    word(
        &mesh.ingress_controller_mode,
        &["UNSPECIFIED", "OFF", "DEFAULT", "STRICT"],
        &at("ingressControllerMode"),
        out,
    );
}

fn traffic(mesh: &MeshConfig, out: &mut Report) {
    let retries = [
        ("defaultHttpRetryPolicy", &mesh.default_http_retry_policy),
        ("defaultInboundHttpRetryPolicy", &mesh.default_inbound_http_retry_policy),
    ];
    for (name, policy) in retries {
        if let Some(policy) = policy {
            networking::http_retry(policy, &at(name), out);
        }
    }
    if let Some(locality) = &mesh.locality_lb_setting {
        traffic_policy::locality_lb(locality, &at("localityLbSetting"), out);
    }
    let Some(policy) = &mesh.default_traffic_policy else { return };
    if let Some(pool) = &policy.connection_pool {
        traffic_policy::connection_pool(pool, &at("defaultTrafficPolicy.connectionPool"), out);
    }
    if let Some(outlier) = &policy.outlier_detection {
        traffic_policy::outlier_detection(outlier, &at("defaultTrafficPolicy.outlierDetection"), out);
    }
}

fn protocol_version(tls: &MeshTls, field: &str, out: &mut Report) {
    let field = format!("{field}.minProtocolVersion");
    word(&tls.min_protocol_version, &["TLS_AUTO", "TLSV1_2", "TLSV1_3"], &field, out);
}

/// A word of an enumeration, empty when it is left out.
fn word(given: &str, known: &[&str], field: &str, out: &mut Report) {
    if !given.is_empty() && !known.contains(&given) {
        out.error(field, format!("{given:?} is not one of {}", known.join(", ")));
    }
}

fn providers(mesh: &MeshConfig, out: &mut Report) {
    let mut seen = BTreeSet::new();
    for (i, provider) in mesh.extension_providers.iter().enumerate() {
        let field = at(&format!("extensionProviders[{i}]"));
        if provider.name.is_empty() {
            out.error(format!("{field}.name"), "is required");
        } else if !seen.insert(&provider.name) {
            out.error(format!("{field}.name"), format!("provider {} is declared twice", provider.name));
        }
        let kinds = serde_json::to_value(provider).ok().and_then(|v| v.as_object().map(|m| m.len())).unwrap_or(0);
        if kinds.saturating_sub(usize::from(!provider.name.is_empty())) != 1 {
            out.error(field.clone(), "exactly one kind of provider is required");
        }
        authorizers(provider, &field, out);
        for (kind, service, port) in addresses(provider) {
            if service.is_empty() {
                out.error(format!("{field}.{kind}.service"), "is required");
            }
            out.port(&format!("{field}.{kind}.port"), port);
        }
    }
}

/// What external authorizers are asked with.
fn authorizers(p: &ExtensionProvider, field: &str, out: &mut Report) {
    let mut common = |field: &str, status: &str, body: Option<&ExtAuthzRequestBody>| {
        if !status.is_empty() && !status.parse::<u16>().is_ok_and(|s| (200..=599).contains(&s)) {
            out.error(format!("{field}.statusOnError"), format!("{status:?} is not the status of an answer"));
        }
        if body.is_some_and(|b| b.max_request_bytes == 0) {
            out.error(format!("{field}.includeRequestBodyInCheck.maxRequestBytes"), "must be 1 or more");
        }
    };
    if let Some(grpc) = &p.envoy_ext_authz_grpc {
        let field = format!("{field}.envoyExtAuthzGrpc");
        common(&field, &grpc.status_on_error, grpc.include_request_body_in_check.as_ref());
    }
    let Some(http) = &p.envoy_ext_authz_http else { return };
    let field = format!("{field}.envoyExtAuthzHttp");
    common(&field, &http.status_on_error, http.include_request_body_in_check.as_ref());
    if !http.path_prefix.is_empty() && !http.path_prefix.starts_with('/') {
        out.error(format!("{field}.pathPrefix"), "must begin with /");
    }
    for name in http.include_additional_headers_in_check.keys() {
        out.header_name(&format!("{field}.includeAdditionalHeadersInCheck"), name);
    }
    let lists = [
        ("includeHeadersInCheck", &http.include_headers_in_check),
        ("includeRequestHeadersInCheck", &http.include_request_headers_in_check),
        ("headersToUpstreamOnAllow", &http.headers_to_upstream_on_allow),
        ("headersToDownstreamOnDeny", &http.headers_to_downstream_on_deny),
        ("headersToDownstreamOnAllow", &http.headers_to_downstream_on_allow),
    ];
    for (name, list) in lists {
        for (i, value) in list.iter().enumerate().filter(|(_, v)| v.is_empty() || *v == "*") {
            out.error(
                format!("{field}.{name}[{i}]"),
                format!("{value:?} names no header: write NAME, PREFIX* or *SUFFIX"),
            );
        }
    }
}

/// Where a provider is to be reached.
fn addresses(p: &ExtensionProvider) -> impl Iterator<Item = (&'static str, &str, u16)> {
    let zipkin = p.zipkin.as_ref().map(|z| ("zipkin", z.service.as_str(), z.port));
    let otel = p.opentelemetry.as_ref().map(|o| ("opentelemetry", o.service.as_str(), o.port));
    let http_als = p.envoy_http_als.as_ref().map(|a| ("envoyHttpAls", a.service.as_str(), a.port));
    let tcp_als = p.envoy_tcp_als.as_ref().map(|a| ("envoyTcpAls", a.service.as_str(), a.port));
    let otel_als = p.envoy_otel_als.as_ref().map(|a| ("envoyOtelAls", a.service.as_str(), a.port));
    let authz_http = p.envoy_ext_authz_http.as_ref().map(|a| ("envoyExtAuthzHttp", a.service.as_str(), a.port));
    let authz_grpc = p.envoy_ext_authz_grpc.as_ref().map(|a| ("envoyExtAuthzGrpc", a.service.as_str(), a.port));
    [zipkin, otel, http_als, tcp_als, otel_als, authz_http, authz_grpc].into_iter().flatten()
}

fn proxy_settings(settings: &ProxySettings, field: &str, out: &mut Report) {
    const CLIENT_CERT: [&str; 6] =
        ["UNDEFINED", "SANITIZE", "FORWARD_ONLY", "APPEND_FORWARD", "SANITIZE_SET", "ALWAYS_FORWARD_ONLY"];
    if settings.concurrency.is_some_and(|n| n < 0) {
        out.error(format!("{field}.concurrency"), "must not be negative");
    }
    word(&settings.interception_mode, &["REDIRECT", "TPROXY", "NONE"], &format!("{field}.interceptionMode"), out);
    if let Some(sampling) = settings.tracing.as_ref().and_then(|t| t.sampling) {
        out.percent(&format!("{field}.tracing.sampling"), sampling);
    }
    if let Some(topology) = &settings.gateway_topology {
        let field = format!("{field}.gatewayTopology.forwardClientCertDetails");
        word(&topology.forward_client_cert_details, &CLIENT_CERT, &field, out);
    }
    if let Some(headers) = &settings.proxy_headers {
        word(&headers.forwarded_client_cert, &CLIENT_CERT, &format!("{field}.proxyHeaders.forwardedClientCert"), out);
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{source::manifest, validate::Level};

    fn read(mesh: &str) -> manifest::Reading {
        let head =
            "# settings\n---\napiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: istio\n  namespace: istio-system\n";
        let mut all = manifest::read(Path::new("mesh.yaml"), &format!("{head}data:\n{mesh}"));
        assert_eq!(all.len(), 1, "{all:?}");
        all.remove(0)
    }

    /// Field, line and column of the errors.
    fn errors(mesh: &str) -> Vec<(String, u32, u32)> {
        let reading = read(mesh);
        let errors: Vec<_> = reading.findings.iter().filter(|f| f.level == Level::Error).collect();
        assert_eq!(reading.object.is_none(), !errors.is_empty());
        errors.iter().map(|f| (f.field.clone(), f.line.unwrap(), f.column.unwrap())).collect()
    }

    fn block(mesh: &str) -> String {
        let lines = mesh.lines().map(|l| if l.is_empty() { "\n".to_owned() } else { format!("    {l}\n") });
        format!("  mesh: |\n{}", lines.collect::<String>())
    }

    #[test]
    fn what_is_not_known_is_refused_with_its_place_in_the_block() {
        let typo = block("accessLogFile: /dev/stdout\n\n# closed\noutboundTraficPolicy: {mode: REGISTRY_ONLY}\n");
        assert_eq!(errors(&typo), [("data.mesh.outboundTraficPolicy".to_owned(), 13, 5)]);
        let inner = block("defaultConfig:\n  proxyMetadata: {A: b}\n  concurency: 2\n");
        assert_eq!(errors(&inner), [("data.mesh.defaultConfig.concurency".to_owned(), 12, 7)]);
        let wrong_type = block("trustDomain: a\nenableAutoMtls: 5\n");
        assert_eq!(errors(&wrong_type), [("data.mesh.enableAutoMtls".to_owned(), 11, 5)]);
        // Not in a block: the place of the key.
        assert_eq!(errors("  mesh: '{a: 1}'\n"), [("data.mesh.a".to_owned(), 9, 3)]);
        assert_eq!(errors("  mesh: '['\n"), [("data.mesh".to_owned(), 9, 3)]);
    }

    #[test]
    fn what_would_break_the_mesh_is_refused() {
        let cases = [
            ("trustDomain: Foo", "trustDomain"),
            ("trustDomainAliases: [a, 'b/c']", "trustDomainAliases[1]"),
            ("rootNamespace: A_B", "rootNamespace"),
            ("connectTimeout: 0s", "connectTimeout"),
            ("proxyListenPort: 0", "proxyListenPort"),
            ("defaultHttpRetryPolicy: {attempts: -1}", "defaultHttpRetryPolicy.attempts"),
            ("defaultHttpRetryPolicy: {attempts: 2, retryOn: 5xxx}", "defaultHttpRetryPolicy.retryOn"),
            ("defaultServiceExportTo: ['*', a]", "defaultServiceExportTo"),
            (
                "defaultTrafficPolicy: {outlierDetection: {maxEjectionPercent: 101}}",
                "defaultTrafficPolicy.outlierDetection.maxEjectionPercent",
            ),
            ("meshMTLS: {minProtocolVersion: TLSV1_4}", "meshMTLS.minProtocolVersion"),
            (
                "extensionProviders: [{name: a, zipkin: {service: z, port: 1}}, {name: a, zipkin: {service: z, port: 1}}]",
                "extensionProviders[1].name",
            ),
            ("extensionProviders: [{name: a}]", "extensionProviders[0]"),
            (
                "extensionProviders: [{name: a, envoyExtAuthzGrpc: {service: z, port: 1, statusOnError: '99'}}]",
                "extensionProviders[0].envoyExtAuthzGrpc.statusOnError",
            ),
            (
                "extensionProviders: [{name: a, envoyExtAuthzHttp: {service: z, port: 1, pathPrefix: a}}]",
                "extensionProviders[0].envoyExtAuthzHttp.pathPrefix",
            ),
            (
                "extensionProviders: [{name: a, envoyExtAuthzHttp: {service: z, port: 1, headersToUpstreamOnAllow: ['*']}}]",
                "extensionProviders[0].envoyExtAuthzHttp.headersToUpstreamOnAllow[0]",
            ),
            ("extensionProviders: [{name: a, zipkin: {service: z}}]", "extensionProviders[0].zipkin.port"),
            ("defaultConfig: {tracing: {sampling: 101}}", "defaultConfig.tracing.sampling"),
            (
                "defaultConfig: {gatewayTopology: {forwardClientCertDetails: SANITISE}}",
                "defaultConfig.gatewayTopology.forwardClientCertDetails",
            ),
            (
                "discoverySelectors: [{matchExpressions: [{key: a, operator: Is}]}]",
                "discoverySelectors[0].matchExpressions[0].operator",
            ),
            ("outboundTrafficPolicy: {mode: REGISTRY}", "outboundTrafficPolicy.mode"),
        ];
        for (mesh, field) in cases {
            let found: Vec<String> = errors(&block(mesh)).into_iter().map(|(f, ..)| f).collect();
            assert_eq!(found, [format!("data.mesh.{field}")], "{mesh}");
        }
    }

    #[test]
    fn what_istio_installs_is_accepted() {
        let usual = block(
            "defaultConfig:\n  discoveryAddress: istiod.istio-system.svc:15012\ndefaultProviders:\n  metrics:\n  - prometheus\nenablePrometheusMerge: true\noutboundTrafficPolicy:\n  mode: REGISTRY_ONLY\nrootNamespace: istio-system\ntrustDomain: cluster.local\naccessLogFile: null\n",
        );
        let reading = read(&format!("{usual}  meshNetworks: 'networks: {{}}'\n"));
        assert!(reading.object.is_some(), "{:?}", reading.findings);
        let mut fields: Vec<&str> = reading.findings.iter().map(|f| f.field.as_str()).collect();
        fields.sort_unstable();
        assert_eq!(fields, ["data.meshNetworks"]);
        for nothing in ["  mesh: ''\n", "  mesh: '# nothing'\n", "  other: x\n"] {
            assert!(read(nothing).object.is_some(), "{nothing}");
        }
    }

    #[test]
    fn text_that_does_not_parse_is_known_by_its_words() {
        let broken = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata: [\n";
        assert!(resembles_mesh_config(broken));
        assert!(!resembles_mesh_config(&broken.replace("istio-system", "shop")));
        let json = r#"{"kind":"ConfigMap","metadata":{"name":"istio","namespace":"istio-system"},"data":{"#;
        assert!(resembles_mesh_config(json) && !resembles_mesh_config(&json.replace("ConfigMap", "Secret")));
        let all = manifest::read(Path::new("mesh.yaml"), broken);
        assert!(all[0].refused() && is_mesh_config(all[0].key.as_ref().unwrap()), "{all:?}");
    }
}
