//! Forwarded connections of a whole process: bytes, metrics, logs, draining, secrets from a file.

#![allow(clippy::unwrap_used, clippy::expect_used)] // a test that meets what it does not expect ends

mod support;

use std::{net::SocketAddr, time::Duration};

use support::{Answer, Proxy, free_port, until};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

/// Answers with what it was sent, when the other side has ended.
async fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut all = Vec::new();
                stream.read_to_end(&mut all).await?;
                stream.write_all(&all).await
            });
        }
    });
    address
}

fn bootstrap(listen: u16, upstream: SocketAddr, socket: &str, log: &str) -> String {
    format!(
        "admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: @ADMIN@}}}}}}
static_resources:
  listeners:
  - name: l
    address: {{socket_address: {{address: 127.0.0.1, port_value: {listen}}}}}
    traffic_direction: OUTBOUND
    filter_chains:
    - filters:
      - name: tcp
        typed_config:
          '@type': type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: t
          cluster: up
          access_log:
          - name: file
            typed_config:
              '@type': type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog
              path: {log}
              log_format: {{text_format_source: {{inline_string: \"%PROTOCOL% %RESPONSE_CODE% %BYTES_RECEIVED% %BYTES_SENT% %RESPONSE_FLAGS% %UPSTREAM_CLUSTER%\\n\"}}}}
{socket}
  clusters:
  - name: up
    type: STATIC
    load_assignment:
      cluster_name: up
      endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {}}}}}}}}}]}}]
",
        upstream.port()
    )
}

async fn send(to: SocketAddr, what: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(to).await?;
    stream.write_all(what).await?;
    stream.shutdown().await?;
    let mut got = Vec::new();
    stream.read_to_end(&mut got).await?;
    Ok(got)
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_go_both_ways_and_are_counted_and_logged() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let (port, upstream) = (free_port(), echo().await);
    let local = SocketAddr::from(([127, 0, 0, 1], port));
    let mut proxy = Proxy::start(&bootstrap(port, upstream, "", log.to_str().unwrap()), &["--drain-time-s", "1"]);
    proxy.until_ready(200).await;
    let data: Vec<u8> = (0..1_000_000u32).map(|n| (n >> 3) as u8).collect();
    assert!(send(local, &data).await.unwrap() == data);
    // The client may see the end of its connection before the books are closed.
    let one = |l: &str| l.starts_with("istio_tcp_connections_closed_total{") && l.ends_with(" 1");
    let closed = |a: &Answer| a.body.lines().any(one);
    let stats = until(proxy.admin, "a", "/stats/prometheus", closed).await.body;
    let line = stats.lines().find(|l| l.starts_with("istio_tcp_sent_bytes_total")).unwrap_or_default();
    assert!(line.ends_with(" 1000000"), "{stats}");
    // One that nobody ends is ended when the time for draining is over; new ones are refused before that.
    let mut open = TcpStream::connect(local).await.unwrap();
    open.write_all(b"x").await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    proxy.terminate();
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert!(TcpStream::connect(local).await.is_err());
    assert!(proxy.ended().await.success());
    let lines = std::fs::read_to_string(&log).unwrap();
    let lines: Vec<&str> = lines.lines().collect();
    assert_eq!(lines.first().copied(), Some("- 0 1000000 1000000 - up"), "{lines:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_serves_with_the_secret_of_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(vec!["svc.local".to_owned()]).unwrap().self_signed(&key).unwrap();
    let secret = serde_json::json!({"resources": [{
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
        "name": "server",
        "tls_certificate": {
            "certificate_chain": {"inline_string": certificate.pem()},
            "private_key": {"inline_string": key.serialize_pem()}}}]});
    let path = dir.path().join("secret.json");
    std::fs::write(&path, secret.to_string()).unwrap();
    let socket = format!(
        "      transport_socket:
        name: tls
        typed_config:
          '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
          common_tls_context:
            tls_certificate_sds_secret_configs:
            - {{name: server, sds_config: {{path_config_source: {{path: {}}}}}}}",
        path.display()
    );
    let (port, upstream) = (free_port(), echo().await);
    let mut proxy = Proxy::start(&bootstrap(port, upstream, &socket, "/dev/null"), &[]);
    proxy.until_ready(200).await;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate.der().clone()).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let tcp = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
    let mut tls = connector.connect("svc.local".try_into().unwrap(), tcp).await.unwrap();
    tls.write_all(b"hello").await.unwrap();
    tls.shutdown().await.unwrap();
    let mut got = Vec::new();
    tls.read_to_end(&mut got).await.unwrap();
    assert_eq!(got, b"hello");
}
