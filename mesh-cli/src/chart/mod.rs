//! The Helm charts of `deploy/charts`, which `meshctl` renders as Helm does: one source of what is installed.
//!
//! A chart is its files, which are built in. `render` puts values over the chart's own, holds them against the chart's
//! schema and reads what the templates yield.

pub mod schema;
pub mod template;

use serde_json::{Value, json};

use self::template::{Files, Templates};

/// A chart.
#[derive(Debug)]
pub struct Chart {
    /// Name.
    pub name: &'static str,
    values: &'static str,
    schema: &'static str,
    /// Below the chart's folder.
    files: &'static [(&'static str, &'static str)],
}

/// What is installed under a name, in a namespace, with values of its own.
#[derive(Debug, Clone)]
pub struct Release {
    /// The chart.
    pub chart: &'static Chart,
    /// Name of the release.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// Values over those of the chart.
    pub values: Value,
}

/// Files of a chart with their content.
macro_rules! chart {
    ($name:literal, [$($file:literal),* $(,)?]) => {
        Chart {
            name: $name,
            values: include_str!(concat!("../../../deploy/charts/", $name, "/values.yaml")),
            schema: include_str!(concat!("../../../deploy/charts/", $name, "/values.schema.json")),
            files: &[$(($file, include_str!(concat!("../../../deploy/charts/", $name, "/", $file)))),*],
        }
    };
}

/// CustomResourceDefinitions.
pub static BASE: Chart = chart!(
    "base",
    [
        "templates/crds.yaml",
        "templates/default.yaml",
        "files/crds/authorizationpolicies.security.istio.io.yaml",
        "files/crds/destinationrules.networking.istio.io.yaml",
        "files/crds/envoyfilters.networking.istio.io.yaml",
        "files/crds/gateways.networking.istio.io.yaml",
        "files/crds/peerauthentications.security.istio.io.yaml",
        "files/crds/proxyconfigs.networking.istio.io.yaml",
        "files/crds/requestauthentications.security.istio.io.yaml",
        "files/crds/serviceentries.networking.istio.io.yaml",
        "files/crds/sidecars.networking.istio.io.yaml",
        "files/crds/telemetries.telemetry.istio.io.yaml",
        "files/crds/trafficextensions.extensions.istio.io.yaml",
        "files/crds/virtualservices.networking.istio.io.yaml",
        "files/crds/wasmplugins.extensions.istio.io.yaml",
        "files/crds/workloadentries.networking.istio.io.yaml",
        "files/crds/workloadgroups.networking.istio.io.yaml",
    ]
);

/// The control plane.
pub static ISTIOD: Chart = chart!(
    "istiod",
    [
        "templates/_helpers.tpl",
        "templates/serviceaccount.yaml",
        "templates/clusterrole.yaml",
        "templates/clusterrole-gateways.yaml",
        "templates/role.yaml",
        "templates/bindings.yaml",
        "templates/configmaps.yaml",
        "templates/service.yaml",
        "templates/deployment.yaml",
        "templates/availability.yaml",
        "templates/mutatingwebhook.yaml",
        "templates/validatingwebhook.yaml",
    ]
);

/// A gateway.
pub static GATEWAY: Chart = chart!(
    "gateway",
    [
        "templates/_helpers.tpl",
        "templates/serviceaccount.yaml",
        "templates/role.yaml",
        "templates/service.yaml",
        "templates/deployment.yaml",
        "templates/availability.yaml",
    ]
);

impl Chart {
    /// The schema of its values.
    ///
    /// # Errors
    /// When it is no JSON.
    pub fn schema(&self) -> Result<Value, String> {
        serde_json::from_str(self.schema).map_err(|e| format!("chart {}: values.schema.json: {e}", self.name))
    }
}

