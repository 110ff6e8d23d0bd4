//! The images: both planes start in pods as they are meant to be locked up, and the demo's applications find each other.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::reach::get;
use super::{Context, eventually};

/// One pod as injection makes them: redirection first, with what that needs, then everything locked up.
const PLANES: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: planes}
spec:
  restartPolicy: Never
  initContainers:
  - name: redirect
    image: localhost/mesh/proxy:dev
    args: [capture, apply, --run-validation]
    securityContext:
      runAsUser: 0
      runAsGroup: 0
      readOnlyRootFilesystem: true
      allowPrivilegeEscalation: false
      capabilities: {add: [NET_ADMIN, NET_RAW], drop: [ALL]}
    volumeMounts: [{name: run, mountPath: /run}]
  containers:
  - name: proxy
    image: localhost/mesh/proxy:dev
    args: [--version]
    securityContext: &locked
      runAsNonRoot: true
      readOnlyRootFilesystem: true
      allowPrivilegeEscalation: false
      capabilities: {drop: [ALL]}
  - name: control
    image: localhost/mesh/control:dev
    args: [--version]
    securityContext: *locked
  volumes: [{name: run, emptyDir: {}}]
"#;

/// The same with the older program.
const LEGACY: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: legacy}
spec:
  restartPolicy: Never
  containers:
  - name: redirect
    image: localhost/mesh/proxy:dev
    args: [capture, apply, --backend, iptables, --run-validation]
    securityContext: {readOnlyRootFilesystem: true, runAsUser: 0, capabilities: {add: [NET_ADMIN, NET_RAW], drop: [ALL]}}
    volumeMounts: [{name: run, mountPath: /run}]
  volumes: [{name: run, emptyDir: {}}]
"#;

pub(super) async fn run(context: &Context<'_>) -> Result<()> {
    let _ = context.check("both planes start, and redirection is set and holds", planes(context)).await;
    let _ = context.check("redirection is set and holds by iptables too", legacy(context)).await;
    context.check("the demo's applications call each other", applications(context)).await
}

async fn ended(context: &Context<'_>, pod: &str) -> Result<()> {
    let name = format!("pod/{pod}");
    // A pod that has failed will not do better.
    let over = "jsonpath={.status.phase}";
    let phase = eventually(Duration::from_secs(60), async || {
        let phase = context.kubectl(&["get", &name, "-o", over]).await?;
        ensure!(phase == "Succeeded" || phase == "Failed", "{pod} is {phase}");
        Ok(phase)
    });
    if phase.await? == "Failed" {
        let logs = context.kubectl(&["logs", pod, "--all-containers", "--prefix"]).await;
        anyhow::bail!("{pod} has failed: {}", logs.unwrap_or_else(|e| e.to_string()));
    }
    Ok(())
}

async fn planes(context: &Context<'_>) -> Result<()> {
    context.apply(PLANES).await?;
    ended(context, "planes").await?;
    for container in ["proxy", "control"] {
        let said = context.kubectl(&["logs", "planes", "-c", container]).await?;
        ensure!(said.contains(env!("CARGO_PKG_VERSION")), "{container} says {said:?}");
    }
    Ok(())
}

async fn legacy(context: &Context<'_>) -> Result<()> {
    context.apply(LEGACY).await?;
    ended(context, "legacy").await
}

/// A Deployment and its Service.
fn application(name: &str, calls: Option<&str>) -> String {
    let calls = calls.map(|c| format!(", --calls, {c}")).unwrap_or_default();
    format!(
        "
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}}}
spec:
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}, version: v1}}}}
    spec:
      terminationGracePeriodSeconds: 2
      containers:
      - name: app
        image: localhost/mesh/apps:dev
        args: [app, --name, {name}, --version, v1, --listen, '0.0.0.0:8080'{calls}]
        readinessProbe: {{httpGet: {{path: /, port: 8080}}, periodSeconds: 1}}
        securityContext: {{readOnlyRootFilesystem: true, runAsNonRoot: true, capabilities: {{drop: [ALL]}}}}
---
apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec:
  selector: {{app: {name}}}
  ports: [{{name: http, port: 80, targetPort: 8080}}]
---
"
    )
}

async fn applications(context: &Context<'_>) -> Result<()> {
    let apps = [("webapp", Some("catalog")), ("catalog", None)];
    context.apply(&apps.map(|(name, calls)| application(name, calls)).concat()).await?;
    for (name, _) in apps {
        context.rolled_out(name, Duration::from_secs(60)).await?;
    }
    if !context.is_near() {
        return Ok(());
    }
    let service = context.json(&["get", "service", "webapp"]).await?;
    let address = service["spec"]["clusterIP"].as_str().context("the Service has no address")?;
    // kube-proxy hears of ready pods after we do.
    eventually(Duration::from_secs(10), async || {
        let (status, body) = get(&format!("{address}:80"), "/journey").await?;
        let journey: Value = serde_json::from_str(&body).with_context(|| format!("{status} {body}"))?;
        ensure!(status == 200 && journey["next"]["service"] == "catalog", "{status} {journey}");
        Ok(())
    })
    .await
}
