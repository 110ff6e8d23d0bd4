//! The settings of one proxy: the mesh's `defaultConfig`, ProxyConfig objects of the root namespace, of the namespace, of
//! the workload, then the annotation `proxy.istio.io/config`. Each wins over those before it, field by field.

use mesh_api::crd::networking::ProxyConfig;
use mesh_api::labels::{Labels, selects};
use mesh_api::meshconfig::ProxySettings;
use serde_json::Value;

/// A ProxyConfig object.
#[derive(Debug, Clone)]
pub struct ProxyConfigObject {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its content.
    pub spec: ProxyConfig,
}

/// Whom settings are for.
#[derive(Debug, Clone, Copy)]
pub struct Workload<'a> {
    /// Namespace.
    pub namespace: &'a str,
    /// Labels of its pod.
    pub labels: &'a Labels,
    /// Annotation `proxy.istio.io/config`.
    pub annotation: Option<&'a str>,
}

/// The settings of a workload's proxy.
///
/// # Errors
/// What is wrong with the annotation.
pub fn merged(
    mesh: &ProxySettings,
    root_namespace: &str,
    objects: &[ProxyConfigObject],
    workload: Workload<'_>,
) -> Result<ProxySettings, String> {
    let mut settings = mesh.clone();
    let has_selector = |o: &ProxyConfigObject| o.spec.selector.as_ref().is_some_and(|s| !s.match_labels.is_empty());
    let mut in_order: Vec<(u8, &ProxyConfigObject)> = objects
        .iter()
        .filter_map(|o| match has_selector(o) {
            false if o.namespace == root_namespace => Some((0, o)),
            false if o.namespace == workload.namespace => Some((1, o)),
            true if o.namespace == workload.namespace => {
                let selector = o.spec.selector.as_ref().map(|s| &s.match_labels)?;
                selects(selector, workload.labels).then_some((2, o))
            }
            _ => None,
        })
        .collect();
    // Of several for the same place the first by name holds, so it is applied last.
    in_order.sort_by(|a, b| (a.0, &b.1.name).cmp(&(b.0, &a.1.name)));
    for (_, object) in in_order {
        apply(&mut settings, &object.spec);
    }
    let Some(text) = workload.annotation else { return Ok(settings) };
    let over: Value = mesh_api::yaml::from_str(text).map_err(|e| format!("does not parse: {e}"))?;
    if over.is_null() {
        return Ok(settings);
    }
    // Wrong fields are told by their path in the annotation, before anything is merged.
    let mut unknown = Vec::new();
    let mut track = serde_path_to_error::Track::new();
    let mut note = |path: serde_ignored::Path<'_>| unknown.push(path.to_string());
    let ignoring = serde_ignored::Deserializer::new(&over, &mut note);
    let read = serde::Deserialize::deserialize(serde_path_to_error::Deserializer::new(ignoring, &mut track));
    let _: ProxySettings = read.map_err(|e: serde_json::Error| format!("{}: {e}", track.path()))?;
    if let Some(field) = unknown.first() {
        return Err(format!("{field}: is not a field of ProxyConfig"));
    }
    let mut whole = serde_json::to_value(&settings).map_err(|e| e.to_string())?;
    merge(&mut whole, over);
    serde_json::from_value(whole).map_err(|e| e.to_string())
}

fn apply(settings: &mut ProxySettings, spec: &ProxyConfig) {
    if spec.concurrency.is_some() {
        settings.concurrency = spec.concurrency;
    }
    if spec.image.is_some() {
        settings.image.clone_from(&spec.image);
    }
    settings.proxy_metadata.extend(spec.environment_variables.iter().map(|(k, v)| (k.clone(), v.clone())));
}

/// Objects field by field, everything else as a whole.
fn merge(base: &mut Value, over: Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                merge(base.entry(key).or_insert(Value::Null), value);
            }
        }
        (base, over) => *base = over,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(namespace: &str, name: &str, yaml: &str) -> ProxyConfigObject {
        let spec = mesh_api::yaml::from_str(yaml).unwrap();
        ProxyConfigObject { namespace: namespace.to_owned(), name: name.to_owned(), spec }
    }

    fn settings_of(annotation: Option<&str>, objects: &[ProxyConfigObject]) -> Result<ProxySettings, String> {
        let mesh: ProxySettings = mesh_api::yaml::from_str(
            "{concurrency: 1, proxyMetadata: {A: mesh, B: mesh}, holdApplicationUntilProxyStarts: true}",
        )
        .unwrap();
        let labels = [("app".to_owned(), "web".to_owned())].into();
        merged(&mesh, "istio-system", objects, Workload { namespace: "shop", labels: &labels, annotation })
    }

    #[test]
    fn the_nearest_wins_field_by_field() {
        let objects = [
            object("shop", "of-web", "{selector: {matchLabels: {app: web}}, environmentVariables: {D: web}}"),
            object("shop", "of-others", "{selector: {matchLabels: {app: x}}, concurrency: 9}"),
            object("istio-system", "root", "{concurrency: 2, environmentVariables: {B: root, C: root, D: root}}"),
            object("shop", "z-later", "{concurrency: 7}"),
            object("shop", "namespace", "{concurrency: 3, environmentVariables: {C: shop}}"),
            object("other", "elsewhere", "{concurrency: 8}"),
        ];
        let all = settings_of(None, &objects).unwrap();
        assert_eq!(all.concurrency, Some(3));
        let env: Vec<_> = all.proxy_metadata.iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(env, ["A=mesh", "B=root", "C=shop", "D=web"]);
        let all = settings_of(Some("concurrency: 4\nproxyMetadata: {A: pod}\n"), &objects).unwrap();
        assert_eq!((all.concurrency, all.proxy_metadata["A"].as_str()), (Some(4), "pod"));
        assert_eq!((all.proxy_metadata["B"].as_str(), all.hold_application_until_proxy_starts), ("root", Some(true)));
    }

    #[test]
    fn wrong_annotations_are_told_by_field() {
        for (text, why) in [
            ("concurrency: many", "concurrency: "),
            ("concurency: 2", "concurency: is not a field"),
            ("tracing: {sampling: []}", "tracing.sampling: "),
            ("{", "does not parse"),
        ] {
            let error = settings_of(Some(text), &[]).unwrap_err();
            assert!(error.starts_with(why), "{text}: {error}");
        }
        assert!(settings_of(Some(""), &[]).is_ok());
    }
}
