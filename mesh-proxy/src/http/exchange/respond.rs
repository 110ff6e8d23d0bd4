//! The head of an answer as the client gets it.

use std::net::SocketAddr;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, header};
use mesh_api::model::ServerHeader;

use super::super::filters::health_check::{CHECKED_CLUSTER, HealthCheck};
use super::super::filters::{Kind, cors::Cors, ext_authz::ResponseChanges, session::Session};
use super::super::header_ops::{HeaderOps, append};
use super::super::headers::GRPC_STATUS;
use super::super::local_reply::Reason;
use super::super::message::ResponseHead;
use super::super::request_id::HEADER as REQUEST_ID;
use super::super::router::{RouteMatch, RouteTable};
use super::super::stats::{ExchangeStats, capture};
use super::grpc_web::Web;
use super::{PEER, PEER_ID, Session as Downstream};

/// What has to be done to the answer, collected on the way up.
#[derive(Debug)]
pub struct Finish {
    /// HEAD: no body.
    pub head_only: bool,
    /// gRPC.
    pub grpc: bool,
    /// It came as gRPC-Web, and is answered so.
    pub web: Option<Web>,
    /// The route.
    pub route: Option<RouteMatch>,
    /// Which of several clusters.
    pub weighted: Option<usize>,
    /// Mark for this origin.
    pub cors: Option<(Arc<Cors>, HeaderValue)>,
    /// Changes of the route's header mutation filters.
    pub mutations: Vec<Arc<(HeaderOps, HeaderOps)>>,
    /// Changes that authorizers and rate limit services ask for.
    pub told: ResponseChanges,
    /// Operations of the limit that refused it.
    pub limited: Option<Arc<HeaderOps>>,
    /// The peer wants to know who we are.
    pub peer_asked: bool,
    /// Its session, and the endpoint that the client remembers.
    pub session: Option<Box<(Arc<Session>, Option<SocketAddr>)>>,
    /// It is a health check.
    pub health_check: Option<Arc<HealthCheck>>,
    /// Cookies of the hash policy.
    pub cookies: Vec<HeaderValue>,
}

impl Finish {
    /// Nothing yet.
    pub fn new(head_only: bool, grpc: bool) -> Self {
        Self {
            head_only,
            grpc,
            web: None,
            route: None,
            weighted: None,
            cors: None,
            mutations: vec![],
            told: vec![],
            limited: None,
            peer_asked: false,
            session: None,
            health_check: None,
            cookies: vec![],
        }
    }
}

const SERVICE_TIME: HeaderName = HeaderName::from_static("x-envoy-upstream-service-time");
const ATTEMPTS: HeaderName = HeaderName::from_static("x-envoy-attempt-count");

/// Applies everything, in Envoy's order: filters, route, host, table; then what the manager adds.
pub fn finish_head(
    session: &Downstream,
    head: &mut ResponseHead,
    stats: &mut ExchangeStats,
    finish: &Finish,
    table: Option<&RouteTable>,
    local: bool,
) {
    let manager = &session.manager;
    stats.status = head.status.as_u16();
    let grpc_status = head.headers.get(&GRPC_STATUS).and_then(|v| v.to_str().ok()).and_then(|v| v.parse().ok());
    stats.grpc_status = grpc_status.or(stats.grpc_status);
    if !local && !manager.suppress_envoy_headers {
        // All tries together; nothing when it came before the request had.
        let took = stats.times.request_end.zip(stats.times.upstream_head);
        let millis = took.map(|(a, b)| u64::try_from(b.saturating_duration_since(a).as_millis()).unwrap_or(u64::MAX));
        if let Some(millis) = millis {
            head.headers.insert(SERVICE_TIME, session.worker.service_time.value(millis));
        }
    }
    if let Some((cors, origin)) = &finish.cors {
        cors.mark(origin.clone(), &mut head.headers);
    }
    for filter in &manager.filters {
        if let Kind::HeaderMutation(_, response) = &filter.kind {
            response.apply_response(&mut head.headers, stats);
        }
    }
    if let Some(check) = &finish.health_check {
        // A word that is repeated is not a new one.
        if !matches!(stats.reason, Reason::HealthCheck { .. }) {
            check.note(head, tokio::time::Instant::now());
        }
        if let Ok(cluster) = HeaderValue::from_str(&session.worker.shared.node.cluster) {
            head.headers.insert(CHECKED_CLUSTER, cluster);
        }
    }
    for ops in &finish.mutations {
        ops.1.apply_response(&mut head.headers, stats);
    }
    if let (Some((kept, wanted)), false) = (finish.session.as_deref(), local)
        && let Some(endpoint) = stats.endpoint.as_ref().and_then(|e| e.socket_addr())
        && *wanted != Some(endpoint)
    {
        kept.tell(endpoint, &mut head.headers);
    }
    for (name, value, action) in &finish.told {
        append(&mut head.headers, name, value.clone(), *action);
    }
    if let Some(limit) = &finish.limited {
        limit.apply_response(&mut head.headers, stats);
    }
    let route = finish.route.as_ref();
    if let (Some(index), Some(route)) = (finish.weighted, route.and_then(RouteMatch::route))
        && let Some(weighted) = route.weighted(index)
    {
        weighted.headers.response.apply_response(&mut head.headers, stats);
    }
    if let Some(route) = route.and_then(RouteMatch::route) {
        route.headers.response.apply_response(&mut head.headers, stats);
    }
    if let Some(host) = route.and_then(RouteMatch::host) {
        host.headers.response.apply_response(&mut head.headers, stats);
        if host.attempt_count_in_response && stats.attempts > 0 {
            head.headers.insert(ATTEMPTS, HeaderValue::from(stats.attempts));
        }
    }
    if let Some(table) = route.map(RouteMatch::table).or(table) {
        table.headers.response.apply_response(&mut head.headers, stats);
    }
    for cookie in &finish.cookies {
        head.headers.append(header::SET_COOKIE, cookie.clone());
    }
    manager_headers(session, head, stats, finish, local);
    capture(&manager.needs.response, &head.headers, &mut stats.captured.response);
    stats.response_header_bytes = header_bytes(&head.headers);
    stats.times.response_start = Some(tokio::time::Instant::now());
}

fn manager_headers(session: &Downstream, head: &mut ResponseHead, stats: &ExchangeStats, finish: &Finish, local: bool) {
    let manager = &session.manager;
    match manager.config.server_header {
        ServerHeader::PassThrough if !local => {}
        ServerHeader::AppendIfAbsent if head.headers.contains_key(header::SERVER) => {}
        _ => {
            head.headers.insert(header::SERVER, manager.server.clone());
        }
    }
    if !head.headers.contains_key(header::DATE)
        && let Some(value) = session.worker.date.value(jiff::Timestamp::now())
    {
        head.headers.insert(header::DATE, value);
    }
    if let Some(via) = &manager.via {
        head.headers.append(header::VIA, via.clone());
    }
    if manager.config.always_set_request_id_in_response
        && let Some(id) = &stats.request_id
    {
        head.headers.insert(REQUEST_ID, id.clone());
    }
    if let Some(own) = &manager.metadata {
        head.headers.remove(PEER_ID);
        head.headers.remove(PEER);
        if finish.peer_asked {
            head.headers.insert(PEER_ID, own.id.clone());
            head.headers.insert(PEER, own.value.clone());
        }
    }
}

/// Bytes of a head's fields, as HTTP/1.1 would write them.
pub fn header_bytes(headers: &HeaderMap) -> u64 {
    headers.iter().map(|(name, value)| (name.as_str().len() + value.len() + 4) as u64).sum()
}
