//! `meshctl install` and `upgrade`: brings a cluster to what is wanted.

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use super::manifest::{unparsable, wish};
use crate::args::InstallArgs;
use crate::client::cluster::{Cluster, block_on, gvk};
use crate::exit::{self, Failure, Outcome};
use crate::install::apply::{self, Action, Done};
use crate::install::operator::Wish;
use crate::install::render::{Component, components, unwanted};
use crate::install::wait;
use crate::output::{BOLD, GREEN, print};

/// Installs; `word` is what is said to have happened.
pub fn run(args: &InstallArgs, word: &str) -> Outcome {
    let wish = wish(&args.wish, args.cluster.istio_namespace.clone(), None)?;
    let components = components(&wish).map_err(unparsable)?;
    block_on(async {
        let cluster = Cluster::connect(&args.cluster.kube).await?;
        let version = cluster.version().await?;
        advise(&cluster).await;
        if args.dry_run {
            let mut all = Vec::new();
            for component in &components {
                all.extend(apply_all(&cluster, component, wish.revision(), true).await?);
            }
            all.extend(prune_gateways(&cluster, &wish, true).await?);
            print(&apply::table(&all));
            return Ok(ExitCode::SUCCESS);
        }
        if !args.skip_confirmation && !confirmed(&question(&wish, &version))? {
            return Err(Failure::new(exit::NEGATIVE, "nothing was done"));
        }
        let started = Instant::now();
        let until = started + args.readiness_timeout;
        let mut all = Vec::new();
        for component in &components {
            let done = apply_all(&cluster, component, wish.revision(), false).await?;
            let objects = awaited(component, args.wait);
            settle(&cluster, &component.name, &objects, &summary(&done), until).await?;
            all.extend(done);
        }
        for (gateway, done) in prune_gateways(&cluster, &wish, false).await? {
            anstream::eprintln!("{GREEN}✓{GREEN:#} {gateway}: {} removed", done.title);
            all.push((gateway, done));
        }
        let changed = all.iter().any(|(_, d)| !matches!(d.action, Action::Same | Action::Kept));
        for (_, kept) in all.iter().filter(|(_, d)| d.action == Action::Kept && d.title.starts_with("Custom")) {
            anstream::eprintln!("{BOLD}note:{BOLD:#} {} is left alone: {}", kept.title, kept.note);
        }
        let revision = wish.revision();
        if changed {
            print(&format!("revision {revision} is {word}, in {} s", started.elapsed().as_secs()));
        } else {
            print(&format!("revision {revision} was installed like this: nothing was changed"));
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// Applies a component, and takes away what an earlier one had beside it.
async fn apply_all(
    cluster: &Cluster,
    component: &Component,
    revision: &str,
    dry_run: bool,
) -> Result<Vec<(String, Done)>, Failure> {
    let mut all = Vec::new();
    for object in &component.objects {
        all.push(apply::object(cluster, object, dry_run).await?);
    }
    all.extend(apply::prune(cluster, component, revision, dry_run).await?);
    Ok(all.into_iter().map(|done| (component.name.clone(), done)).collect())
}

/// Takes away gateways that an earlier installation of the revision had.
async fn prune_gateways(cluster: &Cluster, wish: &Wish, dry_run: bool) -> Result<Vec<(String, Done)>, Failure> {
    let mut all = Vec::new();
    for gateway in unwanted(wish) {
        let done = apply::prune(cluster, &gateway, wish.revision(), dry_run).await?;
        all.extend(done.into_iter().map(|done| (gateway.name.clone(), done)));
    }
    Ok(all)
}

/// What is waited for: definitions always, for what follows is of their kinds.
fn awaited(component: &Component, wait: bool) -> Vec<Value> {
    let kinds: &[&str] = if wait {
        &["CustomResourceDefinition", "Deployment", "MutatingWebhookConfiguration"]
    } else {
        &["CustomResourceDefinition"]
    };
    let wanted = |o: &&Value| o["kind"].as_str().is_some_and(|k| kinds.contains(&k));
    component.objects.iter().filter(wanted).cloned().collect()
}

/// Waits for a component, with its state on one line of a terminal, or a line when it is ready.
async fn settle(
    cluster: &Cluster,
    name: &str,
    objects: &[Value],
    summary: &str,
    until: Instant,
) -> Result<(), Failure> {
    let live = std::io::stderr().is_terminal();
    let tell = |state: &str| {
        if live {
            anstream::eprint!("\r\x1b[K  {name}: {state}");
            let _ = std::io::stderr().flush();
        }
    };
    let ended = wait::ready(cluster, objects, until, tell).await;
    let clear = if live { "\r\x1b[K" } else { "" };
    match ended {
        Ok(()) => {
            anstream::eprintln!("{clear}{GREEN}✓{GREEN:#} {name}: {summary}");
            Ok(())
        }
        Err(failure) => {
            anstream::eprint!("{clear}");
            Err(Failure { code: failure.code, message: format!("{name}: {}", failure.message) })
        }
    }
}

fn summary(done: &[(String, Done)]) -> String {
    let count = |action: Action| done.iter().filter(|(_, d)| d.action == action).count();
    let counts = [
        (count(Action::Created), "created"),
        (count(Action::Changed), "changed"),
        (count(Action::Same), "unchanged"),
        (count(Action::Kept), "left alone"),
        (count(Action::Removed), "removed"),
    ];
    let words: Vec<String> = counts.iter().filter(|(n, _)| *n > 0).map(|(n, word)| format!("{n} {word}")).collect();
    words.join(", ")
}

/// What is worth knowing before. Who may not look is told nothing.
async fn advise(cluster: &Cluster) {
    let definition = serde_json::json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "gatewayclasses.gateway.networking.k8s.io"},
    });
    if let Ok(None) = cluster.live(&definition).await {
        anstream::eprintln!(
            "{BOLD}note:{BOLD:#} the cluster has no Gateway API: its Gateways and HTTPRoutes work once \
             https://github.com/kubernetes-sigs/gateway-api/releases is installed"
        );
    }
    let nodes = cluster.list(&gvk("", "v1", "Node"), None, "").await.unwrap_or_default();
    if !nodes.is_empty() && nodes.iter().all(|n| n["spec"]["unschedulable"] == true) {
        anstream::eprintln!("{BOLD}note:{BOLD:#} no node takes pods");
    }
}

fn question(wish: &Wish, version: &str) -> String {
    let names: Vec<String> = wish.releases().into_iter().map(|r| r.name).collect();
    let (revision, namespace) = (wish.revision(), wish.namespace());
    format!("Install {} as revision {revision} into namespace {namespace} of a cluster {version}?", names.join(", "))
}

/// Asks on the terminal; without one, nobody can say yes.
pub fn confirmed(question: &str) -> Result<bool, Failure> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure::new(exit::USAGE, format!("{question} There is no terminal to ask on: use -y")));
    }
    anstream::eprint!("{question} (y/N) ");
    let _ = std::io::stderr().flush();
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).map_err(|e| Failure::from(anyhow::Error::from(e)))?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// How long `uninstall` and others wait for what goes away.
pub const GONE: Duration = Duration::from_secs(120);
