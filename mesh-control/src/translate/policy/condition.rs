//! What one condition of an AuthorizationPolicy asks, as a permission or a principal.
//!
//! Owns the meaning of every key and the wildcards of values. Must not know rules nor policies.

use mesh_api::model::{
    CidrRange, HeaderMatcher, HeaderValueMatch, MetadataMatch, MetadataValue, Name, Permission, Principal,
    StringMatcher,
};

/// What is protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// Requests.
    Http,
    /// Connections: HTTP is not known there.
    Tcp,
}

/// The condition cannot be asked here.
#[derive(Debug)]
pub(super) struct Unsupported;

/// Filter whose metadata tells what a token says.
const JWT: &str = "envoy.filters.http.jwt_authn";

/// Trust domains that count as one.
#[derive(Debug)]
pub(super) struct TrustDomains(Vec<String>);

impl TrustDomains {
    pub(super) fn new(names: &[&str]) -> Self {
        Self(names.iter().map(|n| (*n).to_owned()).collect())
    }

    /// Every name of a trust domain that is the own one.
    fn same(&self, domain: &str) -> Vec<String> {
        if self.0.iter().any(|d| d == domain) { self.0.clone() } else { vec![domain.to_owned()] }
    }

    /// A principal under every name of the own trust domain; `cluster.local` always means the own.
    fn expand(&self, principal: &str) -> Vec<String> {
        match principal.split_once('/') {
            Some((domain, rest)) if domain == "cluster.local" || self.0.iter().any(|d| d == domain) => {
                self.0.iter().map(|d| format!("{d}/{rest}")).collect()
            }
            _ => vec![principal.to_owned()],
        }
    }
}

