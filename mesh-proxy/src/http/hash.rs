//! The hash of a request for consistent balancers: header, cookie (made when absent), client address, query parameter.

use std::time::Duration;

use http::{HeaderName, HeaderValue};
use mesh_api::model::{self, Name};
use xxhash_rust::xxh64::xxh64;

use super::{
    matchers::{cookie_value, joined, query_value},
    message::RequestHead,
    stats::ExchangeStats,
};
use crate::config::ConfigError;

/// Compiled hash policies of a route.
#[derive(Debug, Clone, Default)]
pub struct HashPolicies(Box<[(Source, bool)]>);

#[derive(Debug, Clone)]
enum Source {
    Header(HeaderName),
    Cookie(CookieSource),
    ClientAddress,
    Query(Name),
    FilterState,
}

#[derive(Debug, Clone)]
struct CookieSource {
    name: Name,
    ttl: Option<Duration>,
    path: Name,
    attributes: Vec<(Name, Name)>,
}

/// What hashing yields.
#[derive(Debug, Default)]
pub struct Hashed {
    /// For the balancer.
    pub hash: Option<u64>,
    /// Cookies made on the way, for the answer.
    pub set_cookies: Vec<HeaderValue>,
}

impl HashPolicies {
    /// Compiles policies.
    ///
    /// # Errors
    /// A header name that is not valid.
    pub fn compile(policies: &[model::HashPolicy]) -> Result<Self, ConfigError> {
        let compiled = policies.iter().map(|p| {
            let source = match &p.source {
                model::HashSource::Header(name) => Source::Header(
                    HeaderName::from_bytes(name.to_ascii_lowercase().as_bytes())
                        .map_err(|_| ConfigError::new(format!("hash policy: {name:?} is not a header name")))?,
                ),
                model::HashSource::Cookie { name, ttl, path, attributes } => Source::Cookie(CookieSource {
                    name: name.clone(),
                    ttl: *ttl,
                    path: path.clone(),
                    attributes: attributes.clone(),
                }),
                model::HashSource::SourceIp => Source::ClientAddress,
                model::HashSource::Query(name) => Source::Query(name.clone()),
                model::HashSource::FilterState(_) => Source::FilterState,
            };
            Ok((source, p.terminal))
        });
        Ok(Self(compiled.collect::<Result<_, ConfigError>>()?))
    }
    /// No policies.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
    /// The hash of a request: what the policies yield, combined in order.
    pub fn hash(&self, head: &RequestHead, stats: &ExchangeStats) -> Hashed {
        let mut out = Hashed::default();
        for (source, terminal) in &self.0 {
            let one = match source {
                Source::Header(name) => joined(&head.headers, name).map(|v| xxh64(&v, 0)),
                Source::Query(name) => head.query().and_then(|q| query_value(q, name)).map(|v| xxh64(v.as_bytes(), 0)),
                Source::ClientAddress => Some(xxh64(stats.client.ip().to_string().as_bytes(), 0)),
                Source::Cookie(cookie) => match cookie_value(&head.headers, &cookie.name) {
                    Some(value) if !value.is_empty() => Some(xxh64(value.as_bytes(), 0)),
                    _ => cookie.make(stats).map(|(value, header)| {
                        out.set_cookies.push(header);
                        xxh64(value.as_bytes(), 0)
                    }),
                },
                Source::FilterState => None,
            };
            if let Some(one) = one {
                out.hash = Some(out.hash.map_or(one, |h| h.rotate_left(1) ^ one));
                if *terminal {
                    break;
                }
            }
        }
        out
    }
}

impl CookieSource {
    /// A value that stays the same for a connection, and its `set-cookie`.
    fn make(&self, stats: &ExchangeStats) -> Option<(String, HeaderValue)> {
        let ttl = self.ttl?;
        let seed = format!("{}{}", stats.conn.peer, stats.conn.local);
        let value = format!("{:016x}", xxh64(seed.as_bytes(), 0));
        set_cookie(&self.name, &value, ttl, &self.path, &self.attributes).map(|header| (value, header))
    }
}

/// `NAME="VALUE"; Max-Age=...; Path=...; ATTRIBUTES; HttpOnly`.
pub fn set_cookie(
    name: &str,
    value: &str,
    ttl: Duration,
    path: &str,
    attributes: &[(Name, Name)],
) -> Option<HeaderValue> {
    let mut text = format!("{name}=\"{value}\"");
    if !ttl.is_zero() {
        text.push_str(&format!("; Max-Age={}", ttl.as_secs()));
    }
    if !path.is_empty() {
        text.push_str(&format!("; Path={path}"));
    }
    for (key, value) in attributes {
        text.push_str("; ");
        text.push_str(key);
        if !value.is_empty() {
            text.push('=');
            text.push_str(value);
        }
    }
    text.push_str("; HttpOnly");
    HeaderValue::from_str(&text).ok()
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;
    use crate::http::testing;

    fn policies(sources: Vec<(model::HashSource, bool)>) -> HashPolicies {
        let list: Vec<_> =
            sources.into_iter().map(|(source, terminal)| model::HashPolicy { source, terminal }).collect();
        HashPolicies::compile(&list).unwrap()
    }

    #[test]
    fn terminal_policies_stop_and_others_combine() {
        let mut head = testing::get("a", "/?user=7");
        let stats = ExchangeStats::new(Rc::new(testing::conn()), &head);
        let header = model::HashSource::Header("x-user".into());
        let query = model::HashSource::Query("user".into());
        let both = policies(vec![(header.clone(), true), (query.clone(), false)]);
        let only_query = both.hash(&head, &stats).hash.unwrap();
        assert_eq!(only_query, xxh64(b"7", 0));
        head.headers.insert("x-user", HeaderValue::from_static("a"));
        assert_eq!(both.hash(&head, &stats).hash.unwrap(), xxh64(b"a", 0));
        let combined = policies(vec![(header, false), (query, false)]);
        assert_eq!(combined.hash(&head, &stats).hash.unwrap(), xxh64(b"a", 0).rotate_left(1) ^ xxh64(b"7", 0));
    }

    #[test]
    fn cookies_are_made_once() {
        let mut head = testing::get("a", "/");
        let stats = ExchangeStats::new(Rc::new(testing::conn()), &head);
        let cookie = model::HashSource::Cookie {
            name: "pin".into(),
            ttl: Some(Duration::from_secs(60)),
            path: "/".into(),
            attributes: vec![("SameSite".into(), "Strict".into())],
        };
        let p = policies(vec![(cookie, false)]);
        let first = p.hash(&head, &stats);
        let set = first.set_cookies[0].to_str().unwrap().to_owned();
        assert!(set.ends_with("; Max-Age=60; Path=/; SameSite=Strict; HttpOnly"), "{set}");
        head.headers.insert("cookie", HeaderValue::from_str(set.split(';').next().unwrap()).unwrap());
        let second = p.hash(&head, &stats);
        assert_eq!(first.hash, second.hash);
        assert!(second.set_cookies.is_empty());
    }
}
