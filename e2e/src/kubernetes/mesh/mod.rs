//! The mesh on a cluster: installed once a run by `meshctl install`, then scenarios with traffic.
//!
//! Owns the installation and what scenarios of the mesh share: workloads of the probe, who asks whom. What must hold is
//! the scenarios'.

pub(super) mod bookstore;
mod certificates;
pub(super) mod commands;
pub(super) mod control_plane;
pub(super) mod envoy_sidecar;
pub(super) mod faults;
pub(super) mod gateway_api;
pub(super) mod gateways;
pub(super) mod protocols;
pub(super) mod rollout;
pub(super) mod traffic;
pub(super) mod wire;
pub(super) mod workloads;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;
use serde_json::Value;
use tokio::process::Command;

use super::{Context, eventually};

/// Namespace of the control plane.
pub(super) const ROOT: &str = "istio-system";
/// How long pods may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(90);
/// How long a change may take to reach all proxies.
pub(super) const REACHES: Duration = Duration::from_secs(10);

/// What is said of the installation: everything there is, with access logs.
const SETTINGS: &[&str] = &["--set", "profile=demo", "--set", "hub=localhost/mesh", "--set", "tag=dev"];

/// Runs `meshctl` on the cluster; what it printed.
pub(super) async fn meshctl(context: &Context<'_>, args: &[&str]) -> Result<String> {
    let done = meshctl_ends(context, args).await?;
    let (out, err) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    ensure!(done.status.success(), "meshctl {}: {}\n{out}{err}", args.join(" "), done.status);
    Ok(format!("{out}{err}"))
}

/// Runs `meshctl` on the cluster to its end, whatever that is.
async fn meshctl_ends(context: &Context<'_>, args: &[&str]) -> Result<std::process::Output> {
    let program = crate::python::binaries()?.join("meshctl");
    let mut command = Command::new(program);
    command.args(args).arg("--kubeconfig").arg(context.cluster().kubeconfig());
    // What this machine says of other meshes is not meant.
    command.env_remove("MESHCTL_CONTROL").env_remove("MESHCTL_TOKEN");
    command.stdin(std::process::Stdio::null()).output().await.context("meshctl")
}

/// Installs the mesh; one that is there changes nothing.
pub(super) async fn install(context: &Context<'_>) -> Result<String> {
    let args = [&["install", "-y", "--readiness-timeout", "90s"], SETTINGS].concat();
    let done = meshctl(context, &args).await;
    match done {
        Ok(said) => Ok(said),
        Err(error) => {
            let pods = context.cluster().kubectl(&["-n", ROOT, "get", "pods", "-o", "wide"]).await.unwrap_or_default();
            let logs = context.cluster().kubectl(&["-n", ROOT, "logs", "deployment/istiod", "--tail=30"]).await;
            Err(error.context(format!("{pods}\n{}", logs.unwrap_or_else(|e| e.to_string()))))
        }
    }
}

/// The mesh is there, and pods of the scenario's namespace are injected.
pub(super) async fn joined(context: &Context<'_>) -> Result<()> {
    context.mesh(Box::pin(install(context))).await?;
    let namespace = context.namespace.as_str();
    context.cluster().kubectl(&["label", "namespace", namespace, "istio-injection=enabled"]).await?;
    Ok(())
}

/// A Deployment of the probe, with its own service account.
#[derive(Debug, Clone, Copy)]
pub(super) struct Workload<'a> {
    pub(super) name: &'a str,
    /// `app` label: whose Service it is of.
    pub(super) app: &'a str,
    pub(super) version: &'a str,
    pub(super) replicas: u32,
    /// Annotations and labels of its pods, as YAML of their maps.
    pub(super) annotations: &'a str,
    pub(super) labels: &'a str,
    /// More words of the server, as YAML of their list.
    pub(super) words: &'a str,
    /// Where it listens for HTTP.
    pub(super) port: u16,
    /// Secret whose files lie in `/tls`, if any.
    pub(super) secret: Option<&'a str>,
}

impl<'a> Workload<'a> {
    pub(super) const fn new(name: &'a str) -> Self {
        let (version, annotations, labels, words) = ("v1", "", "", "");
        Self { name, app: name, version, replicas: 1, annotations, labels, words, port: 8080, secret: None }
    }

