//! From a wish to objects: what `manifest generate` prints and `install` applies.

use serde_json::{Value, json};

use super::operator::Wish;

/// Who manages an object; what `uninstall` looks for.
pub const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "meshctl");
/// Selects everything that was installed: others may call themselves meshctl, too.
pub const INSTALLED: &str = "app.kubernetes.io/managed-by=meshctl,app.kubernetes.io/part-of=istio";
/// Revision of an object.
pub const REVISION: &str = "istio.io/rev";

/// The objects of one release.
#[derive(Debug, Clone)]
pub struct Component {
    /// Of the release; what it is called in messages.
    pub name: String,
    /// Namespace of the release.
    pub namespace: String,
    /// In the order in which they are applied.
    pub objects: Vec<Value>,
}

/// Order in which kinds are applied; others come last but for webhooks.
const ORDER: &[&str] = &[
    "Namespace",
    "CustomResourceDefinition",
    "ServiceAccount",
    "ClusterRole",
    "ClusterRoleBinding",
    "Role",
    "RoleBinding",
    "ConfigMap",
    "Service",
    "Deployment",
    "PodDisruptionBudget",
    "HorizontalPodAutoscaler",
    "ValidatingWebhookConfiguration",
    "MutatingWebhookConfiguration",
];

/// All objects of a wish, component by component.
///
/// # Errors
/// What charts refuse.
pub fn components(wish: &Wish) -> Result<Vec<Component>, String> {
    let mut all = vec![];
    let mut namespaces = vec![wish.namespace().to_owned()];
    for release in wish.releases() {
        if !namespaces.contains(&release.namespace) {
            namespaces.push(release.namespace.clone());
        }
        let mut objects = release.render()?;
        objects.iter_mut().for_each(own);
        objects.sort_by_key(|o| place(o["kind"].as_str().unwrap_or_default()));
        all.push(Component { name: release.name, namespace: release.namespace, objects });
    }
    let mut objects: Vec<Value> = namespaces.iter().map(|n| namespace(n)).collect();
    objects.iter_mut().for_each(own);
    all.insert(0, Component { name: "namespace".to_owned(), namespace: wish.namespace().to_owned(), objects });
    Ok(all)
}

/// Gateways that a wish lists and does not want: they are to have no objects.
pub fn unwanted(wish: &Wish) -> Vec<Component> {
    let component = |(name, namespace)| Component { name, namespace, objects: vec![] };
    wish.unwanted().into_iter().map(component).collect()
}

/// Place of a kind in the order.
pub fn place(kind: &str) -> usize {
    ORDER.iter().position(|k| *k == kind).unwrap_or(ORDER.len())
}

fn namespace(name: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": name, "labels": {"app.kubernetes.io/part-of": "istio"}},
    })
}

/// Marks an object as ours.
fn own(object: &mut Value) {
    object["metadata"]["labels"][MANAGED_BY.0] = json!(MANAGED_BY.1);
}
