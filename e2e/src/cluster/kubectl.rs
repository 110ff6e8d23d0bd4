//! `kubectl` as the way scenarios ask a cluster: what a person would type, with deadlines.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use super::{Cluster, Provided};

/// Of one call. What waits longer says so itself (`--timeout`) and is still well below.
const PATIENCE: Duration = Duration::from_secs(180);

impl Cluster {
    /// Runs `kubectl`; what it printed.
    ///
    /// # Errors
    /// When it fails, with what it said, or takes longer than three minutes.
    pub async fn kubectl(&self, args: &[&str]) -> Result<String> {
        run(self.kubectl_command(args), &format!("kubectl {}", args.join(" ")), b"").await
    }

    /// Runs `kubectl` with text on its standard input; what it printed.
    ///
    /// # Errors
    /// When it fails, with what it said, or takes longer than three minutes.
    pub async fn kubectl_with(&self, args: &[&str], input: &str) -> Result<String> {
        run(self.kubectl_command(args), &format!("kubectl {}", args.join(" ")), input.as_bytes()).await
    }

    /// Applies manifests.
    ///
    /// # Errors
    /// When the API server refuses one, with what it said.
    pub async fn apply(&self, manifests: &str) -> Result<()> {
        self.kubectl_with(&["apply", "--server-side", "--force-conflicts", "-f", "-"], manifests).await.map(drop)
    }

    /// What `kubectl ... -o json` prints.
    ///
    /// # Errors
    /// When it fails or prints something else.
    pub async fn json(&self, args: &[&str]) -> Result<serde_json::Value> {
        let text = self.kubectl(&[args, &["-o", "json"]].concat()).await?;
        serde_json::from_str(&text).with_context(|| format!("kubectl {} printed no JSON", args.join(" ")))
    }

    /// `kubectl` with words, not started yet: for what runs beside a scenario. It ends when its handle is dropped.
    pub fn kubectl_command<S: AsRef<OsStr>>(&self, args: &[S]) -> Command {
        let mut command = match &self.provided {
            // It must not outlive a run that is killed: its cluster is gone then, without a word to its connections.
            Provided::Local(_) => {
                let mut command = Command::new("setpriv");
                command.args(["--pdeathsig", "KILL", "--"]).arg(self.kubectl_program());
                command
            }
            Provided::Kind | Provided::Given => Command::new(self.kubectl_program()),
        };
        command.env("KUBECONFIG", self.kubeconfig()).args(args).kill_on_drop(true);
        // What it remembers of an API server goes with the cluster: the next one may have the same address.
        if !matches!(self.provided, Provided::Given) {
            command.env("KUBECACHEDIR", self.kubeconfig().with_extension("cache"));
        }
        command
    }
}

/// Runs a command to its end, with a deadline; what it printed.
pub(super) async fn run(mut command: Command, what: &str, input: &[u8]) -> Result<String> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().with_context(|| format!("cannot run {what}"))?;
    let mut stdin = child.stdin.take();
    let feed = async {
        if let Some(pipe) = &mut stdin {
            // A program that ends before it has read everything says why itself.
            let _ = pipe.write_all(input).await;
        }
        drop(stdin.take());
    };
    let both = async { tokio::join!(feed, child.wait_with_output()).1 };
    let output: Output = match tokio::time::timeout(PATIENCE, both).await {
        Ok(output) => output.with_context(|| format!("cannot run {what}"))?,
        Err(_) => bail!("{what} did not end within {} s", PATIENCE.as_secs()),
    };
    if !output.status.success() {
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        bail!("{what}: {}: {}{}", output.status, out.trim(), err.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A program on the PATH.
pub(super) fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.is_file())
}
