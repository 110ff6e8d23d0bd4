//! Gateways that are installed: what comes in by HTTP, TLS and TCP, and what may go out.

use anyhow::{Context as _, Result, bail, ensure};

use super::super::{Context, eventually};
use super::certificates::Authority;
use super::{
    PATIENCE, REACHES, ROOT, Workload, address, answers, get, joined, load_while, pod, probe, seen, service, start,
};

const INGRESS: &str = "istio-ingressgateway";
const EGRESS: &str = "istio-egressgateway";
/// Where those outside reach the ingress gateway.
const HTTP: &str = "istio-ingressgateway.istio-system:80";
const HTTPS: &str = "istio-ingressgateway.istio-system:443";
/// How clients outside trust and who they are.
const TRUST: [&str; 2] = ["-ca", "/tls/ca.crt"];
const OWN: [&str; 4] = ["-cert", "/tls/tls.crt", "-key", "/tls/tls.key"];

pub(in super::super) async fn run(context: &Context<'_>) -> Result<()> {
    joined(context).await?;
    context.check("the proxies of both gateways are injected and ready", injected(context)).await?;
    let authority = Authority::new("the world's authority")?;
    context.check("servers and clients inside and outside get ready", begin(context, &authority)).await?;
    let secrets = Secrets { context, authority: &authority };
    let result = Box::pin(ingress(context, &secrets)).await;
    secrets.remove().await?;
    result?;
    egress(context).await
}

async fn ingress(context: &Context<'_>, secrets: &Secrets<'_>) -> Result<()> {
    let _ = context.check("HTTP by host; others are not found", http(context)).await;
    let served = context.check("HTTPS: each name has its certificate", https(context, secrets)).await;
    if served.is_ok() {
        let _ =
            context.check("a certificate is exchanged under load: no request fails", exchanged(context, secrets)).await;
    }
    let _ = context.check("mutual TLS: clients with a certificate only", mutual(context, secrets)).await;
    let _ = context.check("TLS is passed through by its name", passed_through(context)).await;
    context.check("TCP is forwarded, the server speaking first", tcp(context)).await
}

async fn egress(context: &Context<'_>) -> Result<()> {
    let outside = address(context, &context.namespace, "app=outside").await?;
    let outside = Outside { context, web: format!("{outside}:80"), tcp: format!("{outside}:9000") };
    context.check("a host that nobody declared is reached: ALLOW_ANY", outside.open()).await?;
    let _ = context.check("REGISTRY_ONLY refuses it, by HTTP and by TCP", outside.closed()).await;
    context.check("a ServiceEntry opens it", outside.declared()).await?;
    let _ = context.check("it is reached through the egress gateway, which logs that", outside.routed()).await;
    let _ = context.check("the egress gateway asks for identities, and serves by policy", outside.by_identity()).await;
    context.kubectl(&["delete", "virtualservice,destinationrule,gateway,serviceentry,sidecar", "--all"]).await.map(drop)
}

/// What `image: auto` became.
async fn injected(context: &Context<'_>) -> Result<()> {
    for name in [INGRESS, EGRESS] {
        // One that an earlier installation made may still be on its way out.
        let pod = eventually(PATIENCE, async || pod(context, ROOT, &format!("app={name}")).await).await?;
        let containers = pod["spec"]["containers"].as_array().cloned().unwrap_or_default();
        let [proxy] = containers.as_slice() else { bail!("{} containers", containers.len()) };
        ensure!(proxy["image"] == "localhost/mesh/proxy:dev", "{name} runs {}", proxy["image"]);
        ensure!(proxy["args"][0] == "gateway", "{name} runs as {}", proxy["args"]);
        ensure!(pod["spec"]["initContainers"].is_null(), "the traffic of {name} is redirected");
        let ready = pod["status"]["containerStatuses"][0]["ready"] == true;
        ensure!(ready, "{name} is not ready: {}", pod["status"]);
    }
    Ok(())
}

async fn begin(context: &Context<'_>, authority: &Authority) -> Result<()> {
    let secret = authority.secret("outside", &authority.issue("a client of the world", "client.example")?);
    let tls = authority.secret("inside", &authority.issue("the server itself", "tls.example")?);
    context.apply(&format!("{secret}\n---\n{tls}")).await?;
    let words = ", -tls, ':8443', -cert, /tls/tls.crt, -key, /tls/tls.key";
    let inside = Workload { secret: Some("inside"), words, ..Workload::new("first") };
    let all = [
        inside,
        Workload::new("second"),
        Workload::new("client"),
        Workload { secret: Some("outside"), ..Workload::plain("world") },
        Workload { port: 80, ..Workload::plain("outside") },
    ];
    let passed = "
apiVersion: v1
kind: Service
metadata: {name: secure}
spec: {selector: {app: first}, ports: [{name: tls, port: 443, targetPort: 8443}]}
---
";
    start(context, &all, &format!("{}{}{passed}", service("first"), service("second"))).await
}

