//! TLS of servers as Gateways and Sidecars declare it.
//!
//! Owns modes, secrets by name, versions, ciphers, groups of the key exchange and protocols that are offered, with the
//! mesh's defaults. Must not know listeners.

use mesh_api::{
    crd::networking::{ServerTls, ServerTlsMode, TlsProtocol},
    meshconfig::MeshTls,
    model::{
        CertificateSource, CommonTls, DownstreamTls, Name, SanKind, SanMatcher, SdsSource, StringMatcher, TlsVersion,
        Validation, ValidationContext,
    },
};

use super::tls::{CA_SUFFIX, MESH_ROOTS, WORKLOAD_CERTIFICATE, credential, file_certificate, file_roots, local_secret};

/// What a server offers to clients.
const ALPN: [&str; 2] = ["h2", "http/1.1"];

/// The TLS context of a server; `None`: it does not terminate TLS, or has no certificate. `defaults` are the mesh's
/// (`tlsDefaults`); they are not for the mesh's own certificates.
pub fn context(tls: &ServerTls, defaults: Option<&MeshTls>) -> Option<DownstreamTls> {
    let mutual = match tls.mode {
        ServerTlsMode::Passthrough | ServerTlsMode::AutoPassthrough => return None,
        ServerTlsMode::Simple => false,
        ServerTlsMode::Mutual | ServerTlsMode::OptionalMutual | ServerTlsMode::IstioMutual => true,
    };
    let certificates = certificates(tls)?;
    let of_mesh = tls.mode == ServerTlsMode::IstioMutual;
    let defaults = defaults.filter(|_| !of_mesh);
    let most = version(tls.max_protocol_version);
    // A server that says it speaks nothing newer is not made to speak nothing at all.
    let least = defaults.filter(|d| d.min_protocol_version == "TLSV1_3" && most != Some(TlsVersion::V1_2));
    let least = least.map(|_| TlsVersion::V1_3);
    let names = |own: &[String], of_mesh: Option<&Vec<String>>| -> Vec<Name> {
        let chosen = if own.is_empty() { of_mesh.map_or(&[][..], Vec::as_slice) } else { own };
        chosen.iter().map(|name| name.as_str().into()).collect()
    };
    let common = CommonTls {
        certificates,
        validation: mutual.then(|| validation(tls)),
        alpn: if tls.alpn_protocols.is_empty() {
            ALPN.map(Name::from).into()
        } else {
            names(&tls.alpn_protocols, None)
        },
        min_version: version(tls.min_protocol_version).or(least).or(Some(TlsVersion::V1_2)),
        max_version: most,
        cipher_suites: names(&tls.cipher_suites, defaults.map(|d| &d.cipher_suites)),
        // Connections within the mesh choose their groups by themselves.
        ecdh_curves: if of_mesh { vec![] } else { names(&tls.ecdh_curves, defaults.map(|d| &d.ecdh_curves)) },
    };
    let required = mutual && tls.mode != ServerTlsMode::OptionalMutual;
    Some(DownstreamTls { common, require_client_certificate: required })
}

/// Whether a server takes its certificate or trust anchors from a secret in the control plane's keeping.
pub fn refers_to(tls: &ServerTls, secret: &str) -> bool {
    let mut names = tls.credential_names.iter().chain([&tls.credential_name, &tls.ca_cert_credential_name]);
    if !names.any(|n| !n.is_empty() && secret.contains(n.as_str())) {
        return false;
    }
    context(tls, None).is_some_and(|context| takes(&context.common, secret))
}

/// Whether a context takes a certificate or trust anchors from a secret in the control plane's keeping.
pub fn takes(tls: &CommonTls, secret: &str) -> bool {
    let own = tls.certificates.iter().filter_map(|c| match c {
        CertificateSource::Sds(sds) => Some(sds),
        CertificateSource::Inline(_) => None,
    });
    let roots = tls.validation.iter().filter_map(|v| v.sds.as_ref());
    own.chain(roots).any(|sds| sds.source == SdsSource::Ads && *sds.name == *secret)
}

fn certificates(tls: &ServerTls) -> Option<Vec<CertificateSource>> {
    if tls.mode == ServerTlsMode::IstioMutual {
        return Some(vec![CertificateSource::Sds(local_secret(WORKLOAD_CERTIFICATE))]);
    }
    let names: Vec<&str> = if tls.credential_names.is_empty() {
        Some(tls.credential_name.as_str()).filter(|n| !n.is_empty()).into_iter().collect()
    } else {
        tls.credential_names.iter().map(String::as_str).collect()
    };
    let out: Vec<CertificateSource> = if !names.is_empty() {
        names.into_iter().map(|n| CertificateSource::Sds(credential(n, ""))).collect()
    } else if !tls.tls_certificates.is_empty() {
        let files = tls.tls_certificates.iter();
        files.map(|f| CertificateSource::Sds(file_certificate(&f.server_certificate, &f.private_key))).collect()
    } else if !tls.server_certificate.is_empty() {
        vec![CertificateSource::Sds(file_certificate(&tls.server_certificate, &tls.private_key))]
    } else {
        vec![]
    };
    (!out.is_empty()).then_some(out)
}

