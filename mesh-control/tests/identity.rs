//! Both planes together: certificates from the running control plane into the proxy's secret store, their rotation, and
//! what is refused.

#![allow(clippy::unwrap_used, clippy::expect_used)] // a test that meets what it does not expect ends

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use clap::Parser;
use mesh_api::{
    ca::{CREATE_CERTIFICATE, CertificateRequest, CertificateResponse},
    model::{
        CertificateSource, CommonTls, DownstreamTls, Name, SanKind, SanMatcher, StringMatcher, UpstreamTls, Validation,
        ValidationContext,
    },
    xds::{
        TypeUrl,
        discovery::{
            DeltaDiscoveryRequest, DiscoveryRequest,
            aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
        },
        envoy::{
            config::core::v3::Node, service::secret::v3::secret_discovery_service_client::SecretDiscoveryServiceClient,
        },
        google::protobuf,
    },
};
use mesh_control::{
    app::{self, Running},
    settings::{Cli, Serve},
};
use mesh_proxy::{
    identity::{self, ControlPlane, Settings, Status},
    tls::{ClientTls, ConnectOptions, SecretStore, ServerTls},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::watch,
    task::JoinHandle,
    time::timeout,
};
use tokio_stream::StreamExt;
use tonic::{Code, Request};

const SOON: Duration = Duration::from_secs(30);

fn serve(dir: &Path, xds: SocketAddr) -> Serve {
    std::fs::create_dir_all(dir.join("config")).unwrap();
    let path = |name: &str| dir.join(name).to_string_lossy().into_owned();
    let (config, state, xds) = (path("config"), path("state"), xds.to_string());
    let args =
        ["mesh-control", "--config-dir", &config, "--state-dir", &state, "--http-addr", "off", "--xds-addr", &xds];
    let args = args.into_iter().chain(["--root-grace", "3s"]);
    Cli::try_parse_from(args).unwrap().serve.unwrap()
}

async fn control(dir: &Path) -> Running {
    app::start(&serve(dir, "127.0.0.1:0".parse().unwrap())).await.unwrap()
}

fn address(running: &Running) -> String {
    running.addresses.xds.0.unwrap().to_string()
}

/// A workload with its identity task.
struct Workload {
    store: Arc<SecretStore>,
    status: watch::Receiver<Status>,
    task: JoinHandle<()>,
    settings: Settings,
}

