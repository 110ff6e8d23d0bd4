//! Bodies on their way through: counted, watched for standstill, and the one place from which an exchange is recorded.

use std::cell::Cell;
use std::future::Future as _;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
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
}

impl RequestCounts {
    /// Counts bytes that did not come as a body.
    pub fn add(&self, bytes: u64) {
        self.bytes.set(self.bytes.get() + bytes);
    }

    /// When it had.
    pub async fn complete(&self) -> Instant {
        loop {
            let ended = self.ended.notified();
            if let Some(end) = self.end.get() {
                return end;
            }
            ended.await;
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
    pub fn new(stats: ExchangeStats, sink: Arc<dyn ExchangeSink>, worker: usize) -> Self {
        Self { stats: Box::new(stats), recorded: false, sink, worker, request: Rc::default() }
    }

    /// What is remembered.
    pub fn stats(&mut self) -> &mut ExchangeStats {
        &mut self.stats
    }

    /// The exchange is over.
    pub fn finish(mut self) {
        self.record();
    }

    fn record(&mut self) {
        if std::mem::replace(&mut self.recorded, true) {
            return;
        }
        let stats = &mut self.stats;
        stats.bytes_received = self.request.bytes.get();
        stats.request_messages = self.request.messages.get();
        stats.times.request_end = self.request.end.get();
        stats.times.end = Some(Instant::now());
        self.sink.record(stats, self.worker);
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        if !self.recorded && matches!(self.stats.reason, Reason::Pending | Reason::ViaUpstream) {
            self.stats.end_with(Reason::DownstreamDisconnect);
        }
        self.record();
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
    /// Counts what goes through.
    pub fn wrap(body: Body, recorder: &Recorder, grpc: bool) -> Body {
        let counts = recorder.request.clone();
        if body.is_end_stream() {
            counts.end.set(Some(Instant::now()));
            return Body::Empty;
        }
        Body::wrap(Self { body, counts, messages: grpc.then(Messages::default) })
    }

    fn end(&self) {
        if self.counts.end.get().is_none() {
            self.counts.end.set(Some(Instant::now()));
            self.counts.ended.notify_waiters();
        }
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
                if let Some(data) = frame.data_ref() {
                    this.counts.bytes.set(this.counts.bytes.get() + data.len() as u64);
                    if let Some(messages) = &mut this.messages {
                        messages.feed(data);
                        this.counts.messages.set(messages.count);
                    }
                }
                if this.body.is_end_stream() {
                    this.end();
                }
            }
            Some(Err(_)) => {}
            None => this.end(),
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
    /// The answer must be complete by then.
    pub total: Option<Instant>,
    /// Something must move within this.
    pub idle: Option<Duration>,
}

/// The answer's body; recording happens at its end.
pub struct ResponseBody {
    body: Body,
    recorder: Option<Recorder>,
    deadlines: Deadlines,
    timer: Option<Pin<Box<Sleep>>>,
    moved: bool,
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
            messages: grpc.then(Messages::default),
        })
    }

    fn finish(&mut self, broken: Option<Reason>) {
        if let Some(mut recorder) = self.recorder.take() {
            let stats = recorder.stats();
            if let Some(reason) = broken {
                stats.end_with(reason);
            }
            stats.times.upstream_end = Some(Instant::now());
            if let Some(messages) = &self.messages {
                stats.response_messages = messages.count;
            }
            recorder.finish();
        }
        self.body = Body::Empty;
    }

    /// Looks at the clock while nothing comes. One timer, set anew only when it fires.
    fn poll_deadlines(&mut self, cx: &mut Context<'_>) -> Poll<Reason> {
        let Deadlines { total, idle } = self.deadlines;
        loop {
            let next = match (total, idle) {
                (None, None) => return Poll::Pending,
                (Some(total), None) => total,
                (None, Some(idle)) => Instant::now() + idle,
                (Some(total), Some(idle)) => total.min(Instant::now() + idle),
            };
            let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(next)));
            std::task::ready!(timer.as_mut().poll(cx));
            if total.is_some_and(|t| t <= Instant::now()) {
                return Poll::Ready(Reason::ResponseTimeout);
            }
            if !std::mem::take(&mut self.moved) {
                return Poll::Ready(Reason::StreamIdle { request_complete: true });
            }
            self.timer = None;
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
}
