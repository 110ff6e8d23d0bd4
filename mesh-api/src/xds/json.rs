//! YAML and JSON of Envoy's messages, by descriptors that are loaded for the task and dropped again.
//!
//! The descriptor set is `proto/descriptors.bin`; `proto/make-descriptors.py` makes it. Every message that configuration
//! may hold is in `proto/extensions.bin`, which is loaded when something that users wrote in Envoy's terms is read.

use std::fmt;
use std::sync::OnceLock;
use std::time::SystemTime;

use prost::Message as _;
use prost_reflect::{DescriptorPool, DeserializeOptions, DynamicMessage, MessageDescriptor};
use serde::de::DeserializeSeed;
use serde_json::Value;

/// Why a text is not the message it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct JsonError {
    /// Line in the text, from 1, when the syntax is wrong.
    pub line: Option<u64>,
    /// Field, as in JSON; empty: the whole.
    pub path: String,
    /// What is wrong.
    pub message: String,
}

impl fmt::Display for JsonError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
        }
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)
    }
}

/// Every message that bootstrap files and dumps hold.
pub fn pool() -> DescriptorPool {
    static BYTES: &[u8] = include_bytes!("../../proto/descriptors.bin");
    // The bytes are ours; a test loads them.
    DescriptorPool::decode(BYTES).unwrap_or_default()
}

/// Every message that Envoy's configuration may hold. Loaded by the first call and kept: what was read by it refers to
/// it.
pub fn extensions() -> &'static DescriptorPool {
    static BYTES: &[u8] = include_bytes!("../../proto/extensions.bin");
    static POOL: OnceLock<DescriptorPool> = OnceLock::new();
    // The bytes are ours; a test loads them.
    POOL.get_or_init(|| DescriptorPool::decode(BYTES).unwrap_or_default())
}

/// Reads a message written in YAML or JSON into wire bytes. Field names in snake_case and camelCase are accepted, a
/// field that does not exist is refused.
///
/// # Errors
/// Wrong syntax, an unknown field, a value of the wrong kind.
pub fn parse(text: &str, kind: &str) -> Result<Vec<u8>, JsonError> {
    let value: Value = crate::yaml::from_str(text).map_err(|e| JsonError {
        line: e.location().map(|l| l.line()),
        path: String::new(),
        message: e.to_string().lines().next().unwrap_or_default().to_owned(),
    })?;
    let whole = |message: String| JsonError { line: None, path: String::new(), message };
    let descriptor = pool().get_message_by_name(kind).ok_or_else(|| whole(format!("{kind} is not known")))?;
    read(&value, descriptor).map(|message| message.encode_to_vec())
}

/// Reads a message out of JSON, by the rules of [`parse`].
///
/// # Errors
/// An unknown field, a type that the descriptor's pool does not have, a value of the wrong kind.
pub fn read(value: &Value, descriptor: MessageDescriptor) -> Result<DynamicMessage, JsonError> {
    let mut track = serde_path_to_error::Track::new();
    let deserializer = serde_path_to_error::Deserializer::new(value, &mut track);
    Seed(descriptor).deserialize(deserializer).map_err(|error| JsonError {
        line: None,
        path: track.path().to_string(),
        message: error.to_string(),
    })
}

struct Seed(MessageDescriptor);

impl<'de> DeserializeSeed<'de> for Seed {
    type Value = DynamicMessage;
    fn deserialize<D: serde::Deserializer<'de>>(self, d: D) -> Result<DynamicMessage, D::Error> {
        DynamicMessage::deserialize_with_options(self.0, d, &DeserializeOptions::new().deny_unknown_fields(true))
    }
}

/// RFC 3339 in UTC with milliseconds, as Envoy prints times.
pub fn timestamp(at: SystemTime) -> String {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let stamp = prost_types::Timestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(since.subsec_millis() * 1_000_000).unwrap_or(0),
    };
    stamp.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xds::envoy::config::cluster::v3::Cluster;

    const CLUSTER: &str = "envoy.config.cluster.v3.Cluster";

    #[test]
    fn the_descriptors_are_complete() {
        let pool = pool();
        for name in
            [CLUSTER, "envoy.config.bootstrap.v3.Bootstrap", "stats.PluginConfig", "io.istio.http.peer_metadata.Config"]
        {
            assert!(pool.get_message_by_name(name).is_some(), "{name}");
        }
    }

    #[test]
    fn extensions_hold_what_users_patch_with() {
        for name in [
            CLUSTER,
            "envoy.extensions.filters.http.lua.v3.Lua",
            "envoy.extensions.filters.http.wasm.v3.Wasm",
            "envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor",
            "envoy.extensions.filters.http.tap.v3.Tap",
            "envoy.extensions.filters.http.compressor.v3.Compressor",
            "envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit",
            "envoy.extensions.compression.gzip.compressor.v3.Gzip",
            "udpa.type.v1.TypedStruct",
            "xds.type.v3.TypedStruct",
            "stats.PluginConfig",
        ] {
            assert!(extensions().get_message_by_name(name).is_some(), "{name}");
        }
        // All that dumps know is there too.
        let missing: Vec<_> = pool()
            .all_messages()
            .map(|m| m.full_name().to_owned())
            .filter(|name| name.starts_with("envoy.config.") || name.starts_with("envoy.extensions."))
            .filter(|name| extensions().get_message_by_name(name).is_none())
            .collect();
        assert_eq!(missing, [""; 0]);
    }

    #[test]
    fn both_spellings_and_expanded_any() {
        let text = "
name: a
connectTimeout: 1.5s
lb_policy: LEAST_REQUEST
transport_socket:
  name: envoy.transport_sockets.tls
  typed_config:
    '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
    sni: b
";
        let cluster = Cluster::decode(&*parse(text, CLUSTER).unwrap()).unwrap();
        assert_eq!((cluster.name.as_str(), cluster.connect_timeout.unwrap().nanos), ("a", 500_000_000));
        assert!(cluster.transport_socket.is_some());
    }

    #[test]
    fn errors_say_where() {
        let bad = |text: &str| parse(text, CLUSTER).unwrap_err();
        assert!(bad("name: [").line.is_some());
        let unknown = bad("name: a\nload_assignment:\n  endpoints:\n  - nonsense: 1\n");
        assert!(unknown.path.starts_with("load_assignment.endpoints[0]"), "{unknown}");
        assert!(unknown.message.contains("nonsense"), "{unknown}");
        assert!(bad("connect_timeout: soon").path.starts_with("connect_timeout"));
    }
}
