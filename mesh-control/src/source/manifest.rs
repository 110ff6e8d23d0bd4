//! Manifests: YAML or JSON text to typed objects, with findings that name file, line, object and field.
//!
//! Text is decoded twice at most: first typed with the path of every error, and only when something is wrong once
//! more with positions, to turn paths into lines. Knows no folder and no time.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use base64::Engine as _;
use mesh_api::labels::Labels;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::core;
use super::ingress::{CLASS_ANNOTATION, DEFAULT_CLASS_ANNOTATION};
use super::object::{Kind, Meta, Object, ObjectKey, Position, Spec};
use super::position::Locator;
use crate::validate::{self, Finding, Level, codes};

/// What a document turned out to be.
#[derive(Debug)]
pub struct Reading {
    /// Key, when kind and name could be read.
    pub key: Option<ObjectKey>,
    /// The object; absent when it is refused.
    pub object: Option<Object>,
    /// What is wrong or worth knowing.
    pub findings: Vec<Finding>,
    /// The raw manifest, for the fail-safe form of a refused security object.
    pub raw: Value,
}

impl Reading {
    /// Something is wrong with the document.
    pub fn refused(&self) -> bool {
        self.object.is_none() && self.findings.iter().any(|f| f.level == Level::Error)
    }
}

/// Reads every document of a file. `.json` files hold one document; `kind: List` is taken apart.
pub fn read(path: &Path, text: &str) -> Vec<Reading> {
    let mut readings = Vec::new();
    for document in documents(path, text) {
        read_document(path, &document, &mut readings);
    }
    readings
}

/// A document of a file with the number of lines before it.
pub(crate) struct Document<'a> {
    pub text: &'a str,
    pub lines_before: u32,
}

/// The documents of a file.
pub(crate) fn documents<'a>(path: &Path, text: &'a str) -> Vec<Document<'a>> {
    if path.extension().is_some_and(|e| e == "json") {
        return vec![Document { text, lines_before: 0 }];
    }
    let mut documents = Vec::new();
    let (mut start, mut start_line, mut offset) = (0, 0, 0);
    for (number, line) in text.split_inclusive('\n').enumerate() {
        let bare = line.trim_end();
        if bare == "---" || bare.starts_with("--- ") || bare.starts_with("---\t") {
            documents.push(Document { text: text.get(start..offset).unwrap_or_default(), lines_before: start_line });
            start = offset + line.len();
            start_line = u32::try_from(number + 1).unwrap_or(u32::MAX);
        }
        offset += line.len();
    }
    documents.push(Document { text: text.get(start..).unwrap_or_default(), lines_before: start_line });
    documents
}

fn read_document(path: &Path, document: &Document<'_>, out: &mut Vec<Reading>) {
    let value: Value = match mesh_api::yaml::from_str(document.text) {
        Ok(value) => value,
        Err(error) => {
            let message = format!("does not parse: {}", first_line(&error.to_string()));
            let mut finding = Finding::error("", message).code(codes::UNPARSABLE);
            finding.file = Some(path.to_owned());
            if let Some(at) = error.location() {
                finding.line = Some(document.lines_before + clamp(at.line()));
                finding.column = Some(clamp(at.column()));
            }
            // Whether the settings of the mesh are there must be known: without them everything is open.
            let key = validate::resembles_mesh_config(document.text).then(mesh_config_key);
            finding.object.clone_from(&key);
            out.push(Reading { key, object: None, findings: vec![finding], raw: Value::Null });
            return;
        }
    };
    if value.is_null() {
        return;
    }
    let locator = Locator::new(document.text, document.lines_before);
    if value.get("kind").and_then(Value::as_str) == Some("List") {
        let items = value.get("items").and_then(Value::as_array).cloned().unwrap_or_default();
        for (i, item) in items.into_iter().enumerate() {
            out.push(read_value(path, item, &locator, &format!("items[{i}].")));
        }
    } else {
        out.push(read_value(path, value, &locator, ""));
    }
}

fn mesh_config_key() -> ObjectKey {
    let (namespace, name, _) = validate::MESH_CONFIG;
    ObjectKey::new(Kind::ConfigMap, namespace, name)
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or(text)
}

fn clamp(n: u64) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

