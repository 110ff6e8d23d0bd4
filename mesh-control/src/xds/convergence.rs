//! Whatever happens in whatever order: when all is quiet, a client has exactly what it asked for, in both protocols.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use mesh_api::xds::{
    TypeUrl,
    discovery::{DeltaDiscoveryRequest, DiscoveryRequest},
};
use proptest::prelude::*;
use tokio::time::Instant;

use super::{
    generator::Affected,
    push::{Protocol, Response, Session, WARMING_LIMIT},
    subscription::Resources,
    testing::{World, error},
};

const TYPES: [TypeUrl; 5] = [TypeUrl::Cluster, TypeUrl::Endpoints, TypeUrl::Secret, TypeUrl::Listener, TypeUrl::Route];
const NAMES: [&str; 4] = ["a", "b", "c", "d"];

#[derive(Debug, Clone)]
enum Op {
    Set(usize, usize, u8),
    Remove(usize, usize),
    Subscribe(usize, usize),
    Unsubscribe(usize, usize),
    /// Answer the oldest response: with an ACK, or not.
    Answer(bool),
    Tick(u16),
    Reconnect,
}

fn op() -> impl Strategy<Value = Op> {
    let (ty, name) = (0..TYPES.len(), 0..NAMES.len());
    prop_oneof![
        4 => (ty.clone(), name.clone(), 0..3u8).prop_map(|(t, n, b)| Op::Set(t, n, b)),
        2 => (ty.clone(), name.clone()).prop_map(|(t, n)| Op::Remove(t, n)),
        3 => (ty.clone(), name.clone()).prop_map(|(t, n)| Op::Subscribe(t, n)),
        1 => (ty, name).prop_map(|(t, n)| Op::Unsubscribe(t, n)),
        6 => any::<bool>().prop_map(Op::Answer),
        1 => (0..3000u16).prop_map(Op::Tick),
        1 => Just(Op::Reconnect),
    ]
}

/// A client that believes everything.
struct Client {
    protocol: Protocol,
    world: World,
    session: Session,
    now: Instant,
    has: BTreeMap<(TypeUrl, String), String>,
    asked: BTreeMap<TypeUrl, BTreeSet<String>>,
    open: VecDeque<Response>,
    last: BTreeMap<TypeUrl, Response>,
}

impl Client {
    fn new(protocol: Protocol) -> Self {
        let mut client = Self {
            protocol,
            world: World::default(),
            session: Session::new(protocol, 1),
            now: Instant::now(),
            has: BTreeMap::new(),
            asked: TYPES.iter().map(|t| (*t, BTreeSet::new())).collect(),
            open: VecDeque::new(),
            last: BTreeMap::new(),
        };
        client.connect();
        client
    }

    fn wildcard(ty: TypeUrl) -> bool {
        matches!(ty, TypeUrl::Cluster | TypeUrl::Listener)
    }

    fn connect(&mut self) {
        self.session = Session::new(self.protocol, 1);
        self.open.clear();
        self.last.clear();
        for ty in TYPES {
            let names: Vec<String> = self.asked[&ty].iter().cloned().collect();
            match self.protocol {
                Protocol::Delta => {
                    let mut subscribe = names;
                    if Self::wildcard(ty) {
                        subscribe.push("*".into());
                    }
                    let kept = self.has.iter().filter(|((t, _), _)| *t == ty);
                    self.delta(
                        ty,
                        DeltaDiscoveryRequest {
                            initial_resource_versions: kept.map(|((_, n), v)| (n.clone(), v.clone())).collect(),
                            resource_names_subscribe: subscribe,
                            ..Default::default()
                        },
                    );
                }
                Protocol::Sotw if Self::wildcard(ty) || !names.is_empty() => self.sotw(ty, None),
                Protocol::Sotw => {}
            }
        }
    }

    fn delta(&mut self, ty: TypeUrl, req: DeltaDiscoveryRequest) {
        self.session.on_delta(ty, &req, self.now, &self.world).unwrap();
        self.poll();
    }

    fn sotw(&mut self, ty: TypeUrl, nack: Option<&str>) {
        let last = self.last.get(&ty);
        let mut names: Vec<String> = self.asked[&ty].iter().cloned().collect();
        if Self::wildcard(ty) {
            names.push("*".into());
        }
        let req = DiscoveryRequest {
            resource_names: names,
            version_info: last.map(|r| r.version.clone()).unwrap_or_default(),
            response_nonce: last.map(|r| r.nonce.clone()).unwrap_or_default(),
            error_detail: nack.map(error),
            ..Default::default()
        };
        self.session.on_sotw(ty, &req).unwrap();
        self.poll();
    }

