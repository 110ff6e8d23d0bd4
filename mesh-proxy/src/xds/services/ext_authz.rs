//! Messages of `envoy.service.auth.v3.Authorization`, as Envoy fills them, behind plain facts.

use std::{collections::HashMap, time::UNIX_EPOCH};

use mesh_api::model::AppendAction;
use mesh_api::xds::envoy::config::core::v3::{HeaderValueOption, Metadata, header_value_option::HeaderAppendAction};
use mesh_api::xds::envoy::service::auth::v3::attribute_context::{HttpRequest, Peer, Request, TlsSession};
use mesh_api::xds::envoy::service::auth::v3::{
    AttributeContext, CheckRequest, CheckResponse, DeniedHttpResponse, OkHttpResponse, check_response::HttpResponse,
};
use mesh_api::xds::google::protobuf::{Struct, Timestamp};
use prost::Message as _;
use serde_json::Value;

use super::socket;
use crate::{
    http::{
        exchange::pem,
        filters::ext_authz::{Answer, Changes, Codec, Denial, HttpQuestion, Question, RawHeader},
        format::protocol,
    },
    tls::CertificateFacts,
    xds::{convert::structure, node},
};

/// The protocol.
#[derive(Debug, Clone, Copy, Default)]
pub struct AuthV3;

impl Codec for AuthV3 {
    fn question(&self, question: &Question<'_>) -> Vec<u8> {
        let tls = question.conn.tls.as_ref();
        let mut source = Peer {
            address: Some(socket(question.client)),
            principal: tls.and_then(|t| t.certificate.as_deref()).map(principal).unwrap_or_default(),
            ..Peer::default()
        };
        if question.certificate {
            source.certificate = tls.and_then(|t| t.certificate.as_deref()).map(|c| pem(c.der())).unwrap_or_default();
        }
        if let Some(request) = &question.request {
            let service = request.head.headers.get("x-envoy-downstream-service-cluster");
            source.service = service.and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
        }
        let destination = Peer {
            address: Some(socket(question.conn.local)),
            principal: tls.and_then(|t| t.local.as_deref()).map(principal).unwrap_or_default(),
            ..Peer::default()
        };
        let sni = || question.conn.sni.as_deref().unwrap_or_default().to_owned();
        let filters: HashMap<String, Struct> =
            question.metadata.iter().map(|(name, value)| ((*name).to_owned(), fields(value))).collect();
        let attributes = AttributeContext {
            source: Some(source),
            destination: Some(destination),
            request: question.request.as_ref().map(http_request),
            context_extensions: question.context.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect(),
            metadata_context: Some(Metadata { filter_metadata: filters, ..Metadata::default() }),
            tls_session: question.tls_session.then(|| TlsSession { sni: sni() }),
            ..AttributeContext::default()
        };
        CheckRequest { attributes: Some(attributes) }.encode_to_vec()
    }

    fn answer(&self, message: &[u8]) -> Result<Answer, String> {
        let answer = CheckResponse::decode(message).map_err(|e| e.to_string())?;
        let metadata = answer.dynamic_metadata.as_ref().map(structure);
        let allowed = answer.status.as_ref().is_none_or(|s| s.code == 0);
        match answer.http_response {
            Some(HttpResponse::ErrorResponse(_)) => Err("the authorizer could not decide".to_owned()),
            // Which of the two holds is said by the status alone.
            Some(HttpResponse::OkResponse(ok)) if allowed => Ok(Answer::Allowed(Box::new(changes(&ok, metadata)))),
            Some(HttpResponse::DeniedResponse(denied)) if !allowed => Ok(Answer::Denied(Box::new(denial(denied)))),
            _ if allowed => Ok(Answer::Allowed(Box::new(Changes { metadata, ..Changes::default() }))),
            _ => Ok(Answer::Denied(Box::default())),
        }
    }
}

