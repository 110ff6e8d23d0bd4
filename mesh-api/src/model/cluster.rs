//! Clusters (`envoy.config.cluster.v3`): how a set of endpoints is found, chosen and spoken to.

use std::{collections::BTreeMap, time::Duration};

use serde::Serialize;

use super::{DnsCache, EndpointSet, Fraction, Metadata, Name, Origin, UpstreamTls};

/// One upstream service (or subset of it).
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Cluster {
    /// Name that routes refer to.
    pub name: Name,
    /// Name in statistics; empty: `name`.
    pub alt_stat_name: Name,
    /// Where endpoints come from.
    pub discovery: Discovery,
    /// Limit of the TCP (and TLS) connect; 5 s by default.
    pub connect_timeout: Duration,
    /// How an endpoint is chosen.
    pub lb: LbPolicy,
    /// Locality and health settings.
    pub lb_common: LbCommon,
    /// Default and high priority.
    pub circuit_breakers: [CircuitBreakers; 2],
    /// Passive health checks.
    pub outlier: Option<OutlierDetection>,
    /// Active health checks.
    pub health_checks: Vec<HealthCheck>,
    /// TLS when no entry of `tls_matches` fits.
    pub tls: Option<UpstreamTls>,
    /// TLS by endpoint metadata (`envoy.transport_socket_match`), first match wins. `tls: None` is cleartext.
    pub tls_matches: Vec<TlsMatch>,
    /// Which HTTP is spoken.
    pub http: HttpUpstream,
    /// Send a PROXY protocol header of this version (1 or 2) first.
    pub proxy_protocol: Option<u8>,
    /// `SO_KEEPALIVE`.
    pub tcp_keepalive: Option<TcpKeepalive>,
    /// Local address to bind to (`127.0.0.6` for inbound passthrough).
    pub bind_source: Option<std::net::SocketAddr>,
    /// Soft limit of buffered bytes a connection.
    pub per_connection_buffer_limit: u32,
    /// DNS refresh rate.
    pub dns_refresh: Duration,
    /// Honour the TTL of DNS answers.
    pub respect_dns_ttl: bool,
    /// Which address families DNS is asked for.
    pub dns_family: DnsFamily,
    /// How long EDS may take before the cluster counts as warm without endpoints (`initial_fetch_timeout`);
    /// 15 s by default, zero: for ever.
    pub eds_fetch_timeout: Duration,
    /// Do not wait for the first endpoints before the cluster counts as warm (`wait_for_warm_on_init: false`).
    pub skip_warming: bool,
    /// Close connections to endpoints that fail health checks.
    pub close_on_health_failure: bool,
    /// Cause and Istio's facts (`istio.services` for telemetry).
    pub origin: Origin,
    /// Everything else in `metadata.filter_metadata`.
    pub metadata: Metadata,
}

impl Cluster {
    /// An EDS cluster with Envoy's defaults.
    pub fn new(name: impl Into<Name>, discovery: Discovery) -> Self {
        Self {
            name: name.into(),
            alt_stat_name: "".into(),
            discovery,
            connect_timeout: Duration::from_secs(5),
            lb: LbPolicy::RoundRobin { slow_start: None },
            lb_common: LbCommon::default(),
            circuit_breakers: [CircuitBreakers::default(); 2],
            outlier: None,
            health_checks: vec![],
            tls: None,
            tls_matches: vec![],
            http: HttpUpstream::default(),
            proxy_protocol: None,
            tcp_keepalive: None,
            bind_source: None,
            per_connection_buffer_limit: 1 << 20,
            dns_refresh: Duration::from_secs(5),
            respect_dns_ttl: false,
            dns_family: DnsFamily::Auto,
            eds_fetch_timeout: Duration::from_secs(15),
            skip_warming: false,
            close_on_health_failure: false,
            origin: Origin::default(),
            metadata: Metadata::new(),
        }
    }
}

/// Where endpoints come from.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub enum Discovery {
    /// In the cluster itself.
    Static(EndpointSet),
    /// By EDS under this name.
    Eds {
        /// `service_name`; the cluster's own name when that is empty.
        service: Name,
    },
    /// Every address of the names is an endpoint.
    StrictDns(EndpointSet),
    /// One logical endpoint, dialled at whatever the name says now.
    LogicalDns(EndpointSet),
    /// The connection's original destination.
    OriginalDst {
        /// Replaces the port.
        port_override: Option<u16>,
        /// How long an unused endpoint is kept.
        cleanup_interval: Duration,
    },
    /// What the request's host or the connection's server name says, looked up when it is asked for
    /// (`envoy.clusters.dynamic_forward_proxy`).
    Dynamic(DnsCache),
}

