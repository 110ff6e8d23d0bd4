//! The objects of one Gateway: account, Service, Deployment, and what its parameters ask for beside. Pure.
//!
//! Owns their content. The proxy in the pods is made by `inject`, as in every other gateway.

use mesh_api::labels::{self, Labels, NETWORK};
use serde_json::{Map, Value, json};

use super::made::{Made, MadeKind};
use crate::{
    inject::{
        Owner, PROXY, Settings,
        annotations::INJECT,
        node::Node,
        overlay,
        pod::{self, Place},
    },
    translate::{
        gateway_api::{GATEWAY_NAME, GatewayEntry, ListenerEntry},
        gateway_infrastructure::{self as infrastructure, CONTROLLER_VERSION, Parameters, SERVICE_TYPE},
    },
};

/// Label of the class of a Gateway.
const CLASS_NAME: &str = "gateway.networking.k8s.io/gateway-class-name";
/// By this label all that is made is known.
pub const MANAGED: (&str, &str) = ("gateway.istio.io/managed", "istio.io-gateway-controller");
/// Version of what is made, by Istio's count: a control plane leaves alone what a newer one has made.
pub const VERSION: u32 = 5;
/// Where readiness is asked for.
const STATUS_PORT: u16 = 15021;

/// What objects are made from.
#[derive(Debug)]
pub struct Input<'a> {
    /// The Gateway.
    pub gateway: &'a GatewayEntry,
    /// Its listeners, those of ListenerSets among them.
    pub listeners: &'a [ListenerEntry],
    /// What comes on top.
    pub parameters: &'a Parameters,
    /// Settings of injection.
    pub settings: &'a Settings,
}

/// All of them, in the order in which they are to be there.
///
/// # Errors
/// What cannot be made, with the field that is wrong.
pub fn objects(input: &Input<'_>) -> Result<Vec<Made>, String> {
    let mut out = vec![input.service_account(), input.service(), input.deployment()?];
    for (kind, spec) in [
        (MadeKind::HorizontalPodAutoscaler, input.autoscaler()),
        (MadeKind::PodDisruptionBudget, json!({"selector": {"matchLabels": input.selector()}})),
    ] {
        if input.parameters.contains_key(kind.parameter()) {
            out.push(input.made(kind, &infrastructure::own_name(input.gateway), [("spec", spec)]));
        }
    }
    out.into_iter().map(|made| input.overlaid(made)).collect()
}

/// Annotations that say something to a proxy and its injection alone.
fn is_for_pods(annotation: &str) -> bool {
    let domain = annotation.split_once('/').map_or("", |(domain, _)| domain);
    domain.ends_with("sidecar.istio.io") || matches!(domain, "proxy.istio.io" | "inject.istio.io")
}

