//! `mesh-proxy sidecar|gateway|agent`: a workload's identity from the mesh's CA, everything else over delta ADS.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use mesh_api::model::Locality;
use mesh_api::node::{NodeId, NodeMetadata, NodeType};
use serde_json::{Map, Value};
use tokio::sync::watch;
use tonic::transport::Channel;

use super::{Parts, SetLevel};
use crate::admin::{AppMetrics, AppProbes, Application, Pages};
use crate::config::snapshot::Node;
use crate::dns::Names;
use crate::dns::forward::Upstreams;
use crate::dns::resolv_conf::ResolvConf;
use crate::dns::server::{Bound, Responder};
use crate::dns::table::Place;
use crate::identity::{self, ControlPlane};
use crate::settings::{Agent, Dns, Identity, Workload};
use crate::tls::SecretStore;
use crate::xds::ads::{AdsStatus, Client, Connect};

/// Admin.
const ADMIN_PORT: u16 = 15000;

fn identity_settings(i: &Identity) -> identity::Settings {
    identity::Settings {
        control: i.control.clone(),
        root_cert: i.root_cert.clone(),
        token: i.token_file(),
        ttl: i.cert_ttl,
        cluster_id: i.cluster_id.clone(),
        state_dir: i.state_dir.clone(),
    }
}

/// Runs a sidecar or gateway until told to end.
pub fn run(w: &Workload, gateway: bool, set_level: SetLevel) -> anyhow::Result<()> {
    let ip = w.ip.first().copied().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
    // Several proxies on one machine have a loopback address each; in a pod there is one proxy, open to its network.
    let local = if ip.is_loopback() { ip } else { IpAddr::V4(Ipv4Addr::LOCALHOST) };
    let open = if ip.is_loopback() { ip } else { IpAddr::V4(Ipv4Addr::UNSPECIFIED) };
    let admin = w.admin.unwrap_or(SocketAddr::new(local, ADMIN_PORT));
    let mut node = node(w, gateway, std::env::vars())?;
    if ip.is_loopback() {
        // Whoever is on this machine can ask there: `meshctl` learns of it from the control plane.
        node.metadata.insert("ADMIN_ADDRESS".to_owned(), Value::String(admin.to_string()));
    }
    let secrets = SecretStore::with_local_identity();
    let probes = w.app_probers.as_deref().map(|written| AppProbes::new(written, ip, &secrets)).transpose();
    let probes = probes.context("the application's probes (ISTIO_KUBE_APP_PROBERS) cannot be read")?;
    let own = [w.status_port, w.merged_metrics_port, w.metrics_port];
    let metrics = AppMetrics::new(w.app_metrics.as_deref().unwrap_or_default(), &own);
    let metrics =
        metrics.context("where the application's metrics are (ISTIO_PROMETHEUS_ANNOTATIONS) cannot be read")?;
    let parts = Parts::start(&w.process, node, secrets.clone(), 0)?;
    let control = ControlPlane::new(&w.identity.control, &w.identity.root_cert, &secrets)?;
    let (status, certificate) = watch::channel(identity::Status::default());
    parts.runtime.spawn(identity::keep(identity_settings(&w.identity), secrets, Arc::new(status)));
    let names = match &w.dns {
        dns if dns.capture => Some(names(dns, local, &parts)?),
        _ => None,
    };
    let (status, seen) = watch::channel(AdsStatus::default());
    let client = Client {
        connect: Box::new(ByTls { control, token: w.identity.token_file() }),
        delta: true,
        node: crate::xds::node::message(&parts.shared.node),
        repeat_node: false,
        // Without configuration nothing is let through.
        clusters: Some(Duration::ZERO),
        listeners: Some(Duration::ZERO),
        names: names.clone(),
        shared: parts.shared.clone(),
        store: parts.store.clone(),
        status: Arc::new(status),
    };
    {
        let mut store = parts.store.lock();
        store.bootstrap = crate::bootstrap::of_workload(client.node.clone(), admin, &w.identity.control);
        store.started = Some(SystemTime::now());
    }
    let readiness = parts.readiness(Some(certificate), Some((w.identity.control.clone(), seen)), names);
    let mut places = vec![(admin, Pages::Admin)];
    let status = own.into_iter().zip([Pages::Status, Pages::Merged, Pages::Status]);
    places.extend(status.filter(|(port, _)| *port != 0).map(|(port, pages)| (SocketAddr::new(open, port), pages)));
    parts.run(
        readiness,
        places,
        Application { probes, metrics },
        Some(client),
        set_level,
        Duration::from_secs(w.process.drain_time_s),
    )
}

/// Port of resolvers: who takes it stands in the place of the system's.
const DNS_PORT: u16 = 53;
/// Where the resolvers are named that an own one on port 53 has taken the place of.
const SAVED_RESOLV_CONF: &str = "/var/lib/istio/resolv.conf";

