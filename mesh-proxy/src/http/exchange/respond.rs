//! The head of an answer as the client gets it.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, header};
use mesh_api::model::ServerHeader;

use super::super::filters::{Kind, cors::Cors, rate_limit::RateLimit};
use super::super::header_ops::HeaderOps;
use super::super::message::ResponseHead;
use super::super::router::{RouteMatch, RouteTable};
use super::super::stats::{ExchangeStats, capture};
use super::{PEER, PEER_ID, Session};

/// What has to be done to the answer, collected on the way up.
#[derive(Debug)]
pub struct Finish {
    /// HEAD: no body.
    pub head_only: bool,
    /// gRPC.
    pub grpc: bool,
    /// The route.
    pub route: Option<RouteMatch>,
    /// Which of several clusters.
    pub weighted: Option<usize>,
    /// Mark for this origin.
    pub cors: Option<(Arc<Cors>, HeaderValue)>,
    /// Changes of the route's header mutation filters.
    pub mutations: Vec<Arc<(HeaderOps, HeaderOps)>>,
    /// The limit that refused it.
    pub limited: Option<Arc<RateLimit>>,
    /// The peer wants to know who we are.
    pub peer_asked: bool,
    /// Cookies of the hash policy.
    pub cookies: Vec<HeaderValue>,
}

impl Finish {
    /// Nothing yet.
    pub fn new(head_only: bool, grpc: bool) -> Self {
        Self {
            head_only,
            grpc,
            route: None,
            weighted: None,
            cors: None,
            mutations: vec![],
            limited: None,
            peer_asked: false,
            cookies: vec![],
        }
    }
}

const SERVICE_TIME: HeaderName = HeaderName::from_static("x-envoy-upstream-service-time");
const ATTEMPTS: HeaderName = HeaderName::from_static("x-envoy-attempt-count");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Applies everything, in Envoy's order: filters, route, host, table; then what the manager adds.
pub fn finish_head(
    session: &Session,
    head: &mut ResponseHead,
    stats: &mut ExchangeStats,
    finish: &Finish,
    table: Option<&RouteTable>,
    local: bool,
) {
    let manager = &session.manager;
    stats.status = head.status.as_u16();
    let grpc_status = head.headers.get("grpc-status").and_then(|v| v.to_str().ok()).and_then(|v| v.parse().ok());
    stats.grpc_status = grpc_status.or(stats.grpc_status);
    if !local && !manager.suppress_envoy_headers {
        let took = stats.times.upstream_start.zip(stats.times.upstream_head);
        let millis = took.map(|(a, b)| u64::try_from(b.saturating_duration_since(a).as_millis()).unwrap_or(u64::MAX));
        if let Some(millis) = millis {
            head.headers.insert(SERVICE_TIME, HeaderValue::from(millis));
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
    for ops in &finish.mutations {
        ops.1.apply_response(&mut head.headers, stats);
    }
    if let Some(limit) = &finish.limited {
        limit.headers.apply_response(&mut head.headers, stats);
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

fn manager_headers(session: &Session, head: &mut ResponseHead, stats: &ExchangeStats, finish: &Finish, local: bool) {
    let manager = &session.manager;
    match manager.config.server_header {
        ServerHeader::PassThrough if !local => {}
        ServerHeader::AppendIfAbsent if head.headers.contains_key(header::SERVER) => {}
        _ => {
            head.headers.insert(header::SERVER, manager.server.clone());
        }
    }
    if !head.headers.contains_key(header::DATE) {
        let now = jiff::Timestamp::now().strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
        if let Ok(value) = HeaderValue::from_str(&now) {
            head.headers.insert(header::DATE, value);
        }
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
