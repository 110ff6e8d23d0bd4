//! One small server: HTTP/1.1, a task a connection, slow or greedy clients are cut off.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request, StatusCode};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use super::{Answer, Handles, METRICS, Pages, answer, merged_metrics, page};

/// Connections at once.
const CONNECTIONS: usize = 64;
/// A head must arrive within this, and a connection may idle as long.
const PATIENCE: Duration = Duration::from_secs(30);

/// Binds and serves in the background.
///
/// # Errors
/// When the address cannot be bound.
pub async fn listen(address: SocketAddr, pages: Pages, handles: Arc<Handles>) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind(address)
        .await
        .map_err(|e| io::Error::new(e.kind(), format!("cannot listen at {address}: {e}")))?;
    let bound = listener.local_addr()?;
    tracing::info!(target: "admin", "{pages:?} pages at http://{bound}");
    tokio::spawn(accept(listener, pages, handles));
    Ok(bound)
}

async fn accept(listener: TcpListener, pages: Pages, handles: Arc<Handles>) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(target: "admin", "cannot accept: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let handles = handles.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let handles = handles.clone();
                async move { Ok::<Answer, Infallible>(serve(handles, pages, &request).await) }
            });
            let mut builder = http1::Builder::new();
            builder.timer(TokioTimer::new()).header_read_timeout(PATIENCE).max_buf_size(16 << 10);
            let _ = builder.serve_connection(TokioIo::new(stream), service).await;
            drop(slot);
        });
    }
}

async fn serve<B>(handles: Arc<Handles>, pages: Pages, request: &Request<B>) -> Answer {
    // A page of another origin must not be able to steer this proxy through a browser.
    if request.method() != Method::GET && request.headers().contains_key(http::header::ORIGIN) {
        return answer(StatusCode::FORBIDDEN, "text/plain", "not from a browser\n");
    }
    if ![Method::GET, Method::HEAD, Method::POST].contains(request.method()) {
        return answer(StatusCode::METHOD_NOT_ALLOWED, "text/plain", "GET or POST\n");
    }
    let (method, uri) = (request.method().clone(), request.uri().clone());
    if pages != Pages::Admin
        && let Some(probes) = handles.application.probes.as_ref().filter(|p| p.has(uri.path()))
    {
        return probes.ask(uri.path(), request.headers()).await;
    }
    if pages == Pages::Merged && METRICS.contains(&uri.path()) {
        return merged_metrics(handles, request.headers()).await;
    }
    // Large dumps must not hold up xDS and certificates.
    let made = tokio::task::spawn_blocking(move || {
        page(&handles, pages, &method, uri.path(), uri.query().unwrap_or_default())
    });
    made.await.unwrap_or_else(|_| answer(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", "the page cannot be made\n"))
}
