//! External authorization of a request: when it is asked, what of the body goes along, and what comes of the answer.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt as _;
use mesh_api::model::{AuthzBody, AuthzService, AuthzSettings};
use tokio::time::sleep_until;

use super::super::authorizer::Caller;
use super::super::filters::ext_authz::{Answer, ExtAuthz, HttpQuestion, METADATA, PARTIAL, Question};
use super::super::local_reply::{LocalReply, Reason};
use super::super::message::{Body, BodyError, RequestHead};
use super::{Exchange, forward};

/// What of a body is shown.
struct Shown {
    bytes: Bytes,
    partial: bool,
    as_bytes: bool,
}

impl Exchange {
    /// Asks whether a request may pass.
    pub(super) async fn ask(
        &mut self,
        filter: &ExtAuthz,
        settings: Option<&Arc<AuthzSettings>>,
        head: &mut RequestHead,
        body: &mut Body,
    ) -> Result<(), LocalReply> {
        let worker = self.session.worker.clone();
        if !filter.applies(&self.recorder.stats().metadata, || worker.rng.next_u64()) {
            let refused = Reason::ExtAuthzError { status: filter.config.status_on_error };
            return if filter.config.deny_at_disable { Err(refused.into()) } else { Ok(()) };
        }
        let shown = match filter.body(settings.map(|s| &**s)) {
            Some(wanted) if !head.wants_tunnel() && !body.is_end_stream() => Some(self.show(wanted, body).await?),
            _ => None,
        };
        let answer = self.answer_of(filter, settings, head, shown).await;
        let failed = |why: String, head: &mut RequestHead| {
            tracing::debug!(filter = %filter.config.stat_prefix, error = %why, "no authorization");
            filter.failed(Some(head)).map_or(Ok(()), Err)
        };
        match answer {
            Err(why) => failed(why, head),
            Ok(Answer::Denied(denial)) => {
                // A refusal stays one, whatever it looks like.
                let status = filter.config.status_on_error;
                Err(denial.reply().unwrap_or_else(|_| Reason::ExtAuthzDenied { status }.into()))
            }
            Ok(Answer::Allowed(mut changes)) => {
                // Half of what was answered is worse than nothing of it.
                let before = (!changes.leaves_request()).then(|| head.clone());
                match changes.apply(head) {
                    Ok(response) => self.finish.told.extend(response),
                    Err(why) => {
                        if let Some(before) = before {
                            *head = before;
                        }
                        return failed(why, head);
                    }
                }
                self.learn(changes.metadata.take());
                self.reroute |= filter.config.clear_route_cache && !changes.leaves_request();
                Ok(())
            }
        }
    }

    /// Keeps what the authorizer has to say to the filters that follow.
    fn learn(&mut self, metadata: Option<serde_json::Value>) {
        if let Some(metadata) = metadata {
            self.recorder.stats().metadata.insert(METADATA.to_owned(), metadata);
        }
    }

    async fn answer_of(
        &mut self,
        filter: &ExtAuthz,
        settings: Option<&Arc<AuthzSettings>>,
        head: &RequestHead,
        shown: Option<Shown>,
    ) -> Result<Answer, String> {
        let session = self.session.clone();
        let snapshot = self.snapshot.clone();
        let alpn = forward::offered(&session);
        let caller = Caller { worker: &session.worker, snapshot: &snapshot, conn: &session.conn, alpn: Some(&alpn) };
        if let AuthzService::Http(service) = &filter.config.service {
            let asked = filter.http_request(head, shown.as_ref().map(|s| s.partial))?;
            let bytes = shown.map(|s| s.bytes).unwrap_or_default();
            return caller.ask_http(filter, service, asked, bytes).await;
        }
        let stats = self.recorder.stats();
        let mut headers = filter.told(head);
        if let Some(shown) = &shown {
            headers.insert(PARTIAL.into(), shown.partial.to_string());
        }
        let id = stats.request_id.as_ref().and_then(|v| v.to_str().ok()).unwrap_or_default();
        let request = HttpQuestion {
            head,
            time: stats.start_time,
            id,
            headers,
            body_as_bytes: shown.as_ref().is_some_and(|s| s.as_bytes),
            body: shown.map(|s| s.bytes),
        };
        let question = Question {
            conn: &session.conn,
            client: stats.client,
            certificate: filter.config.include_certificate,
            tls_session: filter.config.include_tls_session,
            request: Some(request),
            context: settings.map_or(&[], |s| &s.context),
            metadata: filter.metadata(&stats.metadata),
        };
        caller.ask(filter, &*session.worker.shared.services.authz, &question).await
    }

