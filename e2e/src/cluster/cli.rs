//! `cluster up|down|list`: clusters by hand.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand};

use super::{Cluster, Life, Progress, Provider, Settings, down, local};

/// What to do with a cluster.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Bring a cluster up, and print its kubeconfig and a kubectl; one that is up stays as it is
    Up(Which),
    /// Take a cluster down; nothing of it is left
    Down(Which),
    /// The local clusters of this machine
    List,
}

/// Which cluster.
#[derive(Debug, Args)]
pub struct Which {
    /// Name, of its own on this machine
    #[arg(long, default_value = "local")]
    pub name: String,
    /// Who makes it
    #[arg(long, value_enum, default_value = "local")]
    pub provider: Provider,
    /// Of a cluster that is there already [default: what KUBECONFIG names]
    #[arg(long)]
    pub kubeconfig: Option<PathBuf>,
}

impl Which {
    /// As settings.
    pub fn settings(&self, life: Life) -> Settings {
        let (name, kubeconfig) = (self.name.clone(), self.kubeconfig.clone());
        Settings { name, provider: self.provider, kubeconfig, life, progress: Progress::default() }
    }
}

/// Does it.
///
/// # Errors
/// When it cannot be done; what to do about it is said.
pub async fn run(command: &Command) -> Result<ExitCode> {
    match command {
        Command::Up(which) => {
            let settings = which.settings(Life::Detached);
            let cluster = Cluster::start(&settings).await?;
            let how = if cluster.found() { "was up already" } else { "is up" };
            settings.progress.say(&format!("cluster {} {how}", which.name));
            println!("kubeconfig {}", cluster.kubeconfig().display());
            println!("kubectl    {}", cluster.kubectl_program().display());
        }
        Command::Down(which) => {
            let progress = Progress::default();
            match (down(&which.name, which.provider).await?, which.provider) {
                (true, _) => progress.say(&format!("cluster {} is gone", which.name)),
                (false, Provider::Kubeconfig) => progress.say("a cluster that was given is left as it is"),
                (false, _) => progress.say(&format!("there is no cluster {}", which.name)),
            }
        }
        Command::List => {
            for line in local::list()? {
                println!("{line}");
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
