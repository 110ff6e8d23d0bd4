//! What the control plane encodes, the proxy decodes to the same: both ends of the model, through the wire form.

#![allow(clippy::unwrap_used, clippy::expect_used)] // a test that meets what it does not expect ends

use std::collections::BTreeMap;
use std::time::Duration;

use mesh_api::model::*;
use mesh_control::xds::r#gen;
use mesh_proxy::xds::convert;
use serde_json::json;

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

fn rbac() -> Rbac {
    let net = CidrRange { address: [10, 0, 0, 0].into(), prefix_len: 8 };
    let meta = |value| MetadataMatch { filter: "f".into(), path: vec!["a".into(), "b".into()], value, invert: true };
    let permissions = vec![
        Permission::Any,
        Permission::Not(Box::new(Permission::Any)),
        Permission::And(vec![
            Permission::UrlPath(StringMatcher::prefix("/a")),
            Permission::DestinationPort(80),
            Permission::DestinationPortRange(1, 1024),
        ]),
        Permission::Or(vec![Permission::DestinationIp(net), Permission::UriTemplate("/a/{*}".into())]),
        Permission::Header(header(HeaderValueMatch::Present(true), false)),
        Permission::RequestedServerName(StringMatcher::suffix(".a")),
        Permission::Metadata(meta(MetadataValue::Bool(true))),
    ];
    let one_of = MetadataValue::OneOf(vec![MetadataValue::Present(true)]);
    let principals = vec![
        Principal::Authenticated(None),
        Principal::Authenticated(Some(StringMatcher::exact("spiffe://a/ns/b/sa/c"))),
        Principal::And(vec![Principal::DirectRemoteIp(net), Principal::RemoteIp(net), Principal::SourceIp(net)]),
        Principal::Or(vec![Principal::Not(Box::new(Principal::Any)), Principal::UrlPath(StringMatcher::exact("/"))]),
        Principal::Metadata(meta(MetadataValue::ListOneOf(Box::new(MetadataValue::String(StringMatcher::exact("x")))))),
        Principal::Metadata(meta(one_of)),
        Principal::FilterState("k".into(), StringMatcher::exact("v")),
    ];
    let policy =
        |name: &str| Policy { name: name.into(), permissions: permissions.clone(), principals: principals.clone() };
    Rbac {
        action: RbacAction::Deny,
        policies: vec![policy("ns[a]-policy[b]-rule[0]"), policy("ns[a]-policy[b]-rule[1]")],
    }
}

fn fault() -> FaultFilter {
    FaultFilter {
        delay: Some((Fraction::from_percent(12.5), Duration::from_millis(1500))),
        abort: Some((Fraction(1), FaultAbort::Http(503))),
        max_active: Some(3),
        headers: headers(),
    }
}

fn rate_limit() -> LocalRateLimit {
    LocalRateLimit {
        stat_prefix: "l".into(),
        max_tokens: 10,
        tokens_per_fill: 5,
        fill_interval: seconds(1),
        enabled: Fraction::ALWAYS,
        enforced: Fraction::from_percent(50.0),
        status: 429,
        response_headers: HeaderMutation { remove: vec![], ..mutation() },
    }
}

