//! What the control plane encodes, the proxy decodes to the same: both ends of the model, through the wire form.

#![allow(clippy::unwrap_used, clippy::expect_used)] // a test that meets what it does not expect ends

mod clusters;
mod filters;

use std::time::Duration;

use mesh_api::model::*;
use mesh_control::xds::r#gen;
use mesh_proxy::xds::convert;
use serde_json::json;

use clusters::*;
use filters::*;

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn mutation() -> HeaderMutation {
    let option = |name: &str, append| HeaderValueOption {
        name: name.into(),
        value: "%REQ(x)%".into(),
        append,
        keep_empty: false,
    };
    HeaderMutation {
        remove: vec!["gone".into()],
        add: vec![
            option("a", AppendAction::AppendIfExistsOrAdd),
            option("b", AppendAction::AddIfAbsent),
            option("c", AppendAction::OverwriteIfExistsOrAdd),
            option("d", AppendAction::OverwriteIfExists),
        ],
    }
}

fn header(value: HeaderValueMatch, invert: bool) -> HeaderMatcher {
    HeaderMatcher { name: "x-h".into(), value, invert, treat_missing_as_empty: invert }
}

fn headers() -> Vec<HeaderMatcher> {
    vec![
        header(HeaderValueMatch::Present(true), false),
        header(HeaderValueMatch::Present(false), true),
        header(HeaderValueMatch::String(StringMatcher::exact("a")), false),
        header(HeaderValueMatch::String(StringMatcher::regex("a.*")), false),
        header(
            HeaderValueMatch::String(StringMatcher { pattern: StringPattern::Contains("b".into()), ignore_case: true }),
            false,
        ),
        header(HeaderValueMatch::Range { start: -5, end: 7 }, false),
    ]
}

fn ops() -> HeaderOps {
    HeaderOps { request: mutation(), response: mutation() }
}

fn retry() -> RetryPolicy {
    RetryPolicy {
        on: RetryOn::parse("5xx,connect-failure,retriable-status-codes").unwrap().0,
        num_retries: 2,
        per_try_timeout: Some(seconds(2)),
        per_try_idle_timeout: Some(seconds(1)),
        retriable_statuses: vec![503, 429],
        retriable_headers: headers(),
        backoff: Some((Duration::from_millis(25), seconds(1))),
        previous_hosts: true,
        host_selection_attempts: 5,
        previous_priorities: Some(2),
    }
}

fn forward() -> Forward {
    let weighted = |name: &str, weight| WeightedCluster {
        name: name.into(),
        weight,
        headers: ops(),
        host_rewrite: Some("h".into()),
        filter_overrides: overrides(),
    };
    let cookie = HashSource::Cookie {
        name: "c".into(),
        ttl: Some(Duration::ZERO),
        path: "/".into(),
        attributes: vec![("SameSite".into(), "Strict".into())],
    };
    let sources = [
        HashSource::Header("h".into()),
        cookie,
        HashSource::SourceIp,
        HashSource::Query("q".into()),
        HashSource::FilterState("k".into()),
    ];
    Forward {
        target: Target::Weighted(vec![weighted("a", 90), weighted("b", 10)]),
        cluster_not_found_status: 500,
        rewrite: Some(PathRewrite::Regex { pattern: "^/a".into(), substitution: "/b".into() }),
        host_rewrite: Some(HostRewrite::Auto),
        append_x_forwarded_host: true,
        timeout: Some(Duration::ZERO),
        idle_timeout: Some(seconds(3)),
        grpc_timeout_max: Some(Duration::ZERO),
        max_stream_duration: Some(seconds(4)),
        retry: Some(retry()),
        mirrors: vec![Mirror { cluster: "m".into(), fraction: Fraction(123), keep_host: true }],
        hash: sources.map(|source| HashPolicy { source, terminal: true }).to_vec(),
        upgrades: vec![Upgrade { kind: "CONNECT".into(), enabled: true, terminate_connect: true }],
        high_priority: true,
        rate_limits: rate_limit_rules(),
        include_host_rate_limits: true,
        metadata_match: Metadata::from([("envoy.lb".to_owned(), json!({"v": "1"}))]),
    }
}

