//! What is installed: definitions, Deployments, webhooks, control planes and their certificates.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use futures_util::future::join_all;
use mesh_control::source::object::Kind;
use mesh_proxy::tls::CertificateFacts;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::Value;

use super::{Row, Verdict};
use crate::args::CheckArgs;
use crate::client::cluster::{Cluster, gvk, name, title};
use crate::client::mesh::Mesh;
use crate::cmd::version;
use crate::exit::Failure;
use crate::install::render::{MANAGED_BY, REVISION};
use crate::install::wait;

/// Roots that end within this time are warned of.
const ROOT_ENDS: Duration = Duration::from_secs(30 * 24 * 3600);

/// All answers.
pub async fn rows(args: &CheckArgs) -> Result<Vec<Row>, Failure> {
    let cluster = Cluster::connect(&args.mesh.kube).await?;
    let system = &args.mesh.istio_namespace;
    let revision = args.mesh.revision.as_deref();
    let (definitions, deployments, webhooks, root, planes) = tokio::join!(
        definitions(&cluster),
        deployments(&cluster, system, revision),
        webhooks(&cluster, revision),
        root(&cluster, system),
        planes(args),
    );
    let mut rows = vec![definitions?];
    rows.extend(deployments?);
    rows.extend(webhooks?);
    rows.extend(planes?);
    rows.extend(root?);
    Ok(rows)
}

/// Istio's kinds are served.
async fn definitions(cluster: &Cluster) -> Result<Row, Failure> {
    let kind = gvk("apiextensions.k8s.io", "v1", "CustomResourceDefinition");
    let live = cluster.list(&kind, None, "").await?;
    let wanted: Vec<String> = Kind::ALL
        .into_iter()
        .filter(|kind| kind.group().ends_with(".istio.io"))
        .map(|kind| format!("{}.{}", kind.plural(), kind.group()))
        .collect();
    let lacks = |wanted: &String| match live.iter().find(|d| name(d) == wanted) {
        None => Some(format!("{wanted} is missing")),
        Some(definition) => wait::unready(definition).map(|why| format!("{wanted}: {why}")),
    };
    let bad: Vec<String> = wanted.iter().filter_map(lacks).collect();
    let good = format!("{} kinds are served", wanted.len());
    Ok(Row::of("definitions", bad, good, Verdict::Failed, "meshctl install, or the chart base"))
}

/// Control planes and gateways have their pods.
async fn deployments(cluster: &Cluster, system: &str, revision: Option<&str>) -> Result<Vec<Row>, Failure> {
    let kind = gvk("apps", "v1", "Deployment");
    let of_revision = revision.map(|r| format!(",{REVISION}={r}")).unwrap_or_default();
    let own = format!("{}={}{of_revision}", MANAGED_BY.0, MANAGED_BY.1);
    let (planes, gateways) = (format!("app=istiod{of_revision}"), "gateway.istio.io/managed");
    let (planes, own, gateways) = tokio::join!(
        cluster.list(&kind, Some(system), &planes),
        cluster.list(&kind, None, &own),
        cluster.list(&kind, None, gateways),
    );
    let planes = planes?;
    let mut rows = Vec::new();
    if planes.is_empty() {
        let revision = revision.map(|r| format!(" of revision {r}")).unwrap_or_default();
        let detail = format!("there is none{revision} in namespace {system}");
        rows.push(Row::failed("control plane", detail, "meshctl install; -i names another namespace"));
    }
    let mut seen = BTreeSet::new();
    for (check, deployment) in planes
        .iter()
        .map(|d| ("control plane", d))
        .chain(own?.iter().chain(&gateways?).map(|d| ("gateway", d)))
        .filter(|(_, d)| seen.insert(title(d)))
    {
        let title = title(deployment);
        let count = deployment["status"]["readyReplicas"].as_u64().unwrap_or(0);
        rows.push(match wait::unready(deployment) {
            None if count == 0 => Row::failed(
                check,
                format!("{title} is scaled to 0"),
                format!("kubectl -n {} scale deployment/{} --replicas=1", space(deployment), name(deployment)),
            ),
            None => Row::ok(check, format!("{title}: {count} pods are ready")),
            Some(why) => {
                let mut reasons = vec![format!("{title}: {why}")];
                reasons.extend(wait::reasons(cluster, deployment).await);
                Row::failed(check, reasons.join("; "), format!("kubectl -n {} describe pods", space(deployment)))
            }
        });
    }
    Ok(rows)
}

