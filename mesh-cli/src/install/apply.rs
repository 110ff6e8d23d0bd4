//! Applies components, object by object, and tells what each application did.

use serde_json::{Value, json};

use super::remove;
use super::render::{Component, MANAGED_BY, REVISION};
use crate::client::cluster::{Cluster, name, namespace, title};
use crate::exit::Failure;
use crate::output::Table;

/// What became of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// It was not there.
    Created,
    /// It was different.
    Changed,
    /// It was as it should be.
    Same,
    /// It is not ours to change.
    Kept,
    /// It was of an earlier installation, and is not wanted any more.
    Removed,
}

/// An object with what became of it.
#[derive(Debug, Clone)]
pub struct Done {
    /// `Kind namespace/name`.
    pub title: String,
    /// What became of it.
    pub action: Action,
    /// Why it was kept.
    pub note: String,
    /// As it was before.
    pub before: Option<Value>,
    /// As it is now; in a dry run, as it would be.
    pub after: Value,
}

/// Applies one object.
///
/// # Errors
/// What the server says.
pub async fn object(cluster: &Cluster, wanted: &Value, dry_run: bool) -> Result<Done, Failure> {
    let before = cluster.live(wanted).await?;
    let done = |action, note: &str, before: Option<Value>, after: Value| Done {
        title: title(wanted),
        action,
        note: note.to_owned(),
        before,
        after,
    };
    let Some(live) = before else {
        // A dry run cannot put anything into a namespace, or be an object of a kind, that does not exist yet.
        let after = if dry_run { wanted.clone() } else { cluster.apply(wanted, false).await? };
        return Ok(done(Action::Created, "", None, after));
    };
    if let Some(why) = kept(wanted, &live) {
        return Ok(done(Action::Kept, &why, Some(live.clone()), live));
    }
    let after = cluster.apply(&adopt(wanted, &live), dry_run).await?;
    let same = if dry_run { content(&live) == content(&after) } else { version(&live) == version(&after) };
    let action = if same { Action::Same } else { Action::Changed };
    Ok(done(action, "", Some(live), after))
}

/// Takes away what a component had and has no longer.
///
/// # Errors
/// What the server says.
pub async fn prune(
    cluster: &Cluster,
    component: &Component,
    revision: &str,
    dry_run: bool,
) -> Result<Vec<Done>, Failure> {
    let mut all = Vec::new();
    for object in remove::outdated(cluster, component, revision).await? {
        if !dry_run {
            cluster.delete(&reference(&object)).await?;
        }
        let (title, note) = (title(&object), "it is not wanted any more".to_owned());
        all.push(Done { title, action: Action::Removed, note, before: Some(object), after: Value::Null });
    }
    Ok(all)
}

fn version(object: &Value) -> &Value {
    &object["metadata"]["resourceVersion"]
}

/// An object without what the server counts.
pub fn content(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(metadata) = object["metadata"].as_object_mut() {
        for key in ["resourceVersion", "generation", "uid", "creationTimestamp"] {
            metadata.remove(key);
        }
    }
    if let Some(object) = object.as_object_mut() {
        object.remove("status");
    }
    object
}

/// Why an object that is there is left alone.
fn kept(wanted: &Value, live: &Value) -> Option<String> {
    match wanted["kind"].as_str()? {
        // Whoever made it may want it back as it was.
        "Namespace" if live["metadata"]["labels"][MANAGED_BY.0] != MANAGED_BY.1 => {
            Some("it was there before".to_owned())
        }
        "CustomResourceDefinition" => {
            let more = newer(&wanted["spec"]["versions"], &live["spec"]["versions"])?;
            Some(format!("the one in the cluster is newer: it has {more}"))
        }
        _ => None,
    }
}

/// A version or field that definitions in the cluster have and ours have not.
fn newer(ours: &Value, live: &Value) -> Option<String> {
    for version in live.as_array()? {
        let same = |v: &&Value| v["name"] == version["name"];
        let Some(own) = ours.as_array()?.iter().find(same) else {
            return Some(format!("version {}", version["name"].as_str().unwrap_or_default()));
        };
        const SPEC: &str = "/schema/openAPIV3Schema/properties/spec";
        let fields = |v: &Value| v.pointer(SPEC).cloned().unwrap_or_default();
        if let Some(field) = more_fields(&fields(own), &fields(version), "spec") {
            return Some(format!("field {field}"));
        }
    }
    None
}

