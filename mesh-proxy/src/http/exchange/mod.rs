//! One request, end to end: prepared, routed, filtered, forwarded (or answered here), recorded exactly once.

mod authorize;
mod body;
mod forward;
mod grpc_web;
mod limits;
mod mirror;
mod prepare;
mod replay;
mod respond;
#[cfg(test)]
mod tests;
mod tokens;
mod tunnel;

use std::{rc::Rc, sync::Arc};

use http::{HeaderName, HeaderValue, uri::PathAndQuery};
use mesh_api::model::Name;

pub(crate) use self::prepare::pem;
use self::{
    body::{Recorder, RequestBody},
    respond::Finish,
};
use super::{
    filters::{self, Filter, Kind, Override, cors, fault, rbac},
    local_reply::{LocalReply, Reason},
    manager::HttpManager,
    message::{Authority, Body, RequestHead, ResponseHead},
    router::{Action, Found, RouteMatch, RouteTable},
    server::h1::PendingTunnel,
    stats::{ExchangeStats, PeerHeaders, ShadowResult, capture},
};
use crate::{config::Snapshot, net::ConnInfo, runtime::Worker};

/// What all requests of a client connection share.
#[derive(Debug)]
pub struct Session {
    /// Worker.
    pub worker: Rc<Worker>,
    /// Connection.
    pub conn: Rc<ConnInfo>,
    /// Manager.
    pub manager: Arc<HttpManager>,
}

pub(super) const PEER_ID: HeaderName = HeaderName::from_static("x-envoy-peer-metadata-id");
pub(super) const PEER: HeaderName = HeaderName::from_static("x-envoy-peer-metadata");

/// What is known of a request while it is served.
struct Exchange {
    session: Rc<Session>,
    snapshot: Arc<Snapshot>,
    recorder: Recorder,
    /// The cluster, when the route leads to one.
    chosen: Option<Name>,
    /// What has to be done to the answer.
    finish: Finish,
    /// A filter learned something that routes may ask for: the route is looked for again.
    reroute: bool,
    /// Decide shares of routes, and weights of clusters. Thrown once: a request that is routed anew meets the filters of
    /// the same share, so none is left out.
    dice: [u64; 2],
}

/// Serves one request.
pub async fn serve(
    session: Rc<Session>,
    mut head: RequestHead,
    body: Body,
    tunnel: Option<PendingTunnel>,
) -> (ResponseHead, Body) {
    let manager = session.manager.clone();
    let mut x = Exchange::new(session, &head);
    let mut body = RequestBody::wrap(body, &x.recorder, x.finish.grpc, head.wants_tunnel());
    if let Err(reply) = prepare::prepare(&x.session, &mut head, x.recorder.stats()) {
        return x.turn_down(&head, reply, None);
    }
    // Before anything is decided, so that what is answered here is traced like what is forwarded.
    manager.sink.begin(x.recorder.stats(), &mut head, &|| x.session.worker.rng.next_u64());
    let Some(table) = manager.routes(&x.snapshot) else {
        return x.turn_down(&head, Reason::RouteConfigMissing.into(), None);
    };
    let mut route = match x.find(&table, &head) {
        Ok(route) => route,
        Err(reply) => return x.turn_down(&head, reply, Some(&table)),
    };
    x.take_peer_metadata(&mut head);
    if let Err(reply) = x.filter(&mut head, &mut body, &table, &mut route).await {
        x.finish.route = route;
        return x.turn_down(&head, reply, Some(&table));
    }
    let Some(route) = route else {
        return x.turn_down(&head, Reason::RouteNotFound.into(), Some(&table));
    };
    x.finish.route = Some(route.clone());
    let Some(action) = route.route().map(|r| (&r.action, &r.path)) else {
        return x.turn_down(&head, Reason::Internal.into(), Some(&table));
    };
    match action {
        (Action::Forward(_), _) => forward::forward(x, head, body, tunnel, &route).await,
        (Action::Redirect(redirect), path) => {
            let location = redirect.location(&head, path);
            let reply = LocalReply::direct(redirect.code, bytes::Bytes::new());
            let reply = match HeaderValue::from_str(&location) {
                Ok(location) => reply.with_header(http::header::LOCATION, location),
                Err(_) => Reason::Internal.into(),
            };
            x.turn_down(&head, reply, Some(&table))
        }
        (Action::Direct { status, body }, _) => {
            x.turn_down(&head, LocalReply::direct(*status, body.clone()), Some(&table))
        }
        (Action::NonForwarding, _) => x.turn_down(&head, Reason::NonForwarding.into(), Some(&table)),
    }
}

