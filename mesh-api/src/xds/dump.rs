//! `/config_dump` in Envoy's shape, from wire bytes as they were accepted. Shared by the proxy's admin server and the
//! control plane's `/debug/config_dump`. Private keys come out as `[redacted]`.

use std::time::SystemTime;

use prost::Message as _;
use prost_reflect::{DescriptorPool, DynamicMessage, ReflectMessage as _, SerializeOptions, Value as Dynamic};
use serde_json::{Map, Value, json};
use xxhash_rust::xxh3::xxh3_128;

use super::json::{self, timestamp};

/// What a `config_dump` shows. All byte fields are wire bytes of the message, without `Any` around it.
#[derive(Debug, Clone, Default)]
pub struct ConfigDump {
    /// `envoy.config.bootstrap.v3.Bootstrap`; empty: not shown.
    pub bootstrap: Vec<u8>,
    /// When the bootstrap was read.
    pub started: Option<SystemTime>,
    /// Version of the last accepted listener push.
    pub lds_version: String,
    /// Version of the last accepted cluster push.
    pub cds_version: String,
    /// Listeners.
    pub listeners: Vec<DumpEntry>,
    /// Clusters.
    pub clusters: Vec<DumpEntry>,
    /// Route configurations. Those in listeners count as static.
    pub routes: Vec<DumpEntry>,
    /// Load assignments.
    pub endpoints: Vec<DumpEntry>,
    /// Secrets.
    pub secrets: Vec<DumpEntry>,
    /// Configurations of filters.
    pub extensions: Vec<DumpEntry>,
}

/// One resource.
#[derive(Debug, Clone, Default)]
pub struct DumpEntry {
    /// Name.
    pub name: String,
    /// From the bootstrap file.
    pub is_static: bool,
    /// In force or, [`DumpState::Warming`], waiting for something else. Draining listeners are in force no more.
    pub state: DumpState,
    /// Version as the control plane named it.
    pub version: String,
    /// Wire bytes in force; `None`: nothing was ever accepted.
    pub wire: Option<bytes::Bytes>,
    /// When they were accepted.
    pub updated: Option<SystemTime>,
    /// The last refusal, when it is newer than what is in force.
    pub error: Option<DumpError>,
}

/// Where a resource stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DumpState {
    /// In force.
    #[default]
    Active,
    /// Accepted, waits.
    Warming,
    /// Replaced, finishes its connections.
    Draining,
}

/// A refused update (`UpdateFailureState`).
#[derive(Debug, Clone, Default)]
pub struct DumpError {
    /// Wire bytes that were refused.
    pub wire: Option<bytes::Bytes>,
    /// Version refused.
    pub version: String,
    /// When.
    pub at: Option<SystemTime>,
    /// Why.
    pub details: String,
}

/// Query of a `config_dump` request.
#[derive(Debug, Clone, Default)]
pub struct DumpQuery {
    /// `include_eds`.
    pub include_eds: bool,
    /// `resource=dynamic_active_clusters` and the like: only this repeated field.
    pub resource: Option<String>,
    /// `name_regex`, applied to resource names.
    pub name_regex: Option<regex::Regex>,
}

impl ConfigDump {
    /// The JSON of `/config_dump`: one section a kind, in Envoy's order, filtered by the query.
    pub fn render(&self, query: &DumpQuery) -> Value {
        let pool = json::pool();
        let keep = |name: &str| query.name_regex.as_ref().is_none_or(|r| r.is_match(name));
        let mut sections = Vec::new();
        if !self.bootstrap.is_empty() {
            let mut section = section("BootstrapConfigDump");
            section.insert("bootstrap".into(), message(&pool, "envoy.config.bootstrap.v3.Bootstrap", &self.bootstrap));
            put_time(&mut section, self.started);
            sections.push(section);
        }
        sections.push(self.clusters_section(&pool, &keep));
        if !self.extensions.is_empty() {
            sections.push(self.extensions_section(&pool, &keep));
        }
        if query.include_eds {
            sections.push(self.endpoints_section(&pool, &keep));
        }
        sections.push(self.listeners_section(&pool, &keep));
        sections.push(self.routes_section(&pool, &keep));
        sections.push(self.secrets_section(&pool, &keep));
        if let Some(wanted) = &query.resource {
            let configs = sections.iter().filter_map(|s| s.get(wanted)).filter_map(Value::as_array).flatten();
            return json!({"configs": configs.collect::<Vec<_>>()});
        }
        json!({"configs": sections})
    }

