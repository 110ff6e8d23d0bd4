//! MeshConfig: the `mesh` key of ConfigMap `istio`, as YAML. Field for field Istio's; which fields have an effect
//! yet stands in one table of the control plane.

mod provider;
mod proxy;

pub use provider::*;
pub use proxy::*;

use crate::crd::networking::{
    ConnectionPool, H2UpgradePolicy, HttpRetry, LocalityLb, OutlierDetection, TcpKeepalive, ZoneAwareLb,
};
use crate::crd::{Duration, is_false};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Mesh-wide settings.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct MeshConfig {
    /// 15001 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy_listen_port: Option<u16>,
    /// 15006 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy_inbound_listen_port: Option<u16>,
    /// Explicit HTTP proxy; absent or 0: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy_http_port: Option<u16>,
    /// 10 s by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connect_timeout: Option<Duration>,
    /// `tcpKeepalive`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp_keepalive: Option<TcpKeepalive>,
    /// 0: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol_detection_timeout: Option<Duration>,
    /// 60 s by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dns_refresh_rate: Option<Duration>,
    /// `ingressClass`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub ingress_class: String,
    /// `ingressService`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub ingress_service: String,
    /// `ingressSelector`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub ingress_selector: String,
    /// `ingressControllerMode`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub ingress_controller_mode: String,
    /// `enableTracing`.
    #[serde(skip_serializing_if = "is_false")]
    pub enable_tracing: bool,
    /// Empty: no access log.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub access_log_file: String,
    /// Empty: Istio's default.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub access_log_format: String,
    /// `accessLogEncoding`.
    pub access_log_encoding: AccessLogEncoding,
    /// `enableEnvoyAccessLogService`.
    #[serde(skip_serializing_if = "is_false")]
    pub enable_envoy_access_log_service: bool,
    /// `disableEnvoyListenerLog`.
    #[serde(skip_serializing_if = "is_false")]
    pub disable_envoy_listener_log: bool,
    /// `defaultConfig`.
    pub default_config: ProxySettings,
    /// `outboundTrafficPolicy`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outbound_traffic_policy: Option<OutboundPolicy>,
    /// `inboundTrafficPolicy`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inbound_traffic_policy: Option<InboundPolicy>,
    /// true by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enable_auto_mtls: Option<bool>,
    /// `cluster.local` by default.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub trust_domain: String,
    /// `trustDomainAliases`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub trust_domain_aliases: Vec<String>,
    /// `*` by default.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub default_service_export_to: Vec<String>,
    /// `defaultVirtualServiceExportTo`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub default_virtual_service_export_to: Vec<String>,
    /// `defaultDestinationRuleExportTo`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub default_destination_rule_export_to: Vec<String>,
    /// `istio-system` by default.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub root_namespace: String,
    /// `localityLbSetting`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub locality_lb_setting: Option<LocalityLb>,
    /// `zoneAwareLbSetting`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone_aware_lb_setting: Option<ZoneAwareLb>,
    /// `h2UpgradePolicy`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub h2_upgrade_policy: Option<H2UpgradePolicy>,
    /// `inboundClusterStatName`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub inbound_cluster_stat_name: String,
    /// `outboundClusterStatName`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub outbound_cluster_stat_name: String,
    /// true by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enable_prometheus_merge: Option<bool>,
    /// `extensionProviders`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub extension_providers: Vec<ExtensionProvider>,
    /// `defaultProviders`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_providers: Option<DefaultProviders>,
    /// `discoverySelectors`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub discovery_selectors: Vec<crate::crd::gateway_api::LabelSelector>,
    /// `pathNormalization`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path_normalization: Option<PathNormalization>,
    /// `defaultHttpRetryPolicy`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_http_retry_policy: Option<HttpRetry>,
    /// `defaultInboundHttpRetryPolicy`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_inbound_http_retry_policy: Option<HttpRetry>,
    /// `defaultTrafficPolicy`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_traffic_policy: Option<DefaultTrafficPolicy>,
    /// `meshMTLS`.
    #[serde(rename = "meshMTLS", skip_serializing_if = "Option::is_none")]
    pub mesh_mtls: Option<MeshTls>,
    /// `tlsDefaults`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_defaults: Option<MeshTls>,
    /// `caCertificates`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ca_certificates: Vec<CaCertificate>,
    /// `ca`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<ExternalCa>,
    /// Deprecated, without effect.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub certificates: Vec<serde_json::Value>,
    /// `configSources`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub config_sources: Vec<serde_json::Value>,
    /// `serviceSettings`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub service_settings: Vec<ServiceSettings>,
    /// `serviceScopeConfigs`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub service_scope_configs: Vec<serde_json::Value>,
    /// `serviceEntryVisibility`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_entry_visibility: Option<serde_json::Value>,
    /// Removed from Istio, without effect.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub thrift_config: Option<serde_json::Value>,
    /// `verifyCertificateAtClient`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verify_certificate_at_client: Option<bool>,
    /// `hboneIdleTimeout`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hbone_idle_timeout: Option<Duration>,
}

