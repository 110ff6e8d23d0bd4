//! What a client says of itself in the first request of a stream.
//!
//! Owns the decoding of Envoy's `Node` and its limits. Must not know what the mesh makes of it.

use std::net::{IpAddr, SocketAddr};

use mesh_api::{
    node::{NodeId, NodeMetadata},
    xds::{envoy::config::core::v3 as core, google::protobuf},
};
use prost::Message;
use serde_json::Value;

use super::caller::Caller;

/// Most bytes of an encoded `Node`. Istio's agents send some 5 KB; labels and annotations may blow it up.
pub const MAX_NODE_BYTES: usize = 256 << 10;
/// Deepest nesting of node metadata.
const MAX_DEPTH: usize = 16;

/// Region, zone, sub-zone.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Locality {
    /// Region.
    pub region: String,
    /// Zone.
    pub zone: String,
    /// Sub-zone.
    pub sub_zone: String,
}

/// A client of the stream, as it describes itself, and who it is known to be.
#[derive(Debug, Clone)]
pub struct Client {
    /// The node id as sent.
    pub raw_id: String,
    /// The node id, taken apart.
    pub id: NodeId,
    /// `Node.cluster`.
    pub cluster: String,
    /// Node metadata that the control plane reads.
    pub metadata: NodeMetadata,
    /// All of the node metadata.
    pub raw_metadata: Value,
    /// `Node.locality`.
    pub locality: Locality,
    /// `envoy`, `gRPC C-core`, `mesh-proxy` ...
    pub user_agent: String,
    /// Its version, as far as it is told.
    pub user_agent_version: String,
    /// `Node.client_features`.
    pub features: Vec<String>,
    /// Who opened the stream.
    pub caller: Caller,
    /// Peer of the connection.
    pub peer: Option<SocketAddr>,
}

impl Client {
    /// Reads a node.
    ///
    /// # Errors
    /// A text for the client when it is too large or cannot be read.
    pub fn read(node: &core::Node, caller: Caller, peer: Option<SocketAddr>) -> Result<Self, String> {
        let size = node.encoded_len();
        if size > MAX_NODE_BYTES {
            return Err(format!("node has {size} bytes, at most {MAX_NODE_BYTES} are accepted"));
        }
        let id: NodeId = node.id.parse().map_err(|e: mesh_api::node::BadNodeId| e.to_string())?;
        let raw_metadata = match &node.metadata {
            Some(s) => json_struct(s, 0).ok_or_else(|| format!("node metadata is nested deeper than {MAX_DEPTH}"))?,
            None => Value::Object(serde_json::Map::new()),
        };
        let metadata: NodeMetadata = serde_path_to_error::deserialize(&raw_metadata)
            .map_err(|e| format!("node metadata {}: {}", e.path(), e.inner()))?;
        let locality = node.locality.as_ref().map_or_else(Locality::default, |l| Locality {
            region: l.region.clone(),
            zone: l.zone.clone(),
            sub_zone: l.sub_zone.clone(),
        });
        let client = Self {
            raw_id: node.id.clone(),
            id,
            cluster: node.cluster.clone(),
            metadata,
            raw_metadata,
            locality,
            user_agent: node.user_agent_name.clone(),
            user_agent_version: user_agent_version(node),
            features: node.client_features.clone(),
            caller,
            peer,
        };
        if client.id.namespace != client.namespace() {
            return Err(format!(
                "node id {:?} and node metadata NAMESPACE {:?} contradict each other",
                client.raw_id, client.metadata.namespace
            ));
        }
        Ok(client)
    }

    /// Namespace: that of the metadata, else that of the node id.
    pub fn namespace(&self) -> &str {
        if self.metadata.namespace.is_empty() { &self.id.namespace } else { &self.metadata.namespace }
    }

    /// `NAME.NAMESPACE`, as users name a proxy.
    pub fn proxy_id(&self) -> String {
        format!("{}.{}", self.id.name, self.id.namespace)
    }

    /// Service account: the authenticated one, else the claimed one.
    pub fn service_account(&self) -> &str {
        match &self.caller {
            Caller::Workload(id) => &id.service_account,
            Caller::Unauthenticated => &self.metadata.service_account,
        }
    }

    /// All addresses it claims, the primary one first.
    pub fn ips(&self) -> Vec<IpAddr> {
        let mut ips: Vec<IpAddr> = Vec::new();
        for text in std::iter::once(self.id.ip.as_str()).chain(self.metadata.ips()) {
            if let Ok(ip) = text.parse()
                && !ips.contains(&ip)
            {
                ips.push(ip);
            }
        }
        ips
    }
}

fn user_agent_version(node: &core::Node) -> String {
    use core::node::UserAgentVersionType as V;
    match &node.user_agent_version_type {
        Some(V::UserAgentVersion(v)) => v.clone(),
        Some(V::UserAgentBuildVersion(b)) => {
            b.version.as_ref().map(|v| format!("{}.{}.{}", v.major_number, v.minor_number, v.patch)).unwrap_or_default()
        }
        None => String::new(),
    }
}

