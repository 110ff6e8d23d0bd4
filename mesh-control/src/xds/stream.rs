//! One client's stream: requests and news in, responses out.
//!
//! Owns the task that drives a [`Session`]: what it listens to and in which order, and what the rest of the control
//! plane sees of the client. Must not know HTTP (`service` does) nor the meaning of resources.

use std::{sync::Arc, time::Duration};

use mesh_api::xds::{
    TypeUrl,
    discovery::{DeltaDiscoveryRequest, DiscoveryRequest},
    envoy::config::core::v3::Node,
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until, timeout},
};
use tonic::{Status, codec::Streaming};

use super::{
    caller::{Caller, Peer},
    encoded::{Encoded, Name},
    generator::{Affected, Generator, Names},
    hub::{Handle, Held, Hub, State},
    nack::{Outcome, Request},
    node::Client,
    push::{Protocol, Response, Session},
    subscription::Resources,
};

/// How long a client may take to introduce itself.
const INTRODUCTION: Duration = Duration::from_secs(30);
/// Who has more than this to look at waits for its turn.
const INLINE: usize = 32;

/// Requests of one stream.
#[derive(Debug)]
pub enum Inbound {
    /// Incremental.
    Delta(Box<Streaming<DeltaDiscoveryRequest>>),
    /// State of the world.
    Sotw(Box<Streaming<DiscoveryRequest>>),
}

enum AnyRequest {
    Delta(DeltaDiscoveryRequest),
    Sotw(DiscoveryRequest),
}

impl Inbound {
    fn protocol(&self) -> Protocol {
        match self {
            Self::Delta(_) => Protocol::Delta,
            Self::Sotw(_) => Protocol::Sotw,
        }
    }

    async fn next(&mut self) -> Result<Option<AnyRequest>, Status> {
        Ok(match self {
            Self::Delta(s) => s.message().await?.map(AnyRequest::Delta),
            Self::Sotw(s) => s.message().await?.map(AnyRequest::Sotw),
        })
    }
}

impl AnyRequest {
    fn node(&self) -> Option<&Node> {
        match self {
            Self::Delta(r) => r.node.as_ref(),
            Self::Sotw(r) => r.node.as_ref(),
        }
    }
    fn type_url(&self) -> &str {
        match self {
            Self::Delta(r) => &r.type_url,
            Self::Sotw(r) => &r.type_url,
        }
    }
}

/// What is to be written to the client.
#[derive(Debug)]
pub enum Out {
    /// A response.
    Response(Response),
    /// The end.
    End(Status),
}

/// Serves one stream until either side ends it.
pub async fn run<G: Generator>(
    hub: Arc<Hub<G>>,
    mut inbound: Inbound,
    out: mpsc::Sender<Out>,
    caller: Caller,
    peer: Peer,
) {
    let result = match begin(&hub, &mut inbound, &out, caller, &peer).await {
        Ok((mut stream, first)) => stream.serve(first, &mut inbound).await,
        Err(status) => Err(status),
    };
    if let Err(status) = result {
        if status.code() == tonic::Code::PermissionDenied {
            hub.metrics.unauthenticated.inc();
        }
        if status.code() != tonic::Code::Ok {
            tracing::info!(target: "xds", peer = ?peer.address, "stream ends: {}", status.message());
        }
        // The client may have gone meanwhile.
        let _ = out.send(Out::End(status)).await;
    }
}

/// Learns who the client is.
async fn begin<G: Generator>(
    hub: &Arc<Hub<G>>,
    inbound: &mut Inbound,
    out: &mpsc::Sender<Out>,
    caller: Caller,
    peer: &Peer,
) -> Result<(Stream<G>, AnyRequest), Status> {
    let first = timeout(INTRODUCTION, inbound.next())
        .await
        .map_err(|_| Status::deadline_exceeded("no request arrived"))??
        .ok_or_else(|| Status::invalid_argument("the stream ended before the first request"))?;
    let node = first.node().ok_or_else(|| Status::invalid_argument("the first request must carry the node"))?;
    let client = Client::read(node, caller.clone(), peer.address).map_err(Status::invalid_argument)?;
    caller.permits(&client).map_err(Status::permission_denied)?;
    let unsynchronised = || Status::unavailable("the control plane has not read its configuration yet");
    if hub.state().is_none() {
        return Err(unsynchronised());
    }
    let protocol = inbound.protocol();
    let handle = hub.join(client, protocol);
    // From here on nothing is missed: the state is taken after joining.
    let joined = hub.state().ok_or_else(unsynchronised).and_then(|state| {
        let view = hub.generator().view(&state.published, &handle.client).map_err(Status::permission_denied)?;
        Ok((state, view))
    });
    let (state, view) = match joined {
        Ok(joined) => joined,
        Err(status) => {
            hub.leave(&handle, []);
            return Err(status);
        }
    };
    tracing::info!(target: "xds", proxy = handle.client.proxy_id(), peer = ?peer.address, ?protocol, "connected");
    let session = Session::new(protocol, rand::random());
    let stream =
        Stream { hub: hub.clone(), handle, session, view, state, out: out.clone(), converging: None, sent: false };
    Ok((stream, first))
}

