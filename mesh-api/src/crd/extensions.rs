//! `extensions.istio.io`: WasmPlugin, TrafficExtension.
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{PolicySelector, TargetRef, telemetry::WorkloadMode};

/// A filter of WebAssembly.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct WasmPlugin {
    /// `selector`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<PolicySelector>,
    /// `targetRef`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<TargetRef>,
    /// `targetRefs`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub target_refs: Vec<TargetRef>,
    /// `phase`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<PluginPhase>,
    /// `priority`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<i32>,
    /// `match`.
    #[serde(rename = "match", skip_serializing_if = "Vec::is_empty")]
    pub matches: Vec<TrafficSelector>,
    /// `url`: `oci://`, `http(s)://` or `file://`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub url: String,
    /// `sha256`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub sha256: String,
    /// `imagePullPolicy`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_pull_policy: Option<PullPolicy>,
    /// `imagePullSecret`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub image_pull_secret: String,
    /// `verificationKey`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub verification_key: String,
    /// `pluginConfig`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plugin_config: Option<serde_json::Map<String, serde_json::Value>>,
    /// `pluginName`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub plugin_name: String,
    /// `failStrategy`.
    pub fail_strategy: FailStrategy,
    /// `vmConfig`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vm_config: Option<VmConfig>,
    /// `type`.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<PluginType>,
}

/// A filter of WebAssembly or Lua.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct TrafficExtension {
    /// `selector`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<PolicySelector>,
    /// `targetRefs`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub target_refs: Vec<TargetRef>,
    /// `phase`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<ExtensionPhase>,
    /// `priority`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<i32>,
    /// `match`.
    #[serde(rename = "match", skip_serializing_if = "Vec::is_empty")]
    pub matches: Vec<TrafficSelector>,
    /// `wasm`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wasm: Option<WasmModule>,
    /// `lua`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lua: Option<LuaScript>,
}

/// A module of WebAssembly.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct WasmModule {
    /// `url`: `oci://`, `http(s)://` or `file://`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub url: String,
    /// `sha256`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub sha256: String,
    /// `imagePullPolicy`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_pull_policy: Option<PullPolicy>,
    /// `imagePullSecret`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub image_pull_secret: String,
    /// `verificationKey`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub verification_key: String,
    /// `pluginConfig`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plugin_config: Option<serde_json::Map<String, serde_json::Value>>,
    /// `pluginName`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub plugin_name: String,
    /// `failStrategy`.
    pub fail_strategy: FailStrategy,
    /// `vmConfig`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vm_config: Option<VmConfig>,
    /// `type`.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<PluginType>,
}

/// A script.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LuaScript {
    /// `inlineCode`.
    pub inline_code: String,
}

/// Where in the order of filters a WasmPlugin stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum PluginPhase {
    /// `UNSPECIFIED_PHASE`.
    UnspecifiedPhase,
    /// `AUTHN`.
    Authn,
    /// `AUTHZ`.
    Authz,
    /// `STATS`.
    Stats,
}

/// Where in the order of filters a TrafficExtension stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ExtensionPhase {
    /// `UNSPECIFIED`.
    Unspecified,
    /// `AUTHN`.
    Authn,
    /// `AUTHZ`.
    Authz,
    /// `STATS`.
    Stats,
}

/// What happens while a module does not run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum FailStrategy {
    #[default]
    /// `FAIL_CLOSE`: requests are refused.
    FailClose,
    /// `FAIL_OPEN`: they pass without it.
    FailOpen,
    /// `FAIL_RELOAD`: refused, and it is started again.
    FailReload,
}

/// When an image is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum PullPolicy {
    /// `UNSPECIFIED_POLICY`.
    #[serde(rename = "UNSPECIFIED_POLICY")]
    Unspecified,
    /// `IfNotPresent`.
    IfNotPresent,
    /// `Always`.
    Always,
}

/// What a module looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum PluginType {
    /// `UNSPECIFIED_PLUGIN_TYPE`: requests.
    UnspecifiedPluginType,
    /// `HTTP`: requests.
    Http,
    /// `NETWORK`: connections.
    Network,
}

/// Which traffic a filter is for.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct TrafficSelector {
    /// `mode`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<TrafficMode>,
    /// `ports`; empty: all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<PortNumber>,
}

/// Which side of a workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum TrafficMode {
    /// `UNDEFINED`: both.
    Undefined,
    /// `CLIENT`.
    Client,
    /// `SERVER`.
    Server,
    /// `CLIENT_AND_SERVER`.
    ClientAndServer,
}

impl TrafficMode {
    /// Whether traffic of a side is meant.
    pub fn covers(self, side: WorkloadMode) -> bool {
        match self {
            Self::Undefined | Self::ClientAndServer => true,
            Self::Client => side == WorkloadMode::Client,
            Self::Server => side == WorkloadMode::Server,
        }
    }
}

/// A port.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PortNumber {
    /// `number`.
    pub number: u16,
}

/// The virtual machine of a module.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct VmConfig {
    /// `env`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<EnvVar>,
}

/// A variable of the environment.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EnvVar {
    /// `name`.
    pub name: String,
    /// `valueFrom`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value_from: Option<ValueFrom>,
    /// `value`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub value: String,
}

/// Where a variable's value comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ValueFrom {
    /// `INLINE`.
    Inline,
    /// `HOST`.
    Host,
}
