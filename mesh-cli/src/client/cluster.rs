//! The API server of a cluster: how it is reached, objects of any kind in it, ports of its pods, and failures with
//! their exit codes.

use std::pin::Pin;
use std::time::Duration;

use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use kube::api::{
    Api, ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams, PropagationPolicy,
};
use kube::client::UpgradeConnectionError;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::GroupVersionKind;
use kube::{Client, Config};
use serde_json::Value;
use tokio::io::DuplexStream;

use super::pods::PodName;
use crate::args::KubeArgs;
use crate::exit::{self, Failure};

/// Field manager of what we apply.
pub const MANAGER: &str = "meshctl";

/// Requests at a time where there are many: each takes a connection of its own, and those cost more than the requests.
pub const AT_ONCE: usize = 6;

/// A cluster.
#[derive(Clone)]
pub struct Cluster {
    client: Client,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").finish_non_exhaustive()
    }
}

/// A connection to a port of a pod.
pub struct Forward {
    /// What is said and heard.
    pub stream: DuplexStream,
    /// Why the port cannot be used, once that is told.
    pub broken: Broken,
}

/// Ends when a port cannot be used, with the reason.
pub type Broken = Pin<Box<dyn Future<Output = Option<String>> + Send>>;

/// Runs a command that talks to a cluster.
///
/// # Errors
/// What the command fails with.
pub fn block_on<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|e| Failure::from(anyhow::Error::from(e)))?.block_on(work)
}

impl Cluster {
    /// Whether there is a kubeconfig to connect by: named, in its usual place, or that of a pod.
    pub fn is_known(args: &KubeArgs) -> bool {
        let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let usual = || std::env::home_dir().is_some_and(|home| home.join(".kube/config").is_file());
        args.kubeconfig.is_some()
            || args.context.is_some()
            || set("KUBECONFIG")
            || usual()
            || set("KUBERNETES_SERVICE_HOST")
    }

    /// Connects as kubectl would.
    ///
    /// # Errors
    /// No or a wrong kubeconfig.
    pub async fn connect(args: &KubeArgs) -> Result<Self, Failure> {
        let unusable = |why: String| Failure::new(exit::UNREACHABLE, format!("no cluster to talk to: {why}"));
        let options = KubeConfigOptions { context: args.context.clone(), ..KubeConfigOptions::default() };
        let config = match &args.kubeconfig {
            Some(path) => {
                let file = Kubeconfig::read_from(path).map_err(|e| unusable(format!("{}: {e}", path.display())))?;
                Config::from_custom_kubeconfig(file, &options).await.map_err(|e| unusable(e.to_string()))
            }
            None if args.context.is_some() => {
                Config::from_kubeconfig(&options).await.map_err(|e| unusable(e.to_string()))
            }
            None => Config::infer().await.map_err(|e| unusable(e.to_string())),
        };
        let mut config = config?;
        config.connect_timeout = Some(Duration::from_secs(10));
        config.read_timeout = Some(Duration::from_secs(60));
        let client = Client::try_from(config).map_err(|e| unusable(e.to_string()))?;
        Ok(Self { client })
    }

    /// One that answers by a function, without sockets.
    #[cfg(test)]
    pub fn of_router(router: axum::Router) -> Self {
        Self { client: Client::new(router, "default") }
    }

    /// Namespace of what is asked for without one: the context's.
    pub fn default_namespace(&self) -> &str {
        self.client.default_namespace()
    }

