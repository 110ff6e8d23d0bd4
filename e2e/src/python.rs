//! What the judges that are written in Python need: fresh binaries of ours, and an interpreter with pinned packages.
//!
//! What they check, and how, is theirs.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail};

/// A path in this crate's folder.
pub fn folder(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The folder of our programs, which are brought up to date: an old one would be judged otherwise.
///
/// # Errors
/// When they do not build or are not there.
pub fn binaries() -> Result<PathBuf> {
    let this = std::env::current_exe().context("where this program is")?;
    let folder = this.parent().context("this program has no folder")?.to_owned();
    if let Some(cargo) = std::env::var_os("CARGO") {
        let mut build = Command::new(cargo);
        build.args(["build", "--locked", "--quiet", "--bins"]).args([
            "-p",
            "mesh-proxy",
            "-p",
            "mesh-control",
            "-p",
            "mesh-cli",
        ]);
        if folder.ends_with("release") {
            build.arg("--release");
        }
        let manifest = self::folder("../Cargo.toml");
        let status = build.arg("--manifest-path").arg(manifest).status().context("cannot run cargo")?;
        if !status.success() {
            bail!("the programs do not build");
        }
    }
    for name in ["mesh-proxy", "mesh-control", "meshctl"] {
        if !folder.join(name).exists() {
            bail!("{} is missing: run this by `cargo run -p e2e -- run ...`", folder.join(name).display());
        }
    }
    Ok(folder)
}

/// A Python with the packages of `requirements.txt`, made anew when those change. `binaries` lie in the target folder.
///
/// # Errors
/// When Python is missing or the packages cannot be had.
pub fn environment(binaries: &Path) -> Result<PathBuf> {
    let tools = binaries.parent().context("binaries have no parent")?.join("ci-tools/python");
    let (python, stamp) = (tools.join("bin/python"), tools.join("installed.txt"));
    let list = folder("requirements.txt");
    let wanted = std::fs::read_to_string(&list).with_context(|| format!("cannot read {}", list.display()))?;
    if python.exists() && std::fs::read_to_string(&stamp).is_ok_and(|found| found == wanted) {
        return Ok(python);
    }
    must(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&tools), "python3 -m venv")?;
    patiently("pip install", || {
        must(Command::new(&python).args(["-m", "pip", "install", "--quiet", "--requirement"]).arg(&list), "pip install")
    })?;
    std::fs::write(&stamp, wanted).with_context(|| format!("cannot write {}", stamp.display()))?;
    Ok(python)
}

/// Tries what asks a registry again: a registry that stumbles once says nothing of the change that is judged.
///
/// # Errors
/// That of the last of [`PAUSES`] and one tries.
pub fn patiently<T>(what: &str, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    for pause in PAUSES {
        match attempt() {
            Ok(done) => return Ok(done),
            Err(error) => eprintln!("{what}: {error:#}; again in {} s", pause.as_secs()),
        }
        std::thread::sleep(pause);
    }
    attempt()
}

/// Between tries to reach a registry.
const PAUSES: [Duration; 3] = [Duration::from_secs(5), Duration::from_secs(20), Duration::from_secs(60)];

fn must(command: &mut Command, what: &str) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot run {what}"))?;
    if status.success() { Ok(()) } else { bail!("{what} failed: {status}") }
}
