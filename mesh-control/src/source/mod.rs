//! Where objects come from. A source turns what it watches into typed [`object::Object`]s and reports changes;
//! what they mean is for `index` and `translate`.

pub mod core;
pub mod manifest;
pub mod object;
mod position;