impl Workload {
    fn settings(dir: &Path, control: &str, account: &str, ttl: u64) -> Settings {
        let token = dir.join(format!("{account}.token"));
        let text = mesh_control::workload_token(&dir.join("state"), "shop", account).unwrap();
        std::fs::write(&token, text + "\n").unwrap();
        Settings {
            control: control.to_owned(),
            root_cert: dir.join("state/root-cert.pem"),
            token: Some(token),
            ttl: Duration::from_secs(ttl),
            cluster_id: "Kubernetes".to_owned(),
            state_dir: None,
        }
    }
    fn start(settings: Settings) -> Self {
        let store = SecretStore::with_local_identity();
        let (tx, status) = watch::channel(Status::default());
        let task = tokio::spawn(identity::keep(settings.clone(), store.clone(), Arc::new(tx)));
        Self { store, status, task, settings }
    }
    async fn until(&mut self, what: &str, f: impl Fn(&Status) -> bool) -> Status {
        let found = timeout(SOON, self.status.wait_for(|s| f(s))).await.map(|status| status.unwrap().clone());
        found.unwrap_or_else(|_| panic!("never: {what}; {:?}", *self.status.borrow()))
    }
    fn serial(&self) -> Option<Name> {
        let state = self.store.slot(&SecretStore::local_reference(identity::CERTIFICATE)).state();
        match &state.material {
            Some(mesh_proxy::tls::Material::Certificate(c)) => Some(c.facts.serial.clone()),
            _ => None,
        }
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn common(expected: Option<&str>) -> CommonTls {
    let matcher = |id: &str| SanMatcher { kind: SanKind::Uri, matcher: StringMatcher::exact(id) };
    CommonTls {
        certificates: vec![CertificateSource::Sds(SecretStore::local_reference(identity::CERTIFICATE))],
        validation: Some(Validation {
            inline: expected.map(|id| ValidationContext { san_matchers: vec![matcher(id)], ..Default::default() }),
            sds: Some(SecretStore::local_reference(identity::ROOTS)),
        }),
        ..Default::default()
    }
}

fn server(store: &Arc<SecretStore>) -> Arc<ServerTls> {
    ServerTls::new(&DownstreamTls { common: common(None), require_client_certificate: true }, store).unwrap()
}

fn client(store: &Arc<SecretStore>, expected: &str) -> Arc<ClientTls> {
    let cfg = UpstreamTls {
        common: common(Some(expected)),
        sni: "outbound_.80_._.bank.shop.svc.cluster.local".into(),
        auto_host_sni: false,
        auto_sni_san_validation: false,
    };
    ClientTls::new(&cfg, store).unwrap()
}

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
const BANK: &str = "spiffe://cluster.local/ns/shop/sa/bank";

#[tokio::test]
async fn workloads_know_each_other_through_rotations() {
    let dir = tempfile::tempdir().unwrap();
    let running = control(dir.path()).await;
    let mut web = Workload::start(Workload::settings(dir.path(), &address(&running), "web", 3));
    let mut bank = Workload::start(Workload::settings(dir.path(), &address(&running), "bank", 3));
    assert_eq!(web.until("ready", |s| s.ready).await.spiffe.as_deref(), Some(WEB));
    bank.until("ready", |s| s.ready).await;
    let (server, client) = (server(&bank.store), client(&web.store, BANK));
    let (a, b) = tokio::io::duplex(4096);
    let (s, c) = tokio::join!(server.accept(a), client.connect(b, ConnectOptions::default()));
    let ((mut s, s_info), (mut c, c_info)) = (s.unwrap(), c.unwrap());
    assert_eq!((s_info.spiffe().map(|n| &**n), c_info.spiffe().map(|n| &**n)), (Some(WEB), Some(BANK)));
    assert_eq!(s_info.version, "TLSv1.3");

    // Three rotations later: the old connection lives, its certificate is long dead; handshakes never failed.
    let generation = client.generation();
    let first = web.serial();
    while web.status.borrow().received < 4 {
        let (a, b) = tokio::io::duplex(4096);
        let (s, c) = tokio::join!(server.accept(a), client.connect(b, ConnectOptions::default()));
        s.unwrap();
        c.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_ne!(client.generation(), generation);
    assert_ne!(web.serial(), first);
    s.write_all(b"x").await.unwrap();
    s.flush().await.unwrap();
    assert_eq!(c.read_u8().await.unwrap(), b'x');
    assert_eq!(web.status.borrow().failed, 0);

    // Who is somebody else is refused.
    let wrong = self::client(&web.store, "spiffe://cluster.local/ns/shop/sa/other");
    let (a, b) = tokio::io::duplex(4096);
    let (_, c) = tokio::join!(server.accept(a), wrong.connect(b, ConnectOptions::default()));
    assert!(c.unwrap_err().is_verify());
    running.stop(SOON).await;
}

#[tokio::test]
async fn an_outage_is_survived_until_the_end_and_not_longer() {
    let dir = tempfile::tempdir().unwrap();
    let running = control(dir.path()).await;
    let xds = running.addresses.xds.0.unwrap();
    let mut settings = Workload::settings(dir.path(), &xds.to_string(), "web", 5);
    settings.state_dir = Some(dir.path().join("proxy"));
    let mut web = Workload::start(settings.clone());
    web.until("ready", |s| s.ready).await;
    // No token any more: from now on the certificate itself must do.
    std::fs::remove_file(settings.token.as_ref().unwrap()).unwrap();
    web.until("renewed by certificate", |s| s.received >= 2).await;
    running.stop(SOON).await;
    let failed = web.until("a failure", |s| s.failed > 0).await;
    assert!(failed.ready, "still valid");
    assert!(web.serial().is_some());

    // A restarted process serves at once with what was kept.
    let kept = Workload::start(settings.clone());
    let mut status = kept.status.clone();
    timeout(SOON, status.wait_for(|s| s.ready)).await.unwrap().unwrap();
    assert_eq!(kept.serial(), web.serial());
    drop(kept);

    let ended = web.until("the end", |s| !s.ready).await;
    assert!(ended.error.unwrap().contains("expired"));
    assert!(web.serial().is_none());
    let server = server(&web.store);
    assert!(!server.ready());
    let (a, _b) = tokio::io::duplex(64);
    assert!(server.accept(a).await.is_err(), "closed, not open");

    // The control plane is back, and a token is there.
    let running = app::start(&serve(dir.path(), xds)).await.unwrap();
    Workload::settings(dir.path(), &xds.to_string(), "web", 5);
    let began = tokio::time::Instant::now();
    web.until("back", |s| s.ready).await;
    assert!(began.elapsed() < Duration::from_secs(10));
    running.stop(SOON).await;
}

/// One request for a certificate, with this token, over TLS as the sidecar does it.
async fn request(
    control: &ControlPlane,
    authorization: &[&str],
    csr: &str,
) -> Result<CertificateResponse, tonic::Status> {
    let mut grpc = tonic::client::Grpc::new(control.channel(false).unwrap());
    grpc.ready().await.unwrap();
    let mut request = Request::new(CertificateRequest { csr: csr.to_owned(), validity_duration: 60, metadata: None });
    for value in authorization {
        request.metadata_mut().append("authorization", value.parse().unwrap());
    }
    let codec = tonic_prost::ProstCodec::default();
    let path = http::uri::PathAndQuery::from_static(CREATE_CERTIFICATE);
    grpc.unary(request, path, codec).await.map(tonic::Response::into_inner)
}

#[tokio::test]
async fn nobody_gets_more_than_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let running = control(dir.path()).await;
    let store = SecretStore::with_local_identity();
    let root = dir.path().join("state/root-cert.pem");
    let control_plane = ControlPlane::new(&address(&running), &root, &store).unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["istiod".to_owned()]).unwrap();
    let uri = "spiffe://cluster.local/ns/kube-system/sa/admin";
    params.subject_alt_names.push(rcgen::SanType::URI(uri.try_into().unwrap()));
    let csr = params.serialize_request(&key).unwrap().pem().unwrap();
    let token = mesh_control::workload_token(&dir.path().join("state"), "shop", "web").unwrap();
    let bearer = format!("Bearer {token}");

    let answer = request(&control_plane, &[&bearer], &csr).await.unwrap();
    use rustls_pki_types::{CertificateDer, pem::PemObject};
    let leaf = CertificateDer::from_pem_slice(answer.cert_chain[0].as_bytes()).unwrap();
    let facts = mesh_proxy::tls::CertificateFacts::parse(&leaf).unwrap();
    assert_eq!((facts.spiffe.as_deref(), facts.dns_sans.len()), (Some(WEB), 0));
    assert_eq!(answer.cert_chain.last().unwrap(), &std::fs::read_to_string(&root).unwrap());

    let elsewhere = tempfile::tempdir().unwrap();
    let forged = mesh_control::workload_token(elsewhere.path(), "shop", "web").unwrap();
    let forged = format!("Bearer {forged}");
    let basic = format!("Basic {token}");
    for authorization in [&[][..], &["Bearer x"], &[&forged], &[&basic], &[&bearer, &forged]] {
        let status = request(&control_plane, authorization, &csr).await.unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated, "{status}");
    }
    let huge = "x".repeat(1 << 20);
    for (bad, code) in [("", Code::InvalidArgument), ("x", Code::InvalidArgument), (huge.as_str(), Code::OutOfRange)] {
        assert_eq!(request(&control_plane, &[&bearer], bad).await.unwrap_err().code(), code);
    }
    // A control plane of another mesh is not talked to.
    let other = tempfile::tempdir().unwrap();
    let other_running = control(other.path()).await;
    let mut lost = Workload::settings(dir.path(), &address(&other_running), "web", 60);
    lost.root_cert = root;
    let mut lost = Workload::start(lost);
    let status = lost.until("refusal", |s| s.failed > 0).await;
    assert!(status.error.as_deref().unwrap().contains("CERTIFICATE_VERIFY_FAILED"), "{status:?}");
    other_running.stop(SOON).await;
    running.stop(SOON).await;
}

