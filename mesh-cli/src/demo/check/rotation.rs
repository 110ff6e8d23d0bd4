//! Certificates that live for seconds.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use tokio::time::Instant;

use super::{RATE, SLACK, Verdict};
use crate::demo::http;
use crate::demo::load::Load;
use crate::demo::mesh::{GATEWAY, Mesh, admin_url};

/// How long they are rotated under load.
const FOR: Duration = Duration::from_secs(20);
/// Certificates of every proxy in that time: one every 2 s, and one that the clocks may cost.
const LEAST: usize = 9;
/// How long it may take until there were as many: a loaded machine renews late.
const AT_MOST: Duration = Duration::from_secs(FOR.as_secs() + 5 * (SLACK as u64 - 1));

/// Every proxy with certificates of 4 s, which are renewed after half of that; afterwards with those of the usual life.
pub async fn rotate(mesh: &mut Mesh) -> Verdict {
    let rotated = rotated(mesh).await;
    restart(mesh, &[]).await?;
    rotated
}

async fn rotated(mesh: &mut Mesh) -> Verdict {
    restart(mesh, &["--cert-ttl", "4s"]).await?;
    let load = Load::start(mesh.plan.page(), RATE);
    let begin = Instant::now();
    let seen = watch(mesh).await;
    let tally = load.stop().await;
    let least = seen?.values().map(BTreeSet::len).min().unwrap_or(0);
    let took = begin.elapsed();
    anyhow::ensure!(tally.failed() == 0, "{} requests failed: {}", tally.failed(), tally.reasons());
    anyhow::ensure!(least >= LEAST, "a proxy had only {least} certificates in {took:.0?}");
    Ok(format!("{} requests, at least {least} certificates a proxy in {took:.0?}", tally.good))
}

/// Ends every proxy and starts it anew, with more flags.
async fn restart(mesh: &mut Mesh, more: &[&str]) -> anyhow::Result<()> {
    for workload in mesh.plan.workloads.clone() {
        mesh.end(workload.name).await?;
        mesh.start_sidecar(&workload, more)?;
        mesh.proxy_ready(workload.ip).await?;
    }
    let ip = mesh.plan.gateway_ip;
    mesh.end(GATEWAY).await?;
    mesh.start_gateway(GATEWAY, ip, more)?;
    mesh.proxy_ready(ip).await
}

/// Certificates that each proxy had, as long as they are rotated.
async fn watch(mesh: &Mesh) -> anyhow::Result<BTreeMap<Ipv4Addr, BTreeSet<String>>> {
    let mut seen: BTreeMap<Ipv4Addr, BTreeSet<String>> = BTreeMap::new();
    let begin = Instant::now();
    loop {
        for ip in mesh.proxies() {
            seen.entry(ip).or_default().extend(serials(ip).await?);
        }
        let enough = seen.values().all(|of| of.len() >= LEAST);
        if begin.elapsed() >= if enough { FOR } else { AT_MOST } {
            return Ok(seen);
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// Serial numbers of the leaf certificates that a proxy holds now.
async fn serials(ip: Ipv4Addr) -> anyhow::Result<Vec<String>> {
    let answer = http::get(&admin_url(ip, "/certs")).await?.json()?;
    let certificates = answer["certificates"].as_array().cloned().unwrap_or_default();
    let chains = certificates.iter().filter_map(|c| c["cert_chain"].as_array());
    let leaves = chains.filter_map(|chain| chain.first()?["serial_number"].as_str().map(str::to_owned));
    Ok(leaves.collect())
}
