//! The API server, as far as it is asked for what is made for Gateways. Knows no Gateway but by the label of its objects.

use std::collections::BTreeSet;

use futures_util::{
    StreamExt as _,
    stream::{BoxStream, SelectAll, select_all},
};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
    core::{ApiResource, DynamicObject, GroupVersionKind},
    runtime::{WatchStreamExt as _, watcher},
};
use serde_json::{Value, json};

use super::{
    Failure,
    ledger::Ledger,
    made::{MadeKey, MadeKind},
    render::MANAGED,
};
use crate::{
    index::Index,
    source::object::Kind,
    translate::{gateway_api::OWN_CLASS, status::GATEWAY_CONTROLLER},
};

/// Whom the API server knows as the writer.
const MANAGER: &str = "istio.io/gateway-controller";

type Event = (MadeKind, watcher::Result<watcher::Event<DynamicObject>>);

/// Who is asked.
pub(super) struct Cluster(pub(super) Client);

/// What happens to what is ours.
pub(super) struct Events(SelectAll<BoxStream<'static, Event>>);

fn api(client: &Client, kind: MadeKind, namespace: Option<&str>) -> Api<DynamicObject> {
    let gvk = GroupVersionKind::gvk(kind.group(), kind.version(), kind.name());
    let resource = ApiResource::from_gvk_with_plural(&gvk, &kind.plural());
    match namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    }
}

/// Without what only servers need, and without its type, which lists do not tell.
fn value(mut object: DynamicObject) -> Value {
    object.types = None;
    object.metadata.managed_fields = None;
    let mut value = serde_json::to_value(object).unwrap_or_default();
    if let Value::Object(map) = &mut value {
        map.remove("status");
    }
    value
}

fn key(kind: MadeKind, object: &DynamicObject) -> MadeKey {
    let metadata = &object.metadata;
    let (namespace, name) = (metadata.namespace.clone(), metadata.name.clone());
    MadeKey { namespace: namespace.unwrap_or_default(), kind, name: name.unwrap_or_default() }
}

/// What a refusal of the API server is to us.
fn failure(key: &MadeKey, error: &kube::Error) -> Failure {
    match error {
        // A namespace that ends takes the Gateway along.
        kube::Error::Api(status) if status.message.contains("being terminated") => {
            Failure::Failed(status.message.clone())
        }
        kube::Error::Api(status) if matches!(status.code, 400 | 403 | 422) => {
            Failure::Refused(format!("{key}: {}", status.message))
        }
        error => Failure::Failed(format!("{key}: {error}")),
    }
}

impl Events {
    /// Of what has our label.
    pub(super) fn watch(client: &Client) -> Self {
        let config = watcher::Config::default().labels(&format!("{}={}", MANAGED.0, MANAGED.1));
        let watches = MadeKind::ALL.map(|kind| {
            let events = watcher(api(client, kind, None), config.clone()).default_backoff();
            events.map(move |event| (kind, event)).boxed()
        });
        Self(select_all(watches))
    }

    /// Takes the next event over.
    pub(super) async fn next(&mut self, ledger: &mut Ledger) {
        let Some((kind, event)) = self.0.next().await else { return std::future::pending().await };
        match event {
            Ok(watcher::Event::Init) => ledger.begin(kind),
            Ok(watcher::Event::InitDone) => ledger.end(kind),
            Ok(watcher::Event::InitApply(object) | watcher::Event::Apply(object)) => {
                ledger.see(key(kind, &object), value(object));
            }
            Ok(watcher::Event::Delete(object)) => ledger.lose(&key(kind, &object)),
            Err(error) => {
                tracing::debug!(target: "gateway", kind = kind.name(), "watching fails, and is tried again: {error}");
            }
        }
    }
}

impl Cluster {
    /// An object, whether it has our label or not.
    pub(super) async fn get(&self, key: &MadeKey) -> Result<Option<Value>, Failure> {
        let found = api(&self.0, key.kind, Some(&key.namespace)).get_opt(&key.name).await;
        found.map(|found| found.map(value)).map_err(|e| failure(key, &e))
    }

    /// Applies an object; as it is then.
    pub(super) async fn apply(&self, key: &MadeKey, wanted: &Value) -> Result<Value, Failure> {
        let params = PatchParams::apply(MANAGER).force();
        let api = api(&self.0, key.kind, Some(&key.namespace));
        api.patch(&key.name, &params, &Patch::Apply(wanted)).await.map(value).map_err(|e| failure(key, &e))
    }

    /// Deletes an object; one that is gone already is no failure.
    pub(super) async fn delete(&self, key: &MadeKey) -> Result<(), Failure> {
        let api = api(&self.0, key.kind, Some(&key.namespace));
        match api.delete(&key.name, &DeleteParams::background()).await {
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            done => done.map(drop).map_err(|e| failure(key, &e)),
        }
    }

    /// Makes the class of this mesh, unless there is one of its name, whoever made it. Whether it is there.
    pub(super) async fn ensure_class(&self, index: &Index) -> bool {
        if index.objects(Kind::GatewayClass).any(|class| *class.key.name == *OWN_CLASS) {
            return true;
        }
        let gvk = GroupVersionKind::gvk(mesh_api::crd::gateway_api::GROUP, "v1", "GatewayClass");
        let resource = ApiResource::from_gvk_with_plural(&gvk, "gatewayclasses");
        let class = DynamicObject::new(OWN_CLASS, &resource).data(json!({"spec": {
            "controllerName": GATEWAY_CONTROLLER, "description": "Gateways of this mesh, each with proxies of its own",
        }}));
        let api: Api<DynamicObject> = Api::all_with(self.0.clone(), &resource);
        let params = PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
        match api.create(&params, &class).await {
            Ok(_) => true,
            Err(kube::Error::Api(status)) if status.code == 409 => true,
            Err(error) => {
                tracing::warn!(target: "gateway", "GatewayClass {OWN_CLASS} cannot be made: {error}");
                false
            }
        }
    }

    /// Tags that stand for a revision: those of the webhooks that lead to it. `None`: they cannot be read now.
    pub(super) async fn tags(&self, revision: &str) -> Option<BTreeSet<String>> {
        let revision = if revision.is_empty() { "default" } else { revision };
        let gvk = GroupVersionKind::gvk("admissionregistration.k8s.io", "v1", "MutatingWebhookConfiguration");
        let resource = ApiResource::from_gvk_with_plural(&gvk, "mutatingwebhookconfigurations");
        let api: Api<DynamicObject> = Api::all_with(self.0.clone(), &resource);
        let params = ListParams::default().labels(&format!("istio.io/rev={revision},istio.io/tag"));
        match api.list_metadata(&params).await {
            Ok(list) => {
                let labels = list.items.into_iter().filter_map(|o| o.metadata.labels);
                Some(labels.filter_map(|mut l| l.remove("istio.io/tag")).collect())
            }
            Err(error) => {
                tracing::debug!(target: "gateway", "tags cannot be read: {error}");
                None
            }
        }
    }
}
