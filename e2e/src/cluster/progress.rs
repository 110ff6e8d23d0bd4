//! What people are told while they wait, on standard error: every step on a terminal, elsewhere only what matters.

use std::io::IsTerminal as _;

use tokio::time::Instant;

/// Tells what goes on, with the seconds since the start.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    start: Instant,
    detailed: bool,
}

impl Default for Progress {
    fn default() -> Self {
        Self { start: Instant::now(), detailed: std::io::stderr().is_terminal() }
    }
}

impl Progress {
    /// A step, of interest to who watches.
    pub fn step(&self, what: &str) {
        if self.detailed {
            self.say(what);
        }
    }

    /// Something that who reads the log later wants to know too.
    pub fn say(&self, what: &str) {
        eprintln!("{:6.1} s  {what}", self.start.elapsed().as_secs_f64());
    }
}
