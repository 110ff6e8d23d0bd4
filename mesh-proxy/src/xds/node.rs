//! The node of this proxy as control planes get it.

use mesh_api::xds::envoy::config::core::v3 as core;
use mesh_api::xds::google::protobuf;
use serde_json::Value;

use crate::config::snapshot::Node;

/// Product name in `user_agent_name`, by which our control plane knows what this proxy can do.
pub const USER_AGENT: &str = "mesh-proxy";

/// As a message.
pub fn message(node: &Node) -> core::Node {
    let place = &node.locality;
    core::Node {
        id: node.id.clone(),
        cluster: node.cluster.clone(),
        metadata: Some(structure(&node.metadata)),
        locality: Some(core::Locality {
            region: place.region.to_string(),
            zone: place.zone.to_string(),
            sub_zone: place.sub_zone.to_string(),
        }),
        user_agent_name: USER_AGENT.to_owned(),
        user_agent_version_type: Some(core::node::UserAgentVersionType::UserAgentVersion(
            env!("CARGO_PKG_VERSION").to_owned(),
        )),
        ..core::Node::default()
    }
}

/// An object as a message.
pub(super) fn structure(map: &serde_json::Map<String, Value>) -> protobuf::Struct {
    protobuf::Struct { fields: map.iter().map(|(k, v)| (k.clone(), value(v))).collect() }
}

fn value(v: &Value) -> protobuf::Value {
    use protobuf::value::Kind;
    let kind = match v {
        Value::Null => Kind::NullValue(0),
        Value::Bool(b) => Kind::BoolValue(*b),
        Value::Number(n) => Kind::NumberValue(n.as_f64().unwrap_or(0.0)),
        Value::String(s) => Kind::StringValue(s.clone()),
        Value::Array(all) => Kind::ListValue(protobuf::ListValue { values: all.iter().map(value).collect() }),
        Value::Object(map) => Kind::StructValue(structure(map)),
    };
    protobuf::Value { kind: Some(kind) }
}
