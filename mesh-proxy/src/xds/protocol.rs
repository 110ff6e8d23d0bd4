//! The client side of the xDS transport protocol, incremental and state of the world, without sockets and clocks.
//!
//! Owns subscriptions, nonces, versions and what an acknowledgement says: a refused resource is named in a NACK while the
//! good ones of the same response are taken. Inputs are calls, outputs wait in an outbox, so that a script of messages is
//! a test. Must not know what resources mean, how they are transported, nor when.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    time::Duration,
};

use bytes::Bytes;
use mesh_api::{
    model::Name,
    xds::{
        TypeUrl,
        discovery::{
            DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource as Wrapped,
        },
        envoy::config::core::v3::Node,
        google::{protobuf::Any, rpc::Status},
    },
};
use prost::Message;

use super::subscriptions::{Interest, Subscription};

/// gRPC's `INVALID_ARGUMENT`, which every NACK says.
const INVALID_ARGUMENT: i32 = 3;
/// Longest text of a NACK; the names come first.
const MAX_DETAIL: usize = 8 << 10;
/// A resource in a wrapper (state of the world with names or lifetimes).
const WRAPPER: &str = "type.googleapis.com/envoy.service.discovery.v3.Resource";

/// Which form of the protocol is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    /// Incremental.
    Delta,
    /// State of the world.
    Sotw,
}

/// A message to the server.
#[derive(Debug, Clone, PartialEq)]
pub enum Request {
    /// Incremental.
    Delta(Box<DeltaDiscoveryRequest>),
    /// State of the world.
    Sotw(Box<DiscoveryRequest>),
}

/// A message from the server.
#[derive(Debug, Clone, PartialEq)]
pub enum Response {
    /// Incremental.
    Delta(Box<DeltaDiscoveryResponse>),
    /// State of the world.
    Sotw(Box<DiscoveryResponse>),
}

/// A resource as it came.
#[derive(Debug, Clone, PartialEq)]
pub struct Resource {
    /// Name.
    pub name: Name,
    /// Version.
    pub version: String,
    /// The message, without `Any` around it.
    pub wire: Bytes,
}

/// What a response asks us to do. To be given back by [`Protocol::judged`].
#[derive(Debug, Clone, PartialEq)]
pub struct Update {
    /// Type of the resources.
    pub ty: TypeUrl,
    /// Version of the response.
    pub version: String,
    /// New or changed.
    pub resources: Vec<Resource>,
    /// Gone.
    pub removed: Vec<Name>,
    /// Refused by their envelope already.
    pub refused: Vec<(Name, String)>,
    nonce: String,
}

/// The state machine of one stream and all streams after it.
#[derive(Debug)]
pub struct Protocol {
    variant: Variant,
    node: Node,
    /// The node is sent with every request.
    repeat_node: bool,
    introduced: bool,
    connected: bool,
    types: HashMap<TypeUrl, Subscription>,
    outbox: VecDeque<Request>,
}

/// What all resource types have first: their name.
#[derive(Clone, PartialEq, Message)]
struct Named {
    #[prost(string, tag = "1")]
    name: String,
}

impl Protocol {
    /// Not connected, nothing wanted.
    pub fn new(variant: Variant, node: Node, repeat_node: bool) -> Self {
        Self {
            variant,
            node,
            repeat_node,
            introduced: false,
            connected: false,
            types: HashMap::new(),
            outbox: VecDeque::new(),
        }
    }

    /// Which form is spoken.
    pub fn variant(&self) -> Variant {
        self.variant
    }

    /// A new stream is open: says everything again, in make-before-break order.
    pub fn connected(&mut self) {
        self.disconnected();
        self.connected = true;
        for ty in TypeUrl::ALL {
            self.ask(ty);
        }
    }

    /// The stream is gone. What was accepted stays.
    pub fn disconnected(&mut self) {
        self.connected = false;
        self.introduced = false;
        self.outbox.clear();
        self.types.values_mut().for_each(Subscription::reset);
    }