    /// Reads a body as far as it is wanted; what was read comes first in the body that goes on.
    async fn show(&mut self, wanted: AuthzBody, body: &mut Body) -> Result<Shown, LocalReply> {
        let times = self.session.manager.config.timeouts;
        let start = self.recorder.stats().start;
        let request = self.recorder.request.clone();
        let most = usize::try_from(wanted.max_bytes).unwrap_or(usize::MAX);
        let idle = async {
            if times.stream_idle.is_zero() {
                std::future::pending().await
            } else {
                request.standstill(times.stream_idle).await
            }
        };
        let late = async {
            if times.request.is_zero() {
                std::future::pending().await
            } else {
                sleep_until(start + times.request).await
            }
        };
        let mut read = Read::default();
        tokio::select! {
            biased;
            taken = read.take(body, most, wanted.allow_partial) => taken?,
            () = idle => return Err(Reason::StreamIdle { request_complete: false }.into()),
            () = late => return Err(Reason::RequestTimeout { request_complete: false }.into()),
        }
        let mut bytes = BytesMut::with_capacity(read.length.min(most));
        for piece in &read.pieces {
            let room = most - bytes.len();
            bytes.extend_from_slice(piece.get(..room).unwrap_or(piece));
        }
        let partial = !read.ended || read.length > most;
        let rest = if read.ended { Body::Empty } else { std::mem::take(body) };
        *body = Body::wrap(Replayed { pieces: read.pieces, rest, trailers: read.trailers });
        Ok(Shown { bytes: bytes.freeze(), partial, as_bytes: wanted.as_bytes })
    }
}

/// What was read of a body.
#[derive(Default)]
struct Read {
    pieces: VecDeque<Bytes>,
    length: usize,
    trailers: Option<HeaderMap>,
    ended: bool,
}

impl Read {
    async fn take(&mut self, body: &mut Body, most: usize, partial: bool) -> Result<(), LocalReply> {
        while !self.ended {
            if body.is_end_stream() {
                self.ended = true;
                break;
            }
            if self.length > most && !partial {
                return Err(Reason::RequestTooLarge.into());
            }
            if self.length >= most && partial {
                break;
            }
            match body.frame().await {
                None => self.ended = true,
                Some(Err(e)) => return Err(broken(e).into()),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        self.length += data.len();
                        self.pieces.push_back(data);
                    }
                    Err(frame) => {
                        self.trailers = frame.into_trailers().ok();
                        self.ended = true;
                    }
                },
            }
        }
        if self.length > most && !partial { Err(Reason::RequestTooLarge.into()) } else { Ok(()) }
    }
}

fn broken(error: BodyError) -> Reason {
    match error {
        BodyError::Disconnected => Reason::DownstreamDisconnect,
        BodyError::Reset => Reason::DownstreamReset,
        BodyError::Protocol => Reason::MalformedRequest,
        BodyError::Timeout | BodyError::Aborted => Reason::Internal,
    }
}

/// A body of which the beginning has been read already.
struct Replayed {
    pieces: VecDeque<Bytes>,
    rest: Body,
    trailers: Option<HeaderMap>,
}

impl http_body::Body for Replayed {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        if let Some(piece) = this.pieces.pop_front() {
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        if let Some(trailers) = this.trailers.take() {
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
        Pin::new(&mut this.rest).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.pieces.is_empty() && self.trailers.is_none() && self.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let read: u64 = self.pieces.iter().map(|p| p.len() as u64).sum();
        let rest = self.rest.size_hint();
        let mut out = SizeHint::new();
        out.set_lower(rest.lower() + read);
        if let Some(upper) = rest.upper() {
            out.set_upper(upper + read);
        }
        out
    }
}