fn space(object: &Value) -> &str {
    object["metadata"]["namespace"].as_str().unwrap_or_default()
}

/// Webhooks know their control plane, and lead to one that lives.
async fn webhooks(cluster: &Cluster, revision: Option<&str>) -> Result<Vec<Row>, Failure> {
    let labels = revision.map_or_else(|| "app=istiod".to_owned(), |r| format!("app=istiod,{REVISION}={r}"));
    let mut rows = Vec::new();
    for kind in ["MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"] {
        let found = cluster.list(&gvk("admissionregistration.k8s.io", "v1", kind), None, &labels).await?;
        if found.is_empty() {
            rows.push(Row::failed("webhooks", format!("there is no {kind} of the mesh"), "meshctl install"));
        }
        for webhook in &found {
            rows.push(of_webhook(cluster, webhook).await?);
        }
    }
    Ok(rows)
}

async fn of_webhook(cluster: &Cluster, webhook: &Value) -> Result<Row, Failure> {
    let check = "webhooks";
    let title = title(webhook);
    let rules = webhook["webhooks"].as_array().map(Vec::as_slice).unwrap_or_default();
    if rules.iter().any(|r| r["clientConfig"]["caBundle"].as_str().unwrap_or_default().is_empty()) {
        let hint = "the leading control plane enters it within seconds; its log tells why it cannot";
        return Ok(Row::failed(check, format!("{title} has no certificate of the control plane"), hint));
    }
    let services: BTreeSet<(&str, &str)> = rules
        .iter()
        .filter_map(|r| {
            let service = &r["clientConfig"]["service"];
            Some((service["namespace"].as_str()?, service["name"].as_str()?))
        })
        .collect();
    for (namespace, service) in services {
        if cluster.get(&gvk("", "v1", "Service"), Some(namespace), service).await?.is_none() {
            let detail = format!("{title} leads to Service {namespace}/{service}, which is not there");
            return Ok(Row::failed(check, detail, "meshctl install, or delete the webhook: pods may not start"));
        }
        let slices = gvk("discovery.k8s.io", "v1", "EndpointSlice");
        let label = format!("kubernetes.io/service-name={service}");
        let slices = cluster.list(&slices, Some(namespace), &label).await?;
        let endpoints = slices.iter().filter_map(|s| s["endpoints"].as_array()).flatten();
        if !endpoints.into_iter().any(|e| e["conditions"]["ready"] != false) {
            let detail = format!("{title} leads to Service {namespace}/{service}, where nobody answers");
            return Ok(Row::failed(check, detail, "pods and objects are refused until the control plane is ready"));
        }
    }
    let ignored = rules.iter().any(|r| r["failurePolicy"] == "Ignore");
    if ignored && webhook["kind"] == "ValidatingWebhookConfiguration" {
        let hint = "the control plane sets failurePolicy to Fail once it leads";
        return Ok(Row::warning(check, format!("{title} lets pass what nobody looked at"), hint));
    }
    Ok(Row::ok(check, format!("{title} has a certificate and leads to a control plane")))
}

/// Every control plane answers, and all have one version.
async fn planes(args: &CheckArgs) -> Result<Vec<Row>, Failure> {
    let check = "control plane answers";
    let mesh = Mesh::find(&args.mesh).await?;
    let planes = match mesh.control_planes().await {
        Ok(planes) => planes,
        Err(why) => {
            let first = why.message.lines().next().unwrap_or_default().to_owned();
            return Ok(vec![Row::failed(check, first, "kubectl -n istio-system get pods -l app=istiod")]);
        }
    };
    let answers = planes.iter().map(async |plane| {
        let ready = plane.server.good("/ready").await;
        let version = version::of_plane(plane).await;
        (plane, ready.and(version))
    });
    let mut rows = Vec::new();
    let mut versions = BTreeSet::new();
    for (plane, version) in join_all(answers).await {
        rows.push(match version {
            Ok(version) => {
                let row = Row::ok(check, format!("{}: version {version}", plane.name));
                versions.insert(version);
                row
            }
            Err(why) => Row::failed(check, format!("{}: {}", plane.name, why.message.replace('\n', " ")), ""),
        });
    }
    let check = "versions";
    let own = env!("CARGO_PKG_VERSION");
    let others: Vec<&str> = versions.iter().map(String::as_str).filter(|v| *v != own).collect();
    if !others.is_empty() {
        let detail = format!("meshctl is {own}, control planes are {}", others.join(", "));
        rows.push(Row::warning(check, detail, "use the meshctl of the control plane's version, or meshctl upgrade"));
    } else if !versions.is_empty() {
        rows.push(Row::ok(check, format!("meshctl and all control planes are {own}")));
    }
    Ok(rows)
}

