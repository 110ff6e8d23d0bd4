//! Who the two ends of a request are, in Istio's terms, and where that is learned: our own node, peer metadata headers,
//! endpoint metadata, SPIFFE ids.

use std::sync::Arc;

use base64::Engine as _;
use mesh_api::labels::{Labels, canonical_name, canonical_revision};
use mesh_api::node::NodeMetadata;
use xxhash_rust::xxh3::xxh3_128;

use crate::config::snapshot::Node;

/// One end of a request; empty texts are unknown.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Workload {
    /// Workload (deployment).
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// Label `app`.
    pub app: String,
    /// Label `version`.
    pub version: String,
    /// Canonical service.
    pub canonical_service: String,
    /// Canonical revision.
    pub canonical_revision: String,
    /// Cluster id.
    pub cluster: String,
}

impl Workload {
    /// This proxy's own workload.
    pub fn of_node(node: &Node) -> Self {
        Self::of_metadata(&node.istio)
    }

    fn of_metadata(meta: &NodeMetadata) -> Self {
        let label = |name: &str| meta.labels.get(name).cloned().unwrap_or_default();
        let name = if meta.workload_name.is_empty() { &meta.name } else { &meta.workload_name };
        Self {
            name: name.clone(),
            namespace: meta.namespace.clone(),
            app: label("app"),
            version: label("version"),
            canonical_service: canonical_name(&meta.labels, name).to_owned(),
            canonical_revision: canonical_revision(&meta.labels).to_owned(),
            cluster: meta.cluster_id.clone(),
        }
    }

    /// Of an endpoint: `workload;namespace;canonical-name;canonical-revision;cluster`.
    pub fn of_endpoint(text: &str) -> Option<Self> {
        if text.is_empty() {
            return None;
        }
        let mut parts = text.split(';').map(str::to_owned);
        let mut next = || parts.next().unwrap_or_default();
        let (name, namespace, service, revision, cluster) = (next(), next(), next(), next(), next());
        Some(Self {
            name,
            namespace,
            app: service.clone(),
            version: revision.clone(),
            canonical_service: service,
            canonical_revision: revision,
            cluster,
        })
    }

    /// Of the value of `x-envoy-peer-metadata`: base64 of a `google.protobuf.Struct`. `None`: not readable.
    pub fn of_header(value: &[u8]) -> Option<Self> {
        let bytes = base64::engine::general_purpose::STANDARD.decode(value).ok()?;
        let fields = wire::fields(&bytes)?;
        let mut meta = NodeMetadata::default();
        for (key, value) in fields {
            match (key.as_str(), value) {
                ("NAME", wire::Value::Text(t)) => meta.name = t,
                ("NAMESPACE", wire::Value::Text(t)) => meta.namespace = t,
                ("WORKLOAD_NAME", wire::Value::Text(t)) => meta.workload_name = t,
                ("CLUSTER_ID", wire::Value::Text(t)) => meta.cluster_id = t,
                ("LABELS", wire::Value::Struct(labels)) => {
                    let texts = labels.into_iter().filter_map(|(k, v)| match v {
                        wire::Value::Text(t) => Some((k, t)),
                        _ => None,
                    });
                    meta.labels = texts.collect::<Labels>();
                }
                _ => {}
            }
        }
        let mut told = Self::of_metadata(&meta);
        for text in told.texts_mut() {
            text.truncate(text.floor_char_boundary(MAX_TEXT));
        }
        Some(told)
    }

    fn texts_mut(&mut self) -> [&mut String; 7] {
        [
            &mut self.name,
            &mut self.namespace,
            &mut self.app,
            &mut self.version,
            &mut self.canonical_service,
            &mut self.canonical_revision,
            &mut self.cluster,
        ]
    }