    /// One that is not injected.
    pub(super) const fn plain(name: &'a str) -> Self {
        Self { labels: ", sidecar.istio.io/inject: 'false'", ..Self::new(name) }
    }

    /// Account and Deployment.
    pub(super) fn manifest(&self) -> String {
        let Self { name, app, version, replicas, annotations, labels, words, port, secret } = *self;
        let (mounts, volumes) = match secret {
            Some(secret) => (
                "[{name: tls, mountPath: /tls, readOnly: true}]".to_owned(),
                format!("[{{name: tls, secret: {{secretName: {secret}}}}}]"),
            ),
            None => ("[]".to_owned(), "[]".to_owned()),
        };
        format!(
            "
apiVersion: v1
kind: ServiceAccount
metadata: {{name: {name}}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: {app}, version: {version}}}}}
  strategy: {{rollingUpdate: {{maxUnavailable: 0, maxSurge: 1}}}}
  template:
    metadata:
      annotations: {{{annotations}}}
      labels: {{app: {app}, version: {version}{labels}}}
    spec:
      serviceAccountName: {name}
      terminationGracePeriodSeconds: 10
      containers:
      - name: app
        image: localhost/mesh/probe:1
        args: [serve, -name, {name}, -listen, ':{port}', -tcp, ':9000'{words}]
        ports: [{{containerPort: {port}}}, {{containerPort: 9000}}]
        readinessProbe: {{httpGet: {{path: /ready, port: {port}}}, periodSeconds: 1}}
        # A program that ends at once, before anybody can know, loses requests with or without a mesh.
        lifecycle: {{preStop: {{sleep: {{seconds: 2}}}}}}
        securityContext:
          readOnlyRootFilesystem: true
          runAsNonRoot: true
          allowPrivilegeEscalation: false
          capabilities: {{drop: [ALL]}}
        volumeMounts: {mounts}
      volumes: {volumes}
---
"
        )
    }
}

/// Applies workloads and what is to be there with them; all are ready then.
pub(super) async fn start(context: &Context<'_>, workloads: &[Workload<'_>], beside: &str) -> Result<()> {
    let manifests: String = workloads.iter().map(Workload::manifest).collect();
    context.apply(&format!("{manifests}{beside}")).await?;
    for workload in workloads {
        context.rolled_out(workload.name, PATIENCE).await?;
    }
    Ok(())
}

/// A Service for HTTP on 80 and server-first TCP on 9000.
pub(super) fn service(app: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Service
metadata: {{name: {app}}}
spec:
  selector: {{app: {app}}}
  ports: [{{name: http, port: 80, targetPort: 8080}}, {{name: tcp, port: 9000}}]
---
"
    )
}

/// Runs the probe in a workload; what it printed.
pub(super) async fn probe(context: &Context<'_>, from: &str, args: &[&str]) -> Result<String> {
    let pod = format!("deployment/{from}");
    context.kubectl(&[&["exec", &pod, "-c", "app", "--", "probe"], args].concat()).await
}

/// Status and body of a GET from a workload.
pub(super) async fn get(context: &Context<'_>, from: &str, args: &[&str]) -> Result<(u16, String)> {
    let answer = probe(context, from, &[&["get", "-timeout", "5s"], args].concat()).await?;
    let (status, body) = answer.trim().split_once(' ').unwrap_or((answer.trim(), ""));
    Ok((status.parse().with_context(|| format!("no status in {answer:?}"))?, body.to_owned()))
}

/// What a server saw of a GET that it answered with 200.
pub(super) async fn seen(context: &Context<'_>, from: &str, args: &[&str]) -> Result<Value> {
    let (status, body) = get(context, from, args).await?;
    ensure!(status == 200, "{status} {body}");
    serde_json::from_str(&body).with_context(|| format!("not of a probe: {body}"))
}

/// Waits until a GET is answered with a status; the body.
pub(super) async fn answers(context: &Context<'_>, from: &str, args: &[&str], wanted: u16) -> Result<String> {
    eventually(REACHES, async || {
        let (status, body) = get(context, from, args).await?;
        ensure!(status == wanted, "{status} {body}");
        Ok(body)
    })
    .await
}

