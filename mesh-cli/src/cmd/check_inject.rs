//! `meshctl check-inject`: whether a pod gets a sidecar, from which control plane, and why. The webhooks' selectors are
//! those of the cluster, what follows from them is decided by the code that the webhook itself runs.

use std::collections::BTreeMap;
use std::process::ExitCode;

use mesh_api::crd::gateway_api::LabelSelector;
use mesh_control::index::visibility::label_selector_fits;
use mesh_control::inject::decision::{Facts, decide};
use mesh_control::inject::values::Values;
use mesh_control::validate::INJECTOR;
use serde::Serialize;
use serde_json::Value;

use crate::args::{CheckInjectArgs, Format};
use crate::client::cluster::{Cluster, block_on, gvk, name};
use crate::client::pods::{PodName, Target, has_proxy};
use crate::exit::{Failure, NEGATIVE, Outcome, USAGE};
use crate::install::render::REVISION;
use crate::output::{Table, print, structured};

/// Labels or annotations.
type Labels = BTreeMap<String, String>;

/// The pod that is looked at.
#[derive(Debug, Default)]
pub struct Subject {
    namespace: String,
    namespace_labels: Labels,
    labels: Labels,
    annotations: Labels,
    host_network: bool,
    /// Whether it has a sidecar; `None`: it is no pod yet.
    has_proxy: Option<bool>,
}

/// What one webhook does with it.
#[derive(Debug, PartialEq, Serialize)]
pub struct Verdict {
    webhook: String,
    revision: String,
    /// It puts a sidecar in.
    pub injected: bool,
    /// Why, or why not.
    pub reason: String,
}

/// Asks the cluster, prints a line a webhook; exit code 1 when none injects.
pub fn run(args: &CheckInjectArgs) -> Outcome {
    let (subject, verdicts) = block_on(async {
        let cluster = Cluster::connect(&args.kube).await?;
        let namespace = args.namespace.as_deref().unwrap_or(cluster.default_namespace());
        let subject = subject(&cluster, args, namespace).await?;
        let verdicts = verdicts(&cluster, &args.istio_namespace, &subject).await?;
        Ok((subject, verdicts))
    })?;
    if verdicts.is_empty() {
        let message = "there is no webhook that injects: is the control plane installed? meshctl check tells";
        return Err(Failure::new(NEGATIVE, message));
    }
    if args.output == Format::Short {
        let mut table = Table::new(&["WEBHOOK", "REVISION", "INJECTED", "REASON"]);
        for Verdict { webhook, revision, injected, reason } in &verdicts {
            table.row([webhook.as_str(), revision, if *injected { "✔" } else { "✘" }, reason]);
        }
        print(&table.render());
    } else {
        structured(&verdicts, args.output)?;
    }
    let injected = verdicts.iter().any(|v| v.injected);
    match (injected, subject.has_proxy) {
        (true, Some(false)) => eprintln!("note: the pod has no sidecar: it was made before; restart it"),
        (false, Some(true)) => eprintln!("note: the pod has a sidecar: it was made before; restart it to be rid of it"),
        _ => {}
    }
    Ok(if injected { ExitCode::SUCCESS } else { ExitCode::from(NEGATIVE) })
}

/// What each webhook of the cluster does with a pod, by its name.
///
/// # Errors
/// When the API server does not tell.
pub async fn verdicts(cluster: &Cluster, system: &str, subject: &Subject) -> Result<Vec<Verdict>, Failure> {
    let kind = gvk("admissionregistration.k8s.io", "v1", "MutatingWebhookConfiguration");
    let mut webhooks = cluster.list(&kind, None, "app in (istiod,sidecar-injector)").await?;
    webhooks.sort_by(|a, b| name(a).cmp(name(b)));
    let mut out = Vec::new();
    for webhook in &webhooks {
        let revision = webhook["metadata"]["labels"][REVISION].as_str().unwrap_or("default");
        let values = values(cluster, system, revision).await?;
        out.push(verdict(webhook, revision, &values, subject));
    }
    Ok(out)
}

