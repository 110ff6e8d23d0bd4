//! Role-based access control: rules compiled once, checked against what is known of a request or of a connection.
//! Knows no HTTP codec and sends nothing; verdicts name the policy, and, for explanations, what failed.
//!
//! Conditions are three-valued by *polarity*: where a match refuses (DENY, or ALLOW under a negation) one matching
//! value of a repeated header is enough; where a match admits, all of them must match. A condition that cannot be
//! evaluated on a connection (headers, paths) is false for ALLOW and true for DENY, so it never opens anything.

use std::{borrow::Cow, net::SocketAddr};

use mesh_api::model::{self, CidrRange, Name, RbacAction};

use crate::{
    config::ConfigError,
    http::{
        matchers::{HeaderMatch, Several, StringMatch},
        message::RequestHead,
        metadata_match::MetadataMatch,
        template::Template,
    },
    net::ConnInfo,
};

/// Compiled rules of one action.
#[derive(Debug)]
pub struct Engine {
    action: RbacAction,
    policies: Box<[Policy]>,
}

#[derive(Debug)]
struct Policy {
    name: Name,
    permissions: Box<[Cond]>,
    principals: Box<[Cond]>,
}

/// What rules look at. `head` is `None` for connections.
#[derive(Debug, Clone, Copy)]
pub struct Attributes<'a> {
    /// Connection.
    pub conn: &'a ConnInfo,
    /// Request, normalised.
    pub head: Option<&'a RequestHead>,
    /// Client address after `x-forwarded-for` (the peer for connections).
    pub client: SocketAddr,
    /// Dynamic metadata of filters that ran before.
    pub metadata: Option<&'a model::Metadata>,
}

/// Outcome of a check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// May pass.
    pub allowed: bool,
    /// The policy that matched.
    pub policy: Option<Name>,
}

impl Verdict {
    /// For `rbac_access_denied_matched_policy[...]`: the policy, or `none`.
    pub fn policy_or_none(&self) -> Name {
        self.policy.clone().unwrap_or_else(|| "none".into())
    }
}

/// A condition, of a permission or of a principal.
#[derive(Debug)]
enum Cond {
    Any,
    And(Box<[Cond]>),
    Or(Box<[Cond]>),
    Not(Box<Cond>),
    Header(HeaderMatch),
    Path(StringMatch),
    Template(Template),
    DestinationIp(CidrRange),
    DestinationPort(u16, u32),
    ServerName(StringMatch),
    Authenticated(Option<StringMatch>),
    DirectRemoteIp(CidrRange),
    RemoteIp(CidrRange),
    Metadata(MetadataMatch),
    FilterState(Name, StringMatch),
}

impl Engine {
    /// Compiles rules.
    ///
    /// # Errors
    /// A pattern or header name that is not valid.
    pub fn compile(rules: &model::Rbac) -> Result<Self, ConfigError> {
        let policies = rules.policies.iter().map(|p| {
            let within = |e: ConfigError| e.within(format!("policy {:?}", &*p.name));
            Ok(Policy {
                name: p.name.clone(),
                permissions: p.permissions.iter().map(permission).collect::<Result<_, _>>().map_err(within)?,
                principals: p.principals.iter().map(principal).collect::<Result<_, _>>().map_err(within)?,
            })
        });
        Ok(Self { action: rules.action, policies: policies.collect::<Result<_, ConfigError>>()? })
    }
    /// What a match means.
    pub fn action(&self) -> RbacAction {
        self.action
    }
    /// Checks a request or connection.
    pub fn check(&self, attributes: &Attributes<'_>) -> Verdict {
        let refuses = self.action == RbacAction::Deny;
        let policy = self.policies.iter().find(|p| p.matches(attributes, refuses)).map(|p| p.name.clone());
        let allowed = match self.action {
            RbacAction::Allow => policy.is_some(),
            RbacAction::Deny => policy.is_none(),
            RbacAction::Log => true,
        };
        Verdict { allowed, policy }
    }
    /// Why no ALLOW policy matched: for each, the first condition that failed. Slow, for explanations only.
    pub fn explain(&self, attributes: &Attributes<'_>) -> Vec<(Name, String)> {
        let refuses = self.action == RbacAction::Deny;
        let failed = |p: &Policy| {
            let side = |conds: &[Cond], what: &str| {
                (!any(conds, attributes, refuses)).then(|| match conds.first() {
                    Some(c) => format!("{what}: {}", c.first_failure(attributes, refuses)),
                    None => format!("{what}: there is none"),
                })
            };
            side(&p.permissions, "permission").or_else(|| side(&p.principals, "principal"))
        };
        self.policies.iter().filter_map(|p| failed(p).map(|why| (p.name.clone(), why))).collect()
    }
}

