//! Pods by the words that users have for them: `POD`, `POD.NAMESPACE`, `deployment/NAME`. Knows what a pod says of
//! itself to Kubernetes, and nothing of proxies.

use std::fmt;

use kube::core::GroupVersionKind;
use serde_json::Value;

use super::cluster::{Cluster, gvk, name, namespace};
use crate::exit::{Failure, NEGATIVE, USAGE};

/// A pod by name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodName {
    /// Name.
    pub name: String,
    /// Namespace.
    pub namespace: String,
}

impl PodName {
    /// That of an object.
    pub fn of(pod: &Value) -> Self {
        Self { name: name(pod).to_owned(), namespace: namespace(pod).unwrap_or_default().to_owned() }
    }

    /// Of `NAME.NAMESPACE`, or of a name in `namespace`. Names of namespaces hold no dots, those of pods may.
    pub fn parse(word: &str, namespace: &str) -> Self {
        let (name, namespace) = word.rsplit_once('.').unwrap_or((word, namespace));
        Self { name: name.to_owned(), namespace: namespace.to_owned() }
    }
}

impl fmt::Display for PodName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.name, self.namespace)
    }
}

/// What a user means by a word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A pod, which need not be there.
    Pod(PodName),
    /// All pods of something.
    Of(GroupVersionKind, PodName),
}

/// Kinds that have pods, by kubectl's words.
const KINDS: [(&[&str], &str, &str); 7] = [
    (&["deployment", "deployments", "deploy"], "apps", "Deployment"),
    (&["statefulset", "statefulsets", "sts"], "apps", "StatefulSet"),
    (&["daemonset", "daemonsets", "ds"], "apps", "DaemonSet"),
    (&["replicaset", "replicasets", "rs"], "apps", "ReplicaSet"),
    (&["replicationcontroller", "rc"], "", "ReplicationController"),
    (&["service", "services", "svc"], "", "Service"),
    (&["job", "jobs"], "batch", "Job"),
];

impl Target {
    /// Reads a word; `namespace` is that of names without one.
    ///
    /// # Errors
    /// When nothing of that type has pods.
    pub fn parse(word: &str, namespace: &str) -> Result<Self, Failure> {
        let Some((kind, rest)) = word.split_once('/') else { return Ok(Self::Pod(PodName::parse(word, namespace))) };
        let of = PodName::parse(rest, namespace);
        if matches!(kind, "pod" | "pods" | "po") {
            return Ok(Self::Pod(of));
        }
        let known = KINDS.into_iter().find(|(words, ..)| words.contains(&kind.to_ascii_lowercase().as_str()));
        let (_, group, kind) = known.ok_or_else(|| {
            let words: Vec<&str> = KINDS.iter().filter_map(|(words, ..)| words.first().copied()).collect();
            Failure::new(USAGE, format!("{word}: a {kind} has no pods; name a pod or {}/NAME", words.join("/NAME, ")))
        })?;
        Ok(Self::Of(gvk(group, "v1", kind), of))
    }

    /// Its pods, ready ones first; those that end or have ended do not count. One that is named is taken to be there.
    ///
    /// # Errors
    /// When the server cannot be asked, or there is no such thing or no pod of it.
    pub async fn pods(&self, cluster: &Cluster) -> Result<Vec<PodName>, Failure> {
        let (kind, of) = match self {
            Self::Pod(name) => return Ok(vec![name.clone()]),
            Self::Of(kind, of) => (kind, of),
        };
        let object = cluster.get(kind, Some(&of.namespace), &of.name).await?;
        let object = object.ok_or_else(|| {
            let message = format!("there is no {} {} in namespace {}", kind.kind, of.name, of.namespace);
            Failure::new(NEGATIVE, message)
        })?;
        let mut pods = cluster.list(&gvk("", "v1", "Pod"), Some(&of.namespace), &selector(&object)).await?;
        pods.retain(runs);
        pods.sort_by_key(|pod| (!is_ready(pod), name(pod).to_owned()));
        if pods.is_empty() {
            let message = format!("{} {} in namespace {} has no pods that run", kind.kind, of.name, of.namespace);
            return Err(Failure::new(NEGATIVE, message));
        }
        Ok(pods.iter().map(PodName::of).collect())
    }
}

