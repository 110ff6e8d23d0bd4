//! Secrets that do not come over ADS: from the secret service of a cluster in the configuration (Istio's agent at
//! `sds-grpc`), and from files. One stream a secret, as Envoy has it; a lost one is opened again and the last good secret
//! stays in force.

use std::{collections::HashMap, path::Path, sync::Arc, time::Duration};

use mesh_api::{
    model::{Name, SdsRef, SdsSource},
    xds::{
        TypeUrl,
        discovery::{DiscoveryRequest, DiscoveryResponse},
        envoy::{
            config::core::v3::Node, extensions::transport_sockets::tls::v3::Secret,
            service::secret::v3::secret_discovery_service_client::SecretDiscoveryServiceClient,
        },
        google::rpc::Status as Detail,
        json,
    },
};
use prost::Message;
use tokio::{sync::mpsc, task::JoinSet};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, transport::Channel};

use super::convert;
use crate::tls::SecretStore;

/// Waits between attempts: doubled up to the second, jittered.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// How often files are looked at.
const FILES: Duration = Duration::from_secs(1);
/// gRPC's `INVALID_ARGUMENT`, as Envoy says in a NACK.
const INVALID_ARGUMENT: i32 = 3;
/// Largest message, and largest file.
const MAX_MESSAGE: usize = 4 << 20;
const SECRET: &str = "envoy.extensions.transport_sockets.tls.v3.Secret";

/// Makes channels to clusters of the configuration.
pub trait Channels: Send + Sync {
    /// A channel that connects when it is used.
    fn channel(&self, cluster: &Name) -> Result<Channel, String>;
}

/// Fetches every secret that contexts use and that nobody else delivers, as long as they use it. Runs for ever.
pub async fn run(store: Arc<SecretStore>, node: Node, channels: Arc<dyn Channels>) {
    let mut changes = store.changes();
    let mut tasks = JoinSet::new();
    let mut running = HashMap::new();
    loop {
        let wanted: Vec<SdsRef> = store
            .wanted()
            .into_iter()
            .filter(|r| matches!(r.source, SdsSource::Cluster(_) | SdsSource::Path(_)))
            .collect();
        running.retain(|reference, task: &mut tokio::task::AbortHandle| {
            let keep = wanted.contains(reference);
            if !keep {
                task.abort();
            }
            keep
        });
        for reference in wanted {
            running.entry(reference.clone()).or_insert_with(|| {
                let (store, node, channels) = (store.clone(), node.clone(), channels.clone());
                tasks.spawn(async move {
                    match reference.source.clone() {
                        SdsSource::Cluster(cluster) => follow(&store, &node, &*channels, &reference, &cluster).await,
                        SdsSource::Path(path) => watch(&store, &reference, &path).await,
                        SdsSource::Ads | SdsSource::Bootstrap => {}
                    }
                })
            });
        }
        // Ended tasks are let go of.
        while tasks.try_join_next().is_some() {}
        if changes.changed().await.is_err() {
            return;
        }
    }
}

async fn follow(store: &Arc<SecretStore>, node: &Node, channels: &dyn Channels, reference: &SdsRef, cluster: &Name) {
    let mut wait = BACKOFF.0;
    loop {
        let began = tokio::time::Instant::now();
        let ended = match channels.channel(cluster) {
            Ok(channel) => stream(store, node, reference, channel).await,
            Err(e) => Err(Status::unavailable(e)),
        };
        let why = ended.err().map_or_else(|| "the stream was closed".to_owned(), |s| super::stream::describe(&s));
        store.note_error(reference, &format!("secret service {cluster}: {why}"));
        wait = if began.elapsed() > Duration::from_secs(10) { BACKOFF.0 } else { (wait * 2).min(BACKOFF.1) };
        tokio::time::sleep(wait.mul_f64(0.5 + rand::random::<f64>() / 2.0)).await;
    }
}

