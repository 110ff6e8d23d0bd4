//! What a control plane does in Kubernetes beside serving: elect who writes, keep one root for all replicas, make roots
//! and webhooks known, answer webhooks, run the proxies of Gateways, write status.

use std::{collections::BTreeSet, path::Path, sync::Arc, time::Duration};

use anyhow::Context as _;
use arc_swap::ArcSwapOption;
use kube::Client;
use tokio::{net::TcpListener, sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{
    ca::{self, Authority, RootSecret},
    gateway_deployer::{Deployer, Refusals},
    index::Index,
    leader::{self, Candidate},
    settings::Serve,
    source::{kubernetes::Served, status::SharedStatus},
    status,
    webhook::{self, Webhook},
};

/// The parts that lead to an API server.
pub(super) struct Parts {
    pub(super) client: Client,
    pub(super) served: watch::Receiver<Served>,
    pub(super) index: Arc<ArcSwapOption<Index>>,
    /// What is found wrong with objects.
    pub(super) found: SharedStatus,
    /// Changes with the index.
    pub(super) changed: watch::Receiver<u64>,
}

/// How often it is looked whether the state folder has a newer root.
const ROOT_LOOK: Duration = Duration::from_secs(30);

/// Copies the root of the cluster to the state folder, or makes the first one there.
///
/// # Errors
/// When the API server refuses, or the Secret holds no CA.
pub(super) async fn root(
    client: &Client,
    settings: &Serve,
    open: impl Fn() -> anyhow::Result<Arc<Authority>>,
    plugged_in: bool,
) -> anyhow::Result<Arc<Authority>> {
    let secret = RootSecret::new(client.clone(), &settings.namespace);
    let found = secret.restore(&settings.state_dir).await?;
    let authority = open()?;
    if found || plugged_in || secret.create(&settings.state_dir).await? {
        return Ok(authority);
    }
    // Another replica made one at the same time: there is one root in a mesh.
    secret.restore(&settings.state_dir).await?;
    open()
}

/// Starts all of it.
pub(super) async fn start(
    parts: Parts,
    settings: &Serve,
    authority: Arc<Authority>,
    listener: Option<TcpListener>,
    (servers, workers): (&mut JoinSet<anyhow::Result<()>>, &mut JoinSet<anyhow::Result<()>>),
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let Parts { client, served, index, found, changed } = parts;
    if let Some(listener) = listener {
        let version = client.apiserver_version().await.context("version of the API server")?;
        let webhook = Webhook {
            index: index.clone(),
            namespace: settings.namespace.clone(),
            revision: settings.revision.clone(),
            native_sidecars: has_native_sidecars(&version.major, &version.minor),
        };
        let names = ca::ServerNames::new(None, &service_names(settings))?;
        let tls = ca::webhook_tls(&authority, names)?;
        servers.spawn(webhook::serve(listener, tls, Arc::new(webhook), stop.clone()));
    }
    let leading = elect(&client, settings, servers, stop);
    let bundles = webhook::Bundles {
        namespace: settings.namespace.clone(),
        revision: settings.revision.clone(),
        authority: authority.clone(),
    };
    workers.spawn(webhook::keep_bundles(client.clone(), bundles, leading.clone()));
    let namespaces = {
        let index = index.clone();
        move || -> BTreeSet<Arc<str>> {
            // Namespaces that do not count may be those of another mesh of the cluster, with its roots in them.
            index.load_full().map(|index| index.discovered_namespaces().collect()).unwrap_or_default()
        }
    };
    workers.spawn(ca::keep_root_config_maps(client.clone(), authority, namespaces, leading.clone()));
    workers.spawn(keep_root(client.clone(), settings.namespace.clone(), settings.state_dir.clone(), leading.clone()));
    let (refused_tx, refused) = watch::channel(Refusals::new());
    if settings.gateway_deployments {
        let deployer = Deployer {
            client: client.clone(),
            index: index.clone(),
            served: served.clone(),
            revision: settings.revision.clone(),
            refused: refused_tx,
        };
        workers.spawn(deployer.run(changed.clone(), leading.clone()));
    }
    workers.spawn(status::Writer { client, index, served, found, refused }.run(changed, leading));
    Ok(())
}

/// Names under which the API server calls the webhooks.
pub(super) fn service_names(settings: &Serve) -> Vec<String> {
    let service = match settings.revision.as_str() {
        "" | "default" => "istiod".to_owned(),
        revision => format!("istiod-{revision}"),
    };
    let namespace = &settings.namespace;
    vec![service.clone(), format!("{service}.{namespace}"), format!("{service}.{namespace}.svc")]
}

/// Init containers that stay are there since Kubernetes 1.29.
fn has_native_sidecars(major: &str, minor: &str) -> bool {
    let number = |text: &str| text.trim_end_matches(|c: char| !c.is_ascii_digit()).parse::<u32>().unwrap_or(0);
    (number(major), number(minor)) >= (1, 29)
}

fn elect(
    client: &Client,
    settings: &Serve,
    servers: &mut JoinSet<anyhow::Result<()>>,
    stop: &CancellationToken,
) -> watch::Receiver<bool> {
    let lease = match (settings.leader_election.as_str(), settings.revision.as_str()) {
        ("off" | "", _) => None,
        (lease, "" | "default") => Some(lease.to_owned()),
        (lease, revision) => Some(format!("{lease}-{revision}")),
    };
    let (tx, leading) = watch::channel(lease.is_none());
    let stop = stop.clone();
    let Some(lease) = lease else {
        servers.spawn(async move {
            let _tx = tx;
            stop.cancelled().await;
            Ok(())
        });
        return leading;
    };
    let identity = match settings.pod_name.as_str() {
        "" => format!("mesh-control-{}", uuid::Uuid::new_v4()),
        name => name.to_owned(),
    };
    let candidate = Candidate { namespace: settings.namespace.clone(), lease, identity };
    let client = client.clone();
    servers.spawn(async move {
        leader::run(client, candidate, tx, stop).await;
        Ok(())
    });
    leading
}

/// Writes a root that was renewed, and which roots are trusted, back to the cluster.
async fn keep_root(
    client: Client,
    namespace: String,
    state_dir: std::path::PathBuf,
    mut leading: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let secret = RootSecret::new(client, &namespace);
    let mut written = content(&state_dir);
    loop {
        if leading.wait_for(|leads| *leads).await.is_err() {
            return Ok(());
        }
        tokio::time::sleep(ROOT_LOOK).await;
        let now = content(&state_dir);
        // With a plugged-in CA there is no root of our own.
        let root = now.first().is_some_and(Option::is_some);
        if now == written || !root || !*leading.borrow() {
            continue;
        }
        match secret.update(&state_dir).await {
            Ok(()) => written = now,
            Err(error) => tracing::warn!(target: "ca", "{error:#}"),
        }
    }
}

fn content(state_dir: &Path) -> Vec<Option<Vec<u8>>> {
    ca::ROOT_FILES.map(|file| std::fs::read(state_dir.join(file)).ok()).into()
}

#[cfg(test)]
mod tests {
    use super::has_native_sidecars;

    #[test]
    fn versions_of_clouds_have_suffixes() {
        for (major, minor, native) in
            [("1", "28+", false), ("1", "29", true), ("1", "36+", true), ("2", "0", true), ("", "", false)]
        {
            assert_eq!(has_native_sidecars(major, minor), native, "{major}.{minor}");
        }
    }
}
