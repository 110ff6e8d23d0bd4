//! What the machine must hold beside our own programs: tools of the distribution, installed when they are missing.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::Progress;
use super::kubectl::on_path;
use crate::python::patiently;

/// Programs that a local cluster calls, and the Debian packages that hold them.
pub const RUNNING: &[(&str, &str)] = &[
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("iptables", "iptables"),
    ("nsenter", "util-linux"),
    ("unshare", "util-linux"),
    ("setsid", "util-linux"),
    ("setpriv", "util-linux"),
];

/// Programs that building its parts takes.
pub const BUILDING: &[(&str, &str)] = &[("gcc", "gcc"), ("pkg-config", "pkg-config")];

/// Installs what is missing of `tools`, and the library that runc is linked with if it is to be built.
///
/// # Errors
/// When something is missing and cannot be installed.
pub fn ensure(tools: &[(&str, &'static str)], libseccomp: bool, progress: Progress) -> Result<()> {
    // Those of administrators are not on everyone's PATH.
    let there = |tool: &str| {
        on_path(tool).is_some() || ["/usr/sbin", "/sbin"].iter().any(|f| std::path::Path::new(f).join(tool).exists())
    };
    let mut missing: Vec<&str> = tools.iter().filter(|(tool, _)| !there(tool)).map(|(_, package)| *package).collect();
    if libseccomp && !has_library("libseccomp") {
        missing.push("libseccomp-dev");
    }
    missing.sort_unstable();
    missing.dedup();
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if on_path("apt-get").is_none() || !rustix::process::geteuid().is_root() {
        bail!("not installed: {list}: install these packages (the names are Debian's)");
    }
    progress.say(&format!("installs {list}"));
    patiently("apt-get", || {
        apt(&["update", "-qq"])?;
        apt(&[&["install", "-y", "-qq", "--no-install-recommends"], missing.as_slice()].concat())
    })
}

fn has_library(name: &str) -> bool {
    let mut command = Command::new("pkg-config");
    command.args(["--exists", name]).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

fn apt(words: &[&str]) -> Result<()> {
    let output = Command::new("apt-get").env("DEBIAN_FRONTEND", "noninteractive").args(words).output();
    let output = output.context("cannot run apt-get")?;
    if !output.status.success() {
        bail!("apt-get {}: {}", words.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// Runs a command of the system to its end; what it printed.
///
/// # Errors
/// When it fails, with what it said.
pub fn call(words: &[&str]) -> Result<String> {
    let (program, rest) = words.split_first().context("no program")?;
    let output = Command::new(program).args(rest).stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("cannot run {program}"))?;
    if !output.status.success() {
        bail!("{}: {}", words.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
