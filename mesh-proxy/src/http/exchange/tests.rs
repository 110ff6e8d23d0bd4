//! Exchanges over real sockets towards upstreams; the client's side is called directly.

use std::net::SocketAddr;

use http_body_util::BodyExt as _;
use mesh_api::model::{
    self, Address, CircuitBreakers, CommonTls, Discovery, Endpoint, EndpointSet, HttpFilter, HttpFilterKind,
    LocalityEndpoints, RouteSource, TrafficDirection, UpstreamTls,
};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    task::LocalSet,
};

use super::*;
use crate::{
    config::{CompileCtx, ConfigError, SharedConfig, snapshot::Node},
    drain,
    http::{
        stats::{ExchangeSink, Telemetry},
        testing,
    },
    tls::{ClusterTls, SecretStore},
    upstream,
};

/// What was recorded of one exchange.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Recorded {
    status: u16,
    flags: String,
    attempts: u32,
    connected: bool,
    traced: bool,
}

#[derive(Debug, Default, Clone)]
struct Seen(Arc<Mutex<Vec<Recorded>>>);

impl ExchangeSink for Seen {
    fn begin(&self, stats: &mut ExchangeStats, _: &mut RequestHead, _: &dyn Fn() -> u64) {
        assert!(stats.trace.replace(Box::default()).is_none(), "begun once");
    }
    fn record(&self, stats: &ExchangeStats, _: usize) {
        self.0.lock().push(Recorded {
            status: stats.status,
            flags: stats.flags.text().into_owned(),
            attempts: stats.attempts,
            connected: stats.upstream.is_some(),
            traced: stats.trace.is_some(),
        });
    }
}

impl Telemetry for Seen {
    fn http_sink(&self, _: &model::HttpManager, _: &CompileCtx) -> Result<Arc<dyn ExchangeSink>, ConfigError> {
        Ok(Arc::new(self.clone()))
    }
}

/// An upstream that gives every request this answer; the heads that came.
async fn upstream(answer: &'static str) -> (SocketAddr, Rc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, heads) = (listener.local_addr().unwrap(), Rc::new(Mutex::new(vec![])));
    let seen = heads.clone();
    tokio::task::spawn_local(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let seen = seen.clone();
            tokio::task::spawn_local(async move {
                let mut head = Vec::new();
                while stream.read_buf(&mut head).await.is_ok_and(|n| n > 0) {
                    if head.ends_with(b"\r\n\r\n") {
                        seen.lock().push(String::from_utf8_lossy(&head).into_owned());
                        head.clear();
                        stream.write_all(answer.as_bytes()).await.unwrap();
                    }
                }
            });
        }
    });
    (address, heads)
}

/// An address at which nobody listens.
async fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

fn cluster(name: &str, endpoints: &[SocketAddr]) -> model::Cluster {
    let endpoints = endpoints.iter().map(|a| Endpoint::at(Address::Socket(*a))).collect();
    let group = LocalityEndpoints { endpoints, ..LocalityEndpoints::default() };
    let set = EndpointSet { localities: vec![group], ..EndpointSet::default() };
    model::Cluster::new(name, Discovery::Static(set))
}

