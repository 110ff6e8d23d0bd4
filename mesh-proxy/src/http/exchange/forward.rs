//! Forwarding: cluster, endpoint, tries, deadlines. Retries wrap only the choice of an endpoint and sending to it.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, header};
use http_body::Body as _;
use mesh_api::model::Name;
use tokio::time::{Instant, sleep, sleep_until};

use super::super::headers;
use super::super::local_reply::{LocalReply, Reason, Reset, ResponseFlags};
use super::super::manager::HttpManager;
use super::super::message::{Authority, Body, BodyError, RequestHead, ResponseHead};
use super::super::retry::{Failed, RetryPolicy};
use super::super::router::{Action, Forward, HostRewrite, Route, RouteMatch};
use super::super::server::h1::PendingTunnel;
use super::super::stats::{PeerHeaders, capture};
use super::body::{Deadlines, RequestCounts, ResponseBody};
use super::replay::Replay;
use super::{Exchange, PEER, PEER_ID, Session, grpc_web, mirror, respond, tunnel};
use crate::upstream::pool::{Leased, SendOptions};
use crate::upstream::stats::{Counter, RouteStats};
use crate::upstream::{
    Cluster, Endpoint, ErrorKind, LbContext, Outcome, PickError, Priority, Unresolved, UpstreamError,
    circuit::RetryPermit,
};

const EXPECTED_TIMEOUT: HeaderName = HeaderName::from_static("x-envoy-expected-rq-timeout-ms");
const REQUEST_TIMEOUT: &str = "x-envoy-upstream-rq-timeout-ms";
const TRY_TIMEOUT: &str = "x-envoy-upstream-rq-per-try-timeout-ms";
/// What the request asked of this proxy, which is nothing to the next one.
const ASKED: [&str; 6] = [
    REQUEST_TIMEOUT,
    TRY_TIMEOUT,
    "x-envoy-retry-on",
    "x-envoy-retry-grpc-on",
    "x-envoy-retriable-status-codes",
    "x-envoy-max-retries",
];
const ATTEMPTS: HeaderName = HeaderName::from_static("x-envoy-attempt-count");
const ORIGINAL_PATH: HeaderName = HeaderName::from_static("x-envoy-original-path");

/// What governs the tries of one request.
struct Plan<'r> {
    cluster: Arc<Cluster>,
    /// The host that the client asked for, where endpoints are found by name.
    asked: Option<Authority>,
    /// The endpoint that was found so.
    found: Option<Arc<Endpoint>>,
    policy: Option<Cow<'r, RetryPolicy>>,
    /// When the filters before were through; what they held back does not count into the timeout.
    begun: Instant,
    /// The request has arrived and been let through, and all tries together may take this long.
    timeout: Option<Duration>,
    /// The request has arrived and has a connection, and the answer may take this long to begin.
    per_try: Option<Duration>,
    /// The same, and no piece of the answer may take longer.
    per_try_idle: Option<Duration>,
    /// A tunnel is asked for, by this protocol unless by plain CONNECT.
    tunnel: bool,
    upgrade: Option<HeaderValue>,
    version: http::Version,
    priority: Priority,
    hash: Option<u64>,
    alpn: Option<&'static [&'static str]>,
    attempt_count: bool,
    auto_host: bool,
    /// Something must move within this.
    idle: Option<Duration>,
    /// The request must have arrived completely by then.
    arrival: Option<Instant>,
    /// Everything must be over by then.
    end: Option<Instant>,
    /// The route's own counters.
    counters: Option<&'r RouteStats>,
}

