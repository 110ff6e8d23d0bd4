//! Forwarded connections over real sockets.

use std::{cell::RefCell, net::SocketAddr, rc::Rc, sync::Arc, time::Duration};

use bytes::Bytes;
use mesh_api::model::{self, Address, Cluster, Discovery, Endpoint, EndpointSet, LocalityEndpoints, TrafficDirection};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::LocalSet,
};

use super::{TcpProxy, forward};
use crate::{
    config::{CompileCtx, ConfigError, SharedConfig, Snapshot, snapshot::Node},
    drain,
    http::{
        stats::{ConnectionSink, ExchangeSink, ExchangeStats, NoTelemetry, Telemetry},
        testing::no_services,
    },
    net::{ConnInfo, Io, Prefixed},
    runtime::Worker,
    tls::{ClusterTls, SecretStore},
    upstream,
};

#[derive(Debug, Default, Clone)]
struct Seen(Arc<Mutex<Vec<String>>>);

impl ConnectionSink for Seen {
    fn opened(&self, _: &ExchangeStats, _: usize) {
        self.0.lock().push("opened".into());
    }
    fn moved(&self, _: &ExchangeStats, received: u64, sent: u64, _: usize) {
        self.0.lock().push(format!("{received} {sent}"));
    }
    fn closed(&self, stats: &ExchangeStats, _: usize) {
        self.0.lock().push(format!("closed {}", stats.flags.text()));
    }
}

impl Telemetry for Seen {
    fn http_sink(&self, _: &model::HttpManager, _: &CompileCtx) -> Result<Arc<dyn ExchangeSink>, ConfigError> {
        Ok(Arc::new(NoTelemetry))
    }
    fn tcp_sink(
        &self,
        _: &model::TcpProxy,
        _: Option<&model::IstioStats>,
        _: &CompileCtx,
    ) -> Result<Arc<dyn ConnectionSink>, ConfigError> {
        Ok(Arc::new(self.clone()))
    }
}

fn proxy_config(clusters: &[(&str, u32)], idle: Duration) -> model::TcpProxy {
    model::TcpProxy {
        stat_prefix: "t".into(),
        clusters: clusters.iter().map(|(c, w)| ((*c).into(), *w)).collect(),
        idle_timeout: idle,
        max_connection_duration: None,
        max_connect_attempts: 1,
        hash: vec![],
        tunnel: None,
        access_log: vec![],
        metadata_match: model::Metadata::new(),
    }
}

fn info(local: SocketAddr, peer: SocketAddr) -> Rc<ConnInfo> {
    Rc::new(ConnInfo {
        id: 1,
        peer,
        direct_peer: peer,
        local,
        direct_local: local,
        original_dst: None,
        sni: None,
        application_protocols: vec![],
        tls: None,
        listener: "l".into(),
        direction: TrafficDirection::Outbound,
        chain: "".into(),
        sni_cluster: None,
        sni_port: None,
        accepted: tokio::time::Instant::now(),
    })
}

struct Setup {
    shared: Arc<SharedConfig>,
    seen: Seen,
}

impl Setup {
    fn new(upstreams: &[(&str, SocketAddr)]) -> Self {
        let seen = Seen::default();
        let shared = SharedConfig::new(Node::default(), SecretStore::new(), Arc::new(seen.clone()), no_services());
        let mut snapshot = Snapshot::default();
        let clusters = upstreams.iter().map(|(name, address)| {
            let endpoint = Endpoint::at(Address::Socket(*address));
            let group = LocalityEndpoints { endpoints: vec![endpoint], ..LocalityEndpoints::default() };
            let set = EndpointSet { localities: vec![group], ..EndpointSet::default() };
            let cluster = Cluster::new(*name, Discovery::Static(set));
            ((*name).into(), upstream::Cluster::new(Arc::new(cluster), ClusterTls::none()))
        });
        snapshot.clusters = Arc::new(clusters.collect());
        shared.snapshot.store(Arc::new(snapshot));
        Self { shared, seen }
    }

