//! `meshctl uninstall`: takes away what was installed, and with `--purge` every trace of it.

use std::process::ExitCode;
use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use super::install::{GONE, confirmed};
use crate::args::UninstallArgs;
use crate::client::cluster::{Cluster, block_on, title};
use crate::exit::{self, Failure, Outcome};
use crate::install::apply::reference;
use crate::install::operator::NAMESPACE;
use crate::install::remove;
use crate::output::{BOLD, GREEN, print};

/// Uninstalls.
pub fn run(args: &UninstallArgs) -> Outcome {
    block_on(async {
        let cluster = Cluster::connect(&args.cluster.kube).await?;
        let system = args.cluster.istio_namespace.as_deref().unwrap_or(NAMESPACE);
        let found = match &args.revision {
            Some(revision) => remove::revision(&cluster, revision).await?,
            None => remove::everything(&cluster, system).await?,
        };
        let remove::Found { objects: found, left } = found;
        left.iter().for_each(|what| anstream::eprintln!("{BOLD}left:{BOLD:#} {what}"));
        if found.is_empty() {
            print("nothing is installed");
            return Ok(ExitCode::SUCCESS);
        }
        found.iter().for_each(|o| print(&title(o)));
        if args.dry_run {
            return Ok(ExitCode::SUCCESS);
        }
        let question = format!("Remove these {} objects, and what depends on them?", found.len());
        if !args.skip_confirmation && !confirmed(&question)? {
            return Err(Failure::new(exit::NEGATIVE, "nothing was done"));
        }
        for object in &found {
            cluster.delete(&reference(object)).await?;
        }
        gone(&cluster, found).await?;
        anstream::eprintln!("{GREEN}✓{GREEN:#} removed");
        Ok(ExitCode::SUCCESS)
    })
}

/// Waits until objects are gone; what the control plane makes anew in its last moments is deleted again.
async fn gone(cluster: &Cluster, mut rest: Vec<Value>) -> Result<(), Failure> {
    let until = Instant::now() + GONE;
    loop {
        let mut left = Vec::new();
        for object in rest {
            if let Some(live) = cluster.live(&object).await? {
                if live["metadata"]["deletionTimestamp"].is_null() {
                    cluster.delete(&reference(&live)).await?;
                }
                left.push(object);
            }
        }
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() >= until {
            let names: Vec<String> = left.iter().map(title).collect();
            return Err(Failure::new(exit::TIMEOUT, format!("still there: {}", names.join(", "))));
        }
        rest = left;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}