    /// Changes what is wanted of a type.
    pub fn subscribe(&mut self, ty: TypeUrl, interest: Interest) {
        let sub = self.types.entry(ty).or_default();
        if sub.interest != interest {
            sub.want(interest);
            self.ask(ty);
        }
    }

    /// The next message to send.
    pub fn next_request(&mut self) -> Option<Request> {
        self.outbox.pop_front()
    }

    /// Accepted resources of a type, with versions.
    pub fn held(&self, ty: TypeUrl) -> impl Iterator<Item = (&Name, &String)> {
        self.types.get(&ty).into_iter().flat_map(|s| &s.held)
    }

    /// An accepted resource turned out to be unusable later: it is not said to be held any more.
    pub fn lacks(&mut self, ty: TypeUrl, name: &str) {
        if let Some(sub) = self.types.get_mut(&ty) {
            sub.held.remove(name);
        }
    }

    /// A message came. `None`: nothing to do (its acknowledgement, when it needs one, waits in the outbox).
    pub fn received(&mut self, response: Response) -> Option<Update> {
        match response {
            Response::Delta(r) => self.received_delta(*r),
            Response::Sotw(r) => self.received_sotw(*r),
        }
    }

    /// An update was applied, but for the resources refused here: acknowledges it, or names what is wrong.
    pub fn judged(&mut self, update: Update, refused: Vec<(Name, String)>) {
        let Update { ty, version, resources, removed, refused: mut all, nonce } = update;
        all.extend(refused);
        let Some(sub) = self.types.get_mut(&ty) else { return };
        let bad: HashSet<&Name> = all.iter().map(|(n, _)| n).collect();
        for resource in resources {
            if !bad.contains(&resource.name) && sub.interest.wants(&resource.name) {
                sub.held.insert(resource.name, resource.version);
            }
        }
        for name in removed {
            sub.held.remove(&name);
        }
        if all.is_empty() {
            sub.accepted = version;
        }
        let error = (!all.is_empty()).then(|| complaint(ty, &all));
        self.acknowledge(ty.as_str(), Some(ty), nonce, error);
    }

    fn received_delta(&mut self, response: DeltaDiscoveryResponse) -> Option<Update> {
        let ty = self.known(&response.type_url, &response.nonce)?;
        let sub = self.types.get_mut(&ty)?;
        sub.nonce.clone_from(&response.nonce);
        let mut update = Update {
            ty,
            version: response.system_version_info,
            resources: Vec::with_capacity(response.resources.len()),
            removed: vec![],
            refused: vec![],
            nonce: response.nonce,
        };
        let mut seen = HashSet::new();
        for wrapped in response.resources {
            let name: Name = wrapped.name.as_str().into();
            if !sub.interest.wants(&name) {
                continue; // not wanted any more when it came
            }
            if !seen.insert(name.clone()) {
                update.refused.push((name, "stands twice in one response".to_owned()));
                continue;
            }
            // Without content it is only a sign of life.
            let Some(any) = wrapped.resource else { continue };
            update.take(ty, name, wrapped.version, any);
        }
        for name in response.removed_resources {
            let name: Name = name.into();
            if sub.interest.wants(&name) || sub.held.contains_key(&name) {
                update.removed.push(name);
            }
        }
        Some(update)
    }

