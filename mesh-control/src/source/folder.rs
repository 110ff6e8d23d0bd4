//! A folder of manifests: which file holds which object, what changed since the last look, what is wrong.
//!
//! Synchronous and without a clock; `watch` decides when to look. Keeps the last good version of every object: a
//! document that turns bad goes on serving what it was, one that was never good is absent, except that a security
//! object never opens anything (see [`fail_safe`]).

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use mesh_api::crd::security::{AuthorizationPolicy, MtlsMode, MutualTls, PeerAuthentication, PolicyAction, Rule};
use mesh_api::names::DEFAULT_DOMAIN;
use serde_json::Value;
use xxhash_rust::xxh3::xxh3_64;

use super::manifest::{self, Reading};
use super::object::{Kind, Object, ObjectChange, ObjectKey, Position, Spec};
use crate::validate::{Finding, Level, references};

/// What the folder looks like now.
#[derive(Debug)]
pub struct Folder {
    root: PathBuf,
    files: BTreeMap<PathBuf, FileState>,
    /// What is in force.
    served: HashMap<ObjectKey, Arc<Object>>,
}

#[derive(Debug, Default)]
struct FileState {
    stamp: Option<(SystemTime, u64)>,
    hash: u64,
    documents: Vec<DocumentState>,
    /// Findings without an object: the file itself, or a document that does not parse.
    findings: Vec<Finding>,
    /// A document could not be identified, so objects missing now may be in it.
    unidentified: bool,
}

#[derive(Debug)]
struct DocumentState {
    key: ObjectKey,
    /// `None`: refused and never good.
    object: Option<Arc<Object>>,
    findings: Vec<Finding>,
}

impl Folder {
    /// A folder that has not been looked at yet.
    ///
    /// # Errors
    /// When it is not a readable folder.
    pub fn open(root: &Path) -> Result<Self, Finding> {
        let fail = |message: String| {
            let mut finding = Finding::error("", message);
            finding.file = Some(root.to_owned());
            finding
        };
        let root = root.canonicalize().map_err(|e| fail(format!("cannot be opened: {e}")))?;
        fs::read_dir(&root).map_err(|e| fail(format!("is not a readable folder: {e}")))?;
        Ok(Self { root, files: BTreeMap::new(), served: HashMap::new() })
    }

    /// The folder, canonical.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Looks at everything; rereads files whose time or size changed.
    pub fn scan(&mut self) -> Vec<ObjectChange> {
        let mut found = BTreeSet::new();
        manifests_below(&self.root, &mut found);
        let gone: Vec<PathBuf> = self.files.keys().filter(|p| !found.contains(*p)).cloned().collect();
        let paths: Vec<PathBuf> = gone.into_iter().chain(found).collect();
        self.look(paths, false)
    }

    /// Looks at these paths: files, or folders with all below them.
    pub fn reread(&mut self, paths: impl IntoIterator<Item = PathBuf>) -> Vec<ObjectChange> {
        let mut all = BTreeSet::new();
        for path in paths {
            if path.is_dir() {
                manifests_below(&path, &mut all);
            }
            let below: Vec<PathBuf> = self.files.keys().filter(|p| p.starts_with(&path)).cloned().collect();
            all.extend(below);
            if manifest::is_manifest(&path) {
                all.insert(path);
            }
        }
        self.look(all, true)
    }

    /// Every finding, file by file.
    pub fn findings(&self) -> Vec<Finding> {
        let of_file = |f: &FileState| {
            let documents = f.documents.iter().flat_map(|d| d.findings.iter().cloned());
            f.findings.iter().cloned().chain(documents).collect::<Vec<_>>()
        };
        self.files.values().flat_map(of_file).collect()
    }

    /// References of objects in force to what is not there.
    pub fn references(&self) -> Vec<Finding> {
        let objects: Vec<&Object> = self.objects().map(Arc::as_ref).collect();
        let mut findings = references::check(&objects, DEFAULT_DOMAIN);
        let mut text: Option<(PathBuf, String)> = None;
        for finding in &mut findings {
            let (Some(file), Some(key)) = (&finding.file, &finding.object) else { continue };
            if text.as_ref().is_none_or(|(read, _)| read != file) {
                text = fs::read_to_string(file).ok().map(|t| (file.clone(), t));
            }
            let Some((_, text)) = &text else { continue };
            if let Some((line, column)) = manifest::locate(text, file, key, &finding.field) {
                finding.line = Some(line);
                finding.column = Some(column);
            }
        }
        findings
    }

