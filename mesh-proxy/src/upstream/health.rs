//! Active health checks.
use std::sync::Weak;
use super::Cluster;
pub(super) async fn run(cluster: Weak<Cluster>) { let _ = cluster; }
