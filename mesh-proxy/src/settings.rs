//! The command line. Flags of the plain form are Envoy's.

pub mod capture;

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Sidecar and gateway of the mesh, configured by Envoy's xDS or by an Envoy bootstrap file
#[derive(Debug, Parser)]
#[command(name = "mesh-proxy", version, args_conflicts_with_subcommands = true, max_term_width = 120)]
pub struct Settings {
    /// Mode; without one a bootstrap file is needed
    #[command(subcommand)]
    pub mode: Option<Mode>,
    /// Envoy bootstrap file, YAML or JSON
    #[arg(short = 'c', long)]
    pub config_path: Option<PathBuf>,
    #[command(flatten)]
    pub process: Process,
    /// Replaces the node id of the file
    #[arg(long)]
    pub service_node: Option<String>,
    /// Replaces the node cluster of the file
    #[arg(long)]
    pub service_cluster: Option<String>,
    /// Accepted, without effect
    #[arg(long, hide = true)]
    pub disable_hot_restart: bool,
    /// Accepted, without effect
    #[arg(long, hide = true)]
    pub base_id: Option<u32>,
    /// Accepted, without effect
    #[arg(long, hide = true)]
    pub file_flush_interval_msec: Option<u64>,
}

/// What every mode has.
#[derive(Debug, Clone, Args)]
pub struct Process {
    /// Worker threads [default: one a core]
    #[arg(long)]
    pub concurrency: Option<usize>,
    /// Log level, in Envoy's words
    #[arg(short = 'l', long, value_enum, default_value = "info")]
    pub log_level: LogLevel,
    /// Seconds that requests in flight have after SIGTERM
    #[arg(long, env = "TERMINATION_DRAIN_DURATION_SECONDS", default_value_t = 5)]
    pub drain_time_s: u64,
}

/// Levels, in Envoy's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs)]
pub enum LogLevel {
    Trace,
    Debug,
    Info,
    #[value(alias = "warn")]
    Warning,
    Error,
    #[value(alias = "off")]
    Critical,
}

/// Modes beside the plain one.
#[derive(Debug, Subcommand)]
pub enum Mode {
    /// Beside an application
    Sidecar(Box<Workload>),
    /// At the edge of the mesh
    Gateway(Box<Workload>),
    /// Gets a workload's certificate and serves it to a local Envoy by SDS
    Agent(Box<Agent>),
    /// Waits until the proxy of this pod is ready
    Wait(Wait),
    /// Redirection of a network namespace's traffic to the proxy
    #[command(subcommand)]
    Capture(capture::CaptureCommand),
}