#[tokio::test]
async fn xds_knows_the_certificate() {
    let dir = tempfile::tempdir().unwrap();
    let running = control(dir.path()).await;
    let mut web = Workload::start(Workload::settings(dir.path(), &address(&running), "web", 60));
    web.until("ready", |s| s.ready).await;
    let ask = async |present: bool, namespace: &str| {
        let control = ControlPlane::new(&web.settings.control, &web.settings.root_cert, &web.store).unwrap();
        let mut client = AggregatedDiscoveryServiceClient::new(control.channel(present).unwrap());
        let node = Node {
            id: format!("sidecar~10.0.0.1~web.{namespace}~{namespace}.svc.cluster.local"),
            ..Default::default()
        };
        let request =
            DiscoveryRequest { node: Some(node), type_url: TypeUrl::Cluster.as_str().to_owned(), ..Default::default() };
        let requests = tokio_stream::once(request).chain(tokio_stream::pending());
        let mut answers = client.stream_aggregated_resources(requests).await?.into_inner();
        timeout(SOON, answers.message()).await.unwrap()
    };
    assert!(ask(true, "shop").await.unwrap().is_some());
    assert_eq!(ask(false, "shop").await.unwrap_err().code(), Code::Unauthenticated);
    assert!(ask(true, "bank").await.is_err(), "not its namespace");
    running.stop(SOON).await;
}