/// Secrets of the ingress gateway, which lie where it runs and so are the scenario's to remove.
struct Secrets<'a> {
    context: &'a Context<'a>,
    authority: &'a Authority,
}

impl Secrets<'_> {
    /// Name of the Secret for a host.
    fn name(&self, host: &str) -> String {
        format!("{}-{host}", self.context.namespace)
    }

    /// Makes or replaces the certificate of a host.
    async fn put(&self, host: &str, called: &str) -> Result<()> {
        let mut secret = self.authority.secret(&self.name(host), &self.authority.issue(called, host)?);
        secret["metadata"]["labels"] = serde_json::json!({ "scenario": self.context.namespace });
        let words = ["-n", ROOT, "apply", "--server-side", "-f", "-"];
        self.context.cluster().kubectl_with(&words, &secret.to_string()).await.map(drop)
    }

    async fn remove(&self) -> Result<()> {
        let label = format!("scenario={}", self.context.namespace);
        self.context.cluster().kubectl(&["-n", ROOT, "delete", "secret", "-l", &label]).await.map(drop)
    }
}

/// A Gateway of one server, and a VirtualService of its host on it.
async fn gateway(context: &Context<'_>, name: &str, server: &str, host: &str, routes: &str) -> Result<()> {
    context
        .apply(&format!(
            "
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {{name: {name}}}
spec:
  selector: {{istio: ingressgateway}}
  servers: [{{hosts: ['{host}'], {server}}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: {name}}}
spec: {{hosts: ['{host}'], gateways: [{name}], {routes}}}
"
        ))
        .await
}

/// HTTP to a service.
fn to(service: &str) -> String {
    format!("http: [{{route: [{{destination: {{host: {service}, port: {{number: 80}}}}}}]}}]")
}

async fn http(context: &Context<'_>) -> Result<()> {
    let server = "port: {number: 80, name: http, protocol: HTTP}";
    for (service, host) in [("first", "first.example"), ("second", "second.example")] {
        gateway(context, &format!("{service}-http"), server, host, &to(service)).await?;
    }
    for (service, host) in [("first", "first.example"), ("second", "second.example")] {
        let gateway = format!("spiffe://cluster.local/ns/{ROOT}/sa/{INGRESS}");
        eventually(REACHES, async || {
            let seen = seen(context, "world", &["-to", HTTP, &format!("http://{host}/")]).await?;
            ensure!(seen["name"] == service, "{seen}");
            let caller = seen["headers"]["X-Forwarded-Client-Cert"].to_string();
            ensure!(caller.contains(&gateway), "the gateway has no identity: {seen}");
            Ok(())
        })
        .await?;
    }
    answers(context, "world", &["-to", HTTP, "http://third.example/"], 404).await.map(drop)
}

/// The name in the certificate that is presented for a host.
async fn presented(context: &Context<'_>, host: &str) -> Result<String> {
    let words = ["certificate", "-ca", "/tls/ca.crt", "-to", HTTPS, &format!("{host}:443")];
    probe(context, "world", &words).await.map(|said| said.trim().to_owned())
}

async fn https(context: &Context<'_>, secrets: &Secrets<'_>) -> Result<()> {
    for (service, host) in [("first", "first.example"), ("second", "second.example")] {
        secrets.put(host, service).await?;
        let secret = secrets.name(host);
        let server = format!(
            "port: {{number: 443, name: https-{service}, protocol: HTTPS}}, \
             tls: {{mode: SIMPLE, credentialName: {secret}}}"
        );
        gateway(context, &format!("{service}-https"), &server, host, &to(service)).await?;
    }
    for (service, host) in [("first", "first.example"), ("second", "second.example")] {
        eventually(REACHES, async || {
            let called = presented(context, host).await?;
            ensure!(called == service, "{host} presents the certificate of {called}");
            let seen =
                seen(context, "world", &[&TRUST[..], &["-to", HTTPS, &format!("https://{host}/")]].concat()).await?;
            ensure!(seen["name"] == service, "{seen}");
            ensure!(seen["headers"]["X-Forwarded-Proto"][0] == "https", "{seen}");
            Ok(())
        })
        .await?;
    }
    match presented(context, "third.example").await {
        Ok(called) => bail!("a host that is not served has the certificate of {called}"),
        Err(_) => Ok(()),
    }
}

