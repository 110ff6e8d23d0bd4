//! Webhooks of the API server: pods get their proxy, and objects that cannot work are refused before they are there.
//!
//! Owns the server, its paths and what an AdmissionReview says; what becomes of a pod is for `inject`, what is wrong with
//! an object for `validate`. `bundles` makes the webhooks known to the API server. Must not know streams.

mod bundles;
mod mutate;
mod review;
mod validate;

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwapOption;
use axum::{
    Router,
    body::{Body, Bytes},
    extract::{DefaultBodyLimit, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
    service::TowerToHyperService,
};
use rustls::ServerConfig;
use tokio::{net::TcpListener, sync::Semaphore, time::timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

pub use bundles::{Bundles, run as keep_bundles};

use crate::index::Index;

/// Largest review: an object of the API server (1.5 MiB), old and new, and some.
const MAX: usize = 8 << 20;
/// How long a handshake and a head may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a connection may take at the end.
const GRACE: Duration = Duration::from_secs(2);
/// Connections at once.
const CONNECTIONS: usize = 256;

/// What reviews are answered from.
#[derive(Debug)]
pub struct Webhook {
    /// What is in force.
    pub index: Arc<ArcSwapOption<Index>>,
    /// Namespace of this control plane.
    pub namespace: String,
    /// Revision of this control plane.
    pub revision: String,
    /// Whether the cluster has sidecars of its own kind: init containers that stay.
    pub native_sidecars: bool,
}

/// TLS configurations, newest first.
pub type Tls = Arc<dyn Fn() -> Arc<ServerConfig> + Send + Sync>;

fn router(webhook: Arc<Webhook>) -> Router {
    Router::new()
        .route("/inject", post(inject))
        .route("/inject/{*rest}", post(inject))
        .route("/validate", post(check))
        .route("/validate/{*rest}", post(check))
        .route("/ready", get(async || "ready\n"))
        .layer(DefaultBodyLimit::max(MAX))
        .with_state(webhook)
}

async fn inject(State(webhook): State<Arc<Webhook>>, body: Bytes) -> Response {
    respond(body, move |review| {
        let Some(index) = webhook.index.load_full() else {
            return Err("the control plane has not read its configuration yet".to_owned());
        };
        Ok(mutate::answer(review, &index, &webhook))
    })
}

async fn check(body: Bytes) -> Response {
    respond(body, |review| Ok(validate::answer(review)))
}

fn respond(body: Bytes, answer: impl FnOnce(&review::Review) -> Result<review::Answer, String>) -> Response {
    let review = match review::Review::read(&body) {
        Ok(review) => review,
        Err(why) => return (StatusCode::BAD_REQUEST, format!("{why}\n")).into_response(),
    };
    match answer(&review) {
        Ok(answer) => axum::Json(answer.into_json(&review)).into_response(),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
    }
}

/// Answers reviews until `stop`.
///
/// # Errors
/// Never; the type is that of a server's task.
pub async fn serve(
    listener: TcpListener,
    tls: Tls,
    webhook: Arc<Webhook>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let app = router(webhook);
    let turns = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(turn) = turns.clone().acquire_owned().await else { return Ok(()) };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => break,
        };
        let tcp = match accepted {
            Ok((tcp, _)) => tcp,
            Err(error) => {
                tracing::warn!(target: "webhook", "accepting a connection failed: {error}");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let (acceptor, app, stop) = (TlsAcceptor::from(tls()), app.clone(), stop.clone());
        tokio::spawn(async move {
            let _turn = turn;
            match timeout(PATIENCE, acceptor.accept(tcp)).await {
                Ok(Ok(stream)) => {
                    let mut http = auto::Builder::new(TokioExecutor::new());
                    http.http1().timer(TokioTimer::new()).header_read_timeout(PATIENCE);
                    let service = TowerToHyperService::new(tower::ServiceExt::map_request(
                        app,
                        |request: http::Request<hyper::body::Incoming>| request.map(Body::new),
                    ));
                    let connection = http.serve_connection(TokioIo::new(stream), service);
                    tokio::pin!(connection);
                    tokio::select! {
                        // A client that went away is no news.
                        _ = connection.as_mut() => {}
                        () = stop.cancelled() => {
                            connection.as_mut().graceful_shutdown();
                            let _ = timeout(GRACE, connection).await;
                        }
                    }
                }
                Ok(Err(error)) => tracing::debug!(target: "webhook", "handshake failed: {error}"),
                Err(_) => tracing::debug!(target: "webhook", "handshake took too long"),
            }
        });
    }
    Ok(())
}