const GATEWAY: &str = "
apiVersion: v1
kind: Secret
metadata: {name: cert, namespace: shop}
stringData: {tls.crt: CHAIN, tls.key: KEY}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: edge, namespace: shop}
spec:
  selector: {istio: edge}
  servers:
  - port: {number: 443, name: https, protocol: HTTPS}
    hosts: ['*']
    tls: {mode: SIMPLE, credentialName: cert}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: web, namespace: shop}
spec: {address: 10.0.0.1, serviceAccount: web, labels: {app: web}}
";

#[tokio::test]
async fn nobody_becomes_a_gateway_by_saying_so() {
    let dir = tempfile::tempdir().unwrap();
    let serve = serve(dir.path(), "127.0.0.1:0".parse().unwrap());
    std::fs::write(dir.path().join("config/gateway.yaml"), GATEWAY).unwrap();
    let running = app::start(&serve).await.unwrap();
    let ask = async |account: &str, ip: &str| {
        let settings = Workload::settings(dir.path(), &address(&running), account, 60);
        let mut workload = Workload::start(settings.clone());
        workload.until("ready", |s| s.ready).await;
        let control = ControlPlane::new(&settings.control, &settings.root_cert, &workload.store).unwrap();
        let mut client = AggregatedDiscoveryServiceClient::new(control.channel(true).unwrap());
        let text = |s: &str| protobuf::Value { kind: Some(protobuf::value::Kind::StringValue(s.to_owned())) };
        let labels = protobuf::Struct { fields: [("istio".to_owned(), text("edge"))].into() };
        let labels = protobuf::Value { kind: Some(protobuf::value::Kind::StructValue(labels)) };
        let node = Node {
            id: format!("router~{ip}~edge-1.shop~shop.svc.cluster.local"),
            metadata: Some(protobuf::Struct { fields: [("LABELS".to_owned(), labels)].into() }),
            ..Default::default()
        };
        let request = DeltaDiscoveryRequest {
            node: Some(node),
            type_url: TypeUrl::Secret.as_str().to_owned(),
            resource_names_subscribe: vec!["kubernetes://cert".to_owned()],
            ..Default::default()
        };
        let requests = tokio_stream::once(request).chain(tokio_stream::pending());
        let mut answers = client.delta_aggregated_resources(requests).await.unwrap().into_inner();
        let answer = timeout(SOON, answers.message()).await.unwrap().unwrap().unwrap();
        assert_eq!(answer.resources.len() + answer.removed_resources.len(), 1, "{answer:?}");
        answer.resources.len() == 1
    };
    assert!(ask("edge", "10.0.0.9").await, "a gateway that nobody registered");
    assert!(!ask("web", "10.0.0.9").await, "a workload at an address of nobody");
    assert!(!ask("web", "10.0.0.1").await, "at its own address it has its own labels");
    assert!(!ask("edge", "10.0.0.1").await, "nor is anybody else there");
    running.stop(SOON).await;
}

