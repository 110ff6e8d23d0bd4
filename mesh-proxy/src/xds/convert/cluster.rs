//! Clusters.

use std::time::Duration;

use mesh_api::model::{
    CircuitBreakers, Cluster, Discovery, EndpointSet, FailurePercentage, HeaderValueMatch, HealthCheck,
    HealthCheckKind, HttpUpstream, HttpVersionChoice, Judged, LbCommon, LbPolicy, OutlierDetection, SlowStart,
    StringMatcher, StringPattern, SuccessRate, TcpKeepalive, TlsMatch, ZoneAware,
};
use mesh_api::xds::envoy::config::cluster::v3 as proto;
use mesh_api::xds::envoy::config::common::matcher::v3 as matcher;
use mesh_api::xds::envoy::config::core::v3 as core;
use mesh_api::xds::envoy::extensions::upstreams::http::v3 as upstreams;

use super::Result;
use super::at::At;
use super::dns_cache;
use super::endpoint::{Hosts, endpoint_set};
use super::tls;
use super::values::{
    bool_or, duration, duration_opt, duration_or, header_matcher, metadata, percent, socket, structure, type_name,
    u32_or, unpack,
};

const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

#[allow(deprecated)] // older fields are still in static files
pub fn cluster(at: &At<'_>, c: &proto::Cluster) -> Result<Cluster> {
    if c.name.is_empty() {
        return at.field("name").refuse("is required");
    }
    let unsupported = [
        ("lb_subset_config", c.lb_subset_config.is_some()),
        ("filters", !c.filters.is_empty()),
        ("transport_socket_matcher", c.transport_socket_matcher.is_some()),
        ("load_balancing_policy", c.load_balancing_policy.is_some()),
    ];
    if let Some((field, _)) = unsupported.into_iter().find(|(_, set)| *set) {
        return at.field(field).refuse("is not supported");
    }
    let mut out = Cluster::new(c.name.as_str(), discovery(at, c)?);
    out.alt_stat_name = c.alt_stat_name.as_str().into();
    out.connect_timeout =
        duration_or(&at.field("connect_timeout"), c.connect_timeout.as_ref(), Duration::from_secs(5))?;
    if out.connect_timeout.is_zero() {
        return at.field("connect_timeout").refuse("must be above zero");
    }
    out.lb = lb_policy(at, c)?;
    out.lb_common = lb_common(c.common_lb_config.as_ref());
    out.circuit_breakers = circuit_breakers(&at.field("circuit_breakers"), c.circuit_breakers.as_ref())?;
    out.outlier = c.outlier_detection.as_ref().map(|o| outlier(&at.field("outlier_detection"), o)).transpose()?;
    let checks = c.health_checks.iter().enumerate();
    out.health_checks = checks.map(|(i, h)| health_check(&at.item("health_checks", i), h)).collect::<Result<_>>()?;
    if let Some(socket) = &c.transport_socket {
        let socket = tls::upstream(&at.field("transport_socket"), socket)?;
        out.tls = socket.tls;
        out.proxy_protocol = socket.proxy_protocol;
    }
    for (i, entry) in c.transport_socket_matches.iter().enumerate() {
        let (entry, proxy_protocol) = tls_match(&at.item("transport_socket_matches", i), entry)?;
        out.proxy_protocol = out.proxy_protocol.or(proxy_protocol);
        out.tls_matches.push(entry);
    }
    let http_errors;
    (out.http, http_errors) = http_upstream(at, c)?;
    if let Some(outlier) = &mut out.outlier {
        outlier.http_errors = http_errors;
    }
    if let Some(proto::cluster::ClusterDiscoveryType::ClusterType(custom)) = &c.cluster_discovery_type {
        checks_names(&at.field("cluster_type"), c, custom, &mut out.http)?;
    }
    let keepalive = c.upstream_connection_options.as_ref().and_then(|o| o.tcp_keepalive.as_ref());
    out.tcp_keepalive = keepalive.map(tcp_keepalive);
    if let Some(source) = c.upstream_bind_config.as_ref().and_then(|b| b.source_address.as_ref()) {
        let at = at.field("upstream_bind_config.source_address");
        let mesh_api::model::Address::Socket(address) = socket(&at, source)? else {
            return at.refuse("is not an IP address");
        };
        out.bind_source = Some(address);
    }
    out.per_connection_buffer_limit = u32_or(c.per_connection_buffer_limit_bytes, 1 << 20);
    out.dns_refresh = duration_or(&at.field("dns_refresh_rate"), c.dns_refresh_rate.as_ref(), Duration::from_secs(5))?;
    out.respect_dns_ttl = c.respect_dns_ttl;
    out.dns_family = dns_cache::family(at, c.dns_lookup_family)?;
    let eds = c.eds_cluster_config.as_ref().and_then(|e| e.eds_config.as_ref());
    let fetch = eds.and_then(|s| s.initial_fetch_timeout.as_ref());
    out.eds_fetch_timeout = duration_or(&at.field("initial_fetch_timeout"), fetch, Duration::from_secs(15))?;
    out.skip_warming = !bool_or(c.wait_for_warm_on_init, true);
    out.close_on_health_failure = c.close_connections_on_host_health_failure;
    (out.metadata, out.origin) = metadata(c.metadata.as_ref());
    Ok(out)
}

