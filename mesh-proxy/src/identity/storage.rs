//! Key, certificate and roots in the state folder, under the names that Istio's agent uses, so that a restarted process
//! serves at once.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
};

const KEY: &str = "key.pem";
const CHAIN: &str = "cert-chain.pem";
const ROOTS: &str = "root-cert.pem";
/// Largest file that is read.
const MAX: u64 = 1 << 20;

/// Key, chain and roots, PEM.
pub(super) struct Kept {
    pub(super) key: String,
    pub(super) chain: String,
    pub(super) roots: String,
}

/// What is kept; `None`: nothing, or not all of it. Whether the parts fit is seen when they are used.
pub(super) fn load(dir: &Path) -> Option<Kept> {
    let read = |name: &str| {
        let path = dir.join(name);
        if fs::metadata(&path).ok()?.len() > MAX {
            return None;
        }
        fs::read_to_string(path).ok()
    };
    Some(Kept { key: read(KEY)?, chain: read(CHAIN)?, roots: read(ROOTS)? })
}

/// Keeps them, each file in one step, for this user only.
pub(super) fn save(dir: &Path, kept: &Kept) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    for (name, text) in [(ROOTS, &kept.roots), (KEY, &kept.key), (CHAIN, &kept.chain)] {
        let temporary = dir.join(format!(".{name}.tmp"));
        // A file left over could have another mode.
        match fs::remove_file(&temporary) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, dir.join(name))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn kept_for_this_user_only() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("identity");
        assert!(load(&dir).is_none());
        let kept = |n: &str| Kept { key: format!("k{n}"), chain: format!("c{n}"), roots: format!("r{n}") };
        save(&dir, &kept("1")).unwrap();
        save(&dir, &kept("2")).unwrap();
        let found = load(&dir).unwrap();
        assert_eq!((found.key.as_str(), found.chain.as_str(), found.roots.as_str()), ("k2", "c2", "r2"));
        let files: Vec<_> = fs::read_dir(&dir).unwrap().map(|f| f.unwrap()).collect();
        assert_eq!(files.len(), 3);
        assert!(files.iter().all(|f| f.metadata().unwrap().permissions().mode() & 0o777 == 0o600));
        fs::remove_file(dir.join(CHAIN)).unwrap();
        assert!(load(&dir).is_none());
    }
}
