//! The control plane: reads what an operator declares, works out what each proxy must do, serves it over Envoy's xDS
//! and issues workload certificates.
//!
//! The way of a change: `source` (files, or an API server) -> typed objects -> `index` (change set) -> debounce -> `translate` (index and
//! view of a proxy -> plain model) -> `xds` (encoded once, sent to those it concerns). `app` alone sees all.

pub mod admin;
pub mod app;
pub mod ca;
#[cfg(test)]
mod chance_tests;
#[cfg(test)]
mod field_tests;
pub mod gateway_deployer;
pub mod hash;
pub mod index;
pub mod inject;
pub mod jwks;
pub mod leader;
pub mod metrics;
pub mod settings;
pub mod source;
pub mod status;
pub mod translate;
pub mod validate;
pub mod view;
pub mod webhook;
pub mod xds;

/// A token with which a workload authenticates itself, signed by the key in a state folder. The control plane that uses
/// the folder may be running or not.
///
/// # Errors
/// When the folder cannot be used or the names are not those of a service account.
pub fn workload_token(state_dir: &std::path::Path, namespace: &str, service_account: &str) -> anyhow::Result<String> {
    ca::workload_token(state_dir, namespace, service_account, None)
}
