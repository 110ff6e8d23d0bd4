//! The head as it arrived becomes the head that everything looks at: checked, normalised, marked with where it came
//! from. Done once, before routing.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use http::{HeaderName, HeaderValue, Version, header};
use mesh_api::model::{ForwardClientCert, StripPort, Underscores};

use super::super::headers;
use super::super::local_reply::{LocalReply, Reason};
use super::super::message::{Authority, RequestHead, Scheme, split_port};
use super::super::path::{self, Outcome};
use super::super::request_id::{self, HEADER as REQUEST_ID};
use super::super::stats::ExchangeStats;
use super::Session;

const XFF: HeaderName = HeaderName::from_static("x-forwarded-for");
const XF_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
const XFP: HeaderName = HeaderName::from_static("x-forwarded-proto");
const XFCC: HeaderName = HeaderName::from_static("x-forwarded-client-cert");
const EXTERNAL: HeaderName = HeaderName::from_static("x-envoy-external-address");

/// Headers by which this proxy is steered. Filters may set them; from clients they are taken off, all of which count as
/// outside, as they do in Envoy when nobody says which addresses are inside.
const CONTROL: [&str; 15] = [
    "x-envoy-expected-rq-timeout-ms",
    "x-envoy-force-trace",
    "x-envoy-hedge-on-per-try-timeout",
    "x-envoy-internal",
    "x-envoy-ip-tags",
    "x-envoy-max-retries",
    "x-envoy-original-url",
    "x-envoy-retriable-header-names",
    "x-envoy-retriable-status-codes",
    "x-envoy-retry-grpc-on",
    "x-envoy-retry-on",
    "x-envoy-upstream-alt-stat-name",
    "x-envoy-upstream-rq-per-try-timeout-ms",
    "x-envoy-upstream-rq-timeout-alt-response",
    "x-envoy-upstream-rq-timeout-ms",
];
/// Headers by which proxies tell each other what they are; from behind the edge only.
const TOLD: [&str; 3] =
    ["x-envoy-decorator-operation", "x-envoy-downstream-service-cluster", "x-envoy-downstream-service-node"];

/// Checks and normalises.
pub fn prepare(session: &Session, head: &mut RequestHead, stats: &mut ExchangeStats) -> Result<(), LocalReply> {
    let config = &session.manager.config;
    stats.request_header_bytes = super::respond::header_bytes(&head.headers);
    if head.version == Version::HTTP_10 && !config.accept_http_10 {
        return Err(Reason::LowVersion.into());
    }
    host(session, head)?;
    if config.underscores != Underscores::Allow {
        underscores(config.underscores, head)?;
    }
    normalize(session, head)?;
    stats.target = head.target.clone();
    stats.authority = head.authority.clone();
    forwarded(session, head, stats);
    client_certificate(session, head);
    request_id(session, head, stats);
    if let Some(via) = &session.manager.via {
        head.headers.append(header::VIA, via.clone());
    }
    Ok(())
}

fn host(session: &Session, head: &mut RequestHead) -> Result<(), LocalReply> {
    let config = &session.manager.config;
    if head.authority.is_empty() {
        let default = Authority::parse(&config.default_host_http_10).filter(|d| !d.is_empty());
        match default {
            Some(default) if head.version == Version::HTTP_10 => head.authority = default,
            _ => return Err(Reason::MissingHost.into()),
        }
    }
    let mut text = head.authority.as_str();
    if config.strip_port != StripPort::No {
        let (name, port) = split_port(text);
        let own = session.conn.local.port();
        let strip = config.strip_port == StripPort::Any || port.and_then(|p| p.parse().ok()) == Some(own);
        if strip {
            text = name;
        }
    }
    if config.strip_trailing_host_dot {
        text = text.strip_suffix('.').unwrap_or(text);
    }
    if text.len() != head.authority.as_str().len() {
        head.authority = Authority::parse(text).ok_or(LocalReply::from(Reason::InvalidHost))?;
    }
    Ok(())
}