fn origin() -> Origin {
    Origin { config: "/apis/networking.istio.io/v1/namespaces/a/virtual-service/b".into() }
}

fn route(matches: RouteMatch, action: Action) -> Route {
    Route {
        name: "r".into(),
        matches,
        action,
        headers: ops(),
        filter_overrides: overrides(),
        operation: "op".into(),
        stat_prefix: "s".into(),
        origin: origin(),
        metadata: Metadata::from([("istio".to_owned(), json!({"more": [1, 2.5, null, true, {"a": "b"}]}))]),
    }
}

fn route_config() -> RouteConfig {
    let paths = [
        PathMatch::Prefix("/".into()),
        PathMatch::Exact("/a".into()),
        PathMatch::PathSeparatedPrefix("/a".into()),
        PathMatch::Regex("/a.*".into()),
        PathMatch::Template("/{*}".into()),
        PathMatch::Connect,
    ];
    let redirect = |path, https: bool| Redirect {
        https,
        scheme: if https { "" } else { "ftp" }.into(),
        host: "h".into(),
        port: Some(8443),
        path: Some(path),
        code: 307,
        strip_query: true,
    };
    let regex = RedirectPath::Regex { pattern: "a".into(), substitution: "b".into() };
    let mut routes: Vec<Route> =
        paths.into_iter().map(|p| route(RouteMatch::path(p), Action::Forward(Box::new(Forward::to("c"))))).collect();
    let full = RouteMatch {
        case_sensitive: false,
        headers: headers(),
        query: vec![
            QueryMatcher { name: "q".into(), value: None },
            QueryMatcher { name: "r".into(), value: Some(StringMatcher::exact("1")) },
        ],
        grpc: true,
        fraction: Some(Fraction(5)),
        tls_presented: Some(true),
        tls_validated: Some(false),
        dynamic_metadata: vec![MetadataMatch {
            filter: JWT_FILTER.into(),
            path: vec!["payload".into(), "sub".into()],
            value: MetadataValue::String(StringMatcher::exact("me")),
            invert: true,
        }],
        ..RouteMatch::any()
    };
    routes.push(route(full, Action::Forward(Box::new(forward()))));
    for action in [
        Action::Redirect(Box::new(redirect(RedirectPath::Full("/x".into()), true))),
        Action::Redirect(Box::new(redirect(RedirectPath::Prefix("/y".into()), false))),
        Action::Redirect(Box::new(redirect(regex, false))),
        Action::DirectResponse { status: 503, body: "b".into() },
        Action::DirectResponse { status: 200, body: "".into() },
        Action::NonForwarding,
    ] {
        routes.push(route(RouteMatch::any(), action));
    }
    for rewrite in
        [PathRewrite::Prefix("/p".into()), PathRewrite::Full("/f".into()), PathRewrite::Template("/{a}".into())]
    {
        let mut forward = Forward::to("c");
        forward.rewrite = Some(rewrite);
        forward.target = Target::ClusterHeader("x-c".into());
        forward.host_rewrite = Some(HostRewrite::Header("x-host".into()));
        routes.push(route(RouteMatch::any(), Action::Forward(Box::new(forward))));
    }
    let host = VirtualHost {
        name: "v".into(),
        domains: vec!["a".into(), "*.b".into()],
        routes,
        require_tls: RequireTls::All,
        headers: ops(),
        filter_overrides: overrides(),
        rate_limits: rate_limit_rules(),
        retry: Some(retry()),
        include_request_attempt_count: true,
        include_attempt_count_in_response: true,
        metadata: Metadata::new(),
        origin: origin(),
    };
    RouteConfig {
        name: "80".into(),
        virtual_hosts: vec![host],
        headers: ops(),
        internal_only_headers: vec!["i".into()],
        max_direct_response_body: Some(9000),
        ignore_port_in_host: true,
        validate_clusters: true,
        metadata: Metadata::from([("a".to_owned(), json!({"b": "c"}))]),
    }
}

