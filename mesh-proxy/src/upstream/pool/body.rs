//! The body of an answer: its end gives the connection back and closes the books of the request.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};

use super::{Lease, conn::RequestGuard, grpc_outcome};
use crate::{
    http::message::{Body, BodyError},
    upstream::{Cluster, Endpoint, Outcome, balance::ThreadRandom},
};

/// What waits for the end.
#[derive(Debug)]
pub(super) struct End {
    pub(super) lease: Lease,
    pub(super) guard: RequestGuard,
    pub(super) cluster: Arc<Cluster>,
    pub(super) endpoint: Arc<Endpoint>,
    /// The outcome for passive health checks is in the trailers.
    pub(super) grpc: bool,
}

impl End {
    /// The answer is complete.
    pub(super) fn complete(self) {
        let Self { lease, mut guard, .. } = self;
        guard.complete();
        drop(guard);
        lease.complete();
    }
    fn trailers(&mut self, trailers: &http::HeaderMap) {
        if std::mem::take(&mut self.grpc) {
            self.cluster.report(&self.endpoint, grpc_outcome(trailers, 200), &ThreadRandom);
        }
    }
}

/// A body and what happens at its end.
#[derive(Debug)]
pub(super) struct Tracked {
    inner: Body,
    end: Option<Box<End>>,
}

/// Puts the end behind the body.
pub(super) fn track(inner: Body, end: End) -> Body {
    if inner.is_end_stream() {
        end.complete();
        return Body::Empty;
    }
    Body::wrap(Tracked { inner, end: Some(Box::new(end)) })
}

impl http_body::Body for Tracked {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let frame = std::task::ready!(Pin::new(&mut this.inner).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                if let (Some(trailers), Some(end)) = (frame.trailers_ref(), &mut this.end) {
                    end.trailers(trailers);
                }
                // Not everyone polls once more for the end.
                if (frame.is_trailers() || this.inner.is_end_stream())
                    && let Some(end) = this.end.take()
                {
                    end.complete();
                }
            }
            Some(Err(_)) => {
                if let Some(end) = this.end.take() {
                    end.cluster.stats.upstream_rq_rx_reset.inc();
                    end.cluster.report(&end.endpoint, Outcome::Reset, &ThreadRandom);
                }
            }
            None => {
                if let Some(end) = this.end.take() {
                    end.complete();
                }
            }
        }
        Poll::Ready(frame)
    }
    fn is_end_stream(&self) -> bool {
        self.end.is_none() || self.inner.is_end_stream()
    }
    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
