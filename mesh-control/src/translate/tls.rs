//! TLS towards upstreams: of the mesh's own, and what DestinationRules ask for.
//!
//! Owns names of secrets, server names, what a server must be called, ALPN. Must not know how secrets are made.

use std::collections::BTreeMap;

use mesh_api::{
    crd::networking::{ClientTls, ClientTlsMode},
    labels::TLS_MODE_ISTIO,
    meshconfig::MeshTls,
    model::{
        CertificateSource, Cluster, CommonTls, DataSource, Discovery, HttpVersionChoice, Name, SanKind, SanMatcher,
        SdsRef, SdsSource, StringMatcher, TlsMatch, TlsVersion, UpstreamTls, Validation, ValidationContext,
    },
};

pub use crate::index::named::CA_SUFFIX;
use crate::index::{EndpointFacts, Index, Service};

/// The bootstrap's cluster that serves workload certificates.
pub const SDS_CLUSTER: &str = "sds-grpc";
/// Secret with the workload's certificate.
pub const WORKLOAD_CERTIFICATE: &str = "default";
/// Secret with the mesh's trust anchors.
pub const MESH_ROOTS: &str = "ROOTCA";
/// Key in `envoy.transport_socket_match` by which endpoints say that they terminate mesh TLS.
pub const TLS_MODE_KEY: &str = "tlsMode";
/// Name of trust anchors that mean the system's.
const SYSTEM_ROOTS: &str = "system";

/// A secret that the workload's own agent serves.
pub fn local_secret(name: impl Into<Name>) -> SdsRef {
    SdsRef { name: name.into(), source: SdsSource::Cluster(SDS_CLUSTER.into()) }
}

/// A secret in the control plane's keeping.
pub fn credential(name: &str, suffix: &str) -> SdsRef {
    let name = if name.contains("://") { format!("{name}{suffix}") } else { format!("kubernetes://{name}{suffix}") };
    SdsRef { name: name.into(), source: SdsSource::Ads }
}

/// Certificate and key in files of the proxy.
pub fn file_certificate(chain: &str, key: &str) -> SdsRef {
    local_secret(format!("file-cert:{chain}~{key}"))
}

/// Trust anchors in a file of the proxy; empty: the system's.
pub fn file_roots(path: &str) -> SdsRef {
    local_secret(format!("file-root:{}", if path.is_empty() { SYSTEM_ROOTS } else { path }))
}

/// What servers of a service must be called: one of the identities of its workloads, in every trust domain, or of
/// the names its declaration lists. Empty: any workload of the mesh.
pub fn server_names(index: &Index, service: &Service, facts: &EndpointFacts) -> Vec<Name> {
    let domains: Vec<&str> = std::iter::once(index.trust_domain())
        .chain(index.mesh().trust_domain_aliases.iter().map(String::as_str))
        .collect();
    let mut out: Vec<Name> = facts
        .accounts
        .iter()
        .flat_map(|(ns, account)| {
            domains.iter().map(move |domain| {
                if account.starts_with("spiffe://") {
                    account.clone()
                } else {
                    format!("spiffe://{domain}/ns/{ns}/sa/{account}").into()
                }
            })
        })
        .chain(service.subject_alt_names.iter().cloned())
        .collect();
    out.sort();
    out.dedup();
    out
}

/// Mutual TLS with the workload's certificate.
pub fn mesh_tls(sni: &str, server_names: &[Name], http2: bool) -> UpstreamTls {
    let alpn: &[&str] = if http2 { &["istio-peer-exchange", "istio", "h2"] } else { &["istio-peer-exchange", "istio"] };
    UpstreamTls {
        common: CommonTls {
            certificates: vec![CertificateSource::Sds(local_secret(WORKLOAD_CERTIFICATE))],
            validation: Some(Validation { inline: names(server_names), sds: Some(local_secret(MESH_ROOTS)) }),
            alpn: alpn.iter().map(|a| (*a).into()).collect(),
            min_version: Some(TlsVersion::V1_3),
            max_version: Some(TlsVersion::V1_3),
            ..CommonTls::default()
        },
        sni: sni.into(),
        auto_host_sni: false,
        auto_sni_san_validation: false,
    }
}

/// Conditions on the server's names.
fn names(list: &[Name]) -> Option<ValidationContext> {
    if list.is_empty() {
        return None;
    }
    let matcher = |name: &Name| SanMatcher {
        kind: if name.contains("://") { SanKind::Uri } else { SanKind::Any },
        matcher: StringMatcher::exact(name.clone()),
    };
    Some(ValidationContext { san_matchers: list.iter().map(matcher).collect(), ..ValidationContext::default() })
}

/// Who asks for TLS, beside the rule itself.
#[derive(Debug)]
pub struct Origination<'a> {
    /// Default server name of mesh TLS.
    pub sni: &'a str,
    /// What servers of the service are called.
    pub server_names: &'a [Name],
    /// The names that the declaration itself lists.
    pub declared_names: &'a [Name],
    /// `tlsDefaults` of the mesh.
    pub defaults: Option<&'a MeshTls>,
}