fn health_check(pass_through: bool) -> HealthCheckFilter {
    HealthCheckFilter {
        pass_through,
        headers: headers(),
        cache_time: pass_through.then(|| Duration::from_millis(2500)),
        min_healthy: if pass_through { vec![] } else { vec![("a".into(), 12.5), ("b".into(), 0.0)] },
    }
}

fn discovered(at_once: bool) -> DiscoveredFilter {
    DiscoveredFilter {
        types: vec!["envoy.extensions.filters.http.fault.v3.HTTPFault".into(), "stats.PluginConfig".into()],
        default: at_once.then(|| HttpFilterKind::Fault(fault())),
        at_once,
        fetch_timeout: Duration::from_secs(3),
    }
}

fn manager(routes: RouteSource) -> HttpManager {
    let filter = |name: &str, kind| HttpFilter { name: name.into(), kind, disabled: name == "cors" };
    let shadow = RbacFilter {
        stat_prefix: "p".into(),
        rules: Some(rbac()),
        shadow_rules: Some(rbac()),
        shadow_prefix: "istio_dry_run_".into(),
    };
    let peer = PeerMetadata {
        downstream_discovery: true,
        downstream_propagation: true,
        upstream_discovery: true,
        upstream_propagation: true,
        skip_external: true,
    };
    let filters = vec![
        filter("peer", HttpFilterKind::PeerMetadata(peer)),
        filter(JWT_FILTER, HttpFilterKind::JwtAuthn(Box::new(jwt_authn()))),
        filter("rbac", HttpFilterKind::Rbac(shadow)),
        filter("authz", HttpFilterKind::ExtAuthz(Box::new(authz(authz_grpc())))),
        filter("authz-http", HttpFilterKind::ExtAuthz(Box::new(authz(authz_http())))),
        filter("istio.alpn", HttpFilterKind::IstioAlpn),
        filter("names", HttpFilterKind::DynamicForwardProxy(Box::new(clusters::dns_cache()))),
        filter("fault", HttpFilterKind::Fault(fault())),
        filter("cors", HttpFilterKind::Cors),
        filter("grpc_stats", HttpFilterKind::GrpcStats { emit_filter_state: true }),
        filter("grpc_web", HttpFilterKind::GrpcWeb),
        filter("waits", HttpFilterKind::Discovered(Box::new(discovered(false)))),
        filter("at-once", HttpFilterKind::Discovered(Box::new(discovered(true)))),
        filter("limit", HttpFilterKind::LocalRateLimit(rate_limit())),
        filter("global", HttpFilterKind::GlobalRateLimit(Box::new(global_rate_limit()))),
        filter("session", HttpFilterKind::StatefulSession(Some(session(session_cookie())))),
        filter("session-of-routes", HttpFilterKind::StatefulSession(None)),
        filter("mutation", HttpFilterKind::HeaderMutation { request: mutation(), response: mutation() }),
        filter("health", HttpFilterKind::HealthCheck(health_check(true))),
        filter("health-of-clusters", HttpFilterKind::HealthCheck(health_check(false))),
        filter(
            "istio.stats",
            HttpFilterKind::IstioStats(IstioStats {
                disable_host_header_fallback: true,
                tcp_reporting: Some(Duration::from_millis(2500)),
                metrics: vec![MetricChange {
                    name: "requests_total".into(),
                    dropped: true,
                    labels: vec![("a".into(), "request.host".into()), ("b".into(), "'x'".into())],
                    removed: vec!["source_app".into()],
                }],
            }),
        ),
        filter("router", HttpFilterKind::Router(RouterFilter { suppress_envoy_headers: true })),
    ];
    let tag = |tag: &str, value| CustomTag { tag: tag.into(), value };
    let mut m = HttpManager::new("stat", routes, filters);
    m.codec = Codec::Http2;
    m.rds_fetch_timeout = Duration::ZERO;
    m.upgrades = vec![Upgrade { kind: "websocket".into(), enabled: true, terminate_connect: false }];
    m.access_log = logs();
    m.tracing = Some(Tracing {
        provider: Some(TraceProvider::OtlpGrpc {
            cluster: "otel".into(),
            authority: "a".into(),
            service_name: "s".into(),
            timeout: seconds(1),
            headers: vec![("authorization".into(), "Bearer x".into())],
        }),
        random_sampling: Fraction::from_percent(1.0),
        client_sampling: Fraction::ALWAYS,
        overall_sampling: Fraction::from_percent(50.0),
        tags: vec![
            tag("l", TagValue::Literal("x".into())),
            tag("h", TagValue::Header("h".into(), "d".into())),
            tag("e", TagValue::Environment("E".into(), "d".into())),
            tag("f", TagValue::Format("%PROTOCOL%".into())),
        ],
        max_path_tag: 100,
        no_context_propagation: true,
        request_id: RequestIdTracing { decides: false, marks: true },
    });
    m.server_name = Some("istio-envoy".into());
    m.server_header = ServerHeader::PassThrough;
    m.use_remote_address = true;
    m.xff_num_trusted_hops = 2;
    m.skip_xff_append = true;
    m.forward_client_cert = ForwardClientCert::AppendForward;
    m.client_cert_details = ClientCertDetails { subject: true, cert: true, chain: true, dns: true, uri: true };
    m.preserve_external_request_id = true;
    m.always_set_request_id_in_response = true;
    m.normalize_path = true;
    m.merge_slashes = true;
    m.escaped_slashes = EscapedSlashes::UnescapeAndForward;
    m.strip_port = StripPort::Any;
    m.strip_trailing_host_dot = true;
    m.timeouts = HttpTimeouts {
        idle: seconds(1),
        stream_idle: seconds(2),
        request: seconds(3),
        request_headers: seconds(4),
        max_connection: seconds(5),
        max_stream: seconds(6),
        drain: seconds(7),
        delayed_close: seconds(8),
    };
    m.max_request_headers_bytes = 96 * 1024;
    m.max_headers = 200;
    m.max_requests_per_connection = Some(5);
    m.underscores = Underscores::Reject;
    m.max_concurrent_streams = Some(10);
    m.initial_stream_window = Some(65_535);
    m.initial_connection_window = Some(1 << 20);
    m.keepalive = Some((seconds(1), seconds(2)));
    m.accept_http_10 = true;
    m.default_host_http_10 = "h".into();
    m.stream_error_on_invalid = true;
    m.via = "v".into();
    m.scheme_override = Some("https".into());
    m
}

