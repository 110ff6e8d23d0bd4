//! Istio's CustomResourceDefinitions, made from the types that the control plane reads objects into.
//!
//! They are committed in `deploy/crds`; the test here fails when a file is not what the types say, and writes it with
//! `MESH_WRITE=1 cargo test -p mesh-cli --bin meshctl install::crds`. A field that the types know is in the schema, so
//! the API server prunes nothing that we read. Names, columns and categories are Istio's.

mod structural;

use std::path::{Path, PathBuf};

use mesh_control::source::{object::Kind, schema};
use serde_json::{Value, json};

/// Of all that Istio defines: a kind's plural, short names, columns and whether `spec` must be there.
struct Facts {
    plural: &'static str,
    short: &'static [&'static str],
    /// Name, path and description.
    columns: &'static [(&'static str, &'static str, &'static str)],
    spec_required: bool,
    /// Version in which objects are stored.
    stored: &'static str,
}

const AGE: (&str, &str, &str) = ("Age", ".metadata.creationTimestamp", "When the object was created");

fn facts(kind: Kind) -> Option<Facts> {
    let f =
        |plural, short, columns, spec_required, stored| Some(Facts { plural, short, columns, spec_required, stored });
    match kind {
        Kind::VirtualService => {
            const COLUMNS: &[(&str, &str, &str)] = &[
                ("Gateways", ".spec.gateways", "Gateways and sidecars that route by it"),
                ("Hosts", ".spec.hosts", "Hosts that traffic is sent to"),
                AGE,
            ];
            f("virtualservices", &["vs"], COLUMNS, false, "v1")
        }
        Kind::DestinationRule => {
            f("destinationrules", &["dr"], &[("Host", ".spec.host", "Service that it is about"), AGE], false, "v1")
        }
        Kind::IstioGateway => f("gateways", &["gw"], &[], false, "v1"),
        Kind::ServiceEntry => {
            const COLUMNS: &[(&str, &str, &str)] = &[
                ("Hosts", ".spec.hosts", "Hosts of the service"),
                ("Location", ".spec.location", "Whether the service is part of the mesh"),
                ("Resolution", ".spec.resolution", "How addresses of the hosts are found"),
                AGE,
            ];
            f("serviceentries", &["se"], COLUMNS, true, "v1")
        }
        Kind::WorkloadEntry => {
            f("workloadentries", &["we"], &[AGE, ("Address", ".spec.address", "Address of the workload")], true, "v1")
        }
        Kind::WorkloadGroup => f("workloadgroups", &["wg"], &[AGE], true, "v1"),
        Kind::Sidecar => f("sidecars", &[], &[], false, "v1"),
        Kind::ProxyConfig => f("proxyconfigs", &[], &[], false, "v1beta1"),
        Kind::EnvoyFilter => f("envoyfilters", &[], &[], false, "v1alpha3"),
        Kind::PeerAuthentication => {
            let columns = &[("Mode", ".spec.mtls.mode", "Mode of mutual TLS"), AGE];
            f("peerauthentications", &["pa"], columns, false, "v1")
        }
        Kind::RequestAuthentication => f("requestauthentications", &["ra"], &[], false, "v1"),
        Kind::AuthorizationPolicy => {
            f("authorizationpolicies", &["ap"], &[("Action", ".spec.action", "What it does"), AGE], false, "v1")
        }
        Kind::Telemetry => f("telemetries", &["telemetry"], &[AGE], false, "v1"),
        Kind::WasmPlugin => f("wasmplugins", &[], &[AGE], true, "v1alpha1"),
        Kind::TrafficExtension => f("trafficextensions", &[], &[AGE], true, "v1alpha1"),
        _ => None,
    }
}

/// Second names of fields, which Istio's schemas have too: kind, where, the field, its other name.
const ALIASES: &[(Kind, &str, &str, &str)] = &[
    (Kind::VirtualService, "http[]", "mirrorPercent", "mirror_percent"),
    (Kind::RequestAuthentication, "jwtRules[]", "jwksUri", "jwks_uri"),
];

/// The definition of a kind; `None`: it is not Istio's.
fn definition(kind: Kind) -> Option<Value> {
    let facts = facts(kind)?;
    let group = kind.group();
    let mut spec = structural::of(&schema::of(kind)?);
    for (_, place, field, alias) in ALIASES.iter().filter(|a| a.0 == kind) {
        structural::add_alias(&mut spec, place, field, alias);
    }
    let versions: Vec<Value> = kind.versions().iter().map(|name| version(name, &facts, &spec)).collect();
    let family = group.split('.').next().unwrap_or_default();
    let mut names = json!({
        "kind": kind.name(),
        "listKind": format!("{}List", kind.name()),
        "plural": facts.plural,
        "singular": kind.name().to_lowercase(),
        "categories": ["istio-io", format!("{family}-istio-io")],
    });
    if !facts.short.is_empty() {
        names["shortNames"] = json!(facts.short);
    }
    Some(json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": format!("{}.{group}", facts.plural),
            "annotations": {"helm.sh/resource-policy": "keep"},
            "labels": {
                "app": "istio-pilot",
                "app.kubernetes.io/name": "istio-base",
                "app.kubernetes.io/part-of": "istio",
                "operator.istio.io/component": "Base",
            },
        },
        "spec": {
            "group": group,
            "names": names,
            "scope": "Namespaced",
            "versions": versions,
        },
    }))
}

