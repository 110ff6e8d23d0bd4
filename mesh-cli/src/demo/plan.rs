//! What runs where: addresses, ports, folders. Plain data, decided once.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use mesh_control::source::folder;
use serde::{Deserialize, Serialize};

/// Namespace of the applications.
pub const NAMESPACE: &str = "shop";
/// Namespace of control plane and gateway.
pub const SYSTEM: &str = "istio-system";
/// Port on which a sidecar takes requests of others.
pub const INBOUND_PORT: u16 = 8080;
/// Port on which a sidecar takes requests of its application, as an HTTP proxy.
pub const OUTBOUND_PORT: u16 = 15002;
/// Port of the applications themselves.
pub const APP_PORT: u16 = 3000;
/// Port on which proxies tell whether they are ready.
pub const STATUS_PORT: u16 = 15021;
/// Admin port of proxies.
pub const ADMIN_PORT: u16 = 15000;

/// One application with its sidecar.
#[derive(Debug, Clone)]
pub struct Workload {
    /// Process and WorkloadEntry, e.g. `catalog-v1`.
    pub name: &'static str,
    /// Service and service account.
    pub service: &'static str,
    /// Value of the label `version`.
    pub version: &'static str,
    /// Service that it calls.
    pub calls: Option<&'static str>,
    /// Address of the sidecar and, on another port, of the application.
    pub ip: Ipv4Addr,
}

/// Everything that is decided before the first process starts.
#[derive(Debug)]
pub struct Plan {
    /// Worker threads a proxy.
    pub concurrency: usize,
    /// Address of the control plane.
    pub control_ip: Ipv4Addr,
    /// Address of the gateway's admin and status ports.
    pub gateway_ip: Ipv4Addr,
    /// Applications.
    pub workloads: Vec<Workload>,
    /// Port of the page.
    pub port: u16,
    /// The folder holds the configuration of an earlier run, made for these very addresses.
    pub reused: bool,
    net: (u8, u8),
    root: PathBuf,
    /// Removed at the end.
    temporary: Option<tempfile::TempDir>,
}

impl Plan {
    /// Decides on addresses and makes the folders. `port` 0: a free one. In a folder that an earlier run has used, what
    /// it decided holds, because the configuration there names it.
    ///
    /// # Errors
    /// When the port is taken, folders cannot be made, or the folder has a configuration of somebody else.
    pub fn new(port: u16, dir: Option<&Path>, concurrency: usize) -> anyhow::Result<Self> {
        let earlier = match dir {
            Some(dir) => Earlier::find(dir, port)?,
            None => None,
        };
        let (port, net) = match earlier {
            Some(earlier) => (free_port(earlier.port)?, earlier.net),
            None => (free_port(port)?, free_net()?),
        };
        let ip = |last| Ipv4Addr::new(127, net.0, net.1, last);
        let (root, temporary) = match dir {
            Some(dir) => {
                std::fs::create_dir_all(dir).with_context(|| format!("cannot make the folder {}", dir.display()))?;
                (dir.canonicalize()?, None)
            }
            None => {
                let temporary = tempfile::Builder::new().prefix("meshctl-demo-").tempdir()?;
                (temporary.path().to_owned(), Some(temporary))
            }
        };
        let workload = |name, service, version, calls, last| Workload { name, service, version, calls, ip: ip(last) };
        let plan = Self {
            concurrency,
            control_ip: ip(1),
            gateway_ip: ip(2),
            workloads: vec![
                workload("webapp", "webapp", "v1", Some("catalog"), 3),
                workload("catalog-v1", "catalog", "v1", Some("forum"), 4),
                workload("catalog-v2", "catalog", "v2", Some("forum"), 5),
                workload("forum", "forum", "v1", None, 6),
            ],
            port,
            reused: earlier.is_some(),
            net,
            root,
            temporary,
        };
        for folder in [plan.config_dir(), plan.samples_dir(), plan.state_dir(), plan.logs_dir()] {
            std::fs::create_dir_all(&folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
        }
        Ok(plan)
    }

    /// Leaves word for later runs in the same folder.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn remember(&self) -> anyhow::Result<()> {
        let earlier = Earlier { port: self.port, net: self.net };
        std::fs::write(self.state_dir().join(EARLIER), serde_json::to_vec(&earlier)?)?;
        Ok(())
    }

