//! Istio's certificate service, `istio.v1.auth.IstioCertificateService`, as messages plus method path.
//! Client and server wire it up with tonic's generic codec, so no code generation is needed.

/// Path of the only method.
pub const CREATE_CERTIFICATE: &str = "/istio.v1.auth.IstioCertificateService/CreateCertificate";
/// Service name.
pub const SERVICE: &str = "istio.v1.auth.IstioCertificateService";

/// Name in the certificate of every control plane: what a proxy verifies when it was given an address instead of a name.
pub const SERVER_NAME: &str = "istiod.istio-system.svc";

/// `IstioCertificateRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CertificateRequest {
    /// PEM-encoded PKCS#10 request; only its public key is used.
    #[prost(string, tag = "1")]
    pub csr: String,
    /// Wished life in seconds.
    #[prost(int64, tag = "3")]
    pub validity_duration: i64,
    /// Keys `CertSigner`, `ImpersonatedIdentity`.
    #[prost(message, optional, tag = "4")]
    pub metadata: Option<prost_types::Struct>,
}

/// `IstioCertificateResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CertificateResponse {
    /// One PEM certificate each, leaf first; the last element is the bundle of all trusted roots.
    #[prost(string, repeated, tag = "1")]
    pub cert_chain: Vec<String>,
}
