//! Exit codes and failures.

use std::fmt::Display;
use std::process::ExitCode;

/// A negative answer, or a failure without a code of its own.
pub const NEGATIVE: u8 = 1;
/// The command line is wrong.
pub const USAGE: u8 = 64;
/// Input does not parse.
pub const UNPARSABLE: u8 = 65;
/// The control plane or a proxy cannot be reached.
pub const UNREACHABLE: u8 = 69;
/// An answer did not come in time.
pub const TIMEOUT: u8 = 75;
/// The one that was asked does not permit it.
pub const FORBIDDEN: u8 = 77;
/// There are findings at or above the threshold.
pub const FINDINGS: u8 = 79;

/// How a command ends when it does not end well.
#[derive(Debug)]
pub struct Failure {
    /// Exit code.
    pub code: ExitCode,
    /// What went wrong and what to do next.
    pub message: String,
}

impl Failure {
    /// A failure with a code.
    pub fn new(code: u8, message: impl Display) -> Self {
        Self { code: ExitCode::from(code), message: message.to_string() }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::new(NEGATIVE, format!("{error:#}"))
    }
}

/// What commands return.
pub type Outcome = Result<ExitCode, Failure>;