    fn poll(&mut self) {
        for r in self.session.poll(self.now, &self.world, "s") {
            assert!(self.open.iter().all(|o| o.ty != r.ty), "two responses of {:?} in flight", r.ty);
            if self.protocol == Protocol::Sotw && Self::wildcard(r.ty) {
                self.has.retain(|(t, _), _| *t != r.ty);
            }
            for e in &r.resources {
                self.has.insert((r.ty, e.name().to_string()), e.version());
            }
            for name in &r.removed {
                self.has.remove(&(r.ty, name.to_string()));
            }
            self.last.insert(r.ty, r.clone());
            self.open.push_back(r);
        }
    }

    fn answer(&mut self, ack: bool) {
        let Some(r) = self.open.pop_front() else { return };
        match self.protocol {
            Protocol::Delta => {
                let error_detail = (!ack).then(|| error("no"));
                let req = DeltaDiscoveryRequest { response_nonce: r.nonce.clone(), error_detail, ..Default::default() };
                self.delta(r.ty, req);
            }
            Protocol::Sotw => self.sotw(r.ty, (!ack).then_some("no")),
        }
    }

    fn changed(&mut self, ty: TypeUrl, name: &str) {
        self.session.on_change(Affected::none().with(ty, [name.into()]));
        self.poll();
    }

    fn apply(&mut self, op: &Op) {
        match op {
            Op::Set(t, n, body) => {
                let (ty, name) = (TYPES[*t], NAMES[*n]);
                if ty == TypeUrl::Cluster {
                    self.world.eds(name, &body.to_string());
                } else {
                    self.world.set(ty, name, &body.to_string());
                }
                self.changed(ty, name);
            }
            Op::Remove(t, n) => {
                self.world.del(TYPES[*t], NAMES[*n]);
                self.changed(TYPES[*t], NAMES[*n]);
            }
            Op::Subscribe(t, n) => {
                let (ty, name) = (TYPES[*t], NAMES[*n].to_owned());
                if self.asked.get_mut(&ty).unwrap().insert(name.clone()) {
                    self.told(ty, vec![name], vec![]);
                }
            }
            Op::Unsubscribe(t, n) => {
                let (ty, name) = (TYPES[*t], NAMES[*n].to_owned());
                if self.asked.get_mut(&ty).unwrap().remove(&name) {
                    if !Self::wildcard(ty) {
                        self.has.remove(&(ty, name.clone()));
                    }
                    self.told(ty, vec![], vec![name]);
                }
            }
            Op::Answer(ack) => self.answer(*ack),
            Op::Tick(ms) => {
                self.now += Duration::from_millis(u64::from(*ms));
                self.poll();
            }
            Op::Reconnect => self.connect(),
        }
    }

    fn told(&mut self, ty: TypeUrl, resource_names_subscribe: Vec<String>, resource_names_unsubscribe: Vec<String>) {
        match self.protocol {
            Protocol::Delta => self.delta(
                ty,
                DeltaDiscoveryRequest { resource_names_subscribe, resource_names_unsubscribe, ..Default::default() },
            ),
            Protocol::Sotw => {
                // Such a request also answers the response before it.
                self.open.retain(|r| r.ty != ty);
                self.sotw(ty, None);
            }
        }
    }

    fn settle(&mut self) {
        for _ in 0..40 {
            while !self.open.is_empty() {
                self.answer(true);
            }
            self.now += WARMING_LIMIT;
            self.poll();
        }
        assert!(self.open.is_empty() && self.session.deadline().is_none(), "it never ends: {:?}", self.session);
    }

    fn check(&self) {
        for ty in TYPES {
            for name in NAMES {
                let want = self.world.get(ty, name).map(|e| e.version());
                let has = self.has.get(&(ty, name.to_owned())).cloned();
                let asked = self.asked[&ty].contains(name);
                if !Self::wildcard(ty) {
                    // Nobody says that endpoints of a removed cluster, or (state of the world) any named resource, are
                    // gone: the client drops them with what used them.
                    let told = self.protocol == Protocol::Delta && ty != TypeUrl::Endpoints;
                    if !asked || want.is_none() && !told {
                        continue;
                    }
                }
                // What rejected listeners and routes of before may use is not taken away.
                if want.is_none() && [TypeUrl::Listener, TypeUrl::Route].iter().any(|t| self.session.sub(*t).nacked) {
                    continue;
                }
                assert_eq!(has, want, "{:?} {ty:?} {name}", self.protocol);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn a_quiet_client_has_what_it_asked_for(ops in prop::collection::vec(op(), 1..60)) {
        for protocol in [Protocol::Delta, Protocol::Sotw] {
            let mut client = Client::new(protocol);
            for op in &ops {
                client.apply(op);
            }
            client.settle();
            client.check();
        }
    }
}
