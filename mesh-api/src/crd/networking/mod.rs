//! `networking.istio.io`: VirtualService, DestinationRule, Gateway, ServiceEntry, WorkloadEntry, WorkloadGroup,
//! Sidecar, ProxyConfig, EnvoyFilter. Field for field Istio's; semantics are the translation's business.

mod destination_rule;
pub mod envoy_filter;
mod gateway;
mod service_entry;
mod sidecar;
mod virtual_service;

pub use destination_rule::*;
pub use envoy_filter::EnvoyFilter;
pub use gateway::*;
pub use service_entry::*;
pub use sidecar::*;
pub use virtual_service::*;
