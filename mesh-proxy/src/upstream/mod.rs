//! Clusters, endpoints, balancing and connections to them.
//!
//! `cluster` holds what all workers share (endpoints, health, limits, counters) and chooses endpoints with `balance`;
//! `pool` holds what one worker owns (connections) and speaks HTTP over them; `connect` makes connections. `discovery`,
//! `dns`, `health` and `outlier` change a cluster from the control thread. Knows no xDS and no downstream; hyper and h2
//! are named in `pool/h1.rs` and `pool/h2.rs` only.

pub mod balance;
pub mod circuit;
pub mod cluster;
pub mod connect;
mod dns;
mod dynamic;
pub mod endpoint;
pub mod error;
mod health;
mod members;
mod names;
mod original_dst;
pub mod outlier;
pub mod pool;
mod proxy_header;
pub mod stats;

pub use balance::{LbContext, Random};
pub use circuit::Priority;
pub use cluster::Cluster;
pub use endpoint::Endpoint;
pub use error::{ErrorKind, PickError, UpstreamError};
pub use health::serving;
pub use names::Unresolved;
pub use outlier::Outcome;
