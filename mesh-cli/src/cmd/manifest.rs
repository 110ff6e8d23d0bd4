//! `meshctl manifest` and `profile`: what an installation is made of. Asks no cluster.

use std::process::ExitCode;

use serde_json::Value;

use super::validate::read;
use crate::args::{DumpArgs, GenerateArgs, ProfileCommand, WishArgs};
use crate::exit::{self, Failure, Outcome};
use crate::install::operator::{PROFILES, Sources, Wish};
use crate::install::render;
use crate::output::print;

/// Prints the objects of an installation.
pub fn generate(args: &GenerateArgs) -> Outcome {
    let wish = wish(&args.wish, args.istio_namespace.clone(), None)?;
    let components = render::components(&wish).map_err(unparsable)?;
    let objects: Vec<Value> = components.into_iter().flat_map(|c| c.objects).collect();
    print(yaml(&objects)?.trim_end());
    Ok(ExitCode::SUCCESS)
}

/// Prints profiles.
pub fn profile(command: &ProfileCommand) -> Outcome {
    match command {
        ProfileCommand::List => PROFILES.iter().for_each(|(name, _)| print(name)),
        ProfileCommand::Dump(DumpArgs { name, wish: args }) => {
            let manifest = wish(args, None, name.clone())?.manifest();
            print(yaml(&[manifest])?.trim_end());
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What the user wants.
pub fn wish(args: &WishArgs, namespace: Option<String>, profile: Option<String>) -> Result<Wish, Failure> {
    let files = args.filename.iter().map(|path| Ok((path.clone(), read(path)?))).collect::<Result<_, Failure>>()?;
    let sources = Sources {
        files,
        set: args.set.clone(),
        profile: profile.or_else(|| args.profile.clone()),
        revision: args.revision.clone(),
        namespace,
    };
    Wish::read(&sources).map_err(unparsable)
}

/// A failure of input.
pub fn unparsable(why: String) -> Failure {
    Failure::new(exit::UNPARSABLE, why)
}

/// Documents of YAML.
pub fn yaml(objects: &[Value]) -> Result<String, Failure> {
    let mut out = String::new();
    for object in objects {
        if !out.is_empty() {
            out.push_str("---\n");
        }
        out += &serde_saphyr::to_string(object).map_err(|e| Failure::from(anyhow::Error::from(e)))?;
    }
    Ok(out)
}
