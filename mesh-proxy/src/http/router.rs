//! Compiled route tables.

/// A compiled route configuration.
#[derive(Debug)]
pub struct RouteTable {}
