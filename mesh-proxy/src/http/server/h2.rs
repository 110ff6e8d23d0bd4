//! HTTP/2 on hyper: streams of one connection. One of the few files that may name hyper.

use std::{convert::Infallible, io, pin::pin};

use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Method, Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::AsyncReadExt as _;

use super::{
    Client,
    h1::{Incoming, PendingTunnel},
    patience::{Patient, Streams, Watched},
    service::{self, Call},
};
use crate::{drain, net};

/// What every HTTP/2 client says first.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Streams at once when the configuration does not say.
const STREAMS: u32 = 1024;

/// What the codec spawns is a stream, or the tunnel that became of one.
#[derive(Debug, Clone)]
struct Run(Streams);

impl<F: Future + 'static> hyper::rt::Executor<F> for Run {
    fn execute(&self, future: F) {
        self.0.run(future);
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
    let times = config.timeouts;
    let streams = Streams::new(times.stream_idle, config.max_requests_per_connection);
    let mut builder = hyper::server::conn::http2::Builder::new(Run(streams.clone()));
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
            // Extended CONNECT (RFC 8441).
            let protocol = request.extensions_mut().remove::<hyper::ext::Protocol>();
            let protocol = protocol.and_then(|p| HeaderValue::from_str(p.as_str()).ok());
            let call = Call { session, tunnel, protocol, last: false, refused: None };
            let request = request.map(|body| Incoming::http2(body, true));
            // What the codec moves around and keeps a stream is small then.
            let response = Box::pin(service::serve(call, request)).await;
            Ok::<Response<Watched>, Infallible>(response.map(Watched::new))
        }
    });
    let io = Patient::new(io, times.stream_idle);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(io), service));
    let over = async {
        tokio::select! {
            () = super::h1::times_max(&drain, times.max_connection) => {}
            () = streams.spent() => {}
            () = streams.idle(times.idle) => {}
        }
    };
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = over => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                result = connection.as_mut() => result,
                // A client that does not even answer is not waited for once its streams are over.
                () = streams.idle(times.drain) => return,
            }
        }
    };
    if let Err(error) = result {
        tracing::debug!(target: "http2", "connection ended: {error}");
    }
}
