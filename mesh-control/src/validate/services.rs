//! Gateway, ServiceEntry, WorkloadEntry and Sidecar.

use std::net::IpAddr;

use mesh_api::crd::networking::{
    Gateway, Resolution, Server, ServerTls, ServerTlsMode, ServiceEntry, Sidecar, WorkloadEntry,
};

use super::Finding;
use super::checks::{Report, dns_label};

/// Protocol words of ports.
const PROTOCOLS: [&str; 13] = [
    "HTTP",
    "HTTPS",
    "GRPC",
    "GRPC-WEB",
    "GRPC-WEB-TEXT",
    "HTTP2",
    "HTTP_PROXY",
    "MONGO",
    "TCP",
    "TLS",
    "REDIS",
    "MYSQL",
    "UDP",
];

fn protocol(field: &str, word: &str, out: &mut Report) {
    if !PROTOCOLS.contains(&word.to_ascii_uppercase().as_str()) {
        out.error(field, format!("{word:?} is not one of {}", PROTOCOLS.join(", ")));
    }
}

pub(super) fn gateway(gateway: &Gateway, out: &mut Report) {
    if gateway.servers.is_empty() {
        out.error("spec.servers", "is required");
    }
    if gateway.selector.is_empty() {
        out.warning("spec.selector", "is empty: every workload of the mesh counts as this gateway");
    }
    for (i, server) in gateway.servers.iter().enumerate() {
        let field = format!("spec.servers[{i}]");
        gateway_server(server, &field, out);
        let twice = |s: &Server| !s.port.name.is_empty() && s.port.name == server.port.name;
        if gateway.servers.iter().take(i).any(twice) {
            out.error(format!("{field}.port.name"), format!("{} is used twice", server.port.name));
        }
    }
}

fn gateway_server(server: &Server, field: &str, out: &mut Report) {
    if server.port.name.is_empty() {
        out.error(format!("{field}.port.name"), "is required");
    }
    out.port(&format!("{field}.port.number"), server.port.number);
    protocol(&format!("{field}.port.protocol"), &server.port.protocol, out);
    if server.hosts.is_empty() {
        out.error(format!("{field}.hosts"), "is required");
    }
    for (i, host) in server.hosts.iter().enumerate() {
        namespaced_host(&format!("{field}.hosts[{i}]"), host, &["*", "."], out);
    }
    if !server.bind.is_empty() && server.bind.parse::<IpAddr>().is_err() && !server.bind.starts_with("unix://") {
        out.error(format!("{field}.bind"), format!("{:?} is not an IP address", server.bind));
    }
    let word = server.port.protocol.to_ascii_uppercase();
    let needs_tls = matches!(word.as_str(), "HTTPS" | "TLS");
    match &server.tls {
        None if needs_tls => out.error(format!("{field}.tls"), format!("is required with protocol {word}")),
        Some(tls) if tls.https_redirect && needs_tls => {
            out.error(format!("{field}.tls.httpsRedirect"), "is for cleartext servers");
        }
        Some(tls) if needs_tls => server_tls(tls, &format!("{field}.tls"), out),
        Some(tls) if !tls.https_redirect && word == "HTTP" && tls.mode != ServerTlsMode::Passthrough => {
            out.error(format!("{field}.tls"), "a server of protocol HTTP takes no TLS: use HTTPS");
        }
        _ => {}
    }
}

/// Of a sidecar: only by files, and neither redirects nor the mesh's own certificates.
fn ingress_tls(tls: &ServerTls, field: &str, out: &mut Report) {
    let unsupported = [
        ("credentialName", !tls.credential_name.is_empty()),
        ("credentialNames", !tls.credential_names.is_empty()),
        ("caCertCredentialName", !tls.ca_cert_credential_name.is_empty()),
        ("tlsCertificates", !tls.tls_certificates.is_empty()),
        ("subjectAltNames", !tls.subject_alt_names.is_empty()),
        ("httpsRedirect", tls.https_redirect),
    ];
    for (name, _) in unsupported.into_iter().filter(|(_, set)| *set) {
        out.error(format!("{field}.{name}"), "is not for sidecars: they serve certificates from files");
    }
    if matches!(tls.mode, ServerTlsMode::IstioMutual | ServerTlsMode::AutoPassthrough) {
        out.error(format!("{field}.mode"), "is not for sidecars: use SIMPLE or MUTUAL");
    }
    server_tls(tls, field, out);
}

