//! Runs `nft`, or `iptables-restore` where that does not work, and tells what stood in the way.

use std::io::{ErrorKind, Write as _};
use std::process::{Command, Stdio};

use super::rules::{Family, rules};
use super::{Capture, iptables, nft};

/// Which program sets the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Backend {
    /// nft, or iptables where that does not work.
    Auto,
    /// nft.
    Nft,
    /// iptables-restore and ip6tables-restore.
    Iptables,
}

/// Why rules were not set, read or removed.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The process may not change the network.
    #[error(
        "traffic rules need the capability NET_ADMIN in this network namespace: run as root, and in a container with \
         capabilities.add: [NET_ADMIN, NET_RAW]"
    )]
    NoPrivilege,
    /// Nothing to set rules with.
    #[error("{0} is not installed: traffic rules need nft (package nftables) or iptables-restore (package iptables)")]
    NoProgram(String),
    /// A program failed.
    #[error("{program} failed ({status}): {message}")]
    Failed {
        /// Program.
        program: String,
        /// How it ended.
        status: String,
        /// What it said.
        message: String,
    },
    /// Both programs failed.
    #[error("neither program works: {nft}; {iptables}")]
    Neither {
        /// Of nft.
        nft: Box<CaptureError>,
        /// Of iptables.
        iptables: Box<CaptureError>,
    },
}

/// Names of the iptables programs, the system's choice first.
fn iptables_programs(family: Family) -> [&'static str; 3] {
    match family {
        Family::V4 => ["iptables", "iptables-legacy", "iptables-nft"],
        Family::V6 => ["ip6tables", "ip6tables-legacy", "ip6tables-nft"],
    }
}

/// Bit of NET_ADMIN in a set of capabilities.
const NET_ADMIN: u32 = 12;

/// Whether this process may read and set rules.
pub(super) fn privileged() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let set = status.lines().find_map(|l| l.strip_prefix("CapEff:"));
    // Where it cannot be told, the programs will tell.
    set.and_then(|s| u64::from_str_radix(s.trim(), 16).ok()).is_none_or(|set| set >> NET_ADMIN & 1 == 1)
}

/// Runs a program with text as its input; its output.
fn run(program: &str, arguments: &[&str], input: &str) -> Result<String, CaptureError> {
    let failed =
        |status: String, message: String| CaptureError::Failed { program: program.to_owned(), status, message };
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|e| match e.kind() {
        ErrorKind::NotFound => CaptureError::NoProgram(program.to_owned()),
        _ => failed("not started".to_owned(), e.to_string()),
    })?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that ends before it has read everything says why itself.
        let _ = stdin.write_all(input.as_bytes());
    }
    let out = child.wait_with_output().map_err(|e| failed("lost".to_owned(), e.to_string()))?;
    if out.status.success() {
        return Ok(String::from_utf8_lossy(&out.stdout).into_owned());
    }
    Err(failed(out.status.to_string(), String::from_utf8_lossy(&out.stderr).trim().to_owned()))
}

/// What would be set, as text for the program.
pub fn script(capture: &Capture, families: &[Family], backend: Backend) -> String {
    match backend {
        Backend::Auto | Backend::Nft => nft_script(capture, families),
        Backend::Iptables => {
            let of = |f: &Family| {
                let text = iptables::script(&rules(capture, *f), "");
                format!("# {}-restore --noflush\n{text}", iptables_programs(*f)[0])
            };
            families.iter().map(of).collect()
        }
    }
}

fn nft_script(capture: &Capture, families: &[Family]) -> String {
    let sets: Vec<_> = families.iter().map(|f| (*f, rules(capture, *f))).collect();
    nft::script(&sets)
}