fn underscores(action: Underscores, head: &mut RequestHead) -> Result<(), LocalReply> {
    let found: Vec<HeaderName> = head.headers.keys().filter(|n| n.as_str().contains('_')).cloned().collect();
    if found.is_empty() {
        return Ok(());
    }
    if action == Underscores::Reject {
        return Err(Reason::UnderscoreInHeader.into());
    }
    for name in found {
        head.headers.remove(name);
    }
    Ok(())
}

fn normalize(session: &Session, head: &mut RequestHead) -> Result<(), LocalReply> {
    if head.method == http::Method::CONNECT || (head.method == http::Method::OPTIONS && head.path() == "*") {
        return Ok(());
    }
    match path::normalize(&head.target, &session.manager.paths) {
        Outcome::Unchanged => Ok(()),
        Outcome::Changed(target) => {
            head.target = target;
            Ok(())
        }
        Outcome::Redirect(target) => {
            let mut reply = LocalReply::direct(307, bytes::Bytes::new());
            reply.reason = Reason::PathNormalizedRedirect;
            match HeaderValue::from_str(target.as_str()) {
                Ok(location) => Err(reply.with_header(header::LOCATION, location)),
                Err(_) => Err(Reason::PathNormalizationFailed.into()),
            }
        }
        Outcome::Reject => Err(Reason::PathNormalizationFailed.into()),
    }
}

/// `x-forwarded-for`, `x-forwarded-proto`, the client's address, and what the edge takes off.
fn forwarded(session: &Session, head: &mut RequestHead, stats: &mut ExchangeStats) {
    let config = &session.manager.config;
    let peer = session.conn.peer;
    let scheme = if session.conn.tls.is_some() { Scheme::Https } else { Scheme::Http };
    let hops = usize::try_from(config.xff_num_trusted_hops).unwrap_or(usize::MAX);
    let listed = last_forwarded(head, hops, config.use_remote_address);
    stats.client = listed.map_or(peer, |ip| SocketAddr::new(ip, 0));
    headers::remove(&mut head.headers, &CONTROL);
    if config.use_remote_address {
        headers::remove(&mut head.headers, &TOLD);
        if !config.skip_xff_append {
            append_forwarded(head, peer.ip());
        }
        if hops == 0 {
            head.headers.remove(XFP);
        }
        if config.append_x_forwarded_port && (hops == 0 || !head.headers.contains_key(XF_PORT)) {
            head.headers.insert(XF_PORT, HeaderValue::from(session.conn.local.port()));
        }
        if let Ok(value) = HeaderValue::from_str(&stats.client.ip().to_string()) {
            head.headers.insert(EXTERNAL, value);
        }
    }
    match head.headers.get(XFP).map(HeaderValue::as_bytes) {
        Some(b"https") => head.scheme = Scheme::Https,
        Some(b"http") => head.scheme = Scheme::Http,
        _ => {
            head.scheme = scheme;
            head.headers.insert(XFP, HeaderValue::from_static(scheme.as_str()));
        }
    }
    if let Some(scheme) = &config.scheme_override {
        head.scheme = if **scheme == *"https" { Scheme::Https } else { Scheme::Http };
    }
    stats.scheme = head.scheme;
}

/// The address that trusted proxies in front vouch for.
fn last_forwarded(head: &RequestHead, hops: usize, edge: bool) -> Option<IpAddr> {
    // At the edge the peer itself is the client unless proxies in front are trusted.
    let skip = if edge { hops.checked_sub(1)? } else { hops };
    let values = head.headers.get_all(XFF).iter().rev();
    let all = values.filter_map(|v| v.to_str().ok()).flat_map(|v| v.rsplit(','));
    all.map(str::trim).nth(skip)?.parse().ok()
}

fn append_forwarded(head: &mut RequestHead, ip: IpAddr) {
    let mut text = String::new();
    for value in head.headers.get_all(XFF).iter().filter_map(|v| v.to_str().ok()) {
        text.push_str(value);
        text.push(',');
    }
    // Writing into a String cannot fail.
    let _ = write!(text, "{ip}");
    if let Ok(value) = HeaderValue::from_str(&text) {
        head.headers.insert(XFF, value);
    }
}

