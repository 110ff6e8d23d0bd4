//! A pod, or the template of one: injection into it and back.
//!
//! What was added is listed in the annotation `sidecar.istio.io/status`, so that a second injection begins where the first
//! did, and taking it back leaves what the user wrote.

use std::collections::BTreeMap;

use mesh_api::labels::{self, Labels};

use super::annotations::{self, OVERRIDES, REVISION, STATUS, TEMPLATES, truth};
use super::decision::{Facts, Reason, decide};
use super::node::{Map, Node};
use super::proxy_config::{self, Workload};
use super::settings::Settings;
use super::template::{INIT, Owner, PROXY, PROXY_USER, Render};
use super::{overlay, probes, scraping};

/// Annotations of kubectl that name a pod's main container.
const MAIN_CONTAINER: [&str; 2] =
    ["kubectl.kubernetes.io/default-logs-container", "kubectl.kubernetes.io/default-container"];

/// Where a pod is.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// Namespace.
    pub namespace: &'a str,
    /// Labels of the namespace, if they are known.
    pub namespace_labels: Option<&'a Labels>,
    /// What the pod belongs to.
    pub owner: &'a Owner,
    /// A webhook's selectors have chosen this control plane.
    pub selected: bool,
}

/// What became of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It has a sidecar, or is a gateway; remarks are on what has no effect.
    Injected(Vec<annotations::Remark>),
    /// It is as it was.
    Skipped(Reason),
}

/// Why a pod cannot be injected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodError {
    /// Field, from the pod on.
    pub field: String,
    /// What is wrong there.
    pub message: String,
}

fn wrong(field: impl Into<String>, message: impl Into<String>) -> PodError {
    PodError { field: field.into(), message: message.into() }
}

fn of_annotation(name: &str, message: impl Into<String>) -> PodError {
    wrong(format!("metadata.annotations.{name}"), message)
}

/// Injects into a pod, or says why not.
///
/// # Errors
/// The field of the pod that is wrong; the pod is to be thrown away then.
pub fn inject(pod: &mut Node, place: Place<'_>, settings: &Settings) -> Result<Outcome, PodError> {
    shape(pod)?;
    let all = Texts::of(pod)?;
    let facts = Facts {
        namespace: place.namespace,
        namespace_labels: place.namespace_labels,
        labels: &all.labels,
        annotations: &all.annotations,
        host_network: pod.at(&["spec", "hostNetwork"]).and_then(Node::as_bool).unwrap_or(false),
        selected: place.selected,
    };
    if let Err(reason) = decide(&facts, &settings.values) {
        return Ok(Outcome::Skipped(reason));
    }
    fill(pod, &all, place, settings).map(Outcome::Injected)
}

/// The proxy into a pod of a gateway, whatever its labels say: one that the control plane makes itself. Nothing takes it
/// back, so nothing is written down for that.
///
/// # Errors
/// As of [`inject`].
pub fn gateway(pod: &mut Node, place: Place<'_>, settings: &Settings) -> Result<Vec<annotations::Remark>, PodError> {
    shape(pod)?;
    let annotations = pod.get_mut("metadata").and_then(|m| m.map_at("annotations"));
    annotations.ok_or_else(|| wrong("metadata", "is missing"))?.insert(TEMPLATES.to_owned(), "gateway".into());
    let remarks = fill(pod, &Texts::of(pod)?, place, settings)?;
    if let Some(metadata) = pod.get_mut("metadata") {
        remove_keys(metadata, "annotations", &[STATUS, OVERRIDES, TEMPLATES].map(str::to_owned));
    }
    Ok(remarks)
}

