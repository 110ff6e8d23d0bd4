//! The cluster itself: what every scenario takes for granted holds.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};

use super::reach::get;
use super::{Context, eventually};

const PODS: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 2
      containers:
      - name: web
        image: localhost/mesh/probe:1
        args: [serve, -tcp, ':9000']
        ports: [{containerPort: 8080}, {containerPort: 9000}]
        readinessProbe: {httpGet: {path: /ready, port: 8080}, periodSeconds: 1}
        securityContext: {readOnlyRootFilesystem: true, runAsNonRoot: true, allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
        volumeMounts: [{name: settings, mountPath: /settings}]
      volumes: [{name: settings, configMap: {name: settings}}]
---
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {greeting: hello}
---
apiVersion: v1
kind: Pod
metadata: {name: client}
spec:
  terminationGracePeriodSeconds: 2
  containers:
  - name: client
    image: localhost/mesh/probe:1
    args: [serve]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: 8080}, {name: tcp, port: 9000}]
---
apiVersion: v1
kind: Service
metadata: {name: each}
spec:
  clusterIP: None
  selector: {app: web}
  ports: [{name: http, port: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: outside}
spec:
  type: LoadBalancer
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: 8080}]
"#;

pub(super) async fn run(context: &Context<'_>) -> Result<()> {
    // Nothing else can hold without pods.
    context.check("a Deployment of two pods gets ready", pods(context)).await?;
    let _ = context.check("a Service from a pod, both pods answer", service_from_pod(context)).await;
    let _ = context.check("TCP through a Service", tcp(context)).await;
    let _ = context.check("DNS: short, full and headless names", dns(context)).await;
    if context.is_near() {
        let _ = context.check("a Service and a node port from this machine", service_from_here(context)).await;
    }
    let balancer = async {
        balancer(context).await?;
        balancer_is_freed(context).await
    };
    if context.is_near() {
        let _ = context
            .check("a load balancer's address, from this machine and from a pod; freed and given anew", balancer)
            .await;
    }
    let _ = context.check("exec and a mounted ConfigMap", exec(context)).await;
    let _ = context.check("logs", logs(context)).await;
    let _ = context.check("port-forward to a Service", port_forward(context)).await;
    let _ = context.check("TokenReview tells whose a token is", token_review(context)).await;
    if context.is_near() {
        let _ = context.check("a pod reaches this machine, and its node has no way further", way_out(context)).await;
        let _ = context.check("a command on the node", node(context)).await;
    }
    Ok(())
}

async fn pods(context: &Context<'_>) -> Result<()> {
    context.apply(PODS).await?;
    context.rolled_out("web", Duration::from_secs(90)).await?;
    context.kubectl(&["wait", "--for=condition=Ready", "pod/client", "--timeout=60s"]).await.map(drop)
}

/// What the client pod gets.
async fn from_client(context: &Context<'_>, words: &[&str]) -> Result<String> {
    context.kubectl(&[&["exec", "client", "--", "/usr/local/bin/probe"], words].concat()).await
}

/// The body of an answer of `probe serve`.
fn seen(body: &str) -> Result<Value> {
    serde_json::from_str(body).with_context(|| format!("not what the server tells: {body:?}"))
}

async fn service_from_pod(context: &Context<'_>) -> Result<()> {
    // kube-proxy hears of ready pods after we do.
    eventually(Duration::from_secs(10), async || {
        let answers = from_client(context, &["get", "-count", "30", "http://web/path"]).await?;
        let mut names = BTreeSet::new();
        for line in answers.lines() {
            let body = seen(line.strip_prefix("200 ").with_context(|| format!("answered {line}"))?)?;
            ensure!(body["host"] == "web" && body["path"] == "/path", "told {body}");
            names.insert(body["name"].to_string());
        }
        ensure!(names.len() == 2, "answered: {names:?}");
        Ok(())
    })
    .await
}

async fn tcp(context: &Context<'_>) -> Result<()> {
    let answer = from_client(context, &["send", "web:9000", "a line"]).await?;
    ensure!(answer.starts_with("web-") && answer.trim_end().ends_with("a line"), "came back: {answer:?}");
    Ok(())
}

async fn dns(context: &Context<'_>) -> Result<()> {
    let service = context.json(&["get", "service", "web"]).await?;
    let address = service["spec"]["clusterIP"].as_str().context("the Service has no address")?;
    let full = format!("web.{}.svc.cluster.local", context.namespace);
    for name in ["web", &full] {
        let found = from_client(context, &["lookup", name]).await?;
        ensure!(found.trim() == address, "{name} is {found}, not {address}");
    }
    let each = from_client(context, &["lookup", "each"]).await?;
    ensure!(each.lines().count() == 2, "the headless name has {each}");
    ensure!(
        from_client(context, &["lookup", "nothing.invalid"]).await.is_err(),
        "a name that is not there has an address"
    );
    Ok(())
}

async fn service_from_here(context: &Context<'_>) -> Result<()> {
    let service = context.json(&["get", "service", "outside"]).await?;
    let node = context.json(&["get", "nodes"]).await?;
    let node = node["items"][0]["status"]["addresses"][0]["address"].as_str().context("the node has no address")?;
    let address = service["spec"]["clusterIP"].as_str().context("the Service has no address")?;
    let port = &service["spec"]["ports"][0]["nodePort"];
    for place in [format!("{address}:80"), format!("{node}:{port}")] {
        let (status, body) = get(&place, "/here").await?;
        ensure!(status == 200 && seen(&body)?["path"] == "/here", "{place}: {status} {body}");
    }
    Ok(())
}

