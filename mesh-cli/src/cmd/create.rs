//! `meshctl create token`: a token of a service account by the API server, as workloads have one.

use std::process::ExitCode;

use serde_json::json;

use crate::args::{CreateCommand, Format, TokenArgs};
use crate::client::cluster::{Cluster, block_on};
use crate::exit::Outcome;
use crate::output::{print, structured};

/// Makes it.
pub fn run(command: &CreateCommand) -> Outcome {
    let CreateCommand::Token(args) = command;
    block_on(token(args))
}

async fn token(args: &TokenArgs) -> Outcome {
    let cluster = Cluster::connect(&args.kube).await?;
    let namespace = args.namespace.as_deref().unwrap_or(cluster.default_namespace());
    let (token, until) = cluster.token(namespace, &args.account, &args.audience, args.duration).await?;
    match args.output {
        Format::Short => print(&token),
        format => {
            structured(&json!({"token": token, "expirationTimestamp": until, "audience": args.audience}), format)?
        }
    }
    Ok(ExitCode::SUCCESS)
}
