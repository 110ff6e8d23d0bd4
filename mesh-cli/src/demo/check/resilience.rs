//! What a sidecar does about copies and about backends that fail, hang or are gone. The backends are outside the mesh:
//! small servers of this process, declared by ServiceEntries and called through webapp's sidecar.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ::http::StatusCode;
use anyhow::Context as _;
use axum::Router;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::{SLACK, Verdict, within};
use crate::demo::http;
use crate::demo::manifests::write_file;
use crate::demo::mesh::Mesh;
use crate::demo::plan::{NAMESPACE, OUTBOUND_PORT};

/// What the file is called while a check runs.
const FILE: &str = "resilience.yaml";
/// How long a backend that hangs takes; no check waits for it.
const HANG: Duration = Duration::from_secs(30);

/// How a backend answers.
#[derive(Debug, Clone, Copy)]
enum Manner {
    Good,
    /// 503 to every third request.
    EveryThirdFails,
    Hangs,
}

/// A server that counts what reaches it; it ends when this is dropped.
#[derive(Debug)]
struct Backend {
    address: SocketAddr,
    calls: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Backend {
    async fn start(ip: Ipv4Addr, manner: Manner) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((ip, 0)).await?;
        let address = listener.local_addr()?;
        let calls = Arc::new(AtomicU64::new(0));
        let counter = calls.clone();
        let router = Router::new().fallback(async move || {
            let nth = counter.fetch_add(1, Ordering::Relaxed) + 1;
            match manner {
                Manner::EveryThirdFails if nth.is_multiple_of(3) => StatusCode::SERVICE_UNAVAILABLE,
                Manner::Hangs => {
                    tokio::time::sleep(HANG).await;
                    StatusCode::OK
                }
                _ => StatusCode::OK,
            }
        });
        let task = tokio::spawn(async move {
            let _ = axum::serve(listener, router).await;
        });
        Ok(Self { address, calls, task })
    }

    fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What the mesh is told for one check, taken back when this is dropped.
struct Declared<'m> {
    mesh: &'m Mesh,
}

impl<'m> Declared<'m> {
    fn new(mesh: &'m Mesh, manifests: &[String]) -> anyhow::Result<Self> {
        let declared = Self { mesh };
        declared.replace(manifests)?;
        Ok(declared)
    }

    /// From now on this.
    fn replace(&self, manifests: &[String]) -> anyhow::Result<()> {
        Ok(write_file(&self.mesh.plan.config_dir(), FILE, &manifests.join("---\n"))?)
    }

    /// One request of webapp's application to a host.
    async fn call(&self, host: &str, path: &str) -> anyhow::Result<http::Answer> {
        let webapp = self.mesh.plan.workload("webapp").context("no webapp")?;
        let url = format!("http://{}:{OUTBOUND_PORT}{path}", webapp.ip);
        http::send(::http::Request::get(url).header("host", host)).await
    }

    /// Waits until the sidecar knows a host.
    async fn known(&self, host: &str) -> anyhow::Result<()> {
        within(SLACK * Duration::from_secs(2), "the route", async || {
            let answer = self.call(host, "/known").await?;
            anyhow::ensure!(answer.status == 200, "{host} answers {}", answer.status);
            Ok(())
        })
        .await
        .map(|_| ())
    }

    /// The last line of webapp's access log that has both words, once it is there.
    async fn log_line(&self, words: [&str; 2]) -> anyhow::Result<String> {
        let path = self.mesh.plan.logs_dir().join("webapp.log");
        let mut line = String::new();
        within(SLACK * Duration::from_secs(3), "the line in the access log", async || {
            let text = tokio::fs::read_to_string(&path).await?;
            line = text.lines().rfind(|l| words.iter().all(|w| l.contains(w))).context("no such line")?.to_owned();
            Ok(())
        })
        .await?;
        Ok(line)
    }
}

impl Drop for Declared<'_> {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(self.mesh.plan.config_dir().join(FILE));
    }
}

fn service(host: &str, endpoints: &[SocketAddr]) -> String {
    let mut text = format!(
        "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: {host}, namespace: {NAMESPACE}}}
spec:
  hosts: [{host}]
  location: MESH_EXTERNAL
  resolution: STATIC
  ports: [{{number: 80, name: http, protocol: HTTP}}]
  endpoints:
"
    );
    for endpoint in endpoints {
        text.push_str(&format!("  - {{address: {}, ports: {{http: {}}}}}\n", endpoint.ip(), endpoint.port()));
    }
    text
}

/// A VirtualService of one route; `more` are further fields of it.
fn route(host: &str, more: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: {host}, namespace: {NAMESPACE}}}
spec:
  hosts: [{host}]
  http:
  - route: [{{destination: {{host: {host}}}}}]
    {more}
"
    )
}

fn own_ip(mesh: &Mesh) -> Ipv4Addr {
    let [a, b, c, _] = mesh.plan.gateway_ip.octets();
    Ipv4Addr::new(a, b, c, 210)
}

