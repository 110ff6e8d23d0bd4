//! Transport sockets and secrets.

use std::path::PathBuf;

use mesh_api::model::{
    CertificateSource, CommonTls, DataSource, DownstreamTls, Name, PrivateData, SanKind, SanMatcher, SdsRef, SdsSource,
    Secret, SecretKind, TlsCertificate, TlsVersion, UpstreamTls, Validation, ValidationContext,
};
use mesh_api::xds::envoy::config::core::v3 as core;
use mesh_api::xds::envoy::extensions::transport_sockets::proxy_protocol::v3::ProxyProtocolUpstreamTransport;
use mesh_api::xds::envoy::extensions::transport_sockets::tls::v3 as proto;

use super::Result;
use super::at::At;
use super::values::{bool_or, lower, names, string_matcher, type_name, unpack};

/// What a transport socket of a cluster means.
pub struct UpstreamSocket {
    pub tls: Option<UpstreamTls>,
    pub proxy_protocol: Option<u8>,
}

fn config<'a>(
    at: &At<'_>,
    socket: &'a core::TransportSocket,
) -> Result<Option<&'a mesh_api::xds::google::protobuf::Any>> {
    use core::transport_socket::ConfigType::TypedConfig;
    match &socket.config_type {
        Some(TypedConfig(any)) => Ok(Some(any)),
        None if socket.name.ends_with("raw_buffer") => Ok(None),
        None => at.refuse(format!("{:?} has no typed_config", socket.name)),
    }
}

/// `None`: cleartext.
pub fn downstream(at: &At<'_>, socket: &core::TransportSocket) -> Result<Option<DownstreamTls>> {
    let Some(any) = config(at, socket)? else { return Ok(None) };
    let at = at.field("typed_config");
    match type_name(any) {
        "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer" => Ok(None),
        "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext" => {
            let context: proto::DownstreamTlsContext = unpack(&at, any)?;
            let common = common(&at.field("common_tls_context"), context.common_tls_context.as_ref())?;
            if common.certificates.is_empty() {
                return at.refuse("has no certificate");
            }
            let require_client_certificate = bool_or(context.require_client_certificate, false);
            Ok(Some(DownstreamTls { common, require_client_certificate }))
        }
        other => at.refuse(format!("transport socket {other} is not supported")),
    }
}

pub fn upstream(at: &At<'_>, socket: &core::TransportSocket) -> Result<UpstreamSocket> {
    let plain = UpstreamSocket { tls: None, proxy_protocol: None };
    let Some(any) = config(at, socket)? else { return Ok(plain) };
    let at = at.field("typed_config");
    match type_name(any) {
        "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer" => Ok(plain),
        "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext" => {
            let context: proto::UpstreamTlsContext = unpack(&at, any)?;
            let tls = UpstreamTls {
                common: common(&at.field("common_tls_context"), context.common_tls_context.as_ref())?,
                sni: context.sni.to_ascii_lowercase().into(),
                auto_host_sni: context.auto_host_sni,
                auto_sni_san_validation: context.auto_sni_san_validation,
            };
            Ok(UpstreamSocket { tls: Some(UpstreamTls { sni: context.sni.into(), ..tls }), proxy_protocol: None })
        }
        "envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport" => {
            let context: ProxyProtocolUpstreamTransport = unpack(&at, any)?;
            let inner = match &context.transport_socket {
                Some(inner) => upstream(&at.field("transport_socket"), inner)?,
                None => plain,
            };
            let version = context.config.map_or(0, |c| c.version);
            Ok(UpstreamSocket { proxy_protocol: Some(if version == 1 { 2 } else { 1 }), ..inner })
        }
        other => at.refuse(format!("transport socket {other} is not supported")),
    }
}

fn version(at: &At<'_>, value: i32) -> Result<Option<TlsVersion>> {
    use proto::tls_parameters::TlsProtocol as P;
    match P::try_from(value) {
        Ok(P::TlsAuto) => Ok(None),
        // There is nothing below 1.2; asking for less gets that.
        Ok(P::TlSv10 | P::TlSv11 | P::TlSv12) => Ok(Some(TlsVersion::V1_2)),
        Ok(P::TlSv13) => Ok(Some(TlsVersion::V1_3)),
        Err(_) => at.refuse("is not a TLS version"),
    }
}

