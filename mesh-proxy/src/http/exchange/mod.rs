//! One request, end to end: prepared, routed, filtered, forwarded (or answered here), recorded exactly once.

mod body;
mod forward;
mod mirror;
mod prepare;
mod replay;
mod respond;
mod tunnel;

use std::{rc::Rc, sync::Arc};

use http::{HeaderName, HeaderValue};

use self::{
    body::{Recorder, RequestBody},
    respond::Finish,
};
use super::{
    filters::{Filter, Kind, Override, cors, fault, rate_limit::RateLimit, rbac},
    local_reply::{LocalReply, Reason},
    manager::HttpManager,
    message::{Body, RequestHead, ResponseHead},
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
    /// What has to be done to the answer.
    finish: Finish,
}

/// Serves one request.
pub async fn serve(
    session: Rc<Session>,
    mut head: RequestHead,
    body: Body,
    tunnel: Option<PendingTunnel>,
) -> (ResponseHead, Body) {
    let manager = session.manager.clone();
    let stats = ExchangeStats::new(session.conn.clone(), &head);
    let mut x = Exchange {
        snapshot: session.worker.shared.load(),
        recorder: Recorder::new(stats, manager.sink.clone(), session.worker.id),
        finish: Finish::new(head.method == http::Method::HEAD, head.is_grpc()),
        session,
    };
    let body = RequestBody::wrap(body, &x.recorder, x.finish.grpc);
    if let Err(reply) = prepare::prepare(&x.session, &mut head, x.recorder.stats()) {
        return x.reply(reply, None);
    }
    let Some(table) = manager.routes(&x.snapshot) else {
        return x.reply(Reason::RouteConfigMissing.into(), None);
    };
    let found = table.find(&head, &x.session.conn, x.session.worker.rng.next_u64());
    let route = match found {
        Found::Route(route) => Some(route),
        Found::RequireTls => return x.reply(https_redirect(&head), Some(&table)),
        Found::Nothing(host) => {
            x.recorder.stats().virtual_host = host;
            None
        }
    };
    x.note(route.as_ref());
    x.take_peer_metadata(&mut head);
    if let Err(reply) = x.filter(&mut head, route.as_ref()).await {
        capture(&manager.needs.request, &head.headers, &mut x.recorder.stats().captured.request);
        x.finish.route = route;
        return x.reply(reply, Some(&table));
    }
    let Some(route) = route else {
        capture(&manager.needs.request, &head.headers, &mut x.recorder.stats().captured.request);
        return x.reply(Reason::RouteNotFound.into(), Some(&table));
    };
    x.finish.route = Some(route.clone());
    let Some(action) = route.route().map(|r| (&r.action, &r.path)) else {
        return x.reply(Reason::Internal.into(), Some(&table));
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
            capture(&manager.needs.request, &head.headers, &mut x.recorder.stats().captured.request);
            x.reply(reply, Some(&table))
        }
        (Action::Direct { status, body }, _) => {
            capture(&manager.needs.request, &head.headers, &mut x.recorder.stats().captured.request);
            x.reply(LocalReply::direct(*status, body.clone()), Some(&table))
        }
        (Action::NonForwarding, _) => x.reply(Reason::NonForwarding.into(), Some(&table)),
    }
}

fn https_redirect(head: &RequestHead) -> LocalReply {
    let (host, _) = super::message::split_port(head.authority.as_str());
    let location = format!("https://{host}{}", head.target.as_str());
    let mut reply = LocalReply::direct(301, bytes::Bytes::new());
    reply.reason = Reason::RequireTls;
    match HeaderValue::from_str(&location) {
        Ok(location) => reply.with_header(http::header::LOCATION, location),
        Err(_) => Reason::Internal.into(),
    }
}

impl Exchange {
    fn random(&self) -> u64 {
        self.session.worker.rng.next_u64()
    }

    /// Writes down where the request was routed.
    fn note(&mut self, route: Option<&RouteMatch>) {
        let Some(route) = route else { return };
        let stats = self.recorder.stats();
        stats.virtual_host = route.host().map(|h| h.name.clone());
        if let Some(route) = route.route() {
            stats.route_name = (!route.name.is_empty()).then(|| route.name.clone());
            stats.operation = route.operation.clone();
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
        let (mut head, body) = reply.into_message(finish.grpc, finish.head_only);
        respond::finish_head(&session, &mut head, recorder.stats(), &finish, table.map(|t| &**t), true);
        let body = body::ResponseBody::wrap(body, recorder, None, finish.grpc);
        (head, body)
    }

    /// Runs the filters in order.
    async fn filter(&mut self, head: &mut RequestHead, route: Option<&RouteMatch>) -> Result<(), LocalReply> {
        let session = self.session.clone();
        for filter in &session.manager.filters {
            let configured = route.and_then(|r| r.override_of(&filter.name));
            match &configured {
                Some(Override::Disabled) => continue,
                None if filter.disabled => continue,
                _ => {}
            }
            self.one_filter(filter, configured, head).await?;
        }
        Ok(())
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
            (Kind::HealthCheck { pass_through: false, headers }, _) if headers.iter().all(|h| h.matches(head)) => {
                Err(Reason::HealthCheck.into())
            }
            _ => Ok(()),
        }
    }

    fn limit(&mut self, limit: &Arc<RateLimit>) -> Result<(), LocalReply> {
        match limit.check(|| self.session.worker.rng.next_u64()) {
            Some(reply) => {
                self.finish.limited = Some(limit.clone());
                Err(reply)
            }
            None => Ok(()),
        }
    }

    fn authorize(&mut self, filter: &rbac::Filter, head: &RequestHead) -> Result<(), LocalReply> {
        let stats = self.recorder.stats();
        let attributes =
            rbac::Attributes { conn: &self.session.conn, head: Some(head), client: stats.client, metadata: None };
        let decision = filter.check(&attributes);
        if let Some((prefix, verdict)) = decision.shadow {
            stats.shadow.push(ShadowResult { prefix, allowed: verdict.allowed, policy: verdict.policy });
        }
        match decision.denied {
            None => Ok(()),
            Some(policy) => {
                stats.denial = Some(filter.explain(&attributes).into());
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
    /// Configuration of a filter: the route's, else the host's.
    fn override_of(&self, name: &str) -> Option<Override> {
        let of_route = self.route().and_then(|r| r.overrides.get(name));
        of_route.or_else(|| self.host().and_then(|h| h.overrides.get(name))).cloned()
    }
}
