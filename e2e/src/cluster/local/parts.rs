//! The parts of a node: their flags and files, and the plan by which its first process starts them.
//!
//! Why each setting is there is said here; in what order things start is the node program's.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::addresses::Addresses;
use super::{certificates, cgroups};
use crate::cluster::programs::Programs;
use crate::images::PAUSE;

/// containerd, in the node's own `/run`.
pub const CONTAINERD: &str = "/run/containerd/containerd.sock";

/// Where CoreDNS says that it is ready: a port that pods in the node's network hardly want.
const DNS_READY: &str = "127.0.0.1:10354";

/// Kernel settings that the kubelet insists on. They are the machine's, which keeps its own: the kubelet is shown these.
const PRETENDED: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

/// Kernel settings of the node's network. Replies to load balancers' addresses may leave by another way.
const NETWORK: [(&str, &str); 4] = [
    ("net/ipv4/ip_forward", "1"),
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/default/rp_filter", "0"),
    ("net/ipv4/conf/eth0/rp_filter", "0"),
];

/// What a node is made from.
#[derive(Debug)]
pub struct Parts<'a> {
    /// Name of the cluster.
    pub cluster: &'a str,
    /// Folder of the cluster's data.
    pub directory: &'a Path,
    /// What it runs.
    pub programs: &'a Programs,
    /// Its addresses.
    pub addresses: &'a Addresses,
    /// The node ends when its standard input does.
    pub tied: bool,
}

/// Name of a cluster's node.
pub fn node(cluster: &str) -> String {
    format!("{cluster}-1")
}

/// The words that import an archive, which is the last one more.
pub fn import(programs: &Programs) -> Vec<String> {
    let ctr = programs.nodetool("ctr").display().to_string();
    let words = ["-a", CONTAINERD, "-n", "k8s.io", "images", "import", "--local"];
    std::iter::once(ctr).chain(words.map(str::to_owned)).collect()
}

