//! A request body that can be sent again: what went out is kept, up to a limit. Past the limit the request goes on, but
//! is not retried any more.

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};

use super::super::message::{Body, BodyError};

/// Bytes that are kept at most.
pub const LIMIT: usize = 64 << 10;

/// The body of a request, shared by its tries.
#[derive(Debug, Clone)]
pub struct Replay(Rc<RefCell<State>>);

#[derive(Debug)]
struct State {
    inner: Body,
    kept: Vec<Bytes>,
    bytes: usize,
    trailers: Option<HeaderMap>,
    /// More came than may be kept.
    overflow: bool,
    ended: bool,
    failed: Option<BodyError>,
    /// Tries made; only the newest may read.
    tries: u32,
}

impl Replay {
    /// Around the client's body.
    pub fn new(body: Body) -> Self {
        let ended = body.is_end_stream();
        Self(Rc::new(RefCell::new(State {
            inner: body,
            kept: vec![],
            bytes: 0,
            trailers: None,
            overflow: false,
            ended,
            failed: None,
            tries: 0,
        })))
    }

    /// Whether another try can send the whole body.
    pub fn is_possible(&self) -> bool {
        let state = self.0.borrow();
        !state.overflow && state.failed.is_none()
    }

    /// The body for one try.
    pub fn body(&self) -> Body {
        let mut state = self.0.borrow_mut();
        if state.ended && state.kept.is_empty() && state.trailers.is_none() {
            return Body::Empty;
        }
        state.tries += 1;
        let attempt = state.tries;
        drop(state);
        Body::wrap(Attempt { shared: self.0.clone(), attempt, next: 0, done: false })
    }
}

/// One try's view.
struct Attempt {
    shared: Rc<RefCell<State>>,
    attempt: u32,
    next: usize,
    done: bool,
}

impl http_body::Body for Attempt {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        if this.done {
            return Poll::Ready(None);
        }
        let mut state = this.shared.borrow_mut();
        let state = &mut *state;
        if state.tries != this.attempt {
            // A newer try took over.
            return Poll::Ready(Some(Err(BodyError::Aborted)));
        }
        if let Some(piece) = state.kept.get(this.next) {
            this.next += 1;
            return Poll::Ready(Some(Ok(Frame::data(piece.clone()))));
        }
        if let Some(error) = state.failed {
            return Poll::Ready(Some(Err(error)));
        }
        if state.ended {
            this.done = true;
            return Poll::Ready(state.trailers.clone().map(|t| Ok(Frame::trailers(t))));
        }
        match std::task::ready!(Pin::new(&mut state.inner).poll_frame(cx)) {
            None => {
                state.ended = true;
                this.done = true;
                Poll::Ready(None)
            }
            Some(Err(error)) => {
                state.failed = Some(error);
                Poll::Ready(Some(Err(error)))
            }
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    state.bytes += data.len();
                    if !state.overflow && state.bytes <= LIMIT {
                        state.kept.push(data.clone());
                        this.next = state.kept.len();
                    } else if !state.overflow {
                        state.overflow = true;
                        state.kept.clear();
                        this.next = 0;
                    }
                } else if let Some(trailers) = frame.trailers_ref() {
                    state.trailers = Some(trailers.clone());
                    state.ended = true;
                    this.done = true;
                }
                if state.inner.is_end_stream() {
                    state.ended = true;
                }
                Poll::Ready(Some(Ok(frame)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        let state = self.shared.borrow();
        self.done || (state.ended && self.next >= state.kept.len() && state.trailers.is_none())
    }

    fn size_hint(&self) -> SizeHint {
        let state = self.shared.borrow();
        if self.next == 0 && state.kept.is_empty() && !state.ended {
            return state.inner.size_hint();
        }
        let kept: u64 = state.kept.iter().skip(self.next).map(|b| b.len() as u64).sum();
        let mut hint = if state.ended { SizeHint::with_exact(0) } else { state.inner.size_hint() };
        let exact = hint.exact().map(|n| n + kept);
        if let Some(exact) = exact {
            hint.set_exact(exact);
            return hint;
        }
        let mut open = SizeHint::new();
        open.set_lower(hint.lower() + kept);
        open
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    #[tokio::test]
    async fn a_second_try_gets_the_same_bytes() {
        let replay = Replay::new(Body::full("hello"));
        let mut first = replay.body();
        assert_eq!(first.frame().await.unwrap().unwrap().into_data().unwrap(), "hello");
        let second = replay.body().collect().await.unwrap().to_bytes();
        assert_eq!(second, "hello");
        assert!(first.frame().await.is_none_or(|f| f.is_err()));
    }

    #[tokio::test]
    async fn too_much_is_sent_but_not_kept() {
        let replay = Replay::new(Body::full(vec![0u8; LIMIT + 1]));
        assert_eq!(replay.body().collect().await.unwrap().to_bytes().len(), LIMIT + 1);
        assert!(!replay.is_possible());
    }
}
