//! Clusters.

use mesh_api::model::{
    CircuitBreakers, Cluster, Discovery, DnsCache, DnsFamily, FailurePercentage, HealthCheck, HealthCheckKind,
    HttpUpstream, HttpVersionChoice, LbCommon, LbPolicy, OutlierDetection, SlowStart, SuccessRate, TcpKeepalive,
    TlsMatch,
};

use super::endpoint::endpoints;
use super::tls;
use super::values::{ads, metadata};
use super::wire::{Message, structure};

const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
const DYNAMIC: &str = "envoy.clusters.dynamic_forward_proxy";
const DYNAMIC_CONFIG: &str = "envoy.extensions.clusters.dynamic_forward_proxy.v3.ClusterConfig";
const CARES: &str = "envoy.network.dns_resolver.cares";
const CARES_CONFIG: &str = "envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig";

/// `Cluster`.
pub fn cluster(cluster: &Cluster) -> Message {
    let message = Message::new().str(1, &cluster.name);
    let message = discovery(cluster, message);
    let message = lb_policy(&cluster.lb, message)
        .duration(4, cluster.connect_timeout)
        .wrapped(5, cluster.per_connection_buffer_limit)
        .msgs(8, cluster.health_checks.iter().map(health_check))
        .msg(10, circuit_breakers(&cluster.circuit_breakers))
        .maybe(19, cluster.outlier.as_ref().map(outlier))
        .metadata(25, metadata(&cluster.metadata, &cluster.origin))
        .msg(27, lb_common(&cluster.lb_common))
        .str(28, &cluster.alt_stat_name)
        .bool(31, cluster.close_on_health_failure)
        .entry(36, HTTP_OPTIONS, Message::any(HTTP_OPTIONS, http_options(cluster)))
        .msgs(43, cluster.tls_matches.iter().map(|m| tls_match(cluster, m)));
    let message = match (&cluster.tls, cluster.proxy_protocol) {
        (None, None) => message,
        (tls, None) => message.msg(24, tls::upstream(tls.as_ref())),
        (tls, Some(version)) => message.msg(24, tls::with_proxy_protocol(version, tls::upstream(tls.as_ref()))),
    };
    let message = match &cluster.bind_source {
        // BindConfig.source_address is a SocketAddress; port 0 is any.
        Some(source) => {
            let socket = Message::new().str(2, &source.ip().to_string()).uint_always(3, source.port().into());
            message.msg(21, Message::new().msg(1, socket))
        }
        None => message,
    };
    let message = match &cluster.tcp_keepalive {
        Some(keepalive) => message.msg(30, Message::new().msg(1, tcp_keepalive(keepalive))),
        None => message,
    };
    if cluster.skip_warming { message.wrapped_bool(54, false) } else { message }
}

fn discovery(cluster: &Cluster, message: Message) -> Message {
    let dns = |message: Message, kind: u64| {
        let message = message.uint_always(2, kind).duration(16, cluster.dns_refresh);
        message.uint(17, dns_family(cluster.dns_family)).bool(39, cluster.respect_dns_ttl)
    };
    match &cluster.discovery {
        Discovery::Static(set) => message.uint_always(2, 0).msg(33, endpoints(set)),
        Discovery::StrictDns(set) => dns(message, 1).msg(33, endpoints(set)),
        Discovery::LogicalDns(set) => dns(message, 2).msg(33, endpoints(set)),
        Discovery::Eds { service } => {
            let name = if **service == *cluster.name { "" } else { service };
            message.uint_always(2, 3).msg(3, Message::new().msg(1, ads(Some(cluster.eds_fetch_timeout))).str(2, name))
        }
        Discovery::OriginalDst { port_override, cleanup_interval } => {
            let config = Message::new().wrapped_maybe(3, port_override.map(u32::from));
            message.uint_always(2, 4).duration(20, *cleanup_interval).msg(34, config)
        }
        Discovery::Dynamic(cache) => {
            // Envoy wants names checked, or to be told that they are not: without TLS there is nothing to check.
            let checked = cluster.http.auto_sni && cluster.http.auto_san_validation;
            let config = Message::new().msg(1, dns_cache(cache)).bool(2, !checked);
            message.msg(38, Message::new().str(1, DYNAMIC).msg(2, Message::any(DYNAMIC_CONFIG, config)))
        }
    }
}

/// `DnsLookupFamily`.
fn dns_family(family: DnsFamily) -> u64 {
    match family {
        DnsFamily::Auto => 0,
        DnsFamily::V4Only => 1,
        DnsFamily::V6Only => 2,
        DnsFamily::V4Preferred => 3,
        DnsFamily::All => 4,
    }
}

