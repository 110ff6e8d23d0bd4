//! `meshctl describe`: what holds for a pod or a service. From what the control plane has in force and what proxies
//! hold, never from reading objects again, so it cannot say anything else than what happens.
//!
//! `effective` reads what a proxy holds, `gateways` finds who exposes a service, `trouble` says what looks wrong, `text`
//! is for people; JSON has the same facts.

mod effective;
mod gateways;
mod text;
mod trouble;

use std::collections::BTreeMap;
use std::process::ExitCode;

use futures_util::future::join_all;
use serde::Serialize;
use serde_json::Value;

use self::effective::{ClientTls, Route, Side};
use super::proxy_config::Dump;
use super::proxy_status::{self, rejections};
use crate::args::{DescribeArgs, DescribeCommand, Format};
use crate::client::cluster::{block_on, gvk};
use crate::client::mesh::Mesh;
use crate::client::pods::{PodName, has_proxy};
use crate::exit::{Failure, NEGATIVE, Outcome, USAGE};
use crate::install::render::REVISION;
use crate::output::{print, structured};

/// Pods of a service that are looked at one by one.
const MOST_PODS: usize = 20;

/// Everything that is told.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Description {
    pods: Vec<Pod>,
    services: Vec<Service>,
    gateways: Vec<gateways::Exposure>,
    problems: Vec<String>,
}

/// A pod.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Pod {
    name: String,
    namespace: String,
    /// Revision that it names; empty: none.
    revision: String,
    /// Ports of its containers: `8080 (app)`. Known of pods in a cluster.
    ports: Vec<String>,
    /// It has a proxy in it.
    #[serde(rename = "hasProxy")]
    sidecar: bool,
    /// Why not, or why it would have one were it made now.
    injection: Option<String>,
    /// The control plane that its proxy is connected to.
    connected: Option<Connection>,
    /// What the control plane knows: labels, service account, policies.
    #[serde(flatten)]
    facts: Value,
}

/// A proxy at its control plane.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Connection {
    istiod: String,
    version: String,
    /// By type, in istioctl's words.
    states: BTreeMap<String, String>,
    /// What it refused, by type.
    rejections: BTreeMap<String, String>,
}

/// A service.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Service {
    /// What the control plane knows: ports, endpoints, DestinationRule.
    #[serde(flatten)]
    facts: Value,
    /// Proxy whose routes and TLS these are.
    seen_by: Option<String>,
    routes: Vec<Route>,
    client_tls: Vec<ClientTls>,
}

impl Service {
    fn host(&self) -> &str {
        self.facts["host"].as_str().unwrap_or_default()
    }

    /// `NAME.NAMESPACE`.
    fn name(&self) -> String {
        let text = |key: &str| self.facts[key].as_str().unwrap_or_default();
        format!("{}.{}", text("name"), text("namespace"))
    }
}