/// Answers a request of which no more is looked at: its head is none, or may mean two things.
pub fn refuse(session: Rc<Session>, head: &RequestHead, reason: Reason) -> (ResponseHead, Body) {
    let mut x = Exchange::new(session, head);
    let stats = x.recorder.stats();
    stats.request_header_bytes = respond::header_bytes(&head.headers);
    x.recorder.request.end();
    x.reply(reason.into(), None)
}

/// Records a request that the codec refused by itself: its head could not even be read.
pub fn refused(session: Rc<Session>, reason: Reason) {
    let method = http::Method::from_bytes(b"-").unwrap_or_default();
    let nothing = RequestHead::new(method, Authority::empty(), PathAndQuery::from_static("*"));
    let mut x = Exchange::new(session, &nothing);
    let stats = x.recorder.stats();
    stats.status = reason.status();
    stats.end_with(reason);
    x.recorder.finish();
}

fn https_redirect(head: &RequestHead) -> LocalReply {
    // As Envoy does it: a port stays, even one that https does not have.
    let location = format!("https://{}{}", head.authority.as_str(), head.target.as_str());
    let mut reply = LocalReply::direct(301, bytes::Bytes::new());
    reply.reason = Reason::RequireTls;
    match HeaderValue::from_str(&location) {
        Ok(location) => reply.with_header(http::header::LOCATION, location),
        Err(_) => Reason::Internal.into(),
    }
}

impl Exchange {
    fn new(session: Rc<Session>, head: &RequestHead) -> Self {
        let stats = Box::new(ExchangeStats::new(session.conn.clone(), head));
        Self {
            snapshot: session.worker.shared.load(),
            recorder: Recorder::new(stats, session.manager.sink.clone(), session.worker.id),
            finish: Finish::new(head.method == http::Method::HEAD, head.is_grpc()),
            dice: [session.worker.rng.next_u64(), session.worker.rng.next_u64()],
            chosen: None,
            reroute: false,
            session,
        }
    }

    /// Answers a request that goes nowhere; what the access log wants of its headers is kept first.
    fn turn_down(
        mut self,
        head: &RequestHead,
        reply: LocalReply,
        table: Option<&Arc<RouteTable>>,
    ) -> (ResponseHead, Body) {
        let wanted = &self.session.manager.needs.request;
        capture(wanted, &head.headers, &mut self.recorder.stats().captured.request);
        self.reply(reply, table)
    }

    fn random(&self) -> u64 {
        self.session.worker.rng.next_u64()
    }

    /// Looks for the route by what is known of the request so far.
    fn find(&mut self, table: &Arc<RouteTable>, head: &RequestHead) -> Result<Option<RouteMatch>, LocalReply> {
        let [share, _] = self.dice;
        let stats = self.recorder.stats();
        let route = match table.find(head, &stats.conn, share, &stats.metadata) {
            Found::Route(route) => Some(route),
            Found::RequireTls => return Err(https_redirect(head)),
            Found::Nothing(host) => {
                stats.virtual_host = host;
                None
            }
        };
        self.note(route.as_ref());
        self.choose(route.as_ref(), head);
        Ok(route)
    }

    /// Writes down where the request was routed.
    fn note(&mut self, route: Option<&RouteMatch>) {
        let stats = self.recorder.stats();
        let Some(route) = route else {
            (stats.route_name, stats.operation) = (None, None);
            return;
        };
        stats.virtual_host = route.host().map(|h| h.name.clone());
        if let Some(route) = route.route() {
            stats.route_name = (!route.name.is_empty()).then(|| route.name.clone());
            stats.operation = route.operation.clone();
        }
    }

    /// Which cluster it will be, before filters run: one of several may configure them.
    fn choose(&mut self, route: Option<&RouteMatch>, head: &RequestHead) {
        (self.chosen, self.finish.weighted) = (None, None);
        if let Some(Action::Forward(forward)) = route.and_then(RouteMatch::route).map(|r| &r.action)
            && let Some((cluster, weighted)) = forward.choose(head, self.dice[1])
        {
            (self.chosen, self.finish.weighted) = (Some(cluster), weighted);
        }
    }