fn http_request(question: &HttpQuestion<'_>) -> Request {
    let head = question.head;
    let since = question.time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let body = question.body.clone().unwrap_or_default();
    let (text, raw) = if question.body_as_bytes {
        (String::new(), body.to_vec())
    } else {
        (String::from_utf8_lossy(&body).into_owned(), vec![])
    };
    let size = if question.body.is_some() { i64::try_from(body.len()).unwrap_or(i64::MAX) } else { -1 };
    let http = HttpRequest {
        id: question.id.to_owned(),
        method: head.method.as_str().to_owned(),
        headers: question.headers.iter().map(|(k, v)| (k.to_string(), v.clone())).collect(),
        path: head.target.as_str().to_owned(),
        host: head.authority.as_str().to_owned(),
        scheme: head.scheme.as_str().to_owned(),
        protocol: protocol(head.version).to_owned(),
        size,
        body: text,
        raw_body: raw,
        ..HttpRequest::default()
    };
    let time = Timestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(since.subsec_nanos()).unwrap_or(0),
    };
    Request { time: Some(time), http: Some(http) }
}

/// Envoy's order: URI names, else DNS names, else the subject.
fn principal(certificate: &CertificateFacts) -> String {
    let name = certificate.uri_sans.first().or(certificate.dns_sans.first());
    name.unwrap_or(&certificate.subject).to_string()
}

fn raw(option: &HeaderValueOption) -> RawHeader {
    super::raw(option.header.clone().unwrap_or_default())
}

#[allow(deprecated)] // the older way, which authorizers use
fn appends(option: &HeaderValueOption) -> Option<bool> {
    option.append.map(|a| a.value)
}

fn changes(ok: &OkHttpResponse, metadata: Option<Value>) -> Changes {
    let mut out = Changes { metadata, remove: ok.headers_to_remove.clone(), ..Changes::default() };
    for option in &ok.headers {
        // Not as elsewhere: silence means to replace.
        if appends(option).unwrap_or(false) { out.append.push(raw(option)) } else { out.set.push(raw(option)) }
    }
    for option in &ok.response_headers_to_add {
        use HeaderAppendAction as A;
        let action = match (appends(option), A::try_from(option.append_action)) {
            (Some(false), _) | (None, Ok(A::OverwriteIfExistsOrAdd)) => AppendAction::OverwriteIfExistsOrAdd,
            (None, Ok(A::AddIfAbsent)) => AppendAction::AddIfAbsent,
            (None, Ok(A::OverwriteIfExists)) => AppendAction::OverwriteIfExists,
            _ => AppendAction::AppendIfExistsOrAdd,
        };
        out.response.push((raw(option), action));
    }
    out.query_set = ok.query_parameters_to_set.iter().map(|q| (q.key.clone(), q.value.clone())).collect();
    out.query_remove.clone_from(&ok.query_parameters_to_remove);
    #[allow(deprecated)] // still sent
    let older = ok.dynamic_metadata.as_ref().map(structure);
    out.metadata = out.metadata.or(older);
    out
}

fn denial(denied: DeniedHttpResponse) -> Denial {
    Denial {
        status: denied.status.and_then(|s| u16::try_from(s.code).ok()).unwrap_or(0),
        headers: denied.headers.iter().map(|h| (raw(h), appends(h).unwrap_or(false))).collect(),
        body: denied.body.into(),
    }
}

