//! A folder of manifests: which file holds which object, what changed since the last look, what is wrong.
//!
//! Synchronous and without a clock; `watch` decides when to look. Keeps the last good version of every object: a
//! document that turns bad goes on serving what it was, one that was never good is absent, except that a security
//! object never opens anything (see [`fail_safe`]). Nothing is removed on the word of one look: a file may be caught
//! while it is written. What removes something is put off, with what was looked at together with it, until a second
//! look ([`Folder::confirm`]).

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use xxhash_rust::xxh3::xxh3_64;

use super::fail_safe;
use super::manifest;
use super::object::{Kind, Object, ObjectChange, ObjectKey, Position};
use crate::validate::{Finding, Level, MESH_CONFIG, codes::DUPLICATE, references::References};

/// What the folder looks like now.
#[derive(Debug)]
pub struct Folder {
    root: PathBuf,
    files: BTreeMap<PathBuf, FileState>,
    /// What is in force.
    served: HashMap<ObjectKey, Arc<Object>>,
    /// Of these only the strictest form is: they were never good.
    strictest: HashSet<ObjectKey>,
    /// In force, though no file that can be read holds them: they may be in a document that cannot be identified.
    hidden: BTreeSet<ObjectKey>,
    /// What waits for a second look, as it was then.
    changed: BTreeMap<PathBuf, Waiting>,
    /// Folders whose content is not known.
    unlisted: Vec<Finding>,
    /// Security objects that were good when this process was not there yet; until the first look.
    kept: HashMap<ObjectKey, Arc<Object>>,
    scanned: bool,
    references: References,
}

/// What tells one state of a file from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    modified: (i64, i64),
    size: u64,
    inode: u64,
}

/// `None`: there is no such file. All other errors may pass.
fn stamp(path: &Path) -> io::Result<Option<Stamp>> {
    match fs::metadata(path) {
        Ok(m) => Ok(Some(Stamp { modified: (m.mtime(), m.mtime_nsec()), size: m.size(), inode: m.ino() })),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(e) => Err(e),
    }
}

/// A file that waits for a second look.
#[derive(Debug, Clone, Copy)]
struct Waiting {
    /// As it was at the last look; `None`: it was not there.
    stamp: Option<Stamp>,
    /// Looks so far.
    looks: u8,
}

#[derive(Debug, Clone, Default)]
struct FileState {
    /// `None`: it could not be read, so it is tried again at every scan.
    stamp: Option<Stamp>,
    hash: u64,
    documents: Vec<DocumentState>,
    /// Findings without an object: the file itself, or a document that does not parse.
    findings: Vec<Finding>,
    /// A document could not be identified, so objects missing now may be in it.
    unidentified: bool,
}

#[derive(Debug, Clone)]
struct DocumentState {
    key: ObjectKey,
    /// `None`: refused.
    object: Option<Arc<Object>>,
    /// What guards in its place when it was never good.
    strictest: Option<Arc<Object>>,
    findings: Vec<Finding>,
    /// What came of it when it was refused.
    fate: Fate,
}

/// What is in force where a document is refused.
#[derive(Debug, Clone, Default)]
enum Fate {
    #[default]
    Absent,
    Strictest,
    LastGood,
    /// What another file says.
    Other(PathBuf),
}

impl Fate {
    fn words(&self, kind: Kind) -> String {
        match self {
            Self::Strictest if kind == Kind::EnvoyFilter => " (its other patches are in force)".to_owned(),
            Self::Absent => " (the object is not in force)".to_owned(),
            Self::Strictest => " (until this is mended it is enforced in its strictest form)".to_owned(),
            Self::LastGood => " (the last good version stays in force)".to_owned(),
            Self::Other(path) => format!(" (the object of {} is in force)", path.display()),
        }
    }
}

impl DocumentState {
    fn findings(&self) -> Vec<Finding> {
        let mut findings = self.findings.clone();
        if self.object.is_none()
            && let Some(first) = findings.iter_mut().find(|f| f.level == Level::Error)
        {
            first.message.push_str(&self.fate.words(self.key.kind));
        }
        findings
    }
}

/// A document that declares an object, by place.
#[derive(Debug)]
struct Holder {
    path: PathBuf,
    document: usize,
    object: Option<Arc<Object>>,
    strictest: Option<Arc<Object>>,
}

/// A file that is never the same at two looks is believed at this one.
const MOST_LOOKS: u8 = 10;

