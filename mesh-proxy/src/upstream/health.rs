//! Active health checks: connects, asks over HTTP or gRPC, and marks endpoints by what comes of it. Runs on the control
//! thread, over connections of its own.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
    time::Duration,
};

use futures_util::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use hyper_util::rt::TokioIo;
use mesh_api::model::{HealthCheck, HealthCheckKind, HttpVersionChoice, Name};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::Instant,
};
use tonic::transport::Channel;
use tower::{Service, ServiceExt};

use super::{
    Cluster, Endpoint, Priority,
    connect::{ConnPermit, ConnectOptions, UpstreamIo, dial},
    endpoint::Flag,
};

/// How often it is looked for endpoints that are due, at most.
const TICK: Duration = Duration::from_millis(100);
/// Checks of one cluster under way at once.
const AT_ONCE: usize = 64;
/// Largest head of an answer.
const MAX_HEAD: usize = 16 << 10;
const USER_AGENT: &str = "Envoy/HC";

/// How a check went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Good,
    /// Counts towards the threshold.
    Bad,
    /// The endpoint itself says that it takes no requests: no threshold.
    Refuses,
    /// No answer: counts towards the threshold.
    Unreachable,
}

/// What is remembered of one endpoint and one kind of check.
#[derive(Debug)]
struct Record {
    due: Instant,
    running: bool,
    healthy: bool,
    /// No check has ended yet.
    fresh: bool,
    /// Results in a row that contradict `healthy`.
    against: u32,
}

impl Record {
    fn new(now: Instant, healthy: bool, fresh: bool) -> Self {
        Self { due: now, running: false, healthy, fresh, against: 0 }
    }

    /// Takes a result in.
    fn note(&mut self, check: &HealthCheck, verdict: Verdict) {
        let good = verdict == Verdict::Good;
        // As in Envoy: the first result decides at once.
        if std::mem::take(&mut self.fresh) || (verdict == Verdict::Refuses && self.healthy) {
            (self.healthy, self.against) = (good, 0);
            return;
        }
        if good == self.healthy {
            self.against = 0;
            return;
        }
        self.against += 1;
        let threshold = if good { check.healthy_threshold } else { check.unhealthy_threshold };
        if self.against >= threshold.max(1) {
            (self.healthy, self.against) = (good, 0);
        }
    }
}

/// Number of the check in the configuration, and id of the endpoint's state.
type Key = (usize, u64);

/// Checks the cluster's endpoints again and again, as long as it lives.
pub(super) async fn run(cluster: Weak<Cluster>) {
    let mut records: HashMap<Key, Record> = HashMap::new();
    let mut running: FuturesUnordered<BoxFuture<'static, (Key, Arc<Endpoint>, Verdict)>> = FuturesUnordered::new();
    loop {
        let Some(current) = cluster.upgrade() else { return };
        let tick = current.config.health_checks.iter().map(|c| c.interval).min().unwrap_or(TICK).min(TICK);
        begin_due(&current, &mut records, &mut running);
        if records.is_empty() {
            // Nobody to ask, which is an answer, once endpoints have been told at all.
            drop(current);
            tokio::time::sleep(tick).await;
            continue;
        }
        drop(current);
        tokio::select! {
            Some((key, endpoint, verdict)) = running.next() => {
                let Some(current) = cluster.upgrade() else { return };
                finish(&current, &mut records, key, &endpoint, verdict);
            }
            () = tokio::time::sleep(tick.max(Duration::from_millis(1))) => {}
        }
    }
}

