//! Scenarios on real clusters: `run local`. Each is a name and a function over a [`Context`]; add a module here and its
//! scenarios to [`ALL`].
//!
//! This owns the run: the cluster, the images, one line for each check, the result. What is checked is the scenarios'.

pub mod demo;
mod images;
mod install;
mod machinery;
mod mesh;
mod reach;
mod smoke;

use std::path::PathBuf;
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio::sync::OnceCell;
use tokio::time::Instant;

use crate::cluster::{Cluster, Life, Progress, Provider, Settings, local, programs};
use crate::images::Archive;

/// Something that is to hold on a cluster.
#[derive(Debug, Clone, Copy)]
pub struct Scenario {
    /// One word or several with dashes; its namespace is named by it.
    pub name: &'static str,
    /// What it does. It fails when this returns an error or a check of the context has failed.
    pub run: for<'a> fn(&'a Context<'a>) -> Running<'a>,
}

/// A scenario that runs.
pub type Running<'a> = Pin<Box<dyn Future<Output = Result<()>> + 'a>>;

/// All of them, in order.
pub const ALL: &[Scenario] = &[
    Scenario { name: "smoke", run: |context| Box::pin(smoke::run(context)) },
    Scenario { name: "images", run: |context| Box::pin(images::run(context)) },
    Scenario { name: "parts", run: |context| Box::pin(machinery::parts(context)) },
    Scenario { name: "install-docs", run: |context| Box::pin(install::docs(context)) },
    Scenario { name: "install-elsewhere", run: |context| Box::pin(install::elsewhere(context)) },
    Scenario { name: "getting-started", run: |context| Box::pin(install::started(context)) },
    Scenario { name: "mesh-traffic", run: |context| Box::pin(mesh::traffic::run(context)) },
    Scenario { name: "mesh-rollout", run: |context| Box::pin(mesh::rollout::run(context)) },
    Scenario { name: "mesh-workloads", run: |context| Box::pin(mesh::workloads::run(context)) },
    Scenario { name: "mesh-gateway-api", run: |context| Box::pin(mesh::gateway_api::run(context)) },
    Scenario { name: "mesh-control-plane", run: |context| Box::pin(mesh::control_plane::run(context)) },
    Scenario { name: "mesh-gateways", run: |context| Box::pin(mesh::gateways::run(context)) },
    Scenario { name: "mesh-bookstore", run: |context| Box::pin(mesh::bookstore::run(context)) },
    Scenario { name: "mesh-protocols", run: |context| Box::pin(mesh::protocols::run(context)) },
    Scenario { name: "mesh-envoy", run: |context| Box::pin(mesh::envoy_sidecar::run(context)) },
    Scenario { name: "mesh-faults", run: |context| Box::pin(mesh::faults::run(context)) },
    Scenario { name: "mesh-commands", run: |context| Box::pin(mesh::commands::run(context)) },
    Scenario { name: "two-clusters", run: |context| Box::pin(machinery::two(context)) },
];

/// A scenario that takes longer hangs.
const LONGEST: Duration = Duration::from_secs(420);

/// Where, and what to run.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Only scenarios whose name contains this; several
    #[arg(long)]
    only: Vec<String>,
    /// Name of the cluster; one that is up is used as it is and left up
    #[arg(long, default_value = "scenarios")]
    name: String,
    /// Who makes the cluster
    #[arg(long, value_enum, default_value = "local")]
    provider: Provider,
    /// Of a cluster that is there already [default: what KUBECONFIG names]
    #[arg(long)]
    kubeconfig: Option<PathBuf>,
    /// Leave the cluster up at the end
    #[arg(long)]
    keep: bool,
}

/// What all scenarios of a run share.
#[derive(Debug)]
struct Session {
    settings: Settings,
    cluster: Cluster,
    images: Vec<Archive>,
    second: OnceCell<Cluster>,
    mesh: OnceCell<()>,
    gateway_api: OnceCell<()>,
    passed: AtomicU32,
    failed: AtomicU32,
}

