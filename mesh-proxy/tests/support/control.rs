//! A control plane for tests: does nothing by itself, shows requests and sends what it is told.

use std::{net::SocketAddr, pin::Pin, sync::Arc, time::Duration};

use mesh_api::xds::{
    TypeUrl,
    discovery::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
        aggregated_discovery_service_server::{AggregatedDiscoveryService, AggregatedDiscoveryServiceServer},
    },
    google::protobuf::Any,
    json,
};
use tokio::{
    net::TcpListener,
    sync::{Mutex, mpsc},
    time::timeout,
};
use tokio_stream::{
    Stream, StreamExt,
    wrappers::{TcpListenerStream, UnboundedReceiverStream},
};
use tonic::{Request, Response, Status, Streaming};

type Out<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// One stream, as the test sees it.
pub struct Conversation<Q, A> {
    requests: Streaming<Q>,
    answers: mpsc::UnboundedSender<Result<A, Status>>,
    nonce: u32,
}

pub type Delta = Conversation<DeltaDiscoveryRequest, DeltaDiscoveryResponse>;
pub type Sotw = Conversation<DiscoveryRequest, DiscoveryResponse>;

struct Service {
    delta: mpsc::UnboundedSender<Delta>,
    sotw: mpsc::UnboundedSender<Sotw>,
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Service {
    type StreamAggregatedResourcesStream = Out<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Out<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        let (answers, rx) = mpsc::unbounded_channel();
        let _ = self.sotw.send(Conversation { requests: request.into_inner(), answers, nonce: 0 });
        Ok(Response::new(Box::pin(UnboundedReceiverStream::new(rx))))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let (answers, rx) = mpsc::unbounded_channel();
        let _ = self.delta.send(Conversation { requests: request.into_inner(), answers, nonce: 0 });
        Ok(Response::new(Box::pin(UnboundedReceiverStream::new(rx))))
    }
}

/// The server.
#[derive(Clone)]
pub struct Control {
    pub address: SocketAddr,
    delta: Arc<Mutex<mpsc::UnboundedReceiver<Delta>>>,
    sotw: Arc<Mutex<mpsc::UnboundedReceiver<Sotw>>>,
}

impl Control {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (delta_tx, delta) = mpsc::unbounded_channel();
        let (sotw_tx, sotw) = mpsc::unbounded_channel();
        let service = AggregatedDiscoveryServiceServer::new(Service { delta: delta_tx, sotw: sotw_tx });
        let server = tonic::transport::Server::builder().add_service(service);
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        Self { address, delta: Arc::new(Mutex::new(delta)), sotw: Arc::new(Mutex::new(sotw)) }
    }

    /// The next incremental stream.
    pub async fn delta(&self) -> Delta {
        timeout(super::PATIENCE, async { self.delta.lock().await.recv().await }).await.unwrap().unwrap()
    }

    /// The next state-of-the-world stream.
    pub async fn sotw(&self) -> Sotw {
        timeout(super::PATIENCE, async { self.sotw.lock().await.recv().await }).await.unwrap().unwrap()
    }
}

impl<Q: Send + std::fmt::Debug, A> Conversation<Q, A> {
    /// The next request.
    pub async fn next(&mut self) -> Q {
        timeout(super::PATIENCE, self.requests.next()).await.expect("no request").unwrap().unwrap()
    }

    /// Nothing is asked for a moment.
    pub async fn silent(&mut self) {
        let more = timeout(Duration::from_millis(300), self.requests.next()).await;
        assert!(more.is_err(), "{more:?}");
    }
}

impl Delta {
    /// The next request that asks for something of this type.
    pub async fn asked(&mut self, ty: TypeUrl) -> DeltaDiscoveryRequest {
        let request = self.next().await;
        assert_eq!((request.type_url.as_str(), request.response_nonce.as_str()), (ty.as_str(), ""), "{request:?}");
        request
    }

