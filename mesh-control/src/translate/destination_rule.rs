//! What a DestinationRule means for one port and subset, and how its parts show in a cluster.
//!
//! Owns the order of layers (mesh defaults, rule, port, subset, port of the subset) and Istio's defaults for pools,
//! outlier detection and balancers. Must not know services' endpoints nor TLS.

use std::time::Duration;

use mesh_api::{
    crd::networking::{
        ClientTls, ConnectionPool, ConsistentHash, DestinationRule, H2UpgradePolicy, LoadBalancer, OutlierDetection,
        ProxyProtocol, ProxyProtocolVersion, RetryBudget, SimpleLb, Subset, TcpKeepalive, TrafficPolicy, Tunnel,
        Warmup,
    },
    meshconfig::MeshConfig,
    model::{
        self, CircuitBreakers, Cluster, Discovery, FailurePercentage, Fraction, HttpVersionChoice, LbPolicy, SlowStart,
    },
};

use crate::index::Protocol;

/// The parts of a traffic policy that hold for one port and subset.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Policy<'a> {
    /// Limits.
    pub pool: Option<&'a ConnectionPool>,
    /// Passive health checks.
    pub outlier: Option<&'a OutlierDetection>,
    /// Balancing.
    pub lb: Option<&'a LoadBalancer>,
    /// TLS.
    pub tls: Option<&'a ClientTls>,
    /// HTTP CONNECT.
    pub tunnel: Option<&'a Tunnel>,
    /// PROXY protocol.
    pub proxy_protocol: Option<&'a ProxyProtocol>,
    /// Retries as a share of requests.
    pub retry_budget: Option<&'a RetryBudget>,
}

impl<'a> Policy<'a> {
    /// What holds for a port (and subset) of a host.
    pub fn of(mesh: &'a MeshConfig, rule: Option<&'a DestinationRule>, subset: Option<&'a Subset>, port: u16) -> Self {
        let mut out = Self::default();
        if let Some(base) = &mesh.default_traffic_policy {
            out.pool = base.connection_pool.as_ref();
            out.outlier = base.outlier_detection.as_ref();
        }
        out.layer(rule.and_then(|r| r.traffic_policy.as_ref()), port);
        out.layer(subset.and_then(|s| s.traffic_policy.as_ref()), port);
        if let Some(subset) = subset {
            // A tunnel of the rule is not one of its subsets.
            out.tunnel = subset.traffic_policy.as_ref().and_then(|p| p.tunnel.as_ref());
        }
        out
    }

    fn layer(&mut self, policy: Option<&'a TrafficPolicy>, port: u16) {
        let Some(policy) = policy else { return };
        self.pool = policy.connection_pool.as_ref().or(self.pool);
        self.outlier = policy.outlier_detection.as_ref().or(self.outlier);
        self.lb = policy.load_balancer.as_ref().or(self.lb);
        self.tls = policy.tls.as_ref().or(self.tls);
        self.tunnel = policy.tunnel.as_ref().or(self.tunnel);
        self.proxy_protocol = policy.proxy_protocol.as_ref().or(self.proxy_protocol);
        self.retry_budget = policy.retry_budget.as_ref().or(self.retry_budget);
        let at_port = policy.port_level_settings.iter().find(|p| p.port.as_ref().is_some_and(|p| p.number == port));
        if let Some(p) = at_port {
            // Settings of a port inherit nothing: what they leave out is the default again.
            self.pool = p.connection_pool.as_ref();
            self.outlier = p.outlier_detection.as_ref();
            self.lb = p.load_balancer.as_ref();
            self.tls = p.tls.as_ref();
        }
    }

