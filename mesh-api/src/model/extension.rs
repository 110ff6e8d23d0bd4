//! Filters whose configuration is a resource of its own (`envoy.config.core.v3.TypedExtensionConfig`).

use std::time::Duration;

use serde::Serialize;

use super::{HttpFilterKind, Name};

/// A filter that gets its configuration under its own name.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DiscoveredFilter {
    /// Messages that the configuration may be, by their full names.
    pub types: Vec<Name>,
    /// Serves while there is none.
    pub default: Option<HttpFilterKind>,
    /// The listener does not wait for it: `default` serves at once.
    pub at_once: bool,
    /// How long the listener waits for it; zero: for ever.
    pub fetch_timeout: Duration,
}

/// The configuration of a filter.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ExtensionConfig {
    /// Name of the filters that it is for.
    pub name: Name,
    /// Full name of the message.
    pub type_name: Name,
    /// Kind and configuration.
    pub kind: HttpFilterKind,
}
