//! One stream's protocol, end to end: requests in, responses out, in make-before-break order. Sans-io.
//!
//! Owns the order among types: clusters; then endpoints and secrets of new clusters, waited for at most
//! [`WARMING_LIMIT`]; then listeners and routes; then the removal of what these no longer use. At most one response of
//! a type is unanswered. Must not know sockets, tasks or where resources come from.

use std::{collections::HashSet, mem, sync::Arc, time::Duration};

use mesh_api::xds::{
    TypeUrl,
    discovery::{DeltaDiscoveryRequest, DiscoveryRequest},
};
use tokio::time::Instant;

use super::{
    delta,
    encoded::{Encoded, Name, Need},
    generator::{Affected, Names},
    nack::{Outcome, Refused, Request},
    sotw,
    subscription::{Batch, Has, InFlight, Mode, Resources, Subscription},
};

/// How long routes and listeners wait for the clusters they may use to become warm.
pub const WARMING_LIMIT: Duration = Duration::from_secs(2);

/// Which of the two protocols a stream speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// `DeltaAggregatedResources`.
    Delta,
    /// `StreamAggregatedResources`.
    Sotw,
}

/// One response, its resources already encoded.
#[derive(Debug, Clone)]
pub struct Response {
    /// Protocol, hence the framing.
    pub protocol: Protocol,
    /// Type.
    pub ty: TypeUrl,
    /// Nonce.
    pub nonce: String,
    /// State of the world: hash of all the client has; incremental: the state of the mesh.
    pub version: String,
    /// Resources.
    pub resources: Vec<Arc<Encoded>>,
    /// Incremental: names that exist no more.
    pub removed: Vec<Name>,
}

/// Protocol state of one stream.
#[derive(Debug)]
pub struct Session {
    protocol: Protocol,
    types: [Subscription; TypeUrl::ALL.len()],
    /// Makes nonces differ between streams.
    tag: u32,
    sequence: u64,
    /// What new clusters need before routes may use them.
    warming: HashSet<Need>,
    /// Since when listeners or routes have been waiting.
    waiting_since: Option<Instant>,
    /// The client came back with what it has: until then its listeners and routes, not yet asked about on this stream,
    /// may use clusters that exist no more.
    returning_until: Option<Instant>,
}

impl Session {
    /// A stream just opened; `tag` should be random.
    pub fn new(protocol: Protocol, tag: u32) -> Self {
        Self {
            protocol,
            types: TypeUrl::ALL.map(Subscription::new),
            tag,
            sequence: 0,
            warming: HashSet::new(),
            waiting_since: None,
            returning_until: None,
        }
    }

    /// State of one type.
    pub fn sub(&self, ty: TypeUrl) -> &Subscription {
        let [cluster, endpoints, secret, listener, route, extension, name_table] = &self.types;
        match ty {
            TypeUrl::Cluster => cluster,
            TypeUrl::Endpoints => endpoints,
            TypeUrl::Secret => secret,
            TypeUrl::Listener => listener,
            TypeUrl::Route => route,
            TypeUrl::Extension => extension,
            TypeUrl::NameTable => name_table,
        }
    }

    fn sub_mut(&mut self, ty: TypeUrl) -> &mut Subscription {
        let [cluster, endpoints, secret, listener, route, extension, name_table] = &mut self.types;
        match ty {
            TypeUrl::Cluster => cluster,
            TypeUrl::Endpoints => endpoints,
            TypeUrl::Secret => secret,
            TypeUrl::Listener => listener,
            TypeUrl::Route => route,
            TypeUrl::Extension => extension,
            TypeUrl::NameTable => name_table,
        }
    }

    /// An incremental request.
    ///
    /// # Errors
    /// When the stream is to be ended.
    pub fn on_delta(
        &mut self,
        ty: TypeUrl,
        req: &DeltaDiscoveryRequest,
        now: Instant,
        res: &dyn Resources,
    ) -> Result<Request, Refused> {
        let seen = delta::request(self.sub_mut(ty), req, res)?;
        if seen.first && !req.initial_resource_versions.is_empty() {
            self.returning_until.get_or_insert(now + WARMING_LIMIT);
        }
        self.note(ty, &seen);
        Ok(seen)
    }

    /// A state-of-the-world request.
    ///
    /// # Errors
    /// When the stream is to be ended.
    pub fn on_sotw(&mut self, ty: TypeUrl, req: &DiscoveryRequest) -> Result<Request, Refused> {
        let seen = sotw::request(self.sub_mut(ty), req)?;
        self.note(ty, &seen);
        Ok(seen)
    }

