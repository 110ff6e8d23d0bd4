//! Where objects come from. A source turns what it watches into typed [`object::Object`]s and reports changes;
//! what they mean is for `index` and `translate`.

pub mod bundle;
pub mod core;
mod fail_safe;
pub mod folder;
pub mod ingress;
mod kept;
pub mod kubernetes;
pub mod manifest;
pub mod object;
pub mod position;
pub mod schema;
pub mod status;
pub mod watch;
