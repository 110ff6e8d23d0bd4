//! Certificates that live for seconds.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use super::{RATE, Verdict};
use crate::demo::http;
use crate::demo::load::Load;
use crate::demo::mesh::{Mesh, admin_url};

/// How long they are rotated under load.
const FOR: Duration = Duration::from_secs(20);

/// Restarts the sidecars with certificates of 4 s, which are renewed after half of that.
pub async fn rotate(mesh: &mut Mesh) -> Verdict {
    for workload in mesh.plan.workloads.clone() {
        let child = mesh.child(workload.name)?;
        child.terminate();
        child.ended(Duration::from_secs(8)).await;
        mesh.start_sidecar(&workload, &["--cert-ttl", "4s"])?;
        mesh.proxy_ready(workload.ip).await?;
    }
    let mut seen: BTreeMap<Ipv4Addr, BTreeSet<String>> = BTreeMap::new();
    let load = Load::start(mesh.plan.page(), RATE);
    let end = tokio::time::Instant::now() + FOR;
    while tokio::time::Instant::now() < end {
        for workload in &mesh.plan.workloads {
            seen.entry(workload.ip).or_default().extend(serials(workload.ip).await?);
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let tally = load.stop().await;
    anyhow::ensure!(tally.failed() == 0, "{} requests failed: {}", tally.failed(), tally.reasons());
    let least = seen.values().map(BTreeSet::len).min().unwrap_or(0);
    anyhow::ensure!(least >= 6, "a sidecar had only {least} certificates in {FOR:?}");
    Ok(format!("{} requests, at least {least} certificates a sidecar", tally.good))
}

/// Serial numbers of the leaf certificates that a sidecar holds now.
async fn serials(ip: Ipv4Addr) -> anyhow::Result<Vec<String>> {
    let answer = http::get(&admin_url(ip, "/certs")).await?.json()?;
    let certificates = answer["certificates"].as_array().cloned().unwrap_or_default();
    let chains = certificates.iter().filter_map(|c| c["cert_chain"].as_array());
    let leaves = chains.filter_map(|chain| chain.first()?["serial_number"].as_str().map(str::to_owned));
    Ok(leaves.collect())
}
