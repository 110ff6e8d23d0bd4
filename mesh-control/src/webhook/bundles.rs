//! Makes our webhooks known to the API server: the roots by which it knows us, written into the webhook configurations
//! that are installed, as often as either changes.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures_util::{StreamExt as _, stream::select_all};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
    core::{ApiResource, DynamicObject, GroupVersionKind},
    runtime::{WatchStreamExt as _, watcher},
};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::ca::Authority;

/// Whose webhooks, and by which roots they are known.
#[derive(Debug, Clone)]
pub struct Bundles {
    /// Namespace of this control plane, whose Services the webhooks lead to.
    pub namespace: String,
    /// Revision of this control plane.
    pub revision: String,
    /// Who signs the webhooks' certificate.
    pub authority: Arc<Authority>,
}

/// Roots may change without anybody telling.
const LOOK: Duration = Duration::from_secs(5);

/// Kind and name of the resource.
type Kind = (&'static str, &'static str);

const KINDS: [Kind; 2] = [
    ("MutatingWebhookConfiguration", "mutatingwebhookconfigurations"),
    ("ValidatingWebhookConfiguration", "validatingwebhookconfigurations"),
];

fn api(client: &Client, (kind, plural): Kind) -> Api<DynamicObject> {
    let kind = GroupVersionKind::gvk("admissionregistration.k8s.io", "v1", kind);
    Api::all_with(client.clone(), &ApiResource::from_gvk_with_plural(&kind, plural))
}

/// Keeps the bundles while leading, until nobody says whether we do.
pub async fn run(client: Client, bundles: Bundles, mut leading: watch::Receiver<bool>) -> anyhow::Result<()> {
    loop {
        if leading.wait_for(|leads| *leads).await.is_err() {
            return Ok(());
        }
        let selector = format!("istio.io/rev={}", bundles.revision);
        let watches = KINDS.map(|kind| {
            let config = watcher::Config::default().labels(&selector);
            // Objects of a list do not say what they are.
            watcher(api(&client, kind), config).default_backoff().map(move |event| (kind, event)).boxed()
        });
        let mut events = select_all(watches);
        let mut known: BTreeMap<(Kind, String), DynamicObject> = BTreeMap::new();
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while *leading.borrow() {
            tokio::select! {
                Some((kind, event)) = events.next() => match event {
                    Ok(watcher::Event::Apply(o) | watcher::Event::InitApply(o)) => {
                        let name = o.metadata.name.clone().unwrap_or_default();
                        let after = mend(&client, &bundles, (kind, &name), o).await;
                        known.insert((kind, name), after);
                    }
                    Ok(watcher::Event::Delete(o)) => {
                        known.remove(&(kind, o.metadata.name.unwrap_or_default()));
                    }
                    Ok(_) => {}
                    Err(error) => tracing::debug!(target: "webhook", "webhooks cannot be watched: {error}"),
                },
                _ = look.tick() => {
                    for ((kind, name), object) in &mut known {
                        *object = mend(&client, &bundles, (*kind, name), object.clone()).await;
                    }
                }
                changed = leading.changed() => if changed.is_err() { return Ok(()) },
            }
        }
    }
}

/// Writes the roots where others stand. The object as it is afterwards.
async fn mend(client: &Client, bundles: &Bundles, (kind, name): (Kind, &str), object: DynamicObject) -> DynamicObject {
    let steps = steps(&object.data, &bundles.namespace, &STANDARD.encode(&*bundles.authority.roots_pem()));
    if steps.is_empty() {
        return object;
    }
    let Ok(patch) = serde_json::from_value(Value::Array(steps)) else { return object };
    let patch: Patch<()> = Patch::Json(patch);
    match api(client, kind).patch(name, &PatchParams::default(), &patch).await {
        Ok(after) => {
            tracing::info!(target: "webhook", kind = kind.0, name, "the API server knows our roots");
            after
        }
        Err(error) => {
            tracing::warn!(target: "webhook", kind = kind.0, name, "roots cannot be written: {error}");
            object
        }
    }
}

/// What is to be changed: bundles, and the policy of a validating webhook that was installed before anybody answered it.
fn steps(object: &Value, namespace: &str, bundle: &str) -> Vec<Value> {
    let mut out = Vec::new();
    for (i, webhook) in object.get("webhooks").and_then(Value::as_array).into_iter().flatten().enumerate() {
        let config = webhook.get("clientConfig").unwrap_or(&Value::Null);
        // One that leads to somewhere else is not ours: another mesh may have the same revision in another namespace.
        let service = |field: &str| config.pointer(&format!("/service/{field}")).and_then(Value::as_str);
        let leads_here = service("namespace") == Some(namespace);
        let ours = |path: &&str| leads_here && (path.starts_with("/inject") || path.starts_with("/validate"));
        let Some(path) = service("path").filter(ours) else { continue };
        if config.get("caBundle").and_then(Value::as_str) != Some(bundle) {
            out.push(json!({"op": "add", "path": format!("/webhooks/{i}/clientConfig/caBundle"), "value": bundle}));
        }
        if path.starts_with("/validate") && webhook.get("failurePolicy").and_then(Value::as_str) == Some("Ignore") {
            out.push(json!({"op": "add", "path": format!("/webhooks/{i}/failurePolicy"), "value": "Fail"}));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_in_our_own_is_written() {
        let hook = |namespace: &str, path: &str, bundle: &str, policy: &str| {
            let service = json!({"namespace": namespace, "name": "istiod", "path": path});
            json!({"clientConfig": {"service": service, "caBundle": bundle}, "failurePolicy": policy})
        };
        let all = json!({"webhooks": [
            hook("a", "/inject", "old", "Fail"), hook("a", "/inject", "new", "Fail"),
            hook("a", "/other", "old", "Ignore"), hook("a", "/validate", "new", "Ignore"),
            hook("b", "/inject", "old", "Fail"), hook("b", "/validate", "old", "Ignore"),
            {"clientConfig": {"url": "https://elsewhere/inject", "caBundle": "old"}},
        ]});
        let steps_of = |all: &Value| steps(all, "a", "new");
        let paths: Vec<String> = steps_of(&all).iter().map(|s| s["path"].as_str().unwrap().to_owned()).collect();
        assert_eq!(paths, ["/webhooks/0/clientConfig/caBundle", "/webhooks/3/failurePolicy"]);
        assert!(steps_of(&json!({})).is_empty());
    }
}
