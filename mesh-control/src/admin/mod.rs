//! The control plane's own HTTP server: metrics, version, readiness, and what it knows of proxies and configuration.
//!
//! Owns paths and JSON shapes (Istio's, where tools read them). Must not change anything: every page is read-only.

mod access;
mod debug;
mod process;

use std::{net::SocketAddr, sync::Arc};

use arc_swap::ArcSwapOption;
use axum::{
    Router,
    extract::{Request, State},
    http::{StatusCode, header},
    middleware,
    response::{IntoResponse, Response},
    routing::get,
};
use parking_lot::RwLock;
use tokio::{net::TcpListener, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    metrics::{Metrics, Page, escape},
    source::watch::FolderStatus,
    xds::{caller::Authenticate, generator::Generator, hub::Hub},
};

/// Version of this program.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What the pages show.
pub struct Admin<G: Generator> {
    /// Streams.
    pub hub: Arc<Hub<G>>,
    /// Metrics.
    pub metrics: Arc<Metrics>,
    /// The folder, once it has been read.
    pub folder: ArcSwapOption<RwLock<FolderStatus>>,
    /// Who may see debug pages from elsewhere.
    pub authenticate: ArcSwapOption<Arc<dyn Authenticate>>,
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
        .layer(middleware::from_fn_with_state(admin.clone(), access::guard::<G>));
    Router::new()
        .route("/metrics", get(metrics::<G>))
        .route("/stats/prometheus", get(metrics::<G>))
        .route("/version", get(version))
        .route("/ready", get(ready::<G>))
        .merge(debug)
        .with_state(admin)
}

/// Serves the pages until `stop`.
///
/// # Errors
/// When the server fails as a whole.
pub async fn serve<G: Generator>(
    listener: TcpListener,
    admin: Arc<Admin<G>>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let app = router(admin).into_make_service_with_connect_info::<SocketAddr>();
    axum::serve(listener, app).with_graceful_shutdown(stop.cancelled_owned()).await?;
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
        (StatusCode::SERVICE_UNAVAILABLE, "the configuration has not been read yet\n").into_response()
    }
}

/// Peer of a request.
fn peer(request: &Request) -> Option<From> {
    let info = request.extensions().get::<axum::extract::ConnectInfo<SocketAddr>>()?;
    Some(From(info.0))
}