    /// What is in force.
    pub fn objects(&self) -> impl Iterator<Item = &Arc<Object>> {
        self.served.values()
    }

    fn look(&mut self, paths: impl IntoIterator<Item = PathBuf>, force: bool) -> Vec<ObjectChange> {
        let mut touched = BTreeSet::new();
        for path in paths {
            self.look_at(&path, force, &mut touched);
        }
        self.settle(touched)
    }

    /// Rereads one file; collects the keys that may have changed.
    fn look_at(&mut self, path: &Path, force: bool, touched: &mut BTreeSet<ObjectKey>) {
        let Ok(meta) = fs::metadata(path) else {
            if let Some(old) = self.files.remove(path) {
                touched.extend(old.documents.into_iter().map(|d| d.key));
            }
            return;
        };
        let stamp = meta.modified().ok().map(|m| (m, meta.len()));
        let known = self.files.get(path);
        if !force && known.is_some_and(|k| k.stamp == stamp && stamp.is_some()) {
            return;
        }
        let bytes = fs::read(path).unwrap_or_default();
        let hash = xxh3_64(&bytes);
        if let Some(known) = self.files.get_mut(path)
            && known.hash == hash
            && known.stamp.is_some()
        {
            known.stamp = stamp;
            return;
        }
        let old = self.files.remove(path).unwrap_or_default();
        let state = read_state(path, stamp, hash, &old);
        touched.extend(old.documents.into_iter().map(|d| d.key));
        touched.extend(state.documents.iter().map(|d| d.key.clone()));
        self.files.insert(path.to_owned(), state);
    }

    /// Decides for each key which file serves it; the first path wins.
    fn settle(&mut self, touched: BTreeSet<ObjectKey>) -> Vec<ObjectChange> {
        let mut changes = Vec::new();
        let mut holders: HashMap<&ObjectKey, Vec<(&PathBuf, Option<&Arc<Object>>)>> = HashMap::new();
        for (path, state) in &self.files {
            for document in state.documents.iter().filter(|d| touched.contains(&d.key)) {
                holders.entry(&document.key).or_default().push((path, document.object.as_ref()));
            }
        }
        let mut duplicates: Vec<(ObjectKey, PathBuf, PathBuf)> = Vec::new();
        for key in &touched {
            let holders = holders.get(key).map_or(&[][..], Vec::as_slice);
            if let Some((first, rest)) = holders.split_first() {
                duplicates.extend(rest.iter().map(|(p, _)| (key.clone(), first.0.clone(), (*p).clone())));
            }
            let winner = holders.first().and_then(|(_, object)| *object);
            let before = self.served.get(key);
            match (before, winner) {
                (Some(old), Some(new)) if old.meta == new.meta && old.spec == new.spec => {}
                (_, Some(new)) => changes.push(ObjectChange::Upsert(new.clone())),
                (Some(_), None) => changes.push(ObjectChange::Remove(key.clone())),
                (None, None) => {}
            }
        }
        for change in &changes {
            match change {
                ObjectChange::Upsert(object) => self.served.insert(object.key.clone(), object.clone()),
                ObjectChange::Remove(key) => self.served.remove(key),
            };
        }
        self.note_duplicates(&touched, &duplicates);
        changes
    }

    fn note_duplicates(&mut self, touched: &BTreeSet<ObjectKey>, duplicates: &[(ObjectKey, PathBuf, PathBuf)]) {
        let stale = |f: &Finding| f.code == Some(DUPLICATE) && f.object.as_ref().is_some_and(|o| touched.contains(o));
        for state in self.files.values_mut() {
            for document in &mut state.documents {
                document.findings.retain(|f| !stale(f));
            }
        }
        for (key, first, second) in duplicates {
            let Some(state) = self.files.get_mut(second) else { continue };
            let mut seen_in_first = first != second;
            for document in state.documents.iter_mut().filter(|d| d.key == *key) {
                if !std::mem::replace(&mut seen_in_first, true) {
                    continue;
                }
                let message = format!("is declared twice: {} is in force, this one is not", first.display());
                let mut finding = Finding::error("metadata.name", message).code(DUPLICATE).on(key);
                finding.file = Some(second.clone());
                finding.line = document.object.as_ref().and_then(|o| o.position.as_ref()).map(|p| p.line);
                document.findings.push(finding);
            }
        }
    }
}

/// Code of findings about one object in two places.
pub const DUPLICATE: &str = "MESH0001";