fn discovery(at: &At<'_>, c: &proto::Cluster) -> Result<Discovery> {
    use proto::cluster::{ClusterDiscoveryType, DiscoveryType, LbConfig};
    let kind = match &c.cluster_discovery_type {
        Some(ClusterDiscoveryType::Type(kind)) => DiscoveryType::try_from(*kind),
        Some(ClusterDiscoveryType::ClusterType(custom)) => {
            return dns_cache::cluster_type(&at.field("cluster_type"), custom);
        }
        None => Ok(DiscoveryType::Static),
    };
    let inline = |hosts| match &c.load_assignment {
        Some(assignment) => endpoint_set(&at.field("load_assignment"), assignment, hosts),
        None => Ok(EndpointSet::default()),
    };
    Ok(match kind {
        Ok(DiscoveryType::Static) => Discovery::Static(inline(Hosts::Numeric)?),
        Ok(DiscoveryType::StrictDns) => Discovery::StrictDns(inline(Hosts::Named)?),
        Ok(DiscoveryType::LogicalDns) => Discovery::LogicalDns(inline(Hosts::Named)?),
        Ok(DiscoveryType::Eds) => {
            let service = c.eds_cluster_config.as_ref().map_or("", |e| e.service_name.as_str());
            Discovery::Eds { service: if service.is_empty() { c.name.as_str() } else { service }.into() }
        }
        Ok(DiscoveryType::OriginalDst) => {
            let config = match &c.lb_config {
                Some(LbConfig::OriginalDstLbConfig(config)) => config.clone(),
                _ => Default::default(),
            };
            let options = at.field("original_dst_lb_config");
            if config.use_http_header {
                // Whoever sends the header would choose where the proxy connects to.
                return options.field("use_http_header").refuse("is not supported");
            }
            if config.metadata_key.is_some() {
                return options.field("metadata_key").refuse("is not supported");
            }
            let port = config.upstream_port_override.map(|p| super::values::port(at, p.value)).transpose()?;
            Discovery::OriginalDst {
                port_override: port,
                cleanup_interval: duration_or(at, c.cleanup_interval.as_ref(), Duration::from_secs(5))?,
            }
        }
        Err(_) => return at.field("type").refuse("does not exist"),
    })
}

fn slow_start(at: &At<'_>, config: Option<&proto::cluster::SlowStartConfig>) -> Result<Option<SlowStart>> {
    let Some(config) = config else { return Ok(None) };
    Ok(Some(SlowStart {
        window: duration_or(&at.field("slow_start_window"), config.slow_start_window.as_ref(), Duration::ZERO)?,
        aggression: config.aggression.as_ref().map_or(1.0, |a| a.default_value),
        min_weight_percent: config.min_weight_percent.as_ref().map_or(10.0, |p| p.value),
    }))
}

