//! Gateway API: a Gateway gets proxies of its own and an address, routes lead through it, certificates change while it is
//! asked; a Service is released by an HTTPRoute; what was made is kept as it is to be, and goes with the Gateway.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::super::{Context, eventually};
use super::{PATIENCE, REACHES, Workload, get, joined, load, probe, service};

pub(in super::super) async fn run(context: &Context<'_>) -> Result<()> {
    joined(context).await?;
    context.check("its definitions come while the mesh runs: a class is there", class(context)).await?;
    context.check("backends and clients get ready", start(context)).await?;
    let address = context.check("a Gateway gets proxies, a Service and an address", gateway(context)).await?;
    let _ = context.check("routes lead by host and path", routes(context, &address)).await;
    let _ = context.check("a GRPCRoute leads by method", grpc(context, &address)).await;
    let _ = context.check("a certificate changes under load", certificates(context, &address)).await;
    let _ = context.check("a canary by HTTPRoute of a Service", canary(context)).await;
    let _ = context.check("a cluster-internal Gateway, with parameters", inside(context)).await;
    let _ = context.check("a Gateway whose Service is there already", manual(context)).await;
    let _ = context.check("names that others have are refused, with the reason", collision(context)).await;
    let _ = context.check("edits by hand are brought back, a scale is not", edits(context)).await;
    context.check("what was made goes with the Gateway", deleted(context)).await
}

async fn class(context: &Context<'_>) -> Result<()> {
    context.gateway_api().await?;
    eventually(Duration::from_secs(60), async || {
        let class = context.json(&["get", "gatewayclass", "istio"]).await?;
        ensure!(class["spec"]["controllerName"] == "istio.io/gateway-controller", "{class}");
        condition(&class, "Accepted").and_then(|c| is(&c, "True"))
    })
    .await
}

async fn start(context: &Context<'_>) -> Result<()> {
    let outside = Workload { labels: ", sidecar.istio.io/inject: 'false'", ..Workload::new("outside") };
    let all = [Workload::new("client"), outside, Workload::new("web-v1"), Workload::new("web-v2")];
    let manifests: String = all.iter().map(Workload::manifest).collect();
    let services = format!("{}{}", service("web-v1"), service("web-v2"));
    // What clients of the mesh ask for: no pods of its own, an HTTPRoute says who answers.
    let web = "
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web-v1}
  ports: [{name: http, port: 80, targetPort: 8080}]
---
";
    context.apply(&format!("{manifests}{services}{web}")).await?;
    for workload in all {
        context.rolled_out(workload.name, PATIENCE).await?;
    }
    Ok(())
}

/// A condition of a status.
fn condition(of: &Value, kind: &str) -> Result<Value> {
    let mut all = of["status"]["conditions"].as_array().into_iter().flatten();
    let found = all.find(|c| c["type"] == kind).cloned();
    found.with_context(|| format!("no condition {kind} in {}", of["status"]))
}

fn is(condition: &Value, status: &str) -> Result<()> {
    ensure!(condition["status"] == status, "{condition}");
    Ok(())
}

/// Waits until a Gateway is programmed; its first address.
async fn programmed(context: &Context<'_>, name: &str) -> Result<String> {
    let waited = eventually(PATIENCE, async || {
        let gateway = context.json(&["get", "gateway", name]).await?;
        is(&condition(&gateway, "Programmed")?, "True")?;
        let address = gateway["status"]["addresses"][0]["value"].as_str();
        address.map(str::to_owned).with_context(|| format!("no address in {}", gateway["status"]))
    });
    match waited.await {
        Ok(address) => Ok(address),
        Err(error) => {
            let all = context.kubectl(&["get", "pods,services,deployments", "-o", "wide"]).await.unwrap_or_default();
            bail!("{error:#}\n{all}")
        }
    }
}

/// The certificates of two issues of one name, by one issuer.
struct Certificates {
    roots: String,
    issues: [(String, String); 2],
}

