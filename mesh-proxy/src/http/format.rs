//! Command operators (`%REQ(X?Y):Z%`, `%START_TIME(%s)%`, ...) in header values, access logs and span tags: parsed once,
//! resolved against an exchange. Knows no sink and no header map that is not handed to it.

mod operator;
mod time;

use std::borrow::Cow;

use http::{HeaderMap, HeaderName, HeaderValue};

pub use operator::{Operator, protocol};
pub use time::TimeFormat;

use super::{
    message::RequestHead,
    stats::{ExchangeStats, Needs},
};
use crate::config::ConfigError;

/// Where headers are looked up.
#[derive(Debug, Clone, Copy)]
pub enum Headers<'a> {
    /// There are none (yet).
    None,
    /// A head that is at hand.
    Map(&'a HeaderMap),
    /// What was kept of a head that is gone.
    Captured(&'a [(HeaderName, HeaderValue)]),
}

impl<'a> Headers<'a> {
    fn get(&self, name: &HeaderName) -> Option<&'a [u8]> {
        match self {
            Headers::None => None,
            Headers::Map(map) => map.get(name).map(HeaderValue::as_bytes),
            Headers::Captured(list) => list.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_bytes()),
        }
    }
}

/// What operators look at.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// The exchange.
    pub stats: &'a ExchangeStats,
    /// The request as it is now; `None`: its pseudo-headers are taken from `stats`.
    pub head: Option<&'a RequestHead>,
    /// Its headers.
    pub request: Headers<'a>,
    /// Headers of the answer.
    pub response: Headers<'a>,
    /// Trailers of the answer.
    pub trailers: Headers<'a>,
}

impl<'a> View<'a> {
    /// Of a request on its way up.
    pub fn request(stats: &'a ExchangeStats, head: &'a RequestHead) -> Self {
        Self {
            stats,
            head: Some(head),
            request: Headers::Map(&head.headers),
            response: Headers::None,
            trailers: Headers::None,
        }
    }
    /// Of an answer on its way down; of the request only what was captured is known.
    pub fn response(stats: &'a ExchangeStats, headers: &'a HeaderMap) -> Self {
        Self {
            stats,
            head: None,
            request: Headers::Captured(&stats.captured.request),
            response: Headers::Map(headers),
            trailers: Headers::None,
        }
    }
    /// Of a finished exchange.
    pub fn finished(stats: &'a ExchangeStats) -> Self {
        Self {
            stats,
            head: None,
            request: Headers::Captured(&stats.captured.request),
            response: Headers::Captured(&stats.captured.response),
            trailers: Headers::Captured(&stats.captured.trailers),
        }
    }
}

/// Value of one operator.
#[derive(Debug, Clone, PartialEq)]
pub enum Value<'a> {
    /// Text (header values may hold any bytes).
    Text(Cow<'a, [u8]>),
    /// A number.
    Number(u64),
    /// A structure (metadata).
    Json(&'a serde_json::Value),
}

impl<'a> Value<'a> {
    fn text(s: impl Into<Cow<'a, str>>) -> Self {
        match s.into() {
            Cow::Borrowed(s) => Value::Text(Cow::Borrowed(s.as_bytes())),
            Cow::Owned(s) => Value::Text(Cow::Owned(s.into_bytes())),
        }
    }
    /// Appends the text form.
    pub fn write(&self, out: &mut Vec<u8>) {
        use std::io::Write as _;
        match self {
            Value::Text(t) => out.extend_from_slice(t),
            // Writing into a Vec cannot fail.
            Value::Number(n) => drop(write!(out, "{n}")),
            // What others say must not begin a line of its own.
            Value::Json(serde_json::Value::String(s)) if s.contains(char::is_control) => {
                let quoted = serde_json::Value::String(s.clone()).to_string();
                out.extend_from_slice(quoted.get(1..quoted.len() - 1).unwrap_or_default().as_bytes());
            }
            Value::Json(serde_json::Value::String(s)) => out.extend_from_slice(s.as_bytes()),
            Value::Json(v) => drop(write!(out, "{v}")),
        }
    }
    /// The first bytes of the text form.
    fn cut(self, max: usize) -> Value<'static> {
        let mut text = Vec::new();
        self.write(&mut text);
        text.truncate(max);
        Value::Text(text.into())
    }
    /// As JSON, its type kept.
    pub fn into_json(self) -> serde_json::Value {
        match self {
            Value::Text(t) => String::from_utf8_lossy(&t).into_owned().into(),
            Value::Number(n) => n.into(),
            Value::Json(v) => v.clone(),
        }
    }
}