/// Who a proxy is and where its control plane is.
#[derive(Debug, Clone, Args)]
pub struct Workload {
    #[command(flatten)]
    pub identity: Identity,
    /// NAME.NAMESPACE of the workload [default: from POD_NAME and POD_NAMESPACE]
    #[arg(long)]
    pub id: Option<String>,
    /// Name of the pod
    #[arg(long, env = "POD_NAME", hide = true)]
    pub pod_name: Option<String>,
    /// Namespace of the pod
    #[arg(long, env = "POD_NAMESPACE", hide = true)]
    pub pod_namespace: Option<String>,
    /// Addresses of the workload
    #[arg(long, env = "INSTANCE_IP", value_delimiter = ',', required = true)]
    pub ip: Vec<IpAddr>,
    /// Service account
    #[arg(long, env = "SERVICE_ACCOUNT", default_value = "default")]
    pub service_account: String,
    /// Label of the workload, KEY=VALUE; several
    #[arg(long = "label", value_parser = pair)]
    pub labels: Vec<(String, String)>,
    /// File with more labels, KEY="VALUE" a line, as Kubernetes writes it; not there: none
    #[arg(long, default_value = "/etc/istio/pod/labels")]
    pub labels_file: PathBuf,
    /// How traffic reaches the proxy
    #[arg(long, env = "ISTIO_META_INTERCEPTION_MODE", default_value = "REDIRECT")]
    pub interception_mode: String,
    /// Network of the workload
    #[arg(long, env = "ISTIO_META_NETWORK", default_value = "")]
    pub network: String,
    /// Domain of the cluster
    #[arg(long, default_value = "cluster.local")]
    pub domain: String,
    /// Where the workload is, region/zone/subzone
    #[arg(long, default_value = "")]
    pub locality: String,
    /// Address of the admin server [default: port 15000 of the workload's address if that is loopback, else of 127.0.0.1]
    #[arg(long)]
    pub admin: Option<std::net::SocketAddr>,
    /// Port where readiness is asked for; 0: none
    #[arg(long, env = "ENVOY_STATUS_PORT", default_value_t = 15021)]
    pub status_port: u16,
    /// Port of merged metrics and readiness; 0: none
    #[arg(long, env = "ISTIO_STATUS_PORT", default_value_t = 15020)]
    pub merged_metrics_port: u16,
    /// Port of the proxy's metrics; 0: none
    #[arg(long, env = "ENVOY_PROMETHEUS_PORT", default_value_t = 15090)]
    pub metrics_port: u16,
    /// Probes of the application to be asked in the kubelet's place, as injection writes them
    #[arg(long, env = "ISTIO_KUBE_APP_PROBERS", hide = true)]
    pub app_probers: Option<String>,
    /// Where the application's metrics are, as injection writes it
    #[arg(long, env = "ISTIO_PROMETHEUS_ANNOTATIONS", hide = true)]
    pub app_metrics: Option<String>,
    #[command(flatten)]
    pub dns: Dns,
    #[command(flatten)]
    pub process: Process,
}

/// Names that are answered beside the application.
#[derive(Debug, Clone, Args)]
pub struct Dns {
    /// Answer the application's DNS, with names that only the mesh knows
    #[arg(
        long = "dns-capture",
        env = "ISTIO_META_DNS_CAPTURE",
        value_parser = switch,
        num_args = 0..=1,
        default_value = "false",
        default_missing_value = "true"
    )]
    pub capture: bool,
    /// HOST:PORT where it is answered; localhost: the loopback address of each family that the system's resolvers have
    #[arg(long = "dns-proxy-addr", env = "DNS_PROXY_ADDR", default_value = "localhost:15053")]
    pub address: String,
    /// Ask all of the system's resolvers together, not one after the other
    #[arg(
        long = "dns-forward-parallel",
        env = "DNS_FORWARD_PARALLEL",
        value_parser = switch,
        num_args = 0..=1,
        default_value = "false",
        default_missing_value = "true"
    )]
    pub parallel: bool,
    /// The system's resolvers and search domains
    #[arg(long, default_value = "/etc/resolv.conf")]
    pub resolv_conf: PathBuf,
}

/// Where certificates come from.
#[derive(Debug, Clone, Args)]
pub struct Identity {
    /// HOST:PORT of the control plane, TLS
    #[arg(long, env = "CA_ADDR", default_value = "istiod.istio-system.svc:15012")]
    pub control: String,
    /// Trust anchors of the control plane, PEM
    #[arg(long, default_value = "/var/run/secrets/istio/root-cert.pem")]
    pub root_cert: PathBuf,
    /// File with the workload's token [default: /var/run/secrets/tokens/istio-token, if it is there]
    #[arg(long)]
    pub token: Option<PathBuf>,
    /// Life of the certificate to ask for, e.g. 24h
    #[arg(long, env = "SECRET_TTL", default_value = "24h", value_parser = duration)]
    pub cert_ttl: Duration,
    /// Id of the cluster
    #[arg(long, env = "ISTIO_META_CLUSTER_ID", default_value = "Kubernetes")]
    pub cluster_id: String,
    /// Folder that keeps key and certificate over a restart
    #[arg(long)]
    pub state_dir: Option<PathBuf>,
}

