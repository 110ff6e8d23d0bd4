//! `/config_dump` in Envoy's shape, from wire bytes as they were accepted. Shared by the proxy's admin server and the
//! control plane's `/debug/config_dump`. Private keys come out as `[redacted]`.

use std::time::SystemTime;

/// What a `config_dump` shows. All byte fields are wire bytes of the message, without `Any` around it.
#[derive(Debug, Clone, Default)]
pub struct ConfigDump {
    /// `envoy.config.bootstrap.v3.Bootstrap`; empty: not shown.
    pub bootstrap: Vec<u8>,
    /// When the bootstrap was read.
    pub started: Option<SystemTime>,
    /// Version of the last accepted listener push.
    pub lds_version: String,
    /// Version of the last accepted cluster push.
    pub cds_version: String,
    /// Listeners.
    pub listeners: Vec<DumpEntry>,
    /// Clusters.
    pub clusters: Vec<DumpEntry>,
    /// Route configurations. Those in listeners count as static.
    pub routes: Vec<DumpEntry>,
    /// Load assignments.
    pub endpoints: Vec<DumpEntry>,
    /// Secrets.
    pub secrets: Vec<DumpEntry>,
}

/// One resource.
#[derive(Debug, Clone, Default)]
pub struct DumpEntry {
    /// Name.
    pub name: String,
    /// From the bootstrap file.
    pub is_static: bool,
    /// In force or, [`DumpState::Warming`], waiting for something else. Draining listeners are in force no more.
    pub state: DumpState,
    /// Version as the control plane named it.
    pub version: String,
    /// Wire bytes in force; `None`: nothing was ever accepted.
    pub wire: Option<bytes::Bytes>,
    /// When they were accepted.
    pub updated: Option<SystemTime>,
    /// The last refusal, when it is newer than what is in force.
    pub error: Option<DumpError>,
}

/// Where a resource stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DumpState {
    /// In force.
    #[default]
    Active,
    /// Accepted, waits.
    Warming,
    /// Replaced, finishes its connections.
    Draining,
}

/// A refused update (`UpdateFailureState`).
#[derive(Debug, Clone, Default)]
pub struct DumpError {
    /// Wire bytes that were refused.
    pub wire: Option<bytes::Bytes>,
    /// Version refused.
    pub version: String,
    /// When.
    pub at: Option<SystemTime>,
    /// Why.
    pub details: String,
}

/// Query of a `config_dump` request.
#[derive(Debug, Clone, Default)]
pub struct DumpQuery {
    /// `include_eds`.
    pub include_eds: bool,
    /// `resource=dynamic_active_clusters` and the like: only this repeated field.
    pub resource: Option<String>,
    /// `name_regex`, applied to resource names.
    pub name_regex: Option<String>,
}