/// `DnsCacheConfig`. Envoy takes caches of one name for one if they are equal to the byte, so this is the only writer.
pub fn dns_cache(cache: &DnsCache) -> Message {
    let limit = Message::new().wrapped(1, cache.max_pending);
    let message = Message::new()
        .str(1, &cache.name)
        .uint(2, dns_family(cache.family))
        .duration(3, cache.refresh)
        .duration(4, cache.host_ttl)
        .wrapped(5, cache.max_hosts)
        .maybe(6, cache.failure_refresh.map(|(base, most)| Message::new().duration(1, base).duration(2, most)))
        .msg(7, limit)
        .duration(11, cache.query_timeout);
    let message = if cache.resolvers.is_empty() {
        message
    } else {
        let address = |a: &std::net::SocketAddr| {
            let socket = Message::new().str(2, &a.ip().to_string()).uint_always(3, a.port().into());
            Message::new().msg(1, socket)
        };
        let config = Message::any(CARES_CONFIG, Message::new().msgs(1, cache.resolvers.iter().map(address)));
        message.msg(12, Message::new().str(1, CARES).msg(2, config))
    };
    message.duration(14, cache.min_refresh)
}

fn slow_start(config: &SlowStart) -> Message {
    // aggression is a RuntimeDouble, which must have a key; min_weight_percent is a Percent.
    let aggression = Message::new().double(1, config.aggression).str(2, "mesh.slow_start.aggression");
    Message::new()
        .duration(1, config.window)
        .msg(2, aggression)
        .msg(3, Message::new().double(1, config.min_weight_percent))
}

fn lb_policy(policy: &LbPolicy, message: Message) -> Message {
    match policy {
        LbPolicy::RoundRobin { slow_start: config } => match config {
            Some(config) => message.msg(56, Message::new().msg(1, slow_start(config))),
            None => message,
        },
        LbPolicy::LeastRequest { choices, active_request_bias, slow_start: config } => {
            let mut options = Message::new().wrapped(1, *choices);
            if (*active_request_bias - 1.0).abs() > f64::EPSILON {
                let bias = Message::new().double(1, *active_request_bias).str(2, "mesh.least_request.bias");
                options = options.msg(2, bias);
            }
            message.uint(6, 1).msg(37, options.maybe(3, config.as_ref().map(slow_start)))
        }
        LbPolicy::RingHash { minimum, maximum } => {
            message.uint(6, 2).msg(23, Message::new().wrapped(1, *minimum).wrapped(4, *maximum))
        }
        LbPolicy::Random => message.uint(6, 3),
        LbPolicy::Maglev { table_size } => message.uint(6, 5).msg(52, Message::new().wrapped(1, *table_size)),
        LbPolicy::ClusterProvided => message.uint(6, 6),
    }
}

fn lb_common(common: &LbCommon) -> Message {
    let percent = f64::from(common.panic_threshold.0) / 10_000.0;
    let percent_of = |f: mesh_api::model::Fraction| Message::new().double(1, f64::from(f.0) / 10_000.0);
    let message = Message::new().msg(1, Message::new().double(1, percent));
    let message = match (&common.zone_aware, common.locality_weighted) {
        (Some(zone), _) => {
            let config = Message::new().msg(1, percent_of(zone.enabled)).wrapped(2, zone.min_cluster_size);
            message.msg(2, config.bool(3, common.fail_on_panic))
        }
        (None, true) => message.msg(3, Message::new()),
        (None, false) if common.fail_on_panic => {
            // Zone awareness is its carrier; zero percent routes nothing by zone.
            message.msg(2, Message::new().msg(1, Message::new()).bool(3, true))
        }
        (None, false) => message,
    };
    let message = message.bool(6, common.close_on_host_set_change);
    match common.hash_balance_factor {
        0 => message,
        factor => message.msg(7, Message::new().wrapped(2, factor)),
    }
}

fn circuit_breakers(both: &[CircuitBreakers; 2]) -> Message {
    let threshold = |(priority, limits): (u64, &CircuitBreakers)| {
        let budget = limits
            .retry_budget
            .map(|(percent, least)| Message::new().msg(1, Message::new().double(1, percent)).wrapped(2, least));
        Message::new()
            .uint(1, priority)
            .wrapped(2, limits.max_connections)
            .wrapped(3, limits.max_pending)
            .wrapped(4, limits.max_requests)
            .wrapped(5, limits.max_retries)
            .bool(6, limits.track_remaining)
            .maybe(8, budget)
    };
    Message::new().msgs(1, (0u64..).zip(both).map(threshold))
}

fn outlier(detection: &OutlierDetection) -> Message {
    let [fivexx, gateway, local] = detection.enforcing;
    let mut message = Message::new()
        .wrapped(1, detection.consecutive_5xx)
        .duration(2, detection.interval)
        .duration(3, detection.base_ejection)
        .wrapped(4, detection.max_ejection_percent)
        .wrapped(5, fivexx)
        .wrapped(10, detection.consecutive_gateway)
        .wrapped(11, gateway)
        .bool(12, detection.split_local_origin)
        .wrapped(13, detection.consecutive_local_origin)
        .wrapped(14, local)
        .duration(21, detection.max_ejection)
        .duration(22, detection.max_jitter)
        .maybe(25, detection.always_eject_one.then(|| Message::new().bool(1, true)));
    message = match detection.success_rate {
        Some(SuccessRate { stdev_factor, judged }) => {
            let [external, local] = judged.enforcing;
            let message =
                message.wrapped(6, external).wrapped(7, judged.minimum_hosts).wrapped(8, judged.request_volume);
            message.wrapped(9, stdev_factor).wrapped(15, local)
        }
        // Left out, Envoy enforces both.
        None => message.wrapped(6, 0u32).wrapped(15, 0u32),
    };
    match detection.failure_percentage {
        Some(FailurePercentage { threshold, judged }) => {
            let [external, local] = judged.enforcing;
            let message = message.wrapped(16, threshold).wrapped(17, external).wrapped(18, local);
            message.wrapped(19, judged.minimum_hosts).wrapped(20, judged.request_volume)
        }
        None => message,
    }
}

