//! What docs/reference/install.md and docs/getting-started.md say of a cluster, run as it is written there; and a mesh in a
//! namespace of its own.
//!
//! These scenarios begin and end without a mesh, so they come before those that share one.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use tokio::process::Command;

use super::mesh::{PATIENCE, REACHES, Workload, get, meshctl, service};
use super::{Context, eventually};

const PAGE: &str = include_str!("../../../docs/reference/install.md");
const STARTED: &str = include_str!("../../../docs/getting-started.md");
/// Images of the page, and those that the nodes know.
const IMAGES: [(&str, &str); 2] = [("registry.example/mesh", "localhost/mesh"), ("1.0.0", "dev")];
/// A namespace for the control plane that is not the usual one.
const ELSEWHERE: &str = "mesh-system";

/// The commands of the page.
pub(super) async fn docs(context: &Context<'_>) -> Result<()> {
    context.check("the cluster has no mesh", cleared(context)).await?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("mesh.yaml");
    let settings = blocks(PAGE, "yaml mesh.yaml").next().context("the page has no mesh.yaml")?;
    std::fs::write(&file, with_images(settings))?;
    let file = file.to_str().context("a folder without a name")?.to_owned();
    let lines: Vec<&str> = blocks(PAGE, "sh cluster").flat_map(str::lines).collect();
    ensure!(!lines.is_empty(), "the page has no commands for a cluster");
    for line in lines {
        context.check(line, command(context, line, &file)).await?;
    }
    context.check("nothing of it is left", nothing_left(context)).await
}

/// The commands of the guide, from an empty cluster to an empty cluster, as a shell runs them.
pub(super) async fn started(context: &Context<'_>) -> Result<()> {
    context.check("the cluster has no mesh", cleared(context)).await?;
    let programs = tempfile::tempdir()?;
    let kubectl = context.cluster().kubectl_program();
    std::os::unix::fs::symlink(kubectl, programs.path().join("kubectl")).context("kubectl")?;
    let binaries = crate::python::binaries()?;
    let path = std::env::var("PATH").unwrap_or_default();
    let path = format!("{}:{}:{path}", programs.path().display(), binaries.display());
    let lines: Vec<&str> = blocks(STARTED, "sh cluster").flat_map(str::lines).collect();
    ensure!(lines.len() > 10, "the guide has only these commands for a cluster: {lines:?}");
    for line in lines {
        let mut shell = Command::new("sh");
        shell.args(["-c", line]).current_dir(crate::python::folder("..")).stdin(Stdio::null());
        shell.env("PATH", &path).env("KUBECONFIG", context.cluster().kubeconfig());
        let run = async {
            let done = shell.output().await?;
            let (out, err) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
            ensure!(done.status.success(), "{}\n{out}{err}", done.status);
            Ok(())
        };
        context.check(line, run).await?;
    }
    context.check("nothing of it is left", nothing_left(context)).await
}

/// A mesh whose control plane and root namespace are not `istio-system`.
pub(super) async fn elsewhere(context: &Context<'_>) -> Result<()> {
    context.check("the cluster has no mesh", cleared(context)).await?;
    let result = mesh_elsewhere(context).await;
    let purge = ["uninstall", "--purge", "-y", "-i", ELSEWHERE];
    context.check("it is removed", meshctl(context, &purge)).await?;
    context.check("nothing of it is left", nothing_left(context)).await?;
    result
}

async fn mesh_elsewhere(context: &Context<'_>) -> Result<()> {
    let place = format!("-i={ELSEWHERE}");
    let set = ["--set", "profile=minimal", "--set", "hub=localhost/mesh", "--set", "tag=dev"];
    let install = [["install", "-y", &place].as_slice(), &set].concat();
    context.check("the control plane comes up", meshctl(context, &install)).await?;
    context.check("pods are injected and ready", pods(context)).await?;
    context.check("requests carry the identity of the caller", identity(context)).await?;
    context.check("a policy of the root namespace holds for all", root_policy(context)).await
}

