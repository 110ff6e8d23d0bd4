//! `mesh-proxy -c FILE`: everything is in an Envoy bootstrap file, or comes from the control plane that it names.

use std::mem::take;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use mesh_api::model::{Address, SdsRef, SdsSource};
use mesh_api::node::NodeMetadata;
use tonic::transport::Channel;

use super::dial::Dialer;
use super::{Parts, SetLevel};
use crate::admin::{Application, Pages};
use crate::bootstrap::{AdsConfig, Bootstrap};
use crate::config::snapshot::Node;
use crate::settings::Settings;
use crate::tls::SecretStore;
use crate::xds::ads::{AdsStatus, Client, Connect, log_failures};

/// Runs until told to end.
pub fn run(settings: &Settings, set_level: SetLevel) -> anyhow::Result<()> {
    let Some(path) = &settings.config_path else {
        anyhow::bail!("nothing to run: name a bootstrap file (-c FILE), or a mode (sidecar, gateway, agent)");
    };
    let mut bootstrap = Bootstrap::read(path).with_context(|| path.display().to_string())?;
    let node = node(&bootstrap, settings);
    let most = bootstrap.limits.max_downstream_connections.and_then(|n| usize::try_from(n).ok()).unwrap_or(0);
    let mut parts = Parts::start(&settings.process, node, SecretStore::new(), most)?;
    apply(&mut parts, &mut bootstrap)?;
    let (status, seen) = tokio::sync::watch::channel(AdsStatus::default());
    let client = bootstrap.ads.as_ref().map(|ads| Client {
        connect: Box::new(ByCluster { ads: ads.clone(), dialer: Dialer(parts.shared.clone()) }),
        delta: ads.delta,
        node: crate::xds::node::message(&parts.shared.node),
        repeat_node: !ads.set_node_on_first_message_only,
        clusters: bootstrap.cds.map(|d| d.initial_fetch_timeout),
        listeners: bootstrap.lds.map(|d| d.initial_fetch_timeout),
        // Who answers DNS beside an Envoy is Istio's agent.
        names: None,
        shared: parts.shared.clone(),
        store: parts.store.clone(),
        status: Arc::new(status),
    });
    let readiness = parts.readiness(None, bootstrap.ads.as_ref().map(|a| (a.cluster.to_string(), seen)), None);
    let places = match &bootstrap.admin {
        Some(Address::Socket(address)) => vec![(*address, Pages::Admin)],
        Some(other) => anyhow::bail!("admin.address: {other} is not supported, name an IP address and a port"),
        None => Vec::<(SocketAddr, Pages)>::new(),
    };
    let drain = Duration::from_secs(settings.process.drain_time_s);
    parts.run(readiness, places, Application::default(), client, set_level, drain)
}

fn node(bootstrap: &Bootstrap, settings: &Settings) -> Node {
    let given = &bootstrap.node;
    let metadata = serde_json::Value::Object(given.metadata.clone());
    let mut istio: NodeMetadata = serde_json::from_value(metadata).unwrap_or_default();
    // The id says who we are when the metadata does not.
    let id = settings.service_node.clone().unwrap_or_else(|| given.id.clone());
    if let Ok(parsed) = id.parse::<mesh_api::node::NodeId>() {
        if istio.name.is_empty() {
            istio.name = parsed.name;
        }
        if istio.namespace.is_empty() {
            istio.namespace = parsed.namespace;
        }
    }
    Node {
        id,
        cluster: settings.service_cluster.clone().unwrap_or_else(|| given.cluster.clone()),
        locality: given.locality.clone(),
        metadata: given.metadata.clone(),
        istio,
    }
}

/// Static resources, which are moved to where they are used: the first that cannot be ends the start.
fn apply(parts: &mut Parts, bootstrap: &mut Bootstrap) -> anyhow::Result<()> {
    use mesh_api::xds::TypeUrl;
    let store = parts.store.clone();
    let mut store = store.lock();
    store.bootstrap = take(&mut bootstrap.wire);
    store.started = Some(SystemTime::now());
    for secret in take(&mut bootstrap.secrets) {
        let reference = SdsRef { name: secret.name.clone(), source: SdsSource::Bootstrap };
        parts.shared.secrets.put(&reference, secret.value.kind).with_context(|| format!("secret {}", secret.name))?;
        store.put_static(TypeUrl::Secret, &secret.name, secret.wire);
    }
    // Cluster tasks need the runtime of the control thread.
    let _entered = parts.runtime.enter();
    for cluster in take(&mut bootstrap.clusters) {
        parts.configurator.put_cluster(cluster.value)?;
        store.put_static(TypeUrl::Cluster, &cluster.name, cluster.wire);
    }
    for listener in take(&mut bootstrap.listeners) {
        parts.configurator.put_listener(listener.value).with_context(|| format!("listener {}", listener.name))?;
        store.put_static(TypeUrl::Listener, &listener.name, listener.wire);
    }
    let failed = parts.configurator.settle();
    log_failures(&failed);
    if let Some((name, error)) = failed.into_iter().next() {
        anyhow::bail!("listener {name}: {error}");
    }
    Ok(())
}

/// The control plane is a static cluster.
struct ByCluster {
    ads: AdsConfig,
    dialer: Dialer,
}

impl Connect for ByCluster {
    fn channel(&mut self) -> Result<Channel, String> {
        let authority = if self.ads.authority.is_empty() { &self.ads.cluster } else { &self.ads.authority };
        self.dialer.channel_to(&self.ads.cluster, authority)
    }

    fn metadata(&self) -> Vec<(String, String)> {
        self.ads.initial_metadata.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect()
    }

    fn place(&self) -> String {
        self.ads.cluster.to_string()
    }
}