/// Form of access log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum AccessLogEncoding {
    #[default]
    /// `TEXT`.
    Text,
    /// `JSON`.
    Json,
}

/// Unknown destinations.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct OutboundPolicy {
    /// `mode`.
    pub mode: OutboundPolicyMode,
    /// `tls`: how requests for hosts that are looked up are sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<crate::crd::networking::ClientTls>,
}

/// Unknown destinations pass or are refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum OutboundPolicyMode {
    #[default]
    /// `ALLOW_ANY`.
    AllowAny,
    /// `REGISTRY_ONLY`.
    RegistryOnly,
    /// `ALLOW_ANY_DYNAMIC_DNS`.
    AllowAnyDynamicDns,
}

/// Undeclared inbound ports.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct InboundPolicy {
    /// `mode`.
    pub mode: InboundPolicyMode,
}

/// Where undeclared inbound ports lead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum InboundPolicyMode {
    #[default]
    /// `PASSTHROUGH`.
    Passthrough,
    /// `LOCALHOST`.
    Localhost,
}

/// How paths are normalised before policies see them.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PathNormalization {
    /// `normalization`.
    pub normalization: PathNormalizationType,
}

/// Kinds of normalisation; default is BASE.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum PathNormalizationType {
    #[default]
    /// `DEFAULT`.
    Default,
    /// `NONE`.
    None,
    /// `BASE`.
    Base,
    /// `MERGE_SLASHES`.
    MergeSlashes,
    /// `DECODE_AND_MERGE_SLASHES`.
    DecodeAndMergeSlashes,
}

/// Pools and outlier detection of services without a rule.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct DefaultTrafficPolicy {
    /// `connectionPool`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connection_pool: Option<ConnectionPool>,
    /// `outlierDetection`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outlier_detection: Option<OutlierDetection>,
}

/// TLS parameters.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct MeshTls {
    /// TLS_AUTO, TLSV1_2, TLSV1_3.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub min_protocol_version: String,
    /// `ecdhCurves`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ecdh_curves: Vec<String>,
    /// `cipherSuites`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cipher_suites: Vec<String>,
}

/// Further trust anchors.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct CaCertificate {
    /// `pem`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub pem: String,
    /// `spiffeBundleUrl`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub spiffe_bundle_url: String,
    /// `certSigners`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cert_signers: Vec<String>,
    /// `trustDomains`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub trust_domains: Vec<String>,
}

/// A CA elsewhere.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ExternalCa {
    /// `address`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub address: String,
    /// `tlsSettings`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_settings: Option<crate::crd::networking::ClientTls>,
    /// `requestTimeout`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_timeout: Option<Duration>,
    /// `istiodSide`.
    #[serde(skip_serializing_if = "is_false")]
    pub istiod_side: bool,
}

/// Settings of services.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceSettings {
    /// `settings`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub settings: Option<ClusterLocal>,
    /// `hosts`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
}

/// Reach.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ClusterLocal {
    /// `clusterLocal`.
    #[serde(skip_serializing_if = "is_false")]
    pub cluster_local: bool,
}

/// Providers used without a Telemetry object.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct DefaultProviders {
    /// `tracing`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tracing: Vec<String>,
    /// `metrics`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub metrics: Vec<String>,
    /// `accessLogging`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub access_logging: Vec<String>,
}

impl MeshConfig {
    /// Namespace whose policies are mesh-wide.
    pub fn root_namespace(&self) -> &str {
        if self.root_namespace.is_empty() { "istio-system" } else { &self.root_namespace }
    }
    /// Trust domain of the mesh.
    pub fn trust_domain(&self) -> &str {
        if self.trust_domain.is_empty() { "cluster.local" } else { &self.trust_domain }
    }
    /// Whether clients use mesh TLS by themselves.
    pub fn auto_mtls(&self) -> bool {
        self.enable_auto_mtls.unwrap_or(true)
    }
    /// Limit of TCP connects.
    pub fn connect_timeout(&self) -> std::time::Duration {
        self.connect_timeout.map_or(std::time::Duration::from_secs(10), |d| d.0)
    }
    /// What happens to unknown destinations.
    pub fn outbound_mode(&self) -> OutboundPolicyMode {
        self.outbound_traffic_policy.as_ref().map_or(OutboundPolicyMode::AllowAny, |p| p.mode)
    }
}