fn lb_policy(at: &At<'_>, c: &proto::Cluster) -> Result<LbPolicy> {
    use proto::cluster::{LbConfig, LbPolicy as P};
    Ok(match P::try_from(c.lb_policy) {
        Ok(P::RoundRobin) => {
            let config = match &c.lb_config {
                Some(LbConfig::RoundRobinLbConfig(config)) => config.slow_start_config.as_ref(),
                _ => None,
            };
            LbPolicy::RoundRobin { slow_start: slow_start(&at.field("round_robin_lb_config"), config)? }
        }
        Ok(P::LeastRequest) => {
            let config = match &c.lb_config {
                Some(LbConfig::LeastRequestLbConfig(config)) => config.clone(),
                _ => Default::default(),
            };
            let at = at.field("least_request_lb_config");
            LbPolicy::LeastRequest {
                choices: u32_or(config.choice_count, 2).max(2),
                active_request_bias: config.active_request_bias.as_ref().map_or(1.0, |b| b.default_value),
                slow_start: slow_start(&at, config.slow_start_config.as_ref())?,
            }
        }
        Ok(P::Random) => LbPolicy::Random,
        Ok(P::RingHash) => {
            let config = match &c.lb_config {
                Some(LbConfig::RingHashLbConfig(config)) => *config,
                _ => Default::default(),
            };
            let (minimum, maximum) = (
                config.minimum_ring_size.map_or(1024, |v| v.value),
                config.maximum_ring_size.map_or(8 << 20, |v| v.value),
            );
            if config.hash_function != 0 {
                return at.field("ring_hash_lb_config.hash_function").refuse("only XX_HASH is supported");
            }
            if minimum > maximum || maximum > 8 << 20 {
                return at.field("ring_hash_lb_config").refuse("ring sizes must be in order and 8,388,608 at most");
            }
            LbPolicy::RingHash { minimum, maximum }
        }
        Ok(P::Maglev) => {
            let config = match &c.lb_config {
                Some(LbConfig::MaglevLbConfig(config)) => *config,
                _ => Default::default(),
            };
            let table_size = config.table_size.map_or(65_537, |v| v.value);
            if table_size > 5_000_011 {
                return at.field("maglev_lb_config.table_size").refuse("must be 5,000,011 at most");
            }
            LbPolicy::Maglev { table_size }
        }
        Ok(P::ClusterProvided) => LbPolicy::ClusterProvided,
        _ => return at.field("lb_policy").refuse("is not supported"),
    })
}

fn lb_common(config: Option<&proto::cluster::CommonLbConfig>) -> LbCommon {
    use proto::cluster::common_lb_config::LocalityConfigSpecifier as L;
    let Some(config) = config else { return LbCommon::default() };
    let mut out = LbCommon {
        panic_threshold: percent(config.healthy_panic_threshold.as_ref(), 50.0),
        close_on_host_set_change: config.close_connections_on_host_set_change,
        ..LbCommon::default()
    };
    match &config.locality_config_specifier {
        Some(L::LocalityWeightedLbConfig(_)) => out.locality_weighted = true,
        Some(L::ZoneAwareLbConfig(zone)) => {
            let enabled = percent(zone.routing_enabled.as_ref(), 100.0);
            out.fail_on_panic = zone.fail_traffic_on_panic;
            // Zero percent is how `fail_traffic_on_panic` is said without zone awareness.
            out.zone_aware = (enabled.0 > 0)
                .then(|| ZoneAware { enabled, min_cluster_size: zone.min_cluster_size.map_or(6, |v| v.value) });
        }
        None => {}
    }
    let factor = config.consistent_hashing_lb_config.as_ref().and_then(|c| c.hash_balance_factor);
    out.hash_balance_factor = u32_or(factor, 0);
    out
}

