//! EnvoyFilter: changes of generated resources that users wrote in Envoy's own terms.
//!
//! [`compile`] reads and checks each patch when its object changes; a [`PatchSet`] holds those of one proxy in the order
//! in which they apply; [`PatchSet::apply`] changes one encoded resource. Pure: what is kept, and for whom, is
//! translation's business. Names and order are Istio's (`pilot/pkg/networking/core/envoyfilter`). Must not know objects
//! other than EnvoyFilter, nor how resources came to be.

mod cluster;
mod compile;
mod dynamic;
mod listener;
mod matching;
mod merge;
mod needs;
mod route;
mod set;

#[cfg(test)]
mod tests;

pub use compile::{Compiled, MAX_VERSION_PATTERN, Patch, Problem, compile, read_value, unconfigured};
pub use set::{Facts, PatchSet, Patched, Served, Trouble};
