//! The control plane goes away and comes back.

use std::net::Ipv4Addr;
use std::time::Duration;

use super::{RATE, SLACK, Verdict, within};
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
    let back = mesh.start_control().await;
    let sync = match &back {
        Ok(()) => in_sync(mesh).await,
        Err(_) => Ok(Duration::ZERO),
    };
    let tally = load.stop().await;
    back?;
    waited?;
    anyhow::ensure!(tally.failed() == 0, "{} requests failed: {}", tally.failed(), tally.reasons());
    anyhow::ensure!(tally.good > u64::from(RATE) * 5, "only {} requests were answered", tally.good);
    Ok(format!("{} requests, in sync after {:.1?}", tally.good, sync?))
}

/// A proxy that starts while nobody can tell it what to do.
async fn newcomer(mesh: &mut Mesh) -> anyhow::Result<()> {
    let [a, b, c, _] = mesh.plan.gateway_ip.octets();
    let ip = Ipv4Addr::new(a, b, c, 200);
    mesh.start_gateway("newcomer", ip)?;
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
    within(5 * SLACK * Duration::from_secs(1), "sync", async || {
        let answer = http::get(&url).await?.json()?;
        let rows = answer.as_array().cloned().unwrap_or_default();
        anyhow::ensure!(rows.len() == proxies, "{} of {proxies} proxies are connected", rows.len());
        for row in &rows {
            for kind in ["cluster", "listener", "route", "endpoint"] {
                let of = |what: &str| {
                    row.get(format!("{kind}_{what}")).and_then(|v| v.as_str()).unwrap_or_default().to_owned()
                };
                anyhow::ensure!(of("sent") == of("acked"), "{kind} of {} is not acknowledged", row["proxy"]);
            }
        }
        Ok(())
    })
    .await
}
