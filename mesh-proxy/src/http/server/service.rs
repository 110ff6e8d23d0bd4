//! Between codec and exchange: hyper's request becomes our head and body, our answer becomes hyper's. Named by `h1` and
//! `h2` only.

use std::rc::Rc;

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version, header, uri::PathAndQuery,
};

use super::super::exchange::{self, Session};
use super::super::headers::{HOP_BY_HOP, has_hop_by_hop};
use super::super::local_reply::Reason;
use super::super::message::{Authority, Body, RequestHead, ResponseHead};
use super::h1::PendingTunnel;

/// What the codec knows of a request beside the message.
pub(super) struct Call {
    /// What the request shares with others.
    pub(super) session: Rc<Session>,
    /// The client's end of a tunnel, should it become one.
    pub(super) tunnel: Option<PendingTunnel>,
    /// Protocol of an extended CONNECT.
    pub(super) protocol: Option<HeaderValue>,
    /// The connection takes no request after this one.
    pub(super) last: bool,
    /// It is not to be served, for this reason.
    pub(super) refused: Option<Reason>,
}

/// Serves one request.
pub(super) async fn serve(call: Call, request: Request<Body>) -> Response<Body> {
    let Call { session, tunnel, protocol, last, refused } = call;
    let (parts, body) = request.into_parts();
    let version = parts.version;
    let (head, invalid) = head(parts, protocol);
    let refused = refused.or(invalid);
    let last = last || refused.is_some();
    let (head, body) = match refused {
        None => exchange::serve(session, head, body, tunnel).await,
        Some(reason) => exchange::refuse(session, &head, reason),
    };
    answer(head, body, version, last)
}

/// The head as the exchange sees it, and why it is none.
fn head(parts: http::request::Parts, protocol: Option<HeaderValue>) -> (RequestHead, Option<Reason>) {
    let http::request::Parts { method, uri, version, mut headers, .. } = parts;
    let twice = headers.get_all(header::HOST).iter().nth(1).is_some();
    let host = headers.remove(header::HOST);
    let authority = match (uri.authority(), host) {
        _ if twice => None,
        // An absolute target wins over the header (RFC 9112, 3.2.2).
        (Some(authority), _) => Authority::parse(authority.as_str()),
        (None, Some(host)) => Authority::new(host),
        (None, None) => Some(Authority::empty()),
    };
    let invalid = authority.is_none().then_some(Reason::InvalidHost);
    let target = match uri.path_and_query() {
        Some(target) if !target.as_str().is_empty() => target.clone(),
        _ => PathAndQuery::from_static("/"),
    };
    // An extended CONNECT is to everything else what HTTP/1.1 has for it.
    let method = if protocol.is_some() { Method::GET } else { method };
    let mut out = RequestHead::new(method, authority.unwrap_or_else(Authority::empty), target);
    out.version = version;
    out.upgrade = protocol;
    if has_hop_by_hop(&headers) {
        let upgrade = headers.get(header::UPGRADE).filter(|_| version == Version::HTTP_11 && wants_upgrade(&headers));
        out.upgrade = out.upgrade.or(upgrade.cloned());
        let trailers = headers.get(header::TE).is_some_and(|te| te.as_bytes().eq_ignore_ascii_case(b"trailers"));
        strip(&mut headers);
        if trailers {
            headers.insert(header::TE, HeaderValue::from_static("trailers"));
        }
    }
    out.headers = headers;
    (out, invalid)
}

fn wants_upgrade(headers: &HeaderMap) -> bool {
    let all = headers.get_all(header::CONNECTION).iter().filter_map(|v| v.to_str().ok());
    all.flat_map(|v| v.split(',')).any(|token| token.trim().eq_ignore_ascii_case("upgrade"))
}

/// Takes off what belongs to the connection, and what `connection` names.
fn strip(headers: &mut HeaderMap) {
    if headers.contains_key(header::CONNECTION) {
        let named: Vec<HeaderName> = headers
            .get_all(header::CONNECTION)
            .iter()
            .filter_map(|v| v.to_str().ok())
            .flat_map(|v| v.split(','))
            .filter_map(|token| token.trim().parse().ok())
            .filter(|name: &HeaderName| !name.as_str().starts_with("x-forwarded"))
            .collect();
        for name in named {
            headers.remove(name);
        }
    }
    for name in &HOP_BY_HOP {
        headers.remove(name);
    }
}

/// The answer as the codec writes it.
fn answer(head: ResponseHead, body: Body, version: Version, last: bool) -> Response<Body> {
    let mut response = Response::new(body);
    let switching = head.status == StatusCode::SWITCHING_PROTOCOLS;
    *response.status_mut() = head.status;
    *response.headers_mut() = head.headers;
    if switching && version == Version::HTTP_2 {
        // To a CONNECT, yes is 200.
        *response.status_mut() = StatusCode::OK;
        response.headers_mut().remove(header::UPGRADE);
        response.headers_mut().remove(header::CONTENT_LENGTH);
    } else if switching {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    } else if last && version != Version::HTTP_2 {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head_of(request: http::request::Builder) -> (RequestHead, Option<Reason>) {
        head(request.body(()).unwrap().into_parts().0, None)
    }

    #[test]
    fn there_is_one_host() {
        let twice = Request::get("/").header("host", "a").header("host", "a");
        assert_eq!(head_of(twice).1, Some(Reason::InvalidHost));
        let also = Request::get("http://a/").header("host", "a").header("host", "b");
        assert_eq!(head_of(also).1, Some(Reason::InvalidHost));
        let (absolute, invalid) = head_of(Request::get("http://a/x").header("host", "b"));
        assert_eq!((absolute.authority.as_str(), absolute.path(), invalid), ("a", "/x", None));
        assert!(!absolute.headers.contains_key("host"));
        let (bad, invalid) = head_of(Request::get("/x").header("host", "a b"));
        assert_eq!((bad.path(), invalid), ("/x", Some(Reason::InvalidHost)));
    }

    #[test]
    fn an_extended_connect_is_an_upgrade() {
        let request = Request::connect("http://a/chat").version(Version::HTTP_2);
        let protocol = HeaderValue::from_static("websocket");
        let (head, _) = head(request.body(()).unwrap().into_parts().0, Some(protocol.clone()));
        assert_eq!((head.method, head.target.path(), head.upgrade), (Method::GET, "/chat", Some(protocol)));
        let mut yes = ResponseHead::new(StatusCode::SWITCHING_PROTOCOLS);
        yes.headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        let yes = answer(yes, Body::Empty, Version::HTTP_2, false);
        assert_eq!((yes.status(), yes.headers().len()), (StatusCode::OK, 0));
    }
}