fn common(at: &At<'_>, context: Option<&proto::CommonTlsContext>) -> Result<CommonTls> {
    let Some(context) = context else { return Ok(CommonTls::default()) };
    let mut tls = CommonTls { alpn: names(&context.alpn_protocols), ..CommonTls::default() };
    if let Some(params) = &context.tls_params {
        let at = at.field("tls_params");
        tls.min_version = version(&at.field("tls_minimum_protocol_version"), params.tls_minimum_protocol_version)?;
        tls.max_version = version(&at.field("tls_maximum_protocol_version"), params.tls_maximum_protocol_version)?;
        tls.cipher_suites = names(&params.cipher_suites);
        tls.ecdh_curves = names(&params.ecdh_curves);
    }
    for (i, certificate) in context.tls_certificates.iter().enumerate() {
        let certificate = tls_certificate(&at.item("tls_certificates", i), certificate)?;
        tls.certificates.push(CertificateSource::Inline(certificate));
    }
    for (i, config) in context.tls_certificate_sds_secret_configs.iter().enumerate() {
        let at = at.item("tls_certificate_sds_secret_configs", i);
        tls.certificates.push(CertificateSource::Sds(sds(&at, config)?));
    }
    use proto::common_tls_context::ValidationContextType as V;
    tls.validation = match &context.validation_context_type {
        None => None,
        Some(V::ValidationContext(c)) => {
            let inline = validation(&at.field("validation_context"), c)?;
            Some(Validation { inline: Some(inline), sds: None })
        }
        Some(V::ValidationContextSdsSecretConfig(c)) => {
            let secret = sds(&at.field("validation_context_sds_secret_config"), c)?;
            Some(Validation { inline: None, sds: Some(secret) })
        }
        Some(V::CombinedValidationContext(c)) => {
            let at = at.field("combined_validation_context");
            let inline = c.default_validation_context.as_ref();
            let inline = inline.map(|c| validation(&at.field("default_validation_context"), c)).transpose()?;
            let config = at.required(c.validation_context_sds_secret_config.as_ref())?;
            Some(Validation { inline, sds: Some(sds(&at.field("validation_context_sds_secret_config"), config)?) })
        }
        Some(_) => return at.refuse("certificate providers are not supported"),
    };
    if context.tls_certificate_provider_instance.is_some() || context.custom_handshaker.is_some() {
        return at.refuse("certificate providers and custom handshakers are not supported");
    }
    Ok(tls)
}

fn sds(at: &At<'_>, config: &proto::SdsSecretConfig) -> Result<SdsRef> {
    use core::config_source::ConfigSourceSpecifier as S;
    if config.name.is_empty() {
        return at.field("name").refuse("is required");
    }
    let source = match config.sds_config.as_ref().map(|c| &c.config_source_specifier) {
        None => SdsSource::Bootstrap,
        Some(Some(S::Ads(_))) => SdsSource::Ads,
        Some(Some(S::ApiConfigSource(api))) => SdsSource::Cluster(api_cluster(&at.field("sds_config"), api)?),
        Some(Some(S::PathConfigSource(p))) => SdsSource::Path(PathBuf::from(&p.path)),
        #[allow(deprecated)]
        Some(Some(S::Path(p))) => SdsSource::Path(PathBuf::from(p)),
        Some(_) => return at.field("sds_config").refuse("names no source that is supported"),
    };
    Ok(SdsRef { name: config.name.as_str().into(), source })
}

/// The cluster of the one gRPC service of an API source.
pub fn api_cluster(at: &At<'_>, api: &core::ApiConfigSource) -> Result<Name> {
    use core::grpc_service::TargetSpecifier;
    match api.grpc_services.first().and_then(|s| s.target_specifier.as_ref()) {
        Some(TargetSpecifier::EnvoyGrpc(grpc)) => Ok(grpc.cluster_name.as_str().into()),
        Some(TargetSpecifier::GoogleGrpc(_)) => at.refuse("google_grpc is not supported, use envoy_grpc"),
        None => at.refuse("names no gRPC service"),
    }
}

pub(super) fn data_source(at: &At<'_>, source: &core::DataSource) -> Result<DataSource> {
    use core::data_source::Specifier as S;
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).map(Name::from).map_err(|_| at.error("is not text"));
    Ok(match at.required(source.specifier.as_ref())? {
        S::Filename(path) => DataSource::File(PathBuf::from(path)),
        S::InlineBytes(bytes) => DataSource::Inline(text(bytes)?),
        S::InlineString(text) => DataSource::Inline(text.as_str().into()),
        S::EnvironmentVariable(name) => {
            let value = std::env::var(name).map_err(|_| at.error(format!("environment variable {name} is not set")))?;
            DataSource::Inline(value.into())
        }
    })
}

