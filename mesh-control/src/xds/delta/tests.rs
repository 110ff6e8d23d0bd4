//! Rules of the incremental protocol, as go-control-plane's and Istio's tests state them.

use tokio::time::Instant;

use super::super::{
    generator::Affected,
    push::{Protocol, Response, Session},
    testing::*,
};
use super::*;
use mesh_api::xds::TypeUrl::{Cluster, Endpoints, Listener};

struct Client {
    world: World,
    session: Session,
}

impl Client {
    fn new() -> Self {
        let mut world = World::default();
        world.set(Cluster, "a", "1").set(Cluster, "b", "1").set(Endpoints, "a", "1").set(Endpoints, "b", "1");
        Self { world, session: Session::new(Protocol::Delta, 7) }
    }
    fn poll(&mut self) -> Vec<Response> {
        self.session.poll(Instant::now(), &self.world, "s")
    }
    fn send(&mut self, ty: mesh_api::xds::TypeUrl, req: &DeltaDiscoveryRequest) -> Vec<Response> {
        self.session.on_delta(ty, req, Instant::now(), &self.world).unwrap();
        self.poll()
    }
    fn one(&mut self, ty: mesh_api::xds::TypeUrl, req: &DeltaDiscoveryRequest) -> Response {
        let mut out = self.send(ty, req);
        assert_eq!(out.len(), 1, "{out:?}");
        out.remove(0)
    }
    fn quiet(&mut self, ty: mesh_api::xds::TypeUrl, req: &DeltaDiscoveryRequest) {
        let out = self.send(ty, req);
        assert!(out.is_empty(), "{out:?}");
    }
    fn ack(&mut self, r: &Response) {
        self.quiet(r.ty, &delta_ack(r));
    }
    fn change(&mut self, ty: mesh_api::xds::TypeUrl) -> Vec<Response> {
        self.session.on_change(Affected::none().with_all(ty));
        self.poll()
    }
}

#[test]
fn wildcard_by_empty_list_and_by_name() {
    for first in [delta(&[], &[]), delta(&["*"], &[])] {
        let mut c = Client::new();
        let r = c.one(Cluster, &first);
        assert_eq!(names(&r), ["a", "b"]);
        c.ack(&r);
        // Only what changed follows.
        c.world.set(Cluster, "b", "2").set(Cluster, "c", "1");
        let out = c.change(Cluster);
        assert_eq!(names(&out[0]), ["b", "c"]);
    }
    // Other types have no wildcard by silence.
    let mut c = Client::new();
    c.quiet(Endpoints, &delta(&[], &[]));
}

#[test]
fn an_empty_wildcard_is_answered_once() {
    let mut c = Client::new();
    let r = c.one(Listener, &delta(&["*"], &[]));
    assert!(r.resources.is_empty() && r.removed.is_empty());
    c.ack(&r);
    assert!(c.change(Listener).is_empty());
}

#[test]
fn leaving_the_wildcard_keeps_what_was_asked_for() {
    let mut c = Client::new();
    let r = c.one(Cluster, &delta(&["*", "a"], &[]));
    c.ack(&r);
    c.quiet(Cluster, &delta(&[], &["*"]));
    c.world.set(Cluster, "a", "2").set(Cluster, "b", "2");
    let out = c.change(Cluster);
    assert_eq!(names(&out[0]), ["a"]);
}

#[test]
fn unsubscribing_a_name_under_the_wildcard_is_answered() {
    let mut c = Client::new();
    let r = c.one(Cluster, &delta(&["*"], &[]));
    c.ack(&r);
    let r = c.one(Cluster, &delta(&["a", "extra"], &[]));
    assert_eq!((names(&r), removed(&r)), (vec!["a"], vec!["extra"]));
    c.ack(&r);
    let r = c.one(Cluster, &delta(&[], &["a", "extra"]));
    assert_eq!((names(&r), removed(&r)), (vec!["a"], vec!["extra"]));
}

#[test]
fn subscribing_again_is_always_answered() {
    let mut c = Client::new();
    let r = c.one(Endpoints, &delta(&["a"], &[]));
    c.ack(&r);
    let again = c.one(Endpoints, &delta(&["a"], &[]));
    assert_eq!(names(&again), ["a"]);
}

#[test]
fn a_name_that_does_not_exist_is_answered_at_once_and_served_later() {
    let mut c = Client::new();
    let r = c.one(Endpoints, &delta(&["a", "ghost"], &[]));
    assert_eq!((names(&r), removed(&r)), (vec!["a"], vec!["ghost"]));
    c.ack(&r);
    assert!(c.change(Endpoints).is_empty(), "its absence is not repeated");
    c.world.set(Endpoints, "ghost", "1");
    c.session.on_touch(Endpoints, "ghost".into());
    assert_eq!(names(&c.poll()[0]), ["ghost"]);
}

#[test]
fn unsubscribed_names_are_forgotten() {
    let mut c = Client::new();
    let r = c.one(Endpoints, &delta(&["a", "b"], &[]));
    c.ack(&r);
    c.quiet(Endpoints, &delta(&[], &["b"]));
    c.world.set(Endpoints, "b", "2").del(Endpoints, "a");
    let out = c.change(Endpoints);
    assert_eq!((names(&out[0]), removed(&out[0])), (vec![], vec!["a"]));
}

