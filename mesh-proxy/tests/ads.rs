//! A proxy that gets everything over ADS, from a control plane that misbehaves on command.

#![allow(clippy::unwrap_used, clippy::expect_used)] // a test that meets what it does not expect ends

mod support;

use std::{net::SocketAddr, time::Duration};

use mesh_api::xds::TypeUrl;
use support::{
    Proxy, backend,
    control::{Control, bootstrap, eds_cluster, endpoints, rds_listener, resource, route},
    free_port, get, until,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, sleep},
};

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

#[tokio::test(flavor = "multi_thread")]
async fn make_before_break_by_delta() {
    let control = Control::start().await;
    let (one, two, port) = (backend("one").await, backend("two").await, free_port());
    let mut proxy = Proxy::start(&bootstrap(control.address, "DELTA_GRPC"), &[]);
    let why = proxy.until_ready(503).await;
    assert!(why.contains("xds"), "{why}");
    let mut ads = control.delta().await;
    let first = ads.asked(TypeUrl::Cluster).await;
    assert_eq!(first.node.unwrap().user_agent_name, "mesh-proxy");
    // Listeners are not asked for before clusters are known.
    ads.silent().await;
    ads.push(TypeUrl::Cluster, "1", &[("b", eds_cluster("b"))], &[]).await;
    assert_eq!(ads.asked(TypeUrl::Endpoints).await.resource_names_subscribe, ["b"]);
    ads.asked(TypeUrl::Listener).await;
    ads.push(TypeUrl::Listener, "1", &[("l", rds_listener("l", port, "r"))], &[]).await;
    assert_eq!(ads.asked(TypeUrl::Route).await.resource_names_subscribe, ["r"]);
    ads.push(TypeUrl::Route, "1", &[("r", route("r", "b"))], &[]).await;
    // The cluster is not warm: nobody is let in.
    sleep(Duration::from_millis(200)).await;
    assert!(TcpStream::connect(local(port)).await.is_err());
    proxy.until_ready(503).await;
    ads.push(TypeUrl::Endpoints, "1", &[("b", endpoints("b", &[one]))], &[]).await;
    proxy.until_ready(200).await;
    assert_eq!(get(local(port), "x", "/").await.unwrap().body, "one GET /");

    // A route to a cluster without endpoints yet does not come into force before they are there.
    ads.push(TypeUrl::Cluster, "2", &[("c", eds_cluster("c"))], &[]).await;
    assert_eq!(ads.asked(TypeUrl::Endpoints).await.resource_names_subscribe, ["c"]);
    ads.push(TypeUrl::Route, "2", &[("r", route("r", "c"))], &[]).await;
    for _ in 0..20 {
        assert_eq!(get(local(port), "x", "/").await.unwrap().body, "one GET /");
    }
    ads.push(TypeUrl::Endpoints, "2", &[("c", endpoints("c", &[two]))], &[]).await;
    until(local(port), "x", "/", |a| a.body == "two GET /").await;

    // The old cluster goes; its endpoints are let go of.
    ads.push(TypeUrl::Cluster, "3", &[], &["b"]).await;
    assert_eq!(ads.asked(TypeUrl::Endpoints).await.resource_names_unsubscribe, ["b"]);
    // Endpoints alone.
    ads.push(TypeUrl::Endpoints, "3", &[("c", endpoints("c", &[one]))], &[]).await;
    until(local(port), "x", "/", |a| a.body == "one GET /").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bad_is_named_the_good_applies_and_a_lost_stream_changes_nothing() {
    let control = Control::start().await;
    let (one, two, port) = (backend("one").await, backend("two").await, free_port());
    let mut proxy = Proxy::start(&bootstrap(control.address, "DELTA_GRPC"), &[]);
    let mut ads = control.delta().await;
    ads.asked(TypeUrl::Cluster).await;
    ads.push(TypeUrl::Cluster, "1", &[("b", eds_cluster("b"))], &[]).await;
    ads.asked(TypeUrl::Endpoints).await;
    ads.asked(TypeUrl::Listener).await;
    ads.push(TypeUrl::Endpoints, "1", &[("b", endpoints("b", &[one]))], &[]).await;
    ads.push(TypeUrl::Listener, "1", &[("l", rds_listener("l", port, "r"))], &[]).await;
    ads.asked(TypeUrl::Route).await;
    ads.push(TypeUrl::Route, "1", &[("r", route("r", "b"))], &[]).await;
    proxy.until_ready(200).await;

    let bad =
        resource(TypeUrl::Cluster, "{name: b, type: EDS, lb_policy: MAGLEV, maglev_lb_config: {table_size: 9999999}}");
    let nack = ads.push(TypeUrl::Cluster, "2", &[("b", bad), ("d", eds_cluster("d"))], &[]).await;
    let text = nack.error_detail.unwrap().message;
    assert!(text.contains("b: ") && !text.contains("d: "), "{text}");
    assert_eq!(ads.asked(TypeUrl::Endpoints).await.resource_names_subscribe, ["d"], "the good one applies");
    assert_eq!(get(local(port), "x", "/").await.unwrap().body, "one GET /");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let busy = rds_listener("busy", taken.local_addr().unwrap().port(), "r");
    let nack = ads.push(TypeUrl::Listener, "2", &[("busy", busy)], &[]).await;
    assert!(nack.error_detail.unwrap().message.contains("busy: "));
    let strange = mesh_api::xds::google::protobuf::Any { type_url: "type.googleapis.com/a.B".into(), value: vec![] };
    let nack = ads.push(TypeUrl::Route, "2", &[("r", strange)], &[]).await;
    assert!(nack.error_detail.is_some());

    drop(ads);
    let mut ads = control.delta().await;
    let again = ads.asked(TypeUrl::Cluster).await;
    let mut known: Vec<(String, String)> = again.initial_resource_versions.into_iter().collect();
    known.sort();
    assert_eq!(known, [("b".into(), "1".into()), ("d".into(), "2".into())]);
    assert!(again.node.is_some());
    let again = ads.asked(TypeUrl::Endpoints).await;
    assert_eq!(again.resource_names_subscribe, ["b", "d"]);
    assert_eq!(again.initial_resource_versions.len(), 1);
    let again = ads.asked(TypeUrl::Listener).await;
    assert_eq!(again.initial_resource_versions.len(), 1, "what could not be bound is not held");
    ads.asked(TypeUrl::Route).await;
    assert_eq!(get(local(port), "x", "/").await.unwrap().body, "one GET /");
    ads.push(TypeUrl::Endpoints, "2", &[("b", endpoints("b", &[two]))], &[]).await;
    until(local(port), "x", "/", |a| a.body == "two GET /").await;
    proxy.until_ready(200).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn listeners_move_and_go_while_connections_finish() {
    let control = Control::start().await;
    let (one, first, second) = (backend("one").await, free_port(), free_port());
    let mut proxy = Proxy::start(&bootstrap(control.address, "DELTA_GRPC"), &[]);
    let mut ads = control.delta().await;
    ads.asked(TypeUrl::Cluster).await;
    ads.push(TypeUrl::Cluster, "1", &[("b", eds_cluster("b"))], &[]).await;
    ads.asked(TypeUrl::Endpoints).await;
    ads.asked(TypeUrl::Listener).await;
    ads.push(TypeUrl::Endpoints, "1", &[("b", endpoints("b", &[one]))], &[]).await;
    ads.push(TypeUrl::Listener, "1", &[("l", rds_listener("l", first, "r"))], &[]).await;
    ads.asked(TypeUrl::Route).await;
    ads.push(TypeUrl::Route, "1", &[("r", route("r", "b"))], &[]).await;
    proxy.until_ready(200).await;
    let mut slow = TcpStream::connect(local(first)).await.unwrap();
    slow.write_all(b"GET /slow HTTP/1.1\r\nhost: x\r\nx-wait-ms: 1500\r\nconnection: close\r\n\r\n").await.unwrap();
    sleep(Duration::from_millis(300)).await;
    // Another port for the same listener; another listener takes the old one in the same push.
    let both = [("l", rds_listener("l", second, "r"))];
    assert!(ads.push(TypeUrl::Listener, "2", &both, &[]).await.error_detail.is_none());
    until(local(second), "x", "/", |a| a.status == 200).await;
    let end = Instant::now() + Duration::from_secs(5);
    while TcpStream::connect(local(first)).await.is_ok() {
        assert!(Instant::now() < end, "still listening at the old port");
        sleep(Duration::from_millis(20)).await;
    }
    let renamed = [("m", rds_listener("m", second, "r"))];
    assert!(ads.push(TypeUrl::Listener, "3", &renamed, &["l"]).await.error_detail.is_none());
    until(local(second), "x", "/", |a| a.status == 200).await;
    ads.push(TypeUrl::Listener, "4", &[], &["m"]).await;
    assert_eq!(ads.asked(TypeUrl::Route).await.resource_names_unsubscribe, ["r"]);
    let mut answer = String::new();
    slow.read_to_string(&mut answer).await.unwrap();
    assert!(answer.ends_with("one GET /slow"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn state_of_the_world() {
    let control = Control::start().await;
    let (one, port) = (backend("one").await, free_port());
    let mut proxy = Proxy::start(&bootstrap(control.address, "GRPC"), &[]);
    let mut ads = control.sotw().await;
    ads.asked(TypeUrl::Cluster).await;
    let ack = ads.push(TypeUrl::Cluster, "1", &[eds_cluster("b"), eds_cluster("old")]).await;
    assert_eq!(ack.version_info, "1");
    assert_eq!(ads.asked(TypeUrl::Endpoints).await.resource_names, ["b", "old"]);
    ads.asked(TypeUrl::Listener).await;
    ads.push(TypeUrl::Endpoints, "1", &[endpoints("b", &[one]), endpoints("old", &[])]).await;
    ads.push(TypeUrl::Listener, "1", &[rds_listener("l", port, "r")]).await;
    assert_eq!(ads.asked(TypeUrl::Route).await.resource_names, ["r"]);
    ads.push(TypeUrl::Route, "1", &[route("r", "b")]).await;
    proxy.until_ready(200).await;
    assert_eq!(get(local(port), "x", "/").await.unwrap().body, "one GET /");
    let bad =
        resource(TypeUrl::Cluster, "{name: c, type: EDS, lb_policy: MAGLEV, maglev_lb_config: {table_size: 9999999}}");
    let nack = ads.push(TypeUrl::Cluster, "2", &[eds_cluster("b"), bad]).await;
    assert_eq!(nack.version_info, "1");
    assert!(nack.error_detail.unwrap().message.contains("c: "));
    let fewer = ads.next().await;
    assert_eq!(fewer.resource_names, ["b"], "what is not listed is gone");
    drop(ads);
    let mut ads = control.sotw().await;
    let again = ads.asked(TypeUrl::Cluster).await;
    assert_eq!(again.version_info, "1");
    assert_eq!(get(local(port), "x", "/").await.unwrap().body, "one GET /");
}