    /// Sends resources and removals and returns the answer to them, with requests that came before it.
    pub async fn push(
        &mut self,
        ty: TypeUrl,
        version: &str,
        resources: &[(&str, Any)],
        removed: &[&str],
    ) -> DeltaDiscoveryRequest {
        self.nonce += 1;
        let nonce = self.nonce.to_string();
        let wrap = |(name, any): &(&str, Any)| Resource {
            name: (*name).to_owned(),
            version: version.to_owned(),
            resource: Some(any.clone()),
            ..Default::default()
        };
        let response = DeltaDiscoveryResponse {
            type_url: ty.as_str().to_owned(),
            nonce: nonce.clone(),
            resources: resources.iter().map(wrap).collect(),
            removed_resources: removed.iter().map(|n| (*n).to_owned()).collect(),
            ..Default::default()
        };
        self.answers.send(Ok(response)).unwrap();
        let answer = self.next().await;
        assert_eq!(answer.response_nonce, nonce, "{answer:?}");
        answer
    }
}

impl Sotw {
    pub async fn asked(&mut self, ty: TypeUrl) -> DiscoveryRequest {
        let request = self.next().await;
        assert_eq!((request.type_url.as_str(), request.response_nonce.as_str()), (ty.as_str(), ""), "{request:?}");
        request
    }

    pub async fn push(&mut self, ty: TypeUrl, version: &str, resources: &[Any]) -> DiscoveryRequest {
        self.nonce += 1;
        let nonce = self.nonce.to_string();
        let response = DiscoveryResponse {
            type_url: ty.as_str().to_owned(),
            version_info: version.to_owned(),
            nonce: nonce.clone(),
            resources: resources.to_vec(),
            ..Default::default()
        };
        self.answers.send(Ok(response)).unwrap();
        let answer = self.next().await;
        assert_eq!(answer.response_nonce, nonce, "{answer:?}");
        answer
    }
}

/// A resource written in YAML.
pub fn resource(ty: TypeUrl, yaml: &str) -> Any {
    let kind = ty.as_str().rsplit('/').next().unwrap();
    Any { type_url: ty.as_str().to_owned(), value: json::parse(yaml, kind).unwrap() }
}

/// An EDS cluster.
pub fn eds_cluster(name: &str) -> Any {
    let yaml = format!("{{name: {name}, type: EDS, eds_cluster_config: {{eds_config: {{ads: {{}}}}}}}}");
    resource(TypeUrl::Cluster, &yaml)
}

/// Its endpoints.
pub fn endpoints(name: &str, addresses: &[SocketAddr]) -> Any {
    let all: Vec<String> = addresses
        .iter()
        .map(|a| {
            format!("{{endpoint: {{address: {{socket_address: {{address: {}, port_value: {}}}}}}}}}", a.ip(), a.port())
        })
        .collect();
    resource(
        TypeUrl::Endpoints,
        &format!("{{cluster_name: {name}, endpoints: [{{lb_endpoints: [{}]}}]}}", all.join(", ")),
    )
}

/// A listener whose routes come over RDS.
pub fn rds_listener(name: &str, port: u16, route: &str) -> Any {
    let rds = format!("rds: {{route_config_name: {route}, config_source: {{ads: {{}}}}}}");
    let yaml = format!(
        "name: {name}\naddress: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}\nfilter_chains:\n- filters:\n{}",
        super::http_filter(2, &rds)
    );
    resource(TypeUrl::Listener, &yaml)
}

/// A route configuration that sends everything to one cluster.
pub fn route(name: &str, cluster: &str) -> Any {
    let yaml = format!(
        "{{name: {name}, virtual_hosts: [{{name: v, domains: ['*'], routes: [{{match: {{prefix: /}}, route: {{cluster: {cluster}}}}}]}}]}}"
    );
    resource(TypeUrl::Route, &yaml)
}

/// A bootstrap file for a proxy that gets everything from this control plane.
pub fn bootstrap(control: SocketAddr, api_type: &str) -> String {
    format!(
        "node: {{id: sidecar~127.0.0.1~a.b~b.svc.cluster.local, cluster: c}}
admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: @ADMIN@}}}}}}
dynamic_resources:
  ads_config:
    api_type: {api_type}
    transport_api_version: V3
    set_node_on_first_message_only: true
    grpc_services: [{{envoy_grpc: {{cluster_name: xds}}}}]
  cds_config: {{ads: {{}}, initial_fetch_timeout: 0s}}
  lds_config: {{ads: {{}}, initial_fetch_timeout: 0s}}
static_resources:
  clusters:
  - name: xds
    type: STATIC
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        '@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{http2_protocol_options: {{}}}}
    load_assignment:
      cluster_name: xds
      endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {}}}}}}}}}]}}]
",
        control.port()
    )
}