fn server_tls(tls: &ServerTls, field: &str, out: &mut Report) {
    let terminates = matches!(tls.mode, ServerTlsMode::Simple | ServerTlsMode::Mutual | ServerTlsMode::OptionalMutual);
    let secret = !tls.credential_name.is_empty() || !tls.credential_names.is_empty();
    if terminates && !secret && tls.tls_certificates.is_empty() {
        for (name, value) in [("serverCertificate", &tls.server_certificate), ("privateKey", &tls.private_key)] {
            if value.is_empty() {
                out.error(format!("{field}.{name}"), "or credentialName is required");
            }
        }
        let mutual = tls.mode != ServerTlsMode::Simple;
        if mutual && tls.ca_certificates.is_empty() && tls.ca_cert_credential_name.is_empty() {
            out.error(format!("{field}.caCertificates"), "is required with client certificates and no credentialName");
        }
    }
    if tls.mode == ServerTlsMode::IstioMutual && (secret || !tls.server_certificate.is_empty()) {
        out.error(field, "ISTIO_MUTUAL uses the mesh's certificates: no credentialName and no files");
    }
    if !tls.credential_name.is_empty() && !tls.credential_names.is_empty() {
        out.error(field, "only one of credentialName and credentialNames is allowed");
    }
    if tls.min_protocol_version.is_some()
        && tls.max_protocol_version.is_some()
        && tls.max_protocol_version != Some(mesh_api::crd::networking::TlsProtocol::TlsAuto)
        && (tls.min_protocol_version.map(|v| v as u8) > tls.max_protocol_version.map(|v| v as u8))
    {
        out.error(format!("{field}.minProtocolVersion"), "is above maxProtocolVersion");
    }
    offered(tls, field, out);
}

/// What a server offers in the handshake.
fn offered(tls: &ServerTls, field: &str, out: &mut Report) {
    for (i, protocol) in tls.alpn_protocols.iter().enumerate() {
        if !(1..=255).contains(&protocol.len()) {
            out.error(format!("{field}.alpnProtocols[{i}]"), "must have 1 to 255 bytes");
        }
    }
    curves(&tls.ecdh_curves, &format!("{field}.ecdhCurves"), out);
    suites(&tls.cipher_suites, &format!("{field}.cipherSuites"), out);
    if tls.mode == ServerTlsMode::IstioMutual && !tls.ecdh_curves.is_empty() {
        let why = "has no effect: TLS with the mesh's certificates is 1.3 with groups of its own";
        out.findings.push(Finding::info(format!("{field}.ecdhCurves"), why));
    }
}

/// Cipher suites of TLS 1.2 by OpenSSL's names, `[A|B]` being a group of equal preference. Names that no proxy knows would
/// make it refuse the whole listener.
pub(super) fn suites(names: &[String], field: &str, out: &mut Report) {
    // Those without an AEAD are Envoy's only; mesh-proxy leaves them out.
    const KNOWN: [&str; 15] = [
        "ECDHE-ECDSA-AES128-GCM-SHA256",
        "ECDHE-RSA-AES128-GCM-SHA256",
        "ECDHE-ECDSA-AES256-GCM-SHA384",
        "ECDHE-RSA-AES256-GCM-SHA384",
        "ECDHE-ECDSA-CHACHA20-POLY1305",
        "ECDHE-RSA-CHACHA20-POLY1305",
        "ECDHE-ECDSA-AES128-SHA",
        "ECDHE-RSA-AES128-SHA",
        "ECDHE-ECDSA-AES256-SHA",
        "ECDHE-RSA-AES256-SHA",
        "AES128-GCM-SHA256",
        "AES256-GCM-SHA384",
        "AES128-SHA",
        "AES256-SHA",
        "DES-CBC3-SHA",
    ];
    for (i, entry) in names.iter().enumerate() {
        let group = entry.strip_prefix('[').and_then(|e| e.strip_suffix(']')).unwrap_or(entry);
        for name in group.split('|').filter(|name| !KNOWN.contains(name)) {
            out.error(format!("{field}[{i}]"), format!("{name:?} is not one of {}", KNOWN.join(", ")));
        }
    }
}

/// Groups of the key exchange, by BoringSSL's names. Names that no proxy knows would make it refuse the whole listener.
pub(super) fn curves(names: &[String], field: &str, out: &mut Report) {
    const SPOKEN: [&str; 4] = ["P-256", "P-384", "X25519", "X25519MLKEM768"];
    // mesh-proxy leaves them out.
    const ENVOY_ONLY: [&str; 3] = ["P-224", "P-521", "X25519Kyber768Draft00"];
    for (i, name) in names.iter().enumerate() {
        let field = format!("{field}[{i}]");
        if ENVOY_ONLY.contains(&name.as_str()) {
            out.warning(field, format!("mesh-proxy does not speak {name}: it offers the others only"));
        } else if !SPOKEN.contains(&name.as_str()) {
            out.error(field, format!("{name:?} is not one of {}, {}", SPOKEN.join(", "), ENVOY_ONLY.join(", ")));
        }
    }
    if !names.is_empty() && names.iter().all(|n| ENVOY_ONLY.contains(&n.as_str())) {
        out.error(field, format!("names none that mesh-proxy speaks: {}", SPOKEN.join(", ")));
    }
}

