//! Metrics of the application beside the proxy's, so that Prometheus asks at one place and needs no certificate.
//! Injection lets it ask here, and hands over where the application's own are (`ISTIO_PROMETHEUS_ANNOTATIONS`).

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CONNECTION, HOST, USER_AGENT};
use http::{HeaderMap, HeaderValue, Request, StatusCode};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

/// How long an application may take when Prometheus does not say how long it waits.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Longest time that Prometheus is believed to wait.
const LONGEST: Duration = Duration::from_secs(60);
/// Most that is taken over, in bytes.
const MOST: usize = 32 << 20;
/// Scrapes at once; others wait. Whoever reaches the port may ask, and each holds what the application answers.
const AT_ONCE: usize = 2;
/// How long Prometheus waits, in seconds.
const PATIENCE: &str = "x-prometheus-scrape-timeout-seconds";

/// Where an application's metrics are.
#[derive(Debug)]
pub struct AppMetrics {
    port: u16,
    path: String,
    slots: Semaphore,
    scrapes: AtomicU64,
    failures: AtomicU64,
}

/// What injection writes: the pod's annotations, all as text.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Written {
    scrape: String,
    path: String,
    port: String,
}

impl AppMetrics {
    /// From what injection wrote; `None`: the application has none, or it would be asked at one of the proxy's `own` ports.
    ///
    /// # Errors
    /// When that cannot be read.
    pub fn new(written: &str, own: &[u16]) -> anyhow::Result<Option<Self>> {
        if written.trim().is_empty() {
            return Ok(None);
        }
        let Written { scrape, path, port } = serde_json::from_str(written)?;
        if scrape == "false" {
            return Ok(None);
        }
        // What Prometheus' usual configuration takes when nothing is said.
        let port = if port.is_empty() { 80 } else { port.parse()? };
        if own.contains(&port) {
            tracing::warn!(target: "admin", "metrics of the application are not looked for at port {port}, which is the proxy's");
            return Ok(None);
        }
        let path = match path.as_str() {
            "" => "/metrics".to_owned(),
            path if path.starts_with('/') => path.to_owned(),
            path => format!("/{path}"),
        };
        let slots = Semaphore::new(AT_ONCE);
        Ok(Some(Self { port, path, slots, scrapes: AtomicU64::new(0), failures: AtomicU64::new(0) }))
    }

    /// Appends the application's metrics to the proxy's. One that does not answer is counted, and takes nothing away.
    pub(super) async fn append(&self, text: &mut String, headers: &HeaderMap) {
        self.scrapes.fetch_add(1, Relaxed);
        let told = headers.get(PATIENCE).and_then(|v| v.to_str().ok()).and_then(|v| v.parse::<f64>().ok());
        let told = told.filter(|s| s.is_finite() && *s > 0.0);
        let time = told.map_or(TIMEOUT, |s| Duration::from_secs_f64(s.min(LONGEST.as_secs_f64())));
        let asked = tokio::time::timeout(time, self.ask(headers)).await;
        let application = match asked.unwrap_or_else(|_| Err(format!("no answer within {time:?}"))) {
            Ok(application) => application,
            Err(why) => {
                self.failures.fetch_add(1, Relaxed);
                tracing::debug!(target: "admin", "metrics of the application at port {}: {why}", self.port);
                String::new()
            }
        };
        for (name, count) in [("scrapes_total", &self.scrapes), ("scrape_failures_total", &self.failures)] {
            let (full, count) = (format!("istio_agent_{name}"), count.load(Relaxed));
            let label = if name == "scrapes_total" { "" } else { "{type=\"application\"}" };
            text.push_str(&format!("# TYPE {full} counter\n{full}{label} {count}\n"));
        }
        // What ends a text of OpenMetrics stands in the middle here.
        for line in application.lines().filter(|line| *line != "# EOF") {
            text.push_str(line);
            text.push('\n');
        }
    }

