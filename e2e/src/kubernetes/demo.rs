//! `demo`: a cluster with the mesh and the bookstore on it, for people. What is there already stays and is brought up to
//! date, so that a second run is quick.

use std::path::Path;
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use tokio::process::Command;

use super::{eventually, images, import};
use crate::cluster::cli::Which;
use crate::cluster::{Cluster, Life, Provider, Settings};

/// Where the application goes.
const NAMESPACE: &str = "bookstore";
/// Its files.
const SAMPLE: &str = "../deploy/samples/kubernetes";
/// How long pods, and the gateway's address, may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// Does it.
///
/// # Errors
/// When something does not come up; what is missing is named.
pub async fn run(which: &Which) -> Result<ExitCode> {
    let settings = which.settings(Life::Detached);
    let progress = settings.progress;
    let made = images(progress).await?;
    let cluster = Cluster::start(&settings).await?;
    import(&settings, &cluster, &made).await?;
    progress.step("installs the mesh");
    install(&cluster).await?;
    progress.step("starts the bookstore with sidecars");
    start(&cluster).await?;
    let address = eventually(PATIENCE, async || address(&cluster, &settings).await).await?;
    progress.say("ready");
    println!("page       http://{address}/");
    println!("kubeconfig {}", cluster.kubeconfig().display());
    println!("kubectl    {}", cluster.kubectl_program().display());
    if !matches!(settings.provider, Provider::Kubeconfig) {
        let provider = clap::ValueEnum::to_possible_value(&settings.provider).map(|v| v.get_name().to_owned());
        let provider = provider.unwrap_or_default();
        println!("end with   cargo run -p e2e -- cluster down --name {} --provider {provider}", cluster.name());
    }
    Ok(ExitCode::SUCCESS)
}

/// `meshctl install`, whose own words are for whoever watches.
async fn install(cluster: &Cluster) -> Result<()> {
    let mut command = Command::new(crate::python::binaries()?.join("meshctl"));
    command.args(["install", "-y", "--profile", "demo", "--set", "hub=localhost/mesh", "--set", "tag=dev"]);
    command.arg("--kubeconfig").arg(cluster.kubeconfig()).stdin(Stdio::null());
    // Standard output is for the address.
    let done = command.stdout(Stdio::from(std::io::stderr())).status().await.context("meshctl")?;
    ensure!(done.success(), "meshctl install: {done}");
    Ok(())
}

async fn start(cluster: &Cluster) -> Result<()> {
    let namespace = format!(
        "{{apiVersion: v1, kind: Namespace, metadata: {{name: {NAMESPACE}, labels: {{istio-injection: enabled}}}}}}"
    );
    cluster.kubectl_with(&["apply", "--server-side", "-f", "-"], &namespace).await?;
    for file in ["bookstore.yaml", "gateway.yaml"] {
        let path = crate::python::folder(SAMPLE).join(file);
        cluster.kubectl(&["-n", NAMESPACE, "apply", "--server-side", "-f", text(&path)?]).await?;
    }
    let timeout = format!("--timeout={}s", PATIENCE.as_secs());
    let words = ["-n", NAMESPACE, "wait", "deployment", "--all", "--for=condition=Available", &timeout];
    if let Err(error) = cluster.kubectl(&words).await {
        let pods = cluster.kubectl(&["-n", NAMESPACE, "get", "pods", "-o", "wide"]).await.unwrap_or_default();
        bail!("{error:#}\n{pods}");
    }
    Ok(())
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))
}

/// `HOST[:PORT]` of the gateway, as this machine reaches it.
async fn address(cluster: &Cluster, settings: &Settings) -> Result<String> {
    let service = cluster.json(&["-n", "istio-system", "get", "service", "istio-ingressgateway"]).await?;
    let ingress = &service["status"]["loadBalancer"]["ingress"][0];
    if let Some(address) = ingress["ip"].as_str().or_else(|| ingress["hostname"].as_str()) {
        return Ok(address.to_owned());
    }
    // Nobody gives addresses to load balancers there; the ports of the nodes serve as well.
    ensure!(settings.provider == Provider::Kind, "the gateway's Service has no address yet");
    let ports = service["spec"]["ports"].as_array().into_iter().flatten();
    let port = ports.into_iter().find(|p| p["port"] == 80).and_then(|p| p["nodePort"].as_u64());
    let nodes = cluster.json(&["get", "nodes"]).await?;
    let addresses = nodes["items"][0]["status"]["addresses"].as_array().cloned().unwrap_or_default();
    let node = addresses.iter().find(|a| a["type"] == "InternalIP").and_then(|a| a["address"].as_str());
    match (node, port) {
        (Some(node), Some(port)) => Ok(format!("{node}:{port}")),
        _ => bail!("neither the gateway's Service nor a node has an address"),
    }
}
