//! What gateways serve, by Istio's Gateways and by Gateway API's.
//!
//! [`server`] puts the servers of all Gateways of a proxy together, [`listener`] makes listeners of them and
//! [`table`] their routes.

mod listener;
mod server;
mod table;
#[cfg(test)]
mod tests;

pub use self::{listener::listeners, server::listener_tls, table::generate as routes};