fn read_value(path: &Path, value: Value, locator: &Locator<'_>, prefix: &str) -> Reading {
    let position = Position { file: path.to_owned(), line: locator.line(prefix).unwrap_or(1) };
    let mut reading = read_at(value, Some(position));
    for finding in &mut reading.findings {
        finding.file = Some(path.to_owned());
        if let Some((line, column)) = locator.find(&format!("{prefix}{}", finding.field)) {
            finding.line = Some(line);
            finding.column = Some(column);
        }
    }
    reading
}

/// Reads an object that stands in no file: an API server's.
pub fn read_object(value: Value) -> Reading {
    read_at(value, None)
}

fn read_at(mut value: Value, position: Option<Position>) -> Reading {
    strip_nulls(&mut value);
    let (key, object, mut findings) = match header(&value) {
        Ok(Some((kind, key, meta))) => {
            let mut findings = Vec::new();
            let object =
                decode(kind, &value, &mut findings).map(|spec| Object { key: key.clone(), meta, spec, position });
            let object = object.filter(|object| {
                findings.extend(validate::validate(object));
                findings.extend(validate::without_effect(kind, &value));
                !findings.iter().any(|f| f.level == Level::Error)
            });
            (Some(key), object, findings)
        }
        Ok(None) => (None, None, vec![]),
        Err((key, finding)) => (key, None, vec![finding]),
    };
    if let Some(object) = &object {
        findings.retain(|f| !validate::suppressed(&object.meta.annotations, f.code));
    }
    for finding in &mut findings {
        finding.code_by_level();
        finding.object = key.clone();
    }
    Reading { key, object, findings, raw: value }
}

/// A null is an absent field, as in the API server.
pub(crate) fn strip_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, v| !v.is_null());
            map.values_mut().for_each(strip_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(strip_nulls),
        _ => {}
    }
}

/// Metadata as manifests carry it.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Metadata {
    name: String,
    namespace: String,
    labels: Labels,
    annotations: Labels,
    creation_timestamp: Option<jiff::Timestamp>,
    generation: i64,
    uid: String,
    deletion_timestamp: Option<jiff::Timestamp>,
}

/// Name and namespace as far as they can be told, also of an object that is refused.
fn key_of(kind: Kind, value: &Value) -> Option<ObjectKey> {
    let metadata = value.get("metadata")?;
    let text = |field: &str| match metadata.get(field) {
        None => Some(String::new()),
        Some(Value::String(text)) => Some(text.clone()),
        Some(given @ (Value::Number(_) | Value::Bool(_))) => Some(given.to_string()),
        Some(_) => None,
    };
    let name = text("name").filter(|name| !name.is_empty())?;
    let namespace = if kind.cluster_scoped() { String::new() } else { text("namespace")? };
    let namespace = if namespace.is_empty() && !kind.cluster_scoped() { "default" } else { &namespace };
    Some(ObjectKey::new(kind, namespace, &name))
}

/// Kind, key and metadata. `None`: not for us. An error comes with the key, as far as that can be told.
fn header(value: &Value) -> Result<Option<(Kind, ObjectKey, Meta)>, (Option<ObjectKey>, Finding)> {
    let text = |field: &str| value.get(field).and_then(Value::as_str);
    let missing = |field: &str| {
        let finding = Finding::error(field, "is missing: every document is one Kubernetes object");
        (None, finding.code(codes::UNPARSABLE))
    };
    let api_version = text("apiVersion").ok_or_else(|| missing("apiVersion"))?;
    let kind_name = text("kind").ok_or_else(|| missing("kind"))?;
    let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
    let Some(kind) = Kind::find(group, kind_name) else {
        let message = format!("kind {kind_name} of {api_version} is not read by this mesh and has no effect");
        // What an application is made of stands beside what the mesh reads, and is for Kubernetes: no mistake.
        return Err(match of_applications(group, kind_name) {
            true => (None, Finding::info("kind", message)),
            false => (None, Finding::warning("kind", message).code(codes::NOT_READ)),
        });
    };
    let key = key_of(kind, value);
    if !kind.versions().contains(&version) {
        let served = kind.versions().join(", ");
        let message = format!("version {version} of {kind} is not served, use {served}");
        return Err((key, Finding::error("apiVersion", message)));
    }
    let metadata = value.get("metadata").cloned().unwrap_or_default();
    let metadata: Metadata = serde_path_to_error::deserialize(&metadata)
        .map_err(|e| (key.clone(), Finding::error(format!("metadata.{}", e.path()), e.inner().to_string())))?;
    let key = key.ok_or_else(|| (None, Finding::error("metadata.name", "is missing").code(codes::UNPARSABLE)))?;
    let annotations = metadata.annotations.into_iter().filter(|(k, _)| meaningful_annotation(kind, k)).collect();
    // Kinds of Kubernetes tell of more than their spec by it.
    let generation = if kind.is_core() { 0 } else { metadata.generation };
    Ok(Some((
        kind,
        key,
        Meta {
            labels: metadata.labels,
            annotations,
            creation: metadata.creation_timestamp,
            generation,
            uid: if kind == Kind::Gateway { metadata.uid } else { String::new() },
            ending: kind == Kind::Gateway && metadata.deletion_timestamp.is_some(),
        },
    )))
}

