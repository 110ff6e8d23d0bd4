//! Writes the status of objects back to the API server.
//!
//! What it says is computed by `translate::status`; here it becomes what the API wants: conditions with the time of their
//! last transition and the generation they are about, beside what other controllers have written. Written only when it
//! differs. Must not know how a status comes about.

mod findings;
mod merge;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    hash::{Hash as _, Hasher as _},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwapOption;
use futures_util::{StreamExt as _, stream};
use kube::{
    Api, Client,
    api::{ListParams, Patch, PatchParams},
    core::DynamicObject,
};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::{
    index::Index,
    source::{
        kubernetes::{Served, resource},
        object::{Kind, Object, ObjectKey},
        status::SharedStatus,
    },
    translate::status,
};

/// Kinds that have a status of ours.
const KINDS: [Kind; 9] = [
    Kind::GatewayClass,
    Kind::Gateway,
    Kind::ListenerSet,
    Kind::HttpRoute,
    Kind::GrpcRoute,
    Kind::TlsRoute,
    Kind::TcpRoute,
    Kind::BackendTlsPolicy,
    Kind::ServiceEntry,
];

/// Changes that come closer together than this are written together.
const SETTLE: Duration = Duration::from_millis(100);
/// What could not be written is tried again after this.
const AGAIN: Duration = Duration::from_secs(5);
/// Objects that are listed at once.
const PAGE: u32 = 500;
/// Writes at once.
const AT_ONCE: usize = 8;

/// What statuses are written from.
#[derive(Clone)]
pub struct Writer {
    /// The API server.
    pub client: Client,
    /// What is in force.
    pub index: Arc<ArcSwapOption<Index>>,
    /// Versions of kinds.
    pub served: watch::Receiver<Served>,
    /// What is found wrong.
    pub found: SharedStatus,
    /// Why objects of Gateways cannot be made.
    pub refused: watch::Receiver<BTreeMap<ObjectKey, String>>,
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Writer")
    }
}

impl Writer {
    /// Writes while leading, after each change, until nobody says whether we lead.
    ///
    /// # Errors
    /// Never; the type is that of a task.
    pub async fn run(
        mut self,
        mut changed: watch::Receiver<u64>,
        mut leading: watch::Receiver<bool>,
    ) -> anyhow::Result<()> {
        loop {
            if leading.wait_for(|leads| *leads).await.is_err() {
                return Ok(());
            }
            // Another leader may have written other things.
            let mut known = Known { written: HashMap::new(), told: self.told().await };
            let mut news = self.found.read().follow();
            while *leading.borrow() {
                changed.borrow_and_update();
                news.borrow_and_update();
                let refused = self.refused.borrow_and_update().clone();
                let complete = self.write(refused, &mut known).await;
                let again = async {
                    if complete {
                        std::future::pending().await
                    } else {
                        tokio::time::sleep(AGAIN).await;
                    }
                };
                tokio::select! {
                    ended = changed.changed() => {
                        if ended.is_err() {
                            return Ok(());
                        }
                        tokio::time::sleep(SETTLE).await;
                    }
                    ended = news.changed() => {
                        if ended.is_err() {
                            return Ok(());
                        }
                        tokio::time::sleep(SETTLE).await;
                    }
                    () = again => {}
                    () = told(&mut self.refused) => {}
                    ended = leading.changed() => if ended.is_err() { return Ok(()) },
                }
            }
        }
    }

    /// Writes what differs from what was written last. Whether all of it is.
    async fn write(&self, refused: BTreeMap<ObjectKey, String>, known: &mut Known) -> bool {
        let Some(index) = self.index.load_full() else { return true };
        let mut computed = tokio::task::spawn_blocking(move || computed(&index, &refused)).await.unwrap_or_default();
        let found = findings::computed(&self.found.read(), &known.told);
        known.told.extend(found.iter().filter(|(_, status)| findings::says_something(status)).map(|(k, _)| k.clone()));
        let over: HashSet<ObjectKey> =
            found.iter().filter(|(_, status)| !findings::says_something(status)).map(|(k, _)| k.clone()).collect();
        for (key, status) in found {
            join(computed.entry(key).or_insert_with(|| json!({})), status);
        }
        let written = &mut known.written;
        written.retain(|key, _| computed.contains_key(key));
        let due: Vec<(ObjectKey, u64, Value)> = computed
            .into_iter()
            .map(|(key, status)| {
                let mut hasher = std::hash::DefaultHasher::new();
                status.to_string().hash(&mut hasher);
                (key, hasher.finish(), status)
            })
            .filter(|(key, hash, _)| written.get(key) != Some(hash))
            .collect();
        let results = stream::iter(due)
            .map(|(key, hash, status)| async move {
                let done = self.write_one(&key, status).await;
                if let Err(why) = &done {
                    tracing::warn!(target: "status", object = %key, "status cannot be written: {why}");
                }
                (key, hash, done.is_ok())
            })
            .buffer_unordered(AT_ONCE)
            .collect::<Vec<_>>()
            .await;
        let mut complete = true;
        for (key, hash, done) in results {
            complete &= done;
            if done {
                // Whoever has heard the last word, or is gone, need not be remembered.
                if over.contains(&key) {
                    known.told.remove(&key);
                }
                written.insert(key, hash);
            }
        }
        complete
    }