/// Copies go to a backend that never answers in time, and nobody waits for it.
pub async fn mirror(mesh: &Mesh) -> Verdict {
    const REQUESTS: u64 = 50;
    let main = Backend::start(own_ip(mesh), Manner::Good).await?;
    let shadow = Backend::start(own_ip(mesh), Manner::Hangs).await?;
    let declared = Declared::new(
        mesh,
        &[
            service("main.test", &[main.address]),
            service("shadow.test", &[shadow.address]),
            route("main.test", "mirror: {host: shadow.test}"),
        ],
    )?;
    declared.known("main.test").await?;
    // The route may have been there before its mirror.
    within(SLACK * Duration::from_secs(2), "the first copy", async || {
        declared.call("main.test", "/first").await?;
        anyhow::ensure!(shadow.calls() > 0, "no copy came");
        Ok(())
    })
    .await?;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let before = shadow.calls();
    let mut slowest = Duration::ZERO;
    for _ in 0..REQUESTS {
        let start = Instant::now();
        let answer = declared.call("main.test", "/mirrored").await?;
        slowest = slowest.max(start.elapsed());
        anyhow::ensure!(answer.status == 200, "{} instead of 200", answer.status);
    }
    within(SLACK * Duration::from_secs(2), "the copies", async || {
        let copies = shadow.calls() - before;
        anyhow::ensure!(copies == REQUESTS, "{copies} copies of {REQUESTS} requests");
        Ok(())
    })
    .await?;
    anyhow::ensure!(slowest < HANG / 10, "an answer took {slowest:.1?}");
    Ok(format!("{REQUESTS} copies, slowest answer {slowest:.1?}"))
}

/// `retryOn: 5xx` against a backend that answers 503 to every third call.
pub async fn retries(mesh: &Mesh) -> Verdict {
    const REQUESTS: u64 = 300;
    let flaky = Backend::start(own_ip(mesh), Manner::EveryThirdFails).await?;
    let declared = Declared::new(
        mesh,
        &[service("flaky.test", &[flaky.address]), route("flaky.test", "retries: {attempts: 2, retryOn: 5xx}")],
    )?;
    declared.known("flaky.test").await?;
    within(SLACK * Duration::from_secs(2), "the retry policy", async || {
        for _ in 0..6 {
            let status = declared.call("flaky.test", "/").await?.status;
            anyhow::ensure!(status == 200, "answered {status}");
        }
        Ok(())
    })
    .await?;
    let before = flaky.calls();
    for _ in 0..REQUESTS {
        let status = declared.call("flaky.test", "/").await?.status;
        anyhow::ensure!(status == 200, "a request was answered {status}");
    }
    let calls = flaky.calls() - before;
    anyhow::ensure!(calls > REQUESTS, "{calls} calls for {REQUESTS} requests: nothing failed, nothing was proven");
    Ok(format!("{REQUESTS} requests, {calls} calls, no failure"))
}

/// The timeout of the route ends what hangs.
pub async fn hangs(mesh: &Mesh) -> Verdict {
    let hanging = Backend::start(own_ip(mesh), Manner::Hangs).await?;
    let declared =
        Declared::new(mesh, &[service("slow.test", &[hanging.address]), route("slow.test", "timeout: 0.5s")])?;
    let mut took = Duration::ZERO;
    within(SLACK * Duration::from_secs(2), "the timeout", async || {
        let start = Instant::now();
        let answer = declared.call("slow.test", "/hangs-here").await?;
        took = start.elapsed();
        anyhow::ensure!(answer.status == 504, "{} instead of 504: {}", answer.status, answer.text());
        Ok(())
    })
    .await?;
    let timely = Duration::from_millis(450)..Duration::from_millis(500) + SLACK * Duration::from_millis(500);
    anyhow::ensure!(timely.contains(&took), "it took {took:.1?}");
    let line = declared.log_line(["/hangs-here", "\" 504 "]).await?;
    anyhow::ensure!(line.contains(" 504 UT "), "the access log does not say 504 UT: {line}");
    Ok(format!("504 UT after {took:.1?}"))
}

/// One of two endpoints is gone; after a few failures nobody is sent there.
pub async fn dead_endpoint(mesh: &Mesh) -> Verdict {
    let good = Backend::start(own_ip(mesh), Manner::Good).await?;
    // Bound and never accepted from would be a hanging endpoint; a port that was free a moment ago refuses.
    let gone = TcpListener::bind((own_ip(mesh), 0)).await?.local_addr()?;
    let rule = format!(
        "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: half, namespace: {NAMESPACE}}}
spec:
  host: half.test
  trafficPolicy:
    outlierDetection: {{consecutive5xxErrors: 3, interval: 1s, baseEjectionTime: 60s, maxEjectionPercent: 100}}
"
    );
    let manifests = |endpoints: &[SocketAddr]| {
        [service("half.test", endpoints), rule.clone(), route("half.test", "retries: {attempts: 0}")]
    };
    // First without it, so that every failure that is counted is its own.
    let declared = Declared::new(mesh, &manifests(&[good.address]))?;
    declared.known("half.test").await?;
    declared.replace(&manifests(&[good.address, gone]))?;
    let mut failures = 0u32;
    let mut in_a_row = 0u32;
    within(SLACK * Duration::from_secs(10), "100 answers in a row", async || {
        let status = declared.call("half.test", "/").await?.status;
        if status == 200 {
            in_a_row += 1;
        } else {
            failures += 1;
            in_a_row = 0;
        }
        anyhow::ensure!(failures > 0, "the dead endpoint was never tried: nothing was proven");
        anyhow::ensure!(in_a_row >= 100, "{in_a_row} good answers since the last of {failures} failures");
        Ok(())
    })
    .await?;
    Ok(format!("after {failures} failures, 100 answers in a row"))
}
