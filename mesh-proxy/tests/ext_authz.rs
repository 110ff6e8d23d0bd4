//! External authorization by a whole process: authorizers over HTTP and gRPC, that answer, refuse, hang, or talk nonsense.

#![allow(clippy::unwrap_used, clippy::expect_used)] // a test that meets what it does not expect ends

mod support;

use std::net::SocketAddr;

use mesh_api::xds::{
    envoy::{
        config::core::v3::{HeaderValue, HeaderValueOption},
        service::auth::v3::{
            CheckRequest, CheckResponse, DeniedHttpResponse, OkHttpResponse,
            authorization_server::{Authorization, AuthorizationServer},
            check_response::HttpResponse,
        },
        r#type::v3::HttpStatus,
    },
    google::rpc::Status as RpcStatus,
};
use support::{Proxy, backend, free_port, get_with};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::TcpListener,
};
use tonic::{Request, Response, Status};

/// An authorizer over HTTP, that does what `authorization` says.
async fn over_http() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut stream = BufReader::new(stream);
                loop {
                    let mut head = String::new();
                    while !head.ends_with("\r\n\r\n") {
                        if stream.read_line(&mut head).await.unwrap_or(0) == 0 {
                            return;
                        }
                    }
                    let wish = head.lines().find_map(|l| l.strip_prefix("authorization: ")).unwrap_or("none");
                    let answer = match wish {
                        "allow" => "HTTP/1.1 200 OK\r\nx-user: u\r\ncontent-length: 0\r\n\r\n".to_owned(),
                        "hang" => std::future::pending().await,
                        "reset" => return,
                        "nonsense" => "HTTP/1.1 200 OK\r\nbad header\r\n\r\n".to_owned(),
                        "long" => {
                            format!("HTTP/1.1 403 No\r\ncontent-length: {}\r\n\r\n{}", 4 << 20, "x".repeat(4 << 20))
                        }
                        "broken" => "HTTP/1.1 500 Oh\r\ncontent-length: 0\r\n\r\n".to_owned(),
                        _ => "HTTP/1.1 401 No\r\nx-why: w\r\ncontent-length: 4\r\n\r\nnope".to_owned(),
                    };
                    if stream.write_all(answer.as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

struct Grpc;

#[tonic::async_trait]
impl Authorization for Grpc {
    async fn check(&self, request: Request<CheckRequest>) -> Result<Response<CheckResponse>, Status> {
        let attributes = request.into_inner().attributes.unwrap();
        let http = attributes.request.unwrap().http.unwrap();
        let header = |key: &str, value: &str| HeaderValueOption {
            header: Some(HeaderValue { key: key.to_owned(), value: value.to_owned(), ..HeaderValue::default() }),
            ..HeaderValueOption::default()
        };
        let said = attributes.context_extensions.get("say").cloned().unwrap_or_default();
        let (code, response) = match http.headers.get("x-wish").map(String::as_str) {
            Some("allow") => {
                let headers = vec![header("x-user", "u"), header(":path", "/authorized")];
                let response_headers_to_add = vec![header("x-said", &said)];
                (0, HttpResponse::OkResponse(OkHttpResponse { headers, response_headers_to_add, ..Default::default() }))
            }
            Some("bad") => {
                let headers = vec![header("x-user", "a\nb")];
                (0, HttpResponse::OkResponse(OkHttpResponse { headers, ..Default::default() }))
            }
            Some("fail") => return Err(Status::unavailable("not now")),
            _ => {
                let status = Some(HttpStatus { code: 418 });
                let headers = vec![header("x-said", &said)];
                (7, HttpResponse::DeniedResponse(DeniedHttpResponse { status, headers, body: http.path }))
            }
        };
        let status = Some(RpcStatus { code, ..RpcStatus::default() });
        Ok(Response::new(CheckResponse { status, http_response: Some(response), dynamic_metadata: None }))
    }
}

async fn over_grpc() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let server = tonic::transport::Server::builder().add_service(AuthorizationServer::new(Grpc));
    tokio::spawn(server.serve_with_incoming(incoming));
    address
}

/// A proxy whose requests are asked about with this filter.
async fn proxy(filter: &str, authorizer: SocketAddr) -> (Proxy, SocketAddr) {
    let (up, port) = (backend("up").await, free_port());
    let cluster = |name: &str, at: SocketAddr, more: &str| {
        format!(
            "  - {{name: {name}, type: STATIC, {more}load_assignment: {{cluster_name: {name}, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {}}}}}}}}}]}}]}}}}\n",
            at.port()
        )
    };
    let h2 = "typed_extension_protocol_options: {envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {'@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, explicit_http_config: {http2_protocol_options: {}}}}, ";
    let route = |path: &str, settings: &str| {
        format!(
            "              - {{match: {{prefix: {path}}}, route: {{cluster: up}}, typed_per_filter_config: {{authz: {{'@type': type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute, {settings}}}}}}}\n"
        )
    };
    let bootstrap = format!(
        "admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: @ADMIN@}}}}}}
static_resources:
  listeners:
  - name: l
    address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
    filter_chains:
    - filters:
      - name: hcm
        typed_config:
          '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: t
          route_config:
            name: r
            virtual_hosts:
            - name: v
              domains: ['*']
              routes:
{}{}              - {{match: {{prefix: /}}, route: {{cluster: up}}}}
          http_filters:
          - name: authz
            typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthz, transport_api_version: V3, {filter}}}
          - {{name: router, typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}}}
  clusters:
{}{}{}",
        route("/off", "disabled: true"),
        route("/said", "check_settings: {context_extensions: {say: hello}}"),
        cluster("up", up, ""),
        cluster("http", authorizer, ""),
        cluster("grpc", authorizer, h2),
    );
    let mut proxy = Proxy::start(&bootstrap, &[]);
    proxy.until_ready(200).await;
    (proxy, SocketAddr::from(([127, 0, 0, 1], port)))
}

