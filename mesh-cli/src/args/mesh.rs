//! Commands that ask a mesh: its control planes, its proxies, the API server of its cluster.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args as ClapArgs, Subcommand};

use super::{Format, duration};
use crate::install::operator::NAMESPACE;

/// Where the control plane answers.
#[derive(Debug, Clone, ClapArgs)]
pub struct ControlArgs {
    /// Address of the control plane's monitoring port; no cluster is asked then [default: 127.0.0.1:15014, if there is
    /// no kubeconfig]
    #[arg(long, env = "MESHCTL_CONTROL")]
    pub control: Option<String>,
    /// Token of a workload of the root namespace, for a control plane that is not on this machine
    #[arg(long, env = "MESHCTL_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
}

/// How the API server is reached.
#[derive(Debug, Clone, Default, ClapArgs)]
pub struct KubeArgs {
    /// File that says how to reach the cluster [default: KUBECONFIG, ~/.kube/config]
    #[arg(short = 'c', long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Context of it
    #[arg(long)]
    pub context: Option<String>,
}

/// Which mesh.
#[derive(Debug, Clone, ClapArgs)]
pub struct MeshArgs {
    #[command(flatten)]
    pub control: ControlArgs,
    #[command(flatten)]
    pub kube: KubeArgs,
    /// Namespace of the control plane
    #[arg(short = 'i', long = "istioNamespace", alias = "istio-namespace", default_value = NAMESPACE)]
    pub istio_namespace: String,
    /// Namespace of what is asked for [default: the context's]
    #[arg(short, long)]
    pub namespace: Option<String>,
    /// Only the control plane of this revision
    #[arg(short, long)]
    pub revision: Option<String>,
}

/// Where in a pod its proxy's admin server is.
#[derive(Debug, Clone, ClapArgs)]
pub struct AdminPortArgs {
    /// Port of the admin server in the pod
    #[arg(long, default_value_t = 15000)]
    pub proxy_admin_port: u16,
}

/// `proxy-config log`.
#[derive(Debug, Clone, ClapArgs)]
pub struct LogArgs {
    /// Proxies: POD, POD.NAMESPACE or deployment/NAME, which are all of its pods
    #[arg(required_unless_present = "admin")]
    pub proxy: Option<String>,
    #[command(flatten)]
    pub kube: KubeArgs,
    /// Namespace of the proxy [default: the context's]
    #[arg(short, long)]
    pub namespace: Option<String>,
    /// Ask the proxy at this admin address
    #[arg(long, conflicts_with = "proxy")]
    pub admin: Option<String>,
    #[command(flatten)]
    pub port_of_admin: AdminPortArgs,
    /// LEVEL for everything, or LOGGER:LEVEL,LOGGER:LEVEL
    #[arg(long)]
    pub level: Option<String>,
    /// Back to the level that proxies have without being told: warning
    #[arg(short, long, conflicts_with = "level")]
    pub reset: bool,
    /// Output format
    #[arg(short, long, value_enum, default_value = "short")]
    pub output: Format,
}

/// `check`.
#[derive(Debug, Clone, ClapArgs)]
pub struct CheckArgs {
    /// Before an installation: is the cluster ready for it
    #[arg(long, conflicts_with = "proxy")]
    pub pre: bool,
    /// All proxies: ready, connected, up to date, with certificates that hold
    #[arg(long)]
    pub proxy: bool,
    #[command(flatten)]
    pub mesh: MeshArgs,
    #[command(flatten)]
    pub output: CheckOutput,
}

impl CheckArgs {
    /// `check --pre`, by its other name.
    pub fn before(args: PrecheckArgs) -> Self {
        Self { pre: true, proxy: false, mesh: args.mesh, output: args.output }
    }
}

/// How checks are judged and shown.
#[derive(Debug, Clone, ClapArgs)]
pub struct CheckOutput {
    /// Warnings count as failures
    #[arg(long)]
    pub strict: bool,
    /// Output format
    #[arg(short, long, value_enum, default_value = "short")]
    pub output: Format,
}

/// `experimental precheck`.
#[derive(Debug, Clone, ClapArgs)]
pub struct PrecheckArgs {
    #[command(flatten)]
    pub mesh: MeshArgs,
    #[command(flatten)]
    pub output: CheckOutput,
}

/// `check-inject`.
#[derive(Debug, Clone, ClapArgs)]
pub struct CheckInjectArgs {
    /// POD, POD.NAMESPACE, deployment/NAME or namespace/NAME
    #[arg(required_unless_present = "labels", conflicts_with = "labels")]
    pub target: Option<String>,
    /// Labels of a pod that is not there yet: KEY=VALUE,KEY=VALUE
    #[arg(short, long)]
    pub labels: Option<String>,
    #[command(flatten)]
    pub kube: KubeArgs,
    /// Namespace of the control plane
    #[arg(short = 'i', long = "istioNamespace", alias = "istio-namespace", default_value = NAMESPACE)]
    pub istio_namespace: String,
    /// Namespace of what is asked for [default: the context's]
    #[arg(short, long)]
    pub namespace: Option<String>,
    /// Output format
    #[arg(short, long, value_enum, default_value = "short")]
    pub output: Format,
}

/// `describe`.
#[derive(Debug, Clone, Subcommand)]
pub enum DescribeCommand {
    /// A pod
    #[command(visible_alias = "po")]
    Pod(DescribeArgs),
    /// A service
    #[command(visible_alias = "svc")]
    Service(DescribeArgs),
}

/// `describe pod`, `describe service`.
#[derive(Debug, Clone, ClapArgs)]
pub struct DescribeArgs {
    /// NAME, NAME.NAMESPACE; of pods deployment/NAME, too
    pub name: String,
    #[command(flatten)]
    pub mesh: MeshArgs,
    /// Output format
    #[arg(short, long, value_enum, default_value = "short")]
    pub output: Format,
}

/// `create`.
#[derive(Debug, Clone, Subcommand)]
pub enum CreateCommand {
    /// A token of a service account, by which a workload proves to the control plane who it is
    Token(TokenArgs),
}

/// `create token`.
#[derive(Debug, Clone, ClapArgs)]
pub struct TokenArgs {
    /// Service account
    pub account: String,
    #[command(flatten)]
    pub kube: KubeArgs,
    /// Its namespace [default: the context's]
    #[arg(short, long)]
    pub namespace: Option<String>,
    /// For whom the token is
    #[arg(long, default_value = "istio-ca")]
    pub audience: String,
    /// How long it holds, e.g. 1h; the API server may change that [default: the API server's]
    #[arg(long, value_parser = duration)]
    pub duration: Option<Duration>,
    /// Output format; short is the token alone
    #[arg(short, long, value_enum, default_value = "short")]
    pub output: Format,
}

/// `experimental`.
#[derive(Debug, Clone, Subcommand)]
pub enum ExperimentalCommand {
    /// What holds for a pod or a service
    #[command(subcommand, visible_alias = "d")]
    Describe(DescribeCommand),
    /// Whether and why a pod gets a sidecar
    #[command(name = "check-inject")]
    CheckInject(CheckInjectArgs),
    /// Whether a cluster is ready for an installation
    Precheck(PrecheckArgs),
}