    fn received_sotw(&mut self, response: DiscoveryResponse) -> Option<Update> {
        let ty = self.known(&response.type_url, &response.nonce)?;
        let sub = self.types.get_mut(&ty)?;
        sub.nonce.clone_from(&response.nonce);
        let mut update = Update {
            ty,
            version: response.version_info,
            resources: Vec::with_capacity(response.resources.len()),
            removed: vec![],
            refused: vec![],
            nonce: response.nonce,
        };
        let mut seen = HashSet::new();
        for any in response.resources {
            let (name, any) = match unwrap(ty, any) {
                Ok(found) => found,
                Err(reason) => {
                    update.refused.push(("".into(), reason));
                    continue;
                }
            };
            if !seen.insert(name.clone()) {
                update.refused.push((name, "stands twice in one response".to_owned()));
            } else if sub.interest.wants(&name)
                && let Some(any) = any
            {
                let version = update.version.clone();
                update.take(ty, name, version, any);
            }
        }
        // Of these two types a response is everything there is; of the others what is missing says nothing.
        let whole = matches!(ty, TypeUrl::Cluster | TypeUrl::Listener);
        if whole && update.refused.iter().all(|(name, _)| !name.is_empty()) {
            update.removed = sub.held.keys().filter(|n| !seen.contains(*n)).cloned().collect();
            update.removed.sort();
        }
        Some(update)
    }

    /// The type of a response; what we do not know is refused, what we never asked for acknowledged and left.
    fn known(&mut self, type_url: &str, nonce: &str) -> Option<TypeUrl> {
        let ty = TypeUrl::parse(type_url);
        match ty {
            None => {
                let text = format!("unknown resource type {type_url:?}");
                self.acknowledge(type_url, None, nonce.to_owned(), Some(text));
                None
            }
            Some(ty) if !self.types.contains_key(&ty) => {
                self.acknowledge(type_url, None, nonce.to_owned(), None);
                None
            }
            found => found,
        }
    }

    fn acknowledge(&mut self, type_url: &str, ty: Option<TypeUrl>, nonce: String, error: Option<String>) {
        if !self.connected {
            return;
        }
        let error_detail = error.map(|message| Status { code: INVALID_ARGUMENT, message, details: vec![] });
        let request = match self.variant {
            Variant::Delta => Request::Delta(Box::new(DeltaDiscoveryRequest {
                node: self.introduce(),
                type_url: type_url.to_owned(),
                response_nonce: nonce,
                error_detail,
                ..Default::default()
            })),
            Variant::Sotw => {
                let sub = ty.and_then(|ty| self.types.get_mut(&ty));
                let (names, version) = sub.map(|s| (listed(s), s.accepted.clone())).unwrap_or_default();
                Request::Sotw(Box::new(DiscoveryRequest {
                    node: self.introduce(),
                    type_url: type_url.to_owned(),
                    response_nonce: nonce,
                    resource_names: names,
                    version_info: version,
                    error_detail,
                    ..Default::default()
                }))
            }
        };
        self.outbox.push_back(request);
    }

    /// Tells the server what it does not know yet of what we want.
    fn ask(&mut self, ty: TypeUrl) {
        if !self.connected {
            return;
        }
        let Some(sub) = self.types.get_mut(&ty) else { return };
        if !sub.asked && sub.interest.is_none() {
            return; // the first request with no names would mean all of them
        }
        let first = !std::mem::replace(&mut sub.asked, true);
        let difference = sub.catch_up();
        let request = match self.variant {
            Variant::Delta => {
                let mut subscribe: Vec<String> = difference.subscribe.iter().map(|n| n.to_string()).collect();
                if sub.interest.wildcard && first && !subscribe.is_empty() {
                    subscribe.insert(0, "*".to_owned());
                }
                let initial_resource_versions = match first {
                    true => sub.held.iter().map(|(n, v)| (n.to_string(), v.clone())).collect(),
                    false => HashMap::new(),
                };
                let unsubscribe: Vec<String> = difference.unsubscribe.iter().map(|n| n.to_string()).collect();
                if !first && subscribe.is_empty() && unsubscribe.is_empty() {
                    return;
                }
                Request::Delta(Box::new(DeltaDiscoveryRequest {
                    type_url: ty.as_str().to_owned(),
                    resource_names_subscribe: subscribe,
                    resource_names_unsubscribe: unsubscribe,
                    initial_resource_versions,
                    ..Default::default()
                }))
            }
            Variant::Sotw => Request::Sotw(Box::new(DiscoveryRequest {
                type_url: ty.as_str().to_owned(),
                resource_names: listed(sub),
                version_info: sub.accepted.clone(),
                response_nonce: sub.nonce.clone(),
                ..Default::default()
            })),
        };
        let node = self.introduce();
        self.outbox.push_back(match request {
            Request::Delta(r) => Request::Delta(Box::new(DeltaDiscoveryRequest { node, ..*r })),
            Request::Sotw(r) => Request::Sotw(Box::new(DiscoveryRequest { node, ..*r })),
        });
    }