    /// Peer metadata counts only from peers that proved who they are; nobody else gets to see it.
    fn take_peer_metadata(&mut self, head: &mut RequestHead) {
        let Some(own) = &self.session.manager.metadata else { return };
        let peer = PeerHeaders { id: head.headers.remove(PEER_ID), metadata: head.headers.remove(PEER) };
        let proven = self.session.conn.tls.as_ref().is_some_and(|t| t.spiffe().is_some());
        if own.config.downstream_discovery && proven {
            self.finish.peer_asked = peer.metadata.is_some() && own.config.downstream_propagation;
            self.recorder.stats().downstream_peer = peer;
        }
    }

    /// An answer of our own.
    fn reply(self, reply: LocalReply, table: Option<&Arc<RouteTable>>) -> (ResponseHead, Body) {
        let Exchange { session, mut recorder, finish, .. } = self;
        let stats = recorder.stats();
        stats.end_with(reply.reason.clone());
        if let Reason::UpstreamReset { transport, .. } = &reply.reason {
            stats.transport_failure = transport.clone();
        }
        // Nobody is there to read it, but for a client that closed its half in the middle of a body.
        let gone = reply.status == 0;
        let reply = if gone { LocalReply { status: 400, ..reply } } else { reply };
        let (mut head, mut body) = reply.into_message(finish.grpc && finish.web.is_none(), finish.head_only);
        if let Some(web) = finish.web {
            body = web.answer(&mut head, body);
        }
        respond::finish_head(&session, &mut head, recorder.stats(), &finish, table.map(|t| &**t), true);
        if gone {
            recorder.stats().status = 0;
        }
        let body = body::ResponseBody::wrap(body, recorder, None, finish.grpc);
        (head, body)
    }

    /// Runs the filters in order.
    async fn filter(
        &mut self,
        head: &mut RequestHead,
        body: &mut Body,
        table: &Arc<RouteTable>,
        route: &mut Option<RouteMatch>,
    ) -> Result<(), LocalReply> {
        let session = self.session.clone();
        for filter in &session.manager.filters {
            let configured = route.as_ref().and_then(|r| r.override_of(&filter.name, self.finish.weighted));
            match &configured {
                Some(Override::Disabled) => continue,
                None if filter.disabled => continue,
                _ => {}
            }
            match (&filter.kind, configured) {
                // Asking takes far more state than what is decided here; few requests need it.
                (Kind::ExtAuthz(f), Some(Override::ExtAuthz(s))) => Box::pin(self.ask(f, Some(&s), head, body)).await?,
                (Kind::ExtAuthz(f), _) => Box::pin(self.ask(f, None, head, body)).await?,
                (Kind::GrpcWeb, _) => self.translate(head, body),
                (Kind::GlobalLimit(f), configured) => {
                    let settings = match &configured {
                        Some(Override::GlobalLimit(s)) => Some(&**s),
                        _ => None,
                    };
                    if let Some(route) = route.as_ref() {
                        Box::pin(self.limit_globally(f, settings, route, head)).await?;
                    }
                }
                (_, configured) => self.one_filter(filter, configured, head).await?,
            }
            if std::mem::take(&mut self.reroute) {
                *route = self.find(table, head)?;
            }
        }
        Ok(())
    }

    /// Keeps a session at its endpoint.
    fn pin(&mut self, session: Arc<filters::session::Session>, head: &RequestHead) {
        if session.applies(head) {
            let wanted = session.wanted(head);
            self.finish.session = Some(Box::new((session, wanted)));
        }
    }

    /// A call of gRPC-Web goes on as one of gRPC, and counts as one.
    fn translate(&mut self, head: &mut RequestHead, body: &mut Body) {
        let Some(web) = grpc_web::translate(head, body, &self.recorder.request) else { return };
        self.finish.web = Some(web);
        self.finish.grpc = true;
        self.recorder.stats().grpc = true;
    }

