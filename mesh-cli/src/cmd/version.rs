//! `meshctl version`.

use std::process::ExitCode;

use serde_json::{Value, json};

use crate::args::{Format, VersionArgs};
use crate::client;
use crate::exit::Outcome;
use crate::output::{print, structured};

/// Prints our version and, unless told not to ask, that of the control plane.
pub fn run(args: &VersionArgs) -> Outcome {
    let own = env!("CARGO_PKG_VERSION");
    let asked = if args.client { None } else { Some(client::json(&args.control.control, "/version")) };
    let control = asked.as_ref().and_then(|a| a.as_ref().ok());
    if args.output == Format::Short {
        print(&format!("client version: {own}"));
        match (&asked, control) {
            (_, Some(v)) => print(&format!("control plane version: {}", version_of(v))),
            (Some(Err(why)), _) => eprintln!("control plane version: unknown ({})", why.message),
            _ => {}
        }
    } else {
        let mut value = json!({"clientVersion": {"version": own}});
        if let Some(v) = control {
            value["meshVersion"] = json!([{"Component": "mesh-control", "Info": v}]);
        }
        structured(&value, args.output)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn version_of(value: &Value) -> &str {
    value.get("version").or_else(|| value.as_str().map(|_| value)).and_then(Value::as_str).unwrap_or("unknown")
}
