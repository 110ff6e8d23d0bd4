//! Exchanges of a whole process that do not go the straight way: clients that leave, tunnels, time running out, retries
//! that are over, refusals. What a client sees, what the upstream sees, what is logged.

#![allow(clippy::unwrap_used, clippy::expect_used)] // a test that meets what it does not expect ends

mod support;

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use hyper_util::rt::{TokioExecutor, TokioIo};
use support::{PATIENCE, Proxy, free_port, http_filter, until};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    time::{Instant, sleep, timeout},
};

const LOG: &str = "%REQ(:METHOD)% %REQ(:PATH)% %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %BYTES_RECEIVED% %BYTES_SENT% %UPSTREAM_LOCAL_ADDRESS%\\n";

/// An upstream of HTTP/1.1 that does what the path says.
struct Upstream {
    address: SocketAddr,
    /// Requests that came.
    requests: Arc<AtomicUsize>,
    /// Connections that ended.
    ended: Arc<AtomicUsize>,
}

impl Upstream {
    async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (requests, ended) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let this = Self { address: listener.local_addr().unwrap(), requests: requests.clone(), ended: ended.clone() };
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (requests, ended) = (requests.clone(), ended.clone());
                tokio::spawn(async move {
                    let _ = Self::serve(BufReader::new(stream), &requests).await;
                    ended.fetch_add(1, Ordering::SeqCst);
                });
            }
        });
        this
    }

    async fn serve(mut stream: BufReader<TcpStream>, requests: &AtomicUsize) -> std::io::Result<()> {
        loop {
            let Some((line, head)) = head(&mut stream).await? else { return Ok(()) };
            requests.fetch_add(1, Ordering::SeqCst);
            let length = head.lines().find_map(|l| l.strip_prefix("content-length: ")?.parse().ok()).unwrap_or(0);
            let mut body = vec![0; length];
            stream.read_exact(&mut body).await?;
            match line.split([' ', '?']).nth(1).unwrap_or_default() {
                "/hang" => drop(stream.read_u8().await?),
                "/reset" => return Ok(()),
                "/late" => sleep(Duration::from_millis(600)).await,
                "/503" => {
                    stream.write_all(b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n").await?;
                    continue;
                }
                "/drip" => {
                    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\na").await?;
                    stream.read_u8().await?;
                }
                "/chat" => {
                    let head = head.to_ascii_lowercase();
                    assert!(line.starts_with("GET ") && head.contains("upgrade: websocket\r\n"), "{line} {head}");
                    stream
                        .write_all(b"HTTP/1.1 101 Yes\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nwelcome ")
                        .await?;
                    let mut some = [0; 1024];
                    loop {
                        let n = stream.read(&mut some).await?;
                        if n == 0 {
                            return Ok(());
                        }
                        stream.write_all(some.get(..n).unwrap()).await?;
                    }
                }
                _ => {}
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await?;
        }
    }

    async fn until_ended(&self, n: usize) {
        let end = Instant::now() + PATIENCE;
        while self.ended.load(Ordering::SeqCst) < n {
            assert!(Instant::now() < end, "the connection to the upstream stays");
            sleep(Duration::from_millis(10)).await;
        }
    }
}

/// A request's or answer's first line and header lines; `None`: the connection ended before.
async fn head(stream: &mut (impl AsyncBufReadExt + Unpin)) -> std::io::Result<Option<(String, String)>> {
    let (mut line, mut all) = (String::new(), String::new());
    if stream.read_line(&mut line).await? == 0 {
        return Ok(None);
    }
    loop {
        let before = all.len();
        stream.read_line(&mut all).await?;
        if all.get(before..).is_none_or(|l| l.trim_end().is_empty()) {
            return Ok(Some((line.trim_end().to_owned(), all)));
        }
    }
}

struct Site {
    proxy: Proxy,
    address: SocketAddr,
    log: PathBuf,
    upstream: Upstream,
    _dir: tempfile::TempDir,
}

impl Site {
    /// A proxy in front of an upstream, with these routes (each a line of YAML) and this in its manager.
    async fn new(routes: &[&str], manager: &str, more: &[&str]) -> Self {
        let (dir, upstream, port) = (tempfile::tempdir().unwrap(), Upstream::new().await, free_port());
        let log = dir.path().join("log");
        let routes: Vec<String> = routes.iter().map(|r| format!("      - {r}\n")).collect();
        let lines = format!(
            "route_config:
  name: r
  virtual_hosts:
  - name: v
    domains: ['svc.local']
    routes:
{}upgrade_configs: [{{upgrade_type: websocket}}]
access_log:
- name: file
  typed_config:
    '@type': type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog
    path: {}
    log_format: {{text_format_source: {{inline_string: \"{LOG}\"}}}}
{manager}",
            routes.concat(),
            log.display()
        );
        let mut filter = http_filter(6, &lines);
        if manager.contains("http_filters:") {
            let last = filter.trim_end().rfind('\n').unwrap();
            filter.truncate(last);
        }
        let bootstrap = format!(
            "admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: @ADMIN@}}}}}}
static_resources:
  listeners:
  - name: l
    address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
    filter_chains:
    - filters:
{filter}
  clusters:
  - name: itself
    type: STATIC
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        '@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{http2_protocol_options: {{}}}}
    load_assignment:
      cluster_name: itself
      endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}}}]}}]
  - name: up
    type: STATIC
    load_assignment:
      cluster_name: up
      endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {}}}}}}}}}]}}]
