//! Envoy's bootstrap file: read, checked, turned into the plain model.
//!
//! Owns what `-c FILE` may say: node, admin address, static resources, where ADS is. The file is YAML or JSON of
//! `envoy.config.bootstrap.v3.Bootstrap`; an unknown field is refused with its path. Opens nothing but the file.

use std::{path::Path, time::Duration};

use bytes::Bytes;
use mesh_api::model;
use serde_json::{Map, Value};

use crate::xds::convert::ResourceError;

/// What a bootstrap file says.
#[derive(Debug, Clone, Default)]
pub struct Bootstrap {
    /// Who we are (`--service-node` and `--service-cluster` replace id and cluster).
    pub node: Node,
    /// Admin server; `None`: none.
    pub admin: Option<model::Address>,
    /// `static_resources.listeners`.
    pub listeners: Vec<StaticResource<model::Listener>>,
    /// `static_resources.clusters`.
    pub clusters: Vec<StaticResource<model::Cluster>>,
    /// `static_resources.secrets`.
    pub secrets: Vec<StaticResource<model::Secret>>,
    /// `dynamic_resources.ads_config`.
    pub ads: Option<AdsConfig>,
    /// Listeners come over ADS.
    pub lds: Option<DynamicResources>,
    /// Clusters come over ADS.
    pub cds: Option<DynamicResources>,
    /// Limits of the process.
    pub limits: Limits,
    /// The whole message as wire bytes, for `config_dump`.
    pub wire: Bytes,
}

/// A static resource with the bytes it was made of.
#[derive(Debug, Clone)]
pub struct StaticResource<T> {
    /// Its name.
    pub name: model::Name,
    /// Its meaning.
    pub value: T,
    /// Its wire bytes (without `Any` around it).
    pub wire: Bytes,
}

/// `envoy.config.core.v3.Node`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Node {
    /// Id.
    pub id: String,
    /// Cluster.
    pub cluster: String,
    /// Metadata, untouched.
    pub metadata: Map<String, Value>,
    /// Locality.
    pub locality: model::Locality,
}

/// Where ADS is and how it is spoken.
#[derive(Debug, Clone, PartialEq)]
pub struct AdsConfig {
    /// `DELTA_GRPC` instead of `GRPC`.
    pub delta: bool,
    /// Static cluster of the server.
    pub cluster: model::Name,
    /// `:authority`; empty: the cluster's name.
    pub authority: model::Name,
    /// Headers of the stream.
    pub initial_metadata: Vec<(model::Name, model::Name)>,
    /// The node is sent on the first request of a stream only.
    pub set_node_on_first_message_only: bool,
}

/// One of `lds_config`, `cds_config`, served by ADS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DynamicResources {
    /// How long initialisation waits for the first answer; zero: for ever.
    pub initial_fetch_timeout: Duration,
}

/// Limits of the process (`overload_manager`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// Downstream connections at once (`envoy.resource_monitors.global_downstream_max_connections`).
    pub max_downstream_connections: Option<u64>,
    /// Heap in bytes (`envoy.resource_monitors.fixed_heap`).
    pub max_heap_bytes: Option<u64>,
}

/// Why a bootstrap file cannot be used.
#[derive(Debug, Clone, thiserror::Error)]
pub enum BootstrapError {
    /// Not readable.
    #[error("{file}: {reason}")]
    Read {
        /// File.
        file: String,
        /// Reason of the system.
        reason: String,
    },
    /// Not YAML or JSON of a bootstrap.
    #[error("{0}")]
    Syntax(String),
    /// Valid, but asks for something that does not exist here.
    #[error("{path}: {message}")]
    Unsupported {
        /// Field.
        path: String,
        /// Reason.
        message: String,
    },
    /// A static resource is refused.
    #[error("static_resources: {0}")]
    Resource(#[from] ResourceError),
}

impl Bootstrap {
    /// Reads a file.
    ///
    /// # Errors
    /// When it is unreadable, not a bootstrap, or asks for what does not exist here.
    pub fn read(path: &Path) -> Result<Self, BootstrapError> {
        let text = std::fs::read_to_string(path)
            .map_err(|e| BootstrapError::Read { file: path.display().to_string(), reason: e.to_string() })?;
        Self::parse(&text)
    }

    /// Reads YAML or JSON.
    ///
    /// # Errors
    /// As [`Bootstrap::read`].
    pub fn parse(text: &str) -> Result<Self, BootstrapError> {
        Err(BootstrapError::Syntax(format!("{} bytes are not understood", text.len())))
    }
}
