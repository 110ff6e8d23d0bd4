//! Admin, status and metrics servers: small HTTP/1.1 servers on the control thread that only read what others own
//! (but for the log level and draining). Knows Envoy's paths and shapes.

mod app_metrics;
mod app_probes;
mod certs;
mod clusters;
mod config_dump;
mod logging;
mod server;
mod stats;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::SystemTime;

use bytes::Bytes;
use http::{Method, Response, StatusCode};
use http_body_util::Full;
use serde_json::json;

use crate::config::SharedConfig;
use crate::dns::Names;
use crate::readiness::Readiness;
use crate::telemetry::ProxyTelemetry;
use crate::xds::store::SharedStore;

pub use app_metrics::AppMetrics;
pub use app_probes::AppProbes;
pub use logging::Logging;
pub use server::listen;

/// What the servers look at.
pub struct Handles {
    /// Configuration in force, and who we are.
    pub shared: Arc<SharedConfig>,
    /// Resources as they were accepted.
    pub store: SharedStore,
    /// Metrics.
    pub telemetry: Arc<ProxyTelemetry>,
    /// The names of the mesh, where the application's DNS is answered.
    pub names: Option<Arc<Names>>,
    /// May get traffic.
    pub readiness: Arc<Readiness>,
    /// Levels of own messages.
    pub log: Arc<Logging>,
    /// Stops taking new connections.
    pub drain: Arc<dyn Fn(Drain) + Send + Sync>,
    /// The application, where this is a sidecar.
    pub application: Application,
    /// Start of the process.
    pub started: SystemTime,
    /// Worker threads.
    pub concurrency: usize,
}

impl std::fmt::Debug for Handles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handles").field("started", &self.started).finish_non_exhaustive()
    }
}

/// What a sidecar asks its application in the place of others.
#[derive(Debug, Default)]
pub struct Application {
    /// Its probes.
    pub probes: Option<AppProbes>,
    /// Its metrics.
    pub metrics: Option<AppMetrics>,
}

/// What `/drain_listeners` asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drain {
    /// Only listeners of inbound traffic.
    pub inbound_only: bool,
    /// New connections are refused only when the time for draining is over, and those that are open are asked to end
    /// then.
    pub graceful: bool,
}

/// An answer of an admin server.
pub type Answer = Response<Full<Bytes>>;

/// Which pages a server has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pages {
    /// Everything: only for this machine.
    Admin,
    /// Readiness, probes of the application, and metrics.
    Status,
    /// The same, with the application's metrics beside the proxy's.
    Merged,
}

fn answer(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(kind));
    headers.insert(http::header::CACHE_CONTROL, http::HeaderValue::from_static("no-cache, max-age=0"));
    headers.insert(http::header::X_CONTENT_TYPE_OPTIONS, http::HeaderValue::from_static("nosniff"));
    response
}

fn text(body: impl Into<Bytes>) -> Answer {
    answer(StatusCode::OK, "text/plain; charset=UTF-8", body)
}

fn json_page(value: &serde_json::Value) -> Answer {
    // A value that came from serde_json can be written.
    answer(StatusCode::OK, "application/json", serde_json::to_string_pretty(value).unwrap_or_default() + "\n")
}

/// All query parameters.
fn parameters(query: &str) -> impl Iterator<Item = (String, String)> {
    // A plus is a space; one that is escaped is itself.
    let plain = |text: &str| {
        let spaced = text.replace('+', " ");
        percent_encoding::percent_decode_str(&spaced).decode_utf8_lossy().into_owned()
    };
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs.map(|pair| pair.split_once('=').unwrap_or((pair, ""))).map(move |(key, value)| (plain(key), plain(value)))
}

/// The value of a query parameter.
fn parameter(query: &str, name: &str) -> Option<String> {
    parameters(query).find(|(key, _)| key == name).map(|(_, value)| value)
}

