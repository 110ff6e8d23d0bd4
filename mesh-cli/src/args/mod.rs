//! The command line. Flags and words are istioctl's and kubectl's where those have one.

mod mesh;

use std::path::PathBuf;

pub use mesh::*;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};

/// Runs, shows and checks a service mesh.
#[derive(Debug, Parser)]
#[command(name = "meshctl", version, propagate_version = true, max_term_width = 120)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a whole mesh on this machine: control plane, gateway, four applications with sidecars, light load
    Demo(DemoArgs),
    /// Which proxies are connected, and whether they took what they were sent
    #[command(name = "proxy-status", visible_alias = "ps")]
    ProxyStatus(StatusArgs),
    /// What one proxy was configured with
    #[command(name = "proxy-config", visible_alias = "pc")]
    ProxyConfig(ConfigArgs),
    /// Check manifests as the control plane would
    Validate(ValidateArgs),
    /// Find what is wrong, unreachable or in conflict in manifests, with Istio's codes and what to do
    Analyze(AnalyzeArgs),
    /// Put a sidecar into the pods of manifests
    #[command(visible_alias = "kube-inject")]
    Inject(InjectArgs),
    /// Take sidecars out of manifests again
    Uninject(UninjectArgs),
    /// Install a control plane and gateways into a Kubernetes cluster; what is there is brought up to date
    Install(InstallArgs),
    /// The same, for a mesh that is there
    Upgrade(InstallArgs),
    /// Remove what was installed
    Uninstall(UninstallArgs),
    /// Show what an installation would change in the cluster
    Diff(DiffArgs),
    /// Manifests of an installation
    #[command(subcommand)]
    Manifest(ManifestCommand),
    /// Profiles of an installation
    #[command(subcommand)]
    Profile(ProfileCommand),
    /// Names for revisions, by which namespaces choose their control plane
    #[command(subcommand)]
    Tag(TagCommand),
    /// Versions of this program, of the control plane and of the proxies
    Version(VersionArgs),
    /// Whether what is installed is healthy, whether a cluster is ready for it, whether all proxies are well
    Check(CheckArgs),
    /// Whether and why a pod gets a sidecar
    #[command(name = "check-inject")]
    CheckInject(CheckInjectArgs),
    /// What holds for a pod or a service: ports, routes, TLS, policies, gateways, and what looks wrong
    #[command(subcommand, visible_alias = "d")]
    Describe(DescribeCommand),
    /// Make something in the cluster
    #[command(subcommand)]
    Create(CreateCommand),
    /// Commands by the names that istioctl has for them
    #[command(subcommand, visible_alias = "x", alias = "exp")]
    Experimental(ExperimentalCommand),
    /// Print a completion script for a shell
    Completion(CompletionArgs),
}

/// `demo`.
#[derive(Debug, Clone, ClapArgs)]
pub struct DemoArgs {
    /// Port of the page
    #[arg(long, default_value_t = 8080)]
    pub port: u16,
    /// Folder for configuration, state and logs; kept at the end [default: a temporary one, removed at the end]
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// Start on free ports, check that everything behaves, print a line for each check, exit with 0 or 1
    #[arg(long)]
    pub check: bool,
    /// Requests a second of the built-in load
    #[arg(long, default_value_t = 4)]
    pub load: u32,
    /// Worker threads of each proxy
    #[arg(long, default_value_t = 1)]
    pub concurrency: usize,
}

/// Form of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A table.
    #[value(alias = "table")]
    Short,
    /// JSON.
    Json,
    /// YAML.
    Yaml,
}

/// `proxy-status`.
#[derive(Debug, Clone, ClapArgs)]
pub struct StatusArgs {
    /// Only this proxy: POD, POD.NAMESPACE or deployment/NAME
    pub proxy: Option<String>,
    #[command(flatten)]
    pub mesh: MeshArgs,
    /// Output format
    #[arg(short, long, value_enum, default_value = "short")]
    pub output: Format,
}

/// `proxy-config`.
#[derive(Debug, Clone, ClapArgs)]
pub struct ConfigArgs {
    /// Part of the configuration
    #[command(subcommand)]
    pub part: Part,
}

