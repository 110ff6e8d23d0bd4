//! `meshctl demo --check`: the promises of the demo, each driven and judged from outside the planes.

mod canary;
mod identity;
mod outage;
mod resilience;
mod rotation;

use std::process::ExitCode;
use std::time::Duration;

use tokio::time::Instant;

use super::apps::Journey;
use super::child::Ending;
use super::http;
use super::mesh::Mesh;
use super::plan::Plan;
use crate::args::DemoArgs;
use crate::exit::{self, Failure, Outcome};
use crate::output::{GREEN, RED};

/// Requests a second while something is done to the mesh.
const RATE: u32 = 200;

/// A machine that tests debug builds on few cores gets five times the time.
const SLACK: u32 = if cfg!(debug_assertions) { 5 } else { 1 };

/// When the page must be there.
const FIRST_PAGE: Duration = Duration::from_secs(5 * SLACK as u64);
/// When an edit must be in force.
const EFFECTIVE: Duration = Duration::from_secs(SLACK as u64);
/// When all proxies must be in sync with a control plane that was started.
const IN_SYNC: Duration = Duration::from_secs(5 * SLACK as u64);

/// What a check found: a figure or remark worth printing, or why it failed.
type Verdict = anyhow::Result<String>;

/// Runs all checks on free ports.
pub async fn run(args: &DemoArgs) -> Outcome {
    let mut ending = Ending::listen().map_err(anyhow::Error::from)?;
    let begin = Instant::now();
    let plan = Plan::new(0, args.dir.as_deref(), args.concurrency)?;
    if plan.reused {
        let message = format!(
            "{} holds the configuration of an earlier run, which the checks would trip over: name an empty folder",
            plan.root().display()
        );
        return Err(Failure::new(exit::USAGE, message));
    }
    let root = plan.root().to_owned();
    let keeps = plan.keeps_files();
    let mut mesh = Mesh::new(plan);
    let outcome = tokio::select! {
        outcome = checks(&mut mesh, begin) => outcome,
        () = ending.wait() => {
            eprintln!("interrupted");
            false
        }
    };
    let pids = mesh.pids();
    let words = mesh.last_words();
    if !outcome {
        eprintln!("{words}");
    }
    mesh.stop().await;
    drop(mesh);
    let clean = Check::new("no process and no file is left behind").end(leftovers(&pids, (!keeps).then_some(&root)));
    Ok(if outcome && clean { ExitCode::SUCCESS } else { ExitCode::from(exit::NEGATIVE) })
}

/// In order; each leaves the mesh as it found it. The first failure to start ends them all.
async fn checks(mesh: &mut Mesh, begin: Instant) -> bool {
    let check = Check::new(format!("the first page comes within {FIRST_PAGE:?}"));
    let started = mesh.start().await.and_then(|()| {
        let took = begin.elapsed();
        anyhow::ensure!(took < FIRST_PAGE, "it took {took:.1?}");
        Ok(format!("{took:.1?}"))
    });
    if !check.end(started) {
        return false;
    }
    let mut all = true;
    let check = Check::new("a request crosses three hops of mutual TLS, each with the identities it should have");
    all &= check.end(identity::three_hops(mesh).await);
    let check = Check::new("plain HTTP to a sidecar's inbound port is refused under STRICT");
    all &= check.end(identity::plain_refused(mesh).await);
    let check = Check::new("the certificate of another workload is refused by the client side");
    all &= check.end(identity::imposter_refused(mesh).await);
    let check = Check::new("a header sends one user to version 2, and nobody else");
    all &= check.end(canary::by_header(mesh).await);
    let check = Check::new("a denied caller gets 403, and is served again when the policy is gone");
    all &= check.end(identity::denied(mesh).await);
    let check = Check::new("mirrored requests arrive, and never delay the answer");
    all &= check.end(resilience::mirror(mesh).await);
    let check = Check::new("retries hide a backend that answers 503 to every third call");
    all &= check.end(resilience::retries(mesh).await);
    let check = Check::new("a backend that hangs meets the route's timeout: 504, UT");
    all &= check.end(resilience::hangs(mesh).await);
    let check = Check::new("a dead endpoint leaves the pool by outlier detection");
    all &= check.end(resilience::dead_endpoint(mesh).await);
    let check = Check::new(format!(
        "canary 100/0 -> 90/10 -> 0/100 under load: no failure, split within 2 points, within {EFFECTIVE:?}"
    ));
    all &= check.end(canary::shift(mesh).await);
    let check = Check::new(format!(
        "control plane gone for 10 s under load: no failure, new proxies wait, in sync within {IN_SYNC:?}"
    ));
    all &= check.end(outage::survive(mesh).await);
    let check = Check::new("certificates rotated every 2 s for 20 s under load: no failure");
    all &= check.end(rotation::rotate(mesh).await);
    all
}

/// A line of output.
struct Check {
    what: String,
}

impl Check {
    fn new(what: impl Into<String>) -> Self {
        let what = what.into();
        if std::io::IsTerminal::is_terminal(&std::io::stderr()) {
            eprintln!("      {what} ...");
        }
        Self { what }
    }

    fn end(self, verdict: Verdict) -> bool {
        match verdict {
            Ok(remark) if remark.is_empty() => anstream::println!("{GREEN}ok{GREEN:#}    {}", self.what),
            Ok(remark) => anstream::println!("{GREEN}ok{GREEN:#}    {} ({remark})", self.what),
            Err(why) => {
                anstream::println!("{RED}FAIL{RED:#}  {}: {why:#}", self.what);
                return false;
            }
        }
        true
    }
}

fn leftovers(pids: &[u32], root: Option<&std::path::PathBuf>) -> Verdict {
    for pid in pids {
        let alive = std::path::Path::new(&format!("/proc/{pid}")).exists();
        anyhow::ensure!(!alive, "process {pid} still runs");
    }
    if let Some(root) = root {
        anyhow::ensure!(!root.exists(), "{} is still there", root.display());
    }
    Ok(String::new())
}

/// One request to the page.
async fn journey(mesh: &Mesh, user: Option<&str>) -> anyhow::Result<(u16, Journey)> {
    let mut request = ::http::Request::get(format!("{}/journey", mesh.plan.page()));
    if let Some(user) = user {
        request = request.header("x-user", user);
    }
    let answer = http::send(request).await?;
    let journey = serde_json::from_slice(&answer.body)
        .map_err(|e| anyhow::anyhow!("{} instead of a journey ({e}): {}", answer.status, answer.text()))?;
    Ok((answer.status, journey))
}

/// The service of this name on a journey.
fn stop<'j>(journey: &'j Journey, service: &str) -> Option<&'j Journey> {
    if journey.service == service { Some(journey) } else { stop(journey.next.as_deref()?, service) }
}

/// Tries until it holds, for `patience` at most; how long it took.
async fn within(
    patience: Duration,
    what: &str,
    mut holds: impl AsyncFnMut() -> anyhow::Result<()>,
) -> anyhow::Result<Duration> {
    let start = Instant::now();
    loop {
        let Err(why) = holds().await else { return Ok(start.elapsed()) };
        if start.elapsed() > patience {
            return Err(why.context(format!("{what} did not come within {patience:?}")));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Copies a sample into the configuration, as the printed commands do.
fn copy_sample(mesh: &Mesh, sample: &str, file: &str) -> anyhow::Result<()> {
    let (samples, config) = (mesh.plan.samples_dir(), mesh.plan.config_dir());
    let text = std::fs::read_to_string(samples.join(sample))?;
    // Not by rename: `cp` writes in place.
    std::fs::write(config.join(file), text)?;
    Ok(())
}
