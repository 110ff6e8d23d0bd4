//! Listener filters: what is learned of a connection before its filter chain is chosen.
//!
//! Owns the replayable buffer of the first bytes. Reading is resumable: when the time for listener filters is over, what
//! was learned and read so far is kept. Knows no filter chains.

use std::{io, net::SocketAddr};

use bytes::{Bytes, BytesMut};
use mesh_api::model::{ListenerFilter, Name};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::{
    matching::MatchInput,
    orig_dst::canonical,
    proxy_protocol::{self, BadHeader},
    sniff,
};

/// Cleartext.
pub const RAW_BUFFER: &str = "raw_buffer";
/// TLS.
pub const TLS: &str = "tls";

/// Why a connection is refused before a filter chain is chosen.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// The peer is gone before it said enough.
    #[error("closed by the peer")]
    Closed,
    /// The socket failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A PROXY protocol header is malformed or missing.
    #[error(transparent)]
    ProxyProtocol(#[from] BadHeader),
    /// A PROXY protocol header is required.
    #[error("PROXY protocol header missing")]
    NoProxyProtocol,
    /// More bytes than a ClientHello may have.
    #[error("ClientHello too large")]
    HelloTooLarge,
}

/// What is known so far.
#[derive(Debug, Default)]
pub struct Inspection {
    /// Local address: restored or of the socket; `None`: Unix socket.
    pub local: Option<SocketAddr>,
    /// Peer after PROXY protocol.
    pub peer: Option<SocketAddr>,
    /// Peer of the socket.
    pub direct_peer: Option<SocketAddr>,
    /// Local address of the socket.
    pub direct_local: Option<SocketAddr>,
    /// Destination before redirection.
    pub original_dst: Option<SocketAddr>,
    /// The local address is not the socket's own.
    pub restored: bool,
    /// `tls`, or empty when nothing was recognised.
    pub transport: &'static str,
    /// SNI.
    pub sni: Option<Name>,
    /// ALPN or what the HTTP inspector found.
    pub protocols: Vec<Name>,
    buf: BytesMut,
}

impl Inspection {
    /// Of a socket with these addresses.
    pub fn of(local: Option<SocketAddr>, peer: Option<SocketAddr>) -> Self {
        let (local, peer) = (local.map(canonical), peer.map(canonical));
        Self { local, peer, direct_peer: peer, direct_local: local, ..Self::default() }
    }

