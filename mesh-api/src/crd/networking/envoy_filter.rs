//! EnvoyFilter: changes of what is generated for proxies.
use crate::crd::{TargetRef, WorkloadSelector};
use crate::labels::Labels;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Changes of the configuration that is generated for proxies.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct EnvoyFilter {
    /// `workloadSelector`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workload_selector: Option<WorkloadSelector>,
    /// `targetRefs`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub target_refs: Vec<TargetRef>,
    /// `configPatches`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub config_patches: Vec<ConfigPatch>,
    /// Of several EnvoyFilters the one with the smaller number is applied first.
    pub priority: i32,
}

/// One change.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ConfigPatch {
    /// `applyTo`.
    pub apply_to: ApplyTo,
    /// `match`.
    #[serde(rename = "match", skip_serializing_if = "Option::is_none")]
    pub matches: Option<ObjectMatch>,
    /// `patch`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub patch: Option<Patch>,
}

/// Which part of the configuration is changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ApplyTo {
    #[default]
    /// `INVALID`.
    Invalid,
    /// `LISTENER`.
    Listener,
    /// `FILTER_CHAIN`.
    FilterChain,
    /// `NETWORK_FILTER`.
    NetworkFilter,
    /// `HTTP_FILTER`.
    HttpFilter,
    /// `ROUTE_CONFIGURATION`.
    RouteConfiguration,
    /// `VIRTUAL_HOST`.
    VirtualHost,
    /// `HTTP_ROUTE`.
    HttpRoute,
    /// `CLUSTER`.
    Cluster,
    /// `EXTENSION_CONFIG`.
    ExtensionConfig,
    /// `BOOTSTRAP`.
    Bootstrap,
    /// `LISTENER_FILTER`.
    ListenerFilter,
}

/// Which traffic the changed part serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum PatchContext {
    #[default]
    /// `ANY`.
    Any,
    /// `SIDECAR_INBOUND`.
    SidecarInbound,
    /// `SIDECAR_OUTBOUND`.
    SidecarOutbound,
    /// `GATEWAY`.
    Gateway,
    /// `WAYPOINT`.
    Waypoint,
}

/// Which objects of a part are changed; at most one of `listener`, `routeConfiguration`, `cluster` and `waypoint`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ObjectMatch {
    /// `context`.
    pub context: PatchContext,
    /// `proxy`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy: Option<ProxyMatch>,
    /// `listener`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listener: Option<ListenerMatch>,
    /// `routeConfiguration`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route_configuration: Option<RouteConfigurationMatch>,
    /// `cluster`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<ClusterMatch>,
    /// `waypoint`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waypoint: Option<WaypointMatch>,
}

/// Facts of a proxy.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ProxyMatch {
    /// Regular expression on the version that the proxy claims.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub proxy_version: String,
    /// Node metadata, as text.
    #[serde(skip_serializing_if = "Labels::is_empty")]
    pub metadata: Labels,
}

/// Facts of a cluster.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ClusterMatch {
    /// Port of the service; 0: any.
    pub port_number: u32,
    /// Host of the service.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub service: String,
    /// Subset.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub subset: String,
    /// Name of the cluster, which alone counts then.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
}

/// Facts of a route configuration.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RouteConfigurationMatch {
    /// Port; 0: any.
    pub port_number: u32,
    /// Name of the port of a Gateway's server.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub port_name: String,
    /// `namespace/name` of the Gateway.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub gateway: String,
    /// `vhost`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vhost: Option<VirtualHostMatch>,
    /// Name of the route configuration.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
}

/// Facts of a virtual host.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct VirtualHostMatch {
    /// Its name, `HOST:PORT`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// One of its domains.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub domain_name: String,
    /// `route`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route: Option<RouteMatch>,
}

/// Facts of a route.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RouteMatch {
    /// Its name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// `action`.
    pub action: RouteAction,
}

/// What a route does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum RouteAction {
    #[default]
    /// `ANY`.
    Any,
    /// `ROUTE`.
    Route,
    /// `REDIRECT`.
    Redirect,
    /// `DIRECT_RESPONSE`.
    DirectResponse,
}

/// Facts of a listener.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ListenerMatch {
    /// Port that it listens on, of `virtualInbound` the port of the workload; 0: any.
    pub port_number: u32,
    /// Not evaluated, as in Istio.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub port_name: String,
    /// `filterChain`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filter_chain: Option<FilterChainMatch>,
    /// Name of a listener filter.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub listener_filter: String,
    /// Name of the listener.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
}

/// Facts of a filter chain.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct FilterChainMatch {
    /// Its name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// A server name that it matches.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub sni: String,
    /// Transport protocol that it matches.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub transport_protocol: String,
    /// Application protocols that it matches, separated by commas.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub application_protocols: String,
    /// `filter`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filter: Option<FilterMatch>,
    /// Destination port that it matches; 0: any.
    pub destination_port: u32,
    /// Name of its transport socket; a chain without one has `envoy.transport_sockets.raw_buffer`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub transport_socket: String,
}

/// Facts of a network filter.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct FilterMatch {
    /// Its name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// An HTTP filter within it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sub_filter: Option<SubFilterMatch>,
}

/// Facts of an HTTP filter.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct SubFilterMatch {
    /// Its name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
}

/// Facts of what a waypoint serves.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct WaypointMatch {
    /// Port of the service; 0: any.
    pub port_number: u32,
    /// `route`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route: Option<WaypointRouteMatch>,
    /// `filter`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filter: Option<FilterMatch>,
}

/// Facts of a route of a waypoint.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct WaypointRouteMatch {
    /// Its name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
}

/// What is done to the objects that match.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Patch {
    /// `operation`.
    pub operation: Operation,
    /// An object of Envoy's in protobuf's JSON, or a part of one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<Map<String, Value>>,
    /// `filterClass`.
    pub filter_class: FilterClass,
}

/// How the value and what is there come together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Operation {
    #[default]
    /// `INVALID`.
    Invalid,
    /// `MERGE`.
    Merge,
    /// `ADD`.
    Add,
    /// `REMOVE`.
    Remove,
    /// `INSERT_BEFORE`.
    InsertBefore,
    /// `INSERT_AFTER`.
    InsertAfter,
    /// `INSERT_FIRST`.
    InsertFirst,
    /// `REPLACE`.
    Replace,
    /// `MERGE_AND_REPLACE_LIST`.
    MergeAndReplaceList,
}

/// What a filter is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum FilterClass {
    #[default]
    /// `UNSPECIFIED`.
    Unspecified,
    /// `AUTHN`.
    Authn,
    /// `AUTHZ`.
    Authz,
    /// `STATS`.
    Stats,
}