impl Certificates {
    fn new() -> Result<Self> {
        use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
        let mut ca = CertificateParams::default();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ca.distinguished_name.push(DnType::CommonName, "issuer");
        let key = KeyPair::generate()?;
        let roots = ca.self_signed(&key)?.pem();
        let issuer = Issuer::new(ca, key);
        let issue = |name: &str| -> Result<(String, String)> {
            let mut leaf = CertificateParams::new(vec!["secure.example.test".to_owned()])?;
            leaf.distinguished_name.push(DnType::CommonName, name);
            let key = KeyPair::generate()?;
            Ok((leaf.signed_by(&key, &issuer)?.pem(), key.serialize_pem()))
        };
        Ok(Self { roots, issues: [issue("first")?, issue("second")?] })
    }

    /// The Secret with an issue.
    fn secret(&self, issue: usize) -> Result<String> {
        let (certificate, key) = self.issues.get(issue).context("no such issue")?;
        let data = serde_json::json!({
            "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls", "metadata": {"name": "secure"},
            "stringData": {"tls.crt": certificate, "tls.key": key},
        });
        Ok(data.to_string())
    }
}

const GATEWAY: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge}
spec:
  gatewayClassName: istio
  infrastructure: {labels: {team: edge}, annotations: {sidecar.istio.io/proxyCPU: 10m}}
  listeners:
  - {name: http, port: 80, protocol: HTTP}
  - name: https
    port: 443
    protocol: HTTPS
    hostname: secure.example.test
    tls: {certificateRefs: [{name: secure}]}
";

async fn gateway(context: &Context<'_>) -> Result<String> {
    context.apply(GATEWAY).await?;
    let address = programmed(context, "edge").await?;
    let deployment = context.json(&["get", "deployment", "edge-istio"]).await?;
    let metadata = &deployment["metadata"];
    ensure!(metadata["labels"]["gateway.networking.k8s.io/gateway-name"] == "edge", "{metadata}");
    ensure!(metadata["labels"]["team"] == "edge", "{metadata}");
    ensure!(metadata["ownerReferences"][0]["name"] == "edge", "{metadata}");
    let service = context.json(&["get", "service", "edge-istio"]).await?;
    let ports: Vec<_> = service["spec"]["ports"].as_array().into_iter().flatten().map(|p| &p["port"]).collect();
    ensure!(ports == [15021, 80, 443], "{ports:?}");
    context.kubectl(&["get", "serviceaccount", "edge-istio"]).await?;
    let ingress = &service["status"]["loadBalancer"]["ingress"][0];
    ensure!(ingress["ip"] == address.as_str() || ingress["hostname"] == address.as_str(), "{address} of {ingress}");
    Ok(address)
}

/// A route of the Gateway `edge` and what is said of it.
fn http_route(name: &str, spec: &str) -> String {
    format!(
        "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: {name}}}
spec: {{{spec}}}
---
"
    )
}

/// The name of who answers a request of the pod outside of the mesh.
async fn answers(context: &Context<'_>, to: &str, more: &[&str], url: &str) -> Result<String> {
    let (status, body) = get(context, "outside", &[&["-to", to], more, &[url]].concat()).await?;
    ensure!(status == 200, "{status} {body}");
    let seen: Value = serde_json::from_str(&body).with_context(|| body.clone())?;
    Ok(seen["name"].as_str().unwrap_or_default().to_owned())
}

