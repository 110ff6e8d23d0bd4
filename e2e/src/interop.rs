//! Runs the behaviour cases of `e2e/cases` in network namespaces: our proxy and stock Envoy under our control plane, and by
//! hand both under the real istiod.
//!
//! The mesh of the cases, the clients and what they expect are in `e2e/behaviour`. This owns that what it needs is there.

use std::{
    path::PathBuf,
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context, Result, bail};

use crate::python::{binaries, environment, folder};

/// Programs of the system, and the Debian packages that hold them.
const TOOLS: [(&str, &str); 5] = [
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("iptables", "iptables"),
    ("nsenter", "util-linux"),
    ("setpriv", "util-linux"),
];

/// What to run.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Only cases whose name contains this; several
    #[arg(long)]
    only: Vec<String>,
    /// Only these proxies: `ours`, `envoy` (delta), `envoy-sotw`, `istiod-envoy`, `istiod-ours`; several
    #[arg(long)]
    flavour: Vec<String>,
    /// Istio's `pilot-discovery`, for the flavours under it
    #[arg(long)]
    istiod: Option<PathBuf>,
    /// Keep the folders with logs
    #[arg(long)]
    keep: bool,
}

/// Runs them; their result.
///
/// # Errors
/// When they cannot be run at all.
pub fn run(options: &Options) -> Result<ExitCode> {
    prerequisites()?;
    let binaries = binaries()?;
    let mut command = Command::new(environment(&binaries)?);
    command.arg("-B").arg(folder("behaviour/run.py")).arg(&binaries);
    for word in &options.only {
        command.args(["--only", word]);
    }
    for flavour in &options.flavour {
        command.args(["--flavour", flavour]);
    }
    if let Some(istiod) = &options.istiod {
        command.arg("--istiod").arg(istiod);
    }
    if options.keep {
        command.arg("--keep");
    }
    let status = command.status().context("cannot run the cases")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

pub(crate) fn prerequisites() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("the cases make network namespaces and redirect traffic in them: run this as root");
    }
    for (tool, package) in TOOLS {
        let found = Command::new(tool).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        // `ip` knows only `-V`; that it starts is enough.
        if found.is_err() {
            bail!("{tool} is missing: install {package}");
        }
    }
    Ok(())
}
