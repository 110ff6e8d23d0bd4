//! xDS: from the plain model to encoded resources, and the streams that serve them.

pub mod caller;
pub mod encoded;
pub mod r#gen;
pub mod generator;
pub mod node;