/// Kinds of Kubernetes that manifests of applications hold, and that are not the mesh's to read.
fn of_applications(group: &str, kind: &str) -> bool {
    match group {
        "" => matches!(kind, "ServiceAccount" | "PersistentVolumeClaim" | "ReplicationController"),
        "apps" => matches!(kind, "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet"),
        "batch" => matches!(kind, "Job" | "CronJob"),
        "autoscaling" => kind == "HorizontalPodAutoscaler",
        "policy" => kind == "PodDisruptionBudget",
        "networking.k8s.io" => kind == "NetworkPolicy",
        "rbac.authorization.k8s.io" => matches!(kind, "Role" | "RoleBinding" | "ClusterRole" | "ClusterRoleBinding"),
        _ => false,
    }
}

/// Annotations of other tools must not look like a change. Those of Gateways go on to what is made for them.
fn meaningful_annotation(kind: Kind, key: &str) -> bool {
    kind == Kind::Gateway && !key.starts_with("kubectl.kubernetes.io/")
        || matches!(key, CLASS_ANNOTATION | DEFAULT_CLASS_ANNOTATION)
        || key.split_once('/').is_some_and(|(domain, _)| domain.ends_with("istio.io"))
}

/// The typed content, or errors in `findings`.
fn decode(kind: Kind, value: &Value, findings: &mut Vec<Finding>) -> Option<Spec> {
    let mut reader = SpecReader { kind, value, findings };
    Some(match kind {
        Kind::Namespace => Spec::Namespace,
        Kind::Node => Spec::Node,
        Kind::Service => Spec::Service(Arc::new(reader.service()?)),
        Kind::EndpointSlice => Spec::EndpointSlice(reader.whole()?),
        Kind::Pod => Spec::Pod(Arc::new(pod(value))),
        Kind::Secret => Spec::Secret(Arc::new(reader.secret()?)),
        Kind::ConfigMap => Spec::ConfigMap(reader.whole()?),
        Kind::Ingress => Spec::Ingress(reader.spec()?),
        Kind::IngressClass => Spec::IngressClass(reader.spec().map(Arc::unwrap_or_clone)?),
        Kind::VirtualService => Spec::VirtualService(reader.spec()?),
        Kind::DestinationRule => Spec::DestinationRule(reader.spec()?),
        Kind::IstioGateway => Spec::IstioGateway(reader.spec()?),
        Kind::ServiceEntry => Spec::ServiceEntry(reader.spec()?),
        Kind::WorkloadEntry => Spec::WorkloadEntry(reader.spec()?),
        Kind::WorkloadGroup => Spec::WorkloadGroup(reader.spec()?),
        Kind::Sidecar => Spec::Sidecar(reader.spec()?),
        Kind::ProxyConfig => Spec::ProxyConfig(reader.spec()?),
        Kind::EnvoyFilter => Spec::EnvoyFilter(reader.spec()?),
        Kind::PeerAuthentication => Spec::PeerAuthentication(reader.spec()?),
        Kind::RequestAuthentication => Spec::RequestAuthentication(reader.spec()?),
        Kind::AuthorizationPolicy => Spec::AuthorizationPolicy(reader.spec()?),
        Kind::Telemetry => Spec::Telemetry(reader.spec()?),
        Kind::WasmPlugin => Spec::WasmPlugin(reader.spec()?),
        Kind::TrafficExtension => Spec::TrafficExtension(reader.spec()?),
        Kind::GatewayClass => Spec::GatewayClass(reader.spec()?),
        Kind::Gateway => Spec::Gateway(reader.spec()?),
        Kind::HttpRoute => Spec::HttpRoute(reader.spec()?),
        Kind::GrpcRoute => Spec::GrpcRoute(reader.spec()?),
        Kind::ReferenceGrant => Spec::ReferenceGrant(reader.spec()?),
        Kind::TlsRoute => Spec::TlsRoute(reader.spec()?),
        Kind::TcpRoute => Spec::TcpRoute(reader.spec()?),
        Kind::BackendTlsPolicy => Spec::BackendTlsPolicy(reader.spec()?),
        Kind::ListenerSet => Spec::ListenerSet(reader.spec()?),
    })
}

