//! Files of objects: which of them have pods, and text in and out. A document that does not change is handed on as it was
//! written, comments and all.

use std::fmt;
use std::path::{Path, PathBuf};

use mesh_api::crd::networking::ProxyConfig;
use mesh_api::labels::Labels;
use mesh_api::meshconfig::MeshConfig;

use super::Settings;
use super::node::Node;
use super::pod::{self, Outcome, Place, PodError};
use super::proxy_config::ProxyConfigObject;
use super::template::Owner;
use crate::source::manifest::documents;
use crate::source::position::Locator;
use crate::validate::decode_mesh_config as decode;

/// Where in an object of this kind the pod is; `None`: it has none.
fn pod_path(api_version: &str, kind: &str) -> Option<&'static [&'static str]> {
    let group = api_version.rsplit_once('/').map_or("", |(group, _)| group);
    match (group, kind) {
        ("", "Pod") => Some(&[]),
        ("", "ReplicationController") => Some(&["spec", "template"]),
        ("apps", "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet") => Some(&["spec", "template"]),
        ("batch", "Job") => Some(&["spec", "template"]),
        ("batch", "CronJob") => Some(&["spec", "jobTemplate", "spec", "template"]),
        _ => None,
    }
}

/// Something wrong in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// File; `-` is standard input.
    pub file: PathBuf,
    /// Line, if it can be told.
    pub line: Option<u32>,
    /// `Kind namespace/name`, as far as it can be told.
    pub object: String,
    /// Field.
    pub field: String,
    /// What is wrong there, or has no effect.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        for part in [&self.object, &self.field].into_iter().filter(|p| !p.is_empty()) {
            write!(f, ": {part}")?;
        }
        write!(f, ": {}", self.message)
    }
}

/// A file's text.
#[derive(Debug, Clone, Copy)]
pub struct File<'a> {
    /// Name; `-` is standard input.
    pub path: &'a Path,
    /// Content.
    pub text: &'a str,
    /// Namespace of objects that name none.
    pub namespace: &'a str,
}

/// What came of a file.
#[derive(Debug, Default)]
pub struct Changed {
    /// The file anew.
    pub text: String,
    /// What has no effect or was left out, with the reason.
    pub remarks: Vec<Problem>,
}

/// What objects in files say of injection into others.
#[derive(Debug, Clone, Default)]
pub struct Surroundings {
    /// Labels of the namespaces that are there.
    pub namespaces: Vec<(String, Labels)>,
    /// ProxyConfig objects.
    pub proxy_configs: Vec<ProxyConfigObject>,
}

/// Reads namespaces and ProxyConfigs.
///
/// # Errors
/// What does not parse, and which field is wrong.
pub fn surroundings(file: File<'_>) -> Result<Surroundings, Problem> {
    let mut out = Surroundings::default();
    for document in documents(file.path, file.text) {
        let node = parse(file, document.text, document.lines_before)?;
        let at = Position { file, text: document.text, lines_before: document.lines_before };
        for (object, prefix) in objects(&node) {
            let head = Head::of(object, file.namespace);
            match (head.api_version.as_str(), head.kind.as_str()) {
                ("v1", "Namespace") => {
                    let labels = object.at(&["metadata", "labels"]).cloned().unwrap_or(Node::map([]));
                    let labels =
                        labels.decode().map_err(|e| at.problem(&head, &prefix, "metadata.labels", e.to_string()))?;
                    out.namespaces.push((head.name, labels));
                }
                (api, "ProxyConfig") if api.starts_with("networking.istio.io/") => {
                    let spec = object.get("spec").cloned().unwrap_or(Node::map([]));
                    let spec: ProxyConfig =
                        spec.decode().map_err(|e| at.problem(&head, &prefix, "spec", e.to_string()))?;
                    out.proxy_configs.push(ProxyConfigObject { namespace: head.namespace, name: head.name, spec });
                }
                _ => {}
            }
        }
    }
    Ok(out)
}

/// Reads mesh-wide settings.
///
/// # Errors
/// Which field is wrong or not known.
pub fn mesh_config(file: File<'_>) -> Result<MeshConfig, Problem> {
    let at = Position { file, text: file.text, lines_before: 0 };
    let problem = |field: &str, message: String| at.problem(&Head::default(), "", field, message);
    let decoded = decode(file.text).map_err(|(field, message)| problem(&field, message))?;
    match decoded.unknown() {
        Some(field) => Err(problem(field, "is not a field of MeshConfig".to_owned())),
        None => Ok(decoded.mesh),
    }
}

/// Injects into every pod of a file that is to be.
///
/// # Errors
/// The first thing that is wrong.
pub fn inject(file: File<'_>, settings: &Settings, namespaces: &[(String, Labels)]) -> Result<Changed, Problem> {
    rewrite(file, |pod, head| {
        let owner = Owner { api_version: head.api_version.clone(), kind: head.kind.clone(), name: head.name.clone() };
        let namespace_labels = namespaces.iter().find(|(name, _)| *name == head.namespace).map(|(_, labels)| labels);
        let place = Place { namespace: &head.namespace, namespace_labels, owner: &owner, selected: false };
        Ok(match pod::inject(pod, place, settings)? {
            Outcome::Injected(remarks) => {
                let of = |r: super::annotations::Remark| (format!("metadata.annotations.{}", r.name), r.message);
                remarks.into_iter().map(of).collect()
            }
            Outcome::Skipped(reason) => vec![(String::new(), format!("is not injected: {reason}"))],
        })
    })
}

