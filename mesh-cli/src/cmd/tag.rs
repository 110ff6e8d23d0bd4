//! `meshctl tag`: names for revisions. A tag is a copy of its revision's injection webhook that listens to the name.
//! Tag `default` also has objects validated that name no revision.

use std::process::ExitCode;

use serde_json::{Value, json};

use super::install::confirmed;
use crate::args::{Format, TagCommand, TagListArgs, TagRemoveArgs, TagSetArgs};
use crate::client::cluster::{Cluster, block_on, gvk, name};
use crate::exit::{self, Failure, Outcome};
use crate::install::apply::{self, reference};
use crate::install::operator::NAMESPACE;
use crate::install::render::{MANAGED_BY, REVISION};
use crate::output::{Table, print, structured};

/// The tag of a webhook.
const TAG: &str = "istio.io/tag";

/// Sets, lists or removes.
pub fn run(command: &TagCommand) -> Outcome {
    match command {
        TagCommand::Set(args) => set(args),
        TagCommand::List(args) => list(args),
        TagCommand::Remove(args) => remove(args),
    }
}

const GROUP: &str = "admissionregistration.k8s.io";

async fn webhooks(cluster: &Cluster, labels: &str) -> Result<Vec<Value>, Failure> {
    cluster.list(&gvk(GROUP, "v1", "MutatingWebhookConfiguration"), None, labels).await
}

async fn validators(cluster: &Cluster, labels: &str) -> Result<Vec<Value>, Failure> {
    cluster.list(&gvk(GROUP, "v1", "ValidatingWebhookConfiguration"), None, labels).await
}

fn set(args: &TagSetArgs) -> Outcome {
    block_on(async {
        let cluster = Cluster::connect(&args.cluster.kube).await?;
        let (tag, revision) = (&args.tag, &args.revision);
        let own = webhooks(&cluster, &format!("app=istiod,{REVISION}={revision},!{TAG}")).await?;
        let own = own.into_iter().next().ok_or_else(|| {
            Failure::new(exit::NEGATIVE, format!("no revision {revision} is installed: meshctl install -r {revision}"))
        })?;
        // The default one may get a tag in its place: the way to another revision without a gap.
        if tag != "default" && !webhooks(&cluster, &format!("app=istiod,{REVISION}={tag},!{TAG}")).await?.is_empty() {
            let why =
                format!("{tag} is a revision already: its pods would have two control planes; choose another name");
            return Err(Failure::new(exit::NEGATIVE, why));
        }
        let there = webhooks(&cluster, &format!("{TAG}={tag}")).await?;
        let other = there.first().and_then(|w| w["metadata"]["labels"][REVISION].as_str());
        if let Some(other) = other.filter(|o| o != revision && !args.overwrite) {
            let why = format!("tag {tag} stands for revision {other}: --overwrite changes that");
            return Err(Failure::new(exit::NEGATIVE, why));
        }
        apply::object(&cluster, &webhook(tag, revision, &own), false).await?;
        if tag == "default" && revision != "default" {
            let of_revision = validators(&cluster, &format!("app=istiod,{REVISION}={revision},!{TAG}")).await?;
            if let Some(own) = of_revision.first() {
                apply::object(&cluster, &validator(revision, own), false).await?;
            }
        }
        print(&format!("tag {tag} stands for revision {revision}; pods follow when they are made anew"));
        Ok(ExitCode::SUCCESS)
    })
}

/// Labels of what makes a tag.
fn labels(tag: &str, revision: &str) -> Value {
    json!({
        "app": "istiod",
        REVISION: revision,
        TAG: tag,
        MANAGED_BY.0: MANAGED_BY.1,
        "app.kubernetes.io/part-of": "istio",
        "operator.istio.io/component": "Pilot",
    })
}

/// What validates objects without a revision, made of what validates those of the default revision to be.
fn validator(revision: &str, own: &Value) -> Value {
    let mut webhook = own["webhooks"][0].clone();
    webhook["name"] = json!("validation.istio.io");
    webhook["objectSelector"] = json!({"matchExpressions": [{"key": REVISION, "operator": "DoesNotExist"}]});
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": "istiod-default-validator", "labels": labels("default", revision)},
        "webhooks": [webhook],
    })
}

/// Name of the webhook of a tag: those of control planes in other namespaces end with these, as Istio's.
fn webhook_name(tag: &str, own: &Value) -> String {
    match own["webhooks"][0]["clientConfig"]["service"]["namespace"].as_str() {
        None | Some(NAMESPACE) => format!("istio-revision-tag-{tag}"),
        Some(namespace) => format!("istio-revision-tag-{tag}-{namespace}"),
    }
}

