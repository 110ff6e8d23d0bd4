//! Making connections: TCP (racing several addresses) or Unix socket, PROXY protocol header, TLS, all within the
//! cluster's connect timeout. Knows nothing of what is spoken on them.

use std::{
    io::{self, IoSlice},
    net::SocketAddr,
    path::Path,
    pin::Pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use http::Version;
use mesh_api::model::{self, Name};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::{TcpSocket, TcpStream, UnixStream},
};

use super::{
    Cluster, Endpoint, ErrorKind, Priority, UpstreamError,
    circuit::Circuit,
    endpoint::{EndpointState, Target},
    proxy_header,
    stats::ClusterStats,
};
use crate::{http::message::UpstreamConnection, tls};

/// Head start of an address over the next one of the same endpoint.
const STAGGER: Duration = Duration::from_millis(300);
/// Bytes are added to the cluster's counters in portions of this size.
const COUNT_EVERY: u64 = 64 << 10;

/// What a connection may depend on beside cluster and endpoint.
#[derive(Debug, Clone, Copy, Default)]
pub struct ConnectOptions<'a> {
    /// Whose limits it counts against.
    pub priority: Priority,
    /// Host that SNI and name checks follow when the cluster or the TLS context says so (`auto_sni`).
    pub server_name: Option<&'a str>,
    /// ALPN instead of the TLS context's.
    pub alpn: Option<&'a [Name]>,
    /// Source and destination for a PROXY protocol header, when the cluster sends one.
    pub proxied: Option<(SocketAddr, SocketAddr)>,
}

/// The byte stream of a connection to an endpoint. Counts as a connection as long as it lives.
#[derive(Debug)]
pub struct UpstreamIo {
    stream: Stream,
    permit: ConnPermit,
    received: u64,
    sent: u64,
}

#[derive(Debug)]
enum Stream {
    Plain(Socket),
    Tls(Box<tls::ClientStream<Socket>>),
}

/// A socket before TLS.
#[derive(Debug)]
enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// One connection in the books of circuit breaker, cluster and endpoint.
#[derive(Debug)]
pub struct ConnPermit {
    stats: Arc<ClusterStats>,
    circuit: Circuit,
    priority: Priority,
    endpoint: Arc<EndpointState>,
}

impl ConnPermit {
    /// Takes a connection, or tells that no more are allowed. `force`: even then.
    pub(super) fn take(cluster: &Cluster, endpoint: &Endpoint, priority: Priority, force: bool) -> Option<Self> {
        if !cluster.circuit.begin_connection(priority, false) {
            cluster.stats.upstream_cx_overflow.inc();
            if !force {
                return None;
            }
            cluster.circuit.begin_connection(priority, true);
        }
        cluster.stats.upstream_cx_total.inc();
        cluster.stats.upstream_cx_active.inc();
        endpoint.state.stats.cx_total.inc();
        endpoint.state.stats.cx_active.inc();
        Some(Self {
            stats: cluster.stats.clone(),
            circuit: cluster.circuit.clone(),
            priority,
            endpoint: endpoint.state.clone(),
        })
    }
}

impl Drop for ConnPermit {
    fn drop(&mut self) {
        self.circuit.end_connection(self.priority);
        self.stats.upstream_cx_active.dec();
        self.stats.upstream_cx_destroy.inc();
        self.endpoint.stats.cx_active.dec();
    }
}

/// Dials an endpoint: TCP or Unix socket, PROXY protocol header, TLS. Failures are counted and reported to passive
/// health checks.
///
/// # Errors
/// When it cannot be reached in time, or no more connections are allowed.
pub async fn connect(
    cluster: &Arc<Cluster>,
    endpoint: &Arc<Endpoint>,
    options: &ConnectOptions<'_>,
) -> Result<(UpstreamIo, Rc<UpstreamConnection>), UpstreamError> {
    let Some(permit) = ConnPermit::take(cluster, endpoint, options.priority, false) else {
        return Err(UpstreamError::new(ErrorKind::Overflow, "").at(endpoint.socket_addr()));
    };
    dial(cluster, endpoint, options, permit).await.map(|(io, info)| (io, Rc::new(info)))
}

/// As [`connect`], for the control thread, which has no use for what is known of the connection.
///
/// # Errors
/// As [`connect`].
pub async fn connect_for_control(
    cluster: &Arc<Cluster>,
    endpoint: &Arc<Endpoint>,
    options: &ConnectOptions<'_>,
) -> Result<UpstreamIo, UpstreamError> {
    let Some(permit) = ConnPermit::take(cluster, endpoint, options.priority, false) else {
        return Err(UpstreamError::new(ErrorKind::Overflow, "").at(endpoint.socket_addr()));
    };
    dial(cluster, endpoint, options, permit).await.map(|(io, _)| io)
}

