//! External authorization: what an authorizer is told of a request or a connection, and what its answer changes.
//!
//! Owns the question as plain facts, the form that it has over HTTP, and the meaning of answers. Knows neither the
//! messages of gRPC (see [`Codec`]) nor connections: who asks stands in `http/authorizer.rs`. Whatever cannot be
//! understood is an error, which refuses unless the filter says otherwise.

use std::{borrow::Cow, collections::BTreeMap, net::SocketAddr, time::SystemTime};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Version, header};
use mesh_api::model::{self, AppendAction, AuthzBody, AuthzGrpc, AuthzService, Name};
use serde_json::Value;

use crate::{
    config::ConfigError,
    http::{
        local_reply::{LocalReply, Reason},
        matchers::StringMatch,
        message::{Authority, RequestHead},
        metadata_match::MetadataMatch,
    },
    net::ConnInfo,
};

/// Under this name an authorizer's metadata is kept.
pub const METADATA: &str = "envoy.filters.http.ext_authz";
/// The body that is sent is not the whole.
pub const PARTIAL: &str = "x-envoy-auth-partial-body";
/// Headers that an answer over HTTP takes off the request.
const REMOVE: &str = "x-envoy-auth-headers-to-remove";
const FAILED_OPEN: HeaderName = HeaderName::from_static("x-envoy-auth-failure-mode-allowed");

/// A compiled filter.
#[derive(Debug)]
pub struct ExtAuthz {
    /// As it was declared.
    pub config: model::ExtAuthz,
    condition: Option<MetadataMatch>,
    allowed: Box<[StringMatch]>,
    disallowed: Box<[StringMatch]>,
    http: Option<HttpRules>,
    /// The call to a service over gRPC, but for its message.
    grpc: Option<RequestHead>,
}

/// Of a service over HTTP.
#[derive(Debug)]
struct HttpRules {
    add: Box<[(HeaderName, HeaderValue)]>,
    upstream: Box<[StringMatch]>,
    append: Box<[StringMatch]>,
    client: Box<[StringMatch]>,
    client_on_success: Box<[StringMatch]>,
}

/// What an authorizer over gRPC is told.
#[derive(Debug)]
pub struct Question<'a> {
    /// Connection.
    pub conn: &'a ConnInfo,
    /// Client address after `x-forwarded-for`.
    pub client: SocketAddr,
    /// The peer's certificate is told.
    pub certificate: bool,
    /// The SNI is told.
    pub tls_session: bool,
    /// Request; `None`: a connection.
    pub request: Option<HttpQuestion<'a>>,
    /// Of the route.
    pub context: &'a [(Name, Name)],
    /// Dynamic metadata by filter.
    pub metadata: Vec<(&'a str, &'a Value)>,
}

/// What it is told of a request.
#[derive(Debug)]
pub struct HttpQuestion<'a> {
    /// Head.
    pub head: &'a RequestHead,
    /// When it came.
    pub time: SystemTime,
    /// `x-request-id`, or nothing.
    pub id: &'a str,
    /// Headers that may be told, pseudo headers included.
    pub headers: BTreeMap<Cow<'a, str>, String>,
    /// The body, or its beginning.
    pub body: Option<Bytes>,
    /// In the field for bytes.
    pub body_as_bytes: bool,
}

/// Messages of `envoy.service.auth.v3`.
pub trait Codec: std::fmt::Debug + Send + Sync {
    /// A `CheckRequest`.
    fn question(&self, question: &Question<'_>) -> Vec<u8>;
    /// Of a `CheckResponse`.
    ///
    /// # Errors
    /// When it is none, or says itself that there was an error.
    fn answer(&self, message: &[u8]) -> Result<Answer, String>;
}

/// A header as it was answered, not yet looked at.
pub type RawHeader = (String, Vec<u8>);

/// What an authorizer said.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// It may pass.
    Allowed(Box<Changes>),
    /// It may not.
    Denied(Box<Denial>),
}

/// What a permission changes.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Headers of the request that are replaced.
    pub set: Vec<RawHeader>,
    /// Headers of the request that get one more value.
    pub add: Vec<RawHeader>,
    /// The same, but only where there is one already.
    pub append: Vec<RawHeader>,
    /// Headers of the request that go.
    pub remove: Vec<String>,
    /// Query parameters that are set.
    pub query_set: Vec<(String, String)>,
    /// Query parameters that go.
    pub query_remove: Vec<String>,
    /// Headers of the answer.
    pub response: Vec<(RawHeader, AppendAction)>,
    /// For the filters that follow.
    pub metadata: Option<Value>,
}

/// What a refused client gets.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Denial {
    /// Status; 0: 403.
    pub status: u16,
    /// Headers; whether they are added to those of the same name.
    pub headers: Vec<(RawHeader, bool)>,
    /// Body.
    pub body: Bytes,
}