impl Policy {
    fn matches(&self, a: &Attributes<'_>, refuses: bool) -> bool {
        any(&self.permissions, a, refuses) && any(&self.principals, a, refuses)
    }
}

fn any(conds: &[Cond], a: &Attributes<'_>, refuses: bool) -> bool {
    conds.iter().any(|c| c.eval(a, refuses))
}

fn permission(p: &model::Permission) -> Result<Cond, ConfigError> {
    use model::Permission as P;
    Ok(match p {
        P::Any => Cond::Any,
        P::And(list) => Cond::And(list.iter().map(permission).collect::<Result<_, _>>()?),
        P::Or(list) => Cond::Or(list.iter().map(permission).collect::<Result<_, _>>()?),
        P::Not(inner) => Cond::Not(Box::new(permission(inner)?)),
        P::Header(m) => Cond::Header(HeaderMatch::compile(m)?),
        P::UrlPath(m) => Cond::Path(StringMatch::compile(m)?),
        P::UriTemplate(t) => Cond::Template(Template::compile(t)?),
        P::DestinationIp(range) => Cond::DestinationIp(*range),
        P::DestinationPort(port) => Cond::DestinationPort(*port, u32::from(*port) + 1),
        P::DestinationPortRange(start, end) => Cond::DestinationPort(*start, u32::from(*end)),
        P::RequestedServerName(m) => Cond::ServerName(StringMatch::compile(m)?),
        P::Metadata(m) => Cond::Metadata(MetadataMatch::compile(m)?),
    })
}

fn principal(p: &model::Principal) -> Result<Cond, ConfigError> {
    use model::Principal as P;
    Ok(match p {
        P::Any => Cond::Any,
        P::And(list) => Cond::And(list.iter().map(principal).collect::<Result<_, _>>()?),
        P::Or(list) => Cond::Or(list.iter().map(principal).collect::<Result<_, _>>()?),
        P::Not(inner) => Cond::Not(Box::new(principal(inner)?)),
        P::Authenticated(m) => Cond::Authenticated(m.as_ref().map(StringMatch::compile).transpose()?),
        P::DirectRemoteIp(range) => Cond::DirectRemoteIp(*range),
        // Envoy's deprecated `source_ip` is the peer of the connection after PROXY protocol, never a header's word.
        P::SourceIp(range) => Cond::DirectRemoteIp(*range),
        P::RemoteIp(range) => Cond::RemoteIp(*range),
        P::Header(m) => Cond::Header(HeaderMatch::compile(m)?),
        P::UrlPath(m) => Cond::Path(StringMatch::compile(m)?),
        P::Metadata(m) => Cond::Metadata(MetadataMatch::compile(m)?),
        P::FilterState(key, m) => Cond::FilterState(key.clone(), StringMatch::compile(m)?),
    })
}

