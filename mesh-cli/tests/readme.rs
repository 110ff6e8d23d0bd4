//! The commands of README.md, run as they are written. Only what must differ between machines is replaced: addresses.

#![allow(clippy::unwrap_used)] // a test that meets what it does not expect ends

mod support;

use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use support::{Demo, Ended, ended, eventually, meshctl};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// Commands of the code blocks of a section.
fn blocks(section: &str) -> Vec<Vec<String>> {
    let text = std::fs::read_to_string(Path::new(ROOT).join("README.md")).unwrap();
    let (_, rest) = text.split_once(&format!("\n## {section}\n")).unwrap_or_else(|| panic!("no section {section}"));
    let section = rest.split("\n## ").next().unwrap();
    let fenced = section.split("```sh\n").skip(1).map(|b| b.split("```").next().unwrap());
    let bare = |line: &str| line.split(" #").next().unwrap().trim().to_owned();
    fenced.map(|b| b.lines().map(bare).filter(|l| !l.is_empty()).collect()).collect()
}

/// A folder with the programs by their names, as `cargo build --bins` makes one. Both planes are in meshctl, where they
/// end with their standard input: a pipe that has both its ends never does.
fn programs(folder: &Path) -> String {
    assert!(Command::new("mkfifo").arg(folder.join("open")).status().unwrap().success());
    for (name, role) in [("meshctl", ""), ("mesh-control", "__control"), ("mesh-proxy", "__proxy")] {
        let open = folder.join("open");
        let script =
            format!("#!/bin/sh\nexec '{}' {role} \"$@\" 0<>'{}'\n", env!("CARGO_BIN_EXE_meshctl"), open.display());
        let path = folder.join(name);
        std::fs::write(&path, script).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    format!("{}:{}", folder.display(), std::env::var("PATH").unwrap())
}

/// A command as a terminal has it.
fn shell(line: &str, folder: &Path, path: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", line]).current_dir(folder).env("PATH", path).stdin(Stdio::null());
    command
}

#[test]
fn these_are_all() {
    assert_eq!(
        blocks("Two commands").concat(),
        ["cargo run --bin meshctl -- demo", "cargo test --workspace"],
        "both are what the other tests are about"
    );
    let of_clusters = ["cargo run -p e2e -- demo", "cargo run -p e2e -- run local"];
    assert_eq!(blocks("On Kubernetes").concat(), of_clusters, "these need root: `.ci/run` runs both");
    assert_eq!(blocks("Looking inside").len(), 2);
    assert_eq!(blocks("By hand").len(), 4);
    let text = std::fs::read_to_string(Path::new(ROOT).join("README.md")).unwrap();
    assert_eq!(text.matches("```sh").count(), 9, "a block that no test runs");
}

#[test]
fn looking_inside() {
    let demo = Demo::start();
    let folder = tempfile::tempdir().unwrap();
    let path = programs(folder.path());
    let mut all = blocks("Looking inside").into_iter();
    assert_eq!(all.next().unwrap(), ["cargo build --bins", "export PATH=\"$PWD/target/debug:$PATH\""]);
    for line in all.next().unwrap() {
        let ended = ended(shell(&line, Path::new(ROOT), &path).env("MESHCTL_CONTROL", demo.control()));
        assert_eq!(ended.code, 0, "{line}: {ended:?}");
        assert!(line.contains("validate") || ended.out.lines().count() > 2, "{line}: {ended:?}");
    }
}

/// Programs that run until this is dropped.
struct Running(Vec<Child>);

impl Running {
    fn start(&mut self, line: &str, folder: &Path, path: &str) {
        // Without a shell between them and us, as theirs is the process whose end they follow.
        let child = shell(&format!("exec {line}"), folder, path)
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(folder.join(format!("{}.log", self.0.len()))).unwrap())
            .spawn();
        self.0.push(child.unwrap());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Two loopback addresses that nobody uses.
fn addresses() -> [Ipv4Addr; 2] {
    let pid = std::process::id();
    let octet = |n: u32| u8::try_from(1 + n % 250).unwrap();
    let free =
        |ip: &Ipv4Addr| [15000, 15012, 15014, 15020, 15021, 15090].iter().all(|p| TcpListener::bind((*ip, *p)).is_ok());
    let nets =
        (0..100).map(|n| [1, 2].map(|last| Ipv4Addr::new(127, 200 + octet(pid + n) % 50, octet(pid / 250), last)));
    nets.into_iter().find(|pair| pair.iter().all(free)).unwrap()
}

#[test]
fn by_hand() {
    let [control, workload] = addresses();
    let folder = tempfile::tempdir().unwrap();
    let at: PathBuf = folder.path().join("here");
    std::fs::create_dir(&at).unwrap();
    std::fs::create_dir(folder.path().join("bin")).unwrap();
    std::os::unix::fs::symlink(Path::new(ROOT).join("deploy").canonicalize().unwrap(), at.join("deploy")).unwrap();
    let path = programs(&folder.path().join("bin"));
    let there =
        |line: &String| line.replace("127.0.0.1", &control.to_string()).replace("127.0.0.2", &workload.to_string());
    let [first, second, third, fourth] = &blocks("By hand")[..] else { panic!("four blocks are expected") };
    let done = |line: &String| {
        let ended = ended(&mut shell(&there(line), &at, &path));
        assert_eq!(ended.code, 0, "{line}: {ended:?}");
    };
    let mut running = Running(vec![]);

    let (serve, before) = first.split_last().unwrap();
    before.iter().for_each(done);
    running.start(&there(serve), &at, &path);
    eventually("the control plane's root certificate", || at.join("state/root-cert.pem").exists());
    let (sidecar, before) = second.split_last().unwrap();
    before.iter().for_each(done);
    running.start(&there(sidecar), &at, &path);
    let [export, ps, bootstrap] = &third[..] else { panic!("three commands are expected: {third:?}") };
    let ask = |line: &str| -> Ended { ended(&mut shell(&there(&format!("{export}; {line}")), &at, &path)) };
    eventually("the sidecar to be in sync", || {
        ask(ps).out.lines().any(|l| l.starts_with("web.shop") && l.contains("SYNCED"))
    });
    let shown = ask(bootstrap);
    assert!(shown.code == 0 && shown.out.contains("~web.shop~"), "{shown:?}");
    drop(running);

    let listen = TcpListener::bind((control, 0)).unwrap().local_addr().unwrap();
    let bootstrap = format!(
        "admin: {{address: {{socket_address: {{address: {}, port_value: {}}}}}}}\nstatic_resources: {{}}\n",
        listen.ip(),
        listen.port()
    );
    std::fs::write(at.join("envoy.yaml"), bootstrap).unwrap();
    let mut running = Running(vec![]);
    running.start(fourth.first().unwrap(), &at, &path);
    let admin = listen.to_string();
    eventually("the proxy's admin server", || ended(meshctl().args(["pc", "bootstrap", "--admin", &admin])).code == 0);
}