#[test]
fn initial_versions_are_honoured() {
    let mut c = Client::new();
    let (a, old) = (c.world.version(Cluster, "a"), "0123456789abcdef");
    // All known: nothing is said.
    let b = c.world.version(Cluster, "b");
    c.quiet(Cluster, &returning(&["*"], &[("a", &a), ("b", &b)]));
    // It counts as having them: only what changes follows.
    assert_eq!(c.session.sub(Cluster).held().count(), 2);
    c.world.set(Cluster, "b", "2");
    assert_eq!(names(&c.change(Cluster)[0]), ["b"]);
    assert_eq!(c.session.sub(Cluster).held().count(), 2);

    // One old, one unknown, one gone.
    let mut c = Client::new();
    c.session.on_delta(Listener, &delta(&["*"], &[]), Instant::now(), &c.world).unwrap();
    c.session.on_delta(mesh_api::xds::TypeUrl::Route, &delta(&["8080"], &[]), Instant::now(), &c.world).unwrap();
    let waiting = c.poll();
    c.send(Listener, &delta_ack(&waiting[0]));
    c.send(mesh_api::xds::TypeUrl::Route, &delta_ack(&waiting[1]));
    let r = c.one(Cluster, &returning(&["*"], &[("a", old), ("gone", old)]));
    assert_eq!((names(&r), removed(&r)), (vec!["a", "b"], vec![]));
    let out = c.send(Cluster, &delta_ack(&r));
    assert_eq!(removed(&out[0]), ["gone"], "removals come last");

    // By name: what is known is not repeated, what is not known is answered.
    let mut c = Client::new();
    let a = c.world.version(Endpoints, "a");
    let r = c.one(Endpoints, &returning(&["a", "b", "ghost"], &[("a", &a)]));
    assert_eq!((names(&r), removed(&r)), (vec!["b"], vec!["ghost"]));
}

#[test]
fn versions_are_presented_on_the_first_request_only() {
    let mut c = Client::new();
    let r = c.one(Endpoints, &delta(&["a"], &[]));
    c.ack(&r);
    let b = c.world.version(Endpoints, "b");
    let r = c.one(Endpoints, &returning(&["b"], &[("b", &b)]));
    assert_eq!(names(&r), ["b"]);
}

#[test]
fn one_response_a_type_in_flight() {
    let mut c = Client::new();
    let first = c.one(Endpoints, &delta(&["a"], &[]));
    c.quiet(Endpoints, &delta(&["b"], &[]));
    c.world.set(Endpoints, "a", "2");
    assert!(c.change(Endpoints).is_empty());
    c.world.set(Endpoints, "a", "3");
    assert!(c.change(Endpoints).is_empty());
    let r = c.one(Endpoints, &delta_ack(&first));
    assert_eq!(names(&r), ["a", "b"], "the newer state replaced what waited");
    assert_eq!(r.resources.iter().find(|e| &**e.name() == "a").unwrap().message(), "3");
}

#[test]
fn a_rejected_version_is_not_sent_again() {
    let mut c = Client::new();
    let r = c.one(Cluster, &delta(&["*"], &[]));
    c.quiet(Cluster, &delta_nack(&r, "bad cluster a"));
    for _ in 0..3 {
        assert!(c.change(Cluster).is_empty());
    }
    c.world.set(Cluster, "a", "2");
    assert_eq!(names(&c.change(Cluster)[0]), ["a"]);
}

#[test]
fn stale_nonces_do_not_acknowledge_but_subscribe() {
    let mut c = Client::new();
    let first = c.one(Endpoints, &delta(&["a"], &[]));
    let mut req = delta(&["b"], &[]);
    req.response_nonce = "of-another-stream".into();
    let seen = c.session.on_delta(Endpoints, &req, Instant::now(), &c.world).unwrap();
    assert_eq!(seen.outcome, Some(Outcome::Stale));
    assert!(c.poll().is_empty(), "the first response is still in flight");
    assert_eq!(names(&c.one(Endpoints, &delta_ack(&first))), ["b"]);
    // A nonce repeated is neither an error nor an acknowledgement.
    let seen = c.session.on_delta(Endpoints, &delta_ack(&first), Instant::now(), &c.world).unwrap();
    assert_eq!(seen.outcome, Some(Outcome::Stale));
}

#[test]
fn an_acknowledgement_may_carry_subscriptions() {
    let mut c = Client::new();
    let first = c.one(Endpoints, &delta(&["a"], &[]));
    let mut req = delta(&["b"], &["a"]);
    req.response_nonce = first.nonce.clone();
    let r = c.one(Endpoints, &req);
    assert_eq!(names(&r), ["b"]);
    assert!(!c.session.sub(Endpoints).asked("a"));
}

#[test]
fn limits_end_the_stream() {
    let mut c = Client::new();
    let long = "x".repeat(MAX_NAME_BYTES + 1);
    let refused = c.session.on_delta(Endpoints, &delta(&[&long], &[]), Instant::now(), &c.world);
    assert_eq!(refused, Err(Refused::TooManyNames(Endpoints)));
}
