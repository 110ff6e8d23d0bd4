//! `mesh-proxy sidecar|gateway|agent`: a workload's identity from the mesh's CA, everything else over delta ADS.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use mesh_api::model::Locality;
use mesh_api::node::{NodeId, NodeMetadata, NodeType};
use tokio::sync::watch;
use tonic::transport::Channel;

use super::{Parts, SetLevel};
use crate::admin::Pages;
use crate::config::snapshot::Node;
use crate::identity::{self, ControlPlane};
use crate::settings::{Agent, Identity, Workload};
use crate::tls::SecretStore;
use crate::xds::ads::{AdsStatus, Client, Connect};

/// Readiness.
const STATUS_PORT: u16 = 15021;
/// Metrics of proxy (and application).
const MERGED_METRICS_PORT: u16 = 15020;
/// Metrics of the proxy.
const METRICS_PORT: u16 = 15090;
/// Admin.
const ADMIN_PORT: u16 = 15000;

fn identity_settings(i: &Identity) -> identity::Settings {
    identity::Settings {
        control: i.control.clone(),
        root_cert: i.root_cert.clone(),
        token: i.token.clone(),
        ttl: i.cert_ttl,
        cluster_id: i.cluster_id.clone(),
        state_dir: i.state_dir.clone(),
    }
}

/// Runs a sidecar or gateway until told to end.
pub fn run(w: &Workload, gateway: bool, set_level: SetLevel) -> anyhow::Result<()> {
    let node = node(w, gateway)?;
    let secrets = SecretStore::with_local_identity();
    let parts = Parts::start(&w.process, node, secrets.clone(), 0)?;
    let control = ControlPlane::new(&w.identity.control, &w.identity.root_cert, &secrets)?;
    let (status, certificate) = watch::channel(identity::Status::default());
    parts.runtime.spawn(identity::keep(identity_settings(&w.identity), secrets, Arc::new(status)));
    let (status, seen) = watch::channel(AdsStatus::default());
    let client = Client {
        connect: Box::new(ByTls { control, token: w.identity.token.clone() }),
        delta: true,
        node: crate::xds::node::message(&parts.shared.node),
        repeat_node: false,
        // Without configuration nothing is let through.
        clusters: Some(Duration::ZERO),
        listeners: Some(Duration::ZERO),
        shared: parts.shared.clone(),
        store: parts.store.clone(),
        status: Arc::new(status),
    };
    let readiness = parts.readiness(Some(certificate), Some((w.identity.control.clone(), seen)));
    let ip = w.ip.first().copied().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
    // Several proxies on one machine have a loopback address each; in a pod there is one proxy, open to its network.
    let local = if ip.is_loopback() { ip } else { IpAddr::V4(Ipv4Addr::LOCALHOST) };
    let open = if ip.is_loopback() { ip } else { IpAddr::V4(Ipv4Addr::UNSPECIFIED) };
    let mut places = vec![(w.admin.unwrap_or(SocketAddr::new(local, ADMIN_PORT)), Pages::Admin)];
    for port in [STATUS_PORT, MERGED_METRICS_PORT, METRICS_PORT] {
        places.push((SocketAddr::new(open, port), Pages::Status));
    }
    parts.run(readiness, places, Some(client), set_level, Duration::from_secs(w.process.drain_time_s))
}

/// Serves a certificate to a local Envoy until told to end.
pub fn agent(a: &Agent) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(async {
        use tokio::signal::unix::{SignalKind, signal};
        let mut term = signal(SignalKind::terminate())?;
        let mut int = signal(SignalKind::interrupt())?;
        let stop = async move {
            tokio::select! {
                _ = term.recv() => {}
                _ = int.recv() => {}
            }
        };
        let (status, _) = watch::channel(identity::Status::default());
        identity::agent(identity_settings(&a.identity), &a.socket, Arc::new(status), stop)
            .await
            .with_context(|| format!("secrets cannot be served at {}", a.socket.display()))
    })
}

fn node(w: &Workload, gateway: bool) -> anyhow::Result<Node> {
    let (name, namespace) = w.id.rsplit_once('.').context("--id must be NAME.NAMESPACE")?;
    let ip = w.ip.first().context("--ip is required")?.to_string();
    let id = NodeId {
        kind: if gateway { NodeType::Router } else { NodeType::Sidecar },
        ip,
        name: name.to_owned(),
        namespace: namespace.to_owned(),
        domain: format!("{namespace}.svc.{}", w.domain),
    };
    let all: Vec<String> = w.ip.iter().map(ToString::to_string).collect();
    let istio = NodeMetadata {
        name: name.to_owned(),
        namespace: namespace.to_owned(),
        labels: w.labels.iter().cloned().collect(),
        service_account: w.service_account.clone(),
        cluster_id: w.identity.cluster_id.clone(),
        network: w.network.clone(),
        istio_version: env!("CARGO_PKG_VERSION").to_owned(),
        instance_ips: all.join(","),
        interception_mode: w.interception_mode.clone(),
        workload_name: name.to_owned(),
        ..NodeMetadata::default()
    };
    let metadata = match serde_json::to_value(&istio)? {
        serde_json::Value::Object(map) => map,
        _ => serde_json::Map::new(),
    };
    let cluster = w.labels.iter().find(|(k, _)| k == "app").map_or(name, |(_, v)| v);
    Ok(Node {
        id: id.to_string(),
        cluster: format!("{cluster}.{namespace}"),
        locality: Locality::parse(&w.locality),
        metadata,
        istio,
    })
}

/// The control plane over TLS, with certificate or token.
struct ByTls {
    control: ControlPlane,
    token: Option<PathBuf>,
}

impl Connect for ByTls {
    fn channel(&mut self) -> Result<Channel, String> {
        self.control.channel(true).map_err(|e| e.to_string())
    }

    fn metadata(&self) -> Vec<(String, String)> {
        // A certificate says who we are; until there is one the token does.
        if self.control.has_certificate() {
            return vec![];
        }
        let token = self.token.as_ref().and_then(|path| std::fs::read_to_string(path).ok());
        token.map(|t| ("authorization".to_owned(), format!("Bearer {}", t.trim()))).into_iter().collect()
    }

    fn place(&self) -> String {
        self.control.address()
    }
}
