//! `mesh-proxy capture`.

use std::time::Duration;

use crate::net::capture;
use crate::settings::capture::{CaptureCommand, RuleArgs};

/// Does what was asked. `false`: a check found something, which was said.
pub fn run(command: &CaptureCommand) -> anyhow::Result<bool> {
    match command {
        CaptureCommand::Apply(a) => {
            let (settings, families) = asked(&a.rules)?;
            if a.dry_run {
                print(&capture::script(&settings, &families, a.rules.backend));
                return Ok(true);
            }
            if !a.skip_rule_apply {
                let program = capture::apply(&settings, &families, a.rules.backend)?;
                tracing::info!("traffic is redirected, by {program}, for {families:?}");
            }
            if a.run_validation { verify(&a.rules) } else { Ok(true) }
        }
        CaptureCommand::Verify(rules) => verify(rules),
        CaptureCommand::Clean => {
            let found = capture::clean()?;
            tracing::info!("{}", if found { "the redirection is removed" } else { "no redirection was set" });
            Ok(true)
        }
        CaptureCommand::Probe { to, timeout_ms } => {
            capture::probe(*to, Duration::from_millis(*timeout_ms)).map(|()| true).map_err(anyhow::Error::msg)
        }
    }
}

fn asked(rules: &RuleArgs) -> anyhow::Result<(capture::Capture, Vec<capture::rules::Family>)> {
    let settings = rules.capture(|| std::fs::read_to_string("/etc/resolv.conf"))?;
    // Not there: a kernel without IPv6.
    let addresses = std::fs::read_to_string("/proc/net/if_inet6").unwrap_or_default();
    Ok((settings, rules.families(&addresses)))
}

fn verify(rules: &RuleArgs) -> anyhow::Result<bool> {
    let (settings, families) = asked(rules)?;
    let problems = capture::verify(&settings, &families, rules.probe_timeout);
    for problem in &problems {
        tracing::error!("{}; {}", problem.what, problem.hint);
    }
    if problems.is_empty() {
        tracing::info!("traffic is redirected as asked");
    }
    Ok(problems.is_empty())
}

/// Standard output; a closed pipe is the reader's good right.
fn print(text: &str) {
    use std::io::Write as _;
    let _ = std::io::stdout().write_all(text.as_bytes());
}
