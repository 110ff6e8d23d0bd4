//! Rules of the state-of-the-world protocol, as go-control-plane's and Istio's tests state them.

use tokio::time::Instant;

use super::super::{
    generator::Affected,
    push::{Protocol, Response, Session},
    testing::{World, error, names, sotw as ask},
};
use super::*;
use mesh_api::xds::TypeUrl::{Cluster, Endpoints, Listener, Route};

struct Client {
    world: World,
    session: Session,
}

impl Client {
    fn new() -> Self {
        let mut world = World::default();
        world.set(Cluster, "a", "1").set(Cluster, "b", "1").set(Endpoints, "a", "1").set(Endpoints, "b", "1");
        world.set(Listener, "l", "1").set(Listener, "m", "1").set(Route, "r", "1");
        Self { world, session: Session::new(Protocol::Sotw, 7) }
    }
    fn poll(&mut self) -> Vec<Response> {
        self.session.poll(Instant::now(), &self.world, "s")
    }
    fn send(&mut self, ty: TypeUrl, req: &DiscoveryRequest) -> Vec<Response> {
        self.session.on_sotw(ty, req).unwrap();
        self.poll()
    }
    fn one(&mut self, ty: TypeUrl, req: &DiscoveryRequest) -> Response {
        let mut out = self.send(ty, req);
        assert_eq!(out.len(), 1, "{out:?}");
        out.remove(0)
    }
    fn quiet(&mut self, ty: TypeUrl, req: &DiscoveryRequest) {
        let out = self.send(ty, req);
        assert!(out.is_empty(), "{out:?}");
    }
    fn change(&mut self, ty: TypeUrl) -> Vec<Response> {
        self.session.on_change(Affected::none().with_all(ty));
        self.poll()
    }
}

#[test]
fn clusters_and_listeners_are_complete_sets() {
    for first in [ask(&[], None), ask(&["*"], None)] {
        let mut c = Client::new();
        let list: Vec<&str> = first.resource_names.iter().map(String::as_str).collect();
        let r = c.one(Cluster, &first);
        assert_eq!(names(&r), ["a", "b"]);
        c.quiet(Cluster, &ask(&list, Some(&r)));
        c.world.set(Cluster, "b", "2");
        let out = c.change(Cluster);
        assert_eq!(names(&out[0]), ["a", "b"]);
        assert_ne!(out[0].version, r.version);
    }
}

#[test]
fn what_did_not_change_is_not_sent() {
    let mut c = Client::new();
    let r = c.one(Listener, &ask(&[], None));
    c.quiet(Listener, &ask(&[], Some(&r)));
    assert!(c.change(Listener).is_empty());
    c.quiet(Listener, &ask(&[], Some(&r)));
}

#[test]
fn endpoints_and_routes_are_those_changed_or_new() {
    let mut c = Client::new();
    let r = c.one(Endpoints, &ask(&["a"], None));
    assert_eq!(names(&r), ["a"]);
    c.quiet(Endpoints, &ask(&["a"], Some(&r)));
    let r2 = c.one(Endpoints, &ask(&["a", "b"], Some(&r)));
    assert_eq!(names(&r2), ["b"]);
    c.quiet(Endpoints, &ask(&["a", "b"], Some(&r2)));
    c.world.set(Endpoints, "a", "2");
    let out = c.change(Endpoints);
    assert_eq!(names(&out[0]), ["a"]);
    c.quiet(Endpoints, &ask(&["a", "b"], Some(&out[0])));
    // Fewer names: nothing to say.
    c.quiet(Endpoints, &ask(&["b"], Some(&out[0])));
    c.world.set(Endpoints, "a", "3");
    assert!(c.change(Endpoints).is_empty());
}

#[test]
fn a_name_that_does_not_exist_gets_an_empty_answer() {
    let mut c = Client::new();
    let r = c.one(Route, &ask(&["ghost"], None));
    assert!(r.resources.is_empty());
    c.quiet(Route, &ask(&["ghost"], Some(&r)));
    c.world.set(Route, "ghost", "1");
    assert_eq!(names(&c.change(Route)[0]), ["ghost"]);
}

