//! What needs more than `cargo test`: programs of others beside ours.

use std::process::ExitCode;

use anyhow::Context as _;
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
    /// A cluster with the mesh and the bookstore on it; prints the address of its page
    Demo(e2e::cluster::cli::Which),
    /// Clusters that scenarios run on
    #[command(subcommand)]
    Cluster(e2e::cluster::cli::Command),
}

#[derive(Debug, Subcommand)]
enum Run {
    /// Judges of xDS and HTTP that are not ours, in Python: an ADS server, gRPC's own xDS client, raw frames and bytes
    Foreign(e2e::foreign::Options),
    /// The behaviour cases in network namespaces: our proxy and stock Envoy under our control plane; needs root
    Interop(e2e::interop::Options),
    /// Scenarios on a real Kubernetes, which is built and started on this machine unless told otherwise; needs root and Go
    Local(e2e::kubernetes::Options),
    /// Our types against the schemas that Istio and Gateway API publish, which are fetched
    Schemas(e2e::schemas::Options),
}

fn main() -> ExitCode {
    // Whole chains of causes in one line; where in the code they came up helps nobody who runs this.
    run(Cli::parse().command).unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Run(Run::Foreign(options)) => e2e::foreign::run(&options),
        Command::Run(Run::Interop(options)) => e2e::interop::run(&options),
        Command::Run(Run::Local(options)) => runtime()?.block_on(e2e::kubernetes::run(&options)),
        Command::Run(Run::Schemas(options)) => e2e::schemas::run(&options),
        Command::Demo(which) => runtime()?.block_on(e2e::kubernetes::demo::run(&which)),
        Command::Cluster(command) => runtime()?.block_on(e2e::cluster::cli::run(&command)),
    }
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start threads")
}