async fn balancer_address(context: &Context<'_>) -> Result<String> {
    eventually(Duration::from_secs(10), async || {
        let service = context.json(&["get", "service", "outside"]).await?;
        let address = service["status"]["loadBalancer"]["ingress"][0]["ip"].as_str();
        address.map(str::to_owned).context("the Service was given no address")
    })
    .await
}

async fn balancer(context: &Context<'_>) -> Result<()> {
    let address = balancer_address(context).await?;
    let place = format!("{address}:80");
    // kube-proxy hears of the address after we do.
    eventually(Duration::from_secs(10), async || {
        let (status, body) = get(&place, "/outside").await?;
        ensure!(status == 200, "{place}: {status} {body}");
        Ok(())
    })
    .await?;
    let answer = from_client(context, &["get", &format!("http://{place}/")]).await?;
    ensure!(answer.starts_with("200 "), "from a pod: {answer}");
    Ok(())
}

async fn balancer_is_freed(context: &Context<'_>) -> Result<()> {
    let of_type = |kind: &str| json!({ "spec": { "type": kind } }).to_string();
    context.kubectl(&["patch", "service", "outside", "-p", &of_type("ClusterIP")]).await?;
    let service = context.json(&["get", "service", "outside"]).await?;
    ensure!(service["status"]["loadBalancer"]["ingress"].is_null(), "the address stays: {}", service["status"]);
    context.kubectl(&["patch", "service", "outside", "-p", &of_type("LoadBalancer")]).await?;
    balancer_address(context).await.map(drop)
}

async fn exec(context: &Context<'_>) -> Result<()> {
    let words = ["exec", "deployment/web", "--", "/usr/local/bin/probe", "cat", "/settings/greeting"];
    let greeting = context.kubectl(&words).await?;
    ensure!(greeting == "hello", "read {greeting:?}");
    Ok(())
}

async fn logs(context: &Context<'_>) -> Result<()> {
    let logs = context.kubectl(&["logs", "deployment/web"]).await?;
    ensure!(logs.contains("listens on :8080"), "the log is {logs:?}");
    Ok(())
}

async fn port_forward(context: &Context<'_>) -> Result<()> {
    let mut command =
        context.cluster().kubectl_command(&["-n", &context.namespace, "port-forward", "service/web", ":80"]);
    let mut child = command.stdout(std::process::Stdio::piped()).spawn().context("cannot start kubectl")?;
    let output = child.stdout.take().context("no output")?;
    let mut lines = BufReader::new(output).lines();
    let line = tokio::time::timeout(Duration::from_secs(10), lines.next_line());
    let line = line.await.context("it says nothing")??.context("it ended")?;
    // `Forwarding from 127.0.0.1:PORT -> 8080`
    let Some(place) = line.split(' ').nth(2) else { bail!("it says {line:?}") };
    let (status, body) = get(place, "/forwarded").await?;
    ensure!(status == 200 && seen(&body)?["path"] == "/forwarded", "{status} {body}");
    child.kill().await.context("cannot end it")
}

async fn token_review(context: &Context<'_>) -> Result<()> {
    let token = context.kubectl(&["create", "token", "default", "--audience", "mesh-ca"]).await?;
    let review = |token: &str, audience: &str| {
        let spec = json!({ "token": token.trim(), "audiences": [audience] });
        json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": spec }).to_string()
    };
    let words = ["create", "-o", "json", "-f", "-"];
    let ask = async |token: &str, audience: &str| -> Result<Value> {
        let answer = context.cluster().kubectl_with(&words, &review(token, audience)).await?;
        Ok(serde_json::from_str::<Value>(&answer)?["status"].take())
    };
    let good = ask(&token, "mesh-ca").await?;
    let wanted = format!("system:serviceaccount:{}:default", context.namespace);
    ensure!(good["authenticated"] == true && good["user"]["username"] == wanted.as_str(), "of a good token: {good}");
    for (what, token, audience) in [("a forged token", "a.b.c", "mesh-ca"), ("another audience", &token, "other")] {
        let bad = ask(token, audience).await?;
        ensure!(bad["authenticated"] != true, "of {what}: {bad}");
    }
    Ok(())
}

async fn way_out(context: &Context<'_>) -> Result<()> {
    let host = context.cluster().host_address().context("this machine has no address for pods")?;
    let listener = tokio::net::TcpListener::bind((host, 0)).await.context("cannot listen for pods")?;
    let port = listener.local_addr()?.port();
    let serve = async {
        let (stream, _) = listener.accept().await?;
        let service = hyper::service::service_fn(async |_| {
            Ok::<_, std::convert::Infallible>(http::Response::new(http_body_util::Full::new(bytes::Bytes::from(
                "here",
            ))))
        });
        let io = hyper_util::rt::TokioIo::new(stream);
        hyper::server::conn::http1::Builder::new().serve_connection(io, service).await.context("cannot answer")
    };
    let url = format!("http://{host}:{port}/");
    let words = ["get", &url];
    let (served, answer) =
        tokio::join!(tokio::time::timeout(Duration::from_secs(10), serve), from_client(context, &words));
    let answer = answer?;
    served.context("the pod did not come")??;
    ensure!(answer.trim() == "200 here", "the pod got {answer:?}");
    let routes = context.cluster().node_exec(&["ip", "route", "show", "default"]).await?;
    ensure!(routes.trim().is_empty(), "the node has a way out: {routes}");
    Ok(())
}

async fn node(context: &Context<'_>) -> Result<()> {
    let images = context.cluster().node_exec(&["ctr", "-n", "k8s.io", "images", "ls", "-q"]).await?;
    ensure!(images.lines().any(|l| l == crate::images::PROXY), "its images are {images}");
    Ok(())
}
