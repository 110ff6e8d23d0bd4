//! The network and the history of the API server fail around the control plane: traffic goes on, and state converges.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::super::{Context, eventually};
use super::{ROOT, Workload, address, answers, by_job, get, joined, pod, restart_api_server, service, start};

/// How long the control plane may take to be itself again: watches and streams notice by a packet or keepalive.
const RECOVERS: Duration = Duration::from_secs(60);

pub(in super::super) async fn run(context: &Context<'_>) -> Result<()> {
    if !context.is_near() {
        return Ok(());
    }
    joined(context).await?;
    context.check("a client and a server get ready", begin(context)).await?;
    let _ =
        context.check("parted from the API server: no request fails, changes arrive afterwards", no_api(context)).await;
    let _ = context
        .check("parted from the proxies: likewise, and a new pod says what it waits for", no_proxies(context))
        .await;
    context.check("history is gone: no request fails, and what went meanwhile is gone", compacted(context)).await
}

async fn begin(context: &Context<'_>) -> Result<()> {
    start(context, &[Workload::new("client"), Workload::new("server")], &service("server")).await?;
    context.apply(&change("server", "old")).await?;
    answers(context, "client", &["-header", "x-change: old", "http://server/"], 418).await.map(drop)
}

/// A change that is seen by those only who ask with its name.
fn change(host: &str, name: &str) -> String {
    format!(
        "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: {host}}}
spec:
  hosts: [{host}]
  http:
  - match: [{{headers: {{x-change: {{exact: {name}}}}}}}]
    fault: {{abort: {{httpStatus: 418, percentage: {{value: 100}}}}}}
    route: [{{destination: {{host: {host}}}}}]
  - route: [{{destination: {{host: {host}}}}}]
"
    )
}

/// Waits until a change is in force.
async fn arrives(context: &Context<'_>, name: &str) -> Result<()> {
    let header = format!("x-change: {name}");
    eventually(RECOVERS, async || {
        let (status, body) = get(context, "client", &["-header", &header, "http://server/"]).await?;
        ensure!(status == 418, "the change {name} is not in force: {status} {body}");
        Ok(())
    })
    .await
}

/// A part of the network that is taken away in the node, until it is healed.
struct Parted<'a> {
    context: &'a Context<'a>,
}

const TABLE: &str = "inet faults";

impl<'a> Parted<'a> {
    /// Drops packets of an address to a port, and their answers; of connections that stand, too.
    async fn new(context: &'a Context<'a>, address: &str, (own, port): (bool, u16)) -> Result<Self> {
        // Whose port it is: of that address, or of those it calls.
        let (there, back) = match own {
            true => (format!("ip daddr {address} tcp dport {port}"), format!("ip saddr {address} tcp sport {port}")),
            false => (format!("ip saddr {address} tcp dport {port}"), format!("ip daddr {address} tcp sport {port}")),
        };
        let chains: String = ["input", "output", "forward"]
            .map(|hook| {
                format!(
                    "add chain {TABLE} {hook} {{ type filter hook {hook} priority -10 ; }} ; \
                     add rule {TABLE} {hook} {there} drop ; add rule {TABLE} {hook} {back} drop ; "
                )
            })
            .concat();
        // What a run that broke off left is replaced.
        let fresh = format!("add table {TABLE} ; delete table {TABLE} ; add table {TABLE} ; {chains}");
        context.cluster().node_exec(&["nft", &fresh]).await?;
        Ok(Self { context })
    }

    async fn heal(self) -> Result<()> {
        self.context.cluster().node_exec(&["nft", &format!("delete table {TABLE}")]).await.map(drop)
    }
}

async fn no_api(context: &Context<'_>) -> Result<()> {
    let control = address(context, ROOT, "app=istiod").await?;
    by_job(context, "without-api", "30s", "http://server/", async {
        let parted = Parted::new(context, &control, (false, 6443)).await?;
        let result = async {
            context.apply(&change("server", "without-api")).await?;
            tokio::time::sleep(Duration::from_secs(8)).await;
            let (status, _) = get(context, "client", &["-header", "x-change: without-api", "http://server/"]).await?;
            ensure!(status == 200, "the change is in force: nothing was parted");
            Ok(())
        };
        let result = result.await;
        parted.heal().await?;
        result?;
        arrives(context, "without-api").await
    })
    .await?
    .none_failed()
}