/// Forwards a request and passes the answer on.
pub async fn forward(
    mut x: Exchange,
    mut head: RequestHead,
    body: Body,
    downstream: Option<PendingTunnel>,
    found: &RouteMatch,
) -> (ResponseHead, Body) {
    let found = found.clone();
    let Some((route, action)) = found.route().and_then(forwarding) else {
        return x.turn_down(&head, Reason::Internal.into(), None);
    };
    if let Err(reply) = upgrade_allowed(&x, action, &head) {
        return x.turn_down(&head, reply, None);
    }
    let mut plan = match x.plan(&found, route, action, &mut head) {
        Ok(plan) => plan,
        Err(reply) => return x.turn_down(&head, reply, None),
    };
    if let Some(asked) = plan.asked.take() {
        // Only few clusters are found by name; their future is not kept.
        match Box::pin(x.resolve(&plan, &asked)).await {
            Ok(endpoint) => plan.found = Some(endpoint),
            Err(reason) => return x.turn_down(&head, reason.into(), None),
        }
        plan.begun = Instant::now();
    }
    let worker = x.session.worker.clone();
    let copied = mirror::Copied { head: &head, hash: plan.hash };
    let body = mirror::send(&x.session, &x.snapshot, &action.mirrors, &copied, body, || worker.rng.next_u64());
    let sent = x.tries(&plan, head, body).await;
    match sent {
        Ok((answer, body)) => {
            if let Some(counters) = plan.counters {
                counters.ended(answer.status.as_u16());
            }
            let foreign = x.finish.web.is_some() && answer.tunnel.is_none() && !grpc_web::speaks_grpc(&answer);
            let body = if foreign { Box::pin(grpc_web::words(body)).await } else { body };
            x.answer(&plan, answer, body, downstream)
        }
        Err(reason) => {
            let reply = LocalReply::from(reason);
            // A client that is gone has no status.
            if let Some(counters) = plan.counters.filter(|_| reply.status > 0) {
                counters.ended(reply.status);
            }
            x.reply(reply, None)
        }
    }
}

fn forwarding(route: &Route) -> Option<(&Route, &Forward)> {
    match &route.action {
        Action::Forward(forward) => Some((route, forward)),
        _ => None,
    }
}

/// A request for an upgrade that nobody allowed is refused, not silently made a plain request.
fn upgrade_allowed(x: &Exchange, action: &Forward, head: &RequestHead) -> Result<(), LocalReply> {
    let kind = match &head.upgrade {
        Some(kind) => kind.to_str().unwrap_or_default().to_ascii_lowercase(),
        None if head.method == http::Method::CONNECT => "connect".to_owned(),
        None => return Ok(()),
    };
    let find = |list: &[(Box<str>, bool)]| list.iter().find(|(k, _)| **k == *kind).map(|(_, on)| *on);
    match find(&action.upgrades).or_else(|| find(&x.session.manager.upgrades)) {
        Some(true) => Ok(()),
        _ => Err(Reason::UpgradeFailed.into()),
    }
}

