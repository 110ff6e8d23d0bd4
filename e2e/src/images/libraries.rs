//! The shared libraries of a program, as the system's loader finds them.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Paths under which a program's libraries are looked for, its loader among them. A static program has none.
///
/// # Errors
/// When the loader cannot be asked or misses one.
pub fn of(program: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd").env("LC_ALL", "C").arg(program).output().context("cannot run ldd")?;
    let (said, complained) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if complained.contains("not a dynamic executable") || said.contains("statically linked") {
        return Ok(Vec::new());
    }
    if !output.status.success() {
        bail!("ldd {}: {}", program.display(), complained.trim());
    }
    parse(&said).with_context(|| format!("the libraries of {}", program.display()))
}

fn parse(text: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for line in text.lines().map(str::trim) {
        if line.ends_with("not found") {
            bail!("{line}: install the package that holds it");
        }
        // `name => /path (address)`, `/path (address)`, or `linux-vdso.so.1 (address)`, which the kernel holds.
        let path = line.rsplit("=> ").next().unwrap_or(line).split(" (").next().unwrap_or_default();
        if path.starts_with('/') {
            found.push(PathBuf::from(path));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn reads_what_the_loader_prints() {
        let text = "\tlinux-vdso.so.1 (0x00007ffc)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let found: Vec<String> = parse(text).unwrap().iter().map(|p| p.display().to_string()).collect();
        assert_eq!(found, ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"]);
        parse("\tlibz.so.1 => not found\n").unwrap_err();
    }
}