/// Takes back what was injected before, and injects.
fn fill(
    pod: &mut Node,
    all: &Texts,
    place: Place<'_>,
    settings: &Settings,
) -> Result<Vec<annotations::Remark>, PodError> {
    strip(pod);
    let (bad, mut remarks) = annotations::judge(&members(pod, "annotations"));
    if let Some(first) = bad.into_iter().next() {
        return Err(of_annotation(&first.name, first.message));
    }
    let gateway = template(all)?;
    let annotation = all.annotations.get(annotations::PROXY_CONFIG).map(String::as_str);
    let workload = Workload { namespace: place.namespace, labels: &all.labels, annotation };
    let root = settings.mesh.root_namespace();
    let proxy = proxy_config::merged(&settings.mesh.default_config, root, &settings.proxy_configs, workload)
        .map_err(|why| of_annotation(annotations::PROXY_CONFIG, why))?;
    let own = Own::of(pod);
    let native = all.annotations.get("sidecar.istio.io/nativeSidecar").and_then(|t| truth(t));
    let hold = proxy.hold_application_until_proxy_starts;
    let (annotations_of_pod, labels_of_pod) = (members(pod, "annotations"), members(pod, "labels"));
    let spec = pod.get("spec").cloned().unwrap_or_default();
    let render = Render {
        values: &settings.values,
        mesh: &settings.mesh,
        proxy: &proxy,
        annotations: &annotations_of_pod,
        labels: &labels_of_pod,
        spec: &spec,
        namespace: place.namespace,
        owner: place.owner,
        user: own.user().unwrap_or(PROXY_USER),
        gateway,
        native: native.unwrap_or(settings.native_sidecars) && !gateway,
        hold: hold == Some(true) || settings.values.global.proxy.hold_application_until_proxy_starts,
    };
    let merge_metrics = settings.mesh.enable_prometheus_merge != Some(false);
    add(pod, &render, &own, merge_metrics)?;
    if !render.native && !gateway && ["Job", "CronJob"].contains(&place.owner.kind.as_str()) {
        remarks.push(annotations::Remark {
            name: "sidecar.istio.io/nativeSidecar".to_owned(),
            message: "is not in force: the sidecar goes on when the work is done, so the job does not end".to_owned(),
        });
    }
    Ok(remarks)
}

/// What injection reads must be what Kubernetes says it is.
fn shape(pod: &Node) -> Result<(), PodError> {
    let is_object = |node: Option<&Node>| node.is_none_or(|n| matches!(n, Node::Map(_) | Node::Null));
    if !is_object(pod.get("metadata")) {
        return Err(wrong("metadata", "is not an object"));
    }
    for part in ["labels", "annotations"] {
        if !is_object(pod.at(&["metadata", part])) {
            return Err(wrong(format!("metadata.{part}"), "is not an object"));
        }
    }
    let Some(spec) = pod.get("spec").filter(|s| s.as_map().is_some()) else {
        return Err(wrong("spec", "is missing or is not an object"));
    };
    for list in ["containers", "initContainers", "volumes", "imagePullSecrets"] {
        match spec.get(list) {
            None | Some(Node::Null) if list == "containers" => {
                return Err(wrong("spec.containers", "is missing: a pod has at least one container"));
            }
            None | Some(Node::Null) => {}
            Some(Node::List(items)) => {
                if let Some(i) = items.iter().position(|item| item.name().is_empty()) {
                    return Err(wrong(format!("spec.{list}[{i}].name"), "is missing or is not text"));
                }
            }
            Some(_) => return Err(wrong(format!("spec.{list}"), "is not a list")),
        }
    }
    Ok(())
}

/// Labels and annotations as text.
struct Texts {
    labels: Labels,
    annotations: Labels,
}

impl Texts {
    fn of(pod: &Node) -> Result<Self, PodError> {
        let read = |part: &str| -> Result<Labels, PodError> {
            let mut out = Labels::new();
            for (name, value) in members(pod, part) {
                let Node::Text(text) = value else {
                    return Err(wrong(format!("metadata.{part}.{name}"), "must be text: put it in quotes"));
                };
                out.insert(name, text);
            }
            Ok(out)
        };
        Ok(Self { labels: read("labels")?, annotations: read("annotations")? })
    }
}

fn members(pod: &Node, part: &str) -> Map {
    pod.at(&["metadata", part]).and_then(Node::as_map).cloned().unwrap_or_default()
}

/// Which template: whether it is a gateway.
fn template(all: &Texts) -> Result<bool, PodError> {
    match all.annotations.get(TEMPLATES).map_or("sidecar", |t| t.trim()) {
        "sidecar" => Ok(false),
        "gateway" => Ok(true),
        other => {
            Err(of_annotation(TEMPLATES, format!("{other:?} is not a template here: there are sidecar and gateway")))
        }
    }
}

/// What the user wrote of containers that are injected, to come on top of them.
struct Own(Vec<OwnContainer>);

struct OwnContainer {
    list: &'static str,
    /// Where in the list it was, and comes back to.
    index: usize,
    container: Node,
}

