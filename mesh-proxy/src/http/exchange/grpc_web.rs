//! gRPC-Web: a browser's call becomes one of gRPC on its way up, and the answer one of gRPC-Web again.
//!
//! Owns the two encodings, whole or as base64, in both directions. Nothing is buffered beyond the bytes that do not yet
//! make a unit of base64. Knows nothing of routes.

use std::{
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::{BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use http_body::{Body as _, Frame};
use http_body_util::BodyExt as _;

use super::super::headers::GRPC_STATUS;
use super::super::local_reply::{grpc_message, grpc_status_of};
use super::super::message::{Body, BodyError, RequestHead, ResponseHead, is_grpc_content_type};
use super::body::RequestCounts;

const WEB: &str = "application/grpc-web";
const WEB_PROTO: &str = "application/grpc-web+proto";
const TEXT: &str = "application/grpc-web-text";
const TEXT_PROTO: &str = "application/grpc-web-text+proto";
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const ACCEPT_ENCODING: HeaderName = HeaderName::from_static("grpc-accept-encoding");
/// Of the frame that carries trailers.
const TRAILERS: u8 = 0x80;
/// Of a text that becomes a header.
const MAX_WORDS: usize = 1024;
const WORDS_TIMEOUT: Duration = Duration::from_secs(1);

/// How the answer is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Web {
    /// As base64.
    text: bool,
}

/// Makes a call of gRPC of one of gRPC-Web; `None`: it is none.
pub fn translate(head: &mut RequestHead, body: &mut Body, counts: &Rc<RequestCounts>) -> Option<Web> {
    let kind = head.headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    let text = match kind {
        WEB | WEB_PROTO => false,
        TEXT | TEXT_PROTO => true,
        _ => return None,
    };
    let accept = head.headers.get(header::ACCEPT).and_then(|v| v.to_str().ok());
    let web = Web { text: matches!(accept, Some(TEXT | TEXT_PROTO)) };
    let headers = &mut head.headers;
    headers.remove(header::CONTENT_LENGTH);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(header::TE, HeaderValue::from_static("trailers"));
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity,deflate,gzip"));
    if text && !body.is_end_stream() {
        *body = Body::wrap(Decoded { body: std::mem::take(body), unit: Unit::default(), counts: counts.clone() });
    }
    Some(web)
}

impl Web {
    /// The head of the answer. One that is not of gRPC says by its status what became of the call, and by its body why.
    pub fn answer(self, head: &mut ResponseHead, body: Body) -> Body {
        let grpc = speaks_grpc(head);
        let kind = if self.text { TEXT_PROTO } else { WEB_PROTO };
        head.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        head.headers.remove(header::CONTENT_LENGTH);
        if grpc {
            return body;
        }
        head.headers.insert(GRPC_STATUS.clone(), HeaderValue::from(grpc_status_of(head.status.as_u16())));
        if let Body::Full(why) = body
            && let Ok(why) = HeaderValue::from_str(&grpc_message(&why))
        {
            head.headers.insert(GRPC_MESSAGE, why);
        }
        Body::Empty
    }

    /// The body of the answer, around what counts it.
    pub fn wrap(self, body: Body) -> Body {
        if body.is_end_stream() {
            return body;
        }
        Body::wrap(Encoded { body, text: self.text.then(TextFrames::default), ended: false })
    }
}

/// Whether an answer is one of gRPC.
pub fn speaks_grpc(head: &ResponseHead) -> bool {
    is_grpc_content_type(head.headers.get(header::CONTENT_TYPE)) || head.headers.contains_key(&GRPC_STATUS)
}

/// What an upstream that does not speak gRPC has to say: the beginning of its answer, as far as it comes in time.
pub async fn words(mut body: Body) -> Body {
    let mut out = BytesMut::new();
    let read = async {
        while out.len() < MAX_WORDS
            && let Some(Ok(frame)) = body.frame().await
        {
            let Ok(data) = frame.into_data() else { return };
            let room = MAX_WORDS - out.len();
            out.extend_from_slice(data.get(..room).unwrap_or(&data));
        }
    };
    // What has come until then will do.
    let _ = tokio::time::timeout(WORDS_TIMEOUT, read).await;
    Body::full(out.freeze())
}

/// Base64 on its way in; units of four that are not whole yet.
#[derive(Debug, Default)]
struct Unit {
    held: [u8; 4],
    length: usize,
}

impl Unit {
    /// Decodes what is whole. Messages may have been encoded one by one, so padding does not end it.
    fn feed(&mut self, data: &[u8]) -> Option<Bytes> {
        let mut out = BytesMut::with_capacity(data.len() / 4 * 3 + 3);
        let mut three = [0; 3];
        for &byte in data {
            *self.held.get_mut(self.length)? = byte;
            self.length += 1;
            if self.length == 4 {
                let n = STANDARD.decode_slice(self.held, &mut three).ok()?;
                out.extend_from_slice(three.get(..n)?);
                self.length = 0;
            }
        }
        Some(out.freeze())
    }
}

/// A request's body that came as base64.
struct Decoded {
    body: Body,
    unit: Unit,
    counts: Rc<RequestCounts>,
}

impl http_body::Body for Decoded {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let bad = |counts: &RequestCounts| {
            counts.fail(BodyError::Protocol);
            Poll::Ready(Some(Err(BodyError::Protocol)))
        };
        loop {
            match ready!(Pin::new(&mut this.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => match this.unit.feed(&data) {
                        Some(data) if data.is_empty() => {}
                        Some(data) => return Poll::Ready(Some(Ok(Frame::data(data)))),
                        None => return bad(&this.counts),
                    },
                    Err(frame) => return Poll::Ready(Some(Ok(frame))),
                },
                None if this.unit.length > 0 => {
                    this.unit.length = 0;
                    return bad(&this.counts);
                }
                other => return Poll::Ready(other),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream() && self.unit.length == 0
    }
}

/// Frames of gRPC on their way out as base64, each padded by itself.
#[derive(Debug, Default)]
struct TextFrames {
    /// Bytes that do not make a unit yet, two at most.
    held: Vec<u8>,
    prefix: u8,
    length: u32,
    left: u32,
}

impl TextFrames {
    fn feed(&mut self, data: &[u8], out: &mut String) {
        for &byte in data {
            self.held.push(byte);
            if self.prefix < 5 {
                if self.prefix > 0 {
                    self.length = self.length << 8 | u32::from(byte);
                }
                self.prefix += 1;
                self.left = self.length;
            } else {
                self.left = self.left.saturating_sub(1);
            }
            let whole = self.prefix == 5 && self.left == 0;
            if whole {
                (self.prefix, self.length) = (0, 0);
            }
            if whole || self.held.len() == 3 {
                self.flush(out);
            }
        }
    }

    fn flush(&mut self, out: &mut String) {
        STANDARD.encode_string(&self.held, out);
        self.held.clear();
    }
}

/// An answer's body with its trailers as a frame.
struct Encoded {
    body: Body,
    text: Option<TextFrames>,
    ended: bool,
}

impl http_body::Body for Encoded {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        if this.ended {
            return Poll::Ready(None);
        }
        loop {
            let data = match ready!(Pin::new(&mut this.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => data,
                    Err(frame) => {
                        this.ended = true;
                        let trailers = trailer_frame(&frame.into_trailers().unwrap_or_default());
                        let mut text = String::new();
                        let out = match &mut this.text {
                            None => trailers,
                            Some(frames) => {
                                if !frames.held.is_empty() {
                                    frames.flush(&mut text);
                                }
                                STANDARD.encode_string(&trailers, &mut text);
                                text.into()
                            }
                        };
                        return Poll::Ready(Some(Ok(Frame::data(out))));
                    }
                },
                other => {
                    this.ended = true;
                    return Poll::Ready(other);
                }
            };
            let Some(frames) = &mut this.text else { return Poll::Ready(Some(Ok(Frame::data(data)))) };
            let mut out = String::with_capacity(data.len() / 3 * 4 + 8);
            frames.feed(&data, &mut out);
            if !out.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(out.into()))));
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ended || self.body.is_end_stream()
    }
}

