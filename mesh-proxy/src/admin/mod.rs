//! Admin, status and metrics servers: small HTTP/1.1 servers on the control thread that only read what others own
//! (but for the log level and draining). Knows Envoy's paths and shapes.

mod certs;
mod clusters;
mod config_dump;
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
use crate::readiness::Readiness;
use crate::settings::LogLevel;
use crate::telemetry::ProxyTelemetry;
use crate::xds::store::SharedStore;

pub use server::listen;

/// What the servers look at.
pub struct Handles {
    /// Configuration in force, and who we are.
    pub shared: Arc<SharedConfig>,
    /// Resources as they were accepted.
    pub store: SharedStore,
    /// Metrics.
    pub telemetry: Arc<ProxyTelemetry>,
    /// May get traffic.
    pub readiness: Arc<Readiness>,
    /// Sets the log level.
    pub log: Arc<dyn Fn(LogLevel) + Send + Sync>,
    /// Asks the process to stop taking new connections.
    pub drain: Arc<dyn Fn() + Send + Sync>,
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

/// An answer of an admin server.
pub type Answer = Response<Full<Bytes>>;

/// Which pages a server has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pages {
    /// Everything: only for this machine.
    Admin,
    /// Readiness and metrics.
    Status,
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

/// The value of a query parameter.
fn parameter(query: &str, name: &str) -> Option<String> {
    let value = query.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (key == name).then_some(value)
    })?;
    Some(percent_encoding::percent_decode_str(value).decode_utf8_lossy().replace('+', " "))
}

const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Answers one request.
pub fn page(handles: &Handles, pages: Pages, method: &Method, path: &str, query: &str) -> Answer {
    let status_page = match path {
        "/ready" | "/healthz/ready" => Some(ready(handles)),
        "/stats/prometheus" | "/metrics" => Some(answer(StatusCode::OK, PROMETHEUS, stats::prometheus(handles))),
        _ => None,
    };
    if let Some(page) = status_page {
        return page;
    }
    if pages == Pages::Status {
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
        (&Method::POST, "/logging") => logging(handles, query),
        (&Method::POST, "/drain_listeners") => {
            (handles.drain)();
            text("OK\n")
        }
        (_, "/logging" | "/drain_listeners") => {
            answer(StatusCode::METHOD_NOT_ALLOWED, "text/plain", "Method GET not allowed, POST required.\n")
        }
        _ => not_found(),
    }
}

const INDEX: &str = "/certs\n/clusters\n/config_dump\n/drain_listeners (POST)\n/listeners\n/logging?level=LEVEL (POST)\n\
                     /ready\n/server_info\n/stats\n/stats/prometheus\n";

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

fn logging(handles: &Handles, query: &str) -> Answer {
    use clap::ValueEnum as _;
    let Some(level) = parameter(query, "level")
        .or_else(|| parameter(query, "paths").map(|p| p.rsplit(':').next().unwrap_or_default().to_owned()))
    else {
        return text("level=LEVEL sets it: trace, debug, info, warning, error, critical\n");
    };
    match LogLevel::from_str(&level, true) {
        Ok(parsed) => {
            (handles.log)(parsed);
            text(format!("level is {level}\n"))
        }
        Err(_) => answer(
            StatusCode::BAD_REQUEST,
            "text/plain",
            format!("{level:?} is not a level: trace, debug, info, warning, error, critical\n"),
        ),
    }
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
