//! Requests of this machine's own to what a cluster offers.

use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

const PATIENCE: Duration = Duration::from_secs(5);

/// GET over a connection of its own; status and body.
///
/// # Errors
/// When there is no answer within five seconds.
pub async fn get(address: &str, path: &str) -> Result<(u16, String)> {
    let ask = async {
        let stream = TcpStream::connect(address).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let connection = tokio::spawn(connection);
        let request = Request::get(path).header("host", address).body(Empty::<Bytes>::new())?;
        let answer = sender.send_request(request).await?;
        let status = answer.status().as_u16();
        let body = answer.into_body().collect().await?.to_bytes();
        connection.abort();
        Ok::<_, anyhow::Error>((status, String::from_utf8_lossy(&body).into_owned()))
    };
    let answer = tokio::time::timeout(PATIENCE, ask).await;
    answer
        .with_context(|| format!("{address}{path} did not answer within {PATIENCE:?}"))?
        .with_context(|| format!("{address}{path}"))
}
