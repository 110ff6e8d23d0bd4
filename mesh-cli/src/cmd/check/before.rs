//! Before an installation: is the cluster new enough, may the caller do it, is somebody else there.

use std::collections::BTreeSet;

use futures_util::StreamExt as _;
use kube::api::ApiResource;
use serde_json::{Value, json};

use super::Row;
use crate::args::CheckArgs;
use crate::client::cluster::{AT_ONCE, Cluster, gvk, name, namespace};
use crate::exit::{Failure, UNPARSABLE};
use crate::install::operator::{Sources, Wish};
use crate::install::render::{MANAGED_BY, REVISION, components};

/// Kubernetes from which on objects are as we install them (their schemas hold CEL rules).
const LEAST: u32 = 25;
/// Kubernetes from which on a sidecar can be an init container that stays.
const NATIVE_SIDECARS: u32 = 29;

/// All answers.
pub async fn rows(args: &CheckArgs) -> Result<Vec<Row>, Failure> {
    let cluster = Cluster::connect(&args.mesh.kube).await?;
    let version = cluster.version().await?;
    let mut rows = vec![of_version(&version)];
    let sources = Sources {
        namespace: Some(args.mesh.istio_namespace.clone()),
        revision: args.mesh.revision.clone(),
        ..Sources::default()
    };
    let wish = Wish::read(&sources).map_err(|why| Failure::new(UNPARSABLE, why))?;
    let (nodes, permissions, gateway_api, others, own) = tokio::join!(
        nodes(&cluster),
        permissions(&cluster, &wish),
        gateway_api(&cluster),
        others(&cluster, wish.revision()),
        own(&cluster, wish.namespace(), wish.revision()),
    );
    rows.push(nodes?);
    rows.extend(permissions?);
    rows.push(gateway_api?);
    rows.extend(others?);
    rows.extend(own?);
    Ok(rows)
}

fn of_version(version: &str) -> Row {
    let check = "Kubernetes version";
    let minor = version.trim_start_matches('v').split('.').nth(1);
    let digits = minor.map(|m| m.trim_end_matches(|c: char| !c.is_ascii_digit()));
    match digits.and_then(|m| m.parse::<u32>().ok()) {
        None => Row::warning(check, format!("{version} is no version that is understood"), "is this Kubernetes?"),
        Some(minor) if minor < LEAST => {
            Row::failed(check, version, format!("1.{LEAST} is the oldest that works; upgrade the cluster"))
        }
        Some(minor) if minor < NATIVE_SIDECARS => Row::warning(
            check,
            format!("{version} has no sidecars of its own kind: jobs with one do not end"),
            "upgrade to 1.29, or set values.pilot.env.ENABLE_NATIVE_SIDECARS=false",
        ),
        Some(_) => Row::ok(check, version),
    }
}

async fn nodes(cluster: &Cluster) -> Result<Row, Failure> {
    let check = "nodes";
    let nodes = match cluster.list(&gvk("", "v1", "Node"), None, "").await {
        Ok(nodes) => nodes,
        Err(why) => return Ok(Row::note(check, why.message, "")),
    };
    let open = nodes.iter().filter(|n| n["spec"]["unschedulable"] != true).count();
    Ok(match (open, nodes.len()) {
        (0, all) => Row::failed(check, format!("none of {all} nodes takes pods"), "kubectl uncordon NODE"),
        (open, all) => Row::ok(check, format!("{open} of {all} take pods")),
    })
}

/// Whether the caller may do all that an installation does.
async fn permissions(cluster: &Cluster, wish: &Wish) -> Result<Vec<Row>, Failure> {
    let check = "permissions";
    if may(cluster, "*", "*", "", "*").await? {
        return Ok(vec![Row::ok(check, "everything is permitted")]);
    }
    let components = components(wish).map_err(|why| Failure::new(UNPARSABLE, why))?;
    let mut wanted = BTreeSet::new();
    for object in components.iter().flat_map(|c| &c.objects) {
        let api_version = object["apiVersion"].as_str().unwrap_or_default();
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let kind = object["kind"].as_str().unwrap_or_default();
        let resource = ApiResource::from_gvk(&gvk(group, version, kind)).plural;
        for verb in ["get", "create", "patch"] {
            wanted.insert((group.to_owned(), resource.clone(), namespace(object).unwrap_or_default().to_owned(), verb));
        }
    }
    let asked = wanted.iter().map(async |(group, resource, namespace, verb)| {
        let allowed = may(cluster, group, resource, namespace, verb).await?;
        let place = if namespace.is_empty() { String::new() } else { format!(" in {namespace}") };
        let dot = if group.is_empty() { "" } else { "." };
        Ok::<_, Failure>((!allowed).then(|| format!("{verb} {resource}{dot}{group}{place}")))
    });
    let answers: Vec<_> = futures_util::stream::iter(asked).buffered(AT_ONCE).collect().await;
    let missing: Vec<String> = answers.into_iter().collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect();
    let mut rows = vec![if missing.is_empty() {
        Row::ok(check, format!("all {} that an installation takes", wanted.len()))
    } else {
        let hint = "ask for a role with these, e.g. cluster-admin";
        Row::failed(check, format!("not permitted: {}", missing.join(", ")), hint)
    }];
    let escalates = may(cluster, "rbac.authorization.k8s.io", "clusterroles", "", "escalate").await?;
    if missing.is_empty() && !escalates {
        rows.push(Row::warning(
            "permissions of roles",
            "the control plane's roles are refused where the caller has not all that they permit",
            "install as cluster-admin, or be permitted to escalate clusterroles",
        ));
    }
    Ok(rows)
}

