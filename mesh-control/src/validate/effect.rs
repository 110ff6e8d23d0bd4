//! The one table of fields that are known, and read, but have no effect yet. A field leaves the table with the change
//! that gives it its effect.

use mesh_api::crd::gateway_api;
use serde_json::Value;

use super::Finding;
use crate::source::object::Kind;

/// Kind, path of the field (`[]`: every item), and what is to be said.
type Row = (Kind, &'static str, &'static str);

/// What a proxy has from the one who starts it.
const AT_START: &str = "proxies have it from their flags and environment only";

/// Of names that nothing but people read.
const FOR_PEOPLE: &str = "this name is for people";

/// Of the older ways to name a tracer.
const NO_PROVIDER: &str = "name an extension provider in defaultProviders.tracing or in a Telemetry";

/// Of options that implementations may define.
const NO_OPTIONS: &str = "there are none";

/// Of what spans tell beside their own.
const SERVICE_NAME: &str = "spans tell their sender by service.name and Istio's tags only";

/// Of extensions.
const NOT_RUN: &str = "no proxy of this mesh runs extensions";

/// Of ports' older field.
const TARGET_PORT: &str = "Istio deprecates this field and does not read it";

/// Of a balancer.
const NO_LOAD_REPORTS: &str = "the load that endpoints report is not read yet";

/// Of retry budgets.
const NO_INTERVAL: &str = "only requests that are in flight count into the budget";

/// Of sessions.
const NO_IDLE_SESSIONS: &str = "proxies do not remember when a session was last used";

/// Of ambient meshes.
const NO_WAYPOINTS: &str = "this mesh has no waypoints";

