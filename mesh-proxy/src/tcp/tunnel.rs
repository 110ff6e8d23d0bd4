//! A tunnel through a forward proxy: `CONNECT` or `POST`, in the version of HTTP that its cluster speaks; then the bytes
//! are the connection's own. Knows the pools and no codec.

use std::{
    cell::RefCell,
    io,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{Method, uri::PathAndQuery};
use http_body::{Body as _, Frame};
use mesh_api::model::TcpTunnel;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{
    config::ConfigError,
    http::{
        message::{Authority, Body, BodyError, RequestHead, UpstreamConnection},
        server::h1::Tunnel,
    },
    runtime::Worker,
    upstream::{Cluster, Endpoint, UpstreamError, connect::UpstreamIo, pool::SendOptions},
};

/// How long the forward proxy may take.
const LIMIT: Duration = Duration::from_secs(15);
/// Bytes taken from the client at once in a `POST`.
const PIECE: usize = 64 << 10;

/// What is asked of a forward proxy.
#[derive(Debug)]
pub(super) struct Request {
    host: Authority,
    /// Path of a `POST`; `None`: `CONNECT`.
    post: Option<PathAndQuery>,
}

/// Why there is no tunnel.
#[derive(Debug)]
pub(super) enum NoTunnel {
    /// The request did not get there, or no answer came back.
    Lost(UpstreamError),
    /// The answer is no 2xx, or does not become a tunnel.
    Refused(String),
    /// None came in time.
    Slow,
}

impl Request {
    /// Checks what is to be asked.
    ///
    /// # Errors
    /// When it is no authority or no path.
    pub(super) fn compile(config: &TcpTunnel) -> Result<Self, ConfigError> {
        let bad = |what: &str, text: &str| ConfigError::new(format!("tcp_proxy: tunneling_config.{what}: {text:?}"));
        let host = Authority::parse(&config.hostname).filter(|a| !a.is_empty());
        let host = host.ok_or_else(|| bad("hostname", &config.hostname))?;
        let path = |text: &str| PathAndQuery::try_from(text).map_err(|_| bad("post_path", text));
        Ok(Self { host, post: config.post_path.as_deref().map(path).transpose()? })
    }

    /// Asks for the tunnel.
    pub(super) async fn open(
        &self,
        worker: &Worker,
        cluster: &Arc<Cluster>,
        endpoint: &Arc<Endpoint>,
        options: &SendOptions<'_>,
    ) -> Result<(Upstream, Option<Rc<UpstreamConnection>>), NoTunnel> {
        let target = self.post.clone().unwrap_or_else(|| PathAndQuery::from_static("/"));
        let method = if self.post.is_some() { Method::POST } else { Method::CONNECT };
        let head = RequestHead::new(method, self.host.clone(), target);
        let (sending, body) = match self.post {
            Some(_) => {
                let (sending, body) = pipe();
                (Some(sending), Body::wrap(body))
            }
            None => (None, Body::Empty),
        };
        let answer = async {
            let sent = worker.pools.send(cluster, endpoint, head, body, options).await;
            let (mut answer, body) = sent.map_err(NoTunnel::Lost)?;
            if !answer.status.is_success() {
                return Err(NoTunnel::Refused(format!("the forward proxy answered {}", answer.status.as_u16())));
            }
            let connection = answer.connection.take();
            let upstream = match (answer.tunnel.take(), sending) {
                (Some(tunnel), None) => {
                    let tunnel = tunnel.open().await.map_err(|e| NoTunnel::Refused(e.to_string()))?;
                    Upstream::Connect(tunnel)
                }
                (None, Some(sending)) => Upstream::Post(Posted { sending, receiving: body, rest: Bytes::new() }),
                _ => return Err(NoTunnel::Refused("the forward proxy's answer is no tunnel".to_owned())),
            };
            Ok((upstream, connection))
        };
        tokio::time::timeout(LIMIT, answer).await.unwrap_or(Err(NoTunnel::Slow))
    }
}

/// What bytes are forwarded to.
#[derive(Debug)]
pub(super) enum Upstream {
    /// A connection.
    Direct(UpstreamIo),
    /// The other end of a `CONNECT`.
    Connect(Tunnel),
    /// Bodies of a `POST` and its answer.
    Post(Posted),
}

impl AsyncRead for Upstream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Direct(io) => Pin::new(io).poll_read(cx, buf),
            Self::Connect(io) => Pin::new(io).poll_read(cx, buf),
            Self::Post(io) => io.poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Upstream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Direct(io) => Pin::new(io).poll_write(cx, buf),
            Self::Connect(io) => Pin::new(io).poll_write(cx, buf),
            Self::Post(io) => io.sending.poll_write(cx, buf),
        }
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Direct(io) => Pin::new(io).poll_flush(cx),
            Self::Connect(io) => Pin::new(io).poll_flush(cx),
            // The codec takes pieces as it can send them.
            Self::Post(_) => Poll::Ready(Ok(())),
        }
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Direct(io) => Pin::new(io).poll_shutdown(cx),
            Self::Connect(io) => Pin::new(io).poll_shutdown(cx),
            Self::Post(io) => {
                io.sending.end();
                Poll::Ready(Ok(()))
            }
        }
    }
}