impl Cond {
    /// `refuses`: a match takes access away.
    fn eval(&self, a: &Attributes<'_>, refuses: bool) -> bool {
        match self {
            Cond::Any => true,
            Cond::And(list) => list.iter().all(|c| c.eval(a, refuses)),
            Cond::Or(list) => list.iter().any(|c| c.eval(a, refuses)),
            Cond::Not(inner) => !inner.eval(a, !refuses),
            Cond::Header(m) => a
                .head
                .map_or(refuses, |head| m.matches_several(head, if refuses { Several::Any } else { Several::All })),
            Cond::Path(m) => a.head.map_or(refuses, |head| m.matches(url_path(head))),
            Cond::Template(t) => {
                a.head.map_or(refuses, |head| std::str::from_utf8(url_path(head)).is_ok_and(|p| t.matches(p)))
            }
            Cond::DestinationIp(range) => range.contains(a.conn.local.ip()),
            Cond::DestinationPort(start, end) => {
                let port = a.conn.local.port();
                *start <= port && u32::from(port) < *end
            }
            Cond::ServerName(m) => m.matches(a.conn.sni.as_deref().unwrap_or_default().as_bytes()),
            Cond::Authenticated(m) => authenticated(a.conn, m.as_ref(), refuses),
            Cond::DirectRemoteIp(range) => range.contains(a.conn.peer.ip()),
            Cond::RemoteIp(range) => range.contains(a.client.ip()),
            Cond::Metadata(m) => a.metadata.map_or_else(|| m.matches_none(), |facts| m.matches(facts)),
            Cond::FilterState(key, m) => filter_state(a.conn, key).is_some_and(|v| m.matches(v.as_bytes())),
        }
    }

    /// The innermost condition that is to blame, in words.
    fn first_failure(&self, a: &Attributes<'_>, refuses: bool) -> String {
        match self {
            Cond::And(list) => match list.iter().find(|c| !c.eval(a, refuses)) {
                Some(c) => c.first_failure(a, refuses),
                None => self.describe(a),
            },
            Cond::Or(list) => {
                let all: Vec<String> = list.iter().map(|c| c.first_failure(a, refuses)).collect();
                all.join("; nor ")
            }
            other => other.describe(a),
        }
    }

    fn describe(&self, a: &Attributes<'_>) -> String {
        let text =
            |v: Option<Cow<'_, [u8]>>| v.map_or("absent".to_owned(), |v| format!("{:?}", String::from_utf8_lossy(&v)));
        match self {
            Cond::Not(inner) => format!("not ({})", inner.describe(a)),
            Cond::Header(m) => format!("header {:?} is {}", m.field, text(a.head.and_then(|h| m.field.value(h)))),
            Cond::Path(_) | Cond::Template(_) => {
                format!("path is {}", text(a.head.map(|h| Cow::Borrowed(url_path(h)))))
            }
            Cond::DestinationIp(_) | Cond::DestinationPort(..) => format!("destination is {}", a.conn.local),
            Cond::ServerName(_) => format!("SNI is {:?}", a.conn.sni),
            Cond::Authenticated(_) => match &a.conn.tls {
                Some(tls) => format!("peer is {:?}", tls.spiffe()),
                None => "the connection is cleartext: the peer has no identity".to_owned(),
            },
            Cond::DirectRemoteIp(_) => format!("source address is {}", a.conn.peer.ip()),
            Cond::RemoteIp(_) => format!("client address is {}", a.client.ip()),
            Cond::Metadata(m) => format!("metadata {m}"),
            Cond::FilterState(key, _) => format!("filter state {key}"),
            Cond::Any | Cond::And(_) | Cond::Or(_) => "condition".to_owned(),
        }
    }
}

/// Path without query and fragment, as policies see it.
fn url_path(head: &RequestHead) -> &[u8] {
    let path = head.path();
    path.split('#').next().unwrap_or(path).as_bytes()
}

/// Envoy's order: URI names, else DNS names, else the subject. Only of a validated certificate.
fn authenticated(conn: &ConnInfo, matcher: Option<&StringMatch>, refuses: bool) -> bool {
    let Some(tls) = conn.tls.as_ref().filter(|t| t.validated) else { return false };
    let Some(certificate) = tls.certificate.as_deref() else { return false };
    let Some(matcher) = matcher else { return true };
    let names: &[Name] =
        if certificate.uri_sans.is_empty() { &certificate.dns_sans } else { certificate.uri_sans.as_slice() };
    if names.is_empty() {
        return matcher.matches(certificate.subject.as_bytes());
    }
    if refuses || names.len() == 1 {
        names.iter().any(|n| matcher.matches(n.as_bytes()))
    } else {
        // A certificate that names several identities is nobody in particular.
        names.iter().all(|n| matcher.matches(n.as_bytes()))
    }
}

