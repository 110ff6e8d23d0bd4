//! What needs more than `cargo test`: programs of others beside ours.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(about = "End-to-end checks with programs that are not ours")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run checks; the exit status says whether all of them hold
    #[command(subcommand)]
    Run(Run),
}

#[derive(Debug, Subcommand)]
enum Run {
    /// Judges of xDS and HTTP that are not ours, in Python: an ADS server, gRPC's own xDS client, raw frames and bytes
    Foreign(e2e::foreign::Options),
    /// The behaviour cases in network namespaces: our proxy and stock Envoy under our control plane; needs root
    Interop(e2e::interop::Options),
    /// Our types against the schemas that Istio and Gateway API publish, which are fetched
    Schemas(e2e::schemas::Options),
}

fn main() -> anyhow::Result<ExitCode> {
    match Cli::parse().command {
        Command::Run(Run::Foreign(options)) => e2e::foreign::run(&options),
        Command::Run(Run::Interop(options)) => e2e::interop::run(&options),
        Command::Run(Run::Schemas(options)) => e2e::schemas::run(&options),
    }
}
