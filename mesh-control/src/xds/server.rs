//! Listening for xDS: connections in plaintext or TLS, keepalive, and the end.
//!
//! Owns sockets. Must not know what is served on them: services are handed in.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
    time::{Sleep, sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{
    service::Routes,
    transport::server::{Connected, Server},
};

use super::caller::Peer;

/// How long a TLS handshake may take, and a client before it begins to speak.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Handshakes at once.
const HANDSHAKES: usize = 256;
/// Connections at once whose handshake is not over; more wait in the listen queue.
const BEGINNERS: usize = 4096;
/// Bytes of what every HTTP/2 client says first.
const PREFACE: usize = 24;
/// An idle connection is asked this often whether it lives.
const KEEPALIVE: Duration = Duration::from_secs(20);
/// And given up when it does not answer for this long.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Streams on one connection. A proxy uses one or two.
const MAX_STREAMS: u32 = 64;
/// How long streams get to end after the last word was sent to them.
const GRACE: Duration = Duration::from_secs(5);

/// The TLS configuration of the moment; asked at each connection, so that it may be replaced.
pub type TlsSource = Arc<dyn Fn() -> Arc<ServerConfig> + Send + Sync>;

/// A connection, given up when its client does not begin to speak.
#[derive(Debug)]
pub struct Conn {
    io: Io,
    /// Until the client has said what every HTTP/2 client says first.
    opening: Option<Opening>,
}

#[derive(Debug)]
enum Io {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

#[derive(Debug)]
struct Opening {
    limit: Pin<Box<Sleep>>,
    missing: usize,
}

impl Conn {
    fn new(io: Io) -> Self {
        Self { io, opening: Some(Opening { limit: Box::pin(sleep(HANDSHAKE)), missing: PREFACE }) }
    }
}

impl Connected for Conn {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        match &self.io {
            Io::Plain(tcp) => Peer { address: tcp.peer_addr().ok(), certificates: None },
            Io::Tls(tls) => {
                let (tcp, session) = tls.get_ref();
                Peer { address: tcp.peer_addr().ok(), certificates: session.peer_certificates().map(Arc::from) }
            }
        }
    }
}

macro_rules! io {
    ($self:expr, $io:ident => $call:expr) => {
        match &mut $self.get_mut().io {
            Io::Plain($io) => {
                let $io = Pin::new($io);
                $call
            }
            Io::Tls($io) => {
                let $io = Pin::new($io);
                $call
            }
        }
    };
}

impl AsyncRead for Conn {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let done = io!(self.as_mut(), io => io.poll_read(cx, buf));
        if let Some(opening) = &mut self.opening {
            opening.missing = opening.missing.saturating_sub(buf.filled().len() - before);
            if opening.missing == 0 {
                self.opening = None;
            } else if done.is_pending() && opening.limit.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client says nothing")));
            }
        }
        done
    }
}

impl AsyncWrite for Conn {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        io!(self, io => io.poll_write(cx, buf))
    }
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        io!(self, io => io.poll_write_vectored(cx, bufs))
    }
    fn is_write_vectored(&self) -> bool {
        match &self.io {
            Io::Plain(io) => io.is_write_vectored(),
            Io::Tls(io) => io.is_write_vectored(),
        }
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        io!(self, io => io.poll_flush(cx))
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        io!(self, io => io.poll_shutdown(cx))
    }
}

/// Serves gRPC services on a listening socket until `stop`, then lets streams end.
///
/// # Errors
/// When the server fails as a whole.
pub async fn serve(
    listener: TcpListener,
    tls: Option<TlsSource>,
    services: Routes,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let (tx, rx) = mpsc::channel(64);
    let accepting = tokio::spawn(accept(listener, tls, tx, stop.clone()));
    let server = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .max_concurrent_streams(Some(MAX_STREAMS))
        .add_routes(services)
        .serve_with_incoming_shutdown(ReceiverStream::new(rx), stop.clone().cancelled_owned());
    tokio::pin!(server);
    let result = tokio::select! {
        result = &mut server => result,
        () = async { stop.cancelled().await; tokio::time::sleep(GRACE).await } => Ok(()),
    };
    accepting.abort();
    Ok(result?)
}

async fn accept(
    listener: TcpListener,
    tls: Option<TlsSource>,
    connections: mpsc::Sender<io::Result<Conn>>,
    stop: CancellationToken,
) {
    let (handshakes, beginners) = (Arc::new(Semaphore::new(HANDSHAKES)), Arc::new(Semaphore::new(BEGINNERS)));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        let tcp = match accepted {
            Ok((tcp, _)) => tcp,
            Err(error) => {
                tracing::warn!(target: "xds", "accepting a connection failed: {error}");
                // Out of descriptors, most likely: trying again at once would only burn time.
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let _ = tcp.set_nodelay(true);
        let Some(tls) = &tls else {
            if connections.send(Ok(Conn::new(Io::Plain(tcp)))).await.is_err() {
                return;
            }
            continue;
        };
        let acceptor = TlsAcceptor::from(tls());
        let Ok(beginner) = beginners.clone().acquire_owned().await else { return };
        let (connections, handshakes) = (connections.clone(), handshakes.clone());
        tokio::spawn(async move {
            let peer = tcp.peer_addr().ok();
            // Who says nothing takes no turn from those who do.
            if !matches!(timeout(HANDSHAKE, tcp.peek(&mut [0])).await, Ok(Ok(1))) {
                return;
            }
            let Ok(turn) = handshakes.acquire_owned().await else { return };
            match timeout(HANDSHAKE, acceptor.accept(tcp)).await {
                Ok(Ok(tls)) => {
                    // The server may have ended meanwhile.
                    let _ = connections.send(Ok(Conn::new(Io::Tls(Box::new(tls))))).await;
                }
                Ok(Err(error)) => tracing::info!(target: "xds", ?peer, "TLS handshake failed: {error}"),
                Err(_) => tracing::info!(target: "xds", ?peer, "TLS handshake took too long"),
            }
            drop((turn, beginner));
        });
    }
}

/// Binds an address. An IPv6 wildcard serves IPv4, too.
///
/// # Errors
/// With the address in the text.
pub async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|e| anyhow::anyhow!("cannot listen on {address}: {e}"))
}
