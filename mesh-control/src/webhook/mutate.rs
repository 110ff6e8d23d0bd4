//! Pods get their proxy: the same code as `meshctl inject`, with what the cluster says of namespace and settings.

use serde_json::{Map, Value, json};

use super::{
    Webhook,
    review::{Answer, Review},
};
use crate::{
    index::Index,
    inject::{
        Owner, Settings,
        node::Node,
        pod::{self, Outcome, Place},
    },
};

/// Injects into a pod.
pub(super) fn answer(review: &Review, index: &Index, webhook: &Webhook) -> Answer {
    let request = &review.request;
    if request.operation == "DELETE" || request.object.is_null() {
        return Answer::default();
    }
    let settings = match Settings::of(index, &webhook.revision, webhook.native_sidecars) {
        Ok(settings) => settings,
        Err(why) => return Answer::refuse(why),
    };
    let before = &request.object;
    let mut pod: Node = match serde_json::from_value(before.clone()) {
        Ok(pod) => pod,
        Err(error) => return Answer::refuse(format!("the pod is not readable: {error}")),
    };
    let own = before.pointer("/metadata/namespace").and_then(Value::as_str).unwrap_or("default");
    let namespace = if request.namespace.is_empty() { own } else { &request.namespace };
    // Two webhooks may fit a pod: that of tag `default`, and that of the default revision. The first one counts.
    if let Some(other) = pod::injected_by(&pod).filter(|revision| revision != settings.values.revision()) {
        tracing::debug!(target: "webhook", namespace, "a pod is not injected: it has its proxy from revision {other}");
        return Answer::default();
    }
    let owner = owner(before);
    // Labels of the namespace were judged by the selectors of the webhook, which may be a tag's: only they know its name.
    let place = Place { namespace, namespace_labels: None, owner: &owner, selected: true };
    match pod::inject(&mut pod, place, &settings) {
        Ok(Outcome::Injected(remarks)) => {
            let after = match serde_json::to_value(&pod) {
                Ok(after) => after,
                Err(error) => return Answer::refuse(error.to_string()),
            };
            let warnings = remarks.into_iter().map(|r| format!("annotation {} {}", r.name, r.message)).collect();
            Answer { refused: None, patch: patch(before, &after), warnings }
        }
        Ok(Outcome::Skipped(reason)) => {
            tracing::debug!(target: "webhook", namespace, "a pod is not injected: {reason}");
            Answer::default()
        }
        Err(error) => Answer::refuse(format!("{}: {}", error.field, error.message)),
    }
}

/// What a pod belongs to, in the user's eyes: of a ReplicaSet its Deployment, of a Job its CronJob.
fn owner(pod: &Value) -> Owner {
    let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let meta = pod.get("metadata").unwrap_or(&Value::Null);
    let references = meta.get("ownerReferences").and_then(Value::as_array);
    let controls = |o: &&Value| o.get("controller").and_then(Value::as_bool) == Some(true);
    let Some(controller) = references.and_then(|all| all.iter().find(controls)) else {
        let name = match text(meta, "name") {
            name if name.is_empty() => text(meta, "generateName").trim_end_matches('-').to_owned(),
            name => name,
        };
        return Owner { api_version: "v1".to_owned(), kind: "Pod".to_owned(), name };
    };
    let (api_version, kind, name) =
        (text(controller, "apiVersion"), text(controller, "kind"), text(controller, "name"));
    let hash = meta.pointer("/labels/pod-template-hash").and_then(Value::as_str);
    match kind.as_str() {
        "ReplicaSet" => {
            if let Some(deployment) = hash.and_then(|hash| name.strip_suffix(hash)?.strip_suffix('-')) {
                return Owner { api_version, kind: "Deployment".to_owned(), name: deployment.to_owned() };
            }
        }
        "Job" => {
            // The time of its run, in minutes.
            let scheduled = name
                .rsplit_once('-')
                .filter(|(_, at)| (8..=10).contains(&at.len()) && at.bytes().all(|b| b.is_ascii_digit()));
            if let Some((cron_job, _)) = scheduled {
                return Owner { api_version, kind: "CronJob".to_owned(), name: cron_job.to_owned() };
            }
        }
        _ => {}
    }
    Owner { api_version, kind, name }
}