fn version(name: &str, facts: &Facts, spec: &Value) -> Value {
    let column = |(name, path, description): &(&str, &str, &str)| {
        let kind = if *name == "Age" { "date" } else { "string" };
        json!({"name": name, "jsonPath": path, "description": description, "type": kind})
    };
    let mut schema = json!({
        "type": "object",
        "properties": {
            "spec": spec,
            "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
        },
    });
    if facts.spec_required {
        schema["required"] = json!(["spec"]);
    }
    let mut version = json!({
        "name": name,
        "served": true,
        "storage": name == facts.stored,
        "schema": {"openAPIV3Schema": schema},
        "subresources": {"status": {}},
    });
    if !facts.columns.is_empty() {
        version["additionalPrinterColumns"] = facts.columns.iter().map(column).collect();
    }
    version
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/crds")
}

fn all() -> Vec<(String, Value)> {
    let named = |definition: Value| {
        let name = definition["metadata"]["name"].as_str().unwrap().to_owned();
        (name, definition)
    };
    Kind::ALL.into_iter().filter_map(definition).map(named).collect()
}

#[test]
fn files_are_what_the_types_say() {
    const HEAD: &str =
        "# Made from the types of mesh-api: MESH_WRITE=1 cargo test -p mesh-cli --bin meshctl install::crds\n";
    for (name, definition) in all() {
        let path = folder().join(format!("{name}.yaml"));
        let text = format!("{HEAD}{}", serde_saphyr::to_string(&definition).unwrap());
        let read: Value = mesh_api::yaml::from_str(&text).unwrap();
        assert_eq!(read, definition, "{name} is not written as it is meant");
        if std::env::var_os("MESH_WRITE").is_some() {
            std::fs::write(&path, &text).unwrap();
        }
        let written = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(written == text, "{} is not what the types say: run this test with MESH_WRITE=1", path.display());
    }
    let files = std::fs::read_dir(folder()).unwrap().count();
    assert_eq!(files, all().len(), "a file of no kind");
}

#[test]
fn every_kind_of_istio_is_defined() {
    for kind in Kind::ALL.into_iter().filter(|k| k.group().ends_with("istio.io")) {
        let definition = definition(kind).unwrap_or_else(|| panic!("{kind} has no definition"));
        let versions = definition["spec"]["versions"].as_array().unwrap();
        let names: Vec<&str> = versions.iter().map(|v| v["name"].as_str().unwrap()).collect();
        assert_eq!(names, kind.versions());
        assert_eq!(versions.iter().filter(|v| v["storage"] == true).count(), 1, "{kind}");
        if names.contains(&"v1") {
            assert!(versions.iter().any(|v| v["name"] == "v1" && v["storage"] == true), "{kind}");
        }
    }
}

/// Limits of numbers come back as 0.0 and the like.
fn numbers_aside(value: &Value) -> Value {
    match value {
        Value::Number(n) => json!(n.as_f64()),
        Value::Array(items) => items.iter().map(numbers_aside).collect(),
        Value::Object(map) => map.iter().map(|(k, v)| (k.clone(), numbers_aside(v))).collect(),
        other => other.clone(),
    }
}

#[test]
fn the_api_server_would_take_the_schemas() {
    use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
    for (name, definition) in all() {
        let typed: CustomResourceDefinition = serde_json::from_value(definition.clone()).unwrap();
        let again = serde_json::to_value(&typed).unwrap();
        for version in definition["spec"]["versions"].as_array().unwrap() {
            structural::check(&version["schema"]["openAPIV3Schema"], &name).unwrap();
        }
        let (read, meant) = (numbers_aside(&again["spec"]), numbers_aside(&definition["spec"]));
        assert!(read == meant, "{name} has fields that do not exist");
    }
}

/// Every `alias = "..."` of the types is in a definition, too: what has a second name would be pruned else.
#[test]
fn second_names_are_not_pruned() {
    let definitions: Vec<String> = all().iter().map(|(_, d)| d.to_string()).collect();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("../mesh-api/src/crd")];
    let mut found = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()) {
            if entry.is_dir() {
                folders.push(entry);
                continue;
            }
            let text = std::fs::read_to_string(entry).unwrap();
            for alias in text.split("alias = \"").skip(1).map(|rest| rest.split('"').next().unwrap()) {
                found += 1;
                let property = format!("\"{alias}\":");
                assert!(definitions.iter().any(|d| d.contains(&property)), "{alias} would be pruned");
            }
        }
    }
    assert_eq!(found, ALIASES.len());
}
