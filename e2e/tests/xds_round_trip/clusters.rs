//! Clusters, endpoints and TLS with everything set.

use std::collections::BTreeMap;
use std::time::Duration;

use mesh_api::model::*;
use serde_json::json;

use super::*;

pub fn validation() -> ValidationContext {
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

pub fn tls(source: SdsSource) -> CommonTls {
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

pub fn upstream_tls() -> UpstreamTls {
    UpstreamTls {
        common: tls(SdsSource::Cluster("sds-grpc".into())),
        sni: "outbound_.80_._.a.b".into(),
        auto_host_sni: true,
        auto_sni_san_validation: true,
    }
}

pub fn endpoint_set() -> EndpointSet {
    let mut first = Endpoint::at(Address::Socket(([10, 0, 0, 1], 80).into()));
    first.weight = 7;
    first.hostname = "h".into();
    first.health = HealthStatus::Draining;
    first.tls_labels = BTreeMap::from([("tlsMode".to_owned(), "istio".to_owned())]);
    first.workload = "web;shop;web;v1;Kubernetes".into();
    first.metadata = Metadata::from([("istio".to_owned(), json!({"a": "b"}))]);
    let others = [
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

/// With a name, which only clusters that ask DNS may hold.
pub fn named_endpoint_set() -> EndpointSet {
    let mut set = endpoint_set();
    set.localities[0].endpoints.push(Endpoint::at(Address::Host("a.b".into(), 443)));
    set
}

/// Every field other than its default.
pub fn dns_cache() -> DnsCache {
    DnsCache {
        name: "names".into(),
        family: DnsFamily::V4Preferred,
        refresh: seconds(30),
        min_refresh: seconds(2),
        host_ttl: seconds(100),
        max_hosts: 7,
        failure_refresh: Some((seconds(1), seconds(9))),
        max_pending: 8,
        query_timeout: seconds(3),
        resolvers: vec![([127, 0, 0, 1], 15053).into()],
    }
}

pub fn clusters() -> Vec<Cluster> {
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
        always_eject_one: true,
        max_jitter: seconds(1),
        success_rate: Some(SuccessRate {
            stdev_factor: 3,
            judged: Judged { minimum_hosts: 1, request_volume: 2, enforcing: [4, 5] },
        }),
        failure_percentage: Some(FailurePercentage {
            threshold: 5,
            judged: Judged { minimum_hosts: 6, request_volume: 7, enforcing: [8, 9] },
        }),
        http_errors: vec![429, 503],
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
    let original = Discovery::OriginalDst { port_override: Some(80), cleanup_interval: seconds(60) };
    let mut provided = Cluster::new("original", original);
    provided.lb = LbPolicy::ClusterProvided;
    all.push(provided);
    let mut dynamic = Cluster::new("dynamic", Discovery::Dynamic(dns_cache()));
    dynamic.lb = LbPolicy::ClusterProvided;
    all.push(dynamic.clone());
    dynamic.name = "dynamic-tls".into();
    dynamic.tls = Some(upstream_tls());
    (dynamic.http.auto_sni, dynamic.http.auto_san_validation) = (true, true);
    all.push(dynamic);
    for (name, discovery) in [
        ("strict", Discovery::StrictDns(named_endpoint_set())),
        ("logical", Discovery::LogicalDns(named_endpoint_set())),
    ] {
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