    fn clusters_section(&self, pool: &DescriptorPool, keep: &dyn Fn(&str) -> bool) -> Map<String, Value> {
        let mut out = section("ClustersConfigDump");
        out.insert("version_info".into(), self.cds_version.clone().into());
        let one = |e: &DumpEntry| entry(pool, "envoy.config.cluster.v3.Cluster", "cluster", e);
        let pick =
            |f: &dyn Fn(&DumpEntry) -> bool| list(self.clusters.iter().filter(|e| keep(&e.name) && f(e)).map(one));
        out.insert("static_clusters".into(), pick(&|e| e.is_static));
        out.insert("dynamic_active_clusters".into(), pick(&|e| !e.is_static && e.state == DumpState::Active));
        out.insert("dynamic_warming_clusters".into(), pick(&|e| !e.is_static && e.state == DumpState::Warming));
        out
    }

    fn endpoints_section(&self, pool: &DescriptorPool, keep: &dyn Fn(&str) -> bool) -> Map<String, Value> {
        let kind = "envoy.config.endpoint.v3.ClusterLoadAssignment";
        let mut out = section("EndpointsConfigDump");
        for (name, is_static) in [("static_endpoint_configs", true), ("dynamic_endpoint_configs", false)] {
            let members = self.endpoints.iter().filter(|e| keep(&e.name) && e.is_static == is_static);
            out.insert(name.into(), list(members.map(|e| entry(pool, kind, "endpoint_config", e))));
        }
        out
    }

    fn listeners_section(&self, pool: &DescriptorPool, keep: &dyn Fn(&str) -> bool) -> Map<String, Value> {
        let kind = "envoy.config.listener.v3.Listener";
        let mut out = section("ListenersConfigDump");
        out.insert("version_info".into(), self.lds_version.clone().into());
        let (fixed, dynamic): (Vec<&DumpEntry>, Vec<&DumpEntry>) =
            self.listeners.iter().filter(|e| keep(&e.name)).partition(|e| e.is_static);
        out.insert("static_listeners".into(), list(fixed.into_iter().map(|e| entry(pool, kind, "listener", e))));
        let dynamic = dynamic.into_iter().map(|e| {
            let mut out = Map::new();
            out.insert("name".into(), e.name.clone().into());
            let state = match e.state {
                DumpState::Active => "active_state",
                DumpState::Warming => "warming_state",
                DumpState::Draining => "draining_state",
            };
            if e.wire.is_some() {
                let mut inner = entry(pool, kind, "listener", &DumpEntry { error: None, ..e.clone() });
                if let Some(object) = inner.as_object_mut() {
                    object.remove("client_status");
                }
                out.insert(state.into(), inner);
            }
            put_error(pool, kind, &mut out, e.error.as_ref());
            Value::Object(out)
        });
        out.insert("dynamic_listeners".into(), list(dynamic));
        out
    }

    fn routes_section(&self, pool: &DescriptorPool, keep: &dyn Fn(&str) -> bool) -> Map<String, Value> {
        let kind = "envoy.config.route.v3.RouteConfiguration";
        let mut out = section("RoutesConfigDump");
        for (name, is_static) in [("static_route_configs", true), ("dynamic_route_configs", false)] {
            let members = self.routes.iter().filter(|e| keep(&e.name) && e.is_static == is_static);
            out.insert(name.into(), list(members.map(|e| entry(pool, kind, "route_config", e))));
        }
        out
    }

    fn extensions_section(&self, pool: &DescriptorPool, keep: &dyn Fn(&str) -> bool) -> Map<String, Value> {
        let kind = "envoy.config.core.v3.TypedExtensionConfig";
        let mut out = section("EcdsConfigDump");
        let members = self.extensions.iter().filter(|e| keep(&e.name));
        out.insert("ecds_filters".into(), list(members.map(|e| entry(pool, kind, "ecds_filter", e))));
        out
    }

