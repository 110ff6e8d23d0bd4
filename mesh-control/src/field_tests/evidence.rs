//! Which fields have an effect: those whose change changes something for a proxy, a status or the keys that are fetched.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::Arc,
};

use mesh_api::node::{NodeMetadata, NodeType};
use serde_json::{Value, json};

use super::schema::{Fields, Leaf};
use crate::{
    chance_tests::{corpus, mirror::Mirror},
    source::{
        manifest,
        object::{Kind, Object, ObjectChange, ObjectKey},
        schema,
    },
    translate::{status, testing::World},
    validate::{Finding, Level, MESH_CONFIG},
    view::{Flavour, ProxyView},
};

/// What a kind has for fields, and its schema.
pub(super) struct Known {
    pub(super) schema: Value,
    pub(super) fields: Fields,
}

/// Kinds with types of their own; the settings of the mesh stand for ConfigMaps.
pub(super) fn known() -> BTreeMap<Kind, Known> {
    let own = Kind::ALL.into_iter().filter_map(|kind| Some((kind, schema::of(kind)?)));
    let all = own.chain([(Kind::ConfigMap, schema::mesh_config())]);
    all.map(|(kind, schema)| (kind, Known { fields: Fields::of(&schema), schema })).collect()
}

/// What was seen.
#[derive(Default)]
pub(super) struct Evidence {
    /// Fields with an effect, and a case that shows it, as far as possible where their type is described.
    pub(super) effective: BTreeMap<(Kind, String), Seen>,
    /// Fields that can neither be left out nor be anything else, and a case.
    pub(super) fixed: BTreeMap<(Kind, String), String>,
    /// Places of types described elsewhere at which a field had one.
    pub(super) places: BTreeSet<(Kind, String)>,
    /// Fields that are refused wherever they are filled, and why.
    pub(super) refused: BTreeMap<(Kind, String), String>,
    /// Scenes that are not what they should be.
    pub(super) wrong: Vec<String>,
    /// What fields are filled with.
    values: BTreeMap<(Kind, String), Vec<Value>>,
    /// Tries in vain.
    tries: BTreeMap<(Kind, String), usize>,
}

/// Where a field had an effect.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    /// The case.
    pub(super) case: String,
    /// At the place where its type is described, not at another.
    pub(super) direct: bool,
}

/// Tries after which a field of a behaviour case is taken to have no effect; scenes of fields are all looked at.
const TRIES: usize = 12;
/// Scenes of fields.
const SCENES: &str = "fields/";

/// The mesh that cases change.
struct Lab {
    world: World,
    mirrors: Vec<Mirror>,
}

impl Lab {
    fn new() -> Self {
        let world = World::new(corpus::MESH);
        let labels = [("app", "client"), ("version", "v1")];
        let gateway = [("istio", "ingressgateway"), ("app", "istio-ingressgateway")];
        let capturing = NodeMetadata {
            namespace: "shop".into(),
            dns_capture: true,
            labels: labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            ..NodeMetadata::default()
        };
        let envoy = |mut view: ProxyView| {
            view.flavour = Flavour::Envoy;
            view
        };
        let views = [
            world.sidecar("10.77.1.4", "shop", &labels),
            world.explicit("10.77.1.3", "shop", &labels),
            world.sidecar("10.77.1.6", "shop", &[("app", "guarded"), ("version", "v1")]),
            world.sidecar("10.77.1.5", "other", &[("app", "stranger"), ("version", "v1")]),
            world.gateway("10.77.1.1", "istio-system", &gateway),
            world.gateway("10.77.1.2", "shop", &[("gateway.networking.k8s.io/gateway-name", "gw-api")]),
            world.proxy(NodeType::Sidecar, "10.77.1.4", "shop", capturing),
            envoy(world.sidecar("10.77.1.6", "shop", &[("app", "guarded"), ("version", "v1")])),
            envoy(world.gateway("10.77.1.1", "istio-system", &gateway)),
            envoy(world.sidecar("10.77.1.4", "shop", &labels)),
        ];
        let mirrors = views.into_iter().map(|view| Mirror::new(view, &world.translator, world.index())).collect();
        Self { world, mirrors }
    }

    /// Puts manifests in force; the changes that undo it. `None`: one is refused.
    fn apply(&mut self, manifests: &[Value]) -> Option<Vec<ObjectChange>> {
        let mut objects: Vec<Object> = Vec::new();
        for value in manifests {
            let text = serde_json::to_string(value).unwrap();
            for reading in manifest::read("test.json".as_ref(), &text) {
                objects.push(reading.object?);
            }
        }
        let before = |key: &ObjectKey| match self.world.index().object(key) {
            Some(object) => ObjectChange::Upsert(object.clone()),
            None => ObjectChange::Remove(key.clone()),
        };
        let undo = objects.iter().map(|o| before(&o.key)).collect();
        self.change(objects.into_iter().map(|o| ObjectChange::Upsert(Arc::new(o))).collect());
        Some(undo)
    }