/// What is to be in force of a key.
enum Verdict {
    Serve(Arc<Object>),
    Strictest(Arc<Object>),
    Keep,
    Remove,
}

impl Folder {
    /// A folder that has not been looked at yet. `domain` completes short names; `kept` are the security objects that
    /// were last good.
    ///
    /// # Errors
    /// When it is not a readable folder.
    pub fn open(root: &Path, domain: &str, kept: Vec<Arc<Object>>) -> Result<Self, Finding> {
        let fail = |message: String| manifest::file_error(root, message);
        let root = root.canonicalize().map_err(|e| fail(format!("cannot be opened: {e}")))?;
        fs::read_dir(&root).map_err(|e| fail(format!("is not a readable folder: {e}")))?;
        Ok(Self {
            root,
            files: BTreeMap::new(),
            served: HashMap::new(),
            strictest: HashSet::new(),
            hidden: BTreeSet::new(),
            changed: BTreeMap::new(),
            unlisted: vec![],
            kept: kept.into_iter().map(|o| (o.key.clone(), o)).collect(),
            scanned: false,
            references: References::new(domain, MESH_CONFIG.0),
        })
    }

    /// The folder, canonical.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Looks at everything. The first time files are read at once; later one that changed without anybody telling
    /// may be in the middle of a change, and is read by [`Self::confirm`].
    pub fn scan(&mut self) -> Vec<ObjectChange> {
        let mut listing = Listing::default();
        listing.walk(&self.root, 0);
        let unlisted = |path: &Path| listing.failed.keys().any(|folder| path.starts_with(folder));
        let gone = self.files.keys().filter(|p| !listing.found.contains(*p) && !unlisted(p));
        let mut now: Vec<PathBuf> = gone.cloned().collect();
        self.unlisted = listing
            .failed
            .iter()
            .map(|(folder, e)| manifest::file_error(folder, format!("cannot be listed: {e}")))
            .collect();
        if self.scanned {
            for path in listing.found {
                match (stamp(&path), self.files.get(&path).and_then(|f| f.stamp)) {
                    (Ok(Some(found)), Some(known)) if found == known => {}
                    (Ok(Some(found)), _) => self.put_off(path, Some(found)),
                    _ => now.push(path),
                }
            }
        } else {
            now.extend(listing.found);
        }
        let changes = self.look(now, false, false);
        self.scanned = true;
        changes
    }

    /// Looks at these paths: files, or folders with all below them.
    pub fn reread(&mut self, paths: impl IntoIterator<Item = PathBuf>) -> Vec<ObjectChange> {
        let mut all = BTreeSet::new();
        for path in paths {
            if path.is_dir() {
                manifests_below(&path, &mut all);
            }
            // Paths are ordered by components: what is below a folder follows it.
            let from = self.files.range(path.clone()..).map(|(p, _)| p);
            all.extend(from.take_while(|p| p.starts_with(&path)).cloned());
            if manifest::is_manifest(&path) {
                all.insert(path);
            }
        }
        self.look(all, true, false)
    }

    /// Whether [`Self::confirm`] has something to do.
    pub fn unsettled(&self) -> bool {
        !self.changed.is_empty()
    }

    /// The second look, a little later: reads what waits, where the file is still as it was then. One that changes all
    /// the time is read at last all the same.
    pub fn confirm(&mut self) -> Vec<ObjectChange> {
        let mut paths = Vec::new();
        for (path, then) in std::mem::take(&mut self.changed) {
            match stamp(&path) {
                Ok(now) if now != then.stamp && then.looks < MOST_LOOKS => {
                    self.changed.insert(path, Waiting { stamp: now, looks: then.looks + 1 });
                }
                _ => paths.push(path),
            }
        }
        // What was put off may look as it did before: rewritten within a tick of the clock.
        self.look(paths, true, true)
    }

    fn put_off(&mut self, path: PathBuf, stamp: Option<Stamp>) {
        let looks = self.changed.get(&path).map_or(0, |w| w.looks);
        self.changed.insert(path, Waiting { stamp, looks: looks.saturating_add(1) });
    }