fn fields(value: &Value) -> Struct {
    value.as_object().map(node::structure).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use mesh_api::xds::envoy::config::core::v3::{HeaderValue, address};
    use mesh_api::xds::envoy::r#type::v3::HttpStatus;
    use mesh_api::xds::google::{protobuf::BoolValue, rpc::Status};

    use super::*;
    use crate::http::testing;

    fn option(key: &str, value: &str, append: Option<bool>) -> HeaderValueOption {
        let header = HeaderValue { key: key.to_owned(), value: value.to_owned(), ..HeaderValue::default() };
        #[allow(deprecated)]
        HeaderValueOption {
            header: Some(header),
            append: append.map(|value| BoolValue { value }),
            ..HeaderValueOption::default()
        }
    }

    #[test]
    fn says_what_is_known_of_a_request() {
        let (conn, head) = (testing::conn(), testing::get("a.test", "/p?q=1"));
        let request = HttpQuestion {
            head: &head,
            time: UNIX_EPOCH + std::time::Duration::from_millis(1500),
            id: "7",
            headers: BTreeMap::from([("x-a".into(), "b".to_owned())]),
            body: Some("hi".into()),
            body_as_bytes: false,
        };
        let value = serde_json::json!({"a": [1, "b", null]});
        let question = Question {
            conn: &conn,
            client: "192.0.2.1:1".parse().unwrap(),
            certificate: true,
            tls_session: true,
            request: Some(request),
            context: &[("k".into(), "v".into())],
            metadata: vec![("f", &value)],
        };
        let read = CheckRequest::decode(&*AuthV3.question(&question)).unwrap().attributes.unwrap();
        let of = |p: &Option<Peer>| match p.clone().unwrap().address.unwrap().address.unwrap() {
            address::Address::SocketAddress(s) => s.address,
            other => panic!("{other:?}"),
        };
        assert_eq!((of(&read.source), of(&read.destination)), ("192.0.2.1".to_owned(), "10.0.0.2".to_owned()));
        let request = read.request.unwrap();
        assert_eq!(request.time.unwrap().nanos, 500_000_000);
        let http = request.http.unwrap();
        assert_eq!((&*http.path, &*http.host, &*http.protocol), ("/p?q=1", "a.test", "HTTP/1.1"));
        assert_eq!((&*http.body, http.size, http.headers["x-a"].as_str()), ("hi", 2, "b"));
        assert_eq!(read.context_extensions["k"], "v");
        assert_eq!(structure(&read.metadata_context.unwrap().filter_metadata["f"]), value);
    }

    #[test]
    fn the_status_decides() {
        let answer = |code, response| {
            let status = Some(Status { code, ..Status::default() });
            let answer = CheckResponse { status, http_response: response, dynamic_metadata: None };
            AuthV3.answer(&answer.encode_to_vec())
        };
        let ok = OkHttpResponse {
            headers: vec![option("a", "1", None), option("b", "2", Some(true))],
            response_headers_to_add: vec![option("c", "3", None), option("d", "4", Some(false))],
            ..OkHttpResponse::default()
        };
        let Ok(Answer::Allowed(changes)) = answer(0, Some(HttpResponse::OkResponse(ok.clone()))) else { panic!() };
        assert_eq!(changes.set, [("a".to_owned(), b"1".to_vec())]);
        assert_eq!(changes.append, [("b".to_owned(), b"2".to_vec())]);
        let actions: Vec<_> = changes.response.iter().map(|(_, action)| *action).collect();
        assert_eq!(actions, [AppendAction::AppendIfExistsOrAdd, AppendAction::OverwriteIfExistsOrAdd]);
        let denied = DeniedHttpResponse {
            status: Some(HttpStatus { code: 401 }),
            headers: vec![option("e", "5", None)],
            body: "no".to_owned(),
        };
        let Ok(Answer::Denied(denial)) = answer(7, Some(HttpResponse::DeniedResponse(denied.clone()))) else {
            panic!()
        };
        assert_eq!((denial.status, &*denial.body), (401, &b"no"[..]));
        // A response of the other kind changes nothing of the decision.
        assert!(matches!(answer(7, Some(HttpResponse::OkResponse(ok))), Ok(Answer::Denied(_))));
        assert!(matches!(answer(0, Some(HttpResponse::DeniedResponse(denied))), Ok(Answer::Allowed(_))));
        assert!(matches!(answer(16, None), Ok(Answer::Denied(_))));
        assert!(answer(0, Some(HttpResponse::ErrorResponse(DeniedHttpResponse::default()))).is_err());
        assert!(AuthV3.answer(b"\xff\xff").is_err());
    }
}
