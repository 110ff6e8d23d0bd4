//! The control plane dies, is rolled and away; the API server starts anew: traffic goes on, and state converges.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use super::super::{Context, eventually};
use super::{PATIENCE, ROOT, Workload, answers, by_job, get, joined, load_while, restart_api_server, service, start};

pub(in super::super) async fn run(context: &Context<'_>) -> Result<()> {
    joined(context).await?;
    context.check("a client and a server get ready", begin(context)).await?;
    let _ = context.check("the control plane is killed: no request fails", killed(context)).await;
    let _ = context.check("two replicas are rolled: no request fails", rolled(context)).await;
    let _ = context.check("while it is away requests go on, and a new pod waits", away(context)).await;
    if context.is_near() {
        let _ = context.check("the API server starts anew: changes arrive afterwards", api_server(context)).await;
    }
    context.check("roots come back where they were deleted", roots(context)).await
}

async fn begin(context: &Context<'_>) -> Result<()> {
    start(context, &[Workload::new("client"), Workload::new("server")], &service("server")).await?;
    answers(context, "client", &["http://server/"], 200).await.map(drop)
}

async fn istiod(context: &Context<'_>, args: &[&str]) -> Result<String> {
    context.cluster().kubectl(&[&["-n", ROOT], args].concat()).await
}

async fn is_ready(context: &Context<'_>) -> Result<()> {
    istiod(context, &["rollout", "status", "deployment/istiod", "--timeout=90s"]).await.map(drop)
}

async fn while_asking(context: &Context<'_>, seconds: &str, happens: impl Future<Output = Result<()>>) -> Result<()> {
    let words = ["-rate", "25", "-clients", "2", "-duration", seconds, "http://server/"];
    load_while(context, "client", &words, happens).await?.none_failed()
}

async fn killed(context: &Context<'_>) -> Result<()> {
    while_asking(context, "12s", async {
        istiod(context, &["delete", "pod", "-l", "app=istiod", "--grace-period=0", "--force"]).await?;
        is_ready(context).await
    })
    .await
}

async fn rolled(context: &Context<'_>) -> Result<()> {
    istiod(context, &["scale", "deployment/istiod", "--replicas=2"]).await?;
    is_ready(context).await?;
    let holder = ["get", "lease", "istio-leader", "-o", "jsonpath={.spec.holderIdentity}"];
    let before = istiod(context, &holder).await?;
    while_asking(context, "20s", async {
        istiod(context, &["rollout", "restart", "deployment/istiod"]).await?;
        is_ready(context).await
    })
    .await?;
    eventually(Duration::from_secs(30), async || {
        let now = istiod(context, &holder).await?;
        ensure!(now != before && !now.is_empty(), "the leader is {now}, as before");
        Ok(())
    })
    .await?;
    istiod(context, &["scale", "deployment/istiod", "--replicas=1"]).await?;
    is_ready(context).await
}

async fn away(context: &Context<'_>) -> Result<()> {
    istiod(context, &["scale", "deployment/istiod", "--replicas=0"]).await?;
    istiod(context, &["wait", "--for=delete", "pod", "-l", "app=istiod", "--timeout=60s"]).await?;
    let result = while_away(context).await;
    // Whatever came of it, others need it.
    istiod(context, &["scale", "deployment/istiod", "--replicas=1"]).await?;
    is_ready(context).await?;
    result?;
    context.rolled_out("late", PATIENCE).await
}

async fn while_away(context: &Context<'_>) -> Result<()> {
    while_asking(context, "5s", async { Ok(()) }).await?;
    // The webhook is away, too: nobody may slip in without a proxy.
    let late = Workload::new("late");
    context.apply(&late.manifest()).await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let pods = context.json(&["get", "pods", "-l", "app=late"]).await?;
    let none = pods["items"].as_array().is_none_or(Vec::is_empty);
    ensure!(none, "a pod came without anybody to inject it: {pods}");
    let sets = context.kubectl(&["describe", "replicaset", "-l", "app=late"]).await?;
    ensure!(sets.contains("sidecar-injector") || sets.contains("istiod"), "nobody says why: {sets}");
    Ok(())
}

async fn api_server(context: &Context<'_>) -> Result<()> {
    by_job(context, "asker", "12s", "http://server/", restart_api_server(context)).await?.none_failed()?;
    let fault = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: server}
spec: {hosts: [server], http: [{fault: {abort: {httpStatus: 418, percentage: {value: 100}}}, route: [{destination: {host: server}}]}]}
";
    eventually(Duration::from_secs(30), async || context.apply(fault).await).await?;
    eventually(Duration::from_secs(30), async || {
        let (status, body) = get(context, "client", &["http://server/"]).await?;
        ensure!(status == 418, "{status} {body}");
        Ok(())
    })
    .await?;
    context.kubectl(&["delete", "virtualservice", "server"]).await?;
    answers(context, "client", &["http://server/"], 200).await.map(drop)
}

async fn roots(context: &Context<'_>) -> Result<()> {
    context.kubectl(&["delete", "configmap", "istio-ca-root-cert"]).await?;
    eventually(Duration::from_secs(30), async || {
        let map = context.json(&["get", "configmap", "istio-ca-root-cert"]).await?;
        let pem = map["data"]["root-cert.pem"].as_str().context("no certificate in it")?;
        if pem.contains("BEGIN CERTIFICATE") {
            return Ok(());
        }
        bail!("{pem:?}")
    })
    .await
}
