//! `meshctl check`: questions with one answer each: what is installed (`installed`), a cluster before an installation
//! (`before`), all proxies (`proxies`). Changes nothing.

mod before;
mod installed;
mod proxies;

use std::process::ExitCode;

use serde::Serialize;

use crate::args::{CheckArgs, Format};
use crate::client::cluster::block_on;
use crate::exit::{NEGATIVE, Outcome};
use crate::output::{Table, print, structured};

/// How an answer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// Worth knowing.
    Note,
    /// It works, and may not for long or not for all.
    Warning,
    /// It does not work.
    Failed,
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Verdict::Ok => "ok",
            Verdict::Note => "note",
            Verdict::Warning => "warning",
            Verdict::Failed => "failed",
        }
    }
}

/// One answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Row {
    check: String,
    result: Verdict,
    detail: String,
    hint: String,
}

impl Row {
    fn new(check: &str, result: Verdict, detail: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { check: check.to_owned(), result, detail: detail.into(), hint: hint.into() }
    }

    fn ok(check: &str, detail: impl Into<String>) -> Self {
        Self::new(check, Verdict::Ok, detail, "")
    }

    fn note(check: &str, detail: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(check, Verdict::Note, detail, hint)
    }

    fn warning(check: &str, detail: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(check, Verdict::Warning, detail, hint)
    }

    fn failed(check: &str, detail: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(check, Verdict::Failed, detail, hint)
    }

    /// One row for all `bad` ones, or one that says that `good` holds.
    fn of(check: &str, bad: Vec<String>, good: String, result: Verdict, hint: &str) -> Self {
        if bad.is_empty() { Self::ok(check, good) } else { Self::new(check, result, bad.join("; "), hint) }
    }
}

/// Asks everything, prints a line an answer; exit code 1 when something does not work.
pub fn run(args: &CheckArgs) -> Outcome {
    let rows = if args.pre {
        block_on(before::rows(args))?
    } else if args.proxy {
        block_on(proxies::rows(args))?
    } else {
        block_on(installed::rows(args))?
    };
    if args.output.output == Format::Short {
        let mut table = Table::new(&["CHECK", "RESULT", "DETAIL", "HINT"]);
        for Row { check, result, detail, hint } in &rows {
            table.row([check.as_str(), result.word(), detail, hint]);
        }
        print(&table.render());
    } else {
        structured(&rows, args.output.output)?;
    }
    let threshold = if args.output.strict { Verdict::Warning } else { Verdict::Failed };
    let bad = rows.iter().any(|row| row.result >= threshold);
    Ok(if bad { ExitCode::from(NEGATIVE) } else { ExitCode::SUCCESS })
}
