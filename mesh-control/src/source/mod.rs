//! Where objects come from. A source turns what it watches into typed [`object::Object`]s and reports changes;
//! what they mean is for `index` and `translate`.

pub mod core;
pub mod folder;
pub mod manifest;
pub mod object;
mod position;
pub mod watch;
