//! `/debug/workloadz` and `/debug/servicez`: what is in force for a pod and for a service beside what proxies are sent.
//!
//! Owns these pages' shape. Policies, rules and endpoints are as the index selects them, so a page says what translation
//! acts upon.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Query, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use mesh_api::labels::{Labels, selects};
use serde::Deserialize;
use serde_json::{Value, json};

use super::Admin;
use crate::{
    index::{Health, Index, Mtls, Protocol, Service, ServiceEntry, TargetPort, Workload, rules},
    source::object::{Kind, Object, ObjectKey, Spec},
    translate::policy::is_dry,
    xds::generator::Generator,
};

/// What is asked for.
#[derive(Debug, Deserialize)]
pub(super) struct Asked {
    /// `NAME.NAMESPACE`.
    #[serde(default)]
    name: String,
    /// Namespace of the clients from whose side a service is looked at; empty: its own.
    #[serde(default)]
    client: String,
}

impl Asked {
    fn parts(&self) -> Option<(&str, &str)> {
        self.name.rsplit_once('.').filter(|(name, namespace)| !name.is_empty() && !namespace.is_empty())
    }
}

/// A pod: its services, and the policies that hold for it.
pub(super) async fn workload<G: Generator>(State(admin): State<Arc<Admin<G>>>, Query(asked): Query<Asked>) -> Response {
    respond(&admin, &asked, of_pod)
}

/// A service: its ports, its endpoints and the rules for it, from the side of a namespace.
pub(super) async fn service<G: Generator>(State(admin): State<Arc<Admin<G>>>, Query(asked): Query<Asked>) -> Response {
    respond(&admin, &asked, |index, name, namespace| {
        let client = if asked.client.is_empty() { namespace } else { &asked.client };
        let found = index.services().find(|e| {
            let service = e.service.arc();
            *service.key.namespace == *namespace && (*service.name == *name || *service.key.host == *name)
        });
        Some(of_service(index, found?, client, &Labels::new()))
    })
}

fn respond<G: Generator>(
    admin: &Admin<G>,
    asked: &Asked,
    page: impl FnOnce(&Index, &str, &str) -> Option<Value>,
) -> Response {
    let Some((name, namespace)) = asked.parts() else {
        return (StatusCode::BAD_REQUEST, "name one: ?name=NAME.NAMESPACE\n").into_response();
    };
    let Some(index) = admin.index.load_full() else {
        return (StatusCode::SERVICE_UNAVAILABLE, "the configuration has not been read yet\n").into_response();
    };
    match page(&index, name, namespace) {
        Some(page) => Json(page).into_response(),
        None => (StatusCode::NOT_FOUND, format!("{:?} is not known here\n", asked.name)).into_response(),
    }
}

fn of_pod(index: &Index, name: &str, namespace: &str) -> Option<Value> {
    let object = index.object(&ObjectKey::new(Kind::Pod, namespace, name))?;
    let Spec::Pod(pod) = &object.spec else { return None };
    let labels = &object.meta.labels;
    let workload = Workload::declared(object).into_iter().next();
    let behind = |e: &&ServiceEntry| {
        let service = e.service.arc();
        *service.key.namespace == *namespace && service.selectors.iter().any(|s| selects(s, labels))
    };
    let services = index.services().filter(behind).map(|e| of_service(index, e, namespace, labels));
    let named = |kind| index.policies(kind, namespace, labels).into_iter();
    let authorization = named(Kind::AuthorizationPolicy).filter_map(|o| match &o.spec {
        Spec::AuthorizationPolicy(p) => {
            Some(json!({"namespace": o.key.namespace, "name": o.key.name, "action": p.action, "dryRun": is_dry(o)}))
        }
        _ => None,
    });
    Some(json!({
        "name": name,
        "namespace": namespace,
        "labels": labels,
        "ips": pod.ips,
        "serviceAccount": pod.service_account,
        "workload": workload.as_ref().map(|w| &*w.name),
        "meshTls": workload.is_some_and(|w| w.mesh_tls),
        "ready": pod.ready,
        "hostNetwork": pod.host_network,
        "services": services.collect::<Vec<_>>(),
        "peerAuthentication": peer_authn(index, namespace, labels),
        "authorizationPolicies": authorization.collect::<Vec<_>>(),
        "requestAuthentications": named(Kind::RequestAuthentication).map(reference).collect::<Vec<_>>(),
        "sidecar": index.sidecar_for(namespace, labels).map(reference),
    }))
}

fn reference(object: &Arc<Object>) -> Value {
    json!({"namespace": object.key.namespace, "name": object.key.name})
}

fn peer_authn(index: &Index, namespace: &str, labels: &Labels) -> Value {
    let effective = index.peer_authn(namespace, labels);
    let ports = effective.ports.iter().map(|(port, mode)| (port.to_string(), json!(mode_word(*mode))));
    json!({
        "mode": mode_word(effective.mode),
        "ports": ports.collect::<serde_json::Map<_, _>>(),
        "policies": index.peer_authn_policies(namespace, labels).into_iter().map(reference).collect::<Vec<_>>(),
    })
}

fn mode_word(mode: Mtls) -> &'static str {
    match mode {
        Mtls::Disable => "DISABLE",
        Mtls::Permissive => "PERMISSIVE",
        Mtls::Strict => "STRICT",
    }
}

