//! xDS: from the plain model to encoded resources, and the streams that serve them.

pub mod caller;
#[cfg(test)]
mod convergence;
pub mod debounce;
pub mod delta;
pub mod dump;
pub mod encoded;
pub mod framing;
pub mod r#gen;
pub mod generator;
pub mod hub;
pub mod nack;
pub mod node;
pub mod patch;
pub mod push;
pub mod server;
pub mod service;
pub mod sotw;
pub mod stream;
pub mod subscribers;
pub mod subscription;
#[cfg(test)]
pub(crate) mod testing;