/// Fields without effect.
const TABLE: &[Row] = &[
    (Kind::ConfigMap, "data.mesh.ca", "certificates come from this control plane"),
    (Kind::ConfigMap, "data.mesh.caCertificates", "further trust anchors are not handed to proxies yet"),
    (Kind::ConfigMap, "data.mesh.certificates", "was removed from Istio"),
    (Kind::ConfigMap, "data.mesh.configSources", "configuration comes from where the flags say"),
    (Kind::ConfigMap, "data.mesh.enableEnvoyAccessLogService", "name an access log service in extensionProviders"),
    (Kind::ConfigMap, "data.mesh.hboneIdleTimeout", "HBONE is not spoken yet"),
    (Kind::ConfigMap, "data.mesh.meshMTLS.cipherSuites", "TLS between workloads is 1.3 with its own suites"),
    (Kind::ConfigMap, "data.mesh.meshMTLS.minProtocolVersion", "TLS between workloads is 1.3 always"),
    (Kind::ConfigMap, "data.mesh.ingressService", "the status of Ingresses is not written yet"),
    (Kind::ConfigMap, "data.mesh.serviceEntryVisibility", "ServiceEntries are visible by their exportTo"),
    (Kind::ConfigMap, "data.mesh.serviceScopeConfigs", "is for ambient meshes"),
    (Kind::ConfigMap, "data.mesh.serviceSettings", "there is one cluster"),
    (Kind::ConfigMap, "data.mesh.thriftConfig", "was removed from Istio"),
    (Kind::ConfigMap, "data.mesh.verifyCertificateAtClient", "clients verify certificates always"),
    (Kind::ConfigMap, "data.mesh.extensionProviders[].datadog", "this provider is not used yet"),
    (
        Kind::ConfigMap,
        "data.mesh.extensionProviders[].opentelemetry.dynatraceSampler",
        "sampling follows randomSamplingPercentage",
    ),
    (Kind::ConfigMap, "data.mesh.extensionProviders[].opentelemetry.resourceDetectors", SERVICE_NAME),
    (Kind::ConfigMap, "data.mesh.extensionProviders[].opentelemetry.serviceAttributeEnrichment", SERVICE_NAME),
    (Kind::ConfigMap, "data.mesh.extensionProviders[].lightstep", "was removed from Istio"),
    (Kind::ConfigMap, "data.mesh.extensionProviders[].opencensus", "was removed from Istio"),
    (Kind::ConfigMap, "data.mesh.extensionProviders[].sds", "this provider is not used yet"),
    (Kind::ConfigMap, "data.mesh.extensionProviders[].skywalking", "this provider is not used yet"),
    (Kind::ConfigMap, "data.mesh.extensionProviders[].stackdriver", "this provider is not used yet"),
    (Kind::ConfigMap, "data.mesh.defaultConfig.availabilityZone", AT_START),
    (Kind::ConfigMap, "data.mesh.defaultConfig.binaryPath", AT_START),
    (Kind::ConfigMap, "data.mesh.defaultConfig.caCertificatesPem", AT_START),
    (Kind::ConfigMap, "data.mesh.defaultConfig.configPath", AT_START),
    (Kind::ConfigMap, "data.mesh.defaultConfig.connectionSettings", AT_START),
    (Kind::ConfigMap, "data.mesh.defaultConfig.controlPlaneAuthPolicy", AT_START),
    (Kind::ConfigMap, "data.mesh.defaultConfig.customConfigFile", AT_START),
    (Kind::ConfigMap, "data.mesh.defaultConfig.discoveryRefreshDelay", AT_START),
    (Kind::ConfigMap, "data.mesh.defaultConfig.drainDuration", AT_START),
    (Kind::ConfigMap, "data.mesh.defaultConfig.envoyAccessLogService", AT_START),
    (Kind::ConfigMap, "data.mesh.defaultConfig.envoyMetricsService", AT_START),
    (Kind::ConfigMap, "data.mesh.defaultConfig.extraStatTags", AT_START),
    (Kind::ConfigMap, "data.mesh.defaultConfig.fileFlushInterval", AT_START),
    (Kind::ConfigMap, "data.mesh.defaultConfig.fileFlushMinSizeKb", AT_START),
    (Kind::ConfigMap, "data.mesh.defaultConfig.meshId", AT_START),
    (Kind::ConfigMap, "data.mesh.defaultConfig.parentShutdownDuration", AT_START),
    (Kind::ConfigMap, "data.mesh.defaultConfig.privateKeyProvider", AT_START),
    (Kind::ConfigMap, "data.mesh.defaultConfig.proxyAdminPort", AT_START),
    (Kind::ConfigMap, "data.mesh.defaultConfig.proxyBootstrapTemplatePath", AT_START),
    (
        Kind::ConfigMap,
        "data.mesh.defaultConfig.proxyHeaders.metadataExchangeHeaders",
        "as with IN_MESH, metadata of peers never goes to hosts outside the mesh",
    ),
    (
        Kind::ConfigMap,
        "data.mesh.defaultConfig.proxyHeaders.preserveHttp1HeaderCase",
        "proxies write the names of headers in lower case",
    ),
    (Kind::ConfigMap, "data.mesh.defaultConfig.proxyStatsMatcher", AT_START),
    (Kind::ConfigMap, "data.mesh.defaultConfig.readinessProbe", AT_START),
    (Kind::ConfigMap, "data.mesh.defaultConfig.runtimeValues", AT_START),
    (Kind::ConfigMap, "data.mesh.defaultConfig.sds", AT_START),
    (Kind::ConfigMap, "data.mesh.defaultConfig.serviceCluster", AT_START),
    (Kind::ConfigMap, "data.mesh.defaultConfig.statNameLength", AT_START),
    (Kind::ConfigMap, "data.mesh.defaultConfig.statsCompression", AT_START),
    (Kind::ConfigMap, "data.mesh.defaultConfig.statsdUdpAddress", AT_START),
    (Kind::ConfigMap, "data.mesh.defaultConfig.tracing.datadog", NO_PROVIDER),
    (Kind::ConfigMap, "data.mesh.defaultConfig.tracing.lightstep", NO_PROVIDER),
    (Kind::ConfigMap, "data.mesh.defaultConfig.tracing.openCensusAgent", NO_PROVIDER),
    (Kind::ConfigMap, "data.mesh.defaultConfig.tracing.stackdriver", NO_PROVIDER),
    (Kind::ConfigMap, "data.mesh.defaultConfig.tracing.tlsSettings", NO_PROVIDER),
    (Kind::ConfigMap, "data.mesh.defaultConfig.tracing.zipkin", NO_PROVIDER),
    (Kind::ConfigMap, "data.mesh.defaultConfig.tracingServiceName", AT_START),
    (Kind::ConfigMap, "data.mesh.defaultConfig.zipkin", AT_START),
    (Kind::ConfigMap, "data.mesh.defaultConfig.zipkinAddress", AT_START),
    (Kind::ConfigMap, "data.meshNetworks", "there is one network"),
    (Kind::DestinationRule, "spec.trafficPolicy.loadBalancer.backendUtilization", NO_LOAD_REPORTS),
    (Kind::DestinationRule, "spec.trafficPolicy.retryBudget.budgetInterval", NO_INTERVAL),
    (Kind::DestinationRule, "spec.subsets[].trafficPolicy.retryBudget.budgetInterval", NO_INTERVAL),
    (Kind::DestinationRule, "spec.trafficPolicy.portLevelSettings[].loadBalancer.backendUtilization", NO_LOAD_REPORTS),
    (Kind::DestinationRule, "spec.subsets[].trafficPolicy.loadBalancer.backendUtilization", NO_LOAD_REPORTS),
    (
        Kind::DestinationRule,
        "spec.subsets[].trafficPolicy.portLevelSettings[].loadBalancer.backendUtilization",
        NO_LOAD_REPORTS,
    ),
    (Kind::Gateway, "spec.defaultScope", "routes attach by parentRefs only"),
    (Kind::Gateway, "spec.addresses[].routability", "addresses are what the gateway's process listens on"),
    (Kind::Gateway, "spec.listeners[].tls.options", NO_OPTIONS),
    (Kind::ListenerSet, "spec.listeners[].tls.options", NO_OPTIONS),
    (Kind::GatewayClass, "spec.description", FOR_PEOPLE),
    (Kind::GatewayClass, "spec.parametersRef", "parameters are those of a Gateway: infrastructure.parametersRef"),
    (Kind::TlsRoute, "spec.rules[].name", FOR_PEOPLE),
    (Kind::TcpRoute, "spec.rules[].name", FOR_PEOPLE),
    (Kind::HttpRoute, "spec.rules[].sessionPersistence.idleTimeout", NO_IDLE_SESSIONS),
    (Kind::GrpcRoute, "spec.rules[].sessionPersistence.idleTimeout", NO_IDLE_SESSIONS),
    (Kind::HttpRoute, "spec.useDefaultGateways", "routes attach by parentRefs only"),
    (Kind::GrpcRoute, "spec.useDefaultGateways", "routes attach by parentRefs only"),
    (Kind::TlsRoute, "spec.useDefaultGateways", "routes attach by parentRefs only"),
    (Kind::TcpRoute, "spec.useDefaultGateways", "routes attach by parentRefs only"),
    (Kind::BackendTlsPolicy, "spec.options", NO_OPTIONS),
    (Kind::Ingress, "spec.defaultBackend", "as under Istio, requests that no rule takes are answered 404"),
    (Kind::Ingress, "spec.rules[].http.paths[].backend.resource", "only services are backends"),
    (Kind::IstioGateway, "spec.servers[].name", FOR_PEOPLE),
    (
        Kind::IstioGateway,
        "spec.servers[].tls.tlsCertificates[].caCertificates",
        "clients are checked by the server's own caCertificates",
    ),
    (
        Kind::Sidecar,
        "spec.inboundConnectionPool.http.h2UpgradePolicy",
        "requests reach the application in the protocol of its port",
    ),
    (Kind::IstioGateway, "spec.servers[].port.targetPort", TARGET_PORT),
    (Kind::Sidecar, "spec.egress[].port.name", FOR_PEOPLE),
    (Kind::Sidecar, "spec.egress[].port.targetPort", TARGET_PORT),
    (Kind::ServiceEntry, "spec.endpoints[].network", "there is one network"),
    (Kind::WorkloadEntry, "spec.network", "there is one network"),
    (Kind::IstioGateway, "spec.servers[].defaultEndpoint", "Istio declares this field and does not implement it"),
    (Kind::EnvoyFilter, "spec.configPatches[].match.listener.portName", "as under Istio, ports are matched by number"),
    (Kind::EnvoyFilter, "spec.configPatches[].match.waypoint", NO_WAYPOINTS),
    (
        Kind::EnvoyFilter,
        "spec.configPatches[].patch.filterClass",
        "as under Istio, filters stand where the operation puts them",
    ),
    (Kind::VirtualService, "spec.http[].fault.delay.exponentialDelay", "only fixedDelay delays requests"),
    (Kind::WasmPlugin, "spec.url", NOT_RUN),
    (Kind::WasmPlugin, "spec.sha256", NOT_RUN),
    (Kind::WasmPlugin, "spec.imagePullPolicy", NOT_RUN),
    (Kind::WasmPlugin, "spec.imagePullSecret", NOT_RUN),
    (Kind::WasmPlugin, "spec.verificationKey", NOT_RUN),
    (Kind::WasmPlugin, "spec.pluginConfig", NOT_RUN),
    (Kind::WasmPlugin, "spec.pluginName", NOT_RUN),
    (Kind::WasmPlugin, "spec.phase", NOT_RUN),
    (Kind::WasmPlugin, "spec.priority", NOT_RUN),
    (Kind::WasmPlugin, "spec.vmConfig", NOT_RUN),
    (Kind::WasmPlugin, "spec.type", NOT_RUN),
    (Kind::TrafficExtension, "spec.wasm.url", NOT_RUN),
    (Kind::TrafficExtension, "spec.wasm.sha256", NOT_RUN),
    (Kind::TrafficExtension, "spec.wasm.imagePullPolicy", NOT_RUN),
    (Kind::TrafficExtension, "spec.wasm.imagePullSecret", NOT_RUN),
    (Kind::TrafficExtension, "spec.wasm.verificationKey", NOT_RUN),
    (Kind::TrafficExtension, "spec.wasm.pluginConfig", NOT_RUN),
    (Kind::TrafficExtension, "spec.wasm.pluginName", NOT_RUN),
    (Kind::TrafficExtension, "spec.wasm.vmConfig", NOT_RUN),
    (Kind::TrafficExtension, "spec.wasm.type", NOT_RUN),
    (Kind::TrafficExtension, "spec.lua.inlineCode", NOT_RUN),
    (Kind::TrafficExtension, "spec.priority", NOT_RUN),
    (Kind::WorkloadGroup, "spec", "workloads do not register by group yet: write a WorkloadEntry for each"),
];

