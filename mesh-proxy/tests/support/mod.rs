//! What the tests share: free ports, a backend, the proxy as a process, a small HTTP client.

#![allow(clippy::unwrap_used, clippy::expect_used)] // a test that meets what it does not expect ends
#![allow(dead_code)] // each test binary uses its part

pub mod control;

use std::{
    convert::Infallible,
    net::SocketAddr,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::{Instant, sleep},
};

/// Nothing here may take longer.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A server that answers `NAME METHOD PATH`, after `x-wait-ms` when asked to wait.
pub async fn backend(name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else { return };
            let service = service_fn(move |request: Request<Incoming>| async move {
                let wait = request.headers().get("x-wait-ms").and_then(|v| v.to_str().ok()?.parse().ok());
                if let Some(wait) = wait {
                    sleep(Duration::from_millis(wait)).await;
                }
                let text = format!("{name} {} {}", request.method(), request.uri().path());
                let _ = request.into_body().collect().await;
                Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(text))))
            });
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    address
}

/// A running proxy; killed when dropped.
pub struct Proxy {
    child: Child,
    pub admin: SocketAddr,
    _dir: Arc<tempfile::TempDir>,
    log: PathBuf,
}

impl Proxy {
    /// Starts `mesh-proxy -c FILE`; `@ADMIN@` in the text is replaced by the admin address's port.
    pub fn start(bootstrap: &str, more: &[&str]) -> Self {
        let admin = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("bootstrap.yaml");
        std::fs::write(&file, bootstrap.replace("@ADMIN@", &admin.port().to_string())).unwrap();
        let log = dir.path().join("log");
        let child = Command::new(env!("CARGO_BIN_EXE_mesh-proxy"))
            .arg("-c")
            .arg(&file)
            .args(["--concurrency", "2", "-l", "debug"])
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        Self { child, admin, _dir: Arc::new(dir), log }
    }

    /// Waits until `/ready` answers this status; the page.
    pub async fn until_ready(&mut self, status: u16) -> String {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Ok(answer) = get(self.admin, "a", "/ready").await
                && answer.status == status
            {
                return answer.body;
            }
            if let Some(code) = self.child.try_wait().unwrap() {
                panic!("proxy ended with {code}: {}", self.log());
            }
            assert!(Instant::now() < end, "not {status}: {}", self.log());
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Anonymous memory now, and the most memory of all kinds that there was, KiB.
    pub fn memory(&self) -> (u64, u64) {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let of = |name: &str| {
            let line = status.lines().find_map(|l| l.strip_prefix(name)).unwrap();
            line.trim_matches(|c: char| !c.is_ascii_digit()).parse().unwrap()
        };
        (of("RssAnon:"), of("VmHWM:"))
    }

    pub fn terminate(&self) {
        let pid = rustix::process::Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    }

    pub async fn ended(&mut self) -> std::process::ExitStatus {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < end, "does not end: {}", self.log());
            sleep(Duration::from_millis(10)).await;
        }
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

/// One request on a connection of its own.
pub async fn get(to: SocketAddr, host: &str, path: &str) -> std::io::Result<Answer> {
    get_with(to, host, path, "").await
}

/// As [`get`], with more header lines, each ended by CRLF.
pub async fn get_with(to: SocketAddr, host: &str, path: &str, headers: &str) -> std::io::Result<Answer> {
    let exchange = async {
        let mut stream = TcpStream::connect(to).await?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n{headers}\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut all = vec![];
        stream.read_to_end(&mut all).await?;
        let text = String::from_utf8_lossy(&all).into_owned();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
        if status == 0 {
            return Err(std::io::Error::other(format!("no answer: {text:?}")));
        }
        Ok(Answer { status, head: head.to_ascii_lowercase(), body: body.to_owned() })
    };
    tokio::time::timeout(PATIENCE, exchange).await?
}

/// Asks again and again until an answer satisfies.
pub async fn until(to: SocketAddr, host: &str, path: &str, good: impl Fn(&Answer) -> bool) -> Answer {
    let end = Instant::now() + PATIENCE;
    loop {
        let answer = get(to, host, path).await;
        match answer {
            Ok(answer) if good(&answer) => return answer,
            last => assert!(Instant::now() < end, "last answer: {last:?}"),
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// A listener in YAML, two spaces in, whose HTTP manager has these lines (`routes` at eight spaces).
pub fn http_filter(indent: usize, lines: &str) -> String {
    let pad = " ".repeat(indent);
    let mut out = format!(
        "{pad}- name: hcm\n{pad}  typed_config:\n{pad}    '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager\n{pad}    stat_prefix: t\n"
    );
    for line in lines.lines() {
        out.push_str(&format!("{pad}    {line}\n"));
    }
    out.push_str(&format!(
        "{pad}    http_filters: [{{name: router, typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}}}]\n"
    ));
    out
}
