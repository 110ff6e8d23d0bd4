//! Make before break, with a clock of our own.

use super::super::testing::{World, delta as ask, delta_ack, delta_nack, names, removed, returning, sotw as list};
use super::*;
use mesh_api::xds::TypeUrl::{Cluster, Endpoints, Listener, Route, Secret};

struct Client {
    world: World,
    session: Session,
    now: Instant,
}

impl Client {
    /// A proxy in sync: one cluster, its endpoints, a listener and its routes.
    fn synced() -> Self {
        let mut world = World::default();
        world.eds("v1", "1").set(Endpoints, "v1", "1").set(Listener, "l", "1").set(Route, "8080", "to v1");
        let mut c = Self { world, session: Session::new(Protocol::Delta, 1), now: Instant::now() };
        for (ty, name) in [(Cluster, "*"), (Endpoints, "v1"), (Listener, "*"), (Route, "8080")] {
            let out = c.request(ty, &ask(&[name], &[]));
            assert_eq!(out.len(), 1, "{ty:?}");
            assert!(c.ack(&out[0]).is_empty());
        }
        assert!(c.session.settled());
        c
    }
    fn poll(&mut self) -> Vec<Response> {
        self.session.poll(self.now, &self.world, "s")
    }
    fn request(&mut self, ty: TypeUrl, req: &DeltaDiscoveryRequest) -> Vec<Response> {
        self.session.on_delta(ty, req, self.now, &self.world).unwrap();
        self.poll()
    }
    fn ack(&mut self, r: &Response) -> Vec<Response> {
        self.request(r.ty, &delta_ack(r))
    }
    fn change(&mut self, affected: Affected) -> Vec<Response> {
        self.session.on_change(affected);
        self.poll()
    }
    /// v1 is replaced by v2 in clusters, endpoints and routes.
    fn shift(&mut self) -> Vec<Response> {
        self.world.del(Cluster, "v1").del(Endpoints, "v1").eds("v2", "1").set(Endpoints, "v2", "1");
        self.world.set(Route, "8080", "to v2");
        self.change(Affected::all())
    }
}

fn types(out: &[Response]) -> Vec<TypeUrl> {
    out.iter().map(|r| r.ty).collect()
}

#[test]
fn clusters_endpoints_routes_removals() {
    let mut c = Client::synced();
    let cds = c.shift();
    assert_eq!(types(&cds), [Cluster]);
    assert_eq!((names(&cds[0]), removed(&cds[0])), (vec!["v2"], vec![]));
    // The endpoints are asked for before or after the clusters are acknowledged; routes wait for both.
    let eds = c.request(Endpoints, &ask(&["v2"], &[]));
    assert_eq!((types(&eds), names(&eds[0])), (vec![Endpoints], vec!["v2"]));
    assert!(c.ack(&cds[0]).is_empty(), "endpoints are not acknowledged");
    let rds = c.ack(&eds[0]);
    assert_eq!(types(&rds), [Route]);
    // Only now nothing uses v1 any more, and its endpoints go with it without a word.
    let gone = c.ack(&rds[0]);
    assert_eq!((types(&gone), removed(&gone[0])), (vec![Cluster], vec!["v1"]));
    assert!(c.ack(&gone[0]).is_empty());
    assert!(c.request(Endpoints, &ask(&[], &["v1"])).is_empty());
    assert!(c.session.settled() && c.session.deadline().is_none());
}

#[test]
fn waiting_has_a_limit() {
    let mut c = Client::synced();
    let cds = c.shift();
    assert!(c.ack(&cds[0]).is_empty());
    let deadline = c.session.deadline().unwrap();
    c.now = deadline - Duration::from_millis(1);
    assert!(c.poll().is_empty());
    c.now = deadline;
    let rds = c.poll();
    assert_eq!(types(&rds), [Route], "the client never asked for the endpoints");
    assert!(c.session.deadline().is_none());
}

#[test]
fn clusters_that_need_nothing_are_waited_for_until_acknowledged() {
    let mut c = Client::synced();
    c.world.set(Cluster, "static", "1").set(Route, "8080", "to static");
    let cds = c.change(Affected::all());
    assert_eq!(types(&cds), [Cluster]);
    assert_eq!(types(&c.ack(&cds[0])), [Route]);
}

