//! From the index and the view of a proxy to the plain model: what each proxy must do.
//!
//! [`Translator`] answers streams: it finds the maker of a resource by type and name. The makers are pure functions of
//! (index, declared subset of the view, name); what they made is kept encoded, shared by all proxies it is the same for.

pub mod backend_tls;
pub mod cache;
pub mod clusters;
pub mod delegate;
pub mod destination_rule;
pub mod dynamic_dns;
pub mod endpoints;
pub mod filter_chain;
pub mod filter_names;
pub mod gateway;
pub mod gateway_api;
pub mod gateway_infrastructure;
pub mod grpc_client;
pub mod http_route;
pub mod inbound;
pub mod l4_route;
pub mod listeners;
pub mod locality;
pub mod lookups;
pub mod match_conditions;
pub mod mesh_routes;
pub mod name_table;
pub mod outbound;
pub mod patches;
pub mod policy;
pub mod proxy_headers;
mod request_authn;
pub mod routes;
pub mod rule_parts;
pub mod scope;
mod secret_access;
pub mod secrets;
pub mod server_tls;
pub mod session;
pub mod sidecar_routes;
pub mod status;
pub mod tcp_routes;
pub mod telemetry;
#[cfg(test)]
pub(crate) mod testing;
pub mod tls;
mod translator;
pub mod virtual_service;

#[cfg(test)]
mod tests;
#[cfg(test)]
mod wide_tests;

pub use self::{
    scope::{Egress, Scope, Scoped},
    translator::{Request, Translator},
};