fn begin_due(
    cluster: &Arc<Cluster>,
    records: &mut HashMap<Key, Record>,
    running: &mut FuturesUnordered<BoxFuture<'static, (Key, Arc<Endpoint>, Verdict)>>,
) {
    let now = Instant::now();
    let endpoints = cluster.endpoints();
    let alive: std::collections::HashSet<u64> = endpoints.iter().map(|e| e.state.id).collect();
    records.retain(|(_, id), record| record.running || alive.contains(id));
    for (number, check) in cluster.config.health_checks.iter().enumerate() {
        for endpoint in &endpoints {
            let state = &endpoint.state;
            let key = (number, state.id);
            let record = records
                .entry(key)
                .or_insert_with(|| Record::new(now, !state.has(Flag::FailedActive), state.has(Flag::PendingActive)));
            if record.running || record.due > now || running.len() >= AT_ONCE {
                continue;
            }
            record.running = true;
            cluster.stats.health_check_attempt.inc();
            let (cluster, endpoint, check) = (cluster.clone(), endpoint.clone(), check.clone());
            running.push(Box::pin(async move {
                let verdict = match tokio::time::timeout(check.timeout, ask(&cluster, &endpoint, &check.kind)).await {
                    Ok(verdict) => verdict,
                    Err(_) => Verdict::Unreachable,
                };
                (key, endpoint, verdict)
            }));
        }
    }
}

fn finish(cluster: &Cluster, records: &mut HashMap<Key, Record>, key: Key, endpoint: &Endpoint, verdict: Verdict) {
    let stats = &cluster.stats;
    match verdict {
        Verdict::Good => stats.health_check_success.inc(),
        Verdict::Unreachable => {
            stats.health_check_failure.inc();
            stats.health_check_network_failure.inc();
        }
        Verdict::Bad | Verdict::Refuses => stats.health_check_failure.inc(),
    }
    let (Some(check), Some(record)) = (cluster.config.health_checks.get(key.0), records.get_mut(&key)) else { return };
    record.note(check, verdict);
    record.running = false;
    record.due = Instant::now() + check.interval;
    let own = |(k, r): (&Key, &Record)| (k.1 == key.1).then_some((r.healthy, r.fresh));
    let all: Vec<(bool, bool)> = records.iter().filter_map(own).collect();
    let healthy = all.iter().all(|(healthy, _)| *healthy);
    let state = &endpoint.state;
    let mut changed = state.put(Flag::FailedActive, !healthy);
    if changed {
        let address = &endpoint.config.address;
        tracing::debug!(cluster = %cluster.config.name, %address, healthy, ?verdict, "health changed");
        if !healthy && cluster.config.close_on_health_failure {
            state.close_connections();
        }
    }
    if all.iter().all(|(_, fresh)| !fresh) {
        changed |= state.put(Flag::PendingActive, false);
    }
    if changed {
        cluster.rebuild();
    }
    if !cluster.is_warm() && cluster.endpoints().iter().all(|e| !e.state.has(Flag::PendingActive)) {
        cluster.give_up_warming();
    }
}

async fn ask(cluster: &Arc<Cluster>, endpoint: &Endpoint, kind: &HealthCheckKind) -> Verdict {
    // Beyond the limits for traffic too: a full pool is no reason not to know.
    let Some(permit) = ConnPermit::take(cluster, endpoint, Priority::default(), true) else {
        return Verdict::Unreachable;
    };
    let h2 = matches!(kind, HealthCheckKind::Grpc { .. }) || cluster.config.http.version == HttpVersionChoice::Http2;
    let alpn: [Name; 1] = [if h2 { "h2".into() } else { "http/1.1".into() }];
    let host = match kind {
        HealthCheckKind::Http { host, .. } if !host.is_empty() => host.clone(),
        HealthCheckKind::Grpc { authority, .. } if !authority.is_empty() => authority.clone(),
        _ => cluster.config.name.clone(),
    };
    let tcp = matches!(kind, HealthCheckKind::Tcp);
    let options = ConnectOptions {
        server_name: (!tcp).then_some(&*host),
        alpn: (!tcp).then_some(&alpn),
        ..ConnectOptions::default()
    };
    let Ok((io, _)) = dial(cluster, endpoint, &options, permit).await else { return Verdict::Unreachable };
    match kind {
        HealthCheckKind::Tcp => Verdict::Good,
        HealthCheckKind::Http { path, expected, .. } => {
            let status = if h2 { http2(io, &host, path).await } else { http1(io, &host, path).await };
            status.map_or(Verdict::Unreachable, |status| judge(status, expected))
        }
        HealthCheckKind::Grpc { service, .. } => grpc(io, &host, service).await,
    }
}