/// `DnsLookupFamily`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub enum DnsFamily {
    /// IPv6 first, IPv4 when there is none.
    Auto,
    /// IPv4 only.
    V4Only,
    /// IPv6 only.
    V6Only,
    /// IPv4 first.
    V4Preferred,
    /// Both.
    All,
}

/// How an endpoint is chosen.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub enum LbPolicy {
    /// Weighted round robin.
    RoundRobin { slow_start: Option<SlowStart> },
    /// Of `choices` drawn at random the one with fewest requests (weighted when weights differ).
    LeastRequest { choices: u32, active_request_bias: f64, slow_start: Option<SlowStart> },
    /// Uniformly at random.
    Random,
    /// Consistent hashing on a ring (xxHash64).
    RingHash { minimum: u64, maximum: u64 },
    /// Consistent hashing by Maglev tables; the size is prime.
    Maglev { table_size: u64 },
    /// Where the client wanted to go (`CLUSTER_PROVIDED`).
    ClusterProvided,
}

/// `SlowStartConfig`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct SlowStart {
    /// Length of the warm-up.
    pub window: Duration,
    /// Aggression, 1.0: linear.
    pub aggression: f64,
    /// Least share of the final weight, percent.
    pub min_weight_percent: f64,
}

/// `CommonLbConfig`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LbCommon {
    /// Below this percentage of healthy endpoints health is ignored; 50 by default, 0: never.
    pub panic_threshold: Fraction,
    /// Weigh localities by the weights of EDS.
    pub locality_weighted: bool,
    /// Prefer endpoints of the own zone (`zone_aware_lb_config`).
    pub zone_aware: Option<ZoneAware>,
    /// Panic answers 503 instead of spreading load (`fail_traffic_on_panic`).
    pub fail_on_panic: bool,
    /// Bounded load for consistent hashing, percent above average; zero: off.
    pub hash_balance_factor: u32,
    /// Health states that a retained endpoint may have (`override_host_status`) are not modelled.
    pub close_on_host_set_change: bool,
}

impl Default for LbCommon {
    fn default() -> Self {
        Self {
            panic_threshold: Fraction::from_percent(50.0),
            locality_weighted: false,
            zone_aware: None,
            fail_on_panic: false,
            hash_balance_factor: 0,
            close_on_host_set_change: false,
        }
    }
}

/// `ZoneAwareLbConfig`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct ZoneAware {
    /// Share of requests it applies to.
    pub enabled: Fraction,
    /// Least number of endpoints.
    pub min_cluster_size: u64,
}

/// `CircuitBreakers.Thresholds`; `u32::MAX` is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct CircuitBreakers {
    /// Connections.
    pub max_connections: u32,
    /// Requests that wait for a connection.
    pub max_pending: u32,
    /// Requests in flight.
    pub max_requests: u32,
    /// Retries in flight (without a budget).
    pub max_retries: u32,
    /// Retries as a share of requests in flight, and the least number that is always allowed.
    pub retry_budget: Option<(f64, u32)>,
    /// Remaining capacity is published as gauges.
    pub track_remaining: bool,
}

impl Default for CircuitBreakers {
    fn default() -> Self {
        Self {
            max_connections: 1024,
            max_pending: 1024,
            max_requests: 1024,
            max_retries: 3,
            retry_budget: None,
            track_remaining: false,
        }
    }
}

/// `OutlierDetection`; zero disables a detector.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct OutlierDetection {
    /// 5xx and local failures in a row.
    pub consecutive_5xx: u32,
    /// 502, 503, 504 in a row.
    pub consecutive_gateway: u32,
    /// Connect failures, timeouts, resets in a row, when split.
    pub consecutive_local_origin: u32,
    /// Count local failures apart from the upstream's.
    pub split_local_origin: bool,
    /// Shares in percent in which a detection is enforced: 5xx, gateway, local origin.
    pub enforcing: [u32; 3],
    /// Time between sweeps (ejected endpoints return then).
    pub interval: Duration,
    /// First ejection; the n-th lasts n times as long.
    pub base_ejection: Duration,
    /// Longest ejection.
    pub max_ejection: Duration,
    /// Largest share of ejected endpoints, percent.
    pub max_ejection_percent: u32,
    /// One may go whatever that share says.
    pub always_eject_one: bool,
    /// Jitter added to the ejection time.
    pub max_jitter: Duration,
    /// Success-rate detection.
    pub success_rate: Option<SuccessRate>,
    /// Failure-percentage detection.
    pub failure_percentage: Option<FailurePercentage>,
    /// Statuses that count as errors instead of 5xx; empty: 5xx.
    pub http_errors: Vec<u16>,
}

/// Ejects whoever succeeds less often than the others do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct SuccessRate {
    /// Multiple of the standard deviation below the mean that makes an outlier, in thousandths.
    pub stdev_factor: u32,
    /// Who may be judged.
    pub judged: Judged,
}

