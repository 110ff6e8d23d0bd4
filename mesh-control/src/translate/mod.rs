//! From the index and the view of a proxy to the plain model: what each proxy must do.
//!
//! [`Translator`] answers streams: it finds the maker of a resource by type and name. The makers are pure functions of
//! (index, declared subset of the view, name); what they made is kept encoded, shared by all proxies it is the same for.

pub mod cache;
pub mod clusters;
pub mod delegate;
pub mod destination_rule;
pub mod endpoints;
pub mod filter_chain;
pub mod filter_names;
pub mod locality;
pub mod match_conditions;
pub mod policy;
pub mod rule_parts;
pub mod scope;
pub mod telemetry;
#[cfg(test)]
mod testing;
pub mod tls;
mod translator;
pub mod virtual_service;

#[cfg(test)]
mod tests;

pub use self::{
    scope::{Egress, Scope, Scoped},
    translator::{Request, Translator},
};