    /// Key of consistent hashing, for the hash policies of routes.
    pub fn consistent_hash(&self) -> Option<&'a ConsistentHash> {
        self.lb?.consistent_hash.as_ref()
    }

    /// The client's destination is kept (`simple: PASSTHROUGH`).
    pub fn is_passthrough(&self) -> bool {
        self.lb.is_some_and(|l| l.simple == Some(SimpleLb::Passthrough))
    }

    /// Upgrade to HTTP/2 by the rule's or the mesh's word.
    fn upgrades(&self, mesh: &MeshConfig, protocol: Protocol) -> bool {
        let own = self.pool.and_then(|p| p.http.as_ref()).and_then(|h| h.h2_upgrade_policy);
        match own {
            Some(H2UpgradePolicy::Upgrade) => true,
            Some(H2UpgradePolicy::DoNotUpgrade) => false,
            _ => protocol.is_http() && mesh.h2_upgrade_policy == Some(H2UpgradePolicy::Upgrade),
        }
    }

    /// Pools, circuit breakers and HTTP version. `sniffs`: a sidecar's cluster, where undeclared protocols follow the
    /// client's. `outbound`: upgrades are possible.
    pub fn apply_pool(
        &self,
        cluster: &mut Cluster,
        mesh: &MeshConfig,
        protocol: Protocol,
        sniffs: bool,
        outbound: bool,
    ) {
        let tcp = self.pool.and_then(|p| p.tcp.as_ref());
        let http = self.pool.and_then(|p| p.http.as_ref());
        cluster.connect_timeout = tcp.and_then(|t| t.connect_timeout).map_or_else(|| mesh.connect_timeout(), |d| d.0);
        let positive = |v: Option<i32>| v.and_then(|v| u32::try_from(v).ok()).filter(|v| *v > 0);
        let mut limits = unlimited();
        if let Some(tcp) = tcp {
            limits.max_connections = positive(tcp.max_connections).unwrap_or(u32::MAX);
            cluster.http.max_connection_duration = tcp.max_connection_duration.map(|d| d.0);
        }
        if let Some(http) = http {
            limits.max_pending = positive(http.http1_max_pending_requests).unwrap_or(u32::MAX);
            limits.max_requests = positive(http.http2_max_requests).unwrap_or(u32::MAX);
            limits.max_retries = positive(http.max_retries).unwrap_or(u32::MAX);
            cluster.http.max_requests_per_connection = positive(http.max_requests_per_connection);
        }
        if let Some(budget) = self.retry_budget {
            let least = budget.min_retry_concurrency.filter(|n| *n > 0).unwrap_or(3);
            limits.retry_budget = Some((budget.percent.unwrap_or(20.0), least));
        }
        cluster.circuit_breakers = [limits, CircuitBreakers::default()];
        let idle = http.and_then(|h| h.idle_timeout).or_else(|| tcp.and_then(|t| t.idle_timeout));
        if let Some(idle) = idle {
            cluster.http.idle_timeout = idle.0;
        }
        cluster.tcp_keepalive = keepalive(mesh.tcp_keepalive.as_ref(), tcp.and_then(|t| t.tcp_keepalive.as_ref()));
        let client_protocol = http.is_some_and(|h| h.use_client_protocol);
        cluster.http.version = if client_protocol {
            HttpVersionChoice::Downstream
        } else if protocol.is_http2() || outbound && self.upgrades(mesh, protocol) {
            HttpVersionChoice::Http2
        } else if sniffs && protocol.is_auto() {
            HttpVersionChoice::Downstream
        } else {
            HttpVersionChoice::Http1
        };
        if cluster.http.version != HttpVersionChoice::Http1 {
            cluster.http.max_concurrent_streams = positive(http.and_then(|h| h.max_concurrent_streams));
            cluster.http.keepalive = http.and_then(|h| h.http2_keep_alive.as_ref()).and_then(|k| {
                let interval = k.interval?.0;
                Some((interval, k.timeout.map_or(Duration::from_secs(20), |t| t.0)))
            });
        }
    }

    /// Passive health checks.
    pub fn apply_outlier(&self, cluster: &mut Cluster) {
        let Some(outlier) = self.outlier else { return };
        let mut out = model::OutlierDetection::default();
        let enforced = |v: u32| if v > 0 { 100 } else { 0 };
        if let Some(n) = outlier.consecutive5xx_errors {
            out.consecutive_5xx = n;
            out.enforcing[0] = enforced(n);
        }
        let old = outlier.consecutive_errors.and_then(|n| u32::try_from(n).ok()).filter(|n| *n > 0);
        if let Some(n) = outlier.consecutive_gateway_errors.or(old) {
            out.consecutive_gateway = n;
            out.enforcing[1] = enforced(n);
        }
        if let Some(interval) = outlier.interval {
            out.interval = interval.0;
        }
        if let Some(time) = outlier.base_ejection_time {
            out.base_ejection = time.0;
            // Envoy's default for the longest ejection is at least the base.
            out.max_ejection = out.max_ejection.max(time.0);
        }
        if let Some(percent) = outlier.max_ejection_percent.and_then(|p| u32::try_from(p).ok()).filter(|p| *p > 0) {
            out.max_ejection_percent = percent;
        }
        out.split_local_origin = outlier.split_external_local_origin_errors;
        if let Some(n) = outlier.consecutive_local_origin_failures.filter(|n| out.split_local_origin && *n > 0) {
            out.consecutive_local_origin = n;
        }
        if let Some(threshold) = outlier.failure_percentage_threshold {
            // As with errors in a row, zero is off. Hosts and volumes are Envoy's. Local failures are failures too, apart
            // when they are split off.
            let detection = FailurePercentage::enforced([enforced(threshold); 2]);
            out.failure_percentage = Some(FailurePercentage { threshold, ..detection });
        }
        out.http_errors.clone_from(&outlier.outlier_detection_http_error_codes);
        cluster.outlier = Some(out);
        // With few pods a service the default of 50 % would send traffic to known bad ones.
        let healthy = outlier.min_health_percent.unwrap_or(0).max(0);
        cluster.lb_common.panic_threshold = Fraction::from_percent(f64::from(healthy));
    }

    /// The balancer. An original-destination cluster has none to choose.
    pub fn apply_lb(&self, cluster: &mut Cluster) {
        // A name that is looked up is no address that a client could choose.
        if self.is_passthrough() && !matches!(cluster.discovery, Discovery::Dynamic(_)) {
            cluster.discovery = original_dst(None);
        }
        if matches!(cluster.discovery, Discovery::OriginalDst { .. } | Discovery::Dynamic(_)) {
            cluster.lb = LbPolicy::ClusterProvided;
            return;
        }
        let slow_start = self.lb.and_then(slow_start);
        cluster.lb = match self.lb.and_then(|l| l.simple) {
            Some(SimpleLb::Random) => LbPolicy::Random,
            Some(SimpleLb::RoundRobin) => LbPolicy::RoundRobin { slow_start },
            _ => LbPolicy::LeastRequest { choices: 2, active_request_bias: 1.0, slow_start },
        };
        if let Some(hash) = self.consistent_hash() {
            cluster.lb = hash_policy(hash);
        }
    }

    /// PROXY protocol towards the upstream.
    pub fn apply_proxy_protocol(&self, cluster: &mut Cluster) {
        cluster.proxy_protocol = self.proxy_protocol.map(|p| match p.version {
            ProxyProtocolVersion::V1 => 1,
            ProxyProtocolVersion::V2 => 2,
        });
    }
}

