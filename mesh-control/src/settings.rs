//! Command line and environment of `mesh-control`.

use std::{fmt, net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};
use ipnet::IpNet;

/// Control plane of the service mesh.
#[derive(Debug, Parser)]
#[command(name = "mesh-control", version, args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Cli {
    /// Something else than serving.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Serving.
    #[command(flatten)]
    pub serve: Option<Serve>,
}

/// What can be done besides serving.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Print a token with which a workload authenticates itself, signed by the key in the state folder
    Token(Token),
}

/// `mesh-control token`.
#[derive(Debug, Args)]
pub struct Token {
    /// Namespace of the workload
    #[arg(long, short = 'n', default_value = "default")]
    pub namespace: String,
    /// Its service account
    #[arg(long, default_value = "default")]
    pub service_account: String,
    /// State folder of the control plane
    #[arg(long, env = "MESH_STATE_DIR")]
    pub state_dir: PathBuf,
    /// How long it holds, e.g. `12h`
    #[arg(long, default_value = "24h", value_parser = duration)]
    pub ttl: Duration,
}

/// Flags of the server.
#[derive(Debug, Clone, Args)]
pub struct Serve {
    /// Folder with the configuration (Kubernetes, Istio and Gateway API kinds as YAML)
    #[arg(long, env = "MESH_CONFIG_DIR", required_unless_present_any = ["kubernetes", "kubeconfig"])]
    pub config_dir: Option<PathBuf>,
    /// Configuration from the Kubernetes API server of the cluster that this runs in
    #[arg(long, env = "MESH_KUBERNETES", conflicts_with_all = ["config_dir", "kubeconfig"])]
    pub kubernetes: bool,
    /// Configuration from the Kubernetes API server of a kubeconfig
    #[arg(long, value_name = "FILE", conflicts_with = "config_dir")]
    pub kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig, instead of its current one
    #[arg(long, requires = "kubeconfig", help_heading = "With Kubernetes")]
    pub context: Option<String>,
    /// Namespace of the control plane
    #[arg(long, env = "POD_NAMESPACE", default_value = "istio-system", help_heading = "With Kubernetes")]
    pub namespace: String,
    /// Name of this replica, by which it is known as the leader
    #[arg(long, env = "POD_NAME", default_value = "", help_heading = "With Kubernetes")]
    pub pod_name: String,
    /// Revision of this control plane
    #[arg(long, env = "REVISION", default_value = "default", help_heading = "With Kubernetes")]
    pub revision: String,
    /// Webhooks that inject and validate (`off`: none)
    #[arg(
        long,
        env = "MESH_WEBHOOK_ADDR",
        default_value = "0.0.0.0:15017",
        value_name = "ADDR",
        help_heading = "With Kubernetes"
    )]
    pub webhook_addr: Listen,
    /// Name of a Lease; of several replicas whoever holds it writes status, root certificates and webhooks (`off`: this
    /// one does, always)
    #[arg(
        long,
        env = "MESH_LEADER_ELECTION",
        default_value = "istio-leader",
        value_name = "LEASE",
        help_heading = "With Kubernetes"
    )]
    pub leader_election: String,
    /// Make a Deployment and a Service for each Gateway of Gateway API that names no Service (`false`: they are made by
    /// others)
    #[arg(
        long,
        env = "PILOT_ENABLE_GATEWAY_API_DEPLOYMENT_CONTROLLER",
        default_value_t = true,
        action = clap::ArgAction::Set,
        value_name = "BOOL",
        help_heading = "With Kubernetes"
    )]
    pub gateway_deployments: bool,
    /// Folder for what must outlive the process: the root certificate, keys; made when missing
    #[arg(long, env = "MESH_STATE_DIR")]
    pub state_dir: PathBuf,
    /// xDS and certificates over TLS (`off`: not served; port 0: any free one)
    #[arg(long, env = "MESH_XDS_ADDR", default_value = "0.0.0.0:15012", value_name = "ADDR")]
    pub xds_addr: Listen,
    /// xDS in plaintext: callers are believed, secrets and certificates are not served
    #[arg(long, env = "MESH_PLAINTEXT_XDS_ADDR", default_value = "off", value_name = "ADDR")]
    pub plaintext_xds_addr: Listen,
    /// Largest xDS request, in bytes; a larger one ends its stream
    #[arg(long, env = "ISTIO_GPRC_MAXRECVMSGSIZE", default_value_t = 4 << 20, value_name = "BYTES")]
    pub xds_max_request: usize,
    /// Metrics, version, readiness and debug pages
    #[arg(long, env = "MESH_HTTP_ADDR", default_value = "0.0.0.0:15014", value_name = "ADDR")]
    pub http_addr: Listen,
    /// Id of this cluster
    #[arg(long, env = "CLUSTER_ID", default_value = "Kubernetes")]
    pub cluster_id: String,
    /// Network of this cluster
    #[arg(long, env = "MESH_NETWORK", default_value = "")]
    pub network: String,
    /// Trust domain, instead of the one in MeshConfig
    #[arg(long, env = "MESH_TRUST_DOMAIN")]
    pub trust_domain: Option<String>,
    /// DNS domain of services
    #[arg(long, env = "MESH_DOMAIN", default_value = "cluster.local")]
    pub domain: String,
    /// Let a VirtualService route requests for services of other namespaces for all clients, as under Istio, and not for
    /// those of its own namespace only
    #[arg(long, env = "MESH_CROSS_NAMESPACE_ROUTES")]
    pub cross_namespace_routes: bool,
    /// Life of a workload certificate when the workload asks for none
    #[arg(long, env = "DEFAULT_WORKLOAD_CERT_TTL", default_value = "24h", value_parser = duration)]
    pub workload_cert_ttl: Duration,
    /// Longest life of a workload certificate
    #[arg(long, env = "MAX_WORKLOAD_CERT_TTL", default_value = "90d", value_parser = duration)]
    pub max_workload_cert_ttl: Duration,
    /// How long a new root is made known to workloads before its CA signs
    #[arg(long, env = "MESH_ROOT_GRACE", default_value = "60s", value_parser = duration)]
    pub root_grace: Duration,
    /// Further names in the certificate of the xDS server
    #[arg(long, env = "MESH_SERVER_NAMES", value_delimiter = ',', value_name = "NAME")]
    pub server_name: Vec<String>,
    /// Addresses that keys of RequestAuthentications are never fetched from
    #[arg(long, env = "BLOCKED_CIDRS_IN_JWKS_URIS", value_delimiter = ',', value_name = "CIDR")]
    pub jwks_blocked_cidrs: Vec<IpNet>,
    /// Loopback, link-local and metadata addresses that they may be fetched from, e.g. `127.0.0.0/8` on a laptop
    #[arg(long, env = "MESH_JWKS_ALLOWED_CIDRS", value_delimiter = ',', value_name = "CIDR")]
    pub jwks_allowed_cidrs: Vec<IpNet>,
    /// PEM file with roots to trust besides the system's when keys are fetched over https
    #[arg(long, env = "MESH_JWKS_CA", value_name = "FILE")]
    pub jwks_ca: Option<PathBuf>,
    /// How long the process may take to end after SIGTERM
    #[arg(long, default_value = "5s", value_parser = duration, hide = true)]
    pub shutdown_duration: Duration,
    /// `error`, `warn`, `info`, `debug`, `trace`, or a list like `info,xds=debug`
    #[arg(long, short = 'l', env = "MESH_LOG_LEVEL", default_value = "info")]
    pub log_level: String,
    /// Form of the log
    #[arg(long, env = "MESH_LOG_FORMAT", default_value = "text")]
    pub log_format: LogFormat,
}

