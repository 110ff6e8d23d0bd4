//! A cluster that somebody has already: it is checked, and otherwise left alone.

use std::path::PathBuf;

use anyhow::{Context, Result};

use super::{Cluster, Provided, Settings, programs};

pub(super) async fn up(settings: &Settings) -> Result<Cluster> {
    let file = settings.kubeconfig.clone().or_else(|| std::env::var_os("KUBECONFIG").map(PathBuf::from));
    let file = file.context("which cluster? name its file: --kubeconfig FILE, or KUBECONFIG in the environment")?;
    let kubeconfig = file.canonicalize().with_context(|| format!("there is no kubeconfig {}", file.display()))?;
    let kubectl = programs::some_kubectl(settings.progress).await?;
    let provided = Provided::Given;
    let cluster = Cluster { name: settings.name.clone(), kubeconfig, kubectl, provided, found: true };
    let version = cluster.kubectl(&["get", "--raw", "/version", "--request-timeout=10s"]).await;
    version.with_context(|| format!("the cluster of {} does not answer", cluster.kubeconfig.display()))?;
    Ok(cluster)
}
