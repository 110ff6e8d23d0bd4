//! The IO object of a connection: a socket whose sniffed bytes are read again, in cleartext or under TLS.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Buf, Bytes};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
};

use crate::tls::ServerStream;

/// A stream in front of which bytes that were read already are read again.
#[derive(Debug)]
pub struct Prefixed<S> {
    prefix: Bytes,
    inner: S,
}

impl<S> Prefixed<S> {
    /// `prefix` is read before what `inner` still has.
    pub fn new(prefix: Bytes, inner: S) -> Self {
        Self { prefix, inner }
    }
    /// The bytes not read yet, and the stream.
    pub fn into_parts(self) -> (Bytes, S) {
        (self.prefix, self.inner)
    }
    /// The same stream; `bytes`, which were read from it, are read again first.
    #[must_use]
    pub fn again(self, bytes: Bytes) -> Self {
        if self.prefix.is_empty() {
            return Self { prefix: bytes, inner: self.inner };
        }
        let mut all = Vec::with_capacity(bytes.len() + self.prefix.len());
        all.extend_from_slice(&bytes);
        all.extend_from_slice(&self.prefix);
        Self { prefix: all.into(), inner: self.inner }
    }
    /// The stream itself.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Prefixed<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.prefix.is_empty() {
            return Pin::new(&mut self.inner).poll_read(cx, buf);
        }
        let n = self.prefix.len().min(buf.remaining());
        buf.put_slice(&self.prefix.split_to(n));
        if !self.prefix.has_remaining() {
            self.prefix = Bytes::new(); // lets go of the sniffing buffer
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Prefixed<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }
    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

/// A connection as it was accepted, before TLS.
#[derive(Debug)]
pub enum Transport {
    /// TCP, `TCP_NODELAY` set.
    Tcp(Prefixed<TcpStream>),
    /// Unix socket.
    Unix(Prefixed<UnixStream>),
}

/// What a terminal filter reads from and writes to.
#[derive(Debug)]
pub enum Io {
    /// Cleartext over TCP.
    Tcp(Prefixed<TcpStream>),
    /// Cleartext over a Unix socket.
    Unix(Prefixed<UnixStream>),
    /// TLS that ends here.
    Tls(Box<ServerStream<Transport>>),
    /// The same, after its first bytes were looked at.
    Replayed(Box<Prefixed<ServerStream<Transport>>>),
}

impl From<Transport> for Io {
    fn from(t: Transport) -> Self {
        match t {
            Transport::Tcp(s) => Io::Tcp(s),
            Transport::Unix(s) => Io::Unix(s),
        }
    }
}

impl Io {
    /// The same connection; `bytes`, which were read from it, are read again first.
    #[must_use]
    pub fn with_prefix(self, bytes: Bytes) -> Self {
        match self {
            Io::Tcp(s) => Io::Tcp(s.again(bytes)),
            Io::Unix(s) => Io::Unix(s.again(bytes)),
            Io::Tls(s) => Io::Replayed(Box::new(Prefixed::new(bytes, *s))),
            Io::Replayed(s) => Io::Replayed(Box::new(s.again(bytes))),
        }
    }
}

macro_rules! delegate {
    ($ty:ty { $($variant:ident),* }) => {
        impl AsyncRead for $ty {
            fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
                match self.get_mut() { $(Self::$variant(s) => Pin::new(s).poll_read(cx, buf)),* }
            }
        }
        impl AsyncWrite for $ty {
            fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
                match self.get_mut() { $(Self::$variant(s) => Pin::new(s).poll_write(cx, buf)),* }
            }
            fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
                match self.get_mut() { $(Self::$variant(s) => Pin::new(s).poll_write_vectored(cx, bufs)),* }
            }
            fn is_write_vectored(&self) -> bool {
                match self { $(Self::$variant(s) => s.is_write_vectored()),* }
            }
            fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                match self.get_mut() { $(Self::$variant(s) => Pin::new(s).poll_flush(cx)),* }
            }
            fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                match self.get_mut() { $(Self::$variant(s) => Pin::new(s).poll_shutdown(cx)),* }
            }
        }
    };
}

delegate!(Transport { Tcp, Unix });
delegate!(Io { Tcp, Unix, Tls, Replayed });

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt;

    #[tokio::test]
    async fn prefix_is_read_first_in_small_reads_too() {
        let mut s = Prefixed::new(Bytes::from_static(b"hello "), &b"world"[..]);
        let mut two = [0u8; 2];
        s.read_exact(&mut two).await.unwrap();
        assert_eq!(&two, b"he");
        let mut rest = String::new();
        s.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "llo world");
    }
}
