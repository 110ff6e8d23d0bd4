//! Clusters of kind: Kubernetes in containers of docker.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use tokio::process::Command;

use super::kubectl::{on_path, run};
use super::{Cluster, Provided, Settings, programs, target};

pub(super) async fn up(settings: &Settings) -> Result<Cluster> {
    prerequisites().await?;
    let name = &settings.name;
    let kubeconfig = kubeconfig(name)?;
    if let Some(folder) = kubeconfig.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    let file = kubeconfig.display().to_string();
    let found = kind(&["get", "clusters"]).await?.lines().any(|line| line.trim() == name);
    if found {
        settings.progress.say(&format!("the kind cluster {name} is up already"));
        kind(&["export", "kubeconfig", "--name", name, "--kubeconfig", &file]).await?;
    } else {
        settings.progress.step(&format!("kind makes {name}"));
        kind(&["create", "cluster", "--name", name, "--kubeconfig", &file, "--wait", "120s"]).await?;
    }
    let kubectl = programs::some_kubectl(settings.progress).await?;
    Ok(Cluster { name: name.clone(), kubeconfig, kubectl, provided: Provided::Kind, found })
}

pub(super) async fn down(name: &str) -> Result<()> {
    prerequisites().await?;
    let kubeconfig = kubeconfig(name)?;
    kind(&["delete", "cluster", "--name", name, "--kubeconfig", &kubeconfig.display().to_string()]).await?;
    for gone in [std::fs::remove_file(&kubeconfig), std::fs::remove_dir_all(kubeconfig.with_extension("cache"))] {
        match gone {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(e).context("cannot remove the kubeconfig");
            }
            _ => {}
        }
    }
    Ok(())
}

pub(super) async fn import_image(name: &str, archive: &Path) -> Result<()> {
    kind(&["load", "image-archive", &archive.display().to_string(), "--name", name]).await.map(drop)
}

pub(super) async fn node_exec(name: &str, words: &[&str]) -> Result<String> {
    let mut command = Command::new("docker");
    command.arg("exec").arg(format!("{name}-control-plane")).args(words);
    run(command, &format!("{} on the node of {name}", words.join(" ")), b"").await
}

fn kubeconfig(name: &str) -> Result<PathBuf> {
    Ok(target()?.join("clusters/kind").join(format!("{name}.kubeconfig")))
}

async fn kind(words: &[&str]) -> Result<String> {
    let mut command = Command::new("kind");
    command.args(words);
    run(command, &format!("kind {}", words.join(" ")), b"").await
}

async fn prerequisites() -> Result<()> {
    let missing: Vec<&str> = ["docker", "kind"].into_iter().filter(|p| on_path(p).is_none()).collect();
    if !missing.is_empty() {
        bail!(
            "the provider kind needs docker and kind; not installed: {}. Install them, or use the provider local, which \
             needs neither",
            missing.join(" and ")
        );
    }
    let mut command = Command::new("docker");
    command.arg("version");
    let answer = run(command, "docker version", b"").await;
    answer.context("docker is installed but does not answer: start it, or use the provider local").map(drop)
}
