//! Kinds of workloads: jobs that end, init containers that need the network, probes of all kinds, headless Services,
//! names that stand for others.

use std::time::Duration;

use anyhow::{Result, bail, ensure};

use super::super::{Context, eventually};
use super::{PATIENCE, Workload, get, joined, pod, service, start};

pub(in super::super) async fn run(context: &Context<'_>) -> Result<()> {
    joined(context).await?;
    let both = [Workload::new("client"), Workload::new("server")];
    context.check("a client and a server get ready", start(context, &both, &service("server"))).await?;
    let _ = context.check("a job asks through its proxy and ends", job(context)).await;
    let _ = context.check("an init container has the network", init_container(context)).await;
    let _ = context.check("probes of all kinds reach the application under STRICT", probes(context)).await;
    let _ = context.check("pods of a StatefulSet are reached by their names", stateful_set(context)).await;
    let _ = context.check("a name that stands for another", external_name(context)).await;
    context.check("a large body goes through", large_body(context)).await
}

async fn job(context: &Context<'_>) -> Result<()> {
    context
        .apply(
            "
apiVersion: batch/v1
kind: Job
metadata: {name: once}
spec:
  backoffLimit: 0
  template:
    metadata: {labels: {app: once}}
    spec:
      restartPolicy: Never
      containers:
      - {name: app, image: 'localhost/mesh/probe:1', args: [get, -timeout, 20s, 'http://server/from-job']}
",
        )
        .await?;
    context.kubectl(&["wait", "--for=condition=complete", "job/once", "--timeout=90s"]).await?;
    let logs = context.kubectl(&["logs", "job/once", "-c", "app"]).await?;
    ensure!(logs.starts_with("200") && logs.contains("X-Forwarded-Client-Cert"), "{logs}");
    Ok(())
}

async fn init_container(context: &Context<'_>) -> Result<()> {
    context
        .apply(
            "
apiVersion: v1
kind: Pod
metadata: {name: prepared, labels: {app: prepared}}
spec:
  restartPolicy: Never
  initContainers:
  - {name: prepare, image: 'localhost/mesh/probe:1', args: [get, -timeout, 20s, 'http://server/from-init']}
  containers:
  - {name: app, image: 'localhost/mesh/probe:1', args: [serve]}
",
        )
        .await?;
    context.kubectl(&["wait", "--for=condition=ready", "pod/prepared", "--timeout=90s"]).await?;
    let logs = context.kubectl(&["logs", "prepared", "-c", "prepare"]).await?;
    ensure!(logs.starts_with("200") && logs.contains("X-Forwarded-Client-Cert"), "{logs}");
    Ok(())
}

/// A Deployment with probes of its own, as lines of a container.
fn probed(name: &str, probes: &[&str]) -> String {
    let probes = probes.join("\n        ");
    format!(
        "
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}}}
spec:
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      terminationGracePeriodSeconds: 2
      containers:
      - name: app
        image: localhost/mesh/probe:1
        args: [serve, -tcp, ':9000']
        ports: [{{name: web, containerPort: 8080}}, {{containerPort: 9000}}]
        {probes}
"
    )
}

async fn probes(context: &Context<'_>) -> Result<()> {
    let strict = "
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default}
spec: {mtls: {mode: STRICT}}
";
    let first = probed(
        "probed",
        &[
            "startupProbe: {httpGet: {path: /started, port: web}, periodSeconds: 1, failureThreshold: 60}",
            "readinessProbe: {tcpSocket: {port: 9000}, periodSeconds: 1}",
            "livenessProbe: {exec: {command: [probe, get, 'http://127.0.0.1:8080/alive']}, periodSeconds: 2}",
        ],
    );
    let second = probed(
        "asked",
        &[
            "startupProbe: {tcpSocket: {port: 9000}, periodSeconds: 1, failureThreshold: 60}",
            "readinessProbe: {grpc: {port: 8080, service: ready}, periodSeconds: 1}",
            "livenessProbe: {httpGet: {path: /alive, port: 8080, httpHeaders: [{name: a, value: b}]}}",
        ],
    );
    let unwell = probed("unwell", &["readinessProbe: {tcpSocket: {port: 9999}, periodSeconds: 1}"]);
    let deaf = probed("deaf", &["readinessProbe: {grpc: {port: 9000}, periodSeconds: 1}"]);
    context.apply(&format!("{strict}{first}{second}{unwell}{deaf}")).await?;
    for name in ["probed", "asked"] {
        context.rolled_out(name, PATIENCE).await?;
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    for name in ["probed", "asked"] {
        let pod = pod(context, &context.namespace, &format!("app={name}")).await?;
        let statuses = pod["status"]["containerStatuses"].as_array().cloned().unwrap_or_default();
        let restarts: i64 = statuses.iter().filter_map(|c| c["restartCount"].as_i64()).sum();
        ensure!(restarts == 0, "{restarts} restarts of {name}");
    }
    // A probe that must fail does: nothing listens there, or it is no gRPC, though the proxy would take the connection.
    for name in ["unwell", "deaf"] {
        let pod = pod(context, &context.namespace, &format!("app={name}")).await?;
        let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let ready = conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True");
        ensure!(!ready, "{name} is ready, and does not answer its probe");
    }
    context.kubectl(&["delete", "deployment", "unwell", "deaf"]).await.map(drop)
}

async fn stateful_set(context: &Context<'_>) -> Result<()> {
    context
        .apply(
            "
apiVersion: v1
kind: Service
metadata: {name: db}
spec:
  clusterIP: None
  selector: {app: db}
  ports: [{name: http, port: 8080}]
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  serviceName: db
  replicas: 2
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      terminationGracePeriodSeconds: 2
      containers:
      - name: app
        image: localhost/mesh/probe:1
        args: [serve]
        ports: [{containerPort: 8080}]
        readinessProbe: {httpGet: {path: /ready, port: 8080}, periodSeconds: 1}
",
        )
        .await?;
    context.kubectl(&["rollout", "status", "statefulset/db", "--timeout=90s"]).await?;
    for name in ["db-0", "db-1"] {
        eventually(Duration::from_secs(15), async || {
            let (status, body) = get(context, "client", &[&format!("http://{name}.db:8080/")]).await?;
            ensure!(status == 200 && body.contains(&format!("\"name\":\"{name}\"")), "{status} {body}");
            ensure!(body.contains("X-Forwarded-Client-Cert"), "not by mesh TLS: {body}");
            Ok(())
        })
        .await?;
    }
    Ok(())
}

async fn external_name(context: &Context<'_>) -> Result<()> {
    let target = format!("server.{}.svc.cluster.local", context.namespace);
    context
        .apply(&format!(
            "
apiVersion: v1
kind: Service
metadata: {{name: alias}}
spec: {{type: ExternalName, externalName: {target}, ports: [{{name: http, port: 80}}]}}
"
        ))
        .await?;
    eventually(Duration::from_secs(15), async || {
        let (status, body) = get(context, "client", &["http://alias/"]).await?;
        ensure!(status == 200 && body.contains("\"name\":\"server\""), "{status} {body}");
        Ok(())
    })
    .await
}

async fn large_body(context: &Context<'_>) -> Result<()> {
    // The server tells the headers that it saw, so a large one comes back as a large body.
    let header = format!("x-large: {}", "a".repeat(16 << 10));
    let (status, body) = get(context, "client", &["-header", &header, "http://server/"]).await?;
    if status != 200 || body.len() < 16 << 10 {
        bail!("{status}, {} bytes", body.len());
    }
    Ok(())
}
