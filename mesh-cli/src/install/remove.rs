//! What is removed by `uninstall`: what was installed, found by its labels, and what the control plane made of it.
//!
//! What somebody else needs is left: of a cluster with another control plane whatever both use, and namespaces that
//! hold anything that was not installed.

use std::collections::{BTreeSet, HashSet};

use serde_json::Value;

use super::render::{Component, INSTALLED, MANAGED_BY, REVISION};
use crate::client::cluster::{Cluster, gvk, name, namespace, title};
use crate::exit::Failure;

/// Group, version and kind.
type Kind = (&'static str, &'static str, &'static str);

/// Kinds that are installed, in the order in which they are removed: nothing may be asked that is gone already.
const KINDS: &[Kind] = &[
    OF_CLUSTER[0],
    OF_CLUSTER[1],
    ("autoscaling", "v2", "HorizontalPodAutoscaler"),
    ("policy", "v1", "PodDisruptionBudget"),
    DEPLOYMENT,
    ("", "v1", "Service"),
    ("", "v1", "ConfigMap"),
    ("", "v1", "ServiceAccount"),
    ("rbac.authorization.k8s.io", "v1", "RoleBinding"),
    ("rbac.authorization.k8s.io", "v1", "Role"),
    OF_CLUSTER[2],
    OF_CLUSTER[3],
];
/// Those of them without a namespace.
const OF_CLUSTER: [Kind; 4] = [
    ("admissionregistration.k8s.io", "v1", "MutatingWebhookConfiguration"),
    ("admissionregistration.k8s.io", "v1", "ValidatingWebhookConfiguration"),
    ("rbac.authorization.k8s.io", "v1", "ClusterRoleBinding"),
    ("rbac.authorization.k8s.io", "v1", "ClusterRole"),
];
const DEPLOYMENT: Kind = ("apps", "v1", "Deployment");
const LEASE: Kind = ("coordination.k8s.io", "v1", "Lease");
const SECRET: Kind = ("", "v1", "Secret");
const DEFINITION: Kind = ("apiextensions.k8s.io", "v1", "CustomResourceDefinition");
const NAMESPACE: Kind = ("", "v1", "Namespace");

/// What a namespace may hold that is somebody's work.
const CONTENT: &[Kind] = &[
    DEPLOYMENT,
    ("apps", "v1", "StatefulSet"),
    ("apps", "v1", "DaemonSet"),
    ("batch", "v1", "CronJob"),
    ("batch", "v1", "Job"),
    ("", "v1", "Pod"),
    ("", "v1", "Service"),
    ("", "v1", "PersistentVolumeClaim"),
    SECRET,
    ("", "v1", "ConfigMap"),
    ("", "v1", "ServiceAccount"),
];

/// What every namespace has by itself.
const OF_KUBERNETES: &[&str] = &["kube-root-ca.crt", "default"];
/// Label of Deployments of control planes, ours and others'.
const CONTROL_PLANES: &str = "app=istiod";
/// The control plane's root in every namespace, and what it revokes.
const ROOTS: &[&str] = &["istio-ca-root-cert", "istio-ca-crl"];
/// The key of the certificate authority.
const CA: &str = "istio-ca-secret";

/// What is to be removed, and what is not.
#[derive(Debug, Default)]
pub struct Found {
    /// In the order in which they are removed.
    pub objects: Vec<Value>,
    /// What is left, and why.
    pub left: Vec<String>,
}

/// Objects that a component has in its namespace and that are not among those that it is to have. Another mesh of the
/// cluster may have a component of the same name elsewhere.
///
/// # Errors
/// When the server cannot be asked.
pub async fn outdated(cluster: &Cluster, component: &Component, revision: &str) -> Result<Vec<Value>, Failure> {
    let labels = format!("{INSTALLED},{REVISION}={revision},app.kubernetes.io/instance={}", component.name);
    let now: HashSet<String> = component.objects.iter().map(title).collect();
    let mut found = Vec::new();
    for one in KINDS.iter().filter(|k| !OF_CLUSTER.contains(k)) {
        let objects = cluster.list(&kind(*one), Some(&component.namespace), &labels).await?;
        found.extend(objects.into_iter().filter(|o| !now.contains(&title(o))));
    }
    Ok(found)
}

/// Objects of one revision.
///
/// # Errors
/// When the server cannot be asked.
pub async fn revision(cluster: &Cluster, revision: &str) -> Result<Found, Failure> {
    let mut objects = labelled(cluster, KINDS, &format!("{INSTALLED},{REVISION}={revision}")).await?;
    let lease = match revision {
        "default" => "istio-leader".to_owned(),
        revision => format!("istio-leader-{revision}"),
    };
    for space in namespaces_of(&objects) {
        let leases = cluster.list(&kind(LEASE), Some(&space), "").await?;
        objects.extend(leases.into_iter().filter(|l| name(l) == lease));
    }
    Ok(Found { objects, left: vec![] })
}

/// Everything that was installed, and what the control plane made. `system`: a namespace where one was, though nothing
/// of it may be left.
///
/// # Errors
/// When the server cannot be asked.
pub async fn everything(cluster: &Cluster, system: &str) -> Result<Found, Failure> {
    let mut objects = labelled(cluster, KINDS, INSTALLED).await?;
    let control_planes = cluster.list(&kind(DEPLOYMENT), None, CONTROL_PLANES).await?;
    let is_ours = |o: &&Value| o["metadata"]["labels"][MANAGED_BY.0] == MANAGED_BY.1;
    let others: Vec<&Value> = control_planes.iter().filter(|o| !is_ours(o)).collect();
    let mut systems = namespaces_of(&objects);
    systems.insert(system.to_owned());
    let mut left = Vec::new();
    if others.is_empty() {
        objects.extend(shared(cluster).await?);
    } else {
        let titles: Vec<String> = others.iter().map(|o| title(o)).collect();
        left.push(format!(
            "definitions, root certificates and gateway classes: {} was not installed by meshctl and needs them",
            titles.join(", ")
        ));
    }
    for space in systems {
        if others.iter().any(|o| namespace(o) == Some(&space)) {
            left.push(format!("the certificate authority's key and leases in {space}: they are the other's, too"));
            continue;
        }
        let secrets = cluster.named(&kind(SECRET), CA).await?;
        objects.extend(secrets.into_iter().filter(|s| namespace(s) == Some(&space)));
        let leases = cluster.list(&kind(LEASE), Some(&space), "").await?;
        objects.extend(leases.into_iter().filter(|l| name(l).starts_with("istio-leader")));
    }
    if others.is_empty() {
        objects.extend(labelled(cluster, &[DEFINITION], INSTALLED).await?);
    }
    let mut seen = HashSet::new();
    objects.retain(|o| seen.insert(title(o)));
    for space in labelled(cluster, &[NAMESPACE], INSTALLED).await? {
        match content(cluster, name(&space), &seen).await?.as_slice() {
            [] => objects.push(space),
            [one] => left.push(format!("namespace {}: it holds {one}", name(&space))),
            [one, more @ ..] => {
                left.push(format!("namespace {}: it holds {one} and {} more", name(&space), more.len()));
            }
        }
    }
    Ok(Found { objects, left })
}

/// What all control planes of a cluster share.
async fn shared(cluster: &Cluster) -> Result<Vec<Value>, Failure> {
    // Gateways of Gateway API objects, whose owner is about to go.
    let mut all = labelled(cluster, KINDS, "gateway.istio.io/managed=istio.io-gateway-controller").await?;
    for root in ROOTS {
        all.extend(cluster.named(&gvk("", "v1", "ConfigMap"), root).await?);
    }
    let classes = cluster.list(&gvk("gateway.networking.k8s.io", "v1", "GatewayClass"), None, "").await?;
    let of_ours = |c: &Value| c["spec"]["controllerName"].as_str().is_some_and(|n| n.starts_with("istio.io/"));
    all.extend(classes.into_iter().filter(of_ours));
    Ok(all)
}

/// What a namespace holds beside what is removed.
async fn content(cluster: &Cluster, space: &str, removed: &HashSet<String>) -> Result<Vec<String>, Failure> {
    let mut found = Vec::new();
    for one in CONTENT {
        let objects = cluster.list(&kind(*one), Some(space), "").await?;
        found.extend(objects.iter().filter(|o| is_somebodys(o, removed)).map(title));
    }
    Ok(found)
}

/// Whether somebody made an object, who would miss it.
fn is_somebodys(object: &Value, removed: &HashSet<String>) -> bool {
    let owned = object["metadata"]["ownerReferences"].as_array().is_some_and(|owners| !owners.is_empty());
    let by_itself = OF_KUBERNETES.contains(&name(object)) || ROOTS.contains(&name(object));
    !owned && !by_itself && !removed.contains(&title(object))
}

/// Namespaces of the control planes among objects.
fn namespaces_of(objects: &[Value]) -> BTreeSet<String> {
    let control_plane = |o: &&Value| o["kind"] == "Deployment" && o["metadata"]["labels"]["app"] == "istiod";
    objects.iter().filter(control_plane).filter_map(namespace).map(str::to_owned).collect()
}

fn kind((group, version, kind): Kind) -> kube::core::GroupVersionKind {
    gvk(group, version, kind)
}

async fn labelled(cluster: &Cluster, kinds: &[Kind], labels: &str) -> Result<Vec<Value>, Failure> {
    let mut all = Vec::new();
    for one in kinds {
        all.extend(cluster.list(&kind(*one), None, labels).await?);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_namespace_holds_what_nobody_else_would_make_again() {
        let object = |kind: &str, name: &str| json!({"kind": kind, "metadata": {"name": name, "namespace": "a"}});
        let removed = HashSet::from(["Deployment a/istiod".to_owned()]);
        for (kind, name, wanted) in [
            ("Deployment", "istiod", false),
            ("Deployment", "prometheus", true),
            ("ConfigMap", "kube-root-ca.crt", false),
            ("ConfigMap", "istio-ca-root-cert", false),
            ("ServiceAccount", "default", false),
            ("Secret", "certificate", true),
        ] {
            assert_eq!(is_somebodys(&object(kind, name), &removed), wanted, "{kind} {name}");
        }
        let mut pod = object("Pod", "istiod-1");
        pod["metadata"]["ownerReferences"] = json!([{"kind": "ReplicaSet"}]);
        assert!(!is_somebodys(&pod, &removed), "its owner is looked at");
    }

    #[test]
    fn namespaces_are_those_of_control_planes() {
        let deployment = |app: &str| {
            let metadata = json!({"name": app, "namespace": app, "labels": {"app": app}});
            json!({"kind": "Deployment", "metadata": metadata})
        };
        let found = namespaces_of(&[deployment("istiod"), deployment("gateway")]);
        assert_eq!(found, BTreeSet::from(["istiod".to_owned()]));
    }
}