/// The values of a revision's injector.
async fn values(cluster: &Cluster, system: &str, revision: &str) -> Result<Values, Failure> {
    let (_, plain, key) = INJECTOR;
    let name = if revision == "default" { plain.to_owned() } else { format!("{plain}-{revision}") };
    let map = cluster.get(&gvk("", "v1", "ConfigMap"), Some(system), &name).await?;
    let text = map.as_ref().and_then(|map| map["data"][key].as_str()).unwrap_or("{}");
    let mut values = Values::read(text, &[])
        .map_err(|why| Failure::new(NEGATIVE, format!("ConfigMap {system}/{name}, {key}: {why}")))?;
    if values.revision.is_empty() {
        revision.clone_into(&mut values.revision);
    }
    Ok(values)
}

fn verdict(webhook: &Value, revision: &str, values: &Values, subject: &Subject) -> Verdict {
    let rules = webhook["webhooks"].as_array().map(Vec::as_slice).unwrap_or_default();
    let chosen = rules.iter().find_map(|rule| {
        let namespace = selected(&rule["namespaceSelector"], &subject.namespace_labels, "namespace label")?;
        let pod = selected(&rule["objectSelector"], &subject.labels, "pod label")?;
        Some(namespace.into_iter().chain(pod).collect::<Vec<_>>())
    });
    let facts = Facts {
        namespace: &subject.namespace,
        namespace_labels: Some(&subject.namespace_labels),
        labels: &subject.labels,
        annotations: &subject.annotations,
        host_network: subject.host_network,
        selected: chosen.is_some(),
    };
    let (injected, reason) = match (decide(&facts, values), chosen) {
        (Ok(()), Some(because)) if because.is_empty() => {
            (true, "nothing says no, and this webhook takes all".to_owned())
        }
        (Ok(()), Some(because)) => (true, format!("{} matches", because.join(" and "))),
        (Err(reason), _) => (false, reason.to_string()),
        (Ok(()), None) => (false, "its selectors do not choose the pod".to_owned()),
    };
    Verdict { webhook: name(webhook).to_owned(), revision: revision.to_owned(), injected, reason }
}

/// The labels for which a selector fits; `None`: it does not.
fn selected(selector: &Value, labels: &Labels, word: &str) -> Option<Vec<String>> {
    let selector: LabelSelector = match selector {
        Value::Null => LabelSelector::default(),
        selector => serde_json::from_value(selector.clone()).ok()?,
    };
    if !label_selector_fits(&selector, labels) {
        return None;
    }
    let asked = selector.match_expressions.iter().filter(|e| matches!(e.operator.as_str(), "In" | "Exists"));
    let keys = asked.map(|e| &e.key).chain(selector.match_labels.keys());
    Some(keys.filter_map(|key| Some(format!("{word} {key}={}", labels.get(key)?))).collect())
}

/// Finds the pod, or makes one up.
async fn subject(cluster: &Cluster, args: &CheckInjectArgs, namespace: &str) -> Result<Subject, Failure> {
    let word = args.target.as_deref().unwrap_or_default();
    let (namespace, found) = match word.split_once('/') {
        Some(("namespace" | "namespaces" | "ns", name)) => (name.to_owned(), Subject::default()),
        _ if args.labels.is_some() => {
            let labels = parse_labels(args.labels.as_deref().unwrap_or_default())?;
            (namespace.to_owned(), Subject { labels, ..Subject::default() })
        }
        _ => match Target::parse(word, namespace)? {
            Target::Pod(pod) => {
                let object = there(cluster.get(&gvk("", "v1", "Pod"), Some(&pod.namespace), &pod.name).await?, &pod)?;
                (pod.namespace, of_pod(&object))
            }
            Target::Of(kind, of) => {
                let object = there(cluster.get(&kind, Some(&of.namespace), &of.name).await?, &of)?;
                let template = &object["spec"]["template"];
                if template.is_null() {
                    let message =
                        format!("{word}: a {} says nothing of injection; name a pod or a deployment", kind.kind);
                    return Err(Failure::new(USAGE, message));
                }
                (of.namespace, Subject { has_proxy: None, ..of_pod(template) })
            }
        },
    };
    let object = cluster.get(&gvk("", "v1", "Namespace"), None, &namespace).await?;
    let object =
        object.ok_or_else(|| Failure::new(NEGATIVE, format!("there is no namespace {namespace}; -n names another")))?;
    Ok(Subject { namespace_labels: texts(&object["metadata"]["labels"]), namespace, ..found })
}

