//! Where tokens stand in a request: found there, and taken out again.

use std::borrow::Cow;

use http::{HeaderName, HeaderValue, header, uri::PathAndQuery};
use mesh_api::model::JwtProvider;

use crate::{config::ConfigError, http::message::RequestHead};

/// A place for a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A header, and what stands before the token there.
    Header(HeaderName, Box<str>),
    /// A query parameter.
    Param(Box<str>),
    /// A cookie.
    Cookie(Box<str>),
}

impl Place {
    /// The places of a provider; when it names none: `authorization: Bearer` and the parameter `access_token`.
    ///
    /// # Errors
    /// A header name that is none.
    pub fn of(provider: &JwtProvider) -> Result<Box<[Self]>, ConfigError> {
        let mut out = Vec::new();
        for (name, prefix) in &provider.from_headers {
            out.push(Self::Header(header_name(name)?, (**prefix).into()));
        }
        out.extend(provider.from_params.iter().map(|p| Self::Param((**p).into())));
        out.extend(provider.from_cookies.iter().map(|c| Self::Cookie((**c).into())));
        if out.is_empty() {
            out = vec![Self::Header(header::AUTHORIZATION, "Bearer ".into()), Self::Param("access_token".into())];
        }
        Ok(out.into())
    }

    /// Every token that stands here.
    pub fn tokens<'h>(&self, head: &'h RequestHead, out: &mut Vec<Cow<'h, str>>) {
        match self {
            Self::Header(name, prefix) => {
                for value in head.headers.get_all(name) {
                    // What is no text cannot be a token, but must not pass for "no token" either.
                    let Ok(text) = value.to_str() else {
                        out.push(Cow::Borrowed(""));
                        continue;
                    };
                    if prefix.is_empty() {
                        out.push(Cow::Borrowed(text));
                    } else if let Some((_, rest)) = text.split_once(&**prefix) {
                        let start = rest.find(|c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
                        out.push(Cow::Borrowed(start.and_then(|i| rest.get(i..)).unwrap_or(text)));
                    }
                }
            }
            Self::Param(name) => {
                for (key, value) in pairs(head) {
                    if decoded(key) == **name {
                        out.push(decoded(value));
                    }
                }
            }
            Self::Cookie(name) => {
                for value in head.headers.get_all(header::COOKIE) {
                    let Ok(text) = value.to_str() else { continue };
                    let cookies = text.split(';').filter_map(|c| c.trim().split_once('='));
                    let values = cookies.filter(|(key, _)| **key == **name).map(|(_, value)| value);
                    out.extend(values.map(|v| Cow::Borrowed(unquoted(v))));
                }
            }
        }
    }

    /// Takes the tokens out. Cookies stay, as in Envoy.
    pub fn clear(&self, head: &mut RequestHead) {
        match self {
            Self::Header(name, _) => {
                head.headers.remove(name);
            }
            Self::Param(name) => {
                let kept: Vec<String> = head
                    .query()
                    .unwrap_or_default()
                    .split('&')
                    .filter(|pair| decoded(pair.split_once('=').map_or(*pair, |(k, _)| k)) != **name)
                    .map(str::to_owned)
                    .collect();
                let (path, query) = (head.path(), kept.join("&"));
                let target = if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") };
                if let Ok(target) = PathAndQuery::try_from(target) {
                    head.target = target;
                }
            }
            Self::Cookie(_) => {}
        }
    }
}

/// A header name of the configuration.
pub fn header_name(name: &str) -> Result<HeaderName, ConfigError> {
    HeaderName::from_bytes(name.as_bytes()).map_err(|_| ConfigError::new(format!("{name:?} is not a header name")))
}

/// A header for the upstream; what cannot stand in one is left out.
pub fn put(head: &mut RequestHead, name: &HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        head.headers.append(name.clone(), value);
    }
}

fn pairs(head: &RequestHead) -> impl Iterator<Item = (&str, &str)> {
    head.query().unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='))
}

fn decoded(text: &str) -> Cow<'_, str> {
    percent_encoding::percent_decode_str(text).decode_utf8_lossy()
}

fn unquoted(value: &str) -> &str {
    let inner = value.strip_prefix('"').and_then(|v| v.strip_suffix('"'));
    inner.unwrap_or(value)
}
