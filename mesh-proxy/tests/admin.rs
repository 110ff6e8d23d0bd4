//! The admin server of a whole process: counters, certificates, draining, log levels.

#![allow(clippy::unwrap_used, clippy::expect_used)] // a test that meets what it does not expect ends

mod support;

use std::{net::SocketAddr, path::Path, time::Duration};

use support::{Proxy, backend, free_port, get, http_filter};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// An inbound and an outbound listener, and one with a certificate in files.
fn bootstrap([inbound, outbound, tls]: [u16; 3], backend: SocketAddr, certificate: &Path, key: &Path) -> String {
    let routes = "route_config: {name: r, virtual_hosts: [{name: v, domains: ['*'], routes: [
                  {match: {prefix: /gone}, route: {cluster: nobody}}, {match: {prefix: /}, route: {cluster: b}}]}]}";
    let filters = http_filter(6, routes);
    let listener = |name: &str, port: u16, direction: &str| {
        format!(
            "  - name: {name}
    address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
    traffic_direction: {direction}
    filter_chains:
    - filters:
{filters}
"
        )
    };
    format!(
        "admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: @ADMIN@}}}}}}
static_resources:
  listeners:
{}{}{}      transport_socket:
        name: tls
        typed_config:
          '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
          common_tls_context:
            tls_certificates: [{{certificate_chain: {{filename: {}}}, private_key: {{filename: {}}}}}]
  clusters:
  - {{name: nobody, type: STATIC, load_assignment: {{cluster_name: nobody}}}}
  - name: b
    type: STATIC
    load_assignment:
      cluster_name: b
      endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {}}}}}}}}}]}}]
",
        listener("in", inbound, "INBOUND"),
        listener("out", outbound, "OUTBOUND"),
        listener("tls", tls, "OUTBOUND"),
        certificate.display(),
        key.display(),
        backend.port()
    )
}

/// Whom a test has started.
struct Started {
    proxy: Proxy,
    ports: [u16; 3],
    certificate: std::path::PathBuf,
    _dir: tempfile::TempDir,
}

async fn start(flags: &[&str]) -> Started {
    let dir = tempfile::tempdir().unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let signed = rcgen::CertificateParams::new(vec!["svc.local".to_owned()]).unwrap().self_signed(&key).unwrap();
    let (certificate, key_file) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    std::fs::write(&certificate, signed.pem()).unwrap();
    std::fs::write(&key_file, key.serialize_pem()).unwrap();
    let ports = [free_port(), free_port(), free_port()];
    let text = bootstrap(ports, backend("b").await, &certificate, &key_file);
    let mut proxy = Proxy::start(&text, flags);
    proxy.until_ready(200).await;
    Started { proxy, ports, certificate, _dir: dir }
}

async fn post(admin: SocketAddr, target: &str) -> String {
    let mut stream = TcpStream::connect(admin).await.unwrap();
    let request = format!("POST {target} HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

async fn refuses(port: u16) -> bool {
    for _ in 0..500 {
        if TcpStream::connect(local(port)).await.is_err() {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    false
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_are_counted_and_certificates_in_files_shown() {
    let started = start(&[]).await;
    let [inbound, ..] = started.ports;
    assert_eq!(get(local(inbound), "a", "/").await.unwrap().status, 200);
    assert_eq!(get(local(inbound), "a", "/gone").await.unwrap().status, 503);
    let admin = started.proxy.admin;
    let stats = get(admin, "a", "/stats").await.unwrap().body;
    let of = |line: &str| assert!(stats.contains(&format!("{line}\n")), "{line}: {stats}");
    for line in ["cluster.b.upstream_rq_200: 1", "cluster.b.upstream_rq_2xx: 1", "cluster.nobody.upstream_rq_503: 1"] {
        of(line);
    }
    let manager = stats.lines().find_map(|l| l.strip_suffix(".downstream_rq_2xx: 1")).expect("counters of a manager");
    of(&format!("{manager}.downstream_rq_total: 2"));
    of(&format!("{manager}.downstream_rq_5xx: 1"));
    of(&format!("{manager}.downstream_cx_total: 2"));
    of("cluster.b.outlier_detection.ejections_active: 0");
    assert!(!stats.contains("upstream_rq_cancelled"), "what nobody counts is not shown");
    let text = get(admin, "a", "/stats/prometheus").await.unwrap().body;
    let line = "envoy_cluster_upstream_rq{response_code=\"200\",cluster_name=\"b\"} 1";
    assert!(text.contains(line), "{text}");
    assert!(text.contains("envoy_http_downstream_rq{http_conn_manager_prefix="), "{text}");
    let certs = get(admin, "a", "/certs").await.unwrap().body;
    assert!(certs.contains(started.certificate.to_str().unwrap()) && certs.contains("svc.local"), "{certs}");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_inbound_listeners_stop_when_that_is_asked_for() {
    let started = start(&[]).await;
    let [inbound, outbound, _] = started.ports;
    let mut open = TcpStream::connect(local(inbound)).await.unwrap();
    open.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let mut some = [0; 1024];
    assert!(open.read(&mut some).await.unwrap() > 0);
    assert!(post(started.proxy.admin, "/drain_listeners?inboundonly").await.starts_with("HTTP/1.1 200"));
    assert!(refuses(inbound).await);
    assert_eq!(get(local(outbound), "a", "/").await.unwrap().status, 200);
    // What is open goes on.
    open.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    assert!(open.read(&mut some).await.unwrap() > 0);
    post(started.proxy.admin, "/drain_listeners").await;
    assert!(refuses(outbound).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn gracefully_new_connections_are_served_until_the_time_is_over() {
    let started = start(&["--drain-time-s", "3"]).await;
    let [inbound, outbound, _] = started.ports;
    post(started.proxy.admin, "/drain_listeners?inboundonly&graceful").await;
    let mut open = TcpStream::connect(local(inbound)).await.expect("still accepted");
    open.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    let ended = tokio::time::timeout(Duration::from_secs(20), open.read_to_string(&mut answer)).await;
    assert!(ended.is_ok() && answer.starts_with("HTTP/1.1 200"), "answered, and closed in the end: {answer}");
    assert!(refuses(inbound).await);
    assert_eq!(get(local(outbound), "a", "/").await.unwrap().status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn single_loggers_have_levels() {
    let started = start(&[]).await;
    let admin = started.proxy.admin;
    let answer = post(admin, "/logging?level=warning").await;
    assert!(answer.contains("  http: warning\n"), "{answer}");
    let answer = post(admin, "/logging?paths=conn_handler:debug,ads:error").await;
    assert!(answer.contains("  conn_handler: debug\n") && answer.contains("  http: warning\n"), "{answer}");
    for bad in ["/logging?paths=nothing:debug", "/logging?http=loud"] {
        assert!(post(admin, bad).await.starts_with("HTTP/1.1 400"), "{bad}");
    }
}