struct SpecReader<'a> {
    kind: Kind,
    value: &'a Value,
    findings: &'a mut Vec<Finding>,
}

impl SpecReader<'_> {
    /// The `spec` of a kind; unknown fields are errors.
    fn spec<T: DeserializeOwned>(&mut self) -> Option<Arc<T>> {
        let empty = Value::Object(serde_json::Map::new());
        let spec = self.value.get("spec").unwrap_or(&empty);
        for field in self.value.as_object().into_iter().flat_map(|m| m.keys()) {
            if !matches!(field.as_str(), "apiVersion" | "kind" | "metadata" | "spec" | "status") {
                self.findings.push(Finding::error(field.clone(), "is not a known field"));
            }
        }
        self.typed(spec, "spec.").map(Arc::new)
    }

    /// A core kind without `spec`.
    fn whole<T: DeserializeOwned>(&mut self) -> Option<Arc<T>> {
        self.typed(self.value, "").map(Arc::new)
    }

    fn typed<T: DeserializeOwned>(&mut self, value: &Value, prefix: &str) -> Option<T> {
        let core = self.kind.is_core();
        let mut unknown = Vec::new();
        let mut track = serde_path_to_error::Track::new();
        let mut note = |path: serde_ignored::Path<'_>| unknown.push(ignored_path(&path));
        let ignoring = serde_ignored::Deserializer::new(value, &mut note);
        let result = T::deserialize(serde_path_to_error::Deserializer::new(ignoring, &mut track));
        let before = self.findings.len();
        if !core {
            for path in unknown {
                let field = format!("{prefix}{path}");
                self.findings.push(Finding::error(field, format!("is not a field of {}", self.kind)));
            }
        }
        match result {
            Ok(value) if self.findings.len() == before => Some(value),
            Ok(_) => None,
            Err(error) => {
                self.findings.push(Finding::error(format!("{prefix}{}", track.path()), error.to_string()));
                None
            }
        }
    }

    fn service(&mut self) -> Option<core::Service> {
        let empty = Value::Object(serde_json::Map::new());
        let mut service: core::Service = self.typed(self.value.get("spec").unwrap_or(&empty), "spec.")?;
        let ingress = self.value.pointer("/status/loadBalancer/ingress").and_then(Value::as_array);
        service.load_balancer = ingress
            .into_iter()
            .flatten()
            .filter_map(|i| i.get("ip").or_else(|| i.get("hostname")).and_then(Value::as_str).map(str::to_owned))
            .collect();
        Some(service)
    }

    fn secret(&mut self) -> Option<core::Secret> {
        #[derive(Deserialize, Default)]
        #[serde(rename_all = "camelCase", default)]
        struct Raw {
            #[serde(rename = "type")]
            kind: String,
            data: BTreeMap<String, String>,
            string_data: BTreeMap<String, String>,
        }
        let raw: Raw = self.typed(self.value, "")?;
        let mut data: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        for (key, text) in raw.data {
            let compact: String = text.split_whitespace().collect();
            match base64::engine::general_purpose::STANDARD.decode(compact) {
                Ok(bytes) => {
                    data.insert(key, bytes);
                }
                Err(e) => {
                    self.findings.push(Finding::error(format!("data.{key}"), format!("is not base64: {e}")));
                    return None;
                }
            }
        }
        data.extend(raw.string_data.into_iter().map(|(k, v)| (k, v.into_bytes())));
        Some(core::Secret { kind: raw.kind, data })
    }
}

