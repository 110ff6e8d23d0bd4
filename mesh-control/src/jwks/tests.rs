//! Against real servers: good ones, and those that hang, bloat, redirect, vanish.

use std::{
    net::SocketAddr,
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpListener,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

use super::*;

const A: &str = r#"{"keys":[{"kty":"OKP","crv":"Ed25519","x":"AQ","d":"secret"}]}"#;
const B: &str = r#"{"keys":[{"kty":"OKP","crv":"Ed25519","x":"Ag"}]}"#;

/// What a server does with a request: by its path.
type Behaviour = Arc<dyn Fn(&str) -> String + Send + Sync>;

fn ok(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

async fn answer(mut io: impl AsyncReadExt + AsyncWrite + Unpin, behaviour: &Behaviour) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if io.read_exact(&mut byte).await.is_err() {
            return;
        }
        head.extend_from_slice(&byte);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
    if path == "/hang" {
        std::future::pending::<()>().await;
    }
    let _ = io.write_all(behaviour(&path).as_bytes()).await;
    while path == "/endless" && io.write_all(&[b'x'; 4096]).await.is_ok() {}
    let _ = io.shutdown().await;
}

async fn serve(tls: Option<TlsAcceptor>, behaviour: impl Fn(&str) -> String + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let behaviour: Behaviour = Arc::new(behaviour);
    tokio::spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let (behaviour, tls) = (behaviour.clone(), tls.clone());
            tokio::spawn(async move {
                match tls {
                    Some(tls) => {
                        if let Ok(io) = tls.accept(tcp).await {
                            answer(io, &behaviour).await;
                        }
                    }
                    None => answer(tcp, &behaviour).await,
                }
            });
        }
    });
    address
}

fn network() -> Network {
    let addresses = AddressPolicy { allowed: vec!["127.0.0.0/8".parse().unwrap()], blocked: vec![] };
    Network { addresses, extra_ca: None }
}

async fn get(network: &Network, url: &str) -> Result<Arc<str>, String> {
    network.keys(&KeySource::Uri(url.into()), Duration::from_millis(500)).await
}

/// T83, and T85: what is private stays here.
#[tokio::test]
async fn good_and_bad_answers() {
    let at = Arc::new(Mutex::new(None::<SocketAddr>));
    let own = at.clone();
    let address = serve(None, move |path| match path {
        "/keys" => ok(A),
        "/moved" => "HTTP/1.1 302 Found\r\nlocation: /keys\r\ncontent-length: 0\r\n\r\n".into(),
        "/round" => "HTTP/1.1 302 Found\r\nlocation: /round\r\ncontent-length: 0\r\n\r\n".into(),
        "/metadata" => {
            "HTTP/1.1 302 Found\r\nlocation: http://169.254.169.254/latest\r\ncontent-length: 0\r\n\r\n".into()
        }
        "/error" => "HTTP/1.1 500 Oh\r\ncontent-length: 0\r\n\r\n".into(),
        "/garbage" => "nonsense\r\n\r\n".into(),
        "/huge" => ok(&"x".repeat(50 << 20)),
        "/endless" => "HTTP/1.1 200 OK\r\n\r\n".into(),
        "/head" => format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "x".repeat(1 << 20)),
        "/gzip" => "HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 2\r\n\r\n{}".into(),
        "/none" => ok("{\"keys\":[]}"),
        "/json" => ok("{"),
        "/issuer/.well-known/openid-configuration" => {
            ok(&format!("{{\"jwks_uri\":\"http://{}/keys\"}}", own.lock().unwrap()))
        }
        "/inward/.well-known/openid-configuration" => ok("{\"jwks_uri\":\"http://[::1]:1/keys\"}"),
        _ => "HTTP/1.1 404 No\r\ncontent-length: 0\r\n\r\n".into(),
    })
    .await;
    *at.lock() = Some(address);
    let network = network();
    let url = |path: &str| format!("http://{address}{path}");
    let public = public_keys(A).unwrap();
    assert!(!public.contains("secret"));
    assert_eq!(get(&network, &url("/keys")).await.as_deref(), Ok(&*public));
    assert_eq!(get(&network, &url("/moved")).await.as_deref(), Ok(&*public));
    for (path, word) in [
        ("/round", "redirects"),
        ("/metadata", "link-local"),
        ("/error", "500"),
        ("/garbage", ""),
        ("/huge", "1048576"),
        ("/endless", "1048576"),
        ("/head", ""),
        ("/gzip", "encoding"),
        ("/none", "no key"),
        ("/json", "no key"),
        ("/hang", "within"),
        ("/404", "404"),
    ] {
        let why = get(&network, &url(path)).await.unwrap_err();
        assert!(why.contains(word), "{path}: {why}");
    }
    let limit = Duration::from_secs(1);
    let issuer = |path: &str| KeySource::Issuer(format!("http://{address}{path}").into());
    assert_eq!(network.keys(&issuer("/issuer/"), limit).await.as_deref(), Ok(&*public));
    let why = network.keys(&issuer("/inward"), limit).await.unwrap_err();
    assert!(why.contains("loopback"), "{why}");
    let why = network.keys(&KeySource::Issuer("no-url".into()), limit).await.unwrap_err();
    assert!(why.contains("discovery"), "{why}");
}