/// The page of the proxy's metrics and those of its application.
async fn merged_metrics(handles: Arc<Handles>, headers: &http::HeaderMap) -> Answer {
    let own = {
        let handles = handles.clone();
        tokio::task::spawn_blocking(move || stats::prometheus(&handles)).await
    };
    let Ok(mut all) = own else {
        return answer(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", "the page cannot be made\n");
    };
    if let Some(metrics) = &handles.application.metrics {
        metrics.append(&mut all, headers).await;
    }
    answer(StatusCode::OK, PROMETHEUS, all)
}

const METRICS: [&str; 2] = ["/stats/prometheus", "/metrics"];
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Answers one request.
pub fn page(handles: &Handles, pages: Pages, method: &Method, path: &str, query: &str) -> Answer {
    let status_page = match path {
        "/ready" | "/healthz/ready" => Some(ready(handles)),
        path if METRICS.contains(&path) => Some(answer(StatusCode::OK, PROMETHEUS, stats::prometheus(handles))),
        _ => None,
    };
    if let Some(page) = status_page {
        return page;
    }
    if pages != Pages::Admin {
        return not_found();
    }
    match (method, path) {
        (&Method::GET, "/") => text(INDEX),
        (&Method::GET, "/config_dump") => config_dump::page(handles, query),
        (&Method::GET, "/clusters") => match parameter(query, "format").as_deref() {
            Some("json") => json_page(&clusters::json(handles)),
            _ => text(clusters::text(handles)),
        },
        (&Method::GET, "/listeners") => text(listeners(handles)),
        (&Method::GET, "/stats") => match parameter(query, "format").as_deref() {
            Some("prometheus") => answer(StatusCode::OK, PROMETHEUS, stats::prometheus(handles)),
            Some("json") => json_page(&stats::json(handles)),
            _ => text(stats::text(handles, parameter(query, "filter").as_deref())),
        },
        (&Method::GET, "/certs") => json_page(&certs::json(handles)),
        (&Method::GET, "/server_info") => json_page(&server_info(handles)),
        (&Method::POST, "/logging") => logging::page(&handles.log, query),
        (&Method::POST, "/drain_listeners") => {
            let asked = |name| parameter(query, name).is_some();
            (handles.drain)(Drain { inbound_only: asked("inboundonly"), graceful: asked("graceful") });
            text("OK\n")
        }
        (_, "/logging" | "/drain_listeners") => {
            answer(StatusCode::METHOD_NOT_ALLOWED, "text/plain", "Method GET not allowed, POST required.\n")
        }
        _ => not_found(),
    }
}

const INDEX: &str = "/certs\n/clusters\n/config_dump\n/drain_listeners?inboundonly&graceful (POST)\n/listeners\n\
                     /logging?level=LEVEL or NAME=LEVEL (POST)\n/ready\n/server_info\n/stats\n/stats/prometheus\n";

fn not_found() -> Answer {
    answer(StatusCode::NOT_FOUND, "text/plain", "there is no such page; / lists them\n")
}

fn ready(handles: &Handles) -> Answer {
    match handles.readiness.check() {
        Ok(()) => text("LIVE\n"),
        Err(why) => {
            answer(StatusCode::SERVICE_UNAVAILABLE, "text/plain; charset=UTF-8", format!("PRE_INITIALIZING\n{why}\n"))
        }
    }
}

fn listeners(handles: &Handles) -> String {
    let snapshot = handles.shared.load();
    let mut lines: Vec<String> = snapshot
        .listeners
        .values()
        .flat_map(|l| l.addresses().map(|a| format!("{}::{a}\n", l.config.name)).collect::<Vec<_>>())
        .collect();
    lines.sort();
    lines.concat()
}

fn server_info(handles: &Handles) -> serde_json::Value {
    let node = &handles.shared.node;
    let uptime = handles.started.elapsed().unwrap_or_default().as_secs();
    let state = match (handles.readiness.draining.load(Relaxed), handles.readiness.check()) {
        (true, _) => "DRAINING",
        (false, Ok(())) => "LIVE",
        (false, Err(_)) => "INITIALIZING",
    };
    json!({
        "version": concat!("mesh-proxy/", env!("CARGO_PKG_VERSION")),
        "state": state,
        "uptime_current_epoch": format!("{uptime}s"),
        "uptime_all_epochs": format!("{uptime}s"),
        "command_line_options": {"concurrency": handles.concurrency},
        "node": {"id": node.id, "cluster": node.cluster, "metadata": node.metadata},
    })
}

/// Where servers listen, and what they show.
pub async fn serve(handles: Arc<Handles>, places: Vec<(SocketAddr, Pages)>) -> std::io::Result<()> {
    for (address, pages) in places {
        listen(address, pages, handles.clone()).await?;
    }
    Ok(())
}