    fn compile(&self, config: &model::TcpProxy) -> Arc<TcpProxy> {
        let direction = TrafficDirection::Outbound;
        let ctx = CompileCtx { shared: self.shared.clone(), listener: "l".into(), chain: "".into(), direction };
        TcpProxy::compile(config, None, &ctx).unwrap()
    }

    /// A client's socket, whose other end is being forwarded.
    async fn client(&self, config: model::TcpProxy) -> (TcpStream, tokio::task::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (server, peer) = listener.accept().await.unwrap();
        let info = info(server.local_addr().unwrap(), peer);
        let worker = Worker::new(0, self.shared.clone(), 1, drain::Watch::never());
        let io = Io::Tcp(Prefixed::new(Bytes::from_static(b"sniffed "), server));
        let proxy = self.compile(&config);
        let task =
            tokio::task::spawn_local(forward::run(worker, io, info, proxy, drain::Watch::never(), Rc::default()));
        (client, task)
    }
}

#[tokio::test]
async fn both_directions_end_by_themselves_and_are_counted() {
    LocalSet::new()
        .run_until(async {
            let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let setup = Setup::new(&[("a", server.local_addr().unwrap())]);
            let (mut client, task) = setup.client(proxy_config(&[("a", 1)], Duration::ZERO)).await;
            client.write_all(b"question").await.unwrap();
            client.shutdown().await.unwrap();
            let (mut accepted, _) = server.accept().await.unwrap();
            let mut asked = String::new();
            accepted.read_to_string(&mut asked).await.unwrap();
            assert_eq!(asked, "sniffed question");
            // The client is done, the answer is not.
            accepted.write_all(&vec![b'x'; 300_000]).await.unwrap();
            drop(accepted);
            let mut got = vec![];
            client.read_to_end(&mut got).await.unwrap();
            assert_eq!(got.len(), 300_000);
            task.await.unwrap();
            assert_eq!(*setup.seen.0.lock(), ["opened", "16 300000", "closed -"]);
        })
        .await;
}

#[tokio::test]
async fn failures_have_their_flags() {
    LocalSet::new()
        .run_until(async {
            let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
            let setup = Setup::new(&[("a", free)]);
            let (mut client, task) = setup.client(proxy_config(&[("a", 1)], Duration::ZERO)).await;
            assert_eq!(client.read(&mut [0; 1]).await.unwrap_or(0), 0);
            task.await.unwrap();
            assert_eq!(setup.seen.0.lock().last().unwrap(), "closed UF,URX");
            let (_client, task) = setup.client(proxy_config(&[("b", 1)], Duration::ZERO)).await;
            task.await.unwrap();
            assert_eq!(setup.seen.0.lock().last().unwrap(), "closed NC");
        })
        .await;
}

#[tokio::test]
async fn idle_connections_end_and_a_dropped_one_is_recorded() {
    LocalSet::new()
        .run_until(async {
            let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let setup = Setup::new(&[("a", server.local_addr().unwrap())]);
            let (_client, task) = setup.client(proxy_config(&[("a", 1)], Duration::from_millis(50))).await;
            task.await.unwrap();
            assert_eq!(setup.seen.0.lock().last().unwrap(), "closed SI");
            setup.seen.0.lock().clear();
            let (_client, task) = setup.client(proxy_config(&[("a", 1)], Duration::ZERO)).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
            task.abort();
            let _ = task.await;
            assert_eq!(*setup.seen.0.lock(), ["opened", "8 0", "closed -"]);
        })
        .await;
}

#[test]
fn weights_decide() {
    let setup = Setup::new(&[]);
    let proxy = setup.compile(&proxy_config(&[("a", 1), ("never", 0), ("b", 3)], Duration::ZERO));
    let at = "127.0.0.1:1".parse().unwrap();
    let info = info(at, at);
    let drawn = RefCell::new(0);
    let chosen: Vec<&str> = (0..4)
        .map(|n| {
            *drawn.borrow_mut() = n;
            &**proxy
                .cluster(&info, |total| {
                    assert_eq!(total, 4);
                    *drawn.borrow()
                })
                .unwrap()
        })
        .collect();
    assert_eq!(chosen, ["a", "b", "b", "b"]);
}