/// `NS/HOST` or `HOST`.
fn namespaced_host(field: &str, text: &str, special: &[&str], out: &mut Report) {
    let host = match text.split_once('/') {
        None => text,
        Some((namespace, host)) => {
            if !special.contains(&namespace) && !dns_label(namespace) {
                out.error(field, format!("{namespace:?} is not a namespace or one of {}", special.join(" ")));
            }
            host
        }
    };
    out.host(field, host);
}

pub(super) fn service_entry(entry: &ServiceEntry, out: &mut Report) {
    if entry.hosts.is_empty() {
        out.error("spec.hosts", "is required");
    }
    for (i, host) in entry.hosts.iter().enumerate() {
        let field = format!("spec.hosts[{i}]");
        if host == "*" {
            out.error(field, "\"*\" would take all traffic: name the hosts");
        } else {
            out.host(&field, host);
        }
    }
    for (i, address) in entry.addresses.iter().enumerate() {
        out.cidr(&format!("spec.addresses[{i}]"), address);
    }
    out.export_to("spec.exportTo", &entry.export_to);
    if entry.workload_selector.is_some() && !entry.endpoints.is_empty() {
        out.error("spec.endpoints", "only one of workloadSelector and endpoints is allowed");
    }
    for (i, port) in entry.ports.iter().enumerate() {
        let field = format!("spec.ports[{i}]");
        out.port(&format!("{field}.number"), port.number);
        if port.name.is_empty() {
            out.error(format!("{field}.name"), "is required");
        }
        if !port.protocol.is_empty() {
            protocol(&format!("{field}.protocol"), &port.protocol, out);
        }
        if entry.addresses.is_empty() && matches!(port.protocol.to_ascii_uppercase().as_str(), "" | "TCP") {
            let message = format!("every connection to port {} counts as one to these hosts", port.number);
            out.push(Finding::warning(&field, message).code("IST0134"));
        }
        let earlier = || entry.ports.iter().take(i);
        if earlier().any(|p| p.number == port.number) {
            out.error(format!("{field}.number"), format!("{} is declared twice", port.number));
        }
        if earlier().any(|p| p.name == port.name) {
            out.error(format!("{field}.name"), format!("{} is declared twice", port.name));
        }
    }
    let wildcard = entry.hosts.iter().any(|h| h.starts_with('*'));
    let dns = matches!(entry.resolution, Resolution::Dns | Resolution::DnsRoundRobin);
    match entry.resolution {
        Resolution::None if !entry.endpoints.is_empty() => {
            out.error("spec.endpoints", "must be empty with resolution NONE");
        }
        Resolution::Static if wildcard && entry.endpoints.is_empty() && entry.workload_selector.is_none() => {
            out.error("spec.endpoints", "are required for a wildcard host");
        }
        _ if dns && wildcard && entry.endpoints.is_empty() => {
            out.error("spec.resolution", "a wildcard host cannot be looked up: give endpoints or use NONE");
        }
        Resolution::DynamicDns => dynamic_dns(entry, out),
        _ => {}
    }
    if entry.resolution == Resolution::DnsRoundRobin && entry.endpoints.len() > 1 {
        out.error("spec.endpoints", "at most one with resolution DNS_ROUND_ROBIN");
    }
    for (i, endpoint) in entry.endpoints.iter().enumerate() {
        let field = format!("spec.endpoints[{i}]");
        let ip = endpoint.address.parse::<IpAddr>().is_ok();
        let unix = endpoint.address.starts_with("unix://");
        if entry.resolution == Resolution::Static && !ip && !unix {
            out.error(format!("{field}.address"), format!("{:?} is not an IP address", endpoint.address));
        } else if dns && !ip {
            out.host(&format!("{field}.address"), &endpoint.address);
        }
        for name in endpoint.ports.keys() {
            if !entry.ports.iter().any(|p| p.name == *name) {
                out.error(format!("{field}.ports.{name}"), "is not a port of this ServiceEntry");
            }
        }
        out.labels(&format!("{field}.labels"), &endpoint.labels);
    }
}