fn validation(tls: &ServerTls) -> Validation {
    let names = tls.credential_names.first().unwrap_or(&tls.credential_name);
    let files = || tls.tls_certificates.iter().map(|f| &f.ca_certificates).find(|f| !f.is_empty());
    let roots = if tls.mode == ServerTlsMode::IstioMutual {
        local_secret(MESH_ROOTS)
    } else if !tls.ca_cert_credential_name.is_empty() {
        credential(&tls.ca_cert_credential_name, CA_SUFFIX)
    } else if !names.is_empty() {
        credential(names, CA_SUFFIX)
    } else {
        file_roots(if tls.ca_certificates.is_empty() {
            files().map_or("", String::as_str)
        } else {
            &tls.ca_certificates
        })
    };
    let names = tls.subject_alt_names.iter().map(|n| SanMatcher {
        kind: if n.contains("://") { SanKind::Uri } else { SanKind::Any },
        matcher: StringMatcher::exact(n.as_str()),
    });
    let inline = ValidationContext {
        san_matchers: names.collect(),
        spki_hashes: tls.verify_certificate_spki.iter().map(|h| h.as_str().into()).collect(),
        certificate_hashes: tls
            .verify_certificate_hash
            .iter()
            .map(|h| h.replace(':', "").to_ascii_lowercase().into())
            .collect(),
        crl: (!tls.ca_crl.is_empty()).then(|| mesh_api::model::DataSource::File(tls.ca_crl.as_str().into())),
        accept_untrusted: tls.insecure_skip_verify == Some(true),
        ..ValidationContext::default()
    };
    let inline = (inline != ValidationContext::default()).then_some(inline);
    Validation { inline, sds: Some(roots) }
}

/// Versions below 1.2 are not spoken.
fn version(v: Option<TlsProtocol>) -> Option<TlsVersion> {
    match v? {
        TlsProtocol::TlsAuto => None,
        TlsProtocol::Tlsv1_0 | TlsProtocol::Tlsv1_1 | TlsProtocol::Tlsv1_2 => Some(TlsVersion::V1_2),
        TlsProtocol::Tlsv1_3 => Some(TlsVersion::V1_3),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(yaml: &str) -> Option<DownstreamTls> {
        context(&serde_saphyr::from_str(yaml).unwrap(), None)
    }

    fn secrets(tls: &DownstreamTls) -> Vec<String> {
        let own = tls.common.certificates.iter().map(|c| match c {
            CertificateSource::Sds(s) => s.name.to_string(),
            CertificateSource::Inline(_) => unreachable!(),
        });
        let roots = tls.common.validation.iter().filter_map(|v| v.sds.as_ref()).map(|s| s.name.to_string());
        own.chain(roots).collect()
    }

    #[test]
    fn modes() {
        let simple = read("{mode: SIMPLE, credentialName: web, minProtocolVersion: TLSV1_3}").unwrap();
        assert_eq!(secrets(&simple), ["kubernetes://web"]);
        assert_eq!(simple.common.min_version, Some(TlsVersion::V1_3));
        let mutual = read("{mode: MUTUAL, credentialName: web, subjectAltNames: [client.test]}").unwrap();
        assert_eq!(secrets(&mutual), ["kubernetes://web", "kubernetes://web-cacert"]);
        assert!(mutual.require_client_certificate);
        let optional = read("{mode: OPTIONAL_MUTUAL, credentialName: web}").unwrap();
        assert!(!optional.require_client_certificate && optional.common.validation.is_some());
        let files = read("{mode: MUTUAL, serverCertificate: /c, privateKey: /k, caCertificates: /ca}").unwrap();
        assert_eq!(secrets(&files), ["file-cert:/c~/k", "file-root:/ca"]);
        let mesh = read("{mode: ISTIO_MUTUAL}").unwrap();
        assert_eq!(secrets(&mesh), ["default", "ROOTCA"]);
        assert!(read("{mode: PASSTHROUGH}").is_none());
        assert!(read("{mode: SIMPLE}").is_none(), "no certificate, no context");
    }

    #[test]
    fn what_is_offered_is_the_servers_word_else_the_meshs() {
        let defaults: MeshTls =
            serde_saphyr::from_str("{minProtocolVersion: TLSV1_3, ecdhCurves: [P-256], cipherSuites: [A]}").unwrap();
        let offered = |yaml: &str| {
            let common = context(&serde_saphyr::from_str(yaml).unwrap(), Some(&defaults)).unwrap().common;
            let text = |names: &[Name]| names.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
            (text(&common.alpn), text(&common.ecdh_curves), text(&common.cipher_suites), common.min_version)
        };
        let own = "{mode: SIMPLE, credentialName: a, alpnProtocols: [http/1.1], ecdhCurves: [P-384, X25519], \
                   minProtocolVersion: TLSV1_2, cipherSuites: [B]}";
        let expected = ("http/1.1".to_owned(), "P-384,X25519".to_owned(), "B".to_owned(), Some(TlsVersion::V1_2));
        assert_eq!(offered(own), expected);
        let bare = offered("{mode: MUTUAL, credentialName: a}");
        assert_eq!(bare, ("h2,http/1.1".to_owned(), "P-256".to_owned(), "A".to_owned(), Some(TlsVersion::V1_3)));
        let mesh = offered("{mode: ISTIO_MUTUAL, ecdhCurves: [P-384]}");
        assert_eq!(mesh, ("h2,http/1.1".to_owned(), String::new(), String::new(), Some(TlsVersion::V1_2)));
    }
}