    /// URL of the page.
    pub fn page(&self) -> String {
        format!("http://localhost:{}", self.port)
    }
    /// What the operator declares.
    pub fn config_dir(&self) -> PathBuf {
        self.root.join("config")
    }
    /// What to copy into the configuration.
    pub fn samples_dir(&self) -> PathBuf {
        self.root.join("samples")
    }
    /// Root key, token key.
    pub fn state_dir(&self) -> PathBuf {
        self.root.join("state")
    }
    /// Output of the processes.
    pub fn logs_dir(&self) -> PathBuf {
        self.root.join("logs")
    }
    /// Where everything lies.
    pub fn root(&self) -> &Path {
        &self.root
    }
    /// xDS and CA over TLS.
    pub fn control_xds(&self) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(self.control_ip), 15012)
    }
    /// Monitoring and debug.
    pub fn control_http(&self) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(self.control_ip), 15014)
    }
    /// A workload by its name.
    pub fn workload(&self, name: &str) -> Option<&Workload> {
        self.workloads.iter().find(|w| w.name == name)
    }
    /// The files are kept at the end.
    pub fn keeps_files(&self) -> bool {
        self.temporary.is_none()
    }
}

/// What an earlier run in the same folder decided.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Earlier {
    port: u16,
    net: (u8, u8),
}

/// File in the state folder that says so.
const EARLIER: &str = "demo.json";

impl Earlier {
    /// `None`: nobody has used the folder.
    fn find(dir: &Path, port: u16) -> anyhow::Result<Option<Self>> {
        let mut manifests = BTreeSet::new();
        folder::manifests_below(&dir.join("config"), &mut manifests);
        if manifests.is_empty() {
            return Ok(None);
        }
        let file = dir.join("state").join(EARLIER);
        let text = std::fs::read(&file).with_context(|| {
            format!("{} holds manifests that no demo has written; name another folder", dir.join("config").display())
        })?;
        let Self { port: made_for, net } =
            serde_json::from_slice(&text).with_context(|| format!("{} cannot be used", file.display()))?;
        anyhow::ensure!(
            port == 0 || port == made_for,
            "the configuration in {} is for port {made_for}: start with --port {made_for}, or name another folder",
            dir.display()
        );
        anyhow::ensure!(
            is_free(net),
            "the addresses 127.{}.{}.* of the configuration in {} are taken: does another demo run in this folder?",
            net.0,
            net.1,
            dir.display()
        );
        Ok(Some(Self { port: made_for, net }))
    }
}

fn free_port(port: u16) -> anyhow::Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).with_context(|| {
        format!("port {port} on localhost cannot be used; choose another one with --port, or end what uses it")
    })?;
    Ok(listener.local_addr()?.port())
}

/// A network of 254 loopback addresses that no other demo uses: the second and third octet.
fn free_net() -> anyhow::Result<(u8, u8)> {
    let pid = std::process::id();
    for attempt in 0..64 {
        let n = pid.wrapping_add(attempt * 7919);
        let octet = |v: u32, from: u32, count: u32| u8::try_from(from + v % count).unwrap_or(1);
        let net = (octet(n, 64, 128), octet(n / 128, 1, 253));
        if is_free(net) {
            return Ok(net);
        }
    }
    anyhow::bail!("no free loopback addresses: this needs Linux, where all of 127.0.0.0/8 is loopback")
}

fn is_free(net: (u8, u8)) -> bool {
    TcpListener::bind((Ipv4Addr::new(127, net.0, net.1, 1), 15012)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_used_again_with_what_it_was_made_for() {
        let dir = tempfile::tempdir().unwrap();
        let first = Plan::new(0, Some(dir.path()), 1).unwrap();
        assert!(!first.reused);
        let config = first.config_dir();
        std::fs::write(config.join("mine.yaml"), "kind: Service").unwrap();
        let foreign = Plan::new(0, Some(dir.path()), 1).unwrap_err();
        assert!(format!("{foreign:#}").contains("no demo has written"), "{foreign:#}");
        first.remember().unwrap();
        let second = Plan::new(0, Some(dir.path()), 1).unwrap();
        assert!(second.reused);
        assert_eq!((second.port, second.control_ip), (first.port, first.control_ip));
        let other = if first.port == 8080 { 8081 } else { 8080 };
        let refused = Plan::new(other, Some(dir.path()), 1).unwrap_err();
        assert!(refused.to_string().contains(&format!("--port {}", first.port)), "{refused}");
    }

    #[test]
    fn what_an_operator_has_edited_stays() {
        let dir = tempfile::tempdir().unwrap();
        let first = Plan::new(0, Some(dir.path()), 1).unwrap();
        crate::demo::manifests::write(&first).unwrap();
        first.remember().unwrap();
        let file = first.config_dir().join("catalog-route.yaml");
        std::fs::write(&file, "# mine").unwrap();
        crate::demo::manifests::write(&Plan::new(0, Some(dir.path()), 1).unwrap()).unwrap();
        assert_eq!(std::fs::read_to_string(file).unwrap(), "# mine");
    }
}