impl Exchange {
    /// Chooses the cluster and changes the head as it goes upstream.
    fn plan<'r>(
        &mut self,
        found: &'r RouteMatch,
        route: &'r Route,
        action: &'r Forward,
        head: &mut RequestHead,
    ) -> Result<Plan<'r>, LocalReply> {
        let not_found = LocalReply::from(Reason::ClusterNotFound { status: action.not_found_status });
        let Some(name) = self.chosen.take() else { return Err(not_found) };
        self.recorder.stats().cluster_name = Some(name.clone());
        let Some(cluster) = self.snapshot.cluster(&name).cloned() else { return Err(not_found) };
        self.recorder.stats().cluster = Some(cluster.clone());
        let asked = cluster.is_dynamic().then(|| head.authority.clone());
        // Filters may have set them, clients cannot: mostly there is none.
        let asks = headers::carries(&head.headers, &ASKED);
        let timeout = timeout(action, head, asks);
        let policy = action.retry.as_ref().or_else(|| found.host()?.retry.as_ref());
        let policy = if asks { RetryPolicy::adjusted(policy, head).map(Cow::Owned) } else { policy.map(Cow::Borrowed) };
        let per_try = per_try_timeout(policy.as_deref(), head, asks, timeout);
        if asks {
            headers::remove(&mut head.headers, &ASKED);
        }
        self.change_head(found, route, action, head, per_try.or(timeout));
        let hashed = action.hash.hash(head, self.recorder.stats());
        self.finish.cookies = hashed.set_cookies;
        let alpn = if self.session.manager.istio_alpn { istio_alpn(&cluster, head) } else { None };
        tell_peer(&self.session.manager, &cluster, head);
        capture(&self.session.manager.needs.request, &head.headers, &mut self.recorder.stats().captured.request);
        let times = &self.session.manager.config.timeouts;
        let start = self.recorder.stats().start;
        let set = |d: Duration| (!d.is_zero()).then_some(d);
        Ok(Plan {
            idle: set(action.idle_timeout.unwrap_or(times.stream_idle)),
            arrival: set(times.request).map(|d| start + d),
            end: action.max_stream.or(set(times.max_stream)).map(|d| start + d),
            cluster,
            asked,
            found: None,
            per_try_idle: policy.as_ref().and_then(|p| p.per_try_idle_timeout),
            policy,
            begun: Instant::now(),
            timeout,
            per_try,
            tunnel: head.wants_tunnel(),
            upgrade: head.upgrade.clone(),
            version: head.version,
            priority: if action.high_priority { Priority::High } else { Priority::Default },
            hash: hashed.hash,
            alpn,
            attempt_count: found.host().is_some_and(|h| h.attempt_count_in_request),
            auto_host: matches!(action.host_rewrite, Some(HostRewrite::Auto)),
            counters: route.counters.as_deref(),
        })
    }

    /// Rewrites, header operations, Envoy's own headers.
    fn change_head(
        &mut self,
        found: &RouteMatch,
        route: &Route,
        action: &Forward,
        head: &mut RequestHead,
        expected: Option<Duration>,
    ) {
        let before = (head.target.clone(), head.authority.clone());
        if let Some(target) = action.rewritten(head, &route.path) {
            if !self.session.manager.suppress_envoy_headers
                && let Ok(value) = HeaderValue::from_str(head.target.as_str())
            {
                head.headers.insert(ORIGINAL_PATH, value);
            }
            head.target = target;
        }
        let weighted = self.finish.weighted.and_then(|i| route.weighted(i));
        let literal = weighted.and_then(|w| w.host_rewrite.as_ref()).map(|h| h.to_string());
        let rewritten = literal.or_else(|| match action.host_rewrite.as_ref()? {
            HostRewrite::Literal(host) => Some(host.to_string()),
            HostRewrite::Header(name) => head.headers.get(name)?.to_str().ok().map(str::to_owned),
            HostRewrite::Auto => None,
        });
        if let Some(new) = rewritten.and_then(|h| Authority::parse(&h)) {
            if action.keep_host {
                head.headers.insert("x-forwarded-host", head.authority.as_value().clone());
            }
            head.authority = new;
        }
        let stats = self.recorder.stats();
        if let Some(weighted) = weighted {
            weighted.headers.request.apply_request(head, stats);
        }
        route.headers.request.apply_request(head, stats);
        if let Some(host) = found.host() {
            host.headers.request.apply_request(head, stats);
        }
        found.table().headers.request.apply_request(head, stats);
        if let Some(expected) = expected
            && !self.session.manager.suppress_envoy_headers
        {
            let millis = u64::try_from(expected.as_millis()).unwrap_or(u64::MAX);
            head.headers.insert(EXPECTED_TIMEOUT, self.session.worker.expected_timeout.value(millis));
        }
        if before.0 != head.target || before.1 != head.authority {
            stats.sent = Some(Box::new((head.target.clone(), head.authority.clone())));
        }
    }

    /// Tries until there is an answer to pass on, or nothing more to try.
    async fn tries(&mut self, plan: &Plan<'_>, head: RequestHead, body: Body) -> Result<(ResponseHead, Body), Reason> {
        let retries = plan.policy.as_ref().map_or(0, |p| p.retries);
        // What has no body is sent again as it is.
        let keep = retries > 0 && !body.is_end_stream();
        let (replay, mut once) = if keep { (Some(Replay::new(body)), None) } else { (None, Some(body)) };
        let mut head = Some(head);
        let mut tried: Vec<Arc<Endpoint>> = Vec::new();
        let mut permit = None;
        loop {
            let attempt = self.recorder.stats().attempts;
            // What is known of the try before is not of this one.
            self.recorder.stats().upstream = None;
            let endpoint = self.pick(plan, &tried, attempt)?;
            self.recorder.stats().attempts += 1;
            self.recorder.stats().endpoint = Some(endpoint.clone());
            let last = attempt >= retries;
            let Some(mut sending) = (if last { head.take() } else { head.clone() }) else {
                return Err(Reason::Internal);
            };
            if plan.attempt_count {
                sending.headers.insert(ATTEMPTS, HeaderValue::from(attempt + 1));
            }
            if attempt > 0 {
                self.expect_less(plan, &mut sending);
            }
            if plan.auto_host
                && let Some(host) = Authority::parse(&endpoint.config.hostname).filter(|h| !h.is_empty())
            {
                sending.authority = host;
            }
            let body = match &replay {
                Some(replay) => replay.body(),
                None => once.take().unwrap_or_default(),
            };
            let outcome = self.attempt(plan, &endpoint, sending, body).await;
            drop(permit.take());
            let again = replay.as_ref().is_none_or(Replay::is_possible);
            permit = self.retry(plan, &outcome, attempt, again);
            let Some(policy) = plan.policy.as_deref().filter(|_| permit.is_some()) else {
                return outcome.map_err(|ended| ended.reason(attempt > 0, &self.recorder.request));
            };
            drop(outcome);
            tried.push(endpoint);
            let pause = policy.backoff(attempt + 1, self.random());
            if let Some(ended) = self.pause(plan, pause).await {
                return Err(ended.reason(attempt > 0, &self.recorder.request));
            }
        }
    }

    /// What the tries before have used up of the time for all, this one does not have.
    fn expect_less(&self, plan: &Plan<'_>, head: &mut RequestHead) {
        let (Some(all), Some(expected)) = (plan.timeout, head.headers.get_mut(EXPECTED_TIMEOUT)) else { return };
        let used = self.recorder.request.ended_at().map_or(Duration::ZERO, |end| end.elapsed());
        let left = plan.per_try.unwrap_or(all).min(all.saturating_sub(used)).max(Duration::from_millis(1));
        *expected = HeaderValue::from(u64::try_from(left.as_millis()).unwrap_or(u64::MAX));
    }

    /// The right to try once more. An outcome that would be worth it and must do all the same is marked: there were
    /// tries enough (URX), or there are too many retries of others (UO).
    fn retry(
        &mut self,
        plan: &Plan<'_>,
        outcome: &Result<(ResponseHead, Body), Ended>,
        attempt: u32,
        again: bool,
    ) -> Option<RetryPermit> {
        let policy = plan.policy.as_deref().filter(|_| again)?;
        let counters = &plan.cluster.stats;
        let count = |cluster: &Counter, route: fn(&RouteStats) -> &Counter| {
            cluster.inc();
            if let Some(counters) = plan.counters {
                route(counters).inc();
            }
        };
        let wanted = match outcome {
            Ok((answer, _)) => policy.wants_answer(answer.status.as_u16(), &answer.headers),
            Err(Ended::Upstream(e)) => policy.wants_failure(Failed::Upstream(e)),
            Err(Ended::PerTry | Ended::PerTryIdle) => policy.wants_failure(Failed::PerTryTimeout),
            Err(Ended::Total | Ended::Idle | Ended::Arrival | Ended::Life) => false,
        };
        if !wanted {
            if attempt > 0 && outcome.is_ok() {
                count(&counters.upstream_rq_retry_success, |r| &r.upstream_rq_retry_success);
            }
            return None;
        }
        if attempt >= policy.retries {
            count(&counters.upstream_rq_retry_limit_exceeded, |r| &r.upstream_rq_retry_limit_exceeded);
            self.recorder.stats().flags.insert(ResponseFlags::URX);
            return None;
        }
        let permit = plan.cluster.try_retry(plan.priority);
        match &permit {
            Some(_) => count(&counters.upstream_rq_retry, |r| &r.upstream_rq_retry),
            None => {
                count(&counters.upstream_rq_retry_overflow, |r| &r.upstream_rq_retry_overflow);
                self.recorder.stats().flags.insert(ResponseFlags::UO);
            }
        }
        permit
    }

    /// Between two tries, in which deadlines go on.
    async fn pause(&self, plan: &Plan<'_>, pause: Duration) -> Option<Ended> {
        tokio::select! {
            biased;
            () = total_deadline(&self.recorder.request, plan) => Some(Ended::Total),
            ended = patience(&self.recorder.request, plan) => Some(ended),
            () = sleep(pause) => None,
        }
    }

    /// The endpoint of the host that was asked for, while patience lasts.
    async fn resolve(&self, plan: &Plan<'_>, asked: &Authority) -> Result<Arc<Endpoint>, Reason> {
        tokio::select! {
            biased;
            found = plan.cluster.resolve(asked.host(), asked.port()) => found.map_err(|e| match e {
                Unresolved::NoHost => Reason::NoHealthyUpstream,
                Unresolved::Failed(why) => Reason::DnsFailed(why),
                Unresolved::CacheOverflow => Reason::DnsCacheOverflow,
                Unresolved::PendingOverflow => Reason::DnsPendingOverflow,
            }),
            ended = patience(&self.recorder.request, plan) => Err(ended.reason(false, &self.recorder.request)),
        }
    }

    fn pick(&self, plan: &Plan<'_>, tried: &[Arc<Endpoint>], attempt: u32) -> Result<Arc<Endpoint>, Reason> {
        if let Some(found) = &plan.found {
            return Ok(found.clone());
        }
        let policy = plan.policy.as_deref();
        let (pinned, strict) = self.finish.session.as_deref().map_or((None, false), |(s, wanted)| (*wanted, s.strict));
        let ctx = LbContext {
            hash: plan.hash,
            tried: if policy.is_some_and(|p| p.previous_hosts) { tried } else { &[] },
            selection_attempts: policy.map_or(1, |p| p.selection_attempts),
            avoid_priorities: policy.and_then(|p| p.previous_priorities),
            attempt,
            original_dst: self.session.conn.original_dst,
            // Tries that follow may go elsewhere.
            override_host: pinned.filter(|_| attempt == 0),
        };
        let picked = plan.cluster.pick(&ctx, &self.session.worker.rng).map_err(|e| match e {
            PickError::Dropped(_) => Reason::DropOverload,
            _ => Reason::NoHealthyUpstream,
        })?;
        if strict && ctx.override_host.is_some_and(|wanted| picked.socket_addr() != Some(wanted)) {
            return Err(Reason::NoHealthyUpstream);
        }
        Ok(picked)
    }

    /// One try: sends and waits for the head, within the deadlines.
    async fn attempt(
        &mut self,
        plan: &Plan<'_>,
        endpoint: &Arc<Endpoint>,
        head: RequestHead,
        body: Body,
    ) -> Result<(ResponseHead, Body), Ended> {
        let session = self.session.clone();
        let alpn: Option<Vec<Name>> = plan.alpn.map(|names| names.iter().map(|n| Name::from(*n)).collect());
        let leased = Leased::default();
        let options = SendOptions {
            priority: plan.priority,
            alpn: alpn.as_deref(),
            server_name: None,
            proxied: Some((session.conn.peer, session.conn.local)),
            leased: (plan.per_try.or(plan.per_try_idle).is_some() || plan.counters.is_some()).then_some(&leased),
        };
        let times = &mut self.recorder.stats().times;
        (times.upstream_start, times.upstream_head) = (Some(Instant::now()), None);
        let request = self.recorder.request.clone();
        let sent = {
            let sending = session.worker.pools.send(&plan.cluster, endpoint, head, body, &options);
            tokio::select! {
                biased;
                sent = sending => sent.map_err(Ended::Upstream),
                () = total_deadline(&request, plan) => Err(Ended::Total),
                () = try_deadline(&leased, &request, plan.per_try) => Err(Ended::PerTry),
                () = try_deadline(&leased, &request, plan.per_try_idle) => Err(Ended::PerTryIdle),
                ended = patience(&request, plan) => Err(ended),
            }
        };
        if let Some(counters) = plan.counters.filter(|_| leased.is_told()) {
            counters.upstream_rq_total.inc();
        }
        match sent {
            Ok((head, body)) => {
                let stats = self.recorder.stats();
                stats.times.upstream_head = Some(Instant::now());
                stats.upstream = head.connection.clone();
                Ok((head, body))
            }
            Err(ended) => {
                // That a client is slow, or has asked for more than it may, is nobody's fault here.
                let clients = match ended {
                    Ended::Idle => !self.recorder.request.is_complete(),
                    Ended::Arrival | Ended::Life => true,
                    _ => false,
                };
                if !matches!(ended, Ended::Upstream(_)) && !clients {
                    match ended {
                        Ended::PerTry | Ended::PerTryIdle => plan.cluster.stats.upstream_rq_per_try_timeout.inc(),
                        _ => {
                            plan.cluster.stats.upstream_rq_timeout.inc();
                            if let Some(counters) = plan.counters {
                                counters.upstream_rq_timeout.inc();
                            }
                        }
                    }
                    plan.cluster.report(endpoint, Outcome::Status(504), &session.worker.rng);
                }
                Err(ended)
            }
        }
    }

    /// Passes an answer on.
    fn answer(
        self,
        plan: &Plan<'_>,
        mut answer: ResponseHead,
        mut body: Body,
        downstream: Option<PendingTunnel>,
    ) -> (ResponseHead, Body) {
        // In HTTP/2 a 2xx would mean to the client that it has its tunnel.
        let refused = answer.tunnel.is_none() && plan.upgrade.is_some() && answer.status.is_success();
        if refused && plan.version == http::Version::HTTP_2 {
            let reset = Reset::ProtocolError;
            return self.reply(Reason::UpstreamReset { reset, transport: None, retried: false }.into(), None);
        }
        let Exchange { session, mut recorder, finish, .. } = self;
        recorder.stats().end_with(Reason::ViaUpstream);
        if let Some(own) = &session.manager.metadata
            && own.config.upstream_discovery
        {
            let peer = PeerHeaders { id: answer.headers.remove(PEER_ID), metadata: answer.headers.remove(PEER) };
            let proven = answer.connection.as_ref().and_then(|c| c.tls.as_ref()).is_some_and(|t| t.spiffe().is_some());
            if proven {
                recorder.stats().upstream_peer = peer;
            }
        }
        recorder.stats().times.request_end = recorder.request.ended_at();
        if let Some(web) = finish.web {
            body = web.answer(&mut answer, body);
        }
        respond::finish_head(&session, &mut answer, recorder.stats(), &finish, None, false);
        let deadlines = Deadlines {
            begun: Some(plan.begun),
            timeout: plan.timeout,
            end: plan.end,
            idle: plan.idle,
            try_idle: plan.per_try_idle,
        };
        if let Some(upstream) = answer.tunnel.take() {
            if let (Some(protocol), false) = (&plan.upgrade, answer.headers.contains_key(header::UPGRADE)) {
                answer.headers.insert(header::UPGRADE, protocol.clone());
            }
            if let Some(downstream) = downstream {
                tunnel::join(downstream, upstream, recorder, deadlines);
            }
            return (answer, Body::Empty);
        }
        if plan.tunnel {
            // It is an exchange like any other, then.
            recorder.request.end();
        }
        let grpc = finish.grpc;
        let body = if finish.head_only { Body::Empty } else { body };
        let body = ResponseBody::wrap(body, recorder, Some(deadlines), grpc);
        // Outside of what counts, which reads the trailers.
        (
            answer,
            match finish.web {
                Some(web) => web.wrap(body),
                None => body,
            },
        )
    }
}

