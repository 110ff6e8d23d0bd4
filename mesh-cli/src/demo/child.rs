//! Child processes: this very binary with a hidden first word, tied to its parent so that none outlives it.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};
use tokio::process::{Child as Process, ChildStdin, Command};
use tokio::signal::unix::{SignalKind, signal};

use super::apps;

/// What a child is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// `mesh-control`.
    Control,
    /// `mesh-proxy`.
    Proxy,
    /// One of the applications.
    App,
}

impl Role {
    const ALL: [Role; 3] = [Role::Control, Role::Proxy, Role::App];

    fn word(self) -> &'static str {
        match self {
            Role::Control => "__control",
            Role::Proxy => "__proxy",
            Role::App => "__app",
        }
    }
}

/// Runs as a child if the first word of the command line says so. Applications also run by themselves, in pods.
pub fn run(first: &OsStr, rest: impl Iterator<Item = OsString>) -> Option<ExitCode> {
    if first == "app" {
        return Some(apps::main(std::iter::once(OsString::from("meshctl app")).chain(rest)));
    }
    let role = Role::ALL.into_iter().find(|r| first == r.word())?;
    tie_to_parent();
    let args = std::iter::once(OsString::from(role.word())).chain(rest);
    Some(match role {
        Role::Control => mesh_control::app::main(args),
        Role::Proxy => mesh_proxy::app::main(args),
        Role::App => apps::main(args),
    })
}

/// Ends this process when the parent ends, however that comes about: the kernel sends a signal, and standard input,
/// a pipe whose other end the parent holds, ends.
fn tie_to_parent() {
    let _ = set_parent_process_death_signal(Some(Signal::TERM));
    let watch = std::thread::Builder::new().name("parent".to_owned());
    let _ = watch.spawn(|| {
        let mut sink = std::io::sink();
        let _ = std::io::copy(&mut std::io::stdin(), &mut sink);
        std::process::exit(0);
    });
}

/// A running child.
#[derive(Debug)]
pub struct Child {
    /// Shown to people.
    pub name: String,
    process: Process,
    /// Held as long as the child is to live: it ends when this does. (Waiting would close it otherwise.)
    _lifeline: Option<ChildStdin>,
    log: PathBuf,
}

impl Child {
    /// Starts a child; its output is appended to a file in `logs`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(role: Role, name: &str, args: &[OsString], logs: &Path) -> anyhow::Result<Self> {
        let log = logs.join(format!("{name}.log"));
        let open = || File::options().create(true).append(true).open(&log);
        let program = std::env::current_exe().context("cannot find this program")?;
        let mut process = Command::new(program)
            .arg(role.word())
            .args(args)
            .stdin(Stdio::piped())
            .stdout(open()?)
            .stderr(open()?)
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        let lifeline = process.stdin.take();
        Ok(Self { name: name.to_owned(), process, _lifeline: lifeline, log })
    }

    /// Asks it to end.
    pub fn terminate(&self) {
        self.send(Signal::TERM);
    }

    /// Ends it at once and waits for that.
    pub async fn kill(&mut self) {
        let _ = self.process.kill().await;
    }

    /// Waits for its end; `false`: it took too long and was killed.
    pub async fn ended(&mut self, patience: Duration) -> bool {
        if tokio::time::timeout(patience, self.process.wait()).await.is_ok() {
            return true;
        }
        self.kill().await;
        false
    }

    /// Waits for its end.
    pub async fn wait(&mut self) {
        let _ = self.process.wait().await;
    }

    /// Process id; `None` once it has ended.
    pub fn pid(&self) -> Option<u32> {
        self.process.id()
    }

    /// The last lines it wrote.
    pub fn last_words(&self, lines: usize) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let all: Vec<&str> = text.lines().collect();
        all.get(all.len().saturating_sub(lines)..).unwrap_or_default().join("\n")
    }

    fn send(&self, signal: Signal) {
        let pid = self.process.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        if let Some(pid) = pid {
            let _ = kill_process(pid, signal);
        }
    }
}

/// Ctrl-C, SIGTERM or a closed terminal.
#[derive(Debug)]
pub struct Ending {
    signals: [tokio::signal::unix::Signal; 3],
}

impl Ending {
    /// Starts to listen; from now on these signals no longer end the process by themselves.
    ///
    /// # Errors
    /// When signals cannot be had.
    pub fn listen() -> std::io::Result<Self> {
        let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
        let [a, b, c] = kinds.map(signal);
        Ok(Self { signals: [a?, b?, c?] })
    }

    /// Waits for one of them.
    pub async fn wait(&mut self) {
        let [a, b, c] = &mut self.signals;
        tokio::select! {
            _ = a.recv() => {}
            _ = b.recv() => {}
            _ = c.recv() => {}
        }
    }
}