    fn secrets_section(&self, pool: &DescriptorPool, keep: &dyn Fn(&str) -> bool) -> Map<String, Value> {
        let kind = "envoy.extensions.transport_sockets.tls.v3.Secret";
        let mut out = section("SecretsConfigDump");
        let one = |e: &DumpEntry| {
            let mut value = entry(pool, kind, "secret", e);
            if let Some(object) = value.as_object_mut() {
                object.insert("name".into(), e.name.clone().into());
            }
            value
        };
        let pick =
            |f: &dyn Fn(&DumpEntry) -> bool| list(self.secrets.iter().filter(|e| keep(&e.name) && f(e)).map(one));
        out.insert("static_secrets".into(), pick(&|e| e.is_static));
        out.insert("dynamic_active_secrets".into(), pick(&|e| !e.is_static && e.state != DumpState::Warming));
        out.insert("dynamic_warming_secrets".into(), pick(&|e| !e.is_static && e.state == DumpState::Warming));
        out
    }
}

fn section(name: &str) -> Map<String, Value> {
    let mut out = Map::new();
    out.insert("@type".into(), format!("type.googleapis.com/envoy.admin.v3.{name}").into());
    out
}

fn list(items: impl Iterator<Item = Value>) -> Value {
    Value::Array(items.collect())
}

fn put_time(out: &mut Map<String, Value>, at: Option<SystemTime>) {
    if let Some(at) = at {
        out.insert("last_updated".into(), timestamp(at).into());
    }
}

/// `version_info`, the resource under `field`, `last_updated`, `error_state`, `client_status`.
fn entry(pool: &DescriptorPool, kind: &str, field: &str, e: &DumpEntry) -> Value {
    let mut out = Map::new();
    if !e.version.is_empty() {
        out.insert("version_info".into(), e.version.clone().into());
    }
    if let Some(wire) = &e.wire {
        out.insert(field.into(), typed_message(pool, kind, wire));
    }
    put_time(&mut out, e.updated);
    put_error(pool, kind, &mut out, e.error.as_ref());
    if !e.is_static {
        let status = match (&e.error, &e.wire) {
            (Some(_), _) => "NACKED",
            (None, Some(_)) => "ACKED",
            (None, None) => "REQUESTED",
        };
        out.insert("client_status".into(), status.into());
    }
    Value::Object(out)
}

fn put_error(pool: &DescriptorPool, kind: &str, out: &mut Map<String, Value>, error: Option<&DumpError>) {
    let Some(error) = error else { return };
    let mut state = Map::new();
    if let Some(wire) = &error.wire {
        state.insert("failed_configuration".into(), typed_message(pool, kind, wire));
    }
    if let Some(at) = error.at {
        state.insert("last_update_attempt".into(), timestamp(at).into());
    }
    state.insert("details".into(), error.details.clone().into());
    state.insert("version_info".into(), error.version.clone().into());
    out.insert("error_state".into(), Value::Object(state));
}

/// A message as an expanded `Any`.
fn typed_message(pool: &DescriptorPool, kind: &str, wire: &[u8]) -> Value {
    let mut value = message(pool, kind, wire);
    if let Some(object) = value.as_object_mut() {
        object.insert("@type".into(), format!("type.googleapis.com/{kind}").into());
    }
    value
}

/// A message as JSON with Envoy's field names. Of what cannot be decoded (a type that nobody described), wherever it
/// stands, only the length and a hash are shown: it may hold keys that [`redact`] would not see.
fn message(pool: &DescriptorPool, kind: &str, wire: &[u8]) -> Value {
    let options = SerializeOptions::new().use_proto_field_name(true).stringify_64_bit_integers(true);
    let json = |m: &DynamicMessage| m.serialize_with_options(serde_json::value::Serializer, &options).ok();
    let decoded = pool.get_message_by_name(kind).and_then(|d| DynamicMessage::decode(d, wire).ok());
    let shown = decoded.and_then(|mut m| {
        debug_assert_eq!(m.descriptor().full_name(), kind);
        json(&m).or_else(|| {
            cover_unknown(pool, &mut m, 0);
            json(&m)
        })
    });
    let mut value = shown.unwrap_or_else(|| undecodable(kind, wire));
    redact(&mut value);
    value
}

/// Deeper nesting is covered as a whole; protobuf's own decoders go no deeper.
const MAX_DEPTH: usize = 100;

/// What stands for bytes that nobody can read.
fn undecodable(kind: &str, wire: &[u8]) -> Value {
    json!({"undecodable": {"type": kind, "length": wire.len(), "xxh3": format!("{:032x}", xxh3_128(wire))}})
}

