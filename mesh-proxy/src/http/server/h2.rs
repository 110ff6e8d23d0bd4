//! HTTP/2 on hyper: streams of one connection. One of the few files that may name hyper.

use std::{convert::Infallible, future::Future, io, pin::pin};

use bytes::{Bytes, BytesMut};
use http::{Method, Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::AsyncReadExt as _;

use super::{Client, h1::PendingTunnel, service};
use crate::{drain, http::message::Body, net};

/// What every HTTP/2 client says first.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Streams at once when the configuration does not say.
const STREAMS: u32 = 1024;

/// Streams run on the worker's own thread.
#[derive(Debug, Clone, Copy)]
struct Local;

impl<F: Future + 'static> hyper::rt::Executor<F> for Local {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(async move {
            future.await;
        });
    }
}

/// Looks at the first bytes: whether they are HTTP/2's preface. The bytes are read again.
///
/// # Errors
/// When the connection ends before it is clear.
pub async fn preface(mut io: net::Io) -> io::Result<(net::Io, bool)> {
    let mut seen = BytesMut::with_capacity(PREFACE.len());
    loop {
        if seen.len() >= PREFACE.len() || !PREFACE.starts_with(&seen) {
            let is = seen.starts_with(PREFACE);
            return Ok((io.with_prefix(Bytes::from(seen)), is));
        }
        let mut rest = (&mut io).take((PREFACE.len() - seen.len()) as u64);
        if rest.read_buf(&mut seen).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// Serves HTTP/2 on a connection. Draining: GOAWAY, streams in flight are finished.
pub(super) async fn serve(client: Client, io: net::Io, drain: drain::Watch) {
    let manager = client.live.load_full();
    let config = &manager.config;
    let mut builder = hyper::server::conn::http2::Builder::new(Local);
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(config.max_concurrent_streams.unwrap_or(STREAMS))
        .initial_stream_window_size(config.initial_stream_window.unwrap_or(256 << 10))
        .initial_connection_window_size(config.initial_connection_window.unwrap_or(1 << 20))
        .max_header_list_size(config.max_request_headers_bytes)
        .enable_connect_protocol()
        .auto_date_header(false);
    if let Some((interval, timeout)) = config.keepalive {
        builder.keep_alive_interval(interval).keep_alive_timeout(timeout);
    }
    let service = hyper::service::service_fn(move |mut request: Request<hyper::body::Incoming>| {
        let session = client.session();
        async move {
            let connect = request.method() == Method::CONNECT;
            let tunnel = connect.then(|| PendingTunnel::new(hyper::upgrade::on(&mut request)));
            let request = request.map(Body::from);
            Ok::<Response<Body>, Infallible>(service::serve(session, request, tunnel, false).await)
        }
    });
    let mut connection = pin!(builder.serve_connection(TokioIo::new(io), service));
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = drain.draining() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(target: "http2", "connection ended: {error}");
    }
}