fn circuit_breakers(at: &At<'_>, config: Option<&proto::CircuitBreakers>) -> Result<[CircuitBreakers; 2]> {
    let mut both = [CircuitBreakers::default(); 2];
    for (i, t) in config.map(|c| c.thresholds.as_slice()).unwrap_or_default().iter().enumerate() {
        let index = usize::try_from(t.priority).ok();
        let Some(limits) = index.and_then(|p| both.get_mut(p)) else {
            return at.item("thresholds", i).refuse("has a priority that does not exist");
        };
        *limits = CircuitBreakers {
            max_connections: u32_or(t.max_connections, limits.max_connections),
            max_pending: u32_or(t.max_pending_requests, limits.max_pending),
            max_requests: u32_or(t.max_requests, limits.max_requests),
            max_retries: u32_or(t.max_retries, limits.max_retries),
            retry_budget: t
                .retry_budget
                .as_ref()
                .map(|b| (b.budget_percent.as_ref().map_or(20.0, |p| p.value), u32_or(b.min_retry_concurrency, 3))),
            track_remaining: t.track_remaining,
        };
    }
    Ok(both)
}

fn outlier(at: &At<'_>, o: &proto::OutlierDetection) -> Result<OutlierDetection> {
    let default = OutlierDetection::default();
    let base_ejection =
        duration_or(&at.field("base_ejection_time"), o.base_ejection_time.as_ref(), default.base_ejection)?;
    let rates = SuccessRate::enforced([
        u32_or(o.enforcing_success_rate, 100),
        u32_or(o.enforcing_local_origin_success_rate, 100),
    ]);
    let failures = FailurePercentage::enforced([
        u32_or(o.enforcing_failure_percentage, 0),
        u32_or(o.enforcing_failure_percentage_local_origin, 0),
    ]);
    let judged = |default: Judged, hosts, volume| Judged {
        minimum_hosts: u32_or(hosts, default.minimum_hosts),
        request_volume: u32_or(volume, default.request_volume),
        ..default
    };
    // Local failures are apart only when split.
    let enforced = |j: &Judged| j.enforcing[0] > 0 || o.split_external_local_origin_errors && j.enforcing[1] > 0;
    Ok(OutlierDetection {
        consecutive_5xx: u32_or(o.consecutive_5xx, default.consecutive_5xx),
        consecutive_gateway: u32_or(o.consecutive_gateway_failure, default.consecutive_gateway),
        consecutive_local_origin: u32_or(o.consecutive_local_origin_failure, default.consecutive_local_origin),
        split_local_origin: o.split_external_local_origin_errors,
        enforcing: [
            u32_or(o.enforcing_consecutive_5xx, 100),
            u32_or(o.enforcing_consecutive_gateway_failure, 0),
            u32_or(o.enforcing_consecutive_local_origin_failure, 100),
        ],
        interval: duration_or(&at.field("interval"), o.interval.as_ref(), default.interval)?,
        base_ejection,
        max_ejection: duration_or(&at.field("max_ejection_time"), o.max_ejection_time.as_ref(), default.max_ejection)?
            .max(base_ejection),
        max_ejection_percent: u32_or(o.max_ejection_percent, default.max_ejection_percent),
        always_eject_one: bool_or(o.always_eject_one_host, false),
        max_jitter: duration_or(
            &at.field("max_ejection_time_jitter"),
            o.max_ejection_time_jitter.as_ref(),
            default.max_jitter,
        )?,
        success_rate: enforced(&rates.judged).then(|| SuccessRate {
            stdev_factor: u32_or(o.success_rate_stdev_factor, rates.stdev_factor),
            judged: judged(rates.judged, o.success_rate_minimum_hosts, o.success_rate_request_volume),
        }),
        failure_percentage: enforced(&failures.judged).then(|| FailurePercentage {
            threshold: u32_or(o.failure_percentage_threshold, failures.threshold),
            judged: judged(failures.judged, o.failure_percentage_minimum_hosts, o.failure_percentage_request_volume),
        }),
        http_errors: vec![],
    })
}