/// As [`Row`], for fields of which only some values have none.
type ValueRow = (Kind, &'static str, fn(&Value) -> bool, &'static str);

const NO_UDP: &str = "UDPRoutes are not read yet: nothing listens there";

/// Values without effect.
const VALUES: &[ValueRow] = &[
    (
        Kind::EnvoyFilter,
        "spec.configPatches[].applyTo",
        |v| v == "BOOTSTRAP",
        "a proxy has its bootstrap file from the one who starts it",
    ),
    (Kind::EnvoyFilter, "spec.configPatches[].match.context", |v| v == "WAYPOINT", NO_WAYPOINTS),
    (
        Kind::EnvoyFilter,
        "spec.targetRefs[]",
        is_no_gateway,
        "EnvoyFilters are attached to Gateways of gateway.networking.k8s.io and to workloads that a selector names",
    ),
    (Kind::Gateway, "spec.listeners[].protocol", |v| v == "UDP", NO_UDP),
    (Kind::ListenerSet, "spec.listeners[].protocol", |v| v == "UDP", NO_UDP),
    (Kind::HttpRoute, "spec.rules[].sessionPersistence", ends_at_no_time, NO_SESSION_END),
    (Kind::GrpcRoute, "spec.rules[].sessionPersistence", ends_at_no_time, NO_SESSION_END),
    (Kind::Telemetry, "spec.targetRef", is_no_gateway, ONLY_GATEWAYS),
    (Kind::Telemetry, "spec.targetRefs[]", is_no_gateway, ONLY_GATEWAYS),
];

