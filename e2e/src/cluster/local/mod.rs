//! A real Kubernetes on this machine without containers around it: every part is a process in the namespaces of its node
//! (network, mounts, processes, host name), so that the death of the node's first process leaves nothing of it.
//!
//! This owns what happens outside the node: programs, addresses, control groups, the node's start and its traces. What
//! happens inside, the node program of `e2e/kubernetes/node` does by a plan.

pub mod addresses;
mod certificates;
mod cgroups;
mod claims;
mod network;
mod parts;
mod processes;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use parking_lot::Mutex;
use tokio::process::{Child, ChildStdin, Command};
use tokio::time::Instant;

use self::addresses::Addresses;
use self::claims::{Claim, Claims};
use self::parts::Parts;
use self::processes::Process;
use super::kubectl::run;
use super::programs::{self, Programs};
use super::{Cluster, Life, Provided, Settings, system, target};
use crate::images;

/// Until a cluster is up; the usual is some seconds, with a cold disk and a busy machine it was eleven.
const PATIENCE: Duration = Duration::from_secs(180);

/// The node of a cluster that is up.
#[derive(Debug)]
pub struct Node {
    claim: Claim,
    programs: Programs,
    /// What keeps a tied node alive: its end is the node's.
    lifeline: Option<ChildStdin>,
    outermost: Option<Child>,
    restarts_told: Mutex<usize>,
}

/// Brings a cluster up, or finds it.
pub(super) async fn up(settings: &Settings) -> Result<Cluster> {
    if !rustix::process::geteuid().is_root() {
        bail!(
            "the provider local makes namespaces, links and control groups: run this as root, or use another provider"
        );
    }
    let progress = settings.progress;
    system::ensure(system::RUNNING, false, progress)?;
    let programs = programs::build(progress).await?;
    let directory = target()?.join("clusters").join(&settings.name);
    let (claim, found) = claim(settings, &directory, &programs).await?;
    let mut node = Node { claim, programs, lifeline: None, outermost: None, restarts_told: Mutex::new(0) };
    if !found && let Err(error) = node.start(settings).await {
        // The logs stay, so that what was said can be read.
        let cleared = clear(&node.claim, false).await;
        return Err(cleared.err().map_or(error, |e| e.context("and it cannot be cleared away")));
    }
    if found {
        progress.step("it runs already");
        node.started().await?;
        *node.restarts_told.lock() = node.restarts().len();
    }
    let kubeconfig = directory.join("kubeconfig");
    let kubectl = node.claim.kubectl.clone();
    Ok(Cluster { name: settings.name.clone(), kubeconfig, kubectl, provided: Provided::Local(Box::new(node)), found })
}

/// The claim of a cluster: that of one which lives, or a new one, after what an earlier one left was cleared away.
async fn claim(settings: &Settings, directory: &Path, programs: &Programs) -> Result<(Claim, bool)> {
    let name = &settings.name;
    for _ in 0..4 {
        let left = {
            let claims = Claims::lock()?;
            match claims.of(name)? {
                Some(claim) if claim.holder.alive() => return of_living(claim, directory).map(|claim| (claim, true)),
                Some(dead) => dead,
                None => {
                    let Some(slot) = claims.free_slot()? else {
                        if let Some(dead) = claims.all()?.into_iter().find(|c| !c.holder.alive()) {
                            drop(claims);
                            clear(&dead, true).await?;
                            continue;
                        }
                        bail!(
                            "{} local clusters are claimed, and more do not fit: take one down (`cluster list` shows them)",
                            addresses::SLOTS
                        )
                    };
                    let (directory, kubectl) = (directory.to_owned(), programs.kube("kubectl"));
                    let (name, holder) = (name.clone(), Process::own()?);
                    let claim = Claim { name, slot, directory, holder, first: None, kubectl };
                    claims.put(&claim)?;
                    drop(claims);
                    // Without a claim there may be traces too: of who was killed while clearing away.
                    clear_traces(&claim, true).await?;
                    return Ok((claim, false));
                }
            }
        };
        settings.progress.step(&format!("clears away what an earlier {name} left"));
        clear(&left, true).await?;
    }
    bail!("somebody else starts a cluster {name} at this moment: wait for that, or use another name")
}

fn of_living(claim: Claim, directory: &Path) -> Result<Claim> {
    let Claim { name, holder, .. } = &claim;
    if claim.directory != directory {
        let place = claim.directory.display();
        bail!("a cluster {name} runs already, with its data in {place}: use another name, or take that one down");
    }
    if claim.first.is_none() {
        bail!("process {} starts the cluster {name} at this moment: wait for it", holder.pid);
    }
    Ok(claim)
}

/// Takes down the cluster of a name, whoever started it; whether there was one.
pub(super) async fn down(name: &str) -> Result<bool> {
    let claim = Claims::lock()?.of(name)?;
    match claim {
        Some(claim) => clear(&claim, true).await.map(|()| true),
        None => Ok(false),
    }
}

