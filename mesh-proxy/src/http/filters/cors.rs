//! Cross-origin resource sharing: preflights answered, answers marked.

use http::header::{self, HeaderValue};
use http::{HeaderMap, Method};
use mesh_api::model;

use crate::config::ConfigError;
use crate::http::local_reply::{LocalReply, Reason};
use crate::http::matchers::StringMatch;
use crate::http::message::RequestHead;

/// A compiled policy.
#[derive(Debug)]
pub struct Cors {
    origins: Box<[StringMatch]>,
    /// A pattern matches the star itself: everybody is allowed.
    everybody: bool,
    methods: Option<HeaderValue>,
    headers: Option<HeaderValue>,
    expose: Option<HeaderValue>,
    max_age: Option<HeaderValue>,
    credentials: bool,
    share: u32,
    forward_unknown_preflights: bool,
}

/// What a request's origin turned out to be.
#[derive(Debug)]
pub enum Outcome {
    /// Nothing to do.
    None,
    /// Answer now.
    Reply(Box<LocalReply>),
    /// Mark the answer for this origin.
    Mark(HeaderValue),
}

fn value(text: &str) -> Result<Option<HeaderValue>, ConfigError> {
    if text.is_empty() {
        return Ok(None);
    }
    HeaderValue::from_str(text).map(Some).map_err(|_| ConfigError::new(format!("CORS: {text:?} is not a header value")))
}

impl Cors {
    /// Compiles a policy.
    ///
    /// # Errors
    /// A pattern or value that is not valid.
    pub fn compile(p: &model::CorsPolicy) -> Result<Self, ConfigError> {
        let origins: Box<[StringMatch]> = p.allow_origins.iter().map(StringMatch::compile).collect::<Result<_, _>>()?;
        Ok(Self {
            everybody: origins.iter().any(|m| m.matches(b"*")),
            origins,
            methods: value(&p.allow_methods)?,
            headers: value(&p.allow_headers)?,
            expose: value(&p.expose_headers)?,
            max_age: value(&p.max_age)?,
            credentials: p.allow_credentials.unwrap_or(false),
            share: p.enabled.map_or(1_000_000, |f| f.0),
            forward_unknown_preflights: p.forward_not_matching_preflights.unwrap_or(true),
        })
    }

    /// Looks at a request.
    pub fn request(&self, head: &RequestHead, random: u64) -> Outcome {
        let Some(origin) = head.headers.get(header::ORIGIN) else { return Outcome::None };
        if random % 1_000_000 >= u64::from(self.share) {
            return Outcome::None;
        }
        let allowed = self.everybody || self.origins.iter().any(|m| m.matches(origin.as_bytes()));
        let preflight =
            head.method == Method::OPTIONS && head.headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
        match (allowed, preflight) {
            (true, false) => Outcome::Mark(origin.clone()),
            (true, true) => {
                let mut reply = LocalReply::from(Reason::CorsPreflight)
                    .with_header(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
                if self.credentials {
                    reply =
                        reply.with_header(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
                }
                let more = [
                    (header::ACCESS_CONTROL_ALLOW_METHODS, &self.methods),
                    (header::ACCESS_CONTROL_ALLOW_HEADERS, &self.headers),
                    (header::ACCESS_CONTROL_MAX_AGE, &self.max_age),
                ];
                for (name, value) in more {
                    if let Some(value) = value {
                        reply = reply.with_header(name, value.clone());
                    }
                }
                Outcome::Reply(Box::new(reply))
            }
            (false, true) if !self.forward_unknown_preflights => {
                Outcome::Reply(Box::new(LocalReply::from(Reason::CorsPreflight)))
            }
            (false, _) => Outcome::None,
        }
    }

    /// Marks an answer.
    pub fn mark(&self, origin: HeaderValue, headers: &mut HeaderMap) {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        if self.credentials {
            headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        }
        if let Some(expose) = &self.expose {
            headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, expose.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marked(allowed: model::StringMatcher, origin: &'static str) -> bool {
        let policy = model::CorsPolicy { allow_origins: vec![allowed], ..model::CorsPolicy::default() };
        let mut head = crate::http::testing::get("a.test", "/");
        head.headers.insert(header::ORIGIN, HeaderValue::from_static(origin));
        matches!(Cors::compile(&policy).unwrap().request(&head, 0), Outcome::Mark(_))
    }

    #[test]
    fn a_star_allows_every_origin() {
        assert!(marked(model::StringMatcher::exact("*"), "http://a.test"));
        assert!(marked(model::StringMatcher::exact("http://a.test"), "http://a.test"));
        assert!(!marked(model::StringMatcher::exact("http://a.test"), "http://b.test"));
    }
}
