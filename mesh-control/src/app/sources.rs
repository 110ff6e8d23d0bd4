//! Where objects come from: the folder, or Kubernetes; until the settings of the mesh count, nothing is served.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use futures_util::{FutureExt as _, future::BoxFuture};
use kube::Client;
use tokio::sync::{mpsc, watch};

use crate::{
    admin::Admin,
    index::{Index, IndexWriter},
    settings::Serve,
    source::{
        kubernetes::{self, Connection, KubernetesSource, Named, Served},
        object::ObjectChange,
        status::{SharedStatus, SourceStatus},
        watch::FolderSource,
    },
    translate::Translator,
    validate::{Finding, Level, MESH_CONFIG},
};

/// Reports changes until nobody listens.
type Run = Box<dyn FnOnce(mpsc::Sender<Vec<ObjectChange>>) -> BoxFuture<'static, anyhow::Result<()>> + Send>;

/// A source that was read once.
pub(super) struct Opened {
    pub(super) status: SharedStatus,
    /// Tells the source which Secrets and ConfigMaps are of use, where it does not read all.
    pub(super) named: Option<watch::Sender<Named>>,
    pub(super) run: Run,
    /// The API server, if that is the source, and which kinds it has.
    pub(super) api_server: Option<(Client, watch::Receiver<Served>)>,
}

/// Reads everything once. What was read is in force in the writer afterwards.
pub(super) async fn open(
    settings: &Serve,
    writer: &mut IndexWriter,
    admin: &Admin<Translator>,
) -> anyhow::Result<Opened> {
    let apply = |writer: &mut IndexWriter, changes: Vec<ObjectChange>| {
        super::count_events(&admin.metrics, &changes);
        writer.apply(changes);
    };
    if let Some(folder) = settings.config_dir.clone() {
        let (domain, state_dir) = (settings.domain.clone(), settings.state_dir.clone());
        let opened = tokio::task::spawn_blocking(move || FolderSource::open(&folder, &domain, &state_dir)).await?;
        let (folder, first) = opened.map_err(|finding| anyhow::anyhow!("{finding}"))?;
        let status = folder.status();
        admin.source.store(Some(status.clone()));
        apply(writer, first);
        let run: Run = Box::new(move |changes| {
            async move { folder.run(changes).await.context("watching the configuration folder") }.boxed()
        });
        return Ok(Opened { status, named: None, run, api_server: None });
    }
    let connection = Connection { kubeconfig: settings.kubeconfig.clone(), context: settings.context.clone() };
    let client = kubernetes::connect(&connection).await?;
    let options = kubernetes::Options {
        domain: settings.domain.clone(),
        namespace: settings.namespace.clone(),
        revision: settings.revision.clone(),
    };
    let waiting = |why: String| {
        tracing::warn!("Kubernetes: {why}");
        admin.waiting.store(Arc::new(why));
    };
    let (mut source, first) = KubernetesSource::open(client.clone(), &options, waiting).await?;
    admin.waiting.store(Arc::default());
    let (status, served) = (source.status(), source.served());
    admin.source.store(Some(status.clone()));
    apply(writer, first);
    // What these name may be needed by the first proxy that asks.
    let more = source.read_named(writer.index()).await;
    apply(writer, more);
    let (named_tx, named) = watch::channel(Named::of(writer.index()));
    let run: Run = Box::new(move |changes| source.run(changes, named).boxed());
    Ok(Opened { status, named: Some(named_tx), run, api_server: Some((client, served)) })
}

/// Waits while MeshConfig is there and cannot be used: its defaults would open what it closes. Nothing is served until
/// then, and `/ready` says why.
pub(super) async fn until_settings_count(
    writer: &mut IndexWriter,
    changes: &mut mpsc::Receiver<Vec<ObjectChange>>,
    admin: &Admin<Translator>,
    status: &SharedStatus,
) -> anyhow::Result<()> {
    /// How often it is looked whether the object was taken away, which is no change to one that was never in force.
    const LOOK: Duration = Duration::from_millis(100);
    loop {
        let unusable = unusable_settings(&status.read(), writer.index());
        let Some(why) = unusable else { break };
        if **admin.waiting.load() != why {
            tracing::error!("nothing is served until MeshConfig is mended: {why}");
            admin.waiting.store(Arc::new(why));
        }
        match tokio::time::timeout(LOOK, changes.recv()).await {
            Ok(Some(batch)) => {
                super::count_events(&admin.metrics, &batch);
                writer.apply(batch);
            }
            Ok(None) => anyhow::bail!("the configuration is not watched any more"),
            Err(_) => {}
        }
    }
    admin.waiting.store(Arc::default());
    Ok(())
}

/// Why the MeshConfig that was read is not in force; `None`: it is, or there is none.
fn unusable_settings(status: &SourceStatus, index: &Index) -> Option<String> {
    if status.settings {
        let (namespace, name, _) = MESH_CONFIG;
        let taken_over = index.config_map(namespace, name).is_some();
        return (!taken_over).then(|| format!("{} is being read", status.mesh_config));
    }
    let about_it = |f: &&Finding| f.level == Level::Error && f.object.as_ref() == Some(&status.mesh_config);
    status.findings.iter().find(about_it).map(ToString::to_string)
}