async fn stream(store: &Arc<SecretStore>, node: &Node, reference: &SdsRef, channel: Channel) -> Result<(), Status> {
    let mut client = SecretDiscoveryServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
    let (tx, rx) = mpsc::channel(4);
    let closed = || Status::unavailable("the stream is closed");
    let mut request = DiscoveryRequest {
        node: Some(node.clone()),
        type_url: TypeUrl::Secret.as_str().to_owned(),
        resource_names: vec![reference.name.to_string()],
        ..DiscoveryRequest::default()
    };
    tx.send(request.clone()).await.map_err(|_| closed())?;
    request.node = None;
    let mut answers = client.stream_secrets(ReceiverStream::new(rx)).await?.into_inner();
    while let Some(response) = answers.message().await? {
        let taken = take(store, reference, &response);
        request.response_nonce.clone_from(&response.nonce);
        request.error_detail = match taken {
            Ok(()) => {
                request.version_info = response.version_info;
                None
            }
            Err(message) => {
                store.note_error(reference, &message);
                Some(Detail { code: INVALID_ARGUMENT, message, details: vec![] })
            }
        };
        tx.send(request.clone()).await.map_err(|_| closed())?;
    }
    Ok(())
}

fn take(store: &Arc<SecretStore>, reference: &SdsRef, response: &DiscoveryResponse) -> Result<(), String> {
    let named = |wire: &[u8]| Secret::decode(wire).is_ok_and(|s| *s.name == *reference.name);
    let Some(any) = response.resources.iter().find(|any| named(&any.value)) else {
        return Err(format!("{} is not in the answer", reference.name));
    };
    put(store, reference, &any.value)
}

fn put(store: &Arc<SecretStore>, reference: &SdsRef, wire: &[u8]) -> Result<(), String> {
    let secret = convert::secret(&reference.name, wire).map_err(|e| e.to_string())?;
    store.put(reference, secret.kind).map_err(|e| format!("{}: {e}", reference.name))
}

/// Reads the secret whenever its file changes. Files that the secret itself names are watched by the store.
async fn watch(store: &Arc<SecretStore>, reference: &SdsRef, path: &Path) {
    let mut last = None;
    loop {
        let text = tokio::fs::read_to_string(path).await.map_err(|e| format!("{}: {e}", path.display()));
        if last.as_ref() != Some(&text) {
            let done = text.as_ref().map_err(Clone::clone).and_then(|text| {
                let wire = in_file(text, &reference.name).map_err(|e| format!("{}: {e}", path.display()))?;
                put(store, reference, &wire)
            });
            if let Err(e) = done {
                store.note_error(reference, &e);
            }
            last = Some(text);
        }
        tokio::time::sleep(FILES).await;
    }
}