/// The subject that a pod of the cluster is.
///
/// # Errors
/// When its namespace cannot be read.
pub async fn subject_of(cluster: &Cluster, pod: &Value) -> Result<Subject, Failure> {
    let namespace = PodName::of(pod).namespace;
    let object = cluster.get(&gvk("", "v1", "Namespace"), None, &namespace).await?.unwrap_or_default();
    Ok(Subject { namespace_labels: texts(&object["metadata"]["labels"]), namespace, ..of_pod(pod) })
}

fn there(object: Option<Value>, name: &PodName) -> Result<Value, Failure> {
    let missing = || format!("{} is not there, in namespace {}; -n names another", name.name, name.namespace);
    object.ok_or_else(|| Failure::new(NEGATIVE, missing()))
}

/// Of a pod, or the template of one.
fn of_pod(pod: &Value) -> Subject {
    Subject {
        labels: texts(&pod["metadata"]["labels"]),
        annotations: texts(&pod["metadata"]["annotations"]),
        host_network: pod["spec"]["hostNetwork"] == true,
        has_proxy: Some(has_proxy(pod)),
        ..Subject::default()
    }
}

fn texts(map: &Value) -> Labels {
    let pair = |(key, value): (&String, &Value)| Some((key.clone(), value.as_str()?.to_owned()));
    map.as_object().into_iter().flatten().filter_map(pair).collect()
}

