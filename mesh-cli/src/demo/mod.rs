//! `meshctl demo`: a whole mesh on loopback addresses, without root, Docker or Kubernetes.
//!
//! Every process is a child of this one and this very binary (`child`); what runs where is decided in `plan`, what the
//! operator declares is written by `manifests`. Nothing here is known to the planes: they see a folder and flags.

mod apps;
mod check;
pub mod child;
mod http;
mod load;
mod manifests;
mod mesh;
mod plan;

use std::process::ExitCode;

use anyhow::Context as _;

use crate::args::DemoArgs;
use crate::exit::Outcome;
use crate::output::{BOLD, print};
use mesh::Mesh;
use plan::Plan;

/// Runs the demo, or its checks.
pub fn run(args: DemoArgs) -> Outcome {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.context("cannot start")?;
    runtime.block_on(async { if args.check { check::run(&args).await } else { show(&args).await.map_err(Into::into) } })
}

async fn show(args: &DemoArgs) -> anyhow::Result<ExitCode> {
    let plan = Plan::new(args.port, args.dir.as_deref(), args.concurrency)?;
    let mut ending = child::Ending::listen()?;
    eprintln!("starting the control plane, a gateway and four applications with sidecars ...");
    let mut mesh = Mesh::new(plan);
    let started = tokio::select! {
        started = mesh.start() => started,
        () = ending.wait() => {
            mesh.stop().await;
            return Ok(ExitCode::SUCCESS);
        }
    };
    if let Err(error) = started {
        let hint = mesh.last_words();
        mesh.stop().await;
        return Err(error.context(hint));
    }
    print(&welcome(&mesh.plan));
    let load = load::Load::start(mesh.plan.page(), args.load);
    let died = tokio::select! {
        () = ending.wait() => None,
        name = mesh.first_to_die() => Some(name),
    };
    load.stop().await;
    let hint = mesh.last_words();
    mesh.stop().await;
    match died {
        None => Ok(ExitCode::SUCCESS),
        Some(name) => anyhow::bail!("{name} ended by itself\n{hint}"),
    }
}

/// What is printed once the page answers.
fn welcome(plan: &Plan) -> String {
    let (page, config, samples) = (plan.page(), plan.config_dir(), plan.samples_dir());
    let (config, samples) = (config.display(), samples.display());
    let control = plan.control_http();
    format!(
        "
{BOLD}The mesh is up:{BOLD:#} {page}
  configuration   {config}   (edit any file: the mesh follows within a second)
  control plane   http://{control}   (MESHCTL_CONTROL={control} meshctl ps)

{BOLD}Three things to try{BOLD:#}, then look at the page:
  1. send a tenth of the requests to version 2 of catalog
       cp {samples}/canary-90-10.yaml {config}/catalog-route.yaml
  2. send yourself, and nobody else, to version 2
       cp {samples}/header-v2.yaml {config}/catalog-route.yaml
       curl -s -H 'x-user: me' {page}/journey
  3. forbid catalog to call forum
       cp {samples}/deny-catalog.yaml {config}/deny-catalog.yaml
       rm {config}/deny-catalog.yaml

Ctrl-C ends everything."
    )
}