impl Input<'_> {
    fn labels(&self) -> Labels {
        let key = &self.gateway.object.key;
        let mut out = infrastructure::labels(self.gateway);
        out.insert(GATEWAY_NAME.to_owned(), infrastructure::label_value(&key.name).into_owned());
        out.insert(CLASS_NAME.to_owned(), self.gateway.spec.gateway_class_name.clone());
        out.insert(MANAGED.0.to_owned(), MANAGED.1.to_owned());
        out
    }

    fn selector(&self) -> Value {
        json!({GATEWAY_NAME: infrastructure::label_value(&self.gateway.object.key.name)})
    }

    fn metadata(&self, name: &str) -> Value {
        let object = &self.gateway.object;
        let mut annotations = infrastructure::annotations(self.gateway);
        annotations.retain(|name, _| !is_for_pods(name));
        json!({
            "name": name,
            "namespace": *object.key.namespace,
            "labels": self.labels(),
            "annotations": annotations,
            "ownerReferences": [{
                "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
                "name": *object.key.name, "uid": object.meta.uid,
            }],
        })
    }

    fn made<const N: usize>(&self, kind: MadeKind, name: &str, parts: [(&str, Value); N]) -> Made {
        let mut value = Map::new();
        value.insert("apiVersion".to_owned(), kind.api_version().into());
        value.insert("kind".to_owned(), kind.name().into());
        value.insert("metadata".to_owned(), self.metadata(name));
        value.extend(parts.map(|(key, part)| (key.to_owned(), part)));
        Made { kind, name: name.to_owned(), value: Value::Object(value), may_be_anothers: false }
    }

    fn service_account(&self) -> Made {
        let (name, may_be_anothers) = infrastructure::account(self.gateway);
        Made { may_be_anothers, ..self.made(MadeKind::ServiceAccount, &name, []) }
    }

    fn service(&self) -> Made {
        let name = infrastructure::own_name(self.gateway);
        let annotations = &self.gateway.object.meta.annotations;
        let kind = annotations.get(SERVICE_TYPE).map_or("LoadBalancer", String::as_str);
        let mut spec = json!({
            "type": kind,
            "ipFamilyPolicy": "PreferDualStack",
            "selector": self.selector(),
            "ports": self.ports(),
        });
        let asked = self.gateway.spec.addresses.first().map_or("", |a| a.value.as_str());
        if kind == "LoadBalancer" && !asked.is_empty() {
            spec["loadBalancerIP"] = asked.into();
        }
        self.made(MadeKind::Service, &name, [("spec", spec)])
    }

    /// The ports of listeners, each once, beside that of readiness.
    fn ports(&self) -> Vec<Value> {
        let port = |name: &str, port: u16, protocol: &str| json!({"name": name, "port": port, "protocol": "TCP", "appProtocol": protocol});
        let mut out = vec![port("status-port", STATUS_PORT, "tcp")];
        let mut known = vec![("status-port".to_owned(), STATUS_PORT)];
        for listener in self.listeners.iter().map(|l| &l.listener) {
            let protocol = listener.protocol.to_ascii_lowercase();
            let served = matches!(protocol.as_str(), "http" | "https" | "tls" | "tcp");
            if !served || known.iter().any(|(_, p)| *p == listener.port) {
                continue;
            }
            // Names of listeners may be longer, have dots, and be the same in several ListenerSets.
            let fits = listener.name.len() <= 63
                && !listener.name.contains('.')
                && !known.iter().any(|(name, _)| *name == listener.name);
            let name = if fits { listener.name.clone() } else { format!("{protocol}-{}", listener.port) };
            out.push(port(&name, listener.port, &protocol));
            known.push((name, listener.port));
        }
        out
    }

    fn deployment(&self) -> Result<Made, String> {
        let name = infrastructure::own_name(self.gateway);
        let pod = serde_json::to_value(self.pod(&name)?).map_err(|e| e.to_string())?;
        // How many there are is for others to say.
        let spec = json!({"selector": {"matchLabels": self.selector()}, "template": pod});
        let mut made = self.made(MadeKind::Deployment, &name, [("spec", spec)]);
        made.value["metadata"]["annotations"][CONTROLLER_VERSION] = VERSION.to_string().into();
        Ok(made)
    }

    fn pod(&self, name: &str) -> Result<Node, String> {
        let mut labels = self.labels();
        // It has its proxy.
        labels.insert(INJECT.to_owned(), "false".to_owned());
        labels.entry(labels::CANONICAL_NAME.to_owned()).or_insert_with(|| name.to_owned());
        labels.entry(labels::CANONICAL_REVISION.to_owned()).or_insert_with(|| "latest".to_owned());
        let ready = json!({
            "httpGet": {"path": "/healthz/ready", "port": STATUS_PORT},
            "initialDelaySeconds": 0, "periodSeconds": 1, "timeoutSeconds": 1, "failureThreshold": 30,
        });
        let mut proxy = json!({
            "name": PROXY,
            "image": "auto",
            "ports": [
                {"containerPort": 15020, "name": "metrics", "protocol": "TCP"},
                {"containerPort": STATUS_PORT, "name": "status-port", "protocol": "TCP"},
            ],
            "startupProbe": ready,
        });
        if let Some(network) = labels.get(NETWORK) {
            proxy["env"] = json!([{"name": "ISTIO_META_REQUESTED_NETWORK_VIEW", "value": network}]);
        }
        let pod = json!({
            "metadata": {"labels": labels, "annotations": infrastructure::annotations(self.gateway)},
            "spec": {
                "serviceAccountName": infrastructure::account(self.gateway).0,
                "securityContext": {
                    "seccompProfile": {"type": "RuntimeDefault"},
                    // Listeners have ports below 1024.
                    "sysctls": [{"name": "net.ipv4.ip_unprivileged_port_start", "value": "0"}],
                },
                "containers": [proxy],
            },
        });
        let mut pod: Node = serde_json::from_value(pod).map_err(|e| e.to_string())?;
        let owner = Owner { api_version: "apps/v1".to_owned(), kind: "Deployment".to_owned(), name: name.to_owned() };
        let namespace = &self.gateway.object.key.namespace;
        let place = Place { namespace, namespace_labels: None, owner: &owner, selected: true };
        pod::gateway(&mut pod, place, self.settings)
            .map_err(|e| format!("the pod cannot be made: {}: {}", e.field, e.message))?;
        Ok(pod)
    }

    fn autoscaler(&self) -> Value {
        let target = infrastructure::own_name(self.gateway);
        json!({"scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": target}, "maxReplicas": 1})
    }

    /// What the parameters say comes on top; whose it is stays.
    fn overlaid(&self, made: Made) -> Result<Made, String> {
        let Some(over) = self.parameters.get(made.kind.parameter()) else { return Ok(made) };
        let unreadable = |e: serde_json::Error| format!("{}: {e}", made.kind.parameter());
        let base: Node = serde_json::from_value(made.value.clone()).map_err(unreadable)?;
        let over: Node = serde_json::from_value(over.clone()).map_err(unreadable)?;
        let mut value = serde_json::to_value(overlay::merged(base, &over)).map_err(unreadable)?;
        let whose = &made.value;
        for field in ["apiVersion", "kind"] {
            value[field] = whose[field].clone();
        }
        let metadata = &mut value["metadata"];
        if !metadata.is_object() {
            *metadata = whose["metadata"].clone();
        }
        for field in ["name", "namespace", "ownerReferences"] {
            metadata[field] = whose["metadata"][field].clone();
        }
        let (labels, own) = (&mut metadata["labels"], &whose["metadata"]["labels"]);
        if !labels.is_object() {
            *labels = own.clone();
        }
        for label in [GATEWAY_NAME, CLASS_NAME, MANAGED.0] {
            labels[label] = own[label].clone();
        }
        Ok(Made { value, ..made })
    }
}
