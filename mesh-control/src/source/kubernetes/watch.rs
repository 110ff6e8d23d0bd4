//! One watch a kind: what the API server says, as events. Knows no meaning of objects and keeps none.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures_util::{StreamExt as _, stream::BoxStream};
use kube::{
    Api, Client,
    core::{ApiResource, DynamicObject, GroupVersionKind},
    runtime::{WatchStreamExt as _, watcher},
};
use serde_json::Value;
use tokio::{
    sync::{mpsc, watch},
    task::{AbortHandle, JoinSet},
};

use super::apis::Served;
use crate::source::object::Kind;

/// What was seen.
#[derive(Debug)]
pub(super) enum Seen {
    /// These kinds are watched now, all others are not there.
    Kinds(Vec<Kind>),
    /// All objects of a kind are listed from here on.
    Begin(Kind),
    /// New, changed, or listed.
    Apply(Value),
    /// Gone.
    Delete(Value),
    /// All have been listed.
    Done(Kind),
    /// All objects of this name, in whatever namespace.
    Fetched(Kind, Arc<str>, Vec<Value>),
    /// The watch of a kind fails.
    Failing(Kind, String),
}

/// How to speak of a kind to the server.
pub(crate) fn resource(kind: Kind, version: &str) -> ApiResource {
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(kind.group(), version, kind.name()), &kind.plural())
}

/// An object as the rest of the program reads it: with its type, without what only servers need.
pub(super) fn value(kind: Kind, mut object: DynamicObject) -> Value {
    // Larger than the object itself, often.
    object.metadata.managed_fields = None;
    let version = object.types.take().map(|t| t.api_version).filter(|v| !v.is_empty());
    let mut value = serde_json::to_value(object).unwrap_or_default();
    if let Value::Object(map) = &mut value {
        let plain = || match (kind.group(), kind.versions()) {
            ("", [first, ..]) => (*first).to_owned(),
            (group, [first, ..]) => format!("{group}/{first}"),
            _ => String::new(),
        };
        map.insert("apiVersion".to_owned(), version.unwrap_or_else(plain).into());
        map.insert("kind".to_owned(), kind.name().into());
    }
    value
}

/// Watches the kinds that there are, until nobody listens.
pub(super) async fn run(client: Client, mut served: watch::Receiver<Served>, seen: mpsc::Sender<Seen>) {
    let mut running: BTreeMap<Kind, (String, AbortHandle)> = BTreeMap::new();
    let mut tasks = JoinSet::new();
    loop {
        let now = served.borrow_and_update().clone();
        if now.known {
            let (stay, stop): (BTreeMap<_, _>, BTreeMap<_, _>) =
                running.into_iter().partition(|(kind, (version, _))| now.versions.get(kind) == Some(version));
            stop.values().for_each(|(_, task)| task.abort());
            running = stay;
            for (kind, version) in &now.versions {
                running.entry(*kind).or_insert_with(|| {
                    let task = tasks.spawn(follow(client.clone(), *kind, version.clone(), seen.clone()));
                    (version.clone(), task)
                });
            }
            if seen.send(Seen::Kinds(now.versions.into_keys().collect())).await.is_err() {
                return;
            }
        }
        while tasks.try_join_next().is_some() {}
        if served.changed().await.is_err() {
            return;
        }
    }
}

/// Of these Secrets no gateway has one; there may be very many.
const OTHER_SECRETS: &str = "type!=kubernetes.io/service-account-token,type!=helm.sh/release.v1";

fn events(
    client: &Client,
    kind: Kind,
    version: &str,
    streaming: bool,
) -> BoxStream<'static, watcher::Result<watcher::Event<DynamicObject>>> {
    let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource(kind, version));
    let mut config = watcher::Config::default();
    if streaming {
        config = config.streaming_lists();
    }
    if kind == Kind::Secret {
        config = config.fields(OTHER_SECRETS);
    }
    watcher(api, config).default_backoff().boxed()
}

/// Watches one kind.
async fn follow(client: Client, kind: Kind, version: String, seen: mpsc::Sender<Seen>) {
    let mut streaming = true;
    let mut stream = events(&client, kind, &version, streaming);
    let mut complained = false;
    loop {
        let Some(event) = stream.next().await else {
            tokio::time::sleep(Duration::from_secs(1)).await;
            stream = events(&client, kind, &version, streaming);
            continue;
        };
        let event = match event {
            Ok(watcher::Event::Init) => Seen::Begin(kind),
            Ok(watcher::Event::InitApply(object) | watcher::Event::Apply(object)) => Seen::Apply(value(kind, object)),
            Ok(watcher::Event::Delete(object)) => Seen::Delete(value(kind, object)),
            Ok(watcher::Event::InitDone) => {
                complained = false;
                Seen::Done(kind)
            }
            Err(error) if streaming && no_streaming(&error) => {
                tracing::debug!(target: "kubernetes", %kind, "this server lists before it watches");
                streaming = false;
                stream = events(&client, kind, &version, streaming);
                continue;
            }
            // A watch that ended because its time was over, or whose history is gone, begins again by itself.
            Err(error) => {
                if !complained && !matches!(&error, watcher::Error::WatchError(status) if status.code == 410) {
                    tracing::warn!(target: "kubernetes", %kind, "watching fails, and is tried again: {error}");
                    complained = true;
                }
                Seen::Failing(kind, error.to_string())
            }
        };
        if seen.send(event).await.is_err() {
            return;
        }
    }
}

/// Servers before 1.32, or that were told so, do not list by watching.
fn no_streaming(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::WatchStartFailed(kube::Error::Api(status)) => {
            matches!(status.code, 400 | 422) || status.message.contains("sendInitialEvents")
        }
        _ => false,
    }
}