/// Changes of an answer's head, ready to be made.
pub type ResponseChanges = Vec<(HeaderName, HeaderValue, AppendAction)>;

fn compile_all(list: &[model::StringMatcher]) -> Result<Box<[StringMatch]>, ConfigError> {
    list.iter().map(StringMatch::compile).collect()
}

fn hit(list: &[StringMatch], name: &str) -> bool {
    list.iter().any(|m| m.matches(name.as_bytes()))
}

/// Framing is ours and the peer's: nobody else may touch it.
pub(super) fn framing(name: &str) -> bool {
    matches!(
        name,
        "content-length" | "transfer-encoding" | "connection" | "keep-alive" | "proxy-connection" | "te" | "upgrade"
    )
}

/// A header that can be sent.
pub(super) fn checked((name, value): &RawHeader) -> Result<(HeaderName, HeaderValue), String> {
    let bad = || format!("header {name:?} cannot be sent");
    let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| bad())?;
    Ok((name, HeaderValue::from_bytes(value).map_err(|_| bad())?))
}

/// Method of `envoy.service.auth.v3.Authorization`.
const CHECK: &str = "/envoy.service.auth.v3.Authorization/Check";

/// The head of a question over gRPC.
pub(super) fn grpc_head(service: &AuthzGrpc, method: &'static str) -> Result<RequestHead, String> {
    // As Envoy, where nothing is said; what stands in names of clusters may not stand in hosts.
    let authority =
        if service.authority.is_empty() { service.cluster.replace('|', "_.") } else { service.authority.to_string() };
    let authority = Authority::parse(&authority).ok_or_else(|| format!("{authority:?} is not a host"))?;
    let mut head = RequestHead::new(Method::POST, authority, http::uri::PathAndQuery::from_static(method));
    head.version = Version::HTTP_2;
    let headers = &mut head.headers;
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(header::TE, HeaderValue::from_static("trailers"));
    // Eight digits at most.
    let millis = service.timeout.as_millis();
    if millis > 0
        && let Ok(value) = HeaderValue::from_str(&format!("{}m", millis.min(99_999_999)))
    {
        headers.insert("grpc-timeout", value);
    }
    for (name, value) in &service.initial_metadata {
        let bad = || format!("metadata {name:?} cannot be sent");
        let name = http::HeaderName::from_bytes(name.as_bytes()).map_err(|_| bad())?;
        headers.append(name, HeaderValue::from_str(value).map_err(|_| bad())?);
    }
    Ok(head)
}

impl ExtAuthz {
    /// Compiles a filter.
    ///
    /// # Errors
    /// A pattern or header that is not valid.
    pub fn compile(config: &model::ExtAuthz) -> Result<Self, ConfigError> {
        let grpc = match &config.service {
            AuthzService::Grpc(service) => Some(grpc_head(service, CHECK).map_err(ConfigError::new)?),
            AuthzService::Http(_) => None,
        };
        let http = match &config.service {
            AuthzService::Grpc(_) => None,
            AuthzService::Http(service) => {
                let header = |(name, value): &(Name, Name)| {
                    checked(&(name.to_string(), value.as_bytes().to_vec())).map_err(ConfigError::new)
                };
                Some(HttpRules {
                    add: service.headers_to_add.iter().map(header).collect::<Result<_, _>>()?,
                    upstream: compile_all(&service.upstream_headers)?,
                    append: compile_all(&service.upstream_headers_to_append)?,
                    client: compile_all(&service.client_headers)?,
                    client_on_success: compile_all(&service.client_headers_on_success)?,
                })
            }
        };
        Ok(Self {
            condition: config.enabled_metadata.as_ref().map(MetadataMatch::compile).transpose()?,
            allowed: compile_all(&config.allowed_headers)?,
            disallowed: compile_all(&config.disallowed_headers)?,
            http,
            grpc,
            config: config.clone(),
        })
    }

    /// The call to make over gRPC, but for its message; `None`: it is not asked so.
    pub fn grpc_call(&self) -> Option<RequestHead> {
        self.grpc.clone()
    }

    /// Whether it asks at all.
    pub fn applies(&self, metadata: &model::Metadata, random: impl FnOnce() -> u64) -> bool {
        self.config.enabled.takes(random) && self.condition.as_ref().is_none_or(|c| c.matches(metadata))
    }

    /// What is asked of a request's body.
    pub fn body(&self, settings: Option<&model::AuthzSettings>) -> Option<AuthzBody> {
        match settings {
            Some(s) if s.no_body => None,
            Some(s) => s.body.or(self.config.body),
            None => self.config.body,
        }
    }

