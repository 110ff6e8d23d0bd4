//! Asks external authorizers and rate limit services about a request or a connection, over the worker's own upstream connections.
//!
//! Owns the call: its limits in time and size, and what of its answer is one. Must not know what is decided by it.

use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, header};
use http_body_util::BodyExt as _;
use mesh_api::model::{AuthzGrpc, AuthzHttp, AuthzService, Name};

use super::{
    filters::ext_authz::{Answer, Codec, ExtAuthz, Question},
    message::{Body, RequestHead},
};
use crate::{
    config::Snapshot,
    net::ConnInfo,
    runtime::Worker,
    upstream::{Cluster, LbContext, pool::SendOptions},
};

/// Longest answer.
const MAX_ANSWER: usize = 1 << 20;

/// Names that may be offered by ALPN to a cluster, for a request.
pub type Alpn<'a> = &'a dyn Fn(&Cluster, &RequestHead) -> Option<&'static [&'static str]>;

/// Who asks.
#[derive(Clone, Copy)]
pub struct Caller<'a> {
    /// Worker.
    pub worker: &'a Worker,
    /// Configuration in force.
    pub snapshot: &'a Snapshot,
    /// Connection that it is about.
    pub conn: &'a ConnInfo,
    /// Istio's names for what is spoken.
    pub alpn: Option<Alpn<'a>>,
}

impl std::fmt::Debug for Caller<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Caller").field("conn", &self.conn.id).finish_non_exhaustive()
    }
}

/// What came back.
struct Reply {
    status: u16,
    headers: HeaderMap,
    body: Bytes,
    trailers: HeaderMap,
}

impl Caller<'_> {
    /// Asks over gRPC.
    ///
    /// # Errors
    /// When there is no usable answer.
    pub async fn ask(&self, filter: &ExtAuthz, codec: &dyn Codec, question: &Question<'_>) -> Result<Answer, String> {
        let (AuthzService::Grpc(service), Some(head)) = (&filter.config.service, filter.grpc_call()) else {
            return Err("connections are asked for over gRPC only".to_owned());
        };
        codec.answer(&self.ask_grpc(service, head, &codec.question(question)).await?)
    }

    /// One call over gRPC: the message of its answer.
    ///
    /// # Errors
    /// When there is no usable answer.
    pub async fn ask_grpc(&self, service: &AuthzGrpc, head: RequestHead, message: &[u8]) -> Result<Bytes, String> {
        let body = Body::full(framed(message)?);
        message_of(&self.call(&service.cluster, service.timeout, head, body).await?)
    }

    /// Asks over HTTP.
    ///
    /// # Errors
    /// When there is no usable answer.
    pub async fn ask_http(
        &self,
        filter: &ExtAuthz,
        service: &AuthzHttp,
        mut head: RequestHead,
        body: Bytes,
    ) -> Result<Answer, String> {
        head.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
        let reply = self.call(&service.cluster, service.timeout, head, Body::full(body)).await?;
        filter.http_answer(reply.status, &reply.headers, reply.body)
    }

    async fn call(&self, name: &Name, limit: Duration, head: RequestHead, body: Body) -> Result<Reply, String> {
        let call = self.send(name, head, body);
        if limit.is_zero() {
            return call.await;
        }
        tokio::time::timeout(limit, call).await.unwrap_or_else(|_| Err(format!("no answer within {limit:?}")))
    }

    async fn send(&self, name: &Name, head: RequestHead, body: Body) -> Result<Reply, String> {
        let Some(cluster) = self.snapshot.cluster(name) else { return Err(format!("cluster {name} does not exist")) };
        let context = LbContext { original_dst: self.conn.original_dst, ..LbContext::default() };
        let endpoint = cluster.pick(&context, &self.worker.rng).map_err(|e| e.to_string())?;
        let alpn = self.alpn.and_then(|alpn| alpn(cluster, &head));
        let alpn: Option<Vec<Name>> = alpn.map(|names| names.iter().map(|n| Name::from(*n)).collect());
        let proxied = Some((self.conn.peer, self.conn.local));
        let options = SendOptions { alpn: alpn.as_deref(), proxied, ..SendOptions::default() };
        let sent = self.worker.pools.send(cluster, &endpoint, head, body, &options).await;
        let (answer, mut body) = sent.map_err(|e| e.to_string())?;
        let (mut bytes, mut trailers) = (BytesMut::new(), HeaderMap::new());
        while let Some(frame) = body.frame().await {
            match frame.map_err(|e| e.to_string())?.into_data() {
                Ok(data) if bytes.len() + data.len() > MAX_ANSWER => {
                    return Err(format!("the answer is longer than {MAX_ANSWER} bytes"));
                }
                Ok(data) => bytes.extend_from_slice(&data),
                Err(frame) => trailers = frame.into_trailers().unwrap_or_default(),
            }
        }
        Ok(Reply { status: answer.status.as_u16(), headers: answer.headers, body: bytes.freeze(), trailers })
    }
}

/// A message with its length in front.
fn framed(message: &[u8]) -> Result<Bytes, String> {
    let length = u32::try_from(message.len()).map_err(|_| "the question is too long".to_owned())?;
    let mut out = BytesMut::with_capacity(message.len() + 5);
    out.put_u8(0);
    out.put_u32(length);
    out.extend_from_slice(message);
    Ok(out.freeze())
}

/// The one message of an answer that says that the call went well.
fn message_of(reply: &Reply) -> Result<Bytes, String> {
    let in_any = |name: &str| reply.trailers.get(name).or_else(|| reply.headers.get(name));
    let status = in_any("grpc-status").map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned());
    match status.as_deref() {
        Some("0") => {}
        Some(code) => {
            let why = in_any("grpc-message").map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned());
            return Err(format!("gRPC status {code}: {}", why.unwrap_or_default()));
        }
        None => return Err(format!("HTTP status {} without a gRPC status", reply.status)),
    }
    let bad = || "the answer is not one message".to_owned();
    let (prefix, message) = reply.body.split_at_checked(5).ok_or_else(bad)?;
    let [0, a, b, c, d] = *prefix else { return Err(bad()) };
    let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).map_err(|_| bad())?;
    if length == message.len() { Ok(reply.body.slice(5..)) } else { Err(bad()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(body: &[u8], status: &'static str) -> Reply {
        let trailers =
            HeaderMap::from_iter([(http::HeaderName::from_static("grpc-status"), HeaderValue::from_static(status))]);
        Reply { status: 200, headers: HeaderMap::new(), body: Bytes::copy_from_slice(body), trailers }
    }

    #[test]
    fn an_answer_is_one_whole_message() {
        let good = framed(b"abc").unwrap();
        assert_eq!(message_of(&reply(&good, "0")).unwrap(), "abc");
        assert!(message_of(&reply(&good, "14")).is_err());
        let cut = good.get(..6).unwrap();
        for bad in [&b""[..], b"\0\0\0", cut, &[&good[..], b"x"].concat(), b"\x01\0\0\0\0"] {
            assert!(message_of(&reply(bad, "0")).is_err(), "{bad:?}");
        }
        let without = Reply { trailers: HeaderMap::new(), ..reply(&good, "0") };
        assert!(message_of(&without).is_err());
    }
}
