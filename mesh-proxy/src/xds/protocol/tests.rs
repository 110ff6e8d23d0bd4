//! Scripts of messages.

use super::*;

fn protocol(variant: Variant) -> Protocol {
    let mut p = Protocol::new(variant, Node { id: "n".into(), ..Default::default() }, false);
    p.subscribe(TypeUrl::Cluster, Interest::all());
    p
}

fn any(ty: TypeUrl, name: &str) -> Any {
    Any { type_url: ty.as_str().into(), value: Named { name: name.into() }.encode_to_vec() }
}

fn delta(ty: TypeUrl, nonce: &str, resources: &[(&str, &str)], removed: &[&str]) -> Response {
    let wrap = |(name, version): &(&str, &str)| Wrapped {
        name: (*name).into(),
        version: (*version).into(),
        resource: Some(any(ty, name)),
        ..Default::default()
    };
    Response::Delta(Box::new(DeltaDiscoveryResponse {
        type_url: ty.as_str().into(),
        nonce: nonce.into(),
        resources: resources.iter().map(wrap).collect(),
        removed_resources: removed.iter().map(|n| (*n).into()).collect(),
        ..Default::default()
    }))
}

fn sotw(ty: TypeUrl, version: &str, nonce: &str, names: &[&str]) -> Response {
    Response::Sotw(Box::new(DiscoveryResponse {
        type_url: ty.as_str().into(),
        version_info: version.into(),
        nonce: nonce.into(),
        resources: names.iter().map(|n| any(ty, n)).collect(),
        ..Default::default()
    }))
}

fn next_delta(p: &mut Protocol) -> DeltaDiscoveryRequest {
    match p.next_request() {
        Some(Request::Delta(r)) => *r,
        other => panic!("{other:?}"),
    }
}

fn next_sotw(p: &mut Protocol) -> DiscoveryRequest {
    match p.next_request() {
        Some(Request::Sotw(r)) => *r,
        other => panic!("{other:?}"),
    }
}

fn names(p: &Protocol, ty: TypeUrl) -> Vec<String> {
    let mut all: Vec<String> = p.held(ty).map(|(n, v)| format!("{n}@{v}")).collect();
    all.sort();
    all
}

fn no() -> Vec<(Name, String)> {
    vec![]
}

#[test]
fn the_good_is_taken_and_the_bad_named() {
    let mut p = protocol(Variant::Delta);
    p.connected();
    let hello = next_delta(&mut p);
    assert!(hello.node.is_some() && hello.resource_names_subscribe.is_empty());
    let update = p.received(delta(TypeUrl::Cluster, "1", &[("a", "1"), ("b", "1")], &[])).unwrap();
    assert_eq!(update.resources.len(), 2);
    p.judged(update, no());
    let ack = next_delta(&mut p);
    assert!(ack.error_detail.is_none() && ack.node.is_none() && ack.response_nonce == "1");
    let update = p.received(delta(TypeUrl::Cluster, "2", &[("a", "2"), ("b", "2")], &[])).unwrap();
    p.judged(update, vec![("b".into(), "b: lb_policy: unknown".into())]);
    let nack = next_delta(&mut p);
    assert_eq!(nack.response_nonce, "2");
    assert_eq!(nack.error_detail.unwrap().message, "Error adding/updating cluster(s) b: lb_policy: unknown");
    assert_eq!(names(&p, TypeUrl::Cluster), ["a@2", "b@1"]);
    // A refused resource that was never accepted is not said to be held, so that it is sent again.
    let update = p.received(delta(TypeUrl::Cluster, "3", &[("c", "1")], &["a"])).unwrap();
    assert_eq!(update.removed, [Name::from("a")]);
    p.judged(update, vec![("c".into(), "x".into())]);
    p.disconnected();
    p.connected();
    let again = next_delta(&mut p);
    assert!(again.node.is_some() && again.response_nonce.is_empty());
    assert_eq!(again.initial_resource_versions, HashMap::from([("b".to_owned(), "1".to_owned())]));
    assert!(p.next_request().is_none(), "what was in the outbox belonged to the old stream");
}

#[test]
fn two_answers_before_one_acknowledgement() {
    let mut p = protocol(Variant::Delta);
    p.connected();
    next_delta(&mut p);
    let one = p.received(delta(TypeUrl::Cluster, "1", &[("a", "1")], &[])).unwrap();
    let two = p.received(delta(TypeUrl::Cluster, "2", &[("b", "1")], &[])).unwrap();
    p.judged(one, vec![("a".into(), "bad".into())]);
    p.judged(two, no());
    let nack = next_delta(&mut p);
    assert!(nack.response_nonce == "1" && nack.error_detail.is_some());
    let ack = next_delta(&mut p);
    assert!(ack.response_nonce == "2" && ack.error_detail.is_none());
}