/// Bodies of a `POST` and its answer.
#[derive(Debug)]
pub(super) struct Posted {
    sending: Sending,
    receiving: Body,
    rest: Bytes,
}

impl Posted {
    fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.rest.is_empty() {
            match ready!(Pin::new(&mut self.receiving).poll_frame(cx)) {
                None => return Poll::Ready(Ok(())),
                Some(Err(e)) => return Poll::Ready(Err(io::Error::other(e))),
                // Trailers are nothing to a connection.
                Some(Ok(frame)) => self.rest = frame.into_data().unwrap_or_default(),
            }
        }
        let piece = self.rest.split_to(self.rest.len().min(buf.remaining()));
        buf.put_slice(&piece);
        Poll::Ready(Ok(()))
    }
}

/// What a pipe holds: one piece at a time, so that a slow reader slows the writer.
#[derive(Debug, Default)]
struct Pipe {
    piece: Option<Bytes>,
    ended: bool,
    /// The reader is gone.
    closed: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

/// The end of a pipe that is written.
#[derive(Debug)]
struct Sending(Rc<RefCell<Pipe>>);

/// The end that is read, as a body.
#[derive(Debug)]
struct Sent(Rc<RefCell<Pipe>>);

fn pipe() -> (Sending, Sent) {
    let pipe = Rc::new(RefCell::new(Pipe::default()));
    (Sending(pipe.clone()), Sent(pipe))
}

fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}

impl Sending {
    fn poll_write(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut pipe = self.0.borrow_mut();
        if pipe.closed || pipe.ended {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if pipe.piece.is_some() {
            pipe.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let taken = bytes.get(..PIECE).unwrap_or(bytes);
        if !taken.is_empty() {
            pipe.piece = Some(Bytes::copy_from_slice(taken));
            wake(&mut pipe.reader);
        }
        Poll::Ready(Ok(taken.len()))
    }

    fn end(&self) {
        let mut pipe = self.0.borrow_mut();
        pipe.ended = true;
        wake(&mut pipe.reader);
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        // Without an end before, the body is cut.
        let mut pipe = self.0.borrow_mut();
        pipe.closed = true;
        wake(&mut pipe.reader);
    }
}

impl http_body::Body for Sent {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut pipe = self.0.borrow_mut();
        if let Some(piece) = pipe.piece.take() {
            wake(&mut pipe.writer);
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        if pipe.ended {
            return Poll::Ready(None);
        }
        if pipe.closed {
            return Poll::Ready(Some(Err(BodyError::Aborted)));
        }
        pipe.reader = Some(cx.waker().clone());
        Poll::Pending
    }

    fn is_end_stream(&self) -> bool {
        let pipe = self.0.borrow();
        pipe.ended && pipe.piece.is_none()
    }
}

impl Drop for Sent {
    fn drop(&mut self) {
        let mut pipe = self.0.borrow_mut();
        pipe.closed = true;
        wake(&mut pipe.writer);
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use http_body_util::BodyExt as _;

    use super::*;

    #[test]
    fn requests_are_checked_when_they_are_configured() {
        let compile = |hostname: &str, post_path: Option<&str>| {
            Request::compile(&TcpTunnel { hostname: hostname.into(), post_path: post_path.map(Into::into) })
        };
        assert!(compile("db.example:5432", None).is_ok_and(|r| r.post.is_none()));
        assert!(compile("[::1]:5432", Some("/x?y")).is_ok_and(|r| r.post.is_some()));
        for (host, path) in [("", None), ("a b", None), ("a", Some("x y"))] {
            assert!(compile(host, path).is_err(), "{host:?} {path:?}");
        }
    }

    #[tokio::test]
    async fn a_pipe_holds_one_piece_and_tells_its_end() {
        let (sending, mut body) = pipe();
        let write = async |bytes: &[u8]| poll_fn(|cx| sending.poll_write(cx, bytes)).await;
        assert_eq!(write(b"one").await.unwrap(), 3);
        let second = poll_fn(|cx| Poll::Ready(sending.poll_write(cx, b"two").is_pending())).await;
        assert!(second, "the first piece is not taken yet");
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "one");
        assert_eq!(write(&vec![b'x'; PIECE + 1]).await.unwrap(), PIECE);
        sending.end();
        assert!(!body.is_end_stream());
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap().len(), PIECE);
        assert!(body.is_end_stream() && body.frame().await.is_none());
        assert!(write(b"late").await.is_err());
    }

    #[tokio::test]
    async fn an_end_that_goes_away_is_an_error_to_the_other() {
        let (sending, mut body) = pipe();
        drop(sending);
        assert!(body.frame().await.unwrap().is_err());
        let (sending, body) = pipe();
        drop(body);
        assert!(poll_fn(|cx| sending.poll_write(cx, b"x")).await.is_err());
    }
}