/// A session with one route for everything.
fn session(action: model::Action, filters: Vec<HttpFilterKind>, clusters: Vec<model::Cluster>) -> (Rc<Session>, Seen) {
    let seen = Seen::default();
    let shared = SharedConfig::new(Node::default(), SecretStore::new(), Arc::new(seen.clone()), testing::no_services());
    let compiled = clusters.into_iter().map(|c| {
        let name = c.name.clone();
        (name, upstream::Cluster::new(Arc::new(c), ClusterTls::none()))
    });
    let snapshot = Snapshot { clusters: Arc::new(compiled.collect()), ..Snapshot::default() };
    shared.snapshot.store(Arc::new(snapshot));
    let route = model::Route {
        name: "r".into(),
        matches: model::RouteMatch::path(model::PathMatch::Prefix("/".into())),
        action,
        headers: Default::default(),
        filter_overrides: vec![],
        operation: "".into(),
        stat_prefix: "".into(),
        origin: Default::default(),
        metadata: Default::default(),
    };
    let host = model::VirtualHost {
        name: "v".into(),
        domains: vec!["a.test".into()],
        routes: vec![route],
        ..Default::default()
    };
    let table = model::RouteConfig { virtual_hosts: vec![host], ..Default::default() };
    let router = HttpFilterKind::Router(Default::default());
    let filters = filters.into_iter().chain([router]).enumerate();
    let filters = filters.map(|(i, kind)| HttpFilter { name: format!("f{i}").into(), kind, disabled: false });
    let config = model::HttpManager::new("t", RouteSource::Inline(Box::new(table)), filters.collect());
    let direction = TrafficDirection::Outbound;
    let ctx = CompileCtx { shared: shared.clone(), listener: "l".into(), chain: "".into(), direction };
    let manager = HttpManager::compile(&config, &ctx).unwrap();
    let worker = Worker::new(0, shared, 1, drain::Watch::never());
    (Rc::new(Session { worker, conn: Rc::new(testing::conn()), manager }), seen)
}

async fn get(session: &Rc<Session>, host: &str) -> u16 {
    let (head, body) = serve(session.clone(), testing::get(host, "/"), Body::Empty, None).await;
    let _ = body.collect().await;
    head.status.as_u16()
}

fn retrying(on: &str, num_retries: u32) -> model::Action {
    let (on, retriable_statuses) = model::RetryOn::parse(on).unwrap();
    let retry = Some(model::RetryPolicy { on, retriable_statuses, num_retries, ..Default::default() });
    model::Action::Forward(Box::new(model::Forward { retry, ..model::Forward::to("up") }))
}

const NO: &str = "HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n";
const YES: &str = "HTTP/1.1 200 Yes\r\ncontent-length: 0\r\n\r\n";

#[tokio::test]
async fn what_is_answered_here_is_traced_too() {
    let run = async {
        let direct = model::Action::DirectResponse { status: 204, body: "".into() };
        let (direct, seen) = session(direct, vec![], vec![]);
        assert_eq!((get(&direct, "a.test").await, get(&direct, "b.test").await), (204, 404));
        assert!(seen.0.lock().iter().all(|r| r.traced), "{seen:?}");
        // A role that allows nobody.
        let rules = Some(model::Rbac { action: model::RbacAction::Allow, policies: vec![] });
        let none = model::RbacFilter { rules, ..Default::default() };
        let forward = model::Action::Forward(Box::new(model::Forward::to("up")));
        let (denied, seen) = session(forward, vec![HttpFilterKind::Rbac(none)], vec![]);
        assert_eq!(get(&denied, "a.test").await, 403);
        assert!(seen.0.lock().iter().all(|r| r.traced), "{seen:?}");
    };
    LocalSet::new().run_until(run).await;
}

#[tokio::test]
async fn a_try_is_not_known_by_the_connection_of_the_one_before() {
    let run = async {
        let (refusing, _) = upstream(NO).await;
        let (s, seen) = session(retrying("5xx", 2), vec![], vec![cluster("up", &[refusing, nobody().await])]);
        for _ in 0..8 {
            get(&s, "a.test").await;
        }
        let seen = seen.0.lock().clone();
        let (failed, answered): (Vec<_>, Vec<_>) = seen.iter().partition(|r| r.flags.contains("UF"));
        assert!(!failed.is_empty() && failed.iter().all(|r| !r.connected && r.attempts == 3), "{seen:?}");
        assert!(answered.iter().all(|r| r.connected && r.flags == "URX"), "{seen:?}");
    };
    LocalSet::new().run_until(run).await;
}

