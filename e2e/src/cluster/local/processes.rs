//! Processes of other runs: whether they live, and their end. What the kernel tells under /proc, no more.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// A process, told apart from a later one with the same number by when it started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Number, as this machine counts.
    pub pid: i32,
    started: u64,
}

/// What `/proc/PID/stat` tells.
struct Stat {
    state: char,
    parent: i32,
    started: u64,
}

impl Process {
    /// The process that has a number now.
    pub fn of(pid: i32) -> Option<Self> {
        stat(pid).map(|s| Self { pid, started: s.started })
    }

    /// This process.
    ///
    /// # Errors
    /// Without /proc.
    pub fn own() -> Result<Self> {
        Self::of(rustix::process::getpid().as_raw_pid()).context("/proc is not there")
    }

    /// It runs: it is neither gone nor waits only to be counted.
    pub fn alive(self) -> bool {
        stat(self.pid).is_some_and(|s| s.started == self.started && !matches!(s.state, 'Z' | 'X'))
    }

    /// A process that it started, if there is one.
    pub fn child(self) -> Option<Self> {
        all().find_map(|pid| stat(pid).filter(|s| s.parent == self.pid).map(|s| Self { pid, started: s.started }))
    }

    fn kill(self) {
        if self.alive()
            && let Some(pid) = Pid::from_raw(self.pid)
        {
            // It may have ended by itself meanwhile.
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

fn stat(pid: i32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name of the program, in parentheses, may hold anything.
    let mut fields = text.rsplit_once(") ")?.1.split(' ');
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    Some(Stat { state, parent, started: fields.nth(17)?.parse().ok()? })
}

fn all() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|e| e.file_name().to_str()?.parse().ok())
}

/// Processes in a network namespace, which is named by a file; none if there is no such file.
///
/// # Errors
/// When the file names the namespace that this process is in: ending everything there would end the machine.
pub fn in_network(namespace: &Path) -> Result<Vec<Process>> {
    let Ok(wanted) = fs::metadata(namespace) else { return Ok(Vec::new()) };
    let is = |pid: &str| {
        let of = fs::metadata(format!("/proc/{pid}/ns/net"));
        of.is_ok_and(|m| (m.dev(), m.ino()) == (wanted.dev(), wanted.ino()))
    };
    if is("self") {
        let file = namespace.display();
        bail!("{file} names this machine's own network, not a cluster's: remove it (`ip netns delete`)");
    }
    Ok(all().filter(|pid| is(&pid.to_string())).filter_map(Process::of).collect())
}

/// Kills processes and waits until they are gone, which for the first of a namespace means that all in it are.
///
/// # Errors
/// When one does not end.
pub async fn end(processes: &[Process]) -> Result<()> {
    for process in processes {
        process.kill();
    }
    let deadline = Instant::now() + Duration::from_secs(20);
    while let Some(process) = processes.iter().find(|p| p.alive()) {
        if Instant::now() > deadline {
            bail!("process {} does not end, though it was killed: it hangs in the kernel", process.pid);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{Process, in_network};

    #[test]
    fn a_process_that_runs_is_told_from_one_that_does_not() {
        let own = Process::own().unwrap();
        assert!(own.alive());
        assert!(!Process { started: own.started + 1, ..own }.alive());
        assert!(Process::of(i32::MAX).is_none());
    }

    #[test]
    fn the_network_of_this_machine_is_no_clusters() {
        assert!(in_network(Path::new("/proc/self/ns/net")).is_err());
        assert!(in_network(Path::new("/run/netns/there-is-none")).unwrap().is_empty());
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(in_network(file.path()).unwrap().is_empty(), "a name that was left without its namespace");
    }
}
