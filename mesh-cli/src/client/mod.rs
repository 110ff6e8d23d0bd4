//! Who is asked, and how: control planes and proxies by address or through the API server, and the API server itself.
//!
//! `server` asks one server one thing, `cluster` is the API server, `pods` finds pods by the words that users have for
//! them, and `mesh` puts that together: which control planes there are and what all of them say. What answers mean is
//! the commands'.

pub mod cluster;
pub mod mesh;
pub mod pods;
mod server;

pub use server::{Answer, Server};