/// Gathers and prints.
pub fn run(command: &DescribeCommand) -> Outcome {
    let (description, output) = match command {
        DescribeCommand::Pod(args) => (block_on(pod(args))?, args.output),
        DescribeCommand::Service(args) => (block_on(service(args))?, args.output),
    };
    match output {
        Format::Short => print(&text::render(&description)),
        format => structured(&description, format)?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn pod(args: &DescribeArgs) -> Result<Description, Failure> {
    let mesh = Mesh::find(&args.mesh).await?;
    let names = mesh.pods(&args.name).await?;
    let name = names.first().ok_or_else(|| Failure::new(NEGATIVE, format!("{} has no pods", args.name)))?;
    let rows = proxy_status::rows(&mesh).await?;
    let pod = described_pod(&mesh, args, name, &rows).await?;
    let Some(pod) = pod else {
        let message = format!("there is no pod {} in namespace {}; -n names another", name.name, name.namespace);
        return Err(Failure::new(NEGATIVE, message));
    };
    let services: Vec<Value> = pod.facts["services"].as_array().cloned().unwrap_or_default();
    let viewer = pod.connected.as_ref().map(|_| name.clone()).or_else(|| viewer(&rows, &name.namespace));
    whole(&mesh, vec![pod], services, viewer, &rows).await
}

async fn service(args: &DescribeArgs) -> Result<Description, Failure> {
    let mesh = Mesh::find(&args.mesh).await?;
    let word = match args.name.split_once('/') {
        None => &args.name,
        Some(("service" | "services" | "svc", name)) => name,
        Some((kind, _)) => {
            return Err(Failure::new(
                USAGE,
                format!("{}: a {kind} is no service; name NAME or NAME.NAMESPACE", args.name),
            ));
        }
    };
    let name = PodName::parse(word, mesh.namespace());
    let path = format!("/debug/servicez?name={name}");
    let (facts, rows) = tokio::join!(facts(&mesh, &path), proxy_status::rows(&mesh));
    let facts = facts?.ok_or_else(|| {
        let message = format!(
            "the control plane knows no service {} in namespace {}; -n names another",
            name.name, name.namespace
        );
        Failure::new(NEGATIVE, message)
    })?;
    let rows = rows?;
    let names = facts["pods"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let names: Vec<PodName> = names.take(MOST_PODS).map(|n| PodName::parse(n, &name.namespace)).collect();
    let pods = join_all(names.iter().map(|n| described_pod(&mesh, args, n, &rows))).await;
    let pods = pods.into_iter().collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect();
    let viewer = viewer(&rows, &name.namespace);
    whole(&mesh, pods, vec![facts], viewer, &rows).await
}

/// What follows from pods and services: routes and TLS as a proxy has them, gateways, what looks wrong.
async fn whole(
    mesh: &Mesh<'_>,
    mut pods: Vec<Pod>,
    services: Vec<Value>,
    viewer: Option<PodName>,
    rows: &[Value],
) -> Result<Description, Failure> {
    // They stand beside the pods.
    let own = pods.iter_mut().filter_map(|pod| pod.facts.as_object_mut());
    own.for_each(|facts| drop(facts.remove("services")));
    let dump = async {
        match &viewer {
            Some(viewer) => Dump::of_control(mesh, viewer).await.map(Some),
            None => Ok(None),
        }
    };
    let hosts: Vec<&str> = services.iter().filter_map(|facts| facts["host"].as_str()).collect();
    let (dump, gateways) = tokio::join!(dump, gateways::exposures(mesh, rows, &hosts));
    let (dump, gateways) = (dump?, gateways?);
    let side = dump.as_ref().map(Side::new);
    let seen = |facts: Value| {
        let host = facts["host"].as_str().unwrap_or_default().to_owned();
        Service {
            seen_by: viewer.as_ref().map(ToString::to_string),
            routes: side.as_ref().map(|s| s.routes(&host)).unwrap_or_default(),
            client_tls: side.as_ref().map(|s| s.client_tls(&host)).unwrap_or_default(),
            facts,
        }
    };
    let services: Vec<Service> = services.into_iter().map(seen).collect();
    let problems = trouble::found(&pods, &services, &gateways);
    Ok(Description { pods, services, gateways, problems })
}

/// A pod as the control plane and the API server know it; `None`: neither does.
async fn described_pod(
    mesh: &Mesh<'_>,
    args: &DescribeArgs,
    name: &PodName,
    rows: &[Value],
) -> Result<Option<Pod>, Failure> {
    let path = format!("/debug/workloadz?name={name}");
    let object = async {
        match mesh.cluster() {
            Some(cluster) => cluster.get(&gvk("", "v1", "Pod"), Some(&name.namespace), &name.name).await,
            None => Ok(None),
        }
    };
    let (facts, object) = tokio::join!(facts(mesh, &path), object);
    let (facts, object) = (facts?, object?);
    let row = rows.iter().find(|row| row["proxy"] == name.to_string());
    if facts.is_none() && object.is_none() && row.is_none() {
        return Ok(None);
    }
    let connected = row.map(connection);
    // Without a cluster nobody but the proxy itself tells that it is there.
    let sidecar = object.as_ref().map_or(connected.is_some(), has_proxy);
    let injection = match (mesh.cluster(), &object) {
        (Some(cluster), Some(object)) if !sidecar => {
            let subject = super::check_inject::subject_of(cluster, object).await?;
            let verdicts = super::check_inject::verdicts(cluster, &args.mesh.istio_namespace, &subject).await?;
            injection(&verdicts)
        }
        _ => None,
    };
    let label = |key: &str| {
        let of_object = object.as_ref().and_then(|o| o["metadata"]["labels"][key].as_str());
        of_object.or_else(|| facts.as_ref()?["labels"][key].as_str()).unwrap_or_default().to_owned()
    };
    Ok(Some(Pod {
        name: name.name.clone(),
        namespace: name.namespace.clone(),
        revision: label(REVISION),
        ports: object.as_ref().map(ports).unwrap_or_default(),
        sidecar,
        injection,
        connected,
        facts: without_names(facts.unwrap_or_default()),
    }))
}

/// What stands in the description beside.
fn without_names(mut facts: Value) -> Value {
    match facts.as_object_mut() {
        Some(map) => {
            map.remove("name");
            map.remove("namespace");
        }
        None => facts = Value::Object(serde_json::Map::new()),
    }
    facts
}

/// The verdict that counts: of the webhook that injects, else of the first.
fn injection(verdicts: &[super::check_inject::Verdict]) -> Option<String> {
    match verdicts.iter().find(|v| v.injected) {
        Some(yes) => Some(format!("it was made before its injection was asked for ({}): restart it", yes.reason)),
        None => verdicts.first().map(|no| no.reason.clone()),
    }
}

fn connection(row: &Value) -> Connection {
    let text = |key: &str| row[key].as_str().unwrap_or_default().to_owned();
    let types = row["types"].as_object().into_iter().flatten();
    Connection {
        istiod: text("istiod"),
        version: text("proxy_version"),
        states: types.map(|(short, _)| (short.clone(), proxy_status::state(row, short).to_owned())).collect(),
        rejections: rejections(row).into_iter().map(|(short, why)| (short.to_owned(), why.to_owned())).collect(),
    }
}

/// `8080 (app)` for every port that containers declare.
fn ports(pod: &Value) -> Vec<String> {
    let containers = ["containers", "initContainers"].into_iter().filter_map(|list| pod["spec"][list].as_array());
    let mut out = Vec::new();
    for container in containers.flatten() {
        let name = container["name"].as_str().unwrap_or_default();
        for port in container["ports"].as_array().into_iter().flatten() {
            out.push(format!("{} ({name})", port["containerPort"]));
        }
    }
    out
}

/// A page of facts; `None`: the control plane knows nothing of that name.
async fn facts(mesh: &Mesh<'_>, path: &str) -> Result<Option<Value>, Failure> {
    match mesh.of_proxy(path).await {
        Ok((by, answer)) => serde_json::from_slice(&answer.body)
            .map(Some)
            .map_err(|e| Failure::new(NEGATIVE, format!("{}{path} does not answer with JSON: {e}", by.name))),
        Err(failure) if failure.code == ExitCode::from(NEGATIVE) => Ok(None),
        Err(failure) => Err(failure),
    }
}

/// A sidecar that clients of a namespace are like: one of that namespace, else any.
fn viewer(rows: &[Value], namespace: &str) -> Option<PodName> {
    let sidecars = rows.iter().filter(|row| row["proxy_type"] == "sidecar").filter_map(|row| row["proxy"].as_str());
    let mut names: Vec<PodName> = sidecars.map(|proxy| PodName::parse(proxy, "")).collect();
    names.sort_by_key(|name| (name.namespace != namespace, name.clone()));
    names.into_iter().next()
}