const NO_SESSION_END: &str = "absoluteTimeout is the life of a cookie of lifetimeType Permanent; other sessions end with \
    the client";

/// A session with a time that nobody keeps.
fn ends_at_no_time(session: &Value) -> bool {
    let permanent =
        |cookie: &str| session.pointer(&format!("/{cookie}/lifetimeType")).is_some_and(|l| l == "Permanent");
    let by_header = session.get("type").is_some_and(|t| t == "Header");
    session.get("absoluteTimeout").is_some() && (by_header || !permanent("cookie") && !permanent("cookieConfig"))
}

const ONLY_GATEWAYS: &str = "Telemetry is attached to Gateways of gateway.networking.k8s.io and to workloads that a \
    selector names; other targets are for waypoints, which this mesh does not have";

/// Values without effect where somebody counts on being protected.
const UNPROTECTED: &[ValueRow] = &[
    (Kind::AuthorizationPolicy, "spec.targetRef", is_no_gateway, WAYPOINTS),
    (Kind::AuthorizationPolicy, "spec.targetRefs[]", is_no_gateway, WAYPOINTS),
    (Kind::RequestAuthentication, "spec.targetRef", is_no_gateway, NO_TOKENS),
    (Kind::RequestAuthentication, "spec.targetRefs[]", is_no_gateway, NO_TOKENS),
];