fn json_struct(s: &protobuf::Struct, depth: usize) -> Option<Value> {
    if depth > MAX_DEPTH {
        return None;
    }
    let mut map = serde_json::Map::new();
    for (k, v) in &s.fields {
        map.insert(k.clone(), json_value(v, depth + 1)?);
    }
    Some(Value::Object(map))
}

fn json_value(v: &protobuf::Value, depth: usize) -> Option<Value> {
    use protobuf::value::Kind;
    Some(match &v.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::NumberValue(n)) => number(*n),
        Some(Kind::StringValue(s)) => Value::String(s.clone()),
        Some(Kind::BoolValue(b)) => Value::Bool(*b),
        Some(Kind::StructValue(s)) => json_struct(s, depth)?,
        Some(Kind::ListValue(l)) => {
            if depth > MAX_DEPTH {
                return None;
            }
            Value::Array(l.values.iter().map(|v| json_value(v, depth + 1)).collect::<Option<_>>()?)
        }
    })
}

/// Protobuf knows only doubles; whole numbers come out as integers, so that `concurrency: 2` reads as 2.
fn number(n: f64) -> Value {
    #[allow(clippy::cast_possible_truncation)]
    if n.fract() == 0.0 && n.abs() < 9e15 {
        return Value::from(n as i64);
    }
    serde_json::Number::from_f64(n).map_or(Value::Null, Value::Number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(kind: protobuf::value::Kind) -> protobuf::Value {
        protobuf::Value { kind: Some(kind) }
    }

    fn node(id: &str, metadata: Vec<(&str, protobuf::value::Kind)>) -> core::Node {
        let fields = metadata.into_iter().map(|(k, v)| (k.to_owned(), value(v))).collect();
        core::Node { id: id.into(), metadata: Some(protobuf::Struct { fields }), ..Default::default() }
    }

    const ID: &str = "sidecar~10.0.0.1~web-1.shop~shop.svc.cluster.local";

    #[test]
    fn reads_what_istio_agents_send() {
        use protobuf::value::Kind::{NumberValue, StringValue};
        let n = node(
            ID,
            vec![
                ("NAMESPACE", StringValue("shop".into())),
                ("INSTANCE_IPS", StringValue("10.0.0.1,fd00::1".into())),
                ("ENVOY_STATUS_PORT", NumberValue(15021.0)),
                ("SERVICE_ACCOUNT", StringValue("web".into())),
            ],
        );
        let c = Client::read(&n, Caller::Unauthenticated, None).unwrap();
        assert_eq!((c.namespace(), c.service_account(), c.proxy_id().as_str()), ("shop", "web", "web-1.shop"));
        assert_eq!(c.ips(), ["10.0.0.1".parse::<IpAddr>().unwrap(), "fd00::1".parse().unwrap()]);
        assert_eq!(c.raw_metadata["ENVOY_STATUS_PORT"], 15021);
    }

    #[test]
    fn refuses_with_a_reason() {
        use protobuf::value::Kind::{BoolValue, StringValue, StructValue};
        let refused = |n: &core::Node| Client::read(n, Caller::Unauthenticated, None).unwrap_err();
        assert!(refused(&node("x", vec![])).contains("node id"));
        assert!(refused(&node(ID, vec![("NAMESPACE", StringValue("other".into()))])).contains("contradict"));
        assert!(refused(&node(ID, vec![("LABELS", BoolValue(true))])).contains("LABELS"));
        assert!(refused(&node(ID, vec![("X", StringValue("y".repeat(MAX_NODE_BYTES)))])).contains("at most"));
        let deep = (0..40).fold(protobuf::Struct::default(), |s, _| protobuf::Struct {
            fields: [("a".to_owned(), value(StructValue(s)))].into(),
        });
        assert!(refused(&node(ID, vec![("X", StructValue(deep))])).contains("deeper"));
    }

    #[test]
    fn claims_must_fit_the_identity() {
        let id = "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap();
        let caller = Caller::Workload(id);
        let claim = |ns: &str, sa: &str| {
            let id = format!("sidecar~10.0.0.1~web-1.{ns}~{ns}.svc.cluster.local");
            let n = node(&id, vec![("SERVICE_ACCOUNT", protobuf::value::Kind::StringValue(sa.into()))]);
            caller.permits(&Client::read(&n, caller.clone(), None).unwrap())
        };
        assert_eq!(claim("shop", "web"), Ok(()));
        assert_eq!(claim("shop", ""), Ok(()));
        assert!(claim("bank", "web").unwrap_err().contains("namespace"));
        assert!(claim("shop", "admin").unwrap_err().contains("service account"));
    }
}