/// Puts [`undecodable`] in the place of each `Any` whose type is not known or whose bytes are not of its type.
fn cover_unknown(pool: &DescriptorPool, message: &mut DynamicMessage, depth: usize) {
    if message.descriptor().full_name() == "google.protobuf.Any" {
        cover_any(pool, message, depth);
        return;
    }
    for (_, value) in message.fields_mut() {
        match value {
            Dynamic::Message(inner) => cover_unknown(pool, inner, depth + 1),
            Dynamic::List(items) => {
                items.iter_mut().filter_map(Dynamic::as_message_mut).for_each(|m| cover_unknown(pool, m, depth + 1));
            }
            Dynamic::Map(entries) => {
                let values = entries.values_mut().filter_map(Dynamic::as_message_mut);
                values.for_each(|m| cover_unknown(pool, m, depth + 1));
            }
            _ => {}
        }
    }
}

fn cover_any(pool: &DescriptorPool, any: &mut DynamicMessage, depth: usize) {
    let url = any.get_field_by_name("type_url").and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default();
    let bytes = any.get_field_by_name("value").and_then(|v| v.as_bytes().cloned()).unwrap_or_default();
    if url.is_empty() && bytes.is_empty() {
        return;
    }
    let name = url.rsplit('/').next().unwrap_or_default();
    // A well-formed URL has a domain before the name; without one the serializer refuses what is inside.
    let known = pool.get_message_by_name(name).filter(|_| url.contains('/') && depth < MAX_DEPTH);
    let (url, bytes) = match known.and_then(|d| DynamicMessage::decode(d, bytes.clone()).ok()) {
        Some(mut inner) => {
            cover_unknown(pool, &mut inner, depth + 1);
            (url, inner.encode_to_vec())
        }
        None => {
            let text = |t: String| prost_types::Value { kind: Some(prost_types::value::Kind::StringValue(t)) };
            let fields = [
                ("undecodable".to_owned(), text(url)),
                ("length".to_owned(), text(bytes.len().to_string())),
                ("xxh3".to_owned(), text(format!("{:032x}", xxh3_128(&bytes)))),
            ];
            let cover = prost_types::Struct { fields: fields.into_iter().collect() };
            ("type.googleapis.com/google.protobuf.Struct".to_owned(), cover.encode_to_vec())
        }
    };
    any.set_field_by_name("type_url", Dynamic::String(url));
    any.set_field_by_name("value", Dynamic::Bytes(bytes.into()));
}