struct Stream<G: Generator> {
    hub: Arc<Hub<G>>,
    handle: Arc<Handle>,
    session: Session,
    view: G::View,
    /// The state that all changes told to the session led to.
    state: Arc<State<G::Index>>,
    out: mpsc::Sender<Out>,
    /// When the oldest change was seen that the client has not accepted yet.
    converging: Option<Instant>,
    /// Something was sent because of it.
    sent: bool,
}

impl<G: Generator> Drop for Stream<G> {
    fn drop(&mut self) {
        let session = &self.session;
        let names = TypeUrl::ALL.into_iter().flat_map(|ty| session.sub(ty).asked_names().map(move |n| (ty, n)));
        self.hub.leave(&self.handle, names);
        tracing::info!(target: "xds", proxy = self.handle.client.proxy_id(), "disconnected");
    }
}

/// The resources of one client at one state.
struct Snapshot<'a, G: Generator> {
    generator: &'a G,
    state: &'a State<G::Index>,
    view: &'a G::View,
    secrets: bool,
}

impl<G: Generator> Resources for Snapshot<'_, G> {
    fn names(&self, ty: TypeUrl) -> Arc<[Name]> {
        self.generator.names(&self.state.published, self.view, ty)
    }

    fn get(&self, ty: TypeUrl, name: &str) -> Option<Arc<Encoded>> {
        let of = |index| self.generator.generate(index, self.view, ty, name);
        match ty {
            // What has vanished from the newest state stays until that is announced, with everything that used it.
            TypeUrl::Endpoints => of(&self.state.latest).or_else(|| of(&self.state.published)),
            TypeUrl::Secret if !self.secrets => None,
            _ => of(&self.state.published),
        }
    }
}

impl<G: Generator> Stream<G> {
    async fn serve(&mut self, first: AnyRequest, inbound: &mut Inbound) -> Result<(), Status> {
        self.request(&first)?;
        drop(first);
        let (handle, out, stopping) = (self.handle.clone(), self.out.clone(), self.hub.stopping.clone());
        loop {
            self.advance().await?;
            let deadline = self.session.deadline();
            tokio::select! {
                biased;
                () = stopping.cancelled() => return Err(Status::unavailable("the control plane shuts down")),
                () = out.closed() => return Ok(()),
                request = inbound.next() => match request {
                    Ok(Some(request)) => self.request(&request)?,
                    // The client ended its side, or is gone.
                    Ok(None) => return Err(Status::ok("")),
                    Err(status) => return Err(status),
                },
                () = handle.woken() => {}
                () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {}
            }
        }
    }

    /// Takes a request in; what follows from it is for [`Self::advance`].
    fn request(&mut self, request: &AnyRequest) -> Result<(), Status> {
        let Some(ty) = TypeUrl::parse(request.type_url()) else {
            // Other control planes serve more types; a client that asks for them goes on without an answer.
            tracing::debug!(target: "xds", proxy = self.handle.client.proxy_id(), "{:?} is not served", request.type_url());
            return Ok(());
        };
        let now = Instant::now();
        let seen = match request {
            AnyRequest::Delta(r) => {
                let snapshot = Snapshot {
                    generator: self.hub.generator(),
                    state: &self.state,
                    view: &self.view,
                    secrets: self.handle.client.caller.may_have_secrets(),
                };
                self.session.on_delta(ty, r, now, &snapshot)
            }
            AnyRequest::Sotw(r) => self.session.on_sotw(ty, r),
        }
        .map_err(|refused| Status::resource_exhausted(refused.to_string()))?;
        self.hub.subscribed(self.handle.slot, ty, &seen.asked, &seen.unasked, seen.wildcard);
        self.note(ty, &seen, now);
        if self.hub.state().is_some_and(|s| s.edition != self.state.edition) {
            // What changed before the hub knew of the subscription was not told.
            let names = if seen.wildcard == Some(true) { Names::All } else { Names::Some(seen.asked) };
            let mut missed = Affected::none();
            if let Some(slot) = missed.types.get_mut(ty as usize) {
                *slot = names;
            }
            self.session.on_change(missed);
        }
        Ok(())
    }