    /// Every finding, file by file.
    pub fn findings(&self) -> Vec<Finding> {
        let of_file = |f: &FileState| {
            let documents = f.documents.iter().flat_map(DocumentState::findings);
            f.findings.iter().cloned().chain(documents).collect::<Vec<_>>()
        };
        let hidden = self.hidden.iter().map(|key| {
            let message = "stands in no file that can be read; it stays in force until every file can be";
            let mut finding = Finding::warning("", message).on(key);
            finding.file = self.file_of(key).cloned();
            finding
        });
        self.unlisted.iter().cloned().chain(self.files.values().flat_map(of_file)).chain(hidden).collect()
    }

    /// Security objects in force that were good once, for [`Self::open`] of the next process.
    pub fn good_security(&self) -> impl Iterator<Item = &Arc<Object>> {
        self.served.values().filter(|o| o.key.kind.is_security() && !self.strictest.contains(&o.key))
    }

    fn file_of(&self, key: &ObjectKey) -> Option<&PathBuf> {
        self.served.get(key)?.position.as_ref().map(|p| &p.file)
    }

    /// References of objects in force to what is not there.
    pub fn references(&self) -> Vec<Finding> {
        self.references.findings()
    }

    /// Checks references of what changed, and of those who refer to it, and finds their places.
    fn check_references(&mut self, changes: &[ObjectChange]) {
        // What stands in the same file may have moved there.
        let file = |object: &Arc<Object>| object.position.as_ref().map(|p| p.file.clone());
        let known = changes.iter().filter_map(|c| self.references.object(c.key())).filter_map(file);
        let mut files: BTreeSet<PathBuf> = known.collect();
        let mut keys = self.references.apply(changes.iter().cloned());
        files.extend(keys.iter().filter_map(|k| self.references.object(k)).filter_map(file));
        keys.extend(files.iter().flat_map(|f| self.references.dangling_in(f)).cloned());
        let mut text: Option<(PathBuf, String)> = None;
        for key in &keys {
            for finding in self.references.findings_of(key) {
                let Some(file) = &finding.file else { continue };
                if text.as_ref().is_none_or(|(read, _)| read != file) {
                    text = fs::read_to_string(file).ok().map(|t| (file.clone(), t));
                }
                let Some((_, text)) = &text else { continue };
                if let Some((line, column)) = manifest::locate(text, file, key, &finding.field) {
                    finding.line = Some(line);
                    finding.column = Some(column);
                }
            }
        }
    }

    /// What is in force.
    pub fn objects(&self) -> impl Iterator<Item = &Arc<Object>> {
        self.served.values()
    }

    fn look(&mut self, paths: impl IntoIterator<Item = PathBuf>, force: bool, second: bool) -> Vec<ObjectChange> {
        let paths: Vec<PathBuf> = paths.into_iter().collect();
        let before: Vec<Option<FileState>> = paths.iter().map(|path| self.files.get(path).cloned()).collect();
        let mut touched = BTreeSet::new();
        let mut hides = false;
        for path in &paths {
            hides |= self.look_at(path, force, &mut touched);
        }
        let often = paths.iter().any(|path| self.changed.get(path).is_some_and(|w| w.looks >= MOST_LOOKS));
        if !second && !often && self.scanned && self.removes(&touched) {
            for (path, before) in paths.into_iter().zip(before) {
                match before {
                    Some(state) => self.files.insert(path.clone(), state),
                    None => self.files.remove(&path),
                };
                let now = stamp(&path).ok().flatten();
                self.put_off(path, now);
            }
            return vec![];
        }
        for path in &paths {
            self.changed.remove(path);
        }
        self.settle(touched, hides)
    }

    /// Whether an object in force is in no file any more.
    fn removes(&self, touched: &BTreeSet<ObjectKey>) -> bool {
        let gone = |keys: &BTreeSet<ObjectKey>| {
            self.holders(keys).iter().any(|(key, holders)| holders.is_empty() && self.served.contains_key(key))
        };
        gone(touched) || !self.blind() && gone(&self.hidden)
    }

    /// Whether there may be objects that nobody can see.
    fn blind(&self) -> bool {
        !self.unlisted.is_empty() || self.files.values().any(|f| f.unidentified)
    }

