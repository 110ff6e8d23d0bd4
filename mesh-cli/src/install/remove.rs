//! What is removed by `uninstall`, found by its labels.

use serde_json::Value;

use super::render::{MANAGED_BY, REVISION};
use crate::client::cluster::{Cluster, gvk, name};
use crate::exit::Failure;

/// Kinds that are installed, in the order in which they are removed: nothing may be asked that is gone already.
const KINDS: &[(&str, &str, &str)] = &[
    ("admissionregistration.k8s.io", "v1", "MutatingWebhookConfiguration"),
    ("admissionregistration.k8s.io", "v1", "ValidatingWebhookConfiguration"),
    ("autoscaling", "v2", "HorizontalPodAutoscaler"),
    ("policy", "v1", "PodDisruptionBudget"),
    ("apps", "v1", "Deployment"),
    ("", "v1", "Service"),
    ("", "v1", "ConfigMap"),
    ("", "v1", "ServiceAccount"),
    ("rbac.authorization.k8s.io", "v1", "RoleBinding"),
    ("rbac.authorization.k8s.io", "v1", "Role"),
    ("rbac.authorization.k8s.io", "v1", "ClusterRoleBinding"),
    ("rbac.authorization.k8s.io", "v1", "ClusterRole"),
];

/// Objects of one revision.
///
/// # Errors
/// When the server cannot be asked.
pub async fn revision(cluster: &Cluster, revision: &str) -> Result<Vec<Value>, Failure> {
    labelled(cluster, KINDS, &format!("{}={},{REVISION}={revision}", MANAGED_BY.0, MANAGED_BY.1)).await
}

/// Everything that was installed, and what the control plane made.
///
/// # Errors
/// When the server cannot be asked.
pub async fn everything(cluster: &Cluster, system: &str) -> Result<Vec<Value>, Failure> {
    let ours = format!("{}={}", MANAGED_BY.0, MANAGED_BY.1);
    let mut all = labelled(cluster, KINDS, &ours).await?;
    // Gateways of Gateway API objects, whose owner is about to go.
    let managed = "gateway.istio.io/managed=istio.io-gateway-controller";
    all.extend(labelled(cluster, KINDS, managed).await?);
    let made = |kind: &'static str, names: &'static [&'static str], namespace: Option<&str>| {
        let namespace = namespace.map(str::to_owned);
        async move {
            let found = cluster.list(&gvk("", "v1", kind), namespace.as_deref(), "").await?;
            Ok::<_, Failure>(found.into_iter().filter(|o| names.contains(&name(o))).collect::<Vec<_>>())
        }
    };
    all.extend(made("ConfigMap", &["istio-ca-root-cert", "istio-ca-crl"], None).await?);
    all.extend(made("Secret", &["istio-ca-secret"], Some(system)).await?);
    let leases = cluster.list(&gvk("coordination.k8s.io", "v1", "Lease"), Some(system), "").await?;
    all.extend(leases.into_iter().filter(|l| name(l).starts_with("istio") || name(l).starts_with("mesh")));
    let classes = cluster.list(&gvk("gateway.networking.k8s.io", "v1", "GatewayClass"), None, "").await?;
    let of_ours = |c: &Value| c["spec"]["controllerName"].as_str().is_some_and(|n| n.starts_with("istio.io/"));
    all.extend(classes.into_iter().filter(of_ours));
    const LAST: &[(&str, &str, &str)] =
        &[("apiextensions.k8s.io", "v1", "CustomResourceDefinition"), ("", "v1", "Namespace")];
    all.extend(labelled(cluster, LAST, &ours).await?);
    let mut seen = std::collections::HashSet::new();
    all.retain(|o| seen.insert(crate::client::cluster::title(o)));
    Ok(all)
}

async fn labelled(cluster: &Cluster, kinds: &[(&str, &str, &str)], labels: &str) -> Result<Vec<Value>, Failure> {
    let mut all = Vec::new();
    for (group, version, kind) in kinds {
        all.extend(cluster.list(&gvk(group, version, kind), None, labels).await?);
    }
    Ok(all)
}
