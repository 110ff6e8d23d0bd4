//! What an operator may set about injection: the part of Istio's Helm values that it reads. Other values are for others.

use std::collections::BTreeMap;

use mesh_api::crd::gateway_api::LabelSelector;
use serde::Deserialize;
use serde_json::Value;

use super::node::Node;

/// Values, by Istio's names.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Values {
    /// Revision of the control plane; empty: `default`.
    pub revision: String,
    /// `global`.
    pub global: Global,
    /// `sidecarInjectorWebhook`.
    pub sidecar_injector_webhook: Webhook,
    /// `pilot`.
    pub pilot: Pilot,
}

/// `global`.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Global {
    /// Where images are; empty: the container runtime's own default.
    pub hub: String,
    /// Tag of images, text or a number.
    pub tag: Value,
    /// `imagePullPolicy` of injected containers.
    pub image_pull_policy: String,
    /// Secrets for pulling, by name.
    pub image_pull_secrets: Vec<String>,
    /// Namespace of the control plane.
    pub istio_namespace: String,
    /// HOST:PORT of the control plane, if it is not the revision's Service.
    pub ca_address: String,
    /// Id of the mesh.
    #[serde(rename = "meshID")]
    pub mesh_id: String,
    /// Network of workloads.
    pub network: String,
    /// `multiCluster`.
    pub multi_cluster: MultiCluster,
    /// `proxy`.
    pub proxy: Proxy,
    /// `proxy_init`.
    #[serde(rename = "proxy_init")]
    pub proxy_init: ProxyInit,
    /// Set rules by nft alone.
    pub native_nftables: bool,
}

/// `global.multiCluster`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MultiCluster {
    /// Id of the cluster; empty: `Kubernetes`.
    pub cluster_name: String,
}

/// `global.proxy`.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Proxy {
    /// Name of the image, or a whole reference.
    pub image: String,
    /// Domain of the cluster.
    pub cluster_domain: String,
    /// Log level, in Envoy's words.
    pub log_level: String,
    /// Destinations to capture.
    #[serde(rename = "includeIPRanges")]
    pub include_ip_ranges: String,
    /// Destinations not to capture.
    #[serde(rename = "excludeIPRanges")]
    pub exclude_ip_ranges: String,
    /// Inbound ports to capture.
    pub include_inbound_ports: String,
    /// Inbound ports not to capture.
    pub exclude_inbound_ports: String,
    /// Outbound ports to capture whatever the destination.
    pub include_outbound_ports: String,
    /// Outbound ports not to capture.
    pub exclude_outbound_ports: String,
    /// Port of merged metrics and application probes.
    pub status_port: u16,
    /// Seconds before readiness is asked first.
    pub readiness_initial_delay_seconds: u32,
    /// Seconds between questions.
    pub readiness_period_seconds: u32,
    /// Bad answers until the proxy counts as not ready.
    pub readiness_failure_threshold: u32,
    /// `startupProbe`.
    pub startup_probe: StartupProbe,
    /// Requests and limits.
    pub resources: Node,
    /// Whether containers are privileged.
    pub privileged: bool,
    /// Start applications when the proxy is ready.
    pub hold_application_until_proxy_starts: bool,
    /// `lifecycle` of the container.
    pub lifecycle: Node,
}

/// `global.proxy.startupProbe`.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct StartupProbe {
    /// Whether there is one.
    pub enabled: bool,
    /// Seconds until the proxy counts as failed.
    pub failure_threshold: u32,
}

/// `global.proxy_init`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ProxyInit {
    /// Image of the init container; empty: the proxy's.
    pub image: String,
}

/// `sidecarInjectorWebhook`.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Webhook {
    /// Whether probes of applications lead through the proxy.
    #[serde(rename = "rewriteAppHTTPProbe")]
    pub rewrite_app_http_probe: bool,
    /// Pods that are not injected.
    pub never_inject_selector: Vec<LabelSelector>,
    /// Pods that are.
    pub always_inject_selector: Vec<LabelSelector>,
    /// Annotations that every injected pod gets.
    pub injected_annotations: BTreeMap<String, String>,
    /// Namespaces without a label are injected.
    pub enable_namespaces_by_default: bool,
}

/// `pilot`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Pilot {
    /// Environment of the control plane; `ENABLE_NATIVE_SIDECARS` is read.
    pub env: BTreeMap<String, Value>,
}

impl Default for Global {
    fn default() -> Self {
        Self {
            hub: String::new(),
            tag: Value::String(env!("CARGO_PKG_VERSION").to_owned()),
            image_pull_policy: String::new(),
            image_pull_secrets: vec![],
            istio_namespace: "istio-system".to_owned(),
            ca_address: String::new(),
            mesh_id: String::new(),
            network: String::new(),
            multi_cluster: MultiCluster::default(),
            proxy: Proxy::default(),
            proxy_init: ProxyInit::default(),
            native_nftables: false,
        }
    }
}

