//! Bodies on their way through: counted, watched for standstill, and the one place from which an exchange is recorded.

use std::cell::{Cell, RefCell};
use std::future::Future as _;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use tokio::sync::Notify;
use tokio::time::{Instant, Sleep};

use super::super::local_reply::{Reason, Reset};
use super::super::message::{Body, BodyError};
use super::super::stats::{ExchangeSink, ExchangeStats, capture};

/// What a request body has counted so far; shared with the recorder.
#[derive(Debug, Default)]
pub struct RequestCounts {
    bytes: Cell<u64>,
    messages: Cell<u64>,
    end: Cell<Option<Instant>>,
    ended: Notify,
    /// Something came since this was last looked at.
    moved: Cell<bool>,
    broken: Cell<Option<BodyError>>,
    /// Of the answer, whose time begins with the end of the request.
    answer: RefCell<Option<Waker>>,
}

impl RequestCounts {
    /// It has arrived completely.
    pub fn end(&self) {
        self.end_at(Instant::now);
    }

    fn end_at(&self, now: impl FnOnce() -> Instant) {
        if self.end.get().is_none() {
            self.end.set(Some(now()));
            self.ended.notify_waiters();
            if let Some(waker) = self.answer.take() {
                waker.wake();
            }
        }
    }

    /// Counts bytes that did not come as a body.
    pub fn add(&self, bytes: u64) {
        self.bytes.set(self.bytes.get() + bytes);
    }

    /// Whether it has arrived completely.
    pub fn is_complete(&self) -> bool {
        self.end.get().is_some()
    }

    /// When it had arrived completely.
    pub fn ended_at(&self) -> Option<Instant> {
        self.end.get()
    }

    /// Why it never will.
    pub fn broken(&self) -> Option<BodyError> {
        self.broken.get()
    }

    /// It is none that can be sent on.
    pub fn fail(&self, why: BodyError) {
        self.broken.set(Some(why));
    }

    /// Returns when nothing of it has come for this long.
    pub async fn standstill(&self, idle: Duration) {
        loop {
            tokio::time::sleep(idle).await;
            if !self.moved.replace(false) {
                return;
            }
        }
    }

    /// When it had.
    pub async fn complete(&self) -> Instant {
        loop {
            if let Some(end) = self.end.get() {
                return end;
            }
            self.ended.notified().await;
        }
    }
}

/// Records an exchange exactly once: when it is finished, or when it is dropped because the client went away.
#[derive(Debug)]
pub struct Recorder {
    stats: Box<ExchangeStats>,
    recorded: bool,
    sink: Arc<dyn ExchangeSink>,
    worker: usize,
    /// The request's body.
    pub request: Rc<RequestCounts>,
}

impl Recorder {
    /// Of a request whose head just arrived.
    pub fn new(stats: Box<ExchangeStats>, sink: Arc<dyn ExchangeSink>, worker: usize) -> Self {
        Self { stats, recorded: false, sink, worker, request: Rc::default() }
    }

    /// What is remembered.
    pub fn stats(&mut self) -> &mut ExchangeStats {
        &mut self.stats
    }

    /// The exchange is over.
    pub fn finish(mut self) {
        self.record(Instant::now());
    }

    fn record(&mut self, now: Instant) {
        if std::mem::replace(&mut self.recorded, true) {
            return;
        }
        let stats = &mut self.stats;
        stats.bytes_received = self.request.bytes.get();
        stats.request_messages = self.request.messages.get();
        stats.times.request_end = self.request.end.get();
        stats.times.end = Some(now);
        self.sink.record(stats, self.worker);
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        if !self.recorded && matches!(self.stats.reason, Reason::Pending | Reason::ViaUpstream) {
            self.stats.end_with(Reason::DownstreamDisconnect);
        }
        if !self.recorded {
            self.record(Instant::now());
        }
    }
}

/// Counts length-prefixed gRPC messages in a stream of bytes.
#[derive(Debug, Default)]
struct Messages {
    count: u64,
    left: u64,
    prefix: u8,
    length: u32,
}

impl Messages {
    fn feed(&mut self, mut data: &[u8]) {
        while let Some((first, rest)) = data.split_first() {
            if self.left > 0 {
                let skip = usize::try_from(self.left).unwrap_or(usize::MAX).min(data.len());
                self.left -= skip as u64;
                data = data.get(skip..).unwrap_or_default();
                continue;
            }
            // A flag byte and four bytes of length.
            if self.prefix > 0 {
                self.length = self.length << 8 | u32::from(*first);
            }
            self.prefix += 1;
            data = rest;
            if self.prefix == 5 {
                self.count += 1;
                self.left = self.length.into();
                (self.prefix, self.length) = (0, 0);
            }
        }
    }
}

/// The client's body.
pub struct RequestBody {
    body: Body,
    counts: Rc<RequestCounts>,
    messages: Option<Messages>,
}