fn through(post_path: Option<&str>) -> model::TcpProxy {
    let tunnel = model::TcpTunnel { hostname: "db.test:5432".into(), post_path: post_path.map(Into::into) };
    model::TcpProxy { tunnel: Some(tunnel), ..proxy_config(&[("a", 1)], Duration::ZERO) }
}

/// What comes until `end`.
async fn until(io: &mut TcpStream, end: &str) -> String {
    let mut got = String::new();
    while !got.ends_with(end) {
        got.push(char::from(io.read_u8().await.unwrap()));
    }
    got
}

#[tokio::test]
async fn a_forward_proxy_is_asked_for_a_tunnel_first() {
    LocalSet::new()
        .run_until(async {
            let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let setup = Setup::new(&[("a", server.local_addr().unwrap())]);
            let (mut client, task) = setup.client(through(None)).await;
            let (mut accepted, _) = server.accept().await.unwrap();
            let head = until(&mut accepted, "\r\n\r\n").await;
            assert!(head.starts_with("CONNECT db.test:5432 HTTP/1.1\r\n"), "{head}");
            assert!(head.to_ascii_lowercase().contains("\r\nhost: db.test:5432\r\n"), "{head}");
            // What follows the head at once belongs to the tunnel.
            accepted.write_all(b"HTTP/1.1 200 OK\r\n\r\nhello").await.unwrap();
            assert_eq!(until(&mut client, "hello").await, "hello");
            client.write_all(b"question").await.unwrap();
            client.shutdown().await.unwrap();
            assert_eq!(until(&mut accepted, "question").await, "sniffed question");
            drop(accepted);
            task.await.unwrap();
            assert_eq!(setup.seen.0.lock().last().unwrap(), "closed -");
        })
        .await;
}

#[tokio::test]
async fn a_post_carries_both_directions() {
    LocalSet::new()
        .run_until(async {
            let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let setup = Setup::new(&[("a", server.local_addr().unwrap())]);
            let (mut client, task) = setup.client(through(Some("/tunnel"))).await;
            let (mut accepted, _) = server.accept().await.unwrap();
            let head = until(&mut accepted, "\r\n\r\n").await.to_ascii_lowercase();
            assert!(head.starts_with("post /tunnel http/1.1\r\n"), "{head}");
            assert!(head.contains("\r\nhost: db.test:5432\r\n") && head.contains("chunked"), "{head}");
            accepted.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n").await.unwrap();
            assert_eq!(until(&mut client, "hello").await, "hello");
            assert_eq!(until(&mut accepted, "sniffed \r\n").await, "8\r\nsniffed \r\n");
            client.write_all(b"question").await.unwrap();
            assert_eq!(until(&mut accepted, "question\r\n").await, "8\r\nquestion\r\n");
            client.shutdown().await.unwrap();
            assert_eq!(until(&mut accepted, "0\r\n\r\n").await, "0\r\n\r\n");
            accepted.write_all(b"3\r\nbye\r\n0\r\n\r\n").await.unwrap();
            let mut rest = String::new();
            client.read_to_string(&mut rest).await.unwrap();
            assert_eq!(rest, "bye");
            task.await.unwrap();
            assert_eq!(setup.seen.0.lock().last().unwrap(), "closed -");
        })
        .await;
}

#[tokio::test]
async fn a_refused_tunnel_ends_the_connection() {
    LocalSet::new()
        .run_until(async {
            for post in [None, Some("/")] {
                let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
                let setup = Setup::new(&[("a", server.local_addr().unwrap())]);
                let (mut client, task) = setup.client(through(post)).await;
                let (mut accepted, _) = server.accept().await.unwrap();
                until(&mut accepted, "\r\n\r\n").await;
                accepted.write_all(b"HTTP/1.1 403 No\r\ncontent-length: 0\r\n\r\n").await.unwrap();
                assert_eq!(client.read(&mut [0; 1]).await.unwrap_or(0), 0);
                task.await.unwrap();
                assert_eq!(setup.seen.0.lock().last().unwrap(), "closed UF,URX");
            }
        })
        .await;
}