/// Where names are answered, as control planes are told: who has a loopback address of its own answers there.
fn dns_address(w: &Workload) -> String {
    let own = w.ip.first().copied().filter(IpAddr::is_loopback);
    let port = w.dns.address.strip_prefix("localhost:").and_then(|port| port.parse().ok());
    own.zip(port).map_or_else(|| w.dns.address.clone(), |(ip, port)| SocketAddr::new(ip, port).to_string())
}

/// Answers the application's DNS in the background. `local` is the proxy's own loopback address.
fn names(dns: &Dns, local: IpAddr, parts: &Parts) -> anyhow::Result<Arc<Names>> {
    let (host, port) = dns.address.rsplit_once(':').context("--dns-proxy-addr must be HOST:PORT")?;
    let port: u16 = port.parse().context("--dns-proxy-addr must end in a port")?;
    let saved = Path::new(SAVED_RESOLV_CONF);
    let conf = ResolvConf::read(if port == DNS_PORT && saved.exists() { saved } else { &dns.resolv_conf });
    let places: Vec<SocketAddr> = match host.trim_matches(['[', ']']) {
        "localhost" | "" => {
            let six = conf.servers.iter().any(IpAddr::is_ipv6).then_some(IpAddr::V6(Ipv6Addr::LOCALHOST));
            let four = (six.is_none() || conf.servers.iter().any(IpAddr::is_ipv4)).then_some(local);
            four.into_iter().chain(six).map(|ip| SocketAddr::new(ip, port)).collect()
        }
        ip => vec![SocketAddr::new(ip.parse().context("--dns-proxy-addr must name an IP address or localhost")?, port)],
    };
    let node = &parts.shared.node;
    let domain = node.id.rsplit('~').next().unwrap_or_default();
    let names = Names::new(Place::new(&node.istio.namespace, domain, &conf.search));
    let responder = Arc::new(Responder {
        names: names.clone(),
        upstreams: Upstreams::new(conf.upstreams(&places), dns.parallel),
        early: port == DNS_PORT,
        turn: AtomicUsize::new(0),
    });
    parts.runtime.block_on(async {
        for place in places {
            Bound::take(place).await?.serve(&responder);
        }
        anyhow::Ok(())
    })?;
    Ok(names)
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

/// Who we are, from flags, the labels file and the environment (`ISTIO_META_KEY`, `ISTIO_METAJSON_KEY`); flags win.
fn node(w: &Workload, gateway: bool, env: impl Iterator<Item = (String, String)>) -> anyhow::Result<Node> {
    let (name, namespace) =
        w.name().context("--id must be NAME.NAMESPACE, or POD_NAME and POD_NAMESPACE be in the environment")?;
    let ip = w.ip.first().context("--ip is required")?.to_string();
    let id = NodeId {
        kind: if gateway { NodeType::Router } else { NodeType::Sidecar },
        ip,
        name: name.to_owned(),
        namespace: namespace.to_owned(),
        domain: format!("{namespace}.svc.{}", w.domain),
    };
    let mut metadata = given(env)?;
    let mut labels = labels_of(&metadata);
    if let Ok(text) = std::fs::read_to_string(&w.labels_file) {
        labels.extend(text.lines().filter_map(label_line));
    }
    labels.extend(w.labels.iter().cloned());
    let text = |key: &str| metadata.get(key).and_then(Value::as_str).map(ToOwned::to_owned);
    let all: Vec<String> = w.ip.iter().map(ToString::to_string).collect();
    let app = labels.get("service.istio.io/canonical-name").or_else(|| labels.get("app"));
    let cluster = format!("{}.{namespace}", app.map_or(name, String::as_str));
    let istio = NodeMetadata {
        name: name.to_owned(),
        namespace: namespace.to_owned(),
        service_account: w.service_account.clone(),
        cluster_id: w.identity.cluster_id.clone(),
        network: w.network.clone(),
        mesh_id: text("MESH_ID").unwrap_or_default(),
        owner: text("OWNER").unwrap_or_default(),
        istio_version: text("ISTIO_VERSION").unwrap_or_else(|| env!("CARGO_PKG_VERSION").to_owned()),
        instance_ips: all.join(","),
        interception_mode: w.interception_mode.clone(),
        workload_name: text("WORKLOAD_NAME").unwrap_or_else(|| name.to_owned()),
        proxy_config: metadata.get("PROXY_CONFIG").cloned().unwrap_or_default(),
        dns_capture: w.dns.capture,
        dns_proxy_addr: if w.dns.capture { dns_address(w) } else { String::new() },
        http_proxy_port: text("HTTP_PROXY_PORT").unwrap_or_default(),
        labels,
        ..NodeMetadata::default()
    };
    if let Value::Object(ours) = serde_json::to_value(&istio)? {
        metadata.extend(ours);
    }
    Ok(Node { id: id.to_string(), cluster, locality: Locality::parse(&w.locality), metadata, istio })
}

/// Node metadata that the environment gives.
fn given(env: impl Iterator<Item = (String, String)>) -> anyhow::Result<Map<String, Value>> {
    let mut out = Map::new();
    for (key, text) in env {
        if let Some(key) = key.strip_prefix("ISTIO_METAJSON_") {
            let value = serde_json::from_str(&text).with_context(|| format!("ISTIO_METAJSON_{key} is not JSON"))?;
            match (key, value) {
                // Annotations count as metadata of their own, as Istio has it.
                ("ANNOTATIONS", Value::Object(all)) => out.extend(all),
                (_, value) => drop(out.insert(key.to_owned(), value)),
            }
        } else if let Some(key) = key.strip_prefix("ISTIO_META_") {
            out.insert(key.to_owned(), Value::String(text));
        } else if key == "PROXY_CONFIG" {
            let value = mesh_api::yaml::from_str(&text).map_err(|e| anyhow::anyhow!("PROXY_CONFIG: {e}"))?;
            out.insert(key, value);
        }
    }
    Ok(out)
}

fn labels_of(metadata: &Map<String, Value>) -> BTreeMap<String, String> {
    let all = metadata.get("LABELS").and_then(Value::as_object).into_iter().flatten();
    all.filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned()))).collect()
}