/// Reads a file and keeps what was good of its former content where the new one is not.
fn read_state(path: &Path, stamp: Option<(SystemTime, u64)>, hash: u64, old: &FileState) -> FileState {
    let mut state = FileState { stamp, hash, ..FileState::default() };
    let readings = match manifest::read_file(path) {
        Ok(readings) => readings,
        Err(finding) => {
            state.findings.push(finding);
            state.unidentified = true;
            vec![]
        }
    };
    let good_before = |key: &ObjectKey| old.documents.iter().find(|d| d.key == *key).and_then(|d| d.object.clone());
    for reading in readings {
        match reading.key.clone() {
            Some(key) => {
                let refused = reading.refused();
                let (object, mut findings) = match reading.object {
                    Some(object) => (Some(Arc::new(object)), reading.findings),
                    None if refused => {
                        let last_good = good_before(&key).or_else(|| fail_safe(path, &key, &reading));
                        (last_good, reading.findings)
                    }
                    None => (None, reading.findings),
                };
                if refused && let Some(first) = findings.iter_mut().find(|f| f.level == Level::Error) {
                    first.message.push_str(match (&object, good_before(&key)) {
                        (_, Some(_)) => " (the last good version stays in force)",
                        (Some(_), None) => " (until this is mended it is enforced in its strictest form)",
                        (None, None) => " (the object is not in force)",
                    });
                }
                state.documents.push(DocumentState { key, object, findings });
            }
            None => {
                state.unidentified |= reading.findings.iter().any(|f| f.level == Level::Error);
                state.findings.extend(reading.findings);
            }
        }
    }
    if state.unidentified {
        for document in &old.documents {
            if document.object.is_some() && !state.documents.iter().any(|d| d.key == document.key) {
                state.documents.push(DocumentState {
                    key: document.key.clone(),
                    object: document.object.clone(),
                    findings: vec![],
                });
            }
        }
    }
    state
}

/// The strictest form of a security object that cannot be read and has no good predecessor: a PeerAuthentication
/// counts as STRICT, an AuthorizationPolicy lets nothing through. Its selector is honoured when that can be read.
fn fail_safe(path: &Path, key: &ObjectKey, reading: &Reading) -> Option<Arc<Object>> {
    let selector = reading.raw.pointer("/spec/selector").cloned();
    let selector = selector.and_then(|s| serde_json::from_value(s).ok());
    let spec = match key.kind {
        Kind::PeerAuthentication => Spec::PeerAuthentication(Arc::new(PeerAuthentication {
            selector,
            mtls: Some(MutualTls { mode: MtlsMode::Strict }),
            ..PeerAuthentication::default()
        })),
        Kind::AuthorizationPolicy => {
            let action = reading.raw.pointer("/spec/action").and_then(Value::as_str);
            // An ALLOW policy that matches nothing refuses what no other policy allows; anything else may have
            // been meant to deny, so it denies everything.
            let (action, rules) = match action {
                None | Some("ALLOW") => (PolicyAction::Allow, None),
                Some("AUDIT") => return None,
                Some(_) => (PolicyAction::Deny, Some(vec![Rule::default()])),
            };
            Spec::AuthorizationPolicy(Arc::new(AuthorizationPolicy {
                selector,
                action,
                rules,
                ..AuthorizationPolicy::default()
            }))
        }
        _ => return None,
    };
    let position = Some(Position { file: path.to_owned(), line: 1 });
    Some(Arc::new(Object { key: key.clone(), meta: super::object::Meta::default(), spec, position }))
}

/// All manifests below a folder, symlinks followed, dot files and dot folders left out.
pub fn manifests_below(folder: &Path, found: &mut BTreeSet<PathBuf>) {
    walk(folder, found, 0);
}

fn walk(folder: &Path, found: &mut BTreeSet<PathBuf>, depth: u32) {
    /// Ends symlink loops.
    const MAX_DEPTH: u32 = 32;
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        if entry.file_name().to_string_lossy().starts_with('.') {
            continue;
        }
        match fs::metadata(&path) {
            Ok(meta) if meta.is_dir() && depth < MAX_DEPTH => walk(&path, found, depth + 1),
            Ok(meta) if meta.is_file() && manifest::is_manifest(&path) => {
                found.insert(path);
            }
            _ => {}
        }
    }
}

