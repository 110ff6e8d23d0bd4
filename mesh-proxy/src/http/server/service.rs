//! Between codec and exchange: hyper's request becomes our head and body, our answer becomes hyper's. Named by `h1` and
//! `h2` only.

use std::rc::Rc;

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version, header, uri::PathAndQuery,
};

use super::super::exchange::{self, Session};
use super::super::local_reply::{LocalReply, Reason};
use super::super::message::{Authority, Body, RequestHead, ResponseHead};
use super::h1::PendingTunnel;

/// Headers that belong to one connection.
const HOP_BY_HOP: [HeaderName; 6] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::TRANSFER_ENCODING,
    header::TE,
    header::UPGRADE,
];

/// Serves one request.
pub async fn serve(
    session: Rc<Session>,
    request: Request<Body>,
    tunnel: Option<PendingTunnel>,
    last: bool,
) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let head_only = parts.method == Method::HEAD;
    let (head, body) = match head(parts) {
        Ok(head) => exchange::serve(session, head, body, tunnel).await,
        Err(reason) => {
            let (mut head, body) = LocalReply::from(reason).into_message(false, head_only);
            head.headers.insert(header::SERVER, session.manager.server.clone());
            (head, body)
        }
    };
    answer(head, body, last)
}

/// The head as the exchange sees it.
fn head(parts: http::request::Parts) -> Result<RequestHead, Reason> {
    let http::request::Parts { method, uri, version, mut headers, .. } = parts;
    let from_uri = uri.authority().map(|a| a.as_str().to_owned());
    let host = headers.remove(header::HOST);
    let authority = match (from_uri, host) {
        // An absolute target wins over the header (RFC 9112, 3.2.2).
        (Some(authority), _) => Authority::parse(&authority),
        (None, Some(host)) => Authority::new(host),
        (None, None) => Some(Authority::empty()),
    };
    let authority = authority.ok_or(Reason::InvalidHost)?;
    if headers.contains_key(header::HOST) {
        return Err(Reason::InvalidHost);
    }
    let target = match uri.path_and_query() {
        Some(target) if !target.as_str().is_empty() => target.clone(),
        _ if method == Method::CONNECT => PathAndQuery::from_static("/"),
        _ => PathAndQuery::from_static("/"),
    };
    let mut out = RequestHead::new(method, authority, target);
    out.version = version;
    let upgrade = headers.get(header::UPGRADE).cloned();
    let trailers = headers.get(header::TE).is_some_and(|te| te.as_bytes().eq_ignore_ascii_case(b"trailers"));
    out.upgrade = upgrade.filter(|_| version == Version::HTTP_11 && wants_upgrade(&headers));
    strip(&mut headers);
    if trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    out.headers = headers;
    Ok(out)
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
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
}

/// The answer as the codec writes it.
fn answer(head: ResponseHead, body: Body, last: bool) -> Response<Body> {
    let mut response = Response::new(body);
    let switching = head.status == StatusCode::SWITCHING_PROTOCOLS;
    *response.status_mut() = head.status;
    *response.headers_mut() = head.headers;
    if last && !switching {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}