    fn change(&mut self, changes: Vec<ObjectChange>) {
        let change = self.world.change(changes);
        self.mirrors.iter_mut().for_each(|m| m.learn(&self.world.translator, self.world.index(), &change));
    }

    /// All that follows from the objects in force.
    fn outcome(&self) -> u64 {
        let mut all = DefaultHasher::new();
        self.mirrors.iter().for_each(|m| m.fingerprint().hash(&mut all));
        let index = self.world.index();
        for object in index.all_objects() {
            format!("{:?}", status::of(index, object)).hash(&mut all);
        }
        format!("{:?}", index.wanted_keys()).hash(&mut all);
        all.finish()
    }
}

/// Looks at every field of every case.
pub(super) fn gather(known: &BTreeMap<Kind, Known>) -> Evidence {
    let mut evidence = Evidence::default();
    let scenes: Vec<corpus::Scene> =
        corpus::scenes().into_iter().chain(corpus::scenes_below("testdata/fields")).map(with_settings).collect();
    scenes.iter().flat_map(|s| &s.objects).for_each(|m| collect_values(known, m, &mut evidence));
    let mut lab = Lab::new();
    for scene in scenes {
        // Objects that are refused are what the case is about.
        let (sound, refused): (Vec<Value>, Vec<Value>) =
            scene.objects.into_iter().partition(|m| !m.is_null() && kind_of(m).is_some());
        if scene.case.starts_with(SCENES) {
            if scene.refused {
                refused.iter().for_each(|m| note_refused(known, m, &mut evidence));
                evidence.wrong.extend(sound.iter().map(|m| format!("{} is not refused: {m}", scene.case)));
            } else {
                evidence.wrong.extend(refused.iter().flat_map(findings).map(|f| f.to_string()));
            }
        }
        let Some(undo) = lab.apply(&sound) else { continue };
        for manifest in &sound {
            look(&mut lab, known, &scene.case, manifest, &mut evidence);
        }
        lab.change(undo);
    }
    evidence
}

/// The scene with the settings of its mesh as one more object.
fn with_settings(mut scene: corpus::Scene) -> corpus::Scene {
    if !scene.mesh.is_empty() {
        scene.objects.push(settings(&Value::Object(std::mem::take(&mut scene.mesh))));
    }
    scene
}

/// Remembers what fields are filled with, for others of their kind.
fn collect_values(known: &BTreeMap<Kind, Known>, manifest: &Value, evidence: &mut Evidence) {
    const MOST: usize = 6;
    let Some(kind) = kind_of(manifest) else { return };
    let (Some(known), Some(part)) = (known.get(&kind), described(kind, manifest)) else { return };
    for filled in known.fields.filled(&known.schema, &part) {
        let Some(value) = part.pointer(&filled.pointer) else { continue };
        let values = evidence.values.entry((kind, filled.field)).or_default();
        if values.len() < MOST && !values.contains(value) {
            values.push(value.clone());
        }
    }
}

/// The fields that errors name, or that are filled below what they name.
fn note_refused(known: &BTreeMap<Kind, Known>, manifest: &Value, evidence: &mut Evidence) {
    for finding in findings(manifest).into_iter().filter(|f| f.level == Level::Error) {
        let Some(kind) = finding.object.as_ref().map(|k| k.kind) else { continue };
        let (Some(known), Some(part)) = (known.get(&kind), described(kind, manifest)) else { continue };
        let named = finding.field.strip_prefix("spec.").unwrap_or(&finding.field);
        // A filter of a type that is refused is refused with all that belongs to the type.
        let named = named.strip_suffix(".type").unwrap_or(named).replace(['[', '.'], "/").replace(']', "");
        let named = format!("/{named}");
        for filled in known.fields.filled(&known.schema, &part) {
            let below =
                filled.pointer.strip_prefix(&named).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
            if below {
                evidence.refused.entry((kind, filled.field)).or_insert_with(|| finding.message.clone());
            }
        }
    }
}

/// The kind of a manifest that is accepted.
fn kind_of(manifest: &Value) -> Option<Kind> {
    let text = serde_json::to_string(manifest).unwrap();
    let mut readings = manifest::read("test.json".as_ref(), &text);
    readings.pop()?.object.map(|o| o.key.kind)
}

fn findings(manifest: &Value) -> Vec<Finding> {
    let readings = manifest::read("test.json".as_ref(), &manifest.to_string());
    readings.into_iter().flat_map(|r| r.findings).collect()
}

/// The settings of the mesh: the usual ones with these.
fn settings(more: &Value) -> Value {
    let mut all = usual_settings();
    if let (Some(all), Some(more)) = (all.as_object_mut(), more.as_object()) {
        all.extend(more.clone());
    }
    let (namespace, name, entry) = MESH_CONFIG;
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"namespace": namespace, "name": name}, "data": {entry: all.to_string()}})
}

