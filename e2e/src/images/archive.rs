//! An image as a file: an OCI archive, made without a container engine and the same whenever its content is.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// What lies at one place of an image.
#[derive(Debug, Clone)]
enum Entry {
    Folder { mode: u32 },
    File { from: PathBuf, mode: u32 },
    Text { text: String },
    Link { to: String },
}

/// An image to be.
#[derive(Debug, Clone)]
pub struct Image {
    name: String,
    entrypoint: String,
    user: String,
    entries: BTreeMap<String, Entry>,
}

/// Folders that programs expect to be there, or that are mounted over.
const FOLDERS: [(&str, u32); 7] =
    [("dev", 0o755), ("etc", 0o755), ("proc", 0o555), ("run", 0o755), ("sys", 0o555), ("tmp", 0o1777), ("var", 0o755)];

/// PATH in it.
const SEARCHED: &str = "/usr/local/bin:/usr/sbin:/usr/bin";

impl Image {
    /// An empty one; its name with a tag, the path of what it runs, and as whom (`UID:GID`).
    pub fn new(name: &str, entrypoint: &str, user: &str) -> Self {
        let entries = FOLDERS.map(|(path, mode)| (path.to_owned(), Entry::Folder { mode })).into();
        Self { name: name.to_owned(), entrypoint: entrypoint.to_owned(), user: user.to_owned(), entries }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A program or library at an absolute path.
    pub fn file(&mut self, at: &str, from: &Path, mode: u32) {
        self.add(at, Entry::File { from: from.to_owned(), mode });
    }

    /// A text file that everybody may read.
    pub fn text(&mut self, at: &str, text: &str) {
        self.add(at, Entry::Text { text: text.to_owned() });
    }

    /// A symbolic link.
    pub fn link(&mut self, at: &str, to: &str) {
        self.add(at, Entry::Link { to: to.to_owned() });
    }

    fn add(&mut self, at: &str, entry: Entry) {
        let at = at.trim_start_matches('/');
        let mut above = Path::new(at).parent();
        while let Some(folder) = above.filter(|f| !f.as_os_str().is_empty()) {
            self.entries.entry(folder.display().to_string()).or_insert(Entry::Folder { mode: 0o755 });
            above = folder.parent();
        }
        self.entries.insert(at.to_owned(), entry);
    }

    /// What the archive depends on, cheap to tell: contents of files by their size and time.
    ///
    /// # Errors
    /// When a file is missing.
    pub fn fingerprint(&self) -> Result<String> {
        let mut all = format!("{self:?}\n");
        for entry in self.entries.values() {
            if let Entry::File { from, .. } = entry {
                let about = fs::metadata(from).with_context(|| format!("cannot read {}", from.display()))?;
                all += &format!("{} {} {:?}\n", from.display(), about.len(), about.modified()?);
            }
        }
        Ok(all)
    }

    /// Writes the archive.
    ///
    /// # Errors
    /// When a file cannot be read or the archive not written.
    pub fn write(&self, to: &Path) -> Result<()> {
        let layer = self.layer()?;
        let layer_digest = digest(&layer);
        let config = json!({
            "architecture": architecture()?,
            "os": "linux",
            "config": {
                "Entrypoint": [self.entrypoint],
                "Env": [format!("PATH={SEARCHED}")],
                "User": self.user,
                "WorkingDir": "/",
            },
            // A layer that is not compressed is its own content.
            "rootfs": { "type": "layers", "diff_ids": [layer_digest] },
        });
        let config = config.to_string().into_bytes();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": described("application/vnd.oci.image.config.v1+json", &config),
            "layers": [described("application/vnd.oci.image.layer.v1.tar", &layer)],
        });
        let manifest = manifest.to_string().into_bytes();
        let mut described = described("application/vnd.oci.image.manifest.v1+json", &manifest);
        described["platform"] = json!({ "architecture": architecture()?, "os": "linux" });
        described["annotations"] = json!({
            "io.containerd.image.name": self.name,
            "org.opencontainers.image.ref.name": self.name,
        });
        let index = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [described],
        });

        let mut tar = Tar::default();
        for folder in ["blobs", "blobs/sha256"] {
            tar.folder(folder, 0o755)?;
        }
        for blob in [&layer, &config, &manifest] {
            tar.file(&format!("blobs/{}", digest(blob).replace(':', "/")), blob, 0o644)?;
        }
        tar.file("index.json", index.to_string().as_bytes(), 0o644)?;
        tar.file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#, 0o644)?;
        let unfinished = to.with_extension("unfinished");
        fs::write(&unfinished, tar.finish()).with_context(|| format!("cannot write {}", unfinished.display()))?;
        fs::rename(&unfinished, to).with_context(|| format!("cannot write {}", to.display()))
    }

    fn layer(&self) -> Result<Vec<u8>> {
        let mut tar = Tar::default();
        for (at, entry) in &self.entries {
            match entry {
                Entry::Folder { mode } => tar.folder(at, *mode)?,
                Entry::Text { text } => tar.file(at, text.as_bytes(), 0o644)?,
                Entry::Link { to } => tar.link(at, to)?,
                Entry::File { from, mode } => {
                    let content = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
                    tar.file(at, &content, *mode)?;
                }
            }
        }
        Ok(tar.finish())
    }
}

