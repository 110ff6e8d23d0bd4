//! xDS: from the plain model to encoded resources, and the streams that serve them.

pub mod caller;
pub mod delta;
pub mod encoded;
pub mod r#gen;
pub mod generator;
pub mod nack;
pub mod node;
pub mod push;
pub mod sotw;
pub mod subscription;
#[cfg(test)]
pub(crate) mod testing;