impl Release {
    /// The objects, in the order of the templates.
    ///
    /// # Errors
    /// Values that the schema does not allow, or that templates refuse.
    pub fn render(&self) -> Result<Vec<Value>, String> {
        let chart = self.chart;
        let of_chart = |why: String| format!("chart {}: {why}", chart.name);
        if let Some(problem) = schema::check(&chart.schema()?, &self.values).into_iter().next() {
            return Err(of_chart(problem.to_string()));
        }
        let defaults: Value = mesh_api::yaml::from_str(chart.values).map_err(|e| of_chart(e.to_string()))?;
        let values = over_defaults(&self.values, defaults);
        let context = json!({
            "Values": values,
            "Release": {"Name": self.name, "Namespace": self.namespace, "Service": "meshctl"},
            "Chart": {"Name": chart.name, "Version": env!("CARGO_PKG_VERSION"), "AppVersion": env!("CARGO_PKG_VERSION")},
        });
        let mut templates = Templates::default();
        for (name, text) in chart.files.iter().filter(|(name, _)| name.starts_with("templates/")) {
            templates.add(name, text).map_err(of_chart)?;
        }
        let files: Files<'_> = chart.files.iter().copied().collect();
        let mut objects = Vec::new();
        for (name, text) in templates.render(&context, &files).map_err(of_chart)? {
            for document in documents(&text) {
                let object = mesh_api::yaml::from_str(document).map_err(|e| of_chart(format!("{name}: {e}")))?;
                objects.extend(Some(without_nulls(object)).filter(|o| !o.is_null()));
            }
        }
        Ok(objects)
    }
}

/// Values over those of a chart, as Helm puts them: map by map, and a null takes a default away.
fn over_defaults(values: &Value, defaults: Value) -> Value {
    match (values, defaults) {
        (Value::Object(over), Value::Object(mut map)) => {
            for (key, value) in over {
                if value.is_null() {
                    map.remove(key);
                } else {
                    let value = over_defaults(value, map.remove(key).unwrap_or_default());
                    map.insert(key.clone(), value);
                }
            }
            Value::Object(map)
        }
        (values, _) => values.clone(),
    }
}

/// Documents of a stream.
pub fn documents(text: &str) -> impl Iterator<Item = &str> {
    text.split("\n---").map(|d| d.strip_prefix("---").unwrap_or(d))
}

/// A value without fields that say nothing.
fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            map.into_iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k, without_nulls(v))).collect()
        }
        Value::Array(items) => items.into_iter().map(without_nulls).collect(),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn files(folder: &Path, below: &str, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(folder).unwrap().map(|e| e.unwrap()) {
            let name = format!("{below}{}", entry.file_name().to_str().unwrap());
            if entry.path().is_dir() {
                files(&entry.path(), &format!("{name}/"), found);
            } else {
                found.push(name);
            }
        }
    }

    #[test]
    fn every_file_of_a_chart_is_built_in() {
        for chart in [&BASE, &ISTIOD, &GATEWAY] {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/charts").join(chart.name);
            let mut found = Vec::new();
            files(&folder, "", &mut found);
            found.retain(|f| f.starts_with("templates/") || f.starts_with("files/"));
            let mut known: Vec<&str> = chart.files.iter().map(|(name, _)| *name).collect();
            found.sort();
            known.sort_unstable();
            assert_eq!(found, known);
            let about = std::fs::read_to_string(folder.join("Chart.yaml")).unwrap();
            for key in ["version", "appVersion"] {
                assert!(about.contains(&format!("\n{key}: {}\n", env!("CARGO_PKG_VERSION"))), "{about}");
            }
        }
    }

    #[test]
    fn values_of_charts_fit_their_schemas() {
        for chart in [&BASE, &ISTIOD, &GATEWAY] {
            let values: Value = mesh_api::yaml::from_str(chart.values).unwrap();
            let problems = schema::check(&chart.schema().unwrap(), &values);
            assert!(problems.is_empty(), "{}: {problems:?}", chart.name);
        }
    }
}
