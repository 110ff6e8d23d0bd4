//! `meshctl validate`: what the control plane would say of manifests, before it gets them.

use std::collections::BTreeSet;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use mesh_api::names::DEFAULT_DOMAIN;
use mesh_control::source::bundle::Bundle;
use mesh_control::source::folder;
use mesh_control::validate::{Finding, Level};

use crate::args::{Format, ValidateArgs};
use crate::exit::{self, Failure, Outcome};
use crate::output::{BOLD, GREEN, RED, print, structured};

/// Reads everything named, prints findings; exit code 79 when there are errors.
pub fn run(args: &ValidateArgs) -> Outcome {
    let bundle = bundle(&args.file)?;
    let (objects, unparsable) = (bundle.objects(), bundle.unparsable());
    let mut findings = bundle.findings(DEFAULT_DOMAIN);
    findings.retain(|f| args.info || f.level != Level::Info);
    show(&findings, objects, args.output)?;
    let threshold = if args.strict { Level::Warning } else { Level::Error };
    Ok(match findings.iter().any(|f| f.level >= threshold) {
        false => ExitCode::SUCCESS,
        true if unparsable => ExitCode::from(exit::UNPARSABLE),
        true => ExitCode::from(exit::FINDINGS),
    })
}

/// Everything in the files and folders named.
pub fn bundle(paths: &[PathBuf]) -> Result<Bundle, Failure> {
    let mut bundle = Bundle::default();
    for file in files(paths) {
        let text = read(&file)?;
        bundle.add(&file, text);
    }
    Ok(bundle)
}

/// Manifests of the files and folders named.
pub fn files(paths: &[PathBuf]) -> BTreeSet<PathBuf> {
    let mut files = BTreeSet::new();
    for path in paths {
        if path.is_dir() {
            folder::manifests_below(path, &mut files);
        } else {
            files.insert(path.clone());
        }
    }
    files
}

/// Text of a file; `-` is standard input.
pub fn read(file: &Path) -> Result<String, Failure> {
    let fail = |e: std::io::Error| Failure::new(exit::UNPARSABLE, format!("{} cannot be read: {e}", file.display()));
    if file == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).map_err(fail)?;
        return Ok(text);
    }
    std::fs::read_to_string(file).map_err(fail)
}

fn show(findings: &[Finding], objects: usize, format: Format) -> Result<(), Failure> {
    if format != Format::Short {
        return structured(&findings, format);
    }
    findings.iter().for_each(line);
    let count = |level| findings.iter().filter(|f| f.level == level).count();
    let (errors, warnings) = (count(Level::Error), count(Level::Warning));
    if errors + warnings == 0 {
        anstream::eprintln!("{GREEN}valid:{GREEN:#} {objects} objects");
    } else {
        eprintln!("{errors} errors, {warnings} warnings in {objects} objects that can be used");
    }
    Ok(())
}

/// A finding on a line of its own.
pub fn line(finding: &Finding) {
    let text = finding.to_string();
    let (word, rest) = text.split_once(' ').unwrap_or((&text, ""));
    let style = if finding.level == Level::Error { RED } else { BOLD };
    print(&format!("{style}{word}{style:#} {rest}"));
}