fn logs() -> Vec<AccessLog> {
    let file = |format| LogSink::File { path: "/dev/stdout".into(), format };
    let filter = LogFilter::And(vec![
        LogFilter::Status(Comparison::Ge, 500),
        LogFilter::Or(vec![
            LogFilter::Duration(Comparison::Le, 10),
            LogFilter::ResponseFlag(vec!["UH".into()]),
            LogFilter::Fraction(Fraction(10)),
            LogFilter::NotHealthCheck,
            LogFilter::Header(header(HeaderValueMatch::Present(true), false)),
            LogFilter::GrpcStatus { statuses: vec![14], exclude: true },
            LogFilter::Cel("response.code >= 400".into()),
        ]),
    ]);
    vec![
        AccessLog { sink: file(LogFormat::Text("%PROTOCOL%\n".into())), filter: Some(filter) },
        AccessLog {
            sink: file(LogFormat::Json { fields: json!({"a": "%PROTOCOL%", "b": {"c": 1}}), omit_empty: true }),
            filter: None,
        },
        AccessLog { sink: service(false), filter: None },
        AccessLog { sink: service(true), filter: None },
        AccessLog {
            sink: LogSink::Otlp {
                cluster: "otel".into(),
                log_name: "log".into(),
                body: "%PROTOCOL%".into(),
                attributes: json!({"a": "%PROTOCOL%", "b": {"c": ["x", "y"]}}).as_object().unwrap().clone(),
                filter_state: vec!["s".into()],
            },
            filter: None,
        },
    ]
}

