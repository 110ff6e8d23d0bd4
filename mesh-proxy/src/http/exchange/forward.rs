//! Forwarding: cluster, endpoint, tries, deadlines. Retries wrap only the choice of an endpoint and sending to it.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use mesh_api::model::Name;
use tokio::time::{Instant, sleep, sleep_until};

use super::super::local_reply::{LocalReply, Reason, Reset};
use super::super::message::{Authority, Body, RequestHead, ResponseHead};
use super::super::retry::{Failed, RetryPolicy};
use super::super::router::{Action, Forward, HostRewrite, Route, RouteMatch};
use super::super::server::h1::PendingTunnel;
use super::super::stats::{PeerHeaders, capture};
use super::body::{Deadlines, RequestCounts, ResponseBody};
use super::replay::Replay;
use super::{Exchange, PEER, PEER_ID, mirror, respond, tunnel};
use crate::upstream::pool::SendOptions;
use crate::upstream::{Cluster, Endpoint, ErrorKind, LbContext, Outcome, PickError, Priority, UpstreamError};

const EXPECTED_TIMEOUT: HeaderName = HeaderName::from_static("x-envoy-expected-rq-timeout-ms");
const REQUEST_TIMEOUT: &str = "x-envoy-upstream-rq-timeout-ms";
const ATTEMPTS: HeaderName = HeaderName::from_static("x-envoy-attempt-count");
const ORIGINAL_PATH: HeaderName = HeaderName::from_static("x-envoy-original-path");

