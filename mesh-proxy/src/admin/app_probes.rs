//! Probes of the application, asked in the kubelet's place: the kubelet has no certificate, and finds the proxy behind
//! every port. Injection moves the probes here and hands over where they led (`ISTIO_KUBE_APP_PROBERS`).

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, HOST, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use mesh_api::model::{CommonTls, Name, UpstreamTls};
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream};

use super::{Answer, answer};
use crate::tls::{ClientTls, ConnectOptions, SecretStore, TlsError};
use crate::upstream::serving;

/// Kubernetes' own limit when a probe names none.
const TIMEOUT: Duration = Duration::from_secs(1);

/// The probes of one pod's containers, by the path they are asked at.
#[derive(Debug)]
pub struct AppProbes {
    by_path: HashMap<String, Probe>,
    /// The pod.
    ip: IpAddr,
    /// For applications that speak TLS: who they are is not looked at, as the kubelet does not.
    tls: Arc<ClientTls>,
}

/// A probe, as Kubernetes writes it.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Probe {
    http_get: Option<HttpGet>,
    tcp_socket: Option<TcpPort>,
    grpc: Option<Grpc>,
    timeout_seconds: Option<u64>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct HttpGet {
    port: u16,
    #[serde(default)]
    path: String,
    #[serde(default)]
    scheme: String,
    #[serde(default)]
    http_headers: Vec<Header>,
}

#[derive(Debug, Deserialize)]
struct Header {
    name: String,
    #[serde(default)]
    value: String,
}

#[derive(Debug, Deserialize)]
struct TcpPort {
    port: u16,
}

#[derive(Debug, Deserialize)]
struct Grpc {
    port: u16,
    #[serde(default)]
    service: String,
}

impl AppProbes {
    /// From what injection wrote, for the pod with this address.
    ///
    /// # Errors
    /// When that cannot be read.
    pub fn new(written: &str, ip: IpAddr, store: &Arc<SecretStore>) -> anyhow::Result<Self> {
        let by_path = if written.trim().is_empty() { HashMap::new() } else { serde_json::from_str(written)? };
        let anybody = UpstreamTls {
            common: CommonTls::default(),
            sni: Name::from(""),
            auto_host_sni: false,
            auto_sni_san_validation: false,
        };
        Ok(Self { by_path, ip, tls: ClientTls::new(&anybody, store)? })
    }

    /// Whether a path is that of a probe.
    pub(super) fn has(&self, path: &str) -> bool {
        self.by_path.contains_key(path)
    }

    /// The application's answer: its status for HTTP, 200 or 500 for others.
    pub(super) async fn ask(&self, path: &str, headers: &HeaderMap) -> Answer {
        let Some(probe) = self.by_path.get(path) else {
            return answer(StatusCode::NOT_FOUND, "text/plain", "there is no such probe\n");
        };
        let time = probe.timeout_seconds.filter(|s| *s > 0).map_or(TIMEOUT, Duration::from_secs);
        let result = tokio::time::timeout(time, self.ask_one(probe, headers)).await;
        match result.unwrap_or_else(|_| Err(format!("no answer within {time:?}"))) {
            Ok(status) => answer(status, "text/plain", ""),
            Err(why) => {
                tracing::debug!(target: "admin", "probe {path}: {why}");
                answer(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", why + "\n")
            }
        }
    }

    async fn ask_one(&self, probe: &Probe, headers: &HeaderMap) -> Result<StatusCode, String> {
        if let Some(get) = &probe.http_get {
            let io = self.connect(get.port).await.map_err(|e| e.to_string())?;
            let request = request(get, SocketAddr::new(self.ip, get.port), headers)?;
            if !get.scheme.eq_ignore_ascii_case("https") {
                return exchange(io, request).await;
            }
            let host = request.headers().get(HOST).and_then(|h| h.to_str().ok()).map(without_port);
            // An address is no name to be sent.
            let server_name = host.filter(|h| h.parse::<IpAddr>().is_err());
            let options = ConnectOptions { server_name, ..ConnectOptions::default() };
            let (io, _) = self.tls.connect(io, options).await.map_err(|e: TlsError| e.to_string())?;
            return exchange(io, request).await;
        }
        if let Some(tcp) = &probe.tcp_socket {
            return self.connect(tcp.port).await.map(|_| StatusCode::OK).map_err(|e| e.to_string());
        }
        let Some(grpc) = &probe.grpc else { return Err("the probe asks nothing".to_owned()) };
        let io = self.connect(grpc.port).await.map_err(|e| e.to_string())?;
        let host = SocketAddr::new(self.ip, grpc.port).to_string();
        if serving(io, &host, &grpc.service).await { Ok(StatusCode::OK) } else { Err("not SERVING".to_owned()) }
    }

    /// From the address by which redirection knows the proxy's calls of its application.
    async fn connect(&self, port: u16) -> io::Result<TcpStream> {
        let (socket, from) = match self.ip {
            IpAddr::V4(_) => (TcpSocket::new_v4()?, IpAddr::V4(Ipv4Addr::new(127, 0, 0, 6))),
            IpAddr::V6(_) => (TcpSocket::new_v6()?, IpAddr::V6(Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6))),
        };
        if from.is_ipv6() {
            // No interface has it.
            socket2::SockRef::from(&socket).set_freebind_v6(true)?;
        }
        socket.bind(SocketAddr::new(from, 0))?;
        socket.connect(SocketAddr::new(self.ip, port)).await
    }
}

fn without_port(host: &str) -> &str {
    host.rsplit_once(':').map_or(host, |(name, _)| name)
}

