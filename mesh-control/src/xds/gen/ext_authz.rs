//! External authorization, of requests and of connections.

use mesh_api::model::{
    AuthzBody, AuthzGrpc, AuthzHttp, AuthzService, AuthzSettings, ExtAuthz, Fraction, StringMatcher,
};

use super::rbac::metadata;
use super::values::string_matcher;
use super::wire::Message;

/// `transport_api_version`.
const V3: u64 = 2;

/// `envoy.extensions.filters.http.ext_authz.v3.ExtAuthz`.
pub fn http_ext_authz(filter: &ExtAuthz) -> Message {
    let message = match &filter.service {
        AuthzService::Grpc(service) => Message::new().msg(1, grpc(service)),
        AuthzService::Http(_) => Message::new(),
    };
    let message = message.bool(2, filter.failure_mode_allow);
    let message = match &filter.service {
        AuthzService::Http(service) => message.msg(3, http(service)),
        AuthzService::Grpc(_) => message,
    };
    let message = message
        .maybe(5, filter.body.as_ref().map(body))
        .bool(6, filter.clear_route_cache)
        .msg(7, Message::new().uint(1, filter.status_on_error.into()))
        .strs(8, &filter.metadata_namespaces);
    let message =
        if filter.enabled == Fraction::ALWAYS { message } else { message.runtime_fraction(9, filter.enabled) };
    let message = message.bool(10, filter.include_certificate);
    // RuntimeFeatureFlag, whose key is required.
    let deny = || Message::new().wrapped_bool(1, true).str(2, "ext_authz.deny_at_disable");
    message
        .maybe(11, filter.deny_at_disable.then(deny))
        .uint(12, V3)
        .str(13, &filter.stat_prefix)
        .maybe(14, filter.enabled_metadata.as_ref().map(metadata))
        .maybe(17, matchers(&filter.allowed_headers))
        .bool(18, filter.include_tls_session)
        .bool(19, filter.failure_mode_allow_header)
        .maybe(25, matchers(&filter.disallowed_headers))
}

/// `envoy.extensions.filters.network.ext_authz.v3.ExtAuthz`; connections are asked for over gRPC only.
pub fn network_ext_authz(filter: &ExtAuthz) -> Message {
    let service = match &filter.service {
        AuthzService::Grpc(service) => Some(grpc(service)),
        AuthzService::Http(_) => None,
    };
    Message::new()
        // stat_prefix is required.
        .str(1, if filter.stat_prefix.is_empty() { "tcp." } else { &filter.stat_prefix })
        .maybe(2, service)
        .bool(3, filter.failure_mode_allow)
        .bool(4, filter.include_certificate)
        .uint(5, V3)
        .maybe(6, filter.enabled_metadata.as_ref().map(metadata))
        .bool(8, filter.include_tls_session)
        .strs(10, &filter.metadata_namespaces)
}

/// `ExtAuthzPerRoute` with `check_settings`.
pub fn settings(settings: &AuthzSettings) -> Message {
    let mut context: Vec<_> = settings.context.iter().collect();
    context.sort();
    let entries = context.into_iter().map(|(name, value)| Message::new().str(1, name).str(2, value));
    let check = Message::new().msgs(1, entries).bool(2, settings.no_body).maybe(3, settings.body.as_ref().map(body));
    Message::new().msg(2, check)
}

/// `GrpcService`.
pub(super) fn grpc(service: &AuthzGrpc) -> Message {
    let headers = service.initial_metadata.iter().map(|(name, value)| Message::new().str(1, name).str(2, value));
    Message::new()
        .msg(1, Message::new().str(1, &service.cluster).str(2, &service.authority))
        .duration(3, service.timeout)
        .msgs(5, headers)
}

/// `HttpService`.
fn http(service: &AuthzHttp) -> Message {
    let server = Message::new().str(1, &service.uri).str(2, &service.cluster).duration(3, service.timeout);
    let headers = service.headers_to_add.iter().map(|(name, value)| Message::new().str(1, name).str(2, value));
    let request = (!service.headers_to_add.is_empty()).then(|| Message::new().msgs(2, headers));
    let lists = [
        (1, &service.upstream_headers),
        (2, &service.client_headers),
        (3, &service.upstream_headers_to_append),
        (4, &service.client_headers_on_success),
    ];
    let response = lists.iter().fold(Message::new(), |message, (field, list)| message.maybe(*field, matchers(list)));
    let response = lists.iter().any(|(_, list)| !list.is_empty()).then_some(response);
    Message::new().msg(1, server).str(2, &service.path_prefix).maybe(7, request).maybe(8, response)
}

/// `ListStringMatcher`, which is not empty.
fn matchers(all: &[StringMatcher]) -> Option<Message> {
    (!all.is_empty()).then(|| Message::new().msgs(1, all.iter().map(string_matcher)))
}

/// `BufferSettings`.
fn body(body: &AuthzBody) -> Message {
    Message::new().uint(1, body.max_bytes.into()).bool(2, body.allow_partial).bool(3, body.as_bytes)
}