/// `serde_ignored`'s path in our notation: no `?` for options.
pub(crate) fn ignored_path(path: &serde_ignored::Path<'_>) -> String {
    use serde_ignored::Path as P;
    match path {
        P::Root => String::new(),
        P::Seq { parent, index } => format!("{}[{index}]", ignored_path(parent)),
        P::Map { parent, key } => match ignored_path(parent) {
            p if p.is_empty() => key.clone(),
            p => format!("{p}.{key}"),
        },
        P::Some { parent } | P::NewtypeStruct { parent } | P::NewtypeVariant { parent } => ignored_path(parent),
    }
}

/// Pods come from the API server, not from people: what cannot be read is left out.
fn pod(value: &Value) -> core::Pod {
    let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    let list = |pointer: &str| value.pointer(pointer).and_then(Value::as_array).into_iter().flatten();
    let mut ips: Vec<IpAddr> = list("/status/podIPs").filter_map(|i| i.get("ip")?.as_str()?.parse().ok()).collect();
    if ips.is_empty() {
        ips.extend(text("/status/podIP").parse::<IpAddr>().ok());
    }
    let containers = list("/spec/containers").chain(list("/spec/initContainers"));
    let ports = containers
        .flat_map(|c| c.get("ports").and_then(Value::as_array).into_iter().flatten())
        .filter_map(|p| {
            let number = p.get("containerPort")?.as_u64()?;
            Some((p.get("name")?.as_str()?.to_owned(), u16::try_from(number).ok()?))
        })
        .collect();
    let ready = list("/status/conditions").any(|c| {
        c.get("type").and_then(Value::as_str) == Some("Ready")
            && c.get("status").and_then(Value::as_str) == Some("True")
    });
    let account = text("/spec/serviceAccountName");
    core::Pod {
        ips,
        service_account: if account.is_empty() { "default".to_owned() } else { account },
        node: text("/spec/nodeName"),
        host_network: value.pointer("/spec/hostNetwork").and_then(Value::as_bool).unwrap_or(false),
        ports,
        ready,
        finished: matches!(text("/status/phase").as_str(), "Succeeded" | "Failed"),
    }
}

/// Line and column of a field of an object in a file, for findings that are made after the file was read.
pub fn locate(text: &str, path: &Path, key: &ObjectKey, field: &str) -> Option<(u32, u32)> {
    documents(path, text).into_iter().find_map(|document| {
        let value: Value = mesh_api::yaml::from_str(document.text).ok()?;
        let locator = Locator::new(document.text, document.lines_before);
        let is_it = |value: &Value| matches!(header(value), Ok(Some((_, k, _))) if k == *key);
        if is_it(&value) {
            return locator.find(field);
        }
        let items = value.get("items").and_then(Value::as_array)?;
        let index = items.iter().position(is_it)?;
        locator.find(&format!("items[{index}].{field}"))
    })
}

/// Whether a file of a folder is read.
pub fn is_manifest(path: &Path) -> bool {
    let hidden = path.file_name().is_some_and(|n| n.to_string_lossy().starts_with('.'));
    !hidden && path.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json")
}

/// A finding on a file as a whole.
pub(super) fn file_error(path: &Path, message: String) -> Finding {
    let mut finding = Finding::error("", message);
    finding.file = Some(PathBuf::from(path));
    finding
}

/// Reads a file from disk.
///
/// # Errors
/// A finding that names the file.
pub fn read_file(path: &Path) -> Result<Vec<u8>, Finding> {
    let fail = |message: String| file_error(path, message);
    /// A manifest larger than this is a mistake, not configuration.
    const MAX_FILE: u64 = 64 << 20;
    let size = std::fs::metadata(path).map_err(|e| fail(format!("cannot be read: {e}")))?.len();
    if size > MAX_FILE {
        return Err(fail(format!("is {size} bytes long, more than the {MAX_FILE} that are read")));
    }
    std::fs::read(path).map_err(|e| fail(format!("cannot be read: {e}")))
}