impl RequestBody {
    /// Counts what goes through. A request for a tunnel is not complete before that is refused or ends.
    pub fn wrap(body: Body, recorder: &Recorder, grpc: bool, tunnel: bool) -> Body {
        let counts = recorder.request.clone();
        if body.is_end_stream() {
            if !tunnel {
                counts.end_at(|| recorder.stats.start);
            }
            return Body::Empty;
        }
        Body::wrap(Self { body, counts, messages: grpc.then(Messages::default) })
    }
}

impl http_body::Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let frame = std::task::ready!(Pin::new(&mut this.body).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                this.counts.moved.set(true);
                if let Some(data) = frame.data_ref() {
                    this.counts.bytes.set(this.counts.bytes.get() + data.len() as u64);
                    if let Some(messages) = &mut this.messages {
                        messages.feed(data);
                        this.counts.messages.set(messages.count);
                    }
                }
                if this.body.is_end_stream() {
                    this.counts.end();
                }
            }
            Some(Err(error)) => this.counts.broken.set(Some(*error)),
            None => this.counts.end(),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Deadlines of an answer that is on its way.
#[derive(Debug, Clone, Copy, Default)]
pub struct Deadlines {
    /// When the request was let through by the filters.
    pub begun: Option<Instant>,
    /// It must be complete so long after the request was, and was let through.
    pub timeout: Option<Duration>,
    /// Everything must be over by then.
    pub end: Option<Instant>,
    /// Something must move within this.
    pub idle: Option<Duration>,
    /// Something of the answer must come within this, once the request is complete.
    pub try_idle: Option<Duration>,
}

impl Deadlines {
    /// The nearest one, when nothing has moved since `quiet` and the request was complete at `complete`.
    fn nearest(&self, quiet: Instant, complete: Option<Instant>) -> Option<(Instant, fn(bool) -> Reason)> {
        let after = |from: Option<Instant>, time: Option<Duration>| from?.checked_add(time?);
        let all: [(Option<Instant>, fn(bool) -> Reason); 4] = [
            (after(complete.map(|c| self.begun.map_or(c, |b| b.max(c))), self.timeout), |_| Reason::ResponseTimeout),
            (self.end, |_| Reason::MaxDuration),
            (after(Some(quiet), self.idle), |request_complete| Reason::StreamIdle { request_complete }),
            (after(complete.map(|c| c.max(quiet)), self.try_idle), |_| Reason::PerTryIdleTimeout),
        ];
        all.into_iter().filter_map(|(at, reason)| Some((at?, reason))).min_by_key(|(at, _)| *at)
    }
}

/// The answer's body; recording happens at its end.
pub struct ResponseBody {
    body: Body,
    recorder: Option<Recorder>,
    deadlines: Deadlines,
    timer: Option<Pin<Box<Sleep>>>,
    /// Something came since the clock was last looked at.
    moved: bool,
    /// When that was.
    quiet: Option<Instant>,
    messages: Option<Messages>,
}

impl ResponseBody {
    /// Counts what goes through, watches deadlines, records at the end.
    pub fn wrap(body: Body, recorder: Recorder, deadlines: Option<Deadlines>, grpc: bool) -> Body {
        if body.is_end_stream() {
            recorder.finish();
            return Body::Empty;
        }
        Body::wrap(Self {
            body,
            recorder: Some(recorder),
            deadlines: deadlines.unwrap_or_default(),
            timer: None,
            moved: true,
            quiet: None,
            messages: grpc.then(Messages::default),
        })
    }

    fn finish(&mut self, broken: Option<Reason>) {
        if let Some(mut recorder) = self.recorder.take() {
            let stats = recorder.stats();
            if let Some(reason) = broken {
                stats.end_with(reason);
            }
            let now = Instant::now();
            stats.times.upstream_end = Some(now);
            if let Some(messages) = &self.messages {
                stats.response_messages = messages.count;
            }
            recorder.record(now);
        }
        self.body = Body::Empty;
    }

    /// Looks at the clock while nothing comes. One timer, set anew when it fires, or when something is due before.
    fn poll_deadlines(&mut self, cx: &mut Context<'_>) -> Poll<Reason> {
        loop {
            let Some(request) = self.recorder.as_ref().map(|r| &r.request) else { return Poll::Pending };
            let complete = request.end.get();
            if complete.is_none() {
                *request.answer.borrow_mut() = Some(cx.waker().clone());
            }
            let now = Instant::now();
            // What the client still sends is a sign of life as well.
            let sent = request.moved.replace(false);
            if std::mem::take(&mut self.moved) || sent {
                self.quiet = Some(now);
            }
            let quiet = *self.quiet.get_or_insert(now);
            let Some((next, reason)) = self.deadlines.nearest(quiet, complete) else { return Poll::Pending };
            if next <= now {
                return Poll::Ready(reason(complete.is_some()));
            }
            let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(next)));
            if timer.is_elapsed() || timer.deadline() > next {
                timer.as_mut().reset(next);
            }
            std::task::ready!(timer.as_mut().poll(cx));
        }
    }

    fn count(&mut self, frame: &Frame<Bytes>) {
        let Some(recorder) = &mut self.recorder else { return };
        let stats = recorder.stats();
        if let Some(data) = frame.data_ref() {
            stats.bytes_sent += data.len() as u64;
            if let Some(messages) = &mut self.messages {
                messages.feed(data);
            }
        } else if let Some(trailers) = frame.trailers_ref() {
            let status = trailers.get("grpc-status").and_then(|v| v.to_str().ok()).and_then(|v| v.parse().ok());
            stats.grpc_status = status.or(stats.grpc_status);
            stats.response_trailer_bytes = super::respond::header_bytes(trailers);
            let wanted = recorder.sink.needs().trailers;
            capture(&wanted, trailers, &mut recorder.stats().captured.trailers);
        }
    }
}