    async fn ask(&self, headers: &HeaderMap) -> Result<String, String> {
        let _slot = self.slots.acquire().await.map_err(|e| e.to_string())?;
        // Where applications that are for this pod alone listen, too.
        let places = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()].map(|ip| SocketAddr::new(ip, self.port));
        let stream = TcpStream::connect(&places[..]).await.map_err(|e| e.to_string())?;
        let mut request = Request::get(&self.path).body(Empty::<Bytes>::new()).map_err(|e| e.to_string())?;
        let all = request.headers_mut();
        for name in [USER_AGENT.as_str(), PATIENCE] {
            if let (Some(value), Ok(name)) = (headers.get(name), http::HeaderName::try_from(name)) {
                all.insert(name, value.clone());
            }
        }
        // The form that the proxy's own have; two forms cannot stand in one text.
        all.insert(ACCEPT, HeaderValue::from_static("text/plain;version=0.0.4,text/plain;q=0.5,*/*;q=0.1"));
        let host = format!("localhost:{}", self.port);
        all.insert(HOST, HeaderValue::from_str(&host).map_err(|e| e.to_string())?);
        all.insert(CONNECTION, HeaderValue::from_static("close"));
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
        let connection = AbortOnDrop(tokio::spawn(connection));
        let response = sender.send_request(request).await.map_err(|e| e.to_string())?;
        if response.status() != StatusCode::OK {
            return Err(format!("it answers {}", response.status()));
        }
        let body = Limited::new(response.into_body(), MOST).collect().await.map_err(|e| e.to_string())?;
        drop(connection);
        String::from_utf8(body.to_bytes().into()).map_err(|_| "what it answers is not text".to_owned())
    }
}

/// A task that ends with whoever waits for it.
struct AbortOnDrop<T>(tokio::task::JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    async fn application(answer: &'static str) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                let mut buffer = vec![0; 4096];
                let n = socket.read(&mut buffer).await.unwrap_or(0);
                let head = String::from_utf8_lossy(&buffer[..n]).into_owned();
                assert!(head.starts_with("GET /own HTTP/1.1\r\n") && head.contains("version=0.0.4"), "{head}");
                let _ = socket.write_all(answer.as_bytes()).await;
            }
        });
        port
    }

    async fn merged(port: u16) -> String {
        let written = format!(r#"{{"scrape": "true", "path": "own", "port": "{port}"}}"#);
        let metrics = AppMetrics::new(&written, &[15020]).unwrap().unwrap();
        let mut text = "proxy 1\n".to_owned();
        let headers: HeaderMap =
            [(http::HeaderName::from_static(PATIENCE), HeaderValue::from_static("0.5"))].into_iter().collect();
        metrics.append(&mut text, &headers).await;
        text
    }

    #[tokio::test]
    async fn metrics_of_both_stand_in_one_text() {
        let port = application("HTTP/1.1 200 OK\r\ncontent-length: 19\r\n\r\napp{a=\"b\"} 2\n# EOF\n").await;
        let text = merged(port).await;
        assert!(text.starts_with("proxy 1\n") && text.ends_with("\napp{a=\"b\"} 2\n"), "{text}");
        assert!(text.contains("istio_agent_scrape_failures_total{type=\"application\"} 0"), "{text}");
    }

    #[tokio::test]
    async fn an_application_that_fails_takes_nothing_away() {
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        for port in
            [closed, application("HTTP/1.1 500 No\r\ncontent-length: 3\r\n\r\nx 1").await, application("").await]
        {
            let text = merged(port).await;
            assert!(text.starts_with("proxy 1\n") && !text.contains("x 1"), "{text}");
            assert!(text.contains("istio_agent_scrape_failures_total{type=\"application\"} 1"), "{text}");
        }
    }

    #[test]
    fn where_they_are_is_read_as_istio_writes_it() {
        let new = |text: &str| AppMetrics::new(text, &[15020, 15090]);
        let place = |text: &str| new(text).unwrap().map(|m| (m.port, m.path));
        assert_eq!(place(r#"{"scrape":"","path":"","port":""}"#), Some((80, "/metrics".to_owned())));
        assert_eq!(place(r#"{"port":"9090","path":"/m"}"#), Some((9090, "/m".to_owned())));
        for none in [r#"{"scrape":"false","port":"9090"}"#, r#"{"port":"15020"}"#, ""] {
            assert!(place(none).is_none(), "{none}");
        }
        assert!(new(r#"{"port":"x"}"#).is_err() && new("{").is_err());
    }
}