fn parse_labels(text: &str) -> Result<Labels, Failure> {
    let pair = |pair: &str| {
        let (key, value) = pair.split_once('=').filter(|(key, _)| !key.trim().is_empty())?;
        Some((key.trim().to_owned(), value.trim().to_owned()))
    };
    let pairs = text.split(',').filter(|p| !p.trim().is_empty());
    let parsed: Option<Labels> = pairs.map(pair).collect();
    parsed.ok_or_else(|| Failure::new(USAGE, format!("--labels {text:?} is not KEY=VALUE,KEY=VALUE")))
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use clap::Parser as _;
    use serde_json::json;

    use super::*;
    use crate::args::{Args, Command};

    fn labels(text: &str) -> Labels {
        parse_labels(text).unwrap()
    }

    /// The webhooks as they are installed: revisions `default` and `blue`, and a tag `prod` for the latter.
    fn webhooks() -> Value {
        let rule = |namespace: Value, object: Value| json!({"namespaceSelector": {"matchExpressions": namespace}, "objectSelector": {"matchExpressions": object}});
        let is = |key: &str, value: &str| json!({"key": key, "operator": "In", "values": [value]});
        let not = |key: &str| json!({"key": key, "operator": "DoesNotExist"});
        let unless = json!({"key": "sidecar.istio.io/inject", "operator": "NotIn", "values": ["false"]});
        let of_revision = |word: &str| {
            vec![
                rule(json!([is("istio.io/rev", word), not("istio-injection")]), json!([unless])),
                rule(json!([not("istio.io/rev"), not("istio-injection")]), json!([unless, is("istio.io/rev", word)])),
            ]
        };
        let mut default = of_revision("default");
        default.push(rule(json!([is("istio-injection", "enabled")]), json!([unless])));
        let object = |name: &str, revision: &str, rules: Vec<Value>| json!({"metadata": {"name": name, "labels": {"istio.io/rev": revision, "app": "istiod"}}, "webhooks": rules});
        let items = [
            object("istio-revision-tag-prod", "blue", of_revision("prod")),
            object("istio-sidecar-injector", "default", default),
            object("istio-sidecar-injector-blue", "blue", of_revision("blue")),
        ];
        json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfigurationList",
            "metadata": {}, "items": items})
    }

    fn cluster(namespace_labels: Value, deployment: Value) -> Cluster {
        let none = json!({"apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure", "code": 404,
            "reason": "NotFound", "message": "none"});
        let namespace =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": namespace_labels}});
        let webhooks = webhooks();
        let router = axum::Router::new()
            .route("/api/v1/namespaces/shop", get(async || axum::Json(namespace)))
            .route("/apis/apps/v1/namespaces/shop/deployments/web", get(async || axum::Json(deployment)))
            .route(
                "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations",
                get(async || axum::Json(webhooks)),
            )
            .fallback(async || (http::StatusCode::NOT_FOUND, axum::Json(none)));
        Cluster::of_router(router)
    }

    async fn verdicts_of(cluster: &Cluster, words: &[&str]) -> Result<Vec<(String, bool, String)>, Failure> {
        let words = ["meshctl", "check-inject", "-n", "shop"].iter().chain(words);
        let Command::CheckInject(args) = Args::try_parse_from(words).unwrap().command else { panic!() };
        let subject = subject(cluster, &args, "shop").await?;
        let all = verdicts(cluster, "istio-system", &subject).await?;
        Ok(all.into_iter().map(|v| (v.webhook, v.injected, v.reason)).collect())
    }

    #[tokio::test]
    async fn each_webhook_says_what_it_does_and_why() {
        let web = |labels: Value| {
            json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
                "spec": {"template": {"metadata": {"labels": labels}, "spec": {}}}})
        };
        let on = cluster(json!({"istio-injection": "enabled"}), web(json!({"app": "web"})));
        let all = verdicts_of(&on, &["deployment/web"]).await.unwrap();
        let injected: Vec<bool> = all.iter().map(|(_, injected, _)| *injected).collect();
        assert_eq!(injected, [false, true, false], "{all:?}");
        assert_eq!(all[1].2, "namespace label istio-injection=enabled matches");
        assert!(all[2].2.contains("for revision default"), "{all:?}");

        let no = cluster(json!({"istio-injection": "enabled"}), web(json!({"sidecar.istio.io/inject": "false"})));
        let all = verdicts_of(&no, &["deployment/web"]).await.unwrap();
        assert!(all.iter().all(|(_, injected, reason)| !injected && reason.contains("says so")), "{all:?}");

        let tagged = cluster(json!({"istio.io/rev": "prod"}), web(json!({})));
        let all = verdicts_of(&tagged, &["namespace/shop"]).await.unwrap();
        assert!(all[0].1 && all[0].2 == "namespace label istio.io/rev=prod matches", "{all:?}");
        assert!(!all[1].1 && !all[2].1);

        let silent = cluster(json!({}), web(json!({})));
        let all = verdicts_of(&silent, &["-l", "istio.io/rev=blue"]).await.unwrap();
        assert!(all[2].1 && !all[1].1, "{all:?}");
        let gone = verdicts_of(&silent, &["deployment/gone"]).await.unwrap_err();
        assert!(gone.message.contains("gone is not there"), "{}", gone.message);
        assert!(verdicts_of(&silent, &["svc/web"]).await.is_err());
    }

    #[test]
    fn labels_of_the_command_line() {
        assert_eq!(labels("a=b, c=d").len(), 2);
        assert!(parse_labels("a").is_err() && parse_labels("=b").is_err());
    }
}
