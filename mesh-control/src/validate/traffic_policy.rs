//! DestinationRule.

use mesh_api::crd::networking::{
    ClientTls, ClientTlsMode, ConnectionPool, DestinationRule, LoadBalancer, LocalityLb, OutlierDetection,
};

use super::Finding;
use super::checks::Report;

pub(super) fn destination_rule(rule: &DestinationRule, out: &mut Report) {
    out.destination_host("spec.host", &rule.host);
    out.export_to("spec.exportTo", &rule.export_to);
    if let Some(policy) = &rule.traffic_policy {
        traffic_policy(policy, "spec.trafficPolicy", out);
    }
    for (i, subset) in rule.subsets.iter().enumerate() {
        let field = format!("spec.subsets[{i}]");
        if subset.name.is_empty() {
            out.error(format!("{field}.name"), "is required");
        }
        if rule.subsets.iter().take(i).any(|s| s.name == subset.name) {
            out.error(format!("{field}.name"), format!("subset {} is declared twice", subset.name));
        }
        out.labels(&format!("{field}.labels"), &subset.labels);
        if let Some(policy) = &subset.traffic_policy {
            traffic_policy(policy, &format!("{field}.trafficPolicy"), out);
        }
    }
}

fn traffic_policy(policy: &mesh_api::crd::networking::TrafficPolicy, field: &str, out: &mut Report) {
    settings(
        policy.load_balancer.as_ref(),
        policy.connection_pool.as_ref(),
        policy.outlier_detection.as_ref(),
        policy.tls.as_ref(),
        field,
        out,
    );
    for (i, port) in policy.port_level_settings.iter().enumerate() {
        let field = format!("{field}.portLevelSettings[{i}]");
        match &port.port {
            Some(p) => out.port(&format!("{field}.port.number"), p.number),
            None => out.error(format!("{field}.port"), "is required"),
        }
        settings(
            port.load_balancer.as_ref(),
            port.connection_pool.as_ref(),
            port.outlier_detection.as_ref(),
            port.tls.as_ref(),
            &field,
            out,
        );
    }
    if let Some(tunnel) = &policy.tunnel {
        out.destination_host(&format!("{field}.tunnel.targetHost"), &tunnel.target_host);
        out.port(&format!("{field}.tunnel.targetPort"), tunnel.target_port.unwrap_or(0));
        if !matches!(tunnel.protocol.as_str(), "" | "CONNECT" | "POST") {
            out.error(format!("{field}.tunnel.protocol"), "must be CONNECT or POST");
        }
    }
}

fn settings(
    lb: Option<&LoadBalancer>,
    pool: Option<&ConnectionPool>,
    outlier: Option<&OutlierDetection>,
    tls: Option<&ClientTls>,
    field: &str,
    out: &mut Report,
) {
    if let Some(lb) = lb {
        load_balancer(lb, &format!("{field}.loadBalancer"), out);
    }
    if let Some(pool) = pool {
        connection_pool(pool, &format!("{field}.connectionPool"), out);
    }
    if let Some(outlier) = outlier {
        outlier_detection(outlier, &format!("{field}.outlierDetection"), out);
    }
    if let Some(tls) = tls {
        client_tls(tls, &format!("{field}.tls"), out);
    }
}

fn load_balancer(lb: &LoadBalancer, field: &str, out: &mut Report) {
    if lb.simple.is_some() && lb.consistent_hash.is_some() {
        out.error(field, "only one of simple and consistentHash is allowed");
    }
    if let Some(hash) = &lb.consistent_hash {
        let field = format!("{field}.consistentHash");
        let keys = [
            hash.http_header_name.is_some(),
            hash.http_cookie.is_some(),
            hash.use_source_ip.is_some(),
            hash.http_query_parameter_name.is_some(),
        ];
        if keys.into_iter().filter(|k| *k).count() != 1 {
            out.error(
                field.clone(),
                "exactly one of httpHeaderName, httpCookie, useSourceIp and httpQueryParameterName is required",
            );
        }
        if let Some(cookie) = &hash.http_cookie
            && cookie.name.is_empty()
        {
            out.error(format!("{field}.httpCookie.name"), "is required");
        }
        if let Some(name) = &hash.http_header_name {
            out.header_name(&format!("{field}.httpHeaderName"), name);
        }
        let sizes = [
            ("ringHash.minimumRingSize", hash.ring_hash.as_ref().and_then(|r| r.minimum_ring_size)),
            ("minimumRingSize", hash.minimum_ring_size),
        ];
        for (name, _) in sizes.into_iter().filter(|(_, size)| size.is_some_and(|s| s > 8 << 20)) {
            out.error(format!("{field}.{name}"), "must not be above 8388608");
        }
        if let Some(size) = hash.maglev.as_ref().and_then(|m| m.table_size)
            && !prime(size)
        {
            out.error(format!("{field}.maglev.tableSize"), format!("{size} is not a prime up to 5000011"));
        }
    }
    if let Some(locality) = &lb.locality_lb_setting {
        locality_lb(locality, &format!("{field}.localityLbSetting"), out);
    }
    if lb.warmup.is_some() && lb.warmup_duration_secs.is_some() {
        out.error(field, "only one of warmup and warmupDurationSecs is allowed");
    }
    if let Some(warmup) = &lb.warmup {
        if warmup.duration.is_none() {
            out.error(format!("{field}.warmup.duration"), "is required");
        }
        if let Some(p) = warmup.minimum_percent {
            out.percent(&format!("{field}.warmup.minimumPercent"), p);
        }
        if warmup.aggression.is_some_and(|a| a < 1.0) {
            out.error(format!("{field}.warmup.aggression"), "must be 1 or more");
        }
    }
}