#[derive(Debug, Clone)]
enum Part {
    Literal(Box<str>),
    Operator(Operator),
}

/// A parsed format.
#[derive(Debug, Clone)]
pub struct Format {
    parts: Box<[Part]>,
}

impl Format {
    /// Parses text with operators; `%%` is a percent sign.
    ///
    /// # Errors
    /// An operator that is not known or not closed, by name.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let mut parts = Vec::new();
        let mut literal = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('%') {
            literal.push_str(before);
            if let Some(after) = after.strip_prefix('%') {
                literal.push('%');
                rest = after;
                continue;
            }
            let end = operator_end(after)
                .ok_or_else(|| ConfigError::new(format!("format {text:?}: an operator is not closed by %")))?;
            let (operator, tail) = after.split_at(end);
            rest = tail.strip_prefix('%').unwrap_or(tail);
            match Operator::parse(operator)? {
                Operator::Constant(value) => literal.push_str(&value),
                operator => {
                    if !literal.is_empty() {
                        parts.push(Part::Literal(std::mem::take(&mut literal).into()));
                    }
                    parts.push(Part::Operator(operator));
                }
            }
        }
        literal.push_str(rest);
        if !literal.is_empty() {
            parts.push(Part::Literal(literal.into()));
        }
        Ok(Self { parts: parts.into() })
    }
    /// The text, when there is no operator in it.
    pub fn as_literal(&self) -> Option<&str> {
        match &*self.parts {
            [] => Some(""),
            [Part::Literal(text)] => Some(text),
            _ => None,
        }
    }
    /// Appends the text; `missing` stands for operators without a value (`-` in logs, nothing in headers).
    pub fn write(&self, view: &View<'_>, missing: &str, out: &mut Vec<u8>) {
        for part in &self.parts {
            match part {
                Part::Literal(text) => out.extend_from_slice(text.as_bytes()),
                Part::Operator(operator) => match operator.value(view) {
                    Some(value) => value.write(out),
                    None => out.extend_from_slice(missing.as_bytes()),
                },
            }
        }
    }
    /// As a JSON value: a lone operator keeps its type and is `null` without a value.
    pub fn json(&self, view: &View<'_>) -> serde_json::Value {
        if let [Part::Operator(operator)] = &*self.parts {
            return operator.value(view).map_or(serde_json::Value::Null, Value::into_json);
        }
        let mut out = Vec::new();
        self.write(view, "-", &mut out);
        String::from_utf8_lossy(&out).into_owned().into()
    }
    /// As a header value; `None` when the text is not one.
    pub fn header_value(&self, view: &View<'_>) -> Option<HeaderValue> {
        let mut out = Vec::new();
        self.write(view, "", &mut out);
        HeaderValue::from_bytes(&out).ok()
    }
    /// Adds the headers that it reads.
    pub fn needs(&self, needs: &mut Needs) {
        for part in &self.parts {
            if let Part::Operator(operator) = part {
                operator.needs(needs);
            }
        }
    }
}