fn health_check(at: &At<'_>, h: &core::HealthCheck) -> Result<HealthCheck> {
    use core::health_check::HealthChecker as K;
    let kind = match at.required(h.health_checker.as_ref())? {
        K::TcpHealthCheck(t) if t.send.is_none() && t.receive.is_empty() => HealthCheckKind::Tcp,
        K::TcpHealthCheck(_) => return at.refuse("TCP health checks with payloads are not supported"),
        K::HttpHealthCheck(http) => {
            let range = |r: &mesh_api::xds::envoy::r#type::v3::Int64Range| {
                let bound = |n: i64| u16::try_from(n).map_err(|_| at.error("has a status range that is not one"));
                Ok((bound(r.start)?, bound(r.end)?))
            };
            HealthCheckKind::Http {
                host: http.host.as_str().into(),
                path: http.path.as_str().into(),
                expected: http.expected_statuses.iter().map(range).collect::<Result<_>>()?,
            }
        }
        K::GrpcHealthCheck(grpc) => HealthCheckKind::Grpc {
            service: grpc.service_name.as_str().into(),
            authority: grpc.authority.as_str().into(),
        },
        K::CustomHealthCheck(c) => return at.refuse(format!("health check {:?} is not supported", c.name)),
    };
    let needed = |field: &str, d: Option<&mesh_api::xds::google::protobuf::Duration>| {
        let at = at.field(field);
        duration(&at, at.required(d)?)
    };
    Ok(HealthCheck {
        timeout: needed("timeout", h.timeout.as_ref())?,
        interval: needed("interval", h.interval.as_ref())?,
        unhealthy_threshold: u32_or(h.unhealthy_threshold, 1).max(1),
        healthy_threshold: u32_or(h.healthy_threshold, 1).max(1),
        kind,
    })
}

fn tls_match(at: &At<'_>, entry: &proto::cluster::TransportSocketMatch) -> Result<(TlsMatch, Option<u8>)> {
    let socket = tls::upstream(&at.field("transport_socket"), at.required(entry.transport_socket.as_ref())?)?;
    let labels = entry.r#match.as_ref().map(structure).unwrap_or_default();
    let labels = labels.as_object().into_iter().flatten();
    let labels = labels.map(|(k, v)| (k.clone(), v.as_str().map_or_else(|| v.to_string(), str::to_owned)));
    Ok((
        TlsMatch { name: entry.name.as_str().into(), labels: labels.collect(), tls: socket.tls },
        socket.proxy_protocol,
    ))
}

fn tcp_keepalive(k: &core::TcpKeepalive) -> TcpKeepalive {
    let seconds =
        |v: Option<mesh_api::xds::google::protobuf::UInt32Value>| v.map(|v| Duration::from_secs(v.value.into()));
    TcpKeepalive {
        probes: k.keepalive_probes.map(|v| v.value),
        time: seconds(k.keepalive_time),
        interval: seconds(k.keepalive_interval),
    }
}

/// Who may be any server is checked by the name that was asked for, unless the cluster says that this is not wanted.
#[allow(deprecated)] // as below
fn checks_names(
    at: &At<'_>,
    c: &proto::Cluster,
    custom: &proto::cluster::CustomClusterType,
    http: &mut HttpUpstream,
) -> Result<()> {
    let said = match c.typed_extension_protocol_options.get(HTTP_OPTIONS) {
        Some(any) => unpack::<upstreams::HttpProtocolOptions>(at, any)?.upstream_http_protocol_options.is_some(),
        None => c.upstream_http_protocol_options.is_some(),
    };
    if dns_cache::allows_insecure(at, custom)? {
        return Ok(());
    }
    if !said {
        (http.auto_sni, http.auto_san_validation) = (true, true);
    }
    if !http.auto_sni || !http.auto_san_validation {
        return at.refuse("needs auto_sni and auto_san_validation, or allow_insecure_cluster_options");
    }
    Ok(())
}