/// `name:value` lines with their length in front.
fn trailer_frame(trailers: &HeaderMap) -> Bytes {
    let mut lines = BytesMut::new();
    for (name, value) in trailers {
        lines.extend_from_slice(name.as_str().as_bytes());
        lines.put_u8(b':');
        lines.extend_from_slice(value.as_bytes());
        lines.extend_from_slice(b"\r\n");
    }
    let mut out = BytesMut::with_capacity(lines.len() + 5);
    out.put_u8(TRAILERS);
    out.put_u32(u32::try_from(lines.len()).unwrap_or(u32::MAX));
    out.extend_from_slice(&lines);
    out.freeze()
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;
    use crate::http::testing;

    /// Comes byte by byte.
    struct Slow(Vec<u8>, Option<HeaderMap>);

    impl http_body::Body for Slow {
        type Data = Bytes;
        type Error = BodyError;
        fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
            let this = self.get_mut();
            Poll::Ready(if this.0.is_empty() {
                this.1.take().map(|t| Ok(Frame::trailers(t)))
            } else {
                Some(Ok(Frame::data(vec![this.0.remove(0)].into())))
            })
        }
    }

    fn call(
        kind: &'static str,
        accept: &'static str,
        body: &[u8],
    ) -> (Option<Web>, RequestHead, Body, Rc<RequestCounts>) {
        let mut head = testing::get("a.test", "/pkg.Svc/M");
        head.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        head.headers.insert(header::ACCEPT, HeaderValue::from_static(accept));
        head.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
        let (mut body, counts) = (Body::wrap(Slow(body.to_vec(), None)), Rc::default());
        let web = translate(&mut head, &mut body, &counts);
        (web, head, body, counts)
    }

    async fn whole(body: Body) -> Result<Vec<u8>, BodyError> {
        Ok(body.collect().await?.to_bytes().to_vec())
    }

    #[tokio::test]
    async fn requests_become_grpc() {
        let (web, head, body, _) = call(WEB_PROTO, "*/*", b"\0\0\0\0\x01x");
        assert_eq!(web, Some(Web { text: false }));
        assert_eq!(head.headers[header::CONTENT_TYPE], "application/grpc");
        assert_eq!(head.headers[header::TE], "trailers");
        assert!(!head.headers.contains_key(header::CONTENT_LENGTH));
        assert_eq!(whole(body).await.unwrap(), b"\0\0\0\0\x01x");
        assert_eq!(call("application/grpc", "", b"").0, None);
        assert_eq!(call("application/json", TEXT, b"").0, None);
    }

    #[tokio::test]
    async fn text_is_decoded_as_it_comes() {
        // Two messages, each padded by itself.
        let (web, _, body, _) = call(TEXT, TEXT, b"AAAAAAF4AAAAAAA=");
        assert_eq!(web, Some(Web { text: true }));
        assert_eq!(whole(body).await.unwrap(), b"\0\0\0\0\x01x\0\0\0\0\0");
        for bad in [&b"AAAAA"[..], b"A!AA", b"A=AA"] {
            let (_, _, body, counts) = call(TEXT, TEXT, bad);
            assert_eq!(whole(body).await.unwrap_err(), BodyError::Protocol, "{bad:?}");
            assert_eq!(counts.broken(), Some(BodyError::Protocol));
        }
    }

    #[tokio::test]
    async fn trailers_become_the_last_frame() {
        let trailers = HeaderMap::from_iter([(GRPC_STATUS.clone(), HeaderValue::from_static("0"))]);
        let body = || Body::wrap(Slow(b"\0\0\0\0\x01x\0\0\0\0\0".to_vec(), Some(trailers.clone())));
        let binary = whole(Web { text: false }.wrap(body())).await.unwrap();
        assert_eq!(binary, b"\0\0\0\0\x01x\0\0\0\0\0\x80\0\0\0\x0fgrpc-status:0\r\n");
        let text = whole(Web { text: true }.wrap(body())).await.unwrap();
        assert_eq!(text, b"AAAAAAF4AAAAAAA=gAAAAA9ncnBjLXN0YXR1czowDQo=");
    }

    #[test]
    fn answers_that_are_not_of_grpc_say_what_became_of_the_call() {
        let web = Web { text: false };
        let mut head = ResponseHead::new(StatusCode::BAD_GATEWAY);
        head.headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("3"));
        assert!(matches!(web.answer(&mut head, Body::full("bad\n")), Body::Empty));
        assert_eq!(head.headers[GRPC_MESSAGE], "bad%0A");
        assert_eq!(
            (&head.headers[&GRPC_STATUS], &head.headers[header::CONTENT_TYPE]),
            (&HeaderValue::from(14), &HeaderValue::from_static(WEB_PROTO))
        );
        let mut head = ResponseHead::new(StatusCode::OK);
        head.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc+proto"));
        assert!(matches!(web.answer(&mut head, Body::full("good")), Body::Full(_)));
        assert!(!head.headers.contains_key(&GRPC_STATUS));
    }
}
