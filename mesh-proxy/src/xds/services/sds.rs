//! `SecretDiscoveryService` for a local Envoy: the secrets of this process's own identity, pushed when they change.
//!
//! Owns the protocol, state of the world and delta. Must not know how secrets come into the store, nor what it is served
//! on.

use std::{
    collections::{BTreeMap, HashMap},
    pin::Pin,
    sync::Arc,
};

use mesh_api::xds::{
    TypeUrl,
    discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource},
    envoy::{
        config::core::v3::{DataSource, data_source::Specifier},
        extensions::transport_sockets::tls::v3::{CertificateValidationContext, Secret, TlsCertificate, secret::Type},
        service::secret::v3::secret_discovery_service_server::{SecretDiscoveryService, SecretDiscoveryServiceServer},
    },
    google::protobuf::Any,
};
use prost::Message;
use tokio::sync::mpsc;
use tokio_stream::{Stream, StreamExt, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};
use xxhash_rust::xxh3::xxh3_64;

use crate::{
    identity,
    tls::{Material, SecretStore, Slot},
};

/// Names that one stream may ask for.
const MAX_NAMES: usize = 256;

/// The service, for a socket that only our own user can reach.
pub fn service(store: Arc<SecretStore>) -> SecretDiscoveryServiceServer<impl SecretDiscoveryService> {
    SecretDiscoveryServiceServer::new(Sds(store))
}