/// Reads every document of a file's content.
///
/// # Errors
/// A finding that names the file.
pub fn read_bytes(path: &Path, bytes: &[u8]) -> Result<Vec<Reading>, Finding> {
    let text = std::str::from_utf8(bytes).map_err(|e| file_error(path, format!("is not UTF-8: {e}")))?;
    Ok(read(path, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Reading {
        let mut all = read(Path::new("a.yaml"), text);
        assert_eq!(all.len(), 1);
        all.remove(0)
    }

    #[test]
    fn several_documents_and_lists() {
        let text = "# nothing\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n---\napiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Namespace\n  metadata: {name: b}\n";
        let names: Vec<String> =
            read(Path::new("x.yaml"), text).iter().map(|r| r.key.as_ref().unwrap().name.to_string()).collect();
        assert_eq!(names, ["a", "b"]);
    }

    #[test]
    fn wrong_type_names_line_and_field() {
        let r = one(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: web}\nspec:\n  hosts: [web]\n  http:\n  - route:\n    - destination: {host: web}\n      weight: many\n",
        );
        assert!(r.object.is_none());
        let f = &r.findings[0];
        assert_eq!((f.field.as_str(), f.line), ("spec.http[0].route[0].weight", Some(9)));
        assert!(f.message.contains("many"), "{f}");
        assert_eq!(r.key.unwrap().to_string(), "VirtualService default/web");
    }

    #[test]
    fn kinds_of_applications_are_no_mistake_and_others_may_be() {
        for (text, level) in [
            ("apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\n", Level::Info),
            ("apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: web}\n", Level::Info),
            ("apiVersion: v1\nkind: Deployment\nmetadata: {name: web}\n", Level::Warning),
            ("apiVersion: networking.istio.io/v1\nkind: VirtualServices\nmetadata: {name: web}\n", Level::Warning),
        ] {
            let r = one(text);
            assert!(r.object.is_none());
            assert_eq!(r.findings[0].level, level, "{text}");
        }
    }

    #[test]
    fn unknown_field_is_refused_in_istio_kinds_only() {
        let r = one(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: web}\nspec:\n  hosts: [web]\n  htp:\n  - route: []\n",
        );
        assert!(r.object.is_none());
        assert_eq!((r.findings[0].field.as_str(), r.findings[0].line), ("spec.htp", Some(6)));
        let r =
            one("apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {ports: [{port: 80}], somethingNew: 1}\n");
        assert!(r.object.is_some(), "{:?}", r.findings);
    }

    #[test]
    fn syntax_errors_name_the_line_in_the_file() {
        let all = read(Path::new("a.yaml"), "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n---\nkind: [\n");
        assert!(all[0].object.is_some());
        assert!(all[1].key.is_none());
        assert!(all[1].findings[0].line.unwrap() >= 5, "{:?}", all[1].findings);
    }

    #[test]
    fn a_refused_header_names_its_object_all_the_same() {
        for (head, field) in [
            ("apiVersion: security.istio.io/v1beta2\nmetadata: {name: a, namespace: shop}", "apiVersion"),
            (
                "apiVersion: security.istio.io/v1\nmetadata: {name: a, namespace: shop, labels: {v: 1}}",
                "metadata.labels.v",
            ),
            ("apiVersion: security.istio.io/v1\nmetadata: {name: a, namespace: shop, labels: 5}", "metadata.labels"),
        ] {
            let r = one(&format!("{head}\nkind: AuthorizationPolicy\nspec: {{action: DENY, rules: [{{}}]}}\n"));
            assert!(r.refused());
            assert_eq!(r.findings[0].field, field);
            assert_eq!(r.key.unwrap().to_string(), "AuthorizationPolicy shop/a");
        }
        let r = one("apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: 5}\nspec: {}\n");
        assert_eq!((r.refused(), &*r.key.unwrap().name), (true, "5"));
    }

    #[test]
    fn extensions_that_do_not_run_are_no_small_matter() {
        let text = |strategy: &str| {
            format!(
                "apiVersion: extensions.istio.io/v1alpha1\nkind: WasmPlugin\nmetadata: {{name: auth}}\nspec: {{url: 'oci://a', failStrategy: {strategy}}}\n"
            )
        };
        for (strategy, word) in [("FAIL_CLOSE", "are refused"), ("FAIL_OPEN", "pass without it")] {
            let readings = read(Path::new("a.yaml"), &text(strategy));
            let [Reading { findings, object: Some(_), .. }] = readings.as_slice() else { panic!("{readings:?}") };
            assert_eq!((findings[0].level, findings[0].code), (Level::Warning, Some(codes::NOT_RUN)));
            assert!(findings[0].message.contains(word), "{}", findings[0].message);
        }
    }

    #[test]
    fn nulls_are_absent() {
        let r = one(
            "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: a, namespace: shop}\nspec: {host: a, trafficPolicy: null, subsets: null}\n",
        );
        assert!(r.object.is_some(), "{:?}", r.findings);
    }
}
