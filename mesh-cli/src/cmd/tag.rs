//! `meshctl tag`: names for revisions. A tag is a copy of its revision's injection webhook that listens to the name.

use std::process::ExitCode;

use serde_json::{Value, json};

use super::install::confirmed;
use crate::args::{Format, TagCommand, TagListArgs, TagRemoveArgs, TagSetArgs};
use crate::client::cluster::{Cluster, block_on, gvk, name};
use crate::exit::{self, Failure, Outcome};
use crate::install::apply::{self, reference};
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

async fn webhooks(cluster: &Cluster, labels: &str) -> Result<Vec<Value>, Failure> {
    cluster.list(&gvk("admissionregistration.k8s.io", "v1", "MutatingWebhookConfiguration"), None, labels).await
}

fn set(args: &TagSetArgs) -> Outcome {
    block_on(async {
        let cluster = Cluster::connect(&args.cluster.kube).await?;
        let (tag, revision) = (&args.tag, &args.revision);
        let own = webhooks(&cluster, &format!("app=istiod,{REVISION}={revision},!{TAG}")).await?;
        let own = own.into_iter().next().ok_or_else(|| {
            Failure::new(exit::NEGATIVE, format!("no revision {revision} is installed: meshctl install -r {revision}"))
        })?;
        let there = webhooks(&cluster, &format!("{TAG}={tag}")).await?;
        let other = there.first().and_then(|w| w["metadata"]["labels"][REVISION].as_str());
        if let Some(other) = other.filter(|o| o != revision && !args.overwrite) {
            let why = format!("tag {tag} stands for revision {other}: --overwrite changes that");
            return Err(Failure::new(exit::NEGATIVE, why));
        }
        apply::object(&cluster, &webhook(tag, revision, &own), false).await?;
        print(&format!("tag {tag} stands for revision {revision}; pods follow when they are made anew"));
        Ok(ExitCode::SUCCESS)
    })
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
            "name": format!("istio-revision-tag-{tag}"),
            "labels": {
                "app": "istiod",
                REVISION: revision,
                TAG: tag,
                MANAGED_BY.0: MANAGED_BY.1,
                "app.kubernetes.io/part-of": "istio",
                "operator.istio.io/component": "Pilot",
            },
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
        let webhook = there.first().ok_or_else(|| Failure::new(exit::NEGATIVE, format!("there is no tag {tag}")))?;
        let namespaces = cluster.list(&gvk("", "v1", "Namespace"), None, &format!("{REVISION}={tag}")).await?;
        if !namespaces.is_empty() && !args.skip_confirmation {
            let names: Vec<&str> = namespaces.iter().map(name).collect();
            let question =
                format!("Namespaces {} use tag {tag}: their pods will not be injected. Remove it?", names.join(", "));
            if !confirmed(&question)? {
                return Err(Failure::new(exit::NEGATIVE, "nothing was done"));
            }
        }
        cluster.delete(&reference(webhook)).await?;
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
    }
}
