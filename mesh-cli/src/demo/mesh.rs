//! The processes of the demo: started in order, watched, ended together.

use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use tokio::time::Instant;

use super::child::{Child, Role};
use super::plan::{ADMIN_PORT, APP_PORT, NAMESPACE, OUTBOUND_PORT, Plan, STATUS_PORT, SYSTEM, Workload};
use super::{http, manifests};

/// How long a process may take to become ready.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long processes may take to end.
const ENDING: Duration = Duration::from_secs(8);
/// Name of the control plane's process.
pub const CONTROL: &str = "control";
/// Name of the gateway's process.
pub const GATEWAY: &str = "gateway";

/// A mesh that runs, or will.
#[derive(Debug)]
pub struct Mesh {
    /// What runs where.
    pub plan: Plan,
    children: Vec<Child>,
}

/// Words of a command line.
fn words<const N: usize>(words: [&str; N]) -> Vec<OsString> {
    words.into_iter().map(OsString::from).collect()
}

impl Mesh {
    /// Nothing runs yet.
    pub fn new(plan: Plan) -> Self {
        Self { plan, children: Vec::new() }
    }

    /// Starts everything; done when the page answers.
    ///
    /// # Errors
    /// When a process does not start or does not become ready in time.
    pub async fn start(&mut self) -> anyhow::Result<()> {
        self.plan.remember().context("cannot write into the folder of the demo")?;
        manifests::write(&self.plan).context("cannot write the configuration")?;
        self.start_control().await?;
        for workload in self.plan.workloads.clone() {
            self.start_app(&workload)?;
            self.start_sidecar(&workload, &[])?;
        }
        self.start_gateway(GATEWAY, self.plan.gateway_ip, &[])?;
        for ip in self.proxies() {
            self.proxy_ready(ip).await?;
        }
        let page = format!("{}/journey", self.plan.page());
        // What an operator left in the folder may well make it answer something else.
        let any = self.plan.reused;
        let good = |status| status == 200 || any;
        self.until("the page to answer", async || http::get(&page).await.is_ok_and(|r| good(r.status))).await
    }

    /// Addresses of all proxies.
    pub fn proxies(&self) -> Vec<Ipv4Addr> {
        self.plan.workloads.iter().map(|w| w.ip).chain([self.plan.gateway_ip]).collect()
    }

    /// Starts the control plane and waits until it serves.
    async fn start_control(&mut self) -> anyhow::Result<()> {
        self.spawn_control()?;
        self.control_ready().await
    }

