//! Waits until what was applied is ready, and finds the reason when something is not.

use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use crate::client::cluster::{Cluster, gvk, name, namespace, title};
use crate::exit::{self, Failure};

/// Between two questions.
const PAUSE: Duration = Duration::from_millis(500);

/// Waits for objects; `tell` is called with the state whenever it changed.
///
/// # Errors
/// With exit code 75, what is not ready and why.
pub async fn ready(
    cluster: &Cluster,
    objects: &[Value],
    until: Instant,
    mut tell: impl FnMut(&str),
) -> Result<(), Failure> {
    let mut told = String::new();
    let mut rest: Vec<&Value> = objects.iter().collect();
    loop {
        let mut missing = Vec::new();
        let mut waiting = Vec::new();
        for object in rest {
            let live = cluster.live(object).await?.unwrap_or_default();
            if let Some(state) = unready(&live) {
                missing.push(format!("{}: {state}", title(object)));
                waiting.push(object);
            }
        }
        rest = waiting;
        let Some(first) = missing.first() else { return Ok(()) };
        if *first != told {
            tell(first);
            told.clone_from(first);
        }
        if Instant::now() >= until {
            let mut why = missing.clone();
            for object in rest.iter().filter(|o| o["kind"] == "Deployment") {
                why.extend(reasons(cluster, object).await);
            }
            return Err(Failure::new(exit::TIMEOUT, format!("not ready in time\n  {}", why.join("\n  "))));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// What an object still lacks; `None`: it is ready.
pub fn unready(live: &Value) -> Option<String> {
    match live["kind"].as_str() {
        None => Some("it is not there".to_owned()),
        Some("CustomResourceDefinition") => {
            let conditions = live["status"]["conditions"].as_array();
            let holds = |c: &Value| c["type"] == "Established" && c["status"] == "True";
            (!conditions.is_some_and(|all| all.iter().any(holds))).then(|| "it is not served yet".to_owned())
        }
        Some("Deployment") => {
            let count = |field: &str| live["status"][field].as_u64().unwrap_or(0);
            let wanted = live["spec"]["replicas"].as_u64().unwrap_or(1);
            let seen = count("observedGeneration") >= live["metadata"]["generation"].as_u64().unwrap_or(0);
            let ready = count("updatedReplicas").min(count("readyReplicas"));
            (!seen || ready < wanted).then(|| format!("{ready} of {wanted} pods are ready"))
        }
        // Pods cannot be made while nobody answers for the webhook.
        Some("MutatingWebhookConfiguration") => {
            let bare = |w: &Value| w["clientConfig"]["caBundle"].as_str().unwrap_or_default().is_empty();
            let bare = live["webhooks"].as_array().is_some_and(|all| all.iter().any(bare));
            bare.then(|| "the control plane has not entered its certificate yet".to_owned())
        }
        Some(_) => None,
    }
}

/// Why pods of a Deployment are not ready: their conditions, what containers wait for, events.
pub async fn reasons(cluster: &Cluster, deployment: &Value) -> Vec<String> {
    let space = namespace(deployment);
    let labels = deployment["spec"]["selector"]["matchLabels"].as_object();
    let pair = |(key, value): (&String, &Value)| format!("{key}={}", value.as_str().unwrap_or_default());
    let selector: Vec<String> = labels.into_iter().flatten().map(pair).collect();
    let mut found = Vec::new();
    let pods = cluster.list(&gvk("", "v1", "Pod"), space, &selector.join(",")).await.unwrap_or_default();
    pods.iter().for_each(|pod| found.extend(of_pod(pod)));
    let events = cluster.list(&gvk("", "v1", "Event"), space, "").await.unwrap_or_default();
    let about = |event: &&Value| {
        let of = &event["involvedObject"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        // What containers wait for stands in their pods already.
        let told = text(&event["message"]).starts_with("Error: ");
        let runs = matches!(text(&of["kind"]).as_str(), "Pod" | "ReplicaSet" | "Deployment");
        event["type"] == "Warning" && runs && !told && text(&of["name"]).starts_with(name(deployment))
    };
    let line = |event: &Value| {
        let text = |key: &str| event[key].as_str().unwrap_or_default().trim().to_owned();
        let on = event["involvedObject"]["name"].as_str().unwrap_or_default();
        format!("event on {on}: {}: {}", text("reason"), text("message"))
    };
    let mut lines: Vec<String> = events.iter().filter(about).map(line).collect();
    lines.dedup();
    found.extend(lines.into_iter().rev().take(5));
    found
}

/// What a pod says about itself.
fn of_pod(pod: &Value) -> Vec<String> {
    let pod_name = name(pod);
    let mut found = Vec::new();
    for condition in pod["status"]["conditions"].as_array().into_iter().flatten() {
        if condition["status"] == "False" && condition["type"] == "PodScheduled" {
            found.push(format!(
                "pod {pod_name} is not scheduled: {}",
                condition["message"].as_str().unwrap_or_default()
            ));
        }
    }
    let statuses = ["initContainerStatuses", "containerStatuses"];
    for status in statuses.iter().filter_map(|key| pod["status"][*key].as_array()).flatten() {
        let container = status["name"].as_str().unwrap_or_default();
        for (state, of) in [("state", "waiting"), ("state", "terminated"), ("lastState", "terminated")] {
            let Some(reason) = status[state][of]["reason"].as_str().filter(|r| *r != "Completed") else { continue };
            let message = status[state][of]["message"].as_str().unwrap_or_default();
            let line = format!("pod {pod_name}, container {container}: {reason} {message}");
            found.push(line.trim_end().to_owned());
        }
        if status["ready"] == false && status["state"]["running"].is_object() {
            found.push(format!("pod {pod_name}, container {container}: runs, but is not ready"));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn readiness() {
        let deployment = |generation: u64, ready: u64| {
            json!({"kind": "Deployment", "metadata": {"generation": generation}, "spec": {"replicas": 2},
                "status": {"observedGeneration": 1, "updatedReplicas": ready, "readyReplicas": 2}})
        };
        assert_eq!(unready(&deployment(1, 2)), None);
        assert_eq!(unready(&deployment(1, 1)).unwrap(), "1 of 2 pods are ready");
        assert!(unready(&deployment(2, 2)).is_some(), "an older generation is no answer");
        let hook = |bundle: &str| json!({"kind": "MutatingWebhookConfiguration", "webhooks": [{"clientConfig": {"caBundle": bundle}}]});
        assert!(unready(&hook("")).is_some() && unready(&hook("Q0E=")).is_none());
        assert_eq!(unready(&Value::Null).unwrap(), "it is not there");
    }

    #[test]
    fn reasons_of_a_pod() {
        let pod = json!({"metadata": {"name": "p"}, "status": {
            "conditions": [{"type": "PodScheduled", "status": "False", "message": "no node"}],
            "containerStatuses": [{"name": "c", "ready": false, "state": {"waiting": {"reason": "ImagePullBackOff", "message": "m"}}}],
        }});
        assert_eq!(of_pod(&pod), ["pod p is not scheduled: no node", "pod p, container c: ImagePullBackOff m"]);
    }
}