impl http_body::Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        match Pin::new(&mut this.body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                this.moved = true;
                this.count(&frame);
                if this.body.is_end_stream() {
                    this.finish(None);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                let reset = match error {
                    BodyError::Disconnected => Reset::ConnectionTermination,
                    BodyError::Reset => Reset::RemoteReset,
                    BodyError::Protocol => Reset::ProtocolError,
                    BodyError::Timeout | BodyError::Aborted => Reset::LocalReset,
                };
                this.finish(Some(Reason::UpstreamResetLate { reset }));
                Poll::Ready(Some(Err(error)))
            }
            Poll::Ready(None) => {
                this.finish(None);
                Poll::Ready(None)
            }
            Poll::Pending => {
                let reason = std::task::ready!(this.poll_deadlines(cx));
                this.finish(Some(reason));
                Poll::Ready(Some(Err(BodyError::Timeout)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        // The codec drops a body at its end without asking once more; anything else is the client going away.
        if self.recorder.is_some() && self.body.is_end_stream() {
            self.finish(None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_counted_across_pieces() {
        let mut messages = Messages::default();
        let stream = [0, 0, 0, 0, 2, b'a', b'b', 1, 0, 0, 0, 0, 0, 0, 0, 1];
        for piece in stream.chunks(3) {
            messages.feed(piece);
        }
        assert_eq!((messages.count, messages.prefix), (2, 4));
    }

    fn recorder() -> Recorder {
        let head = crate::http::testing::get("a.test", "/");
        let stats = ExchangeStats::new(Rc::new(crate::http::testing::conn()), &head);
        Recorder::new(Box::new(stats), Arc::new(super::super::super::stats::NoTelemetry), 0)
    }

    /// A body that never has anything to say.
    struct Silent;

    impl http_body::Body for Silent {
        type Data = Bytes;
        type Error = BodyError;
        fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
            Poll::Pending
        }
    }

    /// How long a silent answer is waited for when its request is complete after `complete` seconds.
    async fn waited(deadlines: Deadlines, complete: u64) -> Duration {
        use http_body_util::BodyExt as _;
        let recorder = recorder();
        let request = recorder.request.clone();
        let mut body = ResponseBody::wrap(Body::wrap(Silent), recorder, Some(deadlines), false);
        let begun = Instant::now();
        let sending = async {
            tokio::time::sleep(Duration::from_secs(complete)).await;
            request.end();
            std::future::pending::<()>().await;
        };
        tokio::select! {
            frame = body.frame() => assert!(matches!(frame, Some(Err(BodyError::Timeout)))),
            () = sending => {}
        }
        begun.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_of_an_answer_begins_with_the_end_of_its_request() {
        let second = |n| Some(Duration::from_secs(n));
        let total = Deadlines { timeout: second(2), ..Deadlines::default() };
        assert_eq!(waited(total, 7).await, Duration::from_secs(9));
        // Also when another deadline has set the timer to a later time.
        let both = Deadlines { idle: second(60), ..total };
        assert_eq!(waited(both, 7).await, Duration::from_secs(9));
        let held_back = Deadlines { begun: Some(Instant::now() + Duration::from_secs(4)), ..total };
        assert_eq!(waited(held_back, 1).await, Duration::from_secs(6));
        let idle = Deadlines { try_idle: second(3), ..Deadlines::default() };
        assert_eq!(waited(idle, 1).await, Duration::from_secs(4));
        let end = Deadlines { end: Some(Instant::now() + Duration::from_secs(5)), ..total };
        assert_eq!(waited(end, 9).await, Duration::from_secs(5));
    }

    #[tokio::test(start_paused = true)]
    async fn standstill_begins_when_nothing_comes_any_more() {
        let counts = RequestCounts::default();
        let begun = Instant::now();
        let idle = Duration::from_secs(2);
        let moving = async {
            for _ in 0..5 {
                tokio::time::sleep(Duration::from_secs(1)).await;
                counts.moved.set(true);
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = counts.standstill(idle) => {}
            () = moving => {}
        }
        assert_eq!(begun.elapsed(), Duration::from_secs(8), "not before two idle seconds have passed, nor after four");
    }
}