/// Entries of connections have no headers.
fn service(tcp: bool) -> LogSink {
    let headers = LoggedHeaders { request: vec!["a".into()], response: vec!["b".into()], trailers: vec!["c".into()] };
    let headers = if tcp { LoggedHeaders::default() } else { headers };
    LogSink::Grpc { cluster: "als".into(), log_name: "log".into(), tcp, headers, filter_state: vec!["s".into()] }
}

fn listener() -> Listener {
    let chain = |name: &str, matches, filter| FilterChain {
        name: name.into(),
        matches,
        tls: Some(DownstreamTls { common: tls(SdsSource::Ads), require_client_certificate: true }),
        transport_socket_connect_timeout: seconds(2),
        filters: vec![
            NetworkFilter::MetadataExchange,
            NetworkFilter::IstioStats(IstioStats::default()),
            NetworkFilter::Rbac(RbacFilter {
                stat_prefix: "tcp.".into(),
                rules: Some(rbac()),
                ..RbacFilter::default()
            }),
            NetworkFilter::ExtAuthz(Box::new(authz_tcp())),
            NetworkFilter::ConnectionLimit(ConnectionLimit {
                stat_prefix: "c".into(),
                max: 5,
                delay: seconds(1),
                enabled: false,
            }),
            NetworkFilter::LocalRateLimit(ConnectionRate {
                stat_prefix: "r".into(),
                bucket: TokenBucket { max_tokens: 7, tokens_per_fill: 2, fill_interval: seconds(3) },
                share_key: "all".into(),
                enabled: false,
            }),
            NetworkFilter::SniCluster,
            NetworkFilter::SniDynamicForwardProxy { cache: clusters::dns_cache(), port: 8443 },
            filter,
        ],
        metadata: Metadata::from([("a".to_owned(), json!({"b": 1}))]),
    };
    let net = CidrRange { address: [10, 0, 0, 0].into(), prefix_len: 8 };
    let matches = FilterChainMatch {
        destination_port: Some(80),
        prefix_ranges: vec![net],
        server_names: vec!["*.a".into()],
        transport_protocol: "tls".into(),
        application_protocols: vec!["istio".into()],
        direct_source_prefix_ranges: vec![net],
        source_type: SourceType::External,
        source_prefix_ranges: vec![net],
        source_ports: vec![1, 2],
    };
    let mut tcp = TcpProxy::to("t", "c");
    tcp.clusters = vec![("a".into(), 1), ("b".into(), 2)];
    tcp.idle_timeout = Duration::ZERO;
    tcp.max_connection_duration = Some(seconds(1));
    tcp.max_connect_attempts = 3;
    tcp.hash = vec![HashSource::SourceIp, HashSource::FilterState("k".into())];
    tcp.tunnel = Some(TcpTunnel { hostname: "t:80".into(), post_path: Some("/x".into()) });
    tcp.access_log = logs();
    Listener {
        name: "l".into(),
        address: Address::Socket(([0, 0, 0, 0], 15001).into()),
        additional_addresses: vec![Address::Socket("[::]:15001".parse().unwrap())],
        bind_to_port: false,
        use_original_dst: true,
        transparent: true,
        listener_filters: vec![
            ListenerFilter::OriginalDst,
            ListenerFilter::TlsInspector { disabled_ports: vec![(3306, 3306)] },
            ListenerFilter::HttpInspector { disabled_ports: vec![(1, 10), (3306, 3306)] },
            ListenerFilter::ProxyProtocol { allow_requests_without: true },
        ],
        listener_filters_timeout: Duration::ZERO,
        continue_on_listener_filters_timeout: true,
        filter_chains: vec![
            chain("http", matches, NetworkFilter::Http(Box::new(manager(RouteSource::Rds("80".into()))))),
            chain("tcp", FilterChainMatch::default(), NetworkFilter::TcpProxy(Box::new(tcp))),
        ],
        default_filter_chain: Some(chain(
            "default",
            FilterChainMatch::default(),
            NetworkFilter::Http(Box::new(HttpManager {
                // Without RDS nothing says how long it may take.
                rds_fetch_timeout: seconds(15),
                ..manager(RouteSource::Inline(Box::new(route_config())))
            })),
        )),
        per_connection_buffer_limit: 4096,
        access_log: logs(),
        traffic_direction: TrafficDirection::Inbound,
        api_listener: false,
        origin: origin(),
        metadata: Metadata::new(),
    }
}

