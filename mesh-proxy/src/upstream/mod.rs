//! Clusters, endpoints, balancing and connections to them.

pub mod pool;

/// A compiled cluster.
#[derive(Debug)]
pub struct Cluster {}

/// One place to send requests to.
#[derive(Debug)]
pub struct Endpoint {}
