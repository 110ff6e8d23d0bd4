//! What scenarios of several clusters and of failures stand on: parts that come back, networks that are joined and parted.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use super::{Context, eventually};
use crate::cluster::Cluster;

const CLIENT: &str = "
apiVersion: v1
kind: Pod
metadata: {name: end}
spec:
  terminationGracePeriodSeconds: 2
  containers:
  - name: end
    image: localhost/mesh/probe:1
    args: [serve]
";

pub(super) async fn parts(context: &Context<'_>) -> Result<()> {
    if !context.is_near() {
        return Ok(());
    }
    // The kubelet last: it ends by itself when it does not find containerd.
    for part in ["kube-apiserver", "coredns", "containerd", "kubelet"] {
        let _ = context
            .check(&format!("{part} is started again after its death, and that is told"), dies(context, part))
            .await;
    }
    context.check("pods start afterwards", client(context.cluster(), &context.namespace)).await
}

async fn dies(context: &Context<'_>, part: &str) -> Result<()> {
    let cluster = context.cluster();
    cluster.health()?;
    // The name that the kernel keeps of a program has 15 bytes.
    let short = part.get(..15).unwrap_or(part);
    let kill = format!("for p in /proc/[0-9]*; do [ \"$(cat $p/comm)\" != {short} ] || kill -9 ${{p#/proc/}}; done");
    cluster.node_exec(&["sh", "-c", &kill]).await?;
    eventually(Duration::from_secs(10), async || match cluster.health() {
        Ok(()) => bail!("nothing is told of it"),
        Err(told) => {
            let told = told.to_string();
            ensure!(told.contains(&format!("{part} ended")), "told instead: {told}");
            Ok(())
        }
    })
    .await?;
    eventually(Duration::from_secs(30), async || {
        cluster.node_exec(&["ctr", "version"]).await?;
        cluster.kubectl(&["get", "--raw", "/readyz"]).await
    })
    .await
    .map(drop)
}

/// A pod that serves and asks; its address.
async fn client(cluster: &Cluster, namespace: &str) -> Result<()> {
    // The default ServiceAccount of a new namespace comes a moment later.
    eventually(Duration::from_secs(30), async || {
        cluster.kubectl_with(&["-n", namespace, "apply", "-f", "-"], CLIENT).await
    })
    .await?;
    cluster.kubectl(&["-n", namespace, "wait", "--for=condition=Ready", "pod/end", "--timeout=60s"]).await.map(drop)
}

pub(super) async fn two(context: &Context<'_>) -> Result<()> {
    if !context.is_near() {
        return Ok(());
    }
    let (first, namespace) = (context.cluster(), context.namespace.as_str());
    let second = context.check("a second cluster comes up beside the first", context.second_cluster()).await?;
    let pods = async {
        second.kubectl(&["create", "namespace", namespace]).await?;
        client(first, namespace).await?;
        client(second, namespace).await
    };
    context.check("pods on both", pods).await?;
    let _ = context.check("apart: pods do not reach each other", reach(first, second, namespace, false)).await;
    let joined = async {
        first.join_networks(second, true).await?;
        reach(first, second, namespace, true).await?;
        reach(second, first, namespace, true).await
    };
    let _ = context.check("joined: pods see each other's own addresses", joined).await;
    let parted = async {
        first.join_networks(second, false).await?;
        reach(first, second, namespace, false).await
    };
    let _ = context.check("parted again", parted).await;
    second.kubectl(&["delete", "namespace", namespace, "--wait=false"]).await.map(drop)
}

async fn reach(from: &Cluster, to: &Cluster, namespace: &str, wanted: bool) -> Result<()> {
    let address = async |cluster: &Cluster| -> Result<String> {
        let pod = cluster.json(&["-n", namespace, "get", "pod", "end"]).await?;
        pod["status"]["podIP"].as_str().map(str::to_owned).context("the pod has no address")
    };
    let (source, url) = (address(from).await?, format!("http://{}:8080/", address(to).await?));
    let words = ["-n", namespace, "exec", "end", "--", "/usr/local/bin/probe", "get", "-timeout", "2s", &url];
    match (from.kubectl(&words).await, wanted) {
        (Ok(answer), true) => {
            ensure!(answer.contains(&format!("\"peer\":\"{source}:")), "not from {source}: {answer}");
            Ok(())
        }
        (Err(_), false) => Ok(()),
        (Ok(answer), false) => bail!("{url} answers: {answer}"),
        (Err(error), true) => Err(error),
    }
}