    /// Keeps account of acknowledgements.
    fn note(&self, ty: TypeUrl, seen: &Request, now: Instant) {
        let Some(outcome) = &seen.outcome else { return };
        let metrics = &self.hub.metrics;
        match outcome {
            Outcome::Nack(why, _) => {
                metrics.rejects.of(ty).inc();
                let proxy = self.handle.client.proxy_id();
                tracing::warn!(target: "xds", proxy, "{} rejected: {why}", ty.short());
            }
            Outcome::Stale => metrics.expired_nonces.of(ty).inc(),
            Outcome::Ack(_) | Outcome::Repeated => {}
        }
        if let Some(acks) = self.handle.acks.lock().get_mut(ty as usize) {
            acks.on_outcome(outcome, now);
        }
    }

    /// Learns what changed.
    fn learn(&mut self) -> Result<(), Status> {
        // First the mail: the state that it speaks of is in place before it is written.
        let mail = self.handle.take_mail();
        let Some(news) = self.hub.news(self.state.number, &self.view) else { return Ok(()) };
        let review = mail.review || news.affected.view;
        self.state = news.state;
        let mut affected = news.affected;
        if review {
            let client = &self.handle.client;
            let view = self.hub.generator().view(&self.state.published, client).map_err(Status::permission_denied)?;
            if view != self.view {
                self.view = view;
                affected = Affected::all();
            }
        }
        self.session.on_change(affected);
        for (ty, name) in mail.touched {
            self.session.on_touch(ty, name);
        }
        let since = [news.since.map(|(since, _)| since), mail.since].into_iter().flatten().min();
        if let Some(since) = since {
            self.converging = Some(self.converging.map_or(since, |old| old.min(since)));
        }
        if let Some((_, pushed)) = news.since {
            self.hub.metrics.queue_time.observe(pushed.elapsed());
        }
        if !mail.queries.is_empty() {
            let held = self.held();
            for query in mail.queries {
                // Whoever asked may have gone.
                let _ = query.send(held.clone());
            }
        }
        Ok(())
    }

    /// Sends what may be sent now.
    async fn advance(&mut self) -> Result<(), Status> {
        self.learn()?;
        let hub = self.hub.clone();
        let turn = if self.session.work() > INLINE {
            let turn = hub.generations.acquire().await.map_err(|_| Status::unavailable("shutting down"))?;
            // The mesh may have moved on while we waited.
            self.learn()?;
            Some(turn)
        } else {
            None
        };
        let start = Instant::now();
        let name = self.state.number.to_string();
        let snapshot = Snapshot {
            generator: hub.generator(),
            state: &self.state,
            view: &self.view,
            secrets: self.handle.client.caller.may_have_secrets(),
        };
        let responses = self.session.poll(start, &snapshot, &name);
        drop(turn);
        let parts = u32::try_from(responses.len()).unwrap_or(1).max(1);
        let took = start.elapsed() / parts;
        for response in responses {
            let ty = response.ty;
            hub.metrics.pushes.of(ty).inc();
            hub.metrics.push_time.of(ty).observe(took);
            if let Some(acks) = self.handle.acks.lock().get_mut(ty as usize) {
                acks.on_sent(&response.nonce, start);
            }
            self.sent = true;
            if self.out.send(Out::Response(response)).await.is_err() {
                return Ok(());
            }
        }
        self.account();
        Ok(())
    }

    /// What `/debug/syncz` and the metrics show.
    fn account(&mut self) {
        {
            let mut acks = self.handle.acks.lock();
            for (ack, ty) in acks.iter_mut().zip(TypeUrl::ALL) {
                let sub = self.session.sub(ty);
                ack.watched = sub.opened;
                ack.resources = sub.len();
                ack.pending = sub.waits();
            }
        }
        if let Some(since) = self.converging
            && self.session.settled()
        {
            self.converging = None;
            if std::mem::take(&mut self.sent) {
                self.hub.metrics.convergence_time.observe(since.elapsed());
            }
        }
    }

    fn held(&self) -> Vec<Held> {
        let held = TypeUrl::ALL.into_iter().map(|ty| {
            let mut resources: Vec<Arc<Encoded>> = self.session.sub(ty).held().cloned().collect();
            resources.sort_unstable_by(|a, b| a.name().cmp(b.name()));
            Held { ty, resources }
        });
        held.filter(|h| !h.resources.is_empty()).collect()
    }
}
