//! The ADS server over real sockets, with a tonic client and a generator that holds its resources in a table.

#![allow(clippy::unwrap_used, clippy::expect_used)] // a test that meets what it does not expect ends

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use mesh_api::{
    identity::SpiffeId,
    xds::{
        TypeUrl::{self, Cluster, Endpoints, Listener, Route, Secret},
        discovery::{
            DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
            aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
        },
        envoy::config::core::v3::Node,
        google::rpc::Status as RpcStatus,
    },
};
use mesh_control::{
    metrics::Metrics,
    xds::{
        caller::{Authenticate, Peer},
        encoded::{Encoded, Name, Need},
        generator::{Affected, Generator, Reach},
        hub::Hub,
        node::Client,
        server,
        service::Ads,
    },
};
use tokio::{
    net::TcpListener,
    sync::mpsc,
    time::{sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, Streaming, service::Routes, transport::Channel};

/// Resources in a table; the address of a proxy decides on its "colour", which one cluster shows.
#[derive(Debug)]
struct Table;

#[derive(Debug, Clone, Default)]
struct Index {
    resources: BTreeMap<(TypeUrl, String), Arc<Encoded>>,
    colours: HashMap<IpAddr, String>,
}

#[derive(Debug, Clone, Default)]
struct Change {
    resources: BTreeSet<(TypeUrl, String)>,
    addresses: Vec<IpAddr>,
}

impl Index {
    fn set(&mut self, ty: TypeUrl, name: &str, body: &str) -> Change {
        let needs = match (ty, body) {
            (Cluster, "eds") => vec![Need { ty: Endpoints, name: name.into() }],
            _ => vec![],
        };
        self.resources.insert((ty, name.to_owned()), Encoded::new(ty, name, body.as_bytes(), needs));
        Change { resources: [(ty, name.to_owned())].into(), addresses: vec![] }
    }
    fn remove(&mut self, ty: TypeUrl, name: &str) -> Change {
        self.resources.remove(&(ty, name.to_owned()));
        Change { resources: [(ty, name.to_owned())].into(), addresses: vec![] }
    }
}

impl Generator for Table {
    type Index = Index;
    type Change = Change;
    type View = String;

    fn view(&self, index: &Index, client: &Client) -> Result<String, String> {
        let ips = client.ips();
        Ok(ips.iter().find_map(|ip| index.colours.get(ip).cloned()).unwrap_or_default())
    }
    fn names(&self, index: &Index, _: &String, ty: TypeUrl) -> Arc<[Name]> {
        index.resources.keys().filter(|(t, _)| *t == ty).map(|(_, n)| n.as_str().into()).collect()
    }
    fn generate(&self, index: &Index, view: &String, ty: TypeUrl, name: &str) -> Option<Arc<Encoded>> {
        if name == "coloured" && !view.is_empty() {
            return Some(Encoded::new(ty, name, view.as_bytes(), vec![]));
        }
        index.resources.get(&(ty, name.to_owned())).cloned()
    }
    fn reach(&self, _: &Index, change: &Change) -> Reach {
        let all = change.resources.iter().any(|(ty, _)| *ty != Endpoints);
        let names = change.resources.iter().filter(|(ty, _)| *ty == Endpoints);
        Reach {
            all,
            names: names.map(|(ty, n)| (*ty, n.as_str().into())).collect(),
            addresses: change.addresses.clone(),
        }
    }
    fn affected(&self, _: &Index, change: &Change, _: &String) -> Affected {
        change.resources.iter().fold(Affected::none(), |a, (ty, name)| a.with(*ty, [name.as_str().into()]))
    }
    fn merge(&self, change: &mut Change, later: Change) {
        change.resources.extend(later.resources);
        change.addresses.extend(later.addresses);
    }
}

/// Tokens `NAMESPACE/SERVICEACCOUNT` are believed.
#[derive(Debug)]
struct Tokens;

impl Authenticate for Tokens {
    fn authenticate<'a>(
        &'a self,
        _: &'a Peer,
        bearer: Option<&'a str>,
    ) -> futures_util::future::BoxFuture<'a, Result<SpiffeId, String>> {
        Box::pin(async move {
            let (ns, sa) = bearer.and_then(|b| b.split_once('/')).ok_or("a token is needed")?;
            format!("spiffe://cluster.local/ns/{ns}/sa/{sa}").parse().map_err(|_| "bad token".to_owned())
        })
    }
}

