//! Clients that take nothing: a connection that cannot be written to, a stream of HTTP/2 whose window stays shut. Both
//! are given up after a while, or whatever they asked for would be kept for them for ever.
//!
//! Knows codecs only by what they do: they write, they run a future for each stream, they ask a body for frames.

use std::{
    cell::{Cell, RefCell},
    future::{Future, poll_fn},
    io::{self, IoSlice},
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::Notify,
    time::{Instant, Sleep, sleep, sleep_until},
};

use crate::http::message::{Body, BodyError};

/// A connection that ends when nothing can be written to it for this long.
#[derive(Debug)]
pub(super) struct Patient<S> {
    inner: S,
    limit: Duration,
    /// Since a write had to wait.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<S> Patient<S> {
    /// Zero: for ever.
    pub(super) fn new(inner: S, limit: Duration) -> Self {
        Self { inner, limit, stalled: None }
    }

    fn judge<T>(&mut self, cx: &mut Context<'_>, done: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if done.is_ready() {
            self.stalled = None;
        } else if !self.limit.is_zero() {
            let limit = self.limit;
            let timer = self.stalled.get_or_insert_with(|| Box::pin(sleep(limit)));
            if timer.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes nothing")));
            }
        }
        done
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let done = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.judge(cx, done)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let done = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.judge(cx, done)
    }
    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let done = Pin::new(&mut self.inner).poll_flush(cx);
        self.judge(cx, done)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let done = Pin::new(&mut self.inner).poll_shutdown(cx);
        self.judge(cx, done)
    }
}

/// The streams of one HTTP/2 connection.
#[derive(Debug, Clone)]
pub(super) struct Streams(Rc<Open>);

#[derive(Debug)]
struct Open {
    count: Cell<usize>,
    /// Since when there is none.
    since: Cell<Instant>,
    /// How long a stream may take nothing; zero: for ever.
    limit: Duration,
    /// Streams that may still begin; `None`: any number.
    left: Cell<Option<u32>>,
    spent: Notify,
}

/// What became of the frames that a stream's body gave.
#[derive(Debug, Default)]
struct Progress {
    given: Cell<u64>,
    /// The codec has one that it could not send yet, and does not ask for more.
    held: Cell<bool>,
}

thread_local! {
    /// Of the stream whose future is being polled.
    static CURRENT: RefCell<Option<Rc<Progress>>> = const { RefCell::new(None) };
}

impl Streams {
    /// None yet, and no more than `most` ever.
    pub(super) fn new(limit: Duration, most: Option<u32>) -> Self {
        let (count, since, left) = (Cell::new(0), Cell::new(Instant::now()), Cell::new(most));
        Self(Rc::new(Open { count, since, limit, left, spent: Notify::new() }))
    }

    /// Runs one more, on the worker's own thread.
    pub(super) fn run<F: Future + 'static>(&self, stream: F) {
        let open = self.0.clone();
        open.count.set(open.count.get() + 1);
        if let Some(left) = open.left.get() {
            open.left.set(Some(left.saturating_sub(1)));
            if left <= 1 {
                open.spent.notify_one();
            }
        }
        tokio::task::spawn_local(async move {
            watched(pin!(stream), open.limit).await;
            open.ended();
        });
    }

    /// Returns when the last stream that may has begun.
    pub(super) async fn spent(&self) {
        self.0.spent.notified().await;
    }

    /// Returns when there has been no stream for this long, counted from now at the earliest; zero: never.
    pub(super) async fn idle(&self, limit: Duration) {
        let begun = Instant::now();
        if limit.is_zero() {
            std::future::pending::<()>().await;
        }
        loop {
            let now = Instant::now();
            let since = if self.0.count.get() == 0 { self.0.since.get().max(begun) } else { now };
            if now.duration_since(since) >= limit {
                return;
            }
            sleep_until(since + limit).await;
        }
    }
}

impl Open {
    fn ended(&self) {
        self.count.set(self.count.get().saturating_sub(1));
        self.since.set(Instant::now());
    }
}

/// Runs a stream to its end, or until its client has taken nothing for too long: then it is dropped, which resets it.
async fn watched(mut future: Pin<&mut impl Future>, limit: Duration) {
    let progress = Rc::new(Progress::default());
    let mut timer: Option<(Pin<Box<Sleep>>, u64)> = None;
    poll_fn(|cx| {
        let outer = CURRENT.replace(Some(progress.clone()));
        let done = future.as_mut().poll(cx);
        CURRENT.set(outer);
        if done.is_ready() {
            return Poll::Ready(());
        }
        if limit.is_zero() || !progress.held.get() {
            timer = None;
            return Poll::Pending;
        }
        let given = progress.given.get();
        if timer.as_ref().is_none_or(|(_, at)| *at != given) {
            timer = Some((Box::pin(sleep(limit)), given));
        }
        match &mut timer {
            Some((timer, _)) => timer.as_mut().poll(cx),
            None => Poll::Pending,
        }
    })
    .await;
}

/// The body of an answer on a stream that is watched.
#[derive(Debug)]
pub(super) struct Watched {
    body: Body,
    progress: Option<Rc<Progress>>,
}

impl Watched {
    /// On the stream whose future is being polled.
    pub(super) fn new(body: Body) -> Self {
        Self { body, progress: CURRENT.with_borrow(Clone::clone) }
    }
}

impl http_body::Body for Watched {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if let Some(progress) = &self.progress {
            let gives = matches!(&frame, Poll::Ready(Some(Ok(_))));
            progress.held.set(gives);
            progress.given.set(progress.given.get() + u64::from(gives));
        }
        frame
    }
    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use http_body::Body as _;
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(5);

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_is_given_up() {
        let (ours, _theirs) = tokio::io::duplex(8);
        let mut io = Patient::new(ours, LIMIT);
        let begun = Instant::now();
        let error = io.write_all(&[0; 100]).await.unwrap_err();
        assert_eq!((error.kind(), begun.elapsed()), (io::ErrorKind::TimedOut, LIMIT));
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_one_is_not() {
        use tokio::io::AsyncReadExt as _;
        let (ours, mut theirs) = tokio::io::duplex(8);
        let mut io = Patient::new(ours, LIMIT);
        let reader = async {
            for _ in 0..20 {
                sleep(LIMIT / 2).await;
                theirs.read_u8().await.unwrap();
            }
        };
        let (written, ()) = tokio::join!(io.write_all(&[0; 28]), reader);
        written.unwrap();
    }

    /// A codec that asks for a frame, and then for none any more.
    async fn codec(frames: usize, body: Body) {
        let mut body = Watched::new(body);
        for _ in 0..frames {
            poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await;
        }
        std::future::pending::<()>().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_whose_frame_is_not_taken_ends() {
        let begun = Instant::now();
        watched(pin!(async { codec(1, Body::full("hello")).await }), LIMIT).await;
        assert_eq!(begun.elapsed(), LIMIT);
        // Whose frame is taken, waits for as long as the body does.
        let stream = pin!(async { codec(2, Body::full("hello")).await });
        let taken = tokio::time::timeout(LIMIT * 10, watched(stream, LIMIT));
        assert!(taken.await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn idle_counts_from_the_last_stream() {
        let local = tokio::task::LocalSet::new();
        let begun = Instant::now();
        local
            .run_until(async {
                let streams = Streams::new(LIMIT, None);
                streams.run(sleep(LIMIT * 3));
                streams.idle(LIMIT).await;
            })
            .await;
        assert_eq!(begun.elapsed(), LIMIT * 4);
    }
}
