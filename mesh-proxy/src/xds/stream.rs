//! A gRPC stream to an xDS server that is opened again whenever it is lost.
//!
//! Owns connecting, the pause between attempts and the two forms on the wire. Says what happens to whoever owns the
//! protocol; must not know what the messages mean.

use std::time::Duration;

use mesh_api::xds::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse};
use prost::Message;
use tokio::{sync::mpsc, time::sleep};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{
    Request as Call, Status, Streaming,
    client::Grpc,
    metadata::{MetadataKey, MetadataValue},
    transport::Channel,
};
use tonic_prost::ProstCodec;

use super::protocol::{Backoff, Request, Response, Variant};

/// Largest message.
const MAX_MESSAGE: usize = 256 << 20;
/// Messages that wait to be applied; the rest waits in the connection's window.
const AHEAD: usize = 4;

/// Makes channels to a server.
pub trait Connect: Send + Sync {
    /// A channel; every call may give another.
    ///
    /// # Errors
    /// Why there cannot be one now.
    fn channel(&mut self) -> Result<Channel, String>;
    /// Headers of the stream, read anew at each attempt.
    fn metadata(&self) -> Vec<(String, String)>;
    /// For messages.
    fn place(&self) -> String;
}

/// Which service is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// All types on one stream.
    Ads(Variant),
    /// Secrets, state of the world.
    Sds,
}

impl Service {
    /// Which form of the protocol is spoken.
    pub fn variant(self) -> Variant {
        match self {
            Service::Ads(variant) => variant,
            Service::Sds => Variant::Sotw,
        }
    }
    fn path(self) -> &'static str {
        match self {
            Service::Ads(Variant::Delta) => {
                "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
            }
            Service::Ads(Variant::Sotw) => {
                "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources"
            }
            Service::Sds => "/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets",
        }
    }
}

/// What happens on the stream.
#[derive(Debug)]
pub enum Heard {
    /// A stream begins: what is sent here goes out, from the first message on. Some servers answer nothing, not even
    /// that the stream is open, before they have seen it.
    Opening(mpsc::UnboundedSender<Request>),
    /// A message.
    Response(Response),
    /// The stream is gone, or could not be opened; another attempt follows by itself.
    Lost(String),
}

/// Keeps a stream open, for as long as somebody listens.
pub fn keep_open(connect: Box<dyn Connect>, service: Service) -> mpsc::Receiver<Heard> {
    let (tx, rx) = mpsc::channel(AHEAD);
    tokio::spawn(async move {
        // Ends also while it waits for a server that is silent.
        tokio::select! {
            () = run(connect, service, &tx) => {}
            () = tx.closed() => {}
        }
    });
    rx
}

async fn run(mut connect: Box<dyn Connect>, service: Service, heard: &mpsc::Sender<Heard>) {
    let mut backoff = Backoff::default();
    loop {
        let mut spoke = false;
        let ended = match connect.channel() {
            Err(error) => Err(Status::unavailable(error)),
            Ok(channel) => match service.variant() {
                Variant::Delta => delta(&*connect, channel, service, heard, &mut spoke).await,
                Variant::Sotw => sotw(&*connect, channel, service, heard, &mut spoke).await,
            },
        };
        let why = match ended {
            Ok(()) => "the stream was closed".to_owned(),
            Err(status) => describe(&status),
        };
        if spoke {
            backoff.reset();
        }
        if heard.send(Heard::Lost(why)).await.is_err() {
            return;
        }
        let pause: Duration = backoff.next(rand::random());
        sleep(pause).await;
    }
}

async fn delta(
    connect: &dyn Connect,
    channel: Channel,
    service: Service,
    heard: &mpsc::Sender<Heard>,
    spoke: &mut bool,
) -> Result<(), Status> {
    let (tx, mut requests) = mpsc::unbounded_channel::<Request>();
    let (out, rx) = mpsc::unbounded_channel::<DeltaDiscoveryRequest>();
    let pump = async move {
        while let Some(request) = requests.recv().await {
            if let Request::Delta(request) = request
                && out.send(*request).is_err()
            {
                return;
            }
        }
    };
    let call = Call::new(UnboundedReceiverStream::new(rx));
    let wrap = |r: DeltaDiscoveryResponse| Response::Delta(Box::new(r));
    converse(connect, channel, service, heard, spoke, (tx, pump), call, wrap).await
}

async fn sotw(
    connect: &dyn Connect,
    channel: Channel,
    service: Service,
    heard: &mpsc::Sender<Heard>,
    spoke: &mut bool,
) -> Result<(), Status> {
    let (tx, mut requests) = mpsc::unbounded_channel::<Request>();
    let (out, rx) = mpsc::unbounded_channel::<DiscoveryRequest>();
    let pump = async move {
        while let Some(request) = requests.recv().await {
            if let Request::Sotw(request) = request
                && out.send(*request).is_err()
            {
                return;
            }
        }
    };
    let call = Call::new(UnboundedReceiverStream::new(rx));
    let wrap = |r: DiscoveryResponse| Response::Sotw(Box::new(r));
    converse(connect, channel, service, heard, spoke, (tx, pump), call, wrap).await
}

/// Opens the stream and hands on what comes, until it ends. Reading never waits for writing.
#[allow(clippy::too_many_arguments)]
async fn converse<Q, A>(
    connect: &dyn Connect,
    channel: Channel,
    service: Service,
    heard: &mpsc::Sender<Heard>,
    spoke: &mut bool,
    (tx, pump): (mpsc::UnboundedSender<Request>, impl Future<Output = ()>),
    mut call: Call<UnboundedReceiverStream<Q>>,
    wrap: impl Fn(A) -> Response,
) -> Result<(), Status>
where
    Q: Message + Send + Sync + 'static,
    A: Message + Default + Send + Sync + 'static,
{
    for (key, value) in connect.metadata() {
        let parsed = (MetadataKey::from_bytes(key.as_bytes()), MetadataValue::try_from(value.as_str()));
        if let (Ok(key), Ok(value)) = parsed {
            call.metadata_mut().insert(key, value);
        }
    }
    if heard.send(Heard::Opening(tx)).await.is_err() {
        return Ok(());
    }
    let exchange = async {
        let mut grpc = Grpc::new(channel).max_decoding_message_size(MAX_MESSAGE);
        grpc.ready().await.map_err(|e| Status::unavailable(causes(&e)))?;
        let path = http::uri::PathAndQuery::from_static(service.path());
        let mut stream: Streaming<A> = grpc.streaming(call, path, ProstCodec::<Q, A>::default()).await?.into_inner();
        while let Some(message) = stream.message().await? {
            *spoke = true;
            if heard.send(Heard::Response(wrap(message))).await.is_err() {
                break;
            }
        }
        Ok(())
    };
    tokio::pin!(pump, exchange);
    tokio::select! {
        ended = &mut exchange => ended,
        // Whoever owns the protocol has let go of the stream.
        () = &mut pump => exchange.await,
    }
}

/// An error with its causes, each said once.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = if text.is_empty() { cause_text } else { format!("{text}: {cause_text}") };
        }
        source = cause.source();
    }
    text
}

pub(super) fn describe(status: &Status) -> String {
    let mut text = status.message().to_owned();
    if let Some(source) = std::error::Error::source(status) {
        let more = causes(source);
        if !text.contains(&more) {
            text = if text.is_empty() { more } else { format!("{text}: {more}") };
        }
    }
    if text.is_empty() { format!("{:?}", status.code()) } else { text }
}