async fn pods(context: &Context<'_>) -> Result<()> {
    context.cluster().kubectl(&["label", "namespace", &context.namespace, "istio-injection=enabled"]).await?;
    let all = [Workload::new("client"), Workload::new("server")];
    let manifests: String = all.iter().map(Workload::manifest).collect();
    // The webhook is called a moment after the label.
    context.apply(&format!("{manifests}{}", service("server"))).await?;
    for workload in all {
        context.rolled_out(workload.name, PATIENCE).await?;
    }
    let pods = context.json(&["get", "pods", "-l", "app=server"]).await?.to_string();
    ensure!(pods.contains("istio-proxy"), "there is no proxy in {pods}");
    ensure!(
        pods.contains(&format!("istiod.{ELSEWHERE}.svc:15012")),
        "it looks elsewhere for the control plane: {pods}"
    );
    Ok(())
}

async fn identity(context: &Context<'_>) -> Result<()> {
    let wanted = format!("spiffe://cluster.local/ns/{}/sa/client", context.namespace);
    eventually(REACHES, async || {
        let (status, body) = get(context, "client", &["http://server/"]).await?;
        ensure!(status == 200 && body.contains(&wanted), "{status} {body}");
        Ok(())
    })
    .await
}

async fn root_policy(context: &Context<'_>) -> Result<()> {
    let policy = format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: closed, namespace: {ELSEWHERE}}}\n\
         spec: {{action: DENY, rules: [{{to: [{{operation: {{paths: [/closed]}}}}]}}]}}\n"
    );
    context.cluster().apply(&policy).await?;
    eventually(REACHES, async || {
        let (status, body) = get(context, "client", &["http://server/closed"]).await?;
        ensure!(status == 403, "{status} {body}");
        Ok(())
    })
    .await
}

/// Takes away the mesh of an earlier run. One of somebody's own cluster is not ours to take.
async fn cleared(context: &Context<'_>) -> Result<()> {
    let there = context.cluster().kubectl(&["get", "deployments", "-A", "-l", "app=istiod", "-o", "name"]).await?;
    if there.trim().is_empty() {
        return Ok(());
    }
    if !context.is_near() {
        bail!("a mesh is installed already: {}; this removes meshes, so use a cluster without one", there.trim());
    }
    meshctl(context, &["uninstall", "--purge", "-y"]).await.map(drop)
}

async fn command(context: &Context<'_>, line: &str, file: &str) -> Result<()> {
    let line = with_images(line);
    let mut words = line.split(' ').map(|word| if word == "mesh.yaml" { file } else { word });
    ensure!(words.next() == Some("meshctl"), "only meshctl is run");
    let said = meshctl(context, &words.collect::<Vec<_>>()).await?;
    ensure!(!line.contains(" diff ") || said.is_empty(), "an installation differs from itself:\n{said}");
    Ok(())
}

/// What `uninstall --purge` promises.
async fn nothing_left(context: &Context<'_>) -> Result<()> {
    eventually(Duration::from_secs(30), async || {
        const KINDS: &str = "crd,mutatingwebhookconfigurations,validatingwebhookconfigurations,clusterroles,\
                             clusterrolebindings,namespaces,configmaps,secrets,leases,deployments,services";
        let all = context.cluster().kubectl(&["get", KINDS, "-A", "-o", "name"]).await?;
        let of_mesh = |name: &&str| {
            let name = name.rsplit('/').next().unwrap_or(name);
            name.contains("istio") || name == ELSEWHERE
        };
        let left: Vec<&str> = all.lines().filter(of_mesh).collect();
        ensure!(left.is_empty(), "{}", left.join(", "));
        Ok(())
    })
    .await
}

/// Blocks of a page with these words behind their fence.
fn blocks(page: &'static str, info: &str) -> impl Iterator<Item = &'static str> {
    let fence = format!("```{info}\n");
    let starts: Vec<usize> = page.match_indices(&fence).map(|(at, _)| at + fence.len()).collect();
    starts.into_iter().filter_map(move |at| page.get(at..)?.split("```").next())
}

fn with_images(text: &str) -> String {
    IMAGES.iter().fold(text.to_owned(), |text, (of_page, known)| text.replace(of_page, known))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_of_the_page_is_run_somewhere() {
        let shown = PAGE.lines().filter(|line| line.starts_with("meshctl ")).count();
        let with_cluster = blocks(PAGE, "sh cluster").flat_map(str::lines).count();
        let without = blocks(PAGE, "sh").flat_map(str::lines).count();
        assert_eq!(shown, with_cluster + without, "commands without a cluster are run by mesh-cli/tests/install.rs");
        assert_eq!(blocks(PAGE, "yaml mesh.yaml").count(), 1);
    }
}