async fn may(cluster: &Cluster, group: &str, resource: &str, namespace: &str, verb: &str) -> Result<bool, Failure> {
    let question = json!({
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "metadata": {},
        "spec": {"resourceAttributes": {"group": group, "resource": resource, "namespace": namespace, "verb": verb}},
    });
    Ok(cluster.review(&question).await?["status"]["allowed"] == true)
}

async fn definitions(cluster: &Cluster) -> Result<Vec<Value>, Failure> {
    cluster.list(&gvk("apiextensions.k8s.io", "v1", "CustomResourceDefinition"), None, "").await
}

async fn gateway_api(cluster: &Cluster) -> Result<Row, Failure> {
    let check = "Gateway API";
    let kind = gvk("apiextensions.k8s.io", "v1", "CustomResourceDefinition");
    let found = cluster.get(&kind, None, "gatewayclasses.gateway.networking.k8s.io").await?;
    Ok(match found {
        Some(definition) => {
            let version = &definition["metadata"]["annotations"]["gateway.networking.k8s.io/bundle-version"];
            Row::ok(check, version.as_str().unwrap_or("its definitions are there"))
        }
        None => Row::note(
            check,
            "its definitions are not there; only Istio's own kinds work until they are",
            "https://github.com/kubernetes-sigs/gateway-api/releases",
        ),
    })
}

/// Meshes by words in the names of their webhooks.
const MESHES: [(&str, &str); 5] = [
    ("linkerd", "Linkerd"),
    ("consul", "Consul"),
    ("kuma", "Kuma"),
    ("kong-mesh", "Kong Mesh"),
    ("osm-", "Open Service Mesh"),
];

/// Other meshes, and what they left.
async fn others(cluster: &Cluster, revision: &str) -> Result<Vec<Row>, Failure> {
    let check = "other meshes";
    let hooks = gvk("admissionregistration.k8s.io", "v1", "MutatingWebhookConfiguration");
    let deployments = gvk("apps", "v1", "Deployment");
    let (hooks, deployments, definitions) = tokio::join!(
        cluster.list(&hooks, None, ""),
        cluster.list(&deployments, None, "app=istiod"),
        definitions(cluster)
    );
    let (hooks, deployments, definitions) = (hooks?, deployments?, definitions?);
    let mut rows = Vec::new();
    for hook in &hooks {
        if let Some((_, mesh)) = MESHES.iter().find(|(word, _)| name(hook).contains(word)) {
            let detail = format!("{mesh} injects into pods (webhook {})", name(hook));
            rows.push(Row::warning(check, detail, "let no namespace be injected by both"));
        }
    }
    let foreign: Vec<&Value> = deployments.iter().filter(|d| is_istio(d)).collect();
    for deployment in &foreign {
        let of = deployment["metadata"]["labels"][REVISION].as_str().unwrap_or("default");
        let detail =
            format!("Istio's control plane {} runs as revision {of}", crate::client::cluster::title(deployment));
        rows.push(if of == revision {
            Row::failed(check, detail, "install ours beside it with --revision NAME, or uninstall it first")
        } else {
            Row::warning(check, detail, "namespaces choose by istio.io/rev")
        });
    }
    let left = hooks.iter().filter(|h| name(h).contains("istio") && !is_managed(h));
    for hook in left.filter(|_| foreign.is_empty() && deployments.is_empty()) {
        let detail = format!("webhook {} was left behind: pods may not start", name(hook));
        rows.push(Row::failed(check, detail, format!("kubectl delete mutatingwebhookconfiguration {}", name(hook))));
    }
    let of_istio = |d: &&Value| name(d).ends_with(".istio.io") && !is_managed(d);
    let kept = definitions.iter().filter(of_istio).count();
    if kept > 0 {
        let detail = format!("{kept} definitions of Istio's kinds are there already");
        rows.push(Row::note(check, detail, "newer ones are left alone; their objects hold for us, too"));
    }
    if rows.is_empty() {
        rows.push(Row::ok(check, "none"));
    }
    Ok(rows)
}

/// Installed by us.
fn is_managed(object: &Value) -> bool {
    let by = object["metadata"]["labels"][MANAGED_BY.0].as_str();
    by == Some(MANAGED_BY.1) || by == Some("Helm")
}

