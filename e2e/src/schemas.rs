//! Compares our types with the schemas that Istio and Gateway API publish: `run schemas`.
//!
//! Owns which releases are compared, how they are fetched and the checked-in list of differences, each with its
//! reason. A difference that is not in the list fails the run, and so does a line of the list that is no difference
//! any more.

mod compare;
mod reader;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context, Result, bail};
use mesh_control::source::{object::Kind, schema};
use serde_json::Value;

use crate::python::patiently;
use compare::{Kind as DifferenceKind, differences, within};

/// Go module of Istio's schemas, and the file that holds them.
const ISTIO: (&str, &[&str]) = ("istio.io/api@v1.32.0", &["kubernetes/customresourcedefinitions.gen.yaml"]);
/// Go module of Gateway API's schemas, and the folders of its channels.
const GATEWAY_API: (&str, &[&str]) =
    ("sigs.k8s.io/gateway-api@v1.7.0", &["config/crd/standard", "config/crd/experimental"]);
/// The list of differences.
const LIST: &str = "docs/reference/schema-differences.md";

/// How to compare.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Print every difference as lines of the list, known ones included
    #[arg(long)]
    print: bool,
}

/// Compares; whether the differences are those of the list.
///
/// # Errors
/// When schemas cannot be fetched or read, or the list cannot.
pub fn run(options: &Options) -> Result<ExitCode> {
    let folder = tempfile::tempdir().context("no temporary folder")?;
    let mut published = Vec::new();
    for (module, files) in [ISTIO, GATEWAY_API] {
        let root = fetch(module, folder.path())?;
        for file in files {
            published.extend(definitions(&root.join(file))?);
        }
    }
    let found = all_differences(&published)?;
    let list = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(LIST);
    let text = fs::read_to_string(&list).with_context(|| format!("cannot read {}", list.display()))?;
    let listed = parse_list(&text)?;
    if options.print {
        for difference in &found {
            let reason = listed.get(difference).map_or("", String::as_str);
            println!("{} {reason} |", row(difference));
        }
    }
    let (mut unlisted, mut gone) = (Vec::new(), Vec::new());
    unlisted.extend(found.iter().filter(|d| !listed.contains_key(*d)).map(row));
    gone.extend(listed.keys().filter(|d| !found.contains(*d)).map(row));
    println!(
        "{} definitions compared, {} differences, {} of them in {LIST}",
        published.len(),
        found.len(),
        found.len() - unlisted.len()
    );
    for (what, rows) in
        [("differences that the list does not have", &unlisted), ("lines of the list that are no difference", &gone)]
    {
        if !rows.is_empty() {
            println!("{} {what}:\n{}", rows.len(), rows.join("\n"));
        }
    }
    Ok(if unlisted.is_empty() && gone.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Unpacks a Go module below `folder`.
///
/// The archive is used, not the unpacked module: Go gives that also of modules that ask for a newer Go.
fn fetch(module: &str, folder: &Path) -> Result<PathBuf> {
    let archive = patiently("go mod download", || download(module, folder))?;
    let status = Command::new("python3").args(["-m", "zipfile", "-e", &archive]).arg(folder).status();
    if !status.context("cannot run python3, which unpacks the published schemas")?.success() {
        bail!("cannot unpack {archive}");
    }
    Ok(folder.join(module))
}

/// The archive of a module, in Go's cache.
fn download(module: &str, folder: &Path) -> Result<String> {
    let mut go = Command::new("go");
    go.args(["mod", "download", "-json", module]).current_dir(folder).stderr(Stdio::inherit());
    let output = go.output().context("cannot run go, which fetches the published schemas")?;
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let Some(archive) = answer.get("Zip").and_then(Value::as_str) else {
        let error = answer.get("Error").and_then(Value::as_str).unwrap_or("no answer");
        bail!("cannot fetch {module}: {error}");
    };
    Ok(archive.to_owned())
}

/// A version of a published kind.
#[derive(Debug, Clone)]
struct Definition {
    group: String,
    kind: String,
    version: String,
    /// Of `spec`.
    schema: Value,
}

/// Every served version of the CustomResourceDefinitions in a file, or in the files of a folder.
fn definitions(path: &Path) -> Result<Vec<Definition>> {
    let mut found = Vec::new();
    if path.is_dir() {
        let entries = fs::read_dir(path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut files = entries.map(|e| Ok(e?.path())).collect::<Result<Vec<_>>>()?;
        files.sort();
        for file in files {
            found.extend(definitions(&file)?);
        }
        return Ok(found);
    }
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    for document in text.split("\n---") {
        let document: Value =
            mesh_api::yaml::from_str(document).with_context(|| format!("{} does not parse", path.display()))?;
        if document.get("kind").and_then(Value::as_str) == Some("CustomResourceDefinition") {
            let read = served(&document).with_context(|| format!("{} is not as expected", path.display()));
            found.extend(read?);
        }
    }
    Ok(found)
}

fn served(definition: &Value) -> Option<Vec<Definition>> {
    let text = |value: &Value, path: &str| value.pointer(path).and_then(Value::as_str).map(str::to_owned);
    let (group, kind) = (text(definition, "/spec/group")?, text(definition, "/spec/names/kind")?);
    let mut found = Vec::new();
    for version in definition.pointer("/spec/versions")?.as_array()? {
        if version.get("served").and_then(Value::as_bool) == Some(true) {
            let schema = version.pointer("/schema/openAPIV3Schema/properties/spec")?.clone();
            let version = text(version, "/name")?;
            found.push(Definition { group: group.clone(), kind: kind.clone(), version, schema });
        }
    }
    Some(found)
}

/// A difference with its object: `group Kind`, or `group/version Kind` when not all versions have it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Difference {
    object: String,
    field: String,
    what: String,
}

/// Every difference between the published definitions and ours.
fn all_differences(published: &[Definition]) -> Result<BTreeSet<Difference>> {
    let mut by_kind: BTreeMap<(&str, &str), BTreeMap<&str, Vec<&Definition>>> = BTreeMap::new();
    for definition in published {
        let versions = by_kind.entry((&definition.group, &definition.kind)).or_default();
        versions.entry(&definition.version).or_default().push(definition);
    }
    let mut found = BTreeSet::new();
    for kind in Kind::ALL.into_iter().filter(|k| !k.is_core()) {
        if !by_kind.contains_key(&(kind.group(), kind.name())) {
            bail!("{kind} of {} is not among the published schemas", kind.group());
        }
    }
    for ((group, name), versions) in by_kind {
        let difference = |version: Option<&str>, field: &str, what: &DifferenceKind| Difference {
            object: match version {
                Some(version) => format!("{group}/{version} {name}"),
                None => format!("{group} {name}"),
            },
            field: field.to_owned(),
            what: what.to_string(),
        };
        let Some(kind) = Kind::find(group, name) else {
            found.insert(difference(None, "", &DifferenceKind::NotServed));
            continue;
        };
        let ours = schema::of(kind).with_context(|| format!("{kind} has no type"))?;
        for version in kind.versions().iter().filter(|v| !versions.contains_key(*v)) {
            found.insert(difference(Some(version), "", &DifferenceKind::NotPublished));
        }
        let mut compared: BTreeMap<(String, DifferenceKind), BTreeSet<&str>> = BTreeMap::new();
        let mut count = 0;
        for (version, channels) in &versions {
            if !kind.versions().contains(version) {
                found.insert(difference(Some(version), "", &DifferenceKind::NotServed));
                continue;
            }
            count += 1;
            for found in of_version(kind, version, channels, &ours) {
                compared.entry(found).or_default().insert(version);
            }
        }
        for ((field, what), versions) in compared {
            if versions.len() == count {
                found.insert(difference(None, &field, &what));
            } else {
                found.extend(versions.into_iter().map(|v| difference(Some(v), &field, &what)));
            }
        }
    }
    Ok(found)
}

/// The differences of one version: what a channel has more than ours, and what ours has more than every channel.
fn of_version(kind: Kind, version: &str, channels: &[&Definition], ours: &Value) -> BTreeSet<(String, DifferenceKind)> {
    let by_channel: Vec<_> = channels.iter().map(|c| of_channel(kind, version, &c.schema, ours)).collect();
    let everywhere = |(path, what): &(String, DifferenceKind)| {
        by_channel.iter().all(|found| {
            let outer = |(p, w): &(String, DifferenceKind)| *w == DifferenceKind::Extra && within(path, p);
            found.contains(&(path.clone(), what.clone())) || found.iter().any(outer)
        })
    };
    let found: BTreeSet<_> = by_channel.iter().flatten().cloned().collect();
    found.into_iter().filter(|d| !d.1.surplus() || everywhere(d)).collect()
}

/// The differences from one published schema: those of the types, less what our reader makes good, and required
/// fields whose absence it does not notice.
fn of_channel(kind: Kind, version: &str, schema: &Value, ours: &Value) -> BTreeSet<(String, DifferenceKind)> {
    let mut found = differences(schema, ours);
    found.retain(|(path, what)| match what {
        DifferenceKind::Missing => !reader::knows(kind, version, schema, path),
        DifferenceKind::AnyWord => !reader::refuses_other_words(kind, version, schema, path),
        _ => true,
    });
    let missing: Vec<_> = found.iter().filter(|d| d.1 == DifferenceKind::Missing).map(|d| d.0.clone()).collect();
    for path in reader::required(schema) {
        if !missing.iter().any(|m| within(&path, m)) && !reader::misses(kind, version, schema, &path) {
            found.insert((path, DifferenceKind::Optional));
        }
    }
    found
}

/// A difference as the start of a line of the list; the reason follows.
fn row(difference: &Difference) -> String {
    let field = if difference.field.is_empty() { String::new() } else { format!("`{}`", difference.field) };
    format!("| {} | {field} | {} |", difference.object, difference.what)
}

/// The lines of the list with their reasons.
fn parse_list(text: &str) -> Result<BTreeMap<Difference, String>> {
    let mut listed = BTreeMap::new();
    let lines = text.lines().enumerate().skip_while(|(_, line)| !line.starts_with("|---")).skip(1);
    for (number, line) in lines.take_while(|(_, line)| line.starts_with('|')) {
        let cells: Vec<_> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [object, field, what, reason] = cells.as_slice() else {
            bail!("{LIST}:{}: four columns are expected", number + 1);
        };
        if reason.is_empty() {
            bail!("{LIST}:{}: the reason is missing", number + 1);
        }
        let (object, what) = (object.to_string(), what.to_string());
        let difference = Difference { object, field: field.trim_matches('`').to_owned(), what };
        if listed.insert(difference, reason.to_string()).is_some() {
            bail!("{LIST}:{}: is there twice", number + 1);
        }
    }
    Ok(listed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const CRD: &str = "
# Generated.
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
spec:
  group: networking.istio.io
  names: {kind: WorkloadEntry}
  versions:
  - {name: v1, served: true, schema: {openAPIV3Schema: {properties: {spec: {type: object}}}}}
  - {name: v1alpha1, served: false, schema: {openAPIV3Schema: {properties: {spec: {type: object}}}}}
---
apiVersion: v1
kind: ConfigMap
";

    fn found(published: &[Definition], kind: &str) -> Vec<String> {
        let all = all_differences(published).unwrap();
        all.iter().filter(|d| d.object.ends_with(kind)).map(row).collect()
    }

    /// Our own schemas as if they were published, in every version that we serve.
    fn as_ours() -> Vec<Definition> {
        let published = |kind: Kind| {
            let (ours, spec) = (schema::of(kind).unwrap(), json!({"type": "object", "properties": {}}));
            // References lead nowhere in a published schema: only kinds that a test changes have fields.
            let schema = if kind == Kind::WorkloadEntry { ours } else { spec };
            kind.versions().iter().map(move |version| Definition {
                group: kind.group().to_owned(),
                kind: kind.name().to_owned(),
                version: (*version).to_owned(),
                schema: schema.clone(),
            })
        };
        Kind::ALL.into_iter().filter(|k| !k.is_core()).flat_map(published).collect()
    }

    #[test]
    fn every_kind_with_a_published_schema_has_a_type() {
        for kind in Kind::ALL {
            assert_eq!(schema::of(kind).is_none(), kind.is_core(), "{kind}");
        }
    }

    #[test]
    fn served_versions_are_read() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a.yaml"), CRD).unwrap();
        let found = definitions(folder.path()).unwrap();
        let [one] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!((one.kind.as_str(), one.version.as_str()), ("WorkloadEntry", "v1"));
        assert_eq!(one.schema, json!({"type": "object"}));
    }

    #[test]
    fn differences_name_versions_that_are_not_all() {
        let mut published = as_ours();
        assert_eq!(found(&published, "WorkloadEntry"), [""; 0]);
        let entries = published.iter_mut().filter(|d| d.kind == "WorkloadEntry");
        for (i, entry) in entries.enumerate() {
            entry.schema["properties"]["speed"] = json!({"type": "integer"});
            if i == 0 {
                entry.schema["properties"]["weight"] = json!({"type": "string"});
            }
        }
        published.retain(|d| d.kind != "WorkloadEntry" || d.version != "v1alpha3");
        let expected = [
            "| networking.istio.io WorkloadEntry | `speed` | missing here |",
            "| networking.istio.io/v1 WorkloadEntry | `weight` | string as published, integer here |",
            "| networking.istio.io/v1alpha3 WorkloadEntry |  | served here only |",
        ];
        assert_eq!(found(&published, "WorkloadEntry"), expected);
    }

    #[test]
    fn a_kind_or_version_that_is_not_served_is_found() {
        let mut published = as_ours();
        let mut other = published[0].clone();
        other.version = "v9".to_owned();
        published.push(other.clone());
        other.kind = "Unknown".to_owned();
        published.push(other);
        let expected = ["| networking.istio.io/v9 VirtualService |  | not served here |"];
        assert_eq!(found(&published, "/v9 VirtualService"), expected);
        assert_eq!(found(&published, "Unknown"), ["| networking.istio.io Unknown |  | not served here |"]);
    }

    #[test]
    fn what_one_channel_publishes_is_published() {
        let mut published = as_ours();
        let mut lesser: Vec<_> = published.iter().filter(|d| d.kind == "WorkloadEntry").cloned().collect();
        for entry in &mut lesser {
            entry.schema["properties"].as_object_mut().unwrap().remove("weight");
        }
        published.extend(lesser.clone());
        assert_eq!(found(&published, "WorkloadEntry"), [""; 0]);
        published.retain(|d| d.kind != "WorkloadEntry");
        published.extend(lesser);
        let expected = ["| networking.istio.io WorkloadEntry | `weight` | only here |"];
        assert_eq!(found(&published, "WorkloadEntry"), expected);
    }

    #[test]
    fn a_required_field_that_nobody_misses_is_found() {
        let mut published = as_ours();
        for entry in published.iter_mut().filter(|d| d.kind == "WorkloadEntry") {
            entry.schema["required"] = json!(["address", "locality"]);
        }
        let expected =
            ["| networking.istio.io WorkloadEntry | `locality` | required as published, may be absent here |"];
        assert_eq!(found(&published, "WorkloadEntry"), expected);
    }

    #[test]
    fn the_list_is_read() {
        let head = "# Title\n\n| Object | Field | Difference | Reason |\n|---|---|---|---|\n";
        let line = "| a B | `c[].d` | missing here | because |\n";
        let listed = parse_list(&format!("{head}{line}\nMore | text.\n")).unwrap();
        let difference = Difference { object: "a B".into(), field: "c[].d".into(), what: "missing here".into() };
        assert_eq!(listed, BTreeMap::from([(difference, "because".to_owned())]));
        assert!(parse_list(&format!("{head}{line}{line}")).is_err(), "twice");
        assert!(parse_list(&format!("{head}| a B | `c` | missing here |  |\n")).is_err(), "no reason");
        assert!(parse_list(&format!("{head}| a B | `c` |\n")).is_err(), "columns");
    }

    #[test]
    fn the_list_of_this_repository_is_sound() {
        let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(LIST)).unwrap();
        assert!(!parse_list(&text).unwrap().is_empty());
    }
}
