//! Which of our kinds the API server has, and in which version.
//!
//! A CustomResourceDefinition that is not there means no objects of its kind; one that comes later is read then. Owns
//! that answer. Must not know the objects.

use std::{collections::BTreeMap, time::Duration};

use futures_util::StreamExt as _;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{
    Api, Client,
    core::PartialObjectMeta,
    runtime::{WatchStreamExt as _, watcher},
};
use tokio::sync::watch;

use crate::source::object::Kind;

/// What an API server has of our kinds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Served {
    /// The server was asked.
    pub known: bool,
    /// Kinds that are there, each with the version to read.
    pub versions: BTreeMap<Kind, String>,
}

/// The server is asked again at least this often: whoever may not watch definitions would never hear of them.
const ASK: Duration = Duration::from_secs(30);
/// After a definition changed: its resource is served a little later.
const SETTLE: Duration = Duration::from_millis(300);
/// Pause after an answer that could not be had.
const PAUSE: Duration = Duration::from_secs(1);

/// Tells which kinds there are, until nobody listens.
pub(super) async fn follow(client: Client, served: watch::Sender<Served>) {
    let definitions: Api<PartialObjectMeta<CustomResourceDefinition>> = Api::all(client.clone());
    let mut events = watcher(definitions, watcher::Config::default()).default_backoff().boxed();
    loop {
        let answer = match ask(&client).await {
            Ok(now) => complete(&client, now).await,
            Err(error) => Err(error.to_string()),
        };
        match answer {
            Ok(now) => {
                served.send_if_modified(|was| {
                    let other = *was != now;
                    *was = now;
                    other
                });
            }
            Err(error) => {
                tracing::warn!(target: "kubernetes", "the API server cannot be asked for its kinds: {error}");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        }
        let told = async {
            loop {
                match events.next().await {
                    Some(Ok(watcher::Event::Apply(o) | watcher::Event::Delete(o))) if is_ours(&o) => break,
                    Some(_) => {}
                    None => std::future::pending().await,
                }
            }
        };
        tokio::select! {
            () = served.closed() => return,
            () = told => tokio::time::sleep(SETTLE).await,
            () = tokio::time::sleep(ASK) => {}
        }
    }
}

fn is_ours(definition: &PartialObjectMeta<CustomResourceDefinition>) -> bool {
    let name = definition.metadata.name.as_deref().unwrap_or_default();
    Kind::ALL.into_iter().any(|k| name.split_once('.') == Some((&k.plural(), k.group())))
}

/// An answer that nothing is missing in. An API server that has just started tells of definitions little by little: a kind
/// that is defined and not served yet is no kind that is not there, and its objects, policies among them, are not gone.
async fn complete(client: &Client, served: Served) -> Result<Served, String> {
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    for kind in Kind::ALL.into_iter().filter(|k| !k.is_core() && !served.versions.contains_key(k)) {
        let name = format!("{}.{}", kind.plural(), kind.group());
        match definitions.get_opt(&name).await {
            Ok(None) => {}
            Ok(Some(definition)) => {
                let mut versions = definition.spec.versions.iter().filter(|v| v.served);
                if versions.any(|v| kind.versions().contains(&v.name.as_str())) {
                    return Err(format!("{name} is defined, and not served yet"));
                }
            }
            // Whoever may not read definitions must believe what is served.
            Err(kube::Error::Api(status)) if status.code == 403 => return Ok(served),
            Err(error) => return Err(format!("{name}: {error}")),
        }
    }
    Ok(served)
}

/// Which kinds there are.
async fn ask(client: &Client) -> kube::Result<Served> {
    let mut out = Served { known: true, versions: BTreeMap::new() };
    let groups = client.list_api_groups().await?;
    for kind in Kind::ALL {
        if kind.is_core() {
            out.versions.insert(kind, "v1".to_owned());
        }
    }
    for group in &groups.groups {
        let ours: Vec<Kind> = Kind::ALL.into_iter().filter(|k| !k.is_core() && k.group() == group.name).collect();
        if ours.is_empty() {
            continue;
        }
        for version in &group.versions {
            let wanted: Vec<Kind> =
                ours.iter().copied().filter(|k| k.versions().contains(&version.version.as_str())).collect();
            if wanted.is_empty() {
                continue;
            }
            let list = client.list_api_group_resources(&version.group_version).await?;
            for kind in wanted.into_iter().filter(|k| list.resources.iter().any(|r| r.name == k.plural())) {
                let rank = |v: &str| kind.versions().iter().position(|known| *known == v);
                let better = out.versions.get(&kind).is_none_or(|had| rank(&version.version) < rank(had));
                if better {
                    out.versions.insert(kind, version.version.clone());
                }
            }
        }
    }
    Ok(out)
}