/// Whether a cluster of this name runs or is being started.
///
/// # Errors
/// When claims cannot be read.
pub fn lives(name: &str) -> Result<bool> {
    Ok(Claims::lock()?.of(name)?.is_some_and(|claim| claim.holder.alive()))
}

/// A line for each local cluster of this machine.
///
/// # Errors
/// When claims cannot be read.
pub fn list() -> Result<Vec<String>> {
    let line = |claim: Claim| {
        let state = match (claim.holder.alive(), claim.directory.join("started").exists()) {
            (true, true) => "up",
            (true, false) => "starting",
            (false, _) => "dead",
        };
        let addresses = Addresses::of(claim.slot);
        format!("{:20} {state:8} {}  {}", claim.name, addresses.node, claim.directory.join("kubeconfig").display())
    };
    Ok(Claims::lock()?.all()?.into_iter().map(line).collect())
}

/// Ends the processes of a cluster and removes its traces; its data only if wanted.
async fn clear(claim: &Claim, data: bool) -> Result<()> {
    // Who only began to start it may still do so: it ends with its own process.
    if claim.first.is_none() && claim.holder.alive() && claim.holder != Process::own()? {
        bail!("process {} starts the cluster {} at this moment: end that first", claim.holder.pid, claim.name);
    }
    clear_traces(claim, data).await?;
    let claims = Claims::lock()?;
    claims.remove(&claim.name);
    // The last one takes the bridge along; who claims a slot meanwhile waits.
    if claims.all()?.is_empty() {
        network::remove_bridge()?;
    }
    Ok(())
}

async fn clear_traces(claim: &Claim, data: bool) -> Result<()> {
    let mut processes = processes::in_network(&network::namespace_file(&claim.name))?;
    // The first process of the node is in there too. Who watches it, outermost, ends by itself then.
    processes.extend(claim.first);
    processes::end(&processes).await?;
    {
        let _claims = Claims::lock()?;
        network::remove(&claim.name, &Addresses::of(claim.slot))?;
    }
    cgroups::remove(&claim.name).await?;
    if data && claim.directory.exists() {
        let mounts = fs::read_to_string("/proc/self/mounts").context("cannot read mounts")?;
        let folder = claim.directory.display();
        if let Some(at) = mounts_in(&mounts, &claim.directory).next() {
            bail!("{at} is mounted in {folder}, which is to be removed: unmount it first");
        }
        fs::remove_dir_all(&claim.directory).with_context(|| format!("cannot remove {folder}"))?;
    }
    Ok(())
}

/// Where something is mounted in a folder, out of the text of /proc/self/mounts.
fn mounts_in<'a>(mounts: &'a str, folder: &'a Path) -> impl Iterator<Item = String> + 'a {
    // The kernel writes what would end a word as octal numbers.
    let plain = |word: &str| {
        ["\\040", "\\011", "\\012", "\\134"]
            .iter()
            .zip([" ", "\t", "\n", "\\"])
            .fold(word.to_owned(), |word, (number, letter)| word.replace(number, letter))
    };
    let places = mounts.lines().filter_map(move |line| line.split(' ').nth(1).map(plain));
    places.filter(move |at| Path::new(at).starts_with(folder))
}

impl Node {
    async fn start(&mut self, settings: &Settings) -> Result<()> {
        let progress = settings.progress;
        let addresses = Addresses::of(self.claim.slot);
        let pause = images::pause(&self.programs)?;
        progress.step("makes certificates, addresses and control groups");
        let tied = settings.life == Life::Tied;
        let parts = Parts {
            cluster: &self.claim.name,
            directory: &self.claim.directory,
            programs: &self.programs,
            addresses: &addresses,
            tied,
        };
        let plan = parts.write(&pause)?;
        fs::copy(self.claim.directory.join("pki/admin.kubeconfig"), self.claim.directory.join("kubeconfig"))
            .context("cannot write the kubeconfig")?;
        cgroups::make(&self.claim.name)?;
        {
            let _claims = Claims::lock()?;
            network::make(&self.claim.name, &addresses)?;
        }
        progress.step("starts the node");
        self.spawn(&plan, tied).await?;
        self.started().await
    }