/// What governs the tries of one request.
struct Plan {
    cluster: Arc<Cluster>,
    policy: Option<RetryPolicy>,
    timeout: Option<Duration>,
    priority: Priority,
    hash: Option<u64>,
    alpn: Option<&'static [&'static str]>,
    attempt_count: bool,
    auto_host: bool,
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
        return x.reply(Reason::Internal.into(), None);
    };
    if let Err(reply) = upgrade_allowed(&x, action, &head) {
        return x.reply(reply, None);
    }
    let plan = match x.plan(&found, route, action, &mut head) {
        Ok(plan) => plan,
        Err(reply) => return x.reply(reply, None),
    };
    let worker = x.session.worker.clone();
    let body = mirror::send(&x.session, &x.snapshot, &action.mirrors, &head, body, || worker.rng.next_u64());
    let sent = x.tries(&plan, head, body).await;
    match sent {
        Ok((answer, body)) => x.answer(&plan, action, answer, body, downstream),
        Err(reason) => x.reply(LocalReply::from(reason), None),
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
    fn plan(
        &mut self,
        found: &RouteMatch,
        route: &Route,
        action: &Forward,
        head: &mut RequestHead,
    ) -> Result<Plan, LocalReply> {
        let random = self.random();
        let not_found = LocalReply::from(Reason::ClusterNotFound { status: action.not_found_status });
        let Some((name, weighted)) = action.choose(head, random) else { return Err(not_found) };
        self.finish.weighted = weighted;
        self.recorder.stats().cluster_name = Some(name.clone());
        let Some(cluster) = self.snapshot.cluster(&name).cloned() else { return Err(not_found) };
        self.recorder.stats().cluster = Some(cluster.clone());
        let timeout = self.timeout(action, head);
        let host_policy = found.host().and_then(|h| h.retry.as_ref());
        let policy = RetryPolicy::adjusted(action.retry.as_ref().or(host_policy), head);
        self.change_head(found, route, action, head, timeout);
        let hashed = action.hash.hash(head, self.recorder.stats());
        self.finish.cookies = hashed.set_cookies;
        let alpn = if self.session.manager.istio_alpn { istio_alpn(&cluster, head) } else { None };
        self.add_peer_metadata(&cluster, head);
        self.session.manager.sink.begin(self.recorder.stats(), head, &|| self.session.worker.rng.next_u64());
        capture(&self.session.manager.needs.request, &head.headers, &mut self.recorder.stats().captured.request);
        Ok(Plan {
            cluster,
            policy,
            timeout,
            priority: if action.high_priority { Priority::High } else { Priority::Default },
            hash: hashed.hash,
            alpn,
            attempt_count: found.host().is_some_and(|h| h.attempt_count_in_request),
            auto_host: matches!(action.host_rewrite, Some(HostRewrite::Auto)),
        })
    }

    fn timeout(&self, action: &Forward, head: &RequestHead) -> Option<Duration> {
        let header = |name: &str| head.headers.get(name).and_then(|v| v.to_str().ok());
        if head.is_grpc()
            && let Some(most) = action.grpc_timeout_max
            && let Some(asked) = header("grpc-timeout").and_then(grpc_timeout)
        {
            return Some(if most.is_zero() { asked } else { asked.min(most) });
        }
        match header(REQUEST_TIMEOUT).and_then(|t| t.parse().ok()) {
            Some(0) => None,
            Some(millis) => Some(Duration::from_millis(millis)),
            None => action.timeout,
        }
    }

    /// Rewrites, header operations, Envoy's own headers.
    fn change_head(
        &mut self,
        found: &RouteMatch,
        route: &Route,
        action: &Forward,
        head: &mut RequestHead,
        timeout: Option<Duration>,
    ) {
        let before = (head.target.clone(), head.authority.clone());
        for name in [REQUEST_TIMEOUT, "x-envoy-retry-on", "x-envoy-retry-grpc-on", "x-envoy-max-retries"] {
            head.headers.remove(name);
        }
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
        if let Some(timeout) = timeout
            && !self.session.manager.suppress_envoy_headers
        {
            let millis = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
            head.headers.insert(EXPECTED_TIMEOUT, HeaderValue::from(millis));
        }
        if before.0 != head.target || before.1 != head.authority {
            stats.sent = Some(Box::new((head.target.clone(), head.authority.clone())));
        }
    }

    /// Tells peers in the mesh who we are; nobody else.
    fn add_peer_metadata(&self, cluster: &Cluster, head: &mut RequestHead) {
        let Some(own) = &self.session.manager.metadata else { return };
        if own.config.upstream_propagation && speaks_istio(cluster) {
            head.headers.insert(PEER_ID, own.id.clone());
            head.headers.insert(PEER, own.value.clone());
        }
    }

    /// Tries until there is an answer to pass on, or nothing more to try.
    async fn tries(&mut self, plan: &Plan, head: RequestHead, body: Body) -> Result<(ResponseHead, Body), Reason> {
        let retries = plan.policy.as_ref().map_or(0, |p| p.retries);
        let (replay, mut once) = if retries > 0 { (Some(Replay::new(body)), None) } else { (None, Some(body)) };
        let mut head = Some(head);
        let mut tried: Vec<Arc<Endpoint>> = Vec::new();
        let mut permit = None;
        loop {
            let attempt = self.recorder.stats().attempts;
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
            if plan.auto_host
                && let Some(host) = Authority::parse(&endpoint.config.hostname).filter(|h| !h.is_empty())
            {
                sending.authority = host;
            }
            let body = match &replay {
                Some(replay) => replay.body(),
                None => once.take().unwrap_or_default(),
            };
            let outcome = self.attempt(plan, &endpoint, sending, body, attempt).await;
            drop(permit.take());
            let may_retry = !last && replay.as_ref().is_some_and(Replay::is_possible);
            let wanted = may_retry
                && plan.policy.as_ref().is_some_and(|p| match &outcome {
                    Ok((answer, _)) => p.wants_answer(answer.status.as_u16(), &answer.headers),
                    Err(Ended::Upstream(e)) => p.wants_failure(Failed::Upstream(e)),
                    Err(Ended::PerTry) => p.wants_failure(Failed::PerTryTimeout),
                    Err(Ended::Total) => false,
                });
            if wanted {
                permit = plan.cluster.try_retry(plan.priority);
            }
            if let (true, Some(policy)) = (wanted && permit.is_some(), &plan.policy) {
                plan.cluster.stats.upstream_rq_retry.inc();
                tried.push(endpoint);
                sleep(policy.backoff(attempt + 1, self.random())).await;
                continue;
            }
            if wanted {
                plan.cluster.stats.upstream_rq_retry_overflow.inc();
            } else if last && retries > 0 && outcome.is_err() {
                self.recorder.stats().flags.insert(super::super::local_reply::ResponseFlags::URX);
            }
            return outcome.map_err(|ended| ended.reason(attempt > 0));
        }
    }

    fn pick(&self, plan: &Plan, tried: &[Arc<Endpoint>], attempt: u32) -> Result<Arc<Endpoint>, Reason> {
        let policy = plan.policy.as_ref();
        let ctx = LbContext {
            hash: plan.hash,
            tried: if policy.is_some_and(|p| p.previous_hosts) { tried } else { &[] },
            selection_attempts: policy.map_or(1, |p| p.selection_attempts),
            avoid_priorities: policy.and_then(|p| p.previous_priorities),
            attempt,
            original_dst: self.session.conn.original_dst,
            override_host: None,
        };
        plan.cluster.pick(&ctx, &WorkerRandom(&self.session.worker.rng)).map_err(|e| match e {
            PickError::Dropped(_) => Reason::DropOverload,
            _ => Reason::NoHealthyUpstream,
        })
    }

    /// One try: sends and waits for the head, within the deadlines.
    async fn attempt(
        &mut self,
        plan: &Plan,
        endpoint: &Arc<Endpoint>,
        head: RequestHead,
        body: Body,
        attempt: u32,
    ) -> Result<(ResponseHead, Body), Ended> {
        let session = self.session.clone();
        let alpn: Option<Vec<Name>> = plan.alpn.map(|names| names.iter().map(|n| Name::from(*n)).collect());
        let options = SendOptions {
            priority: plan.priority,
            alpn: alpn.as_deref(),
            server_name: None,
            proxied: Some((session.conn.peer, session.conn.local)),
        };
        let start = Instant::now();
        self.recorder.stats().times.upstream_start = Some(start);
        let per_try = plan.policy.as_ref().and_then(|p| p.per_try_timeout);
        let total = total_deadline(self.recorder.request.clone(), plan.timeout);
        let sent = {
            let sending = session.worker.pools.send(&plan.cluster, endpoint, head, body, &options);
            let per_try = async {
                match per_try {
                    Some(limit) => sleep_until(start + limit).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                sent = sending => sent.map_err(Ended::Upstream),
                () = total => Err(Ended::Total),
                () = per_try => Err(Ended::PerTry),
            }
        };
        let _ = attempt;
        let stats = self.recorder.stats();
        match sent {
            Ok((head, body)) => {
                stats.times.upstream_head = Some(Instant::now());
                stats.upstream = head.connection.clone();
                Ok((head, body))
            }
            Err(ended) => {
                if !matches!(ended, Ended::Upstream(_)) {
                    let random = WorkerRandom(&session.worker.rng);
                    plan.cluster.stats.upstream_rq_timeout.inc();
                    plan.cluster.report(endpoint, Outcome::Status(504), &random);
                }
                Err(ended)
            }
        }
    }

    /// Passes an answer on.
    fn answer(
        self,
        plan: &Plan,
        action: &Forward,
        mut answer: ResponseHead,
        body: Body,
        downstream: Option<PendingTunnel>,
    ) -> (ResponseHead, Body) {
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
        respond::finish_head(&session, &mut answer, recorder.stats(), &finish, None, false);
        if let Some(upstream) = answer.tunnel.take() {
            if let Some(downstream) = downstream {
                tunnel::join(downstream, upstream, recorder);
            }
            return (answer, Body::Empty);
        }
        let idle = action.idle_timeout.unwrap_or(session.manager.config.timeouts.stream_idle);
        let begin = recorder.stats().times.upstream_start;
        let total = plan.timeout.and_then(|t| Some(begin? + t));
        let life = action.max_stream.map(|d| recorder.stats().start + d);
        let deadlines =
            Deadlines { total: [total, life].into_iter().flatten().min(), idle: (!idle.is_zero()).then_some(idle) };
        let grpc = finish.grpc;
        let body = if finish.head_only { Body::Empty } else { body };
        (answer, ResponseBody::wrap(body, recorder, Some(deadlines), grpc))
    }
}

/// How a try ended without an answer.
enum Ended {
    Upstream(UpstreamError),
    PerTry,
    Total,
}

impl Ended {
    fn reason(self, retried: bool) -> Reason {
        let error = match self {
            Ended::PerTry => return Reason::PerTryTimeout,
            Ended::Total => return Reason::ResponseTimeout,
            Ended::Upstream(error) => error,
        };
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

/// The route's timeout begins when the request has arrived completely.
async fn total_deadline(request: Rc<RequestCounts>, timeout: Option<Duration>) {
    match timeout {
        None => std::future::pending().await,
        Some(timeout) => {
            let complete = request.complete().await;
            sleep_until(complete + timeout).await;
        }
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

/// The cluster's endpoints take Istio's mutual TLS.
fn speaks_istio(cluster: &Cluster) -> bool {
    let of_matches = cluster.config.tls_matches.iter().filter_map(|m| m.tls.as_ref());
    let mut all = cluster.config.tls.iter().chain(of_matches);
    all.any(|tls| tls.common.alpn.iter().any(|name| name.starts_with("istio")))
}

/// Istio's names for HTTP inside mutual TLS, so that the other side knows it without looking at bytes.
fn istio_alpn(cluster: &Cluster, head: &RequestHead) -> Option<&'static [&'static str]> {
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

/// A worker's random numbers for balancers.
struct WorkerRandom<'w>(&'w crate::runtime::Rng);

impl crate::upstream::Random for WorkerRandom<'_> {
    fn next_u64(&self) -> u64 {
        self.0.next_u64()
    }
}