async fn no_proxies(context: &Context<'_>) -> Result<()> {
    let control = address(context, ROOT, "app=istiod").await?;
    by_job(context, "without-control", "30s", "http://server/", async {
        let parted = Parted::new(context, &control, (true, 15012)).await?;
        let result = async {
            context.apply(&change("server", "without-control")).await?;
            context.apply(&Workload::new("late").manifest()).await?;
            eventually(Duration::from_secs(20), async || {
                let log = context.kubectl(&["logs", "-l", "app=late", "-c", "istio-proxy", "--tail=20"]).await?;
                ensure!(log.contains("istiod.istio-system.svc:15012"), "its log does not say what it waits for: {log}");
                let events = context.kubectl(&["get", "events", "-o", "wide"]).await?;
                let told =
                    events.lines().find(|line| line.contains("pod/late") && line.contains("Startup probe failed"));
                told.with_context(|| format!("no event tells of it: {events}")).map(drop)
            })
            .await?;
            let late = pod(context, &context.namespace, "app=late").await?;
            let conditions = late["status"]["conditions"].as_array().cloned().unwrap_or_default();
            let ready = conditions.iter().find(|c| c["type"] == "Ready").context("no condition Ready")?;
            ensure!(ready["status"] == "False", "a pod without certificate is ready: {late}");
            let (status, _) =
                get(context, "client", &["-header", "x-change: without-control", "http://server/"]).await?;
            ensure!(status == 200, "the change is in force: nothing was parted");
            Ok(())
        };
        let result = result.await;
        parted.heal().await?;
        result?;
        arrives(context, "without-control").await
    })
    .await?
    .none_failed()?;
    context.rolled_out("late", RECOVERS).await
}

/// What the API server has of one kind.
const KIND: &str = "/apis/networking.istio.io/v1/virtualservices";

/// Makes etcd forget all history; by its own API, which its clients without gRPC have, too.
const COMPACT: &str = r#"
import json, urllib.request
def ask(what, words):
    request = urllib.request.Request("http://127.0.0.1:2379/v3/kv/" + what, json.dumps(words).encode())
    return json.load(urllib.request.urlopen(request, timeout=10))
now = ask("range", {"key": "Lw=="})["header"]["revision"]
ask("compaction", {"revision": now, "physical": True})
print(now)
"#;

async fn compacted(context: &Context<'_>) -> Result<()> {
    let control = address(context, ROOT, "app=istiod").await?;
    let rule = change("server", "gone");
    context.apply(&rule).await?;
    arrives(context, "gone").await?;
    let list = context.cluster().kubectl(&["get", "--raw", &format!("{KIND}?limit=1")]).await?;
    let list: Value = serde_json::from_str(&list)?;
    let seen = list["metadata"]["resourceVersion"].as_str().context("a list without version")?.to_owned();
    by_job(context, "without-history", "45s", "http://server/", async {
        let parted = Parted::new(context, &control, (false, 6443)).await?;
        let result = async {
            context.kubectl(&["delete", "virtualservice", "server"]).await?;
            context.apply(&change("client", "new")).await?;
            context.cluster().node_exec(&["python3", "-c", COMPACT]).await?;
            // Its memory is history as well.
            restart_api_server(context).await?;
            expired(context, &seen).await
        };
        let result = result.await;
        parted.heal().await?;
        result?;
        eventually(RECOVERS, async || {
            let (status, body) = get(context, "client", &["-header", "x-change: gone", "http://server/"]).await?;
            ensure!(status == 200, "what was deleted meanwhile is in force: {status} {body}");
            Ok(())
        })
        .await
    })
    .await?
    .none_failed()
}

/// Nobody can go on from a version of the past.
async fn expired(context: &Context<'_>, version: &str) -> Result<()> {
    let path = format!("{KIND}?watch=1&timeoutSeconds=2&resourceVersion={version}");
    match context.cluster().kubectl(&["get", "--raw", &path]).await {
        Ok(said) if said.contains("\"code\":410") => Ok(()),
        Err(error) if format!("{error:#}").contains("too old resource version") => Ok(()),
        Ok(said) => bail!("history is still there: {said}"),
        Err(error) => Err(error),
    }
}