impl Default for Proxy {
    fn default() -> Self {
        let quantity = |cpu: &str, memory: &str| Node::map([("cpu", cpu.into()), ("memory", memory.into())]);
        Self {
            image: "mesh-proxy".to_owned(),
            cluster_domain: "cluster.local".to_owned(),
            log_level: "warning".to_owned(),
            include_ip_ranges: "*".to_owned(),
            exclude_ip_ranges: String::new(),
            include_inbound_ports: "*".to_owned(),
            exclude_inbound_ports: String::new(),
            include_outbound_ports: String::new(),
            exclude_outbound_ports: String::new(),
            status_port: 15020,
            readiness_initial_delay_seconds: 0,
            readiness_period_seconds: 15,
            readiness_failure_threshold: 4,
            startup_probe: StartupProbe::default(),
            resources: Node::map([("requests", quantity("100m", "128Mi")), ("limits", quantity("2000m", "1024Mi"))]),
            privileged: false,
            hold_application_until_proxy_starts: false,
            lifecycle: Node::Null,
        }
    }
}

impl Default for StartupProbe {
    fn default() -> Self {
        Self { enabled: true, failure_threshold: 600 }
    }
}

impl Default for Webhook {
    fn default() -> Self {
        Self {
            rewrite_app_http_probe: true,
            never_inject_selector: vec![],
            always_inject_selector: vec![],
            injected_annotations: BTreeMap::new(),
            enable_namespaces_by_default: false,
        }
    }
}

impl Values {
    /// From a document of values and assignments `a.b=c` that come on top. Values that injection does not read are not
    /// looked at.
    ///
    /// # Errors
    /// The path and what is wrong there.
    pub fn read(text: &str, set: &[String]) -> Result<Self, String> {
        let mut all: Value = mesh_api::yaml::from_str(text).map_err(|e| e.to_string())?;
        if all.is_null() {
            all = Value::Object(serde_json::Map::new());
        }
        // A bundle of Istio's holds them below `values`.
        for assignment in set {
            let (path, value) =
                assignment.split_once('=').ok_or_else(|| format!("--set {assignment}: PATH=VALUE is expected"))?;
            assign(&mut all, path.strip_prefix("values.").unwrap_or(path), value)
                .ok_or_else(|| format!("--set {assignment}: something on the way is not an object"))?;
        }
        serde_path_to_error::deserialize(all).map_err(|e| format!("{}: {}", e.path(), e.inner()))
    }

    /// Revision, `default` if there is no other.
    pub fn revision(&self) -> &str {
        if self.revision.is_empty() { "default" } else { &self.revision }
    }

    /// HOST:PORT of the control plane.
    pub fn control_plane(&self) -> String {
        let global = &self.global;
        match (global.ca_address.as_str(), self.revision()) {
            ("", "default") => format!("istiod.{}.svc:15012", global.istio_namespace),
            ("", revision) => format!("istiod-{revision}.{}.svc:15012", global.istio_namespace),
            (address, _) => address.to_owned(),
        }
    }

    /// Whether sidecars are init containers that stay (Kubernetes 1.29 and later).
    pub fn native_sidecars(&self) -> bool {
        match self.pilot.env.get("ENABLE_NATIVE_SIDECARS") {
            Some(Value::Bool(b)) => *b,
            Some(Value::String(text)) => text != "false",
            _ => true,
        }
    }

    /// A whole image reference. `name` may be one already; `kind` is appended to the tag, as Istio's image types are.
    pub fn image(&self, name: &str, kind: &str) -> String {
        if name.contains('/') {
            return name.to_owned();
        }
        let tag = match &self.global.tag {
            Value::String(text) => text.clone(),
            Value::Null => env!("CARGO_PKG_VERSION").to_owned(),
            other => other.to_string(),
        };
        let bare = ["-distroless", "-debug"].iter().find_map(|s| tag.strip_suffix(s)).unwrap_or(&tag);
        let tag = match kind {
            "" => tag.clone(),
            "default" => bare.to_owned(),
            kind => format!("{bare}-{kind}"),
        };
        match self.global.hub.trim_end_matches('/') {
            "" => format!("{name}:{tag}"),
            hub => format!("{hub}/{name}:{tag}"),
        }
    }
}

/// Sets what is at a path; booleans and numbers become such, as with Helm.
fn assign(root: &mut Value, path: &str, text: &str) -> Option<()> {
    let value = match text {
        "null" => Value::Null,
        _ => match serde_json::from_str(text) {
            Ok(value @ (Value::Bool(_) | Value::Number(_))) => value,
            _ => Value::String(text.to_owned()),
        },
    };
    let mut at = root;
    for key in path.split('.') {
        let map = at.as_object_mut()?;
        at = map.entry(key).or_insert(Value::Object(serde_json::Map::new()));
    }
    *at = value;
    Some(())
}
