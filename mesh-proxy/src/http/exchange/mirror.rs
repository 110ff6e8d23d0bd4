//! Copies of requests to other clusters. A copy never holds up the request: its body is queued up to a limit, past
//! which the copy is given up, and its answer is thrown away.

use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt as _;
use mesh_api::model::Name;
use tokio::sync::mpsc;

use super::super::message::{Authority, Body, BodyError, RequestHead, split_port};
use super::super::router::Mirror;
use super::Session;
use super::forward::{istio_alpn, tell_peer};
use crate::config::Snapshot;
use crate::upstream::LbContext;
use crate::upstream::pool::SendOptions;

/// Pieces of a body that wait for a slow copy.
const QUEUE: usize = 64;
/// A copy's answer is waited for so long.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is copied beside the body.
pub struct Copied<'a> {
    /// The head as it goes to the route's own cluster.
    pub head: &'a RequestHead,
    /// For consistent balancers.
    pub hash: Option<u64>,
}

/// Sends copies; returns the body that goes on.
pub fn send(
    session: &Rc<Session>,
    snapshot: &Arc<Snapshot>,
    mirrors: &[Mirror],
    copied: &Copied<'_>,
    body: Body,
    mut random: impl FnMut() -> u64,
) -> Body {
    let mut queues = Vec::new();
    for mirror in mirrors.iter().filter(|m| random() % 1_000_000 < u64::from(m.share.0)) {
        let copy = if body.is_end_stream() {
            Body::Empty
        } else {
            let (tx, rx) = mpsc::channel(QUEUE);
            queues.push(tx);
            Body::wrap(Queued(rx))
        };
        let mut head = copied.head.clone();
        if !mirror.keep_host {
            let (host, port) = split_port(head.authority.as_str());
            let port = port.map(|p| format!(":{p}")).unwrap_or_default();
            if let Some(shadow) = Authority::parse(&format!("{host}-shadow{port}")) {
                head.authority = shadow;
            }
        }
        tokio::task::spawn_local(one(
            session.clone(),
            snapshot.clone(),
            mirror.cluster.clone(),
            (head, copied.hash),
            copy,
        ));
    }
    if queues.is_empty() { body } else { Body::wrap(Tee { body, queues }) }
}

async fn one(
    session: Rc<Session>,
    snapshot: Arc<Snapshot>,
    name: Name,
    (mut head, hash): (RequestHead, Option<u64>),
    body: Body,
) {
    let Some(cluster) = snapshot.cluster(&name) else { return };
    let endpoint = if cluster.is_dynamic() {
        cluster.resolve(head.authority.host(), head.authority.port()).await.ok()
    } else {
        let ctx = LbContext { hash, original_dst: session.conn.original_dst, ..LbContext::default() };
        cluster.pick(&ctx, &session.worker.rng).ok()
    };
    let Some(endpoint) = endpoint else { return };
    // What the head says to the peer, and how, was chosen for another cluster.
    tell_peer(&session.manager, cluster, &mut head);
    let alpn = if session.manager.istio_alpn { istio_alpn(cluster, &head) } else { None };
    let alpn: Option<Vec<Name>> = alpn.map(|names| names.iter().map(|n| Name::from(*n)).collect());
    let exchange = async {
        let proxied = Some((session.conn.peer, session.conn.local));
        let options = SendOptions { alpn: alpn.as_deref(), proxied, ..SendOptions::default() };
        if let Ok((_, body)) = session.worker.pools.send(cluster, &endpoint, head, body, &options).await {
            let mut body = body;
            while let Some(Ok(_)) = body.frame().await {}
        }
    };
    let _ = tokio::time::timeout(PATIENCE, exchange).await;
}

/// A copy's body.
struct Queued(mpsc::Receiver<Option<Frame<Bytes>>>);

impl http_body::Body for Queued {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match std::task::ready!(self.0.poll_recv(cx)) {
            Some(Some(frame)) => Poll::Ready(Some(Ok(frame))),
            Some(None) => Poll::Ready(None),
            // Given up, or the client went away.
            None => Poll::Ready(Some(Err(BodyError::Aborted))),
        }
    }
}

/// The request's own body, which is copied on its way.
struct Tee {
    body: Body,
    queues: Vec<mpsc::Sender<Option<Frame<Bytes>>>>,
}

impl http_body::Body for Tee {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let frame = std::task::ready!(Pin::new(&mut this.body).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => this.queues.retain(|q| {
                let copy = match (frame.data_ref(), frame.trailers_ref()) {
                    (Some(data), _) => Frame::data(data.clone()),
                    (None, Some(trailers)) => Frame::trailers(trailers.clone()),
                    (None, None) => return true,
                };
                q.try_send(Some(copy)).is_ok()
            }),
            Some(Err(_)) => this.queues.clear(),
            None => {}
        }
        if frame.is_none() || this.body.is_end_stream() {
            for queue in this.queues.drain(..) {
                let _ = queue.try_send(None);
            }
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
