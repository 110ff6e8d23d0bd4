//! Objects that users write, as values: of the behaviour cases, and of the wide configuration.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

/// What every history begins with.
pub(crate) const MESH: &str = include_str!("../../testdata/chance/mesh.yaml");
const WIDE: &str = include_str!("../../testdata/wide/in.yaml");

/// What a step of a behaviour case declares.
pub(crate) struct Scene {
    /// `AREA/NAME` of the case.
    pub(crate) case: String,
    /// Objects are to be refused.
    pub(crate) refused: bool,
    /// Settings of the mesh that differ from the usual.
    pub(crate) mesh: Map<String, Value>,
    /// Objects.
    pub(crate) objects: Vec<Value>,
}

/// Every step of every behaviour case, by name of the case.
pub(crate) fn scenes() -> Vec<Scene> {
    scenes_below("../e2e/cases")
}

/// Every step of every file below a folder that has the form of behaviour cases.
pub(crate) fn scenes_below(folder: &str) -> Vec<Scene> {
    let mut out = Vec::new();
    for file in case_files(folder) {
        let text = std::fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        let whole: Value = mesh_api::yaml::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        let steps = whole.get("steps").and_then(Value::as_array).into_iter().flatten();
        for part in std::iter::once(&whole).chain(steps) {
            let mesh = part.get("mesh").or_else(|| whole.get("mesh"));
            let mesh = mesh.and_then(Value::as_object).cloned().unwrap_or_default();
            let name = |p: &Path| p.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let case = format!("{}/{}", file.parent().map(name).unwrap_or_default(), name(&file));
            let objects = part.get("objects").and_then(Value::as_str).map(documents);
            let refused = whole.get("objects_invalid").is_some_and(|v| v == true);
            out.extend(objects.map(|objects| Scene { case, refused, mesh, objects }));
        }
    }
    out
}

/// All objects; many have the same name.
pub(super) fn objects() -> Vec<Value> {
    let mut out = documents(WIDE);
    out.extend(scenes().into_iter().flat_map(|s| s.objects));
    assert!(out.len() > 1000, "the behaviour cases have {} objects", out.len());
    out
}

fn case_files(folder: &str) -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let mut files: Vec<PathBuf> = walk(&root);
    files.sort();
    files
}

fn walk(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut out = Vec::new();
    for entry in entries {
        let path = entry.unwrap().path();
        if path.is_dir() {
            out.extend(walk(&path));
        } else if path.extension().is_some_and(|e| e == "yaml") {
            out.push(path);
        }
    }
    out
}

/// Documents of a manifest that parse.
pub(crate) fn documents(text: &str) -> Vec<Value> {
    let documents =
        text.split("\n---").filter_map(|d| mesh_api::yaml::from_str::<Value>(d.trim_start_matches("---")).ok());
    documents.filter(Value::is_object).collect()
}

/// Every place below `value` that can be taken away, as pointers of RFC 6901.
pub(super) fn places(value: &Value) -> Vec<String> {
    fn below(value: &Value, at: &str, out: &mut Vec<String>) {
        let mut place = |key: String, inner: &Value| {
            let at = format!("{at}/{key}");
            below(inner, &at, out);
            out.push(at);
        };
        match value {
            Value::Object(map) => {
                map.iter().for_each(|(k, v)| place(k.replace('~', "~0").replace('/', "~1"), v));
            }
            Value::Array(items) => items.iter().enumerate().for_each(|(i, v)| place(i.to_string(), v)),
            _ => {}
        }
    }
    let mut out = Vec::new();
    below(value, "", &mut out);
    out
}

/// Takes a place away.
pub(crate) fn remove(value: &mut Value, place: &str) {
    let Some((parent, key)) = place.rsplit_once('/') else { return };
    match value.pointer_mut(parent) {
        Some(Value::Object(map)) => drop(map.remove(&key.replace("~1", "/").replace("~0", "~"))),
        Some(Value::Array(items)) => match key.parse() {
            Ok(i) if i < items.len() => drop(items.remove(i)),
            _ => {}
        },
        _ => {}
    }
}

/// What someone may write by mistake, or on purpose.
pub(super) fn nonsense() -> Vec<Value> {
    let text = [
        "",
        " ",
        "*",
        "*.",
        ".",
        "a..b",
        "-1",
        "0",
        "1e400",
        "999999999999999999999s",
        "1ns",
        "%",
        "%REQ(",
        "(((((",
        "[",
        "\u{0}",
        "\n",
        "ä",
        "a/b/c",
        "::",
        "255.255.255.255/33",
        "65536",
        "~",
        "../..",
        "{*}",
        "{**}/{*}",
        "__proto__",
    ];
    let mut out: Vec<Value> = text.into_iter().map(Value::from).collect();
    out.extend([
        Value::Null,
        Value::Bool(true),
        Value::from(-1),
        Value::from(0),
        Value::from(u64::MAX),
        Value::from(0.5),
        Value::from(65_536),
    ]);
    out.extend([
        Value::Array(vec![]),
        Value::Array(vec![Value::Null]),
        Value::Object(Map::new()),
        Value::from("a".repeat(5000)),
    ]);
    out
}