/// The root certificate holds for a while.
async fn root(cluster: &Cluster, system: &str) -> Result<Vec<Row>, Failure> {
    let check = "root certificate";
    let map = cluster.get(&gvk("", "v1", "ConfigMap"), Some(system), "istio-ca-root-cert").await?;
    let Some(map) = map else {
        let hint = "the control plane writes it; its log tells why it cannot";
        return Ok(vec![Row::failed(check, format!("ConfigMap {system}/istio-ca-root-cert is not there"), hint)]);
    };
    let pem = map["data"]["root-cert.pem"].as_str().unwrap_or_default();
    Ok(vec![of_roots(pem, SystemTime::now())])
}

fn of_roots(pem: &str, now: SystemTime) -> Row {
    let check = "root certificate";
    let mut ends: Vec<SystemTime> = CertificateDer::pem_slice_iter(pem.as_bytes())
        .filter_map(|certificate| CertificateFacts::parse(&certificate.ok()?).ok())
        .filter_map(|facts| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(facts.not_after.try_into().ok()?)))
        .collect();
    // Others beside the last are old roots, or new ones.
    ends.sort();
    let Some(end) = ends.last() else {
        return Row::failed(check, "ConfigMap istio-ca-root-cert holds no certificate", "the control plane writes it");
    };
    let until = mesh_api::xds::json::timestamp(*end);
    match end.duration_since(now) {
        Err(_) => Row::failed(check, format!("it ended at {until}"), "put a new one into Secret cacerts"),
        Ok(left) if left < ROOT_ENDS => {
            Row::warning(check, format!("it ends at {until}"), "put a new one into Secret cacerts before")
        }
        Ok(_) => Row::ok(check, format!("it holds until {until}")),
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use serde_json::json;

    use super::*;

    /// It held from 2020 to 2021.
    const PEM: &str = include_str!("../proxy_config/testdata/expired.pem");

    #[test]
    fn roots_that_end() {
        let at = |year: u64| SystemTime::UNIX_EPOCH + Duration::from_secs((year - 1970) * 31_557_000);
        let in_2020 = at(2020) + Duration::from_secs(200 * 24 * 3600);
        assert_eq!(of_roots(PEM, in_2020).result, Verdict::Ok);
        assert_eq!(of_roots(PEM, in_2020 + Duration::from_secs(150 * 24 * 3600)).result, Verdict::Warning);
        assert_eq!(of_roots(PEM, at(2022)).result, Verdict::Failed);
        assert_eq!(of_roots("", at(2020)).result, Verdict::Failed);
    }

    #[tokio::test]
    async fn a_webhook_must_lead_to_somebody() {
        let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "istiod"}});
        let slices = |ready: bool| {
            json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSliceList", "metadata": {},
                "items": [{"metadata": {"name": "istiod-1"}, "endpoints": [{"conditions": {"ready": ready}}]}]})
        };
        let none = json!({"apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure", "code": 404,
            "reason": "NotFound", "message": "none"});
        let cluster = |ready: bool| {
            let (service, slices, none) = (service.clone(), slices(ready), none.clone());
            let router = axum::Router::new()
                .route("/api/v1/namespaces/istio-system/services/istiod", get(async || axum::Json(service)))
                .route(
                    "/apis/discovery.k8s.io/v1/namespaces/istio-system/endpointslices",
                    get(async || axum::Json(slices)),
                )
                .fallback(async || (http::StatusCode::NOT_FOUND, axum::Json(none)));
            Cluster::of_router(router)
        };
        let hook = |service: &str, bundle: &str| {
            json!({"kind": "MutatingWebhookConfiguration", "metadata": {"name": "injector"}, "webhooks": [
                {"clientConfig": {"caBundle": bundle, "service": {"namespace": "istio-system", "name": service}}}]})
        };
        let verdict = async |ready, hook| of_webhook(&cluster(ready), &hook).await.unwrap().result;
        assert_eq!(verdict(true, hook("istiod", "Q0E=")).await, Verdict::Ok);
        assert_eq!(verdict(false, hook("istiod", "Q0E=")).await, Verdict::Failed);
        assert_eq!(verdict(true, hook("istiod", "")).await, Verdict::Failed);
        assert_eq!(verdict(true, hook("gone", "Q0E=")).await, Verdict::Failed);
    }
}
