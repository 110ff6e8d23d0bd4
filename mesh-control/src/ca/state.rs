//! The state folder: files that are either whole or not there, and private where they hold keys.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use anyhow::Context;

/// Mode of files that hold keys.
pub(crate) const PRIVATE: u32 = 0o600;
/// Mode of files for everybody.
pub(crate) const PUBLIC: u32 = 0o644;

/// Largest file that is read.
const MAX: u64 = 1 << 20;

/// Makes the folder when it is missing.
pub(crate) fn ensure(dir: &Path) -> anyhow::Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .with_context(|| format!("state folder {} cannot be made", dir.display()))
}

/// Reads a file; `None`: there is none.
pub(crate) fn read(path: &Path) -> anyhow::Result<Option<String>> {
    let found = match fs::metadata(path) {
        Ok(found) => found,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e).with_context(|| path.display().to_string()),
    };
    anyhow::ensure!(found.len() <= MAX, "{}: {} bytes, {MAX} are allowed", path.display(), found.len());
    fs::read_to_string(path).map(Some).with_context(|| path.display().to_string())
}

/// As [`read`], for a file with a key: what others may read is closed to them, with a warning.
pub(crate) fn read_private(path: &Path) -> anyhow::Result<Option<String>> {
    if let Ok(found) = fs::metadata(path)
        && found.permissions().mode() & 0o077 != 0
    {
        tracing::warn!("{} could be read by others; it holds a key, so its mode becomes 0600", path.display());
        fs::set_permissions(path, fs::Permissions::from_mode(PRIVATE)).with_context(|| path.display().to_string())?;
    }
    read(path)
}

/// Replaces a file in one step.
pub(crate) fn replace(path: &Path, content: &str, mode: u32) -> anyhow::Result<()> {
    let temporary = write_beside(path, content, mode)?;
    let renamed = fs::rename(&temporary, path);
    if renamed.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    renamed.and_then(|()| sync_parent(path)).with_context(|| format!("{} cannot be written", path.display()))
}

/// Makes a file in one step unless there is one already (another process may be at it, too). Whether it was made.
pub(crate) fn create(path: &Path, content: &str, mode: u32) -> anyhow::Result<bool> {
    let temporary = write_beside(path, content, mode)?;
    let linked = fs::hard_link(&temporary, path);
    let _ = fs::remove_file(&temporary);
    match linked {
        Ok(()) => {
            sync_parent(path).with_context(|| path.display().to_string())?;
            Ok(true)
        }
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(e) => Err(e).with_context(|| format!("{} cannot be written", path.display())),
    }
}

fn write_beside(path: &Path, content: &str, mode: u32) -> anyhow::Result<PathBuf> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let temporary = path.with_file_name(format!(".{name}.{}.{number}.tmp", std::process::id()));
    let write = || -> io::Result<()> {
        // Left over by a process of the same id that was killed.
        let _ = fs::remove_file(&temporary);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        file.write_all(content.as_bytes())?;
        file.sync_all()
    };
    write().with_context(|| format!("{} cannot be written", temporary.display()))?;
    Ok(temporary)
}

fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) if parent != Path::new("") => File::open(parent)?.sync_all(),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_whole_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sub/key");
        ensure(path.parent().unwrap()).unwrap();
        assert_eq!(read(&path).unwrap(), None);
        assert!(create(&path, "one", PRIVATE).unwrap());
        assert!(!create(&path, "two", PRIVATE).unwrap(), "the first stays");
        assert_eq!(read(&path).unwrap().as_deref(), Some("one"));
        replace(&path, "three", PRIVATE).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(read_private(&path).unwrap().as_deref(), Some("three"));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing is left behind");
    }
}
