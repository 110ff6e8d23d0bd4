//! The whole control plane on a folder: addresses, pages, edits, the end.

#![allow(clippy::unwrap_used, clippy::expect_used)] // a test that meets what it does not expect ends

use std::{net::SocketAddr, path::Path, time::Duration};

use clap::Parser;
use mesh_api::xds::{
    TypeUrl,
    discovery::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse,
        aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
    },
    envoy::config::core::v3::Node,
};
use mesh_control::{
    app::{self, Running},
    settings::{Cli, Serve},
};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
    time::{sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;

const SOON: Duration = Duration::from_secs(20);

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  clusterIP: 10.1.0.1
  ports: [{name: http, port: 80}]
";

fn settings(dir: &Path) -> Serve {
    let path = |name: &str| dir.join(name).to_string_lossy().into_owned();
    std::fs::create_dir_all(dir.join("config")).unwrap();
    let args =
        ["mesh-control", "--config-dir", &path("config"), "--state-dir", &path("state"), "--http-addr", "127.0.0.1:0"];
    let args = args.into_iter().chain(["--xds-addr", "127.0.0.1:0", "--plaintext-xds-addr", "127.0.0.1:0"]);
    Cli::try_parse_from(args).unwrap().serve.unwrap()
}

struct Pages(SocketAddr);

impl Pages {
    fn of(running: &Running) -> Self {
        Self(running.addresses.http.0.unwrap())
    }
    /// Status and body.
    async fn get(&self, path: &str, headers: &str) -> (u16, String) {
        let mut tcp = TcpStream::connect(self.0).await.unwrap();
        let host = if headers.contains("Host:") { String::new() } else { format!("Host: {}\r\n", self.0) };
        let head = format!("GET {path} HTTP/1.1\r\n{host}{headers}Connection: close\r\n\r\n");
        tcp.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        timeout(SOON, tcp.read_to_string(&mut answer)).await.unwrap().unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }
    async fn json(&self, path: &str) -> Value {
        let (status, body) = self.get(path, "").await;
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).unwrap()
    }
    async fn metric(&self, line: &str) -> f64 {
        let (_, page) = self.get("/metrics", "").await;
        page.lines().find_map(|l| l.strip_prefix(line)?.trim().parse().ok()).unwrap_or_else(|| panic!("{line}: {page}"))
    }
}

