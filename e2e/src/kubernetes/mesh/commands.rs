//! What `meshctl` says of a mesh in a cluster is true, soon said, and has the exit code that it should: while all is
//! well, with two control planes, with none, and after it is back.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::Value;
use tokio::time::Instant;

use super::super::{Context, eventually};
use super::{PATIENCE, REACHES, ROOT, Workload, get, joined, meshctl_ends, service};

/// No command may take longer; they take a fifth of it.
const SOON: Duration = Duration::from_secs(5);

pub(in super::super) async fn run(context: &Context<'_>) -> Result<()> {
    context.check("a mesh with a route, a policy and a rule is there", prepared(context)).await?;
    let _ = context.check("ps tells each proxy with its control plane", status(context)).await;
    let _ = context.check("version counts proxies", version(context)).await;
    let _ = context.check("pc tells routes with their causes, and certificates", config(context)).await;
    let _ = context.check("pc log changes levels in the proxy", log(context)).await;
    let _ = context.check("describe tells routes, TLS and policies, and what is wrong", describe(context)).await;
    let _ = context.check("check finds a healthy mesh, and before it a mesh that is there", check(context)).await;
    let _ = context.check("check-inject tells who is injected and why", injection(context)).await;
    let _ = context.check("analyze finds what is wrong in the cluster and in files over it", analyze(context)).await;
    let _ = context.check("a token of a service account is for the CA", token(context)).await;
    let _ = context.check("two control planes are asked, each proxy is told once", two(context)).await;
    context.check("without a control plane that is told, and proxies are asked themselves", away(context)).await?;
    context.check("when it is back all is told as before", back(context)).await
}

/// How a command ended.
struct Ended {
    code: i32,
    out: String,
    err: String,
}

impl Ended {
    fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.out).with_context(|| format!("no JSON: {}{}", self.out, self.err))
    }
}

/// Runs a command in the scenario's namespace, which must end soon and with this exit code.
async fn asked(context: &Context<'_>, code: i32, args: &[&str]) -> Result<Ended> {
    let began = Instant::now();
    let done = meshctl_ends(context, &[args, &["-n", &context.namespace]].concat()).await?;
    let took = began.elapsed();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let ended = Ended { code: done.status.code().unwrap_or(-1), out: text(&done.stdout), err: text(&done.stderr) };
    let words = args.join(" ");
    println!("      {:6.2} s  meshctl {words}", took.as_secs_f64());
    ensure!(ended.code == code, "meshctl {words} ends with {}, not {code}\n{}{}", ended.code, ended.out, ended.err);
    ensure!(took < SOON, "meshctl {words} took {took:?}");
    Ok(ended)
}

/// Every one of these is in the text.
fn tells(text: &str, words: &[&str]) -> Result<()> {
    for word in words {
        ensure!(text.contains(word), "{word:?} is not in\n{text}");
    }
    Ok(())
}

const OBJECTS: &str = "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: server}
spec: {host: server, subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: server}
spec:
  hosts: [server]
  http:
  - route:
    - {destination: {host: server, subset: v1, port: {number: 80}}, weight: 90}
    - {destination: {host: server, subset: v2, port: {number: 80}}, weight: 10}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default}
spec: {mtls: {mode: STRICT}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-secrets}
spec: {selector: {matchLabels: {app: server}}, action: DENY, rules: [{to: [{operation: {paths: [/secret]}}]}]}
";

async fn prepared(context: &Context<'_>) -> Result<()> {
    joined(context).await?;
    let second = Workload { app: "server", version: "v2", ..Workload::new("server-v2") };
    let plain = Workload { labels: ", sidecar.istio.io/inject: 'false'", ..Workload::new("plain") };
    let all = [Workload::new("client"), Workload::new("server"), second, plain];
    let manifests: String = all.iter().map(Workload::manifest).collect();
    context.apply(&format!("{manifests}{}", service("server"))).await?;
    for workload in all {
        context.rolled_out(workload.name, PATIENCE).await?;
    }
    context.apply(OBJECTS).await?;
    eventually(REACHES, async || {
        let (status, body) = get(context, "client", &["http://server/secret"]).await?;
        ensure!(status == 403, "{status} {body}");
        Ok(())
    })
    .await
}