async fn routes(context: &Context<'_>, address: &str) -> Result<()> {
    let rules = "parentRefs: [{name: edge, sectionName: http}], hostnames: [shop.example.test], rules: [
      {matches: [{path: {type: PathPrefix, value: /new}}], backendRefs: [{name: web-v2, port: 80}]},
      {matches: [{path: {type: PathPrefix, value: /}}], backendRefs: [{name: web-v1, port: 80}]}]";
    let other = "parentRefs: [{name: edge, sectionName: http}], hostnames: [other.example.test],
      rules: [{backendRefs: [{name: web-v2, port: 80}]}]";
    context.apply(&format!("{}{}", http_route("shop", rules), http_route("other", other))).await?;
    let to = format!("{address}:80");
    for (url, expected) in [
        ("http://shop.example.test/", "web-v1"),
        ("http://shop.example.test/new/x", "web-v2"),
        ("http://other.example.test/", "web-v2"),
    ] {
        eventually(REACHES, async || {
            let name = answers(context, &to, &[], url).await?;
            ensure!(name == expected, "{url} is answered by {name}");
            Ok(())
        })
        .await?;
    }
    let (status, body) = get(context, "outside", &["-to", &to, "http://nobody.example.test/"]).await?;
    ensure!(status == 404, "{status} {body}");
    eventually(REACHES, async || {
        let gateway = context.json(&["get", "gateway", "edge"]).await?;
        let attached = &gateway["status"]["listeners"][0]["attachedRoutes"];
        ensure!(*attached == 2, "{attached} routes are attached");
        let route = context.json(&["get", "httproute", "shop"]).await?;
        let parent = &route["status"]["parents"][0];
        let accepted = parent["conditions"].as_array().into_iter().flatten().find(|c| c["type"] == "Accepted");
        is(accepted.with_context(|| parent.to_string())?, "True")
    })
    .await?;
    if context.is_near() {
        let (status, _) = super::super::reach::get(&to, "/").await?;
        ensure!(status == 404, "{status} for a host that no route has");
    }
    Ok(())
}

async fn grpc(context: &Context<'_>, address: &str) -> Result<()> {
    context
        .apply(
            "
apiVersion: v1
kind: Service
metadata: {name: echo}
spec:
  selector: {app: web-v1}
  ports: [{name: grpc, port: 90, targetPort: 8080, appProtocol: kubernetes.io/h2c}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: echo}
spec:
  parentRefs: [{name: edge, sectionName: http}]
  hostnames: [grpc.example.test]
  rules: [{matches: [{method: {service: echo.Echo, method: Say}}], backendRefs: [{name: echo, port: 90}]}]
",
        )
        .await?;
    let to = format!("{address}:80");
    let call = async |method: &str| {
        probe(context, "outside", &["call", "-to", &to, &format!("http://grpc.example.test/echo.Echo/{method}")]).await
    };
    eventually(REACHES, async || {
        let said = call("Say").await?;
        ensure!(said.starts_with("0 ") && said.contains("\"name\":\"web-v1\""), "{said}");
        Ok(())
    })
    .await?;
    let said = call("Other").await?;
    ensure!(!said.starts_with("0 "), "a method that no rule has is answered: {said}");
    Ok(())
}

async fn certificates(context: &Context<'_>, address: &str) -> Result<()> {
    let certificates = Certificates::new()?;
    context.apply(&certificates.secret(0)?).await?;
    let rules = "parentRefs: [{name: edge, sectionName: https}], rules: [{backendRefs: [{name: web-v1, port: 80}]}]";
    context.apply(&http_route("secure", rules)).await?;
    let to = format!("{address}:443");
    let trust = ["-roots", certificates.roots.as_str()];
    eventually(REACHES, async || {
        let name = answers(context, &to, &trust, "https://secure.example.test/").await?;
        ensure!(name == "web-v1", "answered by {name}");
        Ok(())
    })
    .await?;
    let words = ["-rate", "50", "-clients", "2", "-duration", "6s", "-fresh", "-by-certificate", "-to", &to];
    let words = [&words[..], &trust, &["https://secure.example.test/"]].concat();
    let (tally, changed) = tokio::join!(load(context, "outside", &words), async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        context.apply(&certificates.secret(1)?).await
    });
    changed?;
    let tally = tally?;
    tally.none_failed()?;
    let names: Vec<&String> = tally.by.keys().collect();
    ensure!(names == ["first", "second"], "certificates were shown: {:?}", tally.by);
    Ok(())
}

/// So much of the first version, in percent, by a route of a Service.
fn shares(first: u32) -> String {
    let rest = 100 - first;
    http_route(
        "web",
        &format!(
            "parentRefs: [{{group: '', kind: Service, name: web, port: 80}}],
      rules: [{{backendRefs: [{{name: web-v1, port: 80, weight: {first}}}, {{name: web-v2, port: 80, weight: {rest}}}]}}]"
        ),
    )
}