fn tls_certificate(at: &At<'_>, certificate: &proto::TlsCertificate) -> Result<TlsCertificate> {
    if certificate.pkcs12.is_some() || certificate.private_key_provider.is_some() || certificate.password.is_some() {
        return at.refuse("PKCS#12, private key providers and encrypted keys are not supported");
    }
    let chain = at.field("certificate_chain");
    let key = at.field("private_key");
    Ok(TlsCertificate {
        chain: data_source(&chain, chain.required(certificate.certificate_chain.as_ref())?)?,
        key: PrivateData(data_source(&key, key.required(certificate.private_key.as_ref())?)?),
    })
}

fn validation(at: &At<'_>, context: &proto::CertificateValidationContext) -> Result<ValidationContext> {
    use proto::certificate_validation_context::TrustChainVerification;
    if context.allow_expired_certificate || context.ca_certificate_provider_instance.is_some() {
        return at.refuse("expired certificates and certificate providers are not supported");
    }
    let mut out = ValidationContext {
        trusted_ca: context.trusted_ca.as_ref().map(|d| data_source(&at.field("trusted_ca"), d)).transpose()?,
        system_roots: context.system_root_certs.is_some(),
        spki_hashes: names(&context.verify_certificate_spki),
        certificate_hashes: lower(&context.verify_certificate_hash)
            .iter()
            .map(|h| h.chars().filter(|c| *c != ':').collect::<String>().into())
            .collect(),
        crl: context.crl.as_ref().map(|d| data_source(&at.field("crl"), d)).transpose()?,
        accept_untrusted: context.trust_chain_verification == TrustChainVerification::AcceptUntrusted as i32,
        ..ValidationContext::default()
    };
    for (i, matcher) in context.match_typed_subject_alt_names.iter().enumerate() {
        out.san_matchers.push(san_matcher(&at.item("match_typed_subject_alt_names", i), matcher)?);
    }
    #[allow(deprecated)] // the older, untyped list
    for (i, matcher) in context.match_subject_alt_names.iter().enumerate() {
        let matcher = string_matcher(&at.item("match_subject_alt_names", i), matcher)?;
        out.san_matchers.push(SanMatcher { kind: SanKind::Any, matcher });
    }
    if let Some(custom) = &context.custom_validator_config {
        let at = at.field("custom_validator_config");
        let any = at.required(custom.typed_config.as_ref())?;
        if !type_name(any).ends_with("SPIFFECertValidatorConfig") {
            return at.refuse(format!("validator {:?} is not supported", custom.name));
        }
        let config: proto::SpiffeCertValidatorConfig = unpack(&at, any)?;
        for (i, domain) in config.trust_domains.iter().enumerate() {
            let at = at.item("trust_domains", i);
            let bundle = data_source(&at, at.required(domain.trust_bundle.as_ref())?)?;
            out.spiffe_trust_domains.push((domain.name.as_str().into(), bundle));
        }
    }
    Ok(out)
}

fn san_matcher(at: &At<'_>, m: &proto::SubjectAltNameMatcher) -> Result<SanMatcher> {
    use proto::subject_alt_name_matcher::SanType;
    let kind = match SanType::try_from(m.san_type) {
        Ok(SanType::Email) => SanKind::Email,
        Ok(SanType::Dns) => SanKind::Dns,
        Ok(SanType::Uri) => SanKind::Uri,
        Ok(SanType::IpAddress) => SanKind::Ip,
        _ => return at.field("san_type").refuse("is not a kind of name that is supported"),
    };
    Ok(SanMatcher { kind, matcher: string_matcher(&at.field("matcher"), at.required(m.matcher.as_ref())?)? })
}

pub fn secret(at: &At<'_>, secret: &proto::Secret) -> Result<Secret> {
    use proto::secret::Type;
    let kind = match at.required(secret.r#type.as_ref())? {
        Type::TlsCertificate(c) => SecretKind::Certificate(tls_certificate(&at.field("tls_certificate"), c)?),
        Type::ValidationContext(c) => SecretKind::Validation(validation(&at.field("validation_context"), c)?),
        Type::SessionTicketKeys(_) | Type::GenericSecret(_) => {
            return at.refuse("session ticket keys and generic secrets are not supported");
        }
    };
    Ok(Secret { name: secret.name.as_str().into(), kind })
}
