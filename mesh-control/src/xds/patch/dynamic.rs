//! Messages that are known by their descriptors only: reading and changing fields by name, and their wire form.
//!
//! Owns that equal messages have equal bytes: the library writes the entries of maps in whatever order it meets them,
//! and versions of resources are hashes of their bytes.

use std::borrow::Cow;

use mesh_api::xds::json;
use prost::{
    Message as _,
    encoding::{WireType, encode_key, encode_varint},
};
use prost_reflect::{DynamicMessage, FieldDescriptor, MapKey, MessageDescriptor, ReflectMessage as _, Value};

/// A message around another one of any type.
const ANY: &str = "google.protobuf.Any";
/// How deep messages may be in each other, as the library that reads them has it.
const MAX_DEPTH: usize = 100;

/// A message type by its name.
pub fn descriptor(name: &str) -> Option<MessageDescriptor> {
    json::extensions().get_message_by_name(name)
}

/// Reads wire bytes; `None`: no such type, or not its bytes.
pub fn decode(name: &str, bytes: &[u8]) -> Option<DynamicMessage> {
    DynamicMessage::decode(descriptor(name)?, bytes).ok()
}

/// Text of a field; empty: not set.
pub fn text<'m>(message: &'m DynamicMessage, field: &str) -> &'m str {
    match message.get_field_by_name(field) {
        Some(Cow::Borrowed(Value::String(text))) => text,
        _ => "",
    }
}

/// A number of a field of 32 bits, or of a wrapper around one; `None`: not set.
pub fn number(message: &DynamicMessage, field: &str) -> Option<u32> {
    let field = message.descriptor().get_field_by_name(field)?;
    if !message.has_field(&field) {
        return None;
    }
    match &*message.get_field(&field) {
        Value::U32(number) => Some(*number),
        Value::EnumNumber(number) => u32::try_from(*number).ok(),
        Value::Message(wrapper) => Some(wrapper.get_field_by_name("value").and_then(|v| v.as_u32()).unwrap_or(0)),
        _ => None,
    }
}

/// A message within; `None`: not set.
pub fn message<'m>(message: &'m DynamicMessage, field: &str) -> Option<&'m DynamicMessage> {
    match message.get_field_by_name(field) {
        Some(Cow::Borrowed(Value::Message(inner))) => Some(inner),
        _ => None,
    }
}

/// A message within, to be changed; `None`: not set, and it stays so.
pub fn message_mut<'m>(message: &'m mut DynamicMessage, field: &str) -> Option<&'m mut DynamicMessage> {
    if !message.has_field_by_name(field) {
        return None;
    }
    message.get_field_by_name_mut(field)?.as_message_mut()
}

/// Members of a list of messages.
pub fn messages<'m>(message: &'m DynamicMessage, field: &str) -> impl Iterator<Item = &'m DynamicMessage> {
    let list = match message.get_field_by_name(field) {
        Some(Cow::Borrowed(Value::List(list))) => list.as_slice(),
        _ => &[],
    };
    list.iter().filter_map(Value::as_message)
}

/// A list, to be changed; `None`: there is no such list in this type.
pub fn list_mut<'m>(message: &'m mut DynamicMessage, field: &str) -> Option<&'m mut Vec<Value>> {
    message.get_field_by_name_mut(field)?.as_list_mut()
}

/// Whether a list of texts holds one.
pub fn lists_text(message: &DynamicMessage, field: &str, wanted: &str) -> bool {
    let list = message.get_field_by_name(field);
    list.as_deref().and_then(Value::as_list).is_some_and(|list| list.iter().any(|v| v.as_str() == Some(wanted)))
}

/// Name of the type in an `Any`, without the URL before it.
pub fn any_type(any: &DynamicMessage) -> &str {
    let url = text(any, "type_url");
    url.rsplit_once('/').map_or(url, |(_, name)| name)
}

/// What is in an `Any`; `None`: a type that is not known, or not its bytes.
pub fn unpack(any: &DynamicMessage) -> Option<DynamicMessage> {
    let value = any.get_field_by_name("value")?;
    decode(any_type(any), value.as_bytes()?)
}

/// Puts a message into an `Any` that held one of the same type.
pub fn repack(any: &mut DynamicMessage, inner: &DynamicMessage) {
    any.set_field_by_name("value", Value::Bytes(encode(inner).into()));
}

/// Whether this is an `Any`.
pub fn is_any(message: &DynamicMessage) -> bool {
    message.descriptor().full_name() == ANY
}