/// A line of the labels file.
fn label_line(line: &str) -> Option<(String, String)> {
    let (key, value) = line.split_once('=')?;
    let value = serde_json::from_str(value).unwrap_or_else(|_| value.to_owned());
    Some((key.trim().to_owned(), value))
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

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::settings::{Mode, Settings};

    #[test]
    fn who_we_are_comes_from_flags_files_and_the_environment() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("labels");
        std::fs::write(&file, "app=\"web\"\nversion=\"v1\"\n").unwrap();
        let words = format!(
            "mesh-proxy sidecar --id web-1.shop --ip 10.0.0.1,fd00::1 --label version=v2 --labels-file {}",
            file.display()
        );
        let settings = Settings::try_parse_from(words.split(' ')).unwrap();
        let Some(Mode::Sidecar(w)) = settings.mode else { panic!() };
        let env = [
            ("ISTIO_META_MESH_ID", "m"),
            ("ISTIO_METAJSON_LABELS", "{\"app\": \"old\", \"tier\": \"1\"}"),
            ("ISTIO_META_EXTRA", "x"),
            ("PROXY_CONFIG", "{\"concurrency\": 2}"),
            ("HOME", "/"),
        ];
        let node = node(&w, false, env.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned()))).unwrap();
        assert_eq!(node.id, "sidecar~10.0.0.1~web-1.shop~shop.svc.cluster.local");
        assert_eq!(node.cluster, "web.shop");
        let labels: Vec<(&str, &str)> = node.istio.labels.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(labels, [("app", "web"), ("tier", "1"), ("version", "v2")]);
        assert_eq!((node.istio.mesh_id.as_str(), node.istio.instance_ips.as_str()), ("m", "10.0.0.1,fd00::1"));
        assert_eq!(node.metadata["EXTRA"], "x");
        assert_eq!(node.metadata["LABELS"]["version"], "v2");
        assert_eq!(node.metadata["PROXY_CONFIG"]["concurrency"], 2);
        assert!(!node.metadata.contains_key("HOME"));
        assert!(!node.metadata.contains_key("DNS_CAPTURE"));
    }

    #[test]
    fn control_planes_are_told_where_names_are_answered() {
        let told = |words: &str| {
            let words = format!("mesh-proxy sidecar --id web-1.shop {words}");
            let settings = Settings::try_parse_from(words.split(' ')).unwrap();
            let Some(Mode::Sidecar(w)) = settings.mode else { panic!() };
            let node = node(&w, false, std::iter::empty()).unwrap();
            let text = |key: &str| node.metadata.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
            (text("DNS_CAPTURE"), text("DNS_PROXY_ADDR"))
        };
        let pair = |on: &str, at: &str| (on.to_owned(), at.to_owned());
        assert_eq!(told("--ip 10.0.0.1"), pair("", ""));
        assert_eq!(told("--ip 10.0.0.1 --dns-capture"), pair("true", "localhost:15053"));
        assert_eq!(told("--ip 127.0.0.3 --dns-capture"), pair("true", "127.0.0.3:15053"));
        let elsewhere = "--ip 127.0.0.3 --dns-capture --dns-proxy-addr 127.0.0.1:53";
        assert_eq!(told(elsewhere), pair("true", "127.0.0.1:53"));
    }
}