",
            upstream.address.port()
        );
        let mut proxy = Proxy::start(&bootstrap, more);
        proxy.until_ready(200).await;
        Self { proxy, address: SocketAddr::from(([127, 0, 0, 1], port)), log, upstream, _dir: dir }
    }

    /// Sends bytes on a new connection.
    async fn send(&self, bytes: &str) -> BufReader<TcpStream> {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(bytes.as_bytes()).await.unwrap();
        BufReader::new(stream)
    }

    /// Status of the answer to a request without a body.
    async fn get(&self, path: &str, headers: &str) -> u16 {
        let mut stream = self.send(&request(path, headers)).await;
        status(&mut stream).await
    }

    /// The log's line with this in it.
    async fn logged(&self, what: &str) -> String {
        let end = Instant::now() + PATIENCE;
        loop {
            let all = std::fs::read_to_string(&self.log).unwrap_or_default();
            if let Some(line) = all.lines().find(|l| l.contains(what)) {
                return line.to_owned();
            }
            assert!(Instant::now() < end, "no {what:?} in {all}");
            sleep(Duration::from_millis(20)).await;
        }
    }
}

fn request(path: &str, headers: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: svc.local\r\n{headers}\r\n")
}

async fn status(stream: &mut BufReader<TcpStream>) -> u16 {
    let (line, _) = timeout(PATIENCE, head(stream)).await.unwrap().unwrap().expect("an answer");
    line.split(' ').nth(1).unwrap().parse().unwrap()
}