    /// Starts the node's first process, and claims the cluster for it.
    async fn spawn(&mut self, plan: &Path, tied: bool) -> Result<()> {
        let log = self.claim.directory.join("log/node.log");
        let output = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let network = format!("--net={}", network::namespace_file(&self.claim.name).display());
        // In a session of its own: what ends a terminal or its foreground is not meant for it.
        let mut command = Command::new("setsid");
        command.args(["nsenter", &network, "unshare", "--mount", "--pid", "--uts", "--ipc", "--fork"]);
        command.args(["--kill-child=KILL", "--mount-proc", "--propagation", "private"]);
        command.arg(self.programs.own("node")).arg(plan);
        command.stdin(if tied { Stdio::piped() } else { Stdio::null() });
        command.stdout(output.try_clone().context("cannot use the log twice")?).stderr(output);
        let mut outermost = command.spawn().context("cannot start the node: run setsid")?;
        let pid = outermost.id().and_then(|id| i32::try_from(id).ok()).and_then(Process::of);
        self.lifeline = outermost.stdin.take();
        self.outermost = Some(outermost);
        let holder = pid.with_context(|| format!("the node ended at once; its log is {}", log.display()))?;
        let deadline = Instant::now() + Duration::from_secs(10);
        // Its child is the first process once it is the node program, which is in there with the plan.
        while self.claim.first.is_none() {
            self.claim.first = holder.child();
            if Instant::now() > deadline || !holder.alive() {
                bail!("the node did not start: {}", tail(&log, 5));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.claim.holder = holder;
        Claims::lock()?.put(&self.claim)
    }

    /// Waits until the cluster is up.
    async fn started(&self) -> Result<()> {
        let log = self.claim.directory.join("log/node.log");
        let deadline = Instant::now() + PATIENCE;
        while !self.claim.directory.join("started").exists() {
            self.gave_up()?;
            if !self.claim.holder.alive() {
                bail!("the node ended while it started; {}:\n{}", log.display(), tail(&log, 15));
            }
            if Instant::now() > deadline {
                bail!("not up after {} s; {}:\n{}", PATIENCE.as_secs(), log.display(), tail(&log, 15));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    fn gave_up(&self) -> Result<()> {
        match fs::read_to_string(self.claim.directory.join("failed")) {
            Ok(why) => bail!("the node of {} gave up: {}", self.claim.name, why.trim()),
            Err(_) => Ok(()),
        }
    }

    /// Lines of the node's log about parts that were started again.
    fn restarts(&self) -> Vec<String> {
        let log = fs::read_to_string(self.claim.directory.join("log/node.log")).unwrap_or_default();
        log.lines().filter(|line| line.contains(" ended after ")).map(str::to_owned).collect()
    }

    pub(super) fn health(&self) -> Result<()> {
        self.gave_up()?;
        if !self.claim.holder.alive() {
            let log = self.claim.directory.join("log/node.log");
            bail!("the node of {} ended; {}:\n{}", self.claim.name, log.display(), tail(&log, 15));
        }
        let (all, mut told) = (self.restarts(), self.restarts_told.lock());
        let new = all.get(*told..).unwrap_or_default().join("\n");
        *told = all.len();
        if new.is_empty() { Ok(()) } else { bail!("parts of {} had to be started again:\n{new}", self.claim.name) }
    }

    pub(super) async fn import_image(&self, archive: &Path) -> Result<()> {
        let archive = archive.display().to_string();
        let mut words = parts::import(&self.programs);
        words.push(archive);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        self.exec(&words).await.map(drop)
    }

    pub(super) async fn exec(&self, words: &[&str]) -> Result<String> {
        run(self.command(words)?, &format!("{} on the node of {}", words.join(" "), self.claim.name), b"").await
    }

    pub(super) fn command(&self, words: &[&str]) -> Result<Command> {
        let first = self.claim.first.context("the node has no first process")?;
        let mut command = Command::new("nsenter");
        command.args(["--target", &first.pid.to_string(), "--mount", "--uts", "--ipc", "--net", "--pid", "--"]);
        command.args(words).env("PATH", self.programs.path()).env("CONTAINERD_ADDRESS", parts::CONTAINERD);
        command.env("CONTAINERD_NAMESPACE", "k8s.io").env("KUBECONFIG", self.claim.directory.join("kubeconfig"));
        Ok(command)
    }

    pub(super) async fn join_networks(&self, other: &Self, joined: bool) -> Result<()> {
        let (a, b) = (Addresses::of(self.claim.slot), Addresses::of(other.claim.slot));
        network::join((&self.claim.name, &a), &b, joined)?;
        network::join((&other.claim.name, &b), &a, joined)
    }

    pub(super) async fn down(mut self) -> Result<()> {
        clear(&self.claim, true).await?;
        if let Some(mut outermost) = self.outermost.take() {
            let _ = outermost.wait().await;
        }
        drop(self.lifeline.take());
        Ok(())
    }
}

fn tail(file: &Path, lines: usize) -> String {
    let text = fs::read_to_string(file).unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    all.get(all.len().saturating_sub(lines)..).unwrap_or_default().join("\n")
}

/// Where the parts of a local cluster log.
pub fn logs(cluster: &str) -> Result<PathBuf> {
    Ok(target()?.join("clusters").join(cluster).join("log"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_found_whatever_their_names() {
        let mounts =
            "proc /proc proc rw 0 0\ntmpfs /a\\040b/east/run tmpfs rw 0 0\ntmpfs /a\\040b/east-2 tmpfs rw 0 0\n";
        let found: Vec<String> = mounts_in(mounts, Path::new("/a b/east")).collect();
        assert_eq!(found, ["/a b/east/run"]);
    }
}