fn plug_in(dir: &Path, name: &str) {
    use base64::Engine as _;
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    let cert = params.self_signed(&key).unwrap().pem();
    let encode = |s: &str| base64::engine::general_purpose::STANDARD.encode(s);
    let secret = format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: cacerts, namespace: istio-system}}\ndata:\n  ca-cert.pem: {c}\n  \
         ca-key.pem: {k}\n  root-cert.pem: {c}\n  cert-chain.pem: {c}\n",
        c = encode(&cert),
        k = encode(&key.serialize_pem())
    );
    let temporary = dir.join("cacerts.tmp");
    std::fs::write(&temporary, secret).unwrap();
    std::fs::rename(temporary, dir.join("config/cacerts.yaml")).unwrap();
}

fn roots_of(w: &Workload) -> Vec<String> {
    let state = w.store.slot(&SecretStore::local_reference(identity::ROOTS)).state();
    match &state.material {
        Some(mesh_proxy::tls::Material::Trust(t)) => t.roots().map(|r| r.subject.to_string()).collect(),
        _ => vec![],
    }
}

#[tokio::test]
async fn a_plugged_in_ca_takes_over_while_it_runs() {
    let dir = tempfile::tempdir().unwrap();
    let running = control(dir.path()).await;
    let mut web = Workload::start(Workload::settings(dir.path(), &address(&running), "web", 4));
    web.until("ready", |s| s.ready).await;
    plug_in(dir.path(), "plugged in");
    // Both roots are trusted for a while, then only the new one; renewals go on all the time.
    let became = |n: usize| roots_become(&web, n);
    timeout(SOON, became(2)).await.unwrap();
    assert!(roots_of(&web).iter().any(|r| r == "CN=plugged in"));
    timeout(SOON, became(1)).await.unwrap();
    assert_eq!(roots_of(&web), ["CN=plugged in"]);
    let received = web.status.borrow().received;
    web.until("renewed", |s| s.received > received + 1).await;
    assert!(web.status.borrow().ready);
    running.stop(SOON).await;
}

/// Who signed the certificate of a workload.
fn issuer(w: &Workload) -> String {
    let state = w.store.slot(&SecretStore::local_reference(identity::CERTIFICATE)).state();
    match &state.material {
        Some(mesh_proxy::tls::Material::Certificate(c)) => c.facts.issuer.to_string(),
        _ => String::new(),
    }
}