/// The kubelet's headers go along, unless the probe has its own.
fn request(get: &HttpGet, to: SocketAddr, headers: &HeaderMap) -> Result<Request<Empty<Bytes>>, String> {
    let path = if get.path.starts_with('/') { get.path.clone() } else { format!("/{}", get.path) };
    let mut request = Request::get(path).body(Empty::new()).map_err(|e| e.to_string())?;
    let all = request.headers_mut();
    for (name, value) in headers {
        if ![HOST, CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING].contains(name) {
            all.append(name, value.clone());
        }
    }
    let own: Vec<(HeaderName, HeaderValue)> = get
        .http_headers
        .iter()
        .map(|h| Ok((h.name.parse().map_err(|_| &h.name)?, h.value.parse().map_err(|_| &h.name)?)))
        .collect::<Result<_, &String>>()
        .map_err(|name| format!("header {name:?} cannot be sent"))?;
    for (name, _) in &own {
        all.remove(name);
    }
    for (name, value) in own {
        all.append(name, value);
    }
    if !all.contains_key(HOST) {
        all.insert(HOST, HeaderValue::from_str(&to.to_string()).map_err(|e| e.to_string())?);
    }
    all.insert(CONNECTION, HeaderValue::from_static("close"));
    Ok(request)
}

async fn exchange<S>(io: S, request: Request<Empty<Bytes>>) -> Result<StatusCode, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(io)).await.map_err(|e| e.to_string())?;
    let connection = tokio::spawn(connection);
    let answered = sender.send_request(request).await.map(|r| r.status()).map_err(|e| e.to_string());
    // The body is nobody's business.
    connection.abort();
    answered
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    /// An application that answers each request with its own first lines as a status of 200, or as told.
    async fn application(answer: &'static str) -> (u16, tokio::sync::mpsc::UnboundedReceiver<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (port, (tx, rx)) = (listener.local_addr().unwrap().port(), tokio::sync::mpsc::unbounded_channel());
        tokio::spawn(async move {
            while let Ok((mut socket, peer)) = listener.accept().await {
                let mut buffer = vec![0; 4096];
                let n = socket.read(&mut buffer).await.unwrap_or(0);
                let _ = tx.send(format!("{} {}", peer.ip(), String::from_utf8_lossy(&buffer[..n])));
                let _ = socket.write_all(answer.as_bytes()).await;
            }
        });
        (port, rx)
    }

    fn probes(written: &str) -> AppProbes {
        crate::tls::install_default_provider();
        AppProbes::new(written, IpAddr::V4(Ipv4Addr::LOCALHOST), &SecretStore::with_local_identity()).unwrap()
    }

    #[tokio::test]
    async fn the_application_is_asked_and_its_status_told() {
        let (port, mut seen) = application("HTTP/1.1 204 No\r\n\r\n").await;
        let probes = probes(&format!(
            r#"{{"/app-health/a/readyz": {{"httpGet": {{"path": "ready?x=1", "port": {port}, "httpHeaders":
                [{{"name": "Host", "value": "h.test"}}, {{"name": "X-Own", "value": "1"}}]}}, "timeoutSeconds": 5}}}}"#
        ));
        assert!(probes.has("/app-health/a/readyz") && !probes.has("/app-health/a/livez"));
        let headers: HeaderMap = [
            (http::header::USER_AGENT, HeaderValue::from_static("kube-probe")),
            (HeaderName::from_static("x-own"), HeaderValue::from_static("kubelet's")),
        ]
        .into_iter()
        .collect();
        assert_eq!(probes.ask("/app-health/a/readyz", &headers).await.status(), 204);
        let request = seen.recv().await.unwrap();
        assert!(request.starts_with("127.0.0.6 GET /ready?x=1 HTTP/1.1\r\n"), "{request}");
        for header in ["user-agent: kube-probe\r\n", "host: h.test\r\n", "x-own: 1\r\n"] {
            assert!(request.contains(header), "{request}");
        }
        assert!(!request.contains("kubelet's"));
        assert_eq!(probes.ask("/app-health/b/readyz", &headers).await.status(), 404);
    }

    #[tokio::test]
    async fn ports_answers_and_silence() {
        let (open, _seen) = application("HTTP/1.1 503 No\r\n\r\n").await;
        let (silent, _seen) = application("").await;
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        let probes = probes(&format!(
            r#"{{"/tcp": {{"tcpSocket": {{"port": {open}}}}}, "/closed": {{"tcpSocket": {{"port": {closed}}}}},
                "/http": {{"httpGet": {{"path": "/", "port": {open}}}}}, "/none": {{}},
                "/silent": {{"httpGet": {{"path": "/", "port": {silent}}}}},
                "/https": {{"httpGet": {{"scheme": "HTTPS", "port": {open}}}}},
                "/grpc": {{"grpc": {{"port": {open}, "service": "s"}}}}}}"#
        ));
        let none = HeaderMap::new();
        for (path, status) in [
            ("/tcp", 200),
            ("/closed", 500),
            ("/http", 503),
            ("/none", 500),
            ("/silent", 500),
            ("/https", 500),
            ("/grpc", 500),
        ] {
            assert_eq!(probes.ask(path, &none).await.status(), status, "{path}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_refused() {
        crate::tls::install_default_provider();
        let store = SecretStore::with_local_identity();
        let new = |text: &str| AppProbes::new(text, IpAddr::V4(Ipv4Addr::LOCALHOST), &store);
        assert!(new("").is_ok() && new("{}").is_ok());
        assert!(new("{").is_err() && new(r#"{"/a": {"httpGet": {"port": "http"}}}"#).is_err());
    }
}