/// How a try ended without an answer.
enum Ended {
    Upstream(UpstreamError),
    PerTry,
    PerTryIdle,
    Total,
    Idle,
    Arrival,
    Life,
}

impl Ended {
    fn reason(self, retried: bool, request: &RequestCounts) -> Reason {
        let error = match self {
            Ended::PerTry => return Reason::PerTryTimeout,
            Ended::PerTryIdle => return Reason::PerTryIdleTimeout,
            Ended::Total => return Reason::ResponseTimeout,
            Ended::Idle => return Reason::StreamIdle { request_complete: request.is_complete() },
            Ended::Arrival => return Reason::RequestTimeout { request_complete: false },
            Ended::Life => return Reason::MaxDuration,
            Ended::Upstream(error) => error,
        };
        // Whatever became of the try then: it was the client that broke.
        match request.broken() {
            Some(BodyError::Protocol) => return Reason::MalformedRequest,
            Some(BodyError::Disconnected) => return Reason::DownstreamDisconnect,
            Some(BodyError::Reset) => return Reason::DownstreamReset,
            Some(BodyError::Timeout | BodyError::Aborted) | None => {}
        }
        let reset = match error.kind {
            ErrorKind::Overflow => Reset::Overflow,
            ErrorKind::ConnectFailure | ErrorKind::Tls => Reset::RemoteConnectionFailure,
            ErrorKind::ConnectTimeout => Reset::ConnectionTimeout,
            ErrorKind::ConnectionTermination => Reset::ConnectionTermination,
            ErrorKind::RemoteReset => Reset::RemoteReset,
            ErrorKind::RefusedStream => Reset::RemoteRefused,
            ErrorKind::Protocol => Reset::ProtocolError,
            ErrorKind::RequestBody | ErrorKind::InvalidRequest => Reset::LocalReset,
        };
        let transport = (!error.reason.is_empty()).then(|| Name::from(&*error.reason));
        Reason::UpstreamReset { reset, transport, retried }
    }
}