/// Where the operator at the start of `text` ends: the next `%` outside of parentheses.
fn operator_end(text: &str) -> Option<usize> {
    let mut depth = 0usize;
    for (i, b) in text.bytes().enumerate() {
        match b {
            b'(' => depth += 1,
            b')' => depth = depth.saturating_sub(1),
            b'%' if depth == 0 => return Some(i),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
pub(crate) mod tests {
    use std::rc::Rc;

    use http::{Method, uri::PathAndQuery};

    use super::*;
    use crate::http::{local_reply::Reason, message::Authority, testing};

    fn stats() -> ExchangeStats {
        let mut head =
            RequestHead::new(Method::GET, Authority::parse("shop.test").unwrap(), PathAndQuery::from_static("/a?x=1"));
        head.headers.insert("user-agent", HeaderValue::from_static("curl/8"));
        let mut stats = ExchangeStats::new(Rc::new(testing::conn()), &head);
        stats.captured.request = head.headers.iter().map(|(n, v)| (n.clone(), v.clone())).collect();
        let payload = serde_json::json!({"sub": "me\nyou", "groups": ["a", "b"], "n": 7});
        stats.metadata.insert("jwt".to_owned(), serde_json::json!({ "payload": payload }));
        stats.status = 503;
        stats.end_with(Reason::NoHealthyUpstream);
        stats.start_time = std::time::UNIX_EPOCH + std::time::Duration::from_millis(1_700_000_000_123);
        stats.times.end = Some(stats.start + std::time::Duration::from_millis(7));
        stats
    }

    fn text(format: &str) -> String {
        let mut out = Vec::new();
        Format::parse(format).unwrap().write(&View::finished(&stats()), "-", &mut out);
        String::from_utf8(out).unwrap()
    }

    /// Istio's default text format.
    pub(crate) const ISTIO: &str = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" \
        %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% \
        \"%UPSTREAM_TRANSPORT_FAILURE_REASON%\" %BYTES_RECEIVED% %BYTES_SENT% %DURATION% \
        %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \
        \"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\" %UPSTREAM_CLUSTER_RAW% \
        %UPSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% \
        %REQUESTED_SERVER_NAME% %ROUTE_NAME%\n";

    #[test]
    fn istios_default_line() {
        assert_eq!(
            text(ISTIO),
            "[2023-11-14T22:13:20.123Z] \"GET /a?x=1 HTTP/1.1\" 503 UH no_healthy_upstream - \"-\" 0 0 7 - \"-\" \
             \"curl/8\" \"-\" \"shop.test\" \"-\" - - 10.0.0.2:8080 10.0.0.1:40000 - -\n"
        );
    }

    #[test]
    fn arguments_lengths_and_percent_signs() {
        assert_eq!(text("100%% %REQ(nope?user-agent):4%"), "100% curl");
        assert_eq!(text("%START_TIME(%s)%"), "1700000000");
        assert_eq!(text("%START_TIME(%Y/%m/%d %H:%M:%S.%3f)%"), "2023/11/14 22:13:20.123");
        assert_eq!(text("%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%"), "10.0.0.1");
        assert_eq!(text("%QUERY_PARAM(x)% %PATH(NQ)%"), "1 /a");
        assert_eq!(text("%REQ_WITHOUT_QUERY(X-ENVOY-ORIGINAL-PATH?:PATH)% %REQ_WITHOUT_QUERY(:PATH):1%"), "/a /");
        assert_eq!(text("%METADATA(CLUSTER:istio:a)% %METADATA(ROUTE:istio)%"), "- -");
        assert_eq!(text("%DOWNSTREAM_WIRE_BYTES_SENT% %COMMON_DURATION(DS_RX_BEG:DS_RX_END:ms)%"), "- -");
        for bad in ["%NOPE%", "%METADATA(X:a)%", "%REQ(", "%REQ%", "50% off", "%REQ(a b)%"] {
            assert!(Format::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn dynamic_metadata_on_one_line() {
        assert_eq!(text("%DYNAMIC_METADATA(jwt:payload:sub)%"), "me\\nyou");
        assert_eq!(text("%DYNAMIC_METADATA(jwt:payload:groups)%"), r#"["a","b"]"#);
        assert_eq!(text("%METADATA(DYNAMIC:jwt:payload:n)% %DYNAMIC_METADATA(jwt:payload:groups):4%"), r#"7 ["a""#);
        assert_eq!(text("%DYNAMIC_METADATA(jwt:payload:none)% %DYNAMIC_METADATA(other)%"), "- -");
        assert!(Format::parse("%DYNAMIC_METADATA%").is_err());
    }

    #[test]
    fn json_keeps_types() {
        let stats = stats();
        let view = View::finished(&stats);
        let json = |f: &str| Format::parse(f).unwrap().json(&view);
        assert_eq!(json("%RESPONSE_CODE%"), serde_json::json!(503));
        assert_eq!(json("%DYNAMIC_METADATA(jwt:payload:n)%"), serde_json::json!(7));
        assert_eq!(json("%DYNAMIC_METADATA(jwt:payload:sub)%"), serde_json::json!("me\nyou"));
        assert_eq!(json("%REQ(absent)%"), serde_json::Value::Null);
        assert_eq!(json("code=%RESPONSE_CODE%"), serde_json::json!("code=503"));
    }

    #[test]
    fn needed_headers_are_collected() {
        let mut needs = Needs::default();
        Format::parse(ISTIO).unwrap().needs(&mut needs);
        assert!(needs.request.contains(&HeaderName::from_static("x-forwarded-for")));
        assert_eq!(needs.response, ["x-envoy-upstream-service-time"]);
    }
}
