//! xDS: from the plain model to encoded resources, and the streams that serve them.

pub mod r#gen;