struct Mesh {
    hub: Arc<Hub<Table>>,
    index: Index,
    changes: mpsc::Sender<(Index, Change)>,
    address: SocketAddr,
    stop: CancellationToken,
}

impl Mesh {
    async fn start(index: Index, authenticate: Option<Arc<dyn Authenticate>>) -> Self {
        let hub = Hub::new(Table, Arc::new(Metrics::default()));
        hub.open(index.clone());
        Self::serve(hub, index, authenticate).await
    }
    async fn serve(hub: Arc<Hub<Table>>, index: Index, authenticate: Option<Arc<dyn Authenticate>>) -> Self {
        let (changes, rx) = mpsc::channel(16);
        tokio::spawn(hub.clone().follow(rx));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let routes = Routes::new(Ads::new(hub.clone(), authenticate, 4 << 20));
        tokio::spawn(server::serve(listener, None, routes, stop.clone()));
        Self { hub, index, changes, address, stop }
    }
    async fn apply(&mut self, change: impl FnOnce(&mut Index) -> Change) {
        let change = change(&mut self.index);
        self.changes.send((self.index.clone(), change)).await.unwrap();
    }
    async fn client(&self) -> AggregatedDiscoveryServiceClient<Channel> {
        AggregatedDiscoveryServiceClient::connect(format!("http://{}", self.address))
            .await
            .unwrap()
            .max_decoding_message_size(1 << 30)
    }
    async fn delta(&self, pod: &str) -> Delta {
        self.try_delta(pod, "").await.unwrap()
    }
    async fn try_delta(&self, pod: &str, token: &str) -> Result<Delta, Status> {
        let (tx, rx) = mpsc::channel(16);
        let mut request = tonic::Request::new(ReceiverStream::new(rx));
        if !token.is_empty() {
            request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        }
        let rx = self.client().await.delta_aggregated_resources(request).await?.into_inner();
        Ok(Delta { tx, rx, node: Some(node(pod)) })
    }
    async fn sotw(&self, pod: &str) -> Sotw {
        let (tx, rx) = mpsc::channel(16);
        let rx = self.client().await.stream_aggregated_resources(ReceiverStream::new(rx)).await.unwrap().into_inner();
        Sotw { tx, rx, node: Some(node(pod)) }
    }
}

fn node(pod: &str) -> Node {
    let ip = pod.rsplit('-').next().unwrap();
    Node { id: format!("sidecar~10.0.0.{ip}~{pod}.shop~shop.svc.cluster.local"), ..Node::default() }
}

const SOON: Duration = Duration::from_secs(20);
/// Nothing is expected to come for this long.
const SILENCE: Duration = Duration::from_millis(250);

struct Delta {
    tx: mpsc::Sender<DeltaDiscoveryRequest>,
    rx: Streaming<DeltaDiscoveryResponse>,
    node: Option<Node>,
}