    /// Runs listener filters; `original` is the destination that the kernel knows, when it was asked for.
    ///
    /// # Errors
    /// When the connection must be closed.
    pub async fn run<S: AsyncRead + Unpin>(
        &mut self,
        io: &mut S,
        filters: &[ListenerFilter],
        original: Option<SocketAddr>,
    ) -> Result<(), Refused> {
        for filter in filters {
            match filter {
                ListenerFilter::OriginalDst => {
                    if let Some(dst) = original {
                        self.original_dst = Some(dst);
                        self.restored = self.direct_local != Some(dst);
                        self.local = Some(dst);
                    }
                }
                ListenerFilter::ProxyProtocol { allow_requests_without } => {
                    self.proxy_protocol(io, *allow_requests_without).await?;
                }
                ListenerFilter::TlsInspector { disabled_ports } => {
                    if !self.is_for(disabled_ports) {
                        self.tls(io).await?;
                    }
                }
                ListenerFilter::HttpInspector { disabled_ports } => {
                    if self.transport.is_empty() && !self.is_for(disabled_ports) {
                        self.http(io).await?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Whether the destination's port lies in one of these ranges (both ends included).
    fn is_for(&self, ports: &[(u16, u16)]) -> bool {
        self.local.is_some_and(|l| ports.iter().any(|(from, to)| (*from..=*to).contains(&l.port())))
    }

    /// Reads more; `false` at the end of the stream.
    async fn fill<S: AsyncRead + Unpin>(&mut self, io: &mut S) -> Result<bool, Refused> {
        self.buf.reserve(2048);
        Ok(io.read_buf(&mut self.buf).await? > 0)
    }

    async fn proxy_protocol<S: AsyncRead + Unpin>(&mut self, io: &mut S, optional: bool) -> Result<(), Refused> {
        loop {
            match proxy_protocol::parse(&self.buf)? {
                proxy_protocol::Parsed::Header { length, addresses } => {
                    let _header = self.buf.split_to(length.min(self.buf.len()));
                    if let Some((src, dst)) = addresses {
                        let (src, dst) = (canonical(src), canonical(dst));
                        self.restored |= self.direct_local != Some(dst);
                        (self.peer, self.local) = (Some(src), Some(dst));
                    }
                    return Ok(());
                }
                proxy_protocol::Parsed::Absent if optional => return Ok(()),
                proxy_protocol::Parsed::Absent => return Err(Refused::NoProxyProtocol),
                proxy_protocol::Parsed::More => {
                    if !self.fill(io).await? {
                        return Err(Refused::Closed);
                    }
                }
            }
        }
    }

    async fn tls<S: AsyncRead + Unpin>(&mut self, io: &mut S) -> Result<(), Refused> {
        loop {
            match sniff::client_hello(&self.buf) {
                sniff::Tls::No => return Ok(()),
                sniff::Tls::Hello(hello) => {
                    self.transport = TLS;
                    self.sni = hello.sni;
                    self.protocols = hello.alpn;
                    return Ok(());
                }
                sniff::Tls::More if self.buf.len() > sniff::MAX_CLIENT_HELLO => return Err(Refused::HelloTooLarge),
                sniff::Tls::More => {
                    if !self.fill(io).await? {
                        // A peer that said something and half-closed is served as cleartext; a silent one is gone.
                        return if self.buf.is_empty() { Err(Refused::Closed) } else { Ok(()) };
                    }
                }
            }
        }
    }

    async fn http<S: AsyncRead + Unpin>(&mut self, io: &mut S) -> Result<(), Refused> {
        loop {
            let protocol = match sniff::http(&self.buf) {
                sniff::Http::No => return Ok(()),
                sniff::Http::Http10 => "http/1.0",
                sniff::Http::Http11 => "http/1.1",
                sniff::Http::Http2 => "h2c",
                sniff::Http::More => {
                    if self.fill(io).await? {
                        continue;
                    }
                    return if self.buf.is_empty() { Err(Refused::Closed) } else { Ok(()) };
                }
            };
            self.protocols = vec![protocol.into()];
            return Ok(());
        }
    }

    /// For the choice of a filter chain.
    pub fn match_input(&self) -> MatchInput<'_> {
        MatchInput {
            local: self.local,
            peer: self.peer,
            direct_peer: self.direct_peer,
            sni: self.sni.as_deref().unwrap_or(""),
            transport: if self.transport.is_empty() { RAW_BUFFER } else { self.transport },
            protocols: &self.protocols,
        }
    }

    /// Takes the bytes that were read and must be read again.
    pub fn take_buffer(&mut self) -> Bytes {
        std::mem::take(&mut self.buf).freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::sniff::tests::{hello_message, records},
        *,
    };
    use std::time::Duration;
    use tokio::io::AsyncWriteExt;

    fn inspection() -> Inspection {
        Inspection::of(Some("127.0.0.1:15006".parse().unwrap()), Some("10.0.0.9:5000".parse().unwrap()))
    }
    const HTTP: ListenerFilter = ListenerFilter::HttpInspector { disabled_ports: vec![] };
    const ALL: [ListenerFilter; 3] =
        [ListenerFilter::OriginalDst, ListenerFilter::TlsInspector { disabled_ports: vec![] }, HTTP];

    #[tokio::test]
    async fn a_fragmented_hello_is_understood_and_replayed() {
        let wire = records(&hello_message(Some("web"), &["istio"]), 7);
        let (mut client, mut server) = tokio::io::duplex(5);
        let sent = wire.clone();
        tokio::spawn(async move { client.write_all(&sent).await });
        let mut i = inspection();
        i.run(&mut server, &ALL, Some("10.0.0.1:8080".parse().unwrap())).await.unwrap();
        let m = i.match_input();
        assert_eq!((m.transport, m.sni, m.protocols), ("tls", "web", &["istio".into()][..]));
        assert_eq!((m.local, i.restored), (Some("10.0.0.1:8080".parse().unwrap()), true));
        assert_eq!(&i.take_buffer()[..], &wire[..]);
    }

    #[tokio::test]
    async fn proxy_header_then_http() {
        let (mut client, mut server) = tokio::io::duplex(100);
        client.write_all(b"PROXY TCP4 1.2.3.4 5.6.7.8 11 22\r\nGET / HTTP/1.1\r\n\r\n").await.unwrap();
        let mut i = inspection();
        let filters = [ListenerFilter::ProxyProtocol { allow_requests_without: false }, HTTP];
        i.run(&mut server, &filters, None).await.unwrap();
        assert_eq!((i.peer, i.local), (Some("1.2.3.4:11".parse().unwrap()), Some("5.6.7.8:22".parse().unwrap())));
        assert_eq!(i.direct_peer, Some("10.0.0.9:5000".parse().unwrap()));
        assert_eq!(i.protocols, ["http/1.1".into()]);
        assert_eq!(&i.take_buffer()[..], b"GET / HTTP/1.1\r\n\r\n");
        client.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
        let e = inspection().run(&mut server, &filters, None).await.unwrap_err();
        assert!(matches!(e, Refused::NoProxyProtocol), "{e}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_learned_survives_a_timeout() {
        let (mut client, mut server) = tokio::io::duplex(100);
        client.write_all(b"GE").await.unwrap();
        let mut i = inspection();
        let filters = ALL;
        let run = i.run(&mut server, &filters, Some("10.0.0.1:80".parse().unwrap()));
        assert!(tokio::time::timeout(Duration::from_secs(1), run).await.is_err());
        assert_eq!(i.match_input().transport, "raw_buffer");
        assert!(i.restored);
        assert_eq!(&i.take_buffer()[..], b"GE");
    }

    #[tokio::test]
    async fn silence_and_oversize_are_refused() {
        let (client, mut server) = tokio::io::duplex(100);
        drop(client);
        assert!(matches!(inspection().run(&mut server, &ALL, None).await, Err(Refused::Closed)));
        let (mut client, mut server) = tokio::io::duplex(1 << 16);
        // Records of one byte each: the hello never ends within the limit.
        let flood = records(&[&[1u8, 0, 0x3f, 0][..], &[0; 8000]].concat(), 1);
        tokio::spawn(async move { client.write_all(&flood).await });
        assert!(matches!(inspection().run(&mut server, &ALL, None).await, Err(Refused::HelloTooLarge)));
    }
}
