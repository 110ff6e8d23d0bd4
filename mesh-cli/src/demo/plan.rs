//! What runs where: addresses, ports, folders. Plain data, decided once.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use anyhow::Context as _;

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
    root: PathBuf,
    /// Removed at the end.
    temporary: Option<tempfile::TempDir>,
}

impl Plan {
    /// Decides on addresses and makes the folders. `port` 0: a free one.
    ///
    /// # Errors
    /// When the port is taken or folders cannot be made.
    pub fn new(port: u16, dir: Option<&Path>, concurrency: usize) -> anyhow::Result<Self> {
        let port = free_port(port)?;
        let net = free_net()?;
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
            root,
            temporary,
        };
        for folder in [plan.config_dir(), plan.samples_dir(), plan.state_dir(), plan.logs_dir()] {
            std::fs::create_dir_all(&folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
        }
        Ok(plan)
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
        if TcpListener::bind((Ipv4Addr::new(127, net.0, net.1, 1), 15012)).is_ok() {
            return Ok(net);
        }
    }
    anyhow::bail!("no free loopback addresses: this needs Linux, where all of 127.0.0.0/8 is loopback")
}