impl Own {
    fn of(pod: &Node) -> Self {
        let mut found = Vec::new();
        for list in ["containers", "initContainers"] {
            let containers = pod.get("spec").map_or(&[][..], |s| s.items(list)).iter().enumerate();
            let named = containers.filter(|(_, c)| [PROXY, INIT].contains(&c.name()));
            found.extend(named.map(|(index, c)| OwnContainer { list, index, container: c.clone() }));
        }
        Self(found)
    }

    fn get(&self, name: &str) -> Option<&Node> {
        self.0.iter().map(|o| &o.container).find(|c| c.name() == name)
    }

    /// The user the proxy is to run as; root would escape its own redirection.
    fn user(&self) -> Option<u64> {
        self.get(PROXY)?.at(&["securityContext", "runAsUser"])?.as_u64().filter(|uid| *uid != 0)
    }

    /// To be kept, so that it is found again: Istio's form.
    fn kept(&self) -> Option<String> {
        let of = |list: &str| {
            let all: Vec<Node> = self.0.iter().filter(|o| o.list == list).map(|o| o.container.clone()).collect();
            if all.is_empty() { Node::Null } else { Node::List(all) }
        };
        let all = Node::map([("containers", of("containers")), ("initContainers", of("initContainers"))]);
        if self.0.is_empty() { None } else { serde_json::to_string(&all).ok() }
    }

    fn positions(&self) -> BTreeMap<String, usize> {
        self.0.iter().map(|o| (o.container.name().to_owned(), o.index)).collect()
    }
}

/// Adds everything, and writes down what.
fn add(pod: &mut Node, render: &Render<'_>, own: &Own, merge_metrics: bool) -> Result<(), PodError> {
    let over = |template: Node, name: &str| match own.get(name) {
        Some(own) => laid_over(template, own),
        None => template,
    };
    let init = render.init_container().map(|c| over(c, INIT));
    let mut proxy = over(render.proxy_container(), PROXY);
    let volumes = render.volumes();
    let pull_secrets = &render.values.global.image_pull_secrets;
    let not_a_list = |field: &str| wrong(format!("spec.{field}"), "is not a list");
    let spec = pod.get_mut("spec").ok_or_else(|| wrong("spec", "is missing"))?;

    let webhook = &render.values.sidecar_injector_webhook;
    let asked = render.annotations.get("sidecar.istio.io/rewriteAppHTTPProbers").and_then(Node::as_str);
    let rewrite = asked.and_then(truth).unwrap_or(webhook.rewrite_app_http_probe);
    if !render.gateway
        && rewrite
        && render.status_port() != 0
        && let Some(originals) = probes::rewrite(spec, render.status_port())
    {
        set_variable(&mut proxy, probes::ENV, originals);
    }
    let scraping = scraping::plan(render.annotations, merge_metrics, render.status_port());
    if let Some(variable) = scraping.as_ref().and_then(|plan| plan.variable.clone()) {
        set_variable(&mut proxy, scraping::ENV, variable);
    }
    let mut status = Status {
        init_containers: init.iter().map(|c| c.name().to_owned()).collect(),
        volumes: volumes.iter().map(|v| v.name().to_owned()).collect(),
        revision: render.values.revision().to_owned(),
        own_positions: own.positions(),
        ..Status::default()
    };
    let place = if render.native { &mut status.init_containers } else { &mut status.containers };
    place.push(PROXY.to_owned());

    // A gateway's own container stays where the user put it.
    let containers = spec.list_at("containers").ok_or_else(|| not_a_list("containers"))?;
    let at = containers.iter().position(|c| c.name() == PROXY);
    containers.retain(|c| c.name() != PROXY);
    let inits = if render.native {
        vec![init, Some(proxy)]
    } else {
        let at = match at {
            Some(at) if render.gateway => at,
            _ if render.hold => 0,
            _ => containers.len(),
        };
        containers.insert(at, proxy);
        vec![init]
    };
    let inits: Vec<Node> = inits.into_iter().flatten().collect();
    if !inits.is_empty() || !spec.items("initContainers").is_empty() {
        let list = spec.list_at("initContainers").ok_or_else(|| not_a_list("initContainers"))?;
        list.retain(|c| c.name() != PROXY && c.name() != INIT);
        // With a proxy that runs already, init containers are redirected too; else nothing answers them yet.
        let at = if render.native { 0 } else { list.len() };
        list.splice(at..at, inits);
    }
    let list = spec.list_at("volumes").ok_or_else(|| not_a_list("volumes"))?;
    for volume in volumes {
        if list.iter().any(|v| v.name() == volume.name()) {
            status.volumes.retain(|name| name != volume.name());
        } else {
            list.push(volume);
        }
    }
    if !pull_secrets.is_empty() {
        let list = spec.list_at("imagePullSecrets").ok_or_else(|| not_a_list("imagePullSecrets"))?;
        for name in pull_secrets {
            if list.iter().all(|s| s.name() != name) {
                list.push(Node::map([("name", name.as_str().into())]));
                status.image_pull_secrets.push(name.clone());
            }
        }
    }
    describe(pod, render, own, scraping, status)
}