    /// Rereads one file; collects the keys that may have changed. `true`: the file is new and has a document that cannot
    /// be identified, so what vanishes together with its coming may have moved there.
    fn look_at(&mut self, path: &Path, force: bool, touched: &mut BTreeSet<ObjectKey>) -> bool {
        let (stamp, content) = match stamp(path) {
            Ok(None) => {
                if let Some(old) = self.files.remove(path) {
                    touched.extend(old.documents.into_iter().map(|d| d.key));
                }
                return false;
            }
            Ok(Some(stamp)) => {
                let known = self.files.get(path).and_then(|f| f.stamp);
                if !force && known == Some(stamp) {
                    return false;
                }
                (Some(stamp), manifest::read_file(path))
            }
            Err(e) => (None, Err(manifest::file_error(path, format!("cannot be read: {e}")))),
        };
        let hash = content.as_deref().map_or(0, xxh3_64);
        if content.is_ok()
            && let Some(known) = self.files.get_mut(path)
            && known.hash == hash
            && known.stamp.is_some()
        {
            known.stamp = stamp;
            return false;
        }
        let known = self.files.remove(path);
        let new = known.is_none();
        let old = known.unwrap_or_default();
        touched.extend(old.documents.iter().map(|d| d.key.clone()));
        let stamp = stamp.filter(|_| content.is_ok());
        let state = read_state(path, content, FileState { stamp, hash, ..FileState::default() }, old);
        touched.extend(state.documents.iter().map(|d| d.key.clone()));
        let hides = new && state.unidentified;
        self.files.insert(path.to_owned(), state);
        hides
    }

    /// Decides for each key what serves it: the first path that holds a good object; when all are refused what was
    /// served; and only then the strictest form.
    fn settle(&mut self, mut touched: BTreeSet<ObjectKey>, hides: bool) -> Vec<ObjectChange> {
        let kept = std::mem::take(&mut self.kept);
        let hidden = std::mem::take(&mut self.hidden);
        touched.extend(hidden.iter().chain(kept.keys()).cloned());
        let blind = self.blind();
        let mut changes = Vec::new();
        for (key, holders) in self.holders(&touched) {
            let winner = holders.iter().find(|h| h.object.is_some());
            let good = self.served.contains_key(&key) && !self.strictest.contains(&key);
            let verdict = match (winner.and_then(|w| w.object.clone()), kept.get(&key)) {
                (Some(object), _) => Verdict::Serve(object),
                (None, Some(object)) if !holders.is_empty() || blind => {
                    if holders.is_empty() {
                        self.hidden.insert(key.clone());
                    }
                    Verdict::Serve(object.clone())
                }
                (None, Some(_)) => Verdict::Remove,
                (None, None) if holders.is_empty() => {
                    let stays = blind && (hides || key.kind.is_security() || hidden.contains(&key));
                    if stays && self.served.contains_key(&key) {
                        self.hidden.insert(key.clone());
                        Verdict::Keep
                    } else {
                        Verdict::Remove
                    }
                }
                (None, None) if good => Verdict::Keep,
                (None, None) => match holders.iter().find_map(|h| h.strictest.clone()) {
                    Some(object) => Verdict::Strictest(object),
                    None => Verdict::Remove,
                },
            };
            self.note(&key, &holders, winner, &verdict);
            changes.extend(self.enforce(key, verdict));
        }
        self.check_references(&changes);
        changes
    }

    /// Who holds each of these keys, in the order of paths.
    fn holders(&self, touched: &BTreeSet<ObjectKey>) -> BTreeMap<ObjectKey, Vec<Holder>> {
        let mut holders: BTreeMap<ObjectKey, Vec<Holder>> = touched.iter().map(|k| (k.clone(), vec![])).collect();
        for (path, state) in &self.files {
            for (document, d) in state.documents.iter().enumerate() {
                let Some(all) = holders.get_mut(&d.key) else { continue };
                let (object, strictest) = (d.object.clone(), d.strictest.clone());
                all.push(Holder { path: path.clone(), document, object, strictest });
            }
        }
        holders
    }

    fn enforce(&mut self, key: ObjectKey, verdict: Verdict) -> Option<ObjectChange> {
        let new = match verdict {
            Verdict::Keep => return None,
            Verdict::Remove => {
                self.strictest.remove(&key);
                return self.served.remove(&key).map(|_| ObjectChange::Remove(key));
            }
            Verdict::Serve(object) => {
                self.strictest.remove(&key);
                object
            }
            Verdict::Strictest(object) => {
                self.strictest.insert(key.clone());
                object
            }
        };
        // Its place may be another one all the same.
        let old = self.served.insert(key, new.clone());
        let same = old.is_some_and(|old| old.meta == new.meta && old.spec == new.spec);
        (!same).then_some(ObjectChange::Upsert(new))
    }