impl Delta {
    async fn send(&mut self, ty: TypeUrl, req: DeltaDiscoveryRequest) {
        let req = DeltaDiscoveryRequest { type_url: ty.as_str().into(), node: self.node.take(), ..req };
        self.tx.send(req).await.unwrap();
    }
    async fn subscribe(&mut self, ty: TypeUrl, names: &[&str]) {
        let resource_names_subscribe = names.iter().map(|n| (*n).to_owned()).collect();
        self.send(ty, DeltaDiscoveryRequest { resource_names_subscribe, ..Default::default() }).await;
    }
    async fn next(&mut self) -> DeltaDiscoveryResponse {
        timeout(SOON, self.rx.message()).await.expect("a response").unwrap().unwrap()
    }
    async fn ack(&mut self, r: &DeltaDiscoveryResponse) {
        let ty = TypeUrl::parse(&r.type_url).unwrap();
        self.send(ty, DeltaDiscoveryRequest { response_nonce: r.nonce.clone(), ..Default::default() }).await;
    }
    /// Next response, acknowledged.
    async fn take(&mut self) -> DeltaDiscoveryResponse {
        let r = self.next().await;
        self.ack(&r).await;
        r
    }
    async fn silent(&mut self) {
        let got = timeout(SILENCE, self.rx.message()).await;
        assert!(got.is_err(), "nothing was to be sent: {got:?}");
    }
    async fn end(&mut self) -> Status {
        loop {
            match timeout(SOON, self.rx.message()).await.expect("the end") {
                Ok(Some(_)) => {}
                Ok(None) => return Status::ok(""),
                Err(status) => return status,
            }
        }
    }
}

struct Sotw {
    tx: mpsc::Sender<DiscoveryRequest>,
    rx: Streaming<DiscoveryResponse>,
    node: Option<Node>,
}

impl Sotw {
    async fn send(&mut self, ty: TypeUrl, names: &[&str], last: Option<&DiscoveryResponse>) {
        let req = DiscoveryRequest {
            type_url: ty.as_str().into(),
            node: self.node.take(),
            resource_names: names.iter().map(|n| (*n).to_owned()).collect(),
            version_info: last.map(|r| r.version_info.clone()).unwrap_or_default(),
            response_nonce: last.map(|r| r.nonce.clone()).unwrap_or_default(),
            ..Default::default()
        };
        self.tx.send(req).await.unwrap();
    }
    async fn next(&mut self) -> DiscoveryResponse {
        timeout(SOON, self.rx.message()).await.expect("a response").unwrap().unwrap()
    }
    async fn silent(&mut self) {
        let got = timeout(SILENCE, self.rx.message()).await;
        assert!(got.is_err(), "nothing was to be sent: {got:?}");
    }
}

fn ty(r: &DeltaDiscoveryResponse) -> TypeUrl {
    TypeUrl::parse(&r.type_url).unwrap()
}

fn names(r: &DeltaDiscoveryResponse) -> Vec<String> {
    let mut names: Vec<String> = r.resources.iter().map(|r| r.name.clone()).collect();
    names.sort();
    names
}

fn body(r: &DeltaDiscoveryResponse, i: usize) -> String {
    String::from_utf8(r.resources[i].resource.as_ref().unwrap().value.clone()).unwrap()
}

fn world() -> Index {
    let mut index = Index::default();
    for name in ["a", "b"] {
        index.set(Cluster, name, "eds");
        index.set(Endpoints, name, "1.1.1.1");
    }
    index.set(Listener, "l", "1");
    index.set(Route, "8080", "to a");
    index
}

/// A proxy that has everything.
async fn synced(mesh: &Mesh, pod: &str) -> Delta {
    let mut c = mesh.delta(pod).await;
    for (ty, names) in [(Cluster, &["*"][..]), (Endpoints, &["a", "b"]), (Listener, &["*"]), (Route, &["8080"])] {
        c.subscribe(ty, names).await;
        c.take().await;
    }
    // The last acknowledgement has arrived when a question after it is answered.
    c.subscribe(Endpoints, &["a"]).await;
    c.take().await;
    c
}

