//! The control plane's own HTTP server: metrics, version, readiness, and what it knows of proxies and configuration.
//!
//! Owns paths and JSON shapes (Istio's, where tools read them). Must not change anything: every page is read-only.

mod access;
mod debug;
mod facts;
mod process;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use arc_swap::{ArcSwap, ArcSwapOption};
use axum::{
    Router,
    body::Body,
    extract::State,
    http::{Request, StatusCode, header},
    middleware,
    response::{IntoResponse, Response},
    routing::get,
};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
};
use parking_lot::RwLock;
use tokio::{
    net::TcpListener,
    sync::Semaphore,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use crate::{
    index::Index,
    jwks::Standings,
    metrics::{Metrics, Page, escape},
    source::status::SourceStatus,
    xds::{caller::Authenticate, generator::Generator, hub::Hub},
};

/// Version of this program.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// How long a client may take to send a request's head, and to take the last answer when we end.
const HEAD: Duration = Duration::from_secs(10);
/// Connections at once.
const CONNECTIONS: usize = 256;

/// What the pages show.
pub struct Admin<G: Generator> {
    /// Streams.
    pub hub: Arc<Hub<G>>,
    /// Metrics.
    pub metrics: Arc<Metrics>,
    /// What the source says of what it read, once it has.
    pub source: ArcSwapOption<RwLock<SourceStatus>>,
    /// What is in force.
    pub index: Arc<ArcSwapOption<Index>>,
    /// Why the configuration that was read is not in force; empty: it is, or is not read yet.
    pub waiting: ArcSwap<String>,
    /// Namespace whose workloads may see debug pages from elsewhere.
    pub root_namespace: ArcSwap<String>,
    /// Who they are.
    pub authenticate: ArcSwapOption<Arc<dyn Authenticate>>,
    /// How it stands with keys of tokens' issuers.
    pub keys: ArcSwapOption<Standings>,
    /// Id of this cluster.
    pub cluster_id: String,
    /// Start of the process.
    pub started: Instant,
}

impl<G: Generator> std::fmt::Debug for Admin<G> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Admin").field("cluster_id", &self.cluster_id).finish_non_exhaustive()
    }
}

/// The address that a connection came from.
#[derive(Debug, Clone, Copy)]
struct From(SocketAddr);

/// All pages.
pub fn router<G: Generator>(admin: Arc<Admin<G>>) -> Router {
    let debug = Router::new()
        .route("/debug/syncz", get(debug::syncz::<G>))
        .route("/debug/connections", get(debug::connections::<G>))
        .route("/debug/config_dump", get(debug::config_dump::<G>))
        .route("/debug/configz", get(debug::configz::<G>))
        .route("/debug/findings", get(debug::findings::<G>))
        .route("/debug/workloadz", get(facts::workload::<G>))
        .route("/debug/servicez", get(facts::service::<G>))
        .layer(middleware::from_fn_with_state(admin.clone(), access::guard::<G>));
    Router::new()
        .route("/metrics", get(metrics::<G>))
        .route("/stats/prometheus", get(metrics::<G>))
        .route("/version", get(version))
        .route("/ready", get(ready::<G>))
        .merge(debug)
        .with_state(admin)
}

/// Serves the pages until `stop`, then finishes what is being answered.
///
/// # Errors
/// Never; the type is that of a server's task.
pub async fn serve<G: Generator>(
    listener: TcpListener,
    admin: Arc<Admin<G>>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let app = router(admin);
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD);
    let graceful = GracefulShutdown::new();
    let turns = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(turn) = turns.clone().acquire_owned().await else { break };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => break,
        };
        let (tcp, from) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(target: "admin", "accepting a connection failed: {error}");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let app = app.clone();
        let service = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(From(from));
            app.clone().oneshot(request.map(Body::new))
        });
        let connection = graceful.watch(http.serve_connection(TokioIo::new(tcp), service));
        tokio::spawn(async move {
            // A client that went away is no news.
            let _ = connection.await;
            drop(turn);
        });
    }
    drop(listener);
    let _ = timeout(HEAD, graceful.shutdown()).await;
    Ok(())
}

async fn metrics<G: Generator>(State(admin): State<Arc<Admin<G>>>) -> Response {
    let mut page = Page::default();
    let version = escape(VERSION);
    page.head("pilot_info", "Version of the control plane", "gauge");
    page.line("pilot_info", &format!("version=\"{version}\""), 1);
    page.head("istio_build", "Build of a component", "gauge");
    page.line("istio_build", &format!("component=\"pilot\",tag=\"{version}\""), 1);
    page.head("pilot_xds", "Proxies connected", "gauge");
    page.line("pilot_xds", &format!("version=\"{version}\""), admin.hub.connected());
    page.gauge("istiod_uptime_seconds", "Seconds since the start", admin.started.elapsed().as_secs_f64());
    debug::rejected(&admin, &mut page);
    admin.metrics.render(&mut page);
    process::render(&mut page);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], page.into_text()).into_response()
}

async fn version() -> String {
    format!("mesh-control-{VERSION}")
}

async fn ready<G: Generator>(State(admin): State<Arc<Admin<G>>>) -> Response {
    if admin.hub.state().is_some() {
        (StatusCode::OK, "ready\n").into_response()
    } else {
        let why = admin.waiting.load();
        let why = if why.is_empty() { "the configuration has not been read yet" } else { &**why };
        (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response()
    }
}

/// Peer of a request.
fn peer<B>(request: &Request<B>) -> Option<From> {
    request.extensions().get::<From>().copied()
}