fn judge(status: u16, expected: &[(u16, u16)]) -> Verdict {
    let good = if expected.is_empty() {
        status == 200
    } else {
        // Ends of ranges are exclusive, as in Envoy's `Int64Range`.
        expected.iter().any(|(from, to)| (*from..*to).contains(&status))
    };
    match (good, status) {
        (true, _) => Verdict::Good,
        (false, 503) => Verdict::Refuses,
        (false, _) => Verdict::Bad,
    }
}

/// Status of a GET in HTTP/1.1; `None`: no answer that is HTTP.
async fn http1(mut io: UpstreamIo, host: &str, path: &str) -> Option<u16> {
    let request =
        format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nuser-agent: {USER_AGENT}\r\nconnection: close\r\n\r\n");
    io.write_all(request.as_bytes()).await.ok()?;
    io.flush().await.ok()?;
    let mut head = Vec::with_capacity(1024);
    loop {
        if io.read_buf(&mut head).await.ok()? == 0 || head.len() > MAX_HEAD {
            return None;
        }
        let mut headers = [httparse::EMPTY_HEADER; 100];
        let mut answer = httparse::Response::new(&mut headers);
        if answer.parse(&head).ok()?.is_complete() {
            return answer.code;
        }
    }
}

async fn channel<S>(io: S) -> Option<Channel>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut io = Some(TokioIo::new(io));
    let connector = tower::service_fn(move |_: http::Uri| {
        let io = io.take();
        async move { io.ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotConnected)) }
    });
    tonic::transport::Endpoint::from_static("http://health").connect_with_connector(connector).await.ok()
}

/// Status of a GET in HTTP/2.
async fn http2(io: UpstreamIo, host: &str, path: &str) -> Option<u16> {
    let mut channel = channel(io).await?;
    let uri = http::Uri::builder().scheme("http").authority(host).path_and_query(path).build().ok()?;
    let request = http::Request::get(uri).header(http::header::USER_AGENT, USER_AGENT);
    let request = request.body(tonic::body::Body::empty()).ok()?;
    let answer = channel.ready().await.ok()?.call(request).await.ok()?;
    Some(answer.status().as_u16())
}

/// `grpc.health.v1.HealthCheckRequest`.
#[derive(Clone, PartialEq, prost::Message)]
struct Request {
    #[prost(string, tag = "1")]
    service: String,
}

/// `grpc.health.v1.HealthCheckResponse`.
#[derive(Clone, PartialEq, prost::Message)]
struct Response {
    #[prost(int32, tag = "1")]
    status: i32,
}

const SERVING: i32 = 1;

/// Whether a gRPC server says that it, or this service of it, serves.
pub async fn serving<S>(io: S, host: &str, service: &str) -> bool
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    grpc(io, host, service).await == Verdict::Good
}

async fn grpc<S>(io: S, host: &str, service: &str) -> Verdict
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let Some(channel) = channel(io).await else { return Verdict::Unreachable };
    let Ok(origin) = http::Uri::builder().scheme("http").authority(host).path_and_query("/").build() else {
        return Verdict::Unreachable;
    };
    let mut client = tonic::client::Grpc::with_origin(channel, origin);
    if client.ready().await.is_err() {
        return Verdict::Unreachable;
    }
    let path = http::uri::PathAndQuery::from_static("/grpc.health.v1.Health/Check");
    let codec = tonic_prost::ProstCodec::<Request, Response>::default();
    match client.unary(tonic::Request::new(Request { service: service.to_owned() }), path, codec).await {
        Ok(answer) if answer.get_ref().status == SERVING => Verdict::Good,
        Ok(_) => Verdict::Refuses,
        Err(status) if status.code() == tonic::Code::Unavailable => Verdict::Unreachable,
        Err(_) => Verdict::Bad,
    }
}

