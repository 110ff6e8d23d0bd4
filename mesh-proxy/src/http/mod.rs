//! HTTP: one exchange from head to record.
//!
//! `server` speaks the wire protocols and hands each request to `exchange`, which finds its route (`router`), runs the
//! filters, calls the upstream and records what happened (`stats`). Knows no xDS; hyper is named in `server` only.

pub mod attributes;
pub mod authorizer;
pub mod exchange;
pub mod filters;
pub mod format;
pub mod hash;
pub mod header_ops;
pub mod headers;
pub mod local_reply;
pub mod manager;
pub mod matchers;
pub mod message;
pub mod metadata_match;
pub mod path;
pub mod request_id;
pub mod retry;
pub mod router;
pub mod server;
pub mod stats;
pub mod template;
#[cfg(test)]
pub(crate) mod testing;
