//! The control plane: reads what an operator declares, works out what each proxy must do, serves it over Envoy's xDS
//! and issues workload certificates.
//!
//! The way of a change: `source` (files) -> typed objects -> `index` (change set) -> debounce -> `translate` (index and
//! view of a proxy -> plain model) -> `xds` (encoded once, sent to those it concerns). `app` alone sees all.

pub mod admin;
pub mod app;
pub mod ca;
pub mod index;
pub mod metrics;
pub mod settings;
pub mod source;
pub mod translate;
pub mod validate;
pub mod view;
pub mod xds;