    fn note(&mut self, ty: TypeUrl, seen: &Request) {
        if let Some(Outcome::Ack(awaited) | Outcome::Nack(_, awaited)) = &seen.outcome {
            for name in awaited {
                self.warming.remove(&Need { ty, name: name.clone() });
            }
        }
        for name in &seen.unasked {
            self.warming.remove(&Need { ty, name: name.clone() });
        }
        if self.warming.is_empty() {
            // There are as many of these tables as clients.
            self.warming.shrink_to_fit();
        }
    }

    /// The state of the mesh changed.
    pub fn on_change(&mut self, affected: Affected) {
        for (sub, names) in self.types.iter_mut().zip(affected.types) {
            sub.mark(names);
        }
    }

    /// One resource changed.
    pub fn on_touch(&mut self, ty: TypeUrl, name: Name) {
        self.sub_mut(ty).mark(Names::Some(vec![name]));
    }

    /// Roughly how many resources the next [`Self::poll`] looks at.
    pub fn work(&self) -> usize {
        self.types.iter().filter(|s| s.in_flight.is_none()).map(Subscription::work).fold(0, usize::saturating_add)
    }

    /// Everything is sent and answered.
    pub fn settled(&self) -> bool {
        self.types.iter().all(Subscription::idle)
    }

    /// When [`Self::poll`] is due even if nothing happens.
    pub fn deadline(&self) -> Option<Instant> {
        let returning = self.returning_until.filter(|_| self.types.iter().any(|s| !s.held_back().is_empty()));
        [self.waiting_since.map(|t| t + WARMING_LIMIT), returning].into_iter().flatten().min()
    }

    /// Makes the responses that may go out now. `res` is the state that all changes told so far led to, `state` its name.
    pub fn poll(&mut self, now: Instant, res: &dyn Resources, state: &str) -> Vec<Response> {
        let mut out = Vec::new();
        self.send(TypeUrl::Cluster, Mode::Full, res, state, &mut out);
        self.send(TypeUrl::Endpoints, Mode::Full, res, state, &mut out);
        self.send(TypeUrl::Secret, Mode::Full, res, state, &mut out);
        let open = self.gate(now);
        for ty in [TypeUrl::Extension, TypeUrl::Listener, TypeUrl::Route] {
            let mode = if open || self.sub(ty).fresh { Mode::Full } else { Mode::Answers };
            self.send(ty, mode, res, state, &mut out);
        }
        // A name leads to listeners.
        self.send(TypeUrl::NameTable, Mode::Full, res, state, &mut out);
        self.returning_until.take_if(|t| *t <= now);
        self.remove(res, state, &mut out);
        out
    }

    /// Whether listeners and routes may be changed now: no cluster is on its way, all new ones are warm, or the limit
    /// has passed.
    fn gate(&mut self, now: Instant) -> bool {
        let gated = [TypeUrl::Extension, TypeUrl::Listener, TypeUrl::Route];
        if !gated.iter().any(|t| self.sub(*t).waits() && !self.sub(*t).fresh) {
            self.waiting_since = None;
            return true;
        }
        let mut warming = mem::take(&mut self.warming);
        // Answered already, be it before the cluster itself was.
        warming.retain(|n| !(self.sub(n.ty).asked(&n.name) && self.sub(n.ty).idle()));
        self.warming = warming;
        if self.sub(TypeUrl::Cluster).idle() && self.warming.is_empty() {
            self.waiting_since = None;
            return true;
        }
        let since = *self.waiting_since.get_or_insert(now);
        if now.duration_since(since) < WARMING_LIMIT {
            return false;
        }
        self.waiting_since = None;
        self.warming.clear();
        true
    }

    fn send(&mut self, ty: TypeUrl, mode: Mode, res: &dyn Resources, state: &str, out: &mut Vec<Response>) {
        let protocol = self.protocol;
        let sub = self.sub_mut(ty);
        if !sub.opened || sub.in_flight.is_some() || sub.clean() {
            return;
        }
        // A client that begins with nothing asks for listeners when its clusters are warm; nothing can break.
        let begins = sub.fresh;
        let mut batch = sub.collect(mode, res);
        let mut removed = mem::take(&mut batch.absent);
        let vanished = mem::take(&mut batch.vanished);
        if ty == TypeUrl::Listener {
            // Nothing refers to a listener.
            sub.clear_all(&vanished);
            removed.extend(vanished);
        } else {
            sub.hold_back(vanished);
        }
        if batch.resources.is_empty() && removed.is_empty() && !batch.due {
            return;
        }
        if protocol == Protocol::Sotw
            && let Some(presented) = sub.presented.take()
            && sotw::is_complete(ty)
            && sub.wildcard
            && presented == sotw::version(sub)
        {
            return;
        }
        self.follow(ty, &batch, !begins);
        let response = self.response(ty, batch.resources, removed, state);
        out.push(response);
    }