struct Sds(Arc<SecretStore>);

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl SecretDiscoveryService for Sds {
    type StreamSecretsStream = Answers<DiscoveryResponse>;
    type DeltaSecretsStream = Answers<DeltaDiscoveryResponse>;

    async fn stream_secrets(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamSecretsStream>, Status> {
        let (tx, rx) = mpsc::channel(4);
        tokio::spawn(run(Sotw::new(self.0.clone()), self.0.clone(), request.into_inner(), tx));
        Ok(Response::new(Box::pin(ReceiverStream::new(rx))))
    }

    async fn delta_secrets(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaSecretsStream>, Status> {
        let (tx, rx) = mpsc::channel(4);
        tokio::spawn(run(Delta::new(self.0.clone()), self.0.clone(), request.into_inner(), tx));
        Ok(Response::new(Box::pin(ReceiverStream::new(rx))))
    }

    async fn fetch_secrets(&self, request: Request<DiscoveryRequest>) -> Result<Response<DiscoveryResponse>, Status> {
        let mut protocol = Sotw::new(self.0.clone());
        protocol.take(request.into_inner())?;
        protocol.due().map(Response::new).ok_or_else(|| Status::unavailable("no such secret yet"))
    }
}

/// What differs between the two protocols. No IO.
trait Protocol: Send + 'static {
    type Request: Send + 'static;
    type Response: Send + 'static;
    /// Takes a request in.
    fn take(&mut self, request: Self::Request) -> Result<(), Status>;
    /// What is to be sent now.
    fn due(&mut self) -> Option<Self::Response>;
}

async fn run<P: Protocol>(
    mut protocol: P,
    store: Arc<SecretStore>,
    mut requests: impl Stream<Item = Result<P::Request, Status>> + Unpin,
    answers: mpsc::Sender<Result<P::Response, Status>>,
) {
    let mut changes = store.changes();
    drop(store);
    loop {
        tokio::select! {
            request = requests.next() => match request {
                Some(Ok(request)) => {
                    if let Err(status) = protocol.take(request) {
                        let _ = answers.send(Err(status)).await;
                        return;
                    }
                }
                Some(Err(_)) | None => return,
            },
            changed = changes.changed() => if changed.is_err() { return },
            () = answers.closed() => return,
        }
        if let Some(response) = protocol.due()
            && answers.send(Ok(response)).await.is_err()
        {
            return;
        }
    }
}

/// The slot of a name; held, so that its secret stays.
fn slot(store: &Arc<SecretStore>, name: &str) -> Result<Arc<Slot>, Status> {
    let own = name == identity::CERTIFICATE || name == identity::ROOTS;
    if own || name.starts_with("file-cert:") || name.starts_with("file-root:") {
        Ok(store.slot(&SecretStore::local_reference(name)))
    } else {
        Err(Status::invalid_argument(format!("no secret is called {name:?}")))
    }
}

fn check_type(type_url: &str) -> Result<(), Status> {
    if type_url.is_empty() || type_url == TypeUrl::Secret.as_str() {
        Ok(())
    } else {
        Err(Status::invalid_argument(format!("only secrets are served here, not {type_url}")))
    }
}

fn refused(detail: &str) {
    tracing::warn!(target: "identity", "Envoy refused a secret: {detail}");
}

/// A secret as it goes out, with a version that tells its content.
fn encode(slot: &Slot) -> Option<(Any, String)> {
    let inline = |text: &str| {
        Some(DataSource { specifier: Some(Specifier::InlineBytes(text.as_bytes().to_vec())), ..Default::default() })
    };
    let kind = match slot.state().material.as_ref()? {
        Material::Certificate(cert) => Type::TlsCertificate(TlsCertificate {
            certificate_chain: inline(&cert.chain_pem),
            private_key: inline(cert.private_key_pem()),
            ..Default::default()
        }),
        Material::Trust(trust) => Type::ValidationContext(CertificateValidationContext {
            trusted_ca: inline(&trust.ca_pem),
            ..Default::default()
        }),
    };
    let value = Secret { name: slot.name().to_string(), r#type: Some(kind) }.encode_to_vec();
    let version = format!("{:016x}", xxh3_64(&value));
    Some((Any { type_url: TypeUrl::Secret.as_str().to_owned(), value }, version))
}

/// State of the world: every answer has all secrets that are asked for and there.
struct Sotw {
    store: Arc<SecretStore>,
    slots: BTreeMap<String, Arc<Slot>>,
    /// Versions sent last, by name; `None`: an answer is owed.
    sent: Option<BTreeMap<String, String>>,
    nonce: u64,
}

impl Sotw {
    fn new(store: Arc<SecretStore>) -> Self {
        Self { store, slots: BTreeMap::new(), sent: None, nonce: 0 }
    }
}

impl Protocol for Sotw {
    type Request = DiscoveryRequest;
    type Response = DiscoveryResponse;

    fn take(&mut self, request: DiscoveryRequest) -> Result<(), Status> {
        check_type(&request.type_url)?;
        if !request.response_nonce.is_empty() && request.response_nonce != self.nonce.to_string() {
            return Ok(());
        }
        if let Some(detail) = &request.error_detail {
            refused(&detail.message);
        }
        if request.resource_names.len() > MAX_NAMES {
            return Err(Status::invalid_argument(format!("more than {MAX_NAMES} secrets")));
        }
        let mut slots = BTreeMap::new();
        for name in request.resource_names {
            let slot = slot(&self.store, &name)?;
            slots.insert(name, slot);
        }
        if slots.keys().any(|name| !self.slots.contains_key(name)) {
            self.sent = None;
        }
        self.slots = slots;
        Ok(())
    }

    fn due(&mut self) -> Option<DiscoveryResponse> {
        let mut versions = BTreeMap::new();
        let mut resources = vec![];
        for (name, slot) in &self.slots {
            if let Some((resource, version)) = encode(slot) {
                versions.insert(name.clone(), version);
                resources.push(resource);
            }
        }
        if resources.is_empty() || self.sent.as_ref() == Some(&versions) {
            return None;
        }
        let all: Vec<&str> = versions.iter().flat_map(|(n, v)| [n.as_str(), v.as_str()]).collect();
        let version_info = format!("{:016x}", xxh3_64(all.join(" ").as_bytes()));
        self.sent = Some(versions);
        self.nonce += 1;
        Some(DiscoveryResponse {
            version_info,
            resources,
            type_url: TypeUrl::Secret.as_str().to_owned(),
            nonce: self.nonce.to_string(),
            ..Default::default()
        })
    }
}

/// Delta: what changed since it was sent.
struct Delta {
    store: Arc<SecretStore>,
    slots: BTreeMap<String, Arc<Slot>>,
    /// Versions that the client has.
    sent: HashMap<String, String>,
    nonce: u64,
}

impl Delta {
    fn new(store: Arc<SecretStore>) -> Self {
        Self { store, slots: BTreeMap::new(), sent: HashMap::new(), nonce: 0 }
    }
}

impl Protocol for Delta {
    type Request = DeltaDiscoveryRequest;
    type Response = DeltaDiscoveryResponse;

    fn take(&mut self, request: DeltaDiscoveryRequest) -> Result<(), Status> {
        check_type(&request.type_url)?;
        if let Some(detail) = &request.error_detail {
            refused(&detail.message);
        }
        for name in &request.resource_names_unsubscribe {
            self.slots.remove(name);
            self.sent.remove(name);
        }
        if self.slots.len() + request.resource_names_subscribe.len() > MAX_NAMES {
            return Err(Status::invalid_argument(format!("more than {MAX_NAMES} secrets")));
        }
        for name in request.resource_names_subscribe {
            let slot = slot(&self.store, &name)?;
            // Asked for again: it is sent again, unless the client says which version it has.
            match request.initial_resource_versions.get(&name) {
                Some(version) => self.sent.insert(name.clone(), version.clone()),
                None => self.sent.remove(&name),
            };
            self.slots.insert(name, slot);
        }
        Ok(())
    }

    fn due(&mut self) -> Option<DeltaDiscoveryResponse> {
        let mut resources = vec![];
        for (name, slot) in &self.slots {
            if let Some((resource, version)) = encode(slot)
                && self.sent.get(name) != Some(&version)
            {
                self.sent.insert(name.clone(), version.clone());
                resources.push(Resource {
                    name: name.clone(),
                    version,
                    resource: Some(resource),
                    ..Default::default()
                });
            }
        }
        if resources.is_empty() {
            return None;
        }
        self.nonce += 1;
        Some(DeltaDiscoveryResponse {
            resources,
            type_url: TypeUrl::Secret.as_str().to_owned(),
            nonce: self.nonce.to_string(),
            ..Default::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use mesh_api::model::{DataSource, PrivateData, SecretKind, TlsCertificate, ValidationContext};

    use super::*;

    fn put(store: &Arc<SecretStore>) {
        let key = rcgen::KeyPair::generate().unwrap();
        let pem = rcgen::CertificateParams::new(vec!["x.test".to_owned()]).unwrap().self_signed(&key).unwrap().pem();
        let kind = SecretKind::Certificate(TlsCertificate {
            chain: DataSource::Inline(pem.as_str().into()),
            key: PrivateData(DataSource::Inline(key.serialize_pem().into())),
        });
        store.put(&SecretStore::local_reference("default"), kind).unwrap();
        let context =
            ValidationContext { trusted_ca: Some(DataSource::Inline(pem.as_str().into())), ..Default::default() };
        store.put(&SecretStore::local_reference("ROOTCA"), SecretKind::Validation(context)).unwrap();
    }

    fn ask(names: &[&str], nonce: &str) -> DiscoveryRequest {
        DiscoveryRequest {
            resource_names: names.iter().map(|n| (*n).to_owned()).collect(),
            response_nonce: nonce.to_owned(),
            ..Default::default()
        }
    }

    #[test]
    fn state_of_the_world() {
        let store = SecretStore::with_local_identity();
        let mut protocol = Sotw::new(store.clone());
        protocol.take(ask(&["default"], "")).unwrap();
        assert!(protocol.due().is_none(), "not there yet");
        put(&store);
        let first = protocol.due().unwrap();
        let secret = Secret::decode(first.resources[0].value.as_ref()).unwrap();
        assert_eq!(secret.name, "default");
        assert!(matches!(secret.r#type, Some(Type::TlsCertificate(c)) if c.private_key.is_some()));
        protocol.take(ask(&["default"], &first.nonce)).unwrap();
        assert!(protocol.due().is_none(), "acknowledged");
        put(&store);
        let second = protocol.due().unwrap();
        assert_ne!(second.version_info, first.version_info);
        // Stale: changes nothing.
        protocol.take(ask(&[], &first.nonce)).unwrap();
        protocol.take(ask(&["default", "ROOTCA"], &second.nonce)).unwrap();
        assert_eq!(protocol.due().unwrap().resources.len(), 2);
        assert!(protocol.take(ask(&["kubernetes://secret"], "")).is_err());
        assert!(
            protocol
                .take(DiscoveryRequest { type_url: TypeUrl::Cluster.as_str().into(), ..Default::default() })
                .is_err()
        );
    }

    #[test]
    fn delta() {
        let store = SecretStore::with_local_identity();
        put(&store);
        let mut protocol = Delta::new(store.clone());
        let subscribe = |names: &[&str]| DeltaDiscoveryRequest {
            resource_names_subscribe: names.iter().map(|n| (*n).to_owned()).collect(),
            ..Default::default()
        };
        protocol.take(subscribe(&["default", "ROOTCA"])).unwrap();
        let first = protocol.due().unwrap();
        assert_eq!(first.resources.len(), 2);
        assert!(protocol.due().is_none());
        protocol.take(subscribe(&["ROOTCA"])).unwrap();
        assert_eq!(protocol.due().unwrap().resources.len(), 1, "asked for again");
        // Back after a lost connection: only what changed meanwhile.
        let mut back = Delta::new(store.clone());
        let mut request = subscribe(&["default", "ROOTCA"]);
        request.initial_resource_versions =
            first.resources.iter().map(|r| (r.name.clone(), r.version.clone())).collect();
        back.take(request).unwrap();
        assert!(back.due().is_none());
        put(&store);
        assert_eq!(back.due().unwrap().resources.len(), 2);
        let gone = DeltaDiscoveryRequest { resource_names_unsubscribe: vec!["default".into()], ..Default::default() };
        back.take(gone).unwrap();
        put(&store);
        assert_eq!(back.due().unwrap().resources.len(), 1);
    }
}