#[tokio::test]
async fn tries_that_must_not_be_repeated_say_why() {
    let run = async {
        let (refusing, _) = upstream(NO).await;
        let full = [CircuitBreakers { max_retries: 0, ..CircuitBreakers::default() }; 2];
        let up = model::Cluster { circuit_breakers: full, ..cluster("up", &[refusing]) };
        let (s, seen) = session(retrying("503", 2), vec![], vec![up]);
        assert_eq!(get(&s, "a.test").await, 503);
        assert_eq!(seen.0.lock().first().map(|r| (r.flags.clone(), r.attempts)), Some(("UO".to_owned(), 1)));
        // What nobody would repeat is not marked, on the last try as well.
        let (s, seen) = session(retrying("409", 0), vec![], vec![cluster("up", &[nobody().await])]);
        assert_eq!(get(&s, "a.test").await, 503);
        assert_eq!(seen.0.lock().first().map(|r| r.flags.clone()), Some("UF".to_owned()));
    };
    LocalSet::new().run_until(run).await;
}

#[tokio::test]
async fn a_copy_says_to_its_own_cluster_who_we_are() {
    let run = async {
        let ((own, _), (outside, heads)) = (upstream(YES).await, upstream(YES).await);
        let istio = CommonTls { alpn: vec!["istio".into()], ..CommonTls::default() };
        let tls = UpstreamTls { common: istio, sni: "".into(), auto_host_sni: false, auto_sni_san_validation: false };
        let up = model::Cluster { tls: Some(tls), ..cluster("up", &[own]) };
        let mirror = model::Mirror { cluster: "outside".into(), fraction: model::Fraction::ALWAYS, keep_host: false };
        let forward = model::Forward { mirrors: vec![mirror], ..model::Forward::to("up") };
        let metadata = model::PeerMetadata { upstream_propagation: true, ..Default::default() };
        let (s, _) = session(
            model::Action::Forward(Box::new(forward)),
            vec![HttpFilterKind::PeerMetadata(metadata)],
            vec![up, cluster("outside", &[outside])],
        );
        get(&s, "a.test").await;
        let copied = async {
            while heads.lock().is_empty() {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(20), copied).await.unwrap();
        let head = heads.lock().concat();
        assert!(head.contains("a.test-shadow") && !head.contains("x-envoy-peer-metadata"), "{head}");
    };
    LocalSet::new().run_until(run).await;
}

#[tokio::test]
async fn keys_are_asked_for_once_a_request() {
    let run = async {
        let (keys, heads) = upstream("HTTP/1.1 404 No\r\ncontent-length: 0\r\n\r\n").await;
        // A failure that counts for no time at all.
        let remote = model::RemoteKeys {
            uri: "http://issuer.test/keys".into(),
            cluster: "issuer".into(),
            timeout: std::time::Duration::from_secs(5),
            cache: std::time::Duration::from_secs(300),
            ahead: false,
            retry_after: std::time::Duration::ZERO,
        };
        let requires = model::JwtRequirement::Provider("p".into());
        let filter = model::JwtAuthn {
            providers: vec![("p".into(), model::JwtProvider::new("i", model::JwtKeys::Remote(remote)))],
            rules: vec![model::JwtRule { matches: model::RouteMatch::any(), requires: Some(requires) }],
            ..model::JwtAuthn::default()
        };
        let forward = model::Action::Forward(Box::new(model::Forward::to("up")));
        let (s, _) =
            session(forward, vec![HttpFilterKind::JwtAuthn(Box::new(filter))], vec![cluster("issuer", &[keys])]);
        let mut head = testing::get("a.test", "/");
        // {"alg":"ES256"} . {"iss":"i"}
        let token = "Bearer eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJpIn0.AAAA";
        head.headers.insert("authorization", token.parse().unwrap());
        let asked = Box::pin(serve(s.clone(), head, Body::Empty, None));
        let (head, _) = tokio::time::timeout(std::time::Duration::from_secs(20), asked).await.unwrap();
        assert_eq!((head.status.as_u16(), heads.lock().len()), (401, 1));
    };
    LocalSet::new().run_until(run).await;
}
