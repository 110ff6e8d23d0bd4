//! Security objects as they were last good, kept in the state folder: a restart while a file cannot be read must not
//! drop what it declared. Owns that file, nothing else; when its content counts is the folder's business.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context;
use serde_json::{Map, Value, json};

use super::manifest;
use super::object::{Object, Spec};
use crate::ca::state;

/// Name of the file: manifests, one document each. Not called YAML, lest a folder of configuration around it reads it.
const FILE: &str = "last-good-security";

/// The file.
#[derive(Debug)]
pub(super) struct Kept {
    path: PathBuf,
    content: String,
}

impl Kept {
    /// What was kept last; what cannot be read of it is reported and lost.
    pub(super) fn open(state_dir: &Path) -> (Self, Vec<Arc<Object>>) {
        let path = state_dir.join(FILE);
        let content = match std::fs::read_to_string(&path) {
            Ok(content) => content,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(e) => {
                tracing::error!(target: "config", "{} cannot be read: {e}", path.display());
                String::new()
            }
        };
        let mut objects = Vec::new();
        for reading in manifest::read(&path, &content) {
            match reading.object {
                Some(object) => objects.push(Arc::new(object)),
                None => {
                    reading.findings.iter().for_each(|finding| tracing::error!(target: "config", "{finding}"));
                }
            }
        }
        (Self { path, content }, objects)
    }

    /// Keeps these; writes only what is new.
    pub(super) fn save<'a>(&mut self, objects: impl Iterator<Item = &'a Arc<Object>>) {
        let mut objects: Vec<&Arc<Object>> = objects.collect();
        objects.sort_by(|a, b| a.key.cmp(&b.key));
        let documents: Vec<String> = objects.iter().filter_map(|o| Some(document(o)?.to_string())).collect();
        let content = documents.join("\n---\n");
        if content == self.content {
            return;
        }
        let dir = self.path.parent().unwrap_or(Path::new("."));
        // Private: the keys of a token's issuer may be symmetric.
        let written = state::ensure(dir).and_then(|()| state::replace(&self.path, &content, state::PRIVATE));
        match written.context("security objects cannot be kept for a restart") {
            Ok(()) => self.content = content,
            Err(error) => tracing::error!(target: "config", "{error:#}"),
        }
    }
}

/// The manifest of a security object; `None`: it is none.
fn document(object: &Object) -> Option<Value> {
    let spec = match &object.spec {
        Spec::AuthorizationPolicy(spec) => serde_json::to_value(spec),
        Spec::PeerAuthentication(spec) => serde_json::to_value(spec),
        Spec::RequestAuthentication(spec) => serde_json::to_value(spec),
        Spec::WasmPlugin(spec) => serde_json::to_value(spec),
        Spec::TrafficExtension(spec) => serde_json::to_value(spec),
        _ => return None,
    };
    let key = &object.key;
    let mut metadata = Map::new();
    metadata.insert("name".into(), (*key.name).into());
    metadata.insert("namespace".into(), (*key.namespace).into());
    metadata.insert("labels".into(), json!(object.meta.labels));
    metadata.insert("annotations".into(), json!(object.meta.annotations));
    metadata.extend(object.meta.creation.map(|at| ("creationTimestamp".to_owned(), at.to_string().into())));
    let version = key.kind.versions().first()?;
    let api_version = format!("{}/{version}", key.kind.group());
    Some(json!({"apiVersion": api_version, "kind": key.kind.name(), "metadata": metadata, "spec": spec.ok()?}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_comes_back_as_it_was() {
        let yaml = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a, namespace: shop, creationTimestamp: '2024-01-02T03:04:05Z', annotations: {istio.io/dry-run: 'true'}}\nspec: {action: DENY, selector: {matchLabels: {app: web}}, rules: [{}, {from: [{source: {ipBlocks: [10.0.0.0/8]}}], to: [{operation: {ports: ['80']}}], when: [{key: source.ip, notValues: [10.0.0.1]}]}]}\n---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: b, namespace: shop}\nspec: {selector: {matchLabels: {app: web}}, mtls: {mode: STRICT}, portLevelMtls: {80: {mode: DISABLE}}}\n---\napiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {name: c, namespace: shop}\nspec: {jwtRules: [{issuer: i, jwks: '{\"keys\": []}', timeout: 5s, fromHeaders: [{name: x}]}]}\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n";
        let objects: Vec<Arc<Object>> = manifest::read(Path::new("a.yaml"), yaml)
            .into_iter()
            .map(|r| Arc::new(r.object.unwrap_or_else(|| panic!("{:?}", r.findings))))
            .collect();
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        let (mut kept, before) = Kept::open(&state);
        assert!(before.is_empty());
        kept.save(objects.iter());
        let (_, after) = Kept::open(&state);
        assert_eq!(after.len(), 3);
        for new in &after {
            let old = objects.iter().find(|o| o.key == new.key).unwrap();
            assert_eq!((&new.meta, &new.spec), (&old.meta, &old.spec));
        }
    }
}