    /// Metadata that is told.
    pub fn metadata<'a>(&'a self, all: &'a model::Metadata) -> Vec<(&'a str, &'a Value)> {
        let wanted = self.config.metadata_namespaces.iter();
        wanted.filter_map(|name| all.get(&**name).map(|v| (&**name, v))).collect()
    }

    /// Headers of a request that are told over gRPC: several values of one name are joined.
    pub fn told<'a>(&self, head: &'a RequestHead) -> BTreeMap<Cow<'a, str>, String> {
        let mut out: BTreeMap<Cow<'a, str>, String> = BTreeMap::new();
        let mut tell = |name: &'a str, value: &[u8]| {
            let always = !self.allowed.is_empty() && (name.starts_with(':') || name == "authorization");
            if hit(&self.disallowed, name) || !(self.allowed.is_empty() || always || hit(&self.allowed, name)) {
                return;
            }
            let value = String::from_utf8_lossy(value);
            match out.entry(Cow::Borrowed(name)) {
                std::collections::btree_map::Entry::Occupied(mut e) => {
                    e.get_mut().push(',');
                    e.get_mut().push_str(&value);
                }
                std::collections::btree_map::Entry::Vacant(e) => {
                    e.insert(value.into_owned());
                }
            }
        };
        tell(":method", head.method.as_str().as_bytes());
        tell(":path", head.target.as_str().as_bytes());
        tell(":scheme", head.scheme.as_str().as_bytes());
        tell(":authority", head.authority.as_str().as_bytes());
        for (name, value) in &head.headers {
            tell(name.as_str(), value.as_bytes());
        }
        out
    }

    /// The request that is made of a service over HTTP, without the body's length.
    ///
    /// # Errors
    /// When it cannot be asked so.
    pub fn http_request(&self, head: &RequestHead, partial: Option<bool>) -> Result<RequestHead, String> {
        let (Some(rules), AuthzService::Http(service)) = (&self.http, &self.config.service) else {
            return Err("the service is not asked over HTTP".to_owned());
        };
        if head.method == Method::CONNECT {
            return Err("a tunnel cannot be asked for over HTTP".to_owned());
        }
        let target = format!("{}{}", service.path_prefix, head.target.as_str());
        let target = target.parse().map_err(|_| format!("{target:?} is not a path"))?;
        let mut out = RequestHead::new(head.method.clone(), head.authority.clone(), target);
        out.version = head.version;
        for (name, value) in &head.headers {
            let text = name.as_str();
            let wanted = name == header::AUTHORIZATION || hit(&self.allowed, text);
            if wanted && !framing(text) && !hit(&self.disallowed, text) {
                out.headers.append(name.clone(), value.clone());
            }
        }
        for (name, value) in &rules.add {
            out.headers.insert(name.clone(), value.clone());
        }
        if let Some(partial) = partial {
            out.headers.insert(PARTIAL, HeaderValue::from_static(if partial { "true" } else { "false" }));
        }
        Ok(out)
    }

    /// What an answer over HTTP means.
    ///
    /// # Errors
    /// When it says nothing about the request.
    pub fn http_answer(&self, status: u16, headers: &HeaderMap, body: Bytes) -> Result<Answer, String> {
        let Some(rules) = &self.http else { return Err("the service is not asked over HTTP".to_owned()) };
        let raw = |name: &HeaderName, value: &HeaderValue| (name.as_str().to_owned(), value.as_bytes().to_vec());
        if status >= 500 {
            return Err(format!("the authorizer answered {status}"));
        }
        if status != 200 {
            // What a client needs to go on belongs to every refusal.
            let always = |name: &str| matches!(name, "location" | "www-authenticate");
            let sent = |name: &str| rules.client.is_empty() || always(name) || hit(&rules.client, name);
            let headers = headers.iter().filter(|(name, _)| sent(name.as_str()) && !framing(name.as_str()));
            let headers = headers.map(|(name, value)| (raw(name, value), true)).collect();
            return Ok(Answer::Denied(Box::new(Denial { status, headers, body })));
        }
        let mut changes = Changes::default();
        for (name, value) in headers {
            let text = name.as_str();
            if hit(&rules.upstream, text) {
                changes.set.push(raw(name, value));
            }
            if hit(&rules.append, text) {
                changes.add.push(raw(name, value));
            }
            if hit(&rules.client_on_success, text) {
                changes.response.push((raw(name, value), AppendAction::AppendIfExistsOrAdd));
            }
            if text == REMOVE {
                let names = String::from_utf8_lossy(value.as_bytes()).into_owned();
                changes.remove.extend(names.split(',').map(|n| n.trim().to_owned()).filter(|n| !n.is_empty()));
            }
        }
        Ok(Answer::Allowed(Box::new(changes)))
    }

    /// What a client gets that could not be asked about; `None`: it passes.
    pub fn failed(&self, head: Option<&mut RequestHead>) -> Option<LocalReply> {
        if !self.config.failure_mode_allow {
            return Some(Reason::ExtAuthzError { status: self.config.status_on_error }.into());
        }
        if let Some(head) = head.filter(|_| self.config.failure_mode_allow_header) {
            head.headers.insert(FAILED_OPEN, HeaderValue::from_static("true"));
        }
        None
    }
}