const TO_UP: &str = "{match: {prefix: /}, route: {cluster: up, timeout: 0s}}";
const WEBSOCKET: &str = "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: x3JJHMbDL1EzLkh9GBhXDw==\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_takes_its_request_along() {
    let site = Site::new(&[TO_UP], "", &[]).await;
    let mut leaving = site.send(&request("/hang", "")).await;
    while site.upstream.requests.load(Ordering::SeqCst) == 0 {
        sleep(Duration::from_millis(10)).await;
    }
    // The end of its side is the end of it.
    leaving.shutdown().await.unwrap();
    site.upstream.until_ended(1).await;
    let line = site.logged("/hang").await;
    assert!(line.starts_with("GET /hang 0 DC downstream_remote_disconnect 0 0 "), "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tunnel_is_counted_and_drained_and_logged() {
    let mut site = Site::new(&[TO_UP], "", &["--drain-time-s", "1"]).await;
    let mut chat = site.send(&request("/chat", WEBSOCKET)).await;
    let (line, headers) = head(&mut chat).await.unwrap().unwrap();
    let headers = headers.to_ascii_lowercase();
    assert!(line.contains(" 101 "), "{line}");
    assert!(headers.contains("connection: upgrade\r\n") && headers.contains("upgrade: websocket\r\n"), "{headers}");
    chat.write_all(b"hello").await.unwrap();
    let mut got = [0; 13];
    chat.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"welcome hello");
    let active = |a: &support::Answer| a.body.lines().any(|l| l.contains("downstream_cx_active") && l.ends_with(": 1"));
    until(site.proxy.admin, "a", "/stats", active).await;
    // Nobody ends it: the proxy does when the time for draining is over, and knows what went through.
    site.proxy.terminate();
    assert!(timeout(PATIENCE, chat.read_u8()).await.unwrap().is_err());
    assert!(site.proxy.ended().await.success());
    let line = site.logged("/chat").await;
    assert!(line.starts_with("GET /chat 101 DC downstream_remote_disconnect 5 13 "), "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_tunnel_ends() {
    let site = Site::new(&[TO_UP], "stream_idle_timeout: 1s", &[]).await;
    let mut chat = site.send(&request("/chat", WEBSOCKET)).await;
    assert_eq!(status(&mut chat).await, 101);
    let mut all = Vec::new();
    timeout(PATIENCE, chat.read_to_end(&mut all)).await.unwrap().unwrap();
    assert_eq!(all, b"welcome ");
    let line = site.logged("/chat").await;
    assert!(line.starts_with("GET /chat 101 SI stream_idle_timeout 0 8 "), "{line}");
    site.upstream.until_ended(1).await;
    // One that its client ends.
    let mut chat = site.send(&request("/chat?2", WEBSOCKET)).await;
    assert_eq!(status(&mut chat).await, 101);
    drop(chat);
    let line = site.logged("/chat?2").await;
    assert!(line.starts_with("GET /chat?2 101 DC downstream_remote_disconnect "), "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_extended_connect_becomes_an_upgrade() {
    let mut site = Site::new(&[TO_UP], "http2_protocol_options: {allow_connect: true}", &["--drain-time-s", "1"]).await;
    let stream = TcpStream::connect(site.address).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let ask = |path: &str| {
        let mut request = http::Request::connect(format!("http://svc.local{path}"));
        request.extensions_mut().unwrap().insert(hyper::ext::Protocol::from_static("websocket"));
        request.version(http::Version::HTTP_2).body(http_body_util::Empty::<Bytes>::new()).unwrap()
    };
    // The client learns from the settings that it may.
    let answer = sender.send_request(http::Request::get("http://svc.local/").body(Default::default()).unwrap()).await;
    assert_eq!(answer.unwrap().status(), 200);
    let mut answer = timeout(PATIENCE, sender.send_request(ask("/chat"))).await.unwrap().unwrap();
    assert_eq!(answer.status(), 200);
    assert!(!answer.headers().contains_key("upgrade"));
    let mut chat = TokioIo::new(hyper::upgrade::on(&mut answer).await.unwrap());
    chat.write_all(b"hello").await.unwrap();
    let mut got = [0; 13];
    timeout(PATIENCE, chat.read_exact(&mut got)).await.unwrap().unwrap();
    assert_eq!(&got, b"welcome hello");
    // An upstream that does not switch gives no tunnel.
    let refused = timeout(PATIENCE, sender.send_request(ask("/plain"))).await.unwrap().unwrap();
    assert_eq!(refused.status(), 502);
    // One ends by itself, the other with its connection.
    chat.shutdown().await.unwrap();
    assert_eq!(timeout(PATIENCE, chat.read(&mut got)).await.unwrap().unwrap(), 0);
    let line = site.logged("/chat").await;
    assert!(line.starts_with("GET /chat 101 - via_upstream 5 13 "), "{line}");
    let mut answer = timeout(PATIENCE, sender.send_request(ask("/chat?2"))).await.unwrap().unwrap();
    let mut chat = TokioIo::new(hyper::upgrade::on(&mut answer).await.unwrap());
    timeout(PATIENCE, chat.read_exact(&mut got[..8])).await.unwrap().unwrap();
    site.proxy.terminate();
    assert!(site.proxy.ended().await.success());
    let line = site.logged("/chat?2").await;
    assert!(line.starts_with("GET /chat?2 101 DC ") && line.contains(" 0 8 "), "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_goes_over_http2_as_an_extended_connect() {
    let over = "{match: {prefix: /over/}, route: {cluster: itself, prefix_rewrite: /, timeout: 0s}}";
    let site = Site::new(&[over, TO_UP], "http2_protocol_options: {allow_connect: true}", &[]).await;
    // The second one over a connection that is known.
    for path in ["/over/chat?1", "/over/chat?2"] {
        let mut chat = site.send(&request(path, WEBSOCKET)).await;
        let (line, headers) = timeout(PATIENCE, head(&mut chat)).await.unwrap().unwrap().unwrap();
        assert!(line.contains(" 101 ") && headers.to_ascii_lowercase().contains("upgrade: websocket\r\n"), "{line}");
        chat.write_all(b"hello").await.unwrap();
        let mut got = [0; 13];
        timeout(PATIENCE, chat.read_exact(&mut got)).await.unwrap().unwrap();
        assert_eq!(&got, b"welcome hello");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_routes_time_begins_with_the_end_of_the_request_and_covers_all_of_the_answer() {
    let route = "{match: {prefix: /}, route: {cluster: up, timeout: 0.8s}}";
    let site = Site::new(&[route], "", &[]).await;
    // A slow upload has all the time it needs, and the answer its own.
    let mut slow = site.send("POST /late HTTP/1.1\r\nhost: svc.local\r\ncontent-length: 3\r\n\r\n").await;
    for _ in 0..3 {
        sleep(Duration::from_millis(400)).await;
        slow.write_all(b"x").await.unwrap();
    }
    assert_eq!(status(&mut slow).await, 200);
    // An answer that has begun and does not end is cut.
    let mut drip = site.send(&request("/drip", "")).await;
    assert_eq!(status(&mut drip).await, 200);
    let mut rest = Vec::new();
    let _ = timeout(PATIENCE, drip.read_to_end(&mut rest)).await.unwrap();
    assert_eq!(rest, b"a");
    let line = site.logged("/drip").await;
    assert!(line.starts_with("GET /drip 200 UT response_timeout "), "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn all_tries_together_have_the_routes_time_and_each_its_own() {
    let routes = [
        "{match: {path: /hang}, route: {cluster: up, timeout: 1s, retry_policy: {retry_on: 5xx, num_retries: 20, per_try_timeout: 0.3s}}}",
        "{match: {path: /late}, route: {cluster: up, timeout: 0s, retry_policy: {retry_on: 5xx, num_retries: 1, per_try_timeout: 5s}}}",
        "{match: {path: /drip}, route: {cluster: up, timeout: 0s, retry_policy: {retry_on: 5xx, num_retries: 1, per_try_idle_timeout: 0.3s}}}",
    ];
    let site = Site::new(&routes, "", &[]).await;
    assert_eq!(site.get("/hang", "").await, 504);
    let line = site.logged("/hang").await;
    assert!(line.starts_with("GET /hang 504 UT response_timeout "), "{line}");
    let tries = site.upstream.requests.load(Ordering::SeqCst);
    assert!((2..=4).contains(&tries), "{tries} tries");
    // Which a client may not choose.
    assert_eq!(site.get("/late", "x-envoy-upstream-rq-per-try-timeout-ms: 100\r\n").await, 200);
    assert_eq!(site.upstream.requests.load(Ordering::SeqCst), tries + 1);
    let mut drip = site.send(&request("/drip", "")).await;
    assert_eq!(status(&mut drip).await, 200);
    let _ = timeout(PATIENCE, drip.read_to_end(&mut Vec::new())).await.unwrap();
    let line = site.logged("/drip").await;
    assert!(line.starts_with("GET /drip 200 UT upstream_per_try_idle_timeout "), "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_would_be_tried_again_is_marked() {
    let routes = [
        "{match: {path: /none}, route: {cluster: up, retry_policy: {retry_on: connect-failure, num_retries: 2}}}",
        "{match: {path: /reset}, route: {cluster: up, retry_policy: {retry_on: 'connect-failure,refused-stream,retriable-status-codes', retriable_status_codes: [503], num_retries: 2}}}",
        "{match: {prefix: /}, route: {cluster: up, retry_policy: {retry_on: gateway-error, num_retries: 2}}}",
    ];
    let site = Site::new(&routes, "", &[]).await;
    assert_eq!(site.get("/503", "").await, 503);
    assert!(site.logged("/503").await.starts_with("GET /503 503 URX via_upstream "));
    assert_eq!(site.upstream.requests.load(Ordering::SeqCst), 3);
    // A connection that served before and breaks under a request: nobody knows how far that went.
    let mut reused = site.send(&request("/none", "")).await;
    assert_eq!(status(&mut reused).await, 200);
    let before = site.upstream.requests.load(Ordering::SeqCst);
    assert_eq!(site.get("/reset", "").await, 503);
    assert_eq!(site.upstream.requests.load(Ordering::SeqCst), before + 1);
    let line = site.logged("/reset").await;
    assert!(
        line.starts_with("GET /reset 503 UC upstream_reset_before_response_started{connection_termination} "),
        "{line}"
    );
}

const DENY_CLUSTER: &str = "{match: {prefix: /}, route: {weighted_clusters: {clusters: [{name: up, weight: 1, typed_per_filter_config: {fault: {'@type': type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault, abort: {http_status: 418, percentage: {numerator: 100}}}}}]}}}";

#[tokio::test(flavor = "multi_thread")]
async fn one_of_several_clusters_configures_filters() {
    let fault = "http_filters: [{name: fault, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault}}, {name: router, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]";
    let site = Site::new(&[DENY_CLUSTER], fault, &[]).await;
    assert_eq!(site.get("/", "").await, 418);
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_before_routing_are_logged() {
    let site = Site::new(&[TO_UP], "", &[]).await;
    let two =
        "POST /two HTTP/1.1\r\nhost: svc.local\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n";
    let first = request("/first", "");
    let mut stream = site.send(&format!("{first}{two}{}", request("/behind", ""))).await;
    let mut all = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut all)).await.unwrap().unwrap();
    assert_eq!(all.matches("HTTP/1.1 ").count(), 2, "{all}");
    assert!(all.contains("HTTP/1.1 200 ") && all.contains("HTTP/1.1 400 "), "{all}");
    let line = site.logged("/two").await;
    assert!(line.starts_with("POST /two 400 DPE http1.content_length_and_chunked_not_allowed "), "{line}");
    let mut host = site.send("GET /host HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n").await;
    assert_eq!(status(&mut host).await, 400);
    let line = site.logged("/host").await;
    assert!(line.starts_with("GET /host 400 DPE http.invalid_authority "), "{line}");
    let mut none = site.send("G@T / HTTP/9\r\n\r\n").await;
    assert_eq!(status(&mut none).await, 400);
    assert!(site.logged("400 DPE http1.codec_error").await.starts_with("- * 400 "));
    assert_eq!(site.upstream.requests.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_said_nothing_does_not_hold_up_the_end() {
    let mut site = Site::new(&[TO_UP], "", &["--drain-time-s", "60"]).await;
    let _silent = TcpStream::connect(site.address).await.unwrap();
    assert_eq!(site.get("/", "connection: close\r\n").await, 200);
    let told = Instant::now();
    site.proxy.terminate();
    assert!(site.proxy.ended().await.success());
    assert!(told.elapsed() < Duration::from_secs(15), "{:?}", told.elapsed());
}