/// Labels and annotations.
fn describe(
    pod: &mut Node,
    render: &Render<'_>,
    own: &Own,
    scraping: Option<scraping::Plan>,
    mut status: Status,
) -> Result<(), PodError> {
    let metadata = match pod {
        Node::Map(map) => {
            if !map.contains_key("metadata") {
                map.shift_insert(0, "metadata".to_owned(), Node::Map(Map::new()));
            }
            pod.get_mut("metadata")
        }
        _ => None,
    };
    let metadata = metadata.ok_or_else(|| wrong("metadata", "is not an object"))?;
    if *metadata == Node::Null {
        *metadata = Node::Map(Map::new());
    }
    let texts: Labels = render.labels.iter().filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned()))).collect();
    let name = labels::canonical_name(&texts, &render.owner.name);
    let mut wanted = vec![
        (labels::CANONICAL_NAME, name.to_owned()),
        (labels::CANONICAL_REVISION, labels::canonical_revision(&texts).to_owned()),
    ];
    if render.gateway {
        wanted.push((REVISION, render.values.revision().to_owned()));
    } else {
        wanted.push((labels::TLS_MODE, labels::TLS_MODE_ISTIO.to_owned()));
    }
    if !render.network().is_empty() {
        wanted.push((labels::NETWORK, render.network().to_owned()));
    }
    let map = metadata.map_at("labels").ok_or_else(|| wrong("metadata.labels", "is not an object"))?;
    for (key, value) in wanted {
        // A workload without a name has no canonical one.
        if !map.contains_key(key) && !value.is_empty() {
            map.insert(key.to_owned(), value.into());
            status.labels.push(key.to_owned());
        }
    }
    let map = metadata.map_at("annotations").ok_or_else(|| wrong("metadata.annotations", "is not an object"))?;
    let mut wanted: Vec<(String, String)> = Vec::new();
    if let Some(first) = render.applications().first().filter(|_| !render.gateway || render.applications().len() == 1) {
        wanted.extend(MAIN_CONTAINER.map(|key| (key.to_owned(), (*first).to_owned())));
    }
    if let Some(plan) = scraping {
        scraping::clear(map);
        wanted.extend(plan.annotations.map(|(key, value)| (key.to_owned(), value)));
    }
    let injected = &render.values.sidecar_injector_webhook.injected_annotations;
    wanted.extend(injected.iter().map(|(k, v)| (k.clone(), v.clone())));
    if let Some(kept) = own.kept() {
        wanted.push((OVERRIDES.to_owned(), kept));
    }
    for (key, value) in wanted {
        if !map.contains_key(&key) {
            map.insert(key.clone(), value.into());
            status.annotations.push(key);
        }
    }
    map.insert(STATUS.to_owned(), status.text().into());
    Ok(())
}

/// What injection added, by name: the content of [`STATUS`], Istio's with more beside.
#[derive(Debug, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Status {
    #[serde(deserialize_with = "null_as_none")]
    init_containers: Vec<String>,
    #[serde(deserialize_with = "null_as_none")]
    containers: Vec<String>,
    #[serde(deserialize_with = "null_as_none")]
    volumes: Vec<String>,
    #[serde(deserialize_with = "null_as_none")]
    image_pull_secrets: Vec<String>,
    #[serde(deserialize_with = "null_as_none")]
    labels: Vec<String>,
    #[serde(deserialize_with = "null_as_none")]
    annotations: Vec<String>,
    revision: String,
    /// Where in their lists the user's own containers of these names were.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    own_positions: BTreeMap<String, usize>,
}

/// Istio writes `null` for an empty list.
fn null_as_none<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Vec<String>, D::Error> {
    <Option<Vec<String>> as serde::Deserialize>::deserialize(d).map(Option::unwrap_or_default)
}