/// Every folder that has to be watched.
pub(super) fn folders(root: &Path) -> Vec<PathBuf> {
    let mut all = vec![root.to_owned()];
    let mut next = 0;
    while let Some(folder) = all.get(next).cloned() {
        next += 1;
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let hidden = entry.file_name().to_string_lossy().starts_with('.');
            if !hidden && fs::metadata(entry.path()).is_ok_and(|m| m.is_dir()) && all.len() < 10_000 {
                all.push(entry.path());
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(dir: &Path, name: &str, text: &str) {
        fs::write(dir.join(name), text).unwrap();
    }

    fn host(hosts: &str) -> String {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: a}}\nspec: {{host: {hosts}}}\n"
        )
    }

    fn names(changes: &[ObjectChange]) -> Vec<String> {
        changes
            .iter()
            .map(|c| match c {
                ObjectChange::Upsert(o) => format!("+{}", o.key.name),
                ObjectChange::Remove(k) => format!("-{}", k.name),
            })
            .collect()
    }

    #[test]
    fn reports_only_what_changed() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "a.yaml", &host("one"));
        write(dir.path(), "notes.txt", "kind: [");
        write(dir.path(), ".hidden.yaml", "kind: [");
        let mut folder = Folder::open(dir.path()).unwrap();
        assert_eq!(names(&folder.scan()), ["+a"]);
        assert_eq!(names(&folder.scan()), [""; 0]);
        let path = folder.root().join("a.yaml");
        write(dir.path(), "a.yaml", &format!("# comment\n{}", host("one")));
        assert_eq!(names(&folder.reread([path.clone()])), [""; 0], "a comment is no change");
        write(dir.path(), "a.yaml", &host("two"));
        assert_eq!(names(&folder.reread([path.clone()])), ["+a"]);
        fs::remove_file(&path).unwrap();
        assert_eq!(names(&folder.reread([path])), ["-a"]);
    }

    #[test]
    fn the_last_good_version_stays() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "a.yaml", &host("one"));
        let mut folder = Folder::open(dir.path()).unwrap();
        folder.scan();
        let path = folder.root().join("a.yaml");
        write(dir.path(), "a.yaml", "kind: [");
        assert_eq!(names(&folder.reread([path.clone()])), [""; 0]);
        assert_eq!(folder.objects().count(), 1);
        assert_eq!(folder.findings().len(), 1);
        write(dir.path(), "a.yaml", &host("[1]"));
        assert_eq!(names(&folder.reread([path.clone()])), [""; 0]);
        assert!(folder.findings()[0].message.contains("last good"), "{:?}", folder.findings());
        write(dir.path(), "a.yaml", &host("three"));
        assert_eq!(names(&folder.reread([path])), ["+a"]);
        assert!(folder.findings().is_empty());
    }

    #[test]
    fn the_first_of_two_declarations_wins() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "b.yaml", &host("second"));
        let mut folder = Folder::open(dir.path()).unwrap();
        folder.scan();
        write(dir.path(), "a.yaml", &host("first"));
        assert_eq!(names(&folder.scan()), ["+a"]);
        let findings = folder.findings();
        assert_eq!(findings.len(), 1);
        assert!(findings[0].file.as_ref().unwrap().ends_with("b.yaml"));
        assert!(findings[0].message.contains("a.yaml"));
        fs::remove_file(dir.path().join("a.yaml")).unwrap();
        assert_eq!(names(&folder.scan()), ["+a"]);
        assert!(folder.findings().is_empty());
    }

    #[test]
    fn a_security_object_that_was_never_good_never_opens() {
        let dir = tempfile::tempdir().unwrap();
        let head = "apiVersion: security.istio.io/v1\nmetadata: {name: a, namespace: shop}\n";
        write(dir.path(), "p.yaml", &format!("{head}kind: PeerAuthentication\nspec: {{mtls: {{mode: MAYBE}}}}\n"));
        write(
            dir.path(),
            "q.yaml",
            &format!(
                "{head}kind: AuthorizationPolicy\nspec: {{action: DENY, selector: {{matchLabels: {{app: x}}}}, rules: 5}}\n"
            ),
        );
        let mut folder = Folder::open(dir.path()).unwrap();
        folder.scan();
        for object in folder.objects() {
            match &object.spec {
                Spec::PeerAuthentication(p) => assert_eq!(p.mtls.as_ref().unwrap().mode, MtlsMode::Strict),
                Spec::AuthorizationPolicy(p) => {
                    assert_eq!(p.action, PolicyAction::Deny);
                    assert_eq!(p.rules.as_ref().unwrap().len(), 1);
                    assert_eq!(p.selector.as_ref().unwrap().match_labels["app"], "x");
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(folder.objects().count(), 2);
    }
}
