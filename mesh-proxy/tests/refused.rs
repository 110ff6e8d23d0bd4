//! Connections that end before a protocol is spoken on them: what the listener's log and the metrics say of them.

#![allow(clippy::unwrap_used, clippy::expect_used)] // a test that meets what it does not expect ends

mod support;

use std::{net::SocketAddr, path::Path, time::Duration};

use support::{Answer, Proxy, free_port, get, until};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

fn log(path: &Path) -> String {
    let line = "%RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% %PROTOCOL% \
                %UPSTREAM_CLUSTER_RAW% %FILTER_CHAIN_NAME%\\n";
    format!(
        "[{{name: file, typed_config: {{
          '@type': type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog,
          path: {}, log_format: {{text_format_source: {{inline_string: \"{line}\"}}}}}}}}]",
        path.display()
    )
}

/// One listener: TLS at 127.0.0.2 only, a policy that allows nobody at 127.0.0.3, one that allows all at 127.0.0.4.
fn bootstrap(port: u16, listener_log: &Path, proxy_log: &Path) -> String {
    let (listener_log, proxy_log) = (log(listener_log), log(proxy_log));
    let chain = |name: &str, address: &str, transport: &str, rules: &str| {
        let rbac = if rules.is_empty() {
            String::new()
        } else {
            format!(
                "      - name: rbac
        typed_config:
          '@type': type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC
          stat_prefix: r
          rules: {rules}
"
            )
        };
        format!(
            "    - name: {name}
      filter_chain_match: {{prefix_ranges: [{{address_prefix: {address}, prefix_len: 32}}]{transport}}}
      filters:
{rbac}      - name: tcp
        typed_config:
          '@type': type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: t
          cluster: nowhere
          access_log: {proxy_log}
"
        )
    };
    let nobody = "{action: ALLOW}";
    let everybody = "{action: DENY, policies: {'ns[a]-policy[b]-rule[0]': {permissions: [{any: true}], principals: [{any: true}]}}}";
    format!(
        "admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: @ADMIN@}}}}}}
static_resources:
  listeners:
  - name: l
    address: {{socket_address: {{address: 0.0.0.0, port_value: {port}}}}}
    traffic_direction: INBOUND
    access_log: {listener_log}
    listener_filters:
    - name: tls
      typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector}}
    filter_chains:
{}{}{}{}  clusters:
  - {{name: nowhere, type: STATIC, load_assignment: {{cluster_name: nowhere}}}}
",
        chain("tls", "127.0.0.2", ", transport_protocol: tls", ""),
        chain("nobody", "127.0.0.3", "", nobody),
        chain("denied", "127.0.0.4", "", everybody),
        chain("open", "127.0.0.5", "", ""),
    )
}

/// Says something and waits for the end.
async fn knock(to: SocketAddr) {
    let mut stream = TcpStream::connect(to).await.unwrap();
    stream.write_all(b"hello\n").await.unwrap();
    let _ = tokio::time::timeout(Duration::from_secs(20), stream.read(&mut [0])).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_connections_are_logged_and_counted() {
    let dir = tempfile::tempdir().unwrap();
    let (listener_log, proxy_log) = (dir.path().join("listener"), dir.path().join("proxy"));
    let port = free_port();
    let mut proxy = Proxy::start(&bootstrap(port, &listener_log, &proxy_log), &["--drain-time-s", "1"]);
    proxy.until_ready(200).await;
    for host in 2..=5 {
        knock(SocketAddr::from(([127, 0, 0, host], port))).await;
    }
    let closed = |a: &Answer| {
        let lines = a.body.lines().filter(|l| l.starts_with("istio_tcp_connections_closed_total"));
        lines.filter_map(|l| l.rsplit(' ').next()?.parse::<u64>().ok()).sum::<u64>() == 3
    };
    until(proxy.admin, "a", "/stats/prometheus", closed).await;
    let stats = get(proxy.admin, "a", "/stats").await.unwrap().body;
    assert!(stats.contains("listener.l.no_filter_chain_match: 1\n"), "{stats}");
    proxy.terminate();
    assert!(proxy.ended().await.success());
    let lines = |path: &Path| {
        let text = std::fs::read_to_string(path).unwrap();
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    let forwarded = [
        "0 - - rbac_access_denied_matched_policy[none] - nowhere nobody",
        "0 - - rbac_access_denied_matched_policy[ns[a]-policy[b]-rule[0]] - nowhere denied",
        "0 UH - - - nowhere open",
    ];
    assert_eq!(lines(&proxy_log), forwarded);
    let (first, rest) = forwarded.split_at(2);
    assert_eq!(lines(&listener_log), [first, &["0 NR filter_chain_not_found - - - -"], rest].concat());
}
