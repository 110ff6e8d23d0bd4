//! The ADS stream: connects, asks, applies, answers, and connects again when it is lost. Meanwhile everything that was
//! accepted stays in force.

use std::sync::Arc;
use std::time::Duration;

use mesh_api::model::Name;
use mesh_api::xds::TypeUrl;
use mesh_api::xds::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use mesh_api::xds::discovery::{DeltaDiscoveryResponse, DiscoveryResponse};
use mesh_api::xds::envoy::config::core::v3::Node;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::{MetadataKey, MetadataValue};
use tonic::transport::Channel;
use tonic::{Request, Status, Streaming};

use super::apply::{self, Resource};
use super::protocol::{Delta, Sotw, TYPES};
use super::store::SharedStore;
use crate::config::SharedConfig;
use crate::config::apply::{Configurator, Event};

/// Largest message.
const MAX_MESSAGE: usize = 256 << 20;
/// Waits between attempts: doubled up to the second, jittered.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// How it stands with the control plane.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AdsStatus {
    /// A stream is open and something was heard on it.
    pub connected: bool,
    /// The first clusters and listeners have arrived.
    pub initial: bool,
    /// Why the last stream ended.
    pub error: Option<String>,
}

/// Makes channels to the control plane.
pub trait Connect: Send + Sync {
    /// A channel; every call may give another.
    fn channel(&mut self) -> Result<Channel, String>;
    /// Headers of the stream, read anew at each attempt.
    fn metadata(&self) -> Vec<(String, String)>;
    /// For messages.
    fn place(&self) -> String;
}

/// What the client needs.
pub struct Client {
    /// Where to.
    pub connect: Box<dyn Connect>,
    /// Delta or state of the world.
    pub delta: bool,
    /// Who we are.
    pub node: Node,
    /// Process-wide state.
    pub shared: Arc<SharedConfig>,
    /// What was accepted.
    pub store: SharedStore,
    /// Told of changes.
    pub status: Arc<watch::Sender<AdsStatus>>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("node", &self.node.id).field("delta", &self.delta).finish_non_exhaustive()
    }
}

impl Client {
    /// Runs for ever.
    pub async fn run(mut self, mut config: Configurator, mut events: mpsc::UnboundedReceiver<Event>) {
        let mut wait = BACKOFF.0;
        let mut sotw = Sotw::default();
        loop {
            let began = tokio::time::Instant::now();
            let ended = match self.connect.channel() {
                Err(error) => Err(Status::unavailable(error)),
                Ok(channel) if self.delta => self.delta(channel, &mut config, &mut events).await,
                Ok(channel) => self.sotw(channel, &mut config, &mut events, &mut sotw).await,
            };
            let why = match ended {
                Ok(()) => "the stream was closed".to_owned(),
                Err(status) => describe(&status),
            };
            tracing::warn!(target: "xds", "control plane {}: {why}", self.connect.place());
            self.status.send_modify(|s| {
                s.connected = false;
                s.error = Some(why);
            });
            // A stream that held for a while was a good one.
            wait = if began.elapsed() > Duration::from_secs(10) { BACKOFF.0 } else { (wait * 2).min(BACKOFF.1) };
            let pause = wait.mul_f64(0.5 + rand::random::<f64>() / 2.0);
            let until = tokio::time::sleep(pause);
            tokio::pin!(until);
            loop {
                tokio::select! {
                    () = &mut until => break,
                    event = events.recv() => {
                        let Some(event) = event else { return };
                        config.note(&event);
                        log_failures(&config.settle());
                    }
                }
            }
        }
    }

    fn request<T>(&self, stream: T) -> Request<T> {
        let mut request = Request::new(stream);
        for (key, value) in self.connect.metadata() {
            let parsed = (MetadataKey::from_bytes(key.as_bytes()), MetadataValue::try_from(value.as_str()));
            if let (Ok(key), Ok(value)) = parsed {
                request.metadata_mut().insert(key, value);
            }
        }
        request
    }

