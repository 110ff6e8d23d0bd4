//! TLS contexts (`envoy.extensions.transport_sockets.tls.v3`): what to present, what to demand.

use serde::Serialize;

use super::{Name, StringMatcher};

/// How a listener terminates TLS.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct DownstreamTls {
    /// Certificates, trust and protocol parameters.
    pub common: CommonTls,
    /// A client without a certificate is refused.
    pub require_client_certificate: bool,
}

/// How a cluster originates TLS.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct UpstreamTls {
    /// Certificates, trust and protocol parameters.
    pub common: CommonTls,
    /// Server name to send; empty: none.
    pub sni: Name,
    /// Send the request's host as SNI (`auto_host_sni`) when `sni` is empty.
    pub auto_host_sni: bool,
    /// Check the server's names against the SNI sent (`auto_sni_san_validation`).
    pub auto_sni_san_validation: bool,
}

/// `CommonTlsContext`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Default)]
pub struct CommonTls {
    /// Own certificates. Several: chosen by SNI.
    pub certificates: Vec<CertificateSource>,
    /// What the peer's certificate must be; `None`: it is not looked at.
    pub validation: Option<Validation>,
    /// ALPN protocols in order of preference.
    pub alpn: Vec<Name>,
    /// Lowest version; `None`: TLS 1.2.
    pub min_version: Option<TlsVersion>,
    /// Highest version; `None`: TLS 1.3 (Envoy's client default is 1.2).
    pub max_version: Option<TlsVersion>,
    /// TLS 1.2 cipher suites in OpenSSL names; empty: default.
    pub cipher_suites: Vec<Name>,
    /// Key exchange groups; empty: default.
    pub ecdh_curves: Vec<Name>,
}

/// TLS protocol versions that are supported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum TlsVersion {
    /// TLS 1.2.
    V1_2,
    /// TLS 1.3.
    V1_3,
}

/// Where a certificate and its key come from.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub enum CertificateSource {
    /// In the configuration.
    Inline(super::TlsCertificate),
    /// A secret by name.
    Sds(SdsRef),
}

/// A reference to a secret.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct SdsRef {
    /// Secret name: `default`, `ROOTCA`, `kubernetes://name`, `file-cert:CERT~KEY` ...
    pub name: Name,
    /// Who serves it.
    pub source: SdsSource,
}

/// Who serves a secret.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub enum SdsSource {
    /// The ADS stream.
    Ads,
    /// An own `StreamSecrets` stream to this cluster.
    Cluster(Name),
    /// A file that holds the resource, watched.
    Path(std::path::PathBuf),
    /// The static secrets of the bootstrap.
    Bootstrap,
}

/// What a peer's certificate must satisfy. All of the given conditions hold.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Default)]
pub struct Validation {
    /// Trust anchors in the configuration.
    pub inline: Option<super::ValidationContext>,
    /// Trust anchors by secret (combined with the conditions of `inline`).
    pub sds: Option<SdsRef>,
}

/// A condition on one subject alternative name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct SanMatcher {
    /// Kind of name.
    pub kind: SanKind,
    /// Its value.
    pub matcher: StringMatcher,
}

/// `SubjectAltNameMatcher.SanType`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub enum SanKind {
    /// DNS name (a certificate's wildcard is honoured for exact matchers).
    Dns,
    /// URI, as SPIFFE uses it.
    Uri,
    /// IP address.
    Ip,
    /// E-mail address.
    Email,
    /// Any kind: the old, untyped `match_subject_alt_names`.
    Any,
}