/// Parts of a proxy's configuration.
#[derive(Debug, Clone, Subcommand)]
pub enum Part {
    /// Clusters
    #[command(visible_aliases = ["clusters", "c"])]
    Cluster(PartArgs),
    /// Listeners
    #[command(visible_aliases = ["listeners", "l"])]
    Listener(PartArgs),
    /// Routes
    #[command(visible_aliases = ["routes", "r"])]
    Route(PartArgs),
    /// Endpoints
    #[command(visible_aliases = ["endpoints", "ep"])]
    Endpoint(PartArgs),
    /// Certificates and keys (keys are never shown)
    #[command(visible_aliases = ["secrets", "s"])]
    Secret(PartArgs),
    /// What the proxy started with
    #[command(visible_alias = "b")]
    Bootstrap(PartArgs),
    /// Everything
    #[command(visible_alias = "a")]
    All(PartArgs),
    /// Levels of the proxy's own messages, shown and changed
    #[command(visible_alias = "o")]
    Log(LogArgs),
}

/// Which proxy, what of it, how shown.
#[derive(Debug, Clone, ClapArgs)]
pub struct PartArgs {
    /// Proxy: POD, POD.NAMESPACE as proxy-status shows it, or deployment/NAME
    #[arg(required_unless_present_any = ["file", "admin"])]
    pub proxy: Option<String>,
    #[command(flatten)]
    pub mesh: MeshArgs,
    /// Ask the proxy itself at this admin address
    #[arg(long, conflicts_with_all = ["file", "proxy"])]
    pub admin: Option<String>,
    #[command(flatten)]
    pub port_of_admin: AdminPortArgs,
    /// Read a config_dump from a file
    #[arg(short, long, conflicts_with = "proxy")]
    pub file: Option<PathBuf>,
    /// Output format
    #[arg(short, long, value_enum, default_value = "short")]
    pub output: Format,
    /// Only clusters of this service, by fully qualified name
    #[arg(long)]
    pub fqdn: Option<String>,
    /// Only clusters of this direction: inbound or outbound
    #[arg(long)]
    pub direction: Option<String>,
    /// Only clusters of this subset
    #[arg(long)]
    pub subset: Option<String>,
    /// Only what is on this port
    #[arg(long)]
    pub port: Option<u16>,
    /// Only listeners or endpoints on this address
    #[arg(long)]
    pub address: Option<String>,
    /// Only routes or secrets of this name
    #[arg(long)]
    pub name: Option<String>,
    /// Only endpoints of this cluster
    #[arg(long)]
    pub cluster: Option<String>,
    /// Only endpoints of this status, e.g. healthy
    #[arg(long)]
    pub status: Option<String>,
}

/// `validate`.
#[derive(Debug, Clone, ClapArgs)]
pub struct ValidateArgs {
    /// Files or folders with manifests; `-` is standard input
    #[arg(short, long = "filename", required = true)]
    pub file: Vec<PathBuf>,
    /// Warnings count as errors
    #[arg(long)]
    pub strict: bool,
    /// Also say which fields have no effect yet
    #[arg(long)]
    pub info: bool,
    /// Output format
    #[arg(short, long, value_enum, default_value = "short")]
    pub output: Format,
}

/// `analyze`.
#[derive(Debug, Clone, ClapArgs)]
pub struct AnalyzeArgs {
    /// Files or folders with manifests; `-` is standard input; without any, the cluster is analyzed
    pub paths: Vec<PathBuf>,
    /// Files or folders with manifests; `-` is standard input
    #[arg(short, long)]
    pub filename: Vec<PathBuf>,
    /// Look at the cluster; files lie over what is there [default: true if there are no files]
    #[arg(short = 'k', long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub use_kube: Option<bool>,
    #[command(flatten)]
    pub kube: KubeArgs,
    /// Only findings on objects of this namespace, and on what is no object [default: of a cluster the context's, of
    /// files all]
    #[arg(short, long)]
    pub namespace: Option<String>,
    /// Folders are read with all that is below; they always are
    #[arg(short = 'R', long)]
    pub recursive: bool,
    /// Findings of all namespaces
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    pub all_namespaces: bool,
    /// Leave out findings: CODE=GLOB, the glob held against `KIND NAME.NAMESPACE`
    #[arg(short = 'S', long, value_name = "CODE=GLOB")]
    pub suppress: Vec<String>,
    /// Exit with 79 for findings from this level on
    #[arg(long, value_enum, ignore_case = true, default_value = "error")]
    pub failure_threshold: Threshold,
    /// Show findings from this level on
    #[arg(long, value_enum, ignore_case = true, default_value = "warning")]
    pub output_threshold: Threshold,
    /// List what is looked for
    #[arg(short = 'L', long)]
    pub list_analyzers: bool,
    /// Colours
    #[arg(long, value_enum, default_value = "auto")]
    pub color: Color,
    /// Output format
    #[arg(short, long, value_enum, default_value = "log")]
    pub output: ReportFormat,
}

