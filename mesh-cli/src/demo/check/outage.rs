//! The control plane goes away and comes back.

use std::net::Ipv4Addr;
use std::time::Duration;

use serde_json::Value;

use super::{IN_SYNC, RATE, SLACK, Verdict, within};
use crate::demo::http;
use crate::demo::load::Load;
use crate::demo::mesh::{CONTROL, Mesh, ready_url};

/// How long it is away.
const AWAY: Duration = Duration::from_secs(10);

pub async fn survive(mesh: &mut Mesh) -> Verdict {
    let load = Load::start(mesh.plan.page(), RATE);
    tokio::time::sleep(Duration::from_secs(1)).await;
    mesh.child(CONTROL)?.kill().await;
    let waited = newcomer(mesh).await;
    let back = mesh.spawn_control();
    // The clock starts with the process, not when it says that it is ready.
    let sync = match &back {
        Ok(()) => in_sync(mesh).await,
        Err(_) => Ok(Duration::ZERO),
    };
    let ready = mesh.control_ready().await;
    let tally = load.stop().await;
    back?;
    ready?;
    waited?;
    anyhow::ensure!(tally.failed() == 0, "{} requests failed: {}", tally.failed(), tally.reasons());
    anyhow::ensure!(tally.good > u64::from(5 * RATE / SLACK), "only {} requests were answered", tally.good);
    Ok(format!("{} requests, in sync after {:.1?}", tally.good, sync?))
}

/// A proxy that starts while nobody can tell it what to do.
async fn newcomer(mesh: &mut Mesh) -> anyhow::Result<()> {
    let [a, b, c, _] = mesh.plan.gateway_ip.octets();
    let ip = Ipv4Addr::new(a, b, c, 200);
    mesh.start_gateway("newcomer", ip, &[])?;
    tokio::time::sleep(AWAY).await;
    let answer = http::get(&ready_url(ip)).await;
    let child = mesh.child("newcomer")?;
    let alive = child.pid().is_some();
    let words = child.last_words(5);
    child.kill().await;
    mesh.forget("newcomer");
    anyhow::ensure!(alive, "the newcomer ended: {words}");
    let answer = answer?;
    anyhow::ensure!(answer.status == 503, "the newcomer answers {} though it has no configuration", answer.status);
    let text = answer.text();
    let says_why = ["control", "xds", "certificate"].iter().any(|w| text.to_lowercase().contains(w));
    anyhow::ensure!(says_why, "the newcomer does not say why it is not ready: {text:?}");
    Ok(())
}

/// Waits until every proxy is connected and has taken all it was sent.
async fn in_sync(mesh: &Mesh) -> anyhow::Result<Duration> {
    let url = format!("http://{}/debug/syncz", mesh.plan.control_http());
    let proxies = mesh.proxies().len();
    within(IN_SYNC, "sync", async || {
        let answer = http::get(&url).await?.json()?;
        let rows = answer.as_array().map(Vec::as_slice).unwrap_or_default();
        anyhow::ensure!(rows.len() == proxies, "{} of {proxies} proxies are connected", rows.len());
        rows.iter().try_for_each(synced)
    })
    .await
}

/// A proxy has asked for what it needs, and taken the newest of all that it asked for.
fn synced(row: &Value) -> anyhow::Result<()> {
    let state = |ty: &str| row["types"][ty]["state"].as_str().unwrap_or("not asked for");
    let asked = row["types"].as_object().into_iter().flatten().map(|(ty, _)| ty.as_str());
    for ty in ["CDS", "EDS", "LDS", "RDS"].into_iter().chain(asked) {
        anyhow::ensure!(state(ty) == "SYNCED", "{ty} of {} is {}", row["proxy"], state(ty));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_proxy_that_has_asked_for_nothing_yet_is_not_in_sync() {
        let row = |rds: &str| {
            let fine = json!({"state": "SYNCED"});
            json!({"proxy": "web.shop", "types": {"CDS": fine, "EDS": fine, "LDS": fine, "RDS": {"state": rds}}})
        };
        assert!(synced(&row("SYNCED")).is_ok());
        assert_eq!(synced(&row("STALE")).unwrap_err().to_string(), "RDS of \"web.shop\" is STALE");
        // Neither sent nor acknowledged: the two are equal, and yet nothing is in force.
        let connected = json!({"proxy": "web.shop", "cluster_sent": "", "cluster_acked": "", "types": {}});
        assert!(synced(&connected).is_err());
        let refused = json!({"proxy": "web.shop", "types": {"CDS": {"state": "ERROR"}}});
        assert!(synced(&refused).is_err());
    }
}
