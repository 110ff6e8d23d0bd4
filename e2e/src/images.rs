//! Images for tests, made from the programs of this build: what `deploy/images` describes for container engines, without one.
//!
//! This owns what lies in each image. How a cluster comes to know them is the cluster's.

pub mod archive;
pub mod libraries;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use self::archive::Image;
use crate::cluster::programs::Programs;
use crate::cluster::target;

/// The control plane.
pub const CONTROL: &str = "localhost/mesh/control:dev";
/// The proxy, with what redirects traffic to it.
pub const PROXY: &str = "localhost/mesh/proxy:dev";
/// The applications of the demo: `meshctl app ...`.
pub const APPS: &str = "localhost/mesh/apps:dev";
/// Both ends of a check: `probe serve|get|send|lookup|cat`.
pub const PROBE: &str = "localhost/mesh/probe:1";
/// Stock Envoy, as its judges' package has it.
pub const ENVOY: &str = "localhost/mesh/envoy:stock";
/// Holds the namespaces of pods.
pub const PAUSE: &str = "localhost/mesh/pause:1";

/// Who the proxy is: its traffic is not redirected to itself.
const PROXY_USER: &str = "1337:1337";
/// Nobody in particular.
const NOBODY: &str = "65532:65532";

const USERS: &str =
    "root:x:0:0:root:/:/none\nistio-proxy:x:1337:1337:mesh proxy:/:/none\nnonroot:x:65532:65532::/:/none\n";
const GROUPS: &str = "root:x:0:\nistio-proxy:x:1337:\nnonroot:x:65532:\n";

/// An image that can be imported.
#[derive(Debug, Clone)]
pub struct Archive {
    /// Name with tag.
    pub name: String,
    /// The file.
    pub file: PathBuf,
}

/// Archives of both planes and the test images, made anew where programs have changed. `binaries` holds ours.
///
/// # Errors
/// When programs or what they need are missing.
pub fn all(binaries: &Path, programs: &Programs) -> Result<Vec<Archive>> {
    let mut probe = Image::new(PROBE, "/usr/local/bin/probe", NOBODY);
    program(&mut probe, &programs.own("probe"))?;
    [control(binaries)?, proxy(binaries)?, apps(binaries)?, probe].iter().map(archived).collect()
}

/// The archive of the image that every pod has.
///
/// # Errors
/// When it cannot be made.
pub fn pause(programs: &Programs) -> Result<PathBuf> {
    let mut image = Image::new(PAUSE, "/usr/local/bin/pause", "65535:65535");
    program(&mut image, &programs.own("pause"))?;
    archived(&image).map(|a| a.file)
}

/// The archive of stock Envoy, which few scenarios need. `python` has its package.
///
/// # Errors
/// When it cannot be made, or the package is not there.
pub fn envoy(python: &Path) -> Result<Archive> {
    let find = "import envoy_binary; print(envoy_binary.path())";
    let found = Command::new(python).args(["-B", "-c", find]).current_dir(crate::python::folder("behaviour")).output();
    let found = found.context("cannot run Python")?;
    if !found.status.success() {
        bail!("no Envoy: {}", String::from_utf8_lossy(&found.stderr).trim());
    }
    let path = String::from_utf8(found.stdout).context("the path of Envoy")?;
    let mut image = Image::new(ENVOY, "/usr/local/bin/envoy", PROXY_USER);
    base(&mut image);
    program(&mut image, &stripped(Path::new(path.trim()))?)?;
    archived(&image)
}

fn control(binaries: &Path) -> Result<Image> {
    let mut image = Image::new(CONTROL, "/usr/local/bin/mesh-control", NOBODY);
    base(&mut image);
    program(&mut image, &stripped(&binaries.join("mesh-control"))?)?;
    Ok(image)
}

fn apps(binaries: &Path) -> Result<Image> {
    let mut image = Image::new(APPS, "/usr/local/bin/meshctl", NOBODY);
    base(&mut image);
    program(&mut image, &stripped(&binaries.join("meshctl"))?)?;
    Ok(image)
}

