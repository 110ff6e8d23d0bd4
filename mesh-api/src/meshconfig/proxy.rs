//! Settings of one proxy (`defaultConfig`, annotation `proxy.istio.io/config`).
use crate::crd::Duration;
use crate::labels::Labels;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// `ProxyConfig`: settings of one proxy, `defaultConfig` or annotation.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ProxySettings {
    /// `configPath`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub config_path: String,
    /// `binaryPath`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub binary_path: String,
    /// `customConfigFile`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub custom_config_file: String,
    /// `serviceCluster`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub service_cluster: String,
    /// `drainDuration`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drain_duration: Option<Duration>,
    /// `parentShutdownDuration`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent_shutdown_duration: Option<Duration>,
    /// `terminationDrainDuration`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub termination_drain_duration: Option<Duration>,
    /// `discoveryAddress`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub discovery_address: String,
    /// `discoveryRefreshDelay`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub discovery_refresh_delay: Option<Duration>,
    /// `zipkinAddress`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub zipkin_address: String,
    /// `statsdUdpAddress`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub statsd_udp_address: String,
    /// `proxyAdminPort`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy_admin_port: Option<u16>,
    /// `availabilityZone`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub availability_zone: String,
    /// `controlPlaneAuthPolicy`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub control_plane_auth_policy: String,
    /// `concurrency`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<i32>,
    /// `proxyBootstrapTemplatePath`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub proxy_bootstrap_template_path: String,
    /// `interceptionMode`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub interception_mode: String,
    /// `tracing`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tracing: Option<ProxyTracing>,
    /// `envoyAccessLogService`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub envoy_access_log_service: Option<serde_json::Value>,
    /// `envoyMetricsService`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub envoy_metrics_service: Option<serde_json::Value>,
    /// `proxyMetadata`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub proxy_metadata: Labels,
    /// `runtimeValues`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub runtime_values: Labels,
    /// `statusPort`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status_port: Option<u16>,
    /// `extraStatTags`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub extra_stat_tags: Vec<String>,
    /// `gatewayTopology`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateway_topology: Option<GatewayTopology>,
    /// `proxyStatsMatcher`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy_stats_matcher: Option<serde_json::Value>,
    /// `readinessProbe`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub readiness_probe: Option<crate::crd::networking::ReadinessProbe>,
    /// `holdApplicationUntilProxyStarts`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hold_application_until_proxy_starts: Option<bool>,
    /// `caCertificatesPem`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ca_certificates_pem: Vec<String>,
    /// `image`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<crate::crd::networking::ProxyImage>,
    /// `privateKeyProvider`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub private_key_provider: Option<serde_json::Value>,
    /// `proxyHeaders`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy_headers: Option<ProxyHeaders>,
    /// `meshId`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mesh_id: String,
    /// `tracingServiceName`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub tracing_service_name: String,
    /// `sds`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sds: Option<serde_json::Value>,
    /// `statNameLength`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stat_name_length: Option<i32>,
    /// `connectionSettings`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connection_settings: Option<serde_json::Value>,
    /// `statsCompression`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stats_compression: Option<bool>,
    /// `fileFlushInterval`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file_flush_interval: Option<Duration>,
    /// `fileFlushMinSizeKb`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file_flush_min_size_kb: Option<u32>,
    /// `zipkin`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zipkin: Option<serde_json::Value>,
}

/// Tracing of a proxy.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ProxyTracing {
    /// Percent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sampling: Option<f64>,
    /// `zipkin`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zipkin: Option<AddressOnly>,
    /// `customTags`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub custom_tags: BTreeMap<String, crate::crd::telemetry::CustomTag>,
    /// `maxPathTagLength`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_path_tag_length: Option<u32>,
    /// `tlsSettings`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_settings: Option<crate::crd::networking::ClientTls>,
    /// `lightstep`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lightstep: Option<serde_json::Value>,
    /// `datadog`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub datadog: Option<AddressOnly>,
    /// `stackdriver`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stackdriver: Option<serde_json::Value>,
    /// `openCensusAgent`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub open_census_agent: Option<serde_json::Value>,
    /// `enableIstioTags`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enable_istio_tags: Option<bool>,
}

/// An address.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct AddressOnly {
    /// `address`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub address: String,
}

/// What stands in front of a gateway.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct GatewayTopology {
    /// `numTrustedProxies`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_trusted_proxies: Option<u32>,
    /// `forwardClientCertDetails`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub forward_client_cert_details: String,
    /// `proxyProtocol`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy_protocol: Option<serde_json::Value>,
}

/// Headers a proxy adds.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ProxyHeaders {
    /// `forwardedClientCert`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub forwarded_client_cert: String,
    /// `setCurrentClientCertDetails`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub set_current_client_cert_details: Option<serde_json::Value>,
    /// `requestId`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<DisabledFlag>,
    /// `generateRequestId`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generate_request_id: Option<DisabledFlag>,
    /// `server`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server: Option<ServerHeader>,
    /// `attemptCount`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempt_count: Option<DisabledFlag>,
    /// `envoyDebugHeaders`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub envoy_debug_headers: Option<DisabledFlag>,
    /// `metadataExchangeHeaders`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata_exchange_headers: Option<serde_json::Value>,
    /// `preserveHttp1HeaderCase`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preserve_http1_header_case: Option<bool>,
    /// `xForwardedHost`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub x_forwarded_host: Option<DisabledFlag>,
    /// `xForwardedPort`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub x_forwarded_port: Option<DisabledFlag>,
}

/// Off when `disabled`; some are on with `enabled`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct DisabledFlag {
    /// `disabled`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disabled: Option<bool>,
    /// `enabled`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
}

/// The `server` header.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ServerHeader {
    /// `disabled`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disabled: Option<bool>,
    /// `value`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub value: String,
}