/// Balancing by hash.
pub fn hash_policy(hash: &ConsistentHash) -> LbPolicy {
    const RING: u64 = 1024;
    const LARGEST_RING: u64 = 8 << 20;
    const TABLE: u64 = 65_537;
    if let Some(maglev) = &hash.maglev {
        return LbPolicy::Maglev { table_size: maglev.table_size.filter(|n| *n > 0).unwrap_or(TABLE) };
    }
    let minimum = match &hash.ring_hash {
        Some(ring) => ring.minimum_ring_size,
        None => hash.minimum_ring_size,
    };
    let minimum = minimum.filter(|n| *n > 0).unwrap_or(RING);
    LbPolicy::RingHash { minimum, maximum: LARGEST_RING.max(minimum) }
}

/// No limit at all, remaining capacity shown.
pub fn unlimited() -> CircuitBreakers {
    CircuitBreakers {
        max_connections: u32::MAX,
        max_pending: u32::MAX,
        max_requests: u32::MAX,
        max_retries: u32::MAX,
        retry_budget: None,
        track_remaining: true,
    }
}

/// A cluster that connects where the client wanted to go.
pub fn original_dst(port_override: Option<u16>) -> Discovery {
    Discovery::OriginalDst { port_override, cleanup_interval: Duration::from_secs(5) }
}

fn slow_start(lb: &LoadBalancer) -> Option<SlowStart> {
    let old = lb.warmup_duration_secs.map(|d| Warmup { duration: Some(d), ..Warmup::default() });
    let warmup = lb.warmup.as_ref().or(old.as_ref())?;
    Some(SlowStart {
        window: warmup.duration?.0,
        aggression: warmup.aggression.unwrap_or(1.0),
        min_weight_percent: warmup.minimum_percent.unwrap_or(10.0),
    })
}