/// `x-forwarded-client-cert`.
fn client_certificate(session: &Session, head: &mut RequestHead) {
    let config = &session.manager.config;
    let mutual = session.conn.tls.as_ref().is_some_and(|t| t.peer_presented());
    match config.forward_client_cert {
        ForwardClientCert::AlwaysForwardOnly => {}
        ForwardClientCert::ForwardOnly if mutual => {}
        ForwardClientCert::AppendForward if mutual => {
            if let Some(own) = certificate_element(session) {
                let before = head.headers.get_all(XFCC).iter().filter_map(|v| v.to_str().ok());
                let all: Vec<&str> = before.chain([own.as_str()]).collect();
                if let Ok(value) = HeaderValue::from_str(&all.join(",")) {
                    head.headers.insert(XFCC, value);
                }
            }
        }
        ForwardClientCert::SanitizeSet if mutual => {
            head.headers.remove(XFCC);
            if let Some(value) = certificate_element(session).and_then(|e| HeaderValue::from_str(&e).ok()) {
                head.headers.insert(XFCC, value);
            }
        }
        _ => {
            head.headers.remove(XFCC);
        }
    }
}

fn certificate_element(session: &Session) -> Option<String> {
    let tls = session.conn.tls.as_ref()?;
    let peer = tls.certificate.as_ref()?;
    let wanted = session.manager.config.client_cert_details;
    let mut parts = Vec::new();
    if let Some(local) = &tls.local {
        parts.extend(local.uri_sans.first().map(|uri| format!("By={uri}")));
    }
    parts.push(format!("Hash={}", peer.sha256()));
    if wanted.cert {
        let pem = pem(peer.der());
        parts.push(format!("Cert=\"{pem}\""));
    }
    if wanted.chain {
        let all: String = tls.chain.iter().map(|c| pem(c)).collect();
        parts.push(format!("Chain=\"{all}\""));
    }
    if wanted.subject {
        parts.push(format!("Subject=\"{}\"", peer.subject.replace('\\', "\\\\").replace('"', "\\\"")));
    }
    if wanted.uri {
        parts.extend(peer.uri_sans.iter().map(|uri| format!("URI={uri}")));
    }
    if wanted.dns {
        parts.extend(peer.dns_sans.iter().map(|dns| format!("DNS={dns}")));
    }
    Some(parts.join(";"))
}

/// A certificate as URL-encoded PEM.
pub fn pem(der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let mut out = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in text.as_bytes().chunks(64) {
        out.push_str(&String::from_utf8_lossy(line));
        out.push('\n');
    }
    out.push_str("-----END CERTIFICATE-----\n");
    percent_encoding::utf8_percent_encode(&out, percent_encoding::NON_ALPHANUMERIC).to_string()
}

fn request_id(session: &Session, head: &mut RequestHead, stats: &mut ExchangeStats) {
    let config = &session.manager.config;
    if config.use_remote_address {
        if !config.preserve_external_request_id {
            head.headers.remove(REQUEST_ID);
        } else if config.tracing.as_ref().is_some_and(|t| t.request_id.marks)
            && let Some(undecided) =
                head.headers.get(REQUEST_ID).and_then(|id| request_id::marked(id, request_id::Reason::Undecided))
        {
            // Who stands outside does not decide what is traced.
            head.headers.insert(REQUEST_ID, undecided);
        }
    }
    if config.generate_request_id && !head.headers.contains_key(REQUEST_ID) {
        let rng = &session.worker.rng;
        let bits = u128::from(rng.next_u64()) << 64 | u128::from(rng.next_u64());
        let id = uuid::Builder::from_random_bytes(bits.to_be_bytes()).into_uuid();
        let mut buffer = uuid::Uuid::encode_buffer();
        if let Ok(value) = HeaderValue::from_str(id.hyphenated().encode_lower(&mut buffer)) {
            head.headers.insert(REQUEST_ID, value);
        }
    }
    stats.request_id = head.headers.get(REQUEST_ID).cloned();
}