/// Takes injection back from every pod of a file.
///
/// # Errors
/// The first thing that does not parse.
pub fn uninject(file: File<'_>) -> Result<Changed, Problem> {
    rewrite(file, |pod, _| {
        pod::strip(pod);
        Ok(vec![])
    })
}

/// Remarks: field and message.
type Remarks = Vec<(String, String)>;

fn rewrite(
    file: File<'_>,
    mut change: impl FnMut(&mut Node, &Head) -> Result<Remarks, PodError>,
) -> Result<Changed, Problem> {
    let is_json = file.path.extension().is_some_and(|e| e == "json") || file.text.trim_start().starts_with('{');
    let mut out = Changed::default();
    for (number, document) in documents(file.path, file.text).into_iter().enumerate() {
        let mut node = parse(file, document.text, document.lines_before)?;
        let at = Position { file, text: document.text, lines_before: document.lines_before };
        let before = node.clone();
        let mut todo: Vec<(&mut Node, String)> = Vec::new();
        if node.get("kind").and_then(Node::as_str) == Some("List") {
            if let Some(Node::List(items)) = node.get_mut("items") {
                todo.extend(items.iter_mut().enumerate().map(|(i, item)| (item, format!("items[{i}]."))));
            }
        } else {
            todo.push((&mut node, String::new()));
        }
        for (object, prefix) in todo {
            let head = Head::of(object, file.namespace);
            let Some(path) = pod_path(&head.api_version, &head.kind) else { continue };
            let prefix = path.iter().fold(prefix, |p, key| format!("{p}{key}."));
            let pod = path.iter().try_fold(object, |node, key| node.get_mut(key));
            let missing = || at.problem(&head, &prefix, "", "has no pod template".to_owned());
            let pod = pod.ok_or_else(missing)?;
            let remarks = change(pod, &head).map_err(|e| at.problem(&head, &prefix, &e.field, e.message))?;
            out.remarks.extend(remarks.into_iter().map(|(field, message)| at.problem(&head, &prefix, &field, message)));
        }
        if number > 0 {
            out.text.push_str("---\n");
        }
        if node == before {
            out.text.push_str(document.text);
            if !document.text.is_empty() && !document.text.ends_with('\n') {
                out.text.push('\n');
            }
            continue;
        }
        let text = if is_json {
            serde_json::to_string_pretty(&node).map(|t| t + "\n").map_err(|e| e.to_string())
        } else {
            serde_saphyr::to_string(&node).map_err(|e| e.to_string())
        };
        out.text.push_str(&text.map_err(|e| at.problem(&Head::default(), "", "", e))?);
    }
    Ok(out)
}

fn parse(file: File<'_>, text: &str, lines_before: u32) -> Result<Node, Problem> {
    mesh_api::yaml::from_str(text).map_err(|error| {
        let line = error.location().map(|at| lines_before + u32::try_from(at.line()).unwrap_or(u32::MAX));
        let message = error.to_string();
        let message = format!("does not parse: {}", message.lines().next().unwrap_or_default());
        Problem { file: file.path.to_owned(), line, object: String::new(), field: String::new(), message }
    })
}

/// The objects of a document, with the path of each.
fn objects(node: &Node) -> Vec<(&Node, String)> {
    if node.get("kind").and_then(Node::as_str) == Some("List") {
        return node.items("items").iter().enumerate().map(|(i, item)| (item, format!("items[{i}]."))).collect();
    }
    vec![(node, String::new())]
}

/// What an object says of itself.
#[derive(Debug, Default)]
struct Head {
    api_version: String,
    kind: String,
    namespace: String,
    name: String,
}

impl Head {
    fn of(object: &Node, namespace: &str) -> Self {
        let text = |path: &[&str]| object.at(path).and_then(Node::as_str).unwrap_or_default().to_owned();
        let own = text(&["metadata", "namespace"]);
        Self {
            api_version: text(&["apiVersion"]),
            kind: text(&["kind"]),
            namespace: if own.is_empty() { namespace.to_owned() } else { own },
            name: text(&["metadata", "name"]),
        }
    }
}

/// A document, for telling places in it.
struct Position<'a> {
    file: File<'a>,
    text: &'a str,
    lines_before: u32,
}

impl Position<'_> {
    fn problem(&self, head: &Head, prefix: &str, field: &str, message: String) -> Problem {
        let field = format!("{prefix}{field}");
        let field = field.trim_end_matches('.').to_owned();
        let locator = Locator::new(self.text, self.lines_before);
        let line = locator.find(&field).map(|(line, _)| line).or_else(|| locator.line(""));
        let object = if head.kind.is_empty() {
            String::new()
        } else {
            format!("{} {}/{}", head.kind, head.namespace, head.name)
        };
        Problem { file: self.file.path.to_owned(), line, object, field, message }
    }
}
