//! Token authentication (`envoy.filters.http.jwt_authn`).

use mesh_api::model::{DataSource, JwtAuthn, JwtKeys, JwtProvider, JwtRequirement, JwtRule, RemoteKeys};

use super::route::route_match;
use super::values::string_matcher;
use super::wire::Message;

/// `JwtAuthentication`.
pub fn jwt_authn(config: &JwtAuthn) -> Message {
    let mut message = Message::new();
    for (name, p) in &config.providers {
        message = message.entry(1, name, provider(p));
    }
    message = message.msgs(2, config.rules.iter().map(rule)).bool(4, config.bypass_cors_preflight);
    for (name, r) in &config.requirements {
        message = message.entry(5, name, requirement(r));
    }
    message.bool(6, config.strip_failure_response)
}

/// `PerRouteConfig` with a requirement's name.
pub fn per_route(name: &str) -> Message {
    Message::new().str(2, name)
}

fn rule(rule: &JwtRule) -> Message {
    Message::new().msg(1, route_match(&rule.matches)).maybe(2, rule.requires.as_ref().map(requirement))
}

fn requirement(r: &JwtRequirement) -> Message {
    let list = |all: &[JwtRequirement]| Message::new().msgs(1, all.iter().map(requirement));
    let message = Message::new();
    match r {
        JwtRequirement::Provider(name) => message.str_always(1, name),
        JwtRequirement::ProviderWithAudiences(name, audiences) => {
            message.msg(2, Message::new().str(1, name).strs(2, audiences))
        }
        JwtRequirement::Any(all) => message.msg(3, list(all)),
        JwtRequirement::All(all) => message.msg(4, list(all)),
        JwtRequirement::AllowMissingOrFailed => message.msg(5, Message::new()),
        JwtRequirement::AllowMissing => message.msg(6, Message::new()),
    }
}

fn provider(p: &JwtProvider) -> Message {
    let message = Message::new().str(1, &p.issuer).strs(2, &p.audiences);
    let message = match &p.keys {
        JwtKeys::Remote(remote) => message.msg(3, remote_keys(remote)),
        JwtKeys::Local(DataSource::Inline(text)) => message.msg(4, Message::new().str_always(3, text)),
        JwtKeys::Local(DataSource::File(path)) => message.msg(4, Message::new().str(1, &path.to_string_lossy())),
    };
    let pair = |(a, b): &(mesh_api::model::Name, mesh_api::model::Name)| Message::new().str(1, a).str(2, b);
    let lists = (!p.space_delimited_claims.is_empty()).then(|| Message::new().strs(1, &p.space_delimited_claims));
    message
        .bool(5, p.forward)
        .msgs(6, p.from_headers.iter().map(pair))
        .strs(7, &p.from_params)
        .str(8, &p.forward_payload_header)
        .str(9, &p.payload_in_metadata)
        .uint(10, p.clock_skew.as_secs())
        .bool(11, p.pad_forward_payload_header)
        .strs(13, &p.from_cookies)
        .str(14, &p.header_in_metadata)
        .msgs(15, p.claim_to_headers.iter().map(pair))
        .bool(17, p.clear_route_cache)
        .maybe(18, lists)
        .maybe(19, p.subject.as_ref().map(string_matcher))
        .bool(20, p.require_expiration)
        .duration_maybe(21, p.max_lifetime)
}

fn remote_keys(r: &RemoteKeys) -> Message {
    let uri = Message::new().str(1, &r.uri).str(2, &r.cluster).duration(3, r.timeout);
    let ahead = r.ahead.then(|| Message::new().duration(2, r.retry_after));
    Message::new().msg(1, uri).duration(2, r.cache).maybe(3, ahead)
}
