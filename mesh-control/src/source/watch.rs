//! Watches a [`Folder`] with inotify: a changed file is reread within milliseconds, everything every 30 s, and
//! everything at once when events were lost.

use std::{
    collections::{BTreeSet, HashMap},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use tokio::{sync::mpsc, time::Instant};

use super::folder::{self, Folder};
use super::kept::Kept;
use super::object::ObjectChange;
use super::status::SharedStatus;
use crate::validate::{Finding, Level, is_mesh_config};

/// A full look at the folder at least this often.
const RESCAN: Duration = Duration::from_secs(30);
/// What may be in the middle of a change is looked at again after this.
const CONFIRM: Duration = Duration::from_millis(50);
/// Events that come closer together than this are looked at together.
const SETTLE: Duration = Duration::from_millis(2);

/// A watched folder.
#[derive(Debug)]
pub struct FolderSource {
    folder: Folder,
    kept: Kept,
    status: SharedStatus,
}

impl FolderSource {
    /// Reads the folder for the first time. `domain` completes short names; in `state_dir` security objects outlive
    /// the process.
    ///
    /// # Errors
    /// When it is not a readable folder.
    pub fn open(root: &Path, domain: &str, state_dir: &Path) -> Result<(Self, Vec<ObjectChange>), Finding> {
        let (kept, objects) = Kept::open(state_dir);
        let mut source = Self { folder: Folder::open(root, domain, objects)?, kept, status: SharedStatus::default() };
        let changes = source.folder.scan();
        source.kept.save(source.folder.good_security());
        source.publish();
        Ok((source, changes))
    }

    /// Shared view of what is wrong.
    pub fn status(&self) -> SharedStatus {
        self.status.clone()
    }

    fn publish(&self) {
        let mut findings = self.folder.findings();
        let settings = self.folder.objects().any(|o| is_mesh_config(&o.key));
        let refused = findings.iter().filter(|f| f.level == Level::Error).filter_map(|f| f.object.clone()).collect();
        findings.extend(self.folder.references());
        self.status.write().publish(findings, refused, settings);
    }

    /// Reports changes until the receiver is gone.
    ///
    /// # Errors
    /// When inotify cannot be used.
    pub async fn run(mut self, changes: mpsc::Sender<Vec<ObjectChange>>) -> std::io::Result<()> {
        let mut events = Watcher::start(self.folder.root())?;
        // What changed between the first look and the first event that would tell of it.
        let mut found = self.folder.scan();
        let mut confirm_at: Option<Instant> = None;
        loop {
            self.publish();
            if found.iter().any(|change| change.key().kind.is_security()) {
                self.kept.save(self.folder.good_security());
            }
            if !found.is_empty() && changes.send(found).await.is_err() {
                return Ok(());
            }
            confirm_at = self.folder.unsettled().then(|| confirm_at.unwrap_or_else(|| Instant::now() + CONFIRM));
            // Events without a pause must not put it off.
            if confirm_at.is_some_and(|at| at <= Instant::now()) {
                confirm_at = None;
                found = self.folder.confirm();
                continue;
            }
            let until = confirm_at.unwrap_or_else(|| Instant::now() + RESCAN);
            found = match tokio::time::timeout_at(until, events.recv()).await {
                Ok(Some(Event::Paths(paths))) => self.folder.reread(paths),
                Err(_) if confirm_at.is_some() => vec![],
                Ok(Some(Event::Lost)) | Err(_) => self.folder.scan(),
                Ok(None) => return Err(std::io::Error::other("the folder is not watched any more")),
            };
        }
    }
}

/// What the watching thread reports.
enum Event {
    /// These changed.
    Paths(BTreeSet<PathBuf>),
    /// Something changed, nobody knows what.
    Lost,
}

/// inotify on a tree of folders.
struct Watcher {
    fd: OwnedFd,
    root: PathBuf,
    folders: HashMap<i32, PathBuf>,
}

impl Watcher {
    /// Watches on a thread of its own, until the receiver is gone.
    fn start(root: &Path) -> std::io::Result<mpsc::Receiver<Event>> {
        let fd = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        let mut watcher = Self { fd, root: root.to_owned(), folders: HashMap::new() };
        watcher.watch_below(root);
        let (tx, rx) = mpsc::channel(16);
        std::thread::Builder::new().name("folder-watch".to_owned()).spawn(move || {
            if let Err(error) = watcher.run(&tx) {
                tracing::error!(target: "config", "watching {} failed: {error}", watcher.root.display());
            }
        })?;
        Ok(rx)
    }

    fn run(&mut self, events: &mpsc::Sender<Event>) -> std::io::Result<()> {
        let mut idle = 0;
        while !events.is_closed() {
            let wait = Timespec { tv_sec: 0, tv_nsec: 500_000_000 };
            let ready = poll(&mut [PollFd::new(&self.fd, PollFlags::IN)], Some(&wait));
            match ready {
                Ok(0) => {
                    idle += 1;
                    // What could not be watched before may be there by now.
                    if idle % 60 == 0 {
                        self.watch_below(&self.root.clone());
                    }
                    continue;
                }
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            }
            let mut paths = BTreeSet::new();
            let mut lost = self.drain(&mut paths)?;
            std::thread::sleep(SETTLE);
            lost |= self.drain(&mut paths)?;
            if lost {
                self.watch_below(&self.root.clone());
            }
            let event = if lost { Event::Lost } else { Event::Paths(paths) };
            if !matches!(&event, Event::Paths(p) if p.is_empty()) && events.blocking_send(event).is_err() {
                break;
            }
        }
        Ok(())
    }

    /// Watches a folder and all below. Adding one twice is harmless; what cannot be watched is left to the rescan.
    fn watch_below(&mut self, root: &Path) {
        let flags = WatchFlags::CLOSE_WRITE
            | WatchFlags::MOVED_TO
            | WatchFlags::MOVED_FROM
            | WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::DELETE_SELF
            | WatchFlags::ONLYDIR;
        for folder in folder::folders(root) {
            match inotify::add_watch(&self.fd, &folder, flags) {
                Ok(id) => {
                    self.folders.insert(id, folder);
                }
                Err(error) => tracing::warn!(target: "config", "cannot watch {}: {error}", folder.display()),
            }
        }
    }

    /// Takes all pending events. `true`: some were lost.
    fn drain(&mut self, paths: &mut BTreeSet<PathBuf>) -> std::io::Result<bool> {
        let mut buffer = [std::mem::MaybeUninit::uninit(); 16 << 10];
        let mut new_folders = Vec::new();
        let mut lost = false;
        {
            let mut reader = inotify::Reader::new(&self.fd, &mut buffer);
            loop {
                let event = match reader.next() {
                    Ok(event) => event,
                    Err(rustix::io::Errno::AGAIN) => break,
                    Err(rustix::io::Errno::INTR) => continue,
                    Err(error) => return Err(error.into()),
                };
                if event.events().contains(ReadFlags::QUEUE_OVERFLOW) {
                    lost = true;
                    continue;
                }
                let Some(folder) = self.folders.get(&event.wd()) else { continue };
                let Some(name) = event.file_name() else { continue };
                let name = name.to_string_lossy();
                if name.starts_with('.') {
                    // A dot name may be the hidden half of an atomic swap of symlinks (`..data`).
                    if name.starts_with("..") {
                        lost = true;
                    }
                    continue;
                }
                let path = folder.join(&*name);
                let created = event.events().intersects(ReadFlags::CREATE | ReadFlags::MOVED_TO);
                if event.events().contains(ReadFlags::ISDIR) {
                    if created {
                        new_folders.push(path.clone());
                    }
                } else if event.events().contains(ReadFlags::CREATE)
                    && !std::fs::symlink_metadata(&path).is_ok_and(|m| m.is_symlink() || m.nlink_above_one())
                {
                    // A file just made is read when its writer closes it; links never see that event.
                    continue;
                }
                paths.insert(path);
            }
        }
        for folder in new_folders {
            self.watch_below(&folder);
        }
        Ok(lost)
    }
}

/// Hard links, like symlinks, appear complete.
trait Links {
    fn nlink_above_one(&self) -> bool;
}

impl Links for std::fs::Metadata {
    fn nlink_above_one(&self) -> bool {
        std::os::unix::fs::MetadataExt::nlink(self) > 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::object::ObjectChange;

    fn namespace(name: &str) -> String {
        format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}}}\n")
    }

    async fn next_names(rx: &mut mpsc::Receiver<Vec<ObjectChange>>) -> Vec<String> {
        let changes = tokio::time::timeout(Duration::from_secs(10), rx.recv()).await.unwrap().unwrap();
        changes
            .iter()
            .map(|c| match c {
                ObjectChange::Upsert(o) => format!("+{}", o.key.name),
                ObjectChange::Remove(k) => format!("-{}", k.name),
            })
            .collect()
    }

    #[tokio::test]
    async fn sees_create_rename_new_folder_and_delete() {
        let (dir, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (source, first) = FolderSource::open(dir.path(), "cluster.local", state.path()).unwrap();
        assert!(first.is_empty());
        let (tx, mut rx) = mpsc::channel(16);
        let task = tokio::spawn(source.run(tx));
        tokio::time::sleep(Duration::from_millis(50)).await;
        std::fs::write(dir.path().join("a.yaml"), namespace("a")).unwrap();
        assert_eq!(next_names(&mut rx).await, ["+a"]);
        std::fs::write(dir.path().join(".tmp"), namespace("b")).unwrap();
        std::fs::rename(dir.path().join(".tmp"), dir.path().join("b.yaml")).unwrap();
        assert_eq!(next_names(&mut rx).await, ["+b"]);
        std::fs::create_dir(dir.path().join("sub")).unwrap();
        std::fs::write(dir.path().join("sub/c.yaml"), namespace("c")).unwrap();
        assert_eq!(next_names(&mut rx).await, ["+c"]);
        std::fs::remove_dir_all(dir.path().join("sub")).unwrap();
        assert_eq!(next_names(&mut rx).await, ["-c"]);
        task.abort();
    }

    #[tokio::test]
    async fn sees_what_changed_before_it_watched() {
        let (dir, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::write(dir.path().join("a.yaml"), namespace("a")).unwrap();
        let (source, first) = FolderSource::open(dir.path(), "cluster.local", state.path()).unwrap();
        assert_eq!(first.len(), 1);
        std::fs::write(dir.path().join("b.yaml"), namespace("b")).unwrap();
        std::fs::remove_file(dir.path().join("a.yaml")).unwrap();
        let (tx, mut rx) = mpsc::channel(16);
        let task = tokio::spawn(source.run(tx));
        assert_eq!(next_names(&mut rx).await, ["-a", "+b"]);
        task.abort();
    }

    #[tokio::test]
    async fn a_restart_keeps_policies_of_a_file_that_cannot_be_read() {
        let policy = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p}\nspec: {action: DENY, rules: [{}]}\n";
        let (dir, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (source, _) = FolderSource::open(dir.path(), "cluster.local", state.path()).unwrap();
        let (tx, mut rx) = mpsc::channel(16);
        let task = tokio::spawn(source.run(tx));
        tokio::time::sleep(Duration::from_millis(50)).await;
        std::fs::write(dir.path().join("a.yaml"), policy).unwrap();
        assert_eq!(next_names(&mut rx).await, ["+p"]);
        task.abort();
        std::fs::write(dir.path().join("a.yaml"), "kind: [").unwrap();
        let (source, first) = FolderSource::open(dir.path(), "cluster.local", state.path()).unwrap();
        assert_eq!(first.len(), 1);
        let status = source.status();
        let loud = status.read().findings.iter().any(|f| f.message.contains("stays in force"));
        assert!(loud, "{:?}", status.read().findings);
    }
}