fn proxy(binaries: &Path) -> Result<Image> {
    let mut image = Image::new(PROXY, "/usr/local/bin/mesh-proxy", PROXY_USER);
    base(&mut image);
    program(&mut image, &stripped(&binaries.join("mesh-proxy"))?)?;
    system_program(&mut image, "nft", "nftables")?;
    // For kernels whose nft knows no redirection. That of the same kernel interface as nft would help with nothing.
    const LEGACY: &str = "xtables-legacy-multi";
    system_program(&mut image, LEGACY, "iptables")?;
    for family in ["iptables", "ip6tables"] {
        for what in ["", "-save", "-restore"] {
            image.link(&format!("/usr/sbin/{family}{what}"), LEGACY);
        }
    }
    let extensions = extensions()?;
    for entry in fs::read_dir(&extensions).with_context(|| format!("cannot read {}", extensions.display()))? {
        let path = entry?.path();
        // Those of ARP and bridges are not asked for.
        if path.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.starts_with("libxt_") || n.starts_with("libip"))
        {
            image.file(&path.display().to_string(), &path, 0o644);
            with_libraries(&mut image, &path)?;
        }
    }
    Ok(image)
}

/// Where iptables looks for its extensions.
fn extensions() -> Result<PathBuf> {
    let places = [format!("/usr/lib/{}-linux-gnu/xtables", std::env::consts::ARCH), "/usr/lib/xtables".to_owned()];
    let found = places.iter().map(PathBuf::from).find(|p| p.is_dir());
    found.with_context(|| format!("{} is not there: install iptables", places.join(" or ")))
}

/// What every program of ours expects: names of users, how names are looked up, and whom the world trusts.
fn base(image: &mut Image) {
    image.text("/etc/passwd", USERS);
    image.text("/etc/group", GROUPS);
    image.text("/etc/nsswitch.conf", "hosts: files dns\n");
    const ROOTS: &str = "/etc/ssl/certs/ca-certificates.crt";
    if Path::new(ROOTS).exists() {
        image.file(ROOTS, Path::new(ROOTS), 0o644);
    }
}

/// A program in `/usr/local/bin`, with its libraries.
fn program(image: &mut Image, from: &Path) -> Result<()> {
    let name = from.file_name().and_then(|n| n.to_str()).context("a program without a name")?;
    image.file(&format!("/usr/local/bin/{name}"), from, 0o755);
    with_libraries(image, from)
}

fn system_program(image: &mut Image, name: &str, package: &str) -> Result<()> {
    let places = ["/usr/sbin", "/sbin", "/usr/bin"].map(|folder| Path::new(folder).join(name));
    let Some(from) = places.iter().find(|p| p.exists()) else {
        bail!("{name} is missing: install {package}");
    };
    image.file(&format!("/usr/sbin/{name}"), from, 0o755);
    with_libraries(image, from)
}

fn with_libraries(image: &mut Image, program: &Path) -> Result<()> {
    for library in libraries::of(program)? {
        image.file(&library.display().to_string(), &library, 0o755);
    }
    Ok(())
}

/// A program without what only debuggers read, which is most of it: less to pack, to import and to keep in memory.
fn stripped(program: &Path) -> Result<PathBuf> {
    let folder = target()?.join("images/programs");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let to = folder.join(program.file_name().context("a program without a name")?);
    let about = fs::metadata(program).with_context(|| format!("{} is missing: build it", program.display()))?;
    let stamp = format!("{} {} {:?}", program.display(), about.len(), about.modified()?);
    let stamped = to.with_extension("stamp");
    if to.exists() && fs::read_to_string(&stamped).is_ok_and(|found| found == stamp) {
        return Ok(to);
    }
    let done = Command::new("strip").arg("--strip-debug").arg("-o").arg(&to).arg(program).status();
    if !done.context("cannot run strip: install binutils")?.success() {
        bail!("strip does not take {}", program.display());
    }
    fs::write(&stamped, stamp).with_context(|| format!("cannot write {}", stamped.display()))?;
    Ok(to)
}

fn archived(image: &Image) -> Result<Archive> {
    let folder = target()?.join("images");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let short = image.name().rsplit('/').next().and_then(|n| n.split(':').next()).unwrap_or_default();
    let (file, stamp) = (folder.join(format!("{short}.tar")), folder.join(format!("{short}.stamp")));
    let wanted = image.fingerprint()?;
    if !(file.exists() && fs::read_to_string(&stamp).is_ok_and(|found| found == wanted)) {
        image.write(&file)?;
        fs::write(&stamp, wanted).with_context(|| format!("cannot write {}", stamp.display()))?;
    }
    Ok(Archive { name: image.name().to_owned(), file })
}