const NO_TOKENS: &str = "no token is checked by this object here: tokens are checked at Gateways of \
    gateway.networking.k8s.io and at workloads that a selector names; other targets are for waypoints, which this mesh \
    does not have";

const WAYPOINTS: &str = "nothing is allowed or denied by this policy here: policies are enforced at Gateways of \
    gateway.networking.k8s.io and at workloads that a selector names; other targets are for waypoints, which this mesh \
    does not have";

fn is_no_gateway(target: &Value) -> bool {
    target.get("kind").is_none_or(|k| k != "Gateway") || target.get("group").is_none_or(|g| g != gateway_api::GROUP)
}

/// Why a field has no effect; `path` begins with `spec` or `data`, `[]` are every item. `None`: it has one.
#[cfg(test)]
pub fn why_without(kind: Kind, path: &str) -> Option<&'static str> {
    let within =
        |row: &str| path.strip_prefix(row).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[', '{']));
    TABLE.iter().find(|(k, row, _)| *k == kind && within(row)).map(|(_, _, why)| *why)
}

/// What of a manifest has no effect.
pub fn without_effect(kind: Kind, manifest: &Value) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (_, path, why) in TABLE.iter().filter(|(k, ..)| *k == kind) {
        find(manifest, path, String::new(), &mut |field, _| {
            findings.push(Finding::info(field, format!("has no effect: {why}")));
        });
    }
    let rows = VALUES.iter().map(|row| (row, false)).chain(UNPROTECTED.iter().map(|row| (row, true)));
    for ((_, path, applies, why), loud) in rows.filter(|((k, ..), _)| *k == kind) {
        let level = if loud { Finding::warning } else { Finding::info };
        find(manifest, path, String::new(), &mut |field, value| {
            if applies(value) {
                findings.push(level(field, format!("has no effect: {why}")));
            }
        });
    }
    findings
}