    /// Says at every document of a key what is in force in its place.
    fn note(&mut self, key: &ObjectKey, holders: &[Holder], winner: Option<&Holder>, verdict: &Verdict) {
        for holder in holders {
            let Some(state) = self.files.get_mut(&holder.path) else { continue };
            let Some(document) = state.documents.get_mut(holder.document) else { continue };
            document.findings.retain(|f| f.code != Some(DUPLICATE));
            document.fate = match (winner, verdict) {
                (Some(winner), _) => Fate::Other(winner.path.clone()),
                (None, Verdict::Serve(_) | Verdict::Keep) => Fate::LastGood,
                (None, Verdict::Strictest(_)) => Fate::Strictest,
                (None, Verdict::Remove) => Fate::Absent,
            };
            let Some((winner, object)) = winner.zip(document.object.as_ref()) else { continue };
            if (&winner.path, winner.document) == (&holder.path, holder.document) {
                continue;
            }
            let message = format!("is declared twice: {} is in force, this one is not", winner.path.display());
            let mut finding = Finding::error("metadata.name", message).code(DUPLICATE).on(key);
            finding.file = Some(holder.path.clone());
            finding.line = object.position.as_ref().map(|p| p.line);
            document.findings.push(finding);
        }
    }
}

/// Reads a file's content; what cannot be identified in it may be any object of its former content.
fn read_state(path: &Path, content: Result<Vec<u8>, Finding>, mut state: FileState, old: FileState) -> FileState {
    let readings = match content.and_then(|bytes| manifest::read_bytes(path, &bytes)) {
        Ok(readings) => readings,
        Err(finding) => {
            state.findings.push(finding);
            state.unidentified = true;
            vec![]
        }
    };
    for reading in readings {
        let refused = reading.refused();
        let Some(key) = reading.key else {
            state.unidentified |= refused;
            state.findings.extend(reading.findings);
            continue;
        };
        // Text that does not parse was recognised by its words; other objects may be in what is cut off.
        state.unidentified |= refused && reading.raw.is_null();
        let strictest = if refused {
            let line = reading.findings.iter().find_map(|f| f.line).unwrap_or(1);
            fail_safe::strictest(Some(Position { file: path.to_owned(), line }), &key, &reading.raw)
        } else {
            None
        };
        let object = reading.object.map(Arc::new);
        let (findings, fate) = (reading.findings, Fate::default());
        state.documents.push(DocumentState { key, object, strictest, findings, fate });
    }
    if state.unidentified {
        for mut document in old.documents {
            if !state.documents.iter().any(|d| d.key == document.key) {
                document.findings.clear();
                state.documents.push(document);
            }
        }
    }
    state
}

/// All manifests below a folder, symlinks followed, dot files and dot folders left out.
pub fn manifests_below(folder: &Path, found: &mut BTreeSet<PathBuf>) {
    let mut listing = Listing::default();
    listing.walk(folder, 0);
    found.append(&mut listing.found);
}

/// What is below a folder.
#[derive(Debug, Default)]
struct Listing {
    found: BTreeSet<PathBuf>,
    /// What could not be looked at.
    failed: BTreeMap<PathBuf, io::Error>,
}

impl Listing {
    fn walk(&mut self, folder: &Path, depth: u32) {
        /// Ends symlink loops.
        const MAX_DEPTH: u32 = 32;
        let entries = match fs::read_dir(folder) {
            Ok(entries) => entries,
            // It was removed while it was walked. Without the folder itself nothing is known.
            Err(e) if e.kind() == io::ErrorKind::NotFound && depth > 0 => return,
            Err(e) => {
                self.failed.insert(folder.to_owned(), e);
                return;
            }
        };
        for entry in entries {
            let entry = match entry {
                Ok(entry) => entry,
                Err(e) => {
                    self.failed.insert(folder.to_owned(), e);
                    return;
                }
            };
            let path = entry.path();
            if entry.file_name().to_string_lossy().starts_with('.') {
                continue;
            }
            match fs::metadata(&path) {
                Ok(meta) if meta.is_dir() && depth < MAX_DEPTH => self.walk(&path, depth + 1),
                Ok(meta) if meta.is_file() && manifest::is_manifest(&path) => {
                    self.found.insert(path);
                }
                // It is there, and says by itself why it cannot be read.
                Err(e) if e.kind() != io::ErrorKind::NotFound && manifest::is_manifest(&path) => {
                    self.found.insert(path);
                }
                _ => {}
            }
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
mod tests;
