//! Pods join the mesh without a change of theirs: capture, identities, encryption, who may speak with whom.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::super::{Context, eventually};
use super::{REACHES, Workload, address, get, install, joined, pod, probe, seen, service, start, wire};

/// Where an application says that its metrics are.
const OWN_METRICS: &str = "prometheus.io/scrape: 'true', prometheus.io/port: '8080', prometheus.io/path: /own-metrics";

pub(in super::super) async fn run(context: &Context<'_>) -> Result<()> {
    context.check("meshctl installs the mesh", joined(context)).await?;
    let _ = context.check("a second installation changes nothing", again(context)).await;
    context.check("pods of a labelled namespace get a proxy and are ready", pods(context)).await?;
    let _ = context.check("requests are captured, and carry the identity of the caller", identity(context)).await;
    let _ = context.check("pods are reached by their own address and call themselves", own_address(context)).await;
    let _ = context.check("a server that speaks first is heard", server_first(context)).await;
    if context.is_near() {
        let _ = context.check("what crosses the wire is encrypted", encrypted(context)).await;
    }
    let _ = context.check("PERMISSIVE serves a pod without proxy", permissive(context)).await;
    let _ = context.check("STRICT refuses a pod without proxy, and serves one with", strict(context)).await;
    let _ = context.check("DISABLE on a port opens that port only", port_level(context)).await;
    let _ = context.check("a policy by service account holds, and tells its name", policy(context)).await;
    let _ = context.check("what cannot work is refused by the API server", refused(context)).await;
    let _ = context.check("an object is told what is wrong with it, and that it is mended", told(context)).await;
    context.check("metrics of application and proxy are one text", metrics(context)).await
}

async fn again(context: &Context<'_>) -> Result<()> {
    let generation = async || {
        let all = context.cluster().json(&["-n", super::ROOT, "get", "deployments,configmaps,services"]).await?;
        let of = |o: &Value| (o["metadata"]["name"].clone(), o["metadata"]["resourceVersion"].clone());
        let versions: Vec<_> = all["items"].as_array().context("no items")?.iter().map(of).collect();
        Ok::<_, anyhow::Error>(versions)
    };
    let before = generation().await?;
    install(context).await?;
    ensure!(before == generation().await?, "objects have other versions");
    Ok(())
}

async fn pods(context: &Context<'_>) -> Result<()> {
    let server = Workload { annotations: OWN_METRICS, ..Workload::new("server") };
    let all = [Workload::new("client"), server, Workload::plain("plain")];
    start(context, &all, &format!("{}{}", service("server"), service("client"))).await?;
    let server = pod(context, &context.namespace, "app=server").await?;
    let spec = &server["spec"];
    let names = |field: &str| -> Vec<String> {
        let all = spec[field].as_array().cloned().unwrap_or_default();
        all.iter().filter_map(|c| c["name"].as_str().map(str::to_owned)).collect()
    };
    let all = [names("initContainers"), names("containers")].concat();
    ensure!(all.iter().any(|n| n == "istio-proxy"), "containers are {all:?}");
    let plain = pod(context, &context.namespace, "app=plain").await?;
    ensure!(!plain.to_string().contains("istio-proxy"), "a pod that says no has a proxy");
    Ok(())
}

async fn identity(context: &Context<'_>) -> Result<()> {
    let expected = format!("spiffe://cluster.local/ns/{}/sa/client", context.namespace);
    eventually(REACHES, async || {
        let seen = seen(context, "client", &["http://server/hello"]).await?;
        let certificate = seen["headers"]["X-Forwarded-Client-Cert"].to_string();
        ensure!(certificate.contains(&expected), "{seen}");
        ensure!(seen["headers"].get("X-Request-Id").is_some(), "no request id: {seen}");
        Ok(())
    })
    .await
}

async fn own_address(context: &Context<'_>) -> Result<()> {
    let ip = address(context, &context.namespace, "app=server").await?;
    let by_address = seen(context, "client", &[&format!("http://{ip}:8080/")]).await?;
    ensure!(by_address["name"] == "server", "{by_address}");
    let itself = seen(context, "server", &[&format!("http://{ip}:8080/")]).await?;
    ensure!(itself["name"] == "server", "{itself}");
    let by_service = seen(context, "server", &["http://server/"]).await?;
    ensure!(by_service["name"] == "server", "{by_service}");
    Ok(())
}

async fn server_first(context: &Context<'_>) -> Result<()> {
    let said = probe(context, "client", &["send", "server:9000", "hello"]).await?;
    ensure!(said.contains("server hello"), "{said:?}");
    Ok(())
}

async fn encrypted(context: &Context<'_>) -> Result<()> {
    let marker = "x-marker-of-the-wire";
    let ask = |from: &'static str, target: String| async move {
        for _ in 0..10 {
            let header = format!("{marker}: 1");
            get(context, from, &["-header", &header, &target]).await?;
        }
        Ok(())
    };
    // What is looked for must be found where nothing hides it, else finding nothing tells nothing.
    let plain = wire::saw(context, marker, ask("plain", "http://server/".to_owned())).await?;
    ensure!(plain, "the marker of a plain request was not seen on the wire");
    let meshed = wire::saw(context, marker, ask("client", "http://server/".to_owned())).await?;
    ensure!(!meshed, "the marker of a request between proxies was seen on the wire");
    Ok(())
}