#[tokio::test]
async fn the_own_machine_is_asked_only_when_told_so() {
    let address = serve(None, |_| ok(A)).await;
    let closed = Network { addresses: AddressPolicy::default(), extra_ca: None };
    for host in ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]"] {
        let why = get(&closed, &format!("http://{host}:{}/keys", address.port())).await.unwrap_err();
        assert!(why.contains("--jwks-allowed-cidrs"), "{host}: {why}");
    }
    assert!(get(&network(), &format!("http://localhost:{}/keys", address.port())).await.is_ok());
}

fn certificate(dir: &Path) -> (TlsAcceptor, PathBuf) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let path = dir.join("ca.pem");
    std::fs::write(&path, made.cert.pem()).unwrap();
    let key = rustls_pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    (TlsAcceptor::from(Arc::new(config)), path)
}

#[tokio::test]
async fn https_with_the_roots_that_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let (tls, ca) = certificate(dir.path());
    let address = serve(Some(tls), |path| match path {
        "/down" => "HTTP/1.1 302 Found\r\nlocation: http://localhost/\r\ncontent-length: 0\r\n\r\n".into(),
        _ => ok(A),
    })
    .await;
    let trusting = Network { extra_ca: Some(ca), ..network() };
    let url = |host: &str, path: &str| format!("https://{host}:{}{path}", address.port());
    let limit = Duration::from_secs(5);
    let get = async |network: &Network, url: String| network.keys(&KeySource::Uri(url.as_str().into()), limit).await;
    assert!(get(&trusting, url("localhost", "/keys")).await.is_ok());
    let why = get(&trusting, url("localhost", "/down")).await.unwrap_err();
    assert!(why.contains("from https to http"), "{why}");
    assert!(get(&trusting, url("127.0.0.1", "/keys")).await.unwrap_err().contains("TLS"), "another name");
    assert!(get(&network(), url("localhost", "/keys")).await.is_err(), "nobody vouches for it");
    let missing = Network { extra_ca: Some(dir.path().join("none.pem")), ..network() };
    assert!(get(&missing, url("localhost", "/keys")).await.unwrap_err().contains("none.pem"));
}

struct Running {
    keys: Keys,
    task: tokio::task::JoinHandle<()>,
}

fn start(dir: &Path, wanted: &[&KeySource]) -> (Running, Vec<Update>) {
    let options = Options { state_dir: dir.to_owned(), addresses: network().addresses, extra_ca: None };
    let (keys, known, fetcher) = open(options, wants(wanted), Arc::default());
    (Running { keys, task: tokio::spawn(fetcher.run()) }, known)
}

