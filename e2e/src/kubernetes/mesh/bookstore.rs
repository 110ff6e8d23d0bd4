//! The bookstore, from the files that users apply: the page through the ingress gateway, every hop encrypted and named.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;

use super::super::{Context, eventually, reach};
use super::{PATIENCE, REACHES, ROOT, Workload, get, joined, service, start, wire};

/// Where the gateway is reached from pods.
const GATEWAY: &str = "istio-ingressgateway.istio-system:80";

pub(in super::super) async fn run(context: &Context<'_>) -> Result<()> {
    joined(context).await?;
    context.check("the files of the sample are applied, and all is ready", begin(context)).await?;
    context.check("the page comes through the ingress gateway", page(context)).await?;
    let _ = context.check("every hop is encrypted, and each knows who calls it", identities(context)).await;
    if context.is_near() {
        let _ = context.check("no hop between services is in clear on the wire", wired(context)).await;
    }
    let _ = context.check("a tenth and a cohort get the new catalog", canary(context)).await;
    context.check("each service serves only the one that calls it", secured(context)).await
}

/// Applies a file of the sample.
async fn sample(context: &Context<'_>, name: &str) -> Result<()> {
    let path = crate::python::folder("../deploy/samples/kubernetes").join(name);
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    context.apply(&text).await
}

async fn begin(context: &Context<'_>) -> Result<()> {
    for file in ["bookstore.yaml", "gateway.yaml"] {
        sample(context, file).await?;
    }
    start(context, &[Workload::new("inside"), Workload::plain("browser")], &service("inside")).await?;
    for deployment in ["webapp-v1", "catalog-v1", "catalog-v2", "forum-v1"] {
        context.rolled_out(deployment, PATIENCE).await?;
    }
    Ok(())
}

/// What the applications tell of a request: each of itself, and what the next one said.
#[derive(Debug, Deserialize)]
struct Journey {
    service: String,
    version: String,
    caller: Option<String>,
    own: Option<String>,
    encrypted: bool,
    next: Option<Box<Journey>>,
}

impl Journey {
    /// From the first service to the last.
    fn hops(&self) -> Vec<&Journey> {
        std::iter::successors(Some(self), |hop| hop.next.as_deref()).collect()
    }
}

/// A request from outside through the gateway.
async fn journey(context: &Context<'_>, words: &[&str]) -> Result<Journey> {
    let target = ["-to", GATEWAY, "http://bookstore.example/journey"];
    let (status, body) = get(context, "browser", &[words, &target].concat()).await?;
    ensure!(status == 200, "{status} {body}");
    serde_json::from_str(&body).with_context(|| format!("no journey in {body}"))
}

async fn page(context: &Context<'_>) -> Result<()> {
    eventually(REACHES, async || {
        let (status, body) = get(context, "browser", &["-to", GATEWAY, "http://bookstore.example/"]).await?;
        ensure!(status == 200 && body.contains("id=\"journey\""), "{status} {body}");
        Ok(())
    })
    .await?;
    if !context.is_near() {
        return Ok(());
    }
    // And from this machine, as a browser on it would.
    let service = context.cluster().json(&["-n", ROOT, "get", "service", "istio-ingressgateway"]).await?;
    let ip = service["status"]["loadBalancer"]["ingress"][0]["ip"].as_str().context("the gateway has no address")?;
    let (status, body) = reach::get(&format!("{ip}:80"), "/journey").await?;
    ensure!(status == 200 && body.contains("\"service\":\"webapp\""), "{status} {body}");
    Ok(())
}

async fn identities(context: &Context<'_>) -> Result<()> {
    let journey = journey(context, &[]).await?;
    let of = |namespace: &str, account: &str| format!("spiffe://cluster.local/ns/{namespace}/sa/{account}");
    let services = ["webapp", "catalog", "forum"];
    let hops = journey.hops();
    ensure!(hops.iter().map(|hop| hop.service.as_str()).eq(services), "{journey:?}");
    let mut caller = of(ROOT, "istio-ingressgateway");
    for hop in hops {
        let own = of(&context.namespace, &hop.service);
        ensure!(
            hop.encrypted && hop.caller.as_ref() == Some(&caller),
            "{} was to be called by {caller}: {hop:?}",
            hop.service
        );
        ensure!(hop.own.as_ref() == Some(&own), "{} was to be {own}: {hop:?}", hop.service);
        caller = own;
    }
    Ok(())
}

async fn wired(context: &Context<'_>) -> Result<()> {
    // A header that all services hand on, from a caller whose own hop is encrypted too.
    let marker = "marker-of-the-bookstore";
    let ask = |from: &'static str, target: &'static str| async move {
        for _ in 0..5 {
            let header = format!("x-user: {marker}");
            let (status, body) = get(context, from, &["-header", &header, target]).await?;
            ensure!(status == 200, "{status} {body}");
        }
        Ok(())
    };
    let plain = wire::saw(context, marker, ask("browser", "http://inside/")).await?;
    ensure!(plain, "the marker of a request in clear was not seen on the wire");
    let meshed = wire::saw(context, marker, ask("inside", "http://webapp/journey")).await?;
    ensure!(!meshed, "the marker of a request between services was seen on the wire");
    Ok(())
}

async fn canary(context: &Context<'_>) -> Result<()> {
    sample(context, "catalog-canary.yaml").await?;
    let version = async |words: &[&str]| {
        let journey = journey(context, words).await?;
        let catalog = journey.next.context("webapp asked nobody")?;
        Ok::<_, anyhow::Error>(catalog.version)
    };
    // Without the rule half of these would be v1.
    eventually(REACHES, async || {
        for _ in 0..8 {
            let version = version(&["-header", "x-user: me"]).await?;
            ensure!(version == "v2", "the cohort got {version}");
        }
        Ok(())
    })
    .await?;
    let mut by = BTreeMap::<String, u32>::new();
    for _ in 0..40 {
        *by.entry(version(&[]).await?).or_default() += 1;
    }
    // Of 40 at 90 %: less than 27 come once in a hundred thousand times.
    let first = by.get("v1").copied().unwrap_or_default();
    if first < 27 {
        bail!("{by:?} of 40 instead of 90 %");
    }
    Ok(())
}

async fn secured(context: &Context<'_>) -> Result<()> {
    sample(context, "security.yaml").await?;
    for service in ["webapp", "catalog", "forum"] {
        let target = format!("http://{service}/journey");
        eventually(REACHES, async || {
            let (status, body) = get(context, "inside", &[&target]).await?;
            ensure!(status == 403 && body.contains("RBAC: access denied"), "{status} {body}");
            Ok(())
        })
        .await?;
        if let Ok((status, body)) = get(context, "browser", &[&target]).await {
            bail!("{service} serves a caller without certificate: {status} {body}");
        }
    }
    identities(context).await
}
