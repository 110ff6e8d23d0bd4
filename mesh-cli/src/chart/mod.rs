//! Charts.

pub mod template;
