//! Every field of every kind is in effect, or named as one that is not, or refused; and the table of them.
//!
//! What is in effect is not believed but seen: `evidence` changes fields of the behaviour cases, and of the scenes in
//! `testdata/fields`, and looks whether anything else follows. A field for which nothing is seen, and that neither
//! [`crate::validate`] names as without effect nor a scene shows to be refused, fails the test.

mod evidence;
mod schema;

use std::{collections::BTreeMap, fmt::Write as _, path::PathBuf};

use self::evidence::{Evidence, Known, Seen};
use crate::{source::object::Kind, validate::why_without};

/// The table.
const TABLE: &str = "../docs/reference/fields.md";

/// Fields whose effect is not in what proxies, statuses and fetched keys show.
const ELSEWHERE: &[(Kind, &str, &str)] = &[
    (Kind::HttpRoute, "rules[].filters[].externalAuth", UNSUPPORTED),
    (Kind::HttpRoute, "rules[].filters[].extensionRef", UNSUPPORTED),
    (Kind::GrpcRoute, "rules[].filters[].extensionRef", UNSUPPORTED),
    (Kind::Gateway, "infrastructure", "in effect on what is made for a Gateway: [gateway-api.md](gateway-api.md)"),
    (Kind::ConfigMap, "extensionProviders[].prometheus", "in effect: names a provider, and has no settings"),
    (Kind::ConfigMap, "enablePrometheusMerge", AT_INJECTION),
    (Kind::ConfigMap, "defaultConfig.concurrency", AT_INJECTION),
    (Kind::ConfigMap, "defaultConfig.discoveryAddress", AT_INJECTION),
    (Kind::ConfigMap, "defaultConfig.holdApplicationUntilProxyStarts", AT_INJECTION),
    (Kind::ConfigMap, "defaultConfig.image", AT_INJECTION),
    (Kind::ConfigMap, "defaultConfig.interceptionMode", AT_INJECTION),
    (Kind::ConfigMap, "defaultConfig.proxyMetadata", AT_INJECTION),
    (Kind::ConfigMap, "defaultConfig.statusPort", AT_INJECTION),
    (Kind::ConfigMap, "defaultConfig.terminationDrainDuration", AT_INJECTION),
    (Kind::ProxyConfig, "concurrency", AT_INJECTION),
    (Kind::ProxyConfig, "environmentVariables", AT_INJECTION),
    (Kind::ProxyConfig, "image", AT_INJECTION),
    (Kind::ProxyConfig, "selector", AT_INJECTION),
];

/// Of what a pod is made with; tested with injection.
const AT_INJECTION: &str = "in effect at injection: a change needs new pods (testdata/inject)";

/// Of filters that only some implementations have.
const UNSUPPORTED: &str = "requests of the rule are answered 500, and its status says UnsupportedValue";

#[test]
fn every_field_is_accounted_for() {
    let known = evidence::known();
    let seen = evidence::gather(&known);
    let mut wrong = seen.wrong.clone();
    let table = table(&known, &seen, &mut wrong);
    assert!(wrong.is_empty(), "{wrong:#?}");
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(TABLE);
    if std::env::var_os("MESH_WRITE").is_some() {
        std::fs::write(&path, &table).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(written == table, "{TABLE} is not what the code says: run this test with MESH_WRITE=1");
}

const INTRODUCTION: &str = "\
# Fields

Every field of every kind of Istio's and Gateway API's that is read, and what becomes of it. Written by
`MESH_WRITE=1 cargo test -p mesh-control --lib field_tests`; without `MESH_WRITE` the test fails when this table is not
what the code does. What is in effect was seen to be: the behaviour case ([e2e/cases](../../e2e/cases)), or the scene
(`fields/`, [mesh-control/testdata/fields](../../mesh-control/testdata/fields)), shows a place where a proxy is told
something else when the field changes. A field without effect is named by `meshctl validate --info`, in the control
plane's log and at `/debug/configz`. Fields that are not here are unknown, and objects that have them are refused.

`a[].b` is `b` of every item of `a`, `a{}` every value of the map `a`. A type that stands at several places is written
out once.

Of Kubernetes' own kinds (Namespace, Service, EndpointSlice, Pod, Secret, ConfigMap, Ingress, IngressClass) the fields
that concern proxies are read, and all others skipped: [`source/core.rs`](../../mesh-control/src/source/core.rs) and
[`source/ingress.rs`](../../mesh-control/src/source/ingress.rs) have them.
";

fn table(known: &BTreeMap<Kind, Known>, seen: &Evidence, wrong: &mut Vec<String>) -> String {
    let mut out = INTRODUCTION.to_owned();
    for (kind, known) in known {
        let (title, root) = match kind {
            Kind::ConfigMap => ("MeshConfig (ConfigMap `istio`, `data.mesh`)".to_owned(), "data.mesh"),
            kind => (format!("{kind} ({})", kind.group()), "spec"),
        };
        let _ = write!(out, "\n## {title}\n\n| Field | Effect |\n|---|---|\n");
        for field in known.fields.leaves.keys() {
            let _ = writeln!(out, "| `{field}` | {} |", effect(*kind, root, field, seen, wrong));
        }
        for (place, first) in &known.fields.same_as {
            let settled = seen.places.contains(&(*kind, place.clone()))
                || why_without(*kind, &format!("{root}.{place}")).is_some()
                || seen.refused.keys().any(|(k, f)| k == kind && f.starts_with(first.as_str()));
            if !settled {
                wrong.push(format!("{kind}: no field of {place} (as {first}) was seen to have an effect"));
            }
            let why = why_without(*kind, &format!("{root}.{place}"));
            let why = why.map_or_else(String::new, |why| format!(", without effect: {why}"));
            let _ = writeln!(out, "| `{place}` | as `{first}`{why} |");
        }
    }
    out
}

/// What becomes of a field.
fn effect(kind: Kind, root: &str, field: &str, seen: &Evidence, wrong: &mut Vec<String>) -> String {
    let slot = (kind, field.to_owned());
    let named = why_without(kind, &format!("{root}.{field}"));
    match (seen.effective.get(&slot), named, seen.refused.get(&slot)) {
        (Some(Seen { case, .. }), None, _) => format!("in effect ({case})"),
        (Some(Seen { case, direct: true }), Some(why), _) => {
            wrong.push(format!("{kind} {field} has an effect in {case}, and is named as without: {why}"));
            String::new()
        }
        (Some(Seen { case, .. }), Some(why), _) => format!("without, here: {why}; in effect elsewhere ({case})"),
        (None, Some(why), _) => format!("without: {why}"),
        (None, None, Some(why)) => format!("refused: {}", why.replace('|', "\\|")),
        (None, None, None) if seen.fixed.contains_key(&slot) => {
            format!("in effect: nothing else is accepted ({})", seen.fixed[&slot])
        }
        (None, None, None) => match ELSEWHERE.iter().find(|(k, f, _)| *k == kind && field.starts_with(f)) {
            Some((_, _, place)) => (*place).to_owned(),
            None => {
                wrong.push(format!("{kind} {field}: nothing follows from it, and nobody says so"));
                String::new()
            }
        },
    }
}