/// Name of a pod.
async fn pod(context: &Context<'_>, app: &str) -> Result<String> {
    let pods = context.json(&["get", "pods", "-l", &format!("app={app}")]).await?;
    let name = pods["items"][0]["metadata"]["name"].as_str();
    Ok(name.with_context(|| format!("no pod of {app}"))?.to_owned())
}

async fn istiod(context: &Context<'_>, args: &[&str]) -> Result<String> {
    context.cluster().kubectl(&[&["-n", ROOT], args].concat()).await
}

async fn status(context: &Context<'_>) -> Result<()> {
    let rows = asked(context, 0, &["ps", "-o", "json"]).await?.json()?;
    let rows = rows.as_array().context("no rows")?;
    ensure!(rows.len() == 3, "client and two servers, not {rows:?}");
    let table = asked(context, 0, &["proxy-status", "deployment/client"]).await?.out;
    tells(&table, &[&pod(context, "client").await?, "SYNCED", "istiod-"])?;
    ensure!(table.lines().count() == 2, "{table}");
    asked(context, 1, &["ps", "nobody"]).await.map(drop)
}

async fn version(context: &Context<'_>) -> Result<()> {
    let version = env!("CARGO_PKG_VERSION");
    let said = asked(context, 0, &["version"]).await?.out;
    tells(&said, &[&format!("control plane version: {version}"), &format!("{version} ("), "proxies)"])?;
    let all = asked(context, 0, &["version", "-o", "json"]).await?.json()?;
    ensure!(all["dataPlaneVersion"].as_array().is_some_and(|a| a.len() >= 3), "{all}");
    Ok(())
}

async fn config(context: &Context<'_>) -> Result<()> {
    let routes = asked(context, 0, &["pc", "routes", "deploy/client", "--name", "80"]).await?.out;
    tells(&routes, &[&format!("server.{}", context.namespace)])?;
    let pod = format!("{}.{}", pod(context, "client").await?, context.namespace);
    let clusters = asked(context, 0, &["proxy-config", "cluster", &pod, "--port", "80"]).await?.out;
    tells(&clusters, &["v1", "v2", "EDS"])?;
    let secrets = asked(context, 0, &["pc", "secret", &pod]).await?;
    tells(&secrets.out, &["default", "ROOTCA", "true"])?;
    ensure!(secrets.err.is_empty(), "{}", secrets.err);
    tells(&asked(context, 0, &["pc", "bootstrap", &pod]).await?.out, &[&pod])?;
    let endpoints = asked(context, 0, &["pc", "endpoints", &pod, "--port", "8080"]).await?.out;
    tells(&endpoints, &["HEALTHY", "OK", "server"])?;
    asked(context, 1, &["pc", "cluster", "nobody"]).await.map(drop)
}

async fn log(context: &Context<'_>) -> Result<()> {
    let said = asked(context, 0, &["pc", "log", "deploy/client", "--level", "rbac:debug"]).await?.out;
    tells(&said, &["rbac: debug", "http: "])?;
    tells(&asked(context, 0, &["pc", "log", "deploy/client", "--reset"]).await?.out, &["rbac: warning"])
}

async fn describe(context: &Context<'_>) -> Result<()> {
    let space = &context.namespace;
    let said = asked(context, 0, &["describe", "service", "server"]).await?.out;
    let rule = format!("by server.{space} (VirtualService)");
    let to = |share: u32, subset: &str| format!("{share}% server.{space}.svc.cluster.local:80 subset {subset}");
    let words =
        [&*to(90, "v1"), &to(10, "v2"), &rule, "Workload mTLS mode: STRICT", "DENY no-secrets", "Nothing looks wrong"];
    tells(&said, &words)?;
    let server = pod(context, "server").await?;
    let facts = asked(context, 0, &["x", "describe", "pod", &server, "-o", "json"]).await?.json()?;
    ensure!(facts["pods"][0]["peerAuthentication"]["mode"] == "STRICT", "{facts}");
    ensure!(facts["services"][0]["destinationRule"]["subsets"][0]["name"] == "v1", "{facts}");
    ensure!(facts["pods"][0]["connected"]["states"]["CDS"] == "SYNCED", "{facts}");
    let plain = asked(context, 0, &["d", "po", "deployment/plain"]).await?.out;
    tells(&plain, &["has no sidecar", "sidecar.istio.io/inject says so", "no service selects"])?;
    asked(context, 1, &["describe", "svc", "nobody"]).await.map(drop)
}

