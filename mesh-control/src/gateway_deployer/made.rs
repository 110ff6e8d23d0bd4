//! An object that is made for a Gateway, and the kinds there are.

use serde_json::Value;

/// Kinds of objects that are made, in the order in which they are to be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum MadeKind {
    /// Who the proxies are.
    ServiceAccount,
    /// How they are reached.
    Service,
    /// The proxies.
    Deployment,
    /// How many there are, if parameters ask for it.
    HorizontalPodAutoscaler,
    /// How many may be away, if parameters ask for it.
    PodDisruptionBudget,
}

impl MadeKind {
    /// Every kind.
    pub const ALL: [Self; 5] = [
        Self::ServiceAccount,
        Self::Service,
        Self::Deployment,
        Self::HorizontalPodAutoscaler,
        Self::PodDisruptionBudget,
    ];

    fn facts(self) -> (&'static str, &'static str, &'static str, &'static str) {
        match self {
            Self::ServiceAccount => ("", "v1", "ServiceAccount", "serviceAccount"),
            Self::Service => ("", "v1", "Service", "service"),
            Self::Deployment => ("apps", "v1", "Deployment", "deployment"),
            Self::HorizontalPodAutoscaler => {
                ("autoscaling", "v2", "HorizontalPodAutoscaler", "horizontalPodAutoscaler")
            }
            Self::PodDisruptionBudget => ("policy", "v1", "PodDisruptionBudget", "podDisruptionBudget"),
        }
    }

    /// API group; empty: core.
    pub fn group(self) -> &'static str {
        self.facts().0
    }

    /// Version.
    pub fn version(self) -> &'static str {
        self.facts().1
    }

    /// `kind`.
    pub fn name(self) -> &'static str {
        self.facts().2
    }

    /// Its key in a ConfigMap of parameters.
    pub fn parameter(self) -> &'static str {
        self.facts().3
    }

    /// Its name in paths.
    pub fn plural(self) -> String {
        format!("{}s", self.name().to_ascii_lowercase())
    }

    /// `apiVersion`.
    pub fn api_version(self) -> String {
        match self.group() {
            "" => self.version().to_owned(),
            group => format!("{group}/{}", self.version()),
        }
    }
}

/// An object that is to be there.
#[derive(Debug, Clone, PartialEq)]
pub struct Made {
    /// Kind.
    pub kind: MadeKind,
    /// Name.
    pub name: String,
    /// Content, as it is applied.
    pub value: Value,
    /// One that somebody else has made serves as well: the user has named it.
    pub may_be_anothers: bool,
}

/// Which object.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MadeKey {
    /// Namespace.
    pub namespace: String,
    /// Kind.
    pub kind: MadeKind,
    /// Name.
    pub name: String,
}

impl std::fmt::Display for MadeKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}/{}", self.kind.name(), self.namespace, self.name)
    }
}
