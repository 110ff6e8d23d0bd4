//! `AggregatedDiscoveryService` on HTTP: which path is which protocol, who may call, and how a stream's responses
//! become the body of an answer.
//!
//! Not tonic's encoder: that would copy a whole configuration into a buffer per client before the first byte is sent.
//! Here chunks are made while HTTP/2 takes them.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderMap, HeaderValue, Request, Response, header};
use http_body::Frame;
use tokio::{sync::mpsc, time::Instant};
use tonic::{
    Status,
    body::Body,
    codec::{BufferSettings, Streaming},
    server::NamedService,
};
use tonic_prost::ProstDecoder;
use tower::Service;

use super::{
    caller::{Authenticate, Caller, Peer, bearer},
    framing::Frames,
    generator::Generator,
    hub::Hub,
    stream::{self, Inbound, Out},
};
use crate::metrics::Metrics;

/// Responses that may wait for a slow connection. A client that follows the protocol has one per type.
const QUEUE: usize = 16;

/// The service, for one listening address.
pub struct Ads<G: Generator> {
    hub: Arc<Hub<G>>,
    /// `None`: plaintext, nobody is authenticated.
    authenticate: Option<Arc<dyn Authenticate>>,
    /// Largest request, in bytes.
    max_request: usize,
}

impl<G: Generator> std::fmt::Debug for Ads<G> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ads").field("authenticate", &self.authenticate).finish_non_exhaustive()
    }
}

impl<G: Generator> Clone for Ads<G> {
    fn clone(&self) -> Self {
        Self { hub: self.hub.clone(), authenticate: self.authenticate.clone(), max_request: self.max_request }
    }
}

impl<G: Generator> Ads<G> {
    /// For a plaintext address (`None`) or one with TLS. A request of more than `max_request` bytes ends its stream; a
    /// client that comes back names every resource it has, with its version.
    pub fn new(hub: Arc<Hub<G>>, authenticate: Option<Arc<dyn Authenticate>>, max_request: usize) -> Self {
        Self { hub, authenticate, max_request }
    }

    async fn answer(self, request: Request<Body>) -> Result<Response<Body>, Status> {
        let delta = match request.uri().path() {
            "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources" => true,
            "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources" => false,
            path => return Err(Status::unimplemented(format!("{path} is not served"))),
        };
        let peer = request.extensions().get::<Peer>().cloned().unwrap_or_default();
        let caller = match &self.authenticate {
            None => Caller::Unauthenticated,
            Some(authenticate) => {
                let bearer = bearer(request.headers()).map_err(Status::unauthenticated)?;
                Caller::Workload(authenticate.authenticate(&peer, bearer).await.map_err(Status::unauthenticated)?)
            }
        };
        let body = request.into_body();
        let settings = BufferSettings::default();
        let inbound = if delta {
            let decoder = ProstDecoder::new(settings);
            Inbound::Delta(Box::new(Streaming::new_request(decoder, body, None, Some(self.max_request))))
        } else {
            let decoder = ProstDecoder::new(settings);
            Inbound::Sotw(Box::new(Streaming::new_request(decoder, body, None, Some(self.max_request))))
        };
        let (out, rx) = mpsc::channel(QUEUE);
        let metrics = self.hub.metrics.clone();
        tokio::spawn(stream::run(self.hub, inbound, out, caller, peer));
        let mut response = Response::new(Body::new(StreamBody { rx, current: None, metrics, ended: false }));
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        Ok(response)
    }
}

impl<G: Generator> NamedService for Ads<G> {
    const NAME: &'static str = "envoy.service.discovery.v3.AggregatedDiscoveryService";
}

impl<G: Generator> Service<Request<Body>> for Ads<G> {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let this = self.clone();
        Box::pin(async move {
            let metrics = this.hub.metrics.clone();
            Ok(this.answer(request).await.unwrap_or_else(|status| {
                if status.code() == tonic::Code::Unauthenticated {
                    metrics.unauthenticated.inc();
                }
                tracing::info!(target: "xds", "stream refused: {}", status.message());
                status.into_http()
            }))
        })
    }
}

/// Responses of a stream, framed while they are taken.
struct StreamBody {
    rx: mpsc::Receiver<Out>,
    current: Option<(Frames, Instant)>,
    metrics: Arc<Metrics>,
    ended: bool,
}

impl http_body::Body for StreamBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        loop {
            if self.ended {
                return Poll::Ready(None);
            }
            if let Some((frames, since)) = &mut self.current {
                if let Some(chunk) = frames.next_chunk() {
                    return Poll::Ready(Some(Ok(Frame::data(chunk))));
                }
                let took = since.elapsed();
                self.metrics.send_time.observe(took);
                self.current = None;
            }
            let status = match ready!(self.rx.poll_recv(cx)) {
                Some(Out::Response(response)) => {
                    let ty = response.ty;
                    let frames = Frames::new(response);
                    #[allow(clippy::cast_precision_loss)]
                    self.metrics.config_size.of(ty).value(frames.size() as f64);
                    self.current = Some((frames, Instant::now()));
                    continue;
                }
                Some(Out::End(status)) => status,
                None => {
                    self.metrics.internal_errors.inc();
                    Status::internal("the stream ended without a reason")
                }
            };
            self.ended = true;
            let mut trailers = HeaderMap::new();
            if status.add_header(&mut trailers).is_err() {
                trailers.insert("grpc-status", HeaderValue::from_static("13"));
            }
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }
}