    /// The version that the API server tells.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub async fn version(&self) -> Result<String, Failure> {
        let info =
            self.client.apiserver_version().await.map_err(|e| failure(&e, "get", "the version of the API server"))?;
        Ok(info.git_version)
    }

    fn api(&self, gvk: &GroupVersionKind, namespace: Option<&str>) -> Api<DynamicObject> {
        let resource = ApiResource::from_gvk(gvk);
        match namespace {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, &resource),
            None => Api::all_with(self.client.clone(), &resource),
        }
    }

    /// The object that stands where this one belongs.
    ///
    /// # Errors
    /// When the server cannot be asked.
    pub async fn live(&self, object: &Value) -> Result<Option<Value>, Failure> {
        let found = self.api(&kind_of(object), namespace(object)).get_opt(name(object)).await;
        Ok(value(found.map_err(|e| failure(&e, "get", &title(object)))?))
    }

    /// An object by kind and name.
    ///
    /// # Errors
    /// When the server cannot be asked.
    pub async fn get(
        &self,
        gvk: &GroupVersionKind,
        namespace: Option<&str>,
        name: &str,
    ) -> Result<Option<Value>, Failure> {
        let found = self.api(gvk, namespace).get_opt(name).await;
        Ok(value(found.map_err(|e| failure(&e, "get", &format!("{} {name}", gvk.kind)))?))
    }

    /// Asks the server by creating an object that is a question; the answer.
    ///
    /// # Errors
    /// When the server cannot be asked.
    pub async fn review(&self, question: &Value) -> Result<Value, Failure> {
        let gvk = kind_of(question);
        let refused = |e: &kube::Error| failure(e, "create", &gvk.kind);
        let object: DynamicObject =
            serde_json::from_value(question.clone()).map_err(|e| Failure::from(anyhow::Error::from(e)))?;
        let answer = self.api(&gvk, None).create(&PostParams::default(), &object).await;
        Ok(value(Some(answer.map_err(|e| refused(&e))?)).unwrap_or_default())
    }

    /// A token of a service account, and until when it holds.
    ///
    /// # Errors
    /// What the server says.
    pub async fn token(
        &self,
        namespace: &str,
        account: &str,
        audience: &str,
        lifetime: Option<Duration>,
    ) -> Result<(String, String), Failure> {
        let spec = TokenRequestSpec {
            audiences: vec![audience.to_owned()],
            expiration_seconds: lifetime.map(|l| i64::try_from(l.as_secs()).unwrap_or(i64::MAX)),
            ..TokenRequestSpec::default()
        };
        let api: Api<ServiceAccount> = Api::namespaced(self.client.clone(), namespace);
        let asked = TokenRequest { spec, ..TokenRequest::default() };
        let answer = api.create_token_request(account, &PostParams::default(), &asked).await;
        let answer =
            answer.map_err(|e| failure(&e, "create a token of", &format!("ServiceAccount {namespace}/{account}")))?;
        let status = answer.status.ok_or_else(|| Failure::new(exit::NEGATIVE, "the API server made no token"))?;
        Ok((status.token, status.expiration_timestamp.0.to_string()))
    }

    /// Connects to a port on a pod's own loopback device.
    ///
    /// # Errors
    /// When the pod is not there, or the server does not permit it.
    pub async fn forward(&self, pod: &PodName, port: u16) -> Result<Forward, Failure> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace);
        let forwarded = api.portforward(&pod.name, &[port]).await;
        let mut forwarder =
            forwarded.map_err(|e| failure(&e, "forward a port of", &format!("Pod {}/{}", pod.namespace, pod.name)))?;
        let (stream, broken) = (forwarder.take_stream(port), forwarder.take_error(port));
        let (stream, broken) =
            stream.zip(broken).ok_or_else(|| Failure::new(exit::UNREACHABLE, "the API server forwards no port"))?;
        Ok(Forward { stream, broken: Box::pin(broken) })
    }

    /// Applies an object; answers what it is then.
    ///
    /// # Errors
    /// What the server says.
    pub async fn apply(&self, object: &Value, dry_run: bool) -> Result<Value, Failure> {
        let parameters =
            PatchParams { dry_run, force: true, field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        let api = self.api(&kind_of(object), namespace(object));
        let applied = api.patch(name(object), &parameters, &Patch::Apply(object)).await;
        Ok(value(Some(applied.map_err(|e| failure(&e, "patch", &title(object)))?)).unwrap_or_default())
    }

    /// Objects of a kind with these labels; none where the kind does not exist.
    ///
    /// # Errors
    /// When the server cannot be asked.
    pub async fn list(
        &self,
        gvk: &GroupVersionKind,
        namespace: Option<&str>,
        labels: &str,
    ) -> Result<Vec<Value>, Failure> {
        self.listed(gvk, namespace, &ListParams::default().labels(labels)).await
    }

    /// Objects of a kind and name in all namespaces.
    ///
    /// # Errors
    /// When the server cannot be asked.
    pub async fn named(&self, gvk: &GroupVersionKind, name: &str) -> Result<Vec<Value>, Failure> {
        self.listed(gvk, None, &ListParams::default().fields(&format!("metadata.name={name}"))).await
    }

    async fn listed(
        &self,
        gvk: &GroupVersionKind,
        namespace: Option<&str>,
        parameters: &ListParams,
    ) -> Result<Vec<Value>, Failure> {
        match self.api(gvk, namespace).list(parameters).await {
            Ok(list) => {
                let whole = |mut object: DynamicObject| {
                    // Lists leave it out.
                    object.types =
                        Some(kube::core::TypeMeta { api_version: gvk.api_version(), kind: gvk.kind.clone() });
                    value(Some(object))
                };
                Ok(list.items.into_iter().filter_map(whole).collect())
            }
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(vec![]),
            Err(error) => Err(failure(&error, "list", &gvk.kind)),
        }
    }

    /// Deletes an object; whether it was there.
    ///
    /// # Errors
    /// What the server says.
    pub async fn delete(&self, object: &Value) -> Result<bool, Failure> {
        let parameters =
            DeleteParams { propagation_policy: Some(PropagationPolicy::Background), ..DeleteParams::default() };
        match self.api(&kind_of(object), namespace(object)).delete(name(object), &parameters).await {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(false),
            Err(error) => Err(failure(&error, "delete", &title(object))),
        }
    }
}

