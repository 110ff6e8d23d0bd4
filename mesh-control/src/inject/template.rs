//! The containers and volumes that are injected: Istio's templates `sidecar` and `gateway`, for mesh-proxy.

use mesh_api::meshconfig::{MeshConfig, ProxySettings};

use super::annotations::{INTERCEPTION_MODE, STATUS_PORT, truth};
use super::node::{Map, Node};
use super::values::Values;

/// Name of the proxy's container.
pub const PROXY: &str = "istio-proxy";
/// Name of the init container that redirects traffic.
pub const INIT: &str = "istio-init";
/// The user that the proxy runs as.
pub const PROXY_USER: u64 = 1337;
/// Where readiness is asked for.
const READY_PORT: u64 = 15021;
/// Where keys and certificate are kept: in memory, so that a restarted container serves at once.
const STATE_DIR: &str = "/etc/istio/proxy";

/// What the pod belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// `apiVersion`.
    pub api_version: String,
    /// `kind`.
    pub kind: String,
    /// Name; empty when the API server will make it.
    pub name: String,
}

/// What a pod is rendered from.
#[derive(Debug)]
pub struct Render<'a> {
    /// Operator's values.
    pub values: &'a Values,
    /// Mesh-wide settings.
    pub mesh: &'a MeshConfig,
    /// Settings of this proxy.
    pub proxy: &'a ProxySettings,
    /// Annotations of the pod.
    pub annotations: &'a Map,
    /// Labels of the pod.
    pub labels: &'a Map,
    /// The pod without anything injected.
    pub spec: &'a Node,
    /// Namespace.
    pub namespace: &'a str,
    /// What it belongs to.
    pub owner: &'a Owner,
    /// The user the proxy runs as.
    pub user: u64,
    /// Whether it is a gateway.
    pub gateway: bool,
    /// Whether the sidecar is an init container that stays.
    pub native: bool,
    /// Whether applications wait for the proxy.
    pub hold: bool,
}

fn variable(name: &str, value: impl Into<Node>) -> Node {
    Node::map([("name", name.into()), ("value", value.into())])
}

/// A variable whose value is a field of the pod.
fn of_field(name: &str, path: &str) -> Node {
    let field = Node::map([("fieldRef", Node::map([("fieldPath", path.into())]))]);
    Node::map([("name", name.into()), ("valueFrom", field)])
}

fn ready(failure_threshold: u64, period: u64, initial_delay: u64) -> Node {
    let get = Node::map([("path", "/healthz/ready".into()), ("port", READY_PORT.into())]);
    Node::map([
        ("httpGet", get),
        ("initialDelaySeconds", initial_delay.into()),
        ("periodSeconds", period.into()),
        ("timeoutSeconds", 3.into()),
        ("failureThreshold", failure_threshold.into()),
    ])
}

fn text(s: &str) -> Option<&str> {
    if s.is_empty() { None } else { Some(s) }
}