fn wants(sources: &[&KeySource]) -> Wanted {
    sources.iter().map(|s| ((*s).clone(), Duration::from_millis(300))).collect()
}

impl Running {
    async fn next(&mut self) -> Update {
        timeout(Duration::from_secs(20), self.keys.updates.recv()).await.unwrap().unwrap()
    }
}

/// T83: an outage leaves what was last good, over a restart too; T84: new keys come without anybody asking.
#[tokio::test]
async fn outage_rotation_and_restart() {
    let dir = tempfile::tempdir().unwrap();
    let now = Arc::new(Mutex::new(ok(A)));
    let said = now.clone();
    let address = serve(None, move |_| said.lock().clone()).await;
    let source = KeySource::Uri(format!("http://{address}/keys").into());
    let (mut first, known) = start(dir.path(), &[&source]);
    assert!(known.is_empty());
    let public = |text: &str| Some(Arc::<str>::from(public_keys(text).unwrap()));
    assert_eq!(first.next().await, (source.clone(), public(A)));
    assert!(first.keys.standings.read()[&source].failed.is_none());
    tokio::time::sleep(SAVE_AFTER * 3).await;
    first.task.abort();

    *now.lock() = "HTTP/1.1 500 Oh\r\ncontent-length: 0\r\n\r\n".into();
    let (mut second, known) = start(dir.path(), &[&source]);
    assert_eq!(known, [(source.clone(), public(A))]);
    assert_eq!(second.next().await, (source.clone(), public(A)), "the last good ones stay");
    let standing = second.keys.standings.read()[&source].clone();
    assert!(standing.good.is_some() && standing.failed.unwrap().1.contains("500"));
    *now.lock() = ok(B);
    while second.next().await.1 != public(B) {}
    second.keys.wanted.send_replace(Wanted::new());
    assert_eq!(second.next().await, (source.clone(), None));
    assert!(second.keys.standings.read().is_empty());
    tokio::time::sleep(SAVE_AFTER * 3).await;
    second.task.abort();
    let (_third, known) = start(dir.path(), &[&source]);
    assert!(known.is_empty(), "what nobody wants is not kept");
}

#[tokio::test]
async fn those_that_hang_hold_up_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let hits = Arc::new(AtomicUsize::new(0));
    let counted = hits.clone();
    let address = serve(None, move |_| {
        counted.fetch_add(1, Ordering::Relaxed);
        ok(A)
    })
    .await;
    let hanging: Vec<KeySource> = (0..3 * AT_ONCE)
        .map(|i| KeySource::Uri(format!("http://{address}/hang?{i}").replace("/hang?", "/hang#").into()))
        .collect();
    let good = KeySource::Uri(format!("http://{address}/keys").into());
    let mut wanted: Vec<&KeySource> = hanging.iter().collect();
    wanted.push(&good);
    let (mut running, _) = start(dir.path(), &wanted);
    let came = async {
        loop {
            let (source, keys) = running.next().await;
            if source == good && keys.is_some() {
                break;
            }
        }
    };
    timeout(Duration::from_secs(5), came).await.unwrap();
    assert_eq!(hits.load(Ordering::Relaxed), 1, "one fetch");
}

#[tokio::test]
async fn too_many_sources_are_said() {
    let dir = tempfile::tempdir().unwrap();
    let sources: Vec<KeySource> = (0..MAX_SOURCES + 1).map(|i| KeySource::Uri(format!("x{i:05}").into())).collect();
    let wanted: Vec<&KeySource> = sources.iter().collect();
    let (running, _) = start(dir.path(), &wanted);
    let last = sources.last().unwrap();
    let standing = running.keys.standings.read()[last].clone();
    assert!(standing.failed.unwrap().1.contains("most allowed"));
}
