//! `meshctl validate`: what the control plane would say of manifests, before it gets them.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use mesh_api::names::DEFAULT_DOMAIN;
use mesh_control::source::object::{Object, ObjectKey};
use mesh_control::source::{folder, manifest};
use mesh_control::validate::{Finding, Level, references};

use crate::args::{Format, ValidateArgs};
use crate::exit::{self, Failure, Outcome};
use crate::output::{BOLD, GREEN, RED, print, structured};

/// Reads everything named, prints findings; exit code 79 when there are errors.
pub fn run(args: &ValidateArgs) -> Outcome {
    let mut findings = Vec::new();
    let mut objects: BTreeMap<ObjectKey, Object> = BTreeMap::new();
    let mut unparsable = false;
    let mut texts: BTreeMap<PathBuf, String> = BTreeMap::new();
    for file in files(&args.file)? {
        let text = read(&file)?;
        for reading in manifest::read(&file, &text) {
            unparsable |= reading.key.is_none() && reading.findings.iter().any(|f| f.level == Level::Error);
            findings.extend(reading.findings);
            let Some(object) = reading.object else { continue };
            if let Some(first) = objects.get(&object.key) {
                findings.push(declared_twice(first, &object));
            } else {
                objects.insert(object.key.clone(), object);
            }
        }
        texts.insert(file, text);
    }
    let all: Vec<&Object> = objects.values().collect();
    let mut missing = references::check(&all, DEFAULT_DOMAIN);
    for finding in &mut missing {
        let (Some(file), Some(key)) = (&finding.file, &finding.object) else { continue };
        let place = texts.get(file).and_then(|t| manifest::locate(t, file, key, &finding.field));
        if let Some((line, column)) = place {
            finding.line = Some(line);
            finding.column = Some(column);
        }
    }
    findings.extend(missing);
    findings.retain(|f| args.info || f.level != Level::Info);
    findings.sort_by(|a, b| (&a.file, a.line, a.column).cmp(&(&b.file, b.line, b.column)));
    show(&findings, objects.len(), args.output)?;
    let threshold = if args.strict { Level::Warning } else { Level::Error };
    Ok(match findings.iter().any(|f| f.level >= threshold) {
        false => ExitCode::SUCCESS,
        true if unparsable => ExitCode::from(exit::UNPARSABLE),
        true => ExitCode::from(exit::FINDINGS),
    })
}

fn declared_twice(first: &Object, second: &Object) -> Finding {
    let at = first.position.as_ref().map(|p| format!("{}:{}", p.file.display(), p.line)).unwrap_or_default();
    let mut finding = Finding::error("metadata.name", format!("is declared twice, first at {at}"));
    finding.object = Some(second.key.clone());
    finding.file = second.position.as_ref().map(|p| p.file.clone());
    finding.line = second.position.as_ref().map(|p| p.line);
    finding.code(folder::DUPLICATE)
}

/// Files named, and manifests in folders named.
fn files(paths: &[PathBuf]) -> Result<BTreeSet<PathBuf>, Failure> {
    let mut files = BTreeSet::new();
    for path in paths {
        if path.is_dir() {
            folder::manifests_below(path, &mut files);
        } else {
            files.insert(path.clone());
        }
    }
    Ok(files)
}

fn read(file: &Path) -> Result<String, Failure> {
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
    for finding in findings {
        let text = finding.to_string();
        let (word, rest) = text.split_once(' ').unwrap_or((&text, ""));
        let style = if finding.level == Level::Error { RED } else { BOLD };
        print(&format!("{style}{word}{style:#} {rest}"));
    }
    let count = |level| findings.iter().filter(|f| f.level == level).count();
    let (errors, warnings) = (count(Level::Error), count(Level::Warning));
    if errors + warnings == 0 {
        anstream::eprintln!("{GREEN}valid:{GREEN:#} {objects} objects");
    } else {
        eprintln!("{errors} errors, {warnings} warnings in {objects} objects that can be used");
    }
    Ok(())
}
