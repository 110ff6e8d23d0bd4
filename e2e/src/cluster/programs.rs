//! The programs of a local cluster: built from the Go modules of `e2e/kubernetes`, once for each content of those.
//!
//! Each module has a folder of results named by a hash over its files and how it is built; a folder that is there is
//! complete. Folders of other contents stay: a cluster that still runs uses them.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use rustix::fs::FlockOperation;

use super::kubectl::on_path;
use super::{Progress, system, target};
use crate::python::{folder, patiently};

/// Version of Kubernetes, as its module has it.
const KUBERNETES: &str = "1.36.3";
const CONTAINERD: &str = "2.4.2";
const RUNC: &str = "1.5.2";

/// Folders with everything that a node runs.
#[derive(Debug, Clone)]
pub struct Programs {
    kube: PathBuf,
    nodetools: PathBuf,
    dns: PathBuf,
    node: PathBuf,
}

impl Programs {
    /// A part of Kubernetes, or `kubectl`.
    pub fn kube(&self, part: &str) -> PathBuf {
        self.kube.join(part)
    }

    /// containerd, its shim, `ctr` or runc.
    pub fn nodetool(&self, name: &str) -> PathBuf {
        self.nodetools.join(name)
    }

    /// The folder of CNI plugins.
    pub fn cni(&self) -> PathBuf {
        self.nodetools.join("cni")
    }

    /// CoreDNS.
    pub fn coredns(&self) -> PathBuf {
        self.dns.join("coredns")
    }

    /// A program of our own: `node`, `pause` or `probe`.
    pub fn own(&self, name: &str) -> PathBuf {
        self.node.join(name)
    }

    /// PATH of everything on a node.
    pub fn path(&self) -> String {
        let own = [&self.kube, &self.nodetools, &self.dns].map(|p| p.display().to_string()).join(":");
        format!("{own}:/usr/sbin:/usr/bin:/sbin:/bin")
    }
}

/// One run of `go build`.
struct Step {
    /// Under the module's folder of results, with a slash at its end if it is a folder.
    output: &'static str,
    cgo: bool,
    tags: &'static str,
    linker: String,
    packages: &'static [&'static str],
}

struct Module {
    name: &'static str,
    steps: Vec<Step>,
    /// Names under which one program is another.
    links: &'static [&'static str],
    /// It needs no module of others, so a failure is a mistake of ours and not of a registry.
    alone: bool,
}

fn kube() -> Module {
    let mut linker = "-s -w".to_owned();
    let mut parts = KUBERNETES.split('.');
    let (major, minor) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let zeros = "0".repeat(40);
    // Without them every part says that it is v0.0.0-master, and clients refuse to talk to that.
    for (name, value) in [
        ("gitVersion", format!("v{KUBERNETES}").as_str()),
        ("gitMajor", major),
        ("gitMinor", minor),
        ("gitTreeState", "clean"),
        ("gitCommit", &zeros),
        ("buildDate", "2026-01-01T00:00:00Z"),
    ] {
        let _ = write!(linker, " -X k8s.io/component-base/version.{name}={value}");
    }
    let links =
        &["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl"];
    let steps = vec![Step { output: "kube", cgo: false, tags: "", linker, packages: &["."] }];
    Module { name: "kube", steps, links, alone: false }
}

fn nodetools() -> Module {
    let containerd = Step {
        output: "",
        cgo: false,
        tags: "no_btrfs no_devmapper no_zfs no_tracing no_aufs",
        linker: format!("-s -w -X github.com/containerd/containerd/v2/version.Version=v{CONTAINERD}"),
        packages: &[
            "github.com/containerd/containerd/v2/cmd/containerd",
            "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
            "github.com/containerd/containerd/v2/cmd/ctr",
        ],
    };
    let plugins = Step {
        output: "cni/",
        cgo: false,
        tags: "",
        linker: "-s -w".to_owned(),
        packages: &[
            "github.com/containernetworking/plugins/plugins/main/ptp",
            "github.com/containernetworking/plugins/plugins/main/loopback",
            "github.com/containernetworking/plugins/plugins/ipam/host-local",
            "github.com/containernetworking/plugins/plugins/meta/portmap",
        ],
    };
    let runc = Step {
        output: "runc",
        cgo: true,
        // containerd gives every sandbox a seccomp profile; a runc without seccomp refuses all of them.
        tags: "seccomp netgo osusergo",
        linker: format!("-s -w -X main.version={RUNC} -linkmode external -extldflags -static"),
        packages: &["github.com/opencontainers/runc"],
    };
    Module { name: "nodetools", steps: vec![containerd, plugins, runc], links: &[], alone: false }
}

fn plain(name: &'static str, output: &'static str, packages: &'static [&'static str], alone: bool) -> Module {
    let steps = vec![Step { output, cgo: false, tags: "", linker: "-s -w".to_owned(), packages }];
    Module { name, steps, links: &[], alone }
}

/// Builds what is not built yet.
///
/// # Errors
/// When Go is missing, modules cannot be had or something does not build.
pub async fn build(progress: Progress) -> Result<Programs> {
    let build = move || -> Result<Programs> {
        let _lock = lock(progress)?;
        Ok(Programs {
            kube: module(&kube(), progress)?,
            nodetools: module(&nodetools(), progress)?,
            dns: module(&plain("dns", "coredns", &["."], false), progress)?,
            node: module(&plain("node", "", &["./cmd/..."], true), progress)?,
        })
    };
    tokio::task::spawn_blocking(build).await.context("the build broke off")?
}