    fn heard(&self, ty: TypeUrl, got: &mut (bool, bool)) {
        match ty {
            TypeUrl::Cluster => got.0 = true,
            TypeUrl::Listener => got.1 = true,
            _ => {}
        }
        let all = *got == (true, true);
        self.status.send_if_modified(|s| {
            let before = s.clone();
            s.connected = true;
            s.error = None;
            s.initial |= all;
            *s != before
        });
    }

    async fn delta(
        &mut self,
        channel: Channel,
        config: &mut Configurator,
        events: &mut mpsc::UnboundedReceiver<Event>,
    ) -> Result<(), Status> {
        let mut client = AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
        let (tx, rx) = mpsc::channel(64);
        let mut protocol = Delta::default();
        // Requests that begin the stream are in the queue before it is opened.
        self.delta_interest(&mut protocol, config, &tx).await?;
        let opening = client.delta_aggregated_resources(self.request(ReceiverStream::new(rx)));
        let mut stream: Streaming<DeltaDiscoveryResponse> = opening.await?.into_inner();
        let mut got = (false, false);
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        loop {
            tokio::select! {
                message = stream.message() => {
                    let Some(response) = message? else { return Ok(()) };
                    self.delta_response(&protocol, response, config, &tx, &mut got).await?;
                }
                event = events.recv() => match event {
                    Some(event) => config.note(&event),
                    None => return Ok(()),
                },
                _ = tick.tick() => {}
            }
            log_failures(&config.settle());
            self.delta_interest(&mut protocol, config, &tx).await?;
        }
    }

    async fn delta_interest(
        &self,
        protocol: &mut Delta,
        config: &Configurator,
        tx: &mpsc::Sender<mesh_api::xds::discovery::DeltaDiscoveryRequest>,
    ) -> Result<(), Status> {
        for ty in TYPES {
            let wanted = apply::wanted(config, &self.shared, ty);
            let known: Vec<_> = self.store.lock().versions(ty).collect();
            if let Some(request) = protocol.interest(ty, wanted.as_deref(), &self.node, known.into_iter()) {
                tx.send(request).await.map_err(|_| Status::unavailable("the stream is closed"))?;
            }
        }
        Ok(())
    }

    async fn delta_response(
        &self,
        protocol: &Delta,
        response: DeltaDiscoveryResponse,
        config: &mut Configurator,
        tx: &mpsc::Sender<mesh_api::xds::discovery::DeltaDiscoveryRequest>,
        got: &mut (bool, bool),
    ) -> Result<(), Status> {
        let Some(ty) = TypeUrl::parse(&response.type_url) else {
            return Err(Status::invalid_argument(format!("type {:?} was not asked for", response.type_url)));
        };
        let resources = response.resources.into_iter().map(|r| Resource {
            name: r.name.as_str().into(),
            version: r.version,
            wire: r.resource.map(|any| any.value).unwrap_or_default().into(),
        });
        let mut refused = apply::update(config, &self.shared, &self.store, ty, resources.collect());
        let removed: Vec<Name> = response.removed_resources.iter().map(|n| n.as_str().into()).collect();
        apply::remove(config, &self.shared, &self.store, ty, &removed);
        refused.extend(bind_failures(config, &self.store));
        let answer = protocol.acknowledge(ty, &response.nonce, &refused);
        tx.send(answer).await.map_err(|_| Status::unavailable("the stream is closed"))?;
        self.heard(ty, got);
        Ok(())
    }

