//! What happens to requests when pools are replaced, over real sockets.

use std::{sync::Arc, time::Duration};

use http::{HeaderValue, Method, uri::PathAndQuery};
use mesh_api::model::{self, Address, Discovery, EndpointSet, LocalityEndpoints};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::LocalSet,
};

use super::{Pools, SendOptions};
use crate::{
    http::message::{Authority, Body, RequestHead},
    tls::ClusterTls,
    upstream::{Cluster, LbContext, balance::ThreadRandom},
};

/// Answers `/slow` after 300 ms, everything else at once.
async fn server() -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut buffer = vec![0; 4096];
                loop {
                    let n = socket.read(&mut buffer).await.unwrap_or(0);
                    if n == 0 {
                        return;
                    }
                    if buffer[..n].starts_with(b"GET /slow") {
                        tokio::time::sleep(Duration::from_millis(300)).await;
                    }
                    let _ = socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
                }
            });
        }
    });
    address
}

fn config(address: std::net::SocketAddr, buffer: u32) -> Arc<model::Cluster> {
    let endpoints = vec![model::Endpoint::at(Address::Socket(address))];
    let localities = vec![LocalityEndpoints { endpoints, ..LocalityEndpoints::default() }];
    let set = EndpointSet { localities, ..EndpointSet::default() };
    let mut config = model::Cluster::new("c", Discovery::Static(set));
    config.circuit_breakers[0].max_connections = 1;
    config.per_connection_buffer_limit = buffer;
    Arc::new(config)
}

async fn send(pools: &Pools, cluster: &Arc<Cluster>, path: &'static str) -> Result<u16, String> {
    let endpoint = cluster.pick(&LbContext::default(), &ThreadRandom).map_err(|e| e.to_string())?;
    let authority = Authority::new(HeaderValue::from_static("a")).unwrap();
    let head = RequestHead::new(Method::GET, authority, PathAndQuery::from_static(path));
    let (answer, body) =
        pools.send(cluster, &endpoint, head, Body::Empty, &SendOptions::default()).await.map_err(|e| e.to_string())?;
    let status = answer.status.as_u16();
    drop(http_body_util::BodyExt::collect(body).await);
    Ok(status)
}

#[tokio::test]
async fn requests_that_wait_follow_to_the_pool_that_replaces_theirs() {
    LocalSet::new()
        .run_until(async {
            let address = server().await;
            let pools = Pools::new();
            let old = Cluster::new(config(address, 1 << 20), ClusterTls::none());
            let new = Cluster::successor(config(address, 1 << 19), ClusterTls::none(), &old);
            let all = async {
                let slow = send(&pools, &old, "/slow");
                // One connection is all there may be: this one waits for it.
                let waits = async {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    send(&pools, &old, "/").await
                };
                let replaces = async {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    send(&pools, &new, "/").await
                };
                tokio::join!(slow, waits, replaces)
            };
            let all = tokio::time::timeout(Duration::from_secs(5), all).await.expect("nobody is forgotten");
            assert_eq!(all, (Ok(200), Ok(200), Ok(200)));
            // A request of the old version uses what the new one has, instead of pushing it aside.
            assert_eq!(send(&pools, &old, "/").await, Ok(200));
            assert_eq!(send(&pools, &new, "/").await, Ok(200));
            assert_eq!(new.stats.upstream_cx_total.get(), 2);
        })
        .await;
}