    fn introduce(&mut self) -> Option<Node> {
        let first = !std::mem::replace(&mut self.introduced, true);
        (first || self.repeat_node).then(|| self.node.clone())
    }
}

/// Names of a state-of-the-world request; none: everything.
fn listed(sub: &Subscription) -> Vec<String> {
    let mut names: Vec<String> = sub.interest.names.iter().map(|n| n.to_string()).collect();
    if sub.interest.wildcard && !names.is_empty() {
        names.insert(0, "*".to_owned());
    }
    names
}

impl Update {
    fn take(&mut self, ty: TypeUrl, name: Name, version: String, any: Any) {
        if any.type_url == ty.as_str() {
            self.resources.push(Resource { name, version, wire: any.value.into() });
        } else {
            let reason = format!("is a {:?}, not a {}", any.type_url, ty.as_str());
            self.refused.push((name, reason));
        }
    }
}

/// Name and content of a resource in a state-of-the-world response.
fn unwrap(ty: TypeUrl, any: Any) -> Result<(Name, Option<Any>), String> {
    let broken = |e: prost::DecodeError| format!("a resource cannot be decoded: {e}");
    if any.type_url == WRAPPER {
        let wrapped = Wrapped::decode(any.value.as_slice()).map_err(broken)?;
        return Ok((wrapped.name.into(), wrapped.resource));
    }
    // The only one without a name, of which there is one.
    if ty == TypeUrl::NameTable {
        return Ok(("".into(), Some(any)));
    }
    let named = Named::decode(any.value.as_slice()).map_err(broken)?;
    Ok((named.name.into(), Some(any)))
}

/// The text of a NACK.
fn complaint(ty: TypeUrl, refused: &[(Name, String)]) -> String {
    let what = match ty {
        TypeUrl::Cluster => "cluster",
        TypeUrl::Endpoints => "load assignment",
        TypeUrl::Secret => "secret",
        TypeUrl::Listener => "listener",
        TypeUrl::Route => "route configuration",
        TypeUrl::Extension => "extension",
        TypeUrl::NameTable => "name table",
    };
    let mut out = format!("Error adding/updating {what}(s) ");
    for (i, (name, reason)) in refused.iter().enumerate() {
        if out.len() > MAX_DETAIL {
            out.push_str(&format!("; and {} more", refused.len() - i));
            break;
        }
        if i > 0 {
            out.push_str("; ");
        }
        out.push_str(name);
        out.push_str(": ");
        // Conversions name the resource themselves.
        out.push_str(reason.strip_prefix(&**name).and_then(|r| r.strip_prefix(": ")).unwrap_or(reason));
    }
    out
}

/// Growing pauses between attempts to connect.
#[derive(Debug, Clone, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(200);
    const LONGEST: Duration = Duration::from_secs(4);

    /// The server has said something: the next pause is short again. An opened stream alone is no such sign.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// The pause before the next attempt; `random` in `0.0..1.0`.
    pub fn next(&mut self, random: f64) -> Duration {
        let pause = Self::FIRST.saturating_mul(1 << self.failures.min(16)).min(Self::LONGEST);
        self.failures = self.failures.saturating_add(1);
        pause.mul_f64(0.5 + 0.5 * random.clamp(0.0, 1.0))
    }
}

#[cfg(test)]
mod tests;