/// The only pod with a label, in a namespace.
pub(super) async fn pod(context: &Context<'_>, namespace: &str, label: &str) -> Result<Value> {
    let pods = context.cluster().json(&["-n", namespace, "get", "pods", "-l", label]).await?;
    let all = pods["items"].as_array().map(Vec::as_slice).unwrap_or_default();
    // One that is on its way out is of the past.
    let mut there = all.iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
    let pod = there.next().with_context(|| format!("no pod {label} in {namespace}"))?;
    ensure!(there.next().is_none(), "several pods {label} in {namespace}");
    Ok(pod.clone())
}

/// Address of the only pod with a label.
pub(super) async fn address(context: &Context<'_>, namespace: &str, label: &str) -> Result<String> {
    let pod = pod(context, namespace, label).await?;
    pod["status"]["podIP"].as_str().map(str::to_owned).with_context(|| format!("the pod {label} has no address"))
}

/// What came of a load.
#[derive(Debug, Deserialize)]
pub(super) struct Tally {
    pub(super) sent: u32,
    pub(super) failed: u32,
    pub(super) by: BTreeMap<String, u32>,
    #[serde(default)]
    pub(super) errors: BTreeMap<String, u32>,
}

impl Tally {
    /// # Errors
    /// When a request failed.
    pub(super) fn none_failed(&self) -> Result<()> {
        ensure!(self.failed == 0, "{} of {} requests failed: {:?}", self.failed, self.sent, self.errors);
        ensure!(self.sent > 0, "no request was sent");
        Ok(())
    }

    /// The share of a server, in percent.
    pub(super) fn share(&self, name: &str) -> f64 {
        let own = self.by.get(name).copied().unwrap_or_default();
        100.0 * f64::from(own) / f64::from(self.sent.max(1))
    }
}

/// Asks at a steady rate from a workload.
pub(super) async fn load(context: &Context<'_>, from: &str, args: &[&str]) -> Result<Tally> {
    let text = probe(context, from, &[&["load"], args].concat()).await?;
    serde_json::from_str(text.trim()).with_context(|| format!("no tally in {text:?}"))
}

/// Asks at a steady rate from a workload while something happens.
pub(super) async fn load_while(
    context: &Context<'_>,
    from: &str,
    args: &[&str],
    happens: impl Future<Output = Result<()>>,
) -> Result<Tally> {
    let (tally, happened) = tokio::join!(load(context, from, args), happens);
    happened?;
    tally
}

/// The same by a Job, which goes on when `exec` would not: that leads through the API server.
pub(super) async fn by_job(
    context: &Context<'_>,
    name: &str,
    duration: &str,
    url: &str,
    happens: impl Future<Output = Result<()>>,
) -> Result<Tally> {
    let manifest = format!(
        "
apiVersion: batch/v1
kind: Job
metadata: {{name: {name}}}
spec:
  backoffLimit: 0
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      restartPolicy: Never
      containers:
      - {{name: app, image: 'localhost/mesh/probe:1', args: [load, -rate, '25', -duration, {duration}, '{url}']}}
"
    );
    context.apply(&manifest).await?;
    let (pods, job) = (format!("app={name}"), format!("job/{name}"));
    context.kubectl(&["wait", "--for=condition=ready", "pod", "-l", &pods, "--timeout=90s"]).await?;
    happens.await?;
    context.kubectl(&["wait", "--for=condition=complete", &job, "--timeout=90s"]).await?;
    let said = context.kubectl(&["logs", &job, "-c", "app"]).await?;
    serde_json::from_str(said.trim()).with_context(|| format!("no tally in {said:?}"))
}

/// Kills the API server; it is back then.
pub(super) async fn restart_api_server(context: &Context<'_>) -> Result<()> {
    let kill = "for p in /proc/[0-9]*; do [ \"$(cat $p/comm)\" != kube-apiserver ] || kill -9 ${p#/proc/}; done";
    context.cluster().node_exec(&["sh", "-c", kill]).await?;
    eventually(PATIENCE, async || context.cluster().kubectl(&["get", "--raw", "/readyz"]).await).await?;
    // That it was started again is told once, and was meant.
    let _ = context.cluster().health();
    Ok(())
}