/// The route's timeout, or the one that the request asks for.
fn timeout(action: &Forward, head: &RequestHead, asks: bool) -> Option<Duration> {
    let header = |name: &str| head.headers.get(name).and_then(|v| v.to_str().ok());
    if let Some(most) = action.grpc_timeout_max
        && head.is_grpc()
        && let Some(asked) = header("grpc-timeout").and_then(grpc_timeout)
    {
        return Some(if most.is_zero() { asked } else { asked.min(most) });
    }
    match asks.then(|| header(REQUEST_TIMEOUT)?.parse().ok()).flatten() {
        Some(0) => None,
        Some(millis) => Some(Duration::from_millis(millis)),
        None => action.timeout,
    }
}

/// The policy's limit of a try, or the one that the request asks for; none beyond the limit of all tries.
fn per_try_timeout(
    policy: Option<&RetryPolicy>,
    head: &RequestHead,
    asks: bool,
    all: Option<Duration>,
) -> Option<Duration> {
    let asked = || head.headers.get(TRY_TIMEOUT)?.to_str().ok()?.parse().ok().map(Duration::from_millis);
    let one = asks.then(asked).flatten().or_else(|| policy?.per_try_timeout)?;
    (!one.is_zero() && all.is_none_or(|all| one < all)).then_some(one)
}

