//! `meshctl completion`.

use std::process::ExitCode;

use clap::CommandFactory as _;

use crate::args::{Args, CompletionArgs};
use crate::exit::Outcome;

/// Prints the script.
pub fn run(args: &CompletionArgs) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Args::command(), "meshctl", &mut script);
    crate::output::print(String::from_utf8_lossy(&script).trim_end());
    Ok(ExitCode::SUCCESS)
}
