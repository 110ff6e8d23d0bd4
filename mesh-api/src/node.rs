//! What a proxy says of itself: node id and node metadata, Istio's conventions.

use std::{collections::BTreeMap, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// What kind of proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeType {
    /// Beside an application.
    Sidecar,
    /// Gateway.
    Router,
}

/// `type~ip~name.namespace~namespace.svc.domain`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NodeId {
    /// Kind.
    pub kind: NodeType,
    /// Primary address.
    pub ip: String,
    /// Workload name (pod name).
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// DNS domain of the namespace.
    pub domain: String,
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            NodeType::Sidecar => "sidecar",
            NodeType::Router => "router",
        };
        write!(f, "{kind}~{}~{}.{}~{}", self.ip, self.name, self.namespace, self.domain)
    }
}

/// A node id that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("node id {0:?} is not of the form (sidecar|router)~IP~NAME.NAMESPACE~DOMAIN")]
pub struct BadNodeId(pub String);

impl FromStr for NodeId {
    type Err = BadNodeId;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let bad = || BadNodeId(s.to_owned());
        let parts: Vec<&str> = s.split('~').collect();
        let [kind, ip, name, domain] = parts.as_slice() else { return Err(bad()) };
        let kind = match *kind {
            "sidecar" => NodeType::Sidecar,
            "router" => NodeType::Router,
            _ => return Err(bad()),
        };
        let (name, namespace) = name.rsplit_once('.').ok_or_else(bad)?;
        if name.is_empty() || namespace.is_empty() {
            return Err(bad());
        }
        Ok(Self {
            kind,
            ip: (*ip).to_owned(),
            name: name.to_owned(),
            namespace: namespace.to_owned(),
            domain: (*domain).to_owned(),
        })
    }
}

/// Node metadata: keys that the control plane reads, and the rest.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE", default)]
pub struct NodeMetadata {
    /// Workload name.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// Labels of the workload.
    pub labels: BTreeMap<String, String>,
    /// Service account.
    pub service_account: String,
    /// Cluster id.
    pub cluster_id: String,
    /// Network.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub network: String,
    /// Mesh id.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mesh_id: String,
    /// Istio version the proxy claims.
    pub istio_version: String,
    /// Comma-separated addresses.
    pub instance_ips: String,
    /// `REDIRECT`, `TPROXY` or `NONE`.
    pub interception_mode: String,
    /// Owner, `kubernetes://apis/apps/v1/namespaces/NS/deployments/NAME`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub owner: String,
    /// Workload (deployment) name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub workload_name: String,
    /// `grpc` for proxyless clients.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub generator: String,
    /// Proxy configuration (`defaultConfig` merged with annotations).
    #[serde(skip_serializing_if = "serde_json::Value::is_null")]
    pub proxy_config: serde_json::Value,
    /// Port for explicit HTTP proxying (NONE interception), 0: none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub http_proxy_port: String,
    /// The application's DNS is answered beside the proxy, which so knows names that only the mesh does.
    #[serde(with = "flag", skip_serializing_if = "std::ops::Not::not")]
    pub dns_capture: bool,
    /// Where it is answered; empty: 127.0.0.1:15053.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub dns_proxy_addr: String,
    /// Keys of others.
    #[serde(flatten)]
    pub rest: BTreeMap<String, serde_json::Value>,
}

/// Flags of node metadata: agents write them as text.
mod flag {
    use serde::{Deserialize, Deserializer, Serializer};

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Told {
        Flag(bool),
        Text(String),
    }

    pub(super) fn serialize<S: Serializer>(on: &bool, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(if *on { "true" } else { "false" })
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<bool, D::Error> {
        Ok(match Told::deserialize(from)? {
            Told::Flag(on) => on,
            Told::Text(text) => matches!(text.as_str(), "true" | "1" | "t" | "T" | "TRUE" | "True"),
        })
    }
}

impl NodeMetadata {
    /// The text of any key; `None`: not there, or no text.
    pub fn text(&self, key: &str) -> Option<String> {
        let text = |value: &serde_json::Value| value.as_str().map(str::to_owned);
        match self.rest.get(key) {
            Some(value) => text(value),
            // What was not told is empty here.
            None => text(serde_json::to_value(self).ok()?.get(key)?).filter(|t| !t.is_empty()),
        }
    }

    /// All addresses.
    pub fn ips(&self) -> impl Iterator<Item = &str> {
        self.instance_ips.split(',').map(str::trim).filter(|s| !s.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_text_or_not() {
        for (told, on) in [("true", true), ("\"true\"", true), ("\"1\"", true), ("\"\"", false), ("false", false)] {
            let meta: NodeMetadata = serde_json::from_str(&format!("{{\"DNS_CAPTURE\": {told}}}")).unwrap();
            assert_eq!(meta.dns_capture, on, "{told}");
        }
        let told = NodeMetadata { dns_capture: true, ..NodeMetadata::default() };
        assert_eq!(serde_json::to_value(&told).unwrap()["DNS_CAPTURE"], "true");
    }

    #[test]
    fn any_key_can_be_asked_for() {
        let told = serde_json::json!({"ISTIO_VERSION": "1.29.0", "NAMESPACE": "", "TEAM": "a", "PODS": {"x": 1}});
        let metadata: NodeMetadata = serde_json::from_value(told).unwrap();
        assert_eq!(metadata.text("TEAM").as_deref(), Some("a"));
        assert_eq!(metadata.text("ISTIO_VERSION").as_deref(), Some("1.29.0"));
        for none in ["NAMESPACE", "PODS", "LABELS", "OTHER"] {
            assert_eq!(metadata.text(none), None, "{none}");
        }
    }

    #[test]
    fn node_ids() {
        let id: NodeId = "sidecar~10.1.2.3~web-1.shop~shop.svc.cluster.local".parse().unwrap();
        assert_eq!((id.name.as_str(), id.namespace.as_str()), ("web-1", "shop"));
        assert_eq!(id.to_string(), "sidecar~10.1.2.3~web-1.shop~shop.svc.cluster.local");
        for bad in ["", "sidecar~1~x", "ingress~1.1.1.1~a.b~c", "router~~nodot~d", "sidecar~1~.ns~d"] {
            assert!(bad.parse::<NodeId>().is_err(), "{bad}");
        }
    }
}