#[allow(deprecated)] // the fields beside `typed_extension_protocol_options` are still in static files
/// Also the statuses that outlier detection takes for errors.
fn http_upstream(at: &At<'_>, c: &proto::Cluster) -> Result<(HttpUpstream, Vec<u16>)> {
    let mut errors = vec![];
    let mut out = HttpUpstream {
        max_requests_per_connection: c.max_requests_per_connection.map(|v| v.value),
        ..HttpUpstream::default()
    };
    if let Some(http2) = &c.http2_protocol_options {
        out.version = HttpVersionChoice::Http2;
        http2_options(at, http2, &mut out)?;
    }
    if let Some(common) = &c.common_http_protocol_options {
        common_options(&at.field("common_http_protocol_options"), common, &mut out)?;
    }
    if let Some(options) = &c.upstream_http_protocol_options {
        out.auto_sni = options.auto_sni;
        out.auto_san_validation = options.auto_san_validation;
    }
    for (name, any) in &c.typed_extension_protocol_options {
        let at = at.field("typed_extension_protocol_options");
        let at = at.field(name);
        if type_name(any) != HTTP_OPTIONS {
            return at.refuse(format!("{} is not supported", type_name(any)));
        }
        let options: upstreams::HttpProtocolOptions = unpack(&at, any)?;
        typed_options(&at, &options, &mut out)?;
        if let Some(predicate) = options.outlier_detection.as_ref().and_then(|o| o.error_matcher.as_ref()) {
            errors = statuses(&at.field("outlier_detection.error_matcher"), predicate)?;
        }
    }
    Ok((out, errors))
}

/// The statuses that a predicate names one by one; it may say nothing else.
fn statuses(at: &At<'_>, predicate: &matcher::MatchPredicate) -> Result<Vec<u16>> {
    use matcher::match_predicate::Rule;
    match at.required(predicate.rule.as_ref())? {
        Rule::OrMatch(set) => {
            let each = set.rules.iter().enumerate().map(|(i, rule)| statuses(&at.item("or_match.rules", i), rule));
            Ok(each.collect::<Result<Vec<_>>>()?.concat())
        }
        Rule::HttpResponseHeadersMatch(matching) => {
            let at = at.field("http_response_headers_match");
            let [header] = matching.headers.as_slice() else { return at.refuse("must name one header") };
            let header = header_matcher(&at.item("headers", 0), header)?;
            match &header.value {
                HeaderValueMatch::String(StringMatcher { pattern: StringPattern::Exact(status), .. })
                    if *header.name == *":status" && !header.invert =>
                {
                    Ok(vec![status.parse().map_err(|_| at.error(format!("{status:?} is no status")))?])
                }
                _ => at.refuse("only exact values of :status are supported"),
            }
        }
        _ => at.refuse("only or_match and http_response_headers_match are supported"),
    }
}

fn typed_options(at: &At<'_>, options: &upstreams::HttpProtocolOptions, out: &mut HttpUpstream) -> Result<()> {
    use upstreams::http_protocol_options::UpstreamProtocolOptions as U;
    use upstreams::http_protocol_options::explicit_http_config::ProtocolConfig as P;
    if !options.http_filters.is_empty() && options.http_filters.iter().any(|f| !f.name.contains("upstream_codec")) {
        return at.field("http_filters").refuse("upstream filters are not supported");
    }
    if let Some(common) = &options.common_http_protocol_options {
        common_options(&at.field("common_http_protocol_options"), common, out)?;
    }
    if let Some(names) = &options.upstream_http_protocol_options {
        out.auto_sni = names.auto_sni;
        out.auto_san_validation = names.auto_san_validation;
    }
    let http2 = match &options.upstream_protocol_options {
        None => None,
        Some(U::ExplicitHttpConfig(config)) => match &config.protocol_config {
            Some(P::Http2ProtocolOptions(http2)) => {
                out.version = HttpVersionChoice::Http2;
                Some(http2)
            }
            Some(P::Http3ProtocolOptions(_)) => return at.refuse("HTTP/3 is not supported"),
            Some(P::HttpProtocolOptions(_)) | None => {
                out.version = HttpVersionChoice::Http1;
                None
            }
        },
        Some(U::UseDownstreamProtocolConfig(config)) => {
            out.version = HttpVersionChoice::Downstream;
            config.http2_protocol_options.as_ref()
        }
        Some(U::AutoConfig(config)) => {
            out.version = HttpVersionChoice::Alpn;
            config.http2_protocol_options.as_ref()
        }
    };
    if let Some(http2) = http2 {
        http2_options(at, http2, out)?;
    }
    Ok(())
}

