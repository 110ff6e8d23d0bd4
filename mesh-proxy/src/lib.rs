//! The data plane: a sidecar and gateway configured by Envoy's xDS v3 or Envoy's static bootstrap file.
//!
//! The way of a request: `net` accepts a connection and chooses its filter chain, `http` or `tcp` serves it, `upstream`
//! finds an endpoint and a connection to it. The way of a configuration change: `xds` receives and decodes resources
//! (`xds/convert`), `config` warms, compiles and publishes them as one immutable `Snapshot`. `app` wires it all.

pub mod admin;
pub mod app;
pub mod bootstrap;
pub mod config;
pub mod dns;
pub mod drain;
pub mod http;
pub mod identity;
pub mod memory;
pub mod net;
pub mod readiness;
pub mod runtime;
pub mod settings;
pub mod tcp;
pub mod telemetry;
pub mod tls;
pub mod upstream;
pub mod workers;
pub mod xds;
