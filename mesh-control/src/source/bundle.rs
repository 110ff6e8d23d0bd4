//! Manifests that are read once and together, without a folder being watched: what commands and tests check. Says of
//! them what the control plane would say, by the same reading, validation and references.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use super::manifest;
use super::object::{Object, ObjectKey};
use crate::validate::{Finding, Level, codes, references};

/// Texts of manifests and what they declare.
#[derive(Debug, Default)]
pub struct Bundle {
    objects: BTreeMap<ObjectKey, Arc<Object>>,
    texts: BTreeMap<PathBuf, String>,
    /// Keys of everything in files, whether it can be used or not.
    declared: BTreeSet<ObjectKey>,
    findings: Vec<Finding>,
    unparsable: bool,
}

impl Bundle {
    /// Takes a file's text in.
    pub fn add(&mut self, file: &Path, text: String) {
        for reading in manifest::read(file, &text) {
            self.unparsable |= reading.key.is_none() && reading.findings.iter().any(|f| f.level == Level::Error);
            self.findings.extend(reading.findings);
            self.declared.extend(reading.key);
            let Some(object) = reading.object else { continue };
            if let Some(first) = self.objects.get(&object.key) {
                self.findings.push(declared_twice(first, &object));
            } else {
                self.objects.insert(object.key.clone(), Arc::new(object));
            }
        }
        self.texts.insert(file.to_owned(), text);
    }

    /// Takes an object of an API server in, unless a file has said what it is to be: files, which come first, lie over
    /// what is there.
    pub fn add_live(&mut self, object: Value) {
        let reading = manifest::read_object(object);
        if reading.key.as_ref().is_some_and(|key| self.declared.contains(key)) {
            return;
        }
        self.findings.extend(reading.findings);
        if let Some(object) = reading.object {
            self.objects.insert(object.key.clone(), Arc::new(object));
        }
    }

    /// Number of objects that can be used.
    pub fn objects(&self) -> usize {
        self.objects.len()
    }

    /// There was something that is no object.
    pub fn unparsable(&self) -> bool {
        self.unparsable
    }

    /// Everything that is wrong, or worth saying, file by file from the top.
    pub fn findings(self, domain: &str) -> Vec<Finding> {
        let Self { objects, texts, mut findings, .. } = self;
        let mut between = references::check(objects.values().cloned(), domain);
        for finding in &mut between {
            let (Some(file), Some(key)) = (&finding.file, &finding.object) else { continue };
            let place = texts.get(file).and_then(|text| manifest::locate(text, file, key, &finding.field));
            if let Some((line, column)) = place {
                finding.line = Some(line);
                finding.column = Some(column);
            }
        }
        findings.extend(between);
        let place = |f: &Finding| (f.file.clone(), f.line, f.column, f.code, f.object.clone());
        findings.sort_by_cached_key(place);
        findings
    }
}

fn declared_twice(first: &Object, second: &Object) -> Finding {
    let at = first.position.as_ref().map(|p| format!("{}:{}", p.file.display(), p.line)).unwrap_or_default();
    let mut finding = Finding::error("metadata.name", format!("is declared twice, first at {at}"));
    finding.object = Some(second.key.clone());
    finding.file = second.position.as_ref().map(|p| p.file.clone());
    finding.line = second.position.as_ref().map(|p| p.line);
    finding.code(codes::DUPLICATE)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use mesh_api::names::DEFAULT_DOMAIN;

    use super::*;

    const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/findings");

    fn findings(name: &str) -> Vec<Finding> {
        let text = fs::read_to_string(Path::new(FIXTURES).join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
        let mut bundle = Bundle::default();
        bundle.add(Path::new(name), text);
        bundle.findings(DEFAULT_DOMAIN)
    }

    #[test]
    fn every_code_has_an_example_and_a_counterexample() {
        for code in codes::ALL {
            let of = |name: &str| -> Vec<Finding> {
                findings(&format!("{}.{name}.yaml", code.code))
                    .into_iter()
                    .filter(|f| f.code == Some(code.code))
                    .collect()
            };
            let bad = of("bad");
            assert!(!bad.is_empty(), "{}: {:?}", code.code, findings(&format!("{}.bad.yaml", code.code)));
            for finding in bad {
                assert_eq!((finding.level, finding.hint), (code.level, Some(code.hint)), "{finding}");
                assert!(finding.file.is_some() && finding.line.is_some() && !finding.message.is_empty(), "{finding:?}");
            }
            assert_eq!(of("good"), [], "{}", code.code);
        }
        let files = fs::read_dir(FIXTURES).unwrap().count();
        assert_eq!(files, 2 * codes::ALL.len(), "a fixture of a code that is not there");
    }

    #[test]
    fn every_code_is_documented() {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reference/analyze.md");
        let page = fs::read_to_string(page).unwrap();
        for code in codes::ALL {
            let row = format!("| {} | {:?} | {} | {} | {} |", code.code, code.level, code.name, code.what, code.hint);
            assert!(page.lines().any(|line| line == row), "this line is missing:\n{row}");
        }
        assert_eq!(
            page.lines().filter(|l| l.starts_with("| IST") || l.starts_with("| MESH")).count(),
            codes::ALL.len()
        );
    }

    #[test]
    fn files_lie_over_what_is_there() {
        let live = |version: &str| {
            serde_json::json!({"apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
                "metadata": {"name": "web", "namespace": "shop", "uid": "1"},
                "spec": {"hosts": ["web"], "http": [{"route": [{"destination": {"host": format!("web-{version}")}}]}]}})
        };
        let missing = |bundle: Bundle| -> Vec<String> {
            bundle.findings(DEFAULT_DOMAIN).into_iter().map(|f| f.message).filter(|m| m.contains("web-")).collect()
        };
        let mut bundle = Bundle::default();
        bundle.add_live(live("live"));
        let said = missing(bundle);
        assert!(!said.is_empty() && said.iter().all(|m| m.contains("web-live")), "{said:?}");
        let mut bundle = Bundle::default();
        bundle.add(Path::new("web.json"), live("file").to_string());
        bundle.add_live(live("live"));
        let said = missing(bundle);
        assert!(!said.is_empty() && said.iter().all(|m| m.contains("web-file")), "{said:?}");
    }

    #[test]
    fn an_object_may_ask_not_to_be_told() {
        let of = |suppress: &str| {
            let mut bundle = Bundle::default();
            let text = format!(
                "apiVersion: v1\nkind: Service\nmetadata: {{name: a, annotations: {{galley.istio.io/analyze-suppress: \
                 '{suppress}'}}}}\nspec: {{ports: [{{name: web, port: 8080}}]}}\n---\napiVersion: \
                 networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: a, annotations: \
                 {{galley.istio.io/analyze-suppress: '{suppress}'}}}}\nspec: {{host: b}}\n"
            );
            bundle.add(Path::new("a.yaml"), text);
            bundle.findings(DEFAULT_DOMAIN).iter().filter_map(|f| f.code).collect::<Vec<_>>()
        };
        assert_eq!(of("IST0001"), ["IST0118", "IST0174"]);
        assert_eq!(of("IST0101, IST0118"), ["IST0174"]);
        assert_eq!(of("*"), [""; 0]);
    }
}