/// The folder with the definitions of Gateway API's standard channel, out of its module.
///
/// # Errors
/// When Go is missing or the module cannot be had.
pub async fn gateway_api(progress: Progress) -> Result<PathBuf> {
    const MODULE: &str = "sigs.k8s.io/gateway-api";
    let fetch = move || -> Result<PathBuf> {
        if on_path("go").is_none() {
            bail!("go is not installed: the definitions of Gateway API come with its module; install Go 1.26 or later");
        }
        let go = |words: &[&str]| -> Result<String> {
            let mut command = Command::new("go");
            command.args(words).current_dir(folder("kubernetes").join("gatewayapi")).env("GOWORK", "off");
            let done = command.stdin(Stdio::null()).output().context("cannot run go")?;
            if !done.status.success() {
                bail!("go {}: {}", words.join(" "), String::from_utf8_lossy(&done.stderr).trim());
            }
            Ok(String::from_utf8_lossy(&done.stdout).trim().to_owned())
        };
        progress.step("brings the definitions of Gateway API");
        patiently("go mod download", || go(&["mod", "download", MODULE]))?;
        let module = go(&["list", "-mod=readonly", "-m", "-f", "{{.Dir}}", MODULE])?;
        Ok(PathBuf::from(module).join("config/crd/standard"))
    };
    tokio::task::spawn_blocking(fetch).await.context("the download broke off")?
}

/// The `kubectl` on the PATH, or one that is built.
pub(super) async fn some_kubectl(progress: Progress) -> Result<PathBuf> {
    if let Some(found) = on_path("kubectl") {
        return Ok(found);
    }
    let build = move || -> Result<PathBuf> {
        let _lock = lock(progress)?;
        Ok(module(&kube(), progress)?.join("kubectl"))
    };
    tokio::task::spawn_blocking(build).await.context("the build broke off")?
}

/// Two builds at once would do everything twice.
fn lock(progress: Progress) -> Result<File> {
    let folder = target()?.join("kubernetes");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let path = folder.join("lock");
    let file = File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
    if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        progress.say("waits for another build of the cluster's programs");
        rustix::fs::flock(&file, FlockOperation::LockExclusive).context("cannot lock the build")?;
    }
    Ok(file)
}

/// The folder of a module's results.
fn module(module: &Module, progress: Progress) -> Result<PathBuf> {
    let source = folder("kubernetes").join(module.name);
    let results = target()?.join("kubernetes");
    let done = results.join(format!("{}-{}", module.name, content(module, &source)?));
    if done.is_dir() {
        return Ok(done);
    }
    if on_path("go").is_none() {
        bail!("go is not installed: the programs of a local cluster are built with it; install Go 1.26 or later");
    }
    let cgo = module.steps.iter().any(|s| s.cgo);
    if cgo {
        system::ensure(system::BUILDING, true, progress)?;
    }
    progress.say(&format!("builds {} (the first time takes minutes)", module.name));
    let unfinished = results.join(format!("{}-unfinished", module.name));
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished).with_context(|| format!("cannot remove {}", unfinished.display()))?;
    }
    fs::create_dir_all(&unfinished).with_context(|| format!("cannot make {}", unfinished.display()))?;
    for step in &module.steps {
        if module.alone {
            go(step, &source, &unfinished)?;
        } else {
            patiently("go build", || go(step, &source, &unfinished))?;
        }
    }
    for link in module.links {
        std::os::unix::fs::symlink("kube", unfinished.join(link)).with_context(|| format!("cannot link {link}"))?;
    }
    fs::rename(&unfinished, &done).with_context(|| format!("cannot make {}", done.display()))?;
    Ok(done)
}

fn go(step: &Step, source: &Path, results: &Path) -> Result<()> {
    let mut output = results.join(step.output).into_os_string();
    if step.output.is_empty() {
        output.push("/");
    }
    if step.output.ends_with('/') {
        fs::create_dir_all(&output).context("cannot make a folder for programs")?;
    }
    // Minutes of both cores: whatever else runs comes first.
    let mut command = Command::new("nice");
    command.args(["go", "build", "-mod=readonly", "-trimpath", "-buildvcs=false", "-tags", step.tags]);
    command.args(["-ldflags", &step.linker, "-o"]).arg(output).args(step.packages);
    command.current_dir(source).env("CGO_ENABLED", if step.cgo { "1" } else { "0" }).env("GOWORK", "off");
    let built = command.stdin(Stdio::null()).output().context("cannot run go")?;
    if !built.status.success() {
        bail!("{} in {}: {}", step.packages.join(" "), source.display(), String::from_utf8_lossy(&built.stderr).trim());
    }
    Ok(())
}

/// A hash over what the results depend on.
fn content(module: &Module, source: &Path) -> Result<String> {
    let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
    let mut add = |bytes: &[u8]| {
        context.update(&(bytes.len() as u64).to_le_bytes());
        context.update(bytes);
    };
    for step in &module.steps {
        for text in [step.output, step.tags, &step.linker, &step.packages.join(" ")] {
            add(text.as_bytes());
        }
    }
    add(module.links.join(" ").as_bytes());
    for file in files(source)? {
        add(file.strip_prefix(source).unwrap_or(&file).as_os_str().as_encoded_bytes());
        add(&fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?);
    }
    Ok(context.finish().as_ref().iter().take(8).fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    }))
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(files(&path)?);
        } else {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}