/// Calls back with the concrete path, and what is there, of every place where `path` leads.
fn find(value: &Value, path: &str, so_far: String, found: &mut impl FnMut(String, &Value)) {
    let (step, rest) = path.split_once('.').map_or((path, ""), |(s, r)| (s, r));
    let key = step.trim_end_matches("[]");
    let Some(child) = value.get(key) else { return };
    let here = if so_far.is_empty() { key.to_owned() } else { format!("{so_far}.{key}") };
    let mut next = |child: &Value, here: String| {
        if rest.is_empty() {
            found(here, child);
        } else {
            find(child, rest, here, found);
        }
    };
    if step.ends_with("[]") {
        for (i, item) in child.as_array().into_iter().flatten().enumerate() {
            next(item, format!("{here}[{i}]"));
        }
    } else {
        next(child, here);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_every_place() {
        let rules = serde_json::json!([{}, {"sessionPersistence": {"idleTimeout": "1s"}}]);
        let manifest = serde_json::json!({"spec": {"rules": rules}});
        let fields: Vec<_> = without_effect(Kind::HttpRoute, &manifest).into_iter().map(|f| f.field).collect();
        assert_eq!(fields, ["spec.rules[1].sessionPersistence.idleTimeout"]);
        assert!(without_effect(Kind::VirtualService, &serde_json::json!({"spec": {}})).is_empty());
    }

    fn fields(kind: Kind, spec: &str) -> Vec<String> {
        let manifest: Value = mesh_api::yaml::from_str(&format!("spec: {spec}")).unwrap();
        without_effect(kind, &manifest).into_iter().map(|f| f.field).collect()
    }

    #[test]
    fn names_values() {
        let gateway = "{listeners: [{protocol: HTTP}, {protocol: UDP}, {protocol: TCP}]}";
        assert_eq!(fields(Kind::Gateway, gateway), ["spec.listeners[1].protocol"]);
        assert!(fields(Kind::ServiceEntry, "{resolution: DYNAMIC_DNS, ports: [{protocol: GRPC}]}").is_empty());
        let delay = "{http: [{fault: {delay: {exponentialDelay: 1s}}}]}";
        assert_eq!(fields(Kind::VirtualService, delay), ["spec.http[0].fault.delay.exponentialDelay"]);
        assert_eq!(fields(Kind::WorkloadGroup, "{template: {}}"), ["spec"]);
        let session = |s: &str| fields(Kind::HttpRoute, &format!("{{rules: [{{sessionPersistence: {s}}}]}}"));
        assert_eq!(session("{absoluteTimeout: 1h, cookie: {}}"), ["spec.rules[0].sessionPersistence"]);
        assert_eq!(session("{idleTimeout: 1h}"), ["spec.rules[0].sessionPersistence.idleTimeout"]);
        assert!(session("{absoluteTimeout: 1h, cookie: {lifetimeType: Permanent}}").is_empty());
    }

    #[test]
    fn what_has_an_effect_is_not_named() {
        let policy = "{trafficPolicy: {proxyProtocol: {}, retryBudget: {}}}";
        assert!(fields(Kind::DestinationRule, policy).is_empty());
        assert!(fields(Kind::Sidecar, "{inboundConnectionPool: {}}").is_empty());
        let tracing = "{tracing: [{disableContextPropagation: true, useRequestIdForTraceSampling: false}]}";
        assert!(fields(Kind::Telemetry, tracing).is_empty());
    }

    #[test]
    fn a_policy_that_protects_nothing_is_a_warning() {
        let policy = "{action: DENY, targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: g}, {group: '', kind: Service, name: s}]}";
        let manifest: Value = mesh_api::yaml::from_str(&format!("spec: {policy}")).unwrap();
        let found = without_effect(Kind::AuthorizationPolicy, &manifest);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].level, found[0].field.as_str()), (super::super::Level::Warning, "spec.targetRefs[1]"));
    }
}