impl Parts<'_> {
    /// Writes all files; the plan's.
    ///
    /// # Errors
    /// When something cannot be written.
    pub fn write(&self, pause: &Path) -> Result<PathBuf> {
        for folder in ["log", "etc/cni", "varlog/pods", "varlib/kubelet", "varlib/cni", "plugins"] {
            let path = self.directory.join(folder);
            fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        }
        certificates::make(&self.pki(), &node(self.cluster), self.addresses)?;
        for (name, text) in [
            ("etc/containerd.toml", self.containerd()),
            ("etc/cni/10-mesh.conflist", self.cni().to_string()),
            ("etc/kubelet.yaml", format!("{:#}", self.kubelet())),
            ("etc/kube-proxy.yaml", format!("{:#}", self.kube_proxy())),
            ("etc/Corefile", self.corefile()),
            // The host's own would name servers that a node does not reach.
            ("etc/resolv.conf", format!("nameserver {}\n", self.addresses.node)),
            ("etc/plan.json", format!("{:#}", self.plan(pause))),
        ] {
            let path = self.directory.join(name);
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(self.directory.join("etc/plan.json"))
    }

    fn pki(&self) -> PathBuf {
        self.directory.join("pki")
    }

    fn file(&self, name: &str) -> String {
        self.directory.join(name).display().to_string()
    }

    fn plan(&self, pause: &Path) -> Value {
        let part = |name: &str, program: PathBuf, flags: Vec<String>| {
            let command: Vec<String> = std::iter::once(program.display().to_string()).chain(flags).collect();
            json!({ "name": name, "command": command })
        };
        let kube = |name: &str, flags| part(name, self.programs.kube(name), flags);
        let map = |pairs: &[(&str, &str)]| -> Value { pairs.iter().map(|(k, v)| (*k, *v)).collect() };
        let config = |file: &str| format!("--config={}", self.file(file));
        let balancers: Vec<String> = self.addresses.balancers().map(|a| a.to_string()).collect();
        json!({
            "hostname": node(self.cluster),
            "folders": [
                { "from": self.file("varlog"), "to": "/var/log" },
                { "from": self.file("varlib"), "to": "/var/lib" },
            ],
            "pretended": map(&PRETENDED),
            "sysctls": map(&NETWORK),
            "path": self.programs.path(),
            "logs": self.file("log"),
            "first": [
                part("containerd", self.programs.nodetool("containerd"), vec!["-c".into(), self.file("etc/containerd.toml")]),
                kube("etcd", self.etcd()),
                kube("kube-apiserver", self.apiserver()),
            ],
            "second": [
                kube("kube-controller-manager", self.controller_manager()),
                kube("kube-scheduler", self.scheduler()),
                kube("kubelet", vec![
                    config("etc/kubelet.yaml"),
                    format!("--kubeconfig={}", self.file("pki/kubelet.kubeconfig")),
                    format!("--hostname-override={}", node(self.cluster)),
                    format!("--node-ip={}", self.addresses.node),
                    "--root-dir=/var/lib/kubelet".to_owned(),
                    "--cert-dir=/var/lib/kubelet/pki".to_owned(),
                    format!(
                        "--node-labels=topology.kubernetes.io/region={0},topology.kubernetes.io/zone={0}-a",
                        self.cluster
                    ),
                ]),
                kube("kube-proxy", vec![config("etc/kube-proxy.yaml")]),
                part("coredns", self.programs.coredns(), vec!["-conf".into(), self.file("etc/Corefile")]),
            ],
            "images": [pause],
            "import": import(self.programs),
            "api": {
                "server": certificates::server(self.addresses),
                "authority": self.file("pki/ca.crt"),
                "certificate": self.file("pki/admin.crt"),
                "key": self.file("pki/admin.key"),
            },
            "objects": self.dns_objects(),
            "answering": [format!("http://{DNS_READY}/ready")],
            "loadBalancers": [balancers.first(), balancers.last()],
            "tied": self.tied,
            "started": self.file("started"),
            "failed": self.file("failed"),
        })
    }

    fn etcd(&self) -> Vec<String> {
        let (peer, client) = ("http://127.0.0.1:2380", "http://127.0.0.1:2379");
        vec![
            format!("--name={}", self.cluster),
            format!("--data-dir={}", self.file("etcd")),
            // What a crash of the machine would lose, tests do not miss.
            "--unsafe-no-fsync".to_owned(),
            format!("--listen-client-urls={client}"),
            format!("--advertise-client-urls={client}"),
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
            format!("--initial-cluster={}={peer}", self.cluster),
            "--auto-compaction-retention=10m".to_owned(),
            "--log-level=warn".to_owned(),
        ]
    }

    fn apiserver(&self) -> Vec<String> {
        let pki = |name: &str| self.file(&format!("pki/{name}"));
        vec![
            format!("--advertise-address={}", self.addresses.node),
            "--secure-port=6443".to_owned(),
            "--etcd-servers=http://127.0.0.1:2379".to_owned(),
            "--allow-privileged=true".to_owned(),
            "--authorization-mode=Node,RBAC".to_owned(),
            "--enable-admission-plugins=NodeRestriction".to_owned(),
            format!("--service-cluster-ip-range={}", self.addresses.services),
            format!("--client-ca-file={}", pki("ca.crt")),
            format!("--tls-cert-file={}", pki("apiserver.crt")),
            format!("--tls-private-key-file={}", pki("apiserver.key")),
            format!("--kubelet-certificate-authority={}", pki("ca.crt")),
            format!("--kubelet-client-certificate={}", pki("apiserver-kubelet-client.crt")),
            format!("--kubelet-client-key={}", pki("apiserver-kubelet-client.key")),
            "--kubelet-preferred-address-types=InternalIP".to_owned(),
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local".to_owned(),
            format!("--service-account-key-file={}", pki("sa.pub")),
            format!("--service-account-signing-key-file={}", pki("sa.key")),
            format!("--requestheader-client-ca-file={}", pki("front-proxy-ca.crt")),
            "--requestheader-allowed-names=front-proxy-client".to_owned(),
            "--requestheader-extra-headers-prefix=X-Remote-Extra-".to_owned(),
            "--requestheader-group-headers=X-Remote-Group".to_owned(),
            "--requestheader-username-headers=X-Remote-User".to_owned(),
            format!("--proxy-client-cert-file={}", pki("front-proxy-client.crt")),
            format!("--proxy-client-key-file={}", pki("front-proxy-client.key")),
            "--profiling=false".to_owned(),
        ]
    }

    /// Its own kubeconfig, also to ask who calls it.
    fn as_client(&self, file: &str) -> Vec<String> {
        let file = self.file(&format!("pki/{file}.kubeconfig"));
        let of = |flag: &str| format!("--{flag}={file}");
        let mut flags: Vec<_> =
            ["kubeconfig", "authentication-kubeconfig", "authorization-kubeconfig"].iter().map(|f| of(f)).collect();
        flags.extend(["--leader-elect=false", "--bind-address=127.0.0.1", "--profiling=false"].map(str::to_owned));
        flags
    }

    fn controller_manager(&self) -> Vec<String> {
        let pki = |name: &str| self.file(&format!("pki/{name}"));
        let mut flags = self.as_client("controller-manager");
        flags.extend([
            "--use-service-account-credentials=true".to_owned(),
            format!("--root-ca-file={}", pki("ca.crt")),
            format!("--service-account-private-key-file={}", pki("sa.key")),
            format!("--cluster-signing-cert-file={}", pki("ca.crt")),
            format!("--cluster-signing-key-file={}", pki("ca.key")),
            format!("--client-ca-file={}", pki("ca.crt")),
            format!("--requestheader-client-ca-file={}", pki("front-proxy-ca.crt")),
            // It makes the folder, which is the machine's otherwise.
            format!("--flex-volume-plugin-dir={}", self.file("plugins")),
            // With the usual 20 a second its controllers start five seconds later, and no pod before that.
            "--kube-api-qps=300".to_owned(),
            "--kube-api-burst=500".to_owned(),
        ]);
        flags
    }

    fn scheduler(&self) -> Vec<String> {
        self.as_client("scheduler")
    }

    fn containerd(&self) -> String {
        let (directory, cni) = (self.directory.display(), self.programs.cni().display().to_string());
        let runc = self.programs.nodetool("runc").display().to_string();
        format!(
            "version = 3
root = \"{directory}/containerd\"
state = \"/run/containerd\"
[grpc]
  address = \"{CONTAINERD}\"
[plugins.'io.containerd.internal.v1.opt']
  path = \"{directory}/containerd/opt\"
[plugins.'io.containerd.cri.v1.images']
  snapshotter = \"overlayfs\"
  [plugins.'io.containerd.cri.v1.images'.pinned_images]
    sandbox = \"{PAUSE}\"
[plugins.'io.containerd.cri.v1.runtime']
  # Where CAP_SYS_RESOURCE is missing no sandbox would start otherwise.
  restrict_oom_score_adj = true
  [plugins.'io.containerd.cri.v1.runtime'.cni]
    bin_dirs = [\"{cni}\"]
    conf_dir = \"{directory}/etc/cni\"
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
    runtime_type = \"io.containerd.runc.v2\"
    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
      BinaryName = \"{runc}\"
      SystemdCgroup = false
"
        )
    }

    /// Every pod has a link and a route of its own: no bridge, so no question of what bridges filter.
    fn cni(&self) -> Value {
        json!({
            "cniVersion": "1.0.0",
            "name": "mesh",
            "plugins": [
                {
                    "type": "ptp",
                    "mtu": 1500,
                    "ipMasq": false,
                    "ipam": {
                        "type": "host-local",
                        "dataDir": "/run/cni/networks",
                        "ranges": [[{ "subnet": self.addresses.node_pods }]],
                        "routes": [{ "dst": "0.0.0.0/0" }],
                    },
                },
                { "type": "portmap", "capabilities": { "portMappings": true } },
            ],
        })
    }

    fn kubelet(&self) -> Value {
        json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "containerRuntimeEndpoint": format!("unix://{CONTAINERD}"),
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": format!("/{}", cgroups::root(self.cluster)),
            "cgroupsPerQOS": true,
            "enforceNodeAllocatable": [],
            "failCgroupV1": false,
            "failSwapOn": false,
            "authentication": {
                "anonymous": { "enabled": false },
                "webhook": { "enabled": true },
                "x509": { "clientCAFile": self.file("pki/ca.crt") },
            },
            "authorization": { "mode": "Webhook" },
            "tlsCertFile": self.file("pki/kubelet-server.crt"),
            "tlsPrivateKeyFile": self.file("pki/kubelet-server.key"),
            "clusterDomain": "cluster.local",
            "clusterDNS": [self.addresses.dns],
            "resolvConf": self.file("etc/resolv.conf"),
            "podLogsDir": "/var/log/pods",
            "volumePluginDir": self.file("plugins"),
            // A full disk must neither evict pods nor remove imported images, which cannot be pulled again.
            "evictionHard": {
                "imagefs.available": "0%",
                "nodefs.available": "0%",
                "nodefs.inodesFree": "0%",
                "memory.available": "100Mi",
            },
            "imageGCHighThresholdPercent": 100,
            // Changes of ConfigMaps and Secrets show in pods after seconds.
            "syncFrequency": "10s",
            "serializeImagePulls": false,
        })
    }

    fn kube_proxy(&self) -> Value {
        json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "clientConnection": { "kubeconfig": self.file("pki/kube-proxy.kubeconfig") },
            "hostnameOverride": node(self.cluster),
            "mode": "nftables",
            "clusterCIDR": self.addresses.pods,
            "detectLocalMode": "ClusterCIDR",
            // Settings that a network namespace cannot write.
            "conntrack": { "maxPerCore": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s" },
        })
    }

    fn corefile(&self) -> String {
        let (node, kubeconfig) = (self.addresses.node, self.file("pki/dns.kubeconfig"));
        format!(
            ".:53 {{
  bind {node}
  errors
  ready {DNS_READY}
  kubernetes cluster.local in-addr.arpa ip6.arpa {{
    kubeconfig {kubeconfig}
    pods insecure
    fallthrough in-addr.arpa ip6.arpa
    ttl 5
  }}
  cache 5
  reload
}}
"
        )
    }

    /// DNS is a process of the node and not a pod: it answers before the first pod starts. Pods find it by a Service.
    fn dns_objects(&self) -> Value {
        let ports = |target: bool| -> Vec<Value> {
            let port = |name: &str, protocol: &str| match target {
                true => json!({ "name": name, "protocol": protocol, "port": 53, "targetPort": 53 }),
                false => json!({ "name": name, "protocol": protocol, "port": 53 }),
            };
            vec![port("dns", "UDP"), port("dns-tcp", "TCP")]
        };
        let role = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRole",
            "metadata": { "name": "system:dns" },
            "rules": [
                { "apiGroups": [""], "resources": ["services", "endpoints", "pods", "namespaces"], "verbs": ["list", "watch"] },
                { "apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"] },
            ],
        });
        let binding = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": { "name": "system:dns" },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:dns" },
            "subjects": [{ "apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "system:dns" }],
        });
        let service = json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": { "name": "kube-dns", "namespace": "kube-system", "labels": { "k8s-app": "kube-dns" } },
            "spec": { "clusterIP": self.addresses.dns, "ports": ports(true) },
        });
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": "kube-dns",
                "namespace": "kube-system",
                "labels": { "kubernetes.io/service-name": "kube-dns" },
            },
            "addressType": "IPv4",
            "endpoints": [{ "addresses": [self.addresses.node] }],
            "ports": ports(false),
        });
        let rbac = "/apis/rbac.authorization.k8s.io/v1";
        json!([
            { "path": format!("{rbac}/clusterroles"), "body": role },
            { "path": format!("{rbac}/clusterrolebindings"), "body": binding },
            { "path": "/api/v1/namespaces/kube-system/services", "body": service },
            { "path": "/apis/discovery.k8s.io/v1/namespaces/kube-system/endpointslices", "body": slice },
        ])
    }
}