/// A key of a condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Condition<'a> {
    SourcePrincipal,
    SourceNamespace,
    SourceServiceAccount,
    SourceTrustDomain,
    SourceIp,
    RemoteIp,
    RequestPrincipal,
    RequestAudiences,
    RequestPresenter,
    /// Claims, outermost key first, as written: `[a][b]`.
    RequestClaim(&'a str),
    RequestHeader(&'a str),
    Host,
    Method,
    Path,
    DestinationIp,
    DestinationPort,
    Sni,
    /// `experimental.envoy.filters.NAME[key]`.
    FilterMetadata(&'a str, &'a str),
}

impl<'a> Condition<'a> {
    /// Of a key of `when`; `None`: nobody knows it.
    pub(super) fn of_key(key: &'a str) -> Option<Self> {
        let inner = |prefix: &str| key.strip_prefix(prefix).filter(|k| k.len() > 2 && k.ends_with(']'));
        Some(match key {
            "source.ip" => Self::SourceIp,
            "remote.ip" => Self::RemoteIp,
            "source.namespace" => Self::SourceNamespace,
            "source.serviceAccount" => Self::SourceServiceAccount,
            "source.trustDomain" => Self::SourceTrustDomain,
            "source.principal" => Self::SourcePrincipal,
            "request.auth.principal" => Self::RequestPrincipal,
            "request.auth.audiences" => Self::RequestAudiences,
            "request.auth.presenter" => Self::RequestPresenter,
            "destination.ip" => Self::DestinationIp,
            "destination.port" => Self::DestinationPort,
            "connection.sni" => Self::Sni,
            _ => {
                if let Some(name) = inner("request.headers[") {
                    Self::RequestHeader(name.trim_end_matches(']'))
                } else if let Some(path) = inner("request.auth.claims") {
                    Self::RequestClaim(path)
                } else {
                    let (filter, rest) = key.strip_prefix("experimental.")?.split_once('[')?;
                    if !filter.starts_with("envoy.filters.") {
                        return None;
                    }
                    Self::FilterMetadata(filter, rest.strip_suffix(']')?)
                }
            }
        })
    }

    /// As a permission; `Ok(None)`: it is a principal.
    pub(super) fn permission(self, value: &str, side: Side) -> Result<Option<Vec<Permission>>, Unsupported> {
        let http = |p| if side == Side::Http { Ok(Some(vec![p])) } else { Err(Unsupported) };
        match self {
            Self::Host => http(Permission::Header(host(value))),
            Self::Method => http(Permission::Header(header(":method", value))),
            Self::Path => http(path(value)),
            Self::DestinationPort => {
                Ok(Some(vec![Permission::DestinationPort(value.parse().map_err(|_| Unsupported)?)]))
            }
            Self::DestinationIp => Ok(Some(vec![Permission::DestinationIp(block(value)?)])),
            Self::Sni => Ok(Some(vec![Permission::RequestedServerName(string(value, ""))])),
            Self::FilterMetadata(filter, key) => {
                let value = match value.strip_prefix('[').and_then(|v| v.strip_suffix(']')) {
                    Some(one) => MetadataValue::ListOneOf(Box::new(MetadataValue::String(string(one, "")))),
                    None => MetadataValue::String(string(value, "")),
                };
                let path = vec![Name::from(key)];
                Ok(Some(vec![Permission::Metadata(MetadataMatch {
                    filter: filter.into(),
                    path,
                    value,
                    invert: false,
                })]))
            }
            _ => Ok(None),
        }
    }

    /// As a principal; `Ok(None)`: it is a permission.
    pub(super) fn principal(
        self,
        value: &str,
        side: Side,
        namespace: &str,
        domains: &TrustDomains,
    ) -> Result<Option<Vec<Principal>>, Unsupported> {
        let http = |p| if side == Side::Http { Ok(Some(vec![p])) } else { Err(Unsupported) };
        let identity = |m| Ok(Some(vec![Principal::Authenticated(Some(m))]));
        match self {
            Self::SourcePrincipal => Ok(Some(
                domains.expand(value).iter().map(|v| Principal::Authenticated(Some(string(v, "spiffe://")))).collect(),
            )),
            Self::SourceNamespace => identity(StringMatcher::regex(format!(".*/ns/{}/.*", pattern(value)))),
            Self::SourceServiceAccount => {
                let (namespace, account) = value.split_once('/').unwrap_or((namespace, value));
                let (ns, sa) = (pattern(namespace), pattern(account));
                // An identity may say more between and after the two.
                identity(StringMatcher::regex(format!("spiffe://.+/ns/{ns}/(.+/|)sa/{sa}(/.+)?")))
            }
            Self::SourceTrustDomain => {
                let one = |v: &String| StringMatcher::regex(format!("spiffe://{}/.*", pattern(v)));
                Ok(Some(domains.same(value).iter().map(|v| Principal::Authenticated(Some(one(v)))).collect()))
            }
            Self::SourceIp => Ok(Some(vec![Principal::DirectRemoteIp(block(value)?)])),
            Self::RemoteIp => Ok(Some(vec![Principal::RemoteIp(block(value)?)])),
            Self::RequestPrincipal => http(request_principal(value)),
            Self::RequestAudiences => http(claim(&["aud"], value)),
            Self::RequestPresenter => http(claim(&["azp"], value)),
            Self::RequestClaim(path) => {
                let keys: Vec<&str> = path.trim_start_matches('[').trim_end_matches(']').split("][").collect();
                http(claim(&keys, value))
            }
            Self::RequestHeader(name) => http(Principal::Header(header(name, value))),
            _ => Ok(None),
        }
    }
}

/// `*`, `*suffix`, `prefix*` or the value itself, after `prefix`.
fn string(value: &str, prefix: &str) -> StringMatcher {
    match (value.strip_prefix('*'), value.strip_suffix('*')) {
        _ if value == "*" => StringMatcher::regex(".+"),
        (Some(suffix), _) if prefix.is_empty() => StringMatcher::suffix(suffix),
        (Some(suffix), _) => StringMatcher::regex(format!("{}.*{}", regex::escape(prefix), regex::escape(suffix))),
        (None, Some(start)) => StringMatcher::prefix(format!("{prefix}{start}")),
        (None, None) => StringMatcher::exact(format!("{prefix}{value}")),
    }
}

/// A value with `*` anywhere as part of a regular expression; a segment never reaches over `/`.
fn pattern(value: &str) -> String {
    value.split('*').map(regex::escape).collect::<Vec<_>>().join("[^/]*")
}

fn header(name: &str, value: &str) -> HeaderMatcher {
    let value =
        if value == "*" { HeaderValueMatch::Present(true) } else { HeaderValueMatch::String(string(value, "")) };
    HeaderMatcher { name: name.to_ascii_lowercase().into(), value, invert: false, treat_missing_as_empty: false }
}

/// Hosts are compared without case, port included.
fn host(value: &str) -> HeaderMatcher {
    let mut out = header(":authority", value);
    if let HeaderValueMatch::String(m) = &mut out.value {
        m.ignore_case = true;
    }
    out
}

/// A path, or a template with `{*}` (a segment) and `{**}` (the rest).
fn path(value: &str) -> Permission {
    if value.contains("{*}") || value.contains("{**}") {
        return Permission::UriTemplate(value.replace("{**}", "**").replace("{*}", "*").into());
    }
    Permission::UrlPath(string(value, ""))
}

fn block(value: &str) -> Result<CidrRange, Unsupported> {
    if let Ok(address) = value.parse::<std::net::IpAddr>() {
        return Ok(CidrRange { address, prefix_len: if address.is_ipv4() { 32 } else { 128 } });
    }
    let net: ipnet::IpNet = value.parse().map_err(|_| Unsupported)?;
    Ok(CidrRange { address: net.network(), prefix_len: net.prefix_len() })
}

fn token(path: &[&str], value: MetadataValue) -> Principal {
    let path = std::iter::once("payload").chain(path.iter().copied()).map(Name::from).collect();
    Principal::Metadata(MetadataMatch { filter: JWT.into(), path, value, invert: false })
}

/// A claim is a text or a list of texts.
fn claim(path: &[&str], value: &str) -> Principal {
    let text = MetadataValue::String(string(value, ""));
    token(path, MetadataValue::OneOf(vec![text.clone(), MetadataValue::ListOneOf(Box::new(text))]))
}

/// `ISSUER/SUBJECT`, with wildcards.
fn request_principal(value: &str) -> Principal {
    let is = |key: &str, v: &str| token(&[key], MetadataValue::String(string(v, "")));
    match value.rsplit_once('/') {
        _ if value == "*" => Principal::And(vec![is("iss", "*"), is("sub", "*")]),
        Some((issuer, subject)) => Principal::And(vec![is("iss", issuer), is("sub", subject)]),
        // One wildcard for both: it says something only about one end.
        None => match value.strip_suffix('*') {
            Some(_) => Principal::And(vec![is("iss", value), is("sub", "*")]),
            None => Principal::And(vec![is("iss", "*"), is("sub", value)]),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_of_values() {
        assert_eq!(string("*", "spiffe://"), StringMatcher::regex(".+"));
        assert_eq!(string("*/sa/a.b", "spiffe://"), StringMatcher::regex("spiffe://.*/sa/a\\.b"));
        assert_eq!(string("td/ns/x*", "spiffe://"), StringMatcher::prefix("spiffe://td/ns/x"));
        assert_eq!(string("*.html", ""), StringMatcher::suffix(".html"));
        assert_eq!(pattern("team-*"), "team\\-[^/]*");
    }

    #[test]
    fn keys_of_when() {
        assert_eq!(Condition::of_key("request.headers[X-A]"), Some(Condition::RequestHeader("X-A")));
        assert_eq!(Condition::of_key("request.auth.claims[a][b]"), Some(Condition::RequestClaim("[a][b]")));
        assert_eq!(
            Condition::of_key("experimental.envoy.filters.a.b[k]"),
            Some(Condition::FilterMetadata("envoy.filters.a.b", "k"))
        );
        assert_eq!(Condition::of_key("request.mood"), None);
        assert!(Condition::DestinationIp.permission("nonsense", Side::Http).is_err());
    }

    #[test]
    fn paths_may_be_templates() {
        assert_eq!(path("/a/{*}/b/{**}"), Permission::UriTemplate("/a/*/b/**".into()));
    }
}