/// What a scenario works with.
#[derive(Debug)]
pub struct Context<'a> {
    session: &'a Session,
    scenario: &'static str,
    /// A namespace that is new and goes away with the scenario.
    pub namespace: String,
}

impl Context<'_> {
    /// The cluster.
    pub fn cluster(&self) -> &Cluster {
        &self.session.cluster
    }

    /// One more cluster, which comes up when it is first asked for and stays for the rest of the run.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn second_cluster(&self) -> Result<&Cluster> {
        let start = async || {
            let settings = &self.session.settings;
            let more = Settings { name: second_name(&settings.name), ..settings.clone() };
            let cluster = Cluster::start(&more).await?;
            import(settings, &cluster, &self.session.images).await?;
            Ok(cluster)
        };
        self.session.second.get_or_try_init(start).await
    }

    /// Installs the mesh, unless this run has done so.
    ///
    /// # Errors
    /// Those of the installation.
    async fn mesh(&self, install: impl Future<Output = Result<String>>) -> Result<()> {
        self.session.mesh.get_or_try_init(async || install.await.map(drop)).await.copied()
    }

    /// Installs the definitions of Gateway API, unless the cluster has them. Those that come before this run without.
    ///
    /// # Errors
    /// When they cannot be had, or the API server refuses them.
    pub async fn gateway_api(&self) -> Result<()> {
        let install = async || {
            let cluster = self.cluster();
            if cluster.kubectl(&["get", "crd", "gateways.gateway.networking.k8s.io"]).await.is_ok() {
                return Ok(());
            }
            let folder = programs::gateway_api(self.session.settings.progress).await?.display().to_string();
            cluster.kubectl(&["apply", "--server-side", "-f", &folder]).await?;
            let established = ["wait", "--for=condition=Established", "--timeout=60s", "crd"];
            let kinds = ["gatewayclasses", "gateways", "httproutes", "grpcroutes", "referencegrants"];
            let names = kinds.map(|kind| format!("{kind}.gateway.networking.k8s.io"));
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            cluster.kubectl(&[&established, names.as_slice()].concat()).await.map(drop)
        };
        self.session.gateway_api.get_or_try_init(install).await.copied()
    }

    /// Addresses of pods, Services and load balancers are reached from this machine.
    pub fn is_near(&self) -> bool {
        self.cluster().host_address().is_some()
    }

    /// One check: a line with its time. What it yields goes on; its failure is counted, and is the scenario's to end on.
    ///
    /// # Errors
    /// What the check failed with.
    pub fn check<'f, T>(
        &'f self,
        what: &'f str,
        check: impl Future<Output = Result<T>> + 'f,
    ) -> impl Future<Output = Result<T>> + 'f {
        // Scenarios wait for many of these, and some are large.
        let check = Box::pin(check);
        async move {
            let start = Instant::now();
            let result = check.await;
            self.tell(what, start.elapsed(), result.as_ref().err());
            result
        }
    }

    fn tell(&self, what: &str, time: Duration, error: Option<&anyhow::Error>) {
        let time = time.as_secs_f64();
        match error {
            None => {
                self.session.passed.fetch_add(1, Ordering::Relaxed);
                println!("ok    {time:6.2} s  {}: {what}", self.scenario);
            }
            Some(error) => {
                self.session.failed.fetch_add(1, Ordering::Relaxed);
                println!("FAIL  {time:6.2} s  {}: {what}: {error:#}", self.scenario);
            }
        }
    }

    /// Runs `kubectl` in the scenario's namespace; what it printed.
    ///
    /// # Errors
    /// When it fails, with what it said.
    pub async fn kubectl(&self, args: &[&str]) -> Result<String> {
        self.cluster().kubectl(&[&["-n", &self.namespace], args].concat()).await
    }

    /// What `kubectl ... -o json` prints, in the scenario's namespace.
    ///
    /// # Errors
    /// When it fails, with what it said.
    pub async fn json(&self, args: &[&str]) -> Result<serde_json::Value> {
        self.cluster().json(&[&["-n", &self.namespace], args].concat()).await
    }

    /// Applies manifests to the scenario's namespace.
    ///
    /// # Errors
    /// When the API server refuses one.
    pub async fn apply(&self, manifests: &str) -> Result<()> {
        let words = ["-n", &self.namespace, "apply", "--server-side", "-f", "-"];
        self.cluster().kubectl_with(&words, manifests).await.map(drop)
    }

    /// Waits until a Deployment has all its pods ready.
    ///
    /// # Errors
    /// When it does not within the time, with the pods as they are.
    pub async fn rolled_out(&self, deployment: &str, patience: Duration) -> Result<()> {
        let (name, timeout) = (format!("deployment/{deployment}"), format!("--timeout={}s", patience.as_secs()));
        let waited = self.kubectl(&["rollout", "status", &name, &timeout]).await;
        if let Err(error) = waited {
            let pods = self.kubectl(&["get", "pods", "-o", "wide"]).await.unwrap_or_default();
            let events = self.kubectl(&["get", "events", "--sort-by=.lastTimestamp"]).await.unwrap_or_default();
            bail!("{error:#}\n{pods}\n{events}");
        }
        Ok(())
    }
}

