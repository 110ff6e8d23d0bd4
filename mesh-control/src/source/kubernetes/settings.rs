//! Which objects are the settings of this control plane: MeshConfig, the values of injection and a plugged-in CA stand in
//! its own namespace, the first two under names that end with its revision.
//!
//! Inside they bear their usual names, whatever control plane this is; only messages tell where they really stand.

use serde_json::Value;

use crate::{
    ca::PLUGGED_IN_SECRET,
    source::object::{Kind, ObjectKey},
    validate::{INJECTOR, MESH_CONFIG},
};

/// The settings that count.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    /// Where each stands: usually, and really.
    places: [(ObjectKey, ObjectKey); 3],
}

impl Settings {
    /// Of a control plane in a namespace; no revision and `default` are the same.
    pub(super) fn of(namespace: &str, revision: &str) -> Self {
        let suffix = if matches!(revision, "" | "default") { String::new() } else { format!("-{revision}") };
        let map = |(usual, name, _): (&str, &str, &str)| {
            let real = ObjectKey::new(Kind::ConfigMap, namespace, &format!("{name}{suffix}"));
            (ObjectKey::new(Kind::ConfigMap, usual, name), real)
        };
        let (usual, name) = PLUGGED_IN_SECRET;
        // One CA for all revisions.
        let secret = (ObjectKey::new(Kind::Secret, usual, name), ObjectKey::new(Kind::Secret, namespace, name));
        Self { places: [map(MESH_CONFIG), map(INJECTOR), secret] }
    }

    /// An object with the names that it has inside. `None`: it is a setting of another control plane.
    pub(super) fn usual(&self, mut object: Value) -> Option<Value> {
        let kind = match object["kind"].as_str() {
            Some("ConfigMap") => Kind::ConfigMap,
            Some("Secret") => Kind::Secret,
            _ => return Some(object),
        };
        let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
        let key = ObjectKey::new(kind, text("namespace"), text("name"));
        if let Some((usual, _)) = self.places.iter().find(|(_, real)| *real == key) {
            object["metadata"]["namespace"] = Value::from(&*usual.namespace);
            object["metadata"]["name"] = Value::from(&*usual.name);
            return Some(object);
        }
        self.places.iter().all(|(usual, _)| *usual != key).then_some(object)
    }

    /// Where an object really stands.
    pub(super) fn real(&self, key: &ObjectKey) -> ObjectKey {
        let place = self.places.iter().find(|(usual, _)| usual == key);
        place.map_or_else(|| key.clone(), |(_, real)| real.clone())
    }

    /// Where MeshConfig stands.
    pub(super) fn mesh_config(&self) -> ObjectKey {
        let [(_, real), ..] = &self.places;
        real.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Where an object stands inside; `-`: it is not for us.
    fn inside(settings: &Settings, kind: &str, place: &str) -> String {
        let (namespace, name) = place.split_once('/').unwrap();
        let object = json!({"kind": kind, "metadata": {"name": name, "namespace": namespace}});
        let text = |o: &Value, field: &str| o["metadata"][field].as_str().unwrap().to_owned();
        let word = |o: Value| format!("{}/{}", text(&o, "namespace"), text(&o, "name"));
        settings.usual(object).map_or_else(|| "-".to_owned(), word)
    }

    #[test]
    fn settings_are_those_of_namespace_and_revision() {
        let (usual, blue, other) = (
            Settings::of("istio-system", "default"),
            Settings::of("istio-system", "blue"),
            Settings::of("mesh-system", ""),
        );
        for (settings, place, wanted) in [
            (&usual, "istio-system/istio", "istio-system/istio"),
            (&usual, "istio-system/istio-blue", "istio-system/istio-blue"),
            (&usual, "mesh-system/istio", "mesh-system/istio"),
            (&blue, "istio-system/istio-blue", "istio-system/istio"),
            (&blue, "istio-system/istio-sidecar-injector-blue", "istio-system/istio-sidecar-injector"),
            (&blue, "istio-system/istio", "-"),
            (&other, "mesh-system/istio", "istio-system/istio"),
            (&other, "mesh-system/istio-sidecar-injector", "istio-system/istio-sidecar-injector"),
            (&other, "istio-system/istio", "-"),
            (&other, "shop/istio", "shop/istio"),
        ] {
            assert_eq!(inside(settings, "ConfigMap", place), wanted, "{settings:?} {place}");
        }
        assert_eq!(inside(&blue, "Secret", "istio-system/cacerts"), "istio-system/cacerts");
        assert_eq!(inside(&other, "Secret", "mesh-system/cacerts"), "istio-system/cacerts");
        assert_eq!(inside(&other, "Secret", "istio-system/cacerts"), "-");
        assert_eq!(inside(&other, "Service", "istio-system/istio"), "istio-system/istio");
    }

    #[test]
    fn messages_tell_the_real_place() {
        let settings = Settings::of("mesh-system", "blue");
        let (namespace, name, _) = MESH_CONFIG;
        let real = settings.real(&ObjectKey::new(Kind::ConfigMap, namespace, name));
        assert_eq!(real, ObjectKey::new(Kind::ConfigMap, "mesh-system", "istio-blue"));
        assert_eq!(real, settings.mesh_config());
        let other = ObjectKey::new(Kind::ConfigMap, "shop", "istio");
        assert_eq!(settings.real(&other), other);
    }
}