/// Private keys and passwords never leave, wherever they stand.
fn redact(value: &mut Value) {
    match value {
        Value::Object(map) => {
            for (key, inner) in map.iter_mut() {
                // Either spelling: in free-form structures names are as somebody wrote them.
                let name: String = key.chars().filter(|c| *c != '_').flat_map(char::to_lowercase).collect();
                if matches!(name.as_str(), "privatekey" | "password" | "sessionticketkeys" | "genericsecret") {
                    hide(inner);
                } else {
                    redact(inner);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(redact),
        _ => {}
    }
}

fn hide(value: &mut Value) {
    match value {
        Value::Object(map) => {
            for (key, inner) in map.iter_mut() {
                match key.as_str() {
                    // base64 of [redacted], as Envoy shows it
                    "inline_bytes" => *inner = "W3JlZGFjdGVkXQ==".into(),
                    // Where a secret lies is none, and what type holds it neither.
                    "filename" | "environment_variable" | "path" | "@type" => {}
                    _ => hide(inner),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(hide),
        Value::String(text) => "[redacted]".clone_into(text),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xds::envoy::config::core::v3::{DataSource, data_source::Specifier};
    use crate::xds::envoy::config::core::v3::{TransportSocket, transport_socket};
    use crate::xds::envoy::config::listener::v3::{Filter, FilterChain, Listener, filter};
    use crate::xds::envoy::extensions::transport_sockets::tls::v3 as tls;
    use crate::xds::google::protobuf::Any;

    #[test]
    fn keys_are_hidden_and_names_are_envoys() {
        let inline =
            |s: &str| DataSource { specifier: Some(Specifier::InlineString(s.to_owned())), ..DataSource::default() };
        let certificate = tls::TlsCertificate {
            certificate_chain: Some(inline("CERT")),
            private_key: Some(inline("SECRET-KEY")),
            ..tls::TlsCertificate::default()
        };
        let secret =
            tls::Secret { name: "default".to_owned(), r#type: Some(tls::secret::Type::TlsCertificate(certificate)) };
        let entry = DumpEntry {
            name: "default".to_owned(),
            version: "7".to_owned(),
            wire: Some(secret.encode_to_vec().into()),
            ..DumpEntry::default()
        };
        let dump = ConfigDump { secrets: vec![entry], ..ConfigDump::default() };
        let text = dump.render(&DumpQuery::default()).to_string();
        assert!(!text.contains("SECRET-KEY") && text.contains("[redacted]") && text.contains("CERT"), "{text}");
        let only = DumpQuery { resource: Some("dynamic_active_secrets".to_owned()), ..DumpQuery::default() };
        let value = dump.render(&only);
        assert_eq!(
            value["configs"][0]["secret"]["@type"],
            "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
        );
        assert_eq!(value["configs"][0]["version_info"], "7");
        let none = DumpQuery { name_regex: Some(regex::Regex::new("^x$").unwrap()), ..only };
        assert_eq!(dump.render(&none)["configs"], json!([]));
    }

    /// A listener with an inline key, beside whatever `filter` is.
    fn listener_with(filter: Any) -> Vec<u8> {
        let inline =
            |s: &str| DataSource { specifier: Some(Specifier::InlineString(s.to_owned())), ..Default::default() };
        let certificate = tls::TlsCertificate { private_key: Some(inline("SECRET-KEY")), ..Default::default() };
        let common = tls::CommonTlsContext { tls_certificates: vec![certificate], ..Default::default() };
        let context = tls::DownstreamTlsContext { common_tls_context: Some(common), ..Default::default() };
        let socket = TransportSocket {
            name: "tls".to_owned(),
            config_type: Some(transport_socket::ConfigType::TypedConfig(Any {
                type_url: "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext"
                    .to_owned(),
                value: context.encode_to_vec(),
            })),
        };
        let filter = Filter { name: "f".to_owned(), config_type: Some(filter::ConfigType::TypedConfig(filter)) };
        let chain = FilterChain { filters: vec![filter], transport_socket: Some(socket), ..Default::default() };
        Listener { name: "l".to_owned(), filter_chains: vec![chain], ..Default::default() }.encode_to_vec()
    }

    /// The listener as a refused one in a dump, as text: no spelling of the key may be in it.
    fn shown(wire: Vec<u8>) -> String {
        let hex: String = "SECRET-KEY".bytes().map(|b| format!("{b:02x}")).collect();
        let error = DumpError { wire: Some(wire.into()), details: "no".to_owned(), ..DumpError::default() };
        let entry = DumpEntry { name: "l".to_owned(), error: Some(error), ..DumpEntry::default() };
        let dump = ConfigDump { listeners: vec![entry], ..ConfigDump::default() };
        let text = dump.render(&DumpQuery::default()).to_string();
        for secret in ["SECRET-KEY", &hex, "U0VDUkVULUtFWQ"] {
            assert!(!text.contains(secret), "{text}");
        }
        text
    }

    #[test]
    fn keys_beside_and_inside_of_what_nobody_knows_are_hidden() {
        let unknown = |url: &str| Any { type_url: url.to_owned(), value: b"\x0a\x0aSECRET-KEY".to_vec() };
        let text = shown(listener_with(unknown("type.googleapis.com/my.unknown.Filter")));
        assert!(text.contains("my.unknown.Filter") && text.contains("\"length\":\"12\""), "{text}");
        assert!(text.contains("[redacted]") && text.contains("DownstreamTlsContext"), "the rest is shown: {text}");
        // A known type whose bytes are of another, a URL without a domain, none at all, garbage instead of a message.
        let hcm = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
        for url in [&format!("type.googleapis.com/{hcm}"), hcm, ""] {
            assert!(shown(listener_with(unknown(url))).contains("length"), "{url}");
        }
        assert!(shown(b"\xffSECRET-KEY".to_vec()).contains("undecodable"));
    }

    #[test]
    fn keys_in_free_form_structures_are_hidden() {
        let mut value = json!({"value": {"privateKey": "PEM", "password": {"filename": "/x", "inline_string": "PEM"}}});
        redact(&mut value);
        let hidden = json!({"value": {"privateKey": "[redacted]", "password": {"filename": "/x", "inline_string": "[redacted]"}}});
        assert_eq!(value, hidden);
    }
}