#[test]
fn newer_state_replaces_what_waits() {
    let mut c = Client::synced();
    let cds = c.shift();
    c.world.eds("v3", "1").set(Endpoints, "v3", "1").set(Route, "8080", "to v3");
    assert!(c.change(Affected::all()).is_empty(), "one response a type in flight");
    let next = c.ack(&cds[0]);
    assert_eq!((types(&next), names(&next[0])), (vec![Cluster], vec!["v3"]));
    let eds = c.request(Endpoints, &ask(&["v2", "v3"], &[]));
    assert!(c.ack(&next[0]).is_empty());
    let rds = c.ack(&eds[0]);
    assert_eq!(rds[0].resources[0].message(), "to v3");
}

#[test]
fn a_cluster_that_comes_back_is_not_removed() {
    let mut c = Client::synced();
    let cds = c.shift();
    c.ack(&cds[0]);
    c.world.eds("v1", "1").set(Endpoints, "v1", "1");
    assert!(c.change(Affected::none().with(Cluster, ["v1".into()])).is_empty());
    let eds = c.request(Endpoints, &ask(&["v2"], &[]));
    let rds = c.ack(&eds[0]);
    assert!(c.ack(&rds[0]).is_empty());
}

#[test]
fn rejected_routes_keep_the_clusters_they_used() {
    let mut c = Client::synced();
    let cds = c.shift();
    c.ack(&cds[0]);
    let eds = c.request(Endpoints, &ask(&["v2"], &[]));
    let rds = c.ack(&eds[0]);
    assert!(c.request(Route, &delta_nack(&rds[0], "bad regex")).is_empty());
    assert!(c.change(Affected::all()).is_empty(), "nor is the rejected version sent again");
    c.world.set(Route, "8080", "to v2, mended");
    let rds = c.change(Affected::all());
    let gone = c.ack(&rds[0]);
    assert_eq!(removed(&gone[0]), ["v1"]);
}

#[test]
fn endpoints_of_a_changed_cluster_are_sent_again() {
    let mut c = Client::synced();
    c.world.eds("v1", "2");
    let out = c.change(Affected::none().with_all(Cluster));
    assert_eq!(types(&out), [Cluster, Endpoints]);
    assert_eq!(names(&out[1]), ["v1"]);
}

#[test]
fn endpoints_flow_while_routes_wait() {
    let mut c = Client::synced();
    c.shift();
    c.world.set(Endpoints, "v1", "2");
    c.session.on_touch(Endpoints, "v1".into());
    assert_eq!(types(&c.poll()), [Endpoints]);
    c.session.on_touch(Endpoints, "not asked for".into());
    assert!(c.poll().is_empty());
}

#[test]
fn a_fresh_subscription_does_not_wait() {
    let mut world = World::default();
    world.eds("v1", "1").set(Listener, "l", "1").set(Route, "8080", "1");
    let mut c = Client { world, session: Session::new(Protocol::Delta, 1), now: Instant::now() };
    assert_eq!(c.request(Cluster, &ask(&["*"], &[])).len(), 1);
    assert_eq!(types(&c.request(Listener, &ask(&["*"], &[]))), [Listener]);
    assert_eq!(types(&c.request(Route, &ask(&["8080"], &[]))), [Route]);
}