/// `inject`.
#[derive(Debug, Clone, ClapArgs)]
pub struct InjectArgs {
    #[command(flatten)]
    pub files: ManifestArgs,
    /// File with the mesh's settings (MeshConfig)
    #[arg(long = "meshConfigFile", alias = "mesh-config-file", value_name = "FILE")]
    pub mesh_config_file: Option<PathBuf>,
    /// File with values, as for installation
    #[arg(long = "valuesFile", alias = "values-file", value_name = "FILE")]
    pub values_file: Option<PathBuf>,
    /// One value: PATH=VALUE, e.g. global.hub=registry/mesh; several
    #[arg(long, value_name = "PATH=VALUE")]
    pub set: Vec<String>,
    /// Revision of the control plane
    #[arg(short, long)]
    pub revision: Option<String>,
}

/// `uninject`.
#[derive(Debug, Clone, ClapArgs)]
pub struct UninjectArgs {
    #[command(flatten)]
    pub files: ManifestArgs,
}

/// Manifests to be changed.
#[derive(Debug, Clone, ClapArgs)]
pub struct ManifestArgs {
    /// Files or folders with manifests; `-` is standard input
    #[arg(short, long, required = true)]
    pub filename: Vec<PathBuf>,
    /// File to write to [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Namespace of objects that name none
    #[arg(short, long, default_value = "default")]
    pub namespace: String,
}

/// What is to be installed.
#[derive(Debug, Clone, ClapArgs)]
pub struct WishArgs {
    /// Files of kind IstioOperator, later ones over earlier ones; `-` is standard input
    #[arg(short, long)]
    pub filename: Vec<PathBuf>,
    /// One value: PATH=VALUE, e.g. values.global.hub=registry/mesh; several
    #[arg(short, long, value_name = "PATH=VALUE")]
    pub set: Vec<String>,
    /// Profile: default, demo or minimal
    #[arg(long)]
    pub profile: Option<String>,
    /// Revision of the control plane
    #[arg(short, long)]
    pub revision: Option<String>,
}

/// Which cluster.
#[derive(Debug, Clone, ClapArgs)]
pub struct ClusterArgs {
    #[command(flatten)]
    pub kube: KubeArgs,
    /// Namespace of the control plane
    #[arg(short = 'i', long = "istioNamespace", alias = "istio-namespace", short_alias = 'n', alias = "namespace")]
    pub istio_namespace: Option<String>,
}

/// `install`, `upgrade`.
#[derive(Debug, Clone, ClapArgs)]
pub struct InstallArgs {
    #[command(flatten)]
    pub wish: WishArgs,
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// Do not ask
    #[arg(short = 'y', long)]
    pub skip_confirmation: bool,
    /// Let the API server say what would happen, change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Wait until everything is ready
    #[arg(long, default_value_t = true, num_args = 0..=1, require_equals = true, default_missing_value = "true",
        action = clap::ArgAction::Set)]
    pub wait: bool,
    /// How long to wait, e.g. 300s or 5m
    #[arg(long, default_value = "300s", value_parser = duration)]
    pub readiness_timeout: std::time::Duration,
}