/// TLS as a DestinationRule says.
pub fn originate(cluster: &mut Cluster, tls: &ClientTls, how: &Origination<'_>) {
    let http2 = cluster.http.version == HttpVersionChoice::Http2;
    match tls.mode {
        ClientTlsMode::Disable => cluster.tls = None,
        ClientTlsMode::IstioMutual => {
            let own: Vec<Name> = tls.subject_alt_names.iter().map(|s| s.as_str().into()).collect();
            let default = if by_request(cluster) { "" } else { how.sni };
            let sni = if tls.sni.is_empty() { default } else { &tls.sni };
            names_of_request(cluster, tls);
            cluster.tls = Some(mesh_tls(sni, if own.is_empty() { how.server_names } else { &own }, http2));
        }
        ClientTlsMode::Simple | ClientTlsMode::Mutual => simple(cluster, tls, how, http2),
    }
}

/// Which server it is depends on the request.
fn by_request(cluster: &Cluster) -> bool {
    matches!(cluster.discovery, Discovery::Dynamic(_))
}

/// A server that was looked up is asked for by the name that was looked up, and must have it.
fn names_of_request(cluster: &mut Cluster, tls: &ClientTls) {
    if by_request(cluster) {
        cluster.http.auto_sni = tls.sni.is_empty();
        cluster.http.auto_san_validation = tls.insecure_skip_verify != Some(true);
    }
}

fn simple(cluster: &mut Cluster, tls: &ClientTls, how: &Origination<'_>, http2: bool) {
    let mutual = tls.mode == ClientTlsMode::Mutual;
    let skip = tls.insecure_skip_verify == Some(true);
    let mut wanted: Vec<Name> = tls.subject_alt_names.iter().map(|s| s.as_str().into()).collect();
    if tls.sni.is_empty() {
        // Server name and expected name are those of the request.
        cluster.http.auto_sni = true;
        cluster.http.auto_san_validation = wanted.is_empty() && !skip;
    }
    names_of_request(cluster, tls);
    if wanted.is_empty() {
        wanted = how.declared_names.to_vec();
    }
    let mut common = CommonTls { max_version: Some(TlsVersion::V1_3), ..CommonTls::default() };
    let roots = if tls.credential_name.is_empty() {
        if mutual && !tls.client_certificate.is_empty() {
            let pair = file_certificate(&tls.client_certificate, &tls.private_key);
            common.certificates.push(CertificateSource::Sds(pair));
        }
        file_roots(&tls.ca_certificates)
    } else {
        // A proxy that may not read the credential is never served it, so its handshakes fail. Istio gives such a
        // sidecar cleartext instead, which gives away what was to be encrypted.
        if mutual {
            common.certificates.push(CertificateSource::Sds(credential(&tls.credential_name, "")));
        }
        credential(&tls.credential_name, CA_SUFFIX)
    };
    let roots = match tls.ca_cert_credential_name.as_str() {
        "" => roots,
        own => credential(own, CA_SUFFIX),
    };
    if !skip {
        let mut inline = names(&wanted);
        if !tls.ca_crl.is_empty() {
            inline.get_or_insert_default().crl = Some(DataSource::File(tls.ca_crl.as_str().into()));
        }
        common.validation = Some(Validation { inline, sds: Some(roots) });
    }
    if let Some(defaults) = how.defaults {
        common.ecdh_curves = defaults.ecdh_curves.iter().map(|c| c.as_str().into()).collect();
        common.cipher_suites = defaults.cipher_suites.iter().map(|c| c.as_str().into()).collect();
    }
    if http2 {
        common.alpn = vec!["h2".into()];
    }
    cluster.tls = Some(UpstreamTls {
        common,
        sni: tls.sni.as_str().into(),
        auto_host_sni: false,
        auto_sni_san_validation: false,
    });
}

/// Mesh TLS for the endpoints that can, cleartext for the others. Where the client chose the address no endpoint is
/// known, so it is one for all.
pub fn automatic(cluster: &mut Cluster, tls: UpstreamTls) {
    if matches!(cluster.discovery, Discovery::OriginalDst { .. }) {
        cluster.tls = Some(tls);
        return;
    }
    cluster.tls_matches = vec![
        TlsMatch {
            name: format!("tlsMode-{TLS_MODE_ISTIO}").into(),
            labels: BTreeMap::from([(TLS_MODE_KEY.to_owned(), TLS_MODE_ISTIO.to_owned())]),
            tls: Some(tls),
        },
        TlsMatch { name: "tlsMode-disabled".into(), labels: BTreeMap::new(), tls: None },
    ];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trust_anchors_of_their_own_replace_those_of_the_credential_and_the_systems() {
        for more in ["", ", credentialName: web", ", caCertificates: /etc/ca.pem"] {
            let rule = format!("{{mode: SIMPLE, caCertCredentialName: anchors{more}}}");
            let tls: ClientTls = mesh_api::yaml::from_str(&rule).unwrap();
            let mut cluster = Cluster::new("a", Discovery::Eds { service: "a".into() });
            let how = Origination { sni: "", server_names: &[], declared_names: &[], defaults: None };
            originate(&mut cluster, &tls, &how);
            let sds = cluster.tls.and_then(|t| t.common.validation).and_then(|v| v.sds);
            assert_eq!(sds, Some(credential("anchors", CA_SUFFIX)), "{rule}");
        }
    }
}