#[tokio::test]
async fn pages_tell_what_is_in_force() {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(dir.path());
    std::fs::write(dir.path().join("config/web.yaml"), SERVICE).unwrap();
    let secret = "apiVersion: v1\nkind: Secret\nmetadata: {name: tls, namespace: shop}\ndata: {tls.key: c2VjcmV0}\n";
    std::fs::write(dir.path().join("config/secret.yaml"), secret).unwrap();
    let running = app::start(&settings).await.unwrap();
    let pages = Pages::of(&running);
    assert_eq!(pages.get("/ready", "").await.0, 200);
    assert!(pages.get("/version", "").await.1.contains(env!("CARGO_PKG_VERSION")));
    assert_eq!(pages.metric("pilot_services ").await, 1.0);
    assert!(pages.metric("process_cpu_seconds_total ").await >= 0.0);
    assert_eq!(pages.json("/debug/syncz").await, serde_json::json!([]));
    let configz = pages.json("/debug/configz").await;
    assert!(!configz.to_string().contains("c2VjcmV0"), "{configz}");
    let web = configz["objects"].as_array().unwrap().iter().find(|o| o["kind"] == "Service").unwrap();
    assert_eq!((web["metadata"]["name"].as_str(), web["position"]["line"].as_u64()), (Some("web"), Some(2)));

    // A mistake is told with its place, and changes nothing.
    let bad = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: web, namespace: shop}\nspec:\n  hosts: [web]\n  htpp: []\n";
    std::fs::write(dir.path().join("config/bad.yaml"), bad).unwrap();
    let finding = timeout(SOON, async {
        loop {
            let findings = pages.json("/debug/findings").await;
            if let Some(f) = findings.as_array().unwrap().iter().find(|f| f["level"] == "error") {
                return f.clone();
            }
            sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .unwrap();
    assert!(finding["file"].as_str().unwrap().ends_with("bad.yaml"), "{finding}");
    assert_eq!((finding["line"].as_u64(), finding["field"].as_str()), (Some(6), Some("spec.htpp")), "{finding}");
    std::fs::remove_file(dir.path().join("config/bad.yaml")).unwrap();
    std::fs::remove_file(dir.path().join("config/web.yaml")).unwrap();
    timeout(SOON, async {
        while pages.metric("pilot_services ").await != 0.0 {
            sleep(Duration::from_millis(10)).await
        }
    })
    .await
    .unwrap();
    assert!(pages.metric("pilot_k8s_reg_events{type=\"Service\",event=\"delete\"} ").await >= 1.0);
    timeout(SOON, running.stop(SOON)).await.unwrap();
    assert!(TcpStream::connect(pages.0).await.is_err(), "nothing listens any more");
}

#[tokio::test]
async fn debug_pages_are_not_for_browsers() {
    let dir = tempfile::tempdir().unwrap();
    let running = app::start(&settings(dir.path())).await.unwrap();
    let pages = Pages::of(&running);
    assert_eq!(pages.get("/debug/syncz", "Host: evil.example\r\n").await.0, 403);
    assert_eq!(pages.get("/debug/syncz", "Origin: http://evil.example\r\n").await.0, 403);
    assert_eq!(pages.get("/debug/config_dump", "").await.0, 400);
    assert_eq!(pages.get("/debug/config_dump?proxyID=a.b", "").await.0, 404);
    assert_eq!(pages.get("/nothing", "").await.0, 404);
}

#[tokio::test]
async fn what_cannot_work_is_said_at_start() {
    let dir = tempfile::tempdir().unwrap();
    let mut bad = settings(dir.path());
    bad.config_dir = Some(dir.path().join("missing"));
    let error = app::start(&bad).await.unwrap_err().to_string();
    assert!(error.contains("missing"), "{error}");
    let running = app::start(&settings(dir.path())).await.unwrap();
    let mut taken = settings(dir.path());
    taken.http_addr = running.addresses.http;
    let error = app::start(&taken).await.unwrap_err().to_string();
    assert!(error.contains("cannot listen on 127.0.0.1"), "{error}");
}

/// Subscribes to all clusters; acknowledges what comes.
struct Proxy {
    tx: mpsc::Sender<DeltaDiscoveryRequest>,
    rx: tonic::Streaming<DeltaDiscoveryResponse>,
}

impl Proxy {
    async fn connect(running: &Running) -> Self {
        let address = running.addresses.plaintext_xds.0.unwrap();
        let mut client = AggregatedDiscoveryServiceClient::connect(format!("http://{address}")).await.unwrap();
        let (tx, rx) = mpsc::channel(4);
        let id = "sidecar~10.9.0.1~client-1.shop~shop.svc.cluster.local".to_owned();
        tx.send(DeltaDiscoveryRequest {
            node: Some(Node { id, ..Node::default() }),
            type_url: TypeUrl::Cluster.as_str().into(),
            resource_names_subscribe: vec!["*".into()],
            ..Default::default()
        })
        .await
        .unwrap();
        let rx = client.delta_aggregated_resources(ReceiverStream::new(rx)).await.unwrap().into_inner();
        Self { tx, rx }
    }
    async fn next(&mut self) -> DeltaDiscoveryResponse {
        let r = timeout(SOON, self.rx.message()).await.expect("a response").unwrap().unwrap();
        let ack = DeltaDiscoveryRequest {
            type_url: r.type_url.clone(),
            response_nonce: r.nonce.clone(),
            ..Default::default()
        };
        self.tx.send(ack).await.unwrap();
        r
    }
}

#[tokio::test]
async fn an_edited_file_reaches_a_proxy() {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(dir.path());
    let file = |name: &str| dir.path().join("config").join(name);
    std::fs::write(file("web.yaml"), SERVICE).unwrap();
    let running = app::start(&settings).await.unwrap();
    let pages = Pages::of(&running);
    let mut proxy = Proxy::connect(&running).await;
    let names = |r: &DeltaDiscoveryResponse| r.resources.iter().map(|r| r.name.clone()).collect::<Vec<_>>();
    let web = "outbound|80||web.shop.svc.cluster.local".to_owned();
    assert!(names(&proxy.next().await).contains(&web));

    std::fs::write(file("api.yaml"), SERVICE.replace("name: web", "name: api").replace("10.1.0.1", "10.1.0.2"))
        .unwrap();
    assert_eq!(names(&proxy.next().await), ["outbound|80||api.shop.svc.cluster.local"], "only what is new");
    let dump = pages.json("/debug/config_dump?proxyID=client-1.shop").await;
    assert!(dump.to_string().contains(&web), "{dump}");

    // A file that turns bad changes nothing; one that goes takes its service with it.
    let api = std::fs::read(file("api.yaml")).unwrap();
    std::fs::write(file("api.yaml"), "kind: [").unwrap();
    timeout(SOON, async {
        while pages.json("/debug/findings").await.as_array().unwrap().is_empty() {
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    std::fs::write(file("api.yaml"), api).unwrap();
    std::fs::remove_file(file("web.yaml")).unwrap();
    assert_eq!(proxy.next().await.removed_resources, [web]);
    let synced = timeout(SOON, async {
        loop {
            let syncz = pages.json("/debug/syncz").await;
            if syncz[0]["types"]["CDS"]["state"] == "SYNCED" {
                return syncz;
            }
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    assert_eq!(synced[0]["proxy"], "client-1.shop");
    assert_eq!(synced[0]["cluster_sent"], synced[0]["cluster_acked"]);
    assert_eq!(pages.metric("pilot_xds{version=\"0.1.0\"} ").await, 1.0);
    assert_eq!(pages.metric("pilot_xds_pushes{type=\"cds\"} ").await, 3.0);
    running.stop(SOON).await;
}

fn mesh(settings: &str) -> String {
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\ndata:\n  mesh: |\n    {settings}\n"
    )
}

fn free_address() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

#[tokio::test]
async fn settings_that_cannot_be_read_are_never_replaced_by_defaults() {
    let dir = tempfile::tempdir().unwrap();
    let mut settings = settings(dir.path());
    let http = free_address();
    settings.http_addr = http.to_string().parse().unwrap();
    let file = dir.path().join("config/mesh.yaml");
    let registry_only = "outboundTrafficPolicy: {mode: REGISTRY_ONLY}";
    let typo = registry_only.replace("Traffic", "Trafic");
    std::fs::write(&file, mesh(&typo)).unwrap();
    let starting = tokio::spawn(async move { app::start(&settings).await.unwrap() });
    let pages = Pages(http);
    let why = timeout(SOON, async {
        loop {
            if TcpStream::connect(http).await.is_ok() {
                let (status, body) = pages.get("/ready", "").await;
                assert_eq!(status, 503, "{body}");
                if body.contains("outboundTraficPolicy") {
                    return body;
                }
            }
            sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .unwrap();
    assert!(why.contains("mesh.yaml:6:5") && why.contains("is not a field of MeshConfig"), "{why}");
    let configz = pages.json("/debug/configz").await;
    assert_eq!(configz["findings"][0]["field"], "data.mesh.outboundTraficPolicy", "{configz}");
    assert!(!starting.is_finished());

    std::fs::write(&file, mesh(registry_only)).unwrap();
    let running = timeout(SOON, starting).await.unwrap().unwrap();
    assert_eq!(pages.get("/ready", "").await.0, 200);
    let mode = || running.hub.state().unwrap().latest.mesh().outbound_mode();
    let closed = mesh_api::meshconfig::OutboundPolicyMode::RegistryOnly;
    assert_eq!(mode(), closed);

    // Later the last good version goes on serving, and the mistake is told.
    std::fs::write(&file, mesh(&typo)).unwrap();
    timeout(SOON, async {
        while pages.json("/debug/findings").await.as_array().unwrap().is_empty() {
            sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .unwrap();
    assert_eq!(pages.get("/ready", "").await.0, 200);
    assert_eq!(mode(), closed);
    running.stop(SOON).await;
}

#[tokio::test]
async fn broken_settings_that_are_taken_away_hold_nobody_up() {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(dir.path());
    let file = dir.path().join("config/mesh.yaml");
    std::fs::write(&file, mesh("{").replace("mesh: |", "mesh: [")).unwrap();
    let starting = tokio::spawn(async move { app::start(&settings).await.unwrap() });
    sleep(Duration::from_millis(300)).await;
    assert!(!starting.is_finished());
    std::fs::remove_file(&file).unwrap();
    let running = timeout(SOON, starting).await.unwrap().unwrap();
    running.stop(SOON).await;
}