fn prime(n: u64) -> bool {
    (2..=5_000_011).contains(&n) && (2..).take_while(|d| d * d <= n).all(|d| !n.is_multiple_of(d))
}

pub(super) fn locality_lb(locality: &LocalityLb, field: &str, out: &mut Report) {
    let used =
        [!locality.distribute.is_empty(), !locality.failover.is_empty()].into_iter().filter(|used| *used).count();
    if used > 1 {
        out.error(field, "only one of distribute and failover is allowed");
    }
    for (i, distribute) in locality.distribute.iter().enumerate() {
        let sum: u64 = distribute.to.values().map(|w| u64::from(*w)).sum();
        if sum != 100 {
            out.error(format!("{field}.distribute[{i}].to"), format!("the weights add up to {sum}, not 100"));
        }
    }
    for (i, failover) in locality.failover.iter().enumerate() {
        if failover.from == failover.to {
            out.error(format!("{field}.failover[{i}]"), "from and to are the same region");
        }
    }
}

pub(super) fn connection_pool(pool: &ConnectionPool, field: &str, out: &mut Report) {
    if pool.tcp.is_none() && pool.http.is_none() {
        out.error(field, "tcp or http is required");
    }
    let mut not_negative = |name: &str, value: Option<i32>| {
        if value.is_some_and(|v| v < 0) {
            out.error(format!("{field}.{name}"), "must not be negative");
        }
    };
    if let Some(tcp) = &pool.tcp {
        not_negative("tcp.maxConnections", tcp.max_connections);
        if tcp.connect_timeout.is_some_and(|d| d.0.as_millis() < 1) {
            out.error(format!("{field}.tcp.connectTimeout"), "must be 1 ms or more");
        }
    }
    if let Some(http) = &pool.http {
        let limits = [
            ("http.http1MaxPendingRequests", http.http1_max_pending_requests),
            ("http.http2MaxRequests", http.http2_max_requests),
            ("http.maxRequestsPerConnection", http.max_requests_per_connection),
            ("http.maxRetries", http.max_retries),
            ("http.maxConcurrentStreams", http.max_concurrent_streams),
        ];
        for (name, value) in limits {
            if value.is_some_and(|v| v < 0) {
                out.error(format!("{field}.{name}"), "must not be negative");
            }
        }
        if http.use_client_protocol
            && http.h2_upgrade_policy == Some(mesh_api::crd::networking::H2UpgradePolicy::Upgrade)
        {
            out.error(format!("{field}.http"), "useClientProtocol and h2UpgradePolicy UPGRADE exclude each other");
        }
    }
}

pub(super) fn outlier_detection(outlier: &OutlierDetection, field: &str, out: &mut Report) {
    for (name, value) in
        [("maxEjectionPercent", outlier.max_ejection_percent), ("minHealthPercent", outlier.min_health_percent)]
    {
        if let Some(value) = value {
            out.percent(&format!("{field}.{name}"), f64::from(value));
        }
    }
    if let Some(threshold) = outlier.failure_percentage_threshold {
        out.percent(&format!("{field}.failurePercentageThreshold"), f64::from(threshold));
    }
    for (i, code) in outlier.outlier_detection_http_error_codes.iter().enumerate() {
        if !(100..600).contains(code) {
            out.error(format!("{field}.outlierDetectionHttpErrorCodes[{i}]"), "must be between 100 and 599");
        }
    }
    for (name, value) in [("interval", outlier.interval), ("baseEjectionTime", outlier.base_ejection_time)] {
        if value.is_some_and(|d| d.0.as_millis() < 1) {
            out.error(format!("{field}.{name}"), "must be 1 ms or more");
        }
    }
    if outlier.consecutive_local_origin_failures.is_some_and(|n| n > 0) && !outlier.split_external_local_origin_errors {
        out.error(format!("{field}.consecutiveLocalOriginFailures"), "needs splitExternalLocalOriginErrors: true");
    }
}

fn client_tls(tls: &ClientTls, field: &str, out: &mut Report) {
    let files = [("clientCertificate", &tls.client_certificate), ("privateKey", &tls.private_key)];
    match tls.mode {
        ClientTlsMode::Mutual if tls.credential_name.is_empty() => {
            for (name, value) in files {
                if value.is_empty() {
                    out.error(format!("{field}.{name}"), "is required with mode MUTUAL and no credentialName");
                }
            }
        }
        ClientTlsMode::Mutual => {
            for (name, value) in files {
                if !value.is_empty() {
                    out.error(format!("{field}.{name}"), "and credentialName exclude each other");
                }
            }
        }
        ClientTlsMode::IstioMutual => {
            let more = [("caCertificates", &tls.ca_certificates), ("credentialName", &tls.credential_name)];
            for (name, value) in files.into_iter().chain(more) {
                if !value.is_empty() {
                    out.error(format!("{field}.{name}"), "must be empty with mode ISTIO_MUTUAL");
                }
            }
        }
        ClientTlsMode::Simple | ClientTlsMode::Disable => {}
    }
    let originates = matches!(tls.mode, ClientTlsMode::Simple | ClientTlsMode::Mutual);
    let issuers = [&tls.ca_certificates, &tls.credential_name, &tls.ca_cert_credential_name];
    if originates && tls.insecure_skip_verify != Some(true) && issuers.iter().all(|i| i.is_empty()) {
        let code = if field.contains(".portLevelSettings[") { "IST0129" } else { "IST0128" };
        let message = "names no issuer: any server is accepted whose certificate the operating system trusts";
        out.push(Finding::warning(field, message).code(code));
    }
}
