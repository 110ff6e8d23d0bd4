//! Authorization rules. What is not understood is refused: a rule that is skipped would let something pass.

use std::collections::BTreeMap;

use mesh_api::model::{
    MetadataMatch, MetadataValue, Name, Permission, Policy, Principal, Rbac, RbacAction, StringMatcher,
};
use mesh_api::xds::envoy::config::rbac::v3 as proto;
use mesh_api::xds::envoy::extensions::path::r#match::uri_template::v3::UriTemplateMatchConfig;
use mesh_api::xds::envoy::r#type::matcher::v3 as matcher;

use super::Result;
use super::at::At;
use super::values::{cidr, header_matcher, port, string_matcher, type_name, unpack};

pub fn rbac(at: &At<'_>, rules: &proto::Rbac) -> Result<Rbac> {
    let action = match proto::rbac::Action::try_from(rules.action) {
        Ok(proto::rbac::Action::Allow) => RbacAction::Allow,
        Ok(proto::rbac::Action::Deny) => RbacAction::Deny,
        Ok(proto::rbac::Action::Log) => RbacAction::Log,
        Err(_) => return at.field("action").refuse("does not exist"),
    };
    let sorted: BTreeMap<&String, &proto::Policy> = rules.policies.iter().collect();
    let mut policies = Vec::with_capacity(sorted.len());
    for (name, policy) in sorted {
        let at = at.field("policies");
        let at = at.field(name);
        if policy.condition.is_some() || policy.checked_condition.is_some() {
            return at.refuse("conditions in CEL are not supported");
        }
        let permissions = policy.permissions.iter().enumerate();
        let principals = policy.principals.iter().enumerate();
        policies.push(Policy {
            name: name.as_str().into(),
            permissions: permissions.map(|(i, p)| permission(&at.item("permissions", i), p)).collect::<Result<_>>()?,
            principals: principals.map(|(i, p)| principal(&at.item("principals", i), p)).collect::<Result<_>>()?,
        });
    }
    Ok(Rbac { action, policies })
}

fn path(at: &At<'_>, m: &matcher::PathMatcher) -> Result<StringMatcher> {
    let matcher::path_matcher::Rule::Path(m) = at.required(m.rule.as_ref())?;
    string_matcher(&at.field("path"), m)
}

fn permission(at: &At<'_>, p: &proto::Permission) -> Result<Permission> {
    use proto::permission::Rule as R;
    let set = |set: &proto::permission::Set| {
        set.rules.iter().enumerate().map(|(i, p)| permission(&at.item("rules", i), p)).collect::<Result<Vec<_>>>()
    };
    #[allow(deprecated)] // still sent
    Ok(match at.required(p.rule.as_ref())? {
        R::AndRules(s) => Permission::And(set(s)?),
        R::OrRules(s) => Permission::Or(set(s)?),
        // `any: false` is never true.
        R::Any(any) => {
            if *any {
                Permission::Any
            } else {
                Permission::Not(Box::new(Permission::Any))
            }
        }
        R::Header(m) => Permission::Header(header_matcher(&at.field("header"), m)?),
        R::UrlPath(m) => Permission::UrlPath(path(&at.field("url_path"), m)?),
        R::DestinationIp(r) => Permission::DestinationIp(cidr(&at.field("destination_ip"), r)?),
        R::DestinationPort(p) => Permission::DestinationPort(port(&at.field("destination_port"), *p)?),
        R::DestinationPortRange(r) => {
            let bound = |n: i32| u16::try_from(n).map_err(|_| at.error(format!("{n} is not a port")));
            Permission::DestinationPortRange(bound(r.start)?, bound(r.end)?)
        }
        R::Metadata(m) => Permission::Metadata(metadata(&at.field("metadata"), m)?),
        R::NotRule(inner) => Permission::Not(Box::new(permission(&at.field("not_rule"), inner)?)),
        R::RequestedServerName(m) => {
            Permission::RequestedServerName(string_matcher(&at.field("requested_server_name"), m)?)
        }
        R::UriTemplate(extension) => {
            let any = at.required(extension.typed_config.as_ref())?;
            let config: UriTemplateMatchConfig = unpack(at, any)?;
            Permission::UriTemplate(config.path_template.as_str().into())
        }
        R::Matcher(extension) => {
            let kind = extension.typed_config.as_ref().map(type_name).unwrap_or_default();
            return at.refuse(format!("matcher {kind} is not supported"));
        }
        R::SourcedMetadata(_) => return at.refuse("sourced_metadata is not supported"),
    })
}