async fn check(context: &Context<'_>) -> Result<()> {
    let said = asked(context, 0, &["check"]).await?.out;
    tells(&said, &["CHECK", "RESULT", "DETAIL", "HINT", "kinds are served", "Deployment istio-system/istiod"])?;
    ensure!(!said.contains("failed") && !said.contains("warning"), "{said}");
    let before = asked(context, 0, &["x", "precheck", "-o", "json"]).await?.json()?;
    let row = |check: &str| before.as_array().and_then(|rows| rows.iter().find(|r| r["check"] == check)).cloned();
    ensure!(row("permissions").is_some_and(|r| r["result"] == "ok"), "{before}");
    ensure!(row("earlier installations").is_some_and(|r| r["result"] == "note"), "{before}");
    let proxies = asked(context, 0, &["check", "--proxy", "--strict"]).await?.out;
    tells(&proxies, &["3 pods with a proxy", "none of 3 refused anything", "of 3 proxies hold"])
}

async fn injection(context: &Context<'_>) -> Result<()> {
    let yes = asked(context, 0, &["check-inject", "deployment/client"]).await?.out;
    tells(&yes, &["istio-sidecar-injector", "✔", "namespace label istio-injection=enabled matches"])?;
    let no = asked(context, 1, &["x", "check-inject", &pod(context, "plain").await?]).await?.out;
    tells(&no, &["✘", "sidecar.istio.io/inject says so"])?;
    let system = asked(context, 1, &["check-inject", "namespace/kube-system"]).await?.out;
    tells(&system, &["belongs to Kubernetes"])
}

async fn analyze(context: &Context<'_>) -> Result<()> {
    asked(context, 0, &["analyze"]).await?;
    let dangling = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: dangling}
spec: {hosts: [gone], http: [{route: [{destination: {host: gone}}]}]}
";
    context.apply(dangling).await?;
    let found = asked(context, 79, &["analyze"]).await;
    context.kubectl(&["delete", "virtualservice", "dangling"]).await?;
    tells(&found?.out, &["IST0101", "dangling"])?;
    // The same object, in a file: without the cluster everything that it refers to is missing.
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("server.yaml");
    let object = context.kubectl(&["get", "virtualservice", "server", "-o", "yaml"]).await?;
    std::fs::write(&file, &object)?;
    let path = file.to_string_lossy();
    asked(context, 79, &["analyze", &path]).await?;
    asked(context, 0, &["analyze", "-k", &path]).await?;
    std::fs::write(&file, object.replace("subset: v2", "subset: v3"))?;
    tells(&asked(context, 79, &["analyze", "-k", &path]).await?.out, &["IST0101", "v3", "server.yaml"])
}

async fn token(context: &Context<'_>) -> Result<()> {
    let token = asked(context, 0, &["create", "token", "client", "--duration", "1h"]).await?.out;
    let claims = token.trim().split('.').nth(1).context("no JWT")?;
    let claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims)?)?;
    ensure!(claims["aud"][0] == "istio-ca", "{claims}");
    ensure!(claims["sub"] == format!("system:serviceaccount:{}:client", context.namespace), "{claims}");
    asked(context, 1, &["create", "token", "nobody"]).await.map(drop)
}

async fn is_ready(context: &Context<'_>) -> Result<()> {
    istiod(context, &["rollout", "status", "deployment/istiod", "--timeout=90s"]).await.map(drop)
}

