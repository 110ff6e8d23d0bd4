//! Authorization rules.

use std::collections::BTreeMap;

use mesh_api::model::{MetadataMatch, MetadataValue, Permission, Policy, Principal, Rbac, RbacAction, StringMatcher};

use super::values::{header_matcher, string_matcher};
use super::wire::{Message, cidr};

/// `envoy.config.rbac.v3.RBAC`.
pub fn rbac(rbac: &Rbac) -> Message {
    let action = match rbac.action {
        RbacAction::Allow => 0,
        RbacAction::Deny => 1,
        RbacAction::Log => 2,
    };
    let sorted: BTreeMap<&str, &Policy> = rbac.policies.iter().map(|p| (&*p.name, p)).collect();
    let mut message = Message::new().uint(1, action);
    for (name, policy) in sorted {
        let value = Message::new()
            .msgs(1, policy.permissions.iter().map(permission))
            .msgs(2, policy.principals.iter().map(principal));
        message = message.entry(2, name, value);
    }
    message
}

/// `PathMatcher`.
fn path(matcher: &StringMatcher) -> Message {
    Message::new().msg(1, string_matcher(matcher))
}

fn permission(permission: &Permission) -> Message {
    let set = |all: &[Permission]| Message::new().msgs(1, all.iter().map(self::permission));
    let message = Message::new();
    match permission {
        Permission::And(all) => message.msg(1, set(all)),
        Permission::Or(any) => message.msg(2, set(any)),
        Permission::Any => message.bool_always(3, true),
        Permission::Header(matcher) => message.msg(4, header_matcher(matcher)),
        Permission::DestinationIp(range) => message.msg(5, cidr(range)),
        Permission::DestinationPort(port) => message.uint_always(6, (*port).into()),
        Permission::Metadata(m) => message.msg(7, metadata(m)),
        Permission::Not(inner) => message.msg(8, self::permission(inner)),
        Permission::RequestedServerName(matcher) => message.msg(9, string_matcher(matcher)),
        Permission::UrlPath(matcher) => message.msg(10, path(matcher)),
        // Int32Range
        Permission::DestinationPortRange(from, to) => {
            message.msg(11, Message::new().int(1, (*from).into()).int(2, (*to).into()))
        }
        Permission::UriTemplate(text) => {
            let url = "envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig";
            let config = Message::any(url, Message::new().str(1, text));
            let name = "envoy.path.match.uri_template.uri_template_matcher";
            message.msg(13, Message::new().str(1, name).msg(2, config))
        }
    }
}

fn principal(principal: &Principal) -> Message {
    let set = |all: &[Principal]| Message::new().msgs(1, all.iter().map(self::principal));
    let message = Message::new();
    match principal {
        Principal::And(all) => message.msg(1, set(all)),
        Principal::Or(any) => message.msg(2, set(any)),
        Principal::Any => message.bool_always(3, true),
        Principal::Authenticated(name) => message.msg(4, Message::new().maybe(2, name.as_ref().map(string_matcher))),
        Principal::SourceIp(range) => message.msg(5, cidr(range)),
        Principal::Header(matcher) => message.msg(6, header_matcher(matcher)),
        Principal::Metadata(m) => message.msg(7, metadata(m)),
        Principal::Not(inner) => message.msg(8, self::principal(inner)),
        Principal::UrlPath(matcher) => message.msg(9, path(matcher)),
        Principal::DirectRemoteIp(range) => message.msg(10, cidr(range)),
        Principal::RemoteIp(range) => message.msg(11, cidr(range)),
        Principal::FilterState(key, matcher) => {
            message.msg(12, Message::new().str(1, key).msg(2, string_matcher(matcher)))
        }
    }
}

/// `MetadataMatcher`.
pub fn metadata(m: &MetadataMatch) -> Message {
    let path = m.path.iter().map(|key| Message::new().str_always(1, key));
    Message::new().str(1, &m.filter).msgs(2, path).msg(3, metadata_value(&m.value)).bool(4, m.invert)
}

/// `ValueMatcher`.
fn metadata_value(value: &MetadataValue) -> Message {
    let message = Message::new();
    match value {
        MetadataValue::String(matcher) => message.msg(3, string_matcher(matcher)),
        MetadataValue::Bool(b) => message.bool_always(4, *b),
        MetadataValue::Present(present) => message.bool_always(5, *present),
        MetadataValue::ListOneOf(inner) => message.msg(6, Message::new().msg(1, metadata_value(inner))),
        MetadataValue::OneOf(any) => message.msg(7, Message::new().msgs(1, any.iter().map(metadata_value))),
    }
}
