//! Secrets and ConfigMaps that objects name. Others are not kept: they are nobody's business, and there may be many.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use kube::{Api, Client, api::ListParams, core::DynamicObject};
use tokio::sync::mpsc;

use super::watch::{Seen, resource, value};
use crate::{
    index::Index,
    source::object::{Kind, ObjectKey},
    validate::{INJECTOR, MESH_CONFIG},
};

/// Names, whatever the namespace: whose it is to be is for translation to say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Named {
    secrets: BTreeSet<Arc<str>>,
    config_maps: BTreeSet<Arc<str>>,
}

impl Named {
    /// What the objects of a state name.
    pub fn of(index: &Index) -> Self {
        let (secrets, config_maps) = index.named();
        Self { secrets, config_maps }
    }

    /// Whether an object is one of them, or of use anyway.
    pub(super) fn has(&self, key: &ObjectKey) -> bool {
        let is = |place: (&str, &str)| (&*key.namespace, &*key.name) == place;
        match key.kind {
            Kind::Secret => self.secrets.contains(&key.name) || is(crate::ca::PLUGGED_IN_SECRET),
            Kind::ConfigMap => {
                let settings = [MESH_CONFIG, INJECTOR].into_iter().any(|(namespace, name, _)| is((namespace, name)));
                settings || self.config_maps.contains(&key.name)
            }
            _ => true,
        }
    }

    /// All of them.
    pub(super) fn all(&self) -> impl Iterator<Item = (Kind, &Arc<str>)> {
        let secrets = self.secrets.iter().map(|name| (Kind::Secret, name));
        secrets.chain(self.config_maps.iter().map(|name| (Kind::ConfigMap, name)))
    }
}

/// Longest pause between two tries.
const MOST_PAUSE: Duration = Duration::from_secs(10);

/// Reads all objects of a name, as often as it takes.
pub(super) async fn fetch(client: Client, kind: Kind, name: Arc<str>, seen: mpsc::Sender<Seen>) {
    let api: Api<DynamicObject> = Api::all_with(client, &resource(kind, "v1"));
    let params = ListParams::default().fields(&format!("metadata.name={name}"));
    let mut pause = Duration::from_millis(100);
    while !seen.is_closed() {
        match api.list(&params).await {
            Ok(list) => {
                let found = list.items.into_iter().map(|o| value(kind, o)).collect();
                // Nobody listens any more: nothing to do.
                let _ = seen.send(Seen::Fetched(kind, name, found)).await;
                return;
            }
            Err(error) => {
                tracing::warn!(target: "kubernetes", %kind, name = &*name, "cannot be read: {error}");
                tokio::time::sleep(pause).await;
                pause = MOST_PAUSE.min(pause * 2);
            }
        }
    }
}

#[cfg(test)]
impl Named {
    /// Secrets of these names.
    pub(super) fn for_tests(secrets: &[&str]) -> Self {
        Self { secrets: secrets.iter().map(|s| Arc::from(*s)).collect(), config_maps: BTreeSet::new() }
    }
}