/// The wire bytes of a secret in a file that holds a `DiscoveryResponse` in YAML or JSON.
fn in_file(text: &str, name: &str) -> Result<Vec<u8>, String> {
    if text.len() > MAX_MESSAGE {
        return Err("too large".to_owned());
    }
    let mut file: serde_json::Value = mesh_api::yaml::from_str(text).map_err(|e| e.to_string())?;
    let resources = file.get_mut("resources").and_then(|r| r.as_array_mut()).ok_or("there are no resources")?;
    let named = |r: &serde_json::Value| r.get("name").and_then(|n| n.as_str()) == Some(name);
    let Some(serde_json::Value::Object(secret)) = resources.iter_mut().find(|r| named(r)) else {
        return Err(format!("there is no secret {name}"));
    };
    secret.remove("@type");
    let text = serde_json::Value::Object(std::mem::take(secret)).to_string();
    json::parse(&text, SECRET).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use mesh_api::model::{CertificateSource, CommonTls, UpstreamTls, Validation};
    use tokio::net::{UnixListener, UnixStream};

    use super::*;
    use crate::tls::ClientTls;

    fn authority(name: &str) -> String {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.self_signed(&key).unwrap().pem()
    }

    fn context(sds: SdsRef) -> UpstreamTls {
        UpstreamTls {
            common: CommonTls {
                certificates: Vec::<CertificateSource>::new(),
                validation: Some(Validation { inline: None, sds: Some(sds) }),
                ..CommonTls::default()
            },
            sni: "".into(),
            auto_host_sni: false,
            auto_sni_san_validation: false,
        }
    }

    struct NoChannels;
    impl Channels for NoChannels {
        fn channel(&self, cluster: &Name) -> Result<Channel, String> {
            Err(format!("there is no cluster {cluster}"))
        }
    }

    struct Socket(std::path::PathBuf);
    impl Channels for Socket {
        fn channel(&self, _: &Name) -> Result<Channel, String> {
            let path = self.0.clone();
            let connector = tower::service_fn(move |_: http::Uri| {
                let path = path.clone();
                async move { UnixStream::connect(path).await.map(hyper_util::rt::TokioIo::new) }
            });
            Ok(tonic::transport::Endpoint::from_static("http://sds").connect_with_connector_lazy(connector))
        }
    }

    async fn until(done: impl Fn() -> bool) {
        for _ in 0..600 {
            if done() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("not in time");
    }

    #[tokio::test]
    async fn secrets_in_a_file_are_read_again_when_it_changes() {
        crate::tls::install_default_provider();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret.json");
        let write = |pem: &str| {
            let file = serde_json::json!({"resources": [{
                "@type": TypeUrl::Secret.as_str(), "name": "ca",
                "validation_context": {"trusted_ca": {"inline_string": pem}}}]});
            std::fs::write(&path, file.to_string()).unwrap();
        };
        write(&authority("one"));
        let store = SecretStore::new();
        tokio::spawn(run(store.clone(), Node::default(), Arc::new(NoChannels)));
        let reference = SdsRef { name: "ca".into(), source: SdsSource::Path(path.clone()) };
        let tls = ClientTls::new(&context(reference.clone()), &store).unwrap();
        until(|| tls.ready()).await;
        let first = store.slot(&reference).generation();
        write(&authority("two"));
        until(|| store.slot(&reference).generation() != first).await;
        // Nonsense changes nothing but the error.
        std::fs::write(&path, "{}").unwrap();
        until(|| store.slot(&reference).state().error.is_some()).await;
        assert!(tls.ready());
    }

    #[tokio::test]
    async fn secrets_of_a_service_survive_its_outage() {
        crate::tls::install_default_provider();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let agent = SecretStore::with_local_identity();
        let put = |pem: String| {
            let context = mesh_api::model::ValidationContext {
                trusted_ca: Some(mesh_api::model::DataSource::Inline(pem.into())),
                ..Default::default()
            };
            let kind = mesh_api::model::SecretKind::Validation(context);
            agent.put(&SecretStore::local_reference("ROOTCA"), kind).unwrap();
        };
        put(authority("one"));
        let serve = || {
            let listener = UnixListener::bind(&path).unwrap();
            let service = crate::xds::services::sds::service(agent.clone());
            let incoming = tokio_stream::wrappers::UnixListenerStream::new(listener);
            tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming))
        };
        let server = serve();
        let store = SecretStore::new();
        tokio::spawn(run(store.clone(), Node::default(), Arc::new(Socket(path.clone()))));
        let reference = SecretStore::local_reference("ROOTCA");
        let tls = ClientTls::new(&context(reference.clone()), &store).unwrap();
        until(|| tls.ready()).await;
        let first = store.slot(&reference).generation();
        put(authority("two"));
        until(|| store.slot(&reference).generation() != first).await;
        server.abort();
        std::fs::remove_file(&path).unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(tls.ready());
        let _server = serve();
        put(authority("three"));
        let second = store.slot(&reference).generation();
        until(|| store.slot(&reference).generation() != second).await;
    }
}