/// The mesh's settings, each replaced by the rule's.
fn keepalive(mesh: Option<&TcpKeepalive>, rule: Option<&TcpKeepalive>) -> Option<model::TcpKeepalive> {
    if mesh.is_none() && rule.is_none() {
        return None;
    }
    let pick = |f: fn(&TcpKeepalive) -> Option<Duration>| rule.and_then(f).or_else(|| mesh.and_then(f));
    let probes = |k: &TcpKeepalive| k.probes.filter(|n| *n > 0);
    Some(model::TcpKeepalive {
        probes: rule.and_then(probes).or_else(|| mesh.and_then(probes)),
        time: pick(|k| k.time.map(|d| d.0)),
        interval: pick(|k| k.interval.map(|d| d.0)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(yaml: &str) -> DestinationRule {
        serde_saphyr::from_str(yaml).unwrap()
    }

    #[test]
    fn settings_of_a_port_inherit_nothing() {
        let mesh = MeshConfig::default();
        let rule = rule(
            "host: a\ntrafficPolicy:\n  tls: {mode: ISTIO_MUTUAL}\n  loadBalancer: {simple: RANDOM}\n  connectionPool: {tcp: {maxConnections: 7}}\n  \
             portLevelSettings:\n  - {port: {number: 80}, loadBalancer: {simple: ROUND_ROBIN}}\n\
             subsets:\n- name: v1\n  trafficPolicy: {connectionPool: {http: {http2MaxRequests: 3}}}\n",
        );
        let at_80 = Policy::of(&mesh, Some(&rule), None, 80);
        assert_eq!(at_80.lb.unwrap().simple, Some(SimpleLb::RoundRobin));
        assert!(at_80.tls.is_none() && at_80.pool.is_none());
        let at_81 = Policy::of(&mesh, Some(&rule), None, 81);
        assert_eq!(at_81.lb.unwrap().simple, Some(SimpleLb::Random));
        let v1 = Policy::of(&mesh, Some(&rule), rule.subsets.first(), 81);
        assert!(v1.tls.is_some() && v1.pool.unwrap().tcp.is_none(), "parts are replaced as a whole");
    }

    #[test]
    fn pools_outlier_and_balancers() {
        let mesh = MeshConfig::default();
        let rule = rule(
            "host: a\ntrafficPolicy:\n  loadBalancer: {consistentHash: {useSourceIp: true, minimumRingSize: 5}}\n  \
             outlierDetection: {consecutive5xxErrors: 0, consecutiveGatewayErrors: 3, maxEjectionPercent: 50, interval: 1s}\n  \
             connectionPool: {http: {http2MaxRequests: 2, h2UpgradePolicy: UPGRADE, maxRetries: 0}, tcp: {connectTimeout: 30ms, maxConnections: 1}}\n",
        );
        let policy = Policy::of(&mesh, Some(&rule), None, 80);
        let mut c = Cluster::new("c", Discovery::Eds { service: "".into() });
        policy.apply_pool(&mut c, &mesh, Protocol::Http, true, true);
        policy.apply_outlier(&mut c);
        policy.apply_lb(&mut c);
        let limits = c.circuit_breakers[0];
        assert_eq!((limits.max_connections, limits.max_requests, limits.max_retries), (1, 2, u32::MAX));
        assert_eq!((c.connect_timeout, c.http.version), (Duration::from_millis(30), HttpVersionChoice::Http2));
        let outlier = c.outlier.unwrap();
        assert_eq!((outlier.consecutive_5xx, outlier.enforcing), (0, [0, 100, 100]));
        assert_eq!(outlier.failure_percentage, None);
        assert_eq!(c.lb, LbPolicy::RingHash { minimum: 5, maximum: 8 << 20 });
        assert_eq!(c.lb_common.panic_threshold, Fraction(0));
    }

    #[test]
    fn failure_percentages_and_own_errors() {
        let mesh = MeshConfig::default();
        let outlier = |spec: &str| {
            let rule = rule(&format!("host: a\ntrafficPolicy: {{outlierDetection: {spec}}}\n"));
            let mut c = Cluster::new("c", Discovery::Eds { service: "".into() });
            Policy::of(&mesh, Some(&rule), None, 80).apply_outlier(&mut c);
            c.outlier.unwrap()
        };
        let on = outlier("{failurePercentageThreshold: 40, outlierDetectionHttpErrorCodes: [429, 503]}");
        let judged = FailurePercentage::enforced([100, 100]).judged;
        assert_eq!(on.failure_percentage, Some(FailurePercentage { threshold: 40, judged }));
        assert_eq!(on.http_errors, [429, 503]);
        let off = outlier("{failurePercentageThreshold: 0}").failure_percentage.unwrap();
        assert_eq!(off.judged.enforcing, [0, 0]);
    }
}