/// Sets the rules, in place of what was set before, and returns the program that did it. Nothing is half set with nft;
/// with iptables each table is a transaction.
///
/// # Errors
/// Without privilege, without programs, or when the kernel does not take the rules.
pub fn apply(capture: &Capture, families: &[Family], backend: Backend) -> Result<&'static str, CaptureError> {
    if !privileged() {
        return Err(CaptureError::NoPrivilege);
    }
    let by_nft = || run("nft", &["-f", "-"], &nft_script(capture, families)).map(drop);
    let by_iptables = || families.iter().try_for_each(|f| apply_iptables(capture, *f));
    let used = match backend {
        Backend::Nft => by_nft().map(|()| "nft")?,
        Backend::Iptables => by_iptables().map(|()| "iptables")?,
        Backend::Auto => match by_nft() {
            Ok(()) => "nft",
            Err(nft) => {
                tracing::info!("{nft}; trying iptables");
                by_iptables()
                    .map(|()| "iptables")
                    .map_err(|e| CaptureError::Neither { nft: Box::new(nft), iptables: Box::new(e) })?
            }
        },
    };
    // What another program set before would redirect a second time.
    if used == "nft" {
        clean_iptables().map(drop)?
    } else {
        clean_nft().map(drop)?
    }
    Ok(used)
}

fn apply_iptables(capture: &Capture, family: Family) -> Result<(), CaptureError> {
    let mut first = None;
    for program in iptables_programs(family) {
        let done = run(&format!("{program}-save"), &[], "").and_then(|saved| {
            let text = iptables::script(&rules(capture, family), &saved);
            run(&format!("{program}-restore"), &["--noflush", "--wait=30"], &text)
        });
        match done {
            Ok(_) => return Ok(()),
            Err(e) => drop(first.get_or_insert(e)),
        }
    }
    Err(first.unwrap_or_else(|| CaptureError::NoProgram("iptables-restore".to_owned())))
}

/// Removes what [`apply`] set, by whichever program, and nothing else. Whether there was anything.
///
/// # Errors
/// Without privilege, without programs, or when the rules cannot be removed.
pub fn clean() -> Result<bool, CaptureError> {
    if !privileged() {
        return Err(CaptureError::NoPrivilege);
    }
    match (clean_nft()?, clean_iptables()?) {
        (None, None) => Err(CaptureError::NoProgram("nft or iptables-save".to_owned())),
        (a, b) => Ok(a == Some(true) || b == Some(true)),
    }
}

/// `None`: the program is not there, or the kernel has no part for it, so nothing can have been set with it.
fn clean_nft() -> Result<Option<bool>, CaptureError> {
    let Ok(tables) = run("nft", &["list", "tables"], "") else { return Ok(None) };
    let mut found = false;
    for family in [Family::V4, Family::V6] {
        let line = format!("table {} {}", nft::family(family), nft::TABLE);
        if tables.lines().any(|l| l.trim() == line) {
            run("nft", &["-f", "-"], &nft::removal(family))?;
            found = true;
        }
    }
    Ok(Some(found))
}

fn clean_iptables() -> Result<Option<bool>, CaptureError> {
    let mut found = None;
    for program in [Family::V4, Family::V6].into_iter().flat_map(iptables_programs) {
        let Ok(saved) = run(&format!("{program}-save"), &[], "") else { continue };
        let any = iptables::any_of_ours(&saved);
        if any {
            run(&format!("{program}-restore"), &["--noflush", "--wait=30"], &iptables::script(&[], &saved))?;
        }
        found = Some(any || found == Some(true));
    }
    Ok(found)
}

/// What is set of a family: chains with the number of their rules, and the text they were read from.
pub(super) enum Present {
    /// By nft.
    Nft(String),
    /// By iptables.
    Iptables(String),
    /// Nothing.
    Nothing,
}

pub(super) fn present(family: Family) -> Present {
    if let Ok(listing) = run("nft", &["list", "table", nft::family(family), nft::TABLE], "") {
        return Present::Nft(listing);
    }
    let saved = iptables_programs(family).into_iter().filter_map(|p| run(&format!("{p}-save"), &[], "").ok());
    saved.into_iter().find(|s| iptables::any_of_ours(s)).map_or(Present::Nothing, Present::Iptables)
}