#[tokio::test]
async fn endpoints_reach_their_subscribers_only_and_config_everyone() {
    let mut mesh = Mesh::start(world(), None).await;
    let mut one = synced(&mesh, "web-1").await;
    let mut two = mesh.delta("web-2").await;
    two.subscribe(Cluster, &[]).await;
    assert_eq!(names(&two.take().await), ["a", "b"], "an empty first list is everything");
    two.subscribe(Endpoints, &["b"]).await;
    two.take().await;

    mesh.apply(|i| i.set(Endpoints, "a", "2.2.2.2")).await;
    let eds = one.take().await;
    assert_eq!((ty(&eds), names(&eds), body(&eds, 0).as_str()), (Endpoints, vec!["a".to_owned()], "2.2.2.2"));
    two.silent().await;

    mesh.apply(|i| i.set(Cluster, "c", "static")).await;
    for client in [&mut one, &mut two] {
        let cds = client.take().await;
        assert_eq!((ty(&cds), names(&cds)), (Cluster, vec!["c".to_owned()]), "only what changed");
        client.silent().await;
    }
    assert_eq!(mesh.hub.connected(), 2);
    drop(two);
    timeout(SOON, async {
        while mesh.hub.connected() == 2 {
            sleep(Duration::from_millis(5)).await
        }
    })
    .await
    .unwrap();
    assert!(mesh.hub.metrics.convergence_time.count() > 0);
}

#[tokio::test]
async fn clusters_are_warm_before_routes_use_them() {
    let mut mesh = Mesh::start(world(), None).await;
    let mut c = synced(&mesh, "web-1").await;
    mesh.apply(|i| {
        i.set(Endpoints, "c", "3.3.3.3");
        let mut change = i.set(Cluster, "c", "eds");
        for more in [i.set(Route, "8080", "to c"), i.remove(Cluster, "a"), i.remove(Endpoints, "a")] {
            change.resources.extend(more.resources);
        }
        change
    })
    .await;
    let cds = c.take().await;
    assert_eq!((ty(&cds), names(&cds)), (Cluster, vec!["c".to_owned()]));
    assert!(cds.removed_resources.is_empty(), "the route still uses it");
    c.silent().await;
    c.subscribe(Endpoints, &["c"]).await;
    assert_eq!(names(&c.take().await), ["c"]);
    let rds = c.take().await;
    assert_eq!((ty(&rds), body(&rds, 0).as_str()), (Route, "to c"));
    let gone = c.take().await;
    assert_eq!((ty(&gone), gone.removed_resources), (Cluster, vec!["a".to_owned()]));
    c.silent().await;
}

#[tokio::test]
async fn a_client_that_returns_gets_only_what_it_lacks() {
    let mut mesh = Mesh::start(world(), None).await;
    let mut c = mesh.delta("web-1").await;
    c.subscribe(Cluster, &["*"]).await;
    let first = c.take().await;
    drop(c);
    let versions: HashMap<String, String> =
        first.resources.iter().map(|r| (r.name.clone(), r.version.clone())).collect();
    let returning = |versions: &HashMap<String, String>| DeltaDiscoveryRequest {
        resource_names_subscribe: vec!["*".into()],
        initial_resource_versions: versions.clone(),
        ..Default::default()
    };
    let mut c = mesh.delta("web-1").await;
    c.send(Cluster, returning(&versions)).await;
    c.silent().await;
    drop(c);
    mesh.apply(|i| i.set(Cluster, "b", "other")).await;
    mesh.apply(|i| i.remove(Cluster, "a")).await;
    sleep(Duration::from_millis(100)).await;
    let mut c = mesh.delta("web-1").await;
    c.send(Cluster, returning(&versions)).await;
    let cds = c.take().await;
    assert_eq!((names(&cds), body(&cds, 0).as_str()), (vec!["b".to_owned()], "other"));
    // Routes of before may still use it, so its removal waits a little.
    let gone = c.take().await;
    assert_eq!(gone.removed_resources, ["a"]);
}