/// As [`connect`], with the permit taken already.
pub(super) async fn dial(
    cluster: &Cluster,
    endpoint: &Endpoint,
    options: &ConnectOptions<'_>,
    permit: ConnPermit,
) -> Result<(UpstreamIo, UpstreamConnection), UpstreamError> {
    let attempt = establish(&cluster.config, endpoint, options);
    let result = match tokio::time::timeout(cluster.config.connect_timeout, attempt).await {
        Ok(done) => done,
        Err(_) => Err(UpstreamError::new(ErrorKind::ConnectTimeout, "")),
    };
    let stats = &cluster.stats;
    match result {
        Ok((stream, info)) => {
            if info.tls.is_some() {
                stats.ssl_handshake.inc();
            }
            Ok((UpstreamIo { stream, permit, received: 0, sent: 0 }, info))
        }
        Err(e) => {
            endpoint.state.stats.cx_connect_fail.inc();
            stats.upstream_cx_connect_fail.inc();
            match e.kind {
                ErrorKind::ConnectTimeout => stats.upstream_cx_connect_timeout.inc(),
                ErrorKind::Tls if e.reason.contains("CERTIFICATE_VERIFY_FAILED") => stats.ssl_fail_verify.inc(),
                ErrorKind::Tls => stats.ssl_connection_error.inc(),
                _ => {}
            }
            Err(e.at(endpoint.socket_addr()))
        }
    }
}

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

async fn establish(
    cluster: &model::Cluster,
    endpoint: &Endpoint,
    options: &ConnectOptions<'_>,
) -> Result<(Stream, UpstreamConnection), UpstreamError> {
    let failed =
        |e: &io::Error| UpstreamError::new(ErrorKind::ConnectFailure, format!("delayed connect error: {}", text(e)));
    let mut socket = match endpoint.target() {
        Target::Tcp(addresses) => {
            let stream = match addresses.as_slice() {
                [one] => tcp(cluster, *one).await,
                several => race(cluster, several).await,
            };
            Socket::Tcp(stream.map_err(|e| failed(&e))?)
        }
        Target::Pipe(path) => Socket::Unix(unix(&path).await.map_err(|e| failed(&e))?),
        Target::None => return Err(UpstreamError::new(ErrorKind::ConnectFailure, "no address is known")),
    };
    let (local, remote) = match &socket {
        Socket::Tcp(s) => (s.local_addr().ok(), s.peer_addr().ok()),
        Socket::Unix(_) => (None, None),
    };
    if let Some(version) = cluster.proxy_protocol {
        let header = proxy_header::encode(version, options.proxied);
        socket.write_all(&header).await.map_err(|e| failed(&e))?;
    }
    let id = NEXT_ID.fetch_add(1, Relaxed);
    let info = |tls| UpstreamConnection { id, local, remote, version: Version::HTTP_11, tls };
    let Some(context) = &endpoint.tls else { return Ok((Stream::Plain(socket), info(None))) };

    let host = options.server_name.map(|n| n.trim_start_matches('[').trim_end_matches(']'));
    let own = Some(&*endpoint.config.hostname).filter(|h| !h.is_empty());
    let sni = host.filter(|h| cluster.http.auto_sni && h.parse::<std::net::IpAddr>().is_err());
    let options = tls::ConnectOptions {
        server_name: sni,
        host: own.or(host),
        verify_name: host.filter(|_| cluster.http.auto_san_validation),
        alpn: options.alpn,
    };
    match context.connect(socket, options).await {
        Ok((stream, peer)) => Ok((Stream::Tls(Box::new(stream)), info(Some(peer)))),
        Err(e) => Err(UpstreamError::new(ErrorKind::Tls, e.to_string())),
    }
}

/// The system's words, without Rust's number.
fn text(e: &io::Error) -> String {
    let text = e.to_string();
    match text.find(" (os error") {
        Some(end) => text.get(..end).unwrap_or(&text).to_owned(),
        None => text,
    }
}

/// The first address that connects; each gets a head start over the next (RFC 8305 without sorting).
async fn race(cluster: &model::Cluster, addresses: &[SocketAddr]) -> io::Result<TcpStream> {
    let mut attempts = FuturesUnordered::new();
    let mut rest = addresses.iter();
    let mut last = io::Error::new(io::ErrorKind::NotFound, "no address");
    loop {
        let more = match rest.next() {
            Some(address) => {
                attempts.push(tcp(cluster, *address));
                true
            }
            None => false,
        };
        tokio::select! {
            Some(result) = attempts.next() => match result {
                Ok(stream) => return Ok(stream),
                Err(e) => {
                    last = e;
                    if attempts.is_empty() && rest.len() == 0 {
                        return Err(last);
                    }
                }
            },
            () = tokio::time::sleep(STAGGER), if more => {}
            else => return Err(last),
        }
    }
}