impl Denial {
    /// As an answer to the client.
    ///
    /// # Errors
    /// A header that cannot be sent.
    pub fn reply(self) -> Result<LocalReply, String> {
        let status = if (200..600).contains(&self.status) { self.status } else { 403 };
        let mut reply = LocalReply::from(Reason::ExtAuthzDenied { status });
        reply.body = self.body;
        for (raw, append) in &self.headers {
            let lower = raw.0.to_ascii_lowercase();
            if framing(&lower) || lower.starts_with(':') {
                continue;
            }
            let (name, value) = checked(raw)?;
            if !append {
                reply.headers.retain(|(n, _)| *n != name);
            }
            reply.headers.push((name, value));
        }
        Ok(reply)
    }
}

impl Changes {
    /// Nothing of the request changes.
    pub fn leaves_request(&self) -> bool {
        self.set.is_empty()
            && self.add.is_empty()
            && self.append.is_empty()
            && self.remove.is_empty()
            && self.query_set.is_empty()
            && self.query_remove.is_empty()
    }

    /// Changes a request; the changes of its answer are given back.
    ///
    /// # Errors
    /// Something that cannot be sent; the head may have been changed in part, and must not go on.
    pub fn apply(&self, head: &mut RequestHead) -> Result<ResponseChanges, String> {
        for name in &self.remove {
            let lower = name.to_ascii_lowercase();
            // Without these it would be another request.
            if !lower.starts_with(':') && lower != "host" && !framing(&lower) {
                head.headers.remove(lower.as_str());
            }
        }
        for raw in &self.set {
            set(head, raw)?;
        }
        for raw in self.add.iter().filter(|(n, _)| !framing(&n.to_ascii_lowercase())) {
            let (name, value) = checked(raw)?;
            head.headers.append(name, value);
        }
        for raw in self.append.iter().filter(|(n, _)| !framing(&n.to_ascii_lowercase())) {
            let (name, value) = checked(raw)?;
            if head.headers.contains_key(&name) {
                head.headers.append(name, value);
            }
        }
        if !self.query_set.is_empty() || !self.query_remove.is_empty() {
            self.query(head)?;
        }
        let response = self.response.iter().filter(|((n, _), _)| !framing(&n.to_ascii_lowercase()));
        response.map(|(raw, action)| checked(raw).map(|(name, value)| (name, value, *action))).collect()
    }

    fn query(&self, head: &mut RequestHead) -> Result<(), String> {
        let gone = |pair: &&str| {
            let name = pair.split('=').next().unwrap_or_default();
            !self.query_remove.iter().any(|n| n == name) && !self.query_set.iter().any(|(n, _)| n == name)
        };
        let query = head.query().unwrap_or_default();
        let mut pairs: Vec<String> =
            query.split('&').filter(|p| !p.is_empty()).filter(gone).map(str::to_owned).collect();
        pairs.extend(self.query_set.iter().map(|(name, value)| format!("{name}={value}")));
        let query = if pairs.is_empty() { String::new() } else { format!("?{}", pairs.join("&")) };
        let target = format!("{}{query}", head.path());
        head.target = target.parse().map_err(|_| format!("{target:?} is not a path"))?;
        Ok(())
    }
}

fn set(head: &mut RequestHead, raw: &RawHeader) -> Result<(), String> {
    let bad = || format!("{:?} cannot be set so", raw.0);
    let text = || std::str::from_utf8(&raw.1).map_err(|_| bad());
    let lower = raw.0.to_ascii_lowercase();
    match lower.as_str() {
        ":path" => {
            let target = text()?;
            if !target.starts_with('/') {
                return Err(bad());
            }
            head.target = target.parse().map_err(|_| bad())?;
        }
        ":authority" | "host" => {
            head.authority = Authority::parse(text()?).filter(|a| !a.is_empty()).ok_or_else(bad)?;
        }
        // A tunnel is another thing than a request.
        ":method" => {
            let method = Method::from_bytes(&raw.1).map_err(|_| bad())?;
            if (method == Method::CONNECT) != (head.method == Method::CONNECT) {
                return Err(bad());
            }
            head.method = method;
        }
        // How the client came does not change.
        ":scheme" => {}
        name if framing(name) => {}
        _ => {
            let (name, value) = checked(raw)?;
            head.headers.insert(name, value);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