/// What a client says of the host is looked up: nothing else can be said of it, and clients must say it first.
fn dynamic_dns(entry: &ServiceEntry, out: &mut Report) {
    for (i, host) in entry.hosts.iter().enumerate().filter(|(_, h)| !h.starts_with('*')) {
        out.error(format!("spec.hosts[{i}]"), format!("{host:?} is no wildcard: use resolution DNS"));
    }
    if !entry.addresses.is_empty() {
        out.error("spec.addresses", "must be empty with resolution DYNAMIC_DNS");
    }
    if !entry.endpoints.is_empty() {
        out.error("spec.endpoints", "must be empty with resolution DYNAMIC_DNS");
    }
    for (i, port) in entry.ports.iter().enumerate() {
        if !matches!(port.protocol.to_ascii_uppercase().as_str(), "HTTP" | "HTTP2" | "GRPC" | "TLS") {
            let message =
                "must be HTTP, HTTP2, GRPC or TLS with resolution DYNAMIC_DNS: other clients do not say a host";
            out.error(format!("spec.ports[{i}].protocol"), message);
        }
    }
}

pub(super) fn workload_entry(entry: &WorkloadEntry, field: &str, out: &mut Report) {
    let group = field.ends_with("template");
    if entry.address.is_empty() {
        if !group && entry.network.is_empty() {
            out.error(format!("{field}.address"), "is required");
        }
    } else if group {
        out.error(format!("{field}.address"), "is filled in for each workload, leave it out");
    } else if !entry.address.starts_with("unix://") {
        out.host(&format!("{field}.address"), &entry.address);
    }
    out.labels(&format!("{field}.labels"), &entry.labels);
    for (name, port) in &entry.ports {
        out.port(&format!("{field}.ports.{name}"), *port);
    }
}

pub(super) fn sidecar(sidecar: &Sidecar, out: &mut Report) {
    let empty = sidecar.egress.is_empty()
        && sidecar.ingress.is_empty()
        && sidecar.outbound_traffic_policy.is_none()
        && sidecar.inbound_connection_pool.is_none();
    if empty {
        out.error("spec", "egress, ingress, inboundConnectionPool or outboundTrafficPolicy is required");
    }
    let ports: Vec<u16> = sidecar.ingress.iter().map(|l| l.port.number).collect();
    for (i, listener) in sidecar.ingress.iter().enumerate() {
        let field = format!("spec.ingress[{i}]");
        if let Some(tls) = &listener.tls {
            ingress_tls(tls, &format!("{field}.tls"), out);
            if !matches!(listener.port.protocol.to_ascii_uppercase().as_str(), "HTTPS" | "TLS") {
                out.error(format!("{field}.port.protocol"), "must be HTTPS or TLS where tls is set");
            }
        }
        out.port(&format!("{field}.port.number"), listener.port.number);
        protocol(&format!("{field}.port.protocol"), &listener.port.protocol, out);
        if ports.iter().take(i).any(|p| *p == listener.port.number) {
            out.error(format!("{field}.port.number"), "is declared twice");
        }
        if !listener.bind.is_empty() && listener.bind.parse::<IpAddr>().is_err() {
            out.error(format!("{field}.bind"), format!("{:?} is not an IP address", listener.bind));
        }
        if !listener.default_endpoint.is_empty() && !default_endpoint(&listener.default_endpoint) {
            let message = "must be 127.0.0.1:PORT, [::1]:PORT, 0.0.0.0:PORT, [::]:PORT or unix://PATH";
            out.error(format!("{field}.defaultEndpoint"), message);
        }
    }
    let mut catch_all = 0;
    for (i, listener) in sidecar.egress.iter().enumerate() {
        let field = format!("spec.egress[{i}]");
        if listener.hosts.is_empty() {
            out.error(format!("{field}.hosts"), "is required");
        }
        for (j, host) in listener.hosts.iter().enumerate() {
            if !host.contains('/') {
                out.error(format!("{field}.hosts[{j}]"), format!("{host:?} is not NAMESPACE/HOST"));
            } else {
                let host = host.strip_prefix('~').filter(|h| !h.starts_with('/')).unwrap_or(host);
                namespaced_host(&format!("{field}.hosts[{j}]"), host, &["*", ".", "~"], out);
            }
        }
        match &listener.port {
            Some(port) => protocol(&format!("{field}.port.protocol"), &port.protocol, out),
            None => {
                catch_all += 1;
                if !listener.bind.is_empty() && !listener.bind.starts_with("unix://") {
                    out.error(format!("{field}.bind"), "needs a port");
                }
            }
        }
    }
    if let Some(proxy) = sidecar.outbound_traffic_policy.as_ref().and_then(|p| p.egress_proxy.as_ref()) {
        out.destination_host("spec.outboundTrafficPolicy.egressProxy.host", &proxy.host);
    }
    if catch_all > 1 {
        out.error("spec.egress", "only one listener may have no port");
    }
}

fn default_endpoint(text: &str) -> bool {
    if let Some(path) = text.strip_prefix("unix://") {
        return path.starts_with('/') || path.starts_with('@');
    }
    text.parse::<std::net::SocketAddr>()
        .is_ok_and(|a| a.port() != 0 && (a.ip().is_loopback() || a.ip().is_unspecified()))
}
