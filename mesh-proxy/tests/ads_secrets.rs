//! Certificates and policies that come over ADS while connections stand.
#![allow(clippy::unwrap_used, clippy::expect_used)] // a test that meets what it does not expect ends

mod support;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use mesh_api::xds::{TypeUrl, google::protobuf::Any};
use rustls_pki_types::{CertificateDer, ServerName};
use support::{
    PATIENCE, Proxy, backend,
    control::{Control, Delta, eds_cluster, endpoints, resource},
    free_port, http_filter,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{sleep, timeout},
};
use tokio_rustls::TlsConnector;

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

async fn begin(control: &Control, one: SocketAddr) -> (Proxy, Delta) {
    let proxy = Proxy::start(&support::control::bootstrap(control.address, "DELTA_GRPC"), &[]);
    let mut ads = control.delta().await;
    ads.asked(TypeUrl::Cluster).await;
    ads.push(TypeUrl::Cluster, "1", &[("b", eds_cluster("b"))], &[]).await;
    ads.asked(TypeUrl::Endpoints).await;
    ads.asked(TypeUrl::Listener).await;
    ads.push(TypeUrl::Endpoints, "1", &[("b", endpoints("b", &[one]))], &[]).await;
    (proxy, ads)
}

/// A new self-signed certificate: the secret and the certificate itself.
fn secret(name: &str) -> (Any, CertificateDer<'static>) {
    let key = rcgen::KeyPair::generate().unwrap();
    let cert = rcgen::CertificateParams::new(vec!["svc.test".to_owned()]).unwrap().self_signed(&key).unwrap();
    let value = serde_json::json!({"name": name, "tls_certificate": {
        "certificate_chain": {"inline_string": cert.pem()}, "private_key": {"inline_string": key.serialize_pem()}}});
    (resource(TypeUrl::Secret, &value.to_string()), cert.der().clone())
}

/// A request over TLS by a client that trusts this certificate only.
async fn get_trusting(to: SocketAddr, root: &CertificateDer<'static>) -> std::io::Result<String> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(root.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let tcp = TcpStream::connect(to).await?;
    let name = ServerName::try_from("svc.test").unwrap();
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, tcp).await?;
    stream.write_all(b"GET / HTTP/1.1\r\nhost: svc.test\r\nconnection: close\r\n\r\n").await?;
    let mut answer = vec![];
    let _ = stream.read_to_end(&mut answer).await;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_waits_for_its_certificate_and_takes_new_ones() {
    const TLS: &str = "'@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext, \
        common_tls_context: {tls_certificate_sds_secret_configs: [{name: cert, sds_config: {ads: {}, resource_api_version: V3}}]}";
    let control = Control::start().await;
    let (one, port) = (backend("one").await, free_port());
    let (mut proxy, mut ads) = begin(&control, one).await;
    let routes = "route_config: {name: r, virtual_hosts: [{name: v, domains: ['*'], routes: [{match: {prefix: /}, route: {cluster: b}}]}]}";
    let listener = format!(
        "name: l\naddress: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}\nfilter_chains:\n\
         - transport_socket: {{name: tls, typed_config: {{{TLS}}}}}\n  filters:\n{}",
        http_filter(2, routes)
    );
    ads.push(TypeUrl::Listener, "1", &[("l", resource(TypeUrl::Listener, &listener))], &[]).await;
    assert_eq!(ads.asked(TypeUrl::Secret).await.resource_names_subscribe, ["cert"]);
    sleep(Duration::from_millis(200)).await;
    assert!(TcpStream::connect(local(port)).await.is_err(), "nobody may come before there is a certificate");
    let (first, root) = secret("cert");
    assert!(ads.push(TypeUrl::Secret, "1", &[("cert", first)], &[]).await.error_detail.is_none());
    proxy.until_ready(200).await;
    assert!(get_trusting(local(port), &root).await.unwrap().ends_with("one GET /"));

    let (second, newer) = secret("cert");
    ads.push(TypeUrl::Secret, "2", &[("cert", second)], &[]).await;
    assert!(get_trusting(local(port), &newer).await.unwrap().ends_with("one GET /"));
    assert!(get_trusting(local(port), &root).await.is_err());

    let garbage =
        "{name: cert, tls_certificate: {certificate_chain: {inline_string: x}, private_key: {inline_string: y}}}";
    let nack = ads.push(TypeUrl::Secret, "3", &[("cert", resource(TypeUrl::Secret, garbage))], &[]).await;
    assert!(nack.error_detail.unwrap().message.contains("cert: "));
    assert!(get_trusting(local(port), &newer).await.unwrap().ends_with("one GET /"));
    let dump = support::get(proxy.admin, "a", "/config_dump").await.unwrap().body;
    assert!(!dump.contains("PRIVATE KEY"), "keys stay hidden");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_policy_closes_the_connections_that_it_refuses() {
    fn listener(port: u16, rbac: &str) -> Any {
        const T: &str = "type.googleapis.com/envoy.extensions.filters.network";
        let yaml = format!(
            "{{name: l, address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}, filter_chains: [{{filters: [{rbac} \
             {{name: tcp, typed_config: {{'@type': {T}.tcp_proxy.v3.TcpProxy, stat_prefix: t, cluster: b}}}}]}}]}}"
        );
        resource(TypeUrl::Listener, &yaml)
    }
    let control = Control::start().await;
    let (one, port) = (backend("one").await, free_port());
    let (mut proxy, mut ads) = begin(&control, one).await;
    ads.push(TypeUrl::Listener, "1", &[("l", listener(port, ""))], &[]).await;
    proxy.until_ready(200).await;
    let mut stream = TcpStream::connect(local(port)).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut some = [0u8; 256];
    assert!(timeout(PATIENCE, stream.read(&mut some)).await.unwrap().unwrap() > 0);
    let deny = "{name: rbac, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC, \
        stat_prefix: r, rules: {action: DENY, policies: {p: {permissions: [{any: true}], principals: [{any: true}]}}}}},";
    let ack = ads.push(TypeUrl::Listener, "2", &[("l", listener(port, deny))], &[]).await;
    assert!(ack.error_detail.is_none(), "{ack:?}");
    let closed = timeout(Duration::from_secs(5), stream.read(&mut some)).await.expect("still open");
    assert!(matches!(closed, Ok(0) | Err(_)), "{closed:?}");
}
