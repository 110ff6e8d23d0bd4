//! `meshctl inject` and `uninject`: pods of manifests with and without sidecars. Asks nobody.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use mesh_control::inject::Settings;
use mesh_control::inject::manifest::{self, Changed, File, Problem};
use mesh_control::inject::values::Values;

use super::validate::{files, read};
use crate::args::{InjectArgs, ManifestArgs, UninjectArgs};
use crate::exit::{self, Failure, Outcome};
use crate::output::{BOLD, print};

/// Injects into every pod that is to be.
pub fn inject(args: &InjectArgs) -> Outcome {
    let mut settings = settings(args)?;
    let texts = texts(&args.files)?;
    let mut namespaces = Vec::new();
    for file in all(&texts, &args.files) {
        let around = manifest::surroundings(file).map_err(unparsable)?;
        namespaces.extend(around.namespaces);
        settings.proxy_configs.extend(around.proxy_configs);
    }
    write(&args.files, all(&texts, &args.files).map(|file| manifest::inject(file, &settings, &namespaces)))
}

/// Takes injection back.
pub fn uninject(args: &UninjectArgs) -> Outcome {
    let texts = texts(&args.files)?;
    write(&args.files, all(&texts, &args.files).map(manifest::uninject))
}

fn unparsable(problem: Problem) -> Failure {
    Failure::new(exit::UNPARSABLE, problem)
}

fn settings(args: &InjectArgs) -> Result<Settings, Failure> {
    let values = args.values_file.as_deref().map(read).transpose()?.unwrap_or_default();
    let mut values = Values::read(&values, &args.set).map_err(|why| {
        let place = args.values_file.as_deref().unwrap_or(Path::new("values"));
        Failure::new(exit::UNPARSABLE, format!("{}: {why}", place.display()))
    })?;
    if let Some(revision) = &args.revision {
        values.revision.clone_from(revision);
    }
    let mesh = match &args.mesh_config_file {
        Some(path) => {
            let text = read(path)?;
            manifest::mesh_config(File { path, text: &text, namespace: "" }).map_err(unparsable)?
        }
        None => Default::default(),
    };
    Ok(Settings { native_sidecars: values.native_sidecars(), values, mesh, proxy_configs: vec![] })
}

fn texts(args: &ManifestArgs) -> Result<Vec<(PathBuf, String)>, Failure> {
    files(&args.filename).into_iter().map(|path| read(&path).map(|text| (path, text))).collect()
}

fn all<'a>(texts: &'a [(PathBuf, String)], args: &'a ManifestArgs) -> impl Iterator<Item = File<'a>> {
    texts.iter().map(|(path, text)| File { path, text, namespace: &args.namespace })
}

/// Writes everything, or nothing.
fn write(args: &ManifestArgs, changed: impl Iterator<Item = Result<Changed, Problem>>) -> Outcome {
    let mut out = String::new();
    for changed in changed {
        let Changed { text, remarks } = changed.map_err(unparsable)?;
        for remark in remarks {
            anstream::eprintln!("{BOLD}note:{BOLD:#} {remark}");
        }
        if !out.is_empty() && !text.is_empty() {
            out.push_str("---\n");
        }
        out.push_str(&text);
    }
    match &args.output {
        Some(path) => std::fs::write(path, out)
            .map_err(|e| Failure::new(exit::NEGATIVE, format!("{} cannot be written: {e}", path.display())))?,
        None => print(out.trim_end_matches('\n')),
    }
    Ok(ExitCode::SUCCESS)
}