    async fn one_filter(
        &mut self,
        filter: &Filter,
        configured: Option<Override>,
        head: &mut RequestHead,
    ) -> Result<(), LocalReply> {
        match (&filter.kind, configured) {
            (Kind::Rbac(_), Some(Override::Rbac(f))) => self.authorize(&f, head),
            (Kind::Rbac(f), _) => self.authorize(f, head),
            (Kind::Fault(_), Some(Override::Fault(f))) => self.inject(&f, head).await,
            (Kind::Fault(f), _) => self.inject(f, head).await,
            (Kind::Cors, Some(Override::Cors(policy))) => match policy.request(head, self.random()) {
                cors::Outcome::None => Ok(()),
                cors::Outcome::Reply(reply) => Err(*reply),
                cors::Outcome::Mark(origin) => {
                    self.finish.cors = Some((policy, origin));
                    Ok(())
                }
            },
            (Kind::Jwt(f), Some(Override::JwtRequirement(name))) => self.authenticate(f, Some(&name), head).await,
            (Kind::Jwt(f), _) => self.authenticate(f, None, head).await,
            (Kind::RateLimit(_), Some(Override::RateLimit(limit))) => self.limit(&limit),
            (Kind::RateLimit(limit), _) => self.limit(limit),
            (Kind::HeaderMutation(request, _), None | Some(Override::Enabled)) => {
                request.apply_request(head, self.recorder.stats());
                Ok(())
            }
            (Kind::HeaderMutation(..), Some(Override::HeaderMutation(ops))) => {
                ops.0.apply_request(head, self.recorder.stats());
                self.finish.mutations.push(ops);
                Ok(())
            }
            (Kind::Session(_), Some(Override::Session(session))) => {
                self.pin(session, head);
                Ok(())
            }
            (Kind::Session(Some(session)), _) => {
                self.pin(session.clone(), head);
                Ok(())
            }
            (Kind::HealthCheck(check), _) if check.is_one(head) => {
                let stats = self.recorder.stats();
                stats.health_check = true;
                // Nobody looks at spans of these.
                if let Some(trace) = &mut stats.trace {
                    trace.sampled = false;
                }
                self.finish.health_check = Some(check.clone());
                let members = |name: &str| {
                    let stats = &self.snapshot.cluster(name)?.stats;
                    Some((stats.membership_total.get(), stats.membership_healthy.get()))
                };
                check.answer(tokio::time::Instant::now(), members).map_or(Ok(()), Err)
            }
            (Kind::Unconfigured, _) => Err(Reason::FilterConfigMissing.into()),
            _ => Ok(()),
        }
    }

    fn authorize(&mut self, filter: &rbac::Filter, head: &RequestHead) -> Result<(), LocalReply> {
        let stats = self.recorder.stats();
        let (conn, metadata) = (&self.session.conn, Some(&stats.metadata));
        let attributes = rbac::Attributes { conn, head: Some(head), client: stats.client, metadata };
        let decision = filter.check(&attributes);
        let why = decision.denied.is_some().then(|| filter.explain(&attributes).into());
        if let Some((prefix, verdict)) = decision.shadow {
            rbac::note_shadow(&mut stats.metadata, rbac::HTTP_METADATA, &prefix, &verdict);
            stats.shadow.push(ShadowResult { prefix, allowed: verdict.allowed, policy: verdict.policy });
        }
        match decision.denied {
            None => Ok(()),
            Some(policy) => {
                stats.denial = why;
                Err(Reason::RbacDenied(policy).into())
            }
        }
    }

    async fn inject(&mut self, faults: &fault::Fault, head: &RequestHead) -> Result<(), LocalReply> {
        let worker = self.session.worker.clone();
        let Some(active) = faults.choose(head, || worker.rng.next_u64()) else { return Ok(()) };
        if let Some(delay) = active.delay {
            tokio::time::sleep(delay).await;
            self.recorder.stats().flags.insert(super::local_reply::ResponseFlags::DI);
        }
        match active.abort {
            Some(abort) => Err(fault::reply(abort)),
            None => Ok(()),
        }
    }
}

impl RouteMatch {
    /// Configuration of a filter: of the cluster chosen among several, else the route's, else the host's.
    fn override_of(&self, name: &str, weighted: Option<usize>) -> Option<Override> {
        let route = self.route();
        let of_cluster = route.zip(weighted).and_then(|(r, i)| r.weighted(i)?.overrides.get(name));
        let of_route = || route.and_then(|r| r.overrides.get(name));
        of_cluster.or_else(of_route).or_else(|| self.host().and_then(|h| h.overrides.get(name))).cloned()
    }
}