/// The route's timeout begins when the request has arrived completely and the filters have let it through.
async fn total_deadline(request: &RequestCounts, plan: &Plan<'_>) {
    match plan.timeout {
        None => std::future::pending().await,
        Some(timeout) => {
            let complete = request.complete().await;
            sleep_until(complete.max(plan.begun) + timeout).await;
        }
    }
}

/// The limit of a try begins when the request has arrived completely and there is a connection for it.
async fn try_deadline(leased: &Leased, request: &RequestCounts, limit: Option<Duration>) {
    match limit {
        None => std::future::pending().await,
        Some(limit) => {
            let leased = leased.at().await;
            let complete = request.complete().await;
            sleep_until(leased.max(complete) + limit).await;
        }
    }
}

/// What ends a try whatever the upstream does: nothing moves, the request does not arrive, the stream lives too long.
async fn patience(request: &RequestCounts, plan: &Plan<'_>) -> Ended {
    let incomplete = !request.is_complete();
    let standstill = async {
        match plan.idle {
            // Otherwise the route's timeout is nearer.
            Some(idle) if incomplete || plan.timeout.is_none_or(|t| t > idle) => request.standstill(idle).await,
            _ => std::future::pending().await,
        }
    };
    let arrival = async {
        match plan.arrival {
            Some(arrival) if incomplete && !plan.tunnel => {
                sleep_until(arrival).await;
                if request.is_complete() {
                    std::future::pending::<()>().await;
                }
            }
            _ => std::future::pending().await,
        }
    };
    let end = async {
        match plan.end {
            Some(end) => sleep_until(end).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        () = standstill => Ended::Idle,
        () = arrival => Ended::Arrival,
        () = end => Ended::Life,
    }
}

/// `grpc-timeout`: digits and a unit.
fn grpc_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let n: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(n.checked_mul(3600)?),
        "M" => Duration::from_secs(n.checked_mul(60)?),
        "S" => Duration::from_secs(n),
        "m" => Duration::from_millis(n),
        "u" => Duration::from_micros(n),
        "n" => Duration::from_nanos(n),
        _ => return None,
    })
}