#[cfg(test)]
mod tests {
    use mesh_api::model::{self, Address, Discovery, EndpointSet, LocalityEndpoints};
    use tokio::net::TcpListener;

    use super::*;
    use crate::tls::ClusterTls;

    fn check(kind: HealthCheckKind) -> HealthCheck {
        HealthCheck {
            timeout: Duration::from_secs(2),
            interval: Duration::from_millis(10),
            unhealthy_threshold: 3,
            healthy_threshold: 2,
            kind,
        }
    }

    #[test]
    fn thresholds_and_the_first_result() {
        let check = check(HealthCheckKind::Tcp);
        let mut record = Record::new(Instant::now(), false, true);
        record.note(&check, Verdict::Good);
        assert!(record.healthy, "the first one decides");
        record.note(&check, Verdict::Bad);
        record.note(&check, Verdict::Unreachable);
        record.note(&check, Verdict::Good);
        record.note(&check, Verdict::Bad);
        record.note(&check, Verdict::Bad);
        assert!(record.healthy, "not in a row");
        record.note(&check, Verdict::Bad);
        assert!(!record.healthy);
        record.note(&check, Verdict::Good);
        assert!(!record.healthy);
        record.note(&check, Verdict::Good);
        assert!(record.healthy);
        record.note(&check, Verdict::Refuses);
        assert!(!record.healthy, "at once");
    }

    #[test]
    fn statuses() {
        assert_eq!(judge(200, &[]), Verdict::Good);
        assert_eq!(judge(204, &[]), Verdict::Bad);
        assert_eq!(judge(204, &[(200, 300)]), Verdict::Good);
        assert_eq!(judge(300, &[(200, 300)]), Verdict::Bad);
        assert_eq!(judge(503, &[]), Verdict::Refuses);
    }

    async fn until(what: &str, done: impl Fn() -> bool) {
        for _ in 0..500 {
            if done() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{what}");
    }

    #[tokio::test]
    async fn an_endpoint_counts_when_its_check_has_passed_and_not_when_it_fails() {
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = server.local_addr().unwrap();
        let status = Arc::new(parking_lot::Mutex::new("200 OK"));
        let says = status.clone();
        tokio::spawn(async move {
            loop {
                let (mut socket, _) = server.accept().await.unwrap();
                let mut request = vec![0; 1024];
                let n = socket.read(&mut request).await.unwrap();
                assert!(request[..n].starts_with(b"GET /healthz HTTP/1.1\r\nhost: h\r\n"));
                let answer = format!("HTTP/1.1 {}\r\ncontent-length: 0\r\n\r\n", *says.lock());
                socket.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        let endpoints = vec![model::Endpoint::at(Address::Socket(address))];
        let set = EndpointSet {
            localities: vec![LocalityEndpoints { endpoints, ..LocalityEndpoints::default() }],
            ..EndpointSet::default()
        };
        let kind = HealthCheckKind::Http { host: "h".into(), path: "/healthz".into(), expected: vec![] };
        let mut config = model::Cluster::new("c", Discovery::Static(set));
        config.health_checks = vec![check(kind)];
        let cluster = Cluster::new(Arc::new(config), ClusterTls::none());
        assert!(!cluster.is_warm() && !cluster.has_healthy());
        cluster.start(&tokio::runtime::Handle::current());
        until("warm", || cluster.is_warm()).await;
        assert!(cluster.has_healthy());
        *status.lock() = "500 No";
        until("unhealthy", || !cluster.has_healthy()).await;
        *status.lock() = "200 OK";
        until("healthy", || cluster.has_healthy()).await;
        assert!(cluster.stats.health_check_failure.get() >= 3);
    }
}