#[test]
fn a_returning_client_is_updated_in_order() {
    let old = Client::synced();
    let version = |ty, name: &str| old.world.version(ty, name);
    let (v1, e1, l, r) =
        (version(Cluster, "v1"), version(Endpoints, "v1"), version(Listener, "l"), version(Route, "8080"));
    let mut c = Client { world: old.world, session: Session::new(Protocol::Delta, 2), now: old.now };
    c.world.del(Cluster, "v1").del(Endpoints, "v1").eds("v2", "1").set(Endpoints, "v2", "1");
    c.world.set(Route, "8080", "to v2");
    let cds = c.request(Cluster, &returning(&["*"], &[("v1", &v1)]));
    assert_eq!((names(&cds[0]), removed(&cds[0])), (vec!["v2"], vec![]));
    assert!(c.ack(&cds[0]).is_empty(), "its listeners and routes are not known yet");
    assert!(c.request(Endpoints, &returning(&["v1"], &[("v1", &e1)])).is_empty());
    assert!(c.request(Listener, &returning(&["*"], &[("l", &l)])).is_empty());
    assert!(c.request(Route, &returning(&["8080"], &[("8080", &r)])).is_empty(), "v2 has no endpoints yet");
    let eds = c.request(Endpoints, &ask(&["v2"], &[]));
    let rds = c.ack(&eds[0]);
    assert_eq!(types(&rds), [Route]);
    let gone = c.ack(&rds[0]);
    assert_eq!((types(&gone), removed(&gone[0])), (vec![Cluster], vec!["v1"]));
}

#[test]
fn a_returning_client_without_listeners_is_not_waited_for_for_ever() {
    let mut c = Client { world: World::default(), session: Session::new(Protocol::Delta, 2), now: Instant::now() };
    c.world.eds("v2", "1");
    let cds = c.request(Cluster, &returning(&["*"], &[("v1", "0123456789abcdef")]));
    assert!(c.ack(&cds[0]).is_empty());
    c.now = c.session.deadline().unwrap();
    assert_eq!(removed(&c.poll()[0]), ["v1"]);
}

#[test]
fn state_of_the_world_sends_what_a_new_listener_waits_for_again() {
    let mut world = World::default();
    let cert = Need { ty: Secret, name: "cert".into() };
    let listener = |name: &str| Encoded::new(Listener, name, name.as_bytes(), vec![cert.clone()]);
    world.set(Secret, "cert", "1");
    world.0.insert((Listener, "old".into()), listener("old"));
    let (mut session, now) = (Session::new(Protocol::Sotw, 1), Instant::now());
    for (ty, list_of) in [(Listener, vec![]), (Secret, vec!["cert"])] {
        session.on_sotw(ty, &list(&list_of, None)).unwrap();
        let out = session.poll(now, &world, "s");
        assert_eq!(types(&out), [ty]);
        session.on_sotw(ty, &list(&list_of, Some(&out[0]))).unwrap();
        assert!(session.poll(now, &world, "s").is_empty());
    }
    world.del(Listener, "old");
    world.0.insert((Listener, "new".into()), listener("new"));
    session.on_change(Affected::all());
    let out = session.poll(now, &world, "s");
    assert_eq!(types(&out), [Listener]);
    session.on_sotw(Listener, &list(&[], Some(&out[0]))).unwrap();
    let out = session.poll(now, &world, "s");
    assert_eq!((types(&out), names(&out[0])), (vec![Secret], vec!["cert"]));
}

#[test]
fn state_of_the_world_keeps_order_too() {
    let mut c = Client::synced();
    c.session = Session::new(Protocol::Sotw, 3);
    let request = |c: &mut Client, ty, names: &[&str], last: Option<&Response>| {
        c.session.on_sotw(ty, &list(names, last)).unwrap();
        c.poll()
    };
    for (ty, names) in [(Cluster, &[][..]), (Endpoints, &["v1"]), (Listener, &[]), (Route, &["8080"])] {
        let out = request(&mut c, ty, names, None);
        assert!(request(&mut c, ty, names, Some(&out[0])).is_empty());
    }
    let cds = c.shift();
    assert_eq!((types(&cds), names(&cds[0])), (vec![Cluster], vec!["v1", "v2"]), "the old one stays for now");
    assert!(request(&mut c, Cluster, &[], Some(&cds[0])).is_empty());
    let eds = request(&mut c, Endpoints, &["v1", "v2"], None);
    let rds = request(&mut c, Endpoints, &["v1", "v2"], Some(&eds[0]));
    assert_eq!(types(&rds), [Route]);
    let gone = request(&mut c, Route, &["8080"], Some(&rds[0]));
    assert_eq!((types(&gone), names(&gone[0])), (vec![Cluster], vec!["v2"]));
}
