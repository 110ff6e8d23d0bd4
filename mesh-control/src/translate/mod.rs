//! From the index and the view of a proxy to the plain model: what each proxy must do.

pub mod delegate;
pub mod filter_names;
pub mod match_conditions;
pub mod rule_parts;
pub mod virtual_service;
