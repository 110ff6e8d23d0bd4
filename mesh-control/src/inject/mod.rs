//! Injection: a proxy into pods that ask for one, as Istio does it. Pure; `meshctl inject` calls it, a webhook is to.
//!
//! The way of a pod: `decision` (whether) -> `pod` (what was injected before goes, what belongs to it now comes), with
//! `proxy_config` (settings of this proxy), `template` (containers and volumes), `probes` and `scraping`. `manifest` finds pods in files.
//! Knows no cluster and no clock.

pub mod annotations;
pub mod decision;
pub mod manifest;
pub mod node;
pub mod overlay;
pub mod pod;
mod probes;
pub mod proxy_config;
mod scraping;
pub mod settings;
mod template;
pub mod values;

pub use settings::Settings;
pub use template::{Owner, PROXY};

#[cfg(test)]
mod tests;