/// Ejects whoever fails too large a share of requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct FailurePercentage {
    /// The share in percent from which on an endpoint is an outlier.
    pub threshold: u32,
    /// Who may be judged.
    pub judged: Judged,
}

/// What it takes to be judged by a rate, and what follows from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Judged {
    /// Nobody is judged unless so many endpoints had enough requests.
    pub minimum_hosts: u32,
    /// Requests within an interval that are enough.
    pub request_volume: u32,
    /// Share in percent in which a detection is enforced: answers of the upstream, and (when split) local failures.
    pub enforcing: [u32; 2],
}

impl SuccessRate {
    /// Envoy's numbers, enforced as `enforcing` says.
    pub const fn enforced(enforcing: [u32; 2]) -> Self {
        Self { stdev_factor: 1900, judged: Judged { minimum_hosts: 5, request_volume: 100, enforcing } }
    }
}

impl FailurePercentage {
    /// Envoy's numbers, enforced as `enforcing` says.
    pub const fn enforced(enforcing: [u32; 2]) -> Self {
        Self { threshold: 85, judged: Judged { minimum_hosts: 5, request_volume: 50, enforcing } }
    }
}

impl Default for OutlierDetection {
    fn default() -> Self {
        Self {
            consecutive_5xx: 5,
            consecutive_gateway: 5,
            consecutive_local_origin: 5,
            split_local_origin: false,
            enforcing: [100, 0, 100],
            interval: Duration::from_secs(10),
            base_ejection: Duration::from_secs(30),
            max_ejection: Duration::from_secs(300),
            max_ejection_percent: 10,
            always_eject_one: false,
            max_jitter: Duration::ZERO,
            success_rate: None,
            failure_percentage: None,
            http_errors: vec![],
        }
    }
}

/// Active health check.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct HealthCheck {
    /// Limit of one check.
    pub timeout: Duration,
    /// Time between checks.
    pub interval: Duration,
    /// Failures until unhealthy.
    pub unhealthy_threshold: u32,
    /// Successes until healthy.
    pub healthy_threshold: u32,
    /// What is done.
    pub kind: HealthCheckKind,
}

/// What a health check does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum HealthCheckKind {
    /// Connects.
    Tcp,
    /// GET, expecting one of the ranges (empty: 200).
    Http { host: Name, path: Name, expected: Vec<(u16, u16)> },
    /// `grpc.health.v1.Health/Check`.
    Grpc { service: Name, authority: Name },
}

/// `TransportSocketMatch`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TlsMatch {
    /// Name for statistics.
    pub name: Name,
    /// All of these must stand in the endpoint's `envoy.transport_socket_match` metadata.
    pub labels: BTreeMap<String, String>,
    /// What to use; `None`: cleartext.
    pub tls: Option<UpstreamTls>,
}

/// HTTP towards a cluster (`HttpProtocolOptions`).
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct HttpUpstream {
    /// Version choice.
    pub version: HttpVersionChoice,
    /// Requests until a connection is closed; `None`: no limit.
    pub max_requests_per_connection: Option<u32>,
    /// Idle connections are closed after this; zero: never.
    pub idle_timeout: Duration,
    /// Longest life of a connection.
    pub max_connection_duration: Option<Duration>,
    /// HTTP/2 streams at once a connection.
    pub max_concurrent_streams: Option<u32>,
    /// HTTP/2 window of a stream.
    pub initial_stream_window: Option<u32>,
    /// HTTP/2 window of a connection.
    pub initial_connection_window: Option<u32>,
    /// HTTP/2 PING: interval, timeout.
    pub keepalive: Option<(Duration, Duration)>,
    /// ALPN and SNI follow the request's host (`auto_sni`), the names of the server are checked against it.
    pub auto_sni: bool,
    /// See `auto_sni`.
    pub auto_san_validation: bool,
}

impl Default for HttpUpstream {
    fn default() -> Self {
        Self {
            version: HttpVersionChoice::Http1,
            max_requests_per_connection: None,
            idle_timeout: Duration::from_secs(3600),
            max_connection_duration: None,
            max_concurrent_streams: None,
            initial_stream_window: None,
            initial_connection_window: None,
            keepalive: None,
            auto_sni: false,
            auto_san_validation: false,
        }
    }
}

/// Which HTTP version an upstream gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub enum HttpVersionChoice {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 (with prior knowledge in cleartext).
    Http2,
    /// What the client spoke (`use_downstream_protocol_config`).
    Downstream,
    /// What ALPN decides (`auto_config`), HTTP/1.1 without TLS.
    Alpn,
}

/// `TcpKeepalive`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub struct TcpKeepalive {
    /// Probes before a connection is dead.
    pub probes: Option<u32>,
    /// Idle time before the first probe.
    pub time: Option<Duration>,
    /// Time between probes.
    pub interval: Option<Duration>,
}
