//! What tests of the program share: runs of it, a demo that is there for a while, a server with canned answers.

#![allow(dead_code)] // each test file uses a part

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::time::Instant;

/// What may take as long as it takes; far more than it needs.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The program, without what the environment of the test may say to it.
pub fn meshctl() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_meshctl"));
    for name in [
        "MESHCTL_CONTROL",
        "MESHCTL_TOKEN",
        "KUBECONFIG",
        "KUBERNETES_SERVICE_HOST",
        "NO_COLOR",
        "CLICOLOR",
        "CLICOLOR_FORCE",
    ] {
        command.env_remove(name);
    }
    // No kubeconfig is there.
    command.env("HOME", "/dev/null");
    command.stdin(Stdio::null());
    command
}

/// How a run ended.
#[derive(Debug)]
pub struct Ended {
    pub code: i32,
    pub out: String,
    pub err: String,
}

/// Runs to the end.
pub fn ended(command: &mut Command) -> Ended {
    let output = command.output().unwrap();
    Ended {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Runs meshctl to the end.
pub fn run<const N: usize>(args: [&str; N]) -> Ended {
    ended(meshctl().args(args))
}

/// A port that nobody listens on.
pub fn closed_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// A server that gives each caller the same answer, or none; heads of requests are kept.
pub fn server(answer: Option<&str>) -> (String, std::sync::mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (heads, seen) = std::sync::mpsc::channel();
    let answer = answer.map(str::to_owned);
    std::thread::spawn(move || {
        let mut silent = Vec::new();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut head = String::new();
            let mut reader = BufReader::new(&stream);
            while !head.ends_with("\r\n\r\n") && reader.read_line(&mut head).unwrap() > 0 {}
            let _ = heads.send(head);
            match &answer {
                Some(answer) => stream.write_all(answer.as_bytes()).unwrap(),
                None => silent.push(stream),
            }
        }
    });
    (address, seen)
}

/// Until it holds.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "waited {PATIENCE:?} for {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A demo that runs until this is dropped.
#[derive(Debug)]
pub struct Demo {
    pub process: Child,
    /// All it printed when it was up.
    pub welcome: String,
    /// Its files lie below.
    pub temporary: tempfile::TempDir,
}

impl Demo {
    /// Starts one on free ports and waits until its page answers.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts one with more flags.
    pub fn start_with(more: &[&str]) -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let mut process = meshctl()
            .args(["demo", "--port", "0", "--load", "2"])
            .args(more)
            .env("TMPDIR", temporary.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut welcome = String::new();
        let mut out = BufReader::new(process.stdout.take().unwrap());
        while !welcome.contains("Ctrl-C ends everything") {
            if out.read_line(&mut welcome).unwrap() == 0 {
                let mut why = String::new();
                process.stderr.take().unwrap().read_to_string(&mut why).unwrap();
                let _ = process.wait();
                panic!("the demo ended: {welcome}{why}");
            }
        }
        process.stdout = Some(out.into_inner());
        Self { process, welcome, temporary }
    }

    /// The word behind another in what it printed.
    pub fn told(&self, word: &str) -> &str {
        let (_, rest) = self.welcome.split_once(word).unwrap_or_else(|| panic!("no {word:?} in {}", self.welcome));
        rest.split_whitespace().next().unwrap()
    }

    /// Where its control plane answers.
    pub fn control(&self) -> &str {
        self.told("MESHCTL_CONTROL=")
    }

    /// meshctl as it would be called beside it, to the end.
    pub fn run(&self, words: &str) -> Ended {
        ended(meshctl().env("MESHCTL_CONTROL", self.control()).args(words.split_whitespace()))
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.process);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Processes that it started.
    pub fn children(&self) -> Vec<u32> {
        let parent = format!("PPid:\t{}\n", self.process.id());
        let processes = std::fs::read_dir("/proc").unwrap().flatten();
        let pids = processes.filter_map(|p| p.file_name().to_str()?.parse().ok());
        pids.filter(|pid| status(*pid).is_some_and(|s| s.contains(&parent))).collect()
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        // Its children end with it.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn status(pid: u32) -> Option<String> {
    std::fs::read_to_string(format!("/proc/{pid}/status")).ok()
}

/// A process that runs; one that nobody has collected yet does not.
pub fn runs(pid: u32) -> bool {
    status(pid).is_some_and(|s| !s.contains("State:\tZ"))
}

/// Files in a folder.
pub fn names_in(folder: &Path) -> Vec<String> {
    std::fs::read_dir(folder).unwrap().flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect()
}