/// Form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines.
    Json,
}

/// An address to listen on, or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listen(pub Option<SocketAddr>);

impl FromStr for Listen {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        if matches!(s, "off" | "none" | "") {
            return Ok(Self(None));
        }
        // As Go writes "all addresses".
        let full = if s.starts_with(':') { format!("0.0.0.0{s}") } else { s.replace("localhost:", "127.0.0.1:") };
        full.parse().map(|a| Self(Some(a))).map_err(|_| format!("{s:?} is not IP:PORT"))
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(address) => write!(f, "{address}"),
            None => f.write_str("off"),
        }
    }
}

/// `1s`, `500ms`, `12h`, `90d`.
fn duration(s: &str) -> Result<Duration, String> {
    let bad = || format!("{s:?} is not a duration like 30s, 12h or 90d");
    let digits = s.find(|c: char| !c.is_ascii_digit()).unwrap_or(s.len());
    let (number, unit) = s.split_at_checked(digits).ok_or_else(bad)?;
    let number: u64 = number.parse().map_err(|_| bad())?;
    let unit = match unit {
        "ms" => return Ok(Duration::from_millis(number)),
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86400,
        _ => return Err(bad()),
    };
    number.checked_mul(unit).map(Duration::from_secs).ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serving_and_other_commands() {
        let cli = Cli::try_parse_from(["mesh-control", "--config-dir", "c", "--state-dir", "s", "--http-addr", ":0"]);
        let serve = cli.unwrap().serve.unwrap();
        assert_eq!(serve.http_addr.to_string(), "0.0.0.0:0");
        assert_eq!(serve.plaintext_xds_addr, Listen(None));
        assert!(Cli::try_parse_from(["mesh-control", "--config-dir", "c"]).is_err(), "state folder is missing");
        assert!(Cli::try_parse_from(["mesh-control", "--state-dir", "s"]).is_err(), "source is missing");
        let both = ["mesh-control", "--config-dir", "c", "--kubernetes", "--state-dir", "s"];
        assert!(Cli::try_parse_from(both).is_err(), "one source");
        let cli = Cli::try_parse_from(["mesh-control", "--kubeconfig", "k", "--context", "x", "--state-dir", "s"]);
        assert!(cli.unwrap().serve.is_some_and(|s| s.kubeconfig.is_some()));
        let cli = Cli::try_parse_from(["mesh-control", "token", "--state-dir", "s", "--namespace", "shop"]).unwrap();
        assert!(matches!(cli.command, Some(Command::Token(t)) if t.namespace == "shop"));
    }

    #[test]
    fn durations() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("2h"), Ok(Duration::from_secs(7200)));
        for bad in ["", "5", "s", "1w", "-1s", "99999999999999999999d"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