impl Status {
    fn text(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// Revision that has injected into a pod.
pub fn injected_by(pod: &Node) -> Option<String> {
    let status = pod.at(&["metadata", "annotations", STATUS]).and_then(Node::as_str)?;
    serde_json::from_str::<Status>(status).ok().map(|s| s.revision)
}

/// Takes injection back. `false`: the pod was not injected, or not so that it can be told what.
pub fn strip(pod: &mut Node) -> bool {
    let text =
        |pod: &Node, key: &str| pod.at(&["metadata", "annotations", key]).and_then(Node::as_str).map(str::to_owned);
    let Some(status) = text(pod, STATUS).and_then(|t| serde_json::from_str::<Status>(&t).ok()) else { return false };
    let overrides: Option<Node> = text(pod, OVERRIDES).and_then(|t| serde_json::from_str(&t).ok());
    let variables = variables_of_proxy(pod);
    if let Some(spec) = pod.get_mut("spec") {
        if let Some(originals) = variables.get(probes::ENV).and_then(Node::as_str) {
            probes::restore(spec, originals);
        }
        let lists = [
            ("containers", &status.containers),
            ("initContainers", &status.init_containers),
            ("volumes", &status.volumes),
            ("imagePullSecrets", &status.image_pull_secrets),
        ];
        for (list, names) in lists {
            remove_named(spec, list, names);
        }
        for list in ["containers", "initContainers"] {
            for container in overrides.as_ref().map_or(&[][..], |o| o.items(list)) {
                if let Some(items) =
                    spec.list_at(list).filter(|items| items.iter().all(|c| c.name() != container.name()))
                {
                    let at = status.own_positions.get(container.name()).copied().unwrap_or(items.len());
                    items.insert(at.min(items.len()), container.clone());
                }
            }
        }
    }
    let Some(metadata) = pod.get_mut("metadata") else { return true };
    remove_keys(metadata, "labels", &status.labels);
    let mut keys = status.annotations;
    keys.push(STATUS.to_owned());
    keys.push(OVERRIDES.to_owned());
    remove_keys(metadata, "annotations", &keys);
    if let Some(variable) = variables.get(scraping::ENV).and_then(Node::as_str)
        && let Some(map) = metadata.map_at("annotations")
    {
        // What Istio has replaced does not stand in its status.
        scraping::clear(map);
        scraping::restore(map, variable);
    }
    if metadata.as_map().is_some_and(Map::is_empty) {
        pod.remove("metadata");
    }
    true
}

fn variables_of_proxy(pod: &Node) -> Map {
    let Some(spec) = pod.get("spec") else { return Map::new() };
    let all = spec.items("containers").iter().chain(spec.items("initContainers"));
    let env = all.filter(|c| c.name() == PROXY).flat_map(|c| c.items("env"));
    env.filter_map(|v| Some((v.name().to_owned(), v.get("value")?.clone()))).collect()
}

/// Removes items by name, and a list that gets empty.
fn remove_named(spec: &mut Node, list: &str, names: &[String]) {
    let Some(Node::List(items)) = spec.get_mut(list) else { return };
    let before = items.len();
    items.retain(|item| !names.iter().any(|n| n == item.name()));
    if items.is_empty() && before > 0 {
        spec.remove(list);
    }
}

fn remove_keys(metadata: &mut Node, part: &str, keys: &[String]) {
    let Some(Node::Map(map)) = metadata.get_mut(part) else { return };
    let before = map.len();
    map.retain(|key, _| !keys.contains(key));
    if map.is_empty() && before > 0 {
        metadata.remove(part);
    }
}

fn set_variable(container: &mut Node, name: &str, value: String) {
    if let Some(env) = container.list_at("env") {
        env.retain(|v| v.name() != name);
        env.push(Node::map([("name", name.into()), ("value", value.into())]));
    }
}

/// The user's container on top of the template's. The image `auto` is the template's.
fn laid_over(template: Node, own: &Node) -> Node {
    let mut own = own.clone();
    if own.get("image").and_then(Node::as_str) == Some("auto") {
        own.remove("image");
        // An API server fills in what is missing before it asks us: `auto` has no tag, so that it is always to be pulled. For
        // the image that it stands for it decides anew.
        if own.get("imagePullPolicy").and_then(Node::as_str) == Some("Always") {
            own.remove("imagePullPolicy");
        }
    }
    overlay::merged(template, &own)
}