const HTTP: &str = "http_service: {server_uri: {uri: 'http://a', cluster: http, timeout: 1s}, authorization_response: {allowed_upstream_headers: {patterns: [{exact: x-user}]}}}";
const GRPC: &str = "grpc_service: {envoy_grpc: {cluster_name: grpc}, timeout: 5s}";

#[tokio::test]
async fn over_http_only_200_lets_pass_and_failures_are_refusals() {
    let (proxy, at) = proxy(&format!("{HTTP}, status_on_error: {{code: ServiceUnavailable}}"), over_http().await).await;
    let ask = async |path: &str, wish: &str| {
        get_with(at, "a.test", path, &format!("authorization: {wish}\r\n")).await.unwrap()
    };
    let allowed = ask("/a", "allow").await;
    assert_eq!((allowed.status, allowed.body.as_str()), (200, "up GET /a"));
    let denied = ask("/a", "deny").await;
    assert_eq!((denied.status, denied.body.as_str()), (401, "nope"));
    assert!(denied.head.contains("x-why: w"), "{}", denied.head);
    for wish in ["hang", "reset", "nonsense", "long", "broken"] {
        assert_eq!(ask("/a", wish).await.status, 503, "{wish}");
    }
    assert_eq!(ask("/off", "deny").await.status, 200, "{}", proxy.log());
    let stats = support::get(proxy.admin, "a", "/stats").await.unwrap().body;
    for line in ["http.t.ext_authz.denied: 1\n", "http.t.ext_authz.error: 5\n"] {
        assert!(stats.contains(line), "{line} {stats}");
    }
}

#[tokio::test]
async fn nobody_to_ask_is_a_refusal_unless_it_may_be_open() {
    let nobody = SocketAddr::from(([127, 0, 0, 1], free_port()));
    for (more, status) in [("", 403), (", failure_mode_allow: true", 200)] {
        let (_proxy, at) = proxy(&format!("{HTTP}{more}"), nobody).await;
        assert_eq!(get_with(at, "a.test", "/", "").await.unwrap().status, status, "{more}");
        let (_proxy, at) = self::proxy(&format!("{GRPC}{more}"), nobody).await;
        assert_eq!(get_with(at, "a.test", "/", "").await.unwrap().status, status, "{more}");
    }
}

#[tokio::test]
async fn over_grpc_requests_and_answers_are_changed() {
    let (_proxy, at) = proxy(GRPC, over_grpc().await).await;
    let ask =
        async |path: &str, wish: &str| get_with(at, "a.test", path, &format!("x-wish: {wish}\r\n")).await.unwrap();
    let allowed = ask("/said", "allow").await;
    assert_eq!((allowed.status, allowed.body.as_str()), (200, "up GET /authorized"));
    assert!(allowed.head.contains("x-said: hello"), "{}", allowed.head);
    let denied = ask("/said?a", "deny").await;
    assert_eq!((denied.status, denied.body.as_str()), (418, "/said?a"));
    for wish in ["bad", "fail"] {
        assert_eq!(ask("/a", wish).await.status, 403, "{wish}");
    }
    assert_eq!(ask("/off", "deny").await.status, 200);
}

#[tokio::test]
async fn bodies_are_shown_up_to_a_limit() {
    let body = "with_request_body: {max_request_bytes: 4}";
    let (_proxy, at) = proxy(&format!("{HTTP}, {body}"), over_http().await).await;
    let post = async |length: usize| {
        let headers = format!("authorization: deny\r\ncontent-length: {length}\r\n");
        let mut stream = tokio::net::TcpStream::connect(at).await.unwrap();
        let request = format!("POST / HTTP/1.1\r\nhost: a.test\r\n{headers}\r\n{}", "b".repeat(length));
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut line = String::new();
        let mut stream = BufReader::new(stream);
        tokio::time::timeout(support::PATIENCE, stream.read_line(&mut line)).await.unwrap().unwrap();
        line
    };
    assert!(post(5).await.starts_with("HTTP/1.1 413 "));
    assert!(post(4).await.starts_with("HTTP/1.1 401 "));
}
