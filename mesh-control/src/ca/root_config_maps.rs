//! The roots in every namespace, as ConfigMap `istio-ca-root-cert`: proxies know the control plane by them before they
//! have anything else.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures_util::StreamExt as _;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
    core::{ApiResource, DynamicObject, GroupVersionKind},
    runtime::{WatchStreamExt as _, watcher},
};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::Authority;

/// Name of the ConfigMap in each namespace.
pub const ROOT_CONFIG_MAP: &str = "istio-ca-root-cert";
/// Its key.
const KEY: &str = "root-cert.pem";
/// By this the map is known as ours.
const LABEL: (&str, &str) = ("istio.io/config", "true");
/// Roots may change without anybody telling, and what failed is tried again.
const LOOK: Duration = Duration::from_secs(2);
/// Whom the API server knows as the writer.
const MANAGER: &str = "istiod";

fn kind() -> ApiResource {
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk("", "v1", "ConfigMap"), "configmaps")
}

/// Keeps the ConfigMaps while leading, until nobody says whether we do. `namespaces` are those of the moment.
///
/// # Errors
/// Never; the type is that of a task.
pub async fn run(
    client: Client,
    authority: Arc<Authority>,
    namespaces: impl Fn() -> BTreeSet<Arc<str>> + Send,
    mut leading: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    loop {
        if leading.wait_for(|leads| *leads).await.is_err() {
            return Ok(());
        }
        let all: Api<DynamicObject> = Api::all_with(client.clone(), &kind());
        let config = watcher::Config::default().fields(&format!("metadata.name={ROOT_CONFIG_MAP}"));
        let mut events = watcher(all, config).default_backoff().boxed();
        // What each namespace has.
        let mut have: BTreeMap<String, String> = BTreeMap::new();
        let mut complete = false;
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while *leading.borrow() {
            tokio::select! {
                Some(event) = events.next() => match event {
                    Ok(watcher::Event::Init) => have.clear(),
                    Ok(watcher::Event::InitDone) => {
                        complete = true;
                        look.reset_immediately();
                    }
                    Ok(watcher::Event::Apply(o) | watcher::Event::InitApply(o)) => {
                        let content = o.data.pointer(&format!("/data/{KEY}")).and_then(Value::as_str);
                        let content = content.unwrap_or_default().to_owned();
                        have.insert(o.metadata.namespace.unwrap_or_default(), content);
                    }
                    Ok(watcher::Event::Delete(o)) => {
                        have.remove(&o.metadata.namespace.unwrap_or_default());
                        look.reset_immediately();
                    }
                    Err(error) => tracing::debug!(target: "ca", "root ConfigMaps cannot be watched: {error}"),
                },
                _ = look.tick(), if complete => {
                    // Lets roots go whose time has passed.
                    authority.roots();
                    let roots = authority.roots_pem();
                    for namespace in namespaces() {
                        let lacks = have.get(&*namespace).is_none_or(|h| **h != *roots);
                        if lacks && write(&client, &namespace, &roots).await {
                            have.insert(namespace.to_string(), roots.to_string());
                        }
                    }
                }
                changed = leading.changed() => if changed.is_err() { return Ok(()) },
            }
        }
    }
}

/// Whether it is there now.
async fn write(client: &Client, namespace: &str, roots: &str) -> bool {
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &kind());
    let map = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": ROOT_CONFIG_MAP, "namespace": namespace, "labels": {LABEL.0: LABEL.1}},
        "data": {KEY: roots},
    });
    match api.patch(ROOT_CONFIG_MAP, &PatchParams::apply(MANAGER).force(), &Patch::Apply(&map)).await {
        Ok(_) => true,
        // The namespace ends, or has ended.
        Err(kube::Error::Api(status)) if matches!(status.code, 403 | 404 | 409) => {
            let ends = status.code == 404 || status.message.contains("being terminated");
            if !ends {
                tracing::warn!(target: "ca", namespace, "roots cannot be written: {}", status.message);
            }
            ends
        }
        Err(error) => {
            tracing::warn!(target: "ca", namespace, "roots cannot be written: {error}");
            false
        }
    }
}