fn usual_settings() -> Value {
    let documents = corpus::documents(corpus::MESH);
    let map = documents.iter().find(|d| d["kind"] == "ConfigMap").unwrap();
    mesh_api::yaml::from_str(map["data"]["mesh"].as_str().unwrap()).unwrap()
}

/// The part of a manifest that a schema describes.
fn described(kind: Kind, manifest: &Value) -> Option<Value> {
    match kind {
        Kind::ConfigMap => mesh_api::yaml::from_str(manifest.pointer("/data/mesh")?.as_str()?).ok(),
        _ => manifest.get("spec").cloned(),
    }
}

fn with_described(kind: Kind, manifest: &Value, part: &Value) -> Value {
    let mut out = manifest.clone();
    match kind {
        Kind::ConfigMap => out["data"]["mesh"] = Value::String(part.to_string()),
        _ => out["spec"] = part.clone(),
    }
    out
}

fn look(lab: &mut Lab, known: &BTreeMap<Kind, Known>, case: &str, manifest: &Value, evidence: &mut Evidence) {
    let Some(kind) = kind_of(manifest) else { return };
    let (Some(known), Some(part)) = (known.get(&kind), described(kind, manifest)) else { return };
    let before = lab.outcome();
    let usual = if kind == Kind::ConfigMap { usual_settings() } else { Value::Null };
    for filled in known.fields.filled(&known.schema, &part) {
        if part.pointer(&filled.pointer) == usual.pointer(&filled.pointer) {
            continue;
        }
        let slot = (kind, filled.field.clone());
        let direct = filled.through.is_empty();
        let known_at = |e: &Evidence, p: &String| e.places.contains(&(kind, p.clone()));
        let news = filled.through.iter().any(|p| !known_at(evidence, p))
            || direct && evidence.effective.get(&slot).is_some_and(|s| !s.direct);
        let tries = evidence.tries.entry(slot.clone()).or_default();
        if evidence.effective.contains_key(&slot) && !news || *tries >= TRIES && !case.starts_with(SCENES) {
            continue;
        }
        *tries += 1;
        let others = evidence.values.get(&slot).map_or(&[][..], Vec::as_slice);
        let changed = changes(&part, &filled.pointer, known.fields.leaves.get(&filled.field), others);
        match has_effect(lab, kind, manifest, changed, before) {
            Some(true) => {
                let seen = evidence.effective.entry(slot).or_insert_with(|| Seen { case: case.to_owned(), direct });
                if direct && !seen.direct {
                    *seen = Seen { case: case.to_owned(), direct };
                }
                evidence.places.extend(filled.through.into_iter().map(|p| (kind, p)));
            }
            Some(false) => {}
            None => drop(evidence.fixed.entry(slot).or_insert_with(|| case.to_owned())),
        }
    }
}

/// Whether anything else follows from any of these; `None`: all of them are refused.
fn has_effect(lab: &mut Lab, kind: Kind, manifest: &Value, changed: Vec<Value>, before: u64) -> Option<bool> {
    let mut accepted = None;
    for part in changed {
        let Some(undo) = lab.apply(&[with_described(kind, manifest, &part)]) else { continue };
        let after = lab.outcome();
        lab.change(undo);
        if after != before {
            return Some(true);
        }
        accepted = Some(false);
    }
    accepted
}

/// A value without a field, and with others in its place.
fn changes(part: &Value, pointer: &str, leaf: Option<&Leaf>, known: &[Value]) -> Vec<Value> {
    let mut without = part.clone();
    corpus::remove(&mut without, pointer);
    let mut out = vec![without];
    let Some(old) = part.pointer(pointer) else { return out };
    let others: Vec<Value> = match (old, leaf) {
        (_, Some(Leaf::Words(words))) => words.iter().filter(|w| *w != old).map(|w| json!(w)).collect(),
        (Value::Bool(b), _) => vec![json!(!b)],
        (Value::Number(n), _) => n.as_f64().map(|n| vec![json!(n + 1.0), json!((n / 2.0).floor())]).unwrap_or_default(),
        (Value::String(s), _) => vec![json!(next_digit(s)), json!(format!("{s}x")), json!(format!("x{s}"))],
        _ => vec![],
    };
    let known = known.iter().filter(|v| *v != old).cloned();
    out.extend(others.into_iter().chain(known).filter_map(|other| {
        let mut changed = part.clone();
        // Whole numbers stay whole.
        *changed.pointer_mut(pointer)? = match other.as_f64() {
            Some(n) if n.fract() == 0.0 && n >= 0.0 => json!(n as u64),
            _ => other,
        };
        Some(changed)
    }));
    out
}

/// The text with another digit first.
fn next_digit(text: &str) -> String {
    let mut done = false;
    text.chars()
        .map(|c| match c.to_digit(10) {
            Some(d) if !done => {
                done = true;
                char::from_digit(d % 9 + 1, 10).unwrap_or(c)
            }
            _ => c,
        })
        .collect()
}
