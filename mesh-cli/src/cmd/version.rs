//! `meshctl version`.

use std::process::ExitCode;

use serde_json::json;

use crate::args::{Format, VersionArgs};
use crate::client::Server;
use crate::exit::Outcome;
use crate::output::{print, structured};

/// Prints our version and, unless told not to ask, that of the control plane.
pub fn run(args: &VersionArgs) -> Outcome {
    let own = env!("CARGO_PKG_VERSION");
    let asked = if args.client { None } else { Some(Server::control(&args.control).good("/version")) };
    let control =
        asked.as_ref().and_then(|a| a.as_ref().ok()).map(|answer| version_of(&String::from_utf8_lossy(&answer.body)));
    if args.output == Format::Short {
        print(&format!("client version: {own}"));
        match (&asked, &control) {
            (_, Some(v)) => print(&format!("control plane version: {v}")),
            (Some(Err(why)), _) => eprintln!("control plane version: unknown ({})", why.message),
            _ => {}
        }
    } else {
        let mut value = json!({"clientVersion": {"version": own}});
        if let Some(v) = control {
            value["meshVersion"] = json!([{"Component": "mesh-control", "Info": {"version": v}}]);
        }
        structured(&value, args.output)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The first word that looks like x.y.z.
fn version_of(text: &str) -> String {
    let word = text
        .split(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '-')))
        .find(|w| w.matches('.').count() >= 2);
    word.unwrap_or_else(|| text.trim()).to_owned()
}