    /// A number that tells it from others.
    pub fn id(&self) -> u128 {
        let texts = [&*self.name, &self.namespace, &self.app, &self.version, &self.canonical_service];
        let rest = [&*self.canonical_revision, &self.cluster];
        let mut joined = String::new();
        for text in texts.into_iter().chain(rest) {
            joined.push_str(text);
            joined.push('\0');
        }
        xxh3_128(joined.as_bytes())
    }
}

/// Longest text that is taken from a peer, bytes: names in Kubernetes have 253 at most.
const MAX_TEXT: usize = 256;

/// The value of `x-envoy-peer-metadata` that tells others who this proxy is.
pub fn header_value(meta: &NodeMetadata) -> String {
    let mut out = Vec::new();
    wire::put_text(&mut out, "CLUSTER_ID", &meta.cluster_id);
    let wanted = |key: &str| {
        matches!(key, "app" | "version" | "service.istio.io/canonical-name" | "service.istio.io/canonical-revision")
            || key.starts_with("app.kubernetes.io/")
    };
    wire::put_struct(&mut out, "LABELS", meta.labels.iter().filter(|(k, _)| wanted(k)));
    wire::put_text(&mut out, "NAME", &meta.name);
    wire::put_text(&mut out, "NAMESPACE", &meta.namespace);
    let name = if meta.workload_name.is_empty() { &meta.name } else { &meta.workload_name };
    wire::put_text(&mut out, "WORKLOAD_NAME", name);
    base64::engine::general_purpose::STANDARD.encode(out)
}

/// Shared form of a workload.
pub type SharedWorkload = Arc<Workload>;

/// The wire form of `google.protobuf.Struct`, as far as peers use it: texts and structs of texts. It is read for every
/// new peer on the data path, where prost is not at home.
mod wire {
    /// A field's value.
    pub enum Value {
        Text(String),
        Struct(Vec<(String, Value)>),
        Other,
    }

    /// More nesting than anything sensible has.
    const MAX_DEPTH: u32 = 8;

    pub fn fields(bytes: &[u8]) -> Option<Vec<(String, Value)>> {
        structure(bytes, 0)
    }

    fn structure(mut bytes: &[u8], depth: u32) -> Option<Vec<(String, Value)>> {
        if depth > MAX_DEPTH {
            return None;
        }
        let mut fields = Vec::new();
        while let Some((number, payload)) = next(&mut bytes)? {
            if number != 1 {
                continue;
            }
            let (mut entry, mut key, mut value) = (payload?, String::new(), Value::Other);
            while let Some((number, payload)) = next(&mut entry)? {
                match (number, payload) {
                    (1, Some(p)) => key = String::from_utf8(p.to_vec()).ok()?,
                    (2, Some(p)) => value = read_value(p, depth)?,
                    _ => {}
                }
            }
            fields.push((key, value));
        }
        Some(fields)
    }

    fn read_value(mut bytes: &[u8], depth: u32) -> Option<Value> {
        let mut value = Value::Other;
        while let Some((number, payload)) = next(&mut bytes)? {
            match (number, payload) {
                (3, Some(p)) => value = Value::Text(String::from_utf8(p.to_vec()).ok()?),
                (5, Some(p)) => value = Value::Struct(structure(p, depth + 1)?),
                _ => {}
            }
        }
        Some(value)
    }

