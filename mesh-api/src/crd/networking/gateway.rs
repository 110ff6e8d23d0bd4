//! Gateway: servers of a gateway.
use crate::crd::is_false;
use crate::labels::Labels;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Servers of a gateway.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Gateway {
    /// Labels of the gateway's workload.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub selector: Labels,
    /// `servers`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub servers: Vec<Server>,
}

/// A port with hosts.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Server {
    /// `port`.
    pub port: Port,
    /// `bind`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub bind: String,
    /// `DNS` or `NS/DNS`; NS may be `.` or `*`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
    /// `tls`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<ServerTls>,
    /// `defaultEndpoint`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub default_endpoint: String,
    /// `name`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
}

/// A numbered, named port with its protocol.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Port {
    /// `number`.
    pub number: u16,
    /// `protocol`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub protocol: String,
    /// `name`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// `targetPort`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_port: Option<u16>,
}

/// TLS of a server.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ServerTls {
    /// `httpsRedirect`.
    #[serde(skip_serializing_if = "is_false")]
    pub https_redirect: bool,
    /// `mode`.
    pub mode: ServerTlsMode,
    /// `serverCertificate`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub server_certificate: String,
    /// `privateKey`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub private_key: String,
    /// `caCertificates`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub ca_certificates: String,
    /// `caCrl`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub ca_crl: String,
    /// `credentialName`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub credential_name: String,
    /// `credentialNames`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub credential_names: Vec<String>,
    /// `caCertCredentialName`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub ca_cert_credential_name: String,
    /// `tlsCertificates`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tls_certificates: Vec<TlsCertificateFiles>,
    /// `subjectAltNames`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub subject_alt_names: Vec<String>,
    /// `verifyCertificateSpki`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub verify_certificate_spki: Vec<String>,
    /// `verifyCertificateHash`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub verify_certificate_hash: Vec<String>,
    /// `minProtocolVersion`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_protocol_version: Option<TlsProtocol>,
    /// `maxProtocolVersion`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_protocol_version: Option<TlsProtocol>,
    /// `cipherSuites`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cipher_suites: Vec<String>,
    /// `insecureSkipVerify`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub insecure_skip_verify: Option<bool>,
    /// `ecdhCurves`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ecdh_curves: Vec<String>,
    /// `alpnProtocols`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub alpn_protocols: Vec<String>,
}

/// One of several certificates.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct TlsCertificateFiles {
    /// `serverCertificate`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub server_certificate: String,
    /// `privateKey`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub private_key: String,
    /// `caCertificates`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub ca_certificates: String,
}

/// TLS mode of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ServerTlsMode {
    #[default]
    /// `PASSTHROUGH`.
    Passthrough,
    /// `SIMPLE`.
    Simple,
    /// `MUTUAL`.
    Mutual,
    /// `AUTO_PASSTHROUGH`.
    AutoPassthrough,
    /// `ISTIO_MUTUAL`.
    IstioMutual,
    /// `OPTIONAL_MUTUAL`.
    OptionalMutual,
}

/// TLS versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum TlsProtocol {
    #[default]
    /// `TLS_AUTO`.
    TlsAuto,
    #[serde(rename = "TLSV1_0")]
    /// `TLSV1_0`.
    Tlsv1_0,
    #[serde(rename = "TLSV1_1")]
    /// `TLSV1_1`.
    Tlsv1_1,
    #[serde(rename = "TLSV1_2")]
    /// `TLSV1_2`.
    Tlsv1_2,
    #[serde(rename = "TLSV1_3")]
    /// `TLSV1_3`.
    Tlsv1_3,
}
