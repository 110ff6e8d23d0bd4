//! `mesh-proxy -c FILE` with everything in the file: requests, refusals at the start, the end.

#![allow(clippy::unwrap_used, clippy::expect_used)] // a test that meets what it does not expect ends

mod support;

use std::{net::SocketAddr, time::Duration};

use support::{Proxy, backend, free_port, get, get_with, http_filter};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, sleep},
};

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn bootstrap(listen: u16, backend: SocketAddr) -> String {
    let routes = "route_config: {name: r, virtual_hosts: [{name: v, domains: ['svc.local'], routes: [{match: {prefix: /}, route: {cluster: b}}]}]}";
    format!(
        "admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: @ADMIN@}}}}}}
static_resources:
  listeners:
  - name: l
    address: {{socket_address: {{address: 127.0.0.1, port_value: {listen}}}}}
    filter_chains:
    - filters:
{}
  clusters:
  - name: b
    type: STATIC
    load_assignment:
      cluster_name: b
      endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {}}}}}}}}}]}}]
",
        http_filter(6, routes),
        backend.port()
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_reach_the_backend() {
    let (port, backend) = (free_port(), backend("b").await);
    let mut proxy = Proxy::start(&bootstrap(port, backend), &[]);
    proxy.until_ready(200).await;
    let answer = get(local(port), "svc.local", "/x?y").await.unwrap();
    assert_eq!((answer.status, answer.body.as_str()), (200, "b GET /x"));
    assert_eq!(get(local(port), "other.local", "/").await.unwrap().status, 404);
    let info = get(proxy.admin, "a", "/server_info").await.unwrap();
    assert!(info.body.contains("\"LIVE\""), "{}", info.body);
    let listeners = get(proxy.admin, "a", "/listeners").await.unwrap();
    assert!(listeners.body.contains(&format!("l::127.0.0.1:{port}")), "{}", listeners.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_flight_is_answered_and_idle_connections_do_not_hold_the_end() {
    let (port, backend) = (free_port(), backend("b").await);
    let mut proxy = Proxy::start(&bootstrap(port, backend), &["--drain-time-s", "15"]);
    proxy.until_ready(200).await;
    // Kept alive, idle after one answer.
    let mut idle = TcpStream::connect(local(port)).await.unwrap();
    idle.write_all(b"GET / HTTP/1.1\r\nhost: svc.local\r\n\r\n").await.unwrap();
    let mut some = [0u8; 64];
    assert!(idle.read(&mut some).await.unwrap() > 0);
    let slow = tokio::spawn(get_with(local(port), "svc.local", "/slow", "x-wait-ms: 1500\r\n"));
    sleep(Duration::from_millis(500)).await;
    let told = Instant::now();
    proxy.terminate();
    let answer = slow.await.unwrap().unwrap();
    assert_eq!((answer.status, answer.body.as_str()), (200, "b GET /slow"));
    assert!(proxy.ended().await.success(), "{}", proxy.log());
    assert!(told.elapsed() < Duration::from_secs(8), "waited for nothing: {:?}", told.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_reading_took_is_given_back() {
    let (port, backend) = (free_port(), backend("b").await);
    let mut text = bootstrap(port, backend);
    for n in 0..500 {
        text += &format!(
            "  - {{name: c{n}, load_assignment: {{cluster_name: c{n}, endpoints: [{{lb_endpoints: [{{endpoint: {{address: \
             {{socket_address: {{address: 10.0.{}.{}, port_value: 80}}}}}}}}]}}]}}}}\n",
            n / 250,
            n % 250
        );
    }
    let mut proxy = Proxy::start(&text, &[]);
    proxy.until_ready(200).await;
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        let (anonymous, most) = proxy.memory();
        if anonymous < most / 2 {
            break;
        }
        assert!(Instant::now() < end, "{anonymous} of {most} KiB");
        sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_at_once() {
    let (port, backend) = (free_port(), backend("b").await);
    let mut proxy = Proxy::start(&bootstrap(port, backend), &["--drain-time-s", "60"]);
    proxy.until_ready(200).await;
    let _slow = tokio::spawn(get_with(local(port), "svc.local", "/slow", "x-wait-ms: 60000\r\n"));
    sleep(Duration::from_millis(300)).await;
    proxy.terminate();
    assert!(proxy.until_ready(503).await.to_ascii_lowercase().contains("drain"));
    proxy.terminate();
    proxy.ended().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_in_use_and_an_unknown_field_end_the_start() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let text = bootstrap(port, local(1));
    let mut proxy = Proxy::start(&text, &[]);
    assert!(!proxy.ended().await.success());
    assert!(proxy.log().contains(&format!("127.0.0.1:{port}")), "{}", proxy.log());
    let mut proxy = Proxy::start(&text.replace("type: STATIC", "type: STATIC\n    lb_polizy: MAGLEV"), &[]);
    assert!(!proxy.ended().await.success());
    assert!(proxy.log().contains("lb_polizy"), "{}", proxy.log());
}
