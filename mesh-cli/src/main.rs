//! `meshctl`: runs a mesh on a laptop, shows what proxies were told, checks configuration before it is applied.
//!
//! Data goes to standard output, messages to standard error. Exit codes are listed in `exit`.

mod args;
mod chart;
mod client;
mod cmd;
mod demo;
#[cfg(test)]
mod documented;
mod exit;
mod install;
mod output;

use std::process::ExitCode;

use clap::Parser as _;

use crate::args::{Args, CheckArgs, Command, ExperimentalCommand, ManifestCommand};
use crate::exit::Failure;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // Children of the demo are this very binary: their command lines belong to the planes, not to us.
    let mut words = std::env::args_os().skip(1);
    if let Some(code) = words.next().and_then(|first| demo::child::run(&first, words)) {
        return code;
    }
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(exit::USAGE) } else { ExitCode::SUCCESS };
        }
    };
    let result = match args.command {
        Command::Demo(a) => demo::run(a),
        Command::ProxyStatus(a) => cmd::proxy_status::run(&a),
        Command::ProxyConfig(a) => cmd::proxy_config::run(&a),
        Command::Validate(a) => cmd::validate::run(&a),
        Command::Analyze(a) => cmd::analyze::run(&a),
        Command::Inject(a) => cmd::inject::inject(&a),
        Command::Uninject(a) => cmd::inject::uninject(&a),
        Command::Install(a) => cmd::install::run(&a, "installed"),
        Command::Upgrade(a) => cmd::install::run(&a, "upgraded"),
        Command::Uninstall(a) => cmd::uninstall::run(&a),
        Command::Diff(a) => cmd::diff::run(&a),
        Command::Manifest(ManifestCommand::Generate(a)) => cmd::manifest::generate(&a),
        Command::Profile(a) => cmd::manifest::profile(&a),
        Command::Tag(a) => cmd::tag::run(&a),
        Command::Version(a) => cmd::version::run(&a),
        Command::Check(a) => cmd::check::run(&a),
        Command::CheckInject(a) | Command::Experimental(ExperimentalCommand::CheckInject(a)) => {
            cmd::check_inject::run(&a)
        }
        Command::Describe(a) | Command::Experimental(ExperimentalCommand::Describe(a)) => cmd::describe::run(&a),
        Command::Experimental(ExperimentalCommand::Precheck(a)) => cmd::check::run(&CheckArgs::before(a)),
        Command::Create(a) => cmd::create::run(&a),
        Command::Completion(a) => cmd::completion::run(&a),
    };
    match result {
        Ok(code) => code,
        Err(Failure { code, message }) => {
            anstream::eprintln!("{0}error:{0:#} {message}", output::RED);
            code
        }
    }
}