async fn tcp(cluster: &model::Cluster, address: SocketAddr) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_nodelay(true)?;
    if let Some(source) = cluster.bind_source.filter(|s| s.is_ipv4() == address.is_ipv4()) {
        socket.bind(source)?;
    }
    if let Some(keepalive) = &cluster.tcp_keepalive {
        let mut k = socket2::TcpKeepalive::new();
        if let Some(time) = keepalive.time {
            k = k.with_time(time);
        }
        if let Some(interval) = keepalive.interval {
            k = k.with_interval(interval);
        }
        if let Some(probes) = keepalive.probes {
            k = k.with_retries(probes);
        }
        socket2::SockRef::from(&socket).set_tcp_keepalive(&k)?;
    }
    socket.connect(address).await
}

async fn unix(path: &Path) -> io::Result<UnixStream> {
    // Abstract sockets are written with a leading `@`.
    match path.to_str().and_then(|p| p.strip_prefix('@')) {
        Some(name) => {
            use std::os::linux::net::SocketAddrExt;
            let address = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
            UnixStream::connect_addr(&address.into()).await
        }
        None => UnixStream::connect(path).await,
    }
}

impl UpstreamIo {
    fn count(&mut self) {
        if self.received + self.sent >= COUNT_EVERY {
            self.flush_counts();
        }
    }
    fn flush_counts(&mut self) {
        self.permit.stats.upstream_cx_rx_bytes_total.add(std::mem::take(&mut self.received));
        self.permit.stats.upstream_cx_tx_bytes_total.add(std::mem::take(&mut self.sent));
    }
    /// The TCP socket in cleartext, for moving bytes inside the kernel.
    pub fn as_tcp(&self) -> Option<&TcpStream> {
        match &self.stream {
            Stream::Plain(Socket::Tcp(s)) => Some(s),
            _ => None,
        }
    }
}

impl Drop for UpstreamIo {
    fn drop(&mut self) {
        self.flush_counts();
    }
}

macro_rules! each {
    ($self:expr, $s:ident => $e:expr) => {
        match &mut $self.stream {
            Stream::Plain(Socket::Tcp($s)) => $e,
            Stream::Plain(Socket::Unix($s)) => $e,
            Stream::Tls($s) => $e,
        }
    };
}

impl AsyncRead for UpstreamIo {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = each!(self, s => Pin::new(s).poll_read(cx, buf));
        self.received += (buf.filled().len() - before) as u64;
        self.count();
        result
    }
}

impl AsyncWrite for UpstreamIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = each!(self, s => Pin::new(s).poll_write(cx, buf));
        if let Poll::Ready(Ok(n)) = &result {
            self.sent += *n as u64;
            self.count();
        }
        result
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = each!(self, s => Pin::new(s).poll_write_vectored(cx, bufs));
        if let Poll::Ready(Ok(n)) = &result {
            self.sent += *n as u64;
            self.count();
        }
        result
    }
    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            Stream::Plain(_) => true,
            Stream::Tls(s) => s.is_write_vectored(),
        }
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, s => Pin::new(s).poll_flush(cx))
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, s => Pin::new(s).poll_shutdown(cx))
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Tcp(s) => Pin::new(s).poll_read(cx, buf),
            Socket::Unix(s) => Pin::new(s).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Socket::Tcp(s) => Pin::new(s).poll_write(cx, buf),
            Socket::Unix(s) => Pin::new(s).poll_write(cx, buf),
        }
    }
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Socket::Tcp(s) => Pin::new(s).poll_write_vectored(cx, bufs),
            Socket::Unix(s) => Pin::new(s).poll_write_vectored(cx, bufs),
        }
    }
    fn is_write_vectored(&self) -> bool {
        true
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Tcp(s) => Pin::new(s).poll_flush(cx),
            Socket::Unix(s) => Pin::new(s).poll_flush(cx),
        }
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Tcp(s) => Pin::new(s).poll_shutdown(cx),
            Socket::Unix(s) => Pin::new(s).poll_shutdown(cx),
        }
    }
}

// Health checks dial on the control thread.
const _: () = {
    const fn is_send<T: Send>() {}
    is_send::<UpstreamIo>();
    is_send::<UpstreamConnection>();
};