    async fn sotw(
        &mut self,
        channel: Channel,
        config: &mut Configurator,
        events: &mut mpsc::UnboundedReceiver<Event>,
        protocol: &mut Sotw,
    ) -> Result<(), Status> {
        let mut client = AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
        let (tx, rx) = mpsc::channel(64);
        protocol.reconnected();
        self.sotw_interest(protocol, config, &tx).await?;
        let opening = client.stream_aggregated_resources(self.request(ReceiverStream::new(rx)));
        let mut stream: Streaming<DiscoveryResponse> = opening.await?.into_inner();
        let mut got = (false, false);
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        loop {
            tokio::select! {
                message = stream.message() => {
                    let Some(response) = message? else { return Ok(()) };
                    self.sotw_response(protocol, response, config, &tx, &mut got).await?;
                }
                event = events.recv() => match event {
                    Some(event) => config.note(&event),
                    None => return Ok(()),
                },
                _ = tick.tick() => {}
            }
            log_failures(&config.settle());
            self.sotw_interest(protocol, config, &tx).await?;
        }
    }

    async fn sotw_interest(
        &self,
        protocol: &mut Sotw,
        config: &Configurator,
        tx: &mpsc::Sender<mesh_api::xds::discovery::DiscoveryRequest>,
    ) -> Result<(), Status> {
        for ty in TYPES {
            let wanted = apply::wanted(config, &self.shared, ty);
            if let Some(request) = protocol.interest(ty, wanted.as_deref(), &self.node) {
                tx.send(request).await.map_err(|_| Status::unavailable("the stream is closed"))?;
            }
        }
        Ok(())
    }

    async fn sotw_response(
        &self,
        protocol: &mut Sotw,
        response: DiscoveryResponse,
        config: &mut Configurator,
        tx: &mpsc::Sender<mesh_api::xds::discovery::DiscoveryRequest>,
        got: &mut (bool, bool),
    ) -> Result<(), Status> {
        let Some(ty) = TypeUrl::parse(&response.type_url) else {
            return Err(Status::invalid_argument(format!("type {:?} was not asked for", response.type_url)));
        };
        let mut resources = Vec::with_capacity(response.resources.len());
        let mut refused = Vec::new();
        for any in response.resources {
            match super::names::name_of(ty, &any.value) {
                Some(name) => {
                    let version = response.version_info.clone();
                    resources.push(Resource { name: name.into(), version, wire: any.value.into() });
                }
                None => refused.push("a resource has no readable name".to_owned()),
            }
        }
        let listed: Vec<Name> = resources.iter().map(|r| r.name.clone()).collect();
        // Everything that is not listed is gone, of the types that are asked for as a whole.
        let gone: Vec<Name> = match ty {
            TypeUrl::Cluster | TypeUrl::Listener => {
                self.store.lock().names(ty).into_iter().filter(|n| !listed.contains(n)).collect()
            }
            _ => vec![],
        };
        refused.extend(apply::update(config, &self.shared, &self.store, ty, resources));
        apply::remove(config, &self.shared, &self.store, ty, &gone);
        refused.extend(bind_failures(config, &self.store));
        let answer = protocol.acknowledge(ty, &response.version_info, &response.nonce, &refused, &self.node);
        tx.send(answer).await.map_err(|_| Status::unavailable("the stream is closed"))?;
        self.heard(ty, got);
        Ok(())
    }
}

/// Listeners that could not be bound belong into the answer to the response that brought them.
fn bind_failures(config: &mut Configurator, store: &SharedStore) -> Vec<String> {
    let failed = config.settle();
    log_failures(&failed);
    let mut store = store.lock();
    failed
        .into_iter()
        .map(|(name, error)| {
            store.refuse(TypeUrl::Listener, &name, "", bytes::Bytes::new(), &error.0);
            format!("{name}: {error}")
        })
        .collect()
}

/// Listeners that could not be bound are said out loud.
pub fn log_failures(failed: &[(Name, crate::config::ConfigError)]) {
    for (name, error) in failed {
        tracing::error!(target: "listener", "{name}: {error}");
    }
}

fn describe(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut source = std::error::Error::source(status);
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = if text.is_empty() { cause_text } else { format!("{text}: {cause_text}") };
        }
        source = cause.source();
    }
    if text.is_empty() { format!("{:?}", status.code()) } else { text }
}
