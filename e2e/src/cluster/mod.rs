//! Clusters that scenarios run on: one interface, and three providers behind it. `local` is a real Kubernetes on this
//! machine, built from published modules; `kind` is one in containers; `kubeconfig` is one that somebody has already.
//!
//! This owns how a cluster is had, asked and given back. It must not know what a mesh is.

pub mod cli;
mod given;
mod kind;
mod kubectl;
pub mod local;
pub mod programs;
mod progress;
mod system;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

pub use progress::Progress;

/// Who makes the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Provider {
    /// A real Kubernetes on this machine, built from Go modules; needs root and Go, no containers
    Local,
    /// kind, in containers; needs docker and kind
    Kind,
    /// A cluster that is there already
    Kubeconfig,
}

/// How long a cluster lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// Until it is taken down.
    Detached,
    /// Until it is taken down or this process ends, however that comes about. (`local` only; others cannot.)
    Tied,
}

/// What cluster is wanted.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Name, of its own on this machine: small letters, digits and dashes.
    pub name: String,
    /// Who makes it.
    pub provider: Provider,
    /// For [`Provider::Kubeconfig`]: the file; otherwise what `KUBECONFIG` names.
    pub kubeconfig: Option<PathBuf>,
    /// How long it lives.
    pub life: Life,
    /// Who is told what goes on.
    pub progress: Progress,
}

impl Settings {
    /// A local cluster that ends with this process, at the latest.
    pub fn local(name: &str) -> Self {
        let provider = Provider::Local;
        Self { name: name.to_owned(), provider, kubeconfig: None, life: Life::Tied, progress: Progress::default() }
    }
}

/// A cluster that is up.
#[derive(Debug)]
pub struct Cluster {
    name: String,
    kubeconfig: PathBuf,
    kubectl: PathBuf,
    provided: Provided,
    /// It was up before this process asked for it.
    found: bool,
}

#[derive(Debug)]
enum Provided {
    Local(Box<local::Node>),
    Kind,
    Given,
}

impl Cluster {
    /// A local cluster of this name, which ends with this process at the latest.
    ///
    /// # Errors
    /// When it does not come up; what is missing or what its parts said is named.
    pub async fn up(name: &str) -> Result<Self> {
        Self::start(&Settings::local(name)).await
    }

    /// The cluster that is wanted: made, or found when it is up already.
    ///
    /// # Errors
    /// When it does not come up; what is missing or what its parts said is named.
    pub async fn start(settings: &Settings) -> Result<Self> {
        valid(&settings.name)?;
        match settings.provider {
            Provider::Local => local::up(settings).await,
            Provider::Kind => kind::up(settings).await,
            Provider::Kubeconfig => given::up(settings).await,
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file with which `kubectl` and clients reach it as its administrator.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// A `kubectl` that fits it.
    pub fn kubectl_program(&self) -> &Path {
        &self.kubectl
    }

    /// Whether it was up before this process asked for it: then it is not this process's to take down.
    pub fn found(&self) -> bool {
        self.found
    }

    /// Makes an image archive known to the container runtime of its nodes.
    ///
    /// # Errors
    /// When the archive is not taken, or nothing can be laid onto the nodes of this provider.
    pub async fn import_image(&self, archive: &Path) -> Result<()> {
        let archive = std::path::absolute(archive)?;
        match &self.provided {
            Provided::Local(node) => node.import_image(&archive).await,
            Provided::Kind => kind::import_image(&self.name, &archive).await,
            Provided::Given => bail!(
                "images cannot be laid onto the nodes of a cluster that was given: push {} to a registry that its nodes \
                 reach, and name the image by that",
                archive.display()
            ),
        }
    }

    /// Runs a command on its node, in the node's own namespaces; what it printed.
    ///
    /// # Errors
    /// When it fails, or nothing can be run on the nodes of this provider.
    pub async fn node_exec(&self, command: &[&str]) -> Result<String> {
        match &self.provided {
            Provided::Local(node) => node.exec(command).await,
            Provided::Kind => kind::node_exec(&self.name, command).await,
            Provided::Given => bail!("nothing can be run on the nodes of a cluster that was given"),
        }
    }

    /// A command on its node that goes on beside the test, to be started by the caller.
    ///
    /// # Errors
    /// When nothing of the kind can be run on the nodes of this provider.
    pub fn node_command(&self, command: &[&str]) -> Result<tokio::process::Command> {
        match &self.provided {
            Provided::Local(node) => node.command(command),
            Provided::Kind | Provided::Given => bail!("only nodes of the local provider run commands beside a test"),
        }
    }

    /// The address under which this machine is reached from its pods, and the test process with it.
    pub fn host_address(&self) -> Option<std::net::Ipv4Addr> {
        match &self.provided {
            Provided::Local(_) => Some(local::addresses::HOST),
            Provided::Kind | Provided::Given => None,
        }
    }

    /// Whether its parts are well. One that had to be started again is told of once.
    ///
    /// # Errors
    /// When the node gave up, or when parts had to be started again since the last call: how often, and which.
    pub fn health(&self) -> Result<()> {
        match &self.provided {
            Provided::Local(node) => node.health(),
            Provided::Kind | Provided::Given => Ok(()),
        }
    }

    /// Lets pods of this and another local cluster reach each other by their own addresses, or parts them again: then
    /// they reach only each other's node ports and load balancers. Connections keep what held when they were made.
    ///
    /// # Errors
    /// When a cluster is not local or the system refuses.
    pub async fn join_networks(&self, other: &Self, joined: bool) -> Result<()> {
        match (&self.provided, &other.provided) {
            (Provided::Local(a), Provided::Local(b)) => a.join_networks(b, joined).await,
            _ => bail!("only the networks of local clusters can be joined and parted"),
        }
    }

    /// Takes it down; nothing of it is left. One that was given stays as it is.
    ///
    /// # Errors
    /// When something of it cannot be removed.
    pub async fn down(self) -> Result<()> {
        match self.provided {
            Provided::Local(node) => node.down().await,
            Provided::Kind => kind::down(&self.name).await,
            Provided::Given => Ok(()),
        }
    }
}

/// Takes down the cluster of a name, whoever started it; whether there was one.
///
/// # Errors
/// When something of it cannot be removed.
pub async fn down(name: &str, provider: Provider) -> Result<bool> {
    valid(name)?;
    match provider {
        Provider::Local => local::down(name).await,
        Provider::Kind => kind::down(name).await.map(|()| true),
        Provider::Kubeconfig => Ok(false),
    }
}

/// Names become names of links, control groups, hosts and folders.
fn valid(name: &str) -> Result<()> {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if name.is_empty() || name.len() > 20 || !name.chars().all(fits) || name.starts_with('-') || name.ends_with('-') {
        bail!(
            "{name:?} does not do as the name of a cluster: at most 20 small letters, digits, and dashes between them"
        );
    }
    Ok(())
}

/// The folder of build results.
///
/// # Errors
/// When the current folder is not there.
pub fn target() -> Result<PathBuf> {
    let given = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    let path = given.unwrap_or_else(|| crate::python::folder("../target"));
    std::fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
    path.canonicalize().with_context(|| format!("cannot find {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::valid;

    #[test]
    fn names_fit_what_they_are_used_for() {
        for good in ["local", "east", "a", "west-2"] {
            valid(good).unwrap();
        }
        for bad in ["", "East", "a/b", "-a", "a-", "a.b", "a-name-that-is-too-long"] {
            valid(bad).unwrap_err();
        }
    }
}