/// The keys of filter state that exist here: Istio's `io.istio.peer_principal` and `io.istio.local_principal`.
fn filter_state<'a>(conn: &'a ConnInfo, key: &str) -> Option<&'a Name> {
    let tls = conn.tls.as_ref()?;
    match key {
        "io.istio.peer_principal" => tls.spiffe(),
        "io.istio.local_principal" => tls.local.as_ref()?.spiffe.as_ref(),
        _ => None,
    }
}

/// An RBAC filter: what is enforced and what is only reported.
#[derive(Debug)]
pub struct Filter {
    rules: Option<Engine>,
    shadow: Option<Engine>,
    shadow_prefix: Name,
}

/// Where what shadow rules say of a request is kept.
pub const HTTP_METADATA: &str = "envoy.filters.http.rbac";
/// Where what they say of a connection is kept.
pub const NETWORK_METADATA: &str = "envoy.filters.network.rbac";

/// Tells filters that follow, and logs, what shadow rules say, in Envoy's words.
pub fn note_shadow(metadata: &mut model::Metadata, filter: &str, prefix: &str, verdict: &Verdict) {
    let mut put = |key: &str, value: &str| {
        let all = metadata.entry(filter.to_owned()).or_insert_with(|| serde_json::Value::Object(Default::default()));
        if let Some(all) = all.as_object_mut() {
            all.insert(format!("{prefix}{key}"), value.into());
        }
    };
    if let Some(policy) = &verdict.policy {
        put("shadow_effective_policy_id", policy);
    }
    put("shadow_engine_result", if verdict.allowed { "allowed" } else { "denied" });
}

/// Outcome of [`Filter::check`].
#[derive(Debug)]
pub struct Decision {
    /// `Some` when access is refused.
    pub denied: Option<Name>,
    /// Outcome of the shadow rules, with their prefix.
    pub shadow: Option<(Name, Verdict)>,
}

impl Filter {
    /// Compiles a filter's rules.
    ///
    /// # Errors
    /// As [`Engine::compile`].
    pub fn compile(filter: &model::RbacFilter) -> Result<Self, ConfigError> {
        Ok(Self {
            rules: filter.rules.as_ref().map(Engine::compile).transpose()?,
            shadow: filter.shadow_rules.as_ref().map(Engine::compile).transpose()?,
            shadow_prefix: filter.shadow_prefix.clone(),
        })
    }
    /// Checks a request or connection.
    pub fn check(&self, attributes: &Attributes<'_>) -> Decision {
        let denied = self.rules.as_ref().map(|r| r.check(attributes)).filter(|v| !v.allowed);
        Decision {
            denied: denied.map(|v| v.policy_or_none()),
            shadow: self.shadow.as_ref().map(|s| (self.shadow_prefix.clone(), s.check(attributes))),
        }
    }
    /// Why access was refused, in words; slow.
    pub fn explain(&self, attributes: &Attributes<'_>) -> String {
        let Some(rules) = &self.rules else { return String::new() };
        if rules.action == RbacAction::Deny {
            let policy = rules.check(attributes).policy_or_none();
            return format!("DENY policy {policy} matches");
        }
        let reasons: Vec<String> =
            rules.explain(attributes).into_iter().map(|(name, why)| format!("{name}: {why}")).collect();
        if reasons.is_empty() { "no ALLOW policy exists".to_owned() } else { reasons.join(" | ") }
    }
    /// The enforced rules, when there are any.
    pub fn engine(&self) -> Option<&Engine> {
        self.rules.as_ref()
    }
}

#[cfg(test)]
mod tests;
