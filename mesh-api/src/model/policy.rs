//! Authorization (`envoy.config.rbac.v3`).

use serde::Serialize;

use super::{CidrRange, HeaderMatcher, Name, StringMatcher};

/// Rules with one action.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Rbac {
    /// What a match means.
    pub action: RbacAction,
    /// In name order; a request matches when any policy does.
    pub policies: Vec<Policy>,
}

/// `RBAC.Action`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub enum RbacAction {
    /// Only what matches passes.
    Allow,
    /// What matches is refused.
    Deny,
    /// What matches is marked, everything passes.
    Log,
}

/// A named policy: one of the permissions and one of the principals must hold.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Policy {
    /// `ns[NS]-policy[NAME]-rule[N]` for Istio's.
    pub name: Name,
    /// What is done.
    pub permissions: Vec<Permission>,
    /// By whom.
    pub principals: Vec<Principal>,
}

/// What is done.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub enum Permission {
    /// Anything.
    Any,
    /// All of them.
    And(Vec<Permission>),
    /// One of them.
    Or(Vec<Permission>),
    /// Not this.
    Not(Box<Permission>),
    /// A header.
    Header(HeaderMatcher),
    /// The path without query.
    UrlPath(StringMatcher),
    /// The path by URI template.
    UriTemplate(Name),
    /// Destination address.
    DestinationIp(CidrRange),
    /// Destination port.
    DestinationPort(u16),
    /// Destination port in `[start, end)`.
    DestinationPortRange(u16, u16),
    /// SNI.
    RequestedServerName(StringMatcher),
    /// Dynamic metadata of a filter.
    Metadata(MetadataMatch),
}

/// By whom.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub enum Principal {
    /// Anyone.
    Any,
    /// All of them.
    And(Vec<Principal>),
    /// One of them.
    Or(Vec<Principal>),
    /// Not this.
    Not(Box<Principal>),
    /// Identity in the peer's certificate (URI SAN, else DNS SAN, else subject); `None`: any authenticated peer.
    Authenticated(Option<StringMatcher>),
    /// Peer of the socket.
    DirectRemoteIp(CidrRange),
    /// Client address after PROXY protocol and `x-forwarded-for`.
    RemoteIp(CidrRange),
    /// Peer address (deprecated `source_ip`, same as the socket's after PROXY protocol).
    SourceIp(CidrRange),
    /// A header.
    Header(HeaderMatcher),
    /// The path without query.
    UrlPath(StringMatcher),
    /// Dynamic metadata of a filter (JWT claims).
    Metadata(MetadataMatch),
    /// Filter state under this key.
    FilterState(Name, StringMatcher),
}

/// `MetadataMatcher`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MetadataMatch {
    /// Filter name.
    pub filter: Name,
    /// Keys to walk.
    pub path: Vec<Name>,
    /// What the value must be.
    pub value: MetadataValue,
    /// The result is negated.
    pub invert: bool,
}

/// Value of a [`MetadataMatch`].
#[derive(Debug, Clone, PartialEq, Serialize)]
pub enum MetadataValue {
    /// A string.
    String(StringMatcher),
    /// A boolean.
    Bool(bool),
    /// There at all.
    Present(bool),
    /// One element of a list.
    ListOneOf(Box<MetadataValue>),
    /// One of several.
    OneOf(Vec<MetadataValue>),
}
