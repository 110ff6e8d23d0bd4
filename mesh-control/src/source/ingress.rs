//! Slim forms of Kubernetes' Ingress and IngressClass. Knows nothing of what becomes of them.

use serde::{Deserialize, Serialize};

/// Annotation of an Ingress that names its class in the old way.
pub const CLASS_ANNOTATION: &str = "kubernetes.io/ingress.class";
/// Annotation of the IngressClass for Ingresses that name none.
pub const DEFAULT_CLASS_ANNOTATION: &str = "ingressclass.kubernetes.io/is-default-class";

/// `Ingress`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Ingress {
    /// IngressClass.
    pub ingress_class_name: Option<String>,
    /// For requests that no rule takes.
    pub default_backend: Option<Backend>,
    /// Certificates.
    pub tls: Vec<Tls>,
    /// Rules.
    pub rules: Vec<Rule>,
}

/// A certificate of an [`Ingress`].
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Tls {
    /// Hosts; empty: all.
    pub hosts: Vec<String>,
    /// Secret.
    pub secret_name: String,
}

/// A rule of an [`Ingress`].
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rule {
    /// Host, `*.suffix`, or empty: all.
    pub host: String,
    /// Paths.
    pub http: Option<Http>,
}

/// Paths of a [`Rule`].
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Http {
    /// Paths.
    pub paths: Vec<Path>,
}

/// A path with its backend.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Path {
    /// Path.
    pub path: String,
    /// `Exact`, `Prefix`, `ImplementationSpecific`.
    pub path_type: String,
    /// Where requests go.
    pub backend: Backend,
}

/// Where requests go: one of the two.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Backend {
    /// A Service of the Ingress' namespace.
    pub service: Option<ServiceBackend>,
    /// Anything else.
    pub resource: Option<serde_json::Value>,
}

/// A Service with a port.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceBackend {
    /// Name.
    pub name: String,
    /// Port.
    pub port: BackendPort,
}

/// A port by name or number.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BackendPort {
    /// Name; empty: by number.
    pub name: String,
    /// Number; 0: by name.
    pub number: u16,
}

/// `IngressClass`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct IngressClass {
    /// Who implements it, e.g. `istio.io/ingress-controller`.
    pub controller: String,
}
