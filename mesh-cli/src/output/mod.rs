//! How results are shown: tables for people, JSON and YAML for programs.

mod table;

pub use table::Table;

use serde::Serialize;

use crate::args::Format;
use crate::exit::Failure;

/// Start of an error.
pub const RED: anstyle::Style = anstyle::AnsiColor::Red.on_default().bold();
/// Start of good news.
pub const GREEN: anstyle::Style = anstyle::AnsiColor::Green.on_default().bold();
/// Start of something to look at.
pub const BOLD: anstyle::Style = anstyle::Style::new().bold();

/// Prints a value as JSON or YAML.
///
/// # Errors
/// When it cannot be written.
pub fn structured(value: &impl Serialize, format: Format) -> Result<(), Failure> {
    let text = match format {
        Format::Yaml => serde_saphyr::to_string(value).map_err(|e| Failure::from(anyhow::Error::from(e)))?,
        _ => serde_json::to_string_pretty(value).map_err(|e| Failure::from(anyhow::Error::from(e)))?,
    };
    print(text.trim_end());
    Ok(())
}

/// Writes a line to standard output; a closed pipe is the reader's good right.
pub fn print(text: &str) {
    use std::io::Write as _;
    let _ = writeln!(anstream::stdout(), "{text}");
}