/// `HttpProtocolOptions.OutlierDetection`: which answers are errors; a `MatchPredicate` over `:status`.
fn http_errors(statuses: &[u16]) -> Option<Message> {
    let of_status = |status: &u16| {
        let exact = Message::new().str(1, &status.to_string());
        let headers = Message::new().msg(1, Message::new().str(1, ":status").msg(13, exact));
        Message::new().msg(7, headers)
    };
    let predicate = match statuses {
        [] => return None,
        // A set holds two rules or more.
        [one] => of_status(one),
        several => Message::new().msg(1, Message::new().msgs(1, several.iter().map(of_status))),
    };
    Some(Message::new().msg(1, predicate))
}

fn health_check(check: &HealthCheck) -> Message {
    let message = Message::new()
        .duration(1, check.timeout)
        .duration(2, check.interval)
        .wrapped(4, check.unhealthy_threshold)
        .wrapped(5, check.healthy_threshold);
    match &check.kind {
        HealthCheckKind::Tcp => message.msg(9, Message::new()),
        HealthCheckKind::Http { host, path, expected } => {
            let range = |(from, to): &(u16, u16)| Message::new().int(1, (*from).into()).int(2, (*to).into());
            let http = Message::new().str(1, host).str(2, path).msgs(9, expected.iter().map(range));
            message.msg(8, http)
        }
        HealthCheckKind::Grpc { service, authority } => {
            message.msg(11, Message::new().str(1, service).str(2, authority))
        }
    }
}

fn tls_match(cluster: &Cluster, entry: &TlsMatch) -> Message {
    let labels = entry.labels.iter().map(|(k, v)| (k.clone(), serde_json::Value::String(v.clone())));
    let criteria = structure(&serde_json::Value::Object(labels.collect()));
    let socket = tls::upstream(entry.tls.as_ref());
    let socket = match cluster.proxy_protocol {
        Some(version) => tls::with_proxy_protocol(version, socket),
        None => socket,
    };
    Message::new().str(1, &entry.name).msg(2, criteria).msg(3, socket)
}

fn tcp_keepalive(keepalive: &TcpKeepalive) -> Message {
    let seconds = |d: Option<std::time::Duration>| d.map(|d| u32::try_from(d.as_secs()).unwrap_or(u32::MAX));
    Message::new()
        .wrapped_maybe(1, keepalive.probes)
        .wrapped_maybe(2, seconds(keepalive.time))
        .wrapped_maybe(3, seconds(keepalive.interval))
}

fn http_options(cluster: &Cluster) -> Message {
    let http: &HttpUpstream = &cluster.http;
    let common = Message::new()
        .duration(1, http.idle_timeout)
        .duration_maybe(3, http.max_connection_duration)
        .wrapped_maybe(6, http.max_requests_per_connection);
    let h2 = || {
        http2_options(
            http.max_concurrent_streams,
            http.initial_stream_window,
            http.initial_connection_window,
            http.keepalive,
        )
    };
    let message = Message::new().msg(1, common);
    let message = if http.auto_sni || http.auto_san_validation {
        // UpstreamHttpProtocolOptions
        message.msg(2, Message::new().bool(1, http.auto_sni).bool(2, http.auto_san_validation))
    } else {
        message
    };
    let errors = cluster.outlier.as_ref().and_then(|o| http_errors(&o.http_errors));
    let message = message.maybe(8, errors);
    match http.version {
        HttpVersionChoice::Http1 => message.msg(3, Message::new().msg(1, Message::new())),
        HttpVersionChoice::Http2 => message.msg(3, Message::new().msg(2, h2())),
        HttpVersionChoice::Downstream => message.msg(4, Message::new().msg(1, Message::new()).msg(2, h2())),
        HttpVersionChoice::Alpn => message.msg(5, Message::new().msg(1, Message::new()).msg(2, h2())),
    }
}

/// `Http2ProtocolOptions`.
pub fn http2_options(
    streams: Option<u32>,
    stream_window: Option<u32>,
    connection_window: Option<u32>,
    keepalive: Option<(std::time::Duration, std::time::Duration)>,
) -> Message {
    let keepalive = keepalive.map(|(interval, timeout)| Message::new().duration(1, interval).duration(2, timeout));
    Message::new()
        .wrapped_maybe(2, streams)
        .wrapped_maybe(3, stream_window)
        .wrapped_maybe(4, connection_window)
        .maybe(15, keepalive)
}