async fn canary(context: &Context<'_>) -> Result<()> {
    for first in [100, 90, 50, 0] {
        context.apply(&shares(first)).await?;
        // In force within a second of the API server's answer.
        tokio::time::sleep(Duration::from_secs(1)).await;
        // Each request is drawn for: of 5,000 the share is off by 2 points once in two hundred times at most.
        let words = ["-rate", "500", "-clients", "5", "-count", "1000", "http://web/"];
        let tally = load(context, "client", &words).await?;
        tally.none_failed()?;
        let share = tally.share("web-v1");
        ensure!((share - f64::from(first)).abs() <= 2.0, "{share:.1} % instead of {first} % of {tally:?}");
    }
    // And while it changes.
    let words = ["-rate", "50", "-clients", "2", "-duration", "6s", "http://web/"];
    let (tally, changed) = tokio::join!(load(context, "client", &words), async {
        for first in [100, 90, 50, 0] {
            context.apply(&shares(first)).await?;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        Ok::<_, anyhow::Error>(())
    });
    changed?;
    tally?.none_failed()
}

async fn inside(context: &Context<'_>) -> Result<()> {
    context
        .apply(
            "
apiVersion: v1
kind: ConfigMap
metadata: {name: sizes}
data:
  deployment: |
    spec:
      template:
        spec:
          containers: [{name: istio-proxy, env: [{name: EXTRA, value: given}]}]
  podDisruptionBudget: |
    spec: {minAvailable: 1}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: inner, annotations: {networking.istio.io/service-type: ClusterIP}}
spec:
  gatewayClassName: istio
  infrastructure: {parametersRef: {group: '', kind: ConfigMap, name: sizes}}
  listeners: [{name: http, port: 8080, protocol: HTTP}]
",
        )
        .await?;
    let address = programmed(context, "inner").await?;
    ensure!(address == format!("inner-istio.{}.svc.cluster.local", context.namespace), "{address}");
    let words = ["get", "deployment", "inner-istio", "-o", "jsonpath={.spec.template.spec.containers[0].env}"];
    let env = context.kubectl(&words).await?;
    ensure!(env.contains("EXTRA") && env.contains("CA_ADDR"), "{env}");
    context.kubectl(&["get", "poddisruptionbudget", "inner-istio"]).await?;
    // Without its parameters the Gateway is not accepted, and what there is stays.
    context.kubectl(&["delete", "configmap", "sizes"]).await?;
    eventually(REACHES, async || {
        let gateway = context.json(&["get", "gateway", "inner"]).await?;
        let accepted = condition(&gateway, "Accepted")?;
        ensure!(accepted["reason"] == "InvalidParameters", "{accepted}");
        Ok(())
    })
    .await?;
    context.kubectl(&["get", "deployment", "inner-istio"]).await?;
    context.kubectl(&["patch", "gateway", "inner", "--type=json", "-p", REMOVE_PARAMETERS]).await?;
    eventually(REACHES, async || {
        let left = context.kubectl(&["get", "poddisruptionbudget", "-o", "name"]).await?;
        ensure!(left.is_empty(), "{left}");
        Ok(())
    })
    .await
}

const REMOVE_PARAMETERS: &str = r#"[{"op": "remove", "path": "/spec/infrastructure"}]"#;

async fn manual(context: &Context<'_>) -> Result<()> {
    let named = |host: &str| {
        format!(
            "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: manual}}
spec:
  gatewayClassName: istio
  addresses: [{{type: Hostname, value: {host}}}]
  listeners: [{{name: http, port: 8080, protocol: HTTP}}]
"
        )
    };
    context.apply(&named("nothing")).await?;
    eventually(REACHES, async || {
        let gateway = context.json(&["get", "gateway", "manual"]).await?;
        let programmed = condition(&gateway, "Programmed")?;
        ensure!(programmed["reason"] == "AddressNotUsable", "{programmed}");
        Ok(())
    })
    .await?;
    context.apply(&named(&format!("inner-istio.{}.svc.cluster.local", context.namespace))).await?;
    programmed(context, "manual").await?;
    let made = context.kubectl(&["get", "deployment", "-o", "name"]).await?;
    ensure!(!made.contains("manual-istio"), "{made}");
    Ok(())
}