/// Tries until something holds.
///
/// # Errors
/// That of the last try, when time is over.
pub async fn eventually<T>(patience: Duration, mut attempt: impl AsyncFnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + patience;
    loop {
        match attempt().await {
            Ok(done) => return Ok(done),
            Err(error) if Instant::now() > deadline => return Err(error.context(format!("still, after {patience:?}"))),
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// Runs them; their result.
///
/// # Errors
/// When they cannot be run at all.
pub async fn run(options: &Options) -> Result<ExitCode> {
    let chosen = |s: &&Scenario| options.only.is_empty() || options.only.iter().any(|word| s.name.contains(word));
    let chosen: Vec<&Scenario> = ALL.iter().filter(chosen).collect();
    if chosen.is_empty() {
        let names: Vec<_> = ALL.iter().map(|s| s.name).collect();
        bail!("no scenario has such a name; there are {}", names.join(", "));
    }
    // A cluster that is to be kept must not end with this process.
    let life = if options.keep { Life::Detached } else { Life::Tied };
    let (name, kubeconfig, progress) = (options.name.clone(), options.kubeconfig.clone(), Progress::default());
    let settings = Settings { name, provider: options.provider, kubeconfig, life, progress };
    // One that was up before is not ours to take down.
    let mut ours = Vec::new();
    if options.provider == Provider::Local && !options.keep {
        for name in [options.name.clone(), second_name(&options.name)] {
            if !local::lives(&name)? {
                ours.push(name);
            }
        }
    }
    tokio::select! {
        result = session(settings, &chosen, options.keep) => result,
        () = told_to_end() => {
            progress.say("told to end");
            for name in ours {
                crate::cluster::down(&name, options.provider).await?;
            }
            Ok(ExitCode::FAILURE)
        }
    }
}

fn second_name(first: &str) -> String {
    format!("{first}-2")
}

async fn session(settings: Settings, chosen: &[&Scenario], keep: bool) -> Result<ExitCode> {
    let progress = settings.progress;
    let images = images(progress).await?;
    let cluster = Cluster::start(&settings).await?;
    progress.say(&format!("cluster {} is up: KUBECONFIG={}", cluster.name(), cluster.kubeconfig().display()));
    let (passed, failed, second) = (AtomicU32::new(0), AtomicU32::new(0), OnceCell::new());
    let session = Session {
        settings,
        cluster,
        images,
        second,
        mesh: OnceCell::new(),
        gateway_api: OnceCell::new(),
        passed,
        failed,
    };
    let imported = import(&session.settings, &session.cluster, &session.images).await;
    let mut flaky = Flaky::default();
    if imported.is_ok() {
        progress.say("images are imported");
        flaky = session.run_all(chosen).await;
    }
    let Session { cluster, second, passed, failed, .. } = session;
    for cluster in [Some(cluster), second.into_inner()].into_iter().flatten() {
        if keep || cluster.found() {
            progress.say(&format!("cluster {} stays: KUBECONFIG={}", cluster.name(), cluster.kubeconfig().display()));
        } else {
            cluster.down().await?;
        }
    }
    imported?;
    progress.say("done");
    let failed = failed.into_inner() - flaky.checks;
    let words =
        if flaky.scenarios.is_empty() { String::new() } else { format!(", FLAKY: {}", flaky.scenarios.join(", ")) };
    println!("{} passed, {failed} failed{words}", passed.into_inner());
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Scenarios that passed the second time only.
#[derive(Debug, Default)]
struct Flaky {
    scenarios: Vec<&'static str>,
    /// Checks that failed the first time.
    checks: u32,
}

/// So many scenarios may be tried again, as with the other suites (ADR 14).
const AGAIN: usize = 2;

impl Session {
    /// Runs scenarios. A few that fail are tried again, by themselves and told apart: a machine that stumbles says nothing
    /// of the change, and one that fails twice does.
    async fn run_all(&self, chosen: &[&Scenario]) -> Flaky {
        let mut failing = Vec::new();
        for scenario in chosen {
            let failed = self.run(scenario).await;
            if failed > 0 {
                failing.push((scenario, failed));
            }
        }
        let mut flaky = Flaky::default();
        if failing.len() > AGAIN {
            return flaky;
        }
        for (scenario, failed) in failing {
            println!("again {}", scenario.name);
            if self.run(scenario).await == 0 {
                flaky.scenarios.push(scenario.name);
                flaky.checks += failed;
            }
        }
        flaky
    }

    /// Runs a scenario; how many of its checks failed.
    async fn run(&self, scenario: &Scenario) -> u32 {
        let seconds = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs();
        // A cluster that stays up may still be busy with removing that of the last run.
        let namespace = format!("{}-{:05}", scenario.name, seconds % 100_000);
        let context = Context { session: self, scenario: scenario.name, namespace };
        let before = self.failed.load(Ordering::Relaxed);
        let result = async {
            self.cluster.kubectl(&["create", "namespace", &context.namespace]).await?;
            let run = (scenario.run)(&context);
            tokio::time::timeout(LONGEST, run).await.with_context(|| format!("not over after {LONGEST:?}"))?
        };
        let result = result.await;
        // What a check failed with is told already.
        let failed = self.failed.load(Ordering::Relaxed) > before;
        if let (Err(error), false) = (result, failed) {
            let _: Result<()> = context.check("runs", async { Err(error) }).await;
        }
        let health = self.cluster.health();
        if health.is_err() {
            let _ = context.check("the cluster stays well", async { health }).await;
        }
        let words = ["delete", "namespace", &context.namespace, "--wait=false"];
        if let Err(error) = self.cluster.kubectl(&words).await {
            println!("the namespace {} stays: {error:#}", context.namespace);
        }
        self.failed.load(Ordering::Relaxed) - before
    }
}

/// Archives of all images, made from fresh programs.
async fn images(progress: Progress) -> Result<Vec<Archive>> {
    progress.step("brings programs and images up to date");
    let programs = programs::build(progress).await?;
    let make = move || {
        let binaries = crate::python::binaries()?;
        crate::images::all(&binaries, &programs)
    };
    tokio::task::spawn_blocking(make).await.context("the images broke off")?
}

async fn import(settings: &Settings, cluster: &Cluster, images: &[Archive]) -> Result<()> {
    if settings.provider == Provider::Kubeconfig {
        let names: Vec<&str> = images.iter().map(|i| i.name.as_str()).collect();
        settings
            .progress
            .say(&format!("the nodes of the cluster must know these images by themselves: {}", names.join(", ")));
        return Ok(());
    }
    for image in images {
        cluster.import_image(&image.file).await.with_context(|| format!("cannot import {}", image.name))?;
    }
    Ok(())
}

/// Ctrl-C or SIGTERM.
async fn told_to_end() {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(mut term) = signal(SignalKind::terminate()) else { return std::future::pending().await };
    tokio::select! {
        _ = term.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
}
