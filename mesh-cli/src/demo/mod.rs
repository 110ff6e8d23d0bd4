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

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;

use crate::args::DemoArgs;
use crate::exit::Outcome;
use crate::output::{BOLD, print};
use mesh::Mesh;
use plan::{NAMESPACE, Plan};

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
    print(&welcome(&mesh.plan, &own_name()));
    if mesh.plan.reused {
        let page = http::get(&format!("{}/journey", mesh.plan.page())).await?;
        let bad =
            if page.status == 200 { String::new() } else { format!("; with it the page answers {}", page.status) };
        eprintln!("the configuration of an earlier run is in force{bad}");
    }
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

/// How to call this program: by its name if that is what a shell would find, else by its path.
fn own_name() -> String {
    let Ok(own) = std::env::current_exe() else { return "meshctl".to_owned() };
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|folder| folder.join("meshctl")).find(|file| file.is_file());
    let same = |file: std::path::PathBuf| file.canonicalize().is_ok_and(|f| f == own);
    if found.is_some_and(same) { "meshctl".to_owned() } else { quoted(&own) }
}

/// A path as a shell takes it.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '-' | '_' | '+' | '@' | ':'));
    if plain { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

/// What is printed once the page answers. `meshctl` is how to call this program.
fn welcome(plan: &Plan, meshctl: &str) -> String {
    let (page, control) = (plan.page(), plan.control_http());
    let (config, samples) = (quoted(&plan.config_dir()), quoted(&plan.samples_dir()));
    format!(
        "
{BOLD}The mesh is up:{BOLD:#} {page}
  configuration   {config}   (edit any file: the mesh follows within a second)
  control plane   http://{control}

{BOLD}Three things to try{BOLD:#}, then look at the page:
  1. send a tenth of the requests to version 2 of catalog
       cp {samples}/canary-90-10.yaml {config}/catalog-route.yaml
  2. send the user me, and nobody else, to version 2
       cp {samples}/header-v2.yaml {config}/catalog-route.yaml
     the page is nobody's; open {page}/?user=me, or ask with the header:
       curl -s -H 'x-user: me' {page}/journey
  3. forbid catalog to call forum
       cp {samples}/deny-catalog.yaml {config}/deny-catalog.yaml
     and to undo that
       rm {config}/deny-catalog.yaml

{BOLD}Look inside{BOLD:#}, in another terminal:
  export MESHCTL_CONTROL={control}
  {meshctl} ps
  {meshctl} pc secret webapp.{NAMESPACE}

Ctrl-C ends everything."
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn printed_commands_can_be_pasted() {
        assert_eq!(quoted(Path::new("/tmp/a-b_1.2")), "/tmp/a-b_1.2");
        assert_eq!(quoted(Path::new("/tmp/it's here")), r"'/tmp/it'\''s here'");
        let dir = tempfile::Builder::new().prefix("a demo ").tempdir().unwrap();
        let text = welcome(&Plan::new(0, Some(dir.path()), 1).unwrap(), "/x/meshctl");
        assert!(text.contains("/config'/deny-catalog.yaml"), "{text}");
        assert!(text.contains("\n  /x/meshctl pc secret webapp.shop"), "{text}");
        assert!(text.contains("/?user=me"), "{text}");
    }
}