#[test]
fn names_come_and_go() {
    let mut p = protocol(Variant::Delta);
    p.connected();
    next_delta(&mut p);
    p.subscribe(TypeUrl::Endpoints, Interest::names([]));
    assert!(p.next_request().is_none(), "no names would mean all of them");
    p.subscribe(TypeUrl::Endpoints, Interest::names(["a".into(), "b".into()]));
    assert_eq!(next_delta(&mut p).resource_names_subscribe, ["a", "b"]);
    let update = p.received(delta(TypeUrl::Endpoints, "1", &[("a", "1"), ("b", "1")], &[])).unwrap();
    p.judged(update, no());
    next_delta(&mut p);
    p.subscribe(TypeUrl::Endpoints, Interest::names(["b".into(), "c".into()]));
    let change = next_delta(&mut p);
    assert_eq!(
        (change.resource_names_subscribe, change.resource_names_unsubscribe),
        (vec!["c".into()], vec!["a".into()])
    );
    assert!(change.initial_resource_versions.is_empty());
    // An answer to what is not wanted any more.
    let late = p.received(delta(TypeUrl::Endpoints, "2", &[("a", "2")], &[])).unwrap();
    assert!(late.resources.is_empty());
    p.judged(late, no());
    assert_eq!(names(&p, TypeUrl::Endpoints), ["b@1"]);
    next_delta(&mut p);
    p.subscribe(TypeUrl::Endpoints, Interest::names([]));
    assert_eq!(next_delta(&mut p).resource_names_unsubscribe, ["b", "c"]);
    // Changes while there is no stream are said on the next one.
    p.disconnected();
    p.subscribe(TypeUrl::Endpoints, Interest::names(["d".into()]));
    p.connected();
    assert_eq!(next_delta(&mut p).type_url, TypeUrl::Cluster.as_str());
    assert_eq!(next_delta(&mut p).resource_names_subscribe, ["d"]);
}

#[test]
fn odd_answers() {
    let mut p = protocol(Variant::Delta);
    p.connected();
    next_delta(&mut p);
    let strange = DeltaDiscoveryResponse { type_url: "x/y".into(), nonce: "9".into(), ..Default::default() };
    assert!(p.received(Response::Delta(Box::new(strange))).is_none());
    let nack = next_delta(&mut p);
    assert!(nack.type_url == "x/y" && nack.response_nonce == "9" && nack.error_detail.is_some());
    assert!(p.received(delta(TypeUrl::Route, "1", &[("r", "1")], &[])).is_none(), "never asked for");
    assert!(next_delta(&mut p).error_detail.is_none());
    let Response::Delta(mut twice) = delta(TypeUrl::Cluster, "2", &[("a", "1"), ("a", "2"), ("b", "1")], &[]) else {
        panic!()
    };
    twice.resources[2].resource = Some(any(TypeUrl::Route, "b"));
    let update = p.received(Response::Delta(twice)).unwrap();
    assert_eq!(update.resources.len(), 1);
    p.judged(update, no());
    let text = next_delta(&mut p).error_detail.unwrap().message;
    assert!(text.contains("a: stands twice") && text.contains("b: is a"), "{text}");
}

#[test]
fn state_of_the_world() {
    let mut p = protocol(Variant::Sotw);
    p.connected();
    let hello = next_sotw(&mut p);
    assert!(hello.node.is_some() && hello.resource_names.is_empty() && hello.version_info.is_empty());
    let update = p.received(sotw(TypeUrl::Cluster, "v1", "1", &["a", "b"])).unwrap();
    p.judged(update, no());
    let ack = next_sotw(&mut p);
    assert_eq!((ack.version_info.as_str(), ack.response_nonce.as_str()), ("v1", "1"));
    let update = p.received(sotw(TypeUrl::Cluster, "v2", "2", &["b", "c"])).unwrap();
    assert_eq!(update.removed, [Name::from("a")]);
    p.judged(update, vec![("b".into(), "bad".into())]);
    let nack = next_sotw(&mut p);
    assert_eq!((nack.version_info.as_str(), nack.response_nonce.as_str()), ("v1", "2"));
    assert!(nack.error_detail.is_some());
    assert_eq!(names(&p, TypeUrl::Cluster), ["b@v1", "c@v2"]);
    // Names: what is missing in an answer is not gone.
    p.subscribe(TypeUrl::Route, Interest::names(["x".into(), "y".into()]));
    assert_eq!(next_sotw(&mut p).resource_names, ["x", "y"]);
    let update = p.received(sotw(TypeUrl::Route, "1", "1", &["x", "z"])).unwrap();
    assert_eq!((update.resources.len(), update.removed.len()), (1, 0));
    p.judged(update, no());
    assert_eq!(next_sotw(&mut p).resource_names, ["x", "y"]);
    p.subscribe(TypeUrl::Route, Interest::names(["x".into()]));
    let fewer = next_sotw(&mut p);
    assert_eq!((fewer.resource_names.len(), fewer.response_nonce.as_str()), (1, "1"));
    p.disconnected();
    p.connected();
    let again = next_sotw(&mut p);
    assert_eq!((again.version_info.as_str(), again.response_nonce.as_str()), ("v1", ""));
}

#[test]
fn resources_in_wrappers_and_garbage() {
    let mut p = protocol(Variant::Sotw);
    p.connected();
    next_sotw(&mut p);
    let wrapped = Wrapped { name: "a".into(), resource: Some(any(TypeUrl::Cluster, "a")), ..Default::default() };
    let good = Any { type_url: WRAPPER.into(), value: wrapped.encode_to_vec() };
    let bad = Any { type_url: TypeUrl::Cluster.as_str().into(), value: vec![0xff; 7] };
    let response = DiscoveryResponse {
        type_url: TypeUrl::Cluster.as_str().into(),
        resources: vec![good, bad],
        nonce: "1".into(),
        ..Default::default()
    };
    let update = p.received(Response::Sotw(Box::new(response))).unwrap();
    assert_eq!(update.resources.len(), 1);
    p.judged(update, no());
    assert!(next_sotw(&mut p).error_detail.unwrap().message.contains("cannot be decoded"));
}

#[test]
fn pauses_grow_to_a_limit() {
    let mut b = Backoff::default();
    let all: Vec<u128> = (0..8).map(|_| b.next(1.0).as_millis()).collect();
    assert_eq!(all, [200, 400, 800, 1600, 3200, 4000, 4000, 4000]);
    b.reset();
    assert_eq!(b.next(0.0), Duration::from_millis(100));
}