/// Every proxy of the namespace is told, once.
async fn each_once(context: &Context<'_>) -> Result<Vec<Value>> {
    let rows = asked(context, 0, &["ps", "-o", "json"]).await?.json()?;
    let rows = rows.as_array().context("no rows")?.clone();
    let mut names: Vec<&str> = rows.iter().filter_map(|r| r["proxy"].as_str()).collect();
    names.dedup();
    ensure!(names.len() == 3 && rows.len() == 3, "{names:?}");
    Ok(rows)
}

async fn two(context: &Context<'_>) -> Result<()> {
    istiod(context, &["scale", "deployment/istiod", "--replicas=2"]).await?;
    is_ready(context).await?;
    let result = async {
        // The first of them stops, so that its proxies go to both.
        let pods = context.cluster().json(&["-n", ROOT, "get", "pods", "-l", "app=istiod"]).await?;
        let first = pods["items"][0]["metadata"]["name"].as_str().context("no pod")?.to_owned();
        context.kubectl(&["rollout", "restart", "deployment/client", "deployment/server"]).await?;
        for name in ["client", "server"] {
            context.rolled_out(name, PATIENCE).await?;
        }
        eventually(PATIENCE, async || each_once(context).await.map(drop)).await?;
        let rows = each_once(context).await?;
        ensure!(rows.iter().all(|r| r["istiod"].as_str().is_some_and(|n| n.starts_with("istiod-"))), "{rows:?}");
        // Whichever it is connected to, it is found.
        for row in &rows {
            let proxy = row["proxy"].as_str().context("no name")?;
            let routes = asked(context, 0, &["pc", "route", proxy]).await?;
            ensure!(routes.err.is_empty(), "{first}: {}", routes.err);
        }
        tells(&asked(context, 0, &["check"]).await?.out, &["2 pods are ready"])
    };
    let result = result.await;
    istiod(context, &["scale", "deployment/istiod", "--replicas=1"]).await?;
    is_ready(context).await?;
    result
}

async fn away(context: &Context<'_>) -> Result<()> {
    istiod(context, &["scale", "deployment/istiod", "--replicas=0"]).await?;
    istiod(context, &["wait", "--for=delete", "pod", "-l", "app=istiod", "--timeout=60s"]).await?;
    let result = while_away(context).await;
    // Whatever came of it, others need it.
    istiod(context, &["scale", "deployment/istiod", "--replicas=1"]).await?;
    is_ready(context).await?;
    result
}

async fn while_away(context: &Context<'_>) -> Result<()> {
    tells(&asked(context, 69, &["ps"]).await?.err, &["there is no pod of it", "meshctl check"])?;
    asked(context, 69, &["describe", "service", "server"]).await?;
    let routes = asked(context, 0, &["pc", "routes", "deploy/client", "--name", "80"]).await?;
    tells(&routes.out, &[&format!("server.{}", context.namespace)])?;
    tells(&routes.err, &["the proxy itself is asked"])?;
    tells(&asked(context, 0, &["pc", "secret", "deploy/client"]).await?.out, &["default", "true"])?;
    tells(&asked(context, 0, &["version"]).await?.err, &["unknown"])?;
    tells(&asked(context, 1, &["check"]).await?.out, &["is scaled to 0", "nobody answers"])?;
    tells(&asked(context, 1, &["check", "--proxy"]).await?.out, &["failed", "of 3 proxies hold"])?;
    // These take no control plane.
    asked(context, 0, &["check-inject", "deployment/client"]).await?;
    asked(context, 0, &["analyze"]).await?;
    asked(context, 0, &["create", "token", "client"]).await.map(drop)
}

async fn back(context: &Context<'_>) -> Result<()> {
    eventually(PATIENCE, async || each_once(context).await.map(drop)).await?;
    eventually(PATIENCE, async || asked(context, 0, &["check"]).await.map(drop)).await?;
    let said = asked(context, 0, &["describe", "service", "server"]).await?.out;
    tells(&said, &["90% server", "Nothing looks wrong"])?;
    let routes = asked(context, 0, &["pc", "routes", "deploy/client"]).await?;
    ensure!(routes.err.is_empty(), "{}", routes.err);
    Ok(())
}