    /// The next field: its number, and its bytes if it is of a length-delimited kind. Outer `None`: malformed.
    #[allow(clippy::type_complexity)]
    fn next<'a>(bytes: &mut &'a [u8]) -> Option<Option<(u64, Option<&'a [u8]>)>> {
        if bytes.is_empty() {
            return Some(None);
        }
        let tag = varint(bytes)?;
        let payload = match tag & 7 {
            0 => varint(bytes).map(|_| None)?,
            1 => take(bytes, 8).map(|_| None)?,
            2 => {
                let length = usize::try_from(varint(bytes)?).ok()?;
                Some(take(bytes, length)?)
            }
            5 => take(bytes, 4).map(|_| None)?,
            _ => return None,
        };
        Some(Some((tag >> 3, payload)))
    }

    fn take<'a>(bytes: &mut &'a [u8], n: usize) -> Option<&'a [u8]> {
        let (head, tail) = bytes.split_at_checked(n)?;
        *bytes = tail;
        Some(head)
    }

    fn varint(bytes: &mut &[u8]) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = *take(bytes, 1)?.first()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn put_varint(out: &mut Vec<u8>, mut n: usize) {
        loop {
            let low = u8::try_from(n & 0x7f).unwrap_or_default();
            n >>= 7;
            if n == 0 {
                out.push(low);
                return;
            }
            out.push(low | 0x80);
        }
    }

    fn put(out: &mut Vec<u8>, number: u8, payload: &[u8]) {
        out.push(number << 3 | 2);
        put_varint(out, payload.len());
        out.extend_from_slice(payload);
    }

    fn put_entry(out: &mut Vec<u8>, key: &str, value: &[u8]) {
        let mut entry = Vec::new();
        put(&mut entry, 1, key.as_bytes());
        put(&mut entry, 2, value);
        put(out, 1, &entry);
    }

    pub fn put_text(out: &mut Vec<u8>, key: &str, text: &str) {
        if text.is_empty() {
            return;
        }
        let mut value = Vec::new();
        put(&mut value, 3, text.as_bytes());
        put_entry(out, key, &value);
    }

    pub fn put_struct<'a>(out: &mut Vec<u8>, key: &str, fields: impl Iterator<Item = (&'a String, &'a String)>) {
        let mut inner = Vec::new();
        for (name, text) in fields {
            put_text(&mut inner, name, text);
        }
        let mut value = Vec::new();
        put(&mut value, 5, &inner);
        put_entry(out, key, &value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_side_writes_the_other_reads() {
        let mut meta = NodeMetadata {
            name: "web-7f-x".to_owned(),
            workload_name: "web".to_owned(),
            namespace: "shop".to_owned(),
            cluster_id: "Kubernetes".to_owned(),
            ..NodeMetadata::default()
        };
        meta.labels.insert("app".to_owned(), "web".to_owned());
        meta.labels.insert("version".to_owned(), "v2".to_owned());
        let read = Workload::of_header(header_value(&meta).as_bytes()).unwrap();
        assert_eq!(read, Workload::of_metadata(&meta));
        assert_eq!((read.name.as_str(), read.app.as_str(), read.canonical_revision.as_str()), ("web", "web", "v2"));
    }

    #[test]
    fn prost_agrees_on_the_wire_form() {
        use prost::Message as _;
        let text = |t: &str| prost_types::Value { kind: Some(prost_types::value::Kind::StringValue(t.to_owned())) };
        let fields = [("NAME".to_owned(), text("a")), ("NAMESPACE".to_owned(), text("b"))].into_iter().collect();
        let bytes = prost_types::Struct { fields }.encode_to_vec();
        let read = Workload::of_header(base64::engine::general_purpose::STANDARD.encode(bytes).as_bytes()).unwrap();
        assert_eq!((read.name.as_str(), read.namespace.as_str()), ("a", "b"));
        let meta = NodeMetadata { name: "a".to_owned(), namespace: "b".to_owned(), ..NodeMetadata::default() };
        let ours = base64::engine::general_purpose::STANDARD.decode(header_value(&meta)).unwrap();
        let theirs = prost_types::Struct::decode(&*ours).unwrap();
        assert_eq!(theirs.fields["NAME"], text("a"));
    }

    #[test]
    fn garbage_is_nobody() {
        for bad in ["!", "////", "Cg==", "CgX/"] {
            assert_eq!(Workload::of_header(bad.as_bytes()), None, "{bad}");
        }
        assert_eq!(Workload::of_header(b""), Some(Workload::of_metadata(&NodeMetadata::default())));
        assert_eq!(Workload::of_endpoint("web;shop;web;v1;Kubernetes").unwrap().namespace, "shop");
        assert_eq!(Workload::of_endpoint(""), None);
    }
}