impl Workload {
    /// Name and namespace.
    pub fn name(&self) -> Option<(&str, &str)> {
        match (&self.id, &self.pod_name, &self.pod_namespace) {
            (Some(id), ..) => id.rsplit_once('.'),
            (None, Some(name), Some(namespace)) => Some((name, namespace)),
            _ => None,
        }
    }
}

impl Identity {
    /// Where the token is.
    pub fn token_file(&self) -> Option<PathBuf> {
        const USUAL: &str = "/var/run/secrets/tokens/istio-token";
        self.token.clone().or_else(|| Some(PathBuf::from(USUAL)).filter(|path| path.exists()))
    }
}

/// `agent`.
#[derive(Debug, Clone, Args)]
pub struct Agent {
    #[command(flatten)]
    pub identity: Identity,
    /// Unix socket to serve secrets on
    #[arg(long)]
    pub socket: PathBuf,
    /// Log level
    #[arg(short = 'l', long, value_enum, default_value = "info")]
    pub log_level: LogLevel,
}

/// `wait`.
#[derive(Debug, Clone, Args)]
pub struct Wait {
    /// Port where readiness is asked for, on this machine
    #[arg(long, env = "ENVOY_STATUS_PORT", default_value_t = 15021)]
    pub status_port: u16,
    /// How long to wait
    #[arg(long, default_value = "60s", value_parser = duration)]
    pub timeout: Duration,
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("KEY=VALUE is expected")?;
    Ok((key.to_owned(), value.to_owned()))
}

/// Go's forms of a flag, as Istio's settings have them; nothing is off.
fn switch(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "" | "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        other => Err(format!("{other:?} is neither true nor false")),
    }
}

/// Go's form: `1h30m`, `4s`, `500ms`.
fn duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("{text:?} is not a duration like 24h, 90m, 4s or 500ms");
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(bad)?;
        let (number, tail) = rest.split_at(digits);
        let unit_end = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, next) = tail.split_at(unit_end);
        let number: f64 = number.parse().map_err(|_| bad())?;
        let seconds = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 0.001,
            _ => return Err(bad()),
        };
        total += Duration::try_from_secs_f64(number * seconds).map_err(|_| bad())?;
        rest = next;
    }
    if total.is_zero() { Err(bad()) } else { Ok(total) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn envoys_flags_and_ours() {
        use clap::CommandFactory as _;
        Settings::command().debug_assert();
        let words = "mesh-proxy -c a.yaml --concurrency 2 -l warning --base-id 3 --disable-hot-restart";
        let settings = Settings::try_parse_from(words.split(' ')).unwrap();
        assert_eq!((settings.process.concurrency, settings.process.log_level), (Some(2), LogLevel::Warning));
        let words = "mesh-proxy sidecar --control 127.0.0.1:15012 --root-cert r --id a.b --ip 127.0.0.3 --label x=y \
                     --cert-ttl 4s --concurrency 1";
        let settings = Settings::try_parse_from(words.split_whitespace()).unwrap();
        let Some(Mode::Sidecar(sidecar)) = settings.mode else { panic!() };
        assert_eq!((sidecar.identity.cert_ttl, sidecar.process.concurrency), (Duration::from_secs(4), Some(1)));
        assert!(!sidecar.dns.capture && sidecar.dns.address == "localhost:15053");
        for (given, on) in [("--dns-capture", true), ("--dns-capture=1", true), ("--dns-capture=false", false)] {
            let words = format!("mesh-proxy sidecar --id a.b --ip 127.0.0.3 {given}");
            let settings = Settings::try_parse_from(words.split(' ')).unwrap();
            let Some(Mode::Sidecar(sidecar)) = settings.mode else { panic!() };
            assert_eq!(sidecar.dns.capture, on, "{given}");
        }
        assert!(
            Settings::try_parse_from("mesh-proxy sidecar --id a.b --ip ::1 --dns-capture=maybe".split(' ')).is_err()
        );
    }

    #[test]
    fn durations_as_go_writes_them() {
        assert_eq!(duration("1h30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert!(duration("5").is_err() && duration("0s").is_err() && duration("x").is_err());
    }
}