#[tokio::test]
async fn workloads_that_do_not_renew_understand_a_new_ca() {
    let dir = tempfile::tempdir().unwrap();
    let running = control(dir.path()).await;
    let xds = running.addresses.xds.0.unwrap();
    let settings = |account: &str| Workload::settings(dir.path(), &xds.to_string(), account, 3600);
    let mut web = Workload::start(settings("web"));
    let mut bank = Workload::start(settings("bank"));
    web.until("ready", |s| s.ready).await;
    bank.until("ready", |s| s.ready).await;
    plug_in(dir.path(), "next");
    let mut late = None;
    timeout(SOON, async {
        // Whoever comes now, early or late in the change, understands and is understood.
        while late.is_none() {
            let mut new = Workload::start(settings("late"));
            new.until("ready", |s| s.ready).await;
            meet(&new, &bank, BANK).await;
            meet(&web, &new, "spiffe://cluster.local/ns/shop/sa/late").await;
            late = Some(new).filter(|w| issuer(w).contains("next"));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await
    .unwrap();
    let late = late.unwrap();
    assert_eq!((web.status.borrow().received, bank.status.borrow().received), (1, 1), "nobody renewed");
    running.stop(SOON).await;

    // A restart forgets nobody.
    let running = app::start(&serve(dir.path(), xds)).await.unwrap();
    let mut later = Workload::start(settings("late"));
    later.until("ready", |s| s.ready).await;
    assert_eq!(roots_of(&later).len(), 2);
    assert!(issuer(&later).contains("next"));
    meet(&later, &bank, BANK).await;
    meet(&bank, &late, "spiffe://cluster.local/ns/shop/sa/late").await;
    running.stop(SOON).await;
}

/// A handshake with certificates of both sides.
async fn meet(client: &Workload, server: &Workload, expected: &str) {
    let (server, client) = (self::server(&server.store), self::client(&client.store, expected));
    let (a, b) = tokio::io::duplex(4096);
    let (s, c) = tokio::join!(server.accept(a), client.connect(b, ConnectOptions::default()));
    c.unwrap();
    s.unwrap();
}

async fn roots_become(w: &Workload, n: usize) {
    while roots_of(w).len() != n {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_local_envoy_is_served_over_a_private_socket() {
    let dir = tempfile::tempdir().unwrap();
    let running = control(dir.path()).await;
    let settings = Workload::settings(dir.path(), &address(&running), "web", 3);
    let socket: PathBuf = dir.path().join("sds/socket");
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let (status, mut ready) = watch::channel(Status::default());
    let serving = {
        let socket = socket.clone();
        let stop = async { drop(stopped.await) };
        tokio::spawn(async move { identity::agent(settings, &socket, Arc::new(status), stop).await.unwrap() })
    };
    timeout(SOON, ready.wait_for(|s| s.ready)).await.unwrap().unwrap();
    timeout(SOON, async {
        while !socket.exists() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .unwrap();
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(std::fs::read_dir(socket.parent().unwrap()).unwrap().count(), 1);
    let connect = tower::service_fn(move |_: http::Uri| {
        let socket = socket.clone();
        async move { Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(tokio::net::UnixStream::connect(socket).await?)) }
    });
    let channel = tonic::transport::Endpoint::from_static("http://sds").connect_with_connector(connect).await.unwrap();
    let mut client = SecretDiscoveryServiceClient::new(channel);
    let request = DiscoveryRequest { resource_names: vec!["default".to_owned()], ..Default::default() };
    let requests = tokio_stream::once(request).chain(tokio_stream::pending());
    let mut answers = client.stream_secrets(requests).await.unwrap().into_inner();
    let first = timeout(SOON, answers.message()).await.unwrap().unwrap().unwrap();
    let second = timeout(SOON, answers.message()).await.unwrap().unwrap().unwrap();
    assert_ne!(first.version_info, second.version_info, "pushed when it is renewed");
    drop((answers, client));
    drop(stop);
    timeout(SOON, serving).await.unwrap().unwrap();
    running.stop(SOON).await;
}