    /// Starts the control plane.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn_control(&mut self) -> anyhow::Result<()> {
        let (config, state) = (self.plan.config_dir(), self.plan.state_dir());
        let mut args = words(["--config-dir"]);
        args.extend([config.into(), "--state-dir".into(), state.into()]);
        args.extend(words(["--xds-addr", &self.plan.control_xds().to_string()]));
        args.extend(words(["--http-addr", &self.plan.control_http().to_string()]));
        self.add(Role::Control, CONTROL, args)
    }

    /// Waits until the control plane serves.
    ///
    /// # Errors
    /// When it does not become ready in time.
    pub async fn control_ready(&mut self) -> anyhow::Result<()> {
        let url = format!("http://{}/ready", self.plan.control_http());
        self.until("the control plane to be ready", async || http::get(&url).await.is_ok_and(|r| r.status == 200)).await
    }

    fn start_app(&mut self, workload: &Workload) -> anyhow::Result<()> {
        let listen = SocketAddr::from((workload.ip, APP_PORT)).to_string();
        let proxy = SocketAddr::from((workload.ip, OUTBOUND_PORT)).to_string();
        let mut args = words(["--name", workload.service, "--version", workload.version, "--listen", &listen]);
        if let Some(calls) = workload.calls {
            args.extend(words(["--calls", calls, "--proxy", &proxy]));
        }
        self.add(Role::App, &format!("{}-app", workload.name), args)
    }

    /// Starts the sidecar of a workload, with more flags.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_sidecar(&mut self, workload: &Workload, more: &[&str]) -> anyhow::Result<()> {
        let token = self.token(NAMESPACE, workload.service)?;
        let id = format!("{}.{NAMESPACE}", workload.name);
        let mut args = self.proxy_args("sidecar", &id, workload.ip, workload.service, token);
        args.extend(words(["--label", &format!("app={}", workload.service)]));
        args.extend(words(["--label", &format!("version={}", workload.version), "--interception-mode", "NONE"]));
        args.extend(more.iter().map(OsString::from));
        self.add(Role::Proxy, workload.name, args)
    }

    /// Starts a gateway, with more flags.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_gateway(&mut self, name: &str, ip: Ipv4Addr, more: &[&str]) -> anyhow::Result<()> {
        let token = self.token(SYSTEM, GATEWAY)?;
        let mut args = self.proxy_args("gateway", &format!("{name}.{SYSTEM}"), ip, GATEWAY, token);
        args.extend(words(["--label", "istio=ingressgateway", "--label", "app=istio-ingressgateway"]));
        args.extend(more.iter().map(OsString::from));
        self.add(Role::Proxy, name, args)
    }

    fn proxy_args(&self, mode: &str, id: &str, ip: Ipv4Addr, account: &str, token: PathBuf) -> Vec<OsString> {
        let control = self.plan.control_xds().to_string();
        let concurrency = self.plan.concurrency.to_string();
        let ip = ip.to_string();
        let mut args = words([mode, "--control", &control, "--id", id, "--ip", &ip, "--service-account", account]);
        args.extend(words(["--concurrency", &concurrency, "--root-cert"]));
        args.extend([self.plan.state_dir().join("root-cert.pem").into(), "--token".into(), token.into()]);
        args
    }

    /// A file with a token of a service account, made by the control plane's own issuer. One of an earlier run would end
    /// in the middle of this one.
    fn token(&self, namespace: &str, account: &str) -> anyhow::Result<PathBuf> {
        let (folder, name) = (self.plan.state_dir(), format!("token-{namespace}-{account}"));
        let token = mesh_control::workload_token(&folder, namespace, account)?;
        let path = folder.join(&name);
        manifests::write_file(&folder, &name, &token).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    fn add(&mut self, role: Role, name: &str, args: Vec<OsString>) -> anyhow::Result<()> {
        let child = Child::start(role, name, &args, &self.plan.logs_dir())?;
        self.children.retain(|c| c.name != name);
        self.children.push(child);
        Ok(())
    }

    /// A process by its name.
    ///
    /// # Errors
    /// When there is none.
    pub fn child(&mut self, name: &str) -> anyhow::Result<&mut Child> {
        self.children.iter_mut().find(|c| c.name == name).with_context(|| format!("there is no process {name}"))
    }

    /// Asks a process to end and waits for that.
    ///
    /// # Errors
    /// When there is none of this name.
    pub async fn end(&mut self, name: &str) -> anyhow::Result<()> {
        let child = self.child(name)?;
        child.terminate();
        child.ended(ENDING).await;
        Ok(())
    }

    /// A process that has ended does not count any more.
    pub fn forget(&mut self, name: &str) {
        self.children.retain(|c| c.name != name);
    }

    /// Processes that run.
    pub fn pids(&self) -> Vec<u32> {
        self.children.iter().filter_map(Child::pid).collect()
    }

    /// Waits until a proxy says that it is ready.
    ///
    /// # Errors
    /// When it does not become ready in time.
    pub async fn proxy_ready(&mut self, ip: Ipv4Addr) -> anyhow::Result<()> {
        let url = ready_url(ip);
        self.until(&format!("the proxy at {ip} to be ready"), async || {
            http::get(&url).await.is_ok_and(|r| r.status == 200)
        })
        .await
    }

    /// Tries until it holds.
    async fn until(&mut self, what: &str, holds: impl AsyncFn() -> bool) -> anyhow::Result<()> {
        let end = Instant::now() + PATIENCE;
        while !holds().await {
            if Instant::now() > end {
                anyhow::bail!("waited {PATIENCE:?} for {what}");
            }
            if let Some(dead) = self.dead() {
                anyhow::bail!("{dead} ended while waiting for {what}");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    fn dead(&self) -> Option<&str> {
        self.children.iter().find(|c| c.pid().is_none()).map(|c| c.name.as_str())
    }

    /// Waits until one of the processes ends; its name.
    pub async fn first_to_die(&mut self) -> String {
        let mut waits: Vec<_> =
            self.children.iter_mut().map(|c| Box::pin(async { (c.wait().await, &c.name).1 })).collect();
        if waits.is_empty() {
            return std::future::pending().await;
        }
        let name = std::future::poll_fn(|cx| {
            let done = waits.iter_mut().find_map(|w| match w.as_mut().poll(cx) {
                std::task::Poll::Ready(name) => Some(name),
                std::task::Poll::Pending => None,
            });
            done.map_or(std::task::Poll::Pending, std::task::Poll::Ready)
        });
        name.await.clone()
    }

    /// Where the logs are, and what processes that ended said last.
    pub fn last_words(&self) -> String {
        let mut text = String::new();
        for child in self.children.iter().filter(|c| c.pid().is_none()) {
            text.push_str(&format!("last lines of {}:\n{}\n", child.name, child.last_words(8)));
        }
        if self.plan.keeps_files() {
            text.push_str(&format!("logs: {}", self.plan.logs_dir().display()));
        }
        text
    }

    /// Ends all processes: proxies drain before the applications and the control plane go.
    pub async fn stop(&mut self) {
        let end = Instant::now() + ENDING;
        for proxies in [true, false] {
            let of_kind = |name: &str| proxies != (name.ends_with("-app") || name == CONTROL);
            for child in self.children.iter().filter(|c| of_kind(&c.name)) {
                child.terminate();
            }
            for child in self.children.iter_mut().filter(|c| of_kind(&c.name)) {
                child.ended(end.saturating_duration_since(Instant::now())).await;
            }
        }
        self.children.clear();
    }
}

/// Where a proxy tells whether it is ready.
pub fn ready_url(ip: Ipv4Addr) -> String {
    format!("http://{ip}:{STATUS_PORT}/healthz/ready")
}

/// Something of a proxy's admin server.
pub fn admin_url(ip: Ipv4Addr, path: &str) -> String {
    format!("http://{ip}:{ADMIN_PORT}{path}")
}
