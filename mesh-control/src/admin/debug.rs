//! `/debug/*`: proxies and how far they are, what they hold, what was read and what is wrong with it.

use std::{sync::Arc, time::SystemTime};

use axum::{
    Json,
    extract::{Query, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use mesh_api::{node::NodeType, xds::TypeUrl};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::Admin;
use crate::{
    index::KeyOrigin,
    metrics::{Page, escape},
    source::object::{Kind, Object},
    translate::status,
    validate::{Finding, codes},
    xds::{caller::Caller, generator::Generator, hub::Handle, nack::AckState, push::Protocol},
};

/// Which proxy.
#[derive(Debug, Deserialize)]
pub(super) struct ProxyQuery {
    #[serde(rename = "proxyID", default)]
    proxy_id: String,
    #[serde(default)]
    types: String,
}

/// As `/debug/syncz` names a type.
fn word(ty: TypeUrl) -> &'static str {
    match ty {
        TypeUrl::Cluster => "cluster",
        TypeUrl::Endpoints => "endpoint",
        TypeUrl::Secret => "secret",
        TypeUrl::Listener => "listener",
        TypeUrl::Route => "route",
        TypeUrl::Extension => "extensionconfig",
        TypeUrl::NameTable => "nametable",
    }
}

fn text_time(t: SystemTime) -> String {
    jiff::Timestamp::try_from(t).map(|t| t.to_string()).unwrap_or_default()
}

fn ago(since: tokio::time::Instant) -> String {
    SystemTime::now().checked_sub(since.elapsed()).map(text_time).unwrap_or_default()
}

/// Every proxy and how far it is: Istio's shape, and our own under `types`.
pub(super) async fn syncz<G: Generator>(State(admin): State<Arc<Admin<G>>>) -> Json<Value> {
    let mut clients = admin.hub.clients();
    clients.sort_by_key(|c| c.client.proxy_id());
    Json(clients.iter().map(|handle| sync_status(handle, &admin.cluster_id)).collect())
}

fn sync_status(handle: &Handle, cluster_id: &str) -> Value {
    let client = &handle.client;
    let mut out = Map::new();
    let cluster = if client.metadata.cluster_id.is_empty() { cluster_id } else { &client.metadata.cluster_id };
    out.insert("cluster_id".into(), cluster.into());
    out.insert("proxy".into(), client.proxy_id().into());
    let kind = match client.id.kind {
        NodeType::Sidecar => "sidecar",
        NodeType::Router => "router",
    };
    out.insert("proxy_type".into(), kind.into());
    out.insert("proxy_version".into(), client.user_agent_version.as_str().into());
    out.insert("istio_version".into(), client.metadata.istio_version.as_str().into());
    out.insert("user_agent".into(), client.user_agent.as_str().into());
    out.insert("protocol".into(), if handle.protocol == Protocol::Delta { "delta" } else { "sotw" }.into());
    out.insert("connected_at".into(), text_time(handle.connected).into());
    out.insert("address".into(), client.peer.map(|p| p.to_string()).into());
    if let Caller::Workload(id) = &client.caller {
        out.insert("identity".into(), id.to_string().into());
    }
    let acks = handle.acks.lock().clone();
    let mut types = Map::new();
    for (ty, ack) in TypeUrl::ALL.into_iter().zip(&acks) {
        let nonce = |x: &Option<(String, tokio::time::Instant)>| x.as_ref().map(|(n, _)| n.clone()).unwrap_or_default();
        out.insert(format!("{}_sent", word(ty)), nonce(&ack.sent).into());
        out.insert(format!("{}_acked", word(ty)), nonce(&ack.acked).into());
        if ack.watched {
            types.insert(ty.short().into(), type_status(ack));
        }
    }
    out.insert("types".into(), types.into());
    out.into()
}

fn type_status(ack: &AckState) -> Value {
    json!({
        "state": ack.word(),
        "resources": ack.resources,
        "sent_at": ack.sent.as_ref().map(|(_, t)| ago(*t)),
        "acked_at": ack.acked.as_ref().map(|(_, t)| ago(*t)),
        "acks": ack.acks,
        "nacks": ack.nacks,
        "error": ack.nacked.then(|| ack.rejected.as_ref().map(|(_, why)| why.clone())),
        "last_error": ack.rejected.as_ref().map(|(t, why)| json!({"at": ago(*t), "message": why})),
    })
}

/// Proxies whose last response was rejected, by type.
pub(super) fn rejected<G: Generator>(admin: &Admin<G>, page: &mut Page) {
    let clients = admin.hub.clients();
    for (index, ty) in TypeUrl::ALL.into_iter().enumerate() {
        let name = format!("pilot_xds_{}_reject", ty.short().to_ascii_lowercase());
        page.head(&name, "Proxies that rejected the newest configuration", "gauge");
        for handle in &clients {
            if handle.acks.lock().get(index).is_some_and(|a| a.nacked) {
                page.line(&name, &format!("node=\"{}\"", escape(&handle.client.proxy_id())), 1);
            }
        }
    }
}

/// Who is connected.
pub(super) async fn connections<G: Generator>(State(admin): State<Arc<Admin<G>>>) -> Json<Value> {
    let mut clients = admin.hub.clients();
    clients.sort_by_key(|c| c.client.proxy_id());
    let list: Vec<Value> = clients
        .iter()
        .map(|c| {
            json!({
                "connectionId": c.client.raw_id,
                "connectedAt": text_time(c.connected),
                "address": c.client.peer.map(|p| p.to_string()),
                "metadata": c.client.raw_metadata,
                "locality": {
                    "region": c.client.locality.region,
                    "zone": c.client.locality.zone,
                    "subZone": c.client.locality.sub_zone,
                },
            })
        })
        .collect();
    Json(json!({"totalClients": list.len(), "clients": list}))
}

/// What one proxy holds.
pub(super) async fn config_dump<G: Generator>(
    State(admin): State<Arc<Admin<G>>>,
    Query(query): Query<ProxyQuery>,
) -> Response {
    if query.proxy_id.is_empty() {
        return (StatusCode::BAD_REQUEST, "name a proxy: ?proxyID=POD.NAMESPACE\n").into_response();
    }
    let found = admin
        .hub
        .clients()
        .into_iter()
        .find(|c| c.client.proxy_id() == query.proxy_id || c.client.raw_id == query.proxy_id);
    if let Some(handle) = &found
        && let Some(held) = handle.held().await
    {
        return crate::xds::dump::respond(&handle.client, &held, &query.types).await;
    }
    (StatusCode::NOT_FOUND, format!("{:?} is not connected\n", query.proxy_id)).into_response()
}

/// All objects in force, with what they must be told of themselves, and what is wrong.
pub(super) async fn configz<G: Generator>(State(admin): State<Arc<Admin<G>>>) -> Json<Value> {
    let Some(source) = admin.source.load_full() else { return Json(json!({"objects": [], "findings": []})) };
    // The watch must not wait for what follows, nor must streams.
    let mut findings = source.read().findings.clone();
    let index = admin.index.load_full();
    let mut objects: Vec<Arc<Object>> = index.iter().flat_map(|index| index.all_objects().cloned()).collect();
    objects.sort_by(|a, b| a.key.cmp(&b.key));
    findings.extend(of_keys(&admin));
    findings.extend(of_resources(&admin));
    let shown = move |o: &Arc<Object>| {
        let mut out = object(o);
        let status = index.as_ref().and_then(|index| status::of(index, o));
        if let (Some(map), Some(status)) = (out.as_object_mut(), status) {
            map.insert("status".into(), serde_json::to_value(status).unwrap_or_default());
        }
        out
    };
    let page = tokio::task::spawn_blocking(move || {
        let objects: Vec<Value> = objects.iter().map(shown).collect();
        json!({"objects": objects, "findings": findings})
    });
    Json(page.await.unwrap_or_default())
}

/// What is wrong with objects.
pub(super) async fn findings<G: Generator>(State(admin): State<Arc<Admin<G>>>) -> Json<Value> {
    let Some(source) = admin.source.load_full() else { return Json(json!([])) };
    let mut findings = source.read().findings.clone();
    findings.extend(of_keys(&admin));
    findings.extend(of_resources(&admin));
    Json(serde_json::to_value(findings).unwrap_or_default())
}

/// What showed when resources were made, and when proxies refused those that an object had changed in Envoy's terms.
fn of_resources<G: Generator>(admin: &Admin<G>) -> Vec<Finding> {
    let (generator, Some(state)) = (admin.hub.generator(), admin.hub.state()) else { return vec![] };
    let mut out = generator.findings(&state.published);
    for handle in admin.hub.clients() {
        let acks = handle.acks.lock().clone();
        for (ty, ack) in TypeUrl::ALL.into_iter().zip(&acks).filter(|(_, ack)| ack.nacked) {
            let (Some((_, why)), Ok(view)) = (&ack.rejected, generator.view(&state.published, &handle.client)) else {
                continue;
            };
            for object in generator.patched_by(&view, ty) {
                let message =
                    format!("{} refused what this may have patched ({}): {why}", handle.client.proxy_id(), ty.short());
                let mut finding = Finding::error("spec.configPatches", message).code(codes::SCHEMA).on(&object.key);
                if let Some(position) = &object.position {
                    finding.file = Some(position.file.clone());
                    finding.line = Some(position.line);
                }
                out.push(finding);
            }
        }
    }
    out
}

/// Issuers whose keys could not be fetched.
fn of_keys<G: Generator>(admin: &Admin<G>) -> Vec<Finding> {
    let (Some(index), Some(standings)) = (admin.index.load_full(), admin.keys.load_full()) else { return vec![] };
    let standings = standings.read();
    let mut out = Vec::new();
    for (object, policy) in index.token_rules() {
        for (i, rule) in policy.jwt_rules.iter().enumerate() {
            let KeyOrigin::Fetched(source) = index.key_origin(&object.key.namespace, rule) else { continue };
            let Some(standing) = standings.get(&source) else { continue };
            let Some((at, why)) = &standing.failed else { continue };
            let now = match standing.good {
                Some(good) => format!("the keys of {} stay in force", text_time(good)),
                None => "tokens of this issuer are refused".to_owned(),
            };
            let message = format!("keys could not be fetched at {}: {why}; {now}", text_time(*at));
            let mut finding = Finding::warning(format!("spec.jwtRules[{i}]"), message).on(&object.key);
            if let Some(position) = &object.position {
                finding.file = Some(position.file.clone());
                finding.line = Some(position.line);
            }
            out.push(finding);
        }
    }
    out
}

/// An object as a manifest has it; secrets without their content.
fn object(object: &Object) -> Value {
    let kind = object.key.kind;
    let version = kind.versions().first().copied().unwrap_or_default();
    let api = if kind.group().is_empty() { version.to_owned() } else { format!("{}/{version}", kind.group()) };
    let spec = match serde_json::to_value(&object.spec) {
        // The name of the variant around it.
        Ok(Value::Object(map)) => map.into_iter().next().map(|(_, v)| v).unwrap_or_default(),
        _ => Value::Null,
    };
    let mut out = json!({
        "apiVersion": api,
        "kind": kind.name(),
        "metadata": {
            "name": object.key.name,
            "namespace": object.key.namespace,
            "labels": object.meta.labels,
            "annotations": object.meta.annotations,
            "creationTimestamp": object.meta.creation,
        },
        "position": object.position,
    });
    let key = if matches!(kind, Kind::Secret | Kind::ConfigMap) { "data" } else { "spec" };
    if let Some(map) = out.as_object_mut() {
        map.insert(key.into(), spec);
    }
    out
}