fn common_options(at: &At<'_>, common: &core::HttpProtocolOptions, out: &mut HttpUpstream) -> Result<()> {
    out.idle_timeout = duration_or(&at.field("idle_timeout"), common.idle_timeout.as_ref(), Duration::from_secs(3600))?;
    out.max_connection_duration =
        duration_opt(&at.field("max_connection_duration"), common.max_connection_duration.as_ref())?;
    out.max_requests_per_connection =
        common.max_requests_per_connection.map(|v| v.value).or(out.max_requests_per_connection);
    Ok(())
}

fn http2_options(at: &At<'_>, http2: &core::Http2ProtocolOptions, out: &mut HttpUpstream) -> Result<()> {
    out.max_concurrent_streams = http2.max_concurrent_streams.map(|v| v.value);
    out.initial_stream_window = http2.initial_stream_window_size.map(|v| v.value);
    out.initial_connection_window = http2.initial_connection_window_size.map(|v| v.value);
    out.keepalive = keepalive(&at.field("connection_keepalive"), http2)?;
    Ok(())
}

/// PING interval and timeout of HTTP/2.
pub fn keepalive(at: &At<'_>, http2: &core::Http2ProtocolOptions) -> Result<Option<(Duration, Duration)>> {
    let Some(keepalive) = &http2.connection_keepalive else { return Ok(None) };
    let Some(interval) = duration_opt(&at.field("interval"), keepalive.interval.as_ref())? else { return Ok(None) };
    let timeout = duration_or(&at.field("timeout"), keepalive.timeout.as_ref(), Duration::from_secs(20))?;
    Ok(Some((interval, timeout)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_by_header_or_metadata_are_refused_by_name() {
        let with = |config: proto::cluster::OriginalDstLbConfig| proto::Cluster {
            name: "c".to_owned(),
            cluster_discovery_type: Some(proto::cluster::ClusterDiscoveryType::Type(
                proto::cluster::DiscoveryType::OriginalDst.into(),
            )),
            lb_policy: proto::cluster::LbPolicy::ClusterProvided.into(),
            lb_config: Some(proto::cluster::LbConfig::OriginalDstLbConfig(config)),
            ..Default::default()
        };
        let refused = |config| cluster(&At::resource("c"), &with(config)).unwrap_err().path;
        let by_header = proto::cluster::OriginalDstLbConfig { use_http_header: true, ..Default::default() };
        assert_eq!(refused(by_header), "original_dst_lb_config.use_http_header");
        let by_metadata =
            proto::cluster::OriginalDstLbConfig { metadata_key: Some(Default::default()), ..Default::default() };
        assert_eq!(refused(by_metadata), "original_dst_lb_config.metadata_key");
        assert!(cluster(&At::resource("c"), &with(Default::default())).is_ok());
    }

    #[test]
    fn one_endpoint_is_ejected_in_any_case_only_on_request() {
        let read = |o: &proto::OutlierDetection| outlier(&At::resource("c"), o).unwrap().always_eject_one;
        assert!(!read(&proto::OutlierDetection::default()));
        let asked = mesh_api::xds::google::protobuf::BoolValue { value: true };
        assert!(read(&proto::OutlierDetection { always_eject_one_host: Some(asked), ..Default::default() }));
    }
}