/// The steps from one pod to the other: fields of `metadata` and `spec` are replaced whole.
fn patch(before: &Value, after: &Value) -> Vec<Value> {
    let mut out = Vec::new();
    let none = Map::new();
    for part in ["metadata", "spec"] {
        let (was, is) = (before.get(part).and_then(Value::as_object), after.get(part).and_then(Value::as_object));
        let (was, is) = match (was, is) {
            (None, Some(is)) => {
                out.push(json!({"op": "add", "path": format!("/{part}"), "value": is}));
                continue;
            }
            (was, is) => (was.unwrap_or(&none), is.unwrap_or(&none)),
        };
        let path = |field: &str| format!("/{part}/{}", field.replace('~', "~0").replace('/', "~1"));
        for (field, value) in is.iter().filter(|(field, value)| was.get(*field) != Some(*value)) {
            out.push(json!({"op": "add", "path": path(field), "value": value}));
        }
        for field in was.keys().filter(|field| !is.contains_key(*field)) {
            out.push(json!({"op": "remove", "path": path(field)}));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::index::testing::writer;

    const OBJECTS: &str = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {istio-injection: enabled}}\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: tagged, labels: {istio.io/rev: prod}}\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio-sidecar-injector, namespace: istio-system}\ndata: {values: '{\"global\": {\"hub\": \"example.com/mesh\", \"tag\": \"7\"}}'}\n";

    fn ask(namespace: &str, pod: Value) -> Answer {
        let body = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
                          "request": {"uid": "u", "operation": "CREATE", "namespace": namespace, "object": pod}});
        let review = Review::read(body.to_string().as_bytes()).unwrap();
        let webhook = Webhook {
            index: Arc::default(),
            namespace: "istio-system".to_owned(),
            revision: "default".to_owned(),
            native_sidecars: true,
        };
        answer(&review, writer(OBJECTS).index(), &webhook)
    }

    fn pod() -> Value {
        json!({"apiVersion": "v1", "kind": "Pod",
               "metadata": {"generateName": "web-5d4-", "labels": {"app": "web", "pod-template-hash": "5d4"},
                            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-5d4",
                                                 "controller": true}]},
               "spec": {"containers": [{"name": "web", "image": "web:1"}]}})
    }

    #[test]
    fn pods_of_a_labelled_namespace_get_a_proxy() {
        let answer = ask("shop", pod());
        assert_eq!(answer.refused, None);
        let spec = answer.patch.iter().find(|step| step["path"] == "/spec/initContainers").expect("init containers");
        let containers = spec["value"].as_array().unwrap();
        let proxy = containers.iter().find(|c| c["name"] == "istio-proxy").expect("a sidecar");
        assert_eq!(proxy["image"], "example.com/mesh/mesh-proxy:7", "values of the cluster count");
        assert_eq!(proxy["restartPolicy"], "Always");
    }

    #[test]
    fn whoever_is_asked_injects_but_only_once() {
        // A tag's webhook asks for pods of namespaces that name the tag, not the revision.
        assert!(!ask("tagged", pod()).patch.is_empty());
        let mut refused = pod();
        refused["metadata"]["labels"]["sidecar.istio.io/inject"] = "false".into();
        assert!(ask("tagged", refused).patch.is_empty());
        let by = |revision: &str| {
            let mut pod = pod();
            let status = json!({"containers": [], "revision": revision}).to_string();
            pod["metadata"]["annotations"] = json!({"sidecar.istio.io/status": status});
            pod
        };
        assert!(ask("shop", by("blue")).patch.is_empty(), "another revision was first");
        assert!(!ask("shop", by("default")).patch.is_empty(), "the pod was made of one that runs");
    }

    #[test]
    fn a_wrong_annotation_is_refused_by_name() {
        let mut wrong = pod();
        wrong["metadata"]["annotations"] = json!({"traffic.sidecar.istio.io/includeInboundPorts": "x"});
        let why = ask("shop", wrong).refused.unwrap();
        assert!(why.contains("includeInboundPorts"), "{why}");
    }

    #[test]
    fn owners_are_what_users_wrote() {
        let name = |pod: &Value| {
            let owner = owner(pod);
            format!("{} {}", owner.kind, owner.name)
        };
        assert_eq!(name(&pod()), "Deployment web");
        let of = |kind: &str, owner: &str| json!({"metadata": {"name": "p", "ownerReferences": [{"apiVersion": "x/v1", "kind": kind, "name": owner, "controller": true}]}});
        assert_eq!(name(&of("Job", "clean-28312345")), "CronJob clean");
        assert_eq!(name(&of("Job", "once")), "Job once");
        assert_eq!(name(&of("StatefulSet", "db")), "StatefulSet db");
        assert_eq!(name(&json!({"metadata": {"name": "p"}})), "Pod p");
    }

    #[test]
    fn patches_touch_what_changed() {
        let before = json!({"metadata": {"name": "p", "labels": {"a": "b"}}, "spec": {"x": 1, "gone": 2}});
        let after = json!({"metadata": {"name": "p", "labels": {"a": "c"}}, "spec": {"x": 1, "new": 3}});
        let steps: Vec<String> = patch(&before, &after)
            .iter()
            .map(|s| format!("{} {}", s["op"].as_str().unwrap(), s["path"].as_str().unwrap()))
            .collect();
        assert_eq!(steps, ["add /metadata/labels", "add /spec/new", "remove /spec/gone"]);
    }
}