async fn exchanged(context: &Context<'_>, secrets: &Secrets<'_>) -> Result<()> {
    let target = ["-to", HTTPS, "-duration", "8s", "-clients", "2", "https://first.example/"];
    let (fresh, kept) = ([&TRUST[..], &["-fresh"], &target].concat(), [&TRUST[..], &target].concat());
    let exchange = async {
        for called in ["first-again", "first-once-more"] {
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
            secrets.put("first.example", called).await?;
            eventually(REACHES, async || {
                let now = presented(context, "first.example").await?;
                ensure!(now == called, "it is still that of {now}");
                Ok(())
            })
            .await?;
        }
        Ok(())
    };
    let kept = super::load(context, "world", &kept);
    let (fresh, kept) = tokio::join!(load_while(context, "world", &fresh, exchange), kept);
    fresh?.none_failed().context("with a connection for each request")?;
    kept?.none_failed().context("over connections that stay")?;
    let other = presented(context, "second.example").await?;
    ensure!(other == "second", "the other host presents {other}");
    Ok(())
}

async fn mutual(context: &Context<'_>, secrets: &Secrets<'_>) -> Result<()> {
    secrets.put("mutual.example", "mutual").await?;
    let server = format!(
        "port: {{number: 443, name: https-mutual, protocol: HTTPS}}, tls: {{mode: MUTUAL, credentialName: {}}}",
        secrets.name("mutual.example")
    );
    gateway(context, "mutual", &server, "mutual.example", &to("first")).await?;
    let target = ["-to", HTTPS, "https://mutual.example/"];
    let with = [&TRUST[..], &OWN, &target].concat();
    eventually(REACHES, async || seen(context, "world", &with).await).await?;
    match get(context, "world", &[&TRUST[..], &target].concat()).await {
        Ok((status, body)) => bail!("without a certificate: {status} {body}"),
        // Who is refused in TLS 1.3 may only see that the connection is closed.
        Err(_) => Ok(()),
    }
}

async fn passed_through(context: &Context<'_>) -> Result<()> {
    let server = "port: {number: 443, name: tls-through, protocol: TLS}, tls: {mode: PASSTHROUGH}";
    let routes = "tls: [{match: [{port: 443, sniHosts: [tls.example]}], \
                  route: [{destination: {host: secure, port: {number: 443}}}]}]";
    gateway(context, "through", server, "tls.example", routes).await?;
    eventually(REACHES, async || {
        let called = presented(context, "tls.example").await?;
        ensure!(called == "the server itself", "it is terminated by {called}");
        let seen = seen(context, "world", &[&TRUST[..], &["-to", HTTPS, "https://tls.example/"]].concat()).await?;
        ensure!(seen["name"] == "first" && seen["serverName"] == "tls.example", "{seen}");
        Ok(())
    })
    .await
}

async fn tcp(context: &Context<'_>) -> Result<()> {
    let server = "port: {number: 31400, name: tcp, protocol: TCP}";
    let routes = "tcp: [{match: [{port: 31400}], route: [{destination: {host: second, port: {number: 9000}}}]}]";
    gateway(context, "tcp", server, "*", routes).await?;
    eventually(REACHES, async || {
        let said = probe(context, "world", &["send", "istio-ingressgateway.istio-system:31400", "hello"]).await?;
        ensure!(said.contains("second hello"), "{said:?}");
        Ok(())
    })
    .await
}

/// A server that is no part of the mesh and has no Service: its host is made up, and clients dial its address, as DNS
/// would tell it to them.
struct Outside<'a> {
    context: &'a Context<'a>,
    web: String,
    tcp: String,
}

const URL: &str = "http://outside.example/";