#[test]
fn listeners() {
    let listener = listener();
    assert_eq!(convert::listener("l", &r#gen::listener(&listener)).unwrap(), listener);
}

#[test]
fn a_listener_that_hands_over_asks_for_the_original_destination() {
    let mut bare = listener();
    bare.listener_filters.clear();
    let read = convert::listener("l", &r#gen::listener(&bare)).unwrap();
    assert_eq!(read.listener_filters, [ListenerFilter::OriginalDst]);
    bare.use_original_dst = false;
    assert_eq!(convert::listener("l", &r#gen::listener(&bare)).unwrap().listener_filters, []);
}

#[test]
fn routes() {
    let routes = route_config();
    assert_eq!(convert::route("80", &r#gen::route(&routes)).unwrap(), routes);
}

#[test]
fn clusters_of_every_kind() {
    for cluster in clusters() {
        assert_eq!(convert::cluster(&cluster.name, &r#gen::cluster(&cluster)).unwrap(), cluster);
    }
}

#[test]
fn endpoints() {
    let set = endpoint_set();
    assert_eq!(convert::endpoints("c", &r#gen::endpoints(&set)).unwrap(), set);
}

#[test]
fn names_are_for_clusters_that_ask_dns() {
    let error = convert::endpoints("c", &r#gen::endpoints(&named_endpoint_set())).unwrap_err();
    assert!(error.to_string().contains("\"a.b\" is not an IP address"), "{error}");
}

#[test]
fn secrets() {
    let certificate =
        TlsCertificate { chain: DataSource::Inline("CERT".into()), key: PrivateData(DataSource::File("/key".into())) };
    for kind in [SecretKind::Certificate(certificate), SecretKind::Validation(validation())] {
        let secret = Secret { name: "s".into(), kind };
        assert_eq!(convert::secret("s", &r#gen::secret(&secret)).unwrap(), secret);
    }
}

#[test]
fn equal_values_give_equal_bytes() {
    assert_eq!(r#gen::listener(&listener()), r#gen::listener(&listener()));
    assert_eq!(r#gen::route(&route_config()), r#gen::route(&route_config()));
}

#[test]
fn cut_or_flipped_bytes_never_panic() {
    let bytes = r#gen::listener(&listener());
    for cut in (0..bytes.len()).step_by(397) {
        let _ = convert::listener("l", &bytes[..cut]);
        let mut flipped = bytes.to_vec();
        flipped[cut] ^= 0x55;
        let _ = convert::listener("l", &flipped);
    }
}

#[test]
fn a_refusal_names_the_field() {
    let mut routes = route_config();
    routes.virtual_hosts[0].domains = vec![];
    let error = convert::route("80", &r#gen::route(&routes)).unwrap_err();
    assert_eq!(error.to_string(), "80: virtual_hosts[0].domains: is required");
}