/// Encodes again what is in every `Any`, so that equal texts are equal bytes.
pub fn settle(message: &mut DynamicMessage) {
    settle_below(message, 0);
}

fn settle_below(message: &mut DynamicMessage, depth: usize) {
    if depth > MAX_DEPTH {
        return;
    }
    if is_any(message) {
        if let Some(mut inner) = unpack(message) {
            settle_below(&mut inner, depth + 1);
            repack(message, &inner);
        }
        return;
    }
    for (_, value) in message.fields_mut() {
        match value {
            Value::Message(inner) => settle_below(inner, depth + 1),
            Value::List(list) => {
                list.iter_mut().filter_map(Value::as_message_mut).for_each(|inner| settle_below(inner, depth + 1));
            }
            Value::Map(map) => {
                map.values_mut().filter_map(Value::as_message_mut).for_each(|inner| settle_below(inner, depth + 1));
            }
            _ => {}
        }
    }
}

/// Wire bytes: fields by number, entries of maps by key.
pub fn encode(message: &DynamicMessage) -> Vec<u8> {
    let mut out = Vec::new();
    let mut plain = DynamicMessage::new(message.descriptor());
    for (field, value) in message.fields() {
        match value {
            Value::Message(inner) => put_bytes(field.number(), &encode(inner), &mut out),
            Value::List(list) if list.first().is_some_and(|v| v.as_message().is_some()) => {
                for inner in list.iter().filter_map(Value::as_message) {
                    put_bytes(field.number(), &encode(inner), &mut out);
                }
            }
            Value::Map(map) => {
                let mut entries: Vec<(&MapKey, &Value)> = map.iter().collect();
                entries.sort_by(|a, b| a.0.cmp(b.0));
                for (key, value) in entries {
                    put_bytes(field.number(), &entry(&field, key, value), &mut out);
                }
            }
            scalar => {
                plain.set_field(&field, scalar.clone());
                // Writing to memory cannot fail.
                let _ = plain.encode(&mut out);
                plain.clear_field(&field);
            }
        }
    }
    message.unknown_fields().for_each(|field| field.encode(&mut out));
    out
}

/// An entry of a map.
fn entry(map: &FieldDescriptor, key: &MapKey, value: &Value) -> Vec<u8> {
    let kind = map.kind();
    let Some(descriptor) = kind.as_message() else { return Vec::new() };
    let mut entry = DynamicMessage::new(descriptor.clone());
    entry.set_field(&descriptor.map_entry_key_field(), key.clone().into());
    entry.set_field(&descriptor.map_entry_value_field(), value.clone());
    encode(&entry)
}

fn put_bytes(tag: u32, bytes: &[u8], out: &mut Vec<u8>) {
    encode_key(tag, WireType::LengthDelimited, out);
    encode_varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn equal_messages_have_equal_bytes() {
        let labels: serde_json::Map<String, serde_json::Value> =
            (0..40).map(|i| (format!("k{i}"), json!({"a": i, "b": [i, "x", null], "c": {"d": true}}))).collect();
        let value = json!({
            "name": "a", "domains": ["*"], "include_attempt_count_in_response": true,
            "routes": [{"match": {"prefix": "/"}, "metadata": {"filter_metadata": {"m": labels}},
                "direct_response": {"status": 200},
                "typed_per_filter_config": {
                    "x": {"@type": "type.googleapis.com/google.protobuf.Struct", "value": labels},
                    "y": {"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "disabled": true}}}],
        });
        let kind = || descriptor("envoy.config.route.v3.VirtualHost").unwrap();
        let one = || {
            let mut message = json::read(&value, kind()).unwrap();
            settle(&mut message);
            encode(&message)
        };
        let first = one();
        // Every map of the library's has an order of its own.
        (0..20).for_each(|_| assert_eq!(one(), first));
        let again = DynamicMessage::decode(kind(), first.as_slice()).unwrap();
        assert_eq!(encode(&again), first);
        assert_eq!(again.encoded_len(), first.len());
    }

    #[test]
    fn unknown_fields_stay() {
        let mut bytes =
            encode(&json::read(&json!({"name": "a"}), descriptor("envoy.config.cluster.v3.Cluster").unwrap()).unwrap());
        put_bytes(19_000, b"later", &mut bytes);
        let message = decode("envoy.config.cluster.v3.Cluster", &bytes).unwrap();
        assert_eq!(encode(&message), bytes);
    }
}
