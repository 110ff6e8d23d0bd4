//! Shifting traffic between versions while requests flow.

use std::time::Duration;

use super::{EFFECTIVE, RATE, SLACK, Verdict, copy_sample, journey, stop, within};
use crate::demo::load::Load;
use crate::demo::mesh::Mesh;

const FILE: &str = "catalog-route.yaml";
/// Requests over which the split is counted.
const SAMPLE: u64 = 5000;

/// The sample that routes by header.
pub async fn by_header(mesh: &Mesh) -> Verdict {
    copy_sample(mesh, "header-v2.yaml", FILE)?;
    let result = by_header_while_there(mesh).await;
    copy_sample(mesh, "canary-100-0.yaml", FILE)?;
    result
}

async fn by_header_while_there(mesh: &Mesh) -> Verdict {
    let version = async |user| {
        let (_, journey) = journey(mesh, user).await?;
        anyhow::Ok(stop(&journey, "catalog").map(|c| c.version.clone()).unwrap_or_default())
    };
    let took = within(EFFECTIVE, "version 2", async || {
        let found = version(Some("me")).await?;
        anyhow::ensure!(found == "v2", "the user was answered by {found:?}");
        Ok(())
    })
    .await?;
    for _ in 0..20 {
        let found = version(Some("another")).await?;
        anyhow::ensure!(found == "v1", "another user was answered by {found}");
    }
    Ok(format!("after {took:.0?}"))
}

/// 100/0, 90/10, 0/100, and back.
pub async fn shift(mesh: &Mesh) -> Verdict {
    let load = Load::start(mesh.plan.page(), RATE);
    let result = shift_under(mesh, &load).await;
    let tally = load.stop().await;
    copy_sample(mesh, "canary-100-0.yaml", FILE)?;
    let remark = result?;
    anyhow::ensure!(tally.failed() == 0, "{} requests failed: {}", tally.failed(), tally.reasons());
    Ok(remark)
}

async fn shift_under(mesh: &Mesh, load: &Load) -> Verdict {
    let share = || {
        let tally = load.tally();
        let v2 = tally.versions.get("v2").copied().unwrap_or(0);
        (v2, tally.good + tally.failed())
    };
    // What comes before the tally is reset still counts as failed if it fails.
    let fine = || {
        let tally = load.tally();
        anyhow::ensure!(tally.failed() == 0, "{} requests failed: {}", tally.failed(), tally.reasons());
        Ok(())
    };
    within(SLACK * Duration::from_secs(10), "version 1", async || {
        let found = stop(&journey(mesh, None).await?.1, "catalog").map(|c| c.version.clone());
        anyhow::ensure!(found.as_deref() == Some("v1"), "answered by {found:?}");
        Ok(())
    })
    .await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    fine()?;
    load.reset();
    copy_sample(mesh, "canary-90-10.yaml", FILE)?;
    let first = within(EFFECTIVE, "a request to version 2", async || {
        anyhow::ensure!(share().0 > 0, "none of {} requests went there", share().1);
        Ok(())
    })
    .await?;
    fine()?;
    load.reset();
    let counting = Duration::from_secs(SAMPLE / u64::from(RATE)) * 4 * SLACK;
    within(counting, "enough requests", async || {
        anyhow::ensure!(share().1 >= SAMPLE, "{} requests", share().1);
        Ok(())
    })
    .await?;
    let (v2, of) = share();
    let percent = 100.0 * precise(v2) / precise(of);
    anyhow::ensure!((percent - 10.0).abs() <= 2.0, "{percent:.1} % of {of} requests went to version 2, not 10 %");
    fine()?;
    copy_sample(mesh, "canary-0-100.yaml", FILE)?;
    tokio::time::sleep(EFFECTIVE).await;
    fine()?;
    load.reset();
    tokio::time::sleep(Duration::from_secs(3)).await;
    let (v2, of) = share();
    anyhow::ensure!(v2 == of && of > 0, "{v2} of {of} requests went to version 2 {EFFECTIVE:?} after the save");
    fine()?;
    Ok(format!("first after {first:.0?}, {percent:.1} % of {SAMPLE}"))
}

fn precise(n: u64) -> f64 {
    u32::try_from(n).map_or(f64::MAX, f64::from)
}