/// The label selector by which an object finds its pods.
pub fn selector(object: &Value) -> String {
    let selector = &object["spec"]["selector"];
    let labels = selector.get("matchLabels").unwrap_or(selector).as_object();
    let pair = |(key, value): (&String, &Value)| format!("{key}={}", value.as_str().unwrap_or_default());
    labels.into_iter().flatten().map(pair).collect::<Vec<_>>().join(",")
}

/// It has not ended and is not about to.
pub fn runs(pod: &Value) -> bool {
    let phase = pod["status"]["phase"].as_str().unwrap_or_default();
    !matches!(phase, "Succeeded" | "Failed") && pod["metadata"]["deletionTimestamp"].is_null()
}

/// It takes traffic.
pub fn is_ready(pod: &Value) -> bool {
    let ready = |c: &Value| c["type"] == "Ready" && c["status"] == "True";
    runs(pod) && pod["status"]["conditions"].as_array().is_some_and(|all| all.iter().any(ready))
}

/// Name of the proxy's container.
const PROXY: &str = "istio-proxy";

/// It has a proxy in it.
pub fn has_proxy(pod: &Value) -> bool {
    let lists = ["containers", "initContainers"].into_iter().filter_map(|list| pod["spec"][list].as_array());
    lists.flatten().any(|container| container["name"] == PROXY)
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use serde_json::json;

    use super::*;

    #[test]
    fn words_for_pods() {
        let pod = |name: &str, namespace: &str| PodName { name: name.to_owned(), namespace: namespace.to_owned() };
        let parse = |word: &str| Target::parse(word, "shop").unwrap();
        assert_eq!(parse("web-1"), Target::Pod(pod("web-1", "shop")));
        assert_eq!(parse("web-1.bank"), Target::Pod(pod("web-1", "bank")));
        assert_eq!(parse("pod/web.1.bank"), Target::Pod(pod("web.1", "bank")));
        assert_eq!(parse("deploy/web"), Target::Of(gvk("apps", "v1", "Deployment"), pod("web", "shop")));
        assert_eq!(parse("svc/web.bank"), Target::Of(gvk("", "v1", "Service"), pod("web", "bank")));
        assert!(Target::parse("secret/x", "shop").unwrap_err().message.contains("deployment/NAME"));
    }

    #[tokio::test]
    async fn pods_of_a_deployment_ready_ones_first() {
        let pod = |name: &str, ready: &str, phase: &str| {
            json!({"metadata": {"name": name, "namespace": "shop"},
                "status": {"phase": phase, "conditions": [{"type": "Ready", "status": ready}]}})
        };
        let list = json!({"apiVersion": "v1", "kind": "PodList", "metadata": {}, "items": [
            pod("a", "False", "Pending"), pod("b", "True", "Running"), pod("c", "False", "Succeeded")]});
        let web = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
            "spec": {"selector": {"matchLabels": {"app": "web"}}}});
        let none = json!({"apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure", "code": 404,
            "reason": "NotFound", "message": "none"});
        let router = axum::Router::new()
            .route("/apis/apps/v1/namespaces/shop/deployments/web", get(async || axum::Json(web)))
            .route(
                "/api/v1/namespaces/shop/pods",
                get(async |uri: http::Uri| {
                    assert!(uri.query().unwrap().contains("labelSelector=app%3Dweb"), "{uri}");
                    axum::Json(list)
                }),
            )
            .fallback(async || (http::StatusCode::NOT_FOUND, axum::Json(none)));
        let cluster = Cluster::of_router(router);
        let pods = Target::parse("deployment/web", "shop").unwrap().pods(&cluster).await.unwrap();
        assert_eq!(pods.iter().map(ToString::to_string).collect::<Vec<_>>(), ["b.shop", "a.shop"]);
        let gone = Target::parse("deployment/gone", "shop").unwrap().pods(&cluster).await.unwrap_err();
        assert!(gone.message.contains("no Deployment gone in namespace shop"), "{}", gone.message);
    }
}