/// The image is Istio's own.
fn is_istio(deployment: &Value) -> bool {
    let containers = deployment["spec"]["template"]["spec"]["containers"].as_array();
    let image = |c: &Value| c["image"].as_str().unwrap_or_default().rsplit('/').next().unwrap_or_default().to_owned();
    containers.into_iter().flatten().any(|c| image(c).starts_with("pilot"))
}

/// What is here of ours.
async fn own(cluster: &Cluster, system: &str, revision: &str) -> Result<Vec<Row>, Failure> {
    let check = "earlier installations";
    let labels = format!("app=istiod,{REVISION}={revision}");
    let found = cluster.list(&gvk("apps", "v1", "Deployment"), Some(system), &labels).await?;
    if found.iter().any(|d| !is_istio(d)) {
        let detail = format!("revision {revision} is installed in {system}");
        return Ok(vec![Row::note(check, detail, "meshctl upgrade brings it up to date; meshctl check looks at it")]);
    }
    let secret = cluster.get(&gvk("", "v1", "Secret"), Some(system), "istio-ca-secret").await;
    Ok(match secret {
        Ok(Some(_)) => {
            let detail = format!("Secret {system}/istio-ca-secret holds the root of an earlier mesh, which goes on");
            vec![Row::note(check, detail, "delete it for a new root")]
        }
        _ => vec![Row::ok(check, "none")],
    })
}

#[cfg(test)]
mod tests {
    use axum::routing::{get, post};

    use super::super::Verdict;
    use super::*;

    #[test]
    fn versions_of_kubernetes() {
        let verdict = |version: &str| of_version(version).result;
        assert_eq!(verdict("v1.33.2"), Verdict::Ok);
        assert_eq!(verdict("v1.29+"), Verdict::Ok);
        assert_eq!(verdict("v1.28.1-gke.100"), Verdict::Warning);
        assert_eq!(verdict("v1.24.0"), Verdict::Failed);
        assert_eq!(verdict("nonsense"), Verdict::Warning);
    }

    /// A cluster where the caller may do everything but patch webhooks, and where Istio and Linkerd are.
    fn cluster() -> Cluster {
        let review = async |axum::Json(mut asked): axum::Json<Value>| {
            let attributes = asked["spec"]["resourceAttributes"].clone();
            let webhook = attributes["resource"] == "mutatingwebhookconfigurations" && attributes["verb"] == "patch";
            let everything = attributes["verb"] == "*";
            asked["status"] = json!({"allowed": !webhook && !everything});
            axum::Json(asked)
        };
        let list = |kind: &str, api: &str, items: Value| {
            axum::Json(json!({"apiVersion": api, "kind": kind, "metadata": {}, "items": items}))
        };
        let pilot = json!([{"metadata": {"name": "istiod", "namespace": "istio-system", "labels": {"istio.io/rev": "default"}},
            "spec": {"template": {"spec": {"containers": [{"image": "docker.io/istio/pilot:1.29"}]}}}}]);
        let deployments = list("DeploymentList", "apps/v1", pilot);
        let hooks = list(
            "MutatingWebhookConfigurationList",
            "admissionregistration.k8s.io/v1",
            json!([{"metadata": {"name": "linkerd-proxy-injector-webhook-config"}}]),
        );
        let definitions = list(
            "CustomResourceDefinitionList",
            "apiextensions.k8s.io/v1",
            json!([{"metadata": {"name": "virtualservices.networking.istio.io"}}]),
        );
        let reviews = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
        let router = axum::Router::new()
            .route(reviews, post(review))
            .route("/apis/apps/v1/deployments", get(async || deployments))
            .route("/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations", get(async || hooks))
            .route("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", get(async || definitions));
        Cluster::of_router(router)
    }

    #[tokio::test]
    async fn missing_permissions_are_named() {
        let wish = Wish::read(&Sources::default()).unwrap();
        let rows = permissions(&cluster(), &wish).await.unwrap();
        assert_eq!(rows[0].result, Verdict::Failed);
        let detail = "not permitted: patch mutatingwebhookconfigurations.admissionregistration.k8s.io";
        assert_eq!(rows[0].detail, detail);
    }

    #[tokio::test]
    async fn other_meshes_are_named() {
        let rows = others(&cluster(), "default").await.unwrap();
        let all: Vec<(Verdict, &str)> = rows.iter().map(|r| (r.result, r.detail.as_str())).collect();
        assert!(all[0].0 == Verdict::Warning && all[0].1.contains("Linkerd"), "{all:?}");
        assert!(all[1].0 == Verdict::Failed && all[1].1.contains("revision default"), "{all:?}");
        assert!(all[2].0 == Verdict::Note && all[2].1.starts_with("1 definitions"), "{all:?}");
        let beside = others(&cluster(), "blue").await.unwrap();
        assert_eq!(beside[1].result, Verdict::Warning);
    }
}