    /// New clusters must become warm; the endpoints of replaced ones are sent again, because the client waits for them.
    /// In the state of the world a listener that takes over from another one asks for secrets and routes by the very list
    /// of names that the client had before, which looks like an acknowledgement: they are sent again as well.
    fn follow(&mut self, ty: TypeUrl, batch: &Batch, warm: bool) {
        match ty {
            TypeUrl::Cluster => {}
            TypeUrl::Listener if self.protocol == Protocol::Sotw && warm => {}
            _ => return,
        }
        if warm && ty == TypeUrl::Cluster {
            self.warming.extend(batch.new.iter().flat_map(|enc| enc.needs()).cloned());
        }
        for need in batch.new.iter().chain(&batch.replaced).flat_map(|enc| enc.needs()) {
            let sub = self.sub_mut(need.ty);
            if sub.asked(&need.name) && sub.has(&need.name) == Has::This {
                sub.answer(need.name.clone());
            }
        }
    }

    /// Tells the client to drop what exists no more, once it has accepted listeners and routes that do without.
    fn remove(&mut self, res: &dyn Resources, state: &str, out: &mut Vec<Response>) {
        let returning = self.returning_until.is_some();
        let quiet = |s: &Subscription| if s.opened { s.idle() && !s.nacked } else { !returning };
        let listeners = quiet(self.sub(TypeUrl::Listener));
        let users = listeners && quiet(self.sub(TypeUrl::Route));
        if users {
            self.release(TypeUrl::Cluster, res, state, out);
        }
        if listeners {
            self.release(TypeUrl::Route, res, state, out);
            self.release(TypeUrl::Extension, res, state, out);
        }
        let clusters = self.sub(TypeUrl::Cluster);
        if users && clusters.idle() && clusters.held_back().is_empty() {
            self.release(TypeUrl::Endpoints, res, state, out);
            self.release(TypeUrl::Secret, res, state, out);
        }
    }

    fn release(&mut self, ty: TypeUrl, res: &dyn Resources, state: &str, out: &mut Vec<Response>) {
        let protocol = self.protocol;
        let sub = self.sub_mut(ty);
        if sub.held_back().is_empty() || !sub.idle() {
            return;
        }
        let mut gone = sub.release(res);
        if ty == TypeUrl::Endpoints && self.sub(TypeUrl::Cluster).opened {
            // Removing a cluster removes its endpoints without a word.
            gone.retain(|name| self.sub(TypeUrl::Cluster).has(name) != Has::Nothing);
        }
        if gone.is_empty() || protocol == Protocol::Sotw && !sotw::is_complete(ty) {
            return;
        }
        let response = self.response(ty, Vec::new(), gone, state);
        out.push(response);
    }

    fn response(&mut self, ty: TypeUrl, resources: Vec<Arc<Encoded>>, removed: Vec<Name>, state: &str) -> Response {
        self.sequence += 1;
        let nonce = format!("{:08x}-{:x}", self.tag, self.sequence);
        let awaited: Vec<Name> = if self.warming.is_empty() {
            Vec::new()
        } else {
            let names = resources.iter().map(|e| e.name()).chain(&removed);
            names.filter(|n| self.warming.contains(&Need { ty, name: (*n).clone() })).cloned().collect()
        };
        let protocol = self.protocol;
        let sub = self.sub_mut(ty);
        sub.in_flight = Some(InFlight { nonce: nonce.clone(), awaited });
        sub.last_nonce.clone_from(&nonce);
        let (version, resources, removed) = match protocol {
            Protocol::Delta => (state.to_owned(), resources, removed),
            Protocol::Sotw => {
                let version = sotw::version(sub);
                let resources = if sotw::is_complete(ty) { sub.held().cloned().collect() } else { resources };
                (version, resources, Vec::new())
            }
        };
        Response { protocol, ty, nonce, version, resources, removed }
    }
}

#[cfg(test)]
mod tests;
