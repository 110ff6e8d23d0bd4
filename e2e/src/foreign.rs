//! Runs the judges of `e2e/foreign`, which are Python because the implementations that they judge by are.
//!
//! What is checked, and how, is theirs.

use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

use crate::interop::prerequisites;
use crate::python::{binaries, environment, folder};

/// What to run.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Only scenarios whose name contains this; several
    #[arg(long)]
    only: Vec<String>,
    /// Scenarios at once
    #[arg(long, default_value_t = 6)]
    jobs: usize,
}

/// Runs them; their result.
///
/// # Errors
/// When they cannot be run at all.
pub fn run(options: &Options) -> Result<ExitCode> {
    prerequisites()?;
    let binaries = binaries()?;
    let mut command = Command::new(environment(&binaries)?);
    command.arg("-B").arg(folder("foreign/run.py")).arg(&binaries).args(["--jobs", &options.jobs.to_string()]);
    for word in &options.only {
        command.args(["--only", word]);
    }
    let status = command.status().context("cannot run the scenarios")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
