//! Ten thousand edits, one after the other: what proxies hold then is what they would hold had the control plane just
//! started.

use std::{collections::BTreeMap, sync::Arc};

use rand::{RngExt as _, rngs::StdRng};

use super::{Chance, corpus, mirror::Mirror};
use crate::{
    source::{
        manifest,
        object::{Object, ObjectChange, ObjectKey},
    },
    translate::testing::World,
};

/// Edits by default.
const EDITS: usize = 10_000;

/// Proxies of every kind, of the mesh that the corpus speaks of.
pub(super) fn proxies(world: &World) -> Vec<Mirror> {
    let client = [("app", "client"), ("version", "v1")];
    let views = [
        world.sidecar("10.77.1.4", "shop", &client),
        world.explicit("10.77.1.3", "shop", &client),
        world.sidecar("10.77.1.6", "shop", &[("app", "guarded"), ("version", "v1")]),
        world.sidecar("10.77.1.5", "other", &[("app", "stranger")]),
        world.gateway("10.77.1.1", "istio-system", &[("istio", "ingressgateway"), ("app", "istio-ingressgateway")]),
        world.gateway("10.77.1.2", "shop", &[("gateway.networking.k8s.io/gateway-name", "gw-api")]),
    ];
    views.into_iter().map(|view| Mirror::new(view, &world.translator, world.index())).collect()
}

/// Good objects by key, each in all the forms that the corpus knows.
fn variants() -> BTreeMap<ObjectKey, Vec<Arc<Object>>> {
    let mut out: BTreeMap<ObjectKey, Vec<Arc<Object>>> = BTreeMap::new();
    let mesh = corpus::documents(corpus::MESH);
    for value in corpus::objects().into_iter().chain(mesh) {
        let text = serde_json::to_string(&value).unwrap();
        for object in manifest::read("test.json".as_ref(), &text).into_iter().filter_map(|r| r.object) {
            out.entry(object.key.clone()).or_default().push(Arc::new(object));
        }
    }
    out
}

struct History {
    keys: Vec<ObjectKey>,
    variants: BTreeMap<ObjectKey, Vec<Arc<Object>>>,
    /// What is declared now.
    now: BTreeMap<ObjectKey, Arc<Object>>,
}

impl History {
    fn edit(&mut self, rng: &mut StdRng) -> ObjectChange {
        let key = self.keys[rng.random_range(0..self.keys.len())].clone();
        let forms = &self.variants[&key];
        // Few objects at a time: they are to meet, not to hide each other.
        if self.now.contains_key(&key) && rng.random_bool(0.4) || !self.now.contains_key(&key) && self.now.len() > 160 {
            self.now.remove(&key);
            return ObjectChange::Remove(key);
        }
        let object = forms[rng.random_range(0..forms.len())].clone();
        self.now.insert(key, object.clone());
        ObjectChange::Upsert(object)
    }
}

#[test]
fn edits_lead_where_a_fresh_start_leads() {
    let Chance { mut rng, seed, factor, every } = Chance::new();
    let variants = variants();
    let mut world = World::new(corpus::MESH);
    let now = world.index().all_objects().map(|o| (o.key.clone(), o.clone())).collect();
    let mut history = History { keys: variants.keys().cloned().collect(), variants, now };
    let mut mirrors = proxies(&world);
    let (mut edits, mut most, mut recent) = (0, 0, Vec::new());
    while edits < EDITS * factor {
        let batch: Vec<ObjectChange> = (0..rng.random_range(1..4)).map(|_| history.edit(&mut rng)).collect();
        edits += batch.len();
        recent.extend(
            batch.iter().map(|c| format!("{}{}", if matches!(c, ObjectChange::Remove(_)) { "-" } else { "" }, c.key())),
        );
        let change = world.change(batch);
        mirrors.iter_mut().for_each(|m| m.learn(&world.translator, world.index(), &change));
        if recent.len() < every {
            continue;
        }
        let mut fresh = World::new("");
        fresh.change(history.now.values().cloned().map(ObjectChange::Upsert).collect());
        for mirror in &mirrors {
            let differences = mirror.differences(&mirror.fresh(&fresh.translator, fresh.index()));
            assert!(
                differences.is_empty(),
                "seed {seed}, after {edits} edits: {differences:#?}\nlast edits: {recent:?}"
            );
            most = most.max(mirror.len());
        }
        recent.clear();
    }
    assert!(most > 50, "proxies with {most} resources tell nothing");
}