#[test]
fn named_listeners_as_grpc_clients_ask() {
    let mut c = Client::new();
    let r = c.one(Listener, &ask(&["l"], None));
    assert_eq!(names(&r), ["l"]);
    c.quiet(Listener, &ask(&["l"], Some(&r)));
    let r = c.one(Listener, &ask(&["l", "m"], Some(&r)));
    assert_eq!(names(&r), ["l", "m"], "complete, because what is missing counts as deleted");
    c.quiet(Listener, &ask(&["l", "m"], Some(&r)));
    c.world.del(Listener, "l");
    assert_eq!(names(&c.change(Listener)[0]), ["m"]);
}

#[test]
fn an_empty_list_after_names_means_nothing() {
    let mut c = Client::new();
    let r = c.one(Cluster, &ask(&["a"], None));
    c.quiet(Cluster, &ask(&["a"], Some(&r)));
    c.quiet(Cluster, &ask(&[], Some(&r)));
    c.world.set(Cluster, "a", "2");
    assert!(c.change(Cluster).is_empty());
}

#[test]
fn names_end_the_legacy_wildcard() {
    let mut c = Client::new();
    let r = c.one(Cluster, &ask(&[], None));
    c.quiet(Cluster, &ask(&[], Some(&r)));
    c.send(Cluster, &ask(&["a"], Some(&r)));
    assert!(!c.session.sub(Cluster).wildcard);
    assert!(c.session.sub(Cluster).wants("a") && !c.session.sub(Cluster).wants("b"));
}

#[test]
fn stale_nonces_are_ignored_with_their_names() {
    let mut c = Client::new();
    let r = c.one(Endpoints, &ask(&["a"], None));
    let mut req = ask(&["b"], Some(&r));
    req.response_nonce = "old".into();
    let seen = c.session.on_sotw(Endpoints, &req).unwrap();
    assert_eq!(seen.outcome, Some(Outcome::Stale));
    assert!(c.poll().is_empty());
    assert!(c.session.sub(Endpoints).asked("a") && !c.session.sub(Endpoints).asked("b"));
}

#[test]
fn a_rejected_version_is_not_sent_again() {
    let mut c = Client::new();
    let r = c.one(Cluster, &ask(&[], None));
    let mut nack = ask(&[], None);
    nack.response_nonce = r.nonce.clone();
    nack.error_detail = Some(error("no"));
    let seen = c.session.on_sotw(Cluster, &nack).unwrap();
    assert!(matches!(seen.outcome, Some(Outcome::Nack(ref text, _)) if text == "no"));
    for _ in 0..3 {
        assert!(c.poll().is_empty());
        assert!(c.change(Cluster).is_empty());
    }
    c.world.set(Cluster, "a", "2");
    assert_eq!(names(&c.change(Cluster)[0]), ["a", "b"]);
}

#[test]
fn a_request_without_nonce_starts_over() {
    let mut c = Client::new();
    let r = c.one(Endpoints, &ask(&["a"], None));
    c.quiet(Endpoints, &ask(&["a"], Some(&r)));
    let r = c.one(Endpoints, &ask(&["a"], None));
    assert_eq!(names(&r), ["a"]);
}

#[test]
fn reconnecting_with_the_version_of_the_whole() {
    let mut c = Client::new();
    let r = c.one(Cluster, &ask(&[], None));
    let mut again = ask(&[], Some(&r));
    again.response_nonce.clear();
    let mut c = Client::new();
    c.quiet(Cluster, &again);
    assert_eq!(c.session.sub(Cluster).held().count(), 2);
    let mut c = Client::new();
    c.world.set(Cluster, "c", "1");
    assert_eq!(names(&c.one(Cluster, &again)), ["a", "b", "c"]);
    // By name the client may have dropped something meanwhile: always answered.
    let r = Client::new().one(Endpoints, &ask(&["a"], None));
    let mut again = ask(&["a"], Some(&r));
    again.response_nonce.clear();
    assert_eq!(names(&Client::new().one(Endpoints, &again)), ["a"]);
}