#[tokio::test]
async fn a_rejected_version_is_not_sent_again_and_the_reason_is_kept() {
    let mut mesh = Mesh::start(world(), None).await;
    let mut c = mesh.delta("web-1").await;
    c.subscribe(Listener, &["*"]).await;
    let lds = c.next().await;
    let error_detail = Some(RpcStatus { code: 3, message: "l: no such filter".into(), details: vec![] });
    let nack = DeltaDiscoveryRequest { response_nonce: lds.nonce.clone(), error_detail, ..Default::default() };
    c.send(Listener, nack).await;
    c.silent().await;
    let handle = mesh.hub.clients().pop().unwrap();
    {
        let acks = handle.acks.lock();
        let lds = &acks[Listener as usize];
        assert_eq!((lds.word(), lds.nacks), ("ERROR", 1));
        assert_eq!(lds.rejected.as_ref().unwrap().1, "l: no such filter");
    }
    assert_eq!(mesh.hub.metrics.rejects.of(Listener).get(), 1);
    mesh.apply(|i| i.set(Listener, "l", "2")).await;
    let lds = c.take().await;
    assert_eq!(body(&lds, 0), "2");
    timeout(SOON, async {
        while handle.acks.lock()[Listener as usize].word() != "SYNCED" {
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    let held = handle.held().await.unwrap();
    assert_eq!(held.iter().map(|h| (h.ty, h.resources.len())).collect::<Vec<_>>(), [(Listener, 1)]);
}

#[tokio::test]
async fn state_of_the_world() {
    let mut mesh = Mesh::start(world(), None).await;
    let mut c = mesh.sotw("web-1").await;
    // As gRPC does: one listener by name, then what it refers to.
    c.send(Listener, &["l"], None).await;
    let lds = c.next().await;
    assert_eq!(lds.resources.len(), 1);
    c.send(Listener, &["l"], Some(&lds)).await;
    c.send(Cluster, &["a"], None).await;
    let cds = c.next().await;
    assert_eq!(cds.resources.len(), 1, "clusters by name");
    c.send(Cluster, &["a"], Some(&cds)).await;
    c.send(Endpoints, &["a"], None).await;
    let eds = c.next().await;
    c.send(Endpoints, &["a"], Some(&eds)).await;
    c.silent().await;
    mesh.apply(|i| i.set(Endpoints, "b", "9")).await;
    c.silent().await;
    mesh.apply(|i| i.set(Endpoints, "a", "9")).await;
    let again = c.next().await;
    assert_eq!(again.resources[0].value, b"9");
    assert_ne!((&again.nonce, &again.version_info), (&eds.nonce, &eds.version_info));
    // An old nonce means nothing.
    c.send(Endpoints, &["a", "b"], Some(&eds)).await;
    c.silent().await;
    c.send(Endpoints, &["a", "b"], Some(&again)).await;
    let both = c.next().await;
    assert!(both.resources.iter().any(|r| r.value == b"9"));
}

#[tokio::test]
async fn a_proxy_whose_workload_changes_is_configured_anew() {
    let mut mesh = Mesh::start(world(), None).await;
    let mut c = mesh.delta("web-7").await;
    c.subscribe(Cluster, &["coloured"]).await;
    let none = c.take().await;
    assert_eq!(none.removed_resources, ["coloured"], "it does not exist, and that is said at once");
    mesh.apply(|i| {
        i.colours.insert("10.0.0.7".parse().unwrap(), "red".into());
        Change { resources: BTreeSet::new(), addresses: vec!["10.0.0.7".parse().unwrap()] }
    })
    .await;
    assert_eq!(body(&c.take().await, 0), "red");
}

#[tokio::test]
async fn who_is_not_known_gets_nothing() {
    let mut index = world();
    index.set(Secret, "kubernetes://tls", "key");
    let mesh = Mesh::start(index.clone(), Some(Arc::new(Tokens))).await;
    assert_eq!(mesh.try_delta("web-1", "").await.err().map(|s| s.code()), Some(Code::Unauthenticated));
    let mut other = mesh.try_delta("web-1", "bank/teller").await.unwrap();
    other.subscribe(Cluster, &["*"]).await;
    let refused = other.end().await;
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused:?}");
    let mut known = mesh.try_delta("web-1", "shop/web").await.unwrap();
    known.subscribe(Secret, &["kubernetes://tls"]).await;
    assert_eq!(names(&known.take().await), ["kubernetes://tls"]);

    let plaintext = Mesh::start(index, None).await;
    let mut c = plaintext.delta("web-1").await;
    c.subscribe(Secret, &["kubernetes://tls"]).await;
    assert_eq!(c.take().await.removed_resources, ["kubernetes://tls"], "no secrets for nobody");
}

#[tokio::test]
async fn refused_until_synchronised_and_without_a_node() {
    let hub = Hub::new(Table, Arc::new(Metrics::default()));
    let mesh = Mesh::serve(hub.clone(), world(), None).await;
    let mut early = mesh.delta("web-1").await;
    early.subscribe(Cluster, &["*"]).await;
    assert_eq!(early.end().await.code(), Code::Unavailable);
    hub.open(world());
    let mut nobody = mesh.delta("web-1").await;
    nobody.node = None;
    nobody.subscribe(Cluster, &["*"]).await;
    assert_eq!(nobody.end().await.code(), Code::InvalidArgument);
    let mut c = synced(&mesh, "web-1").await;
    hub.stopping.cancel();
    mesh.stop.cancel();
    assert_eq!(c.end().await.code(), Code::Unavailable, "a client is told to go elsewhere");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_clients_with_large_configurations() {
    let mut index = Index::default();
    for i in 0..2000 {
        index.set(Cluster, &format!("c{i}"), &"x".repeat(500 + i));
    }
    index.set(Cluster, "large", &"y".repeat(1 << 20));
    let mut mesh = Mesh::start(index, None).await;
    let mut clients = Vec::new();
    for i in 0..20 {
        let mut c = mesh.delta(&format!("web-{i}")).await;
        c.subscribe(Cluster, &["*"]).await;
        clients.push(c);
    }
    for c in &mut clients {
        let cds = c.take().await;
        assert_eq!(cds.resources.len(), 2001);
        for r in &cds.resources {
            let len = r.resource.as_ref().unwrap().value.len();
            let expected = r.name.strip_prefix('c').map_or(1 << 20, |i| 500 + i.parse::<usize>().unwrap());
            assert_eq!(len, expected, "{}", r.name);
        }
    }
    // Changes while a client does not read are one push when it does.
    for i in 0..50 {
        mesh.apply(|index| index.set(Cluster, "c1", &format!("version {i}"))).await;
    }
    for c in &mut clients {
        let mut last = String::new();
        let mut responses = 0;
        while last != "version 49" {
            let r = c.take().await;
            assert_eq!(names(&r), ["c1"]);
            last = body(&r, 0);
            responses += 1;
        }
        assert!(responses <= 5, "{responses} responses for one burst");
    }
}

#[tokio::test]
async fn endpoints_overtake_config_that_is_being_bundled() {
    let mut mesh = Mesh::start(world(), None).await;
    let mut c = synced(&mesh, "web-1").await;
    mesh.apply(|i| i.set(Cluster, "c", "1")).await;
    assert_eq!(names(&c.take().await), ["c"]);
    // Right behind another change this one waits for what may follow it.
    mesh.apply(|i| i.set(Cluster, "c", "2")).await;
    mesh.apply(|i| i.set(Endpoints, "a", "2.2.2.2")).await;
    let first = c.take().await;
    assert_eq!((ty(&first), body(&first, 0).as_str()), (Endpoints, "2.2.2.2"));
    assert!(!mesh.hub.quiet());
    let second = c.take().await;
    assert_eq!((ty(&second), body(&second, 0).as_str()), (Cluster, "2"));
    c.silent().await;
}