/// Group, version and kind by name.
pub fn gvk(group: &str, version: &str, kind: &str) -> GroupVersionKind {
    GroupVersionKind::gvk(group, version, kind)
}

fn kind_of(object: &Value) -> GroupVersionKind {
    let api_version = object["apiVersion"].as_str().unwrap_or_default();
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    gvk(group, version, object["kind"].as_str().unwrap_or_default())
}

/// Name of an object.
pub fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

/// Namespace of an object.
pub fn namespace(object: &Value) -> Option<&str> {
    object["metadata"]["namespace"].as_str()
}

/// `Kind namespace/name`.
pub fn title(object: &Value) -> String {
    let kind = object["kind"].as_str().unwrap_or_default();
    match namespace(object) {
        Some(namespace) => format!("{kind} {namespace}/{}", name(object)),
        None => format!("{kind} {}", name(object)),
    }
}

fn value(object: Option<DynamicObject>) -> Option<Value> {
    let mut value = serde_json::to_value(object?).ok()?;
    value["metadata"].as_object_mut()?.remove("managedFields");
    Some(value)
}

/// What an error of the client means to the caller.
fn failure(error: &kube::Error, verb: &str, what: &str) -> Failure {
    match error {
        kube::Error::Api(status) if status.code == 403 => {
            let message = format!("{verb} {what} is not permitted: {}", status.message);
            Failure::new(exit::FORBIDDEN, message)
        }
        kube::Error::Api(status) if status.code == 401 => {
            Failure::new(exit::FORBIDDEN, format!("the API server does not know the caller: {}", status.message))
        }
        kube::Error::Api(status) => Failure::new(exit::NEGATIVE, format!("{verb} {what}: {}", status.message)),
        kube::Error::UpgradeConnection(UpgradeConnectionError::ProtocolSwitch(status)) => {
            Failure::new(exit::UNREACHABLE, format!("{verb} {what}: the API server answers {status}"))
        }
        kube::Error::UpgradeConnection(why) => Failure::new(exit::UNREACHABLE, format!("{verb} {what}: {why}")),
        kube::Error::Service(_) | kube::Error::HyperError(_) => {
            let mut why = error.to_string();
            let mut source = std::error::Error::source(error);
            while let Some(inner) = source {
                why = inner.to_string();
                source = inner.source();
            }
            Failure::new(exit::UNREACHABLE, format!("the API server cannot be reached: {why}"))
        }
        other => Failure::new(exit::NEGATIVE, format!("{verb} {what}: {other}")),
    }
}
