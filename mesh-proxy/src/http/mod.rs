//! HTTP: one exchange from head to record.
//!
//! `server` speaks the wire protocols and hands each request to `exchange`, which finds its route (`router`), runs the
//! filters, calls the upstream and records what happened (`stats`). Knows no xDS; hyper is named in `server` only.

pub mod filters;
pub mod local_reply;
pub mod manager;
pub mod message;
pub mod router;
pub mod server;
pub mod stats;