/// `diff`.
#[derive(Debug, Clone, ClapArgs)]
pub struct DiffArgs {
    #[command(flatten)]
    pub wish: WishArgs,
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

/// `uninstall`.
#[derive(Debug, Clone, ClapArgs)]
pub struct UninstallArgs {
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// Remove the control plane of this revision, and its gateways
    #[arg(short, long, required_unless_present = "purge", conflicts_with = "purge")]
    pub revision: Option<String>,
    /// Remove everything: all revisions, definitions with all of their objects, what the control plane made
    #[arg(long)]
    pub purge: bool,
    /// Do not ask
    #[arg(short = 'y', long)]
    pub skip_confirmation: bool,
    /// Say what would be removed, remove nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// `manifest`.
#[derive(Debug, Clone, Subcommand)]
pub enum ManifestCommand {
    /// Print the objects that would be installed; asks no cluster
    Generate(GenerateArgs),
}

/// `manifest generate`.
#[derive(Debug, Clone, ClapArgs)]
pub struct GenerateArgs {
    #[command(flatten)]
    pub wish: WishArgs,
    /// Namespace of the control plane
    #[arg(short = 'i', long = "istioNamespace", alias = "istio-namespace")]
    pub istio_namespace: Option<String>,
}

/// `profile`.
#[derive(Debug, Clone, Subcommand)]
pub enum ProfileCommand {
    /// Names of profiles
    List,
    /// Print a profile, with what files and --set put over it
    Dump(DumpArgs),
}

/// `profile dump`.
#[derive(Debug, Clone, ClapArgs)]
pub struct DumpArgs {
    /// Profile
    pub name: Option<String>,
    #[command(flatten)]
    pub wish: WishArgs,
}

/// `tag`.
#[derive(Debug, Clone, Subcommand)]
pub enum TagCommand {
    /// Let a name stand for a revision
    Set(TagSetArgs),
    /// Names, their revisions and the namespaces that use them
    #[command(visible_alias = "show")]
    List(TagListArgs),
    /// Take a name away
    Remove(TagRemoveArgs),
}

/// `tag set`.
#[derive(Debug, Clone, ClapArgs)]
pub struct TagSetArgs {
    /// Name, e.g. `prod`; `default` is for namespaces with istio-injection=enabled
    pub tag: String,
    /// Revision that it stands for
    #[arg(short, long)]
    pub revision: String,
    /// Change it, if it stands for another
    #[arg(long)]
    pub overwrite: bool,
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

/// `tag list`.
#[derive(Debug, Clone, ClapArgs)]
pub struct TagListArgs {
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// Output format
    #[arg(short, long, value_enum, default_value = "short")]
    pub output: Format,
}

/// `tag remove`.
#[derive(Debug, Clone, ClapArgs)]
pub struct TagRemoveArgs {
    /// Name
    pub tag: String,
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// Do not ask
    #[arg(short = 'y', long)]
    pub skip_confirmation: bool,
}

/// `90`, `300s`, `5m`.
fn duration(text: &str) -> Result<std::time::Duration, String> {
    let seconds = match text.parse() {
        Ok(seconds) => std::time::Duration::from_secs(seconds),
        Err(_) => mesh_api::crd::Duration::parse(text)?.0,
    };
    Ok(seconds)
}

/// Level of findings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Threshold {
    /// Everything.
    Info,
    /// Warnings and errors.
    Warning,
    /// Errors.
    Error,
}

/// Whether to colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// On a terminal that can, unless `NO_COLOR` is set.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// Form of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ReportFormat {
    /// Lines for people.
    Log,
    /// JSON.
    Json,
    /// YAML.
    Yaml,
    /// SARIF 2.1.0, for code scanners.
    Sarif,
    /// JUnit XML, for CI servers.
    Junit,
}

/// `version`.
#[derive(Debug, Clone, ClapArgs)]
pub struct VersionArgs {
    /// Do not ask the control plane
    #[arg(long)]
    pub client: bool,
    /// Ask the control plane
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = true, default_missing_value = "true",
        action = clap::ArgAction::Set)]
    pub remote: bool,
    #[command(flatten)]
    pub mesh: MeshArgs,
    /// Output format
    #[arg(short, long, value_enum, default_value = "short")]
    pub output: Format,
}

/// `completion`.
#[derive(Debug, Clone, ClapArgs)]
pub struct CompletionArgs {
    /// Shell
    pub shell: clap_complete::Shell,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        super::Args::command().debug_assert();
    }
}
