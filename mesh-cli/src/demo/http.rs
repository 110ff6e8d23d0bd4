//! A small HTTP client for the demo's load and checks: pooled connections, short deadlines.

use std::sync::LazyLock;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// Status.
    pub status: u16,
    /// Body, 4 MiB at most.
    pub body: Bytes,
}

impl Answer {
    /// Body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
    /// Body as JSON.
    ///
    /// # Errors
    /// When it is not.
    pub fn json(&self) -> anyhow::Result<serde_json::Value> {
        serde_json::from_slice(&self.body).with_context(|| format!("not JSON: {}", self.text()))
    }
}

static CLIENT: LazyLock<Client<HttpConnector, Empty<Bytes>>> =
    LazyLock::new(|| Client::builder(TokioExecutor::new()).retry_canceled_requests(false).build_http());

/// GET.
///
/// # Errors
/// When no answer comes within 10 s.
pub async fn get(url: &str) -> anyhow::Result<Answer> {
    send(Request::get(url)).await
}

/// Any request without a body.
///
/// # Errors
/// When no answer comes within 10 s.
pub async fn send(request: http::request::Builder) -> anyhow::Result<Answer> {
    let request = request.body(Empty::new())?;
    let answer = async {
        let response = CLIENT.request(request).await?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, 4 << 20).collect().await.map_err(|e| anyhow::anyhow!("{e}"))?.to_bytes();
        Ok(Answer { status: head.status.as_u16(), body })
    };
    tokio::time::timeout(Duration::from_secs(10), answer).await.context("no answer within 10 s")?
}