/// Names of architectures are Go's.
fn architecture() -> Result<&'static str> {
    match std::env::consts::ARCH {
        "x86_64" => Ok("amd64"),
        "aarch64" => Ok("arm64"),
        other => bail!("images for {other} are not made"),
    }
}

fn described(kind: &str, blob: &[u8]) -> Value {
    json!({ "mediaType": kind, "digest": digest(blob), "size": blob.len() })
}

fn digest(bytes: &[u8]) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    let hex: String = digest.as_ref().iter().map(|b| format!("{b:02x}")).collect();
    format!("sha256:{hex}")
}

/// The old format of archives (ustar), which everything reads. Times and owners are zero, so equal content is equal.
#[derive(Debug, Default)]
struct Tar {
    bytes: Vec<u8>,
}

const BLOCK: usize = 512;

impl Tar {
    fn folder(&mut self, at: &str, mode: u32) -> Result<()> {
        self.header(&format!("{at}/"), b'5', mode, 0, "")
    }

    fn link(&mut self, at: &str, to: &str) -> Result<()> {
        self.header(at, b'2', 0o777, 0, to)
    }

    fn file(&mut self, at: &str, content: &[u8], mode: u32) -> Result<()> {
        self.header(at, b'0', mode, content.len(), "")?;
        self.bytes.extend_from_slice(content);
        self.bytes.resize(self.bytes.len().next_multiple_of(BLOCK), 0);
        Ok(())
    }

    fn header(&mut self, at: &str, kind: u8, mode: u32, size: usize, link: &str) -> Result<()> {
        if at.len() > 100 || link.len() > 100 {
            bail!("{at}: paths of more than 100 bytes do not fit into an image");
        }
        let mut block = Vec::with_capacity(BLOCK);
        let mut field = |bytes: &[u8], width: usize| {
            block.extend_from_slice(bytes);
            block.resize(block.len() + width.saturating_sub(bytes.len()), 0);
        };
        field(at.as_bytes(), 100);
        field(format!("{mode:07o}\0").as_bytes(), 8);
        field(b"0000000\0", 8);
        field(b"0000000\0", 8);
        field(format!("{size:011o}\0").as_bytes(), 12);
        field(b"00000000000\0", 12);
        field(b"        ", 8); // The checksum counts as blanks in itself.
        field(&[kind], 1);
        field(link.as_bytes(), 100);
        field(b"ustar\x0000", 8);
        field(b"", BLOCK - 265);
        let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
        if let Some(place) = block.get_mut(148..156) {
            place.copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
        self.bytes.extend_from_slice(&block);
        Ok(())
    }

    fn finish(mut self) -> Vec<u8> {
        self.bytes.resize(self.bytes.len() + 2 * BLOCK, 0);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::Image;

    #[test]
    fn the_archive_is_one_that_others_read_and_always_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let mut image = Image::new("localhost/mesh/test:1", "/bin/program", "1:1");
        image.text("/etc/deep/er/file", "text");
        image.link("/bin/other", "program");
        let (first, second) = (folder.path().join("a.tar"), folder.path().join("b.tar"));
        image.write(&first).unwrap();
        image.write(&second).unwrap();
        assert_eq!(std::fs::read(&first).unwrap(), std::fs::read(&second).unwrap());

        let unpacked = Command::new("tar").arg("-C").arg(folder.path()).arg("-xf").arg(&first).status().unwrap();
        assert!(unpacked.success());
        let index = std::fs::read_to_string(folder.path().join("index.json")).unwrap();
        let index: serde_json::Value = serde_json::from_str(&index).unwrap();
        let blob =
            |digest: &serde_json::Value| folder.path().join("blobs").join(digest.as_str().unwrap().replace(':', "/"));
        let manifest = std::fs::read(blob(&index["manifests"][0]["digest"])).unwrap();
        let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
        let layer = blob(&manifest["layers"][0]["digest"]);
        let list = Command::new("tar").arg("-tvf").arg(layer).output().unwrap();
        let list = String::from_utf8(list.stdout).unwrap();
        assert!(list.contains("etc/deep/er/file") && list.contains("bin/other -> program"), "{list}");
        assert!(list.contains("drwxrwxrwt"), "{list}");
    }
}
