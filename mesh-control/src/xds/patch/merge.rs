//! How a patch and what is there come together: protobuf's merge with Istio's exceptions.
//!
//! Owns MERGE and MERGE_AND_REPLACE_LIST of plain messages, and of configurations of a type that the message around
//! them does not know (`typed_config`). Must not know what is merged.

use prost_reflect::{DynamicMessage, Kind, Value};

use super::dynamic::{self, any_type, is_any};

/// What becomes of lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lists {
    /// What the patch has comes after what is there.
    Append,
    /// What the patch has takes its place, at every level.
    Replace,
}

/// Merges `patch` into `target`, both of one type: single values are overwritten, messages merged, lists as `lists`
/// says, entries of maps replaced.
pub fn merge(target: &mut DynamicMessage, patch: &DynamicMessage, lists: Lists) {
    for (field, value) in patch.fields() {
        match value {
            Value::List(members) => {
                if let Some(list) = target.get_field_mut(&field).as_list_mut() {
                    if lists == Lists::Replace {
                        list.clear();
                    }
                    list.extend(members.iter().cloned());
                }
            }
            Value::Map(entries) => {
                if let Some(map) = target.get_field_mut(&field).as_map_mut() {
                    map.extend(entries.iter().map(|(k, v)| (k.clone(), v.clone())));
                }
            }
            Value::Message(inner) if !is_one_value(&field.kind()) => {
                if let Some(message) = target.get_field_mut(&field).as_message_mut() {
                    merge(message, inner, lists);
                }
            }
            _ => target.set_field(&field, value.clone()),
        }
    }
}

/// Messages that stand for a single value: one that is zero could not be told from one that is not set if they were
/// merged, and of two types of an `Any` only one can be.
fn is_one_value(kind: &Kind) -> bool {
    let Some(message) = kind.as_message() else { return false };
    matches!(
        message.full_name(),
        "google.protobuf.Duration"
            | "google.protobuf.Timestamp"
            | "google.protobuf.Any"
            | "google.protobuf.BoolValue"
            | "google.protobuf.BytesValue"
            | "google.protobuf.DoubleValue"
            | "google.protobuf.FloatValue"
            | "google.protobuf.Int32Value"
            | "google.protobuf.Int64Value"
            | "google.protobuf.StringValue"
            | "google.protobuf.UInt32Value"
            | "google.protobuf.UInt64Value"
    )
}

/// Merges what is in one `Any` into what is in another.
///
/// # Errors
/// When they are of different types, or of one that is not known.
pub fn merge_any(target: &mut DynamicMessage, patch: &DynamicMessage) -> Result<(), String> {
    if !is_any(target) || !is_any(patch) {
        return Err("there is no typed configuration to merge".to_owned());
    }
    let (there, given) = (any_type(target), any_type(patch));
    if there != given {
        return Err(format!("{given} cannot be merged into {there}"));
    }
    let unreadable = || format!("{there} cannot be read");
    let mut inner = dynamic::unpack(target).ok_or_else(unreadable)?;
    let patch = dynamic::unpack(patch).ok_or_else(unreadable)?;
    merge(&mut inner, &patch, Lists::Append);
    dynamic::repack(target, &inner);
    Ok(())
}

/// Merges a named extension (a filter, a transport socket: `name` and `typed_config`) into another. Without a name or
/// without a configuration the patch leaves that as it is.
///
/// # Errors
/// See [`merge_any`].
pub fn merge_extension(target: &mut DynamicMessage, patch: &DynamicMessage) -> Result<(), String> {
    let Some(config) = dynamic::message_mut(target, "typed_config") else {
        return Err("it has no typed configuration of its own to merge into".to_owned());
    };
    if let Some(patch) = dynamic::message(patch, "typed_config") {
        merge_any(config, patch)?;
    }
    let name = dynamic::text(patch, "name");
    if !name.is_empty() {
        target.set_field_by_name("name", Value::String(name.to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use mesh_api::xds::json;
    use serde_json::{Value as Json, json};

    use super::*;

    const CLUSTER: &str = "envoy.config.cluster.v3.Cluster";

    fn message(value: &Json) -> DynamicMessage {
        json::read(value, dynamic::descriptor(CLUSTER).unwrap()).unwrap()
    }

    fn merged(target: &Json, patch: &Json, lists: Lists) -> DynamicMessage {
        let mut target = message(target);
        merge(&mut target, &message(patch), lists);
        target
    }

    #[test]
    fn values_are_overwritten_and_messages_merged() {
        let base = json!({
            "name": "a", "connect_timeout": "10.5s", "per_connection_buffer_limit_bytes": 7,
            "circuit_breakers": {"thresholds": [{"max_retries": 1}]},
            "upstream_connection_options": {"tcp_keepalive": {"keepalive_time": 3, "keepalive_probes": 2}},
            "metadata": {"filter_metadata": {"a": {"x": 1, "y": 2}}},
        });
        let patch = json!({
            "connect_timeout": "2s", "per_connection_buffer_limit_bytes": 0,
            "circuit_breakers": {"thresholds": [{"priority": "HIGH", "max_retries": 9}]},
            "upstream_connection_options": {"tcp_keepalive": {"keepalive_time": 30}},
            "metadata": {"filter_metadata": {"a": {"x": 5}, "b": {}}},
        });
        let rest = |thresholds: Json| {
            message(&json!({
                // Not 2.5s: a duration is one value. And a limit of zero is a limit.
                "name": "a", "connect_timeout": "2s", "per_connection_buffer_limit_bytes": 0,
                "circuit_breakers": {"thresholds": thresholds},
                "upstream_connection_options": {"tcp_keepalive": {"keepalive_time": 30, "keepalive_probes": 2}},
                "metadata": {"filter_metadata": {"a": {"x": 5}, "b": {}}},
            }))
        };
        let high = json!({"priority": "HIGH", "max_retries": 9});
        assert_eq!(merged(&base, &patch, Lists::Append), rest(json!([{"max_retries": 1}, high])));
        assert_eq!(merged(&base, &patch, Lists::Replace), rest(json!([high])));
    }

    #[test]
    fn of_a_oneof_the_patch_s_member_stays() {
        let out = merged(&json!({"name": "a", "type": "EDS"}), &json!({"cluster_type": {"name": "x"}}), Lists::Append);
        assert_eq!(out, message(&json!({"name": "a", "cluster_type": {"name": "x"}})));
    }

    #[test]
    fn typed_configurations_merge_with_their_like_only() {
        let socket = |config: Json| {
            let kind = dynamic::descriptor("envoy.config.core.v3.TransportSocket").unwrap();
            json::read(&json!({"name": "tls", "typed_config": config}), kind).unwrap()
        };
        const TLS: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext";
        let mut target = socket(json!({"@type": TLS, "sni": "a", "common_tls_context": {"alpn_protocols": ["h2"]}}));
        let patch = socket(json!({"@type": TLS, "sni": "b", "common_tls_context": {"alpn_protocols": ["h3"]}}));
        assert_eq!(merge_extension(&mut target, &patch), Ok(()));
        let want = socket(json!({"@type": TLS, "sni": "b", "common_tls_context": {"alpn_protocols": ["h2", "h3"]}}));
        assert_eq!(target, want);
        let raw = "type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer";
        let error = merge_extension(&mut target, &socket(json!({"@type": raw}))).unwrap_err();
        assert!(error.contains("RawBuffer cannot be merged into") && error.contains("UpstreamTlsContext"), "{error}");
        assert_eq!(target, want);
    }
}
