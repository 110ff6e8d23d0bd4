//! Releases under load: shares, cohorts and mirrors by VirtualService; pods that are replaced, scaled and killed.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::super::{Context, eventually};
use super::{PATIENCE, REACHES, Tally, Workload, get, joined, load, load_while, service, start};

pub(in super::super) async fn run(context: &Context<'_>) -> Result<()> {
    joined(context).await?;
    context.check("two versions and a client get ready", begin(context)).await?;
    let _ = context.check("a canary goes 100, 90/10, 50/50, 0/100 under load", canary(context)).await;
    let _ = context.check("a cohort by header", cohort(context)).await;
    let _ = context.check("a dark launch by mirror", mirror(context)).await;
    context.kubectl(&["delete", "virtualservice,destinationrule", "--all"]).await?;
    let _ = context.check("a rolling update loses no request", rolling_update(context)).await;
    let _ = context.check("scaling 1, 5, 1 loses no request", scale(context)).await;
    context.check("a pod that is killed takes only its own requests along", killed(context)).await
}

async fn begin(context: &Context<'_>) -> Result<()> {
    let v1 = Workload { app: "web", ..Workload::new("web-v1") };
    let v2 = Workload { app: "web", version: "v2", ..Workload::new("web-v2") };
    let client = Workload::new("client");
    let rule = "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: web}
spec:
  host: web
  subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]
---
";
    start(context, &[v1, v2, client], &format!("{}{rule}{}", service("web"), routes(100))).await
}

/// So much of the first version, in percent.
fn routes(first: u32) -> String {
    format!(
        "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: web}}
spec:
  hosts: [web]
  http:
  - route:
    - {{destination: {{host: web, subset: v1}}, weight: {first}}}
    - {{destination: {{host: web, subset: v2}}, weight: {}}}
",
        100 - first
    )
}

async fn canary(context: &Context<'_>) -> Result<()> {
    for first in [100, 90, 50, 0] {
        context.apply(&routes(first)).await?;
        // In force within a second of the API server's answer.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let tally =
            load(context, "client", &["-rate", "500", "-clients", "5", "-count", "1000", "http://web/"]).await?;
        tally.none_failed()?;
        let share = tally.share("web-v1");
        ensure!((share - f64::from(first)).abs() <= 2.0, "{share:.1} % instead of {first} % of {tally:?}");
    }
    // And while it changes.
    let words = ["-rate", "50", "-clients", "2", "-duration", "6s", "http://web/"];
    let tally = load_while(context, "client", &words, async {
        for first in [100, 90, 50, 0] {
            context.apply(&routes(first)).await?;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        Ok(())
    });
    tally.await?.none_failed()
}

async fn cohort(context: &Context<'_>) -> Result<()> {
    context
        .apply(
            "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web}
spec:
  hosts: [web]
  http:
  - match: [{headers: {x-cohort: {exact: internal}}}]
    route: [{destination: {host: web, subset: v2}}]
  - route: [{destination: {host: web, subset: v1}}]
",
        )
        .await?;
    for (headers, expected) in [(&["-header", "x-cohort: internal"][..], "web-v2"), (&[], "web-v1")] {
        eventually(REACHES, async || {
            let (status, body) = get(context, "client", &[headers, &["http://web/"]].concat()).await?;
            let seen: Value = serde_json::from_str(&body).with_context(|| format!("{status} {body}"))?;
            ensure!(seen["name"] == expected, "{seen}");
            Ok(())
        })
        .await?;
    }
    Ok(())
}

async fn mirror(context: &Context<'_>) -> Result<()> {
    context
        .apply(
            "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web}
spec:
  hosts: [web]
  http:
  - route: [{destination: {host: web, subset: v1}}]
    mirror: {host: web, subset: v2}
",
        )
        .await?;
    eventually(REACHES, async || {
        let tally = load(context, "client", &["-rate", "50", "-count", "10", "http://web/mirrored"]).await?;
        tally.none_failed()?;
        ensure!(tally.by.keys().all(|name| name == "web-v1"), "{tally:?}");
        let logs = context.kubectl(&["logs", "deployment/web-v2", "-c", "app"]).await?;
        let shadows = logs.lines().filter(|line| line.contains("/mirrored")).count();
        ensure!(shadows >= 10, "{shadows} mirrored requests arrived");
        Ok(())
    })
    .await
}

/// Load at 25 requests a second of each client while something happens.
async fn under_load(
    context: &Context<'_>,
    seconds: &str,
    meanwhile: impl Future<Output = Result<()>>,
) -> Result<Tally> {
    let words = ["-rate", "25", "-clients", "4", "-duration", seconds, "http://web/"];
    load_while(context, "client", &words, meanwhile).await
}

async fn rolling_update(context: &Context<'_>) -> Result<()> {
    let tally = under_load(context, "25s", async {
        for name in ["web-v1", "web-v2"] {
            context.kubectl(&["rollout", "restart", &format!("deployment/{name}")]).await?;
            context.rolled_out(name, PATIENCE).await?;
        }
        Ok(())
    });
    tally.await?.none_failed()
}

async fn scale(context: &Context<'_>) -> Result<()> {
    let tally = under_load(context, "25s", async {
        for replicas in ["5", "1"] {
            context.kubectl(&["scale", "deployment/web-v1", &format!("--replicas={replicas}")]).await?;
            context.rolled_out("web-v1", PATIENCE).await?;
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
        Ok(())
    });
    tally.await?.none_failed()
}

async fn killed(context: &Context<'_>) -> Result<()> {
    let tally = under_load(context, "12s", async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        let words = ["delete", "pod", "-l", "app=web,version=v2", "--grace-period=0", "--force"];
        context.kubectl(&words).await.map(drop)
    });
    let tally = tally.await?;
    // What was in flight on it: of each client one request at most, and that is tried again elsewhere where it may be.
    ensure!(tally.failed <= 4, "{tally:?}");
    context.rolled_out("web-v2", PATIENCE).await
}