fn principal(at: &At<'_>, p: &proto::Principal) -> Result<Principal> {
    use proto::principal::Identifier as I;
    let set = |set: &proto::principal::Set| {
        set.ids.iter().enumerate().map(|(i, p)| principal(&at.item("ids", i), p)).collect::<Result<Vec<_>>>()
    };
    #[allow(deprecated)] // still sent
    Ok(match at.required(p.identifier.as_ref())? {
        I::AndIds(s) => Principal::And(set(s)?),
        I::OrIds(s) => Principal::Or(set(s)?),
        I::Any(any) => {
            if *any {
                Principal::Any
            } else {
                Principal::Not(Box::new(Principal::Any))
            }
        }
        I::Authenticated(a) => {
            let name = a.principal_name.as_ref();
            Principal::Authenticated(name.map(|m| string_matcher(&at.field("principal_name"), m)).transpose()?)
        }
        I::SourceIp(r) => Principal::SourceIp(cidr(&at.field("source_ip"), r)?),
        I::DirectRemoteIp(r) => Principal::DirectRemoteIp(cidr(&at.field("direct_remote_ip"), r)?),
        I::RemoteIp(r) => Principal::RemoteIp(cidr(&at.field("remote_ip"), r)?),
        I::Header(m) => Principal::Header(header_matcher(&at.field("header"), m)?),
        I::UrlPath(m) => Principal::UrlPath(path(&at.field("url_path"), m)?),
        I::Metadata(m) => Principal::Metadata(metadata(&at.field("metadata"), m)?),
        I::FilterState(m) => {
            use matcher::filter_state_matcher::Matcher;
            match &m.matcher {
                Some(Matcher::StringMatch(s)) => {
                    Principal::FilterState(m.key.as_str().into(), string_matcher(&at.field("filter_state"), s)?)
                }
                _ => return at.field("filter_state").refuse("only string matches are supported"),
            }
        }
        I::NotId(inner) => Principal::Not(Box::new(principal(&at.field("not_id"), inner)?)),
        I::SourcedMetadata(_) => return at.refuse("sourced_metadata is not supported"),
        I::Custom(c) => return at.refuse(format!("principal {:?} is not supported", c.name)),
    })
}

pub(super) fn metadata(at: &At<'_>, m: &matcher::MetadataMatcher) -> Result<MetadataMatch> {
    use matcher::metadata_matcher::path_segment::Segment;
    let mut path: Vec<Name> = Vec::new();
    for (i, segment) in m.path.iter().enumerate() {
        let Segment::Key(key) = at.item("path", i).required(segment.segment.as_ref())?;
        path.push(key.as_str().into());
    }
    let value = metadata_value(&at.field("value"), at.required(m.value.as_ref())?)?;
    Ok(MetadataMatch { filter: m.filter.as_str().into(), path, value, invert: m.invert })
}

fn metadata_value(at: &At<'_>, value: &matcher::ValueMatcher) -> Result<MetadataValue> {
    use matcher::value_matcher::MatchPattern as P;
    Ok(match at.required(value.match_pattern.as_ref())? {
        P::StringMatch(m) => MetadataValue::String(string_matcher(at, m)?),
        P::BoolMatch(b) => MetadataValue::Bool(*b),
        P::PresentMatch(b) => MetadataValue::Present(*b),
        P::ListMatch(l) => {
            use matcher::list_matcher::MatchPattern;
            match at.required(l.match_pattern.as_ref())? {
                MatchPattern::OneOf(inner) => MetadataValue::ListOneOf(Box::new(metadata_value(at, inner)?)),
            }
        }
        P::OrMatch(m) => {
            MetadataValue::OneOf(m.value_matchers.iter().map(|v| metadata_value(at, v)).collect::<Result<_>>()?)
        }
        P::NullMatch(_) | P::DoubleMatch(_) => return at.refuse("matches of numbers and nulls are not supported"),
    })
}