/// Tells peers in the mesh who we are; nobody else.
pub(super) fn tell_peer(manager: &HttpManager, cluster: &Cluster, head: &mut RequestHead) {
    let Some(own) = &manager.metadata else { return };
    head.headers.remove(PEER_ID);
    head.headers.remove(PEER);
    if own.config.upstream_propagation && speaks_istio(cluster) {
        head.headers.insert(PEER_ID, own.id.clone());
        head.headers.insert(PEER, own.value.clone());
    }
}

/// The cluster's endpoints take Istio's mutual TLS.
fn speaks_istio(cluster: &Cluster) -> bool {
    let of_matches = cluster.config.tls_matches.iter().filter_map(|m| m.tls.as_ref());
    let mut all = cluster.config.tls.iter().chain(of_matches);
    all.any(|tls| tls.common.alpn.iter().any(|name| name.starts_with("istio")))
}

/// What is offered to a cluster instead of its own, for calls beside the request.
pub(super) fn offered(session: &Session) -> impl Fn(&Cluster, &RequestHead) -> Option<&'static [&'static str]> + use<> {
    let istio = session.manager.istio_alpn;
    move |cluster, head| if istio { istio_alpn(cluster, head) } else { None }
}

/// Istio's names for HTTP inside mutual TLS, so that the other side knows it without looking at bytes.
pub(super) fn istio_alpn(cluster: &Cluster, head: &RequestHead) -> Option<&'static [&'static str]> {
    use mesh_api::model::HttpVersionChoice as V;
    if !speaks_istio(cluster) {
        return None;
    }
    let http2 = match cluster.config.http.version {
        V::Http2 => true,
        V::Http1 => false,
        V::Downstream | V::Alpn => head.version == http::Version::HTTP_2,
    };
    Some(if http2 { &["istio-h2", "istio", "h2"] } else { &["istio-http/1.1", "istio", "http/1.1"] })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_a_try_is_within_that_of_all() {
        let policy = RetryPolicy::compile(&mesh_api::model::RetryPolicy {
            per_try_timeout: Some(Duration::from_secs(2)),
            ..Default::default()
        });
        let policy = policy.unwrap();
        let mut head = crate::http::testing::get("a.test", "/");
        let seconds = |n| Some(Duration::from_secs(n));
        assert_eq!(per_try_timeout(None, &head, true, None), None);
        assert_eq!(per_try_timeout(Some(&policy), &head, true, seconds(3)), seconds(2));
        assert_eq!(per_try_timeout(Some(&policy), &head, true, seconds(2)), None);
        head.headers.insert(TRY_TIMEOUT, HeaderValue::from(1000));
        assert_eq!(per_try_timeout(None, &head, true, None), seconds(1));
        assert_eq!(per_try_timeout(Some(&policy), &head, true, seconds(2)), seconds(1));
        head.headers.insert(TRY_TIMEOUT, HeaderValue::from(0));
        assert_eq!(per_try_timeout(Some(&policy), &head, true, seconds(3)), None);
    }
}