async fn permissive(context: &Context<'_>) -> Result<()> {
    let seen = seen(context, "plain", &["http://server/"]).await?;
    ensure!(seen["headers"].get("X-Forwarded-Client-Cert").is_none(), "{seen}");
    Ok(())
}

const STRICT: &str = "
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default}
spec: {mtls: {mode: STRICT}}
";

/// A plain pod is refused: no answer from the application.
async fn refuses_plain(context: &Context<'_>, target: &str) -> Result<()> {
    match get(context, "plain", &[target]).await {
        Ok((status, body)) => bail!("it was served: {status} {body}"),
        Err(_) => Ok(()),
    }
}

async fn strict(context: &Context<'_>) -> Result<()> {
    context.apply(STRICT).await?;
    eventually(REACHES, async || refuses_plain(context, "http://server/").await).await?;
    seen(context, "client", &["http://server/"]).await.map(drop)
}

async fn port_level(context: &Context<'_>) -> Result<()> {
    context
        .apply(
            "
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: server}
spec:
  selector: {matchLabels: {app: server}}
  mtls: {mode: STRICT}
  portLevelMtls: {9000: {mode: DISABLE}}
",
        )
        .await?;
    eventually(REACHES, async || {
        let said = probe(context, "plain", &["send", "-timeout", "2s", "server:9000", "hello"]).await?;
        ensure!(said.contains("server hello"), "{said:?}");
        Ok(())
    })
    .await?;
    refuses_plain(context, "http://server/").await?;
    seen(context, "client", &["http://server/"]).await?;
    let said = probe(context, "client", &["send", "server:9000", "hello"]).await?;
    ensure!(said.contains("server hello"), "{said:?}");
    context.kubectl(&["delete", "peerauthentication", "--all"]).await.map(drop)
}

async fn policy(context: &Context<'_>) -> Result<()> {
    context
        .apply(&format!(
            "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: no-client}}
spec:
  selector: {{matchLabels: {{app: server}}}}
  action: DENY
  rules: [{{from: [{{source: {{principals: [cluster.local/ns/{}/sa/client]}}}}]}}]
",
            context.namespace
        ))
        .await?;
    eventually(REACHES, async || {
        let (status, body) = get(context, "client", &["http://server/"]).await?;
        ensure!(status == 403 && body.contains("RBAC: access denied"), "{status} {body}");
        Ok(())
    })
    .await?;
    seen(context, "plain", &["http://server/"]).await?;
    context.kubectl(&["delete", "authorizationpolicy", "no-client"]).await?;
    eventually(REACHES, async || seen(context, "client", &["http://server/"]).await).await.map(drop)
}

async fn refused(context: &Context<'_>) -> Result<()> {
    let bad = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: bad}
spec: {hosts: [server], http: [{match: [{uri: {regex: '('}}], route: [{destination: {host: server}}]}]}
";
    eventually(Duration::from_secs(10), async || match context.apply(bad).await {
        Ok(()) => bail!("it was taken"),
        Err(error) => {
            let text = format!("{error:#}");
            ensure!(text.contains("spec.http[0].match[0].uri"), "{text}");
            Ok(())
        }
    })
    .await
}

async fn told(context: &Context<'_>) -> Result<()> {
    let leads_to = |host: &str| {
        format!(
            "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: told}}
spec: {{hosts: [server], http: [{{match: [{{uri: {{prefix: /told}}}}], route: [{{destination: {{host: {host}, port: {{number: 80}}}}}}]}}, {{route: [{{destination: {{host: server, port: {{number: 80}}}}}}]}}]}}
"
        )
    };
    for (host, degraded, code) in [("nowhere", "True", "IST0101"), ("server", "False", "")] {
        context.apply(&leads_to(host)).await?;
        eventually(REACHES, async || {
            let object = context.json(&["get", "virtualservice", "told"]).await?;
            let status = &object["status"];
            let conditions = status["conditions"].as_array().into_iter().flatten();
            let found = conditions.into_iter().find(|c| c["type"] == "Degraded").context("no condition Degraded")?;
            ensure!(found["status"] == degraded, "{status}");
            let first = status["validationMessages"][0]["type"]["code"].as_str().unwrap_or_default();
            ensure!(first == code, "{status}");
            Ok(())
        })
        .await?;
    }
    context.kubectl(&["delete", "virtualservice", "told"]).await.map(drop)
}

/// As Prometheus asks, which has no certificate: where the pod's annotations say.
async fn metrics(context: &Context<'_>) -> Result<()> {
    let found = pod(context, &context.namespace, "app=server").await?;
    let annotations = &found["metadata"]["annotations"];
    let at = |name: &str| annotations[format!("prometheus.io/{name}")].as_str().unwrap_or_default().to_owned();
    let ip = found["status"]["podIP"].as_str().context("the pod has no address")?;
    let url = format!("http://{ip}:{}{}", at("port"), at("path"));
    let (status, text) = get(context, "plain", &[&url]).await?;
    ensure!(status == 200 && text.contains("istio_requests_total{"), "{url}: {status} {text}");
    // The probe answers everything with what it saw.
    ensure!(text.contains("\"path\":\"/own-metrics\""), "the application's own are not there: {text}");
    Ok(())
}