impl Render<'_> {
    /// A pod's annotation, or the value that stands in for it.
    fn annotation<'s>(&'s self, name: &str, otherwise: &'s str) -> &'s str {
        self.annotations.get(name).and_then(Node::as_str).unwrap_or(otherwise)
    }

    fn count(&self, name: &str, otherwise: u32) -> u64 {
        let given = self.annotations.get(name).and_then(Node::as_str);
        given.and_then(|text| text.parse().ok()).unwrap_or(u64::from(otherwise))
    }

    fn label(&self, name: &str) -> Option<&str> {
        self.labels.get(name).and_then(Node::as_str)
    }

    /// How traffic reaches the proxy: `REDIRECT` or `NONE`.
    pub fn interception_mode(&self) -> &'static str {
        match self.annotation(INTERCEPTION_MODE, &self.proxy.interception_mode) {
            "NONE" => "NONE",
            _ => "REDIRECT",
        }
    }

    /// Port of merged metrics and probes.
    pub fn status_port(&self) -> u16 {
        let configured = self.proxy.status_port.filter(|p| *p != 0).unwrap_or(self.values.global.proxy.status_port);
        self.annotation(STATUS_PORT, "").parse().unwrap_or(configured)
    }

    /// Names of the pod's own containers.
    pub fn applications(&self) -> Vec<&str> {
        self.spec.items("containers").iter().map(Node::name).filter(|n| *n != PROXY).collect()
    }

    /// Network of the workload; empty: none.
    pub fn network(&self) -> &str {
        self.label(mesh_api::labels::NETWORK).unwrap_or(&self.values.global.network)
    }

    fn image(&self, name: &str) -> String {
        let of_settings = self.proxy.image.as_ref().map(|i| i.image_type.as_str()).unwrap_or_default();
        let kind = self.annotation("sidecar.istio.io/proxyImageType", of_settings);
        self.values.image(self.annotation("sidecar.istio.io/proxyImage", name), kind)
    }

    /// The container that redirects traffic, if any is to be redirected.
    pub fn init_container(&self) -> Option<Node> {
        if self.gateway || self.interception_mode() == "NONE" {
            return None;
        }
        let global = &self.values.global;
        let image = match global.proxy_init.image.as_str() {
            "" => self.image(&global.proxy.image),
            own => self.image(own),
        };
        let capabilities = Node::map([("add", vec!["NET_ADMIN", "NET_RAW"].into()), ("drop", vec!["ALL"].into())]);
        let security = Node::map([
            ("allowPrivilegeEscalation", global.proxy.privileged.into()),
            ("capabilities", capabilities),
            ("privileged", global.proxy.privileged.into()),
            ("readOnlyRootFilesystem", true.into()),
            ("runAsGroup", 0.into()),
            ("runAsNonRoot", false.into()),
            ("runAsUser", 0.into()),
        ]);
        // Where iptables sets the rules it locks a file, which an image does not have.
        let lock = Node::map([("name", "istio-init-run".into()), ("mountPath", "/run".into())]);
        Some(Node::map([
            ("name", INIT.into()),
            ("image", image.into()),
            ("imagePullPolicy", text(&global.image_pull_policy).into()),
            ("args", self.capture().into()),
            ("resources", self.resources()),
            ("securityContext", security),
            ("volumeMounts", vec![lock].into()),
        ]))
    }

    /// Words of `mesh-proxy capture`.
    fn capture(&self) -> Vec<String> {
        const TRAFFIC: &str = "traffic.sidecar.istio.io/";
        let proxy = &self.values.global.proxy;
        let of = |name: &str, otherwise: &str| self.annotation(&format!("{TRAFFIC}{name}"), otherwise).to_owned();
        let port = |given: Option<u16>, usual: u16| given.filter(|p| *p != 0).unwrap_or(usual).to_string();
        let mut exclude = vec!["15090".to_owned(), READY_PORT.to_string(), self.status_port().to_string()];
        let more = of("excludeInboundPorts", &proxy.exclude_inbound_ports);
        exclude.extend(more.split(',').map(str::trim).filter(|p| !p.is_empty()).map(str::to_owned));
        let mut words: Vec<String> = vec!["capture".to_owned(), "apply".to_owned()];
        let mut flag = |name: &str, value: String| words.extend([name.to_owned(), value]);
        flag("-p", port(self.mesh.proxy_listen_port, 15001));
        flag("-z", port(self.mesh.proxy_inbound_listen_port, 15006));
        flag("-u", self.user.to_string());
        flag("-m", "REDIRECT".to_owned());
        flag("-i", of("includeOutboundIPRanges", &proxy.include_ip_ranges));
        flag("-x", of("excludeOutboundIPRanges", &proxy.exclude_ip_ranges));
        flag("-b", of("includeInboundPorts", &proxy.include_inbound_ports));
        flag("-d", exclude.join(","));
        for (name, value) in [
            ("-q", of("includeOutboundPorts", &proxy.include_outbound_ports)),
            ("-o", of("excludeOutboundPorts", &proxy.exclude_outbound_ports)),
            ("-c", of("excludeInterfaces", "")),
            ("-k", self.annotation("istio.io/reroute-virtual-interfaces", &of("kubevirtInterfaces", "")).to_owned()),
        ] {
            if !value.is_empty() {
                flag(name, value);
            }
        }
        if self.values.global.native_nftables {
            flag("--backend", "nft".to_owned());
        }
        if self.proxy.proxy_metadata.get("ISTIO_META_DNS_CAPTURE").is_some_and(|t| truth(t) == Some(true)) {
            words.push("--redirect-dns".to_owned());
        }
        words.push("--run-validation".to_owned());
        words
    }

    /// The proxy's container.
    pub fn proxy_container(&self) -> Node {
        let global = &self.values.global;
        let proxy = &global.proxy;
        let metrics = Node::map([
            ("name", "http-envoy-prom".into()),
            ("containerPort", 15090.into()),
            ("protocol", "TCP".into()),
        ]);
        const ASKED: &str = "readiness.status.sidecar.istio.io/";
        let readiness = (self.status_port() != 0).then(|| {
            ready(
                self.count(&format!("{ASKED}failureThreshold"), proxy.readiness_failure_threshold),
                self.count(&format!("{ASKED}periodSeconds"), proxy.readiness_period_seconds),
                self.count(&format!("{ASKED}initialDelaySeconds"), proxy.readiness_initial_delay_seconds),
            )
        });
        // What comes after it in the pod waits for this one.
        let startup = (proxy.startup_probe.enabled && self.native && !self.gateway)
            .then(|| ready(u64::from(proxy.startup_probe.failure_threshold), 1, 0));
        let lifecycle = match &proxy.lifecycle {
            Node::Null if self.hold && !self.native && !self.gateway => {
                let wait = Node::map([("exec", Node::map([("command", vec!["mesh-proxy", "wait"].into())]))]);
                Node::map([("postStart", wait)])
            }
            given => given.clone(),
        };
        let security = Node::map([
            ("allowPrivilegeEscalation", proxy.privileged.into()),
            ("capabilities", Node::map([("drop", vec!["ALL"].into())])),
            ("privileged", proxy.privileged.into()),
            ("readOnlyRootFilesystem", true.into()),
            ("runAsGroup", self.user.into()),
            ("runAsNonRoot", true.into()),
            ("runAsUser", self.user.into()),
        ]);
        Node::map([
            ("name", PROXY.into()),
            ("image", self.image(&proxy.image).into()),
            ("imagePullPolicy", text(&global.image_pull_policy).into()),
            ("restartPolicy", (self.native && !self.gateway).then_some("Always").into()),
            ("args", self.arguments().into()),
            ("ports", vec![metrics].into()),
            ("lifecycle", lifecycle),
            ("env", self.environment().into()),
            ("startupProbe", startup.into()),
            ("readinessProbe", readiness.into()),
            ("resources", self.resources()),
            ("securityContext", security),
            ("volumeMounts", self.mounts().into()),
        ])
    }

    /// Words of `mesh-proxy sidecar|gateway`.
    fn arguments(&self) -> Vec<String> {
        let proxy = &self.values.global.proxy;
        let mut words: Vec<String> = vec![if self.gateway { "gateway" } else { "sidecar" }.to_owned()];
        let level = self.annotation("sidecar.istio.io/logLevel", &proxy.log_level).to_owned();
        words.extend(["--domain".to_owned(), proxy.cluster_domain.clone(), "--log-level".to_owned(), level]);
        words.extend(["--state-dir".to_owned(), STATE_DIR.to_owned()]);
        if let Some(n) = self.concurrency() {
            words.extend(["--concurrency".to_owned(), n.to_string()]);
        }
        words
    }

    /// Worker threads: as configured (0: all cores), else as many as the limit of CPU lets run.
    fn concurrency(&self) -> Option<u64> {
        match self.proxy.concurrency {
            Some(n) => u64::try_from(n).ok().filter(|n| *n > 0),
            None => self.resources().at(&["limits", "cpu"]).and_then(cores),
        }
    }

    fn resources(&self) -> Node {
        const OF: &str = "sidecar.istio.io/proxy";
        let given = |name: &str| self.annotations.get(&format!("{OF}{name}")).cloned().unwrap_or_default();
        let pair = |cpu: Node, memory: Node| match Node::map([("cpu", cpu), ("memory", memory)]) {
            Node::Map(map) if map.is_empty() => Node::Null,
            some => some,
        };
        let requests = pair(given("CPU"), given("Memory"));
        let limits = pair(given("CPULimit"), given("MemoryLimit"));
        if requests == Node::Null && limits == Node::Null {
            return self.values.global.proxy.resources.clone();
        }
        Node::map([("requests", requests), ("limits", limits)])
    }

    fn environment(&self) -> Vec<Node> {
        let global = &self.values.global;
        let control = text(&self.proxy.discovery_address).map_or_else(|| self.values.control_plane(), str::to_owned);
        let mut env = vec![
            variable("CA_ADDR", control),
            of_field("POD_NAME", "metadata.name"),
            of_field("POD_NAMESPACE", "metadata.namespace"),
            of_field("INSTANCE_IP", "status.podIP"),
            of_field("SERVICE_ACCOUNT", "spec.serviceAccountName"),
            of_field("HOST_IP", "status.hostIP"),
            variable("PROXY_CONFIG", serde_json::to_string(self.proxy).unwrap_or_default()),
            variable("ISTIO_META_POD_PORTS", self.pod_ports()),
            variable("ISTIO_META_APP_CONTAINERS", self.applications().join(",")),
            variable("ISTIO_META_CLUSTER_ID", text(&global.multi_cluster.cluster_name).unwrap_or("Kubernetes")),
            variable("ISTIO_META_INTERCEPTION_MODE", self.interception_mode()),
        ];
        if let Some(network) = text(self.network()) {
            env.push(variable("ISTIO_META_NETWORK", network));
        }
        let workload = self.label(mesh_api::labels::WORKLOAD_NAME).unwrap_or(&self.owner.name);
        if !workload.is_empty() {
            env.push(variable("ISTIO_META_WORKLOAD_NAME", workload));
        }
        if !self.owner.name.is_empty() {
            let Owner { api_version, kind, name } = self.owner;
            let (kind, namespace) = (kind.to_lowercase(), self.namespace);
            let owner = format!("kubernetes://apis/{api_version}/namespaces/{namespace}/{kind}s/{name}");
            env.push(variable("ISTIO_META_OWNER", owner));
        }
        let mesh_id = text(&global.mesh_id).unwrap_or(self.mesh.trust_domain());
        env.push(variable("ISTIO_META_MESH_ID", mesh_id));
        env.push(variable("TRUST_DOMAIN", self.mesh.trust_domain()));
        if self.status_port() != 15020 {
            env.push(variable("ISTIO_STATUS_PORT", self.status_port().to_string()));
        }
        if let Some(drain) = self.proxy.termination_drain_duration {
            env.push(variable("TERMINATION_DRAIN_DURATION_SECONDS", drain.0.as_secs().to_string()));
        }
        for (name, value) in &self.proxy.proxy_metadata {
            env.retain(|v| v.name() != name);
            env.push(variable(name, value.as_str()));
        }
        env
    }

    /// The ports that applications declare, as JSON.
    fn pod_ports(&self) -> String {
        let containers = self.spec.items("containers").iter().filter(|c| c.name() != PROXY);
        let ports: Vec<&Node> = containers.flat_map(|c| c.items("ports")).collect();
        serde_json::to_string(&ports).unwrap_or_default()
    }

    fn mounts(&self) -> Vec<Node> {
        let mount = |name: &str, path: &str| Node::map([("name", name.into()), ("mountPath", path.into())]);
        let mut mounts = vec![
            mount("istiod-ca-cert", "/var/run/secrets/istio"),
            mount("istio-envoy", STATE_DIR),
            mount("istio-token", "/var/run/secrets/tokens"),
            mount("istio-podinfo", "/etc/istio/pod"),
        ];
        mounts.extend(self.users("sidecar.istio.io/userVolumeMount"));
        mounts
    }

    /// What the user adds by an annotation: an object of objects, by name.
    fn users(&self, annotation: &str) -> Vec<Node> {
        let given = serde_json::from_str(self.annotation(annotation, "{}"));
        let Ok(Node::Map(given)) = given else { return vec![] };
        let named = |(name, value): (String, Node)| {
            let mut all = Map::from_iter([("name".to_owned(), Node::Text(name))]);
            all.extend(value.as_map().cloned().unwrap_or_default());
            Node::Map(all)
        };
        given.into_iter().map(named).collect()
    }

    /// The volumes of both containers.
    pub fn volumes(&self) -> Vec<Node> {
        let item = |path: &str| {
            let field = Node::map([("fieldPath", format!("metadata.{path}").into())]);
            Node::map([("path", path.into()), ("fieldRef", field)])
        };
        let token = Node::map([
            ("path", "istio-token".into()),
            ("expirationSeconds", 43200.into()),
            ("audience", "istio-ca".into()),
        ]);
        let sources = vec![Node::map([("serviceAccountToken", token)])];
        let in_memory = Node::map([("medium", "Memory".into())]);
        let root = Node::map([("name", "istio-ca-root-cert".into())]);
        let podinfo = Node::map([("items", vec![item("labels"), item("annotations")].into())]);
        let mut volumes = vec![
            Node::map([("name", "istiod-ca-cert".into()), ("configMap", root)]),
            Node::map([("name", "istio-envoy".into()), ("emptyDir", in_memory.clone())]),
            Node::map([("name", "istio-token".into()), ("projected", Node::map([("sources", sources.into())]))]),
            Node::map([("name", "istio-podinfo".into()), ("downwardAPI", podinfo)]),
        ];
        if self.init_container().is_some() {
            volumes.push(Node::map([("name", "istio-init-run".into()), ("emptyDir", in_memory)]));
        }
        volumes.extend(self.users("sidecar.istio.io/userVolume"));
        volumes
    }
}

/// Whole cores of a quantity such as `2`, `1500m` or `0.5`.
fn cores(quantity: &Node) -> Option<u64> {
    let text = match quantity {
        Node::Text(text) => text.clone(),
        Node::Number(n) => n.to_string(),
        _ => return None,
    };
    let cores = match text.strip_suffix('m') {
        Some(millis) => millis.parse::<u64>().ok()?.div_ceil(1000),
        // At most some hundred in a machine; a strange quantity is none.
        None => (1..=4096).find(|n: &u64| text.parse::<f64>().is_ok_and(|q| q > 0.0 && q <= *n as f64))?,
    };
    (cores > 0).then_some(cores)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_of_cores() {
        let of = |text: &str| cores(&text.into());
        assert_eq!([of("2"), of("2000m"), of("1001m"), of("0.1"), of("1.5")].map(Option::unwrap), [2, 2, 2, 1, 2]);
        assert_eq!([of(""), of("0"), of("x"), of("-1"), of("0m"), of("NaN")], [None; 6]);
    }
}