    /// Objects of Istio's kinds that somebody was told something of.
    async fn told(&self) -> HashSet<ObjectKey> {
        let mut out = HashSet::new();
        for kind in findings::kinds() {
            let Some(version) = self.served.borrow().versions.get(&kind).cloned() else { continue };
            let api: Api<DynamicObject> = Api::all_with(self.client.clone(), &resource(kind, &version));
            let mut page = ListParams::default().limit(PAGE);
            loop {
                let list = match api.list(&page).await {
                    Ok(list) => list,
                    Err(why) => {
                        tracing::warn!(target: "status", %kind, "statuses from before are not known: {why}");
                        break;
                    }
                };
                let says = |o: &&DynamicObject| o.data.get("status").is_some_and(findings::says_something);
                let key = |o: &DynamicObject| {
                    let meta = &o.metadata;
                    let namespace = meta.namespace.as_deref().unwrap_or_default();
                    ObjectKey::new(kind, namespace, meta.name.as_deref().unwrap_or_default())
                };
                out.extend(list.items.iter().filter(says).map(key));
                match list.metadata.continue_ {
                    Some(next) if !next.is_empty() => page.continue_token = Some(next),
                    _ => break,
                }
            }
        }
        out
    }

    async fn write_one(&self, key: &ObjectKey, status: Value) -> Result<(), String> {
        let Some(version) = self.served.borrow().versions.get(&key.kind).cloned() else { return Ok(()) };
        let resource = resource(key.kind, &version);
        let api: Api<DynamicObject> = if key.kind.cluster_scoped() {
            Api::all_with(self.client.clone(), &resource)
        } else {
            Api::namespaced_with(self.client.clone(), &key.namespace, &resource)
        };
        // Somebody may write at the same time.
        for _ in 0..3 {
            let Some(now) = api.get_opt(&key.name).await.map_err(|e| e.to_string())? else { return Ok(()) };
            let current = now.data.get("status").cloned().unwrap_or_default();
            let generation = now.metadata.generation.unwrap_or_default();
            let time = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
            let merged = merge::merged(&status, &current, generation, &time);
            if merge::same(&merged, &current) {
                return Ok(());
            }
            let patch = json!({"metadata": {"resourceVersion": now.metadata.resource_version}, "status": merged});
            match api.patch_status(&key.name, &PatchParams::default(), &Patch::Merge(&patch)).await {
                Ok(_) => return Ok(()),
                Err(kube::Error::Api(status)) if status.code == 404 => return Ok(()),
                Err(kube::Error::Api(status)) if status.code == 409 => {}
                Err(error) => return Err(error.to_string()),
            }
        }
        Err("others write all the time".to_owned())
    }
}

/// What a leader knows of what is written.
struct Known {
    /// Hashes of what was computed and written.
    written: HashMap<ObjectKey, u64>,
    /// Objects that were told of findings: they are to hear when there are none any more.
    told: HashSet<ObjectKey>,
}

/// Adds the fields of one status to another's.
fn join(to: &mut Value, more: Value) {
    if let (Some(to), Value::Object(more)) = (to.as_object_mut(), more) {
        to.extend(more);
    }
}

/// Something else is refused; never, when nobody makes anything.
async fn told(refused: &mut watch::Receiver<BTreeMap<ObjectKey, String>>) {
    if refused.changed().await.is_err() {
        std::future::pending().await
    }
}

/// The statuses of all objects that have one. What they are about is part of them, so that a new generation is told even
/// when nothing else changes.
fn computed(index: &Index, refused: &BTreeMap<ObjectKey, String>) -> HashMap<ObjectKey, Value> {
    let one = |object: &Arc<Object>| {
        let mut status = status::of(index, object)?;
        if let Some(why) = refused.get(&object.key) {
            status.not_programmed(why);
        }
        let mut status = serde_json::to_value(status).ok()?;
        status.as_object_mut()?.insert(merge::GENERATION.to_owned(), object.meta.generation.into());
        Some((object.key.clone(), status))
    };
    KINDS.into_iter().flat_map(|kind| index.objects(kind)).filter_map(one).collect()
}