fn overrides() -> Vec<(Name, FilterOverride)> {
    let cors = CorsPolicy {
        allow_origins: vec![StringMatcher::exact("https://a")],
        allow_methods: "GET".into(),
        allow_headers: "x".into(),
        expose_headers: "y".into(),
        max_age: "60".into(),
        allow_credentials: Some(true),
        enabled: Some(Fraction::ALWAYS),
        forward_not_matching_preflights: Some(false),
    };
    let rbac = RbacFilter { rules: Some(rbac()), ..RbacFilter::default() };
    vec![
        ("a".into(), FilterOverride::Disabled),
        ("b".into(), FilterOverride::Enabled),
        ("cors".into(), FilterOverride::Cors(cors)),
        ("fault".into(), FilterOverride::Fault(fault())),
        ("limit".into(), FilterOverride::LocalRateLimit(rate_limit())),
        ("mutation".into(), FilterOverride::HeaderMutation { request: mutation(), response: mutation() }),
        ("rbac".into(), FilterOverride::Rbac(rbac)),
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

fn validation() -> ValidationContext {
    let san = |kind, matcher| SanMatcher { kind, matcher };
    ValidationContext {
        trusted_ca: Some(DataSource::Inline("PEM".into())),
        system_roots: false,
        san_matchers: vec![
            san(SanKind::Uri, StringMatcher::exact("spiffe://a")),
            san(SanKind::Dns, StringMatcher::suffix(".a")),
            san(SanKind::Ip, StringMatcher::exact("1.2.3.4")),
            san(SanKind::Email, StringMatcher::exact("a@b")),
            san(SanKind::Any, StringMatcher::exact("any")),
        ],
        spki_hashes: vec!["c3BraQ==".into()],
        certificate_hashes: vec!["aa".into()],
        crl: Some(DataSource::File("/crl".into())),
        accept_untrusted: true,
        spiffe_trust_domains: vec![("td".into(), DataSource::Inline("PEM".into()))],
    }
}

fn tls(source: SdsSource) -> CommonTls {
    let secret = |name: &str| SdsRef { name: name.into(), source: source.clone() };
    CommonTls {
        certificates: vec![CertificateSource::Sds(secret("default"))],
        validation: Some(Validation { inline: Some(validation()), sds: Some(secret("ROOTCA")) }),
        alpn: vec!["h2".into(), "http/1.1".into()],
        min_version: Some(TlsVersion::V1_2),
        max_version: Some(TlsVersion::V1_3),
        cipher_suites: vec!["ECDHE-RSA-AES128-GCM-SHA256".into()],
        ecdh_curves: vec!["X25519".into()],
    }
}

fn upstream_tls() -> UpstreamTls {
    UpstreamTls {
        common: tls(SdsSource::Cluster("sds-grpc".into())),
        sni: "outbound_.80_._.a.b".into(),
        auto_host_sni: true,
        auto_sni_san_validation: true,
    }
}

fn endpoint_set() -> EndpointSet {
    let mut first = Endpoint::at(Address::Socket(([10, 0, 0, 1], 80).into()));
    first.weight = 7;
    first.hostname = "h".into();
    first.health = HealthStatus::Draining;
    first.tls_labels = BTreeMap::from([("tlsMode".to_owned(), "istio".to_owned())]);
    first.workload = "web;shop;web;v1;Kubernetes".into();
    first.metadata = Metadata::from([("istio".to_owned(), json!({"a": "b"}))]);
    let others = [
        Address::Host("a.b".into(), 443),
        Address::Pipe("/sock".into()),
        Address::Internal("inner".into()),
        Address::Socket("[::1]:80".parse().unwrap()),
    ];
    let group = |priority, endpoints| LocalityEndpoints {
        locality: Locality::parse("r/z/s"),
        priority,
        weight: Some(3),
        endpoints,
    };
    EndpointSet {
        cluster: "c".into(),
        localities: vec![group(0, vec![first]), group(1, others.map(Endpoint::at).to_vec())],
        overprovisioning: Some(150),
        drops: vec![("d".into(), Fraction::from_percent(5.0))],
    }
}

fn clusters() -> Vec<Cluster> {
    let slow = Some(SlowStart { window: seconds(30), aggression: 2.0, min_weight_percent: 5.0 });
    let mut full = Cluster::new("full", Discovery::Eds { service: "other".into() });
    full.alt_stat_name = "alt".into();
    full.connect_timeout = seconds(3);
    full.lb = LbPolicy::LeastRequest { choices: 3, active_request_bias: 0.5, slow_start: slow };
    full.lb_common = LbCommon {
        panic_threshold: Fraction(0),
        locality_weighted: false,
        zone_aware: Some(ZoneAware { enabled: Fraction::ALWAYS, min_cluster_size: 3 }),
        fail_on_panic: true,
        hash_balance_factor: 120,
        close_on_host_set_change: true,
    };
    let limits = CircuitBreakers {
        max_connections: u32::MAX,
        max_pending: 1,
        max_requests: 2,
        max_retries: 3,
        retry_budget: Some((25.0, 5)),
        track_remaining: true,
    };
    full.circuit_breakers = [limits, CircuitBreakers::default()];
    full.outlier = Some(OutlierDetection {
        consecutive_5xx: 0,
        consecutive_gateway: 7,
        split_local_origin: true,
        enforcing: [1, 2, 3],
        max_jitter: seconds(1),
        success_rate: Some((1, 2, 3, 4)),
        failure_percentage: Some((5, 6, 7, 8)),
        ..OutlierDetection::default()
    });
    let check = |kind| HealthCheck {
        timeout: seconds(1),
        interval: seconds(2),
        unhealthy_threshold: 3,
        healthy_threshold: 4,
        kind,
    };
    full.health_checks = vec![
        check(HealthCheckKind::Tcp),
        check(HealthCheckKind::Http { host: "h".into(), path: "/p".into(), expected: vec![(200, 300)] }),
        check(HealthCheckKind::Grpc { service: "s".into(), authority: "a".into() }),
    ];
    full.tls = Some(upstream_tls());
    full.tls_matches = vec![
        TlsMatch {
            name: "tlsMode-istio".into(),
            labels: BTreeMap::from([("tlsMode".to_owned(), "istio".to_owned())]),
            tls: Some(upstream_tls()),
        },
        TlsMatch { name: "tlsMode-disabled".into(), labels: BTreeMap::new(), tls: None },
    ];
    full.http = HttpUpstream {
        version: HttpVersionChoice::Downstream,
        max_requests_per_connection: Some(1),
        idle_timeout: seconds(9),
        max_connection_duration: Some(seconds(8)),
        max_concurrent_streams: Some(100),
        initial_stream_window: Some(65_536),
        initial_connection_window: Some(1 << 20),
        keepalive: Some((seconds(1), seconds(2))),
        auto_sni: true,
        auto_san_validation: true,
    };
    full.tcp_keepalive = Some(TcpKeepalive { probes: Some(3), time: Some(seconds(4)), interval: Some(seconds(5)) });
    full.bind_source = Some(([127, 0, 0, 6], 0).into());
    full.per_connection_buffer_limit = 1000;
    full.eds_fetch_timeout = Duration::ZERO;
    full.skip_warming = true;
    full.close_on_health_failure = true;
    full.origin = origin();
    full.metadata = Metadata::from([("istio".to_owned(), json!({"services": [{"host": "h", "name": "n"}]}))]);
    let mut all = vec![full];
    for (i, lb) in [
        LbPolicy::RoundRobin { slow_start: slow },
        LbPolicy::Random,
        LbPolicy::RingHash { minimum: 1024, maximum: 4096 },
        LbPolicy::Maglev { table_size: 251 },
    ]
    .into_iter()
    .enumerate()
    {
        let mut cluster = Cluster::new(format!("lb{i}"), Discovery::Static(endpoint_set()));
        cluster.lb = lb;
        cluster.lb_common.locality_weighted = true;
        cluster.proxy_protocol = Some(1);
        cluster.http.version = HttpVersionChoice::Alpn;
        all.push(cluster);
    }
    let original = Discovery::OriginalDst { use_header: true, port_override: Some(80), cleanup_interval: seconds(60) };
    let mut provided = Cluster::new("original", original);
    provided.lb = LbPolicy::ClusterProvided;
    all.push(provided);
    for (name, discovery) in
        [("strict", Discovery::StrictDns(endpoint_set())), ("logical", Discovery::LogicalDns(endpoint_set()))]
    {
        let mut cluster = Cluster::new(name, discovery);
        cluster.dns_refresh = seconds(60);
        cluster.respect_dns_ttl = true;
        cluster.dns_family = DnsFamily::V4Preferred;
        cluster.lb_common.fail_on_panic = true;
        cluster.http.version = HttpVersionChoice::Http2;
        cluster.proxy_protocol = Some(2);
        cluster.tls = Some(upstream_tls());
        all.push(cluster);
    }
    all
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
        filter("rbac", HttpFilterKind::Rbac(shadow)),
        filter("istio.alpn", HttpFilterKind::IstioAlpn),
        filter("fault", HttpFilterKind::Fault(fault())),
        filter("cors", HttpFilterKind::Cors),
        filter("grpc_stats", HttpFilterKind::GrpcStats { emit_filter_state: true }),
        filter("grpc_web", HttpFilterKind::GrpcWeb),
        filter("limit", HttpFilterKind::LocalRateLimit(rate_limit())),
        filter("mutation", HttpFilterKind::HeaderMutation { request: mutation(), response: mutation() }),
        filter("health", HttpFilterKind::HealthCheck { pass_through: true, headers: headers() }),
        filter(
            "istio.stats",
            HttpFilterKind::IstioStats(IstioStats { config: json!({"disable_host_header_fallback": true}) }),
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
    ]
}

fn listener() -> Listener {
    let chain = |name: &str, matches, filter| FilterChain {
        name: name.into(),
        matches,
        tls: Some(DownstreamTls { common: tls(SdsSource::Ads), require_client_certificate: true }),
        transport_socket_connect_timeout: seconds(2),
        filters: vec![
            NetworkFilter::MetadataExchange,
            NetworkFilter::IstioStats(IstioStats { config: json!({}) }),
            NetworkFilter::Rbac(RbacFilter {
                stat_prefix: "tcp.".into(),
                rules: Some(rbac()),
                ..RbacFilter::default()
            }),
            NetworkFilter::ConnectionLimit { stat_prefix: "c".into(), max: 5, delay: seconds(1) },
            NetworkFilter::SniCluster,
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
    tcp.tunnel_hostname = Some("t:80".into());
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
    let mut bad = listener();
    bad.filter_chains[0].matches.server_names = vec![];
    let mut routes = route_config();
    routes.virtual_hosts[0].domains = vec![];
    let error = convert::route("80", &r#gen::route(&routes)).unwrap_err();
    assert_eq!(error.to_string(), "80: virtual_hosts[0].domains: is required");
}