/// A field that a schema has and ours has not; where ours is open, there is none.
fn more_fields(ours: &Value, theirs: &Value, at: &str) -> Option<String> {
    if ours["x-kubernetes-preserve-unknown-fields"] == true {
        return None;
    }
    for (name, field) in theirs["properties"].as_object().into_iter().flatten() {
        let path = format!("{at}.{name}");
        match ours["properties"].get(name) {
            None => return Some(path),
            Some(own) => {
                if let Some(found) = more_fields(own, field, &path) {
                    return Some(found);
                }
            }
        }
    }
    ["items", "additionalProperties"].iter().find_map(|inner| more_fields(ours.get(inner)?, theirs.get(inner)?, at))
}

/// What is wanted, with what the control plane set meanwhile: the validating webhook fails closed once it answers.
fn adopt(wanted: &Value, live: &Value) -> Value {
    let mut wanted = wanted.clone();
    if wanted["kind"] != "ValidatingWebhookConfiguration" {
        return wanted;
    }
    for webhook in wanted["webhooks"].as_array_mut().into_iter().flatten() {
        let same = |w: &&Value| w["name"] == webhook["name"];
        if let Some(there) = live["webhooks"].as_array().and_then(|all| all.iter().find(same)) {
            webhook["failurePolicy"] = there["failurePolicy"].clone();
        }
    }
    wanted
}

/// What a dry run would do, or a run did, as a table.
pub fn table(done: &[(String, Done)]) -> String {
    let mut table = Table::new(&["COMPONENT", "OBJECT", "REVISION", "ACTION", "NOTE"]);
    for (component, done) in done {
        let action = match done.action {
            Action::Created => "create",
            Action::Changed => "change",
            Action::Same => "same",
            Action::Kept => "keep",
            Action::Removed => "remove",
        };
        let object = if done.action == Action::Removed { done.before.as_ref() } else { Some(&done.after) };
        let revision = object.and_then(|o| o["metadata"]["labels"][REVISION].as_str()).unwrap_or("-");
        table.row([component, done.title.as_str(), revision, action, done.note.as_str()]);
    }
    table.render()
}

/// A reference that is enough to delete an object.
pub fn reference(object: &Value) -> Value {
    let mut metadata = json!({"name": name(object)});
    if let Some(namespace) = namespace(object) {
        metadata["namespace"] = json!(namespace);
    }
    json!({"apiVersion": object["apiVersion"], "kind": object["kind"], "metadata": metadata})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definition(versions: Value) -> Value {
        json!({"kind": "CustomResourceDefinition", "spec": {"versions": versions}})
    }

    #[test]
    fn newer_definitions_are_kept() {
        let version = |name: &str, fields: Value| {
            let spec =
                json!({"type": "object", "properties": {"list": {"type": "array", "items": {"properties": fields}}}});
            json!({"name": name, "schema": {"openAPIV3Schema": {"properties": {"spec": spec}}}})
        };
        let ours = definition(json!([version("v1", json!({"a": {}, "b": {}}))]));
        let older = definition(json!([version("v1", json!({"a": {}}))]));
        assert_eq!(kept(&ours, &older), None);
        let fields = definition(json!([version("v1", json!({"a": {}, "c": {}}))]));
        assert_eq!(kept(&ours, &fields).unwrap(), "the one in the cluster is newer: it has field spec.list.c");
        let versions = definition(json!([version("v1", json!({})), version("v2", json!({}))]));
        assert_eq!(kept(&ours, &versions).unwrap(), "the one in the cluster is newer: it has version v2");
    }

    #[test]
    fn what_the_control_plane_set_stays() {
        let hook = |policy: &str| json!({"kind": "ValidatingWebhookConfiguration", "webhooks": [{"name": "a", "failurePolicy": policy}]});
        assert_eq!(adopt(&hook("Ignore"), &hook("Fail")), hook("Fail"));
    }

    #[test]
    fn a_namespace_of_the_user_is_left_alone() {
        let namespace = |labels: Value| json!({"kind": "Namespace", "metadata": {"name": "a", "labels": labels}});
        let ours = namespace(json!({MANAGED_BY.0: MANAGED_BY.1}));
        assert!(kept(&ours, &namespace(json!({}))).is_some());
        assert!(kept(&ours, &ours).is_none());
    }
}
