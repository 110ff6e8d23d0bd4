//! Transport sockets and secrets.

use mesh_api::model::{
    CertificateSource, CommonTls, DataSource, DownstreamTls, PrivateData, SanKind, SanMatcher, Secret, SecretKind,
    TlsCertificate, TlsVersion, UpstreamTls, Validation, ValidationContext,
};

use super::values::{has_tls_params, sds, string_matcher};
use super::wire::Message;

const TLS: &str = "envoy.transport_sockets.tls";
const RAW_BUFFER: &str = "envoy.transport_sockets.raw_buffer";
const PROXY_PROTOCOL: &str = "envoy.transport_sockets.upstream_proxy_protocol";

/// `TransportSocket` with a typed configuration.
fn transport_socket(name: &str, type_url: &str, config: Message) -> Message {
    Message::new().str(1, name).msg(3, Message::any(type_url, config))
}

/// Transport socket that terminates TLS.
pub fn downstream(tls: &DownstreamTls) -> Message {
    let config = Message::new()
        .msg(1, common(&tls.common))
        .wrapped_bool(2, tls.require_client_certificate)
        // No resumption: a session would outlive the policy that allowed it.
        .bool(10, true)
        // Likewise no tickets (session_ticket_keys_type.disable_stateless_session_resumption).
        .bool_always(7, true);
    transport_socket(TLS, "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext", config)
}

/// Transport socket that originates TLS, or cleartext.
pub fn upstream(tls: Option<&UpstreamTls>) -> Message {
    let Some(tls) = tls else {
        return transport_socket(
            RAW_BUFFER,
            "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer",
            Message::new(),
        );
    };
    let config = Message::new()
        .msg(1, common(&tls.common))
        .str(2, &tls.sni)
        // max_session_keys 0: no resumption.
        .wrapped(4, 0u32)
        .bool(6, tls.auto_host_sni)
        .bool(7, tls.auto_sni_san_validation);
    transport_socket(TLS, "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext", config)
}

/// Sends a PROXY protocol header of version 1 or 2 in front of `inner`.
pub fn with_proxy_protocol(version: u8, inner: Message) -> Message {
    let config = Message::new().msg(1, Message::new().uint(1, u64::from(version == 2))).msg(2, inner);
    let url = "envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport";
    transport_socket(PROXY_PROTOCOL, url, config)
}

fn common(tls: &CommonTls) -> Message {
    let mut message = Message::new();
    if has_tls_params(tls) {
        let version = |v: Option<TlsVersion>| match v {
            None => 0,
            Some(TlsVersion::V1_2) => 3,
            Some(TlsVersion::V1_3) => 4,
        };
        let params = Message::new()
            .uint(1, version(tls.min_version))
            .uint(2, version(tls.max_version))
            .strs(3, &tls.cipher_suites)
            .strs(4, &tls.ecdh_curves);
        message = message.msg(1, params);
    }
    for source in &tls.certificates {
        message = match source {
            CertificateSource::Inline(certificate) => message.msg(2, tls_certificate(certificate)),
            CertificateSource::Sds(secret) => message.msg(6, sds(secret)),
        };
    }
    message = match &tls.validation {
        None => message,
        Some(Validation { inline: Some(inline), sds: None }) => message.msg(3, validation(inline)),
        Some(Validation { inline: None, sds: Some(secret) }) => message.msg(7, sds(secret)),
        Some(Validation { inline: Some(inline), sds: Some(secret) }) => {
            message.msg(8, Message::new().msg(1, validation(inline)).msg(2, sds(secret)))
        }
        Some(Validation { inline: None, sds: None }) => message.msg(3, Message::new()),
    };
    message.strs(4, &tls.alpn)
}

fn data_source(source: &DataSource) -> Message {
    match source {
        DataSource::File(path) => Message::new().str(1, &path.to_string_lossy()),
        DataSource::Inline(text) => Message::new().str_always(3, text),
    }
}

fn tls_certificate(certificate: &TlsCertificate) -> Message {
    let PrivateData(key) = &certificate.key;
    Message::new().msg(1, data_source(&certificate.chain)).msg(2, data_source(key))
}

fn validation(context: &ValidationContext) -> Message {
    let mut message = Message::new()
        .maybe(1, context.trusted_ca.as_ref().map(data_source))
        .strs(2, &context.certificate_hashes)
        .strs(3, &context.spki_hashes)
        .maybe(7, context.crl.as_ref().map(data_source))
        .uint(10, u64::from(context.accept_untrusted));
    if !context.spiffe_trust_domains.is_empty() {
        let domain = |(name, bundle): &(mesh_api::model::Name, DataSource)| {
            Message::new().str(1, name).msg(2, data_source(bundle))
        };
        let config = Message::new().msgs(1, context.spiffe_trust_domains.iter().map(domain));
        let url = "envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig";
        let extension = Message::new().str(1, "envoy.tls.cert_validator.spiffe").msg(2, Message::any(url, config));
        message = message.msg(12, extension);
    }
    for matcher in &context.san_matchers {
        message = match matcher.kind {
            SanKind::Any => message.msg(9, string_matcher(&matcher.matcher)),
            _ => message.msg(15, san_matcher(matcher)),
        };
    }
    if context.system_roots {
        message = message.msg(17, Message::new());
    }
    message
}

fn san_matcher(matcher: &SanMatcher) -> Message {
    let kind = match matcher.kind {
        SanKind::Any => 0,
        SanKind::Email => 1,
        SanKind::Dns => 2,
        SanKind::Uri => 3,
        SanKind::Ip => 4,
    };
    Message::new().uint(1, kind).msg(2, string_matcher(&matcher.matcher))
}

/// `Secret`.
pub fn secret(secret: &Secret) -> Message {
    let message = Message::new().str(1, &secret.name);
    match &secret.kind {
        SecretKind::Certificate(certificate) => message.msg(2, tls_certificate(certificate)),
        SecretKind::Validation(context) => message.msg(4, validation(context)),
    }
}
