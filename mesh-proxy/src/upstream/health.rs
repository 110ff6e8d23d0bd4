//! Active health checks.
use super::Cluster;
use std::sync::Weak;
pub(super) async fn run(cluster: Weak<Cluster>) {
    let _ = cluster;
}
