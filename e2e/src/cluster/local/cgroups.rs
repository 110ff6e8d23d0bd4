//! The control groups of a node: one root in every hierarchy, under which the kubelet makes those of pods.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::time::Instant;

/// Groups vanish a while after their processes.
const PATIENCE: Duration = Duration::from_secs(10);

/// The root's name in every hierarchy.
pub fn root(cluster: &str) -> String {
    format!("mesh-{cluster}")
}

/// Makes the root. Of version 1 of control groups, every hierarchy has its own.
///
/// # Errors
/// When there is no hierarchy or it cannot be written.
pub fn make(cluster: &str) -> Result<()> {
    let hierarchies = hierarchies()?;
    for Hierarchy { at, unified } in &hierarchies {
        let folder = at.join(root(cluster));
        if *unified && hierarchies.len() > 1 {
            continue; // runc makes its own there, and nothing is limited by it.
        }
        fs::create_dir_all(&folder).with_context(|| {
            format!("cannot make the control group {}: is this a container without rights to them?", folder.display())
        })?;
        if *unified {
            delegate(at)?;
            delegate(&folder)?;
        }
        // They start empty, and then no process may enter.
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let (from, to) = (at.join(file), folder.join(file));
            if !unified && from.exists() {
                let value = fs::read(&from).with_context(|| format!("cannot read {}", from.display()))?;
                fs::write(&to, value).with_context(|| format!("cannot write {}", to.display()))?;
            }
        }
    }
    Ok(())
}

/// Lets groups below use what limits this one has.
fn delegate(group: &Path) -> Result<()> {
    let has =
        fs::read_to_string(group.join("cgroup.controllers")).context("cannot read what a control group limits")?;
    let all: Vec<String> = has.split_whitespace().map(|c| format!("+{c}")).collect();
    fs::write(group.join("cgroup.subtree_control"), all.join(" ")).with_context(|| {
        format!(
            "the control group {} does not let others divide what it limits: move its processes out",
            group.display()
        )
    })
}

/// Removes all of them.
///
/// # Errors
/// When processes are still in one.
pub async fn remove(cluster: &str) -> Result<()> {
    let roots: Vec<PathBuf> = hierarchies()?.into_iter().map(|h| h.at.join(root(cluster))).collect();
    let deadline = Instant::now() + PATIENCE;
    for group in roots {
        while group.exists() && remove_below(&group).is_err() {
            if Instant::now() > deadline {
                bail!("the control group {} still holds processes: {}", group.display(), members(&group));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    Ok(())
}

fn remove_below(group: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(group)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_below(&entry.path())?;
        }
    }
    fs::remove_dir(group)
}

fn members(group: &Path) -> String {
    let mut found = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            found += &members(&entry.path());
        }
    }
    found.split_whitespace().collect::<Vec<_>>().join(" ")
}

struct Hierarchy {
    at: PathBuf,
    /// Version 2.
    unified: bool,
}

fn hierarchies() -> Result<Vec<Hierarchy>> {
    let mounts = fs::read_to_string("/proc/mounts").context("cannot read /proc/mounts")?;
    let found: Vec<Hierarchy> = mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let (at, kind) = (fields.next()?, fields.next()?);
            matches!(kind, "cgroup" | "cgroup2").then(|| Hierarchy { at: at.into(), unified: kind == "cgroup2" })
        })
        .collect();
    if found.is_empty() {
        bail!("no control groups are mounted under /sys/fs/cgroup: Kubernetes cannot run without");
    }
    Ok(found)
}