impl Outside<'_> {
    fn words(&self) -> [&str; 3] {
        ["-to", &self.web, URL]
    }

    async fn open(&self) -> Result<()> {
        let seen = seen(self.context, "client", &self.words()).await?;
        ensure!(seen["name"] == "outside" && seen["host"] == "outside.example", "{seen}");
        Ok(())
    }

    async fn closed(&self) -> Result<()> {
        let only = "
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: default}
spec: {outboundTrafficPolicy: {mode: REGISTRY_ONLY}, egress: [{hosts: ['*/*']}]}
";
        self.context.apply(only).await?;
        answers(self.context, "client", &self.words(), 502).await?;
        // The connection is taken and closed.
        if let Ok(said) = probe(self.context, "client", &["send", "-timeout", "2s", &self.tcp, "hello"]).await {
            ensure!(said.is_empty(), "TCP is forwarded: {said:?}");
        }
        // What is declared is reached as before.
        seen(self.context, "client", &["http://second/"]).await.map(drop)
    }

    async fn declared(&self) -> Result<()> {
        let address = self.web.split(':').next().unwrap_or_default();
        let entry = format!(
            "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: outside}}
spec:
  hosts: [outside.example]
  location: MESH_EXTERNAL
  ports: [{{number: 80, name: http, protocol: HTTP}}]
  resolution: STATIC
  endpoints: [{{address: {address}}}]
"
        );
        self.context.apply(&entry).await?;
        answers(self.context, "client", &self.words(), 200).await.map(drop)
    }

    /// Goes out by the gateway's server; `server` and `port` are of the gateway, `subset` of the rule for it.
    async fn through(&self, server: &str, port: u16, subset: &str) -> Result<()> {
        let gateway = format!("{EGRESS}.{ROOT}.svc.cluster.local");
        self.context
            .apply(&format!(
                "
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {{name: egress}}
spec:
  selector: {{istio: egressgateway}}
  servers: [{{hosts: [outside.example], {server}}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: egress}}
spec:
  host: {gateway}
  subsets:
  - name: plain
  - name: mutual
    trafficPolicy: {{portLevelSettings: [{{port: {{number: 443}}, tls: {{mode: ISTIO_MUTUAL, sni: outside.example}}}}]}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: egress}}
spec:
  hosts: [outside.example]
  gateways: [mesh, egress]
  http:
  - match: [{{gateways: [mesh], port: 80}}]
    route: [{{destination: {{host: {gateway}, subset: {subset}, port: {{number: {port}}}}}}}]
  - match: [{{gateways: [egress], port: {port}}}]
    route: [{{destination: {{host: outside.example, port: {{number: 80}}}}}}]
"
            ))
            .await
    }

    /// The server sees the gateway's address instead of the client's, and the gateway tells of the request.
    async fn by_gateway(&self, path: &str) -> Result<()> {
        let gateway = address(self.context, ROOT, &format!("app={EGRESS}")).await?;
        let url = format!("{URL}{path}");
        eventually(REACHES, async || {
            let seen = seen(self.context, "client", &["-to", &self.web, &url]).await?;
            let peer = seen["peer"].as_str().unwrap_or_default();
            ensure!(peer.starts_with(&format!("{gateway}:")), "it was asked by {peer}, the gateway is {gateway}");
            Ok(())
        })
        .await?;
        eventually(REACHES, async || {
            let deployment = format!("deployment/{EGRESS}");
            let log = self.context.cluster().kubectl(&["-n", ROOT, "logs", &deployment, "--tail=50"]).await?;
            let line =
                log.lines().find(|line| line.contains(path)).with_context(|| format!("no line of it in {log}"))?;
            ensure!(line.contains("outside.example") && line.contains(" 200 "), "{line}");
            Ok(())
        })
        .await
    }

    async fn routed(&self) -> Result<()> {
        self.through("port: {number: 80, name: http, protocol: HTTP}", 80, "plain").await?;
        self.by_gateway("by-the-gateway").await
    }

    async fn by_identity(&self) -> Result<()> {
        let server = "port: {number: 443, name: https, protocol: HTTPS}, tls: {mode: ISTIO_MUTUAL}";
        self.through(server, 443, "mutual").await?;
        self.by_gateway("by-identity").await?;
        let namespace = &self.context.namespace;
        let policy = |account: &str| {
            format!(
                "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: {namespace}}}
spec:
  selector: {{matchLabels: {{istio: egressgateway}}}}
  rules: [{{from: [{{source: {{principals: [cluster.local/ns/{namespace}/sa/{account}]}}}}]}}]
"
            )
        };
        let words = ["-n", ROOT, "apply", "--server-side", "-f", "-"];
        let result = async {
            self.context.cluster().kubectl_with(&words, &policy("second")).await?;
            answers(self.context, "client", &self.words(), 403).await?;
            self.context.cluster().kubectl_with(&words, &policy("client")).await?;
            answers(self.context, "client", &self.words(), 200).await.map(drop)
        };
        let result = result.await;
        self.context.cluster().kubectl(&["-n", ROOT, "delete", "authorizationpolicy", namespace]).await?;
        result
    }
}