async fn collision(context: &Context<'_>) -> Result<()> {
    let taken = "
apiVersion: v1
kind: Service
metadata: {name: taken-istio}
spec: {selector: {app: web-v1}, ports: [{port: 80}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: taken, annotations: {networking.istio.io/service-type: ClusterIP}}
spec: {gatewayClassName: istio, listeners: [{name: http, port: 80, protocol: HTTP}]}
";
    context.apply(taken).await?;
    eventually(REACHES, async || {
        let gateway = context.json(&["get", "gateway", "taken"]).await?;
        let programmed = condition(&gateway, "Programmed")?;
        let why = programmed["message"].as_str().unwrap_or_default();
        ensure!(why.contains("taken-istio is there already"), "{programmed}");
        Ok(())
    })
    .await?;
    let made = context.kubectl(&["get", "deployment,serviceaccount", "-o", "name"]).await?;
    ensure!(!made.contains("taken-istio"), "{made}");
    let selector = context.kubectl(&["get", "service", "taken-istio", "-o", "jsonpath={.spec.selector}"]).await?;
    ensure!(selector == r#"{"app":"web-v1"}"#, "{selector}");
    context.kubectl(&["delete", "service", "taken-istio"]).await?;
    programmed(context, "taken").await.map(drop)
}

async fn edits(context: &Context<'_>) -> Result<()> {
    let deployment = "deployment/edge-istio";
    let before = context.kubectl(&["get", deployment, "-o", "jsonpath={.metadata.generation}"]).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let after = context.kubectl(&["get", deployment, "-o", "jsonpath={.metadata.generation}"]).await?;
    ensure!(before == after, "it is written although nothing changes: generation {before}, {after}");
    context.kubectl(&["scale", deployment, "--replicas=2"]).await?;
    let patch = r#"{"spec": {"template": {"spec": {"serviceAccountName": "web-v1"}}}}"#;
    context.kubectl(&["patch", deployment, "-p", patch]).await?;
    context.kubectl(&["label", deployment, "team=others", "mine=kept", "--overwrite"]).await?;
    eventually(REACHES, async || {
        let now = context.json(&["get", deployment]).await?;
        let account = &now["spec"]["template"]["spec"]["serviceAccountName"];
        ensure!(account == "edge-istio", "runs as {account}");
        let labels = &now["metadata"]["labels"];
        ensure!(labels["team"] == "edge" && labels["mine"] == "kept", "{labels}");
        ensure!(now["spec"]["replicas"] == 2, "{} replicas", now["spec"]["replicas"]);
        Ok(())
    })
    .await?;
    for object in [deployment, "service/edge-istio"] {
        context.kubectl(&["delete", object]).await?;
        eventually(REACHES, async || context.kubectl(&["get", object]).await).await?;
    }
    context.rolled_out("edge-istio", PATIENCE).await?;
    eventually(PATIENCE, async || {
        let address = programmed(context, "edge").await?;
        answers(context, &format!("{address}:80"), &[], "http://shop.example.test/").await.map(drop)
    })
    .await
}

async fn deleted(context: &Context<'_>) -> Result<()> {
    context.kubectl(&["delete", "gateway", "--all", "--cascade=foreground"]).await?;
    let label = "gateway.istio.io/managed=istio.io-gateway-controller";
    eventually(PATIENCE, async || {
        let kinds = "deployments,services,serviceaccounts,pods,poddisruptionbudgets";
        let left = context.kubectl(&["get", kinds, "-l", label, "-o", "name"]).await?;
        ensure!(left.is_empty(), "{left}");
        Ok(())
    })
    .await
}