/// From the side of clients of namespace `client` with these labels.
fn of_service(index: &Index, entry: &ServiceEntry, client: &str, labels: &Labels) -> Value {
    let service = entry.service.arc();
    let rule = rules::select(index.destination_rules(service, client), client, labels).map(|rule| {
        let rule = rule.arc();
        let subset = |s: &mesh_api::crd::networking::Subset| json!({"name": s.name, "labels": s.labels});
        json!({
            "host": &*rule.host,
            "sources": rule.sources.iter().map(|k| json!({"namespace": k.namespace, "name": k.name})).collect::<Vec<_>>(),
            "subsets": rule.spec.subsets.iter().map(subset).collect::<Vec<_>>(),
            "trafficPolicy": rule.spec.traffic_policy.is_some(),
        })
    });
    let mut pods: Vec<String> = entry
        .endpoints
        .arc()
        .iter()
        .map(|(_, e)| &e.workload.source.0)
        .filter(|key| key.kind == Kind::Pod)
        .map(|key| format!("{}.{}", key.name, key.namespace))
        .collect();
    pods.sort();
    pods.dedup();
    json!({
        "host": &*service.key.host,
        "name": &*service.name,
        "namespace": &*service.key.namespace,
        "origin": service.origin.to_string(),
        "headless": service.headless,
        "external": service.external,
        "selectors": service.selectors,
        "ports": service.ports.iter().map(|port| of_port(service, port, entry)).collect::<Vec<_>>(),
        "pods": pods,
        "destinationRule": rule,
    })
}

fn of_port(service: &Service, port: &crate::index::ServicePort, entry: &ServiceEntry) -> Value {
    let serving = entry.endpoints.arc().iter().filter(|(_, e)| e.port(port.port).is_some());
    let (healthy, other): (Vec<_>, Vec<_>) =
        serving.partition(|(_, e)| e.health == Health::Healthy || service.publish_not_ready);
    let target = match &port.target {
        TargetPort::Number(number) => json!(number),
        TargetPort::Named(name) => json!(&**name),
    };
    json!({
        "name": &*port.name,
        "port": port.port,
        "protocol": protocol_word(port.protocol),
        "targetPort": target,
        "endpoints": {"healthy": healthy.len(), "other": other.len()},
    })
}

/// As Istio writes it; `auto`: not declared, looked at when a connection comes in.
fn protocol_word(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Grpc => "GRPC",
        Protocol::GrpcWeb => "GRPC-Web",
        Protocol::Http => "HTTP",
        Protocol::Http2 => "HTTP2",
        Protocol::HttpProxy => "HTTP_PROXY",
        Protocol::Https => "HTTPS",
        Protocol::Tcp => "TCP",
        Protocol::Tls => "TLS",
        Protocol::Udp => "UDP",
        Protocol::Mongo => "Mongo",
        Protocol::Redis => "Redis",
        Protocol::MySql => "MySQL",
        Protocol::Auto => "auto",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::testing::writer;

    const OBJECTS: &str = "
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: shop, labels: {app: web, version: v1, security.istio.io/tlsMode: istio}}
spec: {serviceAccountName: web, containers: [{name: app, ports: [{name: http, containerPort: 8080}]}]}
status: {phase: Running, podIP: 10.0.0.1, podIPs: [{ip: 10.0.0.1}], conditions: [{type: Ready, status: 'True'}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.1.0.1, selector: {app: web}, ports: [{name: http, port: 80, targetPort: http}, {name: x, port: 81}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-x, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints: [{addresses: [10.0.0.1], conditions: {ready: true}, targetRef: {kind: Pod, name: web-1, namespace: shop}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: web, namespace: shop}
spec: {host: web, subsets: [{name: v1, labels: {version: v1}}]}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: mesh, namespace: istio-system}
spec: {mtls: {mode: STRICT}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: web, namespace: shop}
spec: {selector: {matchLabels: {app: web}}, portLevelMtls: {8080: {mode: DISABLE}}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: deny, namespace: shop, annotations: {istio.io/dry-run: 'true'}}
spec: {action: DENY, selector: {matchLabels: {app: web}}, rules: [{}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: other, namespace: shop}
spec: {selector: {matchLabels: {app: other}}}
";

    #[test]
    fn a_pod_with_what_holds_for_it() {
        let writer = writer(OBJECTS);
        let page = of_pod(writer.index(), "web-1", "shop").unwrap();
        let reference = |namespace: &str, name: &str| json!({"namespace": namespace, "name": name});
        assert_eq!(
            page["peerAuthentication"],
            json!({"mode": "STRICT", "ports": {"8080": "DISABLE"},
                   "policies": [reference("istio-system", "mesh"), reference("shop", "web")]})
        );
        assert_eq!(
            page["authorizationPolicies"],
            json!([{"namespace": "shop", "name": "deny", "action": "DENY", "dryRun": true}])
        );
        assert_eq!((&page["meshTls"], &page["serviceAccount"]), (&json!(true), &json!("web")));
        let service = &page["services"][0];
        assert_eq!(service["host"], "web.shop.svc.cluster.local");
        assert_eq!(service["pods"], json!(["web-1.shop"]));
        assert_eq!(
            service["ports"][0],
            json!({"name": "http", "port": 80, "protocol": "HTTP", "targetPort": "http",
                   "endpoints": {"healthy": 1, "other": 0}})
        );
        assert_eq!(service["ports"][1]["protocol"], "auto");
        assert_eq!(service["ports"][1]["endpoints"]["healthy"], 0);
        assert_eq!(service["destinationRule"]["subsets"], json!([{"name": "v1", "labels": {"version": "v1"}}]));
        assert!(of_pod(writer.index(), "web-2", "shop").is_none());
    }
}
