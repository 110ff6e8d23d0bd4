//! The mesh that is asked: the control plane at an address, or every one that is ready in a cluster. Each proxy is
//! connected to one of them, so what is to be complete is asked of all.

use futures_util::future::join_all;
use serde_json::Value;
use tokio::sync::OnceCell;

use super::Server;
use super::cluster::{Cluster, gvk};
use super::pods::{PodName, Target, is_ready, runs};
use crate::args::MeshArgs;
use crate::exit::{Failure, UNREACHABLE, USAGE};
use crate::install::render::REVISION;

/// Port of the control plane for metrics and debug pages.
const MONITORING: u16 = 15014;
/// Where a control plane is that nobody names.
const HERE: &str = "127.0.0.1:15014";

/// Whom to ask.
#[derive(Debug)]
pub struct Mesh<'a> {
    args: &'a MeshArgs,
    cluster: Option<Cluster>,
    /// Found when they are first asked, once a command.
    planes: OnceCell<Vec<ControlPlane>>,
}

/// A control plane.
#[derive(Debug, Clone)]
pub struct ControlPlane {
    /// Name of its pod, or its address.
    pub name: String,
    /// Its revision; empty: not known.
    pub revision: String,
    /// How to ask it.
    pub server: Server,
}

/// What one of them says.
#[derive(Debug)]
pub struct Told {
    /// Who: name of its pod, or its address.
    pub by: String,
    /// What.
    pub value: Value,
}

impl<'a> Mesh<'a> {
    /// By `--control`, else a kubeconfig that is there, else a control plane on this machine.
    ///
    /// # Errors
    /// When the kubeconfig is of no use.
    pub async fn find(args: &'a MeshArgs) -> Result<Self, Failure> {
        let by_address = args.control.control.is_some() || !Cluster::is_known(&args.kube);
        let cluster = if by_address { None } else { Some(Cluster::connect(&args.kube).await?) };
        Ok(Self { args, cluster, planes: OnceCell::new() })
    }

    /// The cluster, if one is asked.
    pub fn cluster(&self) -> Option<&Cluster> {
        self.cluster.as_ref()
    }

    /// Namespace of names without one.
    pub fn namespace(&self) -> &str {
        let of_context = self.cluster.as_ref().map_or("default", Cluster::default_namespace);
        self.args.namespace.as_deref().unwrap_or(of_context)
    }

    /// Every control plane that can be asked; one at least.
    ///
    /// # Errors
    /// When there is none, or the API server does not tell.
    pub async fn control_planes(&self) -> Result<&[ControlPlane], Failure> {
        self.planes.get_or_try_init(|| self.find_control_planes()).await.map(Vec::as_slice)
    }

    async fn find_control_planes(&self) -> Result<Vec<ControlPlane>, Failure> {
        let Some(cluster) = &self.cluster else {
            let server = Server::control(self.args.control.control.as_deref().unwrap_or(HERE), &self.args.control);
            return Ok(vec![ControlPlane { name: server.name(), revision: String::new(), server }]);
        };
        let system = &self.args.istio_namespace;
        let pods = control_plane_pods(cluster, system, self.args.revision.as_deref()).await?;
        let ready: Vec<&Value> = pods.iter().filter(|pod| is_ready(pod)).collect();
        if ready.is_empty() {
            let there = match pods.iter().filter(|pod| runs(pod)).count() {
                0 => "there is no pod of it".to_owned(),
                n => format!("none of its {n} pods is ready"),
            };
            let revision = self.args.revision.as_ref().map(|r| format!(" of revision {r}")).unwrap_or_default();
            let message = format!(
                "the control plane{revision} cannot be asked: {there} in namespace {system}\nmeshctl check tells more; \
                 -i names another namespace"
            );
            return Err(Failure::new(UNREACHABLE, message));
        }
        let plane = |pod: &Value| {
            let name = PodName::of(pod);
            let revision = pod["metadata"]["labels"][REVISION].as_str().unwrap_or_default().to_owned();
            ControlPlane { server: Server::pod(cluster, &name, MONITORING), name: name.name, revision }
        };
        Ok(ready.into_iter().map(plane).collect())
    }

    /// What every control plane answers to `path`. One that does not answer is told of, as long as another does.
    ///
    /// # Errors
    /// When none answers.
    pub async fn ask(&self, path: &str) -> Result<Vec<Told>, Failure> {
        let asked = self.control_planes().await?.iter().map(async |by| (by, by.server.json(path).await));
        let (mut told, mut failed) = (Vec::new(), Vec::new());
        for (by, value) in join_all(asked).await {
            match value {
                Ok(value) => told.push(Told { by: by.name.clone(), value }),
                Err(failure) => failed.push(failure),
            }
        }
        if told.is_empty() {
            return Err(failed.into_iter().next().unwrap_or_else(|| Failure::new(UNREACHABLE, "nobody was asked")));
        }
        for failure in failed {
            anstream::eprintln!("what follows is not complete: {}", failure.message);
        }
        Ok(told)
    }

    /// What the control plane that `proxy` is connected to has of it. The others do not know it.
    ///
    /// # Errors
    /// When none answers, or it is connected to none.
    pub async fn of_proxy(&self, path: &str) -> Result<(&ControlPlane, super::Answer), Failure> {
        let asked = self.control_planes().await?.iter().map(async |by| Ok((by, by.server.good(path).await?)));
        let mut failed: Option<Failure> = None;
        for answer in join_all(asked).await {
            match answer {
                Ok(answer) => return Ok(answer),
                Err(failure) => failed = failed.or(Some(failure)),
            }
        }
        Err(failed.unwrap_or_else(|| Failure::new(UNREACHABLE, "nobody was asked")))
    }

    /// Pods that a word means, ready ones first; one at least.
    ///
    /// # Errors
    /// When there is none.
    pub async fn pods(&self, word: &str) -> Result<Vec<PodName>, Failure> {
        pods(self.cluster.as_ref(), word, self.namespace()).await
    }
}

/// Pods that a word means, ready ones first; one at least.
///
/// # Errors
/// When there is none, or it takes a cluster to know.
pub async fn pods(cluster: Option<&Cluster>, word: &str, namespace: &str) -> Result<Vec<PodName>, Failure> {
    match (Target::parse(word, namespace)?, cluster) {
        (target, Some(cluster)) => target.pods(cluster).await,
        (Target::Pod(name), None) => Ok(vec![name]),
        (Target::Of(..), None) => {
            let message = format!("{word}: without a cluster only POD.NAMESPACE is known; name one with --kubeconfig");
            Err(Failure::new(USAGE, message))
        }
    }
}

/// Pods of the control plane, of all revisions or of one.
///
/// # Errors
/// When the API server does not tell.
pub async fn control_plane_pods(
    cluster: &Cluster,
    system: &str,
    revision: Option<&str>,
) -> Result<Vec<Value>, Failure> {
    let labels = revision.map_or_else(|| "app=istiod".to_owned(), |r| format!("app=istiod,{REVISION}={r}"));
    cluster.list(&gvk("", "v1", "Pod"), Some(system), &labels).await
}