/// The webhook of a tag, made of that of its revision.
fn webhook(tag: &str, revision: &str, own: &Value) -> Value {
    let template = own["webhooks"][0].clone();
    let expression = |key: &str, operator: &str, values: &[&str]| {
        if values.is_empty() {
            json!({"key": key, "operator": operator})
        } else {
            json!({"key": key, "operator": operator, "values": values})
        }
    };
    const INJECT: &str = "sidecar.istio.io/inject";
    const ENABLED: &str = "istio-injection";
    let absent = |key: &str| expression(key, "DoesNotExist", &[]);
    let unless_refused = expression(INJECT, "NotIn", &["false"]);
    let this = expression(REVISION, "In", &[tag]);
    let mut listeners = vec![
        ("rev.namespace", vec![this.clone(), absent(ENABLED)], vec![unless_refused.clone()]),
        ("rev.object", vec![absent(REVISION), absent(ENABLED)], vec![unless_refused.clone(), this]),
    ];
    if tag == "default" {
        let asked = expression(INJECT, "In", &["true"]);
        listeners.push(("namespace", vec![expression(ENABLED, "In", &["enabled"])], vec![unless_refused]));
        listeners.push(("object", vec![absent(ENABLED), absent(REVISION)], vec![asked, absent(REVISION)]));
    }
    let webhooks: Vec<Value> = listeners
        .into_iter()
        .map(|(name, namespaces, objects)| {
            let mut webhook = json!({
                "name": format!("{name}.sidecar-injector.istio.io"),
                "namespaceSelector": {"matchExpressions": namespaces},
                "objectSelector": {"matchExpressions": objects},
            });
            for key in [
                "clientConfig",
                "sideEffects",
                "admissionReviewVersions",
                "failurePolicy",
                "reinvocationPolicy",
                "rules",
            ] {
                webhook[key] = template[key].clone();
            }
            webhook
        })
        .collect();
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingWebhookConfiguration",
        "metadata": {
            "name": webhook_name(tag, own),
            "labels": labels(tag, revision),
        },
        "webhooks": webhooks,
    })
}

fn list(args: &TagListArgs) -> Outcome {
    block_on(async {
        let cluster = Cluster::connect(&args.cluster.kube).await?;
        let tags = webhooks(&cluster, TAG).await?;
        let namespaces = cluster.list(&gvk("", "v1", "Namespace"), None, "").await?;
        let label =
            |object: &Value, key: &str| object["metadata"]["labels"][key].as_str().unwrap_or_default().to_owned();
        let uses = |namespace: &Value, tag: &str| {
            label(namespace, REVISION) == tag || (tag == "default" && label(namespace, "istio-injection") == "enabled")
        };
        let rows: Vec<(String, String, Vec<String>)> = tags
            .iter()
            .map(|w| {
                let tag = label(w, TAG);
                let users = namespaces.iter().filter(|n| uses(n, &tag)).map(|n| name(n).to_owned()).collect();
                (tag, label(w, REVISION), users)
            })
            .collect();
        if args.output == Format::Short {
            let mut table = Table::new(&["TAG", "REVISION", "NAMESPACES"]);
            for (tag, revision, namespaces) in rows {
                table.row([tag, revision, namespaces.join(",")]);
            }
            print(&table.render());
        } else {
            let item =
                |(tag, revision, namespaces)| json!({"tag": tag, "revision": revision, "namespaces": namespaces});
            structured(&rows.into_iter().map(item).collect::<Vec<_>>(), args.output)?;
        }
        Ok(ExitCode::SUCCESS)
    })
}

fn remove(args: &TagRemoveArgs) -> Outcome {
    block_on(async {
        let cluster = Cluster::connect(&args.cluster.kube).await?;
        let tag = &args.tag;
        let there = webhooks(&cluster, &format!("{TAG}={tag}")).await?;
        if there.is_empty() {
            return Err(Failure::new(exit::NEGATIVE, format!("there is no tag {tag}: meshctl tag list")));
        }
        let namespaces = cluster.list(&gvk("", "v1", "Namespace"), None, &format!("{REVISION}={tag}")).await?;
        if !namespaces.is_empty() && !args.skip_confirmation {
            let names: Vec<&str> = namespaces.iter().map(name).collect();
            let question =
                format!("Namespaces {} use tag {tag}: their pods will not be injected. Remove it?", names.join(", "));
            if !confirmed(&question)? {
                return Err(Failure::new(exit::NEGATIVE, "nothing was done"));
            }
        }
        let validators = validators(&cluster, &format!("{TAG}={tag}")).await?;
        for webhook in there.iter().chain(&validators) {
            cluster.delete(&reference(webhook)).await?;
        }
        print(&format!("tag {tag} is removed"));
        Ok(ExitCode::SUCCESS)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_listens_to_its_name() {
        let own = json!({"webhooks": [{"sideEffects": "None", "clientConfig": {"service": {"name": "istiod-blue"}, "caBundle": "Q0E="}}]});
        let made = webhook("prod", "blue", &own);
        let hooks = made["webhooks"].as_array().unwrap();
        assert_eq!(hooks.len(), 2);
        assert_eq!(hooks[0]["clientConfig"], own["webhooks"][0]["clientConfig"], "with the certificate, at once");
        assert_eq!(hooks[0]["namespaceSelector"]["matchExpressions"][0]["values"], json!(["prod"]));
        assert_eq!(webhook("default", "blue", &own)["webhooks"].as_array().unwrap().len(), 4);
        assert_eq!(made["metadata"]["name"], "istio-revision-tag-prod");
        let elsewhere = json!({"webhooks": [{"clientConfig": {"service": {"namespace": "mesh-system"}}}]});
        assert_eq!(webhook("prod", "blue", &elsewhere)["metadata"]["name"], "istio-revision-tag-prod-mesh-system");
    }

    #[test]
    fn the_default_tag_validates_what_names_no_revision() {
        let own = json!({"webhooks": [{"name": "rev.validation.istio.io", "failurePolicy": "Fail",
            "clientConfig": {"service": {"name": "istiod-blue"}, "caBundle": "Q0E="},
            "objectSelector": {"matchExpressions": [{"key": "istio.io/rev", "operator": "In", "values": ["blue"]}]}}]});
        let made = validator("blue", &own);
        let hook = &made["webhooks"][0];
        assert_eq!(hook["clientConfig"], own["webhooks"][0]["clientConfig"]);
        assert_eq!(hook["objectSelector"]["matchExpressions"][0]["operator"], "DoesNotExist");
        assert_eq!(made["metadata"]["labels"][TAG], "default");
    }
}
