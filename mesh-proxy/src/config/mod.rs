//! Configuration in force: what the model values are compiled into, and the snapshot all workers read.
//! Knows no IO: no sockets, no xDS streams, no timers.

pub mod apply;
pub mod extensions;
pub mod snapshot;

pub use snapshot::{NameMap, Services, SharedConfig, Snapshot};

use mesh_api::model::Name;

/// A resource that cannot be used, with the reason that goes into the NACK, the log and `config_dump`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub String);

impl ConfigError {
    /// A reason.
    pub fn new(reason: impl std::fmt::Display) -> Self {
        Self(reason.to_string())
    }
    /// The same reason, with where it happened in front (`route "a": ...`).
    #[must_use]
    pub fn within(self, place: impl std::fmt::Display) -> Self {
        Self(format!("{place}: {}", self.0))
    }
}

/// What compiling a resource may look at beside the resource itself.
#[derive(Debug, Clone)]
pub struct CompileCtx {
    /// Process-wide state; `shared.node` says who we are.
    pub shared: std::sync::Arc<SharedConfig>,
    /// Listener being compiled; empty for routes and clusters.
    pub listener: Name,
    /// Filter chain being compiled; may be empty.
    pub chain: Name,
    /// Direction of that listener.
    pub direction: mesh_api::model::TrafficDirection,
}
